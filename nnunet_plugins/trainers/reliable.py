"""The base of our trainers, and of the stock one with modifiers: no training is lost.

- A checkpoint is at every instant complete: it is written beside the old one, synced, and renamed.
- `checkpoint_latest` is also written every few minutes, in the middle of an epoch, and before a signal ends training.
  It holds how far the epoch has come and the state of the random numbers, so that `--c` goes on as if nothing had been.

What nnU-Net's checkpoint has no place for travels in the state of the optimizer, through PyTorch's hooks.
"""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_plugins.files import unfinished, whole_file
from nnunet_plugins.stop_request import STOPPED, StopRequest
from nnunet_plugins.trainers.checkpoints import CheckpointError, load_checkpoint
from nnunet_plugins.trainers.checks import require_device, require_labels
from nnunet_plugins.trainers.finite import FiniteTrainer
from nnunet_plugins.trainers.splitting import require_splits

SAVE_MINUTES = "nnUNet_plugins_save_minutes"
"""Environment variable: minutes between two checkpoints within an epoch; 10 if it is not set, and 0 for none."""

PROGRESS = "nnunet_plugins"
"""Key of the optimizer's state under which our part of a checkpoint stands."""

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
"""What asks a training to stop: `kill`, a scheduler's warning (Slurm's `--signal=USR1@120`), and Ctrl-C."""

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def minutes_between_checkpoints() -> float:
    """Return what the environment variable `nnUNet_plugins_save_minutes` says; infinite for 0.

    Raises:
        ValueError: if it is no number from 0.
    """
    text = os.environ.get(SAVE_MINUTES, "10")
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1
    if not minutes >= 0:
        raise ValueError(f"nnunet_plugins: {SAVE_MINUTES}={text!r} is no number of minutes; use for example 10, or 0")
    return minutes or float("inf")


