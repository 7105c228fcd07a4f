"""Trainings that can be repeated, as far as nnU-Net and the machine let them.

nnU-Net seeds nothing, and two trainings of one network differ. A seed fixes the weights to begin with and all random
numbers that are drawn, also by the workers that load data. The same weights come out, bit by bit, on a CPU with
`nnUNet_n_proc_DA=0` and one number of threads. With workers, batches come in the order in which they are ready; a GPU
adds up in an order of its own.
"""

import random
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_plugins.trainers.reliable import ReliableTrainer


class SeededTrainer(ReliableTrainer):
    """nnU-Net's trainer, whose random numbers begin where the seed says; `--c` goes on with those of the checkpoint."""

    seed: int

    def initialize(self) -> None:
        """Make the network from the seed; what is drawn after it follows, in each of several processes its own."""
        (number,) = self._numbers(1)
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        super().initialize()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trainer's transforms, one of which would choose its way by the clock.

        The blur takes the quicker of two ways, which do not round alike, as each process has measured it.
        """
        transforms = super().get_training_transforms(*args, **kwargs)
        for step in transforms.transforms:
            blur = getattr(step, "transform", step)
            if hasattr(blur, "benchmark"):
                blur.benchmark = False
        return transforms

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return the trainer's loaders; their workers, which nnU-Net leaves to themselves, begin anew with a seed."""
        loaders = super().get_dataloaders()
        # Going on, they draw others than at the beginning.
        begun = self.current_epoch, len(self._resumed.losses) if self._resumed else 0
        for kind, loader in enumerate(loaders, start=1):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader.seeds = self._numbers(loader.num_processes, kind, *begun)
                loader.restart()
        return loaders

    def _numbers(self, count: int, *of: int) -> list[int]:
        """Return seeds of this process that have nothing to do with those of other seeds."""
        sequence = np.random.SeedSequence((self.seed, self.local_rank, *of))
        return [int(number) for number in sequence.generate_state(count)]
