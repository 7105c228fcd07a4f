"""Weighted residual summation (WRS): a sum whose terms pass through trainable gates.

FIRENet (Liu et al. 2020, arXiv:2006.15578), section III-A1 and Fig. 2b:
y = sum_k sigmoid(w_k) x_k with w_k ~ U[-0.03, 0.03], so every gate starts near
one half and the network tunes its own connections.
"""

from collections.abc import Sequence

import torch
from torch import nn


class WRS(nn.Module):
    """Sum `num_inputs` feature maps of one shape, each scaled by the sigmoid of its own weight.

    Raises:
        ValueError: if there is no input, or if `forward` gets another number of maps than `num_inputs`.
    """

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        if num_inputs < 1:
            raise ValueError(f"WRS needs at least one input, got num_inputs={num_inputs}")
        self.weight = nn.Parameter(torch.empty(num_inputs).uniform_(-0.03, 0.03))

    @property
    def gates(self) -> torch.Tensor:
        """Current gate values sigmoid(w), shape `(num_inputs,)`, between 0 and 1."""
        return self.weight.detach().sigmoid()

    def forward(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Reduce `num_inputs` maps of shape `(N, C, *size)` to one of the same shape."""
        if len(inputs) != len(self.weight):
            raise ValueError(f"WRS was built for {len(self.weight)} inputs, got {len(inputs)}")
        gates = self.weight.sigmoid().unbind()
        total = gates[0] * inputs[0]
        for gate, x in zip(gates[1:], inputs[1:], strict=True):
            # In the map's type: autocast on CUDA would turn all three to the gate's, float32.
            total = torch.addcmul(total, gate.to(x.dtype), x)
        return total

    def extra_repr(self) -> str:
        """Show the number of inputs in the printed module."""
        return f"num_inputs={len(self.weight)}"
