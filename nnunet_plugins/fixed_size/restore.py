"""`nnunet-plugins fixed-size --restore`: what was predicted in one size, on the grids of the images as they were."""

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_plugins.datasets.folders import label_manager, require_own_folder, require_own_labels
from nnunet_plugins.datasets.sources import FIXED, SHOWN
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.fixed_size.twin import read_fixed
from nnunet_plugins.images.facts import problems
from nnunet_plugins.images.finding import composed, find_files, none_fits
from nnunet_plugins.images.reading import choose_reader
from nnunet_plugins.images.resizing import restore_labels
from nnunet_plugins.images.values import declared_labels
from nnunet_plugins.metrics.folders import find_dataset_json
from nnunet_plugins.workers import FailedJobError, finish_jobs


@dataclass(frozen=True)
class Restored:
    """What `restore` wrote.

    Attributes:
        cases: those that are there now.
        failures: by case, why it is not.
    """

    cases: list[str]
    failures: dict[str, str]


def restore(predicted: Path, reference: Path, output: Path, *, processes: int = 1, overwrite: bool = False) -> Restored:
    """Write segmentations of one size on the grids of the images that they are of.

    Args:
        predicted: folder of segmentations, of a twin's images.
        reference: folder of the images as they were, such as imagesTs of the dataset. If the dataset in nnUNet_raw
            lists images there, cases have those that it lists for them, whatever their files are called.
        output: folder to write.
        processes: cases at a time.
        overwrite: write into a folder with content.

    Raises:
        InputError: if a folder or the dataset.json is missing, nothing fits, or `output` has segmentations with other
            labels or of another dataset that would stay.
    """
    for folder in (predicted, reference):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
    require_own_folder(output, predicted, reference, overwrite=overwrite)
    file = find_dataset_json(predicted, predicted)
    description = read_fixed(file)
    fixed, ending = description[FIXED], description["file_ending"]
    segmentations, images = find_files(predicted, ending), find_files(reference, fixed["file_ending"])
    for found, folder, its in ((segmentations, predicted, ending), (images, reference, fixed["file_ending"])):
        if not found.files:
            raise InputError(none_fits(folder, its, found.facts).with_remedy())
    first = {name[: -len("_0000")]: path for name, path in images.files.items() if re.fullmatch(r".+_0000", name)}
    listed = _listed(fixed["dataset"])
    if reference.resolve() in {path.resolve().parent for path in listed.values()}:
        first |= listed
    own: dict[str, Any] = {"file_ending": fixed["file_ending"], "overwrite_image_reader_writer": fixed["reader"]}
    work = partial(
        restore_labels,
        reader=choose_reader(description, list(segmentations.files.values()))(),
        own_reader=choose_reader(own, list(images.files.values()))(),
        size=fixed["size"],
        declared=declared_labels(label_manager(description, file)),
    )
    output.mkdir(parents=True, exist_ok=True)
    failures = {fact.case: fact.with_remedy() for fact in problems(segmentations.facts, "evaluate")}
    jobs = {}
    for case, path in segmentations.by_written_name().items():
        if image := first.get(composed(case)):
            jobs[case] = partial(work, path, image, output / f"{case}{fixed['file_ending']}")
        else:
            failures[case] = f"{reference} has no image {case}_0000{fixed['file_ending']}"
            if known := listed.get(composed(case)):
                failures[case] += f"; {fixed['dataset']} lists {known} for it: give --reference {known.parent}"
    left = {SHOWN: fixed["dataset"]} | {key: value for key, value in description.items() if key != FIXED}
    left["file_ending"] = fixed["file_ending"]
    written = {f"{case}{fixed['file_ending']}" for case in {*jobs, *failures}}
    require_own_labels(output, written, left)
    for name in written:  # of an earlier run; whatever else is there stays
        (output / name).unlink(missing_ok=True)
    write_text(output / "dataset.json", json.dumps(left, indent=2, ensure_ascii=False))
    for case, result in finish_jobs(jobs, processes):
        if isinstance(result, FailedJobError):
            failures[case] = str(result)
        elif result:
            failures[case] = "; ".join(result)
    return Restored([case for case in jobs if case not in failures], failures)


def _listed(dataset: str) -> dict[str, Path]:
    """Return the first image of each case that a raw dataset lists in its dataset.json; none if it does not."""
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's own spelling
    file = Path(raw or "", dataset, "dataset.json")
    shape = {"dataset?": {str: {"label": str, "images": [str]}}, "file_ending": str}
    description = read_json(file, shape) if raw and file.is_file() else {}
    if "dataset" not in description:
        return {}
    cases = get_filenames_of_train_images_and_targets(str(file.parent), description)
    return {composed(case): Path(files["images"][0]) for case, files in cases.items() if files["images"]}
