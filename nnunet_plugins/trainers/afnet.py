"""The autofocus paper's recipe (Qin et al. 2018, arXiv:1805.08403), section 3.1, configuration details."""

import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from torch.optim.lr_scheduler import LRScheduler

from nnunet_plugins.trainers.backbone import BackboneTrainer


class DropLR(LRScheduler):
    """A constant learning rate, and a tenth of it from two thirds of the epochs on.

    `step` takes the epoch, as nnU-Net's trainer passes it, so that a resumed run needs no other state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, max_steps: int) -> None:
        self.initial_lr, self.max_steps = initial_lr, max_steps
        self.epoch = 0
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate for an epoch, counted from 0."""
        self.epoch = self.epoch if epoch is None else epoch
        dropped = 3 * self.epoch >= 2 * self.max_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * (0.1 if dropped else 1.0)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class AFNetPaperTrainer(nnUNetTrainerNoDA, nnUNetTrainerDiceLoss, BackboneTrainer):
    """The paper's recipe: Adam, 1e-3 and 1e-4 from two thirds of the epochs on, soft Dice, no augmentation.

    Patch size and batch size come from the plan; the paper's are 75^3 and 7.
    """

    def initialize(self) -> None:
        """Set up training as nnU-Net does, with the paper's learning rate whichever the optimizer."""
        self.initial_lr = 1e-3
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam with the paper's schedule."""
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr)
        return optimizer, DropLR(optimizer, self.initial_lr, self.num_epochs)
