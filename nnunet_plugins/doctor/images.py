"""Read every image and segmentation of a raw dataset once, and keep what the checks ask."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_plugins import memory
from nnunet_plugins.doctor.dataset import Case
from nnunet_plugins.images.facts import Fact
from nnunet_plugins.images.grid import Grid
from nnunet_plugins.images.reading import Reading, compare, read_header, read_image, read_label_map
from nnunet_plugins.images.values import check_values, distinct
from nnunet_plugins.workers import FailedJobError, finish_jobs

_SAMPLE = 1_000_000  # voxels are enough for percentiles
_PER_PROCESS = 2**26  # bytes of files; for less, a process takes longer to start than to read
_SHARE = 0.7  # of the free memory
_BASE = 3 * 2**28  # bytes of a process, with its libraries
_UNPACKED = 20  # how many times larger than its file an image of an unknown format may be
_LARGEST = 8  # files whose headers are looked at for the memory


@dataclass(frozen=True)
class Channel:
    """One channel of an image.

    Attributes:
        file: its file's name.
        grid: its voxels.
        kind: how the numbers are stored, such as "32-bit float"; empty if that is not known.
        digest: hash of the content.
        lowest: smallest finite value.
        highest: largest finite value.
        low: 0.5th percentile.
        middle: median.
        high: 99.5th percentile.
        content: first voxel along each axis that is not 0 in its plane, and the first of those behind the last.
    """

    file: str
    grid: Grid
    kind: str
    digest: str
    lowest: float
    highest: float
    low: float
    middle: float
    high: float
    content: tuple[tuple[int, int], ...]

    @property
    def spread(self) -> float:
        """From the 0.5th to the 99.5th percentile."""
        return self.high - self.low


@dataclass(frozen=True)
class Segmentation:
    """A segmentation.

    Attributes:
        kind: how the numbers are stored.
        values: all different ones; NaN counts as one.
    """

    kind: str
    values: tuple[float, ...]


@dataclass
class CaseFacts:
    """What is known of a case.

    Attributes:
        channels: those that can be read.
        segmentation: None if there is none that can be read.
        facts: about its files.
        is_whole: all files can be read.
    """

    channels: list[Channel] = field(default_factory=list)
    segmentation: Segmentation | None = None
    facts: list[Fact] = field(default_factory=list)
    is_whole: bool = True

    @property
    def cropped(self) -> tuple[int, ...]:
        """Voxels per axis that nnU-Net keeps of the image: it cuts off planes that are 0 in all channels."""
        boxes = zip(*(one.content for one in self.channels), strict=True)
        return tuple(max(behind for _, behind in axis) - min(first for first, _ in axis) for axis in boxes)


def read_cases(
    cases: Mapping[str, Case],
    reader: type[BaseReaderWriter],
    declared: Collection[int],
    processes: int | None = None,
) -> dict[str, CaseFacts]:
    """Read all cases, several at a time; a bar shows the progress.

    Args:
        cases: by name; their files are there.
        reader: nnU-Net's.
        declared: the labels that segmentations may have; none for any.
        processes: cases at a time; by default as in nnU-Net, but no more than there are cores, than the files are
            worth, or than fit into the memory.
    """
    files = [file for case in cases.values() for file in case.files]
    processes = processes or _default_processes(files, reader)
    jobs = {name: partial(read_case, name, case, reader, declared) for name, case in cases.items()}
    found: dict[str, CaseFacts] = {}
    for name, facts in tqdm(finish_jobs(jobs, processes), total=len(jobs), unit="case", disable=None):
        if isinstance(facts, FailedJobError):
            facts = CaseFacts(facts=[Fact("unreadable", cases[name].images[0], str(facts), name)], is_whole=False)
        found[name] = facts
    return {name: found[name] for name in cases}


def _default_processes(files: Sequence[str], reader: type[BaseReaderWriter]) -> int:
    sizes = {file: os.path.getsize(file) for file in files}
    processes = min(default_num_processes, os.cpu_count() or 1, 1 + sum(sizes.values()) // _PER_PROCESS)
    free = memory.available_bytes()
    if processes == 1 or free is None:
        return processes
    largest = sorted(files, key=lambda file: -sizes[file])[:_LARGEST]
    needed = _BASE + max(_bytes_to_read(Path(file), sizes[file], reader) for file in largest)
    return max(1, min(processes, int(_SHARE * free / needed)))


def _bytes_to_read(file: Path, size: int, reader: type[BaseReaderWriter]) -> int:
    """Return what reading takes at its peak: the image as it is stored, a copy of it, and nnU-Net's float32.

    nibabel's copy is of float64.
    """
    header = read_header(file)
    if header is None:
        return _UNPACKED * size
    bits = re.search(r"(\d+)-bit", header.kind)
    stored = int(bits[1]) // 8 if bits else 8
    copy = 8 if issubclass(reader, (NibabelIO, NibabelIOWithReorient)) else stored
    return prod(header.size) * header.values * (stored + copy + 4)


def read_case(name: str, case: Case, reader: type[BaseReaderWriter], declared: Collection[int]) -> CaseFacts:
    """Read one case's files."""
    facts, own = CaseFacts(), reader()
    first: Reading | None = None
    for file in case.files:
        is_image = file != case.label
        found = (read_image if is_image else read_label_map)(Path(file), own)
        own_facts = found.facts
        if found.array is None or found.grid is None:
            facts.is_whole = False
        elif is_image:
            facts.channels += [_describe(channel, Path(file).name, found.grid, found.kind) for channel in found.array]
        else:
            values = distinct(found.array)
            facts.segmentation = Segmentation(found.kind, values)
            own_facts += check_values(values, declared, file)
        found.array = None  # the next one needs the memory
        if first is not None:
            own_facts += compare(first, found)
        elif found.grid is not None:
            first = found
        facts.facts += [replace(fact, case=name) for fact in own_facts]
    return facts


def _describe(array: NDArray[Any], file: str, grid: Grid, kind: str) -> Channel:
    # Of the memory where it lies: no copy of it.
    digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
    content = tuple((first, behind) for first, behind in get_bbox_from_mask(array != 0))
    flat = array.reshape(-1)
    lowest, highest = float(flat.min()), float(flat.max())
    if not np.isfinite([lowest, highest]).all():
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return Channel(file, grid, kind, digest, *(float("nan"),) * 5, content)
        lowest, highest = float(flat.min()), float(flat.max())
    low, middle, high = np.percentile(flat[:: 1 + flat.size // _SAMPLE], (0.5, 50, 99.5)).tolist()
    return Channel(file, grid, kind, digest, lowest, highest, low, middle, high, content)
