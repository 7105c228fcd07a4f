"""The demo's results as a text table and one picture. Every Dice comes from nnU-Net's own `summary.json` files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

# Okabe and Ito's palette, which colour-blind readers can tell apart; the smaller the structure, the less transparent.
_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#F0E442")
_OPACITY = (0.45, 0.80, 0.95, 0.95, 0.95)
_INK = "#24292f"


@dataclass(frozen=True)
class Result:
    """Where the results of one model lie.

    Attributes:
        name: what to call it.
        summary: nnU-Net's `summary.json` for the held-out cases.
        predictions: folder with the predicted segmentations.
        checkpoint: the trained checkpoint, None for the ensemble.
    """

    name: str
    summary: Path
    predictions: Path
    checkpoint: Path | None


def table(results: Sequence[Result], labels: Mapping[str, int]) -> str:
    """Return the Dice of each model per label, its mean over the labels, and the number of parameters.

    Args:
        results: one per model.
        labels: name to value; "background" is left out.
    """
    foreground = _foreground(labels)
    cases = len(_load(results[0].summary)["metric_per_case"])
    rows = [["", *foreground, "mean", "parameters"]]
    for result in results:
        summary = _load(result.summary)
        dice = [summary["mean"][str(value)]["Dice"] for value in foreground.values()]
        dice.append(summary["foreground_mean"]["Dice"])
        parameters = f"{_parameters(result.checkpoint) / 1e6:.1f} M" if result.checkpoint else ""
        rows.append([result.name, *(_number(value, 3) for value in dice), parameters])
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [f"Dice on the {cases} held-out cases", *lines])


def picture(results: Sequence[Result], raw: Path, cases: Sequence[str], labels: Mapping[str, int], path: Path) -> None:
    """Draw one row per case (image, truth and each model's prediction, in one axial slice) and write it as PNG.

    Args:
        results: one per model, in the order of the columns.
        raw: the dataset in nnU-Net's raw format, with the cases in `imagesTs` and `labelsTs`.
        cases: names of the held-out cases.
        labels: name to value; "background" is left transparent.
        path: the file to write.
    """
    foreground = _foreground(labels)
    columns = ["Image", "Truth", *(result.name for result in results)]
    figure = Figure(figsize=(2.15 * len(columns), 2.42 * len(cases) + 0.75), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), len(columns), squeeze=False)
    summaries = [_dice_per_case(result.summary) for result in results]
    for row, case in zip(axes, cases, strict=True):
        image = _read(raw / "imagesTs" / f"{case}_0000.nii.gz")
        truth = _read(raw / "labelsTs" / f"{case}.nii.gz")
        z = _best_slice(truth, list(foreground.values()))
        shown = [None, truth, *(_read(result.predictions / f"{case}.nii.gz") for result in results)]
        for panel, segmentation in zip(row, shown, strict=True):
            _panel(panel, image[z], None if segmentation is None else segmentation[z], foreground)
        row[0].set_ylabel(f"{case.replace('_', ' ')}, slice {z}", fontsize=9, color=_INK)
        row[1].set_xlabel("Dice of the whole volume:", fontsize=8.5, color=_INK, loc="right")
        for panel, dice in zip(row[2:], summaries, strict=True):
            _write_dice(panel, [dice[case][value] for value in foreground.values()])
    for panel, title in zip(axes[0], columns, strict=True):
        panel.set_title(title, fontsize=13, color=_INK, pad=7, fontweight="bold")
    handles = [Patch(color=_COLOURS[i], label=name) for i, name in enumerate(foreground)]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=11.5, labelcolor=_INK
    )
    figure.subplots_adjust(left=0.03, right=0.995, top=0.945, bottom=0.085, wspace=0.04, hspace=0.13)
    figure.savefig(path, format="png")


def _panel(axes: Axes, image: NDArray[Any], segmentation: NDArray[Any] | None, foreground: Mapping[str, int]) -> None:
    """Show one slice `(y, x)`, with the segmentation over it if there is one."""
    low, high = np.percentile(image, (1, 99.9))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="bicubic")
    if segmentation is not None:
        overlay = np.zeros((*segmentation.shape, 4))
        for i, value in enumerate(foreground.values()):
            overlay[segmentation == value] = (*to_rgb(_COLOURS[i]), _OPACITY[i])
        axes.imshow(overlay, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write_dice(axes: Axes, dice: Sequence[float]) -> None:
    """Write one Dice per label under a panel, in the labels' colours, darkened to be read on white."""
    for i, value in enumerate(dice):
        red, green, blue = to_rgb(_COLOURS[i])
        axes.text(
            (i + 0.5) / len(dice),
            -0.025,
            _number(value, 2),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=10,
            fontweight="bold",
            color=(0.72 * red, 0.72 * green, 0.72 * blue),
        )


def _best_slice(truth: NDArray[Any], values: Sequence[int]) -> int:
    """Return the index of the axial slice that shows most of every label."""
    areas = np.stack([(truth == value).sum(axis=(1, 2)) for value in values])
    return int(np.log1p(areas).sum(axis=0).argmax())


def _dice_per_case(summary: Path) -> dict[str, dict[int, float]]:
    """Return the Dice by case name and label value."""
    return {
        Path(case["prediction_file"]).name.removesuffix(".nii.gz"): {
            int(value): metrics["Dice"] for value, metrics in case["metrics"].items()
        }
        for case in _load(summary)["metric_per_case"]
    }


def _parameters(checkpoint: Path) -> int:
    """Return the number of parameters in a checkpoint; those that are stored under two names count once."""
    import torch

    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
    return sum({weight.data_ptr(): weight.numel() for weight in weights.values()}.values())


def _foreground(labels: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in labels.items() if name != "background"}


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _read(path: Path) -> NDArray[Any]:
    """Read an image as an array `(z, y, x)`."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
