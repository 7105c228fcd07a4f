"""Modules that know nothing of nnU-Net, made into networks that it can train."""

import io
import re

import monai.networks.nets as monai
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nnunet_plugins.forecast import forecast_training, measure_training
from nnunet_plugins.networks.adapted import Adapted
from nnunet_plugins.testing.outputs import full_precision_modules


class Halving(nn.Module):
    """Halves an image some times, and returns to its size; with outputs at each, the smallest first, if asked to."""

    def __init__(self, channels: int, classes: int, dim: int, times: int = 2, *, several: bool = False) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        self.first = conv(channels, 4, 3, padding=1)
        self.down = nn.ModuleList(nn.Sequential(conv(4, 4, 2, 2), norm(4)) for _ in range(times))
        self.heads = nn.ModuleList(conv(4, classes, 1) for _ in range(times if several else 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        x = self.first(x)
        maps = [x]
        for down in self.down:
            maps.append(down(maps[-1]))
        outputs = []
        for number in range(len(self.down) - 1, -1, -1):
            up = nn.functional.interpolate(maps[number + 1], scale_factor=2.0)
            maps[number] = maps[number] + up
            if number < len(self.heads):
                outputs.append(self.heads[number](maps[number]))
        return outputs if len(outputs) > 1 else outputs[0]


def halving(*, input_channels, num_classes, dimensions, patch_size, **options):
    return Halving(input_channels, num_classes, dimensions, **options)


def make(factory=halving, patch=(12, 20), classes=3, deep_supervision=False, **options) -> Adapted:
    return Adapted.from_plan(
        input_channels=2,
        num_classes=classes,
        deep_supervision=deep_supervision,
        patch_size=patch,
        strides=[],
        kernel_sizes=[],
        factory=factory,
        **options,
    )


@pytest.mark.parametrize(("times", "multiple"), [(1, 2), (3, 8), (5, 32)])
def test_the_multiple_is_found_and_any_size_is_taken(times, multiple):
    network = make(times=times, patch=(21, 37)).eval()
    assert network.multiple == (multiple, multiple)
    x = torch.randn(1, 2, 45, 67)
    out = network(x)
    assert out.shape == (1, 3, 45, 67)
    padded = nn.functional.pad(x, [0, -67 % multiple, 0, -45 % multiple])
    assert_close(out, network.body(padded)[..., :45, :67])


def test_the_output_layer_is_renamed_and_not_copied():
    network = make(deep_supervision=True, several=True, output=1)
    state = network.state_dict()
    heads = {key for key in state if key.startswith("decoder.seg_layers.")}
    assert heads == {f"decoder.seg_layers.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    assert not [key for key in state if "heads" in key]
    assert set(state) == {name for name, _ in network.named_parameters()}
    assert sum(value.numel() for value in state.values()) == sum(p.numel() for p in network.body.parameters())
    other = make(several=True, output=1)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file), strict=True)
    x = torch.randn(1, 2, 12, 20)
    assert_close(other(x), network(x)[0])
    wrapped = nn.Sequential(make(several=True, output=1))  # as DDP and torch.compile do, under a prefix
    wrapped.load_state_dict({f"0.{key}": value for key, value in state.items()}, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*decoder.seg_layers.1.weight"):
        other.load_state_dict({key: value for key, value in state.items() if key != "decoder.seg_layers.1.weight"})


def test_several_outputs_come_the_one_that_counts_first():
    network = make(deep_supervision=True, several=True, output=1, patch=(12, 20))
    assert network.scales == ((1, 1), (0.5, 0.5))
    outputs = network(torch.randn(2, 2, 13, 22))
    assert [out.shape[2:] for out in outputs] == [(13, 22), (6, 11)]
    network.decoder.deep_supervision = False
    assert network(torch.randn(2, 2, 13, 22)).shape == (2, 3, 13, 22)
    with pytest.raises(
        ValueError, match=r"takes no multiple of 1, 2, .*; the last reason: it returns \[\d+, \d+\] vox"
    ):
        make(several=True)


def test_a_patch_that_is_too_small_is_named_with_what_would_do():
    with pytest.raises(
        ValueError, match=r"halving: a patch of 4x4 voxels does not fit .* axis 0 has 4 and needs at le"
    ) as caught:
        make(patch=(4, 4), times=3)
    enough = int(re.findall("at least ([0-9]+)", str(caught.value))[0])
    assert enough == 9
    make(patch=(9, 4), times=3)
    with pytest.raises(ValueError, match="axis 0 has 8"):
        make(patch=(8, 4), times=3)


class Normed(nn.Module):
    """Layers that CUDA's autocast computes in float32."""

    def __init__(self, channels, classes):
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 4, 2, 2), nn.GroupNorm(2, 4)
        self.up, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, classes, 1)

    def forward(self, x):
        return self.last(self.up(self.norm(self.first(x))))


