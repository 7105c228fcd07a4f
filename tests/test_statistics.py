"""Statistics of a report: small cases computed by hand, scipy as the reference, and what must hold for any scores."""

import itertools
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_allclose
from report_records import make_record
from scipy import stats

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.scores import VOLUME, score
from nnunet_plugins.report.statistics import (
    CASES,
    LEVEL,
    compare,
    critical_difference,
    holm,
    mean_with_ci,
    rank_distribution,
    ranks,
)

FEW = 300  # resamples


def table(**columns):
    return pd.DataFrame(columns, index=pd.Index([f"case_{n}" for n in range(len(next(iter(columns.values()))))]))


def frame(values):
    return pd.DataFrame(values, columns=[f"algorithm_{n}" for n in range(values.shape[1])])


# Scores as metrics have them: some equal, none so large that rounding matters.
numbers = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
some_scores = arrays(float, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9), elements=numbers).map(frame)


@pytest.fixture
def record():
    return make_record(algorithms=3, cases=6, labels=2, both_empty=1, one_empty=2)


def test_case_scores_are_means_over_the_labels_of_the_truth_with_penalties(record):
    results = record.results
    last = results["algorithm"].unique()[-1]
    rows = results[results["algorithm"] == last].set_index(["case", "label"])
    dice, distance, volume = (score(results).by_case(metric) for metric in ("Dice", "HD95_mm", "volume_error_ml"))
    assert list(dice.columns) == list(results["algorithm"].unique())
    assert list(dice.index) == list(results["case"].unique())
    assert dice.loc["case_000", last] == rows.loc[("case_000", "1"), "Dice"], "label 2 is in neither mask"
    assert dice.loc["case_001", last] == rows.loc[("case_001", "1"), "Dice"] / 2, "label 2 has a Dice of 0"
    assert distance.loc["case_001", last] == (rows.loc[("case_001", "1"), "HD95_mm"] + 120.0) / 2
    assert volume.loc["case_005", last] == rows.loc["case_005", "volume_error_ml"].abs().mean()
    assert volume.loc["case_000", last] == abs(rows.loc[("case_000", "1"), "volume_error_ml"]) / 2, "0 for label 2"
    assert (volume > 0).all(axis=None)


def test_a_case_without_any_label_has_no_score(record):
    only = record.results[record.results["label"] == "2"]
    for metric in METRICS:
        scores = score(only).by_case(metric)
        assert (scores.loc["case_000"].eq(0) if metric == VOLUME else scores.loc["case_000"].isna()).all()
        assert np.isfinite(scores.drop("case_000")).all(axis=None)


def test_missing_cases_are_nan_in_the_order_of_appearance():
    results = make_record(algorithms=2, cases=4, missing=1).results
    scores = score(results[::-1]).by_case("Dice")
    assert list(scores.index) == ["case_002", "case_001", "case_000", "case_003"]
    assert scores.isna().sum().tolist() == [1, 0]
    assert score(results[:0]).by_case("Dice").empty


def test_comparison_by_hand():
    # Differences 1, 2, 3, -4, 5: ranks of gains 1 + 2 + 3 + 5 = 11, of losses 4; a sum of at most 4 has 7 of 32 cases.
    scores = table(a=[0.0, 0, 0, 0, 0, 0], b=[1.0, 2, 3, -4, 5, np.nan])
    row = compare(scores, "a", higher_is_better=True).loc["b"]
    assert_allclose(row["mean_difference"], 1.4)
    assert_allclose(row["effect_size"], (11 - 4) / 15)
    assert_allclose(row["p"], 2 * 7 / 32)
    assert row[["n", "wins", "ties", "losses"]].tolist() == [5, 4, 0, 1]
    worse = compare(scores, "a", higher_is_better=False).loc["b"]
    assert_allclose(worse["mean_difference"], 1.4)
    assert_allclose(worse["effect_size"], -(11 - 4) / 15)
    assert worse[["wins", "ties", "losses"]].tolist() == [1, 0, 4]


def test_ties_count_as_such_and_share_ranks():
    # |differences| 2, 2, 1, and two cases without any: ranks 2.5, 2.5 and 1.
    row = compare(table(a=[0.0] * 5, b=[2.0, -2, 1, 0, 0]), "a", higher_is_better=True).loc["b"]
    assert_allclose(row["effect_size"], (2.5 + 1 - 2.5) / 6)
    assert row[["wins", "ties", "losses"]].tolist() == [2, 2, 1]


def test_a_rounding_error_is_a_tie():
    scores = table(a=[0.3, 0.3], b=[0.1 + 0.2, 0.1 + 0.2])
    assert (scores["a"] != scores["b"]).all()
    assert compare(scores, "a", higher_is_better=True).loc["b", "ties"] == 2
    assert ranks(scores, higher_is_better=True).eq(1.5).all(axis=None)
    assert rank_distribution(scores, higher_is_better=True, resamples=FEW)[1].eq(1).all()


def test_p_values_are_those_of_scipy():
    generator = np.random.default_rng(1)
    for cases in (8, 40, 200):
        scores = frame(generator.normal([0, 0.3], size=(cases, 2)))
        found = compare(scores, "algorithm_0", higher_is_better=True, resamples=FEW).loc["algorithm_1", "p"]
        assert_allclose(found, stats.wilcoxon(scores["algorithm_1"], scores["algorithm_0"]).pvalue)


def test_intervals_are_those_of_scipy():
    values = np.random.default_rng(2).lognormal(size=60)
    ours = mean_with_ci(table(a=values), resamples=20_000).loc["a"]
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000)
    assert_allclose(ours[["ci_low", "ci_high"]].astype(float), theirs.confidence_interval, rtol=0.025)
    assert_allclose(ours["mean"], values.mean())
    assert_allclose(ours["median"], np.median(values))
    assert_allclose(ours["sd"], values.std(ddof=1))
    assert ours["n"] == 60


def test_an_interval_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(4)
    intervals = mean_with_ci(frame(generator.normal(size=(50, 1000))), resamples=1000)
    covered = ((intervals["ci_low"] < 0) & (intervals["ci_high"] > 0)).mean()
    assert 0.92 < covered < 0.97


def test_holm_by_hand():
    p = pd.Series([0.01, 0.04, 0.03, 0.005, np.nan], list("abcde"))
    assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02, np.nan])
    assert holm(pd.Series([0.9, 0.8])).tolist() == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).map(pd.Series))
