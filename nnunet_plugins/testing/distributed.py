"""Two processes on the CPU that train one network together, as nnU-Net does on several GPUs.

nnU-Net's own launcher takes GPUs only, so the network is wrapped here as it wraps it.
"""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from nnunet_plugins.program import leave_out_working_folder
from nnunet_plugins.rows import Backbone
from nnunet_plugins.testing.plans import build, image, smallest
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.names import parse

_SECONDS = 300


def loss_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return a loss over all outputs of a network, with the same random numbers for dropout each time."""
    torch.manual_seed(1)
    outputs = network(x)
    truth = torch.zeros(len(x), *x.shape[2:], dtype=torch.long)
    losses = [
        functional.cross_entropy(out, truth[tuple(map(slice, (len(x), *out.shape[2:])))])
        for out in (outputs if isinstance(outputs, (list, tuple)) else [outputs])
    ]
    return torch.stack(losses).sum()


def make_for_rank(row: Backbone, rank: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a row's network in training mode, and a batch that is another, of another size, for each process."""
    plan = smallest(row)
    network = build(row, plan, deep_supervision=bool(getattr(trainer_class(row.trainer), "deep_supervision", False)))
    return network.train(), image(plan)[: 2 - rank] + rank


def mean_gradients(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what DDP has to make: the mean of what the processes get on their own.

    Raises:
        AssertionError: if a parameter gets no gradient.
    """
    alone = copy.deepcopy(network)
    loss_of(alone, x).backward()
    expected = {}
    for name, parameter in alone.named_parameters():
        if parameter.grad is None:
            raise AssertionError(f"{name} gets no gradient")
        dist.all_reduce(parameter.grad)
        expected[name] = parameter.grad / 2
    return expected


def require_same_weights(network: nn.Module) -> None:
    """Check that both processes have the same, finite weights.

    Raises:
        AssertionError: if they have not.
    """
    flat = torch.cat([tensor.detach().flatten() for tensor in network.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    if not torch.isfinite(flat).all():
        raise AssertionError("weights that are not finite")
    if not torch.equal(*both):
        raise AssertionError("the processes have different weights")


def take_two_steps(row: Backbone, rank: int) -> None:
    """Train a row's network for two steps as one of two processes.

    Raises:
        AssertionError: if the gradients are not the mean of both, or the weights differ.
        RuntimeError: DDP's, if a parameter has no part in the loss.
    """
    network, x = make_for_rank(row, rank)
    expected = mean_gradients(network, x)
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(wrapped.parameters(), 1e-3, momentum=0.99)
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        loss_of(wrapped, x).backward()
        if step == 0:
            for name, parameter in network.named_parameters():
                assert_close(parameter.grad, expected[name], msg=functools.partial("{}: {}".format, name))
        optimizer.step()
    require_same_weights(network)


def join(rank: int, meeting: str) -> None:
    """Become one of two processes, which meet in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def two_processes(trainers: Sequence[str], folder: Path) -> None:
    """Let two processes train the networks of some trainers for two steps each.

    Raises:
        AssertionError: if one fails, with the last line of its output.
    """
    meeting = str(folder / "meeting")
    environment: Mapping[str, str] = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    processes = []
    for rank in range(2):
        command = [sys.executable, "-m", __name__, str(rank), meeting, *trainers]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
            )
        )
    errors = []
    try:
        for process in processes:
            _, error = process.communicate(timeout=_SECONDS)
            if process.returncode:
                lines = error.strip().splitlines() or [f"it ended with {process.returncode}"]
                # Where one fails, the other only says that it has lost it.
                errors.append(next((line for line in reversed(lines) if "Error" in line), lines[-1]))
    finally:
        for process in processes:
            process.kill()
    if errors:
        raise AssertionError(next((text for text in errors if "gloo" not in text), errors[0]))


if __name__ == "__main__":
    leave_out_working_folder()
    number, place, *names = sys.argv[1:]
    join(int(number), place)
    for trainer in names:
        backbone = parse(trainer).backbone
        assert backbone is not None
        take_two_steps(backbone, int(number))
    dist.destroy_process_group()
