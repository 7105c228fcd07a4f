"""The room that finds, reads and compares files: what it says of every kind of file."""

import gzip
import pickle
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import (
    FORMATS,
    change_nifti,
    cut_inside,
    intensities,
    labels,
    raw_mha,
    raw_nrrd,
    write_nifti,
    write_png,
    write_tif,
)
from image_files import write as write_image
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunet_plugins.images import contents
from nnunet_plugins.images.contents import check_contents
from nnunet_plugins.images.facts import COMMANDS, KINDS, NOTE, NOTHING, problems
from nnunet_plugins.images.finding import find_files
from nnunet_plugins.images.grid import Grid, compare_grids
from nnunet_plugins.images.reading import choose_reader, read_image, read_label_map
from nnunet_plugins.images.values import check_values

NUMBERS = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]


def reader_of(file: Path):
    if file.suffix == ".tif":
        return Tiff3DIO()
    if file.suffix in (".png", ".bmp"):
        return NaturalImage2DIO()
    if "version 2" in str(file.parent) or b"n+2" in file.read_bytes()[:8]:
        return NibabelIO()
    return SimpleITKIO()


def kinds(facts) -> list[str]:
    return [fact.kind for fact in facts]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, Path]:
    """A sound file of every format."""
    root = tmp_path_factory.mktemp("formats")
    found = {}
    for name, make in FORMATS.items():
        folder = root / name
        folder.mkdir()
        found[name] = make(folder)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_file_is_read_without_a_word(samples, name):
    reader = reader_of(samples[name])
    found = read_label_map(samples[name], reader)
    expected = labels() if found.array.shape[1] > 1 else labels()[2:3]
    assert np.array_equal(found.array[0], expected)
    assert [kind for kind in kinds(found.facts) if kind != "spacing in pixels"] == []
    assert found.has_spacing
    if found.array.shape[1] > 1:
        assert found.grid.spacing == (2, 1, 1) or name == "tif, OME"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
@pytest.mark.parametrize("name", FORMATS)
def test_whatever_is_cut_off_is_found_or_nothing_was_lost(samples, tmp_path, name, share):
    """Of every byte of the file, and of what is inside a compressed one."""
    whole = samples[name].read_bytes()
    contents = [whole]
    if samples[name].suffix == ".gz":
        contents.append(gzip.decompress(whole))
    folder = tmp_path / samples[name].parent.name
    folder.mkdir(exist_ok=True)
    for file in samples[name].parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    file, reader = folder / samples[name].name, reader_of(samples[name])
    expected = read_label_map(samples[name], reader)
    for number, content in enumerate(contents):
        part = content[: int(share * len(content))]
        file.write_bytes(gzip.compress(part) if number else part)
        found = read_label_map(file, reader)
        if not problems(found.facts, "evaluate"):
            assert np.array_equal(found.array, expected.array)
            assert found.grid == expected.grid
    if name == "mhd":
        file.write_bytes(whole)
        raw = file.with_suffix(".raw")
        raw.write_bytes(raw.read_bytes()[: int(share * 360)])
        assert kinds(read_label_map(file, reader).facts) == ["cut off"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", NUMBERS)
def test_every_kind_of_number_in_nifti(tmp_path, kind, version, order):
    file = write_nifti(tmp_path / "a.nii.gz", labels(), kind, version, order)
    reader = SimpleITKIO() if version == 1 else NibabelIO()
    found = read_label_map(file, reader)
    assert found.facts == []
    assert np.array_equal(found.array[0], labels())
    cut_inside(file, 1)
    assert kinds(read_label_map(file, reader).facts) == ["cut off"]


def test_nifti_2_is_told_where_the_reader_does_not_know_it(tmp_path):
    file = write_nifti(tmp_path / "a.nii.gz", labels(), "uint8", 2)
    (fact,) = read_label_map(file, SimpleITKIO()).facts
    assert fact.kind == "unreadable"
    assert "it is NIfTI-2, which SimpleITKIO does not know" in str(fact)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_simpleitk_reads_as_zero_is_counted(tmp_path, kind, order, value):
    array = intensities()
    array.flat[[3, 100, 200]] = value
    file = write_nifti(tmp_path / "a.nii.gz", array, kind, 1, order)
    (fact,) = read_image(file, SimpleITKIO()).facts
    assert (fact.kind, fact.detail) == ("read as zero", "3 voxels")
    (fact,) = read_image(file, NibabelIO()).facts
    assert (fact.kind, fact.detail) == ("not finite", "3 voxels")
    assert kinds(read_label_map(file, SimpleITKIO()).facts) == ["label not finite"]


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_numbers_that_two_pieces_share_are_counted_too(tmp_path, monkeypatch, kind, ending):
    """Files are read piece by piece; what is unpacked of one ends anywhere."""
    monkeypatch.setattr(contents, "_PIECE", 999)
    array = np.full((9, 10, 11), np.nan)
    array[0] = 1
    found = check_contents(write_nifti(tmp_path / f"a{ending}", array, kind, 1, "<"))
    assert found.hidden == 8 * 10 * 11


def test_what_is_no_plain_image(tmp_path):
    """More dimensions, several values per voxel, complex numbers: each said as what it is, by the header alone."""
    four = np.stack([labels()] * 2)
    assert kinds(read_image(write_image(tmp_path / "four.nii.gz", four), SimpleITKIO()).facts) == ["dimensions"]
    colours = np.stack([labels()] * 3, axis=-1)
    for ending in ("nrrd", "mha", "nii.gz"):
        file = write_image(tmp_path / f"layers.{ending}", colours, vector=True)
        (fact,) = read_label_map(file, SimpleITKIO()).facts
        assert (fact.kind, fact.detail) == ("vector", "3 values per voxel")
    file = write_image(tmp_path / "complex.nii.gz", labels().astype(np.complex64))
    assert kinds(read_image(file, SimpleITKIO()).facts) == ["complex"]


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "LA"])
def test_colours_are_no_labels(tmp_path, mode):
    assert kinds(read_label_map(write_png(tmp_path / "a.png", mode), NaturalImage2DIO()).facts) == ["colours"]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("1", 1)])
