"""Checks of a raw dataset's dataset.json, and of which files there are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_plugins.doctor.findings import Finding, of_cases, ok, problem, warning
from nnunet_plugins.files import find_fault, read_json
from nnunet_plugins.planning.dataset import PlanError, find_reader, label_manager

_FORMAT = "see nnU-Net's documentation/dataset_format.md"
_REQUIRED = {"channel_names": {str: str}, "labels": {str: (int, list)}, "numTraining": int, "file_ending": str}
_OPTIONAL = {
    "regions_class_order": (list, type(None)),
    "overwrite_image_reader_writer": (str, type(None)),
    "dataset": {str: {"label": str, "images": [str]}},
}


@dataclass
class Case:
    """Where a training case's files lie."""

    images: list[str]
    label: str


@dataclass
class RawDataset:
    """A raw dataset, as far as it is known; the checks fill it in.

    Attributes:
        folder: in nnUNet_raw.
        description: what dataset.json says.
        labels: nnU-Net's manager of its labels; None if they make no sense.
        reader: nnU-Net's class that reads its files; None if there is none.
        cases: those whose files are all there, by name.
    """

    folder: Path
    description: dict[str, Any] = field(default_factory=dict)
    labels: LabelManager | None = None
    reader: type[BaseReaderWriter] | None = None
    cases: dict[str, Case] = field(default_factory=dict)

    @property
    def channels(self) -> list[str]:
        """The channels' names."""
        return list(self.description.get("channel_names", {}).values())

    def expected_labels(self) -> list[int]:
        """Return the values that a segmentation may have, in order."""
        if self.labels is None:
            return []
        ignored = [self.labels.ignore_label] if self.labels.ignore_label is not None else []
        return [int(value) for value in [*self.labels.all_labels, *ignored]]


def check_description(dataset: RawDataset) -> Iterator[Finding]:
    """Check dataset.json."""
    file = dataset.folder / "dataset.json"
    content = read_json(file, dict)
    usable = True
    for key, shape in {**_REQUIRED, **_OPTIONAL}.items():
        if key not in content and key in _REQUIRED:
            yield problem(f"{file} has no {key!r}", _FORMAT)
            usable = False
        elif key in content and (fault := find_fault(content[key], shape, repr(key))):
            yield problem(f"{file}: {fault}{_version_1(key, content[key])}", _FORMAT)
            usable = False
    if not usable:
        return
    dataset.description = content
    keys = list(content["channel_names"])
    if keys != [str(number) for number in range(len(keys))] or not keys:
        yield problem(f"{file}: 'channel_names' has the keys {', '.join(keys) or 'none'}", "number them 0, 1, ...")
    yield from _check_labels(dataset, file)
    for key, name in content["channel_names"].items():
        scheme = get_normalization_scheme(name).__name__
        yield ok(f"channel {key}, {name}: nnU-Net uses {scheme}")


def _version_1(key: str, value: Any) -> str:
    swapped = key == "labels" and isinstance(value, dict) and all(isinstance(name, str) for name in value.values())
    return ". Values come first there as in nnU-Net version 1; version 2 has name: value" if swapped else ""


def _check_labels(dataset: RawDataset, file: Path) -> Iterator[Finding]:
    content = dataset.description
    try:
        dataset.labels = label_manager(content, file)
    except PlanError as error:
        yield problem(str(error), _FORMAT)
        return
    expected = dataset.expected_labels()
    if expected != list(range(len(expected))):
        yield problem(
            f"{file}: the labels are {', '.join(map(str, expected))}, and not 0, 1, 2, ...",
            "give them consecutive values, in the segmentations as well",
        )
    elif len(expected) < 2:
        yield problem(f"{file} declares no label but the background", "add the labels that are to be found")
    else:
        yield ok(f"labels: {', '.join(f'{name} {value}' for name, value in content['labels'].items())}")
    order = content.get("regions_class_order")
    if order is None:
        return
    if not dataset.labels.has_regions:
        yield warning(f"{file} has 'regions_class_order', but no regions", "remove it, or declare regions as lists")
    elif unknown := [value for value in order if value not in expected or value == 0]:
        yield problem(
            f"{file}: 'regions_class_order' holds {unknown[0]!r}, which is no label", "list the labels to write"
        )


