"""The gates of a network: what they let through now, and over the training where it was kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from nnunet_plugins.errors import InputError
from nnunet_plugins.networks.fabric_names import Place, ends_of
from nnunet_plugins.trainers.fold_folder import GATES
from nnunet_plugins.trainers.gates import EPOCH


@dataclass(frozen=True)
class Gate:
    """One term of a weighted sum.

    Attributes:
        name: where it leads and where it comes from.
        value: between 0 and 1.
        edge: column and branch of the nodes of a fabric that it leads from and to, if it is in one.
    """

    name: str
    value: float
    edge: tuple[Place, Place] | None = None


def find_gates(network: nn.Module) -> list[Gate]:
    """Return the gates of a network as it tells them; none of a network that has none to tell (`rows.Backbone`).

    Raises:
        InputError: if it cannot tell them.
    """
    tell = getattr(network, "gate_values", dict)
    try:
        return [Gate(str(name), float(value), ends_of(str(name))) for name, value in tell().items()]
    except Exception as error:  # of networks of others
        raise InputError(f"the network cannot tell its gates: {error!r}") from error


def read_history(folder: Path) -> pd.DataFrame | None:
    """Return the gates of every epoch of a training, indexed by the epoch; None if nobody kept them.

    Args:
        folder: the fold's.

    Raises:
        InputError: if the file is there and is no such table.
    """
    file = folder / GATES
    if not file.is_file():
        return None
    try:
        table = pd.read_csv(file)
        return table.set_index(EPOCH).astype(float)
    except (OSError, ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{file} is no table of gates, with a column epoch and one for each gate: {error}") from error


def as_table(gates: Sequence[Gate]) -> pd.DataFrame:
    """Return names and values."""
    return pd.DataFrame({"gate": [gate.name for gate in gates], "value": [gate.value for gate in gates]})
