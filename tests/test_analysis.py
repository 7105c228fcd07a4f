"""The analysis: that all algorithms are scored on the same cases, and that no sentence contradicts its table."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from report_records import make_record

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.analysis import Comparison, analyse
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.findings import describe_all, summarise
from nnunet_plugins.report.record import RESULTS, Record, ReportError, read_record
from nnunet_plugins.report.scores import score
from nnunet_plugins.report.showing import DICE, SUMMARY
from nnunet_plugins.report.statistics import LEVEL
from nnunet_plugins.report.tables import sections
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, MIXED
from nnunet_plugins.report.writing import write_challenger, write_csv

BASELINE, METHOD = "nnUNetTrainer", "nnUNetTrainerFIRENet"


def only(record: Record) -> Comparison:
    (comparison,) = analyse(record).comparisons
    return comparison


def empty_masks(results: pd.DataFrame, rows: pd.Series, *, found_ml: float = 0.0) -> None:
    """Take the label out of the truth of some rows; what is found there has a volume, or nothing is."""
    results.loc[rows, ["Dice", "NSD"]] = 0.0 if found_ml else np.nan
    results.loc[rows, ["ASSD_mm", "HD95_mm"]] = np.inf if found_ml else np.nan
    results.loc[rows, ["volume_truth_ml", "volume_error_ml"]] = 0.0, found_ml


@pytest.fixture(params=[1, 2])
def hallucinating(request) -> Record:
    """Twenty cases, the last label in the truth of ten; the method is better where it is, and finds it everywhere."""
    record = make_record(algorithms=2, cases=20, labels=request.param)
    results = record.results
    results[["Dice", "NSD"]], results[["ASSD_mm", "HD95_mm"]] = 0.82, 2.0
    results.loc[results["algorithm"] == METHOD, ["Dice", "NSD"]] = 0.87
    absent = (results["label"] == str(request.param)) & (results["case"] >= "case_010")
    empty_masks(results, absent & (results["algorithm"] == BASELINE))
    empty_masks(results, absent & (results["algorithm"] == METHOD), found_ml=3.0)
    return record


def test_headline_and_table_agree_where_one_algorithm_hallucinates(hallucinating):
    comparison = only(hallucinating)
    assert list(comparison.ranked) == [METHOD, BASELINE], "as the headline says"
    assert_allclose(comparison.board.loc[[METHOD, BASELINE], "Dice"], [0.87, 0.82])
    assert f"{METHOD} is ahead of {BASELINE} by 0.050 Dice" in summarise(comparison)


def test_false_findings_are_a_figure_of_their_own(hallucinating):
    comparison = only(hallucinating)
    assert comparison.false_findings.loc[METHOD].tolist() == [10, 10, 1.0, 3.0]
    assert comparison.false_findings.loc[BASELINE, ["absent", "found", "share"]].tolist() == [10, 0, 0]
    (shown,) = (part.table for part in sections(comparison) if part.caption.startswith("Labels that the truth"))
    assert shown.set_index("Algorithm").loc[METHOD, "Mean volume of a false finding (ml)"] == "3.00"
    table = hallucinating.results
    table["volume_error_ml"] = table["volume_error_ml"].where(table["volume_error_ml"] != 3, 0.001)
    (shown,) = (
        part.table for part in sections(only(hallucinating)) if part.caption.startswith("Labels that the truth")
    )
    assert shown.set_index("Algorithm").loc[METHOD, "Mean volume of a false finding (ml)"] == "<0.01", "a voxel"
    labels = 20 * len(comparison.labels)
    assert f"10 of {labels} labels (over the cases) are not in the truth" in "\n".join(caveats(comparison))


def test_a_false_finding_is_no_score_of_its_label_either(hallucinating, tmp_path):
    """In the figure of a label and in the file for challengeR, all have the same cases."""
    results = hallucinating.results
    last = str(results["label"].max())
    absent = results.loc[results["volume_truth_ml"] == 0, "case"].unique()
    comparison = only(hallucinating)
    for table, _ in comparison.label_dice.values():
        assert table.notna().all(axis=1).eq(table.notna().any(axis=1)).all()
    if len(comparison.labels) > 1:
        assert comparison.label_dice[last][0].loc[absent].isna().all(axis=None)
    write_challenger(analyse(hallucinating), tmp_path / "challenger.csv")
    found = pd.read_csv(tmp_path / "challenger.csv")
    dice = found[(found["metric"] == "Dice") & found["task"].str.endswith(comparison.labels[last])]
    assert set(dice.loc[dice["value"].isna(), "case"]) == set(absent)
    assert dice["value"].isna().sum() == 2 * len(absent)


@pytest.mark.parametrize("better", [True, False])
def test_who_wins_most_cases_and_loses_on_average_is_neither_ahead_nor_behind(better):
    """By a little in 19 cases, and the other way by a lot in one."""
    record = make_record(algorithms=2, cases=20, labels=1, folds=1, epochs=1)
    results, sign = record.results, 1 if better else -1
    results["Dice"] = 0.5
    gains = sign * np.where(np.arange(20) < 19, np.linspace(0.001, 0.002, 20), -0.4)
    results.loc[results["algorithm"] == METHOD, "Dice"] = 0.5 + gains
    comparison = only(record)
    row = comparison.paired["Dice"].loc[METHOD]
    assert (row["p_holm"] < LEVEL, row["verdict"]) == (True, MIXED)
    assert list(comparison.ranked) == ([BASELINE, METHOD] if better else [METHOD, BASELINE])
    most = "better" if better else "worse"
    assert summarise(comparison).startswith(f"Case by case {METHOD} is {most} than {BASELINE}, each")
    assert "Of " not in summarise(comparison)


def test_a_hallucinating_network_does_not_win_the_volume_error(hallucinating):
    """Nothing found where nothing is has no volume error, and that counts."""
    hallucinating.results["volume_error_ml"] *= np.where(hallucinating.results["volume_truth_ml"] > 0, 0, 1)
    row = only(hallucinating).paired["volume_error_ml"].loc[METHOD]
    assert row["effect_size"] == -1
    assert row[["wins", "ties", "losses"]].tolist() == [0, 10, 10]


def test_the_mean_of_nnunet_stands_beside_ours_where_it_is_another_one(hallucinating):
    comparison = only(hallucinating)
    # The mean over labels: with a second one, 0.87 in all cases; 0.87 in ten cases and 0 in ten.
    expected = {METHOD: 0.435 if len(comparison.labels) == 1 else (0.87 + 0.435) / 2, BASELINE: 0.82}
    assert_allclose(comparison.board["nnunet_dice"], [expected[name] for name in comparison.board.index])
    table = sections(comparison)[0].table.set_index("Algorithm")
    assert table[SUMMARY].to_dict() == {name: f"{mean:.3f}" for name, mean in expected.items()}
    assert "foreground_mean of summary.json" in "\n".join(caveats(comparison))
    same = only(make_record(algorithms=2))
    assert_allclose(same.board["nnunet_dice"], same.board["Dice"].astype(float))
    assert SUMMARY not in sections(same)[0].table


def test_a_case_counts_if_every_algorithm_has_all_its_labels():
    record = make_record(algorithms=2, cases=6, labels=2)
    results = record.results
    lacking = (results["algorithm"] == METHOD) & (results["case"] == "case_003") & (results["label"] == "2")
    comparison = only(dataclasses.replace(record, results=results[~lacking]))
    assert comparison.board["cases"].tolist() == [5, 5]
    assert list(comparison.dropped) == ["case_003"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("volume_truth_ml", 5e4, "has another truth than for other algorithms"),
        ("volume_truth_ml", np.nan, "has no volume_truth_ml"),
        ("Dice", np.nan, "has no Dice, although it counts there"),
        ("volume_error_ml", np.nan, "has no volume_error_ml"),
    ],
)
def test_results_that_contradict_themselves_are_refused(column, value, said):
    record = make_record(algorithms=2, cases=3)
    record.results.loc[4, column] = value
    row = record.results.loc[4]
    with pytest.raises(ReportError, match=f"{row['algorithm']}, case {row['case']}, label {row['label']} {said}"):
        analyse(record)


def test_two_trainings_under_one_name_are_refused():
    record = make_record(algorithms=[BASELINE, "MyNet"], cases=3)
    other = record.results[record.results["algorithm"] == "MyNet"].assign(trainer="nnUNetTrainerMyNet")
    twice = dataclasses.replace(record, results=pd.concat([record.results, other], ignore_index=True))
    with pytest.raises(ReportError, match="MyNet stands for MyNet on nnUNetPlans and for nnUNetTrainerMyNet on"):
        analyse(twice)
    with pytest.raises(ReportError, match="is there twice"):
        score(twice.results).by_case("Dice")


@st.composite
def records(draw) -> Record:
    """Records with ties, empties on either side, false findings, missing rows and a single case."""
    algorithms, cases, labels = (draw(st.integers(1, most)) for most in (4, 9, 3))
    record = make_record(algorithms=algorithms, cases=cases, labels=labels, folds=1, epochs=1)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    results = record.results
    shape = (algorithms, cases, labels)
    dice = generator.choice([0.0, 0.25, 0.5, 0.75, 1.0], shape) if draw(st.booleans()) else generator.random(shape)
    if draw(st.booleans()):  # clear winners, so that there is something to say
        dice = np.clip(
            dice * 0.3 + np.linspace(0, 0.6, algorithms)[generator.permutation(algorithms), None, None], 0, 1
        )
    absent = np.broadcast_to(generator.random(shape[1:]) < draw(st.sampled_from([0, 0.3, 0.9])), shape)
    empty = generator.random(shape) < draw(st.sampled_from([0, 0.3]))
    results["Dice"] = results["NSD"] = dice.ravel()
    truth = ~absent.ravel()
    results["volume_truth_ml"] = results["volume_truth_ml"].where(truth, 0.0)
    missed = truth & empty.ravel()
    results.loc[missed, ["Dice", "NSD", "ASSD_mm", "HD95_mm"]] = [0.0, 0.0, np.inf, np.inf]
    empty_masks(results, pd.Series(~truth & empty.ravel()))
    empty_masks(results, pd.Series(~truth & ~empty.ravel()), found_ml=1.0)
    lost = generator.random(len(results)) < draw(st.sampled_from([0, 0.05]))
    return dataclasses.replace(record, results=results[~lost][RESULTS])


@settings(deadline=None, max_examples=20)
@given(records())
def test_no_headline_contradicts_its_table(record):
    for comparison in analyse(record).comparisons:
        board, paired = comparison.board, comparison.paired["Dice"]
        ranked, baseline = comparison.ranked, comparison.baseline
        # All that are ranked have the same cases, in every metric.
        for metric in METRICS:
            scored = comparison.by_case[metric][ranked].notna()
            assert scored.eq(scored.iloc[:, 0], axis=0).all(axis=None) if ranked else True
            assert_allclose(
                comparison.paired[metric]["mean_difference"].astype(float),
                (board[metric] - board[metric].get(baseline)).loc[comparison.paired[metric].index].astype(float)
                if baseline
                else [],
                atol=1e-8,
            )
        assert board.loc[ranked, "Dice"].dropna().is_monotonic_decreasing or board["place"].duplicated().any()
        assert comparison.scored == 0 or (board.loc[ranked, "cases"] == comparison.scored).all()
        # The sentences, read as a reader would.
        places = board["place"]
        sentences = [*describe_all(comparison), summarise(comparison)]
        for sentence in sentences:
            if found := re.match(rf"(\S+) is (ahead of|behind) {baseline} by (\S+|less than 0.001) Dice", sentence):
                name, where = found[1], found[2]
                better = board.loc[name, "Dice"] > board.loc[baseline, "Dice"]
                assert better == (where == "ahead of")
                assert (places[name] < places[baseline]) == better
                row = paired.loc[name]
                assert row["p_holm"] < LEVEL
                assert (row["wins"] > row["losses"]) == better or row["effect_size"] * (1 if better else -1) > 0
        if found := re.search(
            r"Of (\d+) algorithms, (\d+) (?:is|are) ahead of \S+, (\d+) behind it", summarise(comparison)
        ):
            others, ahead, behind = map(int, found.groups())
            assert (others, ahead, behind) == (
                len(ranked) - 1,
                sum("is ahead of" in sentence for sentence in describe_all(comparison)),
                sum("is behind" in sentence for sentence in describe_all(comparison)),
            )
        first = ranked[0] if ranked else None
        assert paired["verdict"].get(first) != BEHIND, "the first in the table is behind nobody"
        if ranked and first == baseline:
            assert AHEAD not in set(paired["verdict"])
        shown = sections(comparison)[0].table.set_index("Algorithm")[DICE]
        for name in ranked:
            assert shown[name].startswith(f"{board.loc[name, 'Dice']:.3f}" if comparison.scored else "")


@settings(deadline=None, max_examples=8)
@given(records(), st.randoms())
def test_the_order_of_rows_and_a_further_algorithm_change_no_score(record, random):
    """What another algorithm finds decides nothing about the scores of this one, as long as it has all cases."""
    results = record.results
    order = list(range(len(results)))
    random.shuffle(order)
    shuffled = analyse(dataclasses.replace(record, results=results.iloc[order])).comparisons
    for comparison in analyse(record).comparisons:
        (again,) = shuffled
        if comparison.ranked:
            pd.testing.assert_frame_equal(
                comparison.by_case["Dice"].sort_index(axis=0).sort_index(axis=1),
                again.by_case["Dice"].sort_index(axis=0).sort_index(axis=1),
            )
    alone = results[results["algorithm"] == BASELINE]
    if len(alone) and len(alone) * results["algorithm"].nunique() == len(results):
        everywhere = score(alone).by_case("Dice")[BASELINE]
        pd.testing.assert_series_equal(score(results).by_case("Dice")[BASELINE], everywhere)


# Repeats: several trainings of one algorithm


def test_an_algorithm_with_repeats_has_the_mean_of_its_trainings(tmp_path):
    record = make_record(algorithms=2, cases=8, folds=2, epochs=2, both_empty=1, one_empty=1, repeats=(1, 3))
    record.write(tmp_path)
    read = read_record(tmp_path)
    for here, there in ((record.results, read.results), (record.runs, read.runs)):
        assert set(zip(here["algorithm"], here["seed"], strict=True)) == set(
            zip(there["algorithm"], there["seed"], strict=True)
        )
    (comparison,) = analyse(read).comparisons
    scores = comparison.scores
    one, three = scores.algorithms
    by_training = scores.by_training("Dice")
    assert list(by_training) == [(one, "1"), (three, "1"), (three, "2"), (three, "3")]
    assert by_training.columns.names == ["algorithm", "seed"]
    for metric in METRICS:
        trainings = scores.by_training(metric)
        assert_allclose(scores.by_case(metric)[three], trainings[three].mean(axis=1))
        assert_allclose(scores.by_case(metric)[one], trainings[one]["1"])
    assert by_training[three].std(axis=1).min() > 0
    assert scores.folds.to_dict() == {case: int(case[-3:]) % 2 for case in scores.cases}
    # Counts are those of one training, on average.
    assert scores.missed_labels().to_dict() == {one: 0, three: 1}
    assert scores.false_findings()["absent"].to_dict() == {one: 1, three: 1}
    assert comparison.costs[["folds", "trainings"]].to_numpy().tolist() == [[2, 2], [2, 6]]
    assert comparison.algorithms["trainer"].to_dict() == {one: one, three: three}


def test_what_some_of_the_trainings_miss_or_find_counts_in_part():
    record = make_record(algorithms=2, cases=4, folds=2, labels=1, both_empty=1, one_empty=1, repeats=2)
    name = record.results["algorithm"].unique()[1]
    again = record.results["seed"] == "2"
    other = record.results["algorithm"] == name
    first = record.results["case"] == "case_000"
    record.results.loc[other & again & (record.results["case"] == "case_001"), ["Dice", "ASSD_mm", "HD95_mm"]] = [
        0.5,
        1.0,
        2.0,
    ]
    record.results.loc[other & again & first, ["Dice", "ASSD_mm", "HD95_mm", "NSD"]] = [0.0, np.inf, np.inf, 0.0]
    record.results.loc[other & again & first, "volume_error_ml"] = 3.0
    (comparison,) = analyse(record).comparisons
    assert comparison.scores.missed_labels()[name] == 0.5
    found = comparison.scores.false_findings().loc[name]
    assert found.to_dict() == {"absent": 1, "found": 0.5, "share": 0.5, "volume_ml": 3.0}
    shown = sections(comparison)
    (cases,) = (section.table for section in shown if section.caption == "Cases and flags")
    assert dict(zip(cases["Algorithm"], cases["Labels missed"], strict=True))[name] == "0.5"


def test_repeats_with_unequal_folds_count_where_they_are():
    record = make_record(algorithms=2, cases=6, folds=2, repeats=2)
    results = record.results
    gone, untrained = ((table["seed"] == "2") & (table["fold"] == 1) for table in (results, record.runs))
    torn = dataclasses.replace(record, results=results[~gone], runs=record.runs[~untrained])
    (comparison,) = analyse(torn).comparisons
    assert len(comparison.scores.cases) == 6
    by_training = comparison.scores.by_training("Dice")
    name = comparison.scores.algorithms[1]
    assert by_training[name]["2"].isna().to_numpy().tolist() == [False, True] * 3
    assert_allclose(comparison.by_case["Dice"][name], by_training[name].mean(axis=1))
    baseline = comparison.scores.algorithms[0]
    said = f"Not trained in all folds: seed 2 of {baseline} (fold 1); seed 2 of {name} (fold 1)."
    assert said in "\n".join(caveats(comparison))
    assert "Unequal repeats" not in "\n".join(caveats(comparison)), "said once"
    assert "Not trained in all folds" not in "\n".join(caveats(only(record)))


@pytest.mark.parametrize(
    ("seed", "trainer", "said"),
    [
        ("0", "nnUNetTrainer_0seed", "row 2: the seed '0' of nnUNetTrainer_0seed is none: seeds are 1, 2 and so on"),
        ("-1", "nnUNetTrainer_1seed", "the seed '-1' of nnUNetTrainer_1seed is none"),
        ("2", "nnUNetTrainer_1seed", "the seed '2' of nnUNetTrainer_1seed is not that of the trainer, 1"),
        ("1", "nnUNetTrainer_1seed_2seed", "stands beside a trainer with two seeds"),
        ("", "nnUNetTrainer", "has no seed, and other rows of the algorithm have one"),
    ],
)
def test_bad_seeds_are_named(tmp_path, seed, trainer, said):
    record = make_record(algorithms=1, cases=3, folds=1, epochs=1, repeats=2)
    own = record.results["seed"] == "1"
    record.results.loc[own, ["seed", "trainer"]] = [seed, trainer]
    record.write(tmp_path)
    with pytest.raises(ReportError, match=r"results\.csv") as error:
        analyse(read_record(tmp_path))
    assert said in str(error.value)


def test_records_without_seeds_and_folds_are_read_and_reported_as_they_were(tmp_path):
    record = make_record(algorithms=2, cases=3, epochs=1)
    record.write(tmp_path)
    for name in ("results", "runs", "curves"):
        table = pd.read_csv(tmp_path / f"{name}.csv", dtype=str, keep_default_na=False)
        table.drop(columns=["seed", *(["fold"] if name == "results" else [])]).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    read = read_record(tmp_path)
    (comparison,) = analyse(read).comparisons
    assert list(comparison.scores.by_training("Dice")) == [(name, "") for name in comparison.scores.algorithms]
    assert comparison.scores.folds.isna().all()
    write_csv(read, tmp_path / "written.csv")
    assert (tmp_path / "written.csv").read_text() == (tmp_path / "results.csv").read_text()
