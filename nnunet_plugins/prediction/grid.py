"""The voxels of a label map that has another spacing than its image, and where they lie in a network's patch.

    voxel of the label map -> of the image -> of the box that is not zero -> resampled -> in the patch

An axis of n voxels has the extent n times the spacing, from half a voxel before the first centre on. A label map keeps
the extent, whatever its size; nnU-Net's resampling keeps that of the box.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.images.reading import Header

_MOST = 2**62  # voxels along an axis; where a quotient of floats is infinite


@dataclass(frozen=True)
class Planes:
    """Planes of a label map along an axis, those in the box that nnU-Net does not crop away.

    Attributes:
        inside: which they are.
        positions: of them, in voxels of the patch from the centre of the first one.
    """

    inside: slice
    positions: NDArray[Any]


def output_size(shape: Sequence[int], factor: float, kept: Collection[int] = ()) -> tuple[int, ...]:
    """Return how many voxels a label map has along each axis.

    Args:
        shape: voxels of the image.
        factor: spacing of the label map, as a part of the image's.
        kept: axes along which there are as many as in the image.
    """
    return tuple(n if axis in kept else max(1, round(min(n / factor, _MOST))) for axis, n in enumerate(shape))


def output_geometry(image: Header, size: Sequence[int]) -> Header:
    """Return the geometry of a label map with the extent of its image.

    Args:
        image: header of the image.
        size: voxels of the label map along each axis of the header, `(x, y, z)`.
    """
    ratios = np.asarray(image.size) / np.asarray(size)
    # From the first voxel of the image to that of the label map: half of the difference of their lengths.
    shift = np.asarray(image.spacing) * (ratios - 1) / 2
    direction = np.reshape(image.direction, (len(size), len(size)))
    return replace(
        image,
        size=tuple(size),
        spacing=tuple((np.asarray(image.spacing) * ratios).tolist()),
        origin=tuple((np.asarray(image.origin) + direction @ shift).tolist()),
    )


def planes_in_patch(size: int, voxels: int, box: Sequence[int], resampled: int, first: int) -> Planes:
    """Return where the planes of a label map along an axis lie in a patch.

    Args:
        size: planes of the label map.
        voxels: of the image.
        box: first voxel of the image that nnU-Net keeps, and the first one behind.
        resampled: voxels of the box after resampling.
        first: where in the patch the first one of these lies.
    """
    low, high = box
    positions = (np.arange(size) + 0.5) * (voxels / size) - 0.5
    inside = slice(*np.searchsorted(positions, (low - 0.5, high - 0.5)).tolist())
    return Planes(inside, (positions[inside] - low + 0.5) * (resampled / (high - low)) - 0.5 + first)


def blocks(shape: Sequence[int], most: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield the parts of a grid with three axes, of about so many voxels at the most; whole rows in any case."""
    rows = max(1, most // max(1, shape[2]))
    planes, rows = max(1, rows // max(1, shape[1])), min(rows, max(1, shape[1]))
    for plane in range(0, shape[0], planes):
        for row in range(0, shape[1], rows):
            yield slice(plane, plane + planes), slice(row, row + rows), slice(0, shape[2])
