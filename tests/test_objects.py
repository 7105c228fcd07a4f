"""Objects: lesions made by hand, panoptica's numbers, the definitions word by word, and folders of files."""

import json

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lesions import BY_HAND, SHAPE, balls, by_hand, mask
from numpy.testing import assert_allclose
from scipy import ndimage

from nnunet_plugins.cli import main
from nnunet_plugins.errors import InputError
from nnunet_plugins.metrics.folders import evaluate_folders
from nnunet_plugins.metrics.objects import COUNTS, OBJECT_COLUMNS, compare_objects, pool
from nnunet_plugins.planning.objects import OBJECTS, object_labels


def values(prediction, truth, **options) -> list[float]:
    return list(compare_objects(prediction, truth, **options).row().values())


@pytest.mark.parametrize("name", BY_HAND)
def test_lesions_made_by_hand(name):
    prediction, truth, expected = by_hand(name)
    assert_allclose(values(prediction, truth), expected, rtol=1e-12)


@pytest.mark.parametrize("name", BY_HAND)
def test_nothing_depends_on_how_axes_lie(name):
    prediction, truth, expected = by_hand(name)
    turned = (np.flip(one.transpose(2, 0, 1), axis=(0, 2)) for one in (prediction, truth))
    assert_allclose(values(*turned), expected, rtol=1e-12)


# panoptica 2.1.7: components by cc3d, NaiveThresholdMatching(matching_threshold=0.5, strict_threshold=True).
PANOPTICA = {
    "touching": (0, 2, 1, 0.0, 0.0, 0.0),
    "split": (1, 1, 0, 0.6666666666666666, 0.6, 0.39999999999999997),
    "merged": (1, 0, 1, 0.6666666666666666, 0.6666666666666666, 0.4444444444444444),
    "one voxel": (1, 1, 0, 0.6666666666666666, 1.0, 0.6666666666666666),
    "none in the truth": (0, 2, 0, 0.0, 0.0, 0.0),
    "none predicted": (0, 0, 2, 0.0, 0.0, 0.0),
    "none": (0, 0, 0, np.nan, np.nan, np.nan),
    "an IoU of just 0.5": (0, 1, 1, 0.0, 0.0, 0.0),
    "an IoU just above": (1, 0, 0, 1.0, 0.625, 0.625),
    "beside it": (0, 1, 1, 0.0, 0.0, 0.0),
    "many in 2D": (7, 6, 11, 0.45161290322580644, 0.95062656641604, 0.4293152235427278),
    "many in 3D": (11, 6, 11, 0.5641025641025641, 0.8960954878923733, 0.5054897624008259),
}


@pytest.mark.parametrize("name", PANOPTICA)
def test_counts_and_qualities_are_those_of_panoptica(name):
    masks = balls(int(name[-2])) if name.startswith("many") else by_hand(name)[:2]
    found = values(*masks)[:6]
    # Without a pair there is no SQ here, and panoptica has 0.
    expected = [np.nan if n == 4 and not PANOPTICA[name][0] else value for n, value in enumerate(PANOPTICA[name])]
    assert_allclose(found, expected, rtol=1e-12)


def reference(prediction, truth) -> list[float]:
    """The definitions, object by object."""
    parts = [ndimage.label(one, np.ones([3] * one.ndim)) for one in (prediction, truth)]
    ours, theirs = ([labelled == n + 1 for n in range(number)] for labelled, number in parts)
    ious = [[(one & other).sum() / (one | other).sum() for one in ours] for other in theirs]
    pairs = [iou for row in ious for iou in row if iou > 0.5]
    dice = []
    for other in theirs:
        touching = sum((one for one in ours if (one & other).any()), np.zeros_like(other))
        dice.append(2 * (other & touching).sum() / (other.sum() + touching.sum()))
    matched, found, there = len(pairs), len(ours), len(theirs)
    return [
        *(matched, found - matched, there - matched),
        matched / (matched + (found - matched) / 2 + (there - matched) / 2) if found + there else np.nan,
        np.mean(pairs) if pairs else np.nan,
        sum(pairs) / ((found + there) / 2) if found + there else np.nan,
        np.mean(dice) if dice else np.nan,
    ]


two_masks = st.sampled_from([(4, 5, 3), (6, 8), (1, 7, 9)]).flatmap(
    lambda shape: st.tuples(arrays(bool, shape, elements=st.sampled_from([True, False, False])), arrays(bool, shape))
)


@settings(max_examples=60, deadline=None)
@given(two_masks)
def test_random_masks_against_the_definitions(drawn):
    assert_allclose(values(*drawn), reference(*drawn), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 1), (5, 1, 1), (1, 5)])
def test_objects_in_one_line_of_voxels(shape):
    truth = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    one = np.zeros(shape, bool)
    one.flat[0] = True
    assert values(one, truth)[:3] == [1, 0, truth.sum() - 1]


