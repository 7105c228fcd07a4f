"""How sure a mean is over cases and trainings, where networks were trained several times with different seeds.

The model of a score, or of the difference of two algorithms' scores, of case i in fold f and training r of it:

    score = mean + fold_f + case_i + training_fr + rest_ir

All networks of a fold learn from the same cases, so the effect of the fold is the same in all its trainings; that of a
training is shared by all cases that its network predicts. Intervals are for the training sets that there are: the
effects of the folds are part of what is estimated, the others are chance. What other training sets would give, no
cross-validation of one dataset tells (Bengio and Grandvalet 2004, JMLR 5), and without repeats the effect of a fold
cannot be told from that of its one training.

The variance of the mean over n cases, of which n_f are in fold f with S_f trainings, is

    (case + rest / S) / n + sum over f of (n_f / n)^2 training / S_f

The first part is what the means over the trainings vary by from case to case within a fold, over n. In the second,
`training` is what the fold's means vary by from one training to the next, less the share `rest / n_f` of it that the
first part has already (the method of moments, in which a fold counts as often as it has cases; 0 if less would be
left). The difference of two algorithms has the second part of each. Degrees of freedom are Satterthwaite's (1946), but
no fewer than the smallest part has: where parts are subtracted, his have no bound. Intervals are those of the t
distribution.

Where several cases are of one group, such as images of one patient, the unit is the group. What leaving out one of them
after the other does to the mean of its fold tells how it varies (the jackknife over groups; of groups of one case it is
the variance above), since a large group draws the mean to itself; and groups of unequal sizes have the degrees of
freedom of so many equal ones as tell as much, see `statistics.effective`, less one for their mean. Those of the folds
together are Satterthwaite's, in which folds that share groups count as one.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special
from scipy.sparse import csgraph

from nnunet_plugins.report.statistics import CASES, INTERVAL, Units, effective

Array = NDArray[np.float64]
Folds = NDArray[np.int64]


@dataclass(frozen=True)
class Repeats:
    """What repeated trainings of one algorithm tell of the chance in them.

    Attributes:
        between: mean square of the means of a fold's trainings, pooled over the folds by their numbers of cases.
        degrees: of freedom of `between`; 0 if no fold was trained twice, and nothing is known.
        rest: mean square of case by training within the folds, such that over the n_f cases of a fold it is what it
            adds to the variance of their mean.
        rest_degrees: of freedom of `rest`.
        shared: how much of `rest` is in `between`, about 1 / n_f.
        weight: of `training` in the variance of the mean over all cases, the sum of (n_f / n)^2 / S_f.
        per_case: how much of `rest` a case's mean over its trainings has, the mean of 1 / S_f.
    """

    between: float = np.nan
    degrees: int = 0
    rest: float = 0.0
    rest_degrees: float = 0.0
    shared: float = 0.0
    weight: float = 1.0
    per_case: float = 1.0

    @property
    def known(self) -> bool:
        """Whether any fold was trained more than once."""
        return self.degrees > 0

    @property
    def training(self) -> float:
        """The variance from one training to the next, of the mean over many cases; nan if not known."""
        return float(np.maximum(self.between - self.rest * self.shared, 0)) if self.known else np.nan

    def parts(self, cases: Any = 1.0, trainings: Any = 1.0) -> list[tuple[Any, Any]]:
        """The mean squares that make up the variance of the mean over all cases, with their degrees of freedom.

        Args:
            cases: how many times as many of them there would be; a number, or an array of them.
            trainings: likewise.
        """
        if not self.known or self.training == 0:
            return []
        weight, rest = self.weight / trainings, self.rest * self.shared / cases
        more = (trainings - self.per_case) / (1 - self.per_case)  # S - 1 of S trainings
        return [
            (weight * (self.training + rest), self.degrees * more),
            (-weight * rest, self.rest_degrees * cases * more),
        ]


def _leave_one_out(apart: Array, units: Units, folds: Folds) -> Array:
    """Return by how much sums over the cases change, around the folds' means, without one unit after the other.

    Args:
        apart: cases, or cases x anything: what they differ by from the mean of their fold.
        units: of the cases.
        folds: of the cases.

    Returns:
        units x anything. A unit that has all cases of a fold tells nothing of it.
    """
    number = int(units.max()) + 1
    cells, places, sizes = np.unique(folds * number + units, return_inverse=True, return_counts=True)
    shares = (sizes / np.bincount(folds)[cells // number])[places]
    others = np.where(shares < 1, 1 - shares, np.inf)
    sums = np.zeros((number, *apart.shape[1:]))
    np.add.at(sums, units, (apart.T / others).T)
    return sums


def learn_repeats(scores: Array, folds: Folds, units: Units | None = None) -> Repeats:
    """Return what the repeats of an algorithm tell.

    Args:
        scores: cases x trainings (seeds), nan where a training has no score. Of a fold count the trainings that have
            any, on the cases that all of these have.
        folds: of the cases.
        units: of the cases, see `statistics.units_of`; None: each is its own.
    """
    units = np.arange(len(scores)) if units is None else units
    cases = ~np.isnan(scores).all(axis=1)
    scores, folds, units = scores[cases], folds[cases], units[cases]
    squares = rests = weight = per_case = rest_degrees = 0.0
    degrees = sizes = 0
    for fold in np.unique(folds):
        part, own = scores[folds == fold], units[folds == fold]
        share = len(part) / len(scores)
        part = part[:, ~np.isnan(part).all(axis=0)]
        trainings = part.shape[1]
        weight += share**2 / trainings
        per_case += share / trainings
        whole = ~np.isnan(part).any(axis=1)
        part, own = part[whole], np.unique(own[whole], return_inverse=True)[1]
        if trainings < 2 or not len(part):
            continue
        means = part.mean(axis=0)
        apart = part - part.mean(axis=1, keepdims=True) - means + means.mean()
        squares += len(part) * float(((means - means.mean()) ** 2).sum())
        degrees += trainings - 1
        sizes += len(part) * (trainings - 1)
        without, number = _leave_one_out(apart, own, np.zeros(len(part), int)), int(own.max()) + 1
        own_degrees = effective(own) - 1
        rests += float((without**2).sum()) * own_degrees * (number - 1) / number / len(part)
        rest_degrees += own_degrees * (trainings - 1)
    if not degrees:
        return Repeats()
    rest = rests / rest_degrees if rest_degrees else 0.0
    return Repeats(squares / sizes, degrees, rest, rest_degrees, degrees / sizes, weight, per_case)


@dataclass(frozen=True)
class Estimate:
    """A mean over cases and trainings, and how sure it is.

    Attributes:
        mean: over the cases.
        cases: how many.
        case: the variance of one case, the rest of its trainings included, such that over `cases` it is the variance of
            the mean: more than that of a case by itself, where those of a group are alike.
        rest: what of `case` is due to the trainings of the case, which further ones make less; 0 without repeats.
        units: how many independent parts the cases have, cases or groups, as `statistics.effective` counts them.
        blocks: the parts of `case` that are independent of each other, around a mean each: all cases without repeats,
            and with them each fold, or those folds together that share groups. Of each the weight in `case`, and how
            many independent units it has.
        repeats: of the algorithms that have any.
    """

    mean: float
    cases: int
    case: float
    rest: float
    units: float
    blocks: tuple[tuple[float, float], ...] = ()
    repeats: tuple[Repeats, ...] = ()

    @property
    def training(self) -> float:
        """What the trainings add to the variance of the mean; 0 without repeats."""
        return sum(one.weight * one.training for one in self.repeats)

    @property
    def error(self) -> float:
        """The standard error."""
        return float(self.spread()[0])

    @property
    def degrees(self) -> float:
        """Degrees of freedom, Satterthwaite's."""
        return float(self.spread()[1])

    def case_degrees(self, cases: Any = 1.0) -> Any:
        """Return the degrees of freedom of `case`, Satterthwaite's of its blocks, each of which has one at least.

        Args:
            cases: how many times as many of them there would be; a number, or an array of them.
        """
        total = sum(weight for weight, _ in self.blocks)
        own = [(weight, np.maximum(units * cases - 1, np.minimum(cases, 1.0))) for weight, units in self.blocks]
        return np.maximum(total**2 / sum(weight**2 / degrees for weight, degrees in own), 1.0)

    def spread(self, cases: Any = 1.0, trainings: Any = 1.0) -> tuple[Any, Any]:
        """Return the standard error and its degrees of freedom.

        Args:
            cases: how many times as many of them there would be; a number, or an array of them.
            trainings: likewise.
        """
        if self.units < 2:
            return np.nan, np.nan
        case = self.case - self.rest + self.rest / trainings
        parts = [(case / (self.cases * cases), self.case_degrees(cases))]
        parts += [part for one in self.repeats for part in one.parts(cases, trainings)]
        squares, degrees = zip(*((square, own) for square, own in parts if np.all(own > 0)), strict=True)
        variance = np.asarray(sum(squares))
        apart = np.asarray(sum(square**2 / own for square, own in zip(squares, degrees, strict=True)))
        satterthwaite = np.divide(variance**2, apart, out=np.full_like(apart, degrees[0]), where=apart > 0)
        return np.sqrt(variance), np.maximum(satterthwaite, functools.reduce(np.minimum, degrees))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean; nan for too few units."""
        if self.units < CASES:
            return np.nan, np.nan
        error, degrees = self.spread()
        low, high = special.stdtrit(degrees, np.array(INTERVAL))
        return float(self.mean + low * error), float(self.mean + high * error)

    @property
    def p(self) -> float:
        """The two-sided p value of a mean of 0; nan for too few units."""
        if self.units < CASES:
            return np.nan
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * special.stdtr(self.degrees, -abs(self.mean) / self.error))


def estimate(scores: Array, folds: Folds, repeats: Sequence[Repeats] = (), units: Units | None = None) -> Estimate:
    """Return how sure the mean of scores is, or of differences.

    Without repeats the variance is that over all cases, as if each had a network of its own, and with them that within
    the folds. If each fold has a single unit, each has networks of its own, and the variance over all units has all.

    Args:
        scores: a mean over the trainings for each case, none missing.
        folds: of the cases.
        repeats: of the algorithm, or of both; what is not known of one is left out.
        units: of the cases, see `statistics.units_of`; None: each is its own.
    """
    cases = len(scores)
    units = np.arange(cases) if units is None else units
    number = int(units.max(initial=-1)) + 1
    if number < 2:
        return Estimate(float(scores.mean()) if cases else np.nan, cases, np.nan, 0.0, number)
    known = tuple(one for one in repeats if one.known and len(np.unique(folds)) < number)
    strata = np.unique(folds, return_inverse=True)[1] if known else np.zeros(cases, int)
    sizes = np.bincount(strata)
    apart = scores - (np.bincount(strata, scores) / sizes)[strata]
    inside = [units[strata == fold] for fold in range(len(sizes))]
    numbers = np.array([len(np.unique(own)) for own in inside])
    without = _leave_one_out(apart * np.sqrt((numbers - 1) / numbers)[strata], units, strata)
    # A unit with a fold of its own tells nothing of how units vary, and is taken to vary as the others do.
    squares = np.array([float((np.bincount(own) ** 2).sum()) for own in inside])
    tells = numbers > 1
    case = float((without**2).sum()) * squares.sum() / squares[tells].sum() / cases
    rest = min(case, sum(one.rest * one.per_case for one in known))
    blocks = _blocks(units[tells[strata]], strata[tells[strata]])
    return Estimate(float(scores.mean()), cases, case, rest, effective(units), blocks, known)


def _blocks(units: Units, folds: Folds) -> tuple[tuple[float, float], ...]:
    """Return `Estimate.blocks` of cases, of which no fold has a single unit."""
    ends = folds.max() + 1
    size = ends + int(units.max()) + 1
    shared = sparse.coo_array((np.ones(len(units)), (folds, ends + units)), shape=(size, size))
    block = csgraph.connected_components(shared, directed=False)[1][folds]
    inside = [np.bincount(units[block == one]) for one in np.unique(block)]
    return tuple((float((sizes**2).sum()), float(sizes.sum() ** 2 / (sizes**2).sum())) for sizes in inside)
