"""The doctor's checks of a dataset and of a training: each spoils one thing and looks for it in the findings."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import write_dataset
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_plugins._startup import trainer_folder
from nnunet_plugins.cli import main
from nnunet_plugins.doctor import images
from nnunet_plugins.planning.setting import patch_setting

NAME = "Dataset001_Small"
CASES = [f"case_{number}" for number in range(5)]


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """A sound raw dataset with two channels."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return write_dataset(tmp_path / "nnUNet_raw", NAME, shape=(8, 10, 9), channels=2)


@pytest.fixture
def preprocessed(dataset) -> Path:
    """The folder that preprocessing leaves, with the plans of a small U-Net, as far as the doctor reads it."""
    folder = dataset.parents[1] / "nnUNet_preprocessed" / NAME
    shutil.copytree(dataset / "labelsTr", folder / "gt_segmentations")
    shutil.copy(dataset / "dataset.json", folder)
    setting = patch_setting((16, 16, 16), 2, 2, 3)
    configuration = {**setting.configuration.configuration, "data_identifier": "data", "spacing": [1.0, 1.0, 1.0]}
    plans = {"plans_name": "nnUNetPlans", "dataset_name": NAME, "configurations": {"3d_fullres": configuration}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "data").mkdir()
    for case in CASES:
        for ending in ("b2nd", "pkl"):
            (folder / "data" / f"{case}.{ending}").write_bytes(b"x")
    return folder


def examine(capsys, *options: object) -> tuple[int, list[dict]]:
    """Run the doctor; returns its exit code and what is not well."""
    code = main(["doctor", "-d", "1", "--json", *map(str, options)])
    content = json.loads(capsys.readouterr().out)
    assert sum(content["summary"].values()) == len(content["findings"])
    for finding in content["findings"]:
        assert set(finding) == {"section", "level", "text", "remedy", "cases"}
        assert (finding["remedy"] is None) == (finding["level"] == "ok")
    found = [finding for finding in content["findings"] if finding["level"] != "ok"]
    assert code == any(finding["level"] == "problem" for finding in found)
    return code, found


def image(folder: Path, case: str = "case_1", channel: int = 0) -> Path:
    return folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"


def label(folder: Path, case: str = "case_1") -> Path:
    return folder / "labelsTr" / f"{case}.nii.gz"


