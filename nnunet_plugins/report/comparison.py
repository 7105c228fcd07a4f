"""What is compared with what, and the tables of it: exact numbers, by algorithm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nnunet_plugins.metrics.table import METRICS, with_penalty
from nnunet_plugins.report.record import COMPARISON, UNRANKED, Record
from nnunet_plugins.report.statistics import (
    HIGHER_IS_BETTER,
    CriticalDifference,
    case_scores,
    compare,
    critical_difference,
    label_scores,
    mean_with_ci,
    ranks,
)


@dataclass(frozen=True)
class Comparison:
    """What may stand in one table.

    Attributes:
        split: "cross-validation" or "test".
        dataset: its name.
        configuration: its name.
        results: columns `record.RESULTS`; only cases that all ranked algorithms have.
        runs: columns `record.RUNS`.
        curves: columns `record.CURVES`.
        equality: what was equal; None, if that is not known.
        versions: of the software, by name.
        roles: by algorithm, in the record's order, those without results last.
        lacking: by algorithm, how many of the cases it lacks.
        cases: how many there are altogether.
        dropped: the cases that some or all ranked algorithms lack, which count for none.
    """

    split: str
    dataset: str
    configuration: str
    results: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    equality: dict[str, Any] | None
    versions: Mapping[str, str]
    roles: Mapping[str, str]
    lacking: Mapping[str, int]
    cases: int
    dropped: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Dataset, configuration and split."""
        return f"{self.dataset}, {self.configuration}, {self.split}"

    @property
    def baseline(self) -> str | None:
        """The algorithm that the others are compared with; None, if it has no results."""
        return next((name for name in self.ranked if self.roles[name] == "baseline"), None)

    @property
    def ranked(self) -> list[str]:
        """The algorithms that have results and take part in ranks and tests: those of other roles than `UNRANKED`."""
        return [name for name, role in self.roles.items() if role not in UNRANKED and self.lacking[name] < self.cases]

    @property
    def blank(self) -> list[str]:
        """The ranked algorithms that found nothing that is there, in any case: they have not learnt yet."""
        best = self.scores("Dice").max()
        return [name for name in self.ranked if best[name] == 0]

    def scores(self, metric: str, *, ensembles: bool = False) -> pd.DataFrame:
        """Return the scores, cases x algorithms; see `statistics.case_scores`."""
        scores = case_scores(self.results, metric)
        return scores if ensembles else scores.reindex(columns=pd.Index(self.ranked, name="algorithm"))


def comparisons(record: Record) -> list[Comparison]:
    """Return all comparisons of a record, in its order; whether they are fair is not asked here."""
    return [
        _comparison(record, dict(zip(COMPARISON, values, strict=True)), results)
        for values, results in record.results.groupby(COMPARISON, sort=False)
    ]


def _comparison(record: Record, place: Mapping[str, str], results: pd.DataFrame) -> Comparison:
    where = {name: place[name] for name in ("dataset", "configuration")}
    runs, curves = (
        table[(table[list(where)] == pd.Series(where)).all(axis=1)] for table in (record.runs, record.curves)
    )
    equality = [entry for entry in record.equality if all(entry[name] == value for name, value in where.items())]
    names = pd.concat([table[["algorithm", "role"]] for table in (results, runs, curves)]).drop_duplicates("algorithm")
    roles = dict(zip(names["algorithm"], names["role"], strict=True))
    having = results.groupby("algorithm")["case"].unique().map(set)
    left_out = record.about.get("left_out", {}).get("/".join(where.values()), {})
    everything = {*results["case"], *left_out.get(place["split"], ())}
    shared = everything.intersection(*(having[name] for name in having.index if roles[name] not in UNRANKED))
    return Comparison(
        **place,
        results=results[results["case"].isin(shared)],
        runs=runs,
        curves=curves,
        equality=equality[0] if equality else None,
        versions=record.about.get("versions", {}),
        roles=roles,
        lacking={name: len(everything - having.get(name, set())) for name in roles},
        cases=len(everything),
        dropped=sorted(everything - shared),
    )


def differences(comparison: Comparison, metric: str) -> pd.DataFrame:
    """Return how every algorithm, ensembles apart, differs from the baseline; see `statistics.compare`.

    Without a baseline there are no rows.
    """
    baseline, scores = comparison.baseline, comparison.scores(metric)
    if baseline is None:
        baseline, scores = "none", pd.DataFrame(columns=["none"])
    return compare(scores, baseline, higher_is_better=HIGHER_IS_BETTER[metric])


