"""The dense residual fabric's topology: exact numbers."""

import pytest
import torch
from torch.testing import assert_close

from nnunet_plugins.networks.fabric import DenseResidualFabric, Node, cell_channels, fabric_inputs

# Channels of cell (i, j): a row per branch j = 1..3, a column per i = 1..4.
CHANNELS = [[64, 64, 64, 64], [64, 128, 128, 64], [64, 128, 128, 64]]


def test_channels():
    assert [[cell_channels(Node(i, j), 4, 64) for i in range(1, 5)] for j in range(1, 4)] == CHANNELS


def test_edges():
    inputs = fabric_inputs(width=3, depth=4, base=64)
    stem = [target for target, sources in inputs.items() for s in sources if s.column == 0 and target.column == 1]
    columns = [
        (source, target)
        for target, sources in inputs.items()
        for source in sources
        if target.column <= 4 and source.column == target.column - 1 and source.column > 0
    ]
    dense = {
        (target.column, target.branch): [s.column for s in sources if s.column <= target.column - 2]
        for target, sources in inputs.items()
        if target.column <= 4 and any(s.column <= target.column - 2 for s in sources)
    }
    assert len(stem) == 3
    assert len(columns) == 21
    assert dense == {(2, 1): [0], (3, 1): [0, 1], (4, 1): [0, 1, 2], (4, 2): [0, 1], (4, 3): [0, 1]}
    assert inputs[Node(5, 1)] == [Node(4, 1), Node(4, 2), Node(4, 3)]
    assert sum(map(len, inputs.values())) == 37


def test_every_edge_has_one_gate():
    fabric = DenseResidualFabric(8)
    assert sum(cell.wrs.weight.numel() for cell in fabric.cells) == 37


@pytest.mark.parametrize(
    ("dilations", "spans"),
    [((1, 2, 4), [3, 5, 6, 9, 10, 12, 18, 20, 36]), ((1, 2, 3), [3, 5, 6, 7, 10, 12, 14, 20, 28])],
)
def test_receptive_fields(dilations, spans):
    assert DenseResidualFabric(4, dilations=dilations).receptive_fields == spans


@pytest.mark.parametrize("size", [(8, 8, 8), (5, 7, 9), (4, 6, 5)])
def test_keeps_any_size(size):
    assert DenseResidualFabric(4)(torch.randn(1, 4, *size)).shape == (1, 4, *size)


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (2, 3), (4, 2)])
def test_other_widths_and_depths(width, depth):
    fabric = DenseResidualFabric(4, ((3, 3),) * width, ((2, 2),) * (width - 1), depth=depth)
    out = fabric(torch.randn(1, 4, 33, 35))
    out.sum().backward()
    assert out.shape == (1, 4, 33, 35)
    assert all(parameter.grad is not None for parameter in fabric.parameters())


def test_anisotropic_branches_keep_the_thin_axis():
    fabric = DenseResidualFabric(4, ((1, 3, 3), (1, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2)))
    assert fabric.stem[0](torch.zeros(1, 4, 3, 8, 8)).shape == (1, 4, 3, 4, 4)
    assert fabric(torch.randn(1, 4, 3, 8, 8)).shape == (1, 4, 3, 8, 8)


def test_the_stem_is_as_loud_as_the_cells_whatever_its_input_and_weights():
    """Its scale is nobody's business: a loud stem would drown the cells in every sum that a dense shortcut feeds."""
    torch.manual_seed(0)
    fabric = DenseResidualFabric(4).eval()
    x = torch.randn(1, 4, 9, 10, 11)
    with torch.no_grad():
        before = fabric(x)
        for down in fabric.stem:
            down.weight.mul_(50)
            down.bias.add_(7)
        assert_close(fabric(100 * x - 30), before, rtol=1e-3, atol=1e-3)


def test_describe_shows_cells_channels_edges_and_gates():
    fabric = DenseResidualFabric()
    fabric.cells[-1].wrs.weight.data = torch.tensor([-100.0, 0.0, 100.0])
    text = fabric.describe()
    lines = text.splitlines()
    assert lines[0] == "Dense residual fabric: 3 branches x 4 cells, 37 gated edges"
    assert len(lines) == 1 + 12 + 1
    assert lines[5].split("<-")[0].split() == ["cell", "(2,2)", "128", "channels"]
    assert "cell (4,1) 0.000, cell (4,2) 0.500, cell (4,3) 1.000" in lines[-1]


def test_bad_options():
    with pytest.raises(ValueError, match="depth=0"):
        DenseResidualFabric(4, depth=0)
    with pytest.raises(ValueError, match="3 branches have 2 strides between them, got 1"):
        DenseResidualFabric(4, strides=((2, 2, 2),))
