"""More labels than a byte has room for: a network is trained, exported, and predicts them."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Sandbox, write_dataset

from nnunet_plugins.datasets.folders import largest_label
from nnunet_plugins.models.settings import FILE, OUTPUT_TYPES, fitting_type
from nnunet_plugins.submission.inference import main as predict

DATASET, TRAINER = "Dataset001_Many", "nnUNetTrainer_1epochs_1iterations"
LABELS = 300


def write_labels(folder: Path) -> None:
    """Give every label to a voxel or two of each segmentation."""
    labels = {"background": 0, **{f"part {value}": value for value in range(1, LABELS + 1)}}
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "labels": labels}))
    for path in folder.glob("labels*/*.nii.gz"):
        image = sitk.ReadImage(str(path))
        shape = image.GetSize()[::-1]
        changed = sitk.GetImageFromArray((np.arange(np.prod(shape)) % (LABELS + 1)).reshape(shape).astype(np.uint16))
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(path))


def predict_last_label(file: Path) -> None:
    """Let a network that has hardly been trained find the last label, whatever it found before."""
    checkpoint = torch.load(file, weights_only=False)
    for name, values in checkpoint["network_weights"].items():
        if ".seg_layers." in name and name.endswith(".bias"):
            values[LABELS] += values.abs().max() + 1
    torch.save(checkpoint, file)


@pytest.fixture(scope="module")
def many(sandbox: Sandbox) -> Sandbox:
    write_labels(write_dataset(sandbox.raw, DATASET, shape=(8, 8, 8)))
    sandbox.prepare(1, "3d_fullres")
    sandbox.edit_plans(DATASET, "small")
    return sandbox


@pytest.mark.slow
def test_three_hundred_labels_from_the_training_to_the_submission(many, tmp_path, capsys):
    summary = many.train(DATASET, "3d_fullres", TRAINER)
    assert len(summary["mean"]) == LABELS
    predict_last_label(many.results / DATASET / f"{TRAINER}__small__3d_fullres" / "fold_0" / "checkpoint_final.pth")

    export = (
        "export-submission",
        "-d",
        1,
        "-tr",
        TRAINER,
        "-p",
        "small",
        "-f",
        0,
        "--no-wheels",
        "-o",
        tmp_path / "out",
    )
    refused = many.run("nnunet-plugins", *export, "--output-type", "uint8", ok=False)
    assert "label 300 does not fit into uint8, which ends at 255; leave out --output-type" in refused
    plans = many.results / DATASET / f"{TRAINER}__small__3d_fullres" / "plans.json"
    before = plans.read_text()
    plans.write_text(json.dumps({**json.loads(before), "image_reader_writer": "SimpleITKIOWithReorient"}))
    refused = many.run("nnunet-plugins", *export, ok=False)
    assert "writes segmentations of 8 bits, in which label 300 becomes 44" in refused
    plans.write_text(before)
    assert not (tmp_path / "out").exists()

    many.run("nnunet-plugins", *export)
    assert (
        predict(
            ["-i", str(many.raw / DATASET / "imagesTs"), "-o", str(tmp_path / "segmented")],
            models=tmp_path / "out" / "model",
        )
        == 0
    )
    settings = tmp_path / "out" / "model" / FILE
    now = settings.read_text()
    settings.write_text(now.replace('"uint16"', '"uint8"'))  # as 0.1.0 wrote it
    capsys.readouterr()
    assert (
        predict(
            ["-i", str(many.raw / DATASET / "imagesTs"), "-o", str(tmp_path / "none")],
            models=tmp_path / "out" / "model",
        )
        == 2
    )
    said = capsys.readouterr().out
    assert "wants segmentations of the type uint8, in which label 300 has no room" in said
    assert "FAILED" not in said, "once, not case by case"
    settings.write_text(now)
    expected = many.predict(1, "3d_fullres", TRAINER, tmp_path / "expected")
    assert sorted(path.name for path in (tmp_path / "segmented").iterdir()) == sorted(expected)
    found = set()
    for name in expected:
        ours, theirs = (sitk.ReadImage(str(tmp_path / folder / name)) for folder in ("segmented", "expected"))
        assert ours.GetPixelID() == sitk.sitkUInt16
        assert np.array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
        found |= set(np.unique(sitk.GetArrayFromImage(ours)))
    assert max(found) > 255, "small labels prove nothing"  # which ones it finds is chance, after one training step


@pytest.mark.parametrize(
    ("largest", "kind"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "int32")]
)
def test_the_smallest_type_that_holds_the_labels(largest, kind):
    assert fitting_type(largest) == kind
    for name, most in OUTPUT_TYPES.items():
        assert int(np.array(most).astype(name)) == most
        assert int(np.array(most + 1).astype(name)) != most + 1


def test_the_largest_label_is_that_of_a_segmentation(tmp_path):
    labels: dict[str, object] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    file = tmp_path / "dataset.json"
    assert largest_label({"labels": labels, "regions_class_order": [1, 300]}, file) == 300
    assert largest_label({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}, file) == 2
