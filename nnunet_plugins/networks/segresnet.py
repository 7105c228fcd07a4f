"""SegResNet: a large residual encoder with group norm and a small decoder.

Idea: most of the network is its encoder, of pre-activation residual blocks; the decoder interpolates and adds. It won
the BraTS challenge of 2018.
Paper: Myronenko 2018, "3D MRI brain tumor segmentation using autoencoder regularization" (arXiv:1810.11654), section 2
and Table 1.

    image ─ conv 16 ─ 1 block ──────────────────────── + ─ block ─ norm, ReLU, 1x1x1 ─ logits
                         └ stride 2 ─ 2 blocks, 32 ─── + ─ block ┘ 1x1x1, linear interpolation
                                        └ 2 blocks, 64 + ─ block ┘
                                            └ 4 blocks, 128 ┘            block: twice norm, ReLU, conv; + input

Deviations: the paper's branch that reconstructs the image (its variational autoencoder) is left out, as in the
baselines of later papers and in MONAI, whose class gives the same outputs with the same weights. MONAI's default width
is 8, the paper's 32, later papers' 16, which is ours. Strides and kernels are the plan's.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import CONVOLUTION, same_padding, upsample
from nnunet_plugins.networks.layers.double_convolution import initialise_for_relu
from nnunet_plugins.networks.layers.group_norm import GroupNorm
from nnunet_plugins.networks.layers.head import Head
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.pyramid import Pyramid, Sizes

GROUPS = 8
BLOCKS = (1, 2, 2, 4)


def convolve(in_channels: int, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int] | int = 1) -> Any:
    """Build a convolution without bias that maps a size n to n / stride, rounded up."""
    dim = len(kernel_size)
    padding = same_padding(kernel_size, (1,) * dim)
    return CONVOLUTION[dim](in_channels, out_channels, tuple(kernel_size), stride, padding=padding, bias=False)


class Block(nn.Sequential):
    """Norm, ReLU, convolution, twice, and the input added; `(N, C, *size)` to its like."""

    def __init__(self, channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        for _ in range(2):
            self.extend([GroupNorm(GROUPS, channels), nn.ReLU(inplace=True), convolve(channels, channels, kernel_size)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, C, *size)` to its like."""
        return x + super().forward(x)


class SegResNet(Pyramid):
    """SegResNet, in 2D or 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one instead of bare; changes no parameter.
        strides: of the convolutions between the scales, per axis.
        kernel_sizes: kernel per axis at every scale.
        width: channels at full size, a multiple of the 8 groups of the norm; they double at every scale.
        blocks: residual blocks of the encoder at every scale; the decoder has one at each.

    Raises:
        ValueError: for options out of range, and in `forward` for an image of another dimension.

    Example:
        >>> segresnet = SegResNet(1, 3, width=8, blocks=(1, 1), strides=((2, 2),), kernel_sizes=((3, 3),) * 2)
        >>> segresnet(torch.zeros(1, 1, 21, 24)).shape
        torch.Size([1, 3, 21, 24])
    """

    name = "SegResNet"
    rounds_up = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sizes,
        kernel_sizes: Sizes,
        width: int = 16,
        blocks: Sequence[int] = BLOCKS,
    ) -> None:
        super().__init__()
        self.set_strides(strides, kernel_sizes, len(blocks))
        if width < 1 or width % GROUPS:
            raise ValueError(
                f"SegResNet's norm has {GROUPS} groups of channels: width must be a multiple of {GROUPS}, got {width}"
            )
        widths = [width * 2**level for level in range(len(blocks))]
        dim = len(kernel_sizes[0])
        self.first = convolve(input_channels, width, kernel_sizes[0])
        self.down = nn.ModuleList(
            convolve(fine, coarse, kernel, stride)
            for fine, coarse, kernel, stride in zip(widths, widths[1:], kernel_sizes[1:], self.strides, strict=False)
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(*(Block(channels, kernel) for _ in range(number)))
            for channels, kernel, number in zip(widths, kernel_sizes, blocks, strict=True)
        )
        self.up = nn.ModuleList(convolve(coarse, fine, (1,) * dim) for fine, coarse in pairwise(widths))
        self.expansion = nn.ModuleList(
            Block(channels, kernel) for channels, kernel in zip(widths[:-1], kernel_sizes, strict=False)
        )
        self.last = nn.Sequential(GroupNorm(GROUPS, width), nn.ReLU(inplace=True))
        self.ise = ISE()
        self.decoder = Head([width], num_classes, dim, deep_supervision=deep_supervision)
        self.apply(initialise_for_relu)

    @classmethod
    def downsamplings(cls, *, blocks: Sequence[int] = BLOCKS, **_: Any) -> int:
        """Return how many steps there are between the scales of `blocks`."""
        return len(blocks) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`."""
        self.check_size(x.shape[2:])
        skips = [self.encoder[0](self.first(x))]
        for down, stage in zip(self.down, self.encoder[1:], strict=True):
            skips.append(stage(down(skips[-1])))
        x = skips.pop()
        for level in reversed(range(len(skips))):
            up = upsample(self.up[level](x), self.strides[level])
            x = self.expansion[level](skips[level] + self.ise(up, skips[level].shape[2:]))
        return self.decoder([self.last(x)])
