"""CPU seconds that a report takes, with this code and with another state of it, side by side on the same records.

    git worktree add /tmp/before COMMIT
    python benchmarks/report_time.py --before /tmp/before
    python benchmarks/report_time.py --before /tmp/before --sizes 20x10x100x10 1x8x1000x30

A size is datasets x algorithms x cases x labels; the records are made up. `--before` is a folder in which the package
nnunet_plugins lies, such as a worktree or an installed copy; without it only this code is measured. Each report is
built in a process of its own, the two states by turns, and the least time of each counts: CPU seconds of the process,
user and system, the start of Python and its libraries (about 2 s) included.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from report_records import make_record  # noqa: E402

from nnunet_plugins.report.equality import read_equality  # noqa: E402

SIZES = ("20x10x100x10", "1x8x1000x30")
BUILD = """
import sys
from pathlib import Path
import nnunet_plugins
assert Path(nnunet_plugins.__file__).is_relative_to(sys.argv[1]), nnunet_plugins.__file__
from nnunet_plugins.report.build import build_report
build_report(Path(sys.argv[2]))
"""


def write_record(folder: Path, size: str) -> None:
    """Write a record that both states can read: 0.1.0 wants what follows from the rest of a proof in it, too."""
    datasets, algorithms, cases, labels = map(int, size.split("x"))
    record = make_record(datasets=datasets, algorithms=algorithms, cases=cases, labels=labels)
    for entry in record.equality:
        found = read_equality(entry)
        entry |= {"same": list(found.same), "differences": found.differences}
    record.write(folder / "record")


def cpu_seconds(package: Path, folder: Path) -> float:
    """Build a report in a process of its own; returns the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", BUILD, package, folder], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="where another state of the package lies")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="SIZE")
    parser.add_argument("--repeats", type=int, default=1, metavar="N")
    arguments = parser.parse_args(argv)
    states = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    for size in arguments.sizes:
        taken: dict[str, list[float]] = {name: [] for name in states}
        with tempfile.TemporaryDirectory() as folder:
            write_record(Path(folder), size)
            for _ in range(arguments.repeats):
                for name, package in states.items():
                    taken[name].append(cpu_seconds(package, Path(folder)))
        least = {name: min(seconds) for name, seconds in taken.items()}
        shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in least.items())
        ratio = f", {least['now'] / least['before']:.2f} of it" if "before" in least else ""
        print(f"{size}: {shown}{ratio}", flush=True)


if __name__ == "__main__":
    main()
