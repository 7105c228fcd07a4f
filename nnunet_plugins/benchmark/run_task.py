"""Run one task of a benchmark, in a process of its own.

    python -m nnunet_plugins.benchmark.run_task TASK.json

The task's command never outlives this process, and this process never outlives the one that started it, so that
nothing is left that would write into a folder in which the next start works. A lock sees to it that a task does not
run twice at a time.

Exit codes: 0 done, 1 the command failed, 130 interrupted.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark import command, conditions, progress
from nnunet_plugins.benchmark.protocol import BenchmarkError, Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.files import hold_lock, unfinished, write_text
from nnunet_plugins.stop_request import STOPPED

FAILED, INTERRUPTED = 1, 130
_TAIL = 30


@dataclass(frozen=True)
class Order:
    """What `run_task` is told; a JSON file, because the process may start on another machine.

    Attributes:
        name: of the task.
        command: console script and arguments.
        folder: the benchmark's folder, for log and state.
        variables: environment variables to set.
        output: what the command makes; see `tasks.Task`.
        keeps_text: the output is what the command prints.
        partly: see `tasks.Task`.
        training: for a training, the fields of its run, its fold and its device.
    """

    name: str
    command: list[str]
    folder: str
    variables: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    keeps_text: bool = False
    partly: bool = False
    training: tuple[dict[str, str], int, str] | None = None

    @property
    def file(self) -> Path:
        """Where the order lies."""
        return Path(self.folder, "tasks", f"{self.name}.json")

    @property
    def state(self) -> Path:
        """Where to write how the task stands."""
        return Path(self.folder, "states", f"{self.name}.json")

    @property
    def log(self) -> Path:
        """The command's output, of all attempts."""
        return Path(self.folder, "logs", f"{self.name}.log")


def run(order: Order) -> int:
    """Run a task to its end; returns the exit code."""
    state = _State(order)
    lock = hold_lock(
        order.file.with_suffix(".lock"), waiting=lambda: state.write("waiting for an earlier start to end")
    )
    try:
        with _ends_with_parent(), lock:
            state.write("running")
            code = _do(order, state)
    except KeyboardInterrupt:
        state.write("interrupted", exit_code=INTERRUPTED)
        return INTERRUPTED
    except (BenchmarkError, OSError) as error:
        state.tail.extend(str(error).splitlines())
        code = FAILED
    state.write("done" if code == 0 else "failed", exit_code=code)
    return FAILED if code else 0


def _do(order: Order, state: "_State") -> int:
    part = unfinished(Path(order.output)) if order.output else None
    if part is not None:
        # What an earlier attempt has left.
        if part.is_dir():
            shutil.rmtree(part)
        elif order.partly:
            part.unlink(missing_ok=True)
        part.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, **order.variables}
    training = _Training(order, variables) if order.training else None
    usage = progress.Usage()
    lines: list[str] = []

    def follow(line: str) -> None:
        state.tail.append(line)
        if order.keeps_text:
            lines.append(line)
        told = training.follow(line) if training else progress.prediction(line)
        if told:
            state.fraction = training.follow.fraction if training else None
            state.write("running", told=told)

    with usage:
        code = command.run(order.command, variables, order.log, follow, started=usage.watch)
    if training:
        training.add_cost(usage)
    if code == STOPPED:
        # A signal that reached the training alone, say a scheduler's; it has saved what it had done.
        raise KeyboardInterrupt
    made_partly = order.partly and code == FAILED and part is not None and part.is_file()
    if code and not made_partly:
        return code
    if part is not None and order.output:
        if order.keeps_text:
            write_text(part, "\n".join(lines) + "\n")
        part.replace(order.output)
    return 0


class _Training:
    """What a training has beyond other commands: conditions to record, checkpoints, and progress by epochs."""

    def __init__(self, order: Order, variables: Mapping[str, str]) -> None:
        assert order.training is not None
        fields, fold, device = order.training
        run = Run(**fields)
        raw, preprocessed, results = (Path(variables[name]) for name in command.FOLDERS)
        folders = Folders(raw, preprocessed, results, Path(order.folder))
        self.fold = folders.fold(run, fold)
        recipe = json.loads(folders.recipe(run).read_text())
        self.follow = progress.Training(recipe["epochs"], recipe["labels"])
        _drop_incomplete_checkpoints(self.fold)
        conditions.write_conditions(folders, run, fold, device, variables)

    def add_cost(self, usage: progress.Usage) -> None:
        """Record what the training has taken."""
        cost = {"peak_memory_bytes": usage.peak, "memory_kind": usage.kind, "energy_joules": usage.joules}
        conditions.add_cost(self.fold, cost)


def _drop_incomplete_checkpoints(fold: Path) -> None:
    """Let nnU-Net go on from the checkpoint before one that was not written to its end."""
    for name in ("final", "latest", "best"):
        checkpoint = fold / f"checkpoint_{name}.pth"
        try:
            # A checkpoint is a zip file, whose end is written last. What cannot be read may be whole.
            zipfile.ZipFile(checkpoint).close()
        except FileNotFoundError:
            continue
        except zipfile.BadZipFile:
            checkpoint.unlink()


class _State:
    """How a task stands, in a file that the benchmark reads while it waits."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.started = time.time()
        self.fraction: float | None = None
        self.tail: deque[str] = deque(maxlen=_TAIL)

    def write(self, status: str, **more: Any) -> None:
        content = {
            "status": status,
            "host": socket.gethostname(),
            "slot": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started": self.started,
            "now": time.time(),
            "command": self.order.command,
            "log": str(self.order.log),
            "fraction": self.fraction,
            "tail": list(self.tail) if status == "failed" else [],
            **more,
        }
        write_text(self.order.state, json.dumps(content, indent=1))


@contextlib.contextmanager
def _ends_with_parent() -> Iterator[None]:
    """Turn the signals that end a program, and the end of the parent process, into KeyboardInterrupt."""
    parent, ended = os.getppid(), threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        with command.interruptible():
            yield
    finally:
        ended.set()


def main(arguments: list[str]) -> int:
    """Run the task of the order in a file."""
    return run(Order(**json.loads(Path(arguments[0]).read_text())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
