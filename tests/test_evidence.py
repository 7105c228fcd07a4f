"""Comparisons over cases and trainings: which word follows from simulated worlds, and from repeats with gaps."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from report_pages import build
from report_records import make_record
from scipy import stats
from simulated_worlds import world

from nnunet_plugins.report.analysis import Comparison, analyse
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.evidence import Measure, compare_pairs, components, gaps, with_trainings
from nnunet_plugins.report.findings import describe_all, describe_difference, describe_twins, summarise
from nnunet_plugins.report.ranking import stability
from nnunet_plugins.report.showing import DICE
from nnunet_plugins.report.statistics import compare, holm, mean_with_ci
from nnunet_plugins.report.tables import sections
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, EQUIVALENT, MIXED, TOO_FEW, UNCLEAR, every_pair

ROPE = 0.01


def measure(metric="Dice", seed=0, folds=5, cases=40, case=0.0, **algorithms) -> Measure:
    """Scores of algorithms, each of which is told as options of `world`; `case` is what all have in common."""
    generator = np.random.default_rng(seed)
    common = generator.normal(0, 0.05, (folds * cases, 1))
    parts, of = {}, None
    for name, options in algorithms.items():
        scores, of, _ = world(generator, folds=folds, cases=cases, case=case, **options)
        seeds = [str(number + 1) if scores.shape[1] > 1 else "" for number in range(scores.shape[1])]
        parts[name] = pd.DataFrame(scores + common, columns=seeds)
    by_training = pd.concat(parts, axis=1, names=["algorithm", "seed"])
    by_case = pd.DataFrame({name: part.mean(axis=1) for name, part in parts.items()})
    return Measure(metric, by_case, by_training, pd.Series(of, by_case.index))


def verdicts(found: Measure) -> dict[tuple[str, str], str]:
    return every_pair(found, list(found.by_case), ROPE)["verdict"].to_dict()


def only(record) -> Comparison:
    (comparison,) = analyse(record).comparisons
    return comparison


def test_the_word_follows_from_the_world():
    steady = {"training": 0.001, "rest": 0.01}
    found = measure(
        best={"mean": 0.9, **steady},
        like={"mean": 0.9, **steady},
        worse={"mean": 0.85, **steady},
        noisy={"mean": 0.9, "training": 0.06, "seeds": 2},
    )
    table = verdicts(found)
    assert table["best", "like"] == EQUIVALENT
    assert table["best", "worse"] == table["like", "worse"] == AHEAD
    assert table["best", "noisy"] == UNCLEAR
    assert verdicts(Measure("Dice", found.by_case[["worse", "best"]], found.by_training, found.folds)) == {
        ("worse", "best"): BEHIND
    }
    few = measure(folds=1, cases=5, best={"mean": 0.9}, worse={"mean": 0.1})
    assert verdicts(few) == {("best", "worse"): TOO_FEW}


def test_a_gain_in_most_cases_whose_mean_may_be_none_is_called_neither_ahead_nor_behind():
    """Better by 0.02 in 30 cases and worse by 0.2 in three: the mean's interval has 0 in it, the ranks are clear."""
    gains = np.r_[np.linspace(0.015, 0.025, 30), -0.2, -0.19, -0.15]
    for metric, sign in (("Dice", 1), ("HD95_mm", -1)):
        scores = pd.DataFrame({"a": 0.5 + sign * gains, "b": 0.5})
        by_training = scores.set_axis(pd.MultiIndex.from_tuples([("a", ""), ("b", "")]), axis=1)
        both = Measure(metric, scores, by_training, pd.Series(0, scores.index))
        assert every_pair(both, ["b", "a"], ROPE)["verdict"].tolist() == [MIXED]
        row = every_pair(both, ["a", "b"], ROPE).loc[("a", "b")]
        assert row["p_holm"] < 0.01
        assert row["ci_low"] < 0 < row["ci_high"]
        assert (0.4 < row["better"] < 0.7, row["verdict"]) == (True, MIXED)


