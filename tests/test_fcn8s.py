"""FCN-8s: its parameters, its sizes, and its start from VGG16."""

import io
import os
import re
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torchvision.models import vgg16, vgg16_bn

from nnunet_plugins.cli import main
from nnunet_plugins.networks.fcn8s import FCN8s, bilinear
from nnunet_plugins.planning.setting import patch_setting
from nnunet_plugins.starts import vgg16 as command
from nnunet_plugins.trainers.compose import trainer_class

NARROW = {"features": (2, 2, 4, 4, 4), "hidden": 8}


def test_it_has_the_published_parameters():
    with torch.device("meta"):
        network, normed = FCN8s(3, 21), FCN8s(1, 3, norm="batch")
    everything = sum(p.numel() for p in network.parameters())
    upsampling = sum(layer.weight.numel() for layer in network.decoder.seg_layers[3:])
    assert (everything, everything - upsampling) == (134_489_759, 134_362_751)
    assert sum(p.numel() for p in normed.parameters()) == 134_285_033


def test_upsampling_begins_as_linear_interpolation():
    layer = torch.nn.ConvTranspose2d(2, 2, 4, 2, padding=1, bias=False)
    bilinear(layer)
    x = torch.randn(1, 2, 6, 5)
    inside = (
        slice(None),
        slice(None),
        slice(1, -1),
        slice(1, -1),
    )  # at the border interpolation repeats the last pixel
    assert_close(layer(x)[inside], torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")[inside])


@pytest.mark.parametrize("size", [(24, 56), (37, 41), (33, 1), (192, 160)])
def test_any_size(size):
    assert FCN8s(1, 3, **NARROW)(torch.zeros(1, 1, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("size", "axis"), [((16, 16), 0), ((9, 16), 1)])
def test_a_norm_over_a_single_pixel_is_refused(norm, size, axis):
    """The last normed convolutions see a sixteenth of the size; a plan that leaves one pixel fails before training."""
    plan = {"patch_size": size, "strides": [[1, 1]], "kernel_sizes": [[3, 3]]}
    numbers = {"input_channels": 1, "num_classes": 2, "deep_supervision": False}
    message = rf"{'x'.join(map(str, size))} voxels is too small.*axis {axis} has 16 and needs at least 17"
    with pytest.raises(ValueError, match=f"{message}. Use a larger patch size in the plans file"):
        FCN8s.from_plan(**numbers, **plan, **NARROW, norm=norm)
    network = FCN8s(1, 2, **NARROW, norm=norm)
    with pytest.raises(ValueError, match=message):
        network(torch.randn(2, 1, *size))
    enough = [17 if n == axis else length for n, length in enumerate(size)]
    assert network(torch.randn(1, 1, *enough)).shape == (1, 2, *enough)
    assert FCN8s(1, 2, **NARROW)(torch.randn(1, 1, *size)).shape == (1, 2, *size)


def test_an_image_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match=r"FCN-8s was built for 2D images, got a spatial size \(32, 32, 32\)"):
        FCN8s(1, 2, **NARROW)(torch.zeros(1, 1, 32, 32, 32))


def test_an_image_that_is_moved_has_its_scores_moved():
    """By 32 pixels, as far from the border as the network sees."""
    torch.manual_seed(0)
    network = FCN8s(1, 2, **NARROW).eval()
    image = torch.zeros(1, 1, 768, 32)
    image[:, :, 352:384] = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        logits, moved = network(image), network(image.roll(32, dims=2))
    assert_close(logits[:, :, 320:416], moved[:, :, 352:448])


def narrow_vgg16(channels=3):
    """What torchvision's file holds, of the narrow network."""
    own = FCN8s(channels, 2, **NARROW)
    convolutions = [m for n, m in own.named_modules() if isinstance(m, torch.nn.Conv2d) and "seg_layers" not in n]
    names = [name.removesuffix(".weight") for name, value in VGG16.items() if name.endswith("weight")]
    weights = {}
    for name, layer in zip(names, convolutions, strict=False):
        flat = name.startswith("classifier")
        weights[f"{name}.weight"] = torch.randn(layer.weight.flatten(1).shape if flat else layer.weight.shape)
        weights[f"{name}.bias"] = torch.randn(layer.bias.shape)
    return {**weights, "classifier.6.weight": torch.randn(1000, 8), "classifier.6.bias": torch.randn(1000)}


with torch.device("meta"):
    VGG16, VGG16_BN = vgg16(weights=None).state_dict(), vgg16_bn(weights=None).state_dict()


def test_it_takes_what_torchvision_has():
    with torch.device("meta"):
        network = FCN8s(3, 21)
    found = network.adopt_vgg16(VGG16)
    own = network.state_dict()
    assert set(found) == {name for name in own if ".seg_layers." not in name}
    assert all(found[name].shape == own[name].shape for name in found)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_computes_what_vgg16_does(channels):
    weights = narrow_vgg16()
    network = FCN8s(channels, 2, **NARROW).eval()
    network.load_state_dict(network.adopt_vgg16(weights), strict=False)
    grey = torch.randn(1, 1, 9, 9)
    x = grey.repeat(1, channels, 1, 1)
    first = torch.nn.functional.conv2d(
        grey.repeat(1, 3, 1, 1), weights["features.0.weight"], weights["features.0.bias"], padding=1
    )
    assert_close(network.stages[0][0][0](x), first)
    # On a map of 7x7 the layer that was fully connected sees all of it in the middle.
    x = torch.randn(1, 4, 7, 7)
    connected = torch.nn.functional.linear(x.flatten(1), weights["classifier.0.weight"], weights["classifier.0.bias"])
    assert_close(network.classifier[0](x)[:, :, 3, 3], connected)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run the command for the narrow network, on a plan of 32x32 with one channel."""
    trainer = trainer_class("nnUNetTrainerFCN8s")
    narrow = type("nnUNetTrainerFCN8s", (trainer,), {"backbone": replace(trainer.backbone, options=NARROW)})
    monkeypatch.setattr(command, "find_trainer", lambda name: narrow if name.endswith("FCN8s") else trainer_class(name))
    monkeypatch.setattr(command, "plan_setting", lambda *_: patch_setting((32, 32), 2, 1, 3))

    def run(content, trainer="nnUNetTrainerFCN8s"):
        file = tmp_path / "vgg16.pth"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        return main(["warm-start", str(file), "-tr", trainer, "-d", "1", "-c", "2d", "-o", str(tmp_path / "start.pth")])

    return run


def test_the_command_writes_a_start(start, tmp_path, capsys):
    weights = narrow_vgg16()
    assert start(weights) == 0
    told = capsys.readouterr().out
    assert "nnUNetv2_train 1 2d 0 -p nnUNetPlans -tr nnUNetTrainerFCN8s -pretrained_weights" in told
    written = torch.load(tmp_path / "start.pth")["network_weights"]
    network = FCN8s(1, 3, **NARROW)
    network.load_state_dict(written, strict=True)
    assert torch.equal(network.classifier[3].weight.flatten(1), weights["classifier.3.weight"])


def without(name):
    return {key: value for key, value in narrow_vgg16().items() if key != name}


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


WHOLE = narrow_vgg16()
DAMAGED = r"vgg16.pth is damaged: what it holds is not what was written"
WANTED = r"what is wanted is torchvision's VGG16 without batch norm, vgg16-397923af.pth"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"vgg16.pth holds no weights that can be read safely: it is damaged or something else"),
        (b"PK\x03\x04 truncated", DAMAGED),
        ({"features.0.weight": Malicious()}, r"holds no weights .* safely: it holds posix.system, which may run code"),
        ({"features.0.weight": 5}, "holds something else than named weights"),
        ([1], "holds something else than named weights"),
        ({}, r"another file: it has no features.0.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"another file: it has no features.0.weight"),
        (without("features.14.bias"), r"it has no features.14.bias"),
        (without("classifier.3.weight"), r"it has no classifier.3.weight"),
        (
            {**narrow_vgg16(), "features.0.weight": torch.zeros(64, 3, 11, 11)},
            r"its features.0.weight has the shape \(64, 3, 11, 11\) and not \(2, 3, 3, 3\)",
        ),
    ],
)
def test_files_that_are_not_vgg16(start, tmp_path, capsys, content, message):
    assert start(content) == 2
    error = capsys.readouterr().err
    assert re.search(f"{message}.*{WANTED}", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "start.pth").exists()


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_file_of_the_old_format_that_is_cut_short(start, capsys, percent):
    """As torchvision's is, which has no checksums."""
    file = io.BytesIO()
    torch.save(WHOLE, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    assert start(content[: len(content) * percent // 100]) == 2
    error = capsys.readouterr().err
    assert re.search(f"holds no weights that can be read safely: it is damaged or something else; {WANTED}", error)
    assert error.count("\n") == 1
    assert start(content) == 0


@pytest.mark.parametrize("percent", [10, 50, 90, 99, "one bit"])
def test_damaged_files(start, tmp_path, capsys, percent):
    """Cut short, as an interrupted download is, or with one bit of one weight changed."""
    file = io.BytesIO()
    torch.save(WHOLE, file)
    content = bytearray(file.getvalue())
    if percent == "one bit":
        content[content.index(WHOLE["features.14.weight"].numpy().tobytes()) + 3] ^= 1
    else:
        del content[len(content) * percent // 100 :]
    assert start(bytes(content)) == 2
    error = capsys.readouterr().err
    assert re.search(f"{DAMAGED}; {WANTED}", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "start.pth").exists()


NO_NUMBERS = "is no dense tensor of floating-point numbers"


@pytest.mark.parametrize("key", ["features.0.weight", "features.14.weight", "classifier.0.bias"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda weight: weight.to(torch.int8), NO_NUMBERS),
        (lambda weight: weight > 0, NO_NUMBERS),
        (lambda weight: weight.to(torch.complex64), NO_NUMBERS),
        (lambda weight: weight.to_sparse(), NO_NUMBERS),
        (lambda weight: weight.to("meta"), NO_NUMBERS),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.quint8), NO_NUMBERS),
        (lambda weight: weight * float("nan"), "holds numbers that are not finite"),
        (lambda weight: weight / 0, "holds numbers that are not finite"),
    ],
    ids=["int8", "bool", "complex", "sparse", "meta", "quantised", "NaN", "infinite"],
)
@pytest.mark.filterwarnings("ignore")  # what torch says of sparse and quantised tensors as it makes and reads them
def test_weights_that_are_no_numbers_are_named(start, tmp_path, capsys, key, change, fault):
    assert start({**WHOLE, key: change(WHOLE[key])}) == 2
    error = capsys.readouterr().err
    assert re.search(rf"vgg16.pth cannot be used: {key} {fault}; {WANTED}", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "start.pth").exists()


def test_vgg16_with_batch_norm_is_another_file():
    with torch.device("meta"):
        network = FCN8s(3, 21)
    with pytest.raises(ValueError, match=r"it has no features.2.weight"):
        network.adopt_vgg16(VGG16_BN)


def test_other_networks_have_no_place_for_it(start, capsys):
    assert start(narrow_vgg16(), "nnUNetTrainerSegResNet") == 2
    assert "nnUNetTrainerSegResNet has no place for the weights of VGG16; nnUNetTrainerFCN8s" in capsys.readouterr().err


def test_without_a_dataset_the_remedy_is_named(tmp_path, capsys):
    torch.save(narrow_vgg16(), tmp_path / "vgg16.pth")
    command = ["warm-start", str(tmp_path / "vgg16.pth"), "-tr", "nnUNetTrainerFCN8s", "-o", str(tmp_path / "no.pth")]
    assert main(command) == 2
    assert "For VGG16's file name the dataset with -d and the configuration with -c" in capsys.readouterr().err


def test_a_3d_plan_is_refused(start, monkeypatch, capsys):
    monkeypatch.setattr(command, "plan_setting", lambda *_: patch_setting((32, 32, 32), 2, 1, 3))
    assert start(narrow_vgg16()) == 2
    assert capsys.readouterr().err == (
        "nnunet-plugins warm-start: nnUNetTrainerFCN8s is a 2D network, and this configuration has 3D patches; use the "
        "configuration 2d\n"
    )


def test_a_patch_that_the_network_cannot_take_is_one_line(start, monkeypatch, capsys):
    trainer = trainer_class("nnUNetTrainerFCN8s")
    options = {**NARROW, "norm": "instance"}
    normed = type("nnUNetTrainerFCN8s", (trainer,), {"backbone": replace(trainer.backbone, options=options)})
    monkeypatch.setattr(command, "find_trainer", lambda name: normed)
    monkeypatch.setattr(command, "plan_setting", lambda *_: patch_setting((16, 16), 2, 1, 3))
    assert start(narrow_vgg16()) == 2
    error = capsys.readouterr().err
    assert "axis 0 has 16 and needs at least 17. Use a larger patch size in the plans file." in error
    assert error.count("\n") == 1
