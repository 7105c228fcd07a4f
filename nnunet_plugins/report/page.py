"""The page of a report: one HTML file that holds its figures, pictures, styles and script, and loads nothing."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nnunet_plugins.report.analysis import Analysis, Comparison
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.drawing import COLOURS, INK, MARKERS, Style, split_name
from nnunet_plugins.report.equality import ABSENT, SEED, UNKNOWN, UNTRAINED, Equality
from nnunet_plugins.report.findings import describe_all, describe_beside, describe_twins, summarise
from nnunet_plugins.report.illustrations import Figure, illustrate, illustrate_overview, make_key, make_looks
from nnunet_plugins.report.panels import Panels, draw_panels
from nnunet_plugins.report.record import Record, describe_role
from nnunet_plugins.report.statistics import LEVEL
from nnunet_plugins.report.tables import Section, sections, show_inequalities
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, EQUIVALENT
from nnunet_plugins.report.words import DASH, METRIC_NAMES, show_number

if TYPE_CHECKING:
    from markupsafe import Markup

OPEN_ROWS = 15
"""Longer tables are folded up at first."""

_UNSAID = {"title": "Benchmark", "budget": "", "created": "", "hardware": [], "ensembles": [], "complete": True}
_TOLD = ("baseline", "twin", "own plan", "one pass", "one for many", "atlas")  # roles that a name does not tell
_NUMBER = re.compile(r"(?:[<>]|[▲▼≈] )?(-?[\d.]+)(?: \[.*\]|/\d+/\d+)?")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: to show.
        value: to sort by; None for what is missing.
        note: below the text, smaller.
        mark: the marker of an algorithm in the figures.
        colour: of the marker.
    """

    text: str
    value: float | str | None
    note: str = ""
    mark: str = ""
    colour: str = ""


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
    """

    caption: str
    headings: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]
    heading: int
    folded: bool


@dataclass(frozen=True)
class Chapter:
    """What the page says of one comparison.

    Attributes:
        key: its anchor, unique in the page.
        title: of the comparison.
        finding: the most important sentence.
        findings: a sentence for every other algorithm.
        tables: the ranked results first.
        figures: in the order of the page.
        panels: pictures of single cases; None for test images.
        proof: tables of what was equal and what was not; none, if that is not known.
        same: what was the same in all trainings, with its hash.
        caveats: what has to stand beside the numbers.
    """

    key: str
    title: str
    finding: str
    findings: list[str]
    tables: list[Table]
    figures: list[Figure]
    panels: Panels | None
    proof: list[Table]
    same: list[tuple[str, str]]
    caveats: list[str]


def make_page(analysis: Analysis, panels: Path) -> tuple[str, list[Figure]]:
    """Return the page, and the figures that it holds.

    Args:
        analysis: to report.
        panels: folder that keeps the pictures of cases.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    record, found = analysis.record, analysis.comparisons
    looks = make_looks(found)
    chapters: list[Chapter] = []
    trained: set[tuple[str, str]] = set()
    for comparison in found:
        place = (comparison.dataset, comparison.configuration)
        key = make_key(comparison.title, [chapter.key for chapter in chapters])
        chapters.append(_chapter(comparison, key, looks, record.about, panels, with_curves=place not in trained))
        trained.add(place)
    overview = illustrate_overview(analysis.across, looks)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html.j2").render(
        about={**_UNSAID, **record.about},
        chapters=chapters,
        unequal=_unequal(analysis),
        failures=record.failures,
        matrix=_matrix(found, looks, analysis.rope) if len(found) > 1 else None,
        overview=overview,
        environment=_environment(record),
        generator=generator(),
        colours=len(COLOURS),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page, [*overview, *(figure for chapter in chapters for figure in chapter.figures)]


def generator() -> str:
    """Return what draws figures and page, with versions: other versions may draw the same numbers otherwise."""
    packages = ("nnunet-plugins", "matplotlib", "numpy", "pandas", "scipy", "jinja2")
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def _breakable(name: str) -> "Markup":
    """Return a name as HTML that may break where it is read well."""
    from markupsafe import Markup

    return Markup("<wbr>").join(split_name(name))


