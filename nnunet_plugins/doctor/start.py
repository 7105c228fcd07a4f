"""Checks of weights to start from: what nnU-Net's `-pretrained_weights` takes of them, leaves out, and stops at.

nnU-Net wants each weight of the network but those of the output layers, by name and in its shape, and its message names
the first that is not so. Strides are in no weight, so that weights of other plans may fit and mean something else.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_plugins.datasets.plan_names import moving_commands
from nnunet_plugins.doctor.findings import Finding, ok, problem, warning
from nnunet_plugins.doctor.training import Training
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.forecast import fake_tensors, format_size
from nnunet_plugins.planning.seen import Cases, folds_that_saw, shared_origins
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer, plan_setting
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.checkpoints import UnsafeCheckpointError, load_checkpoint, require_known_architecture
from nnunet_plugins.trainers.fitting import LEFT_OUT, Fit, find_weight_fault, fit_weights

_DATASET = re.compile(r"Dataset\d{3}_.+")
_OF_BACKBONES = ("kernel_sizes", "strides")  # what our networks take of a plan, besides the patch


@dataclass(frozen=True)
class _Origin:
    """What a checkpoint tells of the training that it is of; None for what it does not."""

    trainer: str | None = None
    plans: PlansManager | None = None
    configuration: ConfigurationManager | None = None
    name: str = ""  # of the configuration
    channels: int | None = None
    fold: Any = None
    description: Mapping[str, Any] = field(default_factory=dict)  # dataset.json

    @property
    def dataset(self) -> str:
        return str(self.plans.plans.get("dataset_name", "")) if self.plans else ""

    def __str__(self) -> str:
        place = f"{self.dataset or 'an unnamed dataset'}, {self.name}, fold {self.fold}"
        return f"{self.trainer or 'an unknown trainer'} on {place if self.plans else 'an unknown dataset'}"


def check_start(training: Training, path: Path) -> Iterator[Finding]:
    """Check weights that a training is to start from. Code that the file may hold or name does not run.

    Args:
        training: which; nothing is said where its trainer or plans cannot be used, which other checks tell.
        path: of the checkpoint.
    """
    try:
        checkpoint = load_checkpoint(path, weights_suffice=True)
    except UnsafeCheckpointError as error:
        yield problem(str(error), "nnU-Net runs code in this file: take one of nnU-Net, from people whom you trust")
        return
    except (InputError, OSError) as error:
        yield problem(str(error), "take a checkpoint of nnU-Net, or what `nnunet-plugins warm-start` has written")
        return
    origin = _origin(checkpoint, path)
    yield ok(f"weights of {origin}, epoch {checkpoint.get('current_epoch', 'unknown')}")
    try:
        trainer = find_trainer(training.trainer)
        setting = plan_setting(training.dataset, training.configuration, training.plans)
        network = _build(trainer, setting)
    except (InputError, ValueError):
        return
    yield from _check_weights(training, trainer, setting, network, origin, checkpoint["network_weights"], path)
    yield from _check_data(training, setting, origin)


def _origin(checkpoint: Mapping[str, Any], path: Path) -> _Origin:
    trainer, arguments = checkpoint.get("trainer_name"), checkpoint.get("init_args")
    if not arguments:
        return _Origin(trainer)
    try:
        plans = PlansManager(arguments["plans"])
        configuration = plans.get_configuration(arguments["configuration"])
        require_known_architecture(configuration, path)
        channels = determine_num_input_channels(plans, configuration, arguments["dataset_json"])
    except Exception:  # whatever nnU-Net raises for plans that make no sense; the weights are there all the same
        return _Origin(trainer)
    known = (arguments["configuration"], channels, arguments.get("fold"), arguments["dataset_json"])
    return _Origin(trainer, plans, configuration, *known)


def _build(trainer: type[nnUNetTrainer], setting: Setting) -> nn.Module:
    with fake_tensors():
        return build_network(trainer, setting)


def _check_weights(
    training: Training,
    trainer: type[nnUNetTrainer],
    setting: Setting,
    network: nn.Module,
    origin: _Origin,
    weights: Mapping[str, torch.Tensor],
    path: Path,
) -> Iterator[Finding]:
    if fault := find_weight_fault(network, weights):
        yield problem(f"its weights cannot be used: {fault}", "take another checkpoint")
        return
    ours = network.state_dict()
    fit = _without_outputs(fit_weights(ours, weights))
    outputs = _distinct(network, [name for name in ours if LEFT_OUT in name])
    differences = _differences(trainer, setting, origin)
    move = _moving(training, origin, path)
    if fit.missing or fit.other_shape:
        causes = list(_causes(training, trainer, setting, fit, network, origin, differences, move, path))
        causes = causes or [("", "take the versions of nnU-Net and nnunet_plugins that it was trained with")]
        told = [_tell_missing(network, fit), _tell_shapes(network, fit, ours, weights), *(text for text, _ in causes)]
        yield problem(f"nnU-Net will not load it: {'; '.join(filter(None, told))}", causes[0][1])
        return
    yield ok(f"nnU-Net takes {_count(_distinct(network, fit.equal))} of the network from it")
    if outputs:
        yield ok(f"left out by nnU-Net, to begin anew: {_count(outputs)} of the output layers ({LEFT_OUT})")
    else:
        yield ok(f"no name in the network has {LEFT_OUT} in it, so that the output layers are taken as well")
    if fit.foreign:
        yield warning(
            f"the network has no place for {_count(fit.foreign)} of it, first of all {fit.foreign[0]}; nnU-Net leaves "
            "out such without a word",
            "look whether trainer and plans are those that you mean",
        )
    if origin.configuration is None:
        yield warning(
            "it does not tell with which plans it was trained, or these cannot be used; strides are in no weight, so "
            "nobody can see whether they are the same",
            "make sure that the plans are those of its training",
        )
    elif _is_other_network(trainer, setting, network, origin):
        patches = [format_size(one.patch_size) for one in (origin.configuration, setting.configuration)]
        patch = f"the network depends on the patch, {patches[0]} there and {patches[1]} here"
        yield warning(
            f"all weights fit, but the network is another one: {'; '.join(differences) or patch}",
            move or "use the plans that it was trained with",
        )


def _without_outputs(fit: Fit) -> Fit:
    """Return a fit without what nnU-Net leaves out anyway."""
    parts = (fit.equal, fit.other_shape, fit.missing, fit.foreign)
    return Fit(*(tuple(name for name in part if LEFT_OUT not in name) for part in parts))


def _causes(
    training: Training,
    trainer: type[nnUNetTrainer],
    setting: Setting,
    fit: Fit,
    network: nn.Module,
    origin: _Origin,
    differences: Sequence[str],
    move: str,
    path: Path,
) -> Iterator[tuple[str, str]]:
    """Yield why weights do not fit, each with what to do; what cannot be mended by the next comes first."""
    if origin.channels not in (None, setting.channels):
        yield (
            f"images have {origin.channels} channels there, {setting.channels} here",
            "no plans mend that: take a checkpoint trained on images with as many channels, or start from scratch",
        )
    if origin.trainer and not _same_weights(origin.trainer, setting, network):
        text = f"it is of {origin.trainer}, and {training.trainer} has another network"
        if hasattr(network, "adopt") or not (fit.foreign or fit.other_shape):
            start = f"nnunet-plugins warm-start {shlex.quote(str(path))} -tr {training.trainer} -o start.pth"
            yield text, f"let the weights that are new be added: {start}; and start from that"
        else:
            yield text, f"use the trainer of its network, -tr {origin.trainer}"
    if differences:
        yield "; ".join(differences), move or "use the plans that it was trained with"


def _same_weights(theirs: str, setting: Setting, network: nn.Module) -> bool:
    """Tell whether another trainer's network has the same weights, by name and shape, for one setting."""
    try:
        other = find_trainer(theirs)
        fit = fit_weights(network.state_dict(), _build(other, setting).state_dict())
    except (InputError, ValueError):  # not here, or not for this plan
        return False
    return not (fit.other_shape or fit.missing or fit.foreign)


