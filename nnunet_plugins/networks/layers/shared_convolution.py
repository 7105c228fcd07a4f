"""One kernel at several dilation rates for the products of one convolution.

The rates share the weights W_t of the taps t, so their products need to be computed once. For rates r_1 ... r_K:

    forward    y_k(v) = sum_t Y_t(v + r_k t),          Y_t(u) = W_t x(u)
    backward   dx(u)  = sum_t W_t^T D_t(u),            D_t(u) = sum_k dy_k(u - r_k t)
               dW_t   = sum_u D_t(u) x(u)^T

The left column shifts and adds, the right one multiplies: one product per tap in the forward pass and two in the
backward pass, where K convolutions need K and 2 K. Nothing is assumed of what becomes of the y_k, so it holds with a
norm per rate (the authors' code of the autofocus layer) and without (the paper's equation 3).

All of it runs in slabs that stay in the CPU's cache, and on the CPU alone: on other devices Y_t would not stay in any
cache, and K convolutions are better there.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import register_flop_formula

from nnunet_plugins.networks.layers.blocks import CHANNELS_LAST

SLAB_BYTES = 3 * 2**19
"""Size of a slab of one feature map, 1.5 MiB: as much as the caches of its cores take."""


def shared_convolution(x: torch.Tensor, weight: torch.Tensor, rates: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Convolve with one kernel at every rate, "same" padding, without bias.

    Args:
        x: image, `(N, in, *size)`.
        weight: kernel, `(out, in, *kernel)`, with an odd number of taps per axis.
        rates: per rate one number per axis.

    Returns:
        One `(N, out, *size)` per rate, with the channels last in memory.
    """
    return _shared_convolution(*as_under_autocast(x, weight), [n for rate in rates for n in rate])


def as_under_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast tensors as PyTorch's own convolutions do: to half precision where autocast is on."""
    device = tensors[0].device.type
    # Not `is_autocast_available`: torch.compile could not follow it in PyTorch 2.8.
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


# A feature map of one image is `(D, H, W, channels)`, with length 1 along an axis too many.

# The inputs have their types already; without this, autocast would turn the matrix products to half precision.
_SINGLE: Any = torch.autocast("cpu", enabled=False)


@torch.library.custom_op("nnunet_plugins::shared_convolution", mutates_args=(), device_types="cpu")
@_SINGLE
def _shared_convolution(x: torch.Tensor, weight: torch.Tensor, rates: list[int]) -> list[torch.Tensor]:
    images, taps = _images(x), _taps(weight)
    moves = _moves(images.shape, weight, rates, back=False)
    outputs = [images.new_zeros(*images.shape[:-1], weight.shape[0]) for _ in moves[0]]
    for image, *targets in zip(images, *outputs, strict=True):
        for begin, end in _slabs(image, weight.shape[0]):
            pixels = image[begin:end].flatten(0, 2)
            multiplied = image.new_empty(end - begin, *image.shape[1:3], weight.shape[0])
            for tap, at_rates in zip(taps, moves, strict=True):
                torch.mm(pixels, tap, out=multiplied.view(-1, weight.shape[0]))
                for target, move in zip(targets, at_rates, strict=True):
                    move.add(target, multiplied, move.depth - begin)
    return [_features(output, x) for output in outputs]


@_shared_convolution.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, rates: list[int]) -> list[torch.Tensor]:
    dim = x.dim() - 2
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return [
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST[dim])
        for _ in range(len(rates) // dim)
    ]


@torch.library.custom_op("nnunet_plugins::shared_convolution_backward", mutates_args=(), device_types="cpu")
@_SINGLE
def _shared_convolution_backward(
    gradients: list[torch.Tensor], x: torch.Tensor, weight: torch.Tensor, rates: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    images, taps = _images(x), _taps(weight)
    moves = _moves(images.shape, weight, rates, back=True)
    transposed = taps.transpose(1, 2).contiguous()
    dimages, dtaps = torch.zeros_like(images), torch.zeros_like(taps)
    for image, dimage, *sources in zip(images, dimages, *map(_images, gradients), strict=True):
        for begin, end in _slabs(image, weight.shape[0]):
            pixels, dpixels = image[begin:end].flatten(0, 2), dimage[begin:end].flatten(0, 2)
            summed = image.new_empty(end - begin, *image.shape[1:3], weight.shape[0])
            rows = summed.flatten(0, 2)
            for tap, dtap, at_rates in zip(transposed, dtaps, moves, strict=True):
                summed.zero_()
                for source, move in zip(sources, at_rates, strict=True):
                    move.add(summed, source, move.depth + begin)
                dpixels.addmm_(rows, tap)
                dtap.addmm_(pixels.T, rows)
    dweight = dtaps.permute(2, 1, 0).reshape(weight.shape)
    return _features(dimages, x), dweight.to(weight.dtype).contiguous()


@_shared_convolution_backward.register_fake
def _(
    gradients: list[torch.Tensor], x: torch.Tensor, weight: torch.Tensor, rates: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST[x.dim() - 2])
    return dx, torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, list[int]], output: Any) -> None:
    x, weight, ctx.rates = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, gradients: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, None]:
    return *_shared_convolution_backward(gradients, *ctx.saved_tensors, ctx.rates), None


