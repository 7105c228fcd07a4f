"""What is in a file, against what its header says, for every format that nnU-Net reads.

Readers fill up what is missing of a file with zeros, or with whatever lies in memory, and say nothing. Files are read
in pieces here, and nothing of them is kept.
"""

import contextlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path

import nibabel
import numpy as np

from nnunet_plugins.images.facts import Fact
from nnunet_plugins.images.tiff import check_tiff

_PIECE = 2**20
_GZIP = b"\x1f\x8b"
_HEADER = 544  # bytes; the longest of a NIfTI file, and its four bytes for extensions


class CutOffError(Exception):
    """The content ends before its end."""


class DamagedError(Exception):
    """The content is not what its format asks for."""


@dataclass
class Contents:
    """What is known of a file's content.

    Attributes:
        facts: about it; `Fact.file` is the file as it was given.
        has_spacing: the file itself says its spacing.
        hidden: number of voxels of a NIfTI file that are NaN or infinite, which SimpleITK reads as 0.
        is_nifti_2: SimpleITK does not read these.
        size: bytes of the data, unpacked; 0 if the header of such a file is not looked at.
    """

    facts: list[Fact] = field(default_factory=list)
    has_spacing: bool = True
    hidden: int = 0
    is_nifti_2: bool = False
    size: int = 0


def check_contents(file: Path) -> Contents:
    """Compare what is in a file with what its header says.

    Raises:
        OSError: if it cannot be opened.
    """
    found = Contents()
    if file.stat().st_size == 0:
        found.facts.append(Fact("empty", str(file)))
        return found
    check = next((check for ending, check in _CHECKS.items() if file.name.lower().endswith(ending)), None)
    try:
        if check:
            check(file, found)
    except CutOffError as error:
        found.facts.append(Fact("cut off", str(file), str(error)))
    except DamagedError as error:
        found.facts.append(Fact("damaged", str(file), str(error)))
    return found


@dataclass(frozen=True)
class _Data:
    """Where the data of a header are, and how much there is to be.

    Attributes:
        expected: bytes, unpacked.
        zipped: they are compressed.
        place: a file beside the header's; None: they follow the header.
        lines: to pass over, of the file.
        skip: bytes to pass over, unpacked; a negative number: the data are at the end.
    """

    expected: int
    zipped: bool = False
    place: str | None = None
    lines: int = 0
    skip: int = 0


