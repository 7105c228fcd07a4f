"""`nnunet-plugins evaluate`: the metrics of a folder of segmentations, one row per case and label, in parallel."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_plugins.datasets.folders import DATASET, label_manager
from nnunet_plugins.datasets.sources import SOURCES, read_sources, source_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.images.facts import Fact, problems, remarks, summarise
from nnunet_plugins.images.finding import find_files, none_fits
from nnunet_plugins.images.reading import Reading, choose_reader, compare, read_label_map
from nnunet_plugins.images.values import check_values, declared_labels, distinct
from nnunet_plugins.metrics.masks import MISSING, compare_masks
from nnunet_plugins.metrics.objects import compare_objects, whole_counts
from nnunet_plugins.metrics.table import write_table
from nnunet_plugins.planning.objects import object_labels
from nnunet_plugins.workers import FailedJobError, finish_jobs

_SHOWN = 3  # cases that a message names

WORK_OF_A_PROCESS = 300_000
"""Bytes of true segmentations that are evaluated in about the ten seconds in which a process loads its libraries."""
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
        facts: that are told, and cost nothing.
    """

    table: pd.DataFrame
    failures: dict[str, str]
    facts: list[Fact]


def find_dataset_json(prediction: Path, truth: Path) -> Path:
    """Return the `dataset.json` that belongs to a prediction.

    nnU-Net writes one into every folder of predictions and into every model's folder, two above its validations; raw
    datasets have one beside `labelsTr`. Where a folder is a link, both what it is in and what it leads to count.

    Raises:
        EvaluationError: if there is none.
    """
    places = [*prediction.absolute().parents[:2], *prediction.resolve().parents[:2]]
    folders = list(dict.fromkeys([prediction, *places, truth.absolute().parent, truth.resolve().parent]))
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    looked = ", ".join(map(str, folders))
    raise EvaluationError(f"no dataset.json, which names the labels, in any of {looked}; give one with -djfile")


@dataclass
class _Pairs:
    """Files to compare, and what is said of the others.

    Attributes:
        files: by case, the prediction and the truth.
        failures: by case, why there is no pair of it.
        facts: that are told, and cost nothing.
    """

    files: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)


def _pair(prediction: Path, truth: Path, ending: str, chill: bool) -> _Pairs:
    """Return the cases to evaluate, checked on both sides."""
    pairs = _Pairs()
    sides = []
    for folder in (prediction, truth):
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is no folder")
        found = find_files(folder, ending)
        if not found.files:
            lines = [fact.with_remedy() for fact in problems(found.facts, "evaluate")]
            raise EvaluationError("; ".join([none_fits(folder, ending, found.facts).with_remedy(), *lines[:_SHOWN]]))
        pairs.facts += remarks(found.facts, "evaluate")
        sides.append(found)
    predicted, known = (found.files for found in sides)
    odd, odd_truth = ({fact.case: fact for fact in problems(found.facts, "evaluate")} for found in sides)
    if unknown := sorted(set(predicted) - set(known) - set(odd_truth)):
        raise EvaluationError(f"{truth} has no truth for {_some(unknown)} of {prediction}")
    if (missing := sorted(set(known) - set(predicted) - set(odd))) and not chill:
        raise EvaluationError(
            f"{prediction} lacks {_some(missing)} of {truth}; --chill evaluates the cases that are there"
        )
    wanted = {case: fact for case, fact in odd_truth.items() if case in predicted or not chill}
    pairs.failures = {case: fact.with_remedy() for case, fact in {**wanted, **odd}.items()}
    for case in sorted(set(predicted) & set(known)):
        ours, theirs = pairs.files[case] = (predicted[case], known[case])
        if ours.name != theirs.name:
            pairs.facts.append(Fact("other letters", str(ours), case=case))
    return pairs


def _sources(description: Mapping[str, Any], file: Path, pairs: _Pairs) -> dict[str, tuple[str, Collection[str]]]:
    """Return, of a merged dataset, each case's source and the labels that it annotates; of another one, nothing.

    Cases of no source become failures.
    """
    found: dict[str, tuple[str, Collection[str]]] = {}
    if SOURCES not in description:
        return found
    sources = read_sources(description, file)
    for case in list(pairs.files):
        try:
            name = source_of(case, sources, file)
        except InputError as error:
            del pairs.files[case]
            pairs.failures[case] = (
                f"{error}. Against one dataset's own annotations, as of its test images, compare what nnunet-plugins "
                "labels shows of it; where all labels of the merged dataset are annotated, with its values, a "
                "dataset.json without that table (-djfile) counts them all"
            )
            continue
        found[case] = name, sources[name].labels
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


@dataclass(frozen=True)
class Compared:
    """What `evaluate_case` finds: a row per label or region, none if a fact is a problem."""

    rows: Rows
    facts: list[Fact]


