"""NISF: one network of coordinates for all images, of which each has a code.

Idea: a network maps a place and a code to the intensity and the label there; the codes of the training images are
learned along, and that of a new image is found by gradient steps that reconstruct it, with all weights fixed.
Paper: Stolt-Ansó et al. 2023, "NISF: Neural Implicit Segmentation Functions" (MICCAI, arXiv:2309.08643), section 2;
what its text leaves out stands in the authors' repository, NILOIDE/Implicit_segmentation.

    place ─┐
           ├ Gabor layer + code ─ Gabor layer + input ─ ... ─┬─ linear ─ sigmoid ─ intensities
    code ──┘                                                 └─ linear ─ logits

Deviations: frequency and scale of the layers are options; voxels are drawn for each step. At inference only the code
moves, as the paper says; the authors' code moves everything. It moves from the mean of the training images' codes along
their principal axes, as far along each as they spread, and is held there by a Gaussian's logarithm; the paper's moves
freely from near 0. The network knows no other codes than those: so it finds better ones, and in fewer steps.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.implicit import SEED, Fitted, ImplicitNetwork, OutputLayer, Search, Truth, mean_of
from nnunet_plugins.networks.layers.descent import descend
from nnunet_plugins.networks.layers.gabor import GaborLayer
from nnunet_plugins.networks.layers.voxels import Draw, Voxels

SPREAD = 1e-4
"""Standard deviation of the codes at their start, and of the noise on the coordinates in training."""

FREE_SPREAD = 0.1
"""Standard deviation that a fit takes for that of the codes where no two training cases tell it."""

PENALTY = 1e-4
"""Weight of the mean square of a code, and of the sum of squares of the layers' weights, in the loss."""


