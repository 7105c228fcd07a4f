"""nnU-Net's resampling, as a product with one matrix along each axis: the same numbers, sooner and in less memory.

    logits -> [of a slab of slices: labels whose logits are largest, or above 0] -> those in doubt again -> labels

nnU-Net resamples with skimage's `resize`, where its plans say no other: splines, for images of order 3 and for logits
of order 1, each of whose axes is linear by itself. What the matrices are, skimage and scipy say: they resample the unit
vectors. Around them stand the clamp to the range of the input, and `map_coordinates` along an axis that is resampled
apart from the others.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.transform import resize

AT_A_TIME = 2**20
"""Voxels in a slab: what is done to them one thing after the other should stay in the caches."""

_DOUBTFUL_AT_A_TIME = 2**16

_MOST_THREADS = 16
"""Each holds some copies of a slab."""

_ROUNDING = 2.0**-20
"""More than what three steps in single precision make of the largest number that takes part."""

_Single = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Taps:
    """The two neighbours that each voxel lies between, along one axis.

    Attributes:
        first: their numbers.
        last: likewise; the same as the first where that is all.
        weights: of both.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    weights: tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Axis:
    """Resampling along one axis.

    Attributes:
        matrix: `(new, old)`, in double precision; read only.
        taps: the same, if each voxel lies between two.
        apart: whether it comes after the others, in which each slice has been clamped to its own range.
    """

    matrix: NDArray[np.float64]
    taps: Taps | None = None
    apart: bool = False

    @property
    def changes_nothing(self) -> bool:
        """Whether all voxels stay as they are."""
        new, old = self.matrix.shape
        return new == old and bool((self.matrix == np.eye(old)).all())


@lru_cache(maxsize=32)
def _spline(old: int, new: int, order: int) -> NDArray[np.float64]:
    # The unit vectors' own axis, the second, stays as it is.
    unit = np.eye(old)
    matrix = unit if old == new else resize(unit, (new, old), order, mode="edge", anti_aliasing=False, clip=False)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=32)
def _apart(old: int, new: int, order: int) -> NDArray[np.float64]:
    places = _places(old, new)
    columns = [map_coordinates(unit, places[None], order=order, mode="nearest") for unit in np.eye(old)]
    matrix = np.eye(old) if old == new else np.stack(columns, axis=1)
    matrix.setflags(write=False)
    return matrix


def _places(old: int, new: int) -> NDArray[np.float64]:
    return np.asarray(old / new * (np.arange(new) + 0.5) - 0.5, np.float64)


def _linear(old: int, new: int) -> Taps:
    """Return what scipy adds up in splines of order 1, to the last bit. Beyond the ends voxels neighbour themselves."""
    places = _places(old, new)
    below = np.floor(places)
    first = below.astype(np.int64)
    weight = 1 - (places - below)
    return Taps(first.clip(0, old - 1), (first + 1).clip(0, old - 1), (weight, 1 - weight))


def _picked(matrix: NDArray[np.float64]) -> Taps:
    """Return the one voxel that each is, of a matrix of order 0."""
    one = matrix.argmax(axis=1)
    return Taps(one, one, (np.ones(len(one)), np.zeros(len(one))))


def _axis(old: int, new: int, order: int, *, apart: bool) -> Axis:
    matrix = (_apart if apart else _spline)(old, new, order)
    if old == new or order == 0:
        return Axis(matrix, _picked(matrix), apart)
    # What is linear along an axis apart comes after what is rounded along the others, to the last bit.
    return Axis(matrix, _linear(old, new) if order == 1 and not apart else None, apart)


