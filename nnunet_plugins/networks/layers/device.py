"""For which kind of device a layer computes: on the CPU some do it in another way, and in another layout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_stands_in_for: str | None = None


def device_type(x: torch.Tensor) -> str:
    """Return the kind of device, such as "cpu" or "cuda", whose way a layer takes for `x`."""
    return _stands_in_for or x.device.type


@contextmanager
def compute_as_on(device: str) -> Iterator[None]:
    """Let all layers compute as on a kind of device, wherever their tensors are.

    A forecast of memory needs it, which follows a GPU's training step on a machine that has none.
    """
    global _stands_in_for
    before, _stands_in_for = _stands_in_for, device
    try:
        yield
    finally:
        _stands_in_for = before
