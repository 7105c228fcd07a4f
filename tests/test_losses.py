"""The losses by name: their formulas, labels, regions, ignored voxels, outputs of several scales, resumed trainings."""

import copy
import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Sandbox
from nnunetv2.training.loss.compound_losses import DC_and_topk_loss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.loss.robust_ce_loss import TopKLoss as TopKLossOfNnunet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_names import FakeDataset
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from nnunet_plugins.benchmark import recipe
from nnunet_plugins.errors import InputError
from nnunet_plugins.trainers.class_weights import MOST, WeightedCELoss, balance
from nnunet_plugins.trainers.losses import CELoss, FocalLoss, TopKLoss

IGNORED = 3
EVERY = ["CELoss", "FocalLoss", "WeightedCELoss", "30percentCELoss", "TopKLoss", "DiceTopKLoss"]


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
    "cross-entropy": (CELoss(ignore_label=IGNORED), lambda *a: weighted(*a, [1.0, 1.0, 1.0])),
    "focal": (FocalLoss(2, ignore_label=IGNORED), lambda *a: focal(*a, 2, [1.0, 1.0, 1.0])),
    "focal, one alpha": (
        FocalLoss(1.5, alpha=0.75, ignore_label=IGNORED),
        lambda *a: focal(*a, 1.5, [0.25, 0.75, 0.75]),
    ),
    "focal, an alpha each": (
        FocalLoss(3, alpha=[0.1, 2, 0], ignore_label=IGNORED),
        lambda *a: focal(*a, 3, [0.1, 2, 0]),
    ),
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


@pytest.mark.parametrize("ignored", [None, IGNORED])
def test_cross_entropy_is_nnunets_own(ignored):
    logits, target = example(dtype=torch.float32)
    target = target.clamp(max=2) if ignored is None else target
    own = RobustCrossEntropyLoss(ignore_index=-100 if ignored is None else ignored)
    assert_close(CELoss(ignore_label=ignored)(logits, target), own(logits, target.float()))


def test_weighted_loss_of_a_class_without_weight_is_0():
    logits, target = example(dtype=torch.float32)
    assert WeightedCELoss([0.0, 1, 1])(logits, torch.zeros_like(target)) == 0


@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
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
    assert balance([[99, 1, 0], [100, 0, 0]]) == pytest.approx([0.5025 / 0.995, 0.5025 / 0.01, 0])
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
    return kind(copy.deepcopy(dataset.plans), "3d_fullres", 0, dataset.dataset, torch.device("cpu"))


GIVEN = {"WeightedCELoss": {"class_weights": (1, 9, 3)}}
"""Of what would be counted otherwise."""


