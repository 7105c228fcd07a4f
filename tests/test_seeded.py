"""Trainings with a seed can be repeated, through nnU-Net's own commands."""

import random
import re

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from conftest import Sandbox
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from test_names import FakeDataset
from torch.testing import assert_close

from nnunet_plugins.trainers.checkpoints import load_checkpoint
from nnunet_plugins.trainers.progress import Progress

DATASET = "Dataset001_Small"
TRAINER = "nnUNetTrainer_2epochs_2iterations_NoMirroring"


def train(sandbox: Sandbox, seed: str, *options: str, **env: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the weights, and the losses of the epochs."""
    trainer = TRAINER + seed
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu", *options)
    # How many threads add up decides on the last bits.
    output = sandbox.run(*command, OMP_NUM_THREADS="1", **env)
    file = sandbox.results / DATASET / f"{trainer}__small__3d_fullres" / "fold_0" / "checkpoint_final.pth"
    return load_checkpoint(file)["network_weights"], re.findall(r"(?:train|val)_loss (\S+)", output)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])  # of several, the quickest comes first
def test_a_seed_repeats_a_training_bit_by_bit(small, workers):
    first, losses = train(small, "_3seed", nnUNet_n_proc_DA=workers)
    second, again = train(small, "_3seed", nnUNet_n_proc_DA=workers)
    assert len(losses) == 4
    assert losses == again
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.slow
def test_another_seed_is_another_training(small):
    _, losses = train(small, "_4seed")
    _, others = train(small, "_5seed")
    assert not set(losses) & set(others)


def test_all_random_numbers_come_from_the_seed(tmp_path, monkeypatch):
    """Whatever was drawn before: processes that are forked off one begin with the same numbers by themselves."""
    data = tmp_path / "Dataset001_X" / "x"
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()  # nnU-Net looks for the kind of the files
    drawn = []
    for before, seed in ((1, 3), (2, 3), (1, 4)):
        random.seed(before)
        np.random.seed(before)
        torch.manual_seed(before)
        trainer = FakeDataset(tmp_path, monkeypatch).trainer(f"nnUNetTrainerAFNBasic_{seed}seed")
        trainer.initialize()
        weight = next(trainer.network.parameters()).sum().item()
        drawn.append((weight, torch.rand(1).item(), np.random.rand(), random.random()))
    first, again, other = drawn
    assert first == again
    assert not set(first) & set(other)


def test_numbers_differ_by_seed_process_loader_and_place(tmp_path, monkeypatch):
    trainer = FakeDataset(tmp_path, monkeypatch).trainer("nnUNetTrainer_1seed")
    drawn = {}
    for trainer.seed in (1, 2):
        for trainer.local_rank in (0, 1):
            for of in ((), (1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)):
                drawn[trainer.seed, trainer.local_rank, of] = tuple(trainer._numbers(2, *of))
    assert len({number for numbers in drawn.values() for number in numbers}) == 2 * 2 * 2 * 5


def test_a_training_that_goes_on_draws_other_patches_than_at_its_beginning(tmp_path, monkeypatch):
    """Of workers nobody knows how far they were; begun as at first, they would give the first epochs' patches again."""
    monkeypatch.setattr(NonDetMultiThreadedAugmenter, "restart", lambda self: None)
    monkeypatch.setattr(
        nnUNetTrainer, "get_dataloaders", lambda self: tuple(NonDetMultiThreadedAugmenter(None, None, 2) for _ in "12")
    )
    trainer = FakeDataset(tmp_path, monkeypatch).trainer("nnUNetTrainer_1seed")
    seeds = []
    for trainer.current_epoch, trainer._resumed in ((0, None), (0, Progress(losses=[0.5])), (3, None)):
        seeds += [seed for loader in trainer.get_dataloaders() for seed in loader.seeds]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 2
