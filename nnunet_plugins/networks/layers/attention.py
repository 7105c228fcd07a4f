"""Seeing where a network attends, whichever of its layers do.

A layer takes part by saying which of its modules computes its maps, and what they are called (`Attending`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import nn


class Attending(Protocol):
    """A layer with attention maps."""

    @property
    def map_source(self) -> nn.Module:
        """The module of the layer whose output are its maps, `(N, K, *size)`."""

    @property
    def map_names(self) -> Sequence[str]:
        """K names: of what each map is the share."""


def attending(network: nn.Module) -> dict[str, Attending]:
    """Return the layers that have attention maps, by name: autofocus layers and attention gates."""
    return {
        name: cast("Attending", module)
        for name, module in network.named_modules()
        if hasattr(module, "map_source") and hasattr(module, "map_names")
    }


@contextmanager
def record_attention(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the attention maps of all autofocus layers and attention gates while the network runs.

    Yields a dictionary, filled by each forward pass: an autofocus layer's name to its maps `(N, K, *size)`, in the
    order of the layer's `rates`, which at every voxel sum to one; a gate's name to its map `(N, 1, *size)`.

    Example:
        >>> from nnunet_plugins.networks.layers.autofocus import AutofocusConv
        >>> layer = AutofocusConv(4, 8, rates=(1, 2))
        >>> with record_attention(layer) as maps:
        ...     _ = layer(torch.zeros(1, 4, 9, 9, 9))
        >>> maps[""].shape
        torch.Size([1, 2, 9, 9, 9])
    """
    maps: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            maps[name] = output.detach()

        return hook

    handles = [layer.map_source.register_forward_hook(keep(name)) for name, layer in attending(network).items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def mean_attention(network: nn.Module, images: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the mean of each map of attention that some images are given, by layer and name of the map.

    Args:
        network: run once on the images, if it has such layers.
        images: `(N, C, *size)`.
    """
    layers = attending(network)
    if not layers:
        return {}
    with torch.no_grad(), record_attention(network) as maps:
        network(images)
    means = {layer: one.float().mean(dim=(0, *range(2, one.dim()))).tolist() for layer, one in maps.items()}
    return {layer: dict(zip(layers[layer].map_names, shares, strict=True)) for layer, shares in means.items()}
