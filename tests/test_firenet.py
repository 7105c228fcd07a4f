"""FIRENet: the reference form's exact numbers, sizes, and errors."""

import doctest
import random
from functools import partial

import pytest
import torch
from conftest import saved_bytes
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.networks import firenet
from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.networks.layers import aspp, blocks
from nnunet_plugins.networks.layers.wrs import WRS
from nnunet_plugins.planning.setting import build_network, find_trainer, patch_setting
from nnunet_plugins.rows import STOCK_TRAINER

# Every size from 20 to 70 occurs on every axis of these triples; the named sizes come first.
SIZES = list(range(20, 71))
_shuffled = [random.Random(axis).sample(SIZES, len(SIZES)) for axis in range(3)]
TRIPLES = [(20, 20, 20), (33, 47, 51), (37, 41, 43), (17, 17, 33), (66, 67, 65), *zip(*_shuffled, strict=True)]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def forward_gflop(network: nn.Module) -> float:
    """2 per multiply-add, for 2x1x64^3."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network.to("meta")(torch.empty(2, 1, 64, 64, 64))
    return counter.get_total_flops() / 1e9


@pytest.fixture(scope="module")
def narrow() -> FIRENet:
    """The paper's strides with a few channels and half the cells, to try many sizes quickly."""
    return FIRENet(1, 2, features=(2, 4), depth=2, dropout=0).eval()


def test_reference_form():
    network = FIRENet(input_channels=1, num_classes=3)
    assert parameters(network) == 10_610_668
    assert forward_gflop(network) == pytest.approx(214.9, abs=0.05)


def test_gates():
    network = FIRENet(1, 3)
    count = sum(module.weight.numel() for module in network.modules() if isinstance(module, WRS))
    fabric = sum(module.weight.numel() for module in network.bottleneck.modules() if isinstance(module, WRS))
    assert (count, fabric) == (41, 37)


def test_the_decoders_gates_are_named_after_what_they_let_through():
    """With the finest gate to what comes from below closed, the image goes past the fabric."""
    network = FIRENet(1, 2, strides=((2, 2),) * 4, kernel_sizes=((3, 3),) * 5, features=(2, 4), depth=2, dropout=0)
    values = []
    for weight in ([-1000.0, 1000.0], [1000.0, -1000.0]):
        network.decoder.wrs[0].weight.data = torch.tensor(weight)
        network.zero_grad()
        network(torch.randn(1, 1, 32, 32)).square().sum().backward()
        passed = any(p.grad.any() for p in network.bottleneck.parameters())
        gates = network.gate_values()
        values.append((passed, gates["decoder 1 <- below"], gates["decoder 1 <- shortcut"]))
    assert values == [(False, 0, 1), (True, 1, 0)]


def test_stages_freeze_all_gates_then_the_decoders_then_none():
    network = FIRENet(1, 3, features=(2, 4))
    assert [sum(w.numel() for w in network.frozen_gates(stage)) for stage in (1, 2, 3)] == [41, 4, 0]
    decoder = {id(module.weight) for module in network.decoder.modules() if isinstance(module, WRS)}
    assert {id(weight) for weight in network.frozen_gates(2)} == decoder
    with pytest.raises(ValueError, match="got 4"):
        network.frozen_gates(4)


def test_ablation_twin_matches_in_parameters_and_flops():
    network, twin = FIRENet(1, 3), FIRENet(1, 3, bottleneck="residual")
    assert parameters(twin) == 10_585_927
    assert parameters(twin.bottleneck) / parameters(network.bottleneck) == pytest.approx(1, abs=0.003)
    assert forward_gflop(twin) / forward_gflop(network) == pytest.approx(1, abs=0.001)


def test_dropout_follows_every_activation():
    network = FIRENet(1, 3, dropout=0.5)
    activations = [m for m in network.modules() if isinstance(m, nn.LeakyReLU)]
    dropouts = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    # 4 residual units with two activations, 2 shortcuts with one, 12 cells with four.
    assert len(activations) == len(dropouts) == 4 * 2 + 2 + 12 * 4
    assert {dropout.p for dropout in dropouts} == {0.5}
    assert not [m for m in FIRENet(1, 3, dropout=0).modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize("size", TRIPLES, ids=str)
def test_takes_any_size(narrow, size):
    with torch.no_grad():
        assert narrow(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_odd_sizes_train(narrow):
    out = narrow.train()(torch.randn(2, 1, 21, 23, 33))
    out.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in narrow.parameters())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 20, 20), "3x20x20 voxels.* axis 0 has 3 and needs at least 4"),
        ((20, 20, 1), "20x20x1 voxels.* axis 2 has 1 and needs at least 4"),
        ((16, 17, 19), "16x17x19 voxels.* axis 2 has 19 and needs at least 20"),
        ((32, 32), r"built for 3D images, got a spatial size \(32, 32\)"),
    ],
)
def test_too_small_images(narrow, size, message):
    with pytest.raises(ValueError, match=message):
        narrow(torch.zeros(1, 1, *size))


