"""Training on what a case's source annotates: the loss against its definition, and nnU-Net's own trainer with it."""

import functools
import json

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_plugins.backbones import find
from nnunet_plugins.errors import InputError
from nnunet_plugins.testing import training
from nnunet_plugins.testing.plans import PLANS, narrow_trainer
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.losses import FocalLoss
from nnunet_plugins.trainers.partial import equal_shares, marginalise

CHANNELS, SIZE, IGNORED = 4, (3, 4, 5), 4
# Of two images: nothing hidden, something in one of them, in both, and all in one.
HIDDEN = [
    [[False] * 4, [False, True, False, False]],
    [[False, True, False, True], [False, False, True, False]],
    [[False, True, True, True], [False, False, False, False]],
]


def draw(hidden, *, ignored=False, seed=0):
    """Logits in double precision, and labels among those that are annotated."""
    random = np.random.default_rng(seed)
    logits = torch.tensor(random.normal(0, 3, (2, CHANNELS, *SIZE)), requires_grad=True)
    target = np.stack([random.choice([n for n in range(CHANNELS) if not row[n]], (1, *SIZE)) for row in hidden])
    if ignored:
        target[random.random(target.shape) < 0.3] = IGNORED
    return logits, torch.tensor(target)


def known_probabilities(logits, hidden):
    """By definition: what is hidden counts as background, voxel by voxel."""
    probabilities = torch.softmax(logits, dim=1)
    images = []
    for image, row in zip(probabilities, hidden, strict=True):
        background = sum(image[n] for n in range(CHANNELS) if n == 0 or row[n])
        images.append(torch.stack([background, *(image[n] * (not row[n]) for n in range(1, CHANNELS))]))
    return torch.stack(images)


def cross_entropy(probabilities, target, ignored):
    parts = [
        -probabilities[(n, int(target[(n, 0, *place)]), *place)].log()
        for n in range(2)
        for place in np.ndindex(SIZE)
        if not (ignored and target[(n, 0, *place)] == IGNORED)
    ]
    return sum(parts) / len(parts)


def dice(probabilities, target, ignored, batch_dice, smooth=1e-5):
    counts = (target[:, 0] != IGNORED).double() if ignored else torch.ones(2, *SIZE).double()
    scores = []
    for label in range(1, CHANNELS):
        truth, predicted = (target[:, 0] == label) * counts, probabilities[:, label] * counts
        sums = [part.flatten(1).sum(1) for part in (truth * predicted, truth, predicted)]
        both, one, other = (part.sum(0, keepdim=True) if batch_dice else part for part in sums)
        scores.append((2 * both + smooth) / (one + other + smooth))
    return -torch.stack(scores).mean()


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_the_loss_is_that_of_background_or_what_nobody_looked_for(hidden, ignored):
    logits, target = draw(hidden, ignored=ignored)
    expected = cross_entropy(known_probabilities(logits, hidden), target, ignored)
    (gradient,) = torch.autograd.grad(expected, logits)
    ce = RobustCrossEntropyLoss(ignore_index=IGNORED if ignored else -100)
    found = ce(marginalise(logits, torch.tensor(hidden), regions=False), target)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient, rtol=1e-10, atol=1e-14)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_nnunets_loss_with_dice_is_so_too(hidden, ignored, batch_dice):
    """nnU-Net sums in single precision."""
    logits, target = draw(hidden, ignored=ignored)
    known = known_probabilities(logits, hidden)
    expected = cross_entropy(known, target, ignored) + dice(known, target, ignored, batch_dice)
    (gradient,) = torch.autograd.grad(expected, logits)
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(
        options, {}, ignore_label=IGNORED if ignored else None, dice_class=MemoryEfficientSoftDiceLoss
    )
    found = loss(marginalise(logits, torch.tensor(hidden), regions=False), target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient, rtol=1e-4, atol=1e-8)


def test_the_gradient_against_differences():
    hidden = torch.tensor(HIDDEN[1])
    logits, target = draw(HIDDEN[1])
    loss = FocalLoss()  # in single precision; the arithmetic before it is checked on its own
    assert torch.autograd.gradcheck(lambda x: marginalise(x, hidden, regions=False)[:, :1], [logits])
    assert loss(marginalise(logits, hidden, regions=False), target).isfinite()


@pytest.mark.parametrize("regions", [False, True])
def test_where_all_is_annotated_nothing_changes(regions):
    logits, _ = draw(HIDDEN[0])
    for kind in (torch.float16, torch.float32, torch.float64):
        drawn = logits.to(kind)
        assert marginalise(drawn, torch.zeros(2, CHANNELS, dtype=torch.bool), regions=regions) is drawn
    single = logits.float()
    one = marginalise(single, torch.tensor(HIDDEN[0]), regions=regions)
    assert torch.equal(one[0], single[0]), "beside an image of which something is hidden"
    assert not torch.equal(one[1], single[1])


