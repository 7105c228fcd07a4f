"""What a backbone must do with a dataset's own plan: its patch, channels and classes, with the network as it is.

Counted on tensors without memory, so that a plan for a large GPU takes no longer than a small one. Without
`--backbone-dataset` nothing of this is run.
"""

from typing import Any

import pytest
import torch

from nnunet_plugins.forecast import fake_tensors, loss_as_in_training
from nnunet_plugins.planning.setting import Setting, build_network, forecast_setting, plan_setting
from nnunet_plugins.rows import Backbone
from nnunet_plugins.testing.needs import needed
from nnunet_plugins.testing.outputs import full_precision_modules, require_gradients, require_outputs
from nnunet_plugins.testing.plans import output_sizes
from nnunet_plugins.testing.selection import rows_of
from nnunet_plugins.trainers.compose import trainer_class


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests for the rows asked for, if a dataset is."""
    if "row" in metafunc.fixturenames:
        rows = rows_of(metafunc) if metafunc.config.getoption("--backbone-dataset") else []
        metafunc.parametrize("row", rows, ids=[row.trainer for row in rows])


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> Setting:
    """Return what the dataset's plan asks for."""
    names = [request.config.getoption(f"--backbone-{part}") for part in ("dataset", "configuration", "plans")]
    return plan_setting(*names)


@needed
def test_trains_on_the_plan(row: Backbone, setting: Setting) -> None:
    """nnU-Net compares each output with the truth at the scale that the recipe names, and updates all weights."""
    trainer: Any = trainer_class(row.trainer)
    with fake_tensors():
        network = build_network(trainer, setting).train()
        outputs = network(torch.zeros(setting.shape))
        supervised = outputs if isinstance(outputs, list) else [outputs]
        require_outputs(supervised, output_sizes(trainer, network, setting.configuration), setting.classes)
        loss_as_in_training(outputs).backward()
        require_gradients(network, numbers=False)


@needed
def test_stays_in_half_precision_on_the_plan(row: Backbone, setting: Setting) -> None:
    """nnU-Net trains in mixed precision on GPUs. A single map in float32 makes all that follow it twice as large."""
    found = full_precision_modules(lambda: build_network(trainer_class(row.trainer), setting), setting.shape)
    assert not found, f"these modules return float32: {', '.join(found[:10])}"


@needed
def test_transfers_to_the_plan(row: Backbone, setting: Setting) -> None:
    """nnU-Net's -pretrained_weights wants every weight but those in `decoder.seg_layers`, in the same shape."""
    trainer = trainer_class(row.trainer)
    with torch.device("meta"):
        few = build_network(trainer, setting, deep_supervision=False).state_dict()
        many = trainer.build_network_architecture(
            setting.plans, setting.configuration, setting.channels, setting.classes + 1, True
        ).state_dict()
    assert set(few) == set(many), "other weights in training or for another number of classes"
    changed = {key for key in few if few[key].shape != many[key].shape}
    assert changed == {key for key in few if key.startswith("decoder.seg_layers.")}


@needed
def test_the_memory_is_forecast_on_the_plan(row: Backbone, setting: Setting) -> None:
    """`nnunet-plugins plan` and the check before training count the bytes of a step on tensors without memory."""
    for autocast in (True, False):
        counted = forecast_setting(trainer_class(row.trainer), setting, autocast=autocast)
        assert 0 < counted.saved_bytes < counted.peak_bytes_training
