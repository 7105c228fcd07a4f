"""Raw datasets out of raw datasets: finding those that are there, and making a new one.

A new one is made beside its place, and is there completely or not at all; a run that was interrupted is gone on with.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_plugins.doctor.dataset import Case, RawDataset, check_description, check_files, check_images_to_predict
from nnunet_plugins.doctor.findings import Finding
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, lock_holder, read_json, whole_file, write_text
from nnunet_plugins.planning.dataset import dataset_name
from nnunet_plugins.planning.sources import FIXED, MARK, PREPARED
from nnunet_plugins.workers import FailedJobError

GROUPS = "groups.csv"
_RECIPE, _LOCK = "recipe.json", "lock"
_SHOWN = 3


def raw_folder() -> Path:
    """Return nnU-Net's folder of raw datasets.

    Raises:
        InputError: if it is not set, or not there.
    """
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's own spelling
    if not raw or not Path(raw).is_dir():
        raise InputError(f"nnUNet_raw is {raw or 'not set'}, which is no folder; export nnUNet_raw=/path/to/nnUNet_raw")
    return Path(raw)


def raw_name(dataset: str) -> str:
    """Return the full name of a raw dataset, given by its number or name.

    Raises:
        InputError: if there is none.
    """
    raw, name = raw_folder(), dataset_name(dataset)
    if not (raw / name).is_dir():
        raise InputError(f"{raw / name} is no folder: a raw dataset is needed, preprocessed data are not enough")
    return name


def new_place(number: int, name: str, sources: Mapping[str, str]) -> Path:
    """Return where a new raw dataset is to be, which nothing else is.

    Args:
        number: of the new one.
        name: of the new one, without its number.
        sources: by full name, what is to be said of a dataset that it is made of, should it have that number.

    Raises:
        InputError: if number or name are none, or the number is taken.
    """
    if not 1 <= number <= 999:
        raise InputError(f"-o {number}: nnU-Net's datasets have numbers from 1 to 999")
    if not re.fullmatch(r"\w[\w.-]*", name) or MARK in name:
        raise InputError(f"--name {name!r}: use letters, digits, '-', '.' and single '_', as in Bones")
    wanted = f"Dataset{number:03d}_{name}"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        root = os.environ.get(variable)
        for found in sorted(Path(root).glob(f"Dataset{number:03d}_*")) if root else []:
            what = sources.get(found.name, "there already")
            raise InputError(f"-o {number}: {found} is {what}; choose another number, or move it away")
    return raw_folder() / wanted


def read_raw(folder: Path, done: str) -> RawDataset:
    """Read a source as doctor does; nothing is made of one that it finds problems with.

    Args:
        folder: of the dataset.
        done: what cannot be done then, as in "merged".

    Raises:
        InputError: with the first problem.
    """
    found = RawDataset(folder)
    refuse_problems([*check_description(found), *check_files(found)], folder, done)
    return found


def refuse_twin(found: RawDataset) -> None:
    """Raise an InputError if a source is a twin itself: a prediction would have two ways to go back."""
    name = found.folder.name
    for key, has in ((FIXED, "images of one size already"), (PREPARED, "images that are prepared already")):
        if key in found.description:
            raise InputError(f"{name} has {has}; make another twin of {found.description[key]['dataset']}")


def refuse_problems(told: Iterable[Finding], folder: Path, done: str) -> None:
    """Raise an InputError that names the first problem, if doctor has found some.

    Args:
        told: what it has found.
        folder: of the dataset.
        done: what cannot be done then, as in "merged".
    """
    wrong = [finding for finding in told if finding.level == "problem"]
    if wrong:
        more = f" (and {len(wrong) - 1} more: nnunet-plugins doctor -d {folder.name})" if wrong[1:] else ""
        raise InputError(f"{folder.name} cannot be {done}: {wrong[0].text}; {wrong[0].remedy}{more}")


def read_test_cases(found: RawDataset, done: str) -> dict[str, Case]:
    """Return the cases of a source's imagesTs, with their segmentations where there are such; none without the folder.

    Args:
        found: the source, as `read_raw` has read it.
        done: what cannot be done if doctor finds a problem with them, as in "merged".

    Raises:
        InputError: with the first problem.
    """
    cases: dict[str, Case] = {}
    folder = found.folder / "imagesTs"
    if folder.is_dir():
        told = check_images_to_predict(found, folder, found.folder / "labelsTs", cases)
        refuse_problems(told, found.folder, done)
    return cases


def refuse_failures(jobs: Iterable[tuple[str, list[str] | FailedJobError]], number: int, done: str) -> None:
    """Wait for jobs, and raise an InputError that names the first ones that were not possible, if there are some.

    Args:
        jobs: by case, as they are finished: what is wrong with it.
        number: of the jobs, for the bar.
        done: what was not possible, as in "resized".
    """
    wrong: list[str] = []
    for name, result in tqdm(jobs, total=number, unit="case", disable=None):
        wrong += [f"{name}: {result}"] if isinstance(result, FailedJobError) else result
    if wrong:
        raise InputError(f"{len(wrong)} cases cannot be {done}; nothing is lost of the others: {first_of(wrong)}")


def first_of(lines: Sequence[str]) -> str:
    """Return the first lines as one."""
    more = f" (and {len(lines) - _SHOWN} more)" if lines[_SHOWN:] else ""
    return "; ".join(lines[:_SHOWN]) + more


def description_file(like: str) -> Path:
    """Return the dataset.json of a dataset, given by its number or name, or of whatever else.

    Args:
        like: number, name, or the file itself.

    Raises:
        InputError: if there is no such dataset.
    """
    if Path(like).is_file():
        return Path(like)
    name = dataset_name(like)
    files = [Path(os.environ.get(f"nnUNet_{part}", ""), name, "dataset.json") for part in ("raw", "preprocessed")]
    return next((file for file in files if file.is_file()), files[0])


def give_file(file: Path, place: Path, *, copy: bool = False) -> None:
    """Link to a file of a raw dataset from a new one, relative to nnUNet_raw where it is in there, or copy it.

    Args:
        file: that is there.
        place: in a folder of the new dataset; what is there stays.
        copy: never link.
    """
    if place.exists() or place.is_symlink():
        return
    target = os.path.realpath(file)
    root = os.path.realpath(place.parent.parent.parent)
    if os.path.commonpath([target, root]) == root:
        target = os.path.relpath(target, os.path.realpath(place.parent))
    if not copy:
        try:
            place.symlink_to(target)
            return
        except (OSError, NotImplementedError):  # of file systems without links, and of Windows without the right
            pass
    with whole_file(place) as unfinished:
        shutil.copyfile(file, unfinished)


def stamps(cases: Iterable[Case]) -> list[list[Any]]:
    """Return what tells whether the sources' files are those of an interrupted run."""
    files = [Path(file) for case in cases for file in case.files]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


