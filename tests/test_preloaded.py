"""Commands that find their libraries loaded end as others do: a failure must not look like a success."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import commands

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="commands are the real ones here")


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([commands() / "python", "-c", code], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("print('done')", 0, "done"),
        ("raise SystemExit(75)", 75, ""),
        ("raise SystemExit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getppid(), 9)", 1, "gone"),  # the one that would have told the exit code
    ],
)
def test_ends_as_the_command_ended(code, status, said):
    result = run(code)
    assert result.returncode == status
    assert said in result.stdout + result.stderr


def test_has_the_variables_and_the_folder_of_its_caller(tmp_path):
    result = run("import os; print(os.environ['A'], os.getcwd())", env={**os.environ, "A": "b"}, cwd=tmp_path)
    assert result.stdout == f"b {tmp_path}\n"


def test_draws_numbers_of_its_own():
    """As in new interpreters: or all networks would begin with the same weights."""
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    first, second = (run(code).stdout.split() for _ in range(2))
    assert len(first) == 3
    assert not set(first) & set(second)


def test_has_one_thread():
    assert run("import torch; print(torch.get_num_threads())").stdout == "1\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 7), (signal.SIGKILL, -9)])
def test_signals_reach_it(tmp_path, number, status):
    code = "import os, signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(os.getpid(), flush=True)"
    process = subprocess.Popen(
        [commands() / "python", "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    running = Path("/proc", process.stdout.readline().strip())
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == status
    for _ in range(100):
        if not running.exists():
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError("it outlived its launcher")
