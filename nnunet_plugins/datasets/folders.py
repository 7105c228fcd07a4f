"""A dataset's folder, its plans and its dataset.json: find, read and write them."""

import contextlib
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.datasets.preprocessed import PLANS
from nnunet_plugins.datasets.sources import SHOWN
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json

DATASET = {
    "file_ending": str,
    "labels": {str: (int, list)},
    "regions_class_order?": (list, type(None)),
    "channel_names?": {str: str},
    "modality?": {str: str},
}
"""What a dataset.json has to look like; see `files.read_json`."""


class PlanError(InputError):
    """Plans, splits or a dataset cannot be used as they are."""


def dataset_name(dataset: str) -> str:
    """Return the full name of a dataset, given by its number or name.

    Raises:
        PlanError: if there is no such dataset, raw, preprocessed or trained on, or more than one.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        name = str(maybe_convert_to_dataset_name(dataset))
        if Path(name).name == name and name[7:10].isdigit():
            return name
    places = ", ".join(os.environ.get(name, f"{name} (not set)") for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    raise PlanError(f"{dataset!r} is not the number or name of exactly one dataset; looked in {places}")


def preprocessed_folder(dataset: str) -> Path:
    """Return the folder of a dataset, given by its number or name, in `nnUNet_preprocessed`.

    Raises:
        PlanError: if there is none.
    """
    root = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 - nnU-Net's own spelling
    if root is None:
        raise PlanError("nnUNet_preprocessed is not set; export nnUNet_preprocessed=/path/to/nnUNet_preprocessed")
    folder = Path(root, dataset_name(dataset))
    if not folder.is_dir():
        raise PlanError(f"{folder} is no folder; preprocess the dataset first: nnUNetv2_plan_and_preprocess")
    return folder


def load_plans(folder: Path, name: str) -> dict[str, Any]:
    """Load plans of a preprocessed folder.

    Raises:
        InputError: if they cannot be read, or are missing, naming the plans that are there.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        there = sorted(path.stem for path in folder.glob("*.json") if "lans" in path.stem)
        raise PlanError(f"{file} is missing; plans that are there: {', '.join(there) or 'none'}")
    return read_json(file, PLANS)


def choose_configurations(
    plans: PlansManager, name: str, wanted: Sequence[str], *, most: int | None = None
) -> list[str]:
    """Return configurations of plans, each once: those that are wanted, else nnU-Net's own at full resolution.

    Args:
        plans: that have them.
        name: of the plans, for the message.
        wanted: their names, or none.
        most: how many to take if none are wanted, of 3d_fullres and 2d; all that there are for None.

    Raises:
        PlanError: if there is none, or not one that is wanted.
    """
    known = plans.available_configurations
    chosen = list(dict.fromkeys(wanted)) or [one for one in ("3d_fullres", "2d") if one in known][:most]
    if not chosen:
        raise PlanError(f"{name} has neither 3d_fullres nor 2d; name a configuration with -c: {', '.join(known)}")
    for one in chosen:
        if one not in known:
            raise PlanError(f"{name} has no configuration {one!r}; it has {', '.join(known)}")
    return chosen


def save_plans(folder: Path, plans: dict[str, Any], like: str, *, overwrite: bool) -> Path:
    """Write new plans, under the name that they say, beside those they are made from; returns their file.

    Args:
        folder: of the dataset, in nnUNet_preprocessed.
        plans: to write.
        like: name of the plans they are made from, which stay as they are.
        overwrite: whether to replace plans of that name that say something else.

    Raises:
        PlanError: if the name cannot be one of new plans, or other plans have it and may not be replaced.
    """
    name = plans["plans_name"]
    if "__" in name or Path(name).name != name:
        raise PlanError(f"{name!r} cannot be a name of plans: nnU-Net allows neither '__' nor '/' in it")
    if name == like:
        raise PlanError(f"the new plans need another name than those they are made from, {like}")
    file = folder / f"{name}.json"
    if file.exists() and not overwrite and read_json(file) != plans:
        raise PlanError(f"{file} is there already and says something else; choose a --name, or give --overwrite")
    save_json(plans, str(file), sort_keys=False)
    return file


