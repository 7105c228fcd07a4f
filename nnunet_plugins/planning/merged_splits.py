"""Folds that a dataset has in common with those that it was made of: no case changes its fold between them.

It was merged of them, or is a twin of one, whose cases have the same names.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from nnunet_plugins.datasets.folders import PlanError, preprocessed_folder
from nnunet_plugins.datasets.preprocessed import existing_cases
from nnunet_plugins.datasets.sources import MARK, SOURCES, Source, find_description, original_of, read_sources
from nnunet_plugins.datasets.split_commands import folds_of_cases, split_command
from nnunet_plugins.files import read_json
from nnunet_plugins.images.finding import composed
from nnunet_plugins.planning.splits import Split, read_splits

FROM_SOURCES = "sources"
"""What stands for the datasets that a merged one was made of."""
_ANEW = "merge anew, or make splits of cases that both have"


def splits_like(folder: Path, like: str) -> list[Split]:
    """Return splits of a dataset with the folds of others.

    Args:
        folder: of the dataset, in nnUNet_preprocessed.
        like: number or name of the merged dataset that was made of it and others, or of the one that it is a twin of,
            of a twin of it, or of another twin of the same; or `FROM_SOURCES`, if it was merged itself.

    Raises:
        InputError: if the datasets do not belong together, cases of the folds are not there, or one has no splits.
    """
    if like == FROM_SOURCES:
        return _joined(folder)
    merged = preprocessed_folder(like)
    if merged.name != folder.name and _original(folder) == _original(merged):
        return _of_twin(folder, merged)
    for name, source in _sources(merged).items():
        if source.dataset == folder.name:
            return _part(merged, name, folder)
    raise PlanError(f"{merged.name} was not merged of {folder.name}; it was merged of {_told(_sources(merged))}")


def _original(folder: Path) -> str:
    """Return the dataset that one is a twin of, or its own name."""
    description, file = find_description(folder.name, folder.parent)
    return original_of(description, file) or folder.name


def _of_twin(twin: Path, original: Path) -> list[Split]:
    splits = _existing_splits(original)
    own = {composed(case): case for case in existing_cases(twin)}
    named = {composed(case) for fold in splits for part in fold.values() for case in part}
    _require_there(named, set(own), twin, original, "make the twin anew")
    return [{part: [own[composed(case)] for case in names] for part, names in fold.items()} for fold in splits]


def _joined(merged: Path) -> list[Split]:
    sources = _sources(merged)
    cases = {composed(case): case for case in existing_cases(merged)}
    splits: list[Split] = []
    folders = {name: preprocessed_folder(source.dataset) for name, source in sources.items()}
    number = _number_of_folds(folders.values())
    for name, folder in folders.items():
        own = _existing_splits(folder, number)
        splits = splits or [{"train": [], "val": []} for _ in own]
        if len(own) != len(splits):
            raise PlanError(
                f"{folder.name} is split into {len(own)} folds, {next(iter(folders.values())).name} into "
                f"{len(splits)}: a merged dataset has one number of them"
            )
        named = {f"{name}{MARK}{composed(case)}" for fold in own for part in fold.values() for case in part}
        there = {case for case in cases if case.startswith(f"{name}{MARK}")}
        _require_there(named, there, merged, folder, _ANEW)
        for split, fold in zip(splits, own, strict=True):
            for part, names in fold.items():
                split[part] += [cases[f"{name}{MARK}{composed(case)}"] for case in names]
    return splits


def _part(merged: Path, name: str, folder: Path) -> list[Split]:
    start = f"{name}{MARK}"
    own = {f"{start}{composed(case)}": case for case in existing_cases(folder)}
    splits = [
        {part: [composed(case) for case in names if composed(case).startswith(start)] for part, names in fold.items()}
        for fold in _existing_splits(merged)
    ]
    named = {case for fold in splits for part in fold.values() for case in part}
    _require_there(named, set(own), merged, folder, _ANEW)
    return [{part: [own[case] for case in names] for part, names in fold.items()} for fold in splits]


def _require_there(named: set[str], there: set[str], one: Path, other: Path, remedy: str) -> None:
    """Refuse folds with cases that are not there, or with none of those that are. They may leave some out."""
    if odd := sorted(named - there if named else there):
        raise PlanError(
            f"{one.name} and {other.name} do not have the same cases, see {odd[0]} ({len(odd)} such); {remedy}"
        )


def _existing_splits(folder: Path, number: int | None = None) -> list[Split]:
    """Return the splits of a dataset; where there are none, it is proposed to make so many folds, or those that fit."""
    file = folder / "splits_final.json"
    if not file.is_file():
        command = split_command(folder.name, number or _number_of_folds([folder]))
        raise PlanError(f"{file} is missing; make it first: {command}")
    return read_splits(file)


def _number_of_folds(folders: Collection[Path]) -> int:
    """Return how many folds datasets have that are to be split alike, or can all have."""
    files = [file for folder in folders if (file := folder / "splits_final.json").is_file()]
    if files:
        return len(read_splits(files[0]))
    return min(map(folds_of_cases, folders))


def _sources(merged: Path) -> Mapping[str, Source]:
    file = merged / "dataset.json"
    description = read_json(file, {"labels": {str: (int, list)}})
    if SOURCES not in description:
        raise PlanError(f"{merged.name} is no merged dataset: {file} has no {SOURCES!r}")
    return read_sources(description, file)


def _told(sources: Mapping[str, Source]) -> str:
    return ", ".join(source.dataset for source in sources.values())
