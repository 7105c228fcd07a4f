"""Losses by name: the focal loss, top-k, weighted sums of cross-entropy and Dice, and NISF's.

What nnU-Net has is taken from its own loss, with its weights of the outputs, labels or regions, and ignore label.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn import functional

from nnunet_plugins.errors import InputError

NO_LABEL = -100
"""torch's own: what it ignores where nothing is."""


def own_loss(trainer: nnUNetTrainer) -> tuple[nn.Module, Any]:
    """Return nnU-Net's own loss for a trainer, and the part of it that each output gets: itself but for the weights.

    It is not that of the trainer's bases: a recipe's own loss may refuse labels that another one takes.
    """
    loss = nnUNetTrainer._build_loss(trainer)
    return loss, loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss


def for_all_outputs(trainer: nnUNetTrainer, loss: nn.Module) -> nn.Module:
    """Return a loss of one output for a trainer that may have several, weighed as nnU-Net weighs its own."""
    loss = loss.to(trainer.device)
    whole, part = own_loss(trainer)
    if whole is part:
        return loss
    whole.loss = loss
    return whole


def read_option(trainer: nnUNetTrainer, name: str, fits: Callable[[Any], bool], words: str) -> Any:
    """Return a number that a trainer has as an attribute.

    Args:
        trainer: with the attribute.
        name: the attribute's.
        fits: whether a number may be it.
        words: what it has to be.

    Raises:
        InputError: if it is something else.
    """
    value = getattr(trainer, name)
    if not (isinstance(value, Real) and not isinstance(value, bool) and fits(value)):
        raise InputError(f"nnunet_plugins: {type(trainer).__name__}: {name} is {value!r}, and has to be {words}")
    return value


def read_weights(trainer: nnUNetTrainer, name: str) -> list[float]:
    """Return the weights of the classes, background first, that a trainer has as an attribute.

    Raises:
        InputError: if it has something else.
    """
    value, labels = getattr(trainer, name), trainer.label_manager.all_labels
    numbers = isinstance(value, (list, tuple)) and all(isinstance(n, Real) and not isinstance(n, bool) for n in value)
    if not (numbers and len(value) == len(labels) and all(0 <= n < math.inf for n in value) and any(value)):
        raise InputError(
            f"nnunet_plugins: {type(trainer).__name__}: {name} is {value!r}, and has to be {len(labels)} numbers from "
            "0 on, one for each class, background first, and not all of them 0"
        )
    return [float(number) for number in value]


def as_labels(logits: torch.Tensor, target: torch.Tensor, ignored: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits in single precision at least, and labels `(N, *size)`, with torch's own number for no label.

    Args:
        logits: `(N, C, *size)`.
        target: `(N, 1, *size)` or `(N, *size)`.
        ignored: label without loss.
    """
    labels = (target[:, 0] if target.dim() == logits.dim() else target).long()
    if ignored is not None:
        labels = labels.masked_fill(labels == ignored, NO_LABEL)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), labels


class FocalLoss(nn.Module):
    """Mean of alpha (1 - p)^gamma * cross-entropy over the voxels that count, p the probability of the true label.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv:1708.02002), Eq. 4 and 5.

    Args:
        gamma: how strongly voxels that are already right are discounted; 0 is the cross-entropy.
        alpha: weight of the foreground, or of the inside of regions, in [0, 1]; the rest has 1 - alpha. Or the weights
            of all labels, background first. None: 1 for all.
        regions: targets are regions (sigmoid, one channel each) instead of labels (softmax).
        ignore_label: label without loss; with regions, the target's last channel marks it.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        alpha: float | Sequence[float] | None = None,
        regions: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.gamma, self.alpha, self.regions, self.ignore_label = gamma, alpha, regions, ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce logits `(N, C, *size)` and target `(N, 1 or regions, *size)` to a scalar."""
        if self.regions:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            counts = torch.ones_like(target[:, :1], dtype=logits.dtype)
            if self.ignore_label is not None:
                counts, target = 1 - target[:, -1:].to(logits.dtype), target[:, :-1]
            truth = target.to(logits.dtype)
            cross_entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            counts = counts.expand_as(cross_entropy)
        else:
            logits, truth = as_labels(logits, target, self.ignore_label)
            counts = (truth != NO_LABEL).to(logits.dtype)
            cross_entropy = functional.cross_entropy(logits, truth, ignore_index=NO_LABEL, reduction="none")
        # Where the probability is 1, a power below 1 has no slope.
        wrong = (-torch.expm1(-cross_entropy)).clamp(min=torch.finfo(logits.dtype).tiny)
        focal = self._alpha_of(truth, logits) * wrong**self.gamma * cross_entropy
        # A patch may consist of ignored voxels alone; its loss is 0, not nan.
        return (focal * counts).sum() / counts.sum().clamp(min=1)

    def _alpha_of(self, truth: torch.Tensor, logits: torch.Tensor) -> torch.Tensor | float:
        """Return the weight of each voxel, by its label or by whether it is inside a region."""
        if self.alpha is None:
            return 1.0
        if isinstance(self.alpha, Sequence):
            return logits.new_tensor(self.alpha)[truth.clamp(min=0)]
        return torch.where(truth > 0, self.alpha, 1 - self.alpha).to(logits.dtype)


class FocalLossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the focal loss."""

    gamma: ClassVar[float] = 2.0

    alpha: ClassVar[float | Sequence[float] | None] = None
    """Weight of the foreground, or of each class, background first (see `FocalLoss`)."""

    def _build_loss(self) -> nn.Module:
        labels = self.label_manager
        gamma = read_option(self, "gamma", lambda number: 0 <= number < math.inf, "a number from 0 on")
        alpha: float | Sequence[float] | None = self.alpha
        if isinstance(alpha, (list, tuple)) and not labels.has_regions:
            alpha = read_weights(self, "alpha")
        elif alpha is not None:
            each = "" if labels.has_regions else ", or one weight for each class"
            alpha = read_option(self, "alpha", lambda number: 0 <= number <= 1, f"a number from 0 to 1{each}")
        loss = FocalLoss(gamma, alpha=alpha, regions=labels.has_regions, ignore_label=labels.ignore_label)
        return for_all_outputs(self, loss)


