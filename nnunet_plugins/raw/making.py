"""A new raw dataset out of one or several that are there.

It is made beside its place, and is there completely or not at all; a run that was interrupted is gone on with.
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

from nnunet_plugins.datasets.sources import MARK
from nnunet_plugins.doctor.dataset import Case, RawDataset
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, lock_holder, read_json, whole_file, write_text
from nnunet_plugins.planning.groups import GROUPS
from nnunet_plugins.raw.reading import raw_folder
from nnunet_plugins.workers import FailedJobError

_RECIPE, _LOCK = "recipe.json", "lock"
_SHOWN = 3


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


@contextmanager
def made_twin(
    place: Path, found: RawDataset, parts: Mapping[str, Mapping[str, Case]], description: Mapping[str, Any]
) -> Iterator[Path]:
    """Yield the folder to write a dataset with the cases of another one into, which then is at its place.

    Folders, groups and dataset.json are seen to here.

    Args:
        place: where it is to be.
        found: the dataset that it is of.
        parts: its cases, under "Tr" and "Ts".
        description: dataset.json of the new one; an interrupted run with the same one, of the same files, is gone on
            with.

    Raises:
        InputError: if another process makes it, or it is there by now.
    """
    groups = (found.folder / GROUPS).read_bytes() if (found.folder / GROUPS).is_file() else b""
    made_of = {
        "dataset": description,
        "groups": groups.decode(errors="replace"),
        "files": stamps(case for cases in parts.values() for case in cases.values()),
    }
    folders = [f"images{part}" for part, cases in parts.items() if cases]
    # An empty labelsTs would be one whose files are missing.
    folders += [f"labels{part}" for part, cases in parts.items() if any(case.label for case in cases.values())]
    with made_beside(place, made_of, folders) as part:
        yield part
        if groups:
            with whole_file(part / GROUPS) as file:
                file.write_bytes(groups)
        write_text(part / "dataset.json", json.dumps(description, indent=2, ensure_ascii=False))


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