def test_where_trainings_were_repeated_the_mean_alone_decides():
    """Most cases are a little better and some much worse, in all trainings: p is of the mean, which is a loss."""
    generator = np.random.default_rng(0)
    losses = np.r_[np.full(45, 0.01), np.full(15, -0.09)] + generator.normal(0, 0.001, 60)
    scores = 0.8 + generator.normal(0, 0.02, 60)
    names = [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2"), ("b", "3")]
    by_training = pd.DataFrame(
        {name: scores + losses * (name[0] == "a") + generator.normal(0, 0.001, 60) for name in names}
    )
    by_training.columns = pd.MultiIndex.from_tuples(names)
    by_case = by_training.T.groupby(level=0).mean().T
    folds = pd.Series(np.arange(60) % 3)
    row = every_pair(Measure("Dice", by_case, by_training, folds), ["a", "b"], ROPE).loc[("a", "b")]
    assert row["effect_size"] > 0
    assert (row["repeated"], row["p_holm"] < 0.05, row["ci_high"] < 0, row["verdict"]) == (True, True, True, BEHIND)


def test_equal_networks_are_called_ahead_no_more_often_than_the_level_says():
    """A hundred benchmarks of two equal networks with three seeds: if they are told apart, that is a false claim."""
    equal = {name: {"mean": 0.8, "training": 0.02, "rest": 0.02} for name in "ab"}
    claims = [
        set(verdicts(measure(seed=seed, folds=3, cases=20, **equal)).values()) & {AHEAD, BEHIND} for seed in range(100)
    ]
    assert np.mean([bool(claim) for claim in claims]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


def test_without_repeats_it_is_the_comparison_over_cases_as_ever():
    found = measure(a={"mean": 0.85, "seeds": 1}, b={"mean": 0.84, "seeds": 1})
    row = compare_pairs(found, [("a", "b")], rope=ROPE).iloc[0]
    alone = compare(found.by_case, "b", higher_is_better=True).iloc[0]
    names = ["n", "mean_difference", "ci_low", "ci_high", "effect_size", "p", "wins", "ties", "losses"]
    assert_allclose(row[names].astype(float), alone[names].astype(float))
    paired = stats.ttest_rel(found.by_case["a"], found.by_case["b"], alternative="less")
    assert_allclose(row["better"], paired.pvalue)
    assert not row["repeated"]
    assert np.isnan(row["needed_repeats"])


def test_repeats_widen_the_interval_by_what_they_vary():
    options = {"mean": 0.8, "training": 0.03}
    found = measure(a=options, b=options, c={"mean": 0.8, "seeds": 1})
    both, half = (compare_pairs(found, [("a", other)], rope=ROPE).iloc[0] for other in "bc")
    alone = compare(found.by_case, "b", higher_is_better=True).loc["a"]
    assert both["ci_high"] - both["ci_low"] > 2 * (alone["ci_high"] - alone["ci_low"])
    assert both["p"] > alone["p"]
    assert (half["repeated"], half["against_repeated"]) == (True, False)
    means = with_trainings(mean_with_ci(found.by_case), found)
    assert_allclose(means.loc["c"], mean_with_ci(found.by_case).loc["c"])
    assert means.loc["a", "ci_high"] - means.loc["a", "ci_low"] > 0.02


def test_small_distances_are_gains():
    found = measure("HD95_mm", a={"mean": 1.0}, b={"mean": 2.0})
    row = compare_pairs(found, [("a", "b")], rope=None).iloc[0]
    assert row["mean_difference"] < 0
    assert row["better"] > 0.99
    assert np.isnan(row["equivalent"]), "the region is one of Dice"


def test_the_family_of_pairs_is_adjusted_after_holm():
    found = measure(a={"mean": 0.8}, b={"mean": 0.79}, c={"mean": 0.78}, d={"mean": 0.775})
    pairs = every_pair(found, list("abcd"), ROPE)
    assert list(pairs.index) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert_allclose(pairs["p_holm"], holm(pairs["p"]))


def test_components_are_named_and_the_effect_of_the_folds_is_apart():
    found = components(measure(folds=40, a={"fold": 0.04, "training": 0.02}, b={"seeds": 1}))
    assert list(found.index) == ["a"]
    assert_allclose(found.loc["a", ["fold", "training", "rest"]].astype(float), [0.04, 0.02, 0.02], rtol=0.25)


def test_an_interval_of_dice_stays_within_its_bounds():
    found = measure(folds=1, cases=8, a={"mean": 0.95, "seeds": 2, "training": 0.1})
    low, high = with_trainings(mean_with_ci(found.by_case), found).loc["a", ["ci_low", "ci_high"]]
    assert found.estimate("a").interval[1] > 1
    assert (low >= 0, high) == (True, 1)


def test_gaps_are_found():
    found = measure(a={"seeds": 3}, b={"seeds": 2})
    found.by_training.loc[found.folds == 2, ("a", "3")] = np.nan
    assert gaps(found) == [("a", "3", ["2"])]


def test_each_network_stands_against_its_twin():
    names = ["nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainerFIRENetNoFabric", "nnUNetTrainerSegResNet"]
    comparison = only(make_record(algorithms=names, cases=30, labels=1, folds=1, epochs=1))
    twin = ("nnUNetTrainerFIRENet", "nnUNetTrainerFIRENetNoFabric")
    assert list(comparison.twins.index) == [twin], "the twin of the others is the baseline, which has a table"
    assert comparison.twins["p_holm"].equals(holm(comparison.twins["p"]))
    said = [line for line in describe_twins(comparison) if line.startswith("Against its ablation twin: ")]
    assert any(all(name in line for name in twin) for line in said)
    assert not any("nnUNetTrainer (" in line for line in said), "the baseline has its own sentences"
    assert any(part.caption.startswith("Each network against its ablation twin") for part in sections(comparison))
    other = only(make_record(algorithms=[names[0], f"{names[1]}_DA5", names[2]], cases=8, labels=1, folds=1, epochs=1))
    assert other.twins.empty, "a twin has the same modifiers; that of the last is the baseline"


def test_twins_of_networks_from_elsewhere_stand_in_the_record():
    """The package that brought them need not be there where the report is made."""
    names = ["nnUNetTrainer", "nnUNetTrainerMylab_DA5", "nnUNetTrainerMylabPlain_DA5"]
    record = make_record(algorithms=names, cases=8, labels=1, folds=1, epochs=1)
    assert only(record).twins.empty
    record.about["twins"] = {"nnUNetTrainerMylab": "nnUNetTrainerMylabPlain"}
    assert {frozenset(pair) for pair in only(record).twins.index} == {frozenset(names[1:])}


def test_too_few_cases_are_said_everywhere():
    comparison = only(make_record(algorithms=3, cases=3, labels=1, folds=1, epochs=1, repeats=2))
    assert set(comparison.pairs["verdict"]) == {TOO_FEW}
    assert comparison.dice[["ci_low", "ci_high"]].isna().all(axis=None)
    assert comparison.pairs[["p", "p_holm", "ci_low", "better", "equivalent"]].isna().all(axis=None)
    assert all(line.startswith("Too few cases to test") for line in [*describe_all(comparison), summarise(comparison)])
    assert any("3 cases are too few to test anything" in line for line in caveats(comparison))
    shown = {part.caption.partition(",")[0]: part.table for part in sections(comparison)}
    assert "Every pair of ranked algorithms" not in shown
    assert "[" not in "".join(shown["Results"][DICE])


def test_whose_variance_of_training_is_covered_is_said():
    none = only(make_record(algorithms=3, cases=12, labels=1, folds=2, epochs=1))
    assert any(line.startswith("Each network was trained once per fold") for line in caveats(none))
    assert any("they are of these trainings, and so are the words" in line for line in caveats(none))
    assert all(", each trained once per fold" in line for line in describe_all(none))
    assert not any("is not in this" in line for line in describe_all(none)), "said once, not in every sentence"
    some = only(make_record(algorithms=3, cases=12, labels=1, folds=2, epochs=1, repeats=[2, 3, 0]))
    names = list(some.algorithms.index)
    lines = "\n".join(caveats(some))
    assert f"have the variance of training of {names[0]} (2 trainings of a fold), {names[1]} (3 trainings" in lines
    assert f"nothing is known of how trainings vary: {names[2]}. What intervals, p values and probabilities" in lines
    assert "Each network was trained once" not in lines
    (pairs,) = (part.table for part in sections(some) if part.caption.startswith("Every pair"))
    told = {frozenset(row[:2]): row[2] for row in pairs[["Algorithm", "Compared with", "Trainings vary"]].to_numpy()}
    assert told[frozenset(names[:2])] == "counted"
    assert told[frozenset(names[1:])] == f"not of {names[2]}"
    (pairs,) = (part.table for part in sections(none) if part.caption.startswith("Every pair"))
    assert "Trainings vary" not in pairs
    alike = "\n".join(caveats(only(make_record(algorithms=3, cases=12, labels=1, folds=1, epochs=1, repeats=2))))
    assert f"have the variance of training of {', '.join(sorted(names))} (2 trainings of a fold)." in alike
    assert not any(word in alike for word in ("Wilcoxon", "bootstrap")), "nothing is tested so"
    assert "t test" not in "\n".join(caveats(none))
    assert "cross-validation" not in alike, "one fold: its own line tells of other training sets"
    sentences = {name: line for name in names for line in describe_all(some) if line.startswith(name)}
    assert f", {names[2]} trained once per fold" in sentences[names[2]]
    assert f"How {names[2]}'s trainings vary is not in this" in sentences[names[2]]
    assert not any(words in sentences[names[1]] for words in ("is not in this", "trained once"))
    shown = {part.caption.partition(",")[0].partition(";")[0]: part.table for part in sections(some)}
    covered = shown["Results"].set_index("Algorithm")["Interval over"]
    assert covered.to_dict() == dict(zip(names, ["cases, trainings", "cases, trainings", "cases"], strict=True))
    (differences,) = (table for caption, table in shown.items() if caption.startswith("Paired differences"))
    counted = differences[differences["Metric"].str.startswith("Dice")].set_index("Algorithm")["Trainings vary"]
    assert counted[names[2]] == f"not of {names[2]}"
    assert not any("Interval over" in part.table or "Trainings vary" in part.table for part in sections(none))
    assert any(part.caption.startswith("What the Dice varies by") for part in sections(some))


def test_repeats_with_gaps_are_said_and_count_as_far_as_they_are_there():
    record = make_record(algorithms=2, cases=30, labels=1, folds=3, epochs=1, repeats=2)
    results = record.results
    record = replace(record, results=results[(results["seed"] != "2") | (results["fold"] != 1)])
    lines = caveats(only(record))
    (said,) = (line for line in lines if line.startswith("Unequal repeats: "))
    assert said.count("with seed 2 lacks 1 fold (1)") == 2
    assert only(record).pairs["repeated"].all()


def test_what_intervals_of_one_fold_and_of_few_cases_are_is_said():
    one, few = (
        "\n".join(caveats(only(make_record(algorithms=2, cases=cases, labels=1, folds=folds, epochs=1))))
        for cases, folds in ((30, 1), (9, 3))
    )
    assert "All cases are of one fold" in one
    assert "models share" not in one
    assert "too narrow for so few cases" in few
    assert "too narrow for so few cases" not in one


def test_trainings_of_other_folds_are_no_repeats():
    record = make_record(algorithms=2, cases=30, labels=1, folds=3, epochs=1, repeats=2)
    results = record.results
    comparison = only(replace(record, results=results[(results["seed"] == "2") == (results["fold"] == 1)]))
    assert comparison.components.empty
    assert not comparison.pairs["repeated"].any()
    assert any(line.startswith("No fold was trained twice") for line in caveats(comparison))


@pytest.mark.parametrize("options", [{"folds": 1, "repeats": 2}, {"folds": 30, "repeats": 2}, {"splits": ["test"]}])
def test_one_fold_a_fold_per_case_and_test_images_have_all_that_can_be_told(options):
    record = make_record(algorithms=2, cases=30, labels=1, epochs=1, **{"repeats": 3, **options})
    row = only(record).pairs.iloc[0]
    assert row["repeated"]
    assert np.isfinite(row[["ci_low", "ci_high", "p", "better"]].astype(float)).all()


def test_equal_scores_are_equivalent_and_told_so():
    record = make_record(algorithms=3, cases=10, labels=1, folds=2, epochs=1, repeats=2)
    record.results["Dice"] = 0.8
    comparison = only(record)
    assert set(comparison.pairs["verdict"]) == {EQUIVALENT}
    assert (comparison.pairs[["better", "equivalent"]].to_numpy() == [0.5, 1]).all()
    assert "equivalent within 0.01 Dice: mean difference 0.000 Dice (95% CI 0.000 to 0.000" in summarise(comparison)


def row(verdict, **more):
    told = {"better": 0.9, "ahead": 0.6, "equivalent": 0.38, "behind": 0.02, "repeated": True, "against_repeated": True}
    needed = {"needed_cases": np.inf, "needed_repeats": np.inf, "needed_factor": 2.52}
    numbers = {"n": 20, "mean_difference": 0.012, "ci_low": -0.002, "ci_high": 0.026, "effect_size": 0.3, "p_holm": 0.2}
    return {
        "verdict": verdict,
        **numbers,
        **dict.fromkeys(("units", "effective"), more.get("n", 20)),
        **told,
        **needed,
        **more,
    }


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (row(EQUIVALENT, equivalent=0.97), "A and B are equivalent within 0.01 Dice: mean difference +0.012"),
        (row(EQUIVALENT, equivalent=0.97), "With a probability of 0.970 the true difference is no larger than 0.01."),
        (row(EQUIVALENT, p_holm=0.01, ci_low=0.002), "is no larger than 0.01, though there is one."),
        (
            row(EQUIVALENT, repeated=False, against_repeated=False),
            "A and B are equivalent within 0.01 Dice, each trained once per fold: mean difference +0.012 Dice",
        ),
        (
            row(EQUIVALENT, equivalent=0.97, p_holm=0.01, ci_low=0.002, repeated=False),
            "With a probability of 0.970 the true difference of these trainings is no larger than 0.01. How A's",
        ),
        (row(AHEAD, against_repeated=False), "A is ahead of B by 0.012 Dice, B trained once per fold (95% CI"),
        (
            row(UNCLEAR, needed_cases=90, needed_repeats=np.nan, repeated=False, against_repeated=False),
            "takes at least 90 cases (power 80%), more if trainings vary",
        ),
        (row(AHEAD), "On average A is better with a probability of 0.900, by more than 0.01 with 0.600."),
        (
            row(BEHIND, better=0.1, behind=0.02, ahead=0.5),
            "On average A is worse with a probability of 0.900, by more than 0.01 with 0.020.",
        ),
        (row(TOO_FEW, n=3), "Too few cases to test A against B: mean difference +0.012 Dice on 3 cases."),
        (row(UNCLEAR), "takes 2.5 times as many cases and repeats, no number of either alone (power 80%)."),
        (row(UNCLEAR, needed_repeats=9), "no number of cases alone would do, about 9 repeats with these cases would"),
        (row(UNCLEAR, needed_cases=90), "takes about 90 cases with these repeats, or no number of repeats"),
        (row(UNCLEAR, needed_cases=90, needed_repeats=np.nan), "takes about 90 cases (power 80%), more if trainings"),
        (row(UNCLEAR, needed_cases=12), "There are enough to tell a difference of 0.01 in 80% of such comparisons."),
        (
            row(UNCLEAR, needed_cases=12, needed_repeats=np.nan, repeated=False, against_repeated=False),
            "in 80% of such comparisons, if trainings do not vary.",
        ),
        (
            row(UNCLEAR, better=0.1, behind=0.6),
            "On average A is worse with a probability of 0.900, by more than 0.01 with",
        ),
        (row(UNCLEAR, needed_repeats=9, repeated=False), "at least 9 repeats with these cases would"),
        (row(UNCLEAR, repeated=False), "How A's trainings vary is not in this, which is too sure."),
        (row(UNCLEAR, against_repeated=False), "How B's trainings vary is not in this, which is too sure."),
        (row(MIXED, ci_low=-0.01), "Case by case A is better than B, yet on average they cannot be told apart: mean"),
    ],
)
def test_differences_in_words(row, said):
    assert said in describe_difference("A", row, "B", ROPE)


