"""What a reader sees first: who leads, by how much, how sure that is, and what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from nnunet_plugins.report.analysis import Analysis, Comparison
from nnunet_plugins.report.cells import Table, make_table
from nnunet_plugins.report.drawing import Style
from nnunet_plugins.report.showing import Section, find_best
from nnunet_plugins.report.statistics import CASES, LEVEL, CriticalDifference
from nnunet_plugins.report.tables import TOGETHER
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, TOO_FEW
from nnunet_plugins.report.words import (
    DASH,
    SIGNS,
    count,
    count_units,
    describe_p,
    name_some,
    show_number,
    show_p,
    show_probability,
    show_signed,
    too_few,
)


@dataclass(frozen=True)
class Fact:
    """One of the numbers that stand first.

    Attributes:
        name: what it is.
        value: itself.
        note: what belongs to it.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Lead:
    """How the algorithm with the highest mean Dice differs from the one that it has to be compared with.

    Attributes:
        leader: its name.
        other: the baseline; if that leads, or has no results, the next one. Empty, if all lead together.
        row: of a comparison, as `Comparison.paired` has it, seen from the leader.
    """

    leader: str
    other: str
    row: Mapping[str, Any]

    @property
    def difference(self) -> str:
        """The mean difference."""
        return show_signed(self.row.get("mean_difference", float("nan")))

    @property
    def interval(self) -> list[str]:
        """The bounds of the difference; none, if it has no interval."""
        low, high = (self.row.get(name, float("nan")) for name in ("ci_low", "ci_high"))
        return [] if pd.isna(low) else [show_number(low, 3), show_number(high, 3)]

    @property
    def probability(self) -> str:
        """How likely the leader is better."""
        return show_probability(self.row.get("better", float("nan")))


