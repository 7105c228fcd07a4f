"""Which folds a benchmark trains, on which cases, and what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnunet_plugins.benchmark.command import environment
from nnunet_plugins.benchmark.done import CHECKS, splits_are_made
from nnunet_plugins.benchmark.driver import nnunet_folders
from nnunet_plugins.benchmark.engine import _order
from nnunet_plugins.benchmark.folds import find_groups
from nnunet_plugins.benchmark.protocol import Protocol
from nnunet_plugins.benchmark.tasks import training_tasks
from nnunet_plugins.cli import main
from nnunet_plugins.planning.splits import same_folds

A, B = "Dataset001_A", "Dataset002_B"


def world(tmp_path, monkeypatch, splits: dict[str, int], cases: int = 12) -> Path:
    """Datasets as preprocessing leaves them, as far as folds go; their splits have so many folds, or there are none."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    names = [f"c{number:02d}" for number in range(cases)]
    for dataset, folds in splits.items():
        folder = tmp_path / "nnUNet_preprocessed" / dataset
        (folder / "gt_segmentations").mkdir(parents=True)
        (folder / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
        for name in names:
            (folder / "gt_segmentations" / f"{name}.nii.gz").touch()
        if folds:  # less than none: a file without any
            content = [{"train": names, "val": names[part::folds]} for part in range(folds)]
            (folder / "splits_final.json").write_text(json.dumps(content))
    return tmp_path / "out"


def trained(output: Path, capsys, datasets: Sequence[str], *options: str) -> list[int]:
    """The folds that a benchmark would train, from the commands that it shows."""
    question = ["-d", *datasets, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]
    assert main(["benchmark", *question, "--dry-run", *options]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("nnUNetv2_train ")]
    return sorted({int(line[3]) for line in lines})


@pytest.mark.parametrize(
    ("splits", "options", "folds"),
    [
        ({A: 0}, [], range(5)),
        ({A: 0}, ["--folds", "3"], range(3)),
        ({A: 0}, ["--folds", "10"], range(10)),
        ({A: 0}, ["--folds", "10", "-f", "0", "9"], [0, 9]),
        ({A: 3}, [], range(3)),
        ({A: 7}, ["--folds", "7"], range(7)),
        ({A: 7}, ["-f", "6"], [6]),
        ({A: 3, B: 0}, [], range(3)),
        ({A: 3, B: 4}, ["-f", "0", "2"], [0, 2]),
    ],
)
def test_the_folds_are_those_of_the_splits(tmp_path, monkeypatch, capsys, splits, options, folds):
    output = world(tmp_path, monkeypatch, splits)
    assert trained(output, capsys, list(splits), *options) == list(folds)


@pytest.mark.parametrize(
    ("splits", "options", "said"),
    [
        (
            {A: 3},
            ["--folds", "5"],
            f"splits_final.json has 3 folds; leave --folds out, or make other splits: MEND{A} --fo",
        ),
        ({A: 5}, ["--folds", "3", "-f", "0", "1"], "splits_final.json has 5 folds; leave --folds out, or make other"),
        (
            {A: 3, B: 4},
            [],
            f"split into 3 folds, {B} into 4; name folds that both have, -f 0 1 2, or make other splits: ",
        ),
        (
            {A: 3, B: 4},
            ["-f", "3"],
            f"name folds that both have, -f 0 1 2, or make other splits: MEND{B} --folds 3 --ov",
        ),
        ({A: 1, B: 3}, [], f"name folds that both have, -f 0, or make other splits: MEND{A} --folds 3 --overwrite"),
        ({A: 20, B: 3}, [], f"-f 0 1 2, or make other splits: MEND{A} --folds 3 --overwrite"),  # of 12 cases
        ({A: 3}, ["--folds", "20"], "splits_final.json has 3 folds; leave --folds out"),
        ({A: 3}, ["-f", "3"], f"fold 3 does not exist: {A} is split into 3 folds; -f 0 1 2 are all of them"),
        (
            {A: -1},
            [],
            f"splits_final.json holds no fold; remove it, or make other splits: MEND{A} --folds 5 --overwrite",
        ),
        ({A: 0}, ["-f", "7"], f"fold 7 does not exist: {A} is split into 5 folds; give --folds 8 for more"),
        ({A: 0}, ["--folds", "20"], f"{A} has 12 cases, too few for 20 folds; give --folds 12"),
    ],
)
def test_folds_that_cannot_be_are_refused_with_what_mends_it(tmp_path, monkeypatch, capsys, splits, options, said):
    output = world(tmp_path, monkeypatch, splits)
    question = ["benchmark", "-d", *splits, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output), *options]
    assert main(question) == 2
    message = capsys.readouterr().err.strip()
    assert said.replace("MEND", "nnunet-plugins split -d ") in message
    assert ("make other splits" in message) == ("make other" in said)
    if "MEND" in said:
        assert main(message.rpartition("nnunet-plugins ")[2].split()) == 0
        capsys.readouterr()
        if "-f" not in options:
            trained(output, capsys, list(splits), *options)


