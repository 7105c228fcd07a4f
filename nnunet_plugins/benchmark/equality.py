"""Record the conditions of trainings, for the proof that they were equal, which `report/equality.py` reads from it.

The conditions are those that the trainings have recorded (`conditions.py`), the recipes come from `recipe.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.conditions import HASHES, read_conditions
from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.files import is_json
from nnunet_plugins.report.equality import THEN, UNKNOWN, hash_recipe, read_equality


def prove(runs: Sequence[Run], folds: Sequence[int], folders: Folders, *, accepted: bool) -> dict[str, Any]:
    """Collect the conditions of the trainings of one dataset and configuration.

    Args:
        runs: with the baseline first.
        folds: those that were trained.
        folders: where things lie.
        accepted: the user wants them compared whatever differs.

    Returns:
        what `equality.json` holds for them; see `report/equality.py`. `same` and `differences` follow from the rest.
    """
    present = {run: _recipe(folders.recipe(run)) for run in runs}
    recipes = {hash_recipe(recipe): recipe for recipe in present.values() if recipe}
    entries: list[dict[str, Any]] = []
    for run in runs:
        for fold in folds:
            if not folders.fold(run, fold).is_dir():
                continue
            attempts = read_conditions(folders.fold(run, fold))
            hashes = _summary([attempt["hashes"] for attempt in attempts], [*HASHES, "recipe"])
            if attempts and not any("recipe" in attempt["hashes"] for attempt in attempts):
                hashes["recipe"] = hash_recipe(present[run])  # a training of version 0.1.0, which did not record it
            recipes |= {
                attempt["hashes"]["recipe"]: attempt["description"]["recipe"]
                for attempt in attempts
                if "recipe" in attempt["hashes"] and "description" in attempt
            }
            environment = _summary([attempt["environment"] for attempt in attempts])
            entries.append({"algorithm": run.algorithm, "fold": fold, "hashes": hashes, "environment": environment})
    entry = {
        "dataset": runs[0].dataset,
        "configuration": runs[0].configuration,
        "baseline": runs[0].algorithm,
        "plans": {run.algorithm: run.plans for run in runs},
        "runs": entries,
        "recipes": recipes,
        "described": {run.algorithm: hash_recipe(recipe) for run, recipe in present.items()},
        "accepted": accepted,
    }
    found = read_equality(entry)
    return {**entry, "same": list(found.same), "differences": found.differences}


def refused(proof: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences for which runs may not stand side by side."""
    return read_equality(proof).refused


def _recipe(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["recipe"] if is_json(file) else {}


def _summary(attempts: Sequence[Mapping[str, str]], names: Sequence[str] = ()) -> dict[str, str]:
    """Return each entry, where attempts agree in it, or else all its values; unknown where an attempt does not tell."""
    every = dict.fromkeys([*names, *(name for attempt in attempts for name in attempt)])
    values = {name: [str(attempt.get(name, UNKNOWN)) for attempt in attempts] or [UNKNOWN] for name in every}
    return {name: THEN.join(dict.fromkeys(found)) for name, found in values.items()}