def find_lead(comparison: Comparison) -> Lead:
    """Return who leads, and by how much; of several that lead together the baseline, or else the first."""
    leaders = comparison.leaders
    leader = str(comparison.baseline) if comparison.baseline in leaders else leaders[0]
    others = [name for name in comparison.ranked if name not in leaders]
    if not others:
        return Lead(leader, "", {})
    if comparison.baseline is None:
        return Lead(leader, others[0], comparison.pairs.loc[(leader, others[0])].to_dict())
    if leader != comparison.baseline:
        return Lead(leader, comparison.baseline, comparison.paired["Dice"].loc[leader].to_dict())
    row = comparison.paired["Dice"].loc[others[0]].to_dict()
    seen = {"mean_difference": -row["mean_difference"], "ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
    return Lead(leader, others[0], {**row, **seen, "better": 1 - row["better"], "ahead": row["behind"]})


def tell_first(analysis: Analysis) -> list[Fact]:
    """Return what stands first in the page; nothing but budget and trainings where there are no results."""
    found = [comparison for comparison in analysis.comparisons if comparison.ranked and comparison.scored]
    lead = _of_one(found[0], analysis.rope) if len(found) == 1 else _of_many(found, analysis.across) if found else []
    budget, comma, folds = (analysis.record.about.get("budget") or "not recorded").partition(", fold")
    note = f"fold{folds}" if comma else ""
    return [*lead, Fact("Budget of each training", budget, note), _trainings(analysis.record.runs)]


def _of_one(comparison: Comparison, rope: float) -> list[Fact]:
    lead = find_lead(comparison)
    mean, low, high = comparison.board.loc[lead.leader, ["Dice", "ci_low", "ci_high"]]
    interval = "" if pd.isna(low) else f", 95% interval {show_number(low, 3)} to {show_number(high, 3)}"
    is_shared = len(comparison.leaders) > 1
    own = f"mean Dice {show_number(mean, 3)}{' of each' if is_shared else interval}"
    role = f"{lead.leader} is the baseline; " if is_shared else "the baseline; "
    first = Fact("Leader", name_some(comparison.leaders), role * (lead.leader == comparison.baseline) + own)
    if not lead.other:
        return [first, Fact("Difference", DASH, "none between them" if is_shared else "nothing to compare it with")]
    units, cases = int(lead.row["units"]), int(lead.row["n"])
    few = f"{too_few(units, cases, lead.row['effective'], CASES)}, {CASES} are needed"
    if lead.interval:
        interval, better = f"95% interval {' to '.join(lead.interval)}", lead.probability
        sure = f"by more than {rope:g}: {show_probability(lead.row['ahead'])}; {describe_p(lead.row['p_holm'])} (Holm)"
        if not (lead.row["repeated"] and lead.row["against_repeated"]):
            sure += "; of these trainings: how others vary is not counted"
        if lead.row["verdict"] == TOO_FEW:
            least = show_p(lead.row["p_least"])
            sure += f"; {count_units(units, cases)} are too few for so many tests: no p could be below {least}"
    else:
        interval, better, sure = f"no 95% interval: {few}", "not known", few
    return [
        first,
        Fact(f"Difference {f'of {lead.leader} ' * is_shared}from {lead.other}", f"{lead.difference} Dice", interval),
        Fact("Probability that it is better", better, sure),
    ]


def _of_many(found: Sequence[Comparison], across: Mapping[str, CriticalDifference]) -> list[Fact]:
    """Return who is first most often; each comparison has its own row in the matrix."""
    firsts = pd.Series([name for comparison in found for name in comparison.leaders]).value_counts()
    leaders = sorted(firsts.index[firsts == firsts.iloc[0]])
    note = f"the highest mean Dice in {firsts.iloc[0]} of {count(len(found), 'comparison')}"
    ranks = [
        f"average rank {show_number(result.average_ranks[leaders[0]], 2)} of {len(result.average_ranks)}"
        for result in across.values()
        if len(across) == 1 == len(leaders) and leaders[0] in result.average_ranks
    ]
    facts = [Fact("Leader", name_some(leaders), "; ".join([note, *ranks]))]
    for other in dict.fromkeys(comparison.baseline for comparison in found):
        tables = [comparison.paired["Dice"] for comparison in found if comparison.baseline == other]
        rows = pd.DataFrame([table.loc[leaders[0]] for table in tables if leaders[0] in table.index])
        if len(leaders) == 1 and len(rows):
            facts.append(_difference(rows, str(other)))
    return facts


def _difference(rows: pd.DataFrame, other: str) -> Fact:
    """Describe the differences of one algorithm in several comparisons; a mean of them has no interval here."""
    means = rows["mean_difference"].astype(float)
    ahead, behind, few = ((rows["verdict"] == verdict).sum() for verdict in (AHEAD, BEHIND, TOO_FEW))
    return Fact(
        f"Difference from {other}",
        f"{show_signed(means.mean())} Dice",
        f"mean of {count(len(rows), 'comparison')}, {show_signed(means.min())} to {show_signed(means.max())}; ahead "
        f"in {ahead}, behind in {behind}" + f", too few cases to say in {few}" * bool(few),
    )


def _trainings(runs: pd.DataFrame) -> Fact:
    if runs.empty:
        return Fact("Trainings", "none recorded")
    places = runs[["dataset", "configuration"]].drop_duplicates()
    parts = [count(runs["algorithm"].nunique(), "algorithm"), count(runs["fold"].nunique(), "fold")]
    if len(places) > 1:
        parts.insert(0, count(runs["dataset"].nunique(), "dataset"))
    seeds = runs.groupby(["dataset", "configuration", "algorithm", "fold"])["seed"].nunique().max()
    return Fact("Trainings", str(len(runs)), ", ".join(parts) + (f", up to {seeds} of a fold" if seeds > 1 else ""))


def make_matrix(analysis: Analysis, keys: Sequence[str], looks: Mapping[str, Style]) -> Table:
    """Return a row per comparison: who leads and how surely, and the mean Dice of all algorithms.

    Args:
        analysis: of several comparisons.
        keys: their anchors in the page.
        looks: by algorithm.
    """
    found = analysis.comparisons
    shared = {(comparison.configuration, comparison.split) for comparison in found}
    alike = len(shared) == 1
    names = dict.fromkeys(
        str(name) for comparison in found for name, role in comparison.board["role"].items() if role not in TOGETHER
    )
    means = pd.DataFrame({n: comparison.board["Dice"] for n, comparison in enumerate(found)}).reindex(list(names))
    ranked = pd.DataFrame({n: means.index.isin(comparison.ranked) for n, comparison in enumerate(found)}, means.index)
    best: dict[str, list[int]] = {name: [] for name in names}
    rows = []
    for number, comparison in enumerate(found):
        for place in find_best(means[number].where(ranked[number]), "Dice", placed=True):
            best[means.index[place]].append(number)
        verdicts = comparison.paired["Dice"]["verdict"]
        lead = find_lead(comparison) if comparison.leaders else Lead(DASH, "", {})
        signs = {name: SIGNS.get(verdicts.get(name, ""), "") for name in names}
        rows.append(
            {
                "Dataset": comparison.dataset if alike else comparison.title,
                "Leader": name_some(comparison.leaders) or DASH,
                "Difference [95% CI]": lead.difference + f" [{', '.join(lead.interval)}]" * bool(lead.interval),
                "P(better)": lead.probability,
                **{name: f"{signs[name]} {show_number(means[number][name], 3)}".strip() for name in names},
            }
        )
    caption = f"Mean Dice ↑{f', {found[0].configuration}, {found[0].split}' * alike}"
    note = (
        f"▲ ahead of and ▼ behind the baseline (p < {LEVEL:g}, Holm), ≈ equivalent within {analysis.rope:g}. The "
        "difference is that of the leader from the baseline; where the baseline leads, also with others, that of the "
        "baseline from the next one."
    )
    table = make_table(Section(caption, pd.DataFrame(rows), best), looks, folded=False)
    linked = [[replace(row[0], link=key), *row[1:]] for row, key in zip(table.rows, keys, strict=True)]
    return replace(table, rows=linked, note=note)