def test_the_region_of_equivalence_is_what_it_is_told():
    record = make_record(algorithms=2, cases=40, labels=1, folds=2, epochs=1)
    first = record.results["algorithm"] == "nnUNetTrainer"
    other = record.results.loc[first, "Dice"].to_numpy() + 0.005 + np.resize([0.001, -0.001], first.sum())
    record.results.loc[~first, "Dice"] = other
    narrow, wide = (analyse(record, rope).comparisons[0] for rope in (0.001, 0.02))
    assert (narrow.pairs["verdict"].iloc[0], wide.pairs["verdict"].iloc[0]) == (AHEAD, EQUIVALENT)
    assert "equivalent within 0.02 Dice" in summarise(wide)


def test_two_ways_to_rank_and_draws_of_them():
    generator = np.random.default_rng(9)
    scores = pd.DataFrame(generator.normal([0.8, 0.78, 0.75, 0.5], 0.03, (60, 4)), columns=list("abcd"))
    scores.loc[:5, "b"] = 0.0
    none = pd.Series(0.0, list("abcd"))
    found = stability(scores, higher_is_better=True, errors=none)
    assert found.by_mean.to_dict() == {"a": 1, "b": 3, "c": 2, "d": 4}
    assert found.by_rank.to_dict() == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert_allclose(found.tau, stats.kendalltau([1, 3, 2, 4], [1, 2, 3, 4]).statistic)
    assert 0.6 < found.low <= found.drawn < 1
    noisy = stability(scores, higher_is_better=True, errors=none + 0.2)
    assert noisy.drawn < found.drawn
    worst = stability(-scores, higher_is_better=False, errors=none)
    assert worst.by_mean.equals(found.by_mean)
    assert stability(scores[["a"]], higher_is_better=True, errors=none) is None
    same = stability(scores.assign(b=scores["a"])[["a", "b"]], higher_is_better=True, errors=none)
    assert (same.tau, same.drawn) == (1, 1)


