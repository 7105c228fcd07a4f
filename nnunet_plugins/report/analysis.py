"""The analysis of a benchmark, made once; headline, tables, figures, page and files for papers only read it.

record -> scores (one rule, `scores.py`) -> statistics -> Analysis -> Markdown, LaTeX, CSV, figures, page
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.equality import UNKNOWN, Equality, read_equality
from nnunet_plugins.report.record import COMPARISON, UNRANKED, Record, ReportError
from nnunet_plugins.report.scores import Scores, score
from nnunet_plugins.report.statistics import (
    DECIMALS,
    HIGHER_IS_BETTER,
    LEVEL,
    CriticalDifference,
    compare,
    critical_difference,
    holm,
    mean_with_ci,
    rank_distribution,
    ranks,
)
from nnunet_plugins.report.words import count
from nnunet_plugins.rows import without_seed

LABEL_FIGURES = 6
"""With more labels than these, there is no figure per label."""
AHEAD, BEHIND, MIXED, UNCLEAR = "ahead", "behind", "mixed", "unclear"
"""Verdicts on an algorithm against the baseline. Mixed: better case by case, yet worse on average, or the other way."""


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
        paired: by metric, how every ranked algorithm differs from the baseline, as `statistics.compare` has it; for
            Dice with a `verdict`. Without a baseline there are no rows.
        beside: by metric, how every network for many datasets differs from the same one that was trained on this
            dataset alone, `alone`: as `paired`, with `p_holm` over these rows.
        by_source: of a merged dataset, a row per source and algorithm (levels `source`, `algorithm`), in the order of
            `board`: the columns of it that are about `cases` and means, of the cases of the source alone, and of the
            comparison of Dice with the baseline's there `mean_difference`, `difference_low`, `difference_high`,
            `p_holm`, `wins`, `ties` and `losses`. No rows for others.
        by_label: by metric, the means over the cases, algorithms x labels.
        label_dice: by label, its Dice, cases x algorithms, and the means; where there are few labels.
        dice: mean Dice and its interval, by algorithm.
        false_findings: see `scores.Scores.false_findings`.
        rank_shares: algorithms x ranks, as `statistics.rank_distribution` has it; no rows for less than two.
        costs: see `_costs`.
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
    paired: Mapping[str, pd.DataFrame]
    beside: Mapping[str, pd.DataFrame]
    by_source: pd.DataFrame
    by_label: Mapping[str, pd.DataFrame]
    label_dice: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]
    dice: pd.DataFrame
    false_findings: pd.DataFrame
    rank_shares: pd.DataFrame
    costs: pd.DataFrame

    @property
    def title(self) -> str:
        """Dataset, configuration and split."""
        return f"{self.dataset}, {self.configuration}, {self.split}"

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
        comparisons: in the record's order; whether they are fair is not asked here.
        equality: what was equal, by dataset and configuration.
        across: comparisons across datasets, by configuration and split; those of fewer than five are left out.
    """

    record: Record
    comparisons: Sequence[Comparison]
    equality: Sequence[Equality]
    across: Mapping[str, CriticalDifference]


def analyse(record: Record) -> Analysis:
    """Analyse a record.

    Raises:
        ReportError: if its results contradict themselves.
    """
    roles = pd.concat([table[[*COMPARISON[1:], "algorithm", "role"]] for table in (record.results, record.runs)])
    equality = [read_equality(entry, roles) for entry in record.equality]
    found = [
        _compare(record, dict(zip(COMPARISON, values, strict=True)), results, equality)
        for values, results in record.results.groupby(COMPARISON, sort=False)
    ]
    return Analysis(record, found, equality, _across_datasets(found))


