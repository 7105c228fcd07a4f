"""The classic U-Nets: U-Net (2015), 3D U-Net (2016) and Attention U-Net (2018), one network with options.

Idea: convolutions and pooling down, convolutions and learnt upsampling up again, and at every scale the map of the way
down is concatenated to that of the way up.
Papers: Ronneberger et al. 2015 (arXiv:1505.04597), Fig. 1; Cicek et al. 2016 (arXiv:1606.06650), Fig. 2; Oktay et al.
2018 (arXiv:1804.03999), Fig. 1, and the authors' code, github.com/ozan-oktay/Attention-Gated-Networks (MIT).

                         U-Net                  3D U-Net                        Attention U-Net
    channels             64, 128, ... 1024      32-64, 64-128, ... 256-512      16, 32, ... 256
    norm                 none                   batch                           batch
    upsampling           transposed, to half    transposed, as many channels    linear
    shortcuts            as they are            as they are                     gated, but for the finest
    output               1x1                    1x1x1                           one per scale, joined by 1x1x1

Deviations: the convolutions of the papers are "valid", here they are "same", so that the output is as large as the
input; the U-Net's dropout at the coarsest scales is left out, as the paper does not say how much it is; pooling floors
odd sizes and `ISE` mends them. Strides and kernels adapt to a plan, the depth is the paper's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nnunet_plugins.networks.layers.blocks import INTERPOLATION, MAX_POOL, pointwise, type_kept, upsample
from nnunet_plugins.networks.layers.double_convolution import (
    NORMS,
    Convolutions,
    initialise_for_relu,
    norms,
    upconvolution,
)
from nnunet_plugins.networks.layers.gate import AttentionGate
from nnunet_plugins.networks.layers.head import Head
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.pyramid import Pyramid, Sizes

FEATURES = (64, 128, 256, 512, 1024)
UPSAMPLING = ("transposed", "linear")


class Up(nn.Module):
    """Bring a map up by a stride and to the size of another; `(N, in, *size)` to `(N, out, *other)`."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int], *, kind: str, norm: str | None, bias: bool
    ) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.convolution: nn.Module | None = None
        if kind == "transposed":
            up = upconvolution(in_channels, out_channels, stride, bias=bias)
            after = [*norms(norm, out_channels, len(stride)), nn.ReLU(inplace=True)] if norm else []
            self.convolution = nn.Sequential(up, *after)
        self.ise = ISE()

    def forward(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Map `(N, in, *any)` to `(N, out, *size)`."""
        return self.ise(self.convolution(x) if self.convolution else upsample(x, self.stride), size)


class SideOutputs(nn.Module):
    """Attention U-Net's output: logits of every scale, brought to full size, concatenated and joined by 1x1x1.

    Args:
        channels: of the maps, finest first.
        num_classes: output channels.
        dim: spatial dimensions.
        deep_supervision: return the logits in a list of one.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, dim: int, *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        layers = [pointwise(width, num_classes, dim) for width in channels]
        # nnU-Net's transfer learning leaves out every key that contains ".seg_layers.".
        self.seg_layers = nn.ModuleList([*layers, pointwise(len(layers) * num_classes, num_classes, dim)])

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Map one `(N, C, *size)` per scale, finest first, to logits `(N, num_classes, *size)`."""
        *layers, join = self.seg_layers
        size = maps[0].shape[2:]
        outputs = [layers[0](maps[0])]
        for layer, x in zip(layers[1:], maps[1:], strict=True):
            coarse = layer(x)
            with type_kept(coarse):
                mode = INTERPOLATION[len(size)]
                outputs.append(functional.interpolate(coarse, size=size, mode=mode, align_corners=False))
        logits = join(torch.cat(outputs, dim=1))
        return [logits] if self.deep_supervision else logits


class ClassicUNet(Pyramid):
    """A classic U-Net, in 2D or 3D; `ClassicUNet(1, 2, strides=((2, 2),) * 4, kernel_sizes=((3, 3),) * 5)` is of 2015.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        deep_supervision: return the logits in a list of one instead of bare; changes no parameter.
        strides: of the pooling between the scales, per axis.
        kernel_sizes: kernel per axis at every scale, one more than strides; their length decides between 2D and 3D.
        features: channels at every scale.
        early_doubling: as in the 3D U-Net, a scale's first convolution does not double the channels, its second does;
            and the upsampled maps keep their channels, where otherwise they are halved.
        norm: after each 3x3x3 convolution: "batch", "instance" or None.
        conv_bias: whether these convolutions have a bias.
        upsampling: "transposed" for transposed convolutions, "linear" for interpolation, which keeps the channels.
        up_norm: whether norm and ReLU follow the transposed convolutions.
        up_bias: whether the transposed convolutions have a bias.
        gated: whether attention gates weigh the shortcuts, but for the finest.
        side_outputs: whether every scale has an output, which are joined.

    Raises:
        ValueError: for options out of range, and in `forward` for an image too small, naming axis and smallest size.

    Example:
        >>> unet = ClassicUNet(1, 3, features=(8, 16, 32), strides=((2, 2),) * 2, kernel_sizes=((3, 3),) * 3)
        >>> unet(torch.zeros(1, 1, 21, 24)).shape
        torch.Size([1, 3, 21, 24])
    """

    name = "U-Net"

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        strides: Sizes,
        kernel_sizes: Sizes,
        features: Sequence[int] = FEATURES,
        early_doubling: bool = False,
        norm: str | None = None,
        conv_bias: bool = True,
        upsampling: str = "transposed",
        up_norm: bool = False,
        up_bias: bool = True,
        gated: bool = False,
        side_outputs: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS or upsampling not in UPSAMPLING:
            raise ValueError(
                f"norm must be one of {NORMS} and upsampling one of {UPSAMPLING}, got {norm!r} and {upsampling!r}"
            )
        self.set_strides(strides, kernel_sizes, len(features))
        self.least_voxels = 1 if norm is None else 2
        dim = len(kernel_sizes[0])
        before = [input_channels, *features[:-1]]
        middle = [features[0] // 2, *features[:-1]] if early_doubling else features
        self.encoder = nn.ModuleList(
            Convolutions(channels, kernel, norm=norm, bias=conv_bias)
            for *channels, kernel in zip(before, middle, features, kernel_sizes, strict=True)
        )
        self.pools = nn.ModuleList(MAX_POOL[dim](stride, stride) for stride in self.strides)
        keeps = early_doubling or upsampling == "linear"
        up, expansion = [], []
        for fine, coarse, stride, kernel in zip(features, features[1:], self.strides, kernel_sizes, strict=False):
            width = coarse if keeps else fine
            up.append(Up(coarse, width, stride, kind=upsampling, norm=norm if up_norm else None, bias=up_bias))
            expansion.append(Convolutions([fine + width, fine, fine], kernel, norm=norm, bias=conv_bias))
        self.up, self.expansion = nn.ModuleList(up), nn.ModuleList(expansion)
        self.signal: nn.Module | None = None
        self.gates: Any = nn.ModuleList()
        if gated:
            # What the authors call the gating signal.
            self.signal = Convolutions([features[-1]] * 2, (1,) * dim, norm=norm)
            for fine, coarse, stride in zip(features[1:], features[2:], self.strides[1:], strict=False):
                self.gates.append(AttentionGate(fine, coarse, stride, norm=norm))
        output = SideOutputs if side_outputs else Head
        channels = features[:-1] if side_outputs else features[:1]
        self.decoder = output(channels, num_classes, dim, deep_supervision=deep_supervision)
        self.apply(initialise_for_relu)

    @classmethod
    def downsamplings(cls, *, features: Sequence[int] = FEATURES, **_: Any) -> int:
        """Return how many steps there are between the scales of `features`."""
        return len(features) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Map an image `(N, input_channels, *size)` to logits `(N, num_classes, *size)`."""
        self.check_size(x.shape[2:])
        skips = []
        for stage, pool in zip(self.encoder, self.pools, strict=False):
            skips.append(stage(x))
            x = pool(skips[-1])
        x = self.encoder[-1](x)
        gate = self.signal(x) if self.signal else x
        maps: list[torch.Tensor] = []
        for level in reversed(range(len(skips))):
            skip = skips[level]
            if self.gates and level > 0:
                skip = self.gates[level - 1](skip, gate)
            x = self.expansion[level](torch.cat([skip, self.up[level](x, skip.shape[2:])], dim=1))
            gate = x
            maps.insert(0, x)
        return self.decoder(maps if isinstance(self.decoder, SideOutputs) else maps[:1])
