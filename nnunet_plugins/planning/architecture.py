"""Whether a description of a network can be built at all. Loads nothing heavy."""

from typing import Any

from nnunet_plugins.errors import InputError

_LARGEST = 10_000  # channels, stages or convolutions that plans may ask for

PER_STAGE = {"features_per_stage": 0, "n_conv_per_stage": 0, "n_blocks_per_stage": 0, "n_conv_per_stage_decoder": 1}
"""Options of nnU-Net's U-Nets that list a number for each stage, and how many stages fewer the list has."""


def check_numbers(options: Any, where: str) -> None:
    """Check the options of a plan's network before it is built, which would otherwise take forever, or all memory.

    Args:
        options: the plan's `arch_kwargs`.
        where: they stand, for the message.

    Raises:
        InputError: if a number in them is too large for any network.
    """
    if found := [number for number in _numbers(options) if number > _LARGEST]:
        raise InputError(f"{where} has the number {found[0]:g} in its architecture, which nobody could build")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (int, float)):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [number for part in parts for number in _numbers(part)]
