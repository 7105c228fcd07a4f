"""The autofocus family: BASIC, AFN-1 to AFN-6, ASPP-S, ASPP-C and DeepMedic, one network with options.

Idea: eight convolution layers at full resolution, without any pooling; context comes from dilation, and in the last n
layers from autofocus convolutions, which choose their dilation rate at every voxel.
Paper: Qin et al. 2018, "Autofocus Layer for Semantic Segmentation" (MICCAI, arXiv:1805.08403), sections 2.3 and 3;
the authors' code is github.com/yaq007/Autofocus-Layer. DeepMedic: Kamnitsas et al. 2017 (Medical Image Analysis 36).

              layers 1, 2     3, 4      5, 6      7, 8
    channels    30, 30       40, 40    40, 40    50, 50
    rate         1            2         2         2          3 to 8: residual blocks of two layers each

    BASIC   image ─ pathway ─ 1x1x1 ─ logits
    AFN-n   the last n of layers 3 to 8 are autofocus layers, rates 2, 6, 10, 14
    ASPP-C  pathway ─┬ conv 30, rates 2, 6, 10, 14, concatenated ─ 1x1x1
    ASPP-S  pathway ─┬ conv 120, rates 2, 6, 10, 14, each with its own 1x1x1, summed
    DM      image ─┬ pathway, rate 1 ──────────────────────────┬ concatenated ─ 150 ─ 150 ─ 1x1x1
                   └ 1/3 resolution ─ pathway, rate 1 ─ x3 ────┘

Deviations: padding is "same", so any patch works, where the reference is "valid" (75^3 to 47^3); 14 voxels away from
the border BASIC gives the same. Weights start as nnU-Net's (He), the attention as the reference's. DeepMedic takes the
context of its low-resolution pathway from inside the patch. On anisotropic plans the rates shrink along the coarse
axes, so that they reach about as far in millimetres (`from_plan`).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.networks.layers.blocks import (
    BATCH_NORM,
    CHANNELS_LAST,
    Rate,
    convolution,
    initialise_he,
    per_axis,
    pointwise,
    type_kept,
)
from nnunet_plugins.networks.layers.device import device_type
from nnunet_plugins.networks.layers.head import Head
from nnunet_plugins.networks.topology import anisotropy

CHANNELS = (30, 30, 40, 40, 40, 40, 50, 50)
HIDDEN = 150
"""Channels of DeepMedic's two 1x1x1 layers."""


