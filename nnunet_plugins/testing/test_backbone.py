"""What every backbone must do, for every kind of plan. Each docstring says what nnU-Net needs, and why.

A module that imports these tests names the rows to test in `ROWS`; otherwise `--backbone NAME` does.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch.testing import assert_close

from nnunet_plugins.forecast import fake_tensors, forecast_training, measure_training
from nnunet_plugins.rows import Backbone
from nnunet_plugins.testing.distributed import two_processes
from nnunet_plugins.testing.needs import needed
from nnunet_plugins.testing.outputs import full_precision_modules, require_gradients, require_outputs
from nnunet_plugins.testing.plans import (
    CHANNELS,
    CLASSES,
    PLANS,
    build,
    cases,
    changes_the_plans_network,
    configuration,
    image,
    networks,
    output_sizes,
    smallest,
)
from nnunet_plugins.testing.selection import rows_of
from nnunet_plugins.testing.training import predict_by_windows, train_two_steps
from nnunet_plugins.trainers.compose import trainer_class

ONE_PASS = {
    "test_mixed_precision_on_a_gpu_keeps_maps_in_half_precision",
    "test_compiles_without_a_graph_break",
    "test_the_memory_of_training_is_forecast",
    "test_the_forecast_is_what_real_tensors_take",
    "test_images_of_any_size_or_multiples",
    "test_a_plan_without_stages_is_named",
}
"""What networks that are fitted to every image need not do; in place of it there is what begins with `FITTED`."""

FITTED = "test_a_fitted_network_"

STAND_IN = 0.25
"""How far, relatively, the stand-in for a GPU may be off in what it keeps; it knows not every layer that there is."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests over all rows, or over those with different networks, or over each of these with each plan."""
    names = set(metafunc.fixturenames)
    if not names & {"row", "case"}:
        return
    rows, name = rows_of(metafunc), metafunc.function.__name__
    if name in ONE_PASS or name.startswith(FITTED):
        rows = [row for row in rows if row.fitted == name.startswith(FITTED)]
    each = cases(networks(rows))
    if name == "test_the_memory_of_training_is_forecast":
        # A plan for each dimension is enough, the one with the most to pad.
        each = [
            (row, plan)
            for row, plan in each
            if plan in ("2d anisotropic", "3d isotropic" if changes_the_plans_network(row) else "3d odd")
        ]
    ids = [f"{row.trainer} {plan}" for row, plan in each]
    if "case" in names:
        metafunc.parametrize("case", each, ids=ids, indirect=True, scope="module")
    elif "plan" in names:
        metafunc.parametrize(("row", "plan"), each, ids=ids)
    else:
        chosen = rows if metafunc.cls else networks(rows)
        metafunc.parametrize("row", chosen, ids=[row.trainer for row in chosen])


@pytest.fixture(scope="module")
@needed
def case(request: pytest.FixtureRequest) -> tuple[Backbone, str, Any]:
    """nnU-Net builds the network of a plan before anything else; a patch of a usual size has to be taken."""
    row, plan = request.param
    return row, plan, build(row, plan)


@needed
def test_trains(case: tuple[Backbone, str, Any]) -> None:
    """nnU-Net compares each output with the truth at the scale that the recipe names for it, the full size first.

    Outputs of other sizes stop the training, and of a shorter list it leaves out the rest in silence. Every parameter
    needs a gradient: one that gets none stops training on several GPUs, one of zeros never learns. Numbers that are not
    finite end in weights that are not.
    """
    row, plan, network = case
    x = image(plan)
    network.decoder.deep_supervision = True
    outputs = network.train()(x)
    network.decoder.deep_supervision = False
    require_outputs(outputs, output_sizes(trainer_class(row.trainer), network, configuration(plan)), CLASSES)
    loss = torch.zeros(())
    for out in outputs:
        assert torch.isfinite(out).all(), "logits that are not finite"
        loss = loss + torch.nn.functional.cross_entropy(out, torch.randint(0, CLASSES, (2, *out.shape[2:])))
    loss.backward()
    # nnU-Net's residual encoder starts with residual branches of zero, which pass no gradient on yet.
    require_gradients(network, zeros=plan.endswith("resenc"))


@needed
def test_saves_and_loads_into_the_form_nnunet_builds_for_inference(case: tuple[Backbone, str, Any]) -> None:
    """nnU-Net predicts with a network that it builds anew, without deep supervision, and loads the weights into it.

    It loads strictly: what is missing or is left over stops the prediction. Whatever the logits depend on has to be
    in the state, or predictions are others than in the validation.
    """
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


