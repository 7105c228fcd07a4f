"""`nnunet-plugins prepare-images -i`: images to predict, prepared as those of a twin."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.folders import DATASET
from nnunet_plugins.doctor.dataset import Case
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, whole_file, write_text
from nnunet_plugins.images.preparing import another_version, require_format, write_prepared
from nnunet_plugins.images.recipe import BESIDE, PREPARED, Recipe, prepared_with, read_recipe
from nnunet_plugins.raw.reading import description_file, find_images, require_images_folder
from nnunet_plugins.workers import FailedJobError, finish_jobs


@dataclass(frozen=True)
class PreparedFolder:
    """What `prepare_folder` wrote.

    Attributes:
        recipe: how the images were prepared.
        cases: those that are there now.
        failures: by case, why it is not.
        left: by file, why an image was left as it is.
        warning: that scikit-image is not the recipe's here, if so.
    """

    recipe: Recipe
    cases: list[str]
    failures: dict[str, str]
    left: dict[str, str]
    warning: str


def prepare_folder(
    images: Path, like: str, output: Path, *, processes: int = 1, overwrite: bool = False
) -> PreparedFolder:
    """Write images as a twin has them, so that its networks can predict them.

    What an earlier run with the same recipe has written is kept, where its image has not changed since.

    Args:
        images: folder of images as they are, in the layout and format of the dataset that the twin is of.
        like: number or name of the twin, or the file dataset.json of it, or of a model.
        output: folder to write.
        processes: cases at a time.
        overwrite: replace what is in `output`.

    Raises:
        InputError: if a folder or the dataset.json is missing, the images are prepared already, or are not like those
            of the dataset.
    """
    file = description_file(like)
    description = read_json(file, DATASET)
    recipe = read_recipe(description, file)
    if recipe is None:
        raise InputError(f"{file} has no {PREPARED!r}: it is of no dataset that prepare-images has made")
    if before := prepared_with(images):
        raise InputError(f"{images} holds images that are prepared already ({before}); give those as they were")
    goes_on = _made_with(output) == recipe
    require_images_folder(images, output, overwrite=overwrite or goes_on)
    require_format(description["file_ending"], str(file))
    found, cases = find_images(images, description, "prepared")
    output.mkdir(parents=True, exist_ok=True)
    left, failures = _write(cases, recipe, output, found.description["file_ending"], goes_on, processes)
    return PreparedFolder(
        recipe,
        [name for name in cases if name not in failures],
        failures,
        left,
        another_version(recipe),
    )


def _made_with(output: Path) -> Recipe | None:
    return read_recipe(read_json(output / BESIDE, dict), output / BESIDE) if (output / BESIDE).is_file() else None


def _write(
    cases: Mapping[str, Case], recipe: Recipe, output: Path, ending: str, goes_on: bool, processes: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the cases; returns what was left as it is, and what failed."""
    places = {
        name: {output / f"{name}_{channel:04d}{ending}": Path(image) for channel, image in enumerate(case.images)}
        for name, case in cases.items()
    }
    now = {place.name: _stamp(image) for case in places.values() for place, image in case.items()}
    before: dict[str, Any] = read_json(output / BESIDE, dict).get("files", {}) if goes_on else {}
    # Also of other cases, which were prepared in the same way and have left the input since.
    listed = {name: one for name, one in before.items() if now.get(name, one) == one and (output / name).exists()}
    _list(listed, recipe, output)
    for case in places.values():
        for place in case:  # of an earlier run; whatever else is there stays
            if place.name not in listed:
                place.unlink(missing_ok=True)
    jobs = {}
    for name, case in places.items():
        missing = {place: image for place, image in case.items() if not place.exists()}
        own = {place for number, place in enumerate(case) if number in recipe.channels}
        for place, image in missing.items():
            if place not in own:
                with whole_file(place) as unfinished:
                    shutil.copyfile(image, unfinished)
                listed[place.name] = now[place.name]
        if todo := {place: image for place, image in missing.items() if place in own}:
            jobs[name] = partial(write_prepared, list(todo.values()), list(todo), recipe)
    _list(listed, recipe, output)
    left, failures = {}, {}
    for name, result in finish_jobs(jobs, processes):
        if isinstance(result, FailedJobError):
            failures[name] = str(result)
        else:
            left.update(result.left)
            if result.wrong:
                failures[name] = "; ".join(result.wrong)
        files = {place.name: now[place.name] for place in places[name]}
        if name in failures:
            listed = {file: stamp for file, stamp in listed.items() if file not in files}
        else:
            listed |= files
        _list(listed, recipe, output)
        if name in failures:  # nnU-Net would predict a case with the channels that are there
            for place in places[name]:
                place.unlink(missing_ok=True)
    return left, failures


def _list(files: Mapping[str, Any], recipe: Recipe, output: Path) -> None:
    """Write which files were prepared, and how: those alone that are there, whenever a run is stopped."""
    content = {PREPARED: recipe.as_json(), "files": files}
    write_text(output / BESIDE, json.dumps(content, indent=1, ensure_ascii=False))


def _stamp(file: Path) -> list[Any]:
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
