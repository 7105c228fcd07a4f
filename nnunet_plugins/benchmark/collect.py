"""Collect what a benchmark has found into the record that the report reads. Reads files only, nnU-Net's and our own."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins.benchmark import conditions, equality
from nnunet_plugins.benchmark.engine import read_state
from nnunet_plugins.benchmark.logs import read_log
from nnunet_plugins.benchmark.protocol import Protocol, Run
from nnunet_plugins.benchmark.results import ensemble_name, read_choice, trained_folds, whole_groups
from nnunet_plugins.benchmark.tasks import Folders, Task
from nnunet_plugins.files import is_json
from nnunet_plugins.images.finding import composed, find_files
from nnunet_plugins.metrics.table import read_table
from nnunet_plugins.report.record import CURVES, RESULTS, RUNS, Record
from nnunet_plugins.report.words import count


def collect(
    protocol: Protocol,
    folders: Folders,
    tasks: Sequence[Task],
    *,
    accept_unequal: bool,
    command: str,
) -> Record:
    """Return the record of what is there, whole or not.

    Args:
        protocol: the question.
        folders: where things lie.
        tasks: all tasks, done or not.
        accept_unequal: the user wants unequal runs side by side.
        command: what the user called.
    """
    runs = protocol.runs()
    trained = trained_folds(protocol, folders)
    groups = whole_groups(trained, protocol)
    results = [_cross_validation(run, folds, protocol, folders) for run, folds in trained.items()]
    for group in groups:
        results += _ensembles(group, protocol, folders)
    if protocol.test:
        results += [_test(run.name, _identity(run), protocol, folders) for run in runs]
        results += [_choice(group, protocol, folders) for group in groups]
    costs, curves = [], []
    for run, folds in trained.items():
        for fold in folds:
            log = read_log(folders.fold(run, fold))
            costs.append({**_identity(run), "fold": fold, **_cost(run, fold, log, folders)})
            curves += [{**_identity(run), "fold": fold, **row} for row in log["epochs"]]
    unfinished = [task for task in tasks if not task.is_done()]
    proofs = []
    for dataset, configuration in dict.fromkeys((run.dataset, run.configuration) for run in runs):
        group = [run for run in runs if (run.dataset, run.configuration) == (dataset, configuration)]
        proofs.append(equality.prove(group, protocol.folds, folders, accepted=accept_unequal))
    return Record(
        results=pd.concat([pd.DataFrame(columns=RESULTS), *(table for table in results if len(table))])
        if any(map(len, results))
        else pd.DataFrame(columns=RESULTS),
        runs=pd.DataFrame(costs, columns=RUNS),
        curves=pd.DataFrame(curves, columns=CURVES),
        equality=proofs,
        failures=_failures(unfinished, folders),
        about={
            **_about(protocol, trained, folders, complete=not unfinished, command=command),
            "left_out": _left_out(protocol, trained, folders, [table for table in results if len(table)]),
        },
    )


def _identity(run: Run) -> dict[str, str]:
    names = ("dataset", "configuration", "plans", "trainer", "algorithm", "role")
    return {name: getattr(run, name) for name in names}


def _metrics(file: Path, split: str, identity: Mapping[str, str]) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame(columns=RESULTS)
    table = read_table(file, {"case": str, "label": str, "name": str})
    return table.assign(split=split, **identity)[RESULTS]


def _cross_validation(run: Run, folds: Sequence[int], protocol: Protocol, folders: Folders) -> pd.DataFrame:
    file = folders.metrics(run.name, folds, protocol.tolerance, "cross-validation")
    return _metrics(file, "cross-validation", _identity(run))


def _test(name: str, identity: Mapping[str, str], protocol: Protocol, folders: Folders) -> pd.DataFrame:
    return _metrics(folders.metrics(name, protocol.folds, protocol.tolerance, "test"), "test", identity)


def _choice(group: Sequence[Run], protocol: Protocol, folders: Folders) -> pd.DataFrame:
    """Return the results of nnU-Net's choice on the test images."""
    choice = read_choice(group, protocol, folders)
    if choice is None:
        return pd.DataFrame(columns=RESULTS)
    identity = _joint_identity(choice.members, "choice")
    identity["algorithm"] += ", post-processed"
    return _test(choice.name, identity, protocol, folders)


def _ensembles(group: Sequence[Run], protocol: Protocol, folders: Folders) -> list[pd.DataFrame]:
    tables = []
    for pair in combinations(group, 2):
        name = f"{group[0].dataset}__{ensemble_name(*pair, protocol.folds)}"
        file = folders.metrics(name, protocol.folds, protocol.tolerance, "cross-validation")
        tables.append(_metrics(file, "cross-validation", _joint_identity(pair, "ensemble")))
    return tables


def _joint_identity(members: Sequence[Run], role: str) -> dict[str, str]:
    names = {name: " + ".join(getattr(run, name) for run in members) for name in ("trainer", "algorithm")}
    return {**_identity(members[0]), **names, "role": role}


