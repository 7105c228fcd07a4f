"""What a comparison has found, in plain words."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.claims import ROPE
from nnunet_plugins.report.statistics import CASES, LEVEL
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, EQUIVALENT, MIXED, TOO_FEW, UNCLEAR, is_clear
from nnunet_plugins.report.words import (
    count,
    describe_p,
    describe_probability,
    name_some,
    show_number,
    show_p,
    show_signed,
)


def describe_difference(name: str, row: Mapping[str, Any], baseline: str, rope: float = ROPE) -> str:
    """Say in a sentence or two how an algorithm differs from the baseline, and whether that may be chance.

    Args:
        name: of the algorithm.
        row: of `Comparison.paired`, of Dice.
        baseline: its name.
        rope: with which the row was made.
    """
    if pd.isna(row["mean_difference"]):
        return f"{name} has no case in common with {baseline}."
    groups = f" of {count(int(row['units']), 'group')}" if row["units"] < row["n"] else ""
    cases = f"{count(int(row['n']), 'case')}{groups}"
    difference = row["mean_difference"]
    signed = f"{show_signed(difference)} Dice"
    if row["verdict"] == TOO_FEW and row["effective"] < CASES:
        return f"Too few cases to test {name} against {baseline}: mean difference {signed} on {cases}."
    once = _once(name, row, baseline)
    interval = f"95% CI {show_number(row['ci_low'], 3)} to {show_number(row['ci_high'], 3)}, "
    proof = f"({'' if pd.isna(row['ci_low']) else interval}{describe_p(row['p_holm'])}, Holm) on {cases}"
    if row["verdict"] == MIXED:
        most = "better" if row["effect_size"] > 0 else "worse"
        is_contrary = (difference > 0) != (row["effect_size"] > 0) or is_clear(row)
        yet = (
            f"its mean differs by {signed}"
            if is_contrary
            else f"on average they cannot be told apart: mean difference {signed}"
        )
        said = f"Case by case {name} is {most} than {baseline}{once}, yet {yet} {proof}."
    elif row["verdict"] == EQUIVALENT:
        said = f"{name} and {baseline} are equivalent within {rope:g} Dice{once}: mean difference {signed} {proof}."
    elif row["verdict"] in (AHEAD, BEHIND):
        where = "ahead of" if row["verdict"] == AHEAD else "behind"
        amount = show_number(abs(difference), 3) if abs(difference) >= 0.0005 else "less than 0.001"
        said = f"{name} is {where} {baseline} by {amount} Dice{once} {proof}."
    elif row["verdict"] == TOO_FEW:
        said = (
            f"Too few cases for so many tests to tell {name} from {baseline}: mean difference {signed} {proof}; no p "
            f"could be below {show_p(row['p_least'])}, however large the differences are."
        )
    else:
        said = f"{name} and {baseline} cannot be told apart{once}: mean difference {signed} {proof}."
    if pd.isna(row.get("better")):
        return said
    more = (_probable(name, row, rope), _needed(row, rope), _half(name, row, baseline))
    return " ".join([said, *filter(None, more)])


def _probable(name: str, row: Mapping[str, Any], rope: float) -> str:
    """Say how likely the true difference is where, for the verdict."""
    if row["verdict"] == EQUIVALENT:
        difference = "the true difference" if _is_known(row) else "the true difference of these trainings"
        some = ", though there is one" if _is_known(row) and row["p_holm"] < LEVEL and is_clear(row) else ""
        probability = describe_probability(row["equivalent"])
        return f"With a probability of {probability} {difference} is no larger than {rope:g}{some}."
    word, better, by_more = "better", row["better"], row["ahead"]
    if better < 0.5:
        word, better, by_more = "worse", 1 - better, row["behind"]
    return (
        f"On average {name} is {word} with a probability of {describe_probability(better)}, by more than {rope:g} with "
        f"{describe_probability(by_more)}."
    )


def _needed(row: Mapping[str, Any], rope: float) -> str:
    """Say what it would take to tell a difference that matters, where none could be told."""
    cases, repeats = row["needed_cases"], row["needed_repeats"]
    if row["verdict"] != UNCLEAR or pd.isna(cases):
        return ""
    told = f"a difference of {rope:g}"
    # Where the trainings of one do not count, as they were not repeated, these numbers are bounds.
    about = "about" if _is_known(row) else "at least"
    alike = " in groups as these" if row["units"] < row["n"] else ""
    more = f"{about} {count(int(cases), 'case')}{alike}" if cases < float("inf") else "no number of cases"
    again = f"{about} {count(int(repeats), 'repeat')}" if repeats < float("inf") else "no number of repeats"
    if cases <= row["n"]:
        unless = "" if _is_known(row) else ", if trainings do not vary"
        return f"There are enough to tell {told} in 80% of such comparisons{unless}."
    if pd.isna(repeats):
        return f"To tell {told} takes {more} (power 80%), more if trainings vary."
    if cases < float("inf"):
        return f"To tell {told} takes {more} with these repeats, or {again} with these cases (power 80%)."
    if repeats < float("inf"):
        return f"To tell {told}, {more} alone would do, {again} with these cases would (power 80%)."
    factor = show_number(row["needed_factor"], 1)
    return f"To tell {told} takes {factor} times as many cases and repeats, no number of either alone (power 80%)."


def _is_known(row: Mapping[str, Any]) -> bool:
    """Tell whether the variance of training of both is in a comparison; else it is one of these trainings."""
    return bool(row["repeated"] and row["against_repeated"])


def _once(name: str, row: Mapping[str, Any], baseline: str) -> str:
    """Say who was trained once in each fold: of such networks, no claim is about more than these trainings."""
    once = [one for one, repeated in ((name, "repeated"), (baseline, "against_repeated")) if not row.get(repeated)]
    return f", {'each' if len(once) > 1 else once[0]} trained once per fold" if once else ""


def _half(name: str, row: Mapping[str, Any], baseline: str) -> str:
    """Say whose variance of training is missing, if it is only one's; of pages without repeats a caveat says it."""
    if row["repeated"] == row["against_repeated"]:
        return ""
    return f"How {baseline if row['repeated'] else name}'s trainings vary is not in this, which is too sure."


