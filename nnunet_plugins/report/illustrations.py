"""Which figures a report shows, of what data and with which captions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nnunet_plugins.report import figures
from nnunet_plugins.report.comparison import Comparison, across_datasets, costs
from nnunet_plugins.report.drawing import Style, styles
from nnunet_plugins.report.findings import describe_p
from nnunet_plugins.report.statistics import case_scores, mean_with_ci, rank_distribution

LABEL_FIGURES = 6
"""With more labels than these, there is no figure per label."""


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


def make_looks(found: Sequence[Comparison]) -> dict[str, Style]:
    """Return how algorithms look, in all comparisons alike."""
    roles = {name: role for comparison in found for name, role in comparison.roles.items()}
    baselines = [name for name, role in roles.items() if role == "baseline"]
    return styles(list(roles), baselines[0] if baselines else "")


def make_key(title: str, taken: Sequence[str]) -> str:
    """Return a title as an anchor and file name that is not taken yet."""
    key = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower() or "comparison"
    while key in taken:
        key += "-x"
    return key


def illustrate(
    comparison: Comparison,
    board: pd.DataFrame,
    paired: pd.DataFrame,
    looks: Mapping[str, Style],
    key: str,
    *,
    with_curves: bool,
) -> list[Figure]:
    """Return the figures of a comparison; those without data are left out.

    Args:
        comparison: of which.
        board: its ranked results, which give the order.
        paired: how the others differ from the baseline in Dice, in the same order.
        looks: by algorithm.
        key: unique in the page; the figures' names begin with it.
        with_curves: show the training curves too.
    """
    scores = _ordered(comparison.scores("Dice", ensembles=True), board)
    some = " Of many cases some are drawn as points, spread evenly over the scores." * _is_thinned(scores)
    found: list[Figure] = []
    if scores.count().any():
        svg = figures.score_distribution(
            scores, mean_with_ci(scores), looks, metric="Dice", **_named(comparison, key, "dice", "Dice")
        )
        caption = (
            "Dice per case, as mean over the labels. Small points are cases, the shaded shape is their distribution, "
            f"the large marker their mean with its 95% bootstrap interval.{some}"
        )
        found.append(Figure(f"{key}-dice", svg, caption))
    if len(paired) and paired["n"].any():
        svg = figures.paired_differences(
            comparison.scores("Dice"),
            paired,
            str(comparison.baseline),
            looks,
            metric="Dice",
            **_named(comparison, key, "differences", "Paired differences in Dice"),
        )
        caption = (
            f"Difference in Dice from {comparison.baseline}, case by case: right of zero the algorithm is better. The "
            f"large marker is the mean difference with its 95% bootstrap interval.{some}"
        )
        found.append(Figure(f"{key}-differences", svg, caption))
    found += _label_figures(comparison, board, looks, key)
    if with_curves and len(comparison.curves):
        found.append(_training_curves(comparison, looks, key))
    found += _rank_figures(comparison, board, key)
    return found + _cost_figures(comparison, scores.mean(), looks, key)


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


def _rank_figures(comparison: Comparison, board: pd.DataFrame, key: str) -> list[Figure]:
    """Return how firm the ranks are, if there are ranks."""
    scores = _ordered(comparison.scores("Dice"), board)
    if scores.shape[1] < 2 or scores.dropna().empty:
        return []
    shares = rank_distribution(scores, higher_is_better=True)
    svg = figures.rank_shares(shares, **_named(comparison, key, "ranks", "How firm the ranks are"))
    caption = (
        "How firm the ranks are: cases are drawn anew 1000 times, and the bars show how often each algorithm then "
        "has which rank by mean Dice. A bar of one colour is a firm rank."
    )
    return [Figure(f"{key}-ranks", svg, caption)]


def _cost_figures(comparison: Comparison, dice: pd.Series, looks: Mapping[str, Style], key: str) -> list[Figure]:
    """Return Dice against memory and against time, where they are known."""
    if not len(comparison.runs):
        return []
    spent = costs(comparison)

    def values(column: str) -> str:
        return ", ".join(spent[column].replace("", pd.NA).dropna().unique())

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


def _ordered(scores: pd.DataFrame, board: pd.DataFrame) -> pd.DataFrame:
    """Return the columns in the order of the ranked results."""
    return scores[[name for name in board.index if name in scores.columns]]


def _is_thinned(scores: pd.DataFrame) -> bool:
    return len(scores) > figures.POINTS // max(1, scores.shape[1])


def _label_figures(comparison: Comparison, board: pd.DataFrame, looks: Mapping[str, Style], key: str) -> list[Figure]:
    """Return a figure for every label, all on one scale, if there are several and not too many."""
    labels = comparison.results[["label", "name"]].drop_duplicates("label")
    if not 1 < len(labels) <= LABEL_FIGURES:
        return []
    dice = comparison.results["Dice"].dropna()
    margin = 0.04 * (dice.max() - dice.min()) + 1e-3
    found = []
    for number, (label, name) in enumerate(labels.itertuples(index=False), start=1):
        scores = case_scores(comparison.results[comparison.results["label"] == label], "Dice")
        if not scores.count().any():
            continue
        shown = str(label) if pd.isna(name) or str(name) in ("", str(label)) else f"{name} (label {label})"
        svg = figures.score_distribution(
            _ordered(scores, board),
            mean_with_ci(scores),
            looks,
            metric="Dice",
            key=f"{key}-label-{number}",
            title=f"Dice of {shown}, {comparison.title}",
            limits=(dice.min() - margin, dice.max() + margin),
        )
        found.append(Figure(f"{key}-label-{number}", svg, f"Dice per case of {shown}; all labels have the same scale."))
    return found


def illustrate_overview(found: Sequence[Comparison], looks: Mapping[str, Style]) -> list[Figure]:
    """Return critical-difference diagrams, where there are datasets enough."""
    drawn: list[Figure] = []
    for title, result in across_datasets(found).items():
        name = make_key(f"all-{title}", [figure.name for figure in drawn])
        svg = figures.critical_difference(result, looks, key=name, title=f"Average ranks, {title}")
        caption = (
            f"Average ranks by Dice over {result.datasets} datasets, {title}: Friedman's "
            f"{describe_p(result.p)}; bars at the right join algorithms that cannot be told apart (Nemenyi, 0.05)."
        )
        drawn.append(Figure(name, svg, caption))
    return drawn
