"""Networks that are fitted to every image: their arithmetic, their fits under nnU-Net's modes, and that they learn."""

import json
import math
import os

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.models.sources import Choice
from nnunet_plugins.networks.implicit import Truth
from nnunet_plugins.networks.layers.descent import descend
from nnunet_plugins.networks.layers.voxels import Voxels
from nnunet_plugins.networks.metaseg import MetaSeg
from nnunet_plugins.networks.nisf import NISF
from nnunet_plugins.prediction.model import Model
from nnunet_plugins.trainers.checkpoints import UnsafeCheckpointError
from nnunet_plugins.trainers.losses import BinaryDiceLoss, FocalLoss

PATCH = (6, 7, 5)
NETWORKS = {"MetaSeg": MetaSeg, "NISF": NISF}
TINY = {"MetaSeg": {"width": 8, "hidden_layers": 1}, "NISF": {"width": 8, "layers": 2, "frequency": 4.0, "scale": 4.0}}


def tiny(name="MetaSeg", channels=1, classes=3, patch=PATCH, **options):
    torch.manual_seed(0)
    steps = {"fit_steps": 3, "voxels": 40}
    return NETWORKS[name](channels, classes, patch_size=patch, **{**TINY[name], **steps, **options})


def images(number=2, channels=1, patch=PATCH, seed=1):
    """Noise with a frame of padding on one side."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, channels, *patch, generator=generator)
    x[..., :2] = 0
    return x


def labels(patch=PATCH, number=2):
    return torch.randint(0, 3, (number, 1, *patch), generator=torch.Generator().manual_seed(2))


def label_loss():
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_published_numbers_of_parameters():
    patch = (8, 8, 8)
    assert count(MetaSeg(1, 5, patch_size=patch[:2], width=128)) == 83_718
    assert count(MetaSeg(1, 25, patch_size=patch[:2], width=512, hidden_layers=3)) == 1_065_498
    assert count(MetaSeg(1, 5, patch_size=patch)) == 331_526
    nisf = NISF(1, 5, patch_size=patch)
    assert count(nisf) == 265_734
    nisf.set_cases(214)
    assert count(nisf) == 293_126, "the paper's 293K has the codes of its training cases in it"


@pytest.mark.parametrize(("dims", "width", "hidden"), [(2, 128, 4), (2, 512, 3), (3, 256, 4)])
def test_features_are_spread_alike_at_the_start(dims, width, hidden):
    torch.manual_seed(0)
    network = MetaSeg(1, 5, patch_size=(9,) * dims, width=width, hidden_layers=hidden)
    first, *others = [*network.layers, network.reconstruction]
    for layer, bound in [(first, 1 / dims), *((one, math.sqrt(6 / width) / 30) for one in others)]:
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    places = 2 * torch.rand(1, 2000, dims) - 1
    fitted = network.start(1)
    for layers in range(1, hidden + 2):
        some = [*fitted[: 2 * layers], *fitted[-2:]]
        assert 0.65 < network.features(some, places).std() < 0.78
    assert network.head.weight.abs().max() <= 1 / math.sqrt(width), "the head begins as PyTorch's layers do"


def test_places_and_percentiles():
    metaseg, nisf = tiny(), tiny("NISF")
    expected = {metaseg: (torch.linspace(-1, 1, 7), -1.0), nisf: (torch.arange(7) / 7, 0.0)}
    for network, (axis, first) in expected.items():
        places = network.places().unflatten(0, PATCH)
        assert_close(places[2, :, 3, 1], axis)
        assert places[0, 0, 0].tolist() == [first] * 3
        voxels = network.look_at(images())
        draw = voxels.draw(50)
        assert_close(network.places_of(draw), places.flatten(0, 2)[draw.index])
    x = torch.arange(1, 2001.0).reshape(1, 1, 20, 100)
    values = Voxels(x, (0.005, 0.995)).values
    assert (values.min(), values.max()) == (0, 1)
    assert (values == 0).sum() == 11, "the lowest half percent is clipped"


def test_padding_is_never_drawn_and_changes_nothing():
    x = images(1, channels=2)
    voxels = Voxels(x, (0, 1))
    inside = (x[0] != 0).any(dim=0).flatten()
    assert inside[voxels.draw(2000).index[0]].all()
    everything = voxels.draw(None)
    assert sorted(everything.index[0].tolist()) == inside.nonzero()[:, 0].tolist()
    # Of two images the shorter list is filled up by voxels that do not count.
    both = Voxels(torch.cat([x, x.clamp(min=1.5) * (x > 1.5)]), (0, 1)).draw(None)
    assert both.counts.sum(dim=1).tolist() == [inside.sum(), (x > 1.5).any(dim=1).sum()]
    lattice = Voxels(x, (0, 1), every=2).draw(None).index[0]
    places = np.stack(np.unravel_index(lattice.numpy(), PATCH))
    assert (places % 2 == 0).all()
    assert len(lattice) == (x[0, :, ::2, ::2, ::2] != 0).any(dim=0).sum()
    with_more = torch.cat([x, torch.zeros(1, 2, *PATCH[:2], 3)], dim=-1)
    assert_close(
        Voxels(with_more, (0, 1)).values.unflatten(1, (*PATCH[:2], 8))[:, ..., :5, :].flatten(1, 3), voxels.values
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_images_without_contrast_give_finite_logits(name, value):
    network = tiny(name).eval()
    assert torch.isfinite(network(torch.full((1, 1, *PATCH), value))).all()


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_the_steps_are_those_of_torchs_adam(epsilon):
    torch.manual_seed(0)
    target = torch.randn(5, dtype=torch.float64)

    def loss(weights):
        return ((weights[0] * weights[1].sin() - target) ** 2).sum()

    start = [torch.randn(5, dtype=torch.float64) for _ in range(2)]
    found, losses = descend(loss, start, 20, 1e-2, epsilon=epsilon)
    weights = [nn.Parameter(one.clone()) for one in start]
    optimizer = torch.optim.Adam(weights, 1e-2, eps=epsilon)
    for step in range(20):
        optimizer.zero_grad()
        value = loss(weights)
        assert_close(losses[step], value.detach(), rtol=0, atol=1e-14)
        value.backward()
        optimizer.step()
    for one, other in zip(found, weights, strict=True):
        assert_close(one, other.detach(), rtol=0, atol=1e-15)
    leaves = [w.detach().requires_grad_() for w in start]
    through, _ = descend(loss, leaves, 20, 1e-2, epsilon=epsilon, differentiable=True)
    assert_close(through, found, rtol=0, atol=1e-12)


def test_steps_through_which_a_gradient_passes_are_the_others():
    """Also where the slopes are small, as those of most weights are in the end: down to a millionth."""
    slope = torch.tensor([1e-1, 1e-3, 1e-5, 2e-6], dtype=torch.float64)
    start = [torch.zeros(4, dtype=torch.float64, requires_grad=True)]
    for steps in (1, 2, 5):
        plain, through = (
            descend(lambda weights: (weights[0] * slope).sum(), start, steps, 1e-2, differentiable=differentiable)[0]
            for differentiable in (False, True)
        )
        assert_close(through[0].detach(), plain[0])
    still, _ = descend(lambda weights: (0 * weights[0]).sum(), start, 2, 1e-2, differentiable=True)
    (gradient,) = torch.autograd.grad(still[0].sum(), start)
    assert torch.isfinite(gradient).all(), "where there is no slope at all, a gradient passes all the same"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_images_of_a_batch_do_not_see_each_other(name):
    network = tiny(name).eval()
    x = images(3)
    together = network(x)
    for number in range(3):
        assert_close(network(x[number : number + 1]), together[number : number + 1], rtol=0, atol=1e-5)
    assert not torch.equal(together[0], together[1])


def meta_loss(network, x, target, loss=None):
    """The outer loss of a step whose draws are always the same."""
    torch.manual_seed(0)
    return network.training_loss(network.look_at(x), Truth(target, loss or label_loss(), range(len(x))))


def in_double_precision(logits, target):
    """Cross-entropy; nnU-Net's soft Dice is computed in single precision."""
    return nn.functional.cross_entropy(logits, target[:, 0])


