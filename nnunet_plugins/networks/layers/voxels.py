"""The voxels of whole images as a network of coordinates sees them: places, intensities in [0, 1], and draws.

A voxel in which every channel is exactly 0 is padding: nnU-Net pads z-scores with 0. It is never drawn.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensor

SMALLEST_SPAN = 1e-6
"""Least difference of the intensities that become 0 and 1; a constant image gives 0."""


def grid(axes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the points `(n, dimensions)` of a grid with these coordinates along its axes, the last axis fastest."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def indices_of(content: torch.Tensor) -> torch.Tensor:
    """Return the indices of the places that are content, of all places in their order, `(n,)`."""
    if isinstance(content, FakeTensor):
        return torch.arange(content.numel(), device=content.device)  # as `Voxels` takes it
    return content.flatten().nonzero()[:, 0]


@dataclass(frozen=True)
class Draw:
    """Voxels that were drawn of B images, n of each.

    Attributes:
        index: of each voxel among all of its image, `(B, n)`.
        values: their intensities, `(B, n, channels)`.
        counts: 1 for those that count, 0 for what fills up a shorter list, `(B, n)`.
    """

    index: torch.Tensor
    values: torch.Tensor
    counts: torch.Tensor

    def of(self, target: torch.Tensor) -> torch.Tensor:
        """Return the truth `(B, T, n, 1)` of the voxels that were drawn, from that of the images, `(B, T, *size)`."""
        flat = target.flatten(2)
        return flat.gather(2, self.index[:, None].expand(-1, flat.shape[1], -1))[..., None]


class Voxels:
    """The voxels of a batch of images.

    Args:
        images: `(B, channels, *size)`.
        percentiles: intensities of a channel, as parts of its voxels without padding, that become 0 and 1; what lies
            beyond is clipped.
        every: draw only voxels whose index is a multiple of this along each axis.

    Attributes:
        values: intensities in [0, 1], `(B, M, channels)`; M voxels in the order of their places.
        content: whether a voxel is no padding, `(B, *size)`; where all are, an image has nothing in it, and all count.
    """

    def __init__(self, images: torch.Tensor, percentiles: tuple[float, float], every: int = 1) -> None:
        flat = images.flatten(2)
        lattice = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
        lattice[(slice(None, None, every),) * lattice.dim()] = True
        scaled, self._places = [], []
        if isinstance(images, FakeTensor):
            # Nobody knows what is in it; for those who count, all of it is content.
            self.values = flat.transpose(1, 2)
            drawn = math.prod(-(-n // every) for n in images.shape[2:])
            self._places = [torch.arange(drawn, device=images.device)] * len(images)
            self.content = torch.ones(len(images), *images.shape[2:], dtype=torch.bool, device=images.device)
            return
        content = (flat != 0).any(dim=1)
        content |= ~content.any(dim=1, keepdim=True)
        self.content = content.unflatten(1, images.shape[2:])
        for image, where in zip(flat, content, strict=True):
            scaled.append(_scale(image, image[:, where], percentiles))
            chosen = where & lattice.flatten()
            self._places.append((chosen if chosen.any() else where).nonzero()[:, 0])
        self.values = torch.stack(scaled).transpose(1, 2)

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self._places)

    def only(self, images: Sequence[int]) -> "Voxels":
        """Return the voxels of some of the images, by number."""
        some = copy.copy(self)
        some._places = [self._places[number] for number in images]
        some.values, some.content = self.values[list(images)], self.content[list(images)]
        return some

    def content_at(self, along: Sequence[torch.Tensor]) -> torch.Tensor:
        """Tell of each place of a grid whether the voxel that it lies in is content, `(B, *grid)`.

        Args:
            along: positions of the grid's planes along each axis, in voxels from the centre of the first one.
        """
        found = self.content
        for number, (axis, voxels) in enumerate(zip(along, found.shape[1:], strict=True), 1):
            found = found.index_select(number, axis.round().long().clamp(0, voxels - 1).to(found.device))
        return found

    def draw(self, number: int | None, generator: torch.Generator | None = None) -> Draw:
        """Draw voxels of each image, with repetition; all of them for None.

        With a generator, which is one of the CPU, the images of a batch share its numbers: what is drawn of an image
        does not depend on the others.
        """
        device = self.values.device
        if number is None:
            number = max(map(len, self._places))
            order = torch.arange(number, device=device)
            index = torch.stack([places[order % len(places)] for places in self._places])
            counts = torch.stack([order < len(places) for places in self._places]).float()
        else:
            rows = 1 if generator else len(self)
            # In double precision, as a float has fewer steps than a large image has voxels.
            parts = torch.rand(rows, number, generator=generator, dtype=torch.float64, device="cpu").to(device)
            parts = parts.expand(len(self), number)
            index = torch.stack([p[(u * len(p)).long()] for p, u in zip(self._places, parts, strict=True)])
            counts = torch.ones(index.shape, device=device)
        channels = self.values.shape[2]
        return Draw(index, self.values.gather(1, index[..., None].expand(-1, -1, channels)), counts)


def _scale(image: torch.Tensor, inside: torch.Tensor, percentiles: tuple[float, float]) -> torch.Tensor:
    """Map the channels of an image `(channels, M)` to [0, 1], by the percentiles of those voxels that count."""
    low, high = (_percentile(inside, part) for part in percentiles)
    return ((image - low) / (high - low).clamp(min=SMALLEST_SPAN)).clamp(0, 1)


def _percentile(values: torch.Tensor, part: float) -> torch.Tensor:
    """Return the value of each row that this part of the others is below, `(rows, 1)`."""
    if part in (0, 1):
        return values.amax(1, keepdim=True) if part else values.amin(1, keepdim=True)
    return values.kthvalue(1 + round(part * (values.shape[1] - 1)), dim=1, keepdim=True).values
