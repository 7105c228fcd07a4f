"""Prove that trainings ran under equal conditions, or say what was not equal.

The conditions are those that the trainings have recorded (`conditions.py`), the recipes come from `recipe.py`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.conditions import HASHES, read_conditions
from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.files import is_json

MUST_BE_EQUAL = ("plans", "splits", "data", "epochs", "iterations per epoch", "batch size", "patch size")
"""Runs that differ in these are not compared unless the user says so; other differences are flagged."""

OF_THE_PLAN = ("plans", "data", "batch size", "patch size")
"""What a run on a plan of its own may have different."""

UNKNOWN = "unknown"


def prove(runs: Sequence[Run], folds: Sequence[int], folders: Folders, *, accepted: bool) -> dict[str, Any]:
    """Compare the trainings of one dataset and configuration with the first one's, the baseline's.

    Args:
        runs: with the baseline first.
        folds: those that were trained.
        folders: where things lie.
        accepted: the user wants them compared whatever differs.

    Returns:
        what `equality.json` holds for them; see `report/record.py`.
    """
    recipes = {run: _recipe(folders.recipe(run)) for run in runs}
    trainings = [(run, fold) for run in runs for fold in folds if folders.fold(run, fold).is_dir()]
    entries: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    reference: dict[str, str] = {}
    for run, fold in trainings:
        attempts = read_conditions(folders.fold(run, fold))
        hashes = _summary([attempt["hashes"] for attempt in attempts], HASHES)
        versions = _summary([attempt["environment"] for attempt in attempts])
        reference = reference or {**hashes, **versions}
        hashes["recipe"] = hashlib.sha256(json.dumps(recipes[run], sort_keys=True).encode()).hexdigest()[:16]
        entries.append({"algorithm": run.algorithm, "fold": fold, "hashes": hashes, "environment": versions})
        found = {**{name: hashes[name] for name in HASHES}, **versions}
        differences += [_difference(run, runs[0], name, value, reference.get(name)) for name, value in found.items()]
    for run in runs[1:]:
        differences += [
            _difference(run, runs[0], *parts) for parts in _different_settings(recipes[run], recipes[runs[0]])
        ]
    # Once per algorithm, not per fold.
    unique = {json.dumps(found, sort_keys=True): found for found in differences if found["value"] != found["baseline"]}
    names = (*HASHES, "recipe")
    return {
        "dataset": runs[0].dataset,
        "configuration": runs[0].configuration,
        "runs": entries,
        "same": [name for name in names if len({str(entry["hashes"][name]) for entry in entries}) == 1],
        "differences": list(unique.values()),
        "accepted": accepted,
    }


def refused(proof: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences for which runs may not stand side by side."""
    return [] if proof["accepted"] else [found for found in proof["differences"] if not found["allowed"]]


def _recipe(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["recipe"] if is_json(file) else {}


def _summary(attempts: Sequence[Mapping[str, str]], names: Sequence[str] = ()) -> dict[str, str]:
    """Return each entry, where attempts agree in it, or else all its values; unknown without an attempt."""
    values = {name: [UNKNOWN] for name in names} if not attempts else {}
    for attempt in attempts:
        for name, value in attempt.items():
            values.setdefault(name, []).append(value)
    return {name: ", then ".join(dict.fromkeys(found)) for name, found in values.items()}


def _difference(run: Run, reference: Run, what: str, value: Any, baseline: Any) -> dict[str, Any]:
    own = run.plans != reference.plans and what in OF_THE_PLAN
    # Trainings from before the benchmark have no record: that is said, and not taken for a difference.
    unknown = UNKNOWN in (value, baseline)
    return {
        "algorithm": run.algorithm,
        "what": what,
        "value": str(value),
        "baseline": str(baseline),
        "allowed": own or unknown or what not in MUST_BE_EQUAL,
    }


def _different_settings(recipe: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the settings that differ, with both values; where an object is another one, its parts are left out."""
    found: list[tuple[str, Any, Any]] = []
    if not recipe or not baseline:
        return found  # it could not be described, which is a failure of its own
    absent = "none"
    for name in sorted({*recipe, *baseline}):
        values = recipe.get(name, absent), baseline.get(name, absent)
        if values[0] != values[1] and not any(name.startswith(f"{other}.") for other, *_ in found):
            found.append((name, *values))
    return found
