"""The classic networks are the published ones: their counts, MONAI's outputs, their outputs under nnU-Net's loss."""

import re

import pytest
import torch
from conftest import saved_bytes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_names import FakeDataset
from torch import nn
from torch.testing import assert_close

from nnunet_plugins.cli import main
from nnunet_plugins.networks.layers.attention import record_attention
from nnunet_plugins.networks.mednext import MedNeXt
from nnunet_plugins.networks.segresnet import SegResNet
from nnunet_plugins.networks.unet_classic import ClassicUNet
from nnunet_plugins.networks.unetplusplus import UNetPlusPlus
from nnunet_plugins.networks.vnet import VNet
from nnunet_plugins.planning.setting import build_optimizer
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import locate
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.checks import loss_piece
from nnunet_plugins.trainers.compose import trainer_class

ROWS = {row.trainer.removeprefix("nnUNetTrainer"): row for row in BACKBONES}


def isotropic(kind, dim, *arguments, **options):
    """Build a network with strides of 2 and kernels of 3."""
    steps = kind.downsamplings(**options)
    return kind(*arguments, strides=((2,) * dim,) * steps, kernel_sizes=((3,) * dim,) * (steps + 1), **options)


def of_row(name, dim, *arguments):
    return isotropic(locate(ROWS[name].network), dim, *arguments, **ROWS[name].options)


def count(make, *without):
    """Parameters, but for those of modules of some kinds."""
    with torch.device("meta"):
        network = make()
    left_out = {id(p) for module in network.modules() if isinstance(module, without) for p in module.parameters()}
    return sum(p.numel() for p in network.parameters() if id(p) not in left_out)


COURSE = {"norm": "batch", "up_norm": True}
BUDA = {"features": (32, 64, 128, 256, 512), "norm": "batch", "conv_bias": False}
UNET3D = {"features": (64, 128, 256, 512), "early_doubling": True, "norm": "batch"}


@pytest.mark.parametrize(
    ("options", "dim", "channels", "expected"),
    [
        ({}, 2, (1, 2), 31_030_658),
        (COURSE, 2, (1, 2), 31_044_354),
        (COURSE, 2, (3, 1), 31_045_441),
        (BUDA, 2, (3, 1), 7_763_041),
        (BUDA, 2, (1, 5), 7_762_597),
        (BUDA, 2, (1, 24), 7_763_224),
        ({"features": (32, 64, 128, 256, 512)}, 2, (1, 1), 7_759_521),
        ({**UNET3D, "up_bias": False, "conv_bias": False}, 3, (3, 3), 19_072_291),
        (UNET3D, 3, (3, 3), 19_075_523),
        (UNET3D, 3, (1, 3), 19_073_795),
    ],
)
def test_u_nets_have_the_published_parameters(options, dim, channels, expected):
    assert count(lambda: isotropic(ClassicUNet, dim, *channels, **options)) == expected


@pytest.mark.parametrize(
    ("name", "dim", "channels", "expected"),
    [
        ("UNet2015", 2, (1, 2), 31_030_658),
        ("AttentionUNet", 3, (1, 4), 6_214_151),  # the authors' code, single attention
        ("VNet", 3, (1, 2), 65_182_226),
        ("SegResNet", 3, (1, 5), 4_700_965),
        ("SegResNet", 3, (4, 3), 4_702_227),
        ("UNetPlusPlus", 2, (1, 1), 9_041_700),
    ],
)
def test_rows_have_the_published_parameters(name, dim, channels, expected):
    assert count(lambda: of_row(name, dim, *channels)) == expected


def test_the_3d_u_net_has_the_paper_s_parameters_but_for_its_norms():
    assert count(lambda: of_row("UNet3D", 3, 3, 3), nn.BatchNorm3d) == 19_069_955


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"upsampling": "nearest"}])
def test_unknown_options_of_a_u_net_are_named(options):
    with pytest.raises(ValueError, match=r"norm must be one of .* and upsampling one of"):
        isotropic(ClassicUNet, 2, 1, 2, **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ClassicUNet, {"features": (4,)}),
        (UNetPlusPlus, {"features": (4,)}),
        (VNet, {"features": (4,), "convolutions": (1,)}),
        (SegResNet, {"blocks": (1,)}),
        (MedNeXt, {"blocks": (1,), "ratios": (2,)}),
    ],
)
def test_a_network_of_one_scale_is_refused(kind, options):
    with pytest.raises(ValueError, match="has at least two levels, got 1"):
        isotropic(kind, 2, 1, 2, **options)(torch.zeros(1, 1, 8, 8))


