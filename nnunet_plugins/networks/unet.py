"""nnU-Net's own U-Net with one kind of block changed, the cleanest comparison there is: what such networks share.

They take the U-Net that nnU-Net has built for its plan (PlainConvUNet or ResidualEncoderUNet, 2D or 3D) and change it
in place. Everything else, deep supervision and the names and shapes of its weights included, stays as it was.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn


def stage_sizes(unet: Any, patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the size of the feature map of every encoder stage, in voxels.

    Raises:
        ValueError: if the patch cannot be halved as often as the U-Net does, naming axis and remedy.
    """
    sizes = [tuple(patch_size)]
    strides = [tuple(stride) for stride in unet.encoder.strides]
    for axis, n in enumerate(patch_size):
        multiple = 1
        for stride in strides:
            multiple *= stride[axis]
        if n % multiple:
            raise ValueError(
                f"the U-Net cannot take a patch of {'x'.join(map(str, patch_size))} voxels: axis {axis} has {n} and "
                f"needs at least {multiple}, or a multiple of it. Change the patch size in the plans file."
            )
    for stride in strides:
        sizes.append(tuple(n // s for n, s in zip(sizes[-1], stride, strict=True)))
    return sizes[1:]


def convolution_blocks(stage: nn.Module) -> list[Any]:
    """Return the blocks of a stage with a kernel of more than one voxel, in forward order.

    A block is nnU-Net's convolution with norm and nonlinearity, a module with `conv` and `all_modules`.
    """
    blocks: list[Any] = [m for m in stage.modules() if isinstance(getattr(m, "conv", None), (nn.Conv2d, nn.Conv3d))]
    return [block for block in blocks if max(block.conv.kernel_size) > 1]
