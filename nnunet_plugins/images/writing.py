"""Images and segmentations in another format, or with another type of numbers."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_plugins import memory
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.contents import check_contents
from nnunet_plugins.images.finding import image_ending
from nnunet_plugins.images.reading import Header, fatal, read_header

PIXELS = {
    "uint8": sitk.sitkUInt8,
    "uint16": sitk.sitkUInt16,
    "int8": sitk.sitkInt8,
    "int16": sitk.sitkInt16,
    "int32": sitk.sitkInt32,
    "float32": sitk.sitkFloat32,
}
"""SimpleITK's types by numpy's names."""


def convert_image(file: Path, other: Path) -> None:
    """Write an image in another format, without the notes that only its own format has.

    Raises:
        InputError: if SimpleITK cannot read or write it.
    """
    try:
        image = sitk.ReadImage(str(file))
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        sitk.WriteImage(image, str(other))
    except RuntimeError as error:
        memory.raise_if_lacking(error)
        raise InputError(f"{file.name} cannot be converted to {other.suffix}") from None


def convert_segmentation(file: Path, other: Path, output_type: str, geometry: Header) -> Path:
    """Return a segmentation with another type of numbers, or in another format; itself if it is so already.

    Args:
        file: the segmentation.
        other: where to write it, if need be.
        output_type: numpy's name.
        geometry: what the result has to have, to the last digit.

    Raises:
        InputError: if a label does not fit into the type.
    """
    written = sitk.ReadImage(str(file))
    kind = PIXELS[output_type]
    if written.GetPixelID() == kind and image_ending(other.name) == image_ending(file.name):
        return file
    largest = int(sitk.GetArrayViewFromImage(written).max())
    if np.dtype(output_type).kind in "iu" and largest > np.iinfo(output_type).max:
        raise InputError(f"label {largest} does not fit into {output_type}")
    converted = sitk.Cast(written, kind)
    converted.SetSpacing(geometry.spacing)
    converted.SetOrigin(geometry.origin)
    converted.SetDirection(geometry.direction)
    for key in converted.GetMetaDataKeys():  # they are the other format's
        converted.EraseMetaData(key)
    with written_whole(other):
        sitk.WriteImage(converted, str(other), True)
    return other


def write_array(array: np.ndarray, file: Path, geometry: Header) -> None:
    """Write a segmentation, or a channel of an image, with SimpleITK.

    Args:
        array: `(z, y, x)`; one plane for a geometry with two axes.
        file: its ending is the format.
        geometry: where its voxels lie.

    Raises:
        InputError: if the format, or SimpleITK, cannot hold it.
    """
    image = sitk.GetImageFromArray(array.reshape(geometry.size[::-1]))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    try:
        sitk.WriteImage(image, str(file), True)
    except RuntimeError as error:
        memory.raise_if_lacking(error)
        size = " x ".join(map(str, geometry.size))
        raise InputError(f"{size} voxels cannot be written as {image_ending(file.name)}") from error


@contextlib.contextmanager
def whole_image(file: Path) -> Iterator[Path]:
    """Yield where to write an image that then is at its place completely or not at all; its name stays as it is.

    What is written beside it, such as a file with its spacing, is put there before.

    Raises:
        InputError: if it cannot be written, or is cut off, as on a full disk, of which not all libraries tell.
    """
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as folder:
        part = Path(folder, file.name)
        with written_whole(part, file):
            yield part
        for one in sorted(Path(folder).iterdir(), key=lambda path: path.name == file.name):
            one.replace(file.parent / one.name)


@contextlib.contextmanager
def written_whole(part: Path, file: Path | None = None) -> Iterator[None]:
    """Check an image that is written within.

    Args:
        part: it.
        file: the place that it is for, for the message; itself if None.

    Raises:
        InputError: if it cannot be written, or is cut off, as on a full disk, of which not all libraries tell.
    """
    try:
        yield
    except (OSError, RuntimeError, InputError) as error:
        memory.raise_if_lacking(error)
        raise _unwritten(file or part, (str(error).splitlines() or [""])[0]) from error
    require_whole(part, file)


def require_whole(part: Path, file: Path | None = None) -> None:
    """Check an image that was written, as `written_whole` does.

    Raises:
        InputError: if it is not there, or is cut off.
    """
    try:
        wrong = fatal(check_contents(part).facts)
    except OSError as error:
        raise _unwritten(file or part, str(error)) from error
    if wrong:
        raise _unwritten(file or part, "it is cut off")


def _unwritten(file: Path, reason: str) -> InputError:
    free = shutil.disk_usage(file.absolute().parent).free / 2**20
    return InputError(f"{file} cannot be written: {reason} ({free:,.0f} MiB free there)")


def read_labels(file: Path) -> tuple[np.ndarray, Header]:
    """Return a segmentation as it is stored, `(z, y, x)`, and its header.

    Raises:
        InputError: if SimpleITK cannot read it.
    """
    header = read_header(file)
    if header is None:
        raise InputError(f"{file} cannot be read")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))), header