def _chapter(
    comparison: Comparison,
    key: str,
    looks: Mapping[str, Style],
    about: Mapping[str, Any],
    panels: Path,
    *,
    with_curves: bool,
) -> Chapter:
    shown = [_table(section, looks, folded=_is_folded(section)) for section in sections(comparison)]
    shown[0] = _with_notes(shown[0], comparison)
    return Chapter(
        key=key,
        title=comparison.title,
        finding=summarise(comparison),
        findings=[*describe_all(comparison)[1:], *describe_twins(comparison), *describe_beside(comparison)],
        tables=shown,
        figures=illustrate(comparison, looks, key, with_curves=with_curves),
        panels=_panels(comparison, about, panels / f"{key}.json"),
        proof=_proof(comparison.equality, looks),
        same=list(comparison.equality.same.items()) if comparison.equality else [],
        caveats=caveats(comparison),
    )


def _is_folded(section: Section) -> bool:
    first = (
        "Results",
        "Each network against",
        "One network for many",
        "Labels that the truth",
        f"{METRIC_NAMES['Dice']} by label",
        "Costs",
    )
    return not section.caption.startswith("Results") and (
        not section.caption.startswith(first) or len(section.table) > OPEN_ROWS
    )


def _table(section: Section, looks: Mapping[str, Style], *, folded: bool) -> Table:
    """Return a table of texts as one of cells, which know how to be sorted."""
    headings = [str(name) for name in section.table.columns]
    columns = [[str(text) for text in section.table[name]] for name in section.table.columns]
    values = [[_number(text) for text in column] for column in columns]
    numeric = [
        any(value is not None for value in column)
        and all(value is not None or text in (DASH, "") for value, text in zip(column, texts, strict=True))
        for column, texts in zip(values, columns, strict=True)
    ]
    rows = []
    for texts, numbers in zip(zip(*columns, strict=True), zip(*values, strict=True), strict=True):
        keys = [number if is_number else text for text, number, is_number in zip(texts, numbers, numeric, strict=True)]
        cells = zip(headings, texts, keys, strict=True)
        rows.append([_cell(text, key, looks.get(text) if name == "Algorithm" else None) for name, text, key in cells])
    row_heading = headings.index("Algorithm") if "Algorithm" in headings else 0
    return Table(section.caption, headings, numeric, rows, row_heading, folded)


def _cell(text: str, key: float | str | None, look: Style | None) -> Cell:
    if look is None:
        return Cell(text, key)
    return Cell(text, key, mark=MARKERS[look.marker], colour="inherit" if look.colour == INK else look.colour)


def _number(text: str) -> float | None:
    """Return the number that a cell begins with, if it is a cell with a number."""
    match = _NUMBER.fullmatch(text.replace("−", "-"))  # noqa: RUF001 - a minus sign
    try:
        return float(match.group(1)) if match else None
    except ValueError:  # such as 1.2.3
        return None


def _with_notes(table: Table, comparison: Comparison) -> Table:
    """Return the ranked results with role and flags below the names, where there is something to say."""
    rows = []
    for row in table.rows:
        name = row[table.heading]
        role, trainer = comparison.algorithms.loc[name.text, ["role", "trainer"]]
        flags = comparison.board.loc[name.text, "flags"]
        words = [describe_role(role, trainer)] if role in _TOLD else []
        note = "; ".join([*words, *([flags] if flags else [])])
        cells = list(row)
        cells[table.heading] = replace(name, note=note)
        rows.append(cells)
    return replace(table, rows=rows)


def _panels(comparison: Comparison, about: Mapping[str, Any], cache: Path) -> Panels | None:
    """Return pictures of the baseline and of the best other algorithm that is ranked."""
    ranked = comparison.ranked
    if comparison.split != "cross-validation" or not ranked:
        return None
    baseline = comparison.baseline or ranked[0]
    method = next((name for name in ranked if name != baseline), baseline)
    images = about.get("images", {})
    # One dataset in two configurations has two sets of segmentations.
    files = images.get(f"{comparison.dataset}/{comparison.configuration}", images.get(comparison.dataset))
    return draw_panels(comparison.by_case["Dice"], baseline, method, files, cache)