def _compare(
    record: Record, place: Mapping[str, str], results: pd.DataFrame, equality: Sequence[Equality]
) -> Comparison:
    where = {name: place[name] for name in COMPARISON[1:]}
    runs, curves = (
        table[(table[list(where)] == pd.Series(where)).all(axis=1)] for table in (record.runs, record.curves)
    )
    proof = next((part for part in equality if (part.dataset, part.configuration) == tuple(where.values())), None)
    algorithms = _algorithms(results, runs, curves)
    sources = record.about.get("sources", {}).get(place["dataset"])
    everything = score(results, sources and {name: source["labels"] for name, source in sources.items()})
    left_out = record.about.get("left_out", {}).get("/".join(where.values()), {}).get(place["split"], ())
    cases = {*everything.cases, *left_out}
    having = pd.Series(everything.whole.sum(axis=1), everything.algorithms).reindex(algorithms.index, fill_value=0)
    algorithms = algorithms.assign(lacking=len(cases) - having)
    # Those that have nothing, and those that are not ranked, do not decide which cases count.
    algorithms["is_ranked"] = ~algorithms["role"].isin(UNRANKED) & (having > 0)
    ranked = list(algorithms.index[algorithms["is_ranked"]])
    deciding = [name in ranked for name in everything.algorithms]
    scores = everything.only(np.asarray(everything.whole[deciding].all(axis=0)))
    by_case = {metric: scores.by_case(metric) for metric in METRICS}
    dice = mean_with_ci(by_case["Dice"])
    baseline = _baseline(algorithms)
    paired = {metric: _differences(table[ranked], baseline, metric) for metric, table in by_case.items()}
    board = algorithms.drop(columns=["trainer", "plans", "is_ranked"]).join(_columns(scores, by_case, dice, ranked))
    board = board.join(everything.nnunet_dice().rename("nnunet_dice")).join(paired["Dice"][_COUNTS])
    board["flags"] = [_flags(name, algorithms.loc[name], len(cases), proof) for name in board.index]
    board = _placed(board, ranked)
    order = [str(name) for name in board.index if name in everything.algorithms]
    first = [name for name in order if name in ranked]
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
        paired={metric: table.loc[[n for n in first if n in table.index]] for metric, table in paired.items()},
        beside={
            metric: _beside(table, record.about.get("beside", {}), algorithms, metric)
            for metric, table in by_case.items()
        },
        by_source=_by_source(scores, list(sources or ()), order, first, baseline),
        by_label={metric: scores.by_label(metric).loc[order] for metric in METRICS},
        label_dice=_label_dice(scores, order),
        dice=dice.loc[order],
        false_findings=scores.false_findings().loc[order],
        rank_shares=_rank_shares(by_case["Dice"][first]),
        costs=_costs(runs),
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


def _differences(scores: pd.DataFrame, baseline: str | None, metric: str) -> pd.DataFrame:
    """Return how every other ranked algorithm differs from the baseline, with a verdict."""
    if baseline is None:
        baseline, scores = "none", pd.DataFrame(columns=["none"])
    return _with_verdicts(compare(scores, baseline, higher_is_better=HIGHER_IS_BETTER[metric]), metric)


