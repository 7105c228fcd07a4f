"""`nnunet-plugins labels`: what was predicted with a merged dataset, in the terms of one of those it was made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.folders import DATASET, label_manager, require_own_folder, require_own_labels
from nnunet_plugins.datasets.sources import FIXED, MARK, NEITHER, SHOWN, Source, read_sources
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.images.facts import problems
from nnunet_plugins.images.finding import composed, find_files, none_fits
from nnunet_plugins.images.reading import choose_reader
from nnunet_plugins.images.relabelling import relabel
from nnunet_plugins.images.values import declared_labels
from nnunet_plugins.merging.joint import own_values
from nnunet_plugins.metrics.folders import find_dataset_json
from nnunet_plugins.planning.objects import OBJECTS, object_labels
from nnunet_plugins.workers import FailedJobError, finish_jobs


@dataclass(frozen=True)
class View:
    """What `write_view` wrote.

    Attributes:
        cases: those that are there now.
        failures: by case, why it is not.
        values: by name, the values in the written segmentations.
    """

    cases: Sequence[str]
    failures: dict[str, str]
    values: dict[str, Any]


def write_view(
    predicted: Path,
    output: Path,
    name: str,
    *,
    dataset_json: Path | None = None,
    own_cases: bool = False,
    processes: int = 1,
    overwrite: bool = False,
) -> View:
    """Write segmentations with the structures and values of one source; all others become background.

    Args:
        predicted: folder of segmentations with the values of the merged dataset.
        output: folder to write.
        name: of the source, as in the names of cases, or of its dataset.
        dataset_json: that of the merged dataset; found beside the segmentations if None.
        own_cases: write only the cases that come from the source, under their names in it.
        processes: cases at a time.
        overwrite: write into a folder with content.

    Raises:
        InputError: if folders or the table of sources are missing, there is no such source, or `output` has
            segmentations with other labels or of another source that would stay.
    """
    if not predicted.is_dir():
        raise InputError(f"{predicted} is no folder")
    require_own_folder(output, predicted, overwrite=overwrite)
    file = dataset_json or find_dataset_json(predicted, predicted)
    description = read_json(file, DATASET)
    manager = label_manager(description, file)
    key, source = _find(read_sources(description, file), name, file)
    ending = description["file_ending"]
    found = find_files(predicted, ending)
    if not found.files:
        raise InputError(none_fits(predicted, ending, found.facts).with_remedy())
    output.mkdir(parents=True, exist_ok=True)
    values = own_values(description["labels"], source)
    if manager.ignore_label is not None:
        values[manager.ignore_label] = 0  # of a true segmentation: not annotated, as is the rest
    work = partial(
        relabel,
        reader=choose_reader(description, list(found.files.values()))(),
        values=values,
        declared=declared_labels(manager),
    )
    failures = {fact.case: fact.with_remedy() for fact in problems(found.facts, "evaluate")}
    files = found.by_written_name()
    wanted = {case: case for case in files}  # what is written for each
    if own_cases:
        start = f"{key}{MARK}"
        wanted = {case: case.partition(MARK)[2] for case in wanted if composed(case).startswith(start)}
        failures = {case: reason for case, reason in failures.items() if composed(case).startswith(start)}
        if not wanted:
            raise InputError(f"{predicted} has no case of {key}: their names begin with {start}")
    jobs = {case: partial(work, files[case], output / f"{name}{ending}") for case, name in wanted.items()}
    own = _description(description, file, source)
    written = {f"{case.partition(MARK)[2] if own_cases else case}{ending}" for case in {*jobs, *failures}}
    require_own_labels(output, written, own)
    for one in written:  # of an earlier run; whatever else is there stays
        (output / one).unlink(missing_ok=True)
    write_text(output / "dataset.json", json.dumps(own, indent=2, ensure_ascii=False))
    for case, result in finish_jobs(jobs, processes):
        if isinstance(result, FailedJobError):
            failures[case] = str(result)
        elif result:
            failures[case] = "; ".join(result)
    structures = {label: value for label, value in source.labels.items() if label not in NEITHER}
    return View([case for case in jobs if case not in failures], failures, structures)


def _description(description: dict[str, Any], file: Path, source: Source) -> dict[str, Any]:
    """Return the dataset.json of a view, of that of the merged dataset."""
    own: dict[str, Any] = {
        "channel_names": description.get("channel_names", {"0": "unknown"}),
        "labels": {"background": 0, **source.labels},
        "numTraining": 0,
        "file_ending": description["file_ending"],
        SHOWN: source.dataset,
    }
    if FIXED in description:  # they can still be brought back
        own[FIXED] = description[FIXED]
    if objects := [name for name in object_labels(description, file) if name in source.labels]:
        own[OBJECTS] = objects
    if source.order:
        own["regions_class_order"] = list(source.order)
    return own


def _find(sources: dict[str, Source], name: str, file: Path) -> tuple[str, Source]:
    fitting = [(key, source) for key, source in sources.items() if name in (key, source.dataset)]
    if len(fitting) != 1:
        known = ", ".join(f"{key} ({source.dataset})" for key, source in sources.items())
        raise InputError(f"--dataset {name}: {file} was merged of {known}")
    return fitting[0]
