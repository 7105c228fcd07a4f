"""Twins whose images have other intensities: what is written, images to predict, and what is refused."""

import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.exposure import equalize_adapthist, equalize_hist, rescale_intensity
from test_fixed_size import DIRECTION, NAME, SIZES, make, raw, read, snapshot, write

from nnunet_plugins.cli import main
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.preparing import prepare, write_prepared
from nnunet_plugins.images.recipe import Recipe, find_difference, prepared_with, read_recipe
from nnunet_plugins.models.sources import Choice, Source, find_model
from nnunet_plugins.planning.seen import Cases
from nnunet_plugins.prediction.cases import cases_in
from nnunet_plugins.preparation import folder as preparation_folder
from nnunet_plugins.preparation import twin

__all__ = ["raw"]
TWIN = "Dataset400_BonesCLAHE"


def run(*more: object, dataset: object = 300, number: object = 400, scheme: str = "clahe") -> int:
    tile = ["--tile", "4", "4", "4"] if scheme == "clahe" and "--tile" not in more else []
    arguments = ["-d", str(dataset), "-o", str(number), "--scheme", scheme, "-np", "1", *tile, *map(str, more)]
    return main(["prepare-images", *arguments])


def prepare_folder(images: Path, like: object, output: Path, *more: str) -> int:
    return main(["prepare-images", "-i", str(images), "-o", str(output), "--like", str(like), *more])


def between(image: np.ndarray) -> np.ndarray:
    return rescale_intensity(image, out_range=(0.0, 1.0))


def by_slice(image: np.ndarray) -> np.ndarray:
    return np.stack([(plane - plane.mean()) / plane.std() for plane in image.astype(np.float64)])


def by_quartiles(image: np.ndarray) -> np.ndarray:
    first, median, third = np.percentile(image.astype(np.float64), (25, 50, 75))
    width = third - first
    return (np.clip(image, first - 1.5 * width, third + 1.5 * width) - median) / width


# The arithmetic


@pytest.mark.parametrize(
    ("scheme", "more", "expected"),
    [
        ("clahe", [], lambda image: equalize_adapthist(between(image), (4, 4, 4))),
        (
            "clahe",
            ["--tile", 4, 6, 40, "--clip-limit", 0.2],
            lambda image: equalize_adapthist(between(image), (4, 6, image.shape[2]), clip_limit=0.2),
        ),
        ("equalize", [], lambda image: equalize_hist(image.astype(float))),
        ("equalize", ["--percentiles", 5, 90], lambda image: equalize_hist(clip(image, 5, 90).astype(float))),
        ("percentile", [], lambda image: clip(image, 0.5, 99.5)),
        ("percentile", ["--percentiles", 5, 90], lambda image: clip(image, 5, 90)),
        ("iqr", [], by_quartiles),
        ("per-slice", [], by_slice),
    ],
)
def test_every_scheme_is_scikit_images_or_its_formula(raw, scheme, more, expected):
    source = make(raw)
    assert run(*more, "--name", "Twin", scheme=scheme) == 0
    images = sorted(path for path in source.rglob("*_000?.nii.gz"))
    assert len(images) == 8
    for file in images:
        image = read(file)
        found = read(raw / "Dataset400_Twin" / file.relative_to(source))
        assert found.dtype == np.float32
        assert np.allclose(found, expected(image), rtol=1e-5, atol=1e-5)
        assert not np.allclose(found, image, atol=1e-3)
        if scheme in ("clahe", "equalize"):
            assert np.array_equal(found, expected(image).astype(np.float32)), "voxel by voxel"


