"""`nnunet-plugins merge`: a raw dataset out of several, with the labels that they have together.

It is made beside its place, and is there completely or not at all; a run that was interrupted is gone on with. Of the
sources nothing is changed: images are links to theirs, or copies, and segmentations are written anew with merged
values. What each case's dataset annotates stands in dataset.json (`datasets.sources`).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes
from tqdm import tqdm

from nnunet_plugins.datasets.folders import BYTE_WRITERS, dataset_name
from nnunet_plugins.datasets.sources import FIXED, MARK, NEITHER, SOURCES
from nnunet_plugins.doctor.dataset import Case, RawDataset
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import write_text
from nnunet_plugins.images.finding import composed
from nnunet_plugins.images.recipe import PREPARED
from nnunet_plugins.images.relabelling import relabel
from nnunet_plugins.images.spacing import spacing_file
from nnunet_plugins.images.values import declared_labels
from nnunet_plugins.merging.joint import Joint, LabelSet, join_channels, join_labels
from nnunet_plugins.metrics.table import write_table
from nnunet_plugins.planning.groups import GROUPS, groups_of, read_groups
from nnunet_plugins.planning.objects import OBJECTS, object_labels
from nnunet_plugins.raw.making import give_file, made_beside, new_place, stamps
from nnunet_plugins.raw.reading import first_configuration, raw_folder, raw_name, read_raw
from nnunet_plugins.workers import FailedJobError, finish_jobs

_SHOWN = 3
_TWO_FILES = (".mhd", ".nhdr", ".hdr", ".img")
_KEPT = ("reference", "licence", "license")  # of a source's dataset.json


@dataclass(frozen=True)
class Merged:
    """What `merge_datasets` wrote.

    Attributes:
        folder: in nnUNet_raw.
        labels: as in dataset.json.
        sources: the table there.
        groups: file of the groups, if a source has one.
        cases: how many.
        configuration: of nnU-Net, to go on with.
    """

    folder: Path
    labels: Mapping[str, Any]
    sources: Mapping[str, Any]
    groups: Path | None
    cases: int
    configuration: str


def merge_datasets(
    datasets: Sequence[str],
    number: int,
    name: str,
    *,
    rename: Sequence[str] = (),
    by_dataset: bool = False,
    copy: bool = False,
    processes: int | None = None,
) -> Merged:
    """Write a merged raw dataset.

    Args:
        datasets: numbers or names, two or more.
        number: of the new one.
        name: of the new one, without its number.
        rename: DATASET:LABEL=NAME each; labels of one name are one structure.
        by_dataset: no label of one dataset is that of another.
        copy: copy the images; otherwise they are links, where the file system has them.
        processes: segmentations at a time; if None, as nnU-Net's default, but no more than there are cores.

    Raises:
        InputError: if the datasets do not go together, one of them is not in order, or the new one cannot be made.
    """
    names = [raw_name(dataset) for dataset in datasets]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(f"name two or more different datasets, not {', '.join(names) or 'none'}")
    place = new_place(number, name, {one: "one of the datasets to merge" for one in names})
    raws = {one: _read(raw_folder() / one) for one in names}
    sources = dict(zip(names, _source_names(names), strict=True))
    channels, orders = join_channels({one: found.channels for one, found in raws.items()})
    _require_alike(raws, orders)
    structures = _structure_names(raws, sources, rename, by_dataset)
    joint = join_labels({one: LabelSet.of(found.description) for one, found in raws.items()}, structures)
    _require_room(raws, joint)
    description = _describe(raws, sources, channels, joint)
    groups = _groups(raws, sources)
    cases = [case for found in raws.values() for case in found.cases.values()]
    recipe = {"dataset": description, "groups": groups, "copy": copy, "files": stamps(cases)}
    with made_beside(place, recipe) as part:
        _write_labels(part, raws, sources, joint, processes)
        for one, found in raws.items():
            for case, files in found.cases.items():
                _give_images(part / "imagesTr", f"{sources[one]}{MARK}{case}", files, orders[one], found, copy)
        if groups:
            write_table(part / GROUPS, _as_table(groups))
        write_text(part / "dataset.json", json.dumps(description, indent=2, ensure_ascii=False))
    flat = all(first_configuration(found) == "2d" for found in raws.values())
    groups_file = place / GROUPS if groups else None
    configuration = "2d" if flat else "3d_fullres"
    return Merged(place, joint.labels, description[SOURCES], groups_file, len(cases), configuration)


# What is merged


def _read(folder: Path) -> RawDataset:
    found = read_raw(folder, "merged")
    if SOURCES in found.description:
        own = ", ".join(row["dataset"] for row in found.description[SOURCES].values())
        raise InputError(f"{folder.name} was merged itself; name the datasets that it was made of: {own}")
    for key, what in ((FIXED, "of one size, from which no"), (PREPARED, "that are prepared, of which no")):
        if key in found.description:
            raise InputError(
                f"{folder.name} has images {what} merged dataset leads back; merge "
                f"{found.description[key]['dataset']} in its place, and make a twin of what is merged"
            )
    return found


def _source_names(datasets: Sequence[str]) -> list[str]:
    """Return short names of datasets, none of which has the mark between a source and its case."""
    # Nor does a name begin with what spreadsheets take for a formula.
    short = [re.sub(r"^\W+", "", re.sub("_+", "_", composed(name[11:]))).strip("_") for name in datasets]
    numbered = [f"{one}{name[7:10]}" for one, name in zip(short, datasets, strict=True)]
    taken = [one.casefold() for one in short]
    names = [
        long if not one or taken.count(one.casefold()) > 1 else one for one, long in zip(short, numbered, strict=True)
    ]
    # With its number, one may be called as another.
    return names if len({name.casefold() for name in names}) == len(names) else numbered


def _require_alike(raws: Mapping[str, RawDataset], orders: Mapping[str, list[int]]) -> None:
    """Check that the datasets' files can lie in one."""
    (first, one), *others = raws.items()
    for other, found in others:
        endings = one.description["file_ending"], found.description["file_ending"]
        if endings[0] != endings[1]:
            raise InputError(f"{first} has files {endings[0]}, {other} has files {endings[1]}; convert one of them")
        assert one.reader is not None
        assert found.reader is not None
        if one.reader is not found.reader:
            raise InputError(
                f"nnU-Net reads {first} with {one.reader.__name__}, {other} with {found.reader.__name__}; name one "
                "of them as 'overwrite_image_reader_writer' in both dataset.json"
            )
    for dataset, found in raws.items():
        ending = found.description["file_ending"]
        images = [Path(image) for case in found.cases.values() for image in case.images]
        if odd := next((image for image in images if not image.name.endswith(ending)), None):
            place = odd.relative_to(found.folder) if odd.is_relative_to(found.folder) else odd
            raise InputError(f"{dataset} lists {place}, and its files end in {ending}; convert the images")
    if (ending := one.description["file_ending"].lower()) in _TWO_FILES:
        raise InputError(
            f"files {ending} have their data in a second one; convert the datasets, for example to .nii.gz"
        )
    for dataset, order in orders.items():
        if order != sorted(order) and any(len(case.images) == 1 for case in raws[dataset].cases.values()):
            raise InputError(f"{dataset} has its channels in one file, in another order than {first}")


