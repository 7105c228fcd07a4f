"""`nnunet-plugins plan --cover`: a copy of existing plans with configurations whose patch holds every image.

Some networks take a patch for the whole anatomy: those that know where a voxel lies, or that are fitted to an image. On
such a plan every other network trains as well, so that all can be compared. Where the patch would be too large, the
images get a coarser spacing, in preprocessed data of their own.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_plugins.datasets.folders import (
    PlanError,
    choose_configurations,
    load_plans,
    preprocessed_folder,
    save_plans,
)
from nnunet_plugins.datasets.plan_names import COVERING, covering_configuration
from nnunet_plugins.datasets.preprocessed import data_folder, existing_cases, missing_cases, preprocessed_shapes
from nnunet_plugins.files import read_json
from nnunet_plugins.forecast import format_size
from nnunet_plugins.planning.native import keeps_voxels
from nnunet_plugins.planning.setting import plan_setting
from nnunet_plugins.planning.stages import plan_stages, replan, stages_of

LARGEST = 160**3
"""Voxels of the largest covering patch, about twice nnU-Net's for 8 GB; images that need more get a coarser spacing."""

SPARE = 10  # per cent that a patch is longer than the longest image, for images that are yet to come
_SMALLEST_BATCH = 2  # as in nnU-Net's own planner
_COARSER = 1.03  # a step of the spacing, like the next as in nnU-Net's planner of 3d_lowres
_ALIKE = 2  # spacings within this factor get coarser together
_FINGERPRINT = {"spacings": [[(int, float)]], "shapes_after_crop": [[int]]}


@dataclass(frozen=True)
class Images:
    """The sizes of all training images, cropped, in the order of the plans' axes.

    Attributes:
        shapes: voxels, images x axes.
        spacings: of the voxels, mm, likewise.
    """

    shapes: NDArray[Any]
    spacings: NDArray[Any]

    def resampled(self, spacing: Sequence[float]) -> NDArray[Any]:
        """Return the voxels of the images after nnU-Net's resampling to a spacing, images x axes."""
        return np.rint(self.spacings / np.asarray(spacing) * self.shapes).astype(int)


@dataclass(frozen=True)
class Covering:
    """A configuration whose patch holds every training image.

    Attributes:
        base: the configuration that it inherits from.
        largest: voxels of the largest image along each axis, after resampling.
        patch: voxels.
        batch: images of a training step.
        spacing: of the voxels, mm.
        is_coarser: the spacing is not that of `base`, so the data are others as well.
        is_preprocessed: its data are there.
    """

    base: str
    largest: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    spacing: tuple[float, ...]
    is_coarser: bool
    is_preprocessed: bool


@dataclass(frozen=True)
class CoveringPlans:
    """What `cover_plans` wrote: the plans' name and file, and their covering configurations by name."""

    dataset: str
    name: str
    file: Path
    configurations: dict[str, Covering]


def cover_plans(
    dataset: str,
    *,
    configurations: Sequence[str] = (),
    like: str = "nnUNetPlans",
    name: str | None = None,
    overwrite: bool = False,
) -> CoveringPlans:
    """Write a copy of a dataset's plans, beside them, that has configurations whose patch holds every training image.

    What sizes the images have is told by nnU-Net's fingerprint, and by the preprocessed data where they are there.

    Args:
        dataset: number or name.
        configurations: those to make a covering one of; by default 3d_fullres, or 2d where there is no 3D.
        like: name of the plans to start from.
        name: name of the new plans; by default that of the old ones with "_cover".
        overwrite: whether to replace plans of that name that say something else.

    Raises:
        PlanError: if something is missing or unknown, or a patch cannot hold the images.
    """
    folder = preprocessed_folder(dataset)
    old = PlansManager(load_plans(folder, like))
    new = deepcopy(old.plans)
    new["plans_name"] = name = name or f"{like}_{COVERING}"
    made: dict[str, tuple[Images, dict[str, Any]]] = {}
    for base in choose_configurations(old, like, configurations, most=1):
        configuration = plan_setting(dataset, base, like).configuration.configuration
        try:
            images = _image_sizes(folder, like, base, old.transpose_forward, configuration)
            changes = _cover(configuration, images, f"{name}_{covering_configuration(base)}")
        except PlanError as error:
            raise PlanError(f"{base}: {error}") from error
        made[base] = images, changes
        new["configurations"][covering_configuration(base)] = {"inherits_from": base, **changes}
    file = save_plans(folder, new, like, overwrite=overwrite)
    found = {}
    for base, (images, changes) in made.items():
        chosen = PlansManager(new).get_configuration(covering_configuration(base))
        found[covering_configuration(base)] = Covering(
            base,
            _largest(images, chosen.spacing),
            tuple(chosen.patch_size),
            chosen.batch_size,
            tuple(chosen.spacing),
            "spacing" in changes,
            bool(existing_cases(folder)) and not missing_cases(folder, name, covering_configuration(base)),
        )
    return CoveringPlans(folder.name, name, file, found)


