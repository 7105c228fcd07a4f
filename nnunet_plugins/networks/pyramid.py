"""What networks of a fixed depth share: strides and kernels from the plan, and which sizes they can take.

The depth is the paper's, strides and kernels are the plan's: anisotropic stages stay anisotropic, and where a plan has
fewer stages than the network, axes that still have at least four voxels are halved further.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from nnunet_plugins.networks.topology import extend_stages

Sizes = Sequence[Sequence[int]]


class Pyramid(nn.Module):
    """Abstract: a network that reduces its input by `strides`, one step after the other.

    Subclasses take `strides` and `kernel_sizes` as keywords, one kernel more than strides, and call `set_strides`.

    Attributes:
        name: of the network, for messages.
        rounds_up: whether a step rounds odd sizes up, as padded strided convolutions do, or down, as pooling does.
        strides: of each step, per axis.
        least_voxels: how many voxels have to be left at the coarsest scale; 2 where a norm needs statistics over them.
    """

    name: ClassVar[str]
    rounds_up: ClassVar[bool] = False

    strides: list[tuple[int, ...]]
    least_voxels: int = 1

    @classmethod
    def downsamplings(cls, **options: Any) -> int:
        """Return how many steps the network has with these options."""
        raise NotImplementedError

    @classmethod
    def from_plan(
        cls,
        *,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool,
        patch_size: Sequence[int],
        strides: Sizes,
        kernel_sizes: Sizes,
        **options: Any,
    ) -> "Pyramid":
        """Build the network for a plan's stages, continued where it has fewer.

        Args:
            input_channels: image channels.
            num_classes: output channels.
            deep_supervision: as in the constructor.
            patch_size: the plan's patch size in voxels; checked here, so that an unfit plan fails before training.
            strides: stride of every stage of the plan, the first being 1.
            kernel_sizes: kernel of every stage of the plan.
            options: any keyword of the constructor but `strides` and `kernel_sizes`.

        Raises:
            ValueError: if the plan's stages do not fit, or the patch is too small.
        """
        steps, kernels = extend_stages(strides, kernel_sizes, patch_size, cls.downsamplings(**options))
        network: Any = cls
        network = network(input_channels, num_classes, deep_supervision, strides=steps, kernel_sizes=kernels, **options)
        network.check_patch(patch_size)
        return network

    def check_patch(self, patch_size: Sequence[int]) -> None:
        """Check that the network can take the patches of a plan.

        Raises:
            ValueError: if it cannot, with the remedy.
        """
        try:
            self.check_size(patch_size)
        except ValueError as error:
            raise ValueError(f"{error}. Use a larger patch size in the plans file.") from None

    def set_strides(self, strides: Sizes, kernel_sizes: Sizes, levels: int) -> None:
        """Keep the strides.

        Raises:
            ValueError: if there are not two levels at least, one kernel for each, and one stride between each two.
        """
        if levels < 2:
            raise ValueError(f"{self.name} has at least two levels, got {levels}")
        if len(kernel_sizes) != levels or len(strides) != levels - 1:
            raise ValueError(
                f"{self.name} with {levels} levels needs {levels} kernels and {levels - 1} strides, "
                f"got {len(kernel_sizes)} and {len(strides)}"
            )
        self.strides = [tuple(stride) for stride in strides]

    def sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the size of the map at every scale, from the image's own."""
        found = [tuple(size)]
        for stride in self.strides:
            up = [s - 1 if self.rounds_up else 0 for s in stride]
            found.append(tuple((n + u) // s for n, u, s in zip(found[-1], up, stride, strict=True)))
        return found

    def check_size(self, size: Sequence[int]) -> None:
        """Check that the network can take an image of this size.

        Raises:
            ValueError: if too few voxels are left at the coarsest scale; it names an axis and the smallest size of it
                that works.
        """
        if len(size) != len(self.strides[0]):
            raise ValueError(
                f"{self.name} was built for {len(self.strides[0])}D images, got a spatial size {tuple(size)}"
            )
        left = self.sizes(size)[-1]
        if min(left) < 1:
            raise self._too_small(size, left.index(min(left)), 1)
        if math.prod(left) < self.least_voxels:
            # The longest axis that is reduced at all is the one that is easiest to enlarge.
            axis = max(range(len(size)), key=lambda a: (any(s[a] > 1 for s in self.strides), size[a]))
            raise self._too_small(size, axis, self.least_voxels)

    def _too_small(self, size: Sequence[int], axis: int, needed: int) -> ValueError:
        def left(n: int) -> int:
            return self.sizes([*size[:axis], n, *size[axis + 1 :]])[-1][axis]

        # The steps divide by no more than the product of all strides, so the search ends.
        enough = needed * math.prod(stride[axis] for stride in self.strides)
        smallest = next(n for n in range(1, enough + 1) if left(n) >= needed)
        return ValueError(
            f"{self.name}: an image of {'x'.join(map(str, size))} voxels is too small, it leaves no more than one "
            f"voxel at the coarsest scale: axis {axis} has {size[axis]} and needs at least {smallest}"
        )
