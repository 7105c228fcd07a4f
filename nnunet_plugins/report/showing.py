"""What stands in the tables of a report: texts, under the headings to show, and the best ones marked.

Numbers are rounded here, once for all kinds of files: Dice and NSD to three decimals, distances and volumes to two.
`tables.py` says which tables there are.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.objects import COUNTS, QUALITIES
from nnunet_plugins.metrics.table import DISTANCES, METRICS
from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.roles import describe_roles
from nnunet_plugins.report.scores import VOLUME
from nnunet_plugins.report.statistics import DECIMALS as SAME
from nnunet_plugins.report.statistics import HIGHER_IS_BETTER, LEVEL, CriticalDifference
from nnunet_plugins.report.words import (
    DASH,
    DECIMALS,
    NOWHERE,
    UNMATCHED,
    heading,
    show_count,
    show_number,
    show_p,
    show_penalised,
    show_volume,
)

COVERED = "Interval over"
TEXTS = (
    "Algorithm",
    "Source",
    "Role",
    "Flags",
    "Metric",
    "Label",
    "Patch",
    "Memory is",
    "Device",
    "Setting",
    "Value",
    "Compared with",
    "Verdict",
    "Trainings vary",
    COVERED,
)
"""Headings of columns that hold texts."""
DICE = f"{heading('Dice')} [95% CI]"
SUMMARY = f"{heading('Dice')} in summary.json"
RANK = "Mean rank\N{NO-BREAK SPACE}↓"


@dataclass(frozen=True)
class Section:
    """A table as it is shown.

    Attributes:
        caption: what it shows.
        table: texts, under the headings to show.
        best: by heading, the rows of the best numbers, which are shown in bold.
    """

    caption: str
    table: pd.DataFrame
    best: Mapping[str, Collection[int]] = field(default_factory=dict)


def show_intervals(means: pd.Series, table: pd.DataFrame, decimals: int) -> list[str]:
    """Write means with their intervals, which one case alone does not have."""
    shown = []
    for numbers in zip(means, table["ci_low"], table["ci_high"], strict=True):
        mean, low, high = (show_number(number, decimals) for number in numbers)
        shown.append(mean if low == DASH else f"{mean} [{low}, {high}]")
    return shown


def show_counts(table: pd.DataFrame) -> list[str]:
    """Write wins, ties and losses in one."""
    counts = table[["wins", "ties", "losses"]].astype("Int64")
    return [DASH if row.isna().any() else "/".join(map(str, row)) for _, row in counts.iterrows()]


def show_all(values: pd.Series, write: Callable[..., str], *options: int) -> list[str]:
    """Write all values in one way."""
    return [write(value, *options) for value in values]


def show_results(comparison: Comparison, caption: str, board: pd.DataFrame) -> Section:
    """Write some of the board's rows, the best of those that are ranked in bold."""
    own = {SUMMARY: show_all(board["nnunet_dice"], show_number, 3)} if comparison.has_own_mean else {}
    table = pd.DataFrame(
        {
            "Place": show_all(board["place"], show_number, 0),
            "Algorithm": board.index,
            DICE: show_intervals(board["Dice"], board, DECIMALS["Dice"]),
            **_show_covered(comparison, board.index),
            **own,
            **_show_means(board),
            **{heading(name): _show_quality(comparison, board, name) for name in shown_qualities(board)},
            RANK: show_all(board["mean_rank"], show_number, 2),
            "p (Holm)": show_all(board["p_holm"], show_p),
            "Wins/ties/losses": show_counts(board),
        }
    )
    ranked = board["place"].notna().to_numpy()
    metrics = [*METRICS[1:], *shown_qualities(board)]
    best = {heading(metric): find_best(board[metric].where(ranked), metric) for metric in metrics}
    return Section(caption, table, {DICE: find_best(board["Dice"].where(ranked), "Dice", placed=True), **best})


def _show_covered(comparison: Comparison, names: "pd.Index[str]") -> dict[str, list[str]]:
    """Write what the intervals of means are over, where that is not the same for all: repeats make them wider."""
    over = f"{comparison.scores.unit}s"
    having = [name for name in names if name in comparison.dice.index and comparison.dice["ci_low"].notna()[name]]
    alone = {name for name in having if name in comparison.bootstrapped}
    if not alone or len(alone) == len(having):
        return {}
    shown = {name: over if name in alone else f"{over}, trainings" for name in having}
    return {COVERED: [shown.get(name, DASH) for name in names]}


