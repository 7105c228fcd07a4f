"""Objects of a label, such as lesions: how many are found, and how well.

Implementations differ in every one of these, so:
- An object is a connected component of a mask; voxels that share a face, an edge or a corner are connected (26
  neighbours, 8 in 2D). Two lesions that touch are one object, in the truth as in the prediction.
- No object is too small to count.
- A true and a predicted object match if their IoU is above 0.5, in numbers of voxels. Then neither can match another
  one (Kirillov et al. 2019, arXiv:1801.00868, section 4.1), so there are no ties, and no order in which to match. A
  lesion that is predicted in two parts matches the one that has more than half of both, if any does; two that are
  predicted as one match where one of them is the most of it.
- TP are the pairs, FP the predicted objects without one, FN the true ones.
- F1 = 2 TP / (2 TP + FP + FN), which panoptic quality calls RQ (recognition quality); SQ (segmentation quality) is the
  mean IoU of the pairs; PQ = SQ x F1.
- Dice per object: the mean over the true objects of the Dice of each with all predicted objects, taken together, that
  share a voxel with it; 0 for those that none does. Predicted objects that share none with any do not count here.
- No object in the truth: no Dice per object. None in either: no F1 and no PQ; in one of them only: both 0. No pair: no
  SQ.
- Voxels that do not count (an ignore label) belong to no object; what they cut in two is two objects.

Of several cases the objects count together, as Kirillov et al. count the segments of all images: F1 of the sums of TP,
FP and FN, SQ over all pairs, Dice over all true objects. A mean over cases would give the one lesion of a case the
weight of fifty of another, and have no value where a case has none.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_plugins.metrics.masks import Mask, bounding_box

COUNTS = ("objects_TP", "objects_FP", "objects_FN")
QUALITIES = ("objects_F1", "objects_SQ", "objects_PQ", "objects_Dice")
OBJECT_COLUMNS = (*COUNTS, *QUALITIES)
"""Columns of tables of metrics with labels that consist of objects; without a value for the other labels."""


@dataclass(frozen=True)
class Objects:
    """What `compare_objects` finds; sums, so that those of several images can be added.

    Attributes:
        matched: pairs of a true and a predicted object (TP).
        extra: predicted objects without a true one (FP).
        missed: true objects without a predicted one (FN).
        iou: sum over the pairs.
        dice: sum over the true objects.
    """

    matched: int
    extra: int
    missed: int
    iou: float
    dice: float

    def row(self) -> dict[str, float]:
        """Return the columns `OBJECT_COLUMNS`; nan for what does not exist."""
        counts = self.matched, self.extra, self.missed
        found = _qualities(*counts, self.iou, self.dice)
        return {**dict(zip(COUNTS, counts, strict=True)), **{name: float(value) for name, value in found.items()}}


def compare_objects(prediction: Mask, truth: Mask, *, counts: Mask | None = None) -> Objects:
    """Compare the objects of two masks of one image.

    Args:
        prediction: 2D or 3D.
        truth: of the same shape.
        counts: the voxels that count; all, if None.

    Raises:
        ValueError: if the shapes differ, or are neither 2D nor 3D.
    """
    shapes = {prediction.shape, truth.shape, *([] if counts is None else [counts.shape])}
    if len(shapes) > 1 or prediction.ndim not in (2, 3):
        raise ValueError(f"masks must be 2D or 3D and of one shape, got shapes {sorted(shapes)}")
    box = bounding_box(prediction | truth)
    masks = [mask[box] if counts is None else mask[box] & counts[box] for mask in (prediction, truth)]
    if not masks[0].size:
        return Objects(0, 0, 0, 0.0, 0.0)
    # SciPy's and not cc3d's, which is faster and ends in an error where a box is one line of voxels.
    (ours, found), (theirs, there) = (ndimage.label(mask, np.ones([3] * mask.ndim)) for mask in masks)
    sizes, true_sizes = np.bincount(ours.ravel()), np.bincount(theirs.ravel())
    both = masks[0] & masks[1]
    # Pairs that share a voxel, as one number each: two columns would be sorted as slowly as texts.
    pairs, shared = np.unique(theirs[both].astype(np.int64) * (found + 1) + ours[both], return_counts=True)
    of_truth, of_prediction = np.divmod(pairs, found + 1)
    joint = true_sizes[of_truth] + sizes[of_prediction] - shared
    is_match = 2 * shared > joint
    overlapping = np.bincount(of_truth, sizes[of_prediction], there + 1)[1:]
    inside = np.bincount(of_truth, shared, there + 1)[1:]
    dice = 2 * inside / (true_sizes[1:] + overlapping)
    matched = int(is_match.sum())
    return Objects(
        matched, found - matched, there - matched, float((shared / joint)[is_match].sum()), float(dice.sum())
    )


def pool(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return `OBJECT_COLUMNS` over all rows of each group, whose objects count together.

    Args:
        table: with `OBJECT_COLUMNS`; a group has no values if one of its rows has no counts.
        by: columns of the groups, which keep their order.
    """
    values = table[list(OBJECT_COLUMNS)].astype(float)
    pairs, true = values["objects_TP"], values["objects_TP"] + values["objects_FN"]
    # What does not exist, such as the SQ without a pair, adds nothing.
    sums = values[list(COUNTS)].assign(
        iou=(values["objects_SQ"] * pairs).where(pairs > 0, 0.0),
        dice=(values["objects_Dice"] * true).where(true > 0, 0.0),
    )
    groups = sums.groupby([table[name] for name in by], sort=False)
    known = groups["objects_TP"].count() == groups.size()
    sums = groups.sum().where(known)
    found = _qualities(*(sums[name].to_numpy() for name in (*COUNTS, "iou", "dice")))
    return sums[list(COUNTS)].assign(**found)


def _qualities(matched: Any, extra: Any, missed: Any, iou: Any, dice: Any) -> dict[str, NDArray[Any]]:
    """Return the columns `QUALITIES` of sums, numbers or arrays; nan where there is nothing to divide by."""
    true_and_found = 2 * matched + extra + missed
    values = (
        _divide(2 * matched, true_and_found),
        _divide(iou, matched),
        _divide(2 * iou, true_and_found),
        _divide(dice, matched + missed),
    )
    return dict(zip(QUALITIES, values, strict=True))


def _divide(over: Any, under: Any) -> NDArray[Any]:
    return np.divide(over, under, out=np.full(np.shape(under), np.nan), where=np.asarray(under) > 0)


def whole_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its counts of objects, if it has any, as whole numbers, also beside missing ones."""
    return table.astype({name: "Int64" for name in COUNTS if name in table})
