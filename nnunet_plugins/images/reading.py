"""Read files as nnU-Net's reader does, with the facts that it overlooks. What cannot be read becomes a fact, too."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from numpy.typing import NDArray
from PIL import Image

from nnunet_plugins import memory
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.contents import Contents, check_contents
from nnunet_plugins.images.facts import Fact
from nnunet_plugins.images.finding import image_ending
from nnunet_plugins.images.grid import Difference, Grid, compare_grids, make_grid
from nnunet_plugins.images.spacing import Spacing, read_spacing_file, spacing_elsewhere, spacing_file

_TRIED = 4  # files, for the choice of a reader
_PILLOW = (".png", ".bmp")
_LABELS = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")  # Pillow's names for one number per pixel
_COLOURS = {"P": "a palette", "PA": "a palette", "LA": "gray and transparency", "RGB": "red, green and blue"}
_COLOURS |= {"RGBA": "red, green, blue and transparency"}
_NUMBERS = {"u": "unsigned integer", "i": "signed integer", "f": "float"}  # numpy's kinds as SimpleITK names them
# What SimpleITK and the libraries below it say, in words.
_REASONS = {
    "orthonormal": "its axes are not at right angles",
    "pacing": "its spacing is zero, or no number",
    "space directions": "the directions and lengths of its axes are no numbers",
    "bytes but received": "it holds less than its header says",
    "couldn't parse element": "it holds less than its header says",
    "hit EOF": "it holds less than its header says",
    "not available": "it is compressed in a way that is not known here",
    "ermission": "it may not be read",
}


@dataclass(frozen=True)
class Header:
    """What SimpleITK tells of a file without reading it.

    Attributes:
        size: voxels `(x, y, z, ...)`.
        values: per voxel.
        kind: how the numbers are stored, in words.
        spacing: mm, in the order of `size`.
        origin: of the first voxel, mm.
        direction: of the axes, row by row.
    """

    size: tuple[int, ...]
    values: int
    kind: str
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def grid(self) -> Grid:
        """Where its voxels lie; of an image with two or three dimensions."""
        flat = 3 - len(self.size)
        spacing = (*(1.0,) * flat, *self.spacing[::-1])
        stuff = {"spacing": self.spacing, "origin": self.origin, "direction": self.direction}
        return make_grid((*(1,) * flat, *self.size[::-1]), {"spacing": spacing, "sitk_stuff": stuff})


@dataclass
class Reading:
    """A file, as nnU-Net's reader reads it.

    Attributes:
        file: as it was given.
        facts: about it.
        array: `(channels, z, y, x)`; None if it cannot be used.
        properties: the reader's.
        grid: of the voxels; None with `array`.
        has_spacing: the spacing is known.
        kind: how the numbers are stored, such as "32-bit float"; empty if that is not known.
    """

    file: Path
    facts: list[Fact] = field(default_factory=list)
    array: NDArray[Any] | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    has_spacing: bool = True
    kind: str = ""

    def say(self, kind: str, detail: str = "") -> None:
        """Add a fact."""
        self.facts.append(Fact(kind, str(self.file), detail))

    def use_spacing(self, spacing: Spacing) -> None:
        """Take a spacing that the file does not say itself, mm, `(z, y, x)`."""
        assert self.grid is not None
        self.grid = Grid(self.grid.shape, spacing)
        self.properties["spacing"], self.has_spacing = list(spacing), True
        self.facts = [fact for fact in self.facts if fact.kind != "spacing unknown"]
        self.say("spacing from elsewhere", " x ".join(f"{length:g}" for length in spacing) + " mm")


def choose_reader(description: Mapping[str, Any], files: Sequence[Path]) -> type[BaseReaderWriter]:
    """Return nnU-Net's reader of files: the first that reads one of them.

    Args:
        description: what dataset.json says.
        files: some of them may be broken.

    Raises:
        InputError: if there is no reader for their ending.
    """
    whole = (file for file in files if not _is_broken(file))
    example = next(whole, files[0])
    if not description["file_ending"].lower().startswith(".tif"):
        with quiet():
            return _find_reader(dict(description), str(example))
    # For .tif nnU-Net has two readers, and a file whose spacing is wrong is read by none.
    with quiet():
        for file in [example, *islice(whole, _TRIED - 1)]:
            reader = _find_reader(dict(description), str(file))
            if _reads(reader, file):
                return reader
    return reader if description.get("overwrite_image_reader_writer", "None") != "None" else Tiff3DIO


def _find_reader(description: dict[str, Any], example: str) -> type[BaseReaderWriter]:
    """Choose as nnU-Net does by one file; if that one cannot be read, the others may: then the ending decides."""
    for file in (example, None):
        # nnU-Net shows a traceback for what it cannot read.
        with contextlib.suppress(RuntimeError), contextlib.redirect_stderr(io.StringIO()):
            return determine_reader_writer_from_dataset_json(description, file, verbose=False)
    raise InputError(f"nnU-Net has no reader for files {description['file_ending']!r}")


def _is_broken(file: Path) -> bool:
    try:
        return bool(fatal(check_contents(file).facts))
    except OSError:
        return True


def _reads(reader: type[BaseReaderWriter], file: Path) -> bool:
    try:
        reader().read_images((str(file),))
    except Exception as error:  # whatever readers raise
        memory.raise_if_lacking(error)
        return False
    return True


_COPIES = 3  # of an image, while it is read: as it is stored, another one, and nnU-Net's

_FATAL = {"empty", "cut off", "damaged", "dimensions", "vector", "complex", "colours", "spacing impossible"}


def fatal(facts: Sequence[Fact]) -> list[Fact]:
    """Return the facts that leave nothing worth reading."""
    return [fact for fact in facts if fact.kind in _FATAL]


def read_image(file: Path, reader: BaseReaderWriter) -> Reading:
    """Read an image."""
    return _read(file, reader, is_image=True)


def read_label_map(file: Path, reader: BaseReaderWriter) -> Reading:
    """Read a segmentation, which has one channel."""
    return _read(file, reader, is_image=False)


def _read(file: Path, reader: BaseReaderWriter, *, is_image: bool) -> Reading:
    found = Reading(file)
    try:
        contents = check_contents(file)
        found.facts += contents.facts
        if not fatal(found.facts):
            _look_at_header(found, reader, is_image=is_image)
        if not fatal(found.facts):
            _take_spacing(found, contents, reader, is_image=is_image)
    except OSError as error:
        found.say("unreadable", error.strerror or type(error).__name__)
        return found
    if fatal(found.facts):
        return found
    try:
        with quiet(), np.errstate(over="ignore"):  # what is too large for nnU-Net's float32 becomes infinite
            array, properties = reader.read_images((str(file),)) if is_image else reader.read_seg(str(file))
    except Exception as error:  # whatever a reader, or the libraries below it, raise for a broken file
        memory.raise_if_lacking(error, _COPIES * contents.size)
        # A note that it is read all the same would not be true.
        found.facts = [fact for fact in found.facts if fact.kind != "not compressed"]
        found.say("unreadable", _in_words(error, file, contents, reader))
        return found
    if not is_image and len(array) != 1:
        found.say("colours" if image_ending(file.name).lower() in _PILLOW else "vector", f"{len(array)} channels")
        return found
    grid = make_grid(array.shape[1:], properties)
    if not all(isfinite(length) and length > 0 for length in grid.spacing):
        found.say("spacing impossible", " x ".join(f"{length:g}" for length in grid.spacing))
        return found
    wrong = array.size - count_finite(array) if array.dtype.kind == "f" else 0
    if is_image and wrong:
        found.say("not finite", f"{wrong} voxels")
    elif contents.hidden and not wrong:
        # A segmentation has 0 there, the background.
        found.say("read as zero" if is_image else "label not finite", f"{contents.hidden} voxels")
    found.array, found.properties, found.grid = array, dict(properties), grid
    lost = not found.has_spacing and not is_image and isinstance(reader, Tiff3DIO)
    if lost and (spacing := spacing_elsewhere(file)):
        found.use_spacing(spacing)
    return found


def _look_at_header(found: Reading, reader: BaseReaderWriter, *, is_image: bool) -> None:
    """Say what the header tells that the reader would take for something else."""
    ending = image_ending(found.file.name).lower()
    if ending in _PILLOW:
        with quiet(), contextlib.suppress(Exception), Image.open(found.file) as picture:
            unfit = picture.mode not in _LABELS if not is_image else picture.mode in ("LA", "PA")
            if unfit:
                found.say("colours", _COLOURS.get(picture.mode, picture.mode))
            elif getattr(picture, "n_frames", 1) > 1:
                found.say("more images", f"{picture.n_frames} images")
        return
    if ending.startswith(".tif"):
        with quiet(), contextlib.suppress(Exception), tifffile.TiffFile(found.file) as tif:
            _look_at_tif(found, tif, reader)
        return
    header = read_header(found.file)
    if header is None:
        return
    found.kind = header.kind
    if "complex" in header.kind:
        found.say("complex", header.kind)
    elif header.values > 1:
        found.say("vector", f"{header.values} values per voxel")
    elif len(header.size) > 3:
        found.say("dimensions", f"{' x '.join(map(str, header.size))} voxels")


def _look_at_tif(found: Reading, tif: tifffile.TiffFile, reader: BaseReaderWriter) -> None:
    page = tif.series[0].keyframe
    kind = np.dtype(page.dtype)
    found.kind = f"{8 * kind.itemsize}-bit {_NUMBERS.get(kind.kind, kind.name)}"
    if kind.kind == "c":
        found.say("complex", kind.name)
    elif page.samplesperpixel > 1 and isinstance(reader, Tiff3DIO):
        found.say("vector", f"{page.samplesperpixel} values per voxel")
    elif len(tif.series) > 1:
        found.say("more images", f"{len(tif.series)} images")


def _take_spacing(found: Reading, contents: Contents, reader: BaseReaderWriter, *, is_image: bool) -> None:
    if contents.has_spacing:
        return
    if isinstance(reader, NaturalImage2DIO):
        found.say("spacing in pixels")
        return
    found.has_spacing = False
    if isinstance(reader, Tiff3DIO):
        file = spacing_file(found.file, is_image=is_image)
        if file.is_file():
            try:
                read_spacing_file(file)
                found.has_spacing = True
            except InputError as error:
                found.say("spacing impossible", str(error))
            return
        found.say("spacing unknown", f"there is no {file.name}")
    else:
        found.say("spacing unknown")


def keeps_geometry(file: Path) -> bool:
    """Tell whether nnU-Net knows from a file where its voxels lie; the resolution of a picture is none to it."""
    ending = image_ending(file.name).lower()
    return ending not in _PILLOW and not ending.startswith(".tif")


def count_finite(array: NDArray[Any]) -> int:
    """Return how many numbers are finite, slice by slice: a mask of the whole would be a quarter of the image."""
    if array.ndim < 3:
        return int(np.count_nonzero(np.isfinite(array)))
    return sum(count_finite(part) for part in array)


def read_header(file: Path) -> Header | None:
    """Return what SimpleITK tells of a file; None for formats that it does not know, and for broken files."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    with quiet():
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            memory.raise_if_lacking(error)
            return None
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    place = (reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    return Header(reader.GetSize(), reader.GetNumberOfComponents(), kind, *place)


def read_channels(
    files: Sequence[Path], reader: BaseReaderWriter
) -> tuple[NDArray[Any] | None, dict[str, Any], list[Fact]]:
    """Read the channels of one image as one array, as nnU-Net does.

    Args:
        files: one or several channels each.
        reader: nnU-Net's.

    Returns:
        the image `(channels, z, y, x)`, None if it cannot be used; its properties; what is true of the files.
    """
    arrays, facts, first = [], [], None
    for file in files:
        found = read_image(file, reader)
        facts += found.facts
        if found.array is None:
            continue
        arrays.append(found.array)
        if first is None:
            first = found
        else:
            facts += compare(first, found)
        found.array = None
    if first is None or len(arrays) < len(files) or any(fact.kind == "other size" for fact in facts):
        return None, {}, facts
    image = arrays[0] if len(arrays) == 1 else np.vstack(arrays)
    return np.asarray(image, dtype=np.float32), first.properties, facts


def compare(one: Reading, other: Reading) -> list[Fact]:
    """Return how another file's grid differs from one's."""
    if one.grid is None or other.grid is None:
        return []
    found: list[Difference] = compare_grids(one.grid, other.grid, spacing=one.has_spacing and other.has_spacing)
    return [Fact(part.kind, str(other.file), f"{part.detail} {_near(one.file, other.file)}") for part in found]


def _near(one: Path, other: Path) -> str:
    """Return the name of a file, with its folder if another one is called the same."""
    return one.name if one.name != other.name else f"{one.parent.name}/{one.name}"


def _in_words(error: Exception, file: Path, contents: Contents, reader: BaseReaderWriter) -> str:
    """Return why a reader failed; what SimpleITK says is about its own sources."""
    name = type(reader).__name__
    if contents.is_nifti_2 and not isinstance(reader, (NibabelIO, NibabelIOWithReorient)):
        return f"it is NIfTI-2, which {name} does not know; store it as NIfTI-1"
    text = str(error).replace(str(file), file.name)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, RuntimeError) and "itk" in text.lower():
        reason = next((words for said, words in _REASONS.items() if said in text.replace(file.name, "")), "")
        return f"{name} refuses it: {reason}" if reason else f"{name} finds no image in it"
    return f"{name}: {lines[-1][:200]}" if lines else f"{name}: {type(error).__name__}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let readers and the libraries below them print nothing; what they would say becomes a fact."""
    shown, level = sitk.ProcessObject.GetGlobalWarningDisplay(), logging.root.manager.disable
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
        logging.disable(level)
