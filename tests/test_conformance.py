"""What every registered backbone must do, for every kind of plan. A new registry row is tested by being there."""

import io
import re

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
    "3d resenc": ((24, 20, 24), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "2d isotropic": ((32, 32), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
    "2d anisotropic": ((24, 56), [(1, 1), (1, 2), (2, 2)], [(3, 3)] * 3),
    "2d odd": ((37, 41), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
    "2d resenc": ((32, 40), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
}
CHANNELS, CLASSES = 2, 3

# nnU-Net's own U-Nets with changed blocks. They take multiples of their strides only, and are the only networks for
# which it matters whether a plan's network is residual.
U_NETS = {"nnUNetTrainerAutofocusUNet", "nnUNetTrainerASPP3DUNet", "nnUNetTrainerASPP3DUNetPlain"}

# Parameters with 2 input channels and 3 classes, for 3D isotropic and 2D isotropic plans.
PARAMETERS = {
    "nnUNetTrainerFIRENet": (10_611_564, 3_790_572),
    "nnUNetTrainerFIRENetPaper": (10_611_564, 3_790_572),
    "nnUNetTrainerFIRENetNoFabric": (10_586_823, 3_544_647),
    "nnUNetTrainerFIRENetNoFabricPaper": (10_586_823, 3_544_647),
    "nnUNetTrainerAutofocusUNet": (90_784, 31_505),
    "nnUNetTrainerASPP3DUNet": (165_390, 60_014),
    "nnUNetTrainerASPP3DUNetPlain": (165_390, 60_014),
    "nnUNetTrainerAFNBasic": (314_003, 107_723),
    "nnUNetTrainerAFN1": (348_182, 119_402),
    "nnUNetTrainerAFN2": (370_186, 127_006),
    "nnUNetTrainerAFN3": (392_130, 134_550),
    "nnUNetTrainerAFN4": (414_074, 142_094),
    "nnUNetTrainerAFN5": (436_018, 149_638),
    "nnUNetTrainerAFN6": (448_487, 154_007),
    "nnUNetTrainerASPPS": (964_742, 326_462),
    "nnUNetTrainerASPPC": (476_573, 162_293),
    "nnUNetTrainerDeepMedic": (659_013, 246_453),
    "nnUNetTrainerAFNBasicPaper": (314_003, 107_723),
    "nnUNetTrainerAFN1Paper": (348_182, 119_402),
    "nnUNetTrainerAFN2Paper": (370_186, 127_006),
    "nnUNetTrainerAFN3Paper": (392_130, 134_550),
    "nnUNetTrainerAFN4Paper": (414_074, 142_094),
    "nnUNetTrainerAFN5Paper": (436_018, 149_638),
    "nnUNetTrainerAFN6Paper": (448_487, 154_007),
    "nnUNetTrainerASPPSPaper": (964_742, 326_462),
    "nnUNetTrainerASPPCPaper": (476_573, 162_293),
    "nnUNetTrainerDeepMedicPaper": (659_013, 246_453),
}


def architecture(plan):
    """What a plan says about its own network; the widths are smaller than nnU-Net's."""
    patch_size, strides, kernel_sizes = PLANS[plan]
    dim, stages = len(patch_size), len(strides)
    residual = plan.endswith("resenc")
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2] * stages}
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [8, 16, 32],
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def build(row, plan, deep_supervision=False, patch_size=None):
    """Build the network the way nnU-Net does, in training and at inference."""
    patch_size = patch_size or PLANS[plan][0]
    configuration = ConfigurationManager({"patch_size": patch_size, "architecture": architecture(plan)})
    torch.manual_seed(0)
    build_network = trainer_class(row.trainer).build_network_architecture
    return build_network(None, configuration, CHANNELS, CLASSES, enable_deep_supervision=deep_supervision)


def image(plan, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, CHANNELS, *PLANS[plan][0])


# Rows that differ in their recipe alone share a network: it is tested once.
NETWORKS = list({(row.network, repr(sorted(row.options.items()))): row for row in reversed(BACKBONES)}.values())
CASES = [
    (row, plan)
    for row in NETWORKS
    for plan in PLANS
    if int(plan[0]) in row.dimensions and not plan.endswith("odd" if row.trainer in U_NETS else "resenc")
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].trainer} {case[1]}")
def case(request):
    row, plan = request.param
    return row, plan, build(row, plan)


def test_trains(case):
    """Right shapes, finite logits, and a gradient for every parameter, from all outputs that training looks at."""
    row, plan, network = case
    x = image(plan)
    network.decoder.deep_supervision = True
    outputs = network.train()(x)
    network.decoder.deep_supervision = False
    assert outputs[0].shape == (2, CLASSES, *x.shape[2:])
    assert len(outputs) == (len(PLANS[plan][1]) - 1 if trainer_class(row.trainer).deep_supervision else 1)
    loss = 0.0
    for out in outputs:
        assert torch.isfinite(out).all()
        loss = loss + torch.nn.functional.cross_entropy(out, torch.randint(0, CLASSES, (2, *out.shape[2:])))
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), f"{name} gets a gradient that is not finite"
        # nnU-Net's residual encoder starts with residual branches of zero, which pass no gradient on yet.
        if parameter.dim() > 1 and not plan.endswith("resenc"):
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
    """At training nnU-Net gets one output per scale, the finest first."""
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


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.trainer)
def test_compiles_without_a_graph_break(row):
    """On a GPU nnU-Net compiles every network."""
    torch._dynamo.reset()
    network = build(row, "2d isotropic").train()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert compiled(image("2d isotropic")).shape == (2, CLASSES, 32, 32)


@pytest.mark.parametrize("row", BACKBONES, ids=lambda row: row.trainer)
class TestRow:
    def test_parameters(self, row):
        counts = tuple(sum(p.numel() for p in build(row, f"{d}d isotropic").parameters()) for d in (3, 2))
        assert counts == PARAMETERS[row.trainer]

    def test_same_seed_same_weights(self, row):
        first, second = (build(row, "2d isotropic").state_dict() for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_a_tiny_patch_works_or_is_named(self, row):
        try:
            out = build(row, "2d isotropic", patch_size=(2, 2)).eval()(torch.randn(1, CHANNELS, 2, 2))
        except ValueError as error:
            assert re.search(r"2x2 voxels.*axis \d has 2 and needs at least \d+", str(error))  # noqa: PT017
        else:
            assert out.shape == (1, CLASSES, 2, 2)
            assert torch.isfinite(out).all()

    def test_patches_of_any_size_or_multiples(self, row):
        if row.trainer in U_NETS:
            with pytest.raises(ValueError, match=r"37x41 voxels: axis 0 has 37 .* multiple of it"):
                build(row, "2d odd")
        else:
            assert build(row, "2d odd").eval()(image("2d odd")).shape == (2, CLASSES, 37, 41)

    def test_a_plan_without_stages_is_named(self, row):
        arch = {"network_class_name": "Primus", "arch_kwargs": {}, "_kw_requires_import": []}
        configuration = ConfigurationManager({"patch_size": (32, 32), "architecture": arch})
        with pytest.raises(ValueError, match=r"Primus.* has no kernel_sizes and no strides.*ResEnc"):
            trainer_class(row.trainer).build_network_architecture(None, configuration, 1, 2)
