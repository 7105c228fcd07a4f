"""Several GPUs: nnU-Net wraps every network in DDP, with synchronised batch norms. Here two processes on the CPU."""

import copy
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, commands
from test_conformance import NETWORKS, build, image
from test_trainers import EXPECTED, bare, gates, moved
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.firenet import hold_frozen_gates

PLAN = "2d isotropic"


def kind(row) -> str:
    """What a network is made of: its options but for numbers, which change how often and how much."""
    options = sorted((key, value if isinstance(value, str) else "") for key, value in row.options.items())
    return repr((row.network, options))


# Of each kind the one with most autofocus layers or dropout.
KINDS = list({kind(row): row for row in reversed(NETWORKS)}.values())
FAMILY = [row for row in KINDS if row.network.endswith("AFNet")]


def loss(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)  # for dropout
    outputs = network(x)
    truth = torch.zeros(len(x), *x.shape[2:], dtype=torch.long)
    return sum(
        functional.cross_entropy(out, truth[:, : out.shape[2], : out.shape[3]])
        for out in (outputs if isinstance(outputs, (list, tuple)) else [outputs])
    )


def take_steps(row, rank: int) -> None:
    """Train for three steps, FIRENet in another stage at each, on different batches of different sizes."""
    network = build(row, PLAN, deep_supervision=trainer_class(row.trainer).deep_supervision).train()
    x = image(PLAN)[: 2 - rank] + rank
    # What DDP has to make: the mean of what the processes get on their own.
    alone = copy.deepcopy(network)
    loss(alone, x).backward()
    expected = {}
    for name, parameter in alone.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        dist.all_reduce(parameter.grad)
        expected[name] = parameter.grad / 2
    wrapped = DistributedDataParallel(network)
    optimizer, stage = torch.optim.SGD(wrapped.parameters(), 1e-3, momentum=0.99), [1]
    schedule = isinstance(network, FIRENet) and any(".wrs." in name for name in expected)
    if schedule:
        hold_frozen_gates(optimizer, bare(wrapped, is_ddp=True), lambda: stage[0])
    for stage[0] in (1, 2, 3):
        before = gates(network)
        optimizer.zero_grad(set_to_none=True)
        loss(wrapped, x).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"{name} gets no gradient in stage {stage[0]}"
            if stage[0] == 1:
                assert_close(parameter.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")
        optimizer.step()
        if schedule:
            fabric = "bottleneck" not in row.options
            assert moved(before, gates(network)) == EXPECTED[stage[0]] - (set() if fabric else {"bottleneck"})
    flat = torch.cat([tensor.detach().flatten() for tensor in network.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    assert torch.isfinite(flat).all()
    assert torch.equal(both[0], both[1])


class Idle(nn.Module):
    """A network with a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def run_rank(rank: int, meeting: str) -> None:
    """What one of two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for row in KINDS:
        take_steps(row, rank)
        print("trained", row.trainer, flush=True)
    wrapped = DistributedDataParallel(Idle())
    wrapped(torch.zeros(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="did not receive grad"):
        wrapped(torch.zeros(1, 2))
    print("refused")
    dist.destroy_process_group()


def test_every_kind_of_network_trains_in_two_processes(tmp_path):
    """All stages of FIRENet's schedule included. DDP itself raises if a parameter gets no gradient."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_distributed as t; t.run_rank"
    command = [commands() / "python", "-Werror", "-c"]
    processes = [
        subprocess.Popen(
            [*command, f"{code}({rank}, {str(tmp_path / 'meeting')!r})"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    # Both at once: each waits for the other, and for a reader of what it prints.
    with ThreadPoolExecutor(2) as readers:
        outputs = [output for output, _ in readers.map(lambda process: process.communicate(timeout=300), processes)]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    expected = [*(f"trained {row.trainer}" for row in KINDS), "refused"]
    assert [output.splitlines() for output in outputs] == [expected, expected]


def batch_norms(network: nn.Module) -> list[str]:
    norms = (nn.BatchNorm2d, nn.BatchNorm3d)
    return [name for name, module in network.named_modules() if isinstance(module, norms)]


@pytest.mark.parametrize("row", FAMILY, ids=lambda row: row.trainer)
class TestSynchronisedBatchNorm:
    """nnU-Net converts batch norms before it wraps a network: each one is replaced by another module."""

    def test_every_norm_is_converted_and_the_weights_fit(self, row):
        network = build(row, PLAN)
        names, before = batch_norms(network), copy.deepcopy(network.state_dict())
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        assert names
        assert [name for name, m in converted.named_modules() if isinstance(m, nn.SyncBatchNorm)] == names
        assert batch_norms(converted) == []
        assert list(converted.state_dict()) == list(before)
        build(row, PLAN).load_state_dict(converted.state_dict(), strict=True)
        converted.load_state_dict(before, strict=True)

    def test_what_is_computed_twice_uses_the_converted_norms(self, row):
        """Nothing may hold on to the norms of before; and no batch counts twice in the running statistics."""
        network = build(row, PLAN).train()
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
        for each in (network, converted):
            loss(each, image(PLAN)).backward()
        assert_close(converted.state_dict(), network.state_dict())
        for name, parameter in converted.named_parameters():
            assert_close(parameter.grad, network.get_parameter(name).grad)
        norms = [module for module in converted.modules() if isinstance(module, nn.SyncBatchNorm)]
        assert all(norm.num_batches_tracked == 1 for norm in norms)

    def test_processes_with_other_batches_synchronise_in_the_same_order(self, row):
        """Each call of such a norm waits for the other processes, also when it computes something again."""
        orders = []
        for x in (image(PLAN), image(PLAN)[:1] * 3):
            network = nn.SyncBatchNorm.convert_sync_batchnorm(build(row, PLAN)).train()
            calls: list[str] = []
            for name, module in network.named_modules():
                if isinstance(module, nn.SyncBatchNorm):
                    module.register_forward_pre_hook(lambda *_, name=name, calls=calls: calls.append(name))
            loss(network, x).backward()
            orders.append(calls)
            assert len(calls) >= len(set(calls)) > 5
        assert orders[0] == orders[1]
