"""What a comparison has found, in plain words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, MIXED
from nnunet_plugins.report.words import count, describe_p, show_number


def describe_difference(name: str, row: Mapping[str, Any], baseline: str) -> str:
    """Say in a sentence how an algorithm differs from the baseline, and whether that may be chance.

    Args:
        name: of the algorithm.
        row: of `Comparison.paired`, of Dice.
        baseline: its name.
    """
    if pd.isna(row["mean_difference"]):
        return f"{name} has no case in common with {baseline}."
    cases = count(int(row["n"]), "case")
    interval = f"95% CI {show_number(row['ci_low'], 3)} to {show_number(row['ci_high'], 3)}, "
    proof = f"({'' if pd.isna(row['ci_low']) else interval}{describe_p(row['p_holm'])}, Holm) on {cases}"
    difference = row["mean_difference"]
    signed = ("+" if difference > 0 else "") + show_number(difference, 3)
    if row["verdict"] == MIXED:
        most = "better" if row["effect_size"] > 0 else "worse"
        return f"Case by case {name} is {most} than {baseline}, yet its mean differs by {signed} Dice {proof}."
    if row["verdict"] in (AHEAD, BEHIND):
        where = "ahead of" if row["verdict"] == AHEAD else "behind"
        amount = show_number(abs(difference), 3) if abs(difference) >= 0.0005 else "less than 0.001"
        return f"{name} is {where} {baseline} by {amount} Dice {proof}."
    return f"{name} and {baseline} cannot be told apart: mean difference {signed} Dice {proof}."


def describe_all(comparison: Comparison) -> list[str]:
    """Return a sentence for every algorithm that is compared with the baseline, the best first."""
    paired = comparison.paired["Dice"]
    return [describe_difference(str(name), row, str(comparison.baseline)) for name, row in paired.iterrows()]


def describe_beside(comparison: Comparison) -> list[str]:
    """Return a sentence for every network for many datasets, against the same one on this dataset alone."""
    found = comparison.beside["Dice"]
    return [describe_difference(str(name), row, str(row["alone"])) for name, row in found.iterrows()]


def summarise(comparison: Comparison) -> str:
    """Say in two or three sentences what came out."""
    summary = _summary(comparison)
    if comparison.blank:
        summary += f" Not trained long enough to find anything: {', '.join(comparison.blank)}."
    return summary


def _summary(comparison: Comparison) -> str:
    ranked = comparison.ranked
    if not ranked:
        return "No algorithm has results."
    if not comparison.scored:
        return "No case has anything to score, so nothing is compared."
    if comparison.baseline is None:
        return f"{ranked[0]} has the highest mean Dice; the baseline has no results, so nothing is compared with it."
    paired = comparison.paired["Dice"]
    if paired.empty:
        mean = show_number(comparison.board.loc[ranked[0], "Dice"], 3)
        return f"{ranked[0]} has a mean Dice of {mean}; there is nothing to compare it with."
    first = describe_difference(str(paired.index[0]), paired.iloc[0], comparison.baseline)
    if len(paired) == 1:
        return first
    ahead, behind = ((paired["verdict"] == verdict).sum() for verdict in (AHEAD, BEHIND))
    return (
        f"{first} Of {len(paired)} algorithms, {ahead} {'is' if ahead == 1 else 'are'} ahead of {comparison.baseline}, "
        f"{behind} behind it, {len(paired) - ahead - behind} not clearly either."
    )
