"""Checks of one checkpoint: what it is of, where its network comes from, and whether that is here."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.doctor.findings import Check, Finding, ok, problem, warning
from nnunet_plugins.planning.setting import find_trainer
from nnunet_plugins.trainers.backbone import ORIGIN
from nnunet_plugins.trainers.checkpoints import load_checkpoint
from nnunet_plugins.trainers.progress import PROGRESS


def sections(path: Path) -> dict[str, Check]:
    """Return the checks of a checkpoint, which is read without running code that it may hold."""

    def check() -> Iterator[Finding]:
        return _check(load_checkpoint(path))

    return {str(path): check}


def _check(checkpoint: Mapping[str, Any]) -> Iterator[Finding]:
    arguments, trainer = checkpoint["init_args"], checkpoint["trainer_name"]
    place = f"{arguments['plans'].get('dataset_name')}, {arguments['configuration']}, fold {arguments.get('fold')}"
    yield ok(f"{trainer} on {place}, epoch {checkpoint.get('current_epoch', 'unknown')}")
    state = checkpoint.get("optimizer_state") or {}
    origin = state.get(PROGRESS, {}).get(ORIGIN)
    if origin:
        yield from _check_origin(origin)
    try:
        found = find_trainer(trainer)
        yield ok(f"{trainer} is here: {found.__module__}")
    except PlanError as error:
        yield problem(str(error), _remedy(origin))


def _check_origin(origin: Mapping[str, Any]) -> Iterator[Finding]:
    distribution, version = origin["distribution"], origin["version"]
    if distribution is None:
        yield ok(f"its network {origin['network']} was in the file {origin['place']}")
        return
    yield ok(f"its network {origin['network']} comes from {distribution} {version}")
    try:
        here = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return  # that the trainer is not found says it
    if here != version:
        yield warning(
            f"{distribution} is here as {here}, which may build another network",
            f"if weights do not fit, or results differ: pip install '{distribution}=={version}'",
        )


def _remedy(origin: Mapping[str, Any] | None) -> str:
    if origin is None:
        return (
            "the checkpoint does not say which package its trainer comes from; ask whoever made it, and install that "
            "here or put its folder into nnUNet_extTrainer"
        )
    if origin["distribution"] is None:
        return f"put {Path(origin['place']).name} into a folder and that into nnUNet_extTrainer"
    return f"pip install '{origin['distribution']}=={origin['version']}'"
