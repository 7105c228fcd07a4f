"""FIRENet's recipes: nnU-Net's own with the gates' three-stage schedule, and the paper's.

Source: FIRENet (Liu et al. 2020, arXiv:2006.15578), sections III-A7 (training pipeline) and III-A8 (augmentation).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerVanillaAdam1en3

from nnunet_plugins.networks.fabric import DenseResidualFabric
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.losses import CELossTrainer

STAGES = {
    1: "all WRS gates stand still",
    2: "the fabric's gates train, the decoder's stand still",
    3: "all gates train",
}


def hold_frozen_gates(optimizer: torch.optim.Optimizer, network: Any, stage: Callable[[], int]) -> None:
    """Make the training leave alone the gates that `stage()` freezes, as if they were no parameters.

    Their gradients are set to zero as they come, so that they do not count where nnU-Net clips the gradient's norm, and
    are dropped before each step, so that neither momentum nor weight decay moves the gates. Both work under DDP and
    torch.compile alike: toggling `requires_grad` instead would break the one and make the other recompile.

    Args:
        optimizer: the optimizer of all of the network's parameters.
        network: the bare FIRENet.
        stage: tells the current stage, 1 to 3, at each step.
    """
    frozen = {number: network.frozen_gates(number) for number in STAGES}

    def drop_frozen_gradients(*_: Any) -> None:
        for weight in frozen[stage()]:
            weight.grad = None

    optimizer.register_step_pre_hook(drop_frozen_gradients)
    for weight in frozen[1]:  # all of them
        weight.register_hook(
            lambda gradient, weight=weight: (
                torch.zeros_like(gradient) if any(weight is one for one in frozen[stage()]) else gradient
            )
        )


class FIRENetTrainer(BackboneTrainer):
    """nnU-Net's recipe; only the gates follow the paper's three stages.

    Stage 1 freezes all WRS weights, stage 2 the decoder's, stage 3 none. The paper's 20 + 20 epochs are taken as
    parts of nnU-Net's 1000 and scale with the number of epochs: each of the first two stages lasts a fiftieth of the
    run, at least one epoch.
    """

    def initialize(self) -> None:
        """Set up training as nnU-Net does, then hook the schedule into the optimizer, whichever it is."""
        super().initialize()
        hold_frozen_gates(self.optimizer, self.bare_network(), lambda: self.wrs_stage)

    @property
    def wrs_stage(self) -> int:
        """The stage, 1 to 3, that the current epoch belongs to; a resumed run needs no other state."""
        length = math.ceil(self.num_epochs / 50)
        return min(self.current_epoch // length + 1, 3)

    def on_train_start(self) -> None:
        """Start or resume training; the log says in which stage."""
        super().on_train_start()
        self._log_stage()

    def on_epoch_end(self) -> None:
        """End the epoch; the log says when the next one begins a new stage."""
        before = self.wrs_stage
        super().on_epoch_end()
        if self.wrs_stage != before and self.current_epoch < self.num_epochs:
            self._log_stage()

    def _log_stage(self) -> None:
        self.print_to_log_file(
            f"FIRENet training stage {self.wrs_stage} of 3 from epoch {self.current_epoch}: {STAGES[self.wrs_stage]}"
        )

    def on_train_end(self) -> None:
        """End training; the log keeps the fabric with the gates it has learnt."""
        super().on_train_end()
        bottleneck = getattr(self.bare_network(), "bottleneck", None)
        if isinstance(bottleneck, DenseResidualFabric):
            self.print_to_log_file(bottleneck.describe())


class FIRENetPaperTrainer(nnUNetTrainerNoMirroring, CELossTrainer, nnUNetTrainerVanillaAdam1en3, FIRENetTrainer):
    """The paper's recipe: Adam, plain cross-entropy, spatial augmentation only, best checkpoint by raw Dice.

    The paper names neither learning rate nor schedule: 1e-3 with nnU-Net's polynomial decay. Its augmentation is
    translation, rotation, affine and elastic deformation; translation is nnU-Net's random patch position.
    """

    target_class: int | None = None
    """Foreground class (1, 2, ...) or region whose validation Dice chooses the best checkpoint; None takes the mean."""

    def on_train_start(self) -> None:
        """Start or resume training.

        Raises:
            ValueError: if the dataset does not have `target_class`.
        """
        labels = self.label_manager
        classes = len(labels.foreground_regions if labels.has_regions else labels.foreground_labels)
        if self.target_class is not None and not 1 <= self.target_class <= classes:
            raise ValueError(f"target_class is {self.target_class}, the dataset has classes 1 to {classes}")
        super().on_train_start()

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> BasicTransform:
        """Return nnU-Net's augmentation without its intensity transforms and with elastic deformation."""
        composed: Any = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        intensity = (
            GaussianNoiseTransform,
            GaussianBlurTransform,
            MultiplicativeBrightnessTransform,
            ContrastTransform,
            SimulateLowResolutionTransform,
            GammaTransform,
        )
        composed.transforms = [
            transform
            for transform in composed.transforms
            if not (isinstance(transform, RandomTransform) and isinstance(transform.transform, intensity))
        ]
        for transform in composed.transforms:
            if isinstance(transform, SpatialTransform):
                transform.p_elastic_deform = transform.p_rotation
                transform.elastic_deform_scale = (0.1, 0.25)  # smoothness, as a part of the patch's edge
                transform.elastic_deform_magnitude = (0, 4)  # largest displacement in voxels
        return composed

    def on_epoch_end(self) -> None:
        """End the epoch; `checkpoint_best` follows the raw validation Dice, where nnU-Net smooths it over epochs."""
        history = [self._target_dice(dice) for dice in self.logger.get_value("dice_per_class_or_region", step=None)]
        previous = [dice for dice in history[:-1] if not math.isnan(dice)]
        # As nnU-Net's, the first epoch's is written whatever it is worth: `--val_best` has to find one.
        is_best = len(history) == 1 or (not math.isnan(history[-1]) and history[-1] > max(previous, default=-1))
        # nnU-Net writes checkpoint_best whenever its smoothed Dice exceeds this value.
        self._best_ema = None if is_best else math.inf
        super().on_epoch_end()
        if is_best:
            self.print_to_log_file(f"checkpoint_best: raw validation Dice {history[-1]:.4f}")

    def _target_dice(self, per_class: list[float]) -> float:
        if self.target_class is None:
            present = [dice for dice in per_class if not math.isnan(dice)]
            return sum(present) / len(present) if present else math.nan
        return per_class[self.target_class - 1]
