"""What plans say of a network: whether it can be built at all, and what depends on the patch. Loads nothing heavy."""

from typing import Any

from nnunet_plugins.errors import InputError

_LARGEST = 10_000  # channels, stages or convolutions that plans may ask for

BY_STAGE = ("n_stages", "strides", "kernel_sizes")
"""Options of nnU-Net's U-Nets that its planner derives from the patch and the spacing."""

PER_STAGE = {"features_per_stage": 0, "n_conv_per_stage": 0, "n_blocks_per_stage": 0, "n_conv_per_stage_decoder": 1}
"""Options of nnU-Net's U-Nets that list a number for each stage, and how many stages fewer the list has."""

MOST_FEATURES = {2: 512, 3: 320}
"""Channels that nnU-Net's planner gives a stage at the most, by dimension; it has them in its objects only."""


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


def without_sizes(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's configuration without what `nnunet-plugins plan` changes: patch, batch, and stages that follow.

    Args:
        configuration: as it stands in the plans file.
    """
    kept = {name: value for name, value in configuration.items() if name not in ("patch_size", "batch_size")}
    architecture = kept.get("architecture")
    if isinstance(architecture, dict) and isinstance(architecture.get("arch_kwargs"), dict):
        options = {name: value for name, value in architecture["arch_kwargs"].items() if name not in BY_STAGE}
        for name, fewer in PER_STAGE.items():
            if isinstance(options.get(name), list):
                options[name] = options[name][: 2 - fewer]  # fewer stages keep the numbers of the first ones
        kept["architecture"] = {**architecture, "arch_kwargs": options}
    return kept
