"""Find a dataset's preprocessed folder, where its plans and splits lie."""

import os
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name


class PlanError(Exception):
    """Something the user has to know or to change; the message says what, without a traceback."""


def dataset_name(dataset: str) -> str:
    """Return the full name of a dataset, given by its number or name.

    Raises:
        PlanError: if there is no such dataset, raw, preprocessed or trained on, or more than one.
    """
    try:
        return maybe_convert_to_dataset_name(dataset)
    except (RuntimeError, ValueError):
        places = ", ".join(os.environ.get(name, f"{name} (not set)") for name in ("nnUNet_raw", "nnUNet_preprocessed"))
        raise PlanError(f"{dataset!r} is not the number or name of exactly one dataset; looked in {places}") from None


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


def load_plans(folder: Path, name: str) -> dict:
    """Load plans, or the `dataset.json`, of a preprocessed folder.

    Raises:
        PlanError: if they are missing, naming the plans that are there.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        there = sorted(path.stem for path in folder.glob("*.json") if "lans" in path.stem)
        raise PlanError(f"{file} is missing; plans that are there: {', '.join(there) or 'none'}")
    return load_json(str(file))
