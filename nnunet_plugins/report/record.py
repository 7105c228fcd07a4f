"""The record of a benchmark: plain files, which the benchmark writes and the report reads. No other way joins the two.

    results.csv      one row per case, label and algorithm: the metrics
    runs.csv         one row per training: what it cost
    curves.csv       one row per training and epoch, with the network's gates where it has some
    equality.json    what was equal in the trainings that are compared, and what was not
    failures.json    the tasks that failed, with the ends of their logs
    about.json       title, budget, machine, versions, and where the images lie

Tables may be packed with gzip, as results.csv.gz, where a record has to be small.

A comparison is what may stand in one table: the results of one `split`, `dataset` and `configuration`. An algorithm is
a trainer, with its plans where they are not the comparison's own, or an ensemble of two. Trainers that differ in their
seed alone, nnUNetTrainer_1seed and nnUNetTrainer_2seed, are repeats of one algorithm: `seed` tells them apart.
"""

import json
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.metrics.objects import COUNTS, OBJECT_COLUMNS, whole_counts
from nnunet_plugins.metrics.table import METRICS, map_texts, read_table, write_table
from nnunet_plugins.rows import STOCK_TRAINER, count_seeds, seed_of

COMPARISON = ["split", "dataset", "configuration"]
ALGORITHM = ["plans", "trainer", "algorithm", "role", "seed"]
"""`algorithm` is the name to show; the roles are those of `ROLES`; `seed`, a text, is that of the trainer, if any."""

RESULTS = [
    *COMPARISON,  # split: "cross-validation" or "test"
    *ALGORITHM,
    "fold",  # of cross-validation: the one that the case was held out of
    "case",
    "label",
    "name",
    *METRICS,
    "volume_truth_ml",
    "tolerance_mm",
    "diagonal_mm",
]
# Where labels consist of objects, there are the columns `OBJECT_COLUMNS` as well.
SOURCE = "source"
"""Column of the results of merged datasets: the dataset that a case comes from, as `sources` in about.json has it."""

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
    "model",  # `GONE`, where only the record is left of it
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
GATE = "gate "
"""Begins the names of more columns of the curves, where networks have gates: their values at the end of the epoch."""

GONE = "no longer here"
"""Says that the model of a training is gone, so that its results are those of an earlier record."""

ROLES = {
    "baseline": "baseline",
    "method": "a network of this comparison",
    "twin": "ablation twin of a network",
    "rival": "a published network, for comparison",
    "own plan": "baseline on a plan of its own",
    "ensemble": "ensemble of two",
    "choice": "nnU-Net's choice by cross-validation, post-processed",
    "one pass": "the same trainings, each case as a whole",
    "one for many": "the same network, trained on a merged dataset that has these cases as well",
    "atlas": "no network: the voxelwise majority of the training labels",
}
UNRANKED = ("ensemble", "choice", "one pass", "one for many", "atlas")
"""Roles that take no part in ranks and tests: they share errors or data with others, or are no network."""


_LATER = {"seed": "", "fold": np.nan, "model": ""}
"""Columns that records of earlier versions do not have, with what stands for them. Trainings have always had folds."""


def describe_role(role: str, trainer: str, shared: Collection[str] = ()) -> str:
    """Say what an algorithm is; a baseline is the standard U-Net, a variant of it, or another network.

    Args:
        role: one of `ROLES`.
        trainer: its name.
        shared: modifiers that tell it from no other algorithm.
    """
    base, *own = trainer.split("_")
    modifiers = "_".join(name for name in own if name not in shared)
    if role != "baseline":
        return ROLES[role]
    if base != STOCK_TRAINER:
        return f"baseline: {trainer}, not nnU-Net's default"
    return f"the standard U-Net, with {modifiers}" if modifiers else "the standard U-Net"


# Control characters but for tab and newline, those that turn the direction of text, and what is no character at all.
# They break XML and LaTeX, and let a name look like another one.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)


RECORD_FILES = ("results.csv", "runs.csv", "curves.csv", "equality.json", "failures.json", "about.json")


class ReportError(InputError):
    """A report cannot be made of this record."""


