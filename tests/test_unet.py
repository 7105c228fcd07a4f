"""nnU-Net's own U-Net with changed blocks: what changed, what did not, and how it starts."""

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch.testing import assert_close

from nnunet_plugins.networks.aspp3d_unet import ASPP3DUNet
from nnunet_plugins.networks.autofocus_unet import AutofocusUNet
from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.attention import record_attention
from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.networks.topology import fit_rates
from nnunet_plugins.networks.unet import stage_sizes
from nnunet_plugins.testing.plans import PLANS, architecture

U_NETS = ["3d isotropic", "3d anisotropic", "3d resenc", "2d isotropic", "2d resenc"]


def stock(plan, seed=0):
    torch.manual_seed(seed)
    arch = architecture(plan)
    return get_network_from_plans(
        arch["network_class_name"], arch["arch_kwargs"], arch["_kw_requires_import"], 1, 3, deep_supervision=True
    )


@pytest.fixture(params=U_NETS)
def plan(request):
    return request.param


@pytest.mark.parametrize("change", [AutofocusUNet, ASPP3DUNet])
def test_everything_untouched_keeps_its_name_shape_and_value(plan, change):
    before = stock(plan).state_dict()
    network = change(stock(plan), PLANS[plan][0])
    after = network.state_dict()
    assert before.keys() <= after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert network.decoder.deep_supervision is True
    new = after.keys() - before.keys()
    part = "attention" if change is AutofocusUNet else "encoder.stages.2."
    assert new
    assert all(part in key for key in new)


def test_autofocus_is_the_second_convolution_from_the_third_stage_on(plan):
    network = AutofocusUNet(stock(plan), PLANS[plan][0])
    found = [name for name, module in network.named_modules() if isinstance(module, AutofocusConv)]
    assert found == ["encoder.stages.2.blocks.0.conv2.conv" if "resenc" in plan else "encoder.stages.2.0.convs.1.conv"]
    earlier = AutofocusUNet(stock(plan), PLANS[plan][0], first_stage=2)
    assert sum(isinstance(module, AutofocusConv) for module in earlier.modules()) == 2


def test_autofocus_unet_starts_as_the_stock_u_net(plan):
    """With the attention at rate 1 the kernels, which are the stock ones, do what they did."""
    reference = stock(plan).double()
    network = AutofocusUNet(stock(plan), PLANS[plan][0], advantage=20).double()
    x = torch.randn(2, 1, *PLANS[plan][0], dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(network(x), reference(x), strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("advantage", "share"), [(3, 0.87), (0, 0.25)])
def test_the_first_of_four_rates_starts_with_its_share_of_attention_everywhere(advantage, share):
    network = AutofocusUNet(stock("3d isotropic"), (72, 72, 72), advantage=advantage)
    with record_attention(network) as maps, torch.no_grad():
        network(torch.randn(1, 1, 72, 72, 72))
    [found] = maps.values()
    assert found.shape[1] == 4
    assert_close(found[:, 0], torch.full_like(found[:, 0], share), rtol=0, atol=0.02)


def test_aspp_follows_the_bottleneck_once(plan):
    network = ASPP3DUNet(stock(plan), PLANS[plan][0])
    found = [name for name, module in network.named_modules() if isinstance(module, ASPP3D)]
    assert found == ["encoder.stages.2.blocks.2" if "resenc" in plan else "encoder.stages.2.1"]


def test_aspp_twin_has_as_many_parameters_and_no_view_beyond_its_kernels(plan):
    size = PLANS[plan][0]
    networks = [
        ASPP3DUNet(stock(plan), size),
        ASPP3DUNet(stock(plan), size, dilations=(1, 1, 1), image_level="pointwise"),
    ]
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in networks]
    assert shapes[0] == shapes[1]
    aspp, twin = (next(m for m in n.modules() if isinstance(m, ASPP3D)) for n in networks)
    assert twin.branches[2][0].dilation == (1,) * len(size)
    assert aspp.branches[3].pooled
    assert not twin.branches[3].pooled


def test_dilation_stops_where_the_kernel_would_see_padding_alone():
    """The bottleneck has 6 x 8 x 6 voxels, cut in the second case to 6 x 2 x 6."""
    for patch, widest in (((24, 32, 24), (4, 4, 4)), ((24, 8, 24), (4, 1, 4))):
        aspp = next(m for m in ASPP3DUNet(stock("3d isotropic"), patch).modules() if isinstance(m, ASPP3D))
        assert aspp.branches[2][0].dilation == widest


def test_no_room_for_autofocus_is_named():
    with pytest.raises(ValueError, match=r"no encoder stage from the 3\. on .* \(1, 2, 4, 8\).*\(4, 4, 4\)"):
        AutofocusUNet(stock("3d isotropic"), (16, 16, 16))


def test_patches_the_u_net_cannot_take_are_named():
    with pytest.raises(ValueError, match="24x26x24 voxels: axis 1 has 26 and needs at least 4"):
        stage_sizes(stock("3d isotropic"), (24, 26, 24))
    assert stage_sizes(stock("3d anisotropic"), (6, 32, 24)) == [(6, 32, 24), (6, 16, 12), (3, 8, 6)]


def test_rates_fit_the_feature_map():
    assert fit_rates((1, 2, 4, 8), (40, 40), (3, 3)) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert fit_rates((1, 2, 4, 8), (5, 14, 9), (3, 3, 3)) == [(1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 6, 4)]
    assert fit_rates((1, 2, 4), (9, 9, 9), (1, 3, 3)) == [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    assert fit_rates((1, 2), (1, 4), (3, 3)) == [(1, 1)]
