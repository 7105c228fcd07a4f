"""What has to stand beside the numbers of a comparison, so that nobody reads more into them than there is."""

from collections.abc import Collection, Sequence

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.record import GONE, UNRANKED
from nnunet_plugins.report.statistics import CASES, DRAWS, LEVEL
from nnunet_plugins.report.verdicts import SURE
from nnunet_plugins.report.words import count, count_units, show_count, show_number, show_p, too_few

FEW = 20
"""With fewer cases than these, 95% bootstrap intervals of normal scores hold the true mean in 87% to 91%."""
EQUAL = 0.9
"""From this share of their number on that groups count as, they are about equal in size."""
NAMED = 10
"""Cases or labels that a line names."""


def caveats(comparison: Comparison) -> list[str]:
    """Return what has to stand beside the numbers, the gravest first."""
    return [
        *_unequal(comparison),
        *_unknown(comparison),
        *_own_plans(comparison),
        *_untrained(comparison),
        *_not_above_the_atlas(comparison),
        *_incomplete(comparison),
        *(f"Not trained here: {trainer}: {reason}." for trainer, reason in comparison.ruled_out.items()),
        *_gone(comparison),
        *_unequal_repeats(comparison),
        *_partial_labels(comparison),
        *_absent_labels(comparison),
        *_limits(comparison),
        *_conventions(comparison),
    ]


def _unequal(comparison: Comparison) -> list[str]:
    if comparison.equality is None:
        return ["Nothing is known of whether these algorithms were trained under equal conditions."]
    accepted = "accepted with --allow-unequal" if comparison.equality.accepted else "not accepted"
    return [
        f"Not a fair comparison ({accepted}): {entry['algorithm']} was trained with {entry['what']} {entry['value']}, "
        f"{comparison.equality.name(entry['against'])} with {entry['baseline']}."
        for entry in comparison.equality.differences
        if not entry["allowed"]
    ]


def _unknown(comparison: Comparison) -> list[str]:
    if comparison.equality is None:
        return []
    return [
        f"Not proven equal: no record tells the {', '.join(settings)} of {name} "
        f"({count_folds({fold for folds in settings.values() for fold in folds})}). What is not known is not taken for "
        "equal, and nothing is compared with it."
        for name, settings in comparison.equality.unknown.items()
    ]


def count_folds(folds: Collection[int]) -> str:
    """Write the numbers of folds."""
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, sorted(folds)))}"


def _own_plans(comparison: Comparison) -> list[str]:
    compared = comparison.algorithms
    compared = compared[~compared["role"].isin(["own plan", *UNRANKED]) & (compared["lacking"] < comparison.cases)]
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


def _not_above_the_atlas(comparison: Comparison) -> list[str]:
    means, lines = comparison.board["Dice"], []
    for atlas in comparison.algorithms.index[comparison.algorithms["role"] == "atlas"]:
        if below := [name for name in comparison.ranked if means[name] <= means[atlas]]:
            lines.append(
                f"Not above the atlas, which has a mean Dice of {show_number(means[atlas], 3)} without seeing an "
                f"image: {', '.join(below)}. They may have learnt positions only."
            )
    return lines


def _incomplete(comparison: Comparison) -> list[str]:
    lines = []
    lacking = comparison.algorithms["lacking"]
    nothing = [str(name) for name in lacking.index if lacking[name] == comparison.cases]
    some = [f"{name} lacks {lacking[name]}" for name in lacking.index if name in comparison.ranked and lacking[name]]
    if nothing:
        lines.append(f"Without results: {', '.join(nothing)}.")
    if comparison.baseline is None:
        lines.append("The baseline has no results, so nothing is compared with it.")
    if some:
        shared = len(comparison.scores.cases)
        lines.append(f"Only the {shared} of {count(comparison.cases, 'case')} that all have count: {', '.join(some)}.")
        lines.append(f"Left out for all algorithms alike: {_named(comparison.dropped)}.")
    return lines


def _gone(comparison: Comparison) -> list[str]:
    runs = comparison.runs[comparison.runs["model"] == GONE]
    if runs.empty:
        return []
    named = [
        f"{name}{f', seed {seed}' * bool(seed)} ({count_folds(set(rows['fold']))})"
        for (name, seed), rows in runs.groupby(["algorithm", "seed"], sort=False)
    ]
    return [
        f"Model no longer here: {'; '.join(named)}. What stands here of these trainings is kept from an earlier "
        "record, and cannot be made again from their segmentations."
    ]


