"""Comparisons of two algorithms each, with all that is known of how sure they are: over cases, and over trainings.

`statistics.compare` sees the cases. Where an algorithm was trained several times, `variance` adds what its trainings
vary by: then interval and p value are those of a t test that has both. `claims` says how likely the true difference is
where.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_plugins.report.claims import Claim, claim, needs
from nnunet_plugins.report.scores import Scores
from nnunet_plugins.report.statistics import CASES, DECIMALS, HIGHER_IS_BETTER, compare, units_of
from nnunet_plugins.report.variance import Estimate, Repeats, estimate, learn_repeats

Array = NDArray[Any]

COLUMNS = [
    *("n", "units", "effective", "mean_difference", "ci_low", "ci_high", "effect_size", "p", "wins", "ties", "losses"),
    *Claim._fields,
    *("repeated", "against_repeated", "needed_cases", "needed_repeats", "needed_factor"),
]


@dataclass(frozen=True)
class Measure:
    """The scores of a comparison in one metric.

    Attributes:
        metric: its name.
        by_case: cases x algorithms; means over an algorithm's trainings.
        by_training: cases x (algorithm, seed).
        folds: of the cases.
        groups: of the cases; None, if these are units of their own.
    """

    metric: str
    by_case: pd.DataFrame
    by_training: pd.DataFrame
    folds: pd.Series
    groups: pd.Series | None = None

    @classmethod
    def of(cls, scores: Scores, metric: str) -> "Measure":
        """Return the scores in a metric."""
        by_case = scores.by_case(metric)
        by_training = scores.by_training(metric) if scores.trainings else by_case
        return cls(metric, by_case, by_training, scores.folds, scores.groups)

    def trainings(self, name: str) -> pd.DataFrame:
        """Return the scores of an algorithm's trainings that have any, cases x seeds."""
        own = self.by_training.columns.get_level_values(0) == name
        return self.by_training.loc[:, own].droplevel(0, axis=1).dropna(axis=1, how="all")

    def seeds(self, name: str) -> int:
        """Return how many trainings of an algorithm have any score in one fold, at most."""
        there = ~np.isnan(self._trainings[name])
        return max((int(there[self._folds == fold].any(axis=0).sum()) for fold in np.unique(self._folds)), default=0)

    def repeats(self, name: str, cases: Array | None = None) -> Repeats:
        """Return what the repeats of an algorithm tell, on some of the cases."""
        scores = self._trainings[name]
        if scores.shape[1] < 2:
            return Repeats()
        kept = slice(None) if cases is None else cases
        units = units_of(self.by_case.index[kept], self.groups)
        return learn_repeats(scores[kept], self._folds[kept], units)

    @cached_property
    def _trainings(self) -> dict[str, Array]:
        if self.by_training.shape[1] == self.by_case.shape[1]:  # one each, as in most benchmarks
            return {str(name): self.by_case[[name]].to_numpy(float) for name in self.by_case}
        return {str(name): self.trainings(str(name)).to_numpy(float) for name in self.by_case}

    @cached_property
    def _folds(self) -> Array:
        return pd.factorize(self.folds)[0]

    def estimate(self, name: str, against: str | None = None) -> Estimate:
        """Return the mean score of an algorithm, or the mean difference of two, and how sure it is."""
        values = self.by_case[name].to_numpy(float)
        if against is not None:
            values = values - self.by_case[against].to_numpy(float)
        there = ~np.isnan(values)
        known = [self.repeats(one, there) for one in (name, against) if one is not None]
        units = units_of(self.by_case.index[there], self.groups)
        return estimate(values[there].round(DECIMALS), self._folds[there], known, units)


