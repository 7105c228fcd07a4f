"""Merged datasets: what is written, that the sources stay as they are, views of one source, and what is refused."""

import json
import os
import re
import shlex
import shutil
import unicodedata
from itertools import combinations
from random import Random

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from conftest import SHAPE, Sandbox, write_dataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from PIL import Image

from nnunet_plugins.cli import main
from nnunet_plugins.datasets.preprocessed import preprocessed_shapes
from nnunet_plugins.datasets.sources import Source, read_sources
from nnunet_plugins.doctor.merged import check_sources
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock
from nnunet_plugins.merging import merge
from nnunet_plugins.merging import view as merging_view
from nnunet_plugins.merging.joint import LabelSet, join_channels, join_labels, own_values
from nnunet_plugins.planning.groups import read_groups
from nnunet_plugins.trainers.compose import trainer_class

SIZE = (3, 4, 5)


def write(path, array, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((7.0, -3.0, 0.5))
    sitk.WriteImage(image, str(path))


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def dataset(raw, name, labels, cases=("a", "b"), channels=("MRI",), ending=".nii.gz", **more):
    """Noise, with every label in each case; the spacing is the number of the case."""
    folder = raw / name
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    values = sorted({int(one) for value in labels.values() for one in np.atleast_1d(value)})
    for number, case in enumerate(cases):
        random = np.random.default_rng([number, *name.encode()])
        spacing = (1.0 + number, 1.0, 2.0)
        write(folder / "labelsTr" / f"{case}{ending}", random.choice(values, SIZE).astype(np.uint8), spacing)
        for channel in range(len(channels)):
            image = random.normal(channel, 0.1, SIZE).astype(np.float32)
            write(folder / "imagesTr" / f"{case}_{channel:04d}{ending}", image, spacing)
    description = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


@pytest.fixture
def two(raw):
    dataset(raw, "Dataset001_Knee", {"background": 0, "femur": 1, "tibia": 2})
    dataset(raw, "Dataset002_Hip", {"background": 0, "pelvis": 1, "femur": 2}, ("b", "c", "d"))
    return raw


def run(*more, name="Both", number=900, datasets=(1, 2)):
    return main(["merge", *map(str, datasets), "-o", str(number), "--name", name, "-np", "1", *more])


def snapshot(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_what_is_written(two, capsys):
    before = snapshot(two)
    assert run() == 0
    folder = two / "Dataset900_Both"
    description = json.loads((folder / "dataset.json").read_text())
    assert description == {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "femur": 1, "tibia": 2, "pelvis": 3},
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "nnunet_plugins_sources": {
            "Knee": {"dataset": "Dataset001_Knee", "labels": {"femur": 1, "tibia": 2}, "cases": ["a", "b"]},
            "Hip": {"dataset": "Dataset002_Hip", "labels": {"pelvis": 1, "femur": 2}, "cases": ["b", "c", "d"]},
        },
    }
    assert sorted(os.listdir(folder)) == ["dataset.json", "imagesTr", "labelsTr"]
    assert sorted(os.listdir(folder / "labelsTr")) == [
        *(f"Hip__{case}.nii.gz" for case in "bcd"),
        *(f"Knee__{case}.nii.gz" for case in "ab"),
    ]
    for source, values in (("Knee", [0, 1, 2]), ("Hip", [0, 3, 1])):
        number = {"Knee": 1, "Hip": 2}[source]
        for case in description["nnunet_plugins_sources"][source]["cases"]:
            own = two / f"Dataset{number:03d}_{source}"
            labels, image = folder / "labelsTr" / f"{source}__{case}.nii.gz", f"{source}__{case}_0000.nii.gz"
            assert np.array_equal(read(labels), np.array(values)[read(own / "labelsTr" / f"{case}.nii.gz")])
            assert (folder / "imagesTr" / image).read_bytes() == (own / "imagesTr" / f"{case}_0000.nii.gz").read_bytes()
            written, theirs = (sitk.ReadImage(str(f)) for f in (labels, own / "labelsTr" / f"{case}.nii.gz"))
            assert (written.GetSpacing(), written.GetOrigin()) == (theirs.GetSpacing(), theirs.GetOrigin())
    assert {path: kept for path, kept in snapshot(two).items() if folder not in path.parents} == before
    told = capsys.readouterr().out
    assert f"Wrote {folder}: 5 cases" in told
    assert ["pelvis", "3", "unknown", "yes"] in [line.split() for line in told.splitlines()]
    assert main(["doctor", "-d", "900"]) == 0, capsys.readouterr().out


def test_links_survive_a_move_of_everything_and_copies_that_of_a_source(two, tmp_path):
    assert run() == 0
    assert run("--copy", name="Copied", number=901) == 0
    moved = two.rename(tmp_path / "elsewhere")
    linked, copied = (
        moved / name / "imagesTr" / "Knee__a_0000.nii.gz" for name in ("Dataset900_Both", "Dataset901_Copied")
    )
    assert linked.is_symlink()
    assert not copied.is_symlink()
    assert read(linked).shape == SIZE
    shutil.rmtree(moved / "Dataset001_Knee")
    assert read(copied).shape == SIZE


def test_where_links_do_not_work_images_are_copied(two, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    assert run() == 0
    assert not (two / "Dataset900_Both" / "imagesTr" / "Knee__a_0000.nii.gz").is_symlink()


def test_an_interrupted_run_goes_on(two, monkeypatch, capsys):
    done = []

    def stop(file, other, **named):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(other.name)
        return relabel(file, other, **named)

    relabel = merge.relabel
    monkeypatch.setattr(merge, "relabel", stop)
    assert run() == 130
    assert not (two / "Dataset900_Both").exists()
    monkeypatch.setattr(
        merge, "relabel", lambda file, other, **named: (done.append(other.name), relabel(file, other, **named))[1]
    )
    assert run() == 0
    assert sorted(done) == sorted(os.listdir(two / "Dataset900_Both" / "labelsTr")), "none of them twice"
    assert [path.name for path in two.iterdir() if path.name.startswith(".")] == []


def test_what_an_interrupted_run_of_something_else_left_is_made_anew(two, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge, "_give_images", stop)
        assert run() == 130
    file = two / "Dataset001_Knee" / "labelsTr" / "a.nii.gz"
    write(file, np.full(SIZE, 2, np.uint8), (1.0, 1.0, 2.0))
    assert run() == 0
    assert (read(two / "Dataset900_Both" / "labelsTr" / "Knee__a.nii.gz") == 2).all()


def test_renamed_labels(two):
    assert run("--rename", "2:femur=femur of the hip", "1:tibia=shin") == 0
    description = json.loads((two / "Dataset900_Both" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "femur": 1, "shin": 2, "pelvis": 3, "femur of the hip": 4}
    assert description["nnunet_plugins_sources"]["Hip"]["labels"] == {"pelvis": 1, "femur of the hip": 2}
    own = read(two / "Dataset002_Hip" / "labelsTr" / "d.nii.gz")
    assert np.array_equal(read(two / "Dataset900_Both" / "labelsTr" / "Hip__d.nii.gz"), np.array([0, 3, 4])[own])


def test_what_one_source_says_to_consist_of_objects_does_so_under_its_new_name(two):
    change(two, "Dataset001_Knee", nnunet_plugins_objects=["tibia"])
    assert run("--rename", "1:tibia=shin") == 0
    assert json.loads((two / "Dataset900_Both" / "dataset.json").read_text())["nnunet_plugins_objects"] == ["shin"]


def test_labels_kept_apart(two):
    assert run("--by-dataset") == 0
    labels = json.loads((two / "Dataset900_Both" / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "Knee__femur": 1, "Knee__tibia": 2, "Hip__pelvis": 3, "Hip__femur": 4}


def test_names_that_may_mean_one_structure_are_told(two, capsys):
    change(two, "Dataset002_Hip", labels={"background": 0, "pelvis": 1, "Femur_": 2})
    assert run() == 0
    assert "'femur' and 'Femur_' are two structures; if one is meant, merge with --rename" in capsys.readouterr().err


def test_two_at_a_time_do_not_get_into_each_others_way(two, capsys):
    with hold_lock(two / ".Dataset900_Both.partial" / "lock"):
        assert run() == 2
    assert re.search(r"Dataset900_Both is being made by process \d+ on ", capsys.readouterr().err)
    assert run() == 0


def test_equal_labels_and_an_ignore_label_in_one(raw):
    dataset(raw, "Dataset001_A", {"background": 0, "bone": 1, "ignore": 2})
    dataset(raw, "Dataset002_B", {"background": 0, "bone": 1, "skin": 2})
    assert run() == 0
    folder = raw / "Dataset900_Both"
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {
        "background": 0,
        "bone": 1,
        "skin": 2,
        "ignore": 3,
    }
    own = read(raw / "Dataset001_A" / "labelsTr" / "a.nii.gz")
    assert np.array_equal(read(folder / "labelsTr" / "A__a.nii.gz"), np.array([0, 1, 3])[own])


def test_values_that_the_writer_has_no_room_for_are_refused(raw, capsys):
    for number, many in ((1, 200), (2, 56)):
        labels = {"background": 0, **{f"{number} {value}": value for value in range(1, many + 1)}}
        dataset(raw, f"Dataset{number:03d}_A", labels, overwrite_image_reader_writer="SimpleITKIOWithReorient")
    assert run() == 2
    assert "segmentations of 8 bits, in which label 256 becomes 0; name another one as" in capsys.readouterr().err
    assert not list(raw.glob("*900*"))
    for number in (1, 2):
        change(raw, f"Dataset{number:03d}_A", overwrite_image_reader_writer="SimpleITKIO")
    assert run() == 0
    assert max(read(file).max() for file in (raw / "Dataset900_Both" / "labelsTr").iterdir()) > 255


def test_groups_stay_together_and_those_of_two_datasets_apart(two):
    (two / "Dataset002_Hip" / "groups.csv").write_text("case,group\nb,1\nc,1\nd,2\n")
    assert run() == 0
    rows = (two / "Dataset900_Both" / "groups.csv").read_text().splitlines()
    knee = [f"Knee__{case},Knee__{case}" for case in "ab"]
    assert rows == ["case,group", *knee, "Hip__b,Hip__1", "Hip__c,Hip__1", "Hip__d,Hip__2"]


def test_names_that_clash(raw):
    for number, name in ((1, "Hip"), (2, "hip"), (3, "Hüfte__links_")):
        dataset(raw, f"Dataset{number:03d}_{name}", {"background": 0, "bone": 1}, cases=("a", "Fuß_ä__1"))
    decomposed = unicodedata.normalize("NFD", "Fuß_ä__1")
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / "Dataset003_Hüfte__links_" / part / f"Fuß_ä__1{ending}").rename(
            raw / "Dataset003_Hüfte__links_" / part / f"{decomposed}{ending}"
        )
    assert run(datasets=(1, 2, 3)) == 0
    labels = sorted(path.name for path in (raw / "Dataset900_Both" / "labelsTr").iterdir())
    assert labels == sorted(
        f"{source}__{case}.nii.gz" for source in ("Hip001", "hip002", "Hüfte_links") for case in ("a", "Fuß_ä__1")
    )


def test_numbered_names_clash_with_no_other(raw):
    for number, name in ((1, "Hip"), (2, "hip"), (3, "Hip001")):
        dataset(raw, f"Dataset{number:03d}_{name}", {"background": 0, "bone": 1})
    assert run(datasets=(1, 2, 3)) == 0
    folder = raw / "Dataset900_Both"
    table = json.loads((folder / "dataset.json").read_text())["nnunet_plugins_sources"]
    assert [row["dataset"][:10] for row in table.values()] == ["Dataset001", "Dataset002", "Dataset003"]
    assert len({name.casefold() for name in table}) == 3
    assert len(list((folder / "labelsTr").iterdir())) == 6


def test_groups_of_names_that_a_spreadsheet_would_compute(raw):
    for number, name in ((1, "A"), (2, "-B")):
        dataset(raw, f"Dataset{number:03d}_{name}", {"background": 0, "bone": 1})
        (raw / f"Dataset{number:03d}_{name}" / "groups.csv").write_text("case,group\na,1\nb,1\n")
    assert run() == 0
    folder = raw / "Dataset900_Both"
    cases = {path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir()}
    assert set(read_groups(folder / "groups.csv")) == cases


# Channels


def test_channels_in_another_order_are_put_into_one(raw):
    labels = {"background": 0, "bone": 1}
    dataset(raw, "Dataset001_A", labels, channels=("T1", "FLAIR", "T2"))
    dataset(raw, "Dataset002_B", labels, channels=("flair", "T2", "T1"))
    assert run() == 0
    folder = raw / "Dataset900_Both"
    names = json.loads((folder / "dataset.json").read_text())["channel_names"]
    assert names == {"0": "T1", "1": "FLAIR", "2": "T2"}
    # Of three, to put them there is another order than to take them from there.
    for channel, own in ((0, 2), (1, 0), (2, 1)):
        theirs = raw / "Dataset002_B" / "imagesTr" / f"a_{own:04d}.nii.gz"
        assert (folder / "imagesTr" / f"B__a_{channel:04d}.nii.gz").resolve() == theirs


def test_single_channels_of_another_name():
    assert join_channels({"a": ["MRI"], "b": ["FLAIR"], "c": ["mri"]})[0] == ["MRI or FLAIR"]


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ((["MRI"], ["FLAIR", "T1c"]), r"A has 1 channel \(MRI\), B has 2 channels \(FLAIR, T1c\): a network takes one"),
        ((["T1", "T2"], ["T1", "FLAIR"]), r"A has 2 channels \(T1, T2\), B has .*; name the channels alike"),
        ((["CT"], ["MRI"]), r"A has 1 channel \(CT\), B has 1 channel \(MRI\), which nnU-Net normalises in different"),
        ((["noNorm"], ["MRI"]), "in different ways: they do not mix"),
    ],
)
def test_other_channels_are_refused_by_name(channels, message):
    with pytest.raises(InputError, match=message):
        join_channels(dict(zip("AB", channels, strict=True)))


# Other formats


@pytest.mark.parametrize("spacing_beside", ["labels", "images"])
def test_spacing_that_stands_beside_a_tif_goes_with_it(raw, spacing_beside):
    for number, name in ((1, "A"), (2, "B")):
        folder = dataset(raw, f"Dataset{number:03d}_{name}", {"background": 0, name: 1}, ("a",), ending=".tif")
        random = np.random.default_rng(number)
        tifffile.imwrite(folder / "imagesTr" / "a_0000.tif", random.normal(size=(6, 7, 8)).astype(np.float32))
        tifffile.imwrite(folder / "labelsTr" / "a.tif", random.integers(0, 2, (6, 7, 8)).astype(np.uint8))
        for part in {"images", spacing_beside}:
            (folder / f"{part}Tr" / "a.json").write_text(json.dumps({"spacing": [3.0, 1.0, number]}))
    assert run() == 0
    folder = raw / "Dataset900_Both"
    for part in ("imagesTr", "labelsTr"):
        assert json.loads((folder / part / "B__a.json").read_text()) == {"spacing": [3.0, 1.0, 2]}
    truth = tifffile.imread(raw / "Dataset002_B" / "labelsTr" / "a.tif")
    assert np.array_equal(tifffile.imread(folder / "labelsTr" / "B__a.tif"), 2 * truth)
    assert len(list((folder / "labelsTr").iterdir())) == 4


def test_pictures_with_their_colours_in_one_file(raw, capsys):
    for number, name in ((1, "A"), (2, "B")):
        labels = {"background": 0, name: 1}
        folder = dataset(raw, f"Dataset{number:03d}_{name}", labels, (), tuple("RGB"), ".png", numTraining=2)
        random = np.random.default_rng(number)
        for case in "ab":
            Image.fromarray(random.integers(0, 255, (8, 9, 3)).astype(np.uint8)).save(
                folder / "imagesTr" / f"{case}_0000.png"
            )
            Image.fromarray(random.integers(0, 2, (8, 9)).astype(np.uint8)).save(folder / "labelsTr" / f"{case}.png")
    assert run() == 0
    out = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 900 -c 2d\n" in out, "nnU-Net plans nothing else for them"
    assert "nnUNetv2_train 900 2d 0 -tr" in out
    folder = raw / "Dataset900_Both"
    own = np.asarray(Image.open(raw / "Dataset002_B" / "labelsTr" / "b.png"))
    assert np.array_equal(np.asarray(Image.open(folder / "labelsTr" / "B__b.png")), 2 * own)
    assert sorted(os.listdir(folder / "imagesTr")) == [f"{name}__{case}_0000.png" for name in "AB" for case in "ab"]


# Regions


def region_sets():
    tumour = {"labels": {"background": 0, "liver": [1, 2, 3], "tumour": [2, 3]}, "regions_class_order": [1, 3]}
    organs = {"labels": {"background": 0, "spleen": 1, "liver": 2}}
    lesion = {"labels": {"background": 0, "tumour": 1}}
    return {name: LabelSet.of(one) for name, one in (("lesion", lesion), ("organs", organs), ("tumours", tumour))}


def join(sets):
    return join_labels(sets, {name: {label: label for label in one.values} for name, one in sets.items()})


def test_regions_join_what_lies_in_them():
    joint = join(region_sets())
    assert joint.labels == {"background": 0, "liver": [1, 2], "tumour": [2, 3], "spleen": 4}
    assert list(joint.labels) == ["background", "liver", "tumour", "spleen"], "what covers another comes before it"
    assert joint.order == [1, 2, 4]
    assert joint.values == {
        "tumours": {0: 0, 1: 1, 2: 2, 3: 2},
        "organs": {0: 0, 1: 4, 2: 1},
        "lesion": {0: 0, 1: 3},
    }


def test_a_view_of_regions_is_the_way_back():
    joint = join(region_sets())
    table = {
        "tumours": {"labels": {"liver": [1, 2, 3], "tumour": [2, 3]}, "regions_class_order": [1, 3]},
        "organs": {"labels": {"spleen": 1, "liver": 2}},
        "lesion": {"labels": {"tumour": 1}},
    }
    description = {
        "labels": joint.labels,
        "nnunet_plugins_sources": {name: {"dataset": name, "cases": [], **row} for name, row in table.items()},
    }
    found = {name: own_values(joint.labels, one) for name, one in read_sources(description).items()}
    assert found["tumours"] == {0: 0, 1: 1, 2: 3, 3: 3, 4: 0}, (
        "a tumour outside of a liver is one, as nnU-Net writes it"
    )
    assert found["organs"] == {0: 0, 1: 2, 2: 2, 3: 0, 4: 1}
    assert found["lesion"] == {0: 0, 1: 0, 2: 1, 3: 1, 4: 0}


def test_all_that_nnunet_writes_has_a_value_in_every_view():
    """Also where a structure has another one in it that a dataset does not know: then it is what is innermost there."""
    others = {"labels": {"tumour": [1, 2], "necrosis": 2}, "regions_class_order": [1, 2]}
    table = {"one": {"labels": {"liver": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}, "other": others}
    joint = join({name: LabelSet.of(row) for name, row in table.items()})
    description = {
        "labels": joint.labels,
        "nnunet_plugins_sources": {name: {"dataset": name, "cases": [], **row} for name, row in table.items()},
    }
    found = {name: own_values(joint.labels, one) for name, one in read_sources(description).items()}
    for view in found.values():
        assert set(joint.order) <= set(view)
    assert found["one"][4] == 2, "necrosis, which lies in a tumour"


@pytest.mark.parametrize("plain_first", [True, False])
def test_one_structure_within_another_and_beside_it_contradict_each_other(plain_first):
    """Of a tumour, one dataset would teach that it is liver, and the other that it is none."""
    within = {"labels": {"background": 0, "liver": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
    beside = {"labels": {"background": 0, "liver": 1, "tumour": 2}}
    table = {"Within": LabelSet.of(within), "Beside": LabelSet.of(beside)}
    with pytest.raises(InputError) as caught:
        join(dict(reversed(table.items())) if plain_first else table)
    for word in ("Within", "Beside", "'liver'", "'tumour'", "share values", "--rename"):
        assert word in str(caught.value)


def test_renamed_structures_contradict_no_others():
    within = {"labels": {"background": 0, "liver": [1, 2], "tumour": 2}, "regions_class_order": [1, 2]}
    beside = {"labels": {"background": 0, "liver": 1, "tumour": 2}}
    names = {"Within": {"liver": "liver", "tumour": "tumour"}, "Beside": {"liver": "healthy liver", "tumour": "tumour"}}
    joint = join_labels({"Within": LabelSet.of(within), "Beside": LabelSet.of(beside)}, names)
    assert joint.labels == {"background": 0, "liver": [1, 2], "tumour": [2, 4], "healthy liver": 3}


def test_what_covers_another_region_comes_before_it_whichever_dataset_says_so():
    inner = {"labels": {"whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    outer = {"labels": {"organ": [1, 2], "whole": 2}, "regions_class_order": [1, 2]}
    joint = join({"inner": LabelSet.of(inner), "outer": LabelSet.of(outer)})
    assert joint.labels == {"background": 0, "organ": [3, 4, 5], "whole": [1, 2, 4, 5], "core": [2, 5]}
    assert list(joint.labels) == ["background", "organ", "whole", "core"]
    assert joint.order == [3, 4, 5], "a whole is written as one in an organ, and so is its core, which neither has"
    other = {"labels": {"core": [1, 2], "whole": 2}, "regions_class_order": [1, 2]}
    with pytest.raises(InputError, match=r"inner: 'core' is written over 'whole', .*other way round\. Give labels"):
        join({"other": LabelSet.of(other), "inner": LabelSet.of(inner)})


@pytest.mark.parametrize("equal_first", [True, False])
def test_regions_with_equal_values_in_one_dataset_are_written_apart_where_another_tells_them_apart(equal_first):
    equal = {"labels": {"background": 0, "whole": [1, 2], "core": [1, 2]}, "regions_class_order": [2, 1]}
    apart = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    table = {"equal": LabelSet.of(equal), "apart": LabelSet.of(apart)}
    joint = join(table if equal_first else dict(reversed(table.items())))
    whole, both = joint.values["apart"][1], joint.values["apart"][2]
    assert joint.labels == {"background": 0, "whole": sorted((whole, both)), "core": both}
    assert joint.order == [whole, both], "a whole alone is no core"
    assert joint.values["equal"] == {0: 0, 1: both, 2: both}


def written(labels, order, regions):
    """Return the value that nnU-Net writes where it finds regions."""
    names = [name for name in labels if name != "background"]
    if not order:  # channels are values, with that of the background first
        names = ["background", *sorted(names, key=labels.__getitem__)]
    found = [0.5 if name == "background" else float(name in regions) for name in names]
    manager = LabelManager({"background": 0, **labels}, order or None)
    return int(manager.convert_probabilities_to_segmentation(np.array(found).reshape(-1, 1, 1, 1)).item())


def structures(labels, value):
    return {name for name, values in labels.items() if value and value in np.atleast_1d(values)}


def views(tables, joint, regions):
    """Return, by dataset, the structures that its view has where nnU-Net finds regions."""
    value = written(joint.labels, joint.order, regions)
    sources = {dataset: Source(dataset, labels, (), tuple(order)) for dataset, (labels, order) in tables.items()}
    return {
        dataset: structures(source.labels, own_values(joint.labels, source)[value])
        for dataset, source in sources.items()
    }


def as_sets(tables):
    return {
        dataset: LabelSet.of({"labels": labels, "regions_class_order": order})
        for dataset, (labels, order) in tables.items()
    }


def test_what_only_several_datasets_together_tell_apart_has_a_value_of_its_own():
    """The one with the whole has no core without its enhancing part, and the one that tells these apart no whole."""
    tables = {
        "Equal": ({"whole": [1, 2], "core": [1], "enhancing": [1]}, [2, 1, 1]),
        "Apart": ({"core": [1, 2], "enhancing": [2]}, [1, 2]),
        "Whole": ({"whole": 1}, []),
    }
    joint = join(as_sets(tables))
    for regions in ({"whole"}, {"whole", "core"}, {"whole", "core", "enhancing"}):
        assert structures(joint.labels, written(joint.labels, joint.order, regions)) == regions
        found = views(tables, joint, regions)
        assert found["Whole"] == {"whole"}
        assert found["Apart"] == regions - {"whole"}
    values = {value for own in joint.values.values() for value in own.values()}
    assert {*joint.order} - values == {5}, "a whole with a core and nothing else, which no segmentation has"


def test_what_is_innermost_for_two_datasets_keeps_what_it_lies_in():
    tables = {
        "One": ({"a": 1}, []),
        "Other": ({"c": 1}, []),
        "All": ({"a": [1, 2, 3], "b": [1, 3], "c": 1, "d": 1}, [2, 3, 1, 1]),
    }
    joint = join(as_sets(tables))
    assert views(tables, joint, {"a", "b", "c"}) == {"One": {"a"}, "Other": {"c"}, "All": set("abcd")}


def a_dataset(random, kinds, names):
    """Return labels and order of a dataset that knows some names, and has some of the kinds of voxels; or None."""
    own = random.sample(names, random.randint(1, len(names)))
    seen = {frozenset(kind & {*own}) for kind in kinds if random.random() < 0.8} - {frozenset()}
    seen = random.sample(sorted(seen, key=sorted), len(seen))
    own = sorted((name for name in own if any(name in kind for kind in seen)), key=names.index)
    values = {name: [value for value, kind in enumerate(seen, 1) if name in kind] for name in own}
    if all(len(kind) == 1 for kind in seen):
        return ({name: value for name, (value,) in values.items()}, []) if own else None
    order = []
    for place, name in enumerate(own):
        without_later = [value for value in values[name] if seen[value - 1] <= {*own[: place + 1]}]
        order.append(max(without_later or values[name], key=lambda value: len(seen[value - 1])))
    return (values, order) if any(len(several) > 1 for several in values.values()) else None


def test_no_merged_dataset_loses_regions_that_its_sources_have():
    """In small random worlds of structures in each other, of which each dataset knows some, and has not all cases."""
    random, looked_at, new = Random(0), 0, 0
    while looked_at < 300:
        names = list("abcde")[: random.randint(2, 5)]
        kinds = []
        for name in names:
            kinds.append(random.choice([set(), *kinds]) | {name})
        tables = {f"D{number}": a_dataset(random, kinds, names) for number in range(random.randint(2, 3))}
        known = [set() if one is None else {*one[0]} for one in tables.values()]
        together = {pair for own in known for pair in combinations(sorted(own), 2)}
        if None in tables.values() or not {*combinations(sorted(set().union(*known)), 2)} <= together:
            continue  # of two structures that no dataset has together, nothing is known
        looked_at += 1
        joint = join(as_sets(tables))
        new += not {*(joint.order or ())} <= {value for own in joint.values.values() for value in own.values()}
        for regions in ({*kind} & set().union(*known) for kind in kinds):
            for dataset, found in views(tables, joint, regions).items():
                labels, order = tables[dataset]
                expected = regions & {*labels}
                # A dataset that has no voxel with these regions alone writes others with them.
                itself = structures(labels, written(labels, order, expected))
                assert found in (expected, itself), (tables, regions, dataset)
    assert new > 10


def test_regions_that_lie_in_each_other_in_different_ways_are_refused():
    tables = {
        "Nested": ({"a": [1, 2], "b": [2]}, [1, 2]),
        "Overlapping": ({"a": [1, 2], "b": [2, 3]}, [1, 3]),
    }
    with pytest.raises(InputError, match=r"Nested: voxels of 'a' and 'b' would be written as 'b'.*--rename"):
        join(as_sets(tables))


def test_equal_regions_stay_as_they_are():
    one = LabelSet.of({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]})
    joint = join({"a": one, "b": one})
    assert joint.labels == {"background": 0, "whole": [1, 2], "core": 2}
    assert joint.order == [1, 2]
    assert joint.values["a"] == joint.values["b"] == {0: 0, 1: 1, 2: 2}


# Views


def test_labels_shows_one_sources_view(two, tmp_path, capsys):
    change(two, "Dataset002_Hip", nnunet_plugins_objects=["femur"])
    assert run("--rename", "2:femur=thigh") == 0
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    shutil.copy(two / "Dataset900_Both" / "dataset.json", predicted)
    values = np.arange(60).reshape(SIZE) % 5
    write(predicted / "new.nii.gz", values.astype(np.uint8))
    for name in ("Hip", "Dataset002_Hip"):
        assert main(["labels", "-i", str(predicted), "-o", str(tmp_path / name), "--dataset", name]) == 0
        assert np.array_equal(read(tmp_path / name / "new.nii.gz"), np.array([0, 0, 0, 1, 2])[values])
        description = json.loads((tmp_path / name / "dataset.json").read_text())
        assert description["labels"] == {"background": 0, "pelvis": 1, "thigh": 2}
        assert description["nnunet_plugins_objects"] == ["thigh"]
    assert np.array_equal(read(predicted / "new.nii.gz"), values)
    capsys.readouterr()
    # What is wrong.
    write(predicted / "odd.nii.gz", np.full(SIZE, 9, np.uint8))
    for arguments, message in (
        ((tmp_path / "Knee", "Knee"), "odd is not in it: .*odd.nii.gz holds labels that dataset.json does not declare"),
        ((tmp_path / "Hip", "Hip"), "holds something already; choose another folder, or give --overwrite"),
        ((tmp_path / "x", "Shoulder"), r"was merged of Knee \(Dataset001_Knee\), Hip \(Dataset002_Hip\)"),
        ((predicted, "Hip"), "cannot be the folder to write"),
    ):
        code = main(["labels", "-i", str(predicted), "-o", str(arguments[0]), "--dataset", arguments[1]])
        assert code == (1 if "odd" in message else 2)
        assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "Knee" / "new.nii.gz").is_file()
    # Nor is it from an earlier run.
    shutil.copy(tmp_path / "Knee" / "new.nii.gz", tmp_path / "Knee" / "odd.nii.gz")
    assert main(["labels", "-i", str(predicted), "-o", str(tmp_path / "Knee"), "--dataset", "Knee", "--overwrite"]) == 1
    assert sorted(os.listdir(tmp_path / "Knee")) == ["dataset.json", "new.nii.gz"]
    # Nothing of a dataset is replaced.
    before = snapshot(two)
    truth = str(two / "Dataset002_Hip" / "labelsTr")
    assert main(["labels", "-i", str(predicted), "-o", truth, "--dataset", "Hip", "--overwrite"]) == 2
    assert "holds files of a dataset, which nothing replaces" in capsys.readouterr().err
    assert snapshot(two) == before
    shutil.copy(two / "Dataset001_Knee" / "dataset.json", predicted)
    assert main(["labels", "-i", str(predicted), "-o", str(tmp_path / "y"), "--dataset", "Hip"]) == 2
    assert "has no 'nnunet_plugins_sources'" in capsys.readouterr().err


def test_views_of_two_sources_do_not_mix(two, tmp_path, capsys):
    """Their values mean different things, and one dataset.json is there for all."""
    assert run() == 0
    for name, cases in (("both", "uv"), ("one", "v")):
        (tmp_path / name).mkdir()
        shutil.copy(two / "Dataset900_Both" / "dataset.json", tmp_path / name)
        for case in cases:
            write(tmp_path / name / f"{case}.nii.gz", (np.arange(60).reshape(SIZE) % 4).astype(np.uint8))
    output = tmp_path / "view"

    def show(predicted, source, *more):
        arguments = ["-i", str(tmp_path / predicted), "-o", str(output), "--dataset", source, *more]
        return main(["labels", *arguments])

    assert show("both", "Knee") == 0
    before = snapshot(output)
    capsys.readouterr()
    assert show("one", "Hip", "--overwrite") == 2
    both = "with the labels background 0, femur 1, tibia 2, and here are background 0, pelvis 1, femur 2"
    assert f"{output} holds u.nii.gz, {both}; choose another folder" in capsys.readouterr().err
    assert snapshot(output) == before
    assert show("one", "Knee", "--overwrite") == 0
    assert sorted(os.listdir(output)) == ["dataset.json", "u.nii.gz", "v.nii.gz"]
    assert show("both", "Hip", "--overwrite") == 0, "nothing of the other is left"
    assert np.array_equal(np.unique(read(output / "u.nii.gz")), [0, 1, 2])


def test_views_of_two_sources_with_the_same_labels_do_not_mix(raw, tmp_path, capsys):
    """Cases of both may have one name: those of one would be compared with the truth of the other."""
    for name, cases in (("Dataset001_Left", "ab"), ("Dataset002_Right", "a")):
        dataset(raw, name, {"background": 0, "bone": 1}, tuple(cases))
    assert run() == 0
    truth, output = raw / "Dataset900_Both" / "labelsTr", tmp_path / "view"

    def show(source):
        arguments = ["-i", str(truth), "-o", str(output), "--dataset", source, "--own-cases", "--overwrite"]
        return main(["labels", *arguments])

    assert show("Left") == 0
    before = snapshot(output)
    capsys.readouterr()
    assert show("Right") == 2
    told = "b.nii.gz, of Dataset001_Left, and here are cases of Dataset002_Right; choose another folder"
    assert f"{output} holds {told}" in capsys.readouterr().err
    assert snapshot(output) == before
    assert show("Left") == 0
    (output / "b.nii.gz").unlink()
    assert show("Right") == 0, "nothing of the other is left"
    # Views that older versions wrote do not say of what they are.
    write(output / "c.nii.gz", np.zeros(SIZE, np.uint8))
    description = json.loads((output / "dataset.json").read_text())
    assert description.pop("nnunet_plugins_cases_of") == "Dataset002_Right"
    (output / "dataset.json").write_text(json.dumps(description))
    assert show("Left") == 0


def test_an_interrupted_view_says_whose_values_it_has(two, tmp_path, monkeypatch):
    assert run() == 0
    truth, output = two / "Dataset900_Both" / "labelsTr", tmp_path / "view"
    assert main(["labels", "-i", str(truth), "-o", str(output), "--dataset", "Knee"]) == 0

    def stop(jobs, processes):
        for job in list(jobs.values())[:1]:
            job()
        raise KeyboardInterrupt

    monkeypatch.setattr(merging_view, "finish_jobs", stop)
    assert main(["labels", "-i", str(truth), "-o", str(output), "--dataset", "Hip", "--overwrite"]) == 130
    assert len(os.listdir(output)) == 2
    assert list(json.loads((output / "dataset.json").read_text())["labels"]) == ["background", "pelvis", "femur"]


def test_a_view_knows_no_ignore_label(raw, tmp_path):
    """A source may not have it; in a true segmentation it is not annotated, as is all that the source does not know."""
    dataset(raw, "Dataset001_A", {"background": 0, "bone": 1, "ignore": 2})
    dataset(raw, "Dataset002_B", {"background": 0, "skin": 1})
    assert run() == 0
    truth = raw / "Dataset900_Both" / "labelsTr"
    assert main(["labels", "-i", str(truth), "-o", str(tmp_path / "view"), "--dataset", "A", "--own-cases"]) == 0
    for case in "ab":
        own = read(raw / "Dataset001_A" / "labelsTr" / f"{case}.nii.gz")
        assert np.array_equal(read(tmp_path / "view" / f"{case}.nii.gz"), np.where(own == 2, 0, own))


def test_images_of_one_size_lead_back_from_what_was_merged(two, tmp_path, capsys):
    assert run() == 0
    assert main(["fixed-size", "-d", "1", "-o", "301", "-np", "1"]) == 0
    assert run(number=901, datasets=(301, 2)) == 2
    assert "merge Dataset001_Knee in its place, and make a twin of what is merged" in capsys.readouterr().err
    # A twin of the merged dataset; its view can be brought back.
    assert main(["fixed-size", "-d", "900", "-o", "302", "--size", "5", "6", "7", "-np", "1"]) == 0
    predicted, view, restored = two / "Dataset302_BothFixed" / "labelsTr", tmp_path / "view", tmp_path / "restored"
    assert main(["labels", "-i", str(predicted), "-o", str(view), "--dataset", "Knee", "--own-cases"]) == 0
    reference = str(two / "Dataset001_Knee" / "imagesTr")
    assert main(["fixed-size", "--restore", str(view), "--reference", reference, "-o", str(restored)]) == 0
    for case in "ab":
        assert np.array_equal(
            read(restored / f"{case}.nii.gz"), read(two / "Dataset001_Knee" / "labelsTr" / f"{case}.nii.gz")
        )


# Doctor


def test_doctor_tells_whether_the_trainer_asks_what_is_annotated(two):
    assert run() == 0
    folder = two / "Dataset900_Both"
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "labelsTr").rename(folder / "gt_segmentations")  # as in preprocessed data

    def found(trainer):
        return [(one.level, one.text) for one in check_sources(trainer_class(trainer), description, folder)]

    ((level, text),) = found("nnUNetTrainer")
    assert level == "warning"
    assert text.startswith("Hip, Knee: not all labels are annotated there, and nnUNetTrainer takes the others for")
    assert found("nnUNetTrainerFIRENet_PartialLabels") == [("ok", "merged of Knee, Hip")]
    for source in description["nnunet_plugins_sources"].values():
        source["labels"] = dict.fromkeys(("femur", "tibia", "pelvis"), 1)
    assert found("nnUNetTrainer") == [("ok", "merged of Knee, Hip")]
    del description["nnunet_plugins_sources"]
    assert found("nnUNetTrainer") == []


# What is refused


def spoil_values(raw):
    write(raw / "Dataset002_Hip" / "labelsTr" / "c.nii.gz", np.full(SIZE, 3, np.uint8), (2.0, 1.0, 2.0))


def change(raw, name, **more):
    file = raw / name / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, {"datasets": (1,)}, "name two or more different datasets, not Dataset001_Knee"),
        (None, {"datasets": (1, "Dataset001_Knee")}, "name two or more different datasets, not Dataset001_Knee, Data"),
        (None, {"datasets": (1, 77)}, "'77' is not the number or name of exactly one dataset"),
        (None, {"number": 1000}, "-o 1000: nnU-Net's datasets have numbers from 1 to 999"),
        (None, {"number": 2}, "-o 2: .*Dataset002_Hip is one of the datasets to merge; choose another number"),
        (lambda raw: (raw / "Dataset900_Old").mkdir(), {}, "-o 900: .*Dataset900_Old is there already"),
        (None, {"name": "a/b"}, "--name 'a/b': use letters, digits"),
        (None, {"name": "a__b"}, "--name 'a__b': use letters, digits"),
        (None, {"more": ("--rename", "2:femur")}, "--rename 2:femur: write DATASET:LABEL=NAME, as in 15:bone=humerus"),
        (None, {"more": ("--rename", "2:bone=x")}, "Dataset002_Hip has no label 'bone'; it has pelvis, femur"),
        (None, {"more": ("--rename", "2:femur=background")}, "'background' is no structure"),
        (None, {"more": ("--rename", "2:femur=a", "2:femur=b")}, "'femur' of Dataset002_Hip has a new name already"),
        (None, {"more": ("--rename", "2:femur=pelvis")}, "Dataset002_Hip: 'pelvis' and 'femur' would both be 'pelvis'"),
        (None, {"more": ("--by-dataset", "--rename", "2:femur=x")}, "leave out --rename"),
        (
            spoil_values,
            {},
            r"1 segmentations cannot be .*c.nii.gz holds labels .* does not declare \(3; declared are 0",
        ),
        (
            lambda raw: (raw / "Dataset002_Hip" / "labelsTr" / "c.nii.gz").write_bytes(b"none"),
            {},
            "1 segmentations cannot be merged.*labelsTr/c.nii.gz",
        ),
        (
            lambda raw: (raw / "Dataset002_Hip" / "imagesTr" / "c_0000.nii.gz").unlink(),
            {},
            "Dataset002_Hip cannot be merged: ",
        ),
        (
            lambda raw: change(raw, "Dataset002_Hip", labels={"background": 0, "a": 1, "b": 1}),
            {},
            "Dataset002_Hip: 'a' and 'b' have one value, 1",
        ),
        (
            lambda raw: change(raw, "Dataset002_Hip", overwrite_image_reader_writer="NibabelIO"),
            {},
            "reads Dataset001_Knee with SimpleITKIO, Dataset002_Hip with NibabelIO; name one",
        ),
        (
            lambda raw: (raw / "Dataset002_Hip" / "dataset.json").write_text("{"),
            {},
            "Dataset002_Hip/dataset.json is no JSON that can be read",
        ),
        (
            lambda raw: (raw / "Dataset002_Hip" / "groups.csv").write_text("case,group\nb,1\n"),
            {},
            "groups.csv names no group for c; add a row for it",
        ),
        (
            lambda raw: change(raw, "Dataset002_Hip", nnunet_plugins_sources={"A": {"dataset": "Dataset003_A"}}),
            {},
            "Dataset002_Hip was merged itself; name the datasets that it was made of: Dataset003_A",
        ),
    ],
)
def test_bad_input_is_one_clear_error(two, spoil, arguments, message, capsys):
    if spoil:
        spoil(two)
    arguments = dict(arguments)
    assert run(*arguments.pop("more", ()), **arguments) == 2
    told = capsys.readouterr().err
    assert re.search(message, told.replace("\n", " ")), told
    assert not (two / "Dataset900_Both").exists()


