"""The recipes: FIRENet's three stages, the paper's augmentation and checkpoint, the focal loss."""

import math

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.trainers.afnet import DropLR
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.firenet import FIRENetPaperTrainer, FIRENetTrainer, hold_frozen_gates
from nnunet_plugins.trainers.losses import FocalLoss


def stage_at(epoch: int, epochs: int) -> int:
    trainer = object.__new__(FIRENetTrainer)
    trainer.num_epochs, trainer.current_epoch = epochs, epoch
    return trainer.wrs_stage


@pytest.mark.parametrize(
    ("epochs", "second", "third"), [(1000, 20, 40), (2000, 40, 80), (250, 5, 10), (100, 2, 4), (12, 1, 2), (3, 1, 2)]
)
def test_stage_boundaries(epochs, second, third):
    stages = [stage_at(epoch, epochs) for epoch in range(epochs)]
    assert stages == [1] * second + [2] * (third - second) + [3] * (epochs - third)


def gates(network: FIRENet) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters() if ".wrs." in name}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Which parts' gates have changed."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


EXPECTED = {1: set(), 2: {"bottleneck"}, 3: {"bottleneck", "decoder"}}


def take_steps(network: torch.nn.Module, bare: FIRENet, optimizer: torch.optim.Optimizer, stage: list[int]) -> None:
    """One step in every stage, checked: the right gates move, and all other weights do."""
    for stage[0] in (1, 2, 3):
        before, kernel = gates(bare), bare.decoder.seg_layers[0].weight.detach().clone()
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(2, 1, 20, 20)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        assert moved(before, gates(bare)) == EXPECTED[stage[0]]
        assert not torch.equal(kernel, bare.decoder.seg_layers[0].weight)


def small_firenet() -> FIRENet:
    torch.manual_seed(0)
    return FIRENet(1, 2, strides=((2, 2),) * 3, kernel_sizes=((3, 3),) * 4, features=(2, 4), depth=2, dropout=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5),
        lambda p: torch.optim.AdamW(p, 1e-3, amsgrad=True),
    ],
)
def test_frozen_gates_stand_still_under_momentum_and_weight_decay(make):
    network, stage = small_firenet(), [1]
    optimizer = make(network.parameters())
    hold_frozen_gates(optimizer, network, lambda: stage[0])
    take_steps(network, network, optimizer, stage)
    # Back in stage 1, as after loading an older checkpoint: the momentum they have must not move them either.
    before, stage[0] = gates(network), 1
    network(torch.randn(2, 1, 20, 20)).mean().backward()
    optimizer.step()
    assert moved(before, gates(network)) == set()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_gates_do_not_count_in_the_norm_of_the_gradient(stage):
    """nnU-Net clips it before the optimizer's step, where frozen gates lose their gradient."""
    network = small_firenet()
    hold_frozen_gates(torch.optim.SGD(network.parameters(), 0.01), network, lambda: stage)
    network(torch.randn(2, 1, 20, 20)).square().mean().backward()
    frozen = {id(weight) for weight in network.frozen_gates(stage)}
    free = [weight.grad for weight in network.parameters() if id(weight) not in frozen]
    assert all(gradient.abs().sum() > 0 for gradient in free)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), math.inf)
    torch.testing.assert_close(norm, torch.cat([gradient.flatten() for gradient in free]).norm())


def bare(wrapped, is_ddp=False) -> torch.nn.Module:
    """What the trainer takes for the network inside the wrappers of DDP and torch.compile."""
    trainer = object.__new__(BackboneTrainer)
    trainer.network, trainer.is_ddp = wrapped, is_ddp
    return trainer.bare_network()


def test_freezing_neither_recompiles_nor_breaks_the_graph():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network, stage = small_firenet(), [1]
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99)
    hold_frozen_gates(optimizer, bare(compiled), lambda: stage[0])
    take_steps(compiled, network, optimizer, stage)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def paper_transforms(**changes):
    settings = {
        "patch_size": (16, 16, 16),
        "rotation_for_DA": (-0.5, 0.5),
        "deep_supervision_scales": None,
        "mirror_axes": None,
        "do_dummy_2d_data_aug": False,
    }
    return FIRENetPaperTrainer.get_training_transforms(**{**settings, **changes})


def test_paper_augmentation_is_spatial_only():
    names = [type(transform).__name__ for transform in paper_transforms().transforms]
    assert names == ["SpatialTransform", "RemoveLabelTransform"] or names == ["SpatialTransform", "RemoveLabelTansform"]
    cascade = paper_transforms(is_cascaded=True, foreground_labels=[1, 2])
    assert "MoveSegAsOneHotToDataTransform" in [type(transform).__name__ for transform in cascade.transforms]


