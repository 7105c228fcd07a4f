"""Which weights of one network have a place in another, by their names and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

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