def change(file: Path, how: Callable[[np.ndarray], np.ndarray], grid: Callable[[sitk.Image], object] = id) -> None:
    before = sitk.ReadImage(str(file))
    after = sitk.GetImageFromArray(how(sitk.GetArrayFromImage(before)))
    grid(after)
    sitk.WriteImage(after, str(file))


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def how(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return how


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def describe(folder: Path, **changes: object) -> None:
    file = folder / "dataset.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def to_nrrd(folder: Path) -> None:
    for file in folder.glob("*Tr/*.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(file).replace(".nii.gz", ".nrrd"))
        file.unlink()
    describe(folder, file_ending=".nrrd")


def same(array: np.ndarray) -> np.ndarray:
    return array


FAULTS: dict[str, tuple[Callable[[Path], object], str, str, list[str]]] = {
    "truncated image": (
        lambda d: image(d).write_bytes(image(d).read_bytes()[:500]),
        *("problem", "1 file cut off: less content than the header says: "),
        ["imagesTr/case_1_0000.nii.gz"],
    ),
    "one byte off": (
        lambda d: image(d).write_bytes(flipped(image(d).read_bytes())),
        *("problem", "1 file damaged: "),
        ["imagesTr/case_1_0000.nii.gz"],
    ),
    "text for a segmentation": (
        lambda d: label(d).write_text("no image"),
        *("problem", "1 file that nnU-Net's reader cannot read: "),
        ["labelsTr/case_1.nii.gz"],
    ),
    "channel missing": (
        lambda d: image(d, channel=1).unlink(),
        *("problem", "without exactly the channels 0000, 0001: case_1 (has 0000)"),
        ["case_1"],
    ),
    "segmentation missing": (
        lambda d: label(d).unlink(),
        *("problem", "without a segmentation CASE.nii.gz in labelsTr: case_1"),
        ["case_1"],
    ),
    "name without channel": (
        lambda d: shutil.copy(image(d), d / "imagesTr" / "other.nii.gz"),
        *("problem", "1 file whose names have no number of a channel"),
        ["other.nii.gz"],
    ),
    "other size": (
        lambda d: change(label(d), lambda array: array[:-1]),
        *(
            "problem",
            "differ in size: case_1 (case_1.nii.gz: 7 x 10 x 9 voxels, not 8 x 10 x 9 as case_1_0000.nii.gz)",
        ),
        ["case_1"],
    ),
    "other spacing": (
        lambda d: change(image(d, channel=1), same, lambda new: new.SetSpacing((1, 1, 1.01))),
        *("problem", "whose files differ in spacing: case_1"),
        ["case_1"],
    ),
    "other origin": (
        lambda d: change(label(d), same, lambda new: new.SetOrigin((0, 0, 5))),
        *("warning", "differ in origin or direction, which nnU-Net overlooks: case_1"),
        ["case_1"],
    ),
    "other direction": (
        lambda d: change(label(d), same, lambda new: new.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))),
        *("warning", "differ in origin or direction, which nnU-Net overlooks: case_1"),
        ["case_1"],
    ),
    "NaN": (
        lambda d: change(image(d), put(np.nan)),
        *("warning", "that SimpleITK, and so nnU-Net, reads as 0: case_1 (case_1_0000.nii.gz: 1 voxels)"),
        ["case_1"],
    ),
    "infinite": (
        lambda d: change(image(d), put(-np.inf)),
        *("warning", "that SimpleITK, and so nnU-Net, reads as 0: case_1 (case_1_0000.nii.gz: 1 voxels)"),
        ["case_1"],
    ),
    "NaN that nnU-Net sees": (
        lambda d: (to_nrrd(d), change(d / "imagesTr" / "case_1_0000.nrrd", put(np.nan))),
        *("problem", "with NaN or infinite intensities: case_1 (case_1_0000.nrrd: 1 voxels)"),
        ["case_1"],
    ),
    "constant": (
        lambda d: change(image(d), np.zeros_like),
        *("warning", "with a constant image: case_1 (case_1_0000.nii.gz)"),
        ["case_1"],
    ),
    "one channel twice": (
        lambda d: shutil.copy(image(d), image(d, channel=1)),
        *("warning", "with the same image in two channels: case_1 (case_1_0000.nii.gz and case_1_0001.nii.gz)"),
        ["case_1"],
    ),
    "a voxel far out": (
        lambda d: change(image(d), put(1e6)),
        *("warning", "over 100 times the spread of the others away from them: case_1"),
        ["case_1"],
    ),
    "undeclared label": (
        lambda d: change(label(d), put(7)),
        *("problem", "that dataset.json does not declare: case_1 (case_1.nii.gz: 7; declared are 0, 1, 2)"),
        ["case_1"],
    ),
    "fraction": (
        lambda d: change(label(d), lambda array: put(0.5)(array.astype(np.float32))),
        *("problem", "holds values that are no whole numbers: case_1 (case_1.nii.gz: 0.5)"),
        ["case_1"],
    ),
    "real numbers": (
        lambda d: change(label(d), lambda array: array.astype(np.float32)),
        *("warning", "whose segmentation is stored as real numbers: case_1 (32-bit float)"),
        ["case_1"],
    ),
    "empty": (
        lambda d: change(label(d), np.zeros_like),
        *("warning", "without any foreground in the segmentation: case_1"),
        ["case_1"],
    ),
    "other scale": (
        lambda d: change(image(d), lambda array: array * 1000),
        *("warning", "channel 0000, MRI: 1 case on another scale"),
        ["case_1"],
    ),
    "other type": (
        lambda d: change(image(d), lambda array: (array - array.min()).astype(np.float64)),
        *("warning", "stored as 32-bit float (4 cases), 64-bit float (1 case)"),
        ["case_1"],
    ),
    "spacing far out": (
        lambda d: [
            change(f, same, lambda new: new.SetSpacing((1, 1, 4))) for f in (image(d), image(d, "case_1", 1), label(d))
        ],
        *("warning", "with a spacing over 3 times larger or smaller than the median 1 x 1 x 1 mm: case_1 (4 x 1 x 1)"),
        ["case_1"],
    ),
    "case twice": (
        lambda d: [shutil.copy(image(d, "case_1", n), image(d, "case_3", n)) for n in range(2)],
        *("warning", "whose images come again under other names: case_1 (the same as case_3)"),
        ["case_1"],
    ),
    "label in no segmentation": (
        lambda d: describe(d, labels={"background": 0, "outer": 1, "inner": 2, "rare": 3}),
        *("warning", "label 3, rare, is in no segmentation"),
        [],
    ),
    "objects of no label": (
        lambda d: describe(d, nnunet_plugins_objects=["lesoin"]),
        "problem",
        "'nnunet_plugins_objects' names 'lesoin', which is no label; those of",
        [],
    ),
    "no channel names": (lambda d: describe(d, channel_names=...), "problem", "has no 'channel_names'", []),
    "labels of version 1": (
        lambda d: describe(d, labels={"0": "background", "1": "outer"}),
        *("problem", "Values come first there as in nnU-Net version 1"),
        [],
    ),
    "labels with a gap": (
        lambda d: describe(d, labels={"background": 0, "outer": 1, "inner": 3}),
        *("problem", "the labels are 0, 1, 3, and not 0, 1, 2, ..."),
        [],
    ),
    "no background": (
        lambda d: describe(d, labels={"outer": 1, "inner": 2}),
        *("problem", "labels are not as nnU-Net wants them: Background label not declared"),
        [],
    ),
    "regions without order": (
        lambda d: describe(d, labels={"background": 0, "whole": [1, 2], "inner": 2}),
        *("problem", "labels are not as nnU-Net wants them"),
        [],
    ),
    "order with a stranger": (
        lambda d: describe(d, labels={"background": 0, "whole": [1, 2], "inner": 2}, regions_class_order=[1, 9]),
        *("problem", "'regions_class_order' holds 9, which is no label"),
        [],
    ),
    "other number": (lambda d: describe(d, numTraining=9), "problem", "numTraining 9, there are 5 training cases", []),
    "half a dataset.json": (
        lambda d: (d / "dataset.json").write_text('{"labels": {'),
        *("problem", "dataset.json is no JSON that can be read"),
        [],
    ),
    "unknown ending": (lambda d: describe(d, file_ending=".xyz"), "problem", "has no complete training case", []),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(dataset, capsys, fault):
    spoil, level, text, cases = FAULTS[fault]
    spoil(dataset)
    _, found = examine(capsys)
    fitting = [finding for finding in found if text in finding["text"]]
    assert len(fitting) == 1, found
    assert fitting[0]["level"] == level
    assert len(fitting[0]["cases"]) == len(cases)
    for name, case in zip(fitting[0]["cases"], cases, strict=True):
        assert name.endswith(case)


def test_a_sound_dataset_has_no_findings_and_stays_as_it_is(dataset, preprocessed, capsys):
    before = {path: path.read_bytes() for path in dataset.parents[1].rglob("*") if path.is_file()}
    options = ("-tr", "nnUNetTrainerASPP3DUNet", "--gpu-memory", 24)
    assert examine(capsys, *options) == (0, [])
    assert before == {path: path.read_bytes() for path in dataset.parents[1].rglob("*") if path.is_file()}


def test_a_broken_case_does_not_hide_the_others(dataset, capsys):
    image(dataset, "case_0").write_text("no image")
    change(label(dataset, "case_3"), put(7))
    assert main(["doctor", "-d", NAME]) == 1
    text = capsys.readouterr().out
    assert f"!! 1 file that nnU-Net's reader cannot read: {image(dataset, 'case_0')}" in text
    assert (
        "case_3 (case_3.nii.gz: 7; declared are 0, 1, 2)\n       remedy: declare them in 'labels', or correct the"
        in text
    )
    assert "2 problems, 0 warnings." in text


def test_no_more_processes_than_the_memory_has_room_for(dataset, monkeypatch):
    """As nnU-Net has by default, as there are cores, and as fit; by the headers, for files compress as they like."""
    file = dataset / "imagesTr" / "large_0000.nii.gz"
    sitk.WriteImage(sitk.Image((512, 512, 64), sitk.sitkInt16), str(file), True)
    sizes = {str(file): 2**40}  # on the disk: worth any number of processes
    monkeypatch.setattr(images.os.path, "getsize", lambda path: sizes[path])
    monkeypatch.setattr(images, "default_num_processes", 8)
    monkeypatch.setattr(images.os, "cpu_count", lambda: 16)
    voxels = 512 * 512 * 64

    def processes(free: int | None, reader: type = SimpleITKIO) -> int:
        monkeypatch.setattr(images.memory, "available_bytes", lambda: free)
        return images._default_processes([str(file)], reader)

    assert processes(None) == 8
    assert processes(2**40) == 8
    one = images._BASE + 8 * voxels  # int16, its copy, float32
    assert [processes(int(number * one / 0.7) + 100) for number in (0.5, 1, 3, 7)] == [1, 1, 3, 7]
    larger = images._BASE + 14 * voxels  # nibabel's copy is of float64
    assert processes(int(3 * larger / 0.7) + 100, NibabelIO) == 3
    monkeypatch.setattr(images.os, "cpu_count", lambda: 2)
    assert processes(2**40) == 2


def test_files_that_a_list_of_cases_leaves_out_are_named(dataset, tmp_path, capsys):
    away = tmp_path / "away"
    dataset.rename(away)
    dataset.mkdir()
    listed = {
        case: {
            "images": [str(away / "imagesTr" / f"{case}_{channel:04d}.nii.gz") for channel in range(2)],
            "label": str(away / "labelsTr" / f"{case}.nii.gz"),
        }
        for case in CASES
    }
    shutil.copy(away / "dataset.json", dataset)
    describe(dataset, dataset=listed)
    code, found = examine(capsys)
    assert not [finding for finding in found if finding["section"] == "Files"]
    shutil.copy(image(away), image(away, "other"))
    (away / "imagesTr" / "notes.txt").touch()
    (away / "labelsTr" / "._case_1.nii.gz").touch()
    again, found = examine(capsys)
    assert again == code
    texts = [finding["text"] for finding in found if finding["section"] == "Files"]
    for name, what in (("other_0000", "does not list"), ("notes.txt", "no image"), ("._case_1", "left by macOS")):
        assert any(name in text and what in text for text in texts), texts


def test_several_processes_find_the_same(dataset, capsys, preloaded):
    image(dataset, "case_0").write_text("no image")
    assert examine(capsys, "-np", 2) == examine(capsys, "-np", 1)


def test_files_that_dataset_json_lists(dataset, capsys):
    """nnU-Net's other way to say where a dataset's files lie."""
    listed = {
        case: {"images": [f"pictures/{case}_{n:04d}.nii.gz" for n in range(2)], "label": f"truth/{case}.nii.gz"}
        for case in CASES
    }
    (dataset / "imagesTr").rename(dataset / "pictures")
    (dataset / "labelsTr").rename(dataset / "truth")
    describe(dataset, dataset=listed)
    assert examine(capsys) == (0, [])
    (dataset / "truth" / "case_2.nii.gz").unlink()
    _, found = examine(capsys)
    assert found[0]["text"].startswith("dataset.json lists files that are not there for 1 case: case_2 (")
    assert found[0]["cases"] == ["case_2"]


def test_findings_name_three_cases_and_json_all(dataset, capsys):
    for case in CASES:
        label(dataset, case).unlink()
    _, (first, *_) = examine(capsys)
    assert first["text"].endswith("case_0, case_1, case_2 and 2 more")
    assert first["cases"] == CASES


SPLITS = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]


