"""Trainings that are interrupted, run out of space or meet bad numbers lose nothing, through nnU-Net's own commands."""

import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import ROOT, Sandbox, script, write_dataset
from test_names import FakeDataset
from torch.testing import assert_close

from nnunet_plugins.stop_request import STOPPED, StopRequest
from nnunet_plugins.trainers.checkpoints import load_checkpoint
from nnunet_plugins.trainers.finite import are_finite
from nnunet_plugins.trainers.fold_folder import RUN_FILE
from nnunet_plugins.trainers.progress import (
    PROGRESS,
    Progress,
    minutes_between_checkpoints,
    random_state,
    set_random_state,
)
from nnunet_plugins.trainers.reliable import SIGNALS

pytestmark = pytest.mark.slow
DATASET = "Dataset001_Small"
FAULTS = "nnUNetTrainerFaults"
CHECKPOINTS = ("final", "latest", "best")


@pytest.fixture(scope="module")
def faulty(small: Sandbox) -> Sandbox:
    small.env["nnUNet_extTrainer"] = str(ROOT / "tests" / "faults")
    small.env["GO"] = str(small.root / "go")
    return small


def fold(sandbox: Sandbox, trainer: str = FAULTS, dataset: str = DATASET) -> Path:
    return sandbox.results / dataset / f"{trainer}__small__3d_fullres" / "fold_0"


def command(trainer: str, *options: str) -> tuple[object, ...]:
    return ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu", *options)


def train(sandbox: Sandbox, *options: str, trainer: str = FAULTS, ok: bool = True, **env: str) -> str:
    return sandbox.run(*command(trainer, *options), ok=ok, **env)


def interrupt(
    sandbox: Sandbox, hold: str, number: int, *options: str, trainer: str = FAULTS, group: bool = False, **env: str
) -> str:
    """Train until it holds, send the signal, let it go on; returns the output, with the exit code in its last line.

    With `group` its worker processes get the signal, too, as from a terminal, `timeout` and a cluster's scheduler.
    """
    go = Path(sandbox.env["GO"])
    go.unlink(missing_ok=True)
    first, *rest = command(trainer, *options)
    # Preloaded processes are children of their server, and in its group.
    program = Path(sys.executable).with_name(str(first)) if group else first
    process = sandbox.start(program, *rest, alone=group, HOLD=hold, **env)
    limit = threading.Timer(300, process.kill)
    limit.start()
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line == "holding\n":
            os.killpg(process.pid, number) if group else process.send_signal(number)
            if number == signal.SIGKILL:
                continue
            if hold not in ("whole images", "case"):
                # The answer to the signal, before the training may go on.
                seen.append(process.stdout.readline() + process.stdout.readline())
            go.touch()
    limit.cancel()
    process.stdout.close()
    assert "holding\n" in seen, "".join(seen)[-3000:]
    return "".join(seen) + f"exit code {process.wait()}"


def weights(
    sandbox: Sandbox, trainer: str = FAULTS, name: str = "final", dataset: str = DATASET
) -> dict[str, torch.Tensor]:
    return load_checkpoint(fold(sandbox, trainer, dataset) / f"checkpoint_{name}.pth")["network_weights"]


def all_finite(state: dict[str, torch.Tensor]) -> bool:
    return all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def fresh(sandbox: Sandbox, trainer: str = FAULTS) -> None:
    for path in fold(sandbox, trainer).glob("checkpoint_*"):
        path.unlink()
    for path in fold(sandbox, trainer).glob("earlier*"):
        shutil.rmtree(path)


def checkpoints(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("checkpoint_*.pth")}


def losses(output: str) -> list[str]:
    return re.findall(r"train_loss (\S+)", output)


def steps(output: str) -> dict[str, str]:
    """Epoch and number of each training step, with checksums of its images and of the weights before it."""
    return dict(re.findall(r"^step (\d+ \d+): (.*)", output, re.MULTILINE))


@pytest.fixture(scope="module")
def uninterrupted(faulty: Sandbox) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """Final weights and output of trainings to which nothing happened."""
    found = {}
    for trainer in (FAULTS, "nnUNetTrainerFaultsFIRENet"):
        output = train(faulty, trainer=trainer)
        found[trainer] = (weights(faulty, trainer), output)
    return found


