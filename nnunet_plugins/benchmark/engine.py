"""Run a graph of tasks with Parsl: each as soon as what it needs is done and a slot is free.

What is done is read from the files, not remembered, so that a benchmark that was killed goes on where it was.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.run_task import INTERRUPTED, Order
from nnunet_plugins.benchmark.tasks import Task, known_files
from nnunet_plugins.files import json_or_nothing, write_text
from nnunet_plugins.provenance import Ledger
from nnunet_plugins.stop_request import StopRequest

SECONDS = 1.0  # between two looks at the running tasks


class TaskError(Exception):
    """The command of a task failed; its log says why."""


class TaskInterruptedError(TaskError):
    """The task was ended from outside."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a task.

    Attributes:
        task: which one.
        what: "done before", "started", "progress", "done", "failed" or "skipped".
        text: for people; empty if there is nothing to add.
        fraction: how much of a training is done, from 0 to 1; None for other tasks.
    """

    task: Task
    what: str
    text: str = ""
    fraction: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a graph ended.

    Attributes:
        failed: names of the tasks whose commands failed, after all retries.
        skipped: names of the tasks that were not started, with the name of a task that they needed.
    """

    failed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


NOTHING_FAILED = Outcome()


# Of the tasks that run in threads of this process, which nobody can end but through their processes.
_processes: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()
_stopped = threading.Event()


def run_order(file: str) -> None:
    """Run a task on the machine where this is called; what Parsl's workers do.

    Raises:
        TaskInterruptedError: if it was ended from outside.
        TaskError: if it fails.
    """
    with _starting:
        if _stopped.is_set():
            raise TaskInterruptedError(f"{Path(file).stem} was not started")
        command = [sys.executable, "-m", "nnunet_plugins.benchmark.run_task", file, str(os.getpid())]
        process = subprocess.Popen(command)
        _processes.add(process)
    try:
        code = process.wait()
    finally:
        _processes.discard(process)
    if code == INTERRUPTED:
        raise TaskInterruptedError(f"{Path(file).stem} was interrupted")
    if code:
        raise TaskError(f"{Path(file).stem} failed")


def _end_processes() -> None:
    """Let the tasks in threads of this process end, and no other begin, such as a retry."""
    with _starting:
        _stopped.set()
        for process in list(_processes):
            process.terminate()


def run_tasks(
    tasks: Sequence[Task],
    config: Any,
    folder: Path,
    *,
    variables: Mapping[str, str],
    device: str,
    tell: Callable[[Event], None],
    look: Callable[[Mapping[str, dict[str, Any]]], None] = lambda _: None,
    earlier: Outcome = NOTHING_FAILED,
) -> Outcome:
    """Run tasks to their end, in the order in which they stand where nothing else decides.

    A task that fails takes with it only those that need it.

    Args:
        tasks: the graph; a task stands after those that it needs.
        config: Parsl's, from `cluster.configure`.
        folder: the benchmark's folder.
        variables: environment variables for all commands.
        device: torch device type of the trainings.
        tell: gets what happens.
        look: gets the states of the running tasks, about once a second.
        earlier: how a graph ended that tasks of this one need; what it does not name is done.

    Raises:
        KeyboardInterrupt: as it comes; the running commands are ended.
    """
    ledger = known_files(folder, variables)
    waiting = {task.name: task for task in tasks_left(tasks, ledger)}
    for task in tasks:
        if task.name not in waiting:
            tell(Event(task, "done before"))
    if not waiting:
        return earlier
    done = {name for task in tasks for name in (task.name, *task.needs)} - {*waiting, *earlier.failed, *earlier.skipped}
    import parsl

    _stopped.clear()
    running: dict[Future[None], Task] = {}
    failed, skipped = list(earlier.failed), dict(earlier.skipped)
    # An exception out of a signal could leave one of Parsl's locks held, for which its shutdown would wait for ever.
    stop = StopRequest(("SIGINT", "SIGTERM", "SIGHUP"), "ending what is running.")
    with stop, _log_of_parsl(folder / "parsl.log"), parsl.load(config) as kernel:
        apps = {
            slot: parsl.python_app(run_order, data_flow_kernel=kernel, executors=[slot])
            for slot in {task.slot for task in waiting.values()}
        }
        watcher = _Watcher(folder, tell)
        while waiting or running:
            for task in list(waiting.values()):
                broken = [need for need in task.needs if need in failed or need in skipped]
                if not broken and not done.issuperset(task.needs):
                    continue
                if task.is_done(ledger):
                    done.add(task.name)
                    tell(Event(waiting.pop(task.name), "done before"))
                elif broken:
                    skipped[task.name] = broken[0]
                    tell(Event(waiting.pop(task.name), "skipped", f"needs {broken[0]}"))
                else:
                    order = _order(task, folder, variables, device)
                    write_text(order.file, json.dumps(asdict(order), indent=1))
                    order.state.unlink(missing_ok=True)
                    running[apps[task.slot](str(order.file))] = waiting.pop(task.name)
            finished, _ = wait(running, timeout=SECONDS, return_when=FIRST_COMPLETED)
            if stop.signal:
                _end_processes()
                raise KeyboardInterrupt
            look(watcher.states(list(running.values())))
            for future in finished:
                task = running.pop(future)
                if future.exception() is None and task.is_done(ledger):
                    done.add(task.name)
                    tell(Event(task, "done"))
                else:
                    failed.append(task.name)
                    tell(Event(task, "failed", _reason(task, folder, future.exception())))
    if stop.signal:  # while the last task was told, or Parsl shut down
        raise KeyboardInterrupt
    return Outcome(tuple(failed), skipped)


