"""`nnunet-plugins check-backbone`: a network that is sound passes, and of one that is not every fault is told."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import Sandbox

from nnunet_plugins.cli import main
from nnunet_plugins.testing import selection
from nnunet_plugins.testing.outputs import require_outputs
from nnunet_plugins.testing.training import plans_and_dataset

LAB = '''
import random

import torch
from monai.networks.nets import SegResNet
from torch import nn

from nnunet_plugins.rows import Backbone


def segresnet(*, input_channels, num_classes, dimensions, patch_size):
    return SegResNet(dimensions, 8, input_channels, num_classes)


class Faulty(nn.Module):
    """An idle parameter, logits from 0 on, a map in float32, a graph break, weights without the seed."""

    def __init__(self, *, input_channels, num_classes, dimensions, patch_size):
        super().__init__()
        self.first = nn.Conv2d(input_channels, 4, 3, padding=1)
        self.output = nn.Conv2d(4, num_classes, 1)
        self.idle = nn.Parameter(torch.zeros(2, 2))
        nn.init.constant_(self.first.bias, random.random())

    def forward(self, x):
        print("forward")
        x = self.first(x).float()
        return torch.relu(self.output(x)).float()


def row(trainer, factory, dimensions, **options):
    return Backbone(
        trainer=trainer,
        network="nnunet_plugins.networks.adapted.Adapted",
        recipe="nnunet_plugins.trainers.backbone.BackboneTrainer",
        summary="none",
        paper="none",
        dimensions=dimensions,
        twin="nnUNetTrainer",
        options={"factory": factory, **options},
    )


BACKBONES = [
    row("nnUNetTrainerLabSegResNet", segresnet, (2,), multiple=8),
    row("nnUNetTrainerLabFaulty", Faulty, (2,)),
]
'''

FAULTS = {
    "trains": "no gradient for body.idle (1 in all)",
    "mixed precision on a gpu keeps maps in half precision": "these modules return float32: body, the network",
    "half precision is finite": "logits in torch.float32",
    "logits are not bounded": "bounded from below",
    "compiles without a graph break": "Unsupported",
    "two processes train one network": "body.idle gets no gradient",
    "same seed same weights": "other weights with the same seed",
}


@pytest.fixture
def lab(sandbox: Sandbox, tmp_path) -> Sandbox:
    """A sandbox with a lab's file, and the plans of a dataset, as far as they are looked at."""
    (tmp_path / "lab.py").write_text(LAB)
    sandbox.env["nnUNet_extTrainer"] = str(tmp_path)
    plans, dataset = plans_and_dataset("2d anisotropic")
    folder = sandbox.preprocessed / plans["dataset_name"]
    folder.mkdir(exist_ok=True)
    (folder / "conformance.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return sandbox


@pytest.mark.slow
def test_an_adapted_network_passes_also_on_a_datasets_plan(lab):
    about = ("-d", 1, "-c", "conformance", "-p", "conformance")
    output = lab.run("nnunet-plugins", "check-backbone", "nnUNetTrainerLabSegResNet", *about)
    assert "All checks passed." in output
    assert "ok      trains (3 of 3 plans)" in output
    assert "ok      trains on the plan" in output
    assert "ok      the memory is forecast on the plan" in output


@pytest.mark.slow
def test_every_fault_is_told_with_what_is_needed(lab):
    output = lab.run("nnunet-plugins", "check-backbone", "nnUNetTrainerLabFaulty", ok=False)
    blocks = [" ".join(block.split()) for block in output.split("\n\n")]
    for check, found in FAULTS.items():
        assert f"FAILED  {check}" in output
        assert [block for block in blocks if re.match(f"{check}.* Needed: .* Found: .*{re.escape(found)}", block)]
    assert f"{len(FAULTS)} of 17 checks failed." in output
    assert "The check itself ended in an error" not in output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nnUNetTrainerFIRENett"], "The nearest valid name is 'nnUNetTrainerFIRENet'"),
        (["nnUNetTrainer"], "nnUNetTrainer is nnU-Net's own trainer"),
        (
            ["nnUNetTrainerFIRENet_5epochs"],
            "has modifiers; a backbone is checked by its own name, nnUNetTrainerFIRENet",
        ),
        (["nnUNetTrainerFIRENet", "-c", "2d"], "give the dataset with -d"),
        (["nnUNetTrainerFIRENet", "-d", "77"], "'77' is not the number or name of exactly one dataset"),
    ],
)
def test_what_cannot_be_checked_is_said(options, said, capsys, tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    assert main(["check-backbone", *options]) == 2
    assert said in capsys.readouterr().err


LOGITS = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)]


@pytest.mark.parametrize(
    ("outputs", "sizes", "said"),
    [
        (LOGITS[0], [(8, 8)], "the network returns Tensor and no list"),
        (LOGITS, [(8, 8)], "nnunet_plugins.trainers.scales.ScalesTrainer"),
        (LOGITS[:1], [(8, 8), (4, 4)], r"outputs of the sizes \[.*8, 8.*\], not \[\(8, 8\), \(4, 4\)\]$"),
        ([torch.zeros(2, 1, 8, 8)], [(8, 8)], "not one channel for each of 3 classes"),
    ],
    ids=["no list", "more than are weighed", "fewer", "channels"],
)
def test_outputs_that_nnunet_cannot_compare_are_told_with_what_it_compares(outputs, sizes, said):
    with pytest.raises(AssertionError, match=said):
        require_outputs(outputs, sizes, 3)
    require_outputs(LOGITS, [(8, 8), (4, 4)], 3)


def test_without_pytest_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["check-backbone", "nnUNetTrainerFIRENet"]) == 2
    assert "pip install 'nnunet-plugins[testing]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [([], "which backbone? Give --backbone TRAINER"), (["nnUNetTrainerNo"], "no backbone is called 'nnUNetTrainerNo'")],
)
def test_pytest_says_which_backbone_it_lacks(names, said):
    config = SimpleNamespace(getoption=lambda option: names)
    with pytest.raises(pytest.Collector.CollectError, match=said.replace("?", r"\?")):
        selection.rows_of(SimpleNamespace(module=SimpleNamespace(), config=config))
