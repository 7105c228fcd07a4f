"""What every backbone's trainer shares: build the network for the plan, early checks of device and memory."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_plugins.registry import Backbone, locate


def require_device(device: torch.device) -> None:
    """Check that torch can use the device that training asks for.

    Raises:
        RuntimeError: if it cannot, with the remedy.
    """
    available: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device.type in available and not available[device.type]():
        raise RuntimeError(
            f"nnunet_plugins: training on '-device {device.type}' was asked for, but torch {torch.__version__} sees no "
            f"such device here. Train with '-device cpu', or run `nnunet-plugins doctor` to see what is missing."
        )


class BackboneTrainer(nnUNetTrainer):
    """nnU-Net's trainer and recipe with the network of one registry row.

    Subclasses change the recipe; the registry row in `backbone` names the network and its options.
    """

    backbone: ClassVar[Backbone]

    deep_supervision: ClassVar[bool] = False
    """Whether the network has outputs at several scales, as nnU-Net's U-Net has."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net fixes this signature
    ) -> None:
        require_device(device)
        super().__init__(plans, configuration, fold, dataset_json, device)
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
            ValueError: if the plan's network is no U-Net.
        """
        stages = configuration_manager.network_arch_init_kwargs
        missing = {"strides", "kernel_sizes"} - set(stages)
        if missing:
            raise ValueError(
                f"{cls.backbone.trainer} follows the stages of a U-Net plan, but the plan's architecture "
                f"({configuration_manager.network_arch_class_name}) has no {' and no '.join(sorted(missing))}. "
                "Use a plan of nnU-Net's default or ResEnc planner."
            )
        return stages

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Leave deep supervision off where the recipe has none; nnU-Net switches it on again after validation."""
        super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)

    def bare_network(self) -> nn.Module:
        """Return the network without the wrappers of DDP and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)
