"""Whether trainings were equal: a table of trainings x settings. All that is said of equality is read from it.

A setting has a value, or it is unknown, as in a training from before the benchmark that left no record. What is unknown
is neither equal to anything nor what others are compared with: where it is not known of the baseline, the others are
compared with the first one of which it is known.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

MUST_BE_EQUAL = ("plans", "splits", "data", "epochs", "iterations per epoch", "batch size", "patch size")
"""Runs that differ in these are not compared unless the user says so; other differences are flagged."""

OF_THE_PLAN = ("plans", "data", "batch size", "patch size")
"""What a run on a plan of its own may have different."""

HASHES = ("plans", "splits", "data")
"""What is hashed for every training."""

SEED = "seed"
"""A setting in which trainings of one algorithm differ on purpose: it is told, and is no difference."""

WITH_SEED = (SEED, "augmentation.GaussianBlurTransform.benchmark")
"""What a seed fixes: also which of two ways the blur takes, that the clock chooses otherwise. They blur alike."""

UNKNOWN = "unknown"
ABSENT = "none"
"""A setting that a described recipe does not have."""
UNTRAINED = -1
"""Stands for the fold of an algorithm that is described, and of which nothing is trained."""

_NO_RECIPE = hashlib.sha256(b"{}").hexdigest()[:16]


@dataclass(frozen=True)
class Equality:
    """What is known of the trainings of one dataset and configuration.

    Attributes:
        dataset: its name.
        configuration: its name.
        accepted: the user wants them compared whatever differs.
        baseline: the algorithm that comes first.
        table: texts, a row per algorithm and fold, a column per setting; None where nothing is trained.
        kinds: the columns that are "hashes", "environment" and "recipe".
        own: algorithms that have plans of their own.
    """

    dataset: str
    configuration: str
    accepted: bool
    baseline: str
    table: pd.DataFrame
    kinds: Mapping[str, Sequence[str]]
    own: frozenset[str]

    @property
    def place(self) -> str:
        """Dataset and configuration."""
        return f"{self.dataset}, {self.configuration}"

    def name(self, algorithm: str) -> str:
        """Return what to call an algorithm that others are compared with."""
        return "the baseline" if algorithm == self.baseline else algorithm

    @property
    def same(self) -> dict[str, str]:
        """The hashes that are known of every training, and are the same in all."""
        values = {name: set(self.table[name].dropna()) for name in self.kinds["hashes"]}
        return {name: one.pop() for name, one in values.items() if len(one) == 1 and UNKNOWN not in one}

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """What differs, or is not known, once per algorithm.

        Returns:
            dictionaries of `algorithm`, `what`, `value`, `baseline` (the value it is compared with), `against` (whose
            that is) and `allowed`: they may be compared nevertheless.
        """
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        named: set[tuple[str, str]] = set()
        for what, column in self._columns():
            for algorithm, value in dict.fromkeys(zip(column.index.get_level_values(0), column, strict=True)):
                against, reference = self._reference(column, algorithm, what)
                # Where an object is another one, its parts are no differences of their own.
                wholes = _wholes(what) if what in self.kinds["recipe"] else []
                if value == reference or not named.isdisjoint((algorithm, whole) for whole in wholes):
                    continue
                own = what in OF_THE_PLAN and algorithm != against and not self.own.isdisjoint({algorithm, against})
                found[algorithm, what, value] = {
                    "algorithm": algorithm,
                    "what": what,
                    "value": value,
                    "baseline": reference,
                    "against": against,
                    "allowed": UNKNOWN in (value, reference) or what not in MUST_BE_EQUAL or own,
                }
                named.add((algorithm, what))
        return list(found.values())

    @property
    def refused(self) -> list[dict[str, Any]]:
        """The differences for which runs may not stand side by side; none, if the user has accepted them."""
        return [] if self.accepted else [found for found in self.differences if not found["allowed"]]

    @cached_property
    def unknown(self) -> dict[str, dict[str, list[int]]]:
        """What is not known of what is trained: by algorithm and setting, the folds."""
        found: dict[str, dict[str, list[int]]] = {}
        unknown = self.table == UNKNOWN
        unknown = unknown.loc[:, unknown.any()]
        settings = set(self.kinds["recipe"]) - set(MUST_BE_EQUAL)
        for what in [name for kind in ("hashes", "recipe") for name in self.kinds[kind] if name in unknown]:
            # Of an unknown recipe all is unknown, and of an unknown object all of its parts.
            told = [name for name in (*_wholes(what), *(["recipe"] if what in settings else [])) if name in unknown]
            for algorithm, fold in unknown.index[unknown[what] & ~unknown[told].any(axis=1)]:
                if fold != UNTRAINED:
                    found.setdefault(str(algorithm), {}).setdefault(what, []).append(int(fold))
        return found

    def _columns(self) -> Iterator[tuple[str, "pd.Series[str]"]]:
        """Yield the settings in which there are differences, but for what a seed fixes; an unknown recipe is one."""
        settings = set(self.kinds["recipe"])
        recipe = self.table["recipe"].fillna(UNKNOWN) if "recipe" in self.table else UNKNOWN
        for what in [*self.kinds["hashes"], *self.kinds["environment"], *self.kinds["recipe"]]:
            column = self.table[what].dropna()
            if what == "recipe":  # its settings are there one by one
                column = column.where(column == UNKNOWN, "known")
            elif what in settings - set(MUST_BE_EQUAL):
                column = column[(column != UNKNOWN) | (recipe != UNKNOWN)]
            if column.nunique() > 1 and what not in WITH_SEED:
                yield what, column

    def _reference(self, column: "pd.Series[str]", algorithm: str, what: str) -> tuple[str, str]:
        """Return which algorithm another one is compared with in a setting, and the value there."""
        known = column[column != UNKNOWN]
        names = known.index.get_level_values(0)
        choices = [names == self.baseline, ~names.isin(list(self.own)), names.notna()]
        if what in OF_THE_PLAN and algorithm in self.own and known[names == algorithm].nunique() > 1:
            choices = [names == algorithm]  # plans of its own, but in all its folds the same
        for chosen in choices:
            if chosen.any():
                return str(names[chosen][0]), str(known[chosen].iloc[0])
        return self.baseline, UNKNOWN


def setting_of(recipe: Mapping[str, Any], name: str) -> str:
    """Return a setting of a recipe as text; what belongs to an object that is unknown is unknown, too."""
    if name in recipe:
        return str(recipe[name])
    known = recipe and all(str(recipe.get(whole)) != UNKNOWN for whole in _wholes(name))
    return ABSENT if known else UNKNOWN


def _wholes(name: str) -> list[str]:
    """Return the objects that a setting is a part of: a and a.b for a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def read_equality(entry: Mapping[str, Any], roles: pd.DataFrame | None = None) -> Equality:
    """Read what was recorded of the trainings of one dataset and configuration.

    Args:
        entry: of `equality.json`. `runs` has the hashes and the environment of every training, and those of its
            `settings` that are not those of its algorithm's recipe; `recipes` the settings by algorithm, trained or
            not, and none if it could not be described; `plans` the name of its plans.
        roles: columns `dataset`, `configuration`, `algorithm` and `role`, for records without a baseline's name.
    """
    differences = entry.get("differences", ()) if "recipes" not in entry else ()
    recipes = entry.get("recipes", {})
    trained = {run["algorithm"]: None for run in entry["runs"]}
    others = dict.fromkeys([*recipes, *(found["algorithm"] for found in differences)])
    # What is not trained yet has a recipe, and no conditions.
    runs = [*entry["runs"], *({"algorithm": name, "fold": UNTRAINED} for name in others if name not in trained)]
    algorithms = list(dict.fromkeys(run["algorithm"] for run in runs))
    baseline = entry.get("baseline") or _baseline(entry, roles, algorithms)
    columns: dict[str, list[str | None]] = {}
    kinds: dict[str, list[str]] = {}
    for kind, first in (("hashes", HASHES if trained else ()), ("environment", ())):
        kinds[kind] = list(dict.fromkeys([*first, *(name for run in runs for name in run.get(kind, ()))]))
        for name in kinds[kind]:
            columns[name] = [_known(run[kind].get(name)) if kind in run else None for run in runs]
    if "recipes" not in entry:
        recipes = _old_recipes(differences, algorithms, columns)
    own_settings = [run.get("settings", {}) for run in runs]
    names = {name for part in [*recipes.values(), *own_settings] for name in part}
    kinds["recipe"] = sorted(names - columns.keys())
    for name in kinds["recipe"]:
        described = {who: setting_of(recipe, name) for who, recipe in recipes.items()}
        columns[name] = [
            _known(str(settings.get(name, described.get(run["algorithm"], UNKNOWN))))
            for run, settings in zip(runs, own_settings, strict=True)
        ]
    plans = entry.get("plans", {})
    own = {name for name, used in plans.items() if used != plans.get(baseline, used)}
    own |= {found["algorithm"] for found in differences if found["what"] in OF_THE_PLAN and _is_allowed(found)}
    index = pd.MultiIndex.from_tuples([(run["algorithm"], run["fold"]) for run in runs], names=["algorithm", "fold"])
    return Equality(
        entry["dataset"],
        entry["configuration"],
        entry["accepted"],
        baseline,
        pd.DataFrame(columns, index),
        kinds,
        frozenset(own),
    )