def _image_sizes(folder: Path, plans: str, base: str, order: Sequence[int], configuration: dict[str, Any]) -> Images:
    """Return the sizes of the images, in 2D of their slices.

    Raises:
        InputError: if nobody tells them.
        PlanError: if there are several slices in 2D.
    """
    shapes, spacings = [], []
    file = folder / "dataset_fingerprint.json"
    if file.is_file():
        fingerprint = read_json(file, _FINGERPRINT)
        shapes += [[shape[axis] for axis in order] for shape in fingerprint["shapes_after_crop"]]
        spacings += [[spacing[axis] for axis in order] for spacing in fingerprint["spacings"]]
    # The fingerprint is not taken again where cases join a dataset, nor does it know of other ways to preprocess.
    absent = set(missing_cases(folder, plans, base))
    there = [case for case in existing_cases(folder) if case not in absent]
    own = [1.0] * (3 - len(configuration["spacing"])) + list(configuration["spacing"])
    for shape in preprocessed_shapes(data_folder(folder, plans, base), there).values():
        shapes.append(list(shape))
        spacings.append(own)
    if not shapes:
        number = int(folder.name.removeprefix("Dataset")[:3])
        raise PlanError(
            f"{file} is missing, which tells the sizes of the images: nnUNetv2_extract_fingerprint -d {number}"
        )
    if keeps_voxels(configuration):
        spacings = [own] * len(shapes)
    images = Images(np.array(shapes), np.array(spacings, dtype=float))
    if len(configuration["patch_size"]) == 3:
        return images
    if (most := int(images.shapes[:, 0].max())) > 1:
        raise PlanError(
            f"there are images with several slices, up to {most}: a patch is one of them, and holds no image; cover "
            "3d_fullres instead"
        )
    return Images(images.shapes[:, 1:], images.spacings[:, 1:])


def _largest(images: Images, spacing: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(int, images.resampled(spacing).max(axis=0)))


def _cover(configuration: dict[str, Any], images: Images, identifier: str) -> dict[str, Any]:
    """Return what a covering configuration changes in the one that it inherits from.

    Args:
        configuration: that one, complete.
        images: to hold.
        identifier: of the preprocessed data, where they are others; their spacing is added, which may change with the
            images.

    Raises:
        PlanError: if the U-Net's stages for another patch are not known, it is the second stage of a cascade, or the
            images are too large and are not resampled.
    """
    if configuration.get("previous_stage"):
        raise PlanError("the second stage of a cascade is trained on segmentations of the first; cover that one")
    stages_of(configuration)  # which refuses what is not nnU-Net's
    before, spacing = configuration["patch_size"], list(configuration["spacing"])
    while True:
        least = [-(-n * (100 + SPARE) // 100) for n in _largest(images, spacing)]
        stages = plan_stages(spacing, least)
        if math.prod(stages.patch) <= LARGEST:
            break
        if keeps_voxels(configuration):
            raise PlanError(
                f"the largest images have {format_size(_largest(images, spacing))} voxels, too many for a patch, and "
                "these plans resample nothing, so that no other spacing helps; cover plans that do"
            )
        spacing = _coarser(spacing)
    batch = configuration["batch_size"]
    fitting = batch * math.prod(before) // math.prod(stages.patch)  # as many voxels as before in a step
    changes: dict[str, Any] = {
        "patch_size": list(stages.patch),
        "batch_size": max(min(batch, _SMALLEST_BATCH), min(batch, fitting)),
    }
    if spacing != list(configuration["spacing"]):
        median = np.median(images.resampled(spacing), axis=0)
        changes |= {
            "data_identifier": "_".join([identifier, *(f"{length:.4g}" for length in spacing)]),
            "spacing": spacing,
            "median_image_size_in_voxels": [round(n) for n in median.tolist()],
        }
    architecture = replan(configuration["architecture"], stages)
    if architecture != configuration["architecture"]:
        changes["architecture"] = architecture
    if len(before) == 3 and configuration.get("batch_dice"):
        changes["batch_dice"] = False  # nnU-Net has it where a patch is a small part of an image
    if configuration.get("next_stage"):
        changes["next_stage"] = None
    return changes


def _coarser(spacing: Sequence[float]) -> list[float]:
    """Return the next coarser spacing; the axes that are much finer than others come first."""
    widest = max(spacing)
    finer = [widest / size > _ALIKE for size in spacing]
    return [
        size * _COARSER if is_finer or not any(finer) else size for size, is_finer in zip(spacing, finer, strict=True)
    ]
