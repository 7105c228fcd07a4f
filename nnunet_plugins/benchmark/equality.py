"""Collect the conditions of trainings: a table of trainings x settings, each with its value, or unknown.

The conditions are those that the trainings have recorded (`conditions.py`), or what can be known of one that has no
record (`unrecorded.py`); recipes come from `recipe.py`. What is unknown is neither equal to anything nor what others
are compared with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark import conditions
from nnunet_plugins.benchmark.conditions import recipe_hash
from nnunet_plugins.benchmark.done import is_trained
from nnunet_plugins.benchmark.kept import NOTHING_KEPT, Kept
from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.benchmark.unrecorded import known_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import is_json, read_json
from nnunet_plugins.report.equality import HASHES, MUST_BE_EQUAL, THEN, UNKNOWN, read_equality, setting_of

SIZES = tuple(name for name in MUST_BE_EQUAL if name not in HASHES)
"""Settings to name for each training, because they must be equal."""


@dataclass
class _Row:
    """A training."""

    run: Run
    fold: int
    hashes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def prove(
    runs: Sequence[Run],
    folds: Sequence[int],
    folders: Folders,
    *,
    accepted: bool,
    upcoming: bool = False,
    kept: Kept = NOTHING_KEPT,
) -> dict[str, Any]:
    """Compare the trainings of one dataset and configuration.

    Args:
        runs: with the baseline first.
        folds: those that are compared.
        folders: where things lie.
        accepted: the user wants them compared whatever differs.
        upcoming: take those that are yet to be trained as well, on what is there now.
        kept: trainings whose models are gone, with their conditions.

    Returns:
        what `equality.json` holds for them, which `report/equality.py` reads as a table. `runs` has the hashes, the
        environment and the `settings` of each training; `recipes` has all settings of each algorithm, of several
        repeats those of the first one. `same` and `differences` follow from these.
    """
    described = {run: _described(folders.recipe(run)) for run in runs}
    recipes = {run: found["recipe"] for run, found in described.items()}
    rows = [row for run in runs for fold in folds if (row := _known(run, fold, folders, recipes[run], kept))]
    if upcoming and rows:
        rows += [
            _Row(run, fold, {**_present(run, folders), "recipe": recipe_hash(recipes[run])})
            for run in runs
            for fold in folds
            if not is_trained(folders.fold(run, fold)) and not kept.has(run, fold)
        ]
    if len({row.hashes.get("data") for row in rows}) > 1:
        for row in rows:
            row.hashes |= _in_present_terms(row, folders)
    _complete(rows, recipes)
    of_algorithms = {run.algorithm: recipes[run] for run in reversed(runs)}
    entry = {
        "dataset": runs[0].dataset,
        "configuration": runs[0].configuration,
        "baseline": runs[0].algorithm,
        "plans": {run.algorithm: run.plans for run in runs},
        "runs": [
            {
                "algorithm": row.run.algorithm,
                **({"seed": row.run.seed} if row.run.seed else {}),
                "fold": row.fold,
                "hashes": row.hashes,
                "environment": row.environment,
                "settings": _own_settings(row, of_algorithms[row.run.algorithm]),
            }
            for row in rows
        ],
        "recipes": {run.algorithm: of_algorithms[run.algorithm] for run in runs},
        "problems": {run.algorithm: found["problems"] for run, found in described.items() if found.get("problems")},
        "accepted": accepted,
    }
    table = read_equality(entry)
    return {**entry, "same": list(table.same), "differences": table.differences}


def refused(proof: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences for which runs may not stand side by side."""
    return read_equality(proof).refused


def _described(file: Path) -> dict[str, Any]:
    return read_json(file, {"recipe": dict}) if is_json(file) else {"recipe": {}}


def _known(run: Run, fold: int, folders: Folders, recipe: Mapping[str, Any], kept: Kept) -> _Row | None:
    """Return what is known of a training that is here, or of one that is kept; None if there is none."""
    folder, known = folders.fold(run, fold), kept.conditions(run, fold)
    attempts = conditions.read_conditions(folder, folders.ledger) if known is None else []
    if known is None and not attempts:
        if not conditions.is_begun(folder):
            return None
        known = known_of(run, fold, folders)
    if known is not None:
        # Not what the trainer says today.
        return _Row(run, fold, **{**known, "settings": {**dict.fromkeys(SIZES, UNKNOWN), **known["settings"]}})
    row = _Row(run, fold)
    for name in (*HASHES, "recipe"):
        row.hashes[name] = _summary(attempt["hashes"].get(name, UNKNOWN) for attempt in attempts)
    for name in dict.fromkeys(name for attempt in attempts for name in attempt["environment"]):
        row.environment[name] = _summary(attempt["environment"].get(name, UNKNOWN) for attempt in attempts)
    # Version 0.1.0 recorded no recipes; those that it described are taken as they are.
    recipes = [attempt.get("description", {}).get("recipe", recipe) for attempt in attempts]
    for name in dict.fromkeys(name for one in recipes for name in one):
        row.settings[name] = _summary(setting_of(one, name) for one in recipes)
    return row


def _present(run: Run, folders: Folders) -> dict[str, str]:
    """Return hashes of what a run would be trained on now; none where planning has failed."""
    try:
        return conditions.present_hashes(folders, run)
    except (OSError, InputError):
        return {}


def _in_present_terms(row: _Row, folders: Folders) -> dict[str, str]:
    """Return the hash of a training's data as it is taken now, if the data here are those that it was trained on."""
    try:
        parts = [conditions.in_present_terms(one, folders, row.run) for one in row.hashes["data"].split(THEN)]
    except (KeyError, OSError, InputError):
        return {}
    return {"data": _summary(parts)}


def _summary(values: Iterable[str]) -> str:
    """Return the value of all attempts, or all values; if one is unknown, so is what the training was trained on."""
    found = list(dict.fromkeys(values))
    return UNKNOWN if UNKNOWN in found else THEN.join(found)


def _complete(rows: Sequence[_Row], recipes: Mapping[Run, Mapping[str, Any]]) -> None:
    """Give all rows the same columns."""
    settings = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    settings |= dict.fromkeys(name for row in rows for name in row.settings)
    environment = dict.fromkeys(name for row in rows for name in row.environment)
    for row in rows:
        recipe = recipes[row.run]
        row.settings = {name: row.settings.get(name, setting_of(recipe, name)) for name in settings}
        row.hashes = {name: row.hashes.get(name, UNKNOWN) for name in (*HASHES, "recipe")}
        row.environment = {name: row.environment.get(name, UNKNOWN) for name in environment}


def _own_settings(row: _Row, recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings to name for a training: those that must be equal, and what the recipe says otherwise now."""
    present = {name: setting_of(recipe, name) for name in row.settings}
    return {name: value for name, value in row.settings.items() if name in SIZES or value != present[name]}
