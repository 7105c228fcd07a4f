"""What can be seen of a training from outside: gates in `gates.csv`, and what TensorBoard and MLflow get.

The training takes no notice of any of it, and one process tells for all.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from nnunet_plugins.errors import InputError
from nnunet_plugins.memory import peak_bytes
from nnunet_plugins.networks.layers.attention import mean_attention
from nnunet_plugins.trainers.fold_folder import GATES
from nnunet_plugins.trainers.gates import GateTable
from nnunet_plugins.trainers.patch_picture import draw_patch, to_labels
from nnunet_plugins.trainers.reliable import ReliableTrainer
from nnunet_plugins.trainers.trackers import About, Tracker, clean, epochs_between_pictures, wanted_stores

_MEBI = 2**20


class FollowedTrainer(ReliableTrainer):
    """nnU-Net's trainer, reliable and followed; nothing else about it differs."""

    num_epochs: int
    loss: Callable[..., torch.Tensor]

    _trackers: tuple[Tracker, ...] | None = None
    _gate_table: GateTable | None = None
    _gates_failed = False  # to be written, and that has been told
    _gates_broken = False  # in the network
    _pictures: dict[str, NDArray]
    _attention: dict[str, float]
    _seen = False  # whether a patch of this epoch's validation was looked at

    # nnU-Net looks up the arguments that the signature names.
    @wraps(ReliableTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._stores = wanted_stores()
        self._picture_epochs = epochs_between_pictures()
        super().__init__(*arguments, **named)
        self._pictures, self._attention = {}, {}

    def bare_network(self) -> nn.Module:
        """Return the network without the wrappers of DDP and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    # The training loop's hooks, in the order in which nnU-Net calls them

    def run_training(self) -> None:
        """Train, and tell what follows it how it ended."""
        with self._closing():
            super().run_training()

    def on_epoch_start(self) -> None:
        """Start an epoch; before the first one, what an earlier training has left is moved aside by now."""
        super().on_epoch_start()
        if self.local_rank == 0 and self._trackers is None:
            self._open(self.current_epoch)
            self._open_gates()

    def validation_step(self, batch: dict) -> dict:
        """Validate on a batch; its last image, which nnU-Net draws around a label, may be looked at."""
        if self._seen or not self._looks():
            return super().validation_step(batch)
        self._seen = True
        compute = self.loss
        image = batch["data"][-1]

        # Here all trainers have logits and truth together, and the network, compiled or not, needs no hook.
        def look(output: Any, target: Any) -> torch.Tensor:
            self._look(image, output, target)
            return compute(output, target)

        self.loss = look
        try:
            return super().validation_step(batch)
        finally:
            self.loss = compute

    def on_epoch_end(self) -> None:
        """End the epoch; what is told of it is told before its checkpoint, after which it is not repeated."""
        if self.local_rank == 0:
            self._tell_epoch()
        super().on_epoch_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate on whole images, and tell the result.

        Raises:
            FolderError: if another training is running in the fold's folder.
        """
        self._keep_others_out()  # their run is left as it is
        if self.local_rank == 0:
            self._open(self.num_epochs)
        with self._closing():
            super().perform_actual_validation(save_probabilities)

    # Gates

    def _gates(self) -> dict[str, float]:
        values = getattr(self.bare_network(), "gate_values", None)
        if values is None or self._gates_broken:
            return {}
        try:
            return {str(name): float(gate) for name, gate in values().items()}
        except Exception as error:  # of networks of others
            self._gates_broken = True
            self.print_to_log_file(f"WARNING: nnunet_plugins: the network cannot tell its gates: {error!r}")
            return {}

    def _open_gates(self) -> None:
        gates = self._gates()
        if gates:
            try:
                self._gate_table = GateTable(Path(self.output_folder, GATES), list(gates), self.current_epoch)
            except InputError as error:
                self.print_to_log_file(
                    f"WARNING: nnunet_plugins: the gates of this training are not kept: {error}. Move that file away "
                    "and go on with --c to have those of the epochs to come."
                )

    def _keep_gates(self, gates: dict[str, float]) -> None:
        if self._gate_table is None or not gates:
            return
        try:
            self._gate_table.add(self.current_epoch, gates)
        except OSError as error:
            if not self._gates_failed:
                self.print_to_log_file(
                    f"WARNING: nnunet_plugins: {self._gate_table.file} could not be written: {error}. Make room; all "
                    "epochs of this training come with the next one that can be written."
                )
            self._gates_failed = True

    # Trackers

    def _open(self, begin: int) -> None:
        if self._trackers is None:
            names = self._names()
            self._trackers = tuple(
                Tracker(store, names, self.print_to_log_file, self.num_epochs) for store in self._stores
            )
            self.logger.loggers.extend(self._trackers)
        for tracker in self._trackers:
            tracker.open(self._about(), begin)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (SystemExit, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            for tracker in self._trackers or ():
                tracker.close(status)

    def _about(self) -> About:
        folder, patch = Path(self.output_folder), self.configuration_manager.patch_size
        facts = {
            "trainer": type(self).__name__,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "epochs": self.num_epochs,
            "iterations_per_epoch": self.num_iterations_per_epoch,
            "batch_size": self.configuration_manager.batch_size,
            "patch_size": "x".join(map(str, patch)),
            "initial_learning_rate": self.initial_lr,
            "device": self.device.type,
        }
        # Version 0.1.0 gave runs no name.
        return About(folder, folder.parents[2], self._run or str(folder), self.plans_manager.dataset_name, facts)

    def _names(self) -> dict[str, str]:
        """Return what the trackers call what nnU-Net logs, with the names of the labels."""
        names = {
            "train_losses": "loss/train",
            "val_losses": "loss/validation",
            "lrs": "learning_rate",
            "mean_fg_dice": "pseudo_dice/mean",
            "ema_fg_dice": "pseudo_dice/moving_average",
            "final_val/foreground_dice": "final_dice/mean",
        }
        labels = self.label_manager
        called = {_value(value): name for name, value in self.dataset_json["labels"].items()}
        foreground = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        for number, label in enumerate(foreground, start=1):
            name = f"{number}_{clean(called.get(_value(label), str(label)))}"
            names[f"dice_per_class_or_region/class_{number}"] = f"pseudo_dice/{name}"
            names[f"final_val/class_{label}_dice"] = f"final_dice/{name}"
        return names

    def _tell_epoch(self) -> None:
        gates = self._gates() if self._gate_table or self._trackers else {}
        self._keep_gates(gates)
        pictures, attention = self._pictures, self._attention
        self._pictures, self._attention, self._seen = {}, {}, False
        if not self._trackers:
            return
        values = {"epoch_seconds": time.time() - self.logger.get_value("epoch_start_timestamps", step=-1)}
        if self.device.type == "cuda":
            values["memory/gpu_peak_MiB"] = torch.cuda.max_memory_allocated(self.device) / _MEBI
        if peak := peak_bytes():
            values["memory/process_peak_MiB"] = peak / _MEBI
        values |= {f"gates/{clean(name)}": gate for name, gate in gates.items()} | attention
        for tracker in self._trackers:
            tracker.end_epoch(self.current_epoch, values, pictures if self._shows(tracker) else {})

    # A patch of the validation

    def _shows(self, tracker: Tracker) -> bool:
        """Tell whether a tracker gets pictures: asked for, all do; otherwise those that keep them here."""
        return tracker.store is not None and (tracker.store.is_near or self._picture_epochs is not None)

    def _looks(self) -> bool:
        every = max(1, self.num_epochs // 50) if self._picture_epochs is None else self._picture_epochs
        return every > 0 and self.current_epoch % every == 0 and any(one.store for one in self._trackers or ())

    def _look(self, image: torch.Tensor, output: Any, target: Any) -> None:
        """Draw the last image of a batch, take its attention; `output` and `target` may be lists, full size first."""
        try:
            if any(map(self._shows, self._trackers or ())):
                self._pictures = {"validation_patch": self._draw(image, output, target)}
            # Without the wrapper of torch.compile, which would compile it once more for what is recorded.
            layers = mean_attention(self.bare_network(), image[None].to(self.device))
            self._attention = {
                f"attention/{clean(layer)}/{'gate' if rate == 'gate' else f'rate_{rate}'}": share
                for layer, shares in layers.items()
                for rate, share in shares.items()
            }
        except Exception as error:  # a network or a loss of others may have something else there
            self._picture_epochs = 0
            self.print_to_log_file(
                f"WARNING: nnunet_plugins: no pictures and no attention of validation patches: {error!r}"
            )

    def _draw(self, image: torch.Tensor, output: Any, target: Any) -> NDArray:
        logits, truth = (one[0] if isinstance(one, (list, tuple)) else one for one in (output, target))
        regions = self.label_manager.has_regions
        predicted = to_labels(logits[-1].detach(), regions=regions)
        # There may be one channel more than regions, of what is ignored.
        true = to_labels(truth[-1][: logits.shape[1]], regions=True) if regions else truth[-1][0]
        return draw_patch(*(part.float().cpu().numpy() for part in (image, true, predicted)))


def _value(label: Any) -> Any:
    return tuple(label) if isinstance(label, (list, tuple)) else label
