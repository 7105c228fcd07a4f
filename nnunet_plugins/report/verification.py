"""Whether a report is what its record says, and the record what its files say: all is made again and compared."""

import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.metrics.objects import OBJECT_COLUMNS
from nnunet_plugins.metrics.table import METRICS, map_texts, read_table
from nnunet_plugins.provenance import MISSING, Ledger, Marker, read_marker, read_markers
from nnunet_plugins.report.analysis import Analysis, Comparison, analyse
from nnunet_plugins.report.build import refuse_unequal, rope_of, write_report
from nnunet_plugins.report.page import generator
from nnunet_plugins.report.record import GONE, SOURCE, Record, ReportError, printable, read_record, rows_of_gone
from nnunet_plugins.report.words import count

_ROWS = ["split", "dataset", "configuration", "plans", "trainer"]
_COLUMNS = ["case", "label", "name", *METRICS, "volume_truth_ml", "tolerance_mm", "diagonal_mm"]
_GENERATOR = re.compile(r'<meta name="generator" content="([^"]*)">')
# Pictures of cases are drawn where the images are, and kept; why one is not shown differs from place to place.
_PICTURES = re.compile(r'src="data:[^"]*"|<p class="missing">.*?</p>')


@dataclass
class Verification:
    """What `verify_report` finds.

    Attributes:
        contradictions: sentences that each name a file and what does not fit.
        fits: sentences on what was compared and fits.
        notes: sentences on what could not be compared.
    """

    contradictions: list[str] = field(default_factory=list)
    fits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, found: Iterable[str], what: str) -> None:
        """Add the contradictions of a comparison, or else that it fits."""
        lines = list(found)
        self.contradictions += lines
        if not lines:
            self.fits.append(what)


def verify_report(folder: Path, variables: Mapping[str, str] = os.environ) -> Verification:
    """Make the report of a benchmark again and compare it, its record, and what its outputs were made of.

    Args:
        folder: of the benchmark. Nothing in it is changed.
        variables: nnU-Net's, which name its folders; what lies in none of them is not compared.

    Raises:
        InputError: if there is no record that can be read, or no report.
    """
    found = Verification()
    record = read_record(folder / "record")
    if not (folder / "report" / "index.html").is_file():
        raise ReportError(f"{folder / 'report'} has no index.html; make it with nnunet-plugins report {folder}")
    names = {name: Path(variables.get(f"nnUNet_{name}") or os.devnull) for name in ("raw", "preprocessed", "results")}
    roots = {name: root.absolute() for name, root in names.items() if root.is_dir()}
    ledger = Ledger({**roots, "output": folder.absolute()})
    try:
        analysis = analyse(record, rope_of(folder / "report"))
        refuse_unequal(analysis)
    except ReportError as error:
        found.contradictions.append(str(error))
        return found
    _verify_made(folder / "report", ledger, found)
    _verify_files(analysis, folder / "report", found)
    _verify_inputs(analysis, folder / "record" / "provenance.json", ledger, found)
    for comparison in analysis.comparisons:
        _verify_summaries(comparison, record.about, found)
    return found


def _verify_made(report: Path, ledger: Ledger, found: Verification) -> None:
    """Compare the report's files, and those of the record that it was made of, with the report's marker."""
    marker = read_marker(report / "index.html")
    if marker is None:
        found.notes.append("The report has no marker: it is of version 0.1.0, or was made elsewhere.")
        return
    wrong = ledger.differences(marker)
    lines = []
    for name, (_, now) in wrong.items():
        lines.append(f"{name} is {'gone' if now == MISSING else 'another one'} since the report was made")
    found.take(lines, "The record and the report's files are those of when the report was made.")


