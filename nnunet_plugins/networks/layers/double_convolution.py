"""The parts of the classic U-Nets: convolutions with a norm of one's choice, twice, and learnt upsampling."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from nnunet_plugins.networks.layers.blocks import BATCH_NORM, CONVOLUTION, INSTANCE_NORM, same_padding

NORMS = ("batch", "instance", None)
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def norms(kind: str | None, channels: int, dim: int) -> list[nn.Module]:
    """Return the affine norm of a kind, or none, to be put into a sequence.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {kind!r}")
    return (
        []
        if kind is None
        else [BATCH_NORM[dim](channels) if kind == "batch" else INSTANCE_NORM[dim](channels, affine=True)]
    )


class Convolutions(nn.Sequential):
    """Convolution, norm and ReLU in a row; `(N, channels[0], *size)` to `(N, channels[-1], *size)`.

    Args:
        channels: of the input and after each convolution.
        kernel_size: per axis; its length decides between 2D and 3D.
        norm: "batch", "instance" or None.
        bias: whether the convolutions have one; a norm takes it away again.
    """

    def __init__(
        self, channels: Sequence[int], kernel_size: Sequence[int], *, norm: str | None, bias: bool = True
    ) -> None:
        super().__init__()
        dim = len(kernel_size)
        padding = same_padding(kernel_size, (1,) * dim)
        for before, after in pairwise(channels):
            self.append(CONVOLUTION[dim](before, after, tuple(kernel_size), padding=padding, bias=bias))
            self.extend([*norms(norm, after, dim), nn.ReLU(inplace=True)])


def upconvolution(in_channels: int, out_channels: int, stride: Sequence[int], *, bias: bool = True) -> nn.Module:
    """Build a transposed convolution whose kernel is its stride: `(N, in, *size)` to `(N, out, *(size * stride))`."""
    factor = tuple(stride)
    return TRANSPOSED[len(factor)](in_channels, out_channels, factor, factor, bias=bias)  # type: ignore[arg-type]


def initialise_for_relu(module: nn.Module) -> None:
    """Initialise one convolution, transposed or not, as He et al. 2015 do for ReLU, zero bias. For `Module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        # Of a transposed convolution whose kernel is its stride, every output has one tap for each input channel.
        transposed = isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
        fan_in = module.in_channels if transposed else module.weight[0].numel()
        nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
