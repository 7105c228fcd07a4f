"""Which files of a folder are used, and why the others are not. Loads nothing heavy."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_plugins.images.facts import Fact

ENDINGS = (
    *(".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".tif", ".tiff", ".png", ".bmp"),
    *(".jpg", ".jpeg", ".dcm", ".hdr", ".img"),
)
"""Endings of images, whether nnU-Net reads them or not."""
_LEFTOVERS = ("thumbs.db", "desktop.ini", "__macosx")
# What nnU-Net puts beside images and segmentations, and the second files of formats.
_COMPANIONS = re.compile(
    r"(dataset|plans|summary|predict_from_raw_data_args|postprocessing|inputs|nnunet_plugins_preparation)\.json|"
    r".+\.(npz|pkl|z?raw(\.gz)?)"
)
_MORE = 3


@dataclass
class Found:
    """The files of a folder.

    Attributes:
        files: those with the ending, by their name without it, accents composed.
        facts: about the others, and about names.
        ending: of the files.
    """

    files: dict[str, Path] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    ending: str = ""

    def by_written_name(self) -> dict[str, Path]:
        """Return the files by their names with the accents as they are written, which is how nnU-Net names cases."""
        names = {path.name.removesuffix(self.ending): path for path in self.files.values()}
        return dict(sorted(names.items()))


def is_leftover(path: Path) -> bool:
    """Tell whether a name is one that operating systems and editors leave behind."""
    return path.name.startswith(".") or path.name.lower() in _LEFTOVERS or path.name.endswith("~")


def composed(name: str) -> str:
    """Return a name with its accents composed, for comparisons: file systems write them in several ways."""
    return unicodedata.normalize("NFC", name)


def image_ending(name: str) -> str:
    """Return the ending of an image's name as it stands there, whatever its capital letters; nothing if it is none."""
    return next((name[-len(ending) :] for ending in ENDINGS if name.lower().endswith(ending)), "")


def without_ending(path: Path) -> str:
    """Return the name of an image without its ending, accents composed."""
    ending = image_ending(path.name)
    return composed(path.name.removesuffix(ending)) if ending else composed(path.stem)


def list_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield everything in a folder by name, with what it is.

    That is "leftover", "dead link", "folder", "image", "companion" (the second file of an image), or "other".
    """
    for path in sorted(folder.iterdir()):
        if is_leftover(path):
            yield path, "leftover"
        elif path.is_symlink() and not path.exists():
            yield path, "dead link"
        elif path.is_dir():
            yield path, "folder"
        elif path.suffix.lower() == ".img" and path.with_suffix(".hdr").exists():
            yield path, "companion"
        else:
            yield path, "image" if image_ending(path.name) else "other"


def aside(path: Path, what: str, ending: str = "") -> Fact | None:
    """Return the fact about something in a folder that is no image; None for what belongs beside images."""
    if what == "leftover":
        like_image = path.name.startswith(".") and bool(ending) and path.name.endswith(ending)
        return Fact("leftover like an image" if like_image else "leftover", str(path))
    if what == "dead link" and (image_ending(path.name) or (ending and path.name.endswith(ending))):
        return Fact("dead link", str(path), case=without_ending(path))
    if what in ("folder", "dead link"):
        return Fact("unused", str(path), f"a {what}")
    of_tif = ending.startswith(".tif") and path.suffix == ".json"  # where nnU-Net has its spacing
    return None if what == "companion" or of_tif or _COMPANIONS.fullmatch(path.name) else Fact("unused", str(path))


def find_files(folder: Path, ending: str) -> Found:
    """Return the files of a folder that have an ending, with facts about all that is not used.

    Args:
        folder: it exists.
        ending: of the files, as dataset.json says it.
    """
    found = Found(ending=ending)
    strange: list[Path] = []
    taken: dict[str, list[Path]] = {}
    for path, what in list_folder(folder):
        if what in ("image", "other") and path.name.endswith(ending):
            taken.setdefault(composed(path.name.removesuffix(ending)), []).append(path)
        elif what == "image":
            strange.append(path)
        elif fact := aside(path, what, ending):
            found.facts.append(fact)
    for name, paths in taken.items():
        if len(paths) == 1:
            found.files[name] = paths[0]
        else:
            found.facts += [Fact("same letters", str(path), case=name) for path in paths]
    for path in strange:
        name = without_ending(path)
        if name in taken:
            found.facts.append(Fact("second file", str(path), f"{taken[name][0].name} is used", name))
        else:
            letters = path.name.lower().endswith(ending.lower())
            found.facts.append(Fact("letter case" if letters else "other format", str(path), case=name))
    found.facts += twins(found.files)
    return found


def twins(files: dict[str, Path]) -> list[Fact]:
    """Return facts about names that differ only in capital letters."""
    seen: dict[str, str] = {}
    facts = []
    for name, path in files.items():
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            facts.append(Fact("names in other case", str(path), files[other].name, name))
    return facts


def none_fits(folder: Path, ending: str, facts: list[Fact]) -> Fact:
    """Return the fact that no file of a folder has the ending, with what is there instead."""
    others = [fact.file for fact in facts if fact.kind in ("letter case", "other format")]
    if not others:
        return Fact("nothing fits", str(folder), f"no file ends in {ending}")
    endings = sorted({image_ending(file) for file in others})
    number = f"{len(others)} file{'s' * (len(others) > 1)}"
    return Fact("nothing fits", str(folder), f"{number}, none ends in {ending} but in {', '.join(endings[:_MORE])}")