@pytest.mark.parametrize(
    ("splits", "level", "text"),
    [
        ([{"train": CASES[1:], "val": CASES[:2]}, SPLITS[1]], "problem", "1 case in training and in validation of one"),
        (
            [{"train": [*CASES[2:], "gone"], "val": CASES[:2]}],
            "problem",
            "1 case that the dataset does not have: gone",
        ),
        ([{"train": CASES[3:], "val": CASES[:2]}], "warning", "leaves 1 case out of all folds: case_2"),
        ([SPLITS[0], {"train": [], "val": CASES}], "problem", "fold 1 has no case in 'train'"),
        ([SPLITS[0], SPLITS[0]], "warning", "2 cases validated in several folds"),
        ([], "problem", "holds no fold"),
        ([{"train": CASES}], "problem", "splits_final.json: [0] has no 'val'"),
    ],
)
def test_splits(preprocessed, capsys, splits, level, text):
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    _, found = examine(capsys)
    assert [finding["level"] for finding in found if text in finding["text"]] == [level], found


def test_cases_have_the_names_of_their_files_however_letters_are_encoded(dataset, preprocessed, capsys):
    names = {case: unicodedata.normalize("NFD", f"Müller_{case[-1]}") for case in CASES}
    for old, new in names.items():
        for file in (*dataset.rglob(f"{old}*"), *preprocessed.rglob(f"{old}*")):
            file.rename(file.with_name(file.name.replace(old, new)))
    text = json.dumps(SPLITS, ensure_ascii=False).replace("case", unicodedata.normalize("NFD", "Müller"))
    (preprocessed / "splits_final.json").write_text(text)
    options = ("-tr", "nnUNetTrainerASPP3DUNet", "--gpu-memory", 24)
    assert examine(capsys, *options) == (0, [])
    # nnU-Net finds no file of a name that is composed.
    (preprocessed / "splits_final.json").write_text(unicodedata.normalize("NFC", text))
    found = next(one for one in examine(capsys, *options)[1] if one["section"] == "Splits")
    assert (found["level"], len(found["cases"])) == ("problem", len(CASES))
    assert "encoded in another way in the file's name" in found["text"]


