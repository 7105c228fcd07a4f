"""The league table in the docs says what its record says."""

import re
import shutil

import pandas as pd
import pytest
from conftest import ROOT

from nnunet_plugins.cli import main
from nnunet_plugins.report.verification import verify_report

LEAGUE = ROOT / "docs" / "league"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """The report that is made of the record alone."""
    folder = tmp_path_factory.mktemp("league")
    shutil.copytree(LEAGUE / "record", folder / "record")
    assert main(["report", str(folder)]) == 0
    return (folder / "report" / "report.md").read_text()


def section(report: str, beginning: str) -> str:
    """The text below a heading."""
    return re.search(rf"^#+ {beginning}[^\n]*\n\n(.*?)(?=\n\n#|\Z)", report, re.DOTALL | re.MULTILINE)[1].strip()


@pytest.mark.parametrize("heading", ["Results, ranked by mean Dice", "Every pair of ranked algorithms", "Costs"])
def test_a_table_is_the_reports(report, heading):
    page = (ROOT / "docs" / "results.md").read_text()
    table = section(report, heading)
    assert table.startswith("|"), "there is one"
    assert table in page, f"docs/results.md has another table than the record: {heading}"


def test_the_first_sentence_is_the_reports(report):
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    verdict = section(report, "Dataset004_Hippocampus").partition("\n")[0]
    assert " ".join(verdict.split()) in page


def test_the_record_fits_together(report, tmp_path):
    """Nothing in it was changed after what was made of it."""
    shutil.copytree(LEAGUE / "record", tmp_path / "record")
    assert main(["report", str(tmp_path)]) == 0
    assert verify_report(tmp_path, {}).contradictions == []


def test_the_record_is_small():
    assert sum(file.stat().st_size for file in (LEAGUE / "record").iterdir()) < 10**6


def test_every_network_was_trained_in_all_folds():
    runs = pd.read_csv(LEAGUE / "record" / "runs.csv.gz")
    assert set(runs.groupby(["trainer", "seed"])["fold"].agg(lambda folds: tuple(sorted(folds)))) == {(0, 1, 2)}
