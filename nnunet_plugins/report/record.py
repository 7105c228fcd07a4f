"""The record of a benchmark: plain files, which the benchmark writes and the report reads. No other way joins the two.

    results.csv      one row per case, label and algorithm: the metrics
    runs.csv         one row per training: what it cost
    curves.csv       one row per training and epoch
    equality.json    what was equal in the trainings that are compared, and what was not
    failures.json    the tasks that failed, with the ends of their logs
    about.json       title, budget, machine, versions, and where the images lie

A comparison is what may stand in one table: the results of one `split`, `dataset` and `configuration`. An algorithm is
a trainer, with its plans where they are not the comparison's own, or an ensemble of two.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_plugins.files import write_text
from nnunet_plugins.metrics.table import METRICS, read_table, write_table

COMPARISON = ["split", "dataset", "configuration"]
ALGORITHM = ["plans", "trainer", "algorithm", "role"]
"""`algorithm` is the name to show; the roles are those of `ROLES`."""

RESULTS = [
    *COMPARISON,  # split: "cross-validation" or "test"
    *ALGORITHM,
    "case",
    "label",
    "name",
    *METRICS,
    "volume_truth_ml",
    "tolerance_mm",
    "diagonal_mm",
]
RUNS = [
    "dataset",
    "configuration",
    *ALGORITHM,
    "fold",
    "parameters",
    "forward_flops",  # of one patch, without the batch; a multiplication and an addition are two
    "patch_size",  # 96x96x96
    "batch_size",
    "epochs",
    "iterations",
    "seconds_per_epoch",  # the median
    "training_seconds",
    "peak_memory_bytes",
    "memory_kind",  # what peak_memory_bytes is, in words
    "energy_joules",  # of the GPUs
    "validation_voxels_per_second",  # resampling, mirroring and export included
    "device",
]
CURVES = [
    "dataset",
    "configuration",
    *ALGORITHM,
    "fold",
    "epoch",
    "train_loss",
    "val_loss",
    "pseudo_dice",
    "learning_rate",
    "seconds",
]
ROLES = {
    "baseline": "the standard U-Net",
    "method": "a network of this comparison",
    "twin": "ablation twin of a network",
    "own plan": "baseline on a plan of its own",
    "ensemble": "ensemble of two",
    "choice": "nnU-Net's choice by cross-validation, post-processed",
}
UNRANKED = ("ensemble", "choice")
"""Roles that take no part in ranks and tests: they share the errors of others."""


# Control characters but for tab and newline, those that turn the direction of text, and what is no character at all.
# They break XML and LaTeX, and let a name look like another one.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


class ReportError(Exception):
    """Something the user has to know or to change; the message says what, without a traceback."""


@dataclass(frozen=True)
class Record:
    """What a benchmark has found so far.

    Attributes:
        results: columns `RESULTS`; an infinite distance means that one of two masks is empty, no Dice that both are.
        runs: columns `RUNS`; what is not known is nan.
        curves: columns `CURVES`.
        equality: one dictionary per dataset and configuration; see `benchmark/equality.py`.
        failures: dictionaries with `task`, `command`, `exit_code`, `log` (its path) and `tail` (its last lines).
        about: `title`, `command`, `budget`, `created`, `hardware`, `versions`, `images`.
    """

    results: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    equality: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    about: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the record's files, each of which is there completely or not at all."""
        for name, table in (("results", self.results), ("runs", self.runs), ("curves", self.curves)):
            write_table(folder / f"{name}.csv", table)
        for name, content in (("equality", self.equality), ("failures", self.failures), ("about", self.about)):
            write_text(folder / f"{name}.json", json.dumps(content, indent=2))


def read_record(folder: Path) -> Record:
    """Read the record's files.

    Raises:
        ReportError: if one is missing, cannot be read or lacks a column.
    """
    tables = [
        _read_table(folder / f"{name}.csv", columns)
        for name, columns in (("results", RESULTS), ("runs", RUNS), ("curves", CURVES))
    ]
    return Record(*tables, *(_read_json(folder / f"{name}.json") for name in ("equality", "failures", "about")))


def _read_table(file: Path, columns: list[str]) -> pd.DataFrame:
    texts = {name: str for name in ("case", "label", "name", "patch_size", "memory_kind", "device", *ALGORITHM)}
    try:
        table = read_table(file, texts)
    except FileNotFoundError:
        raise ReportError(f"{file} is missing; it is written by nnunet-plugins benchmark") from None
    except (ValueError, OSError) as error:
        raise ReportError(f"{file} cannot be read: {error}") from error
    if missing := [column for column in columns if column not in table]:
        raise ReportError(f"{file} lacks the columns {', '.join(missing)}")
    names = [name for name in texts if name in table]
    return table.assign(**{name: table[name].map(_printable) for name in names})


def _read_json(file: Path) -> Any:
    try:
        return _printable(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ReportError(f"{file} is missing; it is written by nnunet-plugins benchmark") from None
    except (ValueError, OSError) as error:
        raise ReportError(f"{file} cannot be read: {error}") from error


def _printable(content: Any) -> Any:
    """Return texts, also those inside lists and dictionaries, with a replacement for what cannot be printed."""
    if isinstance(content, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", content)
    if isinstance(content, list):
        return [_printable(item) for item in content]
    if isinstance(content, dict):
        return {_printable(name): _printable(item) for name, item in content.items()}
    return content
