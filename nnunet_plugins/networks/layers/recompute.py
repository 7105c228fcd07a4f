"""Compute cheap things twice instead of keeping them: memory for a little time.

A thin layer over PyTorch's checkpoints. They stop the second computation as soon as all is there that the backward pass
asks for; a convolution that ends a region is therefore not repeated, only its input is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(
    function: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
    norms: Iterable[nn.Module] = (),
    preserve_rng_state: bool = False,
) -> torch.Tensor:
    """Return `function(*inputs)`, of which the backward pass keeps the inputs alone and computes the rest again.

    Args:
        function: of tensors alone; what else it uses must not have changed until the backward pass.
        inputs: its arguments.
        norms: modules in it whose running statistics must not count the same batch a second time.
        preserve_rng_state: whether it draws random numbers, which then are the same again.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    if torch.compiler.is_compiling():
        # The compiler itself sees to it that nothing counts twice.
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    norms, calls = list(norms), 0

    def run(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            return function(*arguments)
        with _running_statistics_kept(norms):
            return function(*arguments)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=preserve_rng_state)


@contextmanager
def _running_statistics_kept(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Let the modules write to copies of their buffers, for as long as the context lasts."""
    originals = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in originals:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in originals:
            setattr(norm, name, buffer)
