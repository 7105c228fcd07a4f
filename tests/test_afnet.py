"""The autofocus family: the papers' parameter counts, and what "same" padding does to BASIC."""

import copy
from functools import partial

import pytest
import torch
from conftest import saved_bytes
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_plugins.networks.afnet import AFNet, Context, ResidualBlock
from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.networks.layers.device import compute_as_on
from nnunet_plugins.networks.topology import anisotropy
from nnunet_plugins.registry import BACKBONES

# Qin et al. 2018, Table 3, and the authors' code for those the table leaves out; 4 channels, 5 classes.
PAPER = {
    "AFNBasic": 315_725,
    "ASPPS": 967_330,
    "ASPPC": 478_435,
    "DeepMedic": 662_555,
    "AFN1": 349_904,
    "AFN2": 371_908,
    "AFN3": 393_852,
    "AFN4": 415_796,
    "AFN5": 437_740,
    "AFN6": 450_209,
}
ROWS = {row.trainer.removeprefix("nnUNetTrainer"): row for row in BACKBONES if row.network.endswith(".AFNet")}


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("recipe", ["", "Paper"])
def test_parameters_are_the_papers(name, recipe):
    network = AFNet(input_channels=4, num_classes=5, **ROWS[name + recipe].options)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == PAPER[name]


def test_every_network_of_the_paper_has_a_row():
    assert set(ROWS) == {name + recipe for name in PAPER for recipe in ("", "Paper")}


class ValidBlock(nn.Module):
    """A residual block without padding, with the weights of one that has it."""

    def __init__(self, block: ResidualBlock):
        super().__init__()
        self.block = block

    def forward(self, x):
        block = self.block
        y = block.second(block.relu(block.first(x)))
        return block.relu(y + block.skip(x[:, :, 4:-4, 4:-4, 4:-4]))


def test_basic_agrees_with_valid_convolutions_14_voxels_from_the_border():
    torch.manual_seed(0)
    same = AFNet(input_channels=1, num_classes=2).double().eval()
    for module in same.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    valid = copy.deepcopy(same)
    for module in valid.modules():
        if isinstance(module, nn.Conv3d):
            module.padding = (0, 0, 0)
    for k in (2, 3, 4):
        valid.pathway[k] = ValidBlock(valid.pathway[k])
    x = torch.randn(1, 1, 31, 33, 30, dtype=torch.float64)
    with torch.no_grad():
        inside = same(x)[:, :, 14:-14, 14:-14, 14:-14]
        assert valid(x).shape == inside.shape == (1, 2, 3, 5, 2)
        assert_close(inside, valid(x), rtol=0, atol=1e-12)
        # Two voxels further out the padding of the second layer shows.
        border = same(x)[:, :, 12:13, 14:-14, 14:-14]
        assert not torch.allclose(border, valid(nn.functional.pad(x, (0, 0, 0, 0, 2, 0)))[:, :, :1])


@pytest.mark.parametrize("n", range(7))
def test_autofocus_sits_in_the_last_layers(n):
    network = AFNet(1, 2, autofocus_layers=n)
    layers = [block[0] for block in list(network.pathway)[:2]]
    layers += [layer for block in list(network.pathway)[2:] for layer in (block.first, block.second)]
    kinds = [isinstance(layer[0], AutofocusConv) for layer in layers]
    assert kinds == [False] * (8 - n) + [True] * n
    rates = [layer[0].dilation for layer in layers if isinstance(layer[0], nn.Conv3d)]
    assert rates == ([(1, 1, 1)] * 2 + [(2, 2, 2)] * 6)[: 8 - n]


def test_norm_follows_the_sum_where_it_is_not_in_the_branches():
    network = AFNet(1, 2, autofocus_layers=2, branch_norm=False, detach_attention=False)
    block = network.pathway[4]
    assert [type(module) for module in block.first] == [AutofocusConv, nn.BatchNorm3d]
    assert not block.first[0].norms
    assert not block.first[0].detach_attention


def test_rates_shrink_along_coarse_axes():
    strides, kernels = [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]
    assert anisotropy(strides, kernels) == (2, 1, 1)
    network = AFNet.from_plan(
        input_channels=1,
        num_classes=2,
        deep_supervision=False,
        patch_size=(8, 32, 32),
        strides=strides,
        kernel_sizes=kernels,
        autofocus_layers=1,
    )
    assert network.pathway[2].first[0].dilation == (1, 2, 2)
    assert network.pathway[4].second[0].rates == ((1, 2, 2), (3, 6, 6), (5, 10, 10), (7, 14, 14))


