"""Read a table that says which cases belong together, such as all those of one patient.

Names are names: a case may be called NA or 007. Letters such as ü count as equal however they are encoded, in one
piece or as a letter and its accent, for file systems and spreadsheets differ in that. People make such tables by
spreadsheet, so what is wrong with one is said by its row, with a hint. Loads nothing heavy.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunet_plugins.errors import InputError
from nnunet_plugins.images.finding import composed

GROUPS = "groups.csv"
"""A dataset's own table of its cases' groups, in its folder of nnUNet_raw."""

COLUMNS = ("case", "group")

_SAVE = "save it as CSV with commas, in UTF-8"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_groups(file: Path) -> dict[str, str]:
    """Return the group of every case, from a table with the columns `case` and `group`.

    Raises:
        InputError: if the table is not such a one, or has a case twice or without a group.
    """
    rows = csv.reader(io.StringIO(_read(file), newline=""), strict=True)
    groups: dict[str, str] = {}
    try:
        head = [name.strip().lower() for name in next(rows, [])]
        places = _places(file, head)
        for row in rows:
            if not any(cell.strip() for cell in row):  # as spreadsheets end their tables
                continue
            place = f"in row {rows.line_num}"
            if len(row) > len(head) and any(cell.strip() for cell in row[len(head) :]):
                raise InputError(
                    f"{file} has {len(row)} cells {place}, its head has {len(head)}; a name with a comma stands in "
                    f"quotes: {', '.join(row)}"
                )
            case, group = ((composed(row[at].strip()) if at < len(row) else "") for at in places)
            problems = {"no case": not case, "no group": not group, "a case a second time": case in groups}
            for problem in (name for name, is_so in problems.items() if is_so):
                raise InputError(f"{file} has {problem} {place}: {case}, {group}")
            groups[case] = group
    except csv.Error as error:
        raise InputError(f"{file} cannot be read in row {rows.line_num}: {error}; {_SAVE}") from error
    if not groups:
        raise InputError(f"{file} has no row below its head")
    return groups


def groups_of(cases: Iterable[str], groups: Mapping[str, str]) -> dict[str, str]:
    """Return the groups of cases, of those that a table from `read_groups` has."""
    return {case: groups[composed(case)] for case in cases if composed(case) in groups}


def _read(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    if content.startswith(b"PK"):
        raise InputError(f"{file} is a spreadsheet, or another archive, and no CSV file; {_SAVE}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise InputError(f"{file} is in UTF-16, or no text; {_SAVE}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        line = content.splitlines()[row - 1].decode("latin-1").strip()
        raise InputError(f"{file} is not in UTF-8, see row {row}: {line}; {_SAVE}") from error


def _places(file: Path, head: list[str]) -> list[int]:
    """Return in which cells of a row the columns are."""
    if not head:
        raise InputError(f"{file} is empty; it needs the columns 'case' and 'group'")
    hint = ""
    if set(COLUMNS) <= set(head):
        twice = [name for name in COLUMNS if head.count(name) > 1]
        if not twice:
            return [head.index(name) for name in COLUMNS]
        hint = f"; {twice[0]!r} stands there twice"
    else:
        found = [name for mark, name in _SEPARATORS.items() if mark in "".join(head)]
        if found:
            hint = f"; its cells are separated by {found[0]}: {_SAVE}"
    raise InputError(f"{file} needs the columns 'case' and 'group', it has {', '.join(head)}{hint}")
