"""AutofocusUNet: nnU-Net's own U-Net with autofocus convolutions in its encoder.

Idea: the second convolution of each encoder stage, from the third stage on, becomes an autofocus convolution.
Paper: Qin et al. 2018 (arXiv:1805.08403); the U-Net is the plan's own.

    stage   1      2      3      4 ...  n
           ─┐     ─┐     A┐     A┐     A┐
            └──────└──────└──────└──────┘ decoder

An autofocus convolution keeps the weight and bias of the convolution it replaces, under their names, so that a stock
checkpoint lacks only the attention.

At the start the attention favours rate 1, where the paper's networks give all rates equal shares. Deep in a U-Net the
maps are small: a kernel dilated to fit just inside them meets zero padding with most of its taps, and what it adds
tells where in the patch a voxel is rather than what is there. On the Hippocampus plan (stages 3 and 4: 10x14x10 and
5x7x5 voxels) equal shares raised the part of the untrained convolutions' variance that all images have in common from
0.32 and 0.33 to 0.48 and 0.53; an advantage of 3 leaves it at 0.34 and 0.35.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.networks.topology import fit_rates
from nnunet_plugins.networks.unet import convolution_blocks, stage_sizes


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
