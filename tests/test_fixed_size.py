"""Twins with images of one size: what is written, the way back, and what is refused."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from conftest import Sandbox
from PIL import Image

from nnunet_plugins.cli import main
from nnunet_plugins.demo.phantom import make_case
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock
from nnunet_plugins.fixed_size import twin
from nnunet_plugins.images.resizing import resize_image, resize_labels
from nnunet_plugins.models.sources import Choice, Source, find_model, find_source
from nnunet_plugins.prediction.cases import cases_in, predict_each

NAME, TWIN = "Dataset300_Bones", "Dataset301_BonesFixed"
SIZES = {"a": (6, 9, 8), "b": (8, 11, 12), "c": (7, 10, 11)}
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""The image's x leads to the back, y to the right."""


def write(file: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((7.0, -3.0, 0.5))
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(file))


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def box(size: tuple[int, int, int]) -> np.ndarray:
    """A label map with two labels, one above the other."""
    labels = np.zeros(size, np.uint8)
    labels[2:4, 2:-2, 2:-2] = 1
    labels[4:-1, 2:-2, 3:-2] = 2
    return labels


def make(raw: Path, channels: tuple[str, ...] = ("MRI", "FLAIR"), ending: str = ".nii.gz") -> Path:
    """Three cases for training and one to predict, each with a size and a spacing of its own."""
    folder = raw / NAME
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for number, (case, size) in enumerate([*SIZES.items(), ("new", (5, 7, 9))]):
        spacing = (0.5 + number, 1.5, 2.0)
        part = "Ts" if case == "new" else "Tr"
        for channel in range(len(channels)):
            image = box(size) * 10.0 + channel + np.random.default_rng([number, channel]).normal(0, 0.1, size)
            write(folder / f"images{part}" / f"{case}_{channel:04d}{ending}", image.astype(np.float32), spacing)
        if part == "Tr":
            write(folder / "labelsTr" / f"{case}{ending}", box(size), spacing)
    description = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {"background": 0, "femur": 1, "tibia": 2},
        "numTraining": 3,
        "file_ending": ending,
        "licence": "CC0",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


def run(*more: object, dataset: object = 300, number: object = 301) -> int:
    return main(["fixed-size", "-d", str(dataset), "-o", str(number), "-np", "1", *map(str, more)])


def restore(predicted: Path, reference: Path, output: Path, *more: str) -> int:
    return main(["fixed-size", "--restore", str(predicted), "--reference", str(reference), "-o", str(output), *more])


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


# The arithmetic


@pytest.mark.parametrize("size", [(28, 44, 57), (60, 60, 60)])
def test_the_way_back_leads_to_the_same_labels(size):
    _, labels = make_case(seed=0, index=0)
    there = resize_labels(labels, size)
    assert there.shape == size
    back = resize_labels(there, labels.shape)
    for label in np.unique(labels):
        assert dice(back == label, labels == label) > 0.9


def test_the_own_size_changes_nothing():
    image, labels = make_case(seed=0, index=0)
    assert np.array_equal(resize_labels(labels, labels.shape), labels)
    assert np.allclose(resize_image(image[None], image.shape)[0], image)


def test_an_image_keeps_its_extent_and_its_labels_lie_on_it():
    """A ramp stays one, in the same place: the middles of new voxels have the values of their places."""
    ramp = np.broadcast_to(np.arange(12.0), (1, 4, 5, 12))
    for new in (6, 30):
        places = (np.arange(new) + 0.5) * 12 / new - 0.5
        inside = (places >= 0) & (places <= 11)
        assert np.allclose(resize_image(ramp, (4, 5, new))[0, 0, 0][inside], places[inside], atol=1e-5)
        labels = resize_labels(np.broadcast_to(np.arange(12), (4, 5, 12)), (4, 5, new))[0, 0]
        assert (np.abs(labels - places) <= 0.5 + 1e-9).all()


# The twin


