"""`nnunet-plugins report --verify`: what fits, what contradicts, and what is not here."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from report_records import make_record

from nnunet_plugins.cli import main
from nnunet_plugins.files import write_text
from nnunet_plugins.metrics.table import METRICS, write_table
from nnunet_plugins.provenance import Ledger
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.build import build_report
from nnunet_plugins.report.claims import ROPE
from nnunet_plugins.report.panels import Picture, Row, choose_cases
from nnunet_plugins.report.record import Record, read_record

COLUMNS = ["case", "label", "name", *METRICS, "volume_truth_ml", "tolerance_mm", "diagonal_mm"]
OF = ["split", "dataset", "configuration", "plans", "trainer"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A benchmark's folder with a report, and nnU-Net's results of which its tables of metrics were made."""
    place = tmp_path_factory.mktemp("made")
    record = small_record()
    folder, results = place / "comparison", place / "results"
    ledger = Ledger({"results": results, "output": folder})
    markers = []
    for values, rows in record.results.groupby(OF, sort=False):
        of = dict(zip(OF, values, strict=True))
        table, summary = folder / "metrics" / f"{of['trainer']}.csv", results / of["trainer"] / "summary.json"
        table.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, rows[COLUMNS])
        write_text(summary, json.dumps({"of": of["trainer"]}))
        command = ["nnunet-plugins", "evaluate", str(table)]
        markers.append({**ledger.write(table, command, ledger.identities([summary])).to_json(), "of": of})
    record.write(folder / "record")
    write_text(folder / "record" / "provenance.json", json.dumps({"outputs": markers}))
    build_report(folder)
    return place


def small_record() -> Record:
    """A record whose report is made quickly."""
    record = make_record(algorithms=2, cases=6, labels=1, folds=1, epochs=1)
    return dataclasses.replace(record, runs=record.runs[:0], curves=record.curves[:0])


