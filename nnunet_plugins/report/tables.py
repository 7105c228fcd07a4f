"""The tables of a report as they are shown.

Numbers are rounded here, once for all kinds of files: Dice and NSD to three decimals, distances and volumes to two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import pandas as pd

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.equality import UNKNOWN, Equality
from nnunet_plugins.report.record import describe_role
from nnunet_plugins.report.statistics import LEVEL, CriticalDifference
from nnunet_plugins.report.verdicts import TOO_FEW
from nnunet_plugins.report.words import (
    DASH,
    DECIMALS,
    METRIC_NAMES,
    VERDICTS,
    show_count,
    show_needed,
    show_number,
    show_p,
    show_probability,
    show_volume,
)

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
    "Baseline",
    "Compared with",
    "Verdict",
)
"""Headings of columns that hold texts."""


@dataclass(frozen=True)
class Section:
    """A table as it is shown.

    Attributes:
        caption: what it shows.
        table: texts, under the headings to show.
    """

    caption: str
    table: pd.DataFrame


@lru_cache(maxsize=128)
def sections(comparison: Comparison) -> Sequence[Section]:
    """Return all tables of a comparison, rounded; page, Markdown and LaTeX have the same ones."""
    board = comparison.board
    found = [
        Section("Results, ranked by mean Dice", _show_results(comparison)),
        Section("Cases and flags", _show_cases(comparison)),
    ]
    beside = [_show_differences(table, metric, alone=True) for metric, table in comparison.beside.items()]
    if _is_tested(comparison.twins):
        caption = "Each network against its ablation twin, in Dice; Holm over these pairs"
        found.append(Section(caption, _show_pairs(comparison.twins, comparison.rope)))
    if any(map(len, beside)):
        caption = "One network for many datasets, against the same one on this dataset alone"
        found.append(Section(caption, pd.concat(beside, ignore_index=True)))
    if len(comparison.by_source):
        found.append(Section("Results by source dataset, each on its own cases", _show_sources(comparison)))
    if board["absent"].any():
        found.append(Section("Labels that the truth does not have", _show_false_findings(comparison.false_findings)))
    paired = [_show_differences(table, metric) for metric, table in comparison.paired.items()]
    if any(map(len, paired)):
        caption = f"Paired differences from {comparison.baseline}; wins, ties and losses count cases"
        found.append(Section(caption, pd.concat(paired, ignore_index=True)))
    if _is_tested(comparison.pairs):
        caption = "Every pair of ranked algorithms, in Dice; Holm over these pairs"
        found.append(Section(caption, _show_pairs(comparison.pairs, comparison.rope)))
    if len(comparison.components):
        found.append(Section("What the Dice varies by, as standard deviations", _show_components(comparison)))
    if len(comparison.labels) > 1:
        for metric, table in comparison.by_label.items():
            named = table.rename(columns=comparison.labels)
            found.append(Section(f"{METRIC_NAMES[metric]} by label", _show_labels(named, metric)))
    if len(comparison.runs):
        found.append(Section("Costs, as means over the trainings", _show_costs(comparison.costs)))
    return found


def _show_intervals(means: pd.Series, table: pd.DataFrame, decimals: int) -> list[str]:
    """Write means with their intervals, which one case alone does not have."""
    shown = []
    for numbers in zip(means, table["ci_low"], table["ci_high"], strict=True):
        mean, low, high = (show_number(number, decimals) for number in numbers)
        shown.append(mean if low == DASH else f"{mean} [{low}, {high}]")
    return shown


def _show_counts(table: pd.DataFrame) -> list[str]:
    """Write wins, ties and losses in one."""
    counts = table[["wins", "ties", "losses"]].astype("Int64")
    return [DASH if row.isna().any() else "/".join(map(str, row)) for _, row in counts.iterrows()]


def _show(values: pd.Series, write: Callable[..., str], *options: int) -> list[str]:
    return [write(value, *options) for value in values]


def _show_results(comparison: Comparison) -> pd.DataFrame:
    board = comparison.board
    own = {"Dice in summary.json": _show(board["nnunet_dice"], show_number, 3)} if comparison.has_own_mean else {}
    return pd.DataFrame(
        {
            "Place": _show(board["place"], show_number, 0),
            "Algorithm": board.index,
            "Dice [95% CI]": _show_intervals(board["Dice"], board, DECIMALS["Dice"]),
            **own,
            **{METRIC_NAMES[name]: _show(board[name], show_number, DECIMALS[name]) for name in METRICS[1:]},
            "Mean rank": _show(board["mean_rank"], show_number, 2),
            "p (Holm)": _show(board["p_holm"], show_p),
            "Wins/ties/losses": _show_counts(board),
        }
    )


def _show_cases(comparison: Comparison) -> pd.DataFrame:
    board = comparison.board
    counts = {"cases": "Cases", "lacking": "Missing", "missed": "Labels missed"}
    trainers = comparison.algorithms.loc[board.index, "trainer"]
    return pd.DataFrame(
        {
            "Algorithm": board.index,
            "Role": [describe_role(role, trainer) for role, trainer in zip(board["role"], trainers, strict=True)],
            **{heading: _show(board[name], show_count) for name, heading in counts.items()},
            **(
                {"Dice in summary.json": _show(board["nnunet_dice"], show_number, 3)} if comparison.has_own_mean else {}
            ),
            "Flags": list(board["flags"]),
        }
    )


def _show_sources(comparison: Comparison) -> pd.DataFrame:
    table = comparison.by_source
    differences = table[["difference_low", "difference_high"]].set_axis(["ci_low", "ci_high"], axis=1)
    compared = {
        f"Difference from {comparison.baseline} [95% CI]": _show_intervals(table["mean_difference"], differences, 3),
        "p (Holm)": _show(table["p_holm"], show_p),
        "Wins/ties/losses": _show_counts(table),
    }
    return pd.DataFrame(
        {
            "Source": table.index.get_level_values("source"),
            "Algorithm": table.index.get_level_values("algorithm"),
            "Cases": _show(table["cases"], show_number, 0),
            "Dice [95% CI]": _show_intervals(table["Dice"], table, DECIMALS["Dice"]),
            **{METRIC_NAMES[name]: _show(table[name], show_number, DECIMALS[name]) for name in METRICS[1:]},
            **(compared if table["mean_difference"].notna().any() else {}),
        }
    )


def _show_false_findings(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Absent labels": _show(table["absent"], show_number, 0),
            "False findings": _show(table["found"], show_count),
            "Share": _show(table["share"], show_number, 3),
            "Mean volume of a false finding (ml)": _show(table["volume_ml"], show_volume),
        }
    )


def _show_differences(table: pd.DataFrame, metric: str, *, alone: bool = False) -> pd.DataFrame:
    if table.empty:
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "Metric": METRIC_NAMES[metric],
            "Algorithm": table.index,
            **({"Compared with": table["alone"].to_numpy()} if alone else {}),
            "Cases": _show(table["n"], show_number, 0),
            "Difference [95% CI]": _show_intervals(table["mean_difference"], table, DECIMALS[metric]),
            "Effect size": _show(table["effect_size"], show_number, 2),
            "P(better)": _show(table["better"], show_probability),
            "p": _show(table["p"], show_p),
            "p (Holm)": _show(table["p_holm"], show_p),
            "Wins/ties/losses": _show_counts(table),
        }
    )


def _is_tested(table: pd.DataFrame) -> bool:
    """Return whether there are pairs with cases enough to say anything; the sentences tell of others."""
    return bool(table["better"].notna().any())


def _show_pairs(table: pd.DataFrame, rope: float) -> pd.DataFrame:
    """Write comparisons in Dice with the probabilities of the true difference, and what it would take to be sure."""
    tested = table["verdict"] != TOO_FEW
    repeats = table["needed_repeats"].where(tested)
    return pd.DataFrame(
        {
            "Algorithm": table.index.get_level_values("algorithm"),
            "Compared with": table.index.get_level_values("against"),
            "Verdict": [VERDICTS[verdict].format(rope=rope) for verdict in table["verdict"]],
            "Difference [95% CI]": _show_intervals(table["mean_difference"], table, DECIMALS["Dice"]),
            "p (Holm)": _show(table["p_holm"], show_p),
            "P(better)": _show(table["better"], show_probability),
            f"P(better by over {rope:g})": _show(table["ahead"], show_probability),
            f"P(within {rope:g})": _show(table["equivalent"], show_probability),
            f"P(worse by over {rope:g})": _show(table["behind"], show_probability),
            f"Cases to tell {rope:g}": _show(table["needed_cases"].where(tested), show_needed),
            **({f"Repeats to tell {rope:g}": _show(repeats, show_needed)} if repeats.notna().any() else {}),
        }
    )


def _show_components(comparison: Comparison) -> pd.DataFrame:
    table = comparison.components
    headings = {
        "case": "Cases",
        "fold": "Folds",
        "training": "Trainings",
        "rest": "A case from training to training",
        "error": "Standard error of the mean",
    }
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Trainings of a fold": _show(table["trainings"], show_number, 0),
            **{heading: _show(table[name], show_number, 4) for name, heading in headings.items()},
        }
    )


def _show_labels(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Write the means by label; whatever is more of, algorithms or labels, goes down the page."""
    shown = table.map(partial(show_number, decimals=DECIMALS[metric]))
    down, heading = (shown, "Algorithm") if len(shown) >= shown.shape[1] else (shown.T, "Label")
    names = down.index.to_series(name=heading)
    return pd.concat([names, down], axis=1).reset_index(drop=True)