def test_a_slice_is_2d_whichever_way_it_comes():
    prediction, truth = balls(2)
    for axis in range(3):
        assert values(np.expand_dims(prediction, axis), np.expand_dims(truth, axis)) == values(prediction, truth)


def test_what_does_not_count_is_no_object_and_cuts_one_in_two():
    truth = mask(SHAPE, "0:1, 0:1, 0:9")
    prediction = mask(SHAPE, "0:1, 0:1, 0:4", "3:4, 3:4, 0:9")
    counts = ~mask(SHAPE, "0:1, 0:1, 4:5", "3:4, 0:5, 0:14")
    assert_allclose(values(prediction, truth, counts=counts), [1, 0, 1, 2 / 3, 1, 2 / 3, 1 / 2])
    assert_allclose(values(prediction, truth, counts=counts & False), values(truth & False, truth & False))


def test_masks_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"got shapes \[\(4, 4\), \(4, 5\)\]"):
        compare_objects(np.ones((4, 4), bool), np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="2D or 3D"):
        compare_objects(np.ones(4, bool), np.ones(4, bool))


def test_the_objects_of_several_cases_count_together():
    names = ["split", "merged", "none", "none predicted", "none in the truth"]
    rows = [{"case": name, "label": "1", **compare_objects(*by_hand(name)[:2]).row()} for name in names]
    found = pool(pd.DataFrame(rows), ["label"]).loc["1"]
    dice = (18 / 19 + 12 / 15 + 4 / 11) / 5
    iou = 0.6 + 2 / 3
    assert_allclose(found[list(OBJECT_COLUMNS)], [2, 3, 3, 4 / 10, iou / 2, 2 * iou / 10, dice])
    # What is not known of one case is not known of all.
    assert pool(pd.DataFrame([*rows, {"case": "x", "label": "1"}]), ["label"]).loc["1"].isna().all()


LABELS = {"background": 0, "liver": 1, "lesion": 2}


def write(path, segmentation, spacing=(1.0, 1.0, 1.0)):
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(segmentation)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def describe(folder, **more):
    content = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(content))


CASES = ("split", "merged", "none")


@pytest.fixture
def folders(tmp_path):
    """Three cases of lesions within livers, the predictions with the names of the labels."""
    for name in CASES:
        for part, lesions in zip(("prediction", "truth"), by_hand(name), strict=False):
            write(tmp_path / part / f"{name}.nii.gz", 1 + lesions.astype(np.uint8))
    describe(tmp_path / "prediction", **{OBJECTS: ["lesion"]})
    return tmp_path


def evaluated(folders, **options):
    place = folders / "prediction", folders / "truth", folders / "m.csv"
    return evaluate_folders(*place, processes=1, overwrite=True, **options).table


def test_labels_that_dataset_json_names_have_columns_of_objects(folders, capsys):
    arguments = [str(folders / "prediction"), str(folders / "truth"), "-o", str(folders / "m.csv"), "-np", "1"]
    assert main(["evaluate", *arguments]) == 0
    text = (folders / "m.csv").read_text()
    table = pd.read_csv(folders / "m.csv").set_index(["name", "case"])
    assert table.loc["liver", list(OBJECT_COLUMNS)].isna().all(axis=None)
    for name in CASES:
        assert_allclose(table.loc[("lesion", name), list(OBJECT_COLUMNS)].astype(float), by_hand(name)[2])
    assert ",1,1,0,0.666" in text.replace("'", ""), "counts are whole numbers"
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if line.split()[:2] == ["2", "lesion"] and "0.6667" in line)
    dice = (18 / 19 + 12 / 15 + 4 / 11) / 3
    iou = 0.6 + 2 / 3
    expected = ["2", "lesion", "2", "1", "1", "0.6667", f"{iou / 2:.4f}", f"{iou / 3:.4f}", f"{dice:.4f}"]
    assert row == expected
    assert "IoU above 0.5" in shown


def test_the_option_counts_instead_and_without_either_nothing_is_said(folders, capsys):
    both = evaluated(folders, objects=["liver", "lesion"])
    assert both[list(COUNTS)].notna().all(axis=None)
    liver = evaluated(folders, objects=["liver"]).set_index("name")
    assert liver.loc["lesion", list(COUNTS)].isna().all(axis=None)
    describe(folders / "prediction")
    table = evaluated(folders)
    assert not set(OBJECT_COLUMNS) & set(table)
    arguments = [str(folders / "prediction"), str(folders / "truth"), "-o", str(folders / "n.csv"), "-np", "1"]
    assert main(["evaluate", *arguments]) == 0
    assert "Objects" not in capsys.readouterr().out


