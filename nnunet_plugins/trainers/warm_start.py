"""Make a start for a U-Net with changed blocks out of a trained stock U-Net, for nnU-Net's `-pretrained_weights`.

nnU-Net's own loading demands every weight but the output layer's, so it refuses a stock checkpoint for a network that
has weights of its own besides. Here the new weights are added: autofocus layers begin at the first rate, as the
convolutions they replace; everything else that is new begins as at the start of a training.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault, unfinished
from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.planning.architecture import check_numbers
from nnunet_plugins.trainers.compose import trainer_class

_CHECKPOINT = {
    "network_weights": {str: torch.Tensor},
    "init_args": {"plans": {"configurations": {str: dict}}, "configuration": str, "dataset_json": dict},
    "trainer_name": str,
}
# What nnU-Net's checkpoints hold besides tensors and plain Python: the logged figures. The first is the function that
# makes a scalar, whose place in numpy depends on the version.
_NUMBERS = [
    np.float32(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64")),
]


class CheckpointError(InputError, ValueError):
    """A checkpoint cannot be used."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of nnU-Net without running any code it may contain.

    Raises:
        CheckpointError: if the file is no such checkpoint, or holds more than tensors, numbers and text.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken file can make a pickle raise anything
        # Torch explains at length how to load the file all the same.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no checkpoint of nnU-Net that can be read safely: {reason}") from error
    if fault := find_fault(checkpoint, _CHECKPOINT):
        raise CheckpointError(f"{path} is no checkpoint of nnU-Net: {fault}")
    return checkpoint


def warm_start(path: Path, trainer: str, *, advantage: float = 5.0) -> tuple[dict[str, Any], list[str]]:
    """Return a checkpoint for `-pretrained_weights`, and the names of the weights that are new.

    Args:
        path: checkpoint of a trained stock U-Net.
        trainer: trainer whose network is that U-Net with some blocks changed.
        advantage: how much attention an autofocus layer pays to its first rate at the start, as a difference of logits:
            the other K - 1 rates together share less than K e^-advantage. At 20 the network starts as the stock
            U-Net to single precision, but then the attention hardly learns.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or its weights do not fit.
        UnknownTrainerError: if there is no such trainer.
    """
    network_trainer = trainer_class(trainer)
    checkpoint = load_checkpoint(path)
    arguments = checkpoint["init_args"]
    try:
        network = _build(network_trainer, arguments)
    except Exception as error:  # whatever a network raises for plans that do not fit it, or make no sense
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{trainer} cannot be built with the plans in {path}: {reason}") from error
    ours, theirs = network.state_dict(), checkpoint["network_weights"]
    foreign = [key for key, value in theirs.items() if key not in ours or ours[key].shape != value.shape]
    if foreign:
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


def _build(trainer: type[nnUNetTrainer], arguments: dict[str, Any]) -> nn.Module:
    plans = PlansManager(arguments["plans"])
    configuration = plans.get_configuration(arguments["configuration"])
    check_numbers(configuration.network_arch_init_kwargs, "the plan")
    return trainer.build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, arguments["dataset_json"]),
        plans.get_label_manager(arguments["dataset_json"]).num_segmentation_heads,
        enable_deep_supervision=True,
    )


def write_warm_start(path: Path, trainer: str, output: Path, *, advantage: float = 5.0) -> list[str]:
    """Write the checkpoint that `warm_start` makes and return the names of the weights that are new.

    Raises:
        FileExistsError: if `output` exists; nothing is overwritten.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already; choose another file or remove it")
    start, new = warm_start(path, trainer, advantage=advantage)
    # Under its name there is a whole file or none.
    part = unfinished(output)
    try:
        torch.save(start, part)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return new
