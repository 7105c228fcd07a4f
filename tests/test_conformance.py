"""What every registered backbone must do, for every kind of plan. A new registry row is tested by being there."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from nnunet_plugins.planning.forecast import cuda_autocast, fake_tensors
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.unet import UNetTrainer

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

PARAMETERS = Path(__file__).with_name("parameters.json")
"""Trainer to the parameters of its network as it is, with 2 input channels and 3 classes, for isotropic plans."""


def changes_the_plans_network(row):
    """nnU-Net's own U-Nets with changed blocks take multiples of their strides only, and follow a residual plan."""
    return issubclass(trainer_class(row.trainer), UNetTrainer)


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


def build(row, plan, deep_supervision=False, patch_size=None, options=None, classes=CLASSES):
    """Build the network the way nnU-Net does, in training and at inference; in the row's narrow version.

    Args:
        options: those of the network, in place of the narrow ones.
    """
    patch_size = patch_size or PLANS[plan][0]
    configuration = ConfigurationManager({"patch_size": patch_size, "architecture": architecture(plan)})
    options = {**row.options, **row.narrow} if options is None else options
    trainer = type(row.trainer, (trainer_class(row.trainer),), {"backbone": replace(row, options=options)})
    torch.manual_seed(0)
    return trainer.build_network_architecture(
        None, configuration, CHANNELS, classes, enable_deep_supervision=deep_supervision
    )


def image(plan, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, CHANNELS, *PLANS[plan][0])


# Rows that differ in their recipe alone, or that are the same when narrow, share a network: it is tested once.
NETWORKS = list(
    {(row.network, repr(sorted({**row.options, **row.narrow}.items()))): row for row in reversed(BACKBONES)}.values()
)
CASES = [
    (row, plan)
    for row in NETWORKS
    for plan in PLANS
    if int(plan[0]) in row.dimensions and not plan.endswith("odd" if changes_the_plans_network(row) else "resenc")
]


def smallest(row, kind="isotropic"):
    """The plan of a kind that costs least among those that the row takes."""
    return f"{min(row.dimensions)}d {kind}"


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
    number = len(PLANS[plan][1]) - 1 if trainer_class(row.trainer).deep_supervision else 1
    sizes = [x.shape[2:]]
    for stride in PLANS[plan][1][1:number]:
        sizes.append(tuple(n // s for n, s in zip(sizes[-1], stride, strict=True)))
    if hasattr(network, "output_sizes"):
        sizes = network.output_sizes(x.shape[2:])
        assert len(sizes) > 1
    assert [out.shape[2:] for out in outputs] == sizes, "outputs from the full size down"
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
        averaged = getattr(network.decoder, "averaged", False)
        assert_close(torch.stack(outputs).mean(dim=0) if averaged else outputs[0], plain)
        supervised.decoder.deep_supervision = False
        assert_close(supervised(x), plain)


def full_precision_modules(row, plan):
    """Names of the modules that return float32 maps in mixed precision on a GPU, in the order in which they end.

    A softmax does so on purpose.
    """
    found = []

    def note(name, output):
        maps = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.dim() > 2]
        if any(leaf.dtype == torch.float32 for leaf in maps):
            found.append(name or "the network")

    with fake_tensors(), torch.device("cuda"):
        network = build(row, plan).train()
        for name, module in network.named_modules():
            *_, last = module.modules()
            if not isinstance(last, torch.nn.Softmax):
                module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        with cuda_autocast():
            network(torch.zeros(2, CHANNELS, *PLANS[plan][0]))
    return found


@pytest.mark.parametrize(("row", "plan"), CASES, ids=[f"{row.trainer} {plan}" for row, plan in CASES])
def test_mixed_precision_on_a_gpu_keeps_maps_in_half_precision(row, plan):
    """A single map in float32 makes all that follow it twice as large; on the CPU the casts are others."""
    assert full_precision_modules(row, plan) == []


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.trainer)
def test_half_precision_is_finite(row):
    """In float16, whose largest number is 65504."""
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        half = build(row, smallest(row)).eval()(image(smallest(row), batch=1))
    assert half.dtype == torch.float16
    assert torch.isfinite(half).all()