def read_dataset_json(file: Path) -> dict[str, Any]:
    """Read a dataset.json whose labels nnU-Net can use.

    Raises:
        InputError: if it cannot be read.
        PlanError: if its labels are not as nnU-Net wants them.
    """
    content = read_json(file, DATASET)
    label_manager(content, file)
    return content


def label_manager(description: dict[str, Any], file: Path) -> LabelManager:
    """Return nnU-Net's manager of the labels that a dataset.json declares.

    Args:
        description: what it says, in the shape `DATASET`.
        file: where it was read, for the message.

    Raises:
        PlanError: if the labels are not as nnU-Net wants them.
    """
    try:
        return LabelManager(description["labels"], description.get("regions_class_order"))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise PlanError(f"{file}: the labels are not as nnU-Net wants them: {error}") from error


_OF_DATASETS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "gt_segmentations")


def require_own_folder(output: Path, *others: Path, overwrite: bool) -> None:
    """Check that segmentations or images can be written to a folder and replace none but their like.

    Args:
        output: the folder, which need not be there.
        others: folders that are read.
        overwrite: whether it may hold something.

    Raises:
        InputError: if not.
    """
    if output.exists() and (not output.is_dir() or output.resolve() in [other.resolve() for other in others]):
        raise InputError(f"{output} cannot be the folder to write; choose another one")
    target = output.resolve()
    for path in (path for other in others if other.is_dir() for path in other.iterdir()):
        if path.is_symlink() and path.resolve().parent == target:
            raise InputError(f"{path} is a link to {path.resolve().name} in {output}; choose another folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if output.resolve().name in _OF_DATASETS:
        raise InputError(f"{output} holds files of a dataset, which nothing replaces; choose another folder")
    if not overwrite:
        raise InputError(f"{output} holds something already; choose another folder, or give --overwrite")


def require_own_labels(output: Path, written: Container[str], description: Mapping[str, Any]) -> None:
    """Check that no segmentations with other labels, or of another dataset, stay where new ones are written.

    One dataset.json stands for all, and cases of two datasets may have one name.

    Args:
        output: the folder, which need not be there.
        written: names of the files that are written or removed.
        description: the new dataset.json.

    Raises:
        InputError: if some do.
    """
    file, labels = output / "dataset.json", description["labels"]
    before = read_json(file, {"labels": dict, f"{SHOWN}?": str}) if file.is_file() else description
    of, new_of = before.get(SHOWN), description.get(SHOWN)
    if before["labels"] == labels and of in (None, new_of):  # what older versions wrote does not say of what it is
        return
    ending = description["file_ending"]
    others = [path.name for path in output.iterdir() if path.name.endswith(ending) and path.name[0] != "."]
    if stays := sorted(name for name in others if name not in written):
        if before["labels"] == labels:
            here = f"of {new_of}" if new_of else "of another dataset"
            raise InputError(f"{output} holds {stays[0]}, of {of}, and here are cases {here}; choose another folder")
        old, new = (", ".join(f"{name} {value}" for name, value in one.items()) for one in (before["labels"], labels))
        raise InputError(f"{output} holds {stays[0]}, with the labels {old}, and here are {new}; choose another folder")


BYTE_WRITERS = ("SimpleITKIOWithReorient",)
"""nnU-Net's readers that write segmentations of 8 bits, whatever the labels; the others take 16 where they have to."""


def largest_label(description: dict[str, Any], file: Path) -> int:
    """Return the largest value that a predicted segmentation may have.

    Args:
        description: what a dataset.json says, in the shape `DATASET`.
        file: where it was read, for the message.

    Raises:
        PlanError: if the labels are not as nnU-Net wants them.
    """
    labels = label_manager(description, file)
    return int(max(description["regions_class_order"] if labels.has_regions else labels.foreground_labels, default=0))
