"""nnU-Net's own U-Net with one kind of block changed: the cleanest comparison there is.

`AutofocusUNet`: the second convolution of each encoder stage, from the third stage on, becomes an autofocus
convolution. `ASPP3DUNet`: an ASPP3D with an image-level branch follows the bottleneck.

    stage   1      2      3      4 ...  n                         1      2      3      4 ...  n
           ─┐     ─┐     A┐     A┐     A┐                        ─┐     ─┐     ─┐     ─┐     ─ ASPP3D
            └──────└──────└──────└──────┘ decoder                 └──────└──────└──────└──────┘ decoder

Both take the U-Net that nnU-Net has built for its plan (PlainConvUNet or ResidualEncoderUNet, 2D or 3D) and change it
in place. Everything else, deep supervision and the names and shapes of its weights included, stays as it was. An
autofocus convolution keeps the weight and bias of the convolution it replaces, under their names, so that a stock
checkpoint lacks only the attention.

At the start the attention favours rate 1, where the paper's networks give all rates equal shares. Deep in a U-Net the
maps are small: a kernel dilated to fit just inside them meets zero padding with most of its taps, and what it adds
tells where in the patch a voxel is rather than what is there. On the Hippocampus plan (stages 3 and 4: 10x14x10 and
5x7x5 voxels) equal shares raised the part of the untrained convolutions' variance that all images have in common from
0.32 and 0.33 to 0.48 and 0.53; an advantage of 3 leaves it at 0.34 and 0.35.
Papers: Qin et al. 2018 (arXiv:1805.08403); Liu et al. 2020 (arXiv:2006.15578), section III-A1; Chen et al. 2017
(arXiv:1706.05587), section 3.3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.networks.layers.blocks import initialise_he
from nnunet_plugins.networks.topology import fit_rates


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


def AutofocusUNet(  # noqa: N802 - it stands where other backbones have a class
    unet: Any,
    patch_size: Sequence[int],
    *,
    first_stage: int = 3,
    rates: Sequence[int] = (1, 2, 4, 8),
    advantage: float = 3.0,
    detach_attention: bool = False,
) -> nn.Module:
    """Replace the second convolution of the encoder's later stages by autofocus convolutions, in place.

    Args:
        unet: a U-Net as nnU-Net builds it.
        patch_size: voxels per axis.
        first_stage: the first stage that changes; stage 1 is full resolution.
        rates: dilation rates, in each stage cut to those whose kernel, 2 r + 1 voxels long, fits the feature map.
        advantage: by how much the attention's logit of the first rate exceeds the others' at the start; 3 gives the
            first of four rates 87 per cent, 0 gives equal shares.
        detach_attention: keep the attention's gradient out of the trunk.

    Returns:
        `unet` itself.

    Raises:
        ValueError: if no stage has room for a second rate, or the patch does not fit the U-Net.
    """
    sizes = stage_sizes(unet, patch_size)
    changed = 0
    for stage, size in list(zip(unet.encoder.stages, sizes, strict=True))[first_stage - 1 :]:
        blocks = convolution_blocks(stage)
        if len(blocks) < 2:
            continue
        block = blocks[1]
        fitting = fit_rates(rates, size, block.conv.kernel_size)
        # With a single rate the attention has nothing to choose from.
        if len(fitting) > 1:
            _replace_convolution(block, fitting, advantage, detach_attention)
            changed += 1
    if not changed:
        raise ValueError(
            f"AutofocusUNet: no encoder stage from the {first_stage}. on has a second convolution and room for two of "
            f"the dilation rates {tuple(rates)}; their feature maps have {sizes[first_stage - 1 :]} voxels. "
            "Use a larger patch size in the plans file."
        )
    return unet


def _replace_convolution(block: Any, rates: Sequence[Sequence[int]], advantage: float, detach_attention: bool) -> None:
    stock = block.conv
    focus = AutofocusConv(
        stock.in_channels,
        stock.out_channels,
        stock.kernel_size,
        rates=rates,
        bias=stock.bias is not None,
        detach_attention=detach_attention,
    )
    focus.favour_first_rate(advantage)
    with torch.no_grad():
        focus.weight.copy_(stock.weight)
        if stock.bias is not None and focus.bias is not None:
            focus.bias.copy_(stock.bias)
    # nnU-Net registers the convolution under two names.
    block.all_modules[list(block.all_modules).index(stock)] = focus
    block.conv = focus


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
