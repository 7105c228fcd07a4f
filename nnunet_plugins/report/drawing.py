"""What all figures of a report have in common: looks of the algorithms, a drawing with a row for each of them, SVG.

Ink is `currentColor`, so that a figure takes the colour of the text around it, on a light page and on a dark one, and
is black in a file of its own. Text stays text. Ids begin with a hash of the figure's key, so that many figures can
stand in one page. Algorithms differ in colour and in marker or line style, so nothing depends on colours alone.
"""

import html
import io
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A87900", "#2E96D0", "#CC79A7")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, without yellow, orange and sky darkened: all have
a contrast of 3 and more with a white page and with a dark one."""
INK = "#24292f"
"""Stands for currentColor until the SVG is written; the colour of the baseline."""
MARKERS = {"o": "●", "s": "■", "D": "◆", "P": "✚", "X": "✖", "*": "★", "p": "⬟"}
"""Matplotlib's names of the markers, and letters that look like them; no triangles, which stand for verdicts."""
WIDTH = 4.7
"""Inches."""

_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_SETTINGS: Any = {
    "figure.dpi": 100,  # the layout depends on it, and a page not on what its maker has set
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Style:
    """How one algorithm looks in every figure.

    Attributes:
        colour: as matplotlib takes it.
        marker: matplotlib's name of the marker.
        dashes: matplotlib's line style.
    """

    colour: str
    marker: str
    dashes: Any


def styles(algorithms: Sequence[str], baseline: str) -> dict[str, Style]:
    """Return a style for every algorithm; the baseline has the colour of the text, and no two others are alike."""
    others = [name for name in algorithms if name != baseline]
    found = {baseline: Style(INK, "o", "solid")}
    for n, name in enumerate(others):
        # 6 colours, 7 markers and 5 dashes have no common divisor: pairs repeat after 42 and after 30 algorithms.
        found[name] = Style(COLOURS[n % len(COLOURS)], list(MARKERS)[(n + 1) % len(MARKERS)], _DASHES[n % len(_DASHES)])
    return found


@contextmanager
def drawing() -> Iterator[None]:
    """Set what all figures have in common."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Letters that matplotlib's font lacks are no matter: the browser's font is the one that shows.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def named_rows(names: Sequence[str], extra: int = 0) -> tuple[Figure, Axes]:
    """Return a figure with a row for each name, the first one on top."""
    labels = [wrapped(name, 24) for name in names]
    height = max(0.36, 0.16 * max((label.count("\n") + 1 for label in labels), default=1) + 0.06)
    figure = Figure(figsize=(WIDTH, 0.75 + height * (len(names) + extra)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.4, -0.6)
    for row, label in enumerate(labels):
        lines = label.split("\n")
        # One text per line: only these keep their right edge in whatever font the browser has.
        for n, line in enumerate(lines):
            below = 11.5 * ((len(lines) - 1) / 2 - n)
            axes.annotate(
                line,
                (0, row),
                (-6, below),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                va="center_baseline",
                annotation_clip=False,
            )
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def wrapped(name: str, width: int) -> str:
    """Return a name in lines of about this width, three of them at most; trainers' names break before a capital."""
    lines: list[str] = []
    for words in textwrap.wrap(name, width, break_long_words=False):
        lines.append("")
        for piece in split_name(words):
            if lines[-1] and len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    lines = [part for line in lines for part in textwrap.wrap(line, width)]
    return "\n".join(lines[:2] + ([lines[2] + "…" * (len(lines) > 3)] if len(lines) > 2 else []))


def split_name(name: str) -> list[str]:
    """Return the pieces of a name between which a line may end: between a small letter and a capital, after "_"."""
    return re.split(r"(?<=[a-z])(?=[A-Z])|(?<=_)", name)


def to_svg(figure: Figure, key: str, title: str, description: str) -> str:
    """Return a figure as SVG that can stand in a page or in a file of its own."""
    buffer = io.StringIO()
    if layout := figure.get_layout_engine():
        # Once: before it saves, matplotlib would draw the whole figure a first time for the sake of its layout.
        layout.execute(figure)
        figure.set_layout_engine("none")
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    start = body.index(">") + 1
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body[:start])
    assert box is not None
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body[start:], flags=re.DOTALL)
    # Short, because every point of a figure refers to one.
    prefix = f"f{zlib.crc32(key.encode()):08x}"
    ids = {name: f"{prefix}-{n}" for n, name in enumerate(dict.fromkeys(re.findall(r'<[^<>]*\bid="([^"]*)"', inside)))}

    def adapt(tag: re.Match[str]) -> str:
        named = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', lambda found: found[1] + ids[found[2]], tag[0])
        named = named.replace(INK, "currentColor").replace("'DejaVu Sans'", "'Helvetica Neue', Arial, sans-serif")
        return re.sub(r"(\.\d\d)\d+", r"\1", named)  # hundredths of a point are enough

    # In tags only: a name may hold anything.
    inside = re.sub(r"<[^<>]*>", adapt, re.sub(r">\s+<", "><", inside))
    width, height = box.groups()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} '
        f'{height}" width="{width}pt" height="{height}pt" stroke-linejoin="round" stroke-linecap="butt" role="img" '
        f'aria-labelledby="{prefix}-title" aria-describedby="{prefix}-desc">'
        f'<title id="{prefix}-title">{html.escape(title)}</title>'
        f'<desc id="{prefix}-desc">{html.escape(description)}</desc>{inside}'
    )
