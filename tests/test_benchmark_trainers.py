"""Which trainers a benchmark refuses or leaves out before anything is trained, and what its rivals are called."""

import json
from pathlib import Path

import pytest
from report_records import make_record
from test_pretrained import HERE, description, plan

from nnunet_plugins.benchmark.driver import nnunet_folders
from nnunet_plugins.benchmark.protocol import Protocol
from nnunet_plugins.benchmark.trainers import rule_out
from nnunet_plugins.cli import main
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.trainers.compose import trainer_class

FIRENetTrainer = trainer_class("nnUNetTrainerFIRENet")

IGNORE = {"background": 0, "bone": 1, "ignore": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.fixture
def world(nnunet_folders) -> Path:
    """The folder of a dataset in nnUNet_preprocessed, of which there may be plans."""
    folder = nnunet_folders / "nnUNet_preprocessed" / HERE
    folder.mkdir()
    return folder


def benchmark(world: Path, capsys, *options: str, labels: dict = IGNORE) -> tuple[int, str, str]:
    """Return the code, the commands of a dry run with what stands before them, and the errors."""
    content = {**description(labels, 1), "regions_class_order": [1, 2]}
    (world / "dataset.json").write_text(json.dumps(content))
    fixed = ["-d", "101", "--device", "cpu", "-f", "0", "--dry-run", "-o", str(world / "out")]
    return main(["benchmark", *fixed, *options]), *capsys.readouterr()


@pytest.mark.parametrize("planned", [False, True])
def test_rivals_that_cannot_have_the_labels_are_left_out(world, capsys, planned):
    if planned:
        (world / "nnUNetPlans.json").write_text(json.dumps(plan(HERE, (64, 64, 64))))
    code, told, _ = benchmark(world, capsys, "-tr", "nnUNetTrainer_5epochs", "--with-rivals")
    assert code == 0
    for left_out in ("VNetPaper", "SegResNetPaper"):
        assert (
            f"No rival {left_out} on {HERE}, 3d_fullres: its loss, soft Dice alone, does not support datasets with an "
            "ignore label\n"
        ) in told
        assert f"nnUNetTrainer{left_out}_5epochs " not in told
    for left in ("UNet3D", "VNet", "SegResNet", "MedNeXtB", "MedNeXtBPaper"):
        assert f"-tr nnUNetTrainer{left}_5epochs " in told


def test_rivals_that_cannot_be_built_for_the_plans_are_left_out(world, capsys):
    (world / "nnUNetPlans.json").write_text(json.dumps(plan(HERE, (64, 64, 64), patch_size=[8, 8, 8])))
    code, told, _ = benchmark(world, capsys, "-tr", "nnUNetTrainer", "--with-rivals", labels={"background": 0, "a": 1})
    assert code == 0
    assert f"No rival UNet3D on {HERE}, 3d_fullres: " in told
    assert "-tr nnUNetTrainerUNet3D " not in told
    assert "-tr nnUNetTrainerSegResNet " in told


@pytest.mark.parametrize(
    ("trainer", "labels", "reason"),
    [
        ("nnUNetTrainerVNetPaper", IGNORE, "does not support datasets with an ignore label"),
        ("nnUNetTrainer_DiceLoss", IGNORE, "does not support datasets with an ignore label"),
        ("nnUNetTrainerDiceLoss", IGNORE, "does not support datasets with an ignore label"),
        ("nnUNetTrainerFIRENet_CELoss", REGIONS, "does not support datasets with regions"),
        ("nnUNetTrainerMetaSeg_DA5", IGNORE, "_DA5 does not support networks that are fitted to every image"),
    ],
)
def test_a_trainer_that_was_named_and_cannot_have_the_labels_is_refused(world, capsys, trainer, labels, reason):
    code, told, error = benchmark(world, capsys, "-tr", "nnUNetTrainer", trainer, "--with-rivals", labels=labels)
    assert (code, told) == (2, "")
    assert error.startswith(f"nnunet-plugins benchmark: {HERE}, 3d_fullres: {trainer}: ")
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--gpu-memory", "4")])
@pytest.mark.parametrize("planned", [False, True])
def test_a_trainer_that_was_named_and_cannot_take_the_plans_is_refused(world, capsys, planned, options):
    """Its dimension is known before there are plans."""
    if planned:
        (world / "nnUNetPlans.json").write_text(json.dumps(plan(HERE)))
    code, told, error = benchmark(world, capsys, "-tr", "nnUNetTrainer", "nnUNetTrainerFCN8s", *options)
    assert code == 2
    assert "nnUNetv2_train" not in told
    assert error == (
        f"nnunet-plugins benchmark: {HERE}, 3d_fullres: nnUNetTrainerFCN8s is a 2D network; use the configuration 2d\n"
    )


class Data(FIRENetTrainer):
    """A user's own, of ours: it looks at what no fake tensor has."""

    @classmethod
    def build_network_architecture(cls, *arguments):
        network = super().build_network_architecture(*arguments)
        assert next(network.parameters()).sum().item() is not None
        return network


def test_what_fake_tensors_cannot_compute_rules_nobody_out(world, monkeypatch):
    (world / "nnUNetPlans.json").write_text(json.dumps(plan(HERE)))
    (world / "dataset.json").write_text(json.dumps(description({"background": 0, "a": 1}, 1)))
    monkeypatch.setattr("nnunet_plugins.planning.setting.find_trainer", lambda _: Data)
    question = Protocol((HERE,), ("3d_fullres",), ("nnUNetTrainerData",))
    assert rule_out(question, nnunet_folders(world / "out")) == question


def test_plans_that_are_made_on_the_way_rule_out_as_well(world, capsys):
    question = Protocol((HERE,), ("3d_fullres",), ("nnUNetTrainer",), with_rivals=True)
    (world / "dataset.json").write_text(json.dumps(description({"background": 0, "a": 1}, 1)))
    folders = nnunet_folders(world / "out")
    before = rule_out(question, folders)
    assert before == question
    (world / "nnUNetPlans.json").write_text(json.dumps(plan(HERE, (64, 64, 64), patch_size=[8, 8, 8])))
    after = rule_out(before, folders)
    assert rule_out(after, folders) == after
    (place, reason) = next((one[:3], one[3]) for one in after.ruled_out if one[2] == "nnUNetTrainerUNet3D")
    assert place == (HERE, "3d_fullres", "nnUNetTrainerUNet3D")
    assert reason
    assert ";" not in reason


def test_the_report_says_who_was_ruled_out():
    record = make_record(algorithms=2, cases=6, labels=1, folds=1, epochs=1)
    dataset, configuration = record.results[["dataset", "configuration"]].iloc[0]
    why = {"trainer": "nnUNetTrainerVNetPaper", "reason": "its loss does not support an ignore label"}
    record.about["ruled_out"] = [
        {"dataset": dataset, "configuration": configuration, **why},
        {"dataset": "o", "configuration": "o", **why},
    ]
    said = [line for line in caveats(analyse(record).comparisons[0]) if "VNetPaper" in line]
    assert said == ["Not trained here: nnUNetTrainerVNetPaper: its loss does not support an ignore label."]


@pytest.mark.parametrize(
    ("baseline", "same", "paper"),
    [
        ("nnUNetTrainer_CELoss_5epochs", "_CELoss_5epochs", "_5epochs"),
        ("nnUNetTrainer_5epochs_Adam_NoMirroring", "_5epochs_Adam_NoMirroring", "_5epochs_NoMirroring"),
        ("nnUNetTrainer_20percentCELoss_DA5", "_20percentCELoss_DA5", "_DA5"),
    ],
)
def test_a_papers_recipe_keeps_its_loss_and_its_optimizer(baseline, same, paper):
    question = Protocol((HERE,), ("3d_fullres",), (baseline,), with_rivals=True)
    rivals = [run.trainer for run in question.runs() if run.role == "rival"]
    assert f"nnUNetTrainerVNet{same}" in rivals
    assert {f"nnUNetTrainer{name}Paper{paper}" for name in ("VNet", "SegResNet", "MedNeXtB")} == {
        rival for rival in rivals if "Paper" in rival
    }


@pytest.mark.parametrize(
    ("baseline", "remedy"),
    [
        ("nnUNetTrainer_onlyMirror01", "nnUNetTrainer as well, which is the baseline then"),
        ("nnUNetTrainerVanillaAdam", "nnUNetTrainer as well, which is the baseline then"),
        ("nnUNetTrainerBN", "nnUNetTrainer as well, which is the baseline then"),
        ("nnUNetTrainerDA5", "nnUNetTrainer_DA5 in its place"),
        ("nnUNetTrainerDA5_10epochs", "nnUNetTrainer_DA5_10epochs in its place"),
        ("nnUNetTrainerCELoss_5epochs", "nnUNetTrainer_CELoss_5epochs in its place"),
    ],
)
def test_a_baseline_whose_recipe_the_rivals_cannot_have(world, capsys, baseline, remedy):
    code, told, error = benchmark(world, capsys, "-tr", baseline, "nnUNetTrainerFIRENet", "--with-rivals")
    assert (code, told.count("-tr")) == (2, 0)
    assert error == (
        f"nnunet-plugins benchmark: --with-rivals gives the rivals the baseline's modifiers, and {baseline} has other "
        f"changes than those; name {remedy}\n"
    )


def test_a_misspelt_baseline_is_the_users(world, capsys):
    code, _, error = benchmark(world, capsys, "-tr", "nnUNetTrainer_DA7", "--with-rivals")
    assert code == 2
    assert "no trainer 'nnUNetTrainer_DA7'" in error
