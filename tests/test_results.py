"""The league table in the docs says what its record says."""

import gzip
import hashlib
import re
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from nnunet_plugins.cli import main
from nnunet_plugins.report.verification import verify_report

LEAGUE = ROOT / "docs" / "league"
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a report is made of the record alone."""
    folder = tmp_path_factory.mktemp("league")
    shutil.copytree(LEAGUE / "record", folder / "record")
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.fixture
def report(folder) -> str:
    return (folder / "report" / "report.md").read_text()


def test_the_page_says_what_the_report_says(report):
    """`benchmarks/league.py page` writes it."""
    page = (ROOT / "docs" / "results.md").read_text()
    blocks = list(SCRIPT["BLOCK"].finditer(page))
    assert {block[1] for block in blocks} >= {
        "Dataset004_Hippocampus",
        "Results, ranked by mean Dice",
        "Every pair of ranked algorithms",
        "Costs",
    }
    for block in blocks:
        assert block[0].endswith(SCRIPT["below"](block[1], report)), f"docs/results.md has something else: {block[1]}"


def test_the_page_is_written_anew(folder, report, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    shutil.copytree(LEAGUE / "record", tmp_path / "made" / "record")
    page = tmp_path / "docs" / "results.md"
    now = (ROOT / "docs" / "results.md").read_text()
    page.write_text(SCRIPT["BLOCK"].sub(r"\1\2of before", now))
    assert page.read_text().count("of before") == now.count("<!-- end -->") >= 4
    copy = lambda *command: shutil.copytree(folder / "report", Path(command[-1], "report"))  # noqa: E731
    monkeypatch.setitem(SCRIPT["write_page"].__globals__, "run", copy)
    SCRIPT["write_page"](tmp_path / "made", tmp_path / "docs")
    assert page.read_text() == now
    assert {file.name for file in (tmp_path / "docs" / "league" / "record").iterdir()} >= {"runs.csv.gz"}
    SCRIPT["write_page"](tmp_path / "docs" / "league", tmp_path / "docs")
    assert page.read_text() == now
    with pytest.raises(SystemExit, match="record does not exist"):
        SCRIPT["write_page"](tmp_path / "none", tmp_path / "docs")
    with pytest.raises(SystemExit, match="nothing below Nonsense"):
        SCRIPT["below"]("Nonsense", report)


def test_the_record_fits_together(folder):
    """Nothing in it was changed after what was made of it."""
    assert verify_report(folder, {}).contradictions == []


def test_the_record_names_no_place_of_the_machine_that_made_it():
    for file in (LEAGUE / "record").iterdir():
        text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()
        assert re.findall(r"(?:(?<=[\s\",=])|^)/\w+/\S*", text, re.MULTILINE) == [], file.name


def test_places_are_taken_out_of_a_record_and_it_still_fits_together(tmp_path):
    shutil.copytree(LEAGUE / "record", tmp_path / "record")
    shared = {name: (tmp_path / "record" / name).read_text() for name in ("about.json", "provenance.json")}

    def write(about: str) -> None:
        (tmp_path / "record" / "about.json").write_text(about)
        texts = shared["about.json"], about
        old, new = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)
        made_of = shared["provenance.json"].replace(old, new).replace("environment/", "/opt/nnunet_plugins/")
        (tmp_path / "record" / "provenance.json").write_text(made_of)

    places = {"raw/": "/data/raw/", "output/": "/data/league/", "-o output ": "-o /data/league "}
    about = shared["about.json"]
    for name, place in places.items():
        about = about.replace(name, place)
    write(about)
    for _ in range(2):  # what has no places is left as it is
        SCRIPT["without_places"](tmp_path / "record")
        assert {name: (tmp_path / "record" / name).read_text() for name in shared} == shared
    write(about)
    (tmp_path / "record" / "about.json").write_text(about.replace("12 epochs", "1000 epochs"))
    SCRIPT["without_places"](tmp_path / "record")
    assert main(["report", str(tmp_path)]) == 0
    assert verify_report(tmp_path, {}).contradictions, "a change is not made good"


def test_the_record_is_small():
    assert sum(file.stat().st_size for file in (LEAGUE / "record").iterdir()) < 10**6


def test_every_network_was_trained_in_all_folds():
    runs = pd.read_csv(LEAGUE / "record" / "runs.csv.gz")
    assert set(runs.groupby(["trainer", "seed"])["fold"].agg(lambda folds: tuple(sorted(folds)))) == {(0, 1, 2)}
