"""The benchmark's engine with small commands of its own: order, failures, retries, kills, GPUs."""

import argparse
import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from nnunet_plugins import cli
from nnunet_plugins.benchmark.cluster import accelerators, configure, read_cluster
from nnunet_plugins.benchmark.conditions import read_conditions
from nnunet_plugins.benchmark.driver import _Progress
from nnunet_plugins.benchmark.engine import Event, Outcome, read_state, run_tasks
from nnunet_plugins.benchmark.progress import Training
from nnunet_plugins.benchmark.protocol import BenchmarkError, Run
from nnunet_plugins.benchmark.run_task import INTERRUPTED, Order
from nnunet_plugins.benchmark.tasks import Folders, Task
from nnunet_plugins.files import hold_lock, lock_holder, unfinished, write_text
from nnunet_plugins.provenance import marker_file
from nnunet_plugins.stop_request import STOPPED
from nnunet_plugins.trainers.fold_folder import LOCK


def task(
    folder: Path, name: str, code: str = "", *, needs: tuple[str, ...] = (), slot: str = "light", inputs=()
) -> Task:
    """A task that runs some Python and then writes the file of its name, where `out` is that file."""
    output = folder / "made" / f"{name}.txt"
    program = f"import sys, os, time; out = sys.argv[1]\n{code}\nopen(out, 'a').write({name!r})"
    command = (sys.executable, "-c", program, str(output.with_name(f"{name}.partial.txt")))
    return Task(name, name, command, needs=needs, slot=slot, output=output, inputs=inputs)


def perform(tasks: list[Task], folder: Path, *, slots=1, retries=0, device="cpu") -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    used = {one.slot for one in tasks}
    config = configure(folder, device=device, slots=slots, retries=retries, used=used)
    for executor in config.executors:
        if executor.label == "train":
            executor.heartbeat_period, executor.heartbeat_threshold = 1, 5  # not to wait for half a minute
    outcome = run_tasks(tasks, config, folder, variables={}, device="cpu", tell=events.append)
    return outcome, events


def happened(events: list[Event], what: str) -> list[str]:
    return [event.task.name for event in events if event.what == what]


def test_a_failure_takes_along_only_what_needs_it(tmp_path, preloaded):
    tasks = [
        task(tmp_path, "first"),
        task(tmp_path, "broken", "print('no such luck'); sys.exit(3)", needs=("first",)),
        task(tmp_path, "after", needs=("broken",)),
        task(tmp_path, "after that", needs=("after",)),
        task(tmp_path, "other", "assert os.path.exists(os.path.dirname(out) + '/first.txt')", needs=("first",)),
    ]
    outcome, events = perform(tasks, tmp_path)
    assert outcome == Outcome(("broken",), {"after": "broken", "after that": "after"})
    assert happened(events, "done") == ["first", "other"]
    (said,) = [event.text for event in events if event.what == "failed"]
    assert "exit code 3" in said
    assert "no such luck" in said
    assert str(tmp_path / "logs" / "broken.log") in said
    assert not list((tmp_path / "made").glob("*.partial*"))


def test_a_second_start_repeats_nothing_and_mends_what_failed(tmp_path, preloaded):
    flaky = f"if not os.path.exists({str(tmp_path / 'mended')!r}): sys.exit(1)"
    tasks = [task(tmp_path, "first"), task(tmp_path, "flaky", flaky), task(tmp_path, "last", needs=("flaky", "first"))]
    assert perform(tasks, tmp_path)[0] == Outcome(("flaky",), {"last": "flaky"})
    before = (tmp_path / "made" / "first.txt").stat().st_mtime_ns
    (tmp_path / "mended").touch()
    outcome, events = perform(tasks, tmp_path)
    assert outcome == Outcome()
    assert happened(events, "done before") == ["first"]
    assert happened(events, "done") == ["flaky", "last"]
    assert (tmp_path / "made" / "first.txt").stat().st_mtime_ns == before
    assert perform(tasks, tmp_path)[1] == [Event(one, "done before") for one in tasks]