def clip(image: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(image, *np.percentile(image, (low, high))).astype(np.float32)


def test_tiles_too_small_for_a_histogram_are_refused(raw, tmp_path, capsys):
    """They would make noise of an image: of one voxel each, no more than two grey values."""
    source = make(raw, channels=("MRI",))
    shown = f"{source / 'imagesTr' / 'a_0000.nii.gz'} has 6 voxels along z, and tiles of "
    for tile, told in (((), "1 x 1 x 1, whose histograms of 1 "), ((2, 4, 3), "2 x 4 x 3, whose histograms of 24 ")):
        command = ["prepare-images", "-d", "300", "-o", "400", "--scheme", "clahe", "-np", "1"]
        assert main([*command, *(["--tile", *map(str, tile)] if tile else [])]) == 2
        err = capsys.readouterr().err
        assert shown + told in err
        assert "CLAHE takes 25 or more: make the twin with a larger --tile, or with another --scheme" in err
        assert not (raw / TWIN).exists()
    assert run("--tile", 1, 5, 5) == 0
    # An eighth of 24 voxels is enough, as of any image that is larger; what is constant stays as it is.
    for shape in ((24, 24, 24), (1, 40, 40)):
        write(tmp_path / "a.nii.gz", np.random.default_rng(0).random(shape, np.float32), (1.0, 1.0, 1.0))
        done = write_prepared(
            [tmp_path / "a.nii.gz"], [tmp_path / "b.nii.gz"], Recipe("", "clahe", (0,), clip_limit=0.01)
        )
        assert done.wrong == []
        assert len(np.unique(read(tmp_path / "b.nii.gz"))) > 300
        (tmp_path / "b.nii.gz").unlink()


def test_a_volume_of_three_columns_is_no_picture_in_colours():
    """scikit-image would take its columns for red, green and blue."""
    image = np.random.default_rng(0).gamma(2, size=(16, 24, 8)).astype(np.float32)
    recipe = Recipe("", "clahe", (0,), tile=(4, 6, 2), clip_limit=0.1)
    whole, _ = prepare(image, recipe)
    deep, _ = prepare(
        np.ascontiguousarray(image.transpose(2, 0, 1)[:, :, :3]), Recipe("", "clahe", (0,), None, (2, 4, 3), 0.1)
    )
    assert whole.shape == image.shape
    assert np.array_equal(
        deep, equalize_adapthist(between(image.transpose(2, 0, 1)[:, :, :3])[None], (1, 2, 4, 3), 0.1)[0]
    )
    # The same arithmetic with or without a further axis.
    assert np.array_equal(whole, equalize_adapthist(between(image)[None], (1, 4, 6, 2), 0.1)[0])
    equal = Recipe("", "equalize", (0,))
    thin, _ = prepare(image[:, :, :3], equal)
    assert np.array_equal(thin, prepare(image[:, :, :3].transpose(2, 0, 1), equal)[0].transpose(1, 2, 0))


@pytest.mark.parametrize("scheme", ["clahe", "equalize", "percentile", "iqr", "per-slice"])
def test_a_narrow_range_far_from_zero_is_spread(scheme):
    """Between such numbers, single precision has too few for the 256 bins of a histogram."""
    steps = np.random.default_rng(0).integers(0, 8, (8, 9, 10))
    recipe = Recipe("", scheme, (0,), clip_limit=0.01)
    found, left = prepare((1e6 + steps).astype(np.float32), recipe)
    assert left == ""
    assert np.isfinite(found).all()
    if scheme != "percentile":
        near, _ = prepare(steps.astype(np.float32), recipe)
        assert np.allclose(found, near, atol=1e-3), "as the same steps near to 0"


@pytest.mark.parametrize("scheme", ["clahe", "equalize", "percentile", "iqr", "per-slice"])
def test_a_constant_image_is_left_as_it_is_and_told(raw, capsys, scheme):
    source = make(raw)
    file = source / "imagesTr" / "b_0000.nii.gz"
    write(file, np.full(SIZES["b"], 7, np.float32), (1.5, 1.5, 2.0))
    assert run("--name", "Twin", scheme=scheme) == 0
    assert f"{file} is left as it is: it is constant" in capsys.readouterr().err
    assert np.array_equal(read(raw / "Dataset400_Twin" / "imagesTr" / "b_0000.nii.gz"), read(file))


def test_what_has_no_quartiles_or_percentiles_is_left_as_it_is(raw, capsys):
    source = make(raw, channels=("MRI",))
    image = np.zeros(SIZES["a"], np.float32)
    image[3, 4, :2] = 5, 9
    write(source / "imagesTr" / "a_0000.nii.gz", image, (0.5, 1.5, 2.0))
    for number, (scheme, reason) in enumerate(
        [("iqr", "half of it has one intensity"), ("percentile", "it is constant between percentiles 1 and 90")]
    ):
        more = ["--percentiles", 1, 90] if scheme == "percentile" else []
        assert run(*more, "--name", "Twin", number=400 + number, scheme=scheme) == 0
        assert f"a_0000.nii.gz is left as it is: {reason}" in capsys.readouterr().err
        assert np.array_equal(read(raw / f"Dataset{400 + number}_Twin" / "imagesTr" / "a_0000.nii.gz"), image)


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_the_next_commands_are_for_slices_where_images_are_flat(raw, capsys, axis):
    """Nothing but 2d is planned for them."""
    source = make(raw)
    for file in source.rglob("*.nii.gz") if axis is not None else ():
        spacing = np.ones(3)
        spacing[2 - axis] = 3.0
        write(file, np.take(read(file), [3], axis), tuple(spacing))
    assert run("--name", "Twin", scheme="equalize") == 0
    configuration = "3d_fullres" if axis is None else "2d"
    out = capsys.readouterr().out
    assert f"nnUNetv2_plan_and_preprocess -d 400 -c {configuration}\n" in out
    assert f"nnUNetv2_train 400 {configuration} 0 " in out
    assert f"-d 400 -c {configuration} -f 0 " in out


def test_a_recipe_in_words_has_all_that_is_not_the_default():
    """Recipes of trainings of before, which have the scheme alone, stay what they were where that is all there is."""
    named = {"channel_names": {"0": "MRI", "1": "FLAIR", "2": "T2"}}
    for description, more, words in (
        (named, {}, "clahe"),
        ({"channel_names": {"0": "MRI"}}, {"channels": [0]}, "clahe"),
        ({"modality": {"0": "MRI", "1": "FLAIR"}}, {"channels": [0]}, "clahe, channel 0 alone"),
        (named, {"channels": [0, 2]}, "clahe, channels 0, 2 alone"),
        ({}, {}, "clahe"),
        ({}, {"channels": [1]}, "clahe, channel 1 alone"),
        (named, {"tile": [12, 16, 12]}, "clahe, tile 12 x 16 x 12"),
        (named, {"clip_limit": 0.2, "percentiles": [1, 99]}, "clipped to the percentiles 1 and 99, then clahe, clip"),
        (named, {"scheme": "percentile", "percentiles": [1, 99.5]}, "clipped to the percentiles 1 and 99.5"),
        (named, {"scheme": "iqr", "clip_limit": None}, "iqr"),
    ):
        content = Recipe("", "clahe", (0, 1, 2), clip_limit=0.01).as_json() | more
        found = read_recipe({**description, "nnunet_plugins_preparation": content})
        assert str(found) == words + " limit 0.2" * words.endswith("clip")
        assert found.as_json() == content
        assert found == read_recipe({"nnunet_plugins_preparation": content}), "whatever tells how many channels"


# The twin


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_what_is_written(raw, capsys, ending):
    source = make(raw, ending=ending)
    (source / "groups.csv").write_text("case,group\na,1\nb,1\nc,2\n")
    before = snapshot(raw)
    assert run("--channel", 1) == 0
    told = capsys.readouterr().out
    folder = raw / TWIN
    assert f"Wrote {folder}: 3 training cases and 1 to predict, clahe, tile 4 x 4 x 4, channel 1 alone. Go on" in told
    assert {path: kept for path, kept in snapshot(raw).items() if folder not in path.parents} == before
    description = json.loads((folder / "dataset.json").read_text())
    recipe = description.pop("nnunet_plugins_preparation")
    assert description == json.loads((source / "dataset.json").read_text())
    assert recipe.pop("scikit_image")[0].isdigit()
    assert recipe == {
        **{"dataset": NAME, "scheme": "clahe", "channels": [1]},
        **{"percentiles": None, "tile": [4, 4, 4], "clip_limit": 0.01},
    }
    assert (folder / "groups.csv").read_text() == (source / "groups.csv").read_text()
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    assert sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) == names
    for name in names:
        if name.name.endswith(f"_0001{ending}"):
            new, old = (sitk.ReadImage(str(one / name)) for one in (folder, source))
            assert not (folder / name).is_symlink()
            for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                assert np.allclose(getattr(new, geometry)(), getattr(old, geometry)(), atol=1e-7), geometry
        elif name.parent != Path():
            assert (folder / name).is_symlink()
            assert not os.readlink(folder / name).startswith("/"), "nnUNet_raw may be moved"
            assert (folder / name).samefile(source / name)
    main(["doctor", "-d", "400", "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {one["section"] for one in found if one["level"] != "ok"} == {"Splits"}, "3 cases are too few for 5 folds"


def test_axes_that_nnu_nets_reader_turns_lie_as_they_lay(raw):
    source = make(raw)
    file = source / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "overwrite_image_reader_writer": "NibabelIOWithReorient"}))
    assert run() == 0
    image = source / "imagesTr" / "b_0000.nii.gz"
    found = sitk.ReadImage(str(raw / TWIN / "imagesTr" / "b_0000.nii.gz"))
    assert np.allclose(found.GetDirection(), DIRECTION, atol=1e-6)
    assert np.array_equal(sitk.GetArrayFromImage(found), equalize_adapthist(between(read(image)), (4, 4, 4)))