def test_maps_stay_in_half_precision():
    def network():
        return make(lambda *, input_channels, num_classes, **_: Normed(input_channels, num_classes))

    assert full_precision_modules(network, (2, 2, 12, 20)) == []
    adapted, x = network(), torch.randn(2, 2, 12, 20)
    assert_close(adapted(x), adapted.body(x), msg="in single precision nothing is different")


def test_its_memory_is_forecast():
    """On tensors without memory, of which the network makes a twin of its own to find what it takes."""
    counted = forecast_training(make, (2, 2, 12, 20), autocast=False)
    assert counted == measure_training(make(), (2, 2, 12, 20), autocast=False)
    assert forecast_training(make, (2, 2, 12, 20), autocast=True).parameters == counted.parameters


def bad(kind):
    def factory(*, input_channels, num_classes, **_):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Conv2d(input_channels, num_classes, 1)
                if kind == "own weight":
                    self.out = None
                    self.weight = nn.Parameter(torch.ones(num_classes, 1, 1))
                if kind == "other names":
                    setattr(self, f"layer{num_classes}", nn.Linear(2, 2))

            def forward(self, x):
                if kind == "own weight":
                    return x[:, :1] * self.weight
                if kind == "smaller":
                    return self.out(x)[..., 1:]
                return {"dict": {"logits": self.out(x)}, "classes": self.out(x).argmax(1)}.get(kind, self.out(x))

        return {"a function": len, "fixed": nn.Conv2d(2, 3, 1)}.get(kind) or Net()

    return factory


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("a function", TypeError, "returned builtin_function_or_method, and has to return a torch.nn.Module"),
        ("fixed", ValueError, "no weight of the network depends on num_classes"),
        ("own weight", ValueError, "the output layer's weights have to be in a module of their own"),
        ("other names", ValueError, "with another number of classes the network has other weights"),
        ("smaller", ValueError, "takes no multiple of"),
        ("dict", TypeError, "returned dict; nnU-Net needs logits"),
        ("classes", TypeError, r"one channel per class"),
    ],
)
def test_what_cannot_be_adapted_is_said_before_training(kind, error, reason):
    with pytest.raises(error, match=rf"factory: .*{reason}|factory {reason}"):
        make(bad(kind))
    with pytest.raises(ValueError, match="axis 0 has 1 and needs at least"):
        make(patch=(1, 1))


# MONAI's networks, and the multiple of voxels that each takes; an error where it cannot be one of nnU-Net's.
MONAI = {
    "BasicUNet": (1, lambda c, k, d: monai.BasicUNet(d, c, k, features=(4,) * 6)),
    "BasicUNet++": (1, lambda c, k, d: monai.BasicUNetPlusPlus(d, c, k, features=(4,) * 6)),
    "UNet": (8, lambda c, k, d: monai.UNet(d, c, k, channels=(4,) * 4, strides=(2,) * 3)),
    "AttentionUnet": (8, lambda c, k, d: monai.AttentionUnet(d, c, k, channels=(4,) * 4, strides=(2,) * 3)),
    "DynUNet": (4, lambda c, k, d: monai.DynUNet(d, c, k, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 4])),
    "VNet": (16, lambda c, k, d: monai.VNet(d, c, k)),
    "SegResNet": (8, lambda c, k, d: monai.SegResNet(d, 8, c, k)),
    "SegResNetDS": (8, lambda c, k, d: monai.SegResNetDS(d, 8, c, k)),
    "HighResNet": (1, lambda c, k, d: monai.HighResNet(d, c, k)),
    "MedNeXt": (16, lambda c, k, d: monai.MedNeXt(d, 4, c, k)),
    "UNETR": (ValueError, lambda c, k, d: monai.UNETR(c, k, (32,) * d, spatial_dims=d, feature_size=4)),
    "SwinUNETR": (32, lambda c, k, d: monai.SwinUNETR(c, k, feature_size=12, spatial_dims=d)),
}


@pytest.mark.parametrize("name", MONAI)
@pytest.mark.parametrize("patch", [(48, 56, 40), (37, 40)], ids=["3d", "2d"])
def test_monais_networks_train_or_are_refused(name, patch):
    multiple, build = MONAI[name]

    def factory(*, input_channels, num_classes, dimensions, patch_size):
        return build(input_channels, num_classes, dimensions)

    output = -1 if name == "BasicUNet++" else 0
    if multiple is ValueError:
        with pytest.raises(ValueError, match=r'takes no multiple of 1, .*; the last reason: .*the option "mult'):
            make(factory, patch)
        return
    network = make(factory, patch, output=output)
    assert network.multiple == (multiple,) * len(patch)
