"""Find trained networks, and prove that they belong together and can be used.

They lie where nnU-Net puts them: nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION/fold_0/checkpoint_final.pth.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_plugins.datasets.folders import DATASET, dataset_name
from nnunet_plugins.datasets.preprocessed import PLANS
from nnunet_plugins.datasets.sources import FIXED
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault, read_json
from nnunet_plugins.images.recipe import PREPARED, read_recipe
from nnunet_plugins.planning.setting import find_trainer
from nnunet_plugins.trainers.checkpoints import UnsafeCheckpointError, load_checkpoint, require_known_architecture
from nnunet_plugins.trainers.fitting import find_weight_fault

_CONFIGURATION = {
    "patch_size": [int],
    "batch_size": int,
    "spacing": [(int, float)],
    "normalization_schemes": [str],
    "architecture": {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": [str]},
    "previous_stage?": (str, type(None)),
}
KEPT = ("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes")
"""What inference reads of a checkpoint; the rest is the optimizer's state and the log."""

OF_THE_NETWORK = ("patch_size", "architecture")
"""Parts of a plan that make another network; resampling, say, may be another one than in the training."""


@dataclass(frozen=True)
class Choice:
    """A trained configuration by nnU-Net's names."""

    trainer: str
    configuration: str
    plans: str

    def __str__(self) -> str:
        return f"{self.trainer}__{self.plans}__{self.configuration}"


