"""Which rows are tested: those that a module names in `ROWS`, or those of `--backbone`. Knows pytest by name only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_plugins.errors import InputError
from nnunet_plugins.rows import Backbone
from nnunet_plugins.trainers.names import parse

if TYPE_CHECKING:
    import pytest


def rows_of(metafunc: "pytest.Metafunc") -> Sequence[Backbone]:
    """Return the rows that a test is for.

    Raises:
        pytest.Collector.CollectError: if none are named, or one that does not exist.
    """
    import pytest

    named = getattr(metafunc.module, "ROWS", None)
    names = metafunc.config.getoption("--backbone") if named is None else [row.trainer for row in named]
    try:
        if not names:
            raise InputError("which backbone? Give --backbone TRAINER, as --backbone nnUNetTrainerFIRENet")
        return [find_row(name) for name in names]
    except InputError as error:
        raise pytest.Collector.CollectError(str(error)) from error


def find_row(name: str) -> Backbone:
    """Return the row of a trainer's name.

    Raises:
        InputError: if there is none, or the name has modifiers, or is that of nnU-Net's own trainer.
    """
    found = parse(name)
    if found.backbone is None:
        raise InputError(f"{name} is nnU-Net's own trainer; give that of a backbone, of `nnunet-plugins list`")
    if found.modifiers:
        raise InputError(f"{name} has modifiers; a backbone is checked by its own name, {found.backbone.trainer}")
    return found.backbone
