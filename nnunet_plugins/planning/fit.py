"""`nnunet-plugins plan`: a copy of existing plans whose batch and patch fit a given memory with a given trainer."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_plugins.files import find_fault, read_json
from nnunet_plugins.planning.dataset import PlanError, load_plans, preprocessed_folder
from nnunet_plugins.planning.forecast import (
    COMFORTABLE,
    GIB,
    format_bytes,
    format_size,
)
from nnunet_plugins.planning.names import fitted_plans_name
from nnunet_plugins.planning.setting import Setting, find_trainer, forecast_setting, plan_setting

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


def largest_fit(
    needed: Callable[[tuple[int, ...], int], int],
    patch: tuple[int, ...],
    batch: int,
    multiple: Sequence[int],
    budget: float,
) -> Size:
    """Lower the batch size, at most down to 2, and only then shrink the patch, until a training step fits.

    Step by step, the axis is shortened that keeps most of its original length, of several the longest: so the patch
    keeps its proportions. An axis stays as it is once the network refuses it shorter.

    Args:
        needed: bytes for a patch and a batch size; raises ValueError for a patch that the network cannot take.
        patch: voxels per axis to start from.
        batch: batch size to start from.
        multiple: by which each axis of a shortened patch has to be divisible.
        budget: bytes that may be needed.

    Raises:
        PlanError: if nothing fits.
    """
    original = patch
    smallest = min(batch, SMALLEST_BATCH)
    if needed(patch, batch) > budget:
        # The batch sizes in between; more images need more memory.
        batch = smallest + bisect_right(range(smallest + 1, batch), budget, key=lambda b: needed(patch, b))
    shortest, refusal = list(multiple), ""
    while needed(patch, batch) > budget:
        axes = [axis for axis, n in enumerate(patch) if n > shortest[axis]]
        if not axes:
            raise PlanError(
                f"even a patch of {format_size(patch)} with batch size {batch} needs "
                f"{format_bytes(needed(patch, batch))}, where {format_bytes(budget)} may be used. It can shrink no "
                f"further: its axes are multiples of {format_size(multiple)}{refusal}"
            )
        next_lengths = [(n - 1) // m * m for n, m in zip(patch, multiple, strict=True)]
        _, _, axis = max((next_lengths[axis] / original[axis], patch[axis], axis) for axis in axes)
        shorter = (*patch[:axis], next_lengths[axis], *patch[axis + 1 :])
        try:
            needed(shorter, batch)
        except ValueError as error:
            shortest[axis], refusal = patch[axis], f". {error}"
        else:
            patch = shorter
    return Size(patch, batch, needed(patch, batch))


def fit_configuration(
    trainer: type[nnUNetTrainer], setting: Setting, *, budget: float, autocast: bool
) -> tuple[Size, Size]:
    """Return patch and batch size of a plan's configuration, and those that fit the budget (bytes).

    Raises:
        PlanError: if nothing fits, or the network cannot take the plan at all.
    """
    manager = setting.configuration

    @cache
    def needed(patch: tuple[int, ...], batch: int) -> int:
        changed = ConfigurationManager({**manager.configuration, "patch_size": list(patch), "batch_size": batch})
        sized = replace(setting, configuration=changed)
        return forecast_setting(trainer, sized, autocast=autocast).peak_bytes_training

    patch, batch = tuple(manager.patch_size), manager.batch_size
    strides = manager.network_arch_init_kwargs.get("strides")
    if not strides:
        raise PlanError("the plans describe no U-Net, so nobody knows which patch sizes are allowed")
    fault = find_fault(strides, [[int]], "'strides'")
    if fault or {len(axes) for axes in strides} != {len(patch)} or any(min(axes) < 1 for axes in strides):
        raise PlanError(f"the plans' strides make no sense for a patch of {format_size(patch)}: {fault or strides}")
    multiple = [prod(axis) for axis in zip(*strides, strict=True)]
    try:
        before = Size(patch, batch, needed(patch, batch))
        return before, largest_fit(needed, patch, batch, multiple, budget)
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

    name = name or fitted_plans_name(like, trainer, gpu_memory)
    if "__" in name or Path(name).name != name:
        raise PlanError(f"{name!r} cannot be a name of plans: nnU-Net allows neither '__' nor '/' in it")
    if name == like:
        raise PlanError(f"the new plans need another name than those they are made from, {like}")
    new = deepcopy(old.plans)
    new["plans_name"] = name
    for configuration, (_, after) in sizes.items():
        new["configurations"][configuration].update(patch_size=list(after.patch), batch_size=after.batch)
    file = folder / f"{name}.json"
    if file.exists() and not overwrite and read_json(file) != new:
        raise PlanError(f"{file} is there already and says something else; choose a --name, or give --overwrite")
    save_json(new, str(file), sort_keys=False)
    return FittedPlans(name, file, sizes)
