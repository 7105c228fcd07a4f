"""Whether a TIFF file is whole: its list of pages to the end, and the data of each page.

tifffile leaves out pages that it does not find. What it is about: TIFF revision 6.0, section 2; BigTIFF has the same
with eight bytes for places and numbers.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_PLACES, _LENGTHS = (273, 324), (279, 325)  # of strips, and of tiles
_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


@dataclass(frozen=True)
class _Layout:
    order: str
    big: bool

    @property
    def place(self) -> str:
        """Format of a place in the file."""
        return f"{self.order}{'Q' if self.big else 'I'}"

    @property
    def number(self) -> str:
        """Format of the number of entries of a page."""
        return f"{self.order}{'Q' if self.big else 'H'}"


def check_tiff(file: Path) -> str:
    """Return what is missing of a TIFF file, in words; nothing if it is whole, or no TIFF file at all."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        try:
            return _walk(stream, size)
        except struct.error:
            return "its list of pages has no end"


def _walk(stream: BinaryIO, size: int) -> str:
    head = stream.read(8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return ""
    version = struct.unpack(f"{order}H", head[2:4])[0]
    layout = _Layout(order, version == 43)
    if version not in (42, 43):
        return ""
    place = struct.unpack(layout.place, stream.read(8) if layout.big else head[4:8])[0]
    seen: set[int] = set()
    while place:
        number = len(seen) + 1
        if place >= size:
            return f"page {number} is missing"
        if place in seen:
            return f"instead of page {number}, an earlier one follows again"
        seen.add(place)
        stream.seek(place)
        place, fault = _read_page(stream, layout, size)
        if fault:
            return f"page {number}: {fault}"
    return "" if seen else "it has no page"


def _read_page(stream: BinaryIO, layout: _Layout, size: int) -> tuple[int, str]:
    """Return where the next page is (0 after the last one), and what is missing of this one."""
    length = struct.calcsize(layout.place)
    entry = 4 + 2 * length
    (number,) = struct.unpack(layout.number, stream.read(struct.calcsize(layout.number)))
    if number * entry > size:
        return 0, "its description is damaged"
    table = stream.read(number * entry)
    (following,) = struct.unpack(layout.place, stream.read(length))
    values: dict[int, tuple[int, ...]] = {}
    for start in range(0, number * entry, entry):
        tag, kind = struct.unpack_from(f"{layout.order}HH", table, start)
        (count,) = struct.unpack_from(layout.place, table, start + 4)
        total = count * _SIZES.get(kind, 0)
        if total <= length:
            data = table[start + 4 + length : start + 4 + length + total]
        else:
            (where,) = struct.unpack_from(layout.place, table, start + 4 + length)
            if where + total > size:
                return 0, "its description is cut off"
            if tag not in (*_PLACES, *_LENGTHS):
                continue
            stream.seek(where)
            data = stream.read(total)
        if tag in (*_PLACES, *_LENGTHS) and kind in _LETTERS:
            values[tag] = struct.unpack(f"{layout.order}{count}{_LETTERS[kind]}", data)
    for places, lengths in zip(_PLACES, _LENGTHS, strict=True):
        for begin, extent in zip(values.get(places, ()), values.get(lengths, ()), strict=False):
            if begin + extent > size:
                return 0, f"{max(0, size - begin)} of {extent} bytes of its data"
    return following, ""
