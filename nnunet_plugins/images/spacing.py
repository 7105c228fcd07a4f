"""Where the spacing of a file stands that does not hold it: a .tif, for nnU-Net, has it in a JSON file beside it.

nnU-Net does not copy that file along with a segmentation, so it is looked for wherever it may have been left.
"""

import os
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_data, read_json

Spacing = tuple[float, ...]


def read_spacing_file(file: Path) -> Spacing:
    """Return the spacing that a JSON file beside a .tif holds, mm, `(z, y, x)`.

    Raises:
        InputError: if it holds none that is possible.
    """
    content = read_json(file, dict)
    spacing = content.get("spacing")
    if spacing is None:
        others = f"; it has {', '.join(map(repr, content))}" if content else ""
        raise InputError(f"{file.name} has no 'spacing'{others}")
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(map(_is_length, spacing)):
        raise InputError(f"{file.name}: 'spacing' has to be three lengths in mm, not {spacing!r}")
    return tuple(map(float, spacing))


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value > 0


def spacing_file(file: Path, *, is_image: bool) -> Path:
    """Return where nnU-Net looks for the spacing of a .tif: without the channel for an image."""
    stem = file.name.removesuffix(file.suffix)
    return file.with_name(f"{stem[:-5] if is_image else stem}.json")


def spacing_elsewhere(truth: Path) -> Spacing | None:
    """Return the spacing of a true segmentation that lies in nnU-Net's `gt_segmentations`, or beside its raw images.

    The raw dataset knows it, and after preprocessing the properties of the case.

    Args:
        truth: file of the segmentation; the spacing is not beside it.

    Returns:
        mm, `(z, y, x)`; None if nobody knows it.
    """
    case, folder = truth.name.removesuffix(truth.suffix), truth.parent
    for file in _places(folder, case):
        if file.is_file():
            try:
                return read_spacing_file(file)
            except InputError:
                continue
    if folder.name == "gt_segmentations":
        for file in sorted(folder.parent.glob(f"*/{case}.pkl")):
            spacing = _preprocessed_spacing(file)
            # 1 mm each is what nnU-Net writes if it does not know.
            if spacing and any(length != 1 for length in spacing):
                return spacing
    return None


def _places(folder: Path, case: str) -> Iterator[Path]:
    if folder.name.startswith("labels"):
        yield folder.with_name(folder.name.replace("labels", "images", 1)) / f"{case}.json"
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's own spelling
    if raw and folder.name == "gt_segmentations":
        for part in ("labelsTr", "imagesTr"):
            yield Path(raw, folder.parent.name, part, f"{case}.json")


def _preprocessed_spacing(file: Path) -> Spacing | None:
    try:
        spacing = read_data(file)["spacing"]
        lengths = tuple(float(length) for length in spacing)
    except Exception:  # whatever is in it
        return None
    return lengths if len(lengths) == 3 and all(map(_is_length, lengths)) else None
