"""What a record holds of trainings whose models are no longer here: it is kept, and they are not made again.

A record may be all that is left of a training, such as one that was committed to a repository, or whose models were
removed because they are large. A training is kept if the record has its costs and its results, and it is not there. Its
rows stay in the record as they are, marked `GONE`; its conditions are compared with those of the others like any
training's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_plugins.benchmark.conditions import is_begun
from nnunet_plugins.benchmark.done import is_trained
from nnunet_plugins.benchmark.folds import held_out
from nnunet_plugins.benchmark.protocol import ONE_FOR_MANY, ONE_PASS, BenchmarkError, Protocol, Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.errors import InputError
from nnunet_plugins.provenance import Marker, read_markers
from nnunet_plugins.report.equality import setting_of
from nnunet_plugins.report.record import COMPARISON, GONE, UNRANKED, Record, read_record

TRAIN_AGAIN = "--train-missing-models"
"""The option with which kept trainings are made again."""

Key = tuple[str, str, str, str]
"""Dataset, configuration, plans and trainer, which make a run."""
_KEY = ["dataset", "configuration", "plans", "trainer"]
_JOINED = " + "


@dataclass(frozen=True)
class Kept:
    """Trainings that the record has, and whose models are gone.

    Attributes:
        record: the one of before; None if there is none.
        trainings: their folds, by run of the present question.
        markers: of the record of before.
    """

    record: Record | None = None
    trainings: Mapping[Run, Sequence[int]] = field(default_factory=dict)
    markers: Sequence[Marker] = ()

    def has(self, run: Run, fold: int) -> bool:
        """Tell whether a training is kept."""
        return fold in self.trainings.get(run, ())

    def to_leave_out(self, folders: Folders) -> "Kept":
        """Return those that are not to be trained: others have begun here, and go on."""
        return self._only(lambda run, fold: not is_begun(folders.fold(run, fold)))

    def still_missing(self, folders: Folders) -> "Kept":
        """Return those that have not been trained here since."""
        return self._only(lambda run, fold: not is_trained(folders.fold(run, fold)))

    def _only(self, fits: Callable[[Run, int], bool]) -> "Kept":
        left = {run: [fold for fold in folds if fits(run, fold)] for run, folds in self.trainings.items()}
        return replace(self, trainings={run: folds for run, folds in left.items() if folds})

    def describe(self) -> list[str]:
        """Return a line per run: its name, and the folds."""
        return [_describe(run, folds) for run, folds in self.trainings.items()]

    def conditions(self, run: Run, fold: int) -> dict[str, dict[str, str]] | None:
        """Return hashes, environment and all settings of a kept training; None if it is none."""
        if self.record is None or not self.has(run, fold):
            return None
        names = self._old_names(run)
        for entry in self.record.equality:
            if (entry["dataset"], entry["configuration"]) != (run.dataset, run.configuration):
                continue
            for one in entry["runs"]:
                if (one["algorithm"], one.get("seed", ""), one["fold"]) == (*names, fold):
                    recipe = entry.get("recipes", {}).get(one["algorithm"], {})
                    settings = {**{name: setting_of(recipe, name) for name in recipe}, **one.get("settings", {})}
                    return {"hashes": one["hashes"], "environment": one["environment"], "settings": settings}
        return {"hashes": {}, "environment": {}, "settings": {}}

    def _old_names(self, run: Run) -> tuple[str, str]:
        """Return the algorithm's name and the seed that a run has in the record of before."""
        assert self.record is not None
        row = self.record.runs[_of(self.record.runs, run)].iloc[0]
        return row["algorithm"], row["seed"]

    def runs(self, name: str) -> pd.DataFrame:
        """Return the kept rows of a table that has a row per training, or several: "runs" or "curves"."""
        if self.record is None:
            return pd.DataFrame()
        table: pd.DataFrame = getattr(self.record, name)
        parts = [
            table[_of(table, run) & table["fold"].isin(folds)].assign(**run.identity)
            for run, folds in self.trainings.items()
        ]
        return pd.concat(parts) if parts else table[:0]

    def results(self, new: pd.DataFrame) -> pd.DataFrame:
        """Return the kept rows of the results.

        Of a cross-validation by one network these are its kept folds. What several networks or all folds have made
        together, ensembles and test images, is kept if it cannot be made again and was not.

        Args:
            new: the results of what is here.
        """
        if self.record is None or not self.trainings:
            return new[:0]
        there = {tuple(row) for row in new[["split", *_KEY, "role"]].drop_duplicates().itertuples(index=False)}
        chosen = {tuple(row) for row in new.loc[new["role"] == "choice", COMPARISON].itertuples(index=False)}
        parts = []
        for values, rows in self.record.results.groupby(["split", *_KEY, "role"], sort=False):
            split, dataset, configuration, plans, trainer, role = map(str, values)
            members = self._members((dataset, configuration, plans, trainer), role)
            if not members:
                continue
            if split == "cross-validation" and role not in ("ensemble", "choice"):
                rows = rows[rows["fold"].isin(self.trainings[members[0]])]
            elif tuple(values) in there or (role == "choice" and (split, dataset, configuration) in chosen):
                continue
            parts.append(rows.assign(**_names(members[0], role)))
        return pd.concat(parts) if parts else new[:0]

    def _members(self, key: Key, role: str) -> list[Run]:
        """Return those of the runs that have made results of which trainings are kept."""
        dataset, configuration, plans, trainers = key
        return [
            run
            for name in trainers.split(_JOINED)
            for run in self.trainings
            if (run.configuration, run.plans, run.trainer) == (configuration, plans, name)
            and (run.dataset != dataset if role == ONE_FOR_MANY else run.dataset == dataset)
        ]

    def outputs(self, made: Sequence[Marker], results: pd.DataFrame) -> Iterator[Marker]:
        """Yield the markers of what kept rows were made of, and of what that was made of.

        Args:
            made: the markers of what is here.
            results: the rows of the record, by what they are called now.
        """
        again = {name for marker in made for name in marker.outputs}
        before = [marker for marker in self.markers[1:] if again.isdisjoint(marker.outputs)]
        made_of = {name: marker.inputs for marker in before for name in marker.outputs}
        rows = results.drop_duplicates(["split", *_KEY, "role"])
        named = {tuple(row[name] for name in ("split", *_KEY, "role")): row for _, row in rows.iterrows()}
        wanted: dict[str, None] = {}
        found = {}
        for marker in before:
            row = named.get(tuple(marker.of.get(name) for name in ("split", *_KEY, "role")))
            if row is not None and self._members(tuple(row[name] for name in _KEY), row["role"]):
                of = {name: row[name] for name in (*marker.of, "seed") if name != "model"}
                found[id(marker)] = {**of, "model": GONE}
                wanted |= dict.fromkeys(marker.outputs)
        waiting = list(wanted)
        while waiting:
            for name in made_of.get(waiting.pop(), ()):
                if name in made_of and name not in wanted:
                    wanted[name] = None
                    waiting.append(name)
        for marker in before:
            if not wanted.keys().isdisjoint(marker.outputs):
                yield replace(marker, of=found.get(id(marker), {}))

    def about(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said about a record, with what was said of the kept trainings: machines and cases left out."""
        if self.record is None or not self.trainings:
            return dict(about)
        before = self.record.about
        left_out = {place: dict(splits) for place, splits in about["left_out"].items()}
        for place, splits in before.get("left_out", {}).items():
            for split, cases in splits.items():
                own = left_out.setdefault(place, {})
                own[split] = list(dict.fromkeys([*own.get(split, ()), *cases]))
        return {
            **about,
            "left_out": left_out,
            "hardware": list(dict.fromkeys([*about["hardware"], *before.get("hardware", ())])),
            "twins": {**before.get("twins", {}), **about["twins"]},
            "ensembles": about["ensembles"] or before.get("ensembles", []),
        }

    def logs(self) -> dict[str, str]:
        """Return the identities of the files that kept trainings have left, which costs and curves were read from."""
        places = tuple(
            f"results/{run.dataset}/{run.model}/fold_{fold}/" for run, folds in self.trainings.items() for fold in folds
        )
        return {
            name: identity
            for marker in self.markers[:1]
            for name, identity in marker.inputs.items()
            if name.startswith(places)
        }


NOTHING_KEPT = Kept()


def _describe(run: Run, folds: Sequence[int]) -> str:
    numbers = ", ".join(map(str, folds))
    return f"{run.dataset} {run.configuration}: {run.title}, fold{'s' * (len(folds) > 1)} {numbers}"


def _of(table: pd.DataFrame, run: Run) -> "pd.Series[bool]":
    """Tell which rows of a table are about a run."""
    return (table[_KEY] == pd.Series([getattr(run, name) for name in _KEY], _KEY)).all(axis=1)


def _names(run: Run, role: str) -> dict[str, str]:
    """Return what kept rows of a run are called now; what several have made is called as it was."""
    if role == ONE_PASS:
        return {"algorithm": f"{run.algorithm}, in one pass", "seed": run.seed}
    return {} if role in UNRANKED else run.identity


def read_kept(protocol: Protocol, folders: Folders, *, move: bool = True) -> Kept:
    """Return what the record in the benchmark's folder has of trainings whose models are gone.

    Args:
        protocol: the question.
        folders: where things lie.
        move: move a record away that cannot be read; nothing is kept of it.

    Raises:
        BenchmarkError: if something of it would be lost, because it is not asked for or was evaluated otherwise.
    """
    folder = folders.output / "record"
    if not folder.is_dir():
        return Kept()
    try:
        record = read_record(folder)
        markers = read_markers(folder / "provenance.json")
    except InputError as error:
        if not move:
            return Kept()
        place = _free_name(folder)
        print(f"The record of before cannot be read, and is now {place}: {error}", flush=True)
        folder.rename(place)
        return Kept()
    record = _with_folds(record, folders)
    _require_folds(record, folders)
    runs = {_key(run): run for run in protocol.runs()}
    found: dict[Run, list[int]] = {}
    lost = []
    for row in record.runs.drop_duplicates([*_KEY, "fold"]).itertuples():
        old, fold = _run(row), int(row.fold)
        own = record.results[_of(record.results, old) & (record.results["fold"] == fold)]
        if own.empty or is_trained(folders.fold(old, fold)):
            continue
        run = runs.get(_key(old))
        if run is None or fold not in protocol.folds:
            lost.append(_describe(old, [fold]))
            continue
        if (own["tolerance_mm"] != protocol.tolerance).any():
            before = f"{own['tolerance_mm'].iloc[0]:g}"
            raise BenchmarkError(
                f"the record in {folder} has {_describe(run, [fold])} at a tolerance of {before} mm, and its model is "
                f"{GONE}, so that it cannot be evaluated at {protocol.tolerance:g} mm. Give --tolerance {before}, or "
                "another folder (-o)"
            )
        found.setdefault(run, []).append(fold)
    if lost:
        raise BenchmarkError(
            f"the record in {folder} has results whose models are no longer here, and this command does not ask for "
            f"them, so that they would be lost: {'; '.join(lost)}. Name these trainers and folds too, or give another "
            "folder (-o)"
        )
    datasets = record.about.get("datasets", {})
    ungrouped = [
        one for one in protocol.datasets if datasets.get(one, {}).get("group_of") and one not in protocol.groups
    ]
    if ungrouped:
        raise BenchmarkError(
            f"the record in {folder} knows the groups of the cases of {', '.join(ungrouped)}, and this command names "
            "none, so that all would count as if they were unlike. Give --groups as before, or another folder (-o)"
        )
    if protocol.test:
        _require_same_folds(record, found, protocol.folds)
    return Kept(record, found, markers)


def _require_folds(record: Record, folders: Folders) -> None:
    """Check that it is known in which fold the cases of trainings were held out whose models are gone.

    Raises:
        BenchmarkError: if not, as in a record of version 0.1.0 without its splits.
    """
    for row in record.runs.drop_duplicates([*_KEY, "fold"]).itertuples():
        run, fold = _run(row), int(row.fold)
        own = record.results[_of(record.results, run) & (record.results["split"] == "cross-validation")]
        if len(own) and own["fold"].isna().all() and not is_trained(folders.fold(run, fold)):
            splits = folders.preprocessed / run.dataset / "splits_final.json"
            raise BenchmarkError(
                f"the record in {folders.output / 'record'} has results of {_describe(run, [fold])}, whose model is "
                f"{GONE}, and does not say which cases were held out in which fold; nor does {splits}. Put that file "
                "there as it was when the record was made, or give another folder (-o)"
            )


def _require_same_folds(record: Record, found: Mapping[Run, Sequence[int]], folds: Sequence[int]) -> None:
    """Check that the folds asked for are those that predicted test images together, where their models are gone.

    Raises:
        BenchmarkError: if not: what they predicted would be compared with what other folds predict.
    """
    for run in found:
        made_by = sorted(set(record.runs[_of(record.runs, run)]["fold"].astype(int)))
        tested = _of(record.results, run) & (record.results["split"] == "test")
        if tested.any() and made_by != sorted(folds):
            raise BenchmarkError(
                f"the record has test images that were predicted by {_describe(run, made_by)} together, and not all of "
                f"their models are here, so that other folds cannot predict them. Give -f {' '.join(map(str, made_by))}"
                f", {TRAIN_AGAIN}, or another folder (-o)"
            )


def _run(row: Any) -> Run:
    """Return the run of a row of a record's runs."""
    return Run(row.dataset, row.configuration, row.plans, row.trainer, row.algorithm, row.role, row.seed)


def _key(run: Run) -> Key:
    return run.dataset, run.configuration, run.plans, run.trainer


def _with_folds(record: Record, folders: Folders) -> Record:
    """Return a record whose results say in which fold each case was held out, as far as the splits here tell it."""
    results = record.results
    unknown = results["fold"].isna() & (results["split"] == "cross-validation")
    if not unknown.any():
        return record
    folds = {dataset: held_out(folders, dataset) for dataset in results["dataset"].unique()}
    found = [folds[dataset].get(case) for dataset, case in zip(results["dataset"], results["case"], strict=True)]
    filled = results["fold"].mask(unknown, pd.Series(found, results.index, dtype="Int64"))
    return replace(record, results=results.assign(fold=filled))


def _free_name(folder: Path) -> Path:
    """Return a name beside a folder that nothing has."""
    names = (folder.with_name(f"{folder.name}-unreadable-{number}") for number in range(1, 1000))
    return next(name for name in names if not name.exists())
