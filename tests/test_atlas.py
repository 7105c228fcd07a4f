"""`nnunet-plugins evaluate --atlas`: the voxelwise majority of training labels, by nnU-Net's own export and metrics."""

import itertools
import json
import pickle
import re

import numpy as np
import pytest
import SimpleITK as sitk
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from conftest import full_disk
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import Planned, make_planned

from nnunet_plugins.cli import main
from nnunet_plugins.metrics.atlas import Atlas, build_atlas

LABELS = LabelManager({"background": 0, "outer": 1, "inner": 2}, None)


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Planned:
    planned = make_planned(tmp_path, monkeypatch)
    planned.plan((16, 16, 16), (1, 1, 1))
    return planned


def build(
    planned: Planned, *cases: np.ndarray, labels: LabelManager = LABELS, patch=(16, 16, 16), hidden=None
) -> Atlas:
    names = [f"case_{number}" for number in range(len(cases))]
    for name, segmentation in zip(names, cases, strict=True):
        planned.preprocess(name, segmentation)
    return build_atlas(nnUNetDatasetBlosc2(str(planned.folder / "data"), names), names, patch, labels, hidden)


def segment(atlas: Atlas, shape: tuple[int, ...], labels: LabelManager = LABELS) -> np.ndarray:
    return labels.convert_logits_to_segmentation(atlas.logits(shape, labels))


def test_cases_lie_where_the_predictor_puts_them(planned):
    """35 x 50 x 31 voxels begin at 6, 7 and 8 of 48 x 64 x 48; rounding is the padding's own."""
    case = np.zeros((35, 50, 31))
    case[0, 0, 0] = 1
    atlas = build(planned, case, patch=(48, 64, 48))
    assert np.argwhere(atlas.shares[1]).tolist() == [[6, 7, 8]]
    (place,) = np.argwhere(pad_nd_image(case, (48, 64, 48), "constant", {"constant_values": 0})).tolist()
    assert place == [6, 7, 8]


@pytest.mark.parametrize("shape", list(itertools.product((9, 16), (12, 15), (1, 16))))
def test_the_atlas_of_one_case_is_that_case(planned, shape):
    case = np.random.default_rng(0).integers(-1, 3, shape)
    assert (segment(build(planned, case), shape) == np.maximum(case, 0)).all()


def test_the_majority_counts_and_padding_is_background(planned):
    one, two, three = (np.full((16, 16, 16), label) for label in (1, 2, 2))
    atlas = build(planned, one, two, three)
    assert (segment(atlas, (16, 16, 16)) == 2).all()
    # Two of three say nothing outside of their middle.
    atlas = build(planned, one, two[4:12], three[4:12])
    expected = np.zeros((16, 16, 16))
    expected[4:12] = 2
    assert (segment(atlas, (16, 16, 16)) == expected).all()
    assert (segment(atlas, (8, 16, 16)) == 2).all()
    assert atlas.cases == 3


def test_regions_have_a_majority_each(planned):
    labels = LabelManager({"background": 0, "whole": [1, 2], "inner": 2}, [1, 2])
    cases = [np.zeros((16, 16, 16)) for _ in range(5)]
    for case, marks in zip(cases, ((1, 2, 0, 1), (2, 2, 0, 1), (0, 2, 1, 0), (1, 1, 1, 0), (0, 0, 0, 2)), strict=True):
        case[0, 0, :4] = marks
    # Of five: whole 3, 4, 2, 3; inner 1, 3, 0, 1. As labels the first and last would be background and 1.
    assert segment(build(planned, *cases, labels=labels), (16, 16, 16), labels)[0, 0, :5].tolist() == [1, 2, 0, 1, 0]
    half = build(planned, *cases[:2], labels=labels)
    assert segment(half, (16, 16, 16), labels)[0, 0, 0] == 1  # a half is no majority of "inner"


