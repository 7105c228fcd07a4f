"""The benchmark scripts run; what they measure depends on the machine."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import SimpleITK as sitk
from conftest import ROOT, commands, write_dataset

from nnunet_plugins.cli import main

PYTHON = commands() / "python"
"""An interpreter that finds the heavy libraries loaded."""


def test_training_step():
    script = ROOT / "benchmarks" / "training_step.py"
    options = ["--patch", "18", "20", "17", "--batch", "1", "--steps", "1", "--device", "cpu"]
    trainers = ["nnUNetTrainerASPP3DUNet", "nnUNetTrainerAFN1"]
    result = subprocess.run([PYTHON, script, *options, "-tr", *trainers], capture_output=True, text=True, check=True)
    assert "patch 20x20x20, batch 1" in result.stdout
    rows = [line.split(" | ")[0] for line in result.stdout.splitlines()]
    assert rows[-3:] == [f"| {name}" for name in ("nnUNetTrainer", *trainers)]


def test_engines():
    script = ROOT / "benchmarks" / "engines.py"
    options = ["--patch", "18", "20", "17", "--rounds", "1", "-tr", "nnUNetTrainerVNet"]
    result = subprocess.run([PYTHON, script, *options], capture_output=True, text=True, check=True)
    assert "patch 20x20x20" in result.stdout
    name, *numbers = result.stdout.splitlines()[-1].strip("| ").split(" | ")
    torch, onnxruntime, sooner, openvino, _ = map(float, numbers)
    assert name == "nnUNetTrainerVNet"
    assert min(torch, onnxruntime, openvino) > 0
    assert sooner == pytest.approx(torch / onnxruntime, rel=0.01, abs=0.01)


def test_surface_distances():
    script = ROOT / "benchmarks" / "surface_distances.py"
    result = subprocess.run([PYTHON, script, "--shape", "20", "40", "40"], capture_output=True, text=True, check=True)
    differences = [float(line.split()[-1]) for line in result.stdout.splitlines()[1:-1]]
    assert len(differences) == 2
    assert max(differences) < 1e-6


def test_implicit_fit():
    """A step of the fit has the operations that it should: 6 for each weight and voxel, and 4 where weights stand."""
    script = ROOT / "benchmarks" / "implicit_fit.py"
    options = ["--patch", "6", "8", "6", "--images", "1", "2", "--parts", "1", "4", "--steps", "1", "--runs", "1"]
    trainers = {"nnUNetTrainerMetaSeg": 6 * 2 * 128**2, "nnUNetTrainerNISF": 4 * 3 * 2 * 128**2}
    command = [PYTHON, script, *options, "-tr", *trainers]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0].isdigit()]
    drawn = (4096, 1024), (1024, 256)  # by each of the trainers at inference, and a quarter of that
    expected = [(images, voxels) for parts in drawn for voxels in parts for images in (1, 2)]
    assert [(int(row[0]), int(row[1])) for row in rows] == expected
    each = [of_one for of_one in trainers.values() for _ in range(4)]
    for row, of_one in zip(rows, each, strict=True):
        assert float(row[2]) == pytest.approx(of_one * int(row[1]) / 1e9, rel=0.05)
        assert min(map(float, row[3:])) > 0
    assert result.stdout.count("A case: ") == 2


@pytest.mark.slow
def test_first_steps(small):
    """A trainer that comes twice does the same twice: batches and first weights are equal."""
    script = ROOT / "benchmarks" / "first_steps.py"
    trainers = ["nnUNetTrainerAutofocusUNet", "nnUNetTrainerFIRENet", "nnUNetTrainerAutofocusUNet"]
    options = ["-d", "1", "-p", "small", "--steps", "2", "--every", "1", "--device", "cpu"]
    result = subprocess.run(
        [PYTHON, script, *options, "-tr", *trainers], env=small.env, capture_output=True, text=True, check=True
    )
    _, _, first, other, again = result.stdout.splitlines()
    assert first == again
    assert first.split()[2:] != other.split()[2:]
    assert not any(small.results.iterdir())


def test_makespan():
    script = ROOT / "benchmarks" / "makespan.py"
    options = ["--workers", "2", "--tasks", "3", "--seconds", "0.5"]
    result = subprocess.run([PYTHON, script, *options], capture_output=True, text=True, check=True)
    (line,) = result.stdout.splitlines()
    assert line.startswith("3 tasks of 0.5 s on 2 workers: ")
    taken, ideal, ratio = (float(re.search(rf"{word} ([\d.]+)", line)[1]) for word in ("workers:", "ideal", "ratio"))
    assert ideal == 1
    assert taken >= ideal
    assert abs(ratio - taken / ideal) < 0.1


def test_performance(tmp_path):
    script = ROOT / "benchmarks" / "performance.py"
    # The sizes are the smallest that these networks take, and of FIRENet's rows one of a kind is measured.
    counted, step = "FIRENet bytes 32^3, dropout 0.5", "FIRENet step, dropout 0 /"
    for only, size, number in (("AFN-6", 16, 6), (counted, 32, 2), (step, 32, 1), ("startup", 16, 1), ("help", 16, 1)):
        options = ["--device", "cpu", "--only", only, "--size", str(size), "--rounds", "1"]
        command = [PYTHON, script, *options, "--json", tmp_path / "rows.json"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
        assert len(rows) == number
        for name, row in rows.items():
            assert f"| {name} | " in result.stdout
            assert row["ratio"] == row["ours"] / row["theirs"] > 0
    result = subprocess.run([PYTHON, script, "--device", "cuda", "--list"], capture_output=True, text=True, check=True)
    assert "autofocus layer 64^3, fused / plain" in result.stdout
    assert "peak memory of nnUNetTrainerAFN6, forecast / measured" in result.stdout


def test_gpu_check(tmp_path):
    """The command for a machine with a GPU, on one without: everything runs, and what needs a GPU says so."""
    command = ["bash", ROOT / "benchmarks" / "gpu_check.sh", "run", "--dry-run", "--output", tmp_path]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": str(PYTHON)}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["failed"] == []
    assert found["dry_run"] is True
    assert set(found["networks"]) == {"nnUNetTrainer", "nnUNetTrainerAFN1"}
    for numbers in found["networks"].values():
        assert numbers["saved_bytes"] == pytest.approx(numbers["saved_bytes_forecast"], rel=0.02)
        assert numbers["finite"] is True
        assert numbers["peak_bytes"] is None
    assert found["networks"]["nnUNetTrainerAFN1"]["compiled_difference"] < 1e-4
    assert set(found["forms"]) == {"plain", "shared"}
    assert "| nnUNetTrainerAFN1 | " in (tmp_path / "gpu_check.md").read_text()


def test_bad_inputs(monkeypatch):
    """One input of every kind: an answer, in time, and all files as they were."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "bad_inputs.py"))
    outcomes = script["give_all"](range(len(script["KINDS"])))
    assert {number: outcome for number, outcome in outcomes.items() if outcome.violations} == {}
    assert {outcome.code for outcome in outcomes.values()} == {0, 1, 2}


