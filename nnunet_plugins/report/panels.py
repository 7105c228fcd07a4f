"""Pictures of single cases: the image, the truth and what two algorithms made of it, in the slice that shows most.

They are made where the images lie and kept as text, so that a report that is built anew elsewhere still shows them.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import write_text
from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.drawing import COLOURS
from nnunet_plugins.report.maps import Maps, Picture, read_maps

SIZE = 300
"""Pixels along the longer side of a picture; about 20 kB each."""


class PanelError(Exception):
    """An image that cannot be shown; the message says which and why."""


@dataclass(frozen=True)
class Row:
    """The pictures of one case.

    Attributes:
        case: its name.
        why: for what it was chosen.
        place: which slice it is.
        pictures: from the image on.
        maps: of networks that have some.
    """

    case: str
    why: str
    place: str
    pictures: list[Picture]
    maps: list[Maps] = field(default_factory=list)


@dataclass(frozen=True)
class Panels:
    """All pictures of a comparison.

    Attributes:
        rows: one per case.
        legend: names and colours of the labels.
        notes: what is not shown, and why.
    """

    rows: list[Row]
    legend: list[tuple[str, str]]
    notes: list[str]


def shown_pair(comparison: Comparison) -> tuple[str, str] | None:
    """Return the algorithms that pictures show: the baseline and the best other one, which may be the same.

    None for test images, and where nothing is ranked.
    """
    ranked = comparison.ranked
    if comparison.split != "cross-validation" or not ranked:
        return None
    baseline = comparison.baseline or ranked[0]
    return baseline, next((name for name in ranked if name != baseline), baseline)


def choose_cases(scores: pd.DataFrame, baseline: str, method: str) -> dict[str, str]:
    """Return the cases to show, and why: the method's best, median and worst, and the largest difference.

    Args:
        scores: cases x algorithms, the higher the better.
        baseline: a column.
        method: another column, or the same.
    """
    chosen: dict[str, list[str]] = {}
    for reason, case in _reasons(scores, baseline, method).items():
        chosen.setdefault(case, []).append(reason)
    return {case: ", ".join(why) for case, why in chosen.items()}


def cases_for_maps(scores: pd.DataFrame, baseline: str, method: str) -> list[str]:
    """Return those of `choose_cases` of which maps are shown: the method's worst and the most different one."""
    reasons = _reasons(scores, baseline, method).items()
    return list(dict.fromkeys(case for reason, case in reasons if reason.startswith(("worst", "largest"))))