def _check_data(data: _Data, stream: io.BufferedIOBase, file: Path, found: Contents) -> None:
    """Check that there are as many bytes as there are to be.

    Args:
        data: what the header says.
        stream: of the header's file, behind the header.
        file: for messages.
        found: takes the facts.
    """
    with contextlib.ExitStack() as stack:
        if data.place is not None:
            other = file.parent / data.place
            if not other.is_file():
                raise CutOffError(f"its data, {data.place}, are missing")
            stream = stack.enter_context(other.open("rb"))
        for number in range(data.lines):
            if not stream.readline():
                raise CutOffError(f"{number} lines before its data, not {data.lines}")
        if data.zipped:
            number = sum(map(len, _unpacked(stream, 47, file, found)))
        else:
            start = stream.tell()
            number = stream.seek(0, io.SEEK_END) - start
    number = min(number, data.expected) if data.skip < 0 else max(0, number - data.skip)
    _compare(number, data.expected, file, found)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Say what a header lacks, or has wrong."""
    try:
        yield
    except KeyError as error:
        raise DamagedError(f"its header has no {error}") from error
    except ValueError as error:
        raise DamagedError(f"its header cannot be read: {error}") from error


def _compare(number: int, expected: int, file: Path, found: Contents) -> None:
    found.size = expected
    if number < expected:
        raise CutOffError(f"{number} of {expected} bytes")
    if number > expected:
        found.facts.append(Fact("bytes after the end", str(file), f"{number - expected} bytes"))


def _pieces(stream: io.BufferedIOBase) -> Iterator[bytes]:
    while piece := stream.read(_PIECE):
        yield piece


def _unpacked(stream: io.BufferedIOBase, bits: int, file: Path, found: Contents) -> Iterator[bytes]:
    """Yield what is compressed in a stream, of one part after the other, checked to its end.

    Args:
        stream: to read.
        bits: zlib's `wbits`: 31 for gzip, 47 for gzip or zlib.
        file: for messages.
        found: takes the fact that something else follows.
    """
    engine, rest = zlib.decompressobj(bits), b""
    while True:
        piece = engine.unconsumed_tail or rest or stream.read(_PIECE)
        rest = b""
        if not piece:
            raise CutOffError("the compressed part has no end")
        try:
            unpacked = engine.decompress(piece, _PIECE)
        except zlib.error as error:
            raise DamagedError(str(error).partition(": ")[2] or "it cannot be unpacked") from error
        if unpacked:
            yield unpacked
        if engine.eof:
            rest = engine.unused_data
            if len(rest) < len(_GZIP):
                rest += stream.read(_PIECE)
            if rest.startswith(_GZIP):
                engine = zlib.decompressobj(bits)
                continue
            if rest.strip(b"\0"):
                found.facts.append(Fact("bytes after the end", str(file), "after the compressed part"))
            return


# NIfTI.


def _check_nifti(file: Path, found: Contents) -> None:
    with file.open("rb") as stream:
        zipped = stream.read(2) == _GZIP
        stream.seek(0)
        pieces = _unpacked(stream, 31, file, found) if zipped else _pieces(stream)
        head = b""
        for piece in pieces:
            head += piece
            if len(head) >= _HEADER:
                break
        kinds = {b"n+1\0": (nibabel.Nifti1Header, 344), b"n+2\0": (nibabel.Nifti2Header, 4)}
        kind = next((kind for magic, (kind, place) in kinds.items() if head[place : place + 4] == magic), None)
        if kind is None:
            if zipped and not head:
                raise CutOffError("nothing is in it")
            if zipped and head.startswith(_GZIP):
                raise DamagedError("it is compressed twice")
            for _ in pieces:  # whether it is whole is worth to know all the same
                pass
            if _could_be_nifti(head):
                raise CutOffError(f"{len(head)} bytes, less than a header")
            return  # perhaps an older format, which the reader knows or not
        if file.name.lower().endswith(".gz") and not zipped:
            found.facts.append(Fact("not compressed", str(file)))
        found.is_nifti_2 = kind is nibabel.Nifti2Header
        if len(head) < kind.template_dtype.itemsize:
            raise CutOffError(f"{len(head)} bytes, less than a header")
        _check_nifti_data(kind.from_fileobj(io.BytesIO(head), check=False), head, pieces, file, found)


def _could_be_nifti(head: bytes) -> bool:
    return len(head) < 348 and head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c")


def _check_nifti_data(
    header: "nibabel.Nifti1Header", head: bytes, pieces: Iterator[bytes], file: Path, found: Contents
) -> None:
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7:
        raise DamagedError(f"its header says {rank} dimensions")
    sizes = [max(1, int(size)) for size in header["dim"][1 : rank + 1]]
    lengths = [float(abs(length)) for length in header["pixdim"][1 : min(rank, 3) + 1]]
    found.has_spacing = all(isfinite(length) and length > 0 for length in lengths)
    try:
        kind = header.get_data_dtype()
    except Exception:  # numbers of a kind that nibabel does not know
        kind = None
    size = kind.itemsize if kind is not None and kind.itemsize else max(1, int(header["bitpix"]) // 8)
    start, first = float(header["vox_offset"]), header.template_dtype.itemsize + 4  # bytes that tell of extensions
    if not start >= first:
        # SimpleITK reads from the header's end then, nibabel from its beginning.
        raise DamagedError(f"its header says that the voxels begin at byte {start:g}, which is in the header")
    offset = int(min(start, 2**63))
    floats = kind if kind is not None and kind.kind == "f" and kind.itemsize in (4, 8) else None
    expected = offset + prod(sizes) * size
    number, rest = 0, b""
    for piece in _chained(head, pieces):
        data = piece[max(0, offset - number) : max(0, expected - number)]
        number += len(piece)
        if floats is not None and data:
            data = rest + data
            whole = len(data) // size * size
            rest = data[whole:]
            found.hidden += whole // size - int(np.count_nonzero(np.isfinite(np.frombuffer(data[:whole], floats))))
    _compare(number, expected, file, found)


def _chained(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from pieces


# MetaImage.

_META_SIZES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
_META_SIZES |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}


def _check_meta(file: Path, found: Contents) -> None:
    head: dict[str, str] = {}
    with file.open("rb") as stream:
        while "ElementDataFile" not in head:
            key, separator, value = stream.readline(_PIECE).decode("latin-1").partition("=")
            if not separator:
                break
            head[key.strip()] = value.strip()
        if "ElementDataFile" not in head:
            raise CutOffError("its header has no end")
        found.has_spacing = "ElementSpacing" in head or "ElementSize" in head
        with _in_words():
            sizes = [int(size) for size in head["DimSize"].split()]
            kind = head["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
            if kind not in _META_SIZES:
                raise DamagedError(f"its header says numbers of the type {kind}, which there is not")
            expected = prod(sizes) * _META_SIZES[kind] * int(head.get("ElementNumberOfChannels", "1"))
            skip = int(head.get("HeaderSize") or 0)
        place = head["ElementDataFile"]
        zipped = head.get("CompressedData", "False").lower() == "true"
        if head.get("BinaryData", "True").lower() == "false" or place == "LIST" or "%" in place:
            return
        if zipped and skip:
            raise DamagedError("its data are compressed and do not begin with the file, which ITK cannot unpack")
        data = _Data(expected, zipped, None if place.upper() == "LOCAL" else place, skip=skip)
        _check_data(data, stream, file, found)


# NRRD.

_NRRD_SIZES = {1: "char|signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t"}
_NRRD_SIZES[2] = "short|short int|signed short|signed short int|int16|int16_t|ushort|unsigned short|unsigned short int"
_NRRD_SIZES[2] += "|uint16|uint16_t"
_NRRD_SIZES[4] = "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float"
_NRRD_SIZES[8] = "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t|ulonglong"
_NRRD_SIZES[8] += "|unsigned long long|unsigned long long int|uint64|uint64_t|double"


def _check_nrrd(file: Path, found: Contents) -> None:
    head: dict[str, str] = {}
    with file.open("rb") as stream:
        if not stream.readline(_PIECE).startswith(b"NRRD"):
            return  # which the reader tells
        for line in stream:
            text = line.decode("latin-1").strip()
            if not text:
                break
            key, separator, value = text.partition(": ")
            if separator and not text.startswith("#"):
                head[key.lower()] = value.strip()
        else:
            if "data file" not in head and "datafile" not in head:
                raise CutOffError("its header has no end")
        with _in_words():
            sizes = [int(size) for size in head["sizes"].split()]
            size = next((size for size, names in _NRRD_SIZES.items() if head["type"] in names.split("|")), None)
            lines, skip = (int(head.get(f"{what} skip", head.get(f"{what}skip", "0"))) for what in ("line", "byte"))
        # Of some axes only, as far as they are known; SimpleITK makes 1 mm of the others.
        directions = re.findall(r"\([^)]*\)", head.get("space directions", ""))
        lengths = [part for part in head.get("spacings", "").split() if part.lower() != "nan"]
        found.has_spacing = max(len(directions), len(lengths)) >= min(3, len(sizes))
        encoding = head.get("encoding", "raw")
        place = head.get("data file") or head.get("datafile")
        if (
            size is None
            or encoding not in ("raw", "gz", "gzip")
            or (place and (place.startswith("LIST") or "%" in place))
        ):
            return
        _check_data(_Data(prod(sizes) * size, encoding != "raw", place, lines, skip), stream, file, found)


# GIPL.

_GIPL_SIZES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}


def _check_gipl(file: Path, found: Contents) -> None:
    with file.open("rb") as stream:
        head = stream.read(256)
        if len(head) < 256:
            raise CutOffError(f"{len(head)} bytes, less than a header")
        sizes, kind = np.frombuffer(head, ">u2", 4), int(np.frombuffer(head, ">u2", 1, 8)[0])
        if kind not in _GIPL_SIZES:
            raise DamagedError(f"its header says numbers of the type {kind}, which there is not")
        lengths = np.frombuffer(head, ">f4", 3, 10)
        found.has_spacing = bool((np.isfinite(lengths) & (lengths > 0)).all())
        _check_data(_Data(prod(max(1, int(size)) for size in sizes) * _GIPL_SIZES[kind]), stream, file, found)


def _check_tif(file: Path, found: Contents) -> None:
    found.has_spacing = False
    if fault := check_tiff(file):
        raise CutOffError(fault)


def _check_natural(file: Path, found: Contents) -> None:
    """Formats with checksums, or whose reader checks the length itself."""
    found.has_spacing = False


_CHECKS: dict[str, Callable[[Path, Contents], None]] = {
    ".nii.gz": _check_nifti,
    ".nii": _check_nifti,
    ".mha": _check_meta,
    ".mhd": _check_meta,
    ".nrrd": _check_nrrd,
    ".nhdr": _check_nrrd,
    ".gipl": _check_gipl,
    ".tif": _check_tif,
    ".tiff": _check_tif,
    ".png": _check_natural,
    ".bmp": _check_natural,
}
