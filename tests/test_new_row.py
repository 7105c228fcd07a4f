"""A new network is a file in `networks` and a row in the registry; that is all that anyone has to touch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NETWORK = '''
"""A network of two layers, the shortest that keeps to what `rows.Backbone` says."""

from torch import nn

from nnunet_plugins.networks.layers.blocks import convolution
from nnunet_plugins.networks.layers.head import Head


class Toy(nn.Module):
    def __init__(self, input_channels, num_classes, deep_supervision=False, *, dim=3, width=512):
        super().__init__()
        self.body = nn.Sequential(convolution(input_channels, width, (3,) * dim), nn.ReLU())
        self.decoder = Head([width], num_classes, dim, deep_supervision=deep_supervision)

    @classmethod
    def from_plan(
        cls, *, input_channels, num_classes, deep_supervision, patch_size, strides, kernel_sizes, **options
    ):
        return cls(input_channels, num_classes, deep_supervision, dim=len(patch_size), **options)

    def forward(self, x):
        return self.decoder([self.body(x)])
'''
ROW = """
    Backbone(
        trainer="nnUNetTrainerToy",
        network="nnunet_plugins.networks.toy.Toy",
        recipe=f"{_TRAINERS}.backbone.BackboneTrainer",
        summary="two layers",
        paper="none",
        dimensions=(2, 3),
        twin=STOCK_TRAINER,
        narrow=MappingProxyType({"width": 8}),
    ),
"""
CHOSEN = "Toy or registry or sample or recorded or record_ or readme or classes_pickle or upstream or list_"


@pytest.mark.slow
def test_a_new_row_touches_two_files_and_gets_all_tests(tmp_path):
    for part in ("nnunet_plugins", "tests", "docs", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CITATION.cff"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "nnunet_plugins" / "networks" / "toy.py").write_text(NETWORK)
    registry = tmp_path / "nnunet_plugins" / "registry.py"
    head, tail = registry.read_text().split("    *_classics(),\n")
    registry.write_text(f"{head}    *_classics(),{ROW}{tail}")
    rooms = [f"tests/test_{name}.py" for name in ("conformance", "feature_matrix", "names", "docs", "package")]
    assert " passed" in pytest_in(tmp_path, "-k", CHOSEN, "--record-parameters", *rooms)
    recorded = json.loads((tmp_path / "tests" / "parameters.json").read_text())
    assert recorded["nnUNetTrainerToy"] == {"3d": 29699, "2d": 11267}, "of the network as it is, not narrow"


def pytest_in(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not matrix and not campaign", *options]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout
