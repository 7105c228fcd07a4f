"""Checks of a raw dataset's dataset.json, and of which files there are."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_plugins.datasets.folders import PlanError, label_manager
from nnunet_plugins.doctor.findings import Finding, of_cases, of_facts, ok, problem, warning
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault, read_json
from nnunet_plugins.images.facts import Fact
from nnunet_plugins.images.finding import Found, aside, find_files, list_folder, none_fits, twins
from nnunet_plugins.images.reading import choose_reader
from nnunet_plugins.images.values import declared_labels
from nnunet_plugins.planning.objects import object_labels

_FORMAT = "see nnU-Net's documentation/dataset_format.md"
_REQUIRED = {"channel_names": {str: str}, "labels": {str: (int, list)}, "numTraining": int, "file_ending": str}
_OPTIONAL = {
    "regions_class_order": (list, type(None)),
    "overwrite_image_reader_writer": (str, type(None)),
    "dataset": {str: {"label": str, "images": [str]}},
}


@dataclass
class Case:
    """Where a case's files lie; the segmentation is None if there is none to be."""

    images: list[str]
    label: str | None

    @property
    def files(self) -> list[str]:
        """All files, the segmentation last."""
        return [*self.images, *([self.label] if self.label else [])]

    @property
    def is_there(self) -> bool:
        """Whether all files are there."""
        return bool(self.images) and all(map(os.path.isfile, self.files))


@dataclass
class RawDataset:
    """A raw dataset, as far as it is known; the checks fill it in.

    Attributes:
        folder: in nnUNet_raw.
        description: what dataset.json says.
        labels: nnU-Net's manager of its labels; None if they make no sense.
        reader: nnU-Net's class that reads its files; None if there is none.
        cases: those whose files are all there, by their names as nnU-Net has them, which are the files'.
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
        return declared_labels(self.labels) if self.labels else []


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
    try:
        object_labels(content, file)
    except InputError as error:
        yield problem(str(error), "name labels of the dataset there, or leave the key out")
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
        yield from _check_listed(dataset, found)
    else:
        for part in ("imagesTr", "labelsTr"):
            if not (folder / part).is_dir():
                yield problem(f"{folder / part} is no folder", _FORMAT)
                return
        found = {}
        yield from _check_folders(dataset, folder / "imagesTr", folder / "labelsTr", found, all_labelled=True)
    if found and len(found) != description["numTraining"]:
        yield problem(
            f"dataset.json says numTraining {description['numTraining']}, there are {len(found)} training cases",
            "correct the number, or look for what is missing",
        )
    dataset.cases = {name: case for name, case in found.items() if case.is_there}
    if not dataset.cases:
        yield problem(f"{folder} has no complete training case", _FORMAT)
        return
    yield ok(f"{len(dataset.cases)} training cases with {len(dataset.channels)} channels and a segmentation")
    yield from _find_reader(dataset, dataset.cases)


def check_images_to_predict(
    dataset: RawDataset, images: Path, labels: Path | None, found: dict[str, Case]
) -> Iterator[Finding]:
    """Check the names of images to predict, and of their segmentations where there are such.

    Args:
        dataset: whose images they are like.
        images: folder that holds them, such as imagesTs.
        labels: folder that may hold their segmentations.
        found: takes the cases whose files are all there.
    """
    if not dataset.description:
        return
    if not images.is_dir():
        yield problem(f"{images} is no folder", "correct the path")
        return
    cases: dict[str, Case] = {}
    yield from _check_folders(dataset, images, labels, cases)
    found.update({name: case for name, case in cases.items() if case.is_there})
    if not cases and labels is None:
        yield problem(f"{images} holds no image CASE_0000{dataset.description['file_ending']}", _FORMAT)
    if found and not dataset.reader:
        yield from _find_reader(dataset, found)


def _check_listed(dataset: RawDataset, found: dict[str, Case]) -> Iterator[Finding]:
    gone = {name: [file for file in case.files if not os.path.isfile(file)] for name, case in found.items()}
    missing = {name: files[0] for name, files in gone.items() if files}
    yield from of_cases("problem", "dataset.json lists files that are not there for {}", missing, "correct the paths")
    listed = {Path(file) for case in found.values() for file in case.files}
    folders = {file.parent for file in listed} | {dataset.folder / part for part in ("imagesTr", "labelsTr")}
    inside = [(path, what) for folder in sorted(folders) if folder.is_dir() for path, what in list_folder(folder)]
    others = [(path, what) for path, what in inside if path not in listed]
    facts = [Fact("unlisted", str(path)) for path, what in others if what == "image"]
    ending = dataset.description["file_ending"]
    facts += filter(None, [aside(path, what, ending) for path, what in others if what not in ("image", "folder")])
    yield from of_facts(facts)


def _check_folders(
    dataset: RawDataset, images: Path, labels: Path | None, cases: dict[str, Case], *, all_labelled: bool = False
) -> Iterator[Finding]:
    """Check imagesTr and labelsTr, or imagesTs and labelsTs, which there need not be, or images without any."""
    ending, number = dataset.description["file_ending"], len(dataset.channels)
    found = find_files(images, ending)
    truths = find_files(labels, ending) if labels and labels.is_dir() else Found()
    facts = []
    for folder, there in ((images, found), (labels, truths)):
        # Which names are alike is asked of cases, not of files.
        told = [fact for fact in there.facts if fact.kind != "names in other case"]
        if folder and not there.files and told:
            facts.append(none_fits(folder, ending, told))
            told = [fact for fact in told if fact.kind not in ("other format", "letter case")]
        facts += told
    channels: dict[str, dict[int, Path]] = {}
    for name, path in found.files.items():
        if match := re.fullmatch(r"(.+)_(\d{4})", name):
            channels.setdefault(match[1], {})[int(match[2])] = path
        else:
            facts.append(Fact("no channel", str(path)))
    for name, files in channels.items():
        truth = truths.files.get(name)
        needed = truth or (labels / f"{name}{ending}" if labels and all_labelled else None)
        # As nnU-Net names it, accents as the file's name has them.
        first = next(iter(files.values())).name[: -len(ending) - 5]
        cases[first] = Case([str(file) for _, file in sorted(files.items())], str(needed) if needed else None)
        if truth and truth.name.removesuffix(ending) != first:
            facts.append(Fact("other letters", str(truth), case=name))
    facts += twins({name: next(iter(files.values())) for name, files in channels.items()})
    yield from of_facts(facts)
    # One file may hold several channels, as RGB photographs do; how many there are is known when they are read.
    one_file = number > 1 and all(list(files) == [0] for files in channels.values())
    expected = [0] if one_file else list(range(number))
    wrong = {
        name: f"has {', '.join(f'{channel:04d}' for channel in sorted(files))}"
        for name, files in channels.items()
        if sorted(files) != expected
    }
    yield from of_cases(
        "problem",
        f"{{}} without exactly the channels {', '.join(f'{channel:04d}' for channel in expected)}",
        wrong,
        f"add or remove files in {images.name}, or correct 'channel_names' in dataset.json",
    )
    if all_labelled:
        without = dict.fromkeys(sorted(set(channels) - set(truths.files)), "")
        text = f"{{}} without a segmentation CASE{ending} in labelsTr"
        yield from of_cases("problem", text, without, "add the files")
    if labels:
        yield from of_cases(
            "warning",
            f"{labels.name} has segmentations of {{}} without images, which are not used",
            dict.fromkeys(sorted(set(truths.files) - set(channels)), ""),
            "add the images, or move the segmentations away",
        )


def _find_reader(dataset: RawDataset, cases: Mapping[str, Case]) -> Iterator[Finding]:
    try:
        examples = [Path(case.images[0]) for case in cases.values()]
        dataset.reader = choose_reader(dataset.description, examples)
        yield ok(f"nnU-Net reads them with {dataset.reader.__name__}")
    except InputError as error:
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
