"""nnU-Net's prediction of a folder, case by case in one process, with nnU-Net's own functions in its own order.

    image -> preprocess -> tiles or one pass, all folds -> resample, labels, probabilities -> files

What `nnUNetv2_predict` writes is written here, each file completely or not at all.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from numpy.typing import NDArray

from nnunet_plugins.datasets.folders import preprocessed_folder, require_own_folder
from nnunet_plugins.datasets.preprocessed import larger_cases
from nnunet_plugins.engines.network import EngineNetwork
from nnunet_plugins.engines.origin import files_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import whole_file
from nnunet_plugins.forecast import format_size
from nnunet_plugins.images.facts import problems, summarise
from nnunet_plugins.images.reading import read_channels
from nnunet_plugins.images.writing import require_whole, written_whole
from nnunet_plugins.models.cases import Case
from nnunet_plugins.models.images import ImageError, read_image
from nnunet_plugins.models.sources import OF_THE_NETWORK, Source
from nnunet_plugins.planning.setting import needs_whole_images
from nnunet_plugins.planning.splits import read_splits
from nnunet_plugins.prediction.cases import BESIDE, Log, cases_in, predict_each
from nnunet_plugins.prediction.export import find_labels, make_quick, stock_configuration
from nnunet_plugins.prediction.request import Request
from nnunet_plugins.prediction.verification import compare_with_nnunet, is_for_nnunet
from nnunet_plugins.prediction.whole_volume import WholeVolumePredictor, make_predictor, require_any_size


def load_predictor(
    source: Source, request: Request, device: torch.device, *, diverged: bool = False
) -> nnUNetPredictor:
    """Return nnU-Net's predictor with the weights of all folds, in the network of the plan they were trained with.

    Args:
        source: the trained configuration.
        request: how to predict.
        device: to compute on.
        diverged: take weights that are no finite numbers as well.

    Raises:
        InputError: if something cannot be read, a fold was trained with other plans than those in the model's folder,
            the weights do not fit, or the networks cannot be used as is asked for.
    """
    if request.whole_volume:
        require_any_size(source.choice.trainer)
    checkpoints = [source.weights(fold, OF_THE_NETWORK, diverged=diverged) for fold in source.folds]
    network: Any = source.network
    weights = [checkpoint["network_weights"] for checkpoint in checkpoints]
    if request.engine:
        network = EngineNetwork(request.engine, files_of(source, request.onnx))
        weights = network.states()
    options = {
        "tile_step_size": request.step,
        "use_mirroring": request.mirroring,
        "perform_everything_on_device": device.type == "cuda",
        "device": device,
        "allow_tqdm": False,
    }
    # nnU-Net prints what it does with which device.
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = make_predictor(request.whole_volume, request.most_bytes, **options)
        predictor.manual_initialization(
            network,
            PlansManager(source.plans),
            source.configuration,
            weights,
            source.dataset_json,
            source.choice.trainer,
            checkpoints[0].get("inference_allowed_mirroring_axes"),
        )
    make_quick(predictor)
    return predictor


def predict_volumes(
    source: Source, request: Request, device: torch.device, inputs: Path, outputs: Path, log: Log
) -> list[str]:
    """Predict all images in a folder; returns the cases of which that was not possible, or not as nnU-Net does it.

    Args:
        source: the trained configuration.
        request: how to predict.
        device: to compute on.
        inputs: folder of images, in nnU-Net's layout.
        outputs: folder to write to; it is made.
        log: takes lines.

    Raises:
        InputError: as `load_predictor`; if a folder is missing, there is no image, predictions would replace what is
            read, or nnU-Net's command is to compare and reads no case.
        OSError: if nothing can be written.
    """
    stage = source.configuration.previous_stage_name
    if stage and request.previous is None:
        raise InputError(
            f"{source.choice.configuration} is a cascade's second stage: predict with {stage} first, and give the "
            "folder of that with -prev_stage_predictions"
        )
    if request.previous is not None and not (stage and request.previous.is_dir()):
        wrong = f"there is no folder {request.previous}" if stage else "this is no second stage of a cascade"
        raise InputError(f"-prev_stage_predictions: {wrong}")
    require_own_folder(outputs, inputs, *filter(None, [request.previous]), overwrite=True)
    predictor = load_predictor(source, request, device)
    cases = cases_in(source, inputs, outputs, log)
    known = [case for case in cases if is_for_nnunet(case, source)]
    if request.verified and not known:
        ending = source.dataset_json["file_ending"]
        raise InputError(f"--verify: nnU-Net's own command reads files {ending} alone, of which {inputs} has no case")
    failed = _predict_cases(source, request, predictor, cases, outputs, log)
    sample = [case for case in known if case.name not in failed][: request.verified]
    return [*failed, *(compare_with_nnunet(source, request, device, sample, log) if sample else [])]


def cross_validate(source: Source, request: Request, device: torch.device, outputs: Path, log: Log) -> list[str]:
    """Predict the training cases, each by the fold that was not trained on it; returns those that were not possible.

    Args:
        source: the trained configuration, with the folds to take.
        request: how to predict.
        device: to compute on.
        outputs: folder to write to; it is made.
        log: takes lines.

    Raises:
        InputError: as `load_predictor`; if the splits have no such fold, the dataset lacks a case, the
            folder is one of a dataset, or the configuration is a cascade's second stage.
        OSError: if nothing can be written.
    """
    if source.configuration.previous_stage_name or request.previous:
        raise InputError("--cross-validation is not possible for the second stage of a cascade")
    require_own_folder(outputs, overwrite=True)
    if request.engine:
        files_of(source, request.onnx)  # of all folds, before hours go into the first
    cases = {fold: validation_cases(source, fold, outputs) for fold in source.folds}
    failed = []
    for fold in source.folds:
        log(f"Fold {fold}, {len(cases[fold])} cases")
        one = replace(source, folds=(fold,))
        failed += _predict_cases(one, request, load_predictor(one, request, device), cases[fold], outputs, log)
    return failed


def validation_cases(source: Source, fold: str, outputs: Path) -> list[Case]:
    """Return the cases on which a fold is validated, as nnU-Net finds them.

    Raises:
        InputError: if there is no such fold, or the dataset lacks a case.
    """
    dataset = source.folder.parent.name
    splits = read_splits(preprocessed_folder(dataset) / "splits_final.json")
    if not fold.isdigit() or int(fold) >= len(splits):
        raise InputError(f"fold {fold} is validated on nothing; {dataset} is split into {len(splits)} folds")
    raw = Path(os.environ.get("nnUNet_raw", ""), dataset)  # noqa: SIM112 - nnU-Net's own spelling
    if not (raw / "dataset.json").is_file():
        raise InputError(f"{raw / 'dataset.json'} is missing; the images are looked for there")
    files = get_filenames_of_train_images_and_targets(str(raw))
    names = splits[int(fold)]["val"]
    if gone := [name for name in names if name not in files]:
        raise InputError(f"the splits of {dataset} name {gone[0]}, which {raw} does not have")
    ending = str(source.dataset_json["file_ending"])
    return [Case(name, tuple(map(Path, files[name]["images"])), outputs / f"{name}{ending}") for name in names]


def _predict_cases(
    source: Source, request: Request, predictor: nnUNetPredictor, cases: Sequence[Case], outputs: Path, log: Log
) -> list[str]:
    if slow := predictor.configuration_manager.slow_parts():
        names = ", ".join(dict.fromkeys(slow))
        log(f"The plans name another resampling than nnU-Net's default, {names}: it is left to nnU-Net")
    tiled: list[str] = []
    begin = partial(_begin, source, request, predictor, tiled, log, Lock())
    # While the network has one case, another is read, resampled or written. A pass may need all the memory there is.
    at_a_time = 1 if request.whole_volume else 2
    remedy = "Use a machine with more, or a GPU"
    failed = predict_each(source, cases, outputs, begin, log, remedy=remedy, at_a_time=at_a_time)
    if tiled:
        log(f"In tiles, for the reasons above: {', '.join(tiled)}")
    return failed


def _begin(
    source: Source, request: Request, predictor: nnUNetPredictor, tiled: list[str], log: Log, network: Lock, case: Case
) -> Callable[[], str]:
    """Read a case; returns what predicts it, writes what is asked for, and returns what there is to say."""
    files = _files_of(case, source, request)
    if request.keep_finished and all(file.is_file() for file in files):
        return lambda: "is there already"
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = read_image(case, reader, str(source.dataset_json["file_ending"]), source.channels, log)
    previous = None if request.previous is None else _read_previous(request.previous / case.output.name, image, reader)

    def predict() -> str:
        data, left = preprocess(predictor, image, previous, properties)
        size = tuple(data.shape[1:])
        with network:
            logits = predictor.predict_logits_from_preprocessed_data(data)
        _write(predictor, logits, left, files)
        said, patch = _describe(predictor, size, case, tiled), predictor.configuration_manager.patch_size
        if needs_whole_images(source.trainer) and larger_cases({"": size}, patch):
            said += f". WARNING: that is more than the {format_size(patch)} that are seen whole"
        return said

    return predict


def _files_of(case: Case, source: Source, request: Request) -> list[Path]:
    """Return the files to write for a case; the label map comes last: where it is, all is."""
    name = case.output.name.removesuffix(str(source.dataset_json["file_ending"]))
    others = [case.output.with_name(f"{name}{ending}") for ending in BESIDE if request.probabilities]
    return [*others, case.output]


def preprocess(
    predictor: nnUNetPredictor, image: NDArray[Any], previous: NDArray[Any] | None, properties: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return an image `(channels, z, y, x)` as a network takes it, and what undoing that needs.

    Args:
        predictor: with the plans.
        image: `(channels, z, y, x)`, as nnU-Net's reader gives it.
        previous: the labels `(1, z, y, x)` of a cascade's first stage, for its second.
        properties: of the image, from the reader.
    """
    p = predictor
    adapter = PreprocessAdapterFromNpy(
        [image], [previous], [dict(properties)], [None], p.plans_manager, p.dataset_json, p.configuration_manager
    )
    item = next(adapter)
    return item["data"], item["data_properties"]