def outputs(scales: int = 2, classes: int = 3, ignored: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
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
        assert (built.weight_factors[-1] > 0) == trainer.is_ddp
        if not trainer.is_ddp:
            parts = [
                weight * built.loss(*one) for weight, *one in zip(built.weight_factors, logits, target, strict=True)
            ]
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
    gradients = [torch.autograd.grad(value, logits[0]) for value in values]
    assert_close(*values, rtol=0, atol=1e-6)
    assert_close(*gradients, rtol=0, atol=1e-6)


def test_descriptions_tell_the_losses_apart(dataset):
    """The benchmark compares trainings by them."""

    def told(trainer):
        return {name: str(value) for name, value in recipe.flatten(trainer._build_loss().loss, "loss").items()}

    own = told(dataset.trainer("nnUNetTrainer_2epochs"))
    assert told(dataset.trainer("nnUNetTrainer_50percentCELoss")) == own
    others = [told(variant(dataset, loss, **GIVEN.get(loss, {}))) for loss in EVERY]
    others += [told(variant(dataset, "FocalLoss", alpha=0.3)), told(variant(dataset, "TopKLoss", k=5))]
    others += [told(variant(dataset, "WeightedCELoss", class_weights=(1, 9, 4)))]
    for number, one in enumerate(others):
        assert one not in [own, *others[:number]]


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


@pytest.mark.filterwarnings("ignore:size_average and reduce args:UserWarning")
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


OPTIONS = [
    ("FocalLoss", {"gamma": -1}, "gamma is -1, and has to be a number from 0 on"),
    ("FocalLoss", {"gamma": "2"}, "gamma is '2', and has to be a number"),
    ("FocalLoss", {"gamma": math.nan}, "gamma is nan"),
    ("FocalLoss", {"alpha": 1.5}, "alpha is 1.5, and has to be a number from 0 to 1, or one weight for each class"),
    ("FocalLoss", {"alpha": True}, "alpha is True"),
    ("FocalLoss", {"alpha": (0.1, 0.9)}, r"alpha is \(0.1, 0.9\), and has to be 3 numbers from 0 on"),
    ("TopKLoss", {"k": 0}, "k is 0, and has to be a number over 0 and up to 100"),
    ("DiceTopKLoss", {"k": 101}, "k is 101"),
    ("TopKLoss", {"k": None}, "k is None"),
    (
        "WeightedCELoss",
        {"class_weights": (1, 9)},
        "class_weights is .*has to be 3 numbers from 0 on, one for each class",
    ),
    ("WeightedCELoss", {"class_weights": 9}, "class_weights is 9"),
    ("WeightedCELoss", {"class_weights": "129"}, "class_weights is '129'"),
    ("WeightedCELoss", {"class_weights": (1, 2, math.inf)}, "class_weights is"),
    ("WeightedCELoss", {"class_weights": (1, -1, 1)}, "class_weights is"),
    ("WeightedCELoss", {"class_weights": (0, 0, 0)}, "not all of them 0"),
]


@pytest.mark.parametrize(("loss", "options", "problem"), OPTIONS)
def test_options_of_the_wrong_kind_are_named(dataset, loss, options, problem):
    with pytest.raises(InputError, match=f"nnunet_plugins: nnUNetTrainerMine: .*{problem}"):
        variant(dataset, loss, **options)._build_loss()


def test_options_of_a_variant_reach_its_loss(dataset):
    logits, target = example(dtype=torch.float32)
    for loss, options, expected in (
        ("FocalLoss", {"gamma": 1, "alpha": 0.25}, FocalLoss(1, alpha=0.25)),
        ("FocalLoss", {"alpha": (1, 2, 3)}, FocalLoss(2, alpha=[1, 2, 3])),
        ("TopKLoss", {"k": 50}, TopKLoss(50)),
        ("WeightedCELoss", {"class_weights": (1, 9, 3)}, WeightedCELoss([1, 9, 3])),
    ):
        built = variant(dataset, loss, base="nnUNetTrainerFIRENet", **options)._build_loss()
        target = target.where(target != IGNORED, 1)
        assert_close(built(logits, target), expected(logits, target))


def test_alpha_of_regions_is_one_number(tmp_path, monkeypatch):
    regions = FakeDataset(
        tmp_path, monkeypatch, {"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2]
    )
    assert variant(regions, "FocalLoss", alpha=0.3)._build_loss().loss.alpha == 0.3
    with pytest.raises(InputError, match=r"has to be a number from 0 to 1$"):
        variant(regions, "FocalLoss", alpha=(0.3, 0.7))._build_loss()


# Weights that are counted


@pytest.fixture
def counted(dataset, tmp_path):
    """Three cases, the last one for validation; what is rare is in that one alone."""
    dataset.dataset["labels"] = {"background": 0, "a": 1, "b": 2, "rare": 3, "ignore": 4}
    dataset.plans["image_reader_writer"] = "SimpleITKIO"
    folder = tmp_path / "Dataset001_X"
    for name in ("gt_segmentations", "x"):
        (folder / name).mkdir(parents=True)
    for number, (case, kind) in enumerate({"one": np.float32, "two": np.uint8, "three": np.uint8}.items()):
        labels = np.zeros((4, 5, 6), dtype=kind)
        labels[0], labels[3, :, 3:] = 4, 1
        labels[2, 0, : 3 * number] = 2  # in the second case alone
        labels[2, 1, : 3 * (number == 2)] = 3
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "gt_segmentations" / f"{case}.nii.gz"))
        for ending in ("b2nd", "pkl"):
            (folder / "x" / f"{case}.{ending}").touch()
    (folder / "dataset.json").write_text(json.dumps(dataset.dataset))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["one", "two"], "val": ["three"]}]))
    return dataset