def test_a_two_channel_dataset_beside_one_of_one_is_refused(raw, capsys):
    dataset(raw, "Dataset004_Hippocampus", {"background": 0, "Anterior": 1})
    dataset(raw, "Dataset015_BRATSmini", {"background": 0, "edema": 1}, channels=("FLAIR", "T1c"))
    assert run(datasets=(4, 15)) == 2
    told = capsys.readouterr().err
    assert "Dataset004_Hippocampus has 1 channel (MRI), Dataset015_BRATSmini has 2 channels (FLAIR, T1c)" in told
    assert len(told.splitlines()) == 1


def test_images_that_are_listed_with_another_ending_are_refused(two, capsys):
    """nnU-Net would read them by their names, and the merged ones have that of the dataset."""
    (two / "Dataset002_Hip" / "others").mkdir()
    listed = {}
    for case in "bcd":
        image = sitk.ReadImage(str(two / "Dataset002_Hip" / "imagesTr" / f"{case}_0000.nii.gz"))
        sitk.WriteImage(image, str(two / "Dataset002_Hip" / "others" / f"{case}.nrrd"))
        listed[case] = {"images": [f"others/{case}.nrrd"], "label": f"labelsTr/{case}.nii.gz"}
    change(two, "Dataset002_Hip", dataset=listed)
    assert run() == 2
    assert "Dataset002_Hip lists others/b.nrrd, and its files end in .nii.gz; convert" in capsys.readouterr().err


