"""The additive attention gate: the coarser map tells which voxels of a shortcut matter.

Attention U-Net (Oktay et al. 2018, arXiv:1804.03999), section 2 and Fig. 2, with the convolutions and norms after the
product that the authors' code has.

    shortcut ─┬─ strided ──────┐
              │                + ─ ReLU ─ 1x1x1 to one channel ─ sigmoid ─ interpolate ─┐
    coarser ──│─ 1x1x1 ────────┘                                                        │
              └──────────────────────────────────────────────────────────────────────── x ─ twice 1x1x1, norm ─
"""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import CONVOLUTION, pointwise, upsample
from nnunet_plugins.networks.layers.double_convolution import norms
from nnunet_plugins.networks.layers.ise import ISE


class Attention(nn.Module):
    """Between 0 and 1 for every voxel of the shortcut; `(N, 1, *size)`."""

    def __init__(self, skip_channels: int, gate_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        dim = len(stride)
        self.stride = tuple(stride)
        self.skip = CONVOLUTION[dim](skip_channels, skip_channels, self.stride, self.stride, bias=False)
        self.gate = pointwise(gate_channels, skip_channels, dim)
        self.score = pointwise(skip_channels, 1, dim)
        self.ise = ISE()

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Map the shortcut `(N, C, *size)` and the map one scale below it to `(N, 1, *size)`."""
        score = self.score(torch.relu(self.skip(skip) + self.gate(gate)))
        return self.ise(upsample(score.sigmoid(), self.stride), skip.shape[2:])


class AttentionGate(nn.Module):
    """A shortcut, weighed voxel by voxel; `(N, C, *size)` to `(N, C, *size)`.

    Args:
        skip_channels: C, channels of the shortcut.
        gate_channels: of the map one scale below it.
        stride: between the two, per axis.
        norm: "batch", "instance" or None.
    """

    def __init__(self, skip_channels: int, gate_channels: int, stride: Sequence[int], *, norm: str | None) -> None:
        super().__init__()
        dim = len(stride)
        self.attention = Attention(skip_channels, gate_channels, stride)
        self.project = nn.Sequential(
            pointwise(skip_channels, skip_channels, dim),
            *norms(norm, skip_channels, dim),
            pointwise(skip_channels, skip_channels, dim),
            *norms(norm, skip_channels, dim),
            nn.ReLU(inplace=True),
        )

    map_names = ("gate",)

    @property
    def map_source(self) -> nn.Module:
        """What computes the map."""
        return self.attention

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Map the shortcut `(N, C, *size)`, by the map one scale below it, to its like."""
        return self.project(skip * self.attention(skip, gate))
