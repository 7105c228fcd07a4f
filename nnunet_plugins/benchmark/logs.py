"""Read nnU-Net's logs of trainings, which a kill may have torn anywhere."""

import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_plugins.benchmark.progress import STAMP, pseudo_dice


def read_log(fold: Path) -> dict[str, Any]:
    """Read a training's logs, of which there is one for each time it was started or gone on with.

    A line that cannot be read is left out, and nothing else.

    Returns:
        `epochs`, rows with the columns of `record.CURVES` from `epoch` on, and `voxels_per_second` of the validation.
    """
    log = _Log()
    for file in sorted(fold.glob("training_log*.txt"), key=_moment):
        log.begin()
        for line in file.read_text(errors="replace").splitlines():
            try:
                log.take(line)
            except ValueError:  # torn within a number
                continue
    rows = [row for _, row in sorted(log.epochs.items()) if "seconds" in row]
    return {"epochs": rows, "voxels_per_second": log.voxels_per_second}


def _moment(file: Path) -> list[int]:
    """Return the numbers in a log's name, year to second, which nnU-Net writes without leading zeros."""
    return [int(number) for number in re.findall(r"\d+", file.name)]


class _Log:
    """What the lines so far have told."""

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, Any]] = {}
        self.voxels_per_second = np.nan
        self.begin()

    def begin(self) -> None:
        """Begin with another file."""
        self.epoch: dict[str, Any] = {}
        self.predicting, self.voxels = 0.0, 0

    def take(self, line: str) -> None:
        """Take one line.

        Raises:
            ValueError: if it is torn.
        """
        found = STAMP.match(line)
        text = line[found.end() :].strip() if found else line.strip()
        if match := re.fullmatch(r"Epoch (\d+)", text):
            self.epoch = self.epochs[int(match[1])] = {"epoch": int(match[1])}
        elif match := re.fullmatch(r"Current learning rate: (\S+)", text):
            self.epoch["learning_rate"] = float(match[1])
        elif match := re.fullmatch(r"(train_loss|val_loss) (\S+)", text):
            self.epoch[match[1]] = float(match[2])
        elif text.startswith("Pseudo dice "):
            values = [value for value in pseudo_dice(text) if not np.isnan(value)]
            self.epoch["pseudo_dice"] = float(np.mean(values)) if values else np.nan
        elif match := re.fullmatch(r"Epoch time: (\S+) s", text):
            self.epoch["seconds"] = float(match[1])
        elif found and text.startswith("predicting ") and not self.predicting:
            self.predicting = _seconds(found[0])
        elif match := re.search(r", shape torch.Size\(\[([\d, ]+)\]\)", text):
            self.voxels += int(np.prod([int(n) for n in match[1].split(",")][1:]))
        elif found and text.startswith("Validation complete") and self.predicting:
            self.voxels_per_second = self.voxels / max(_seconds(found[0]) - self.predicting, 1e-3)


def _seconds(stamp: str) -> float:
    moment = stamp.rstrip(": ")
    whole, _, fraction = moment.partition(".")
    return time.mktime(time.strptime(whole, "%Y-%m-%d %H:%M:%S")) + float(f"0.{fraction}")
