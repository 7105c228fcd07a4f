"""nnU-Net's own command beside ours, on some of the cases: the labels have to be the same in every voxel."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nnunet_plugins.images.writing import read_labels
from nnunet_plugins.models.cases import Case
from nnunet_plugins.models.sources import Source
from nnunet_plugins.prediction.cases import Log
from nnunet_plugins.prediction.request import Request
from nnunet_plugins.program import run_quietly


def compare_with_nnunet(
    source: Source, request: Request, device: torch.device, cases: Sequence[Case], log: Log
) -> list[str]:
    """Predict cases once more, with nnU-Net's command; returns those in which labels differ.

    Args:
        source: the trained configuration.
        request: how they were predicted, in tiles.
        device: to compute on.
        cases: whose predictions are there.
        log: takes lines.

    Raises:
        InputError: if the command fails.
        OSError: if there is no room for its files.
    """
    with tempfile.TemporaryDirectory() as temporary:
        inputs, outputs = Path(temporary, "images"), Path(temporary, "labels")
        inputs.mkdir()
        for case in cases:
            for image in case.images:
                (inputs / image.name).symlink_to(image.resolve())
        command = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder"))]
        command += ["-i", str(inputs), "-o", str(outputs), "-m", str(source.folder), "-f", *source.folds]
        command += ["-chk", source.checkpoint, "-step_size", str(request.step), "-device", device.type]
        command += ["-npp", "1", "-nps", "1", "--disable_progress_bar"]
        command += [] if request.mirroring else ["--disable_tta"]
        # Labels are those with the largest probabilities then, of which rounding makes more ties than of logits.
        command += ["--save_probabilities"] if request.probabilities else []
        command += ["-prev_stage_predictions", str(request.previous)] if request.previous else []
        log(f"Verifying {len(cases)} cases with nnU-Net's own command")
        run_quietly(command, "nnU-Net's own prediction failed", env=dict(os.environ))
        return [case.name for case in cases if not _is_the_same(case, outputs / case.output.name, log)]


def is_for_nnunet(case: Case, source: Source) -> bool:
    """Tell whether nnU-Net's command finds the images of a case; others are converted here."""
    return all(image.name.endswith(str(source.dataset_json["file_ending"])) for image in case.images)


def _is_the_same(case: Case, other: Path, log: Log) -> bool:
    (ours, _), (theirs, _) = read_labels(case.output), read_labels(other)
    if np.array_equal(ours, theirs):
        log(f"{case.name}: the same labels as nnU-Net's, in every voxel")
        return True
    different = f"{int((ours != theirs).sum())} of {ours.size} voxels" if ours.shape == theirs.shape else "its size"
    log(f"{case.name}: DIFFERENT from nnU-Net's in {different}")
    return False