def _verify_files(analysis: Analysis, report: Path, found: Verification) -> None:
    """Make the report again and compare every file of it."""
    with tempfile.TemporaryDirectory() as place:
        again = Path(place)
        if (report / "panels").is_dir():
            shutil.copytree(report / "panels", again / "panels")
        made = write_report(_without_images(analysis), again)
        drawn = {Path("figures", file.name) for part in (report, again) for file in (part / "figures").glob("*.svg")}
        by = _GENERATOR.search((report / "index.html").read_text(encoding="utf-8"))
        here = generator()
        package = by[1].partition(",")[0] if by else "an earlier version"
        tables = [Path("results.csv")]
        if package == here.partition(",")[0]:
            tables = [Path(file.name) for file in made if file.suffix in (".md", ".tex", ".csv", ".gz")]
        else:
            found.notes.append(
                f"The report is of {package}, here is {here.partition(',')[0]}, which may write other tables and "
                "sentences: only results.csv is compared line by line. nnunet-plugins report makes it again."
            )
        lines = [_different(file, report, again) for file in tables]
        shown = f"{count(len(tables), 'file')} of tables and statistics"
        if by and by[1] == here:
            lines += [_different(file, report, again) for file in [Path("index.html"), *sorted(drawn)]]
            shown += f", {count(len(drawn), 'figure')} and the page"
        else:
            found.notes.append(
                f"Figures and page were drawn by {by[1] if by else package}, here is {here}: they are not compared "
                "line by line."
            )
        found.take(filter(None, lines), f"Made again from the record: {shown}, the same as in the report.")


def _without_images(analysis: Analysis) -> Analysis:
    """Return the analysis without the places of the images, so that pictures are those that the report keeps."""
    about = analysis.record.about
    nowhere = {"images": os.devnull, "truth": os.devnull, "files": {}, "predictions": {}}
    images = {place: {**files, **nowhere} for place, files in about.get("images", {}).items()}
    return replace(analysis, record=replace(analysis.record, about={**about, "images": images}))