def test_gates_weigh_the_shortcuts():
    """A gate that is shut lets nothing through but what the convolutions after it add."""
    gate = locate("nnunet_plugins.networks.layers.gate.AttentionGate")(4, 8, (2, 2), norm="instance")
    skip, coarse = torch.randn(1, 4, 9, 8), torch.randn(1, 8, 4, 4)
    attention = gate.attention(skip, coarse)
    assert attention.shape == (1, 1, 9, 8)
    assert attention.min() > 0
    assert attention.max() < 1
    assert gate(skip, coarse).shape == skip.shape
    nn.init.constant_(gate.attention.score.bias, -100.0)
    assert_close(gate(skip, coarse), gate.project(torch.zeros_like(skip)))


def test_the_gates_maps_are_recorded_as_those_of_autofocus_layers_are():
    options = {"features": (4, 4, 8, 8), "upsampling": "linear", "gated": True}
    network = isotropic(ClassicUNet, 2, 1, 2, **options).eval()
    with record_attention(network) as maps, torch.no_grad():
        network(torch.randn(1, 1, 17, 16))
    assert {name: tuple(found.shape) for name, found in maps.items()} == {
        "gates.0": (1, 1, 8, 8),
        "gates.1": (1, 1, 4, 4),
    }
    assert all(found.min() > 0 and found.max() < 1 for found in maps.values())
    assert not any(module._forward_hooks for module in network.modules())


def test_the_v_net_has_the_paper_s_convolutions():
    """Counted by hand from Fig. 2: 125 weights for each pair of channels."""
    with torch.device("meta"):
        network = of_row("VNet", 3, 1, 2)
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (5, 5, 5)]
    assert sum(weight.numel() for weight in kernels) == 64_386_000
    assert len(kernels) == 21


def test_the_v_net_s_stages_add_their_input():
    """With all convolutions at zero only the image's mean over its channels, and the shortcuts, are left."""
    network = isotropic(VNet, 2, 3, 2, features=(2, 4), convolutions=(1, 1, 1), norm=None)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.zeros_(parameter)
    nn.init.ones_(network.decoder.seg_layers[0].weight)
    mean = (x := torch.randn(1, 3, 7, 8)).mean(dim=1, keepdim=True)
    # Two of the last stage's four channels are the shortcut, which is the mean. Both stages activate what they have
    # added, with a slope of 1/4 below 0.
    assert_close(network(x)[:, :1], 2 * torch.where(mean > 0, mean, mean / 16))


@pytest.mark.parametrize("width", [12, 0])
def test_segresnet_s_width_has_to_hold_the_groups(width):
    with pytest.raises(ValueError, match=f"8 groups of channels: width must be a multiple of 8, got {width}"):
        isotropic(SegResNet, 2, 1, 2, width=width)


def test_the_wide_segresnet_is_the_paper_s():
    assert count(lambda: isotropic(SegResNet, 3, 4, 3, width=32)) == 18_798_627