def _differences(trainer: type[nnUNetTrainer], setting: Setting, origin: _Origin) -> list[str]:
    """Say where the plans differ in what the trainer's network is built by."""
    if origin.configuration is None:
        return []
    theirs, ours = origin.configuration, setting.configuration
    there, here = ({"network": one.network_arch_class_name, **one.network_arch_init_kwargs} for one in (theirs, ours))
    every = dict.fromkeys([*there, *here])
    keys = [key for key in every if key in _OF_BACKBONES or not issubclass(trainer, BackboneTrainer)]
    return [
        f"{key.replace('_', ' ')}: {_show(there.get(key))} there, {_show(here.get(key))} here"
        for key in keys
        if there.get(key) != here.get(key)
    ]


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(format_size(one) if isinstance(one, (list, tuple)) else str(one) for one in value)
    return str(value)


def _is_other_network(trainer: type[nnUNetTrainer], setting: Setting, network: nn.Module, origin: _Origin) -> bool:
    """Tell whether the plans of a checkpoint make another network, with the present channels and classes."""
    assert origin.plans is not None
    assert origin.configuration is not None
    try:
        theirs = _build(trainer, replace(setting, plans=origin.plans, configuration=origin.configuration))
    except (InputError, ValueError):
        return True
    return _topology(theirs) != _topology(network)