@pytest.mark.parametrize(
    ("hold", "name", "trainer"),
    [
        ("train 1 2", "SIGTERM", FAULTS),
        ("train 2 0", "SIGINT", FAULTS),
        ("validate 1 4", "SIGUSR1", FAULTS),
        ("train 1 1", "SIGUSR1", "nnUNetTrainerFaultsFIRENet"),
    ],
)
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(faulty, uninterrupted, hold, name, trainer):
    fresh(faulty, trainer)
    output = interrupt(faulty, hold, getattr(signal, name), trainer=trainer)
    assert output.endswith(f"exit code {STOPPED}")
    assert f"{name}: saving a checkpoint" in output
    kind, epoch, step = hold.split()
    done = int(step) + (kind == "train")
    assert re.search(rf"Stopped by {name} in epoch {epoch} after iteration {done} of \d. checkpoint_latest", output)
    second = train(faulty, "--c", trainer=trainer)
    assert re.findall(r": Epoch (\d)", second)[0] == epoch
    assert f"Going on after iteration {done} of" in second
    assert "logging issue" not in second
    expected, whole = uninterrupted[trainer]
    # They tell the first step that differs, and whether by its images or its weights.
    assert steps(output) | steps(second) == steps(whole)
    assert_close(weights(faulty, trainer), expected, rtol=0, atol=0)
    assert losses(output) + losses(second) == losses(whole)
    assert sorted(path.name for path in fold(faulty, trainer).glob("checkpoint_*")) == [
        "checkpoint_best.pth",
        "checkpoint_final.pth",
    ]


def test_a_kill_costs_no_more_than_the_time_between_checkpoints(faulty, uninterrupted):
    """Also one that comes while a checkpoint is being written."""
    fresh(faulty)
    often = {"nnUNet_plugins_save_minutes": "0.00001"}
    first = interrupt(faulty, "train 1 2", signal.SIGKILL, **often)
    assert first.endswith(f"exit code {-signal.SIGKILL}")
    second = interrupt(faulty, "write 1", signal.SIGKILL, "--c", **often)
    assert "Going on after iteration 2 of 4" in second
    torn = fold(faulty) / "checkpoint_latest.partial.pth"
    assert torn.exists()
    third = train(faulty, "--c")
    assert "Going on after iteration 2 of 4" in third
    assert not torn.exists()
    expected, whole = uninterrupted[FAULTS]
    for output in (first, second, third):
        taken = steps(output)
        assert taken == {step: sums for step, sums in steps(whole).items() if step in taken}
    assert steps(first) | steps(third) == steps(whole)
    assert_close(weights(faulty), expected, rtol=0, atol=0)


def test_stopped_during_the_last_validation(faulty, uninterrupted):
    """There is nothing to save: it ends at once, and `--c` validates again."""
    output = interrupt(faulty, "whole images", signal.SIGTERM, "--c")
    assert output.endswith(f"exit code {STOPPED}")
    summary = fold(faulty) / "validation" / "summary.json"
    summary.unlink(missing_ok=True)
    train(faulty, "--c")
    assert summary.exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_stopped_in_a_validation_whose_workers_end_first(faulty, uninterrupted, name):
    """One of them holds the lock of their queue, for which nnU-Net's pool then waits at its end."""
    shutil.rmtree(fold(faulty) / "validation", ignore_errors=True)
    output = interrupt(faulty, "case", getattr(signal, name), "--c", group=True)
    assert output.endswith(f"exit code {STOPPED}")
    assert f"Stopped by {name} before the validation was done; go on with --c." in output
    assert f"{name}: ended without waiting for worker processes" in output
    train(faulty, "--c")
    assert (fold(faulty) / "validation" / "summary.json").exists()


