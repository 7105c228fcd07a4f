"""ASPP3DUNet: nnU-Net's own U-Net with an ASPP3D after its bottleneck.

Idea: an atrous spatial pyramid pooling with an image-level branch follows the last encoder stage.
Papers: Liu et al. 2020 (arXiv:2006.15578), section III-A1; Chen et al. 2017 (arXiv:1706.05587), section 3.3; the U-Net
is the plan's own.

    stage   1      2      3      4 ...  n
           ─┐     ─┐     ─┐     ─┐     ─ ASPP3D
            └──────└──────└──────└──────┘ decoder
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.blocks import initialise_he
from nnunet_plugins.networks.unet import convolution_blocks, stage_sizes


def ASPP3DUNet(  # noqa: N802 - it stands where other backbones have a class
    unet: Any,
    patch_size: Sequence[int],
    *,
    dilations: Sequence[int] = (1, 2, 4),
    image_level: str | None = "pooled",
) -> nn.Module:
    """Let an ASPP3D follow the last encoder stage, in place.

    Args:
        unet: a U-Net as nnU-Net builds it.
        patch_size: voxels per axis.
        dilations: dilation rates; on an axis with n voxels at the bottleneck at most n - 1, beyond which the kernel
            would see nothing but padding.
        image_level: as in `ASPP3D`.

    Returns:
        `unet` itself.

    Raises:
        ValueError: if the patch does not fit the U-Net.
    """
    size = stage_sizes(unet, patch_size)[-1]
    width = unet.encoder.output_channels[-1]
    last = unet.encoder.stages[-1]
    kernel_size = convolution_blocks(last)[-1].conv.kernel_size
    rates = [tuple(max(1, min(rate, n - 1)) for n in size) for rate in dilations]
    aspp = ASPP3D(width, width, kernel_size, dilations=rates, image_level=image_level)
    aspp.apply(initialise_he)
    # A stage is a sequence, or, in the residual encoder, holds one as `blocks`.
    getattr(last, "blocks", last).append(aspp)
    return unet