def remove(dataset: Path, *cases: str) -> None:
    for case in cases:
        label(dataset, case).unlink()
        for channel in range(2):
            image(dataset, case, channel).unlink()


def test_fewer_cases_or_groups_than_folds(dataset, preprocessed, tmp_path, capsys):
    """nnU-Net would split three cases into five folds when the first training begins, which ends it."""
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"{case},{min(2, int(case[-1]))}\n" for case in CASES))
    found = [finding for finding in examine(capsys, "--groups", table)[1] if finding["section"] == "Splits"]
    assert [finding["level"] for finding in found] == ["problem"]
    assert found[0]["text"].startswith("3 groups, and no splits yet")
    assert found[0]["remedy"].endswith(f"nnunet-plugins split -d {NAME} --groups {table} --folds 3")

    remove(dataset, "case_3", "case_4")
    describe(dataset, numTraining=3)
    for case in ("case_3", "case_4"):
        (preprocessed / "data" / f"{case}.pkl").unlink()
    code, found = examine(capsys)
    (problem,) = [finding for finding in found if finding["section"] == "Splits"]
    assert (code, problem["level"]) == (1, "problem")
    assert problem["text"].startswith("3 cases, and no splits yet")
    # The remedy is a command, and after it all is well.
    command = problem["remedy"].rpartition("nnunet-plugins ")[2]
    assert command == f"split -d {NAME} --folds 3"
    assert main(command.split()) == 0
    capsys.readouterr()
    assert not [finding for finding in examine(capsys)[1] if finding["section"] == "Splits"]


@pytest.fixture
def twin(dataset, preprocessed) -> Path:
    """The preprocessed folder of a dataset of which the one that is examined is a twin; returns it."""
    folder = preprocessed.with_name("Dataset004_Original")
    shutil.copytree(preprocessed, folder)
    recipe = {"dataset": folder.name, "scheme": "iqr", "channels": [0], "percentiles": None, "tile": None}
    for place in (dataset, preprocessed):
        describe(place, nnunet_plugins_preparation={**recipe, "clip_limit": None, "scikit_image": None})
    return folder