def check_files(dataset: RawDataset) -> Iterator[Finding]:
    """Check that every case has all channels and a segmentation, and that nnU-Net has a reader for them."""
    if not dataset.description:
        return
    folder, description = dataset.folder, dataset.description
    if "dataset" in description:
        # A copy, because nnU-Net changes what it is given.
        listed = get_filenames_of_train_images_and_targets(str(folder), read_json(folder / "dataset.json"))
        found = {name: Case(files["images"], files["label"]) for name, files in listed.items()}
        yield from _check_listed(found, len(dataset.channels))
    else:
        for part in ("imagesTr", "labelsTr"):
            if not (folder / part).is_dir():
                yield problem(f"{folder / part} is no folder", _FORMAT)
                return
        found = {}
        yield from _check_folders(dataset, found)
    if len(found) != description["numTraining"]:
        yield problem(
            f"dataset.json says numTraining {description['numTraining']}, there are {len(found)} training cases",
            "correct the number, or look for what is missing",
        )
    dataset.cases = {
        name: case
        for name, case in found.items()
        if case.images and all(Path(file).is_file() for file in [*case.images, case.label])
    }
    if not dataset.cases:
        yield problem(f"{folder} has no complete training case", _FORMAT)
        return
    yield ok(f"{len(dataset.cases)} training cases with {len(dataset.channels)} channels and a segmentation")
    yield from _find_reader(dataset)


def _check_listed(found: dict[str, Case], channels: int) -> Iterator[Finding]:
    missing = {
        name: gone[0]
        for name, case in found.items()
        if (gone := [file for file in [*case.images, case.label] if not Path(file).is_file()])
    }
    yield from of_cases("problem", "dataset.json lists files that are not there for {}", missing, "correct the paths")


def _check_folders(dataset: RawDataset, found: dict[str, Case]) -> Iterator[Finding]:
    images, labels = dataset.folder / "imagesTr", dataset.folder / "labelsTr"
    ending, number = dataset.description["file_ending"], len(dataset.channels)
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    files = sorted(path.name for path in images.iterdir() if path.name.endswith(ending))
    parts = [pattern.fullmatch(name) for name in files]
    strange = {name: "" for name, part in zip(files, parts, strict=True) if part is None}
    yield from of_cases(
        "problem",
        f"{images}: {{}} whose names are not CASE_0000{ending}, which nnU-Net takes for cases all the same",
        strange,
        "rename the files, or move them away",
        "file",
    )
    channels: dict[str, list[int]] = {}
    for part in parts:
        if part:
            channels.setdefault(part[1], []).append(int(part[2]))
    for name, there in channels.items():
        found[name] = Case(
            [str(images / f"{name}_{channel:04d}{ending}") for channel in there], str(labels / f"{name}{ending}")
        )
    # One file may hold several channels, as RGB photographs do; how many there are is known when they are read.
    one_file = number > 1 and all(there == [0] for there in channels.values())
    expected = [0] if one_file else list(range(number))
    wrong = {
        name: f"has {', '.join(f'{channel:04d}' for channel in there)}"
        for name, there in channels.items()
        if there != expected
    }
    yield from of_cases(
        "problem",
        f"{{}} without exactly the channels {', '.join(f'{channel:04d}' for channel in expected)}",
        wrong,
        "add or remove files in imagesTr, or correct 'channel_names' in dataset.json",
    )
    known = {path.name.removesuffix(ending) for path in labels.iterdir() if path.name.endswith(ending)}
    without = dict.fromkeys(sorted(set(channels) - known), "")
    yield from of_cases("problem", f"{{}} without a segmentation CASE{ending} in labelsTr", without, "add the files")
    yield from of_cases(
        "warning",
        "labelsTr has segmentations of {} without images, which are not used",
        dict.fromkeys(sorted(known - set(channels)), ""),
        "add the images, or move the segmentations away",
    )


def _find_reader(dataset: RawDataset) -> Iterator[Finding]:
    example = next(iter(dataset.cases.values())).images[0]
    try:
        dataset.reader = find_reader(dataset.description, example)
        yield ok(f"nnU-Net reads them with {dataset.reader.__name__}")
    except PlanError as error:
        yield problem(str(error), "convert the images, for example to .nii.gz, and correct 'file_ending'")


def label_values(dataset: RawDataset) -> dict[int, str]:
    """Return names of the labels of the foreground; a region gives its name to each of its labels."""
    names: dict[int, str] = {}
    ignored = dataset.labels.ignore_label if dataset.labels else None
    for name, value in dataset.description["labels"].items():
        for one in np.atleast_1d(value):
            if one not in (0, ignored):
                names.setdefault(int(one), name)
    return names
