"""FIRENet trains and validates on every kind of plan and of labels that nnU-Net offers."""

import json

import pytest
from conftest import Sandbox, write_dataset

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerFIRENet_2epochs_2iterations"


def train(sandbox: Sandbox, dataset: str, configuration: str, plans: str = "small", trainer: str = TRAINER) -> dict:
    """Train two short epochs with validation; returns the validation's summary."""
    sandbox.run("nnUNetv2_train", dataset, configuration, 0, "-tr", trainer, "-p", plans, "-device", "cpu")
    folder = sandbox.results / dataset / f"{trainer}__{plans}__{configuration}" / "fold_0"
    return json.loads((folder / "validation" / "summary.json").read_text())


def test_2d(small):
    summary = train(small, "Dataset001_Small", "2d")
    assert set(summary["mean"]) == {"1", "2"}


def test_2d_without_the_fabric(small):
    train(small, "Dataset001_Small", "2d", trainer="nnUNetTrainerFIRENetNoFabric_1epochs_1iterations")


def test_the_papers_recipe(small):
    train(small, "Dataset001_Small", "3d_fullres", trainer="nnUNetTrainerFIRENetPaper_2epochs_2iterations")


def test_residual_encoder_plans(small):
    small.run("nnUNetv2_plan_experiment", "-d", 1, "-pl", "nnUNetPlannerResEncM", nnUNet_n_proc_DA="1")
    plans = json.loads((small.preprocessed / "Dataset001_Small" / "nnUNetResEncUNetMPlans.json").read_text())
    plans["plans_name"] = "resenc"
    plans["configurations"]["3d_fullres"]["batch_size"] = 2
    (small.preprocessed / "Dataset001_Small" / "resenc.json").write_text(json.dumps(plans))
    assert "ResidualEncoderUNet" in plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"]
    train(small, "Dataset001_Small", "3d_fullres", plans="resenc")


def test_anisotropic_plan(sandbox):
    dataset = "Dataset002_Anisotropic"
    write_dataset(sandbox.raw, dataset, shape=(8, 40, 36), spacing=(5.0, 1.0, 1.0), channels=2)
    sandbox.prepare(2, "3d_fullres")

    def batch_of_two(configurations: dict) -> None:
        configurations["3d_fullres"]["batch_size"] = 2
        arch = configurations["3d_fullres"]["architecture"]["arch_kwargs"]
        assert arch["strides"][1] == [1, 2, 2]
        assert arch["kernel_sizes"][0] == [1, 3, 3]

    sandbox.edit_plans(dataset, "small", batch_of_two)
    train(sandbox, dataset, "3d_fullres")


def batch_of_two(configurations: dict) -> None:
    configurations["3d_fullres"]["batch_size"] = 2


@pytest.mark.parametrize("ignore_slices", [0, 6], ids=["regions", "regions with an ignore label"])
def test_regions(sandbox, ignore_slices):
    number = 3 if ignore_slices else 4
    dataset = f"Dataset00{number}_Regions"
    labels = {"background": 0, "whole": [1, 2], "inner": 2, **({"ignore": 3} if ignore_slices else {})}
    write_dataset(sandbox.raw, dataset, labels=labels, regions_class_order=[1, 2], ignore_slices=ignore_slices, cases=5)
    sandbox.prepare(number, "3d_fullres")
    sandbox.edit_plans(dataset, "small", batch_of_two)
    summary = train(sandbox, dataset, "3d_fullres")
    assert set(summary["mean"]) == {"(1, 2)", "2"}


def test_ignore_label(sandbox):
    dataset = "Dataset005_Ignore"
    labels = {"background": 0, "outer": 1, "inner": 2, "ignore": 3}
    write_dataset(sandbox.raw, dataset, labels=labels, ignore_slices=8)
    sandbox.prepare(5, "3d_fullres")
    sandbox.edit_plans(dataset, "small", batch_of_two)
    summary = train(sandbox, dataset, "3d_fullres")
    assert set(summary["mean"]) == {"1", "2"}
    train(sandbox, dataset, "3d_fullres", trainer="nnUNetTrainerFIRENet_1epochs_1iterations_FocalLoss")


def test_cascade(sandbox):
    """Low resolution first, then full resolution with the first stage's segmentation as extra input channels."""
    dataset = "Dataset006_Cascade"
    write_dataset(sandbox.raw, dataset, shape=(28, 48, 44))
    sandbox.prepare(6, "3d_fullres")

    def two_stages(configurations: dict) -> None:
        batch_of_two(configurations)
        low = {
            "inherits_from": "3d_fullres",
            "data_identifier": "small_3d_lowres",
            "spacing": [s * 1.4 for s in configurations["3d_fullres"]["spacing"]],
            "median_image_size_in_voxels": [20, 34, 31],
            "patch_size": [20, 32, 32],
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_lowres"] = low
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    sandbox.edit_plans(dataset, "small", two_stages)
    sandbox.run("nnUNetv2_preprocess", "-d", 6, "-plans_name", "small", "-c", "3d_lowres", "-np", 1)
    train(sandbox, dataset, "3d_lowres")
    # The second stage needs the first one's prediction for its own training cases as well: one run on all cases.
    sandbox.run("nnUNetv2_train", dataset, "3d_lowres", "all", "-tr", TRAINER, "-p", "small", "-device", "cpu")
    train(sandbox, dataset, "3d_cascade_fullres")


def test_patch_too_small_fails_before_training(small):
    def tiny(configurations: dict) -> None:
        configurations["3d_fullres"]["patch_size"] = [2, 16, 16]

    small.edit_plans("Dataset001_Small", "tiny", tiny)
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", TRAINER, "-p", "tiny", "-device", "cpu")
    output = small.run(*command, ok=False)
    last = output.strip().splitlines()[-1]
    assert last.startswith("ValueError: FIRENet: an image of 2x16x16 voxels is too small")
    assert "axis 0 has 2, the smallest that works is 4. Use a larger patch size in the plans file." in last
    assert "Epoch 0" not in output