TRAINER = "nnUNetTrainerFIRENet_WeightedCELoss"
EXPECTED = [(30 / 180) / (147 / 180), 1, (30 / 180) / (3 / 90), 0]


def test_voxels_are_counted_in_the_cases_to_train_on(counted, capsys):
    trainer = counted.trainer(TRAINER)
    loss = trainer._build_loss()
    assert_close(loss.numbers, torch.tensor(EXPECTED))
    output = capsys.readouterr().out
    assert "Class weights of the cross-entropy: background 0.2041, a 1, b 5, rare 0" in output
    assert "WARNING: nnunet_plugins: no training case has a voxel of rare (label 3); its weight is 0" in output
    assert not Path(trainer.output_folder, "class_weights.json").exists(), "an earlier training's may be there"
    assert recipe.flatten(loss, "loss")["loss.class_weights"] == "median frequency balancing, 100 at most"


def test_of_several_processes_one_counts(counted, monkeypatch, tmp_path):
    first, other = counted.trainer(TRAINER), counted.trainer(TRAINER)
    first.is_ddp = other.is_ddp = True
    other.local_rank, sent = 1, []
    monkeypatch.setattr(distributed, "broadcast_object_list", sent.extend)
    first._build_loss()
    shutil.rmtree(tmp_path / "Dataset001_X" / "gt_segmentations")
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda found: found.__setitem__(0, sent[0]))
    assert_close(other._build_loss().numbers, torch.tensor(EXPECTED))


def test_a_segmentation_that_cannot_be_read_or_is_missing_is_named(counted, tmp_path):
    file = tmp_path / "Dataset001_X" / "gt_segmentations" / "two.nii.gz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"the voxels of two could not be counted: .*two\.nii\.gz"):
        counted.trainer(TRAINER)._build_loss()
    file.unlink()
    with pytest.raises(InputError, match="gt_segmentations has no segmentation of two; preprocess the dataset again"):
        counted.trainer(TRAINER)._build_loss()


def test_a_damaged_or_foreign_file_of_weights_is_named(counted, capsys):
    trainer = counted.trainer(TRAINER)
    trainer._loaded = True
    file = Path(trainer.output_folder, "class_weights.json")
    for content, problem in (
        ("{", "is no JSON that can be read"),
        ('{"labels": [0, 1]}', "has no 'voxels'"),
        (
            '{"labels": [0, 1], "voxels": [5, 5], "weights": [1, 1]}',
            r"of the labels \[0, 1\], and the dataset has \[0, 1, 2",
        ),
        ('{"labels": [0, 1, 2, 3], "voxels": [5, 5, 5, 5], "weights": [1, "1", 1, 1]}', "has to be a whole number or"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=f"class_weights.json.*{problem}"):
            trainer._build_loss()
    file.unlink()
    assert_close(trainer._build_loss().numbers, torch.tensor(EXPECTED))
    assert "class_weights.json is missing, and the voxels are counted anew" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_lie_beside_the_checkpoints_and_go_on_with_them(small: Sandbox):
    trainer = "nnUNetTrainer_WeightedCELoss_1epochs_2iterations"
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu")
    small.run(*command)
    fold = small.results / "Dataset001_Small" / f"{trainer}__small__3d_fullres" / "fold_0"
    kept = json.loads((fold / "class_weights.json").read_text())
    assert (len(kept["weights"]), statistics.median(kept["weights"])) == (3, 1)
    (fold / "class_weights.json").write_text(json.dumps({**kept, "weights": [1, 2, 7]}))
    assert "Class weights of the cross-entropy: background 1, outer 2, inner 7" in small.run(*command, "--c")
    small.run(*command)
    assert json.loads((fold / "class_weights.json").read_text()) == kept
    assert json.loads((fold / "earlier_1" / "class_weights.json").read_text())["weights"] == [1, 2, 7]
