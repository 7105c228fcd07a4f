"""Train on a merged dataset, each case on the structures alone that the dataset which it comes from annotates.

What is not annotated may be there or not. With labels, its probability therefore counts as the background's:
"background, or something that nobody looked for". With regions, its channel says nothing. Loss, deep supervision,
ignore label and validation are the trainer's own: they see logits to which that has been done already, by a hook
outside torch.compile and DDP. A prediction is not concerned.

Sources: Shi et al. 2021, Marginal loss and exclusion loss for partially supervised multi-organ segmentation
(arXiv:2007.03868) for the labels; Ulrich et al. 2023, MultiTalent (arXiv:2303.14444) for the regions.
"""

import contextlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_plugins.datasets.sources import SOURCES, hidden_channels, read_sources, source_of
from nnunet_plugins.errors import InputError

ABSENT = -1e4
"""Logit of what is not annotated: its probability is 0 in single precision, and half precision has the number."""

_PRECISION = 100
"""Cases of one source are drawn equally often but for a part in so many, where the exact numbers would be too large."""


def marginalise(logits: torch.Tensor, hidden: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Return logits of what is annotated.

    Args:
        logits: `(N, C, *size)`, the background first where there are labels.
        hidden: `(N, C)`, whether a channel's structure is not annotated in an image.
        regions: the channels are regions (sigmoid) instead of labels (softmax).

    Returns:
        the same where nothing is hidden; else, in single precision at least, `ABSENT` in the hidden channels, and the
        background with their probability.
    """
    if not hidden.any():
        return logits
    hidden = _over(hidden, logits)
    # Half precision would round the sum of the exponentials.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if regions:
        return logits.masked_fill(hidden, ABSENT)
    shares = torch.cat([hidden.new_ones(hidden[:, :1].shape), hidden[:, 1:]], dim=1)
    background = logits.masked_fill(~shares, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(hidden[:, 1:], ABSENT)], dim=1)


def _over(hidden: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return a mask `(N, C)` on the device, and with the dimensions, of images `(N, C, *size)`."""
    return hidden.to(image.device).reshape(*hidden.shape, *[1] * (image.dim() - 2))


def equal_shares(cases: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Repeat cases so that each source has as many of them, and so that within one all come equally often.

    Args:
        cases: their names.
        sources: of each.
    """
    numbers = Counter(sources)
    length = min(math.lcm(*numbers.values()), _PRECISION * max(numbers.values()))
    of = {name: [case for case, one in zip(cases, sources, strict=True) if one == name] for name in numbers}
    return [str(case) for name in numbers for case in np.resize(np.array(of[name], dtype=object), length)]


class Drawn:
    """A dataset of nnU-Net from which cases are drawn as often as they stand in a list.

    Args:
        dataset: of nnU-Net.
        identifiers: the list.
    """

    def __init__(self, dataset: Any, identifiers: Sequence[str]) -> None:
        self.dataset = dataset
        self.identifiers = np.array(identifiers)  # a list would become one in every batch

    def load_case(self, identifier: str) -> Any:
        """Return a case as nnU-Net's dataset does."""
        return self.dataset.load_case(identifier)


class PartialLabelsTrainer(nnUNetTrainer):
    """nnU-Net's trainer, for which what a case's source does not annotate is unknown; sources are drawn in turn."""

    in_turn: ClassVar[bool] = True
    """Each source is drawn equally often, as in FIRENet's experiment with several datasets; else each case is."""

    dataset_json: dict[str, Any]
    preprocessed_dataset_folder_base: str

    _hidden: torch.Tensor | None = None  # of the images of the running step

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net fixes this signature
    ) -> None:
        try:
            self._sources = read_sources(dataset_json)
        except InputError as error:
            raise InputError(f"nnunet_plugins: {type(self).__name__}: {error}") from None
        super().__init__(plans, configuration, fold, dataset_json, device)
        labels = self.label_manager
        self._hidden_in = {name: hidden_channels(labels, source) for name, source in self._sources.items()}

    def initialize(self) -> None:
        """Set up training as nnU-Net does, with the hook on the network as it is called."""
        super().initialize()
        self.network.register_forward_hook(lambda network, images, output: self._of_annotated(output))

    def _of_annotated(self, output: Any) -> Any:
        if self._hidden is None:
            return output
        if isinstance(output, (list, tuple)):
            return [marginalise(one, self._hidden, regions=self.label_manager.has_regions) for one in output]
        return marginalise(output, self._hidden, regions=self.label_manager.has_regions)

    @contextlib.contextmanager
    def _annotated_alone(self, batch: dict) -> Iterator[dict]:
        """Let the network's output know of nothing but what is annotated, and the targets likewise."""
        self._hidden = torch.tensor([self._hidden_in[source_of(case, self._sources)] for case in batch["keys"]])
        target = batch["target"]
        if self.label_manager.has_regions and self._hidden.any():
            # A region may hold a part of another one, which is not annotated as a whole.
            several = isinstance(target, list)
            parts = [self._annotated_regions(one) for one in (target if several else [target])]
            target = parts if several else parts[0]
        try:
            yield {**batch, "target": target}
        finally:
            self._hidden = None

    def _annotated_regions(self, target: torch.Tensor) -> torch.Tensor:
        assert self._hidden is not None
        regions = self._hidden.shape[1]
        known = target[:, :regions].masked_fill(_over(self._hidden, target), 0)
        return torch.cat([known, target[:, regions:]], dim=1)  # with the ignore label's channel

    def train_step(self, batch: dict) -> dict:
        """Take nnU-Net's step, on what is annotated."""
        with self._annotated_alone(batch) as annotated:
            return super().train_step(annotated)

    def validation_step(self, batch: dict) -> dict:
        """Validate on a batch as nnU-Net does, on what is annotated."""
        with self._annotated_alone(batch) as annotated:
            return super().validation_step(annotated)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate on whole images as nnU-Net does, and say what its mean is not."""
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0 and any(map(any, self._hidden_in.values())):
            folders = f"{self.output_folder}/validation", f"{self.preprocessed_dataset_folder_base}/gt_segmentations"
            self.print_to_log_file(
                "nnunet_plugins: this mean and summary.json count what was found of structures that a case's dataset "
                "does not annotate as a Dice of 0. nnunet-plugins evaluate leaves them out: nnunet-plugins evaluate "
                f"{shlex.join(folders)} -o metrics.csv --chill --by-source",
                also_print_to_console=True,
            )

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return the cases to train on and to validate on, drawn as `in_turn` says.

        Raises:
            InputError: if a case is of no source, or has labels that its source does not annotate.
        """
        training, validation = super().get_tr_and_val_datasets()
        return self._drawn(training), self._drawn(validation)

    def _drawn(self, dataset: Any) -> Any:
        file = Path(self.preprocessed_dataset_folder_base, "dataset.json")
        cases = list(dataset.identifiers)
        sources = [source_of(case, self._sources, file) for case in cases]
        if not self.label_manager.has_regions:  # of which a hidden one may hold one that is not
            self._require_annotated(dataset, cases, sources)
        return Drawn(dataset, equal_shares(cases, sources)) if self.in_turn else dataset

    def _require_annotated(self, dataset: Any, cases: Sequence[str], sources: Sequence[str]) -> None:
        for case, source in zip(cases, sources, strict=True):
            places = dataset.load_case(case)[3]["class_locations"]
            hidden = [label for label, is_so in enumerate(self._hidden_in[source]) if is_so]
            if found := [label for label in hidden if len(places.get(label, ()))]:
                raise InputError(
                    f"nnunet_plugins: {case} has voxels of label {found[0]}, which {source!r} does not annotate, as "
                    f"{SOURCES!r} in dataset.json says; make the dataset anew with nnunet-plugins merge"
                )


class PartialLabelsByCasesTrainer(PartialLabelsTrainer):
    """The same with each case drawn equally often, so that a large source comes oftener than a small one."""

    in_turn: ClassVar[bool] = False