THEN = ", then "
"""Stands between the values of a training that went on under other conditions."""


def _known(value: str | None) -> str:
    """Return a value; what was unknown for a part of the training is unknown."""
    return UNKNOWN if value in (None, _NO_RECIPE) or UNKNOWN in str(value).split(THEN) else str(value)


def _baseline(entry: Mapping[str, Any], roles: pd.DataFrame | None, algorithms: Sequence[str]) -> str:
    if roles is not None:
        here = (roles["dataset"] == entry["dataset"]) & (roles["configuration"] == entry["configuration"])
        for name in roles.loc[here & (roles["role"] == "baseline"), "algorithm"]:
            return str(name)
    return algorithms[0] if algorithms else ""


def _is_allowed(found: Mapping[str, Any]) -> bool:
    return found["allowed"] and UNKNOWN not in (found["value"], found["baseline"])


def _old_recipes(
    differences: Iterable[Mapping[str, Any]], algorithms: Iterable[str], columns: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Return the settings in which algorithms differ, which is what a record of 0.1.0 has of recipes."""
    settings = [found for found in differences if found["what"] not in columns]
    same = {found["what"]: str(found["baseline"]) for found in settings}
    return {
        name: same | {found["what"]: str(found["value"]) for found in settings if found["algorithm"] == name}
        for name in algorithms
    }


def show_inequalities(equality: Equality) -> pd.DataFrame:
    """Write what differs, the forbidden first, and what is not known."""
    found = sorted(equality.differences, key=lambda found: found["allowed"])
    answers = ["unknown" if UNKNOWN in (one["value"], one["baseline"]) else "yes" for one in found]
    comparable = [answer if one["allowed"] else "NO" for one, answer in zip(found, answers, strict=True)]
    return pd.DataFrame(
        {
            "Algorithm": [one["algorithm"] for one in found],
            "Setting": [one["what"] for one in found],
            "Value": [one["value"] for one in found],
            "Compared with": [one["baseline"] for one in found],
            "Whose": [equality.name(one["against"]) for one in found],
            "Comparable": comparable,
        }
    )


def describe_equality(equality: Equality) -> str:
    """Say what was the same in all trainings."""
    same = ", ".join(equality.same) or "nothing"
    return f"The same in all trainings: {same}. " + (
        "What differs or is not known:" if equality.differences else "Nothing else differs."
    )