def test_taus_of_draws_are_those_of_scipy():
    from nnunet_plugins.report.ranking import _taus

    generator = np.random.default_rng(10)
    drawn, ranking = generator.integers(0, 4, (50, 6)).astype(float), np.array([1.0, 2, 2, 4, 5, 6])
    theirs = [stats.kendalltau(row, ranking).statistic for row in drawn]
    assert_allclose(_taus(drawn, ranking), np.nan_to_num(theirs))


@pytest.mark.parametrize(
    ("difference", "noise", "cases", "words"),
    [
        (0.03, 0.02, 40, "is ahead of nnUNetTrainer by 0.0"),
        (-0.03, 0.02, 40, "is behind nnUNetTrainer by 0.0"),
        (0.002, 0.01, 200, "are equivalent within 0.01 Dice, each trained once per fold: mean difference"),
        (0.004, 0.05, 20, "cannot be told apart, each trained once per fold: mean difference"),
        (0.03, 0.02, 5, "Too few cases to test"),
    ],
)
def test_a_page_has_the_word_that_follows_from_its_world(difference, noise, cases, words, tmp_path):
    """And none of the other words."""
    record = make_record(algorithms=2, cases=cases, labels=1, folds=1, epochs=1)
    generator, results = np.random.default_rng(0), record.results
    first, other = results["algorithm"].unique()
    shared = generator.normal(0.8, 0.02, cases)
    results.loc[results["algorithm"] == first, "Dice"] = shared
    results.loc[results["algorithm"] == other, "Dice"] = shared + generator.normal(difference, noise, cases)
    text = build(tmp_path, record).text
    said = ["is ahead of", "is behind", "are equivalent within", "cannot be told apart, each", "Too few cases to test"]
    assert words in text
    assert [one for one in said if one in text] == [one for one in said if words.startswith(one)]