def _show_means(board: pd.DataFrame) -> dict[str, list[str]]:
    """Write the means of all metrics but Dice; of distances also how many of the values are penalties."""
    shown = {}
    for metric in METRICS[1:]:
        penalties = board["missed"] if metric in DISTANCES else np.zeros(len(board))
        pairs = zip(board[metric], penalties, strict=True)
        shown[heading(metric)] = [show_penalised(mean, DECIMALS[metric], number) for mean, number in pairs]
    return shown


def shown_qualities(board: pd.DataFrame) -> list[str]:
    """Return the qualities of objects that stand beside the metrics; SQ is in the table of objects alone."""
    return [name for name in QUALITIES if name in board and name != "objects_SQ"]


def _show_quality(comparison: Comparison, board: pd.DataFrame, quality: str) -> list[str]:
    """Write means over labels; nobody has them where the truth has no object in any case."""
    objects = comparison.objects
    nowhere = not (objects["objects_TP"] + objects["objects_FN"]).any()
    known = objects.index.unique("algorithm") if nowhere else ()
    return [
        NOWHERE if name in known else show_number(value, DECIMALS[quality]) for name, value in board[quality].items()
    ]


def show_objects(comparison: Comparison, caption: str) -> Section:
    """Write what is found of the objects of each label, and how well, the best of those that are ranked in bold."""
    found = comparison.objects
    label, names = (found.index.get_level_values(level) for level in ("label", "algorithm"))
    true, pairs = found["objects_TP"] + found["objects_FN"], found["objects_TP"]
    shown: dict[str, list[str]] = {
        "Label": [comparison.labels[one] for one in label],
        "Algorithm": list(names),
        "True objects": show_all(true, show_number, 0),
        **{name.removeprefix("objects_"): show_all(found[name], show_count) for name in COUNTS},
    }
    best = {}
    ranked = names.isin(comparison.ranked)
    for quality in QUALITIES:
        texts = show_all(found[quality], show_number, DECIMALS[quality])
        if quality == "objects_SQ":
            texts = [UNMATCHED if number == 0 else text for number, text in zip(pairs, texts, strict=True)]
        texts = [NOWHERE if number == 0 else text for number, text in zip(true, texts, strict=True)]
        shown[heading(quality)] = texts
        rows = [
            find_best(found[quality].where(ranked & (label == one) & (true > 0)), quality) for one in label.unique()
        ]
        best[heading(quality)] = [row for chosen in rows for row in chosen]
    return Section(caption, pd.DataFrame(shown), best)


def find_best(means: "pd.Series[float]", metric: str, *, placed: bool = False) -> list[int]:
    """Return the rows of the best values, as they are rounded to be shown; none of a single value.

    Args:
        means: the values.
        metric: what they are.
        placed: they are what places are made of, which tell more than rounded values.
    """
    rounded = means.astype(float).round(SAME if placed else DECIMALS[metric])
    best = rounded.max() if HIGHER_IS_BETTER[metric] else rounded.min()
    return list(np.flatnonzero(rounded == best)) if rounded.count() > 1 else []


def show_cases(comparison: Comparison) -> pd.DataFrame:
    """Write how many cases of whom count, and the flags."""
    board = comparison.board
    counts = {"cases": "Cases", "lacking": "Missing", "missed": "Labels missed"}
    return pd.DataFrame(
        {
            "Algorithm": board.index,
            "Role": list(describe_roles(comparison).values()),
            **{heading: show_all(board[name], show_count) for name, heading in counts.items()},
            **({SUMMARY: show_all(board["nnunet_dice"], show_number, 3)} if comparison.has_own_mean else {}),
            "Flags": list(board["flags"]),
        }
    )


def show_sources(comparison: Comparison) -> pd.DataFrame:
    """Write the results of each source of a merged dataset."""
    table = comparison.by_source
    differences = table[["difference_low", "difference_high"]].set_axis(["ci_low", "ci_high"], axis=1)
    compared = {
        f"Difference from {comparison.baseline} [95% CI]": show_intervals(table["mean_difference"], differences, 3),
        "p (Holm)": show_all(table["p_holm"], show_p),
        "Wins/ties/losses": show_counts(table),
    }
    return pd.DataFrame(
        {
            "Source": table.index.get_level_values("source"),
            "Algorithm": table.index.get_level_values("algorithm"),
            "Cases": show_all(table["cases"], show_number, 0),
            DICE: show_intervals(table["Dice"], table, DECIMALS["Dice"]),
            **_show_means(table),
            **(compared if table["mean_difference"].notna().any() else {}),
        }
    )