def test_colours_are_channels_of_an_image(tmp_path, mode, channels):
    found = read_image(write_png(tmp_path / "a_0000.png", mode), NaturalImage2DIO())
    assert (kinds(found.facts), len(found.array)) == (["spacing in pixels"], channels)


@pytest.mark.parametrize(
    ("spacing", "kind", "detail"),
    [
        (None, "spacing unknown", "there is no a.json"),
        ([2, 1], "spacing impossible", "three lengths in mm, not [2, 1]"),
        ([-2, 1, 1], "spacing impossible", "not [-2, 1, 1]"),
        ([0, 1, 1], "spacing impossible", "not [0, 1, 1]"),
        ([float("nan"), 1, 1], "spacing impossible", "not [nan, 1, 1]"),
        ("2", "spacing impossible", "not '2'"),
    ],
)
def test_the_spacing_of_a_tif(tmp_path, spacing, kind, detail):
    for read, name in ((read_image, "a_0000.tif"), (read_label_map, "a.tif")):
        (fact,) = read(write_tif(tmp_path / name, labels(), spacing), Tiff3DIO()).facts
        assert fact.kind == kind
        assert detail in fact.detail
    (tmp_path / "a.json").write_text('{"Spacing": [2, 1, 1]}')
    (fact,) = read_label_map(tmp_path / "a.tif", Tiff3DIO()).facts
    assert "a.json has no 'spacing'; it has 'Spacing'" in str(fact)