@pytest.mark.parametrize("change", ["input", "marker"])
def test_what_is_there_is_made_again_unless_it_is_of_the_present_inputs(tmp_path, change, preloaded):
    source = tmp_path / "source"
    source.write_text("one")
    copy = f"open(out, 'w').write(open({str(source)!r}).read())"
    first = task(tmp_path, "first", copy, inputs=(source,))
    tasks = [first, task(tmp_path, "second", needs=("first",), inputs=(first.output,)), task(tmp_path, "other")]
    assert perform(tasks, tmp_path)[0] == Outcome()
    if change == "input":
        source.write_text("two")
    else:
        marker_file(first.output).unlink()  # as 0.1.0 left it
    outcome, events = perform(tasks, tmp_path)
    assert outcome == Outcome()
    assert first.output.read_text() == source.read_text() + "first"
    assert happened(events, "done") == (["first", "second"] if change == "input" else ["first"])


def test_a_change_during_a_task_is_no_result(tmp_path, preloaded):
    source = tmp_path / "source"
    source.write_text("one")
    tasks = [task(tmp_path, "first", f"open({str(source)!r}, 'w').write('two')", inputs=(source,))]
    outcome, events = perform(tasks, tmp_path)
    assert outcome.failed == ("first",)
    assert "has changed meanwhile" in events[-1].text
    assert not tasks[0].output.exists()


@pytest.mark.parametrize(("retries", "done"), [(1, False), (2, True)])
def test_a_failed_task_is_retried_as_asked(tmp_path, retries, done, preloaded):
    count = tmp_path / "count"
    code = f"open({str(count)!r}, 'a').write('x'); assert len(open({str(count)!r}).read()) > 2"
    outcome, _ = perform([task(tmp_path, "flaky", code)], tmp_path, retries=retries)
    assert outcome.failed == (() if done else ("flaky",))
    assert len(count.read_text()) == retries + 1


def test_what_failed_in_an_earlier_graph_stops_the_next(tmp_path, preloaded):
    events: list[Event] = []
    config = configure(tmp_path, device="cpu", slots=1, retries=0, used=("light",))
    tasks = [task(tmp_path, "one", needs=("before",)), task(tmp_path, "two", needs=("long done",))]
    earlier = Outcome(failed=("before",))
    outcome = run_tasks(tasks, config, tmp_path, variables={}, device="cpu", tell=events.append, earlier=earlier)
    assert outcome == Outcome(("before",), {"one": "before"})
    assert happened(events, "done") == ["two"]


