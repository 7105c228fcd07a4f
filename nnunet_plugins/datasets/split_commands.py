"""The command that makes a dataset's splits, for messages: by what the dataset was made of. Loads nothing heavy."""

import os
import shlex
from pathlib import Path

from nnunet_plugins.datasets.sources import SOURCES, find_description, original_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json


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
    groups = f" --groups {shlex.quote(str(groups_file))}" if groups_file else ""
    replacing = " --overwrite" * overwrite
    try:
        return _by_what_it_is(dataset, folds, groups, replacing)
    except InputError:  # of a damaged file, which is told elsewhere: this is a part of another message
        return f"nnunet-plugins split -d {dataset}{groups} --folds {folds}{replacing}"


def _by_what_it_is(dataset: str, folds: int, groups: str, replacing: str) -> str:
    preprocessed, raw = (Path(os.environ.get(f"nnUNet_{name}", "")) for name in ("preprocessed", "raw"))
    description, file = find_description(dataset, preprocessed, raw)
    original = original_of(description, file)
    if original is None or not (preprocessed / original / "dataset.json").is_file():
        strata = " --strata sources" * (SOURCES in description)
        return f"nnunet-plugins split -d {dataset}{strata}{groups} --folds {folds}{replacing}"
    command = f"nnunet-plugins split -d {dataset} --like {original}{replacing}"
    splits = preprocessed / original / "splits_final.json"
    there = len(read_json(splits, [dict])) if splits.is_file() else 0
    if there and not (replacing and (groups or there != folds)):
        return command
    return f"{_by_what_it_is(original, folds, groups, replacing)} && {command}"
