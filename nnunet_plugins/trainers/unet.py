"""The recipe of the U-Nets with changed blocks: nnU-Net's own, deep supervision included."""

from typing import ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_plugins.rows import locate
from nnunet_plugins.trainers.backbone import BackboneTrainer


class UNetTrainer(BackboneTrainer):
    """nnU-Net's trainer and recipe; its registry row names the function that changes the plan's U-Net."""

    deep_supervision: ClassVar[bool] = True

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Let nnU-Net build the plan's U-Net, then change it.

        Raises:
            ValueError: if the plan does not fit, before training starts.
        """
        cls.plan_stages(configuration_manager)
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return locate(cls.backbone.network)(unet, configuration_manager.patch_size, **cls.backbone.options)
