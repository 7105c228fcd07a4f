"""The figures of a report: each function takes tables and returns one SVG as text.

Of what all of them take, `looks` are the styles by algorithm, `metric` is what scores are, `key` is unique in the page
and begins the ids, and `title` is for readers who do not see the figure.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_plugins.report.drawing import COLOURS, INK, WIDTH, Style, drawing, named_rows, to_svg, wrapped
from nnunet_plugins.report.statistics import CriticalDifference

POINTS = 1600
"""Points that one figure shows at most; of more cases, some spread evenly over the scores are shown."""
FOLD_LINES = 8
"""With more algorithms than these, training curves show the means of the folds only."""
LETTERS = ascii_uppercase
"""Stand for the algorithms in the figure of pairs, which takes no more of them."""
_LINE = 0.175  # inches from one line of names to the next
_BINS = 120  # points of one training curve at most


def score_distribution(
    scores: pd.DataFrame,
    means: pd.DataFrame,
    looks: Mapping[str, Style],
    *,
    metric: str,
    key: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """Draw one row per algorithm: a violin and the points of its cases, and the mean with its confidence interval.

    `scores` are cases x algorithms, in the order of the rows; `means` have `mean`, `ci_low` and `ci_high` of each
    algorithm; `limits` are those of the axis.
    """
    shown = f"{metric} of each case (points), its distribution (violins) and mean with 95% interval (large markers)"
    with drawing():
        figure, axes = named_rows([str(name) for name in scores])
        for row, name in enumerate(scores):
            _violin(axes, row, scores[name].dropna().to_numpy(float), looks[name].colour, POINTS // scores.shape[1])
            mean, low, high = means.loc[name, ["mean", "ci_low", "ci_high"]]
            _interval(axes, row, mean, low, high, looks[name])
        axes.set_xlabel(f"{metric} per case")
        if limits is not None:
            axes.set_xlim(*limits)
        return to_svg(figure, key, title, shown)


def paired_differences(
    scores: pd.DataFrame,
    compared: pd.DataFrame,
    baseline: str,
    looks: Mapping[str, Style],
    *,
    metric: str,
    key: str,
    title: str,
) -> str:
    """Draw one row per algorithm: its difference from the baseline in every case, and the mean with its interval.

    `scores` are cases x algorithms, with the column `baseline`; `compared` has `mean_difference`, `ci_low` and
    `ci_high` of each algorithm, in the order of the rows.
    """
    shown = f"{metric} minus that of {baseline}, case by case (points), and its mean with 95% interval (large markers)"
    with drawing():
        figure, axes = named_rows([str(name) for name in compared.index])
        for row, name in enumerate(compared.index):
            differences = (scores[name] - scores[baseline]).dropna().to_numpy(float)
            _violin(axes, row, differences, looks[name].colour, POINTS // len(compared))
            mean, low, high = compared.loc[name, ["mean_difference", "ci_low", "ci_high"]]
            _interval(axes, row, mean, low, high, looks[name])
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
        reach = max(map(abs, axes.get_xlim()))
        axes.set_xlim(-reach, reach)
        axes.set_title(baseline, fontsize=9)  # above zero, which is in the middle
        axes.set_xlabel(f"Difference in {metric} per case")
        return to_svg(figure, key, title, shown)


def score_against_cost(
    scores: pd.Series, cost: pd.Series, looks: Mapping[str, Style], *, metric: str, unit: str, key: str, title: str
) -> str:
    """Draw one marker per algorithm: its mean score against what it costs, with its name.

    Algorithms that have no score or no cost are left out. `unit` says what the cost is, with its unit.
    """
    points = pd.DataFrame({"x": cost, "y": scores}).dropna().sort_values("y")
    with drawing():
        names = [wrapped(str(name), 22) for name in points.index]
        lines = [name.count("\n") + 1 for name in names]
        height = max(2.6, 0.9 + _LINE * sum(lines))
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0.185, 0.55 / height, 0.41, 1 - 0.68 / height))
        for name, (x, y) in zip(points.index, points[["x", "y"]].to_numpy(), strict=True):
            axes.plot(x, y, looks[name].marker, color=looks[name].colour, markersize=8, zorder=3)
        axes.margins(0.12)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(unit)
        axes.set_ylabel(f"Mean {metric}")
        _name_points(axes, points, names, [_LINE * n / (height - 0.68) for n in lines], looks)
        return to_svg(figure, key, title, f"Mean {metric} of each algorithm against {unit}")


def training_curves(curves: pd.DataFrame, looks: Mapping[str, Style], *, key: str, title: str) -> str:
    """Draw the losses and the pseudo Dice of all runs over the epochs: the folds thin, their means thick.

    `curves` have the columns of `record.CURVES`, of one dataset and configuration; algorithms without looks are left
    out.
    """
    panels = {"train_loss": "Training loss", "val_loss": "Validation loss", "pseudo_dice": "Pseudo Dice (not Dice)"}
    names = [name for name in looks if (curves["algorithm"] == name).any()]
    with drawing():
        columns = 1 if any(len(name) > 26 for name in names) else 2
        legend = 0.2 * -(-len(names) // columns) + 0.1
        figure = Figure(figsize=(WIDTH, 5.6 + legend), layout="constrained")
        rows = figure.subplots(len(panels), 1, sharex=True)
        figure.align_ylabels(rows)
        for axes, label in zip(rows, panels.values(), strict=True):
            axes.set_ylabel(label)
        for name in names:
            runs = curves[curves["algorithm"] == name].drop_duplicates(["epoch", "fold", "seed"], keep="last")
            tables = runs.pivot(index="epoch", columns=["seed", "fold"], values=list(panels))
            for axes, column in zip(rows, panels, strict=True):
                _curve(axes, tables[column], looks[name], folds=len(names) <= FOLD_LINES)
        rows[-1].set_xlabel("Epoch")
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if curves["epoch"].nunique() == 1:
            rows[-1].set_xlim(curves["epoch"].iloc[0] - 1, curves["epoch"].iloc[0] + 1)
        handles = [Line2D([], [], color=looks[name].colour, linestyle=looks[name].dashes, lw=2) for name in names]
        figure.legend(
            handles,
            [wrapped(name, 60) for name in names],
            loc="outside lower center",
            ncols=columns,
            borderpad=0,
            handlelength=3.2,
        )
        return to_svg(figure, key, title, "Losses and pseudo Dice over the epochs, folds thin, their means thick")


def rank_shares(distribution: pd.DataFrame, *, key: str, title: str) -> str:
    """Draw one bar per algorithm: how often it has which rank, when cases are drawn anew.

    `distribution` is algorithms x ranks, shares that sum to 1 in every row.
    """
    colours = mpl.colormaps["cividis"](np.linspace(0.05, 0.95, max(2, distribution.shape[1])))
    with drawing():
        figure, axes = named_rows([str(name) for name in distribution.index])
        axes.grid(visible=False)
        for row, shares in enumerate(distribution.to_numpy()):
            left = 0.0
            for rank, (share, colour) in enumerate(zip(shares, colours, strict=False), start=1):
                if share > 0:
                    axes.barh(row, share, left=left, height=0.7, color=colour, edgecolor=INK, linewidth=0.7)
                if share > 0.07:
                    ink = "black" if _luminance(colour[:3]) > 0.18 else "white"  # either way a contrast of 4.5
                    axes.text(left + share / 2, row, f"{rank}", color=ink, ha="center", va="center", fontsize=9)
                left += share
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("Share of the draws in which it has the rank")
        return to_svg(figure, key, title, "How often each algorithm has which rank (number in the bar) by mean Dice")


def _luminance(colour: NDArray[Any]) -> float:
    """Return the relative luminance of a colour, as WCAG has it."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def pair_matrix(better: pd.DataFrame, signs: pd.DataFrame, looks: Mapping[str, Style], *, key: str, title: str) -> str:
    """Draw a cell per pair of algorithms: how likely the one of the row is better than the one of the column.

    `better` holds the probabilities, algorithms x algorithms, both the best first, and nan where there is none; `signs`
    what stands beside the number for the verdict on the pair.
    """
    names = [str(name) for name in better.index]
    size = len(names)
    with drawing():
        # Letters, as numbers would look like places, which equal algorithms share.
        figure, axes = named_rows(
            [f"{letter}\N{NO-BREAK SPACE}{name}" for letter, name in zip(LETTERS, names, strict=False)]
        )
        axes.grid(visible=False)
        for row, column in np.ndindex(size, size):
            share = better.iloc[row, column]
            if np.isnan(share):
                continue
            # The farther from a half the darker, and never so dark that the number cannot be read on it.
            colour = COLOURS[0] if share > 0.5 else COLOURS[1]
            alpha = 0.5 * abs(2 * share - 1)
            axes.add_patch(Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, color=colour, alpha=alpha, lw=0))
            # Neither 100 nor 0, which no probability is.
            number = "<1" if share < 0.005 else ">99" if share > 0.995 else f"{100 * share:.0f}"
            axes.text(column, row, number + signs.iloc[row, column], ha="center", va="center", fontsize=8.5)
        for place, name in enumerate(names):
            axes.plot(place, place, looks[name].marker, color=looks[name].colour, markersize=6)
        axes.set_xlim(-0.6, size - 0.4)
        axes.set_xticks(range(size), LETTERS[:size])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("Row better than column, in %")
        return to_svg(figure, key, title, "How likely the algorithm of the row is better than that of the column, in %")


