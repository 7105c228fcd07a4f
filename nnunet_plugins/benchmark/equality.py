"""Compare the conditions of trainings: a table of trainings x settings, each with its value, or unknown.

The conditions are those that the trainings have recorded (`conditions.py`), or what can be known of one that has no
record (`unrecorded.py`); recipes come from `recipe.py`. What is unknown is neither equal to anything nor what others
are compared with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark import conditions
from nnunet_plugins.benchmark.conditions import HASHES, hash_content
from nnunet_plugins.benchmark.done import is_trained
from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.recipe import UNKNOWN
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.benchmark.unrecorded import known_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import is_json, read_json

SIZES = ("epochs", "iterations per epoch", "batch size", "patch size")

MUST_BE_EQUAL = (*HASHES, *SIZES)
"""Runs that differ in these are not compared unless the user says so; other differences are flagged."""

OF_THE_PLAN = ("plans", "data", "batch size", "patch size")
"""What a run on a plan of its own may have different."""

ABSENT = "none"
"""A setting that a recipe does not have."""


@dataclass
class _Row:
    """A training, or with `fold` None a network that is described and not trained."""

    run: Run
    fold: int | None
    hashes: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def prove(
    runs: Sequence[Run], folds: Sequence[int], folders: Folders, *, accepted: bool, upcoming: bool = False
) -> dict[str, Any]:
    """Compare the trainings of one dataset and configuration.

    Args:
        runs: with the baseline first.
        folds: those that are compared.
        folders: where things lie.
        accepted: the user wants them compared whatever differs.
        upcoming: take those that are yet to be trained as well, on what is there now.

    Returns:
        what `equality.json` holds for them; see `report/record.py`. `runs` is the table: the hashes, the environment
        and the `settings` of each training; `recipes` has all settings of each algorithm.
    """
    recipes = {run: _recipe(folders.recipe(run)) for run in runs}
    rows = [row for run in runs for fold in folds if (row := _recorded(run, fold, folders, recipes[run]))]
    if upcoming and rows:
        rows += [
            _Row(run, fold, {**_present(run, folders), "recipe": hash_content(recipes[run])})
            for run in runs
            for fold in folds
            if not is_trained(folders.fold(run, fold))
        ]
    trained = {row.run for row in rows}
    described = [_Row(run, None) for run in runs if run not in trained]
    _complete(rows, recipes)
    _complete(described, recipes, trained=False)
    return {
        "dataset": runs[0].dataset,
        "configuration": runs[0].configuration,
        "baseline": runs[0].algorithm,
        "plans": {run.algorithm: run.plans for run in runs},
        "runs": [
            {
                "algorithm": row.run.algorithm,
                "fold": row.fold,
                "hashes": row.hashes,
                "environment": row.environment,
                "settings": {name: row.settings[name] for name in _settings_of_trainings(rows)},
            }
            for row in rows
        ],
        "recipes": {run.algorithm: recipe for run, recipe in recipes.items()},
        "problems": {run.algorithm: found for run in runs if (found := _problems(folders.recipe(run)))},
        "same": _same(rows),
        "differences": _differences([*rows, *described], runs[0]),
        "accepted": accepted,
    }


def refused(proof: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences for which runs may not stand side by side."""
    return [] if proof["accepted"] else [found for found in proof["differences"] if not found["allowed"]]


def _recipe(file: Path) -> dict[str, Any]:
    return read_json(file, {"recipe": dict})["recipe"] if is_json(file) else {}


def _problems(file: Path) -> dict[str, str]:
    return read_json(file).get("problems", {}) if is_json(file) else {}


def _recorded(run: Run, fold: int, folders: Folders, recipe: Mapping[str, Any]) -> _Row | None:
    """Return what is known of a training; None if there is none."""
    folder = folders.fold(run, fold)
    attempts = conditions.read_conditions(folder, folders.ledger)
    if not attempts:
        return _Row(run, fold, **known_of(run, fold, folders)) if conditions.is_begun(folder) else None
    row = _Row(run, fold)
    for name in (*HASHES, "recipe"):
        row.hashes[name] = _summary(attempt["hashes"].get(name, UNKNOWN) for attempt in attempts)
    for name in dict.fromkeys(name for attempt in attempts for name in attempt["environment"]):
        row.environment[name] = _summary(attempt["environment"].get(name, UNKNOWN) for attempt in attempts)
    # Version 0.1.0 recorded no recipes; those that it described are taken as they are.
    recipes = [attempt.get("description", {}).get("recipe", recipe) for attempt in attempts]
    for name in dict.fromkeys(name for one in recipes for name in one):
        row.settings[name] = _summary(str(one.get(name, ABSENT)) for one in recipes)
    return row


