"""The stages of a plan's U-Net, planned anew by nnU-Net's own function when it gets another patch."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_plugins.datasets.architecture import MOST_FEATURES, PER_STAGE
from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.files import find_fault
from nnunet_plugins.forecast import format_size

SMALLEST_MAP = 4
"""Voxels per axis below which nnU-Net pools nothing (`UNet_featuremap_min_edge_length` of its planner's objects)."""

FEWEST_STAGES = 3
"""With two, deep supervision is left with one output, which nnU-Net gives the weight 0 / 0."""

_MANY = 999999  # poolings: as many as fit


@dataclass(frozen=True)
class Stages:
    """The stages that nnU-Net plans for a patch: stride and kernel of each, per axis.

    Attributes:
        patch: voxels per axis, a multiple of the product of the strides.
        strides: of each stage; the first is at full resolution.
        kernels: of each stage.
    """

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    def along(self, axis: int) -> tuple[tuple[int, ...], ...]:
        """Return the strides and the kernels along one axis."""
        return tuple(tuple(stage[axis] for stage in part) for part in (self.strides, self.kernels))


def plan_stages(spacing: Sequence[float], patch: Sequence[int]) -> Stages:
    """Return the stages that nnU-Net's planners give a U-Net, for this patch or the next larger one that they plan.

    Args:
        spacing: size of a voxel along each axis; only the ratios count.
        patch: voxels per axis.
    """
    _, strides, kernels, padded, _ = get_pool_and_conv_props(spacing, patch, SMALLEST_MAP, _MANY)
    return Stages(tuple(map(int, padded)), strides, kernels)


def stages_of(configuration: dict[str, Any]) -> Stages:
    """Return the stages of a plan's configuration, if they are what nnU-Net plans for its patch and spacing.

    Args:
        configuration: complete, as nnU-Net's ConfigurationManager holds it.

    Raises:
        PlanError: if they are not, so that nobody knows the stages for another patch.
    """
    patch, spacing = tuple(configuration["patch_size"]), configuration.get("spacing", [])
    options = configuration["architecture"]["arch_kwargs"]
    if len(spacing) == len(patch) and all(0 < size < math.inf for size in spacing):
        stages = plan_stages(spacing, patch)
        number = len(stages.strides)
        shape = {"strides": [[int]], "kernel_sizes": [[int]], "features_per_stage": [int], "n_stages": int}
        if (
            find_fault(options, shape) is None
            and patch == stages.patch
            and [tuple(map(tuple, options[name])) for name in ("strides", "kernel_sizes")]
            == [stages.strides, stages.kernels]
            and number == options["n_stages"] == len(options["features_per_stage"])
        ):
            return stages
    raise PlanError(
        f"its U-Net is not the one that nnU-Net plans for a patch of {format_size(patch)} and voxels of "
        f"{format_size(spacing) or 'unknown size'}, so its stages for another patch are not known; start from plans "
        "that nnU-Net's own planner has made (--like)"
    )


def shorten(stages: Stages, spacing: Sequence[float], axes: Sequence[int]) -> Stages | None:
    """Return the stages for the next smaller patch that nnU-Net plans, shorter along some axes; None if there is none.

    Args:
        stages: for the present patch.
        spacing: size of a voxel along each axis.
        axes: to shorten, all of one length, and to the same length again.
    """
    length = stages.patch[axes[0]]
    # A patch of one pooling less may lie in between, as 112 does between 128 = 4 x 32 and 96 = 3 x 32 = 6 x 16.
    step = max(1, math.prod(stages.along(axes[0])[0]) // 2)
    for shorter in range(length - step, SMALLEST_MAP - 1, -step):
        found = plan_stages(spacing, [shorter if axis in axes else n for axis, n in enumerate(stages.patch)])
        changed = {found.patch[axis] for axis in axes}
        grown = any(new > old for new, old in zip(found.patch, stages.patch, strict=True))  # to be divisible
        fits = len(changed) == 1 and max(changed) < length and not grown
        if fits and len(found.strides) <= len(stages.strides):
            return found
    return None


def replan(architecture: dict[str, Any], stages: Stages) -> dict[str, Any]:
    """Return a plan's architecture with other stages.

    A stage that it does not have yet gets twice the channels of the last one, up to nnU-Net's most, and else what that
    has.

    Args:
        architecture: the plan's, with the network's class and options.
        stages: the new ones.
    """
    architecture = deepcopy(architecture)
    options, number = architecture["arch_kwargs"], len(stages.strides)
    options.update(
        n_stages=number,
        strides=[list(axes) for axes in stages.strides],
        kernel_sizes=[list(axes) for axes in stages.kernels],
    )
    most = MOST_FEATURES[len(stages.patch)]
    for name, fewer in PER_STAGE.items():
        if isinstance(options.get(name), (list, tuple)):
            values = list(options[name][: number - fewer])
            while values and len(values) < number - fewer:
                last = values[-1]
                values.append(max(last, min(2 * last, most)) if name == "features_per_stage" else last)
            options[name] = values
    return architecture
