"""Checks of a training on a merged dataset: what its cases' sources annotate, and whether the trainer asks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_plugins.datasets.preprocessed import existing_cases
from nnunet_plugins.datasets.sources import NEITHER, SOURCES, read_sources, source_of
from nnunet_plugins.doctor.findings import Finding, ok, problem, warning
from nnunet_plugins.errors import InputError
from nnunet_plugins.trainers.partial import PartialLabelsTrainer


def check_sources(trainer: type[nnUNetTrainer], description: dict[str, Any], folder: Path) -> Iterator[Finding]:
    """Check that a trainer and a dataset agree about labels that are annotated in a part of the cases.

    Args:
        trainer: any that nnU-Net finds.
        description: what the dataset.json says.
        folder: of the dataset, in nnUNet_preprocessed.
    """
    asks = issubclass(trainer, PartialLabelsTrainer)
    if not asks and SOURCES not in description:
        return
    file = folder / "dataset.json"
    try:
        sources = read_sources(description, file)
        for case in existing_cases(folder):
            source_of(case, sources, file)
    except InputError as error:
        yield problem(str(error), "or use the trainer without the modifier, if all cases annotate all labels")
        return
    structures = set(description["labels"]) - set(NEITHER)
    partial = {name for name, source in sources.items() if structures - set(source.labels)}
    if partial and not asks:
        yield warning(
            f"{', '.join(sorted(partial))}: not all labels are annotated there, and {trainer.__name__} takes the "
            "others for background in these images",
            f"use {trainer.__name__}_PartialLabels",
        )
    else:
        yield ok(f"merged of {', '.join(sources)}")
