"""Follow nnU-Net's commands while they run: a few readable lines out of their output, and what they take."""

import re
import subprocess
import threading
import time
from collections.abc import Container, Sequence
from typing import Any

from nnunet_plugins.benchmark.training_log import read_line


def duration(seconds: float) -> str:
    """Write a time span as a person would: `8 s`, `2 min 05 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Training:
    """Follows the output of `nnUNetv2_train`.

    Args:
        epochs: number of epochs of the run; None if it is not known.
        labels: names of the foreground labels, in the order of the pseudo Dice.
    """

    def __init__(self, epochs: int | None, labels: Sequence[str]) -> None:
        self.epochs, self.labels = epochs, labels
        self.epoch, self.loss, self.dice = 0, "", ""
        self.done = 0.0  # epochs
        self.seconds: list[float] = []

    @property
    def fraction(self) -> float | None:
        """How much of the training is done, from 0 to 1; None if that is not known."""
        return self.done / self.epochs if self.epochs else None

    def __call__(self, line: str) -> str | None:
        """Take one line of output; return what to tell the user, once per epoch and at the start of the validation."""
        told = read_line(line)
        if told is None:
            return None
        if told.about == "epoch":
            self.done = told.value
            self.epoch = told.value + 1
        elif told.about == "train_loss":
            self.loss = str(told.value)
        elif told.about == "pseudo_dice":
            self.dice = " ".join(f"{name} {value:.2f}" for name, value in zip(self.labels, told.value, strict=False))
        elif told.about == "seconds":
            self.seconds.append(told.value)
            self.done = self.epoch
            return self._epoch_line()
        elif told.about == "stopped":
            self.done = told.value
            return "stopped from outside"
        elif told.about == "trained":
            return "validating"
        return None

    def _epoch_line(self) -> str:
        remaining, of = "", ""
        if self.epochs:
            left = (self.epochs - self.epoch) * sum(self.seconds) / len(self.seconds)
            remaining, of = f", about {duration(left)} left" if self.epoch < self.epochs else "", f"/{self.epochs}"
        return (
            f"epoch {self.epoch}{of}  train loss {self.loss}  pseudo Dice {self.dice}"
            f"  ({duration(self.seconds[-1])}{remaining})"
        )


class Prediction:
    """Follows the output of `nnUNetv2_predict`; of other commands it takes nothing.

    Attributes:
        fraction: how much is done, from 0 to 1, with what an earlier attempt has left; None while it is not known.
    """

    def __init__(self) -> None:
        self.cases, self.left, self.begun = 0, 0, 0
        self.fraction: float | None = None

    def __call__(self, line: str) -> str | None:
        """Take one line of output; return what to tell the user, once per case."""
        if found := re.fullmatch(r"There are (\d+) cases that I would like to predict\s*", line):
            self.cases = self.left = int(found[1])
        elif found := re.search(r"haven't been predicted yet. That's (\d+) cases", line):
            self.left = int(found[1])
        elif found := re.fullmatch(r"Predicting ([^\s:]+):\s*", line):
            self.begun += 1
            if self.cases:
                self.fraction = (self.cases - self.left + self.begun - 1) / self.cases
            return f"predicting {found[1]}"
        return None


class Usage:
    """Watches what a process takes while the `with` block lasts: memory and energy of its GPUs, or else main memory.

    Attributes:
        peak: the most memory that was seen, in bytes; None if nothing was.
        kind: what `peak` is, in words.
        joules: energy that its GPUs drew while it held memory there, other processes' included; None without a GPU that
            tells its power.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.peak: int | None = None
        self.kind = ""
        self.joules: float | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, process: int) -> None:
        """Begin to watch a process, given by its number."""
        self._thread = threading.Thread(target=self._look, args=(process,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "Usage":
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, process: int) -> None:
        before = time.monotonic()
        while not self._ended.wait(self.seconds):
            held, kind = _gpu_memory(process), "GPU memory as nvidia-smi shows it"
            now = time.monotonic()
            if held and (watts := _power(held)) is not None:
                self.joules = (self.joules or 0.0) + watts * (now - before)
            before = now
            seen = sum(held.values()) or None
            if seen is None and self.kind != kind:
                seen, kind = _resident_memory(process), "resident main memory"
            if seen is not None and (kind != self.kind or seen > (self.peak or 0)):
                self.peak, self.kind = seen, kind


def _gpu_memory(process: int) -> dict[str, int]:
    """Return the bytes that a process holds, by GPU; none without NVIDIA's tool."""
    rows = _ask_gpus("--query-compute-apps=pid,gpu_uuid,used_memory")
    return {gpu: int(megabytes) * 2**20 for pid, gpu, megabytes in rows if pid == str(process) and megabytes.isdigit()}


def _power(gpus: Container[str]) -> float | None:
    """Return the watts that GPUs draw together; None if one does not tell."""
    drawn = [watts for gpu, watts in _ask_gpus("--query-gpu=uuid,power.draw") if gpu in gpus]
    try:
        return sum(map(float, drawn)) if drawn else None
    except ValueError:  # [N/A]
        return None


def _ask_gpus(query: str) -> list[list[str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[part.strip() for part in line.split(",")] for line in output.splitlines() if "," in line]


def _resident_memory(process: int) -> int | None:
    import psutil

    try:
        return psutil.Process(process).memory_info().rss
    except psutil.Error:
        return None
