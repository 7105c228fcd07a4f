"""The figure of a network's gates over its training: which of its connections it opens and which it closes."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_plugins.report.drawing import COLOURS, INK, WIDTH, drawing, to_svg, wrapped
from nnunet_plugins.report.record import GATE

_POINTS = 120  # of one line at most
_KINDS = {
    "along one scale": (INK, "solid"),
    "from a finer scale": (COLOURS[1], (0, (5, 1.5))),
    "from a coarser scale": (COLOURS[0], (0, (1.5, 1.2))),
    "dense shortcut": (COLOURS[2], (0, (6, 1.5, 1.5, 1.5))),
    "other": (COLOURS[3], (0, (3, 1, 1, 1, 1, 1))),
}


def gates_in(curves: pd.DataFrame) -> list[str]:
    """Return the algorithms of which the curves have gates."""
    having = curves.filter(regex=f"^{GATE}").notna().any(axis=1)
    return [str(name) for name in dict.fromkeys(curves.loc[having, "algorithm"])]


def kind_of(gate: str) -> str:
    """Return what a gate of a fabric leads along, by its name, such as "cell (2,1) <- stem (0,1)"."""
    found = re.fullmatch(r"(?:cell \((\d+),(\d+)\)|output) <- (?:cell|stem) \((\d+),(\d+)\)", gate)
    if not found:
        return "other"
    # The output comes right after the last cells, at the finest scale.
    column, branch = (int(found[1]), int(found[2])) if found[1] else (int(found[3]) + 1, 1)
    from_column, from_branch = int(found[3]), int(found[4])
    if branch != from_branch:
        return "from a finer scale" if branch > from_branch else "from a coarser scale"
    return "along one scale" if column - from_column == 1 else "dense shortcut"


def gates_over_training(curves: pd.DataFrame, names: Sequence[str], *, key: str, title: str) -> str:
    """Draw every gate over the epochs, the mean of all folds and seeds, a panel for each algorithm.

    Args:
        curves: columns of `record.CURVES`, and those of gates.
        names: of the algorithms that have gates.
        key: unique in the page, for the ids.
        title: for readers who do not see the figure.
    """
    with drawing():
        height = 2.6 * len(names) + 1.1
        figure = Figure(figsize=(WIDTH, height))
        edges = {"left": 0.12, "right": 0.98, "top": 1 - 0.3 / height, "bottom": 1.05 / height}
        rows = figure.subplots(len(names), 1, sharex=True, squeeze=False, gridspec_kw=edges)[:, 0]
        kinds: dict[str, None] = {}
        for axes, name in zip(rows, names, strict=True):
            table = _means(curves[curves["algorithm"] == name])
            for gate in table:
                kind = kind_of(str(gate))
                kinds[kind] = None
                colour, dashes = _KINDS[kind]
                marker = "o" if len(table) == 1 else ""
                values = table[gate].to_numpy()
                axes.plot(table.index, values, color=colour, linestyle=dashes, linewidth=0.9, marker=marker)
            axes.set_title(wrapped(name, 60), fontsize=9)
            axes.set_ylabel("Gate, 0 to 1")
        rows[-1].set_xlabel("Epoch")
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        shown = [kind for kind in _KINDS if kind in kinds]
        lines = [Line2D([], [], color=_KINDS[kind][0], linestyle=_KINDS[kind][1]) for kind in shown]
        figure.legend(lines, shown, loc="lower center", ncols=2, borderpad=0, handlelength=3.2)
        return to_svg(figure, key, title, "Every gate over the epochs, by what it leads along")


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """Return epochs x gates, the mean of all trainings where all have come so far; of many epochs means of several."""
    numbers = runs.filter(regex=f"^{GATE}").apply(pd.to_numeric, errors="coerce")
    table = numbers.set_axis([column.removeprefix(GATE) for column in numbers], axis=1).dropna(how="all", axis=1)
    groups = table.dropna(how="all").groupby(runs["epoch"])
    means = groups.mean()[groups.size() == groups.size().max()]
    width = -(-len(means) // _POINTS)
    return means.groupby(np.arange(len(means)) // width * width).mean().set_axis(means.index[::width])
