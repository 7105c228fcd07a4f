"""Verdicts on an algorithm against another one: which word follows from the numbers of a comparison."""

import pandas as pd

from nnunet_plugins.report.statistics import DECIMALS, HIGHER_IS_BETTER, LEVEL, compare

AHEAD, BEHIND, MIXED, UNCLEAR = "ahead", "behind", "mixed", "unclear"
"""Mixed: better case by case, yet worse on average, or the other way."""


def differences(scores: pd.DataFrame, baseline: str | None, metric: str) -> pd.DataFrame:
    """Return how every other ranked algorithm differs from the baseline, with a verdict."""
    if baseline is None:
        baseline, scores = "none", pd.DataFrame(columns=["none"])
    return with_verdicts(compare(scores, baseline, higher_is_better=HIGHER_IS_BETTER[metric]), metric)


def with_verdicts(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a table of comparisons with the `verdict` of each."""
    higher = HIGHER_IS_BETTER[metric]
    gain = table["mean_difference"].round(DECIMALS) * (1 if higher else -1)
    clear = table["p_holm"] < LEVEL
    verdict = pd.Series(UNCLEAR, table.index, dtype=object).mask(clear, MIXED)
    verdict = verdict.mask(clear & (gain > 0) & (table["effect_size"] > 0), AHEAD)
    return table.assign(verdict=verdict.mask(clear & (gain < 0) & (table["effect_size"] < 0), BEHIND))