def test_half_precision_is_left_for_the_sum():
    logits = torch.tensor([[60000.0, 60000.0, -60000.0], [-9.0, -9.0, 9.0]]).half()[:, :, None, None].requires_grad_()
    hidden = torch.tensor([[False, True, False]] * 2)
    found = marginalise(logits, hidden, regions=False)
    assert found.dtype == torch.float32
    assert found[1, 0].item() == pytest.approx(-9 + np.log(2), rel=1e-6)
    nn.functional.cross_entropy(found, torch.zeros(2, 1, 1, dtype=torch.long)).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[1, 0] == logits.grad[1, 1]).all()


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_regions_are_constants_of_the_loss(hidden, ignored):
    logits, _ = draw(hidden)
    random = np.random.default_rng(1)
    target = torch.tensor(random.random((2, CHANNELS, *SIZE)) < 0.4)
    mask = torch.tensor(hidden)[:, :, None, None, None]
    counts = torch.tensor(random.random((2, 1, *SIZE)) < 0.7) if ignored else torch.ones(2, 1, *SIZE).bool()
    parts, scores = [], []
    for n, row in enumerate(hidden):
        for channel, is_hidden in enumerate(row):
            predicted, truth, here = torch.sigmoid(logits[n, channel]), target[n, channel].double(), counts[n, 0]
            if is_hidden:
                scores.append(torch.ones(()))
                continue
            entropy = -(truth * predicted.log() + (1 - truth) * (1 - predicted).log())
            parts.append(entropy[here].sum())
            both = (predicted * truth)[here].sum()
            scores.append((2 * both + 1e-5) / (predicted[here].sum() + truth[here].sum() + 1e-5))
    # nnU-Net's loss with an ignore label is a sum over the regions, otherwise it is a mean.
    number = counts.sum() if ignored else counts.sum() * CHANNELS
    expected = sum(parts) / number - torch.stack(scores).mean()
    (gradient,) = torch.autograd.grad(expected, logits)
    options = {"batch_dice": False, "do_bg": True, "smooth": 1e-5, "ddp": False}
    loss = DC_and_BCE_loss({}, options, use_ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss)
    known = target & ~mask
    known = torch.cat([known, ~counts], dim=1) if ignored else known
    found = loss(marginalise(logits, torch.tensor(hidden), regions=True), known)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], gradient, rtol=1e-4, atol=1e-8)
    assert not gradient[mask.expand_as(gradient)].any()


# Sampling


def test_sources_are_drawn_equally_often():
    cases = [f"a__{n}" for n in range(2)] + [f"b__{n}" for n in range(6)] + ["c__0"]
    drawn = equal_shares(cases, [case[0] for case in cases])
    times = {**dict.fromkeys(cases, 1), "a__0": 3, "a__1": 3, "c__0": 6}
    assert {case: drawn.count(case) for case in cases} == times
    # FIRENet's four datasets: their least common multiple has 41 millions.
    numbers = {"knee": 62, "shoulder": 25, "hip": 53, "oai": 507}
    cases = [f"{name}__{n}" for name, number in numbers.items() for n in range(number)]
    drawn = equal_shares(cases, [case.split("__")[0] for case in cases])
    assert len(drawn) == 4 * 50700
    for name, number in numbers.items():
        times = [drawn.count(f"{name}__{n}") for n in range(0, number, 11)]
        assert max(times) - min(times) <= 1
        assert min(times) >= 100
        assert sum(case.startswith(name) for case in drawn) == 50700


# nnU-Net's trainer

PLAN = "2d isotropic"
SOURCES = {
    "one": {"dataset": "Dataset002_One", "labels": {"label 1": 1}, "cases": ["0", "1", "2"]},
    "two": {"dataset": "Dataset003_Two", "labels": {"label 1": 1, "label 2": 2}, "cases": ["0"]},
}
CASES = [f"{name}__{case}" for name, source in SOURCES.items() for case in source["cases"]]


