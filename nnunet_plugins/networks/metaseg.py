"""MetaSeg: a sine network of coordinates that is fitted to each image, from weights learned for that.

Idea: all weights of a small coordinate network are fitted to an image, from an initialisation that was meta-learned on
training images; the features of its last layer then tell the labels as well.
Paper: Vyas et al. 2025, "Fit Pixels, Get Labels: Meta-Learned Implicit Networks for Image Segmentation" (MICCAI,
arXiv:2510.04021), section 3; what its text leaves out stands in the authors' repository,
kushalvyas/Fit-Pixels-Get-Labels_MetaSeg.

    place ─ sine ─ sine ─ ... ─ sine ─┬─ linear ─ intensities   fitted to the image
                                      └─ linear ─ LeakyReLU ─ linear ─ logits

Deviations: intensities are scaled to [0, 1] between percentiles of each image; voxels of padding are neither drawn nor
counted; voxels are drawn for each step. The meta-gradient is that of the authors' code, which differentiates through
the inner steps; the paper's own Eq. 3 is `outer="reptile"`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.implicit import Fitted, ImplicitNetwork, OutputLayer, Truth, mean_of
from nnunet_plugins.networks.layers.descent import EPSILON, descend
from nnunet_plugins.networks.layers.sine import affine, initialise_sine, sine_layer
from nnunet_plugins.networks.layers.voxels import Draw, Voxels

OUTER = ("maml", "first-order", "reptile")
LOSSES = ("joint", "image")


class MetaSeg(ImplicitNetwork):
    """MetaSeg, in 2D or 3D.

    Args:
        input_channels: image channels; all are reconstructed.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one; changes no parameter.
        patch_size: of the images.
        width: of all layers.
        hidden_layers: sine layers after the first one.
        omega: frequency of all sine layers.
        fit_steps: gradient steps of the fit to an image.
        fit_learning_rate: of Adam there, and in the inner steps of training.
        fit_epsilon: likewise. Most slopes are small. Where Adam blows all of them up to steps of one size, these depend
            on little but signs, and the gradient through them tells nothing: a larger one is learned from far sooner.
        inner_steps: of a training step.
        inner_loss: what the inner steps of training see: pixels and labels ("joint"), or pixels alone, as at inference
            ("image").
        outer_loss: what the initialisation is judged by after these steps; "image" learns to reconstruct alone.
        outer: gradient of the initialisation: through the inner steps ("maml"), as if they were not there
            ("first-order"), or towards the weights after them ("reptile", the paper's Eq. 3).
        voxels: drawn for each step; all for None.
        fit_voxels: drawn for each step at inference; as many as in training for None.
        every: draw only voxels whose index is a multiple of this along each axis.
        background_weight: of background voxels in the reconstruction, where the labels are known.
        chunk: voxels that are decoded at a time.

    Raises:
        ValueError: for options out of range, and in `forward` for images of another size.

    Example:
        >>> metaseg = MetaSeg(1, 3, patch_size=(16, 20), width=8, fit_steps=2).eval()
        >>> metaseg(torch.rand(1, 1, 16, 20)).shape
        torch.Size([1, 3, 16, 20])
    """

    percentiles: ClassVar[tuple[float, float]] = (0.005, 0.995)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        patch_size: Sequence[int],
        width: int = 256,
        hidden_layers: int = 4,
        omega: float = 30.0,
        fit_steps: int = 100,
        fit_learning_rate: float = 1e-4,
        fit_epsilon: float = EPSILON,
        inner_steps: int = 2,
        inner_loss: str = "joint",
        outer_loss: str = "joint",
        outer: str = "maml",
        voxels: int | None = 4096,
        fit_voxels: int | None = None,
        every: int = 1,
        background_weight: float = 1.0,
        chunk: int = 8192,
    ) -> None:
        super().__init__(
            patch_size,
            fit_steps=fit_steps,
            fit_learning_rate=fit_learning_rate,
            fit_epsilon=fit_epsilon,
            inner_steps=inner_steps,
            voxels=voxels,
            fit_voxels=fit_voxels,
            every=every,
            chunk=chunk,
        )
        if outer not in OUTER or {inner_loss, outer_loss} - set(LOSSES):
            raise ValueError(f"outer is one of {OUTER}, a loss of {LOSSES}; got {outer=}, {inner_loss=}, {outer_loss=}")
        self.omega, self.outer, self.inner_loss, self.outer_loss = omega, outer, inner_loss, outer_loss
        self.background_weight = background_weight
        widths = [len(self.patch_size), *[width] * (hidden_layers + 1)]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.reconstruction = nn.Linear(width, input_channels)
        self.head = nn.Linear(width, width)
        self.decoder = OutputLayer(width, num_classes, deep_supervision=deep_supervision)
        for number, layer in enumerate([*self.layers, self.reconstruction]):
            initialise_sine(layer, omega, first=number == 0)

    # Weights: a weight and a bias for each sine layer and the reconstruction, which are fitted, then those of the head

    def fitted_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are fitted to an image: all but the head's."""
        return [p for layer in (*self.layers, self.reconstruction) for p in (layer.weight, layer.bias)]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the head."""
        return [*self.head.parameters(), *self.decoder.seg_layers.parameters()]

    def start(self, images: int, generator: torch.Generator | None = None) -> Fitted:
        """Return the learned initialisation for each of some images; nothing is drawn."""
        return [p.detach().expand(images, *p.shape) for p in self.fitted_parameters()]

    def coordinate(self, position: torch.Tensor, voxels: int) -> torch.Tensor:
        """Return -1 at the first voxel of an axis and 1 at the last."""
        return -1 + 2 * position / (voxels - 1) if voxels > 1 else 0 * position

    def features(self, fitted: Fitted, places: torch.Tensor) -> torch.Tensor:
        """Map places `(B, n, dimensions)` to the features of the last sine layer, `(B, n, width)`."""
        x = places
        for weight, bias in zip(fitted[0:-2:2], fitted[1:-2:2], strict=True):
            x = sine_layer(x, weight, bias, self.omega)
        return x

    def _head_of(self, features: torch.Tensor, head: Fitted) -> torch.Tensor:
        return affine(functional.leaky_relu(affine(features, *head[:2]), 0.01), *head[2:])

    def _head(self, images: int) -> Fitted:
        return [p.expand(images, *p.shape) for p in self.head_parameters()]

    def logits(self, fitted: Fitted, places: torch.Tensor) -> torch.Tensor:
        """Map places `(B, n, dimensions)` to logits `(B, n, classes)`."""
        return self._head_of(self.features(fitted, places), self._head(len(places)))

    # Losses, each summed over the images, so that none counts less in a larger batch

    def reconstruction_loss(self, fitted: Fitted, draw: Draw) -> torch.Tensor:
        """Return the mean squared error of the intensities, summed over the images."""
        return self._squares(fitted, self.features(fitted, self.places_of(draw)), draw)

    def _squares(
        self, fitted: Fitted, features: torch.Tensor, draw: Draw, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        errors = (affine(features, *fitted[-2:]) - draw.values) ** 2
        return mean_of(errors, draw.counts if counts is None else counts)

    def _loss(self, fitted: Fitted, head: Fitted, draw: Draw, truth: Truth, kind: str) -> torch.Tensor:
        features = self.features(fitted, self.places_of(draw))
        if kind == "image":
            return self._squares(fitted, features, draw)
        target = draw.of(truth.target)
        # Neither a label nor a region, nor the mark of what is ignored.
        background = (target == 0).all(dim=1)[..., 0]
        counts = torch.where(background, self.background_weight * draw.counts, draw.counts)
        logits = self._head_of(features, head).transpose(1, 2)[..., None]
        return self._squares(fitted, features, draw, counts) + len(draw.index) * truth.loss(logits, target)

    def training_loss(self, voxels: Voxels, truth: Truth) -> torch.Tensor:
        """Return the loss after the inner steps, or that of the head on fitted features; the mean over the images."""
        if truth.head_only:
            return self._loss_of_head(voxels, truth)
        images = len(voxels)
        fitted = [p.expand(images, *p.shape) for p in self.fitted_parameters()]
        head = self._head(images)
        adapted = [*fitted, *head] if self.inner_loss == "joint" else fitted
        number = len(fitted)

        def inner(weights: Fitted) -> torch.Tensor:
            after = weights[number:] or head
            return self._loss(weights[:number], after, voxels.draw(self.voxels), truth, self.inner_loss)

        through = self.outer == "maml"
        after, _ = descend(
            inner,
            adapted,
            self.inner_steps,
            self.fit_learning_rate,
            epsilon=self.fit_epsilon,
            differentiable=through,
        )
        if self.outer == "first-order":
            # The initialisation, moved: of a sum with a constant the gradient is as if there was no step.
            after = [before + (weight - before).detach() for before, weight in zip(adapted, after, strict=True)]
        loss = self._loss(after[:number], after[number:] or head, voxels.draw(self.voxels), truth, self.outer_loss)
        loss = loss / images
        if self.outer == "reptile":
            learned = [*self.fitted_parameters(), *self.head_parameters()][: len(after)]
            # Its gradient is the way back from the weights after the steps, in the mean over the images: Eq. 3.
            pulls = [(p * (p - w.mean(dim=0)).detach()).sum() for p, w in zip(learned, after, strict=True)]
            pull = torch.stack(pulls).sum()
            loss = loss.detach() + pull - pull.detach()
        return loss + self._untouched()

    def _loss_of_head(self, voxels: Voxels, truth: Truth) -> torch.Tensor:
        """Return the head's loss on the features of images to which the network was fitted as at inference."""
        new = {case: number for number, case in enumerate(truth.cases) if case not in truth.fits}
        for case, number in new.items():
            # Alone, or the last bits depend on which case comes along: a resumed training fits them in other batches.
            truth.fits[case] = [weight[0].clone().cpu() for weight in self.fit(voxels.only([number]))]
        parts = zip(*(truth.fits[case] for case in truth.cases), strict=True)
        fitted = [torch.stack(weights).to(voxels.values.device) for weights in parts]
        draw = voxels.draw(self.voxels)
        with torch.no_grad():
            features = self.features(fitted, self.places_of(draw))
        logits = self._head_of(features, self._head(len(voxels))).transpose(1, 2)[..., None]
        return truth.loss(logits, draw.of(truth.target)) + self._untouched()

    def bytes_kept(self, images: int, voxels: int) -> int:
        """Return what a training step keeps for the backward pass, for some images and voxels drawn of each."""
        steps = self.inner_steps if self.outer == "maml" else 0
        features = images * voxels * self.head.in_features * len(self.layers)
        weights = images * sum(p.numel() for p in self.parameters())
        # Found by counting: about 6 maps of each layer for a step through which the gradient passes, 2.4 for the last.
        return round(4 * ((2.4 + 6 * steps) * features + 8 * steps * weights))

    def _untouched(self) -> torch.Tensor:
        """Return 0 with a gradient of 0 to every parameter: with several GPUs none may be left out."""
        return 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()

    def differentiable_fit(self, voxels: Voxels) -> Fitted:
        """Return the weights after `inner_steps` steps on the images, with a gradient to the initialisation."""
        start = [p.expand(len(voxels), *p.shape) for p in self.fitted_parameters()]
        if not torch.is_grad_enabled():
            start = self.start(len(voxels))
        generator = torch.Generator().manual_seed(0)
        fitted, _ = descend(
            lambda weights: self.reconstruction_loss(weights, voxels.draw(self.voxels, generator)),
            start,
            self.inner_steps,
            self.fit_learning_rate,
            epsilon=self.fit_epsilon,
            differentiable=torch.is_grad_enabled(),
        )
        return fitted