def test_what_is_written(raw, capsys):
    source = make(raw)
    before = snapshot(raw)
    assert run() == 0
    told = capsys.readouterr().out
    folder = raw / TWIN
    assert f"Wrote {folder}: 3 training cases and 1 to predict, of 7x10x10 voxels" in told
    assert {path: kept for path, kept in snapshot(raw).items() if folder not in path.parents} == before
    assert json.loads((folder / "dataset.json").read_text()) == {
        **json.loads((source / "dataset.json").read_text()),
        "nnunet_plugins_fixed_size": {
            "dataset": NAME,
            "file_ending": ".nii.gz",
            "reader": "SimpleITKIO",
            "size": [7, 10, 10],
        },
    }
    assert sorted(os.listdir(folder)) == [
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "labelsTr",
        "sources.json",
    ]
    files = sorted(path for path in source.rglob("*.nii.gz"))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.nii.gz")) == [
        path.relative_to(source) for path in files
    ]
    for file in files:
        new = sitk.ReadImage(str(folder / file.relative_to(source)))
        assert new.GetSize() == (10, 10, 7)
        assert (new.GetSpacing(), new.GetOrigin()) == ((1.0,) * 3, (0.0,) * 3)
        if "images" in file.parent.name:
            expected = resize_image(read(file)[None], (7, 10, 10))[0]
            assert np.allclose(sitk.GetArrayFromImage(new), expected)
        else:
            assert np.array_equal(sitk.GetArrayFromImage(new), resize_labels(read(file), (7, 10, 10)))
    grids = json.loads((folder / "sources.json").read_text())
    assert grids["imagesTr/b"]["shape"] == [8, 11, 12]
    assert grids["imagesTs/new"]["spacing"] == [2.0, 1.5, 3.5]
    main(["doctor", "-d", "301", "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {one["section"] for one in found if one["level"] != "ok"} == {"Splits"}, "3 cases are too few for 5 folds"


def test_size_name_and_groups(raw):
    source = make(raw)
    (source / "groups.csv").write_text("case,group\na,1\nb,1\nc,2\n")
    assert run("--size", 4, 20, 9, "--name", "Small") == 0
    assert read(raw / "Dataset301_Small" / "labelsTr" / "a.nii.gz").shape == (4, 20, 9)
    assert (raw / "Dataset301_Small" / "groups.csv").read_text() == (source / "groups.csv").read_text()


def test_an_interrupted_run_goes_on(raw, monkeypatch):
    make(raw)
    done = []
    write_resized = twin.write_resized

    def stop(images, label, places, *rest, **named):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(places[0].name)
        return write_resized(images, label, places, *rest, **named)

    monkeypatch.setattr(twin, "write_resized", stop)
    assert run() == 130
    assert not (raw / TWIN).exists()
    assert run("--size", 5, 5, 5) == 130, "of another size, all are made anew"
    done.clear()
    assert run() == 130
    monkeypatch.setattr(
        twin,
        "write_resized",
        lambda images, label, places, *r, **n: (
            done.append(places[0].name),
            write_resized(images, label, places, *r, **n),
        )[1],
    )
    assert run() == 0
    assert sorted(done) == sorted(f"{case}_0000.nii.gz" for case in (*SIZES, "new")), "none of them twice"
    assert [path.name for path in raw.iterdir() if path.name.startswith(".")] == []


def test_two_at_a_time_do_not_get_into_each_others_way(raw, capsys):
    make(raw)
    with hold_lock(raw / f".{TWIN}.partial" / "lock"):
        assert run() == 2
    assert re.search(rf"{TWIN} is being made by process \d+ on ", capsys.readouterr().err)


# Images that have come since


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_images_that_come_later_are_scaled_as_those_of_the_twin(raw, tmp_path, capsys, ending):
    source = make(raw, ending=ending)
    assert run() == 0
    images, scaled = tmp_path / "later", tmp_path / "scaled"
    shutil.copytree(source / "imagesTs", images)
    (images / f"bad_0000{ending}").write_bytes(b"none")
    (images / f"bad_0001{ending}").write_bytes(b"none")
    model = tmp_path / "dataset.json"  # where the twin is not
    shutil.copy(raw / TWIN / "dataset.json", model)
    for like in ("301", model):
        command = ["fixed-size", "--scale", str(images), "--like", str(like), "-o", str(scaled), "--overwrite"]
        assert main(command) == 1
        told = capsys.readouterr()
        assert f"Wrote 1 cases of 7x10x10 voxels to {scaled}" in told.out
        assert re.search(f"bad is not in it: .*bad_0000{ending}", told.err)
        assert sorted(os.listdir(scaled)) == ["new_0000.nii.gz", "new_0001.nii.gz"]
        for name in os.listdir(scaled):
            one, other = (sitk.ReadImage(str(folder / name)) for folder in (scaled, raw / TWIN / "imagesTs"))
            assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
            assert one.GetSpacing() == other.GetSpacing()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "none", "--like", "301"], "none is no folder"),
        (["--scale", "imagesTs", "--like", "300"], "has no 'nnunet_plugins_fixed_size'"),
        (["--scale", "labelsTr", "--like", "301"], "cannot be scaled: .* whose names have no number of a channel"),
        (["--scale", "imagesTs"], "--scale goes with --like and -o"),
        (["--scale", "imagesTs", "--like", "301", "--size", "1", "1", "1"], "--size and --name go with -d"),
        (["-d", "300", "--like", "301"], "--scale goes with --like and -o"),
    ],
)
def test_bad_input_of_scaling(raw, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(make(raw))
    assert run() == 0
    capsys.readouterr()
    assert main(["fixed-size", *arguments, "-o", str(tmp_path / "scaled")]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "scaled").exists()


def trained(raw: Path) -> Source:
    """A model of the twin, without weights."""
    choice = Choice("nnUNetTrainer", "3d_fullres", "nnUNetPlans")
    folder = raw.parent / "nnUNet_results" / TWIN / str(choice)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    (folder / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres": {}}}))
    shutil.copy(raw / TWIN / "dataset.json", folder)
    return find_model(TWIN, choice, ["0"], "checkpoint_final.pth")


def test_images_that_were_not_scaled_are_told_and_not_predicted(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    capsys.readouterr()
    assert main(["doctor", "-d", "301", "-i", str(source / "imagesTs"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["findings"]
    (found,) = (one for one in told if one["section"] == "Images to predict" and one["level"] != "ok")
    assert found["level"] == "problem"
    assert found["text"] == "1 case of another size than the 7x10x10 of this dataset's images: new (5x7x9)"
    assert f"fixed-size --scale FOLDER --like {TWIN} -o SCALED" in found["remedy"]
    model, lines = trained(raw), []
    for folder, failed in ((source, ["new"]), (raw / TWIN, [])):
        cases = cases_in(model, folder / "imagesTs", tmp_path / "out", lines.append)
        assert predict_each(model, cases, tmp_path / "out", lambda _: lambda: "done", lines.append, remedy="") == failed
    assert "it has 5x7x9 voxels, and the network was trained on images scaled to 7x10x10" in lines[0]
    assert f"--like {model.folder / 'dataset.json'} -o SCALED" in lines[0]


def test_what_scales_no_image_is_not_exported(raw):
    make(raw)
    assert run() == 0
    with pytest.raises(InputError, match="on images of one size, to which a container scales none"):
        find_source(TWIN, trained(raw).choice, ["0"], "checkpoint_final.pth")


# The way back


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_labels_lie_again_where_the_images_lay(raw, tmp_path, ending):
    source = make(raw, ending=ending)
    assert run("--size", 9, 14, 13) == 0
    predicted, restored = raw / TWIN / "labelsTr", tmp_path / "restored"
    assert restore(predicted, source / "imagesTr", restored) == 0
    for case in SIZES:
        found, reference = (
            sitk.ReadImage(str(file))
            for file in (restored / f"{case}{ending}", source / "imagesTr" / f"{case}_0000{ending}")
        )
        assert found.GetSize() == reference.GetSize()
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(found, geometry)(), getattr(reference, geometry)(), atol=1e-6)
        truth = read(source / "labelsTr" / f"{case}{ending}")
        for label in (1, 2):
            assert dice(sitk.GetArrayFromImage(found) == label, truth == label) > 0.9
    description = json.loads((restored / "dataset.json").read_text())
    assert description["file_ending"] == ending
    assert "nnunet_plugins_fixed_size" not in description


def test_listed_images_are_found_whatever_their_names(raw, tmp_path, capsys, monkeypatch):
    """Of the case b there is an image that another case's name fits as well."""
    source = make(raw)
    description = json.loads((source / "dataset.json").read_text())
    files = {"pa": "a", "pb": "b", "b": "c"}
    description["dataset"] = {
        case: {"images": [f"imagesTr/{file}_{n:04d}.nii.gz" for n in range(2)], "label": f"labelsTr/{file}.nii.gz"}
        for case, file in files.items()
    }
    (source / "dataset.json").write_text(json.dumps(description))
    assert run("--size", 9, 14, 13) == 0
    predicted = raw / TWIN / "labelsTr"
    assert restore(predicted, source / "imagesTr", tmp_path / "restored") == 0
    for case, file in files.items():
        found, truth = read(tmp_path / "restored" / f"{case}.nii.gz"), read(source / "labelsTr" / f"{file}.nii.gz")
        assert found.shape == truth.shape
        assert dice(found == 1, truth == 1) > 0.9
    capsys.readouterr()
    assert restore(predicted, source / "imagesTs", tmp_path / "other") == 1
    there = source / "imagesTr"
    told = f"Ts has no image pa_0000.nii.gz; {NAME} lists {there / 'a_0000.nii.gz'} for it: give --reference {there}\n"
    assert told in capsys.readouterr().err
    # Elsewhere nothing is known of the list.
    monkeypatch.delenv("nnUNet_raw")
    assert restore(predicted, source / "imagesTs", tmp_path / "elsewhere") == 1
    assert "Ts has no image pa_0000.nii.gz\n" in capsys.readouterr().err


def test_axes_that_nnu_nets_reader_turns_are_turned_back(raw, tmp_path):
    source = make(raw)
    file = source / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "overwrite_image_reader_writer": "NibabelIOWithReorient"}))
    assert run("--size", 12, 16, 16) == 0
    assert restore(raw / TWIN / "labelsTr", source / "imagesTr", tmp_path / "restored") == 0
    found = sitk.ReadImage(str(tmp_path / "restored" / "b.nii.gz"))
    truth = sitk.ReadImage(str(source / "labelsTr" / "b.nii.gz"))
    assert np.allclose(found.GetDirection(), DIRECTION, atol=1e-6)
    for label in (1, 2):
        assert dice(sitk.GetArrayFromImage(found) == label, sitk.GetArrayFromImage(truth) == label) > 0.9


def test_other_formats(raw, tmp_path):
    """A stack of TIFF whose spacing stands beside it; the twin is NIfTI, the way back leads to TIFF."""
    source = make(raw, channels=("MRI",))
    for file in [*source.rglob("*.nii.gz")]:
        tifffile.imwrite(file.with_name(file.name.replace(".nii.gz", ".tif")), read(file))
        case = file.name.replace(".nii.gz", "").replace("_0000", "")
        (file.parent / f"{case}.json").write_text(json.dumps({"spacing": [3.0, 1.0, 0.5]}))
        file.unlink()
    description = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**description, "file_ending": ".tif"}))
    assert run() == 0
    assert restore(raw / TWIN / "labelsTr", source / "imagesTr", tmp_path / "restored") == 0
    assert tifffile.imread(tmp_path / "restored" / "a.tif").shape == SIZES["a"]
    assert json.loads((tmp_path / "restored" / "a.json").read_text()) == {"spacing": [3.0, 1.0, 0.5]}


