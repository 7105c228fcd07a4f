"""Draw Dice against the steps of the fit, from the page's own table, as an SVG: `python docs/draw_steps.py`."""

import io
from pathlib import Path

import matplotlib
from matplotlib import pyplot

PAGE = Path(__file__).parent / "implicit-networks.md"
FILE = Path(__file__).parent / "images" / "implicit_steps.svg"
LINES = {"atlas": ("atlas", "grey"), "`nnUNetTrainer_": ("U-Net", "black")}
COLOURS = {"MetaSeg": "#0072b2", "NISF": "#d55e00"}


def rows() -> list[list[str]]:
    """Return the cells of the tables of the page."""
    return [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]


def describe() -> str:
    """Return what is drawn, in words and numbers."""
    wanted = ("MetaSeg, which", "NISF, 100", *LINES)
    return "; ".join(" ".join(row) for row in rows() if row[0].startswith(wanted))


def draw() -> str:
    """Return the SVG."""
    matplotlib.use("svg")
    table = rows()
    start = next(number for number, row in enumerate(table) if row[:2] == ["steps", "0"])
    steps = [int(cell) for cell in table[start][1:]]
    places = range(len(steps))
    with pyplot.style.context("default"), matplotlib.rc_context({"svg.hashsalt": "steps", "svg.fonttype": "none"}):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
        for name, *cells in table[start + 2 : start + 4]:
            found = [(place, float(cell)) for place, cell in zip(places, cells, strict=True) if cell]
            short = name.partition(",")[0]
            axes.plot(*zip(*found, strict=True), marker="o", label=name, color=COLOURS[short])
        for begin, (name, colour) in LINES.items():
            for row in table:
                if row[0].startswith(begin) and row[-1].startswith("0."):
                    axes.axhline(float(row[-1]), linestyle="--", color=colour, linewidth=1)
                    axes.text(len(steps) - 1, float(row[-1]) + 0.003, name, ha="right", color=colour)
        axes.set_xticks(places, [str(n) for n in steps])
        axes.set_xlabel("steps of the fit at inference")
        axes.set_ylabel("mean Dice of 42 cases")
        axes.set_ylim(bottom=0.53)
        axes.legend(loc="lower right", frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Description": describe()})
        pyplot.close(figure)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    FILE.write_text(draw())
