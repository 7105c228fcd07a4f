"""Losses that nnU-Net does not have: the focal loss, and NISF's."""

from typing import ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn import functional


class FocalLoss(nn.Module):
    """Mean of (1 - p)^gamma * cross-entropy over the voxels that count, p the probability of the true label.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv:1708.02002), Eq. 4, without class weights.

    Args:
        gamma: how strongly voxels that are already right are discounted; 0 is the cross-entropy.
        regions: targets are regions (sigmoid, one channel each) instead of labels (softmax).
        ignore_label: label without loss; with regions, the target's last channel marks it.
    """

    def __init__(self, gamma: float = 2.0, *, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__()
        self.gamma, self.regions, self.ignore_label = gamma, regions, ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce logits `(N, C, *size)` and target `(N, 1 or regions, *size)` to a scalar."""
        logits = logits.float()
        if self.regions:
            counts = torch.ones_like(target[:, :1], dtype=torch.float32)
            if self.ignore_label is not None:
                counts, target = 1 - target[:, -1:].float(), target[:, :-1]
            cross_entropy = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
            counts = counts.expand_as(cross_entropy)
        else:
            labels = target[:, 0].long()
            counts = torch.ones_like(labels, dtype=torch.float32)
            if self.ignore_label is not None:
                counts = (labels != self.ignore_label).float()
                labels = torch.where(counts.bool(), labels, 0)
            cross_entropy = functional.cross_entropy(logits, labels, reduction="none")
        focal = (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy
        # A patch may consist of ignored voxels alone; its loss is 0, not nan.
        return (focal * counts).sum() / counts.sum().clamp(min=1)


class FocalLossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the focal loss, deep supervision weighted as nnU-Net weights it."""

    gamma: ClassVar[float] = 2.0

    def _build_loss(self) -> nn.Module:
        # Not super(): a recipe's own loss may refuse labels that this one takes. Only the weights per scale are used.
        wrapper = nnUNetTrainer._build_loss(self)
        labels = self.label_manager
        focal = FocalLoss(self.gamma, regions=labels.has_regions, ignore_label=labels.ignore_label)
        if isinstance(wrapper, DeepSupervisionWrapper):
            wrapper.loss = focal
            return wrapper
        return focal


class BinaryDiceLoss(nn.Module):
    """Binary cross-entropy of the class probabilities, in the mean over the classes, and soft Dice over all classes.

    Source: Stolt-Ansó et al. 2023, "NISF: Neural Implicit Segmentation Functions" (arXiv:2309.08643), section 2.3, with
    the background among the classes as in the authors' code.

    Args:
        regions: targets are regions (sigmoid, one channel each) instead of labels (softmax).
        ignore_label: label without loss; with regions, the target's last channel marks it.
    """

    def __init__(self, *, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__()
        self.regions, self.ignore_label = regions, ignore_label
        self.dice = MemoryEfficientSoftDiceLoss(batch_dice=False, do_bg=True, smooth=1e-5, ddp=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce logits `(N, C, *size)` and target `(N, 1 or regions, *size)` to a scalar."""
        logits = logits.float()
        counts = torch.ones_like(target[:, :1], dtype=torch.float32)
        if self.regions:
            if self.ignore_label is not None:
                counts, target = 1 - target[:, -1:].float(), target[:, :-1]
            probabilities, truth = torch.sigmoid(logits), target.float()
        else:
            if self.ignore_label is not None:
                counts = (target != self.ignore_label).float()
                target = torch.where(counts.bool(), target, 0)
            probabilities = torch.softmax(logits, dim=1)
            truth = torch.zeros_like(logits).scatter_(1, target.long(), 1)
        # Within the numbers whose logarithms are finite in single precision.
        inside = probabilities.clamp(1e-7, 1 - 1e-7)
        cross_entropy = -(truth * inside.log() + (1 - truth) * (1 - inside).log()).mean(dim=1, keepdim=True)
        return (cross_entropy * counts).sum() / counts.sum().clamp(min=1) + self.dice(probabilities, truth, counts)
