"""Metrics: known shapes, a brute-force reference, MONAI itself, nnU-Net's own Dice, and folders as users have them."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from conftest import Sandbox
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from nnunet_plugins.cli import main
from nnunet_plugins.metrics import folders as metrics_folders
from nnunet_plugins.metrics.folders import EvaluationError, evaluate_folders
from nnunet_plugins.metrics.masks import Agreement, compare_masks
from nnunet_plugins.metrics.table import summarise
from nnunet_plugins.workers import finish_jobs


def sphere(shape, spacing, centre, radius):
    """Mask of a sphere; centre and radius in mm."""
    axes = [np.arange(n) * s - c for n, s, c in zip(shape, spacing, centre, strict=True)]
    return sum(a**2 for a in np.meshgrid(*axes, indexing="ij")) <= radius**2


def values(found: Agreement) -> list[float]:
    return [found.dice, found.assd, found.hd95, found.nsd, found.volume_prediction, found.volume_truth]


@pytest.mark.parametrize(("spacing", "shape"), [((1, 1, 1), (50, 50, 50)), ((5, 0.7, 0.7), (14, 70, 70))])
def test_concentric_spheres(spacing, shape):
    """Radii 20 and 15 mm: every point of one surface is 5 mm from the other, within a voxel's size."""
    centre = [(n - 1) / 2 * s for n, s in zip(shape, spacing, strict=True)]
    large, small = (sphere(shape, spacing, centre, radius) for radius in (20, 15))
    found = compare_masks(large, small, spacing, tolerance=1.0)
    voxel = max(spacing)
    assert found.assd == pytest.approx(5, abs=0.5 * voxel)
    assert found.hd95 == pytest.approx(5, abs=voxel)
    assert found.volume_prediction == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=0.03)
    assert found.dice == pytest.approx(2 * 15**3 / (15**3 + 20**3), abs=0.02)
    assert compare_masks(large, small, spacing, tolerance=5 + voxel).nsd == pytest.approx(1, abs=0.02)
    if voxel == 1:
        assert found.nsd == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_counts_in_millimetres_of_its_axis(axis):
    """A plate one voxel thick, moved by two voxels along its normal: every distance is two voxels."""
    spacing = (5.0, 0.7, 1.3)
    truth = np.zeros((9, 9, 9), bool)
    np.moveaxis(truth, axis, 0)[3] = True
    found = compare_masks(np.roll(truth, 2, axis), truth, spacing, tolerance=2 * spacing[axis])
    assert values(found)[:4] == pytest.approx([0, 2 * spacing[axis], 2 * spacing[axis], 1])
    assert compare_masks(np.roll(truth, 2, axis), truth, spacing, tolerance=1.9 * spacing[axis]).nsd == 0


def test_swapping_axes_with_their_spacing_changes_nothing():
    truth, prediction = (np.random.default_rng(seed).random((6, 9, 12)) > 0.6 for seed in (0, 1))
    spacing = (5.0, 0.7, 0.9)
    found = compare_masks(prediction, truth, spacing, tolerance=1.0)
    swapped = compare_masks(prediction.transpose(2, 0, 1), truth.transpose(2, 0, 1), (0.9, 5.0, 0.7), tolerance=1.0)
    assert_allclose(values(swapped), values(found), rtol=1e-6)


def surface(mask):
    """Coordinates of the voxels with a face neighbour outside, one by one."""
    padded = np.pad(mask, 1)
    found = []
    for place in np.argwhere(padded):
        neighbours = [
            tuple(place + step * np.eye(mask.ndim, dtype=int)[a]) for a in range(mask.ndim) for step in (1, -1)
        ]
        if not all(padded[n] for n in neighbours):
            found.append(place)
    return np.array(found)


def reference(prediction, truth, spacing, tolerance):
    """The definitions, word by word."""
    p, t = (surface(mask) * np.array(spacing) for mask in (prediction, truth))
    apart = np.linalg.norm(p[:, None] - t[None], axis=-1)
    there, back = apart.min(1), apart.min(0)
    both = np.concatenate([there, back])
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return [dice, both.mean(), hd95, (both <= tolerance + 1e-6).mean()]


