"""The autofocus layer of the paper's equation 3 in one pass, as Triton kernels for GPUs.

The rates share the weights W_t of the taps t, and no norm stands between the convolutions and their weighted sum, so
the sums commute:

    out(v) = sum_k a_k(v) sum_t W_t x(v + r_k t) = sum_t W_t z_t(v),     z_t(v) = sum_k a_k(v) x(v + r_k t)

One product per tap where K convolutions have K. A program blends the K tiles of a tap in registers and multiplies the
blend; nothing but the result is written. The backward pass, with the gradient g of the result:

    da_k(v) = sum_t <x(v + r_k t), W_t^T g(v)>
    dx(u)   = sum_t W_t^T sum_k a_k(u - r_k t) g(u - r_k t)       the kernel of the forward pass, on g and looking back
    dW_t    = sum_v g(v) z_t(v)^T                                 in parts of the image, which are then summed

No atomic operation takes part, so the same input gives the same result, bit for bit. Channels are last in memory;
other layouts are copied. Sums are float32, or float64 for float64.

Triton comes with PyTorch's CUDA builds. With TRITON_INTERPRET=1 the kernels run on the CPU, slowly, for tests.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch.utils.flop_counter import register_flop_formula
from triton import language as tl

from nnunet_plugins.networks.layers.autofocus_kernels import attention_gradient, blend_and_multiply, weight_gradient
from nnunet_plugins.networks.layers.shared_convolution import as_under_autocast, convolution_flops

BLOCK_V = 64
"""Voxels of a tile."""

PART_BYTES = 2**26
"""Most memory, 64 MiB, for the parts of the kernel's gradient."""


def fused_autofocus(
    x: torch.Tensor, weight: torch.Tensor, maps: torch.Tensor, rates: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Sum convolutions with one kernel at several rates, weighted at every voxel; "same" padding, no bias.

    Args:
        x: image, `(N, in, *size)`.
        weight: kernel, `(out, in, *kernel)`, with an odd number of taps per axis.
        maps: the weights of the rates, `(N, K, *size)`.
        rates: K dilation rates, one number per axis.

    Returns:
        `(N, out, *size)`, with the channels last in memory.

    Raises:
        RuntimeError: if the image is on the CPU, for which Triton has no compiler.
    """
    x, weight = as_under_autocast(x, weight)
    return _fused_autofocus(x, weight, maps.to(_sum_dtype(x)), [n for rate in rates for n in rate])


def _sum_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _allows_tf32() -> bool:
    """Tell what PyTorch's own convolutions may do.

    From PyTorch 2.9 on there are two ways to say so, and the older one raises an error once the newer has been used.
    """
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:
        return torch.backends.cudnn.allow_tf32
    return convolutions.fp32_precision == "tf32"


def _power_of_two(n: int, most: int) -> int:
    """Return the size of a block for n channels: tensor cores take 16 and more."""
    return min(most, max(16, triton.next_power_of_2(n)))


class _Layer(NamedTuple):
    """A layer in the kernels' terms: three axes, channels last, taps first."""

    x: torch.Tensor
    maps: torch.Tensor
    taps: torch.Tensor
    sizes: tuple[int, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor, maps: torch.Tensor, rates: list[int]) -> "_Layer":
        dim = x.dim() - 2
        missing = (1,) * (3 - dim)
        number = len(rates) // dim
        per_rate = [(*missing, *rates[k * dim : (k + 1) * dim]) for k in range(number)]
        single = x.dtype == torch.float32
        return cls(
            _last(x),
            _last(maps),
            weight.flatten(2).permute(2, 1, 0).contiguous(),
            (x.shape[0] * x.shape[2:].numel(), *missing, *x.shape[2:]),
            {
                "K": number,
                "KERNEL": (*missing, *weight.shape[2:]),
                "RATES": tuple(n for rate in per_rate for n in rate),
                "SUM": tl.float64 if x.dtype == torch.float64 else tl.float32,
                # As PyTorch's own convolutions.
                "PRECISION": "tf32" if single and _allows_tf32() else "ieee",
                "VOXELS": BLOCK_V,
                # Tiles of several steps at once, in full precision, are more than smaller GPUs can hold.
                "num_stages": 1 if x.dtype.itemsize >= 4 else 3,
            },
        )


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous()


def _first(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-1, 1)


def _run_blend(layer: _Layer, source: torch.Tensor, matrices: torch.Tensor, *, back: bool) -> torch.Tensor:
    channels, out_channels = matrices.shape[1:]
    out = source.new_empty(*source.shape[:-1], out_channels)
    block = _power_of_two(out_channels, 128)
    grid = (triton.cdiv(layer.sizes[0], BLOCK_V), triton.cdiv(out_channels, block))
    blend_and_multiply[grid](
        *(source, layer.maps, matrices, out, *layer.sizes, channels, out_channels),
        **layer.constants,
        CHANNELS=_power_of_two(channels, 32),
        OUT_CHANNELS=block,
        BACK=back,
        num_warps=8 if block > 64 else 4,
    )
    return out


@torch.library.custom_op("nnunet_plugins::fused_autofocus", mutates_args=())
def _fused_autofocus(x: torch.Tensor, weight: torch.Tensor, maps: torch.Tensor, rates: list[int]) -> torch.Tensor:
    # Here and not before: fake tensors, by which memory is forecast, need no compiler.
    if x.device.type == "cpu" and isinstance(blend_and_multiply, triton.JITFunction):
        raise RuntimeError(
            "the fused form of the autofocus layer runs on a GPU, and its input is on the CPU; "
            "with form=None the layer takes a form that suits the device of its input"
        )
    layer = _Layer.of(x, weight, maps, rates)
    # Triton starts its kernels on the current GPU, wherever the tensors are.
    with torch.cuda.device_of(x):
        return _first(_run_blend(layer, layer.x, layer.taps, back=False))


@_fused_autofocus.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, maps: torch.Tensor, rates: list[int]) -> torch.Tensor:
    return _first(x.new_empty(x.shape[0], *x.shape[2:], weight.shape[0]))


