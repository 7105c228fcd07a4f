"""The networks train, validate and predict on every kind of plan that nnU-Net makes."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.cli import main
from nnunet_plugins.forecast import COMFORTABLE, GIB
from nnunet_plugins.planning.fit import fit_configuration, fit_plans
from nnunet_plugins.planning.setting import plan_setting
from nnunet_plugins.planning.stages import plan_stages
from nnunet_plugins.trainers.compose import trainer_class

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerFIRENet_2epochs_2iterations"


@pytest.mark.parametrize(("backbone", "share"), [("FIRENet", 0.99), ("AutofocusUNet", 0.95), ("ASPP3DUNet", 0.7)])
def test_plans_made_to_fit_train(small, backbone, share, monkeypatch):
    """What `nnunet-plugins plan` writes is smaller, has other stages, and stock training takes it."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    trainer, name = f"nnUNetTrainer{backbone}_1epochs_1iterations_NoMirroring", f"fit_{backbone}"
    setting = plan_setting("Dataset001_Small", "3d_fullres", "small")
    before, _ = fit_configuration(trainer_class(trainer), setting, budget=math.inf, autocast=False)
    memory = share * before.needed / GIB / COMFORTABLE
    fitted = fit_plans("1", trainer, memory, configurations=["3d_fullres"], like="small", name=name, autocast=False)
    _, after = fitted.sizes["3d_fullres"]
    assert after.needed < before.needed
    assert after.patch < before.patch
    old, new = (plan_setting("Dataset001_Small", "3d_fullres", plans).configuration for plans in ("small", name))
    assert plan_stages(new.spacing, new.patch_size).strides == tuple(map(tuple, new.pool_op_kernel_sizes))
    assert (new.pool_op_kernel_sizes == old.pool_op_kernel_sizes) == (
        backbone in ("FIRENet", "ASPP3DUNet")
    )  # too small for others
    small.train("Dataset001_Small", "3d_fullres", trainer, plans=name)


def test_patch_too_small_fails_before_training(small):
    def tiny(configurations: dict) -> None:
        configurations["3d_fullres"]["patch_size"] = [2, 16, 16]

    small.edit_plans("Dataset001_Small", "tiny", tiny)
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", TRAINER, "-p", "tiny", "-device", "cpu")
    output = small.run(*command, ok=False)
    last = output.strip().splitlines()[-1]
    assert last.startswith("ValueError: FIRENet: an image of 2x16x16 voxels is too small")
    assert "axis 0 has 2 and needs at least 4. Use a larger patch size in the plans file." in last
    assert "Epoch 0" not in output


def test_plans_that_cover_train_and_have_an_atlas(small, monkeypatch, capsys):
    """They train the stock U-Net on the same data, and the atlas of its training labels has its validation."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    assert main(["plan", "-d", "1", "--cover", "--like", "small", "--name", "covering"]) == 0
    assert "nnUNetv2_preprocess" not in capsys.readouterr().out  # the data are those of 3d_fullres
    network = small.train("Dataset001_Small", "3d_cover", "nnUNetTrainer_1epochs_1iterations", plans="covering")
    place, output = ("-d", "1", "-c", "3d_cover", "-p", "covering"), small.root / "atlas"
    command = ["evaluate", "--atlas", *place, "-o", str(output), "-np", "1"]
    assert main(command) == 0
    told = capsys.readouterr().out
    summary = json.loads((output / "summary.json").read_text())
    assert f"Mean Dice of the atlas, over 1 cases: {summary['foreground_mean']['Dice']:.4f}" in told
    assert summary.keys() == network.keys()
    assert [case["reference_file"] for case in summary["metric_per_case"]] == [
        case["reference_file"] for case in network["metric_per_case"]
    ]
    (split, *_) = json.loads((small.preprocessed / "Dataset001_Small" / "splits_final.json").read_text())
    truths = small.raw / "Dataset001_Small" / "labelsTr"
    votes = np.stack(
        [sitk.GetArrayFromImage(sitk.ReadImage(str(truths / f"{case}.nii.gz"))) for case in split["train"]]
    )
    majority = np.stack([(votes == label).sum(0) for label in range(3)]).argmax(0)
    (case,) = split["val"]
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(output / f"{case}.nii.gz"))) == majority).all()
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(truths / f"{case}.nii.gz")))
    for label in (1, 2):
        overlap = (
            2 * ((truth == label) & (majority == label)).sum() / ((truth == label).sum() + (majority == label).sum())
        )
        assert summary["mean"][str(label)]["Dice"] == pytest.approx(overlap)
        assert f"{label}: mean Dice {overlap:.4f}" in told
    # Again, of another fold, and what else lies there stays.
    assert main([*command, "-f", "1"]) == 2
    assert "exists already" in capsys.readouterr().err
    (output / "notes.txt").touch()
    assert main([*command, "-f", "1", "--overwrite"]) == 0
    (other,) = {file.name for file in output.glob("*.nii.gz")}
    assert other != f"{case}.nii.gz"
    assert (output / "notes.txt").is_file()
