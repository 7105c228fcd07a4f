"""One unsound file, every command: the table of what each kind of fact means, as it comes out of the commands."""

import gzip
import json
import shutil
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, full_disk
from image_files import (
    cut_inside,
    intensities,
    labels,
    without_spacing,
    write,
    write_nifti,
    write_png,
    write_tif,
)
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunet_plugins.cli import main
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.facts import KINDS
from nnunet_plugins.images.writing import read_labels
from nnunet_plugins.models.cases import Case, find_cases
from nnunet_plugins.models.images import ImageError, read_image, write_segmentation
from nnunet_plugins.models.settings import Settings

CASES = ROOT.parent / "shared" / "cases"
BAD = "b"
SETTINGS = Settings("name", (), ("MRI",), ending=".nii.gz")


@dataclass(frozen=True)
class World:
    """A raw dataset of five cases, and predictions of them."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / "Dataset001_W"

    def file(self, part: str) -> Path:
        return self.raw / part / (f"{BAD}_0000.nii.gz" if part == "imagesTr" else f"{BAD}.nii.gz")


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    found = World(tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for part in ("imagesTr", "labelsTr"):
        (found.raw / part).mkdir(parents=True)
    for number, case in enumerate("abcde"):
        write(found.raw / "imagesTr" / f"{case}_0000.nii.gz", intensities() + number)
        write(found.raw / "labelsTr" / f"{case}.nii.gz", labels())
    shutil.copytree(found.raw / "labelsTr", tmp_path / "predicted")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1, "two": 2}}
    (found.raw / "dataset.json").write_text(json.dumps({**description, "numTraining": 5, "file_ending": ".nii.gz"}))
    return found


def put(value: float) -> np.ndarray:
    array = labels().astype(np.float32)
    array[2, 3, 3] = value
    return array


def add(array: np.ndarray, value: float) -> np.ndarray:
    array[2, 3, 3] = value
    return array


def pack(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(gzip.decompress(file.read_bytes())))


SAME: dict[str, Callable[[Path], object]] = {
    "empty": lambda f: f.write_bytes(b""),
    "cut off": lambda f: f.write_bytes(f.read_bytes()[:-30]),
    "cut off, inside": cut_inside,
    "damaged": lambda f: f.write_bytes(f.read_bytes()[:-8] + b"12345678"),
    "unreadable": lambda f: f.write_bytes(gzip.compress(b"no image" * 99)),
    "unreadable, NIfTI-2": lambda f: write_nifti(f, labels(), "uint8", 2),
    "not compressed": lambda f: pack(f, bytes),
    "bytes after the end": lambda f: pack(f, lambda content: gzip.compress(content) + b"more"),
    "dimensions": lambda f: write(f, np.stack([labels()] * 2)),
    "vector": lambda f: write(f, np.stack([labels()] * 3, axis=-1), vector=True),
    "complex": lambda f: write(f, labels().astype(np.complex64)),
    "spacing unknown": without_spacing,
    "dead link": lambda f: (f.unlink(), f.symlink_to(f.parent / "nowhere.nii.gz")),
}
OF_LABELS: dict[str, Callable[[Path], object]] = {
    "label not finite": lambda f: write(f, put(np.nan)),
    "fraction": lambda f: write(f, put(0.5)),
    "undeclared": lambda f: write(f, put(255)),
    "other size": lambda f: write(f, labels()[:-1]),
    "other spacing": lambda f: write(f, labels(), (1, 1, 3)),
    "spacing slightly off": lambda f: write(f, labels(), (1, 1, 2.0001)),
    "other place": lambda f: write(f, labels(), origin=(50, 0, 0)),
    "letter case": lambda f: f.rename(f.with_name("b.NII.GZ")),
    "other format": lambda f: (write(f.with_name("b.mha"), labels()), f.unlink()),
    "second file": lambda f: write(f.with_name("b.mha"), labels()),
    "leftover": lambda f: (f.with_name(".DS_Store").touch(), f.with_name("Thumbs.db").touch()),
    "leftover like an image": lambda f: f.with_name(f"._{f.name}").touch(),
    "unused": lambda f: f.with_name("notes.txt").touch(),
    "names in other case": lambda f: None,
}
OF_IMAGES: dict[str, Callable[[Path], object]] = {
    "read as zero": lambda f: write(f, add(intensities(), np.inf)),
    "not finite": lambda f: write_nifti(f, add(intensities().astype(np.float64), 1e300), "float64"),
    "no channel": lambda f: write(f.with_name("e.nii.gz"), labels()),
}


def doctor(capsys) -> tuple[int, dict[str, str]]:
    """Exit code, and levels by the beginning of what is said."""
    code = main(["doctor", "-d", "1", "-np", "1", "--json"])
    return code, json.loads(capsys.readouterr().out)["findings"]


def level_in(findings: list[dict], kind: str) -> str:
    phrase = KINDS[kind].many.removeprefix("{} ").partition(":")[0]
    found = [finding for finding in findings if phrase in finding["text"]]
    return found[0]["level"] if found else ""


def evaluate(world: World, prediction: str = "predicted", truth: Path | None = None) -> int:
    places = [str(world.root / prediction), str(truth or world.raw / "labelsTr"), "-o", str(world.root / "m.csv")]
    return main(["evaluate", *places, "-np", "1", "--overwrite"])


@pytest.mark.parametrize("name", [*SAME, *(kind for kind in OF_LABELS if kind != "names in other case")])
@pytest.mark.parametrize("side", ["labelsTr", "predicted"])
def test_a_segmentation_in_evaluate(world, capsys, name, side):
    kind = name.partition(",")[0]
    file = world.file("labelsTr") if side == "labelsTr" else world.root / "predicted" / f"{BAD}.nii.gz"
    {**SAME, **OF_LABELS}[name](file)
    if kind == "spacing unknown":
        assert evaluate(world) == 0, "one of the two knows it"
        assert "that of the case is taken (2 x 1 x 1 mm)" in capsys.readouterr().err
        for other in {world.file("labelsTr"), world.root / "predicted" / f"{BAD}.nii.gz"} - {file}:
            without_spacing(other)
    code = evaluate(world)
    said = capsys.readouterr().err
    level = KINDS[kind].evaluate
    assert code == (1 if level == "problem" else 0), said
    assert KINDS[kind].one in said or KINDS[kind].many.removeprefix("{} ") in said
    assert ("b is not in it: " in said) == (level == "problem")
    rows = (world.root / "m.csv").read_text()
    assert all(f"\n{case},1," in rows for case in "acd"), "one bad case costs no other"
    assert ("\nb,1," in rows) == (level != "problem")
    for word in ("itk::", ".cxx", "Traceback"):
        assert word not in said


@pytest.mark.parametrize("name", [*SAME, *(kind for kind in OF_LABELS if kind != "names in other case")])
def test_a_segmentation_in_the_doctor(world, capsys, name):
    kind = name.partition(",")[0]
    {**SAME, **OF_LABELS}[name](world.file("labelsTr"))
    code, findings = doctor(capsys)
    assert level_in(findings, kind) == KINDS[kind].doctor, findings
    # Without its segmentation a case lacks one, whatever the reason.
    assert code == (1 if KINDS[kind].doctor == "problem" or kind in ("letter case", "other format") else 0)


@pytest.mark.parametrize("name", [*SAME, *OF_IMAGES])
def test_an_image_in_the_doctor_and_in_inference(world, capsys, name):
    kind = name.partition(",")[0]
    file = world.file("imagesTr")
    {**SAME, **OF_IMAGES}[name](file)
    code, findings = doctor(capsys)
    assert level_in(findings, kind) == KINDS[kind].doctor, findings
    assert code == (KINDS[kind].doctor == "problem")
    said: list[str] = []
    faults = {}
    for case in find_cases(SETTINGS, world.raw / "imagesTr", world.root, said.append):
        try:
            read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"], said.append)
        except ImageError as error:
            faults[case.name] = str(error)
    told = " ".join([*said, *faults.values()])
    assert KINDS[kind].one in told or KINDS[kind].many.removeprefix("{} ") in told
    assert len(faults) == (KINDS[kind].inference == "problem"), faults
    for word in ("itk::", ".cxx", "Traceback"):
        assert word not in told


def test_every_row_of_the_table_is_tried():
    tried = {name.partition(",")[0] for name in (*SAME, *OF_LABELS, *OF_IMAGES)}
    elsewhere = {"nothing fits", "same letters", "other letters", "loose", "colours", "spacing from elsewhere"}
    elsewhere |= {"spacing in pixels", "spacing impossible", "other orientation", "more images", "unlisted"}
    assert tried | elsewhere == set(KINDS)


def test_names_in_other_letters(world, capsys):
    for folder in ("labelsTr", "imagesTr"):
        write(world.raw / folder / ("B_0000.nii.gz" if folder == "imagesTr" else "B.nii.gz"), labels())
    if len(list((world.raw / "labelsTr").iterdir())) == 4:
        pytest.skip("this file system takes both for one")
    write(world.root / "predicted" / "B.nii.gz", labels())
    assert evaluate(world) == 0
    assert "differs from another one only in capital letters" in capsys.readouterr().err
    _, findings = doctor(capsys)
    assert level_in(findings, "names in other case") == "warning"
    said: list[str] = []
    assert len(find_cases(SETTINGS, world.raw / "imagesTr", world.root, said.append)) == 6
    assert "differs from another name only in capital letters" in said[0]


def test_no_case_is_left_to_compare(world, capsys):
    """All predictions have a truth that cannot be used, and --chill asks for no others."""
    for case in "acde":
        (world.root / "predicted" / f"{case}.nii.gz").unlink()
    SAME["dead link"](world.file("labelsTr"))
    places = [str(world.root / "predicted"), str(world.raw / "labelsTr"), "-o", str(world.root / "m.csv")]
    assert main(["evaluate", *places, "--chill", "-np", "1"]) == 2
    assert "b.nii.gz is a link to what is not there" in capsys.readouterr().err


def test_composed_and_decomposed_names_are_one(world, capsys):
    one, other = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    world.file("imagesTr").rename(world.raw / "imagesTr" / f"{one}_0000.nii.gz")
    world.file("labelsTr").rename(world.raw / "labelsTr" / f"{other}.nii.gz")
    (world.root / "predicted" / f"{BAD}.nii.gz").rename(world.root / "predicted" / f"{one}.nii.gz")
    assert evaluate(world) == 0
    assert "accents written in another way" in capsys.readouterr().err
    code, findings = doctor(capsys)
    assert (code, level_in(findings, "other letters")) == (1, "problem")


def test_orientations_are_compared_between_cases(world, capsys):
    for part, array in (("imagesTr", intensities()), ("labelsTr", labels())):
        write(world.file(part), array, direction=(0, 1, 0, 0, 0, 1, 1, 0, 0))
    code, findings = doctor(capsys)
    assert (code, level_in(findings, "other orientation")) == (0, "warning")
    description = json.loads((world.raw / "dataset.json").read_text())
    description["overwrite_image_reader_writer"] = "NibabelIOWithReorient"
    (world.raw / "dataset.json").write_text(json.dumps(description))
    assert level_in(doctor(capsys)[1], "other orientation") == ""


def test_nothing_fits(world, capsys):
    for part in ("imagesTr", "labelsTr"):
        for file in (world.raw / part).iterdir():
            write(file.with_name(file.name.removesuffix(".gz")), intensities() if part == "imagesTr" else labels())
            file.unlink()
    code, findings = doctor(capsys)
    assert code == 1
    (first, *_) = [finding["text"] for finding in findings if finding["level"] == "problem"]
    assert "5 files, none ends in .nii.gz but in .nii" in first
    assert evaluate(world) == 2
    assert "5 files, none ends in .nii.gz but in .nii" in capsys.readouterr().err
    cases = find_cases(SETTINGS, world.raw / "imagesTr", world.root)
    assert [read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"])[0].shape for case in cases] == [(1, 5, 8, 9)] * 5


def test_test_images_are_looked_at(world, capsys):
    shutil.copytree(world.raw / "imagesTr", world.raw / "imagesTs")
    cut_inside(world.raw / "imagesTs" / "c_0000.nii.gz")
    code, findings = doctor(capsys)
    (found,) = [finding for finding in findings if finding["level"] == "problem"]
    assert (code, found["section"]) == (1, "Test images")
    assert "1 file cut off" in found["text"]


def test_inputs_of_other_formats_are_converted_or_named(tmp_path):
    write(tmp_path / "a_0000.nii.gz", intensities())
    write(tmp_path / "b_0000.mha", intensities())
    (tmp_path / "c_0000.NII.GZ").write_bytes((tmp_path / "a_0000.nii.gz").read_bytes())
    write(tmp_path / "d.nii.gz", intensities())
    for ending in ("nii.gz", "nrrd"):
        write(tmp_path / f"e_0000.{ending}", intensities())
    (tmp_path / "._a_0000.nii.gz").touch()
    (tmp_path / "notes.txt").touch()
    said: list[str] = []
    cases = find_cases(SETTINGS, tmp_path, tmp_path / "out", said.append)
    assert [(case.name, case.output.name) for case in cases if not case.fault] == [
        ("a", "a.nii.gz"),
        ("b", "b.nii.gz"),
        ("c", "c.nii.gz"),
    ]
    for case in cases[:3]:
        array, _ = read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"])
        assert np.array_equal(array[0], intensities())
    assert {case.name: case.fault for case in cases if case.fault}.keys() == {"d.nii.gz", "e"}
    assert any("._a_0000.nii.gz" in line for line in said)
    assert any("notes.txt" in line for line in said)


def test_an_image_in_two_files_is_one_case(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(intensities().T, np.diag([1, 1, 2, 1])), tmp_path / "a_0000.img")
    (case,) = find_cases(SETTINGS, tmp_path, tmp_path / "out")
    array, _ = read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"])
    assert np.array_equal(array[0], intensities())


@pytest.mark.parametrize(
    ("ending", "kind", "size"), [(".nii.gz", "uint8", 5000), (".nii.gz", "float32", 18000), (".mha", "uint8", 18000)]
)
def test_a_segmentation_that_a_full_disk_has_cut_off_is_none(tmp_path, ending, kind, size):
    """Neither as nnU-Net writes it, nor in another type or format."""
    file, random = tmp_path / "a_0000.nii.gz", np.random.default_rng(0)
    sitk.WriteImage(sitk.GetImageFromArray(random.normal(size=(40, 40, 40)).astype(np.float32)), str(file))
    case = Case("a", (file,), tmp_path / f"out{ending}")
    image, properties = read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"])
    segmentation = random.integers(0, 3, image.shape[1:]).astype(np.uint8)
    with full_disk(size), pytest.raises(InputError, match="cannot be written: "):
        write_segmentation(segmentation, properties, case, SimpleITKIO(), ".nii.gz", kind)
    assert not case.output.exists()


@pytest.mark.parametrize("ending", [".tif", ".png", ".bmp"])
@pytest.mark.parametrize(("kind", "label"), [("uint8", 2), ("uint16", 2), ("uint16", 300)])
def test_a_segmentation_of_a_picture_is_written(tmp_path, ending, kind, label):
    """Whose resolution, dots per inch, is no spacing to nnU-Net."""
    file, reader = tmp_path / f"a_0000{ending}", Tiff3DIO() if ending == ".tif" else NaturalImage2DIO()
    if ending == ".tif":
        write_tif(file, labels(), resolution=(300, 300), resolutionunit="INCH")
    else:
        Image.fromarray(labels()[2]).save(file, dpi=(300, 300))
    case = Case("a", (file,), tmp_path / f"out{ending}")
    image, properties = read_image(case, reader, ending, ["MRI"])
    segmentation = np.zeros(image.shape[1:], np.uint16)
    segmentation.flat[9] = label
    if ending == ".bmp" and kind == "uint16":
        if label == 2:
            with pytest.raises(ImageError, match="can only be written as uint8"):
                write_segmentation(segmentation, properties, case, reader, ending, kind)
        return
    write_segmentation(segmentation, properties, case, reader, ending, kind)
    assert np.array_equal(reader.read_seg(str(case.output))[0][0], segmentation)
    assert read_labels(case.output)[0].dtype.name == kind or ending == ".bmp"


def test_what_a_conversion_would_hide_is_found(tmp_path):
    file = write(tmp_path / "a_0000.mha", intensities(), compressed=False)
    case = Case("a", (file,), tmp_path / "a.nii.gz")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"a_0000\.mha is cut off"):
        read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"])
    array = intensities()
    array[0, 0, 0] = np.nan
    write(file, array)
    with pytest.raises(ImageError, match=r"a_0000\.mha holds NaN"):
        read_image(case, SimpleITKIO(), ".nii.gz", ["MRI"])


def test_png_and_tif_in_evaluate(tmp_path, capsys):
    for side in ("predicted", "truth"):
        (tmp_path / side).mkdir()
        for case in "abc":
            write_tif(tmp_path / side / f"{case}.tif", labels())
    (tmp_path / "truth" / "b.json").unlink()
    (tmp_path / "predicted" / "b.json").unlink()
    (tmp_path / "predicted" / "c.json").unlink()
    description = {"labels": {"background": 0, "one": 1, "two": 2}, "channel_names": {"0": "MRI"}}
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "file_ending": ".tif", "numTraining": 3}))
    told = [str(tmp_path / "predicted"), str(tmp_path / "truth"), "-o", str(tmp_path / "m.csv"), "-np", "1"]
    assert main(["evaluate", *told]) == 1
    said = capsys.readouterr().err
    assert "b is not in it: " in said
    assert "do not say their spacing" in said
    assert "c.tif does not say its spacing; that of the case is taken (2 x 1 x 1 mm)" in said
    for mode in ("P", "RGB", "L"):
        for side in ("predicted", "truth"):
            write_png(tmp_path / side / f"{mode}.png", mode if side == "predicted" else "L")
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png", "numTraining": 3}))
    assert main(["evaluate", *told, "--overwrite"]) == 1
    said = capsys.readouterr().err
    assert "P is not in it: " in said
    assert "RGB is not in it: " in said
    assert "pixels without a size: what is given in mm is in pixels" in said


def test_the_dataset_json_beside_a_link(world, tmp_path, capsys):
    """The path as it was given counts, and the one it leads to."""
    (tmp_path / "elsewhere").mkdir()
    (world.raw / "labelsTr").rename(tmp_path / "elsewhere" / "labels")
    (world.raw / "labelsTr").symlink_to(tmp_path / "elsewhere" / "labels")
    assert evaluate(world) == 0
    model = tmp_path / "model" / "fold_0"
    (tmp_path / "elsewhere" / "fold").mkdir()
    (tmp_path / "predicted").rename(tmp_path / "elsewhere" / "fold" / "validation")
    model.parent.mkdir()
    model.symlink_to(tmp_path / "elsewhere" / "fold")
    (world.raw / "dataset.json").rename(tmp_path / "model" / "dataset.json")
    assert evaluate(world, "model/fold_0/validation", tmp_path / "elsewhere" / "labels") == 0


OUTCOMES = {
    "evaluate-4d": (2, ["more than three dimensions"]),
    "evaluate-cut-inside-gzip": (2, ["is cut off"]),
    "evaluate-values": (2, ["0.9, 1.8", "NaN", "declare (7"]),
    "evaluate-255": (2, ["c0", "255"]),
    "evaluate-png": (1, ["x255 is not in it", "a palette"]),
    "evaluate-geometry": (0, ["34 mm", "50 mm"]),
    "evaluate-not-gzip": (0, ["is not compressed"]),
    "evaluate-tif": (1, ["badjson.json has no 'spacing'", "does not say its spacing", "is cut off"]),
    "evaluate-nfd": (0, ["composed or decomposed"]),
}


@pytest.mark.data
@pytest.mark.parametrize("name", OUTCOMES)
def test_shared_cases_of_evaluate(name, tmp_path, capsys):
    if not (CASES / name).is_dir():
        pytest.skip("the shared cases are not beside this checkout")
    code, words = OUTCOMES[name]
    told = [str(CASES / name / "pred"), str(CASES / name / "truth"), "-o", str(tmp_path / "m.csv"), "-np", "1"]
    assert main(["evaluate", *told]) == code
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said


DATASETS = {
    "Dataset131_Short": (1, {"cut off": "problem", "label not finite": "problem", "spacing unknown": "warning"}),
    "Dataset106_Names": (
        1,
        {"leftover": "note", "leftover like an image": "warning", "names in other case": "warning"},
    ),
    "Dataset112_FourD2": (1, {"dimensions": "problem"}),
    "Dataset140_Nrrd": (1, {"vector": "problem"}),
    "Dataset142_Nii": (1, {"nothing fits": "problem"}),
    "Dataset135_Orient": (0, {"other orientation": "warning"}),
}


@pytest.mark.data
@pytest.mark.parametrize("name", DATASETS)
def test_shared_cases_of_the_doctor(name, world, capsys):
    if not (CASES / name).is_dir():
        pytest.skip("the shared cases are not beside this checkout")
    shutil.rmtree(world.raw)
    (world.raw.parent / f"Dataset001_{name[11:]}").symlink_to(CASES / name)
    code, findings = doctor(capsys)
    expected, kinds = DATASETS[name]
    assert code == expected
    assert {kind: level_in(findings, kind) for kind in kinds} == kinds


@pytest.mark.data
def test_shared_cases_of_inference(tmp_path):
    if not (CASES / "infer-ignored").is_dir():
        pytest.skip("the shared cases are not beside this checkout")
    cases = find_cases(SETTINGS, CASES / "infer-ignored", tmp_path)
    assert [(case.name, bool(case.fault)) for case in cases] == [("b", 0), ("c", 0), ("d.nii.gz", 1), ("ok", 0)]


if sys.platform == "win32":
    pytestmark = pytest.mark.skip("names of files are other ones there")
