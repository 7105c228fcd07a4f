"""Checks of each case: files that can be read, one grid for all of them, sound intensities, declared labels."""

from collections.abc import Callable, Iterator, Mapping

from nnunet_plugins.doctor.dataset import RawDataset
from nnunet_plugins.doctor.findings import Finding, of_cases, of_facts, ok
from nnunet_plugins.doctor.images import CaseFacts

Facts = Mapping[str, CaseFacts]
FAR_OUT = 100
"""A voxel this many times the spread of an image (0.5th to 99.5th percentile) above or below its median is far out."""


def check_cases(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    """Check every case by itself."""
    found = [fact for case in facts.values() for fact in case.facts]
    yield from of_facts(found)
    kinds = {fact.kind for fact in found}
    if all(case.is_whole for case in facts.values()):
        yield ok(f"all files of {len(facts)} cases can be read")
    if not kinds & {"other size", "other spacing", "spacing slightly off", "other place"}:
        yield ok("in every case, channels and segmentation have one grid")
    yield from check_channels(dataset, facts)
    yield from _check_intensities(facts)
    yield from _check_foreground(dataset, facts)


def _where(facts: Facts, find: Callable[[CaseFacts], str | None]) -> dict[str, str]:
    """Return the cases where something is found, with what it is."""
    found = {name: find(case) for name, case in facts.items()}
    return {name: detail for name, detail in found.items() if detail is not None}


def check_channels(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    """Check that all cases have as many channels as dataset.json names."""
    number = len(dataset.channels)

    def wrong_number(case: CaseFacts) -> str | None:
        return None if not case.is_whole or len(case.channels) == number else f"has {len(case.channels)}"

    yield from of_cases(
        "problem",
        f"{{}} with another number of channels than the {number} of 'channel_names'",
        _where(facts, wrong_number),
        "correct 'channel_names' in dataset.json, or the files",
    )


def _check_intensities(facts: Facts) -> Iterator[Finding]:
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


def _check_foreground(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    ignored = dataset.labels.ignore_label if dataset.labels else None

    def empty(case: CaseFacts) -> str | None:
        return "" if case.segmentation and not set(case.segmentation.values) - {0, ignored} else None

    yield from of_cases(
        "warning",
        "{} without any foreground in the segmentation",
        _where(facts, empty),
        "look whether that is true; nnU-Net has no metric but false positives for them",
    )