def test_fewer_groups_than_folds_are_refused_before_anything_is_preprocessed(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 0})
    table = tmp_path / "groups.csv"
    table.write_text("case,group\nother,9\n" + "".join(f"c{number:02d},{number % 4}\n" for number in range(12)))
    question = ["benchmark", "-d", A, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]
    assert main([*question, "--groups", str(table)]) == 2
    assert f"{A} has 4 groups, too few for 5 folds; give --folds 4" in capsys.readouterr().err
    assert trained(output, capsys, [A], "--groups", str(table), "--folds", "4") == list(range(4))


def test_a_table_that_lacks_cases_is_refused_before_anything_is_preprocessed(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 0})
    table = tmp_path / "groups.csv"
    table.write_text("case,group\nc00,a\nc01,b\n")
    question = ["benchmark", "-d", A, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]
    assert main([*question, "--groups", str(table)]) == 2
    assert f"{table} names no group for 10 of 12 cases of {A}, first of all c02; each" in capsys.readouterr().err


def test_splits_that_tear_groups_apart_are_refused_with_what_mends_it(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 4})
    table = tmp_path / "groups.csv"
    table.write_text("".join(["case,group\n", *(f"c{number:02d},{number // 3}\n" for number in range(12))]))
    question = ["benchmark", "-d", A, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output), "--dry-run"]
    question += ["--groups", str(table)]
    assert main(question) == 2
    said = capsys.readouterr().err.strip()
    assert f"the folds of {A} tear groups of {table} apart, first of all 0 (4 such)" in said
    assert main(said.partition("is trained: nnunet-plugins ")[2].split()) == 0
    assert main(question) == 0


