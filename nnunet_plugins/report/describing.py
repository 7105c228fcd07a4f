"""How to describe a benchmark in a paper, and what to cite: sentences to copy, of what was done to these numbers."""

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.report.analysis import Analysis, Comparison
from nnunet_plugins.report.equality import HASHES
from nnunet_plugins.report.statistics import CASES, DRAWS, LEVEL, RESAMPLES, SEED
from nnunet_plugins.report.verdicts import SURE
from nnunet_plugins.report.words import count, name_some
from nnunet_plugins.trainers.names import find_modifier

NNUNET = (
    "Isensee et al. 2021, nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, "
    "Nature Methods 18, 203-211 (doi:10.1038/s41592-020-01008-z)"
)
_N, _ONE = re.compile(r"\bN\b"), re.compile(r"\b1 (\w+)s\b")
_WILCOXON = "Wilcoxon 1945, Individual Comparisons by Ranking Methods, Biometrics Bulletin 1, 80-83"
_HOLM = (
    "Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 65-70"
)
_DEMSAR = (
    "Demšar 2006, Statistical Comparisons of Classifiers over Multiple Data Sets, Journal of Machine Learning Research "
    "7, 1-30"
)
_PANOPTIC = "Kirillov et al. 2019, Panoptic Segmentation, CVPR 2019, 9396-9405 (arXiv:1801.00868)"
_CLAIMS = (
    "Christodoulou et al. 2025, False Promises in Medical Imaging AI? Assessing Validity of Outperformance Claims "
    "(arXiv:2505.04720)"
)


def describe_methods(analysis: Analysis) -> list[str]:
    """Return the sentences of a methods section: what was trained, scored and tested, and how."""
    found = [comparison for comparison in analysis.comparisons if comparison.ranked]
    if not found:
        return []
    return [" ".join(part) for part in (_trained(analysis, found), _scored(found), _tested(analysis, found)) if part]


def list_references(analysis: Analysis) -> list[str]:
    """Return what the results rest on: nnU-Net, the papers of the networks, and those of the statistics."""
    trainers = {trainer for comparison in analysis.comparisons for trainer in comparison.algorithms["trainer"]}
    parts = {part.partition("_")[0] for trainer in trainers for part in str(trainer).split(" + ")}
    papers = dict.fromkeys(row.paper for row in BACKBONES if row.trainer in parts)
    tested = [comparison for comparison in analysis.comparisons if comparison.is_tested]
    return [
        NNUNET,
        *papers,
        *([_WILCOXON] if _kinds(tested)[0] else []),
        *([_HOLM, _CLAIMS] if tested else []),
        *([_DEMSAR] if analysis.across else []),
        *([_PANOPTIC] if any(len(comparison.objects) for comparison in analysis.comparisons) else []),
    ]


def _trained(analysis: Analysis, found: Sequence[Comparison]) -> Iterator[str]:
    about, runs = analysis.record.about, analysis.record.runs
    datasets = list(dict.fromkeys(comparison.dataset for comparison in found))
    algorithms = {name for comparison in found for name in comparison.ranked}
    named = f": {', '.join(datasets)}" if len(datasets) <= 5 else ""
    versions = about.get("versions", {})
    by = f" in nnU-Net {versions['nnunetv2']}" if "nnunetv2" in versions else ""
    compared = count(len(algorithms), "algorithm")
    yield f"We trained and evaluated {compared}{by} on {count(len(datasets), 'dataset')}{named}."
    plans = dict.fromkeys(plan for one in found for plan in one.algorithms.loc[list(one.ranked), "plans"])
    configurations = dict.fromkeys(comparison.configuration for comparison in found)
    yield f"Plans: {', '.join(plans)}; configuration: {', '.join(configurations)}."
    shared = [name for name in found[0].shared_modifiers if all(name in one.shared_modifiers for one in found)]
    if shared:
        yield f"All trainers have {', '.join(map(_modifier, shared))}."
    if about.get("budget"):
        yield f"The budget of a training: {about['budget']}."
    if len(runs):
        yield _count_trainings(runs, found)
    if _are_equal(analysis, found):
        yield "Plans, splits, data and settings were the same in all, as their hashes show."


def _count_trainings(runs: pd.DataFrame, found: Sequence[Comparison]) -> str:
    """Count the trainings of the algorithms that have results and are ranked, and the others beside them."""
    ranked = {(one.dataset, one.configuration, name) for one in found for name in one.ranked}
    own = sum(key in ranked for key in zip(runs["dataset"], runs["configuration"], runs["algorithm"], strict=True))
    others = f"; {len(runs) - own} more were of others" * (own < len(runs))
    times = _times(found) if own > 1 else ""
    return f"There {'was' if own == 1 else 'were'} {count(own, 'training')}{times}{others}."


def _times(found: Sequence[Comparison]) -> str:
    """Say who was trained how often in a fold, where that is not once for all."""
    times: dict[int, dict[str, None]] = {}
    for one in found:
        for name in one.ranked:
            number = int(one.components["trainings"].get(name, 1))
            times.setdefault(number, {})[name] = None
    if set(times) <= {1}:
        return ", no two of one algorithm in one fold"
    up_to = "up to " * any(one.gaps for one in found)
    parts = [
        f"{up_to * (number > 1)}{number} of {name_some([*names])}" for number, names in sorted(times.items())[::-1]
    ]
    return f", in each fold {', '.join(parts)}"