@pytest.mark.parametrize("options", [{}, {"inner_loss": "image"}, {"inner_loss": "image", "outer_loss": "image"}])
def test_the_gradient_of_the_initialisation_is_that_of_differences(options):
    """Through the inner steps, in double precision."""
    network = tiny(width=6, omega=10.0, fit_learning_rate=1e-2, background_weight=0.3, **options).double()
    x, target = images().double(), labels()
    meta_loss(network, x, target, in_double_precision).backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
            values.append(meta_loss(network, x, target, in_double_precision).item())
            with torch.no_grad():
                parameter.sub_(sign * 1e-6 * direction)
        slope = (values[0] - values[1]) / 2e-6
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8), name


def test_other_gradients_of_the_initialisation():
    """Without the way through the steps, and Eq. 3 of the paper: towards the weights after them."""
    x, target = images(), labels()
    network = tiny(outer="reptile", fit_learning_rate=1e-2)
    loss = meta_loss(network, x, target)
    loss.backward()
    torch.manual_seed(0)
    voxels = network.look_at(x)
    start = [p.detach().expand(2, *p.shape) for p in [*network.fitted_parameters(), *network.head_parameters()]]
    truth = Truth(target, label_loss(), range(2))
    after, _ = descend(lambda w: network._loss(w[:-4], w[-4:], voxels.draw(40), truth, "joint"), start, 2, 1e-2)
    for parameter, weight in zip([*network.fitted_parameters(), *network.head_parameters()], after, strict=True):
        assert torch.equal(parameter.grad, parameter.detach() - weight.mean(dim=0))
    final = network._loss(after[:-4], after[-4:], voxels.draw(40), truth, "joint") / 2
    assert_close(loss.detach(), final.detach())
    first_order = tiny(outer="first-order", fit_learning_rate=1e-2)
    meta_loss(first_order, x, target).backward()
    torch.manual_seed(0)
    for _ in range(2):
        voxels.draw(40)
    last = [w.detach().requires_grad_() for w in after]
    value = network._loss(last[:-4], last[-4:], voxels.draw(40), truth, "joint") / 2
    gradients = torch.autograd.grad(value, last)
    learned = [*first_order.fitted_parameters(), *first_order.head_parameters()]
    for parameter, gradient in zip(learned, gradients, strict=True):
        assert_close(parameter.grad, gradient.sum(dim=0))