def _show_costs(table: pd.DataFrame) -> pd.DataFrame:
    energy = table["energy_joules"] / 3.6e6
    repeated = (table["trainings"] != table["folds"]).any()
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Folds": _show(table["folds"], show_number, 0),
            **({"Trainings": _show(table["trainings"], show_number, 0)} if repeated else {}),
            "Parameters (M)": _show(table["parameters"] / 1e6, show_number, 2),
            "Forward pass (GFLOP)": _show(table["forward_flops"] / 1e9, show_number, 1),
            "Patch": list(table["patch_size"]),
            "Batch": _show(table["batch_size"], show_number, 0),
            "Epoch (s)": _show(table["seconds_per_epoch"], show_number, 1),
            "Training (h)": _show(table["training_seconds"] / 3600, show_number, 2),
            "Peak memory (GiB)": _show(table["peak_memory_bytes"] / 2**30, show_number, 2),
            "Memory is": list(table["memory_kind"]),
            **({"Energy (kWh)": _show(energy, show_number, 3)} if energy.notna().any() else {}),
            "Validation (M voxels/s)": _show(table["validation_voxels_per_second"] / 1e6, show_number, 2),
            "Device": list(table["device"]),
        }
    )


def show_across(result: CriticalDifference) -> Section:
    """Write the average ranks over datasets."""
    caption = (
        f"Average ranks over {result.datasets} datasets; Friedman's p: {show_p(result.p)}; Nemenyi's critical "
        f"difference at {LEVEL:g}: {show_number(result.difference, 2)}"
    )
    ranked = _show(result.average_ranks, show_number, 2)
    return Section(caption, pd.DataFrame({"Algorithm": result.average_ranks.index, "Average rank": ranked}))


def show_inequalities(equality: Equality) -> pd.DataFrame:
    """Write what differs, the forbidden first, and what is not known."""
    found = sorted(equality.differences, key=lambda found: found["allowed"])
    answers = ["unknown" if UNKNOWN in (one["value"], one["baseline"]) else "yes" for one in found]
    comparable = [answer if one["allowed"] else "NO" for one, answer in zip(found, answers, strict=True)]
    return pd.DataFrame(
        {
            "Algorithm": [one["algorithm"] for one in found],
            "Setting": [one["what"] for one in found],
            "Value": [one["value"] for one in found],
            "Compared with": [one["baseline"] for one in found],
            "Whose": [equality.name(one["against"]) for one in found],
            "Comparable": comparable,
        }
    )


def describe_equality(equality: Equality) -> str:
    """Say what was the same in all trainings."""
    same = ", ".join(equality.same) or "nothing"
    return f"The same in all trainings: {same}. " + (
        "What differs or is not known:" if equality.differences else "Nothing else differs."
    )
