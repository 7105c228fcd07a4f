"""How likely a claim is, that one algorithm is better than another, and what it would take to be sure.

With a flat prior the true difference d of two means is, given what was measured, distributed as t: around the measured
difference, with its standard error and degrees of freedom. For n cases without repeats,

    P(d <= 0) = T_{n-1}(-sqrt(n) difference / s),    s^2 = s_A^2 + s_B^2 - 2 r s_A s_B

is the probability that the claim "A is better than B" is false, of Christodoulou et al. 2025 (arXiv:2505.04720), where
s is the standard deviation of the differences, written with those of both algorithms and their correlation r. Where
trainings were repeated, standard error and degrees of freedom are those of `variance.Estimate`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from nnunet_plugins.report.statistics import CASES, LEVEL
from nnunet_plugins.report.variance import Estimate

ROPE = 0.01
"""A smaller difference in Dice than this counts for nothing in practice (the region of practical equivalence)."""
POWER = 0.8
MOST = 1e6
"""More cases, or repeats, than this are not looked for."""


class Claim(NamedTuple):
    """Probabilities of the true difference; nan for too few cases.

    Attributes:
        better: it is above 0.
        ahead: it is above the region of practical equivalence.
        equivalent: it is within the region.
        behind: it is below the region.
    """

    better: float
    ahead: float
    equivalent: float
    behind: float


def claim(found: Estimate, rope: float) -> Claim:
    """Return how likely the true difference is where.

    Args:
        found: the measured difference, of which positive values are gains.
        rope: half the width of the region of practical equivalence.
    """
    if found.units < CASES:
        return Claim(np.nan, np.nan, np.nan, np.nan)
    better, ahead = _above(found, 0.0), _above(found, rope)
    behind = _above(replace(found, mean=-found.mean), rope)  # 1 less what is above -rope would lose small ones
    return Claim(better, ahead, max(0.0, 1 - ahead - behind), behind)


def _above(found: Estimate, bound: float) -> float:
    """Return the probability that the true difference is above a bound."""
    error, degrees = found.spread()
    if error == 0:  # every case has the same difference
        return 0.5 if found.mean == bound else float(found.mean > bound)
    return float(special.stdtr(degrees, (found.mean - bound) / error))


class Needs(NamedTuple):
    """What it would take to tell a difference from none, with a power of 80% at the 5% level.

    Attributes:
        cases: how many, with the trainings that there are; infinite if no number would do.
        repeats: how many, two at least, with the cases that there are; infinite if no number would do, nan without
            repeats.
        both: by how much to multiply cases and repeats alike, which always does.
    """

    cases: float
    repeats: float
    both: float


def needs(found: Estimate, difference: float, repeats: int = 1) -> Needs:
    """Return what it would take to tell this true difference from none, by the test that there would then be.

    Args:
        found: of which the variances are taken, not the mean.
        difference: to be told from none.
        repeats: how many there are.
    """
    if found.units < 2 or difference <= 0:
        return Needs(np.nan, np.nan, np.nan)
    least = max(CASES, len(found.blocks) + 1) * found.cases / found.units
    cases = _smallest(lambda number: _tells(found, difference, number / found.cases, 1.0), least)
    again = np.nan
    if found.training or found.rest:
        again = _smallest(lambda number: _tells(found, difference, 1.0, number / repeats), 2)
    low = max(least / found.cases, (2 if found.repeats else 1) / repeats)
    both = _smallest(lambda factor: _tells(found, difference, factor, factor), low, whole=False)
    return Needs(cases, again, both)


def _tells(found: Estimate, difference: float, cases: Any, trainings: Any) -> Any:
    """Tell whether so many times as many cases and trainings would do: noncentral t has the power."""
    error, degrees = found.spread(cases, trainings)
    shift = np.minimum(difference / np.maximum(error, 1e-300), 50.0)  # more is as good
    return special.nctdtr(degrees, shift, special.stdtrit(degrees, 1 - LEVEL / 2)) <= 1 - POWER


def _smallest(tells: Callable[[Any], Any], least: float, *, whole: bool = True) -> float:
    """Return the smallest number that does, exact up to about 3000; infinite if none does."""
    low, high = float(least), MOST
    for _ in range(2):  # first among a few, and then among those before the first that does
        numbers = np.geomspace(low, high, 200)
        numbers = np.unique(np.ceil(numbers)) if whole else numbers
        fits = tells(numbers)
        if not fits.any():
            return np.inf
        first = int(np.argmax(fits))
        low, high = numbers[max(first - 1, 0)], numbers[first]
    return float(high)
