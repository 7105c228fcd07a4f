"""How likely a claim is, that one algorithm is better than another, and what it would take to be sure.

With a flat prior the true difference d of two means is, given what was measured, distributed as t: around the measured
difference, with its standard error and degrees of freedom. For n cases without repeats,

    P(d <= 0) = T_{n-1}(-sqrt(n) difference / s),    s^2 = s_A^2 + s_B^2 - 2 r s_A s_B

is the probability that the claim "A is better than B" is false, of Christodoulou et al. 2025 (arXiv:2505.04720), where
s is the standard deviation of the differences, written with those of both algorithms and their correlation r. Where
trainings were repeated, standard error and degrees of freedom are those of `variance.Estimate`.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from nnunet_plugins.report.statistics import CASES, LEVEL
from nnunet_plugins.report.variance import Estimate

ROPE = 0.01
"""A smaller difference in Dice than this counts for nothing in practice (the region of practical equivalence)."""
POWER = 0.8


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
    if found.cases < CASES:
        return Claim(np.nan, np.nan, np.nan, np.nan)
    better, ahead, behind = (_above(found, bound) for bound in (0.0, rope, -rope))
    behind = 1 - behind
    return Claim(better, ahead, max(0.0, 1 - ahead - behind), behind)


def _above(found: Estimate, bound: float) -> float:
    """Return the probability that the true difference is above a bound."""
    if found.error == 0:  # every case has the same difference
        return 0.5 if found.mean == bound else float(found.mean > bound)
    return float(special.stdtr(found.degrees, (found.mean - bound) / found.error))


class Needs(NamedTuple):
    """What it would take to tell a difference from none, with a power of 80% at the 5% level.

    Attributes:
        cases: how many, with the trainings that there are; infinite if no number would do.
        factor: by how much to multiply the repeats, with the cases that there are; infinite if no number would do, nan
            without repeats.
        both: by how much to multiply cases and repeats alike, which always does.
    """

    cases: float
    factor: float
    both: float


def needs(found: Estimate, difference: float) -> Needs:
    """Return what it would take to tell this true difference from none.

    With z = 1.96 + 0.84, the variance of the mean may be (difference / z)^2 at most; t's quantiles are a little larger.

    Args:
        found: of which the variances are taken, not the mean.
        difference: to be told from none.
    """
    if found.cases < 2 or difference <= 0:
        return Needs(np.nan, np.nan, np.nan)
    z = special.ndtri(1 - LEVEL / 2) + special.ndtri(POWER)
    most = (difference / z) ** 2
    left = most - found.training
    cases = float(np.ceil(found.case / left)) if left > 0 else np.inf
    left = most - (found.case - found.rest) / found.cases
    repeated = found.rest / found.cases + found.training
    factor = np.nan if repeated == 0 else repeated / left if left > 0 else np.inf
    return Needs(cases, float(factor), found.error**2 / most)