def test_report_time():
    """The same code on both sides: both build a report."""
    script = ROOT / "benchmarks" / "report_time.py"
    command = [sys.executable, script, "--before", ROOT, "--sizes", "1x2x3x1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"1x2x3x1: now [\d.]+ s, before [\d.]+ s, [\d.]+ of it\n", result.stdout)


def test_partial_datasets(tmp_path, monkeypatch):
    """Halves that are merged again have what the script's full dataset has, but for what nobody annotated."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    folder = write_dataset(tmp_path, "Dataset004_Small", channels=2)
    groups = "case,group\ncase_0,1\ncase_1,1\ncase_2,2\ncase_3,3\ncase_4,2\n"
    (folder / "groups.csv").write_text(groups)
    script = str(ROOT / "benchmarks" / "partial_datasets.py")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    run("halves", "-d", 4, "-o", 104, 105)
    assert main(["merge", "104", "105", "-o", "900", "--name", "Merged", "-np", "1"]) == 0
    run("full", "-d", 900, "--of", 4, "-o", 901)
    parts, whole = tmp_path / "Dataset900_Merged", tmp_path / "Dataset901_MergedFull"
    for case, halved in {"outer__case_0": 2, "outer__case_1": 2, "outer__case_3": 2, "inner__case_4": 1}.items():
        partial, truth, own = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(file / "labelsTr" / f"{name}.nii.gz")))
            for file, name in ((parts, case), (whole, case), (folder, case.split("__")[1]))
        )
        assert (truth == own).all()
        assert (partial == own * (own != halved)).all()
        assert partial.any()
    assert (whole / "groups.csv").read_text() == (parts / "groups.csv").read_text()
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "T1", "1": "FLAIR"}}))
    run("channel", "-d", 4, "FLAIR", "-o", 115)
    images = tmp_path / "Dataset115_SmallFLAIR" / "imagesTr"
    assert (images / "case_2_0000.nii.gz").resolve() == folder / "imagesTr" / "case_2_0001.nii.gz"
    assert len(list(images.iterdir())) == 5


def test_an_export_is_compared_with_nnunets():
    script = ROOT / "benchmarks" / "prediction.py"
    options = ["export", "--labels", "3", "--shape", "9", "20", "18"]
    said = subprocess.run([PYTHON, script, *options], capture_output=True, text=True, check=True).stdout
    ours = next(line for line in said.splitlines() if line.startswith("| ours"))
    assert ours.endswith("| 0 |")
    assert re.search(r"seconds, stock / ours: [\d.]+\npeak memory, ours / stock: [\d.]+\n", said)