def compare_pairs(measure: Measure, pairs: Sequence[tuple[str, str]], *, rope: float | None) -> pd.DataFrame:
    """Compare pairs of algorithms on the cases that both have.

    Args:
        measure: their scores.
        pairs: of an algorithm and the one it is compared with.
        rope: half the width of the region of practical equivalence, in the metric's unit; None: there is none.

    Returns:
        A row per pair (levels `algorithm`, `against`), in their order: as `statistics.compare` has it but for `p_holm`,
        with the probabilities of `claims.Claim`; whether trainings of the algorithm and of the other one were
        `repeated` and `against_repeated`, so that interval and p value have their variance; and of what it would take
        to tell a difference of `rope`, `needed_cases`, or `needed_repeats`, or `needed_factor` times as many of both.
        For too few cases there is neither interval, p value nor probability.
    """
    tables = []
    of = {name: measure.repeats(name).known for name in {name for pair in pairs for name in pair}}
    known = {pair: any(of[name] for name in pair) for pair in pairs}
    higher = HIGHER_IS_BETTER[measure.metric]
    for against, repeated in dict.fromkeys((against, known[name, against]) for name, against in pairs):
        names = [name for name, other in pairs if other == against and known[name, other] == repeated]
        options: dict[str, Any] = {"higher_is_better": higher, "groups": measure.groups}
        options |= {"resamples": 0} if repeated else {}  # intervals that others take the place of
        found = compare(measure.by_case[[against, *names]], against, **options)
        tables.append(pd.concat({against: found}, names=["against"]).swaplevel())
    index = pd.MultiIndex.from_tuples(list(pairs), names=["algorithm", "against"])
    if not tables:
        return pd.DataFrame(columns=COLUMNS, index=index, dtype=float)
    table = pd.concat(tables).loc[index]
    table["p"] = table["p"].where(table["effective"] >= CASES)
    rows = [_weigh(measure, name, against, rope) for name, against in pairs]
    more = pd.DataFrame(rows, index)
    by_trainings = more["repeated"] | more["against_repeated"]
    for column in ("p", "ci_low", "ci_high"):
        table[column] = table[column].where(~by_trainings, more[column])
    return table.join(more.drop(columns=["p", "ci_low", "ci_high"]))[COLUMNS]


def _weigh(measure: Measure, name: str, against: str, rope: float | None) -> dict[str, Any]:
    found = measure.estimate(name, against)
    gains = found if HIGHER_IS_BETTER[measure.metric] else replace(found, mean=-found.mean)
    said = claim(gains, rope or 0.0)
    if rope is None:
        said = Claim(said.better, np.nan, np.nan, np.nan)
    needed = needs(found, rope or 0.0, max(measure.seeds(one) for one in (name, against)))
    known = [measure.repeats(one).known for one in (name, against)]
    low, high = found.interval
    return {
        **said._asdict(),
        "p": found.p,
        "ci_low": low,
        "ci_high": high,
        "repeated": known[0],
        "against_repeated": known[1],
        "needed_cases": needed.cases,
        "needed_repeats": needed.repeats,
        "needed_factor": needed.both,
    }


def with_trainings(means: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """Return mean Dice with intervals over cases and trainings in place of those over cases, where there are repeats.

    What of an interval lies below 0 or above 1 is left out.
    """
    means = means.copy()
    for name in means.index:
        if measure.repeats(name).known:
            means.loc[name, ["ci_low", "ci_high"]] = np.clip(measure.estimate(name).interval, 0, 1)
    return means


def training_errors(measure: Measure) -> "pd.Series[float]":
    """Return what the trainings add to the standard error of each algorithm's mean; 0 where it is not known."""
    known = {name: measure.repeats(name) for name in measure.by_case}
    errors = {name: np.sqrt(one.weight * one.training) if one.known else 0.0 for name, one in known.items()}
    return pd.Series(errors, dtype=float)


def components(measure: Measure) -> pd.DataFrame:
    """Return what the scores of every algorithm with repeats vary by, as standard deviations.

    Those of a case are of a case by itself: what cases of a group have in common is in the error alone.

    Returns:
        `trainings` of a fold at most; `case`; `fold`, what remains of the differences between the folds' means, nan for
        one fold; `training`; `rest`, of a case from one training to the next; `error`, of the mean.
    """
    rows: dict[str, dict[str, float]] = {}
    for name in measure.by_case:
        repeats = measure.repeats(name)
        if not repeats.known:
            continue
        found, alone = measure.estimate(name), replace(measure, groups=None)
        by_itself = alone.estimate(name)
        folds = measure.by_case[name].groupby(measure.folds)
        means, sizes = folds.mean().dropna(), folds.count()
        chance = found.case * (1 / sizes[sizes > 0]).mean() + repeats.training * repeats.per_case
        fold = means.var() - chance if len(means) > 1 else np.nan
        rows[name] = {
            "trainings": measure.seeds(name),
            **{
                part: float(np.sqrt(np.maximum(variance, 0)))
                for part, variance in {
                    "case": by_itself.case - by_itself.rest,
                    "fold": fold,
                    "training": repeats.training,
                    "rest": alone.repeats(name).rest,
                }.items()
            },
            "error": found.error,
        }
    columns = ["trainings", "case", "fold", "training", "rest", "error"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("algorithm")


def gaps(measure: Measure) -> list[tuple[str, str, list[str]]]:
    """Return the algorithms' trainings that lack folds which another training of the same algorithm has, and these."""
    found = []
    for name in measure.by_case:
        there = measure.trainings(str(name)).notna().groupby(measure.folds, sort=False).any()
        for seed in there:
            if lacking := [str(fold) for fold in there.index[there.any(axis=1) & ~there[seed]]]:
                found.append((str(name), str(seed), lacking))
    return found