def critical_difference(found: CriticalDifference, looks: Mapping[str, Style], *, key: str, title: str) -> str:
    """Draw the average ranks over the datasets, and bars beside the algorithms that cannot be told apart."""
    names = [str(name) for name in found.average_ranks.index]
    with drawing():
        figure, axes = named_rows(names, extra=1)
        for row, (name, rank) in enumerate(zip(names, found.average_ranks, strict=True)):
            axes.plot(rank, row, looks[name].marker, color=looks[name].colour, markersize=8, zorder=3)
        worst = float(len(names))
        for n, group in enumerate(found.groups):
            x = worst + 0.045 * worst * (n + 1)
            ends = [names.index(group[0]) - 0.25, names.index(group[-1]) + 0.25]
            axes.plot([x, x], ends, color=INK, linewidth=4, solid_capstyle="butt")
        axes.set_xlim(1 - 0.045 * worst, worst + 0.045 * worst * (len(found.groups) + 1))
        axes.set_xticks([rank for rank in MaxNLocator(7, integer=True).tick_values(1, worst) if 1 <= rank <= worst])
        axes.spines["bottom"].set_bounds(1, worst)
        axes.set_ylim(len(names) - 0.4, -1.4)
        end = min(1 + found.difference, worst)
        axes.plot([1, end], [-0.75, -0.75], "|-", color=INK, linewidth=1.5, markersize=8)
        axes.text(1, -0.95, f"critical difference {found.difference:.2f}", fontsize=8.5, va="bottom")
        axes.set_xlabel(f"Average rank over {found.datasets} datasets (1 is best)")
        return to_svg(figure, key, title, "Average ranks; a bar joins the algorithms that cannot be told apart")


