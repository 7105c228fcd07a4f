"""Small image files of every kind that the commands may meet, sound and unsound. For the tests."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

SHAPE = (5, 8, 9)
"""Voxels `(z, y, x)` of all 3D files here."""


def labels() -> np.ndarray:
    """Two labels, each in one piece."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:4, 2:6, 2:7], array[2:3, 3:5, 3:6] = 1, 2
    return array


def intensities() -> np.ndarray:
    return (labels() * 100 + np.random.default_rng(0).normal(0, 9, SHAPE)).astype(np.float32)


def write(file: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 2.0), **options: object) -> Path:
    """Write an array `(z, y, x)` with SimpleITK; `spacing` is x, y, z."""
    image = sitk.GetImageFromArray(array, isVector=bool(options.get("vector", False)))
    if len(spacing) == image.GetDimension():
        image.SetSpacing(spacing)
    if "origin" in options:
        image.SetOrigin(options["origin"])
    if "direction" in options:
        image.SetDirection(options["direction"])
    sitk.WriteImage(image, str(file), bool(options.get("compressed", True)))
    return file


def write_nifti(file: Path, array: np.ndarray, kind: str, version: int = 1, order: str = "<") -> Path:
    """Write a NIfTI file of any version, byte order and type of numbers."""
    cls = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    header = cls.header_class(endianness=order)
    data = array.transpose().astype(np.dtype(kind).newbyteorder(order))
    image = cls(data, np.diag([1, 1, 2, 1]), header, dtype=kind)
    nibabel.save(image, file)
    return file


def change_nifti(file: Path, place: int, data: bytes) -> None:
    """Write bytes into the header of a compressed NIfTI file."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[place : place + len(data)] = data
    file.write_bytes(gzip.compress(bytes(content)))


def without_spacing(file: Path) -> None:
    change_nifti(file, 80, struct.pack("<3f", 0, 0, 0))
    change_nifti(file, 252, bytes(4))


def cut_inside(file: Path, number: int = 40) -> None:
    """Cut off what is inside an intact gzip file."""
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-number]))


def write_tif(file: Path, array: np.ndarray, spacing: object = (2.0, 1.0, 1.0), **options: object) -> Path:
    """Write a .tif, with its spacing `(z, y, x)` beside it unless that is None."""
    tifffile.imwrite(file, array, **options)
    if spacing is not None:
        name = file.stem[:-5] if file.stem[-5:] == "_0000" else file.stem
        file.with_name(f"{name}.json").write_text(json.dumps({"spacing": spacing}))
    return file


def write_png(file: Path, mode: str) -> Path:
    picture = Image.fromarray(labels()[2])
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(file)
    return file


def raw_nrrd(file: Path, array: np.ndarray, encoding: str) -> Path:
    """An .nrrd without spacing."""
    sizes = " ".join(map(str, array.shape[::-1]))
    head = f"NRRD0004\ntype: uint8\ndimension: {array.ndim}\nsizes: {sizes}\nencoding: {encoding}\nendian: little\n\n"
    data = array.astype(np.uint8).tobytes()
    file.write_bytes(head.encode() + (gzip.compress(data) if encoding == "gzip" else data))
    return file


def raw_mha(file: Path, array: np.ndarray) -> Path:
    """An .mha, compressed, without spacing."""
    sizes, data = " ".join(map(str, array.shape[::-1])), zlib.compress(array.astype(np.uint8).tobytes())
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nCompressedDataSize = {len(data)}\n"
    )
    file.write_bytes(f"{head}DimSize = {sizes}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n".encode() + data)
    return file


FORMATS: dict[str, Callable[[Path], Path]] = {
    "nii.gz": lambda f: write(f / "a.nii.gz", labels()),
    "nii": lambda f: write(f / "a.nii", labels()),
    "nii, big endian": lambda f: write_nifti(f / "a.nii.gz", labels(), "int16", 1, ">"),
    "nii version 2": lambda f: write_nifti(f / "a.nii.gz", labels(), "float32", 2),
    "nii version 2, big endian": lambda f: write_nifti(f / "a.nii", labels(), "float64", 2, ">"),
    "mha": lambda f: write(f / "a.mha", labels()),
    "mha, raw": lambda f: write(f / "a.mha", labels(), compressed=False),
    "mhd": lambda f: write(f / "a.mhd", labels(), compressed=False),
    "nrrd": lambda f: write(f / "a.nrrd", labels()),
    "nrrd, raw": lambda f: write(f / "a.nrrd", labels(), compressed=False),
    "gipl": lambda f: write(f / "a.gipl", labels()),
    "tif": lambda f: write_tif(f / "a.tif", labels()),
    "tif, zlib": lambda f: write_tif(f / "a.tif", labels(), compression="zlib"),
    "tif, of ImageJ": lambda f: write_tif(f / "a.tif", labels(), imagej=True),
    "tif, tiles": lambda f: write_tif(f / "a.tif", labels(), tile=(16, 16), metadata=None),
    "tif, OME": lambda f: write_tif(f / "a.tif", labels(), ome=True),
    "tif, big": lambda f: write_tif(f / "a.tif", labels(), bigtiff=True, byteorder=">"),
    "png": lambda f: write_png(f / "a.png", "L"),
    "bmp": lambda f: write_png(f / "a.bmp", "L"),
}
"""Sound files of every format; each writes a segmentation into a folder."""
