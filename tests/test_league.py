"""`benchmarks/league.py` asks for one benchmark after the other, and goes on from what there is."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
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
trap 'sleep 2; echo saved >> saved; exit $CODE' HUP INT TERM
echo begun >> begun
while :; do sleep 0.1; done
"""


def test_league(tmp_path, monkeypatch, capsys):
    """Two networks at a time, each command asking for all before; a record alone says with which one it goes on."""
    league = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        (folder / league["DATASET"] / "gt_segmentations").mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    plans = {"configurations": {"2d": {}, "3d_fullres": {"patch_size": [40, 56, 40], "batch_size": 7, "kept": 1}}}
    commands_run: list[tuple] = []

    def run(*command: object) -> int:
        commands_run.append(command)
        if command[0] == "nnUNetv2_plan_experiment":
            (folders["nnUNet_preprocessed"] / league["DATASET"] / "nnUNetPlans.json").write_text(json.dumps(plans))
        return 0

    monkeypatch.setitem(league["main"].__globals__, "run", run)
    monkeypatch.setitem(league["main"].__globals__, "COMMITTED", tmp_path / "none")

    def asked() -> list[list[str]]:
        commands_run.clear()
        assert league["main"](["cpu", str(tmp_path / "league"), "--workers", "2"]) == 0
        each = [list(map(str, command)) for command in commands_run if command[0] == "nnunet-plugins"]
        assert all(command[-2:] == ["--workers", "2"] and "--groups" in command for command in each)
        return [command[command.index("-tr") + 1 : -2] for command in each]

    standard, fabric = (f"nnUNetTrainer{name}{league['BUDGET']}" for name in ("", "FIRENet"))
    steps = asked()
    assert [len(step) for step in steps] == [4, 6, 8, 10, 12, 12]
    assert [command[0] for command in commands_run[:2]] == ["nnUNetv2_extract_fingerprint", "nnUNetv2_plan_experiment"]
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
    assert league["main"](["cpu", str(tmp_path / "league"), "--seeds", "1"]) == 2
    assert "has 2 trainings of nnUNetTrainer, more than are asked for: give --seeds 2, or" in capsys.readouterr().err
    segresnet = standard.replace("_12", "SegResNet_12")
    (record / "runs.csv").write_text(whole + f"{league['DATASET']},{segresnet}_2seed,2\n")
    assert league["main"](["cpu", str(tmp_path / "league")]) == 2
    assert "2 trainings of nnUNetTrainerSegResNet, more than are asked for: give another" in capsys.readouterr().err
    for torn in ("", "\0\0"):
        (record / "runs.csv").write_text(torn)
        assert league["main"](["cpu", str(tmp_path / "league")]) == 2
        assert f"{record / 'runs.csv'} cannot be read" in capsys.readouterr().err
    (record / "runs.csv").unlink()
    (record / "runs.csv.gz").unlink()
    assert league["main"](["cpu", str(tmp_path / "league")]) == 2
    assert "has no runs.csv, so it is not whole" in capsys.readouterr().err


def test_league_begins_with_the_whole_committed_record(tmp_path, monkeypatch):
    """Or with none of it: part of a record could not be read, and all would be trained anew."""
    league = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name / league["DATASET"] / "gt_segmentations").mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "nnUNet_preprocessed" / league["DATASET"] / f"{league['PLANS']}.json").write_text("{}")
    (tmp_path / "league" / "record.part").mkdir(parents=True)
    steps: list[tuple] = []
    monkeypatch.setitem(league["main"].__globals__, "run", lambda *command: steps.append(command) or 0)
    league["main"](["cpu", str(tmp_path / "league")])
    committed = {file.name for file in league["COMMITTED"].iterdir()}
    assert {file.name for file in (tmp_path / "league" / "record").iterdir()} == committed
    assert not (tmp_path / "league" / "record.part").exists()
    known = league["recorded"](league["COMMITTED"], league["BUDGET"], [league["DATASET"]])
    assert len(steps) == len(league["steps"]()) - league["first_step"](league["steps"](), known)