def test_the_spacing_of_a_truth_is_found_where_nnunet_left_it(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folder = tmp_path / "preprocessed" / "Dataset001_T"
    for place in (folder / "gt_segmentations", folder / "data", tmp_path / "raw" / "Dataset001_T" / "imagesTr"):
        place.mkdir(parents=True)
    truth = write_tif(folder / "gt_segmentations" / "a.tif", labels(), None)

    def spacing():
        found = read_label_map(truth, Tiff3DIO())
        return found.grid.spacing if found.has_spacing else None

    assert spacing() is None
    properties = {"spacing": [1, 1, 1], "class_locations": {1: np.zeros((2, 4), np.int64)}}
    (folder / "data" / "a.pkl").write_bytes(pickle.dumps(properties))
    assert spacing() is None, "nnU-Net writes that where it does not know"
    (folder / "data" / "a.pkl").write_bytes(pickle.dumps({**properties, "spacing": [np.float64(4), 1, 1]}))
    assert spacing() == (4, 1, 1)
    (tmp_path / "raw" / "Dataset001_T" / "imagesTr" / "a.json").write_text('{"spacing": [3, 1, 1]}')
    assert spacing() == (3, 1, 1)


def test_reading_properties_runs_no_program(tmp_path):
    class Program:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    folder = tmp_path / "preprocessed"
    for place in (folder / "gt_segmentations", folder / "data"):
        place.mkdir(parents=True)
    truth = write_tif(folder / "gt_segmentations" / "a.tif", labels(), None)
    (folder / "data" / "a.pkl").write_bytes(pickle.dumps({"spacing": [2, 1, 1], "more": Program()}))
    assert not read_label_map(truth, Tiff3DIO()).has_spacing
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", [80, 84, 88])
@pytest.mark.parametrize("value", [b"\0\0\0\0", b"\0\0\xc0\x7f", b"\0\0\x80\x7f"])
def test_a_spacing_that_nifti_does_not_say(tmp_path, place, value):
    """Zero, NaN, infinity; SimpleITK makes 1 mm of each."""
    file = write_image(tmp_path / "a.nii.gz", labels())
    change_nifti(file, place, value)
    assert "spacing unknown" in kinds(read_label_map(file, SimpleITKIO()).facts)


def test_a_spacing_that_other_formats_do_not_say(tmp_path):
    for file in (
        raw_nrrd(tmp_path / "a.nrrd", labels(), "raw"),
        raw_nrrd(tmp_path / "b.nrrd", labels(), "gzip"),
        raw_mha(tmp_path / "a.mha", labels()),
    ):
        assert kinds(read_label_map(file, SimpleITKIO()).facts) == ["spacing unknown"]
    for number, line in enumerate(
        (b"spacings: 1 1 nan", b"space dimension: 3\nspace directions: (1,0,0) none (0,0,2)")
    ):
        file = raw_nrrd(tmp_path / f"axis {number}.nrrd", labels(), "raw")
        file.write_bytes(file.read_bytes().replace(b"endian: little", line))
        assert kinds(read_label_map(file, SimpleITKIO()).facts) == ["spacing unknown"], "of one axis"


def test_a_reason_is_in_words(tmp_path):
    file = write_image(tmp_path / "zero.mha", labels(), compressed=False)
    file.write_bytes(file.read_bytes().replace(b"ElementSpacing = 1 1 2", b"ElementSpacing = 0 1 2"))
    assert "its spacing is zero, or no number" in str(read_label_map(file, SimpleITKIO()).facts[-1])
    skew = np.diag([1.0, 1, 2, 1])
    skew[0, 1] = 0.5
    image = nibabel.Nifti1Image(labels().T, skew)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "skew.nii.gz")
    assert "its axes are not at right angles" in str(read_label_map(tmp_path / "skew.nii.gz", SimpleITKIO()).facts[-1])


def test_nifti_that_readers_take_for_different_things(tmp_path):
    file = write_nifti(tmp_path / "a.nii.gz", labels(), "uint8")
    content = gzip.decompress(file.read_bytes())
    for start in (0, 348, float("nan")):  # SimpleITK reads from the header's end then, four bytes early
        change_nifti(file, 108, struct.pack("<f", start))
        assert kinds(read_label_map(file, SimpleITKIO()).facts) == ["damaged"]
    file.write_bytes(gzip.compress(gzip.compress(content)))
    (fact,) = read_label_map(file, SimpleITKIO()).facts
    assert (fact.kind, fact.detail) == ("damaged", "it is compressed twice")
    file.write_bytes(zlib.compress(content))
    assert kinds(read_label_map(file, SimpleITKIO()).facts) == ["unreadable"], "not said to be read all the same"
    file.write_bytes(content)
    assert kinds(read_label_map(file, NibabelIO()).facts) == ["unreadable"], "nibabel does not read it"


def test_what_is_no_stack_of_slices_in_a_tif(tmp_path):
    colours = np.stack([labels()[2]] * 3, axis=-1)
    file = write_tif(tmp_path / "colours.tif", colours, photometric="rgb")
    assert kinds(read_label_map(file, Tiff3DIO()).facts) == ["vector"], "its colours are no slices"
    assert len(read_image(file, NaturalImage2DIO()).array) == 3
    file = write_tif(tmp_path / "complex.tif", labels().astype(np.complex64))
    assert kinds(read_label_map(file, Tiff3DIO()).facts) == ["complex"]
    with tifffile.TiffWriter(tmp_path / "single.tif") as tif:
        for plane in labels():
            tif.write(plane, contiguous=False)
    assert "more images" in kinds(read_label_map(tmp_path / "single.tif", NaturalImage2DIO()).facts)
    pictures = [Image.fromarray(labels()[n] * 100) for n in (1, 2)]
    pictures[0].save(tmp_path / "moving.png", save_all=True, append_images=pictures[1:])
    assert "more images" in kinds(read_image(tmp_path / "moving.png", NaturalImage2DIO()).facts)


