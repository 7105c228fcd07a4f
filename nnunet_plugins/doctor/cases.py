"""Checks of each case: files that can be read, one grid for all of them, sound intensities, declared labels."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from nnunet_plugins.doctor.dataset import RawDataset
from nnunet_plugins.doctor.findings import Finding, of_cases, ok
from nnunet_plugins.doctor.images import CaseFacts, Grid

Facts = Mapping[str, CaseFacts]
FAR_OUT = 100
"""A voxel this many times the spread of an image (0.5th to 99.5th percentile) above or below its median is far out."""


def check_cases(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    """Check every case by itself."""
    broken = {file: reason for case in facts.values() for file, reason in case.broken.items()}
    yield from of_cases(
        "problem",
        "{} cannot be read or is damaged",
        broken,
        "get them anew, or move these cases away",
        noun="file",
    )
    if not broken:
        yield ok(f"all files of {len(facts)} cases can be read")
    yield from _check_grids(facts)
    yield from _check_intensities(dataset, facts)
    yield from _check_labels(dataset, facts)


def _where(facts: Facts, find: Callable[[CaseFacts], str | None]) -> dict[str, str]:
    """Return the cases where something is found, with what it is."""
    found = {name: find(case) for name, case in facts.items()}
    return {name: detail for name, detail in found.items() if detail is not None}


def _grids(case: CaseFacts) -> Iterator[tuple[str, Grid]]:
    for channel in case.channels:
        yield channel.file, channel.grid
    if case.segmentation:
        yield case.segmentation.file, case.segmentation.grid


def _differs(part: str) -> Callable[[CaseFacts], str | None]:
    """Return a function that names the first file whose grid differs in a part from the first file's."""

    def find(case: CaseFacts) -> str | None:
        grids = list(_grids(case))
        for file, grid in grids[1:]:
            first, other = (np.asarray(getattr(one, part)) for one in (grids[0][1], grid))
            # As exactly as nnU-Net's own check.
            if first.shape != other.shape or not np.allclose(first, other):
                return f"{_show(first)} in {grids[0][0]}, {_show(other)} in {file}"
        return None

    return find


def _show(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)


def _check_grids(facts: Facts) -> Iterator[Finding]:
    remedy = "resample segmentation and channels to one grid; nnU-Net's nnUNetv2_plot_overlay_pngs shows how they lie"
    kinds = {"shape": "problem", "spacing": "problem", "place": "warning"}
    found = {part: _where(facts, _differs(part)) for part in kinds}
    texts = {
        "shape": "{} whose files differ in size",
        "spacing": "{} whose files differ in spacing",
        "place": "{} whose files differ in origin or direction, which nnU-Net overlooks",
    }
    for part, level in kinds.items():
        yield from of_cases(level, texts[part], found[part], remedy)
    if not any(found.values()):
        yield ok("in every case, channels and segmentation have one grid")


def _check_intensities(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    number = len(dataset.channels)

    def wrong_number(case: CaseFacts) -> str | None:
        return None if case.broken or len(case.channels) == number else f"has {len(case.channels)}"

    yield from of_cases(
        "problem",
        f"{{}} with another number of channels than the {number} of 'channel_names'",
        _where(facts, wrong_number),
        "correct 'channel_names' in dataset.json, or the files",
    )

    def not_finite(case: CaseFacts) -> str | None:
        return next((f"{one.not_finite} voxels of {one.file}" for one in case.channels if one.not_finite), None)

    yield from of_cases(
        "problem",
        "{} with NaN or infinite intensities",
        _where(facts, not_finite),
        "replace these voxels by a value that makes sense, such as that of the background",
    )

    def read_as_zero(case: CaseFacts) -> str | None:
        return next((f"{one.read_as_zero} voxels of {one.file}" for one in case.channels if one.read_as_zero), None)

    yield from of_cases(
        "warning",
        "{} with NaN or infinite intensities that SimpleITK, and so nnU-Net, reads as 0",
        _where(facts, read_as_zero),
        "replace these voxels by a value that makes sense, such as that of the background",
    )

    def constant(case: CaseFacts) -> str | None:
        return next((one.file for one in case.channels if one.lowest == one.highest), None)

    yield from of_cases(
        "warning", "{} with a constant image", _where(facts, constant), "look at them; there is nothing to learn from"
    )

    def twice(case: CaseFacts) -> str | None:
        first: dict[str, str] = {}
        # A constant channel has been told already.
        for one in case.channels:
            if one.lowest < one.highest and first.setdefault(one.digest, one.file) != one.file:
                return f"{first[one.digest]} and {one.file}"
        return None

    yield from of_cases(
        "warning", "{} with the same image in two channels", _where(facts, twice), "look for the channel that is lost"
    )

    def far_out(case: CaseFacts) -> str | None:
        for one in case.channels:
            distance = max(one.highest - one.middle, one.middle - one.lowest)
            if one.spread > 0 and distance > FAR_OUT * one.spread:
                return (
                    f"{one.lowest:.3g} to {one.highest:.3g} in {one.file}, 99% within {one.low:.3g} to {one.high:.3g}"
                )
        return None

    yield from of_cases(
        "warning",
        f"{{}} with voxels that are over {FAR_OUT} times the spread of the others away from them",
        _where(facts, far_out),
        "clip these voxels: they decide nnU-Net's normalisation of the image",
    )


def _check_labels(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    expected = set(dataset.expected_labels())
    ignored = dataset.labels.ignore_label if dataset.labels else None

    def values(case: CaseFacts) -> tuple[float, ...]:
        return case.segmentation.values if case.segmentation else ()

    def fractions(case: CaseFacts) -> str | None:
        return _listed(value for value in values(case) if not float(value).is_integer())

    def undeclared(case: CaseFacts) -> str | None:
        return _listed(value for value in values(case) if float(value).is_integer() and value not in expected)

    def empty(case: CaseFacts) -> str | None:
        return "" if case.segmentation and not set(values(case)) - {0, ignored} else None

    yield from of_cases(
        "problem",
        "{} whose segmentation holds values that are no whole numbers",
        _where(facts, fractions),
        "store labels as whole numbers; resample segmentations with nearest neighbours",
    )
    if dataset.labels:
        yield from of_cases(
            "problem",
            f"{{}} whose segmentation holds labels that dataset.json does not declare ({_listed(sorted(expected))})",
            _where(facts, undeclared),
            "declare them in 'labels', or correct the segmentations",
        )
    yield from of_cases(
        "warning",
        "{} without any foreground in the segmentation",
        _where(facts, empty),
        "look whether that is true; nnU-Net has no metric but false positives for them",
    )


def _listed(values: "Iterator[float] | list[int]") -> str | None:
    found = [f"{value:.6g}" for value in values]
    return (", ".join(found[:5]) + (", ..." if len(found) > 5 else "")) or None
