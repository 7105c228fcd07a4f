"""Sine layers of coordinate networks, with weights of their own for every image of a batch.

Source: Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation Functions" (SIREN,
arXiv:2006.09661), section 3.2 and supplement 1.5.
"""

import math

import torch
from torch import nn


def affine(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Map points `(B, n, in)` to `W x + b`, `(B, n, out)`, with weights `(B, out, in)` and `(B, out)`."""
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def sine_layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, omega: float) -> torch.Tensor:
    """Map points `(B, n, in)` to `sin(omega (W x + b))`, `(B, n, out)`, with weights as in `affine`."""
    # There are fewer weights than features; as a factor of the product, omega would be one of every gradient as well.
    return torch.sin(affine(x, omega * weight, omega * bias))


def initialise_sine(layer: nn.Linear, omega: float, *, first: bool = False) -> None:
    """Draw the weights of a linear map so that its features are spread alike in every layer; the bias stays.

    Uniform within 1 / in for the map of the coordinates, within sqrt(6 / in) / omega for all that follow.
    """
    inputs = layer.in_features
    bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega
    nn.init.uniform_(layer.weight, -bound, bound)
