"""`nnunet-plugins profile`: its counts against real tensors, any trainer, and what it says."""

import dataclasses
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch._subclasses import fake_tensor
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins import forecast
from nnunet_plugins.cli import main
from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.forecast import forecast_inference, measure_training
from nnunet_plugins.planning import profile
from nnunet_plugins.planning.profile import profile_network
from nnunet_plugins.planning.setting import build_network, find_trainer, patch_setting
from nnunet_plugins.rows import Backbone
from nnunet_plugins.trainers.backbone import BackboneTrainer

KEYS = {"parameters", "forward_flops", "step_flops", "saved_bytes", "peak_bytes_training", "peak_bytes_inference"}
MEMORY = {"saved_bytes", "peak_bytes_training", "peak_bytes_inference"}


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        *itertools.product(("nnUNetTrainer", "nnUNetTrainerAFN2", "nnUNetTrainerASPP3DUNet"), [(16, 16, 16), (32, 24)]),
        ("nnUNetTrainerMedNeXtS", (32, 24)),
    ],
)
def test_counts_are_those_of_real_tensors(name, patch):
    trainer, setting = find_trainer(name), patch_setting(patch, batch=2, channels=2, classes=3)
    found = profile_network(trainer, setting, device="cpu")
    network = build_network(trainer, setting, deep_supervision=False).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        network(torch.zeros(setting.shape))
    assert found.forward_flops == flops.get_total_flops()
    training = measure_training(
        build_network(trainer, setting).train(), setting.shape, autocast=False, optimizer_copies=1
    )
    inference = forecast_inference(network, (1, 2, *patch), autocast=False)
    assert dataclasses.astuple(found.memory) == (training.saved_bytes, training.peak_bytes_training, inference)
    assert inference < training.peak_bytes_training
    assert found.autocast is None
    assert found.parameters == sum(p.numel() for p in build_network(trainer, setting).parameters())
    # Two gradients for each product, and in autofocus layers and MedNeXt's blocks most products once more. MedNeXt's
    # depthwise convolutions are counted as such.
    most = {"nnUNetTrainerAFN2": 3.5, "nnUNetTrainerMedNeXtS": 4}.get(name, 3.1)
    assert 2.5 < found.step_flops / found.forward_flops < most


def one_layer(*, input_channels, num_classes, dimensions, patch_size):
    return torch.nn.Sequential(torch.nn.Conv2d(input_channels, num_classes, 3, padding=1))


def test_what_building_a_network_computes_is_no_part_of_a_step():
    """The adapter tries a module when it is built."""
    row = Backbone(
        trainer="nnUNetTrainerOneLayer",
        network="nnunet_plugins.networks.adapted.Adapted",
        recipe="nnunet_plugins.trainers.backbone.BackboneTrainer",
        summary="one layer",
        paper="none",
        dimensions=(2,),
        twin="nnUNetTrainer",
        options={"factory": one_layer},
    )
    trainer = type(row.trainer, (BackboneTrainer,), {"backbone": row})
    found = profile_network(trainer, patch_setting((32, 24), batch=2, channels=2, classes=3), device="cpu")
    product = 2 * 2 * 32 * 24 * 2 * 3 * 3**2
    assert (found.forward_flops, found.step_flops) == (product, 2 * product), "nobody asks for the image's gradient"


