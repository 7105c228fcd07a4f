"""What was done to the intensities of a dataset's images before nnU-Net saw them, and to which images it was done.

`nnunet-plugins prepare-images` writes it into the dataset.json of a twin, which nnU-Net copies into models and beside
predictions, and beside images that it has prepared to be predicted. Loads nothing heavy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault, read_json

PREPARED = "nnunet_plugins_preparation"
"""Key, in the dataset.json of a twin with prepared images, of how they were prepared."""

SCHEMES = {
    "clahe": "contrast-limited adaptive histogram equalisation",
    "equalize": "histogram equalisation",
    "percentile": "clipping to the image's own percentiles",
    "iqr": "median and interquartile range, with outliers clipped",
    "per-slice": "mean 0 and standard deviation 1 in each slice",
}
"""What can be done, in words."""

BESIDE = f"{PREPARED}.json"
"""The file beside images that were prepared to be predicted."""

CLIP_LIMIT = 0.01
"""Of CLAHE, scikit-image's default."""

_SHAPE = {
    "dataset": str,
    "scheme": str,
    "channels": [int],
    "percentiles": (list, type(None)),
    "tile": (list, type(None)),
    "clip_limit": (int, float, type(None)),
    "scikit_image": str,
}


@dataclass(frozen=True)
class Recipe:
    """How images are prepared.

    Attributes:
        dataset: full name of the dataset whose images are as they were.
        scheme: one of `SCHEMES`.
        channels: numbers of those that it is done to; the others stay as they are.
        percentiles: of the image, to which it is clipped first; None for no clipping.
        tile: of CLAHE, voxels `(z, y, x)`; None for an eighth of the image along each axis.
        clip_limit: of CLAHE, as scikit-image has it.
        scikit_image: the version that has done it.
        all_channels: how many the images have, where that is known; it is no part of what is done.
    """

    dataset: str
    scheme: str
    channels: tuple[int, ...]
    percentiles: tuple[float, float] | None = None
    tile: tuple[int, ...] | None = None
    clip_limit: float | None = None
    scikit_image: str = ""
    all_channels: int | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return it as what `read_recipe` reads."""
        values = {name: getattr(self, name) for name in _SHAPE}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def steps(self) -> str:
        """What is done to a channel, in words, without what is the default."""
        what = self.scheme
        if self.percentiles:
            low, high = self.percentiles
            first = f"clipped to the percentiles {low:g} and {high:g}"
            what = first if self.scheme == "percentile" else f"{first}, then {self.scheme}"
        if self.tile:
            what += f", tile {' x '.join(map(str, self.tile))}"
        if self.clip_limit not in (None, CLIP_LIMIT):
            what += f", clip limit {self.clip_limit:g}"
        return what

    def __str__(self) -> str:
        """Return the steps, and the channels if they are not all, as far as it is known how many there are."""
        if self.channels == tuple(range(self.all_channels or len(self.channels))):
            return self.steps
        several = "s" * (len(self.channels) > 1)
        return f"{self.steps}, channel{several} {', '.join(map(str, self.channels))} alone"


def read_recipe(description: Mapping[str, Any], file: Path | str = "dataset.json") -> Recipe | None:
    """Return how the images of a dataset were prepared; None if they are as they are.

    Args:
        description: what its dataset.json says.
        file: where it was read, for messages.

    Raises:
        InputError: if that cannot be used.
    """
    if PREPARED not in description:
        return None
    found = description[PREPARED]
    if fault := find_fault(found, _SHAPE, repr(PREPARED)):
        raise InputError(f"{file}: {fault}; make the twin anew with nnunet-plugins prepare-images")
    if found["scheme"] not in SCHEMES:
        raise InputError(f"{file}: {found['scheme']!r} in {PREPARED!r} is none of {', '.join(SCHEMES)}")
    for name, shape, number in (("percentiles", [(int, float)], 2), ("tile", [int], 3)):
        if (value := found[name]) is not None and (find_fault(value, shape) or len(value) != number):
            raise InputError(f"{file}: {name!r} in {PREPARED!r} is {value}, and not {number} numbers")
    known: dict[str, Any] = {name: found[name] for name in _SHAPE}
    known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    names = description.get("channel_names") or description.get("modality") or ()
    return Recipe(**known, all_channels=len(names) or None)


def prepared_with(folder: Path) -> Recipe | None:
    """Return how the images in a folder were prepared, as far as the folder tells; None if nothing tells that.

    Args:
        folder: one that `prepare-images` has written, or imagesTr or imagesTs of a twin.

    Raises:
        InputError: if that cannot be used.
    """
    folder = folder.resolve()
    places = [folder / BESIDE, *([folder.parent / "dataset.json"] if folder.name in ("imagesTr", "imagesTs") else [])]
    for file in places:
        if file.is_file():
            return read_recipe(read_json(file, dict), file)
    return None


def _not_listed(folder: Path) -> list[str]:
    """Return the images in a folder that the file beside them does not name; none where there is no such file."""
    listed = read_json(folder / BESIDE, dict).get("files") if (folder / BESIDE).is_file() else None
    if not isinstance(listed, dict):
        return []
    names = [path.name for path in folder.iterdir() if re.search(r"_\d{4}\.", path.name) and path.name[0] != "."]
    return sorted(name for name in names if name not in listed)


def preparing_command(images: Path | str, like: Path | str) -> str:
    """Return the command that prepares images.

    Args:
        images: folder of those as they are.
        like: number or name of the twin, or a dataset.json.
    """
    return f"nnunet-plugins prepare-images -i {quote(str(images))} -o PREPARED --like {quote(str(like))}"


def find_difference(description: Mapping[str, Any], file: Path, images: Path) -> tuple[str, str] | None:
    """Return how images differ from those that a network was trained on, and what to do; None if they do not.

    Args:
        description: what the dataset.json of the network says.
        file: where it was read.
        images: their folder, as far as it tells.

    Raises:
        InputError: if one of the two recipes cannot be used.
    """
    wanted, found = read_recipe(description, file), prepared_with(images)
    if wanted == found:
        strangers = _not_listed(images) if found else []
        if not strangers:
            return None
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        return (
            f"{images} holds {strangers[0]}{more}, which {BESIDE} there does not list: nothing tells how it was "
            "prepared",
            f"prepare all images into a new folder: {preparing_command('IMAGES', file)}",
        )
    if wanted is None:
        what = f"prepared images ({found}), and the network was trained on images as they are"
        return f"{images} holds {what}", "give the images as they were"
    what, remedy = "images that were not prepared", f"prepare the images: {preparing_command(images, file)}"
    if found:
        differs = [name for name in _SHAPE if getattr(wanted, name) != getattr(found, name)]
        said = ", ".join(f"{name} {getattr(found, name)} and not {getattr(wanted, name)}" for name in differs)
        what = f"images that were prepared in another way ({found}: {said})"
        remedy = f"prepare the images as they were: {preparing_command('IMAGES', file)}"
    return (
        f"{images} holds {what}, as far as the folder tells, and the network was trained on prepared ones ({wanted})",
        remedy,
    )


def require_prepared(description: Mapping[str, Any], file: Path, images: Path) -> None:
    """Check that images are prepared as those were that a network was trained on.

    Args:
        description: what the dataset.json of the network says.
        file: where it was read.
        images: their folder.

    Raises:
        InputError: if they are not, or nothing tells so.
    """
    if difference := find_difference(description, file, images):
        raise InputError("; ".join(difference))
