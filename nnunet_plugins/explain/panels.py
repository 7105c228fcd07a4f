"""Pictures of maps: three planes through a class's centre, the image and the maps below it; and of all else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_plugins.explain.gates import Gate
from nnunet_plugins.explain.receptive_field import THRESHOLD, Field
from nnunet_plugins.files import whole_file
from nnunet_plugins.report.drawing import COLOURS as LINE_COLOURS

COLOURS = "viridis"
"""Perceptually uniform: equal steps of a map are equal steps to the eye."""

_PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))  # of axes (z, y, x), as most images lie
_LONGEST, _DPI = 220, 100  # pixels of the longest side, and to the inch
_ALIKE = 1e-3  # of the largest value: maps that vary by less have one colour
_NAMED = 4  # gates at either end
_LEFT, _TOP, _RIGHT, _GAP = 20, 38, 90, 6  # pixels


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
    """What maps are of.

    Attributes:
        image: `(z, y, x)`, gray values from 0 to 1.
        spacing: mm, likewise.
        labels: the segmentation `(z, y, x)`, of which the outlines are drawn.
    """

    image: NDArray[Any]
    spacing: tuple[float, ...]
    labels: NDArray[Any]


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
    """Draw the image, and below it maps row by row, each in three planes and with a colour bar of its own.

    A map is not laid over the image, whose edges would look like its own; only the labels are outlined in it.

    Args:
        file: PNG to write.
        heading: above all, and the file's title.
        scene: the image and the labels.
        layers: the maps.
        centre: `(z, y, x)`, where the planes meet.
        crop: box to show, which holds the centre.
    """
    crop = crop or tuple(slice(0, n) for n in scene.image.shape)
    planes = [plane for plane in _PLANES if min(n for a, n in enumerate(scene.image.shape) if a != plane[1]) > 1]
    planes = planes or [_PLANES[0]]
    rows = [Layer("image", scene.image), *layers]
    colours = [_mappable(Normalize(0, 1), "gray"), *map(_colours_of, layers)]
    # One picture of all planes: a matplotlib axis for each would take a hundred times as long.
    lengths = [(part.stop - part.start) * step for part, step in zip(crop, scene.spacing, strict=True)]
    # Of the axes that are drawn: nnU-Net gives slices a thickness of 999.
    drawn = {axis for axis in range(3) if any(axis != across for _, across in planes)}
    pixels = max(lengths[axis] for axis in drawn) / _LONGEST
    pictures = [
        [_plane(scene, one.values, colour, axis, centre, crop, pixels) for _, axis in planes]
        for one, colour in zip(rows, colours, strict=True)
    ]
    height = max(len(picture) for picture in pictures[0])
    widths = [picture.shape[1] for picture in pictures[0]]
    starts = np.cumsum([0, *(width + _GAP for width in widths)])
    sheet = np.ones((len(rows) * (height + _GAP), int(starts[-1]), 3))
    for number, row in enumerate(pictures):
        for start, picture in zip(starts, row, strict=False):
            top = number * (height + _GAP)
            sheet[top : top + len(picture), start : start + picture.shape[1]] = picture
    size = np.array([_LEFT + sheet.shape[1] + _RIGHT, _TOP + len(sheet)])
    figure = Figure(figsize=tuple(size / _DPI), dpi=_DPI)
    figure.figimage(sheet, _LEFT, 0)
    figure.text(0.5, 1 - 10 / size[1], heading, fontsize=8, ha="center", va="center")
    for start, width, (name, axis) in zip(starts, widths, planes, strict=False):
        place = f"{name}, {centre[axis] + 1} of {scene.image.shape[axis]}"
        figure.text(
            (_LEFT + start + width / 2) / size[0], 1 - 28 / size[1], place, fontsize=6, ha="center", va="center"
        )
    for number, (layer, colour) in enumerate(zip(rows, colours, strict=True)):
        bottom = size[1] - _TOP - number * (height + _GAP) - height
        middle = (bottom + height / 2) / size[1]
        figure.text(10 / size[0], middle, layer.title, fontsize=6, rotation=90, ha="center", va="center")
        if not number:
            continue
        box = (
            (size[0] - _RIGHT + 8) / size[0],
            (bottom + 0.1 * height) / size[1],
            12 / size[0],
            0.8 * height / size[1],
        )
        bar = figure.colorbar(colour, cax=figure.add_axes(box))
        bar.ax.tick_params(labelsize=6)
        if layer.names:
            bar.set_ticks(range(len(layer.names)), labels=layer.names)
        else:
            bar.ax.ticklabel_format(useOffset=False, style="plain")
    _save(figure, file, heading)


def _mappable(norm: Normalize, colours: str = COLOURS) -> Any:
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(norm, colours)


def _colours_of(layer: Layer) -> Any:
    """Return the colours of a map's values, from its least to its largest; what is alike but for noise has one."""
    if layer.names:
        return _mappable(BoundaryNorm(np.arange(len(layer.names) + 1) - 0.5, 256))
    low, high = range_of(layer.values)
    least = _ALIKE * max(abs(low), abs(high)) or 1.0
    return _mappable(Normalize(low, max(high, low + least)))