@contextmanager
def made_beside(
    place: Path, recipe: Mapping[str, Any], parts: Iterable[str] = ("imagesTr", "labelsTr")
) -> Iterator[Path]:
    """Yield the folder to write a dataset into, which then is at its place.

    Args:
        place: where it is to be.
        recipe: what it is made of; an interrupted run of the same one is gone on with.
        parts: folders to make in it.

    Raises:
        InputError: if another process makes it, or it is there by now.
    """
    part = place.with_name(f".{place.name}.partial")
    with hold_lock(part / _LOCK) as held:
        if not held:
            raise InputError(f"{place} is being made by {lock_holder(part / _LOCK) or 'another process'}")
        _begin(part, json.loads(json.dumps(recipe)), tuple(parts))
        yield part
        if place.exists():
            raise InputError(f"{place} is there by now; {part} holds what was made")
        for file in (_RECIPE, _LOCK):
            (part / file).unlink()
        part.rename(place)


def _begin(part: Path, recipe: dict[str, Any], folders: tuple[str, ...]) -> None:
    """Make the folder to write into, or keep that of an interrupted run of the same recipe."""
    file = part / _RECIPE
    try:
        same = read_json(file) == recipe
    except InputError:
        same = False
    if not same:
        for folder in part.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
        (part / GROUPS).unlink(missing_ok=True)
        write_text(file, json.dumps(recipe))
    for name in folders:
        (part / name).mkdir(parents=True, exist_ok=True)
        for left in [*(part / name).glob(".*"), *(part / name).glob("*.partial.*")]:  # by a kill while writing
            shutil.rmtree(left) if left.is_dir() else left.unlink()
