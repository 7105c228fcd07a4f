"""Which figures a report shows, of what data and with which captions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nnunet_plugins.report import figures
from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.drawing import Style, styles
from nnunet_plugins.report.gates import gates_in, gates_over_training, wired
from nnunet_plugins.report.statistics import DRAWS, CriticalDifference
from nnunet_plugins.report.words import SIGNS, describe_p

MATRIX = 14
"""With more algorithms than these, there is no figure of all pairs, only their table."""

_MIRROR = {"▲": "▼", "▼": "▲"}


@dataclass(frozen=True)
class Figure:
    """One figure of the page, which is also a file of its own.

    Attributes:
        name: of its file, without ending; begins its ids.
        svg: the figure.
        caption: what it shows.
    """

    name: str
    svg: str
    caption: str

    @property
    def shape(self) -> str:
        """Width and height, as CSS writes an aspect ratio."""
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        return f"{found[1]} / {found[2]}" if found else "auto"


def make_looks(found: Sequence[Comparison]) -> dict[str, Style]:
    """Return how algorithms look, in all comparisons alike."""
    roles = {str(name): role for comparison in found for name, role in comparison.algorithms["role"].items()}
    baselines = [name for name, role in roles.items() if role == "baseline"]
    return styles(list(roles), baselines[0] if baselines else "")


def make_key(title: str, taken: Sequence[str]) -> str:
    """Return a title as an anchor and file name that is not taken yet."""
    key = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower() or "comparison"
    while key in taken:
        key += "-x"
    return key


def illustrate(comparison: Comparison, looks: Mapping[str, Style], key: str, *, with_curves: bool) -> list[Figure]:
    """Return the figures of a comparison; those without data are left out.

    Args:
        comparison: of which.
        looks: by algorithm.
        key: unique in the page; the figures' names begin with it.
        with_curves: show the training curves too.
    """
    scores, paired = comparison.by_case["Dice"], comparison.paired["Dice"]
    some = " Of many cases some are drawn as points, spread evenly over the scores." * _is_thinned(scores)
    found: list[Figure] = []
    if scores.count().any():
        svg = figures.score_distribution(
            scores, comparison.dice, looks, metric="Dice", **_named(comparison, key, "dice", "Dice")
        )
        caption = (
            "Dice per case, as mean over the labels that its truth has. Small points are cases, the shaded shape is "
            f"their distribution, the large marker their mean with its 95% interval.{some}"
        )
        found.append(Figure(f"{key}-dice", svg, caption))
    if len(paired) and paired["n"].any():
        svg = figures.paired_differences(
            scores,
            paired,
            str(comparison.baseline),
            looks,
            metric="Dice",
            **_named(comparison, key, "differences", "Paired differences in Dice"),
        )
        caption = (
            f"Difference in Dice from {comparison.baseline}, case by case: right of zero the algorithm is better. The "
            f"large marker is the mean difference with its 95% interval.{some}"
        )
        found.append(Figure(f"{key}-differences", svg, caption))
    found += _label_figures(comparison, looks, key)
    if with_curves and len(comparison.curves):
        found.append(_training_curves(comparison, looks, key))
        found += _gate_figures(comparison, key)
    found += _pair_figures(comparison, looks, key)
    found += _rank_figures(comparison, key)
    return found + _cost_figures(comparison, looks, key)


def _named(comparison: Comparison, key: str, kind: str, title: str) -> dict[str, Any]:
    """Return what every figure is told besides its data."""
    return {"key": f"{key}-{kind}", "title": f"{title}, {comparison.title}"}


def _training_curves(comparison: Comparison, looks: Mapping[str, Style], key: str) -> Figure:
    svg = figures.training_curves(comparison.curves, looks, **_named(comparison, key, "curves", "Training curves"))
    folds = int(comparison.curves["fold"].nunique())
    thin = f"Thin: {folds} folds; thick: their mean." if folds > 1 else "One fold."
    if len(comparison.curves["algorithm"].unique()) > figures.FOLD_LINES and folds > 1:
        thin = f"Means of {folds} folds."
    caption = (
        f"Training curves of all runs. {thin} Pseudo Dice is nnU-Net's estimate from patches during training; it is "
        "not the Dice of the other figures."
    )
    return Figure(f"{key}-curves", svg, caption)


def _gate_figures(comparison: Comparison, key: str) -> list[Figure]:
    """Return how the gates develop, if there are networks with gates."""
    names = gates_in(comparison.curves)
    if not names:
        return []
    svg = gates_over_training(comparison.curves, names, **_named(comparison, key, "gates", "Gates over the training"))
    caption = (
        "Every gate of the network over the training, the mean of all its trainings. A gate weighs a connection: at 1 "
        "it is open, at 0 closed, and it starts near one half. Gates that stand still at first are held by the recipe."
    )
    found = [Figure(f"{key}-gates", svg, caption)]
    named = _named(comparison, key, "wiring", "Gates at the end of the training")
    if wiring := wired(comparison.curves, names, **named):
        caption = (
            "The fabric as its gates wire it at the end of the training: columns of cells from left to right, the "
            "finest scale on top, and the wider a connection the more open its gate. Means of all trainings."
        )
        found.append(Figure(f"{key}-wiring", wiring, caption))
    return found


def _rank_figures(comparison: Comparison, key: str) -> list[Figure]:
    """Return how firm the ranks are, if there are ranks."""
    if comparison.rank_shares.empty:
        return []
    svg = figures.rank_shares(comparison.rank_shares, **_named(comparison, key, "ranks", "How firm the ranks are"))
    drawn = "cases, and the chance in trainings as far as it is known," if len(comparison.components) else "cases"
    caption = (
        f"How firm the ranks are: {drawn} are drawn anew {DRAWS} times, and the bars show how often each algorithm "
        "then has which rank by mean Dice. A bar of one colour is a firm rank."
    )
    return [Figure(f"{key}-ranks", svg, caption)]


def _pair_figures(comparison: Comparison, looks: Mapping[str, Style], key: str) -> list[Figure]:
    """Return how likely each algorithm is better than each other one, if there are a few, and cases enough."""
    pairs, ranked = comparison.pairs, list(comparison.ranked)
    if not 2 < len(ranked) <= MATRIX or not pairs["better"].notna().any():
        return []

    def square(values: "pd.Series[Any]") -> pd.DataFrame:
        return values.unstack().reindex(index=ranked, columns=ranked)

    better, signs = square(pairs["better"].astype(float)), pairs["verdict"].map(SIGNS).fillna("")
    mirrored = square(signs.replace(_MIRROR)).T
    svg = figures.pair_matrix(
        better.fillna(1 - better.T),
        square(signs).fillna(mirrored).fillna(""),
        looks,
        **_named(comparison, key, "pairs", "Every pair"),
    )
    caption = (
        "Every pair: the number is the probability, in %, that the algorithm of the row has the higher mean Dice, "
        "given these results. ▲ ahead and ▼ behind after Holm over all pairs, ≈ equivalent within "
        f"{comparison.rope:g}; without a sign they cannot be told apart. A table has the same in words."
    )
    return [Figure(f"{key}-pairs", svg, caption)]


def _cost_figures(comparison: Comparison, looks: Mapping[str, Style], key: str) -> list[Figure]:
    """Return Dice against memory and against time, where they are known."""
    if not len(comparison.runs):
        return []
    spent, dice = comparison.costs, comparison.board["Dice"]

    def values(column: str) -> str:
        return ", ".join(value for value in spent[column].unique() if value)

    found = []
    for kind, column, unit, factor, of in (
        ("memory", "peak_memory_bytes", "peak memory in GiB", 2**30, values("memory_kind")),
        ("time", "seconds_per_epoch", "seconds per epoch", 1, "training"),
    ):
        if not (dice * spent[column]).notna().any():
            continue
        svg = figures.score_against_cost(
            dice,
            spent[column] / factor,
            looks,
            metric="Dice",
            unit=unit[0].upper() + unit[1:],
            **_named(comparison, key, kind, f"Dice against {unit}"),
        )
        caption = f"Mean Dice against {unit} ({of}; {values('device')}), mean of the folds: the upper left is best."
        found.append(Figure(f"{key}-{kind}", svg, caption))
    return found


def _is_thinned(scores: pd.DataFrame) -> bool:
    return len(scores) > figures.POINTS // max(1, scores.shape[1])


def _label_figures(comparison: Comparison, looks: Mapping[str, Style], key: str) -> list[Figure]:
    """Return a figure for every label, all on one scale, if there are several and not too many."""
    if not comparison.label_dice:
        return []
    low = min(table.min(axis=None) for table, _ in comparison.label_dice.values())
    high = max(table.max(axis=None) for table, _ in comparison.label_dice.values())
    margin = 0.04 * (high - low) + 1e-3
    found = []
    for label, (scores, means) in comparison.label_dice.items():
        name = f"{key}-label-{1 + list(comparison.labels).index(label)}"
        called = comparison.labels[label]
        shown = label if called == label else f"{called} (label {label})"
        svg = figures.score_distribution(
            scores,
            means,
            looks,
            metric="Dice",
            key=name,
            title=f"Dice of {shown}, {comparison.title}",
            limits=(low - margin, high + margin),
        )
        caption = f"Dice per case of {shown}, where the truth has it; all labels have the same scale."
        found.append(Figure(name, svg, caption))
    return found


def illustrate_overview(across: Mapping[str, CriticalDifference], looks: Mapping[str, Style]) -> list[Figure]:
    """Return critical-difference diagrams, where there are datasets enough."""
    drawn: list[Figure] = []
    for title, result in across.items():
        name = make_key(f"all-{title}", [figure.name for figure in drawn])
        svg = figures.critical_difference(result, looks, key=name, title=f"Average ranks, {title}")
        caption = (
            f"Average ranks by Dice over {result.datasets} datasets, {title}: Friedman's "
            f"{describe_p(result.p)}; bars at the right join algorithms that cannot be told apart (Nemenyi, 0.05)."
        )
        drawn.append(Figure(name, svg, caption))
    return drawn