@needed
def test_deep_supervision_changes_no_parameter(case: tuple[Backbone, str, Any]) -> None:
    """nnU-Net switches `decoder.deep_supervision`: a list of outputs in training, the logits alone for validation.

    The state is the same in both, and the first of the list is what the network returns alone.
    """
    row, plan, network = case
    supervised = build(row, plan, deep_supervision=True)
    supervised.load_state_dict(network.state_dict(), strict=True)
    assert supervised.decoder.deep_supervision is True, "the argument deep_supervision does not set it"
    x = image(plan, batch=1)
    with torch.no_grad():
        outputs, plain = supervised.eval()(x), network.eval()(x)
        assert isinstance(outputs, list), f"in evaluation mode, with deep supervision: {type(outputs).__name__}"
        averaged = getattr(network.decoder, "averaged", False)  # U-Net++ predicts with the mean of its outputs
        assert_close(torch.stack(outputs).mean(dim=0) if averaged else outputs[0], plain)
        supervised.decoder.deep_supervision = False
        assert_close(supervised(x), plain)


@needed
def test_the_output_layer_is_all_that_depends_on_the_classes(case: tuple[Backbone, str, Any]) -> None:
    """nnU-Net's -pretrained_weights leaves out keys with ".seg_layers.", and wants all others in the same shape.

    So all that depends on the number of classes stands in `decoder.seg_layers`, and nothing else does.
    """
    row, plan, network = case
    with torch.device("meta"):
        many = build(row, plan, classes=CLASSES + 2).state_dict()
    few = network.state_dict()
    heads = {key for key in few if ".seg_layers." in key}
    assert set(few) == set(many), "other weights for another number of classes"
    assert {key for key in few if few[key].shape != many[key].shape} == heads
    assert all(key.startswith("decoder.seg_layers.") for key in heads)


@needed
def test_mixed_precision_on_a_gpu_keeps_maps_in_half_precision(row: Backbone, plan: str) -> None:
    """nnU-Net trains in mixed precision on GPUs. A single map in float32 makes all that follow it twice as large.

    Counted on tensors without memory, under CUDA's own rules; on the CPU the casts are others.
    """
    found = full_precision_modules(lambda: build(row, plan), (2, CHANNELS, *PLANS[plan][0]))
    assert not found, f"these modules return float32: {', '.join(found[:10])}"


@needed
def test_half_precision_is_finite(row: Backbone) -> None:
    """nnU-Net always predicts in half precision on GPUs, whose largest number is 65504."""
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        half = build(row, smallest(row)).eval()(image(smallest(row), batch=1))
    assert half.dtype == torch.float16, f"logits in {half.dtype}"
    assert torch.isfinite(half).all(), "logits that are not finite"


@needed
def test_logits_are_not_bounded(row: Backbone) -> None:
    """nnU-Net's loss takes logits: a final nonlinearity, a sigmoid, softmax or ReLU, is its own business.

    A network that ends in one trains badly, and no error says so.
    """
    network = build(row, smallest(row)).eval()
    with torch.no_grad():
        for layer in network.decoder.seg_layers.parameters():
            layer.mul_(1000)
        logits = network(image(smallest(row)))
    assert logits.max() > 1, "with an output layer a thousand times as large, logits are bounded from above"
    assert logits.min() < -1, "with an output layer a thousand times as large, logits are bounded from below"


@needed
def test_compiles_without_a_graph_break(row: Backbone) -> None:
    """nnU-Net compiles every network on GPUs; where the graph breaks, training is slower, or stops in some versions."""
    torch._dynamo.reset()
    network = build(row, smallest(row)).train()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = image(smallest(row))
    assert compiled(x).shape == (2, CLASSES, *x.shape[2:])


@needed
def test_the_memory_of_training_is_forecast(row: Backbone, plan: str, request: pytest.FixtureRequest) -> None:
    """`nnunet-plugins plan` and the check before training count the bytes of a step, on tensors without memory.

    The network has to run on these, and its stand-in on the CPU has to keep about what it keeps on a GPU, or the peak
    is not that of a GPU.
    """
    shape = (2, CHANNELS, *PLANS[plan][0])
    supervised = bool(getattr(trainer_class(row.trainer), "deep_supervision", False))
    foretold = forecast_training(lambda: build(row, plan, deep_supervision=supervised), shape, autocast=True)
    assert foretold.parameters == sum(p.numel() for p in build(row, plan).parameters())
    assert foretold.saved_bytes < foretold.peak_bytes_training
    with fake_tensors():
        network = build(row, plan, deep_supervision=supervised)
        stand_in = measure_training(network, shape, autocast=True)
    assert stand_in.saved_bytes == pytest.approx(
        foretold.saved_bytes, rel=getattr(request.module, "STAND_IN", STAND_IN)
    )


@needed
def test_the_forecast_is_what_real_tensors_take(row: Backbone) -> None:
    """A forecast that is too low ends a queued training in an out-of-memory error; too high, and it never starts."""
    plan = smallest(row)
    shape, supervised = (2, CHANNELS, *PLANS[plan][0]), trainer_class(row.trainer).deep_supervision

    def make() -> Any:
        return build(row, plan, deep_supervision=supervised)

    assert forecast_training(make, shape, autocast=False) == measure_training(make(), shape, autocast=False)


@needed
def test_two_processes_train_one_network(row: Backbone, tmp_path: Path) -> None:
    """With several GPUs nnU-Net wraps the network in DDP: every parameter needs a gradient, and all stay the same.

    Two processes on the CPU take steps on batches of their own; the gradients have to be the mean of both.
    """
    two_processes([row.trainer], tmp_path)


