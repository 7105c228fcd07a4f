"""Tables of the page: cells that know how they are sorted, marked and emphasised, made of the tables of all files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.drawing import INK, MARKERS, Style
from nnunet_plugins.report.roles import describe_roles
from nnunet_plugins.report.showing import Section
from nnunet_plugins.report.words import DASH, NOWHERE, UNMATCHED

_TOLD = ("baseline", "twin", "own plan", "one pass", "one for many", "atlas")  # roles that a name does not tell
_NUMBER = re.compile(r"(?:[<>]|[+▲▼≈] ?)?(-?[\d.]+)(?: \[.*\]| \(.*\)| ± [\d.–]+|/\d+/\d+)?")  # noqa: RUF001 - a dash


_NAMES = ("Algorithm", "Leader")  # columns of algorithms


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: to show.
        value: to sort by; None for what is missing.
        note: below the text, smaller.
        mark: the marker of an algorithm in the figures.
        colour: of the marker.
        best: the best of its kind.
        link: an anchor in the page.
    """

    text: str
    value: float | str | None
    note: str = ""
    mark: str = ""
    colour: str = ""
    best: bool = False
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: what it shows.
        headings: of the columns.
        numeric: which columns hold numbers.
        rows: of cells; the first one, or the one under "Algorithm", is the row's heading.
        heading: number of that column.
        folded: shown when asked for.
        note: below the caption.
    """

    caption: str
    headings: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]
    heading: int
    folded: bool
    note: str = ""


def make_table(section: Section, looks: Mapping[str, Style], *, folded: bool) -> Table:
    """Return a table of texts as one of cells."""
    headings = [str(name) for name in section.table.columns]
    columns = [[str(text) for text in section.table.iloc[:, number]] for number in range(len(headings))]
    values = [[_number(text) for text in column] for column in columns]
    numeric = [
        any(value is not None or text == DASH for value, text in zip(column, texts, strict=True))
        and all(
            value is not None or text in (DASH, NOWHERE, UNMATCHED, "")
            for value, text in zip(column, texts, strict=True)
        )
        for column, texts in zip(values, columns, strict=True)
    ]
    rows = []
    for number, (texts, numbers) in enumerate(zip(zip(*columns, strict=True), zip(*values, strict=True), strict=True)):
        keys = [one if is_number else text for text, one, is_number in zip(texts, numbers, numeric, strict=True)]
        bold = [number in section.best.get(name, ()) for name in headings]
        named = [looks.get(text) if name in _NAMES else None for name, text in zip(headings, texts, strict=True)]
        rows.append([*map(_cell, texts, keys, named, bold, numeric)])
    row_heading = headings.index("Algorithm") if "Algorithm" in headings else 0
    return Table(section.caption, headings, numeric, rows, row_heading, folded)


def _cell(text: str, key: float | str | None, look: Style | None, best: bool, is_number: bool) -> Cell:
    if look is None:
        number, bracket, note = text.partition(" (")
        return Cell(number, key, f"({note}", best=best) if is_number and bracket else Cell(text, key, best=best)
    return Cell(text, key, mark=MARKERS[look.marker], colour="inherit" if look.colour == INK else look.colour)


def _number(text: str) -> float | None:
    """Return the number that a cell begins with, if it is a cell with a number."""
    match = _NUMBER.fullmatch(text.replace("−", "-"))  # noqa: RUF001 - a minus sign
    try:
        return float(match.group(1)) if match else None
    except ValueError:  # such as 1.2.3
        return None


def with_notes(table: Table, comparison: Comparison) -> Table:
    """Return the results with role and flags below the names, where there is something to say."""
    rows, roles = [], describe_roles(comparison)
    twins = comparison.twins.index.unique("against")
    for row in table.rows:
        name = row[table.heading]
        role, flags = comparison.board.loc[name.text, ["role", "flags"]]
        words = [roles[name.text]] if role in _TOLD or name.text in twins else []
        cells = list(row)
        cells[table.heading] = replace(name, note="; ".join([*words, *([flags] if flags else [])]))
        rows.append(cells)
    return replace(table, rows=rows)