def test_pictures(raw, tmp_path, capsys):
    source = make(raw, channels=("R", "G", "B"))
    for file in [*source.rglob("*.nii.gz")]:
        if "_0001" not in file.name and "_0002" not in file.name:
            plane = read(file)[3].astype(np.uint8)
            picture = np.stack([plane, plane + 1, plane + 2], axis=-1) if "images" in file.parent.name else plane
            Image.fromarray(picture).save(str(file).replace(".nii.gz", ".png"))
        file.unlink()
    description = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(
        json.dumps({**description, "file_ending": ".png", "labels": {"background": 0, "femur": 1}})
    )
    assert run() == 0
    assert "-d 301 -c 2d\n" in capsys.readouterr().out, "nnU-Net plans nothing else for them"
    assert len(list((raw / TWIN / "imagesTr").iterdir())) == 9
    assert read(raw / TWIN / "imagesTr" / "a_0002.nii.gz").shape == (1, 10, 10)
    assert restore(raw / TWIN / "labelsTr", source / "imagesTr", tmp_path / "restored") == 0
    assert np.asarray(Image.open(tmp_path / "restored" / "c.png")).shape == (10, 11)


def test_a_case_that_cannot_be_brought_back_costs_no_other(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    predicted = tmp_path / "predicted"
    shutil.copytree(raw / TWIN / "labelsTr", predicted)
    shutil.copy(raw / TWIN / "dataset.json", predicted)
    shutil.copy(predicted / "a.nii.gz", predicted / "other.nii.gz")
    write(predicted / "b.nii.gz", np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0))
    (predicted / "c.nii.gz").write_bytes(b"none")
    assert restore(predicted, source / "imagesTr", tmp_path / "restored") == 1
    told = capsys.readouterr()
    assert "Wrote 1 cases" in told.out
    assert re.search("other is not in it: .*imagesTr has no image other_0000.nii.gz", told.err)
    assert re.search("b is not in it: .*b.nii.gz has 3 x 3 x 3 voxels, not the 7 x 10 x 10 of its dataset", told.err)
    assert "c is not in it: " in told.err
    assert (tmp_path / "restored" / "a.nii.gz").is_file()
    assert restore(predicted, source / "imagesTr", tmp_path / "restored") == 2
    assert "holds something already" in capsys.readouterr().err
    # What is not in it is not there from an earlier run either.
    for name in ("b", "c", "other", "mine"):
        shutil.copy(tmp_path / "restored" / "a.nii.gz", tmp_path / "restored" / f"{name}.nii.gz")
    assert restore(predicted, source / "imagesTr", tmp_path / "restored", "--overwrite") == 1
    assert sorted(path.name for path in (tmp_path / "restored").glob("*.nii.gz")) == ["a.nii.gz", "mine.nii.gz"]
    # Nor does anything stay beside it that is of another dataset, or whose values mean something else.
    description = json.loads((predicted / "dataset.json").read_text())
    other = {**description["nnunet_plugins_fixed_size"], "dataset": "Dataset310_Other"}
    (predicted / "dataset.json").write_text(json.dumps({**description, "nnunet_plugins_fixed_size": other}))
    assert restore(predicted, source / "imagesTr", tmp_path / "restored", "--overwrite") == 2
    told = f"holds mine.nii.gz, of {NAME}, and here are cases of Dataset310_Other; choose another folder"
    assert told in capsys.readouterr().err
    renamed = {f"other {name}": value for name, value in description["labels"].items() if value} | {"background": 0}
    (predicted / "dataset.json").write_text(json.dumps({**description, "labels": renamed}))
    before = snapshot(tmp_path / "restored")
    assert restore(predicted, source / "imagesTr", tmp_path / "restored", "--overwrite") == 2
    assert f"{tmp_path / 'restored'} holds mine.nii.gz, with the labels " in capsys.readouterr().err
    assert snapshot(tmp_path / "restored") == before


