"""Trainers of a benchmark: who they are, and which of them a dataset's labels or plans rule out."""

import re
from dataclasses import replace

from nnunet_plugins.benchmark.protocol import (
    PARTIAL_LABELS,
    RIVAL,
    BenchmarkError,
    Protocol,
    Run,
    first_repeats,
    split_name,
)
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.datasets.sources import find_description
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER, without_seed
from nnunet_plugins.trainers.names import UnknownTrainerError, parse


def find_trainers(protocol: Protocol) -> None:
    """Refuse trainers that nobody finds, and names for those of other people that the benchmark would make of theirs.

    Raises:
        BenchmarkError: naming the trainer and the remedy.
        PlanError: for a trainer that nobody finds.
    """
    from nnunet_plugins.planning.setting import find_trainer

    for trainer in protocol.trainers:
        find_trainer(trainer)
    if protocol.with_rivals:
        for dataset in protocol.datasets:
            _require_modifiers(protocol.baseline(dataset).removesuffix(PARTIAL_LABELS))
    for run in protocol.runs():
        try:
            find_trainer(run.trainer)
        except InputError:
            name = without_seed(run.trainer)
            own = name.removesuffix(PARTIAL_LABELS)
            if own != name and own in map(without_seed, protocol.trainers):
                raise BenchmarkError(
                    f"--merged trains {own} as {name}, too, which is no trainer of this package; leave it out"
                ) from None
            if not run.seed or not protocol.repeats_of(name):
                raise
            find_trainer(name)
            raise BenchmarkError(
                f"{name} takes no seed, because it is no trainer of this package: it cannot be repeated. Number the "
                f"others by name, --repeats TRAINER:{protocol.repeats_of(name)}, and it is trained once"
            ) from None


def _require_modifiers(baseline: str) -> None:
    """Refuse a baseline that differs from nnU-Net's in more than modifiers, which rivals would not share."""
    base, modifiers = split_name(baseline)
    try:
        parse(baseline)
    except UnknownTrainerError:
        remedy = f"name {STOCK_TRAINER} as well, which is the baseline then"
        if base.startswith(STOCK_TRAINER) and base != STOCK_TRAINER:
            ours = f"{STOCK_TRAINER}_{base.removeprefix(STOCK_TRAINER)}{modifiers}"
            try:
                parse(ours)
                remedy = f"name {ours} in its place"
            except UnknownTrainerError:
                pass
        raise BenchmarkError(
            f"--with-rivals gives the rivals the baseline's modifiers, and {baseline} has other changes than those; "
            f"{remedy}"
        ) from None


def rule_out(protocol: Protocol, folders: Folders) -> Protocol:
    """Return the question without the rivals and twins that cannot have a dataset's labels or plans, and tell which.

    Of plans that are not made yet nothing is known but their dimension.

    Raises:
        BenchmarkError: if a trainer that was named cannot have them.
    """
    ruled_out = list(protocol.ruled_out)
    for run in first_repeats(protocol.runs()):
        if (obstacle := _find_obstacle(run, folders)) is None:
            continue
        where, base = f"{run.dataset}, {run.configuration}", split_name(run.trainer)[0]
        if run.role not in (RIVAL, "twin"):
            raise BenchmarkError(f"{where}: {obstacle if base in obstacle else f'{run.trainer}: {obstacle}'}")
        reason = re.sub(rf"^{base}\w*: ", "", obstacle.partition(";")[0])  # the remedy is for whoever has named it
        print(f"No {run.role} {run.algorithm} on {where}: {reason}", flush=True)
        ruled_out.append((run.dataset, run.configuration, without_seed(run.trainer), reason))
    return replace(protocol, ruled_out=tuple(ruled_out))


def _find_obstacle(run: Run, folders: Folders) -> str | None:
    """Say why a training would end before it begins, as far as the dataset and the plans are there; None if none."""
    from nnunet_plugins.datasets.folders import DATASET, label_manager
    from nnunet_plugins.forecast import fake_tensors
    from nnunet_plugins.planning.setting import build_network, find_trainer, plan_setting
    from nnunet_plugins.trainers.checks import require_backbone, require_labels

    trainer = find_trainer(run.trainer)
    description, file = find_description(run.dataset, folders.preprocessed, folders.raw)
    try:
        require_backbone(trainer)
        if not find_fault(description, DATASET):  # of which the trainings tell
            require_labels(trainer, label_manager(description, file))
    except NotImplementedError as error:
        return str(error)
    row = getattr(trainer, "backbone", None)
    if row not in BACKBONES:
        return None  # those of others may not be built on fake tensors
    dimension = next((number for number in (2, 3) if run.configuration.startswith(f"{number}d")), None)
    if dimension and dimension not in row.dimensions:
        other = "2d" if 2 in row.dimensions else "3d_fullres"
        return f"{row.trainer} is a {row.dimensions[0]}D network; use the configuration {other}"
    try:
        setting = plan_setting(run.dataset, run.configuration, run.plans)
    except InputError:  # no plans yet
        return None
    try:
        with fake_tensors():
            build_network(trainer, setting)
    except (InputError, ValueError) as error:
        # A subclass of ours may compute what fake tensors cannot.
        is_told = error.__cause__ is None or isinstance(error.__cause__, (ValueError, NotImplementedError))
        return str(error) if is_told else None
    return None
