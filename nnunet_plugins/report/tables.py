"""The tables of a report, the same in page, Markdown and LaTeX: which there are, in what order, and their captions.

What stands in them is in `showing.py`, and in `contrasts.py` for those of two algorithms each.
"""

from collections.abc import Sequence
from functools import lru_cache

import pandas as pd

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.contrasts import is_tested, show_components, show_differences, show_pairs
from nnunet_plugins.report.showing import (
    Section,
    show_cases,
    show_costs,
    show_false_findings,
    show_folds,
    show_labels,
    show_objects,
    show_results,
    show_sources,
)
from nnunet_plugins.report.statistics import HIGHER_IS_BETTER
from nnunet_plugins.report.words import DASH, METRIC_NAMES

RESULTS = "Results, ranked by mean Dice"
ENSEMBLES = "Ensembles and nnU-Net's choice, which are not ranked"
TOGETHER = ("ensemble", "choice")
"""Roles of what several networks, or a network and its post-processing, have made together."""


@lru_cache(maxsize=128)
def sections(comparison: Comparison) -> Sequence[Section]:
    """Return all tables of a comparison, rounded; page, Markdown and LaTeX have the same ones."""
    together = comparison.board["role"].isin(TOGETHER)
    found = [show_results(comparison, RESULTS, comparison.board[~together])]
    if together.any():
        found.append(show_results(comparison, ENSEMBLES, comparison.board[together]))
    if len(comparison.objects):
        found.append(show_objects(comparison, "Objects of all cases together, by label"))
    found.append(Section("Cases and flags", show_cases(comparison)))
    beside = [show_differences(table, metric) for metric, table in comparison.beside.items()]
    if is_tested(comparison.twins):
        caption = "Each network against its ablation twin, in Dice; Holm over these pairs"
        found.append(Section(caption, show_pairs(comparison.twins, comparison.rope)))
    if any(map(len, beside)):
        caption = "One network for many datasets, against the same one on this dataset alone"
        found.append(Section(caption, pd.concat(beside, ignore_index=True)))
    if len(comparison.by_source):
        found.append(Section("Results by source dataset, each on its own cases", show_sources(comparison)))
    if comparison.board["absent"].any():
        found.append(Section("Labels that the truth does not have", show_false_findings(comparison.false_findings)))
    paired = [show_differences(table, metric, comparison.baseline) for metric, table in comparison.paired.items()]
    if any(map(len, paired)):
        caption = f"Paired differences from {comparison.baseline}; wins, ties and losses count cases"
        found.append(Section(caption, pd.concat(paired, ignore_index=True).fillna(DASH)))
    if is_tested(comparison.pairs):
        caption = "Every pair of ranked algorithms, in Dice; Holm over these pairs"
        found.append(Section(caption, show_pairs(comparison.pairs, comparison.rope)))
    if len(comparison.components):
        found.append(
            Section(
                "What the Dice varies by, as standard deviations; 0 is too little to be seen beside the rest",
                show_components(comparison),
            )
        )
    if len(comparison.by_fold):
        found.append(Section("Dice by fold, mean ± standard deviation over its cases", show_folds(comparison)))
    if len(comparison.labels) > 1:
        for metric in comparison.by_label:
            better = "higher" if HIGHER_IS_BETTER[metric] else "lower"
            found.append(show_labels(comparison, metric, f"{METRIC_NAMES[metric]} by label, {better} is better"))
    if len(comparison.runs):
        found.append(Section("Costs, as means over the trainings", show_costs(comparison.costs)))
    return found