def test_a_list_of_pages_without_an_end(tmp_path):
    file = write_tif(tmp_path / "a.tif", labels(), metadata=None)
    with tifffile.TiffFile(file) as tif:
        first, last = tif.pages[0].offset, tif.pages[-1].offset
        entries = len(tif.pages[-1].tags)
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, last + 2 + 12 * entries, first)
    file.write_bytes(content)
    (fact,) = read_label_map(file, Tiff3DIO()).facts
    assert (fact.kind, fact.detail) == ("cut off", "instead of page 6, an earlier one follows again")


SECOND_FILES = {
    "raw": (0, lambda data: data),
    "raw, skip": (7, lambda data: b"another" + data),
    "raw, at the end": (-1, lambda data: b"another" + data),
    "gzip": (0, gzip.compress),
    "gzip, in parts": (0, lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
    "gzip, skip": (7, lambda data: gzip.compress(b"another" + data)),
    "gzip, at the end": (-1, lambda data: gzip.compress(b"another" + data)),
}


@pytest.mark.parametrize("lines", [0, 2])
@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("name", SECOND_FILES)
def test_where_the_data_of_a_nrrd_are(tmp_path, name, beside, lines):
    """In a file of their own or behind the header, with lines and bytes before them; what is lost is found."""
    skip, pack = SECOND_FILES[name]
    sizes = " ".join(map(str, labels().shape[::-1]))
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 2\nencoding: {name.partition(',')[0]}\n"
    head += f"byte skip: {skip}\nline skip: {lines}\n"

    def read(data: bytes):
        file = tmp_path / ("a.nhdr" if beside else "a.nrrd")
        if beside:
            (tmp_path / "a.raw").write_bytes(b"line\n" * lines + data)
        file.write_bytes(
            f"{head}data file: a.raw\n".encode() if beside else head.encode() + b"\n" + b"line\n" * lines + data
        )
        return read_label_map(file, SimpleITKIO())

    found = read(pack(labels().tobytes()))
    assert found.facts == []
    assert np.array_equal(found.array[0], labels())
    for left in (200, 1, 0):
        assert kinds(read(pack(labels().tobytes()[:left])).facts) in (
            ["cut off"],
            ["bytes after the end", "cut off"],
        ), left


@pytest.mark.parametrize("skip", [0, 7, -1])
@pytest.mark.parametrize("zipped", [False, True])
def test_where_the_data_of_an_mhd_are(tmp_path, zipped, skip):
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 9 8 5\nElementSpacing = 1 1 2\n"
    head += f"ElementType = MET_UCHAR\nHeaderSize = {skip}\nCompressedData = {zipped}\nElementDataFile = a.raw\n"
    file = tmp_path / "a.mhd"
    file.write_text(head)
    data = zlib.compress(labels().tobytes()) if zipped else labels().tobytes()
    (tmp_path / "a.raw").write_bytes((b"another" if skip else b"") + data)
    found = read_label_map(file, SimpleITKIO())
    if zipped and skip:
        assert kinds(found.facts) == ["damaged"], "ITK gives what happens to lie in memory"
    else:
        assert found.facts == []
        assert np.array_equal(found.array[0], labels())
        (tmp_path / "a.raw").write_bytes(data[:200] if not zipped else zlib.compress(labels().tobytes()[:200]))
        assert kinds(read_label_map(file, SimpleITKIO()).facts) == ["cut off"]


@pytest.mark.parametrize("word", ["HeaderSize = much", "DimSize = 9 8 a", "ElementType = MET_WHAT", "HeaderSize = -1"])
def test_a_header_that_makes_no_sense(tmp_path, word):
    head = "ObjectType = Image\nNDims = 3\nDimSize = 9 8 5\nElementSpacing = 1 1 2\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mha").write_text(f"{head}{word}\nElementDataFile = LOCAL\n")
    (fact,) = read_label_map(tmp_path / "a.mha", SimpleITKIO()).facts
    assert fact.kind in ("damaged", "cut off")
    sizes = "sizes: 9 8 5\ntype: uint8\ndimension: 3\nencoding: raw\nbyte skip: much\n"
    (tmp_path / "a.nrrd").write_text(f"NRRD0004\n{sizes}\n")
    assert kinds(read_label_map(tmp_path / "a.nrrd", SimpleITKIO()).facts) == ["damaged"]


