"""Cases of one group, such as the images of a patient: they count as one where anything is said to be sure."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from report_pages import build
from report_records import make_record

from nnunet_plugins.report.analysis import Comparison, analyse
from nnunet_plugins.report.card import make_card
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.claims import claim
from nnunet_plugins.report.describing import describe_methods, list_references
from nnunet_plugins.report.evidence import Measure
from nnunet_plugins.report.findings import describe_all
from nnunet_plugins.report.latex import write_paper
from nnunet_plugins.report.ranking import rank_shares, stability
from nnunet_plugins.report.statistics import LEVEL, compare, mean_with_ci
from nnunet_plugins.report.variance import estimate, learn_repeats
from nnunet_plugins.report.verdicts import SURE, TOO_FEW
from nnunet_plugins.report.words import too_few

ROPE = 0.01
DATASET = "Dataset001_Made"


def only(record) -> Comparison:
    (comparison,) = analyse(record).comparisons
    return comparison


def in_pairs(record):
    """The record of cases of which each two are of one group."""
    cases = list(dict.fromkeys(record.results["case"]))
    dataset = record.results["dataset"].iloc[0]
    known = {case: 1 + number // 2 for number, case in enumerate(cases)}
    return replace(
        record, about={**record.about, "datasets": {dataset: {"groups": len(cases) // 2, "group_of": known}}}
    )


def test_two_equal_cases_of_a_group_are_as_sure_as_one():
    """Every case twice: not an interval, a p value or an effect size changes, but for the counts of cases."""
    generator = np.random.default_rng(0)
    once = pd.DataFrame(generator.normal([0.8, 0.79, 0.7], 0.03, (20, 3)), columns=list("abc"))
    once.loc[3, "b"] = np.nan
    twice = pd.concat([once, once], ignore_index=True)
    groups = pd.Series(np.tile(np.arange(20), 2))
    of_one, of_two = (
        compare(one, "a", higher_is_better=True, groups=of) for one, of in ((once, None), (twice, groups))
    )
    same = ["units", "mean_difference", "ci_low", "ci_high", "effect_size", "p", "p_holm"]
    assert_allclose(of_two[same].astype(float), of_one[same].astype(float))
    assert (of_one["n"].tolist(), of_two["n"].tolist()) == ([19, 20], [38, 40])
    assert_allclose(
        mean_with_ci(twice, groups=groups)[["ci_low", "ci_high"]], mean_with_ci(once)[["ci_low", "ci_high"]]
    )
    complete, errors = once.dropna(), pd.Series(0.0, list("abc"))
    doubled = pd.concat([complete, complete], ignore_index=True)
    of = pd.Series(np.tile(np.arange(19), 2))
    drawn = stability(doubled, higher_is_better=True, errors=errors, groups=of)
    assert (drawn.drawn, drawn.low) == (lambda found: (found.drawn, found.low))(
        stability(complete, higher_is_better=True, errors=errors)
    )
    pd.testing.assert_frame_equal(rank_shares(doubled, errors, of), rank_shares(complete, errors, None))
    # And over trainings, in folds.
    scores = generator.normal(0.8, 0.03, (20, 2))
    folds = np.arange(20) % 4
    one = estimate(scores.mean(axis=1), folds)
    two = estimate(np.tile(scores.mean(axis=1), 2), np.tile(folds, 2), units=np.tile(np.arange(20), 2))
    assert_allclose([*two.interval, two.p, two.degrees], [*one.interval, one.p, one.degrees])
    again = learn_repeats(np.tile(scores, (2, 1)), np.tile(folds, 2), np.tile(np.arange(20), 2))
    once = learn_repeats(scores, folds)
    assert_allclose([again.training, again.rest_degrees], [once.training, once.rest_degrees])
    assert (two.cases, two.units) == (40, 20)


def test_cases_in_groups_of_one_are_cases():
    scores = pd.DataFrame(np.random.default_rng(1).normal(0.8, 0.03, (12, 2)), columns=list("ab"))
    alone = compare(scores, "a", higher_is_better=True)
    pd.testing.assert_frame_equal(
        compare(scores, "a", higher_is_better=True, groups=pd.Series(list("zyxwvutsrqpo"))), alone
    )


def worlds(number: int, *, seeds: int = 1, difference: float = 0.0, training: float = 0.0, alike: float = 0.03):
    """Measures of two networks on 3 folds of 30 groups of two cases, which have most of a case's effect in common."""
    generator = np.random.default_rng(2)
    groups, folds = np.repeat(np.arange(90), 2), np.repeat(np.arange(3), 60)
    for _ in range(number):
        parts = {}
        for name, mean in (("a", 0.8 + difference), ("b", 0.8)):
            common = generator.normal(0, alike, (90, 1))[groups] + generator.normal(0, 0.015, (180, 1))
            again = generator.normal(0, training, (3, seeds))[folds] + generator.normal(0, 0.01, (180, seeds))
            names = [str(seed + 1) if seeds > 1 else "" for seed in range(seeds)]
            parts[name] = pd.DataFrame(mean + common + again, columns=names)
        by_case = pd.DataFrame({name: part.mean(axis=1) for name, part in parts.items()})
        yield Measure("Dice", by_case, pd.concat(parts, axis=1), pd.Series(folds), pd.Series(groups))