def _topology(network: nn.Module) -> tuple[str, list[Any]]:
    # Modules tell their strides and kernels as text, and some keep those of operations that are no modules. Networks of
    # places measure these by the patch.
    kept = ("strides", "patch_size")
    return str(network), [getattr(module, name, None) for module in network.modules() for name in kept]


def _moving(training: Training, origin: _Origin, path: Path) -> str:
    """Return the commands that train with the plans of a checkpoint; nothing if it does not tell which these are."""
    if origin.plans is None or not _DATASET.fullmatch(origin.dataset):
        return ""
    plans, before = str(origin.plans.plans.get("plans_name", "nnUNetPlans")), ""
    commands: list[str] = []
    if origin.dataset != training.dataset:
        root = os.environ.get("nnUNet_preprocessed", "")  # noqa: SIM112 - nnU-Net's own spelling
        file = Path(root, origin.dataset, f"{plans}.json")
        if not file.is_file():
            before = f"put plans.json of the model's folder at {file}; "
        plans, commands = moving_commands(origin.dataset, training.dataset, plans, origin.name)
    where = f"{training.dataset} {origin.name} 0 -tr {training.trainer} -p {plans}"
    commands.append(f"nnUNetv2_train {where} -pretrained_weights {shlex.quote(str(path))}")
    return f"train with the plans of the checkpoint: {before}{'; '.join(commands)}"


def _distinct(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Return names without those of weights that have several."""
    own = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return [name for name in names if name in own] or list(names)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} weight{'s' * (len(names) != 1)}"


def _tell_missing(network: nn.Module, fit: Fit) -> str:
    names = _distinct(network, fit.missing)
    return f"{_count(names)} of the network not in it, first of all {names[0]}" if names else ""


def _tell_shapes(
    network: nn.Module, fit: Fit, ours: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> str:
    if not (names := _distinct(network, fit.other_shape)):
        return ""
    there, here = (format_size(one[names[0]].shape) for one in (weights, ours))
    return f"{_count(names)} in another shape, first of all {names[0]}, {there} there and {here} here"


def _check_data(training: Training, setting: Setting, origin: _Origin) -> Iterator[Finding]:
    """Say what differs in the images, or may not differ in the split."""
    if origin.configuration is None:
        return
    theirs, ours = (one.configuration for one in (origin.configuration, setting.configuration))
    for key, what in (("normalization_schemes", "normalised"), ("spacing", "resampled")):
        there, here = theirs.get(key), ours.get(key)
        if there and here and there != here:
            level = "warning" if key == "normalization_schemes" else "note"
            shown = [
                "x".join(f"{one:g}" for one in side) if key == "spacing" else _show(side) for side in (there, here)
            ]
            unit = " mm" * (key == "spacing")
            yield Finding(
                level,
                f"images were {what} to {shown[0]}{unit} there, and are to {shown[1]}{unit} here",
                "if that is not meant, train with the plans of the checkpoint",
            )
    yield from _check_cases(training, origin)


def _check_cases(training: Training, origin: _Origin) -> Iterator[Finding]:
    """Say whether the weights have seen what a fold validates on, in whichever dataset it was."""
    root = Path(os.environ.get("nnUNet_preprocessed", ""))  # noqa: SIM112 - nnU-Net's own spelling
    weights = Cases(origin.dataset, origin.description)
    own = Cases(training.dataset, read_json(root / training.dataset / "dataset.json", dict))
    try:
        shared, seen = shared_origins(weights, own), None
        if shared:
            seen = folds_that_saw(weights, origin.fold, own, root)
    except InputError as error:
        yield warning(f"nobody knows whether it has seen what is validated on: {error}", "look into both dataset.json")
        return
    if not shared:
        return
    same = origin.dataset == training.dataset
    where = "on this dataset" if same else f"on cases of {' and '.join(shared)}, which are in this dataset, too"
    told = f"it was trained {where}, fold {origin.fold}"
    alone = f"train fold {origin.fold} and no other: it has seen the validation cases of the others"
    if seen is None and same and origin.fold != "all":
        yield Finding("note", told, alone)
    elif seen is None:
        yield warning(
            f"{told}; without the splits_final.json of both nobody knows which folds validate on what it has seen",
            "split both with the same folds first, or take weights of other cases",
        )
    elif seen and isinstance(origin.fold, int) and origin.fold not in seen:
        yield Finding("note" if same else "warning", told, alone)
    elif seen:
        folds = ", ".join(map(str, seen))
        yield warning(
            f"{told}, and has seen validation cases of fold{'s' * (len(seen) > 1)} {folds} here",
            "take weights of other cases, or train another fold: a validation on what was seen tells nothing",
        )
