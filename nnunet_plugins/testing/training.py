"""Train a row's network by nnU-Net's own loop, on made-up cases as its preprocessing leaves them, and predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_plugins.rows import Backbone
from nnunet_plugins.testing.plans import CHANNELS, CLASSES, PLANS, architecture, narrow_trainer
from nnunet_plugins.trainers.checkpoints import load_checkpoint

DATASET, CONFIGURATION, CASES = "Dataset001_Conformance", "conformance", 2


def write_cases(folder: Path, plan: str, margin: int = 4) -> None:
    """Write two preprocessed cases for a plan, with all labels in them.

    Args:
        folder: for preprocessed datasets.
        plan: key of `PLANS`.
        margin: voxels that they have along each axis beyond the plan's patch.
    """
    cases = folder / DATASET / CONFIGURATION
    cases.mkdir(parents=True)
    random = np.random.default_rng(0)
    patch = PLANS[plan][0]
    # Images of 2D configurations are stacks of slices.
    size = (1,) * (3 - len(patch)) + tuple(n + margin for n in patch)
    for number in range(CASES):
        labels = random.integers(0, CLASSES, (1, *size)).astype(np.int16)
        pixels = (labels + random.normal(0, 0.3, (CHANNELS, *size))).astype(np.float32)
        places = {label: np.argwhere(labels == label) for label in range(1, CLASSES)}
        properties = {"class_locations": places, "spacing": [1.0] * 3}
        nnUNetDatasetBlosc2.save_case(
            pixels,
            labels,
            properties,
            str(cases / f"case_{number}"),
            chunks=pixels.shape,
            blocks=pixels.shape,
            chunks_seg=labels.shape,
            blocks_seg=labels.shape,
        )
    (folder / DATASET / "dataset_fingerprint.json").write_text("{}")
    splits = [{"train": ["case_0"], "val": ["case_1"]}]
    (folder / DATASET / "splits_final.json").write_text(json.dumps(splits))


def plans_and_dataset(plan: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of the plans and of the dataset.json for such cases."""
    chosen = {
        "data_identifier": CONFIGURATION,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(PLANS[plan][0]),
        "spacing": [1.0] * len(PLANS[plan][0]),
        "normalization_schemes": ["ZScoreNormalization"] * CHANNELS,
        "use_mask_for_norm": [False] * CHANNELS,
        "batch_dice": False,
        "architecture": architecture(plan),
    }
    plans = {
        "dataset_name": DATASET,
        "plans_name": "conformance",
        "label_manager": "LabelManager",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "original_median_spacing_after_transp": [1.0] * 3,
        "configurations": {CONFIGURATION: chosen},
    }
    names = ["background", *(f"label {label}" for label in range(1, CLASSES))]
    dataset = {
        "channel_names": {str(channel): "MRI" for channel in range(CHANNELS)},
        "labels": {name: label for label, name in enumerate(names)},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    return plans, dataset


def train_two_steps(
    row: Backbone, plan: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[nnUNetTrainer, nn.Module]:
    """Train for an epoch of two steps, and load the checkpoint into the form for inference.

    Returns:
        the trainer, and the network that was loaded.

    Raises:
        AssertionError: if the losses are not finite, or no weight has changed.
        RuntimeError: PyTorch's, if the checkpoint does not fit.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_cases(folder, plan, -3 if row.fitted else 4)  # some have to see an image as a whole
    plans, dataset = plans_and_dataset(plan)
    kind = narrow_trainer(row, f"{row.trainer}_1epochs_2iterations")
    torch.manual_seed(0)
    trainer = kind({**plans, "continue_training": False}, CONFIGURATION, 0, dataset, torch.device("cpu"))
    trainer.initialize()
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.run_training()
    losses = trainer.logger.get_value("train_losses", step=None)
    if not np.isfinite(losses).all():
        raise AssertionError(f"losses {losses}")
    if all(map(torch.equal, before, trainer.network.parameters())):
        raise AssertionError("two steps changed no weight")
    checkpoint = load_checkpoint(Path(trainer.output_folder, "checkpoint_final.pth"))
    network = kind.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, CHANNELS, CLASSES, enable_deep_supervision=False
    )
    network.load_state_dict(checkpoint["network_weights"], strict=True)
    return trainer, network


def predict_by_windows(trainer: nnUNetTrainer, network: nn.Module) -> torch.Tensor:
    """Return the logits of an image that is larger than the patch along some axes and smaller along another.

    Raises:
        AssertionError: if they do not have the image's size.
    """
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    mirrored = trainer.inference_allowed_mirroring_axes
    about = (trainer.plans_manager, trainer.configuration_manager)
    predictor.manual_initialization(network, *about, None, trainer.dataset_json, type(trainer).__name__, mirrored)
    patch = trainer.configuration_manager.patch_size
    size = [max(2, patch[0] - 3), *(n + 5 for n in patch[1:])]
    slices = [3] if len(patch) == 2 else []
    logits = predictor.predict_sliding_window_return_logits(torch.randn(CHANNELS, *slices, *size))
    if logits.shape != (CLASSES, *slices, *size):
        raise AssertionError(f"logits of the shape {tuple(logits.shape)} for an image of {[*slices, *size]} voxels")
    return torch.as_tensor(logits)
