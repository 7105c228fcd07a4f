"""One network for many datasets beside one per dataset: the same folds, the same cases, the same labels."""

import dataclasses
import json
import re
import shutil
from itertools import chain

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_dataset
from report_records import make_record

from nnunet_plugins.benchmark import driver
from nnunet_plugins.benchmark.protocol import Protocol
from nnunet_plugins.benchmark.results import prediction_tasks, result_tasks
from nnunet_plugins.benchmark.tasks import Folders, training_tasks
from nnunet_plugins.cli import main
from nnunet_plugins.files import unfinished, write_text
from nnunet_plugins.report.analysis import Comparison, analyse
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.findings import describe_beside, summarise
from nnunet_plugins.report.record import read_record
from nnunet_plugins.report.statistics import compare, holm
from nnunet_plugins.report.tables import sections
from nnunet_plugins.report.verification import verify_report

KNEE, HIP, MERGED = "Dataset001_Knee", "Dataset002_Hip", "Dataset900_Bones"
SOURCES = {
    "Knee": {"dataset": KNEE, "labels": {"bone": 1}, "cases": ["a", "b", "c"]},
    "Hip": {"dataset": HIP, "labels": {"bone": 2, "skin": 1}, "cases": ["a", "b"]},
}
CASES = [f"{name}__{case}" for name, source in SOURCES.items() for case in source["cases"]]
FOLDS = {
    KNEE: [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}],
    HIP: [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}],
}
JOINT = [
    {"train": ["Knee__a", "Knee__b", "Hip__a"], "val": ["Knee__c", "Hip__b"]},
    {"train": ["Knee__c", "Hip__b"], "val": ["Knee__a", "Knee__b", "Hip__a"]},
]


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Folders:
    """Preprocessed data of two datasets and of what was merged of them, as far as splits ask for them."""
    found = Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results", "output")))
    for name, folder in found.variables.items():
        monkeypatch.setenv(name, folder)
    for dataset in (KNEE, HIP, MERGED):
        (found.raw / dataset).mkdir(parents=True)
        place = found.preprocessed / dataset
        (place / "gt_segmentations").mkdir(parents=True)
        own = next((source["cases"] for source in SOURCES.values() if source["dataset"] == dataset), CASES)
        for case in own:
            (place / "gt_segmentations" / f"{case}.nii.gz").touch()
        table = {"nnunet_plugins_sources": SOURCES} if dataset == MERGED else {}
        labels = {"background": 0, "bone": 1, "skin": 2}
        (place / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": labels, **table}))
    (found.results).mkdir()
    return found


def protocol(**more) -> Protocol:
    trainers = ("nnUNetTrainer_5epochs", "nnUNetTrainerFIRENet_5epochs", "nnUNetTrainerNISF_5epochs")
    question = {"trainers": trainers, "folds": (0, 1), "number_of_folds": 2, "device": "cpu", "merged": MERGED}
    return Protocol(datasets=(KNEE, HIP, MERGED), configurations=("3d_fullres",), **{**question, **more})


def write_folds(folders, dataset, folds):
    (folders.preprocessed / dataset / "splits_final.json").write_text(json.dumps(folds))


def read_folds(folders, dataset):
    return json.loads((folders.preprocessed / dataset / "splits_final.json").read_text())


# The same folds


def test_a_merged_dataset_takes_the_folds_of_its_sources(folders):
    for dataset, folds in FOLDS.items():
        write_folds(folders, dataset, folds)
    assert main(["split", "-d", "900", "--like", "sources"]) == 0
    assert read_folds(folders, MERGED) == JOINT


def test_a_source_takes_its_part_of_a_merged_datasets_folds(folders):
    write_folds(folders, MERGED, JOINT)
    for dataset, folds in FOLDS.items():
        assert main(["split", "-d", dataset, "--like", "900"]) == 0
        assert read_folds(folders, dataset) == folds


def lose_a_case(folders):
    (folders.preprocessed / HIP / "gt_segmentations" / "b.nii.gz").unlink()


def test_cases_that_folds_leave_out_are_left_out_of_those_like_them(folders):
    """As the doctor warns; they are no reason to refuse the folds."""
    knee = [{"train": ["a"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}]
    joint = [{part: [name for name in fold[part] if name != "Knee__b"] for part in fold} for fold in JOINT]
    for dataset, folds in {**FOLDS, KNEE: knee}.items():
        write_folds(folders, dataset, folds)
    assert main(["split", "-d", "900", "--like", "sources"]) == 0
    assert read_folds(folders, MERGED) == joint
    (folders.preprocessed / KNEE / "splits_final.json").unlink()
    assert main(["split", "-d", KNEE, "--like", "900"]) == 0
    assert read_folds(folders, KNEE) == knee


def test_splits_that_others_are_to_be_like_are_made_by_the_command_that_is_named(folders, capsys):
    """In as many folds as the smallest of the datasets allows."""
    for dataset in FOLDS:
        assert main(["split", "-d", "900", "--like", "sources"]) == 2
        command = capsys.readouterr().err.strip().rpartition("make it first: nnunet-plugins ")[2]
        assert command == f"split -d {dataset} --folds 2"
        assert main(command.split()) == 0
    assert main(["split", "-d", "900", "--like", "sources"]) == 0
    (folders.preprocessed / MERGED / "splits_final.json").unlink()
    assert main(["split", "-d", "1", "--like", "900"]) == 2
    command = capsys.readouterr().err.strip().rpartition("make it first: nnunet-plugins ")[2]
    assert command == f"split -d {MERGED} --strata sources --folds 2"
    assert main(command.split()) == 0
    assert main(["split", "-d", "1", "--like", "900"]) == 0


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (("900", "--like", "sources"), None, "Dataset001_Knee/splits_final.json is missing; make it first: nnunet-pl"),
        (("1", "--like", "900"), None, "Dataset900_Bones/splits_final.json is missing"),
        (("1", "--like", "2"), None, "Dataset002_Hip is no merged dataset"),
        (("1", "--like", "sources"), None, "Dataset001_Knee is no merged dataset"),
        (("900", "--like", "900"), None, "was not merged of Dataset900_Bones; it was merged of Dataset001_Knee, Data"),
        (("1", "--like", "900", "--strata", "sources"), None, "leave out --groups, --strata"),
        (
            ("2", "--like", "900"),
            lambda folders: (write_folds(folders, MERGED, JOINT), lose_a_case(folders)),
            r"Dataset900_Bones and Dataset002_Hip do not have the same cases, see Hip__b \(1 such\)",
        ),
        (
            ("900", "--like", "sources"),
            lambda folders: [write_folds(folders, name, folds[: 1 + (name == KNEE)]) for name, folds in FOLDS.items()],
            "Dataset002_Hip is split into 1 folds, Dataset001_Knee into 2",
        ),
        (
            ("1", "--like", "900"),
            lambda folders: (write_folds(folders, MERGED, JOINT), write_folds(folders, KNEE, FOLDS[KNEE][::-1])),
            "holds other splits already; give --overwrite",
        ),
    ],
)
def test_folds_that_cannot_be_the_same_are_refused(folders, capsys, arguments, spoil, message):
    if spoil:
        spoil(folders)
    assert main(["split", "-d", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


# The graph


def test_each_network_is_trained_on_the_merged_dataset_too(folders):
    """But for one that is fitted to every image."""
    found = {}
    for run in protocol().runs():
        found.setdefault(run.dataset, []).append((run.trainer, run.algorithm, run.role))
    alone = [
        ("nnUNetTrainer_5epochs", "U-Net", "baseline"),
        ("nnUNetTrainerFIRENet_5epochs", "FIRENet", "method"),
        ("nnUNetTrainerNISF_5epochs", "NISF", "method"),
    ]
    assert found[KNEE] == found[HIP] == alone
    assert found[MERGED] == [(f"{name}_PartialLabels", *more) for name, *more in alone[:2]]
    assert all(protocol(merged=None).beside(run) is None for run in protocol(merged=None).runs())


def test_its_cases_are_shown_as_those_of_each_dataset(folders):
    question = protocol()
    tasks = result_tasks(question, folders, as_if_trained=True)
    views = [task for task in tasks if task.command[:2] == ("nnunet-plugins", "labels")]
    assert len(views) == 4
    for task in views:
        assert str(folders.preprocessed / MERGED / "dataset.json") in task.command
        (metrics,) = (other for other in tasks if task.name in other.needs)
        dataset = task.command[task.command.index("--dataset") + 1]
        assert metrics.command[3] == str(folders.truth(dataset))
        assert str(folders.preprocessed / dataset / "dataset.json") in metrics.command
        assert metrics.rows["dataset"] == dataset
        assert metrics.rows["role"] == "one for many"
        assert metrics.rows["trainer"].endswith("_5epochs_PartialLabels")
    (last,) = (other for other in tasks if views[-1].name in other.needs)
    assert last.rows["algorithm"] == "FIRENet trained on Bones"
    assert len({task.name for task in tasks}) == len(tasks) == len({task.output for task in tasks})


@pytest.mark.parametrize("there", [(), (MERGED,), (KNEE, HIP), (KNEE,), (KNEE, HIP, MERGED)])
def test_folds_are_taken_from_where_they_are(folders, there):
    """Those of the merged dataset, which knows the groups of all cases; else those of the datasets."""
    for dataset in there:
        write_folds(folders, dataset, FOLDS.get(dataset, JOINT))
    table = str(folders.raw / "groups.csv")
    question = protocol(groups=dict.fromkeys((KNEE, HIP, MERGED), table))
    made = (make(question, folders, as_if_trained=True) for make in (result_tasks, prediction_tasks))
    tasks = [*training_tasks(question, folders), *chain.from_iterable(made)]
    names = [task.name for task in tasks]
    for position, task in enumerate(tasks):
        assert set(task.needs) <= set(names[:position])
    splits = {task.command[3]: task.command[4:] for task in tasks if task.command[:2] == ("nnunet-plugins", "split")}
    anew = ("--groups", table, "--folds", "2")
    if not there or MERGED in there:
        assert splits == {MERGED: ("--strata", "sources", *anew), KNEE: ("--like", MERGED), HIP: ("--like", MERGED)}
    else:
        assert splits == {KNEE: anew, HIP: anew, MERGED: ("--like", "sources")}


def test_a_merged_dataset_without_groups_does_not_tear_those_of_its_sources(folders, capsys):
    """Its folds are those of all: nobody would look at the sources' own."""
    table = "case,group\na,1\nc,1\nb,2\n"
    (folders.raw / KNEE / "groups.csv").write_text(table)
    question = ["benchmark", "--merged", "900", "-tr", "nnUNetTrainer", "--device", "cpu", "--dry-run", "--groups"]
    question += ["--folds", "2", "-o", str(folders.output)]
    assert main(question) == 2
    assert f"{KNEE} has a groups.csv, and {MERGED}, which was merged of it, has none" in capsys.readouterr().err
    joint = folders.raw / MERGED / "groups.csv"
    joint.write_text("case,group\n" + "".join(f"{case},{case}\n" for case in CASES))
    assert main(question) == 2
    said = capsys.readouterr().err
    assert f"{folders.raw / KNEE / 'groups.csv'} has a group 1, whose cases are of several groups in {joint}" in said
    joint.write_text("case,group\n" + "".join(f"{case},{case.replace('c', 'a')}\n" for case in CASES))
    assert main(question) == 0
    made = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nnunet-plugins split")]
    assert made[0].startswith(f"nnunet-plugins split -d {MERGED} --strata sources --groups")


def test_splits_of_a_merged_dataset_that_keep_the_groups_of_its_sources_need_no_table(folders, capsys):
    question = ["benchmark", "--merged", "900", "-tr", "nnUNetTrainer", "--device", "cpu", "--dry-run", "--groups"]
    for dataset, folds in {**FOLDS, MERGED: JOINT}.items():
        write_folds(folders, dataset, folds)
    table = folders.raw / KNEE / "groups.csv"
    for content, code in (("case,group\na,1\nb,1\nc,2\n", 0), ("case,group\na,1\nb,2\nc,1\n", 2)):
        table.write_text(content)
        assert main([*question, "-o", str(folders.output)]) == code
    assert "may tear groups apart" in capsys.readouterr().err


def test_groups_that_the_folds_of_the_sources_tear_apart_are_seen_before_a_merged_dataset_takes_them(folders, capsys):
    """It would be split like them, and the next start would find that its groups are torn."""
    question = ["benchmark", "--merged", "900", "-tr", "nnUNetTrainer", "--device", "cpu", "--dry-run", "--groups"]
    for dataset, folds in FOLDS.items():
        write_folds(folders, dataset, folds)
    table = folders.raw / MERGED / "groups.csv"
    for same, code in (("b", 0), ("c", 2)):  # a and b are in one fold, a and c in two
        table.write_text(
            "case,group\n" + "".join(f"{case},{case.replace('Knee__a', f'Knee__{same}')}\n" for case in CASES)
        )
        assert main([*question, "-o", str(folders.output)]) == code
    said = capsys.readouterr().err
    assert f"the folds of {MERGED} tear groups of {table} apart, first of all Knee__c (1 such)" in said
    for command in said.strip().partition("is trained: ")[2].split(" && "):
        assert main(command.split()[1:]) == 0
    assert main([*question, "-o", str(folders.output)]) == 0


def test_a_table_with_the_names_of_the_merged_dataset_is_that_of_it_alone(folders, capsys):
    table = folders.raw / "table.csv"
    table.write_text("case,group\n" + "".join(f"{case},{case.replace('Knee__b', 'Knee__a')}\n" for case in CASES))
    question = ["benchmark", "--merged", "900", "-tr", "nnUNetTrainer", "--device", "cpu", "--dry-run", "--folds", "2"]
    for there in ((), (KNEE, HIP)):
        for dataset in there:
            write_folds(folders, dataset, FOLDS[dataset])
        assert main([*question, "-o", str(folders.output), "--groups", str(table)]) == 0
        assert f"-d {KNEE} --groups" not in capsys.readouterr().out


def test_a_merged_dataset_alone_is_split_by_its_sources(folders, capsys):
    """Else a fold may validate on none of a source's cases, or train on none."""
    question = ["benchmark", "-d", "900", "-tr", "nnUNetTrainer_PartialLabels", "--device", "cpu", "--dry-run"]
    assert main([*question, "-o", str(folders.output)]) == 2
    said = capsys.readouterr().err
    assert f"a source of {MERGED} has 2 cases, too few for 5 folds; give --folds 2" in said
    assert main([*question, "-o", str(folders.output), *said.strip().rpartition("give ")[2].split()]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("nnunet-plugins split "))
    assert command == f"nnunet-plugins split -d {MERGED} --strata sources --folds 2"
    assert main(command.split()[1:]) == 0
    for fold in read_folds(folders, MERGED):
        assert all({case.partition("__")[0] for case in fold[part]} == {"Knee", "Hip"} for part in fold)


def test_a_source_of_one_case_is_split_with_the_others(folders, capsys):
    lose_a_case(folders)
    question = ["benchmark", "-d", "900", "-tr", "nnUNetTrainer_PartialLabels", "--device", "cpu", "--dry-run"]
    (folders.preprocessed / MERGED / "gt_segmentations" / "Hip__b.nii.gz").unlink()
    assert main([*question, "-o", str(folders.output), "--folds", "4"]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("nnunet-plugins split "))
    assert command == f"nnunet-plugins split -d {MERGED} --folds 4"
    assert main(command.split()[1:]) == 0


def benchmark(folders, *more):
    question = ("--merged", "900", "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(folders.output))
    return main(["benchmark", *question, *more])


def test_the_datasets_follow_from_the_merged_one(folders, capsys):
    assert benchmark(folders, "--folds", "2", "--dry-run") == 0
    said = capsys.readouterr().out
    for dataset, trainer in ((KNEE, ""), (HIP, ""), (MERGED, "_PartialLabels")):
        assert f"nnUNetv2_train {dataset} 3d_fullres 1 -tr nnUNetTrainer{trainer} " in said
    assert "nnUNetTrainer_PartialLabels_PartialLabels" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merged", "1"], "Dataset001_Knee/dataset.json has no 'nnunet_plugins_sources'"),
        (["-tr", "nnUNetTrainer_PartialLabels"], "nnUNetTrainer_PartialLabels: --merged gives the trainers _Partial"),
        (
            ["-tr", "nnUNetTrainer", "nnUNetTrainerDA5"],
            "--merged trains nnUNetTrainerDA5 as nnUNetTrainerDA5_PartialLabels, too, which is no trainer of this",
        ),
        (["-tr", "nnUNetTrainerNISF"], "networks that are fitted to every image know no partial labels"),
        (["-f", "0"], "Dataset002_Hip has other folds than Dataset900_Bones has of its cases"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(folders, capsys, options, message):
    for dataset, folds in {**FOLDS, MERGED: JOINT, HIP: FOLDS[HIP][::-1]}.items():
        write_folds(folders, dataset, folds)
    assert benchmark(folders, *options) == 2
    assert message in capsys.readouterr().err


def test_one_of_both_is_needed(folders, capsys):
    assert main(["benchmark", "-tr", "nnUNetTrainer", "-o", str(folders.output)]) == 2
    assert "name datasets with -d, or a merged one with --merged" in capsys.readouterr().err


# The view of own cases


def test_own_cases_have_their_own_names_and_values(folders, tmp_path, capsys):
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    shutil.copy(folders.preprocessed / MERGED / "dataset.json", predicted)
    values = np.arange(24).reshape(2, 3, 4) % 3
    for case in ("Knee__a", "Hip__b", "Hip__x__1"):
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.uint8)), str(predicted / f"{case}.nii.gz"))
    (predicted / "Knee__broken.nii.gz").write_bytes(b"none")
    command = ["labels", "-i", str(predicted), "--own-cases", "--dataset"]
    assert main([*command, HIP, "-o", str(tmp_path / "hip")]) == 0
    assert sorted(path.name for path in (tmp_path / "hip").iterdir()) == ["b.nii.gz", "dataset.json", "x__1.nii.gz"]
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "hip" / "b.nii.gz")))
    assert np.array_equal(own, np.array([0, 2, 1])[values])
    for file in predicted.glob("Knee*"):
        file.unlink()
    assert main([*command, KNEE, "-o", str(tmp_path / "knee")]) == 2
    assert "has no case of Knee: their names begin with Knee__" in capsys.readouterr().err