def _modifier(name: str) -> str:
    """Write a modifier with what it does, if it is one of ours."""
    found = find_modifier(name)
    if found is None:
        return f"_{name}"
    row, number = found
    does = _N.sub(str(number), row.summary.partition(";")[0].replace("`", ""))
    does = _ONE.sub(r"1 \1", does)
    return f"_{name} ({does})"


def _are_equal(analysis: Analysis, found: Sequence[Comparison]) -> bool:
    """Tell whether everything is known of all trainings, and is the same."""
    known = {(equality.dataset, equality.configuration): equality for equality in analysis.equality}
    every = [known.get((comparison.dataset, comparison.configuration)) for comparison in found]
    return all(one and set(HASHES) <= set(one.same) and not one.differences and not one.unknown for one in every)


def _scored(found: Sequence[Comparison]) -> Iterator[str]:
    yield "The score of a case is the mean over the labels that its truth has; means are over cases."
    if any(comparison.board["missed"].any() for comparison in found):
        yield (
            "Where a label of the truth was not found at all, Dice and NSD are 0 and the image's diagonal stands for "
            "the distances."
        )
    if any(len(comparison.objects) for comparison in found):
        yield (
            "Objects are connected components (26 neighbours, in 2D 8), matched one to one at an IoU above 0.5; F1 and "
            "panoptic quality are those of all objects of the dataset, also of cases whose truth has none, where "
            "whatever is found is false; Dice per object is the mean over the true objects, each with all predicted "
            "ones that overlap it, and 0 where none does. All are averaged over the labels of which the truth has "
            "objects."
        )
    tolerances = sorted({value for comparison in found for value in comparison.tolerances})
    if tolerances:
        yield f"The tolerance of the normalised surface Dice is {', '.join(f'{value:g}' for value in tolerances)} mm."


def _kinds(tested: Sequence[Comparison]) -> tuple[bool, bool]:
    """Tell whether there are differences tested over cases alone, and whether there are ones with trainings."""
    tables = [table for one in tested for table in (*one.paired.values(), one.pairs, one.twins, *one.beside.values())]
    tables = [table for table in tables if len(table)]
    known = [(table["repeated"] | table["against_repeated"])[table["p"].notna()].astype(bool) for table in tables]
    return any((~one).any() for one in known), any(one.any() for one in known)


def _tested(analysis: Analysis, found: Sequence[Comparison]) -> Iterator[str]:
    tested = [comparison for comparison in found if comparison.is_tested]
    if not tested:
        why = (
            f"there were fewer than {CASES} cases, or one algorithm alone"
            if any(comparison.scored for comparison in found)
            else "no case has anything to score"
        )
        yield f"Nothing was tested, as {why}."
        return
    baselines = dict.fromkeys(comparison.baseline for comparison in tested if comparison.baseline)
    repeated = any(len(comparison.components) for comparison in tested)
    by_case, by_training = _kinds(tested)
    once = any(not {*one.ranked} <= {*one.components.index} for one in tested)
    of = f"from {' or '.join(map(str, baselines))} " if baselines else ""
    differences = f"Differences {of}are paired by case"
    wilcoxon, bootstrap = "the two-sided Wilcoxon signed-rank test", "95% percentile bootstrap intervals of the mean"
    grouped = [one.scores.groups is not None for one in tested]
    units = "cases"
    if any(grouped):
        units = "groups" if all(grouped) else "groups, or cases where no groups are known"
        yield (
            f"Cases of a group, such as the images of a patient, are alike, so that the unit is the group"
            f"{' where groups are known' * (not all(grouped))}: tests are of the means of the groups' cases."
        )
    drawn = f"({RESAMPLES} resamples of the {units}, seed {SEED})"
    if by_training:
        yield (
            f"{differences}. Where at least one of two networks was trained several times, they are tested by a t test "
            "with the variance over cases and that of the training of those that were trained several times, with "
            "Satterthwaite's degrees of freedom; so are intervals made, also of such a network's mean."
        )
        if by_case:
            yield f"Others are tested by {wilcoxon}, with {bootstrap} {drawn}."
        elif once:
            yield f"Means of networks that were trained once have {bootstrap} {drawn}."
    else:
        yield f"{differences} and tested by {wilcoxon}; intervals are {bootstrap} {drawn}."
    if once:
        of = "networks that were trained once per fold" if repeated else "training"
        yield f"The variance of {'training of ' * repeated}{of} is not known and not in these numbers."
    others = ", within each source dataset" * any(len(one.by_source) for one in tested)
    others += ", and over those of networks for many datasets" * any(len(one.beside["Dice"]) for one in tested)
    yield (
        "P values were adjusted after Holm, within each dataset and metric, over the comparisons with the baseline, "
        f"and in Dice over those with ablation twins and over all pairs{others}; the level is {LEVEL:g}."
    )
    yield (
        "P(better) is the probability that the true mean difference is a gain under a flat prior; two algorithms are "
        f"called equivalent if the difference lies within {analysis.rope:g} Dice with a probability of at least "
        f"{SURE:g}."
    )
    trainings = " and of the chance of trainings, where it is known" * repeated
    yield f"The stability of ranks is that over {DRAWS} draws of the {units}{trainings} (seed {SEED})."
    if analysis.across:
        yield (
            f"Across datasets, average ranks were compared by Friedman's test and Nemenyi's critical difference at "
            f"{LEVEL:g}."
        )
