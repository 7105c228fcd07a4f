"""The board of a comparison: a row per algorithm, with what is found of it, in the order of the places."""

from collections.abc import Mapping, Sequence

import pandas as pd

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.equality import UNKNOWN, Equality
from nnunet_plugins.report.record import UNRANKED
from nnunet_plugins.report.scores import Scores
from nnunet_plugins.report.statistics import DECIMALS, ranks
from nnunet_plugins.report.words import count

COUNTS = ["p_holm", "wins", "ties", "losses"]
"""What the board has of the comparison of Dice with the baseline's."""


def columns(
    scores: Scores, by_case: Mapping[str, pd.DataFrame], dice: pd.DataFrame, ranked: Sequence[str]
) -> pd.DataFrame:
    """Return what the ranked results hold of every algorithm with results, but for places and comparisons."""
    table = dice[["n", "mean", "ci_low", "ci_high"]].rename(columns={"n": "cases", "mean": "Dice"})
    for metric in METRICS[1:]:
        table[metric] = by_case[metric].mean()
    table["mean_rank"] = ranks(by_case["Dice"][list(ranked)], higher_is_better=True).mean()
    table["missed"] = scores.missed_labels()
    return table.join(scores.false_findings()[["absent", "found"]])


def placed(board: pd.DataFrame, ranked: Sequence[str]) -> pd.DataFrame:
    """Return the board ranked by mean Dice: below the ranked the ensembles, and what has no results."""
    whole, means = ["cases", "absent"], ["missed", "found"]
    board[[*whole, *means]] = board[[*whole, *means]].fillna(0)
    dice = board["Dice"].round(DECIMALS)
    board.insert(0, "place", dice.where(board.index.isin(ranked)).rank(ascending=False, method="min"))
    whole += ["place", "lacking", "wins", "ties", "losses"]
    board[whole] = board[whole].astype("Int64")
    order = pd.DataFrame({"place": board["place"].fillna(len(board) + 1), "Dice": -dice})
    return board.loc[order.sort_values(["place", "Dice"], kind="stable").index]


def flags(name: str, algorithms: pd.DataFrame, cases: int, equality: Equality | None) -> str:
    """Say in words what a reader has to know of an algorithm before comparing it with others.

    Args:
        name: the algorithm's.
        algorithms: all, with `trainer`, `plans`, `role` and `lacking` cases.
        cases: how many there are.
        equality: of the trainings.
    """
    found, algorithm = [], algorithms.loc[name]
    if algorithm["role"] in UNRANKED:
        found.append("not ranked")
    if equality:
        others = [entry for entry in equality.differences if entry["algorithm"] == name and entry["value"] != UNKNOWN]
        same = _has_network_of(equality.baseline, name, algorithms)
        for allowed, words in ((False, "unequal:"), (True, "same network, other" if same else "differs in:")):
            # The network is what is compared.
            what = [entry["what"].partition(".")[0] for entry in others if entry["allowed"] is allowed]
            if settings := [setting for setting in dict.fromkeys(what) if setting != "network"]:
                found.append(f"{words} {', '.join(settings)}")
        if unknown := equality.unknown.get(name):
            found.append(f"unknown: {', '.join(unknown)}")
    if lacking := algorithm["lacking"]:
        found.append("no results" if lacking == cases else f"lacks {count(lacking, 'case')}")
    return "; ".join(found)


def _has_network_of(baseline: str, name: str, algorithms: pd.DataFrame) -> bool:
    """Tell whether an algorithm is the baseline's network on its plans under another recipe."""
    if name == baseline or baseline not in algorithms.index:
        return False
    (network, plans), (own, own_plans) = (
        (algorithms.at[one, "trainer"].partition("_")[0], algorithms.at[one, "plans"]) for one in (baseline, name)
    )
    return bool(network == own and plans == own_plans)


def costs(runs: pd.DataFrame) -> pd.DataFrame:
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
    return counts.join(table).join(groups[texts].agg(lambda values: ", ".join(map(str, values.dropna().unique()))))