@pytest.mark.parametrize("splits", [None, [*SPLITS[::-1]], [{"train": CASES[1:], "val": CASES[:1]}]])
def test_a_twin_with_other_folds_than_its_dataset_is_told(preprocessed, twin, capsys, splits):
    (twin / "splits_final.json").write_text(json.dumps(SPLITS))
    if splits:
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    *_, found = [finding for finding in examine(capsys)[1] if finding["section"] == "Splits"]
    assert found["level"] == "warning"
    assert twin.name in found["text"]
    command = found["remedy"].rpartition("nnunet-plugins ")[2]
    assert command == f"split -d {NAME} --like {twin.name}" + " --overwrite" * bool(splits)
    assert main(command.split()) == 0
    capsys.readouterr()
    assert not [finding for finding in examine(capsys)[1] if finding["section"] == "Splits"]
    assert json.loads((preprocessed / "splits_final.json").read_text()) == SPLITS


@pytest.mark.parametrize("others", [None, SPLITS])
def test_too_few_cases_of_a_twin_are_split_as_its_dataset(dataset, preprocessed, twin, tmp_path, capsys, others):
    if others:
        (twin / "splits_final.json").write_text(json.dumps(others))
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"{case},{min(2, int(case[-1]))}\n" for case in CASES))
    (found,) = [one for one in examine(capsys, "--groups", table)[1] if one["section"] == "Splits"]
    first, *commands = found["remedy"].split("nnunet-plugins ")
    assert first == "make splits that fit: "
    of_original = f"split -d {twin.name} --groups {table} --folds 3 && "
    assert commands == [*([] if others else [of_original]), f"split -d {NAME} --like {twin.name}"]
    for command in commands:
        assert main(command.removesuffix(" && ").split()) == 0
    same = [json.loads((folder / "splits_final.json").read_text()) for folder in (twin, preprocessed)]
    assert same[0] == same[1]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_twin_whose_dataset_is_not_preprocessed_is_split_on_its_own(dataset, twin, tmp_path, capsys, grouped):
    shutil.copytree(dataset, dataset.with_name(twin.name))
    shutil.rmtree(twin)
    if not grouped:
        remove(dataset, "case_4")
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"{case},{min(2, int(case[-1]))}\n" for case in CASES))
    options = ["--groups", table] if grouped else []
    (found,) = [one for one in examine(capsys, *options)[1] if one["section"] == "Splits"]
    command = found["remedy"].rpartition("nnunet-plugins ")[2]
    assert command == f"split -d {NAME} " + (f"--groups {table} --folds 3" if grouped else "--folds 4")
    assert main(command.split()) == 0


def test_a_merged_dataset_is_split_by_its_sources(dataset, preprocessed, tmp_path, capsys):
    """As often as the smallest of them can be."""
    remove(dataset, "case_4")
    for number, case in enumerate(CASES[:4]):
        new = f"{'ab'[number // 2]}__{case}"
        for file in (*dataset.rglob(f"{case}*"), *preprocessed.rglob(f"{case}*")):
            file.rename(file.with_name(file.name.replace(case, new)))
    for file in preprocessed.rglob("case_4*"):
        file.unlink()
    own = json.loads((dataset / "dataset.json").read_text())["labels"]
    labels = {name: value for name, value in own.items() if value}
    sources = {name: {"dataset": f"Dataset00{n}_{name}", "labels": labels, "cases": []} for n, name in enumerate("ab")}
    for folder in (dataset, preprocessed):
        describe(folder, numTraining=4, nnunet_plugins_sources=sources)
    (found,) = [finding for finding in examine(capsys)[1] if finding["section"] == "Splits"]
    command = found["remedy"].rpartition("nnunet-plugins ")[2]
    assert command == f"split -d {NAME} --strata sources --folds 2"
    assert main(command.split()) == 0
    capsys.readouterr()
    assert not [finding for finding in examine(capsys)[1] if finding["section"] == "Splits"]


def test_one_case_has_no_splits(dataset, capsys):
    remove(dataset, *CASES[1:])
    (found,) = [finding for finding in examine(capsys)[1] if finding["section"] == "Splits"]
    assert found["level"] == "problem"
    assert "train on all cases, fold 'all'" in found["remedy"]


def test_what_is_left_of_a_removed_case_is_named_with_a_remedy_that_works(dataset, preprocessed, capsys):
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    remove(dataset, "case_4")
    describe(dataset, numTraining=4)
    for ending in ("pkl", "b2nd"):  # the dataset was preprocessed again
        (preprocessed / "data" / f"case_4.{ending}").unlink()
    code, found = examine(capsys, "-tr", "nnUNetTrainer", "--gpu-memory", 24)
    file = preprocessed / "gt_segmentations" / "case_4.nii.gz"
    assert code == 1, "the splits name it"
    by_section = {finding["section"]: finding for finding in found}
    assert "that the dataset does not have: case_4" in by_section["Splits"]["text"]
    stale = by_section["Preprocessed data"]
    assert (stale["level"], stale["cases"]) == ("warning", ["case_4"])
    assert f"rm {file}" in stale["remedy"]
    assert "Training" not in by_section, "to preprocess again would help nothing"

    assert main(by_section["Splits"]["remedy"].rpartition("nnunet-plugins ")[2].split()) == 0
    capsys.readouterr()
    file.unlink()
    assert [f for f in examine(capsys)[1] if f["section"] in ("Splits", "Preprocessed data", "Training")] == []


