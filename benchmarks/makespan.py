"""How well the benchmark's engine keeps its workers busy: sleeping tasks of equal length, against the ideal.

    python benchmarks/makespan.py --workers 2 --tasks 6 --seconds 30

The ideal is the number of rounds times the length of a task. What lies above it is the start of the engine and of a
process per task, so it shrinks with the tasks' length; trainings take hours.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from nnunet_plugins.benchmark.cluster import configure
from nnunet_plugins.benchmark.engine import run_tasks
from nnunet_plugins.benchmark.tasks import Task


def sleeping(folder: Path, number: int, seconds: float) -> Task:
    output = folder / f"{number}.txt"
    program = f"import time; time.sleep({seconds}); print('slept')"
    name = f"sleep-{number}"
    command = (sys.executable, "-c", program)
    return Task(name, name, command, slot="train", output=output, keeps_text=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = [sleeping(folder / "made", number, arguments.seconds) for number in range(arguments.tasks)]
        config = configure(folder, device="cpu", slots=arguments.workers, retries=0, used=("train",))
        start = time.monotonic()
        outcome = run_tasks(tasks, config, folder, variables={}, device="cpu", tell=lambda event: None)
        taken = time.monotonic() - start
    if outcome.failed:
        raise SystemExit(f"failed: {', '.join(outcome.failed)}")
    ideal = math.ceil(arguments.tasks / arguments.workers) * arguments.seconds
    print(
        f"{arguments.tasks} tasks of {arguments.seconds:g} s on {arguments.workers} workers: {taken:.1f} s, "
        f"ideal {ideal:g} s, ratio {taken / ideal:.3f}"
    )


if __name__ == "__main__":
    main()
