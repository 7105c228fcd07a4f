"""Where the voxels of a file lie, and how two files differ in that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.05
"""In voxels: corners that lie closer together are at the same place. NIfTI keeps the geometry in single precision."""
_EXACT = 1e-5  # relative; to what nnU-Net's own check holds spacings


@dataclass(frozen=True)
class Grid:
    """Where a file's voxels lie.

    Attributes:
        shape: voxels per axis, `(z, y, x)`.
        spacing: mm per axis, in the same order.
        affine: from the indices `(x, y, z)` to mm, to the right, to the front and up; None if the format has none.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...] | None = None

    @property
    def codes(self) -> str:
        """Where the axes x, y and z lead, such as "LPS": to the left, to the back, up; empty if that is unknown."""
        if self.affine is None:
            return ""
        matrix = np.asarray(self.affine)[:3, :3]
        if not np.isfinite(matrix).all() or not np.linalg.norm(matrix, axis=0).all():
            return ""
        left = list(range(3))
        codes = ""
        for column in (matrix / np.linalg.norm(matrix, axis=0)).T:
            axis = max(left, key=lambda n: abs(column[n]))
            left.remove(axis)
            codes += ("LR", "PA", "IS")[axis][int(column[axis] > 0)]
        return codes


@dataclass(frozen=True)
class Difference:
    """How two grids differ: the kind of the fact, and by how much, to be followed by what the first grid is of."""

    kind: str
    detail: str


def make_grid(shape: Sequence[int], properties: Mapping[str, Any]) -> Grid:
    """Return the grid of an array that nnU-Net's reader gave, with its properties."""
    spacing = tuple(float(length) for length in properties["spacing"])
    return Grid(tuple(shape), spacing, _affine(properties))


def _affine(properties: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    matrix = np.eye(4)
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        matrix = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=float)
    elif "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        rank = len(stuff["spacing"])
        if rank > 3:
            return None
        matrix[:rank, :rank] = np.reshape(stuff["direction"], (rank, rank)) * np.asarray(stuff["spacing"])
        matrix[:rank, 3] = stuff["origin"]
        matrix[:2] *= -1  # SimpleITK counts to the left and to the back
    else:
        return None
    return tuple(map(tuple, matrix.tolist()))


def compare_grids(one: Grid, other: Grid, *, spacing: bool = True) -> list[Difference]:
    """Return how another grid differs from one; in size, in spacing or in place, with the numbers.

    Args:
        one: what it should be.
        other: what it is.
        spacing: whether both know theirs; without it, their place is not known either.
    """
    if one.shape != other.shape:
        return [Difference("other size", f"{_times(other.shape)} voxels, not {_times(one.shape)} as")]
    lengths, others = np.asarray(one.spacing), np.asarray(other.spacing)
    off = np.abs(lengths - others) / np.where(lengths > 0, lengths, 1)
    detail = f"{_times(others)} mm, not {_times(lengths)} as"
    if spacing and (off * np.maximum(1, np.asarray(one.shape) - 1)).max() > TOLERANCE:
        return [Difference("other spacing", detail)]
    found = []
    if spacing and not np.allclose(lengths, others, rtol=_EXACT):
        found.append(Difference("spacing slightly off", f"{_precise(others)} mm, not {_precise(lengths)} as"))
    known = spacing and one.affine is not None and other.affine is not None
    if known and (place := _place_detail(one, other)):
        found.append(Difference("other place", place))
    return found


def _place_detail(one: Grid, other: Grid) -> str:
    ours, theirs = _corners(one), _corners(other)
    distance = np.linalg.norm(ours - theirs, axis=1)
    furthest = float(distance.max()) if np.isfinite(distance).all() else float("inf")
    voxel = min((length for length, n in zip(one.spacing, one.shape, strict=True) if n > 1), default=1.0)
    if furthest <= TOLERANCE * voxel:
        return ""
    apart = f"corners up to {furthest:.3g} mm ({furthest / voxel:.3g} voxels) from"
    if one.codes == other.codes:
        return apart
    return f"stored along {other.codes or 'unknown axes'} instead of {one.codes or 'unknown axes'}, {apart}"


def _corners(grid: Grid) -> NDArray[Any]:
    last = [n - 1 for n in grid.shape[::-1]]
    corners = np.array([[*corner, 1] for corner in product(*((0, n) for n in last))], dtype=float)
    return corners @ np.asarray(grid.affine).T[:, :3]


def _times(numbers: Sequence[float] | NDArray[Any]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _precise(numbers: NDArray[Any]) -> str:
    return " x ".join(f"{number:.9g}" for number in numbers)