def evaluate_case(
    prediction_file: Path,
    truth_file: Path,
    *,
    reader: BaseReaderWriter,
    labels: Sequence[Label],
    names: Sequence[str],
    declared: Sequence[int],
    ignore_label: int | None,
    tolerance: float,
    objects: Collection[str] = (),
) -> Compared:
    """Compare one segmentation with its truth."""
    readings = prediction, truth = [read_label_map(file, reader) for file in (prediction_file, truth_file)]
    facts = []
    if prediction.array is not None and truth.array is not None:
        _share_spacing(prediction, truth)
        facts = compare(truth, prediction)
    for found in readings:
        facts += found.facts
        if found.array is not None:
            facts += check_values(distinct(found.array), declared, str(found.file))
    if problems(facts, "evaluate"):
        return Compared([], facts)
    assert prediction.array is not None
    assert truth.array is not None
    assert truth.grid is not None
    rows = _compare_labels(
        prediction.array[0], truth.array[0], truth.grid.spacing, labels, names, ignore_label, tolerance, objects
    )
    return Compared(rows, facts)


def _share_spacing(prediction: Reading, truth: Reading) -> None:
    """Let one file take the spacing of the other where it does not say its own."""
    assert prediction.grid is not None
    assert truth.grid is not None
    if truth.has_spacing and not prediction.has_spacing:
        prediction.use_spacing(truth.grid.spacing)
    # nnU-Net writes 1 mm into what it predicts where it does not know.
    elif prediction.has_spacing and not truth.has_spacing and set(prediction.grid.spacing) != {1.0}:
        truth.use_spacing(prediction.grid.spacing)


def _compare_labels(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float],
    labels: Sequence[Label],
    names: Sequence[str],
    ignore_label: int | None,
    tolerance: float,
    objects: Collection[str],
) -> Rows:
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
                **(compare_objects(*masks, counts=counts).row() if name in objects else {}),
            }
        )
    return rows


def _nothing_compared(prediction: Path, failures: dict[str, str]) -> EvaluationError:
    told = "".join(f"\n  {case}: {reason}" for case, reason in list(failures.items())[:_SHOWN])
    return EvaluationError(f"no case of {prediction} could be compared; {_some(list(failures))}:{told}")


def evaluate_folders(
    prediction: Path,
    truth: Path,
    output: Path,
    *,
    dataset_json: Path | None = None,
    tolerance: float = 1.0,
    objects: Sequence[str] | None = None,
    processes: int | None = None,
    chill: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Compare every segmentation in a folder with its truth and write the table; a bar shows the progress.

    Cases that cannot be compared are left out of the table and returned with the reason. Of a merged dataset, each case
    is compared in the labels alone that its source annotates, and the table has a column `source`.

    Args:
        prediction: folder of predicted segmentations.
        truth: folder of true ones, under the same file names.
        output: CSV file to write.
        dataset_json: names labels or regions, ignore label and file ending; found beside the predictions if None.
        tolerance: of the surface Dice, in mm.
        objects: names of the labels that consist of objects, such as lesions; if None, those that `dataset_json` names.
        processes: cases at a time; if None, as nnU-Net's default, but no more than there are cores, or have
            `WORK_OF_A_PROCESS`.
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
    if not manager.has_regions:  # then [1] is a label
        known = {value[0] if isinstance(value, tuple) else value: name for value, name in known.items()}
    pairs = _pair(prediction, truth, ending, chill)
    of = _sources(description, file, pairs)
    if not pairs.files:
        raise _nothing_compared(prediction, pairs.failures)
    truths = [known for _, known in pairs.files.values()]
    evaluate = partial(
        evaluate_case,
        reader=choose_reader(description, truths)(),
        declared=declared_labels(manager),
        ignore_label=manager.ignore_label,
        tolerance=tolerance,
        objects=object_labels(description, file, objects),
    )
    all_names = [known.get(label, "") for label in labels]
    jobs = {}
    for case, files in pairs.files.items():
        annotated = [name in of[case][1] for name in all_names] if case in of else [True] * len(labels)
        chosen = {"labels": list(compress(labels, annotated)), "names": list(compress(all_names, annotated))}
        jobs[case] = partial(evaluate, *files, **chosen)
    work = sum(known.stat().st_size for known in truths)
    processes = processes or min(default_num_processes, os.cpu_count() or 1, 1 + work // WORK_OF_A_PROCESS)
    found = dict(tqdm(finish_jobs(jobs, processes), total=len(jobs), unit="case", disable=None))
    rows: Rows = []
    failures, facts = pairs.failures, pairs.facts
    for case, (_, known_file) in pairs.files.items():
        result = found[case]
        if isinstance(result, FailedJobError):
            failures[case] = str(result)
            continue
        name = known_file.name.removesuffix(ending)
        source = {"source": of[case][0]} if case in of else {}
        rows += [{"case": name, **source, **row} for row in result.rows]
        facts += remarks(result.facts, "evaluate")
        if wrong := problems(result.facts, "evaluate"):
            failures[case] = "; ".join(summarise(wrong))
    if not rows:
        raise _nothing_compared(prediction, failures)
    table = whole_counts(pd.DataFrame(rows))
    write_table(output, table)
    return Evaluation(table, failures, facts)
