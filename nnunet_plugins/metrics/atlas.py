"""`nnunet-plugins evaluate --atlas`: how far the place of a voxel alone goes, without an image and without a network.

The atlas is the voxelwise majority of the training labels of a fold, each case in the middle of the patch, as nnU-Net's
predictor puts it there. It "predicts" the fold's validation cases, through nnU-Net's own export, and nnU-Net's own
metrics are written beside them. A network that does not clear it may have learnt positions only.
"""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_plugins.datasets.folders import preprocessed_folder, require_own_folder, require_own_labels
from nnunet_plugins.datasets.plan_names import covering_command, preprocessing_command
from nnunet_plugins.datasets.preprocessed import (
    data_folder,
    existing_cases,
    larger_cases,
    missing_cases,
    preprocessed_shapes,
)
from nnunet_plugins.datasets.sources import SOURCES, hidden_channels, read_sources, source_of
from nnunet_plugins.datasets.split_commands import folds_of_cases, split_command
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.forecast import format_size
from nnunet_plugins.images.writing import written_whole
from nnunet_plugins.planning.setting import Setting, plan_setting
from nnunet_plugins.planning.splits import Split, read_splits
from nnunet_plugins.workers import FailedJobError, finish_jobs


class AtlasError(InputError):
    """There can be no atlas of these cases."""


@dataclass(frozen=True)
class Atlas:
    """What the training cases of a fold have in every voxel of the patch.

    Attributes:
        shares: `(labels or regions, z, y, x)`, the part of the cases that have it there; of the cases that count there,
            where some have an ignore label, or are of a merged dataset and not annotated in full.
        cases: how many.
    """

    shares: NDArray[np.float32]
    cases: int

    def logits(self, shape: Sequence[int], labels: LabelManager) -> NDArray[np.float32]:
        """Return what stands for the logits of a case of this shape, in the middle of the patch.

        nnU-Net takes the largest one of the labels, and of the regions those above 0: the majority, both times.
        """
        _, middle = pad_nd_image(np.empty(shape, np.bool_), self.shares.shape[1:], return_slicer=True)
        place = (slice(None), *middle)
        return self.shares[place] - np.float32(0.5 if labels.has_regions else 0)


def build_atlas(
    dataset: nnUNetBaseDataset,
    cases: Sequence[str],
    patch: Sequence[int],
    labels: LabelManager,
    hidden: Mapping[str, Sequence[bool]] | None = None,
) -> Atlas:
    """Count the labels of cases, each in the middle of the patch.

    Args:
        dataset: nnU-Net's preprocessed one.
        cases: of it, which the patch holds.
        patch: voxels `(z, y, x)`.
        labels: nnU-Net's manager of them.
        hidden: of a merged dataset, by case, of each label or region whether nobody annotated it there: then the case
            has no vote on it, and background is what the others leave.
    """
    found = labels.foreground_regions if labels.has_regions else labels.all_labels
    hidden = hidden or {}
    partial = any(any(hidden.get(case, ())) for case in cases)
    counts = np.zeros((len(found), *patch), np.uint16)
    known = np.zeros((len(found) if partial else 1, *patch), np.uint16)
    for case in cases:
        # Outside the image, and in the black around it (-1), there is background.
        segmentation = pad_nd_image(np.maximum(dataset.load_case(case)[1][0], 0), patch)
        votes = segmentation != labels.ignore_label if labels.has_ignore_label else np.uint16(1)
        asked = [not one for one in hidden.get(case, [False] * len(found))]
        for number in np.flatnonzero(asked) if partial else [0]:
            known[number] += votes
        for count, label in compress(zip(counts, found, strict=True), asked):
            count += np.isin(segmentation, label)
    shares = counts / np.maximum(known, 1)
    if partial and not labels.has_regions:
        shares[0] = 1 - shares[1:].sum(axis=0)
    return Atlas(np.asarray(shares, np.float32), len(cases))


