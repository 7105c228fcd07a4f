"""The Triton kernels: on a GPU, or else run by Triton's interpreter, and compiled for a GPU that is not there."""

import os
import subprocess
import sys

import pytest
import torch
from test_shared_convolution import CASES, plain, tensors
from torch.autograd import gradcheck
from torch.testing import assert_close

fused = pytest.importorskip("nnunet_plugins.networks.layers.fused_autofocus", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Only the interpreter is exact.
DTYPE, TOLERANCE = (torch.float64, 1e-11) if DEVICE == "cpu" else (torch.float32, 1e-3)


def layer(case, dtype=DTYPE, channels=(3, 5)):
    """Image, kernel, attention and rates."""
    x, weight, rates = tensors(case, dtype, channels)
    maps = torch.randn(x.shape[0], len(rates), *x.shape[2:], dtype=dtype).softmax(dim=1)
    return *(tensor.detach().to(DEVICE).requires_grad_() for tensor in (x, weight, maps)), rates


def weighted(x, weight, maps, rates):
    return sum(maps[:, k : k + 1] * y for k, y in enumerate(plain(x, weight, rates)))


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# More channels than a block has, and numbers that no power of two divides.
@pytest.mark.parametrize(("case", "channels"), [*((case, (3, 5)) for case in CASES), ("2d", (70, 133)), ("2d", (1, 1))])
def test_is_the_weighted_sum_of_convolutions(case, channels):
    *inputs, rates = layer(case, channels=channels)
    found, expected = (function(*inputs, rates) for function in (fused.fused_autofocus, weighted))
    assert_close(found, expected, rtol=0, atol=TOLERANCE)
    towards = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, inputs, towards) for y in (found, expected))
    assert_close(*gradients, rtol=0, atol=10 * TOLERANCE)


@pytest.mark.skipif(DEVICE != "cpu", reason="needs float64, exact in the interpreter alone")
def test_gradients():
    x, weight, maps, rates = layer("2d", channels=(1, 2))
    small = (x[:1, :, :4, :3], weight, maps[:1, :, :4, :3])
    assert gradcheck(lambda x, weight, maps: fused.fused_autofocus(x, weight, maps, rates), small, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision(dtype):
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as whole numbers")
    x, weight, maps, rates = layer("2d", torch.float32, channels=(20, 7))
    found = fused.fused_autofocus(x.to(dtype), weight.to(dtype), maps, rates)
    assert found.dtype == dtype
    # Blends are rounded before they are multiplied.
    rounding = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}[dtype]
    expected = weighted(x.to(dtype).float(), weight.to(dtype).float(), maps, rates)
    assert_close(found.float(), expected, rtol=0, atol=rounding)
    found.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in (x, weight, maps))


