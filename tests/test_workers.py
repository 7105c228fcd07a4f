"""Jobs in processes, Ctrl-C, and output that nobody reads: as users and their shells see them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from operator import truediv
from pathlib import Path

import pytest
from conftest import ROOT, script

from nnunet_plugins.workers import FailedJobError, finish_jobs

COMMAND = [sys.executable, "-m", "nnunet_plugins.cli"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_fails_stops_no_other(processes):
    found = dict(finish_jobs({str(number): partial(truediv, 1, number) for number in range(3)}, processes))
    assert isinstance(found["0"], FailedJobError)
    assert str(found.pop("0")) == "ZeroDivisionError: division by zero"
    assert found == {"1": 1.0, "2": 0.5}


def test_a_process_that_is_killed_is_told():
    found = dict(finish_jobs({"a": partial(truediv, 1, 1), "b": partial(os._exit, 3)}, 2))
    assert "a process was killed" in str(found["b"])


def interrupt(process: subprocess.Popen) -> tuple[int, str]:
    """Send what a terminal sends at Ctrl-C, to the whole group; returns the exit code and all that was said."""
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def start(command: list, **more: object) -> subprocess.Popen:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, start_new_session=True, **both, **more)


JOBS = """
import sys, time
from functools import partial
from nnunet_plugins.workers import finish_jobs
if __name__ == "__main__":
    try:
        print("started", flush=True)
        print(dict(finish_jobs({n: partial(time.sleep, 0.01 if n == "first" else 60) for n in ("first", *"abc")}, 2)))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("wait", [0.01, 3])
def test_interrupted_jobs_end_at_once_and_without_a_word(tmp_path, wait):
    """Both while the processes start and while they work."""
    (tmp_path / "jobs.py").write_text(JOBS)
    process = start([sys.executable, tmp_path / "jobs.py"], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    begun = time.monotonic()
    time.sleep(wait)
    assert interrupt(process) == (130, "")
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_an_interrupted_command_ends_with_130(tmp_path):
    # Buffered, as users have it.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = start([script("nnunet-plugins"), "doctor"], env=env)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Discovery"):
            break
    code, output = interrupt(process)
    assert code == 130, output
    assert output.endswith("nnunet-plugins doctor: interrupted\n")
    assert "Traceback" not in output


ENDING = """
import sys
from types import SimpleNamespace
from nnunet_plugins import cli
from nnunet_plugins.errors import InputError
def run(_):
    print("told before")
    raise {error}
cli.parser = lambda: SimpleNamespace(parse_args=lambda _: SimpleNamespace(run=run, command="doctor"))
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("KeyboardInterrupt", 130, "\nnnunet-plugins doctor: interrupted\n"),
        ("InputError('no')", 2, "nnunet-plugins doctor: no\n"),
    ],
)
def test_the_reason_of_an_end_comes_last(error, code, message):
    """Also where the output is buffered, as in a file or a pipe."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = start([sys.executable, "-c", ENDING.format(error=error)], env=env)
    assert process.communicate() == ("told before\n" + message, None)
    assert process.returncode == code


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["trainer-path"]])
def test_output_that_nobody_reads(command):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *command], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_finds_no_room():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    told = "nnunet-plugins list: [Errno 28] No space left on device; make room, and give the command again\n"
    assert (done.returncode, done.stderr) == (2, told)
