"""Find the cases in an input folder, as a platform lays them out. Loads nothing heavy.

A case with something missing is returned all the same, with what is wrong, so that it does not cost the others.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.submission.settings import LAYOUTS, Settings

SOCKET_ENDINGS = (".mha", ".mhd", ".nii.gz", ".nii", ".nrrd", ".tif", ".tiff")
_SOCKET = {"slug": str, "relative_path?": (str, type(None))}
_INPUTS = [{"interface?": _SOCKET, "socket?": _SOCKET}]


@dataclass(frozen=True)
class Case:
    """One image to segment.

    Attributes:
        name: for the log and for files.
        images: one file per channel.
        output: file for the segmentation.
        fault: what is wrong with it; empty if nothing is known to be.
    """

    name: str
    images: tuple[Path, ...]
    output: Path
    fault: str = ""


def find_cases(settings: Settings, inputs: Path, outputs: Path) -> list[Case]:
    """Return the cases in an input folder, in the order of their names.

    Args:
        settings: they say the layout, and the names of the channels' files.
        inputs: the folder.
        outputs: folder for the segmentations.

    Raises:
        InputError: if the folder is missing, or holds nothing of the kind.
    """
    if not inputs.is_dir():
        raise InputError(f"there is no input folder {inputs}")
    cases = _FINDERS[settings.layout](settings, inputs, outputs)
    if not cases:
        raise InputError(f"{inputs} holds no images. The layout is {LAYOUTS[settings.layout]}{_expected(settings)}")
    return cases


def _expected(settings: Settings) -> str:
    names = settings.inputs or settings.channels
    return f" ({', '.join(names)})"


def _find_files(settings: Settings, inputs: Path, outputs: Path) -> list[Case]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(inputs.iterdir()):
        if match := re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(settings.ending)}", path.name):
            found.setdefault(match[1], {})[int(match[2])] = path
    cases = []
    for name, files in found.items():
        # Fewer files than channels may be right: some formats hold several channels.
        known = range(min(len(files), len(settings.channels)))
        missing = [f"{name}_{number:04}{settings.ending}" for number in known if number not in files]
        more = [path.name for number, path in files.items() if number >= len(settings.channels)]
        fault = f"{', '.join(missing)} missing" if missing else ""
        fault = fault or (f"more channels than the model's {len(settings.channels)}: {', '.join(more)}" if more else "")
        cases.append(Case(name, tuple(files.values()), outputs / f"{name}{settings.ending}", fault))
    return cases


def _find_case_folders(settings: Settings, inputs: Path, outputs: Path) -> list[Case]:
    cases = []
    for folder in sorted(path for path in inputs.iterdir() if path.is_dir()):
        faults: list[str] = []
        images: list[Path] = []
        for suffix in settings.inputs:
            pattern = rf"(.*[-_])?{re.escape(suffix + settings.ending)}"
            fitting = [path for path in sorted(folder.iterdir()) if re.fullmatch(pattern, path.name)]
            if len(fitting) == 1:
                images += fitting
            else:
                found = f"{len(fitting)} files" if fitting else "no file"
                faults.append(f"{folder} has {found} ...-{suffix}{settings.ending}")
        output = outputs / f"{folder.name}{settings.ending}"
        cases.append(Case(folder.name, tuple(images), output, "; ".join(faults)))
    return cases


def _find_sockets(settings: Settings, inputs: Path, outputs: Path) -> list[Case]:
    folders = _socket_folders(settings.inputs, inputs)
    images = [_images_in(folder) for folder in folders]
    target = outputs / "images" / settings.output
    if not any(images):
        return []
    if all(len(files) == 1 for files in images):
        # One file each: they belong together, whatever they are called.
        return [Case(_stem(images[0][0]), tuple(files[0] for files in images), target / f"{_stem(images[0][0])}.mha")]
    by_name = [{_stem(file): file for file in files} for files in images]
    cases = []
    for name in sorted(set().union(*by_name)):
        missing = [str(folder) for folder, files in zip(folders, by_name, strict=True) if name not in files]
        fault = f"{name} is missing in {', '.join(missing)}" if missing else ""
        files = tuple(files[name] for files in by_name if name in files)
        cases.append(Case(name, files, target / f"{name}.mha", fault))
    return cases


def _socket_folders(slugs: Sequence[str], inputs: Path) -> list[Path]:
    """Return each socket's folder, as the platform's inputs.json tells it, else by its slug."""
    places: dict[str, str] = {}
    if (file := inputs / "inputs.json").is_file():
        for entry in read_json(file, _INPUTS):
            # The platform is about to call its interfaces sockets.
            socket = entry.get("socket") or entry.get("interface") or {}
            if socket.get("relative_path"):
                places[socket["slug"]] = socket["relative_path"]
    folders = [inputs / places.get(slug, f"images/{slug}") for slug in slugs]
    for slug, folder in zip(slugs, folders, strict=True):
        if not folder.is_dir():
            there = ", ".join(sorted(path.name for path in inputs.glob("images/*"))) or "none"
            raise InputError(f"{folder}, the input socket {slug!r}, is missing; sockets with images: {there}")
    return folders


def _images_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name.endswith(SOCKET_ENDINGS)]


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(ending) for ending in SOCKET_ENDINGS if path.name.endswith(ending))


_FINDERS: dict[str, Callable[[Settings, Path, Path], list[Case]]] = {
    "files": _find_files,
    "sockets": _find_sockets,
    "case folders": _find_case_folders,
}
