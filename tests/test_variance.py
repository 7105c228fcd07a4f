"""Variance over cases and trainings: by hand, and against simulated worlds whose components are known."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from simulated_worlds import CASE, REST, TRAINING, world

from nnunet_plugins.report.variance import Repeats, estimate, learn_repeats

WORLDS = 500
NOMINAL = 0.95
CHANCE = 3 * np.sqrt(NOMINAL * (1 - NOMINAL) / WORLDS)  # 0.029


def compared(generator, **options):
    """The estimate of a difference of two algorithms, and the true one."""
    one, folds, mean = world(generator, **options)
    # What cases have in common is no part of a difference; here all of it is the first one's.
    other, *_ = world(generator, **{**options, "case": 0.0, "mean": 0.0, "fold": 0.0})
    both = [learn_repeats(scores, folds) for scores in (one, other)]
    return estimate(one.mean(axis=1) - other.mean(axis=1), folds, both), mean


@pytest.mark.parametrize(
    ("folds", "cases", "seeds", "training"),
    [(5, 40, 3, TRAINING), (5, 40, 2, 0.0), (3, 70, 2, 0.03), (1, 30, 3, TRAINING), (5, 4, 2, TRAINING)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(folds, cases, seeds, training):
    generator = np.random.default_rng(1)
    options = {"folds": folds, "cases": cases, "seeds": seeds, "training": training, "mean": 0.8, "fold": 0.02}
    found = [compared(generator, **options) for _ in range(WORLDS)]
    covered = np.mean([one.interval[0] < truth < one.interval[1] for one, truth in found])
    assert abs(covered - NOMINAL) < CHANCE


def test_equal_networks_are_told_apart_as_often_as_the_level_says_and_over_cases_alone_far_more_often():
    generator = np.random.default_rng(2)
    p, half, alone = [], [], []
    for _ in range(WORLDS):
        (one, folds, _), (other, *_) = (world(generator, case=0.0) for _ in range(2))
        difference = one.mean(axis=1) - other.mean(axis=1)
        p.append(estimate(difference, folds, [learn_repeats(scores, folds) for scores in (one, other)]).p)
        alone.append(estimate(difference, folds).p)
        half.append(estimate(one.mean(axis=1) - other[:, 0], folds, [learn_repeats(one, folds)]).p)
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < CHANCE
    assert np.mean(np.array(alone) < 0.05) > 0.3
    assert abs(np.mean(np.array(half) < 0.05) - 0.24) < 0.06, "one was trained once, so that its variance is not known"


def test_a_known_winner_is_found():
    generator = np.random.default_rng(3)
    found = [compared(generator, mean=0.05)[0] for _ in range(100)]
    assert all(one.p < 0.05 and one.interval[0] > 0 for one in found)


def test_components_are_found_without_bias():
    generator = np.random.default_rng(4)
    found = []
    for _ in range(WORLDS):
        scores, folds, _ = world(generator, fold=0.05)
        repeats = learn_repeats(scores, folds)
        found.append((repeats.training, repeats.rest, estimate(scores.mean(axis=1), folds, [repeats]).case))
    training, rest, case = np.mean(found, axis=0)
    assert_allclose(training, TRAINING**2, rtol=0.1)
    assert_allclose(rest, REST**2, rtol=0.03)
    # The folds' own effects are none of the cases'.
    assert_allclose(case, CASE**2 + REST**2 / 3, rtol=0.03)


def test_the_standard_error_is_what_means_of_worlds_vary_by():
    """Folds of unequal size and with unequal numbers of trainings; nothing is counted twice."""
    generator = np.random.default_rng(5)
    means, errors = [], []
    for _ in range(WORLDS):
        scores, folds, _ = world(generator, folds=3, cases=30, seeds=4, training=0.02)
        scores[folds == 0, 1:] = np.nan
        kept = ~((folds == 1) & (np.arange(90) % 2 > 0))
        scores, folds = scores[kept], folds[kept]
        found = estimate(np.nanmean(scores, axis=1), folds, [learn_repeats(scores, folds)])
        means.append(found.mean)
        errors.append(found.error**2)
    assert_allclose(np.mean(errors), np.var(means), rtol=0.15)


def test_repeats_by_hand():
    # Two folds of two cases, two trainings. Fold 0: means 0.5 and 0.7; fold 1: 0.4 and 0.4.
    scores = np.array([[0.4, 0.6], [0.6, 0.8], [0.3, 0.5], [0.5, 0.3]])
    found = learn_repeats(scores, np.array([0, 0, 1, 1]))
    assert_allclose(found.between, 0.02 / 2)
    assert (found.degrees, found.rest_degrees) == (2, 2)
    assert_allclose(found.rest, 4 * 0.1**2 / 2)
    assert_allclose(found.training, 0.01 - 0.02 / 2)
    assert_allclose([found.shared, found.weight, found.per_case], [1 / 2, 2 * 0.5**2 / 2, 1 / 2])


def test_without_repeats_it_is_the_t_test_over_cases():
    values = np.random.default_rng(6).normal(0.1, 1, 12)
    found = estimate(values, np.arange(12) % 5, [Repeats(), learn_repeats(values[:, None], np.arange(12) % 5)])
    theirs = stats.ttest_1samp(values, 0)
    assert_allclose(found.p, theirs.pvalue)
    assert_allclose(found.interval, theirs.confidence_interval())
    assert (found.training, found.degrees) == (0, 11)


def test_only_one_of_two_with_repeats_counts_what_is_known():
    scores, folds, _ = world(np.random.default_rng(7), training=0.05)
    known = learn_repeats(scores, folds)
    unknown = learn_repeats(scores[:, :1], folds)
    assert not unknown.known
    assert np.isnan(unknown.training)
    found = estimate(scores.mean(axis=1), folds, [known, unknown])
    assert_allclose(found.training, known.weight * known.training)


def test_a_seed_that_lacks_a_fold_and_a_case_leaves_the_others_as_they_are():
    scores, folds, _ = world(np.random.default_rng(8), seeds=2)
    whole = learn_repeats(scores, folds)
    scores[folds == 4, 1] = np.nan
    scores[0, 1] = np.nan
    part = learn_repeats(scores, folds)
    assert (whole.degrees, part.degrees) == (5, 4)
    assert part.rest_degrees == whole.rest_degrees - 39 - 1
    # The fold that was trained once counts with the variance of the others' trainings, and wholly.
    assert_allclose(part.weight, 4 * 0.2**2 / 2 + 0.2**2)


def test_one_fold_two_seeds_and_one_case_per_fold():
    one = learn_repeats(*world(np.random.default_rng(9), folds=1, seeds=2)[:2])
    assert (one.degrees, one.weight) == (1, 0.5)
    scores, folds, _ = world(np.random.default_rng(9), folds=8, cases=1, seeds=2)
    single = learn_repeats(scores, folds)
    assert (single.degrees, single.rest_degrees, single.rest) == (8, 0, 0)
    means = scores.mean(axis=1)
    theirs = stats.ttest_1samp(means, 0).confidence_interval()
    assert_allclose(
        estimate(means, folds, [single]).interval, theirs, err_msg="a case has its trainings in it: not twice"
    )


def test_a_case_alone_in_its_fold_does_not_bring_the_effects_of_folds_into_those_of_cases():
    scores, folds, _ = world(np.random.default_rng(10), folds=3, cases=20, fold=0.3, seeds=2)
    kept = (folds < 2) | (np.arange(60) == 40)
    scores, folds = scores[kept], folds[kept]
    found = estimate(scores.mean(axis=1), folds, [learn_repeats(scores, folds)])
    assert_allclose(found.case, CASE**2 + REST**2 / 2, rtol=0.6)


def test_no_interval_is_absurd_where_variances_are_taken_from_each_other():
    """Satterthwaite's degrees have no lower bound if a part is negative: then intervals of 1e28 came out."""
    generator = np.random.default_rng(11)
    for _ in range(200):
        found, _ = compared(generator, folds=1, cases=6, seeds=2)
        assert found.degrees >= 1
        assert np.diff(found.interval) < 5