def test_each_dataset_has_its_own_groups(tmp_path, monkeypatch, capsys):
    """A dataset without a table of its own has nnU-Net's splits; without any table nothing is begun."""
    output = world(tmp_path, monkeypatch, {A: 0, B: 0})
    question = ["benchmark", "-d", A, B, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output), "--dry-run"]
    assert main([*question, "--groups"]) == 2
    assert f"nnUNet_raw/{A}/groups.csv is missing" in capsys.readouterr().err
    table = tmp_path / "nnUNet_raw" / B / "groups.csv"
    table.parent.mkdir(parents=True)
    table.write_text("".join(["case,group\n", *(f"c{number:02d},{number % 6}\n" for number in range(12))]))
    assert main([*question, "--groups"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nnunet-plugins split")]
    assert lines == [
        f"nnunet-plugins split -d {A} --folds 5",
        f"nnunet-plugins split -d {B} --groups {table} --folds 5",
    ]


@pytest.mark.parametrize("owner", [A, B])
def test_a_twin_has_the_groups_of_its_dataset_or_its_own_copy(tmp_path, monkeypatch, owner):
    """The copy, where the twin was taken to a machine without its dataset."""
    output = world(tmp_path, monkeypatch, {B: 0})
    (tmp_path / "nnUNet_preprocessed" / B / "dataset.json").write_text(
        json.dumps({"file_ending": ".nii.gz", "nnunet_plugins_fixed_size": {"dataset": A, "size": [8, 8, 8]}})
    )
    table = tmp_path / "nnUNet_raw" / owner / "groups.csv"
    table.parent.mkdir(parents=True)
    table.write_text("".join(["case,group\n", *(f"c{number:02d},{number % 6}\n" for number in range(12))]))
    assert find_groups("", [B], nnunet_folders(output)) == {B: str(table)}


def test_a_dataset_whose_truths_were_copied_in_part_is_not_preprocessed(tmp_path, monkeypatch):
    """nnU-Net copies them last, one by one; an end there would leave a part of the cases, of which all is then made."""
    world(tmp_path, monkeypatch, {A: 0}, cases=3)
    folder, raw = tmp_path / "nnUNet_preprocessed" / A, tmp_path / "nnUNet_raw" / A
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    plans = {"configurations": {"3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"}}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset_fingerprint.json").write_text("{}")
    for number in range(3):
        (raw / "imagesTr" / f"c{number:02d}_0000.nii.gz").touch()
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / "nnUNetPlans_3d_fullres" / f"c{number:02d}{ending}").touch()
    assert CHECKS["preprocessed"](str(folder), "nnUNetPlans", ["3d_fullres"])
    (folder / "gt_segmentations" / "c02.nii.gz").unlink()
    assert not CHECKS["preprocessed"](str(folder), "nnUNetPlans", ["3d_fullres"])


def test_splits_that_tear_groups_apart_are_not_taken_for_those_that_were_asked_for(tmp_path, monkeypatch):
    """Else images of one patient would be trained on and validated on."""
    world(tmp_path, monkeypatch, {A: 0})
    table, file = tmp_path / "groups.csv", tmp_path / "nnUNet_preprocessed" / A / "splits_final.json"
    names = [f"c{number:02d}" for number in range(12)]
    folds = [{"train": [n for n in names if n not in names[part::3]], "val": names[part::3]} for part in range(3)]
    file.write_text(json.dumps(folds))
    for divisor, kept in ((3, True), (6, True), (4, False)):
        rows = [f"{name},{number % divisor}\n" for number, name in enumerate(names)]
        table.write_text("".join(["case,group\n", *rows]))
        assert splits_are_made(str(file), str(table), 3) is kept
    assert splits_are_made(str(file), None, 3)


def test_one_case_is_refused_before_anything_is_preprocessed(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 0}, cases=1)
    assert main(["benchmark", "-d", A, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]) == 2
    assert f"{A} has 1 case, which cannot be split" in capsys.readouterr().err
    assert not output.exists()


def test_splits_with_a_case_that_has_left_the_dataset_are_refused(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 5})
    folder = tmp_path / "nnUNet_preprocessed" / A
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    for number in range(11):
        (folder / "nnUNetPlans_3d_fullres" / f"c{number:02d}.pkl").touch()
    assert main(["benchmark", "-d", A, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]) == 2
    message = capsys.readouterr().err.strip()
    assert "names c11, which the dataset does not have" in message
    assert main(message.rpartition("nnunet-plugins ")[2].split()) == 0
    capsys.readouterr()
    assert trained(output, capsys, [A]) == list(range(5))


TWIN = "Dataset101_AClipped"


def make_twin(tmp_path, kind="nnunet_plugins_preparation"):
    about = {"dataset": A, "size": [8, 8, 8]} if "size" in kind else {"dataset": A}
    file = tmp_path / "nnUNet_preprocessed" / TWIN / "dataset.json"
    file.write_text(json.dumps({"file_ending": ".nii.gz", kind: about}))


def splits_of(output, capsys, datasets, *options) -> dict[str, list[str]]:
    """The commands that make splits, in their order, by dataset."""
    question = ["-d", *datasets, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]
    assert main(["benchmark", *question, "--dry-run", *options]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("nnunet-plugins split ")]
    return {line[3]: line[4:] for line in lines}