def test_the_output_layer_is_all_that_depends_on_the_classes(case):
    """nnU-Net's fine-tuning leaves out keys with ".seg_layers.", and wants all others to be there in the same shape."""
    row, plan, network = case
    with torch.device("meta"):
        many = build(row, plan, classes=CLASSES + 2).state_dict()
    few = network.state_dict()
    heads = {key for key in few if ".seg_layers." in key}
    assert set(few) == set(many)
    assert {key for key in few if few[key].shape != many[key].shape} == heads
    assert all(key.startswith("decoder.seg_layers.") for key in heads)


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.trainer)
def test_logits_are_not_bounded(row):
    """A final nonlinearity, a sigmoid, softmax or ReLU, is the business of the loss."""
    network = build(row, smallest(row)).eval()
    with torch.no_grad():
        for layer in network.decoder.seg_layers.parameters():
            layer.mul_(1000)
        logits = network(image(smallest(row)))
    assert logits.max() > 1, "bounded from above"
    assert logits.min() < -1, "bounded from below"


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.trainer)
def test_compiles_without_a_graph_break(row):
    """On a GPU nnU-Net compiles every network."""
    torch._dynamo.reset()
    network = build(row, smallest(row)).train()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = image(smallest(row))
    assert compiled(x).shape == (2, CLASSES, *x.shape[2:])


@pytest.mark.parametrize("row", BACKBONES, ids=lambda row: row.trainer)
class TestRow:
    def test_parameters(self, row, request):
        """Those of the network as it is, counted without making it."""
        with torch.device("meta"):
            counts = {
                f"{d}d": sum(p.numel() for p in build(row, f"{d}d isotropic", options=row.options).parameters())
                for d in row.dimensions
            }
        recorded = json.loads(PARAMETERS.read_text())
        if row.trainer not in recorded:
            if not request.config.getoption("--record-parameters"):
                pytest.skip(f"{counts} are not recorded; pytest {Path(__file__).name} --record-parameters does it")
            recorded[row.trainer] = counts
            lines = [f"  {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in recorded.items()]
            PARAMETERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        assert counts == recorded[row.trainer]

    def test_same_seed_same_weights(self, row):
        first, second = (build(row, smallest(row)).state_dict() for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_a_tiny_patch_works_or_is_named_before_training(self, row):
        size = [2] * min(row.dimensions)
        try:
            network = build(row, smallest(row), patch_size=tuple(size))
        except ValueError as error:
            refusal = str(error)
        else:
            out = network.eval()(torch.randn(1, CHANNELS, *size))
            assert out.shape == (1, CLASSES, *size)
            assert torch.isfinite(out).all()
            return
        found = re.search(rf"{'x'.join(map(str, size))} voxels.*axis (\d) has 2 and needs at least (\d+)", refusal)
        assert found, f"not as `rows.Backbone` says it: {refusal}"
        axis, enough = map(int, found.groups())
        assert enough > 2
        size[axis] = enough
        try:
            build(row, smallest(row), patch_size=tuple(size))
        except ValueError as error:
            refusal = str(error)
        assert f"axis {axis} has {enough}" not in refusal, "what it needs at least is not enough"

    def test_images_of_any_size_or_multiples(self, row):
        """Also of another size than the plan's patch."""
        x = image(smallest(row, "odd"))
        if changes_the_plans_network(row):
            with pytest.raises(ValueError, match=r"\dx\d+ voxels: axis 0 has \d+ .* multiple of it"):
                build(row, smallest(row, "odd"))
            x = torch.cat([image(smallest(row))] * 2, dim=-1)
        assert build(row, smallest(row)).eval()(x).shape == (2, CLASSES, *x.shape[2:])

    def test_another_dimension_is_refused(self, row):
        for dimension in {2, 3} - set(row.dimensions):
            with pytest.raises(NotImplementedError, match=rf"is a {row.dimensions[0]}D network.*use the configuration"):
                build(row, f"{dimension}d isotropic")

    def test_a_plan_without_stages_is_named(self, row):
        arch = {"network_class_name": "Primus", "arch_kwargs": {}, "_kw_requires_import": []}
        configuration = ConfigurationManager({"patch_size": (32, 32), "architecture": arch})
        with pytest.raises(ValueError, match=r"Primus.* has no kernel_sizes and no strides.*ResEnc"):
            trainer_class(row.trainer).build_network_architecture(None, configuration, 1, 2)
