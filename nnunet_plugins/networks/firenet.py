"""FIRENet: a shallow residual encoder-decoder around a dense residual fabric.

Idea: keep the encoder-decoder shallow (two poolings) and put the capacity into a fabric of multi-scale cells whose
edges the network weighs itself; it takes images of any size.
Paper: Liu et al. 2020, "Fabric Image Representation Encoding Networks for Large-scale 3D Medical Image Analysis"
(arXiv:2006.15578), section III-A and Fig. 1.

    image ─ ResUnit 32 ───────────── conv 32 ──────────────── WRS ─ ResUnit 32 ─ 1x1x1 ─ logits
               │ pool                                          │ 1x1x1 to 32, up
            ResUnit 64 ──────── conv 64 ───────── WRS ─ ResUnit 64
               │ pool                              │ up
               └──────────── fabric 64 ────────────┘

Deviations and readings: one output scale, so there is nothing to supervise deeply; with `deep_supervision=True` the
logits come in a list of one, as nnU-Net's loss wrapper expects. The paper's "convolutional blocks" on the shortcuts are
conv-norm-activation-dropout. The decoder's gates are the 4 WRS weights beside the fabric's 37. Strides, kernels and the
dimension adapt to an nnU-Net plan (`FIRENet.from_plan`).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from nnunet_plugins.networks.fabric import DenseResidualFabric
from nnunet_plugins.networks.layers.blocks import (
    MAX_POOL,
    ConvBlock,
    ResidualUnit,
    convolution,
    initialise_he,
    pointwise,
    upsample,
)
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.layers.recompute import recompute
from nnunet_plugins.networks.layers.wrs import WRS
from nnunet_plugins.networks.pyramid import Pyramid, Sizes

# Residual units per branch of the ablation twin, chosen so that at the paper's widths its parameters match the
# fabric's within 0.3 per cent and the whole network's multiply-adds within 0.1 per cent.
RESIDUAL_UNITS = (6, 5, 4)


class ResidualPyramid(nn.Module):
    """The fabric's ablation twin: the same scales and about as many parameters, but one plain path of residual units.

    Down: residual units, strided convolution, residual units ... Up: linear interpolation and addition. No gates, no
    dilation, no exchange between scales. `(N, channels, *size)` to `(N, channels, *size)`.
    """

    def __init__(self, channels: int, kernel_sizes: Sizes, strides: Sizes, *, dropout: float = 0.0) -> None:
        super().__init__()
        dim = len(kernel_sizes[0])
        if len(kernel_sizes) != len(RESIDUAL_UNITS):
            raise ValueError(f"the ablation twin has {len(RESIDUAL_UNITS)} scales, got {len(kernel_sizes)} kernels")
        widths = [channels] + [2 * channels] * (len(kernel_sizes) - 1)
        self.strides = [tuple(stride) for stride in strides]
        self.ise = ISE()
        self.branches = nn.ModuleList(
            nn.Sequential(*(ResidualUnit(width, width, kernel, dropout=dropout) for _ in range(units)))
            for width, kernel, units in zip(widths, kernel_sizes, RESIDUAL_UNITS, strict=True)
        )
        self.down = nn.ModuleList(
            convolution(fine, coarse, kernel, stride=stride)
            for (fine, coarse), kernel, stride in zip(pairwise(widths), kernel_sizes[1:], strides, strict=True)
        )
        self.up = nn.ModuleList(
            pointwise(coarse, fine, dim) if fine != coarse else nn.Identity() for fine, coarse in pairwise(widths)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, channels, *size)` to `(N, channels, *size)`."""
        maps = [self.branches[0](x)]
        for down, branch in zip(self.down, self.branches[1:], strict=True):
            maps.append(branch(down(maps[-1])))
        x = maps.pop()
        for up, stride in zip(reversed(self.up), reversed(self.strides), strict=True):
            finer = maps.pop()
            x = finer + self.ise(upsample(up(x), stride), finer.shape[2:])
        return x


class Encoder(nn.Module):
    """Residual units with floor max-pooling after each; returns their outputs before pooling, then the pooled last."""

    def __init__(
        self, input_channels: int, features: Sequence[int], kernel_sizes: Sizes, strides: Sizes, *, dropout: float
    ) -> None:
        super().__init__()
        dim = len(kernel_sizes[0])
        self.stages = nn.ModuleList(
            ResidualUnit(before, after, kernel, dropout=dropout)
            for (before, after), kernel in zip(pairwise([input_channels, *features]), kernel_sizes, strict=True)
        )
        self.pools = nn.ModuleList(MAX_POOL[dim](tuple(stride), tuple(stride)) for stride in strides)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Map `(N, input_channels, *size)` to the skip tensors, finest first, and the bottleneck's input."""
        skips = []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            skips.append(stage(x))
            x = pool(skips[-1])
        return skips, x


