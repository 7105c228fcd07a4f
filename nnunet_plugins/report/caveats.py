"""What has to stand beside the numbers of a comparison, so that nobody reads more into them than there is."""

from nnunet_plugins.metrics.table import with_penalty
from nnunet_plugins.report.comparison import Comparison, count
from nnunet_plugins.report.record import UNRANKED
from nnunet_plugins.report.statistics import LEVEL

NAMED = 10
"""Cases that a line names."""


def caveats(comparison: Comparison) -> list[str]:
    """Return what has to stand beside the numbers, the gravest first."""
    return [
        *_unequal(comparison),
        *_own_plans(comparison),
        *_untrained(comparison),
        *_incomplete(comparison),
        *_empty_masks(comparison),
        *_limits(comparison),
        *_conventions(comparison),
    ]


def _unequal(comparison: Comparison) -> list[str]:
    if comparison.equality is None:
        return ["Nothing is known of whether these algorithms were trained under equal conditions."]
    accepted = "accepted with --allow-unequal" if comparison.equality["accepted"] else "not accepted"
    return [
        f"Not a fair comparison ({accepted}): {entry['algorithm']} was trained with {entry['what']} {entry['value']}, "
        f"the baseline with {entry['baseline']}."
        for entry in comparison.equality["differences"]
        if not entry["allowed"]
    ]


def _own_plans(comparison: Comparison) -> list[str]:
    compared = comparison.results[~comparison.results["role"].isin(["own plan", *UNRANKED])]
    plans = compared["plans"].unique()
    if len(plans) <= 1:
        return []
    return [
        f"The networks are compared at the same memory, not on the same plans: each has its own ({', '.join(plans)}), "
        "with the patch and batch size that fit. Differences come from these as well."
    ]


def _untrained(comparison: Comparison) -> list[str]:
    if not comparison.blank:
        return []
    return [
        f"Not trained long enough: {', '.join(comparison.blank)} found nothing in any case. Differences from such a "
        "network say how fast another one begins to learn, not how good it is."
    ]


def _incomplete(comparison: Comparison) -> list[str]:
    lines = []
    nothing = [name for name, lacking in comparison.lacking.items() if lacking == comparison.cases]
    some = [f"{name} lacks {comparison.lacking[name]}" for name in comparison.ranked if comparison.lacking[name]]
    if nothing:
        lines.append(f"Without results: {', '.join(nothing)}.")
    if comparison.baseline is None:
        lines.append("The baseline has no results, so nothing is compared with it.")
    if some:
        shared = comparison.results["case"].nunique()
        lines.append(f"Only the {shared} of {count(comparison.cases, 'case')} that all have count: {', '.join(some)}.")
        more = f" and {len(comparison.dropped) - NAMED} more" if len(comparison.dropped) > NAMED else ""
        lines.append(f"Left out for all algorithms alike: {', '.join(comparison.dropped[:NAMED])}{more}.")
    return lines


def _empty_masks(comparison: Comparison) -> list[str]:
    lines = []
    table = with_penalty(comparison.results)
    both, one = int(table["both_empty"].sum()), int(table["one_empty"].sum())
    of_all = f"of {count(len(table), 'row')} (one per algorithm, case and label)"
    if one:
        lines.append(
            f"In {one} {of_all} one of truth and prediction is empty: Dice and NSD are 0 there, and the diagonal of "
            "the image stands for the distances."
        )
    if both:
        lines.append(f"In {both} {of_all} truth and prediction are empty: these are left out.")
    disputed = int(table.groupby(["case", "label"])[["both_empty", "one_empty"]].any().all(axis=1).sum())
    if disputed:
        lines.append(
            f"In {count(disputed, 'case')} without a label some algorithms find it nevertheless and score 0, others "
            "rightly do not and are left out: the tests do not see that difference."
        )
    return lines


def _limits(comparison: Comparison) -> list[str]:
    """Say what the p values and intervals do not cover."""
    lines = []
    cases, tests = comparison.results["case"].nunique(), len(comparison.ranked) - 1
    smallest = tests * 2.0 ** (1 - cases)  # all differences have one sign
    if comparison.baseline is not None and cases and smallest > LEVEL:
        lines.append(
            f"With {count(cases, 'case')} and {count(tests, 'test')} no adjusted p value can lie below "
            f"{min(smallest, 1):.2g}, however large the differences are."
        )
    if comparison.split == "cross-validation":
        lines.append(
            "Cross-validated cases share models, and the models share most of their training cases: the cases are not "
            "independent, so p values are too small and intervals too narrow."
        )
    if not comparison.runs.duplicated(["algorithm", "fold"]).any():
        lines.append(
            "Each network was trained once per fold: how much results vary from one training to the next (the seed) is "
            "not covered by p values and intervals."
        )
    if "ensemble" in comparison.roles.values():
        lines.append("Ensembles take no part in ranks and tests: they share the errors of their members.")
    if "choice" in comparison.roles.values():
        lines.append(
            "nnU-Net's choice, made by cross-validation, takes no part in ranks and tests: it alone is post-processed."
        )
    return lines


def _conventions(comparison: Comparison) -> list[str]:
    tolerances = ", ".join(f"{value:g}" for value in comparison.results["tolerance_mm"].dropna().unique())
    by = f" by MONAI {comparison.versions['monai']}" if "monai" in comparison.versions else ""
    return [
        "The score of a case is the mean over its labels; means are over cases, with 95% bootstrap intervals. P values "
        "are Wilcoxon's, paired by case with the baseline, after Holm within dataset and metric.",
        *([f"NSD at {tolerances} mm; distances in mm{by}, between voxel surfaces."] if tolerances else []),
        "Pseudo Dice, in training curves, is computed from patches during the training; it is not the tables' Dice.",
    ]
