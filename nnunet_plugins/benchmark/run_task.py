"""Run one task of a benchmark, in a process of its own.

    python -m nnunet_plugins.benchmark.run_task TASK.json [STARTER]

The task's command never outlives this process, and this process never outlives the one that started it, so that
nothing is left that would write into a folder in which the next start works. A lock, which lies with what is made, sees
to it that nobody else makes it at the same time; if it is done when the lock is free, it is not done again. STARTER is
the process that starts it, which may be gone already when this one has loaded its libraries.

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
from nnunet_plugins.benchmark.done import is_done
from nnunet_plugins.benchmark.protocol import BenchmarkError, Run
from nnunet_plugins.benchmark.results import EXPORTS
from nnunet_plugins.benchmark.tasks import Folders, known_files
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, lock_descriptor, lock_holder, unfinished, write_text
from nnunet_plugins.provenance import Ledger, marker_file
from nnunet_plugins.stop_request import STOPPED
from nnunet_plugins.trainers.fold_folder import LOCK_IS_HELD

FAILED, INTERRUPTED = 1, 130
_TAIL = 30
_START = "-pretrained_weights"


@dataclass(frozen=True)
class Order:
    """What `run_task` is told; a JSON file, because the process may start on another machine.

    Attributes:
        name: of the task.
        command: console script and arguments.
        folder: the benchmark's folder, for log and state.
        variables: environment variables to set.
        training: for a training, the fields of its run, its fold and its device.

    All others are those of `tasks.Task`.
    """

    name: str
    command: list[str]
    folder: str
    variables: dict[str, str] = field(default_factory=dict)
    output: str | None = None
    keeps_text: bool = False
    partly: bool = False
    inputs: list[str] = field(default_factory=list)
    makes: list[str] = field(default_factory=list)
    there: list[Any] = field(default_factory=list)
    lock: str | None = None
    goes_on: bool = False
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


def run(order: Order, starter: int) -> int:
    """Run a task to its end, unless the process that starts it ends before; returns the exit code."""
    state = _State(order)
    lock = Path(order.lock) if order.lock else order.file.with_suffix(".lock")
    variables = {**os.environ, **order.variables}
    if order.training:
        variables[LOCK_IS_HELD] = str(lock)  # our trainers would take it themselves; nnU-Net's know nothing of it

    def waiting() -> None:
        state.write(f"waiting for {lock_holder(lock) or 'whoever has locked it'}")

    try:
        with _ends_with_parent(starter), hold_lock(lock, waiting=waiting, warn=state.warn):
            code = _do(order, state, variables, lock)
    except KeyboardInterrupt:
        state.write("interrupted", exit_code=INTERRUPTED)
        return INTERRUPTED
    except (InputError, OSError) as error:
        state.tail.extend(str(error).splitlines())
        code = FAILED
    state.write("done" if code == 0 else "failed", exit_code=code)
    return FAILED if code else 0


def _do(order: Order, state: "_State", variables: Mapping[str, str], lock: Path) -> int:
    """Run the command of a task, unless there is nothing left to do; returns its exit code."""
    ledger = known_files(Path(order.folder), variables)
    output = Path(order.output) if order.output else None
    made_of, makes = list(map(Path, order.inputs)), list(map(Path, order.makes))
    if is_done(ledger, order.command, output, made_of, makes, order.there):
        return 0
    state.write("running")
    inputs = ledger.identities(made_of)
    part = unfinished(output) if output else None
    if part is not None:
        _clear(part, order, ledger, inputs)
    training = _Training(order, variables) if order.training else None
    prediction = progress.Prediction()
    usage = progress.Usage()
    lines: list[str] = []

    def follow(line: str) -> None:
        state.tail.append(line)
        if order.keeps_text:
            lines.append(line)
        follower = training.follow if training else prediction
        if told := follower(line):
            state.fraction = follower.fraction
            state.write("running", told=told)

    # A training that outlives this process, should that be killed outright, still keeps others out of its folder.
    held = lock_descriptor(lock) if training else None
    inherits = () if held is None else (held,)
    arguments = training.continued(order.command) if training else order.command
    with usage:
        code = command.run(arguments, variables, order.log, follow, started=usage.watch, inherits=inherits)
    if training:
        training.end(usage)
    if code == STOPPED:
        # A signal that reached the training alone, say a scheduler's; it has saved what it had done.
        raise KeyboardInterrupt
    made_partly = order.partly and code == FAILED and part is not None and part.exists()
    if code and not made_partly:
        return code
    if part is not None and output is not None:
        if order.keeps_text:
            write_text(part, "\n".join(lines) + "\n")
        if ledger.identities(made_of) != inputs:
            raise BenchmarkError("what this was made of has changed meanwhile; give the same command again")
        _put(part, output)
        ledger.write(output, order.command, inputs, makes)
    return 0


def _clear(part: Path, order: Order, ledger: Ledger, inputs: Mapping[str, str]) -> None:
    """Remove what an earlier attempt has left, but for files that the command can go on with."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if order.goes_on and part.is_dir() and ledger.was_begun(part, order.command, inputs):
        # Those that were being written are among the last ones, of which each process writes one at a time.
        files = [file for file in part.iterdir() if file.suffix not in (".json", ".npz", ".pkl")]
        files.sort(key=lambda file: file.stat().st_mtime_ns)
        for file in {*files[-EXPORTS:], *(file for file in files if not file.stat().st_size)}:
            file.unlink()
        return
    marker_file(part).unlink(missing_ok=True)
    if part.is_dir():
        shutil.rmtree(part)
    elif order.partly:
        part.unlink(missing_ok=True)
    if order.goes_on:
        ledger.begin(part, order.command, inputs)


