"""Lesions made by hand, for the tests of objects: pairs of masks, with what is to be found of them."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
NAN = np.nan


def mask(shape: tuple[int, ...], *boxes: str) -> Mask:
    """A mask that holds boxes, each written as slices: "0:2, 0:2, 3:6"."""
    made = np.zeros(shape, bool)
    for box in boxes:
        made[tuple(slice(*map(int, part.split(":"))) for part in box.split(","))] = True
    return made


SHAPE = (4, 5, 14)
_SMALL, _FAR = "0:1, 2:3, 2:3", "3:4, 4:5, 13:14"

# Prediction, truth; TP, FP, FN; F1 (RQ), SQ, PQ, Dice per object.
BY_HAND: dict[str, tuple[list[str], list[str], tuple[float, ...]]] = {
    # By a corner alone: 16 voxels, of which the predicted 8 are not more than half.
    "touching": (["0:2, 0:2, 0:2", "3:4, 3:4, 3:4"], ["0:2, 0:2, 0:2", "2:4, 2:4, 2:4"], (0, 2, 1, 0, NAN, 0, 18 / 25)),
    # 6 and 3 of 10 voxels.
    "split": (["0:1, 0:1, 0:6", "0:1, 0:1, 7:10"], ["0:1, 0:1, 0:10"], (1, 1, 0, 2 / 3, 0.6, 0.4, 18 / 19)),
    # 9 voxels that hold 6 and 2.
    "merged": (
        ["0:1, 0:1, 0:9"],
        ["0:1, 0:1, 0:6", "0:1, 0:1, 7:9"],
        (1, 0, 1, 2 / 3, 2 / 3, 4 / 9, (12 / 15 + 4 / 11) / 2),
    ),
    "one voxel": ([_SMALL, _FAR], [_SMALL], (1, 1, 0, 2 / 3, 1, 2 / 3, 1)),
    "none in the truth": ([_SMALL, _FAR], [], (0, 2, 0, 0, NAN, 0, NAN)),
    "none predicted": ([], [_SMALL, _FAR], (0, 0, 2, 0, NAN, 0, 0)),
    "none": ([], [], (0, 0, 0, NAN, NAN, NAN, NAN)),
    "an IoU of just 0.5": (["0:1, 0:1, 0:4"], ["0:1, 0:1, 0:8"], (0, 1, 1, 0, NAN, 0, 8 / 12)),
    "an IoU just above": (["0:1, 0:1, 0:5"], ["0:1, 0:1, 0:8"], (1, 0, 0, 1, 5 / 8, 5 / 8, 10 / 13)),
    "beside it": (["0:1, 0:1, 0:3"], ["0:1, 1:2, 0:3"], (0, 1, 1, 0, NAN, 0, 0)),
}


def by_hand(name: str) -> tuple[Mask, Mask, tuple[float, ...]]:
    """Prediction, truth, and what is to be found."""
    prediction, truth, expected = BY_HAND[name]
    return mask(SHAPE, *prediction), mask(SHAPE, *truth), expected


def balls(dimensions: int) -> tuple[Mask, Mask]:
    """Prediction and truth of many lesions of all sizes, some of which touch, are moved, missed or made up."""
    shape = (24, 40, 40)[3 - dimensions :]
    places = np.indices(shape)
    truth, prediction = np.zeros(shape, bool), np.zeros(shape, bool)
    for number in range(40):
        centre = np.array([number * 7 % 24, number * 11 % 40, number * 17 % 40])[3 - dimensions :]
        apart = (places - centre.reshape(-1, *[1] * dimensions)) ** 2
        truth |= (apart.sum(0) <= number % 5) & (number % 8 != 3)
        moved = (places - (centre + (number % 9 == 0)).reshape(-1, *[1] * dimensions)) ** 2
        prediction |= (moved.sum(0) <= number % 5 + (number % 6 == 1)) & (number % 7 != 2)
    return prediction, truth
