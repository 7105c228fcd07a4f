"""Checks of all cases side by side: scales of intensity, types of numbers, spacings, labels, images that come twice."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median

from nnunet_plugins.doctor.cases import Facts
from nnunet_plugins.doctor.dataset import RawDataset, label_values
from nnunet_plugins.doctor.findings import Finding, of_cases, of_facts, ok, warning
from nnunet_plugins.doctor.images import CaseFacts
from nnunet_plugins.images.facts import Fact

SCALE = 10
"""An image whose spread is this many times larger or smaller than the median image's is on another scale."""
DEVIATIONS = 5
"""And so many robust standard deviations (1.4826 times the median deviation of the logarithms) away from it."""
SPACING = 3
"""A case whose spacing along an axis is this many times the median case's, or a part of it, is an outlier."""


def compare_cases(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    """Check all cases side by side."""
    sound = {name: case for name, case in facts.items() if len(case.channels) == len(dataset.channels)}
    found = [*_check_scales(dataset, sound), *_check_kinds(dataset, sound), *_check_spacings(sound)]
    yield from found
    yield from _check_orientations(dataset, facts)
    yield from _check_duplicates(sound)
    yield from _check_occurrence(dataset, facts)
    if sound and not found:
        yield ok("intensities, their types and the spacings of all cases are alike")


def _check_scales(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    for index, channel in enumerate(dataset.channels):
        images = {name: case.channels[index] for name, case in facts.items()}
        spreads = {name: image.spread for name, image in images.items() if image.spread > 0}
        if len(spreads) < 3:
            continue
        logs = {name: math.log(spread) for name, spread in spreads.items()}
        centre = median(logs.values())
        deviation = 1.4826 * median(abs(value - centre) for value in logs.values())
        limit = max(math.log(SCALE), DEVIATIONS * deviation)
        outliers = sorted(
            (name for name in logs if abs(logs[name] - centre) > limit), key=lambda name: -abs(logs[name] - centre)
        )
        details = {
            name: f"{images[name].low:.3g} to {images[name].high:.3g}, up to {images[name].highest:.3g}"
            for name in outliers
        }
        yield from of_cases(
            "warning",
            f"channel {index:04d}, {channel}: {{}} on another scale. 99% of the voxels of the median image lie within "
            f"{math.exp(centre):.3g}, theirs within over {math.exp(limit):.3g} times more or less; the highest voxel "
            f"is {max((images[name].highest for name in outliers), default=0):.3g}",
            details,
            "look where they come from and whether their values mean the same. nnU-Net's ZScoreNormalization evens "
            "the scale of each image out; CTNormalization and NoNormalization do not",
        )


def _check_kinds(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    for index, channel in enumerate(dataset.channels):
        kinds = {name: case.channels[index].kind for name, case in facts.items()}
        yield from _rare(
            kinds,
            f"channel {index:04d}, {channel}: images are stored as {{kinds}}",
            "look whether their values mean the same: types often change with the source, or with a rescaling",
        )
    stored = {name: case.segmentation.kind for name, case in facts.items() if case.segmentation}
    real = {name: kind for name, kind in stored.items() if "float" in kind}
    yield from of_cases(
        "warning", "{} whose segmentation is stored as real numbers", real, "store it as 8-bit unsigned integers"
    )


def _rare(kinds: Mapping[str, str], text: str, remedy: str) -> Iterator[Finding]:
    counts = Counter(kind for kind in kinds.values() if kind).most_common()
    if len(counts) > 1:
        shown = ", ".join(f"{kind} ({count} case{'s' * (count > 1)})" for kind, count in counts)
        usual = counts[0][0]
        cases = tuple(name for name, kind in kinds.items() if kind not in ("", usual))
        yield Finding("warning", text.format(kinds=shown), remedy, cases)


def _check_spacings(facts: Facts) -> Iterator[Finding]:
    spacings = {name: case.channels[0].grid.spacing for name, case in facts.items()}
    if len(spacings) < 3 or len({len(spacing) for spacing in spacings.values()}) > 1:
        return
    middle = [median(axis) for axis in zip(*spacings.values(), strict=True)]
    outliers = {
        name: " x ".join(f"{value:.3g}" for value in spacing)
        for name, spacing in spacings.items()
        if any(max(one / other, other / one) > SPACING for one, other in zip(spacing, middle, strict=True))
    }
    yield from of_cases(
        "warning",
        f"{{}} with a spacing over {SPACING} times larger or smaller than the median "
        f"{' x '.join(f'{value:.3g}' for value in middle)} mm",
        outliers,
        "look whether the spacing is true; nnU-Net resamples all cases to one",
    )


def _check_orientations(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    if dataset.reader is None or "Reorient" in dataset.reader.__name__:
        return
    codes = {name: case.channels[0].grid.codes for name, case in facts.items() if case.channels}
    counts = Counter(code for code in codes.values() if code).most_common()
    if len(counts) > 1:
        usual = counts[0][0]
        others = {name: code for name, code in codes.items() if code not in ("", usual)}
        yield from of_facts(
            Fact("other orientation", facts[name].channels[0].file, f"{code}, most are {usual}", name)
            for name, code in others.items()
        )


def duplicates(facts: Facts) -> list[list[str]]:
    """Return groups of cases whose images have the same content, in all channels."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, case in facts.items():
        if case.channels and case.is_whole and not _is_constant(case):
            groups.setdefault(tuple(one.digest for one in case.channels), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _is_constant(case: CaseFacts) -> bool:
    return all(one.lowest == one.highest for one in case.channels)


def _check_duplicates(facts: Facts) -> Iterator[Finding]:
    found = {group[0]: f"the same as {', '.join(group[1:])}" for group in duplicates(facts)}
    yield from of_cases(
        "warning",
        "{} whose images come again under other names",
        found,
        "remove the copies, or keep them in one fold: nnunet-plugins split --groups",
    )


def _check_occurrence(dataset: RawDataset, facts: Facts) -> Iterator[Finding]:
    # A label may be in what cannot be read.
    if dataset.labels is None or not facts or not all(case.segmentation for case in facts.values()):
        return
    present = {value for case in facts.values() if case.segmentation for value in case.segmentation.values}
    for value, name in label_values(dataset).items():
        if value not in present:
            yield warning(
                f"label {value}, {name}, is in no segmentation",
                "look whether it was lost on the way; a network cannot learn it",
            )
