"""Kill a short training again and again, and see what it loses: nothing but the steps since its last checkpoint.

    python benchmarks/kills.py --kills 50 --inside-write 10

A U-Net trains on the phantom of `nnunet-plugins demo` on the CPU, seeded, and writes a checkpoint every half second. It
is killed with SIGKILL at random moments, some of them in the middle of writing a checkpoint, and started again with
`--c`. Each start has to go on from the last checkpoint that was completed, or a later one. When all kills are done, the
training goes on to its end, and its weights have to be those of a training that nothing happened to, bit by bit.

Half of the kills are Ctrl-C in a shell where the output goes through `tee`, which ends by it at once: there the
training has to end with exit code 75.
"""

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nnunet_plugins.demo import phantom
from nnunet_plugins.trainers.checkpoints import load_checkpoint

FAULTS = Path(__file__).resolve().parent.parent / "tests" / "faults"
TRAINER = "nnUNetTrainerFaultsLong"


class Training:
    """The training, in folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
        self.variables = {**clean, **{name: str(folder / name) for name in names}}
        self.variables.update(nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1", PYTHONUNBUFFERED="1")
        self.run("nnUNetv2_plan_and_preprocess", "-d", "999", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
        self.variables.update(
            nnUNet_n_proc_DA="0",  # random numbers of other processes are in no checkpoint
            nnUNet_extTrainer=str(FAULTS),
            nnUNet_plugins_save_minutes=str(0.5 / 60),
            JOURNAL=str(folder / "journal.txt"),
            GO=str(folder / "never"),
        )

    @property
    def fold(self) -> Path:
        """Its folder in nnU-Net's results."""
        return self.folder / "nnUNet_results" / phantom.DATASET / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"

    def run(self, *command: str) -> str:
        """Run a command to its end; returns its output."""
        path = Path(sys.executable).parent / command[0]
        result = subprocess.run(
            [path, *command[1:]],
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SystemExit(f"{command} ended with {result.returncode}:\n{result.stdout[-3000:]}")
        return result.stdout

    def train(self) -> str:
        """Train to the end, from the last checkpoint if there is one."""
        return self.run("nnUNetv2_train", "999", "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu", "--c")

    def train_and_kill(self, seconds: float | None) -> str:
        """Kill it so long after its first epoch has begun, or in its second write; returns the output until then."""
        command = [Path(sys.executable).parent / "nnUNetv2_train", "999", "3d_fullres", "0", "-tr", TRAINER]
        process = subprocess.Popen(
            [*command, "-device", "cpu", "--c"],
            env=self.variables if seconds is not None else {**self.variables, "HOLD": "write 2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        seen = []
        timer = None
        for line in process.stdout:
            seen.append(line)
            if timer is None and seconds is not None and re.search(r": Epoch \d+", line):
                timer = threading.Timer(seconds, process.kill)
                timer.start()
            if line == "holding\n":
                process.kill()
        if process.wait() != -9:
            reason = f"with {process.returncode}; a smaller --longest leaves more to train"
            raise SystemExit(f"it ended by itself, {reason}:\n{''.join(seen)[-3000:]}")
        return "".join(seen)

    def train_and_interrupt(self, seconds: float) -> str:
        """Press Ctrl-C so long after its first epoch has begun, with `tee` in the pipe; returns what `tee` has seen."""
        training = Path(sys.executable).parent / "nnUNetv2_train"
        log, codes = self.folder / "tee.txt", self.folder / "codes.txt"
        log.unlink(missing_ok=True)
        process = subprocess.Popen(
            # The shell itself lives on, to tell the exit codes.
            [
                *("bash", "-c"),
                f"trap : INT; {shlex.quote(str(training))} 999 3d_fullres 0 -tr {TRAINER} -device cpu --c 2>&1 | "
                f"tee {log}; echo ${{PIPESTATUS[*]}} > {codes}",
            ],
            env=self.variables,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not (log.exists() and re.search(r": Epoch \d+", log.read_text())):
            time.sleep(0.02)
        time.sleep(seconds)
        if process.poll() is not None:
            raise SystemExit(
                f"it ended by itself; a smaller --longest leaves more to train:\n{log.read_text()[-3000:]}"
            )
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        if codes.read_text().split() != ["75", str(128 + signal.SIGINT)]:
            raise SystemExit(f"the training and tee ended with {codes.read_text()}:\n{log.read_text()[-3000:]}")
        return log.read_text()

    def completed(self) -> tuple[int, int]:
        """Epoch and step of the furthest checkpoint that was completed."""
        journal = Path(self.variables["JOURNAL"])
        lines = journal.read_text().splitlines() if journal.exists() else []
        return max(((int(line.split()[0]), int(line.split()[1])) for line in lines), default=(0, 0))

    def weights(self) -> dict:
        """Return the network's weights at the end of the training."""
        return load_checkpoint(self.fold / "checkpoint_final.pth")["network_weights"]


def resumed_at(output: str) -> tuple[int, int] | None:
    """Epoch and step at which a training went on, from its output; None if it was killed before it said so."""
    epoch = re.search(r": Epoch (\d+)", output)
    step = re.search(r"Going on after iteration (\d+)", output.partition(": Epoch")[2].partition(": Epoch")[0])
    return (int(epoch[1]), int(step[1]) if step else 0) if epoch else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside-write", type=int, default=10, help="so many of them in the middle of a write")
    parser.add_argument("--longest", type=float, default=3, help="seconds of training before a kill, at the most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    # A shell that starts this in the background has Ctrl-C ignored, and so would have the training and `tee`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chance = random.Random(arguments.seed)
    moments: list[float | None] = [None] * arguments.inside_write
    moments += [chance.uniform(0.3, arguments.longest) for _ in range(arguments.kills - arguments.inside_write)]
    chance.shuffle(moments)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        phantom.write_dataset(Path(name, "nnUNet_raw", phantom.DATASET), seed=0)
        training = Training(Path(name))
        torn = later = 0
        timed = [number for number, moment in enumerate(moments) if moment is not None]
        through_tee = set(chance.sample(timed, min(len(timed), len(moments) // 2)))
        for number, moment in enumerate(moments):
            before = training.completed()
            if number in through_tee:
                assert moment is not None
                output = training.train_and_interrupt(moment)
            else:
                output = training.train_and_kill(moment)
            where = resumed_at(output)
            torn += bool(list(training.fold.glob("*.partial.*")))
            place = f"{moment:.1f} s into training" if moment is not None else "inside a write"
            how = "interrupted" if number in through_tee else "killed"
            print(f"{number + 1:3} {how} {place}: started at {where}, last completed checkpoint {before}", flush=True)
            # Killed before it printed anything, there is nothing to check; the next start will tell.
            if where is not None and where < before:
                raise SystemExit(f"it went on from {where}, although the checkpoint of {before} had been completed")
            later += where is not None and before > (0, 0)
        training.train()
        interrupted = training.weights()
        training.fold.rename(training.fold.with_name("interrupted"))
        training.train()
        whole = training.weights()
    equal = all(interrupted[key].equal(whole[key]) for key in whole)
    print(
        f"{len(moments)} kills, {len(through_tee)} of them Ctrl-C with tee in the pipe, {arguments.inside_write} "
        f"inside a write ({torn} left a torn file): {later} starts from "
        f"a checkpoint, none from an older one than the last completed. Weights at the end "
        f"{'equal' if equal else 'NOT equal'} to those of an uninterrupted training. {time.monotonic() - start:.0f} s"
    )
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
