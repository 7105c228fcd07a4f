"""How a report is read: what stands first, many datasets, tables in words and bold, papers, and odd records."""

import dataclasses
import gzip
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK as sitk
from report_pages import build
from report_records import ENSEMBLE, as_merged, make_record

from nnunet_plugins.benchmark.dataset import describe_dataset
from nnunet_plugins.report import writing
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.card import make_card
from nnunet_plugins.report.caveats import caveats, describe_labels
from nnunet_plugins.report.describing import describe_methods, list_references
from nnunet_plugins.report.findings import describe_all, summarise
from nnunet_plugins.report.headline import find_lead, tell_first
from nnunet_plugins.report.latex import write_paper
from nnunet_plugins.report.showing import DICE, show_cases
from nnunet_plugins.report.tables import ENSEMBLES, RESULTS, sections
from nnunet_plugins.report.verdicts import AHEAD, EQUIVALENT, TOO_FEW
from nnunet_plugins.report.verification import verify_report
from nnunet_plugins.report.words import DASH, NOWHERE, heading
from nnunet_plugins.report.writing import write_challenger

BASELINE, METHOD = "nnUNetTrainer", "nnUNetTrainerFIRENet"


def only(record):
    (comparison,) = analyse(record).comparisons
    return comparison


def shown(comparison, caption):
    """The only table of which the caption begins so."""
    (section,) = (part for part in sections(comparison) if part.caption.startswith(caption))
    return section


def without_costs(record):
    """Without what would be drawn of trainings."""
    runs = record.runs.assign(peak_memory_bytes=np.nan, seconds_per_epoch=np.nan)
    return dataclasses.replace(record, runs=runs, curves=record.curves[:0])


# What stands first


def facts(record):
    return {fact.name: (fact.value, fact.note) for fact in tell_first(analyse(record))}


def test_the_facts_are_those_of_the_leader():
    record = make_record(algorithms=3, cases=12, folds=2, epochs=4)
    comparison = only(record)
    leader = comparison.ranked[0]
    row = comparison.paired["Dice"].loc[leader]
    said = facts(record)
    assert said["Leader"][0] == leader
    value, note = said[f"Difference from {BASELINE}"]
    assert value == f"+{row['mean_difference']:.3f} Dice"
    assert note == f"95% interval {row['ci_low']:.3f} to {row['ci_high']:.3f}"
    assert "by more than 0.01: " in said["Probability that it is better"][1]
    assert said["Budget of each training"] == ("4 epochs x 50 iterations", "folds 0 1")
    assert said["Trainings"] == ("6", "3 algorithms, 2 folds")
    assert facts(make_record(algorithms=2, cases=6, folds=2, repeats=3))["Trainings"] == (
        *("12", "2 algorithms, 2 folds, up to 3 of a fold"),
    )


def test_a_leading_baseline_is_compared_with_the_next():
    record = make_record(algorithms=2, cases=12, folds=2, epochs=1)
    other = {BASELINE: METHOD, METHOD: BASELINE}
    turned = dataclasses.replace(
        record,
        results=record.results.assign(role=record.results["role"].map({"baseline": "method", "method": "baseline"})),
    )
    lead, reverse = find_lead(only(turned)), find_lead(only(record))
    assert (lead.leader, lead.other) == (METHOD, other[METHOD])
    # It is the same pair, seen from the same side.
    assert (lead.difference, lead.interval, lead.probability) == (
        reverse.difference,
        reverse.interval,
        reverse.probability,
    )
    assert facts(turned)["Leader"][1].startswith("the baseline; mean Dice")


def test_equal_leaders_are_all_named():
    record = make_record(algorithms=5, cases=8, folds=1, epochs=1)
    results = record.results.copy()
    for column in ("Dice", "NSD"):
        results[column] = 0.5
    results["TP"], results["FP"], results["FN"] = 50, 50, 50
    said = facts(dataclasses.replace(record, results=results))
    ranked = only(dataclasses.replace(record, results=results)).ranked
    names = f"{', '.join(ranked[:3])} and 2 more"
    assert said["Leader"] == (names, f"{BASELINE} is the baseline; mean Dice 0.500 of each")
    assert said["Difference"] == (DASH, "none between them")


