"""What a trainer's network is built for, from plans or from a patch alone, and building it as nnU-Net does."""

import contextlib
import inspect
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_plugins.datasets.architecture import MOST_FEATURES, check_numbers
from nnunet_plugins.datasets.folders import PlanError, load_plans, preprocessed_folder, read_dataset_json
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault
from nnunet_plugins.forecast import Forecast, forecast_training, format_size, optimizer_copies
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.names import UnknownTrainerError

# What nnU-Net's ExperimentPlanner has, in attributes of its objects only.
_SMALLEST_MAP, _FEATURES, _CONVOLUTIONS = 4, 32, 2
_CONFIGURATION = {
    "patch_size": [int],
    "batch_size": int,
    "architecture": {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": [str]},
    "data_identifier?": str,
    "spacing?": [(int, float)],
    "previous_stage?": (str, type(None)),
}
_MANY = 999999  # poolings: as many as fit


@dataclass(frozen=True)
class Setting:
    """What a network is built for.

    Attributes:
        plans: of a dataset, or made up for a patch.
        configuration: the plans' part that holds, with patch and batch size.
        channels: of the image.
        classes: outputs, the background included where it is one.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    channels: int
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a batch of images: `(batch, channels, *patch)`."""
        return (self.configuration.batch_size, self.channels, *self.configuration.patch_size)

    def __str__(self) -> str:
        batch, channels, *patch = self.shape
        return f"patch {format_size(patch)}, batch {batch}, channels {channels}, classes {self.classes}"


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """Return the trainer that `nnUNetv2_train -tr` would take.

    Raises:
        PlanError: if nnU-Net finds none, or what it finds cannot be made.
    """
    try:
        return trainer_class(name)
    except UnknownTrainerError as unknown:
        try:
            # nnU-Net tells where it looks, and our own folder what it lacks.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return recursive_find_trainer_class_by_name(name)
        except (RuntimeError, ValueError):
            raise PlanError(str(unknown).removeprefix("nnunet_plugins: ")) from None
    except InputError as error:
        raise PlanError(str(error).removeprefix("nnunet_plugins: ")) from error


def needs_whole_images(trainer: type[nnUNetTrainer]) -> bool:
    """Tell whether a trainer's network takes a patch for a whole image.

    Its row says so, `fitted`; a trainer without one says it by a class attribute, `needs_whole_images`.

    nnU-Net cuts an image that is larger into several patches, without a word. Ours refuse to train on one; at
    prediction they cannot see it, so that `nnunet-plugins doctor` and submissions tell it.
    """
    row = getattr(trainer, "backbone", None)
    return bool(getattr(row, "fitted", False) or getattr(trainer, "needs_whole_images", False))


def plan_setting(dataset: str, configuration: str, plans: str) -> Setting:
    """Return the setting of a dataset's plans.

    Args:
        dataset: number or name.
        configuration: nnU-Net's, such as 3d_fullres.
        plans: their name.

    Raises:
        InputError: if something is missing, or the plans or the dataset.json cannot be used.
    """
    folder = preprocessed_folder(dataset)
    manager = PlansManager(load_plans(folder, plans))
    dataset_json = read_dataset_json(folder / "dataset.json")
    if "channel_names" not in dataset_json and "modality" not in dataset_json:
        raise PlanError(f"{folder / 'dataset.json'}: the content has no 'channel_names'")
    if configuration not in manager.available_configurations:
        known = ", ".join(manager.available_configurations)
        raise PlanError(f"{plans} has no configuration {configuration!r}, but {known}")
    where = f"{folder / plans}.json: the configuration {configuration}"
    try:
        chosen = manager.get_configuration(configuration)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{where} cannot be used: {type(error).__name__}: {error}") from error
    if fault := find_fault(chosen.configuration, _CONFIGURATION):
        raise PlanError(f"{where} is not as nnU-Net plans it: {fault}")
    if len(chosen.patch_size) not in MOST_FEATURES or min(*chosen.patch_size, chosen.batch_size) < 1:
        sizes = f"patch {format_size(chosen.patch_size)} and batch {chosen.batch_size}"
        raise PlanError(f"{where} has {sizes}; a patch has two or three axes, and all of them are positive")
    check_numbers(chosen.network_arch_init_kwargs, where)
    return Setting(manager, chosen, determine_num_input_channels(manager, chosen, dataset_json), heads)


def patch_setting(patch: Sequence[int], batch: int, channels: int, classes: int) -> Setting:
    """Return the setting of the U-Net that nnU-Net would plan for this patch and equal spacing along all axes.

    Raises:
        PlanError: if the U-Net cannot take this patch.
    """
    dimensions = len(patch)
    if dimensions not in MOST_FEATURES:
        raise PlanError(f"a patch has two or three axes, not {dimensions}")
    _, strides, kernels, padded, multiple = get_pool_and_conv_props(
        (1.0,) * dimensions, list(patch), _SMALLEST_MAP, _MANY
    )
    if tuple(padded) != tuple(patch):
        raise PlanError(
            f"nnU-Net plans no patch of {format_size(patch)}, but one of {format_size(padded)}: its axes are multiples "
            f"of {format_size(multiple)}"
        )
    stages = len(strides)
    if stages == 1:
        raise PlanError(
            f"nnU-Net's U-Net halves its patch at least once, and one of {format_size(patch)} not at all: give two of "
            f"the axes {2 * _SMALLEST_MAP} voxels or more"
        )
    # As nnU-Net's ExperimentPlanner writes it.
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(MOST_FEATURES[dimensions], _FEATURES * 2**stage) for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_conv_per_stage": [_CONVOLUTIONS] * stages,
            "n_conv_per_stage_decoder": [_CONVOLUTIONS] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {"patch_size": list(patch), "batch_size": batch, "architecture": architecture}
    plans = PlansManager({"plans_name": "profile", "configurations": {"profile": configuration}})
    return Setting(plans, plans.get_configuration("profile"), channels, classes)


def build_network(trainer: type[nnUNetTrainer], setting: Setting, *, deep_supervision: bool | None = None) -> nn.Module:
    """Build a trainer's network as nnU-Net does.

    Args:
        trainer: any that nnU-Net finds.
        setting: what it is for.
        deep_supervision: outputs at several scales; as in the trainer's training by default.

    Raises:
        ValueError: whatever the network raises for a size that it cannot take.
        PlanError: if it cannot be built for another reason.
    """
    if deep_supervision is None:
        # Ours say so; the stock trainer has no such attribute, and has deep supervision.
        deep_supervision = getattr(trainer, "deep_supervision", True)
    build = trainer.build_network_architecture
    plan: tuple[Any, ...] = (setting.plans, setting.configuration)
    if "plans_manager" not in inspect.signature(build).parameters:  # as in nnU-Net before 2.8
        chosen = setting.configuration
        kwargs, imported = chosen.network_arch_init_kwargs, chosen.network_arch_init_kwargs_req_import
        plan = (chosen.network_arch_class_name, kwargs, imported)
    try:
        return build(*plan, setting.channels, setting.classes, deep_supervision)
    except (ValueError, InputError):
        raise
    except Exception as error:  # whatever a foreign network raises, or nnU-Net's for plans that make no sense
        raise PlanError(f"{trainer.__name__} cannot build its network for {setting}: {_tell(error)}") from error


def build_optimizer(trainer: type[nnUNetTrainer], network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that a trainer would give to a network; SGD with momentum where only training can tell."""
    # Without its constructor, which wants a dataset; these are the attributes that nnU-Net's own trainers look at.
    undressed: nnUNetTrainer = object.__new__(trainer)
    vars(undressed).update(network=network, initial_lr=1e-2, weight_decay=3e-5, num_epochs=1000)
    try:
        return undressed.configure_optimizers()[0]
    except Exception:  # whatever a foreign trainer asks for besides
        return torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)


def copies_kept(trainer: type[nnUNetTrainer]) -> int:
    """Return how many tensors of a parameter's shape a trainer's optimizer keeps for it, 2 where nobody can tell."""
    try:
        return optimizer_copies(build_optimizer(trainer, nn.Linear(1, 1)))
    except Exception:  # whatever a foreign optimizer asks for in a step
        return 2


def shape_of_step(trainer: type[nnUNetTrainer], setting: Setting) -> tuple[int, ...]:
    """Return `(batch, channels, *patch)` of a training step: some of ours have a batch size of their own."""
    return getattr(trainer, "images_per_step", setting.shape[0]), *setting.shape[1:]


def forecast_setting(
    trainer: type[nnUNetTrainer], setting: Setting, *, autocast: bool, device: str | None = None
) -> Forecast:
    """Forecast a training step of a trainer's network, with its optimizer, without allocating it.

    Args:
        trainer: any that nnU-Net finds.
        setting: what its network is for.
        autocast: as in `forecast.measure_training`.
        device: as there.

    Raises:
        ValueError: whatever the network raises for a size that it cannot take.
        PlanError: if it cannot be built, or cannot run on fake tensors.
    """
    try:
        return forecast_training(
            partial(build_network, trainer, setting),
            shape_of_step(trainer, setting),
            autocast=autocast,
            device=device,
            optimizer_copies=copies_kept(trainer),
        )
    except (ValueError, InputError):
        raise
    except Exception as error:  # as above, or what fake tensors cannot do
        raise PlanError(f"{trainer.__name__} cannot take a step with {setting}: {_tell(error)}") from error


def _tell(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