masks = st.sampled_from([(4, 5, 3), (5, 6), (2, 7, 4)]).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape), st.tuples(*[st.floats(0.3, 6)] * len(shape)))
)


@settings(max_examples=60, deadline=None)
@given(masks, st.floats(0.1, 10))
def test_random_masks_against_the_definitions(drawn, tolerance):
    prediction, truth, spacing = drawn
    found = compare_masks(prediction, truth, spacing, tolerance=tolerance)
    if prediction.any() and truth.any():
        expected = reference(prediction, truth, spacing, tolerance)
        assert_allclose(values(found)[:3], expected[:3], rtol=1e-5)
        # A distance within rounding of the tolerance may count either way.
        slack = [reference(prediction, truth, spacing, tolerance * factor)[3] for factor in (1 - 1e-5, 1 + 1e-5)]
        assert slack[0] <= found.nsd <= slack[1]
    else:
        assert np.isnan(found.dice) == (not prediction.any() and not truth.any())


# MONAI's functions warn about an argument that they themselves pass on.
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_cropping_changes_nothing_against_monai_on_the_whole_image():
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    shape, spacing = (20, 40, 44), (3.0, 0.8, 0.8)
    truth, prediction = (sphere(shape, spacing, centre, 9) for centre in ((28, 14, 15), (31, 15.5, 13)))
    found = compare_masks(prediction, truth, spacing, tolerance=2.0)
    p, t = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
    options = {"include_background": True, "spacing": spacing}
    assert found.assd == pytest.approx(
        compute_average_surface_distance(p, t, symmetric=True, **options).item(), rel=1e-6
    )
    assert found.hd95 == pytest.approx(compute_hausdorff_distance(p, t, percentile=95, **options).item(), rel=1e-6)
    assert found.nsd == pytest.approx(compute_surface_dice(p, t, [2.0], **options).item(), rel=1e-6)


def test_every_empty_case():
    nothing, something = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    both = compare_masks(nothing, nothing, (1, 1, 1), tolerance=1)
    assert np.isnan(values(both)[:4]).all()
    assert values(both)[4:] == [0, 0]
    for prediction, truth in ((nothing, something), (something, nothing)):
        one = compare_masks(prediction, truth, (1, 1, 1), tolerance=1)
        assert values(one)[:4] == [0, np.inf, np.inf, 0]
        assert {one.volume_prediction, one.volume_truth} == {0, 0.064}


def test_voxels_that_do_not_count_belong_to_neither_mask():
    truth, prediction = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    truth[:, :4] = prediction[:, 2:] = True
    counts = np.zeros((8, 8, 8), bool)
    counts[:, 2:4] = True
    assert values(compare_masks(prediction, truth, (1, 1, 1), tolerance=1, counts=counts))[:4] == [1, 0, 0, 1]
    assert np.isnan(
        compare_masks(prediction, truth, (1, 1, 1), tolerance=1, counts=~counts & ~truth & ~prediction).dice
    )


def test_a_single_slice_has_an_outline():
    truth, prediction = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    truth[1:8, 1:8] = prediction[1:8, 1:8] = True
    prediction[4, 4] = False  # a hole inside, far from the outline
    flat = compare_masks(prediction, truth, (1, 2), tolerance=1)
    assert flat.hd95 > 0
    for axis in range(3):
        spacing = [1.0, 2.0]
        spacing.insert(axis, 999.0)
        solid = compare_masks(np.expand_dims(prediction, axis), np.expand_dims(truth, axis), spacing, tolerance=1)
        assert solid == flat


@pytest.mark.parametrize(
    ("shape", "spacing", "tolerance", "message"),
    [
        ((4, 4), (1, 1), 1, r"shapes \[\(4, 4\), \(4, 5\)\]"),
        ((4, 5), (1, 1, 1), 1, "fit each other"),
        ((4, 5), (1, 0), 1, r"spacing \(1, 0\)"),
        ((4, 5), (1, 1), np.inf, "tolerance inf"),
    ],
)
def test_impossible_input_is_named(shape, spacing, tolerance, message):
    with pytest.raises(ValueError, match=message):
        compare_masks(np.ones(shape, bool), np.ones((4, 5), bool), spacing, tolerance=tolerance)