@pytest.mark.parametrize("with_baseline", [True, False])
def test_a_difference_of_several_leaders_is_from_one_who_does_not_lead(with_baseline):
    record = make_record(algorithms=4, cases=8, labels=1, folds=1, epochs=1)
    results, names = record.results, list(record.results["algorithm"].unique())
    leading = [names[0], names[2]] if with_baseline else names[1:3]
    own = results.loc[results["algorithm"] == names[3], "Dice"].to_numpy() + 0.05
    for name in leading:
        results.loc[results["algorithm"] == name, "Dice"] = own
    said = facts(record)
    assert said["Leader"][0] == ", ".join(leading)
    assert said["Leader"][1].startswith(f"{BASELINE} is the baseline; mean Dice" if with_baseline else "mean Dice")
    assert f"Difference of {leading[0]} from {names[3] if with_baseline else BASELINE}" in said


def test_a_comparison_without_anything_to_score_stands_beside_others(tmp_path):
    record = make_record(algorithms=2, cases=6, datasets=2, labels=1, folds=1, epochs=1)
    nothing = record.results["dataset"] == record.results["dataset"].iloc[-1]
    record.results.loc[nothing, ["Dice", "NSD", "ASSD_mm", "HD95_mm"]] = np.nan
    record.results.loc[nothing, ["volume_truth_ml", "volume_error_ml"]] = 0.0
    page = build(tmp_path, record)
    assert "No case has anything to score, so nothing is compared." in page.text
    assert "has no case in common" not in page.text


def test_no_bound_of_p_contradicts_another_family():
    """Eight tests against the baseline take more cases than one against a twin."""
    names = [BASELINE, METHOD, "nnUNetTrainerFIRENetNoFabric", *(f"nnUNetTrainer_{n}epochs" for n in range(5))]
    record = make_record(algorithms=names, cases=8, labels=1, folds=1, epochs=1)
    text = " ".join(caveats(only(record)))
    assert f"With 8 cases and 7 tests against {BASELINE} no adjusted p value can lie below 0.055" in text


def test_equal_leaders_without_a_baseline_are_all_named():
    record = make_record(algorithms=4, cases=8, labels=1, folds=1, epochs=1)
    results = record.results[record.results["algorithm"] != BASELINE].copy()
    first, second, _ = results["algorithm"].unique()
    results.loc[results["algorithm"].isin([first, second]), "Dice"] = 0.95
    comparison = only(dataclasses.replace(record, results=results))
    assert summarise(comparison).startswith(f"{first}, {second} have the highest mean Dice; nothing is compared")


def test_names_of_others_are_not_cut_into_modifiers():
    names = ["nnUNetTrainer_probabilisticOversampling_033", "nnUNetTrainer_probabilisticOversampling_010"]
    record = make_record(algorithms=names, cases=8, labels=1, folds=1, epochs=1)
    comparison = only(record)
    assert "Trainers" not in dict(make_card(comparison, {}))
    assert "All trainers have" not in " ".join(describe_methods(analyse(record)))
    assert show_cases(comparison)["Role"].iloc[1] == "the standard U-Net, with probabilisticOversampling_033"


def test_one_leader_has_the_one_bold_dice():
    """Though the next one's mean is the same with three decimals; labels have no places."""
    record = make_record(algorithms=2, cases=8, labels=1, folds=1, epochs=1)
    first, other = record.results["algorithm"].unique()
    dice = record.results.loc[record.results["algorithm"] == first, "Dice"].to_numpy()
    record.results.loc[record.results["algorithm"] == other, "Dice"] = dice + 1e-5
    table = shown(only(record), RESULTS)
    assert table.table["Place"].tolist() == ["1", "2"]
    assert table.best[DICE] == [0]
    both = make_record(algorithms=2, cases=8, labels=2, folds=1, epochs=1)
    dice = both.results.loc[both.results["algorithm"] == first, "Dice"].to_numpy()
    both.results.loc[both.results["algorithm"] == other, "Dice"] = dice + 1e-5
    assert all(rows == [0, 1] for rows in shown(only(both), "Dice by label").best.values() if len(rows))


