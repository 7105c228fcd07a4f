"""Collect what a benchmark has found into the record that the report reads. Reads files only, nnU-Net's and our own."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins import backbones
from nnunet_plugins.benchmark import conditions, equality
from nnunet_plugins.benchmark.dataset import describe_dataset
from nnunet_plugins.benchmark.engine import read_state, tasks_left
from nnunet_plugins.benchmark.folds import held_out
from nnunet_plugins.benchmark.kept import NOTHING_KEPT, Kept
from nnunet_plugins.benchmark.protocol import Protocol, Run, first_repeats, split_name
from nnunet_plugins.benchmark.results import read_choice, trained_folds, whole_groups
from nnunet_plugins.benchmark.tasks import Folders, Task
from nnunet_plugins.benchmark.training_log import log_files, read_log
from nnunet_plugins.datasets.sources import SOURCES, read_sources
from nnunet_plugins.files import json_or_nothing
from nnunet_plugins.images.finding import composed, find_files
from nnunet_plugins.metrics.objects import OBJECT_COLUMNS, whole_counts
from nnunet_plugins.metrics.table import read_table
from nnunet_plugins.provenance import Marker, author, now, read_marker
from nnunet_plugins.report.record import CURVES, GATE, GONE, RECORD_FILES, RESULTS, RUNS, SOURCE, Record
from nnunet_plugins.report.words import count
from nnunet_plugins.trainers.fold_folder import GATES
from nnunet_plugins.trainers.gates import EPOCH


def collect(
    protocol: Protocol,
    folders: Folders,
    tasks: Sequence[Task],
    *,
    accept_unequal: bool,
    command: str,
    kept: Kept = NOTHING_KEPT,
) -> Record:
    """Return the record of what is there, whole or not.

    Args:
        protocol: the question.
        folders: where things lie.
        tasks: all tasks, done or not.
        accept_unequal: the user wants unequal runs side by side.
        command: what the user called.
        kept: what stays of the record of before.
    """
    runs = protocol.runs()
    trained = trained_folds(protocol, folders)
    unfinished = tasks_left(tasks, folders.ledger)
    # Of what is there, only what was made of the trainings as they are.
    done = [task for task in tasks if task not in unfinished]
    results = [_metrics(task, folders) for task in done if task.rows]
    costs, curves = [], []
    for run, folds in trained.items():
        for fold in folds:
            log = read_log(folders.fold(run, fold))
            costs.append({**run.identity, "fold": fold, **_cost(run, fold, log, folders)})
            gates = read_gates(folders.fold(run, fold))
            curves += [{**run.identity, "fold": fold, **row, **gates.get(row["epoch"], {})} for row in log["epochs"]]
    # Gates are more columns, those of each network its own.
    drawn = pd.DataFrame(curves, columns=list(dict.fromkeys(itertools.chain(CURVES, *curves))))
    proofs = []
    for dataset, configuration in dict.fromkeys((run.dataset, run.configuration) for run in runs):
        group = [run for run in runs if (run.dataset, run.configuration) == (dataset, configuration)]
        proofs.append(equality.prove(group, protocol.folds, folders, accepted=accept_unequal, kept=kept))
    found = _joined(RESULTS, *results)
    return Record(
        results=_in_order(_joined(RESULTS, found, kept.results(found)), runs),
        runs=_in_order(_joined(RUNS, pd.DataFrame(costs, columns=RUNS), kept.runs("runs").assign(model=GONE)), runs),
        curves=_in_order(_joined(CURVES, drawn, kept.runs("curves")), runs),
        equality=proofs,
        failures=_failures(unfinished, folders),
        about=kept.about(
            {
                **_about(protocol, trained, folders, complete=not unfinished, command=command),
                **({"maps": _maps(done)} if protocol.with_maps else {}),
                "left_out": _left_out(protocol, trained, folders, [table for table in results if len(table)]),
            }
        ),
    )


def _joined(columns: Sequence[str], *tables: pd.DataFrame) -> pd.DataFrame:
    """Return tables as one, without those that are empty, of which pandas would take the types."""
    found = [table for table in tables if len(table)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def _in_order(table: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with its algorithms in the order of the runs; those that are none of theirs stay behind them."""
    pairs = list(zip(table["algorithm"], table["seed"], strict=True))
    names = dict.fromkeys([*((run.algorithm, run.seed) for run in runs), *pairs])
    place_of = {pair: number for number, pair in enumerate(names)}
    places = [place_of[pair] for pair in pairs]
    return table.iloc[np.argsort(places, kind="stable")].reset_index(drop=True)


def collected_files(protocol: Protocol, folders: Folders) -> list[Path]:
    """Return the files from which costs, curves and conditions are read: those that the trainings have left."""
    runs = [(run, fold) for run in protocol.runs() for fold in protocol.folds]
    found = [conditions.conditions_file(folders.fold(run, fold)) for run, fold in runs]
    found += [log for run, fold in runs for log in log_files(folders.fold(run, fold))]
    found += [folders.fold(run, fold) / GATES for run, fold in runs]
    return [file for file in found if file.is_file()]


