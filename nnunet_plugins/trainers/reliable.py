"""The base of our trainers, and of the stock one with modifiers: no training is lost.

- A checkpoint is at every instant complete: it is written beside the old one, synced, and renamed.
- `checkpoint_latest` is also written every few minutes, in the middle of an epoch, and before a signal ends training.
  It holds how far the epoch has come and the state of the random numbers, so that `--c` goes on as if nothing had been.

What nnU-Net's checkpoint has no place for travels in the state of the optimizer, through PyTorch's hooks.
"""

import contextlib
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from nnunet_plugins.files import unfinished, whole_file
from nnunet_plugins.stop_request import STOPPED, StopRequest, drop_unread_output
from nnunet_plugins.trainers.checkpoints import CheckpointError, find_checkpoints, load_checkpoint
from nnunet_plugins.trainers.checks import require_backbone, require_device, require_labels
from nnunet_plugins.trainers.finite import FiniteTrainer
from nnunet_plugins.trainers.fold_folder import CHECKPOINTS, RUN_FILE, begin_run, only_training, run_of
from nnunet_plugins.trainers.progress import (
    PROGRESS,
    Choice,
    Progress,
    choose,
    minutes_between_checkpoints,
    random_state,
    set_random_state,
)

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""What asks a training to stop: `kill`, Ctrl-C, a closed terminal, and the warnings of schedulers (Slurm's
`--signal=USR1@120`, SIGUSR2 from LSF and SGE, SIGXCPU where the time of the processor is limited)."""


class ReliableTrainer(FiniteTrainer):
    """nnU-Net's trainer, which survives bad numbers, signals, kills and full disks; nothing else about it differs."""

    num_iterations_per_epoch: int

    _resumed: Progress | None = None  # what the checkpoint knew of an epoch that had begun
    _loaded = False  # a checkpoint to go on from
    _run: str | None = None  # this one's name
    _started = False  # the start-up is over: there is something to save
    _iterations = 0  # of the running epoch, where the loop's number may be lower
    _steps_to_skip = 0
    _in_step = False
    _before_batch: dict[str, Any] | None = None  # random numbers from which the next step's images are drawn
    _holds_folder = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net fixes this signature
    ) -> None:
        require_device(device)
        require_backbone(type(self))
        self._save_seconds = 60 * minutes_between_checkpoints()
        self._continues = bool(plans["continue_training"])  # until it is known from where
        super().__init__(plans, configuration, fold, dataset_json, device)
        require_labels(type(self), self.label_manager)
        # Launchers of several processes send a second Ctrl-C of their own accord.
        self._stop = StopRequest(SIGNALS, "saving a checkpoint at the end of this step.", second_ends=not self.is_ddp)
        self._only_training = contextlib.ExitStack()
        self._saved_at = time.monotonic()

    # Checkpoints

    def initialize(self) -> None:
        """Set up training as nnU-Net does, and let the optimizer's state carry what a resumed run needs."""
        super().initialize()
        self.optimizer.register_state_dict_post_hook(lambda _, state: {**state, PROGRESS: self._state()})
        self.optimizer.register_load_state_dict_pre_hook(lambda _, state: self._take_state(state))

    def _state(self) -> dict[str, Any]:
        if self._progress.losses:
            self._progress.seconds = time.time() - self.logger.get_value("epoch_start_timestamps", step=-1)
        # The validation is not interrupted half-way but done again, with the same random numbers.
        return replace(self._progress, run=self._run, random=self._progress.random or random_state()).to_state()

    def _take_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Keep our part of the optimizer's state for `on_train_start` and `on_epoch_start`, and return the rest."""
        if PROGRESS in state:
            self._resumed = Progress.from_state(state[PROGRESS])
            self._run = self._resumed.run
        return {key: value for key, value in state.items() if key != PROGRESS}

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that replaces the one before only when it is complete.

        A failure, say for want of space, is told and training goes on: the checkpoint before is untouched, and the next
        one may succeed.

        Raises:
            CheckpointError: if it fails at the end of the training or before a stop, where there is no next one.
        """
        path = Path(filename)
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        try:
            with whole_file(path) as part:
                super().save_checkpoint(str(part))
        except (OSError, RuntimeError) as error:  # torch tells of full disks by RuntimeErrors
            problem = (
                f"nnunet_plugins: {path} could not be written: {str(error).splitlines()[0]} "
                f"({shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB free). "
                "The checkpoints that are there are as they were."
            )
            if path.name == CHECKPOINTS[0] or self._stop.signal:
                raise CheckpointError(f"{problem} Make room, then go on with --c.") from error
            self.print_to_log_file(f"WARNING: {problem} Training goes on; make room for the next one.")

    def _save_latest(self) -> None:
        """Save in the middle of an epoch."""
        self._saved_at = time.monotonic()
        # nnU-Net writes down the epoch after the current one, as it saves at the end of epochs.
        self.current_epoch -= 1
        try:
            self.save_checkpoint(os.path.join(self.output_folder, CHECKPOINTS[1]))
        finally:
            self.current_epoch += 1

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint; `--c` gets the one that is furthest of the run that was begun last.

        Raises:
            CheckpointError: if a checkpoint that was asked for by name cannot be read; with `--c`, if any one cannot,
                unless it is surely damaged: nothing is trained over what may be good.
            FolderError: with `--c`, if another training is running.
        """
        if not isinstance(filename_or_checkpoint, str):
            self._loaded = True
            super().load_checkpoint(filename_or_checkpoint)
            return
        path = Path(filename_or_checkpoint)
        if self._continues:
            self._continues = False
            furthest = self._furthest()
            if furthest is None:
                return
            path = furthest
        else:
            try:
                load_checkpoint(path, trusted=True)  # nnU-Net reads it in the same way, right after this
            except (OSError, CheckpointError) as error:
                raise CheckpointError(
                    f"nnunet_plugins: {error}. Train with --c to go on from another checkpoint of {path.parent}"
                ) from error
        self._loaded = True  # before all parts are made, which may be those of the checkpoint
        super().load_checkpoint(str(path))
        # What was logged of an epoch that had begun is logged again.
        for values in self.logger.get_checkpoint().values():
            del values[self.current_epoch :]

    def _furthest(self) -> Path | None:
        """Return the checkpoint to go on from; None to start afresh, which is told."""
        self._keep_others_out()  # or it may write a further one right now
        folder = Path(self.output_folder)
        # One process chooses for all: what another one cannot read would make it go another way than the rest.
        choices = [choose(find_checkpoints(folder), run_of(folder)) if self.local_rank == 0 else Choice()]
        if self.is_ddp:
            distributed.broadcast_object_list(choices)
        (choice,) = choices
        if choice.refusal:
            raise CheckpointError(
                f"nnunet_plugins: {choice.refusal}. It may be good all the same, and the one to go on from, so "
                "nothing is trained over it. Mend what is missing here, or move it away and use --c again."
            )
        for warning in choice.warnings:
            self.print_to_log_file(f"WARNING: {warning}")
        if choice.warnings and choice.path is None:
            self.print_to_log_file(
                f"WARNING: no checkpoint of this training in {folder} can be read; training starts afresh. (If there "
                f"are others, --c goes on from them once {RUN_FILE} is deleted.)"
            )
        return choice.path

    # The training loop's hooks, in the order in which nnU-Net calls them

    def run_training(self) -> None:
        """Train as nnU-Net does; a signal ends it after the running step, with a checkpoint and exit code 75.

        Raises:
            FolderError: if another training is running in the fold's folder.
            SystemExit: with code 75, if a signal asked for it.
        """
        self._keep_others_out()
        if self._continues:
            # nnU-Net takes a file that it is not allowed to see, or cannot at the moment, for one that is not there.
            self.load_checkpoint(os.path.join(self.output_folder, CHECKPOINTS[0]))
        with self._only_training, self._stop:
            # Until the first step there is nothing to save. Processes that train together have to agree first.
            self._stop.at_once = not self.is_ddp
            try:
                super().run_training()
            except SystemExit:
                if not self._started:
                    self._end()
                raise
            except Exception:
                # The workers that load the data may have got the signal too, and ended before us.
                if self._stop.signal is None or not self._started or self._in_step:
                    raise
                # Random numbers may have been drawn for a step that was not taken.
                self._progress.random = self._progress.random or self._before_batch
                self._end()
            finally:
                self._end_workers()

    def on_train_start(self) -> None:
        """Start training, or go on with the random numbers where they were."""
        super().on_train_start()
        if self.local_rank == 0:
            for name in CHECKPOINTS:  # what a kill in the middle of writing has left
                unfinished(Path(self.output_folder, name)).unlink(missing_ok=True)
        if self._resumed and self._resumed.random and not self.is_ddp:
            set_random_state(self._resumed.random)
        self._saved_at = time.monotonic()

    def on_epoch_start(self) -> None:
        """Start an epoch, or go on with one that had begun."""
        # A stop waits for the first step from here on, and so for all that is moved aside.
        self._stop.at_once = False
        if not self._started:
            self._take_folder()
        self._started = True
        super().on_epoch_start()
        resumed, self._resumed = self._resumed, None
        self._iterations = self.num_iterations_per_epoch
        if resumed and resumed.losses:
            resumed.random = None
            self._progress = resumed
            self.logger.get_value("epoch_start_timestamps", step=None)[-1] -= resumed.seconds
            self._steps_to_skip = min(len(resumed.losses), self._iterations)

    def on_train_epoch_start(self) -> None:
        """Start the training steps; those that were taken before the interruption are not repeated."""
        super().on_train_epoch_start()
        if self._steps_to_skip:
            self.print_to_log_file(f"Going on after iteration {self._steps_to_skip} of {self._iterations}")
            # nnU-Net's loop asks for it after this.
            self.num_iterations_per_epoch = self._iterations - self._steps_to_skip
        self._before_batch = random_state()

    def train_step(self, batch: dict) -> dict:
        """Take a step; a stop is obeyed after it.

        Raises:
            SystemExit: with code 75, if a signal asked for it.
        """
        self._in_step = True
        output = super().train_step(batch)
        self._in_step = False
        self._before_batch = random_state()
        if self.is_ddp:  # they agree on a stop at the beginning of the next step
            self._save_in_time()
        else:
            self._between_steps()
        return output

    def _is_left_out(self, bad: bool) -> bool:
        # One question for all processes, a step: whether to leave it out, and whether to stop before it.
        bad, stop = self._anyone(bad, self._stop.signal is not None)
        if stop and self.is_ddp:
            self._end()
        return bad

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the training steps of an epoch, with those from before an interruption."""
        losses = self._progress.losses[: self._steps_to_skip]
        before = [{"loss": np.array(loss, dtype=np.float32)} for loss in losses]
        self.num_iterations_per_epoch, self._steps_to_skip = self._iterations, 0
        super().on_train_epoch_end([*before, *train_outputs])

    def on_validation_epoch_start(self) -> None:
        """Start the validation of an epoch, which a resumed run does again from here."""
        super().on_validation_epoch_start()
        self._progress.random, self._before_batch = random_state(), None

    def validation_step(self, batch: dict) -> dict:
        """Validate on a batch; a stop is obeyed after it.

        Raises:
            SystemExit: with code 75, if a signal asked for it.
        """
        output = super().validation_step(batch)
        self._between_steps()
        return output

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """End the validation of an epoch; with it the epoch is over for a checkpoint."""
        super().on_validation_epoch_end(val_outputs)
        self._progress.random, self._progress.losses = None, []

    def on_epoch_end(self) -> None:
        """End the epoch; that its curves cannot be drawn, say on a full disk, ends no training."""
        epoch = self.current_epoch
        try:
            super().on_epoch_end()
        except OSError as error:
            self.print_to_log_file(f"WARNING: nnunet_plugins: progress.png could not be written: {error}")
            # What nnU-Net does after drawing.
            self.current_epoch = epoch + 1

    def on_train_end(self) -> None:
        """End training with the final checkpoint."""
        self._progress.losses = []
        super().on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate on whole images; a signal ends it at once with exit code 75, and `--c` does it again.

        Raises:
            FolderError: if another training is running in the fold's folder.
            SystemExit: with code 75, if a signal asked for it.
        """
        self._keep_others_out()
        with self._only_training, self._stop:
            try:
                if self._stop.signal:
                    raise SystemExit(STOPPED)
                self._stop.at_once, self._stop.last_words = True, self._say_stopped
                super().perform_actual_validation(save_probabilities)
            except SystemExit:
                self._say_stopped()
                raise

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Log as nnU-Net does; that nobody reads the output any more, say of a closed terminal, ends no training."""
        try:
            super().print_to_log_file(*args, also_print_to_console=also_print_to_console, add_timestamp=add_timestamp)
        except OSError:
            drop_unread_output(sys.stdout)

    # The fold's folder

    def _keep_others_out(self) -> None:
        """Hold the folder until the training, or the validation, is over; several processes of one count as one."""
        if self.local_rank == 0 and not self._holds_folder:
            folder = Path(self.output_folder)
            self._only_training.enter_context(only_training(folder, self.print_to_log_file))
            self._holds_folder = True
            self._only_training.callback(setattr, self, "_holds_folder", False)

    def _take_folder(self) -> None:
        """Move aside what an earlier training has left, unless this one goes on from it."""
        if self._loaded:
            return
        if self.is_ddp:
            distributed.barrier()  # others may still be reading there, say the weights to begin with
        if self.local_rank == 0:
            self._run = begin_run(Path(self.output_folder), self.print_to_log_file)

    # Stops

    def _between_steps(self) -> None:
        if self._anyone(self._stop.signal is not None)[0]:
            self._end()
        self._save_in_time()

    def _save_in_time(self) -> None:
        if time.monotonic() - self._saved_at > self._save_seconds and not self._bad_in_a_row:
            self._save_latest()

    def _end(self) -> None:
        self._stop.signal = self._stop.signal or "another process's signal"
        if self._started:
            self._save_latest()
            place = f"in epoch {self.current_epoch} after iteration {len(self._progress.losses)} of {self._iterations}"
            saved = "Nothing is saved" if self.disable_checkpointing else f"{CHECKPOINTS[1]} is saved"
        else:
            place, saved = "before the first step", "The checkpoints are as they were"
        self._end_workers()
        self.print_to_log_file(f"Stopped by {self._stop.signal} {place}. {saved}; go on with --c. Exit code {STOPPED}.")
        drop_unread_output()
        raise SystemExit(STOPPED)

    def _say_stopped(self) -> None:
        what = f"Stopped by {self._stop.signal} before the validation was done"
        self.print_to_log_file(f"{what}; go on with --c. Exit code {STOPPED}.")
        drop_unread_output()

    def _end_workers(self) -> None:
        """End the processes that load data, as nnU-Net does at the end; killed later, they look like a crash."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()