_shared_convolution.register_autograd(_differentiate, setup_context=_keep)


def convolution_flops(x_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Count the operations of one convolution of `(N, in, *size)`: two for each weight at each voxel."""
    return 2 * x_shape[0] * prod(x_shape[2:]) * prod(weight_shape)


@register_flop_formula(torch.ops.nnunet_plugins.shared_convolution)
def _forward_flops(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return convolution_flops(x_shape, weight_shape)


@register_flop_formula(torch.ops.nnunet_plugins.shared_convolution_backward)
def _backward_flops(_: Any, x_shape: Any, weight_shape: Any, *__: Any, **___: Any) -> int:
    return 2 * convolution_flops(x_shape, weight_shape)


class _Move(NamedTuple):
    """How maps `(any, H, W, C)` lie on each other when one is shifted; the overlap of two slices is `rows` x `run`.

    There are tens of thousands of such additions in a training step, so everything is computed once, in elements of
    memory. Beyond the overlap there is zero padding.
    """

    depth: int
    rows: int
    run: int
    target: int
    source: int

    def add(self, target: torch.Tensor, source: torch.Tensor, depth: int) -> None:
        """Add to each slice of `target` what lies on it of the slice of `source` that is `depth` further."""
        begin, end = max(0, -depth), min(len(target), len(source) - depth)
        if begin >= end or not self.rows or not self.run:
            return
        plane, row, *_ = target.stride()
        size, strides = (end - begin, self.rows, self.run), (plane, row, 1)
        onto = target.as_strided(size, strides, target.storage_offset() + begin * plane + self.target)
        onto += source.as_strided(size, strides, source.storage_offset() + (begin + depth) * plane + self.source)


def _moves(images: Sequence[int], weight: torch.Tensor, rates: Sequence[int], *, back: bool) -> list[list[_Move]]:
    """Return for every tap, in the kernel's order, and every rate where the tap looks, or whence it is seen."""
    *_, height, width, _ = images
    channels, kernel = weight.shape[0], weight.shape[2:]
    missing = (0,) * (3 - len(kernel))

    def move(tap: Sequence[int], rate: Sequence[int]) -> _Move:
        shift = [-r * n if back else r * n for r, n in zip(rate, tap, strict=True)]
        depth, down, right = (*shift, *missing)
        row, column = max(0, -down), max(0, -right)
        rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
        target = (row * width + column) * channels
        return _Move(depth, rows, columns * channels, target, target + (down * width + right) * channels)

    taps = product(*(range(-(k // 2), k // 2 + 1) for k in kernel))
    return [[move(tap, rate) for rate in _per_rate(rates, len(kernel))] for tap in taps]


def _per_rate(rates: Sequence[int], dim: int) -> list[tuple[int, ...]]:
    return [tuple(rates[start : start + dim]) for start in range(0, len(rates), dim)]


def _images(x: torch.Tensor) -> torch.Tensor:
    """View `(N, C, *size)` as `(N, D, H, W, C)`, contiguous; half precision becomes single, in which it is summed."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    x = x.movedim(1, -1).contiguous()
    return x if x.dim() == 5 else x.unsqueeze(3)


def _features(images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View `(N, D, H, W, C)` as `(N, C, *size)`, the opposite of `_images`."""
    images = images if like.dim() == 5 else images.squeeze(3)
    return images.movedim(-1, 1).to(like.dtype)


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """Return the kernel `(out, in, *kernel)` as one matrix per tap, `(taps, in, out)`."""
    weight = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    return weight.flatten(2).permute(2, 1, 0).contiguous()


def _slabs(image: torch.Tensor, channels: int) -> Iterator[tuple[int, int]]:
    """Cut the first axis into pieces of which a map with so many channels has about `SLAB_BYTES`."""
    depth, height, width, _ = image.shape
    thickness = max(1, SLAB_BYTES // (height * width * channels * image.itemsize))
    for begin in range(0, depth, thickness):
        yield begin, min(depth, begin + thickness)
