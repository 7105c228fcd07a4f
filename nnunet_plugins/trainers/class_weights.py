"""Cross-entropy with a weight for each class: counted in the training cases, or given by a variant of one's own."""

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from torch import distributed, nn
from torch.nn import functional

from nnunet_plugins.datasets.preprocessed import truth_files
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.images.facts import summarise
from nnunet_plugins.images.reading import read_label_map
from nnunet_plugins.trainers.fold_folder import CLASS_WEIGHTS
from nnunet_plugins.trainers.losses import NO_LABEL, as_labels, for_all_outputs, read_weights
from nnunet_plugins.trainers.reliable import ReliableTrainer
from nnunet_plugins.workers import FailedJobError, finish_jobs

MOST = 100.0
"""No class weighs more: a handful of voxels would drown the others."""

_FEW = 300  # cases, which are counted before other processes have started, or within minutes if they are large

_KEPT = {"labels": [int], "voxels": [int], "weights": [(int, float)]}


class WeightedCELoss(nn.Module):
    """Mean cross-entropy of the voxels that count, each with the weight of its true class.

    Args:
        weights: of the classes, background first.
        rule: what they follow, for descriptions, which else have the numbers.
        ignore_label: label without loss.
    """

    def __init__(self, weights: Sequence[float], *, rule: str | None = None, ignore_label: int | None = None) -> None:
        super().__init__()
        self.class_weights, self.ignore_label = rule or list(weights), ignore_label
        self.register_buffer("numbers", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce logits `(N, C, *size)` and target `(N, 1, *size)` to a scalar."""
        logits, labels = as_labels(logits, target, self.ignore_label)
        numbers = self.get_buffer("numbers").to(logits.dtype)
        losses = functional.cross_entropy(logits, labels, numbers, ignore_index=NO_LABEL, reduction="sum")
        whole = (numbers[labels.clamp(min=0)] * (labels != NO_LABEL)).sum()
        # A patch may consist of voxels without weight; its loss is 0, not nan.
        return losses / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def balance(cases: Sequence[Sequence[int]]) -> list[float]:
    """Return the weights of classes by median frequency balancing, `MOST` at most; 0 of a class that is absent.

    A class's frequency is that among the voxels of the cases where it is present. Its weight is the median of all
    frequencies, divided by its own.

    Source: Eigen and Fergus 2015, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale
    Convolutional Architecture" (arXiv:1411.4734).

    Args:
        cases: of each, the voxels of each class.
    """
    frequencies = []
    for voxels in zip(*cases, strict=True):
        whole = sum(sum(case) for case, own in zip(cases, voxels, strict=True) if own)
        frequencies.append(sum(voxels) / whole if whole else 0.0)
    present = [frequency for frequency in frequencies if frequency]
    median = statistics.median(present) if present else 0.0
    return [min(MOST, median / frequency) if frequency else 0.0 for frequency in frequencies]


def count_voxels(file: Path, reader: type[BaseReaderWriter], labels: Sequence[int]) -> list[int]:
    """Return how many voxels of a segmentation have each of the labels.

    Raises:
        InputError: if it cannot be read.
    """
    found = read_label_map(file, reader())
    if found.array is None:
        raise InputError("; ".join(summarise(found.facts)))
    numbers = pd.Series(found.array.reshape(-1)).value_counts()
    return [int(numbers.get(label, 0)) for label in labels]


class WeightedCELossTrainer(ReliableTrainer):
    """nnU-Net's trainer with the weighted cross-entropy.

    The weights that are counted lie in the fold's folder, beside the checkpoints, and `--c` goes on with them.
    """

    class_weights: ClassVar[Sequence[float] | None] = None
    """Of the classes, background first; None to count them."""

    _counted: Mapping[str, Any] | None = None  # what is kept

    def _build_loss(self) -> nn.Module:
        rule = None
        if self.class_weights is not None:
            weights = read_weights(self, "class_weights")
        else:
            self._counted = self._counted or self._find_weights()
            weights, rule = self._counted["weights"], f"median frequency balancing, {MOST:g} at most"
        loss = WeightedCELoss(weights, rule=rule, ignore_label=self.label_manager.ignore_label)
        return for_all_outputs(self, loss)

    def _find_weights(self) -> Mapping[str, Any]:
        # Of several processes one reads.
        found = [self._read_or_count() if self.local_rank == 0 else {}]
        if self.is_ddp:
            distributed.broadcast_object_list(found)
        (weights,) = found
        names = {value: name for name, value in self.dataset_json["labels"].items() if isinstance(value, int)}
        told = [
            f"{names.get(label, label)} {weight:.4g}"
            for label, weight in zip(weights["labels"], weights["weights"], strict=True)
        ]
        self.print_to_log_file(f"Class weights of the cross-entropy: {', '.join(told)}")
        for label, voxels in zip(weights["labels"], weights["voxels"], strict=True):
            if not voxels:
                self.print_to_log_file(
                    f"WARNING: nnunet_plugins: no training case has a voxel of {names.get(label, label)} (label "
                    f"{label}); its weight is 0"
                )
        return weights

    def _read_or_count(self) -> Mapping[str, Any]:
        labels = [int(label) for label in self.label_manager.all_labels]
        file = Path(self.output_folder, CLASS_WEIGHTS)
        if self._loaded and file.exists():
            kept: dict[str, Any] = read_json(file, _KEPT)
            if kept["labels"] == labels and {len(part) for part in kept.values()} == {len(labels)}:
                return kept
            raise InputError(
                f"nnunet_plugins: {file} holds weights of the labels {kept['labels']}, and the dataset has {labels}; "
                "move it away to count them anew"
            )
        if self._loaded:
            self.print_to_log_file(f"WARNING: nnunet_plugins: {file} is missing, and the voxels are counted anew")
        cases, _ = self.do_split()
        counts = self._count_voxels(cases, labels)
        if not any(map(any, counts)):
            raise InputError("nnunet_plugins: no training case has a voxel with a label; there is nothing to train on")
        return {
            "labels": labels,
            "voxels": [sum(voxels) for voxels in zip(*counts, strict=True)],
            "weights": balance(counts),
        }

    def _count_voxels(self, cases: Sequence[str], labels: Sequence[int]) -> list[list[int]]:
        folder = Path(self.preprocessed_dataset_folder_base)
        truths = truth_files(folder)
        if missing := [case for case in cases if case not in truths]:
            raise InputError(
                f"nnunet_plugins: {folder / 'gt_segmentations'} has no segmentation of {missing[0]}; preprocess the "
                "dataset again"
            )
        reader = self.plans_manager.image_reader_writer_class
        jobs = {case: partial(count_voxels, truths[case], reader, labels) for case in cases}
        counts = []
        for case, found in finish_jobs(jobs, default_num_processes if len(jobs) > _FEW else 1):
            if isinstance(found, FailedJobError):
                raise InputError(f"nnunet_plugins: the voxels of {case} could not be counted: {found}")
            counts.append(found)
        return counts

    def _take_folder(self) -> None:
        super()._take_folder()
        if self._counted is not None and self.local_rank == 0:
            write_text(Path(self.output_folder, CLASS_WEIGHTS), json.dumps(self._counted, indent=1))
