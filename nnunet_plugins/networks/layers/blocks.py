"""Convolution blocks shared by the networks, in 2D and 3D.

Sizes per axis (kernels, strides) are sequences ordered like the tensor's spatial axes, so that an anisotropic plan
(kernel 1x3x3, stride 1x2x2) needs no special case.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.layers.device import device_type
from nnunet_plugins.networks.layers.recompute import recompute

# By dimension. Typed as Any, because torch wants pairs and triples where these take any tuple of the right length.
CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
INTERPOLATION = {2: "bilinear", 3: "trilinear"}
NEGATIVE_SLOPE = 0.01

Rate = Sequence[int] | int
"""A dilation rate: one number, or one per axis."""


def per_axis(number: Rate, dim: int) -> tuple[int, ...]:
    """Return one number per axis."""
    return (number,) * dim if isinstance(number, int) else tuple(number)


def same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Return the padding that keeps the size of the image under a dilated convolution with odd kernel and stride 1."""
    return tuple(rate * (k // 2) for rate, k in zip(dilation, kernel_size, strict=True))


class DilatedConv3d(nn.Conv3d):
    """Dilated convolution that adds its bias by itself in half precision on a GPU; otherwise PyTorch's.

    cuDNN is slow at dilated 3D convolutions in half precision and much slower still with a bias (pytorch issue 167420);
    torch.compile merges the addition with the norm that follows.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        half = torch.is_autocast_enabled("cuda") or x.dtype in (torch.float16, torch.bfloat16)
        if self.bias is None or not (device_type(x) == "cuda" and half):
            return super().forward(x)
        y = functional.conv3d(x, self.weight, None, self.stride, self.padding, self.dilation)
        return y + self.bias.to(y.dtype).view(1, -1, 1, 1, 1)


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    *,
    stride: Sequence[int] | int = 1,
    dilation: Rate = 1,
) -> nn.Conv2d | nn.Conv3d:
    """Build a convolution with bias and "same" padding; `len(kernel_size)` decides between 2D and 3D.

    With stride 2 and an odd kernel it maps a size n to ceil(n / 2). Axes with kernel 1 stay untouched by `dilation`.
    """
    rates = per_axis(dilation, len(kernel_size))
    kind: Any = DilatedConv3d if len(rates) == 3 and max(rates) > 1 else CONVOLUTION[len(rates)]
    return kind(
        in_channels,
        out_channels,
        tuple(kernel_size),
        stride=stride if isinstance(stride, int) else tuple(stride),
        padding=same_padding(kernel_size, rates),
        dilation=rates,
    )


def pointwise(in_channels: int, out_channels: int, dim: int) -> nn.Conv2d | nn.Conv3d:
    """Build a 1x1(x1) convolution with bias."""
    return convolution(in_channels, out_channels, (1,) * dim)


def type_kept(x: torch.Tensor) -> AbstractContextManager[object]:
    """Let operations on `x` keep its type where autocast would turn it to float32, as CUDA's does for interpolation.

    Interpolation weighs at most eight neighbours and needs no more digits than they have; a map in float32 would double
    the memory of all that follows it.
    """
    device = x.device.type
    # Not every device has autocast, and without it there is nothing to switch off.
    on = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def upsample(x: torch.Tensor, scale: Sequence[int]) -> torch.Tensor:
    """Interpolate linearly: `(N, C, *size)` to `(N, C, *(size * scale))`."""
    size = [n * s for n, s in zip(x.shape[2:], scale, strict=True)]
    with type_kept(x):
        return functional.interpolate(x, size=size, mode=INTERPOLATION[len(scale)], align_corners=False)


def initialise_he(module: nn.Module) -> None:
    """Initialise one convolution as nnU-Net does: He normal for LeakyReLU 0.01, zero bias. For `Module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Dropout(nn.Dropout):
    """Elementwise dropout, twenty times faster on the CPU than PyTorch's, which draws one random number at a time.

    There a random number of 64 bits serves eight elements, or four where 8 bits cannot express the probability exactly;
    16 bits express it to 1 / 65536.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map any tensor to one of its shape."""
        if not self.training or x.device.type != "cpu" or self.p in (0, 1) or torch.compiler.is_compiling():
            return super().forward(x)
        bits, dtype = (8, torch.int8) if (self.p * 2**8).is_integer() else (16, torch.int16)
        words = torch.empty(-(-x.numel() * bits // 64), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = words.view(dtype)[: x.numel()].view(x.shape) >= round(self.p * 2**bits) - 2 ** (bits - 1)
        return x * keep * (1 / (1 - self.p))


class Activation(nn.Sequential):
    """LeakyReLU(0.01), then elementwise dropout with probability `dropout` (FIRENet, section III-A4)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
        # An identity dropout would still show up in every printed network, so it is left out.
        if dropout:
            self.append(Dropout(dropout))


class ConvBlock(nn.Sequential):
    """Convolution, affine instance norm, activation, dropout; `(N, in, *size)` to `(N, out, *ceil(size / stride))`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        *,
        stride: Sequence[int] | int = 1,
        dilation: Rate = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            convolution(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation),
            INSTANCE_NORM[len(kernel_size)](out_channels, affine=True),
            Activation(dropout),
        )

    def finish(self, z: torch.Tensor) -> torch.Tensor:
        """Apply what follows the convolution; it costs little to compute it twice."""
        _, norm, activation = self
        return activation(norm(z))


class ResidualUnit(nn.Module):
    """Residual unit with two convolutions; `(N, in, *size)` to `(N, out, *size)`.

    conv, norm, act, drop, conv, norm, + skip, act, drop. The skip is a 1x1x1 convolution where the channels differ.
    Source: FIRENet, section III-A5, after He et al. 2016.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sequence[int], *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        dim = len(kernel_size)
        self.conv1 = ConvBlock(in_channels, out_channels, kernel_size, dropout=dropout)
        self.conv2 = nn.Sequential(
            convolution(out_channels, out_channels, kernel_size), INSTANCE_NORM[dim](out_channels, affine=True)
        )
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = pointwise(in_channels, out_channels, dim)
        self.activation = Activation(dropout)
        self.random = dropout > 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, in, *size)` to `(N, out, *size)`."""
        conv2, norm2 = self.conv2
        z = recompute(lambda z: conv2(self.conv1.finish(z)), self.conv1[0](x), preserve_rng_state=self.random)

        def add(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.activation(norm2(z) + self.skip(x))

        # Without dropout nothing but the result would be kept, which the next layer keeps anyway.
        return recompute(add, z, x, preserve_rng_state=True) if self.random else add(z, x)
