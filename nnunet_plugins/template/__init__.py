"""A package of four files that brings a network of one's own to nnU-Net, written by `nnunet-plugins new-backbone`."""

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from nnunet_plugins import backbones
from nnunet_plugins.errors import InputError
from nnunet_plugins.rows import STOCK_TRAINER

_FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "network.py.in": "{module}.py",
    "test.py.in": "test_{module}.py",
    "README.md.in": "README.md",
}


def write_package(name: str, folder: Path, trainer: str | None = None) -> str:
    """Write the package.

    Args:
        name: of the distribution; the module's has underscores in place of hyphens.
        folder: to make.
        trainer: name of the trainer; by default made of the package's.

    Returns:
        the trainer's name.

    Raises:
        InputError: if a name cannot be used.
        FileExistsError: if the folder exists; nothing is overwritten.
    """
    if not re.fullmatch("[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise InputError(
            f"{name!r} is no name for a package; small letters and digits, a letter first, and single hyphens between"
        )
    module = name.replace("-", "_")
    if keyword.iskeyword(module):
        raise InputError(f"{name!r} is a word of Python's own, and cannot be imported; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"there is a module {module!r} already, and one of this name would hide it; choose another")
    trainer = trainer or STOCK_TRAINER + "".join(word.capitalize() for word in re.split("[-_]", name))
    require_free(trainer)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; nothing is overwritten, choose another name or -o FOLDER")
    words = {"name": name, "module": module, "trainer": trainer}
    folder.mkdir(parents=True)
    for source, target in _FILES.items():
        text = Template(Path(__file__).with_name(source).read_text(encoding="utf-8")).substitute(words)
        (folder / target.format(**words)).write_text(text, encoding="utf-8")
    return trainer


def require_free(trainer: str) -> None:
    """Check that a trainer may have this name.

    Raises:
        InputError: if not, with the reason.
    """
    if not re.fullmatch(f"{STOCK_TRAINER}[A-Z0-9][A-Za-z0-9]*", trainer):
        raise InputError(f"{trainer!r} is no name for a trainer; {STOCK_TRAINER}, then a capital, letters and digits")
    if trainer in backbones.trainers_of_nnunet():
        raise InputError(f"nnU-Net itself has a trainer {trainer}, and finds that one first; choose another with -tr")
    if backbones.find(trainer):
        raise InputError(f"{backbones.source_of(trainer)} brings {trainer}; choose another with -tr")
