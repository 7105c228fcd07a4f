"""What every trainer checks before anything else, so that a training that cannot work ends with one clear error."""

from collections.abc import Callable

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.rows import Modifier, locate

LOSSES = [row for row in MODIFIERS if row.slot == "loss"]


def require_device(device: torch.device) -> None:
    """Check that torch can use the device that training asks for.

    Raises:
        RuntimeError: if it cannot, with the remedy.
    """
    available: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device.type in available and not available[device.type]():
        raise RuntimeError(
            f"nnunet_plugins: training on '-device {device.type}' was asked for, but torch {torch.__version__} sees no "
            f"such device here. Train with '-device cpu', or run `nnunet-plugins doctor` to see what is missing."
        )


def loss_piece(trainer: type[nnUNetTrainer]) -> Modifier | None:
    """Return the loss modifier whose piece a trainer takes its loss from; None for nnU-Net's own loss and others.

    Recipes and modifiers take their losses from the same pieces; of several, the first in the order of bases counts.
    """
    holder = next(cls for cls in trainer.__mro__ if "_build_loss" in vars(cls))
    return next((row for row in LOSSES if row.piece and locate(row.piece) is holder), None)


def require_labels(trainer: type[nnUNetTrainer], labels: LabelManager) -> None:
    """Check that a trainer's loss can handle the labels of its dataset.

    Raises:
        NotImplementedError: if it cannot, naming the losses that can.
    """
    features = {"regions": labels.has_regions, "an ignore label": labels.has_ignore_label}
    loss = loss_piece(trainer)
    if loss is None:
        return
    for feature in loss.unsupported:
        if features[feature]:
            able = [f"_{other.name}" for other in LOSSES if feature not in other.unsupported]
            raise NotImplementedError(
                f"{trainer.__name__}: its loss, {loss.summary}, does not support datasets with {feature}; "
                f"use {' or '.join(able)}, or a trainer with nnU-Net's own loss"
            )


def require_backbone(trainer: type[nnUNetTrainer]) -> None:
    """Check that the modifiers of a trainer can handle its network.

    Raises:
        NotImplementedError: if one of them cannot.
    """
    row = getattr(trainer, "backbone", None)
    if row is None or not row.fitted:
        return
    what = "networks that are fitted to every image"
    unable = [modifier for modifier in MODIFIERS if what in modifier.unsupported]
    for modifier in unable:
        if modifier.piece and issubclass(trainer, locate(modifier.piece)):
            raise NotImplementedError(
                f"{trainer.__name__}: _{modifier.name} does not support {what}, such as {row.trainer}'s; leave it out, "
                "or use another backbone"
            )
