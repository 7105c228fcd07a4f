"""Images and segmentations for people to look at."""

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_plugins.errors import InputError
from nnunet_plugins.images.facts import problems
from nnunet_plugins.images.finding import image_ending
from nnunet_plugins.images.reading import choose_reader, quiet, read_header, read_image


def read_picture(file: Path) -> tuple[NDArray[Any], list[float]]:
    """Return an image or a segmentation for people to look at, as an array `(z, y, x)`, and its spacing.

    Raises:
        InputError: if it cannot be read.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing")
    reader = choose_reader({"file_ending": image_ending(file.name).lower()}, [file])()
    found = read_image(file, reader)
    wrong = problems(found.facts, "report")
    if [fact.kind for fact in wrong] == ["vector"]:  # as colours are: the first value of each voxel shows enough
        return _first_values(file)
    if found.array is None or found.grid is None:
        raise InputError(str(wrong[0]))
    return found.array[0], list(found.grid.spacing)


def gray(image: NDArray[Any]) -> NDArray[Any]:
    """Return an image from 0 to 1, without its most extreme values."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:
        low, high = values.min(), values.max()
    return np.clip((values - low) / max(float(high - low), 1e-9), 0, 1).astype(np.float32)


def _first_values(file: Path) -> tuple[NDArray[Any], list[float]]:
    with quiet():
        image = sitk.VectorIndexSelectionCast(sitk.ReadImage(str(file)), 0)
    header = read_header(file)
    assert header is not None
    return sitk.GetArrayFromImage(image).reshape(header.grid.shape), list(header.grid.spacing)
