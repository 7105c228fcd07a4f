"""Checks for networks that take a patch for the whole anatomy: a larger image would be cut into several of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_plugins.datasets.plan_names import covering_command
from nnunet_plugins.datasets.preprocessed import (
    data_folder,
    existing_cases,
    larger_cases,
    missing_cases,
    preprocessed_shapes,
)
from nnunet_plugins.doctor.findings import Finding, of_cases, ok
from nnunet_plugins.doctor.images import CaseFacts
from nnunet_plugins.errors import InputError
from nnunet_plugins.forecast import format_size
from nnunet_plugins.planning.cover import Images
from nnunet_plugins.planning.native import keeps_voxels
from nnunet_plugins.planning.setting import Setting, find_trainer, needs_whole_images, plan_setting

if TYPE_CHECKING:
    from nnunet_plugins.doctor.training import Training

_WHOLE = "which the network takes for the whole anatomy"


def check_training_images(training: "Training", setting: Setting, folder: Path) -> Iterator[Finding]:
    """Check that the patch holds every training image, as it is preprocessed.

    Args:
        training: of such a network.
        setting: of its plans.
        folder: of the dataset, in nnUNet_preprocessed.
    """
    patch, place = setting.configuration.patch_size, (folder, training.plans, training.configuration)
    absent = set(missing_cases(*place))
    there = [case for case in existing_cases(folder) if case not in absent]
    found = larger_cases(preprocessed_shapes(data_folder(*place), there), patch)
    remedy = f"make plans that cover them: {covering_command(training.dataset, training.plans)}"
    if len(patch) == 2:
        remedy = "use a 3D configuration where images have several slices"
    yield from of_cases("problem", f"{{}} larger than the patch {format_size(patch)}, {_WHOLE}", found, remedy)
    if there and not found:
        yield ok(f"the patch {format_size(patch)} holds every training image")


def check_images(training: "Training", facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Check that the patch holds images to predict, after nnU-Net's cropping and resampling.

    Nothing is said of other networks, nor where trainer or plans cannot be used, which other checks tell.

    Args:
        training: whose network predicts.
        facts: about the images.
    """
    try:
        if not needs_whole_images(find_trainer(training.trainer)):
            return
        setting = plan_setting(training.dataset, training.configuration, training.plans)
    except InputError:
        return
    order, patch, target = (
        setting.plans.transpose_forward,
        setting.configuration.patch_size,
        setting.configuration.spacing,
    )
    shapes = {}
    for name, case in facts.items():
        if case.is_whole and case.channels:
            shape, spacing = (
                [sizes[axis] for axis in order] for sizes in (case.cropped, case.channels[0].grid.spacing)
            )
            image = Images(np.array([shape]), np.array([spacing]))
            after = spacing if keeps_voxels(setting.configuration.configuration) else target
            shapes[name] = image.resampled([*spacing[: 3 - len(after)], *after])[0].tolist()
    found = larger_cases(shapes, patch)
    yield from of_cases(
        "problem",
        f"{{}} larger, when resampled, than the patch {format_size(patch)}, {_WHOLE}: nnU-Net cuts them into windows "
        "without a word",
        found,
        "crop them to what the training images show",
    )
    if shapes and not found:
        yield ok(f"the patch {format_size(patch)} holds all of these images")
