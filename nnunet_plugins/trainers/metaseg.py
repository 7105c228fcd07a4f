"""MetaSeg's recipes: an initialisation that is meta-learned, then its head; and what the paper compares it with.

Source: Vyas et al. 2025 (arXiv:2510.04021), section 3 and Table 2.
"""

from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import LRScheduler

from nnunet_plugins.trainers.implicit import GroupsLR, ImplicitTrainer
from nnunet_plugins.trainers.losses import FocalLossTrainer


class MetaSegTrainer(ImplicitTrainer):
    """Meta-learns the initialisation, then holds it and trains the head on features fitted as at inference."""

    learning_rate: ClassVar[float] = 1e-3
    epochs: ClassVar[int] = 100

    meta_share: ClassVar[float] = 0.8
    """Part of the epochs that learn the initialisation, at least one; of 0, none."""

    head_learning_rate: ClassVar[float] = 1e-3
    """Of the head in the second phase."""

    @property
    def meta_epochs(self) -> int:
        """How many epochs learn the initialisation."""
        return max(1, round(self.meta_share * self.num_epochs)) if self.meta_share else 0

    @property
    def trains_head_only(self) -> bool:
        """Whether the current epoch trains the head alone; a resumed run needs no other state."""
        return self.current_epoch >= self.meta_epochs

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam, with a learning rate for each phase."""
        network: Any = self.network
        # nnU-Net logs the rate of the first group: the head's, as it learns in both phases.
        groups = [{"params": part} for part in (network.head_parameters(), network.fitted_parameters())]
        optimizer = torch.optim.Adam(groups, self.initial_lr)
        meta, head = [self.initial_lr] * 2, [self.head_learning_rate, 0.0]
        return optimizer, GroupsLR(optimizer, [meta, head], [self.meta_epochs, self.num_epochs])

    def initialize(self) -> None:
        """Set up training as nnU-Net does, then hook the phases into the optimizer, whichever it is."""
        super().initialize()
        network: Any = self.bare_network()
        fitted = network.fitted_parameters()

        def hold(*_: Any) -> None:
            if self.trains_head_only:
                # Without a gradient neither momentum nor weight decay moves them.
                for parameter in fitted:
                    parameter.grad = None

        self.optimizer.register_step_pre_hook(hold)

    def on_train_start(self) -> None:
        """Start or resume training; the log says in which phase."""
        super().on_train_start()
        self._log_phase()

    def on_epoch_end(self) -> None:
        """End the epoch; the log says when the next one begins the second phase."""
        before = self.trains_head_only
        super().on_epoch_end()
        if self.trains_head_only != before and self.current_epoch < self.num_epochs:
            self._log_phase()

    def _log_phase(self) -> None:
        phase = "2 of 2: the head" if self.trains_head_only else "1 of 2: the initialisation"
        self.print_to_log_file(f"MetaSeg training phase {phase}, from epoch {self.current_epoch}")


class MetaSegPaperTrainer(FocalLossTrainer, MetaSegTrainer):
    """The paper's recipe in 3D: focal loss with gamma 3, one image a step; 5,000 steps and then the head at 5e-5."""

    gamma: ClassVar[float] = 3.0
    images_per_step: ClassVar[int] = 1
    learning_rate: ClassVar[float] = 1e-4
    head_learning_rate: ClassVar[float] = 5e-5
    epochs: ClassVar[int] = 25  # of 250 steps each, a fifth of them for the head


class MetaSegRandomStartTrainer(MetaSegTrainer):
    """The ablation without meta-learning: the head learns on features of fits from a random initialisation."""

    meta_share: ClassVar[float] = 0.0
