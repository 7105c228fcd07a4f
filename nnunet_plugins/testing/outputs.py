"""What a network's outputs, gradients and types have to be, told in words where they are not."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nnunet_plugins.forecast import cuda_autocast, fake_tensors, has_fake_cuda

_SEVERAL = "A module with several outputs needs a recipe that weighs them, nnunet_plugins.trainers.scales.ScalesTrainer"


def require_outputs(outputs: Any, sizes: Sequence[Sequence[int]], classes: int) -> None:
    """Check that a network returned, with deep supervision, a list with logits of these sizes.

    Raises:
        AssertionError: if it did not.
    """
    if not isinstance(outputs, list):
        raise AssertionError(f"with deep supervision the network returns {type(outputs).__name__} and no list")
    found = [tuple(out.shape) for out in outputs]
    if any(out.dim() != 2 + len(sizes[0]) or out.shape[1] != classes for out in outputs):
        raise AssertionError(f"outputs of the shapes {found}, not one channel for each of {classes} classes")
    if [shape[2:] for shape in found] != [tuple(size) for size in sizes]:
        several = f". {_SEVERAL}" if len(found) > len(sizes) == 1 else ""
        wanted = [tuple(size) for size in sizes]
        raise AssertionError(f"outputs of the sizes {[shape[2:] for shape in found]}, not {wanted}{several}")


def require_gradients(network: nn.Module, *, numbers: bool = True, zeros: bool = False) -> None:
    """Check that every parameter has a gradient.

    Args:
        network: after a backward pass.
        numbers: whether to look at the numbers as well, which tensors without memory do not have.
        zeros: whether a weight's gradient may be all zeros.

    Raises:
        AssertionError: if one has none.
    """
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    if without:
        raise AssertionError(f"no gradient for {', '.join(without[:10])} ({len(without)} in all)")
    for name, parameter in network.named_parameters() if numbers else ():
        gradient: Any = parameter.grad
        if not torch.isfinite(gradient).all():
            raise AssertionError(f"{name} gets a gradient that is not finite")
        if parameter.dim() > 1 and not zeros and not gradient.any():
            raise AssertionError(f"{name} gets a gradient of zeros")


def full_precision_modules(make: Callable[[], nn.Module], shape: Sequence[int]) -> list[str]:
    """Return the names of the modules that return float32 maps in mixed precision on a GPU, in the order of their end.

    A softmax does so on purpose. A test is skipped where PyTorch has no fake CUDA tensors.

    Args:
        make: makes the network, on PyTorch's default device.
        shape: `(batch, channels, *patch)`.
    """
    if not has_fake_cuda():
        pytest.skip("this version of PyTorch has no fake CUDA tensors without a GPU")
    found: list[str] = []

    def note(name: str, output: Any) -> None:
        maps = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.dim() > 2]
        if any(leaf.dtype == torch.float32 for leaf in maps):
            found.append(name or "the network")

    with fake_tensors(), torch.device("cuda"):
        network = make().train()
        for name, module in network.named_modules():
            *_, last = module.modules()
            if not isinstance(last, nn.Softmax):
                module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        with cuda_autocast():
            network(torch.zeros(*shape))
    return found
