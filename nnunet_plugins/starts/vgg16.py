"""Make a start for FCN-8s out of torchvision's VGG16, for nnU-Net's `-pretrained_weights`.

That file has no plans, so a dataset's have to be named. Nothing is downloaded.
"""

from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.planning.setting import build_network, find_trainer, plan_setting
from nnunet_plugins.starts.warm_start import require_new, write_start
from nnunet_plugins.trainers.checkpoints import CheckpointError, load_weights

WANTED = "what is wanted is torchvision's VGG16 without batch norm, vgg16-397923af.pth"


def write_vgg16_start(path: Path, trainer: str, dataset: str, configuration: str, plans: str, output: Path) -> None:
    """Write a checkpoint whose weights are VGG16's, but for the output layers, which begin as in any training.

    Args:
        path: torchvision's file.
        trainer: one whose network begins like VGG16.
        dataset: number or name of the dataset to train on.
        configuration: nnU-Net's, to train.
        plans: their name.
        output: file to write.

    Raises:
        FileExistsError: if `output` exists; nothing is overwritten.
        OSError: if the file cannot be read, or there is no folder for `output`.
        CheckpointError: if it is not VGG16's, naming what is missing, or the network takes none.
        InputError: if there is no such trainer, or the plans cannot be used, or not by its network.
    """
    require_new(output)
    setting = plan_setting(dataset, configuration, plans)
    try:
        network: Any = build_network(find_trainer(trainer), setting)
    except InputError:
        raise
    except ValueError as error:  # a patch that the network cannot take
        raise CheckpointError(str(error)) from error
    if not hasattr(network, "adopt_vgg16"):
        raise CheckpointError(f"{trainer} has no place for the weights of VGG16; nnUNetTrainerFCN8s has")
    try:
        network.load_state_dict(network.adopt_vgg16(load_weights(path)), strict=False)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {WANTED}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is another file: {error}; {WANTED}") from error
    write_start({"network_weights": network.state_dict(), "trainer_name": trainer}, output)