# The report


def beside() -> Comparison:
    """Three networks, of which the last two are the first two trained on another dataset."""
    record = make_record(algorithms=["nnUNetTrainer", "nnUNetTrainerFIRENet", "one", "two"], cases=12, seed=3)
    results = record.results
    results.loc[results["algorithm"].isin(["one", "two"]), "role"] = "one for many"
    lost = (results["algorithm"] == "two") & (results["case"] == "case_003")
    about = {**record.about, "beside": {"one": "nnUNetTrainer", "two": "nnUNetTrainerFIRENet"}}
    runs = record.runs[~record.runs["algorithm"].isin(["one", "two"])]
    curves = record.curves[~record.curves["algorithm"].isin(["one", "two"])]
    changed = dataclasses.replace(record, results=results[~lost], runs=runs, curves=curves, about=about)
    (comparison,) = analyse(changed).comparisons
    return comparison


def test_it_is_compared_with_the_same_network_on_the_dataset_alone():
    comparison = beside()
    assert set(comparison.ranked) == {"nnUNetTrainer", "nnUNetTrainerFIRENet"}
    assert list(comparison.dropped) == []
    table = comparison.beside["Dice"]
    assert table["alone"].to_dict() == {"one": "nnUNetTrainer", "two": "nnUNetTrainerFIRENet"}
    scores = comparison.by_case["Dice"]
    pairs = [compare(scores[[alone, name]], alone, higher_is_better=True) for name, alone in table["alone"].items()]
    for pair in pairs:
        (name,) = pair.index
        assert table.loc[name, "n"] == (11 if name == "two" else 12)
        assert table.loc[name, "mean_difference"] == pytest.approx(pair.loc[name, "mean_difference"])
        assert table.loc[name, "p"] == pytest.approx(pair.loc[name, "p"])
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p"]).tolist())
    (shown,) = (part.table for part in sections(comparison) if part.caption.startswith("One network for many"))
    assert shown.columns[:4].tolist() == ["Metric", "Algorithm", "Compared with", "Cases"]
    assert len(shown) == 5 * 2
    sentences = describe_beside(comparison)
    assert all(re.search(r"^(one|two) (is|and) .*nnUNetTrainer", line) for line in sentences)
    assert len(sentences) == 2
    assert "one" not in summarise(comparison).split()
    assert "in no test but that against the same network on this dataset alone" in "\n".join(caveats(comparison))


