"""The recipes of the classic networks' papers: optimizer, learning rate and loss; augmentation is nnU-Net's.

What a paper leaves open, and number of epochs, patch, batch and sampling, are nnU-Net's too. docs/rivals.md has what
else the papers did.
"""

from typing import ClassVar

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from torch.optim.lr_scheduler import LRScheduler

from nnunet_plugins.trainers.afnet import DropLR
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.losses import CELossTrainer
from nnunet_plugins.trainers.scales import EqualScalesTrainer, ScalesTrainer

Optimizer = tuple[torch.optim.Optimizer, LRScheduler]


class PaperTrainer(BackboneTrainer):
    """nnU-Net's trainer with Adam and a paper's learning rate, which decays polynomially."""

    learning_rate: ClassVar[float]
    decay_of_weights: ClassVar[float] = 0.0

    def initialize(self) -> None:
        """Set up training as nnU-Net does, with the paper's learning rate whichever the optimizer."""
        self.initial_lr = self.learning_rate
        super().initialize()

    def configure_optimizers(self) -> Optimizer:
        """Return Adam with nnU-Net's schedule."""
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.decay_of_weights)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)


class VNetPaperTrainer(nnUNetTrainerDiceLoss, PaperTrainer):
    """Milletari et al. 2016, section 3: SGD with momentum 0.99, 1e-4 and a tenth of it from 25 of 30 parts on, Dice."""

    learning_rate: ClassVar[float] = 1e-4

    def configure_optimizers(self) -> Optimizer:
        """Return SGD with the paper's schedule."""
        optimizer = torch.optim.SGD(self.network.parameters(), self.initial_lr, momentum=0.99)
        # DropLR drops at two thirds of what it takes for the whole.
        return optimizer, DropLR(optimizer, self.initial_lr, self.num_epochs * 5 // 4)


class AttentionUNetPaperTrainer(nnUNetTrainerDiceLoss, PaperTrainer):
    """Oktay et al. 2018, section 3: Adam and Dice; the learning rate, 1e-4, is that of the authors' code."""

    learning_rate: ClassVar[float] = 1e-4


class UNetPlusPlusPaperTrainer(PaperTrainer, EqualScalesTrainer):
    """Zhou et al. 2018, section 3: Adam with 3e-4, cross-entropy and Dice, which is nnU-Net's loss, at every output."""

    learning_rate: ClassVar[float] = 3e-4


class SegResNetPaperTrainer(nnUNetTrainerDiceLoss, PaperTrainer):
    """Myronenko 2018, section 2: Adam, 1e-4 with polynomial decay, L2 of 1e-5, Dice; without the branch for images."""

    learning_rate: ClassVar[float] = 1e-4
    decay_of_weights: ClassVar[float] = 1e-5


class FCN8sPaperTrainer(CELossTrainer, PaperTrainer):
    """Long et al. 2015, section 4.3: SGD with momentum 0.9, a constant 1e-4, weight decay 5e-4, cross-entropy.

    The paper has twice the rate for biases.
    """

    learning_rate: ClassVar[float] = 1e-4

    def configure_optimizers(self) -> Optimizer:
        """Return SGD with a constant learning rate."""
        parameters = self.network.parameters()
        optimizer = torch.optim.SGD(parameters, self.initial_lr, momentum=0.9, weight_decay=5e-4)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0)


class MedNeXtPaperTrainer(PaperTrainer, ScalesTrainer):
    """Roy et al. 2023, section 3: nnU-Net's recipe with AdamW and 1e-3; epsilon as in the authors' code."""

    learning_rate: ClassVar[float] = 1e-3

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW with nnU-Net's schedule."""
        parameters = self.network.parameters()
        optimizer = torch.optim.AdamW(parameters, self.initial_lr, eps=1e-4, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