def _present(run: Run, folders: Folders) -> dict[str, str]:
    """Return hashes of what a run would be trained on now; none where planning has failed."""
    try:
        return conditions.present_hashes(folders, run)
    except (OSError, InputError):
        return {}


def _summary(values: Iterable[str]) -> str:
    """Return the value of all attempts, or all values; if one is unknown, so is what the training was trained on."""
    found = list(dict.fromkeys(values))
    return UNKNOWN if UNKNOWN in found else ", then ".join(found)


def _complete(rows: Sequence[_Row], recipes: Mapping[Run, Mapping[str, Any]], *, trained: bool = True) -> None:
    """Give all rows the same columns."""
    settings = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    settings |= dict.fromkeys(name for row in rows for name in row.settings)
    environment = dict.fromkeys(name for row in rows for name in row.environment)
    for row in rows:
        recipe = recipes[row.run]
        row.settings = {
            name: row.settings.get(name, str(recipe.get(name, ABSENT)) if recipe else UNKNOWN) for name in settings
        }
        if trained:
            row.hashes = {name: row.hashes.get(name, UNKNOWN) for name in (*HASHES, "recipe")}
            row.environment = {name: row.environment.get(name, UNKNOWN) for name in environment}


def _settings_of_trainings(rows: Sequence[_Row]) -> list[str]:
    """Return the settings to name for each training: those that must be equal, and those in which folds differ."""
    values: dict[tuple[Run, str], set[str]] = {}
    for row in rows:
        for name, value in row.settings.items():
            values.setdefault((row.run, name), set()).add(value)
    differing = {name for (_, name), found in values.items() if len(found) > 1}
    return [name for name in (rows[0].settings if rows else ()) if name in SIZES or name in differing]


def _same(rows: Sequence[_Row]) -> list[str]:
    """Return the hashes that are known of every training, and are the same in all."""
    values = {name: {row.hashes[name] for row in rows} for name in (*HASHES, "recipe")}
    return [name for name, found in values.items() if len(found) == 1 and UNKNOWN not in found]


def _differences(rows: Sequence[_Row], baseline: Run) -> list[dict[str, Any]]:
    """Return what differs, or is not known, once per algorithm and value."""
    columns: dict[str, dict[str, None]] = {"hashes": {}, "environment": {}, "settings": {}}
    for row in rows:
        for kind, names in columns.items():
            names |= dict.fromkeys(getattr(row, kind))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for kind, names in columns.items():
        for name in sorted(names) if kind == "settings" else names:
            values = [(row.run, getattr(row, kind)[name]) for row in rows if name in getattr(row, kind)]
            if len({value for _, value in values}) == 1 and values[0][1] != UNKNOWN:
                continue
            for run, value in dict.fromkeys(values):
                reference, expected = _reference(values, run, name, baseline)
                if value == expected != UNKNOWN or (name == "recipe" and _is_another_recipe(rows, run)):
                    continue
                # Where an object is another one, its parts are no differences of their own.
                if any(name.startswith(f"{what}.") and who == run.algorithm for who, what, _ in found):
                    continue
                own = run.plans != reference.plans and name in OF_THE_PLAN
                found.setdefault(
                    (run.algorithm, name, value),
                    {
                        "algorithm": run.algorithm,
                        "what": name,
                        "value": value,
                        "baseline": expected,
                        "against": reference.algorithm,
                        "allowed": own or UNKNOWN in (value, expected) or name not in MUST_BE_EQUAL,
                    },
                )
    return list(found.values())


def _is_another_recipe(rows: Sequence[_Row], run: Run) -> bool:
    """Tell whether the hash of a run's recipe says nothing more than its settings, which are compared one by one."""
    values = {row.hashes["recipe"] for row in rows if row.run == run and row.fold is not None}
    return len(values) == 1 and UNKNOWN not in values


def _reference(values: Sequence[tuple[Run, str]], run: Run, name: str, baseline: Run) -> tuple[Run, str]:
    """Return with which run another is compared, and the value there: the baseline, else the first that is known."""
    known = [(other, value) for other, value in values if value != UNKNOWN]
    if name in OF_THE_PLAN and run.plans != baseline.plans and len({v for other, v in known if other == run}) > 1:
        known = [pair for pair in known if pair[0] == run]  # plans of its own, but in all its folds the same
    of_baseline = [pair for pair in known if pair[0] == baseline]
    shared = [pair for pair in known if pair[0].plans == baseline.plans]
    return next(iter([*of_baseline, *shared, *known]), (baseline, UNKNOWN))