def show_false_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Write what is found of labels that the truth does not have."""
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Absent labels": show_all(table["absent"], show_number, 0),
            "False findings": show_all(table["found"], show_count),
            "Share": show_all(table["share"], show_number, 3),
            "Mean volume of a false finding (ml)": show_all(table["volume_ml"], show_volume),
        }
    )


def show_labels(comparison: Comparison, metric: str, caption: str) -> Section:
    """Write the means by label, whatever is more of, algorithms or labels, down the page.

    What is in no truth, and what an algorithm never finds, is said in words.
    """
    means = comparison.by_label[metric]
    shown = pd.DataFrame(
        {label: _show_label(means[label], comparison, metric) for label in means}, index=means.index, dtype=object
    )
    bold = pd.DataFrame(False, means.index, means.columns)
    for label in means:
        ranked = means[label].where(means.index.isin(comparison.ranked))
        bold.iloc[find_best(ranked, metric), means.columns.get_loc(label)] = True
    first = "Algorithm"
    if len(shown) < shown.shape[1]:
        shown, bold, first = shown.T.rename(index=comparison.labels), bold.T, "Label"
    else:
        shown = shown.rename(columns=comparison.labels)
    best = {str(name): np.flatnonzero(bold.iloc[:, n]).tolist() for n, name in enumerate(shown.columns)}
    names = shown.index.to_series(name=first)
    return Section(caption, pd.concat([names, shown], axis=1).reset_index(drop=True), best)


def _show_label(means: "pd.Series[float]", comparison: Comparison, metric: str) -> list[str]:
    label, decimals = str(means.name), DECIMALS[metric]
    present = comparison.present[label]
    if not present and metric != VOLUME:
        return [NOWHERE] * len(means)
    shown = []
    for mean, missed in zip(means, comparison.missed_by_label[label], strict=True):
        if present and missed == present and metric != VOLUME:
            shown.append(f"{show_number(mean, decimals)} (never found)")
        else:
            shown.append(show_penalised(mean, decimals, missed if metric in DISTANCES else 0))
    return shown


def show_folds(comparison: Comparison) -> pd.DataFrame:
    """Write what is found in each fold, and the mean and deviation of the folds' means."""
    means, deviations = (comparison.by_fold[name].unstack() for name in ("mean", "sd"))
    order = [name for name in comparison.board.index if name in means.index]
    columns = {f"Fold {fold}": (means[fold], deviations[fold]) for fold in means}
    columns["Means of the folds"] = means.mean(axis=1), means.std(axis=1)
    shown = {
        name: [
            f"{show_number(mean[row], 3)} ± {show_number(deviation[row], 3)}" if mean[row] == mean[row] else DASH
            for row in order
        ]
        for name, (mean, deviation) in columns.items()
    }
    return pd.DataFrame({"Algorithm": order, **shown})


def show_costs(table: pd.DataFrame) -> pd.DataFrame:
    """Write what the trainings cost."""
    energy = table["energy_joules"] / 3.6e6
    repeated = (table["trainings"] != table["folds"]).any()
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Folds": show_all(table["folds"], show_number, 0),
            **({"Trainings": show_all(table["trainings"], show_number, 0)} if repeated else {}),
            "Parameters (M)": show_all(table["parameters"] / 1e6, show_number, 2),
            "Forward pass (GFLOP)": show_all(table["forward_flops"] / 1e9, show_number, 1),
            "Patch": list(table["patch_size"]),
            "Batch": show_all(table["batch_size"], show_number, 0),
            "Epoch (s)": show_all(table["seconds_per_epoch"], show_number, 1),
            "Training (h)": show_all(table["training_seconds"] / 3600, show_number, 2),
            "Peak memory (GiB)": show_all(table["peak_memory_bytes"] / 2**30, show_number, 2),
            "Memory is": list(table["memory_kind"]),
            **({"Energy (kWh)": show_all(energy, show_number, 3)} if energy.notna().any() else {}),
            "Validation (M voxels/s)": show_all(table["validation_voxels_per_second"] / 1e6, show_number, 2),
            "Device": list(table["device"]),
        }
    )


def show_across(result: CriticalDifference) -> Section:
    """Write the average ranks over datasets."""
    caption = (
        f"Average ranks over {result.datasets} datasets; Friedman's p: {show_p(result.p)}; Nemenyi's critical "
        f"difference at {LEVEL:g}: {show_number(result.difference, 2)}"
    )
    ranked = show_all(result.average_ranks, show_number, 2)
    return Section(caption, pd.DataFrame({"Algorithm": result.average_ranks.index, "Average rank": ranked}))
