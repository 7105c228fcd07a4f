"""The networks train, validate and predict on every kind of plan that nnU-Net makes."""

import json
import math

import pytest
from conftest import write_dataset

from nnunet_plugins.planning.fit import fit_configuration, fit_plans
from nnunet_plugins.planning.forecast import COMFORTABLE, GIB
from nnunet_plugins.planning.setting import plan_setting
from nnunet_plugins.trainers.compose import trainer_class

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerFIRENet_2epochs_2iterations"


def test_2d(small):
    summary = small.train("Dataset001_Small", "2d", TRAINER)
    assert set(summary["mean"]) == {"1", "2"}


def test_2d_without_the_fabric(small):
    small.train("Dataset001_Small", "2d", "nnUNetTrainerFIRENetNoFabric_1epochs_1iterations")


def test_the_papers_recipe(small):
    small.train("Dataset001_Small", "3d_fullres", "nnUNetTrainerFIRENetPaper_2epochs_2iterations")


@pytest.fixture(scope="module")
def resenc(small) -> str:
    """The name of residual encoder plans for the small dataset, batch size 2."""
    small.run("nnUNetv2_plan_experiment", "-d", 1, "-pl", "nnUNetPlannerResEncM", nnUNet_n_proc_DA="1")
    plans = json.loads((small.preprocessed / "Dataset001_Small" / "nnUNetResEncUNetMPlans.json").read_text())
    plans["plans_name"] = "resenc"
    plans["configurations"]["3d_fullres"]["batch_size"] = 2
    (small.preprocessed / "Dataset001_Small" / "resenc.json").write_text(json.dumps(plans))
    assert "ResidualEncoderUNet" in plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"]
    return "resenc"


@pytest.mark.parametrize("backbone", ["FIRENet", "AutofocusUNet", "ASPP3DUNet"])
def test_residual_encoder_plans(small, resenc, backbone):
    small.train("Dataset001_Small", "3d_fullres", f"nnUNetTrainer{backbone}_1epochs_2iterations", plans=resenc)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("backbone", ["AFN4", "AutofocusUNet", "ASPP3DUNet"])
def test_trains_and_predicts(small, backbone, configuration):
    trainer = f"nnUNetTrainer{backbone}_1epochs_2iterations"
    summary = small.train("Dataset001_Small", configuration, trainer)
    assert set(summary["mean"]) == {"1", "2"}
    output = small.root / f"{backbone}_{configuration}"
    predicted = small.predict(1, configuration, trainer, output, "--disable_tta")
    assert sorted(predicted) == sorted(path.name for path in (small.raw / "Dataset001_Small" / "labelsTs").iterdir())


@pytest.mark.parametrize("backbone", ["FIRENet", "AFN6", "AutofocusUNet", "ASPP3DUNet"])
def test_plans_made_to_fit_train(small, backbone, monkeypatch):
    """What `nnunet-plugins plan` writes is smaller than before, and stock training takes it."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    trainer, name = f"nnUNetTrainer{backbone}_1epochs_1iterations", f"fit_{backbone}"
    setting = plan_setting("Dataset001_Small", "3d_fullres", "small")
    before, _ = fit_configuration(trainer_class(trainer), setting, budget=math.inf, autocast=False)
    memory = 0.97 * before.needed / GIB / COMFORTABLE
    fitted = fit_plans("1", trainer, memory, configurations=["3d_fullres"], like="small", name=name, autocast=False)
    _, after = fitted.sizes["3d_fullres"]
    assert after.needed < before.needed
    assert after.patch < before.patch
    small.train("Dataset001_Small", "3d_fullres", trainer, plans=name)


def test_the_autofocus_papers_recipe(small):
    small.train("Dataset001_Small", "3d_fullres", "nnUNetTrainerAFN2Paper_2epochs_2iterations")


def test_anisotropic_plan(sandbox):
    dataset = "Dataset002_Anisotropic"
    write_dataset(sandbox.raw, dataset, shape=(8, 40, 36), spacing=(5.0, 1.0, 1.0), channels=2)
    sandbox.prepare(2, "3d_fullres")

    def check(configurations: dict) -> None:
        arch = configurations["3d_fullres"]["architecture"]["arch_kwargs"]
        assert arch["strides"][1] == [1, 2, 2]
        assert arch["kernel_sizes"][0] == [1, 3, 3]

    sandbox.edit_plans(dataset, "small", check)
    sandbox.train(dataset, "3d_fullres", TRAINER)


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