class ConvNorm(nn.Sequential):
    """Dilated convolution with batch norm, or an autofocus layer, with `options`, where there are several rates."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[Rate],
        dim: int,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        kernel_size = (3,) * dim
        if len(rates) == 1:
            self.append(convolution(in_channels, out_channels, kernel_size, dilation=rates[0]))
        else:
            self.append(AutofocusConv(in_channels, out_channels, kernel_size, rates=rates, **options))
        if len(rates) == 1 or not options.get("branch_norm"):
            self.append(BATCH_NORM[dim](out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        layer, *norm = self
        return layer(x, *norm) if isinstance(layer, AutofocusConv) else super().forward(x)


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, + skip, ReLU; `(N, in, *size)` to `(N, out, *size)`.

    Where the channels differ, the skip is a normalised 1x1x1 convolution, or, with `projection=False`, the input with
    channels of zeros added, as in DeepMedic.
    """

    def __init__(
        self, first: ConvNorm, second: ConvNorm, in_channels: int, out_channels: int, dim: int, *, projection: bool
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.relu = nn.ReLU(inplace=True)
        self.skip: nn.Module = nn.Identity()
        self.missing = 0
        if in_channels != out_channels:
            if projection:
                self.skip = nn.Sequential(pointwise(in_channels, out_channels, dim), BATCH_NORM[dim](out_channels))
            else:
                self.missing = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        y = self.second(self.relu(self.first(x)))
        skip = self.skip(x)
        if self.missing:
            # functional.pad counts axes from the last one, two numbers each; the channels come after the space.
            skip = functional.pad(skip, [0, 0] * (x.dim() - 2) + [0, self.missing])
        return self.relu(y + skip)


class Pathway(nn.Sequential):
    """The eight layers; `(N, in, *size)` to `(N, 50, *size)`. `rates` holds, for every layer, one rate or several.

    `options` are those of the autofocus layers, which have several.
    """

    def __init__(
        self,
        input_channels: int,
        rates: Sequence[Sequence[Rate]],
        dim: int,
        options: Mapping[str, Any],
        *,
        projection: bool = True,
    ) -> None:
        super().__init__()
        layers = [
            ConvNorm(before, after, rate, dim, options)
            for (before, after), rate in zip(pairwise([input_channels, *CHANNELS]), rates, strict=True)
        ]
        for layer in layers[:2]:
            self.append(nn.Sequential(layer, nn.ReLU(inplace=True)))
        for k in (2, 4, 6):
            block = ResidualBlock(
                layers[k], layers[k + 1], CHANNELS[k - 1], CHANNELS[k + 1], dim, projection=projection
            )
            self.append(block)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, input_channels, *size)` to `(N, 50, *size)`."""
        for block in self:
            if device_type(x) == "cpu":
                # Twice as fast at these widths: oneDNN's dilated convolutions like the channels last. Not once for the
                # image alone: with a single channel the two layouts are one, and torch would go on with the other.
                x = x.to(memory_format=CHANNELS_LAST[x.dim() - 2])
            x = block(x)
        return x


class Parallel(nn.Module):
    """ASPP of this paper: convolution, norm, ReLU per rate, without shared weights; returns one map per rate."""

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[Rate], dim: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(ConvNorm(in_channels, out_channels, (rate,), dim), nn.ReLU(inplace=True)) for rate in rates
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map `(N, in, *size)` to one `(N, out, *size)` per rate."""
        return [branch(x) for branch in self.branches]


class Context(nn.Module):
    """DeepMedic's second pathway: the mean over `factor` voxels per axis, a pathway, repeated back to full size."""

    def __init__(self, pathway: Pathway, factor: Sequence[int]) -> None:
        super().__init__()
        self.pathway = pathway
        self.factor = tuple(factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, 50, *size)`."""
        size = x.shape[2:]
        missing = [-n % f for n, f in zip(size, self.factor, strict=True)]
        # The voxels missing from the last group repeat the last one.
        x = functional.pad(x, [k for amount in reversed(missing) for k in (0, amount)], mode="replicate")
        pool = functional.avg_pool2d if len(size) == 2 else functional.avg_pool3d
        x = self.pathway(pool(x, self.factor))
        with type_kept(x):
            x = functional.interpolate(x, scale_factor=[float(f) for f in self.factor], mode="nearest")
        for axis, n in enumerate(size):
            x = x.narrow(axis + 2, 0, n)
        return x


class AFNet(nn.Module):
    """The autofocus family, in 2D or 3D; `AFNet(4, 5, autofocus_layers=6)` is the paper's AFN-6.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one instead of bare; changes no parameter.
        dim: spatial dimensions, 2 or 3.
        autofocus_layers: n of AFN-n: how many of layers 3 to 8, from the last, are autofocus layers; 0 is BASIC.
        aspp: "concat" for ASPP-C or "sum" for ASPP-S on BASIC's features, None for neither.
        pathways: 2 for DeepMedic, which has no dilation.
        rates: dilation rates of the autofocus layers and of ASPP.
        branch_norm: batch norm per branch of an autofocus layer, as in the authors' code; False is the paper's
            equation 3 with one norm after the sum.
        detach_attention: keep the attention's gradient out of the layers before it, as in the authors' code.
        form: how the autofocus layers are computed; see `layers.autofocus.FORMS`.
        coarseness: per axis, how much larger a voxel is than along the finest axis; rates are divided by it.

    Raises:
        ValueError: for options out of range or that exclude each other.

    Example:
        >>> AFNet(input_channels=4, num_classes=5, autofocus_layers=4)(torch.zeros(1, 4, 9, 12, 10)).shape
        torch.Size([1, 5, 9, 12, 10])
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        dim: int = 3,
        autofocus_layers: int = 0,
        aspp: str | None = None,
        pathways: int = 1,
        rates: Sequence[int] = (2, 6, 10, 14),
        branch_norm: bool = True,
        detach_attention: bool = True,
        form: str | None = None,
        coarseness: Sequence[int] | int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= autofocus_layers <= 6:
            raise ValueError(f"AFN-n has n = 1 to 6 autofocus layers (0 for BASIC), got {autofocus_layers}")
        if aspp not in (None, "concat", "sum") or pathways not in (1, 2):
            raise ValueError(f"aspp must be None, 'concat' or 'sum' and pathways 1 or 2, got {aspp!r} and {pathways}")
        if (autofocus_layers > 0) + (aspp is not None) + (pathways == 2) > 1:
            raise ValueError("autofocus_layers, aspp and pathways=2 are variants of their own; choose one of them")
        if not rates or min(rates) < 1:
            raise ValueError(f"dilation rates are whole numbers from 1, got rates={tuple(rates)}")
        axes = per_axis(coarseness, dim)

        def reach(rate: int) -> tuple[int, ...]:
            return tuple(max(1, rate // coarse) for coarse in axes)

        candidates = [reach(rate) for rate in rates]
        plain = 8 - autofocus_layers
        dilated = reach(1 if pathways == 2 else 2)
        layers: list[list[tuple[int, ...]]] = [[reach(1)]] * 2 + [[dilated]] * (plain - 2) + [candidates] * (8 - plain)

        options = {"branch_norm": branch_norm, "detach_attention": detach_attention, "form": form}

        def pathway() -> Pathway:
            return Pathway(input_channels, layers, dim, options, projection=pathways == 1)

        self.aspp = aspp
        self.pathway = pathway()
        channels = [CHANNELS[-1]]
        if aspp:
            width = 30 if aspp == "concat" else 120
            self.parallel = Parallel(channels[0], width, candidates, dim)
            channels = [width] * len(rates) if aspp == "sum" else [width * len(rates)]
        self.context: Context | None = None
        if pathways == 2:
            self.context = Context(pathway(), [max(1, 3 // coarse) for coarse in axes])
            self.hidden = nn.Sequential(
                pointwise(2 * channels[0], HIDDEN, dim),
                nn.ReLU(inplace=True),
                pointwise(HIDDEN, HIDDEN, dim),
                nn.ReLU(inplace=True),
            )
            channels = [HIDDEN]
        self.decoder = Head(channels, num_classes, dim, deep_supervision=deep_supervision)
        self.apply(initialise_he)
        for module in self.modules():
            if isinstance(module, AutofocusConv):
                module.reset_parameters()

    @classmethod
    def from_plan(
        cls,
        *,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool,
        patch_size: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        **options: object,
    ) -> "AFNet":
        """Build the network for a plan, of which it takes the dimension and the anisotropy: it has no stages.

        Args:
            input_channels: image channels.
            num_classes: output channels.
            deep_supervision: as in the constructor.
            patch_size: the plan's patch size in voxels; any works.
            strides: stride of every stage of the plan.
            kernel_sizes: kernel of every stage of the plan.
            options: any keyword of the constructor but `dim` and `coarseness`.
        """
        return cls(
            input_channels,
            num_classes,
            deep_supervision,
            dim=len(patch_size),
            coarseness=anisotropy(strides, kernel_sizes),
            **options,  # type: ignore[arg-type]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`."""
        maps = [self.pathway(x)]
        if self.context is not None:
            maps = [self.hidden(torch.cat([maps[0], self.context(x)], dim=1))]
        elif self.aspp:
            maps = self.parallel(maps[0])
            if self.aspp == "concat":
                maps = [torch.cat(maps, dim=1)]
        return self.decoder(maps)
