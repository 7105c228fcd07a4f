"""What the recipes of implicit networks share: whole images that never move, and one loss for images and labels.

The training step is nnU-Net's own. The network gets the labels before it, and returns the loss in place of logits.
"""

from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import distributed, nn
from torch.optim.lr_scheduler import LRScheduler

from nnunet_plugins.datasets.plan_names import WHOLE_REMEDY, covering_command
from nnunet_plugins.networks.implicit import Fitted, Truth
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.centred import Centred, require_whole_cases
from nnunet_plugins.trainers.finite import are_finite


class GroupsLR(LRScheduler):
    """A learning rate for each group of parameters, which decays polynomially to 0, once or from phase to phase.

    `step` takes the epoch, as nnU-Net's trainer passes it, so that a resumed run needs no other state.

    Args:
        optimizer: its groups, in this order.
        rates: of each phase, one for each group.
        ends: epoch at which each phase ends; a phase that ends with the one before has none.
    """

    exponent: ClassVar[float] = 0.9

    def __init__(self, optimizer: torch.optim.Optimizer, rates: list[list[float]], ends: list[int]) -> None:
        self.rates, self.ends = rates, ends
        self.epoch = 0
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rates for an epoch, counted from 0."""
        self.epoch = self.epoch if epoch is None else epoch
        # nnU-Net asks for the epoch after the last one, too.
        phase = next((n for n, end in enumerate(self.ends) if self.epoch < end), len(self.ends) - 1)
        begin, end = [0, *self.ends][phase], self.ends[phase]
        left = max(0.0, 1 - (self.epoch - begin) / max(1, end - begin)) ** self.exponent
        for group, rate in zip(self.optimizer.param_groups, self.rates[phase], strict=True):
            group["lr"] = rate * left
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class LossOrLogits(nn.Module):
    """Passes on a loss that the network has computed itself, and takes logits, as in validation."""

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        return output if output.dim() == 0 else self.loss(output, target)


class ImplicitTrainer(nnUNetTrainerNoDA, BackboneTrainer):
    """nnU-Net's trainer for networks that are fitted to whole images: no augmentation, no oversampling, own batch size.

    The network is a `networks.implicit.ImplicitNetwork`.
    """

    images_per_step: ClassVar[int] = 2
    """Batch size; the plan's is meant for a U-Net."""

    learning_rate: ClassVar[float] = 1e-4
    epochs: ClassVar[int] = 1000

    validation_fit_steps: ClassVar[int] = 20
    """Fits during training take no more steps than this."""

    validation_share: ClassVar[float] = 0.1
    """Part of nnU-Net's validation steps in each epoch: each of them fits images."""

    # nnU-Net looks up the arguments that the signature names.
    @wraps(BackboneTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.num_epochs = self.epochs

    @classmethod
    def plan_stages(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """Return nothing that the network needs: it has no stages, and takes any architecture.

        Raises:
            NotImplementedError: if it is the second stage of a cascade.
        """
        if configuration_manager.previous_stage_name is not None:
            raise NotImplementedError(
                f"{cls.__name__}: the labels of a cascade's first stage are no image to reconstruct; use a "
                "configuration without a previous stage"
            )
        return {"strides": (), "kernel_sizes": ()}

    # Images

    def _set_batch_size_and_oversample(self) -> None:
        processes = distributed.get_world_size() if self.is_ddp else 1
        self.batch_size = max(1, self.images_per_step // processes)
        self.oversample_foreground_percent = 0.0

    def get_tr_and_val_datasets(self) -> tuple[Centred, Centred]:
        """Return the cases to train on and to validate on, padded to the patch as for prediction.

        Raises:
            ValueError: if the patch does not hold one of them.
        """
        patch_size = self.configuration_manager.patch_size
        training, validation = super().get_tr_and_val_datasets()
        dataset = convert_dataset_name_to_id(self.plans_manager.dataset_name)
        command = covering_command(str(dataset), self.plans_manager.plans_name)
        require_whole_cases((training, validation), patch_size, type(self).__name__, command)
        self._numbers = {case: number for number, case in enumerate(sorted(training.identifiers))}
        return Centred(training, patch_size), Centred(validation, patch_size)

    def _memory_remedy(self, available: int) -> str:
        return f"{WHOLE_REMEDY}."

    # Steps

    def _do_i_compile(self) -> bool:
        return False  # gradient steps in the network leave nothing to compile

    def initialize(self) -> None:
        """Set up training as nnU-Net does; the loss is the network's, of which the trainer's is the part for labels."""
        self.initial_lr = self.learning_rate
        super().initialize()
        self.num_val_iterations_per_epoch: int = max(
            1, round(self.validation_share * self.num_val_iterations_per_epoch)
        )
        self._label_loss = self.loss
        self.loss = LossOrLogits(self._label_loss)
        parts: list[Any] = list(self.loss.modules())
        for part in parts:
            if hasattr(part, "batch_dice"):
                # The sum of the images' losses is followed, each on its own.
                part.batch_dice = part.ddp = False
        self._fits: MutableMapping[int, Fitted] = {}

    def train_step(self, batch: dict) -> dict:
        """Take nnU-Net's step, for which the network knows the labels."""
        network: Any = self.bare_network()
        cases = [self._numbers[case] for case in batch["keys"]]
        target = batch["target"].to(self.device, non_blocking=True)
        network.truth = Truth(target, self._label_loss, cases, self.trains_head_only, self._fits)
        try:
            return super().train_step(batch)
        finally:
            network.truth = None

    @property
    def trains_head_only(self) -> bool:
        """Whether the current epoch trains the head alone."""
        return False

    def validation_step(self, batch: dict) -> dict:
        """Take nnU-Net's step; nothing can be fitted to an image with bad numbers, which counts as an empty one."""
        bad = [number for number, image in enumerate(batch["data"]) if not are_finite(image)]
        if bad:
            cases = ", ".join(batch["keys"][number] for number in bad)
            self.print_to_log_file(f"WARNING: images to validate on hold values that are not finite (cases: {cases})")
            batch = {**batch, "data": batch["data"].clone()}
            batch["data"][bad] = 0
        return super().validation_step(batch)

    def on_validation_epoch_start(self) -> None:
        """Start the validation of an epoch, with fewer steps for each fit."""
        super().on_validation_epoch_start()
        network: Any = self.bare_network()
        self._fit_steps = network.fit_steps
        network.fit_steps = min(self._fit_steps, self.validation_fit_steps)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """End the validation of an epoch."""
        network: Any = self.bare_network()
        network.fit_steps = self._fit_steps
        super().on_validation_epoch_end(val_outputs)