@pytest.fixture
def benchmark(made, tmp_path, monkeypatch) -> Path:
    """A copy of it: names in markers begin with the folder in which a file lies."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("raw", "preprocessed"):
        monkeypatch.delenv(f"nnUNet_{name}", raising=False)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path / "comparison"


def verify(folder: Path, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["report", "--verify", str(folder)])
    return code, capsys.readouterr().out


def test_a_report_that_was_just_made_fits_and_nothing_is_written(benchmark, capsys):
    before = {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")}
    code, said = verify(benchmark, capsys)
    assert (code, "Contradiction" in said, "not here" in said) == (0, False, False), said
    assert "Made again from the record: 5 files of tables and statistics, 3 figures and the page, the same as" in said
    assert "4 files and folders, inputs and outputs of 2 steps, fit." in said
    assert {path: path.stat().st_mtime_ns for path in benchmark.rglob("*")} == before


def test_a_report_with_another_region_of_equivalence_fits_too(benchmark, capsys):
    assert main(["report", str(benchmark), "--rope", "0.07"]) == 0
    assert "within 0.07 Dice" in (benchmark / "report" / "report.md").read_text()
    code, said = verify(benchmark, capsys)
    assert (code, "Contradiction" in said) == (0, False), said
    assert main(["report", str(benchmark)]) == 0
    assert f"within {ROPE:g} Dice" in (benchmark / "report" / "report.md").read_text(), "the help says what is assumed"


@pytest.mark.parametrize("wrong", ["-0.1", "1", "nan", "much"])
def test_what_is_no_difference_in_dice_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["report", ".", "--rope", wrong])
    assert f"{wrong} is no difference in Dice: a number from 0 on, below 1" in capsys.readouterr().err


def test_without_nnunets_folders_the_record_is_believed(benchmark, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    code, said = verify(benchmark, capsys)
    assert code == 0
    assert "2 inputs not here, hashes from the record." in said
    table = benchmark / "report" / "report.md"
    table.write_text(table.read_text().replace("0.9", "0.8", 1))
    code, said = verify(benchmark, capsys)
    assert code == 1
    assert re.search(r"Contradiction: report/report.md, line \d+, is not what the record makes", said)


def replace(file: Path, pattern: str, new: str) -> None:
    text, number = re.subn(pattern, new, file.read_text(), count=1)
    assert number
    file.write_text(text)


def test_what_contradicts_is_named(benchmark, capsys):
    figure = next((benchmark / "report" / "figures").glob("*-dice.svg"))
    replace(figure, 'd="M', 'd="M 1 1 L')
    next((benchmark / "report" / "figures").glob("*-ranks.svg")).unlink()
    (benchmark / "report" / "figures" / "more.svg").write_text("<svg/>")
    replace(benchmark / "report" / "index.html", "is ahead|is behind|cannot be|are equivalent", "is far ahead")
    replace(benchmark / "report" / "tables.tex", r"\\toprule", r"\\midrule")
    replace(benchmark / "report" / "challenger.csv", r",0\.", ",1.")
    replace(benchmark / "record" / "results.csv", r"Anterior,0\.\d", "Anterior,0.1")
    replace(benchmark / "metrics" / "nnUNetTrainerFIRENet.csv", r"Anterior,0\.\d", "Anterior,0.1")
    write_text(benchmark.parent / "results" / "nnUNetTrainer" / "summary.json", "another training")
    replace(benchmark / "record" / "provenance.json", '"configuration": "3d_fullres"', '"configuration": "2d"')
    code, told = verify(benchmark, capsys)
    assert code == 1
    for said in (
        f"report/figures/{figure.name}, line ",
        "-ranks.svg is missing",
        "more.svg is nothing that the record makes",
        "report/index.html, line ",
        "report/tables.tex, line ",
        "report/challenger.csv, line 2,",
        "output/record/results.csv is another one since the report was made",
        "output/metrics/nnUNetTrainerFIRENet.csv is another file than when",
        "results/nnUNetTrainer/summary.json is another file than when",
        "results.csv: the rows of cross-validation, Dataset001_Made, 3d_fullres, nnUNetPlans, nnUNetTrainerFIRENet are",
        "results.csv: nothing says where the rows of cross-validation, Dataset001_Made, 3d_fullres, nnUNetPlans, nnU",
    ):
        assert any(said in line for line in told.splitlines() if line.startswith("Contradiction: ")), (said, told)


@pytest.mark.parametrize(
    ("number", "other"), [(",120.0\n", ",12.0\n"), (",1.0,120.0", ",2.0,120.0"), ("Anterior", "Other")]
)
def test_every_column_of_the_results_is_compared_with_the_tables_of_metrics(benchmark, capsys, number, other):
    """The diagonal stands for the distance where a label is missed."""
    results = benchmark / "record" / "results.csv"
    results.write_text(results.read_text().replace(number, other, 1))
    build_report(benchmark)
    code, told = verify(benchmark, capsys)
    assert code == 1
    assert "Contradiction: results.csv: the rows of cross-validation, Dataset001_Made" in told


def with_pictures(benchmark: Path) -> Path:
    """Add pictures of cases, as they are kept where the images lie, to the report; returns the page."""
    (comparison,) = analyse(read_record(benchmark / "record")).comparisons
    scores, baseline = comparison.by_case["Dice"], comparison.baseline
    (method,) = set(scores) - {baseline}
    rows = []
    for case, why in choose_cases(scores, baseline, method).items():
        shown = {name: float(scores.loc[case, name]) for name in (baseline, method)}
        pictures = [Picture(title, None, "data:,") for title in ("Image", "Truth")]
        pictures += [Picture(name, score, "data:,") for name, score in shown.items()]
        key = [case, {name: round(score, 6) for name, score in shown.items()}]
        rows.append({"key": key, **dataclasses.asdict(Row(case, why, "slice 1 of 2", pictures))})
    name = "dataset001-made-3d-fullres-cross-validation.json"
    write_text(benchmark / "report" / "panels" / name, json.dumps(rows))
    build_report(benchmark)
    return benchmark / "report" / "index.html"


def test_the_dice_beside_a_picture_is_compared(benchmark, capsys):
    page = with_pictures(benchmark)
    assert verify(benchmark, capsys)[0] == 0
    replace(page, r'class="score">Dice 0\.\d+', 'class="score">Dice 0.111')
    page.with_name("index.html.made-of.json").unlink()
    code, told = verify(benchmark, capsys)
    assert code == 1
    assert re.search(r"Contradiction: report/index.html, line \d+, is not what the record makes", told)


def test_the_dice_beside_a_kept_picture_is_that_of_the_table(benchmark):
    with_pictures(benchmark)
    (kept,) = (benchmark / "report" / "panels").iterdir()
    rows = json.loads(kept.read_text())
    for row in rows:
        row["pictures"][-1]["score"] = 0.111
    kept.write_text(json.dumps(rows))
    build_report(benchmark)
    page = (benchmark / "report" / "index.html").read_text()
    assert "slice 1 of 2" in page
    assert "Dice 0.111" not in page


def test_a_report_of_another_version_is_compared_in_its_numbers_only(benchmark, capsys):
    """Its sentences and tables may be others."""
    replace(benchmark / "report" / "index.html", 'content="nnunet-plugins [^,]*', 'content="nnunet-plugins 0.0.9')
    replace(benchmark / "report" / "report.md", "Mean rank", "Rank")
    (benchmark / "report" / "index.html.made-of.json").unlink()
    code, told = verify(benchmark, capsys)
    assert code == 0, told
    assert "is of nnunet-plugins 0.0.9" in told
    replace(benchmark / "report" / "results.csv", r"Anterior,0\.\d", "Anterior,0.1")
    code, told = verify(benchmark, capsys)
    assert code == 1
    assert "report/results.csv, line 2," in told


def test_code_that_has_changed_since_is_said_and_contradicts_nothing(benchmark, capsys):
    """A trainer that was edited, or upgraded: what the trainings were like is recorded."""
    code_file = benchmark.parent / "elsewhere" / "trainer.py"
    write_text(code_file, "one")
    recipe = benchmark / "recipes" / "a.json"
    write_text(recipe, "{}")
    ledger = Ledger({"output": benchmark})
    marker = ledger.write(recipe, ["python", "-m", "describe"], ledger.identities([code_file])).to_json()
    file = benchmark / "record" / "provenance.json"
    file.write_text(json.dumps({"outputs": [*json.loads(file.read_text())["outputs"], marker]}))
    build_report(benchmark)
    assert verify(benchmark, capsys)[0] == 0
    write_text(code_file, "two")
    code, told = verify(benchmark, capsys)
    assert code == 0, told
    assert f"1 file of code is another one since it was described: {code_file}" in told


def test_a_record_that_could_make_no_report_contradicts(benchmark, capsys):
    replace(benchmark / "record" / "equality.json", "ab12cd34", "0000ffff")
    code, told = verify(benchmark, capsys)
    assert code == 1
    assert "Contradiction: these runs may not stand side by side" in told


def test_an_output_of_what_was_made_again_since_contradicts_without_the_files(benchmark, capsys, monkeypatch):
    """A table of metrics of the first segmentations beside the segmentations of the second training."""
    monkeypatch.delenv("nnUNet_results")
    file = benchmark / "record" / "provenance.json"
    content = json.loads(file.read_text())
    marker = content["outputs"][0]
    (made_of,) = marker["inputs"]
    again = {**marker, "outputs": {made_of: "0123456789abcdef"}, "inputs": {}, "of": {}}
    file.write_text(json.dumps({"outputs": [*content["outputs"], again]}))
    build_report(benchmark)
    code, said = verify(benchmark, capsys)
    assert code == 1
    assert f"was made of another {made_of} than the one that is recorded" in said


def test_a_report_of_the_first_version_is_compared_as_far_as_it_goes(benchmark, capsys):
    for file in (benchmark / "report/index.html.made-of.json", benchmark / "record/provenance.json"):
        file.unlink()
    replace(benchmark / "report" / "index.html", '<meta name="generator"[^>]*>', "")
    code, said = verify(benchmark, capsys)
    assert code == 0, said
    assert "The report has no marker" in said
    assert "drawn by an earlier version" in said
    assert "The record does not say of which files it was made" in said


def test_the_mean_of_nnunets_summary_is_compared(benchmark, capsys):
    record = small_record()
    name = record.results["algorithm"].iloc[0]
    summary = benchmark / "cross-validation" / "summary.json"
    record.about["images"] = {
        "Dataset001_Made/3d_fullres": {
            "images": "",
            "truth": "",
            "ending": ".png",
            "labels": {},
            "predictions": {name: str(summary.parent)},
        }
    }
    record.write(benchmark / "record")
    build_report(benchmark)
    mean = record.results[record.results["algorithm"] == name].groupby("label")["Dice"].mean().mean()
    write_text(summary, json.dumps({"foreground_mean": {"Dice": mean}}))
    code, said = verify(benchmark, capsys)
    assert code == 0, said
    assert "Dice as in nnU-Net's 1 summary.json" in said
    write_text(summary, json.dumps({"foreground_mean": {"Dice": mean + 0.01}}))
    code, said = verify(benchmark, capsys)
    assert code == 1
    assert f"summary.json of {name} has a mean Dice of" in said


def test_no_report_is_said(tmp_path, capsys):
    make_record(algorithms=1, cases=1, folds=1, epochs=1).write(tmp_path / "record")
    assert main(["report", str(tmp_path), "--verify"]) == 2
    assert "has no index.html" in capsys.readouterr().err
