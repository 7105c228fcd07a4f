"""What goes on working with files that 0.1.0 has written; see data/0.1.0/README.md."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, Sandbox

from nnunet_plugins.cli import main
from nnunet_plugins.submission.inference import main as predict

WRITTEN = ROOT / "tests" / "data" / "0.1.0"
DATASET = "Dataset001_Small"
TRAINER = "nnUNetTrainerAutofocusUNet_1epochs_1iterations"
STOPPED = "nnUNetTrainerAutofocusUNet_2epochs_2iterations"
STOCK = "nnUNetTrainer_1epochs_1iterations"


def model(sandbox: Sandbox, trainer: str) -> Path:
    return sandbox.results / DATASET / f"{trainer}__planned__3d_fullres"


@pytest.fixture(scope="module")
def old(small: Sandbox) -> Sandbox:
    """The folders of somebody who has worked with 0.1.0."""
    shutil.copytree(WRITTEN / "results", small.results, dirs_exist_ok=True)
    shutil.copytree(WRITTEN / "preprocessed", small.preprocessed, dirs_exist_ok=True)
    images = small.root / "images"
    images.mkdir()
    shutil.copy(small.raw / DATASET / "imagesTr" / "case_0_0000.nii.gz", images)
    return small


def assert_predicted_as_then(file: Path) -> None:
    """The network of then has the same labels, but for voxels in which two are as likely on another machine."""
    then = WRITTEN / "results" / DATASET / f"{TRAINER}__planned__3d_fullres" / "fold_0" / "validation" / "case_0.nii.gz"
    before, now = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (then, file))
    assert len(np.unique(before)) > 1
    assert (before == now).mean() > 0.99


@pytest.mark.slow
def test_a_training_goes_on_in_the_middle_of_its_epoch(old):
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", STOPPED, "-p", "planned", "-device", "cpu", "--c")
    said = old.run(*command)
    assert "Going on after iteration 2 of 2" in said
    assert "Epoch 1" in said
    assert "WARNING" not in said
    fold = model(old, STOPPED) / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold / "validation" / "summary.json").is_file()
    assert not (fold / "earlier_1").exists()


@pytest.mark.slow
def test_a_model_predicts_what_it_predicted(old, tmp_path):
    which = ("-d", 1, "-c", "3d_fullres", "-f", 0, "-p", "planned", "-tr", TRAINER)
    how = ("-device", "cpu", "-npp", 1, "-nps", 1)
    old.run("nnUNetv2_predict", "-i", old.root / "images", "-o", tmp_path, *which, *how)
    assert_predicted_as_then(tmp_path / "case_0.nii.gz")


@pytest.mark.slow
def test_a_model_is_exported(old, tmp_path):
    which = ("-d", 1, "-tr", TRAINER, "-p", "planned", "-f", 0)
    old.run("nnunet-plugins", "export-submission", *which, "--no-wheels", "-o", tmp_path / "submission")
    folders = ["-i", str(old.root / "images"), "-o", str(tmp_path / "predicted")]
    assert predict(folders, models=tmp_path / "submission" / "model") == 0
    assert_predicted_as_then(tmp_path / "predicted" / "case_0.nii.gz")


@pytest.mark.slow
def test_a_submission_predicts_what_its_model_predicted(old, tmp_path):
    folders = ["-i", str(old.root / "images"), "-o", str(tmp_path / "predicted")]
    assert predict(folders, models=WRITTEN / "submission" / "model") == 0
    assert_predicted_as_then(tmp_path / "predicted" / "case_0.nii.gz")


@pytest.mark.parametrize(
    ("trainer", "checkpoint"),
    [(STOPPED, "checkpoint_latest.pth"), (TRAINER, "checkpoint_final.pth"), (STOCK, "checkpoint_final.pth")],
)
def test_doctor_knows_a_checkpoint(trainer, checkpoint, capsys):
    file = WRITTEN / "results" / DATASET / f"{trainer}__planned__3d_fullres" / "fold_0" / checkpoint
    assert main(["doctor", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{trainer} on {DATASET}, 3d_fullres, fold 0" in said
    assert f"{trainer} is here" in said


@pytest.mark.slow
def test_a_model_starts_another_training(old):
    start = old.root / "start.pth"
    checkpoint = model(old, STOCK) / "fold_0" / "checkpoint_final.pth"
    old.run("nnunet-plugins", "warm-start", checkpoint, "-tr", TRAINER, "-o", start)
    name = f"{TRAINER}_NoMirroring"
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", name, "-p", "planned", "-device", "cpu")
    assert "Loading pretrained weights from file" in old.run(*command, "-pretrained_weights", start)


def test_a_record_is_reported(tmp_path, capsys):
    shutil.copytree(WRITTEN / "comparison", tmp_path, dirs_exist_ok=True)
    assert main(["report", str(tmp_path)]) == 0
    report = (tmp_path / "report" / "report.md").read_text()
    for name, dice in {"U-Net": "0.127", "AutofocusUNet": "0.111", "U-Net + AutofocusUNet": "0.275"}.items():
        assert any(name in row and dice in row for row in report.splitlines()), name
    capsys.readouterr()
    assert main(["report", "--verify", str(tmp_path)]) == 0
    assert "it is of version 0.1.0" in capsys.readouterr().out


@pytest.mark.slow
def test_trainings_of_a_benchmark_stand_and_all_else_is_made_again(old):
    shutil.copytree(WRITTEN / "comparison", old.root / "comparison")
    question = ("-d", 1, "-tr", STOCK, TRAINER, "-p", "planned", "-f", 0, "--device", "cpu", "-o", "comparison")
    said = old.run("nnunet-plugins", "benchmark", *question, "--dry-run").splitlines()
    tasks = {line.removesuffix(" (done)"): line.endswith(" (done)") for line in said if line.startswith("# ")}
    trainings = [done for task, done in tasks.items() if ": train " in task]
    assert trainings == [True, True]
    made_of_them = ("segmentations", "metrics", "best configuration")
    assert not any(done for task, done in tasks.items() if any(name in task for name in made_of_them))