@needed
def test_trains_two_steps_and_predicts(row: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own loop trains the network, saves it, and predicts from the checkpoint by sliding windows.

    It loads strictly, in the form for inference, and images are of other sizes than the patch.
    """
    trainer, network = train_two_steps(row, smallest(row), tmp_path, monkeypatch)
    logits = predict_by_windows(trainer, network)
    assert torch.isfinite(logits).all(), "logits that are not finite"


@needed
def test_a_fitted_network_refuses_other_sizes(row: Backbone) -> None:
    """A network of coordinates knows places in the plan's patch alone; other images have to be named, not mistaken."""
    x = image(smallest(row, "odd"))
    with pytest.raises(ValueError, match=rf"{_times(PLANS[smallest(row)][0])} voxels; got {_times(x.shape[2:])}"):
        build(row, smallest(row)).eval()(x)


@needed
def test_a_fitted_network_fits_in_nnunets_modes(row: Backbone) -> None:
    """nnU-Net predicts where no gradient is ever taken, and on GPUs in half precision; a user may set nnUNet_compile.

    The logits are the same, and the network is as it was.
    """
    network, x = build(row, smallest(row)).eval(), image(smallest(row))
    expected, before = network(x), {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():
        network.double().float()  # nnU-Net moves it to its device in there
        assert torch.equal(torch.compile(network, backend="eager")(x), expected), "other logits in inference mode"
    assert all(parameter.grad is None for parameter in network.parameters()), "gradients are left behind"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "weights have changed"
    torch._dynamo.reset()


@needed
def test_a_fitted_network_says_what_memory_it_takes(row: Backbone) -> None:
    """`nnunet-plugins plan` and the check before training count on tensors without memory, and no fit works on them."""
    shape = (2, CHANNELS, *PLANS[smallest(row)][0])
    foretold = forecast_training(lambda: build(row, smallest(row)), shape, autocast=True)
    assert foretold.parameters == sum(p.numel() for p in build(row, smallest(row)).parameters())
    assert 0 < foretold.saved_bytes < foretold.peak_bytes_training


class TestRow:
    """Of each row, whether or not it shares its network with another."""

    @needed
    def test_same_seed_same_weights(self, row: Backbone) -> None:
        """Trainings are repeated with a seed; a network that draws its weights elsewhere cannot be."""
        first, second = (build(row, smallest(row)).state_dict() for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), "other weights with the same seed"

    @needed
    def test_a_tiny_patch_works_or_is_named_before_training(self, row: Backbone) -> None:
        """Small images get small patches. One that does not fit is a ValueError when nnU-Net builds the network.

        It says "<size> voxels ...: axis <k> has <n> and needs at least <m>", and with m voxels it fits or another axis
        is named: `nnunet-plugins plan` looks for patches that way.
        """
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
        found = re.search(rf"{_times(size)} voxels.*axis (\d) has 2 and needs at least (\d+)", refusal)
        assert found, f"not as `rows.Backbone` says it: {refusal}"
        axis, enough = map(int, found.groups())
        assert enough > 2
        size[axis] = enough
        try:
            build(row, smallest(row), patch_size=tuple(size))
        except ValueError as error:
            refusal = str(error)
        assert f"axis {axis} has {enough}" not in refusal, "what it needs at least is not enough"

    @needed
    def test_images_of_any_size_or_multiples(self, row: Backbone) -> None:
        """Images have any size, and so do those that are smaller than the patch along some axis.

        nnU-Net pads to the patch alone. A network takes what comes and returns the same size; only U-Nets of the plan
        itself may refuse what their strides do not divide, when they are built.
        """
        x = image(smallest(row, "odd"))
        if changes_the_plans_network(row):
            with pytest.raises(ValueError, match=r"\dx\d+ voxels: axis 0 has \d+ .* multiple of it"):
                build(row, smallest(row, "odd"))
            x = torch.cat([image(smallest(row))] * 2, dim=-1)
        assert build(row, smallest(row)).eval()(x).shape == (2, CLASSES, *x.shape[2:])

    @needed
    def test_another_dimension_is_refused(self, row: Backbone) -> None:
        """A 3D network given a 2D plan, or the other way round, says which configuration to take, before it trains."""
        for dimension in {2, 3} - set(row.dimensions):
            with pytest.raises(NotImplementedError, match=rf"is a {row.dimensions[0]}D network.*use the configuration"):
                build(row, f"{dimension}d isotropic")

    @needed
    def test_a_plan_without_stages_is_named(self, row: Backbone) -> None:
        """Plans of transformers have no stages to follow; who uses one has to read that, and which plans there are."""
        arch = {"network_class_name": "Primus", "arch_kwargs": {}, "_kw_requires_import": []}
        chosen = ConfigurationManager({"patch_size": PLANS[smallest(row)][0], "architecture": arch})
        with pytest.raises(ValueError, match=r"Primus.* has no kernel_sizes and no strides.*ResEnc"):
            trainer_class(row.trainer).build_network_architecture(None, chosen, 1, 2)


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
