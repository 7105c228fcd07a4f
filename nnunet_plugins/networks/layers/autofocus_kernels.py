"""The Triton kernels of the fused autofocus layer; what they compute stands in `fused_autofocus`.

`v` are voxels of all images of the batch, counted in memory's order; `d`, `h`, `w` their places.
"""

# Triton's compiler wants its kernels untyped.
# mypy: disallow-untyped-defs=False

import triton
from triton import language as tl


@triton.jit
def _place(v, depth, height, width):
    return v // (width * height) % depth, v // width % height, v % width


@triton.jit
def _look(v, tap, k, depth, height, width, KERNEL: tl.constexpr, RATES: tl.constexpr, BACK: tl.constexpr):
    """Which voxel a tap sees from `v` at rate k, and whether it is in the image."""
    d, h, w = _place(v, depth, height, width)
    to_d = (tap // (KERNEL[1] * KERNEL[2]) - KERNEL[0] // 2) * RATES[3 * k]
    to_h = (tap // KERNEL[2] % KERNEL[1] - KERNEL[1] // 2) * RATES[3 * k + 1]
    to_w = (tap % KERNEL[2] - KERNEL[2] // 2) * RATES[3 * k + 2]
    if BACK:
        to_d, to_h, to_w = -to_d, -to_h, -to_w
    there = (d + to_d >= 0) & (d + to_d < depth) & (h + to_h >= 0) & (h + to_h < height)
    there &= (w + to_w >= 0) & (w + to_w < width)
    return v + (to_d * height + to_h) * width + to_w, there


@triton.jit
def _rows(pointer, v, there, c, channels):
    """Features `c` of the voxels `v`, zero where there is no such voxel."""
    return tl.load(
        pointer + v.to(tl.int64)[:, None] * channels + c[None, :],
        mask=there[:, None] & (c < channels)[None, :],
        other=0.0,
    )


@triton.jit
def _matrix(pointer, tap, a, rows, b, columns):
    """The part of a tap's matrix, of `rows` x `columns`, at rows `a` and columns `b`."""
    return tl.load(
        pointer + (tap * rows + a)[:, None] * columns + b[None, :],
        mask=(a < rows)[:, None] & (b < columns)[None, :],
        other=0.0,
    )


@triton.jit
def _blend(
    source,
    maps,
    v,
    inside,
    tap,
    c,
    depth,
    height,
    width,
    channels,
    K: tl.constexpr,
    KERNEL: tl.constexpr,
    RATES: tl.constexpr,
    BACK: tl.constexpr,
    SUM: tl.constexpr,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """What a tap sees at all rates, weighted by the attention; `BACK`, by that of the voxels it sees."""
    total = tl.zeros((VOXELS, CHANNELS), dtype=SUM)
    for k in tl.static_range(K):
        u, there = _look(v, tap, k, depth, height, width, KERNEL, RATES, BACK)
        there &= inside
        share = tl.load(maps + (u if BACK else v).to(tl.int64) * K + k, mask=there, other=0.0)
        total += share[:, None] * _rows(source, u, there, c, channels).to(SUM)
    return total


@triton.jit
def blend_and_multiply(
    source,
    maps,
    weight,
    out,
    voxels,
    depth,
    height,
    width,
    channels,
    out_channels,
    K: tl.constexpr,
    KERNEL: tl.constexpr,
    RATES: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    BACK: tl.constexpr,
):
    """Write sum_t W_t blend_t; the weight is `(taps, channels, out_channels)`."""
    v = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS)
    o = tl.program_id(1) * OUT_CHANNELS + tl.arange(0, OUT_CHANNELS)
    inside = v < voxels
    total = tl.zeros((VOXELS, OUT_CHANNELS), dtype=SUM)
    for tap in range(KERNEL[0] * KERNEL[1] * KERNEL[2]):
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            blend = _blend(
                *(source, maps, v, inside, tap, c, depth, height, width, channels),
                *(K, KERNEL, RATES, BACK, SUM, VOXELS, CHANNELS),
            )
            matrix = _matrix(weight, tap, c, channels, o, out_channels)
            total = tl.dot(blend.to(matrix.dtype), matrix, total, input_precision=PRECISION, out_dtype=SUM)
    tl.store(
        out + v.to(tl.int64)[:, None] * out_channels + o[None, :],
        total.to(out.dtype.element_ty),
        mask=inside[:, None] & (o < out_channels)[None, :],
    )


@triton.jit
def attention_gradient(
    x,
    gradient,
    weight,
    out,
    voxels,
    depth,
    height,
    width,
    channels,
    out_channels,
    K: tl.constexpr,
    KERNEL: tl.constexpr,
    RATES: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    ALL_K: tl.constexpr,
):
    """Write sum_t <x(v + r_k t), W_t^T g(v)> for all k; the weight is `(taps, out_channels, channels)`."""
    v = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS)
    inside = v < voxels
    all_k = tl.arange(0, ALL_K)
    total = tl.zeros((VOXELS, ALL_K), dtype=SUM)
    for tap in range(KERNEL[0] * KERNEL[1] * KERNEL[2]):
        for first in range(0, channels, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            wanted = tl.zeros((VOXELS, CHANNELS), dtype=SUM)
            for first_out in range(0, out_channels, OUT_CHANNELS):
                o = first_out + tl.arange(0, OUT_CHANNELS)
                g = _rows(gradient, v, inside, o, out_channels)
                matrix = _matrix(weight, tap, o, out_channels, c, channels)
                wanted = tl.dot(g, matrix, wanted, input_precision=PRECISION, out_dtype=SUM)
            for k in tl.static_range(K):
                u, there = _look(v, tap, k, depth, height, width, KERNEL, RATES, False)
                found = tl.sum(_rows(x, u, there & inside, c, channels).to(SUM) * wanted, axis=1)
                total += tl.where((all_k == k)[None, :], found[:, None], 0.0)
    tl.store(out + v.to(tl.int64)[:, None] * K + all_k[None, :], total, mask=inside[:, None] & (all_k < K)[None, :])


@triton.jit
def weight_gradient(
    x,
    maps,
    gradient,
    out,
    part_voxels,
    voxels,
    depth,
    height,
    width,
    channels,
    out_channels,
    K: tl.constexpr,
    KERNEL: tl.constexpr,
    RATES: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
):
    """Write sum_v blend_t(v) g(v)^T over a part of the voxels, as `(parts, taps, channels, out_channels)`."""
    tap = tl.program_id(0)
    part = tl.program_id(1)
    blocks = tl.cdiv(out_channels, OUT_CHANNELS)
    c = tl.program_id(2) // blocks * CHANNELS + tl.arange(0, CHANNELS)
    o = tl.program_id(2) % blocks * OUT_CHANNELS + tl.arange(0, OUT_CHANNELS)
    total = tl.zeros((CHANNELS, OUT_CHANNELS), dtype=SUM)
    for first in range(0, part_voxels, VOXELS):
        v = part * part_voxels + first + tl.arange(0, VOXELS)
        inside = v < voxels
        blend = _blend(
            *(x, maps, v, inside, tap, c, depth, height, width, channels),
            *(K, KERNEL, RATES, False, SUM, VOXELS, CHANNELS),
        )
        g = _rows(gradient, v, inside, o, out_channels)
        total = tl.dot(tl.trans(blend.to(g.dtype)), g, total, input_precision=PRECISION, out_dtype=SUM)
    row = (part * tl.num_programs(0) + tap).to(tl.int64) * channels + c
    tl.store(
        out + row[:, None] * out_channels + o[None, :],
        total,
        mask=(c < channels)[:, None] & (o < out_channels)[None, :],
    )
