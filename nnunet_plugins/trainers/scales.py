"""Deep supervision for networks whose outputs have scales and weights of their own, and not the plan's."""

from typing import Any, ClassVar

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_plugins.trainers.backbone import BackboneTrainer


class ScalesTrainer(BackboneTrainer):
    """nnU-Net's trainer and recipe, with as many targets and weights as the network has outputs.

    nnU-Net takes their scales from the plan's stages, and leaves out in silence what has no counterpart. Here the
    network tells the outputs' sizes (`output_sizes`), and the targets have exactly these.
    """

    deep_supervision: ClassVar[bool] = True

    decay: ClassVar[float] = 0.5
    """Weight of each output's loss relative to the one before; nnU-Net gives the last none, here it has its share."""

    def initialize(self) -> None:
        """Set up training as nnU-Net does, then weigh the outputs, whichever the loss."""
        super().initialize()
        if isinstance(self.loss, DeepSupervisionWrapper):
            weights = [self.decay**n for n in range(len(self._get_deep_supervision_scales()))]
            self.loss.weight_factors = tuple(weight / sum(weights) for weight in weights)

    def _get_deep_supervision_scales(self) -> Any:
        if not self.enable_deep_supervision:
            return None
        patch_size = self.configuration_manager.patch_size
        network: Any = self.bare_network()
        # nnU-Net multiplies with the patch and rounds, so that targets are of these sizes whatever is odd.
        return [
            [n / whole for n, whole in zip(size, patch_size, strict=True)] for size in network.output_sizes(patch_size)
        ]


class EqualScalesTrainer(ScalesTrainer):
    """The same with one weight for all outputs."""

    decay: ClassVar[float] = 1.0
