"""The dataset card: what the numbers of a comparison were measured on, and under which plans and modifiers."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.words import count

NAMED = 12
"""Labels that a card names."""
_UNKNOWN = "not recorded"


def make_card(comparison: Comparison, about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what is known of a comparison's dataset.

    Args:
        comparison: on the dataset.
        about: of the record; its `datasets` have what the results do not tell. Older records have none.
    """
    known, shared = about.get("datasets", {}).get(comparison.dataset, {}), comparison.shared_modifiers
    return [
        ("Cases", _cases(comparison, known)),
        ("Groups", _groups(comparison, known)),
        ("Channels", ", ".join(known.get("channels", ())) or _UNKNOWN),
        ("Labels", _labels(comparison)),
        *([("Objects", _objects(comparison))] if len(comparison.objects) else []),
        ("Spacing", _spacing(known)),
        ("Splits", _splits(comparison)),
        ("Plans", ", ".join(comparison.algorithms.loc[list(comparison.ranked), "plans"].unique()) or _UNKNOWN),
        *([("Trainers", f"all with _{'_'.join(shared)}")] if shared else []),
    ]


def _cases(comparison: Comparison, known: Mapping[str, Any]) -> str:
    scored = f"{comparison.scored} scored of {comparison.cases}"
    return f"{scored}; {known['cases']} for training" if "cases" in known else scored


def _groups(comparison: Comparison, known: Mapping[str, Any]) -> str:
    found = []
    if not comparison.by_source.empty:
        sources = comparison.by_source.index.unique("source")
        own = ", ".join(f"{name} {comparison.scores.sources.count(name)}" for name in sources)
        found.append(f"{count(len(sources), 'source dataset')} ({own})")
    if "groups" in known:
        number = known["groups"]
        kept = f"{count(number, 'group')} of cases, kept together in the splits" if number else "none named"
        found.append("not known of test images" if comparison.split == "test" else kept)
    return "; ".join(found) or _UNKNOWN


def _labels(comparison: Comparison) -> str:
    present = comparison.present
    shown = [f"{comparison.labels[label]} (in {present[label]})" for label in present.index[:NAMED]]
    more = len(present) - NAMED
    return f"{', '.join(shown)}{f' and {more} more' if more > 0 else ''}" or _UNKNOWN


def _objects(comparison: Comparison) -> str:
    """Write how many true objects there are of each label that consists of them."""
    found = comparison.objects
    numbers = (found["objects_TP"] + found["objects_FN"]).groupby(level="label", sort=False).max()
    shown = [f"{comparison.labels[label]} {number:.0f}" for label, number in numbers.iloc[:NAMED].items()]
    more = len(numbers) - NAMED
    return f"{', '.join(shown)}{f' and those of {more} more' if more > 0 else ''}"


def _spacing(known: Mapping[str, Any]) -> str:
    spacing, shape = known.get("spacing_mm", ()), known.get("shape", ())
    if not spacing:
        return _UNKNOWN
    voxels = f", {_by(shape)} voxels" if shape else ""
    return f"{_by(spacing)} mm{voxels} (medians)"


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)  # noqa: RUF001 - a times sign


def _splits(comparison: Comparison) -> str:
    if comparison.split == "test":
        return "test images, which no training has seen"
    held_out = comparison.scores.folds.value_counts().sort_index()
    if held_out.empty:
        return _UNKNOWN
    numbers = [f"{cases}" for cases in held_out]
    if len(numbers) == 1:
        return f"fold {held_out.index[0]} alone, {count(held_out.iloc[0], 'case')} held out"
    same = len(set(numbers)) == 1
    each = f"{count(held_out.iloc[0], 'case')} held out in each" if same else f"{', '.join(numbers)} cases held out"
    return f"{count(len(numbers), 'fold')}, {each}"
