"""The page of a report: one HTML file that holds its figures, pictures, styles and script, and loads nothing."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nnunet_plugins.report.analysis import Analysis, Comparison
from nnunet_plugins.report.card import make_card
from nnunet_plugins.report.caveats import caveats, describe_labels
from nnunet_plugins.report.cells import Table, make_table, with_notes
from nnunet_plugins.report.describing import describe_methods, list_references
from nnunet_plugins.report.drawing import COLOURS, Style, split_name
from nnunet_plugins.report.equality import ABSENT, SEED, UNKNOWN, UNTRAINED, Equality, show_inequalities
from nnunet_plugins.report.findings import describe_all, describe_beside, describe_twins, summarise
from nnunet_plugins.report.headline import make_matrix, tell_first
from nnunet_plugins.report.illustrations import Figure, illustrate, illustrate_overview, make_key, make_looks
from nnunet_plugins.report.panels import Panels, draw_panels, shown_pair
from nnunet_plugins.report.record import Record
from nnunet_plugins.report.showing import Section
from nnunet_plugins.report.tables import ENSEMBLES, RESULTS, sections

if TYPE_CHECKING:
    from markupsafe import Markup

OPEN_ROWS = 15
"""Longer tables are folded up at first; those that are folded up are made by the browser when they are opened."""
OPEN_CHAPTERS = 3
"""With more comparisons than these, they are folded up, and made by the browser when they are opened."""
PROMPT = 3000
"""With more marks than these in all figures together, a figure is drawn when the reader comes near it."""

_UNSAID = {"title": "Benchmark", "budget": "", "created": "", "hardware": [], "ensembles": [], "complete": True}


@dataclass(frozen=True)
class Chapter:
    """What the page says of one comparison.

    Attributes:
        key: its anchor, unique in the page.
        title: of the comparison.
        finding: the most important sentence.
        findings: a sentence for every other algorithm.
        card: names and values of what is known of the dataset.
        results: ranked; below them those of ensembles, if there are any.
        tables: all others.
        notes: what has to be read with the results.
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
    card: list[tuple[str, str]]
    results: list[Table]
    tables: list[Table]
    notes: list[str]
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
    environment.filters |= {"breakable": _breakable, "moment": _moment}
    script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html.j2").render(
        about={**_UNSAID, **record.about},
        facts=tell_first(analysis),
        chapters=chapters,
        folded=len(chapters) > OPEN_CHAPTERS,
        open_rows=OPEN_ROWS,
        prompt=sum(figure.svg.count("<use ") for chapter in chapters for figure in chapter.figures) <= PROMPT,
        unequal=_unequal(analysis),
        failures=record.failures,
        matrix=make_matrix(analysis, [chapter.key for chapter in chapters], looks) if len(found) > 1 else None,
        overview=overview,
        methods=describe_methods(analysis),
        references=list_references(analysis),
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


def _moment(text: str) -> str:
    """Return a time as it is read well; anything else as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)[\d:.]*\+00:?00$", r"\1, \2 UTC", text)


def _chapter(
    comparison: Comparison,
    key: str,
    looks: Mapping[str, Style],
    about: Mapping[str, Any],
    panels: Path,
    *,
    with_curves: bool,
) -> Chapter:
    shown = [make_table(section, looks, folded=_is_folded(section)) for section in sections(comparison)]
    results = [with_notes(table, comparison) for table in shown if table.caption in (RESULTS, ENSEMBLES)]
    notes = describe_labels(comparison)
    return Chapter(
        key=key,
        title=comparison.title,
        finding=summarise(comparison),
        findings=[*describe_all(comparison)[1:], *describe_twins(comparison), *describe_beside(comparison)],
        card=make_card(comparison, about),
        results=results,
        tables=shown[len(results) :],
        notes=notes,
        figures=illustrate(comparison, looks, key, with_curves=with_curves),
        panels=_panels(comparison, about, panels / f"{key}.json"),
        proof=_proof(comparison.equality, looks),
        same=list(comparison.equality.same.items()) if comparison.equality else [],
        caveats=[line for line in caveats(comparison) if line not in notes],
    )


def _is_folded(section: Section) -> bool:
    first = (
        "Each network against",
        "One network for many",
        "Labels that the truth",
        "Objects of all cases",
        "Dice by label",
        "Dice by fold",
        "Costs",
    )
    return section.caption != RESULTS and (not section.caption.startswith(first) or len(section.table) > OPEN_ROWS)


def _panels(comparison: Comparison, about: Mapping[str, Any], cache: Path) -> Panels | None:
    """Return pictures of the baseline and of the best other algorithm that is ranked."""
    pair = shown_pair(comparison)
    if pair is None:
        return None
    images, place = about.get("images", {}), f"{comparison.dataset}/{comparison.configuration}"
    # One dataset in two configurations has two sets of segmentations.
    files = images.get(place)
    maps = about["maps"].get(place, {}) if "maps" in about else None
    return draw_panels(comparison.by_case["Dice"], *pair, files, cache, maps)


def _proof(equality: Equality | None, looks: Mapping[str, Style]) -> list[Table]:
    """Return tables of what differs, and of the hashes, environment and settings of every training."""
    if equality is None or equality.table.empty:
        return []
    tables = []
    if equality.differences:
        table = show_inequalities(equality)
        caption = "What differs, or is not known"
        tables.append(make_table(Section(caption, table), looks, folded=len(table) > OPEN_ROWS))
    trained = equality.table[equality.table.index.get_level_values("fold") != UNTRAINED].fillna(ABSENT)
    captions = {"hashes": "Hashes of every training", "environment": "Environment", "recipe": "Settings"}
    for kind, caption in captions.items():
        seeds = [SEED] if kind == "hashes" and SEED in trained else []  # of several trainings in one fold
        table = trained[[*seeds, *equality.kinds[kind]]].reset_index(names=["Algorithm", "Fold"])
        if kind != "hashes" and len(table):
            which = "one training" if len(trained) == 1 else f"{len(trained)} trainings"
            table, caption = _merged(table), f"{caption} of the {which}"
        if len(table):
            tables.append(make_table(Section(caption, table), looks, folded=len(table) > OPEN_ROWS or kind == "recipe"))
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


def _environment(record: Record) -> list[tuple[str, str]]:
    """Return names and values of what the benchmark ran with."""
    about = record.about
    rows = [(name.capitalize(), about.get(name, "")) for name in ("command", "budget", "created")]
    rows += [("Hardware", "; ".join(about.get("hardware", [])))]
    rows += [(str(name), str(version)) for name, version in about.get("versions", {}).items()]
    return [(name, value) for name, value in rows if value]