def tasks_left(tasks: Sequence[Task], ledger: Ledger) -> list[Task]:
    """Return the tasks that are not done, or whose output is made of that of another one that is not done.

    Args:
        tasks: a task stands after those that it needs.
        ledger: knows the files.
    """
    left: dict[str, Task] = {}
    for task in tasks:
        if (task.output and not left.keys().isdisjoint(task.needs)) or not task.is_done(ledger):
            left[task.name] = task
    return list(left.values())


@contextlib.contextmanager
def _log_of_parsl(file: Path) -> Iterator[None]:
    """Keep what Parsl's driver has to say in a file of its own."""
    logger = logging.getLogger("parsl")
    handler = logging.FileHandler(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    before = logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
        handler.close()


def _order(task: Task, folder: Path, variables: Mapping[str, str], device: str) -> Order:
    return Order(
        name=task.name,
        command=list(task.command),
        folder=str(folder),
        variables={**variables, **task.variables},
        output=str(task.output) if task.output else None,
        keeps_text=task.keeps_text,
        partly=task.partly,
        inputs=list(map(str, task.inputs)),
        makes=list(map(str, task.makes)),
        there=list(task.there),
        lock=str(task.lock) if task.lock else None,
        goes_on=task.goes_on,
        training=(asdict(task.training[0]), task.training[1], device) if task.training else None,
    )


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """Return how a task stands; empty if it has not begun."""
    return json_or_nothing(folder / "states" / f"{name}.json")


def _reason(task: Task, folder: Path, error: BaseException | None) -> str:
    """Say why a task failed: the end of its output, or what became of its worker."""
    state = read_state(folder, task.name)
    lines = [
        str(error) if error else "the command ended well, but its result is not there, or not of the present files"
    ]
    if state.get("status") == "failed":
        lines = [f"exit code {state['exit_code']}. The end of its output:", *(f"    {line}" for line in state["tail"])]
    return "\n".join([*lines, f"    log: {folder / 'logs' / f'{task.name}.log'}"])


class _Watcher:
    """Tells of what running tasks write into their states."""

    def __init__(self, folder: Path, tell: Callable[[Event], None]) -> None:
        self.folder, self.tell = folder, tell
        self.seen: dict[str, float] = {}

    def states(self, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
        found = {}
        for task in tasks:
            state = read_state(self.folder, task.name)
            if not state:
                continue
            found[task.name] = state
            if self.seen.get(task.name) == state["now"]:
                continue
            if task.name not in self.seen:
                self.tell(Event(task, "started", f"on {state['host']}"))
            self.seen[task.name] = state["now"]
            if state.get("told") or state["status"].startswith("waiting"):
                self.tell(Event(task, "progress", state.get("told") or state["status"], state.get("fraction")))
        return found
