"""The losses by name: their formulas, what they make of labels, regions, ignored voxels and outputs, and resumed runs."""

import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import Sandbox, write_dataset
from nnunetv2.training.loss.compound_losses import DC_and_topk_loss
from nnunetv2.training.loss.robust_ce_loss import TopKLoss as TopKLossOfNnunet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_names import FakeDataset
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from nnunet_plugins.benchmark import recipe
from nnunet_plugins.errors import InputError
from nnunet_plugins.trainers.class_weights import MOST, WeightedCELoss, balance
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.losses import FocalLoss, TopKLoss

IGNORED = 3
ALONE = ["CELoss", "FocalLoss", "WeightedCELoss", "TopKLoss"]
EVERY = ["FocalLoss", "WeightedCELoss", "30percentCELoss", "TopKLoss", "DiceTopKLoss"]


def example(classes: int = 3, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels with a slice of ignored voxels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 4, 5, 6, generator=generator, dtype=dtype)
    target = torch.randint(0, classes, (2, 1, 4, 5, 6), generator=generator)
    target[..., -2:] = IGNORED
    return logits, target


def by_voxel(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the labels that count, their probabilities and the cross-entropy, from the definition of softmax."""
    counts = target[:, 0] != IGNORED
    exponentials = logits.exp()
    probabilities = exponentials / exponentials.sum(dim=1, keepdim=True)
    labels = torch.where(counts, target[:, 0], 0)
    p = probabilities.gather(1, labels[:, None])[:, 0][counts]
    return labels[counts], p, -p.log()


def focal(logits, target, gamma, alpha):
    labels, p, entropy = by_voxel(logits, target)
    return (torch.tensor(alpha, dtype=p.dtype)[labels] * (1 - p) ** gamma * entropy).mean()


def weighted(logits, target, weights):
    labels, _, entropy = by_voxel(logits, target)
    weights = torch.tensor(weights, dtype=entropy.dtype)[labels]
    return (weights * entropy).sum() / weights.sum()


def hardest(logits, target, percent):
    *_, entropy = by_voxel(logits, target)
    return entropy.sort(descending=True).values[: int(target.numel() * percent / 100)].mean()


FORMULAS = {
    "focal": (FocalLoss(2, ignore_label=IGNORED), lambda *a: focal(*a, 2, [1.0, 1.0, 1.0])),
    "focal, one alpha": (FocalLoss(1.5, alpha=0.75, ignore_label=IGNORED), lambda *a: focal(*a, 1.5, [0.25, 0.75, 0.75])),
    "focal, an alpha each": (FocalLoss(3, alpha=[0.1, 2, 0], ignore_label=IGNORED), lambda *a: focal(*a, 3, [0.1, 2, 0])),
    "weighted": (WeightedCELoss([0.5, 1, 9], ignore_label=IGNORED), lambda *a: weighted(*a, [0.5, 1, 9])),
    "top k": (TopKLoss(25, ignore_label=IGNORED), lambda *a: hardest(*a, 25)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_follow_their_formulas(name):
    loss, formula = FORMULAS[name]
    logits, target = example()
    values, gradients = [], []
    for each in (loss, formula):
        given = logits.clone().requires_grad_()
        values.append(each(given, target))
        values[-1].backward()
        gradients.append(given.grad)
    assert_close(*values)
    assert_close(*gradients)
    assert (gradients[0][..., -2:] == 0).all()
    assert loss(logits.half(), target).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda given: loss(given, target), example()[0].requires_grad_())


def test_focal_loss_of_regions_weighs_inside_and_outside():
    logits, _ = example()
    target = (torch.rand(2, 4, 4, 5, 6) < 0.3).long()  # the last channel is ignored
    p = 1 / (1 + (-logits).exp())
    inside, counts = target[:, :3].bool(), (target[:, 3:] == 0).expand(-1, 3, -1, -1, -1)
    alpha, p = torch.where(inside, 0.8, 0.2), torch.where(inside, p, 1 - p)
    expected = (alpha * (1 - p) ** 2 * -p.log())[counts].mean()
    assert_close(FocalLoss(2, alpha=0.8, regions=True, ignore_label=3)(logits, target), expected)


@pytest.mark.parametrize("gamma", [0, 0.3, 1, 5])
def test_focal_loss_has_a_gradient_where_a_voxel_is_surely_right_or_wrong(gamma):
    logits = torch.tensor([[[200.0, 200.0, 0.0]], [[0.0, 0.0, 0.0]]]).permute(1, 0, 2).requires_grad_()
    FocalLoss(gamma)(logits, torch.tensor([[[0, 1, 0]]])).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[..., 0] == 0).all()
    assert (logits.grad[..., 1:] != 0).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_of_ignored_voxels_alone_the_loss_is_0(name):
    loss, _ = FORMULAS[name]
    logits, target = example(dtype=torch.float32)
    logits.requires_grad_()
    value = loss(logits, torch.full_like(target, IGNORED))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


def test_weighted_loss_of_a_class_without_weight_is_0():
    logits, target = example(dtype=torch.float32)
    assert WeightedCELoss([0.0, 1, 1])(logits, torch.zeros_like(target)) == 0


def test_top_k_has_a_voxel_where_there_are_few():
    """Outputs at a coarse scale may have fewer than ten, of which nnU-Net takes a mean of none."""
    logits, target = torch.randn(2, 3, 1, 2, 1), torch.tensor([[0, 1], [2, 0]]).view(2, 1, 1, 2, 1)
    assert_close(TopKLoss()(logits, target), cross_entropy(logits, target[:, 0], reduction="none").max())
    assert TopKLossOfNnunet(k=10)(logits, target).isnan()


# Weights by counting


def test_weights_are_the_median_frequency_over_the_classes_own():
    # Class 2 is in the second case alone, of 200 voxels.
    cases = [[90, 10, 0], [150, 30, 20]]
    frequencies = [240 / 300, 40 / 300, 20 / 200]
    assert balance(cases) == pytest.approx([(40 / 300) / frequency for frequency in frequencies])
    assert balance([[99, 1, 0], [100, 0, 0]]) == pytest.approx([0.505 / 0.995, 0.505 / 0.01, 0])
    assert balance([[10**6, 10**6, 1]])[-1] == MOST
    assert balance([[0, 0]]) == [0, 0]


# Trainers


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return FakeDataset(tmp_path, monkeypatch)


def variant(dataset, modifier, base="nnUNetTrainer", **options):
    """A trainer of one's own, with options."""
    made = dataset.trainer(f"{base}_{modifier}")
    kind = type("nnUNetTrainerMine", (type(made),), options)
    return kind(dataset.plans, "3d_fullres", 0, dataset.dataset, torch.device("cpu"))


GIVEN = {"WeightedCELoss": {"class_weights": (1, 9, 3)}}
"""Of what would be counted otherwise."""


def outputs(scales: int = 3, classes: int = 3, ignored: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    sizes = [(2, 24 >> scale, 24 >> scale, 24 >> scale) for scale in range(scales)]
    labels = [torch.randint(0, classes, (n, 1, *size)) for n, *size in sizes]
    if ignored:
        for label in labels:
            label[..., 0] = classes
    return [torch.randn(n, classes, *size, requires_grad=True) for n, *size in sizes], labels


@pytest.mark.parametrize("loss", EVERY)
def test_outputs_are_weighed_as_in_nnunets_own_loss(dataset, loss):
    trainer = variant(dataset, loss, **GIVEN.get(loss, {}))
    logits, target = outputs()
    for trainer.is_ddp in (False, True):
        built, own = trainer._build_loss(), nnUNetTrainer._build_loss(trainer)
        assert built.weight_factors == own.weight_factors
        # Parameters without a gradient would stop several processes.
        assert (built.weight_factors[-1] > 0) is trainer.is_ddp
        if not trainer.is_ddp:
            parts = [weight * built.loss(*one) for weight, *one in zip(built.weight_factors, logits, target, strict=True)]
            assert_close(built(logits, target), sum(parts))
    trainer.is_ddp, trainer.enable_deep_supervision = False, False
    assert_close(trainer._build_loss()(logits[0], target[0]), built.loss(logits[0], target[0]))


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_50_percent_is_nnunets_own_loss(tmp_path, monkeypatch, regions, ignored):
    labels = {"background": 0, "whole": [1, 2] if regions else 1, "core": 2, **({"ignore": IGNORED} if ignored else {})}
    dataset = FakeDataset(tmp_path, monkeypatch, labels, regions_class_order=[1, 2])
    trainer = dataset.trainer("nnUNetTrainer_50percentCELoss")
    logits, target = outputs(classes=2 if regions else 3, ignored=ignored and not regions)
    if regions:
        target = [(torch.rand(2, 2 + ignored, *one.shape[2:]) < 0.3).float() for one in target]
    losses = [trainer._build_loss(), nnUNetTrainer._build_loss(trainer)]
    values = [loss(logits, target) for loss in losses]
    gradients = [torch.autograd.grad(value, logits[:2]) for value in values]
    assert_close(*values, rtol=0, atol=1e-6)
    assert_close(*gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("percent", [1, 30, 99])
def test_percent_is_the_share_of_the_cross_entropy(dataset, percent):
    loss = dataset.trainer(f"nnUNetTrainer_{percent}percentCELoss")._build_loss().loss
    logits, target = example()
    target = target.where(target != IGNORED, 0)
    entropy = cross_entropy(logits, target[:, 0])
    probabilities, truth = logits.softmax(1), torch.zeros_like(logits).scatter_(1, target, 1)
    both = (probabilities * truth).sum(dim=(2, 3, 4))
    dice = (2 * both + 1e-5) / (probabilities.sum(dim=(2, 3, 4)) + truth.sum(dim=(2, 3, 4)) + 1e-5)
    share = percent / 100
    assert_close(loss(logits, target), 2 * (share * entropy - (1 - share) * dice[:, 1:].mean()), check_dtype=False)


@pytest.mark.parametrize("ignored", [False, True])
def test_top_k_losses_are_nnunets(tmp_path, monkeypatch, ignored):
    labels = {"background": 0, "a": 1, "b": 2, **({"ignore": IGNORED} if ignored else {})}
    dataset = FakeDataset(tmp_path, monkeypatch, labels)
    logits, target = example(dtype=torch.float32)
    target = target if ignored else target.where(target != IGNORED, 1)
    ignore = {"ignore_index": IGNORED} if ignored else {}
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    own = {
        "TopKLoss": TopKLossOfNnunet(k=10, **ignore),
        "DiceTopKLoss": DC_and_topk_loss(dice, {"k": 10}, ignore_label=IGNORED if ignored else None),
    }
    for name, expected in own.items():
        loss = dataset.trainer(f"nnUNetTrainer_{name}")._build_loss().loss
        assert_close(loss(logits, target), expected(logits, target))
        everything = torch.full_like(target, IGNORED)
        assert not ignored or loss(logits, everything).isfinite()