KINDS = {
    "labels": {"labels": {"background": 0, "outer": 1, "inner": 2}},
    "ignore": {"labels": {"background": 0, "outer": 1, "inner": 2, "ignore": 3}},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "inner": 2}, "regions_class_order": [1, 2]},
}


@pytest.fixture
def folders(tmp_path):
    """Truth and predictions of four cases, with a label missing from the truth of one and from both of another."""
    random = np.random.default_rng(0)
    for number in range(4):
        truth, prediction = (sphere((8, 20, 18), (3, 1, 1), random.uniform(8, 12, 3), 7).astype(np.uint8) for _ in "12")
        for segmentation in (truth, prediction):
            segmentation[:, :10][segmentation[:, :10] == 1] = 2
        truth[-1] = prediction[-1] = 0
        if number >= 2:
            truth[truth == 2] = 1
        if number == 3:
            prediction[prediction == 2] = 1
        for part, segmentation in (("truth", truth), ("prediction", prediction)):
            write(tmp_path / part / f"case_{number}.nii.gz", segmentation)
    return tmp_path


def write(path, segmentation, spacing=(1.0, 1.0, 3.0)):
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(segmentation)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def describe(folder, kind):
    text = json.dumps({**KINDS[kind], "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz", "numTraining": 4})
    (folder / "dataset.json").write_text(text)


def ignore_the_last_slice(truth):
    for file in truth.iterdir():
        segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        segmentation[-1] = 3
        write(file, segmentation)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dice_is_nnunets(folders, kind):
    describe(folders / "prediction", kind)
    if kind == "ignore":
        ignore_the_last_slice(folders / "truth")
    plans = {"plans_name": "p", "label_manager": "LabelManager"}
    (folders / "plans.json").write_text(json.dumps(plans))
    files = ("-djfile", folders / "prediction" / "dataset.json", "-pfile", folders / "plans.json", "-np", 1)
    Sandbox(folders / "nnunet").run(
        "nnUNetv2_evaluate_folder", folders / "truth", folders / "prediction", *files, "-o", folders / "summary.json"
    )
    arguments = [str(folders / "prediction"), str(folders / "truth"), "-o", str(folders / "metrics.csv"), "-np", "1"]
    assert main(["evaluate", *arguments]) == 0
    table = pd.read_csv(folders / "metrics.csv", dtype={"label": str}).set_index(["case", "label"])
    cases = json.loads((folders / "summary.json").read_text())["metric_per_case"]
    expected = {
        (f"case_{number}", label): metrics["Dice"]
        for number, case in enumerate(cases)
        for label, metrics in case["metrics"].items()
    }
    assert set(table.index) == set(expected)
    for key, dice in expected.items():
        assert table.loc[key, "Dice"] == pytest.approx(dice, rel=0, abs=1e-12, nan_ok=True)
    assert np.isnan(list(expected.values())).any()
    assert dict(zip(table.index.get_level_values("label"), table["name"], strict=True)) == (
        {"(1, 2)": "whole", "2": "inner"} if kind == "regions" else {"1": "outer", "2": "inner"}
    )


def test_summary_counts_empties_and_penalises_with_the_diagonal(folders):
    describe(folders, "labels")
    table = evaluate_folders(folders / "prediction", folders / "truth", folders / "m.csv", processes=1).table
    inner = summarise(table).loc[("2", "inner")]
    assert (inner["cases"], inner["both_empty"], inner["one_empty"]) == (4, 1, 1)
    rows = table[table["label"] == "2"]
    diagonal = np.linalg.norm([8 * 3, 20, 18])
    assert rows["diagonal_mm"].tolist() == pytest.approx([diagonal] * 4)
    assert inner["HD95_mm"] == pytest.approx((rows["HD95_mm"].iloc[:2].sum() + diagonal) / 3)
    assert inner["Dice"] == pytest.approx(rows["Dice"].sum() / 3)


