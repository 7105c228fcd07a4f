"""Build the report of a benchmark from its record: a page, tables and figures for papers, all of the same numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_plugins.files import write_text
from nnunet_plugins.report.page import make_page
from nnunet_plugins.report.record import Record, ReportError, read_record
from nnunet_plugins.report.tables import write_challenger, write_csv, write_latex, write_markdown


def build_report(folder: Path) -> Path:
    """Build a benchmark's report in its folder `report`, and return the page.

    Args:
        folder: of the benchmark; its folder `record` holds the record. Files of `report/figures` that no longer belong
            to the report are removed.

    Raises:
        ReportError: if the record cannot be read, or holds runs side by side that may not be compared.
    """
    record = read_record(folder / "record")
    refuse_unequal(record)
    report = folder / "report"
    page, figures = make_page(record, report / "panels")
    write_markdown(record, report / "report.md")
    write_latex(record, report / "tables.tex")
    write_csv(record, report / "results.csv")
    write_challenger(record, report / "challenger.csv")
    for figure in figures:
        write_text(report / "figures" / f"{figure.name}.svg", figure.svg)
    for file in (report / "figures").glob("*.svg"):
        if file.stem not in {figure.name for figure in figures}:
            file.unlink()
    write_text(report / "index.html", page)
    return report / "index.html"


def refuse_unequal(record: Record) -> None:
    """Raise if trainings are compared that were not equal, and the user did not accept that.

    Raises:
        ReportError: naming the algorithms and what differs.
    """
    problems = []
    for entry in record.equality:
        if not entry["accepted"]:
            place = f"{entry['dataset']}, {entry['configuration']}"
            problems += [
                f"{place}: {found['algorithm']} was trained with {found['what']} {found['value']}, the baseline with "
                f"{found['baseline']}"
                for found in entry["differences"]
                if not found["allowed"]
            ]
            problems += [f"{place}: {line}" for line in _contradictions(entry)]
    if problems:
        lines = "\n  ".join(problems)
        raise ReportError(
            f"these runs may not stand side by side:\n  {lines}\nTrain them anew under equal conditions, or run the "
            "benchmark with --allow-unequal: then they are compared, and the report says so."
        )


def _contradictions(entry: Mapping[str, Any]) -> list[str]:
    """Return hashes that differ though nothing says so: plans, splits and data are never taken for equal unseen."""
    lines = []
    for name in ("plans", "splits", "data"):
        values: dict[str, str] = {}
        for run in entry["runs"]:
            values.setdefault(str(run["hashes"].get(name, "unknown")), run["algorithm"])
        named = any(found["what"] == name for found in entry["differences"])
        if len(values) > 1 and (name in entry["same"] or not named):
            lines.append(
                f"the hashes of the {name} differ: {', '.join(f'{who} {what}' for what, who in values.items())}"
            )
    return lines