def test_folds_of_very_unequal_size_count_as_much_as_they_tell():
    """Two cases tell little of what a training varies by; the fold of forty tells more."""
    generator = np.random.default_rng(12)
    sizes = [2, 2, 2, 40]
    folds = np.repeat(np.arange(4), sizes)
    found = []
    for _ in range(WORLDS):
        training = generator.normal(0, TRAINING, (4, 2))[folds]
        found.append(learn_repeats(training + generator.normal(0, REST, (46, 2)), folds))
    estimates = [one.between - one.rest * one.shared for one in found]
    assert_allclose(np.mean(estimates), TRAINING**2, rtol=0.2)
    assert np.std(estimates) < 1.6 * TRAINING**2, "as plain means over the folds they vary by 2.2 times it"


@pytest.mark.parametrize(("cases", "trainings"), [(3, 1), (1, 4), (2, 2)])
def test_with_more_of_them_it_is_as_sure_as_worlds_that_have_them(cases, trainings):
    """Further trainings make less of what is left of a case in each of them, which here is the most."""
    generator = np.random.default_rng(13)
    true = {"case": 0.01, "training": TRAINING, "rest": 0.05}
    foretold, found = [], []
    for _ in range(WORLDS):
        error, _ = compared(generator, **true, seeds=2)[0].spread(cases, trainings)
        foretold.append(error**2)
        found.append(compared(generator, **true, cases=40 * cases, seeds=2 * trainings)[0].error ** 2)
    assert_allclose(np.mean(foretold), np.mean(found), rtol=0.15)


@pytest.mark.parametrize("cases", [0, 1, 2, 5])
def test_too_few_cases_have_no_interval(cases):
    scores = np.linspace(0.5, 0.9, cases * 2).reshape(cases, 2)
    found = estimate(scores.mean(axis=1), np.zeros(cases, int), [learn_repeats(scores, np.zeros(cases, int))])
    assert found.cases == cases
    assert np.isnan([*found.interval, found.p]).all()
    assert cases == 0 or found.mean == scores.mean()


def test_equal_scores_have_no_variance():
    scores = np.full((10, 3), 0.5)
    found = estimate(np.zeros(10), np.arange(10) % 2, [learn_repeats(scores, np.arange(10) % 2)] * 2)
    assert (found.error, found.p, found.interval) == (0, 1, (0, 0))
    assert estimate(np.ones(10), np.zeros(10, int)).p == 0
