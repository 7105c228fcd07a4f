"""`nnunet-plugins profile`: what a trainer's network costs, counted on fake tensors in seconds and without a GPU."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.planning.dataset import PlanError
from nnunet_plugins.planning.forecast import forecast_inference, measure_training
from nnunet_plugins.planning.setting import Setting, build_network


@dataclass(frozen=True)
class Memory:
    """Bytes, in one precision; see `forecast.Forecast` for what is counted in training.

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
class Profile:
    """What a network costs.

    Attributes:
        parameters: number of trainable parameters.
        forward_flops: floating-point operations of one forward pass of the batch, as at inference; a multiplication and
            an addition are two. Convolutions and matrix products are counted, the rest is not.
        step_flops: those of a training step, forward and backward, deep supervision included.
        memory: in float32.
        autocast: in nnU-Net's mixed precision.
    """

    parameters: int
    forward_flops: int
    step_flops: int
    memory: Memory
    autocast: Memory

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, those of float32 on top and those of mixed precision under `autocast`."""
        content = asdict(self)
        memory, autocast = content.pop("memory"), content.pop("autocast")
        return {**content, **memory, "autocast": autocast}


def profile_network(trainer: type[nnUNetTrainer], setting: Setting) -> Profile:
    """Count what a trainer's network costs.

    Raises:
        PlanError: if it cannot be built for the setting, or cannot run on fake tensors.
    """
    try:
        with FakeTensorMode():
            network = build_network(trainer, setting, deep_supervision=False).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as forward:
                network(torch.zeros(setting.shape))
            one = (1, *setting.shape[1:])
            inference = [forecast_inference(network, one, autocast=autocast) for autocast in (False, True)]
            del network
            memory = []
            for autocast in (False, True):
                network = build_network(trainer, setting).train()
                training = measure_training(network, setting.shape, autocast=autocast)
                memory.append(Memory(training.saved_bytes, training.peak_bytes_training, inference[autocast]))
            network = build_network(trainer, setting).train()
            with FlopCounterMode(display=False) as step:
                measure_training(network, setting.shape, autocast=False)
    except Exception as error:  # whatever a foreign network does on fake tensors
        raise PlanError(f"{trainer.__name__} cannot be profiled with {setting}: {error}") from error
    return Profile(training.parameters, forward.get_total_flops(), step.get_total_flops(), *memory)
