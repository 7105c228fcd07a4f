"""`nnunet-plugins evaluate`: the metrics of a folder of segmentations, one row per case and label, in parallel."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from tqdm import tqdm

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import decompress, read_json
from nnunet_plugins.metrics.masks import MISSING, compare_masks
from nnunet_plugins.metrics.table import write_table
from nnunet_plugins.planning.dataset import DATASET, find_reader, label_manager
from nnunet_plugins.workers import FailedJobError, finish_jobs

Label = int | tuple[int, ...]
Rows = list[dict[str, Any]]


class EvaluationError(InputError):
    """Segmentations cannot be compared."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_folders` finds.

    Attributes:
        table: one row per case and label, columns as in the docs.
        failures: by case, why it could not be evaluated.
    """

    table: pd.DataFrame
    failures: dict[str, str]


def find_dataset_json(prediction: Path, truth: Path) -> Path:
    """Return the `dataset.json` that belongs to a prediction.

    nnU-Net writes one into every folder of predictions and into every model's folder, two above its validations; raw
    datasets have one beside `labelsTr`.

    Raises:
        EvaluationError: if there is none.
    """
    folders = [prediction, *prediction.resolve().parents[:2], truth.resolve().parent]
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    looked = ", ".join(map(str, folders))
    raise EvaluationError(f"no dataset.json, which names the labels, in any of {looked}; give one with -djfile")


def _cases(prediction: Path, truth: Path, ending: str, chill: bool) -> list[str]:
    """Return the names of the cases to evaluate, checked on both sides."""
    names = []
    for folder in (prediction, truth):
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is no folder")
        names.append({path.name.removesuffix(ending) for path in folder.glob(f"*{ending}")})
        if not names[-1]:
            raise EvaluationError(f"{folder} holds no segmentation *{ending}")
    predicted, known = names
    if unknown := sorted(predicted - known):
        raise EvaluationError(f"{truth} has no truth for {_some(unknown)} of {prediction}")
    if (missing := sorted(known - predicted)) and not chill:
        raise EvaluationError(
            f"{prediction} lacks {_some(missing)} of {truth}; --chill evaluates the cases that are there"
        )
    return sorted(predicted)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def evaluate_case(
    prediction_file: Path,
    truth_file: Path,
    *,
    reader: BaseReaderWriter,
    labels: Sequence[Label],
    names: Sequence[str],
    ignore_label: int | None,
    tolerance: float,
) -> Rows:
    """Compare one segmentation with its truth; returns a row per label or region.

    Raises:
        ValueError: if a file is cut off, or the files differ in shape or spacing.
    """
    for file in (prediction_file, truth_file):
        decompress(file)  # which finds what the reader overlooks
    (prediction, of_prediction), (truth, of_truth) = (reader.read_seg(str(f)) for f in (prediction_file, truth_file))
    prediction, truth = prediction[0], truth[0]
    spacing, other = ([float(s) for s in properties["spacing"]] for properties in (of_truth, of_prediction))
    if prediction.shape != truth.shape:
        raise ValueError(f"{prediction_file} has {prediction.shape} voxels, {truth_file} {truth.shape}")
    if not np.allclose(spacing, other, rtol=1e-3):
        raise ValueError(f"{prediction_file} has the spacing {other}, {truth_file} {spacing}")
    counts = None if ignore_label is None else truth != ignore_label
    diagonal = float(np.linalg.norm([n * s for n, s in zip(truth.shape, spacing, strict=True) if n > 1]))
    rows = []
    for label, name in zip(labels, names, strict=True):
        masks = np.isin(prediction, label), np.isin(truth, label)
        found = compare_masks(*masks, spacing, tolerance=tolerance, counts=counts)
        rows.append(
            {
                "label": str(label),
                "name": name,
                "Dice": found.dice,
                "ASSD_mm": found.assd,
                "HD95_mm": found.hd95,
                "NSD": found.nsd,
                "volume_error_ml": found.volume_prediction - found.volume_truth,
                "volume_truth_ml": found.volume_truth,
                "tolerance_mm": tolerance,
                "diagonal_mm": diagonal,
            }
        )
    return rows


def evaluate_folders(
    prediction: Path,
    truth: Path,
    output: Path,
    *,
    dataset_json: Path | None = None,
    tolerance: float = 1.0,
    processes: int | None = None,
    chill: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Compare every segmentation in a folder with its truth and write the table; a bar shows the progress.

    Cases that cannot be compared are left out of the table and returned with the reason.

    Args:
        prediction: folder of predicted segmentations.
        truth: folder of true ones, under the same file names.
        output: CSV file to write.
        dataset_json: names labels or regions, ignore label and file ending; found beside the predictions if None.
        tolerance: of the surface Dice, in mm.
        processes: cases at a time; if None, as nnU-Net's default, but no more than there are cores.
        chill: leave out cases without a prediction, as nnU-Net's evaluation does with `--chill`.
        overwrite: replace `output`.

    Raises:
        InputError: if folders, files, labels or MONAI are missing, `output` exists, or no case can be compared.
    """
    if output.exists() and not overwrite:
        raise EvaluationError(f"{output} exists already; choose another file, or give --overwrite")
    if not output.absolute().parent.is_dir():
        raise EvaluationError(f"{output} cannot be written: {output.absolute().parent} is no folder")
    if find_spec("monai") is None:
        raise EvaluationError(MISSING)
    file = dataset_json or find_dataset_json(prediction, truth)
    description = read_json(file, DATASET)
    manager, ending, values = label_manager(description, file), description["file_ending"], description["labels"]
    labels = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    known = {tuple(value) if isinstance(value, list) else value: name for name, value in values.items()}
    cases = _cases(prediction, truth, ending, chill)
    example = str(truth / f"{cases[0]}{ending}")
    evaluate = partial(
        evaluate_case,
        reader=find_reader(description, example)(),
        labels=labels,
        names=[known.get(label, "") for label in labels],
        ignore_label=manager.ignore_label,
        tolerance=tolerance,
    )
    jobs = {case: partial(evaluate, prediction / f"{case}{ending}", truth / f"{case}{ending}") for case in cases}
    found = dict(
        tqdm(
            finish_jobs(jobs, processes or min(default_num_processes, os.cpu_count() or 1)),
            total=len(jobs),
            unit="case",
            disable=None,
        )
    )
    rows, failures = [], {}
    for case in cases:
        result = found[case]
        if isinstance(result, FailedJobError):
            failures[case] = str(result)
        else:
            rows += [{"case": case, **row} for row in result]
    if not rows:
        raise EvaluationError(f"no case could be compared; {cases[0]}: {failures[cases[0]]}")
    table = pd.DataFrame(rows)
    write_table(output, table)
    return Evaluation(table, failures)
