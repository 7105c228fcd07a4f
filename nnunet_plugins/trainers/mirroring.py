"""No mirroring, whatever else the trainer is made of."""

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

NEVER_MIRRORING = (nnUNetTrainerNoDA, nnUNetTrainerNoMirroring)
"""Bases of recipes without mirroring, which stay without it whatever augmentation is put on them."""


class NoMirroringTrainer(nnUNetTrainer):
    """nnU-Net's trainer without mirroring, neither in training nor at inference.

    Upstream's nnUNetTrainerNoMirroring does the same, but is a base of some recipes already: a class cannot come twice,
    and where it stands then a piece before it, such as DA5 with mirror axes of its own, would win.
    """

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Return nnU-Net's augmentation settings without mirror axes."""
        rotation, dummy_2d, initial_patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, None