# What is refused


def spoil_labels(source: Path) -> None:
    write(source / "labelsTr" / "b.nii.gz", np.full(SIZES["b"], 3, np.uint8), (1.5, 1.5, 2.0))


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ["--size", 0, 10, 10], "--size 0 10 10: each axis has 1 to 2048 voxels"),
        (None, ["--size", 10, 10, 100000], "--size 10 10 100000: each axis has 1 to 2048 voxels"),
        (None, ["--size", 2048, 2048, 2048], "an image no more than 1,073,741,824"),
        (None, ["--size", -1, 10, 10], "--size -1 10 10: each"),
        (None, {"dataset": 7}, "'7' is not the number or name of exactly one dataset"),
        (None, {"number": 300}, f"-o 300: .*{NAME} is the dataset itself; choose another number"),
        (None, {"number": 1000}, "-o 1000: nnU-Net's datasets have numbers from 1 to 999"),
        (None, {"number": "there"}, "-o there: give the number of the new dataset"),
        (None, ["--name", "a/b"], "--name 'a/b': use letters"),
        (None, ["--overwrite"], "--overwrite goes with --restore and --scale"),
        (lambda source: (source / "dataset.json").write_text("{"), [], "dataset.json is no JSON that can be read"),
        (
            lambda source: (source / "imagesTr" / "c_0001.nii.gz").unlink(),
            [],
            f"{NAME} cannot be resized: 1 case without exactly the channels 0000, 0001: c",
        ),
        (
            lambda source: (source / "imagesTs" / "new_0000.nii.gz").write_bytes(b"none"),
            [],
            f"{NAME} cannot be resized: .*new_0000.nii.gz",
        ),
        (spoil_labels, [], r"cannot be resized: .*b.nii.gz holds labels .* does not declare \(3; declared are 0"),
        (
            lambda source: write(source / "labelsTr" / "b.nii.gz", np.zeros((2, 2, 2), np.uint8), (1.0, 1.0, 1.0)),
            [],
            "cannot be resized: .*labelsTr/b.nii.gz .*2 x 2 x 2 voxels, not 8 x 11 x 12",
        ),
    ],
)
def test_bad_input_is_one_clear_error(raw, capsys, spoil, arguments, message):
    source = make(raw)
    if spoil:
        spoil(source)
    more, named = ((), arguments) if isinstance(arguments, dict) else (arguments, {})
    assert run(*more, **named) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert [line for line in told.splitlines() if line.startswith("nnunet-plugins fixed-size: ")] == told.splitlines()[
        -1:
    ]
    assert sorted(os.listdir(raw)) == [NAME]