@pytest.mark.parametrize(
    ("strides", "kernels", "factors"),
    [
        ([(1, 1), (2, 2)], [(3, 3), (3, 3)], (1, 1)),
        ([(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)], (4, 1, 1)),
        ([(1, 1, 1), (1, 2, 2), (1, 2, 2)], [(1, 3, 3)] * 3, (4, 1, 1)),
        ([(1, 1, 1), (1, 2, 2)], [(3, 3, 3), (3, 3, 3)], (1, 1, 1)),
    ],
)
def test_anisotropy_of_plans(strides, kernels, factors):
    assert anisotropy(strides, kernels) == factors


@pytest.mark.parametrize("size", [(9, 9, 9), (10, 11, 7), (3, 4, 2)])
def test_context_sees_means_over_a_third_of_the_resolution(size):
    torch.manual_seed(0)
    context = Context(nn.Identity(), (3, 3, 3))
    x = torch.randn(1, 2, *size)
    out = context(x)
    assert out.shape == x.shape
    if min(size) >= 3:
        assert_close(out[0, :, 0, 0, 0], x[0, :, :3, :3, :3].mean(dim=(1, 2, 3)))
        assert_close(out[0, :, 2, 2, 2], out[0, :, 0, 0, 0])


def test_deepmedic_pads_channels_with_zeros_where_others_project():
    assert all(isinstance(block.skip, nn.Identity) for block in list(AFNet(1, 2, pathways=2).pathway)[2:])
    assert [isinstance(block.skip, nn.Identity) for block in list(AFNet(1, 2).pathway)[2:]] == [False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autofocus_layers": 7}, "n = 1 to 6"),
        ({"aspp": "max"}, "'concat' or 'sum'"),
        ({"pathways": 3}, "pathways 1 or 2"),
        ({"autofocus_layers": 2, "aspp": "sum"}, "choose one"),
        ({"rates": ()}, "whole numbers from 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        AFNet(1, 2, **options)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_last_reach_the_convolutions_and_change_nothing(channels):
    network = AFNet(channels, 3, autofocus_layers=2).eval()
    image = torch.randn(1, channels, 9, 10, 11)
    layouts = []
    for block in list(network.pathway)[2:]:
        block.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0]))
    output = network(image)
    assert len(layouts) == 3
    assert all(x.is_contiguous(memory_format=torch.channels_last_3d) for x in layouts)
    plain = network.decoder([torch.nn.Sequential.forward(network.pathway, image)])
    torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branch_norm", [True, False])
@pytest.mark.parametrize(("device", "autocast"), [("cpu", False), ("cuda", False), ("cuda", True)])
def test_autofocus_layers_keep_less_for_the_backward_pass_than_plain_ones(branch_norm, device, autocast):
    """AFN-6 against BASIC, in which no layer is an autofocus layer; the plain form kept 3.6 and 2.6 times as much."""
    count = partial(saved_bytes, shape=(1, 4, 48, 48, 48), device=device, autocast=autocast)
    autofocus = count(partial(AFNet, 4, 5, autofocus_layers=6, branch_norm=branch_norm))
    assert autofocus <= 0.85 * count(partial(AFNet, 4, 5))


def test_a_gpu_gets_neither_the_layout_nor_the_operator_of_the_cpu():
    """With a GPU the recomputation stays, but its convolutions are PyTorch's, on maps in the layout of the image."""
    network = AFNet(1, 3, autofocus_layers=2, dim=2)
    x = torch.randn(1, 1, 9, 10)
    names, layouts = [], []
    for block in network.pathway:
        block.register_forward_hook(lambda _, __, output: layouts.append(output.is_contiguous()))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.name())
            return func(*args, **(kwargs or {}))

    outputs, calls = [], []
    for device in ("cpu", "cuda"):
        with compute_as_on(device), Operators():
            outputs.append(network(x))
        calls.append(sum(name == "nnunet_plugins::shared_convolution" for name in names))
        names.clear()
    assert calls == [2, 0]
    assert not any(layouts[:5])
    assert all(layouts[5:])
    assert_close(*outputs)


@pytest.mark.parametrize("branch_norm", [True, False])
def test_a_trained_network_gives_the_same_in_every_form(branch_norm):
    torch.manual_seed(0)
    make = partial(AFNet, 1, 2, dim=2, autofocus_layers=4, branch_norm=branch_norm)
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        network(torch.randn(2, 1, 20, 20)).square().mean().backward()
        optimizer.step()
    x = torch.randn(1, 1, 20, 20)
    plain = make(form="plain")
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert_close(network.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