def test_an_interrupted_run_goes_on(raw, monkeypatch):
    make(raw)
    done = []
    write_prepared = twin.write_prepared

    def count(files, places, recipe):
        if len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(places[0].name)
        return write_prepared(files, places, recipe)

    monkeypatch.setattr(twin, "write_prepared", count)
    stop_at = 2
    assert run() == 130
    assert not (raw / TWIN).exists()
    stop_at = None
    assert run() == 0
    assert sorted(done) == sorted(f"{case}_0000.nii.gz" for case in (*SIZES, "new")), "none of them twice"
    assert [path.name for path in raw.iterdir() if path.name.startswith(".")] == []
    before = snapshot(raw)
    assert run() == 2, "nothing is overwritten"
    assert snapshot(raw) == before


def test_folds_are_those_of_the_dataset(raw, monkeypatch):
    make(raw)
    assert run() == 0
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
    for name in (NAME, TWIN):
        folder = raw.parent / "nnUNet_preprocessed" / name
        (folder / "gt_segmentations").mkdir(parents=True)
        shutil.copy(raw / name / "dataset.json", folder)
        for case in SIZES:
            shutil.copy(raw / name / "labelsTr" / f"{case}.nii.gz", folder / "gt_segmentations")
    (raw.parent / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    assert main(["split", "-d", "400", "--like", "300"]) == 0
    file = raw.parent / "nnUNet_preprocessed" / TWIN / "splits_final.json"
    assert json.loads(file.read_text()) == splits
    # Accents as macOS writes them, and as a twin has them.
    for folder, form in ((file.parent, "NFC"), (file.parents[1] / NAME, "NFD")):
        truth = folder / "gt_segmentations"
        (truth / "b.nii.gz").rename(truth / f"{unicodedata.normalize(form, 'é')}.nii.gz")
    for fold in splits:
        for part, names in fold.items():
            fold[part] = [unicodedata.normalize("NFD", "é") if name == "b" else name for name in names]
    (file.parents[1] / NAME / "splits_final.json").write_text(json.dumps(splits))
    assert main(["split", "-d", "400", "--like", "300", "--overwrite"]) == 0
    found = [
        {part: [unicodedata.normalize("NFD", name) for name in fold[part]] for part in fold}
        for fold in json.loads(file.read_text())
    ]
    assert found == splits
    (file.parent / "gt_segmentations" / "a.nii.gz").unlink()
    assert main(["split", "-d", "400", "--like", "300"]) == 2


def test_a_case_of_a_twin_is_that_of_the_dataset(raw):
    make(raw)
    assert run() == 0
    cases = Cases(TWIN, json.loads((raw / TWIN / "dataset.json").read_text()))
    assert cases.original("a") == (NAME, "a")


# Images to predict


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_images_to_predict_are_prepared_as_those_of_the_twin(raw, tmp_path, capsys, ending):
    source = make(raw, ending=ending)
    assert run("--channel", 0) == 0
    images, output = tmp_path / "later", tmp_path / "prepared"
    shutil.copytree(source / "imagesTs", images)
    for channel in (0, 1):
        (images / f"bad_000{channel}{ending}").write_bytes(b"none")
    before = snapshot(images)
    model = tmp_path / "dataset.json"  # where the twin is not
    shutil.copy(raw / TWIN / "dataset.json", model)
    assert prepare_folder(images, 400, output) == 1
    told = capsys.readouterr()
    assert f"Wrote 1 cases to {output}, clahe, tile 4 x 4 x 4, channel 0 alone" in told.out
    assert re.search(f"bad is not in it: .*bad_0000{ending}", told.err)
    names = [f"new_0000{ending}", f"new_0001{ending}"]
    assert sorted(os.listdir(output)) == sorted(["nnunet_plugins_preparation.json", *names])
    for name in names:
        assert (output / name).read_bytes() == (raw / TWIN / "imagesTs" / name).read_bytes()
    assert snapshot(images) == before
    # What is done is not done again, by whatever name of the twin; an image that has changed is.
    kept = {name: (output / name).stat().st_mtime_ns for name in names}
    assert prepare_folder(images, model, output) == 1
    assert {name: (output / name).stat().st_mtime_ns for name in names} == kept
    shutil.copy(source / "imagesTr" / f"a_0000{ending}", images / names[0])
    shutil.copy(source / "imagesTr" / f"a_0001{ending}", images / names[1])
    assert prepare_folder(images, model, output) == 1
    assert np.array_equal(read(output / names[0]), read(raw / TWIN / "imagesTr" / f"a_0000{ending}"))
    assert prepared_with(output) == prepared_with(raw / TWIN / "imagesTs")
    assert prepared_with(images) is None


def test_an_image_that_has_changed_and_is_as_long_as_before_is_prepared_again(raw, tmp_path):
    source = make(raw, ending=".nii")
    assert run() == 0
    images, output = tmp_path / "later", tmp_path / "prepared"
    shutil.copytree(source / "imagesTs", images)
    assert prepare_folder(images, 400, output) == 0
    file, before = images / "new_0000.nii", read(output / "new_0000.nii")
    size = file.stat().st_size
    write(file, read(file) ** 2, (0.5, 1.5, 2.0))
    assert file.stat().st_size == size
    assert prepare_folder(images, 400, output) == 0
    assert not np.array_equal(read(output / file.name), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "none", "--like", "400"], "none is no folder"),
        (["-i", "imagesTs", "--like", "300"], "has no 'nnunet_plugins_preparation': it is of no dataset that"),
        (["-i", "labelsTr", "--like", "400"], "cannot be prepared: .* whose names have no number of a channel"),
        (["-i", "imagesTs"], "-i goes with --like and -o"),
        (["-i", "imagesTs", "--like", "400", "--scheme", "iqr"], "takes what is done from there"),
        (["-i", f"../{TWIN}/imagesTs", "--like", "400"], r"images that are prepared already \(clahe, tile 4 x 4 x 4\)"),
        (["-d", "300", "--like", "400", "--scheme", "iqr"], "--like and --overwrite go with -i"),
    ],
)
def test_bad_input_of_images_to_predict(raw, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(make(raw))
    assert run() == 0
    capsys.readouterr()
    assert main(["prepare-images", *arguments, "-o", str(tmp_path / "prepared")]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "prepared").exists()


def test_nothing_else_is_written_over(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    output = tmp_path / "prepared"
    output.mkdir()
    (output / "new_0000.nii.gz").write_text("mine")
    assert prepare_folder(source / "imagesTs", 400, output) == 2
    assert "holds something already" in capsys.readouterr().err
    assert (output / "new_0000.nii.gz").read_text() == "mine"
    assert prepare_folder(source / "imagesTs", 400, source / "imagesTr") == 2
    assert prepare_folder(source / "imagesTs", 400, source / "imagesTs", "--overwrite") == 2
    links, images = tmp_path / "links", shutil.copytree(source / "imagesTs", tmp_path / "images")
    links.mkdir()
    for image in images.iterdir():
        (links / image.name).symlink_to(image)
    before = snapshot(images)
    assert prepare_folder(links, 400, images, "--overwrite") == 2
    assert re.search(r"is a link to new_000\d.nii.gz in .*; choose another folder", capsys.readouterr().err)
    assert snapshot(images) == before
    assert prepare_folder(source / "imagesTs", 400, output, "--overwrite") == 0
    assert np.array_equal(read(output / "new_0000.nii.gz"), read(raw / TWIN / "imagesTs" / "new_0000.nii.gz"))


def trained(raw: Path) -> Source:
    """A model of the twin, without weights."""
    choice = Choice("nnUNetTrainer", "3d_fullres", "nnUNetPlans")
    folder = raw.parent / "nnUNet_results" / TWIN / str(choice)
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").touch()
    (folder / "plans.json").write_text(json.dumps({"configurations": {"3d_fullres": {}}}))
    shutil.copy(raw / TWIN / "dataset.json", folder)
    return find_model(TWIN, choice, ["0"], "checkpoint_final.pth")


def test_images_that_were_not_prepared_are_told_and_not_predicted(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    other, prepared = tmp_path / "other", tmp_path / "prepared"
    assert run("--name", "Other", number=401, scheme="iqr") == 0
    assert prepare_folder(source / "imagesTs", 401, other) == 0
    assert prepare_folder(source / "imagesTs", 400, prepared) == 0
    model, cases = trained(raw), {}
    capsys.readouterr()
    for images, number, wrong in (
        (source / "imagesTs", 400, "holds images that were not prepared, as far as the folder tells"),
        (other, 400, "holds images that were prepared in another way (iqr: "),
        (prepared, 400, ""),
        (raw / TWIN / "imagesTs", 400, ""),
        (
            prepared,
            300,
            "holds prepared images (clahe, tile 4 x 4 x 4), and the network was trained on images as they are",
        ),
    ):
        main(["doctor", "-d", str(number), "-i", str(images), "--json"])
        told = json.loads(capsys.readouterr().out)["findings"]
        told = [one for one in told if one["section"] == "Images to predict" and "prepare" in one["text"]]
        assert [one["level"] for one in told] == ["warning" if wrong else "ok"]
        assert wrong in told[0]["text"]
        if number == 300:
            continue
        if wrong:
            given = "as they were: nnunet-plugins prepare-images -i IMAGES" if images == other else f"-i {images}"
            assert f"{given} -o PREPARED --like {raw / TWIN / 'dataset.json'}" in told[0]["remedy"]
            with pytest.raises(InputError, match=re.escape(wrong)):
                cases_in(model, images, tmp_path / "out", print)
        else:
            cases = cases_in(model, images, tmp_path / "out", lambda line: pytest.fail(line))
            assert [case.name for case in cases] == ["new"]


def test_an_image_among_prepared_ones_that_was_not_is_told(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    assert run("--name", "Other", number=401, scheme="iqr") == 0
    description, file = json.loads((raw / TWIN / "dataset.json").read_text()), raw / TWIN / "dataset.json"
    prepared, more = tmp_path / "prepared", shutil.copytree(source / "imagesTs", tmp_path / "more")
    for image in sorted(more.iterdir()):
        image.rename(more / image.name.replace("new", "later"))
    assert prepare_folder(source / "imagesTs", 400, prepared) == 0
    assert prepare_folder(more, 400, prepared) == 0  # beside the others
    assert find_difference(description, file, prepared) is None
    assert prepare_folder(more, 401, prepared, "--overwrite") == 0
    other = json.loads((raw / "Dataset401_Other" / "dataset.json").read_text())
    said = find_difference(other, raw / "Dataset401_Other" / "dataset.json", prepared)[0]
    assert re.search(r"holds new_0000\.nii\.gz and 1 more, which \S+ there does not list", said)
    assert "scheme iqr and not clahe" in find_difference(description, file, prepared)[0]


def test_what_was_not_written_is_not_listed(raw, tmp_path, monkeypatch):
    """Whatever lies in its place later was not prepared, as far as anything tells."""
    source = make(raw, channels=("MRI",))
    assert run() == 0
    file, images, prepared = raw / TWIN / "dataset.json", tmp_path / "images", tmp_path / "prepared"
    images.mkdir()
    for case in "abc":
        shutil.copy(source / "imagesTr" / f"{case}_0000.nii.gz", images)
    (images / "a_0000.nii.gz").write_bytes(b"none")
    done, write_prepared = [], preparation_folder.write_prepared

    def count(files, places, recipe):
        if places[0].name == stop_at:
            raise KeyboardInterrupt
        done.append(places[0].name)
        return write_prepared(files, places, recipe)

    def strangers():
        for name in ("a_0000.nii.gz", "c_0000.nii.gz"):
            if not (prepared / name).exists():
                shutil.copy(source / "imagesTr" / name, prepared)
        return find_difference(json.loads(file.read_text()), file, prepared)

    monkeypatch.setattr(preparation_folder, "write_prepared", count)
    stop_at = "c_0000.nii.gz"
    assert prepare_folder(images, 400, prepared) == 130
    assert "holds a_0000.nii.gz and 1 more, which" in strangers()[0]
    stop_at = None
    assert prepare_folder(images, 400, prepared) == 1
    assert done.count("b_0000.nii.gz") == 1, "what an interrupted run has written is kept"
    assert (prepared / "c_0000.nii.gz").read_bytes() == (raw / TWIN / "imagesTr" / "c_0000.nii.gz").read_bytes()
    assert "holds a_0000.nii.gz, which" in strangers()[0]
    shutil.copy(source / "imagesTr" / "a_0000.nii.gz", images)
    assert prepare_folder(images, 400, prepared) == 0
    assert strangers() is None
    # A case that is listed, and fails now.
    (images / "a_0000.nii.gz").write_bytes(b"none")
    assert prepare_folder(images, 400, prepared) == 1
    assert "holds a_0000.nii.gz, which" in strangers()[0]


def test_a_recipe_that_was_edited_is_named(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    file = raw / TWIN / "dataset.json"
    content = json.loads(file.read_text())
    for key, value, message in (
        ("scheme", "magic", "'magic' in 'nnunet_plugins_preparation' is none of clahe, equalize"),
        ("tile", [1, 2], "'tile' in 'nnunet_plugins_preparation' is [1, 2], and not 3 numbers"),
        ("channels", None, "'nnunet_plugins_preparation'['channels'] has to be a list, not None"),
    ):
        recipe = {**content["nnunet_plugins_preparation"], key: value}
        file.write_text(json.dumps({**content, "nnunet_plugins_preparation": recipe}))
        capsys.readouterr()
        assert prepare_folder(source / "imagesTs", 400, tmp_path / "prepared") == 2
        told = capsys.readouterr().err
        assert message in told
        assert str(file) in told


def test_another_scikit_image_than_that_of_the_training_is_told(raw, tmp_path, capsys):
    source = make(raw)
    assert run() == 0
    assert prepare_folder(source / "imagesTs", 400, tmp_path / "prepared") == 0
    assert "scikit-image" not in capsys.readouterr().err
    file = raw / TWIN / "dataset.json"
    content = json.loads(file.read_text())
    content["nnunet_plugins_preparation"]["scikit_image"] = "0.1"
    file.write_text(json.dumps(content))
    assert prepare_folder(source / "imagesTs", 400, tmp_path / "again") == 0
    assert "were prepared with scikit-image 0.1, and here is" in capsys.readouterr().err


# What is refused


def spoil(source: Path, value: float) -> None:
    image = read(source / "imagesTr" / "b_0001.nii.gz")
    image[2, 3, 4] = value
    write(source / "imagesTr" / "b_0001.nii.gz", image, (1.5, 1.5, 2.0))


def stretch(source: Path) -> None:
    file = source / "imagesTr" / "b_0001.nii.gz"
    write(file, np.where(read(file) > np.median(read(file)), 3e38, -3e38).astype(np.float32), (1.5, 1.5, 2.0))


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (lambda source: spoil(source, np.nan), [], r"1 cases cannot be prepared; .*b_0001.nii.gz .*NaN or infinite"),
        (lambda source: spoil(source, np.inf), [], r"1 cases cannot be prepared; .*b_0001.nii.gz .*NaN or infinite"),
        (stretch, [], r"1 cases cannot be prepared; .*b_0001.nii.gz has intensities further apart than numbers of 32"),
        (None, ["--channel", 0, 2], r"there is no channel 2; there are 0 \(MRI\), 1 \(FLAIR\)"),
        (None, {"dataset": 7}, "'7' is not the number or name of exactly one dataset"),
        (None, {"number": 300}, f"-o 300: .*{NAME} is the dataset itself; choose another number"),
        (None, {"number": "there"}, "-o there: give the number of the new dataset"),
        (None, ["--overwrite"], "--like and --overwrite go with -i"),
        (None, ["--percentiles", 90, 5], "--percentiles 90 5: two numbers from 0 to 100, in order"),
        (None, ["--clip-limit", 2], "--clip-limit 2 is not from 0 to 1"),
        (None, {"scheme": "iqr", "more": ["--tile", 2, 2, 2]}, "--tile and --clip-limit go with --scheme clahe"),
        (
            lambda source: (source / "imagesTr" / "c_0001.nii.gz").unlink(),
            [],
            f"{NAME} cannot be prepared: 1 case without exactly the channels 0000, 0001: c",
        ),
    ],
)
def test_bad_input_is_one_clear_error(raw, capsys, break_it, arguments, message):
    source = make(raw)
    if break_it:
        break_it(source)
    named = dict(arguments) if isinstance(arguments, dict) else {"more": arguments}
    more = named.pop("more", ())
    assert run(*more, **named) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert [line for line in told.splitlines() if line.startswith("nnunet-plugins prepare-images: ")] == (
        told.splitlines()[-1:]
    )
    assert not list(raw.glob("Dataset4*"))


def test_pictures_have_no_room_for_what_is_written(raw, capsys):
    source = make(raw, channels=("MRI",))
    for file in source.rglob("*.nii.gz"):
        sitk.WriteImage(
            sitk.Cast(sitk.ReadImage(str(file))[:, :, 3], sitk.sitkUInt8), str(file).replace(".nii.gz", ".png")
        )
        file.unlink()
    description = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png"}))
    assert run() == 2
    assert f"{NAME} has files .png, in which prepared images" in capsys.readouterr().err


def test_twins_of_twins_and_merged_twins_are_refused(raw, capsys):
    make(raw)
    assert run() == 0
    assert main(["fixed-size", "-d", "300", "-o", "301", "-np", "1"]) == 0
    for command, has in (
        (["prepare-images", "-d", "400", "-o", "401", "--scheme", "iqr"], "images that are prepared already"),
        (["prepare-images", "-d", "301", "-o", "401", "--scheme", "iqr"], "images of one size already"),
        (["fixed-size", "-d", "400", "-o", "401"], "images that are prepared already"),
    ):
        capsys.readouterr()
        assert main(command) == 2
        assert f"has {has}; make another twin of {NAME}" in capsys.readouterr().err
    assert main(["merge", "300", "400", "-o", "900", "--name", "Both"]) == 2
    assert f"{TWIN} has images that are prepared, of which no merged dataset leads back; merge {NAME}" in (
        capsys.readouterr().err
    )