def _write(predictor: nnUNetPredictor, logits: torch.Tensor, properties: dict[str, Any], files: Sequence[Path]) -> None:
    """Write a label map, the last of the files, and before it probabilities and properties if they are among them."""
    label_map = files[-1]
    with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=label_map.parent) as temporary:
        file = Path(temporary, label_map.name)
        if len(files) > 1:
            configuration = stock_configuration(predictor.configuration_manager)
            plan = (configuration, predictor.plans_manager, predictor.dataset_json)
            name = str(file).removesuffix(predictor.dataset_json["file_ending"])
            export_prediction_from_logits(logits.numpy(), properties, *plan, name, True)
            require_whole(file, label_map)
        else:
            reader = predictor.plans_manager.image_reader_writer_class()
            labels = find_labels(predictor, logits, properties)
            with written_whole(file, label_map):
                reader.write_seg(labels, str(file), properties)
        for written in files:
            with whole_file(written) as part:
                Path(temporary, written.name).replace(part)


def _describe(predictor: nnUNetPredictor, size: tuple[int, ...], case: Case, tiled: list[str]) -> str:
    if not isinstance(predictor, WholeVolumePredictor):
        return f"{format_size(size)} voxels"
    if predictor.way(size).size is None:
        tiled.append(case.name)
    return predictor.describe(size)


def _read_previous(file: Path, image: NDArray[Any], reader: BaseReaderWriter) -> NDArray[Any]:
    """Return the labels `(1, z, y, x)` of a cascade's first stage for an image."""
    if not file.is_file():
        raise ImageError(f"the prediction of the stage before, {file}, is missing")
    labels, _, facts = read_channels([file], reader)
    if labels is None or labels.shape != (1, *image.shape[1:]):
        said = "; ".join(summarise(problems(facts, "inference"))) or "it is not as large as the image"
        raise ImageError(f"the prediction of the stage before, {file}, cannot be used: {said}")
    return np.asarray(labels, np.float32)
