"""Which figures a report shows, of what data and with which captions."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from nnunet_plugins.report import figures
from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.drawing import Style, styles
from nnunet_plugins.report.gates import gates_in, gates_over_training, wired
from nnunet_plugins.report.statistics import DRAWS, CriticalDifference
from nnunet_plugins.report.verdicts import MIXED, TOO_FEW
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
    is_thinned = len(scores) > figures.POINTS // max(1, scores.shape[1])
    some = " Of many cases some are drawn as points, spread evenly over the scores." * is_thinned
    found: list[Figure] = []
    if scores.count().any():
        caption = (
            "Dice per case, as mean over the labels that its truth has. Small points are cases, the shaded shape is "
            f"their distribution, the large marker their mean with its 95% interval.{some}"
        )
        draw = partial(figures.score_distribution, scores, comparison.dice, looks, metric="Dice")
        found.append(_figure(draw, comparison, f"{key}-dice", "Dice", caption))
    if len(paired) and paired["n"].any():
        caption = (
            f"Difference in Dice from {comparison.baseline}, case by case: right of zero the algorithm is better. The "
            f"large marker is the mean difference with its 95% interval.{some}"
        )
        draw = partial(figures.paired_differences, scores, paired, str(comparison.baseline), looks, metric="Dice")
        found.append(_figure(draw, comparison, f"{key}-differences", "Paired differences in Dice", caption))
    found += _label_figures(comparison, looks, key)
    if with_curves and len(comparison.curves):
        found.append(_training_curves(comparison, looks, key))
        found += _gate_figures(comparison, key)
    found += _pair_figures(comparison, looks, key)
    found += _rank_figures(comparison, key)
    return found + _cost_figures(comparison, looks, key)


def _figure(draw: Callable[..., str], comparison: Comparison, name: str, title: str, caption: str) -> Figure:
    """Return what a function draws, which has its data already."""
    return Figure(name, draw(key=name, title=f"{title}, {comparison.title}"), caption)


def _training_curves(comparison: Comparison, looks: Mapping[str, Style], key: str) -> Figure:
    folds = int(comparison.curves["fold"].nunique())
    thin = f"Thin: {folds} folds; thick: their mean." if folds > 1 else "One fold."
    if len(comparison.curves["algorithm"].unique()) > figures.FOLD_LINES and folds > 1:
        thin = f"Means of {folds} folds."
    caption = (
        f"Training curves of all runs. {thin} Pseudo Dice is nnU-Net's estimate from patches during training; it is "
        "not the Dice of the other figures."
    )
    draw = partial(figures.training_curves, comparison.curves, looks)
    return _figure(draw, comparison, f"{key}-curves", "Training curves", caption)


def _gate_figures(comparison: Comparison, key: str) -> list[Figure]:
    """Return how the gates develop, if there are networks with gates."""
    names = gates_in(comparison.curves)
    if not names:
        return []
    caption = (
        "Every gate of the network over the training, the mean of all its trainings. A gate weighs a connection: at 1 "
        "it is open, at 0 closed, and it starts near one half. Gates that stand still at first are held by the recipe."
    )
    draw = partial(gates_over_training, comparison.curves, names)
    over_training = _figure(draw, comparison, f"{key}-gates", "Gates over the training", caption)
    caption = (
        "The fabric as its gates wire it at the end of the training: columns of cells from left to right, the finest "
        "scale on top, and the wider a connection the more open its gate. Means of all trainings."
    )
    draw = partial(wired, comparison.curves, names)
    at_the_end = _figure(draw, comparison, f"{key}-wiring", "Gates at the end of the training", caption)
    return [figure for figure in (over_training, at_the_end) if figure.svg]


def _rank_figures(comparison: Comparison, key: str) -> list[Figure]:
    """Return how firm the ranks are, if there are ranks."""
    if comparison.rank_shares.empty:
        return []
    drawn = f"{comparison.scores.unit}s" + ", and the chance in trainings as far as it is known," * (
        len(comparison.repeated) > 0
    )
    caption = (
        f"How firm the ranks are: {drawn} are drawn anew {DRAWS} times, and the bars show how often each algorithm "
        "then has which rank by mean Dice. A bar of one colour is a firm rank."
    )
    draw = partial(figures.rank_shares, comparison.rank_shares)
    return [_figure(draw, comparison, f"{key}-ranks", "How firm the ranks are", caption)]


def _pair_figures(comparison: Comparison, looks: Mapping[str, Style], key: str) -> list[Figure]:
    """Return how likely each algorithm is better than each other one, if there are a few, and cases enough."""
    pairs, ranked = comparison.pairs, list(comparison.ranked)
    if not 2 < len(ranked) <= MATRIX or not pairs["better"].notna().any():
        return []

    def square(values: "pd.Series[Any]") -> pd.DataFrame:
        return values.unstack().reindex(index=ranked, columns=ranked)

    better, signs = square(pairs["better"].astype(float)), pairs["verdict"].map(SIGNS).fillna("")
    mirrored = square(signs.replace(_MIRROR)).T
    draw = partial(figures.pair_matrix, better.fillna(1 - better.T), square(signs).fillna(mirrored).fillna(""), looks)
    few = (pairs["verdict"] == TOO_FEW).any()
    mixed = (pairs["verdict"] == MIXED).any()
    untold = (
        "they cannot be told apart"
        + ", or one is better case by case, not on average" * bool(mixed)
        + ", or cases are too few for so many tests" * bool(few)
    )
    caption = (
        "Every pair: the number is the probability, in %, that the algorithm of the row has the higher mean Dice, "
        "given these results. ▲ ahead and ▼ behind after Holm over all pairs, ≈ equivalent within "
        f"{comparison.rope:g}; without a sign {untold}. A table has the same in words."
    )
    return [_figure(draw, comparison, f"{key}-pairs", "Every pair", caption)]


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
        heading = unit[0].upper() + unit[1:]
        draw = partial(figures.score_against_cost, dice, spent[column] / factor, looks, metric="Dice", unit=heading)
        caption = f"Mean Dice against {unit} ({of}; {values('device')}), mean of the folds: the upper left is best."
        found.append(_figure(draw, comparison, f"{key}-{kind}", f"Dice against {unit}", caption))
    return found


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
        limits = (low - margin, high + margin)
        draw = partial(figures.score_distribution, scores, means, looks, metric="Dice", limits=limits)
        caption = f"Dice per case of {shown}, where the truth has it; all labels have the same scale."
        found.append(_figure(draw, comparison, name, f"Dice of {shown}", caption))
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
