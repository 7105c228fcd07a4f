"""`nnunet-plugins profile`: what a trainer's network costs on a GPU or a CPU, counted on fake tensors in seconds.

That needs no GPU. Where there is one, some training steps are also taken and measured beside that.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.errors import InputError
from nnunet_plugins.forecast import fake_tensors, forecast_inference, has_fake_cuda, loss_of_step, measure_training
from nnunet_plugins.networks.layers.device import compute_as_on
from nnunet_plugins.planning.setting import Setting, build_network, build_optimizer, forecast_setting, shape_of_step


@dataclass(frozen=True)
class Memory:
    """Bytes, in one precision; see `forecast` for what is counted in training, and how well.

    Attributes:
        saved_bytes: what autograd saves for the backward pass.
        peak_bytes_training: the most that lives at one time in a training step.
        peak_bytes_inference: the most that lives at one time when one patch is predicted. The image and the sums of a
            sliding window over it come on top.
    """

    saved_bytes: int
    peak_bytes_training: int
    peak_bytes_inference: int


@dataclass(frozen=True)
class Measured:
    """What training steps took on the GPU, in nnU-Net's mixed precision; the first few do not count.

    Attributes:
        peak_bytes_training: the most that PyTorch had allocated for tensors at one time, which is what is forecast.
        device_bytes: how much less memory the GPU had free in the end: what nvidia-smi shows. It has the CUDA context
            and what PyTorch's allocator holds in reserve besides; what other programs took meanwhile is in it, too.
        seconds_per_step: the median.
    """

    peak_bytes_training: int
    device_bytes: int
    seconds_per_step: float


@dataclass(frozen=True)
class Profile:
    """What a network costs.

    Attributes:
        device: "cuda" or "cpu": some layers compute in another way on each.
        parameters: number of trainable parameters.
        forward_flops: floating-point operations of one forward pass of the batch, as at inference, with all steps of a
            fit where a network has one; a multiplication and an addition are two. Convolutions and matrix products
            are counted, the rest is not.
        step_flops: those of a training step, forward and backward, deep supervision included.
        memory: in float32.
        autocast: in mixed precision, which nnU-Net has on CUDA alone.
        measured: on a GPU, where there is one with enough memory.
    """

    device: str
    parameters: int
    forward_flops: int
    step_flops: int
    memory: Memory
    autocast: Memory | None
    measured: Measured | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers: those of float32 on top, of mixed precision under `autocast`, of a GPU `measured`."""
        content = asdict(self)
        memory, autocast = content.pop("memory"), content.pop("autocast")
        return {**content, **memory, "autocast": autocast}


@dataclass(frozen=True)
class Inference:
    """What predicting with a network costs on a GPU.

    Attributes:
        parameters: number of trainable parameters.
        forward_flops: as in `Profile`.
        peak_bytes: as in `Memory`, in each precision that was asked for.
    """

    parameters: int
    forward_flops: int
    peak_bytes: tuple[int, ...]


def profile_network(trainer: type[nnUNetTrainer], setting: Setting, *, device: str = "cuda") -> Profile:
    """Count what a trainer's network costs.

    Args:
        trainer: any that nnU-Net finds.
        setting: what its network is for.
        device: "cuda" or "cpu"; there need not be one.

    Raises:
        PlanError: if it cannot be built for the setting, or cannot run on fake tensors.
    """
    precisions = (False, True) if device == "cuda" else (False,)
    inference = profile_inference(trainer, setting, device=device, autocast=precisions)
    with _telling(trainer, setting):
        training = [forecast_setting(trainer, setting, autocast=autocast, device=device) for autocast in precisions]
        with fake_tensors():
            network: Any = build_network(trainer, setting).train()  # which may try it, see `networks.adapted`
            with _step_counter() as step:
                measure_training(network, shape_of_step(trainer, setting), autocast=False, device=device)
    measured = None
    if device == "cuda" and torch.cuda.is_available():
        # What does not fit has its forecast.
        with contextlib.suppress(torch.OutOfMemoryError):
            measured = measure_on_gpu(trainer, setting)
    memory = [
        Memory(found.saved_bytes, found.peak_bytes_training, peak)
        for found, peak in zip(training, inference.peak_bytes, strict=True)
    ]
    return Profile(
        device,
        training[0].parameters,
        inference.forward_flops,
        step.get_total_flops(),
        memory[0],
        memory[1] if len(memory) > 1 else None,
        measured,
    )