def write_cases(root, largest):
    """Cases as nnU-Net's preprocessing leaves them, whose labels go up to `largest` of their source."""
    folder = root / training.DATASET / training.CONFIGURATION
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for case in CASES:
        labels = random.integers(0, largest[case.split("__")[0]] + 1, (1, 1, 36, 36)).astype(np.int16)
        pixels = (labels + random.normal(0, 0.3, (2, 1, 36, 36))).astype(np.float32)
        places = {label: np.argwhere(labels == label) for label in (1, 2)}
        properties = {"class_locations": places, "spacing": [1.0] * 3}
        chunks = (pixels.shape, pixels.shape, labels.shape, labels.shape)
        nnUNetDatasetBlosc2.save_case(pixels, labels, properties, str(folder / case), *chunks)
    (folder.parent / "dataset_fingerprint.json").write_text("{}")
    (folder.parent / "splits_final.json").write_text(json.dumps([{"train": CASES, "val": CASES[2:]}]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_cases(tmp_path, {"one": 1, "two": 2})
    return tmp_path


def make(name="nnUNetTrainer_PartialLabels_1epochs_2iterations", sources=SOURCES, **dataset):
    plans, description = training.plans_and_dataset(PLAN)
    description |= dataset | ({"nnunet_plugins_sources": sources} if sources else {})
    row = find(name.split("_")[0])
    kind = narrow_trainer(row, name) if row else trainer_class(name)
    arguments = ({**plans, "continue_training": False}, training.CONFIGURATION, 0, description, torch.device("cpu"))
    return kind(*arguments)


def batch_of(keys, channels=1, largest=2):
    random = torch.Generator().manual_seed(0)
    sizes = [PLANS[PLAN][0], tuple(n // 2 for n in PLANS[PLAN][0])]
    targets = [torch.randint(0, largest, (2, channels, *size), generator=random) for size in sizes]
    return {"data": torch.randn(2, 2, *sizes[0], generator=random), "target": targets, "keys": np.array(keys)}


@pytest.fixture
def wrapped_in_ddp(tmp_path, monkeypatch):
    """The stock trainer's network in DDP, with one process, as nnU-Net wraps it before it builds the loss."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    kind = trainer_class("nnUNetTrainer_PartialLabels")
    build = kind._build_loss

    def wrap(self):
        self.network = DistributedDataParallel(self.network)
        return build(self)

    with monkeypatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)  # the trainer would look for a GPU
        patch.setattr(kind, "_build_loss", wrap)
        yield
    dist.destroy_process_group()


@pytest.fixture
def compiled(monkeypatch):
    """The stock trainer's network through torch.compile, without its compiler."""
    monkeypatch.setattr(trainer_class("nnUNetTrainer_PartialLabels"), "_do_i_compile", lambda self: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.parametrize("backbone", ["", "FIRENet", "AFN4", "UNetPlusPlus"])
def test_a_step_is_nnunets_on_marginalised_logits(folder, backbone):
    """With deep supervision and without."""
    take_steps(make(f"nnUNetTrainer{backbone}_PartialLabels"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of nnU-Net's compiled Dice
@pytest.mark.parametrize("way", ["compiled", "wrapped_in_ddp"])
def test_a_step_is_so_outside_of_wrappers(folder, way, request):
    request.getfixturevalue(way)
    trainer = make("nnUNetTrainer_PartialLabels")
    take_steps(trainer)
    assert isinstance(trainer.network, (OptimizedModule, DistributedDataParallel))


def take_steps(trainer):
    trainer.initialize()
    trainer.network.eval()  # no dropout
    batch = batch_of(["one__1", "two__0"])
    if not trainer.enable_deep_supervision:
        batch["target"] = batch["target"][0]
    elif "UNetPlusPlus" in type(trainer).__name__:
        batch["target"] = [batch["target"][0]] * 4
    hidden = torch.tensor([[False, False, True], [False] * 3])
    with torch.no_grad():
        raw = trainer.network(batch["data"])
        known = [marginalise(one, hidden, regions=False) for one in raw] if isinstance(raw, list) else None
        expected = trainer.loss(known or marginalise(raw, hidden, regions=False), batch["target"]).numpy()
        assert trainer.loss(raw, batch["target"]).numpy() != expected
    found = trainer.validation_step({**batch})
    assert found["loss"] == expected
    first = known[0] if known else marginalise(raw, hidden, regions=False)
    truth = batch["target"][0] if known else batch["target"]
    predicted = first.argmax(1, keepdim=True)
    assert not (predicted[0] == 2).any()
    for label in (1, 2):
        assert found["fp_hard"][label - 1] == ((predicted == label) & (truth != label)).sum()
    assert trainer.train_step({**batch})["loss"] == pytest.approx(expected.item(), rel=1e-6)
    with torch.no_grad():
        again = trainer.network(batch["data"])
    assert ((again[0] if known else again) > -1e3).all(), "a prediction sees the network's own logits"


def test_where_all_is_annotated_a_step_is_nnunets(folder):
    losses = []
    for name in ("nnUNetTrainer_PartialLabels", "nnUNetTrainer_5epochs"):
        torch.manual_seed(0)
        trainer = make(name)
        trainer.initialize()
        steps = [trainer.train_step(batch_of(["two__0", "two__0"], largest=3)) for _ in range(2)]
        losses.append([float(step["loss"]) for step in steps])
    assert losses[0] == losses[1]


def test_regions_with_an_ignore_label(folder):
    """A part that a source annotates is no sign of the whole, which it does not."""
    labels = {"background": 0, "whole": [1, 2], "part": 2, "ignore": 3}
    sources = {"one": {**SOURCES["one"], "labels": {"part": 1}}, "two": {**SOURCES["two"], "labels": {"whole": [1, 2]}}}
    trainer = make("nnUNetTrainer_PartialLabels", sources, labels=labels, regions_class_order=[1, 2])
    trainer.initialize()
    batch = batch_of(["one__1", "two__0"], channels=3)
    before = [target.clone() for target in batch["target"]]
    with torch.no_grad():
        trainer.network.eval()
        raw = trainer.network(batch["data"])
    hidden = torch.tensor([[True, False], [False, True]])
    known = [marginalise(one, hidden, regions=True) for one in raw]
    targets = [target.clone() for target in batch["target"]]
    for target in targets:
        target[0, 0] = target[1, 1] = 0
    expected = trainer.loss(known, targets)
    found = trainer.validation_step({**batch})
    assert found["loss"] == expected.numpy()
    assert all(map(torch.equal, before, batch["target"])), "the batch is the loader's"
    for channel, image in ((0, 1), (1, 0)):
        counts = 1 - targets[0][image, -1]
        one = (known[0][image, channel] > 0).long()
        assert found["tp_hard"][channel] == (one * targets[0][image, channel] * counts).sum()
        assert found["fp_hard"][channel] == (one * (1 - targets[0][image, channel]) * counts).sum()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # nnU-Net's Dice of a label not drawn
@pytest.mark.parametrize("modifier", ["PartialLabels", "PartialLabelsByCases"])
def test_an_epoch_runs_and_draws_as_the_name_says(folder, modifier):
    trainer = make(f"nnUNetTrainer_{modifier}_1epochs_2iterations")
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    drawn, _ = trainer.get_tr_and_val_datasets()
    number = {name: sum(case.startswith(name) for case in drawn.identifiers) for name in SOURCES}
    assert number == ({"one": 3, "two": 3} if modifier == "PartialLabels" else {"one": 3, "two": 1})


def test_sources_count_equally_in_the_validation_too(folder):
    """A mean over the cases as they are would be the large source's, and so would the best checkpoint."""
    (folder / training.DATASET / "splits_final.json").write_text(json.dumps([{"train": CASES, "val": CASES}]))
    trainer = make()
    trainer.initialize()
    _, drawn = trainer.get_tr_and_val_datasets()
    assert {name: sum(case.startswith(name) for case in drawn.identifiers) for name in SOURCES} == {"one": 3, "two": 3}


# What is refused


def test_a_dataset_that_was_not_merged_is_refused(folder):
    message = "nnUNetTrainer_PartialLabels: dataset.json has no 'nnunet_plugins_sources', .* with nnunet-plugins merge"
    with pytest.raises(InputError, match=message):
        make("nnUNetTrainer_PartialLabels", sources=None)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "'nnunet_plugins_sources' has to be an object, not"),
        ({"one": {"dataset": "x", "cases": []}}, "has no 'labels'; make the dataset anew with nnunet-plugins merge"),
        (
            {"one": {**SOURCES["one"], "labels": {"bone": 1}}},
            "'one' in 'nnunet_plugins_sources' annotates 'bone', which is no structure in 'labels'",
        ),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(folder, table, message):
    with pytest.raises(InputError, match=message):
        make("nnUNetTrainer_PartialLabels", sources=None, nnunet_plugins_sources=table)


def test_cases_of_no_source_are_refused(folder):
    trainer = make(sources={"two": SOURCES["two"]})
    trainer.initialize()
    with pytest.raises(InputError, match=r"one__0 is of no source: names of cases begin with two__, as .* says"):
        trainer.get_tr_and_val_datasets()


def test_labels_that_the_source_does_not_annotate_are_refused(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    write_cases(tmp_path, {"one": 2, "two": 2})
    trainer = make()
    trainer.initialize()
    with pytest.raises(InputError, match="one__0 has voxels of label 2, which 'one' does not annotate, as "):
        trainer.get_tr_and_val_datasets()


@pytest.mark.parametrize("backbone", ["MetaSeg", "NISF"])
def test_networks_that_are_fitted_to_images_are_refused(folder, backbone):
    message = "_PartialLabels does not support networks that are fitted to every image, such as nnUNetTrainer"
    with pytest.raises(NotImplementedError, match=f"{message}{backbone}'s; leave it out, or use another backbone"):
        make(f"nnUNetTrainer{backbone}_PartialLabels")
