"""One kernel at several rates: the same as a convolution per rate, for the products of one."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.networks.layers import shared_convolution as module
from nnunet_plugins.networks.layers.shared_convolution import shared_convolution

# Size, kernel, rates. Some rates reach beyond the image, some axes have a single voxel.
CASES = {
    "3d": ((3, 5, 4), (3, 3, 3), [(1, 1, 1), (2, 2, 2), (9, 9, 9)]),
    "2d": ((9, 8), (3, 3), [(1, 1), (3, 2)]),
    "anisotropic": ((2, 9, 8), (1, 3, 3), [(1, 2, 2), (7, 4, 4)]),
    "one voxel thick": ((1, 6, 1), (3, 3, 3), [(1, 1, 1), (2, 2, 2)]),
    "one rate": ((4, 5, 6), (3, 3, 3), [(2, 2, 2)]),
}


def plain(x, weight, rates):
    convolve = {2: functional.conv2d, 3: functional.conv3d}[x.dim() - 2]
    kernel = weight.shape[2:]
    return [
        convolve(x, weight, padding=[r * (k // 2) for r, k in zip(rate, kernel, strict=True)], dilation=rate)
        for rate in rates
    ]


def tensors(case, dtype=torch.float64, channels=(3, 5)):
    size, kernel, rates = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], *size, dtype=dtype, requires_grad=True)
    weight = torch.randn(channels[1], channels[0], *kernel, dtype=dtype, requires_grad=True)
    return x, weight, rates


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("slab_bytes", [1, module.SLAB_BYTES])
def test_is_a_convolution_per_rate(case, slab_bytes, monkeypatch):
    monkeypatch.setattr(module, "SLAB_BYTES", slab_bytes)
    x, weight, rates = tensors(case)
    found, expected = shared_convolution(x, weight, rates), plain(x, weight, rates)
    assert_close(found, expected, rtol=0, atol=1e-12)
    weights = [torch.randn_like(y) for y in expected]
    gradients = (torch.autograd.grad(ys, (x, weight), weights) for ys in (found, expected))
    assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", ["3d", "2d"])
def test_gradients(case):
    x, weight, rates = tensors(case, channels=(1, 2))
    assert gradcheck(lambda x, weight: shared_convolution(x, weight, rates), (x[:1, :, :3, :4], weight))


@pytest.mark.parametrize("case", ["3d", "2d", "anisotropic"])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch looks for it itself
def test_is_a_good_operator_for_pytorch(case):
    """Fake tensors get the shapes and strides of real ones, and torch.compile the right result."""
    x, weight, rates = tensors(case)
    numbers = [n for rate in rates for n in rate]
    torch.library.opcheck(torch.ops.nnunet_plugins.shared_convolution.default, (x, weight, numbers))
    arguments = ([y.detach() for y in plain(x, weight, rates)], x.detach(), weight.detach(), numbers)
    torch.library.opcheck(torch.ops.nnunet_plugins.shared_convolution_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    x, weight, rates = tensors("3d", torch.float32)
    with torch.autocast("cpu", dtype):
        found = shared_convolution(x, weight, rates)
    assert {y.dtype for y in found} == {dtype}
    rounded = plain(x.to(dtype).float(), weight.to(dtype).float(), rates)
    assert_close(found, [y.to(dtype) for y in rounded])
    sum(y.float().sum() for y in found).backward()
    assert weight.grad.dtype == torch.float32


def test_costs_one_convolution():
    x, weight, rates = tensors("3d", torch.float32)
    with FlopCounterMode(display=False) as flops:
        outputs = shared_convolution(x, weight, rates)
    one = 2 * (2 * 3 * 5 * 4) * 27 * 3 * 5
    assert flops.get_total_flops() == one
    with FlopCounterMode(display=False) as flops:
        torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    assert flops.get_total_flops() == 2 * one
