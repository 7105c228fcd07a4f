"""Run nnU-Net's commands as subprocesses: find them, log them, follow their output, end them with all their workers."""

import contextlib
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins import _startup
from nnunet_plugins.benchmark.protocol import BenchmarkError

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def find(name: str) -> str:
    """Return the path of a console script, the one of this Python environment before any other.

    Raises:
        BenchmarkError: if there is none.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise BenchmarkError(
            f"the command {name} is neither beside {sys.executable} nor on the PATH. Install nnU-Net into this "
            f"environment: {sys.executable} -m pip install 'nnunetv2>=2.8'"
        )
    return found


def environment(slots: int | None) -> dict[str, str]:
    """Return the variables that nnU-Net's commands get besides their process's own.

    Args:
        slots: commands that run on this machine at a time; None if they run on others.
    """
    variables = {name: value for name, value in os.environ.items() if name.lower().startswith("nnunet_")}
    variables["PYTHONUNBUFFERED"] = "1"
    # Threads that wait by spinning take the cores from the workers, and are far slower where other programs run too.
    variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    if slots is not None:
        # PyTorch's and nnU-Net's own numbers, for a slot's share of the cores. No core is any slot's own: where other
        # programs run on it, a pinned training would wait for them beside idle cores.
        cores = max(1, usable_cores() // slots)
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cores))
        variables.setdefault("nnUNet_n_proc_DA", str(min(12, cores)))
        variables.setdefault("nnUNet_def_n_proc", str(min(8, cores)))
    variables[_startup.VARIABLE] = _startup.with_ours()
    return variables


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals that end a program act like Ctrl-C, so that running commands are ended as well."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP on purpose; outside the main thread Python allows no handlers.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    log: Path,
    follow: Callable[[str], None],
    *,
    started: Callable[[int], None] = lambda _: None,
    inherits: Sequence[int] = (),
) -> int:
    """Run a command to its end; its output is appended to `log`, and each line is passed to `follow`.

    The command has a process group of its own, and nothing of that group is left when this function ends, however it
    ends.

    Args:
        command: console script and arguments.
        variables: the whole environment.
        log: file to append to.
        follow: gets each line, without its end.
        started: gets the process's number.
        inherits: descriptors of files that the command gets, such as those of locks.

    Returns:
        The exit code.

    Raises:
        BenchmarkError: if the command cannot be started.
    """
    arguments = [find(str(command[0])), *map(str, command[1:])]
    shown = shlex.join([*(f"{name}={variables[name]}" for name in FOLDERS if name in variables), *arguments])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shown}\n")
        file.flush()
        # A pipe, not the log itself: should this process be killed outright, the command fails at its next line
        # instead of going on unseen.
        try:
            process = subprocess.Popen(
                arguments,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=inherits,
            )
        except OSError as error:
            # For instance a console script whose interpreter has moved.
            raise BenchmarkError(f"{arguments[0]} cannot be started: {error}. Install nnU-Net again.") from error
        try:
            started(process.pid)
            for line in _lines(process):
                file.write(line)
                file.flush()
                follow(line.rstrip())
        finally:
            _end(process)
    return process.returncode


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield the lines of the output until the process ends; workers that outlive it and hold the pipe do not count."""
    lines: queue.Queue[str] = queue.Queue()
    output = process.stdout
    assert output is not None

    def read() -> None:
        with output:
            for line in output:
                lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    running = True
    while running:
        running = process.poll() is None
        if not running:
            reader.join(timeout=2)
        with contextlib.suppress(queue.Empty):
            yield lines.get(timeout=0.2)
            while True:
                yield lines.get_nowait()


def _end(process: subprocess.Popen[str]) -> None:
    """End the process, politely first, and whatever is left of its group."""
    try:
        if process.poll() is None:
            _signal_group(process, "SIGTERM")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)  # a training saves at the end of its step
    finally:  # also at a second Ctrl-C
        _signal_group(process, "SIGKILL")
        process.wait()


def _signal_group(process: subprocess.Popen[str], name: str) -> None:
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, getattr(signal, name))
