"""Images with other intensities, in the same place: what nnU-Net's own normalisations, all of them affine, cannot do.

scikit-image does the work. Everything is done to the image as it is stored, whatever reader nnU-Net has for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from math import prod
from pathlib import Path

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray
from skimage.exposure import equalize_adapthist, equalize_hist, rescale_intensity

from nnunet_plugins.errors import InputError
from nnunet_plugins.images.facts import problems, summarise
from nnunet_plugins.images.reading import read_header, read_image
from nnunet_plugins.images.recipe import Recipe
from nnunet_plugins.images.writing import whole_image, write_array

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of files that hold numbers of 32 bits and where the voxels lie, all in one."""

LEAST_IN_TILE = 25
"""Voxels of a tile of CLAHE. The grey value that n voxels give to their median, half of the whole range, has a standard
error of 1 / (2 sqrt(n)) of that range: a tenth of it for 25, and half of it for one, which leaves two grey values."""

_FENCE = 1.5  # interquartile ranges beyond the quartiles; what is further out is an outlier (Tukey 1977)
_COLOURS = (3, 4)  # along the last axis of three, scikit-image takes them for those of a picture

_LARGEST = float(np.finfo(np.float32).max)

Image = NDArray[np.float32]


def scikit_image_version() -> str:
    """Return the installed version of what does the work."""
    return metadata.version("scikit-image")


def another_version(recipe: Recipe) -> str:
    """Return, in words, that another scikit-image is installed than the one that made the training images; else ''."""
    if scikit_image_version() == recipe.scikit_image:
        return ""
    return (
        f"the training images were prepared with scikit-image {recipe.scikit_image}, and here is "
        f"{scikit_image_version()}; if results differ: pip install scikit-image=={recipe.scikit_image}"
    )


def prepare(image: Image, recipe: Recipe) -> tuple[Image, str]:
    """Return an image with other intensities.

    Args:
        image: one channel, `(z, y, x)`.
        recipe: what to do.

    Returns:
        the image; why it was left as it is, if it was.
    """
    if image.min() == image.max():
        return image, "it is constant"
    if recipe.percentiles:
        clipped = _clip(image, *map(float, np.percentile(image, recipe.percentiles)))
        if clipped.min() == clipped.max():
            return image, f"it is constant between percentiles {recipe.percentiles[0]:g} and {recipe.percentiles[1]:g}"
        image = clipped
    return _SCHEMES[recipe.scheme](image, recipe)


def _clip(image: Image, low: float, high: float) -> Image:
    return np.clip(image, np.float32(low), np.float32(high))


def _tile(shape: Sequence[int], recipe: Recipe) -> list[int]:
    """Return the voxels of a tile along each axis; by default as scikit-image has them."""
    if recipe.tile:
        return [min(n, size) for n, size in zip(recipe.tile, shape, strict=True)]
    return [max(size // 8, 1) for size in shape]


def _too_few(shape: Sequence[int], recipe: Recipe) -> str:
    """Return, in words, that tiles of CLAHE have too few voxels; else ''."""
    tile = _tile(shape, recipe)
    if recipe.scheme != "clahe" or prod(tile) >= LEAST_IN_TILE:
        return ""
    axis = tile.index(min(tile))
    return (
        f"has {shape[axis]} voxels along {'zyx'[axis]}, and tiles of {' x '.join(map(str, tile))}, whose histograms of "
        f"{prod(tile)} voxels are noise; CLAHE takes {LEAST_IN_TILE} or more: make the twin with a larger --tile, or "
        "with another --scheme"
    )


def _clahe(image: Image, recipe: Recipe) -> tuple[Image, str]:
    between = rescale_intensity(image, out_range=(0.0, 1.0))
    tile = _tile(image.shape, recipe)
    if image.shape[-1] in _COLOURS:  # with a further axis it is no picture
        return equalize_adapthist(between[None], (1, *tile), recipe.clip_limit)[0], ""
    return equalize_adapthist(between, tile, recipe.clip_limit), ""


def _equalize(image: Image, _: Recipe) -> tuple[Image, str]:
    # In single precision, a narrow range far from 0 has no 256 bins; with a further axis, it is no picture.
    return equalize_hist(image[None].astype(np.float64))[0], ""


def _only_clipped(image: Image, _: Recipe) -> tuple[Image, str]:
    return image, ""


def _iqr(image: Image, _: Recipe) -> tuple[Image, str]:
    first, median, third = map(float, np.percentile(image, (25, 50, 75)))
    width = third - first
    if width == 0:
        return image, "half of it has one intensity, so that its quartiles are equal"
    clipped = _clip(image, first - _FENCE * width, third + _FENCE * width)
    return (clipped - np.float32(median)) / np.float32(width), ""


def _per_slice(image: Image, _: Recipe) -> tuple[Image, str]:
    mean, spread = (statistic(axis=(1, 2), keepdims=True, dtype=np.float64) for statistic in (image.mean, image.std))
    return (image - mean) / np.where(spread > 0, spread, 1), ""


_SCHEMES: dict[str, Callable[[Image, Recipe], tuple[Image, str]]] = {
    "clahe": _clahe,
    "equalize": _equalize,
    "percentile": _only_clipped,
    "iqr": _iqr,
    "per-slice": _per_slice,
}


@dataclass
class Prepared:
    """What came of files to prepare.

    Attributes:
        wrong: what stops a case, in words.
        left: by file, why it was left as it is.
    """

    wrong: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def write_prepared(files: Sequence[Path], places: Sequence[Path], recipe: Recipe) -> Prepared:
    """Write channels of a case with other intensities, in single precision, where they lay before.

    Args:
        files: one channel each.
        places: where to write each of them, in one of `FORMATS`; a file is there completely or not at all.
        recipe: what to do.
    """
    done = Prepared()
    for file, place in zip(files, places, strict=True):
        found, header = read_image(file, SimpleITKIO()), read_header(file)
        wrong = [fact for fact in found.facts if fact in problems([fact], "doctor") + problems([fact], "inference")]
        if found.array is None or header is None or wrong:
            done.wrong += summarise(wrong) or [f"{file} cannot be read"]
            continue
        whole = np.asarray(found.array[0], dtype=np.float32)
        if float(whole.max()) - float(whole.min()) > _LARGEST:
            done.wrong.append(f"{file} has intensities further apart than numbers of 32 bits go; scale them")
            continue
        image, left = prepare(whole, recipe)
        if not left and (why := _too_few(whole.shape, recipe)):
            done.wrong.append(f"{file} {why}")
            continue
        if left:
            done.left[str(file)] = left
        with whole_image(place) as part:
            write_array(image.astype(np.float32, copy=False), part, header)
    return done


def require_format(ending: str, name: str) -> None:
    """Check that prepared images can be written as a dataset's are.

    Args:
        ending: of its files.
        name: of the dataset, for the message.

    Raises:
        InputError: if not.
    """
    if ending.lower() not in FORMATS:
        raise InputError(
            f"{name} has files {ending}, in which prepared images, numbers of 32 bits, do not lie where they lay; "
            f"convert them, for example to {FORMATS[0]} (possible are {', '.join(FORMATS)})"
        )
