"""Forecast the memory of a training step before any of it is allocated.

One step, forward, loss and backward, runs on fake tensors, which have a shape and a type but no memory, while every
storage is followed from its first tensor to its last. That takes a second on any machine, with or without a GPU.

What is exact, and what is not:

- For a CPU, all of it.
- For a GPU, types and bytes of a forward pass, and so what is saved for the backward pass. It runs on fake CUDA tensors
  with CUDA's own rules for mixed precision, where there are any (`has_fake_cuda`).
- For a GPU, the peak of a training step is that of a stand-in, because PyTorch runs no backward pass of CUDA tensors
  without a GPU: layers compute as on one (`compute_as_on`), on fake CPU tensors, in the types of the CPU's mixed
  precision but for those in `_AsOnCUDA`. Where the stand-in saves other bytes than the GPU, the difference is added, as
  if what is saved were there at the peak; it is where the backward pass begins.

Counted is what PyTorch allocates for tensors. A GPU's memory also holds the CUDA context, cuDNN's workspaces and the
allocator's gaps, and in distributed training the gradient buckets: leave room for them (`COMFORTABLE`). What
torch.compile changes by fusing operations is not foreseen.
"""

import contextlib
import copy
import functools
import logging
import os
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from nnunet_plugins.container import container_limit
from nnunet_plugins.networks.layers.device import compute_as_on

GIB = 2**30

COMFORTABLE = 0.8
"""Part of a device's memory that a forecast may take when a plan is made to fit."""


@dataclass(frozen=True)
class Forecast:
    """What a network costs in training.

    Attributes:
        parameters: number of trainable parameters.
        saved_bytes: what autograd saves in the forward pass for the backward pass, the loss included, parameters not.
        peak_bytes_training: the most that lives at one time during a step: parameters, gradients, the optimizer's
            state, image and target, what is saved for backward, and what an operation needs on top at that moment.
    """

    parameters: int
    saved_bytes: int
    peak_bytes_training: int


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of all tensors that operations return while the mode is on; each storage counts once.

    Attributes:
        now: bytes that live at present.
        peak: the largest value of `now` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed, unless it is counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd saves for the backward pass within the context; each storage counts once.

    Args:
        network: its parameters are there anyway, and do not count.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        self._own = {p.untyped_storage()._cdata for p in network.parameters()}
        # The storages themselves: a number alone could come back after one is freed.
        self._storages: dict[int, torch.UntypedStorage] = {}

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._storages[storage._cdata] = storage
        return tensor

    def take(self) -> int:
        """Return the bytes counted, and forget them with the tensors that were kept to count them."""
        total = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()
        return total


class _AsOnCUDA(TorchFunctionMode):
    """Lets CPU autocast stand in for CUDA's: keeps the bytes that CUDA keeps, where the two differ in our networks.

    CUDA leaves softmax, group norm and layer norm in float32, does not turn pooling and padding into float32, and saves
    a byte per voxel for dropout. What layers compute again in the backward pass is beyond its reach: there PyTorch
    switches such modes off.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("softmax", "log_softmax"):
            kwargs = {**kwargs, "dtype": torch.float32}
        elif name in ("group_norm", "layer_norm") and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        elif name == "pad" or "pool" in name:
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        elif func is functional.dropout:
            return _dropout(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(x, p, training)[0] if training else x


def _dice_and_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Allocate what nnU-Net's loss does for logits `(N, C, *size)` and labels `(N, 1, *size)`."""
    labels = target.long()
    probabilities = functional.softmax(logits, dim=1, dtype=torch.float32)
    truth = torch.zeros_like(probabilities, requires_grad=False).scatter_(1, labels, 1)
    dice = (probabilities * truth).sum() / probabilities.sum()
    return functional.nll_loss(functional.log_softmax(logits, dim=1, dtype=torch.float32), labels[:, 0]) - dice


