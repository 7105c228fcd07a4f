"""Plans that resample nothing."""

import json

import numpy as np
import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from planned import Planned, make_planned

from nnunet_plugins.cli import main


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Planned:
    return make_planned(tmp_path, monkeypatch)


def test_every_image_stays_in_its_voxels_in_data_of_its_own(planned, capsys):
    old = planned.plan((16, 16, 16), (1, 1, 1))
    assert main(["plan", "-d", "1", "--native-resolution"]) == 0
    output = capsys.readouterr().out
    new = planned.read("nnUNetPlans_native")
    assert planned.read("nnUNetPlans") == old
    chosen = PlansManager(new).get_configuration("3d_fullres")
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6))
    for resample in (chosen.resampling_fn_data, chosen.resampling_fn_seg, chosen.resampling_fn_probabilities):
        assert np.array_equal(resample(image, (8, 10, 12), (2, 2, 2), (1, 1, 1)), image)
    assert chosen.data_identifier == "nnUNetPlans_native_3d_fullres"
    same = ("patch_size", "batch_size", "spacing", "architecture")
    before = old["configurations"]["3d_fullres"]
    assert {key: chosen.configuration[key] for key in same} == {key: before[key] for key in same}
    assert "nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans_native -c 3d_fullres" in output
    assert "nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans_native" in output


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({}, ["-c", "3d_lowres"], "nnUNetPlans has no configuration '3d_lowres'; it has 3d_fullres"),
        ({"previous_stage": "3d_lowres"}, [], "3d_fullres is a stage of a cascade, whose resolution is made coarser"),
        ({}, ["--name", "nnUNetPlans"], "the new plans need another name"),
        ({}, ["--like", "none"], "none.json is missing; plans that are there: nnUNetPlans"),
        ({}, ["-tr", "nnUNetTrainer"], "leave out -tr and --cpu"),
    ],
)
def test_what_cannot_be_is_said(planned, more, arguments, message, capsys):
    planned.plan((16, 16, 16), (1, 1, 1), **more)
    files = {file: file.read_bytes() for file in planned.folder.iterdir()}
    assert main(["plan", "-d", "1", "--native-resolution", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {file: file.read_bytes() for file in planned.folder.iterdir()} == files


@pytest.mark.parametrize(
    ("task", "made"), [("--cover", ["3d_fullres", "2d", "3d_cover"]), ("--native-resolution", ["3d_fullres", "2d"])]
)
def test_without_a_name_nnunets_own_configurations_are_taken(planned, task, made, capsys):
    planned.fingerprint(((14, 14, 14), (1, 1, 1)))
    both = planned.plan((16, 16, 16), (1, 1, 1))
    flat = planned.plan((16, 16), (1, 1))["configurations"]["2d"]
    file = planned.folder / "nnUNetPlans.json"
    for found, code in (({"3d_lowres": flat}, 2), ({**both["configurations"], "2d": flat}, 0)):
        file.write_text(json.dumps({**both, "configurations": found}))
        assert main(["plan", "-d", "1", task]) == code
    assert (
        "nnUNetPlans has neither 3d_fullres nor 2d; name a configuration with -c: 3d_lowres" in capsys.readouterr().err
    )
    (new,) = (one for one in planned.folder.glob("nnUNetPlans_*.json"))
    assert list(json.loads(new.read_text())["configurations"]) == made
