"""Images and segmentations of another size, with the same extent: the corners of the outermost voxels stay in place."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray
from torch.nn import functional

from nnunet_plugins.images.facts import Fact, problems, summarise
from nnunet_plugins.images.reading import Header, read_channels, read_image, read_label_map
from nnunet_plugins.images.values import check_values, distinct
from nnunet_plugins.images.writing import whole_image, write_array

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def resize_image(image: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """Return an image of another size, by linear interpolation.

    Args:
        image: `(channels, z, y, x)`.
        size: `(z, y, x)`.

    Returns:
        `(channels, *size)`, in single precision.
    """
    batch = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    return functional.interpolate(batch, size=tuple(size), mode="trilinear", align_corners=False)[0].numpy()


def resize_labels(labels: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """Return a segmentation of another size: each voxel has the label of the one in which its middle lies.

    Args:
        labels: `(z, y, x)`.
        size: likewise.
    """
    middles = [(2 * np.arange(new) + 1) * own // (2 * new) for own, new in zip(labels.shape, size, strict=True)]
    return labels[np.ix_(*middles)]


def write_resized(
    images: Sequence[Path],
    label: Path | None,
    places: Sequence[Path],
    label_place: Path | None,
    *,
    reader: BaseReaderWriter,
    size: Sequence[int],
) -> list[str]:
    """Write a case's channels and segmentation with another size, and voxels of 1 mm; the segmentation comes last.

    Args:
        images: one or several channels each.
        label: its segmentation, if it has one.
        places: where to write each channel; their ending is a format of SimpleITK.
        label_place: where to write the segmentation.
        reader: nnU-Net's, of the case.
        size: `(z, y, x)`.

    Returns:
        what is wrong with the case, if it could not be written.
    """
    geometry = Header(tuple(size[::-1]), 1, "", (1.0,) * 3, (0.0,) * 3, _IDENTITY)
    image, _, facts = read_channels(images, reader)
    if image is None or problems(facts, "doctor"):
        return summarise(problems(facts, "doctor"))
    if len(image) != len(places):
        return [f"{images[0]} and the like have {len(image)} channels, not {len(places)}"]
    shape = image.shape[1:]
    for channel, place in zip(resize_image(image, size), places, strict=True):
        with whole_image(place) as part:
            write_array(channel, part, geometry)
    if label is None or label_place is None:
        return []
    found = read_label_map(label, reader)
    if found.array is None or found.array.shape[1:] != shape:
        return summarise(problems(found.facts, "doctor")) or [f"{label} has another size than its image"]
    labels = found.array[0].astype(np.int64)
    with whole_image(label_place) as part:
        write_array(resize_labels(labels, size).astype(_type_for(labels)), part, geometry)
    return []


def _type_for(labels: NDArray[Any]) -> type[np.unsignedinteger]:
    return np.uint8 if labels.max() < 256 else np.uint16


def restore_labels(
    file: Path,
    reference: Path,
    place: Path,
    *,
    reader: BaseReaderWriter,
    own_reader: BaseReaderWriter,
    size: Sequence[int],
    declared: Collection[int],
) -> list[str]:
    """Write a segmentation of one size on the grid of an image.

    Args:
        file: the segmentation.
        reference: the image, or its first channel.
        place: where to write, in the image's format.
        reader: nnU-Net's, of the segmentation.
        own_reader: nnU-Net's, of the image.
        size: that the segmentation has to have, `(z, y, x)`.
        declared: values that it may have.

    Returns:
        what is wrong with one of them, if it could not be written.
    """
    found, image = read_label_map(file, reader), read_image(reference, own_reader)
    facts = list(found.facts)
    if found.array is not None:
        facts += check_values(distinct(found.array), declared, str(file))
    wrong = [fact for fact in problems(facts, "evaluate") if fact.kind != "spacing unknown"]
    wrong += _unfit(image.facts)
    if found.array is None or image.array is None or wrong:
        return summarise(wrong)
    if found.array.shape[1:] != tuple(size):
        there, wanted = (" x ".join(map(str, one)) for one in (found.array.shape[1:], size))
        return [f"{file} has {there} voxels, not the {wanted} of its dataset"]
    labels = resize_labels(found.array[0].astype(np.int64), image.array.shape[1:])
    with whole_image(place) as part:
        own_reader.write_seg(labels.astype(_type_for(labels)), str(part), image.properties)
    return []


def _unfit(facts: Sequence[Fact]) -> list[Fact]:
    """Return what leaves nothing of an image to write on; its intensities are no matter."""
    return [fact for fact in problems(facts, "doctor") if fact.kind != "not finite"]