class NISF(ImplicitNetwork):
    """NISF, in 2D or 3D.

    Args:
        input_channels: image channels; all are reconstructed.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one; changes no parameter.
        patch_size: of the images.
        width: of all layers, and length of a code.
        layers: how many.
        frequency: of the waves, the paper's w0.
        scale: of their windows, the paper's s0.
        fit_steps: gradient steps by which the code of an image is found.
        fit_learning_rate: of Adam there, in standard deviations of the training images' codes.
        prior: weight of the mean square of those deviations in the loss of a fit. None: the paper's fit, in which the
            code moves freely from near 0, and the rate is in its own numbers.
        voxels: drawn for each step; all for None.
        fit_voxels: drawn for each step at inference; as many as in training for None.
        chunk: voxels that are decoded at a time.

    Attributes:
        case_codes: codes `(cases, width)` of the training cases, parameters of the network once `set_cases` was called;
            a checkpoint brings its own.

    Raises:
        ValueError: for options out of range, and in `forward` for images of another size.

    Example:
        >>> nisf = NISF(1, 3, patch_size=(16, 20), width=8, layers=2, fit_steps=2).eval()
        >>> nisf(torch.rand(1, 1, 16, 20)).shape
        torch.Size([1, 3, 16, 20])
    """

    percentiles: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        patch_size: Sequence[int],
        width: int = 128,
        layers: int = 8,
        frequency: float = 10.0,
        scale: float = 10.0,
        fit_steps: int = 100,
        fit_learning_rate: float = 0.2,
        prior: float | None = 1e-2,
        voxels: int | None = 4096,
        fit_voxels: int | None = None,
        chunk: int = 8192,
    ) -> None:
        super().__init__(
            patch_size,
            fit_steps=fit_steps,
            fit_learning_rate=fit_learning_rate,
            inner_steps=2,
            voxels=voxels,
            fit_voxels=fit_voxels,
            chunk=chunk,
        )
        if layers < 1:
            raise ValueError(f"NISF has at least one layer; got {layers=}")
        if prior is not None and not 0 <= prior < math.inf:
            raise ValueError(f"NISF's prior is a weight from 0, or None for the paper's free fit; got {prior=}")
        inputs = [len(self.patch_size) + width, *[width] * (layers - 1)]
        self.layers = nn.ModuleList(GaborLayer(n, width, frequency, scale) for n in inputs)
        self.reconstruction = nn.Linear(width, input_channels)
        self.decoder = OutputLayer(width, num_classes, deep_supervision=deep_supervision)
        self.width, self.prior = width, prior
        self.register_load_state_dict_pre_hook(_take_codes)

    # Codes. They stand where nnU-Net's transfer learning leaves them out, as they belong to the cases of one training.

    def set_cases(self, number: int) -> None:
        """Give the network as many codes as there are training cases, drawn anew."""
        device = self.reconstruction.weight.device
        codes = nn.Parameter(SPREAD * torch.randn(number, self.width, device=device))
        self.decoder.seg_layers.register_parameter("codes", codes)

    @property
    def case_codes(self) -> nn.Parameter | None:
        """The codes of the training cases; None if there are none."""
        return self.decoder.seg_layers._parameters.get("codes")

    def start(self, images: int, generator: torch.Generator | None = None) -> Fitted:
        """Return a code that is drawn as those of the training cases were, the same for each of some images."""
        code = SPREAD * torch.randn(1, self.width, generator=generator, device="cpu")
        return [code.to(self.reconstruction.weight).expand(images, -1)]

    def principal_axes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean `(width,)` of the training images' codes, and their axes `(number, width)`.

        Each axis is as long as the codes' standard deviation along it.
        """
        weight, codes = self.reconstruction.weight, self.case_codes
        mean = weight.new_zeros(self.width) if codes is None else codes.detach().mean(dim=0)
        if codes is None or len(codes) < 2:
            return mean, FREE_SPREAD * torch.eye(self.width).to(weight)
        # Of a code that is not finite the mean tells; the decomposition would only fail to converge.
        _, lengths, axes = torch.linalg.svd((codes.detach() - mean).nan_to_num(), full_matrices=False)
        return mean, axes * (lengths / (len(codes) - 1) ** 0.5)[:, None]

    def search(self, images: int, generator: torch.Generator | None = None) -> Search:
        """Return a search among codes like those of the training images, from their mean."""
        if (prior := self.prior) is None:
            return super().search(images, generator)
        mean, axes = self.principal_axes()
        return Search(
            start=[axes.new_zeros(images, len(axes))],
            fitted=lambda moved: [mean + moved[0] @ axes],
            penalty=lambda moved: prior * (moved[0] ** 2).mean(dim=1).sum(),
        )

    def coordinate(self, position: torch.Tensor, voxels: int) -> torch.Tensor:
        """Return 0 at the first voxel of an axis, and 1 where one more than the last would be."""
        return position / voxels

    def features(self, codes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Map places `(B, n, dimensions)` of images with codes `(B, width)` to features `(B, n, width)`."""
        first, *others = self.layers
        code = codes[:, None]
        x = first(places, code) + code
        for layer in others:
            x = x + layer(x)
        return x

    def logits(self, fitted: Fitted, places: torch.Tensor) -> torch.Tensor:
        """Map places `(B, n, dimensions)` to logits `(B, n, classes)`."""
        return self.decoder.seg_layers[0](self.features(fitted[0], places))

    # Losses, each summed over the images

    def _image_loss(self, codes: torch.Tensor, features: torch.Tensor, draw: Draw) -> torch.Tensor:
        errors = functional.binary_cross_entropy_with_logits(
            self.reconstruction(features), draw.values, reduction="none"
        )
        return mean_of(errors, draw.counts) + PENALTY * (codes**2).mean(dim=1).sum()

    def reconstruction_loss(self, fitted: Fitted, draw: Draw) -> torch.Tensor:
        """Return the cross-entropy of the intensities and the codes' penalty, summed over the images."""
        (codes,) = fitted
        return self._image_loss(codes, self.features(codes, self.places_of(draw)), draw)

    def training_loss(self, voxels: Voxels, truth: Truth) -> torch.Tensor:
        """Return the loss of images and labels with the codes of the cases, the mean over the images."""
        if self.case_codes is None:
            raise RuntimeError("NISF is trained with a code for each case; set_cases makes them")
        codes = self.case_codes[list(truth.cases)]
        draw = voxels.draw(self.voxels)
        places = self.places_of(draw)
        features = self.features(codes, places + SPREAD * torch.randn_like(places))
        logits = self.decoder.seg_layers[0](features).transpose(1, 2)[..., None]
        image = self._image_loss(codes, features, draw) / len(voxels)
        weights = [p for name, p in self.layers.named_parameters() if name.endswith("weight")]
        penalty = PENALTY * torch.stack([(weight**2).sum() for weight in weights]).sum()
        return image + penalty + truth.loss(logits, draw.of(truth.target))

    def rehearse(self, images: torch.Tensor) -> torch.Tensor:
        """Return the loss of a training step, with codes that are made for it where there are none."""
        if self.case_codes is None:
            self.set_cases(len(images))
        return super().rehearse(images)

    def bytes_kept(self, images: int, voxels: int) -> int:
        """Return what a training step keeps for the backward pass, for some images and voxels drawn of each."""
        # Of each layer its input and its output, two linear maps, wave and window, and what their slopes are made of.
        return 4 * 8 * images * voxels * self.width * len(self.layers)

    def differentiable_fit(self, voxels: Voxels) -> Fitted:
        """Return codes after `inner_steps` steps on the images, with a gradient to all parameters but other codes."""
        generator = torch.Generator().manual_seed(SEED)
        search = self.search(len(voxels), generator)
        moved, _ = descend(
            lambda moved: self.search_loss(search, moved, voxels.draw(self.voxels, generator)),
            [code.clone().requires_grad_() for code in search.start],
            self.inner_steps,
            self.fit_learning_rate,
            epsilon=self.fit_epsilon,
            differentiable=torch.is_grad_enabled(),
        )
        return search.fitted(moved)


def _take_codes(network: NISF, state: Mapping[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Have as many codes as a state to be loaded has: folds differ in the number of their training cases."""
    codes = state.get(f"{prefix}decoder.seg_layers.codes")
    if codes is not None and (network.case_codes is None or network.case_codes.shape != codes.shape):
        network.set_cases(len(codes))
