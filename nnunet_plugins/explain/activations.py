"""Activation maps: of a layer the channels that differ most between voxels.

In a fabric (FIRENet, Liu et al. 2020, arXiv:2006.15578, Figs. 6 to 8) a cell has maps at several places: what its edges
bring before they are summed (WRS), the sum, each dilation rate of its ASPP3D, and its output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnunet_plugins.explain.windows import Windows
from nnunet_plugins.networks.fabric import Cell, DenseResidualFabric
from nnunet_plugins.networks.layers.aspp import ASPP3D
from nnunet_plugins.networks.layers.autofocus import short_rate
from nnunet_plugins.networks.layers.blocks import ConvBlock


@dataclass(frozen=True)
class Site:
    """A place in a network where maps are taken.

    Attributes:
        name: for files.
        title: in words.
        module: its name in the network.
        number: of the input, where it is one of the module's inputs that is taken; else the output is.
    """

    name: str
    title: str
    module: str
    number: int | None = None


def find_sites(network: nn.Module, named: Sequence[str], default: str) -> list[Site]:
    """Return where to take maps.

    Args:
        network: to look into.
        named: modules that the user asked for; a cell of a fabric stands for all places in it.
        default: module where nobody asked for any, and there is neither a fabric nor an ASPP3D.
    """
    cells = _cells(network)
    if named:
        chosen = [*named]
    elif cells:
        fabric = next(module for module in network.modules() if isinstance(module, DenseResidualFabric))
        middle = (fabric.depth + 1) // 2
        chosen = [name for name, (column, _, _) in cells.items() if column == middle]
    else:
        chosen = [name for name, module in network.named_modules() if isinstance(module, ASPP3D)] or [default]
    sites: list[Site] = []
    for name in chosen:
        module = network.get_submodule(name)
        if name in cells:
            column, branch, sources = cells[name]
            sites += _in_cell(name, module, f"{column}-{branch}", f"cell ({column},{branch})", sources)
        elif isinstance(module, ASPP3D):
            sites += [*_in_aspp(name, module, name, name), Site(f"{name}_out", f"{name}, output", name)]
        else:
            sites.append(Site(name, name, name))
    return sites


def _cells(network: nn.Module) -> dict[str, tuple[int, int, list[str]]]:
    """Return column, branch and the names of the sources of every cell in a fabric, by its module's name."""
    found = {}
    for name, fabric in network.named_modules():
        if isinstance(fabric, DenseResidualFabric):
            for number, (target, sources) in enumerate(fabric.inputs.items()):
                key = f"{name}.cells.{number}" if name else f"cells.{number}"
                kinds = [f"{'stem' if one.column == 0 else 'cell'} ({one.column},{one.branch})" for one in sources]
                found[key] = (target.column, target.branch, kinds)
    return found


def _in_cell(module: str, cell: Any, short: str, title: str, sources: Sequence[str]) -> list[Site]:
    assert isinstance(cell, Cell)
    places = [
        Site(f"cell-{short}_before{number + 1}", f"{title}, from {source} before WRS", f"{module}.wrs", number)
        for number, source in enumerate(sources)
    ]
    places.append(Site(f"cell-{short}_after", f"{title}, after WRS", f"{module}.wrs"))
    if isinstance(cell.features, ASPP3D):
        places += _in_aspp(f"{module}.features", cell.features, f"cell-{short}", title)
    return [*places, Site(f"cell-{short}_out", f"{title}, output", module)]


def _in_aspp(module: str, aspp: ASPP3D, short: str, title: str) -> list[Site]:
    places = []
    for number, branch in enumerate(aspp.branches):
        if isinstance(branch, ConvBlock):
            convolution: Any = branch[0]
            rate = short_rate(convolution.dilation)
            # The convolution and what follows it are called apart, so that the whole block has no output of its own.
            last = f"{module}.branches.{number}.{len(branch) - 1}"
            places.append(Site(f"{short}_rate{rate}", f"{title}, dilation rate {rate}", last))
    return places


@contextmanager
def record(network: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the maps `(N, C, *size)` of sites by their names while the network runs; of the last pass."""
    maps: dict[str, torch.Tensor] = {}

    def keep(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            found = output if site.number is None else inputs[0][site.number]
            # What comes next may work in place.
            maps[site.name] = found.detach().clone()

        return hook

    handles = [network.get_submodule(site.module).register_forward_hook(keep(site)) for site in sites]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def take_activations(
    network: nn.Module, windows: Windows, sites: Sequence[Site], channels: int
) -> dict[str, tuple[list[int], torch.Tensor]]:
    """Return the channels of highest variance over the image's voxels, and their maps `(channels, z, y, x)`, by site.

    The image goes through the network twice: in tiles nobody knows before the last one which channels they are.
    """

    def look(x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        with record(network, sites) as maps:
            network(x)
        return maps

    sums: dict[str, list[torch.Tensor]] = {}
    for _, maps in windows.each(look):
        for name, found in maps.items():
            values = found[0].double().flatten(1).cpu()
            parts = [torch.full((len(values),), float(values.shape[1])), values.sum(1), values.square().sum(1)]
            before = sums.setdefault(name, [torch.zeros(len(values), dtype=torch.float64) for _ in parts])
            sums[name] = [one + other for one, other in zip(before, parts, strict=True)]
    chosen = {}
    for name, (count, total, squares) in sums.items():
        variance = squares / count - (total / count).square()
        chosen[name] = variance.argsort(descending=True, stable=True)[:channels].tolist()

    def again(x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {name: maps[:, chosen[name]] for name, maps in look(x).items()}

    return {name: (chosen[name], maps) for name, maps in windows.gather(again).items()}
