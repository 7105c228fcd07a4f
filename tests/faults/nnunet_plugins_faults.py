"""Trainers for nnU-Net to find (`nnUNet_extTrainer`), to which things happen that the environment names.

- `HOLD="train 1 2"`: before training step 2 of epoch 1, say "holding" and wait until the file `$GO` is there; likewise
  before a `validate` step after as many training steps. `HOLD="write 3"`: in the middle of writing the third
  checkpoint. `HOLD="whole images"`: at the beginning of the validation after the last epoch. `HOLD="case"`: in the
  middle of it, when the processes that write its segmentations wait for the next one. `HOLD="start"`: in the start-up,
  before there is anything to load data with; `FAIL="start"` makes that fail, right after. `FAIL="batch 1 2"`: a signal
  comes between the images of a step and the step, and something fails by it. `HOLD="move"`: where files of an earlier
  training are moved aside, which fails then.
- `UNREADABLE="1"`: checkpoints cannot be read, as of a disk that fails.
- `LIMIT="1 40000"`: from epoch 1 on, no file can grow beyond 40000 bytes, as on a full disk.
- `POISON="gradient 1 2 3"`: the gradient of step 2 of epoch 1 is not finite, nor that of the next two. `POISON="loss
  1 2 3"`: their losses are not, by a constant that leaves the gradients as they are. Several with commas in between.
- `SCALER="65536"`: a grad scaler, as nnU-Net has on GPUs, with this scale to begin with.
- `JOURNAL`: file to which the epoch and step of each checkpoint are appended when it is complete.

Each training step says on which images and from which weights it is taken.
"""

import errno
import io
import multiprocessing
import os
import random
import resource
import signal
import time
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

from nnunet_plugins import stop_request
from nnunet_plugins.trainers import (
    nnUNetTrainer_3epochs_4iterations_NoMirroring,
    nnUNetTrainer_14epochs_10iterations_NoMirroring,
    nnUNetTrainerAFNBasic_1epochs_1iterations,
    nnUNetTrainerFIRENet_3epochs_3iterations,
)

save = torch.save


def checksum(tensors: Iterable[torch.Tensor]) -> str:
    return f"{zlib.crc32(b''.join(tensor.detach().numpy().tobytes() for tensor in tensors)):08x}"


def hold() -> None:
    print("holding", flush=True)
    while not Path(os.environ["GO"]).exists():
        time.sleep(0.02)


def until_children_wait() -> None:
    """Return when the processes started from here have begun and do nothing any more."""
    before, now = [0.0], [0.0]
    while min(now) == 0 or now != before:
        time.sleep(1)
        children = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
        before, now = now, [sum(child.cpu_times()[:2]) for child in children]


class OnePass:
    """In front of a trainer among the bases of a class: its validation mirrors nothing, which takes eight passes."""

    def perform_actual_validation(self, save_probabilities=False):
        self.inference_allowed_mirroring_axes = None
        super().perform_actual_validation(save_probabilities)


