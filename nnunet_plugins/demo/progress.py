"""Turn nnU-Net's output into a few readable lines."""

import re
from collections.abc import Sequence

_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_NUMBER = re.compile(r"nan|\d+(?:\.\d*)?(?:e[-+]?\d+)?")


def duration(seconds: float) -> str:
    """Write a time span as a person would: `8 s`, `2 min 05 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


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

    def __call__(self, line: str) -> str | None:
        """Take one line of output; return what to tell the user, once per epoch and at the start of the validation."""
        line = _STAMP.sub("", line)
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
            return "validating on the cases of fold 0"
        return None

    def _pseudo_dice(self, line: str) -> str:
        # numpy 2 writes np.float32(0.5), numpy 1 just 0.5.
        values = _NUMBER.findall(re.sub(r"np\.float\d+", "", line.partition("[")[2]))
        return " ".join(f"{name} {float(value):.2f}" for name, value in zip(self.labels, values, strict=False))

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


def nothing(line: str) -> str | None:
    """Take one line of a short command; there is nothing to tell."""
    return None
