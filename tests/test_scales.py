"""Deep supervision by the network's own scales: outputs, targets and weights under nnU-Net's loss are as many."""

from dataclasses import replace

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as upstream
from test_names import FakeDataset
from torch.testing import assert_close

# Patch, strides after the first stage. The third has odd maps, which nnU-Net's own strides never make.
PLANS = {
    "three stages": ((32, 32, 32), [[2, 2, 2]] * 2),
    "six stages": ((32, 32, 64), [[2, 2, 2]] * 5),
    "odd maps": ((40, 56, 40), [[2, 2, 2]] * 3),
    "anisotropic": ((10, 32, 48), [[1, 2, 2], [1, 2, 2], [2, 2, 2]]),
}
NAMES = {
    "nnUNetTrainerMedNeXtS": [16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31],
    "nnUNetTrainerMedNeXtSPaper_CELoss": [16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31],
    "nnUNetTrainerUNetPlusPlus": [1 / 4] * 4,
    "nnUNetTrainerUNetPlusPlusPaper_DiceLoss": [1 / 4] * 4,
}

# As deep as they are, but narrow.
NARROW = {
    "MedNeXt": {"width": 2, "blocks": (1,) * 9, "ratios": (2,) * 9},
    "UNetPlusPlus": {"features": (2, 2, 2, 2, 2)},
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make a trainer as far as its loss, with a narrow network."""

    def trainer(name, plan):
        dataset = FakeDataset(tmp_path, monkeypatch)
        patch_size, strides = PLANS[plan]
        configuration = dataset.plans["configurations"]["3d_fullres"]
        configuration["patch_size"] = list(patch_size)
        kernels = [[3 if any(s[axis] > 1 for s in strides[:n]) else 1 for axis in range(3)] for n in range(1, 9)]
        stages = {"strides": [[1, 1, 1], *strides], "kernel_sizes": [kernels[0], *kernels[: len(strides)]]}
        configuration["architecture"]["arch_kwargs"] = stages
        made = dataset.trainer(name)
        monkeypatch.setattr(upstream, "infer_dataset_class", lambda folder: None)
        row = type(made).backbone
        monkeypatch.setattr(type(made), "backbone", replace(row, options=NARROW[row.network.split(".")[-1]]))
        made.initialize()
        return made

    return trainer


@pytest.mark.parametrize(
    ("name", "plan"), [(name, plan) for name in NAMES for plan in PLANS if "_" not in name or plan == "odd maps"]
)
def test_outputs_targets_and_weights_belong_together(make, name, plan):
    trainer = make(name, plan)
    patch_size = PLANS[plan][0]
    outputs = trainer.network(torch.randn(1, 1, *patch_size))
    scales = trainer._get_deep_supervision_scales()
    targets = DownsampleSegForDSTransform(scales)(segmentation=torch.randint(0, 3, (1, *patch_size)))["segmentation"]
    assert [t.shape[1:] for t in targets] == [out.shape[2:] for out in outputs]
    assert outputs[0].shape[2:] == patch_size
    assert trainer.loss.weight_factors == pytest.approx(NAMES[name])
    assert len(outputs) == len(NAMES[name])
    batch = [target[None] for target in targets]
    whole = trainer.loss(outputs, batch)
    parts = [w * trainer.loss.loss(*pair) for w, *pair in zip(NAMES[name], outputs, batch, strict=True)]
    assert_close(whole, sum(parts))
    whole.backward()
    assert all(p.grad is not None for p in trainer.network.parameters()), "several GPUs would stop"


def test_validation_looks_at_one_output(make):
    """nnU-Net switches deep supervision off and on around it."""
    trainer = make("nnUNetTrainerMedNeXtS", "three stages")
    x = torch.randn(1, 1, 32, 32, 32)
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network(x).shape == (1, 3, 32, 32, 32)
    trainer.set_deep_supervision_enabled(True)
    assert len(trainer.network(x)) == 5
