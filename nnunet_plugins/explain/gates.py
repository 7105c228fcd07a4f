"""The gates of weighted sums (WRS): what they let through now, and over the training where it was kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from nnunet_plugins.errors import InputError
from nnunet_plugins.networks.fabric import Cell, DenseResidualFabric, Node
from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.networks.layers.wrs import WRS

HISTORY = "gates.csv"
"""In a fold's folder: `epoch`, and a column for each gate."""


@dataclass(frozen=True)
class Gate:
    """One term of a weighted sum.

    Attributes:
        name: where it leads and where it comes from.
        value: between 0 and 1.
        edge: from which node of a fabric to which, if it is in one.
    """

    name: str
    value: float
    edge: tuple[Node, Node] | None = None


def find_gates(network: nn.Module) -> list[Gate]:
    """Return all gates of a network; those of a fabric have the names that `describe` gives its nodes."""
    found: list[Gate] = []
    inside: set[nn.Module] = set()
    for fabric in network.modules():
        if not isinstance(fabric, DenseResidualFabric):
            continue
        for (target, sources), cell in zip(fabric.inputs.items(), fabric.cells, strict=True):
            assert isinstance(cell, Cell)
            inside.add(cell.wrs)
            there = "output" if target.column > fabric.depth else f"cell ({target.column},{target.branch})"
            for source, value in zip(sources, cell.wrs.gates.tolist(), strict=True):
                kind = "stem" if source.column == 0 else "cell"
                name = f"{there} <- {kind} ({source.column},{source.branch})"
                found.append(Gate(name, value, (source, target)))
    if isinstance(network, FIRENet):
        for level, wrs in enumerate(network.decoder.wrs, start=1):
            assert isinstance(wrs, WRS)
            inside.add(wrs)
            terms = zip(("below", "shortcut"), wrs.gates.tolist(), strict=True)
            found += [Gate(f"decoder {level} <- {term}", value) for term, value in terms]
    for name, module in network.named_modules():
        if isinstance(module, WRS) and module not in inside:
            found += [Gate(f"{name} <- {number}", value) for number, value in enumerate(module.gates.tolist())]
    return found


def read_history(folder: Path) -> pd.DataFrame | None:
    """Return the gates of every epoch of a training, indexed by the epoch; None if nobody kept them.

    Args:
        folder: the fold's.

    Raises:
        InputError: if the file is there and is no such table.
    """
    file = folder / HISTORY
    if not file.is_file():
        return None
    try:
        table = pd.read_csv(file)
        return table.set_index("epoch").astype(float)
    except (ValueError, KeyError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{file} is no table of gates, with a column epoch and one for each gate: {error}") from error


def as_table(gates: Sequence[Gate]) -> pd.DataFrame:
    """Return names and values."""
    return pd.DataFrame({"gate": [gate.name for gate in gates], "value": [gate.value for gate in gates]})
