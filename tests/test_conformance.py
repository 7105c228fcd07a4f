"""What every registered backbone must do, for every kind of plan. A new registry row is tested by being there."""

import json
from pathlib import Path

import pytest
import torch

from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import Backbone
from nnunet_plugins.testing import test_backbone as suite
from nnunet_plugins.testing.plans import build
from nnunet_plugins.testing.test_backbone import *  # noqa: F403 - the tests that anybody's rows have to pass

ROWS = BACKBONES
"""What these tests run over."""

STAND_IN = 5e-3
"""What stands in for a GPU keeps what the GPU keeps, but for a few numbers of norms: it knows all our layers."""

PARAMETERS = Path(__file__).with_name("parameters.json")
"""Trainer to the parameters of its network as it is, with 2 input channels and 3 classes, for isotropic plans."""

EXTREMES = ("3d anisotropic", "2d odd", "2d resenc")

_OF_EACH_KIND = {row.network: row.trainer for row in reversed(BACKBONES)}


def belongs_to_the_campaign(test: str, row: Backbone, plan: str | None) -> bool:
    """Whether a test of a network, with a plan or with any, is run on purpose alone, with `pytest -m campaign`.

    A network's code makes of a plan what its options do not change, so every plan is for the first row of each network;
    for others of its rows there are the plans that differ most from cubes of even sizes. A paper's recipe has another
    dropout at most, which compiles as the other does.
    """
    if row.trainer == _OF_EACH_KIND[row.network]:
        return False
    if plan is None:
        return test == "test_compiles_without_a_graph_break" and row.trainer.endswith("Paper")
    return plan not in (("2d anisotropic",) if test == "test_the_memory_of_training_is_forecast" else EXTREMES)


# All networks of one kind at a time, in test_distributed.py: two processes for each would take minutes.
del test_two_processes_train_one_network  # noqa: F821


class TestRow(suite.TestRow):
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
