"""Agreement of two masks: overlap, volume, and surface distances, which are MONAI's.

Implementations of these metrics disagree (Podobnik and Vrtovec 2024, arXiv:2410.02630), so:
- The surface is the voxels of a mask that have a face neighbour outside it; the outside of the image is outside.
- Distances are Euclidean, in mm, from the centre of each surface voxel to the nearest one of the other surface.
- ASSD (average symmetric surface distance; some papers' MSD): the mean over all voxels of both surfaces together.
- HD95: the larger one of the two directions' 95th percentiles.
- NSD (normalised surface Dice): the share of the voxels of both surfaces that lie within the tolerance of the other.
- Both masks empty: every metric but the volume error is nan. One empty: Dice and NSD 0, the distances inf.
- Voxels that do not count (an ignore label) belong to neither mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = "surface distances need MONAI: pip install 'monai>=1.6.1', which is the extra nnunet-plugins[benchmark]"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """What `compare_masks` finds.

    Attributes:
        dice: as nnU-Net computes it.
        assd: average symmetric surface distance in mm.
        hd95: 95th percentile of the Hausdorff distance in mm.
        nsd: normalised surface Dice at the tolerance.
        volume_prediction: in ml.
        volume_truth: in ml.
    """

    dice: float
    assd: float
    hd95: float
    nsd: float
    volume_prediction: float
    volume_truth: float


def compare_masks(
    prediction: Mask, truth: Mask, spacing: Sequence[float], *, tolerance: float, counts: Mask | None = None
) -> Agreement:
    """Compare two masks of one image.

    Args:
        prediction: 2D or 3D; axes with a single voxel are left out, so that a slice has an outline, not two faces. They
            count as 1 mm in the volumes, because nnU-Net gives 2D images a spacing of their own making there.
        truth: of the same shape.
        spacing: mm per voxel, in the order of the arrays' axes (SimpleITK's `GetSpacing` has the opposite order).
        tolerance: of the surface Dice, in mm.
        counts: the voxels that count; all, if None.

    Raises:
        ValueError: if the shapes differ, or the spacing or the tolerance is impossible.
        ModuleNotFoundError: if MONAI is not installed.
    """
    shapes = {prediction.shape, truth.shape, *([] if counts is None else [counts.shape])}
    if len(shapes) > 1 or len(spacing) != prediction.ndim:
        raise ValueError(f"masks and spacing must fit each other, got shapes {sorted(shapes)} and spacing {spacing}")
    if not all(0 < s < np.inf for s in spacing) or not 0 <= tolerance < np.inf:
        raise ValueError(
            f"spacing and tolerance are lengths in mm, got spacing {tuple(spacing)}, tolerance {tolerance}"
        )
    axes = [axis for axis, n in enumerate(truth.shape) if n > 1]
    if len(axes) < 2:
        axes = [truth.ndim - 2, truth.ndim - 1]
    spacing = [spacing[axis] for axis in axes]
    voxel = float(np.prod(spacing)) / 1000
    prediction, truth, *rest = (
        mask.reshape([mask.shape[axis] for axis in axes]) for mask in (prediction, truth, counts) if mask is not None
    )
    box = bounding_box(prediction | truth)
    prediction, truth = prediction[box], truth[box]
    for mask in rest:
        prediction, truth = prediction & mask[box], truth & mask[box]
    sizes = int(prediction.sum()), int(truth.sum())
    volumes = sizes[0] * voxel, sizes[1] * voxel
    if sizes == (0, 0):
        return Agreement(np.nan, np.nan, np.nan, np.nan, *volumes)
    if 0 in sizes:
        return Agreement(0.0, np.inf, np.inf, 0.0, *volumes)
    dice = 2 * int((prediction & truth).sum()) / sum(sizes)
    there, back = _surface_distances(prediction, truth, spacing)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    # A distance may lie a rounding error beyond a tolerance that it equals.
    within = both <= tolerance * (1 + 1e-6)
    return Agreement(dice, float(both.mean()), float(hd95), float(within.mean()), *volumes)


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box that holds the mask."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return tuple(box)


def _surface_distances(prediction: Mask, truth: Mask, spacing: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the distances of one surface's voxels from the other surface, and the other way round."""
    try:
        from monai.metrics import get_mask_edges, get_surface_distance
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    ours, theirs = get_mask_edges(prediction, truth, crop=False)  # they are cropped already
    there = get_surface_distance(ours, theirs, spacing=spacing)
    back = get_surface_distance(theirs, ours, spacing=spacing)
    return np.asarray(there, np.float64), np.asarray(back, np.float64)