def range_of(values: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the largest of the numbers that are finite; 0 and 0 of none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _plane(
    scene: Scene,
    values: NDArray[Any],
    colours: Any,
    axis: int,
    centre: Sequence[int],
    crop: tuple[slice, ...],
    pixels: float,
) -> NDArray[Any]:
    """Return a plane `(rows, columns, 3)` of a map with outlines of the labels; mm a pixel."""
    rest = [n for n in range(3) if n != axis]
    length = [max(1, round((crop[n].stop - crop[n].start) * scene.spacing[n] / pixels)) for n in rest]
    picked = [
        crop[n].start + (np.arange(size) * (crop[n].stop - crop[n].start)) // size
        for n, size in zip(rest, length, strict=True)
    ]
    if axis:  # the first slice is at the feet, mostly
        picked[0] = picked[0][::-1]
    place: list[Any] = [0, 0, 0]
    place[axis] = centre[axis]
    place[rest[0]], place[rest[1]] = picked[0][:, None], picked[1][None]
    found: NDArray[Any] = colours.to_rgba(values[tuple(place)])[..., :3]
    labels = scene.labels[tuple(place)].astype(np.int32)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    found[edge] = 1
    return found


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
        bend = 0.28 if target[0] - source[0] > 1 and source[1] == target[1] else 0.0
        place.annotate(
            "",
            (target[0], -target[1]),
            (source[0], -source[1]),
            arrowprops={
                "arrowstyle": "-|>",
                "connectionstyle": f"arc3,rad={-bend}",
                "color": colour,
                "linewidth": 0.4 + 4 * value,
                "shrinkA": 14,
                "shrinkB": 12,
            },
        )
    nodes = {node for edge, _ in edges for node in edge}
    last = max(column for column, _ in nodes)
    for column, branch in nodes:
        text = "stem" if column == 0 else "out" if column == last else f"{column},{branch}"
        place.text(column, -branch, text, ha="center", va="center", fontsize=7)
    place.set_xlim(-0.4, last + 0.4)
    place.set_ylim(-max(branch for _, branch in nodes) - 0.5, -0.2)
    place.set_axis_off()
    figure.colorbar(_mappable(norm), ax=place, shrink=0.8, label="gate")
    _save(figure, file)


def draw_history(file: Path, history: pd.DataFrame) -> None:
    """Draw gates over the epochs; the four that end highest (solid) and lowest (dashed) are named and in colour."""
    figure = Figure(figsize=(7, 3.6), dpi=_DPI, layout="constrained")
    place = figure.subplots()
    last = history.iloc[-1]
    order = last.sort_values(ascending=False, kind="stable").index
    looks = dict(zip(order[:_NAMED], ((colour, "solid") for colour in LINE_COLOURS), strict=False))
    rest = order[max(_NAMED, len(order) - _NAMED) :]
    looks |= dict(zip(rest, ((colour, (0, (4, 1.5))) for colour in LINE_COLOURS), strict=False))
    marker = "." if len(history) == 1 else ""  # one epoch is a point
    for gate in [*order.difference([*looks], sort=False), *looks]:
        colour, dashes = looks.get(gate, ("#b0b0b0", "solid"))
        label = gate if gate in looks else None
        place.plot(
            history.index, history[gate], color=colour, linestyle=dashes, linewidth=1, marker=marker, label=label
        )
    place.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    place.xaxis.set_major_locator(MaxNLocator(integer=True))
    place.set_xlabel("epoch", fontsize=8)
    place.set_ylabel("gate", fontsize=8)
    place.tick_params(labelsize=7)
    _save(figure, file)


def _save(figure: Figure, file: Path, title: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        # The title says what it shows, to whoever puts it elsewhere.
        figure.savefig(part, format="png", metadata={"Title": title} if title else None)
