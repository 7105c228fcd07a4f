"""What every registered backbone must do, for every kind of plan. A new registry row is tested by being there."""

import io

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch.testing import assert_close

from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.trainers.compose import trainer_class

# Patch size, strides, kernels: what a plan says. "odd" patches no plan would choose, but inference pads to them.
PLANS = {
    "3d isotropic": ((24, 24, 24), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "3d anisotropic": ((6, 32, 24), [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]),
    "3d odd": ((21, 23, 20), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "2d isotropic": ((32, 32), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
    "2d anisotropic": ((24, 56), [(1, 1), (1, 2), (2, 2)], [(3, 3)] * 3),
    "2d odd": ((37, 41), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
}
CHANNELS, CLASSES = 2, 3

# Parameters with 2 input channels and 3 classes, for 3D isotropic and 2D isotropic plans.
PARAMETERS = {
    "nnUNetTrainerFIRENet": (10_611_564, 3_790_572),
    "nnUNetTrainerFIRENetPaper": (10_611_564, 3_790_572),
    "nnUNetTrainerFIRENetNoFabric": (10_586_823, 3_544_647),
}


def build(row, plan, deep_supervision=False):
    """Build the network the way nnU-Net does, in training and at inference."""
    patch_size, strides, kernel_sizes = PLANS[plan]
    arch = {"strides": strides, "kernel_sizes": kernel_sizes}
    configuration = ConfigurationManager(
        {
            "patch_size": patch_size,
            "architecture": {"network_class_name": "unused", "arch_kwargs": arch, "_kw_requires_import": []},
        }
    )
    torch.manual_seed(0)
    build_network = trainer_class(row.trainer).build_network_architecture
    return build_network(None, configuration, CHANNELS, CLASSES, enable_deep_supervision=deep_supervision)


def image(plan, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, CHANNELS, *PLANS[plan][0])


CASES = [(row, plan) for row in BACKBONES for plan in PLANS if int(plan[0]) in row.dimensions]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].trainer} {case[1]}")
def case(request):
    row, plan = request.param
    return row, plan, build(row, plan)


def test_trains(case):
    """Right shape, finite logits, and a gradient for every parameter."""
    _, plan, network = case
    x = image(plan)
    out = network.train()(x)
    assert out.shape == (2, CLASSES, *x.shape[2:])
    assert torch.isfinite(out).all()
    torch.nn.functional.cross_entropy(out, torch.randint(0, CLASSES, (2, *x.shape[2:]))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), f"{name} gets a gradient that is not finite"
        if parameter.dim() > 1:
            assert parameter.grad.any(), f"{name} gets a gradient of zeros"


def test_saves_and_loads_into_the_form_nnunet_builds_for_inference(case):
    row, plan, network = case
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = build(row, plan, deep_supervision=False)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(file), strict=True)
    x = image(plan, batch=1)
    with torch.no_grad():
        assert_close(other.eval()(x), network.eval()(x))


def test_deep_supervision_changes_no_parameter(case):
    row, plan, network = case
    supervised = build(row, plan, deep_supervision=True)
    supervised.load_state_dict(network.state_dict(), strict=True)
    assert supervised.decoder.deep_supervision is True
    x = image(plan, batch=1)
    with torch.no_grad():
        outputs, plain = supervised.eval()(x), network.eval()(x)
        assert isinstance(outputs, list)
        assert_close(outputs[0], plain)
        supervised.decoder.deep_supervision = False
        assert_close(supervised(x), plain)


def test_half_precision(case):
    _, plan, network = case
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = network.eval()(image(plan, batch=1))
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()


def test_pretrained_weights_leave_out_the_output_layer_alone(case):
    """nnU-Net's fine-tuning skips keys with ".seg_layers."; all others must not depend on the number of classes."""
    keys = [key for key, value in case[2].state_dict().items() if ".seg_layers." in key]
    assert keys
    assert all(key.startswith("decoder.seg_layers.") for key in keys)
    assert {case[2].state_dict()[key].shape[0] for key in keys} == {CLASSES}


@pytest.mark.parametrize("row", BACKBONES, ids=lambda row: row.trainer)
class TestRow:
    def test_parameters(self, row):
        counts = tuple(sum(p.numel() for p in build(row, f"{d}d isotropic").parameters()) for d in (3, 2))
        assert counts == PARAMETERS[row.trainer]

    def test_same_seed_same_weights(self, row):
        first, second = (build(row, "2d isotropic").state_dict() for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_an_image_too_small_is_named(self, row):
        with pytest.raises(ValueError, match=r"2x2 voxels.*axis \d has 2, the smallest that works is \d+"):
            build(row, "2d isotropic")(torch.zeros(1, CHANNELS, 2, 2))

    def test_a_plan_without_stages_is_named(self, row):
        arch = {"network_class_name": "Primus", "arch_kwargs": {}, "_kw_requires_import": []}
        configuration = ConfigurationManager({"patch_size": (32, 32), "architecture": arch})
        with pytest.raises(ValueError, match=r"Primus.* has no kernel_sizes and no strides.*ResEnc"):
            trainer_class(row.trainer).build_network_architecture(None, configuration, 1, 2)