def test_named_smallest_size_works(narrow):
    assert narrow(torch.zeros(1, 1, 16, 17, 20)).shape == (1, 2, 16, 17, 20)
    assert narrow(torch.zeros(1, 1, 4, 20, 20)).shape == (1, 2, 4, 20, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "dropout must be a probability.*1.0"),
        ({"bottleneck": "fibre"}, "'fabric' or 'residual', got 'fibre'"),
        ({"strides": ((2, 2, 2),) * 3}, "got 3 strides and 5 kernels"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FIRENet(1, 2, **options)


def test_unknown_option_is_named():
    with pytest.raises(TypeError, match="fabrics"):
        FIRENet(1, 2, fabrics=2)


def plan(patch_size, strides, **options):
    kernels = [(3,) * len(patch_size)] * len(strides)
    return FIRENet.from_plan(
        input_channels=1,
        num_classes=2,
        deep_supervision=False,
        patch_size=patch_size,
        strides=strides,
        kernel_sizes=kernels,
        features=(2, 4),
        **options,
    )


class TestFromPlan:
    def test_a_plan_of_one_stage_is_continued(self):
        network = plan((24, 20, 20), [(1, 1, 1)])
        # After three halvings 3x2x2 voxels are left, too few to halve any axis again.
        assert network.strides == [*[(2, 2, 2)] * 3, (1, 1, 1)]
        assert network(torch.zeros(1, 1, 24, 20, 20)).shape == (1, 2, 24, 20, 20)

    def test_one_voxel_thin_patches(self):
        network = plan((1, 48, 40), [(1, 1, 1), (1, 2, 2), (1, 2, 2)])
        assert network(torch.zeros(1, 1, 1, 48, 40)).shape == (1, 2, 1, 48, 40)

    def test_thin_patch_halved_by_the_plan_fails_before_training(self):
        with pytest.raises(ValueError, match="axis 0 has 1 and needs at least 4"):
            plan((1, 48, 40), [(1, 1, 1), (2, 2, 2), (2, 2, 2)])

    def test_patch_too_small_for_the_fabric(self):
        with pytest.raises(ValueError, match=r"16x16x16 voxels.*needs at least 20.*plans file"):
            plan((16, 16, 16), [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)])

    def test_two_dimensional(self):
        assert plan((40, 56), [(1, 1), (2, 2), (2, 2)])(torch.zeros(1, 1, 40, 56)).shape == (1, 2, 40, 56)


def small(dim: int) -> FIRENet:
    """Two branches of two cells, which have all that a fabric has; the paper's twelve take minutes."""
    sizes = {"strides": ((2,) * dim,) * 3, "kernel_sizes": ((3,) * dim,) * 4}
    return FIRENet(1, 2, features=(2, 4), depth=2, dropout=0, **sizes)


def test_compiles_into_one_graph():
    """No graph break, also with the dynamic shapes that a second size brings."""
    torch._dynamo.reset()
    compiled = torch.compile(small(3), backend="eager", fullgraph=True)
    for size in [(21, 20, 22), (33, 20, 20)]:
        assert compiled(torch.randn(2, 1, *size)).shape == (2, 2, *size)


def test_examples_in_docstrings():
    assert doctest.testmod(firenet, extraglobs={"torch": torch}).failed == 0


@pytest.mark.parametrize("trainer", [f"nnUNetTrainerFIRENet{kind}" for kind in ("", "Paper", "NoFabric")])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("size", "most"), [(40, 1), (64, 0.9)])
def test_keeps_less_for_the_backward_pass_than_the_unet(trainer, autocast, size, most):
    """On a GPU, in both precisions. Without recomputation it was 1.5 times as much, and with dropout 2.3 times."""
    setting = patch_setting((size,) * 3, batch=2, channels=1, classes=3)
    ours, unet = (
        saved_bytes(
            partial(build_network, find_trainer(name), setting, deep_supervision=False),
            setting.shape,
            device="cuda",
            autocast=autocast,
        )
        for name in (trainer, STOCK_TRAINER)
    )
    assert ours <= most * unet


@pytest.mark.parametrize("dropout", [0.5, 0.0])
def test_what_is_computed_twice_is_the_same_twice(dropout):
    """Gradients against a network that keeps everything: recomputation has to meet the same random numbers."""
    torch.manual_seed(0)
    network = FIRENet(1, 2, dropout=dropout, strides=((2, 2),) * 4, kernel_sizes=((3, 3),) * 5).double().train()
    x = torch.randn(2, 1, 20, 23, dtype=torch.float64)
    gradients = []
    for keep in (False, True):
        network.zero_grad()
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patch:
            for module in (blocks, aspp, firenet) if keep else ():
                patch.setattr(module, "recompute", lambda function, *inputs, **_: function(*inputs))
            network(x).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert_close(*gradients, rtol=0, atol=1e-12)


def test_one_compiled_network_serves_all_sizes():
    """One graph for the first size, and one for all others, odd ones included."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = small(2).double()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for size in ((32, 24), (36, 44), (33, 47), (37, 41), (70, 22)):
        x = torch.randn(1, 1, *size, dtype=torch.float64)
        assert_close(compiled(x), network(x), rtol=0, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
