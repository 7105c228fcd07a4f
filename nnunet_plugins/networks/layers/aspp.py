"""Atrous spatial pyramid pooling in 3D (ASPP3D): one feature map seen at several dilation rates at once.

FIRENet (Liu et al. 2020, arXiv:2006.15578), section III-A1 and Fig. 2b, after DeepLab's 2D module.
Parallel 3x3x3 convolutions of different dilation,
concatenated and fused by a 1x1x1 convolution.
"""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import ConvBlock


class ASPP3D(nn.Module):
    """Parallel dilated convolutions, concatenated and fused; `(N, in, *size)` to `(N, out, *size)`, in 2D or 3D.

    Args:
        in_channels: channels of the input.
        out_channels: channels of each branch and of the output.
        kernel_size: kernel of the branches per axis, 3 or (on anisotropic axes) 1; its length sets the dimension.
        dilations: one branch per rate. The paper states (1, 2, 4) and prints receptive fields that belong to
            (1, 2, 3); see `nnunet_plugins.networks.fabric`.
        dropout: dropout probability after each activation.

    Raises:
        ValueError: if `dilations` is empty or holds a rate below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int] = (3, 3, 3),
        *,
        dilations: Sequence[int] = (1, 2, 4),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ValueError(f"ASPP3D needs one dilation rate >= 1 per branch, got dilations={tuple(dilations)}")
        self.branches = nn.ModuleList(
            ConvBlock(in_channels, out_channels, kernel_size, dilation=rate, dropout=dropout) for rate in dilations
        )
        self.fuse = ConvBlock(len(dilations) * out_channels, out_channels, (1,) * len(kernel_size), dropout=dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        return self.fuse(torch.cat([branch(x) for branch in self.branches], dim=1))
