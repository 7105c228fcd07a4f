"""V-Net: residual stages of 5x5x5 convolutions, reduced and enlarged by convolutions of stride 2.

Idea: the first fully volumetric segmentation network of its kind; every stage adds its input to its last convolution,
and nothing is pooled.
Paper: Milletari et al. 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation"
(arXiv:1606.04797), section 2, Fig. 2 and Table 1.

    channels     16   32   64   128   256 | 256  128   64   32     the way up has the shortcut's channels besides
    convolutions  1    2    3     3     3 |   3    3    2    1

Readings and deviations: the image is added to the first stage as the mean of its channels, whose number is then free. A
norm follows each convolution, of which the paper has none; later implementations have batch norm. Kernels are 1 along
axes where the plan's are, strides are the plan's. Odd sizes get a replicated voxel before they are halved.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import CONVOLUTION, same_padding
from nnunet_plugins.networks.layers.double_convolution import initialise_for_relu, norms, upconvolution
from nnunet_plugins.networks.layers.head import Head
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.pyramid import Pyramid, Sizes

FEATURES = (16, 32, 64, 128, 256)
CONVOLUTIONS = (1, 2, 3, 3, 3, 3, 3, 2, 1)
"""Of each stage, down to the coarsest and up again."""


class Stage(nn.Module):
    """Convolutions, the last of which gets the stage's input added; `(N, in, *size)` to `(N, out, *size)`.

    Args:
        in_channels: of the map that the stage convolves.
        channels: of its output, and of the map that is added.
        number: of convolutions.
        kernel_size: per axis.
        norm: "batch", "instance" or None.
    """

    def __init__(
        self, in_channels: int, channels: int, number: int, kernel_size: Sequence[int], *, norm: str | None
    ) -> None:
        super().__init__()
        dim, padding = len(kernel_size), same_padding(kernel_size, (1,) * len(kernel_size))
        layers: list[nn.Module] = []
        for before in [in_channels] + [channels] * (number - 1):
            layers.append(CONVOLUTION[dim](before, channels, tuple(kernel_size), padding=padding))
            layers += [*norms(norm, channels, dim), nn.PReLU(channels)]
        self.activation = layers.pop()  # it comes after the sum
        self.convolutions = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`, with `added` in place of the input."""
        return self.activation(self.convolutions(x) + (x if added is None else added))


def change(convolution: nn.Module, channels: int, dim: int, norm: str | None) -> nn.Sequential:
    """Build a convolution that reduces or enlarges, with norm and PReLU."""
    return nn.Sequential(convolution, *norms(norm, channels, dim), nn.PReLU(channels))


class VNet(Pyramid):
    """V-Net, in 2D or 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one instead of bare; changes no parameter.
        strides: of the convolutions between the scales, per axis.
        kernel_sizes: kernel per axis at every scale; where it is more than 1, it is replaced by `kernel`.
        features: channels at every scale.
        convolutions: of each stage, down to the coarsest and up again.
        kernel: the convolutions' along axes where the plan has more than 1.
        norm: after each convolution: "batch", "instance" or None.

    Raises:
        ValueError: for options out of range, and in `forward` for an image too small, naming axis and smallest size.

    Example:
        >>> vnet = VNet(1, 3, features=(4, 8), convolutions=(1, 2, 1), strides=((2, 2),), kernel_sizes=((3, 3),) * 2)
        >>> vnet(torch.zeros(1, 1, 21, 24)).shape
        torch.Size([1, 3, 21, 24])
    """

    name = "V-Net"
    rounds_up = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sizes,
        kernel_sizes: Sizes,
        features: Sequence[int] = FEATURES,
        convolutions: Sequence[int] = CONVOLUTIONS,
        kernel: int = 5,
        norm: str | None = "batch",
    ) -> None:
        super().__init__()
        self.set_strides(strides, kernel_sizes, len(features))
        if len(convolutions) != 2 * len(features) - 1 or min(convolutions) < 1 or kernel % 2 == 0:
            raise ValueError(
                f"V-Net with {len(features)} scales has {2 * len(features) - 1} stages of at least one convolution "
                f"with an odd kernel, got convolutions={tuple(convolutions)} and kernel={kernel}"
            )
        self.least_voxels = 1 if norm is None else 2
        dim = len(kernel_sizes[0])
        kernels = [tuple(kernel if k > 1 else 1 for k in sizes) for sizes in kernel_sizes]
        self.down_stages = nn.ModuleList(
            Stage(width if n else input_channels, width, number, size, norm=norm)
            for n, (width, number, size) in enumerate(zip(features, convolutions, kernels, strict=False))
        )
        self.up_stages = nn.ModuleList(  # finest first
            Stage(2 * width, 2 * width, number, size, norm=norm)
            for width, number, size in zip(features, reversed(convolutions), kernels[:-1], strict=False)
        )
        self.down = nn.ModuleList(
            change(CONVOLUTION[dim](fine, coarse, stride, stride), coarse, dim, norm)
            for (fine, coarse), stride in zip(pairwise(features), self.strides, strict=True)
        )
        # The way up comes with twice the channels of its scale, but from the coarsest scale.
        widths = [2 * width for width in features[1:-1]] + [features[-1]]
        self.up = nn.ModuleList(
            change(upconvolution(coarse, fine, stride), fine, dim, norm)
            for coarse, fine, stride in zip(widths, features, self.strides, strict=False)
        )
        self.ise = ISE()
        self.decoder = Head([2 * features[0]], num_classes, dim, deep_supervision=deep_supervision)
        self.apply(initialise_for_relu)

    @classmethod
    def downsamplings(cls, *, features: Sequence[int] = FEATURES, **_: Any) -> int:
        """Return how many steps there are between the scales of `features`."""
        return len(features) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`."""
        self.check_size(x.shape[2:])
        skips = [self.down_stages[0](x, x.mean(dim=1, keepdim=True))]
        for down, stage, stride in zip(self.down, self.down_stages[1:], self.strides, strict=True):
            x = skips[-1]
            full = [-(-n // s) * s for n, s in zip(x.shape[2:], stride, strict=True)]
            skips.append(stage(down(self.ise(x, full))))
        x = skips.pop()
        for up, stage in zip(reversed(self.up), reversed(self.up_stages), strict=True):
            skip = skips.pop()
            x = stage(torch.cat([self.ise(up(x), skip.shape[2:]), skip], dim=1))
        return self.decoder([x])
