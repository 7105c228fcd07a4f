"""Several GPUs: nnU-Net wraps every network in DDP, with synchronised batch norms. Here two processes on the CPU."""

import copy
import os
import re
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, Sandbox, commands
from test_trainers import EXPECTED, bare, gates, moved
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.networks.implicit import Truth
from nnunet_plugins.planning.splits import read_splits
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.stop_request import STOPPED
from nnunet_plugins.testing.distributed import (
    join,
    loss_of,
    make_for_rank,
    mean_gradients,
    require_same_weights,
    take_two_steps,
)
from nnunet_plugins.testing.plans import build, image, networks
from nnunet_plugins.trainers.firenet import hold_frozen_gates
from nnunet_plugins.trainers.losses import FocalLoss

PLAN = "2d isotropic"
TRAINER = "nnUNetTrainer_3epochs_4iterations_NoMirroring"


def kind(row) -> str:
    """What a network is made of: its options but for numbers, which change how often and how much."""
    options = sorted((key, value if isinstance(value, str) else "") for key, value in row.options.items())
    return repr((row.network, options))


# Of each kind the one with most autofocus layers or dropout.
KINDS = list({kind(row): row for row in reversed(networks(BACKBONES))}.values())
FAMILY = [row for row in KINDS if row.network.endswith("AFNet")]


def take_stages(row, rank: int) -> None:
    """Train FIRENet for three steps, in another stage of its schedule at each."""
    network, x = make_for_rank(row, rank)
    expected = mean_gradients(network, x)
    wrapped = DistributedDataParallel(network)
    optimizer, stage = torch.optim.SGD(wrapped.parameters(), 1e-3, momentum=0.99), [1]
    hold_frozen_gates(optimizer, bare(wrapped, is_ddp=True), lambda: stage[0])
    for stage[0] in (1, 2, 3):
        before = gates(network)
        optimizer.zero_grad(set_to_none=True)
        loss_of(wrapped, x).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"{name} gets no gradient in stage {stage[0]}"
            if stage[0] == 1:
                # Frozen gates must not count in the norm of the gradient, which nnU-Net clips.
                there = torch.zeros_like(expected[name]) if ".wrs." in name else expected[name]
                assert_close(parameter.grad, there, msg=lambda text, name=name: f"{name}: {text}")
        optimizer.step()
        fabric = "bottleneck" not in row.options
        assert moved(before, gates(network)) == EXPECTED[stage[0]] - (set() if fabric else {"bottleneck"})
    require_same_weights(network)


def take_phases(row, rank: int) -> None:
    """Train a network that is fitted to images with labels, MetaSeg in both phases, NISF with codes for five cases."""
    network, x = make_for_rank(row, rank)
    cases = [[0, 1], [3]][rank]
    if codes := row.network.endswith("NISF"):
        network.set_cases(5)
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(wrapped.parameters(), 1e-3)
    target = (x[:, :1] > 0).short()
    for head_only in (False, False, not codes):
        network.truth = Truth(target, FocalLoss(), cases, head_only)
        optimizer.zero_grad(set_to_none=True)
        wrapped(x).backward()
        if codes:
            learning = network.case_codes.grad.abs().sum(dim=1) > 0
            assert learning.tolist() == [True, True, False, True, False]
        optimizer.step()
    require_same_weights(network)


class Idle(nn.Module):
    """A network with a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def run_rank(rank: int, meeting: str) -> None:
    """What one of two processes does."""
    join(rank, meeting)
    for row in KINDS:
        network, _ = make_for_rank(row, rank)
        if isinstance(network, FIRENet) and any(".wrs." in name for name, _ in network.named_parameters()):
            take_stages(row, rank)
        else:
            take_two_steps(row, rank)
        if row.fitted:
            take_phases(row, rank)
        print("trained", row.trainer, flush=True)
    wrapped = DistributedDataParallel(Idle())
    wrapped(torch.zeros(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="did not receive grad"):
        wrapped(torch.zeros(1, 2))
    print("refused")
    dist.destroy_process_group()


def test_every_kind_of_network_trains_in_two_processes(tmp_path):
    """All stages of FIRENet's schedule included. DDP itself raises if a parameter gets no gradient."""
    meeting = str(tmp_path / "meeting")
    outputs = two_processes(lambda rank: f"run_rank({rank}, {meeting!r})", tmp_path)
    expected = [*(f"trained {row.trainer}" for row in KINDS), "refused"]
    assert [output.splitlines() for output in outputs] == [expected, expected]


