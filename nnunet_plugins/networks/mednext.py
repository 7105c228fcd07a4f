"""MedNeXt: ConvNeXt's blocks in a U-Net, in four sizes and with kernels 3 and 5.

Idea: a depthwise convolution with a large kernel looks around, two pointwise ones mix the channels; residual blocks of
that kind reduce and enlarge as well, and deep supervision reaches every scale.
Paper: Roy et al. 2023, "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation" (MICCAI,
arXiv:2303.09975), section 2 and Table 1; the authors' code is github.com/MIC-DKFZ/MedNeXt (Apache-2.0).

    block    x ─┬─ depthwise k ─ norm ─ 1x1x1 to R C ─ GELU ─ 1x1x1 ─ + ─
                └──────────────────────────────────────────────────── ┘
    down     the same with stride 2 and twice the channels; 1x1x1 with stride 2 beside it
    up       the same transposed, with half the channels; a voxel of zeros in front makes 2 n - 1 to 2 n

    image ─ 1x1x1 ─ blocks ────────────────────── + ─ blocks ─ 1x1x1 ─ logits
                       └ down ─ blocks ────── + ─ blocks ─ up ┘     (four times, channels 32 to 512)

The norm is a group norm with a group for each channel, which is an instance norm. In training, what lies between the
depthwise and the last convolution is computed twice instead of being kept, as the authors offer it for whole blocks.

Deviations: strides and kernels adapt to a plan, which the authors' code does not; along axes with kernel 1 kernels stay
1. Maps of odd sizes are rounded up on the way down and lose a voxel at the far end on the way up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.layers.blocks import CONVOLUTION, INSTANCE_NORM, INTERPOLATION, pointwise, same_padding
from nnunet_plugins.networks.layers.double_convolution import TRANSPOSED
from nnunet_plugins.networks.layers.heads import Heads
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.layers.recompute import recompute
from nnunet_plugins.networks.pyramid import Pyramid, Sizes

BLOCKS = (2,) * 9
RATIOS = (2,) * 9


class Block(nn.Module):
    """A residual block of depthwise and pointwise convolutions; `(N, in, *size)` to `(N, out, *other)`.

    Args:
        in_channels: C, of the input.
        out_channels: of the output; another number than C goes with a stride.
        ratio: R; there are R C channels between the pointwise convolutions.
        kernel_size: of the depthwise convolution, per axis.
        stride: by which the block reduces, rounded up, or enlarges.
        up: whether it enlarges.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        ratio: int,
        kernel_size: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        up: bool = False,
    ) -> None:
        super().__init__()
        dim = len(kernel_size)
        kind: Any = TRANSPOSED[dim] if up else CONVOLUTION[dim]
        step = tuple(stride or (1,) * dim)
        self.depthwise = kind(
            in_channels,
            in_channels,
            tuple(kernel_size),
            step,
            padding=same_padding(kernel_size, (1,) * dim),
            groups=in_channels,
        )
        self.norm = INSTANCE_NORM[dim](in_channels, affine=True)
        self.expand = pointwise(in_channels, ratio * in_channels, dim)
        self.compress = pointwise(ratio * in_channels, out_channels, dim)
        self.skip: nn.Module = kind(in_channels, out_channels, (1,) * dim, step) if stride else nn.Identity()
        # A transposed convolution makes s (n - 1) + 1 of n. functional.pad counts axes from the last one.
        self.missing = [n for s in reversed(step) for n in (s - 1, 0)] if up else [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *other)`."""
        y = recompute(self._mix, self.depthwise(x)) + self.skip(x)
        return functional.pad(y, self.missing) if any(self.missing) else y

    def _mix(self, z: torch.Tensor) -> torch.Tensor:
        return self.compress(functional.gelu(self.expand(self.norm(z))))


class MedNeXt(Pyramid):
    """MedNeXt, in 2D or 3D; by default S with kernel 3.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the outputs of all scales in a list, full size first; changes no parameter.
        strides: between the scales, per axis.
        kernel_sizes: kernel per axis at every scale; where it is more than 1, it is replaced by `kernel`.
        width: channels at full size; they double at every scale.
        kernel: the depthwise convolutions' along axes where the plan has more than 1.
        blocks: at every scale, down to the coarsest and up again.
        ratios: R of these blocks; those that reduce or enlarge have that of the scale to which they lead, as in the
            authors' code.

    Raises:
        ValueError: for options out of range, and in `forward` for an image too small, naming axis and smallest size.

    Example:
        >>> small = {"width": 4, "blocks": (1,) * 3, "ratios": (2,) * 3}
        >>> mednext = MedNeXt(1, 3, strides=((2, 2),), kernel_sizes=((3, 3),) * 2, **small)
        >>> mednext(torch.zeros(1, 1, 21, 24)).shape
        torch.Size([1, 3, 21, 24])
    """

    name = "MedNeXt"
    rounds_up = True
    least_voxels = 2

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sizes,
        kernel_sizes: Sizes,
        width: int = 32,
        kernel: int = 3,
        blocks: Sequence[int] = BLOCKS,
        ratios: Sequence[int] = RATIOS,
    ) -> None:
        super().__init__()
        if len(blocks) != len(ratios) or len(blocks) % 2 == 0 or min(*blocks, *ratios) < 1 or kernel % 2 == 0:
            raise ValueError(
                "MedNeXt has blocks at every scale down, at the coarsest and up again, each with a ratio, and an odd "
                f"kernel; got blocks={tuple(blocks)}, ratios={tuple(ratios)} and kernel={kernel}"
            )
        steps = len(blocks) // 2
        self.set_strides(strides, kernel_sizes, steps + 1)
        dim = len(kernel_sizes[0])
        kernels = [tuple(kernel if k > 1 else 1 for k in sizes) for sizes in kernel_sizes]
        widths = [width * 2**level for level in range(steps + 1)]

        def stage(level: int, number: int, ratio: int) -> nn.Sequential:
            one = (widths[level], widths[level], ratio, kernels[level])
            return nn.Sequential(*(Block(*one) for _ in range(number)))

        def change(before: int, after: int, ratio: int) -> Block:
            coarse = max(before, after)
            stride = self.strides[coarse - 1]
            return Block(widths[before], widths[after], ratio, kernels[coarse], stride=stride, up=before > after)

        self.stem = pointwise(input_channels, width, dim)
        levels = [*range(steps + 1), *reversed(range(steps))]
        stages = [stage(*one) for one in zip(levels, blocks, ratios, strict=True)]
        self.encoder, self.expansion = nn.ModuleList(stages[: steps + 1]), nn.ModuleList(stages[steps + 1 :][::-1])
        self.down = nn.ModuleList(change(level, level + 1, ratios[level + 1]) for level in range(steps))
        self.up = nn.ModuleList(change(level + 1, level, ratios[-1 - level]) for level in range(steps))
        self.ise = ISE()
        self.decoder = Heads(widths, num_classes, dim, deep_supervision=deep_supervision)

    @classmethod
    def downsamplings(cls, *, blocks: Sequence[int] = BLOCKS, **_: Any) -> int:
        """Return how many steps there are between the scales."""
        return len(blocks) // 2

    def output_sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the size of each output for an image's, full size first."""
        return self.sizes(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`, or to those of all scales."""
        self.check_size(x.shape[2:])
        skips = [self.encoder[0](self.stem(x))]
        for down, stage in zip(self.down, self.encoder[1:], strict=True):
            skips.append(stage(down(skips[-1])))
        maps = [skips.pop()]
        for up, stage in zip(reversed(self.up), reversed(self.expansion), strict=True):
            skip = skips.pop()
            maps.insert(0, stage(skip + self.ise(up(maps[0]), skip.shape[2:])))
        return self.decoder(maps)

    def adopt(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return another MedNeXt's weights in the form of this one's, which may have larger kernels (UpKern).

        The kernels of the depthwise convolutions are interpolated linearly, as in section 2.3 of the paper; all other
        weights are as they were. What does not fit is returned as it is.
        """
        own = self.state_dict()
        return {key: self._grown(value, own[key]) if key in own else value for key, value in weights.items()}

    @staticmethod
    def _grown(kernel: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        size = like.shape[2:]
        grows = kernel.dim() == like.dim() and kernel.shape[:2] == like.shape[:2] and kernel.shape != like.shape
        if (
            not grows
            or len(size) not in INTERPOLATION
            or any(a > b for a, b in zip(kernel.shape, like.shape, strict=True))
        ):
            return kernel
        return functional.interpolate(kernel, size=size, mode=INTERPOLATION[len(size)], align_corners=False)
