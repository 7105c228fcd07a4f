"""Which weights of one network have a place in another, by their names and shapes, and what is a weight at all."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

_STATISTICS = ("running_mean", "running_var")
LEFT_OUT = ".seg_layers."
"""What the names of weights contain that nnU-Net's `-pretrained_weights` does not take: those of the output layers."""


@dataclass(frozen=True)
class Fit:
    """How the weights of two networks go together; all names are in the order of their network.

    Attributes:
        equal: names that both have, in one shape.
        other_shape: names that both have, in two.
        missing: names of the network that are not among the weights.
        foreign: names of the weights that are not in the network.
    """

    equal: tuple[str, ...]
    other_shape: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]


def fit_weights(network: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> Fit:
    """Return which weights go into a network.

    Args:
        network: its state dict.
        weights: those that it is to take.
    """
    common = [name for name in network if name in weights]
    equal = tuple(name for name in common if network[name].shape == weights[name].shape)
    fitting = set(equal)
    return Fit(
        equal,
        tuple(name for name in common if name not in fitting),
        tuple(name for name in network if name not in weights),
        tuple(name for name in weights if name not in network),
    )


def weight_fault(weight: torch.Tensor, of: torch.Tensor | None = None) -> str | None:
    """Say why a tensor is no weight; None if it is one.

    PyTorch would turn any other numbers into a network's, and leave out a tensor that has none.

    Args:
        weight: the tensor.
        of: the network's own in its place; None for one of floating-point numbers.
    """
    dense = weight.layout == torch.strided and not (weight.is_nested or weight.is_meta or weight.is_quantized)
    if of is None or of.is_floating_point():
        if not dense or not weight.is_floating_point():
            return "is no dense tensor of floating-point numbers"
    elif not dense:
        return "is no dense tensor"
    if (weight.is_floating_point() or weight.is_complex()) and not weight.isfinite().all():
        return "holds numbers that are not finite"
    return None


def find_weight_fault(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Say which of the weights for a network is none, and why; None if all are.

    Parameters and the running statistics of norms are asked for; other buffers may hold whatever their network likes.
    """
    own: dict[str, torch.Tensor] = dict(network.named_parameters(remove_duplicate=False))
    own |= {name: buffer for name, buffer in network.named_buffers() if name.endswith(_STATISTICS)}
    for name, tensor in own.items():
        if name in weights and (fault := weight_fault(weights[name], tensor)):
            return f"{name} {fault}"
    return None