def told_apart(measures) -> float:
    """The share of worlds in which the two are told apart: by the ranks, and where there are repeats by the mean."""
    p = [
        one.estimate("a", "b").p
        if one.repeats("a").known
        else compare(one.by_case, "b", higher_is_better=True, groups=one.groups, resamples=0)["p"].iloc[0]
        for one in measures
    ]
    return float(np.mean(np.array(p) < LEVEL))


def equivalent(measures) -> float:
    """The share of worlds in which the two are called equivalent."""
    return float(np.mean([claim(one.estimate("a", "b"), ROPE).equivalent >= SURE for one in measures]))


@pytest.mark.parametrize(("seeds", "training"), [(1, 0.0), (2, 0.004)])
def test_equal_networks_are_told_apart_as_often_as_the_level_says(seeds, training):
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    found = list(worlds(300, seeds=seeds, training=training))
    assert told_apart(found) < most
    assert told_apart([replace(one, groups=None) for one in found]) > most, "cases as if they were unlike"


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_difference_beyond_the_region_is_called_equivalent_as_often_as_the_word_says(seeds):
    """Just beyond it: where the variance of training is known, "equivalent" is false in one of twenty such worlds."""
    found = worlds(300, seeds=seeds, difference=0.0101, training=0.003, alike=0.0)
    assert equivalent(found) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_without_repeats_the_word_is_about_these_trainings_alone():
    """Of networks it would be false far more often, which is why every sentence says that they were trained once."""
    assert equivalent(worlds(200, difference=0.0101, training=0.0045, alike=0.0)) > 0.15


def equal_networks(number: int, units: np.ndarray, folds: Callable[..., np.ndarray], seeds: int, again: float = 0.0):
    """Estimates of a difference that is none; a case has most in common with the others of its group.

    Training is no chance of a network, but what each does to a group is: `again`. Folds are drawn for each world.
    """
    generator, groups = np.random.default_rng(5), int(units.max()) + 1
    for _ in range(number):
        fold = folds(generator)
        common = generator.normal(0, 0.025, groups)[units] + generator.normal(0, 0.016, len(units))
        own = [
            generator.normal(0, again, (groups, seeds))[units] + generator.normal(0, 0.01, (len(units), seeds))
            for _ in range(2)
        ]
        known = [learn_repeats(scores, fold, units) for scores in own]
        yield estimate(common + own[0].mean(axis=1) - own[1].mean(axis=1), fold, known, units)


def unequal_worlds(number: int, sizes: list[int], *, folds: int = 1, seeds: int = 1, again: float = 0.0):
    """The same of groups of these sizes, as many in each fold."""
    units = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.arange(len(sizes)) % folds
    return equal_networks(number, units, lambda generator: generator.permutation(numbers)[units], seeds, again)