def test_league_names_what_is_missing(tmp_path, monkeypatch, capsys):
    league = runpy.run_path(str(ROOT / "benchmarks" / "league.py"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "Dataset004_HippocampusOfOurs").mkdir()
    assert league["main"](["gpu", str(tmp_path / "league")]) == 2
    assert "none of the Decathlon's datasets; nnUNetv2_convert_MSD_dataset" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_raw")
    assert league["main"](["gpu", str(tmp_path / "league")]) == 2
    assert "nnUNet_raw is not set" in capsys.readouterr().err


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

    def run(machine, *more, code=0):
        ran: list[list[str]] = []
        monkeypatch.setitem(league["main"].__globals__, "run", lambda *command: ran.append([*map(str, command)]) or 0)
        assert league["main"]([machine, str(tmp_path / "league"), *more]) == code
        return ran

    return run


def test_groups_stay_together_where_a_dataset_has_some(folders, play):
    """All others have nnU-Net's own folds, and all have five."""
    raw, _, _ = folders
    for name in ("Dataset009_Spleen", "Dataset009_SpleenOfOurs", "Dataset011_Other"):
        (raw.parent / name).mkdir()
    plain = play("gpu")
    (raw / "groups.csv").touch()
    grouped = play("gpu")
    assert [[part for part in command if part != "--groups"] for command in grouped] == plain
    for command in grouped:
        assert command[:2] == ["nnunet-plugins", "benchmark"]
        datasets = command[command.index("-d") + 1 : command.index("--groups")]
        assert datasets == ["Dataset004_Hippocampus", "Dataset009_Spleen"]
        assert command[command.index("--groups") + 1 :][:2] == ["--folds", "5"]


@pytest.mark.parametrize(("machine", "trainer"), [("gpu", "nnUNetTrainer_12epochs"), ("cpu", "nnUNetTrainer")])
def test_leagues_are_told_apart_by_their_budget(folders, play, tmp_path, capsys, machine, trainer):
    (folders[0] / "groups.csv").touch()
    (folders[1] / "nnUNetPlans_small.json").touch()
    (folders[1] / "nnUNetPlans.json").touch()
    (tmp_path / "league" / "record").mkdir(parents=True)
    (tmp_path / "league" / "record" / "runs.csv").write_text(
        f"dataset,trainer,seed\nDataset004_Hippocampus,{trainer}_1seed,1\n"
    )
    assert play(machine, code=2) == []
    assert "is that of another comparison: give another folder" in capsys.readouterr().err


def test_leagues_are_told_apart_by_their_datasets(folders, play, tmp_path, capsys):
    (tmp_path / "league" / "record").mkdir(parents=True)
    runs = tmp_path / "league" / "record" / "runs.csv"
    runs.write_text("dataset,trainer,seed\nDataset104_Hippocampus,nnUNetTrainer_1seed,1\n")
    assert play("gpu", code=2) == []
    assert "is that of another comparison: give another folder" in capsys.readouterr().err
    segresnet = "Dataset004_Hippocampus,nnUNetTrainerSegResNet_1seed,1\n"
    runs.write_text(f"dataset,trainer,seed\n{segresnet}")
    assert len(play("gpu")) == 5
    runs.write_text(runs.read_text() + "Dataset009_Spleen,nnUNetTrainer_1seed,1\n")
    assert play("gpu", code=2) == []
    assert "has results of Dataset009_Spleen, which would be lost" in capsys.readouterr().err


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_a_dry_run_changes_nothing(folders, play, tmp_path, capsys, machine):
    (folders[0] / "groups.csv").touch()
    before = sorted(tmp_path.rglob("*"))
    assert play(machine, "--dry-run", "--workers", "2") == []
    assert sorted(tmp_path.rglob("*")) == before
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    if machine == "cpu":
        assert printed[1] == ["nnUNetv2_plan_experiment", "-d", "4"]
        (folders[1] / "nnUNetPlans.json").write_text("{}")
        assert play(machine, "--dry-run") == []
        assert "plan_experiment" not in capsys.readouterr().out, "plans that are there stay"
        (folders[1] / "nnUNetPlans.json").write_text('{"configurations": {"3d_fullres": {}}}')
        printed = printed[2:]
    assert printed == play(machine, "--workers", "2")


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_seeds_are_counted_from_one(folders, play, capsys, seeds):
    with pytest.raises(SystemExit):
        play("gpu", "--seeds", seeds)
    assert f"'{seeds}' is not a whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["page", "share"])
def test_the_page_takes_no_options_of_a_benchmark(play, capsys, what):
    with pytest.raises(SystemExit):
        play(what, "--dry-run")
    assert f"{what} takes a folder alone" in capsys.readouterr().err


@pytest.fixture
def ending(folders, tmp_path, monkeypatch):
    """The league on GPUs, with the exit codes of its benchmarks to come; returns the benchmarks that were run."""
    league = runpy.run_path(str(SCRIPT))

    def run(codes):
        left, asked = list(codes), []

        def benchmark(*command):
            asked.append(command)
            return left.pop(0)

        monkeypatch.setitem(league["main"].__globals__, "run", benchmark)
        return league["main"](["gpu", str(tmp_path / "league")]), len(asked)

    return run


@pytest.mark.parametrize(
    ("codes", "code", "benchmarks"),
    [([0] * 6, 0, 6), ([1] * 6, 1, 6), ([0, 0, 1, 1, 1, 1], 1, 6), ([0, 130], 130, 2), ([0, 70], 70, 2)],
)
def test_a_network_that_fails_stops_no_others(ending, codes, code, benchmarks):
    assert ending(codes) == (code, benchmarks)


def test_nothing_follows_what_was_refused(ending):
    assert ending([2]) == (2, 1)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 130), ("SIGHUP", 130), ("Ctrl-C", 130), ("Ctrl-C", 0)])
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
        if by == "Ctrl-C":  # the terminal tells all of the group
            os.killpg(league.pid, signal.SIGINT)
        else:
            league.send_signal(signal.Signals[by])
        assert league.wait(timeout=60) == 130
        assert (tmp_path / "saved").read_text() == "saved\n"
        assert (tmp_path / "begun").read_text() == "begun\n"
    finally:
        try:
            os.killpg(league.pid, signal.SIGKILL)
        except ProcessLookupError:
            league.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals")