def leaderboard(comparison: Comparison) -> pd.DataFrame:
    """Return a row per algorithm, ranked by mean Dice; below them the ensembles, and what has no results.

    Returns:
        `place`; `role`; `cases` with a Dice; the means of the metrics, that of Dice with its 95% interval `ci_low` and
        `ci_high`; from the comparison of Dice with the baseline's `p_holm`, `wins`, `ties` and `losses`; `mean_rank` of
        Dice over the cases; how many masks of the results are `one_empty` and `both_empty`; how many cases are
        `missing`; `flags` in words.
    """
    names = pd.Index(comparison.roles, name="algorithm")
    dice = mean_with_ci(comparison.scores("Dice", ensembles=True)).reindex(names)
    table = pd.DataFrame({"role": comparison.roles, "cases": dice["n"].fillna(0)}, index=names)
    table["Dice"], table["ci_low"], table["ci_high"] = dice["mean"], dice["ci_low"], dice["ci_high"]
    for metric in METRICS[1:]:
        table[metric] = comparison.scores(metric, ensembles=True).mean()
    table = table.join(differences(comparison, "Dice")[["p_holm", "wins", "ties", "losses"]])
    table["mean_rank"] = ranks(comparison.scores("Dice"), higher_is_better=True).mean()
    counts = with_penalty(comparison.results).groupby("algorithm")[["one_empty", "both_empty"]].sum()
    table = table.join(counts.reindex(names, fill_value=0))
    table["missing"] = pd.Series(comparison.lacking)
    table["flags"] = [_flags(comparison, name) for name in names]
    table.insert(0, "place", table["Dice"].where(~table["role"].isin(UNRANKED)).rank(ascending=False, method="min"))
    whole = ["place", "cases", "wins", "ties", "losses", "one_empty", "both_empty", "missing"]
    table[whole] = table[whole].astype("Int64")
    order = pd.DataFrame({"place": table["place"].fillna(len(table) + 1), "Dice": -table["Dice"]})
    return table.loc[order.sort_values(["place", "Dice"], kind="stable").index]


def _flags(comparison: Comparison, name: str) -> str:
    """Say in words what a reader has to know of an algorithm before comparing it with others."""
    flags = []
    if comparison.roles[name] in UNRANKED:
        flags.append("not ranked")
    for allowed, words in ((False, "unequal"), (True, "differs in")):
        # The network is what is compared.
        settings = [what.partition(".")[0] for what in _different(comparison, name, allowed) if what != "network"]
        if settings:
            flags.append(f"{words}: {', '.join(dict.fromkeys(settings))}")
    if lacking := comparison.lacking[name]:
        flags.append("no results" if lacking == comparison.cases else f"lacks {count(lacking, 'case')}")
    return "; ".join(flags)


def _different(comparison: Comparison, name: str, allowed: bool) -> list[str]:
    """Return the settings in which an algorithm was trained otherwise than the baseline."""
    entries = comparison.equality["differences"] if comparison.equality else []
    return [entry["what"] for entry in entries if entry["algorithm"] == name and entry["allowed"] is allowed]


def per_label(comparison: Comparison, metric: str) -> pd.DataFrame:
    """Return the mean over the cases: algorithms x labels, in the results' order, labels by their names."""
    results = comparison.results
    table = results[["algorithm", "label"]].assign(score=label_scores(results, metric))
    names = label_names(results)
    means = table.pivot_table(index="algorithm", columns="label", values="score", dropna=False)
    return means.reindex(index=pd.Index(results["algorithm"].unique(), name="algorithm"), columns=list(names)).rename(
        columns=names
    )


def label_names(results: pd.DataFrame) -> dict[str, str]:
    """Return what to call each label: its name if it has one of its own, else its number."""
    labels = results[["label", "name"]].drop_duplicates("label")
    own = labels["name"].notna() & (labels["name"] != "") & ~labels["name"].duplicated(keep=False)
    return dict(zip(labels["label"], labels["name"].where(own, labels["label"]), strict=True))


def costs(comparison: Comparison) -> pd.DataFrame:
    """Return what each algorithm costs, ensembles apart: means over the trained folds, which are counted in `folds`."""
    groups = comparison.runs.groupby("algorithm", sort=False)
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
    table = comparison.runs[numbers].astype(float).groupby(comparison.runs["algorithm"], sort=False).mean()
    return groups["fold"].nunique().to_frame("folds").join(table).join(groups[texts].agg(_words))


def _words(values: pd.Series) -> str:
    """Return the different values as text."""
    return ", ".join(map(str, values.dropna().unique()))


def across_datasets(found: Sequence[Comparison], metric: str = "Dice") -> dict[str, CriticalDifference]:
    """Compare the algorithms across datasets, by configuration and split; those of fewer than five are left out."""
    tables: dict[str, dict[str, pd.Series]] = {}
    for comparison in found:
        mean = ranks(comparison.scores(metric), higher_is_better=HIGHER_IS_BETTER[metric]).mean()
        tables.setdefault(f"{comparison.configuration}, {comparison.split}", {})[comparison.dataset] = mean
    results = {}
    for title, rows in tables.items():
        try:
            results[title] = critical_difference(pd.DataFrame(rows).T)
        except ValueError:  # too few datasets or algorithms
            continue
    return results


def count(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
