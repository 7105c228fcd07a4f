"""FCN-8s: VGG16 as a fully convolutional network, whose scores at three scales are upsampled and summed.

Idea: the network that classifies images becomes one that classifies every pixel; scores of finer scales sharpen those
of the coarsest.
Paper: Long et al. 2015, "Fully Convolutional Networks for Semantic Segmentation" (arXiv:1411.4038), sections 3 and 4;
VGG16: Simonyan and Zisserman 2015 (arXiv:1409.1556).

    image ─ 2 x 64 ─ 2 x 128 ─ 3 x 256 ─ 3 x 512 ─ 3 x 512 ─ 7x7, 4096 ─ 1x1, 4096 ─ score ┐ x 2
                                   │         └ score ───────────────────────────────────── + ┐ x 2
                                   └ score ──────────────────────────────────────────────── + ─ x 8 ─ logits

The paper trains it from VGG16's weights for ImageNet. `adopt_vgg16` takes them as torchvision's file has them.

Deviations: halvings round odd sizes up and upsampled maps lose their far end, where the paper pads the image by 100
pixels. The 7x7 convolution pads with zeros, so that maps keep their size. Scores start at random and not at zero, which
the paper found to make no difference (section 4.3). The last upsampling is learned as well, where the paper keeps it
linear. All five halvings are of both axes, whatever the plan.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import Dropout, convolution, pointwise
from nnunet_plugins.networks.layers.double_convolution import Convolutions, initialise_for_relu
from nnunet_plugins.networks.pyramid import Pyramid

FEATURES = (64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
FIRST = "features.0"


def bilinear(layer: nn.ConvTranspose2d) -> None:
    """Let a transposed convolution interpolate each channel linearly."""
    n = layer.kernel_size[0]
    center = (n - 1) / 2
    line = 1 - (torch.arange(n) - center).abs() / layer.stride[0]
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(layer.in_channels):
            layer.weight[channel, channel] = line[:, None] * line[None, :]


class Scores(nn.Module):
    """Scores of three maps, upsampled and summed; all that depends on the number of classes.

    Args:
        channels: of the maps at 1/32, 1/16 and 1/8 of the size.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        factors = [2] * (len(channels) - 1) + [8]
        ups = [
            nn.ConvTranspose2d(num_classes, num_classes, 2 * factor, factor, padding=factor // 2, bias=False)
            for factor in factors
        ]
        # nnU-Net's transfer learning leaves out every key that contains ".seg_layers.".
        self.seg_layers = nn.ModuleList([*(pointwise(width, num_classes, 2) for width in channels), *ups])

    def interpolate_linearly(self) -> None:
        """Let the upsampling begin as linear interpolation."""
        for layer in self.seg_layers:
            if isinstance(layer, nn.ConvTranspose2d):
                bilinear(layer)

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """Map one `(N, C, *size)` per scale, coarsest first, to logits `(N, num_classes, *size)`."""
        scores, ups = self.seg_layers[: len(maps)], self.seg_layers[len(maps) :]
        logits = scores[0](maps[0])
        for score, up, finer in zip(scores[1:], ups, maps[1:], strict=False):
            logits = score(finer) + _crop(up(logits), finer.shape[2:])
        logits = _crop(ups[-1](logits), size)
        return [logits] if self.deep_supervision else logits


def _crop(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    height, width = size
    return x[:, :, :height, :width]


class FCN8s(Pyramid):
    """FCN-8s, in 2D; `FCN8s(3, 21)` is the paper's.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one instead of bare; changes no parameter.
        features: channels of the five stages.
        hidden: channels of the two layers that were fully connected.
        dropout: after each of these two.
        norm: after each 3x3 convolution: "batch", "instance" or None, as VGG16 has it.

    Raises:
        ValueError: for options out of range, and in `forward` for an image that leaves a norm a single pixel, naming
            axis and smallest size.

    Example:
        >>> FCN8s(1, 3, features=(4, 4, 8, 8, 8), hidden=16)(torch.zeros(1, 1, 37, 41)).shape
        torch.Size([1, 3, 37, 41])
    """

    name = "FCN-8s"
    rounds_up = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        features: Sequence[int] = FEATURES,
        hidden: int = 4096,
        dropout: float = 0.5,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        if len(features) != len(CONVOLUTIONS):
            raise ValueError(f"FCN-8s has {len(CONVOLUTIONS)} stages, got features={tuple(features)}")
        # To the last convolutions that a norm may follow; what is halved once more has none.
        self.strides = [(2, 2)] * (len(CONVOLUTIONS) - 1)
        self.least_voxels = 1 if norm is None else 2
        self.stages = nn.ModuleList(
            nn.Sequential(
                Convolutions([before] + [after] * number, (3, 3), norm=norm), nn.MaxPool2d(2, 2, ceil_mode=True)
            )
            for (before, after), number in zip(pairwise([input_channels, *features]), CONVOLUTIONS, strict=True)
        )
        self.classifier = nn.Sequential(
            convolution(features[-1], hidden, (7, 7)),
            nn.ReLU(inplace=True),
            Dropout(dropout),
            pointwise(hidden, hidden, 2),
            nn.ReLU(inplace=True),
            Dropout(dropout),
        )
        self.decoder = Scores([hidden, features[3], features[2]], num_classes, deep_supervision=deep_supervision)
        self.apply(initialise_for_relu)
        self.decoder.interpolate_linearly()

    @classmethod
    def from_plan(
        cls,
        *,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool,
        patch_size: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        **options: Any,
    ) -> "FCN8s":
        """Build the network, which takes nothing of a plan.

        Args:
            input_channels: image channels.
            num_classes: output channels.
            deep_supervision: as in the constructor.
            patch_size: the plan's patch size in pixels; any works, as long as a norm has more than one pixel.
            strides: of the plan's stages.
            kernel_sizes: of the plan's stages.
            options: any keyword of the constructor.

        Raises:
            ValueError: if the patch is too small.
        """
        network = cls(input_channels, num_classes, deep_supervision, **options)
        network.check_patch(patch_size)
        return network

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`."""
        size = x.shape[2:]
        self.check_size(size)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.decoder([self.classifier(x), maps[3], maps[2]], size)

    def adopt_vgg16(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return torchvision's VGG16 in the form of this network's convolutions; without those of the scores.

        The fully connected layers become convolutions; the last, for the classes of ImageNet, is left out. For another
        number of channels than three the first convolution is the mean of its three, times 3 / n, for each.

        Raises:
            ValueError: if the weights are not VGG16's, naming the first that is missing or does not fit.
        """
        convolutions = [
            (name, module)
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d) and not name.startswith("decoder.")
        ]
        found = {}
        for (name, module), theirs in zip(convolutions, _vgg16_names(), strict=True):
            own = module.weight.shape
            channels = 3 if theirs == FIRST else own[1]
            # Fully connected there: one input for each channel and tap.
            flat = theirs.startswith("classifier.")
            shape = (own[0], own[1:].numel()) if flat else (own[0], channels, *own[2:])
            for part, wanted in (("weight", shape), ("bias", (own[0],))):
                key = f"{theirs}.{part}"
                if key not in weights:
                    raise ValueError(f"it has no {key}")
                if tuple(weights[key].shape) != wanted:
                    raise ValueError(f"its {key} has the shape {tuple(weights[key].shape)} and not {wanted}")
                found[f"{name}.{part}"] = weights[key]
            weight = found[f"{name}.weight"]
            if channels != own[1]:
                weight = weight.mean(dim=1, keepdim=True).repeat(1, own[1], 1, 1) * (channels / own[1])
            found[f"{name}.weight"] = weight.reshape(own)
        return found


def _vgg16_names() -> list[str]:
    """Return what torchvision calls VGG16's layers, but for the last: it counts ReLUs and poolings as well."""
    names, number = [], 0
    for convolutions in CONVOLUTIONS:
        names += [f"features.{number + 2 * n}" for n in range(convolutions)]
        number += 2 * convolutions + 1
    return [*names, "classifier.0", "classifier.3"]