def take(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy the weights of a part that has the same layers in the same order."""
    own, other = ours.state_dict(), list(theirs.state_dict().values())
    assert [value.shape for value in own.values()] == [value.shape for value in other]
    ours.load_state_dict(dict(zip(own, other, strict=True)))


@pytest.mark.parametrize("dim", [2, 3])
def test_segresnet_is_monai_s(dim):
    monai = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = monai.SegResNet(spatial_dims=dim, init_filters=8, in_channels=2, out_channels=3)
    ours = isotropic(SegResNet, dim, 2, 3, width=8)
    take(ours.first, theirs.convInit)
    for level, layers in enumerate(theirs.down_layers):
        if level:
            take(ours.down[level - 1], layers[0])
        for block, other in zip(ours.encoder[level], layers[1:], strict=True):
            take_block(block, other)
    for up, block, other_up, other in zip(
        reversed(ours.up), reversed(ours.expansion), theirs.up_samples, theirs.up_layers, strict=True
    ):
        take(up, other_up)
        take_block(block, other[0])
    take(ours.last, theirs.conv_final[0])
    take(ours.decoder.seg_layers[0], theirs.conv_final[2])
    x = torch.randn(1, 2, *(16, 24, 16)[:dim])
    assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def take_block(ours: nn.Module, theirs: nn.Module) -> None:
    for part, layer in {"norm1": 0, "conv1": 2, "norm2": 3, "conv2": 5}.items():
        take(ours[layer], getattr(theirs, part))


# MONAI's U-Nets bring the finest map up without halving its channels: ours agree where the two finest are alike.
ALIKE = (4, 4, 8, 16, 32)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("norm", [None, "instance"])
def test_the_u_net_is_monai_s(dim, norm):
    """Its order of layers and what is concatenated to what; MONAI's has LeakyReLU unless told otherwise."""
    monai = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = monai.BasicUNet(dim, 2, 3, (*ALIKE, ALIKE[0]), "relu", norm and (norm, {"affine": True})).eval()
    ours = isotropic(ClassicUNet, dim, 2, 3, features=ALIKE, norm=norm).eval()
    downs = [theirs.conv_0, *(getattr(theirs, f"down_{n}").convs for n in range(1, 5))]
    for stage, other in zip(ours.encoder, downs, strict=True):
        take(stage, other)
    for n, (up, stage) in enumerate(zip(ours.up, ours.expansion, strict=True), start=1):
        take(up, getattr(theirs, f"upcat_{n}").upsample)
        take(stage, getattr(theirs, f"upcat_{n}").convs)
    take(ours.decoder.seg_layers[0], theirs.final_conv)
    x = torch.randn(1, 2, *(32, 48, 33)[:dim])
    assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dim", [2, 3])
def test_u_net_plus_plus_is_monai_s(dim):
    """Output for output; MONAI's gives that of X(0,4) last, and takes it alone where ours takes the mean."""
    monai = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = monai.BasicUNetPlusPlus(dim, 2, 3, (*ALIKE, ALIKE[0]), deep_supervision=True, act="relu", norm=None)
    ours = isotropic(UNetPlusPlus, dim, 2, 3, True, features=ALIKE)
    for name, node in ours.nodes.items():
        i, j = name.split("_")
        if j != "0":
            other = getattr(theirs, f"upcat_{name}")
            take(ours.up[name], other.upsample)
            take(node, other.convs)
        else:
            first = getattr(theirs, f"conv_{name}")
            take(node, first if i == "0" else first.convs)
    for head, n in zip(ours.decoder.seg_layers, (4, 3, 2, 1), strict=True):
        take(head, getattr(theirs, f"final_conv_0_{n}"))
    x = torch.randn(1, 2, *(32, 48, 16)[:dim])
    outputs, expected = ours(x), theirs(x)[::-1]
    assert len(outputs) == len(expected) == 4
    for output, other in zip(outputs, expected, strict=True):
        assert_close(output, other, atol=1e-5, rtol=1e-5)
    ours.decoder.deep_supervision = False
    assert_close(ours(x), sum(expected) / 4, atol=1e-5, rtol=1e-5)


MEDNEXT = {
    "S": (5_550_947, 5_980_579),
    "B": (10_526_339, 10_955_971),
    "M": (17_548_995, 18_260_867),
    "L": (61_779_299, 62_992_931),
}


@pytest.mark.parametrize("size", MEDNEXT)
@pytest.mark.parametrize(("kernel", "suffix"), [(3, ""), (5, "Kernel5")])
def test_mednext_has_the_published_parameters(size, kernel, suffix):
    """Those of the outputs below full size are not counted in the paper, whose 61.8 and 63.0 million L has."""
    with torch.device("meta"):
        network = of_row(f"MedNeXt{size}{suffix}", 3, 1, 3)
    heads = sum(p.numel() for p in network.decoder.seg_layers[1:].parameters())
    assert heads == (64 + 128 + 256 + 512) * 3 + 4 * 3
    expected = MEDNEXT[size][kernel == 5]
    assert sum(p.numel() for p in network.parameters()) - heads == expected


@pytest.mark.parametrize(("dim", "kernel"), [(2, 5), (3, 3)])
def test_mednext_is_monai_s(dim, kernel):
    """Where neighbouring scales have one ratio: in MONAI blocks that reduce have that of the scale above."""
    monai = pytest.importorskip("monai.networks.nets.mednext")
    torch.manual_seed(0)
    blocks, ratios = (1, 2, 1, 1, 2, 1, 1, 2, 1), (3, 3, 3, 3, 3, 2, 4, 3, 2)
    theirs = monai.MedNeXt(
        spatial_dims=dim,
        init_filters=4,
        in_channels=2,
        out_channels=3,
        encoder_expansion_ratio=ratios[:4],
        bottleneck_expansion_ratio=ratios[4],
        decoder_expansion_ratio=ratios[5:],
        kernel_size=kernel,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=blocks[:4],
        blocks_bottleneck=blocks[4],
        blocks_up=blocks[5:],
    )
    ours = isotropic(MedNeXt, dim, 2, 3, True, width=4, kernel=kernel, blocks=blocks, ratios=ratios)
    take(ours.stem, theirs.stem)
    for stage, other in zip(ours.encoder, [*theirs.enc_stages, theirs.bottleneck], strict=True):
        take(stage, other)
    take(ours.down, theirs.down_blocks)
    for up, stage, other_up, other in zip(
        reversed(ours.up), reversed(ours.expansion), theirs.up_blocks, theirs.dec_stages, strict=True
    ):
        take(up, other_up)
        take(stage, other)
    outs = [theirs.out_0, *reversed(theirs.out_blocks)]
    for head, out in zip(ours.decoder.seg_layers, outs, strict=True):
        # There a transposed convolution with kernel 1, which is the same.
        head.load_state_dict(
            {"weight": out.conv_out.weight.transpose(0, 1).detach(), "bias": out.conv_out.bias.detach()}
        )
    x = torch.randn(1, 2, *(32, 48, 32)[:dim])
    outputs, expected = ours.train()(x), theirs.train()(x)
    assert len(outputs) == len(expected) == 5
    for output, other in zip(outputs, expected, strict=True):
        assert_close(output, other, atol=1e-5, rtol=1e-5)


def test_mednext_s_blocks_enlarge_each_axis_by_its_own_stride():
    """To the voxel: what is one too long or too short would be mended without a word, and lie beside its place."""
    block = locate("nnunet_plugins.networks.mednext.Block")
    up = block(4, 2, 2, (1, 3, 3), stride=(1, 2, 2), up=True)
    assert up(torch.zeros(1, 4, 3, 5, 6)).shape == (1, 2, 3, 10, 12)


def test_mednext_keeps_less_than_all_of_its_blocks(monkeypatch):
    """Nothing of the many channels inside a block is kept for the backward pass."""
    block = locate("nnunet_plugins.networks.mednext.Block")
    inside = 2 * 4 * 8 * 16**2 * 4  # expanded and activated: R = 8 times 4 channels, in single precision

    def kept():
        return saved_bytes(lambda: block(4, 4, 8, (3, 3)), (1, 4, 16, 16))

    less = kept()
    monkeypatch.setattr("nnunet_plugins.networks.mednext.recompute", lambda function, *inputs: function(*inputs))
    assert kept() - less >= inside // 2


class TestUpKern:
    """Kernels of 3 become kernels of 5, as in MedNeXt's section 2.3; all other weights stay."""

    def networks(self, dim=3, kernel_sizes=None):
        options = {"width": 2, "blocks": (1,) * 3, "ratios": (2,) * 3}
        kernels = kernel_sizes or ((3,) * dim,) * 2
        return [
            MedNeXt(1, 2, strides=((2,) * dim,), kernel_sizes=kernels, kernel=kernel, **options) for kernel in (3, 5)
        ]

    def test_kernels_by_hand(self):
        """Linear interpolation looks from voxel n of 5 to place (n + 1/2) 3/5 - 1/2 of 3."""
        small, large = self.networks(2)
        weights = small.state_dict()
        name = "encoder.0.0.depthwise.weight"
        weights[name][0, 0] = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
        weights[name][1, 0] = torch.tensor([[0.0, 1, 2], [0, 1, 2], [0, 1, 2]])
        grown = large.adopt(weights)[name]
        line = torch.tensor([0, 0.4, 1, 0.4, 0])
        assert_close(grown[0, 0], line[:, None] * line)
        assert_close(grown[1, 0], torch.tensor([0, 0.4, 1, 1.6, 2]).expand(5, 5))

    def test_all_weights_fit_and_no_other_changes(self):
        small, large = self.networks(kernel_sizes=((1, 3, 3), (3, 3, 3)))
        weights = small.state_dict()
        grown = large.adopt(weights)
        large.load_state_dict(grown, strict=True)
        changed = {name for name, value in grown.items() if value.shape != weights[name].shape}
        assert changed
        assert all(name.endswith("depthwise.weight") for name in changed)
        assert large.encoder[0][0].depthwise.weight.shape[2:] == (1, 5, 5)
        assert all(torch.equal(grown[name], weights[name]) for name in set(grown) - changed)

    def test_kernels_do_not_shrink(self):
        small, large = self.networks()
        name = "encoder.0.0.depthwise.weight"
        assert small.adopt(large.state_dict())[name].shape[2:] == (5, 5, 5)

    def test_the_command_grows_a_checkpoint(self, tmp_path, monkeypatch, capsys):
        """nnU-Net's `-pretrained_weights` then finds every weight in the right shape."""
        data = FakeDataset(tmp_path, monkeypatch)
        architecture = data.plans["configurations"]["3d_fullres"]["architecture"]
        architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        made = {}
        for name in ("nnUNetTrainerMedNeXtS", "nnUNetTrainerMedNeXtSKernel5"):
            plans = PlansManager(data.plans)
            trainer, configuration = trainer_class(name), plans.get_configuration("3d_fullres")
            made[name] = trainer.build_network_architecture(plans, configuration, 1, 3, True).state_dict()
        arguments = {"plans": data.plans, "configuration": "3d_fullres", "dataset_json": data.dataset}
        small, large = made
        content = {"network_weights": made[small], "init_args": arguments, "trainer_name": small}
        torch.save(content, tmp_path / "small.pth")
        start = tmp_path / "start.pth"
        assert main(["warm-start", str(tmp_path / "small.pth"), "-tr", large, "-o", str(start)]) == 0
        assert "New weights, all others are the checkpoint's: none" in capsys.readouterr().out
        written = torch.load(start, weights_only=False)["network_weights"]
        assert {key: value.shape for key, value in written.items()} == {
            key: value.shape for key, value in made[large].items()
        }
        assert torch.equal(written["stem.weight"], made[small]["stem.weight"])
        # Numbers of another kind are no weights.
        name = "encoder.0.0.depthwise.weight"
        for change in (
            lambda weight: weight.to(torch.int8),
            lambda weight: weight.to("meta"),
            lambda weight: weight / 0,
        ):
            weights = {**made[small], name: change(made[small][name])}
            torch.save({**content, "network_weights": weights}, tmp_path / "no_numbers.pth")
            command = ["warm-start", str(tmp_path / "no_numbers.pth"), "-tr", large, "-o", str(tmp_path / "no.pth")]
            assert main(command) == 2
            error = capsys.readouterr().err
            assert re.search(rf"the weights in .*no_numbers.pth cannot be used: {name} (is no dense|holds)", error)
            assert error.count("\n") == 1
        # The other way is refused.
        torch.save({**content, "network_weights": made[large]}, tmp_path / "large.pth")
        assert main(["warm-start", str(tmp_path / "large.pth"), "-tr", small, "-o", str(tmp_path / "no.pth")]) == 2
        assert "first of all encoder.0.0.depthwise.weight" in capsys.readouterr().err


def test_u_net_plus_plus_without_its_side_heads():
    with torch.device("meta"):
        network = of_row("UNetPlusPlus", 2, 1, 1)
    assert sum(p.numel() for p in network.parameters()) == 9_041_700
    assert sum(p.numel() for p in network.decoder.seg_layers[1:].parameters()) == 99


def test_u_net_plus_plus_gives_its_largest_u_net_first():
    """The output of X(0,4) looks at the coarsest scale, that of X(0,1) no further than one step."""
    network = isotropic(UNetPlusPlus, 2, 1, 2, True, features=(2, 2, 2, 2, 2))
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = network(x)
        nn.init.zeros_(network.nodes["4_0"][0].weight)
        nn.init.ones_(network.nodes["4_0"][2].bias)
        after = network(x)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("network", "size", "axis", "least"),
    [
        (isotropic(UNetPlusPlus, 2, 1, 2, features=(2, 2, 2), norm="instance"), (4, 7), 1, 8),
        (isotropic(UNetPlusPlus, 2, 1, 2, features=(2, 2, 2)), (3, 7), 0, 4),
        (isotropic(VNet, 2, 1, 2, features=(2, 2), convolutions=(1, 1, 1)), (1, 2), 1, 3),
        (isotropic(MedNeXt, 3, 1, 2, width=2, blocks=(1,) * 3, ratios=(2,) * 3), (2, 1, 2), 0, 3),
    ],
    ids=["instance norm", "no norm", "batch norm", "MedNeXt"],
)
def test_what_leaves_a_single_voxel_is_named(network, size, axis, least):
    """A norm has no statistics over one, and pooling leaves none of three."""
    message = (
        rf"{'x'.join(map(str, size))} voxels is too small.*axis {axis} has {size[axis]} and needs at least {least}$"
    )
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(1, 1, *size))
    enough = [least if n == axis else length for n, length in enumerate(size)]
    assert network(torch.randn(2, 1, *enough)).shape == (2, 2, *enough)


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize(
    ("name", "optimizer", "rates"),
    [
        ("VNetPaper", SGD, [1e-4, 1e-4, 1e-5, 1e-5]),
        ("AttentionUNetPaper", ADAM, [1e-4, 1e-4 * 0.2**0.9, 1e-4 * (1 / 6) ** 0.9, 1e-4 * (1 / 30) ** 0.9]),
        ("SegResNetPaper", ADAM, [1e-4, 1e-4 * 0.2**0.9, 1e-4 * (1 / 6) ** 0.9, 1e-4 * (1 / 30) ** 0.9]),
        ("UNetPlusPlusPaper", ADAM, [3e-4, 3e-4 * 0.2**0.9, 3e-4 * (1 / 6) ** 0.9, 3e-4 * (1 / 30) ** 0.9]),
        ("MedNeXtSPaper", ADAMW, [1e-3, 1e-3 * 0.2**0.9, 1e-3 * (1 / 6) ** 0.9, 1e-3 * (1 / 30) ** 0.9]),
        ("FCN8sPaper", SGD, [1e-4] * 4),
    ],
)
@pytest.mark.parametrize("suffix", ["", "_CELoss"])
def test_the_papers_recipes(name, optimizer, rates, suffix, monkeypatch):
    trainer = object.__new__(trainer_class(f"nnUNetTrainer{name}{suffix}"))
    monkeypatch.setattr(BackboneTrainer, "initialize", lambda self: setattr(self, "loss", None))
    trainer.initialize()
    trainer.network, trainer.num_epochs, trainer.weight_decay = nn.Linear(2, 2), 30, 3e-5
    made, schedule = trainer.configure_optimizers()
    assert type(made) is optimizer
    found = []
    for epoch in (0, 24, 25, 29):
        schedule.step(epoch)
        found.append(made.param_groups[0]["lr"])
    assert found == pytest.approx(rates)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("VNetPaper", {"momentum": 0.99, "weight_decay": 0}),
        ("AttentionUNetPaper", {"weight_decay": 0}),
        ("SegResNetPaper", {"weight_decay": 1e-5}),
        ("UNetPlusPlusPaper", {"weight_decay": 0}),
        ("MedNeXtLKernel5Paper", {"weight_decay": 3e-5, "eps": 1e-4}),
        ("FCN8sPaper", {"momentum": 0.9, "weight_decay": 5e-4}),
    ],
)
def test_the_papers_momentum_and_weight_decay(name, settings):
    made = build_optimizer(trainer_class(f"nnUNetTrainer{name}"), nn.Linear(2, 2))
    assert len(made.param_groups) == 1
    assert {key: made.param_groups[0][key] for key in settings} == settings


def test_dice_alone_is_the_loss_of_those_papers_that_say_so():
    losses = {name: loss_piece(trainer_class(f"nnUNetTrainer{name}")) for name in ROWS if name.endswith("Paper")}
    dice = {name for name, loss in losses.items() if loss and loss.name == "DiceLoss"}
    assert dice >= {"VNetPaper", "SegResNetPaper", "AttentionUNetPaper"}
    assert not dice & {"UNetPlusPlusPaper", "MedNeXtSPaper", "FCN8sPaper"}
    assert losses["FCN8sPaper"].name == "CELoss"
