"""Group norm that keeps half precision, where autocast on GPUs would turn the map, and all that follows, to float32."""

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.layers.blocks import type_kept


class GroupNorm(nn.GroupNorm):
    """PyTorch's, in the type of its input; its sums are in single precision whatever that is.

    Wu and He 2018, "Group Normalization" (arXiv:1803.08494).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, C, *size)` to its like."""
        with type_kept(x):
            return functional.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