def _cost(run: Run, fold: int, log: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    file = folders.recipe(run)
    recipe = json.loads(file.read_text()) if is_json(file) else {}
    attempts = conditions.read_conditions(folders.fold(run, fold))
    measured = [attempt for attempt in attempts if attempt.get("peak_memory_bytes")]
    highest = max(measured, key=lambda attempt: attempt["peak_memory_bytes"], default={})
    energy = [attempt.get("energy_joules") for attempt in attempts]
    seconds = [row["seconds"] for row in log["epochs"]]
    return {
        **{name: recipe.get(name) for name in ("parameters", "forward_flops", "batch_size", "epochs", "iterations")},
        "patch_size": "x".join(map(str, recipe.get("patch_size", []))),
        "seconds_per_epoch": float(np.median(seconds)) if seconds else np.nan,
        "training_seconds": sum(seconds),
        "peak_memory_bytes": highest.get("peak_memory_bytes"),
        "memory_kind": highest.get("memory_kind"),
        # Unknown for a training that was killed on the way: then a part of it is.
        "energy_joules": sum(energy) if energy and None not in energy else None,
        "validation_voxels_per_second": log["voxels_per_second"],
        "device": attempts[-1]["environment"]["device"] if attempts else None,
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
    recipes = [json.loads(folders.recipe(run).read_text()) for run in protocol.runs() if is_json(folders.recipe(run))]
    budgets = dict.fromkeys(
        f"{count(recipe['epochs'], 'epoch')} x {count(recipe['iterations'], 'iteration')}" for recipe in recipes
    )
    versions = conditions.environment(protocol.device)
    return {
        "title": f"nnU-Net backbones on {', '.join(protocol.datasets)}",
        "command": command,
        "budget": f"{' or '.join(budgets)}, fold{'s' * (len(protocol.folds) > 1)} {' '.join(map(str, protocol.folds))}",
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hardware": conditions.hardware(),
        "versions": {**versions, "monai": metadata.version("monai")},
        "images": {
            f"{dataset}/{configuration}": _images(dataset, configuration, trained, folders)
            for dataset, configuration in dict.fromkeys((run.dataset, run.configuration) for run in trained)
        },
        "ensembles": _best(protocol, trained, folders),
        "complete": complete,
    }


def _left_out(
    protocol: Protocol, trained: Mapping[Run, list[int]], folders: Folders, results: Sequence[pd.DataFrame]
) -> dict[str, dict[str, list[str]]]:
    """Return the cases that have segmentations, but could not be evaluated, by dataset/configuration and split."""
    found: dict[str, dict[str, list[str]]] = {}
    for run, folds in trained.items():
        places = {"cross-validation": folders.validated(run, folds)}
        places["test"] = folders.predictions(run.name, protocol.folds)
        description = folders.preprocessed / run.dataset / "dataset.json"
        ending = json.loads(description.read_text())["file_ending"] if is_json(description) else ""
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
    wanted = {**_identity(run), "split": split}
    return all(str(table[name].iloc[0]) == value for name, value in wanted.items())


def _images(dataset: str, configuration: str, trained: Mapping[Run, list[int]], folders: Folders) -> dict[str, Any]:
    description = folders.preprocessed / dataset / "dataset.json"
    content: dict[str, Any] = {"labels": {}, "file_ending": ""}
    if is_json(description):
        content = json.loads(description.read_text())
    shown = {
        run: folds
        for run, folds in trained.items()
        if folds and (run.dataset, run.configuration) == (dataset, configuration)
    }
    return {
        "images": str(folders.raw / dataset / "imagesTr"),
        "files": _listed_images(folders.raw / dataset),
        "truth": str(folders.truth(dataset)),
        "ending": content["file_ending"],
        "labels": {str(value): name for name, value in content["labels"].items() if name != "background"},
        "predictions": {run.algorithm: str(folders.validated(run, folds)) for run, folds in shown.items()},
    }


def _listed_images(folder: Path) -> dict[str, str]:
    """Return the first image of each case, where dataset.json lists the files; else nothing."""
    file = folder / "dataset.json"
    if not is_json(file) or "dataset" not in (content := json.loads(file.read_text())):
        return {}
    listed = {case: os.path.expandvars(files["images"][0]) for case, files in content["dataset"].items()}
    return {case: str(Path(os.path.abspath(folder / image))) for case, image in listed.items()}


def _best(protocol: Protocol, trained: Mapping[Run, list[int]], folders: Folders) -> list[str]:
    """Return what nnU-Net's find_best_configuration found for these folds; files of others lie beside them."""
    files = dict.fromkeys(folders.best(group[0], protocol.folds) for group in whole_groups(trained, protocol))
    texts = [file.read_text() for file in files if file.is_file()]
    return [line.strip() for text in texts for line in text.splitlines() if line.startswith("*Best*")]
