"""Atrous spatial pyramid pooling in 3D (ASPP3D): one feature map seen at several dilation rates at once.

FIRENet (Liu et al. 2020, arXiv:2006.15578), section III-A1 and Fig. 2b, after DeepLab's 2D module. Parallel 3x3x3
convolutions of different dilation, concatenated and fused by a 1x1x1 convolution; optionally with the image-level
branch of DeepLabv3 (Chen et al. 2017, arXiv:1706.05587, section 3.3), which tells every voxel the mean of all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.blocks import Activation, ConvBlock, Rate, per_axis, pointwise
from nnunet_plugins.networks.layers.recompute import recompute

IMAGE_LEVEL = ("pooled", "pointwise")


class ImageLevel(nn.Module):
    """1x1x1 convolution and activation of the mean over all voxels; `(N, in, *size)` to `(N, out, *size)`.

    No norm: instance norm has no statistics over a single voxel. With `pooled=False` the mean is left out, which keeps
    the parameters and takes the image-level view away.
    """

    def __init__(self, in_channels: int, out_channels: int, dim: int, *, pooled: bool = True, dropout: float = 0.0):
        super().__init__()
        self.pooled = pooled
        self.project = nn.Sequential(pointwise(in_channels, out_channels, dim), Activation(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        if not self.pooled:
            return self.project(x)
        mean = x.mean(dim=tuple(range(2, x.dim())), keepdim=True)
        return self.project(mean).expand(-1, -1, *x.shape[2:])


class ASPP3D(nn.Module):
    """Parallel dilated convolutions, concatenated and fused; `(N, in, *size)` to `(N, out, *size)`, in 2D or 3D.

    Args:
        in_channels: channels of the input.
        out_channels: channels of each branch and of the output.
        kernel_size: kernel of the branches per axis, 3 or (on anisotropic axes) 1; its length sets the dimension.
        dilations: one branch per rate, each one number or one per axis. The paper states (1, 2, 4) and prints
            receptive fields that belong to (1, 2, 3); see `nnunet_plugins.networks.fabric`.
        dropout: dropout probability after each activation.
        image_level: one branch more: "pooled" sees the mean over all voxels (DeepLabv3), "pointwise" has the same
            parameters without the pooling, for ablations.

    Raises:
        ValueError: if `dilations` is empty or holds a rate below 1, or `image_level` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int] = (3, 3, 3),
        *,
        dilations: Sequence[Rate] = (1, 2, 4),
        dropout: float = 0.0,
        image_level: str | None = None,
    ) -> None:
        super().__init__()
        dim = len(kernel_size)
        if not dilations or min(min(per_axis(rate, dim)) for rate in dilations) < 1:
            raise ValueError(f"ASPP3D needs one dilation rate >= 1 per branch, got dilations={tuple(dilations)}")
        if image_level not in (None, *IMAGE_LEVEL):
            raise ValueError(f"image_level must be None or one of {IMAGE_LEVEL}, got {image_level!r}")
        self.branches: Any = nn.ModuleList(
            ConvBlock(in_channels, out_channels, kernel_size, dilation=rate, dropout=dropout) for rate in dilations
        )
        if image_level:
            pooled = image_level == "pooled"
            self.branches.append(ImageLevel(in_channels, out_channels, dim, pooled=pooled, dropout=dropout))
        self.random = dropout > 0
        self.fuse = ConvBlock(len(self.branches) * out_channels, out_channels, (1,) * dim, dropout=dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        convolved = [branch[0](x) for branch in self.branches if isinstance(branch, ConvBlock)]
        z = recompute(self._finish_and_fuse, x, *convolved, preserve_rng_state=self.random)
        return recompute(self.fuse.finish, z, preserve_rng_state=True) if self.random else self.fuse.finish(z)

    def _finish_and_fuse(self, x: torch.Tensor, *convolved: torch.Tensor) -> torch.Tensor:
        """Concatenate all branches, of which the convolutions have been done, and convolve once more."""
        number = len(convolved)
        maps = [branch.finish(z) for branch, z in zip(self.branches[:number], convolved, strict=True)]
        maps += [image_level(x) for image_level in self.branches[number:]]
        return self.fuse[0](torch.cat(maps, dim=1))
