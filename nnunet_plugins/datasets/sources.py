"""Which dataset each case of a merged dataset comes from, and which structures that dataset annotates.

`nnunet-plugins merge` writes the table into dataset.json, which nnU-Net copies to preprocessed data, into models, and
beside predictions. A case is called SOURCE__NAME. Loads nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault, read_json
from nnunet_plugins.images.recipe import PREPARED

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

SOURCES = "nnunet_plugins_sources"
"""Key of the table in dataset.json."""

FIXED = "nnunet_plugins_fixed_size"
"""Key, in the dataset.json of a twin with images of one size, of what the twin is of."""

SHOWN = "nnunet_plugins_cases_of"
"""Key, in the dataset.json beside views and what was brought back from a twin, of the dataset whose cases these are."""

MARK = "__"
"""Between a source's name and that of a case in it."""

NEITHER = ("background", "ignore")
"""Labels that are no structures."""

_SHAPE = {
    str: {"dataset": str, "labels": {str: (int, list)}, "cases": [str], "regions_class_order?": (list, type(None))}
}


@dataclass(frozen=True)
class Source:
    """A dataset that was merged with others.

    Attributes:
        dataset: its full name.
        labels: the structures that it annotates, by their names in the merged dataset: its own value, or, of a region,
            its own values.
        cases: their names in it.
        order: its `regions_class_order`, if it has regions.
    """

    dataset: str
    labels: Mapping[str, int | list[int]]
    cases: tuple[str, ...]
    order: tuple[int, ...] = ()


def read_sources(description: Mapping[str, Any], file: Path | str = "dataset.json") -> dict[str, Source]:
    """Return the sources of a merged dataset by name.

    Args:
        description: what its dataset.json says.
        file: where it was read, for messages.

    Raises:
        InputError: if it was not merged, or the table cannot be used.
    """
    if SOURCES not in description:
        raise InputError(
            f"{file} has no {SOURCES!r}, which tells what each case's dataset annotates; make the dataset with "
            "nnunet-plugins merge"
        )
    table = description[SOURCES]
    if fault := find_fault(table, _SHAPE, repr(SOURCES)):
        raise InputError(f"{file}: {fault}; make the dataset anew with nnunet-plugins merge")
    if fault := find_fault(description, {"labels": dict}):
        raise InputError(f"{file}: {fault}")
    for name, row in table.items():
        for label, value in row["labels"].items():
            if not value or (isinstance(value, list) and find_fault(value, [int])):
                raise InputError(
                    f"{file}: {label!r} of {name!r} in {SOURCES!r} has the value {value!r}, which is none of a "
                    "structure; make the dataset anew with nnunet-plugins merge"
                )
            if label not in description["labels"] or label in NEITHER:
                raise InputError(
                    f"{file}: {name!r} in {SOURCES!r} annotates {label!r}, which is no structure in 'labels'; write "
                    "it in both places in one way"
                )
    return {
        name: Source(row["dataset"], row["labels"], tuple(row["cases"]), tuple(row.get("regions_class_order") or ()))
        for name, row in table.items()
    }


def twin_of(description: Mapping[str, Any], file: Path | str = "dataset.json") -> tuple[str, tuple[int, ...]] | None:
    """Return the dataset that a twin is of, and the size `(z, y, x)` of its images; None for what is no twin.

    Args:
        description: what a dataset.json says.
        file: where it was read, for messages.

    Raises:
        InputError: if that cannot be used.
    """
    if FIXED not in description:
        return None
    if fault := find_fault(description[FIXED], {"dataset": str, "size": [int]}, repr(FIXED)):
        raise InputError(f"{file}: {fault}; make the twin anew with nnunet-plugins fixed-size")
    return description[FIXED]["dataset"], tuple(description[FIXED]["size"])


def original_of(description: Mapping[str, Any], file: Path | str = "dataset.json") -> str | None:
    """Return the dataset that a twin of either kind is of; None for what is no twin.

    Args:
        description: what a dataset.json says.
        file: where it was read, for messages.

    Raises:
        InputError: if that cannot be used.
    """
    if found := twin_of(description, file):
        return found[0]
    if PREPARED not in description:
        return None
    if fault := find_fault(description[PREPARED], {"dataset": str}, repr(PREPARED)):
        raise InputError(f"{file}: {fault}; make the twin anew with nnunet-plugins prepare-images")
    return str(description[PREPARED]["dataset"])


def find_description(dataset: str, *roots: Path) -> tuple[dict[str, Any], Path]:
    """Return what the dataset.json of a dataset says in the first folder that has one, and its file; else nothing.

    Args:
        dataset: full name.
        roots: some of nnU-Net's folders.
    """
    files = [root / dataset / "dataset.json" for root in roots]
    file = next((file for file in files if file.is_file()), None)
    return (read_json(file, dict), file) if file else ({}, files[-1])


def source_of(case: str, sources: Mapping[str, Source], file: Path | str = "dataset.json") -> str:
    """Return the name of the source that a case comes from.

    Raises:
        InputError: if its name begins with none.
    """
    name, mark, _ = case.partition(MARK)
    if not mark or name not in sources:
        raise InputError(
            f"{case} is of no source: names of cases begin with {' or '.join(f'{one}{MARK}' for one in sources)}, as "
            f"{SOURCES!r} in {file} says"
        )
    return name


def hidden_channels(labels: "LabelManager", source: Source) -> list[bool]:
    """Tell of every channel of the logits whether it is of a structure that a source does not annotate."""
    structures = {name: value for name, value in labels.label_dict.items() if name not in NEITHER}
    if labels.has_regions:
        return [name not in source.labels for name in structures]
    names = {value[0] if isinstance(value, (list, tuple)) else value: name for name, value in structures.items()}
    return [value in names and names[value] not in source.labels for value in labels.all_labels]
