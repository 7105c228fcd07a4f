"""`benchmarks/league.py` asks for one benchmark after the other, and goes on from what there is."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "league.py"
WITH_ANOTHER_BENCHMARK = """
import runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
main.__globals__["find"] = lambda name: sys.argv[2]
sys.exit(main(sys.argv[3:]))
"""
SLOW_TO_END = """#!/bin/sh
trap 'sleep 2; echo saved >> saved; exit $CODE' INT TERM
echo begun >> begun
while :; do sleep 0.1; done
"""


def test_league(tmp_path, monkeypatch):
    """Two networks at a time, each command asking for all before; a record alone says with which one it goes on."""
    league = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        (folder / league["DATASET"] / "gt_segmentations").mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    plans = {"configurations": {"2d": {}, "3d_fullres": {"patch_size": [40, 56, 40], "batch_size": 7, "kept": 1}}}
    (folders["nnUNet_preprocessed"] / league["DATASET"] / "nnUNetPlans.json").write_text(json.dumps(plans))
    commands_run: list[tuple] = []
    monkeypatch.setitem(league["main"].__globals__, "run", lambda *command: commands_run.append(command) or 0)
    monkeypatch.setitem(league["main"].__globals__, "COMMITTED", tmp_path / "none")
    with pytest.raises(SystemExit, match=r"groups\.csv is missing"):
        league["main"](["cpu", str(tmp_path / "league")])
    (folders["nnUNet_raw"] / league["DATASET"] / "groups.csv").touch()

    def asked() -> list[list[str]]:
        commands_run.clear()
        league["main"](["cpu", str(tmp_path / "league"), "--workers", "2"])
        assert all(command[-2:] == ("--workers", "2") for command in commands_run)
        each = [list(map(str, command)) for command in commands_run]
        return [command[command.index("-tr") + 1 : -2] for command in each]

    standard, fabric = (f"nnUNetTrainer{name}{league['BUDGET']}" for name in ("", "FIRENet"))
    steps = asked()
    assert [len(step) for step in steps] == [4, 6, 8, 10, 12, 12]
    assert steps[0] == [standard, fabric, "--repeats", "1"]
    assert steps[-1][-3:] == ["1", f"{standard}:3", f"{fabric}:3"]
    written = json.loads((folders["nnUNet_preprocessed"] / league["DATASET"] / "nnUNetPlans_small.json").read_text())
    assert written["configurations"] == {"3d_fullres": {"patch_size": [32, 40, 32], "batch_size": 2, "kept": 1}}
    # A record of both first networks and a third one, packed: what it has has to be asked for.
    record = tmp_path / "league" / "record"
    record.mkdir(parents=True)
    rows = [
        f"{league['DATASET']},{name}_1seed,1\n" for name in (standard, fabric, standard.replace("_12", "SegResNet_12"))
    ]
    (record / "runs.csv").write_text("dataset,trainer,seed\n" + "".join(rows))
    whole = (record / "runs.csv").read_text()
    league["pack"](record)
    assert [file.name for file in record.iterdir()] == ["runs.csv.gz"]
    assert asked() == steps[1:]
    # Killed while it was packed; then with a network that was added, and with a second seed.
    (record / "runs.csv").write_text(whole + f"{league['DATASET']},nnUNetTrainerVNet{league['BUDGET']}_1seed,1\n")
    (record / "runs.csv.gz").write_bytes(b"torn")
    assert asked() == steps[1:]
    (record / "runs.csv").write_text(whole + f"{league['DATASET']},{standard}_2seed,2\n")
    with pytest.raises(SystemExit, match=r"has 2 trainings of one network: give --seeds 2, or"):
        league["main"](["cpu", str(tmp_path / "league"), "--seeds", "1"])


def test_league_begins_with_the_whole_committed_record(tmp_path, monkeypatch):
    """Or with none of it: part of a record could not be read, and all would be trained anew."""
    league = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name / league["DATASET"] / "gt_segmentations").mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "nnUNet_raw" / league["DATASET"] / "groups.csv").touch()
    for plans in ("nnUNetPlans", league["PLANS"]):
        (tmp_path / "nnUNet_preprocessed" / league["DATASET"] / f"{plans}.json").write_text("{}")
    (tmp_path / "league" / "record.part").mkdir(parents=True)
    steps: list[tuple] = []
    monkeypatch.setitem(league["main"].__globals__, "run", lambda *command: steps.append(command) or 0)
    league["main"](["cpu", str(tmp_path / "league")])
    committed = {file.name for file in league["COMMITTED"].iterdir()}
    assert {file.name for file in (tmp_path / "league" / "record").iterdir()} == committed
    assert not (tmp_path / "league" / "record.part").exists()
    known = league["recorded"](league["COMMITTED"], league["BUDGET"], [league["DATASET"]])
    assert len(steps) == len(league["steps"]()) - league["first_step"](league["steps"](), known)


def test_league_names_what_is_missing(tmp_path, monkeypatch):
    league = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(SystemExit, match="none of the Decathlon's datasets; nnUNetv2_convert_MSD_dataset"):
        league["main"](["gpu", str(tmp_path / "league")])
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(SystemExit, match="nnUNet_raw is not set"):
        league["main"](["gpu", str(tmp_path / "league")])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders, with an empty dataset of the Decathlon in each."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for name in names:
        (tmp_path / name / "Dataset004_Hippocampus").mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / name))
    return [tmp_path / name / "Dataset004_Hippocampus" for name in names]


@pytest.fixture
def play(tmp_path, monkeypatch):
    """The league with commands that are not run; returns them as texts."""
    league = runpy.run_path(str(SCRIPT))

    def run(machine, *more):
        ran: list[list[str]] = []
        monkeypatch.setitem(league["main"].__globals__, "run", lambda *command: ran.append([*map(str, command)]) or 0)
        assert league["main"]([machine, str(tmp_path / "league"), *more]) == 0
        return ran

    return run


def test_groups_stay_together_where_a_dataset_has_some(folders, play):
    """All others have nnU-Net's own folds."""
    raw, preprocessed, _ = folders
    (raw.parent / "Dataset009_Spleen").mkdir()
    (raw / "groups.csv").touch()
    split = ["nnunet-plugins", "split", "-d", "Dataset004_Hippocampus", "--groups", str(raw / "groups.csv")]
    plan, *commands = play("gpu")
    assert plan[:3] == ["nnUNetv2_plan_and_preprocess", "-d", "4"]
    assert commands[0] == split
    assert all(command[:2] == ["nnunet-plugins", "benchmark"] for command in commands[1:])
    assert all("Dataset009_Spleen" in command and "--groups" not in command for command in commands[1:])
    (preprocessed / "nnUNetPlans.json").touch()
    assert play("gpu") == [plan, *commands], "nnU-Net copies the segmentations last"
    (preprocessed / "gt_segmentations").mkdir()
    assert play("gpu") == commands
    (preprocessed / "splits_final.json").touch()
    assert play("gpu") == [[*split, "--leakage-check"], *commands[1:]]