@pytest.mark.parametrize("sizes", [[1] * 40 + [10] * 4, [1] * 30 + [10], [3] * 10])
@pytest.mark.parametrize(("folds", "seeds", "again"), [(1, 1, 0.0), (3, 3, 0.0), (3, 3, 0.02)])
def test_groups_of_unequal_sizes_count_as_what_they_tell(sizes, folds, seeds, again):
    """A large group draws the mean to itself: its distance from it told too little, in 12 to 20% of such worlds."""
    found = list(unequal_worlds(300, sizes, folds=folds, seeds=seeds, again=again))
    assert np.mean([one.p < LEVEL for one in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert 0.75 < np.mean([one.error**2 for one in found]) / np.var([one.mean for one in found]) < 1.6


def test_large_groups_that_fill_a_fold_have_the_degrees_of_that_fold():
    """Two groups of 20 in one of five folds, and single cases in the others; over all folds it would be 37 degrees."""
    units = np.concatenate([np.repeat([0, 1], 20), np.arange(2, 162)])
    found = list(equal_networks(300, units, lambda _: np.repeat(np.arange(5), 40), 3))
    assert found[0].case_degrees() < 3
    # Of five times as many units in each fold, the same formula has 13.
    assert 5 < replace(found[0], repeats=()).spread(5.0)[1] < 14
    assert np.mean([one.p < LEVEL for one in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert_allclose(np.mean([one.error**2 for one in found]), np.var([one.mean for one in found]), rtol=0.3)


def test_a_group_with_cases_in_several_folds_counts_once():
    """As folds from elsewhere may have it: in each of five folds an image of each of ten patients."""
    units = np.tile(np.arange(10), 5)
    found = list(equal_networks(300, units, lambda _: np.repeat(np.arange(5), 10), 3))
    assert found[0].case_degrees() == 9
    assert np.mean([one.p < LEVEL for one in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(("folds", "shared"), [(5, 2), (10, 5)])
def test_folds_that_share_groups_count_as_one_whatever_else_there_is(folds, shared):
    """The same two large groups fill some folds; single cases in the others told them apart in 9 and 21% of worlds."""
    rest = (folds - shared) * 40
    units = np.concatenate([np.tile(np.repeat([0, 1], 20), shared), np.arange(2, 2 + rest)])
    found = list(equal_networks(300, units, lambda _: np.repeat(np.arange(folds), 40), 3))
    assert found[0].case_degrees() < 1.5
    assert np.mean([one.p < LEVEL for one in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("cases", [6, 8, 50, 1000])
def test_folds_that_differ_by_a_case_have_the_degrees_of_equal_ones(cases):
    """As nearly all have; what it would take depends on how many degrees fewer cases would leave."""
    degrees = []
    for sizes in ([40] * 5, [41, 40, 40, 40, 40]):
        folds = np.repeat(np.arange(5), sizes)
        (found,) = equal_networks(1, np.arange(len(folds)), lambda _, folds=folds: folds, 2)
        degrees.append(found.case_degrees(cases / len(folds)))
    assert_allclose(degrees, cases - 5, rtol=0.01)


def test_what_trainings_do_to_a_group_is_no_variance_of_the_trainings():
    repeats = [one.repeats[0] for one in unequal_worlds(200, [4] * 30, folds=3, seeds=3, again=0.03)]
    assert_allclose(
        np.mean([one.between for one in repeats]), np.mean([one.rest * one.shared for one in repeats]), rtol=0.1
    )


def test_a_group_with_a_fold_of_its_own_is_taken_to_vary_as_the_others_do():
    found = list(unequal_worlds(300, [3] * 6, folds=5, seeds=3))
    assert_allclose(np.mean([one.error**2 for one in found]), np.var([one.mean for one in found]), rtol=0.3)


def test_one_group_with_nearly_all_cases_is_too_little_to_say_anything(tmp_path):
    record = make_record(algorithms=2, cases=31, labels=1, folds=2, epochs=1)
    sizes = {case: max(0, number - 19) for number, case in enumerate(dict.fromkeys(record.results["case"]))}
    grouped = replace(record, about={**record.about, "datasets": {DATASET: {"groups": 12, "group_of": sizes}}})
    comparison = only(grouped)
    assert (comparison.scores.units, round(comparison.scores.effective, 1)) == (12, 2.3)
    assert set(comparison.pairs["verdict"]) == {TOO_FEW}
    text = build(tmp_path, grouped).text
    assert (
        "12 groups of cases (of such unequal sizes that they tell as much as 2.3) are too few to test anything" in text
    )
    assert "no p value of the signed-rank test could lie below" not in text
    assert "Too few cases to test" in text


@pytest.mark.parametrize(
    ("repeats", "tests"),
    [
        ([0, 0, 0], "by Wilcoxon's signed-rank test of the means of the 12 groups, Holm's"),
        ([2, 0, 0], "by a t test over 12 groups of cases and trainings, Holm's"),
        ([2, 2, 2], "by a t test over 12 groups of cases and trainings, Holm's"),
        (
            [0, 2, 0],
            "signed-rank test of the means of the 12 groups, or with nnUNetTrainerFIRENet a t test over 12 groups",
        ),
    ],
)
def test_the_caption_for_a_paper_names_the_tests_that_were_made(tmp_path, repeats, tests):
    """With a baseline that was trained several times, every test is a t test."""
    record = in_pairs(make_record(algorithms=3, cases=24, labels=1, folds=2, epochs=1, repeats=repeats))
    results = record.results.copy()
    worse = results["algorithm"] == only(record).ranked[-1]
    results.loc[worse, "Dice"] = results.loc[worse, "Dice"] * 0.5
    write_paper(analyse(replace(record, results=results)), tmp_path / "paper.tex")
    assert tests in (tmp_path / "paper.tex").read_text()


def test_methods_tell_how_just_that_was_tested_which_was_tested():
    """Volumes count in cases without the label, too, so that they have cases enough where Dice has too few."""
    some = make_record(algorithms=2, cases=12, labels=1, both_empty=7, folds=2, epochs=1)
    assert only(some).scored == 5
    assert only(some).paired["volume_error_ml"]["p"].notna().any()
    said = " ".join(describe_methods(analyse(some)))
    assert "Dice was not tested, as 5 cases are too few: there have to be 6." in said
    assert all(word in said for word in ("Wilcoxon signed-rank test.", "bootstrap", "after Holm", "P(better)"))
    assert "equivalent" not in said, "Dice alone can be called so"
    assert {True} == {any(word in one for one in list_references(analyse(some))) for word in ("Wilcoxon", "Holm")}
    few = " ".join(describe_methods(analyse(make_record(algorithms=2, cases=5, labels=1, folds=2, epochs=1))))
    assert not any(word in few for word in ("Wilcoxon", "Holm", "P(better)", "bootstrap"))
    one = make_record(algorithms=1, cases=12, labels=1, folds=2, epochs=1, repeats=2)
    said = " ".join(describe_methods(analyse(one)))
    assert (
        "as there was nothing to compare. Intervals are 95% intervals of the t distribution with the variance" in said
    )


def test_methods_of_one_network_speak_of_intervals_alone():
    record = in_pairs(make_record(algorithms=1, cases=24, labels=1, folds=2, epochs=1))
    said = " ".join(describe_methods(analyse(record)))
    assert "are alike: intervals are over groups." in said
    assert "probabilit" not in said


def test_too_few_never_says_that_they_tell_as_much_as_would_do():
    assert "as much as 5.9)" in too_few(6, 40, 5.98, 6)


def test_unequal_groups_are_said_to_count_as_fewer():
    record = make_record(algorithms=2, cases=40, labels=1, folds=2, epochs=1)
    sizes = {case: max(0, number - 9) for number, case in enumerate(dict.fromkeys(record.results["case"]))}
    grouped = replace(record, about={**record.about, "datasets": {DATASET: {"groups": 31, "group_of": sizes}}})
    said = "in a mean over the cases they count as 12 of equal size."
    assert any(said in line for line in caveats(only(grouped)))
    assert not any("unequal sizes" in line for line in caveats(only(in_pairs(record))))


def test_groups_stand_wherever_something_is_said_to_be_sure(tmp_path):
    record = make_record(algorithms=3, cases=24, labels=1, folds=2, epochs=1)
    plain, grouped = only(record), only(in_pairs(record))
    assert (plain.scores.units, grouped.scores.units) == (24, 12)
    assert_allclose(grouped.board["Dice"], plain.board["Dice"], err_msg="means are over cases")
    assert not np.allclose(grouped.pairs["p"].astype(float), plain.pairs["p"].astype(float))
    text = build(tmp_path, in_pairs(record)).text
    assert "on 24 cases of 12 groups" in text
    assert (
        "The 24 cases are of 12 groups, such as patients: intervals, p values and probabilities are over these." in text
    )
    assert "are alike: intervals, tests and probabilities are over groups." in text
    assert "signed-rank test of the means of the groups." in text
    assert "resamples of the groups" in text
    assert "p values Wilcoxon's, paired by group." in text
    assert "Over 1000 draws of groups" in text
    assert not any(
        " group" in line for line in [*describe_all(plain), *caveats(plain), *describe_methods(analyse(record))]
    )
    write_paper(analyse(in_pairs(record)), tmp_path / "paper.tex")
    paper = (tmp_path / "paper.tex").read_text()
    assert "Wilcoxon's signed-rank test of the means of the 12 groups" in paper
    table = pd.read_csv(tmp_path / "report" / "results.csv")
    assert table.groupby("case")["group"].first().tolist() == list(np.repeat(np.arange(1, 13), 2))
    build(tmp_path / "plain", record)
    assert "group" not in pd.read_csv(tmp_path / "plain" / "report" / "results.csv")


def test_groups_of_one_case_are_cases(tmp_path):
    record = make_record(algorithms=3, cases=12, labels=1, folds=2, epochs=1)
    single = {case: number for number, case in enumerate(dict.fromkeys(record.results["case"]))}
    alone = replace(record, about={**record.about, "datasets": {DATASET: {"groups": 12, "group_of": single}}})
    assert only(alone).scores.unit == "case"
    assert not any("group" in line for line in [*caveats(only(alone)), *describe_methods(analyse(alone))])


def test_with_repeats_and_groups_everything_is_over_groups_and_trainings(tmp_path):
    record = in_pairs(make_record(algorithms=3, cases=24, labels=2, folds=2, epochs=1, repeats=[2, 2, 0]))
    once = next(name for name in only(record).once)
    text = build(tmp_path, record).text
    assert "by a t test with the variance over groups and that of the training" in text
    assert "groups, trainings" in text
    assert "Intervals of single labels are over groups." in text
    assert "groups, and the chance in trainings as far as it is known, are drawn anew" in text
    assert f"Trained once per fold, so that nothing is known of how trainings vary: {once}." in text


def test_few_groups_are_too_few_however_many_cases_they_have(tmp_path):
    record = in_pairs(make_record(algorithms=2, cases=10, labels=1, folds=1, epochs=1))
    comparison = only(record)
    assert set(comparison.pairs["verdict"]) == {TOO_FEW}
    assert not comparison.has_intervals
    text = build(tmp_path, record).text
    assert "5 groups of cases are too few to test anything" in text
    assert "on 10 cases of 5 groups." in text


def test_test_images_and_cases_without_a_group_are_units_of_their_own():
    record = make_record(algorithms=2, cases=12, labels=1, splits=["test"], epochs=1)
    comparison = only(in_pairs(record))
    assert comparison.scores.units == 12
    assert any("Each test image counts by itself" in line for line in caveats(comparison))
    assert dict(make_card(comparison, in_pairs(record).about))["Groups"] == "not known of test images"
    some = in_pairs(make_record(algorithms=2, cases=12, labels=1, folds=2, epochs=1))
    (known,) = some.about["datasets"].values()
    del known["group_of"][only(some).scores.cases[0]]
    assert only(some).scores.units == 7