def test_the_same_twice():
    *inputs, rates = layer("2d", torch.float32)
    first, second = (torch.autograd.grad(fused.fused_autofocus(*inputs, rates).sum(), inputs) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_kernels_run_on_the_device_of_the_image(monkeypatch):
    """Triton takes the current GPU: a trainer made in Python for cuda:1 may have left it at cuda:0."""
    launched, chosen = [], []

    class Chosen:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            chosen.append(self.device)

        def __exit__(self, *_):
            chosen.pop()

    class Kernel:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            launched.append(list(chosen))
            return self.kernel[grid]

    kernels = ("blend_and_multiply", "attention_gradient", "weight_gradient")
    for name in kernels:
        monkeypatch.setattr(fused, name, Kernel(getattr(fused, name)))
    monkeypatch.setattr(torch.cuda, "device_of", Chosen)
    *inputs, rates = layer("2d")
    fused.fused_autofocus(*inputs, rates).sum().backward()
    assert launched == [[inputs[0].device]] * 4


PRECISIONS = """
import torch
from nnunet_plugins.networks.layers import fused_autofocus as fused

def precision():
    x = torch.zeros(1, 2, 3, 3)
    return fused._Layer.of(x, torch.zeros(2, 2, 3, 3), x, [1, 1]).constants["PRECISION"]

print(precision())
torch.backends.cudnn.allow_tf32 = False
print(precision())
torch.backends.cudnn.allow_tf32 = True
if hasattr(torch.backends.cudnn, "conv"):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    print(precision())
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    print(precision())
"""


def test_precision_is_that_of_convolutions_however_it_was_set():
    """From PyTorch 2.9 on `allow_tf32` raises an error once `fp32_precision` has been set."""
    result = subprocess.run([sys.executable, "-c", PRECISIONS], capture_output=True, text=True, check=False)
    expected = ["tf32", "ieee"] + ["ieee", "tf32"] * hasattr(torch.backends.cudnn, "conv")
    assert result.stdout.split() == expected, result.stderr


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch looks for it itself
def test_is_a_good_operator_for_pytorch():
    x, weight, maps, rates = layer("2d", channels=(1, 2))
    small = (x[:1, :, :4, :3], weight, maps[:1, :, :4, :3])
    inputs = [tensor.detach().contiguous().requires_grad_() for tensor in small]
    numbers = [n for rate in rates for n in rate]
    torch.library.opcheck(torch.ops.nnunet_plugins.fused_autofocus.default, (*inputs, numbers))
    arguments = [tensor.detach() for tensor in (weighted(*inputs, rates), *inputs)]
    torch.library.opcheck(torch.ops.nnunet_plugins.fused_autofocus_backward.default, (*arguments, numbers))


COMPILE = """
import warnings
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton import language as tl
from nnunet_plugins.networks.layers import fused_autofocus as fused

common = {"K": 4, "KERNEL": (3, 3, 3), "RATES": (2, 2, 2, 6, 6, 6, 10, 10, 10, 14, 14, 14), "VOXELS": fused.BLOCK_V}
common |= {"SUM": tl.float32, "CHANNELS": 32, "OUT_CHANNELS": 64}
warnings.simplefilter("ignore")
for kernel, own in (
    (fused.blend_and_multiply, {"BACK": False}),
    (fused.blend_and_multiply, {"BACK": True}),
    (fused.attention_gradient, {"ALL_K": 4}),
    (fused.weight_gradient, {}),
):
    for type_, precision, stages in (("*bf16", "ieee", 3), ("*fp32", "tf32", 1)):
        constants = {**common, **own, "PRECISION": precision}
        pointers = dict.fromkeys(("source", "x", "gradient", "weight"), type_)
        pointers |= {"maps": "*fp32", "out": type_ if kernel is fused.blend_and_multiply else "*fp32"}
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_stages": stages})
        assert "mma.sync" in compiled.asm["ptx"], kernel
        # What every GPU since 2018 can hold.
        assert compiled.metadata.shared <= 64 * 1024, (kernel, type_, compiled.metadata.shared)
print("compiled")
"""


@pytest.mark.slow
def test_compiles_for_a_gpu_to_its_tensor_cores(tmp_path):
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False)
    assert result.stdout == "compiled\n", result.stderr


REFUSED = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from nnunet_plugins.networks.layers.autofocus import AutofocusConv

layer = AutofocusConv(2, 2, form="fused")
try:
    layer(torch.zeros(1, 2, 5, 5, 5))
except RuntimeError as error:
    print(error)
with FakeTensorMode():
    print(tuple(AutofocusConv(2, 2, form="fused")(torch.zeros(1, 2, 4, 4, 4)).shape))
layer.form = None
print(tuple(layer(torch.zeros(1, 2, 5, 5, 5)).shape))
"""


def test_a_processor_is_refused_by_name_and_with_a_way_out():
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", REFUSED], env=env, capture_output=True, text=True, check=False)
    assert "its input is on the CPU; with form=None" in result.stdout, result.stderr
    assert result.stdout.endswith("(1, 2, 4, 4, 4)\n(1, 2, 5, 5, 5)\n"), "fake tensors need no compiler"