def _violin(axes: Axes, row: int, values: NDArray[Any], colour: str, points: int) -> None:
    """Draw the distribution of the values around a row, and points for the values, at most as many as told."""
    values = np.sort(values)
    widths = np.full(len(values), 0.15)
    if len(values) >= 5 and np.ptp(values) > 1e-9:
        # Only as far as there are values: no Dice is above 1.
        grid = np.linspace(values[0], values[-1], 60)
        heights = _density(values, grid)
        half = 0.4 * heights / heights.max()
        axes.fill_between(grid, row - half, row + half, color=colour, alpha=0.18, linewidth=0)
        widths = np.interp(values, grid, half)
    if len(values) > points:
        kept = np.linspace(0, len(values) - 1, max(points, 2)).astype(int)
        values, widths = values[kept], widths[kept]
    # Multiples of the golden ratio, modulo 1, spread points evenly without chance.
    offsets = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 1.5 * widths
    axes.plot(values, row + offsets, "o", color=colour, markersize=2.4, markeredgewidth=0)


def _density(values: NDArray[Any], grid: NDArray[Any]) -> NDArray[Any]:
    """Return the density of values on a grid, up to a factor: Gaussian kernels as wide as Scott's rule has them."""
    width = np.std(values, ddof=1) * len(values) ** -0.2
    return np.exp(-(((grid[:, None] - values) / width) ** 2) / 2).sum(axis=1)


