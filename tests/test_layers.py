"""The papers' building blocks."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from nnunet_plugins.forecast import SavedBytes, cuda_autocast, fake_tensors
from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.blocks import (
    Activation,
    ConvBlock,
    Dropout,
    ResidualUnit,
    convolution,
    type_kept,
    upsample,
)
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.layers.recompute import recompute
from nnunet_plugins.networks.layers.wrs import WRS


class TestWRS:
    def test_is_the_gated_sum(self):
        wrs = WRS(3)
        inputs = [torch.randn(2, 4, 5, 6) for _ in range(3)]
        expected = sum(torch.sigmoid(w) * x for w, x in zip(wrs.weight, inputs, strict=True))
        assert_close(wrs(inputs), expected)

    def test_gates_start_near_one_half(self):
        weight = WRS(1000).weight
        assert weight.abs().max() <= 0.03
        assert weight.min() < -0.02
        assert weight.max() > 0.02
        assert_close(WRS(2).gates, torch.full((2,), 0.5), atol=0.01, rtol=0)

    def test_wrong_number_of_inputs(self):
        with pytest.raises(ValueError, match="built for 2 inputs, got 3"):
            WRS(2)([torch.zeros(1)] * 3)
        with pytest.raises(ValueError, match="num_inputs=0"):
            WRS(0)

    def test_keeps_half_precision(self):
        assert WRS(2)([torch.ones(2, 3, dtype=torch.bfloat16)] * 2).dtype == torch.bfloat16

    def test_keeps_half_precision_on_a_gpu(self):
        """CUDA's autocast would turn all to the type of the gate, and keep the maps in it for the backward pass."""
        with fake_tensors(), torch.device("cuda"), cuda_autocast():
            wrs = WRS(3)
            saved = SavedBytes(wrs)
            with saved:
                total = wrs([torch.ones(2, 3, dtype=torch.float16) for _ in range(3)])
        assert total.dtype == torch.float16
        assert saved.take() <= 3 * 6 * 2 + 64  # the maps, and numbers

    def test_gradients(self):
        wrs = WRS(3).double()
        inputs = [torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        assert gradcheck(lambda _, *inputs: wrs(inputs), (wrs.weight, *inputs))


class TestISE:
    def test_equal_size_is_untouched(self):
        x = torch.randn(1, 2, 4, 5)
        assert ISE()(x, (4, 5)) is x

    def test_pads_by_replication_at_the_far_end(self):
        x = torch.arange(6.0).view(1, 1, 2, 3)
        assert_close(ISE()(x, (3, 3)), torch.tensor([[[[0.0, 1, 2], [3, 4, 5], [3, 4, 5]]]]))

    def test_crops_at_the_far_end(self):
        x = torch.arange(6.0).view(1, 1, 2, 3)
        assert_close(ISE()(x, (2, 2)), torch.tensor([[[[0.0, 1], [3, 4]]]]))

    def test_pads_one_axis_and_crops_another(self):
        x = torch.arange(24.0).view(1, 1, 2, 3, 4)
        result = ISE()(x, (3, 3, 3))
        assert result.shape == (1, 1, 3, 3, 3)
        assert_close(result[0, 0, :2], x[0, 0, :, :, :3])
        assert_close(result[0, 0, 2], x[0, 0, 1, :, :3])

    @pytest.mark.parametrize("size", [(6, 4), (2, 4)])
    def test_more_than_one_voxel_is_a_bug(self, size):
        with pytest.raises(ValueError, match=f"axis 0 has 4 voxels and should have {size[0]}"):
            ISE()(torch.zeros(1, 1, 4, 4), size)


class TestASPP3D:
    @pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 2, 3), (5,)])
    def test_branches_look_as_far_as_their_rate(self, dilations):
        aspp = ASPP3D(1, 1, dilations=dilations)
        x = torch.zeros(1, 1, 15, 15, 15, requires_grad=True)
        for branch, rate in zip(aspp.branches, dilations, strict=True):
            convolution = branch[0]
            nn.init.ones_(convolution.weight)
            (gradient,) = torch.autograd.grad(convolution(x)[0, 0, 7, 7, 7], x)
            seen = gradient[0, 0].nonzero()
            assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [2 * rate + 1] * 3
            assert len(seen) == 27

    def test_shapes_in_2d_and_anisotropic_3d(self):
        assert ASPP3D(2, 3, (3, 3))(torch.randn(1, 2, 7, 9)).shape == (1, 3, 7, 9)
        assert ASPP3D(2, 3, (1, 3, 3))(torch.randn(1, 2, 1, 7, 9)).shape == (1, 3, 1, 7, 9)

    @pytest.mark.parametrize("dilations", [(), (0, 1)])
    def test_bad_dilations(self, dilations):
        with pytest.raises(ValueError, match="dilation"):
            ASPP3D(1, 1, dilations=dilations)


