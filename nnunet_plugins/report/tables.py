"""The tables of a report as they are shown, and the files that hold them: Markdown, LaTeX and CSV.

Numbers are rounded here, once for all kinds of files: Dice and NSD to three decimals, distances and volumes to two.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_plugins.files import write_text
from nnunet_plugins.metrics.table import METRICS, write_table
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.comparison import (
    Comparison,
    across_datasets,
    comparisons,
    costs,
    differences,
    label_names,
    leaderboard,
    per_label,
)
from nnunet_plugins.report.record import ROLES, UNRANKED, Record
from nnunet_plugins.report.statistics import LEVEL, CriticalDifference, label_scores

METRIC_NAMES = {
    "Dice": "Dice",
    "ASSD_mm": "ASSD (mm)",
    "HD95_mm": "HD95 (mm)",
    "NSD": "NSD",
    "volume_error_ml": "Absolute volume error (ml)",
}
_DECIMALS = {"Dice": 3, "ASSD_mm": 2, "HD95_mm": 2, "NSD": 3, "volume_error_ml": 2}
UNKNOWN = "–"  # noqa: RUF001 - a dash
_TEXTS = (
    "Algorithm",
    "Role",
    "Flags",
    "Metric",
    "Label",
    "Patch",
    "Memory is",
    "Device",
    "Setting",
    "Value",
    "Baseline",
)
_LONG = 40  # rows that fit on a page in print


@dataclass(frozen=True)
class Section:
    """A table as it is shown.

    Attributes:
        caption: what it shows.
        table: texts, under the headings to show.
    """

    caption: str
    table: pd.DataFrame


def sections(comparison: Comparison) -> list[Section]:
    """Return all tables of a comparison, rounded."""
    board = leaderboard(comparison)
    found = [
        Section("Results, ranked by mean Dice", _show_results(board)),
        Section("Cases and flags", _show_cases(board)),
    ]
    paired = [_show_differences(differences(comparison, metric), metric) for metric in METRICS]
    if any(map(len, paired)):
        caption = f"Paired differences from {comparison.baseline}; wins, ties and losses count cases"
        found.append(Section(caption, pd.concat(paired, ignore_index=True)))
    if comparison.results["label"].nunique() > 1:
        found += [
            Section(
                f"{METRIC_NAMES[metric]} by label", _show_labels(per_label(comparison, metric), board.index, metric)
            )
            for metric in METRICS
        ]
    if len(comparison.runs):
        found.append(Section("Costs, as means over the folds", _show_costs(costs(comparison))))
    return found


def show_number(value: float, decimals: int) -> str:
    """Write a number with so many decimals, and nan as a dash."""
    if pd.isna(value):
        return UNKNOWN
    rounded = round(float(value), decimals) + 0.0  # no minus before a zero
    return f"{rounded:.{decimals}f}".replace("-", "−")  # noqa: RUF001 - a minus sign


def show_p(value: float) -> str:
    """Write a p value with three decimals; smaller ones are just that."""
    return "<0.001" if value < 0.001 else show_number(value, 3)


def _show_intervals(means: pd.Series, table: pd.DataFrame, decimals: int) -> list[str]:
    """Write means with their intervals, which one case alone does not have."""
    shown = []
    for numbers in zip(means, table["ci_low"], table["ci_high"], strict=True):
        mean, low, high = (show_number(number, decimals) for number in numbers)
        shown.append(mean if low == UNKNOWN else f"{mean} [{low}, {high}]")
    return shown


def _show_counts(table: pd.DataFrame) -> list[str]:
    """Write wins, ties and losses in one."""
    counts = table[["wins", "ties", "losses"]].astype("Int64")
    return [UNKNOWN if row.isna().any() else "/".join(map(str, row)) for _, row in counts.iterrows()]


def _show(values: pd.Series, write: Callable[..., str], *options: int) -> list[str]:
    return [write(value, *options) for value in values]


def _show_results(board: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Place": _show(board["place"], show_number, 0),
            "Algorithm": board.index,
            "Dice [95% CI]": _show_intervals(board["Dice"], board, _DECIMALS["Dice"]),
            **{METRIC_NAMES[name]: _show(board[name], show_number, _DECIMALS[name]) for name in METRICS[1:]},
            "Mean rank": _show(board["mean_rank"], show_number, 2),
            "p (Holm)": _show(board["p_holm"], show_p),
            "Wins/ties/losses": _show_counts(board),
        }
    )


def _show_cases(board: pd.DataFrame) -> pd.DataFrame:
    counts = {
        "cases": "Cases",
        "missing": "Missing",
        "one_empty": "One mask empty",
        "both_empty": "Both masks empty",
    }
    return pd.DataFrame(
        {
            "Algorithm": board.index,
            "Role": [ROLES.get(role, role) for role in board["role"]],
            **{heading: _show(board[name], show_number, 0) for name, heading in counts.items()},
            "Flags": list(board["flags"]),
        }
    )


def _show_differences(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Metric": METRIC_NAMES[metric],
            "Algorithm": table.index,
            "Cases": _show(table["n"], show_number, 0),
            "Difference [95% CI]": _show_intervals(table["mean_difference"], table, _DECIMALS[metric]),
            "Effect size": _show(table["effect_size"], show_number, 2),
            "p": _show(table["p"], show_p),
            "p (Holm)": _show(table["p_holm"], show_p),
            "Wins/ties/losses": _show_counts(table),
        }
    )


def _show_labels(table: pd.DataFrame, order: pd.Index, metric: str) -> pd.DataFrame:
    """Write the means by label; whatever is more of, algorithms or labels, goes down the page."""
    shown = table.reindex([name for name in order if name in table.index])
    shown = shown.map(partial(show_number, decimals=_DECIMALS[metric]))
    down, heading = (shown, "Algorithm") if len(shown) >= shown.shape[1] else (shown.T, "Label")
    names = down.index.to_series(name=heading)
    return pd.concat([names, down], axis=1).reset_index(drop=True)


def _show_costs(table: pd.DataFrame) -> pd.DataFrame:
    energy = table["energy_joules"] / 3.6e6
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Folds": _show(table["folds"], show_number, 0),
            "Parameters (M)": _show(table["parameters"] / 1e6, show_number, 2),
            "Forward pass (GFLOP)": _show(table["forward_flops"] / 1e9, show_number, 1),
            "Patch": list(table["patch_size"]),
            "Batch": _show(table["batch_size"], show_number, 0),
            "Epoch (s)": _show(table["seconds_per_epoch"], show_number, 1),
            "Training (h)": _show(table["training_seconds"] / 3600, show_number, 2),
            "Peak memory (GiB)": _show(table["peak_memory_bytes"] / 2**30, show_number, 2),
            "Memory is": list(table["memory_kind"]),
            **({"Energy (kWh)": _show(energy, show_number, 3)} if energy.notna().any() else {}),
            "Validation (M voxels/s)": _show(table["validation_voxels_per_second"] / 1e6, show_number, 2),
            "Device": list(table["device"]),
        }
    )


def _show_across(result: CriticalDifference) -> Section:
    caption = (
        f"Average ranks over {result.datasets} datasets; Friedman's p: {show_p(result.p)}; Nemenyi's critical "
        f"difference at {LEVEL:g}: {show_number(result.difference, 2)}"
    )
    ranked = _show(result.average_ranks, show_number, 2)
    return Section(caption, pd.DataFrame({"Algorithm": result.average_ranks.index, "Average rank": ranked}))


def show_inequalities(entry: Mapping[str, Any]) -> pd.DataFrame:
    """Write what differs from the baseline, the forbidden first."""
    rows = [
        (found["algorithm"], found["what"], found["value"], found["baseline"], "yes" if found["allowed"] else "NO")
        for found in sorted(entry["differences"], key=lambda found: found["allowed"])
    ]
    return pd.DataFrame(rows, columns=["Algorithm", "Setting", "Value", "Baseline", "Comparable"])


def write_csv(record: Record, path: Path) -> None:
    """Write the results as they are: columns `record.RESULTS`, exact numbers, all cases; see `write_table`."""
    write_table(path, record.results)


def write_challenger(record: Record, path: Path) -> None:
    """Write the scores by label as challengeR reads them: `task`, `algorithm`, `case`, `metric`, `value`.

    A task is a dataset, configuration, split and label; distances have their penalties and volume errors no sign. It is
    the comparisons' own data: cases that all algorithms have, without ensembles. Both masks empty: NA. For challengeR,
    take the rows of one metric; small values are better but for Dice and NSD.
    """
    parts = []
    for comparison in comparisons(record):
        results = comparison.results[~comparison.results["role"].isin(UNRANKED)]
        task = f"{comparison.dataset}/{comparison.configuration}/{comparison.split}/" + results["label"].map(
            label_names(results)
        )
        parts += [
            results[["algorithm", "case"]].assign(task=task, metric=metric, value=label_scores(results, metric))
            for metric in METRICS
        ]
    columns = ["task", "algorithm", "case", "metric", "value"]
    table = pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)
    write_table(path, table, na_rep="NA")


def write_markdown(record: Record, path: Path) -> None:
    """Write all tables with their caveats, the proof of equality, the failures and the environment as Markdown."""
    about, found = record.about, comparisons(record)
    parts = [f"# {markdown(about.get('title', 'Benchmark'))}", *_overview(record)]
    for comparison in found:
        parts += [f"## {markdown(comparison.title)}", _bullets(caveats(comparison))]
        for section in sections(comparison):
            parts += [f"### {markdown(section.caption)}", markdown_table(section.table)]
    for title, result in across_datasets(found).items():
        section = _show_across(result)
        parts += [f"## All datasets, {markdown(title)}", markdown(section.caption), markdown_table(section.table)]
    for entry in record.equality:
        title = f"Equality: {entry['dataset']}, {entry['configuration']}"
        parts += [f"## {markdown(title)}", markdown(_equal(entry))]
        if entry["differences"]:
            parts.append(markdown_table(show_inequalities(entry)))
    if record.failures:
        parts.append("## Failures")
        for failure in record.failures:
            tail = "\n".join(f"    {line}" for line in str(failure["tail"]).splitlines())
            line = f"{failure['task']}: exit code {failure['exit_code']}, log {failure['log']}"
            parts += [markdown(line), tail]
    if lines := about.get("ensembles"):
        parts += ["## Ensembles", _bullets(lines)]
    versions = [f"{name} {version}" for name, version in about.get("versions", {}).items()]
    parts += ["## Environment", _bullets([*about.get("hardware", []), *versions])]
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def _overview(record: Record) -> list[str]:
    """Return a few lines on the whole benchmark."""
    names = {"Budget": "budget", "Command": "command", "Created": "created"}
    lines = [f"{heading}: {record.about[name]}" for heading, name in names.items() if name in record.about]
    if not record.about.get("complete", True):
        lines.append("Not complete: some of this benchmark failed or has not run yet.")
    if record.results.empty:
        lines.append("There are no results yet.")
    return [_bullets(lines)]


def _equal(entry: Mapping[str, Any]) -> str:
    same = ", ".join(entry["same"]) or "nothing"
    return (
        f"The same in all trainings: {same}. What differs from the baseline:"
        if entry["differences"]
        else (f"The same in all trainings: {same}. Nothing differs from the baseline.")
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def markdown_table(table: pd.DataFrame, texts: Collection[str] = _TEXTS) -> str:
    """Write a table with pipes; columns of texts to the left, those of numbers to the right."""
    rules = [":---" if name in texts else "---:" for name in table.columns]
    rows = [_markdown_cells(table.columns), rules, *(_markdown_cells(row) for row in table.itertuples(index=False))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cells(values: Sequence[Any]) -> list[str]:
    return [markdown(str(value)) for value in values]


# What begins markup in Markdown. Where the same characters cannot, they stay as they are: reports are read raw as well.
_MARKUP = re.compile(r"[\\`*|$~]|^[#>+=-]|<(?=[A-Za-z/!?])|\](?=[(\[:])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")


def markdown(text: str) -> str:
    """Return text, on one line, that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def write_latex(record: Record, path: Path) -> None:
    """Write all tables with their caveats as a LaTeX fragment to include."""
    found = comparisons(record)
    parts = [r"% Needs \usepackage{booktabs,longtable}. Wide tables want a small font or a landscape page."]
    tables = 0
    for comparison in found:
        items = "\n".join(rf"\item {_latex(line)}" for line in caveats(comparison))
        parts.append(rf"\paragraph{{{_latex(comparison.title)}}}" + f"\n\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
        for section in sections(comparison):
            tables += 1
            parts.append(_latex_table(section, comparison.title, tables))
    for title, result in across_datasets(found).items():
        tables += 1
        parts.append(_latex_table(_show_across(result), f"All datasets, {title}", tables))
    write_text(path, "\n\n".join(parts) + "\n")


def _latex_table(section: Section, title: str, number: int) -> str:
    table = section.table.astype(str).map(_latex)
    sides = [r"p{0.25\linewidth}" if name == "Flags" else "l" if name in _TEXTS else "r" for name in table.columns]
    table.columns = pd.Index([_latex(str(name)) for name in table.columns])
    return str(
        table.to_latex(
            index=False,
            escape=False,
            caption=_latex(f"{title}: {section.caption}"),
            label=f"tab:benchmark-{number}",
            column_format="".join(sides),
            longtable=len(table) > _LONG,
        )
    ).strip()


_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "−": "$-$",  # noqa: RUF001 - a minus sign
        "–": "--",  # noqa: RUF001 - a dash
        "\N{REPLACEMENT CHARACTER}": "?",
    }
)


def _latex(text: str) -> str:
    """Return text, on one line, that LaTeX prints as it is."""
    return " ".join(text.split()).translate(_LATEX)