def test_no_processes_for_training_are_too_few_for_planning(dataset, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    (found,) = [finding for finding in examine(capsys)[1] if finding["section"] == "Preprocessed data"]
    assert found["level"] == "warning"
    assert "nnUNet_n_proc_DA=1 nnUNetv2_plan_and_preprocess" in found["remedy"]


def test_a_writer_of_bytes_has_no_room_for_many_labels(preprocessed, capsys):
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    for reader, problems in {"SimpleITKIOWithReorient": 1, "SimpleITKIO": 0}.items():
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps({**plans, "image_reader_writer": reader}))
        for last in (255, 256):
            describe(preprocessed, labels={"background": 0, **{f"s{value}": value for value in range(1, last + 1)}})
            found = examine(capsys, "-tr", "nnUNetTrainer", "--gpu-memory", 24)[1]
            said = [finding["text"] for finding in found if "8 bits" in finding["text"]]
            assert len(said) == problems * (last == 256)
            assert not said or "label 256 becomes 0" in said[0]


def test_the_same_image_and_groups_may_not_be_torn(dataset, preprocessed, tmp_path, capsys):
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    (tmp_path / "groups.csv").write_text("case,group\n" + "\n".join(f"{case},{case[-1]}" for case in CASES))
    assert examine(capsys, "--groups", tmp_path / "groups.csv") == (0, [])
    for channel in range(2):
        shutil.copy(image(dataset, "case_1", channel), image(dataset, "case_3", channel))
    (tmp_path / "groups.csv").write_text("case,group\n" + "\n".join(f"{case},{case == 'case_0'}" for case in CASES))
    code, found = examine(capsys, "--groups", tmp_path / "groups.csv")
    assert code == 1
    texts = [finding["text"] for finding in found if finding["level"] == "problem"]
    assert texts == [
        "case_1, case_3 have the same images, and fold 0, 1 trains on one of them and validates on another",
        "1 group is in training and in validation of a fold, first of all False",
    ]


def edit_plans(folder: Path, **changes: object) -> None:
    file = folder / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"].update(changes)
    file.write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("spoil", "options", "level", "text"),
    [
        (
            lambda d: (d / "nnUNetPlans.json").unlink(),
            [],
            "problem",
            "is missing; plans that are there: none",
        ),
        (lambda _: None, ["-p", "Other"], "problem", "plans that are there: nnUNetPlans"),
        (lambda _: None, ["-c", "2d"], "problem", "has no configuration '2d'; it has 3d_fullres"),
        (
            lambda _: None,
            ["-tr", "nnUNetTrainerFIREnet"],
            "problem",
            "nearest valid name is 'nnUNetTrainerFIRENet'",
        ),
        (lambda _: None, ["--gpu-memory", "0.01"], "problem", "a training step needs about"),
        (lambda d: (d / "data" / "case_2.pkl").unlink(), [], "problem", "1 case not preprocessed in"),
        (lambda d: (d / "data" / "case_2.b2nd").write_bytes(b""), [], "problem", "with an empty file, in"),
        (lambda d: (d / "gt_segmentations" / "case_4.nii.gz").unlink(), [], "warning", "only among the raw"),
        (
            lambda d: edit_plans(d, patch_size=[10, 16, 16]),
            [],
            "problem",
            "nnUNetTrainer cannot take a step with patch 10x16x16",
        ),
        (lambda d: edit_plans(d, patch_size="big"), [], "problem", "'patch_size' has to be a list, not 'big'"),
        (lambda d: edit_plans(d, inherits_from="3d_fullres"), [], "problem", "Circular dependency"),
        (lambda d: (d / "nnUNetPlans.json").write_text("{"), [], "problem", "nnUNetPlans.json is no JSON"),
        (
            lambda d: describe(d, labels={"background": 0, "whole": [1, 2], "inner": 2}, regions_class_order=[1, 2]),
            ["-tr", "nnUNetTrainerFIRENetPaper"],
            "problem",
            "does not support datasets with regions; use _",
        ),
        (
            lambda _: None,
            ["-tr", "nnUNetTrainer_PartialLabels"],
            "problem",
            "has no 'nnunet_plugins_sources', which tells what each case's dataset annotates; make the dataset with",
        ),
        (
            lambda d: describe(d, nnunet_plugins_sources={"a": {"dataset": "Dataset002_A", "labels": {}, "cases": []}}),
            ["-tr", "nnUNetTrainer_PartialLabels"],
            "problem",
            "case_0 is of no source: names of cases begin with a__",
        ),
        (
            lambda d: describe(d, nnunet_plugins_sources={"case": {}}),
            ["-tr", "nnUNetTrainer"],
            "problem",
            "has no 'dataset'; make the dataset anew with nnunet-plugins merge",
        ),
    ],
)
def test_a_training_that_would_not_run(preprocessed, capsys, spoil, options, level, text):
    spoil(preprocessed)
    _, found = examine(capsys, "--gpu-memory", "24", *options)
    assert [finding["level"] for finding in found if text in finding["text"]] == [level], found


def test_too_little_memory_comes_with_the_commands_that_mend_it(preprocessed, capsys):
    _, (found,) = examine(capsys, "-tr", "nnUNetTrainerFIRENet", "--gpu-memory", "0.05")
    assert found["remedy"] == (
        "make plans that fit, and train with them: nnunet-plugins plan -d Dataset001_Small -c 3d_fullres -tr "
        "nnUNetTrainerFIRENet --gpu-memory 0.05 --like nnUNetPlans; nnUNetv2_train Dataset001_Small 3d_fullres 0 -tr "
        "nnUNetTrainerFIRENet -p nnUNetPlans_FIRENet_0.05GB"
    )