def test_other_endings_are_refused(raw, capsys):
    dataset(raw, "Dataset001_A", {"background": 0, "a": 1})
    dataset(raw, "Dataset002_B", {"background": 0, "b": 1}, ending=".nrrd")
    assert run() == 2
    assert "Dataset001_A has files .nii.gz, Dataset002_B has files .nrrd; convert one" in capsys.readouterr().err


# nnU-Net's own commands


@pytest.mark.slow
def test_the_stock_commands_train_and_predict(raw, tmp_path):
    """Of two datasets with labels and voxels of their own, in these voxels; then without a word of partial labels."""
    sandbox = Sandbox(tmp_path)
    write_dataset(sandbox.raw, "Dataset001_Outer", labels={"background": 0, "outer": 1, "other": 2}, cases=2)
    write_dataset(
        sandbox.raw, "Dataset002_Inner", labels={"background": 0, "skin": 1, "inner": 2}, cases=3, spacing=(1, 2, 1)
    )
    assert run("--rename", "1:other=inner") == 0
    name = "Dataset900_Both"
    sandbox.fingerprint(900)
    plan = ("nnUNetv2_plan_and_preprocess", "-d", 900, "-c", "3d_fullres", "-np", 1, "-npfp", 1, "--no_pp")
    sandbox.run(*plan, nnUNet_n_proc_DA="1")
    sandbox.edit_plans(name, "few")
    assert main(["plan", "-d", "900", "--native-resolution", "--like", "few", "--name", "small"]) == 0
    sandbox.run("nnUNetv2_preprocess", "-d", 900, "-plans_name", "small", "-c", "3d_fullres", "-np", 1)
    shapes = preprocessed_shapes(sandbox.preprocessed / name / "small_3d_fullres", ["Outer__case_0", "Inner__case_0"])
    assert {tuple(sorted(shape)) for shape in shapes.values()} == {tuple(sorted(SHAPE))}  # axes in the plans' order
    assert main(["split", "-d", "900", "--strata", "sources", "--folds", "2"]) == 0
    trainer = "nnUNetTrainer_PartialLabels_2epochs_3iterations"
    summary = sandbox.train(name, "3d_fullres", trainer)
    assert len(summary["metric_per_case"]) == 3
    fold = sandbox.results / name / f"{trainer}__small__3d_fullres" / "fold_0"
    (log,) = fold.glob("training_log*.txt")
    said = log.read_text().split("Mean Validation Dice")[1]
    assert "does not annotate as a Dice of 0" in said
    evaluate = shlex.split(re.search(r"nnunet-plugins (evaluate /.*)", said)[1])
    sandbox.run("nnunet-plugins", *evaluate)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].startswith("case,source,label")
    (sandbox.raw / name / "imagesTs").symlink_to(sandbox.raw / "Dataset002_Inner" / "imagesTs")
    found = sandbox.predict(900, "3d_fullres", trainer, tmp_path / "predicted")
    # The weights say it all: a model folder that knows of no modifier predicts the same, bit by bit.
    plain = sandbox.results / name / "nnUNetTrainer__small__3d_fullres"
    shutil.copytree(sandbox.results / name / f"{trainer}__small__3d_fullres", plain)
    file = plain / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainer"}, file)
    assert sandbox.predict(900, "3d_fullres", "nnUNetTrainer", tmp_path / "plain") == found
    assert len(found) == 2


@pytest.mark.slow
def test_a_dataset_that_was_not_merged_is_refused_by_the_stock_command(small):
    train = ("nnUNetv2_train", 1, "3d_fullres", 0, "-p", "small", "-device", "cpu", "-tr")
    output = small.run(*train, "nnUNetTrainerFIRENet_PartialLabels_1epochs", ok=False)
    last = output.strip().splitlines()[-1]
    assert "nnUNetTrainerFIRENet_PartialLabels_1epochs: dataset.json has no 'nnunet_plugins_sources'" in last
    assert "make the dataset with nnunet-plugins merge" in last
