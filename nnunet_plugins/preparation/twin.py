"""`nnunet-plugins prepare-images -d`: a twin of a raw dataset whose images have other intensities.

Of the dataset nothing is changed; what stays the same is a link to it. How the images were prepared stands in the
twin's dataset.json, which nnU-Net copies into models, so that images to predict can be prepared alike (`folder.py`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nnunetv2.configuration import default_num_processes

from nnunet_plugins.doctor.dataset import Case, RawDataset
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.preparing import Prepared, require_format, scikit_image_version, write_prepared
from nnunet_plugins.images.recipe import PREPARED, Recipe
from nnunet_plugins.planning.normalisation import channel_names, choose_channels
from nnunet_plugins.raw.making import give_file, made_twin, new_place, refuse_failures
from nnunet_plugins.raw.reading import first_configuration, raw_folder, raw_name, read_raw, read_test_cases, refuse_twin
from nnunet_plugins.workers import FailedJobError, finish_jobs

_NAMES = {"clahe": "CLAHE", "equalize": "Equalized", "percentile": "Clipped", "iqr": "IQR", "per-slice": "PerSlice"}
_DONE = "prepared"
_LISTING = "dataset"  # key of the source's files in dataset.json


@dataclass(frozen=True)
class Twin:
    """What `write_twin` wrote.

    Attributes:
        folder: in nnUNet_raw.
        source: full name of the dataset that it is of.
        recipe: how its images were prepared.
        cases: for training.
        tests: in imagesTs.
        left: by file, why an image was left as it is, of those that this run has prepared.
        has_splits: the source has been split into folds.
        configuration: of nnU-Net, to go on with.
    """

    folder: Path
    source: str
    recipe: Recipe
    cases: int
    tests: int
    left: dict[str, str]
    has_splits: bool
    configuration: str


def write_twin(
    dataset: str,
    number: int,
    recipe: Recipe,
    *,
    channels: Sequence[int] = (),
    name: str | None = None,
    processes: int | None = None,
) -> Twin:
    """Write a raw dataset with the images of another one, with other intensities.

    Args:
        dataset: number or name.
        number: of the twin.
        recipe: what is to be done; its dataset, channels and version are filled in here.
        channels: numbers of those that it is done to; all by default.
        name: of the twin, without its number; if None, the dataset's with the scheme's.
        processes: cases at a time; if None, as nnU-Net's default, but no more than there are cores.

    Raises:
        InputError: if the dataset is not in order, or the twin cannot be made.
    """
    own = raw_name(dataset)
    place = new_place(number, name or f"{own[11:]}{_NAMES[recipe.scheme]}", {own: "the dataset itself"})
    found = read_raw(raw_folder() / own, _DONE)
    refuse_twin(found)
    require_format(found.description["file_ending"], own)
    names = channel_names(found.description)
    chosen = tuple(choose_channels(channels, names))
    recipe = replace(recipe, dataset=own, channels=chosen, scikit_image=scikit_image_version(), all_channels=len(names))
    parts = {"Tr": found.cases, "Ts": read_test_cases(found, _DONE)}
    _require_ending(found, [case for cases in parts.values() for case in cases.values()])
    kept = {key: value for key, value in found.description.items() if key != _LISTING}
    description = {**kept, "numTraining": len(found.cases), PREPARED: recipe.as_json()}
    left: dict[str, str] = {}
    with made_twin(place, found, parts, description) as part:
        jobs = _jobs(part, found, parts, recipe)
        processes = processes or min(default_num_processes, os.cpu_count() or 1)
        refuse_failures(_noting(finish_jobs(jobs, processes), left), len(jobs), _DONE)
    splits = Path(os.environ.get("nnUNet_preprocessed", ""), own, "splits_final.json")  # noqa: SIM112 - nnU-Net's own
    cases, tests = (len(one) for one in parts.values())
    return Twin(place, own, recipe, cases, tests, left, splits.is_file(), first_configuration(found))


def _require_ending(found: RawDataset, cases: Sequence[Case]) -> None:
    ending = found.description["file_ending"]
    if odd := next((file for case in cases for file in case.files if not file.endswith(ending)), None):
        raise InputError(f"{found.folder.name} lists {odd}, and its files end in {ending}; convert the files")


def _jobs(
    part: Path, found: RawDataset, parts: Mapping[str, Mapping[str, Case]], recipe: Recipe
) -> dict[str, partial[Prepared]]:
    """Return what is left to be prepared, by case; what stays as it is is linked to here."""
    ending, jobs = found.description["file_ending"], {}
    for kind, cases in parts.items():
        for name, case in cases.items():
            files, places = [], []
            for channel, image in enumerate(case.images):
                place = part / f"images{kind}" / f"{name}_{channel:04d}{ending}"
                if channel not in recipe.channels:
                    give_file(Path(image), place)
                elif not place.exists():
                    files.append(Path(image))
                    places.append(place)
            if case.label:
                give_file(Path(case.label), part / f"labels{kind}" / f"{name}{ending}")
            if files:
                jobs[f"{kind}/{name}"] = partial(write_prepared, files, places, recipe)
    return jobs


def _noting(
    results: Iterator[tuple[str, Prepared | FailedJobError]], left: dict[str, str]
) -> Iterator[tuple[str, list[str] | FailedJobError]]:
    """Yield what is wrong with each case, and note what was left as it is."""
    for name, result in results:
        if isinstance(result, FailedJobError):
            yield name, result
        else:
            left.update(result.left)
            yield name, result.wrong