def _different(file: Path, report: Path, again: Path) -> str:
    """Return what is wrong with a file of the report, nothing if it is the same when it is made again."""
    texts = []
    for folder in (report, again):
        if not (folder / file).is_file():
            return f"report/{file} is {'missing' if folder == report else 'nothing that the record makes'}"
        with (gzip.open if file.suffix == ".gz" else open)(folder / file, "rt", encoding="utf-8") as content:
            texts.append(_PICTURES.sub("", content.read()).splitlines())
    if texts[0] == texts[1]:
        return ""
    number = next((n for n, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    return f"report/{file}, line {number + 1}, is not what the record makes"


def _verify_inputs(analysis: Analysis, file: Path, ledger: Ledger, found: Verification) -> None:
    """Compare what the outputs were made of with what is there, and the record's rows with their tables."""
    if not file.is_file():
        found.notes.append("The record does not say of which files it was made: it is of version 0.1.0.")
        return
    markers = read_markers(file)
    made = {name: identity for marker in markers for name, identity in marker.outputs.items()}
    compared, absent, code, lines = set(), set(), set(), []
    for marker in markers:
        first = next(iter(marker.outputs), "an output")
        for name, identity in marker.inputs.items():
            if made.get(name, identity) != identity:
                lines.append(f"{first} was made of another {name} than the one that is recorded")
        wrong = ledger.differences(marker)
        for name, (_, now) in wrong.items():
            if now is None or now == MISSING:
                absent.add(name)
            elif Path(name).is_absolute():
                # A trainer's source, in none of the folders. What the trainings had is recorded with them.
                code.add(name)
            else:
                lines.append(f"{name} is another file than when {first} was {'made' if name in made else 'made of it'}")
        compared |= {*marker.inputs, *marker.outputs} - wrong.keys()
    _note_gone(analysis.record, found)
    lines += _rows_without(analysis, markers)
    lines += _other_rows(analysis, markers, ledger)
    steps = count(len(markers), "step")
    found.take(dict.fromkeys(lines), f"{len(compared)} files and folders, inputs and outputs of {steps}, fit.")
    if code:
        others = "is another one" if len(code) == 1 else "are others"
        found.notes.append(
            f"{count(len(code), 'file')} of code {others} since it was described: {', '.join(sorted(code))}."
        )
    if absent:
        found.notes.append(f"{count(len(absent), 'input')} not here, hashes from the record.")


def _rows_without(analysis: Analysis, markers: Iterable[Marker]) -> Iterator[str]:
    """Yield what results have no table of metrics that they come from."""
    known = {tuple(marker.of.get(name) for name in _ROWS) for marker in markers if marker.of}
    for row in analysis.record.results[_ROWS].drop_duplicates().itertuples(index=False):
        if tuple(row) not in known:
            yield f"results.csv: nothing says where the rows of {', '.join(row)} come from"


def _other_rows(analysis: Analysis, markers: Iterable[Marker], ledger: Ledger) -> Iterator[str]:
    """Yield the tables of metrics that say otherwise than the record."""
    results = analysis.record.results
    texts = ["case", "label", "name", SOURCE]
    gone = rows_of_gone(analysis.record)
    for marker in markers:
        name = next((output for output in marker.outputs if output.endswith(".csv")), "")
        table = ledger.locate(name) if name and marker.of else None
        if table is None or not table.is_file():
            continue
        of = {column: value for column, value in marker.of.items() if column in results}
        chosen = (results[list(of)] == pd.Series(of)).all(axis=1)
        was_kept = marker.of.get("model") == GONE
        if (chosen & gone).any():
            chosen &= gone if was_kept else ~gone
        ours = results[chosen]
        try:
            theirs = map_texts(read_table(table, dict.fromkeys(texts, str)), printable)
            # What one of the two does not have, it has no values of.
            objects = [name for name in OBJECT_COLUMNS if name in theirs or name in ours]
            ours, theirs = (
                part.assign(**{name: np.nan for name in objects if name not in part}) for part in (ours, theirs)
            )
            columns = [*_COLUMNS, *([SOURCE] if SOURCE in theirs else []), *objects]
            if was_kept:  # other folds of the table are trained anew
                theirs = theirs[theirs["case"].isin(ours["case"])]
            ours, theirs = ours[columns], theirs[columns]
        except (KeyError, ValueError) as error:
            yield f"{name} cannot be read: {error}"
            continue
        same = len(ours) == len(theirs) and all(
            ours[column].fillna("").tolist() == theirs[column].fillna("").tolist()
            if column in texts
            else np.allclose(ours[column].astype(float), theirs[column].astype(float), rtol=1e-12, equal_nan=True)
            for column in columns
        )
        if not same:
            yield f"results.csv: the rows of {', '.join(marker.of.values())} are not those of {name}"


def _note_gone(record: Record, found: Verification) -> None:
    """Say which results nobody can make again, because their models are no longer here."""
    runs = record.runs[record.runs["model"] == GONE]
    if len(runs):
        named = [
            f"{name}{f', seed {seed}' * bool(seed)} ({count(len(rows), 'fold')})"
            for (name, seed), rows in runs.groupby(["algorithm", "seed"], sort=False)
        ]
        found.notes.append(
            f"Of {count(len(runs), 'training')} the models are {GONE}, so their results cannot be compared with the "
            f"segmentations: {'; '.join(named)}."
        )


def _verify_summaries(comparison: Comparison, about: Mapping[str, Any], found: Verification) -> None:
    """Compare the mean Dice with nnU-Net's own, where its summary of the same cases is here."""
    if comparison.split != "cross-validation" or comparison.dropped:
        return
    files = about.get("images", {}).get(f"{comparison.dataset}/{comparison.configuration}", {})
    repeats = files.get("repeats", {})
    found_in = [(name, "", folder) for name, folder in files.get("predictions", {}).items() if name not in repeats]
    found_in += [(name, seed, folder) for name, seeds in repeats.items() for seed, folder in seeds.items()]
    if comparison.scores.is_partial:
        found.notes.append(
            f"{comparison.title}: nnU-Net's summary.json counts what is found of labels that nobody annotated in a "
            "case, so it is not compared."
        )
        return
    lines, compared = [], 0
    means = comparison.scores.nnunet_dice_by_training()
    partly = comparison.runs.loc[comparison.runs["model"] == GONE, ["algorithm", "seed"]]
    gone = set(partly.itertuples(index=False, name=None))
    for name, seed, folder in found_in:
        # Of a training that is partly kept, the segmentations here are those of the other folds.
        if (name, seed) not in means.index or (name, seed) in gone:
            continue
        who = f"{name}, seed {seed}" if seed else name
        try:
            mean = read_json(Path(folder) / "summary.json", {"foreground_mean": {"Dice": float}})
        except InputError:
            continue
        compared += 1
        theirs, ours = mean["foreground_mean"]["Dice"], means[name, seed]
        if not np.isclose(theirs, ours, rtol=1e-6, equal_nan=True):
            lines.append(f"{comparison.title}: summary.json of {who} has a mean Dice of {theirs}, the record {ours}")
    if compared:
        found.take(lines, f"{comparison.title}: Dice as in nnU-Net's {count(compared, 'summary.json')}.")
