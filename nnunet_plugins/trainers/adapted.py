"""The recipe for networks of one's own that have outputs at several scales."""

from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_plugins.trainers.backbone import BackboneTrainer


class DeepSupervisionTrainer(BackboneTrainer):
    """nnU-Net's recipe, with a loss for each output that the network itself has, whatever its size.

    The network says in `scales` which share of the image's size each output has, as `networks.adapted.Adapted` does.
    Each output counts half as much as the one before it. nnU-Net leaves out the last of its own network's; here it
    counts as well, because a network of which a part gets no gradient stops training on several GPUs.
    """

    deep_supervision = True

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return self._scales() if self.enable_deep_supervision else None

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper):
            halves = [0.5**number for number in range(len(self._scales()))]
            loss.weight_factors = tuple(half / sum(halves) for half in halves)
        return loss

    def _scales(self) -> list[list[float]]:
        scales: Any = self.bare_network().scales
        return [list(scale) for scale in scales]
