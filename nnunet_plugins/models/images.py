"""Read the image of a case as nnU-Net would, and write its segmentation with exactly the image's geometry."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import whole_file
from nnunet_plugins.images.contents import check_contents
from nnunet_plugins.images.facts import Fact, problems, remarks, summarise
from nnunet_plugins.images.grid import compare_grids
from nnunet_plugins.images.reading import keeps_geometry, read_channels, read_header
from nnunet_plugins.images.recipe import Recipe
from nnunet_plugins.images.writing import convert_image, convert_segmentation, written_whole
from nnunet_plugins.models.cases import Case


class ImageError(InputError):
    """An image cannot be segmented as it is."""


def _say_nothing(_: str) -> None:
    pass


def read_image(
    case: Case,
    reader: BaseReaderWriter,
    ending: str,
    channels: Sequence[str],
    log: Callable[[str], object] = _say_nothing,
    recipe: Recipe | None = None,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read a case's channels with the reader that the model was trained with.

    Args:
        case: to read.
        reader: nnU-Net's.
        ending: of the files that the model was trained on; other formats are converted to it if the reader cannot read
            them.
        channels: names of the channels that the model knows.
        log: takes what is worth a word, and no reason to leave the case out.
        recipe: how the images were prepared that the model was trained on, if they were: it is done to this one, too.

    Returns:
        the image `(channels, z, y, x)`, and its properties for nnU-Net.

    Raises:
        ImageError: if a fact about a file is a problem for inference, or the image has other channels than the model.
    """
    if case.fault:
        raise ImageError(case.fault)
    with tempfile.TemporaryDirectory() as temporary:
        originals: dict[str, str] = {}
        files, facts = [], []
        for number, path in enumerate(case.images):
            file = path
            if not path.name.lower().endswith(tuple(reader.supported_file_endings)):
                # Under its own name, so that all that is said of it fits.
                file = Path(temporary, f"{number}{ending}")
                facts += _converted(path, file)
                originals[str(file)] = str(path)
            files.append(file)
        _refuse(facts)
        if recipe:
            files = _prepared(files, recipe, Path(temporary), ending, originals, log)
        image, properties, found = read_channels(files, reader)
    facts += [replace(fact, file=originals.get(fact.file, fact.file)) for fact in found]
    _refuse(facts)
    if image is None:
        raise ImageError(f"{case.images[0].name} cannot be read")
    if len(image) != len(channels):
        names = ", ".join(path.name for path in case.images)
        raise ImageError(f"{len(image)} channels in {names}; the model has {len(channels)}: {', '.join(channels)}")
    for line in summarise(remarks(facts, "inference")):
        log(line)
    return image, properties


def _prepared(
    files: Sequence[Path],
    recipe: Recipe,
    folder: Path,
    ending: str,
    originals: dict[str, str],
    log: Callable[[str], object],
) -> list[Path]:
    """Return files of prepared channels, written as `prepare-images` writes them, so that the same is read."""
    from nnunet_plugins.images.preparing import write_prepared  # which loads scikit-image

    result = []
    for number, file in enumerate(files):
        place = folder / f"prepared_{number}{ending}"
        if number in recipe.channels:
            done = write_prepared([file], [place], recipe)
            if done.wrong:
                raise ImageError("; ".join(_named(done.wrong, originals)))
            for line in _named([f"{one} is left as it is: {reason}" for one, reason in done.left.items()], originals):
                log(line)
            originals[str(place)] = originals.get(str(file), str(file))
        result.append(place if number in recipe.channels else file)
    return result


def _named(lines: Sequence[str], originals: Mapping[str, str]) -> list[str]:
    """Return lines with the names of files as they were given."""
    for file, original in originals.items():
        lines = [line.replace(file, original) for line in lines]
    return list(lines)


def _refuse(facts: Sequence[Fact]) -> None:
    if wrong := problems(facts, "inference"):
        raise ImageError("; ".join(summarise(wrong)))


def _converted(path: Path, other: Path) -> list[Fact]:
    """Convert a file to a format that the reader knows; returns what is true of it as it was."""
    try:
        contents = check_contents(path)
    except OSError as error:
        return [Fact("unreadable", str(path), error.strerror or "")]
    facts = list(contents.facts)
    header = read_header(path)
    if problems(facts, "inference"):
        return facts
    if header is None:
        return [*facts, Fact("unreadable", str(path), "SimpleITK finds no image in it")]
    if len(header.size) > 3:
        return [*facts, Fact("dimensions", str(path), f"{' x '.join(map(str, header.size))} voxels")]
    if not contents.has_spacing:
        facts.append(Fact("spacing unknown", str(path)))
    try:
        convert_image(path, other)
    except InputError as error:
        facts.append(Fact("unreadable", str(path), str(error)))
    return facts


def write_segmentation(
    segmentation: NDArray[Any],
    properties: Mapping[str, Any],
    case: Case,
    reader: BaseReaderWriter,
    ending: str,
    output_type: str,
) -> None:
    """Write a segmentation completely or not at all.

    Args:
        segmentation: `(z, y, x)`, as the reader gave the image.
        properties: from the reader.
        case: whose image it is; the format follows from its output's name.
        reader: nnU-Net's; it undoes what it did to the axes.
        ending: of the files that the model was trained on.
        output_type: numpy's name for it.

    Raises:
        ImageError: if the labels do not fit into the type, or the file would not have the image's geometry.
        OSError: if it cannot be written.
    """
    case.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, f"segmentation{ending}")
        with written_whole(file):
            reader.write_seg(segmentation, str(file), dict(properties))
        file = _convert(file, case, output_type)
        with whole_file(case.output) as part:
            shutil.copyfile(file, part)


def _convert(file: Path, case: Case, output_type: str) -> Path:
    """Return the segmentation in the type and format asked for; the file itself where it is so already."""
    image = case.images[0]
    header, written = read_header(image), read_header(file)
    if written is None or written.values > 1:  # of a .bmp SimpleITK makes colours
        if output_type != "uint8":
            raise ImageError(f"segmentations of {image.name} can only be written as uint8")
        return file
    if header is None or not keeps_geometry(file):
        header = written
    if difference := compare_grids(header.grid, written.grid):
        raise ImageError(f"the segmentation would not have the image's geometry: {difference[0].detail} {image.name}")
    return convert_segmentation(file, file.with_name(f"converted_{case.output.name}"), output_type, header)
