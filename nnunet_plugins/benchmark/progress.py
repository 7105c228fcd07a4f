"""Follow nnU-Net's commands while they run: a few readable lines out of their output, and the memory they take."""

import re
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_NUMBER = re.compile(r"nan|\d+(?:\.\d*)?(?:e[-+]?\d+)?")


def duration(seconds: float) -> str:
    """Write a time span as a person would: `8 s`, `2 min 05 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def pseudo_dice(line: str) -> list[float]:
    """Return the values in a line of nnU-Net's log that begins with "Pseudo dice"."""
    # numpy 2 writes np.float32(0.5), numpy 1 just 0.5.
    return [float(value) for value in _NUMBER.findall(re.sub(r"np\.float\d+", "", line.partition("[")[2]))]


class Training:
    """Follows the output of `nnUNetv2_train`.

    Args:
        epochs: number of epochs of the run.
        labels: names of the foreground labels, in the order of the pseudo Dice.
    """

    def __init__(self, epochs: int, labels: Sequence[str]) -> None:
        self.epochs, self.labels = epochs, labels
        self.epoch, self.loss, self.dice = 0, "", ""
        self.seconds: list[float] = []

    @property
    def fraction(self) -> float:
        """How much of the training is done, from 0 to 1."""
        return self.epoch / self.epochs if self.dice else 0.0

    def __call__(self, line: str) -> str | None:
        """Take one line of output; return what to tell the user, once per epoch and at the start of the validation."""
        line = STAMP.sub("", line)
        if found := re.fullmatch(r"Epoch (\d+)\s*", line):
            self.epoch = int(found[1]) + 1
        elif line.startswith("train_loss "):
            self.loss = line.split()[1]
        elif line.startswith("Pseudo dice "):
            self.dice = self._pseudo_dice(line)
        elif found := re.match(r"Epoch time: ([\d.]+) s", line):
            self.seconds.append(float(found[1]))
            return self._epoch_line()
        elif line.startswith("Training done"):
            return "validating"
        return None

    def _pseudo_dice(self, line: str) -> str:
        values = pseudo_dice(line)
        return " ".join(f"{name} {value:.2f}" for name, value in zip(self.labels, values, strict=False))

    def _epoch_line(self) -> str:
        left = (self.epochs - self.epoch) * sum(self.seconds) / len(self.seconds)
        remaining = f", about {duration(left)} left" if self.epoch < self.epochs else ""
        return (
            f"epoch {self.epoch}/{self.epochs}  train loss {self.loss}  pseudo Dice {self.dice}"
            f"  ({duration(self.seconds[-1])}{remaining})"
        )


def prediction(line: str) -> str | None:
    """Take one line of `nnUNetv2_predict`; return what to tell the user, once per case."""
    found = re.fullmatch(r"Predicting ([^\s:]+):\s*", line)
    return f"predicting {found[1]}" if found else None


class Memory:
    """Watches the memory of a process while the `with` block lasts: on its GPUs, or else, resident in main memory.

    Attributes:
        peak: the most that was seen, in bytes; None if nothing was.
        kind: what `peak` is, in words.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self.peak: int | None = None
        self.kind = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, process: int) -> None:
        """Begin to watch a process, given by its number."""
        self._thread = threading.Thread(target=self._look, args=(process,), daemon=True)
        self._thread.start()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self, process: int) -> None:
        while not self._ended.wait(self.seconds):
            seen, kind = _gpu_memory(process), "GPU memory as nvidia-smi shows it"
            if seen is None and self.kind != kind:
                seen, kind = _resident_memory(process), "resident main memory"
            if seen is not None and (kind != self.kind or seen > (self.peak or 0)):
                self.peak, self.kind = seen, kind


def _gpu_memory(process: int) -> int | None:
    """Return the bytes that a process holds on all GPUs; None without NVIDIA's tool, or if it holds none."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(",") for line in output.splitlines()]
    held = [
        int(row[1]) for row in rows if len(row) == 2 and row[0].strip() == str(process) and row[1].strip().isdigit()
    ]
    return sum(held) * 2**20 if held else None


def _resident_memory(process: int) -> int | None:
    import psutil

    try:
        return psutil.Process(process).memory_info().rss
    except psutil.Error:
        return None