WHOLE = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerWhole(nnUNetTrainer):
    needs_whole_images = True
"""


@pytest.fixture
def whole(preprocessed, tmp_path, monkeypatch) -> Path:
    """The preprocessed folder, with data as large as the raw images, for a trainer that takes a patch for the whole."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "whole_trainers.py").write_text(WHOLE)
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(tmp_path / "mine"), trainer_folder()]))
    for case in CASES:
        preprocess(preprocessed, case, (8, 10, 9))
    file = preprocessed / "nnUNetPlans.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transpose_forward": [0, 1, 2]}))
    return preprocessed


def preprocess(folder: Path, case: str, shape: tuple[int, ...]) -> None:
    for file in (folder / "data").glob(f"{case}*"):
        file.unlink()  # its format is not written over a file
    arrays = np.zeros((2, *shape), np.float32), np.zeros((1, *shape), np.int8)
    sizes = {"chunks": (1, *shape), "blocks": (1, *shape)}
    nnUNetDatasetBlosc2.save_case(*arrays, {}, str(folder / "data" / case), **sizes)


@pytest.mark.parametrize("modifier", ["PartialLabels", "DA5"])
def test_a_modifier_that_its_network_does_not_take_is_named(whole, capsys, modifier):
    _, found = examine(capsys, "-tr", f"nnUNetTrainerNISF_{modifier}", "--gpu-memory", 24)
    texts = [finding["text"] for finding in found if finding["level"] == "problem"]
    assert any(f"_{modifier} does not support networks that are fitted to every image" in text for text in texts)


OF_WHOLE = ("-tr", "nnUNetTrainerWhole", "--gpu-memory", 24)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerWhole", "nnUNetTrainerMetaSeg_NoMirroring", "nnUNetTrainerNISF"])
def test_training_images_larger_than_the_patch_are_named_to_networks_that_need_them_whole(whole, capsys, trainer):
    arguments = ("-tr", trainer, "--gpu-memory", 24)
    assert examine(capsys, *arguments) == (0, [])
    preprocess(whole, "case_3", (8, 17, 9))
    _, (found,) = examine(capsys, *arguments)
    assert (found["section"], found["level"], found["cases"]) == ("Training", "problem", ["case_3"])
    assert (
        "1 case larger than the patch 16x16x16, which the network takes for the whole anatomy: case_3 (8x17x9)"
        in (found["text"])
    )
    assert found["remedy"].endswith(f"nnunet-plugins plan -d {NAME} --cover --like nnUNetPlans")
    assert examine(capsys, "-tr", "nnUNetTrainer", "--gpu-memory", 24) == (0, [])
    # What cannot be read is named, too.
    (whole / "data" / "case_3_seg.b2nd").write_bytes(b"x")
    _, found = examine(capsys, *arguments)
    assert any("the preprocessed data of case_3" in finding["text"] for finding in found)


def test_too_little_memory_for_whole_images_is_not_mended_by_a_smaller_patch(whole, capsys):
    _, (found,) = examine(capsys, "-tr", "nnUNetTrainerMetaSegPaper", "--gpu-memory", "0.05")
    assert "a training step needs about" in found["text"]
    assert found["remedy"].startswith("The patch has to hold every image")


def test_a_configuration_that_inherits_its_spacing_has_its_data(preprocessed, capsys):
    file = preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_cover"] = {"inherits_from": "3d_fullres"}
    file.write_text(json.dumps(plans))
    assert main(["doctor", "-d", "1", "-c", "3d_cover", "--gpu-memory", "24"]) == 0
    assert "ok preprocessed already: 3d_cover" in capsys.readouterr().out


def enlarge(how: Callable[[np.ndarray], np.ndarray], spacing: float = 1.0) -> Callable[[Path], None]:
    """Change the channels of a test image."""

    def spoil(folder: Path) -> None:
        for file in folder.glob("case_6_*.nii.gz"):
            change(file, how, lambda image: image.SetSpacing((1.0, spacing, 1.0)))

    return spoil


def widened(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array], axis=1)


def framed(array: np.ndarray) -> np.ndarray:
    return np.pad(array, 5)


@pytest.mark.parametrize(
    ("spoil", "size"),
    [
        (enlarge(widened), "8x20x9"),
        (enlarge(same, 1.7), "8x17x9"),  # 10 voxels of 1.7 mm
        (enlarge(framed), ""),  # which nnU-Net cuts off
        (enlarge(widened, 0.8), ""),
    ],
)
@pytest.mark.parametrize("place", ["imagesTs", "elsewhere"])
def test_images_to_predict_larger_than_the_patch_are_named(dataset, whole, capsys, spoil, size, place):
    folder, options = dataset / "imagesTs", OF_WHOLE
    shutil.rmtree(dataset / "labelsTs")
    if place == "elsewhere":
        folder, options = folder.rename(dataset.parents[1] / "elsewhere"), (*OF_WHOLE, "-i", dataset.parents[1] / place)
    spoil(folder)
    _, found = examine(capsys, *options)
    told = [(finding["section"], finding["level"], finding["cases"]) for finding in found]
    section = "Test images" if place == "imagesTs" else "Images to predict"
    assert told == ([(section, "problem", ["case_6"])] if size else [])
    assert not size or "than the patch 16x16x16, which the network takes for the whole anatomy" in found[0]["text"]
    assert not size or f"case_6 ({size})" in found[0]["text"]