def test_what_all_trainers_have_is_said_of_all_and_not_of_the_baseline_alone():
    names = ["nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainerFIRENetNoFabric"]
    record = make_record(algorithms=names, cases=8, folds=1, epochs=1)
    record.results["role"] = record.results["role"].replace("twin", "method")
    for table in (record.results, record.runs, record.curves):
        table["trainer"] += "_12epochs_NoMirroring"
    comparison = only(record)
    cases = show_cases(comparison)
    assert dict(zip(cases["Algorithm"], cases["Role"], strict=True)) == {
        "nnUNetTrainer": "the standard U-Net",
        "nnUNetTrainerFIRENet": "a network of this comparison",
        "nnUNetTrainerFIRENetNoFabric": "ablation twin of nnUNetTrainerFIRENet",
    }
    card = dict(make_card(comparison, {}))
    assert (card["Plans"], card["Trainers"]) == ("nnUNetPlans", "all with _12epochs_NoMirroring")
    text = " ".join(describe_methods(analyse(record)))
    assert "Plans: nnUNetPlans; configuration: 3d_fullres." in text
    assert (
        "All trainers have _12epochs (train for 12 epochs), _NoMirroring (no mirroring, neither in training nor at "
        "inference)." in text
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"algorithms": 3, "cases": 1}, []),
        ({"algorithms": 1, "cases": 8}, ["interval"]),
        ({"algorithms": 3, "cases": 5, "repeats": 3}, []),
        ({"algorithms": 1, "cases": 8, "repeats": 3}, ["interval"]),
        ({"algorithms": 2, "cases": 8}, ["interval", "p value", "P(better)", "Holm"]),
    ],
)
def test_nothing_is_explained_that_is_not_there(options, expected):
    text = " ".join(caveats(only(make_record(**{"labels": 1, "folds": 2, "epochs": 1, **options}))))
    text = re.sub("[0-9]+ cases? (is|are) too few to test anything: .*? could lie below 0.05", "", text)
    assert [words for words in ("interval", "p value", "P(better)", "Holm") if words in text] == expected


def test_methods_count_the_trainings_of_the_algorithms_that_they_count():
    record = make_record(algorithms=3, cases=8, labels=1, folds=2, epochs=1)
    results = record.results[record.results["algorithm"] != BASELINE]
    text = " ".join(describe_methods(analyse(dataclasses.replace(record, results=results))))
    assert "We trained and evaluated 2 algorithms" in text
    assert "There were 4 trainings, no two of one algorithm in one fold; 2 more were of others." in text
    assert "There were 6 trainings, no two of" in " ".join(describe_methods(analyse(record)))
    some = make_record(algorithms=3, cases=12, labels=1, folds=2, epochs=1, repeats=[2, 3, 0])
    said = " ".join(describe_methods(analyse(some)))
    names = list(analyse(some).comparisons[0].algorithms.index)
    assert f", in each fold 3 of {names[1]}, 2 of {names[0]}, 1 of {names[2]}." in said
    assert "Differences are tested by a t test with the variance over cases and that of the training of the" in said
    assert "Wilcoxon" not in said, "one of two was trained several times in every pair"
    mixed = make_record(algorithms=3, cases=12, labels=1, folds=2, epochs=1, repeats=[0, 2, 0])
    tests = " ".join(describe_methods(analyse(mixed)))
    assert "Where one of two networks was trained several times, by a t test with the variance over cases" in tests
    assert "and else by the two-sided Wilcoxon signed-rank test." in tests
    assert "all else has 95% percentile bootstrap intervals of the mean (10000 resamples of the cases" in said
    assert "The variance of training of networks that were trained once per fold is not known" in said
    assert "draws of the cases and of the chance of trainings, where it is known" in said
    assert "The variance of training is not known and not in these numbers." in text
    alike = " ".join(describe_methods(analyse(make_record(algorithms=2, cases=12, labels=1, folds=2, repeats=2))))
    assert not any(words in alike for words in ("Wilcoxon", "not known and not", "bootstrap", "twins"))
    assert "Differences are tested by a t test" in alike
    one = make_record(algorithms=1, cases=8, labels=1, folds=1, epochs=1)
    assert "There was 1 training." in " ".join(describe_methods(analyse(one)))


def test_one_training_is_no_trainings(tmp_path):
    page = build(tmp_path, without_costs(make_record(algorithms=1, cases=2, labels=1, folds=1, epochs=1)))
    assert "Environment of the one training" in page.text
    assert "1 trainings" not in page.text


