"""What preprocessing has left in a dataset's folder. Loads nothing heavy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import is_json, read_json

PLANS = {"configurations": {str: {"inherits_from?": str, "data_identifier?": str}}}
"""What a plans file has to look like, as far as finding data goes; see `files.read_json`."""


def truth_cases(folder: Path) -> list[str]:
    """Return the names of the training cases, of whose truth preprocessing keeps a copy.

    Raises:
        InputError: if the folder's dataset.json cannot be used.
    """
    ending = read_json(folder / "dataset.json", {"file_ending": str})["file_ending"]
    truths = folder / "gt_segmentations"
    return sorted(path.name.removesuffix(ending) for path in truths.glob("*") if path.name.endswith(ending))


def data_folder(folder: Path, plans: str, configuration: str) -> Path:
    """Return where the preprocessed cases of a configuration lie, as the plans in a dataset's folder say.

    Raises:
        InputError: if the plans cannot be used.
    """
    file = folder / f"{plans}.json"
    configurations = read_json(file, PLANS)["configurations"]
    found: dict[str, Any] = configurations.get(configuration, {})
    seen = [configuration]
    while "data_identifier" not in found and "inherits_from" in found:
        seen.append(found["inherits_from"])
        if seen[-1] not in configurations or seen[-1] in seen[:-1]:
            raise InputError(f"{file}: {configuration} inherits from what there is not, or from itself: {seen}")
        found = configurations[seen[-1]]
    return folder / found.get("data_identifier", f"{plans}_{configuration}")


def missing_cases(folder: Path, plans: str, configuration: str) -> list[str]:
    """Return the cases that have not been preprocessed for a configuration.

    Raises:
        InputError: if the plans or the dataset.json cannot be used.
    """
    data = data_folder(folder, plans, configuration)
    # Of each case's files the properties are written last.
    return [case for case in truth_cases(folder) if not (data / f"{case}.pkl").is_file()]


def is_preprocessed(folder: Path, plans: str, configurations: Iterable[str]) -> bool:
    """Tell whether every case of a dataset has been preprocessed for the configurations that the plans have.

    Raises:
        InputError: if the plans or the dataset.json say something else than nnU-Net's.
    """
    if not is_json(folder / f"{plans}.json") or not is_json(folder / "dataset.json"):
        return False
    return bool(truth_cases(folder)) and not any(missing_cases(folder, plans, name) for name in configurations)
