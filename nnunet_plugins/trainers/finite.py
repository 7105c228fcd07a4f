"""nnU-Net's trainer with an eye on its numbers: only finite ones change the weights, and the others are told.

A step whose images, loss or gradient are not finite is reported with its cases and left out; too many in a row end the
training. With several processes all leave out the same steps.
"""

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import torch
from torch import distributed

from nnunet_plugins.trainers.progress import Progress
from nnunet_plugins.trainers.splitting import SplittingTrainer

_MOST_REPORTS = 10  # of bad steps, per epoch

# Of a grad scaler. It begins at 2^16, from where a few halvings in a row are usual, and doubles every 2000 steps.
_REGULAR_IN_A_ROW = 5
_SMALLEST_SCALE = 1


class BadNumbersError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class FiniteTrainer(SplittingTrainer):
    """nnU-Net's trainer, which leaves out steps with numbers that are not finite; nothing else about it differs."""

    current_epoch: int
    loss: Callable[..., torch.Tensor]

    most_bad_steps = 50
    """So many steps in a row with a loss or a gradient that is not finite end the training."""

    # Of the running step, and of those in a row that end with it.
    _gradient_is_bad = False
    _bad_in_a_row = 0

    def initialize(self) -> None:
        """Set up training as nnU-Net does, with a last look at the gradient before it changes the weights."""
        self._progress = Progress()
        super().initialize()
        self.optimizer.register_step_pre_hook(lambda *_: self._drop_bad_gradients())

    def on_epoch_start(self) -> None:
        """Start an epoch, of which no step is taken yet."""
        super().on_epoch_start()
        self._progress.begin_epoch()

    def train_step(self, batch: dict) -> dict:
        """Take a step; a bad one is told and changes no weight.

        Raises:
            BadNumbersError: if it is one of too many bad steps in a row.
        """
        keys = batch.get("keys", ["unknown"] * len(batch["data"]))  # one's own data loader may give none
        cases = [case for case, image in zip(keys, batch["data"], strict=True) if not are_finite(image)]
        if self._is_left_out(bool(cases)):
            # Forward, they would spoil the running statistics of batch norms.
            output: dict = {"loss": np.array(np.nan, dtype=np.float32)}
            self._progress.losses.append(np.nan)
            self._count("the images hold values that are not", cases)
            return output
        scale = self.grad_scaler.get_scale() if self.grad_scaler else None
        self._gradient_is_bad = False
        output = self._take_step(batch)
        self._progress.losses.append(float(output["loss"]))
        scaled_down = scale is not None and self.grad_scaler.get_scale() < scale
        finite = bool(np.isfinite(output["loss"]))
        # A loss that is not finite makes the gradients of all processes so; they need not ask each other about it.
        if not (self._gradient_is_bad or scaled_down or not finite):
            self._bad_in_a_row = 0
        elif self._anyone(not finite)[0]:
            self._count("the loss is not", keys)
        elif scaled_down and self._is_regular():
            self._progress.scaled_steps += 1
            self._bad_in_a_row += 1
        else:
            self._count("the gradient is not", keys)
        return output

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the training steps of an epoch; its loss is the mean of all steps where it is finite."""
        bad, scaled = self._progress.bad_steps, self._progress.scaled_steps
        if bad:
            self.print_to_log_file(f"{bad} of {len(train_outputs)} steps of this epoch were not finite")
        if scaled:
            self.print_to_log_file(f"Loss scaling tried too large a scale in {scaled} of {len(train_outputs)} steps")
        super().on_train_epoch_end([one for one in train_outputs if np.isfinite(one["loss"])] or train_outputs)

    def _is_left_out(self, bad: bool) -> bool:
        """Tell whether all processes leave out the step that one has bad images for."""
        return self._anyone(bad)[0]

    def _anyone(self, *facts: bool) -> list[bool]:
        """Tell of each fact whether it holds in this process or in any that trains with it.

        They stop, and leave out steps, all or none: the others would wait in the next step for one that does not come.
        """
        if not self.is_ddp:
            return list(facts)
        anyones = torch.tensor(facts, dtype=torch.int32, device=self.device)
        distributed.all_reduce(anyones, distributed.ReduceOp.MAX)
        return [bool(one) for one in anyones.tolist()]

    def _is_regular(self) -> bool:
        """Tell whether the grad scaler does what it is for: try a larger scale now and then, and go back."""
        return self._bad_in_a_row < _REGULAR_IN_A_ROW and self.grad_scaler.get_scale() >= _SMALLEST_SCALE

    def _take_step(self, batch: dict) -> dict:
        compute = self.loss
        # A loss that is not finite makes the gradient so, and that the gradient of all processes: 0 * inf is nan.
        self.loss = lambda *inputs: (loss := compute(*inputs)) * (1 + 0 * loss.detach())
        try:
            return super().train_step(batch)
        finally:
            self.loss = compute

    def _drop_bad_gradients(self) -> None:
        """Let the optimizer change nothing if a gradient is not finite; where there is a grad scaler, that does it."""
        if self.grad_scaler is not None:
            return
        # They were clipped before, so that finite ones have a finite sum.
        sums = [parameter.grad.sum() for parameter in self.network.parameters() if parameter.grad is not None]
        if not torch.stack(sums).isfinite().all():
            self._gradient_is_bad = True
            for parameter in self.network.parameters():
                parameter.grad = None

    def _count(self, problem: str, cases: Iterable[str]) -> None:
        self._progress.bad_steps += 1
        self._bad_in_a_row += 1
        everyones = [list(map(str, cases))]
        if self.is_ddp:
            everyones *= distributed.get_world_size()
            distributed.all_gather_object(everyones, everyones[0])
        names = ", ".join(dict.fromkeys(chain.from_iterable(everyones)))
        place = f"epoch {self.current_epoch}, iteration {len(self._progress.losses)}: {problem} finite (cases: {names})"
        if self._bad_in_a_row >= self.most_bad_steps:
            raise BadNumbersError(
                f"nnunet_plugins: {self._bad_in_a_row} steps in a row were not finite, the last one in {place}. The "
                f"checkpoints in {self.output_folder} are from before and stay. `nnunet-plugins doctor -d "
                f"{self.plans_manager.dataset_name}` looks for bad images; if the images are good, a smaller learning "
                "rate may help, or `_Adam` at the end of the trainer's name."
            )
        if self._progress.bad_steps <= _MOST_REPORTS:
            more = " Further ones are counted only." if self._progress.bad_steps == _MOST_REPORTS else ""
            self.print_to_log_file(f"WARNING: {place}. The step is left out.{more}")


def are_finite(values: torch.Tensor) -> bool:
    """Tell whether all values are finite numbers."""
    # The sum is so only if they are, and several times faster; of large ones it may not be.
    return bool(values.sum().isfinite() or values.isfinite().all())