def _require_room(raws: Mapping[str, RawDataset], joint: Joint) -> None:
    """Check that nnU-Net's writer of segmentations has room for all values."""
    reader = next(iter(raws.values())).reader
    largest = max([*(joint.order or ()), *(value for values in joint.values.values() for value in values.values())])
    if reader is not None and reader.__name__ in BYTE_WRITERS and largest > 255:
        raise InputError(
            f"{reader.__name__}, with which nnU-Net reads the datasets, writes segmentations of 8 bits, in which label "
            f"{largest} becomes {largest % 256}; name another one as 'overwrite_image_reader_writer', such as "
            "NibabelIOWithReorient"
        )


def _structure_names(
    raws: Mapping[str, RawDataset], sources: Mapping[str, str], rename: Sequence[str], by_dataset: bool
) -> dict[str, dict[str, str]]:
    """Return, by dataset and own name, what its labels are called in the merged dataset."""
    own = {one: [name for name in found.description["labels"] if name not in NEITHER] for one, found in raws.items()}
    if by_dataset:
        if rename:
            raise InputError("with --by-dataset all labels have names of their own: leave out --rename")
        return {one: {name: f"{sources[one]}{MARK}{name}" for name in labels} for one, labels in own.items()}
    names = {one: {name: name for name in labels} for one, labels in own.items()}
    seen = set()
    for text in rename:
        dataset, colon, rest = text.partition(":")
        label, equals, new = rest.rpartition("=")
        if not (colon and equals and dataset and label and new):
            raise InputError(f"--rename {text}: write DATASET:LABEL=NAME, as in 15:bone=humerus")
        full = dataset_name(dataset)
        if full not in names:
            raise InputError(f"--rename {text}: {full} is none of the datasets to merge")
        if label not in names[full]:
            raise InputError(f"--rename {text}: {full} has no label {label!r}; it has {', '.join(names[full])}")
        if new in NEITHER:
            raise InputError(f"--rename {text}: {new!r} is no structure")
        if (full, label) in seen:
            raise InputError(f"--rename {text}: {label!r} of {full} has a new name already")
        seen.add((full, label))
        names[full][label] = new
    return names


