"""Where the code of a trainer stands: its classes up to nnU-Net's own, the methods that they override, their files."""

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_plugins import backbones
from nnunet_plugins._startup import listed
from nnunet_plugins.errors import InputError
from nnunet_plugins.rows import STOCK_TRAINER, locate

_INSTALLED = {"site-packages", "dist-packages"}
"""Folders of packages that were installed, of which a Python may have several."""


@functools.cache
def source_files(trainer: str) -> tuple[Path, ...]:
    """Return the files with the code of a trainer and its network; none, if nobody finds the trainer.

    These are the files in which its classes stand, that of its row if other people have made it, and all that these
    import from beside them. Of packages that are installed, such as nnU-Net, they are those of the classes alone: the
    rest is of a version.
    """
    from nnunet_plugins.planning.setting import find_trainer

    try:
        found = find_trainer(trainer)
    except InputError:
        return ()
    kinds = list(found.__mro__)
    origin = None
    if row := getattr(found, "backbone", None):
        # An adapted network is this package's class; what is adapted is an option.
        for part in filter(None, (row.network, row.options.get("factory"))):
            try:
                kinds.append(locate(part))
            except Exception as error:  # whatever a foreign module does; its training will say it
                print(f"The network of {trainer} cannot be imported: {error}")
        origin = backbones.source_of(row.trainer)
    waiting = [file for kind in kinds if (file := _file_of(kind))]
    if origin and origin != backbones.OWN and origin.file:
        waiting.append(origin.file)
    files: dict[Path, None] = {}
    while waiting:
        file = waiting.pop(0)
        if file not in files:
            files[file] = None
            waiting += _imported_beside(file)
    return tuple(files)


def _file_of(thing: Any) -> Path | None:
    """Return the file of a class or a function, which nnU-Net may have forgotten: of users' it drops the modules."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    if not hasattr(thing, "__qualname__"):  # it can be called, and its class says how
        thing = type(thing)
    module = sys.modules.get(thing.__module__)
    parts = thing.__module__.split(".")
    places = [Path(folder, *parts) for folder in listed()]
    own = (
        function.__code__.co_filename for function in (thing, *vars(thing).values()) if hasattr(function, "__code__")
    )
    candidates = [
        getattr(module, "__file__", None),
        *(place.with_suffix(".py") for place in places),
        *(place / "__init__.py" for place in places),
        *own,
    ]
    return next((Path(file) for file in candidates if file and Path(file).is_file()), None)


@functools.cache
def _imported_beside(file: Path) -> tuple[Path, ...]:
    """Return the files that a file imports, also inside functions, of its own folder or package or of those around."""
    if not _INSTALLED.isdisjoint(file.parts) or file.is_relative_to(sysconfig.get_path("stdlib")):
        return ()
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ()
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    roots = [root, *(Path(folder) for folder in listed() if file.is_relative_to(folder))]
    found = []
    for node in ast.walk(tree):
        for base, name in _names(node, file):
            parts = name.split(".") if name else []
            for place in [base] if base else roots:
                for number in range(1, len(parts) + 1):
                    module = place.joinpath(*parts[:number])
                    found += [part for part in (module.with_suffix(".py"), module / "__init__.py") if part.is_file()]
    return tuple(dict.fromkeys(found))


def _names(node: ast.AST, file: Path) -> Iterator[tuple[Path | None, str]]:
    """Yield what a statement imports, some of it no module but something in one; with its folder, if that is told."""
    if isinstance(node, ast.Import):
        yield from ((None, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = file.parents[node.level - 1] if node.level else None
        yield from ((base, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names)


def overridden_methods(trainer: type) -> dict[str, dict[str, str]]:
    """Return what a trainer overrides of nnU-Net's: for each method, by class, a hash of its source.

    Args:
        trainer: the class.

    Returns:
        `{"train_step": {"my_module.MyTrainer": "0f3c..."}}`, the class that is asked first standing first. Methods that
        nnU-Net's trainer does not have are in it as well, since others may call them.
    """
    found: dict[str, dict[str, str]] = {}
    for kind in trainer.__mro__:
        if kind is object or (kind.__name__ == STOCK_TRAINER and kind.__module__.startswith("nnunetv2.")):
            continue
        for name, member in vars(kind).items():
            function = _function(member)
            if function is not None:
                found.setdefault(name, {})[f"{kind.__module__}.{kind.__qualname__}"] = hash_source(function)
    return dict(sorted(found.items()))


def hash_source(function: Any) -> str:
    """Return a hash of a function's source, or of its code where there is no source."""
    try:
        text = inspect.getsource(function).encode()
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        text = repr(function).encode() if code is None else code.co_code + repr(code.co_consts).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _function(member: Any) -> Any:
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member if callable(member) and not isinstance(member, type) else None