def test_the_diagonal_of_a_slice_has_no_thickness(tmp_path):
    """nnU-Net's images of two dimensions have a third axis of one voxel, of which nobody knows how thick it is."""
    truth, prediction = np.zeros((2, 1, 30, 40), np.uint8)
    truth[0, 5:9, 5:9] = 1
    for part, segmentation in (("truth", truth), ("prediction", prediction)):
        write(tmp_path / part / "case.nii.gz", segmentation, (2.0, 2.0, 999.0))
    describe(tmp_path, "labels")
    table = evaluate_folders(tmp_path / "prediction", tmp_path / "truth", tmp_path / "m.csv", processes=1).table
    assert table["diagonal_mm"].tolist() == pytest.approx([100] * 2)


@pytest.mark.parametrize("place", ["prediction", ".", "prediction/inside"])
def test_the_labels_are_found_where_nnunet_writes_them(folders, place):
    """Beside predictions, beside the truth's folder, or in a model's folder above its validation."""
    prediction = folders / "prediction"
    if place == "prediction/inside":
        (folders / "model" / "fold_0").mkdir(parents=True)
        prediction = prediction.rename(folders / "model" / "fold_0" / "validation")
        describe(folders / "model", "labels")
    else:
        describe(folders / place, "labels")
    assert len(evaluate_folders(prediction, folders / "truth", folders / "m.csv", processes=1).table) == 8


@pytest.mark.parametrize(("asked", "work", "expected"), [(None, 300_000, 1), (None, 1, 4), (2, 300_000, 2)])
def test_as_many_processes_as_have_work(folders, monkeypatch, asked, work, expected):
    """Those of small files would take longer to start than to evaluate all."""
    describe(folders, "labels")
    seen = []
    monkeypatch.setattr(metrics_folders, "WORK_OF_A_PROCESS", work)
    monkeypatch.setattr(metrics_folders, "default_num_processes", 4)
    monkeypatch.setattr(metrics_folders.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(
        metrics_folders, "finish_jobs", lambda jobs, processes: seen.append(processes) or finish_jobs(jobs, 1)
    )
    evaluate_folders(folders / "prediction", folders / "truth", folders / "m.csv", processes=asked)
    assert seen == [expected]


def test_one_bad_case_does_not_cost_the_others(folders, capsys, preloaded):
    describe(folders, "labels")
    write(folders / "prediction" / "case_1.nii.gz", np.zeros((8, 20, 17), np.uint8))
    write(folders / "prediction" / "case_2.nii.gz", np.zeros((8, 20, 18), np.uint8), spacing=(1.0, 1.0, 2.0))
    arguments = [str(folders / "prediction"), str(folders / "truth"), "-o", str(folders / "m.csv"), "-np", "2"]
    assert main(["evaluate", *arguments]) == 1
    captured = capsys.readouterr()
    assert "case_1 is not in it: " in captured.err
    assert "case_1.nii.gz differs in size (8 x 20 x 17 voxels, not 8 x 20 x 18 as truth/case_1.nii.gz)" in captured.err
    assert "case_2.nii.gz differs in spacing (2 x 1 x 1 mm, not 3 x 1 x 1 as truth/case_2.nii.gz)" in captured.err
    assert set(pd.read_csv(folders / "m.csv")["case"]) == {"case_0", "case_3"}
    assert "NSD at 1 mm" in captured.out
    assert "case" in captured.out


def test_missing_things_are_named_before_anything_is_computed(folders):
    def evaluate(prediction="prediction", truth="truth", **options):
        return evaluate_folders(folders / prediction, folders / truth, folders / "m.csv", processes=1, **options)

    with pytest.raises(EvaluationError, match=r"no dataset.json.*give one with -djfile"):
        evaluate()
    describe(folders, "labels")
    with pytest.raises(EvaluationError, match="nowhere is no folder"):
        evaluate("nowhere")
    (folders / "empty").mkdir()
    with pytest.raises(EvaluationError, match=r"empty holds no file that fits \(no file ends in \.nii\.gz\)"):
        evaluate(truth="empty")
    (folders / "prediction" / "case_0.nii.gz").unlink()
    with pytest.raises(EvaluationError, match=r"lacks case_0 of .*--chill"):
        evaluate()
    assert set(evaluate(chill=True).table["case"]) == {"case_1", "case_2", "case_3"}
    with pytest.raises(EvaluationError, match=r"m\.csv exists already"):
        evaluate(chill=True)
    (folders / "truth" / "case_1.nii.gz").unlink()
    with pytest.raises(EvaluationError, match="has no truth for case_1"):
        evaluate(chill=True, overwrite=True)
    with pytest.raises(EvaluationError, match="gone is no folder"):
        evaluate_folders(folders / "prediction", folders / "truth", folders / "gone" / "m.csv")


def test_without_monai_the_extra_is_named(folders):
    describe(folders, "labels")
    code = "import sys; sys.modules['monai'] = None; from nnunet_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["evaluate", str(folders / "prediction"), str(folders / "truth"), "-o", str(folders / "m.csv")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'monai>=1.6.1'" in done.stderr
    assert not (folders / "m.csv").exists()


@pytest.fixture
def merged(folders):
    """The cases as two sources have them, of which one annotates one label alone; the network finds both in all."""
    for part in ("truth", "prediction"):
        for number in range(4):
            name = f"{'one' if number < 2 else 'two'}__{number}.nii.gz"
            (folders / part / f"case_{number}.nii.gz").rename(folders / part / name)
    for number in range(2):
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(folders / "truth" / f"one__{number}.nii.gz")))
        write(folders / "truth" / f"one__{number}.nii.gz", truth * (truth == 1))
    describe(folders, "labels")
    description = json.loads((folders / "dataset.json").read_text())
    description["nnunet_plugins_sources"] = {
        "one": {"dataset": "Dataset001_One", "labels": {"outer": 1}, "cases": ["0", "1"]},
        "two": {"dataset": "Dataset002_Two", "labels": {"inner": 1, "outer": 2}, "cases": ["2", "3"]},
    }
    (folders / "dataset.json").write_text(json.dumps(description))
    return folders


