"""`nnunet-plugins plan --cover`: plans whose patch holds every image, for every trainer."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from planned import Planned, make_planned

from nnunet_plugins.cli import main
from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.datasets.preprocessed import data_folder
from nnunet_plugins.doctor.dataset import Case
from nnunet_plugins.doctor.images import read_cases
from nnunet_plugins.images.reading import choose_reader
from nnunet_plugins.planning import cover
from nnunet_plugins.planning.cover import Images, cover_plans
from nnunet_plugins.planning.setting import build_network, find_trainer, plan_setting
from nnunet_plugins.planning.stages import plan_stages

TRANSPOSED = [2, 0, 1]  # the axis z of the plans is x of the images


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Planned:
    return make_planned(tmp_path, monkeypatch, transpose_forward=TRANSPOSED)


def test_the_patch_holds_every_image_with_some_to_spare(planned, capsys):
    """Before preprocessing, by the fingerprint; axes and voxels as the plans have them."""
    old = planned.plan((16, 16, 16), (1, 1, 1), batch=30)
    planned.fingerprint(((10, 20, 9), (1, 2, 1)), ((12, 11, 25), (1.0, 1.0, 1.0)))
    assert main(["plan", "-d", "1", "--cover"]) == 0
    output = capsys.readouterr().out
    new = planned.read("nnUNetPlans_cover")
    made = new["configurations"].pop("3d_cover")
    # 25 x 12 x 40 voxels, in the plans' order and spacing; a tenth more, and up to what the U-Net halves once or twice.
    assert made["patch_size"] == [28, 14, 44]
    assert new == {**old, "plans_name": "nnUNetPlans_cover"}
    assert made["inherits_from"] == "3d_fullres"
    assert made["batch_size"] == 30 * 16**3 // (28 * 14 * 44) == 7  # as many voxels as before
    assert made["batch_dice"] is False
    assert not {"spacing", "data_identifier"} & set(made)
    assert "25x12x40" in output
    assert "nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans_cover -c 3d_cover" in output
    assert "nnUNetv2_train 1 3d_cover 0 -tr nnUNetTrainer -p nnUNetPlans_cover" in output


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerFIRENet"])
def test_networks_take_the_patch_with_as_many_stages_as_nnunet_plans_for_it(planned, trainer):
    """Four instead of three: the fourth one has twice the channels."""
    planned.plan((16, 16, 16), (1, 1, 1))
    planned.fingerprint(((40, 40, 40), (1, 1, 1)))
    (made,) = cover_plans("1").configurations.values()
    assert made.patch == (48, 48, 48)
    setting = plan_setting("1", "3d_cover", "nnUNetPlans_cover")
    options = setting.configuration.network_arch_init_kwargs
    assert (options["n_stages"], options["features_per_stage"]) == (4, [4, 8, 16, 32])
    assert (options["n_conv_per_stage"], options["n_conv_per_stage_decoder"]) == ([1] * 4, [1] * 3)
    if trainer == "nnUNetTrainer":
        outputs = build_network(find_trainer(trainer), setting)(torch.zeros(1, 1, *made.patch))
        assert [tuple(x.shape[2:]) for x in outputs] == [(48,) * 3, (24,) * 3, (12,) * 3]
    else:
        build_network(find_trainer(trainer), setting)


def test_the_architecture_is_inherited_where_nothing_of_it_changes(planned):
    planned.plan((16, 16, 16), (1, 1, 1))
    planned.fingerprint(((14, 14, 14), (1, 1, 1)))
    (made,) = cover_plans("1").configurations.values()
    assert (made.patch, made.batch) == ((16, 16, 16), 9)
    assert "architecture" not in planned.read("nnUNetPlans_cover")["configurations"]["3d_cover"]


@pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 1), (1, 0.7, 0.9)])
def test_images_that_are_too_large_get_a_coarser_spacing_and_data_of_their_own(planned, spacing, capsys):
    planned.plan(plan_stages(spacing, (16, 32, 32)).patch, spacing, median_image_size_in_voxels=[1, 1, 1])
    images = [((300, 310, 200), (1.0, 1.0, 1.0)), ((200, 250, 150), (0.8, 1.0, 2.0))]
    planned.fingerprint(*images)
    assert main(["plan", "-d", "1", "--cover", "--name", "mine"]) == 0
    made = planned.read("mine")["configurations"]["3d_cover"]
    assert made["data_identifier"] == "_".join(["mine_3d_cover", *(f"{length:.4g}" for length in made["spacing"])])
    assert "nnUNetv2_preprocess -d 1 -plans_name mine -c 3d_cover" in capsys.readouterr().out
    assert math.prod(made["patch_size"]) <= cover.LARGEST
    ratios = [new / old for new, old in zip(made["spacing"], spacing, strict=True)]
    assert min(ratios) >= 1 < max(ratios)
    shapes = [
        compute_new_shape([shape[axis] for axis in TRANSPOSED], [own[axis] for axis in TRANSPOSED], made["spacing"])
        for shape, own in images
    ]
    assert (1.1 * np.max(shapes, axis=0) <= made["patch_size"]).all()
    assert made["median_image_size_in_voxels"] == [round(n) for n in np.median(shapes, axis=0).tolist()]
    # No coarser than needed: the patch for voxels a little finer would be too large, whatever it is rounded to.
    assert math.prod(1.1 * np.max(shapes, axis=0)) * 2 > cover.LARGEST
    stages = plan_stages(made["spacing"], made["patch_size"])
    assert stages.patch == tuple(made["patch_size"])
    assert made["architecture"]["arch_kwargs"]["strides"] == [list(axes) for axes in stages.strides]
    setting = plan_setting("1", "3d_cover", "mine")
    build_network(find_trainer("nnUNetTrainer"), setting)
    assert setting.configuration.batch_size == 2


def test_sizes_after_resampling_are_nnunets():
    random = np.random.default_rng(0)
    shapes, spacings = random.integers(1, 600, (200, 3)), random.choice([0.5, 0.75, 1.0, 1.25, 2.5], (200, 3))
    target = (0.5, 1.0, 2.0)  # halves, which are rounded to even numbers
    expected = [compute_new_shape(*pair, target) for pair in zip(shapes, spacings, strict=True)]
    assert (Images(shapes, spacings).resampled(target) == expected).all()


def test_cases_that_the_fingerprint_does_not_know_count_once_they_are_preprocessed(planned):
    planned.plan((16, 16, 16), (1, 1, 1))
    planned.fingerprint(((14, 14, 14), (1, 1, 1)))
    planned.preprocess("case_0", np.zeros((14, 14, 14)))
    planned.preprocess("case_1", np.zeros((14, 20, 14)))
    (made,) = cover_plans("1").configurations.values()
    assert (made.largest, made.patch, made.is_preprocessed) == ((14, 20, 14), (16, 24, 16), True)
    (planned.folder / "dataset_fingerprint.json").unlink()
    assert cover_plans("1").configurations["3d_cover"] == made


def test_in_2d_every_image_has_one_slice(planned):
    planned.plan((16, 16), (1, 1))
    planned.fingerprint(((15, 20, 1), (1, 1, 999)), ((30, 8, 1), (1, 1, 999)))
    (made,) = cover_plans("1").configurations.values()
    assert made.patch == (36, 24)
    assert planned.read("nnUNetPlans_cover")["configurations"]["2d_cover"]["inherits_from"] == "2d"
    planned.fingerprint(((15, 20, 1), (1, 1, 999)), ((30, 8, 7), (1, 1, 999)))
    with pytest.raises(PlanError, match=r"^2d: there are images with several slices, up to 7: .* cover 3d_fullres"):
        cover_plans("1", overwrite=True)


def test_plans_that_say_something_else_stay_unless_they_may_go(planned, capsys):
    command = ["plan", "-d", "1", "--cover"]
    before = planned.plan((16, 16, 16), (1, 1, 1))
    planned.fingerprint(((14, 14, 14), (1, 1, 1)))
    assert main(command) == 0
    assert main(command) == 0  # the same again
    mine = planned.folder / "nnUNetPlans_cover.json"
    mine.write_text(mine.read_text().replace("3d_cover", "3d_mine"))
    edited = mine.read_text()
    assert main(command) == 2
    assert f"{mine} is there already and says something else" in capsys.readouterr().err
    assert mine.read_text() == edited
    assert main([*command, "--overwrite"]) == 0
    assert "3d_cover" in mine.read_text()
    assert planned.read("nnUNetPlans") == before


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda d: (d / "dataset_fingerprint.json").unlink(), [], "nnUNetv2_extract_fingerprint -d 1"),
        (lambda d: (d / "dataset_fingerprint.json").write_text("{}"), [], "the content has no 'spacings'"),
        (lambda d: None, ["-c", "3d_lowres"], "no configuration '3d_lowres'; it has 3d_fullres"),
        (lambda d: None, ["--name", "nnUNetPlans", "--overwrite"], "need another name"),
        (lambda d: edit(d, spacing=[3, 1, 1]), [], "3d_fullres: its U-Net is not the one that nnU-Net plans"),
        (lambda d: edit(d, previous_stage="3d_lowres"), [], "cascade is trained on segmentations of the first"),
        (lambda d: None, ["-tr", "nnUNetTrainer"], "leave out -tr and --cpu"),
    ],
)
def test_errors_are_one_line_and_write_nothing(planned, spoil, arguments, message, capsys):
    planned.plan((16, 16, 16), (1, 1, 1))
    planned.fingerprint(((14, 14, 14), (1, 1, 1)))
    spoil(planned.folder)
    files = {file: file.read_bytes() for file in planned.folder.iterdir()}
    assert main(["plan", "-d", "1", "--cover", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-plugins plan: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert {file: file.read_bytes() for file in planned.folder.iterdir()} == files


def edit(folder: Path, **changes: object) -> None:
    file = folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"].update(changes)
    file.write_text(json.dumps(plans))


def test_a_network_that_sees_whole_images_gets_no_smaller_patch(planned, capsys):
    """It would be refused in training, with the advice to make plans that cover."""
    planned.plan((16, 16, 16), (1, 1, 1))
    command = ["plan", "-d", "1", "-tr", "nnUNetTrainerMetaSegPaper", "--gpu-memory"]
    assert main([*command, "0.01"]) == 2
    assert "3d_fullres: a step needs " in (error := capsys.readouterr().err)
    assert "The patch has to hold every image" in error
    assert not list(planned.folder.glob("*GB.json"))
    assert main([*command, "8"]) == 0
    assert "as it is" in capsys.readouterr().out


def test_plans_that_resample_nothing_are_covered_in_the_images_own_voxels(planned):
    planned.plan((16, 16, 16), (1, 1, 1), resampling_fn_data="no_resampling_hack")
    planned.fingerprint(((40, 20, 10), (0.5, 1, 2)))
    (made,) = cover_plans("1").configurations.values()
    assert made.largest == (10, 40, 20)
    planned.fingerprint(((200, 200, 200), (0.5, 1, 2)))
    with pytest.raises(PlanError, match=r"3d_fullres: .* 200x200x200 .* no other spacing"):
        cover_plans("1", overwrite=True)


def test_data_of_another_spacing_are_others(planned, capsys):
    """Where larger images join, the spacing gets coarser still; what lies there is no data of these plans."""
    planned.plan(plan_stages((1, 1, 1), (16, 32, 32)).patch, (1, 1, 1))
    planned.fingerprint(((200, 200, 200), (1, 1, 1)))
    (first,) = cover_plans("1").configurations.values()
    data = data_folder(planned.folder, "nnUNetPlans_cover", "3d_cover")
    for file in (data / "case_0.pkl", planned.folder / "gt_segmentations" / "case_0.nii.gz"):
        file.parent.mkdir()
        file.touch()
    assert cover_plans("1").configurations["3d_cover"].is_preprocessed
    planned.fingerprint(((200, 200, 200), (1, 1, 1)), ((260, 260, 260), (1, 1, 1)))
    (made,) = cover_plans("1", overwrite=True).configurations.values()
    assert made.spacing > first.spacing
    assert not made.is_preprocessed


def test_a_plan_has_exactly_one_task(capsys):
    for arguments in ([], ["--cover", "--gpu-memory", "8"]):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", "-d", "1", "-tr", "nnUNetTrainer", *arguments])
        assert "--cover" in capsys.readouterr().err
    assert main(["plan", "-d", "1", "--gpu-memory", "8"]) == 2
    assert "-tr TRAINER" in capsys.readouterr().err


@pytest.mark.data
def test_the_patch_for_hippocampus(shared_data, tmp_path, monkeypatch):
    raw = shared_data / "Dataset004_Hippocampus"
    files = {file.name[:-12]: Case([str(file)], None) for file in sorted((raw / "imagesTr").glob("*_0000.nii.gz"))}
    reader = choose_reader(
        json.loads((raw / "dataset.json").read_text()), [raw / "imagesTr" / "hippocampus_001_0000.nii.gz"]
    )
    facts = read_cases(files, reader, (), 1).values()
    planned = make_planned(tmp_path, monkeypatch)
    planned.plan((40, 56, 40), (1, 1, 1))
    planned.fingerprint(*((case.cropped, case.channels[0].grid.spacing) for case in facts))
    (made,) = cover_plans("1").configurations.values()
    assert (len(facts), made.largest, made.patch) == (209, (47, 59, 43), (56, 72, 48))
    assert made.batch == 9 * 40 * 56 * 40 // (56 * 72 * 48)