def test_images_that_are_not_resampled_are_as_large_as_they_are(dataset, whole, capsys):
    file = whole / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["resampling_fn_data"] = "no_resampling_hack"
    file.write_text(json.dumps(plans))
    shutil.rmtree(dataset / "labelsTs")
    enlarge(widened, 0.8)(dataset / "imagesTs")
    _, found = examine(capsys, *OF_WHOLE)
    assert any("case_6 (8x20x9)" in finding["text"] for finding in found), found


def test_a_folder_of_images_is_checked_as_test_images_are(dataset, preprocessed, tmp_path, capsys):
    """Also where the raw dataset is not: then dataset.json is that of the preprocessed one."""
    folder = (dataset / "imagesTs").rename(tmp_path / "images")
    image = folder / "case_5_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:500])
    (folder / "case_6_0001.nii.gz").unlink()
    texts = ["without exactly the channels 0000, 0001: case_6 (has 0000)", "1 file cut off"]
    for _ in range(2):
        _, found = examine(capsys, "-i", folder)
        told = [finding["text"] for finding in found if finding["section"] == "Images to predict"]
        assert all(any(text in line for line in told) for text in texts), found
        shutil.rmtree(dataset, ignore_errors=True)
    for file in folder.iterdir():
        file.unlink()
    _, found = examine(capsys, "-i", folder)
    assert f"{folder} holds no image CASE_0000.nii.gz" in [finding["text"] for finding in found]
    _, found = examine(capsys, "-i", tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} is no folder" in [finding["text"] for finding in found]


def test_too_little_space(dataset, capsys, monkeypatch):
    full = shutil.disk_usage(dataset)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    code, found = examine(capsys)
    assert code == 1
    assert [finding["text"].split(",")[0] for finding in found] == [
        "preprocessing one configuration at the median spacing",
        "checkpoints of one training of nnU-Net's U-Net",
    ]


def test_the_checkpoints_of_a_large_network_are_foreseen(preprocessed, capsys, monkeypatch):
    """FCN-8s has 134 million parameters: a checkpoint has 1.07 GB, weights and momentum."""
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    whole = plans["configurations"]["3d_fullres"]
    flat = patch_setting((32, 32), 2, 2, 3).configuration.configuration
    plans["configurations"]["2d"] = {**whole, **flat, "spacing": [1.0, 1.0]}
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    left = shutil.disk_usage(preprocessed)._replace(free=3 * 1_070_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: left)
    question = ("-c", "2d", "--gpu-memory", 24)
    code, (found,) = examine(capsys, "-tr", "nnUNetTrainerFCN8s", *question)
    assert code == 1
    assert found["section"] == "Space"
    assert found["text"].startswith("checkpoints of one training of the network, up to 3 at a time: about 3.00 GiB; ")
    _, (found,) = examine(capsys, "-tr", "nnUNetTrainerFCN8s_Adam", *question)  # which keeps three numbers of each
    assert "about 6.00 GiB; " in found["text"]
    assert examine(capsys, "-tr", "nnUNetTrainerSegResNet", *question) == (0, [])


def test_without_the_raw_images_the_rest_is_checked(dataset, preprocessed, capsys):
    shutil.rmtree(dataset)
    code, found = examine(capsys, "-tr", "nnUNetTrainer", "--gpu-memory", 24)
    assert code == 0
    assert [finding["text"] for finding in found] == [f"{NAME} is not in nnUNet_raw, so its images are not checked"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-tr", "nnUNetTrainer"], "are about a dataset; give it with -d"),
        (["-i", "images"], "are about a dataset; give it with -d"),
        (["-d", "9"], "'9' is not the number or name of exactly one dataset"),
        (["-d", "Dataset009_Gone"], "Dataset009_Gone is neither in nnUNet_raw nor in nnUNet_preprocessed"),
    ],
)
def test_wrong_usage(dataset, capsys, options, message):
    assert main(["doctor", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.data
def test_the_quirks_of_a_real_dataset(shared_data, tmp_path, monkeypatch, capsys):
    """Hippocampus mixes types of numbers, and has images whose intensities go up to 1.7 million."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "nnUNet_raw" / "Dataset001_Hippocampus").symlink_to(shared_data / "Dataset004_Hippocampus")
    code, (scale, kinds, real) = examine(capsys)
    assert code == 0
    assert "33 cases on another scale" in scale["text"]
    assert "the highest voxel is 1.7e+06" in scale["text"]
    assert "hippocampus_210" in scale["cases"]
    assert "32-bit float (173 cases), 8-bit unsigned integer (36 cases)" in kinds["text"]
    assert real["cases"] == ["hippocampus_003", "hippocampus_243"]
