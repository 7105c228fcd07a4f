"""Checks of disk space: what preprocessing and a training will need, against what is free."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median

from nnunet_plugins.datasets.preprocessed import PLANS, is_preprocessed, look_up
from nnunet_plugins.doctor.findings import Finding, ok, problem, warning
from nnunet_plugins.doctor.images import CaseFacts
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault, is_json, read_json
from nnunet_plugins.forecast import format_bytes

_UNET_NUMBERS = 2 * 31_000_000  # parameters of nnU-Net's 3D U-Net with six stages, and their momentum
_CHECKPOINTS = 3  # best, latest and final, for a while
_FLOAT, _LABEL = 4, 1  # bytes


def check_space(
    folder: Path, plans: str, configuration: str | None, facts: Mapping[str, CaseFacts], numbers: int | None
) -> Iterator[Finding]:
    """Compare what is needed with what is free.

    Args:
        folder: of the dataset, in nnUNet_preprocessed.
        plans: their name.
        configuration: to be preprocessed; None for all of the plans'.
        facts: of the raw cases.
        numbers: in a checkpoint, the network's parameters and what the optimizer keeps of them; None for those of
            nnU-Net's U-Net.
    """
    sound = [case for case in facts.values() if case.channels]
    if sound:
        yield from _check_preprocessing(folder, plans, configuration, sound)
    results = os.environ.get("nnUNet_results", "")  # noqa: SIM112 - nnU-Net's own spelling
    if Path(results).is_dir() and results:
        needed = _CHECKPOINTS * _FLOAT * (numbers or _UNET_NUMBERS)
        whose = "the network" if numbers else "nnU-Net's U-Net"
        yield _compare(f"checkpoints of one training of {whose}, up to {_CHECKPOINTS} at a time", needed, Path(results))


def _check_preprocessing(
    folder: Path, plans: str, configuration: str | None, cases: Sequence[CaseFacts]
) -> Iterator[Finding]:
    spacings = _target_spacings(folder / f"{plans}.json", configuration)
    if spacings and is_preprocessed(folder, plans, spacings):
        yield ok(f"preprocessed already: {', '.join(spacings)}")
        return
    usual = [median(axis) for axis in zip(*(case.channels[0].grid.spacing for case in cases), strict=False)]
    todo = {name: spacing for name, spacing in spacings.items() if not is_preprocessed(folder, plans, [name])}
    needed = sum(_voxel_bytes(case, spacing) for case in cases for spacing in todo.values() or [usual])
    what = f"preprocessing {', '.join(todo) or 'one configuration at the median spacing'}, before compression"
    # The folder itself may not be there yet.
    yield _compare(what, needed, folder.parent)


def _target_spacings(file: Path, configuration: str | None) -> dict[str, list[float]]:
    """Return the spacings to which configurations are resampled, of two axes in 2D; none if there are no plans yet.

    Of all configurations, those that inherit their spacing have the data of another one.
    """
    if not is_json(file):
        return {}
    found: dict[str, list[float]] = {}
    try:
        configurations = read_json(file, PLANS)["configurations"]
        spacings = {name: content.get("spacing") for name, content in configurations.items()}
        if configuration:
            spacings = {configuration: look_up(file, configuration, "spacing")}
    except InputError:  # which the checks of plans tell
        return {}
    for name, spacing in spacings.items():
        if spacing and not find_fault(spacing, [(int, float)]) and min(spacing) > 0:
            found[name] = spacing
    return found


def _voxel_bytes(case: CaseFacts, spacing: Sequence[float]) -> float:
    """Return the bytes of a case resampled along the last axes, which are those of the spacing."""
    grid = case.channels[0].grid
    sides = list(zip(grid.shape, grid.spacing, strict=False))
    kept = prod(n for n, _ in sides[: len(sides) - len(spacing)])
    # Axes may be transposed; the product of all is the same.
    voxels = kept * prod(n * own for n, own in sides[len(sides) - len(spacing) :]) / prod(spacing)
    return voxels * (_FLOAT * len(case.channels) + _LABEL)


def _compare(what: str, needed: float, place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    text = f"{what}: about {format_bytes(needed)}; {place} has {format_bytes(free)} free"
    if needed > free:
        return problem(text, "make room, or choose another folder")
    if needed > free / 2:
        return warning(text, "make room before several of them run")
    return ok(text)
