"""The networks train and validate on every kind of labels, and in a cascade."""

import shutil

import pytest
from conftest import write_dataset

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerFIRENet_2epochs_2iterations"


@pytest.mark.parametrize("ignore_slices", [0, 6], ids=["regions", "regions with an ignore label"])
def test_regions(sandbox, ignore_slices):
    number = 3 if ignore_slices else 4
    dataset = f"Dataset00{number}_Regions"
    labels = {"background": 0, "whole": [1, 2], "inner": 2, **({"ignore": 3} if ignore_slices else {})}
    write_dataset(sandbox.raw, dataset, labels=labels, regions_class_order=[1, 2], ignore_slices=ignore_slices, cases=5)
    sandbox.prepare(number, "3d_fullres")
    sandbox.edit_plans(dataset, "small")
    summary = sandbox.train(dataset, "3d_fullres", TRAINER)
    assert set(summary["mean"]) == {"(1, 2)", "2"}


def test_ignore_label(sandbox):
    dataset = "Dataset005_Ignore"
    labels = {"background": 0, "outer": 1, "inner": 2, "ignore": 3}
    write_dataset(sandbox.raw, dataset, labels=labels, ignore_slices=8)
    sandbox.prepare(5, "3d_fullres")
    sandbox.edit_plans(dataset, "small")
    summary = sandbox.train(dataset, "3d_fullres", TRAINER)
    assert set(summary["mean"]) == {"1", "2"}
    sandbox.train(dataset, "3d_fullres", "nnUNetTrainerFIRENet_1epochs_1iterations_FocalLoss")


def test_cascade(sandbox):
    """Low resolution first, then full resolution with the first stage's segmentation as extra input channels."""
    dataset = "Dataset006_Cascade"
    write_dataset(sandbox.raw, dataset, shape=(20, 34, 32))
    sandbox.prepare(6, "3d_fullres")

    def two_stages(configurations: dict) -> None:
        low = {
            "inherits_from": "3d_fullres",
            "data_identifier": "small_3d_lowres",
            "spacing": [s * 1.4 for s in configurations["3d_fullres"]["spacing"]],
            "median_image_size_in_voxels": [14, 24, 23],
            "patch_size": [16, 24, 24],
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_lowres"] = low
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    sandbox.edit_plans(dataset, "small", two_stages)
    sandbox.run("nnUNetv2_preprocess", "-d", 6, "-plans_name", "small", "-c", "3d_lowres", "-np", 1)
    # The second stage needs the first one's prediction for its own training cases as well: one run on all cases.
    sandbox.run("nnUNetv2_train", dataset, "3d_lowres", "all", "-tr", TRAINER, "-p", "small", "-device", "cpu")
    sandbox.train(dataset, "3d_cascade_fullres", TRAINER)
    # nnU-Net looks for the first stage under the name of the second stage's trainer.
    first = sandbox.results / dataset / f"{TRAINER}__small__3d_lowres"
    for other in ("nnUNetTrainerAutofocusUNet_1epochs_1iterations", "nnUNetTrainerASPP3DUNet_1epochs_1iterations"):
        shutil.copytree(first, first.with_name(f"{other}__small__3d_lowres"))
        sandbox.train(dataset, "3d_cascade_fullres", other)
