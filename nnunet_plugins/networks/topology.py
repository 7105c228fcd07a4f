"""From a plan's stages to the strides and kernels a network with a fixed number of downsamplings needs."""

from collections.abc import Sequence

MINIMUM_TO_HALVE = 4  # an axis with fewer voxels keeps them: halving 2 or 3 leaves nothing to convolve over


def extend_stages(
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    patch_size: Sequence[int],
    downsamplings: int,
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Take the plan's first stages and, where it has too few, go on halving.

    Args:
        strides: stride of each stage of the plan per axis; the first stage is full resolution.
        kernel_sizes: kernel of each stage per axis.
        patch_size: voxels per axis.
        downsamplings: how many stages with a stride are needed.

    Returns:
        `downsamplings` strides (those of stages 1, 2, ...) and `downsamplings + 1` kernels (stages 0, 1, ...). Beyond
        the plan, axes that still have at least 4 voxels are halved and get kernel 3; the others keep size and kernel.

    Raises:
        ValueError: if the plan has no stage, its first stage is strided, or a stride is neither 1 nor 2.
    """
    if not strides or len(strides) != len(kernel_sizes):
        raise ValueError(
            f"the plan must give one stride and one kernel per stage, got strides={strides}, kernels={kernel_sizes}"
        )
    if any(s != 1 for s in strides[0]):
        raise ValueError(f"the plan's first stage must be at full resolution, its stride is {list(strides[0])}")
    for number, stride in enumerate(strides):
        if any(s not in (1, 2) for s in stride):
            raise ValueError(
                f"stage {number} of the plan has stride {list(stride)}; only 1 and 2 per axis are supported, "
                "so split it into two stages in the plans file"
            )
    steps = [tuple(stride) for stride in strides[1 : downsamplings + 1]]
    kernels = [tuple(kernel) for kernel in kernel_sizes[: downsamplings + 1]]
    size = list(patch_size)
    for stride in steps:
        size = [n // s for n, s in zip(size, stride, strict=True)]
    while len(steps) < downsamplings:
        stride = tuple(2 if n >= MINIMUM_TO_HALVE else 1 for n in size)
        kernels.append(tuple(3 if s == 2 else k for s, k in zip(stride, kernels[-1], strict=True)))
        size = [n // s for n, s in zip(size, stride, strict=True)]
        steps.append(stride)
    return steps, kernels


def anisotropy(strides: Sequence[Sequence[int]], kernel_sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """How many times larger a voxel is along each axis than along the finest, as the plan treats it.

    nnU-Net leaves an axis alone (kernel 1, stride 1) until pooling has brought the others to its voxel size, within a
    factor of two. An axis that never gets a larger kernel counts up to the last stage.
    """
    factors = []
    for axis in range(len(kernel_sizes[0])):
        alone = next((n for n, kernel in enumerate(kernel_sizes) if kernel[axis] > 1), len(kernel_sizes) - 1)
        pooled = [1] * len(kernel_sizes[0])
        for stride in strides[: alone + 1]:
            pooled = [p * s for p, s in zip(pooled, stride, strict=True)]
        factors.append(max(pooled) // pooled[axis])
    return tuple(factors)


def fit_rates(rates: Sequence[int], size: Sequence[int], kernel_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Fit dilation rates to a feature map: per axis the dilated kernel, 2 r + 1 voxels long, must not exceed it.

    Returns:
        One rate per axis for each of `rates`, cut to what fits; rates that become equal are given once. Axes with
        kernel 1, and axes too short for any kernel, have rate 1.
    """
    fitting: list[tuple[int, ...]] = []
    for rate in rates:
        cut = tuple(max(1, min(rate, (n - 1) // 2)) if k > 1 else 1 for n, k in zip(size, kernel_size, strict=True))
        if cut not in fitting:
            fitting.append(cut)
    return fitting
