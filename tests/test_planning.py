"""The forecast of a training step's memory, the check before training, and plans that fit a GPU."""

import itertools
import json
import math
import re
import shlex
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import Sandbox
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.profiler import ProfilerActivity, profile

from nnunet_plugins import forecast
from nnunet_plugins.cli import main
from nnunet_plugins.forecast import GIB, forecast_training, measure_training
from nnunet_plugins.networks.afnet import AFNet
from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.networks.layers.device import compute_as_on
from nnunet_plugins.planning import fit
from nnunet_plugins.planning.setting import (
    build_network,
    copies_kept,
    find_trainer,
    forecast_setting,
    patch_setting,
    plan_setting,
)
from nnunet_plugins.planning.stages import plan_stages
from nnunet_plugins.trainers import backbone
from nnunet_plugins.trainers.compose import trainer_class

DATASET = "Dataset001_Small"


def firenet():
    return FIRENet(1, 3, strides=((2, 2, 2),) * 4, kernel_sizes=((3, 3, 3),) * 5, dropout=0.5)


def afn4():
    return AFNet(1, 3, deep_supervision=True, autofocus_layers=4)


def afn4_plain():
    return AFNet(1, 3, deep_supervision=True, autofocus_layers=4, form="plain")


def unet():
    return PlainConvUNet(
        *(1, 4, [16, 32, 64, 128], nn.Conv3d, 3, [1, 2, 2, 2], 2, 3, 2),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


# With one image and one thread, PyTorch's CPU convolutions copy their whole input (im2col), as no GPU does.
SHAPE = (2, 1, 24, 24, 16)
MAKERS = [firenet, afn4, afn4_plain, unet]


@pytest.mark.parametrize("make", [afn4_plain, unet])
def test_fake_tensors_cost_what_real_ones_do(make):
    """Of networks that are no rows; those are in test_conformance.py."""
    foretold = forecast_training(make, SHAPE, autocast=False)
    assert foretold == measure_training(make(), SHAPE, autocast=False)
    assert foretold.parameters == sum(p.numel() for p in make().parameters())


def allocated_peak(network, autocast):
    """Peak of PyTorch's allocator in a real training step, with the loss of nnU-Net's form and a real optimizer."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        image = torch.zeros(*SHAPE)
        with (
            torch.autocast("cpu", enabled=autocast),
            forecast._AsOnCUDA() if autocast else nullcontext(),
            compute_as_on("cuda") if autocast else nullcontext(),
        ):
            outputs = network(image)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            targets = [torch.zeros(2, 1, *x.shape[2:], dtype=torch.int16) for x in outputs]
            loss = sum(itertools.starmap(forecast._dice_and_cross_entropy, zip(outputs, targets, strict=True)))
        with compute_as_on("cuda") if autocast else nullcontext():
            loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    standing = 2 * sum(p.nbytes for p in network.parameters()) + sum(b.nbytes for b in network.buffers())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return standing + max(itertools.accumulate(event.nbytes() for event in events))


# Without bfloat16 convolutions in the CPU, PyTorch's substitute copies its whole input (im2col), as no GPU does.
HALF = pytest.param(
    True,
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 convolutions"
    ),
)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("autocast", [False, HALF])
def test_the_peak_is_that_of_a_real_step(make, autocast):
    peak = forecast_training(make, SHAPE, autocast=autocast, optimizer_copies=1).peak_bytes_training
    assert peak == pytest.approx(allocated_peak(make(), autocast), rel=0.1)


class Layer(nn.Module):
    """One function of a map that takes part in autocast: 1 x 2 x 8 x 8 x 8, in half precision."""

    def __init__(self, function):
        super().__init__()
        self.convolution, self.function = nn.Conv3d(1, 2, 1), function

    def forward(self, x):
        return self.function(self.convolution(x))


@pytest.mark.parametrize(
    ("function", "more"),
    [
        (lambda x: torch.dropout(x, 0.0, False), 0),
        (nn.Dropout(0.5), 2 * 512 * 1),  # a mask, of which CUDA keeps a byte per voxel
        (nn.Softmax(dim=1), 2 * 512 * 4),  # float32, kept for backward; the loss's softmax keeps its own
        (nn.AvgPool3d(1), 2 * 512 * 2),  # its input, in half precision
    ],
)
def test_autocast_keeps_what_cuda_keeps(function, more):
    def saved(function):
        return forecast_training(lambda: Layer(function), (1, 1, 8, 8, 8), autocast=True).saved_bytes

    assert saved(function) - saved(lambda x: x) == more


def test_the_stand_in_computes_norms_as_cuda_does():
    """Group norm and layer norm keep float32 maps in CUDA's mixed precision, and half ones in the CPU's."""

    def normed(x):
        return nn.functional.layer_norm(nn.functional.group_norm(x, 2), (8, 8, 8))

    with forecast.fake_tensors():
        stand_in = measure_training(Layer(normed), (1, 1, 8, 8, 8), autocast=True)
    with forecast.fake_tensors(), torch.device("cuda"):
        assert stand_in.saved_bytes == forecast.saved_on_cuda(Layer(normed), (1, 1, 8, 8, 8), autocast=True)


def test_the_optimizer_counts():
    peaks = [forecast_training(unet, SHAPE, autocast=False, optimizer_copies=n).peak_bytes_training for n in (1, 2)]
    assert peaks[1] - peaks[0] == 4 * sum(p.numel() for p in unet().parameters())


class ForeignOptimizer(nnUNetTrainer):
    """A trainer whose optimizer looks at what only training knows."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), self.label_manager.lr), None


@pytest.mark.parametrize(
    ("trainer", "copies"),
    [
        ("nnUNetTrainer", 1),
        ("nnUNetTrainerFIRENet_5epochs", 1),
        ("nnUNetTrainerFIRENetPaper", 2),
        ("nnUNetTrainerAFN4Paper", 2),
        ("nnUNetTrainerAdam", 3),
        ("nnUNetTrainerAFN1_Adam", 3),
    ],
)
def test_the_optimizer_is_the_trainers(trainer, copies):
    """Momentum of SGD; first and second moments of Adam, and with amsgrad the largest second ones."""
    setting = patch_setting((16, 16), batch=2, channels=1, classes=2)
    found = forecast_setting(find_trainer(trainer), setting, autocast=False)
    build = partial(build_network, find_trainer(trainer), setting)
    assert found == forecast_training(build, setting.shape, autocast=False, optimizer_copies=copies)


def test_an_optimizer_that_nobody_can_make_is_sgd_and_stays_as_it_is():
    assert copies_kept(ForeignOptimizer) == 1
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], 0.1, amsgrad=True)
    assert forecast.optimizer_copies(optimizer) == 3
    assert not optimizer.state
    assert optimizer.param_groups[0]["params"] == [parameter]
    assert torch.equal(parameter, torch.ones(3))