def parse_choice(text: str, first: Choice) -> Choice:
    """Read TRAINER, TRAINER:CONFIGURATION or TRAINER:CONFIGURATION:PLANS; what is left out is the first network's.

    Raises:
        InputError: if it is none of these.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InputError(f"{text!r} is not TRAINER, TRAINER:CONFIGURATION or TRAINER:CONFIGURATION:PLANS")
    return Choice(*parts, *(first.configuration, first.plans)[len(parts) - 1 :])


@dataclass(frozen=True)
class Source:
    """A trained configuration.

    Attributes:
        choice: its names.
        folder: in nnU-Net's results.
        folds: whose networks are used.
        checkpoint: file in each of them.
        plans: as in the folder.
        dataset_json: likewise.
        trainer: the class.
        previous: the first stage of a cascade.
    """

    choice: Choice
    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    trainer: type[nnUNetTrainer]
    previous: "Source | None" = None
    trusted: bool = field(default=False, repr=False)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the image's channels, in their order."""
        names = self.dataset_json.get("channel_names") or self.dataset_json.get("modality") or {}
        return tuple(names[key] for key in sorted(names, key=int))

    def weights(self, fold: str, compared: Sequence[str] | None = None, *, diverged: bool = False) -> dict[str, Any]:
        """Return a fold's checkpoint without what only training needs.

        Args:
            fold: number, or "all".
            compared: parts of the configuration that have to be those of the training; all of them by default.
            diverged: take weights that are no finite numbers as well, to look at them.

        Raises:
            InputError: if it is of another trainer or other plans, or its weights cannot be used or do not fit the
                network.
            CheckpointError: if it cannot be read.
        """
        path = self.folder / f"fold_{fold}" / self.checkpoint
        checkpoint = load_checkpoint(path, trusted=self.trusted)
        if checkpoint["trainer_name"] != self.choice.trainer:
            raise InputError(f"{path} is of {checkpoint['trainer_name']}, not of {self.choice.trainer}")
        arguments = checkpoint["init_args"]
        if arguments["configuration"] != self.choice.configuration:
            raise InputError(f"{path} is of {arguments['configuration']}, not of {self.choice.configuration}")
        trained = read_configuration(arguments["plans"], self.choice.configuration, path)
        ours, theirs = (_as_json(part.configuration) for part in (trained, self.configuration))
        if compared is not None:
            ours, theirs = ({key: part.get(key) for key in compared} for part in (ours, theirs))
        if found := _difference(ours, theirs):
            raise InputError(
                f"{path} was trained with other plans than {self.folder / 'plans.json'}: {found}. Take folds that "
                "were trained with the same plans"
            )
        if not diverged and (fault := find_weight_fault(self.network, checkpoint["network_weights"])):
            raise InputError(f"the weights in {path} cannot be used: {fault}")
        try:
            self.network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError as error:
            raise InputError(f"the weights in {path} do not fit the network of its plans: {error}") from error
        return {name: checkpoint[name] for name in KEPT if name in checkpoint}

    @cached_property
    def configuration(self) -> ConfigurationManager:
        """The plans' part that holds."""
        return read_configuration(self.plans, self.choice.configuration, self.folder / "plans.json")

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network of the plans, built once."""
        return _build(self)


def find_source(
    dataset: str,
    choice: Choice,
    folds: Sequence[str],
    checkpoint: str = "checkpoint_final.pth",
    *,
    trusted: bool = False,
) -> Source:
    """Find a trained configuration that can go elsewhere, and its first stage if it is a cascade's second.

    Args:
        dataset: number or name.
        choice: trainer, configuration and plans.
        folds: numbers, or "all".
        checkpoint: file in each fold.
        trusted: read checkpoints that may run code.

    Raises:
        InputError: if something is missing, naming what, and what is there, or a file is not as nnU-Net writes it.
    """
    source = find_model(dataset, choice, folds, checkpoint, trusted=trusted)
    require_released(source.trainer)
    if FIXED in source.dataset_json:
        raise InputError(
            f"{source.folder} was trained on images of one size, to which a container scales none; predict with "
            "nnunet-plugins fixed-size --scale, nnUNetv2_predict and fixed-size --restore"
        )
    read_recipe(source.dataset_json, source.folder / "dataset.json")  # which inference reads
    stage = source.configuration.previous_stage_name
    if stage is None:
        return source
    first = find_source(dataset, Choice(choice.trainer, stage, choice.plans), folds, checkpoint, trusted=trusted)
    return replace(source, previous=first)


def find_model(dataset: str, choice: Choice, folds: Sequence[str], checkpoint: str, *, trusted: bool = False) -> Source:
    """Find a trained configuration, without the first stage of a cascade; see `find_source`."""
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 - nnU-Net's own spelling
    if results is None:
        raise InputError("nnUNet_results is not set; export nnUNet_results=/path/to/nnUNet_results")
    folder = Path(results, dataset_name(dataset), str(choice))
    if not folder.is_dir():
        there = sorted(path.name for path in folder.parent.glob("*__*__*"))
        raise InputError(f"{folder} is missing; trained for this dataset: {', '.join(there) or 'nothing'}")
    return _open(folder, dataset, choice, folds, checkpoint, trusted=trusted)


def model_in(folder: Path, folds: Sequence[str], checkpoint: str, *, trusted: bool = False) -> Source:
    """Return the trained configuration in a folder, without the first stage of a cascade.

    Args:
        folder: that nnU-Net has made for it, whose name says trainer, plans and configuration.
        folds: numbers, or "all".
        checkpoint: file in each fold.
        trusted: read checkpoints that may run code.

    Raises:
        InputError: if it is no such folder, or something is missing in it.
    """
    parts = folder.absolute().name.split("__")
    if len(parts) != 3 or not (folder / "plans.json").is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*__*__*"))[:5])
        raise InputError(
            f"{folder} is no folder of a trained configuration, which is nnUNet_results/DATASET/"
            f"TRAINER__PLANS__CONFIGURATION, with plans.json{f'; in it are {there}' if there else ''}"
        )
    trainer, plans, configuration = parts
    choice = Choice(trainer, configuration, plans)
    return _open(folder, folder.absolute().parent.name, choice, folds, checkpoint, trusted=trusted)


def _open(
    folder: Path, dataset: str, choice: Choice, folds: Sequence[str], checkpoint: str, *, trusted: bool
) -> Source:
    if len(set(folds)) < len(folds):
        raise InputError(f"-f {' '.join(folds)} names a fold twice; name each fold once")
    missing = [fold for fold in folds if not (folder / f"fold_{fold}" / checkpoint).is_file()]
    if missing:
        there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
        command = f"nnUNetv2_train {dataset} {choice.configuration} FOLD -tr {choice.trainer} -p {choice.plans} --npz"
        raise InputError(
            f"{choice} has no {checkpoint} in fold {', '.join(missing)}; folds that have one: "
            f"{', '.join(there) or 'none'}. Name those with -f, or train the others: {command}"
        )
    plans = read_json(folder / "plans.json", PLANS)
    return Source(
        choice,
        folder,
        tuple(folds),
        checkpoint,
        plans,
        read_json(folder / "dataset.json", DATASET),
        find_trainer(choice.trainer),
        trusted=trusted,
    )


def read_configuration(plans: dict[str, Any], name: str, file: Path) -> ConfigurationManager:
    """Return a configuration of some plans, with what it inherits from others.

    Args:
        plans: in the shape `PLANS`.
        name: of the configuration.
        file: where they were read, for the message.

    Raises:
        InputError: if there is no such configuration, or it is not as nnU-Net plans it.
    """
    if name not in plans["configurations"]:
        raise InputError(f"{file} has no configuration {name}")
    try:
        found = PlansManager(plans).get_configuration(name)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{file}: the configuration {name} cannot be used: {reason}") from error
    if fault := find_fault(_as_json(found.configuration), _CONFIGURATION):
        raise InputError(f"{file}: the configuration {name} is not as nnU-Net plans it: {fault}")
    return found


def require_released(trainer: type[nnUNetTrainer]) -> None:
    """Check that a trainer in nnU-Net's own folder came with nnU-Net; a copy put there is in no other installation.

    Raises:
        InputError: if it was copied there.
    """
    package = metadata.distribution("nnunetv2")
    file = f"{trainer.__module__.replace('.', '/')}.py"
    from_index = package.read_text("direct_url.json") is None
    known = {str(path) for path in package.files or ()}
    if file.startswith("nnunetv2/") and from_index and known and file not in known:
        raise InputError(
            f"{trainer.__name__} was copied into nnU-Net's own folder ({file}), which is not shipped. Put it into a "
            "folder of its own, and that folder into nnUNet_extTrainer"
        )


def require_one_task(sources: Sequence[Source]) -> None:
    """Check that all members of an ensemble segment the same labels in the same channels.

    Raises:
        InputError: naming two that do not, and where they differ.
    """
    first, *others = sources
    for source in others:
        for key in ("labels", "regions_class_order", "channel_names", "file_ending", PREPARED):
            ours, theirs = (part.dataset_json.get(key) for part in (first, source))
            if ours != theirs:
                raise InputError(
                    f"{first.choice} and {source.choice} cannot be one ensemble: {key} is {ours} in one, {theirs} in "
                    "the other"
                )
        readers = [part.plans.get("image_reader_writer") for part in (first, source)]
        if readers[0] != readers[1]:
            raise InputError(
                f"{first.choice} and {source.choice} cannot be one ensemble: their plans read images with "
                f"{readers[0]} and {readers[1]}"
            )


def _build(source: Source) -> torch.nn.Module:
    manager, configuration = PlansManager(source.plans), source.configuration
    if not source.trusted:
        try:
            require_known_architecture(configuration, source.folder / "plans.json")
        except UnsafeCheckpointError as error:
            raise InputError(f"{error}. If you trust these plans, use --run-code-in-checkpoint") from error
    try:
        return source.trainer.build_network_architecture(
            manager,
            configuration,
            determine_num_input_channels(manager, configuration, source.dataset_json),
            manager.get_label_manager(source.dataset_json).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    except Exception as error:  # whatever a network raises for plans that do not fit it, or make no sense
        raise InputError(f"the network of {source.choice} cannot be built: {type(error).__name__}: {error}") from error


def _as_json(content: Any) -> Any:
    """Return content as it is after a way through a file: lists for tuples."""
    return json.loads(json.dumps(content, default=str))


def _difference(trained: Any, planned: Any, place: str = "the configuration") -> str:
    """Return where two configurations differ first; nothing if they are the same."""
    if isinstance(trained, Mapping) and isinstance(planned, Mapping):
        parts = (_difference(trained.get(key), planned.get(key), key) for key in sorted({*trained, *planned}))
        return next(filter(None, parts), "")
    return "" if trained == planned else f"{place} is {trained} in the checkpoint, {planned} in the plans"