@pytest.mark.parametrize(("machine", "trainer"), [("gpu", "nnUNetTrainer_12epochs"), ("cpu", "nnUNetTrainer")])
def test_leagues_are_told_apart_by_their_budget(folders, play, tmp_path, machine, trainer):
    (folders[0] / "groups.csv").touch()
    (folders[1] / "nnUNetPlans_small.json").touch()
    (folders[1] / "nnUNetPlans.json").touch()
    (tmp_path / "league" / "record").mkdir(parents=True)
    (tmp_path / "league" / "record" / "runs.csv").write_text(
        f"dataset,trainer,seed\nDataset004_Hippocampus,{trainer}_1seed,1\n"
    )
    with pytest.raises(SystemExit, match="is that of another comparison: give another folder"):
        play(machine)


def test_leagues_are_told_apart_by_their_datasets(folders, play, tmp_path):
    (tmp_path / "league" / "record").mkdir(parents=True)
    runs = tmp_path / "league" / "record" / "runs.csv"
    runs.write_text("dataset,trainer,seed\nDataset104_Hippocampus,nnUNetTrainer_1seed,1\n")
    with pytest.raises(SystemExit, match="is that of another comparison: give another folder"):
        play("gpu")
    runs.write_text(runs.read_text() + "Dataset004_Hippocampus,nnUNetTrainerSegResNet_1seed,1\n")
    assert len(play("gpu")) == 5


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_a_dry_run_changes_nothing(folders, play, tmp_path, capsys, machine):
    (folders[0] / "groups.csv").touch()
    before = sorted(tmp_path.rglob("*"))
    assert play(machine, "--dry-run", "--workers", "2") == []
    assert sorted(tmp_path.rglob("*")) == before
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0][0] == "nnUNetv2_plan_and_preprocess"
    if machine == "cpu":
        (folders[1] / "nnUNetPlans.json").write_text('{"configurations": {"3d_fullres": {}}}')
    assert printed == play(machine, "--workers", "2")


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_seeds_are_counted_from_one(folders, play, capsys, seeds):
    with pytest.raises(SystemExit):
        play("gpu", "--seeds", seeds)
    assert f"'{seeds}' is not a whole number from 1" in capsys.readouterr().err


