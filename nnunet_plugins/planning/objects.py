"""Which labels consist of objects, such as lesions: a key of dataset.json says it. Loads nothing heavy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.sources import NEITHER
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault

OBJECTS = "nnunet_plugins_objects"
"""Key of the list of names in dataset.json, which nnU-Net copies to preprocessed data and into models."""

OPTION = "--objects"
"""Of `nnunet-plugins evaluate`; it counts instead of the key."""


def object_labels(
    description: Mapping[str, Any], file: Path | str = "dataset.json", names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the names of the labels and regions that consist of objects, each once; none where nothing says so.

    Args:
        description: what a dataset.json says, with its `labels`.
        file: where it was read, for messages.
        names: count instead of what it says.

    Raises:
        InputError: if the list cannot be used, or names what is no structure of the dataset.
    """
    if names is None and OBJECTS not in description:
        return ()
    found = description[OBJECTS] if names is None else list(names)
    place = f"{file}: {OBJECTS!r}" if names is None else OPTION
    if fault := find_fault(found, [str], repr(OBJECTS)):
        raise InputError(f"{file}: {fault}; it lists the names of the labels that consist of objects")
    structures = [name for name in description["labels"] if name not in NEITHER]
    for name in found:
        if name not in structures:
            what = "no structure" if name in NEITHER and name in description["labels"] else "no label"
            known = f"those of {file} are {', '.join(structures)}" if structures else f"{file} has none but background"
            raise InputError(f"{place} names {name!r}, which is {what}; {known}")
    return tuple(dict.fromkeys(found))
