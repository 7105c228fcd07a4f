"""What is in a file, against what its header says, for every format that nnU-Net reads.

Readers fill up what is missing of a file with zeros, or with whatever lies in memory, and say nothing. Files are read
in pieces here, and nothing of them is kept.
"""

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
    """

    facts: list[Fact] = field(default_factory=list)
    has_spacing: bool = True
    hidden: int = 0
    is_nifti_2: bool = False


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


def _whole(pieces: Iterator[bytes], expected: int, file: Path, found: Contents) -> None:
    """Check that there are as many bytes as expected."""
    number = sum(map(len, pieces))
    _compare(number, expected, file, found)


def _compare(number: int, expected: int, file: Path, found: Contents) -> None:
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
        bits: zlib's `wbits`: 31 for gzip, 15 for zlib.
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
            rest = engine.unused_data or stream.read(_PIECE)
            if bits == 31 and rest.startswith(_GZIP):
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
        named = file.name.lower().endswith(".gz")
        if named and not zipped:
            found.facts.append(Fact("not compressed", str(file)))
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
            for _ in pieces:  # whether it is whole is worth to know all the same
                pass
            if _could_be_nifti(head):
                raise CutOffError(f"{len(head)} bytes, less than a header")
            return  # perhaps an older format, which the reader knows or not
        found.is_nifti_2 = kind is nibabel.Nifti2Header
        if len(head) < kind.template_dtype.itemsize:
            raise CutOffError(f"{len(head)} bytes, less than a header")
        _check_nifti_data(kind.from_fileobj(io.BytesIO(head), check=False), head, pieces, file, found)


def _could_be_nifti(head: bytes) -> bool:
    return len(head) < 348 and head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c"[:4])


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
    start = float(header["vox_offset"])
    offset = max(int(start) if isfinite(start) else 0, header.template_dtype.itemsize)
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
        while len(line := stream.readline(_PIECE)) and "ElementDataFile" not in head:
            key, separator, value = line.decode("latin-1").partition("=")
            if not separator:
                break
            head[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        if "ElementDataFile" not in head:
            raise CutOffError("its header has no end")
        found.has_spacing = "ElementSpacing" in head or "ElementSize" in head
        try:
            sizes = [int(size) for size in head["DimSize"].split()]
            size = _META_SIZES[head["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")]
            expected = prod(sizes) * size * int(head.get("ElementNumberOfChannels", "1"))
        except (KeyError, ValueError) as error:
            raise DamagedError(f"its header lacks {error}") from error
        place = head["ElementDataFile"]
        if head.get("BinaryData", "True").lower() == "false" or place == "LIST" or "%" in place:
            return
        zipped = head.get("CompressedData", "False").lower() == "true"
        if place.upper() == "LOCAL":
            _check_data(stream, zipped, expected, file, found)
            return
        data = file.parent / place
        if not data.is_file():
            raise CutOffError(f"its data, {place}, are missing")
        with data.open("rb") as other:
            skip = int(head.get("HeaderSize", "0") or 0)
            other.seek(max(0, skip) if skip >= 0 else max(0, data.stat().st_size - expected))
            _check_data(other, zipped, expected, file, found)


def _check_data(stream: io.BufferedIOBase, zipped: bool, expected: int, file: Path, found: Contents) -> None:
    _whole(_unpacked(stream, 47, file, found) if zipped else _pieces(stream), expected, file, found)


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
        directions = re.findall(r"\([^)]*\)", head.get("space directions", ""))
        lengths = [part for part in head.get("spacings", "").split() if part.lower() != "nan"]
        found.has_spacing = len(directions) >= 2 or len(lengths) >= 2
        try:
            sizes = [int(size) for size in head["sizes"].split()]
            kind = next(size for size, names in _NRRD_SIZES.items() if head["type"] in names.split("|"))
        except (KeyError, ValueError) as error:
            raise DamagedError(f"its header lacks {error}") from error
        except StopIteration:
            return
        encoding = head.get("encoding", "raw")
        place = head.get("data file") or head.get("datafile")
        if encoding not in ("raw", "gz", "gzip") or (place and (place.startswith("LIST") or "%" in place)):
            return
        zipped, expected = encoding != "raw", prod(sizes) * kind
        if place is None:
            _check_data(stream, zipped, expected, file, found)
            return
        data = file.parent / place
        if not data.is_file():
            raise CutOffError(f"its data, {place}, are missing")
        with data.open("rb") as other:
            skip = int(head.get("byte skip", head.get("byteskip", "0")))
            other.seek(data.stat().st_size - expected if skip < 0 and not zipped else max(0, skip))
            _check_data(other, zipped, expected, file, found)


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
        _whole(_pieces(stream), prod(max(1, int(size)) for size in sizes) * _GIPL_SIZES[kind], file, found)


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