def test_what_is_not_known_is_said_in_words():
    few = facts(make_record(algorithms=2, cases=3, folds=1, epochs=1))
    assert few["Probability that it is better"] == ("not known", "3 cases are too few, 6 are needed")
    assert few[f"Difference from {BASELINE}"][1] == "no 95% interval: 3 cases are too few, 6 are needed"
    alone = facts(make_record(algorithms=1, cases=3, folds=1, epochs=1))
    assert alone["Difference"][1] == "nothing to compare it with"
    record = make_record(algorithms=3, cases=8, folds=1, epochs=1)
    rest = dataclasses.replace(
        record, results=record.results[record.results["algorithm"] != BASELINE], runs=record.runs[:0], about={}
    )
    said = facts(rest)
    leader, other = only(rest).ranked
    assert said["Leader"][0] == leader
    assert f"Difference from {other}" in said
    assert said["Trainings"][0] == "none recorded"
    assert said["Budget of each training"][0] == "not recorded"
    nothing = facts(make_record(algorithms=2, cases=3, labels=1, both_empty=3))
    assert list(nothing) == ["Budget of each training", "Trainings"]


# Cases enough for an interval, and yet too few for so many tests


def far_ahead(**options):
    """All are far better than the baseline in all cases."""
    record = make_record(**{"labels": 1, "folds": 1, "epochs": 1, **options})
    record.results.loc[record.results["algorithm"] == BASELINE, "Dice"] -= 0.4
    return record


@pytest.mark.parametrize(
    ("algorithms", "cases", "least"), [(8, 8, "p could be below 0.055"), (3, 6, "p could be below 0.062")]
)
def test_where_no_p_could_be_small_it_is_no_question_of_being_told_apart(algorithms, cases, least):
    record = far_ahead(algorithms=algorithms, cases=cases)
    comparison = only(record)
    assert set(comparison.paired["Dice"]["verdict"]) == {TOO_FEW}
    said = summarise(comparison)
    assert said.startswith("Too few cases for so many tests to tell ")
    assert f"on {cases} cases; no {least}, however large the differences are." in said
    assert "with a probability of more than 0.999" in said
    assert "cannot be told apart" not in " ".join([said, *describe_all(comparison)])
    assert "Of " not in said, "nobody could be ahead"
    value, note = facts(record)["Probability that it is better"]
    assert value == ">0.999"
    assert f"{cases} cases are too few for so many tests: no {least}" in note
    words = shown(comparison, "Every pair").table.set_index(["Algorithm", "Compared with"])["Verdict"]
    assert (words.xs(BASELINE, level="Compared with") == "too few cases for so many tests").all()


def test_as_many_tests_as_there_are_decide_and_each_family_by_itself():
    """With 7 cases three tests have 3 / 2^6 = 0.047, and the six of all pairs 0.094."""
    comparison = only(far_ahead(algorithms=4, cases=7))
    assert set(comparison.paired["Dice"]["verdict"]) == {AHEAD}
    pairs = comparison.pairs["verdict"].xs(BASELINE, level="against")
    assert set(pairs) == {TOO_FEW}
    assert "too few for so many tests" not in " ".join([summarise(comparison), *describe_all(comparison)])


def test_equivalent_is_no_matter_of_tests():
    record = make_record(algorithms=8, cases=8, labels=1, folds=1, epochs=1)
    first = record.results.loc[record.results["algorithm"] == BASELINE, "Dice"].to_numpy()
    for number, name in enumerate(record.results["algorithm"].unique()):
        tiny = 1e-4 * number * (1 + np.arange(len(first)))
        record.results.loc[record.results["algorithm"] == name, "Dice"] = first + tiny
    assert set(only(record).paired["Dice"]["verdict"]) == {EQUIVALENT}


def test_a_t_test_over_trainings_has_no_such_bound():
    """It comes first after Holm, so that the others have one test less: with 7 cases 3 / 2^6, and not 4 / 2^6."""
    comparison = only(far_ahead(algorithms=5, cases=7, folds=2, repeats=[0, 3, 0, 0, 0]))
    repeated = comparison.paired["Dice"]["repeated"].astype(bool)
    assert repeated.sum() == 1
    assert set(comparison.paired["Dice"]["verdict"]) == {AHEAD}
    more = only(far_ahead(algorithms=6, cases=7, folds=2, repeats=[0, 3, 0, 0, 0, 0])).paired["Dice"]
    assert (more["verdict"] == TOO_FEW).equals(~more["repeated"].astype(bool))


def test_several_comparisons_say_in_how_many_cases_were_too_few():
    note = facts(far_ahead(algorithms=8, cases=8, datasets=2))[f"Difference from {BASELINE}"][1]
    assert note.endswith("; ahead in 0, behind in 0, too few cases to say in 2")


# Tables


