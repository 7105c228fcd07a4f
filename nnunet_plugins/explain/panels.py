"""Pictures of maps: three planes through a class's centre, the image below and the map above; and of all else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunet_plugins.explain.gates import Gate
from nnunet_plugins.explain.receptive_field import THRESHOLD, Field
from nnunet_plugins.files import whole_file

COLOURS = "viridis"
"""Perceptually uniform: equal steps of a map are equal steps to the eye."""

_PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))  # of axes (z, y, x), as most images lie
_CELL, _DPI, _ALPHA = 2.3, 100, 0.55


@dataclass(frozen=True)
class Layer:
    """A map to draw.

    Attributes:
        title: of its row.
        values: `(z, y, x)`.
        names: of its values 0, 1, ..., if these are names and no numbers.
    """

    title: str
    values: NDArray[Any]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """What lies below the maps.

    Attributes:
        image: `(z, y, x)`, gray values from 0 to 1.
        spacing: mm, likewise.
        labels: the segmentation `(z, y, x)`, of which the outlines are drawn.
    """

    image: NDArray[Any]
    spacing: tuple[float, ...]
    labels: NDArray[Any]


def gray(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return an image from 0 to 1, without its most extreme values."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:
        low, high = values.min(), values.max()
    return np.clip((values - low) / max(float(high - low), 1e-9), 0, 1).astype(np.float32)


def centre_of(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the voxel of a class that is nearest to its centre; the middle of the image if it has none."""
    where = np.argwhere(mask)
    if not len(where):
        return tuple(n // 2 for n in mask.shape)
    return tuple(where[((where - where.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist())


def crop_of(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the box of a class with half of its size around it; the whole image if it has none."""
    where = np.argwhere(mask)
    if not len(where):
        return tuple(slice(0, n) for n in mask.shape)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    margin = np.maximum(4, (high - low) // 2)
    ends = zip(low - margin, high + margin, mask.shape, strict=True)
    return tuple(slice(max(int(a), 0), min(int(b), n)) for a, b, n in ends)


def draw_panel(
    file: Path,
    heading: str,
    scene: Scene,
    layers: Sequence[Layer],
    centre: Sequence[int],
    crop: tuple[slice, ...] | None = None,
) -> None:
    """Draw maps row by row, each in three planes; maps with numbers share one range, which the colour bar shows.

    Args:
        file: PNG to write.
        heading: above all.
        scene: below the maps.
        layers: the maps.
        centre: `(z, y, x)`, where the planes meet.
        crop: box to show, which holds the centre.
    """
    crop = crop or tuple(slice(0, n) for n in scene.image.shape)
    planes = [plane for plane in _PLANES if min(n for a, n in enumerate(scene.image.shape) if a != plane[1]) > 1]
    planes = planes or [_PLANES[0]]
    figure = Figure(figsize=(_CELL * len(planes) + 1.6, _CELL * len(layers) + 0.5), dpi=_DPI, layout="constrained")
    figure.suptitle(heading, fontsize=9)
    axes = figure.subplots(len(layers), len(planes), squeeze=False)
    numbers = [layer.values for layer in layers if not layer.names]
    low, high = (min(v.min() for v in numbers), max(v.max() for v in numbers)) if numbers else (0, 1)
    shared = Normalize(low, high if high > low else low + 1)
    for row, layer in zip(axes, layers, strict=True):
        norm: Normalize = shared
        if layer.names:
            norm = BoundaryNorm(np.arange(len(layer.names) + 1) - 0.5, 256)
        for place, (name, axis) in zip(row, planes, strict=True):
            _draw_plane(place, scene, layer.values, norm, axis, centre, crop)
            if layer is layers[0]:
                place.set_title(f"{name}, {centre[axis] + 1} of {scene.image.shape[axis]}", fontsize=7)
        row[0].set_ylabel(layer.title, fontsize=7)
        bar = figure.colorbar(_mappable(norm), ax=list(row), shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        if layer.names:
            bar.set_ticks(range(len(layer.names)), labels=layer.names)
    _save(figure, file)


def _mappable(norm: Normalize) -> Any:
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm, COLOURS)


def _draw_plane(
    place: Any,
    scene: Scene,
    values: NDArray[Any],
    norm: Normalize,
    axis: int,
    centre: Sequence[int],
    crop: tuple[slice, ...],
) -> None:
    def flat(array: NDArray[Any]) -> NDArray[Any]:
        return array[tuple(centre[n] if n == axis else part for n, part in enumerate(crop))]

    rows, columns = (n for n in range(3) if n != axis)
    options: dict[str, Any] = {
        "origin": "upper" if axis == 0 else "lower",
        "aspect": scene.spacing[rows] / scene.spacing[columns],
    }
    place.imshow(flat(scene.image), cmap="gray", vmin=0, vmax=1, **options)
    place.imshow(flat(values), cmap=COLOURS, norm=norm, alpha=_ALPHA, interpolation="nearest", **options)
    labels = flat(scene.labels)
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        if min(mask.shape) > 1 and not mask.all():
            place.contour(mask, levels=[0.5], colors="white", linewidths=0.7)
    place.set_xticks([])
    place.set_yticks([])


def draw_field(file: Path, heading: str, field: Field) -> None:
    """Draw an effective receptive field in the planes through its middle, on a scale of powers of ten."""
    values = np.maximum(field.values, 1e-4)
    middle = [n // 2 for n in values.shape]
    axes = range(values.ndim) if values.ndim == 3 else [None]
    figure = Figure(figsize=(2.8 * len(axes) + 0.8, 3.2), dpi=_DPI, layout="constrained")
    figure.suptitle(heading, fontsize=9)
    norm = LogNorm(1e-4, 1)
    places = figure.subplots(1, len(axes), squeeze=False)[0]
    for place, axis in zip(places, axes, strict=True):
        plane = values if axis is None else values.take(middle[axis], axis)
        place.imshow(plane, cmap=COLOURS, norm=norm, interpolation="nearest")
        if plane.min() < THRESHOLD < plane.max() and min(plane.shape) > 1:
            place.contour(plane, levels=[THRESHOLD], colors="white", linewidths=0.8)
        if axis is not None:
            place.set_title(f"across axis {axis}", fontsize=7)
        place.tick_params(labelsize=6)
    bar = figure.colorbar(_mappable(norm), ax=list(places), shrink=0.8)
    bar.set_label("gradient, of its largest; white: 1 %", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    _save(figure, file)


def draw_fabric(file: Path, gates: Sequence[Gate]) -> None:
    """Draw a fabric, each edge as wide and as bright as its gate is open."""
    edges = [(gate.edge, gate.value) for gate in gates if gate.edge is not None]
    norm = Normalize(min(value for _, value in edges), max(value for _, value in edges))
    figure = Figure(figsize=(7, 3.6), dpi=_DPI, layout="constrained")
    place = figure.subplots()
    for (source, target), value in edges:
        colour = _mappable(norm).to_rgba(value)
        # Dense shortcuts pass over the cells between.
        bend = 0.28 if target.column - source.column > 1 and source.branch == target.branch else 0.0
        place.annotate(
            "",
            (target.column, -target.branch),
            (source.column, -source.branch),
            arrowprops={
                "arrowstyle": "-|>",
                "connectionstyle": f"arc3,rad={-bend}",
                "color": colour,
                "linewidth": 0.4 + 4 * value,
                "shrinkA": 9,
                "shrinkB": 9,
            },
        )
    nodes = {node for edge, _ in edges for node in edge}
    last = max(node.column for node in nodes)
    for node in nodes:
        text = "stem" if node.column == 0 else "out" if node.column == last else f"{node.column},{node.branch}"
        place.text(node.column, -node.branch, text, ha="center", va="center", fontsize=7)
    place.set_xlim(-0.4, last + 0.4)
    place.set_ylim(-max(node.branch for node in nodes) - 0.5, -0.2)
    place.set_axis_off()
    figure.colorbar(_mappable(norm), ax=place, shrink=0.8, label="gate")
    _save(figure, file)


def draw_history(file: Path, history: pd.DataFrame) -> None:
    """Draw gates over the epochs; those that end furthest from the middle are named."""
    figure = Figure(figsize=(7, 3.6), dpi=_DPI, layout="constrained")
    place = figure.subplots()
    last = history.iloc[-1]
    named = {*last.nlargest(4).index, *last.nsmallest(4).index}
    norm = Normalize(last.min(), last.max() if last.max() > last.min() else last.min() + 1)
    for gate, values in history.items():
        colour = _mappable(norm).to_rgba(last[gate])
        # One epoch is a point.
        marker = "." if len(history) == 1 else ""
        place.plot(history.index, values, color=colour, linewidth=1, marker=marker)
        if gate in named:
            place.annotate(str(gate), (history.index[-1], last[gate]), fontsize=5, va="center")
    place.set_xlabel("epoch", fontsize=8)
    place.set_ylabel("gate", fontsize=8)
    place.margins(x=0.25)
    place.set_xlim(left=float(history.index[0]))
    place.tick_params(labelsize=7)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        figure.savefig(part, format="png")
