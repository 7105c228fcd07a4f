"""What every backbone's trainer shares: build the network for the plan, and an early check of its memory."""

import os
from dataclasses import asdict
from functools import partial, wraps
from typing import Any, ClassVar

from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_plugins.backbones import Source, source_of
from nnunet_plugins.datasets.plan_names import fitting_commands
from nnunet_plugins.errors import InputError
from nnunet_plugins.forecast import (
    GIB,
    device_memory,
    forecast_training,
    format_bytes,
    format_size,
    optimizer_copies,
)
from nnunet_plugins.rows import Backbone, locate, path_of
from nnunet_plugins.trainers.followed import FollowedTrainer

MEMORY_CHECK = "nnUNet_plugins_memory_check"
"""Environment variable that, set to 0, lets training start whatever the forecast of its memory says."""

ORIGIN = "origin"
"""Key of our part of a checkpoint under which stands where the network comes from."""


class DimensionError(InputError, NotImplementedError):
    """A network does not work in the dimension of a plan."""


class BackboneTrainer(FollowedTrainer):
    """nnU-Net's trainer and recipe with the network of one registry row.

    Subclasses change the recipe; the registry row in `backbone` names the network and its options.
    """

    backbone: ClassVar[Backbone]

    deep_supervision: ClassVar[bool] = False
    """Whether the network has outputs at several scales, as nnU-Net's U-Net has."""

    # nnU-Net looks up the arguments that the signature names.
    @wraps(FollowedTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.enable_deep_supervision = self.deep_supervision

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the row's network for a plan; nnU-Net calls this for training and for inference.

        Raises:
            ValueError: if the plan does not fit the network, before training starts.
        """
        stages = cls.plan_stages(configuration_manager)
        return locate(cls.backbone.network).from_plan(
            input_channels=num_input_channels,
            num_classes=num_output_channels,
            deep_supervision=enable_deep_supervision,
            patch_size=configuration_manager.patch_size,
            strides=stages["strides"],
            kernel_sizes=stages["kernel_sizes"],
            **cls.backbone.options,
        )

    @classmethod
    def plan_stages(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """Return the keyword arguments of the plan's own network, which describe its stages.

        Raises:
            DimensionError: if the network does not work in the plan's dimension.
            ValueError: if the plan's network is no U-Net.
        """
        dimension, able = len(configuration_manager.patch_size), cls.backbone.dimensions
        if dimension not in able:
            other = "2d" if 2 in able else "3d_fullres"
            raise DimensionError(
                f"{cls.backbone.trainer} is a {able[0]}D network, and this configuration has "
                f"{dimension}D patches; use the configuration {other}"
            )
        stages = configuration_manager.network_arch_init_kwargs
        missing = {"strides", "kernel_sizes"} - set(stages)
        if missing:
            raise ValueError(
                f"{cls.backbone.trainer} follows the stages of a U-Net plan, but the plan's architecture "
                f"({configuration_manager.network_arch_class_name}) has no {' and no '.join(sorted(missing))}. "
                "Use a plan of nnU-Net's default or ResEnc planner."
            )
        return stages

    def _state(self) -> dict[str, Any]:
        # Where the network comes from; whoever has the checkpoint and not the package can ask `doctor`.
        origin = asdict(source_of(self.backbone.trainer) or Source(type(self).__module__))
        network: Any = self.backbone.options.get("factory", self.backbone.network)  # of an adapted one, what makes it
        return {**super()._state(), ORIGIN: {**origin, "network": path_of(network)}}

    def on_train_start(self) -> None:
        """Start or resume training, once its memory is known to suffice."""
        if not self.was_initialized:
            self.initialize()
        self.check_memory()
        super().on_train_start()

    def check_memory(self) -> None:
        """Log how much memory a training step needs, and how much the device has; not if the user switched that off.

        Raises:
            RuntimeError: if a step needs over 10 % more than the device has, with the commands that mend it.
        """
        if os.environ.get(MEMORY_CHECK) == "0":
            return
        available = device_memory(self.device)
        patch_size = self.configuration_manager.patch_size
        try:
            needed = forecast_training(
                partial(
                    self.build_network_architecture,
                    self.plans_manager,
                    self.configuration_manager,
                    self.num_input_channels,
                    self.label_manager.num_segmentation_heads,
                    self.enable_deep_supervision,
                ),
                (self.batch_size, self.num_input_channels, *patch_size),
                autocast=self.device.type == "cuda",
                optimizer_copies=optimizer_copies(self.optimizer),
            ).peak_bytes_training
        except Exception as error:
            # The forecast looks into torch; should it fail there, that is no reason not to train.
            self.print_to_log_file(f"The memory of a training step could not be forecast: {error!r}")
            return
        text = (
            f"A training step needs about {format_bytes(needed)} of memory "
            f"(patch {format_size(patch_size)}, batch {self.batch_size})"
        )
        if available is None:
            self.print_to_log_file(f"{text}.")
            return
        text += f"; {self.device} has {format_bytes(available)}."
        if needed > 1.1 * available:
            raise RuntimeError(
                f"nnunet_plugins: {type(self).__name__} cannot train {self.configuration_name} of the plans "
                f"{self.plans_manager.plans_name} on this device. {text} {self._memory_remedy(available)}\n"
                f"To train all the same, set {MEMORY_CHECK}=0."
            )
        if needed > 0.9 * available:
            text += f" That is tight. {self._memory_remedy(available)}"
        self.print_to_log_file(text)

    def _memory_remedy(self, available: int) -> str:
        dataset = convert_dataset_name_to_id(self.plans_manager.dataset_name)
        commands = fitting_commands(
            str(dataset),
            self.configuration_name,
            type(self).__name__,
            self.plans_manager.plans_name,
            available / GIB,
            fold=str(self.fold),
            on_cpu=self.device.type == "cpu",
        )
        return "\n  ".join(["Make plans that fit, and train with them:", *commands])

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Leave deep supervision off where the recipe has none; nnU-Net switches it on again after validation."""
        super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)
