"""Input size equaliser (ISE): give back, or take away, the one voxel that pooling and upsampling disagree about.

FIRENet (Liu et al. 2020, arXiv:2006.15578), section III-A1.
Pooling floors odd sizes, so the map that comes back up is one voxel short and is padded;
a strided convolution (kernel 3, stride 2, padding 1) rounds up, so its map comes back one voxel long and is cropped.
The paper leaves the padding mode open; the last voxel is replicated here, which keeps intensities plausible.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


class ISE(nn.Module):
    """Pad or crop each spatial axis at its far end, by at most one voxel, to a target size. Has no parameters."""

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Map `(N, C, *any)` to `(N, C, *size)`.

        Raises:
            ValueError: if an axis differs from `size` by more than one voxel, which no pooling by two explains.
        """
        spatial = tuple(x.shape[2:])
        if torch.compiler.is_compiling():
            return self._any_size(x, size)
        if spatial == tuple(size):
            return x
        for axis, (have, wanted) in enumerate(zip(spatial, size, strict=True)):
            if abs(have - wanted) > 1:
                raise ValueError(
                    f"ISE: spatial axis {axis} has {have} voxels and should have {wanted}; "
                    "it mends at most one voxel per axis, so two feature maps of different scales were mixed up"
                )
            if have < wanted:
                # Not `functional.pad`: autocast makes it float32 on CPUs, and its gradient varies on GPUs.
                x = torch.cat([x, x.narrow(axis + 2, have - 1, 1)], dim=axis + 2)
            x = x.narrow(axis + 2, 0, wanted)
        return x

    def _any_size(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Do the same without asking which sizes are odd, so that one compiled network serves all sizes."""
        for axis, wanted in enumerate(size):
            have = x.shape[axis + 2]
            if not statically_known_true(have == wanted):
                x = x.index_select(axis + 2, torch.arange(wanted, device=x.device).clamp(max=have - 1))
        return x