def test_the_parts_of_a_gzip_file_may_end_anywhere(tmp_path):
    """Also one byte before the end of a piece that is read, where a new part is not seen yet."""
    random = np.random.default_rng(0).integers(0, 256, 2**21, np.uint8)
    file = write_nifti(tmp_path / "a.nii", random.reshape(128, 128, 128), "uint8")
    content, whole = file.read_bytes(), 2**20 - 1
    first = next(part for size in range(whole - 400, whole) if len(part := gzip.compress(content[:size], 0)) == whole)
    file = tmp_path / "a.nii.gz"
    file.write_bytes(first + gzip.compress(content[len(gzip.decompress(first)) :]))
    assert check_contents(file).facts == []


def test_what_follows_the_end_and_what_is_not_compressed(tmp_path):
    file = write_image(tmp_path / "a.nii.gz", labels())
    content = gzip.decompress(file.read_bytes())
    for data, kind in (
        (content, ["not compressed"]),
        (gzip.compress(content) + b"more", ["bytes after the end"]),
        (gzip.compress(content + b"more"), ["bytes after the end"]),
        (gzip.compress(content) + bytes(9), []),
        (gzip.compress(content[:99]) + gzip.compress(content[99:]), []),
    ):
        file.write_bytes(data)
        found = read_label_map(file, SimpleITKIO())
        assert kinds(found.facts) == kind
        assert np.array_equal(found.array[0], labels())
        assert problems(found.facts, "doctor") == []


def test_no_message_shows_a_librarys_own_words(tmp_path, capfd):
    file = tmp_path / "a.nii.gz"
    for content in (b"no image", gzip.compress(b"no image" * 99), gzip.compress(b"")):
        file.write_bytes(content)
        (fact,) = problems(read_image(file, SimpleITKIO()).facts, "doctor")
        for word in ("itk", "cxx", "::", "line"):
            assert word not in str(fact).lower().replace("simpleitkio", "")
    assert capfd.readouterr() == ("", "")


def test_the_grid_says_by_how_much():
    def grid(shape=(5, 8, 9), spacing=(2.0, 1.0, 1.0), affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1))):
        return Grid(shape, spacing, affine)

    one = grid()
    assert compare_grids(one, one) == []
    assert one.codes == "RAS"
    (found,) = compare_grids(one, grid(shape=(4, 8, 9)))
    assert (found.kind, found.detail) == ("other size", "4 x 8 x 9 voxels, not 5 x 8 x 9 as")
    (found,) = compare_grids(one, grid(spacing=(2.1, 1.0, 1.0)))
    assert (found.kind, found.detail) == ("other spacing", "2.1 x 1 x 1 mm, not 2 x 1 x 1 as")
    (found,) = compare_grids(one, grid(spacing=(2.0001, 1.0, 1.0)))
    assert found.kind == "spacing slightly off"
    assert compare_grids(one, grid(spacing=(2.0000001, 1.0, 1.0))) == []
    (found,) = compare_grids(one, grid(affine=((1, 0, 0, 50), (0, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1))))
    assert (found.kind, found.detail) == ("other place", "corners up to 50 mm (50 voxels) from")
    (found,) = compare_grids(one, grid(affine=((-1, 0, 0, 8), (0, 1, 0, 0), (0, 0, 2, 0), (0, 0, 0, 1))))
    assert found.detail == "stored along LAS instead of RAS, corners up to 8 mm (8 voxels) from"


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_both_libraries_tell_the_same_orientation(tmp_path, reader):
    direction = (-1, 0, 0, 0, 0, 1, 0, 1, 0)
    file = write_image(tmp_path / "a.nii.gz", labels(), direction=direction, origin=(3, 4, 5))
    found = read_label_map(file, reader()).grid
    assert found.codes == "RSP"
    assert np.allclose(np.array(found.affine)[:3, 3], (-3, -4, 5))


