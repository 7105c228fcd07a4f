"""The demo: its phantom, its bookkeeping, and the real pipeline at the smallest budget."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import commands
from scipy import ndimage

from nnunet_plugins.benchmark import command, progress
from nnunet_plugins.benchmark.protocol import BenchmarkError
from nnunet_plugins.demo import command_line, phantom
from nnunet_plugins.files import hold_lock

FOREGROUND = [name for name in phantom.LABELS if name != "background"]


def parse(*options: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command_line.add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / phantom.DATASET
    phantom.write_dataset(folder, seed=0)
    return folder


# The phantom


def test_importing_the_demo_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'SimpleITK', 'nnunetv2', 'matplotlib'}"
    code = f"import sys, nnunet_plugins.demo.command_line; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_same_seed_same_bytes_other_seed_other_case(dataset, tmp_path):
    phantom.write_dataset(tmp_path / "again", seed=0)
    files = [path.relative_to(dataset) for path in dataset.rglob("*") if path.is_file()]
    assert len(files) == 2 * (phantom.TRAINING_CASES + phantom.TEST_CASES) + 1
    for file in files:
        assert (dataset / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert not np.array_equal(phantom.make_case(0, 0)[0], phantom.make_case(1, 0)[0])
    assert not np.array_equal(phantom.make_case(0, 0)[0], phantom.make_case(0, 1)[0])


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_every_case_has_structures_of_three_scales(seed):
    for index in range(phantom.TRAINING_CASES + phantom.TEST_CASES):
        image, labels = phantom.make_case(seed, index)
        assert image.shape == labels.shape == phantom.SHAPE
        # nnU-Net crops what is 0; no voxel is, so that every case keeps the planned size.
        assert image.min() > 0
        assert set(np.unique(labels)) == set(phantom.LABELS.values())
        organ, vessel = ((labels == phantom.LABELS[name]).sum() for name in ("organ", "vessel"))
        components, count = ndimage.label(labels == phantom.LABELS["nodule"])
        nodules = np.bincount(components.ravel())[1:]
        assert count >= 2
        assert nodules.max() < 80
        assert vessel > 3 * nodules.max()
        assert organ > 4 * vessel


def test_intensities_alone_do_not_separate_the_labels(dataset):
    images, labels = zip(*(phantom.make_case(0, index) for index in range(phantom.TRAINING_CASES)), strict=True)
    image, label = np.stack(images), np.stack(labels)
    organ, vessel, nodule = (image[label == phantom.LABELS[name]] for name in ("organ", "vessel", "nodule"))
    assert np.percentile(organ, 95) > np.percentile(vessel, 5)
    assert np.percentile(vessel, 95) > np.percentile(nodule, 20)
    assert (image[label == 0] > np.median(nodule)).sum() > 0.3 * nodule.size


def test_dataset_is_in_nnunets_raw_format(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == phantom.LABELS
    assert description["numTraining"] == phantom.TRAINING_CASES
    for part, count in (("Tr", phantom.TRAINING_CASES), ("Ts", phantom.TEST_CASES)):
        labels = sorted((dataset / f"labels{part}").iterdir())
        assert len(labels) == len(list((dataset / f"images{part}").iterdir())) == count
        for file in labels:
            label = sitk.ReadImage(str(file))
            image = sitk.ReadImage(str(dataset / f"images{part}" / file.name.replace(".nii.gz", "_0000.nii.gz")))
            assert image.GetSize() == label.GetSize() == phantom.SHAPE[::-1]
            assert image.GetSpacing() == label.GetSpacing() == (phantom.SPACING,) * 3
            assert image.GetOrigin() == label.GetOrigin()
            assert image.GetDirection() == label.GetDirection()
    assert [file.name for file in sorted((dataset / "labelsTs").iterdir())] == [
        f"{phantom.case_name(phantom.TRAINING_CASES + number)}.nii.gz" for number in range(phantom.TEST_CASES)
    ]


# What the user reads


def test_training_progress_reads_nnunets_lines():
    follow = progress.Training(5, FOREGROUND)
    stamp = "2026-01-02 03:04:05.678901: "
    lines = [
        "Epoch 0 ",
        "Current learning rate: 0.01 ",
        "train_loss 0.269 ",
        "val_loss -0.0834 ",
        "Pseudo dice [np.float32(0.6853), np.float32(0.0), np.float32(nan)] ",
        "Epoch time: 12.41 s ",
    ]
    *silent, told = [follow(stamp + line) for line in lines]
    assert silent == [None] * 5
    assert told == (
        "epoch 1/5  train loss 0.269  pseudo Dice organ 0.69 vessel 0.00 nodule nan  (12 s, about 50 s left)"
    )
    assert follow(stamp + "Training done. ") == "validating"
    assert "organ 0.25 vessel" in str([follow(line) for line in ("Pseudo dice [0.25, 1e-05, 0.5]", "Epoch time: 1 s")])


def test_prediction_progress_names_the_case():
    follow = progress.Prediction()
    assert follow("Predicting phantom_015:") == "predicting phantom_015"
    assert follow("something else") is None


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (7384, "2 h 03 min")])
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    "options", [["--epochs", "0"], ["--iterations", "x"], ["--seed", "-1"], ["--device", "tpu"], ["--seed", "1.5"]]
)
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        parse(*options)
    assert options[0] in capsys.readouterr().err


# Folders, commands and errors


def test_another_setting_is_refused_with_its_name(tmp_path, capsys):
    (tmp_path / "demo.json").write_text(json.dumps({"epochs": 4, "iterations": 10, "seed": 0}))
    assert command_line.run(parse("--output", tmp_path, "--seed", 7)) == 1
    message = capsys.readouterr().err
    assert "--seed 0, not 7" in message
    assert "--output" in message


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert command_line.run(parse("--output", tmp_path)) == 1
    assert "something other than this demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command_line.run(parse("--output", tmp_path / "file" / "demo", "--device", "cpu")) == 1
    assert "cannot write to" in capsys.readouterr().err


def test_too_little_space_is_said_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line.shutil, "disk_usage", lambda path: argparse.Namespace(free=10_000_000))
    assert command_line.run(parse("--output", tmp_path / "demo", "--device", "cpu")) == 1
    assert "0.0 GB free" in capsys.readouterr().err


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path, capsys):
    pytest.importorskip("fcntl")
    with hold_lock(tmp_path / "demo.lock"):
        (tmp_path / "demo.json").write_text(json.dumps({"epochs": 4, "iterations": 10, "seed": 0}))
        assert command_line.run(parse("--output", tmp_path)) == 1
    assert "another demo is running" in capsys.readouterr().err


def test_commands_come_from_this_environment_or_are_missed_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    with pytest.raises(BenchmarkError, match=r"nnUNetv2_train is neither beside .*pip install"):
        command.find("nnUNetv2_train")
    script = tmp_path / "nnUNetv2_train"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert command.find("nnUNetv2_train") == str(script)


def test_environment_overrides_the_users_folders_only(monkeypatch, tmp_path):
    for name in command.FOLDERS:
        monkeypatch.setenv(name, "/data/mine")
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    variables = command_line._variables(tmp_path)
    assert [variables[name] for name in command.FOLDERS] == [str(tmp_path / name) for name in command.FOLDERS]
    assert variables["nnUNet_n_proc_DA"] == "3"
    assert 1 <= int(variables["nnUNet_def_n_proc"]) <= 4


def test_commands_get_the_users_variables_and_our_trainers(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/my/trainers")
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setenv("PASSWORD", "not for others")
    for name in ("nnUNet_n_proc_DA", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    variables = command.environment(slots=10_000)
    assert variables["nnUNet_extTrainer"].split(os.pathsep)[0] == "/my/trainers"
    assert variables["nnUNet_extTrainer"].endswith("scanned")
    assert variables["nnUNet_compile"] == "f"
    assert (variables["nnUNet_n_proc_DA"], variables["OMP_NUM_THREADS"]) == ("1", "1")
    assert "PASSWORD" not in variables
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert command.environment(slots=1)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert int(command.environment(slots=1)["OMP_NUM_THREADS"]) == command.usable_cores()


def test_a_failing_command_is_logged_and_gives_its_exit_code(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "nnUNetv2_broken"
    script.write_text(f"#!{sys.executable}\nfor i in range(30): print('line', i)\nraise SystemExit(3)\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    seen: list[str] = []
    log = tmp_path / "logs" / "1.log"
    assert command.run(["nnUNetv2_broken", "-d", 999], dict(os.environ), log, seen.append) == 3
    assert seen == [f"line {i}" for i in range(30)]
    text = log.read_text()
    assert f"{script} -d 999" in text
    assert "line 29" in text


def test_workers_that_outlive_the_command_neither_block_nor_survive(tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "nnUNetv2_orphan"
    worker = "import time; time.sleep(600)"
    script.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {worker!r}]).pid)\n"
    )
    script.chmod(0o755)
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "bin"))
        command.run(["nnUNetv2_orphan"], dict(os.environ), tmp_path / "1.log", seen.append)
    deadline = time.monotonic() + 10  # the signal takes a moment
    while is_running(int(seen[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(seen[0]))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# The real pipeline


@pytest.mark.slow
def test_a_failing_step_shows_its_log_and_exits_with_1(tmp_path):
    settings = {"epochs": 1, "iterations": 2, "seed": 0}
    (tmp_path / "demo.json").write_text(json.dumps(settings))
    raw = tmp_path / "nnUNet_raw" / phantom.DATASET
    raw.mkdir(parents=True)  # made, as it seems, but empty
    (raw / "dataset.json").write_text("{}")
    options = ["--output", tmp_path, "--epochs", 1, "--iterations", 2, "--device", "cpu"]
    start = [commands() / "nnunet-plugins", "demo", *map(str, options)]
    result = subprocess.run(start, capture_output=True, text=True)
    assert result.returncode == 1
    assert "plan and preprocess, nnUNetPlans: failed: exit code 1" in result.stdout
    assert "Error" in result.stdout
    assert f"preprocess__{phantom.DATASET}__nnUNetPlans.log" in result.stdout
    assert (tmp_path / "benchmark" / "report" / "index.html").is_file()


@pytest.mark.slow
def test_interrupted_resumed_and_complete(tmp_path):
    mine, output = tmp_path / "mine", tmp_path / "demo"
    mine.mkdir()
    options = ["--output", str(output), "--epochs", "2", "--iterations", "1", "--device", "cpu"]
    variables = {**os.environ, **dict.fromkeys(command.FOLDERS, str(mine))}
    # The command as it is, with fewer and smaller cases and half of the networks.
    program = tmp_path / "small_demo.py"
    program.write_text(SMALL)
    start = [commands() / "python", program, "demo", *options]

    # Ctrl-C after the first epoch: exit code 130, one line, no task left running.
    with subprocess.Popen(
        start, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_accept_interrupts
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "epoch 1/2" in line:
                assert len(_tasks_in(output)) > 1
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, "".join(said)
    assert "Run the same command again" in said[-1]
    assert not any("Traceback" in line for line in said)
    deadline = time.monotonic() + 30
    while _tasks_in(output) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _tasks_in(output)

    # The same command goes on and completes.
    result = subprocess.run(start, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "plan and preprocess, nnUNetPlans: done before" in result.stdout
    assert set(pd.read_csv(output / "benchmark" / "record" / "curves.csv")["epoch"]) == {0, 1}
    page = (output / "benchmark" / "report" / "index.html").read_text()
    for name in ("organ", "vessel", "nodule", "U-Net", "AutofocusUNet", "test", "post-processed"):
        assert name in page
    assert "data:image/" in page
    assert not list(output.rglob("*.partial*"))
    assert not list(mine.iterdir())

    # Once more: nothing is repeated.
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".pth", ".gz", ".npz")}
    assert sum(path.name == "checkpoint_final.pth" for path in times) == 2
    again = subprocess.run(start, env=variables, capture_output=True, text=True)
    assert again.returncode == 0
    assert ": done\n" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in times} == times


SMALL = """
from nnunet_plugins.cli import main
from nnunet_plugins.demo import command_line, phantom

command_line.NETWORKS = ("", "AutofocusUNet")
phantom.TRAINING_CASES, phantom.TEST_CASES, phantom.SHAPE = 5, 1, (24, 28, 28)
if __name__ == "__main__":
    raise SystemExit(main())
"""


def _accept_interrupts() -> None:
    """Undo what a shell does to background jobs, so that the test also works in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _tasks_in(folder: Path) -> list[str]:
    """Return the numbers of the processes that write a task's log, where /proc can tell."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(file.startswith(f"{folder / 'benchmark' / 'logs'}/") for file in files) and is_running(
            int(process.name)
        ):
            found.append(process.name)
    return found