@pytest.fixture(scope="module")
def missed():
    """Of three labels the last one is in no truth, the second one is never found by the last algorithm."""
    record = make_record(algorithms=3, cases=8, labels=3, folds=2, epochs=1, ensemble=True)
    results = record.results
    last = results["algorithm"].unique()[2]
    never = (results["algorithm"] == last) & (results["name"] == "Posterior")
    results.loc[never, ["Dice", "NSD"]] = 0.0
    results.loc[never, ["ASSD_mm", "HD95_mm"]] = np.inf
    nowhere = results["name"] == "part_3"
    results.loc[nowhere, ["Dice", "NSD", "ASSD_mm", "HD95_mm"]] = np.nan
    results.loc[nowhere, ["volume_truth_ml", "volume_error_ml"]] = 0.0
    return record, last


def test_penalties_stand_beside_the_distances_that_hold_them(missed):
    record, last = missed
    table = shown(only(record), RESULTS).table.set_index("Algorithm")
    for metric in ("ASSD_mm", "HD95_mm"):
        assert table.loc[last, heading(metric)].endswith(" (8 penalised)")
        assert not table[heading(metric)].drop(last).str.contains("penalised").any()
    assert (
        not table[[DICE, heading("NSD"), heading("volume_error_ml")]]
        .apply(lambda c: c.str.contains("pen"))
        .any(axis=None)
    )


def test_labels_that_are_nowhere_or_never_found_are_said_in_words(missed):
    record, last = missed
    comparison = only(record)
    table = shown(comparison, "Dice by label").table.set_index("Algorithm")
    assert (table["part_3"] == NOWHERE).all()
    assert table.loc[last, "Posterior"] == "0.000 (never found)"
    assert shown(comparison, "ASSD").table.set_index("Algorithm").loc[last, "Posterior"] == "120.00 (never found)"
    assert describe_labels(comparison) == [
        "In the truth of no case: part_3. Nothing but false findings is known of it there.",
        f"Never found by {last}: Posterior (in 8 cases).",
    ]
    assert describe_labels(only(make_record(algorithms=2, cases=6, one_empty=1))) == []


def test_the_best_are_bold_and_ensembles_are_apart(missed, tmp_path):
    record, _ = missed
    comparison = only(record)
    results = shown(comparison, RESULTS)
    assert ENSEMBLE not in set(results.table["Algorithm"])
    assert shown(comparison, ENSEMBLES).table["Algorithm"].tolist() == [ENSEMBLE]
    board = comparison.board
    for metric, best in (("Dice", "max"), ("ASSD_mm", "min"), ("NSD", "max"), ("volume_error_ml", "min")):
        values = board.loc[results.table["Algorithm"], metric].astype(float).to_numpy()
        name = DICE if metric == "Dice" else heading(metric)
        assert list(results.best[name]) == [int(getattr(values, f"arg{best}")())]
    page = build(tmp_path, record)
    folded = page.within("details")
    assert "Ensembles and nnU-Net's choice, which are not ranked" in folded
    first = results.table[DICE].iloc[results.best[DICE][0]]
    assert first in page.within("strong")
    assert f"**{first}**" in (tmp_path / "report" / "report.md").read_text()
    assert rf"\textbf{{{first}}}" in (tmp_path / "report" / "tables.tex").read_text()


def test_headings_say_where_a_metric_is_better():
    results = shown(only(make_record(algorithms=2, cases=6, folds=1, epochs=1)), RESULTS).table
    arrows = {name.replace("\N{NO-BREAK SPACE}", " ") for name in results.columns if re.search("[↑↓]", name)}
    assert arrows == {
        *("Dice ↑ [95% CI]", "ASSD (mm) ↓", "HD95 (mm) ↓", "NSD ↑", "Absolute volume error (ml) ↓", "Mean rank ↓")
    }


def test_means_and_deviations_of_folds():
    record = make_record(algorithms=2, cases=9, folds=3, epochs=1)
    comparison = only(record)
    table = shown(comparison, "Dice by fold").table.set_index("Algorithm")
    dice = comparison.by_case["Dice"][METHOD]
    own = dice[comparison.scores.folds.reindex(dice.index) == 1]
    assert len(own) == 3
    assert table.loc[METHOD, "Fold 1"] == f"{own.mean():.3f} ± {own.std():.3f}"
    means = dice.groupby(comparison.scores.folds).mean()
    assert table.loc[METHOD, "Means of the folds"] == f"{means.mean():.3f} ± {means.std():.3f}"
    one = only(make_record(algorithms=2, cases=6, folds=1, epochs=1))
    assert not any(part.caption.startswith("Dice by fold") for part in sections(one))