def test_layout_copies_are_the_cpus():
    """The autofocus family computes with the channels last there: at least the first layer's 30 channels are copied."""

    def saved(device):
        make = partial(AFNet, 4, 3, autofocus_layers=2)
        return forecast_training(make, (1, 4, 16, 16, 16), autocast=False, device=device).saved_bytes

    assert saved("cpu") - saved("cuda") >= 30 * 16**3 * 4


def test_a_gpu_keeps_what_its_own_rules_for_mixed_precision_say():
    """CUDA turns a product with a number in float32 to float32, where the CPU does not."""

    def saved(function):
        return forecast_training(lambda: Layer(function), (1, 1, 8, 8, 8), autocast=True)

    def gated(x):
        return torch.addcmul(x, torch.ones((), device=x.device, requires_grad=True), x)

    kept, promoted = saved(lambda x: x), saved(gated)
    extra = 2 * 512 * 4 + 4  # the map in float32, and the number
    assert promoted.saved_bytes - kept.saved_bytes == extra
    assert promoted.peak_bytes_training - kept.peak_bytes_training >= extra


# Plans that fit. What nnU-Net plans for a smaller patch is tested in test_stages.py.


def test_an_axis_that_the_network_refuses_to_shorten_stays():
    def needed(patch):
        if patch[0] < 32:
            raise ValueError("axis 0 needs 32")
        return math.prod(patch)

    stages, median = plan_stages((1, 1), (64, 48)), (100, 100)
    assert fit.largest_patch(needed, stages, (1, 1), median, 32 * 32) == (32, 32)
    assert fit.largest_patch(needed, stages, (1, 1), median, 32 * 16) == (32, 16)
    with pytest.raises(
        fit.PlanError, match=r"even a patch of 32x\d+ needs .* that the network takes\. axis 0 needs 32"
    ):
        fit.largest_patch(needed, stages, (1, 1), median, 100)


