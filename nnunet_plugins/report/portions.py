"""Comparisons beside the one with the baseline: within a source dataset, and of networks for many datasets."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.board import COUNTS, columns
from nnunet_plugins.report.evidence import Measure, with_trainings
from nnunet_plugins.report.scores import Scores
from nnunet_plugins.report.statistics import mean_with_ci
from nnunet_plugins.report.verdicts import differences, judge


def by_source(
    scores: Scores, sources: Sequence[str], order: Sequence[str], ranked: Sequence[str], baseline: str | None
) -> pd.DataFrame:
    """Return what the ranked results hold, and the differences from the baseline, for the cases of each source."""
    tables = {}
    for source in sources:
        own = scores.only(np.array([one == source for one in scores.sources], bool))
        if not own.cases:
            continue
        measures = {metric: Measure.of(own, metric) for metric in METRICS}
        dice = with_trainings(mean_with_ci(measures["Dice"].by_case, groups=own.groups), measures["Dice"])
        table = columns(own, {metric: one.by_case for metric, one in measures.items()}, dice, ranked).loc[list(order)]
        paired = differences(measures["Dice"], ranked, baseline, None)
        paired = paired.rename(columns={"ci_low": "difference_low", "ci_high": "difference_high"})
        kept = ["mean_difference", "difference_low", "difference_high", *COUNTS]
        tables[source] = table.join(paired[kept])
    return pd.concat(tables, names=["source", "algorithm"]) if tables else pd.DataFrame()


def beside(measure: Measure, alone: Mapping[str, str], algorithms: pd.DataFrame, rope: float | None) -> pd.DataFrame:
    """Return how networks for many datasets differ from the same ones, `alone`, on this dataset alone."""
    scores = measure.by_case
    here = algorithms.index[algorithms["role"] == "one for many"]
    pairs = [(name, alone[name]) for name in scores if name in here and alone.get(name) in scores]
    if not pairs:
        return pd.DataFrame()
    return judge(measure, pairs, rope).reset_index("against").rename(columns={"against": "alone"})
