"""The stock commands on real images: Medical Segmentation Decathlon, Task04 Hippocampus."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.data]

DATASET, TRAINER = "Dataset004_Hippocampus", "nnUNetTrainerFIRENet_2epochs_10iterations_NoMirroring"
CASES, HELD_OUT = 10, 2


@pytest.fixture(scope="module")
def hippocampus(sandbox: Sandbox, shared_data) -> Sandbox:
    """The first cases of the dataset, the last of them held out; mixed file types and wild intensities included."""
    source, target = shared_data / DATASET, sandbox.raw / DATASET
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (target / part).mkdir(parents=True)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").iterdir())[: CASES + HELD_OUT]
    for number, name in enumerate(names):
        part = "Tr" if number < CASES else "Ts"
        shutil.copy(source / "imagesTr" / f"{name}_0000.nii.gz", target / f"images{part}")
        if part == "Tr":
            shutil.copy(source / "labelsTr" / f"{name}.nii.gz", target / "labelsTr")
    description = json.loads((source / "dataset.json").read_text())
    (target / "dataset.json").write_text(json.dumps({**description, "numTraining": CASES}))
    sandbox.prepare(4, "3d_fullres")

    # Of the planned 40 x 56 x 40 a fifth; all of an image is seen in the validation all the same.
    sandbox.edit_plans(DATASET, "small", lambda plans: plans["3d_fullres"].update(patch_size=[24, 32, 24]))
    return sandbox


def test_trains_and_predicts(hippocampus):
    common = ("-tr", TRAINER, "-p", "small", "-device", "cpu")
    hippocampus.run("nnUNetv2_train", 4, "3d_fullres", 0, *common)
    model = hippocampus.results / DATASET / f"{TRAINER}__small__3d_fullres"
    first, last = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["logging"]["train_losses"]
    assert last < first - 0.1, "20 steps are enough to learn something"
    assert len(json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["metric_per_case"]) == 2
    images, output = hippocampus.raw / DATASET / "imagesTs", hippocampus.root / "predicted"
    data = ("-i", images, "-o", output, "-d", 4, "-c", "3d_fullres", "-f", 0, "-npp", 1, "-nps", 1, "--disable_tta")
    hippocampus.run("nnUNetv2_predict", *data, *common)
    predicted = sorted(output.glob("*.nii.gz"))
    assert len(predicted) == HELD_OUT
    for path in predicted:
        image = sitk.ReadImage(str(images / path.name.replace(".nii.gz", "_0000.nii.gz")))
        segmentation = sitk.ReadImage(str(path))
        assert segmentation.GetSize() == image.GetSize()
        assert np.unique(sitk.GetArrayFromImage(segmentation)).max() <= 2