class Decoder(nn.Module):
    """Per stage: upsample, equalise, gated sum with the shortcut's conv block, residual unit; then the output layer."""

    def __init__(
        self,
        features: Sequence[int],
        kernel_sizes: Sizes,
        strides: Sizes,
        num_classes: int,
        *,
        dropout: float,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        dim = len(kernel_sizes[0])
        self.deep_supervision = deep_supervision
        self.strides = [tuple(stride) for stride in strides]
        self.ise = ISE()
        self.shortcuts: Any = nn.ModuleList(
            ConvBlock(width, width, kernel, dropout=dropout)
            for width, kernel in zip(features, kernel_sizes, strict=True)
        )
        self.project = nn.ModuleList(
            pointwise(coarse, fine, dim) if coarse != fine else nn.Identity()
            for fine, coarse in pairwise([*features, features[-1]])
        )
        self.wrs = nn.ModuleList(WRS(2) for _ in features)
        self.random = dropout > 0
        self.stages = nn.ModuleList(
            ResidualUnit(width, width, kernel, dropout=dropout)
            for width, kernel in zip(features, kernel_sizes, strict=True)
        )
        # nnU-Net's transfer learning leaves out every key that contains ".seg_layers.".
        self.seg_layers = nn.ModuleList([pointwise(features[0], num_classes, dim)])

    def forward(self, skips: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map the encoder's skips and the bottleneck's output to logits `(N, num_classes, *size)`."""
        for level in reversed(range(len(self.stages))):
            shortcut = self.shortcuts[level]
            merge = partial(self._merge, level)
            x = self.stages[level](recompute(merge, x, shortcut[0](skips[level]), preserve_rng_state=self.random))
        logits = self.seg_layers[0](x)
        return [logits] if self.deep_supervision else logits

    def _merge(self, level: int, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Sum the coarser map, brought up, and the shortcut, whose convolution has been done."""
        x = self.ise(upsample(self.project[level](x), self.strides[level]), z.shape[2:])
        return self.wrs[level]([x, self.shortcuts[level].finish(z)])


class FIRENet(Pyramid):
    """FIRENet, in 2D or 3D; `FIRENet(input_channels=1, num_classes=3)` is the paper's network.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one instead of bare; changes no parameter.
        strides: downsampling factor per axis of the two poolings and of the W - 1 steps between the fabric's branches.
        kernel_sizes: kernel per axis of the stages, `len(strides) + 1` of them; their length decides between 2D and 3D.
        features: channels of the encoder's stages and, mirrored, the decoder's; the last is the fabric's C.
        depth: N, cells per fabric branch.
        dilations: dilation rates in every fabric cell.
        dropout: probability of the elementwise dropout after every activation.
        bottleneck: "fabric", or "residual" for the ablation twin without one.

    Raises:
        ValueError: for options out of range, and in `forward` for an image too small, naming axis and smallest size.

    Example:
        >>> FIRENet(input_channels=1, num_classes=3)(torch.zeros(1, 1, 20, 24, 21)).shape
        torch.Size([1, 3, 20, 24, 21])
    """

    name = "FIRENet"
    least_voxels = 2  # over which instance norm has statistics

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sizes = ((2, 2, 2),) * 4,
        kernel_sizes: Sizes = ((3, 3, 3),) * 5,
        features: Sequence[int] = (32, 64),
        depth: int = 4,
        dilations: Sequence[int] = (1, 2, 4),
        dropout: float = 0.5,
        bottleneck: str = "fabric",
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability of at least 0 and below 1, got {dropout}")
        if len(kernel_sizes) != len(strides) + 1 or len(strides) < len(features):
            raise ValueError(
                f"{len(features)} encoder stages need at least as many strides and one kernel more than strides, "
                f"got {len(strides)} strides and {len(kernel_sizes)} kernels"
            )
        self.strides = [tuple(stride) for stride in strides]
        self.num_pools = pools = len(features)
        self.encoder = Encoder(input_channels, features, kernel_sizes[:pools], strides[:pools], dropout=dropout)
        self.bottleneck: nn.Module
        if bottleneck == "fabric":
            self.bottleneck = DenseResidualFabric(
                features[-1], kernel_sizes[pools:], strides[pools:], depth=depth, dilations=dilations, dropout=dropout
            )
        elif bottleneck == "residual":
            self.bottleneck = ResidualPyramid(features[-1], kernel_sizes[pools:], strides[pools:], dropout=dropout)
        else:
            raise ValueError(f"bottleneck must be 'fabric' or 'residual', got {bottleneck!r}")
        self.decoder = Decoder(
            features,
            kernel_sizes[:pools],
            strides[:pools],
            num_classes,
            dropout=dropout,
            deep_supervision=deep_supervision,
        )
        self.apply(initialise_he)

    @classmethod
    def downsamplings(cls, **_: Any) -> int:
        """Return the paper's number: two poolings, and two steps between the fabric's branches."""
        return 4

    def sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the size of the map at every scale: poolings round down, the fabric's convolutions up."""
        found = [tuple(size)]
        for number, stride in enumerate(self.strides):
            pools = number < self.num_pools
            found.append(tuple(n // s if pools else -(-n // s) for n, s in zip(found[-1], stride, strict=True)))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`."""
        self.check_size(x.shape[2:])
        skips, x = self.encoder(x)
        return self.decoder(skips, self.bottleneck(x))

    def gate_values(self) -> dict[str, float]:
        """Return all gates as they are now, 0 to 1: the fabric's, if there is one, and the decoder's, finest first."""
        gates = self.bottleneck.gate_values() if isinstance(self.bottleneck, DenseResidualFabric) else {}
        for level, wrs in enumerate(self.decoder.wrs, start=1):
            assert isinstance(wrs, WRS)
            below, shortcut = wrs.gates.tolist()
            gates |= {f"decoder {level} <- below": below, f"decoder {level} <- shortcut": shortcut}
        return gates

    def frozen_gates(self, stage: int) -> list[nn.Parameter]:
        """WRS weights that stand still in a stage of the paper's training (section III-A7).

        Stage 1: all of them. Stage 2: those outside the fabric. Stage 3: none.
        """
        if stage not in (1, 2, 3):
            raise ValueError(f"FIRENet trains in stages 1, 2 and 3, got {stage}")
        if stage == 3:
            return []
        root = self if stage == 1 else self.decoder
        return [module.weight for module in root.modules() if isinstance(module, WRS)]
