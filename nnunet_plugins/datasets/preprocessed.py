"""What preprocessing has left in a dataset's folder, and which of its cases exist. Loads nothing heavy."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import is_json, read_json
from nnunet_plugins.images.finding import Found, find_files

PLANS = {"configurations": {str: {"inherits_from?": str, "data_identifier?": str}}}
"""What a plans file has to look like, as far as finding data goes; see `files.read_json`."""


def find_truths(folder: Path) -> Found:
    """Find the copies of the true segmentations that preprocessing keeps; those are no files that lie there by chance.

    nnU-Net never removes one: those of cases that have left the dataset stay. See `existing_cases`.

    Raises:
        InputError: if the folder's dataset.json cannot be used.
    """
    ending = read_json(folder / "dataset.json", {"file_ending": str})["file_ending"]
    truths = folder / "gt_segmentations"
    return find_files(truths, ending) if truths.is_dir() else Found()


def truth_files(folder: Path) -> dict[str, Path]:
    """Return the copies of the true segmentations by case.

    Raises:
        InputError: if the folder's dataset.json cannot be used.
    """
    return find_truths(folder).by_written_name()


def existing_cases(folder: Path) -> list[str]:
    """Return the preprocessed training cases, without those that have left the dataset.

    Raises:
        InputError: if the folder's dataset.json cannot be used.
    """
    truths = truth_files(folder)
    stale = stale_cases(folder, truths)
    return [case for case in truths if case not in stale]


def known_cases(folder: Path) -> list[str]:
    """Return the preprocessed training cases of a dataset, or else the raw ones; none if neither are there.

    Raises:
        InputError: if the folder's dataset.json cannot be used.
    """
    preprocessed = existing_cases(folder) if (folder / "dataset.json").is_file() else []
    return preprocessed or sorted(raw_cases(folder.name))


def stale_cases(folder: Path, truths: Iterable[str]) -> set[str]:
    """Return the cases that have left the dataset since it was first preprocessed.

    Preprocessing makes a configuration's data anew, so a case is gone if the raw dataset does not have it and data do
    not either. Where nobody knows the raw dataset, it is gone if no configuration has data of it.

    Args:
        folder: of the dataset, in nnUNet_preprocessed.
        truths: the cases of whose truth there is a copy.
    """
    data: dict[Path, set[str]] = {}
    for file in folder.glob("*/*.pkl"):
        data.setdefault(file.parent, set()).add(file.stem)
    if not data:
        return set()
    raw = raw_cases(folder.name)
    there = raw | set.intersection(*data.values()) if raw else set.union(*data.values())
    return set(truths) - there


def raw_cases(dataset: str) -> set[str]:
    """Return the names of a raw dataset's training cases as nnU-Net takes them; none if it is not there or unusable.

    Args:
        dataset: full name.
    """
    root = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net's own spelling
    if not root:
        return set()
    folder = Path(root, dataset)
    try:
        description = read_json(folder / "dataset.json", {"file_ending": str, "dataset?": dict})
    except InputError:
        return set()
    if "dataset" in description:
        return set(description["dataset"])
    if not (folder / "imagesTr").is_dir():
        return set()
    # Without the channel, "_0000".
    return {name[:-5] for name in find_files(folder / "imagesTr", description["file_ending"]).by_written_name()}


def data_folder(folder: Path, plans: str, configuration: str) -> Path:
    """Return where the preprocessed cases of a configuration lie, as the plans in a dataset's folder say.

    Raises:
        InputError: if the plans cannot be used.
    """
    identifier = look_up(folder / f"{plans}.json", configuration, "data_identifier")
    return folder / (identifier or f"{plans}_{configuration}")


def look_up(file: Path, configuration: str, name: str) -> Any:
    """Return what a configuration says, or else the one that it inherits from; None if none of them says it.

    Args:
        file: of the plans.
        configuration: which; one that the plans do not have says nothing.
        name: of what it says.

    Raises:
        InputError: if the plans cannot be used.
    """
    configurations = read_json(file, PLANS)["configurations"]
    found: dict[str, Any] = configurations.get(configuration, {})
    seen = [configuration]
    while name not in found and "inherits_from" in found:
        seen.append(found["inherits_from"])
        if seen[-1] not in configurations or seen[-1] in seen[:-1]:
            raise InputError(f"{file}: {configuration} inherits from what there is not, or from itself: {seen}")
        found = configurations[seen[-1]]
    return found.get(name)


def missing_cases(folder: Path, plans: str, configuration: str) -> list[str]:
    """Return the cases that have not been preprocessed for a configuration.

    Raises:
        InputError: if the plans or the dataset.json cannot be used.
    """
    data = data_folder(folder, plans, configuration)
    # Of each case's files the properties are written last.
    return [case for case in existing_cases(folder) if not (data / f"{case}.pkl").is_file()]


def is_preprocessed(folder: Path, plans: str, configurations: Iterable[str]) -> bool:
    """Tell whether every case of a dataset has been preprocessed for the configurations that the plans have.

    Raises:
        InputError: if the plans or the dataset.json say something else than nnU-Net's.
    """
    if not is_json(folder / f"{plans}.json") or not is_json(folder / "dataset.json"):
        return False
    return bool(existing_cases(folder)) and not any(missing_cases(folder, plans, name) for name in configurations)


def preprocessed_shapes(data: Path, cases: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the voxels of preprocessed cases, per axis, with one for the slices also in 2D.

    Args:
        data: folder of a configuration's data.
        cases: their names.

    Raises:
        InputError: if one cannot be read.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class  # which loads much

    names, shapes = list(cases), {}
    if not names:
        return {}
    dataset = infer_dataset_class(str(data))(str(data), names)
    for case in names:
        try:
            # Of most formats this reads the file's head.
            shapes[case] = tuple(map(int, dataset.load_case(case)[1].shape[1:]))
        except Exception as error:  # whatever nnU-Net and the libraries below it raise for a file that is broken
            raise InputError(f"the preprocessed data of {case} in {data} cannot be read: {error}") from error
    return shapes


def larger_cases(shapes: Mapping[str, Sequence[int]], patch: Sequence[int]) -> dict[str, str]:
    """Return the cases that a patch does not hold, with their size in words.

    Args:
        shapes: voxels of each case after resampling, `(z, y, x)` in the order of the plans.
        patch: of the plans; in 2D it holds one slice.
    """
    room = (*(1,) * (3 - len(patch)), *patch)
    larger = {
        name: shape for name, shape in shapes.items() if any(n > most for n, most in zip(shape, room, strict=True))
    }
    return {name: "x".join(map(str, shape)) for name, shape in larger.items()}