class Faults(OnePass):
    """In front of a trainer among the bases of a class."""

    most_bad_steps = 4
    writes = 0

    def load_checkpoint(self, filename_or_checkpoint):
        if "UNREADABLE" in os.environ:
            zipfile.ZipFile.testzip = self.fail_to_read
        super().load_checkpoint(filename_or_checkpoint)

    def fail_to_read(self, *_):
        raise OSError(errno.EIO, "Input/output error")

    def initialize(self):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        super().initialize()
        if "SCALER" in os.environ:
            self.grad_scaler = torch.amp.GradScaler("cpu", init_scale=float(os.environ["SCALER"]))
        next(self.network.parameters()).register_hook(lambda gradient: self.poison("gradient", gradient))
        self.loss.register_forward_hook(lambda _, __, loss: self.poison("loss", loss))

    def get_training_transforms(self, *args, **kwargs):
        if os.environ.get("HOLD") == "start":
            hold()
        if os.environ.get("FAIL") == "start":
            raise RuntimeError("the start-up failed")
        composed = super().get_training_transforms(*args, **kwargs)
        inner = [getattr(step, "transform", None) for step in composed.transforms]
        (blur,) = [one for one in inner if isinstance(one, GaussianBlurTransform)]
        # It takes the quicker of two ways by the clock, in each process anew, and they do not round alike: other load
        # on the machine, other weights.
        blur.benchmark = False
        return composed

    def is_due(self, what: str) -> bool:
        return os.environ.get("HOLD") == f"{what} {self.current_epoch} {len(self._progress.losses)}"

    def poison(self, what, value):
        for poison in os.environ.get("POISON", "nothing 0 0 0").split(","):
            poisoned, *place = poison.split()
            epoch, step, number = map(int, place)
            if (poisoned, epoch) == (what, self.current_epoch) and step <= len(self._progress.losses) < step + number:
                return value + float("inf")
        return value

    def on_epoch_start(self):
        epoch, size = map(int, os.environ.get("LIMIT", "-1 0").split())
        if epoch == self.current_epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        rename = Path.rename
        if os.environ.get("HOLD") == "move":
            Path.rename = self.fail_to_move
        super().on_epoch_start()
        Path.rename = rename

    def fail_to_move(self, *_):
        hold()
        raise PermissionError(errno.EACCES, "Permission denied")

    def train_step(self, batch):
        images, weights = checksum([batch["data"]]), checksum(self.network.parameters())
        print(f"step {self.current_epoch} {len(self._progress.losses)}: images {images}, weights {weights}")
        if self.is_due("train"):
            hold()
        if os.environ.get("FAIL") == f"batch {self.current_epoch} {len(self._progress.losses)}":
            os.kill(os.getpid(), signal.SIGTERM)
            raise BrokenPipeError("nobody reads this")
        return super().train_step(batch)

    def validation_step(self, batch):
        if self.is_due("validate"):
            hold()
        return super().validation_step(batch)

    def set_deep_supervision_enabled(self, enabled):
        if not enabled and os.environ.get("HOLD") == "whole images":
            hold()
        super().set_deep_supervision_enabled(enabled)

    def print_to_log_file(self, *args, **kwargs):
        super().print_to_log_file(*args, **kwargs)
        if os.environ.get("HOLD") == "case" and str(args[0]).startswith("predicting"):
            until_children_wait()
            stop_request.SECONDS_TO_END = 0.5
            hold()

    def save_checkpoint(self, filename):
        self.writes += 1
        torch.save = self.write_and_hold if os.environ.get("HOLD") == f"write {self.writes}" else save
        super().save_checkpoint(filename)
        if "JOURNAL" in os.environ:
            # At the end of an epoch nnU-Net writes down the next one, in the middle our trainer the running one.
            with open(os.environ["JOURNAL"], "a") as file:
                file.write(f"{self.current_epoch + 1} {len(self._progress.losses)}\n")

    def write_and_hold(self, content, path):
        whole = io.BytesIO()
        save(content, whole)
        with open(path, "wb") as file:
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            hold()
            file.write(whole.getvalue()[len(whole.getvalue()) // 2 :])


class nnUNetTrainerFaults(Faults, nnUNetTrainer_3epochs_4iterations_NoMirroring):  # noqa: N801
    pass


class nnUNetTrainerFaultsFIRENet(Faults, nnUNetTrainerFIRENet_3epochs_3iterations):  # noqa: N801
    pass


class nnUNetTrainerFaultsLong(Faults, nnUNetTrainer_14epochs_10iterations_NoMirroring):  # noqa: N801
    pass


class nnUNetTrainerOwn(OnePass, nnUNetTrainerAFNBasic_1epochs_1iterations):  # noqa: N801
    """What users may make: a loss that is no module, which it need not be without deep supervision, and batches that do
    not tell their cases.
    """

    def _build_loss(self):
        return lambda output, target: torch.nn.functional.cross_entropy(output, target[:, 0].long())

    def train_step(self, batch):
        return super().train_step({key: batch[key] for key in ("data", "target")})