def test_what_nohup_has_ignored_stays_ignored():
    """Its benchmarks would not end, and the next one would not begin."""
    code = "import runpy, sys; sys.exit(runpy.run_path(sys.argv[1])['run']('sleep', '2'))"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    league = subprocess.Popen(["nohup", sys.executable, "-c", code, SCRIPT], **quiet)
    until = time.monotonic() + 60
    children = Path(f"/proc/{league.pid}/task/{league.pid}/children")
    while not children.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    league.send_signal(signal.SIGHUP)
    assert league.wait(timeout=60) == 0


@pytest.fixture
def docs(tmp_path):
    """A copy of what the page of results is made of."""
    to = tmp_path / "docs"
    shutil.copytree(ROOT / "docs" / "league", to / "league")
    shutil.copy(ROOT / "docs" / "results.md", to)
    return to


def test_a_record_to_share_has_none_of_this_machines_places(tmp_path, docs):
    league = runpy.run_path(str(SCRIPT))
    folder = tmp_path / "m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller"
    shutil.copytree(docs / "league" / "record", folder / "record")
    about = json.loads((folder / "record" / "about.json").read_text())
    for files in about["images"].values():
        # One place begins as the other one does.
        files["images"] = str(folder / "league-raw" / "Dataset004_Hippocampus" / "imagesTr")
        files["predictions"] = {"a": str(folder / "league" / "validation" / "a")}
    about["command"] = (
        f"nnunet-plugins benchmark -o {folder / 'league'} --cluster '{folder}/my files/cluster.yaml' --groups"
    )
    (folder / "record" / "about.json").write_text(json.dumps(about, indent=2))
    assert league["main"](["share", str(folder)]) == 0
    assert league["main"](["share", str(folder)]) == 0
    files = [file.name for file in sorted((folder / "to-share").iterdir())]
    assert {"about.json", "results.csv.gz", "runs.csv.gz"} <= {*files}
    text = (folder / "to-share" / "about.json").read_text()
    assert '"raw/Dataset004_Hippocampus/imagesTr"' in text
    assert '"output/validation/a"' in text
    assert '"nnunet-plugins benchmark -o output --cluster cluster.yaml --groups"' in text
    assert "ller" not in text
    assert "ller" in (folder / "record" / "about.json").read_text(), "the benchmark's own is as it was"


def test_the_page_is_that_of_this_league_and_loses_nothing(tmp_path, docs, monkeypatch, capsys):
    """Also on a full disk: then the old page and record stay."""
    league = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(league["main"].__globals__, "DOCS", docs)
    shutil.copytree(docs / "league" / "record", tmp_path / "league" / "record")
    runs = pd.read_csv(tmp_path / "league" / "record" / "runs.csv.gz")
    before = {file: file.read_bytes() for file in docs.rglob("*") if file.is_file()}

    def page(rows):
        rows.to_csv(tmp_path / "league" / "record" / "runs.csv", index=False)
        code = league["main"](["page", str(tmp_path / "league")])
        assert {file: file.read_bytes() for file in docs.rglob("*") if file.is_file()} == before
        return code, capsys.readouterr().err

    code, said = page(runs[~runs["trainer"].str.contains("SegResNet")])
    assert code == 2
    assert "lacks trainings of nnUNetTrainerSegResNet" in said
    code, said = page(runs.assign(trainer=runs["trainer"].str.replace(league["BUDGET"], "")))
    assert code == 2
    assert "is that of another comparison" in said

    def full(*command):
        folder = command[-1] / "report"
        folder.mkdir()
        (folder / "report.md").write_text("\n".join(f"## {name}\n\ntext\n" for name in headings))
        (command[-1] / "results.md").mkdir()  # where the page cannot be written
        return 0

    headings = [found[1] for found in league["BLOCK"].finditer((docs / "results.md").read_text())]
    monkeypatch.setitem(league["main"].__globals__, "run", full)
    code, said = page(runs)
    assert code == 2
    assert "results.md" in said