def test_holm_is_never_smaller_and_keeps_the_order(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    assert adjusted[p.sort_values().index].is_monotonic_increasing
    assert_allclose(adjusted.min(), min(1, len(p) * p.min()))


def test_holm_counts_the_rows_with_a_p_value():
    nan = [np.nan] * 6
    scores = table(a=[0.0] * 6, b=[1.0, 2, 3, 4, 5, 6], c=[1.0, 2, 3, 4, 5, -6], d=nan)
    found = compare(scores, "a", higher_is_better=True)
    assert_allclose(found["p_holm"], [2 * found.loc["b", "p"], found.loc["c", "p"], np.nan])


@settings(deadline=None, max_examples=50)
@given(some_scores, st.booleans())
def test_two_algorithms_swapped(scores, higher):
    scores = scores.iloc[:, :2]
    one, other = scores.columns
    there = compare(scores, one, higher_is_better=higher, resamples=FEW).loc[other]
    back = compare(scores, other, higher_is_better=higher, resamples=FEW).loc[one]
    names = ["mean_difference", "effect_size", "ci_low", "ci_high"]
    assert_allclose(there[names], -back[["mean_difference", "effect_size", "ci_high", "ci_low"]], atol=1e-12)
    assert_allclose(there["p"], back["p"])
    assert there[["wins", "ties", "losses"]].tolist() == back[["losses", "ties", "wins"]].tolist()
    assert there[["wins", "ties", "losses"]].sum() == there["n"] == len(scores)
    assert pd.isna(there["ci_low"]) == (len(scores) < CASES)
    assert not there["ci_low"] > there["mean_difference"] + 1e-9
    assert not there["mean_difference"] > there["ci_high"] + 1e-9
    assert abs(there["effect_size"]) <= 1
    assert 0 <= there["p"] <= 1


@settings(deadline=None, max_examples=50)
@given(some_scores, st.booleans())
def test_ranks_of_every_case_add_up_and_best_is_first(scores, higher):
    found = ranks(scores, higher_is_better=higher)
    k = scores.shape[1]
    assert (found.sum(axis=1) == k * (k + 1) / 2).all()
    best = scores.max(axis=1) if higher else scores.min(axis=1)
    assert (found[scores.eq(best, axis=0)].min(axis=1) == found.min(axis=1)).all()


@settings(deadline=None, max_examples=50)
@given(some_scores, st.booleans())
def test_rank_distribution_gives_every_algorithm_one_rank_per_draw(scores, higher):
    found = rank_distribution(scores, higher_is_better=higher, resamples=FEW)
    assert list(found.columns) == list(range(1, scores.shape[1] + 1))
    assert_allclose(found.sum(axis=1), 1)
    assert found[1].sum() >= 1 - 1e-12, "someone is first in every draw"


def test_ranks_by_hand():
    scores = table(a=[0.9, 0.5, 0.7, 0.1], b=[0.8, 0.5, np.nan, 0.2], c=[0.7, 0.4, 0.9, 0.3])
    assert ranks(scores, higher_is_better=True).to_numpy().tolist() == [[1, 2, 3], [1.5, 1.5, 3], [3, 2, 1]]
    assert ranks(scores, higher_is_better=False).loc["case_0"].tolist() == [3, 2, 1]


def test_rank_distribution_follows_the_cases():
    # Of two cases, b wins one by more than a the other: a is first only if its case is drawn twice.
    scores = table(a=[1.0, 0.0], b=[0.0, 3.0])
    found = rank_distribution(scores, higher_is_better=True, resamples=4000)
    assert_allclose(found[1], [0.25, 0.75], atol=0.03)
    assert_allclose(rank_distribution(scores, higher_is_better=False, resamples=4000)[1], [0.75, 0.25], atol=0.03)
    assert rank_distribution(table(a=[1.0], b=[1.0]), higher_is_better=True)[1].tolist() == [1, 1], "the smallest rank"


def test_ranks_are_less_firm_where_trainings_vary():
    scores = table(a=[0.9, 0.8, 0.85], b=[0.89, 0.79, 0.84])
    firm, loose = (
        rank_distribution(scores, higher_is_better=True, errors=pd.Series({"a": error, "b": error}))
        for error in (0.0, 0.01)
    )
    assert firm.loc["a", 1] == 1
    # The difference of two means varies by 0.01 * sqrt(2) around 0.01.
    assert_allclose(loose.loc["a", 1], stats.norm.cdf(1 / np.sqrt(2)), atol=0.05)


def test_identical_algorithms():
    scores = table(a=[0.5, 0.7, 0.9] * 2, b=[0.5, 0.7, 0.9] * 2)
    row = compare(scores, "a", higher_is_better=True).loc["b"]
    assert row[["p", "p_holm", "effect_size", "mean_difference", "ci_low", "ci_high"]].tolist() == [1, 1, 0, 0, 0, 0]
    assert row[["wins", "ties", "losses"]].tolist() == [0, 6, 0]


def test_five_cases_have_no_interval_because_five_differences_can_find_nothing():
    """The limit: with one case more, differences of one sign have a p value below 0.05."""
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for cases, has in ((CASES - 1, False), (CASES, True)):
        row = compare(table(a=[0.0] * cases, b=values[:cases]), "a", higher_is_better=True).loc["b"]
        assert (row["p"] < LEVEL, pd.notna(row["ci_low"])) == (has, has)


def test_a_single_case_has_no_interval():
    scores = table(a=[0.5], b=[0.75])
    row = compare(scores, "a", higher_is_better=True).loc["b"]
    assert row[["n", "mean_difference", "p", "wins"]].tolist() == [1, 0.25, 1, 1]
    assert row[["ci_low", "ci_high"]].isna().all()
    means = mean_with_ci(scores).loc["b"]
    assert means[["n", "mean", "median"]].tolist() == [1, 0.75, 0.75]
    assert means[["ci_low", "ci_high", "sd"]].isna().all()


def test_no_case_in_common():
    scores = table(a=[0.5, np.nan], b=[np.nan, 0.75])
    row = compare(scores, "a", higher_is_better=True).loc["b"]
    assert row[["n", "wins", "ties", "losses"]].tolist() == [0, 0, 0, 0]
    assert row[["mean_difference", "ci_low", "ci_high", "effect_size", "p", "p_holm"]].isna().all()
    assert ranks(scores, higher_is_better=True).empty
    assert rank_distribution(scores, higher_is_better=True).isna().all(axis=None)
    nobody = mean_with_ci(table(a=[np.nan])).loc["a"]
    assert nobody["n"] == 0
    assert nobody.drop("n").isna().all()


def test_a_baseline_alone():
    alone = compare(table(a=[0.5, 0.6]), "a", higher_is_better=True)
    assert alone.empty
    assert list(alone) == list(compare(table(a=[0.5], b=[0.6]), "a", higher_is_better=True))


def test_each_pair_keeps_the_cases_that_it_has():
    scores = table(a=[0.5, 0.6, 0.7, 0.8], b=[0.6, 0.7, 0.8, np.nan], c=[0.6, np.nan, 0.8, np.nan])
    found = compare(scores, "a", higher_is_better=True)
    assert found["n"].tolist() == [3, 2]
    assert_allclose(found["mean_difference"], 0.1)


def test_the_seed_decides_the_draws():
    scores = frame(np.random.default_rng(5).normal(size=(20, 2)))
    first, again, other = (mean_with_ci(scores, resamples=FEW, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["ci_low"] != other["ci_low"]).all()


def test_a_thousand_cases_of_forty_algorithms_need_little_memory():
    scores = frame(np.random.default_rng(6).normal(size=(1000, 40)))
    tracemalloc.start()
    found = compare(scores, "algorithm_0", higher_is_better=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["ci_low"].notna().all()
    assert peak < 200e6


# Demšar 2006, table 6: AUC of four classifiers on 14 datasets, with the average ranks and the difference he gives.
AUC = {
    "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1, 0.940, 0.619, 0.972, 0.957],
    "C4.5+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1, 0.962, 0.666, 0.981, 0.978],
    "C4.5+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1, 0.965, 0.614, 0.9751, 0.946],
    "C4.5+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1, 0.962, 0.669, 0.975, 0.970],
}


def test_critical_difference_of_the_paper():
    scores = table(**AUC)
    found = critical_difference(scores.rank(axis=1, ascending=False))
    assert found.average_ranks.round(3).to_dict() == {
        "C4.5+m+cf": 1.964,
        "C4.5+m": 2.0,
        "C4.5+cf": 2.893,
        "C4.5": 3.143,
    }
    assert list(found.average_ranks) == sorted(found.average_ranks)
    assert round(found.difference, 2) == 1.25
    assert_allclose(found.p, stats.friedmanchisquare(*AUC.values()).pvalue)
    assert found.groups == [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]], "1.18 is less than 1.25"
    assert found.datasets == 14
    pd.testing.assert_series_equal(critical_difference(-scores).average_ranks, found.average_ranks)


def test_groups_are_the_longest_runs_within_the_difference():
    # 30 datasets, 4 algorithms: the difference is 2.569 * sqrt(4 * 5 / (6 * 30)) = 0.856.
    orders = [(1, 2, 3, 4)] * 20 + [(2, 1, 4, 3)] * 10
    found = critical_difference(pd.DataFrame(orders, columns=list("abcd")))
    assert_allclose(found.average_ranks, [4 / 3, 5 / 3, 10 / 3, 11 / 3])
    assert_allclose(found.difference, 0.856, atol=0.001)
    assert found.groups == [["a", "b"], ["c", "d"]]
    overlapping = critical_difference(pd.DataFrame([(1, 2, 3, 4)] * 18 + [(2, 3, 1, 4)] * 12, columns=list("abcd")))
    assert overlapping.average_ranks.round(6).to_dict() == {"a": 1.4, "c": 2.2, "b": 2.4, "d": 4.0}
    assert overlapping.groups == [["a", "c"], ["c", "b"]]


def test_nothing_found_is_one_group():
    same = pd.DataFrame(1.0, index=range(6), columns=list("abc"))
    found = critical_difference(same)
    assert found.p == 1
    assert found.groups == [["a", "b", "c"]]
    circle = pd.DataFrame(list(itertools.permutations([1, 2, 3])), columns=list("abc"))
    assert critical_difference(circle).groups == [["a", "b", "c"]]


def test_few_datasets_or_algorithms_have_no_critical_difference():
    orders = pd.DataFrame([(1, 2, 3)] * 5, columns=list("abc"))
    assert critical_difference(orders).datasets == 5
    incomplete = orders.astype(float)
    incomplete.loc[0, "a"] = np.nan
    for too_few in (orders[:4], incomplete, orders[["a", "b"]]):
        with pytest.raises(ValueError, match="needs 5 datasets and 3 algorithms"):
            critical_difference(too_few)
