"""What is scored: one rule, the same for all algorithms, so that none is scored on other cases than another.

- Dice, NSD, ASSD and HD95 of a label count in the cases whose truth has the label. Where an algorithm misses it, Dice
  and NSD are 0 and the diagonal of the image stands for the distances.
- In a case whose truth does not have the label nobody has these scores. What an algorithm finds there is a false
  finding, which is counted and has a volume.
- The volume error, without its sign, counts everywhere.
- The score of a case is the mean over its labels. A case counts if every algorithm that is ranked has all its labels.
- Of a merged dataset, the labels of a case are those that its source annotates. Nobody has anything of the others.
- An algorithm that was trained several times, with several seeds, has the mean over its trainings: in every case the
  mean of the scores that they have there.

The rows themselves, which `evaluate` writes, keep nnU-Net's convention: a false finding is a Dice of 0.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_plugins.metrics.table import DISTANCES, METRICS
from nnunet_plugins.report.record import ReportError
from nnunet_plugins.report.statistics import Units, effective, units_of

VOLUME = "volume_error_ml"
"""The metric that counts where the truth lacks the label, too."""

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """The scores of one comparison, in arrays of trainings x cases x labels.

    Attributes:
        trainings: names of algorithms with the seeds of their repeats, in order of first appearance of the algorithms
            and of the seeds, as cases and labels are. The seed is an empty text where there is none.
        cases: their names.
        folds: by case, the fold that it was held out of; missing where that is not known, and for test images.
        labels: as in the results.
        groups: by case, what stands for its group; None, if each case is its own.
        sources: of each case, the dataset that it comes from, in a merged one; empty texts in others.
        annotated: cases x labels: somebody has looked for the label.
        there: the results have a row.
        truth: cases x labels: the truth has the label.
        values: by metric; nan where nothing is scored, or nothing is there.
        missed: the truth has the label, and the algorithm finds nothing.
        false_ml: volume of what is found of a label that the truth does not have; nan where it has it.
        dice: as nnU-Net has it.
    """

    trainings: Sequence[tuple[str, str]]
    cases: Sequence[str]
    folds: "pd.Series[int]"
    labels: Sequence[str]
    groups: pd.Series | None
    sources: Sequence[str]
    annotated: Mask
    there: Mask
    truth: Mask
    values: Mapping[str, Array]
    missed: Mask
    false_ml: Array
    dice: Array

    @property
    def algorithms(self) -> list[str]:
        """Their names, in order of first appearance."""
        return list(dict.fromkeys(name for name, _ in self.trainings))

    @property
    def units(self) -> int:
        """How many independent parts the cases have whose truth has any label: groups, or cases; see `statistics`."""
        return len(np.unique(self._units))

    @property
    def unit(self) -> str:
        """What they are, "group" or "case"; groups of one case each are cases."""
        return "group" if self.units < len(self._units) else "case"

    @property
    def effective(self) -> float:
        """How many units of equal size tell as much, see `statistics.effective`."""
        return effective(self._units)

    @property
    def _units(self) -> Units:
        return units_of(pd.Index(self.cases)[self.truth.any(axis=1)], self.groups)

    @property
    def whole(self) -> Mask:
        """Algorithms x cases: the algorithm has all labels of the case, of one of its trainings at least."""
        whole = self._whole
        return np.array([whole[rows].any(axis=0) for rows in self._rows()], bool).reshape(-1, len(self.cases))

    @property
    def _whole(self) -> Mask:
        """Trainings x cases: the training has all labels of the case."""
        return np.asarray((self.there | ~self.annotated).all(axis=2))

    def _rows(self) -> list[list[int]]:
        """Return the numbers of the trainings of each algorithm."""
        return [[n for n, (one, _) in enumerate(self.trainings) if one == name] for name in self.algorithms]

    @property
    def is_partial(self) -> bool:
        """Whether some labels are annotated in a part of the cases only."""
        return not self.annotated.all()

    def only(self, cases: Mask) -> "Scores":
        """Return the scores of some of the cases."""
        return replace(
            self,
            cases=[case for case, kept in zip(self.cases, cases, strict=True) if kept],
            folds=self.folds[cases],
            groups=None if self.groups is None else self.groups[cases],
            sources=[source for source, kept in zip(self.sources, cases, strict=True) if kept],
            annotated=self.annotated[cases],
            there=self.there[:, cases],
            truth=self.truth[cases],
            values={metric: values[:, cases] for metric, values in self.values.items()},
            missed=self.missed[:, cases],
            false_ml=self.false_ml[:, cases],
            dice=self.dice[:, cases],
        )

    def by_training(self, metric: str) -> pd.DataFrame:
        """Return the scores of the cases by each training, cases x (algorithm, seed); nan where there is none."""
        heads = pd.MultiIndex.from_tuples(self.trainings, names=["algorithm", "seed"])
        return pd.DataFrame(self._of_cases(metric).T, pd.Index(self.cases, name="case"), heads)

    def by_case(self, metric: str) -> pd.DataFrame:
        """Return the scores of the cases, cases x algorithms; nan where a case has no label to score."""
        return self._frame(self.means(self._of_cases(metric)).T, self.cases, "case")

    def of_algorithms(self, metric: str) -> Array:
        """Return the scores, algorithms x cases x labels."""
        return self.means(self.values[metric])

    def of_label(self, metric: str, number: int) -> pd.DataFrame:
        """Return the scores of one label, cases x algorithms; nan where it is not scored."""
        return self._frame(self.of_algorithms(metric)[:, :, number].T, self.cases, "case")

    def by_label(self, metric: str) -> pd.DataFrame:
        """Return the means over the cases, algorithms x labels; nan where no case has the label."""
        values = self.of_algorithms(metric)
        means = _mean(values, self._counted(metric) & ~np.isnan(values), axis=1)
        return self._frame(means, self.algorithms, "algorithm", self.labels)

    def missed_labels(self) -> "pd.Series[float]":
        """Return how many labels of the truth an algorithm misses: the mean over its trainings."""
        return self.missed_by_label().sum(axis=1)

    def missed_by_label(self) -> pd.DataFrame:
        """Return in how many cases an algorithm misses a label that is there, the mean over its trainings."""
        missed = self.means(np.where(self.there, self.missed, np.nan))
        return self._frame(np.nansum(missed, axis=1), self.algorithms, "algorithm", self.labels)

    def false_findings(self) -> pd.DataFrame:
        """Return a row per algorithm on the labels that the truth of a case does not have.

        Returns:
            `absent`, how many there are, over cases and labels; `found`, in how many of them the algorithm finds
            something, as mean over its trainings; `share`; `volume_ml`, the mean volume of what it finds where it does.
        """
        absent = self.there & ~self.truth
        found = absent & (self.false_ml > 0)
        volume = np.where(found, self.false_ml, 0.0)
        rows = [
            (absent[own].any(axis=0), *(part[own].sum() for part in (absent, found, volume))) for own in self._rows()
        ]
        counts = [(there.sum(), in_all, found, volume) for there, in_all, found, volume in rows]
        index = pd.Index(self.algorithms, name="algorithm")
        table = pd.DataFrame(counts, index, ["absent", "in_all", "found", "volume_ml"])
        table["share"] = table["found"] / table["in_all"].where(table["in_all"] > 0)
        table["volume_ml"] /= table["found"].where(table["found"] > 0)
        table["found"] = (table["share"] * table["absent"]).fillna(0.0)
        return table[["absent", "found", "share", "volume_ml"]]

    def nnunet_dice(self) -> "pd.Series[float]":
        """Return what nnU-Net's `summary.json` calls `foreground_mean` of these cases: labels' means, then their mean.

        A false finding is a Dice of 0 there, and a label in neither mask is left out, for each algorithm by itself.
        Where labels are annotated in a part of the cases, nnU-Net's number is another one: it counts all findings of
        the others. Of several trainings it is the mean.
        """
        return pd.Series(self.means(self._nnunet_dice()), pd.Index(self.algorithms, name="algorithm"))

    def nnunet_dice_by_training(self) -> "pd.Series[float]":
        """Return the same of every training, by algorithm and seed."""
        index = pd.MultiIndex.from_tuples(self.trainings, names=["algorithm", "seed"])
        return pd.Series(self._nnunet_dice(), index)

    def _nnunet_dice(self) -> Array:
        return np.asarray(_mean(self.dice, ~np.isnan(self.dice), axis=1).mean(axis=1))

    def means(self, values: Array) -> Array:
        """Return the means over the trainings of each algorithm, of those that have a value.

        Args:
            values: trainings x anything.
        """
        found = np.full((len(self.algorithms), *values.shape[1:]), np.nan)
        for number, rows in enumerate(self._rows()):
            found[number] = _mean(values[rows], ~np.isnan(values[rows]), axis=0)
        return found

    def _of_cases(self, metric: str) -> Array:
        """Return the scores of the cases, trainings x cases."""
        return np.where(self._whole, _mean(self.values[metric], self._counted(metric), axis=2), np.nan)

    def _counted(self, metric: str) -> Mask:
        return self.annotated if metric == VOLUME else self.truth

    def _frame(
        self, values: Array, index: Sequence[str], name: str, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        heads = pd.Index(self.algorithms, name="algorithm") if columns is None else pd.Index(columns, name="label")
        return pd.DataFrame(values, pd.Index(index, name=name), heads)


def _mean(values: Array, counted: Mask, axis: int) -> Array:
    """Return the means of the values that count; nan where none does."""
    number = np.broadcast_to(counted, values.shape).sum(axis=axis)
    return np.asarray(np.where(counted, values, 0.0).sum(axis=axis) / np.where(number, number, np.nan))


def score(
    results: pd.DataFrame,
    annotated: Mapping[str, Collection[str]] | None = None,
    group_of: Mapping[str, int] | None = None,
) -> Scores:
    """Score the results of one comparison.

    Args:
        results: columns `record.RESULTS`, of a merged dataset `source` as well.
        annotated: of a merged dataset, the names of the labels that each source annotates; None: all are annotated.
        group_of: the numbers of the cases' groups; a case that is not there is its own.

    Raises:
        ReportError: if two rows are about one case, label and training, a row lacks what its truth demands, or is
            about what is not annotated, the algorithms were evaluated against different truths, or of an algorithm some
            trainings have a seed and others none.
    """
    seeded = results.groupby("algorithm")["seed"].transform(lambda seeds: (seeds != "").any())
    _refuse(
        results,
        (seeded.astype(bool) & (results["seed"] == "")).to_numpy(),
        "has no seed, and other rows of the algorithm have one: repeats are told apart by their seeds",
    )
    trainings = _trainings(results)
    number_of = {training: number for number, training in enumerate(trainings)}
    of_rows = [number_of[pair] for pair in zip(results["algorithm"], results["seed"], strict=True)]
    (of_case, cases), (of_label, labels) = (pd.factorize(results[name]) for name in ("case", "label"))
    shape = len(trainings), len(cases), len(labels)
    place = np.ravel_multi_index((of_rows, of_case, of_label), shape) if len(results) else np.zeros(0, int)
    _refuse(results, pd.Series(place).duplicated().to_numpy(), "is there twice: two runs have one name")
    there = np.zeros(shape, bool)
    there.ravel()[place] = True
    cases, labels = list(map(str, cases)), list(map(str, labels))
    sources, known = _annotated(results, cases, labels, annotated)
    known_here = known.ravel()[place % known.size] if len(results) else np.zeros(0, bool)
    _refuse(results, ~known_here, "is about a label that the case's source does not annotate")

    def spread(values: "pd.Series[float]") -> Array:
        array = np.full(shape, np.nan)
        array.ravel()[place] = values.to_numpy(float)
        return array

    volume = results["volume_truth_ml"].astype(float)
    _refuse(results, volume.isna().to_numpy(), "has no volume_truth_ml, so it is not known whether the truth has it")
    volumes = spread(volume)
    largest, smallest = (np.nan_to_num(limit(volumes, axis=0, initial=start, where=there)) for limit, start in _LIMITS)
    truth = largest > 0
    other = there & (largest - np.where(np.isfinite(smallest), smallest, largest) > 1e-6 * largest)
    _refuse(
        results, other.ravel()[place], "has another truth than for other algorithms: the tables of metrics do not fit"
    )
    values = {}
    has = truth.ravel()[place % truth.size] if len(results) else np.zeros(0, bool)
    for metric in METRICS:
        column = results[metric].astype(float)
        if metric == VOLUME:
            column = column.abs()
        else:
            if metric in DISTANCES:
                column = column.where(~np.isinf(column), results["diagonal_mm"].astype(float))
            column = column.where(has)
        lacks = column.isna().to_numpy() & (has | (metric == VOLUME))
        _refuse(results, lacks, f"has no {metric}, although it counts there")
        values[metric] = spread(column)
    dice = spread(results["Dice"])
    found = results["volume_error_ml"].astype(float)
    # The volume of a false finding; one that is too small for the table is one all the same.
    false = found.where(results["Dice"].isna(), found.clip(lower=np.finfo(float).tiny)).where(~has)
    missed = there & truth & np.isinf(spread(results["ASSD_mm"]))
    folds = results.groupby("case", sort=False)["fold"].first().astype("Int64")
    groups = pd.Series({case: group_of.get(case, case) for case in cases}, dtype=object) if group_of else None
    return Scores(
        trainings, cases, folds, labels, groups, sources, known, there, truth, values, missed, spread(false), dice
    )


def _trainings(results: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the names of algorithms with the seeds of their repeats, by algorithms in order of first appearance."""
    pairs = dict.fromkeys(zip(results["algorithm"].map(str), results["seed"].map(str), strict=True))
    return [pair for name in dict.fromkeys(name for name, _ in pairs) for pair in pairs if pair[0] == name]