def test_the_page_takes_no_options_of_a_benchmark(play, capsys):
    with pytest.raises(SystemExit):
        play("page", "--dry-run")
    assert "page takes a folder alone" in capsys.readouterr().err


@pytest.fixture
def ending(folders, tmp_path, monkeypatch):
    """The league on GPUs, with the exit codes of its benchmarks to come; returns the benchmarks that were run."""
    league = runpy.run_path(str(SCRIPT))

    def run(codes):
        left, asked = list(codes), []

        def benchmark(*command):
            asked.append(command)
            (tmp_path / "league" / "record").mkdir(parents=True, exist_ok=True)
            (tmp_path / "league" / "record" / "results.csv").write_text("case\n")
            return left.pop(0)

        monkeypatch.setitem(league["main"].__globals__, "run", benchmark)
        return league["main"](["gpu", str(tmp_path / "league")]), len(asked)

    return run


@pytest.mark.parametrize(
    ("codes", "code", "benchmarks"),
    [([0] * 6, 0, 6), ([1] * 6, 1, 6), ([0, 0, 1, 1, 1, 1], 1, 6), ([0, 130], 130, 2), ([0, 70], 70, 2)],
)
def test_a_network_that_fails_stops_no_others(ending, tmp_path, codes, code, benchmarks):
    """And what is recorded is packed each time."""
    assert ending(codes) == (code, benchmarks)
    assert [file.name for file in (tmp_path / "league" / "record").iterdir()] == ["results.csv.gz"]


def test_nothing_follows_what_was_refused(ending, tmp_path):
    """Nor is anything packed: it may be that another benchmark is running in the folder."""
    assert ending([2]) == (2, 1)
    assert [file.name for file in (tmp_path / "league" / "record").iterdir()] == ["results.csv"]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 130), ("Ctrl-C", 130), ("Ctrl-C", 0)])
def test_a_benchmark_is_waited_for_when_the_league_is_ended(folders, tmp_path, monkeypatch, by, code):
    """It takes its time to end in order; nothing follows, also where it was at its end."""
    monkeypatch.setenv("CODE", str(code))
    benchmark = tmp_path / "benchmark"
    benchmark.write_text(SLOW_TO_END)
    benchmark.chmod(0o755)
    command = [sys.executable, "-c", WITH_ANOTHER_BENCHMARK, SCRIPT, benchmark, "gpu", tmp_path / "league"]
    league = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
        if by == "SIGTERM":
            league.terminate()
        else:  # the terminal tells all of them
            os.killpg(league.pid, signal.SIGINT)
        assert league.wait(timeout=60) == 130
        assert (tmp_path / "saved").read_text() == "saved\n"
        assert (tmp_path / "begun").read_text() == "begun\n"
    finally:
        try:
            os.killpg(league.pid, signal.SIGKILL)
        except ProcessLookupError:
            league.wait()