def loss_as_in_training(outputs: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a loss that costs what nnU-Net's does, for a network's logits or their list (deep supervision)."""
    maps = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    targets = [torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.int16, device=x.device) for x in maps]
    return torch.stack([_dice_and_cross_entropy(*pair) for pair in zip(maps, targets, strict=True)]).sum()


def loss_of_step(network: Any, image: torch.Tensor) -> torch.Tensor:
    """Return the loss that a network's training step follows, or one that costs as much."""
    if rehearse := getattr(network, "rehearse", None):  # of networks that are fitted to every image
        loss: torch.Tensor = rehearse(image)
        return loss
    return loss_as_in_training(network(image))


def measure_training(
    network: nn.Module, shape: Sequence[int], *, autocast: bool, device: str | None = None, optimizer_copies: int = 2
) -> Forecast:
    """Take one training step of a network on the CPU, and measure what it keeps and needs.

    The tensors are fake where the network's are, else real. The gradients stay in the network.

    Args:
        network: in training mode; returns logits, or a list of them (deep supervision).
        shape: `(batch, channels, *patch)`.
        autocast: mixed precision, which nnU-Net has on CUDA alone; the CPU's stands in for it.
        device: "cpu" or "cuda", for which the layers compute; by default CUDA in mixed precision and the CPU without.
        optimizer_copies: tensors that the optimizer keeps per parameter, of its shape: 1 for SGD with momentum, 2 for
            Adam, 3 with amsgrad.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    with LiveBytes() as live, compute_as_on(device or _device(autocast)):
        for tensor in [*network.parameters(), *network.buffers()]:
            live.add(tensor)
        image = torch.zeros(*shape)
        saved = SavedBytes(network)
        with saved, _cpu_autocast(enabled=autocast):
            loss = loss_of_step(network, image)
        saved_bytes = saved.take()
        loss.backward()
    optimizer_bytes = optimizer_copies * sum(p.nbytes for p in parameters)
    return Forecast(sum(p.numel() for p in parameters), saved_bytes, live.peak + optimizer_bytes)


def saved_on_cuda(network: nn.Module, shape: Sequence[int], *, autocast: bool) -> int:
    """Return the bytes that a GPU saves for the backward pass; the network's tensors are fake and on "cuda"."""
    saved = SavedBytes(network)
    with saved, cuda_autocast(enabled=autocast):
        loss_as_in_training(network(torch.zeros(*shape, device="cuda")))
    return saved.take()


def forecast_inference(network: nn.Module, shape: Sequence[int], *, autocast: bool) -> int:
    """Return the most bytes that live at one time in a forward pass without gradients, parameters included.

    Args:
        network: in evaluation mode; its tensors are fake, or else real memory is taken. It counts for their device.
        shape: `(batch, channels, *patch)`.
        autocast: mixed precision, on CUDA.
    """
    tensors = [*network.parameters(), *network.buffers()]
    device = tensors[0].device
    precision = _cpu_autocast if device.type == "cpu" else cuda_autocast
    with LiveBytes() as live, torch.no_grad(), precision(enabled=autocast):
        for tensor in tensors:
            live.add(tensor)
        network(torch.zeros(*shape, device=device))
    return live.peak


@contextlib.contextmanager
def _cpu_autocast(*, enabled: bool) -> Iterator[None]:
    """Let the CPU's mixed precision stand in for CUDA's."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), _AsOnCUDA() if enabled else nullcontext():
        yield


@contextlib.contextmanager
def cuda_autocast(*, enabled: bool = True) -> Iterator[None]:
    """Follow CUDA's rules for mixed precision, also without a GPU, where `torch.autocast` would switch itself off."""
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.autocast_increment_nesting()  # or the end of an inner one would free the weights' copies, which no GPU does
    try:
        with warnings.catch_warnings():
            # For what stays in its own precision within; PyTorch 2.8 says even then that there is no CUDA.
            warnings.filterwarnings("ignore", message=".*CUDA is not available")
            yield
    finally:
        torch.set_autocast_enabled("cuda", before)
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def _device(autocast: bool) -> str:
    return "cuda" if autocast else "cpu"


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Let new tensors have a shape and a type, but no memory. Torch does not log what fails: the error tells it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode():
            yield
    finally:
        log.disabled = before


@functools.cache
def has_fake_cuda() -> bool:
    """Tell whether fake CUDA tensors can be computed with.

    PyTorch 2.8 asks CUDA's driver for a stream, which a machine without a GPU lacks. On one with a GPU, PyTorch makes a
    first true tensor, for which the GPU may be too full. In both cases the stand-in has to do.
    """
    try:
        with FakeTensorMode():
            one, other = torch.empty(2, 1, device="cuda")
            one.copy_(other)
    except RuntimeError:
        return False
    return True


def forecast_training(
    build: Callable[[], nn.Module],
    shape: Sequence[int],
    *,
    autocast: bool,
    device: str | None = None,
    optimizer_copies: int = 2,
) -> Forecast:
    """Forecast a training step of the network that `build` makes, without allocating it.

    Args:
        build: makes the network, on PyTorch's default device.
        shape: as in `measure_training`, like the other arguments.
        autocast: as there.
        device: as there.
        optimizer_copies: as there.

    Raises:
        ValueError: whatever the network raises for a size that it cannot take.

    Example:
        >>> forecast_training(lambda: nn.Conv3d(1, 2, 3), (2, 1, 16, 16, 16), autocast=False).parameters
        56
    """
    device = device or _device(autocast)
    with fake_tensors():
        network = build()
        if known := getattr(network, "training_bytes", None):
            # Gradient steps in the network depend on the image, which fake tensors do not have.
            saved, peak = known(shape)
            weights = sum(p.numel() for p in network.parameters())
            return Forecast(weights, saved, peak + 4 * weights * (2 + optimizer_copies))
        counted = measure_training(network, shape, autocast=autocast, device=device, optimizer_copies=optimizer_copies)
        if device != "cuda" or not has_fake_cuda():
            return counted
        with torch.device("cuda"):
            saved = saved_on_cuda(build(), shape, autocast=autocast)
    peak = counted.peak_bytes_training + saved - counted.saved_bytes
    return replace(counted, saved_bytes=saved, peak_bytes_training=peak)


def optimizer_copies(optimizer: torch.optim.Optimizer) -> int:
    """Return how many tensors of a parameter's shape an optimizer keeps for it, by a step with another of six numbers.

    The optimizer itself stays as it is.
    """
    parameter = nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.zeros(2, 3)
    other = copy.copy(optimizer)
    other.state = defaultdict(dict)
    other.param_groups = [{**optimizer.param_groups[0], "params": [parameter]}]
    other.step()
    kept = tree_leaves(other.state[parameter])
    return sum(isinstance(tensor, torch.Tensor) and tensor.shape == parameter.shape for tensor in kept)


def device_memory(device: torch.device) -> int | None:
    """Return the memory of a device in bytes, used or not, as far as a container may use it; None if nobody tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(memory, container_limit() or memory)
    return None


def format_bytes(size: float) -> str:
    """Write bytes in GiB, in which GPUs are sold as "GB"."""
    return f"{size / GIB:.{1 if size >= 10 * GIB else 2}f} GiB"


def format_size(size: Sequence[int]) -> str:
    """Write a patch size."""
    return "x".join(map(str, size))