@pytest.mark.parametrize("name", ["MetaSeg", "MetaSegPaper", "NISF"])
def test_a_fit_counts_with_all_its_steps(name):
    """Six operations of each weight for a voxel in a step, two where it is decoded; what is in the image is unknown."""
    trainer, patch = find_trainer(f"nnUNetTrainer{name}"), (16, 12, 20)
    setting = patch_setting((16, 16, 16), batch=2, channels=2, classes=3)
    setting = replace(
        setting, configuration=ConfigurationManager({**setting.configuration.configuration, "patch_size": patch})
    )
    network = build_network(trainer, setting)
    head = network.decoder.seg_layers[0].weight.numel() + (0 if name == "NISF" else network.head.weight.numel())
    image = sum(p.numel() for key, p in network.named_parameters() if key.startswith("reconstruction.weight"))
    layers = sum(p.numel() for key, p in network.layers.named_parameters() if key.endswith("weight"))
    drawn = network.voxels or math.prod(-(-n // 2) for n in patch)
    if name == "NISF":
        layers -= 2 * network.width**2  # the code's, for all voxels together
    # NISF's own weights stand still: they have no gradient.
    step = (4 if name == "NISF" else 6) * (network.fit_voxels or drawn) * (layers + image)
    found = profile_network(trainer, setting)
    expected = 2 * (network.fit_steps * step + 2 * math.prod(patch) * (layers + head))
    assert found.forward_flops == pytest.approx(expected, rel=0.03)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert 0 < found.memory.peak_bytes_inference < 2**30
    images = trainer.images_per_step
    inner = 6 * drawn * (layers + image)
    assert found.step_flops > images * (inner if name == "NISF" else network.inner_steps * 2 * inner)


def test_counts_are_those_of_the_device():
    """An autofocus layer has the products of one convolution on the CPU, and of one for each of four rates on a GPU."""
    setting = patch_setting((48, 48, 48), batch=1, channels=4, classes=5)
    operations = {}
    for name in ("nnUNetTrainerAFN6", "nnUNetTrainerAFNBasic"):
        for device in ("cpu", "cuda"):
            found = profile_network(find_trainer(name), setting, device=device)
            operations[name[13:], device] = [round(n / 1e9) for n in (found.forward_flops, found.step_flops)]
    # A step on a GPU convolves twice at every rate, because the maps are not kept.
    assert operations == {
        ("AFN6", "cpu"): [99, 330],
        ("AFN6", "cuda"): [287, 1082],
        ("AFNBasic", "cpu"): [70, 208],
        ("AFNBasic", "cuda"): [70, 208],
    }


def test_mixed_precision_is_the_gpus():
    setting = patch_setting((16, 16, 16), batch=2, channels=2, classes=3)
    found = profile_network(find_trainer("nnUNetTrainerAFN2"), setting)
    assert found.device == "cuda"
    for key in MEMORY:
        assert 0.45 < getattr(found.autocast, key) / getattr(found.memory, key) < 0.75


@pytest.mark.parametrize("name", ["FIRENet", "AFN2", "AutofocusUNet", "MetaSeg"])
def test_without_fake_cuda_tensors_their_stand_in_counts_the_same_and_keeps_about_as_much(name, monkeypatch):
    """PyTorch 2.8 has none on a machine without a GPU."""
    trainer, setting = find_trainer(f"nnUNetTrainer{name}"), patch_setting((32, 32, 32), batch=2, channels=2, classes=3)
    real = profile_network(trainer, setting)

    def no_driver(*_: object, **__: object) -> None:
        raise AssertionError("a CUDA tensor")

    monkeypatch.setattr(forecast, "has_fake_cuda", lambda: False)
    monkeypatch.setattr(profile, "has_fake_cuda", lambda: False)
    monkeypatch.setattr(forecast, "saved_on_cuda", no_driver)
    monkeypatch.setattr(forecast, "cuda_autocast", no_driver)
    found = profile_network(trainer, setting)
    assert replace(found, memory=None, autocast=None) == replace(real, memory=None, autocast=None)
    for one, other in ((found.memory, real.memory), (found.autocast, real.autocast)):
        for key in MEMORY:
            assert getattr(one, key) == pytest.approx(getattr(other, key), rel=0.25), key


def test_a_gpu_without_room_for_a_tensor_leaves_forecasts_to_the_stand_in(monkeypatch):
    """PyTorch makes a true one before the first fake one, where there is a GPU."""

    def too_full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fake_tensor, "init_gpu_context", too_full)
    assert not forecast.has_fake_cuda.__wrapped__()

    def unwanted() -> bool:
        raise AssertionError("the profile of a CPU asks for a GPU")

    monkeypatch.setattr(profile, "has_fake_cuda", unwanted)
    monkeypatch.setattr(forecast, "has_fake_cuda", unwanted)
    setting = patch_setting((16, 16, 16), batch=2, channels=1, classes=2)
    assert profile_network(find_trainer("nnUNetTrainer"), setting, device="cpu").device == "cpu"


def test_the_unet_of_a_patch_is_the_one_that_nnunet_plans():
    setting = patch_setting((64, 64, 64), batch=2, channels=1, classes=2)
    network = build_network(find_trainer("nnUNetTrainer"), setting)
    stages = setting.configuration.network_arch_init_kwargs
    assert [tuple(stride) for stride in stages["strides"]] == [(1, 1, 1), *[(2, 2, 2)] * 4]
    assert stages["features_per_stage"] == [32, 64, 128, 256, 320]
    assert type(network).__name__ == "PlainConvUNet"
    with pytest.raises(PlanError, match="nnU-Net plans no patch of 60x64x64, but one of 64x64x64"):
        patch_setting((60, 64, 64), batch=2, channels=1, classes=2)


@pytest.mark.parametrize(("patch", "enough"), [((4, 4, 4), (4, 8, 8)), ((8, 4), (8, 8))])
def test_a_patch_that_no_unet_can_halve_is_refused(patch, enough):
    with pytest.raises(PlanError, match="give two of the axes 8 voxels or more"):
        patch_setting(patch, batch=2, channels=1, classes=2)
    build_network(find_trainer("nnUNetTrainer"), patch_setting(enough, batch=2, channels=1, classes=2))


class OldTrainer(nnUNetTrainer):
    """A foreign trainer with the signature of nnU-Net before 2.8."""

    @staticmethod
    def build_network_architecture(
        architecture_class_name,
        arch_init_kwargs,
        arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision=True,
    ):
        return get_network_from_plans(
            architecture_class_name,
            arch_init_kwargs,
            arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )


class BrokenTrainer(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, *_):
        raise TypeError("not today")


def test_a_trainer_of_an_older_nnunet_is_profiled_too():
    setting = patch_setting((16, 16), batch=2, channels=1, classes=2)
    assert profile_network(OldTrainer, setting) == profile_network(nnUNetTrainer, setting)


def test_a_network_that_cannot_be_profiled_is_one_clear_error():
    setting = patch_setting((16, 16), batch=2, channels=1, classes=2)
    with pytest.raises(PlanError, match=r"BrokenTrainer cannot build its network for patch 16x16, .*not today"):
        profile_network(BrokenTrainer, setting)


def test_json_has_our_numbers_beside_the_unets(capsys):
    assert main(["profile", "-tr", "nnUNetTrainerAFN1", "--patch", "16", "16", "--batch", "3", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["shape"] == [3, 1, 16, 16]
    for numbers in (content, content["nnUNetTrainer"]):
        assert set(numbers) >= KEYS
        assert set(numbers["autocast"]) == MEMORY
    assert content["parameters"] < content["nnUNetTrainer"]["parameters"]


def test_the_table_shows_ratios(capsys):
    assert main(["profile", "-tr", "nnUNetTrainer", "--patch", "16", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nnUNetTrainer with patch 16x16, batch 2, channels 1, classes 2, on a GPU"
    assert sum(line.endswith(" 1.00") for line in lines) == 9
    assert main(["profile", "-tr", "nnUNetTrainer", "--patch", "16", "16", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("on a CPU")
    assert not any("mixed precision" in line for line in lines)
    assert sum(line.endswith(" 1.00") for line in lines) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either a dataset with -d or a patch with --patch"),
        (["--patch", "16", "16", "-d", "4"], "give either"),
        (["--patch", "17", "16"], "nnU-Net plans no patch of 17x16"),
        (["--patch", "16"], "two or three axes"),
        (["--patch", "16", "16", "-tr", "nnUNetTrainerAF1"], "The nearest valid name is 'nnUNetTrainerAFN1'"),
    ],
)
def test_what_cannot_be_profiled_is_said(options, said, capsys):
    assert main(["profile", "-tr", "nnUNetTrainerAFN1", *options]) == 2
    assert said in capsys.readouterr().err
