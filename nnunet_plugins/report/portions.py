"""Comparisons beside the one with the baseline: within a source dataset, and of networks for many datasets."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.board import COUNTS, columns
from nnunet_plugins.report.scores import Scores
from nnunet_plugins.report.statistics import HIGHER_IS_BETTER, compare, holm, mean_with_ci
from nnunet_plugins.report.verdicts import differences, with_verdicts


def by_source(
    scores: Scores, sources: Sequence[str], order: Sequence[str], ranked: Sequence[str], baseline: str | None
) -> pd.DataFrame:
    """Return what the ranked results hold, and the differences from the baseline, for the cases of each source."""
    tables = {}
    for source in sources:
        own = scores.only(np.array([one == source for one in scores.sources], bool))
        if not own.cases:
            continue
        by_case = {metric: own.by_case(metric) for metric in METRICS}
        table = columns(own, by_case, mean_with_ci(by_case["Dice"]), ranked).loc[list(order)]
        paired = differences(by_case["Dice"][list(ranked)], baseline, "Dice")
        paired = paired.rename(columns={"ci_low": "difference_low", "ci_high": "difference_high"})
        kept = ["mean_difference", "difference_low", "difference_high", *COUNTS]
        tables[source] = table.join(paired[kept])
    return pd.concat(tables, names=["source", "algorithm"]) if tables else pd.DataFrame()


def beside(scores: pd.DataFrame, alone: Mapping[str, str], algorithms: pd.DataFrame, metric: str) -> pd.DataFrame:
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
    return with_verdicts(table.assign(p_holm=holm(table["p"])), metric)
