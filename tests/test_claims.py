"""Probabilities of claims: the paper's formula, simulated worlds, and what it takes to be sure."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate, special, stats
from simulated_worlds import world

from nnunet_plugins.report.claims import POWER, claim, needs
from nnunet_plugins.report.statistics import CASES
from nnunet_plugins.report.variance import estimate, learn_repeats

MILLION = 1_000_000


def some(cases=12, mean=0.004, sd=0.01, seed=0):
    """The estimate of differences that have exactly this mean and standard deviation."""
    values = np.random.default_rng(seed).normal(size=cases)
    values = mean + sd * (values - values.mean()) / values.std(ddof=1)
    return estimate(values, np.zeros(cases, int))


def test_the_probability_of_a_false_claim_is_that_of_the_paper():
    """Christodoulou et al. 2025 write the standard deviation of the differences with those of A, of B and with r."""
    scores = np.random.default_rng(1).multivariate_normal([0.85, 0.84], [[4e-3, 3e-3], [3e-3, 5e-3]], 40)
    a, b = scores.T
    n, r = len(a), np.corrcoef(a, b)[0, 1]
    s_a, s_b = a.std(ddof=1), b.std(ddof=1)
    theirs = stats.t.cdf(np.sqrt(n) * (b.mean() - a.mean()) / np.sqrt(s_a**2 + s_b**2 - 2 * r * s_a * s_b), n - 1)
    found = claim(estimate(a - b, np.zeros(n, int)), rope=0.01)
    assert_allclose(1 - found.better, theirs)
    assert_allclose(1 - found.better, stats.ttest_rel(a, b, alternative="greater").pvalue)


def test_it_is_the_posterior_under_a_flat_prior():
    """The likelihood times 1 / sigma, integrated over sigma and then over the differences that are gains."""
    n, mean, sd = 9, 0.004, 0.01
    found = claim(some(n, mean, sd), rope=0.005)

    def density(d):
        # Over sigma the integral of sigma^-(n+1) exp(-a / sigma^2) is a^(-n/2) but for a factor.
        return ((n - 1) * sd**2 + n * (d - mean) ** 2) ** (-n / 2) * (n * sd**2) ** (n / 2)

    whole, above, within = (
        integrate.quad(density, low, high, points=[mean], limit=200)[0]
        for low, high in ((-1, 1), (0, 1), (-0.005, 0.005))
    )
    assert_allclose([found.better, found.equivalent], [above / whole, within / whole], rtol=1e-6)


def test_a_million_worlds_with_these_data():
    """True means drawn from what is known after the data: the variance first, then the mean."""
    n, mean, sd, rope = 12, 0.004, 0.01, 0.005
    generator = np.random.default_rng(2)
    variances = (n - 1) * sd**2 / generator.chisquare(n - 1, MILLION)
    truth = generator.normal(mean, np.sqrt(variances / n))
    found = claim(some(n, mean, sd), rope)
    drawn = [(truth > 0).mean(), (truth > rope).mean(), (abs(truth) <= rope).mean(), (truth < -rope).mean()]
    assert_allclose(found, drawn, atol=3 * 0.5 / np.sqrt(MILLION))


def test_of_a_million_claims_with_such_a_probability_as_many_are_false():
    """Worlds with any difference and any spread; what was measured in each gives a probability."""
    n = 12
    generator = np.random.default_rng(3)
    truth = generator.uniform(-1, 1, MILLION)
    sigma = 10 ** generator.uniform(-2, -0.5, MILLION)
    measured = truth + sigma * generator.standard_normal(MILLION) / np.sqrt(n)
    error = sigma * np.sqrt(generator.chisquare(n - 1, MILLION) / (n - 1) / n)
    better = special.stdtr(n - 1, measured / error)
    for low in (0.05, 0.5, 0.8, 0.9, 0.95):
        claimed = (better > low) & (better < low + 0.04)
        expected, share = better[claimed].mean(), (truth[claimed] > 0).mean()
        assert abs(share - expected) < 3 * np.sqrt(0.25 / claimed.sum())


def test_the_probabilities_add_up_and_mirror():
    there, back = claim(some(mean=0.004), 0.01), claim(some(mean=-0.004), 0.01)
    assert_allclose(there.ahead + there.equivalent + there.behind, 1)
    assert_allclose([there.better, there.ahead, there.behind], [1 - back.better, back.behind, back.ahead])
    none = claim(some(), 0.0)
    assert (none.equivalent, none.ahead) == (0, none.better)


def test_equal_scores_are_equivalent_and_too_few_tell_nothing():
    def same(value, cases=8):
        return claim(estimate(np.full(cases, value), np.zeros(cases, int)), 0.01)

    assert tuple(same(0.0)) == (0.5, 0, 1, 0)
    assert tuple(same(0.5)) == (1, 1, 0, 0)
    assert np.isnan(same(0.5, CASES - 1)).all()


@pytest.mark.parametrize(("folds", "seeds", "training"), [(5, 3, 0.004), (1, 4, 0.006)])
def test_what_is_needed_suffices(folds, seeds, training):
    """Worlds with as many cases, or as many repeats, as are said to be needed: the difference is found in 80%."""
    generator = np.random.default_rng(4)
    true = {"rest": 0.02, "case": 0.06, "training": training}
    difference = 0.01

    def both(cases, seeds):
        one, of, _ = world(generator, folds=folds, cases=cases, seeds=seeds, mean=difference, **true)
        other, *_ = world(generator, folds=folds, cases=cases, seeds=seeds, **{**true, "case": 0})
        return estimate((one - other).mean(axis=1), of, [learn_repeats(x, of) for x in (one, other)])

    # The needs of many worlds, or those of one would be too much of a matter of chance.
    n = 60
    found = [needs(both(n // folds, seeds), difference) for _ in range(200)]
    factor = np.median([one.both for one in found])
    assert factor > 1
    several = max(2, round(seeds * factor))
    told = np.mean([both(round(n * factor / folds), several).p < 0.05 for _ in range(300)])
    assert abs(told - POWER) < 0.12


def test_needs_are_those_of_noncentral_t_and_some_no_number_would_do():
    def power(n):
        return stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.01 * np.sqrt(n) / 0.03)

    found = some(cases=20, sd=0.03)
    n = needs(found, 0.01).cases
    assert power(n - 1) < 0.8 <= power(n)
    assert np.isnan(needs(found, 0.01).repeats), "none to have more of"
    assert_allclose(needs(found, 0.01).both, n / 20, rtol=0.02)
    assert needs(some(cases=int(n), sd=0.03), 0.01).cases == n
    assert needs(some(cases=int(n) - 1, sd=0.03), 0.01).cases == n
    scores, folds, _ = world(np.random.default_rng(5), folds=1, cases=200, training=0.03)
    dominated = needs(estimate(scores.mean(axis=1), folds, [learn_repeats(scores, folds)]), 0.01, scores.shape[1])
    assert dominated.cases == np.inf, "the trainings alone vary by more"
    assert scores.shape[1] < dominated.repeats < np.inf
    few, folds, _ = world(np.random.default_rng(6), folds=1, cases=8, case=0.2)
    assert needs(estimate(few.mean(axis=1), folds, [learn_repeats(few, folds)]), 0.01).repeats == np.inf, "few cases"
    assert np.isnan(needs(estimate(np.ones(1), np.zeros(1, int)), 0.01)).all()


def test_two_trainings_of_one_fold_are_seldom_enough():
    """With two degrees of freedom t's quantile is 4.3; z's would promise what happens in a third of the worlds."""
    generator = np.random.default_rng(8)
    spread = {"case": 0.0, "rest": 0.005, "training": 0.003}
    enough, told = [], []
    for _ in range(300):
        one, of, _ = world(generator, folds=1, cases=60, seeds=2, mean=0.01, **spread)
        other, *_ = world(generator, folds=1, cases=60, seeds=2, **spread)
        found = estimate((one - other).mean(axis=1), of, [learn_repeats(x, of) for x in (one, other)])
        needed = needs(found, 0.01, 2)
        enough.append(needed.cases <= 60)
        told.append(found.p < 0.05)
        assert needed.repeats >= 2
    assert np.mean(told) < 0.6
    assert np.mean(enough) < 0.6
    assert np.mean(np.array(told)[enough]) > 0.6


def test_small_probabilities_are_kept_on_both_sides():
    """1 less a probability that is nearly 1 is 0, or what rounding leaves."""
    ahead, behind = claim(some(mean=0.05, sd=0.001), 0.01), claim(some(mean=-0.05, sd=0.001), 0.01)
    assert 0 < ahead.behind < 1e-12
    assert (ahead.behind, ahead.ahead) == (behind.ahead, behind.behind)