def test_values():
    found = list(check_values([0, 1, 0.5, 7, 255, float("nan")], {0, 1, 2}, "a"))
    assert [(fact.kind, fact.detail) for fact in found] == [
        ("label not finite", "nan"),
        ("fraction", "0.5"),
        ("undeclared", "7, 255; declared are 0, 1, 2"),
    ]
    assert list(check_values([0, 2], {0, 1, 2}, "a")) == []
    shown = [fact.detail for fact in check_values([0.9999999, 2**40], {0}, "a")]
    assert shown == ["0.9999999", "1099511627776; declared are 0"]


def test_nothing_in_a_folder_stays_unnamed(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Müller")
    used = ["a.nii.gz", "C0.nii.gz", "c0.nii.gz", f"{decomposed}.nii.gz"]
    told = {
        "._a.nii.gz": "leftover like an image",
        ".DS_Store": "leftover",
        "Thumbs.db": "leftover",
        "up.NII.GZ": "letter case",
        "b.mha": "other format",
        "a.nii": "second file",
        "notes.txt": "unused",
        "folder": "unused",
        "gone.nii.gz": "dead link",
        "d.hdr": "other format",
        "c0.nii.gz": "names in other case",
    }
    for name in {*used, *told, "d.img", "e.raw.gz"} - {"folder", "gone.nii.gz"}:
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    (tmp_path / "dataset.json").touch()
    found = find_files(tmp_path, ".nii.gz")
    assert sorted(found.files) == sorted(["a", "C0", "c0", "Müller"])
    assert {Path(fact.file).name: fact.kind for fact in found.facts} == told


def test_one_name_in_two_ways_of_writing_is_used_in_none(tmp_path):
    names = [unicodedata.normalize(form, "Müller.nii.gz") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes both for one")
    found = find_files(tmp_path, ".nii.gz")
    assert found.files == {}
    assert kinds(found.facts) == ["same letters"] * 2


def test_a_broken_example_does_not_decide_the_reader(tmp_path):
    broken, sound = (write_tif(tmp_path / f"{name}_0000.tif", labels()) for name in "ab")
    (tmp_path / "a.json").write_text("{}")
    assert choose_reader({"file_ending": ".tif"}, [broken, sound]) is Tiff3DIO
    sound.write_bytes(sound.read_bytes()[:99])
    assert choose_reader({"file_ending": ".tif"}, [broken, sound]) is Tiff3DIO
    flat = tmp_path / "c_0000.tif"
    tifffile.imwrite(flat, labels()[2])
    assert choose_reader({"file_ending": ".tif"}, [flat]) is NaturalImage2DIO


def test_the_content_is_not_kept(tmp_path):
    """A file is checked in pieces: what one takes does not grow with it."""
    import tracemalloc

    file = tmp_path / "a.nii.gz"
    write_image(file, np.zeros((100, 512, 512), np.float32))
    tracemalloc.start()
    assert check_contents(file).facts == []
    assert tracemalloc.get_traced_memory()[1] < 2**24 < 100 * 512 * 512 * 4
    tracemalloc.stop()


def test_the_table_says_something_of_every_kind_to_every_command():
    for name, kind in KINDS.items():
        levels = [getattr(kind, command) for command in COMMANDS]
        assert any(level != NOTHING for level in levels), name
        assert kind.remedy, name
        if all(level in (NOTE, NOTHING) for level in levels):
            assert "{}" in kind.many


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_want_of_memory_is_not_the_fault_of_a_file(tmp_path, ending):
    file = tmp_path / f"large{ending}"
    write_image(file, np.zeros((80, 100, 100), np.float32))
    code = f"""
import resource
from pathlib import Path
from nnunet_plugins import memory
from nnunet_plugins.images.reading import read_image
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

file, told, before = Path({str(file)!r}), [], resource.getrlimit(resource.RLIMIT_DATA)
read_image(file, SimpleITKIO())  # loads what there is to load
for part in range(60):
    memory.keep_within(memory._sizes()["RssAnon"] + part * 2**18)
    try:
        told.append([fact.kind for fact in read_image(file, SimpleITKIO()).facts])
    except MemoryError:
        told.append("memory")
    resource.setrlimit(resource.RLIMIT_DATA, before)
print("memory" in told, [one for one in told if one not in ("memory", [])])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True []\n", result.stdout + result.stderr
