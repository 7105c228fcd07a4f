"""The analysis of a benchmark, made once; headline, tables, figures, page and files for papers only read it.

record -> scores (one rule, `scores.py`) -> statistics -> Analysis -> Markdown, LaTeX, CSV, figures, page
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.board import COUNTS, columns, costs, flags, placed
from nnunet_plugins.report.claims import ROPE
from nnunet_plugins.report.equality import Equality, read_equality
from nnunet_plugins.report.evidence import Measure, components, gaps, training_errors, with_trainings
from nnunet_plugins.report.objects import count_objects, mean_qualities
from nnunet_plugins.report.portions import beside, by_source
from nnunet_plugins.report.ranking import Stability, rank_shares, stability
from nnunet_plugins.report.record import COMPARISON, UNRANKED, Record, ReportError
from nnunet_plugins.report.scores import Scores, score
from nnunet_plugins.report.statistics import (
    CASES,
    DECIMALS,
    CriticalDifference,
    critical_difference,
    mean_with_ci,
)
from nnunet_plugins.report.verdicts import against_twins, differences, every_pair, kinds
from nnunet_plugins.rows import without_seed
from nnunet_plugins.trainers.names import find_modifier

LABEL_FIGURES = 6
"""With more labels than these, there is no figure per label."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What may stand in one table, and all that is said of it. Tables have the algorithms in the order of `board`.

    Attributes:
        split: "cross-validation" or "test".
        dataset: its name.
        configuration: its name.
        runs: columns `record.RUNS`.
        curves: columns `record.CURVES`.
        equality: what was equal; None, if that is not known.
        versions: of the software, by name.
        algorithms: by name, in the record's order, those without results last: `trainer` (without a seed), `plans`,
            `role`, `lacking` (how many of the cases) and `is_ranked`.
        baseline: the algorithm that the others are compared with; None, if it has no results.
        ranked: the algorithms that have results and take part in ranks and tests, the best first.
        cases: how many there are altogether.
        dropped: the cases that some or all ranked algorithms lack, which count for none.
        tolerances: of the NSD, in mm.
        labels: what each label is called, by label.
        scores: of the cases that count.
        by_case: by metric, the scores, cases x algorithms.
        board: a row per algorithm, ranked by mean Dice; below them the ensembles, and what has no results. `place`;
            `role`; `lacking`; `cases` with a Dice; the means of the metrics, that of Dice with its 95% interval
            `ci_low` and `ci_high`, and as nnU-Net's `summary.json` has it, `nnunet_dice`; of the comparison of Dice
            with the baseline's `p_holm`, `wins`, `ties` and `losses`; `mean_rank` of Dice over the cases; how many
            labels are `missed`, and of the `absent` ones `found`; `flags` in words.
        rope: half the width of the region of practical equivalence, in Dice.
        paired: by metric, how every ranked algorithm differs from the baseline, as `evidence.compare_pairs` has it,
            with what `verdicts.judge` adds. Without a baseline there are no rows.
        twins: in Dice, how every network differs from its ablation twin, if that is not the baseline: as `paired`, by
            `algorithm` and `against`, with `p_holm` over these rows.
        pairs: the same of every pair of ranked algorithms, the better one first.
        beside: by metric, how every network for many datasets differs from the same one that was trained on this
            dataset alone, `alone`: as `paired`, with `p_holm` over these rows.
        by_source: of a merged dataset, a row per source and algorithm (levels `source`, `algorithm`), in the order of
            `board`: the columns of it that are about `cases` and means, of the cases of the source alone, and of the
            comparison of Dice with the baseline's there `mean_difference`, `difference_low`, `difference_high`,
            `p_holm`, `wins`, `ties` and `losses`. No rows for others.
        objects: of labels that consist of objects, such as lesions, what is found of them, see `objects.count_objects`;
            the board has the means over these labels.
        by_label: by metric, the means over the cases, algorithms x labels.
        missed_by_label: in how many cases a label that is there is missed, algorithms x labels; means over trainings.
        present: by label, in how many of the cases the truth has it.
        by_fold: a row per algorithm and fold (levels `algorithm`, `fold`): the `mean` Dice of the fold's cases and its
            deviation over them, `sd`. No rows where there are not two folds.
        label_dice: by label, its Dice, cases x algorithms, and the means; where there are few labels.
        dice: mean Dice and its interval, by algorithm.
        false_findings: see `scores.Scores.false_findings`.
        components: what the Dice of algorithms that were trained several times varies by, see `evidence.components`.
        gaps: the repeats that lack folds, see `evidence.gaps`.
        ruled_out: by trainer, why it was not trained here.
        stability: how firm the ranking by Dice is; None for less than two ranked algorithms.
        rank_shares: algorithms x ranks, as `statistics.rank_distribution` has it; no rows for less than two, or too few
            cases.
        costs: see `board.costs`.
    """

    split: str
    dataset: str
    configuration: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    equality: Equality | None
    versions: Mapping[str, str]
    algorithms: pd.DataFrame
    baseline: str | None
    ranked: Sequence[str]
    cases: int
    dropped: Sequence[str]
    tolerances: Sequence[float]
    labels: Mapping[str, str]
    scores: Scores
    by_case: Mapping[str, pd.DataFrame]
    board: pd.DataFrame
    rope: float
    paired: Mapping[str, pd.DataFrame]
    twins: pd.DataFrame
    pairs: pd.DataFrame
    beside: Mapping[str, pd.DataFrame]
    by_source: pd.DataFrame
    objects: pd.DataFrame
    by_label: Mapping[str, pd.DataFrame]
    missed_by_label: pd.DataFrame
    present: "pd.Series[int]"
    by_fold: pd.DataFrame
    label_dice: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]
    dice: pd.DataFrame
    false_findings: pd.DataFrame
    components: pd.DataFrame
    gaps: Sequence[tuple[str, str, list[str]]]
    ruled_out: Mapping[str, str]
    stability: Stability | None
    rank_shares: pd.DataFrame
    costs: pd.DataFrame

    @property
    def title(self) -> str:
        """Dataset, configuration and split."""
        return f"{self.dataset}, {self.configuration}, {self.split}"

    @property
    def leaders(self) -> list[str]:
        """The ranked algorithms with the highest mean Dice: one, or several that have the same; none without a Dice."""
        means = self.board.loc[list(self.ranked), "Dice"].round(DECIMALS)
        return [str(name) for name in means.index[means == means.max()]]

    @property
    def shared_modifiers(self) -> list[str]:
        """The modifiers of ours that the trainers of all ranked algorithms have."""
        names = [trainer.split("_")[1:] for trainer in self.algorithms.loc[list(self.ranked), "trainer"]]
        return [part for part in names[0] if find_modifier(part) and all(part in one for one in names)] if names else []

    @property
    def has_intervals(self) -> bool:
        """Whether there are cases, or groups of cases, enough for intervals."""
        return self.scores.effective >= CASES

    @property
    def is_tested(self) -> bool:
        """Whether there are cases enough to test anything, and algorithms to compare."""
        return self.has_intervals and (len(self.ranked) > 1 or bool(len(self.beside["Dice"])))

    @property
    def tests(self) -> tuple[bool, bool]:
        """Whether any p value is over cases alone, by the signed-rank test, and whether any is by a t test."""
        return kinds([*self.paired.values(), self.pairs, self.twins, *self.beside.values()])

    @property
    def repeated(self) -> list[str]:
        """The ranked algorithms that have several trainings of a fold."""
        return [name for name in self.ranked if name in self.components.index]

    @property
    def once(self) -> list[str]:
        """The other ranked algorithms."""
        return [name for name in self.ranked if name not in self.components.index]

    @property
    def bootstrapped(self) -> list[str]:
        """The algorithms, ranked or not, whose mean Dice has a bootstrap interval, over cases alone."""
        having = self.dice.index[self.dice["ci_low"].notna()]
        return [str(name) for name in having if name not in self.components.index]

    @property
    def blank(self) -> list[str]:
        """The ranked algorithms that found nothing that is there, in any case: they have not learnt yet."""
        best = self.by_case["Dice"].max()
        return [name for name in self.ranked if best[name] == 0]

    @property
    def scored(self) -> int:
        """How many cases have a Dice: those whose truth has any label."""
        return int(self.scores.truth.any(axis=1).sum())

    @property
    def has_own_mean(self) -> bool:
        """Whether the mean Dice is another one than in nnU-Net's `summary.json`, for any algorithm.

        Where labels are annotated in a part of the cases, nnU-Net's is not known: it counts all that is found of the
        others.
        """
        if self.scores.is_partial:
            return False
        return bool(((self.board["Dice"] - self.board["nnunet_dice"]).abs() > 10**-DECIMALS).any())


@dataclass(frozen=True)
class Analysis:
    """All that a report says.

    Attributes:
        record: what it is made of.
        rope: half the width of the region of practical equivalence, in Dice.
        comparisons: in the record's order; whether they are fair is not asked here.
        equality: what was equal, by dataset and configuration.
        across: comparisons across datasets, by configuration and split; those of fewer than five are left out.
    """

    record: Record
    rope: float
    comparisons: Sequence[Comparison]
    equality: Sequence[Equality]
    across: Mapping[str, CriticalDifference]


def analyse(record: Record, rope: float = ROPE) -> Analysis:
    """Analyse a record.

    Args:
        record: of a benchmark.
        rope: a smaller difference in Dice counts for nothing in practice.

    Raises:
        ReportError: if its results contradict themselves.
    """
    roles = pd.concat([table[[*COMPARISON[1:], "algorithm", "role"]] for table in (record.results, record.runs)])
    equality = [read_equality(entry, roles) for entry in record.equality]
    found = [
        _compare(record, dict(zip(COMPARISON, values, strict=True)), results, equality, rope)
        for values, results in record.results.groupby(COMPARISON, sort=False)
    ]
    return Analysis(record, rope, found, equality, _across_datasets(found))


def _compare(
    record: Record, place: Mapping[str, str], results: pd.DataFrame, equality: Sequence[Equality], rope: float
) -> Comparison:
    where = {name: place[name] for name in COMPARISON[1:]}
    runs, curves = (
        table[(table[list(where)] == pd.Series(where)).all(axis=1)] for table in (record.runs, record.curves)
    )
    proof = next((part for part in equality if (part.dataset, part.configuration) == tuple(where.values())), None)
    algorithms = _algorithms(results, runs, curves)
    sources = record.about.get("sources", {}).get(place["dataset"])
    known = sources and {name: source["labels"] for name, source in sources.items()}
    everything = score(results, known, record.groups_of(place["split"], place["dataset"]))
    left_out = record.about.get("left_out", {}).get("/".join(where.values()), {}).get(place["split"], ())
    cases = {*everything.cases, *left_out}
    having = pd.Series(everything.whole.sum(axis=1), everything.algorithms).reindex(algorithms.index, fill_value=0)
    algorithms = algorithms.assign(lacking=len(cases) - having)
    # Those that have nothing, and those that are not ranked, do not decide which cases count.
    algorithms["is_ranked"] = ~algorithms["role"].isin(UNRANKED) & (having > 0)
    ranked = list(algorithms.index[algorithms["is_ranked"]])
    deciding = [name in ranked for name in everything.algorithms]
    scores = everything.only(np.asarray(everything.whole[deciding].all(axis=0)))
    measures = {metric: Measure.of(scores, metric) for metric in METRICS}
    ropes = {metric: rope if metric == "Dice" else None for metric in METRICS}
    in_dice, by_case = measures["Dice"], {metric: measure.by_case for metric, measure in measures.items()}
    dice = with_trainings(mean_with_ci(by_case["Dice"], groups=scores.groups), in_dice)
    baseline = _baseline(algorithms)
    paired = {metric: differences(measure, ranked, baseline, ropes[metric]) for metric, measure in measures.items()}
    board = algorithms.drop(columns=["trainer", "plans", "is_ranked"]).join(columns(scores, by_case, dice, ranked))
    board = board.join(everything.nnunet_dice().rename("nnunet_dice")).join(paired["Dice"][COUNTS])
    board["flags"] = [flags(name, algorithms, len(cases), proof) for name in board.index]
    board = placed(board, ranked)
    order = [str(name) for name in board.index if name in everything.algorithms]
    first = [name for name in order if name in ranked]
    errors = training_errors(in_dice)
    objects = count_objects(results, list(scores.cases), order)
    board = board if objects.empty else board.join(mean_qualities(objects))
    return Comparison(
        **place,
        runs=runs,
        curves=curves,
        equality=proof,
        versions=record.about.get("versions", {}),
        algorithms=algorithms,
        baseline=baseline,
        ranked=first,
        cases=len(cases),
        dropped=sorted(cases - {*scores.cases}),
        tolerances=[float(value) for value in results["tolerance_mm"].dropna().unique()],
        labels=_label_names(results),
        scores=scores,
        by_case={metric: table[order] for metric, table in by_case.items()},
        board=board,
        rope=rope,
        paired={metric: table.loc[[n for n in first if n in table.index]] for metric, table in paired.items()},
        twins=against_twins(
            in_dice,
            algorithms.loc[first + list(algorithms.index.difference(first))],
            record.about.get("twins", {}),
            baseline,
            rope,
        ),
        pairs=every_pair(in_dice, first, rope),
        beside={
            metric: beside(measure, record.about.get("beside", {}), algorithms, ropes[metric])
            for metric, measure in measures.items()
        },
        by_source=by_source(scores, list(sources or ()), order, first, baseline),
        objects=objects,
        by_label={metric: scores.by_label(metric).loc[order] for metric in METRICS},
        missed_by_label=scores.missed_by_label().loc[order],
        present=pd.Series(scores.truth.sum(axis=0), pd.Index(scores.labels, name="label"), dtype=int),
        by_fold=_by_fold(by_case["Dice"][order], scores.folds),
        label_dice=_label_dice(scores, order),
        dice=dice.loc[order],
        false_findings=scores.false_findings().loc[order],
        components=components(in_dice),
        gaps=gaps(in_dice),
        ruled_out={
            one["trainer"]: one["reason"] for one in record.about.get("ruled_out", ()) if where.items() <= one.items()
        },
        stability=stability(by_case["Dice"][first], higher_is_better=True, errors=errors, groups=scores.groups),
        rank_shares=rank_shares(by_case["Dice"][first], errors, scores.groups),
        costs=costs(runs),
    )


def _algorithms(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return `trainer`, `plans` and `role` by algorithm, in the tables' order.

    Raises:
        ReportError: if one name stands for two trainings in a table: their numbers would be one.
    """
    for table in tables:
        named = table[["algorithm", "trainer", "plans"]]
        named = named.assign(trainer=named["trainer"].map(without_seed)).drop_duplicates()
        if (twice := named["algorithm"].duplicated(keep=False)).any():
            one, other, *_ = named[twice].sort_values("algorithm", kind="stable").itertuples(index=False)
            raise ReportError(
                f"{one.algorithm} stands for {one.trainer} on {one.plans} and for {other.trainer} on {other.plans}, "
                "which are not told apart in this record. Give the benchmark's command again: it gives them names of "
                "their own"
            )
    names = pd.concat([table[["algorithm", "trainer", "plans", "role"]] for table in tables])
    names = names.drop_duplicates("algorithm").set_index("algorithm")
    return names.assign(trainer=names["trainer"].map(without_seed))


