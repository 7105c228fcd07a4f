"""Draw the autofocus layer, its family and the changed U-Nets as SVGs, from the networks the code builds.

`python docs/draw_autofocus.py`. The networks are built without memory, on torch's "meta" device.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from draw_fabric import BOX, FILL, LINES, arrow, box, svg
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_plugins.networks.afnet import AFNet
from nnunet_plugins.networks.aspp3d_unet import ASPP3DUNet
from nnunet_plugins.networks.autofocus_unet import AutofocusUNet
from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.autofocus import AutofocusConv

IMAGES = Path(__file__).parent / "images"
GREY, BLUE, ORANGE = FILL.values()
HALF_WIDTH, HALF_HEIGHT = BOX[0] // 2, BOX[1] // 2
AFN = 4  # the drawn member of the family
PATCH = 128  # voxels per axis, for the U-Nets


def text(x: int, y: int, words: str, style: str = "small") -> str:
    """Words around `x`, or from `x` on for style "left"."""
    return f'<text x="{x}" y="{y}" class="{style}">{words}</text>'


def title(x: int, y: int, words: str) -> str:
    """Return a heading that begins at `x`."""
    return f'<text x="{x}" y="{y}" class="left" style="font-weight:bold">{words}</text>'


def line(shape: str, kind: str = "along") -> str:
    """An arrow along any path."""
    return f'<path d="{shape}" stroke="{LINES[kind]}" marker-end="url(#{kind})"/>'


def legend(x: int, y: int, entries: Sequence[tuple[str, str, int]]) -> list[str]:
    """Squares of a colour and what they mean, each with the width it takes."""
    parts = []
    for fill, words, width in entries:
        parts.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" rx="3" fill="{fill}"/>')
        parts.append(text(x + 20, y, words, "small left"))
        x += width
    return parts


def rate_of(convolution: Any) -> list[int]:
    """Dilation rates of a convolution or an autofocus layer, along its first axis."""
    rates = convolution.rates if isinstance(convolution, AutofocusConv) else [convolution.dilation]
    return [rate[0] for rate in rates]


def layers(network: AFNet) -> list[tuple[int, list[int]]]:
    """Channels and dilation rates of the eight layers."""
    kinds = (nn.Conv3d, AutofocusConv)
    inside_attention = {
        part for module in network.modules() if isinstance(module, AutofocusConv) for part in module.attention
    }
    return [
        (module.weight.shape[0], rate_of(module))
        for module in network.pathway.modules()
        if isinstance(module, kinds) and module not in inside_attention and module.kernel_size == (3, 3, 3)
    ]


def draw_layer(rates: Sequence[int]) -> list[str]:
    """The autofocus layer: attention above, the dilated convolutions below it."""
    row, first, middle = 62, 142, 142 + 31 * (len(rates) - 1)
    x_input, x_conv, x_times, x_sum, top = 100, 340, 540, 680, 64
    parts = [title(20, 26, "The autofocus layer")]
    parts.append(line(f"M{x_input},{middle - HALF_HEIGHT} L{x_input},{top} L{x_conv - 70},{top}"))
    parts.append(box(x_conv, top, ("conv 3x3x3, ReLU", "C/2 channels"), GREY, (140, 44)))
    parts.append(arrow(x_conv + 70, top, x_times - 78, top))
    parts.append(box(x_times, top, ("conv 1x1x1, softmax", f"{len(rates)} attention maps"), GREY, (156, 44)))
    parts.append(text(x_times + 92, top - 4, "The attention: one map per rate.", "small left"))
    parts.append(text(x_times + 92, top + 12, "At every voxel the maps sum to one.", "small left"))
    bottom = first + row * (len(rates) - 1)
    parts.append(
        f'<rect x="{x_conv - 84}" y="{first - 34}" width="168" height="{bottom - first + 68}" rx="8" '
        'fill="none" stroke-dasharray="5 4"/>'
    )
    parts.append(text(x_conv, bottom + 50, "one kernel, shared by all rates"))
    bus = x_times - 48
    parts.append(f'<path d="M{bus},{top + HALF_HEIGHT} L{bus},{bottom - 24}" stroke="{LINES["down"]}"/>')
    for k, rate in enumerate(rates):
        y = first + k * row
        parts.append(arrow(x_input + HALF_WIDTH, middle, x_conv - 70, y))
        parts.append(arrow(x_conv + 70, y, x_times - 26, y))
        parts.append(line(f"M{bus},{y - 24} L{x_times},{y - 24} L{x_times},{y - 14}", "down"))
        parts.append(arrow(x_times + 26, y, x_sum - 30, middle))
        parts.append(box(x_conv, y, ("conv 3x3x3", f"dilation rate {rate}"), ORANGE, (140, 44)))
        parts.append(
            f'<rect x="{x_times - 26}" y="{y - 14}" width="52" height="28" rx="14" fill="white"/>'
            + text(x_times, y + 4, f"&#215; map {k + 1}")
        )
    parts.append(box(x_input, middle, ("input", "C channels"), GREY))
    parts.append(box(x_sum, middle, ("sum", "of all"), GREY, (60, 44)))
    parts.append(arrow(x_sum + 30, middle, x_sum + 110, middle))
    parts.append(box(x_sum + 152, middle, ("output", "C&#8242; channels"), GREY))
    return parts


def draw_family(top: int) -> list[str]:
    """The eight layers, and which of them are autofocus layers in AFN-1 to AFN-6."""
    with torch.device("meta"):
        members = [layers(AFNet(4, 5, autofocus_layers=n)) for n in range(1, 7)]
    y, step, left = top + 92, 108, 136
    parts = [title(20, top, f"The family: eight layers, all at full resolution; here AFN-{AFN}")]
    parts.append(arrow(left - 96, y, left - HALF_WIDTH, y, "image"))
    for number, (channels, rates) in enumerate(members[AFN - 1], start=1):
        x = left + step * (number - 1)
        fill = ORANGE if len(rates) > 1 else GREY if rates == [1] else BLUE
        parts.append(box(x, y, (f"layer {number}", f"{channels} ch"), fill))
        parts.append(text(x, y + 38, f"rate{'s' * (len(rates) > 1)} {', '.join(map(str, rates))}"))
        parts.append(arrow(x + HALF_WIDTH, y, x + step - HALF_WIDTH, y))
    for first in (3, 5, 7):
        start, end = left + step * (first - 1) - step // 2 + 3, left + step * first + step // 2 - 6
        parts.append(line(f"M{start},{y} C{start},{y - 62} {end},{y - 62} {end},{y - 2}", "shortcut"))
    parts.append(box(left + step * 8, y, ("1x1x1", "logits"), GREY))
    right = left + step * 7 + HALF_WIDTH
    for n, member in enumerate(members, start=1):
        changed = [number for number, (_, rates) in enumerate(member) if len(rates) > 1]
        bar, start = y + 52 + 18 * (n - 1), left + step * changed[0] - HALF_WIDTH
        stroke = "" if n == AFN else ' style="stroke:none"'
        shape = f'x="{start}" y="{bar}" width="{right - start}" height="12" rx="3"'
        parts.append(f'<rect {shape} fill="{ORANGE}"{stroke}/>')
        parts.append(text(start - 26, bar + 10, f"AFN-{n}"))
    y += 188
    squares = [(GREY, "convolution", 120), (BLUE, "dilated convolution", 165), (ORANGE, "autofocus", 105)]
    parts += legend(40, y, squares)
    for x, kind, words in (
        (430, "down", "attention maps"),
        (590, "shortcut", "residual, through a 1x1x1 convolution where the channels grow"),
    ):
        parts.append(f'<path d="M{x},{y - 4} L{x + 34},{y - 4}" stroke="{LINES[kind]}"/>')
        parts.append(text(x + 40, y, words, "small left"))
    return parts


def draw_autofocus() -> str:
    """Return the layer and the family as SVG text."""
    with torch.device("meta"):
        rates = layers(AFNet(4, 5, autofocus_layers=1))[-1][1]
    parts = draw_layer(rates) + draw_family(430)
    label = "The autofocus layer, and which of eight layers are autofocus layers in AFN-1 to AFN-6"
    return svg(1090, 730, label, parts)


def plain_unet() -> PlainConvUNet:
    """Build the U-Net of nnU-Net's default plan for an isotropic patch of 128 voxels per axis."""
    features = (32, 64, 128, 256, 320, 320)
    n = len(features)
    return PlainConvUNet(
        1,
        n,
        features,
        nn.Conv3d,
        [[3] * 3] * n,
        [[1] * 3] + [[2] * 3] * (n - 1),
        2,
        3,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def draw_unet(left: int, name: str, change: Callable[..., Any]) -> list[str]:
    """One U-Net with its changed blocks marked."""
    with torch.device("meta"):
        encoder = change(plain_unet(), (PATCH,) * 3).encoder
    parts = [title(left + 20, 26, name)]
    first, second, third, up = left + 128, left + 228, left + 328, left + 430
    top, row = 76, 66
    last = len(encoder.stages) - 1
    voxels = PATCH
    for number, stage in enumerate(encoder.stages):
        y = top + number * row
        voxels //= encoder.strides[number][0]
        parts.append(text(left + 50, y - 2, f"stage {number + 1}"))
        parts.append(text(left + 50, y + 13, f"{encoder.output_channels[number]} ch, {voxels}&#179;"))
        changed = next((m for m in stage.modules() if isinstance(m, (AutofocusConv, ASPP3D))), None)
        parts.append(box(first, y, ("conv", f"stride {encoder.strides[number][0]}"), GREY))
        if isinstance(changed, AutofocusConv):
            parts.append(box(second, y, ("autofocus", " ".join(map(str, rate_of(changed)))), ORANGE))
        else:
            parts.append(box(second, y, ("conv", "stride 1"), GREY))
        parts.append(arrow(first + HALF_WIDTH, y, second - HALF_WIDTH, y))
        if number < last:
            parts.append(arrow(second + HALF_WIDTH, y, up - HALF_WIDTH, y))
            parts.append(box(up, y, ("conv, conv", "decoder"), GREY))
            parts.append(arrow(up + HALF_WIDTH, y, up + HALF_WIDTH + 38, y, "logits"))
            half, below = y + row // 2, y + row - HALF_HEIGHT
            parts.append(line(f"M{second},{y + HALF_HEIGHT} L{second},{half} L{first},{half} L{first},{below}", "down"))
        else:
            end = second + HALF_WIDTH
            if isinstance(changed, ASPP3D):
                rates = [rate_of(branch[0])[0] for branch in changed.branches if isinstance(branch, nn.Sequential)]
                parts.append(arrow(end, y, third - HALF_WIDTH, y))
                parts.append(box(third, y, ("ASPP3D", f"{' '.join(map(str, rates))}, mean"), BLUE))
                end = third + HALF_WIDTH
            parts.append(line(f"M{end},{y} L{up},{y} L{up},{y - row + HALF_HEIGHT}", "up"))
        if number < last - 1:
            parts.append(line(f"M{up},{y + row - HALF_HEIGHT} L{up},{y + HALF_HEIGHT}", "up"))
    return parts


def draw_unets() -> str:
    """Return both U-Nets, side by side, as SVG text."""
    parts = draw_unet(0, "AutofocusUNet", AutofocusUNet) + draw_unet(540, "ASPP3DUNet", ASPP3DUNet)
    y = 480
    parts += legend(
        40,
        y,
        [
            (GREY, "as nnU-Net built it", 160),
            (ORANGE, "autofocus convolution with its dilation rates", 290),
            (BLUE, "ASPP3D with its dilation rates and the mean over all voxels", 400),
        ],
    )
    return svg(1090, 500, "nnU-Net's U-Net with the blocks that AutofocusUNet and ASPP3DUNet change", parts)


DRAWINGS: dict[Path, Callable[[], str]] = {
    IMAGES / "autofocus.svg": draw_autofocus,
    IMAGES / "unets.svg": draw_unets,
}

if __name__ == "__main__":
    for file, draw in DRAWINGS.items():
        file.write_text(draw())
        print(file)