@dataclass(frozen=True)
class Record:
    """What a benchmark has found so far.

    Attributes:
        results: columns `RESULTS`, with merged datasets `SOURCE` and with objects `OBJECT_COLUMNS` as well; an infinite
            distance means that one of two masks is empty, no Dice that both are.
        runs: columns `RUNS`; what is not known is nan.
        curves: columns `CURVES`, and those of gates, which begin with `GATE`.
        equality: one dictionary per dataset and configuration; see `report/equality.py`.
        failures: dictionaries with `task`, `command`, `exit_code`, `log` (its path) and `tail` (its last lines).
        about: `title`, `command`, `budget`, `created`, `hardware`, `versions`, `images`; `datasets`, what is known of
            each (see `benchmark/dataset.py`), which earlier versions do not have; of merged datasets `sources`,
            which have the `labels` that each one annotates, by name; `beside`, by the name of a network for many
            datasets, that of the same one that was trained on the comparison's own; `ruled_out`, what was not trained.
    """

    results: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    equality: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    about: dict[str, Any]

    def groups_of(self, split: str, dataset: str) -> dict[str, int] | None:
        """Return the group of each case that has one; None, if none is known. Test images are of other patients."""
        if split != "cross-validation":
            return None
        return self.about.get("datasets", {}).get(dataset, {}).get("group_of")

    def write(self, folder: Path) -> None:
        """Write the record's files, each of which is there completely or not at all."""
        for name, table in (("results", self.results), ("runs", self.runs), ("curves", self.curves)):
            write_table(folder / f"{name}.csv", table)
            (folder / f"{name}.csv.gz").unlink(missing_ok=True)
        for name, content in (("equality", self.equality), ("failures", self.failures), ("about", self.about)):
            write_text(folder / f"{name}.json", json.dumps(content, indent=2))


