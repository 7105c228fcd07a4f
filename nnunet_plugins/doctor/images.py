"""Read every image and segmentation of a raw dataset once, with nnU-Net's reader, and keep what the checks ask."""

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import SimpleITK as sitk
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_plugins.doctor.dataset import Case
from nnunet_plugins.files import decompress
from nnunet_plugins.workers import FailedJobError, finish_jobs

_SAMPLE = 1_000_000  # voxels are enough for percentiles
_PER_PROCESS = 2**26  # bytes of files; for less, a process takes longer to start than to read


@dataclass(frozen=True)
class Grid:
    """Where a file's voxels lie.

    Attributes:
        shape: voxels per axis, `(z, y, x)`.
        spacing: mm per axis, in the same order.
        place: origin and direction as the reader tells them, or an affine matrix; empty if it tells nothing.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    place: tuple[float, ...]


@dataclass(frozen=True)
class Channel:
    """One channel of an image.

    Attributes:
        file: its file's name.
        grid: its voxels.
        kind: how the numbers are stored, such as "32-bit float"; empty if that is not known.
        digest: hash of the content.
        not_finite: number of voxels that are NaN or infinite.
        lowest: smallest finite value.
        highest: largest finite value.
        low: 0.5th percentile.
        middle: median.
        high: 99.5th percentile.
        read_as_zero: number of voxels that are NaN or infinite in the file, where the reader gives 0.
    """

    file: str
    grid: Grid
    kind: str
    digest: str
    not_finite: int
    lowest: float
    highest: float
    low: float
    middle: float
    high: float
    read_as_zero: int = 0

    @property
    def spread(self) -> float:
        """From the 0.5th to the 99.5th percentile."""
        return self.high - self.low


@dataclass(frozen=True)
class Segmentation:
    """A segmentation.

    Attributes:
        file: its file's name.
        grid: its voxels.
        kind: how the numbers are stored.
        values: all different ones; NaN counts as one.
    """

    file: str
    grid: Grid
    kind: str
    values: tuple[float, ...]


@dataclass
class CaseFacts:
    """What is known of a case; files that cannot be read are in `broken`, with the reason."""

    channels: list[Channel] = field(default_factory=list)
    segmentation: Segmentation | None = None
    broken: dict[str, str] = field(default_factory=dict)


def read_cases(
    cases: Mapping[str, Case], reader: type[BaseReaderWriter], processes: int | None = None
) -> dict[str, CaseFacts]:
    """Read all cases, several at a time; a bar shows the progress.

    Args:
        cases: by name; their files are there.
        reader: nnU-Net's.
        processes: cases at a time; by default as in nnU-Net, but no more than there are cores or the files are worth.
    """
    size = sum(os.path.getsize(file) for case in cases.values() for file in [*case.images, case.label])
    processes = processes or min(default_num_processes, os.cpu_count() or 1, 1 + size // _PER_PROCESS)
    jobs = {name: partial(read_case, case, reader) for name, case in cases.items()}
    found: dict[str, CaseFacts] = {}
    for name, facts in tqdm(finish_jobs(jobs, processes), total=len(jobs), unit="case", disable=None):
        found[name] = CaseFacts(broken={name: str(facts)}) if isinstance(facts, FailedJobError) else facts
    return {name: found[name] for name in cases}


def read_case(case: Case, reader: type[BaseReaderWriter]) -> CaseFacts:
    """Read one case's files."""
    facts, own = CaseFacts(), reader()
    for file in case.images:
        # Whatever a reader, or the libraries below it, raise for a broken file.
        try:
            facts.channels += _read_image(own, file)
        except Exception as error:
            facts.broken[file] = _reason(error)
    try:
        facts.segmentation = _read_segmentation(own, case.label)
    except Exception as error:
        facts.broken[case.label] = _reason(error)
    return facts


def _read_image(reader: BaseReaderWriter, file: str) -> list[Channel]:
    hidden = count_not_finite(decompress(Path(file)))
    with np.errstate(over="ignore"):  # what is too large for nnU-Net's float32 becomes infinite
        array, properties = reader.read_images((file,))
    kind = _stored_as(file)
    found = [_describe(channel, Path(file).name, _grid(channel, properties), kind) for channel in array]
    return [replace(channel, read_as_zero=hidden if not channel.not_finite else 0) for channel in found]


def _read_segmentation(reader: BaseReaderWriter, file: str) -> Segmentation:
    decompress(Path(file))
    array, properties = reader.read_seg(file)
    if len(array) != 1:
        raise ValueError(f"a segmentation has one channel, not {len(array)}")
    values = sorted(float(value) for value in pd.unique(array.ravel()))
    return Segmentation(Path(file).name, _grid(array[0], properties), _stored_as(file), tuple(values))


def count_not_finite(content: bytes) -> int:
    """Return how many voxels of a NIfTI file are NaN or infinite; SimpleITK reads them as 0."""
    kinds = {b"n+1": nibabel.Nifti1Header, b"n+2": nibabel.Nifti2Header}
    kind = kinds.get(content[344:347]) or kinds.get(content[4:7])
    if kind is None:
        return 0
    header = kind.from_fileobj(io.BytesIO(content))
    if header.get_data_dtype().kind != "f":
        return 0
    number = prod(header.get_data_shape())
    values = np.frombuffer(content, header.get_data_dtype(), number, header.get_data_offset())
    return number - int(np.count_nonzero(np.isfinite(values)))


def _describe(array: NDArray[Any], file: str, grid: Grid, kind: str) -> Channel:
    digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        return Channel(file, grid, kind, digest, array.size, *(float("nan"),) * 5)
    sample = finite[:: 1 + finite.size // _SAMPLE]
    low, middle, high = np.percentile(sample, (0.5, 50, 99.5)).tolist()
    bounds = float(finite.min()), float(finite.max())
    return Channel(file, grid, kind, digest, array.size - finite.size, *bounds, low, middle, high)


def _grid(array: NDArray[Any], properties: Mapping[str, Any]) -> Grid:
    place: list[float] = []
    for part in ("sitk_stuff", "nibabel_stuff"):
        for key in ("origin", "direction", "original_affine"):
            place += np.ravel(properties.get(part, {}).get(key, ())).tolist()
    spacing = tuple(float(value) for value in properties["spacing"])
    if not all(isfinite(value) and value > 0 for value in spacing):
        raise ValueError(f"its spacing is {spacing}")
    return Grid(tuple(array.shape), spacing, tuple(place))


def _stored_as(file: str) -> str:
    """Return how a file's numbers are stored, from its header; nnU-Net's readers make float32 of all."""
    header = sitk.ImageFileReader()
    header.SetFileName(file)
    try:
        header.ReadImageInformation()
    except RuntimeError:  # a format that SimpleITK does not know
        return ""
    return sitk.GetPixelIDValueAsString(header.GetPixelID())


def _reason(error: Exception) -> str:
    """Return the last line of an error, where SimpleITK has what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
