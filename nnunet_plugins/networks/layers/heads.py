"""Several outputs for deep supervision, as nnU-Net expects them, for networks whose scales are their own."""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import pointwise


class Heads(nn.Module):
    """A 1x1x1 convolution to logits for each of several maps.

    Args:
        channels: of each map.
        num_classes: output channels.
        dim: spatial dimensions, 2 or 3.
        deep_supervision: return all outputs in a list, in the maps' order, instead of one.
        averaged: whether that one is the mean of all, which then have to be of one size, or the first.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        dim: int,
        *,
        deep_supervision: bool,
        averaged: bool = False,
    ) -> None:
        super().__init__()
        self.deep_supervision, self.averaged = deep_supervision, averaged
        # nnU-Net's transfer learning leaves out every key that contains ".seg_layers.".
        self.seg_layers = nn.ModuleList(pointwise(width, num_classes, dim) for width in channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Map one `(N, C, *size)` per layer to logits `(N, num_classes, *size)`."""
        if not (self.deep_supervision or self.averaged):
            return self.seg_layers[0](maps[0])
        outputs = [layer(x) for layer, x in zip(self.seg_layers, maps, strict=True)]
        return outputs if self.deep_supervision else sum(outputs[1:], outputs[0]) / len(outputs)