def test_two_gpus_are_never_shared(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3")
    code = (
        "gpu = os.environ['CUDA_VISIBLE_DEVICES']; begun = time.time(); time.sleep(0.5)\n"
        f"open({str(tmp_path / 'use')!r}, 'a').write(f'{{gpu}} {{begun}} {{time.time()}}\\n')"
    )
    tasks = [task(tmp_path, f"job {number}", code, slot="train") for number in range(6)]
    assert perform(tasks, tmp_path, slots=2, device="cuda")[0] == Outcome()
    uses = [line.split() for line in (tmp_path / "use").read_text().splitlines()]
    assert {gpu for gpu, *_ in uses} == {"3", "7"}
    for gpu in ("3", "7"):
        times = sorted((float(begun), float(ended)) for used, begun, ended in uses if used == gpu)
        assert len(times) > 1
        assert all(ended <= begun for (_, ended), (begun, _) in pairwise(times))


SLOW = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_benchmark_engine import perform, task
folder = Path({folder!r})
slow = "open({pid!r}, 'w').write(str(os.getpid()))\\nwhile not os.path.exists({go!r}): time.sleep(0.1); print('on')"
tasks = [task(folder, "first"), task(folder, "slow", slow, needs=("first",), slot={slot!r})]
print(perform(tasks, folder, retries=1)[0])
"""


@contextlib.contextmanager
def started(folder: Path, slot: str = "train") -> Iterator[subprocess.Popen[str]]:
    """Start a driver whose task runs until the file `go` is there; its process writes its number into `pid`."""
    program = SLOW.format(
        tests=str(Path(__file__).parent), folder=str(folder), pid=str(folder / "pid"), go=str(folder / "go"), slot=slot
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as driver:
        try:
            yield driver
        finally:
            (folder / "go").touch()  # also if the test has failed
            if driver.poll() is None:
                driver.kill()


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def written(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text().isdigit())
    return int(file.read_text())


def processes(driver: subprocess.Popen[str], folder: Path) -> list[int]:
    """All processes of a driver: those below it, and those that name its folder and its own."""
    found = [process.pid for process in psutil.Process(driver.pid).children(recursive=True)]
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []) and process.pid != driver.pid:
            found.append(process.pid)
    return found


def alive(pid: int) -> bool:
    try:  # not asked first whether it is there: it may go in between
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_killed_driver_leaves_nothing_behind_and_the_next_goes_on(tmp_path):
    with started(tmp_path) as driver:
        working = written(tmp_path / "pid")
        below = processes(driver, tmp_path)
        assert len(below) > 4  # interchange, workers, the task, its command
        driver.kill()
        driver.communicate()
        wait_for(lambda: not alive(working) and not any(map(alive, below)), 120)
    with started(tmp_path) as again:
        output, _ = again.communicate(timeout=120)
    assert "Outcome(failed=(), skipped={})" in output, output
    # The first task stayed as it was; each writes its name once.
    assert (tmp_path / "made" / "first.txt").read_text() == "first"
    assert (tmp_path / "made" / "slow.txt").read_text() == "slow"


def test_a_killed_worker_is_replaced(tmp_path):
    with started(tmp_path) as driver:
        working = written(tmp_path / "pid")
        (worker,) = [one for one in psutil.Process(working).parents()[1:] if "run_task" not in one.cmdline()][:1]
        (tmp_path / "pid").unlink()
        worker.kill()
        wait_for(lambda: not alive(working))
        assert alive(written(tmp_path / "pid"))
        (tmp_path / "go").touch()
        output, _ = driver.communicate(timeout=120)
    assert "Outcome(failed=(), skipped={})" in output, output


@pytest.mark.parametrize(("slot", "name"), [("train", "SIGINT"), ("light", "SIGTERM"), ("light", "SIGHUP")])
def test_interrupting_ends_everything_soon(tmp_path, slot, name):
    with started(tmp_path, slot) as driver:
        working = written(tmp_path / "pid")
        below = processes(driver, tmp_path)
        driver.send_signal(getattr(signal, name))
        driver.communicate(timeout=60)
        wait_for(lambda: not alive(working) and not any(map(alive, below)), 60)


@pytest.mark.parametrize("slot", ["light", "train"])
def test_a_signal_while_the_last_task_is_told_ends_the_benchmark(tmp_path, slot):
    """Or while Parsl shuts down, which takes seconds; after it come other tasks."""
    config = configure(tmp_path, device="cpu", slots=1, retries=0, used=(slot,))

    def tell(event: Event) -> None:
        if event.what == "done":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run_tasks([task(tmp_path, "only", slot=slot)], config, tmp_path, variables={}, device="cpu", tell=tell)
    assert (tmp_path / "made" / "only.txt").exists()


# One task


def order(folder: Path, code: str, **more) -> Order:
    made = Order("job", [sys.executable, "-c", code], str(folder), **more)
    made.file.parent.mkdir(parents=True)
    made.file.write_text(json.dumps(vars(made)))
    return made


def run_order(made: Order) -> int:
    return subprocess.run([sys.executable, "-m", "nnunet_plugins.benchmark.run_task", str(made.file)]).returncode


def test_a_task_keeps_what_it_prints_and_gets_its_variables(tmp_path, preloaded):
    code = "import os; print(os.environ['nnUNet_raw']); print('two')"
    made = order(tmp_path, code, output=str(tmp_path / "said.txt"), keeps_text=True, variables={"nnUNet_raw": "here"})
    assert run_order(made) == 0
    assert (tmp_path / "said.txt").read_text() == "here\ntwo\n"
    assert read_state(tmp_path, "job")["status"] == "done"


@pytest.mark.parametrize(
    ("code", "writes", "partly", "expected"),
    [(1, True, True, 0), (1, True, False, 1), (1, False, True, 1), (2, True, True, 1), (0, True, False, 0)],
)
def test_a_table_that_lacks_cases_is_taken(tmp_path, code, writes, partly, expected, preloaded):
    """`evaluate` ends with 1 and a table where it left out a case, and without one where something else is wrong."""
    output, part = tmp_path / "metrics.csv", tmp_path / "metrics.partial.csv"
    part.write_text("of an earlier start")
    command = f"import sys, pathlib; {writes} and pathlib.Path({str(part)!r}).write_text('rows'); sys.exit({code})"
    assert run_order(order(tmp_path, command, output=str(output), partly=partly)) == expected
    assert output.is_file() == (expected == 0)


@pytest.mark.parametrize(("code", "expected"), [(1, 0), (2, 1), (cli.FAULT, 1)])
def test_a_folder_that_lacks_cases_is_taken(tmp_path, code, expected, preloaded):
    """As of `predict` and `labels`; what a fault of the program has left is no result, however much of it there is."""
    output, part = tmp_path / "predicted", unfinished(tmp_path / "predicted")
    command = (
        f"import sys, pathlib; path = pathlib.Path({str(part)!r}); path.mkdir(); (path / 'a').touch(); sys.exit({code})"
    )
    assert run_order(order(tmp_path, command, output=str(output), partly=True)) == expected
    assert (output / "a").is_file() == (expected == 0)


def test_a_fault_of_the_program_is_no_case_that_failed(monkeypatch, capsys):
    def fault(arguments: argparse.Namespace) -> int:
        raise RuntimeError("of the program")

    monkeypatch.setattr("nnunet_plugins.trainers.command_line._list", fault)
    assert cli.main(["list"]) == cli.FAULT
    assert "RuntimeError: of the program" in capsys.readouterr().err


ORPHAN = """
import os, sys, threading
from nnunet_plugins.benchmark import engine

def end():
    while not engine._processes:
        pass
    (process,) = engine._processes
    print(process.pid, flush=True)
    os._exit(9)

threading.Thread(target=end).start()
engine.run_order(sys.argv[1])
"""


def test_a_task_whose_starter_is_killed_at_once_does_not_run(tmp_path):
    """Before the task's process has loaded what it needs to look after its parent."""
    made = order(tmp_path, f"import time; time.sleep(2); open({str(tmp_path / 'made')!r}, 'w')")
    starter = subprocess.run([sys.executable, "-c", ORPHAN, str(made.file)], capture_output=True, text=True)
    assert starter.returncode == 9
    wait_for(lambda: not alive(int(starter.stdout)))
    assert not (tmp_path / "made").exists()


def test_a_task_without_its_command_says_so(tmp_path, preloaded):
    made = Order("job", ["nnUNetv2_no_such_command"], str(tmp_path))
    made.file.parent.mkdir(parents=True)
    made.file.write_text(json.dumps(vars(made)))
    assert run_order(made) == 1
    state = read_state(tmp_path, "job")
    assert state["status"] == "failed"
    assert "nnUNetv2_no_such_command is neither beside" in "\n".join(state["tail"])


def test_a_lock_is_held_by_one_and_says_by_whom(tmp_path):
    with hold_lock(tmp_path / "lock") as first, hold_lock(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
        said = lock_holder(tmp_path / "lock")
        assert said.startswith(f"process {os.getpid()} on {socket.gethostname()}, there since 20")
    with hold_lock(tmp_path / "lock") as again:
        assert again


def test_who_waits_for_a_lock_of_which_the_file_is_gone_waits_for_the_new_one(tmp_path):
    """As where the fold's folder is deleted to train it again."""
    lock = tmp_path / "fold_0" / "lock"
    told, taken, done = threading.Event(), threading.Event(), threading.Event()

    def take() -> None:
        with hold_lock(lock, waiting=told.set):
            taken.set()
            done.wait(60)

    with hold_lock(lock):
        waiting = threading.Thread(target=take, daemon=True)
        waiting.start()
        assert told.wait(60)
        shutil.rmtree(lock.parent)
        another = hold_lock(lock)
        assert another.__enter__()
    assert not taken.wait(2.5)
    another.__exit__(None, None, None)
    assert taken.wait(60)
    with hold_lock(lock) as held:
        assert not held
    done.set()
    waiting.join(60)


def test_a_training_that_asks_to_go_on_was_interrupted_and_costs_no_retry(tmp_path, preloaded):
    """Exit code 75, as after a scheduler's warning."""
    assert run_order(order(tmp_path, f"import sys; sys.exit({STOPPED})")) == INTERRUPTED
    assert read_state(tmp_path, "job")["status"] == "interrupted"
    follow, goes_on = Training(10, ["tumour"]), _Progress(tmp_path)
    state = tmp_path / "states" / "job.json"

    def is_free(*lines: str) -> bool:
        for line in lines:
            follow(f"2026-11-26 12:00:00.000001: {line}")
        state.write_text(json.dumps({"status": "interrupted", "fraction": follow.fraction}))
        return goes_on("tasks/job.json")

    stop = "Stopped by SIGUSR1 in epoch {} after iteration {} of 250. checkpoint_latest.pth is saved"
    assert is_free("Epoch 0 ", stop.format(0, 100))
    assert follow.fraction == pytest.approx(0.04)
    assert is_free("Epoch 0 ", "Epoch time: 5.0 s", "Epoch 1 ", stop.format(1, 1))
    assert not is_free("Epoch 1 ", stop.format(1, 1))


TRAIN = """
import sys, time
from pathlib import Path
from nnunet_plugins.trainers.fold_folder import only_training
fold = Path(sys.argv[1])
with only_training(fold, print):
    with open(fold / "trained", "a") as file:
        file.write("x")
    time.sleep(2)
    (fold / "validation").mkdir()
    for name in ("checkpoint_final.pth", "validation/a.pkl", "validation/a.npz"):
        (fold / name).touch()
    (fold / "validation" / "summary.json").write_text("{}")
"""


def preprocessed(folder: Path) -> tuple[Run, dict[str, str]]:
    """What a training's record needs of nnU-Net's folders; returns a run and nnU-Net's variables."""
    run = Run("Dataset001_A", "2d", "plans", "nnUNetTrainer", "U-Net", "baseline")
    data = folder / "preprocessed" / run.dataset
    write_text(data / "plans.json", '{"configurations": {"2d": {"data_identifier": "data"}}}')
    write_text(data / "splits_final.json", '[{"train": ["a"], "val": ["b"]}]')
    (data / "data").mkdir()
    (data / "data" / "a.pkl").write_bytes(pickle.dumps({}))
    return run, {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}


def test_two_benchmarks_never_train_one_fold_at_once(tmp_path, preloaded):
    """Each is another benchmark's task, with a folder of its own; the trainer asks for the lock that is held for it."""
    run, variables = preprocessed(tmp_path)
    fold = tmp_path / "results" / run.dataset / run.model / "fold_0"
    running = []
    for name in ("one", "two"):
        folders = Folders(*map(Path, variables.values()), tmp_path / name)
        write_text(folders.recipe(run), json.dumps({"recipe": {}, "epochs": 1, "labels": []}))
        command = [sys.executable, "-c", TRAIN, str(fold)]
        more = {"variables": variables, "there": ["trained", str(fold)], "lock": str(fold / LOCK)}
        made = Order("job", command, str(folders.output), training=(run.identity, 0, "cpu"), **more)
        write_text(made.file, json.dumps(vars(made)))
        running.append(subprocess.Popen([sys.executable, "-m", "nnunet_plugins.benchmark.run_task", str(made.file)]))
        wait_for(lambda: (fold / "trained").exists())
    wait_for(lambda: read_state(tmp_path / "two", "job").get("status", "").startswith("waiting for process "))
    assert [process.wait(60) for process in running] == [0, 0]
    assert (fold / "trained").read_text() == "x"
    (attempt,) = read_conditions(fold, folders.ledger)
    assert set(attempt["hashes"]) == {"plans", "splits", "data", "recipe"}


SAY = """
import sys
print(sys.argv[2:])
"""


def test_a_training_from_weights_goes_on_without_them(tmp_path, preloaded):
    """nnU-Net refuses both at a time."""
    run, variables = preprocessed(tmp_path)
    folders = Folders(*map(Path, variables.values()), tmp_path)
    write_text(folders.recipe(run), json.dumps({"recipe": {}, "epochs": 1, "labels": []}))
    fold = folders.fold(run, 0)
    command = [sys.executable, "-c", SAY, "--npz", "-pretrained_weights", "start.pth", "-last"]
    made = Order("job", command, str(tmp_path), variables=variables, training=(run.identity, 0, "cpu"))
    write_text(made.file, json.dumps(vars(made)))
    assert run_order(made) == 0
    fold.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fold / "checkpoint_latest.pth", "w") as file:
        file.writestr("data.pkl", "")
    assert run_order(made) == 0
    said = [line for line in made.log.read_text().splitlines() if line.startswith("[")]
    assert said == ["['-pretrained_weights', 'start.pth', '-last']", "['--c', '-last']"]


DEAF = """
import os, sys, time
from pathlib import Path
from nnunet_plugins.trainers.fold_folder import only_training
fold = Path(sys.argv[1])
with only_training(fold, print):
    worker = os.fork()
    if worker:
        (fold / "pids").write_text(f"{os.getpid()} {worker}")
    time.sleep(300)
"""


def test_a_training_that_outlives_its_starter_keeps_others_out_and_its_workers_do_not(tmp_path):
    run, variables = preprocessed(tmp_path)
    folders = Folders(*map(Path, variables.values()), tmp_path / "out")
    fold = folders.fold(run, 0)
    write_text(folders.recipe(run), json.dumps({"recipe": {}, "epochs": 1, "labels": []}))
    more = {"variables": variables, "there": ["trained", str(fold)], "lock": str(fold / LOCK)}
    command = [sys.executable, "-c", DEAF, str(fold)]
    made = Order("job", command, str(folders.output), training=(run.identity, 0, "cpu"), **more)
    write_text(made.file, json.dumps(vars(made)))
    with subprocess.Popen([sys.executable, "-m", "nnunet_plugins.benchmark.run_task", str(made.file)]) as process:
        wait_for(lambda: (fold / "pids").exists() and " " in (fold / "pids").read_text())
        process.kill()
    training, worker = map(int, (fold / "pids").read_text().split())
    try:
        with hold_lock(fold / LOCK) as held:
            assert not held
        os.kill(training, signal.SIGKILL)
        wait_for(lambda: not alive(training))
        assert alive(worker)
        with hold_lock(fold / LOCK) as held:
            assert held
    finally:
        os.kill(worker, signal.SIGKILL)


PREDICT = """
import sys, time
from pathlib import Path
part, cases = Path(sys.argv[1]), [f"c{number}" for number in range(8)]
part.mkdir(exist_ok=True)
left = [case for case in cases if not (part / f"{case}.nii.gz").exists()]
print("There are 8 cases that I would like to predict")
print("overwrite was set to False, so I am only working on cases that haven't been predicted yet. ", end="")
print(f"That's {len(left)} cases.")
for case in left:
    print(f"Predicting {case}:", flush=True)
    (part / f"{case}.nii.gz").write_text(Path(sys.argv[2]).read_text())
    if case == "c5" and len(left) == 8:
        sys.exit(75)  # as if the job's time was over
"""


@pytest.mark.parametrize("changed", [False, True])
def test_a_prediction_goes_on_with_the_next_job(tmp_path, changed):
    """The last files may be torn, and are made again; with another checkpoint, all are."""
    output, model = tmp_path / "test", tmp_path / "checkpoint"
    model.write_text("one")
    part = tmp_path / "test.partial"
    made = order(tmp_path, PREDICT, output=str(output), inputs=[str(model)], goes_on=True)
    made.command.extend([str(part), str(model)])
    made.file.write_text(json.dumps(vars(made)))
    goes_on = _Progress(tmp_path)
    assert run_order(made) == INTERRUPTED
    assert goes_on("tasks/job.json")  # so it costs no retry
    first = [f"Predicting c{number}:" for number in range(6)]
    if changed:
        model.write_text("two")
        assert run_order(made) == INTERRUPTED
    assert run_order(made) == 0
    log = [line for line in made.log.read_text().splitlines() if line.startswith("Predicting")]
    assert log == first * (1 + changed) + [f"Predicting c{number}:" for number in range(3, 8)]
    assert {file.read_text() for file in output.iterdir()} == {model.read_text()}
    assert len(list(output.iterdir())) == 8
    assert not part.exists()
    assert not marker_file(part).exists()


def test_no_training_is_bound_to_a_core(tmp_path):
    """Where it would wait for what else runs there."""
    (train,) = configure(tmp_path, device="cpu", slots=1, retries=0, used=["train"]).executors
    assert train.cpu_affinity == "none"


# Descriptions of clusters

GOOD = """
provider: slurm
train:
  queue: gpu
  walltime: "24:00:00"
  gpus: 1
  cores: 12
  memory: 64
  jobs: 8
  address: 127.0.0.1
  environment: |
    module load cuda
"""


def test_a_good_cluster_file_becomes_jobs_of_one_task(tmp_path):
    (tmp_path / "cluster.yaml").write_text(GOOD)
    config = configure(tmp_path, device="cuda", slots=1, retries=2, cluster=tmp_path / "cluster.yaml")
    train, light = config.executors
    assert (train.label, light.label, config.retries) == ("train", "light", 2)
    assert train.encrypted
    provider = train.provider
    assert (provider.partition, provider.walltime, provider.max_blocks) == ("gpu", "24:00:00", 8)
    assert (provider.gpus_per_node, provider.cores_per_node, provider.mem_per_node) == (1, 12, 64)
    assert train.max_workers_per_node == 1
    assert "module load cuda" in provider.worker_init
    assert str(Path(sys.executable).parent) in provider.worker_init


def test_keys_are_kept_where_nobody_else_reads_them_or_not_used(tmp_path, monkeypatch):
    """As on a disk that was mounted from Windows."""
    (tmp_path / "cluster.yaml").write_text(GOOD)
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda *_, **__: (tmp_path / "open").mkdir(0o777) or str(tmp_path / "open")
    )
    with pytest.raises(BenchmarkError, match="would be no secret; give another folder with -o"):
        configure(tmp_path, device="cuda", slots=1, retries=0, cluster=tmp_path / "cluster.yaml")
    (train,) = configure(tmp_path, device="cpu", slots=1, retries=0, used=("train",)).executors
    assert (train.encrypted, train.address) == (False, "127.0.0.1")


