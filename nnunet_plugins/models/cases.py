"""Find the cases in an input folder, as a platform lays them out. Loads nothing heavy.

A case with something missing is returned all the same, with what is wrong, so that it does not cost the others.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.images.facts import KINDS, Fact, summarise
from nnunet_plugins.images.finding import aside, image_ending, list_folder, twins, without_ending
from nnunet_plugins.models.settings import LAYOUTS, Settings

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


class Earlier:
    """Segmentations of an earlier run, which are not to stand for those of this one.

    Args:
        cases: of this run.
        beside: endings of what an earlier run may have written beside a segmentation, such as its probabilities.
    """

    def __init__(self, cases: Iterable[Case], beside: Sequence[str] = ()) -> None:
        outputs = (case.output for case in cases)
        self._files = {one: [file for file in _written(one, beside) if file.is_file()] for one in outputs}

    def keep(self, case: Case) -> None:
        """Leave what is there of a case that is done."""
        self._files.pop(case.output, None)

    def remove(self, case: Case) -> None:
        """Remove what an earlier run has left of a case that failed; never an image, or what this run has made."""
        for file in self._files.get(case.output, ()):
            if file.resolve() not in [image.resolve() for image in case.images]:
                file.unlink(missing_ok=True)


def _written(output: Path, beside: Sequence[str]) -> list[Path]:
    name = output.name.removesuffix(image_ending(output.name))
    return [output, *(output.with_name(f"{name}{ending}") for ending in beside)]


def find_cases(
    settings: Settings, inputs: Path, outputs: Path, log: Callable[[str], object] | None = None
) -> list[Case]:
    """Return the cases in an input folder, in the order of their names.

    Args:
        settings: they say the layout, and the names of the channels' files.
        inputs: the folder.
        outputs: folder for the segmentations.
        log: takes what is said of files that are not used, and of names.

    Raises:
        InputError: if the folder is missing, or holds nothing of the kind.
    """
    if not inputs.is_dir():
        raise InputError(f"there is no input folder {inputs}")
    facts: list[Fact] = []
    cases = _FINDERS[settings.layout](settings, inputs, outputs, facts)
    if log:
        for line in summarise(facts):
            log(line)
    if not cases:
        raise InputError(f"{inputs} holds no images. The layout is {LAYOUTS[settings.layout]}{_expected(settings)}")
    return cases


def _expected(settings: Settings) -> str:
    names = settings.inputs or settings.channels
    return f" ({', '.join(names)})"


def _left_out(path: Path, kind: str, outputs: Path, case: str = "") -> Case:
    """Return a case that stands for an image that cannot be one, so that it is told and counted."""
    nowhere = outputs / f"{path.name}.left_out"  # not where another case has its segmentation
    return Case(case or path.name, (path,), nowhere, Fact(kind, str(path)).with_remedy())


def _is_image(path: Path, what: str, settings: Settings) -> bool:
    return what == "image" or (what == "other" and path.name.endswith(settings.ending))


def _find_files(settings: Settings, inputs: Path, outputs: Path, facts: list[Fact]) -> list[Case]:
    found: dict[str, dict[int, list[Path]]] = {}
    cases = []
    for path, what in list_folder(inputs):
        if what == "dead link" and image_ending(path.name):
            cases.append(_left_out(path, "dead link", outputs))
        elif not _is_image(path, what, settings):
            facts += filter(None, [aside(path, what, settings.ending)])
        elif match := re.fullmatch(r"(.+)_(\d{4})", without_ending(path)):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(path)
        else:
            cases.append(_left_out(path, "no channel", outputs))
    for files in found.values():
        first = next(iter(files.values()))[0]
        name = first.name[: -len(image_ending(first.name) or settings.ending) - len("_0000")]
        # Fewer files than channels may be right: some formats hold several channels.
        known = range(min(len(files), len(settings.channels)))
        missing = [f"{name}_{number:04}{settings.ending}" for number in known if number not in files]
        more = [paths[0].name for number, paths in files.items() if number >= len(settings.channels)]
        faults = [_one_of(paths) for paths in files.values() if len(paths) > 1]
        faults += [f"{', '.join(missing)} missing"] if missing else []
        faults += [f"more channels than the model's {len(settings.channels)}: {', '.join(more)}"] if more else []
        images = tuple(paths[0] for _, paths in sorted(files.items()))
        cases.append(Case(name, images, outputs / f"{name}{settings.ending}", next(iter(faults), "")))
    facts += twins({case.name: case.images[0] for case in cases})
    return sorted(cases, key=lambda case: case.name)


def _one_of(paths: Sequence[Path]) -> str:
    names = " and ".join(path.name for path in paths)
    return f"{names} are files of one image; which one is meant cannot be known; {KINDS['second file'].remedy}"


def _find_case_folders(settings: Settings, inputs: Path, outputs: Path, facts: list[Fact]) -> list[Case]:
    cases = []
    for folder, what in list_folder(inputs):
        if what == "folder":
            cases.append(_find_case_folder(folder, settings, outputs, facts))
        elif _is_image(folder, what, settings):
            cases.append(_left_out(folder, "loose", outputs))
        else:
            facts += filter(None, [aside(folder, what, settings.ending)])
    return cases


def _find_case_folder(folder: Path, settings: Settings, outputs: Path, facts: list[Fact]) -> Case:
    faults: list[str] = []
    images: list[Path] = []
    inside = list(list_folder(folder))
    there = [path for path, what in inside if _is_image(path, what, settings)]
    for suffix in settings.inputs:
        pattern = rf"(.*[-_])?{re.escape(suffix)}"
        fitting = [path for path in there if re.fullmatch(pattern, without_ending(path))]
        if len(fitting) == 1:
            images += fitting
        else:
            found = f"{len(fitting)} files" if fitting else "no file"
            faults.append(f"{folder} has {found} ...-{suffix}{settings.ending}")
    facts += [Fact("unused", str(path), "the model takes no such image") for path in there if path not in images]
    facts += filter(None, [aside(path, what) for path, what in inside if path not in there])
    output = outputs / f"{folder.name}{settings.ending}"
    return Case(folder.name, tuple(images), output, "; ".join(faults))


def _find_sockets(settings: Settings, inputs: Path, outputs: Path, facts: list[Fact]) -> list[Case]:
    folders = _socket_folders(settings.inputs, inputs)
    images = [_images_in(folder, facts) for folder in folders]
    target = outputs / "images" / settings.output
    if (inputs / "images").is_dir():
        others = [path for path in sorted((inputs / "images").iterdir()) if path not in folders]
        facts += [Fact("unused", str(path), "the model takes no such input") for path in others]
    if not any(images):
        return []
    if all(len(files) == 1 for files in images):
        # One file each: they belong together, whatever they are called.
        name = _stem(images[0][0])
        return [Case(name, tuple(files[0] for files in images), target / f"{name}.mha")]
    by_name = [{name: list(paths) for name, paths in groupby(files, _stem)} for files in images]
    cases = []
    for name in sorted(set().union(*by_name)):
        missing = [str(folder) for folder, files in zip(folders, by_name, strict=True) if name not in files]
        faults = [_one_of(files[name]) for files in by_name if len(files.get(name, ())) > 1]
        faults += [f"{name} is missing in {', '.join(missing)}"] if missing else []
        files = tuple(files[name][0] for files in by_name if name in files)
        cases.append(Case(name, files, target / f"{name}.mha", next(iter(faults), "")))
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


def _images_in(folder: Path, facts: list[Fact]) -> list[Path]:
    """Return the images of a socket, by their names without ending; what else there is becomes a fact."""
    inside = list(list_folder(folder))
    images = [path for path, what in inside if what == "image" or (what == "dead link" and image_ending(path.name))]
    facts += filter(None, [aside(path, what) for path, what in inside if path not in images])
    return sorted(images, key=_stem)


def _stem(path: Path) -> str:
    return path.name.removesuffix(image_ending(path.name))


_FINDERS: dict[str, Callable[[Settings, Path, Path, list[Fact]], list[Case]]] = {
    "files": _find_files,
    "sockets": _find_sockets,
    "case folders": _find_case_folders,
}