def evaluate_atlas(
    dataset: str,
    output: Path,
    *,
    configuration: str = "3d_fullres",
    plans: str = "nnUNetPlans",
    folds: Sequence[int] = (0,),
    processes: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predict the validation cases of folds with the atlases of their training cases, and evaluate that.

    Args:
        dataset: number or name.
        output: folder for the segmentations, `summary.json`, and what nnU-Net puts beside predictions.
        configuration: nnU-Net's; its patch holds every case.
        plans: their name.
        folds: numbers.
        processes: cases at a time; if None, as nnU-Net's default, but no more than there are cores.
        overwrite: replace what is in `output` of another atlas.

    Returns:
        nnU-Net's summary: `foreground_mean`, `mean` by label, `metric_per_case`; of a merged dataset, each case only
        with the labels that its source annotates, as the file does not have it.

    Raises:
        InputError: if something is missing or unknown, or a case is larger than the patch.
    """
    if output.exists() and not overwrite:
        raise AtlasError(f"{output} exists already; choose another folder, or give --overwrite")
    require_own_folder(output, overwrite=overwrite)
    folder = preprocessed_folder(dataset)
    setting = plan_setting(dataset, configuration, plans)
    splits = _read_splits(folder, folds)
    data = data_folder(folder, plans, configuration)
    named = sorted({case for split in splits for part in split.values() for case in part})
    patch = require_room(dataset, plans, configuration, named)
    description = read_json(folder / "dataset.json")
    labels = setting.plans.get_label_manager(description)
    hidden = _hidden(description, folder / "dataset.json", labels, named)
    written = ["summary.json", *(f"{case}{description['file_ending']}" for case in existing_cases(folder))]
    require_own_labels(output, written, description)
    output.mkdir(parents=True, exist_ok=True)
    for name in written:  # of an atlas of other folds; whatever else is there stays
        (output / name).unlink(missing_ok=True)
    shutil.copy(folder / "dataset.json", output)
    shutil.copy(folder / f"{plans}.json", output / "plans.json")
    processes = processes or min(default_num_processes, os.cpu_count() or 1)
    preprocessed = infer_dataset_class(str(data))(str(data), named)
    for split in splits:
        atlas = build_atlas(preprocessed, split["train"], patch, labels, hidden)
        _predict(atlas, preprocessed, split["val"], setting, description, output, processes)
    summary: dict[str, Any] = compute_metrics_on_folder(
        str(folder / "gt_segmentations"),
        str(output),
        str(output / "summary.json"),
        setting.plans.image_reader_writer_class(),
        description["file_ending"],
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        labels.ignore_label,
        processes,
    )
    if not any(map(any, hidden.values())):
        return summary
    found = labels.foreground_regions if labels.has_regions else labels.all_labels
    asked = {case: list(compress(found, (not one for one in marks))) for case, marks in hidden.items()}
    return _annotated(summary, asked, description["file_ending"])


def _hidden(
    description: dict[str, Any], file: Path, labels: LabelManager, cases: Sequence[str]
) -> dict[str, list[bool]]:
    """Return, by case of a merged dataset, of each label or region whether nobody annotated it there."""
    if SOURCES not in description:
        return {}
    sources = read_sources(description, file)
    channels = {name: hidden_channels(labels, source) for name, source in sources.items()}
    return {case: channels[source_of(case, sources, file)] for case in cases}


def _annotated(summary: dict[str, Any], asked: Mapping[str, Collection[Any]], ending: str) -> dict[str, Any]:
    """Return a summary without what it says of labels that nobody annotated, where all that is found is a Dice of 0."""
    cases = []
    for case in summary["metric_per_case"]:
        own = asked[Path(case["reference_file"]).name.removesuffix(ending)]
        cases.append({**case, "metrics": {label: one for label, one in case["metrics"].items() if label in own}})
    means = {}
    for label in summary["mean"]:
        if values := [case["metrics"][label] for case in cases if label in case["metrics"]]:
            means[label] = {key: float(np.nanmean([one[key] for one in values])) for key in values[0]}
    foreground = {"Dice": float(np.mean([mean["Dice"] for mean in means.values()]))}
    return {"metric_per_case": cases, "mean": means, "foreground_mean": foreground}


def _read_splits(folder: Path, folds: Sequence[int]) -> list[Split]:
    file = folder / "splits_final.json"
    if not file.is_file():
        raise AtlasError(
            f"{file} is missing; nnU-Net makes it when a training begins, as does "
            f"{split_command(folder.name, folds_of_cases(folder))}"
        )
    splits = read_splits(file)
    if unknown := [fold for fold in folds if fold >= len(splits)]:
        raise AtlasError(f"fold {unknown[0]} does not exist: {file} has {len(splits)}")
    chosen = [splits[fold] for fold in dict.fromkeys(folds)]
    if empty := [part for split in chosen for part, cases in split.items() if not cases]:
        raise AtlasError(f"{file} has a fold without a case in {empty[0]!r}")
    return chosen


def require_room(dataset: str, plans: str, configuration: str, cases: Sequence[str]) -> tuple[int, ...]:
    """Check that a configuration's patch holds cases, as they are preprocessed; returns it, with one slice in 2D.

    Args:
        dataset: number or name.
        plans: their name.
        configuration: nnU-Net's.
        cases: names.

    Raises:
        AtlasError: if a case is not there, or is larger, with the command that mends it.
    """
    folder, patch = preprocessed_folder(dataset), plan_setting(dataset, configuration, plans).configuration.patch_size
    known = set(existing_cases(folder))
    if gone := [case for case in cases if case not in known]:
        raise AtlasError(f"{folder / 'splits_final.json'} names {gone[0]}, which the dataset does not have")
    if absent := set(missing_cases(folder, plans, configuration)) & set(cases):
        command = preprocessing_command(folder.name, plans, [configuration])
        raise AtlasError(f"{len(absent)} cases are not preprocessed, first of all {min(absent)}; do that: {command}")
    larger = larger_cases(preprocessed_shapes(data_folder(folder, plans, configuration), cases), patch)
    for case, size in larger.items():
        remedy = f"make plans that cover them: {covering_command(dataset, plans)}"
        if len(patch) == 2:
            remedy = "in 2D there is an atlas only where every case has one slice; use a 3D configuration"
        raise AtlasError(
            f"{len(larger)} of {len(cases)} cases are larger than the patch {format_size(patch)} of {configuration} in "
            f"{plans}, first of all {case} with {size}; {remedy}"
        )
    return (*(1,) * (3 - len(patch)), *patch)


def _predict(
    atlas: Atlas,
    dataset: nnUNetBaseDataset,
    cases: Sequence[str],
    setting: Setting,
    description: dict[str, Any],
    output: Path,
    processes: int,
) -> None:
    """Write the segmentations of cases as nnU-Net writes those of its validation."""
    export = partial(_export, atlas, dataset, setting, description, output)
    jobs = {case: partial(export, case) for case in cases}
    for case, result in tqdm(finish_jobs(jobs, processes), total=len(jobs), unit="case", disable=None):
        if isinstance(result, FailedJobError):
            raise AtlasError(f"{case} cannot be written: {result}")


def _export(
    atlas: Atlas, dataset: nnUNetBaseDataset, setting: Setting, description: dict[str, Any], output: Path, case: str
) -> None:
    _, segmentation, _, properties = dataset.load_case(case)
    labels = setting.plans.get_label_manager(description)
    with written_whole(output / f"{case}{description['file_ending']}"):
        export_prediction_from_logits(
            atlas.logits(segmentation.shape[1:], labels),
            properties,
            setting.configuration,
            setting.plans,
            description,
            str(output / case),
            num_threads_torch=1,
        )
