"""Training loss over the first steps, several trainers on the very same batches: does a network learn more slowly?

    python benchmarks/first_steps.py -d 4 -tr nnUNetTrainer nnUNetTrainerAutofocusUNet --steps 200 --seeds 0 1

Two short trainings of one network differ by so much that a single pair says little about two networks. Here nnU-Net
draws and augments the batches once; every trainer then takes its own training steps (network, loss, optimizer,
gradient clipping) on them, at its initial learning rate, from weights drawn with the same seed. Any trainer that
nnU-Net finds can take part. The loss is the trainer's own: compare trainers with the same one, and note that deep
supervision is part of it. The dataset has to be preprocessed.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tqdm import tqdm

from nnunet_plugins.datasets.folders import preprocessed_folder
from nnunet_plugins.rows import STOCK_TRAINER


def make(name: str, folder: Path, arguments: argparse.Namespace) -> Any:
    plans = {**load_json(str(folder / f"{arguments.plans}.json")), "continue_training": False}
    description = load_json(str(folder / "dataset.json"))
    trainer = recursive_find_trainer_class_by_name(name)
    return trainer(plans, arguments.configuration, 0, description, torch.device(arguments.device))


def draw_batches(trainer: Any, number: int) -> list[dict[str, Any]]:
    np.random.seed(0)
    torch.manual_seed(0)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    return [next(loader) for _ in tqdm(range(number), desc="drawing batches", disable=None)]


def train(trainer: Any, batches: Sequence[dict[str, Any]], seed: int) -> list[float]:
    torch.manual_seed(seed)
    trainer.initialize()
    trainer.network.train()
    losses = []
    for batch in batches:
        target = batch["target"]
        if isinstance(target, list) and not trainer.enable_deep_supervision:
            target = target[0]
        losses.append(float(trainer.train_step({**batch, "target": target})["loss"]))
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", required=True, metavar="DATASET")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-tr", dest="trainers", nargs="+", required=True, metavar="TRAINER")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps per column: the mean of their losses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--verbose", action="store_true", help="show what nnU-Net prints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    folder = preprocessed_folder(arguments.dataset)
    table = sys.stdout
    with (
        tempfile.TemporaryDirectory() as results,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(table if arguments.verbose else nowhere),
    ):
        # Trainers make their folders at once, which the user's results should not see. One process draws the batches:
        # several would mix their order.
        os.environ.update(nnUNet_results=results, nnUNet_n_proc_DA="0")
        # The stock trainer's batches have targets at every scale; networks with one output take the first.
        batches = draw_batches(make(STOCK_TRAINER, folder, arguments), arguments.steps)
        starts = range(0, arguments.steps, arguments.every)
        columns = "".join(f"{start + 1:>8}" for start in starts)
        print(f"mean training loss of {arguments.every} steps from\n{'trainer':<48}{'seed':>5}{columns}", file=table)
        for seed in arguments.seeds:
            for name in arguments.trainers:
                losses = train(make(name, folder, arguments), batches, seed)
                parts = [losses[start : start + arguments.every] for start in starts]
                means = "".join(f"{sum(part) / len(part):>8.3f}" for part in parts)
                print(f"{name:<48}{seed:>5}{means}", file=table, flush=True)


if __name__ == "__main__":
    main()