def test_each_case_of_a_merged_dataset_is_scored_in_its_own_labels(merged, capsys):
    arguments = ["evaluate", str(merged / "prediction"), str(merged / "truth"), "-np", "1"]
    assert main([*arguments, "-o", str(merged / "m.csv"), "--by-source"]) == 0
    table = pd.read_csv(merged / "m.csv")
    assert list(zip(table["case"], table["source"], table["name"], strict=True)) == [
        ("one__0", "one", "outer"),
        ("one__1", "one", "outer"),
        *((f"two__{number}", "two", name) for number in (2, 3) for name in ("outer", "inner")),
    ]
    means = summarise(table)["cases"]
    assert means.to_dict() == {(1, "outer"): 4, (2, "inner"): 2}
    by_source = summarise(table, by_source=True)
    assert by_source["cases"].to_dict() == {("one", 1, "outer"): 2, ("two", 1, "outer"): 2, ("two", 2, "inner"): 2}
    assert by_source.loc[("one", 1, "outer"), "Dice"] == pytest.approx(table["Dice"][:2].mean())
    printed = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["one", "1", "outer"] in printed
    assert ["two", "2", "inner"] in printed
    # All labels of all cases, as nnU-Net counts them.
    describe(merged / "truth", "labels")
    more = ["-o", str(merged / "all.csv"), "-djfile", str(merged / "truth" / "dataset.json"), "--by-source"]
    assert main([*arguments, *more]) == 0
    assert "was not merged, so it has no sources" in capsys.readouterr().err
    assert len(pd.read_csv(merged / "all.csv")) == 8


def test_a_case_of_no_source_does_not_cost_the_others(merged, capsys):
    for part in ("truth", "prediction"):
        (merged / part / "one__0.nii.gz").rename(merged / part / "case_0.nii.gz")
    arguments = ["evaluate", str(merged / "prediction"), str(merged / "truth"), "-np", "1"]
    assert main([*arguments, "-o", str(merged / "m.csv")]) == 1
    told = capsys.readouterr().err
    assert "case_0 is not in it: case_0 is of no source: names of cases begin with one__ or two__" in told
    assert (
        "against one dataset's own annotations, as of its test images, compare what nnunet-plugins labels"
        in told.lower()
    )
    assert "a dataset.json without that table (-djfile) counts them all" in told
    assert len(pd.read_csv(merged / "m.csv")) == 5