@pytest.mark.parametrize("kind", ["nnunet_plugins_preparation", "nnunet_plugins_fixed_size"])
@pytest.mark.parametrize(
    ("splits", "datasets", "commands"),
    [
        ({A: 0, TWIN: 0}, [TWIN, A], {A: ["--folds", "5"], TWIN: ["--like", A]}),
        ({A: 3, TWIN: 0}, [A, TWIN], {A: ["--folds", "3"], TWIN: ["--like", A]}),
        ({A: 0, TWIN: 3}, [A, TWIN], {TWIN: ["--folds", "3"], A: ["--like", TWIN]}),
        ({A: 3, TWIN: 0}, [TWIN], {TWIN: ["--like", A]}),
        ({A: 0, TWIN: 0}, [TWIN], {TWIN: ["--folds", "5"]}),
    ],
)
def test_a_twin_and_its_dataset_have_the_same_folds(tmp_path, monkeypatch, capsys, splits, datasets, commands, kind):
    output = world(tmp_path, monkeypatch, splits)
    make_twin(tmp_path, kind)
    found = splits_of(output, capsys, datasets)
    assert list(found.items()) == list(commands.items())
    number = max(splits.values()) or 5
    assert trained(output, capsys, datasets) == list(range(number))
    for dataset, options in found.items():
        assert splits[dataset] or main(["split", "-d", dataset, *options]) == 0
    files = [tmp_path / "nnUNet_preprocessed" / dataset / "splits_final.json" for dataset in datasets]
    for file in files:
        content = json.loads(file.read_text())
        assert len(content) == number
        assert same_folds(content, json.loads(files[0].read_text()))


def test_a_twin_takes_folds_that_leave_cases_out(tmp_path, monkeypatch, capsys):
    world(tmp_path, monkeypatch, {A: 0, TWIN: 0}, cases=4)
    make_twin(tmp_path)
    own, file = (tmp_path / "nnUNet_preprocessed" / name / "splits_final.json" for name in (A, TWIN))
    assert main(["split", "-d", TWIN, "--like", A]) == 2
    command = capsys.readouterr().err.strip().rpartition("make it first: nnunet-plugins ")[2]
    assert command == f"split -d {A} --folds 4"
    assert main(command.split()) == 0
    folds = [{"train": ["c00"], "val": ["c01"]}, {"train": ["c01"], "val": ["c00"]}]
    own.write_text(json.dumps(folds))
    assert main(["split", "-d", TWIN, "--like", A]) == 0
    assert json.loads(file.read_text()) == folds
    own.write_text(json.dumps([{"train": ["c00"], "val": ["c09"]}]))
    assert main(["split", "-d", TWIN, "--like", A, "--overwrite"]) == 2
    assert "do not have the same cases, see c09 (1 such); make the twin anew" in capsys.readouterr().err


def test_a_twin_alone_keeps_groups_together_whatever_its_dataset_does(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 3, TWIN: 0})
    make_twin(tmp_path)
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"c{number:02d},{number // 2}\n" for number in range(12)))
    found = splits_of(output, capsys, [TWIN], "--groups", str(table))
    assert found == {TWIN: ["--groups", str(table), "--folds", "5"]}


def test_a_twin_with_other_folds_is_refused_with_what_mends_it(tmp_path, monkeypatch, capsys):
    output = world(tmp_path, monkeypatch, {A: 3, TWIN: 3})
    make_twin(tmp_path)
    file = tmp_path / "nnUNet_preprocessed" / TWIN / "splits_final.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    assert trained(output, capsys, [TWIN]) == [0, 1, 2], "alone it may have its own"
    assert main(["benchmark", "-d", A, TWIN, "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(output)]) == 2
    message = capsys.readouterr().err.strip()
    assert f"{TWIN} has other folds than {A}" in message
    assert main(message.rpartition("nnunet-plugins ")[2].split()) == 0
    capsys.readouterr()
    assert trained(output, capsys, [A, TWIN]) == [0, 1, 2]


def test_planning_gets_a_thread_where_training_loads_without_processes(tmp_path, monkeypatch, capsys):
    """nnU-Net's planner fails with nnUNet_n_proc_DA=0."""
    output = world(tmp_path, monkeypatch, {A: 0})
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folders = nnunet_folders(output)
    tasks = training_tasks(Protocol((A,), ("2d",), ("nnUNetTrainer",), folds=(0,)), folders)
    variables = {task.command[0]: _order(task, output, environment(1), "cpu").variables for task in tasks}
    assert variables["nnUNetv2_plan_and_preprocess"]["nnUNet_n_proc_DA"] == "1"
    assert variables["nnUNetv2_train"]["nnUNet_n_proc_DA"] == "0"