class TestBlocks:
    def test_conv_block_rounds_odd_sizes_up(self):
        assert ConvBlock(1, 2, (3, 3, 3), stride=(2, 2, 2))(torch.randn(1, 1, 7, 8, 9)).shape == (1, 2, 4, 4, 5)

    def test_residual_unit_adds_its_input(self):
        unit = ResidualUnit(3, 3, (3, 3))
        nn.init.zeros_(unit.conv2[1].weight)
        x = torch.rand(1, 3, 6, 6)
        assert_close(unit(x), x)

    def test_residual_unit_projects_only_where_channels_differ(self):
        assert isinstance(ResidualUnit(3, 3, (3, 3)).skip, nn.Identity)
        assert ResidualUnit(2, 3, (3, 3)).skip.weight.shape == (3, 2, 1, 1)

    def test_dropout_follows_the_activation(self):
        torch.manual_seed(0)
        out = Activation(0.5)(torch.ones(1, 1, 100, 100))
        assert (out == 0).float().mean() == pytest.approx(0.5, abs=0.05)
        assert_close(Activation(0.5).eval()(torch.tensor([-1.0, 1.0])), torch.tensor([-0.01, 1.0]))

    @pytest.mark.parametrize("p", [0.5, 0.25, 0.3])
    def test_dropout_drops_its_share_and_keeps_the_mean(self, p):
        torch.manual_seed(0)
        x = torch.ones(3, 100, 101, requires_grad=True)
        out = Dropout(p)(x)
        assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
        assert (out == 0).float().mean() == pytest.approx(p, abs=0.02)
        # Neighbours come from one random number; they are independent all the same.
        kept = (out != 0).float().flatten()
        assert abs(torch.corrcoef(torch.stack([kept[:-1], kept[1:]]))[0, 1]) < 0.02
        out.sum().backward()
        assert_close(x.grad, out)
        torch.manual_seed(0)
        assert_close(Dropout(p)(torch.ones(3, 100, 101)), out)

    @pytest.mark.parametrize(("p", "kept"), [(0.0, 1.0), (1.0, 0.0)])
    def test_dropout_of_nothing_or_all(self, p, kept):
        assert_close(Dropout(p)(torch.ones(5)), torch.full((5,), kept))

    def test_dilated_convolutions_are_pytorchs(self):
        dilated = convolution(2, 3, (3, 3, 3), dilation=2)
        stock = nn.Conv3d(2, 3, 3, padding=2, dilation=2)
        stock.load_state_dict(dilated.state_dict())
        x = torch.randn(1, 2, 5, 6, 7)
        assert_close(dilated(x), stock(x))
        assert type(convolution(2, 3, (3, 3, 3))) is nn.Conv3d

    def test_upsample_is_linear(self):
        line = upsample(torch.tensor([[[[0.0, 4.0]]]]), (1, 2))
        assert_close(line, torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))

    @pytest.mark.parametrize("scale", [(2, 2), (1, 2, 2)])
    def test_upsample_keeps_half_precision_on_a_gpu(self, scale):
        with fake_tensors(), torch.device("cuda"), cuda_autocast():
            assert upsample(torch.ones(1, 2, *scale, dtype=torch.float16), scale).dtype == torch.float16
            assert torch.is_autocast_enabled("cuda")


class TestRecompute:
    def test_runs_twice_and_counts_a_batch_once(self):
        norm, calls = nn.BatchNorm2d(3), []
        expected = nn.BatchNorm2d(3)

        def function(x):
            calls.append(x)
            return norm(x).sin()

        x = torch.randn(4, 3, 5, 5, requires_grad=True)
        y = recompute(function, x, norms=[norm])
        assert len(calls) == 1
        assert_close(y, expected(x).sin())
        statistics = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        y.sum().backward()
        assert len(calls) == 2
        assert statistics["num_batches_tracked"] == 1
        assert_close(statistics, dict(expected.named_buffers()))
        assert_close(dict(norm.named_buffers()), statistics)

    def test_keeps_its_inputs_alone(self):
        x, saved = torch.randn(10, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
        ):
            recompute(lambda x: x.sin().cos().exp(), x)
        assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]

    def test_autocast_is_the_same_again(self):
        """What is switched off within a region is so twice, and what is on around it, too."""
        types = []

        def function(x):
            with type_kept(x):
                types.append((torch.is_autocast_enabled("cpu"), (x @ x).dtype))
            types.append((torch.is_autocast_enabled("cpu"), (x @ x).dtype))
            return (x @ x).sin()

        x = torch.randn(3, 3, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = recompute(function, x)
        y.float().sum().backward()
        assert types == 2 * [(False, torch.float32), (True, torch.bfloat16)]
        assert x.grad.dtype == torch.float32

    def test_without_gradients_it_is_the_function(self):
        with torch.no_grad():
            assert_close(recompute(torch.sin, torch.ones(2)), torch.ones(2).sin())