class ReliableTrainer(FiniteTrainer):
    """nnU-Net's trainer, which survives bad numbers, signals, kills and full disks; nothing else about it differs."""

    num_iterations_per_epoch: int
    preprocessed_dataset_folder: str
    preprocessed_dataset_folder_base: str

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net fixes this signature
    ) -> None:
        require_device(device)
        self._save_seconds = 60 * minutes_between_checkpoints()
        self._continues = bool(plans["continue_training"])
        super().__init__(plans, configuration, fold, dataset_json, device)
        require_labels(type(self), self.label_manager)
        # Launchers of several processes send a second Ctrl-C of their own accord.
        self._stop = StopRequest(SIGNALS, "saving a checkpoint at the end of this step.", second_ends=not self.is_ddp)
        self._saved_at = time.monotonic()
        self._resumed: dict[str, Any] = {}  # what the checkpoint knew of an epoch that had begun
        self._random: dict[str, Any] | None = None  # before the running epoch's validation
        self._iterations = 0  # of the running epoch, where the loop's number may be lower
        self._steps_to_skip = 0
        self._in_step = False

    # Checkpoints

    def initialize(self) -> None:
        """Set up training as nnU-Net does, and let the optimizer's state carry what a resumed run needs."""
        super().initialize()
        self.optimizer.register_state_dict_post_hook(lambda _, state: {**state, PROGRESS: self._progress()})
        self.optimizer.register_load_state_dict_pre_hook(lambda _, state: self._take_progress(state))

    def _progress(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "seconds": time.time() - self.logger.get_value("epoch_start_timestamps", step=-1) if self._losses else 0.0,
            "bad_steps": self._bad_steps,
            # The validation is not interrupted half-way but done again, with the same random numbers.
            "random": self._random or random_state(),
        }

    def _take_progress(self, state: dict[str, Any]) -> dict[str, Any]:
        """Keep our part of the optimizer's state for `on_train_start` and `on_epoch_start`, and return the rest."""
        self._resumed = dict(state.get(PROGRESS, {}))
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
            if path.name == _CHECKPOINTS[0] or self._stop.signal:
                raise CheckpointError(f"{problem} Make room, then go on with --c.") from error
            self.print_to_log_file(f"WARNING: {problem} Training goes on; make room for the next one.")

    def _save_latest(self) -> None:
        """Save in the middle of an epoch."""
        self._saved_at = time.monotonic()
        # nnU-Net writes down the epoch after the current one, as it saves at the end of epochs.
        self.current_epoch -= 1
        try:
            self.save_checkpoint(os.path.join(self.output_folder, _CHECKPOINTS[1]))
        finally:
            self.current_epoch += 1

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint; `--c` gets the one that is furthest of those that can be read.

        Raises:
            CheckpointError: if a checkpoint that was asked for by name cannot be read.
        """
        if not isinstance(filename_or_checkpoint, str):
            super().load_checkpoint(filename_or_checkpoint)
            return
        path = Path(filename_or_checkpoint)
        if self._continues and self.dataloader_train is None:
            furthest = self._furthest(path.parent)
            if furthest is None:
                self.print_to_log_file(f"WARNING: no checkpoint in {path.parent} can be read; training starts afresh.")
                return
            path = furthest
        else:
            try:
                load_checkpoint(path, trusted=True)  # see `_furthest`
            except (OSError, CheckpointError) as error:
                raise CheckpointError(
                    f"nnunet_plugins: {error}. Train with --c to go on from another checkpoint of {path.parent}"
                ) from error
        super().load_checkpoint(str(path))
        # What was logged of an epoch that had begun is logged again.
        for values in self.logger.get_checkpoint().values():
            del values[self.current_epoch :]

    def _furthest(self, folder: Path) -> Path | None:
        """Return the checkpoint that has come furthest; those that cannot be read are told."""
        found: list[tuple[tuple[int, int], Path]] = []
        for path in (folder / name for name in _CHECKPOINTS):
            if not path.exists():
                continue
            try:
                # nnU-Net reads it in the same way, right after this. To refuse here would be to start afresh.
                checkpoint = load_checkpoint(path, trusted=True)
            except (OSError, CheckpointError) as error:
                self.print_to_log_file(f"WARNING: {error}. It is left out; the next best checkpoint is taken.")
                continue
            steps = len(checkpoint["optimizer_state"].get(PROGRESS, {}).get("losses", ()))
            found.append(((checkpoint["current_epoch"], steps), path))
        # Of equal ones the first, which nnU-Net would take as well.
        return max(found, key=lambda one: one[0])[1] if found else None

    # The training loop's hooks, in the order in which nnU-Net calls them

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the cases to train on and to validate on, as nnU-Net does; its file of splits appears complete.

        Several processes of a training, or several folds, may start at the same moment, when there is none yet.
        """
        file = Path(self.preprocessed_dataset_folder_base, "splits_final.json")
        if self.fold != "all":
            require_splits(file, Path(self.preprocessed_dataset_folder), self.fold)
        if self.fold == "all" or file.exists():
            return super().do_split()
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{file.stem}.") as folder:
            self.preprocessed_dataset_folder_base = folder
            try:
                cases = super().do_split()
            finally:
                self.preprocessed_dataset_folder_base = str(file.parent)
            Path(folder, file.name).replace(file)
        return cases

    def run_training(self) -> None:
        """Train as nnU-Net does; a signal ends it after the running step, with a checkpoint and exit code 75."""
        with self._stop:
            try:
                super().run_training()
            except Exception:
                # The workers that load the data may have got the signal too, and ended before us.
                if self._stop.signal is None or self._in_step:
                    raise
                self._end()

    def on_train_start(self) -> None:
        """Start training, or go on with the random numbers where they were."""
        super().on_train_start()
        if self.local_rank == 0:
            for name in _CHECKPOINTS:  # what a kill in the middle of writing has left
                unfinished(Path(self.output_folder, name)).unlink(missing_ok=True)
        if self._resumed and not self.is_ddp:
            set_random_state(self._resumed["random"])
        self._saved_at = time.monotonic()

    def on_epoch_start(self) -> None:
        """Start an epoch, or go on with one that had begun."""
        super().on_epoch_start()
        resumed, self._resumed = self._resumed, {}
        self._iterations = self.num_iterations_per_epoch
        if resumed.get("losses"):
            self._losses, self._bad_steps = list(resumed["losses"]), resumed["bad_steps"]
            self.logger.get_value("epoch_start_timestamps", step=None)[-1] -= resumed["seconds"]
            self._steps_to_skip = min(len(self._losses), self._iterations)

    def on_train_epoch_start(self) -> None:
        """Start the training steps; those that were taken before the interruption are not repeated."""
        super().on_train_epoch_start()
        if self._steps_to_skip:
            self.print_to_log_file(f"Going on after iteration {self._steps_to_skip} of {self._iterations}")
            # nnU-Net's loop asks for it after this.
            self.num_iterations_per_epoch = self._iterations - self._steps_to_skip

    def train_step(self, batch: dict) -> dict:
        """Take a step; a stop is obeyed after it.

        Raises:
            SystemExit: with code 75, if a signal asked for it.
        """
        self._in_step = True
        output = super().train_step(batch)
        self._in_step = False
        self._between_steps()
        return output

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the training steps of an epoch, with those from before an interruption."""
        before = [{"loss": np.array(loss, dtype=np.float32)} for loss in self._losses[: self._steps_to_skip]]
        self.num_iterations_per_epoch, self._steps_to_skip = self._iterations, 0
        super().on_train_epoch_end([*before, *train_outputs])

    def on_validation_epoch_start(self) -> None:
        """Start the validation of an epoch, which a resumed run does again from here."""
        super().on_validation_epoch_start()
        self._random = random_state()

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
        self._random, self._losses = None, []

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
        self._losses = []
        super().on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate on whole images; a signal ends it at once with exit code 75, and `--c` does it again."""
        with self._stop:
            if self._stop.signal:
                raise SystemExit(STOPPED)
            self._stop.at_once = True
            super().perform_actual_validation(save_probabilities)

    # Stops

    def _between_steps(self) -> None:
        if self._anyone(self._stop.signal is not None):
            self._end()
        elif time.monotonic() - self._saved_at > self._save_seconds and not self._bad_in_a_row:
            self._save_latest()

    def _end(self) -> None:
        self._stop.signal = self._stop.signal or "another process's signal"
        self._save_latest()
        saved = "Nothing is saved" if self.disable_checkpointing else f"{_CHECKPOINTS[1]} is saved"
        self.print_to_log_file(
            f"Stopped by {self._stop.signal} in epoch {self.current_epoch} after iteration {len(self._losses)} of "
            f"{self._iterations}. {saved}; go on with --c. Exit code {STOPPED}."
        )
        raise SystemExit(STOPPED)


def random_state() -> dict[str, Any]:
    """Return the state of all random numbers of this process, as tensors, numbers and text."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers from a state that `random_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    # nnU-Net loads checkpoints to the device of the training.
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
