"""The files of a report besides the page and LaTeX: Markdown and CSV, all of one analysis."""

import gzip
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins.files import whole_file, write_text
from nnunet_plugins.metrics.table import METRICS, to_csv, write_table
from nnunet_plugins.report.analysis import Analysis
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.describing import describe_methods, list_references
from nnunet_plugins.report.equality import describe_equality, show_inequalities
from nnunet_plugins.report.findings import summarise
from nnunet_plugins.report.record import Record
from nnunet_plugins.report.showing import TEXTS, show_across
from nnunet_plugins.report.tables import sections

PACKED = 10_000_000
"""Bytes; a longer challenger.csv is packed with gzip, which R reads as well."""


def write_csv(record: Record, path: Path) -> None:
    """Write the results as they are: columns `record.RESULTS`, exact numbers, all cases; see `write_table`.

    Seeds and folds are left out where there are none. Where groups of cases are known, such as the images of a patient,
    a column `group` has their numbers.
    """
    results = record.results
    known = {
        place: record.groups_of(*place) or {} for place in {*zip(results["split"], results["dataset"], strict=True)}
    }
    if any(known.values()):
        rows = zip(results["split"], results["dataset"], results["case"], strict=True)
        numbers = pd.Series([known[split, dataset].get(case) for split, dataset, case in rows], results.index)
        results = results.copy()
        results.insert(results.columns.get_loc("case") + 1, "group", numbers.astype("Int64"))
    none = [
        name
        for name, column in (("seed", results["seed"].replace("", None)), ("fold", results["fold"]))
        if column.isna().all()
    ]
    write_table(path, results.drop(columns=none))


def write_challenger(analysis: Analysis, path: Path) -> Path:
    """Write the scores by label as challengeR reads them: `task`, `algorithm`, `case`, `metric`, `value`.

    Returns the file, which has the ending `.gz` if it is packed, because it is long.

    A task is a dataset, configuration, split and label; distances have their penalties and volume errors no sign. It is
    the comparisons' own data: cases that all algorithms have, without ensembles; NA where the truth lacks the label.
    For challengeR, take the rows of one metric; small values are better but for Dice and NSD. It knows no groups of
    cases, and takes each case for one by itself.
    """
    parts = []
    for comparison in analysis.comparisons:
        scores = comparison.scores
        chosen = [number for number, name in enumerate(scores.algorithms) if name in comparison.ranked]
        place = f"{comparison.dataset}/{comparison.configuration}/{comparison.split}/"
        algorithms, cases, labels = np.indices((len(chosen), len(scores.cases), len(scores.labels))).reshape(3, -1)
        columns = {
            "task": np.array([place + comparison.labels[label] for label in scores.labels], object)[labels],
            "algorithm": np.array([scores.algorithms[number] for number in chosen], object)[algorithms],
            "case": np.array(scores.cases, object)[cases],
        }
        for metric in METRICS:
            parts.append(
                pd.DataFrame({**columns, "metric": metric, "value": scores.of_algorithms(metric)[chosen].ravel()})
            )
    names = ["task", "algorithm", "case", "metric", "value"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)
    content = to_csv(table, missing="NA").encode()
    packed = path.with_name(f"{path.name}.gz")
    file, other = (packed, path) if len(content) > PACKED else (path, packed)
    with whole_file(file) as part:
        # Without the time, so that the same numbers make the same file.
        part.write_bytes(gzip.compress(content, mtime=0) if file == packed else content)
    other.unlink(missing_ok=True)
    return file


def write_markdown(analysis: Analysis, path: Path) -> None:
    """Write all tables with their caveats, the proof of equality, the failures and the environment as Markdown."""
    record = analysis.record
    about = record.about
    parts = [f"# {markdown(about.get('title', 'Benchmark'))}", *_overview(record)]
    for comparison in analysis.comparisons:
        parts += [f"## {markdown(comparison.title)}", markdown(summarise(comparison)), _bullets(caveats(comparison))]
        for section in sections(comparison):
            parts += [f"### {markdown(section.caption)}", markdown_table(section.table, best=section.best)]
    for title, result in analysis.across.items():
        section = show_across(result)
        parts += [f"## All datasets, {markdown(title)}", markdown(section.caption), markdown_table(section.table)]
    if methods := describe_methods(analysis):
        parts += ["## How to cite and describe", *map(markdown, methods), _bullets(list_references(analysis))]
    for equality in analysis.equality:
        parts += [f"## {markdown(f'Equality: {equality.place}')}", markdown(describe_equality(equality))]
        if equality.differences:
            parts.append(markdown_table(show_inequalities(equality)))
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


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)


def markdown_table(
    table: pd.DataFrame, texts: Collection[str] = TEXTS, best: Mapping[str, Collection[int]] | None = None
) -> str:
    """Write a table with pipes; columns of texts to the left, those of numbers to the right, the best ones in bold."""
    rules = [":---" if name in texts else "---:" for name in table.columns]
    bold = [(best or {}).get(str(name), ()) for name in table.columns]
    rows = [_markdown_cells(table.columns), rules]
    for number, row in enumerate(table.itertuples(index=False)):
        cells = zip(_markdown_cells(row), bold, strict=True)
        rows.append([f"**{cell}**" if number in chosen else cell for cell, chosen in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cells(values: Sequence[Any]) -> list[str]:
    return [markdown(str(value)) for value in values]


# What begins markup in Markdown. Where the same characters cannot, they stay as they are: reports are read raw as well.
_MARKUP = re.compile(r"[\\`*|$~]|^[#>+=-]|<(?=[A-Za-z/!?])|\](?=[(\[:])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")


def markdown(text: str) -> str:
    """Return text, on one line, that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
