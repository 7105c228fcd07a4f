"""The parts of an image that go through a network one after the other, and what comes of them, put together.

One part, the whole image, where memory allows it; slice by slice in 2D. Otherwise nnU-Net's tiles, whose maps are
averaged with the same Gaussian as its logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch.nn import functional

from nnunet_plugins.networks.layers.blocks import INTERPOLATION
from nnunet_plugins.prediction.whole_volume import Way, WholeVolumePredictor

Look = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
"""Takes a part `(1, channels, *size)`; returns maps `(1, maps, *any)` by name."""


class Windows:
    """The windows of a preprocessed image.

    Args:
        predictor: with the plans; it says whether one pass is possible.
        image: `(channels, z, y, x)`.
        tiles: why there are to be nnU-Net's tiles even so; empty if not.

    Attributes:
        image: padded to what the network takes.
        places: of the windows in it, each an index; in 2D with the number of the slice.
        kept: index of the image without the padding.
        whole: whether a window is all of the image, or of a slice.
    """

    def __init__(self, predictor: nnUNetPredictor, image: torch.Tensor, *, tiles: str = "") -> None:
        self.device = predictor.device
        self.patch = tuple(predictor.configuration_manager.patch_size)
        size = tuple(image.shape[1:])
        own = size[-self.axes :]
        way = Way(None, tiles)
        if isinstance(predictor, WholeVolumePredictor) and not tiles:
            way = predictor.way(size)
        chosen, self._reason = way.size, way.reason
        self.whole = chosen is not None
        self.places: list[tuple[Any, ...]]
        if chosen is not None:
            far_end = [width for n, new in zip(reversed(own), reversed(chosen), strict=True) for width in (0, new - n)]
            self.image = functional.pad(image, far_end)
            self.kept = (slice(None), *(slice(0, n) for n in size))
            everything = (slice(None),) * self.axes
            slices = [()] if self.axes == 3 else [(number,) for number in range(size[0])]
            self.places = [(slice(None), *number, *everything) for number in slices]
        else:
            self.image, inside = pad_nd_image(image, self.patch, "constant", {"value": 0}, True)
            self.kept = (slice(None), *inside[1:])
            self.places = predictor._internal_get_sliding_window_slicers(self.image.shape[1:])

    @property
    def axes(self) -> int:
        """Spatial axes of the network."""
        return len(self.patch)

    def describe(self) -> str:
        """Say how the image goes through the network."""
        if self.whole:
            return "in one pass" if self.axes == 3 else "slice by slice"
        return f"in {len(self.places)} tiles" + (f" ({self._reason})" if self._reason else "")

    def take(self, place: tuple[Any, ...]) -> torch.Tensor:
        """Return the window at a place, `(1, channels, *size)`, on the device."""
        return self.image[place][None].to(self.device)

    def precision(self) -> AbstractContextManager[object]:
        """As nnU-Net does: mixed precision on CUDA, and none elsewhere."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    @torch.no_grad()
    def each(self, look: Look) -> Iterator[tuple[tuple[Any, ...], Mapping[str, torch.Tensor]]]:
        """Yield every place, and the maps of its window."""
        for place in self.places:
            with self.precision():
                maps = look(self.take(place))
            yield place, maps

    def gather(self, look: Look) -> dict[str, torch.Tensor]:
        """Return maps of the image, `(maps, z, y, x)` on the CPU, of those of its windows.

        Linear in the maps: what sums to one at every voxel of a coarse map does so here.
        """
        totals: dict[str, torch.Tensor] = {}
        weight = torch.ones(()) if self.whole else self._gaussian()
        weights = torch.zeros(self.image.shape[1:])
        for place, maps in self.each(look):
            weights[place[1:]] += weight
            for name, found in maps.items():
                total = totals.setdefault(name, torch.zeros(found.shape[1], *self.image.shape[1:]))
                total[place] += self.fit(found, place)[0].cpu() * weight
        return {name: total.div_(weights)[self.kept] for name, total in totals.items()}

    def fit(self, maps: torch.Tensor, place: tuple[Any, ...]) -> torch.Tensor:
        """Return maps `(1, maps, *any)` at the size of a window, interpolated linearly in single precision."""
        size = self.image[place].shape[1:]
        if maps.shape[2:] == size:
            return maps.float()
        return functional.interpolate(maps.float(), size=size, mode=INTERPOLATION[self.axes], align_corners=False)

    def _gaussian(self) -> torch.Tensor:
        return compute_gaussian(
            self.patch, sigma_scale=1 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
        )

    def around(self, mask: torch.Tensor, *, whole: bool) -> list[tuple[Any, ...]]:
        """Return the places of windows that show a class best: one in 3D, one of every slice with it in 2D.

        Args:
            mask: `(z, y, x)`, where the class is, without the padding.
            whole: the whole image, or slice; otherwise as much as the plan's patch, around the class's centre.
        """
        if not mask.any():
            return []
        if self.axes == 2:
            numbers = [int(number) for number in mask.any(dim=(1, 2)).nonzero()]
            return [(slice(None), number, *self._box(mask[number], whole)) for number in numbers]
        return [(slice(None), *self._box(mask, whole))]

    def _box(self, mask: torch.Tensor, whole: bool) -> list[slice]:
        sizes: Sequence[int] = self.image.shape[-self.axes :]
        if whole:
            return [slice(0, n) for n in sizes]
        where = mask.nonzero().float()
        # A voxel of the class: between two parts of it there may be nothing.
        centre = where[(where - where.mean(dim=0)).square().sum(dim=1).argmin()].tolist()
        box = []
        for middle, kept, patch, n in zip(centre, self.kept[-self.axes :], self.patch, sizes, strict=True):
            first = round(middle) + (kept.start or 0) - patch // 2
            first = min(max(first, 0), max(n - patch, 0))
            box.append(slice(first, min(first + patch, n)))
        return box
