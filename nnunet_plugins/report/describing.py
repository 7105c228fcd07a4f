"""How to describe a benchmark in a paper, and what to cite: sentences to copy, of what was done to these numbers."""

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.report.analysis import Analysis, Comparison
from nnunet_plugins.report.equality import HASHES
from nnunet_plugins.report.statistics import CASES, DRAWS, LEVEL, RESAMPLES, SEED
from nnunet_plugins.report.verdicts import SURE
from nnunet_plugins.report.words import count, name_some, too_few
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
    tested = [comparison for comparison in analysis.comparisons if any(comparison.tests)]
    return [
        NNUNET,
        *papers,
        *([_WILCOXON] if any(one.tests[0] for one in tested) else []),
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
    """Say who was trained how often in a fold, where that is not once for all; datasets apart, if they differ."""
    said: dict[str, list[str]] = {}
    for one in found:
        times: dict[int, list[str]] = {}
        for name in one.ranked:
            times.setdefault(int(one.components["trainings"].get(name, 1)), []).append(name)
        up_to = "up to " * bool(one.gaps)
        parts = [f"{up_to * (number > 1)}{number} of {name_some(times[number])}" for number in sorted(times)[::-1]]
        once = "no two of one algorithm in one fold"
        said.setdefault(once if {*times} == {1} else f"in each fold {', '.join(parts)}", []).append(one.dataset)
    if len(said) == 1:
        return f", {next(iter(said))}"
    return "".join(f"; on {', '.join(dict.fromkeys(datasets))} {times}" for times, datasets in said.items())


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


def _tested(analysis: Analysis, found: Sequence[Comparison]) -> Iterator[str]:
    """Say what was tested how, each sentence once, and of which datasets it is if it is not of all."""
    for say in (_untested, _units, _paired, _tests, _intervals, _once, _adjusted, _probabilities, _ranks):
        said: dict[str, list[str]] = {}
        for comparison in found:
            if sentence := say(comparison):
                said.setdefault(sentence, []).append(comparison.title)
        for sentence, titles in said.items():
            yield sentence if len(titles) == len(found) else f"{sentence[:-1]} ({'; '.join(titles)})."
    if analysis.across:
        yield (
            f"Across datasets, average ranks were compared by Friedman's test and Nemenyi's critical difference at "
            f"{LEVEL:g}."
        )


def _untested(comparison: Comparison) -> str:
    if comparison.is_tested:
        return ""
    if not comparison.scored:
        return "Dice was not tested, as no case has anything to score."
    if not comparison.has_intervals:
        scores = comparison.scores
        few = too_few(scores.units, comparison.scored, scores.effective, CASES)
        return f"Dice was not tested, as {few}: there have to be {CASES}."
    return "Dice was not tested, as there was nothing to compare."


def _units(comparison: Comparison) -> str:
    numbers = ", tests and probabilities" if any(comparison.tests) else ""
    if comparison.scores.unit == "case" or not (comparison.has_intervals or numbers):
        return ""
    return f"Cases of a group, such as the images of a patient, are alike: intervals{numbers} are over groups."


def _paired(comparison: Comparison) -> str:
    return "Networks are paired by case." * any(comparison.tests)


def _tests(comparison: Comparison) -> str:
    by_ranks, by_t = comparison.tests
    grouped = comparison.scores.unit == "group"
    wilcoxon = f"the two-sided Wilcoxon signed-rank test{' of the means of the groups' * grouped}"
    t_test = (
        f"a t test with the variance over {comparison.scores.unit}s and that of the training of the networks that were "
        "trained several times"
    )
    tests = f"Where one of two networks was trained several times, by {t_test}, and else by {wilcoxon}"
    if not (by_ranks and by_t):
        tests = f"Differences are tested by {wilcoxon if by_ranks else t_test}"
    return f"{tests}." * (by_ranks or by_t)


def _intervals(comparison: Comparison) -> str:
    """Say what intervals are; those of single labels and of differences tested by ranks are always the bootstrap's."""
    if not (comparison.has_intervals or any(comparison.tests)):  # those of volumes, where few cases have a Dice
        return ""
    bootstrap = f"95% percentile bootstrap intervals of the mean ({RESAMPLES} resamples of the "
    bootstrap += f"{comparison.scores.unit}s, seed {SEED})"
    of_t = (
        f"95% intervals of the t distribution with the variance over {comparison.scores.unit}s and that of training, "
        "and with Satterthwaite's degrees of freedom"
    )
    if not (comparison.repeated or comparison.tests[1]):
        return f"Intervals are {bootstrap}."
    if not (comparison.bootstrapped or comparison.tests[0] or comparison.label_dice):
        return f"Intervals are {of_t}."
    return (
        f"Networks that were trained several times, and differences with them, have {of_t}; all else has {bootstrap}."
    )


def _once(comparison: Comparison) -> str:
    if not ((comparison.has_intervals or any(comparison.tests)) and comparison.once):
        return ""
    of = "training of networks that were trained once per fold" if comparison.repeated else "training"
    return f"The variance of {of} is not known and not in these numbers."


def _adjusted(comparison: Comparison) -> str:
    families = [
        "over the comparisons with the baseline" * (len(comparison.paired["Dice"]) > 0),
        "in Dice over those with ablation twins" * (len(comparison.twins) > 0),
        "in Dice over all pairs" * (len(comparison.pairs) > 0),
        "over those within each source dataset" * (len(comparison.by_source) > 0),
        "over those of networks for many datasets" * (len(comparison.beside["Dice"]) > 0),
    ]
    said = ", ".join(filter(None, families))
    return f"P values were adjusted after Holm, each metric by itself, {said}; the level is {LEVEL:g}." * (
        any(comparison.tests)
    )


def _probabilities(comparison: Comparison) -> str:
    equivalent = (
        f"; two networks are called equivalent if the difference lies within {comparison.rope:g} Dice with a "
        f"probability of at least {SURE:g}"
    ) * comparison.is_tested
    return (
        "P(better) is the probability that the true mean difference is a gain under a flat prior, by the t "
        f"distribution over {comparison.scores.unit}s{equivalent}."
    ) * any(comparison.tests)


def _ranks(comparison: Comparison) -> str:
    trainings = " and of the chance of trainings, where it is known" * bool(comparison.repeated)
    return (
        f"The stability of ranks is that over {DRAWS} draws of the {comparison.scores.unit}s{trainings} (seed {SEED})."
    ) * (not comparison.rank_shares.empty)
