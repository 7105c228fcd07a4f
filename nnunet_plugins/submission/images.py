"""Read the image of a case as nnU-Net would, and write its segmentation with exactly the image's geometry."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunet_plugins.doctor.images import count_not_finite
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import decompress, whole_file
from nnunet_plugins.submission.cases import Case

_PIXELS = {
    "uint8": sitk.sitkUInt8,
    "uint16": sitk.sitkUInt16,
    "int8": sitk.sitkInt8,
    "int16": sitk.sitkInt16,
    "int32": sitk.sitkInt32,
    "float32": sitk.sitkFloat32,
}
_TOLERANCE = 1e-4  # of a voxel; NIfTI keeps the geometry in single precision


class ImageError(InputError):
    """An image cannot be segmented as it is."""


def read_image(
    case: Case, reader: BaseReaderWriter, ending: str, channels: Sequence[str]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Read a case's channels with the reader that the model was trained with.

    Args:
        case: to read.
        reader: nnU-Net's.
        ending: of the files that the model was trained on; other formats are converted to it if the reader cannot read
            them.
        channels: names of the channels that the model knows.

    Returns:
        the image `(channels, z, y, x)`, and its properties for nnU-Net.

    Raises:
        ImageError: if a file is damaged, the channels do not lie on one grid, or the image has other channels than the
            model, a spacing that is none, or numbers that are not finite.
    """
    hidden = _check_files(case)
    with tempfile.TemporaryDirectory() as temporary:
        files = [str(_readable(path, reader, Path(temporary, f"{n}{ending}"))) for n, path in enumerate(case.images)]
        try:
            # Readers print what else they would raise.
            with np.errstate(over="ignore"), contextlib.redirect_stdout(io.StringIO()):
                image, properties = reader.read_images(files)
        except MemoryError:
            raise
        except Exception as error:  # whatever a reader, or the libraries below it, raise for a broken file
            raise ImageError(f"{case.images[0].name} cannot be read: {_last_line(error)}") from error
    if len(image) != len(channels):
        names = ", ".join(path.name for path in case.images)
        raise ImageError(f"{len(image)} channels in {names}; the model has {len(channels)}: {', '.join(channels)}")
    spacing = np.asarray(properties["spacing"], dtype=float)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ImageError(f"the spacing is {spacing.tolist()}")
    if wrong := hidden or int(image.size - np.count_nonzero(np.isfinite(image))):
        raise ImageError(f"{wrong} of {image.size} voxels are not finite (NaN or infinite)")
    return image, dict(properties)


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
        reader.write_seg(segmentation, str(file), dict(properties))
        file = _convert(file, case, output_type)
        with whole_file(case.output) as part:
            shutil.copyfile(file, part)


def _check_files(case: Case) -> int:
    """Check what a reader would not tell; returns how many voxels are not finite that SimpleITK reads as 0."""
    if case.fault:
        raise ImageError(case.fault)
    hidden = 0
    for path in case.images:
        try:
            if path.stat().st_size == 0:
                raise ImageError(f"{path} is empty")
            hidden += count_not_finite(decompress(path))
        except ValueError as error:
            raise ImageError(str(error)) from error
    first, *others = [_header(path) for path in case.images]
    for path, other in zip(case.images[1:], others, strict=True):
        if fault := _difference(first, other):
            raise ImageError(f"{path.name} does not lie on the grid of {case.images[0].name}: {fault}")
    return hidden


def _header(path: Path) -> sitk.ImageFileReader | None:
    """Return what SimpleITK tells of a file; None for formats that it does not know."""
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return None
    return header


def _difference(one: sitk.ImageFileReader | None, other: sitk.ImageFileReader | None) -> str:
    """Return how two files' grids differ, in words; nothing if they do not, or SimpleITK does not know the formats."""
    if one is None or other is None:
        return ""
    if one.GetSize() != other.GetSize():
        return f"{_show(other.GetSize())} voxels instead of {_show(one.GetSize())}"
    small = _TOLERANCE * min(one.GetSpacing())
    for what in ("Spacing", "Origin", "Direction"):
        ours, theirs = (np.array(getattr(header, f"Get{what}")()) for header in (one, other))
        if not np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE if what == "Direction" else small):
            return f"{what.lower()} {_show(theirs)} instead of {_show(ours)}"
    return ""


def _readable(path: Path, reader: BaseReaderWriter, other: Path) -> Path:
    """Return the file, or a copy in the model's own format if the reader does not read the file's."""
    if path.name.lower().endswith(tuple(reader.supported_file_endings)):
        return path
    try:
        convert_image(path, other)
    except RuntimeError as error:
        raise ImageError(f"{path.name} cannot be read: {_last_line(error)}") from error
    return other


def convert_image(file: Path, other: Path) -> None:
    """Write an image in another format, without the notes that only its own format has.

    Raises:
        RuntimeError: if SimpleITK cannot read or write it.
    """
    image = sitk.ReadImage(str(file))
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    sitk.WriteImage(image, str(other))


def _convert(file: Path, case: Case, output_type: str) -> Path:
    """Return the segmentation in the type and format asked for; the file itself where it is so already."""
    image = case.images[0]
    header = _header(image)
    if header is None:
        if output_type != "uint8":
            raise ImageError(f"segmentations of {image.name} can only be written as uint8")
        return file
    written = sitk.ReadImage(str(file))
    if fault := _difference(header, _header(file)):
        raise ImageError(f"the segmentation would not have the image's geometry: {fault}")
    kind = _PIXELS[output_type]
    if written.GetPixelID() == kind and case.output.name.endswith(_ending(file)):
        return file
    largest = int(sitk.GetArrayViewFromImage(written).max())
    if np.dtype(output_type).kind in "iu" and largest > np.iinfo(output_type).max:
        raise ImageError(f"label {largest} does not fit into {output_type}")
    converted = sitk.Cast(written, kind)
    # To the last digit as the image has it.
    for what in ("Spacing", "Origin", "Direction"):
        getattr(converted, f"Set{what}")(getattr(header, f"Get{what}")())
    for key in converted.GetMetaDataKeys():  # they are the other format's
        converted.EraseMetaData(key)
    result = file.with_name(f"converted{_ending(case.output)}")
    sitk.WriteImage(converted, str(result), True)
    return result


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _show(numbers: Any) -> str:
    return ", ".join(f"{number:g}" for number in np.ravel(numbers))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