def train_rank(rank: int, meeting: str, go_on: bool) -> None:
    """Train a fold of dataset 1 as one of two processes; the second one gets a bad image in the second step, a loss
    that is infinite by a constant in the third, and later a signal, unless it goes on from there; then it alone sees
    damaged checkpoints.

    nnU-Net's own launcher takes GPUs only, so the trainer is set up alone and then told that there are two.
    """
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    torch.set_num_threads(1)
    save_json = module.save_json

    def save_slowly(content: object, file: str, *args: object, **options: object) -> None:
        if "splits_final" in file:
            Path(file).touch()
            time.sleep(1)
        save_json(content, file, *args, **options)

    module.save_json = save_slowly
    trainer = get_trainer_from_args("1", "3d_fullres", 0, TRAINER, "small", go_on, torch.device("cpu"))
    trainer.initialize()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    trainer.network = DistributedDataParallel(trainer.network)
    trainer.is_ddp, trainer.local_rank = True, rank
    trainer.loss = trainer._build_loss()  # with several processes it leaves out no output
    if go_on and rank == 1:
        zipfile.ZipFile.testzip = lambda _: "torn"
    maybe_load_checkpoint(trainer, go_on, False)

    asked, all_reduce = [], dist.all_reduce

    def count(*arguments: object) -> None:
        asked.append(trainer.network.training)
        all_reduce(*arguments)

    dist.all_reduce = count  # DDP takes the gradients' mean by itself

    def step(_: nn.Module, __: tuple) -> None:
        if trainer.network.training:
            place = (trainer.current_epoch, len(trainer._progress.losses))
            print("step", *place, flush=True)
            if rank == 1 and place == (1, 2) and not go_on:
                os.kill(os.getpid(), signal.SIGUSR1)

    train_step = trainer.train_step

    def spoil(batch: dict) -> dict:
        if rank == 1 and (trainer.current_epoch, len(trainer._progress.losses)) == (0, 1):
            batch["data"][1] = torch.nan
            print("spoilt", batch["keys"][1], flush=True)
        before = copy.deepcopy(trainer.network.module.state_dict())
        output = train_step(batch)
        if (trainer.current_epoch, len(trainer._progress.losses)) in {(0, 2), (0, 3)}:
            assert_close(trainer.network.module.state_dict(), before, rtol=0, atol=0)
            print("as before", flush=True)
        return output

    def spoil_loss(_: nn.Module, __: tuple, loss: torch.Tensor) -> torch.Tensor:
        is_due = (
            rank == 1 and trainer.network.training and (trainer.current_epoch, len(trainer._progress.losses)) == (0, 2)
        )
        return loss + torch.inf if is_due else loss

    trainer.train_step = spoil
    trainer.loss.register_forward_hook(spoil_loss)
    trainer.network.register_forward_pre_hook(step)
    # The first process is writing the splits when the second one looks for them.
    time.sleep(0.5 * rank)
    trainer.run_training()
    print("asked", sum(asked), flush=True)
    flat = torch.cat([tensor.detach().flatten() for tensor in trainer.network.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    assert torch.equal(both[0], both[1])
    dist.destroy_process_group()


def two_processes(
    call: Callable[[int], str], folder: Path, code: int = 0, env: dict[str, str] | None = None
) -> list[str]:
    """Run a call of this module's, the one for each rank, in two processes; returns what they printed."""
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_distributed as t; t."
    processes = [
        subprocess.Popen(
            [commands() / "python", "-Werror", "-c", start + call(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=env,
        )
        for rank in range(2)
    ]
    # Both at once: each waits for the other, and for a reader of what it prints.
    with ThreadPoolExecutor(2) as readers:
        try:
            outputs = [output for output, _ in readers.map(lambda process: process.communicate(timeout=300), processes)]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [code, code], "\n".join(outputs)
    return outputs


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_both_go_on(small: Sandbox, tmp_path):
    def train(go_on: bool, code: int) -> list[str]:
        meeting = str(tmp_path / f"meeting {go_on}")
        return two_processes(lambda rank: f"train_rank({rank}, {meeting!r}, {go_on})", tmp_path, code, small.env)

    def steps(output: str) -> list[str]:
        return [line for line in output.splitlines() if line.startswith("step")]

    stopped = train(go_on=False, code=STOPPED)
    until = [f"step {epoch} {step}" for epoch in (0, 1) for step in range(4)][:-1]
    until.remove("step 0 1")
    assert [steps(output) for output in stopped] == [until, until]
    assert "Stopped by another process's signal in epoch 1 after iteration 3 of 4" in stopped[0]
    case = re.findall(r"^spoilt (\S+)", stopped[1], flags=re.MULTILINE)[0]
    assert f"epoch 0, iteration 2: the images hold values that are not finite (cases: {case})" in stopped[0]
    assert "epoch 0, iteration 3: the loss is not finite" in stopped[0]
    assert "2 of 4 steps of this epoch were not finite" in stopped[0]
    assert [output.splitlines().count("as before") for output in stopped] == [2, 2]
    preprocessed = small.preprocessed / "Dataset001_Small"
    assert len(read_splits(preprocessed / "splits_final.json")) == 5
    assert [path.name for path in preprocessed.glob("splits*")] == ["splits_final.json"]
    continued = train(go_on=True, code=0)
    rest = ["step 1 3", *(f"step 2 {step}" for step in range(4))]
    assert [steps(output) for output in continued] == [rest, rest]
    assert "Going on after iteration 3 of 4" in continued[0]
    # Once in each of the five steps, in which nothing is wrong.
    assert all("asked 5" in output.splitlines() for output in continued)


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
            loss_of(each, image(PLAN)).backward()
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
            loss_of(network, x).backward()
            orders.append(calls)
            assert len(calls) >= len(set(calls)) > 5
        assert orders[0] == orders[1]
