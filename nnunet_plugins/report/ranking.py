"""How firm a ranking is: two ways to make one, and cases and trainings drawn anew."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_plugins.report.statistics import (
    CASES,
    DECIMALS,
    DRAWS,
    INTERVAL,
    draw_means,
    effective,
    rank_distribution,
    ranks,
    units_of,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stability:
    """What `stability` finds.

    Attributes:
        by_mean: the algorithms' ranks by their mean scores ("mean, then rank").
        by_rank: their ranks by their mean ranks over the cases ("rank, then mean").
        tau: Kendall's, of the two.
        drawn: Kendall's tau of the ranking by mean and those of draws, on average.
        low: the smallest tau but for 2.5% of the draws.
    """

    by_mean: pd.Series
    by_rank: pd.Series
    tau: float
    drawn: float
    low: float


def stability(
    scores: pd.DataFrame, *, higher_is_better: bool, errors: pd.Series, groups: pd.Series | None = None
) -> Stability | None:
    """Return how firm the ranking is, on the cases where no score is missing; None for fewer than two algorithms.

    Args:
        scores: cases x algorithms.
        higher_is_better: whether it is.
        errors: by algorithm, the standard error that its trainings add to its mean, see `statistics.draw_means`.
        groups: of the cases, if these are not units of their own.
    """
    complete = scores.dropna()
    if scores.shape[1] < 2 or complete.empty:
        return None
    sign = -1 if higher_is_better else 1
    by_mean = (sign * complete.mean()).round(DECIMALS).rank(method="min")
    by_rank = ranks(complete, higher_is_better=higher_is_better).mean().round(DECIMALS).rank(method="min")
    added, units = errors[list(scores)].to_numpy(float), units_of(complete.index, groups)
    drawn = sign * draw_means(complete.to_numpy(float), added, units, DRAWS)
    taus = _taus(drawn.round(DECIMALS), by_mean.to_numpy(float))
    return Stability(
        by_mean,
        by_rank,
        float(_taus(by_rank.to_numpy(float)[None], by_mean.to_numpy(float))[0]),
        float(taus.mean()),
        float(np.quantile(taus, INTERVAL[0])),
    )


def rank_shares(dice: pd.DataFrame, errors: "pd.Series[float]", groups: pd.Series | None) -> pd.DataFrame:
    """Return `statistics.rank_distribution` of Dice, empty for one algorithm or too few units."""
    if dice.shape[1] < 2 or effective(units_of(dice.dropna().index, groups)) < CASES:
        return pd.DataFrame()
    return rank_distribution(dice, higher_is_better=True, errors=errors, groups=groups)


def _taus(drawn: Array, ranking: Array) -> Array:
    """Return Kendall's tau-b of each row with a ranking; where all are equal, 1 with its like and else 0."""
    first, second = np.triu_indices(len(ranking), 1)
    rows = np.sign(drawn[:, first] - drawn[:, second])
    signs = np.sign(ranking[first] - ranking[second])
    untied, known = np.abs(rows).sum(axis=1), np.abs(signs).sum()
    if not known:
        return (untied == 0).astype(float)
    return np.where(untied > 0, rows @ signs / np.sqrt(np.where(untied > 0, untied, 1) * known), 0.0)