def test_paper_augmentation_deforms_image_and_labels_together():
    torch.manual_seed(0)
    transforms = paper_transforms()
    (spatial,) = [transform for transform in transforms.transforms if isinstance(transform, SpatialTransform)]
    assert spatial.p_elastic_deform > 0
    spatial.p_elastic_deform, spatial.p_rotation, spatial.p_scaling = 1, 0, 0
    image = torch.zeros(1, 16, 16, 16)
    image[:, 4:12, 4:12, 4:12] = 1
    out = transforms(image=image.clone(), segmentation=image.to(torch.int16))
    assert not torch.equal(out["image"], image)
    assert_close(out["image"] > 0.5, out["segmentation"] > 0)


class Logger:
    def __init__(self, dice):
        self.dice = dice

    def get_value(self, key, step):
        assert (key, step) == ("dice_per_class_or_region", None)
        return self.dice


@pytest.mark.parametrize(
    ("target", "history", "best"),
    [
        (None, [[0.1, 0.3]], True),
        (None, [[math.nan, math.nan]], True),
        (None, [[math.nan, math.nan], [math.nan, math.nan]], False),
        (None, [[0.1, 0.3], [0.3, 0.2]], True),
        (None, [[0.1, 0.3], [0.2, 0.1]], False),
        (2, [[0.1, 0.3], [0.9, 0.2]], False),
        (1, [[0.1, 0.3], [0.2, 0.0]], True),
        (1, [[math.nan, 0.3], [0.2, 0.0]], True),
        (1, [[0.2, 0.3], [math.nan, 0.9]], False),
    ],
)
def test_paper_keeps_the_checkpoint_with_the_best_raw_dice(monkeypatch, target, history, best):
    """What reaches nnU-Net's own comparison `ema > _best_ema` decides whether it saves."""
    trainer = object.__new__(FIRENetPaperTrainer)
    trainer.target_class, trainer.logger = target, Logger(history)
    trainer.num_epochs, trainer.current_epoch = 1000, len(history) - 1
    monkeypatch.setattr(FIRENetTrainer, "on_epoch_end", lambda self: None)
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *_: None, raising=False)
    trainer.on_epoch_end()
    assert (trainer._best_ema is None) is best
    assert best or trainer._best_ema == math.inf


class TestFocalLoss:
    def test_gamma_zero_is_the_cross_entropy(self):
        logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
        assert_close(FocalLoss(0)(logits, labels), RobustCrossEntropyLoss()(logits, labels))
        regions = torch.randint(0, 2, (2, 3, 4, 5))
        mean = binary_cross_entropy_with_logits(logits, regions.float())
        assert_close(FocalLoss(0, regions=True)(logits, regions), mean)

    def test_discounts_what_is_already_right(self):
        logits, labels = torch.tensor([[[2.0]], [[0.0]]]).view(1, 2, 1), torch.zeros(1, 1, 1)
        p = torch.sigmoid(torch.tensor(2.0))
        assert_close(FocalLoss(2)(logits, labels), -((1 - p) ** 2) * p.log())

    @pytest.mark.parametrize("regions", [False, True])
    def test_ignored_voxels_do_not_count(self, regions):
        loss = FocalLoss(regions=regions, ignore_label=2)
        logits = torch.randn(1, 2, 6, requires_grad=True)
        if regions:
            target = torch.tensor([[[1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]])
        else:
            target = torch.tensor([[[0, 1, 0, 2, 2, 2]]])
        loss(logits, target).backward()
        assert (logits.grad[..., :3] != 0).all()
        assert (logits.grad[..., 3:] == 0).all()
        everything = torch.ones_like(target) if regions else torch.full_like(target, 2)
        assert loss(logits, everything) == 0


@pytest.mark.parametrize("name", ["nnUNetTrainerAFN1Paper", "nnUNetTrainerAFN1Paper_Adam"])
def test_autofocus_paper_starts_at_its_learning_rate(name, monkeypatch):
    trainer = object.__new__(trainer_class(name))
    monkeypatch.setattr(BackboneTrainer, "initialize", lambda self: None)
    trainer.initialize()
    trainer.network, trainer.num_epochs, trainer.weight_decay = torch.nn.Linear(2, 2), 30, 0.0
    optimizer, schedule = trainer.configure_optimizers()
    schedule.step(0)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_autofocus_paper_drops_the_learning_rate_at_two_thirds():
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters(), 1.0)
    schedule = DropLR(optimizer, 1e-3, 30)
    rates = []
    for epoch in (0, 19, 20, 29, 3):  # the last as after a resume: nothing but the epoch counts
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == rates[-1:]
    assert rates == [1e-3, 1e-3, pytest.approx(1e-4), pytest.approx(1e-4), 1e-3]
