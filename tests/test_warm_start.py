"""From a trained stock U-Net to the start of a U-Net with changed blocks."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_plugins.cli import main
from nnunet_plugins.starts.warm_start import warm_start
from nnunet_plugins.trainers.checkpoints import load_checkpoint

STOCK = "nnUNetTrainer_1epochs_1iterations"


@pytest.fixture(scope="module")
def checkpoint(small):
    """A stock U-Net with three stages, of one step."""

    def three_stages(configurations: dict) -> None:
        configuration = configurations["3d_fullres"]
        configuration["patch_size"] = [24, 28, 24]
        arch = configuration["architecture"]["arch_kwargs"]
        arch.update(n_stages=3, features_per_stage=[8, 16, 32], n_conv_per_stage_decoder=[1, 1])
        arch.update({key: arch[key][:3] for key in ("strides", "kernel_sizes", "n_conv_per_stage")})

    small.edit_plans("Dataset001_Small", "three", three_stages)
    small.run("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", STOCK, "-p", "three", "-device", "cpu")
    model = small.results / "Dataset001_Small" / f"{STOCK}__three__3d_fullres"
    return model / "fold_0" / "checkpoint_final.pth"


@pytest.mark.slow
def test_fine_tunes_from_a_stock_u_net(small, checkpoint, capsys):
    """By the commands of the docs; the log of nnU-Net's own loading names every weight it took."""
    start = small.root / "start.pth"
    assert main(["warm-start", str(checkpoint), "-tr", "nnUNetTrainerAutofocusUNet", "-o", str(start)]) == 0
    told = capsys.readouterr().out
    assert "attention" in told
    assert str(start) in told
    trainer = "nnUNetTrainerAutofocusUNet_1epochs_1iterations_NoMirroring"
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer)
    log = small.run(*command, "-p", "three", "-device", "cpu", "-pretrained_weights", start)
    assert "Loading pretrained weights from file" in log
    assert "encoder.stages.2.0.convs.1.conv.attention.0.weight shape" in log


@pytest.mark.slow
def test_keeps_the_trained_weights_and_focuses_on_the_first_rate(checkpoint):
    trained = load_checkpoint(checkpoint)["network_weights"]
    start, new = warm_start(checkpoint, "nnUNetTrainerAutofocusUNet", advantage=7.0)
    assert all(torch.equal(start["network_weights"][key], value) for key, value in trained.items())
    assert new
    assert all(".attention." in name for name in new)
    bias = start["network_weights"]["encoder.stages.2.0.convs.1.conv.attention.2.bias"]
    assert bias[0] == 7
    assert not bias[1:].any()


@pytest.mark.slow
def test_a_network_it_does_not_fit_into_is_named(checkpoint):
    with pytest.raises(
        ValueError, match=r"nnUNetTrainerFIRENet does not contain the network of .*first of all encoder"
    ):
        warm_start(checkpoint, "nnUNetTrainerFIRENet")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


def written(content: object, file: Path) -> Path:
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    return file