def _reasons(scores: pd.DataFrame, baseline: str, method: str) -> dict[str, str]:
    both = scores[[*dict.fromkeys((baseline, method))]].dropna().sort_values(method, kind="stable")
    if both.empty:
        return {}
    reasons = {
        f"best case of {method}": both.index[-1],
        f"median case of {method}": both.index[(len(both) - 1) // 2],
        f"worst case of {method}": both.index[0],
    }
    if method != baseline:
        reasons[f"largest difference from {baseline}"] = (both[method] - both[baseline]).abs().idxmax()
    return {reason: str(case) for reason, case in reasons.items()}


def draw_panels(
    scores: pd.DataFrame,
    baseline: str,
    method: str,
    files: Mapping[str, Any] | None,
    cache: Path,
    maps: Mapping[str, Mapping[str, str]] | None = None,
) -> Panels:
    """Draw the pictures of a comparison, or take those that were drawn before where the images are not to be found.

    Args:
        scores: Dice, cases x algorithms.
        baseline: to show beside the truth.
        method: the algorithm to show, which may be the baseline itself.
        files: where images, truth and segmentations lie, as in `about.json`; None if that is not known.
        cache: JSON file that keeps the pictures.
        maps: folders with pictures of maps, by case and algorithm; None if nobody has asked for them.
    """
    kept = {json.dumps(row["key"]): row for row in _kept(cache)}
    rows, keep = [], []
    missing: dict[str, list[str]] = {}
    without: list[str] = []
    mapped = cases_for_maps(scores, baseline, method) if maps is not None else []
    for case, why in choose_cases(scores, baseline, method).items():
        shown = {name: float(scores.loc[case, name]) for name in dict.fromkeys((baseline, method))}
        # Pictures of other trainings are not taken: these have other scores.
        key = [case, {name: round(score, 6) for name, score in shown.items()}]
        old = kept.get(json.dumps(key))
        try:
            if files is None:
                raise PanelError("it is not known where the images lie")
            row = _draw(case, why, shown, files)
        except PanelError as problem:
            if old is None:
                missing.setdefault(str(problem), []).append(f"{case} ({why})")
                continue
            pictures = [Picture(**picture) for picture in old["pictures"]]
            pictures = [replace(picture, score=shown.get(picture.title)) for picture in pictures]
            row = Row(case, why, old["place"], pictures)
        if case in mapped:
            own = scores.loc[case].dropna()
            row = replace(row, maps=read_maps(own, (maps or {}).get(case, {}), (old or {}).get("maps", ())))
            if lacking := [name for name in shown if name not in {one.algorithm for one in row.maps}]:
                without.append(f"{' and '.join(lacking)} for {case}")
        rows.append(row)
        keep.append({"key": key, **asdict(row)})
    if keep:
        write_text(cache, json.dumps(keep, indent=1))
    notes = [f"Not shown, because {problem}: {'; '.join(cases)}." for problem, cases in missing.items()]
    if without:
        reason = "the models are not there, failed, or are fitted to every image and have none"
        notes.append(f"There are no maps of {'; '.join(without)}: {reason}.")
    return Panels(rows, _legend((files or {}).get("labels", {})) if rows else [], notes)


def _legend(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what each value of a segmentation means, with its colour; of regions, all that a voxel with it is in."""
    names: dict[int, list[str]] = {}
    for values, name in labels.items():
        for value in map(int, re.findall(r"\d+", values)):
            names.setdefault(value, []).append(name)
    return [(", ".join(names[value]), _colour(value)) for value in sorted(names) if value > 0]


def _kept(cache: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []


def image_of(case: str, files: Mapping[str, Any]) -> Path:
    """Return the file of a case's first channel.

    Args:
        case: its name.
        files: as in `about.json`.
    """
    own = files.get("files", {}).get(case)
    return Path(own) if own else Path(files["images"]) / f"{case}_0000{files['ending']}"


def _draw(case: str, why: str, shown: Mapping[str, float], files: Mapping[str, Any]) -> Row:
    from nnunet_plugins.images.pictures import gray

    ending, predictions = files["ending"], files["predictions"]
    if unknown := [name for name in shown if name not in predictions]:
        raise PanelError(f"it is not known where the segmentations of {unknown[0]} lie")
    image, spacing = _read(image_of(case, files))
    segmentations = [_read(Path(files["truth"]) / f"{case}{ending}")[0]]
    segmentations += [_read(Path(predictions[name]) / f"{case}{ending}")[0] for name in shown]
    if any(segmentation.shape != image.shape for segmentation in segmentations):
        raise PanelError("image and segmentations have different shapes")
    axis, number = _best_slice(segmentations, spacing)
    place = f"slice {number + 1} of {image.shape[axis]}" if image.shape[axis] > 1 else ""
    flat, aspect = gray(image).take(number, axis), [s for n, s in enumerate(spacing) if n != axis]
    pictures = [Picture("Image", None, _picture(flat, None, aspect))]
    titles = [("Truth", None), *shown.items()]
    for (title, score), segmentation in zip(titles, segmentations, strict=True):
        pictures.append(Picture(title, score, _picture(flat, segmentation.take(number, axis), aspect)))
    return Row(case, why, place, pictures)


def _read(file: Path) -> tuple[NDArray[Any], list[float]]:
    """Return an image's first channel as an array `(z, y, x)`, and its spacing in the same order."""
    from nnunet_plugins.images.pictures import read_picture

    try:
        return read_picture(file)
    except (InputError, MemoryError) as error:  # a picture less, but the report
        raise PanelError(str(error)) from None


def _best_slice(segmentations: Sequence[NDArray[Any]], spacing: Sequence[float]) -> tuple[int, int]:
    """Return axis and number of the slice with most of the truth, or else of what was found where nothing is.

    Slices lie across the axis with the coarsest voxels, so that they are as the image was taken; else they are axial.
    """
    shape = segmentations[0].shape
    flat = [axis for axis, size in enumerate(shape) if size == 1]
    coarse = np.round(np.array(spacing) / min(spacing), 1)
    axis = flat[0] if flat else int(coarse.argmax())
    others = tuple(n for n in range(3) if n != axis)
    for segmentation in segmentations:
        values = [value for value in np.unique(segmentation) if value > 0]
        if values:
            # Logarithms: a slice with some of every label before one with much of the largest.
            areas = [np.log1p((segmentation == value).sum(axis=others)) for value in values]
            return axis, int(np.sum(areas, axis=0).argmax())
    return axis, shape[axis] // 2


def _picture(image: NDArray[Any], segmentation: NDArray[Any] | None, spacing: Sequence[float]) -> str:
    """Return a slice as a data URI, with the labels filled lightly and outlined."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imsave
    from scipy.ndimage import binary_erosion, gaussian_filter

    extent = np.array(image.shape) * np.array(spacing)
    size = np.maximum(1, np.round(extent * SIZE / extent.max())).astype(int)
    # Less than one pixel per voxel: smoothed first, or fine structures would come and go by chance.
    image = gaussian_filter(image, np.maximum(0, np.array(image.shape) / size - 1) / 2)
    pixels = np.repeat(_resized(image, size, smooth=True)[..., None], 3, axis=-1)
    if segmentation is not None:
        values = _resized(segmentation, size, smooth=False)
        for value in np.unique(values[values > 0]):
            mask, colour = values == value, np.array(to_rgb(_colour(int(value))))
            edge = mask & ~binary_erosion(mask, iterations=2, border_value=1)
            pixels[mask] = 0.72 * pixels[mask] + 0.28 * colour
            pixels[edge] = colour
    buffer = io.BytesIO()
    # Full colour resolution: outlines are thin.
    imsave(buffer, np.clip(pixels, 0, 1), format="jpg", pil_kwargs={"quality": 85, "subsampling": 0})
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _resized(array: NDArray[Any], size: NDArray[Any], *, smooth: bool) -> NDArray[Any]:
    """Return a 2D array in another size: between its values if smooth, else the nearest ones."""
    from scipy.ndimage import map_coordinates

    centres = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(size, array.shape, strict=True)]
    grid = np.meshgrid(*centres, indexing="ij")
    return map_coordinates(array, grid, order=1 if smooth else 0, mode="nearest")


def _colour(value: int) -> str:
    return COLOURS[(value - 1) % len(COLOURS)]
