"""What networks of coordinates share: they are fitted to every image, and give its labels along.

    image ─ voxels ─┐
                    ├ gradient steps: reconstruct the image ─ fitted ─ decode at every voxel ─ logits
    start ──────────┘

Such a network is a function of a place. It sees an image only by being fitted to it, so `forward` takes gradient steps,
also at inference, where nnU-Net has switched gradients off. A place must mean the same in every image: they are whole,
centred in a patch of one size.

All is computed in single precision. Nothing but the parameters is learned, and forward leaves them as they are.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.nn import functional

from nnunet_plugins.networks.layers.descent import EPSILON, Weights, descend
from nnunet_plugins.networks.layers.voxels import Draw, Voxels, grid, indices_of

SEED = 0
"""Of what is drawn in a fit: the same image gives the same logits, bit for bit."""

LARGEST_LOGIT = 1000.0
"""Logits are clamped at +-1000: nnU-Net adds ten times their value in half precision, whose largest number is 65504."""

Fitted = Weights


class OutputLayer(nn.Module):
    """The linear map to logits where nnU-Net looks for it; its switch makes a list of one out of the logits.

    Args:
        width: features of each point.
        num_classes: output channels.
        deep_supervision: return the logits in a list.
    """

    def __init__(self, width: int, num_classes: int, *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        # nnU-Net's transfer learning leaves out every key that contains ".seg_layers.".
        self.seg_layers = nn.ModuleList([nn.Linear(width, num_classes)])


@dataclass(frozen=True)
class Truth:
    """What a training step needs besides the images.

    Attributes:
        target: labels `(B, 1, *size)` or regions `(B, R, *size)`, as nnU-Net's loss takes them.
        loss: maps logits `(B, classes, n, 1)` and a target `(B, T, n, 1)` to the mean over the images.
        cases: number of each image among the training cases.
        head_only: train the head alone, on fitted features.
        fits: fits of earlier steps by the case's number, where the head alone is trained.
    """

    target: torch.Tensor
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    cases: Sequence[int]
    head_only: bool = False
    fits: MutableMapping[int, Fitted] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """Where a fit looks.

    Attributes:
        start: of what it moves.
        fitted: makes weights or codes of what was moved.
        penalty: of the same, summed over the images.
    """

    start: Fitted
    fitted: Callable[[Fitted], Fitted] = lambda moved: moved
    penalty: Callable[[Fitted], torch.Tensor | float] = lambda moved: 0.0


class ImplicitNetwork(nn.Module):
    """Abstract: a network that is fitted to every image.

    In evaluation mode `forward` fits and decodes. In training mode it returns the loss, a scalar, where `truth` is set,
    and otherwise the logits after `inner_steps` steps, through which gradients reach all parameters.

    Args:
        patch_size: of the images, which have no other.
        fit_steps: gradient steps at inference; 0 shows what the network knows before it has seen the image.
        fit_learning_rate: of these steps, which are Adam's.
        fit_epsilon: likewise.
        inner_steps: gradient steps in training.
        voxels: drawn for each step; all for None.
        fit_voxels: drawn for each step at inference; as many as in training for None.
        every: draw only voxels whose index is a multiple of this along each axis.
        chunk: voxels that are decoded at a time.
    """

    percentiles: ClassVar[tuple[float, float]]

    truth: Truth | None = None

    def __init__(
        self,
        patch_size: Sequence[int],
        *,
        fit_steps: int,
        fit_learning_rate: float,
        inner_steps: int,
        voxels: int | None,
        fit_epsilon: float = EPSILON,
        fit_voxels: int | None = None,
        every: int = 1,
        chunk: int = 8192,
    ) -> None:
        super().__init__()
        least = min(1 if voxels is None else voxels, 1 if fit_voxels is None else fit_voxels, every, chunk)
        if len(patch_size) not in (2, 3) or min(fit_steps, inner_steps) < 0 or least < 1:
            raise ValueError(
                f"{type(self).__name__} takes patches in 2D or 3D, whole steps from 0 and voxels from 1; got "
                f"patch_size={tuple(patch_size)}, {fit_steps=}, {inner_steps=}, {voxels=}, {fit_voxels=}, {every=}, "
                f"{chunk=}"
            )
        self.patch_size = tuple(patch_size)
        self.fit_steps, self.inner_steps = fit_steps, inner_steps
        self.fit_learning_rate, self.fit_epsilon = fit_learning_rate, fit_epsilon
        self.voxels, self.fit_voxels, self.every, self.chunk = voxels, fit_voxels, every, chunk

    @classmethod
    def from_plan(
        cls,
        *,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool,
        patch_size: Sequence[int],
        strides: object,
        kernel_sizes: object,
        **options: object,
    ) -> "ImplicitNetwork":
        """Build the network for a plan, of which the patch alone counts.

        Args:
            input_channels: image channels.
            num_classes: output channels.
            deep_supervision: as in the constructor.
            patch_size: the plan's patch size in voxels.
            strides: not used.
            kernel_sizes: not used.
            options: any keyword of the constructor but `patch_size`.
        """
        make: Callable[..., ImplicitNetwork] = cls
        return make(input_channels, num_classes, deep_supervision, patch_size=patch_size, **options)

    # What subclasses are

    def start(self, images: int, generator: torch.Generator | None = None) -> Fitted:
        """Return what is fitted, as it is before the first step, for some images; without gradient."""
        raise NotImplementedError

    def search(self, images: int, generator: torch.Generator | None = None) -> Search:
        """Return how a fit at inference looks for the weights or codes of some images: freely, from the start."""
        return Search(self.start(images, generator))

    def search_loss(self, search: Search, moved: Fitted, draw: Draw) -> torch.Tensor:
        """Return what a search makes smaller, summed over the images."""
        return self.reconstruction_loss(search.fitted(moved), draw) + search.penalty(moved)

    def reconstruction_loss(self, fitted: Fitted, draw: Draw) -> torch.Tensor:
        """Return how far the images are from what the network makes of them, summed over the images."""
        raise NotImplementedError

    def logits(self, fitted: Fitted, places: torch.Tensor) -> torch.Tensor:
        """Map places `(B, n, dimensions)`, in the network's coordinates, to logits `(B, n, classes)`."""
        raise NotImplementedError

    def coordinate(self, position: torch.Tensor, voxels: int) -> torch.Tensor:
        """Return the network's coordinate of positions along an axis, in voxels from the first one's centre."""
        raise NotImplementedError

    def training_loss(self, voxels: Voxels, truth: Truth) -> torch.Tensor:
        """Return the scalar that a training step follows."""
        raise NotImplementedError

    def differentiable_fit(self, voxels: Voxels) -> Fitted:
        """Return what `inner_steps` steps on the images make of the start, with a gradient to the parameters."""
        raise NotImplementedError

    def bytes_kept(self, images: int, voxels: int) -> int:
        """Return what a training step keeps for the backward pass, for some images and voxels drawn of each."""
        raise NotImplementedError

    # What they share

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map images `(N, input_channels, *patch_size)` to logits `(N, num_classes, *patch_size)`.

        Raises:
            ValueError: for images of another size than the patch.
            RuntimeError: if the numbers of a fit are not finite.
        """
        if x.shape[2:] != self.patch_size:
            size, patch = ("x".join(map(str, one)) for one in (x.shape[2:], self.patch_size))
            raise ValueError(
                f"{type(self).__name__} takes whole images in the patch of its plan, {patch} voxels; got {size}"
            )
        with as_in_training(x.device):
            # What was made where no gradient is ever taken gets none, its clone does: nnU-Net moves the parameters to
            # their device there, too.
            if any(parameter.is_inference() for parameter in self.parameters()):
                clones = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
                return functional_call(self, clones, (x.clone(),))
            voxels = self.look_at(x.detach().clone())
            if not self.training:
                with torch.no_grad():
                    logits = self.decode(self.fit(voxels), voxels)
            elif self.truth is None:
                logits = self.decode(self.differentiable_fit(voxels), voxels)
            else:
                return self.training_loss(voxels, self.truth)
        if torch.is_autocast_enabled(x.device.type):
            logits = logits.to(torch.get_autocast_dtype(x.device.type))
        return [logits] if self.decoder.deep_supervision else logits

    decoder: OutputLayer

    def look_at(self, images: torch.Tensor) -> Voxels:
        """Return the voxels of images `(B, channels, *patch_size)`."""
        return Voxels(images.to(next(self.parameters()).dtype), self.percentiles, self.every)

    def fit(self, voxels: Voxels) -> Fitted:
        """Fit the network to images, by `fit_steps` steps; the images of a batch do not see each other.

        Returns:
            what `decode` takes.

        Raises:
            RuntimeError: if the numbers of a step are not finite.
        """
        generator = torch.Generator().manual_seed(SEED)
        search = self.search(len(voxels), generator)
        number = self.voxels if self.fit_voxels is None else self.fit_voxels
        moved, losses = descend(
            lambda moved: self.search_loss(search, moved, voxels.draw(number, generator)),
            search.start,
            self.fit_steps,
            self.fit_learning_rate,
            epsilon=self.fit_epsilon,
        )
        fitted = search.fitted(moved)
        if isinstance(losses, FakeTensor):
            return fitted  # without numbers
        finite = losses.isfinite()
        if not (finite.all() and all(weight.isfinite().all() for weight in fitted)):
            step = int(finite.long().argmin()) + 1 if not finite.all() else self.fit_steps
            raise RuntimeError(
                f"{type(self).__name__}: the fit to an image is not finite in step {step} of {self.fit_steps}; the "
                f"images or the network's weights hold values that are not, or the learning rate, "
                f"{self.fit_learning_rate:g}, is too high"
            )
        return fitted

    def decode(self, fitted: Fitted, voxels: Voxels, along: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return logits `(B, num_classes, *size)` of images to which the network was fitted, on a grid of places.

        Of padding nothing was ever learned, and nothing is decoded. There all logits are the lowest, which means
        background to a softmax, whose first class wins among equals, and to sigmoids.

        Args:
            fitted: what `fit` returned.
            voxels: of these images.
            along: positions of the grid's planes along each axis, in voxels of the patch from the centre of the first
                one; by default all voxels of the patch. Any will do, as the network knows places and no voxels.
        """
        places = self.places(along).to(fitted[0].dtype)
        size = [len(axis) for axis in along] if along else self.patch_size
        content = voxels.content_at(along) if along else voxels.content
        logits = [
            self._logits_inside([weights[number, None] for weights in fitted], places, indices_of(inside))
            for number, inside in enumerate(content)
        ]
        return torch.stack(logits).transpose(1, 2).unflatten(2, tuple(size))

    def _logits_inside(self, fitted: Fitted, places: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Return the logits `(M, num_classes)` of one image at M places, of which those with some indices count."""
        parts = [self.logits(fitted, places[part][None])[0] for part in inside.split(self.chunk)]
        known = torch.cat(parts).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return known.new_full((len(places), known.shape[1]), -LARGEST_LOGIT).index_copy(0, inside, known)

    def rehearse(self, images: torch.Tensor) -> torch.Tensor:
        """Return the loss of a training step on images without labels, for those who count what it takes.

        Args:
            images: `(B, channels, *patch_size)`; they may be fake tensors, which have no memory.
        """
        target = torch.zeros(len(images), 1, *self.patch_size, dtype=torch.int16, device=images.device)
        self.truth = Truth(target, _cross_entropy, range(len(images)))
        try:
            loss: torch.Tensor = self(images)
        finally:
            self.truth = None
        return loss

    def training_bytes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the bytes that a training step keeps for the backward pass, and the most that live at one time.

        Counted is what depends on the images, besides the parameters, their gradients and the optimizer's state.

        Args:
            shape: `(batch, channels, *patch)`.
        """
        images, channels, *size = shape
        drawn = self.voxels or math.prod(-(-n // self.every) for n in size)
        kept = self.bytes_kept(images, drawn)
        # The images, a copy, their intensities and the labels, of 4 bytes or less, and the places of 8.
        return kept, kept + images * math.prod(size) * (12 * channels + 16)

    def places(self, along: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return the coordinates `(M, dimensions)` of a grid of places; see `decode`."""
        device = next(self.parameters()).device
        axes = along or [torch.arange(voxels, dtype=torch.float32) for voxels in self.patch_size]
        return grid([self.coordinate(axis.to(device), n) for axis, n in zip(axes, self.patch_size, strict=True)])

    def places_of(self, draw: Draw) -> torch.Tensor:
        """Return the coordinates `(B, n, dimensions)` of the voxels that were drawn."""
        rest, axes = draw.index, []
        for voxels in reversed(self.patch_size):
            axes.append(self.coordinate((rest % voxels).to(draw.values.dtype), voxels))
            rest = rest // voxels
        return torch.stack(axes[::-1], dim=-1)


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, target[:, 0].long())


def mean_of(errors: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean of each image's errors `(B, n, channels)` by weights `(B, n)`, summed over the images."""
    return ((errors.mean(dim=2) * counts).sum(dim=1) / counts.sum(dim=1)).sum()


@contextlib.contextmanager
def as_in_training(device: torch.device) -> Iterator[None]:
    """Let gradients be taken in single precision, whatever nnU-Net's inference has switched off.

    Whether gradients are taken from here on is as outside; `torch.inference_mode` is off, in which none ever are.
    """
    enabled = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(enabled), torch.autocast(device.type, enabled=False):
        yield
