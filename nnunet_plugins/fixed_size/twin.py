"""`nnunet-plugins fixed-size`: a twin of a raw dataset with all images in one size, as FIRENet-F's paper scales them.

Of the dataset nothing is changed. What the twin is of stands in its dataset.json, which nnU-Net copies into models and
beside predictions, so that these can be brought back (`restore.py`); where each case's voxels lay, in sources.json.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes

from nnunet_plugins.datasets.sources import FIXED
from nnunet_plugins.doctor.cases import check_channels
from nnunet_plugins.doctor.dataset import Case, RawDataset
from nnunet_plugins.doctor.images import CaseFacts, read_cases
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.images.facts import problems, summarise
from nnunet_plugins.images.resizing import write_resized
from nnunet_plugins.raw.making import first_of, made_twin, new_place, refuse_failures
from nnunet_plugins.raw.reading import raw_folder, raw_name, read_raw, read_test_cases, refuse_problems, refuse_twin
from nnunet_plugins.workers import finish_jobs

ENDING = ".nii.gz"
"""Of the twin's files, whatever the dataset's format."""
LARGEST = 2048, 2**30
"""Voxels along an axis, and of an image, that a twin may have."""
_LOST = ("dataset", "overwrite_image_reader_writer")  # of dataset.json: about files of the source


@dataclass(frozen=True)
class Twin:
    """What `write_twin` wrote.

    Attributes:
        folder: in nnUNet_raw.
        size: `(z, y, x)`.
        cases: for training.
        tests: in imagesTs.
    """

    folder: Path
    size: tuple[int, ...]
    cases: int
    tests: int


def write_twin(
    dataset: str,
    number: int,
    *,
    name: str | None = None,
    size: Sequence[int] | None = None,
    processes: int | None = None,
) -> Twin:
    """Write a raw dataset with the images of another one, all in one size and with voxels of 1 mm.

    Args:
        dataset: number or name.
        number: of the twin.
        name: of the twin, without its number; if None, the dataset's with "Fixed".
        size: voxels `(z, y, x)`; if None, the mean of the training images'.
        processes: cases at a time; if None, as nnU-Net's default, but no more than there are cores.

    Raises:
        InputError: if the dataset is not in order, or the twin cannot be made.
    """
    if size:
        _require_size(size)
    own = raw_name(dataset)
    place = new_place(number, name or f"{own[11:]}Fixed", {own: "the dataset itself"})
    found = read_raw(raw_folder() / own, "resized")
    refuse_twin(found)
    parts = {"Tr": found.cases, "Ts": read_test_cases(found, "resized")}
    facts = {part: _read(found, cases, processes) for part, cases in parts.items()}
    chosen = tuple(size or _mean_size(facts["Tr"]))
    _require_size(chosen)
    description = _describe(found, chosen)
    with made_twin(place, found, parts, description) as part:
        _resize(part, found, parts, chosen, processes)
        grids = {f"images{kind}/{name}": _tell(case) for kind, cases in facts.items() for name, case in cases.items()}
        write_text(part / "sources.json", json.dumps(grids, indent=1, ensure_ascii=False))
    return Twin(place, chosen, *(len(cases) for cases in parts.values()))


def _require_size(size: Sequence[int]) -> None:
    along, whole = LARGEST
    if not all(1 <= n <= along for n in size) or prod(size) > whole:
        raise InputError(
            f"--size {' '.join(map(str, size))}: each axis has 1 to {along} voxels, and an image no more than {whole:,}"
        )


def _read(found: RawDataset, cases: Mapping[str, Case], processes: int | None) -> dict[str, CaseFacts]:
    """Read all files once, as doctor does, and refuse what it finds problems with."""
    assert found.reader is not None
    facts = read_cases(cases, found.reader, found.expected_labels(), processes)
    if wrong := problems([fact for case in facts.values() for fact in case.facts], "doctor"):
        raise InputError(f"{found.folder.name} cannot be resized: {first_of(summarise(wrong))}")
    refuse_problems(check_channels(found, facts), found.folder, "resized")
    return facts


def _mean_size(facts: Mapping[str, CaseFacts]) -> tuple[int, ...]:
    shapes = [case.channels[0].grid.shape for case in facts.values()]
    return tuple(round(float(n)) for n in np.mean(shapes, axis=0))


def _describe(found: RawDataset, size: Sequence[int]) -> dict[str, Any]:
    assert found.reader is not None
    kept = {key: value for key, value in found.description.items() if key not in _LOST}
    source = {
        "dataset": found.folder.name,
        "file_ending": found.description["file_ending"],
        "reader": found.reader.__name__,
        "size": list(size),
    }
    return {**kept, "numTraining": len(found.cases), "file_ending": ENDING, FIXED: source}


def _resize(
    part: Path,
    found: RawDataset,
    parts: Mapping[str, Mapping[str, Case]],
    size: Sequence[int],
    processes: int | None,
) -> None:
    assert found.reader is not None
    work = partial(write_resized, reader=found.reader(), size=size)
    jobs = {}
    for kind, cases in parts.items():
        for name, case in cases.items():
            images = [part / f"images{kind}" / f"{name}_{n:04d}{ENDING}" for n in range(len(found.channels))]
            label = part / f"labels{kind}" / f"{name}{ENDING}" if case.label else None
            if not all(file.exists() for file in (*images, *([label] if label else []))):
                own = Path(case.label) if case.label else None
                jobs[f"{kind}/{name}"] = partial(work, [Path(file) for file in case.images], own, images, label)
    processes = processes or min(default_num_processes, os.cpu_count() or 1)
    refuse_failures(finish_jobs(jobs, processes), len(jobs), "resized")


def _tell(case: CaseFacts) -> dict[str, Any]:
    """Return where a case's voxels lay, and how many there were."""
    return asdict(case.channels[0].grid)


def read_fixed(file: Path) -> dict[str, Any]:
    """Read the dataset.json of a twin.

    Raises:
        InputError: if it is of none.
    """
    shape = {"dataset": str, "file_ending": str, "reader": str, "size": [int]}
    content: dict[str, Any] = read_json(file, {"labels": dict, "file_ending": str})
    if FIXED not in content:
        raise InputError(f"{file} has no {FIXED!r}: these are no predictions of a dataset that fixed-size has made")
    read_json(file, {FIXED: shape})
    return content