HOLDS_CODE = r"can be read safely: it holds posix.system, which may run code.*--run-code-in-checkpoint$"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "no checkpoint of nnU-Net that can be read safely: it is damaged"),
        (b"", "no checkpoint of nnU-Net that can be read safely: it is damaged"),
        (5, "the content has to be an object, not 5"),
        (pickle.dumps(Malicious(), protocol=2), HOLDS_CODE),
        ({"state_dict": {}}, "file.pth is no checkpoint of nnU-Net: the content has no 'network_weights'"),
        ({"network_weights": Malicious()}, HOLDS_CODE),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    file = written(content, tmp_path / "file.pth")
    assert main(["warm-start", str(file), "-tr", "nnUNetTrainerAutofocusUNet", "-o", "out.pth"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pth"]


def test_code_in_a_checkpoint_runs_if_that_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = written({"network_weights": Malicious()}, tmp_path / "file.pth")
    command = ["warm-start", str(file), "-tr", "nnUNetTrainerAutofocusUNet", "-o", "out.pth"]
    assert main([*command, "--run-code-in-checkpoint"]) == 2
    assert "is no checkpoint of nnU-Net" in capsys.readouterr().err
    assert (tmp_path / "owned").exists()


def test_figures_of_other_numpy_versions_are_read(tmp_path):
    """The function that makes a scalar has moved in numpy 2; checkpoints of either version hold its place."""
    figure = np.float64(0.5)
    arguments = {"plans": {"configurations": {}}, "configuration": "2d", "dataset_json": {}}
    content = {"network_weights": {}, "init_args": arguments, "trainer_name": "nnUNetTrainer"}
    content["logging"] = {"dice": [figure]}
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        with (
            zipfile.ZipFile(written(content, tmp_path / "new.pth")) as new,
            zipfile.ZipFile(tmp_path / "file.pth", "w") as file,
        ):
            for name in new.namelist():
                data = new.read(name)
                if name.endswith("data.pkl"):
                    data, changes = re.subn(rb"numpy\._?core\.multiarray", module, data)
                    assert changes == 1
                file.writestr(name, data)
        assert load_checkpoint(tmp_path / "file.pth")["logging"] == {"dice": [figure]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("nonlin", "subprocess.Popen"),
        ("nonlin", "torch.nn.parallel.distributed.os.system"),
        ("network_class_name", "antigravity"),
    ],
)
def test_plans_in_a_checkpoint_name_networks_alone(tmp_path, monkeypatch, checkpoint, capsys, key, place):
    """nnU-Net calls whatever a plan names; with subprocess.Popen for the activation that is any program."""
    monkeypatch.chdir(tmp_path)
    content = torch.load(checkpoint, weights_only=False)
    plans = content["init_args"]["plans"]
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    if key == "nonlin":
        architecture["arch_kwargs"] |= {"nonlin": place, "nonlin_kwargs": {"args": ["touch", "owned"]}}
    else:
        architecture[key] = place
    file = written(content, tmp_path / "file.pth")
    assert main(["warm-start", str(file), "-tr", "nnUNetTrainerAutofocusUNet", "-o", "out.pth"]) == 2
    error = capsys.readouterr().err
    assert f"its plans build the network with '{place}'" in error
    assert "--run-code-in-checkpoint" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pth"]


def test_missing_file_and_existing_output(tmp_path, capsys):
    options = ["-tr", "nnUNetTrainerAutofocusUNet", "-o"]
    assert main(["warm-start", str(tmp_path / "none.pth"), *options, str(tmp_path / "out.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err
    (tmp_path / "out.pth").write_text("mine")
    assert main(["warm-start", str(tmp_path / "none.pth"), *options, str(tmp_path / "out.pth")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.pth").read_text() == "mine"


@pytest.mark.parametrize("more", [[], ["-d", "1"]], ids=["checkpoint", "VGG16"])
def test_an_output_in_a_folder_that_is_not_there(tmp_path, capsys, more):
    """It is told before anything large is read."""
    out = tmp_path / "new" / "out.pth"
    command = ["warm-start", str(tmp_path / "none.pth"), "-tr", "nnUNetTrainerFCN8s", "-o", str(out), *more]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error == f"nnunet-plugins warm-start: {out} cannot be written: {out.parent} is no folder; make it\n"


FULL = """
import resource
import sys
from pathlib import Path

import torch

from nnunet_plugins.errors import InputError
from nnunet_plugins.starts.warm_start import write_start

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a full disk to torch
try:
    write_start({"network_weights": {"a": torch.zeros(100_000)}}, Path(sys.argv[1]))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="resource limits")
def test_a_full_disk_is_one_line(sandbox, tmp_path):
    told = sandbox.run("python", "-c", FULL, tmp_path / "out.pth")
    assert told.startswith(f"{tmp_path / 'out.pth'} cannot be written: ")
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_misspelt_trainer_is_one_line_with_the_nearest_name(checkpoint, capsys):
    assert main(["warm-start", str(checkpoint), "-tr", "nnUNetTrainerAutofocusUnet", "-o", "never.pth"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-plugins warm-start: no trainer 'nnUNetTrainerAutofocusUnet'")
    assert "'nnUNetTrainerAutofocusUNet'" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "2d"], "-c is for VGG16's file, whose plans have to be named: add the dataset, -d"),
        (["-p", "nnUNetPlans"], "-p is for VGG16's file, whose plans have to be named: add the dataset, -d"),
        (["-d", "1", "--advantage", "5"], "--advantage is for checkpoints; with -d, for VGG16's file, leave it out"),
        (
            ["-d", "1", "--run-code-in-checkpoint"],
            "--run-code-in-checkpoint is for checkpoints; with -d, for VGG16's file, leave it out",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, capsys, options, message):
    command = ["warm-start", str(tmp_path / "none.pth"), "-tr", "nnUNetTrainerFCN8s", "-o", str(tmp_path / "out.pth")]
    assert main([*command, *options]) == 2
    assert capsys.readouterr().err == f"nnunet-plugins warm-start: {message}\n"