def modes():
    return {
        "no_grad": torch.no_grad(),
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", modes())
def test_a_fit_is_the_same_in_every_mode_of_nnunet(name, mode):
    network, x = tiny(name), images()
    network.eval()
    expected = network(x)
    assert torch.equal(network(x), expected), "a repetition gives the same bits"
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with modes()[mode]:
        # As nnU-Net moves the network to its device.
        network.double().float()
        found = network(torch.clone(x))
    assert found.dtype == (torch.bfloat16 if mode == "autocast" else torch.float32)
    assert torch.equal(found, expected.to(found.dtype))
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_another_size_than_the_patch_is_refused(name):
    with pytest.raises(ValueError, match=r"in the patch of its plan, 6x7x5 voxels; got 6x7x6"):
        tiny(name)(torch.zeros(1, 1, 6, 7, 6))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_that_goes_astray_is_told(name):
    network = tiny(name, fit_learning_rate=math.inf).eval()
    with pytest.raises(RuntimeError, match=r"the fit to an image is not finite in step [12] of 3"):
        network(images())
    network.fit_steps = 0
    assert torch.isfinite(network(images())).all(), "without a step there is what was learned"


@pytest.mark.parametrize(("inner_loss", "inner_steps"), [("image", 2), ("joint", 1)])
def test_steps_of_training_and_at_inference_have_one_epsilon(inner_loss, inner_steps):
    """So that what is learned through the ones holds for the others: large enough, neither moves anything."""
    x, target = images(1), torch.ones(1, 1, *PATCH, dtype=torch.int16)
    truth = Truth(target, lambda logits, labels: nn.functional.cross_entropy(logits, labels[:, 0].long()), [0])
    for epsilon in (1e-8, 1e9):
        network = tiny(inner_loss=inner_loss, inner_steps=inner_steps, voxels=None, fit_epsilon=epsilon)
        voxels = network.look_at(x)
        still = network._loss(network.start(1), network._head(1), voxels.draw(None), truth, "joint")
        moved = network.training_loss(voxels, truth)
        assert torch.isclose(moved, still) == (epsilon == 1e9)
        for fitted in (network.fit(voxels), network.differentiable_fit(voxels)):
            assert torch.allclose(fitted[0], network.start(1)[0], rtol=0, atol=1e-7) == (epsilon == 1e9)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fit_may_draw_other_voxels_than_a_training_step(name):
    x, network, same = images(), tiny(name, fit_voxels=13), tiny(name, voxels=13)
    assert torch.equal(network.eval()(x), same.eval()(x))
    plain = tiny(name)
    assert not torch.equal(network(x), plain.eval()(x))
    losses = []
    for one in (network, plain, same):
        torch.manual_seed(0)
        losses.append(one.train().rehearse(x))
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(ValueError, match="fit_voxels=0"):
        tiny(name, fit_voxels=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_decoded_at_any_place(name):
    network = tiny(name, chunk=100).eval()
    x = images(2)
    voxels = network.look_at(x)
    fitted = network.fit(voxels)
    logits = network.decode(fitted, voxels)
    assert_close(logits, network(x))
    finer = network.decode(fitted, voxels, [torch.linspace(-1 / 3, n - 2 / 3, 3 * n) for n in PATCH])
    assert finer.shape == (2, 3, *(3 * n for n in PATCH))
    assert_close(finer[:, :, 1::3, 1::3, 1::3], logits, rtol=1e-4, atol=1e-5)
    some = network.decode(fitted, voxels, [torch.tensor([4.0, 1.0]), torch.tensor([2.0]), torch.arange(3.0)])
    assert_close(some, logits[:, :, [4, 1], 2:3, :3])
    # Each third of a voxel of padding is padding.
    padding = (x == 0).all(dim=1)
    assert padding.any()
    thirds = padding.repeat_interleave(3, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal((finer == -1000).all(dim=1), thirds)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_is_background(name):
    """nnU-Net's masked normalisation leaves it inside images, too, and nothing is ever learned there."""
    network = tiny(name).eval()
    torch.nn.init.constant_(network.decoder.seg_layers[0].bias, 50.0)
    x = images(2)
    x[0, :, 2:4, 3:5] = 0
    logits, padding = network(x), (x == 0).all(dim=1)
    assert (logits.argmax(dim=1) == 0)[padding].all(), "the first class of all that are equal"
    assert (logits.sigmoid() < 0.5).all(dim=1)[padding].all(), "no region"
    assert (logits.sigmoid() > 0.5).all(dim=1)[~padding].all()
    assert torch.isfinite(10 * logits.half()).all(), "as nnU-Net sums them up"


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_costs_nothing(name):
    """Covering plans have more of it than of images."""
    network, x = tiny(name).eval(), images(3)
    x[1:] = 0
    x[1, :, 3] = 1  # a plane; where there is nothing but padding, all of it counts
    voxels = network.look_at(x)
    fitted = network.fit(voxels)
    everywhere = [torch.arange(float(n)) for n in PATCH]

    def operations(number, along=None):
        with FlopCounterMode(display=False) as counter:
            network.decode([part[[number]] for part in fitted], voxels.only([number]), along)
        return counter.get_total_flops()

    plane, all_of_it = 7 * 5, math.prod(PATCH)
    assert operations(1) * all_of_it == pytest.approx(operations(2) * plane, rel=0.05)
    assert operations(1, everywhere) == operations(1)
    assert operations(0, [*everywhere[:2], torch.zeros(2)]) <= operations(2) / 100, "nothing but padding"
    assert (network.decode(fitted, voxels, [*everywhere[:2], torch.zeros(2)])[0] == -1000).all()


def test_codes_follow_the_checkpoint():
    """Folds have different numbers of training cases, and nnU-Net loads one after the other into one network."""
    trained = [tiny("NISF"), tiny("NISF")]
    for network, cases in zip(trained, (5, 4), strict=True):
        network.set_cases(cases)
    other = tiny("NISF")
    assert "decoder.seg_layers.codes" not in other.state_dict()
    for network in trained:
        other.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(other.case_codes, network.case_codes)
    assert not any(".seg_layers." not in key and "codes" in key for key in other.state_dict())
    trained[0].truth = Truth(labels(), label_loss(), [4, 1])
    trained[0](images()).backward()
    rows = trained[0].case_codes.grad.abs().sum(dim=1)
    assert (rows > 0).tolist() == [False, True, False, False, True]


def test_the_head_learns_on_fits_that_are_kept():
    network, target, x = tiny(width=64), labels(), images()
    fits: dict = {}
    network.truth = Truth(target, label_loss(), [7, 3], True, fits)
    network(x).backward()
    assert list(fits) == [7, 3]
    assert not any(p.grad.any() for p in network.fitted_parameters()), "a gradient of zero, for several GPUs"
    assert all(p.grad.any() for p in network.head_parameters())
    expected = network.fit(network.look_at(x[1:]))
    assert all(map(torch.equal, fits[3], (weight[0] for weight in expected))), "a resumed run makes the same fits"
    kept = fits[3]
    network.truth = Truth(target, label_loss(), [3, 9], True, fits)
    network(x)
    assert fits[3] is kept
    assert list(fits) == [7, 3, 9]


LABELS = {
    "labels": (None, False, label_loss),
    "an ignore label": (
        3,
        False,
        lambda: DC_and_CE_loss(
            {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            ignore_label=3,
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
    ),
    "NISF's": (None, False, BinaryDiceLoss),
    "NISF's with an ignore label": (3, False, lambda: BinaryDiceLoss(ignore_label=3)),
    "NISF's with regions": (None, True, lambda: BinaryDiceLoss(regions=True)),
    "NISF's with regions and an ignore label": (3, True, lambda: BinaryDiceLoss(regions=True, ignore_label=1)),
    "focal with regions and an ignore label": (3, True, lambda: FocalLoss(3.0, regions=True, ignore_label=1)),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_ignored_is_out_of_the_labels_loss_alone(name, kind):
    ignored, regions, make = LABELS[kind]
    target = labels()
    if ignored:
        target[:, :, 3:] = ignored
    if regions:
        parts = [target > 0, target == 2] + ([target == 3] if ignored else [])
        target = torch.cat(parts, dim=1)
        target[:, :2] &= ~target[:, 2:].any(dim=1, keepdim=True)

    def loss(x, target):
        network = tiny(name, classes=2 if regions else 3, voxels=100)
        if name == "NISF":
            network.set_cases(2)
        network.truth = Truth(target, make(), [0, 1])
        torch.manual_seed(0)
        return network(x)

    x = images()
    value = loss(x, target)
    assert torch.isfinite(value)
    other = target.clone()
    other[:, :2, :3] = 1 - other[:, :2, :3].int() if regions else (other[:, :, :3] + 1) % 3
    assert loss(x, other) != value
    if ignored and regions:
        hidden = target.clone()
        hidden[:, :2, 3:] = True
        assert loss(x, hidden) == value
    if ignored:
        brighter = x.clone()
        brighter[:, :, 3:] *= 1.5
        assert loss(brighter, target) != value, "the image is reconstructed there as well"


def ball(radius, patch=(16, 16, 16)):
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in patch), indexing="ij")
    inside = (sum(axis**2 for axis in axes).sqrt() < radius)[None, None]
    generator = torch.Generator().manual_seed(int(100 * radius))
    return inside + 0.1 * torch.randn(1, 1, *patch, generator=generator) + 0.5, inside.long()


def dice(network, radius):
    x, truth = ball(radius)
    found = network.eval()(x).argmax(dim=1, keepdim=True)
    return (2 * (found * truth).sum() / (found.sum() + truth.sum())).item()


LEARNERS = {
    "MetaSeg": (
        {
            "width": 32,
            "hidden_layers": 2,
            "omega": 10.0,
            "inner_loss": "image",
            "inner_steps": 4,
            "fit_steps": 4,
            "fit_learning_rate": 1e-3,
            "voxels": 512,
        },
        200,
    ),
    "NISF": ({"width": 32, "layers": 3, "fit_steps": 100, "voxels": 512}, 400),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_fitting_an_image_tells_what_is_in_it(name):
    """An atlas passes every other test: it knows places, and not the image. Radii between those of the training."""
    options, steps = LEARNERS[name]
    network = tiny(name, classes=2, patch=(16, 16, 16), **options)
    x, target = (torch.cat(parts) for parts in zip(*map(ball, (0.35, 0.8, 0.45, 0.7)), strict=True))
    groups = [{"params": list(network.parameters())}]
    if name == "NISF":
        network.set_cases(4)
        groups.append({"params": [network.case_codes], "lr": 1e-2})
    optimizer = torch.optim.Adam(groups, 1e-3)
    network.truth = Truth(target, label_loss(), range(4))
    for _ in range(steps):
        optimizer.zero_grad()
        network(x).backward()
        optimizer.step()
    network.truth = None
    fitted = [dice(network, radius) for radius in (0.4, 0.75)]
    network.fit_steps = 0
    atlas = [dice(network, radius) for radius in (0.4, 0.75)]
    assert min(fitted) > 0.85, (fitted, atlas)
    assert min(atlas) < min(fitted) - 0.1, (fitted, atlas)


def nisf_with_codes(**options) -> tuple[NISF, torch.Tensor]:
    """A network that knows codes along two axes, of standard deviations 2 and 0.5, around a mean."""
    torch.manual_seed(0)
    nisf = NISF(1, 3, patch_size=(12, 10), width=8, layers=2, frequency=4.0, scale=4.0, **options).eval()
    nisf.set_cases(4)
    mean = torch.full((8,), 0.25)
    away = torch.zeros(4, 8)
    away[:, 0] = 2.0 * torch.tensor([1.0, -1.0, 1.0, -1.0]) * (3 / 4) ** 0.5
    away[:, 1] = 0.5 * torch.tensor([1.0, 1.0, -1.0, -1.0]) * (3 / 4) ** 0.5
    nisf.case_codes.data.copy_(mean + away)
    return nisf, mean


def test_nisf_looks_along_the_axes_of_its_codes_in_their_own_scale():
    """The first step of Adam is its rate along each axis, in the axis's own deviation, and nothing across them."""
    nisf, mean = nisf_with_codes(fit_steps=1, fit_learning_rate=0.1)
    (code,) = nisf.fit(nisf.look_at(torch.rand(1, 1, 12, 10)))
    moved = (code[0] - mean).detach().abs()
    assert torch.allclose(moved, torch.tensor([0.2, 0.05, *[0.0] * 6]), atol=1e-4)


def test_nisf_stays_near_its_codes_and_the_papers_fit_is_free():
    """The heavier the prior, the nearer to the mean; without one the code starts near 0."""
    image, far = torch.rand(1, 1, 12, 10), []
    for prior in (0.0, 0.1, 100.0):
        nisf, mean = nisf_with_codes(fit_steps=60, prior=prior)
        (code,) = nisf.fit(nisf.look_at(image))
        far.append(float((code[0] - mean).detach().norm()))
    assert far[0] > far[1] > 2 * far[2]
    nisf, _ = nisf_with_codes(fit_steps=0, prior=None)
    assert float(nisf.fit(nisf.look_at(image))[0].detach().abs().max()) < 0.01


def test_nisf_with_one_training_case_begins_at_its_code():
    """It is the only code that the network knows; a spread there is none, and the search is about as free."""
    nisf, _ = nisf_with_codes(fit_steps=0)
    nisf.set_cases(1)
    nisf.case_codes.data.fill_(0.7)
    voxels = nisf.look_at(torch.rand(2, 1, 12, 10))
    assert torch.equal(nisf.fit(voxels)[0], torch.full((2, 8), 0.7))
    nisf.fit_steps = 5
    assert (nisf.fit(voxels)[0] != 0.7).all()


@pytest.mark.parametrize("cases", [2, 3, 8, 9])
def test_nisf_with_few_training_cases_stays_among_their_codes(cases):
    """N codes lie in N - 1 dimensions; of equal codes there is one."""
    nisf, _ = nisf_with_codes(fit_steps=20)
    nisf.set_cases(cases)
    nisf.case_codes.data.mul_(1e4)
    voxels = nisf.look_at(torch.rand(1, 1, 12, 10))
    mean = nisf.case_codes.detach().mean(dim=0)
    away = nisf.fit(voxels)[0][0] - mean
    assert away.norm() > 0.1
    if cases <= 8:
        among = torch.linalg.pinv(nisf.case_codes.detach() - mean, rtol=1e-4) @ (nisf.case_codes.detach() - mean)
        assert_close(away @ among, away, rtol=0, atol=1e-4)
    nisf.case_codes.data.fill_(0.7)
    assert_close(nisf.fit(voxels)[0], torch.full((1, 8), 0.7))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("fit_steps", [0, 3])
def test_codes_that_are_not_finite_are_told(value, fit_steps):
    """As weights of a training that went astray."""
    for part in ("case_codes", "weight"):
        nisf, _ = nisf_with_codes(fit_steps=fit_steps)
        if part == "weight" and not fit_steps:
            continue
        wrong = nisf.case_codes if part == "case_codes" else nisf.reconstruction.weight
        wrong.data[0, 2] = value
        with pytest.raises(RuntimeError, match=r"NISF: the fit to an image is not finite .* the network's weights"):
            nisf(torch.rand(1, 1, 12, 10))


@pytest.mark.parametrize("prior", [-0.1, math.nan, math.inf])
def test_a_prior_is_a_weight_or_none(prior):
    with pytest.raises(ValueError, match=f"prior={prior}"):
        nisf_with_codes(prior=prior)


@pytest.mark.parametrize("options", [{}, {"prior": None}])
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_that_pass_a_gradient_go_where_those_at_inference_go(name, options):
    network = tiny(name, patch=(12, 10), voxels=None, **({} if name == "MetaSeg" else options))
    network.inner_steps = network.fit_steps
    if name == "NISF":
        network.set_cases(5)
        network.case_codes.data.mul_(3e3)
    x = images(2, patch=(12, 10))
    expected = network.eval()(x)
    assert_close(network.train()(x), expected, rtol=1e-3, atol=1e-4)


def test_folds_with_other_codes_predict_in_one_network_as_each_alone():
    """As nnU-Net's predictor loads them, one after the other for each image, in its inference mode."""
    folds = []
    for cases in (3, 5, 5):
        torch.manual_seed(cases + len(folds))
        network = NISF(1, 3, patch_size=PATCH, **TINY["NISF"], fit_steps=3, voxels=40).eval()
        network.set_cases(cases)
        network.case_codes.data.mul_(1e4)
        folds.append(network)
    x, one = images(2), tiny("NISF").eval()
    for _ in range(2):
        with torch.inference_mode():
            for network in folds:
                one.load_state_dict(network.state_dict())
                assert torch.equal(one(x.clone()), network(x))
                assert_close(network(x[1:]), network(x)[1:], rtol=0, atol=1e-5)


class _Harmful:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_not_run_unasked(tmp_path, monkeypatch):
    """Labels at any spacing are found by networks that nnU-Net loads, which runs whatever a checkpoint holds."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    choice = Choice("nnUNetTrainerNISF", "3d_fullres", "nnUNetPlans")
    folder = tmp_path / "nnUNet_results" / "Dataset001_Bad" / str(choice)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres": {}}}))
    description = {"labels": {"background": 0, "one": 1}, "channel_names": {"0": "x"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    torch.save({"network_weights": _Harmful(str(tmp_path / "ran"))}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(UnsafeCheckpointError, match="mkdir, which may run code"):
        Model("Dataset001_Bad", choice, ["0"], "checkpoint_final.pth", torch.device("cpu"))
    assert not (tmp_path / "ran").exists()
