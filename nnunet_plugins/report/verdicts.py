"""Verdicts on an algorithm against another one: which word follows from the numbers of a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.report.evidence import Measure, compare_pairs
from nnunet_plugins.report.statistics import CASES, DECIMALS, HIGHER_IS_BETTER, LEVEL, holm

AHEAD, BEHIND, EQUIVALENT, MIXED, UNCLEAR, TOO_FEW = "ahead", "behind", "equivalent", "mixed", "unclear", "too few"
"""Ahead and behind: p below 0.05 after Holm, better or worse case by case and on average, with an interval that has no
0 in it: p values over cases are of ranks, which a few cases do not change, however much these are worse. Mixed: better
case by case, yet not on average, or the other way. Where trainings were repeated, p values are of the mean, which alone
decides: nothing is tested case by case, and nothing mixed. Equivalent comes before these: it is a matter of the size of
the difference, which with many cases is clear long before it matters. Too few: nothing is tested, or no p value could
lie below 0.05, however large the differences are; equivalent comes before the latter."""

SURE = 0.95
"""From this probability on that a difference is within the region of practical equivalence, two are equivalent."""


def differences(measure: Measure, ranked: Sequence[str], baseline: str | None, rope: float | None) -> pd.DataFrame:
    """Return how every other ranked algorithm differs from the baseline, with a verdict."""
    pairs = [(name, baseline) for name in ranked if name != baseline] if baseline is not None else []
    return judge(measure, pairs, rope).droplevel("against")


def every_pair(measure: Measure, ranked: Sequence[str], rope: float | None) -> pd.DataFrame:
    """Return how each ranked algorithm differs from each that stands below it, with a verdict; Holm over all pairs."""
    pairs = [(one, other) for place, one in enumerate(ranked) for other in ranked[place + 1 :]]
    return judge(measure, pairs, rope)


def against_twins(
    measure: Measure,
    algorithms: pd.DataFrame,
    twins: Mapping[str, str],
    baseline: str | None,
    rope: float | None,
) -> pd.DataFrame:
    """Return how each network differs from its ablation twin, where both are ranked; Holm over these pairs.

    A twin that is the baseline is left out: `differences` has it, and another adjustment would give it another p.

    Args:
        measure: the scores.
        algorithms: by name, `trainer` (without a seed), `role` and `is_ranked`.
        twins: by trainer, both without modifiers; those of our own networks need not be told.
        baseline: its name.
        rope: see `evidence.compare_pairs`.
    """
    return judge(measure, [pair for pair in _twins(algorithms, twins) if pair[1] != baseline], rope)


def _twins(algorithms: pd.DataFrame, told: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the pairs of a network and its ablation twin, which has the same modifiers."""
    twins = {row.trainer: row.twin for row in BACKBONES} | dict(told)
    # A trainer on plans of its own is another network.
    ranked = algorithms[algorithms["is_ranked"] & (algorithms["role"] != "own plan")]
    named = {trainer: str(name) for name, trainer in ranked["trainer"].items()}
    pairs = []
    for trainer, name in named.items():
        network, underscore, modifiers = trainer.partition("_")
        twin = named.get(f"{twins[network]}{underscore}{modifiers}") if network in twins else None
        if twin is not None:
            pairs.append((name, twin))
    return pairs


def is_clear(table: Any) -> Any:
    """Return whether there is no 0 in the interval of a difference, or of each of a table of them."""
    return (table["ci_low"] > 0) | (table["ci_high"] < 0)


def judge(measure: Measure, pairs: Sequence[tuple[str, str]], rope: float | None) -> pd.DataFrame:
    """Return a family of comparisons, see `evidence.compare_pairs`, with `p_holm` over its rows and the `verdict`s.

    `p_least` is what `p_holm` would be if all differences were as large as can be: 2 / 2^n before Holm in the
    signed-rank test of n units; a t test, of repeated trainings, has no such bound.
    """
    table = compare_pairs(measure, pairs, rope=rope)
    of_mean = (table["repeated"] | table["against_repeated"]).astype(bool)
    least = (2.0 ** (1 - table["units"])).mask(of_mean, 0.0).where(table["p"].notna())
    table = table.assign(p_holm=holm(table["p"].astype(float)), p_least=holm(least.astype(float)))
    gain = table["mean_difference"].round(DECIMALS) * (1 if HIGHER_IS_BETTER[measure.metric] else -1)
    clear = table["p_holm"] < LEVEL
    is_mean_clear = is_clear(table)
    verdict = pd.Series(UNCLEAR, table.index, dtype=object).mask(clear & ~of_mean, MIXED)
    verdict = verdict.mask(clear & is_mean_clear & (gain > 0) & (of_mean | (table["effect_size"] > 0)), AHEAD)
    verdict = verdict.mask(clear & is_mean_clear & (gain < 0) & (of_mean | (table["effect_size"] < 0)), BEHIND)
    verdict = verdict.mask(table["p_least"] >= LEVEL, TOO_FEW).mask(table["equivalent"] >= SURE, EQUIVALENT)
    return table.assign(verdict=verdict.mask((table["n"] > 0) & (table["effective"] < CASES), TOO_FEW))


def kinds(tables: Iterable[pd.DataFrame]) -> tuple[bool, bool]:
    """Tell whether any p value is of the signed-rank test, over cases alone, and whether any is of a t test."""
    known = [table[table["p"].notna()] for table in tables if len(table)]
    by_t = [(table["repeated"] | table["against_repeated"]).astype(bool) for table in known]
    return any((~one).any() for one in by_t), any(one.any() for one in by_t)
