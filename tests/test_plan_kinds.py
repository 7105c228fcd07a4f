"""The networks train, validate and predict on every kind of plan that nnU-Net makes."""

import math

import pytest

from nnunet_plugins.planning.fit import fit_configuration, fit_plans
from nnunet_plugins.planning.forecast import COMFORTABLE, GIB
from nnunet_plugins.planning.setting import plan_setting
from nnunet_plugins.planning.stages import plan_stages
from nnunet_plugins.trainers.compose import trainer_class

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerFIRENet_2epochs_2iterations"


@pytest.mark.parametrize(
    ("backbone", "share"), [("FIRENet", 0.99), ("AFN6", 0.65), ("AutofocusUNet", 0.95), ("ASPP3DUNet", 0.7)]
)
def test_plans_made_to_fit_train(small, backbone, share, monkeypatch):
    """What `nnunet-plugins plan` writes is smaller, has other stages, and stock training takes it."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    trainer, name = f"nnUNetTrainer{backbone}_1epochs_1iterations", f"fit_{backbone}"
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
