"""`nnunet-plugins evaluate`: the metrics of a folder of segmentations, one row per case and label, in parallel."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from nnunet_plugins.metrics.masks import MISSING, compare_masks
from nnunet_plugins.metrics.table import write_table

Label = int | tuple[int, ...]
Rows = list[dict[str, Any]]


class EvaluationError(Exception):
    """Something the user has to know or to change; the message says what, without a traceback."""


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
        ValueError: if the files differ in shape or spacing.
    """
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


def _try(job: Callable[[], Rows]) -> Rows | str:
    """Return the rows of a case, or why there are none."""
    try:
        return job()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _finish(jobs: Mapping[str, Callable[[], Rows]], processes: int) -> Iterator[tuple[str, Rows | str]]:
    """Yield every case with its result, as they are finished."""
    processes = min(processes, len(jobs))
    if processes == 1:
        yield from ((case, _try(job)) for case, job in jobs.items())
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(_try, job): case for case, job in jobs.items()}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                yield futures[future], "a process was killed, perhaps for lack of memory; use fewer with -np"


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
        EvaluationError: if folders, files or labels are missing, `output` exists, or no case can be compared.
        ModuleNotFoundError: if MONAI is not installed.
    """
    if output.exists() and not overwrite:
        raise EvaluationError(f"{output} exists already; choose another file, or give --overwrite")
    if not output.absolute().parent.is_dir():
        raise EvaluationError(f"{output} cannot be written: {output.absolute().parent} is no folder")
    if find_spec("monai") is None:
        raise ModuleNotFoundError(MISSING)
    file = dataset_json or find_dataset_json(prediction, truth)
    try:
        description = load_json(str(file))
        ending, values = description["file_ending"], description["labels"]
        manager = LabelManager(values, description.get("regions_class_order"))
    except (ValueError, KeyError, AssertionError) as error:
        raise EvaluationError(f"{file} is not a dataset.json as nnU-Net wants it: {error!r}") from error
    labels = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    known = {tuple(value) if isinstance(value, list) else value: name for name, value in values.items()}
    cases = _cases(prediction, truth, ending, chill)
    example = str(truth / f"{cases[0]}{ending}")
    evaluate = partial(
        evaluate_case,
        reader=determine_reader_writer_from_dataset_json(description, example, verbose=False)(),
        labels=labels,
        names=[known.get(label, "") for label in labels],
        ignore_label=manager.ignore_label,
        tolerance=tolerance,
    )
    jobs = {case: partial(evaluate, prediction / f"{case}{ending}", truth / f"{case}{ending}") for case in cases}
    found = dict(
        tqdm(
            _finish(jobs, processes or min(default_num_processes, os.cpu_count() or 1)),
            total=len(jobs),
            unit="case",
            disable=None,
        )
    )
    rows = [{"case": case, **row} for case in cases if not isinstance(found[case], str) for row in found[case]]
    failures = {case: str(found[case]) for case in cases if isinstance(found[case], str)}
    if not rows:
        raise EvaluationError(f"no case could be compared; {cases[0]}: {failures[cases[0]]}")
    table = pd.DataFrame(rows)
    write_table(output, table)
    return Evaluation(table, failures)