def provenance(
    tasks: Sequence[Task],
    folders: Folders,
    inputs: Mapping[str, str],
    kept: Kept = NOTHING_KEPT,
    rows: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Return the markers of all outputs, with the rows of the results that come from them; see `provenance.py`.

    The first one is that of the record, which has been written.

    Args:
        tasks: all of them.
        folders: where things lie.
        inputs: identities of `collected_files`, taken before these were read.
        kept: what stays of the record of before.
        rows: the record's results.
    """
    left = tasks_left(tasks, folders.ledger)
    record = [folders.output / "record" / f"{name}" for name in RECORD_FILES]
    own = ["nnunet-plugins", "benchmark"]
    first = Marker(own, author(own), {**kept.logs(), **inputs}, folders.ledger.identities(record), now())
    markers = [(read_marker(task.output), task.rows) for task in tasks if task.output and task not in left]
    made = [replace(marker, of=dict(rows)) for marker, rows in markers if marker]
    before = kept.outputs(made, rows) if rows is not None else ()
    return {"outputs": [marker.to_json() for marker in (first, *made, *before)]}


def _metrics(task: Task, folders: Folders) -> pd.DataFrame:
    assert task.output is not None
    table = read_table(task.output, {"case": str, "label": str, "name": str, SOURCE: str})
    folds = held_out(folders, task.rows["dataset"]) if task.rows["split"] == "cross-validation" else {}
    fold = pd.Series([folds.get(composed(str(case))) for case in table["case"]], table.index, dtype="Int64")
    more = [name for name in (SOURCE, *OBJECT_COLUMNS) if name in table]
    return whole_counts(table.assign(**task.rows, fold=fold)[[*RESULTS, *more]])


def read_gates(fold: Path) -> dict[int, dict[str, float]]:
    """Return the gates that a training has written down, by epoch and by their columns in `CURVES`' table."""
    try:
        table = pd.read_csv(fold / GATES, index_col=EPOCH)
        numbers = table.astype(float).rename(columns=lambda name: f"{GATE}{name}")
        return {int(epoch): row.to_dict() for epoch, row in numbers.iterrows()}
    except (OSError, ValueError):  # there is none, or somebody has edited it
        return {}


def _cost(run: Run, fold: int, log: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    attempts = conditions.read_conditions(folders.fold(run, fold), folders.ledger)
    # As it was trained, where that is recorded; the trainer or the plans may have changed since.
    described = (attempt["description"] for attempt in reversed(attempts) if "description" in attempt)
    recipe = next(described, None) or json_or_nothing(folders.recipe(run))
    measured = [attempt for attempt in attempts if attempt.get("peak_memory_bytes")]
    highest = max(measured, key=lambda attempt: attempt["peak_memory_bytes"], default={})
    energy = [attempt.get("energy_joules") for attempt in attempts]
    seconds = [row["seconds"] for row in log["epochs"]]
    return {
        **{name: recipe.get(name) for name in ("parameters", "forward_flops", "batch_size", "epochs", "iterations")},
        "patch_size": "x".join(map(str, recipe.get("patch_size") or [])),
        "seconds_per_epoch": float(np.median(seconds)) if seconds else np.nan,
        "training_seconds": sum(seconds),
        "peak_memory_bytes": highest.get("peak_memory_bytes"),
        "memory_kind": highest.get("memory_kind"),
        # Unknown for a training that was killed on the way: then a part of it is.
        "energy_joules": sum(energy) if energy and None not in energy else None,
        "validation_voxels_per_second": log["voxels_per_second"],
        "device": attempts[-1]["environment"].get("device") if attempts else None,
    }


def _failures(unfinished: Iterable[Task], folders: Folders) -> list[dict[str, Any]]:
    found = []
    for task in unfinished:
        state = read_state(folders.output, task.name)
        log = folders.output / "logs" / f"{task.name}.log"
        lines = log.read_text(errors="replace").splitlines()[-30:] if log.is_file() else []
        found.append(
            {
                "task": task.title,
                "command": " ".join(task.command),
                "status": state.get("status", "not started"),
                "exit_code": state.get("exit_code"),
                "log": str(log),
                "tail": "\n".join(state.get("tail") or lines),
            }
        )
    return found


def _about(
    protocol: Protocol, trained: Mapping[Run, list[int]], folders: Folders, *, complete: bool, command: str
) -> dict[str, Any]:
    recipes = [json_or_nothing(folders.recipe(run)) for run in protocol.runs()]
    budgets = dict.fromkeys(
        f"{count(recipe['epochs'], 'epoch')} x {count(recipe['iterations'], 'iteration')}"
        for recipe in recipes
        if recipe.get("epochs") and recipe["iterations"]
    )
    versions = conditions.environment(protocol.device)
    return {
        "title": f"nnU-Net backbones on {', '.join(protocol.datasets)}",
        "command": command,
        "budget": f"{' or '.join(budgets)}, fold{'s' * (len(protocol.folds) > 1)} {' '.join(map(str, protocol.folds))}",
        "created": now(),
        "hardware": conditions.hardware(),
        "versions": {**versions, "monai": metadata.version("monai")},
        "images": {
            f"{dataset}/{configuration}": _images(dataset, configuration, trained, folders)
            for dataset, configuration in dict.fromkeys((run.dataset, run.configuration) for run in trained)
        },
        "datasets": {
            dataset: describe_dataset(folders.preprocessed / dataset, protocol.groups.get(dataset))
            for dataset in protocol.datasets
        },
        "sources": {dataset: found for dataset in protocol.datasets if (found := _sources(dataset, folders))},
        "beside": {
            protocol.one_for_many(run).algorithm: run.algorithm for run in protocol.runs() if protocol.beside(run)
        },
        "twins": {
            row.trainer: row.twin for run in protocol.runs() if (row := backbones.find(split_name(run.trainer)[0]))
        },
        "ensembles": _best(protocol, trained, folders),
        "ruled_out": [
            dict(zip(("dataset", "configuration", "trainer", "reason"), one, strict=True)) for one in protocol.ruled_out
        ],
        "complete": complete,
    }


def _sources(dataset: str, folders: Folders) -> dict[str, Any]:
    """Return what each source of a merged dataset is, and the names of the labels that it annotates."""
    description = folders.preprocessed / dataset / "dataset.json"
    content = json_or_nothing(description)
    if SOURCES not in content:
        return {}
    found = read_sources(content, description)
    return {name: {"dataset": source.dataset, "labels": list(source.labels)} for name, source in found.items()}


def _left_out(
    protocol: Protocol, trained: Mapping[Run, list[int]], folders: Folders, results: Sequence[pd.DataFrame]
) -> dict[str, dict[str, list[str]]]:
    """Return the cases that have segmentations, but could not be evaluated, by dataset/configuration and split."""
    found: dict[str, dict[str, list[str]]] = {}
    for run, folds in trained.items():
        places = {"cross-validation": folders.validated(run, folds)}
        places["test"] = folders.predictions(run.name, protocol.folds)
        ending = json_or_nothing(folders.preprocessed / run.dataset / "dataset.json").get("file_ending", "")
        for split, place in places.items():
            tables = [table for table in results if _is_of(table, run, split)]
            if not tables or not place.is_dir():
                continue
            known = {composed(str(case)) for table in tables for case in table["case"].unique()}
            if lacking := sorted(set(find_files(place, ending).files) - known):
                cases = found.setdefault(f"{run.dataset}/{run.configuration}", {}).setdefault(split, [])
                cases += [case for case in lacking if case not in cases]
    return found


def _is_of(table: pd.DataFrame, run: Run, split: str) -> bool:
    wanted = {**run.identity, "split": split}
    return all(str(table[name].iloc[0]) == value for name, value in wanted.items())


def _images(dataset: str, configuration: str, trained: Mapping[Run, list[int]], folders: Folders) -> dict[str, Any]:
    content = {"labels": {}, "file_ending": "", **json_or_nothing(folders.preprocessed / dataset / "dataset.json")}
    shown = {
        run: folds
        for run, folds in trained.items()
        if folds and (run.dataset, run.configuration) == (dataset, configuration)
    }
    repeats: dict[str, dict[str, str]] = {}
    for run, folds in shown.items():
        if run.seed:
            repeats.setdefault(run.algorithm, {})[run.seed] = str(folders.validated(run, folds))
    return {
        "images": str(folders.raw / dataset / "imagesTr"),
        "files": _listed_images(folders.raw / dataset),
        "truth": str(folders.truth(dataset)),
        "ending": content["file_ending"],
        "labels": {str(value): name for name, value in content["labels"].items() if name != "background"},
        "predictions": {run.algorithm: str(folders.validated(run, shown[run])) for run in first_repeats(shown)},
        "repeats": repeats,
    }


def _maps(tasks: Sequence[Task]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the folders with the pictures of maps, by dataset/configuration, case and algorithm.

    Args:
        tasks: that are done.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for task in tasks:
        if task.maps is not None and task.output is not None:
            run, cases = task.maps
            for case in cases:
                by_case = found.setdefault(f"{run.dataset}/{run.configuration}", {})
                by_case.setdefault(case, {})[run.algorithm] = str(task.output / case / "panels")
    return found


def _listed_images(folder: Path) -> dict[str, str]:
    """Return the first image of each case, where dataset.json lists the files; else nothing."""
    content = json_or_nothing(folder / "dataset.json").get("dataset", {})
    listed = {case: os.path.expandvars(files["images"][0]) for case, files in content.items()}
    return {case: str(Path(os.path.abspath(folder / image))) for case, image in listed.items()}


def _best(protocol: Protocol, trained: Mapping[Run, list[int]], folders: Folders) -> list[str]:
    """Return what nnU-Net's find_best_configuration found among the runs and folds of this benchmark."""
    groups = whole_groups(trained, protocol)
    files = [folders.best(group[0], protocol.folds) for group in groups if read_choice(group, protocol, folders)]
    return [line.strip() for file in files for line in file.read_text().splitlines() if line.startswith("*Best*")]
