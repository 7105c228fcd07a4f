"""Markers: what an output was made of, and whether that still holds."""

import json
import os
import time
from pathlib import Path

import pytest

from nnunet_plugins import provenance
from nnunet_plugins.provenance import MISSING, Ledger, marker_file, read_marker

COMMAND = ["nnunet-plugins", "evaluate", "-o", "OUT"]


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    for name in ("results", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "results" / "summary.json").write_text("0.8")
    (tmp_path / "out" / "made.csv").write_text("rows")
    ledger = Ledger({"results": tmp_path / "results", "output": tmp_path / "out"}, tmp_path / "out" / "hashes.json")
    made, aside = tmp_path / "out" / "made.csv", tmp_path / "results" / "ensemble.json"
    aside.write_text("0.9")
    ledger.write(made, COMMAND, ledger.identities([tmp_path / "results" / "summary.json"]), [aside])
    return ledger


def fits(ledger: Ledger, command: list[str] = COMMAND) -> bool:
    results = ledger.roots["results"]
    inputs, makes = [results / "summary.json"], [results / "ensemble.json"]
    return ledger.fits(ledger.roots["output"] / "made.csv", command, inputs, makes)


def test_an_output_fits_its_marker(ledger):
    assert fits(ledger)
    marker = read_marker(ledger.roots["output"] / "made.csv")
    assert list(marker.inputs) == ["results/summary.json"]
    assert ledger.differences(marker) == {}


@pytest.mark.parametrize(
    "what", ["input", "input gone", "output", "by-product", "marker gone", "marker torn", "options"]
)
def test_what_changed_is_not_done(ledger, what):
    made, summary = ledger.roots["output"] / "made.csv", ledger.roots["results"] / "summary.json"
    if what == "input":
        summary.write_text("0.9")
    elif what == "input gone":
        summary.unlink()
    elif what == "output":
        made.write_text("ROWS")
    elif what == "by-product":
        summary.with_name("ensemble.json").write_text("of another benchmark")
    elif what == "marker gone":
        marker_file(made).unlink()
    elif what == "marker torn":
        marker_file(made).write_text(marker_file(made).read_text()[:40])
    assert not fits(ledger, [*COMMAND, "--tolerance", "2"] if what == "options" else COMMAND)
    if what == "input gone":
        (found,) = ledger.differences(read_marker(made)).values()
        assert found[1] == MISSING


def test_another_version_is_another_output(ledger, monkeypatch):
    monkeypatch.setattr(provenance.metadata, "version", lambda _: "99")
    assert not fits(ledger)


def test_another_monai_makes_other_metrics(ledger, monkeypatch):
    """Distances are computed by it, and the page names one version."""
    version = provenance.metadata.version
    monkeypatch.setattr(provenance.metadata, "version", lambda name: "99" if name == "monai" else version(name))
    assert not fits(ledger)


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path, monkeypatch):
    """As `cp -p` or a backup leave it."""
    monkeypatch.setattr(provenance, "_FRESH", 0.01)  # seconds
    file, cache = tmp_path / "summary.json", tmp_path / "hashes.json"
    file.write_text("0.8")
    os.utime(file, (1e9, 1e9))
    time.sleep(0.1)
    first = Ledger({}, cache).identity(file)
    assert Ledger({}, cache).identity(file) == first
    assert list(json.loads(cache.read_text())) == [str(file)]
    file.write_text("0.9")
    os.utime(file, (1e9, 1e9))
    assert Ledger({}, cache).identity(file) != first


def test_all_may_be_moved_and_what_nobody_has_is_told_apart(ledger, tmp_path):
    there = {name: root.rename(root.with_name(f"moved-{name}")) for name, root in ledger.roots.items()}
    assert fits(Ledger(there))
    marker = read_marker(there["output"] / "made.csv")
    assert Ledger({"output": there["output"]}).differences(marker) == {
        "results/summary.json": (marker.inputs["results/summary.json"], None),
        "results/ensemble.json": (marker.outputs["results/ensemble.json"], None),
    }


def test_a_folder_is_its_names_and_contents_and_files_are_read_once(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.nii.gz").write_text("one")
    (folder / "a.npz").write_text("big")
    monkeypatch.setattr(provenance, "_FRESH", 0.0)
    time.sleep(0.02)

    def identity(cache: Path | None = None) -> str:
        return Ledger({}, cache).identity(folder)

    first = identity(tmp_path / "hashes.json")
    known = json.loads((tmp_path / "hashes.json").read_text())
    assert list(known) == [str(folder / "a.nii.gz")]
    known[str(folder / "a.nii.gz")][-1] = "remembered"
    (tmp_path / "hashes.json").write_text(json.dumps(known))
    assert identity(tmp_path / "hashes.json") != first == identity()
    (folder / "a.nii.gz").write_text("two")
    changed = identity(tmp_path / "hashes.json")
    (folder / "a.nii.gz").rename(folder / "b.nii.gz")
    assert len({first, changed, identity()}) == 3