def _unequal_repeats(comparison: Comparison) -> list[str]:
    """Name the repeats that lack folds which other repeats of the same network have."""
    lacking = []
    for name, runs in comparison.runs.groupby("algorithm", sort=False):
        folds = set(runs["fold"])
        for seed, own in runs.groupby("seed", sort=False):
            if less := folds - set(own["fold"]):
                lacking.append(f"seed {seed} of {name} ({count_folds(less)})")
    if not lacking:
        return []
    return [
        f"Not trained in all folds: {'; '.join(lacking)}. A case has the mean of the repeats that have it, so that "
        "some means are of fewer trainings than others; a fold that was trained once has the variance of the others."
    ]


def _partial_labels(comparison: Comparison) -> list[str]:
    if comparison.by_source.empty:
        return []
    cases = {name: comparison.scores.sources.count(name) for name in comparison.by_source.index.unique("source")}
    lines = [
        "Means over all cases count a dataset as often as it has cases "
        f"({', '.join(f'{name} {number}' for name, number in cases.items())}); a table has each dataset's own."
    ]
    if comparison.scores.is_partial:
        lines.append(
            "Each case is scored in the labels alone that its dataset annotates. nnU-Net's summary.json is no such "
            "number: whatever a network finds of the others is a Dice of 0 there. nnU-Net's choice and its "
            "post-processing, where they stand here, were made by it. Pictures show all that a network finds."
        )
    return lines


def describe_labels(comparison: Comparison) -> list[str]:
    """Say which labels no truth has, and which ones an algorithm never finds."""
    lines, present, called = [], comparison.present, comparison.labels
    if nowhere := [called[label] for label in present.index[present == 0]]:
        lines.append(f"In the truth of no case: {_named(nowhere)}. Nothing but false findings is known of it there.")
    missed = comparison.missed_by_label
    never = missed.eq(present[missed.columns], axis="columns") & present[missed.columns].gt(0)
    for name in missed.index[never.any(axis=1)]:
        labels = [f"{called[label]} (in {count(present[label], 'case')})" for label in never.columns[never.loc[name]]]
        lines.append(f"Never found by {name}: {_named(labels)}.")
    return lines


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _absent_labels(comparison: Comparison) -> list[str]:
    lines = describe_labels(comparison)
    annotated = comparison.scores.annotated
    of_all = f"of {count(int(annotated.sum()), 'label')} (over the cases)"
    if missed := comparison.board["missed"].sum():
        lines.append(
            f"A label of the truth is missed {show_count(missed)} times, over all algorithms: Dice and NSD are 0 "
            "there, and the diagonal of the image stands for the distances."
        )
    if absent := int((annotated & ~comparison.scores.truth).sum()):
        lines.append(
            f"{absent} {of_all} are not in the truth. Nobody has a Dice, a distance or an NSD there, whatever it "
            "finds; false findings have a table of their own. The volume error counts everywhere."
        )
    if comparison.has_own_mean:
        lines.append(
            "The mean Dice is not nnU-Net's own, which stands beside it (foreground_mean of summary.json). nnU-Net "
            "averages the cases of each label first and then the labels, takes a finding where the truth has nothing "
            "for a Dice of 0, leaves out what is in neither mask for each algorithm by itself, and counts cases that "
            "only some algorithms have. Here all algorithms are scored in the same cases."
            + " Of several trainings it is the mean of theirs, each over the folds that it has."
            * bool(comparison.gaps)
        )
    return lines


_BESIDE = {
    "ensemble": "Ensembles take no part in ranks and tests: they share the errors of their members.",
    "choice": "nnU-Net's choice, made by cross-validation, takes no part in ranks and tests: it alone is "
    "post-processed.",
    "one pass": "Networks with their cases in one pass take no part in ranks and tests: they are the trainings of the "
    "rows with tiles. Cases for which memory did not suffice were predicted in tiles; the tasks' logs name them.",
    "one for many": "Networks for many datasets take no part in the ranks, and in no test but that against the same "
    "network on this dataset alone: they have seen more data, on plans of the merged dataset, and have had their "
    "epochs for all datasets together. Folds are the same, so that no case was seen.",
    "atlas": "The atlas, the voxelwise majority of the training labels with each case in the middle of the patch, "
    "takes no part in ranks and tests: it is no network and sees no image.",
}
"""Why algorithms of a role take no part in ranks and tests."""