def _proof(equality: Equality | None, looks: Mapping[str, Style]) -> list[Table]:
    """Return tables of what differs, and of the hashes, environment and settings of every training."""
    if equality is None or equality.table.empty:
        return []
    tables = []
    if equality.differences:
        table = show_inequalities(equality)
        caption = "What differs, or is not known"
        tables.append(_table(Section(caption, table), looks, folded=len(table) > OPEN_ROWS))
    trained = equality.table[equality.table.index.get_level_values("fold") != UNTRAINED].fillna(ABSENT)
    captions = {"hashes": "Hashes of every training", "environment": "Environment", "recipe": "Settings"}
    for kind, caption in captions.items():
        seeds = [SEED] if kind == "hashes" and SEED in trained else []  # of several trainings in one fold
        table = trained[[*seeds, *equality.kinds[kind]]].reset_index(names=["Algorithm", "Fold"])
        if kind != "hashes" and len(table):
            table, caption = _merged(table), f"{caption} of the {len(trained)} trainings"
        if len(table):
            tables.append(_table(Section(caption, table), looks, folded=len(table) > OPEN_ROWS or kind == "recipe"))
    return tables


def _merged(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per setting with its values, and in how many of the trainings each one held."""
    rows = []
    for name in table.columns[2:]:
        counts = table[name].value_counts()
        shown = [value if len(counts) == 1 else f"{value} ({count} of {len(table)})" for value, count in counts.items()]
        known = UNKNOWN not in counts.index
        rows.append((name, ", ".join(shown), ("yes" if len(counts) == 1 else "NO") if known else UNKNOWN))
    return pd.DataFrame(rows, columns=["Setting", "Value", "Same in all"])


def _unequal(analysis: Analysis) -> list[str]:
    """Return what makes comparisons unfair and was accepted: a line per algorithm, more where datasets differ."""
    lines: dict[str, list[str]] = {}
    for equality in analysis.equality:
        settings: dict[str, list[str]] = {}
        for found in equality.differences:
            if not found["allowed"]:
                text = f"{found['what']} {found['value']} instead of {found['baseline']}"
                settings.setdefault(found["algorithm"], []).append(text)
        for algorithm, texts in settings.items():
            lines.setdefault(f"{algorithm} was trained with {', '.join(texts)}", []).append(equality.place)
    return [f"{line} ({'; '.join(places)})" for line, places in lines.items()]


def _matrix(found: Iterable[Comparison], looks: Mapping[str, Style], rope: float) -> Table:
    """Return the mean Dice of all algorithms in all comparisons, with a mark where it differs from the baseline's."""
    columns: dict[str, dict[str, str]] = {}
    for comparison in found:
        verdicts = comparison.paired["Dice"]["verdict"]
        cells = columns.setdefault(comparison.title, {})
        for name, mean in comparison.board["Dice"].items():
            sign = {AHEAD: "▲", BEHIND: "▼", EQUIVALENT: "≈"}.get(verdicts.get(name, ""), "")
            cells[str(name)] = f"{sign} {show_number(mean, 3)}".strip()
    table = pd.DataFrame(columns).fillna(DASH).rename_axis(index="Algorithm").reset_index()
    caption = (
        f"Mean Dice; ▲ ahead of and ▼ behind the baseline, on average and case by case (p < {LEVEL:g}, Holm), "
        f"≈ equivalent within {rope:g}"
    )
    return _table(Section(caption, table), looks, folded=False)


def _environment(record: Record) -> list[tuple[str, str]]:
    """Return names and values of what the benchmark ran with."""
    about = record.about
    rows = [(name.capitalize(), about.get(name, "")) for name in ("command", "budget", "created")]
    rows += [("Hardware", "; ".join(about.get("hardware", [])))]
    rows += [(str(name), str(version)) for name, version in about.get("versions", {}).items()]
    return [(name, value) for name, value in rows if value]
