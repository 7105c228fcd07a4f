"""From logits to the labels that nnU-Net makes of them, resampled in the quick way where plans have nnU-Net's default.

Plans with another resampling, and logits that are not finite, go through nnU-Net's own functions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from numpy.typing import NDArray

from nnunet_plugins.prediction.resampling import Axis, axes_between, is_between_two, labels_of_logits, resample_image

_DEFAULT = resample_data_or_seg_to_shape.__name__


class Configuration(ConfigurationManager):
    """A plan's configuration whose images and probabilities are resampled in the quick way.

    Args:
        configuration: nnU-Net's.
        previous: whether it takes segmentations of a stage before. All others that nnU-Net resamples in predicting are
            of its own making, to be thrown away.
    """

    def __init__(self, configuration: ConfigurationManager, *, previous: bool) -> None:
        super().__init__(configuration.configuration)
        self._previous = previous

    @property
    def resampling_fn_data(self) -> Callable[..., Any]:
        """Of images."""
        return self._quick("resampling_fn_data") or super().resampling_fn_data

    @property
    def resampling_fn_probabilities(self) -> Callable[..., Any]:
        """Of logits."""
        return self._quick("resampling_fn_probabilities") or super().resampling_fn_probabilities

    @property
    def resampling_fn_seg(self) -> Callable[..., Any]:
        """Of segmentations."""
        return super().resampling_fn_seg if self._previous else _nothing

    def slow_parts(self) -> list[str]:
        """Return the names of what is resampled by other functions than nnU-Net's default."""
        parts = ("resampling_fn_data", "resampling_fn_probabilities")
        return [str(self.configuration[part]) for part in parts if not self._quick(part)]

    def _quick(self, name: str) -> partial[NDArray[Any]] | None:
        options = dict(self.configuration[f"{name}_kwargs"])
        if self.configuration[name] != _DEFAULT or options.pop("is_seg", False):
            return None
        return partial(_to_shape, **options)

    def axes_of_logits(
        self, old: Sequence[int], new: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
    ) -> tuple[Axis, ...] | None:
        """Return how logits are resampled, if labels can be had without resampling them all."""
        quick = self._quick("resampling_fn_probabilities")
        if quick is None:
            return None
        axes = axes_between(old, new, spacing, new_spacing, **quick.keywords)
        return axes if is_between_two(axes) else None


def _nothing(segmentation: NDArray[Any], new_shape: Sequence[int], *_: Any) -> NDArray[Any]:
    return np.zeros((len(segmentation), *new_shape), segmentation.dtype)


def _to_shape(
    data: torch.Tensor | NDArray[Any],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> NDArray[Any]:
    """`resample_data_or_seg_to_shape` for images."""
    data = np.asarray(data)
    axes = axes_between(
        data.shape[1:],
        new_shape,
        current_spacing,
        new_spacing,
        order=order,
        order_z=order_z,
        force_separate_z=force_separate_z,
        separate_z_anisotropy_threshold=separate_z_anisotropy_threshold,
    )
    return resample_image(data, axes)


def _is_finite(logits: torch.Tensor) -> bool:
    # Without a copy, however small its numbers: what is not finite is the smallest or the largest of all.
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(logits))


def make_quick(predictor: nnUNetPredictor) -> None:
    """Let a predictor's images and logits be resampled in the quick way."""
    previous = predictor.configuration_manager.previous_stage_name is not None
    predictor.configuration_manager = Configuration(predictor.configuration_manager, previous=previous)


def stock_configuration(configuration: ConfigurationManager) -> ConfigurationManager:
    """Return a plan's configuration as nnU-Net has it, with its own resampling."""
    return ConfigurationManager(configuration.configuration)


def find_labels(predictor: nnUNetPredictor, logits: torch.Tensor, properties: dict[str, Any]) -> NDArray[Any]:
    """Return the segmentation `(z, y, x)` of an image, as nnU-Net would write it.

    Args:
        predictor: with the plans.
        logits: `(heads, z, y, x)`, of the preprocessed image.
        properties: that preprocessing left.
    """
    plans, configuration, manager = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    spacing, own = _spacings(predictor, properties)
    axes = None
    if isinstance(configuration, Configuration) and _is_finite(logits):
        size = properties["shape_after_cropping_and_before_resampling"]
        axes = configuration.axes_of_logits(logits.shape[1:], size, spacing, own)
    if axes is None:
        found: NDArray[Any] = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.numpy(), plans, stock_configuration(configuration), manager, properties
        )
        return found
    labels = labels_of_logits(logits, axes, manager)
    whole = np.zeros(properties["shape_before_cropping"], labels.dtype)
    whole[tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])] = labels
    return whole.transpose(plans.transpose_backward)


def maps_in_image(predictor: nnUNetPredictor, maps: torch.Tensor, properties: dict[str, Any]) -> NDArray[np.float32]:
    """Return maps of a preprocessed image where the image's own voxels are, resampled as logits are.

    Args:
        predictor: with the plans.
        maps: `(maps, z, y, x)`, on the CPU.
        properties: that preprocessing left.

    Returns:
        `(maps, z, y, x)`, in the order of the image's axes; zeros in what nnU-Net crops away.
    """
    plans, size = predictor.plans_manager, properties["shape_after_cropping_and_before_resampling"]
    resample = predictor.configuration_manager.resampling_fn_probabilities
    kept = np.asarray(resample(maps.float().numpy(), size, *_spacings(predictor, properties)), np.float32)
    whole = np.zeros((len(maps), *properties["shape_before_cropping"]), np.float32)
    box = (slice(None), *(slice(*bounds) for bounds in properties["bbox_used_for_cropping"]))
    whole[box] = kept
    return whole.transpose(0, *(axis + 1 for axis in plans.transpose_backward))


def _spacings(predictor: nnUNetPredictor, properties: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return the spacing of a preprocessed image, and that of the image, in the order of the plan's axes."""
    planned = predictor.configuration_manager.spacing
    own = [properties["spacing"][axis] for axis in predictor.plans_manager.transpose_forward]
    # 2D configurations leave the distance of slices as it is.
    return [*own[: len(own) - len(planned)], *planned], own
