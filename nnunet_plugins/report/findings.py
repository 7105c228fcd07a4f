"""What a comparison has found, in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nnunet_plugins.report.comparison import Comparison, count
from nnunet_plugins.report.statistics import LEVEL
from nnunet_plugins.report.tables import show_number, show_p


def describe_difference(name: str, row: Mapping[str, Any], baseline: str | None) -> str:
    """Say in a sentence how an algorithm differs from the baseline, and whether that may be chance.

    Args:
        name: of the algorithm.
        row: of `statistics.compare`, of Dice.
        baseline: its name.
    """
    if pd.isna(row["mean_difference"]):
        return f"{name} has no case in common with {baseline}."
    cases = count(int(row["n"]), "case")
    interval = f"95% CI {show_number(row['ci_low'], 3)} to {show_number(row['ci_high'], 3)}, "
    proof = f"({'' if pd.isna(row['ci_low']) else interval}{describe_p(row['p_holm'])}, Holm) on {cases}"
    difference, effect = row["mean_difference"], row["effect_size"]
    signed = ("+" if difference > 0 else "") + show_number(difference, 3)
    if row["p_holm"] >= LEVEL:
        return f"{name} and {baseline} cannot be told apart: mean difference {signed} Dice {proof}."
    if difference * effect <= 0:
        most = "better" if effect > 0 else "worse"
        return f"Case by case {name} is {most} than {baseline}, yet its mean differs by {signed} Dice {proof}."
    where = "ahead of" if difference > 0 else "behind"
    return f"{name} is {where} {baseline} by {show_number(abs(difference), 3)} Dice {proof}."


def describe_p(value: float) -> str:
    """Write a p value with its sign of equality."""
    shown = show_p(value)
    return f"p < {shown[1:]}" if shown.startswith("<") else f"p = {shown}"


def summarise_differences(
    comparison: Comparison, board: pd.DataFrame, paired: pd.DataFrame, sentences: Sequence[str]
) -> str:
    """Say in two or three sentences what came out.

    Args:
        comparison: of which.
        board: its ranked results.
        paired: how the others differ from the baseline, in the same order.
        sentences: of `describe_difference`, one for each of these.
    """
    summary = _summary(comparison, board, paired, sentences)
    if comparison.blank:
        summary += f" Not trained long enough to find anything: {', '.join(comparison.blank)}."
    return summary


def _summary(comparison: Comparison, board: pd.DataFrame, paired: pd.DataFrame, sentences: Sequence[str]) -> str:
    ranked = [str(name) for name in board.index if name in comparison.ranked]
    if not ranked:
        return "No algorithm has results."
    if comparison.baseline is None:
        return f"{ranked[0]} has the highest mean Dice; the baseline has no results, so nothing is compared with it."
    if not sentences:
        mean = show_number(board.loc[ranked[0], "Dice"], 3)
        return f"{ranked[0]} has a mean Dice of {mean}; there is nothing to compare it with."
    if len(sentences) == 1:
        return sentences[0]
    clear = paired[paired["p_holm"] < LEVEL]
    ahead = int(((clear["mean_difference"] > 0) & (clear["effect_size"] > 0)).sum())
    behind = int(((clear["mean_difference"] < 0) & (clear["effect_size"] < 0)).sum())
    verb = "is" if ahead == 1 else "are"
    others = (
        f"Of {len(paired)} algorithms, {ahead} {verb} ahead of {comparison.baseline}, {behind} behind it, "
        f"{len(paired) - ahead - behind} not clearly either."
    )
    return f"{sentences[0]} {others}"