def test_voxels_may_be_of_any_size(folders):
    before = evaluated(folders)[list(OBJECT_COLUMNS)]
    for file in (*(folders / "prediction").glob("*.nii.gz"), *(folders / "truth").glob("*.nii.gz")):
        write(file, sitk.GetArrayFromImage(sitk.ReadImage(str(file))), spacing=(0.5, 0.7, 6.0))
    pd.testing.assert_frame_equal(evaluated(folders)[list(OBJECT_COLUMNS)], before)


def test_regions_consist_of_objects_too(folders):
    """The liver with its lesions is one object in every case, whatever is in it."""
    labels = {"background": 0, "organ": [1, 2], "lesion": 2}
    describe(folders / "prediction", labels=labels, regions_class_order=[1, 2])
    table = evaluated(folders, objects=["organ", "lesion"]).set_index(["name", "case"])
    assert_allclose(table.loc["organ", "objects_PQ"].astype(float), 1)
    assert_allclose(table.loc[("lesion", "merged"), list(OBJECT_COLUMNS)].astype(float), by_hand("merged")[2])


def test_ignored_voxels_belong_to_no_object(folders):
    describe(folders / "prediction", labels={**LABELS, "ignore": 3}, **{OBJECTS: ["lesion"]})
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "truth" / "merged.nii.gz")))
    truth[0, 0, 6:9] = 3
    write(folders / "truth" / "merged.nii.gz", truth)
    rows = evaluated(folders).set_index(["name", "case"])
    assert_allclose(rows.loc[("lesion", "merged"), list(OBJECT_COLUMNS)].astype(float), [1, 0, 0, 1, 1, 1, 1])


def test_of_a_merged_dataset_each_case_counts_in_the_labels_of_its_source(folders):
    for part in ("prediction", "truth"):
        for name in CASES:
            source = "A" if name == "split" else "B"
            (folders / part / f"{name}.nii.gz").rename(folders / part / f"{source}__{name}.nii.gz")
    sources = {
        "A": {"dataset": "Dataset001_A", "labels": {"liver": 1}, "cases": ["split"]},
        "B": {"dataset": "Dataset002_B", "labels": {"liver": 1, "lesion": 2}, "cases": ["merged", "none"]},
    }
    describe(folders / "prediction", nnunet_plugins_sources=sources, **{OBJECTS: ["lesion"]})
    table = evaluated(folders)
    lesions = table[table["name"] == "lesion"]
    assert lesions["case"].tolist() == ["B__merged", "B__none"]
    assert_allclose(pool(lesions, ["label"]).loc["2", list(COUNTS)], [1, 0, 1])


def test_a_label_that_is_written_as_a_list_is_the_same(folders):
    describe(folders / "prediction", **{OBJECTS: ["lesion"]})
    expected = evaluated(folders)
    (folders / "m.csv").unlink()
    describe(folders / "prediction", labels={"background": 0, "liver": [1], "lesion": [2]}, **{OBJECTS: ["lesion"]})
    pd.testing.assert_frame_equal(evaluated(folders), expected)


@pytest.mark.parametrize(
    ("more", "names", "message"),
    [
        ({OBJECTS: "lesion"}, None, "dataset.json: 'nnunet_plugins_objects' has to be a list, not 'lesion'"),
        ({OBJECTS: [2]}, None, r"dataset.json: 'nnunet_plugins_objects'\[0\] has to be a text, not 2"),
        ({OBJECTS: ["lesoin"]}, None, "'lesoin', which is no label; those of .*dataset.json are liver, lesion"),
        ({}, ["lesoin"], "--objects names 'lesoin', which is no label; those of .*dataset.json are liver, lesion"),
        ({}, ["background"], "--objects names 'background', which is no structure; those of"),
        ({"labels": {**LABELS, "ignore": 3}}, ["ignore"], "'ignore', which is no structure; .* are liver, lesion"),
        ({"labels": {"background": 0}}, ["lesion"], "'lesion', which is no label; .*dataset.json has none but backgr"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_computed(folders, more, names, message):
    describe(folders / "prediction", **more)
    with pytest.raises(InputError, match=message):
        evaluated(folders, objects=names)
    assert not (folders / "m.csv").exists()


def test_a_name_twice_is_one():
    assert object_labels({"labels": LABELS, OBJECTS: ["lesion", "lesion"]}) == ("lesion",)
    assert object_labels({"labels": LABELS, OBJECTS: ["lesion"]}, names=["liver"]) == ("liver",)
    assert object_labels({"labels": LABELS, OBJECTS: []}) == ()


def test_an_atlas_takes_no_objects(capsys, tmp_path):
    assert main(["evaluate", "--atlas", "-d", "4", "-o", str(tmp_path / "a"), "--objects", "lesion"]) == 2
    assert "leave out the folders, -djfile, --chill, --by-source and --objects" in capsys.readouterr().err