def _describe(
    raws: Mapping[str, RawDataset], sources: Mapping[str, str], channels: Sequence[str], joint: Joint
) -> dict[str, Any]:
    """Return the merged dataset.json."""
    table = {}
    for one, found in raws.items():
        labels = found.description["labels"]
        table[sources[one]] = {
            "dataset": one,
            "labels": {new: labels[own] for own, new in joint.names[one].items()},
            "cases": list(found.cases),
        }
        if found.labels and found.labels.has_regions:
            table[sources[one]]["regions_class_order"] = found.description["regions_class_order"]
        table[sources[one]] |= {key: found.description[key] for key in _KEPT if key in found.description}
    first = next(iter(raws.values())).description
    description: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": joint.labels,
        "numTraining": sum(len(found.cases) for found in raws.values()),
        "file_ending": first["file_ending"],
    }
    if joint.order:
        description["regions_class_order"] = joint.order
    if "overwrite_image_reader_writer" in first:
        description["overwrite_image_reader_writer"] = first["overwrite_image_reader_writer"]
    # Of a structure that several annotate it is enough that one says it.
    objects = [
        joint.names[one][own]
        for one, found in raws.items()
        for own in object_labels(found.description, found.folder / "dataset.json")
    ]
    if objects:
        description[OBJECTS] = list(dict.fromkeys(objects))
    return {**description, SOURCES: table}


def _groups(raws: Mapping[str, RawDataset], sources: Mapping[str, str]) -> dict[str, str]:
    """Return the groups of all cases, where a source has some: its own, and each other case for itself."""
    groups: dict[str, str] = {}
    there = False
    for one, found in raws.items():
        file = found.folder / GROUPS
        known = groups_of(found.cases, read_groups(file)) if file.is_file() else {case: case for case in found.cases}
        there |= file.is_file()
        if missing := [case for case in found.cases if case not in known]:
            raise InputError(f"{file} names no group for {missing[0]}; add a row for it")
        groups |= {f"{sources[one]}{MARK}{case}": f"{sources[one]}{MARK}{group}" for case, group in known.items()}
    return groups if there else {}


def _as_table(groups: Mapping[str, str]) -> Any:
    import pandas as pd

    return pd.DataFrame({"case": list(groups), "group": list(groups.values())})


# Writing


def _write_labels(
    part: Path, raws: Mapping[str, RawDataset], sources: Mapping[str, str], joint: Joint, processes: int | None
) -> None:
    jobs = {}
    for one, found in raws.items():
        assert found.labels is not None
        assert found.reader is not None
        ending = found.description["file_ending"]
        work = partial(relabel, reader=found.reader(), values=joint.values[one], declared=declared_labels(found.labels))
        for case, files in found.cases.items():
            name = f"{sources[one]}{MARK}{case}"
            file = part / "labelsTr" / f"{name}{ending}"
            if not file.exists():
                jobs[name] = partial(work, Path(str(files.label)), file)
    processes = processes or min(default_num_processes, os.cpu_count() or 1)
    finished = tqdm(finish_jobs(jobs, processes), total=len(jobs), unit="case", disable=None)
    wrong: list[str] = []
    for name, result in finished:
        wrong += [f"{name}: {result}"] if isinstance(result, FailedJobError) else result
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN} more" if wrong[_SHOWN:] else ""
        told = "".join(f"\n  {line}" for line in wrong[:_SHOWN])
        raise InputError(f"{len(wrong)} segmentations cannot be merged; nothing is lost of the others:{told}{more}")


def _give_images(folder: Path, name: str, files: Case, order: Sequence[int], dataset: RawDataset, copy: bool) -> None:
    ending = dataset.description["file_ending"]
    # One file may hold all channels.
    for channel, own in enumerate(order if len(files.images) > 1 else [0]):
        give_file(Path(files.images[own]), folder / f"{name}_{channel:04d}{ending}", copy=copy)
    beside = spacing_file(Path(files.images[0]), is_image=True)
    if ending.lower().startswith(".tif") and beside.is_file():
        give_file(beside, folder / f"{name}.json", copy=copy)
