"""Make a start for one network out of another that has been trained, for nnU-Net's `-pretrained_weights`.

nnU-Net's own loading demands every weight but the output layer's, so it refuses a stock checkpoint for a U-Net with
changed blocks, which has weights of its own besides. Here the new weights are added: autofocus layers begin at the
first rate, as the convolutions they replace; everything else that is new begins as at the start of a training.

A network may take weights of others in a form of its own: MedNeXt lets kernels grow (`adopt`).
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_plugins.datasets.architecture import check_numbers
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import whole_file
from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.trainers.checkpoints import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint,
    require_known_architecture,
)
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.fitting import find_weight_fault, fit_weights


def warm_start(
    path: Path, trainer: str, *, advantage: float = 5.0, trusted: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return a checkpoint for `-pretrained_weights`, and the names of the weights that are new.

    Args:
        path: checkpoint of a trained network, a stock U-Net in most cases.
        trainer: trainer whose network is that one with some blocks changed.
        advantage: how much attention an autofocus layer pays to its first rate at the start, as a difference of logits:
            the other K - 1 rates together share less than K e^-advantage. At 20 the network starts as the stock
            U-Net to single precision, but then the attention hardly learns.
        trusted: whether code that the checkpoint holds or names may run.

    Raises:
        UnsafeCheckpointError: if it holds or names code and is not trusted.
        CheckpointError: if the checkpoint cannot be read, or its weights do not fit.
        UnknownTrainerError: if there is no such trainer.
    """
    network_trainer = trainer_class(trainer)
    checkpoint = load_checkpoint(path, trusted=trusted)
    arguments = checkpoint["init_args"]
    try:
        plans = PlansManager(arguments["plans"])
        configuration = plans.get_configuration(arguments["configuration"])
        if not trusted:
            require_known_architecture(configuration, path)
        network = _build(network_trainer, plans, configuration, arguments["dataset_json"])
    except UnsafeCheckpointError:
        raise
    except Exception as error:  # whatever a network raises for plans that do not fit it, or make no sense
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{trainer} cannot be built with the plans in {path}: {reason}") from error
    ours, theirs = network.state_dict(), checkpoint["network_weights"]
    if fault := find_weight_fault(network, theirs):
        raise CheckpointError(f"the weights in {path} cannot be used: {fault}")
    if adopt := getattr(network, "adopt", None):
        theirs = adopt(theirs)
    fit = fit_weights(ours, theirs)
    if foreign := [*fit.foreign, *fit.other_shape]:
        raise CheckpointError(
            f"{trainer} does not contain the network of {path} ({checkpoint['trainer_name']}): "
            f"{len(foreign)} of its {len(theirs)} weights have no place there, first of all {foreign[0]}"
        )
    for module in network.modules():
        if isinstance(module, AutofocusConv):
            module.favour_first_rate(advantage)
    network.load_state_dict(theirs, strict=False)
    # Named parameters, because nnU-Net's modules list theirs in the state dict under several names.
    new = [name for name, _ in network.named_parameters() if name not in theirs]
    return {"network_weights": network.state_dict(), "init_args": arguments, "trainer_name": trainer}, new


def _build(
    trainer: type[nnUNetTrainer], plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict
) -> nn.Module:
    check_numbers(configuration.network_arch_init_kwargs, "the plan")
    return trainer.build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=True,
    )


def write_warm_start(
    path: Path, trainer: str, output: Path, *, advantage: float = 5.0, trusted: bool = False
) -> list[str]:
    """Write the checkpoint that `warm_start` makes and return the names of the weights that are new.

    Raises:
        FileExistsError: if `output` exists; nothing is overwritten.
        FileNotFoundError: if there is no folder for it.
    """
    require_new(output)
    start, new = warm_start(path, trainer, advantage=advantage, trusted=trusted)
    write_start(start, output)
    return new


def require_new(output: Path) -> None:
    """Check that there is no such file, but a folder for it.

    Raises:
        FileExistsError: if there is; nothing is overwritten.
        FileNotFoundError: if there is no folder.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another file or remove it")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output} cannot be written: {folder} is no folder; make it")


def write_start(start: dict[str, Any], output: Path) -> None:
    """Write a checkpoint for `-pretrained_weights`, which appears complete.

    Raises:
        CheckpointError: if it cannot be written, say for want of space.
    """
    try:
        with whole_file(output) as part:
            torch.save(start, part)
    except (OSError, RuntimeError) as error:  # torch tells of full disks by RuntimeErrors
        reason, free = str(error).splitlines()[0], shutil.disk_usage(output.absolute().parent).free / 2**20
        raise CheckpointError(f"{output} cannot be written: {reason} ({free:,.0f} MiB free there)") from error