def _annotated(
    results: pd.DataFrame, cases: Sequence[str], labels: Sequence[str], annotated: Mapping[str, Collection[str]] | None
) -> tuple[list[str], Mask]:
    """Return the source of each case, and which labels are annotated there, cases x labels."""
    if annotated is None or "source" not in results:
        return [""] * len(cases), np.ones((len(cases), len(labels)), bool)
    of = results.drop_duplicates("case").set_index("case")["source"].fillna("")
    _refuse(
        results, ~results["source"].isin(list(annotated)).to_numpy(), "is of a source that the record does not know"
    )
    named = results.drop_duplicates("label").set_index("label")["name"]
    sources = [str(of[case]) for case in cases]
    known = [[named[label] in annotated[source] for label in labels] for source in sources]
    return sources, np.array(known, bool).reshape(len(cases), len(labels))


_LIMITS = ((np.max, 0.0), (np.min, np.inf))


def _refuse(results: pd.DataFrame, wrong: Mask, what: str) -> None:
    if wrong.any():
        row = results.iloc[int(wrong.argmax())]
        who = f"{row['algorithm']}, seed {row['seed']}" if row["seed"] else row["algorithm"]
        raise ReportError(
            f"results.csv: {who}, case {row['case']}, label {row['label']} {what}. Give the benchmark's "
            "command again, which collects its results anew"
        )
