"""The effective receptive field: how much each voxel of the input moves one voxel in the middle of the output.

The mean of the absolute values of the gradient over inputs of noise (Luo et al. 2016, "Understanding the Effective
Receptive Field in Deep Convolutional Neural Networks", NeurIPS, arXiv:1701.04128, section 2). Luo's output has one
channel; here each input takes one channel, evenly spread over all of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

INPUTS = 8
"""Of noise."""

THRESHOLD, INSIDE = 0.01, 0.95


@dataclass(frozen=True)
class Field:
    """An effective receptive field.

    Attributes:
        values: `(*size)`, 1 at its largest.
        share: of the voxels above `THRESHOLD` of the largest.
        box: voxels along each axis of the smallest box around the middle with `INSIDE` of the sum; it grows along all
            axes at once until it meets the border.
    """

    values: NDArray[np.float64]
    share: float
    box: tuple[int, ...]


def find_field(network: nn.Module, layer: str | None, shape: tuple[int, ...], device: torch.device) -> Field:
    """Return the effective receptive field of the middle voxel.

    Args:
        network: in evaluation mode.
        layer: module whose output is looked at; None for the logits.
        shape: `(1, channels, *size)` of the input.
        device: the network's.

    Raises:
        ValueError: if the gradients are not finite.
        RuntimeError: if none comes from the layer to the input.
    """
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(shape[2:], dtype=torch.float64)
    for number in range(INPUTS):
        x = torch.randn(shape, generator=generator).to(device).requires_grad_()
        output = _output(network, layer, x)
        channel = number * output.shape[1] // INPUTS
        place = (0, channel, *(n // 2 for n in output.shape[2:]))
        (gradient,) = torch.autograd.grad(output[place], x)
        total += gradient[0].abs().sum(dim=0).double().cpu()
    if not total.isfinite().all():
        raise ValueError("its gradients are not finite; has the training diverged?")
    return measure(total.numpy())


def _output(network: nn.Module, layer: str | None, x: torch.Tensor) -> torch.Tensor:
    if layer is None:
        logits: torch.Tensor = network(x)
        return logits
    kept: list[torch.Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        # A copy: what comes next may work in place.
        kept.append(output.clone())

    # Gone before the backward pass, in which layers may run again.
    handle = network.get_submodule(layer).register_forward_hook(hook)
    try:
        network(x)
    finally:
        handle.remove()
    return kept[-1]


def measure(values: NDArray[np.float64]) -> Field:
    """Return the field of summed gradients `(*size)`."""
    largest, total = values.max(), values.sum()
    if not largest > 0:
        return Field(np.zeros_like(values), 0.0, (0,) * values.ndim)
    middle = [n // 2 for n in values.shape]
    radius = 0
    while True:
        box = tuple(slice(max(m - radius, 0), m + radius + 1) for m in middle)
        if values[box].sum() >= INSIDE * total or radius > max(values.shape):
            break
        radius += 1
    size = tuple(
        part.stop - part.start for part in (slice(*one.indices(n)) for one, n in zip(box, values.shape, strict=True))
    )
    return Field(values / largest, float((values > THRESHOLD * largest).mean()), size)
