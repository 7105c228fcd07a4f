"""The autofocus layer: its arithmetic, its attention, and where gradients go."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from nnunet_plugins.forecast import SavedBytes
from nnunet_plugins.networks.layers.attention import record_attention
from nnunet_plugins.networks.layers.autofocus import FORMS, AutofocusConv


def sharpen(layer, scale=30.0):
    """Give the attention an opinion: at the start all rates have the same share, and little would be tested."""
    with torch.no_grad():
        for parameter in layer.attention.parameters():
            parameter.mul_(scale).add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("dim", [2, 3])
def test_without_branch_norm_it_is_the_weighted_sum_of_convolutions(dim):
    torch.manual_seed(0)
    convolve = {2: functional.conv2d, 3: functional.conv3d}[dim]
    layer = AutofocusConv(4, 6, (3,) * dim, rates=(1, 2, 5)).double()
    sharpen(layer)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, *(9, 11, 8)[:dim], dtype=torch.float64)
    maps = layer.attention(x)
    plain = sum(
        maps[:, k : k + 1] * convolve(x, layer.weight, layer.bias, padding=rate, dilation=rate)
        for k, rate in enumerate((1, 2, 5))
    )
    assert_close(layer(x), plain, rtol=0, atol=1e-12)


def test_branch_norm_normalises_every_rate_by_itself():
    torch.manual_seed(0)
    layer = AutofocusConv(4, 6, rates=(1, 3), branch_norm=True).double().train()
    sharpen(layer)
    x = torch.randn(2, 4, 7, 8, 9, dtype=torch.float64)
    maps = layer.attention(x)
    plain = 0.0
    for k, rate in enumerate((1, 3)):
        y = functional.conv3d(x, layer.weight, layer.bias if k == 0 else None, padding=rate, dilation=rate)
        plain = plain + maps[:, k : k + 1] * functional.batch_norm(y, None, None, training=True)
    assert_close(layer(x), plain, rtol=0, atol=1e-12)


def test_one_rate_is_a_dilated_convolution():
    torch.manual_seed(0)
    layer = AutofocusConv(3, 5, rates=(2,))
    x = torch.randn(1, 3, 8, 8, 8)
    assert_close(layer(x), functional.conv3d(x, layer.weight, layer.bias, padding=2, dilation=2))


def test_rates_per_axis_leave_axes_with_kernel_one_alone():
    torch.manual_seed(0)
    layer = AutofocusConv(3, 5, (1, 3, 3), rates=((1, 2, 4), (7, 2, 4)))
    x = torch.randn(1, 3, 2, 8, 12)
    wanted = functional.conv3d(x, layer.weight, layer.bias, padding=(0, 2, 4), dilation=(1, 2, 4))
    assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 9, 9), (3, 2, 30)])
def test_images_smaller_than_its_reach(size):
    layer = AutofocusConv(2, 3)
    assert layer(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_attention_sums_to_one_and_comes_to_differ_between_voxels():
    torch.manual_seed(0)
    layer = AutofocusConv(2, 2, (3, 3), rates=(1, 3))
    x = torch.zeros(1, 2, 24, 24)
    x[:, :, :12] = torch.randn(1, 2, 12, 24)
    with record_attention(layer) as maps:
        layer(x)
        start = maps[""].clone()
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        for _ in range(40):
            optimizer.zero_grad()
            # A fine pattern in one half of the image and none in the other.
            (layer(x) - x).square().mean().backward()
            optimizer.step()
    for attention in (start, maps[""]):
        assert attention.shape == (1, 2, 24, 24)
        assert_close(attention.sum(dim=1), torch.ones(1, 24, 24))
    assert start.std(dim=(2, 3)).max() < 0.01
    assert maps[""].std(dim=(2, 3)).max() > 0.05
    assert not any(module._forward_hooks for module in layer.modules())


def test_attention_learns_to_look_further_at_larger_objects():
    """Points are to be seen at rate 1, large squares at rate 4; the attention finds out which is which."""
    torch.manual_seed(0)
    layer = AutofocusConv(1, 4, (3, 3), rates=(1, 4))
    layer.attention[0] = torch.nn.Conv2d(1, 8, 3, padding=1)
    layer.attention[2] = torch.nn.Conv2d(8, 2, 1)
    x = torch.zeros(1, 1, 40, 40)
    x[..., 4:15:5, 4:37:8] = 1.0
    x[..., 20:36, 4:36] = 1.0
    near, far = (functional.conv2d(x, layer.weight, layer.bias, padding=r, dilation=r) for r in (1, 4))
    target = torch.where(torch.arange(40)[:, None] < 18, near, far).detach()
    optimizer = torch.optim.Adam(layer.attention.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    look_far = layer.attention(x)[0, 1]
    assert look_far[4, 5] < 0.3
    assert look_far[22:34, 6:34].min() > 0.7


@pytest.mark.parametrize("detach", [False, True])
def test_detached_attention_learns_but_does_not_pull_at_what_comes_before(detach):
    torch.manual_seed(0)
    layer = AutofocusConv(4, 4, rates=(1, 2), detach_attention=detach).double()
    sharpen(layer)
    x = torch.randn(1, 4, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert layer.attention[0].weight.grad.any()
    maps = layer.attention(x).detach()
    trunk = x.detach().requires_grad_()
    branches = [functional.conv3d(trunk, layer.weight, layer.bias, padding=r, dilation=r) for r in (1, 2)]
    sum(maps[:, k : k + 1] * y for k, y in enumerate(branches)).sum().backward()
    assert torch.allclose(x.grad, trunk.grad, rtol=0, atol=1e-12) is detach


def test_favouring_the_first_rate_starts_as_its_convolution():
    torch.manual_seed(0)
    layer = AutofocusConv(4, 6, rates=(1, 2, 4, 8))
    layer.favour_first_rate(20)
    x = torch.randn(1, 4, 9, 9, 9)
    assert_close(layer(x), functional.conv3d(x, layer.weight, layer.bias, padding=1), rtol=1e-6, atol=1e-6)


def test_half_precision_stays_half_precision():
    layer = AutofocusConv(4, 4, rates=(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 4, 5, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("rates", [(), (0, 2), ((1, 0, 1),)])
def test_rates_out_of_range(rates):
    with pytest.raises(ValueError, match="dilation rate >= 1"):
        AutofocusConv(2, 2, rates=rates)


def test_prints_what_it_is():
    assert "4, 6, kernel_size=(3, 3, 3), rates=((1, 1, 1), (2, 2, 2))" in repr(AutofocusConv(4, 6, rates=(1, 2)))


def in_form(form, norm, **options):
    """A layer in one form, with a batch norm after it where it has none inside."""
    torch.manual_seed(0)
    layer = AutofocusConv(4, 6, rates=(1, 2, 4), branch_norm=norm == "per rate", form=form, **options).double()
    sharpen(layer)
    after = torch.nn.BatchNorm3d(6).double() if norm == "after" else None
    return layer, after


@pytest.mark.parametrize(
    ("form", "norm"),
    [
        (form, norm)
        for form in FORMS[1:]
        for norm in ("none", "per rate", "after")
        if (form, norm) != ("fused", "per rate")
    ],
)
def test_all_forms_do_the_same(form, norm):
    """Results, all gradients and the norms' running statistics; the attention differs between voxels."""
    found = []
    for name in ("plain", form):
        layer, after = in_form(name, norm)
        x = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        y = layer(x, after)
        y.backward(torch.randn_like(y))
        buffers = [*layer.buffers(), *(after.buffers() if after else [])]
        found.append([y, x.grad, *(p.grad for p in layer.parameters()), *buffers])
    assert_close(*found, rtol=0, atol=1e-11)
    assert in_form("plain", norm)[0].state_dict().keys() == in_form(form, norm)[0].state_dict().keys()


def test_nothing_per_rate_is_kept_for_the_backward_pass():
    saved = {}
    x = torch.randn(1, 8, 12, 12, 12, requires_grad=True)
    for form in ("plain", "shared"):
        layer = AutofocusConv(8, 8, rates=(1, 2, 3, 4), branch_norm=True, form=form)
        counted = SavedBytes(layer)
        with counted:
            layer(x)
        saved[form] = counted.take() // (4 * 12**3)
    # Image, hidden maps and shares, and with the plain form two maps per rate.
    assert saved["shared"] == 8 + 4 + 4
    assert saved["plain"] == pytest.approx(8 + 4 + 4 + 4 * 2 * 8, abs=1)


def test_a_norm_per_rate_cannot_be_fused():
    with pytest.raises(ValueError, match="fused form has no norm per rate"):
        AutofocusConv(2, 2, branch_norm=True, form="fused")
    with pytest.raises(ValueError, match="form must be None or one of"):
        AutofocusConv(2, 2, form="fast")
