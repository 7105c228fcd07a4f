"""Dense residual fabric (DRF): a grid of multi-scale cells whose edges carry trainable gates.

W branches at scales 1, 1/2, 1/4 ..., each N cells deep; a cell equalises the sizes of its inputs (ISE), sums them
through gates (WRS) and looks at the sum at several dilation rates (ASPP3D).
Paper: Liu et al. 2020 (FIRENet, arXiv:2006.15578), sections III-A1 to III-A3 and Fig. 2.

             j = 1   x ──┬── (1,1) ──── (2,1) ──── (3,1) ──── (4,1) ──┐
                         v down    ><        ><        ><             WRS ── out
             j = 2       ├── (1,2) ──── (2,2) ──── (3,2) ──── (4,2) ──┤
                         v down    ><        ><        ><             │
             j = 3       └── (1,3) ──── (2,3) ──── (3,3) ──── (4,3) ──┘        + dense shortcuts along each branch

Where the paper is silent or contradicts itself:
- Channels are C * 2^(min(min(i, N+1-i), j) - 1): its formula for the first half, mirrored, as its Fig. 2a shows.
- An edge down is a 3x3x3 convolution of stride 2 that also changes the channels; an edge up or along a branch uses a
  1x1x1 convolution only where the channels differ; upsampling is linear.
- The stem counts as column 0 for the dense shortcuts. With W = 3, N = 4: 3 + 21 + 10 + 3 = 37 gated edges.
- The stem's maps, the input and what the strided convolutions make of it, are instance-normalised (without parameters).
  Nothing else bounds their scale: in training it grew to a hundred times that of the cells' outputs, and the cells that
  a dense shortcut ties to the stem heard nothing else.
- It states dilation rates (1, 2, 4) but prints the receptive fields 3 5 6 7 10 12 14 20 28 of rates (1, 2, 3); rates
  (1, 2, 4) have 3 5 6 9 10 12 18 20 36. The stated rates are the default; see `DenseResidualFabric.receptive_fields`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from nnunet_plugins.networks.fabric_names import name_of
from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.blocks import INSTANCE_NORM, convolution, pointwise, upsample
from nnunet_plugins.networks.layers.ise import ISE
from nnunet_plugins.networks.layers.wrs import WRS


class Node(NamedTuple):
    """A place in the grid: `column` 0 is the stem, 1..N the cells, N + 1 the output; `branch` 1 is the finest."""

    column: int
    branch: int


def cell_channels(node: Node, depth: int, base: int) -> int:
    """Channels at a node: a pyramid that is widest in the middle of the coarsest branch (section III-A2)."""
    if node.column in (0, depth + 1):
        return base
    return base * 2 ** (min(node.column, depth + 1 - node.column, node.branch) - 1)


def fabric_inputs(width: int, depth: int, base: int) -> dict[Node, list[Node]]:
    """List, for every cell and for the output, the nodes it sums: the whole topology, in forward order.

    First the neighbours in the column before (same branch, finer, coarser), then the dense shortcuts from earlier
    cells of the same branch with equal channels (section III-A3).
    """
    branches = range(1, width + 1)
    inputs: dict[Node, list[Node]] = {Node(1, j): [Node(0, j)] for j in branches}
    for i in range(2, depth + 1):
        for j in branches:
            target = Node(i, j)
            inputs[target] = [Node(i - 1, k) for k in (j, j - 1, j + 1) if k in branches]
            inputs[target] += [
                Node(k, j)
                for k in range(i - 1)
                if cell_channels(Node(k, j), depth, base) == cell_channels(target, depth, base)
            ]
    inputs[Node(depth + 1, 1)] = [Node(depth, j) for j in branches]
    return inputs


class Edge(nn.Module):
    """Carry a feature map from one node to another: change its channels and its scale.

    Down one branch: strided convolution. Up one or more branches: 1x1x1 convolution where the channels differ, then
    linear interpolation, equalised to the true size after each step of two.
    """

    def __init__(
        self,
        source: Node,
        target: Node,
        channels: tuple[int, int],
        strides: Sequence[Sequence[int]],
        kernel_size: Sequence[int],
    ) -> None:
        super().__init__()
        self.steps_up = [(j - 1, tuple(strides[j - 2])) for j in range(source.branch, target.branch, -1)]
        self.ise = ISE()
        self.transform: nn.Module = nn.Identity()
        if target.branch > source.branch:
            self.transform = convolution(*channels, kernel_size, stride=strides[target.branch - 2])
        elif channels[0] != channels[1]:
            self.transform = pointwise(*channels, len(kernel_size))

    def forward(self, x: torch.Tensor, sizes: Sequence[Sequence[int]]) -> torch.Tensor:
        """Map `(N, in, *sizes[source branch - 1])` to `(N, out, *sizes[target branch - 1])`."""
        x = self.transform(x)
        for branch, scale in self.steps_up:
            x = self.ise(upsample(x, scale), sizes[branch - 1])
        return x


class Cell(nn.Module):
    """Feature cell: gated sum of all edges that end here, then (but for the output node) ASPP3D."""

    def __init__(self, edges: Sequence[Edge], features: nn.Module) -> None:
        super().__init__()
        self.edges = nn.ModuleList(edges)
        self.ise = ISE()
        self.wrs = WRS(len(edges))
        self.features = features

    def forward(
        self, inputs: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]], size: Sequence[int]
    ) -> torch.Tensor:
        """Map one tensor per edge to `(N, C, *size)`; `sizes` holds the spatial size of every branch."""
        carried = [self.ise(edge(x, sizes), size) for edge, x in zip(self.edges, inputs, strict=True)]
        return self.features(self.wrs(carried))


class DenseResidualFabric(nn.Module):
    """The fabric: `(N, channels, *size)` to `(N, channels, *size)`.

    Args:
        channels: C, channels of the input and the output.
        kernel_sizes: one kernel per branch, finest first; W is their number, their length the dimension.
        strides: W - 1 strides between neighbouring branches, 1 or 2 per axis.
        depth: N, cells per branch.
        dilations: dilation rates of every cell's ASPP3D.
        dropout: dropout probability after each activation.

    Raises:
        ValueError: if width or depth are below 1, or the number of strides does not fit.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_sizes: Sequence[Sequence[int]] = ((3, 3, 3),) * 3,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 2,
        *,
        depth: int = 4,
        dilations: Sequence[int] = (1, 2, 4),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = len(kernel_sizes)
        if width < 1 or depth < 1:
            raise ValueError(f"the fabric needs at least one branch and one cell, got width={width}, depth={depth}")
        if len(strides) != width - 1:
            raise ValueError(f"{width} branches have {width - 1} strides between them, got {len(strides)}: {strides}")
        self.width, self.depth, self.channels = width, depth, channels
        self.dilations = tuple(dilations)
        self.strides = [tuple(stride) for stride in strides]
        self.inputs = fabric_inputs(width, depth, channels)
        self.stem = nn.ModuleList(
            convolution(channels, channels, kernel, stride=stride)
            for kernel, stride in zip(kernel_sizes[1:], strides, strict=True)
        )
        self.stem_norm = INSTANCE_NORM[len(kernel_sizes[0])](channels)
        self.cells = nn.ModuleList()
        for target, sources in self.inputs.items():
            kernel = kernel_sizes[target.branch - 1]
            out_channels = cell_channels(target, depth, channels)
            edges = [
                Edge(source, target, (cell_channels(source, depth, channels), out_channels), strides, kernel)
                for source in sources
            ]
            features: nn.Module = nn.Identity()
            if target.column <= depth:
                features = ASPP3D(out_channels, out_channels, kernel, dilations=dilations, dropout=dropout)
            self.cells.append(Cell(edges, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(N, channels, *size)` to `(N, channels, *size)`."""
        maps = {Node(0, 1): self.stem_norm(x)}
        for j, down in enumerate(self.stem, start=2):
            maps[Node(0, j)] = self.stem_norm(down(maps[Node(0, j - 1)]))
        sizes = [tuple(maps[Node(0, j)].shape[2:]) for j in range(1, self.width + 1)]
        for (target, sources), cell in zip(self.inputs.items(), self.cells, strict=True):
            maps[target] = cell([maps[source] for source in sources], sizes, sizes[target.branch - 1])
        return maps[Node(self.depth + 1, 1)]

    @property
    def receptive_fields(self) -> list[int]:
        """Spans of one dilated convolution at every scale, in voxels of the finest branch, along a halved axis.

        (2 r + 1) * 2^(j - 1) for rate r in branch j: the paper's list of scales in section III-A1.
        """
        return sorted({(2 * rate + 1) * 2**j for rate in self.dilations for j in range(self.width)})

    def gate_values(self) -> dict[str, float]:
        """Return the current gate of every edge, 0 to 1, by its ends, such as "cell (2,1) <- stem (0,1)"."""
        return {
            f"{name_of(target, self.depth)} <- {name_of(source, self.depth)}": gate
            for target, gates in self._gates()
            for source, gate in gates.items()
        }

    def describe(self) -> str:
        """Draw the fabric as text: every cell with its channels, and every edge into it with its current gate."""
        edges = sum(len(sources) for sources in self.inputs.values())
        lines = [f"Dense residual fabric: {self.width} branches x {self.depth} cells, {edges} gated edges"]
        for target, gates in self._gates():
            carried = ", ".join(f"{name_of(source, self.depth)} {gate:.3f}" for source, gate in gates.items())
            channels = cell_channels(target, self.depth, self.channels)
            lines.append(f"  {name_of(target, self.depth):10} {channels:4d} channels <- {carried}")
        return "\n".join(lines)

    def _gates(self) -> Iterator[tuple[Node, dict[Node, float]]]:
        for (target, sources), cell in zip(self.inputs.items(), self.cells, strict=True):
            assert isinstance(cell, Cell)
            yield target, dict(zip(sources, cell.wrs.gates.tolist(), strict=True))