# The dataset


def card(record):
    comparison = analyse(record).comparisons[0]
    return dict(make_card(comparison, record.about))


def test_a_dataset_card():
    record = make_record(algorithms=2, cases=11, folds=2, both_empty=1, epochs=1)
    known = {"cases": 14, "channels": ["T1", "FLAIR"], "spacing_mm": [3.0, 0.75, 0.75], "shape": [20, 96, 96]}
    record.about["datasets"] = {"Dataset001_Made": {**known, "groups": 7}}
    assert card(record) == {
        "Cases": "11 scored of 11; 14 for training",
        "Groups": "7 groups of cases, kept together in the splits",
        "Channels": "T1, FLAIR",
        "Labels": "Anterior (in 11), Posterior (in 10)",
        "Spacing": "3 × 0.75 × 0.75 mm, 20 × 96 × 96 voxels (medians)",  # noqa: RUF001
        "Splits": "2 folds, 6, 5 cases held out",
        "Plans": "nnUNetPlans",
    }


def test_a_card_of_an_older_record_says_what_is_not_recorded():
    found = card(make_record(algorithms=2, cases=4, folds=1, epochs=1, labels=20))
    assert {found[name] for name in ("Groups", "Channels", "Spacing")} == {"not recorded"}
    assert found["Labels"].endswith("and 8 more")
    assert found["Splits"] == "fold 0 alone, 4 cases held out"
    own = {"Knee": ["Anterior"], "Hip": ["Posterior"]}
    assert card(as_merged(make_record(algorithms=2, cases=7), own))["Groups"] == "2 source datasets (Knee 4, Hip 3)"


