"""Start from the weights of another training, in a results folder of its own.

nnU-Net's `-pretrained_weights` leaves no trace in the name of a training, so that one from weights and one from scratch
would share a folder. This modifier is the other name, and keeps it true: nothing begins under it without weights.
"""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_plugins.trainers.fitting import LEFT_OUT


class PretrainedTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which refuses to begin with the weights that it has drawn itself."""

    network: Any

    def initialize(self) -> None:
        """Build all parts, and remember a weight as it was drawn."""
        super().initialize()
        # Norms begin alike in every training; convolutions never do.
        drawn = (p for name, p in self.network.named_parameters() if p.ndim > 1 and LEFT_OUT not in f".{name}")
        self._drawn = next(((weight, weight.detach().clone()) for weight in drawn), None)

    def on_train_start(self) -> None:
        """Begin, or go on.

        Raises:
            RuntimeError: if no weights were loaded.
        """
        if not self.was_initialized:
            self.initialize()
        if self._drawn is not None and torch.equal(*self._drawn):
            raise RuntimeError(
                f"nnunet_plugins: {type(self).__name__} starts from weights, and none were given: add "
                "-pretrained_weights CHECKPOINT, or take the name without _Pretrained to start from scratch"
            )
        self._drawn = None
        super().on_train_start()
