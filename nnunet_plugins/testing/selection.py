"""Which rows are tested: those that a module names in `ROWS`, or those of `--backbone`."""

from collections.abc import Sequence

import pytest

from nnunet_plugins import backbones
from nnunet_plugins.rows import Backbone
from nnunet_plugins.trainers.names import UnknownTrainerError, parse


def rows_of(metafunc: pytest.Metafunc) -> Sequence[Backbone]:
    """Return the rows that a test is for.

    Raises:
        pytest.UsageError: if none are named, or one that does not exist.
    """
    named = getattr(metafunc.module, "ROWS", None)
    if named is not None:
        for row in named:
            find_row(row.trainer)
        return list(named)
    names = metafunc.config.getoption("--backbone")
    if not names:
        raise pytest.UsageError("which backbone? Give --backbone TRAINER, for example --backbone nnUNetTrainerFIRENet")
    return [find_row(name) for name in names]


def find_row(name: str) -> Backbone:
    """Return the row of a trainer's name.

    Raises:
        pytest.UsageError: if there is none, or the name has modifiers, or is that of nnU-Net's own trainer.
    """
    try:
        found = parse(name)
    except UnknownTrainerError as error:
        hint = " A package has to be installed to be found" if backbones.find(name.split("_")[0]) is None else ""
        raise pytest.UsageError(f"{str(error).removeprefix('nnunet_plugins: ')}{hint}") from error
    if found.modifiers or found.backbone is None:
        wanted = found.backbone.trainer if found.backbone else "a backbone's"
        raise pytest.UsageError(f"backbones are tested by their own name: {wanted}, not {name}")
    return found.backbone
