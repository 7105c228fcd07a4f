"""U-Net++: a U-Net with nodes between its two paths, and an output of each of the U-Nets that they hold.

Idea: shortcuts are bridged by convolutions, so that what is concatenated is alike; every U-Net of one to four steps is
in the network, and each has an output at full size.
Paper: Zhou et al. 2018, "UNet++: A Nested U-Net Architecture for Medical Image Segmentation" (arXiv:1807.10165),
section 2, Fig. 1 and Table 2. Written from the paper alone; the authors' repository has a licence of its own, which
speaks of a patent that is pending.

    X(0,0)   X(0,1)   X(0,2)   X(0,3)   X(0,4)     X(i,0) is the encoder. X(i,j) sees X(i,0) ... X(i,j-1) and,
    X(1,0)   X(1,1)   X(1,2)   X(1,3)              upsampled, X(i+1,j-1): concatenated and convolved twice.
    X(2,0)   X(2,1)   X(2,2)                       X(0,1) to X(0,4) have an output each.
    X(3,0)   X(3,1)
    X(4,0)

Without deep supervision the output is the mean of all, the paper's accurate mode. With it they come in a list, that of
X(0,4) first. Deviations: no norm by default, as the paper's count of parameters says; the mean is that of the logits
and not of the probabilities; sizes as in `unet_classic`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import MAX_POOL
from nnunet_plugins.networks.layers.double_convolution import Convolutions, initialise_for_relu, upconvolution
from nnunet_plugins.networks.layers.heads import Heads
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.pyramid import Pyramid, Sizes

FEATURES = (32, 64, 128, 256, 512)


class UNetPlusPlus(Pyramid):
    """U-Net++, in 2D or 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the outputs in a list, all at full size, instead of their mean; changes no parameter.
        strides: of the pooling between the scales, per axis.
        kernel_sizes: kernel per axis at every scale.
        features: channels at every scale.
        norm: after each convolution: "batch", "instance" or None.

    Raises:
        ValueError: for options out of range, and in `forward` for an image too small, naming axis and smallest size.

    Example:
        >>> network = UNetPlusPlus(1, 3, features=(4, 8, 16), strides=((2, 2),) * 2, kernel_sizes=((3, 3),) * 3)
        >>> network(torch.zeros(1, 1, 21, 24)).shape
        torch.Size([1, 3, 21, 24])
    """

    name = "U-Net++"

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sizes,
        kernel_sizes: Sizes,
        features: Sequence[int] = FEATURES,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        self.set_strides(strides, kernel_sizes, len(features))
        self.least_voxels = 1 if norm is None else 2
        self.levels = levels = len(features)
        dim = len(kernel_sizes[0])
        self.pools = nn.ModuleList(MAX_POOL[dim](stride, stride) for stride in self.strides)
        self.nodes, self.up = nn.ModuleDict(), nn.ModuleDict()
        for i, (width, kernel) in enumerate(zip(features, kernel_sizes, strict=True)):
            before = features[i - 1] if i else input_channels
            self.nodes[f"{i}_0"] = Convolutions([before, width, width], kernel, norm=norm)
            for j in range(1, levels - i):
                self.up[f"{i}_{j}"] = upconvolution(features[i + 1], width, self.strides[i])
                self.nodes[f"{i}_{j}"] = Convolutions([(j + 1) * width, width, width], kernel, norm=norm)
        self.ise = ISE()
        heads = [features[0]] * (levels - 1)
        self.decoder = Heads(heads, num_classes, dim, deep_supervision=deep_supervision, averaged=True)
        self.apply(initialise_for_relu)

    @classmethod
    def downsamplings(cls, *, features: Sequence[int] = FEATURES, **_: Any) -> int:
        """Return how many steps there are between the scales of `features`."""
        return len(features) - 1

    def output_sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the size of each output for an image's: all have it."""
        return [tuple(size)] * (self.levels - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`, or to all four."""
        self.check_size(x.shape[2:])
        rows: list[list[torch.Tensor]] = []
        for i in range(self.levels):
            x = self.nodes[f"{i}_0"](self.pools[i - 1](x) if i else x)
            rows.append([x])
            # The nodes of one diagonal, from the new one up to the finest scale.
            for j in range(1, i + 1):
                row = rows[i - j]
                up = self.ise(self.up[f"{i - j}_{j}"](rows[i - j + 1][-1]), row[0].shape[2:])
                row.append(self.nodes[f"{i - j}_{j}"](torch.cat([*row, up], dim=1)))
        return self.decoder(rows[0][:0:-1])
