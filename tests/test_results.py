"""The league table in the docs says what its record says."""

import gzip
import hashlib
import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from nnunet_plugins.cli import main
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock
from nnunet_plugins.report.verification import verify_report

LEAGUE = ROOT / "docs" / "league"
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
GLOBALS = SCRIPT["main"].__globals__


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


@pytest.fixture
def docs(folder, tmp_path, monkeypatch) -> Path:
    """A copy of the docs that `page` writes, with the record in `made` and the report that would be made of it."""
    for place in (tmp_path / "docs" / "league", tmp_path / "made"):
        shutil.copytree(LEAGUE / "record", place / "record")
    shutil.copy(ROOT / "docs" / "results.md", tmp_path / "docs")

    def run(*command: object) -> int:
        assert command[:2] == ("nnunet-plugins", "report")
        shutil.copytree(folder / "report", Path(str(command[2]), "report"))
        return 0

    monkeypatch.setitem(GLOBALS, "DOCS", tmp_path / "docs")
    monkeypatch.setitem(GLOBALS, "run", run)
    return tmp_path / "docs"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_page_is_written_anew(docs, report, tmp_path):
    page = docs / "results.md"
    now = page.read_text()
    whole = files(docs)
    shutil.rmtree(docs / "league")
    page.write_text(SCRIPT["BLOCK"].sub(r"\1\2of before", now))
    assert page.read_text().count("of before") == now.count("<!-- end -->") >= 4
    for folder in (tmp_path / "made", docs / "league"):
        assert SCRIPT["main"](["page", str(folder)]) == 0
        assert files(docs) == whole
    with pytest.raises(InputError, match="nothing below Nonsense"):
        SCRIPT["below"]("Nonsense", report)


def test_a_record_is_packed_for_the_page(docs, tmp_path):
    """The one that it is a copy of stays as it is."""
    packed = tmp_path / "made" / "record" / "results.csv.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    before = files(tmp_path / "made")
    assert SCRIPT["main"](["page", str(tmp_path / "made")]) == 0
    assert files(tmp_path / "made") == before
    assert {file.name for file in (docs / "league" / "record").iterdir()} == {
        file.name for file in (LEAGUE / "record").iterdir()
    }


def remove(name: str) -> Callable[[Path], object]:
    return lambda record: (record / name).unlink()


def say(content: dict[str, object]) -> Callable[[Path], object]:
    """Let about.json say something else; nothing of what is None."""

    def change(record: Path) -> None:
        about = {**json.loads((record / "about.json").read_text()), **content}
        (record / "about.json").write_text(json.dumps({name: one for name, one in about.items() if one is not None}))

    return change


def fail(record: Path) -> None:
    say({"complete": False})(record)
    failure = {"task": "train U-Net, fold 1", "command": "nnUNetv2_train", "exit_code": 1, "log": "", "tail": ""}
    (record / "failures.json").write_text(json.dumps([failure]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, r"made/record is no folder"),
        (remove("results.csv.gz"), r"made/record/results\.csv is missing"),
        (remove("about.json"), r"made/record/about\.json is missing"),
        (remove("provenance.json"), r"made/record/provenance\.json is missing"),
        (say({"images": None}), r"made/record/about\.json does not say where the images lie"),
        (say({"complete": False}), r"made/record is not complete"),
        (fail, r"made/record is not complete: train U-Net, fold 1"),
    ],
)
def test_what_is_no_whole_record_replaces_none(docs, tmp_path, capsys, spoil, said):
    before = files(docs)
    spoil(tmp_path / "made" / "record")
    assert SCRIPT["main"](["page", str(tmp_path / "made")]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert files(docs) == before
    assert len(list((docs / "league").iterdir())) == 1


def test_a_report_that_lacks_a_part_of_the_page_replaces_nothing(docs, tmp_path, monkeypatch, capsys):
    """As that of a single network, which has no pairs."""
    before = files(docs)

    def run(*command: object) -> int:
        (folder := Path(str(command[2]), "report")).mkdir()
        (folder / "report.md").write_text("## Dataset004_Hippocampus\n\nU-Net has a Dice of 0.9.\n")
        return 0

    monkeypatch.setitem(GLOBALS, "run", run)
    assert SCRIPT["main"](["page", str(tmp_path / "made")]) == 2
    assert "the report has nothing below Results, ranked" in capsys.readouterr().err
    monkeypatch.setitem(GLOBALS, "run", lambda *_: 2)
    with pytest.raises(SystemExit) as ended:
        SCRIPT["main"](["page", str(tmp_path / "made")])
    assert ended.value.code == 2
    assert files(docs) == before


def test_a_record_that_a_benchmark_writes_is_left_alone(docs, tmp_path, capsys):
    before = files(docs)
    with hold_lock(tmp_path / "made" / "benchmark.lock"):
        assert SCRIPT["main"](["page", str(tmp_path / "made")]) == 2
    assert re.search(r"a benchmark is running in .*made \(process \d+ on .*\); wait for it", capsys.readouterr().err)
    assert files(docs) == before
    assert SCRIPT["main"](["page", str(tmp_path / "made")]) == 0


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
