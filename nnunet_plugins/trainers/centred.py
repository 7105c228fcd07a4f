"""Preprocessed cases as a network of coordinates sees them: whole, and where prediction puts them in the patch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.padding import pad_nd_image

from nnunet_plugins.forecast import format_size


class Centred:
    """A dataset of nnU-Net whose cases are padded to the patch, as nnU-Net pads images for prediction.

    By itself nnU-Net's loader rounds the other way where the padding is odd, and pushes images out of the patch to
    centre a voxel of the foreground. A case that fills the patch, and has its centre for every such voxel, stays where
    it is.

    Args:
        dataset: of nnU-Net.
        patch_size: in voxels, 2D or 3D; no case is larger.
    """

    def __init__(self, dataset: Any, patch_size: Sequence[int]) -> None:
        self.dataset, self.patch_size = dataset, tuple(patch_size)

    @property
    def identifiers(self) -> Sequence[str]:
        """Names of the cases."""
        return self.dataset.identifiers

    def load_case(self, identifier: str) -> tuple[np.ndarray, np.ndarray, Any, dict[str, Any]]:
        """Return image, segmentation, that of a previous stage, and properties, as nnU-Net's datasets do."""
        image, segmentation, previous, properties = self.dataset.load_case(identifier)
        padded = [
            pad_nd_image(np.asarray(array[:]), self.patch_size, "constant", {"constant_values": value})
            for array, value in ((image, 0), (segmentation, -1))
        ]
        # The loader wants a channel first.
        whole = (1,) * (3 - len(self.patch_size)) + self.patch_size
        centre = np.array([[0, *(n // 2 for n in whole)]])
        places = dict.fromkeys(properties["class_locations"], centre)
        return padded[0], padded[1], previous, {**properties, "class_locations": places}


def require_whole_cases(datasets: Iterable[Any], patch_size: Sequence[int], trainer: str, command: str) -> None:
    """Check that every case is an image that the patch holds.

    Args:
        datasets: of nnU-Net.
        patch_size: in voxels, 2D or 3D.
        trainer: name, for messages.
        command: that writes plans whose patch holds every case.

    Raises:
        ValueError: if one does not, or consists of several slices in 2D.
    """
    for dataset in datasets:
        for case in dataset.identifiers:
            size = tuple(dataset.load_case(case)[0].shape[1:])
            if len(patch_size) == 2 and size[0] != 1:
                raise ValueError(
                    f"{trainer}: a slice is seen as the whole anatomy, and {case} has {size[0]} of them: in 2D every "
                    "case has to have one. Use a 3D configuration"
                )
            if any(n > most for n, most in zip(size[-len(patch_size) :], patch_size, strict=True)):
                raise ValueError(
                    f"{trainer}: images are seen as a whole, and {case} has {format_size(size)} voxels, more than the "
                    f"patch of {format_size(patch_size)}. Make plans whose patch holds every case: {command}"
                )
