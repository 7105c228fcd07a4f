"""From a trained stock U-Net to the start of a U-Net with changed blocks."""

import os
import pickle

import pytest
import torch

from nnunet_plugins.cli import main
from nnunet_plugins.trainers.warm_start import load_checkpoint, warm_start

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
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", "nnUNetTrainerAutofocusUNet_1epochs_1iterations")
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "no checkpoint of nnU-Net that can be read safely"),
        (pickle.dumps(Malicious(), protocol=2), "no checkpoint of nnU-Net that can be read safely"),
        ({"state_dict": {}}, "file.pth is no checkpoint of nnU-Net: the content has no 'network_weights'"),
        ({"network_weights": Malicious()}, "no checkpoint of nnU-Net that can be read safely"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    assert main(["warm-start", str(file), "-tr", "nnUNetTrainerAutofocusUNet", "-o", "out.pth"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pth"]


def test_missing_file_and_existing_output(tmp_path, capsys):
    options = ["-tr", "nnUNetTrainerAutofocusUNet", "-o"]
    assert main(["warm-start", str(tmp_path / "none.pth"), *options, str(tmp_path / "out.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err
    (tmp_path / "out.pth").write_text("mine")
    assert main(["warm-start", str(tmp_path / "none.pth"), *options, str(tmp_path / "out.pth")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.pth").read_text() == "mine"


@pytest.mark.slow
def test_a_misspelt_trainer_is_one_line_with_the_nearest_name(checkpoint, capsys):
    assert main(["warm-start", str(checkpoint), "-tr", "nnUNetTrainerAutofocusUnet", "-o", "never.pth"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-plugins warm-start: no trainer 'nnUNetTrainerAutofocusUnet'")
    assert "'nnUNetTrainerAutofocusUNet'" in error