def _interval(axes: Axes, row: int, mean: float, low: float, high: float, look: Style) -> None:
    """Draw a mean with its confidence interval, edged so that it stands out from the points."""
    if np.isfinite([low, high]).all():
        axes.plot([low, high], [row, row], color=INK, linewidth=2, solid_capstyle="butt", zorder=4)
    axes.plot(
        mean, row, look.marker, color=look.colour, markersize=7, markeredgecolor=INK, markeredgewidth=1.1, zorder=5
    )


def _name_points(
    axes: Axes, points: pd.DataFrame, names: Sequence[str], heights: Sequence[float], looks: Mapping[str, Style]
) -> None:
    """Write the names of points, which are sorted by y, in a column at the right, each with a line to its point.

    Args:
        axes: with limits that stay.
        points: columns `x` and `y`.
        names: in lines.
        heights: of the names, as shares of the height of the axes.
        looks: by index of the points.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    axes.set_xlim(*axes.get_xlim())
    spots = _apart((points["y"].to_numpy() - low) / (high - low), np.array(heights))
    for (index, (x, y)), name, spot in zip(points.iterrows(), names, spots, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.1, spot),
            textcoords=axes.transAxes,
            va="center",
            fontsize=9,
            linespacing=1.05,
            arrowprops={
                "arrowstyle": "-",
                "color": looks[index].colour,
                "lw": 0.8,
                "relpos": (0, 0.5),
                "shrinkB": 5,
            },
        )


def _apart(wanted: NDArray[Any], heights: NDArray[Any]) -> NDArray[Any]:
    """Return where labels go that want to be at these places, ascending, so that none covers another."""
    spots = wanted.astype(float)
    gaps = (heights[1:] + heights[:-1]) / 2
    for n, gap in enumerate(gaps, start=1):
        spots[n] = max(spots[n], spots[n - 1] + gap)
    if len(spots):
        spots[-1] = min(spots[-1], max(1 - heights[-1] / 2, heights.sum() - heights[-1] / 2))
    for n in range(len(spots) - 1, 0, -1):
        spots[n - 1] = min(spots[n - 1], spots[n] - gaps[n - 1])
    return spots


def _curve(axes: Axes, table: pd.DataFrame, look: Style, *, folds: bool) -> None:
    """Draw one column over the epochs: the mean of the folds, and the folds themselves if told so.

    Args:
        axes: to draw into.
        table: epochs x folds.
        look: of the algorithm.
        folds: draw them.
    """
    table = table.dropna(how="all").dropna(how="all", axis=1)
    if table.empty:
        return
    width = -(-len(table) // _BINS)
    table = table.groupby((np.arange(len(table)) // width) * width + table.index[0]).mean()
    if folds and table.shape[1] > 1:
        axes.plot(table.index, table.to_numpy(), color=look.colour, linewidth=0.8)
    # The mean stops where the first fold does: beyond, it would jump to that of the others.
    mean = table.mean(axis=1).where(table.notna().all(axis=1))
    single = len(mean) == 1
    axes.plot(
        mean.index,
        mean.to_numpy(),
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.8,
        marker=look.marker if single else "",
    )