def profile_inference(
    trainer: type[nnUNetTrainer], setting: Setting, *, device: str = "cuda", autocast: Sequence[bool] = (False,)
) -> Inference:
    """Count what predicting with a trainer's network costs: the part of `profile_network` that takes no training step.

    Args:
        trainer: as there, like the other arguments.
        setting: as there.
        device: as there.
        autocast: whether in mixed precision, once for each precision in which to forecast the memory.

    Raises:
        PlanError: as there.
    """
    # Its steps need a backward pass, which fake tensors have on the CPU alone; they are the same on a GPU.
    is_fitted = getattr(getattr(trainer, "backbone", None), "fitted", False)
    where = "cuda" if device == "cuda" and not is_fitted and has_fake_cuda() else "cpu"
    with _telling(trainer, setting), fake_tensors(), torch.device(where), compute_as_on(device):
        network: Any = build_network(trainer, setting, deep_supervision=False).eval()
        flops = _count_fit(network, setting.shape) if is_fitted else _count_forward(network, setting.shape)
        one = (1, *setting.shape[1:])
        peaks = tuple(forecast_inference(network, one, autocast=mixed) for mixed in autocast)
        return Inference(sum(p.numel() for p in network.parameters() if p.requires_grad), flops, peaks)


@contextlib.contextmanager
def _telling(trainer: type[nnUNetTrainer], setting: Setting) -> Iterator[None]:
    """Turn whatever a foreign network raises on fake tensors into an error that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise PlanError(f"{trainer.__name__} cannot be profiled with {setting}: {error}") from error


def _count_forward(network: nn.Module, shape: Sequence[int]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(*shape))
    return int(counter.get_total_flops())


def _count_fit(network: Any, shape: Sequence[int]) -> int:
    """Count the operations of a fit and of decoding; all steps cost the same, and one at the most is left to take."""
    steps, network.fit_steps = network.fit_steps, 0
    decoding = _count_forward(network, shape)
    network.fit_steps = min(steps, 1)
    return decoding + steps * (_count_forward(network, shape) - decoding)


def _step_counter() -> FlopCounterMode:
    """Count the operations of a training step; PyTorch counts those of grouped convolutions' weights once per group."""

    def backward(
        gradient: list[int],
        x: list[int],
        weight: list[int],
        bias: object,
        stride: object,
        padding: object,
        dilation: object,
        transposed: bool,
        output_padding: object,
        groups: int,
        wanted: list[bool],
        **_: object,
    ) -> int:
        # The gradient of the image, and that of the weight, take as many products as the convolution itself.
        return (wanted[0] + wanted[1]) * conv_flop_count(x, weight, gradient, transposed)

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward})


def measure_on_gpu(trainer: type[nnUNetTrainer], setting: Setting, *, compiled: bool = False) -> Measured:
    """Take eight training steps as nnU-Net does, on random images, and measure the last five.

    Args:
        trainer: any that nnU-Net finds.
        setting: what its network is for.
        compiled: with torch.compile, as nnU-Net trains unless told otherwise.

    Raises:
        torch.OutOfMemoryError: if the GPU is too small.
    """
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    free_before, _ = torch.cuda.mem_get_info()
    network: Any = build_network(trainer, setting).to(device).train()
    parameters = list(network.parameters())
    optimizer = build_optimizer(trainer, network)
    scaler = torch.amp.GradScaler("cuda")
    run = torch.compile(network) if compiled else network
    image = torch.randn(shape_of_step(trainer, setting), device=device)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            loss = loss_of_step(run, image)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 12)
        scaler.step(optimizer)
        scaler.update()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    free_after, _ = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return Measured(peak, free_before - free_after, statistics.median(seconds[3:]))
