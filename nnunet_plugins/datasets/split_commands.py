"""The command that makes a dataset's splits, for messages: by what the dataset was made of. Loads nothing heavy."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.preprocessed import known_cases
from nnunet_plugins.datasets.sources import MARK, SOURCES, find_description, original_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json

NNUNET_FOLDS = 5
"""How many folds nnU-Net makes when a training finds no splits."""


def most_folds(groups: Mapping[str, str], description: Mapping[str, Any]) -> int:
    """Return into how many folds cases can be split, of a merged dataset those of the source that has fewest.

    Args:
        groups: of each case, which are kept together; its own name if it has none.
        description: what the dataset.json says.
    """
    by_source: dict[str, set[str]] = {}
    for case, group in groups.items():
        by_source.setdefault(case.partition(MARK)[0] * (SOURCES in description), set()).add(group)
    return min(map(len, by_source.values()), default=0)


def fitting_folds(groups: Mapping[str, str], description: Mapping[str, Any]) -> int:
    """Return how many folds to propose: nnU-Net's number, or as many as there can be. See `most_folds`."""
    return max(2, min(NNUNET_FOLDS, most_folds(groups, description)))


def folds_of_cases(folder: Path) -> int:
    """Return how many folds to propose for a dataset without groups.

    Args:
        folder: of it, in nnUNet_preprocessed.

    Raises:
        InputError: if its dataset.json cannot be used.
    """
    description, _ = find_description(folder.name, folder.parent)
    return fitting_folds({case: case for case in known_cases(folder)}, description)


def own_split(
    dataset: str, description: Mapping[str, Any], folds: int, groups_file: Path | str | None = None
) -> list[str]:
    """Return the command that splits a dataset on its own, whatever it is a twin of; a merged one by its sources.

    One of its sources that has a single case cannot be split: then all cases are split as one.

    Args:
        dataset: full name.
        description: what its dataset.json says.
        folds: how many.
        groups_file: table of the cases' groups.
    """
    command = ["nnunet-plugins", "split", "-d", dataset]
    if SOURCES in description:
        root = os.environ.get("nnUNet_preprocessed", "")  # noqa: SIM112 - nnU-Net's own spelling
        cases = known_cases(Path(root, dataset))
        command += ["--strata", "sources"] if most_folds({case: case for case in cases}, description) != 1 else []
    return [*command, *(["--groups", str(groups_file)] if groups_file else []), "--folds", str(folds)]


def split_command(dataset: str, folds: int, groups_file: Path | str | None = None, *, overwrite: bool = False) -> str:
    """Return the command that makes a dataset's splits: of a merged one by its sources, of a twin those of its dataset.

    A twin's dataset is split first where it has no splits yet, or has others than those that are to replace them. One
    whose dataset is not preprocessed, so that it cannot be split, is split on its own.

    Args:
        dataset: full name.
        folds: how many.
        groups_file: table of the cases' groups.
        overwrite: other splits that are there.
    """
    replacing = " --overwrite" * overwrite
    try:
        return _by_what_it_is(dataset, folds, groups_file, replacing)
    except InputError:  # of a damaged file, which is told elsewhere: this is a part of another message
        return shlex.join(own_split(dataset, {}, folds, groups_file)) + replacing


def _by_what_it_is(dataset: str, folds: int, groups: Path | str | None, replacing: str) -> str:
    preprocessed, raw = (Path(os.environ.get(f"nnUNet_{name}", "")) for name in ("preprocessed", "raw"))
    description, file = find_description(dataset, preprocessed, raw)
    original = original_of(description, file)
    if original is None or not (preprocessed / original / "dataset.json").is_file():
        return shlex.join(own_split(dataset, description, folds, groups)) + replacing
    command = f"nnunet-plugins split -d {dataset} --like {original}{replacing}"
    splits = preprocessed / original / "splits_final.json"
    there = len(read_json(splits, [dict])) if splits.is_file() else 0
    if there and not (replacing and (groups or there != folds)):
        return command
    return f"{_by_what_it_is(original, folds, groups, replacing)} && {command}"