@pytest.fixture
def folders(small: Sandbox, monkeypatch) -> Sandbox:
    """The small dataset for commands in this process."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    return small


def plans_of(sandbox: Sandbox, name: str) -> dict:
    return json.loads((sandbox.preprocessed / DATASET / f"{name}.json").read_text())


def needs(sandbox: Sandbox, configuration: str, trainer: str, autocast: bool = True) -> float:
    """Forecast for the plans "small", in GiB."""
    setting = plan_setting(DATASET, configuration, "small")
    before, after = fit.fit_configuration(trainer_class(trainer), setting, budget=math.inf, autocast=autocast)
    assert before == after
    return before.needed / GIB


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerAFN1_5epochs"])
def test_plans_that_fit_are_written_beside_the_old(folders, trainer, capsys):
    memory = f"{needs(folders, '3d_fullres', trainer):.3g}"  # not enough: 80 % of it may be used
    command = ["plan", "-d", "1", "-tr", trainer, "--gpu-memory", memory, "--like", "small"]
    assert main(command) == 0
    output = capsys.readouterr().out
    name = f"small_{'AFN1' if 'AFN1' in trainer else 'UNet'}_{memory}GB"
    assert f"nnUNetv2_train 1 3d_fullres 0 -tr {trainer} -p {name}" in output
    old, new = plans_of(folders, "small"), plans_of(folders, name)
    assert new["plans_name"] == name
    changed = new["configurations"]["3d_fullres"]
    assert changed["batch_size"] == 2
    before = old["configurations"]["3d_fullres"]
    assert changed["patch_size"] < before["patch_size"]
    stages, options = plan_stages(before["spacing"], changed["patch_size"]), changed["architecture"]["arch_kwargs"]
    assert [list(stages.patch), stages.strides] == [changed["patch_size"], tuple(map(tuple, options["strides"]))]
    # Nothing else differs: here the U-Net keeps its three stages.
    options["strides"] = before["architecture"]["arch_kwargs"]["strides"]
    changed["patch_size"] = before["patch_size"]
    assert new == {**old, "plans_name": name}
    # To the last byte.
    expected = {**old, "plans_name": name}
    for configuration, made in plans_of(folders, name)["configurations"].items():
        expected["configurations"][configuration].update(made)
    assert (folders.preprocessed / DATASET / f"{name}.json").read_text() == json.dumps(expected, indent=4)
    # The new plans fit, and writing them again changes nothing.
    assert main([*command, "-c", "3d_fullres", "--like", name]) == 0
    assert "fits already" in capsys.readouterr().out
    assert main(command) == 0


def test_different_plans_are_not_overwritten_unasked(folders, capsys):
    trainer = "nnUNetTrainerAFN1"
    memory = needs(folders, "3d_fullres", trainer)
    command = ["plan", "-d", DATASET, "-tr", trainer, "--like", "small", "-c", "3d_fullres", "--name", "mine"]
    assert main([*command, "--gpu-memory", str(memory)]) == 0
    first = plans_of(folders, "mine")
    assert main([*command, "--gpu-memory", str(0.8 * memory)]) == 2
    assert "mine.json is there already" in capsys.readouterr().err
    assert plans_of(folders, "mine") == first
    assert main([*command, "--gpu-memory", str(0.8 * memory), "--overwrite"]) == 0
    assert plans_of(folders, "mine") != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "77"], "'77' is not the number or name"),
        (["-d", "seven"], "'seven' is not the number or name"),
        (["-d", "Dataset077_None"], "Dataset077_None is no folder"),
        (["--like", "none"], "none.json is missing; plans that are there: nnUNetPlans"),
        (["-tr", "nnUNetTrainerFIRNet"], "nearest valid name is 'nnUNetTrainerFIRENet'"),
        (["-c", "3d_low"], "no configuration '3d_low', but 2d, 3d_fullres"),
        (["-tr", "nnUNetTrainerAFNBasic", "-c", "3d_fullres", "--gpu-memory", "0.001"], "3d_fullres: even a patch of "),
        (["-c", "3d_fullres", "--gpu-memory", "0.21", "--name", "a__b"], "'a__b' cannot be a name"),
        (["-c", "3d_fullres", "--gpu-memory", "0.21", "--name", "small", "--overwrite"], "another name"),
    ],
)
def test_errors_are_one_line(folders, arguments, message, capsys):
    defaults = ["-d", "1", "-tr", "nnUNetTrainerFIRENet", "--gpu-memory", "1", "--like", "small"]
    before = plans_of(folders, "small")
    assert main(["plan", *defaults, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-plugins plan: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert plans_of(folders, "small") == before


def test_unset_folder_and_silly_memory(folders, monkeypatch, capsys):
    command = ["plan", "-d", "1", "-tr", "nnUNetTrainer", "--gpu-memory"]
    for memory in ("0", "much", "inf"):
        with pytest.raises(SystemExit, match="2"):
            main([*command, memory])
        assert f"{memory!r} is no positive number" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main([*command, "1"]) == 2
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_a_cascade_has_a_channel_more_per_label_and_keeps_its_own_size(folders, monkeypatch):
    plans = plans_of(folders, "small")
    plans["plans_name"] = "cascade"
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (folders.preprocessed / DATASET / "cascade.json").write_text(json.dumps(plans))
    shapes = []

    def count(trainer, setting, *, autocast):
        shape = setting.shape
        shapes.append(shape)
        return forecast.Forecast(0, 0, shape[0] * math.prod(shape[2:]) if shape[1] == 3 else 1)

    monkeypatch.setattr(fit, "forecast_setting", count)
    patch = plans["configurations"]["3d_fullres"]["patch_size"]
    memory = 1.8 * math.prod(patch) / GIB
    fitted = fit.fit_plans("1", "nnUNetTrainerFIRENet", memory, like="cascade", name="cascade_fit")
    assert {shape[1] for shape in shapes} == {1, 3}
    assert {name for name, (before, after) in fitted.sizes.items() if before != after} == {"3d_cascade_fullres"}
    new = PlansManager(plans_of(folders, "cascade_fit"))
    assert new.get_configuration("3d_fullres").patch_size == patch
    assert new.get_configuration("3d_cascade_fullres").patch_size == list(fitted.sizes["3d_cascade_fullres"][1].patch)


# The check before training.
@pytest.fixture
def trainer(folders, monkeypatch):
    monkeypatch.delenv(backbone.MEMORY_CHECK)
    plans = {**plans_of(folders, "small"), "continue_training": False}
    name = "nnUNetTrainerAFN1_1epochs_1iterations"
    result = trainer_class(name)(plans, "3d_fullres", 0, plans_of(folders, "dataset"), torch.device("cpu"))
    result.initialize()
    return result


def give_memory(monkeypatch, size):
    monkeypatch.setattr(backbone, "device_memory", lambda device: size)


@pytest.mark.parametrize(("share", "tight"), [(0.5, False), (0.85, False), (0.95, True), (1.05, True), (None, False)])
def test_the_log_tells_the_memory(folders, trainer, monkeypatch, capsys, share, tight):
    needed = needs(folders, "3d_fullres", "nnUNetTrainerAFN1", autocast=False) * GIB
    give_memory(monkeypatch, needed / share if share else None)
    capsys.readouterr()
    trainer.check_memory()
    log = capsys.readouterr().out
    assert f"A training step needs about {needed / GIB:.2f} GiB of memory (patch " in log
    assert (f"; cpu has {needed / GIB / share:.2f} GiB." in log) if share else ("has" not in log)
    assert ("That is tight" in log) is tight


def test_too_small_a_device_is_refused_unless_the_user_insists(trainer, monkeypatch):
    give_memory(monkeypatch, 2**20)
    with pytest.raises(RuntimeError, match=r"needs about .* batch 2\); cpu has 0.00 GiB"):
        trainer.on_train_start()
    assert trainer.dataloader_train is None
    monkeypatch.setenv(backbone.MEMORY_CHECK, "0")
    monkeypatch.setattr(backbone, "forecast_training", None)  # not even counted
    trainer.check_memory()


def test_a_forecast_that_fails_stops_nobody(trainer, monkeypatch, capsys):
    def fail(*_, **__):
        raise TypeError("torch has changed")

    monkeypatch.setattr(backbone, "forecast_training", fail)
    trainer.check_memory()
    assert "could not be forecast: TypeError('torch has changed')" in capsys.readouterr().out


def test_the_optimizer_of_the_training_counts(trainer, monkeypatch):
    copies = []

    def count(*_, optimizer_copies, **__):
        copies.append(optimizer_copies)
        return forecast.Forecast(0, 0, 0)

    monkeypatch.setattr(backbone, "forecast_training", count)
    trainer.check_memory()
    trainer.optimizer = torch.optim.AdamW(trainer.network.parameters(), amsgrad=True)
    trainer.check_memory()
    assert copies == [1, 3]


def test_the_memory_of_this_machine(monkeypatch):
    assert forecast.device_memory(torch.device("cpu")) > GIB
    monkeypatch.setattr(forecast, "container_limit", lambda: 2**20)
    assert forecast.device_memory(torch.device("cpu")) == 2**20
    monkeypatch.setattr(forecast, "container_limit", lambda: 2**60)
    assert GIB < forecast.device_memory(torch.device("cpu")) < 2**60
    monkeypatch.setattr(forecast, "container_limit", lambda: None)
    assert forecast.device_memory(torch.device("cpu")) > GIB
    assert forecast.device_memory(torch.device("mps")) is None


@pytest.mark.slow
def test_the_remedy_can_be_run_as_it_stands(folders, trainer, monkeypatch):
    needed = needs(folders, "3d_fullres", "nnUNetTrainerAFN1", autocast=False) * GIB
    give_memory(monkeypatch, int(needed / 1.2))
    with pytest.raises(RuntimeError) as refusal:
        trainer.check_memory()
    plan, train = re.findall(r"^  (nn.*)$", str(refusal.value), flags=re.MULTILINE)
    assert "nnUNetv2_train" in folders.run(*shlex.split(plan))
    output = folders.run(*shlex.split(train), **{backbone.MEMORY_CHECK: "1"})
    assert re.search(r"A training step needs about .*batch 2\); cpu has", output)
    model = folders.results / DATASET / f"{type(trainer).__name__}__{train.split()[-3]}__3d_fullres"
    assert (model / "fold_0" / "validation" / "summary.json").is_file()
    patch_sizes = [
        plans["configurations"]["3d_fullres"]["patch_size"]
        for plans in (json.loads((model / "plans.json").read_text()), plans_of(folders, "small"))
    ]
    assert math.prod(patch_sizes[0]) < math.prod(patch_sizes[1])
