"""The figures of a network's gates: which of its connections it opens and which it closes, over its training.

Both take `curves`, with the columns of `record.CURVES` and those of gates, the `names` of the algorithms that have
gates, and what all figures take (`figures.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_plugins.networks.fabric_names import Place, ends_of
from nnunet_plugins.report.drawing import COLOURS, INK, WIDTH, drawing, to_svg, wrapped
from nnunet_plugins.report.record import GATE

_POINTS = 120  # of one line at most
_WIDEST = 5.0  # points, of a line whose gate is open
_KINDS: dict[str, tuple[str, Any]] = {
    "along one scale": (INK, "solid"),
    "from a finer scale": (COLOURS[1], (0, (5, 1.5))),
    "from a coarser scale": (COLOURS[0], (0, (1.5, 1.2))),
    "dense shortcut": (COLOURS[2], (0, (6, 1.5, 1.5, 1.5))),
    "outside the fabric": (COLOURS[3], (0, (3, 1, 1, 1, 1, 1))),
}


def gates_in(curves: pd.DataFrame) -> list[str]:
    """Return the algorithms of which the curves have gates."""
    having = curves.filter(regex=f"^{GATE}").notna().any(axis=1)
    return [str(name) for name in dict.fromkeys(curves.loc[having, "algorithm"])]


def kind_of(gate: str) -> str:
    """Return what a gate leads along, by its name."""
    ends = ends_of(gate)
    if ends is None:
        return "outside the fabric"
    (from_column, from_branch), (column, branch) = ends
    if branch != from_branch:
        return "from a finer scale" if branch > from_branch else "from a coarser scale"
    return "along one scale" if column - from_column == 1 else "dense shortcut"


def gates_over_training(curves: pd.DataFrame, names: Sequence[str], *, key: str, title: str) -> str:
    """Draw every gate over the epochs, the mean of all folds and seeds, a panel for each algorithm."""
    with drawing():
        figure = Figure(figsize=(WIDTH, 2.6 * len(names) + 1.1), layout="constrained")
        rows = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
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
        _legend(figure, list(kinds))
        return to_svg(figure, key, title, "Every gate over the epochs, by what it leads along")


def wired(curves: pd.DataFrame, names: Sequence[str], *, key: str, title: str) -> str:
    """Draw fabrics as their gates wire them at the end, the wider a line the more open its gate; empty without any."""
    fabrics = {}
    for name in names:
        last = _means(curves[curves["algorithm"] == name]).iloc[-1]
        gates = [(str(gate), float(value), ends_of(str(gate))) for gate, value in last.items()]
        if any(places for *_, places in gates):
            fabrics[name] = gates
    if not fabrics:
        return ""
    with drawing():
        figure = Figure(figsize=(WIDTH, 2.6 * len(fabrics) + 0.7), layout="constrained")
        rows = figure.subplots(len(fabrics), 1, squeeze=False)[:, 0]
        kinds: dict[str, None] = {}
        for axes, (name, gates) in zip(rows, fabrics.items(), strict=True):
            places: dict[Place, None] = {}
            for gate, value, both in gates:
                if both is None:
                    continue
                source, target = both
                places |= {source: None, target: None}
                kind = kind_of(gate)
                kinds[kind] = None
                bend = -0.25 if kind == "dense shortcut" else 0.0  # around the cells between
                axes.annotate(
                    "",
                    (target[0], -target[1]),
                    (source[0], -source[1]),
                    arrowprops={
                        "arrowstyle": "-",
                        "connectionstyle": f"arc3,rad={bend}",
                        "color": _KINDS[kind][0],
                        "linewidth": _WIDEST * value,
                    },
                )
            axes.plot([x for x, _ in places], [-y for _, y in places], "s", color=INK, markersize=7)
            axes.margins(0.08, 0.25)
            axes.set_axis_off()
            axes.set_title(wrapped(name, 60), fontsize=9)
        _legend(figure, list(kinds), dashed=False)
        return to_svg(figure, key, title, "The fabric's cells and its connections, as wide as their gates are open")


def _legend(figure: Figure, kinds: Sequence[str], *, dashed: bool = True) -> None:
    shown = [kind for kind in _KINDS if kind in kinds]
    looks: list[tuple[str, Any]] = [(_KINDS[kind][0], _KINDS[kind][1] if dashed else "solid") for kind in shown]
    lines = [Line2D([], [], color=colour, linestyle=dashes) for colour, dashes in looks]
    figure.legend(lines, shown, loc="outside lower center", ncols=2, borderpad=0, handlelength=3.2)


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """Return epochs x gates, the mean of all trainings where all have come so far; of many epochs means of several."""
    numbers = runs.filter(regex=f"^{GATE}").apply(pd.to_numeric, errors="coerce")
    table = numbers.set_axis([column.removeprefix(GATE) for column in numbers], axis=1).dropna(how="all", axis=1)
    groups = table.dropna(how="all").groupby(runs["epoch"])
    means = groups.mean()[groups.size() == groups.size().max()]
    width = -(-len(means) // _POINTS)
    return means.groupby(np.arange(len(means)) // width * width).mean().set_axis(means.index[::width])
