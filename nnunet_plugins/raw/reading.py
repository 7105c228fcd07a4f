"""Raw datasets that are there, and folders of images to predict: found, and read as doctor reads them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_plugins.datasets.folders import dataset_name, require_own_folder
from nnunet_plugins.datasets.sources import FIXED
from nnunet_plugins.doctor.dataset import Case, RawDataset, check_description, check_files, check_images_to_predict
from nnunet_plugins.doctor.findings import Finding
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.finding import composed
from nnunet_plugins.images.reading import read_label_map
from nnunet_plugins.images.recipe import PREPARED


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
    found.cases = _composed(found.cases)
    return found


def _composed(cases: dict[str, Case]) -> dict[str, Case]:
    """Return cases by their names as they are written anew, accents composed, wherever they come from."""
    return {composed(name): case for name, case in cases.items()}


def first_configuration(found: RawDataset) -> str:
    """Return the configuration to go on with: 3d_fullres, or 2d of flat images, of which nnU-Net plans no other."""
    assert found.reader is not None
    grid = read_label_map(Path(str(next(iter(found.cases.values())).label)), found.reader()).grid
    # The slices of nnU-Net lie across the axis with the largest spacing.
    return "2d" if grid and grid.shape[int(np.argmax(grid.spacing))] == 1 else "3d_fullres"


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
    return _composed(cases)


def require_images_folder(images: Path, output: Path, *, overwrite: bool) -> None:
    """Check the folders of images to predict that are to be written in another way.

    Args:
        images: as they are.
        output: to write.
        overwrite: replace what is in `output`.

    Raises:
        InputError: if one of them is not fit for that.
    """
    if not images.is_dir():
        raise InputError(f"{images} is no folder")
    require_own_folder(output, images, overwrite=overwrite)


def find_images(images: Path, description: dict[str, Any], done: str) -> tuple[RawDataset, dict[str, Case]]:
    """Find the images to predict in a folder.

    Args:
        images: their folder, in the layout and format of the dataset.
        description: the dataset's dataset.json.
        done: what cannot be done if doctor finds a problem with them, as in "scaled".

    Returns:
        the folder, with nnU-Net's reader of the images, and the cases.

    Raises:
        InputError: with the first problem.
    """
    found, cases = RawDataset(images, description), dict[str, Case]()
    refuse_problems(check_images_to_predict(found, images, None, cases), images, done)
    return found, _composed(cases)


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