@pytest.mark.parametrize("kind", ["lsf", "pbs"])
def test_other_schedulers_take_the_same_keys(tmp_path, kind):
    (tmp_path / "cluster.yaml").write_text(GOOD.replace("slurm", kind))
    config = configure(tmp_path, device="cuda", slots=1, retries=0, used=("train",), cluster=tmp_path / "cluster.yaml")
    (train,) = config.executors
    assert train.provider.queue == "gpu"
    text = f"{train.provider.scheduler_options} {getattr(train.provider, 'select_options', '')}"
    assert {"lsf": "num=1", "pbs": "ngpus=1"}[kind] in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider: cloud", "needs a line 'provider:'"),
        ("- slurm", "needs a line 'provider:'"),
        ("provider: slurm", "needs a section 'train:'"),
        ("provider: slurm\ntrain: {quue: gpu}", "unknown key 'quue'"),
        ("provider: slurm\ntrain: {walltime: 24}", "has to be hours, minutes and seconds"),
        ("provider: slurm\ntrain: {jobs: many}", "has to be a whole number"),
        ("provider: slurm\ntrain: {}\nheavy: {}", "unknown section 'heavy'"),
        ("provider: kubernetes\ntrain: {}", "needs train.image"),
        ("provider: [", "cannot be read"),
        ("provider: slurm\ntrain: {}\nlight:", "'light' is empty; describe its jobs, or leave it out"),
        ("provider: slurm\ntrain: {walltime: 24h}", "train.walltime has to be hours, minutes and seconds .* not '24h'"),
        ("provider: slurm\ntrain: {walltime: 24:00:00}", r"put it in quotes\), not 86400"),
        ("provider: slurm\ntrain: {jobs: 0}", "train.jobs has to be a whole number from 1, not 0"),
        ("provider: slurm\ntrain: {jobs: true}", "has to be a whole number from 1, not True"),
        ("provider: slurm\ntrain: {gpus: -1}", "has to be a whole number from 0"),
        ("provider: slurm\ntrain: {queue: }", "train.queue has to be a text .*, not None"),
        ("provider: kubernetes\ntrain: {image: a}\nlight: {}", "needs light.image"),
        ("provider: kubernetes\ntrain: {image: a, volumes: [claim]}", "a list of pairs"),
    ],
)
def test_a_bad_cluster_file_is_one_clear_error(tmp_path, text, said):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(BenchmarkError, match=said):
        read_cluster(tmp_path / "cluster.yaml")


def test_all_that_is_wrong_in_a_cluster_file_is_said_at_once(tmp_path):
    text = "provider: cloud\ntrain: {quue: gpu, jobs: 0}\nlight: 3\nheavy: {}\n"
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(BenchmarkError) as error:
        read_cluster(tmp_path / "cluster.yaml")
    said = str(error.value).splitlines()
    assert said[0] == f"{tmp_path / 'cluster.yaml'} cannot be used:"
    for word in ("slurm, lsf, pbs, kubernetes", "'quue'", "train.jobs", "'light'", "'heavy'"):
        assert sum(word in line for line in said[1:]) == 1
    assert len(said) == 6


def test_gpus_are_those_that_the_user_left_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert accelerators(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert accelerators(1) == ["4"]
    with pytest.raises(BenchmarkError, match="leaves 2"):
        accelerators(3)


def test_a_machine_without_parsl_is_told_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['parsl'] = None\n"
        "from nnunet_plugins.benchmark.cluster import configure; from pathlib import Path\n"
        "configure(Path('.'), device='cpu', slots=1, retries=0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert "pip install 'nnunet-plugins[benchmark]'" in result.stderr