def _beside(scores: pd.DataFrame, alone: Mapping[str, str], algorithms: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return how networks for many datasets differ from the same ones on this dataset alone."""
    here = algorithms.index[algorithms["role"] == "one for many"]
    pairs = {name: alone[name] for name in scores if name in here and alone.get(name) in scores}
    rows = [
        compare(scores[[one, name]], one, higher_is_better=HIGHER_IS_BETTER[metric]).assign(alone=one)
        for name, one in pairs.items()
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.concat(rows)
    return _with_verdicts(table.assign(p_holm=holm(table["p"])), metric)


def _with_verdicts(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    higher = HIGHER_IS_BETTER[metric]
    gain = table["mean_difference"].round(DECIMALS) * (1 if higher else -1)
    clear = table["p_holm"] < LEVEL
    verdict = pd.Series(UNCLEAR, table.index, dtype=object).mask(clear, MIXED)
    verdict = verdict.mask(clear & (gain > 0) & (table["effect_size"] > 0), AHEAD)
    return table.assign(verdict=verdict.mask(clear & (gain < 0) & (table["effect_size"] < 0), BEHIND))


_COUNTS = ["p_holm", "wins", "ties", "losses"]


def _columns(
    scores: Scores, by_case: Mapping[str, pd.DataFrame], dice: pd.DataFrame, ranked: Sequence[str]
) -> pd.DataFrame:
    """Return what the ranked results hold of every algorithm with results, but for places and comparisons."""
    table = dice[["n", "mean", "ci_low", "ci_high"]].rename(columns={"n": "cases", "mean": "Dice"})
    for metric in METRICS[1:]:
        table[metric] = by_case[metric].mean()
    table["mean_rank"] = ranks(by_case["Dice"][list(ranked)], higher_is_better=True).mean()
    table["missed"] = scores.missed_labels()
    return table.join(scores.false_findings()[["absent", "found"]])


def _placed(board: pd.DataFrame, ranked: Sequence[str]) -> pd.DataFrame:
    """Return the board ranked by mean Dice: below the ranked the ensembles, and what has no results."""
    whole, means = ["cases", "absent"], ["missed", "found"]
    board[[*whole, *means]] = board[[*whole, *means]].fillna(0)
    dice = board["Dice"].round(DECIMALS)
    board.insert(0, "place", dice.where(board.index.isin(ranked)).rank(ascending=False, method="min"))
    whole += ["place", "lacking", "wins", "ties", "losses"]
    board[whole] = board[whole].astype("Int64")
    order = pd.DataFrame({"place": board["place"].fillna(len(board) + 1), "Dice": -dice})
    return board.loc[order.sort_values(["place", "Dice"], kind="stable").index]


def _flags(name: str, algorithm: "pd.Series[Any]", cases: int, equality: Equality | None) -> str:
    """Say in words what a reader has to know of an algorithm before comparing it with others."""
    flags = []
    if algorithm["role"] in UNRANKED:
        flags.append("not ranked")
    if equality:
        found = [entry for entry in equality.differences if entry["algorithm"] == name and entry["value"] != UNKNOWN]
        for allowed, words in ((False, "unequal"), (True, "differs in")):
            # The network is what is compared.
            what = [entry["what"].partition(".")[0] for entry in found if entry["allowed"] is allowed]
            if settings := [setting for setting in dict.fromkeys(what) if setting != "network"]:
                flags.append(f"{words}: {', '.join(settings)}")
        if unknown := equality.unknown.get(name):
            flags.append(f"unknown: {', '.join(unknown)}")
    if lacking := algorithm["lacking"]:
        flags.append("no results" if lacking == cases else f"lacks {count(lacking, 'case')}")
    return "; ".join(flags)


def _by_source(
    scores: Scores, sources: Sequence[str], order: Sequence[str], ranked: Sequence[str], baseline: str | None
) -> pd.DataFrame:
    """Return what the ranked results hold, and the differences from the baseline, for the cases of each source."""
    tables = {}
    for source in sources:
        own = scores.only(np.array([one == source for one in scores.sources], bool))
        if not own.cases:
            continue
        by_case = {metric: own.by_case(metric) for metric in METRICS}
        table = _columns(own, by_case, mean_with_ci(by_case["Dice"]), ranked).loc[list(order)]
        paired = _differences(by_case["Dice"][list(ranked)], baseline, "Dice")
        paired = paired.rename(columns={"ci_low": "difference_low", "ci_high": "difference_high"})
        kept = ["mean_difference", "difference_low", "difference_high", *_COUNTS]
        tables[source] = table.join(paired[kept])
    return pd.concat(tables, names=["source", "algorithm"]) if tables else pd.DataFrame()


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
    return {label: (table, mean_with_ci(table)) for label, table in tables.items() if table.count().any()}


def _rank_shares(scores: pd.DataFrame) -> pd.DataFrame:
    if scores.shape[1] < 2 or scores.dropna().empty:
        return pd.DataFrame()
    return rank_distribution(scores, higher_is_better=True)


def _costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what each algorithm costs, ensembles apart: means over its trainings, which are counted in `trainings`.

    `folds` is the number of folds that were trained, with one seed or several.
    """
    numbers = [
        "parameters",
        "forward_flops",
        "batch_size",
        "seconds_per_epoch",
        "training_seconds",
        "peak_memory_bytes",
        "energy_joules",
        "validation_voxels_per_second",
    ]
    texts = ["patch_size", "memory_kind", "device"]
    groups = runs.groupby("algorithm", sort=False)
    table = runs[numbers].astype(float).groupby(runs["algorithm"], sort=False).mean()
    counts = pd.DataFrame({"folds": groups["fold"].nunique(), "trainings": groups.size()})
    return counts.join(table).join(groups[texts].agg(_words))


def _words(values: "pd.Series[Any]") -> str:
    """Return the different values as text."""
    return ", ".join(map(str, values.dropna().unique()))


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