def axes_between(
    old: Sequence[int],
    new: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> tuple[Axis, ...]:
    """Return how nnU-Net's `resample_data_or_seg_to_shape` resamples along each of three axes.

    Args:
        old: number of voxels along each.
        new: likewise, afterwards.
        spacing: of both in mm; it says alone which axis is resampled apart.
        new_spacing: likewise.
        order: of the splines.
        order_z: along the axis that is resampled apart.
        force_separate_z: nnU-Net's, as the plans have it.
        separate_z_anisotropy_threshold: likewise.
    """
    separate, axis = determine_do_sep_z_and_axis(
        force_separate_z, spacing, new_spacing, separate_z_anisotropy_threshold
    )
    aparts = [separate and axis == number for number in range(len(old))]
    return tuple(
        _axis(a, b, order_z if apart else order, apart=apart) for a, b, apart in zip(old, new, aparts, strict=True)
    )


def resample_image(image: NDArray[Any], axes: Sequence[Axis]) -> NDArray[Any]:
    """Return an image resampled as nnU-Net does it, in double precision.

    Args:
        image: `(channels, z, y, x)`.
        axes: how, along z, y, x.

    Returns:
        in the type of the image.
    """
    if all(axis.changes_nothing for axis in axes):
        return image
    found = np.empty((len(image), *(len(axis.matrix) for axis in axes)), image.dtype)
    for channel, place in zip(image, found, strict=True):
        place[...] = _resample(torch.from_numpy(channel.astype(np.float64)), axes).numpy()
    return found


def _resample(image: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    apart = [number for number, axis in enumerate(axes) if axis.apart]
    together = [number for number in range(len(axes)) if number not in apart]
    low, high = image.amin(together, keepdim=True), image.amax(together, keepdim=True)
    # What becomes smaller first, so that there is less left to do.
    for number in sorted(together, key=lambda number: np.divide(*axes[number].matrix.shape)):
        image = _along(image, axes[number], number)
    image = torch.clamp(image, low, high)
    for number in apart:
        image = _along(image, axes[number], number)
    return image


def _along(image: torch.Tensor, axis: Axis, number: int) -> torch.Tensor:
    if axis.changes_nothing:
        return image
    # A copy, for torch has no read-only tensors.
    return torch.movedim(torch.tensordot(torch.from_numpy(axis.matrix.copy()), image, ([1], [number])), 0, number)


def is_between_two(axes: Sequence[Axis]) -> bool:
    """Whether each voxel lies between two neighbours along each axis, which is what `labels_of_logits` needs."""
    return all(axis.taps is not None for axis in axes)


def labels_of_logits(
    logits: torch.Tensor, axes: Sequence[Axis], label_manager: LabelManager, *, at_a_time: int = AT_A_TIME
) -> NDArray[Any]:
    """Return the labels that nnU-Net finds in logits which it resamples first, without ever resampling all of them.

    In single precision, slab by slab and label by label. nnU-Net computes in double precision and rounds to the type of
    the logits. Where that could change which label it is, nnU-Net's numbers are computed.

    Args:
        logits: `(heads, z, y, x)`, finite.
        axes: how they are resampled; each voxel lies between two neighbours.
        label_manager: nnU-Net's.
        at_a_time: voxels in a slab, of which there are a few copies; one slice at least.

    Returns:
        `(z, y, x)`, in the smallest type for the labels that nnU-Net has for them.
    """
    size = tuple(len(axis.matrix) for axis in axes)
    labels = np.zeros(size, np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16)
    height = max(1, at_a_time // (size[1] * size[2]))
    slabs = _Slabs(logits, axes, label_manager)

    def fill(begin: int) -> None:
        found, doubtful = slabs.labels(slice(begin, begin + height))
        labels[begin : begin + height] = found.numpy()
        for start in range(0, len(doubtful), _DOUBTFUL_AT_A_TIME):
            places = doubtful[start : start + _DOUBTFUL_AT_A_TIME] + np.array([begin, 0, 0])
            labels[tuple(places.T)] = slabs.as_nnunet(places)

    _side_by_side(fill, range(0, size[0], height))
    return labels


def _side_by_side(fill: Callable[[int], None], begins: Sequence[int]) -> None:
    """Fill slabs, each in one thread: all that is done to one is too small to be shared among threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        for begin in begins:
            fill(begin)
        return
    try:
        with ThreadPoolExecutor(min(threads, _MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(fill, begins):
                pass
    finally:
        torch.set_num_threads(threads)  # for threads that are still to come


class _Slabs:
    """The labels of slabs of slices.

    Args:
        logits: as for `labels_of_logits`.
        axes: likewise.
        label_manager: likewise.
    """

    def __init__(self, logits: torch.Tensor, axes: Sequence[Axis], label_manager: LabelManager) -> None:
        self.logits, self.label_manager = logits, label_manager
        self._numpy = logits.numpy()
        # What single precision may be off by.
        self._error = _ROUNDING * max(abs(float(part)) for part in torch.aminmax(logits))
        self._taps = [axis.taps for axis in axes if axis.taps is not None]
        self._single = [_single(taps) for taps in self._taps]
        self._find = self._regions if label_manager.has_regions else self._largest
        self._type = torch.uint8 if max(label_manager.all_labels) < 256 else torch.int32

    def labels(self, rows: slice) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Return the labels of slices, and places `(number, 3)` in them where nnU-Net may find others."""
        first, last, weight = (part[rows] for part in self._single[0])
        sources = slice(int(first[0]), int(last[-1]) + 1)
        within = (first - sources.start, last - sources.start, weight)
        heads = (self._head(head[sources], within) for head in self.logits)
        labels, doubt = self._find(heads)
        return labels, np.argwhere(doubt.numpy())

    def _head(self, head: torch.Tensor, within: _Single) -> torch.Tensor:
        """Return one head's logits of a slab; along z last, so that what is most is done to whole slices."""
        slices, _, across = head.shape
        # Along x transposed: rows of memory are quick to add.
        head = _between(head.float().reshape(-1, across).t().contiguous(), self._single[2], 0)
        head = head.t().contiguous().view(slices, -1, len(self._taps[2].first))
        head = _between(head, self._single[1], 1)
        found = torch.empty(len(within[0]), *head.shape[1:])
        for place, first, last, weight in zip(found, *(part.tolist() for part in within), strict=True):
            torch.lerp(head[first], head[last], weight, out=place)
        return found

    def _largest(self, heads: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        best = next(heads).clone()
        second = torch.full_like(best, -torch.inf)
        labels = torch.zeros(best.shape, dtype=self._type)
        for number, head in enumerate(heads, 1):
            _mark(labels, head > best, number)
            torch.maximum(second, torch.minimum(head, best), out=second)
            torch.maximum(best, head, out=best)
        # Numbers so close to one another may be equal after rounding: the first of them wins then.
        tie = best.abs().mul_(torch.finfo(self.logits.dtype).eps).add_(self._error)
        return labels, best.sub_(second) <= tie

    def _regions(self, heads: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        labels, doubt = torch.zeros(()), torch.zeros(())
        for number, head in enumerate(heads, 1):
            if number == 1:
                labels, doubt = torch.zeros(head.shape, dtype=self._type), torch.zeros(head.shape, dtype=torch.bool)
            _mark(labels, head > 0, number)
            # Of a number just above 0 the sigmoid is 0.5, in single precision.
            doubt |= head.abs_() <= self._error + _ROUNDING
        of_numbers = torch.tensor([0, *self.label_manager.regions_class_order], dtype=self._type)
        return of_numbers[labels.int()], doubt

    def as_nnunet(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Return the labels at places `(number, 3)` by nnU-Net's numbers."""
        total = np.zeros((len(self.logits), len(places)))
        neighbours = [
            ((taps.first[along], taps.weights[0][along]), (taps.last[along], taps.weights[1][along]))
            for taps, along in zip(self._taps, places.T, strict=True)
        ]
        for corner in product(*neighbours):
            index, weights = zip(*corner, strict=True)
            part = self._numpy[:, index[0], index[1], index[2]].astype(np.float64)
            # One weight after the other, as scipy does, to the last bit.
            for weight in weights:
                part *= weight
            total += part
        # Rounded at once: from double to half precision torch goes by way of single precision.
        return np.asarray(self.label_manager.convert_logits_to_segmentation(total.astype(self._numpy.dtype)))


def _mark(numbers: torch.Tensor, places: torch.Tensor, number: int) -> None:
    """Write a number that is larger than all in there."""
    # Quicker by far than to fill by a mask.
    mark = places.view(torch.uint8) if numbers.dtype == torch.uint8 else places.to(numbers.dtype)
    torch.maximum(numbers, mark.mul_(number), out=numbers)


def _single(taps: Taps) -> _Single:
    return torch.from_numpy(taps.first), torch.from_numpy(taps.last), torch.from_numpy(taps.weights[1]).float()


def _between(values: torch.Tensor, taps: _Single, axis: int) -> torch.Tensor:
    first, last, weight = taps
    if (
        torch.equal(first, last)
        and len(first) == values.shape[axis]
        and bool((first == torch.arange(len(first))).all())
    ):
        return values
    shape = [-1 if number == axis else 1 for number in range(values.ndim)]
    return torch.lerp(values.index_select(axis, first), values.index_select(axis, last), weight.view(shape))