def test_a_twin_of_a_twin_is_refused(raw, capsys):
    make(raw)
    assert run() == 0
    assert run(dataset=301, number=302) == 2
    assert f"has images of one size already; make another twin of {NAME}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--restore": "none"}, "none is no folder"),
        ({"--reference": "none"}, "none is no folder"),
        ({"--reference": None}, "--restore goes with --reference and -o"),
        (
            {"--restore": NAME + "/labelsTr"},
            "has no 'nnunet_plugins_fixed_size': these are no predictions of a dataset",
        ),
        ({"-o": TWIN + "/labelsTr"}, "cannot be the folder to write"),
        ({"-o": NAME + "/labelsTr"}, "holds files of a dataset, which nothing replaces; choose another folder"),
        ({"--reference": TWIN}, "no file ends in .nii.gz"),
    ],
)
def test_bad_input_of_the_way_back(raw, tmp_path, capsys, change, message):
    make(raw)
    assert run() == 0
    arguments = {"--restore": f"{TWIN}/labelsTr", "--reference": f"{NAME}/imagesTr", "-o": "restored", **change}
    pairs = [part for key, value in arguments.items() if value for part in (key, str(raw / value))]
    before = snapshot(raw)
    assert main(["fixed-size", *pairs, "--overwrite"]) == 2
    assert snapshot(raw) == before
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


FULL = """
import resource
import sys

sys.dont_write_bytecode = True  # or what Python compiles is cut off as well, and stays so
from nnunet_plugins.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a full disk
sys.exit(main(["fixed-size", "-d", "300", "-o", "301", "--size", "30", "30", "30", "-np", "1"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="resource limits")
def test_a_full_disk_is_told_and_leaves_nothing_broken(tmp_path):
    sandbox = Sandbox(tmp_path)
    make(sandbox.raw)
    told = sandbox.run("python", "-c", FULL, ok=False)
    assert re.search(
        r"fixed-size: 4 cases cannot be resized.*a_0000.nii.gz cannot be written: .* MiB free there\)", told
    )
    assert not (sandbox.raw / TWIN).exists()
    assert not list((sandbox.raw / f".{TWIN}.partial" / "imagesTr").iterdir())
