"""Train, predict, ensemble, export, import and resume with nnU-Net's own commands, on a small dataset."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import Sandbox, kill_when

pytestmark = pytest.mark.slow

STOCK, FIRENET = "nnUNetTrainer_2epochs_3iterations", "nnUNetTrainerFIRENet_3epochs_3iterations"
TRAINERS = [STOCK, FIRENET]
DATASET = "Dataset001_Small"


def train(sandbox: Sandbox, trainer: str, *more: object, **options: object) -> str:
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu", *more)
    return sandbox.run(*command, **options)


def predict(sandbox: Sandbox, trainer: str, output: Path) -> dict[str, bytes]:
    return sandbox.predict(1, "3d_fullres", trainer, output, "--save_probabilities")


def fold(sandbox: Sandbox, trainer: str) -> Path:
    return sandbox.results / DATASET / f"{trainer}__small__3d_fullres" / "fold_0"


@pytest.fixture(scope="module")
def trained(small: Sandbox) -> Sandbox:
    for trainer in TRAINERS:
        train(small, trainer, "--npz")
    return small


@pytest.fixture(scope="module")
def predicted(trained: Sandbox) -> dict[str, dict[str, bytes]]:
    return {trainer: predict(trained, trainer, trained.root / trainer) for trainer in TRAINERS}


def log_of(sandbox: Sandbox, trainer: str) -> str:
    return "".join(path.read_text() for path in sorted(fold(sandbox, trainer).glob("training_log_*.txt")))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_training_ends_with_a_validation(trained, trainer):
    summary = json.loads((fold(trained, trainer) / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    assert len(summary["metric_per_case"]) == 1
    checkpoint = torch.load(fold(trained, trainer) / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == trainer
    assert checkpoint["inference_allowed_mirroring_axes"] == (0, 1, 2)


def test_the_log_tells_the_stages_and_ends_with_the_fabric(trained):
    log = log_of(trained, FIRENET)
    stages = re.findall(r"FIRENet training stage (\d) of 3 from epoch (\d)", log)
    assert stages == [("1", "0"), ("2", "1"), ("3", "2")]
    described = re.search(r"Dense residual fabric: 3 branches x 4 cells, 37 gated edges\n(.*\n)*  output +64", log)
    assert described


def test_predicts_every_test_case(predicted):
    for predictions in predicted.values():
        assert list(predictions) == ["case_5.nii.gz", "case_6.nii.gz"]


def test_ensembles_and_evaluates(trained, predicted):
    output = trained.root / "ensemble"
    trained.run("nnUNetv2_ensemble", "-i", *(trained.root / trainer for trainer in TRAINERS), "-o", output, "-np", 1)
    model = fold(trained, FIRENET).parent
    trained.run(
        *("nnUNetv2_evaluate_folder", trained.raw / DATASET / "labelsTs", output, "-np", 1),
        *("-djfile", model / "dataset.json", "-pfile", model / "plans.json"),
    )
    summary = json.loads((output / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert set(summary["mean"]) == {"1", "2"}


def test_unknown_trainer_fails_as_nnunet_fails_plus_one_line(small):
    output = train(small, "nnUNetTrainerFIRENet_5epoch", ok=False)
    assert "Could not find requested nnunet trainer nnUNetTrainerFIRENet_5epoch" in output
    hints = [line for line in output.splitlines() if line.startswith("nnunet_plugins:")]
    assert len(hints) == 1
    assert "'nnUNetTrainerFIRENet_5epochs'" in hints[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_gpu_is_one_clear_error(small):
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", "nnUNetTrainerFIRENet", "-p", "small")
    last = small.run(*command, ok=False).strip().splitlines()[-1]
    assert "'-device cuda' was asked for" in last
    assert "'-device cpu'" in last


def test_killed_training_goes_on_in_the_right_stage(small):
    """60 epochs: stage 2 is epochs 2 and 3, and a checkpoint is written every 3 epochs, so it resumes in its middle."""
    trainer = "nnUNetTrainerFIRENet_60epochs_1iterations"
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu", "--c")
    first = kill_when(small, r"Epoch 3\b", *command)
    assert re.findall(r"stage (\d) of 3 from epoch (\d)", first) == [("1", "0"), ("2", "2")]
    second = kill_when(small, r"Epoch 4\b", *command)
    assert re.findall(r"stage (\d) of 3 from epoch (\d)", second) == [("2", "3"), ("3", "4")]
    assert re.findall(r": Epoch (\d+)", second) == ["3", "4"]