# From segmentations to the report


def perform(task, folders, runs):
    """Do a task; one of nnU-Net's as if it had found the truth, and something that nobody annotated."""
    if task.keeps_text:
        (run,) = (run for run in runs if run.dataset in task.command)
        write_text(task.output, f"\n*Best*: {run.model}: 0.9\n")
        write_text(folders.model(run) / "crossval_results_folds_0" / "postprocessing.pkl", "")
    elif task.command[0].startswith("nnUNetv2"):
        truth = folders.truth(task.command[1])
        task.output.mkdir(parents=True)
        for file in truth.glob("*.nii.gz"):
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayFromImage(image)
            array[:2] = BONE * file.name.startswith("Knee__")
            found = sitk.GetImageFromArray(array)
            found.CopyInformation(image)
            sitk.WriteImage(found, str(task.output / file.name))
    else:
        command = [str(task.output) if word == str(unfinished(task.output)) else word for word in task.command[1:]]
        task.output.parent.mkdir(parents=True, exist_ok=True)
        assert main([*command, "-np", "1"]) == 0
    folders.ledger.write(task.output, task.command, folders.ledger.identities(task.inputs), task.makes)


BONE = 3


def test_from_segmentations_to_the_report(tmp_path, monkeypatch):
    """Of two datasets of which the one names a structure otherwise, and each knows one that the other does not."""
    folders = Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results", "output")))
    for name, folder in folders.variables.items():
        monkeypatch.setenv(name, folder)
    names = {KNEE: ("skin", "marrow"), HIP: ("bone", "inner bone")}
    write_dataset(folders.raw, KNEE, labels={"background": 0, "skin": 1, "marrow": 2}, cases=2)
    write_dataset(folders.raw, HIP, labels={"background": 0, "bone": 1, "inner bone": 2}, cases=3)
    merge = ["merge", "1", "2", "-o", "900", "--name", "Bones", "--rename", "1:marrow=inner bone", "-np", "1"]
    assert main(merge) == 0
    for dataset in (KNEE, HIP, MERGED):
        (folders.preprocessed / dataset).mkdir(parents=True)
        shutil.copy(folders.raw / dataset / "dataset.json", folders.preprocessed / dataset)
    description = json.loads((folders.raw / MERGED / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "skin": 1, "inner bone": 2, "bone": BONE}
    question = protocol(trainers=("nnUNetTrainer",), folds=(0,))
    for run in question.runs():
        for name in ("checkpoint_final.pth", "validation/a.pkl", "validation/a.npz"):
            write_text(folders.fold(run, 0) / name, "")
        write_text(folders.fold(run, 0) / "validation" / "summary.json", "{}")
    tasks = result_tasks(question, folders)
    for task in tasks:
        perform(task, folders, question.runs())
    driver.write_report(question, folders, tasks, accept_unequal=True)

    results = read_record(folders.output / "record").results
    for dataset, own in names.items():
        cases = sorted(path.name.removesuffix(".nii.gz") for path in (folders.raw / dataset / "labelsTr").iterdir())
        for name in ("U-Net", "U-Net trained on Bones"):
            rows = results[(results["dataset"] == dataset) & (results["algorithm"] == name)]
            assert sorted(zip(rows["case"], rows["label"], rows["name"], strict=True)) == [
                (case, str(n + 1), label) for case in cases for n, label in enumerate(own)
            ]
            assert (rows["Dice"] == 1).all()
            assert rows["source"].isna().all()
    rows = results[results["dataset"] == MERGED]
    known = {"Knee": {"skin", "inner bone"}, "Hip": {"bone", "inner bone"}}
    assert {source: set(own["name"]) for source, own in rows.groupby("source")} == known
    assert (rows["Dice"] == 1).all()
    page = (folders.output / "report" / "report.md").read_text()
    assert page.count("### Results by source dataset, each on its own cases") == 1
    assert page.count("### One network for many datasets, against the same one on this dataset alone") == 2
    found = verify_report(folders.output, folders.variables)
    assert found.contradictions == []
    assert "nobody annotated in a case, so it is not compared" in "\n".join(found.notes)