def _baseline(algorithms: pd.DataFrame) -> str | None:
    found = algorithms.index[algorithms["is_ranked"] & (algorithms["role"] == "baseline")]
    return str(found[0]) if len(found) else None


def _label_names(results: pd.DataFrame) -> dict[str, str]:
    """Return what to call each label: its name if it has one of its own, else its number."""
    labels = results[["label", "name"]].drop_duplicates("label")
    own = labels["name"].notna() & (labels["name"] != "") & ~labels["name"].duplicated(keep=False)
    return dict(zip(labels["label"], labels["name"].where(own, labels["label"]), strict=True))


def _label_dice(scores: Scores, order: Sequence[str]) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the Dice of the labels, and the means, where there are several labels that anything is known of."""
    if not 1 < len(scores.labels) <= LABEL_FIGURES:
        return {}
    tables = {label: scores.of_label("Dice", number)[order] for number, label in enumerate(scores.labels)}
    return {
        label: (table, mean_with_ci(table, groups=scores.groups))
        for label, table in tables.items()
        if table.count().any()
    }


def _by_fold(dice: pd.DataFrame, folds: "pd.Series[int]") -> pd.DataFrame:
    """Return what is found in the cases that each fold holds out, where there are several folds."""
    if folds.nunique() < 2:
        return pd.DataFrame()
    groups = dice.groupby(folds.reindex(dice.index))
    found = {"mean": groups.mean(), "sd": groups.std()}
    return pd.DataFrame({name: table.rename_axis("fold").T.stack(future_stack=True) for name, table in found.items()})


def _across_datasets(found: Sequence[Comparison]) -> dict[str, CriticalDifference]:
    """Compare the algorithms across datasets by Dice, by configuration and split."""
    tables: dict[str, dict[str, pd.Series]] = {}
    for comparison in found:
        mean = comparison.board["mean_rank"].reindex(comparison.ranked)
        tables.setdefault(f"{comparison.configuration}, {comparison.split}", {})[comparison.dataset] = mean
    results = {}
    for title, rows in tables.items():
        try:
            results[title] = critical_difference(pd.DataFrame(rows).T)
        except ValueError:  # too few datasets or algorithms
            continue
    return results