def _limits(comparison: Comparison) -> list[str]:
    """Say what the p values and intervals do not cover."""
    lines = []
    cases, numbers = comparison.scored, _numbers(comparison)
    units, unit, effective = comparison.scores.units, comparison.scores.unit, comparison.scores.effective
    named = count_units(units, cases)
    if unit == "group":
        over = f": {numbers} are over these" * bool(numbers)
        lines.append(f"The {count(cases, 'case')} are of {count(units, 'group')}, such as patients{over}.")
    if CASES <= effective < EQUAL * units:
        lines.append(
            f"The groups are of unequal sizes: in a mean over the cases they count as {effective:.0f} of equal size."
        )
    if comparison.split == "test" and numbers:
        lines.append("Each test image counts by itself: which of them are of one patient, or alike, is not known.")
    tests = comparison.pairs if comparison.baseline is None else comparison.paired["Dice"]
    least = tests.loc[tests["p_least"] >= LEVEL, "p_least"]
    if 0 < effective < CASES:
        could = f"; no p value of the signed-rank test could lie below {LEVEL:g}" * (units < CASES)
        lines.append(
            f"{too_few(units, cases, effective, CASES)} to test anything: below {CASES} there are no intervals, p "
            f"values or probabilities{could}."
        )
    elif len(least):
        among = "of every pair" if comparison.baseline is None else f"against {comparison.baseline}"
        some = f" in {len(least)} of them" * (len(least) < len(tests))
        lines.append(
            f"With {named} and {count(len(tests), 'test')} {among} no adjusted p value can lie below "
            f"{show_p(least.min())}{some}, however large the differences are."
        )
    if CASES <= effective < FEW and comparison.bootstrapped:
        lines.append(
            f"Bootstrap intervals are too narrow for so few {unit}s: they hold the true mean about nine times in ten."
        )
    if comparison.scores.folds.nunique() == 1:
        for_it = f", and {numbers} are for its training set" if numbers else ""
        lines.append(f"All cases are of one fold{for_it}: the networks of another may do better or worse.")
    elif comparison.split == "cross-validation" and comparison.has_intervals:
        lines.append(
            f"The models of the folds share most of their training cases, which {numbers} do not cover."
            if not comparison.once
            else "Cross-validated cases share models, and the models share most of their training cases: the cases are "
            f"not independent, so intervals are too narrow{' and p values too small' * comparison.is_tested}."
        )
    lines += _trainings(comparison)
    lines += _stability(comparison)
    roles = {*comparison.algorithms["role"]}
    lines += [text for role, text in _BESIDE.items() if role in roles]
    return lines


def _numbers(comparison: Comparison) -> str:
    """Name what says how sure the means are, of what there is; nothing, if nothing does."""
    if comparison.is_tested:
        return "intervals, p values and probabilities"
    return "intervals" * comparison.has_intervals


def _trainings(comparison: Comparison) -> list[str]:
    """Say whose variance of training is covered, and which repeats are missing."""
    repeated = comparison.components["trainings"].to_dict()
    numbers = _numbers(comparison)
    covered = f"covered by {numbers}" if numbers else "known"
    too_sure = ", which are too sure: they are of these trainings, and so are the words" * comparison.is_tested
    if not repeated and len(comparison.scores.trainings) > len(comparison.scores.algorithms):
        lines = [
            "No fold was trained twice, whatever the seeds: how much results vary from one training to the next is not "
            f"{covered}{too_sure}."
        ]
    elif not repeated:
        lines = [
            "Each network was trained once per fold: how much results vary from one training to the next (the seed) is "
            f"not {covered}{too_sure}."
        ]
    else:
        up_to = "up to " * bool(comparison.gaps)
        times = {number: [str(name) for name in repeated if repeated[name] == number] for number in repeated.values()}
        shown = ", ".join(
            f"{', '.join(names)} ({up_to}{count(int(number), 'training')} of a fold)" for number, names in times.items()
        )
        held = (
            "They hold for the training sets of these folds: what others would give, no cross-validation of one "
            "dataset tells. "
        ) * (comparison.scores.folds.nunique() != 1)
        labels = f"Intervals of single labels are over {comparison.scores.unit}s." * bool(comparison.label_dice)
        said = f"{numbers.capitalize()} have the variance of training of {shown}. {held}{labels}".strip()
        lines = [said if numbers else f"Trained several times: {shown}."]
        if once := comparison.once:
            lines.append(
                f"Trained once per fold, so that nothing is known of how trainings vary: {', '.join(once)}"
                + f". What {numbers} say of {'it' if len(once) == 1 else 'them'} is too sure" * bool(numbers)
                + "."
            )
        if others := [name for name in comparison.bootstrapped if name not in comparison.ranked]:
            lines.append(
                f"Intervals of {', '.join(others)} are over {comparison.scores.unit}s alone, without the variance of "
                "training."
            )
    if comparison.gaps and not _unequal_repeats(comparison):
        lacking = [
            f"{name} with seed {seed} lacks {count(len(folds), 'fold')} ({', '.join(folds)})"
            for name, seed, folds in comparison.gaps
        ]
        lines.append(
            f"Unequal repeats: {'; '.join(lacking)}. In each fold the mean is over the trainings there are; one that "
            "was trained once has the variance of training of the others."
        )
    return lines


