"""The output layer as nnU-Net expects it, for networks whose outputs are all at full size.

A network that has it as `decoder` keeps to what `rows.Backbone` says of the output.
"""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import pointwise


class Head(nn.Module):
    """The output layer: a 1x1x1 convolution per feature map, summed to the logits.

    Args:
        channels: of each feature map.
        num_classes: output channels.
        dim: spatial dimensions, 2 or 3.
        deep_supervision: return the logits in a list of one, as nnU-Net's loss wrapper expects, instead of bare.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int, *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        # nnU-Net's transfer learning leaves out every key that contains ".seg_layers.".
        self.seg_layers = nn.ModuleList(pointwise(width, num_classes, dim) for width in channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Map one `(N, C, *size)` per layer to logits `(N, num_classes, *size)`."""
        logits = self.seg_layers[0](maps[0])
        for layer, x in zip(list(self.seg_layers)[1:], maps[1:], strict=True):
            logits = logits + layer(x)
        return [logits] if self.deep_supervision else logits
