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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_plugins import _startup
from nnunet_plugins.demo.errors import DemoError

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_TAIL = 20


def find(name: str) -> str:
    """Return the path of a console script, the one of this Python environment before any other.

    Raises:
        DemoError: if there is none.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise DemoError(
            f"the command {name} is neither beside {sys.executable} nor on the PATH. Install nnU-Net into this "
            f"environment: {sys.executable} -m pip install 'nnunetv2>=2.8'"
        )
    return found


def environment(folder: Path) -> dict[str, str]:
    """Return the environment for nnU-Net's commands, whose three folders lie in `folder` whatever the user has set."""
    variables = {**os.environ, **{name: str(folder / name) for name in FOLDERS}}
    variables["PYTHONUNBUFFERED"] = "1"
    variables["nnUNet_wandb_enabled"] = "0"
    # Compiling the networks takes longer than the few steps of the demo.
    variables.setdefault("nnUNet_compile", "f")
    # Every worker imports torch; more than a few cost more than they bring.
    workers = str(max(1, min(_usable_cores() // 2, 4)))
    variables.setdefault("nnUNet_n_proc_DA", workers)
    variables.setdefault("nnUNet_def_n_proc", workers)
    # Threads that wait by spinning take the cores from the workers, and are far slower where other programs run too.
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    variables[_startup.VARIABLE] = _startup.with_ours()
    return variables


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(command: Sequence[str | Path], variables: Mapping[str, str], log: Path, follow: Callable[[str], None]) -> None:
    """Run a command to its end; its output is appended to `log`, and each line is passed to `follow`.

    The command has a process group of its own, and nothing of that group is left when this function ends, however it
    ends.

    Raises:
        DemoError: if the command fails; the message holds the end of its output, the log's path and the command.
    """
    arguments = [find(str(command[0])), *map(str, command[1:])]
    shown = shlex.join([*(f"{name}={variables[name]}" for name in FOLDERS), *arguments])
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=_TAIL)
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
            )
        except OSError as error:
            # For instance a console script whose interpreter has moved.
            raise DemoError(f"{arguments[0]} cannot be started: {error}. Install nnU-Net again.") from error
        try:
            for line in _lines(process):
                file.write(line)
                file.flush()
                tail.append(line.rstrip())
                follow(line.rstrip())
        finally:
            _end(process)
    if process.returncode != 0:
        ending = "\n".join(f"    {line}" for line in tail)
        raise DemoError(
            f"{command[0]} failed with exit code {process.returncode}. The end of its output:\n{ending}\n"
            f"  log:     {log}\n  command: {shown}\n"
            "Finished steps are kept: once the cause is removed, the same demo goes on from here."
        )


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
                process.wait(timeout=10)
    finally:  # also at a second Ctrl-C
        _signal_group(process, "SIGKILL")
        process.wait()


def _signal_group(process: subprocess.Popen[str], name: str) -> None:
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, getattr(signal, name))