def _stability(comparison: Comparison) -> list[str]:
    found = comparison.stability
    if found is None or len(comparison.ranked) < 3 or not comparison.has_intervals:
        return []
    order = "the same" if found.by_mean.equals(found.by_rank) else "another one"
    drawn = f"{comparison.scores.unit}s" + " and trainings" * bool(comparison.repeated)
    first = [str(name) for name in found.by_rank.index[found.by_rank == 1]]
    other = "" if found.by_mean[first].eq(1).all() else f", with {' and '.join(first)} first"
    return [
        f"Ranked by mean rank over the cases instead of mean Dice, the order is {order}{other} (Kendall's tau "
        f"{show_number(found.tau, 2)}). Over {DRAWS} draws of {drawn}, the tau of the order with this one is "
        f"{show_number(found.drawn, 2)} on average, and at least {show_number(found.low, 2)} in 97.5% of them."
    ]


_OBJECTS = (
    "Objects are connected components, by faces, edges and corners. A true and a predicted one match if their IoU is "
    "above 0.5; SQ is the mean IoU of the pairs, F1 (RQ) and PQ = SQ x F1 are those of all objects of all cases "
    "together, also of cases whose truth has none, and of several labels the mean. Dice per object: the mean over the "
    "true objects, each with all predicted ones that overlap it, 0 where none does. None of it is tested."
)


def _conventions(comparison: Comparison) -> list[str]:
    tolerances = ", ".join(f"{value:g}" for value in comparison.tolerances)
    by = f" by MONAI {comparison.versions['monai']}" if "monai" in comparison.versions else ""
    return [
        "The score of a case is the mean over the labels that its truth has; means are over cases.",
        *_tests(comparison),
        *([_OBJECTS] if len(comparison.objects) else []),
        *([f"NSD at {tolerances} mm; distances in mm{by}, between voxel surfaces."] if tolerances else []),
        "Pseudo Dice, in training curves, is computed from patches during the training; it is not the tables' Dice.",
    ]


def _tests(comparison: Comparison) -> list[str]:
    """Say what intervals, p values and probabilities are, of those that there are."""
    if not comparison.has_intervals:
        return []
    unit, bootstrapped = comparison.scores.unit, bool(comparison.bootstrapped)
    if not comparison.is_tested:
        bootstrap, both = (
            f"95% bootstrap intervals over {unit}s",
            f"over {unit}s and trainings where these were repeated",
        )
        return [f"Intervals are {', '.join([bootstrap] * bootstrapped + [both] * bool(comparison.repeated))}."]
    by_ranks, by_t = comparison.tests
    tests = ["Intervals are 95% bootstrap intervals."] * (bootstrapped or by_ranks)
    if by_ranks:
        tests = [f"Intervals are 95% bootstrap intervals, p values Wilcoxon's, paired by {unit}."]
    if by_t:
        tests += [
            f"Where trainings were repeated, intervals and p values are those of a t test over {unit}s and trainings."
        ]
    apart = "It is about means, Wilcoxon's p about ranks: a few cases with large differences can set them apart. "
    apart *= by_ranks
    return [
        f"{' '.join(tests)} P values are after Holm within a table's metric, so that one pair can have another p "
        "(Holm), and another word, in another table.",
        "P(better) is the probability that the true mean difference is a gain, given these results and a flat prior: "
        "what is missing to 1 is that of a false claim. It is of each comparison by itself, as are the cases and "
        f"repeats to tell a difference: Holm's adjustment is in p alone. {apart}Equivalent: within "
        f"{comparison.rope:g} Dice with a probability of {SURE:g} or more.",
    ]
