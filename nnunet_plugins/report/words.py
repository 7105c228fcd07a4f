"""How numbers and counts are written, once for all kinds of files."""

import math
from collections.abc import Sequence

import pandas as pd

from nnunet_plugins.metrics.objects import QUALITIES
from nnunet_plugins.report.statistics import HIGHER_IS_BETTER, LEVEL

METRIC_NAMES = {
    "Dice": "Dice",
    "ASSD_mm": "ASSD (mm)",
    "HD95_mm": "HD95 (mm)",
    "NSD": "NSD",
    "volume_error_ml": "Absolute volume error (ml)",
    "objects_F1": "F1 of objects",
    "objects_SQ": "SQ",
    "objects_PQ": "PQ",
    "objects_Dice": "Dice per object",
}
DECIMALS = {"Dice": 3, "ASSD_mm": 2, "HD95_mm": 2, "NSD": 3, "volume_error_ml": 2, **dict.fromkeys(QUALITIES, 3)}
VERDICTS = {
    "ahead": "ahead",
    "behind": "behind",
    "equivalent": "equivalent within {rope:g}",
    "mixed": "better or worse case by case, not on average",
    "unclear": "cannot be told apart",
    "too few": "too few cases for so many tests",
}
"""What is written for the verdicts of `verdicts.py`, in tables of what is tested."""
SIGNS = {"ahead": "▲", "behind": "▼", "equivalent": "≈"}
"""What stands for those that are clear."""
DASH = "–"  # noqa: RUF001 - a dash
"""Stands for what is missing."""
NOWHERE = "not in the truth"
"""Stands for the scores of a label that no case has."""
UNMATCHED = "none matched"
"""Stands for what is a mean over the objects that are found, where none is."""


def heading(metric: str) -> str:
    """Write a metric's name with an arrow to where it is better."""
    return f"{METRIC_NAMES[metric]}\N{NO-BREAK SPACE}{'↑' if HIGHER_IS_BETTER[metric] else '↓'}"


def show_number(value: float, decimals: int) -> str:
    """Write a number with so many decimals, and nan as a dash."""
    if pd.isna(value):
        return DASH
    rounded = round(float(value), decimals) + 0.0  # no minus before a zero
    return f"{rounded:.{decimals}f}".replace("-", "−")  # noqa: RUF001 - a minus sign


def show_signed(value: float) -> str:
    """Write a difference with three decimals and its sign."""
    return f"{'+' if round(value, 3) > 0 else ''}{show_number(value, 3)}"


def show_count(value: float) -> str:
    """Write a number of things, with a decimal where it is a mean that is no whole number."""
    return show_number(value, 0 if pd.isna(value) or float(value).is_integer() else 1)


def show_needed(value: float) -> str:
    """Write how many cases or repeats are needed; infinitely many are no number."""
    return "no number" if value == float("inf") else show_number(value, 0)


def show_volume(value: float) -> str:
    """Write a volume that is not 0 with two decimals; a smaller one is just that."""
    return "<0.01" if value < 0.005 else show_number(value, 2)


def show_p(value: float) -> str:
    """Write a p value with three decimals, or as many as keep it below 0.05 if it is; smaller ones are just that."""
    if value < 0.001:
        return "<0.001"
    decimals = next((n for n in range(3, 16) if value >= LEVEL or round(value, n) < LEVEL), 16)
    return show_number(value, decimals)


def show_probability(value: float) -> str:
    """Write a probability with three decimals; none is 0 or 1, also where the computer's numbers end before it is."""
    if value < 0.001:
        return "<0.001"
    return ">0.999" if value > 0.999 else show_number(value, 3)


def describe_probability(value: float) -> str:
    """Write a probability as it stands in a sentence."""
    return show_probability(value).replace("<", "less than ").replace(">", "more than ")


def show_penalised(value: float, decimals: int, penalties: float) -> str:
    """Write a mean distance, and how many of the distances in it are the image's diagonal, as nothing was found."""
    shown = show_number(value, decimals)
    return f"{shown} ({show_count(penalties)} penalised)" if penalties > 0 else shown


def describe_p(value: float) -> str:
    """Write a p value with its sign of equality."""
    shown = show_p(value)
    return f"p < {shown[1:]}" if shown.startswith("<") else f"p = {shown}"


def name_some(names: Sequence[str]) -> str:
    """Name three of some things, and say how many more there are."""
    more = len(names) - 3
    return ", ".join(names[:3]) + f" and {more} more" * (more > 0)


def count_units(units: int, cases: int) -> str:
    """Write how many independent parts cases have: groups of them, or themselves."""
    return count(cases, "case") if units == cases else count(units, "group") + " of cases"


def too_few(units: int, cases: int, effective: float, least: int) -> str:
    """Say that cases are too few for tests, of which there have to be `least` units; see `statistics.effective`."""
    unequal = (
        f" (of such unequal sizes that they tell as much as {math.floor(effective * 10) / 10})"
        if units >= least
        else ""
    )
    return f"{count_units(units, cases)}{unequal} {'is' if units == 1 else 'are'} too few"


def count(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