class CELoss(nn.Module):
    """Mean cross-entropy of the voxels that count.

    Args:
        ignore_label: label without loss.
    """

    def __init__(self, *, ignore_label: int | None = None) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce logits `(N, C, *size)` and target `(N, 1, *size)` to a scalar."""
        logits, labels = as_labels(logits, target, self.ignore_label)
        losses = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
        # Of a coarse output no voxel may be annotated; its loss is 0, not nan.
        return losses / (labels != NO_LABEL).sum().clamp(min=1)


class CELossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the cross-entropy alone.

    nnU-Net's own variant is not taken: its loss is nan where nothing of an output is annotated, and it leaves the
    coarsest output without a gradient also where several processes train, which PyTorch does not allow.
    """

    def _build_loss(self) -> nn.Module:
        return for_all_outputs(self, CELoss(ignore_label=self.label_manager.ignore_label))


class TopKLoss(nn.Module):
    """Mean cross-entropy of the k % of the voxels where it is largest. Ignored voxels have none, and count among all.

    As nnU-Net's, but that there is always one such voxel: outputs at a coarse scale may have fewer than ten.

    Args:
        k: in per cent.
        ignore_label: label without loss.
    """

    def __init__(self, k: float = 10.0, *, ignore_label: int | None = None) -> None:
        super().__init__()
        self.k, self.ignore_label = k, ignore_label

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce logits `(N, C, *size)` and target `(N, 1, *size)` or `(N, *size)` to a scalar."""
        logits, labels = as_labels(logits, target, self.ignore_label)
        losses = functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="none").flatten()
        return losses.topk(max(1, int(len(losses) * self.k / 100)), sorted=False).values.mean()


class TopKLossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the cross-entropy of the voxels where it is largest."""

    k: ClassVar[float] = 10.0
    """How many of the voxels, in per cent."""

    def _build_loss(self) -> nn.Module:
        return for_all_outputs(self, self._top_k())

    def _top_k(self) -> TopKLoss:
        k = read_option(self, "k", lambda number: 0 < number <= 100, "a number over 0 and up to 100, in per cent")
        return TopKLoss(k, ignore_label=self.label_manager.ignore_label)


class DiceTopKLossTrainer(TopKLossTrainer):
    """nnU-Net's trainer and loss, of whose cross-entropy only the voxels count where it is largest."""

    def _build_loss(self) -> nn.Module:
        loss, part = own_loss(self)
        part.ce = self._top_k()
        return loss


class PercentCELossTrainer(nnUNetTrainer):
    """nnU-Net's trainer and loss with other weights: 2 (lambda cross-entropy + (1 - lambda) Dice)."""

    cross_entropy_percent: int
    """100 lambda; at 50 it is nnU-Net's own loss."""

    def _build_loss(self) -> nn.Module:
        loss, part = own_loss(self)
        if self.cross_entropy_percent != 50:  # descriptions then tell of no other numbers
            part.weight_ce = self.cross_entropy_percent / 50
            part.weight_dice = 2 - part.weight_ce
        return loss


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