@torch.library.custom_op("nnunet_plugins::fused_autofocus_backward", mutates_args=())
def _fused_autofocus_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, maps: torch.Tensor, rates: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layer = _Layer.of(x, weight, maps, rates)
    gradient = _last(gradient)
    transposed = layer.taps.transpose(1, 2).contiguous()
    taps, channels, out_channels = layer.taps.shape
    voxels = layer.sizes[0]
    with torch.cuda.device_of(x):
        dx = _run_blend(layer, gradient, transposed, back=True)
        dmaps = torch.empty_like(layer.maps)
        blocks = {"CHANNELS": _power_of_two(channels, 64), "OUT_CHANNELS": _power_of_two(out_channels, 64)}
        attention_gradient[(triton.cdiv(voxels, BLOCK_V),)](
            *(layer.x, gradient, transposed, dmaps, *layer.sizes, channels, out_channels),
            **layer.constants,
            **blocks,
            ALL_K=triton.next_power_of_2(layer.constants["K"]),
        )
        part_bytes = layer.taps.numel() * dmaps.itemsize
        parts = max(1, min(64, PART_BYTES // part_bytes, voxels // (4 * BLOCK_V)))
        part_voxels = triton.cdiv(triton.cdiv(voxels, parts), BLOCK_V) * BLOCK_V
        partial = dmaps.new_empty(parts, taps, channels, out_channels)
        tiles = triton.cdiv(channels, blocks["CHANNELS"]) * triton.cdiv(out_channels, blocks["OUT_CHANNELS"])
        weight_gradient[(taps, parts, tiles)](
            *(layer.x, layer.maps, gradient, partial, part_voxels, *layer.sizes, channels, out_channels),
            **layer.constants,
            **blocks,
        )
    dweight = partial.sum(dim=0).permute(2, 1, 0).reshape(weight.shape).to(weight.dtype).contiguous()
    return _first(dx), dweight, _first(dmaps)


@_fused_autofocus_backward.register_fake
def _(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, maps: torch.Tensor, rates: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dx, dmaps = (_first(like.new_empty(like.shape[0], *like.shape[2:], like.shape[1])) for like in (x, maps))
    return dx, weight.new_empty(weight.shape), dmaps


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.rates = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_fused_autofocus_backward(gradient, *ctx.saved_tensors, ctx.rates), None


_fused_autofocus.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.nnunet_plugins.fused_autofocus)
def _forward_flops(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return convolution_flops(x_shape, weight_shape)


@register_flop_formula(torch.ops.nnunet_plugins.fused_autofocus_backward)
def _backward_flops(_: Any, x_shape: Any, weight_shape: Any, *__: Any, **___: Any) -> int:
    # For the gradients of the input, of the kernel and of the attention.
    return 3 * convolution_flops(x_shape, weight_shape)