def test_a_dataset_is_described_from_what_preprocessing_has_left(tmp_path):
    (tmp_path / "gt_segmentations").mkdir()
    (tmp_path / "data").mkdir()
    for case in ("a", "b", "c"):
        image = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8))
        sitk.WriteImage(image, str(tmp_path / "gt_segmentations" / f"{case}.nii.gz"))
        (tmp_path / "data" / f"{case}.pkl").touch()
    description = {"file_ending": ".nii.gz", "channel_names": {"0": "T1"}, "labels": {"background": 0, "x": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    fingerprint = {"spacings": [[5, 1, 1], [3, 1, 1], [3, 1, 1]], "shapes_after_crop": [[9, 8, 8]] * 3}
    (tmp_path / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (tmp_path / "groups.csv").write_text("case,group\na,1\nb,1\nc,2\nd,3\n")
    found = describe_dataset(tmp_path, str(tmp_path / "groups.csv"))
    groups = {"groups": 2, "group_of": {"a": 1, "b": 1, "c": 2}}
    assert found == {"cases": 3, "channels": ["T1"], "spacing_mm": [3, 1, 1], "shape": [9, 8, 8], **groups}
    assert describe_dataset(tmp_path, None)["groups"] == 0
    assert "groups" not in describe_dataset(tmp_path, str(tmp_path / "gone.csv"))
    assert describe_dataset(tmp_path / "gone", None) == {"groups": 0}


# Papers


def test_methods_name_test_adjustment_resamples_and_seed():
    record = make_record(algorithms=2, cases=7, folds=2, epochs=4)
    text = " ".join(describe_methods(analyse(record)))
    for words in ("Wilcoxon signed-rank test", "after Holm", "10000 resamples of the cases, seed 0", "4 epochs x 50"):
        assert words in text
    assert "t test" not in text
    cited = list_references(analyse(record))
    assert cited[0].startswith("Isensee et al. 2021")
    assert any("Fabric Image Representation" in line for line in cited)
    assert not any("Demšar" in line for line in cited)
    repeated = " ".join(describe_methods(analyse(make_record(algorithms=2, cases=7, folds=2, epochs=1, repeats=2))))
    assert "t test" in repeated
    assert "Wilcoxon" not in repeated
    few = make_record(algorithms=2, cases=3, folds=1, epochs=1)
    assert "Dice was not tested" in " ".join(describe_methods(analyse(few)))
    assert not any("Holm" in line for line in list_references(analyse(few)))


def test_trainings_are_called_equal_where_all_is_known_of_them_and_the_same():
    record = make_record(algorithms=2, cases=7, folds=2, epochs=1)

    def said(*equality):
        return "the same in all" in " ".join(describe_methods(analyse(dataclasses.replace(record, equality=equality))))

    (entry,) = record.equality
    hashes = {"plans": "a", "splits": "b", "data": "c", "recipe": "d"}
    equal = {**entry, "recipes": {}, "runs": [{**run, "hashes": hashes} for run in entry["runs"]]}
    assert said(equal)
    assert not said()
    assert not said({**equal, "dataset": "Dataset002_Other"})
    assert not said({**equal, "runs": [{**run, "hashes": {}} for run in entry["runs"]]})
    assert not said({**equal, "runs": [{**equal["runs"][0], "hashes": {**hashes, "data": "e"}}, *equal["runs"][1:]]})


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Tables as papers have them, with the names that LaTeX would misread."""
    folder = tmp_path_factory.mktemp("paper")
    record = make_record(
        algorithms=[BASELINE, METHOD, "[a] & b_c % \\d", "x"], cases=20, one_empty=2, folds=2, epochs=1
    )
    write_paper(analyse(record), folder / "paper.tex")
    return record, folder


def test_the_table_for_a_paper_has_intervals_and_stars(paper):
    record, folder = paper
    text = (folder / "paper.tex").read_text()
    board = only(record).board
    row = next(line for line in text.splitlines() if line.startswith(f"{METHOD} &"))
    dice, low, high, p = board.loc[METHOD, ["Dice", "ci_low", "ci_high", "p_holm"]]
    stars = "***" if p < 0.001 else "**" if p < 0.01 else "*"
    assert p < 0.05
    assert f"{dice:.3f}$^{{{stars}}}$ {{}}[{low:.3f}, {high:.3f}]" in row.replace(r"\textbf{", "").replace("}$^", "$^")
    assert "$^" not in next(line for line in text.splitlines() if line.startswith(f"{BASELINE} &"))
    for words in (
        "95\\% bootstrap intervals (10000 resamples of the cases, seed 0)",
        "Wilcoxon's signed-rank",
        "Holm's",
        "Each network was trained once per fold: what further trainings would change is not in these numbers.",
    ):
        assert words in text
    assert "(2 penalised)" in text
    assert r"\textbf{" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_prints_the_table_for_a_paper(paper):
    _, folder = paper
    main = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{paper}\\end{document}\n"
    (folder / "main.tex").write_text(main)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stdout[-2000:]
    # A few points come of captions with long names; a table that runs off the paper is much wider.
    assert all(float(points) < 10 for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt", result.stdout))


def test_a_long_challenger_table_is_packed(tmp_path, monkeypatch):
    analysis = analyse(make_record(algorithms=2, cases=3, folds=1, epochs=1))
    plain = write_challenger(analysis, tmp_path / "challenger.csv").read_bytes()
    monkeypatch.setattr(writing, "PACKED", 100)
    packed = write_challenger(analysis, tmp_path / "challenger.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["challenger.csv.gz"]
    assert gzip.decompress(packed.read_bytes()) == plain
    first = packed.read_bytes()
    assert write_challenger(analysis, tmp_path / "challenger.csv").read_bytes() == first
    monkeypatch.undo()
    write_challenger(analysis, tmp_path / "challenger.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["challenger.csv"]


def test_a_packed_table_is_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PACKED", 100)
    build(tmp_path, make_record(algorithms=2, cases=3, labels=1, folds=1, epochs=1))
    file = tmp_path / "report" / "challenger.csv.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"case_000", b"case_00x"), mtime=0))
    found = [line for line in verify_report(tmp_path, {}).contradictions if line.startswith("report/chall")]
    assert found[-1] == "report/challenger.csv.gz, line 2, is not what the record makes"


# Odd records


@pytest.mark.parametrize(
    "options",
    [
        {"algorithms": 1, "cases": 2, "labels": 1, "datasets": 20},
        {"algorithms": 2, "cases": 3, "labels": 120},
        {"algorithms": 2, "cases": 3, "labels": 1, "both_empty": 3},
    ],
    ids=["20 datasets", "120 labels", "nothing in the truth"],
)
def test_odd_records_make_pages_of_a_size_that_browsers_bear(tmp_path, options):
    page = build(tmp_path, without_costs(make_record(**options, folds=1, epochs=1)))
    assert "How to cite and describe" in page.text
    assert page.nodes < 6000