def _put(part: Path, output: Path) -> None:
    """Put what was made to where it belongs, in place of what an earlier start has made of other inputs."""
    marker_file(output).unlink(missing_ok=True)
    if output.is_dir():
        shutil.rmtree(output)
    part.replace(output)
    marker_file(part).unlink(missing_ok=True)


class _Training:
    """What a training has beyond other commands: conditions to record, checkpoints, and progress by epochs."""

    def __init__(self, order: Order, variables: Mapping[str, str]) -> None:
        assert order.training is not None
        fields, fold, device = order.training
        run = Run(**fields)
        raw, preprocessed, results = (Path(variables[name]) for name in command.FOLDERS)
        folders = Folders(raw, preprocessed, results, Path(order.folder))
        self.fold = folders.fold(run, fold)
        recipe = json.loads(folders.recipe(run).read_text(encoding="utf-8"))
        self.follow = progress.Training(recipe["epochs"], recipe["labels"])
        _drop_incomplete_checkpoints(self.fold)
        conditions.write_conditions(folders, run, fold, device, variables)

    def continued(self, arguments: list[str]) -> list[str]:
        """Return the command, going on where there is a checkpoint: nnU-Net takes no weights to start from then."""
        if _START not in arguments or not conditions.is_begun(self.fold):
            return arguments
        place = arguments.index(_START)
        return [*arguments[:place], "--c", *arguments[place + 2 :]]

    def end(self, usage: progress.Usage) -> None:
        """Record what the training has taken, and which checkpoint came of it."""
        cost = {"peak_memory_bytes": usage.peak, "memory_kind": usage.kind, "energy_joules": usage.joules}
        conditions.end_attempt(self.fold, cost)


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

    def warn(self, text: str) -> None:
        """Write a sentence into the task's log."""
        self.order.log.parent.mkdir(parents=True, exist_ok=True)
        with self.order.log.open("a", encoding="utf-8") as file:
            file.write(f"nnunet_plugins: {text}\n")

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
def _ends_with_parent(starter: int) -> Iterator[None]:
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
            if not _is_alive(starter):  # then the parent is another process already
                raise KeyboardInterrupt
            yield
    finally:
        ended.set()


def _is_alive(process: int) -> bool:
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(arguments: list[str]) -> int:
    """Run the task of the order in a file."""
    file, *starter = arguments
    order = Order(**json.loads(Path(file).read_text(encoding="utf-8")))
    os.environ.update({name: order.variables[name] for name in command.FOLDERS if name in order.variables})
    return run(order, int(starter[0]) if starter else os.getppid())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
