"""NISF's recipe: the network, and a code for each training case.

Source: Stolt-Ansó et al. 2023 (arXiv:2309.08643), section 2.3.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nnunet_plugins.trainers.centred import Centred
from nnunet_plugins.trainers.implicit import GroupsLR, ImplicitTrainer
from nnunet_plugins.trainers.losses import BinaryDiceLoss
from nnunet_plugins.trainers.progress import PROGRESS

CODES = "cases"
"""Where a checkpoint names the training cases, in the order of their codes."""


class NISFTrainer(ImplicitTrainer):
    """Adam for the network and, at ten times its rate, for the codes of the training cases; Dice and cross-entropy."""

    learning_rate: ClassVar[float] = 1e-3
    epochs: ClassVar[int] = 100

    code_learning_rate: ClassVar[float] = 1e-2
    """Of the codes, each of which is drawn once in a pass over the cases, where the network learns in every step."""

    _coded: list[str] | None = None
    """Whose codes a checkpoint has brought; None where there is none, or it does not tell."""

    _cases: Sequence[str] = ()

    def _do_i_compile(self) -> bool:
        # nnU-Net asks this of a network that is built, and before an optimizer or another process knows of it.
        network: Any = self.network
        if network.case_codes is None:
            training, _ = self.do_split()
            self._cases = sorted(training)
            network.set_cases(len(training))
        return super()._do_i_compile()

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), CODES: [str(case) for case in self._cases]}

    def _take_state(self, state: dict[str, Any]) -> dict[str, Any]:
        self._coded = state.get(PROGRESS, {}).get(CODES)
        return super()._take_state(state)

    def get_tr_and_val_datasets(self) -> tuple[Centred, Centred]:
        """Return the cases as for every implicit network.

        Raises:
            ValueError: likewise, or if a checkpoint has brought the codes of other cases.
        """
        training, validation = super().get_tr_and_val_datasets()
        network: Any = self.bare_network()
        difference = None
        if (codes := len(network.case_codes)) != len(self._numbers):
            # They are none that the optimizer knows.
            difference = f"{codes} training cases, and the fold has {len(self._numbers)} now"
        elif self._coded is not None and (other := {*self._coded} ^ {*self._numbers}):
            difference = f"other training cases than the fold's, first of all {min(other)}"
        if difference:
            raise ValueError(
                f"{type(self).__name__}: the checkpoint has the codes of {difference}. Bring back the cases that it "
                "was begun with, or train anew, without --c"
            )
        return training, validation

    def _build_loss(self) -> nn.Module:
        labels = self.label_manager
        return BinaryDiceLoss(regions=labels.has_regions, ignore_label=labels.ignore_label)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return Adam with both learning rates."""
        network: Any = self.network
        codes = network.case_codes
        others = [parameter for parameter in network.parameters() if parameter is not codes]
        groups = [{"params": others}, {"params": [codes]}]
        optimizer = torch.optim.Adam(groups, self.initial_lr)
        rates = [self.initial_lr, self.code_learning_rate]
        return optimizer, GroupsLR(optimizer, [rates], [self.num_epochs])
