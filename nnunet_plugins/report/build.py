"""Build the report of a benchmark from its record: a page, tables and figures for papers, all of the same numbers."""

from pathlib import Path

from nnunet_plugins.files import write_text
from nnunet_plugins.provenance import Ledger, read_marker
from nnunet_plugins.report.analysis import Analysis, analyse
from nnunet_plugins.report.claims import ROPE
from nnunet_plugins.report.latex import write_latex, write_paper
from nnunet_plugins.report.page import make_page
from nnunet_plugins.report.record import ReportError, read_record
from nnunet_plugins.report.writing import write_challenger, write_csv, write_markdown


def build_report(folder: Path, rope: float = ROPE) -> Path:
    """Build a benchmark's report in its folder `report`, and return the page.

    Args:
        folder: of the benchmark; its folder `record` holds the record. Files of `report/figures` that no longer belong
            to the report are removed.
        rope: a smaller difference in Dice counts for nothing in practice. The report's marker has it.

    Raises:
        ReportError: if the record cannot be read, contradicts itself, or holds runs side by side that may not be
            compared.
    """
    analysis = analyse(read_record(folder / "record"), rope)
    refuse_unequal(analysis)
    page, *others = (file.absolute() for file in write_report(analysis, folder / "report"))
    ledger = Ledger({"output": folder.absolute()})
    names = {file.name.removesuffix(".gz") for file in (folder / "record").iterdir()}
    made_of = sorted((folder / "record" / name).absolute() for name in names if name.endswith((".csv", ".json")))
    ledger.write(page, ["nnunet-plugins", "report", ROPE_OPTION, f"{rope:g}"], ledger.identities(made_of), others)
    return folder / "report" / "index.html"


ROPE_OPTION = "--rope"


def rope_of(report: Path) -> float:
    """Return the region of practical equivalence with which a report was made; older ones have had none."""
    marker = read_marker(report / "index.html")
    words = marker.command if marker else []
    return float(words[words.index(ROPE_OPTION) + 1]) if ROPE_OPTION in words else ROPE


def write_report(analysis: Analysis, report: Path) -> list[Path]:
    """Write all files of a report into its folder, and return them: the page, tables, figures."""
    page, figures = make_page(analysis, report / "panels")
    tables = [report / name for name in ("report.md", "tables.tex", "paper.tex", "results.csv")]
    write_markdown(analysis, tables[0])
    write_latex(analysis, tables[1])
    write_paper(analysis, tables[2])
    write_csv(analysis.record, tables[3])
    tables.append(write_challenger(analysis, report / "challenger.csv"))
    for figure in figures:
        write_text(report / "figures" / f"{figure.name}.svg", figure.svg)
    for file in (report / "figures").glob("*.svg"):
        if file.stem not in {figure.name for figure in figures}:
            file.unlink()
    write_text(report / "index.html", page)
    return [report / "index.html", *tables, *sorted((report / "figures").glob("*.svg"))]


def refuse_unequal(analysis: Analysis) -> None:
    """Raise if trainings are compared that were not equal, and the user did not accept that.

    Raises:
        ReportError: naming the algorithms and what differs.
    """
    problems = [
        f"{equality.place}: {found['algorithm']} was trained with {found['what']} {found['value']}, "
        f"{equality.name(found['against'])} with {found['baseline']}"
        for equality in analysis.equality
        for found in equality.refused
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise ReportError(
            f"these runs may not stand side by side:\n  {lines}\nTrain them anew under equal conditions, or run the "
            "benchmark with --allow-unequal: then they are compared, and the report says so."
        )