def test_full_disk_spares_the_checkpoint_before(faulty, uninterrupted):
    fresh(faulty)
    limited = {"nnUNet_plugins_save_minutes": "0.00001", "LIMIT": "1 400000"}
    output = train(faulty, ok=False, **limited)
    assert "WARNING: nnunet_plugins:" in output
    assert re.search(r"checkpoint_latest.pth could not be written: .* MiB free\)", output)
    assert output.strip().splitlines()[-1].endswith("Make room, then go on with --c.")
    assert re.findall(r": Epoch (\d)", output) == ["0", "1", "2"]
    assert not list(fold(faulty).glob("*.partial.*"))
    # Whole, and of the time before the disk was full.
    assert load_checkpoint(fold(faulty) / "checkpoint_latest.pth")["current_epoch"] in (0, 1)
    second = train(faulty, "--c")
    assert_close(weights(faulty), uninterrupted[FAULTS][0], rtol=0, atol=0)
    assert re.findall(r": Epoch (\d)", second)[-1] == "2"


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[len(content) // 2] ^= 255
    elif how == "empty":
        content = bytearray()
    path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def stopped_once(faulty: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy of the fold of a training that was stopped in its second epoch."""
    fresh(faulty)
    interrupt(faulty, "train 1 2", signal.SIGTERM)
    return shutil.copytree(fold(faulty), tmp_path_factory.mktemp("stopped") / "fold")


@pytest.fixture
def stopped(faulty: Sandbox, stopped_once: Path) -> None:
    """As if that training had been stopped just now."""
    shutil.rmtree(fold(faulty))
    shutil.copytree(stopped_once, fold(faulty))


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_unreadable_checkpoint_is_named_and_the_next_best_taken(faulty, stopped, how):
    assert (fold(faulty) / "checkpoint_best.pth").exists()
    damage(fold(faulty) / "checkpoint_latest.pth", how)
    output = train(faulty, "--c")
    assert re.search(r"WARNING: \S+checkpoint_latest.pth .*next best", output)
    assert re.findall(r": Epoch (\d)", output) == ["1", "2"]
    assert "Going on after" not in output


def test_no_readable_checkpoint_starts_afresh(faulty, uninterrupted):
    train(faulty, "--c")
    for path in fold(faulty).glob("checkpoint_*"):
        damage(path, "cut")
    last = train(faulty, "--val", ok=False).strip().splitlines()[-1]
    assert "checkpoint_final.pth" in last
    assert "Train with --c" in last
    output = train(faulty, "--c")
    assert "can be read; training starts afresh" in output
    assert losses(output) == losses(uninterrupted[FAULTS][1])


@pytest.mark.parametrize("what", ["module", "disk"])
def test_a_checkpoint_that_cannot_be_read_here_is_not_trained_over(faulty, stopped, monkeypatch, tmp_path, what):
    if what == "module":
        (tmp_path / "only_elsewhere.py").write_text("class Thing: pass")
        monkeypatch.syspath_prepend(str(tmp_path))
        path = fold(faulty) / "checkpoint_latest.pth"
        content = load_checkpoint(path, trusted=True)
        content["init_args"]["thing"] = __import__("only_elsewhere").Thing()
        torch.save(content, path)
    before = checkpoints(fold(faulty))
    output = train(faulty, "--c", ok=False, **({"UNREADABLE": "1"} if what == "disk" else {}))
    last = output.strip().splitlines()[-1]
    assert ("No module named 'only_elsewhere'" if what == "module" else "Input/output error") in last
    assert "nothing is trained over it" in last
    assert checkpoints(fold(faulty)) == before
    assert not steps(output)


def test_a_checkpoint_of_the_first_version_goes_on_bit_by_bit(faulty, stopped, uninterrupted):
    """It names no run, and nor does its folder."""
    for path in fold(faulty).glob("checkpoint_*.pth"):
        content = load_checkpoint(path, trusted=True)
        state = content["optimizer_state"][PROGRESS]
        content["optimizer_state"][PROGRESS] = {key: state[key] for key in ("losses", "seconds", "bad_steps", "random")}
        torch.save(content, path)
    (fold(faulty) / RUN_FILE).unlink()
    assert "Going on after iteration 3 of 4" in train(faulty, "--c")
    assert_close(weights(faulty), uninterrupted[FAULTS][0], rtol=0, atol=0)
    assert not list(fold(faulty).glob("earlier_*"))


def test_a_run_that_was_given_up_is_moved_aside_and_never_resumed(faulty, uninterrupted):
    fresh(faulty)
    interrupt(faulty, "train 2 0", signal.SIGTERM)
    given_up = checkpoints(fold(faulty))
    # Stopped before its first step, it has changed nothing; in its first epoch, it has taken the folder.
    output = interrupt(faulty, "start", signal.SIGTERM)
    assert "The checkpoints are as they were" in output
    assert output.endswith(f"exit code {STOPPED}")
    assert checkpoints(fold(faulty)) == given_up
    output = interrupt(faulty, "train 0 1", signal.SIGTERM)
    assert checkpoints(fold(faulty) / "earlier_1") == given_up
    assert output.count("deletes it") == 1
    second = train(faulty, "--c")
    assert "Going on after iteration 2 of 4" in second
    assert re.findall(r": Epoch (\d)", second) == ["0", "1", "2"]
    assert_close(weights(faulty), uninterrupted[FAULTS][0], rtol=0, atol=0)


def test_old_files_are_moved_after_the_weights_to_begin_with_were_read_and_not_to_validate(faulty):
    trainer = "nnUNetTrainerOwn"
    folder = fold(faulty, trainer)
    for path in folder.glob("checkpoint_*"):
        path.unlink()
    train(faulty, trainer=trainer)
    before = checkpoints(folder)
    summary = (folder / "validation" / "summary.json").read_bytes()
    train(faulty, "--val", trainer=trainer)
    assert checkpoints(folder) == before
    assert not list(folder.glob("earlier_*"))
    output = train(faulty, "-pretrained_weights", str(folder / "checkpoint_final.pth"), trainer=trainer)
    assert "Loading pretrained weights" in output
    assert checkpoints(folder / "earlier_1") == before
    assert (folder / "earlier_1" / "validation" / "summary.json").read_bytes() == summary
    assert set(checkpoints(folder)) == {"checkpoint_final.pth", "checkpoint_best.pth"}


def test_a_checkpoint_without_a_training_in_it_is_refused(faulty, begun):
    path = fold(faulty) / "checkpoint_best.pth"
    before = path.read_bytes()
    whole = torch.load(path, weights_only=False)
    torch.save({key: whole[key] for key in ("network_weights", "init_args", "trainer_name")}, path)
    last = train(faulty, "--c", ok=False).strip().splitlines()[-1]
    path.write_bytes(before)
    assert "checkpoint_best.pth is no training to go on from: it has no current_epoch and no optimizer_state" in last
    assert checkpoints(fold(faulty)) == begun


@pytest.mark.parametrize("name", SIGNALS)
def test_a_stop_during_the_start_up_leaves_the_checkpoints_as_they_are(faulty, begun, name):
    output = interrupt(faulty, "start", getattr(signal, name), "--c")
    assert output.endswith(f"exit code {STOPPED}")
    assert "before the first step. The checkpoints are as they were; go on with --c. Exit code 75" in output
    assert checkpoints(fold(faulty)) == begun


def test_a_start_up_that_fails_is_no_stop(faulty, begun):
    output = train(faulty, "--c", ok=False, FAIL="start")
    assert "the start-up failed" in output.strip().splitlines()[-1]
    assert "Exit code 75" not in output
    assert checkpoints(fold(faulty)) == begun


def test_a_stop_while_old_files_cannot_be_moved_saves_nothing_over_them(faulty, stopped):
    before = checkpoints(fold(faulty))
    output = interrupt(faulty, "move", signal.SIGTERM)
    assert output.endswith("exit code 1")
    assert "could not be moved aside" in output.splitlines()[-2]
    assert checkpoints(fold(faulty)) == before
    # The next start, which may, moves them into the folder that was begun.
    output = train(faulty)
    assert checkpoints(fold(faulty) / "earlier_1") == before
    assert re.search(r"was moved to \S+/earlier_1, \d+ MiB: `rm -r '\S+'` deletes it", output)


@pytest.fixture(scope="module")
def begun(faulty: Sandbox, stopped_once: Path) -> dict[str, bytes]:
    """Checkpoints of a training that was interrupted in an epoch."""
    shutil.rmtree(fold(faulty))
    shutil.copytree(stopped_once, fold(faulty))
    return checkpoints(fold(faulty))


def test_a_second_training_in_the_same_folder_is_refused(faulty):
    fresh(faulty)
    go = Path(faulty.env["GO"])
    go.unlink(missing_ok=True)
    first = faulty.start(*command(FAULTS), HOLD="train 0 1")
    assert first.stdout is not None
    assert any(line == "holding\n" for line in first.stdout)
    for options in ((), ("--c",)):
        output = train(faulty, *options, ok=False)
        assert "another training is running in" in output.strip().splitlines()[-1]
        assert not steps(output)
    go.touch()
    first.communicate()
    assert first.returncode == 0


def test_nobody_reads_the_output_any_more(faulty, uninterrupted):
    """As `tee`, which ends by the same Ctrl-C, or a terminal that was closed."""
    fresh(faulty)
    go = Path(faulty.env["GO"])
    go.unlink(missing_ok=True)
    process = faulty.start(*command(FAULTS), HOLD="train 1 2")
    assert process.stdout is not None
    while process.stdout.readline() != "holding\n":
        pass
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    go.touch()
    assert process.wait(60) == STOPPED
    log = max(fold(faulty).glob("training_log_*"), key=lambda path: path.stat().st_mtime)
    assert "Stopped by SIGINT in epoch 1 after iteration 3 of 4" in log.read_text().strip().splitlines()[-1]
    train(faulty, "--c")
    assert_close(weights(faulty), uninterrupted[FAULTS][0], rtol=0, atol=0)


def test_a_signal_that_makes_something_fail_between_images_and_step(faulty, uninterrupted):
    """Such as a print of a trainer of one's own, where `tee` has ended by the same Ctrl-C."""
    fresh(faulty)
    output = train(faulty, ok=False, FAIL="batch 1 2")
    assert "Stopped by SIGTERM in epoch 1 after iteration 2 of 4" in output.strip().splitlines()[-1]
    train(faulty, "--c")
    assert_close(weights(faulty), uninterrupted[FAULTS][0], rtol=0, atol=0)


def test_ctrl_c_reaches_the_workers_and_tee_as_well(faulty):
    """A whole pipeline of a shell's, in interpreters of its own, with workers that load data."""
    fresh(faulty)
    go, log = Path(faulty.env["GO"]), faulty.root / "log.txt"
    go.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    training = shlex.join(map(str, command(FAULTS)))
    line = f"trap : INT; {shlex.quote(str(Path(script('nnUNetv2_train')).parent))}/{training} 2>&1 | tee {log}"
    process = subprocess.Popen(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[*]}} > {log}.codes"],
        env={**faulty.env, "HOLD": "train 1 2", "nnUNet_n_proc_DA": "2", "PYTHONUNBUFFERED": ""},
        cwd=faulty.root,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not log.exists() or "holding" not in log.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    go.touch()
    process.wait(60)
    assert Path(f"{log}.codes").read_text().split() == [str(STOPPED), str(128 + signal.SIGINT)]
    latest = load_checkpoint(fold(faulty) / "checkpoint_latest.pth")
    assert (latest["current_epoch"], len(latest["optimizer_state"][PROGRESS]["losses"])) == (1, 3)


@pytest.mark.parametrize("hold", ["start", "train 1 2"])
def test_the_last_line_is_ours(faulty, hold):
    """Workers that load data end before us, and not with a traceback below."""
    fresh(faulty)
    output = interrupt(faulty, hold, signal.SIGTERM, nnUNet_n_proc_DA="2")
    assert "Stopped by SIGTERM" in output.splitlines()[-2]
    assert "no longer alive" not in output


@pytest.mark.parametrize("seed", range(2))
def test_signals_and_kills_at_any_moment_lose_nothing(faulty, uninterrupted, seed):
    """In the start-up, an epoch, a validation or a checkpoint; the weights at the end are the uninterrupted ones."""
    fresh(faulty)
    chance = random.Random(seed)
    often = {"nnUNet_plugins_save_minutes": "0.001"}
    ends = []
    for _ in range(4):
        process = faulty.start(*command(FAULTS, "--c"), **often)
        assert process.stdout is not None
        while not process.stdout.readline().startswith("Using device"):
            pass
        number = getattr(signal, chance.choice([*SIGNALS, "SIGKILL"]))
        wait = threading.Timer(chance.uniform(0, 3), process.send_signal, [number])
        wait.start()
        output = process.stdout.read()
        process.stdout.close()
        ends.append((process.wait(60), number))
        wait.cancel()
        # Before it trains, a signal may end it as it ends any program: with SIGINT, by an exception.
        assert ends[-1][0] in {0, STOPPED, -number, 128 + number}, (ends, output[-3000:])
        assert "afresh" not in output.replace("Starting a new training", ""), output
    train(faulty, "--c")
    assert_close(weights(faulty), uninterrupted[FAULTS][0], rtol=0, atol=0)


def test_disabled_checkpointing_says_that_nothing_is_saved(faulty):
    fresh(faulty)
    output = interrupt(faulty, "train 0 1", signal.SIGTERM, "--disable_checkpointing")
    assert "Nothing is saved" in output
    assert output.endswith(f"exit code {STOPPED}")
    assert not list(fold(faulty).glob("checkpoint_*"))


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_bad_numbers_change_nothing_and_are_told(faulty, what):
    fresh(faulty)
    output = train(faulty, POISON=f"{what} 1 1 2")
    found = re.findall(rf"WARNING: epoch 1, iteration (\d): the {what} is not finite \(cases: case_\d", output)
    assert found == ["2", "3"]
    assert "2 of 4 steps of this epoch were not finite" in output
    before = re.findall(r"step 1 \d: images \w+, weights (\w+)", output)
    assert len(set(before[1:])) == 1  # from the second step to the fourth
    assert before[0] != before[1]
    assert all_finite(weights(faulty))


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_grad_scaler_leaves_out_bad_steps_and_goes_on_where_it_was(faulty, what):
    fresh(faulty)
    faults = {"POISON": f"{what} 1 1 2", "SCALER": "65536"}
    first = interrupt(faulty, "train 1 3", signal.SIGTERM, **faults)
    found = re.findall(rf"WARNING: epoch 1, iteration (\d): the {what} is not finite \(cases: case_\d", first)
    # Two gradients in a row are the scaler's own business, which tries a larger scale now and then.
    assert found == (["2", "3"] if what == "loss" else [])
    assert steps(first)["1 1"].split()[-1] == steps(first)["1 3"].split()[-1]  # the weights
    second = train(faulty, "--c", **faults)
    assert ("2 of 4 steps of this epoch were not finite" in second) is (what == "loss")
    assert ("Loss scaling tried too large a scale in 2 of 4 steps" in second) is (what == "gradient")
    assert "WARNING" not in second
    # Halved for each bad step; the good ones before and after are counted towards doubling it again.
    state = load_checkpoint(fold(faulty) / "checkpoint_final.pth")["grad_scaler_state"]
    assert (state["scale"], state["_growth_tracker"]) == (2**14, 5)


@pytest.mark.parametrize(
    ("scale", "poison", "told"),
    [("65536", "gradient 1 0 4,gradient 2 0 3", ["2 2"]), ("2", "gradient 1 0 3", ["1 2", "1 3"])],
)
def test_a_grad_scaler_that_goes_on_and_on_is_told(faulty, scale, poison, told):
    """Several bad gradients in a row, which in the end stop the training, or a scale that is next to nothing."""
    fresh(faulty)
    output = train(faulty, POISON=poison, SCALER=scale, ok=told != ["2 2"])
    found = re.findall(r"epoch (\d), iteration (\d): the gradient is not finite", output)
    assert list(dict.fromkeys(" ".join(one) for one in found)) == told


def test_a_loss_may_be_any_function_and_batches_need_no_names(faulty):
    (loss,) = losses(train(faulty, trainer="nnUNetTrainerOwn"))
    assert math.isfinite(float(loss))


def test_bad_steps_count_in_a_row_only(faulty):
    fresh(faulty)
    output = train(faulty, POISON="gradient 0 1 3,gradient 1 1 3")
    assert output.count("3 of 4 steps of this epoch were not finite") == 2


def test_bad_gradients_without_end_stop_the_training(faulty):
    fresh(faulty)
    output = train(faulty, POISON="gradient 1 0 4", nnUNet_plugins_save_minutes="0.00001", ok=False)
    last = output.strip().splitlines()[-1]
    assert "4 steps in a row were not finite, the last one in epoch 1, iteration 4" in last
    assert "nnunet-plugins doctor -d Dataset001_Small" in last
    assert all_finite(weights(faulty, name="best"))
    # None is written while steps are bad: the last one is from the end of the first epoch.
    latest = load_checkpoint(fold(faulty) / "checkpoint_latest.pth")
    assert (latest["current_epoch"], latest["optimizer_state"][PROGRESS]["losses"]) == (1, [])
    assert re.findall(r": Epoch (\d)", train(faulty, "--c")) == ["1", "2"]


def test_bad_images_are_named_and_reach_no_batch_norm(faulty):
    """One voxel of one case is infinite; nnU-Net's normalisation makes the whole image nan of it."""
    folder = write_dataset(faulty.raw, "Dataset002_Bad")
    path = folder / "imagesTr" / "case_1_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    image[12, 12, 12] = math.inf
    sitk.WriteImage(image, str(path))
    # SimpleITK reads infinity in NIfTI files as 0.
    description = json.loads((folder / "dataset.json").read_text())
    description["overwrite_image_reader_writer"] = "NibabelIO"
    (folder / "dataset.json").write_text(json.dumps(description))
    faulty.prepare(2, "3d_fullres")
    faulty.edit_plans(folder.name, "small")
    trainer = "nnUNetTrainerAFNBasic_1epochs_16iterations_NoMirroring"
    output = faulty.run("nnUNetv2_train", 2, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu")
    found = re.findall(r"iteration \d+: the images hold values that are not finite \(cases: (.*)\)", output)
    assert set(found) == {"case_1"}
    assert not math.isnan(float(losses(output)[0]))
    assert all_finite(weights(faulty, trainer, dataset=folder.name))


def test_random_numbers_go_on():
    state = random_state()
    first = (np.random.normal(), torch.rand(3), np.random.normal())
    set_random_state(state)
    assert_close((np.random.normal(), torch.rand(3), np.random.normal()), first, rtol=0, atol=0)


def test_an_epoch_that_was_interrupted_took_the_time_before_that_too(tmp_path, monkeypatch):
    """What a training costs is read from the times of its epochs."""
    trainer = FakeDataset(tmp_path, monkeypatch).trainer("nnUNetTrainer_5epochs")
    trainer._progress, trainer._started = Progress(), True
    trainer._resumed = Progress(losses=[0.5], seconds=1000.0)
    trainer.on_epoch_start()
    begun = trainer.logger.get_value("epoch_start_timestamps", step=-1)
    assert time.time() - begun == pytest.approx(1000, abs=100)


@pytest.mark.parametrize(
    ("values", "finite"),
    [([1, -2], True), ([3e38] * 2, True), ([math.inf, 1], False), ([math.inf, -math.inf], False), ([math.nan], False)],
)
def test_are_finite(values, finite):
    assert are_finite(torch.tensor(values)) is finite


def test_minutes_between_checkpoints(monkeypatch):
    monkeypatch.delenv("nnUNet_plugins_save_minutes", raising=False)
    assert minutes_between_checkpoints() == 10
    for text, minutes in {"0": math.inf, "2.5": 2.5}.items():
        monkeypatch.setenv("nnUNet_plugins_save_minutes", text)
        assert minutes_between_checkpoints() == minutes
    for text in ("-1", "soon", "nan"):
        monkeypatch.setenv("nnUNet_plugins_save_minutes", text)
        with pytest.raises(ValueError, match=f"nnUNet_plugins_save_minutes='{text}'"):
            minutes_between_checkpoints()


def stop_request() -> StopRequest:
    return StopRequest(SIGNALS, "in a moment")


class TestStopRequest:
    def test_remembers_and_restores(self):
        before = signal.getsignal(signal.SIGTERM)
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is before

    def test_second_interrupt_ends_at_once(self):
        with stop_request() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    def test_handlers_of_c_code_come_back(self):
        """Python knows nothing of them, such as those of MPI."""
        code = (
            "import faulthandler, os, signal\n"
            "from nnunet_plugins.stop_request import StopRequest\n"
            "faulthandler.register(signal.SIGUSR1)\n"
            "with StopRequest(['SIGUSR1'], 'yes') as stop:\n"
            "    os.kill(os.getpid(), signal.SIGUSR1)\n"
            "print(stop.signal, flush=True)\n"
            "os.kill(os.getpid(), signal.SIGUSR1)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
        assert result.stdout == "SIGUSR1\n"
        assert "most recent call first" in result.stderr.partition("yes")[2]

    def test_handlers_that_c_code_set_up_before_python_come_back(self, monkeypatch):
        before, install = signal.getsignal(signal.SIGUSR1), signal.signal

        def tell_none(number: int, handler: object) -> None:
            install(number, handler)

        # Python stands None for such a one, and does not take it back.
        monkeypatch.setattr(signal, "signal", tell_none)
        with StopRequest(["SIGUSR1"], "yes"):
            pass
        monkeypatch.undo()
        install(signal.SIGUSR1, before)

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_nobody_reads_what_it_says(self, unbuffered):
        code = (
            "import os, signal, sys\n"
            "from nnunet_plugins.stop_request import StopRequest, drop_unread_output\n"
            "with StopRequest(['SIGINT'], 'yes') as stop:\n"
            "    sys.stdin.read()\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "try:\n"
            "    print('to nobody')\n"
            "except BrokenPipeError:\n"
            "    drop_unread_output(sys.stdout)\n"
            "drop_unread_output()\n"
            "print('nor this')\n"
            "sys.exit(75)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.close()
        assert process.wait(30) == STOPPED

    def test_streams_that_were_closed_before_python_began(self, tmp_path):
        """Their numbers are then those of the next files that are opened."""
        code = (
            "import os, signal, sys\n"
            "files = [open(path, 'w') for path in sys.argv[1:]]\n"
            "from nnunet_plugins.stop_request import StopRequest, drop_unread_output\n"
            "with StopRequest(['SIGTERM'], 'yes'):\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "drop_unread_output()\n"
            "sys.exit(75)\n"
        )
        files = [tmp_path / "one", tmp_path / "two"]
        closed = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", sys.executable, "-c", code, *map(str, files)]
        assert subprocess.run(closed, check=False, timeout=30).returncode == STOPPED
        assert [file.read_text() for file in files] == ["", ""]

    def test_forked_workers_leave_ctrl_c_to_us(self):
        """A terminal sends it to all of them."""
        code = (
            "import os, signal, time\n"
            "from nnunet_plugins.stop_request import StopRequest\n"
            "with StopRequest(['SIGINT'], 'yes') as stop:\n"
            "    child = os.fork()\n"
            "    if child == 0:\n"
            "        time.sleep(1)\n"
            "        os._exit(7)\n"
            "    time.sleep(0.2)\n"
            "    os.kill(child, signal.SIGINT)\n"
            "    _, status = os.waitpid(child, 0)\n"
            "    print(os.waitstatus_to_exitcode(status))\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
        assert result.stdout.split() == ["7"]

    def test_at_once(self):
        with stop_request() as stop:
            stop.at_once = True
            with pytest.raises(SystemExit) as end:
                os.kill(os.getpid(), signal.SIGUSR1)
        assert end.value.code == STOPPED

    def test_forked_workers_end_as_ever(self):
        """nnU-Net forks the workers that load data, and ends them by SIGTERM."""
        code = (
            "import os, signal, sys, time\n"
            "from nnunet_plugins.stop_request import StopRequest\n"
            "with StopRequest(['SIGTERM'], 'yes') as stop:\n"
            "    child = os.fork()\n"
            "    if child == 0:\n"
            "        time.sleep(60)\n"
            "        os._exit(0)\n"
            "    time.sleep(0.2)\n"
            "    os.kill(child, signal.SIGTERM)\n"
            "    _, status = os.waitpid(child, 0)\n"
            "    print(os.WTERMSIG(status), stop.signal)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
        assert result.stdout.split() == [str(int(signal.SIGTERM)), "None"]
