"""Statistics over cases: paired differences from the baseline, means, ranks, and how sure they are.

A table of scores has a row per case and a column per algorithm, and a missing score is nan. The unit is the case, or
where several cases are of one group, such as the images of one patient, the group: cases of a group are alike. What
demands a number of units counts groups of unequal sizes as so many equal ones as tell as much, see `effective`.
Intervals are percentiles of the mean over units drawn anew with replacement; those of a median would be too narrow.
The signed-rank test is of the means of the units' cases.
P values are those of Wilcoxon's signed-rank test (two-sided; cases without a difference left out), adjusted after Holm
(1979). The effect size is the matched-pairs rank-biserial correlation (Kerby 2014): the share of rank sums in favour of
an algorithm minus the share against it, from -1 to 1. Across datasets: Friedman's test with Nemenyi's critical
difference (Demšar 2006, JMLR 7).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from nnunet_plugins.metrics.objects import QUALITIES

HIGHER_IS_BETTER = {
    **{"Dice": True, "ASSD_mm": False, "HD95_mm": False, "NSD": True, "volume_error_ml": False},
    **dict.fromkeys(QUALITIES, True),
}

LEVEL = 0.05
RESAMPLES = 10_000
"""How often cases are drawn anew for an interval."""
DRAWS = 1000
"""How often cases are drawn anew for ranks."""
SEED = 0
"""Of all draws."""
INTERVAL = (0.025, 0.975)
DECIMALS = 9
"""Scores that differ beyond this decimal only are equal: files and sums round."""
CASES = 6
"""With fewer cases than these nothing is tested and no mean has an interval. Five differences of one sign have a p
value of 2 / 2^5 = 0.0625 in the signed-rank test, so nothing could be found; and the percentiles of five drawn cases
hold the true mean four times in five, not nineteen times in twenty."""
DATASETS = 5
"""Below so many datasets no critical difference is drawn."""
COMPARED = [
    *(
        "n",
        "units",
        "effective",
        "mean_difference",
        "ci_low",
        "ci_high",
        "effect_size",
        "p",
        "p_holm",
        "wins",
        "ties",
        "losses",
    )
]
_CHUNK = 4_000_000  # numbers in memory at a time while cases are drawn

Array = NDArray[np.float64]
Units = NDArray[np.int64]


def units_of(cases: pd.Index, groups: pd.Series | None) -> Units:
    """Return the number of the unit of each case, from 0 on: of its group, by case, or without groups its own."""
    return np.arange(len(cases)) if groups is None else pd.factorize(groups.loc[cases])[0]


def effective(units: Units) -> float:
    """Return how many units of equal size tell as much: their number, or less if they are of unequal sizes (Kish 1965).

    Args:
        units: of the cases, see `units_of`.
    """
    sizes = np.bincount(units)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(units) else 0.0


def _drawn_means(values: Array, units: Units, resamples: int, seed: int) -> Array:
    """Return the column means of units drawn anew: resamples x columns. All columns see the same draws.

    Args:
        values: cases x columns, none missing.
        units: of the cases, see `units_of`.
        resamples: how often as many units are drawn as there are.
        seed: of the draws.
    """
    sizes = np.bincount(units).astype(float)
    number = len(sizes)
    if number < len(values):
        sums = np.zeros((number, values.shape[1]))
        np.add.at(sums, units, values)
        values = sums
    step = max(1, _CHUNK // number)
    parts = [(start, min(step, resamples - start)) for start in range(0, resamples, step)]
    drawn = (_draws(number, rows, seed, start).astype(float) for start, rows in parts)
    return np.concatenate([draws @ values / (draws @ sizes)[:, None] for draws in drawn])


@lru_cache(maxsize=8)
def _draws(cases: int, rows: int, seed: int, start: int) -> NDArray[np.uint32]:
    """Return how often each unit is drawn, rows x units; the costly part, which many tables of one length share."""
    generator = np.random.default_rng([seed, start])
    drawn = generator.integers(cases, size=(rows, cases)) + cases * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * cases).reshape(rows, cases).astype(np.uint32)


def draw_means(scores: Array, errors: Array, units: Units, resamples: int) -> Array:
    """Return the algorithms' means of units drawn anew, with chance of the trainings added: resamples x algorithms.

    Args:
        scores: cases x algorithms, none missing.
        units: of the cases, see `units_of`.
        errors: of the algorithms, the standard error that their trainings add to their means; 0 if it is not known.
        resamples: how often.
    """
    chance = np.random.default_rng([SEED, resamples]).standard_normal((resamples, scores.shape[1]))
    return _drawn_means(scores, units, resamples, SEED) + errors * chance


def _intervals(
    columns: "dict[str, pd.Series[float]]", groups: pd.Series | None, resamples: int, seed: int
) -> pd.DataFrame:
    """Return the confidence interval of each column's mean; too few units have none."""
    intervals = pd.DataFrame(np.nan, index=list(columns), columns=["ci_low", "ci_high"])
    alike: dict[bytes, list[str]] = {}
    for name, column in columns.items() if resamples else ():
        alike.setdefault(units_of(column.index, groups).tobytes(), []).append(name)
    for names in alike.values():
        units = units_of(columns[names[0]].index, groups)
        if effective(units) >= CASES:
            values = np.stack([columns[name].to_numpy(float) for name in names], axis=1)
            intervals.loc[names] = np.quantile(_drawn_means(values, units, resamples, seed), INTERVAL, axis=0).T
    return intervals


