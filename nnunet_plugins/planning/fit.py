"""`nnunet-plugins plan`: a copy of existing plans whose batch and patch fit a given memory with a given trainer."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_plugins.datasets.folders import PlanError, load_plans, preprocessed_folder, save_plans
from nnunet_plugins.datasets.plan_names import WHOLE_REMEDY, fitted_plans_name
from nnunet_plugins.files import find_fault
from nnunet_plugins.forecast import (
    COMFORTABLE,
    GIB,
    format_bytes,
    format_size,
)
from nnunet_plugins.planning.setting import (
    Setting,
    find_trainer,
    forecast_setting,
    needs_whole_images,
    plan_setting,
)
from nnunet_plugins.planning.stages import FEWEST_STAGES, Stages, plan_stages, replan, shorten, stages_of

SMALLEST_BATCH = 2  # as in nnU-Net's own planner


@dataclass(frozen=True)
class Size:
    """Patch size, batch size, and the bytes that a training step is forecast to need with them."""

    patch: tuple[int, ...]
    batch: int
    needed: int

    def __str__(self) -> str:
        return f"patch {format_size(self.patch)}, batch {self.batch}: {format_bytes(self.needed)}"


@dataclass(frozen=True)
class FittedPlans:
    """What `fit_plans` chose.

    Attributes:
        name: name of the plans to train with: the old ones, if they fit already.
        file: the plans file that was written, None if there was no need.
        sizes: by configuration, the old size and the new.
    """

    name: str
    file: Path | None
    sizes: dict[str, tuple[Size, Size]]


def largest_batch(needed: Callable[[int], int], batch: int, budget: float) -> int:
    """Return the largest batch size, from the present one down to 2, with which a training step fits; else the least.

    Args:
        needed: bytes for a batch size; more images need more memory.
        batch: the present one.
        budget: bytes that may be needed.
    """
    if needed(batch) <= budget:
        return batch
    smallest = min(batch, SMALLEST_BATCH)
    return smallest + bisect_right(range(smallest + 1, batch), budget, key=needed)


def largest_patch(
    needed: Callable[[tuple[int, ...]], int],
    stages: Stages,
    spacing: Sequence[float],
    median: Sequence[float],
    budget: float,
) -> tuple[int, ...]:
    """Shrink a patch until a training step fits, as nnU-Net's own planner shrinks it.

    Step by step, it gets shorter along the axis where it is longest relative to the images: the next smaller patch that
    nnU-Net plans, which has stages of its own. Axes of one length that the plan pools alike shrink together, so that a
    cube stays a cube. An axis stays as it is once the network refuses it shorter, and so does the patch where it would
    leave too few stages.

    Args:
        needed: bytes for a patch; raises ValueError for one that the network cannot take.
        stages: of the patch to start from.
        spacing: size of a voxel along each axis.
        median: voxels of the median image along each axis.
        budget: bytes that may be needed.

    Raises:
        PlanError: if nothing fits.
    """
    alike: dict[object, list[int]] = {}
    for axis, length in enumerate(stages.patch):
        alike.setdefault((length, stages.along(axis)), []).append(axis)
    groups, fewest, refusal = list(alike.values()), min(FEWEST_STAGES, len(stages.strides)), ""
    while needed(stages.patch) > budget:
        if not groups:
            raise PlanError(
                f"even a patch of {format_size(stages.patch)} needs {format_bytes(needed(stages.patch))}, where "
                f"{format_bytes(budget)} may be used; nnU-Net plans no smaller one{refusal}"
            )
        patch = stages.patch
        axes = max(groups, key=lambda axes: (max(patch[axis] / median[axis] for axis in axes), patch[axes[0]]))
        shorter = shorten(stages, spacing, axes)
        try:
            if shorter:
                needed(shorter.patch)
        except ValueError as error:
            shorter, refusal = None, f" that the network takes. {error}"
        if shorter is None:
            groups.remove(axes)
        elif len(shorter.strides) < fewest:
            groups.clear()
        else:
            stages = shorter
    return stages.patch


def resize(configuration: dict[str, Any], patch: tuple[int, ...], batch: int) -> dict[str, Any]:
    """Return what another size changes in a plan's configuration: patch and batch, and with the patch the network.

    Args:
        configuration: complete, as nnU-Net's ConfigurationManager holds it.
        patch: the present one, or one that nnU-Net plans for the configuration's spacing.
        batch: batch size.
    """
    changed = {"patch_size": list(patch), "batch_size": batch}
    if changed["patch_size"] == configuration["patch_size"]:
        return changed
    stages = plan_stages(configuration["spacing"], patch)
    return {**changed, "architecture": replan(configuration["architecture"], stages)}


def fit_configuration(
    trainer: type[nnUNetTrainer], setting: Setting, *, budget: float, autocast: bool
) -> tuple[Size, Size]:
    """Return patch and batch size of a plan's configuration, and those that fit the budget (bytes).

    The batch gets smaller first, down to 2, and only then the patch, unless the network has to see whole images; with
    that, the batch is as large as fits.

    Raises:
        PlanError: if nothing fits, or the network cannot take the plan at all.
    """
    configuration = setting.configuration.configuration

    @cache
    def needed(patch: tuple[int, ...], batch: int) -> int:
        changed = ConfigurationManager({**configuration, **resize(configuration, patch, batch)})
        sized = replace(setting, configuration=changed)
        return forecast_setting(trainer, sized, autocast=autocast).peak_bytes_training

    patch, batch = tuple(configuration["patch_size"]), configuration["batch_size"]
    try:
        before = Size(patch, batch, needed(patch, batch))
        batch = largest_batch(partial(needed, patch), batch, budget)
        if needed(patch, batch) > budget:
            if needs_whole_images(trainer):
                step = f"a step needs {format_bytes(needed(patch, batch))}, where {format_bytes(budget)} may be used"
                raise PlanError(f"{step}. {WHOLE_REMEDY}")
            median = configuration.get("median_image_size_in_voxels")
            if find_fault(median, [(int, float)]) or len(median) != len(patch) or min(median) <= 0:
                median = patch
            stages = stages_of(configuration)
            patch = largest_patch(lambda patch: needed(patch, batch), stages, configuration["spacing"], median, budget)
            # With the patch, stages and their parameters go, and a larger batch may have room again.
            batch = largest_batch(partial(needed, patch), before.batch, budget)
        return before, Size(patch, batch, needed(patch, batch))
    except ValueError as error:
        raise PlanError(str(error)) from error


def fit_plans(
    dataset: str,
    trainer: str,
    gpu_memory: float,
    *,
    configurations: Sequence[str] = (),
    like: str = "nnUNetPlans",
    name: str | None = None,
    autocast: bool = True,
    overwrite: bool = False,
) -> FittedPlans:
    """Write a copy of a dataset's plans whose configurations fit a GPU, beside them, unless they fit as they are.

    The copy names the same preprocessed data.

    Args:
        dataset: number or name.
        trainer: its name, as for `nnUNetv2_train -tr`.
        gpu_memory: all of the GPU's memory in GiB; a part of it is left free (`COMFORTABLE`).
        configurations: those to adapt; all of the plans' if empty.
        like: name of the plans to start from.
        name: name of the new plans, which are then written in any case; by default made from `like`, the trainer and
            the memory.
        autocast: mixed precision, as nnU-Net trains on CUDA.
        overwrite: whether to replace plans of that name that say something else.

    Raises:
        PlanError: if something is missing or unknown, or nothing fits.
    """
    network = find_trainer(trainer)
    folder = preprocessed_folder(dataset)
    old = PlansManager(load_plans(folder, like))
    settings = {name: plan_setting(dataset, name, like) for name in configurations or old.available_configurations}
    sizes = {}
    for configuration, setting in settings.items():
        try:
            sizes[configuration] = fit_configuration(
                network, setting, budget=COMFORTABLE * gpu_memory * GIB, autocast=autocast
            )
        except PlanError as error:
            raise PlanError(f"{configuration}: {error}") from error
    if name is None and all(before == after for before, after in sizes.values()):
        return FittedPlans(like, None, sizes)

    new = deepcopy(old.plans)
    new["plans_name"] = name = name or fitted_plans_name(like, trainer, gpu_memory)
    for configuration, (_, after) in sizes.items():
        complete = settings[configuration].configuration.configuration
        new["configurations"][configuration].update(resize(complete, after.patch, after.batch))
    return FittedPlans(name, save_plans(folder, new, like, overwrite=overwrite), sizes)