def describe_all(comparison: Comparison) -> list[str]:
    """Return a sentence for every algorithm that is compared with the baseline, the best first."""
    paired = comparison.paired["Dice"] if comparison.scored else comparison.paired["Dice"][:0]
    baseline, rope = str(comparison.baseline), comparison.rope
    return [describe_difference(str(name), row, baseline, rope) for name, row in paired.iterrows()]


def describe_twins(comparison: Comparison) -> list[str]:
    """Return a sentence for every network against its ablation twin, but for those whose twin is the baseline."""
    return [
        "Against its ablation twin: " + describe_difference(str(name), row, str(twin), comparison.rope)
        for (name, twin), row in comparison.twins.iterrows()
    ]


def describe_beside(comparison: Comparison) -> list[str]:
    """Return a sentence for every network for many datasets, against the same one on this dataset alone."""
    found = comparison.beside["Dice"]
    return [describe_difference(str(name), row, str(row["alone"]), comparison.rope) for name, row in found.iterrows()]


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
        has = "has" if len(comparison.leaders) == 1 else "have"
        return (
            f"{name_some(comparison.leaders)} {has} the highest mean Dice; nothing is compared with the baseline, "
            "which has no results."
        )
    paired = comparison.paired["Dice"]
    if paired.empty:
        mean = show_number(comparison.board.loc[ranked[0], "Dice"], 3)
        return f"{ranked[0]} has a mean Dice of {mean}; there is nothing to compare it with."
    first = describe_difference(str(paired.index[0]), paired.iloc[0], comparison.baseline, comparison.rope)
    if len(paired) == 1:
        return first
    said = [(paired["verdict"] == verdict).sum() for verdict in (AHEAD, BEHIND, EQUIVALENT, TOO_FEW)]
    ahead, behind, equivalent, few = said
    if few == len(paired):
        return first
    return (
        f"{first} Of {len(paired)} algorithms, {ahead} {'is' if ahead == 1 else 'are'} ahead of {comparison.baseline}, "
        f"{behind} behind it, "
        + f"{equivalent} equivalent within {comparison.rope:g}, " * bool(equivalent)
        + f"{few} with too few cases for so many tests, " * bool(few)
        + f"{len(paired) - sum(said)} not clearly either."
    )