def mean_with_ci(
    scores: pd.DataFrame, *, groups: pd.Series | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> pd.DataFrame:
    """Return for every algorithm `n`, `mean`, its 95% interval `ci_low` and `ci_high`, `median` and `sd`.

    Missing scores are left out; `n` counts the others. Groups are of the cases, if these are not units of their own.
    """
    columns = {str(name): scores[name].dropna() for name in scores}
    table = pd.DataFrame({"n": scores.count(), "mean": scores.mean()})
    table = table.join(_intervals(columns, groups, resamples, seed)).assign(median=scores.median(), sd=scores.std())
    return table.rename_axis("algorithm")


def _signed_rank(differences: Array, units: Units) -> tuple[float, float]:
    """Return the effect size and the p value of paired differences, of which positive ones are gains."""
    if not len(differences):
        return np.nan, np.nan
    sizes = np.bincount(units)
    if len(sizes) < len(differences):
        differences = (np.bincount(units, differences) / sizes).round(DECIMALS)
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0, 1.0
    ranks = stats.rankdata(np.abs(differences))
    effect = float(np.sum(np.sign(differences) * ranks) / ranks.sum())
    return effect, float(stats.wilcoxon(differences).pvalue)


def holm(p: pd.Series) -> pd.Series:
    """Return p values adjusted after Holm (1979) for as many tests as there are; missing ones are no tests."""
    ordered = p.dropna().sort_values()
    remaining = np.arange(len(ordered), 0, -1)
    return (ordered * remaining).cummax().clip(upper=1).reindex(p.index)


def compare(
    scores: pd.DataFrame,
    baseline: str,
    *,
    higher_is_better: bool,
    groups: pd.Series | None = None,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Compare every other algorithm with the baseline, on the cases that both have.

    Args:
        scores: cases x algorithms.
        baseline: the column to compare with.
        higher_is_better: whether it is.
        groups: of the cases, if these are not units of their own.
        resamples: of the intervals; without any, there are none.

    Returns:
        A row per algorithm: `n` cases, in so many `units`, which tell as much as `effective` ones of equal size,
        `mean_difference` from the baseline with its 95% interval `ci_low` and `ci_high`, `effect_size` (positive: the
        algorithm is better), `p`, `p_holm` over all rows, and in how many cases the algorithm `wins`, `ties` and
        `losses` count. Without cases all but the counts are nan.
    """
    others = scores.columns.drop(baseline)
    differences = {str(name): (scores[name] - scores[baseline]).dropna().round(DECIMALS) for name in others}
    rows: list[dict[str, Any]] = []
    for name, difference in differences.items():
        gains = (difference if higher_is_better else -difference).to_numpy(float)
        units = units_of(difference.index, groups)
        effect, p = _signed_rank(gains, units)
        rows.append(
            {
                "algorithm": name,
                "n": len(difference),
                "units": len(np.unique(units)),
                "effective": effective(units),
                "mean_difference": difference.mean() if len(difference) else np.nan,
                "effect_size": effect,
                "p": p,
                "wins": int((gains > 0).sum()),
                "ties": int((gains == 0).sum()),
                "losses": int((gains < 0).sum()),
            }
        )
    if not rows:
        return pd.DataFrame(columns=COMPARED, index=pd.Index([], name="algorithm"), dtype=float)
    table = pd.DataFrame(rows).set_index("algorithm").join(_intervals(differences, groups, resamples, SEED))
    return table.assign(p_holm=holm(table["p"]))[COMPARED]


def ranks(scores: pd.DataFrame, *, higher_is_better: bool) -> pd.DataFrame:
    """Return each algorithm's rank in each case, 1 for the best, on the cases where no score is missing.

    Equal scores share the mean of their ranks.
    """
    return scores.dropna().round(DECIMALS).rank(axis=1, ascending=not higher_is_better)


def rank_distribution(
    scores: pd.DataFrame,
    *,
    higher_is_better: bool,
    errors: pd.Series | None = None,
    groups: pd.Series | None = None,
    resamples: int = DRAWS,
) -> pd.DataFrame:
    """Return how firm the ranks by mean score are: the share of draws that give each algorithm each rank.

    Args:
        scores: cases x algorithms.
        higher_is_better: whether it is.
        errors: by algorithm, what the trainings add to the standard error of its mean; None: cases alone are drawn.
        groups: of the cases, if these are not units of their own.
        resamples: how many draws.

    Returns:
        Algorithms x ranks from 1 on; on the cases where no score is missing, nan if there are none. Equal means share
        the smallest of their ranks.
    """
    places = range(1, scores.shape[1] + 1)
    table = pd.DataFrame(np.nan, index=scores.columns.rename("algorithm"), columns=list(places))
    cases = scores.dropna()
    complete = cases.to_numpy(float)
    if complete.size:
        units = units_of(cases.index, groups)
        added = np.zeros(complete.shape[1]) if errors is None else errors[list(scores)].to_numpy(float)
        means = draw_means(-complete if higher_is_better else complete, added, units, resamples).round(DECIMALS)
        found = stats.rankdata(means, method="min", axis=1)
        for place in places:
            table[place] = (found == place).mean(axis=0)
    return table


@dataclass(frozen=True)
class CriticalDifference:
    """What `critical_difference` finds.

    Attributes:
        average_ranks: by algorithm, from the best to the worst.
        p: of Friedman's test.
        difference: of two average ranks; from here on they differ at the 5% level (Nemenyi).
        groups: the largest sets of neighbours that do not differ; all algorithms, if Friedman's test finds nothing.
        datasets: how many there are.
    """

    average_ranks: pd.Series
    p: float
    difference: float
    groups: list[list[str]]
    datasets: int


def critical_difference(mean_ranks: pd.DataFrame) -> CriticalDifference:
    """Compare algorithms across datasets, each of which counts once.

    Args:
        mean_ranks: datasets x algorithms, the smaller the better; ranked anew within each dataset. Datasets where an
            algorithm is missing are left out.

    Raises:
        ValueError: if there are fewer than five datasets or three algorithms.
    """
    placed = mean_ranks.dropna().round(DECIMALS).rank(axis=1)
    datasets, algorithms = placed.shape
    if datasets < DATASETS or algorithms < 3:
        raise ValueError(
            f"a critical difference needs {DATASETS} datasets and 3 algorithms, got {datasets} and {algorithms}"
        )
    average = placed.mean().sort_values(kind="stable")
    # Friedman's statistic does not exist where every dataset ties all algorithms.
    tied = bool((placed.nunique(axis=1) == 1).all())
    p = 1.0 if tied else float(stats.friedmanchisquare(*placed.to_numpy().T).pvalue)
    quantile = stats.studentized_range.ppf(1 - LEVEL, algorithms, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(algorithms * (algorithms + 1) / (6 * datasets)))
    groups = _groups(average, difference) if p < LEVEL else [list(average.index)]
    return CriticalDifference(average, p, difference, groups, datasets)


def _groups(average: pd.Series, difference: float) -> list[list[str]]:
    """Return the runs of two or more neighbours that lie closer together than the difference and in no longer run."""
    names, values = list(average.index), average.to_numpy()
    groups: list[list[str]] = []
    reached = 0
    for start in range(len(names)):
        end = int(np.searchsorted(values, values[start] + difference))
        if end > max(reached, start + 1):
            groups.append(names[start:end])
            reached = end
    return groups
