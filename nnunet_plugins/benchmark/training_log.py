"""nnU-Net's log of a training: the one place that knows what its lines look like, on the screen and in its files."""

import re
from collections.abc import Callable
from datetime import datetime
from math import isnan, nan, prod
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): ")
_NUMBER = r"([-+]?(?:nan|inf|\d+\.?\d*(?:[eE][-+]?\d+)?))"


class Line(NamedTuple):
    """What a line tells."""

    about: str
    """"epoch", "learning_rate", "train_loss", "val_loss", "pseudo_dice", "seconds", "stopped", "trained", "split",
    "predicting", "voxels" or "validated"."""
    value: Any
    """A number; for "pseudo_dice" a list of them, for "split" the numbers of cases to train on and to validate on, for
    "stopped" the epochs that are done; None for what only happens."""
    moment: datetime | None
    """When it was written, where that can be told."""


def _voxels(found: re.Match[str]) -> int:
    return prod(int(number) for number in found[1].split(",")[1:])


def _pseudo_dice(found: re.Match[str]) -> list[float]:
    # numpy 2 writes np.float32(0.5), numpy 1 just 0.5.
    return [float(value) for value in re.findall(_NUMBER, re.sub(r"np\.float\d+", "", found[1]))]


def _number(found: re.Match[str]) -> float:
    return float(found[1])


def _nothing(_: re.Match[str]) -> None:
    return None


# The whole line has to fit: one that a kill has torn, or that two processes have written into, tells nothing.
_LINES: dict[str, tuple[str, Callable[[re.Match[str]], Any]]] = {
    "epoch": (r"Epoch (\d+)", lambda found: int(found[1])),
    "learning_rate": (rf"Current learning rate: {_NUMBER}", _number),
    "train_loss": (rf"train_loss {_NUMBER}", _number),
    "val_loss": (rf"val_loss {_NUMBER}", _number),
    "pseudo_dice": (r"Pseudo dice \[(.*)\]", _pseudo_dice),
    "seconds": (rf"Epoch time: {_NUMBER} s", _number),
    "stopped": (
        r"Stopped by .* in epoch (\d+) after iteration (\d+) of (\d+)\b.*",
        lambda found: int(found[1]) + int(found[2]) / int(found[3]),
    ),
    "trained": (r"Training done\.?", _nothing),
    "split": (
        r"This split has (\d+) training and (\d+) validation cases\.?",
        lambda found: (int(found[1]), int(found[2])),
    ),
    "predicting": (r"predicting .+", _nothing),
    "voxels": (r".+, shape torch\.Size\(\[(\d+(?:, \d+)+)\]\).*", _voxels),
    "validated": (r"Validation complete", _nothing),
}


def read_line(line: str) -> Line | None:
    """Return what a line of the output or of a file tells; None, if nothing that is of use here."""
    stamp = _STAMP.match(line)
    text = line[stamp.end() :].strip() if stamp else line.strip()
    for about, (pattern, value) in _LINES.items():
        if found := re.fullmatch(pattern, text):
            return Line(about, value(found), _moment(stamp))
    return None


def _moment(stamp: re.Match[str] | None) -> datetime | None:
    try:
        return datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S.%f") if stamp else None
    except ValueError:  # torn
        return None


def _mean(values: list[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return fmean(known) if known else nan


def log_files(fold: Path) -> list[Path]:
    """Return a training's logs in the order of time: one for each time that it was started or gone on with."""
    return sorted(fold.glob("training_log*.txt"), key=lambda log: (log_began(log), log.name))


def log_began(log: Path) -> datetime:
    """Return when a log was begun, which nnU-Net writes into its name, without leading zeros."""
    numbers = [int(number) for number in re.findall(r"\d+", log.stem)]
    try:
        return datetime(*numbers[:6])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return datetime.min  # another file


def lines_of(log: Path) -> list[Line]:
    """Return what the lines of a file tell."""
    found = map(read_line, log.read_text(errors="replace").splitlines())
    return [line for line in found if line is not None]


def read_log(fold: Path) -> dict[str, Any]:
    """Read a training's logs.

    Returns:
        `epochs`, rows with the number of the "epoch", "learning_rate", "train_loss", "val_loss", the mean "pseudo_dice"
        and "seconds", as far as they are known; and `voxels_per_second` of the validation.
    """
    epochs: dict[int, dict[str, Any]] = {}
    voxels_per_second = nan
    for file in log_files(fold):
        epoch: dict[str, Any] | None = None
        begun: datetime | None = None
        voxels = 0
        for about, value, moment in lines_of(file):
            if about == "epoch":
                if epoch is None:
                    # Where this start went on, or began anew; what an earlier one had done from there on is lost.
                    epochs = {number: row for number, row in epochs.items() if number < value}
                epoch = epochs[value] = {"epoch": value}
            elif about in ("pseudo_dice", "learning_rate", "train_loss", "val_loss", "seconds"):
                if epoch is not None:  # its first line may be torn
                    epoch[about] = _mean(value) if about == "pseudo_dice" else value
            elif about == "predicting":
                begun = begun or moment
            elif about == "voxels":
                voxels += value
            elif about == "validated" and begun and moment:
                voxels_per_second = voxels / max((moment - begun).total_seconds(), 1e-3)
    rows = [row for _, row in sorted(epochs.items()) if "seconds" in row]
    return {"epochs": rows, "voxels_per_second": voxels_per_second}