def read_record(folder: Path) -> Record:
    """Read the record's files.

    Raises:
        InputError: if one is missing, cannot be read, or is not as the benchmark writes it; the message names it.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; it is written by nnunet-plugins benchmark")
    tables = [
        _read_table(folder / f"{name}.csv", columns)
        for name, columns in (("results", RESULTS), ("runs", RUNS), ("curves", CURVES))
    ]
    contents = [printable(read_json(folder / f"{name}.json", shape)) for name, shape in _SHAPES.items()]
    return Record(*tables, *contents)


_TEXTS = {*COMPARISON, *ALGORITHM, SOURCE, "case", "label", "name", "patch_size", "memory_kind", "device", "model"}
_KEYS = {*COMPARISON, "algorithm", "role", "case", "label"}
"""Columns that say what a row is about; without them it means nothing."""
_WHOLE = {"fold", *COUNTS}

# See `files.read_json`; the values of settings are whatever they are.
_SHAPES: dict[str, Any] = {
    "equality": [
        {
            "dataset": str,
            "configuration": str,
            "runs": [
                {"algorithm": str, "seed?": str, "fold": int, "hashes": dict, "environment": dict, "settings?": dict}
            ],
            "accepted": bool,
            "baseline?": str,
            "plans?": {str: str},
            "recipes?": {str: dict},
            # Written for people; of records of 0.1.0 read as well.
            "differences?": [{"algorithm": str, "what": str, "value": None, "baseline": None, "allowed": bool}],
        }
    ],
    "failures": [{"task": str, "command": (str, list), "exit_code": None, "log": str, "tail": str}],
    "about": {
        "title?": str,
        "command?": str,
        "budget?": str,
        "created?": str,
        "hardware?": [str],
        "versions?": {str: str},
        "images?": {
            str: {
                "images": str,
                "files?": {str: str},
                "truth": str,
                "ending": str,
                "labels": {str: str},
                "predictions": {str: str},
                "repeats?": {str: {str: str}},  # of algorithms with seeds: by seed, as predictions of the first one
            }
        },
        "datasets?": {
            str: {
                "cases?": int,
                "channels?": [str],
                "spacing_mm?": [(int, float)],
                "shape?": [(int, float)],
                "groups?": int,
                "group_of?": {str: int},
            }
        },
        "left_out?": {str: {str: [str]}},
        "ruled_out?": [{"dataset": str, "configuration": str, "trainer": str, "reason": str}],
        "beside?": {str: str},
        "sources?": {str: {str: {"dataset": str, "labels": [str]}}},
        "ensembles?": [str],
        "complete?": bool,
    },
}


def _read_table(file: Path, columns: list[str]) -> pd.DataFrame:
    packed = file.with_name(f"{file.name}.gz")
    if packed.is_file() and not file.is_file():
        file = packed
    try:
        table = read_table(file, dict.fromkeys(_TEXTS, str))
    except FileNotFoundError:
        raise ReportError(f"{file} is missing; it is written by nnunet-plugins benchmark") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ReportError(f"{file} cannot be read: {error}") from error
    later = [name for name in _LATER if name in columns and (name != "fold" or "case" in columns)]
    table = table.assign(**{name: _LATER[name] for name in later if name not in table})
    if missing := [column for column in columns if column not in table]:
        raise ReportError(f"{file} lacks the columns {', '.join(missing)}")
    objects = [name for name in OBJECT_COLUMNS if name in table]
    if objects and len(objects) < len(OBJECT_COLUMNS):
        lacking = ", ".join(name for name in OBJECT_COLUMNS if name not in table)
        raise ReportError(f"{file} has {objects[0]}, and lacks the columns {lacking}")
    for column in (*columns, *objects):
        values = table[column]
        wrong = values.isna() if column in _KEYS else pd.Series(False, table.index)
        if column not in _TEXTS:
            numbers = pd.to_numeric(values, errors="coerce")
            wrong = values.notna() & (numbers.isna() | ((numbers % 1 != 0) if column in _WHOLE else False))
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            value = values[row]
            shown = repr(value) if isinstance(value, str) else str(value)
            raise ReportError(f"{file}, row {row + 2}: {shown} cannot be a {column}")
    # An empty cell is an empty text there, not a missing number.
    texts = [name for name in ("plans", "trainer", "seed", "model") if name in table]
    table[texts] = table[texts].fillna("")
    _check_seeds(file, table)
    table["fold"] = table["fold"].astype("Int64")
    if unknown := set(table["role"]) - set(ROLES):
        raise ReportError(f"{file} has the role {sorted(unknown)[0]!r}; the roles are {', '.join(ROLES)}")
    return map_texts(whole_counts(table), printable)


_GOOD_SEED = re.compile("[1-9][0-9]*")


def _check_seeds(file: Path, table: pd.DataFrame) -> None:
    """Refuse seeds that no trainer can have, or that are not those of the trainers' names."""
    for trainer, seed in dict.fromkeys(zip(table["trainer"], table["seed"], strict=True)):
        problem = None
        if seed and not _GOOD_SEED.fullmatch(seed):
            problem = "is none: seeds are 1, 2 and so on"
        elif seed and count_seeds(trainer) > 1:
            problem = "stands beside a trainer with two seeds, of which nobody knows which one counts"
        elif seed and seed != seed_of(trainer):
            problem = f"is not that of the trainer, {seed_of(trainer) or 'which has none'}"
        if problem:
            row = int(((table["trainer"] == trainer) & (table["seed"] == seed)).to_numpy().argmax())
            raise ReportError(
                f"{file}, row {row + 2}: the seed {seed!r} of {trainer} {problem}. Give the benchmark's command again, "
                "which collects its results anew"
            )


def rows_of_gone(record: Record) -> "pd.Series[bool]":
    """Tell which rows of the results are cross-validated by models that are no longer here."""
    keys = ["configuration", "plans", "trainer", "fold"]
    runs = record.runs[record.runs["model"] == GONE]
    known = {(row["dataset"], *(row[name] for name in keys)) for _, row in runs.iterrows()}
    of_many = {key[1:] for key in known}
    results = record.results
    found = [
        split == "cross-validation" and (key in of_many if role == "one for many" else (dataset, *key) in known)
        for split, role, dataset, key in zip(
            results["split"],
            results["role"],
            results["dataset"],
            results[keys].itertuples(index=False, name=None),
            strict=True,
        )
    ]
    return pd.Series(found, results.index, dtype=bool)


def printable(content: Any) -> Any:
    """Return texts, also those inside lists and dictionaries, with a replacement for what cannot be printed."""
    if isinstance(content, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", content)
    if isinstance(content, list):
        return [printable(item) for item in content]
    if isinstance(content, dict):
        return {printable(name): printable(item) for name, item in content.items()}
    return content
