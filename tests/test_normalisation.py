"""Plans that normalise images by another of nnU-Net's schemes."""

import json

import pytest
from conftest import Sandbox
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from planned import Planned, make_planned

from nnunet_plugins.cli import main
from nnunet_plugins.datasets.plan_names import NORMALISATIONS
from nnunet_plugins.planning.normalisation import SCHEMES

CHANNELS = {"0": "T1", "1": "CT", "2": "FLAIR"}
INTENSITIES = {"mean": 100.0, "std": 9.0, "min": 3.0, "max": 210.0, "percentile_00_5": 7.0, "percentile_99_5": 200.0}


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Planned:
    planned = make_planned(tmp_path, monkeypatch, channel_names=CHANNELS)
    cropped(planned, 1.0)
    return planned


def cropped(planned: Planned, size: float) -> None:
    """Say how much of the images is left where they are cropped to what is not 0."""
    file = planned.folder / "dataset_fingerprint.json"
    file.write_text(json.dumps({"median_relative_size_after_cropping": size}))


def plan(planned: Planned, **more: object) -> dict:
    """Plans for three channels, one of them CT, with a cascade."""
    plans = planned.plan((16, 16, 16), (1, 1, 1))
    (own,) = plans["configurations"].values()
    own["normalization_schemes"] = ["ZScoreNormalization", "CTNormalization", "ZScoreNormalization"]
    own["use_mask_for_norm"] = [False] * 3
    low = {"inherits_from": "3d_fullres", "data_identifier": "low", "next_stage": "3d_cascade_fullres"}
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"] |= {"3d_lowres": low, "3d_cascade_fullres": second}
    plans["foreground_intensity_properties_per_channel"] = {channel: dict(INTENSITIES) for channel in CHANNELS} | more
    (planned.folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return plans


def run(*arguments: object) -> int:
    return main(["plan", "-d", "1", "--normalisation", *map(str, arguments)])


@pytest.mark.parametrize("name", ["RescaleTo01Normalization", "rescaleto01"])
def test_a_copy_normalises_otherwise_into_data_of_its_own(planned, capsys, name):
    old = plan(planned)
    assert run(name) == 0
    told = capsys.readouterr().out
    new = planned.read("nnUNetPlans_RescaleTo01")
    assert planned.read("nnUNetPlans") == old
    own = new["configurations"]["3d_fullres"]
    assert own["normalization_schemes"] == ["RescaleTo01Normalization"] * 3
    assert own["data_identifier"] == "data_RescaleTo01"
    assert new["configurations"]["3d_lowres"]["data_identifier"] == "low_RescaleTo01"
    assert "data_identifier" not in new["configurations"]["3d_cascade_fullres"], "it takes those of 3d_fullres"
    for content in (old, new):
        content["plans_name"] = ""
        for part in content["configurations"].values():
            for key in ("normalization_schemes", "data_identifier"):
                part.pop(key, None)
    assert new == old, "nothing else is changed"
    assert "nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans_RescaleTo01 -c 3d_fullres" in told
    assert "nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans_RescaleTo01" in told


def test_one_channel_after_the_other(planned, capsys):
    plan(planned)
    assert run("CT", "--channel", 2) == 0
    assert run("NoNormalization", "--channel", 0, "--like", "nnUNetPlans_CT_channel2") == 0
    assert "0        T1     ZScoreNormalization  NoNormalization" in capsys.readouterr().out
    own = planned.read("nnUNetPlans_CT_channel2_No_channel0")["configurations"]["3d_fullres"]
    assert own["normalization_schemes"] == ["NoNormalization", "CTNormalization", "CTNormalization"]
    assert own["data_identifier"] == "data_CT_channel2_No_channel0"


@pytest.mark.parametrize(
    ("scheme", "size", "mask"), [("ZScore", 0.5, True), ("ZScore", 0.8, False), ("RescaleTo01", 0.5, False)]
)
def test_the_mask_is_taken_as_nnu_nets_planner_takes_it(planned, scheme, size, mask):
    plan(planned)
    cropped(planned, size)
    assert run(scheme, "--channel", 1) == 0
    own = planned.read(f"nnUNetPlans_{scheme}_channel1")["configurations"]["3d_fullres"]
    assert own["use_mask_for_norm"] == [False, mask, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clahe"], "'clahe' is no normalisation of nnU-Net's, which has CTNormalization, NoNormalization"),
        (["CT", "--channel", 3], "there is no channel 3; there are 0 (T1), 1 (CT), 2 (FLAIR)"),
        (["CT", "--channel", 1], "nnUNetPlans has CTNormalization for this channel already"),
        (["CT", "-c", "3d_fullres"], "leave out -c"),
        (["CT", "-tr", "nnUNetTrainer"], "leave out -tr and --cpu"),
        (["CT", "--name", "nnUNetPlans"], "the new plans need another name"),
        (["RGBTo01"], "takes intensities from 0 to 255, and channel 2 (FLAIR) has 3 to 300"),
    ],
)
def test_what_cannot_be_is_said(planned, arguments, message, capsys):
    plan(planned, **{"2": {**INTENSITIES, "max": 300.0}})
    files = {file: file.read_bytes() for file in planned.folder.iterdir()}
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert {file: file.read_bytes() for file in planned.folder.iterdir()} == files


def test_channels_are_of_normalisations_and_clipping_needs_the_intensities(planned, capsys):
    plan(planned, **{"0": {}})
    assert main(["plan", "-d", "1", "--cover", "--channel", "0"]) == 2
    assert run("CT") == 2
    told = capsys.readouterr().err
    assert "--channel goes with --normalisation" in told
    assert "nnUNetPlans does not have the intensities of channel 0 (T1), which CTNormalization clips to" in told


def test_nnu_net_preprocesses_by_the_scheme(small: Sandbox):
    """As MRI it would have a mean of 0; every scheme is one of nnU-Net's."""
    small.run("nnunet-plugins", "plan", "-d", 1, "--normalisation", "RescaleTo01", "--like", "small")
    small.run("nnUNetv2_preprocess", "-d", 1, "-plans_name", "small_RescaleTo01", "-c", "3d_fullres", "-np", 1)
    folder = small.preprocessed / "Dataset001_Small"
    (data,) = folder.glob("*3d_fullres_RescaleTo01")
    dataset = infer_dataset_class(str(data))(str(data))
    for case in dataset.identifiers:
        image = dataset.load_case(case)[0][:]
        assert (image.min(), image.max()) == (0, 1)
    assert set(SCHEMES) == set(NORMALISATIONS)