def test_ignored_voxels_have_no_vote(planned):
    labels = LabelManager({"background": 0, "outer": 1, "inner": 2, "ignore": 3}, None)
    cases = [np.zeros((16, 16, 16)) for _ in range(3)]
    for case, marks in zip(cases, ((1, 3, 3), (3, 3, 0), (3, 0, 2)), strict=True):
        case[0, 0, :3] = marks
    atlas = build(planned, *cases, labels=labels)
    assert segment(atlas, (16, 16, 16), labels)[0, 0, :3].tolist() == [1, 0, 0]
    assert atlas.shares[:, 0, 0, 0].tolist() == [0, 1, 0]
    everything = build(planned, np.full((16, 16, 16), 3), labels=labels)
    assert (segment(everything, (16, 16, 16), labels) == 0).all()
    regions = LabelManager({"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3}, [1, 2])
    atlas = build(planned, *cases, labels=regions)
    assert segment(atlas, (16, 16, 16), regions)[0, 0, :3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("regions", [False, True])
def test_what_nobody_annotated_has_no_vote(planned, regions):
    """Two cases of each of two datasets, one label annotated in each: the atlas is that of annotations in full."""
    labels = LabelManager({"background": 0, "outer": [1], "inner": [2, 3]}, [1, 2]) if regions else LABELS
    hidden = {f"case_{number}": [False, number > 1, number < 2][regions:] for number in range(4)}
    cases = [np.zeros((16, 16, 16)) for _ in range(4)]
    for case, marks in zip(cases, ((1, 1, 0, 0), (1, 0, 0, 0), (0, 0, 2, 2), (0, 0, 2, 0)), strict=True):
        case[0, 0, :4] = marks
    atlas = build(planned, *cases, labels=labels, hidden=hidden)
    row = atlas.shares[:, 0, 0, :5].tolist()
    assert row[-2:] == [[1, 0.5, 0, 0, 0], [0, 0, 1, 0.5, 0]]
    assert regions or row[0] == [0, 0.5, 0, 0.5, 1]
    assert segment(atlas, (16, 16, 16), labels)[0, 0, :5].tolist() == [1, 0, 2, 0, 0]


LINEAR = {
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def tell_geometry(planned: Planned, case: str, size: int) -> None:
    """Write what the export of a cube has to know."""
    properties = {
        "sitk_stuff": {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())},
        "spacing": [1.0] * 3,
        "shape_before_cropping": (size,) * 3,
        "bbox_used_for_cropping": [[0, size]] * 3,
        "shape_after_cropping_and_before_resampling": (size,) * 3,
    }
    (planned.folder / "data" / f"{case}.pkl").write_bytes(pickle.dumps(properties))


def test_each_case_counts_with_the_labels_that_its_dataset_annotates(planned, tmp_path, capsys):
    planned.plan((16, 16, 16), (1, 1, 1), **LINEAR)
    one, other = np.zeros((2, 14, 14, 14), np.uint8)
    one[2:6], other[8:12] = 1, 2
    planned.describe(
        nnunet_plugins_sources={
            name: {"dataset": f"Dataset00{number}_{name}", "labels": {label: 1}, "cases": ["a", "b"]}
            for number, (name, label) in enumerate((("One", "outer"), ("Two", "inner")), 2)
        }
    )
    for case, segmentation in (("One__a", one), ("One__b", one), ("Two__a", other), ("Two__b", other)):
        planned.preprocess(case, segmentation)
        tell_geometry(planned, case, 14)
        sitk.WriteImage(
            sitk.GetImageFromArray(segmentation), str(planned.folder / "gt_segmentations" / f"{case}.nii.gz")
        )
    planned.split((["One__a", "Two__a"], ["One__b", "Two__b"]))
    assert main(["evaluate", "--atlas", "-d", "1", "-o", str(tmp_path / "atlas"), "-np", "1"]) == 0
    told = capsys.readouterr()
    assert "1: mean Dice 1.0000" in told.out
    assert "Mean Dice of the atlas, over 2 cases: 1.0000" in told.out
    assert "each case counts with the labels alone that its dataset annotates" in told.err


def test_one_slice_is_an_image_in_2d(planned):
    case = np.random.default_rng(0).integers(0, 3, (1, 11, 14))
    assert (segment(build(planned, case, patch=(1, 16, 16)), (1, 11, 14)) == case).all()


def ready(planned: Planned) -> None:
    for number in range(3):
        planned.preprocess(f"case_{number}", np.zeros((14, 14, 14)))
    planned.split((["case_0", "case_1"], ["case_2"]))
    (planned.folder / "other").mkdir()  # of another configuration


COVER = "make plans that cover them: nnunet-plugins plan -d 1 --cover --like nnUNetPlans"


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda p: None, ["-d", "77"], "'77' is not the number or name"),
        (lambda p: None, ["-c", "3d_cover"], "no configuration '3d_cover', but 3d_fullres"),
        (lambda p: None, ["-f", "1"], "fold 1 does not exist"),
        (lambda p: None, ["predictions", "truth"], "leave out the folders"),
        (lambda p: p.split((["case_0"], [])), [], "a fold without a case in 'val'"),
        (lambda p: p.split((["case_0"], ["case_9"])), [], "names case_9, which the dataset does not have"),
        (
            lambda p: (p.folder / "splits_final.json").unlink(),
            [],
            "as does nnunet-plugins split -d Dataset001_Small --folds 3",
        ),
        (
            lambda p: (p.folder / "data" / "case_1.pkl").rename(p.folder / "other" / "case_1.pkl"),
            [],
            "first of all case_1; do that: nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans -c 3d_fullres",
        ),
        (
            lambda p: p.preprocess("case_2", np.zeros((14, 17, 14))),
            [],
            "1 of 3 cases are larger than the patch 16x16x16 of 3d_fullres in nnUNetPlans, first of all case_2 with "
            f"14x17x14; {COVER}",
        ),
        (lambda p: p.plan((16, 16), (1, 1)), ["-c", "2d"], "3 of 3 cases are larger than the patch 16x16 of 2d"),
        (lambda p: (p.folder / "data" / "case_0_seg.b2nd").write_bytes(b"x"), [], "of case_0 in "),
    ],
)
def test_errors_are_one_line_and_write_nothing(planned, tmp_path, spoil, arguments, message, capsys):
    ready(planned)
    spoil(planned)
    assert main(["evaluate", "--atlas", "-d", "1", "-o", str(tmp_path / "atlas"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nnunet-plugins evaluate: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "atlas").exists()


def test_the_truth_is_no_place_for_it(planned, capsys):
    ready(planned)
    truth = planned.folder / "gt_segmentations"
    there = sorted(truth.iterdir())
    assert main(["evaluate", "--atlas", "-d", "1", "-o", str(truth), "--overwrite"]) == 2
    assert "holds files of a dataset, which nothing replaces" in capsys.readouterr().err
    assert sorted(truth.iterdir()) == there


def test_nothing_with_other_labels_stays_beside_it(planned, tmp_path, capsys):
    ready(planned)
    output = tmp_path / "atlas"
    output.mkdir()
    (output / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "other": 1}, "file_ending": ".nii.gz"})
    )
    (output / "other.nii.gz").touch()
    assert main(["evaluate", "--atlas", "-d", "1", "-o", str(output), "--overwrite"]) == 2
    assert "holds other.nii.gz, with the labels background 0, other 1, and here are" in capsys.readouterr().err
    assert len(list(output.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predictions"], "give the folder of predictions and that of the truth, or --atlas"),
        (["--atlas"], "--atlas needs the dataset: -d DATASET"),
        (["predictions", "truth", "-d", "1"], "give --atlas"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert main(["evaluate", *arguments, "-o", "nowhere"]) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_is_told(planned, tmp_path, capsys):
    """The library that writes .nii.gz would leave a part of it without a word."""
    ready(planned)
    planned.plan((32, 32, 32), (1, 1, 1), **LINEAR)
    for case in ("case_0", "case_1", "case_2"):
        planned.preprocess(case, np.random.default_rng(0).integers(0, 3, (32, 32, 32)))
        tell_geometry(planned, case, 32)
    with full_disk(5000):
        assert main(["evaluate", "--atlas", "-d", "1", "-o", str(tmp_path / "atlas"), "-np", "1"]) == 2
    assert re.search(r"case_2 cannot be written: .*cut off", capsys.readouterr().err)
