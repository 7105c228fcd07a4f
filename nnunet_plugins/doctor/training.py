"""Checks of one training: trainer, plans, preprocessed data, network, labels, memory, and images to predict."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
)

from nnunet_plugins._startup import listed, trainer_folder
from nnunet_plugins.datasets.folders import BYTE_WRITERS, DATASET, largest_label
from nnunet_plugins.datasets.plan_names import WHOLE_REMEDY, covering_command, fitting_commands
from nnunet_plugins.datasets.preprocessed import (
    PLANS,
    data_folder,
    existing_cases,
    larger_cases,
    missing_cases,
    preprocessed_shapes,
)
from nnunet_plugins.doctor.findings import Finding, of_cases, ok, problem, warning
from nnunet_plugins.doctor.images import CaseFacts
from nnunet_plugins.doctor.merged import check_sources
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.forecast import GIB, Forecast, device_memory, format_bytes, format_size
from nnunet_plugins.planning.cover import Images
from nnunet_plugins.planning.native import keeps_voxels
from nnunet_plugins.planning.setting import (
    Setting,
    find_trainer,
    forecast_setting,
    needs_whole_images,
    plan_setting,
)
from nnunet_plugins.trainers.backbone import BackboneTrainer
from nnunet_plugins.trainers.checks import require_backbone, require_labels

_NOT_FAKE = (UnsupportedFakeTensorException, DataDependentOutputException, DynamicOutputShapeException)
_TOO_MUCH, _TIGHT = 1.1, 0.9  # of the device's memory; as `BackboneTrainer.check_memory` has it
_WHOLE = "which the network takes for the whole anatomy"  # a larger image would be cut into several of it


@dataclass
class Training:
    """A training to check; `forecast` is filled in when it is known.

    Attributes:
        dataset: full name.
        trainer: its name, like the next two.
        configuration: nnU-Net's.
        plans: their name.
        gpu_memory: of the GPU that it will run on, in GiB; None for this machine's.
        forecast: what a step costs.
    """

    dataset: str
    trainer: str
    configuration: str
    plans: str
    gpu_memory: float | None
    forecast: Forecast | None = None


def check_training(training: Training, folder: Path, cases: Collection[str]) -> Iterator[Finding]:
    """Check whether a training would run.

    Args:
        training: which.
        folder: of the dataset, in nnUNet_preprocessed.
        cases: of the raw dataset, if that is known.
    """
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("nnunet-plugins", "nnunetv2", "torch"))
    yield ok(versions)
    trainer = None
    try:
        trainer = find_trainer(training.trainer)
        yield ok(f"trainer {training.trainer}")
    except InputError as error:
        yield problem(str(error), "correct -tr; `nnunet-plugins list` shows our trainers")
    if trainer and issubclass(trainer, BackboneTrainer) and trainer_folder() not in listed():
        yield problem("nnU-Net's own commands do not find our trainers here", "run `nnunet-plugins doctor`")
    preprocess = f"nnUNetv2_plan_and_preprocess -d {training.dataset.removeprefix('Dataset')[:3].lstrip('0') or 0}"
    file = folder / f"{training.plans}.json"
    if not file.is_file():
        there = sorted(path.stem for path in folder.glob("*.json") if "lans" in path.stem)
        yield problem(
            f"{file} is missing; plans that are there: {', '.join(there) or 'none'}",
            f"plan and preprocess the dataset: {preprocess}, or correct -p",
        )
        return
    configurations = read_json(file, PLANS)["configurations"]
    if training.configuration not in configurations:
        yield problem(
            f"{file} has no configuration {training.configuration!r}; it has {', '.join(configurations)}",
            "correct -c; nnU-Net plans 3d_lowres and its cascade only for large images",
        )
        return
    yield from _check_data(training, folder, cases, preprocess)
    try:
        setting = plan_setting(training.dataset, training.configuration, training.plans)
    except InputError as error:
        yield problem(str(error), f"make the plans anew: {preprocess}")
        return
    yield ok(f"plans {training.plans}: {setting}")
    if trainer and needs_whole_images(trainer):
        yield from _check_size(training, setting, folder)
    yield from _check_writer(setting, folder / "dataset.json")
    if trainer:
        description = read_json(folder / "dataset.json", DATASET)
        yield from _check_labels(trainer, setting, description)
        yield from check_sources(trainer, description, folder)
        yield from _check_network(training, trainer, setting)


def _check_data(training: Training, folder: Path, cases: Collection[str], preprocess: str) -> Iterator[Finding]:
    data = data_folder(folder, training.plans, training.configuration)
    known = existing_cases(folder)
    missing = dict.fromkeys(missing_cases(folder, training.plans, training.configuration), "")
    again = f"{preprocess} -c {training.configuration}"
    if training.plans != "nnUNetPlans":
        again = again.replace("plan_and_preprocess", "preprocess") + f" -plans_name {training.plans}"
    if not known:
        yield problem(f"{folder} has no preprocessed case", again)
        return
    yield from of_cases("problem", f"{{}} not preprocessed in {data}", missing, again)
    broken = {
        case: ""
        for case in known
        if case not in missing
        and not any(file.is_file() and file.stat().st_size for file in (data / f"{case}.b2nd", data / f"{case}.npz"))
    }
    yield from of_cases("problem", f"{{}} without data, or with an empty file, in {data}", broken, again)
    changed = {case: "" for case in sorted(set(cases) ^ set(known))} if cases else {}
    yield from of_cases("warning", "{} only among the raw or only among the preprocessed ones", changed, again)
    if not missing and not broken:
        yield ok(f"{len(known)} preprocessed cases in {data}")


def _check_size(training: Training, setting: Setting, folder: Path) -> Iterator[Finding]:
    """Check that the patch holds every training image, as it is preprocessed."""
    patch, place = setting.configuration.patch_size, (folder, training.plans, training.configuration)
    absent = set(missing_cases(*place))
    there = [case for case in existing_cases(folder) if case not in absent]
    found = larger_cases(preprocessed_shapes(data_folder(*place), there), patch)
    remedy = f"make plans that cover them: {covering_command(training.dataset, training.plans)}"
    if len(patch) == 2:
        remedy = "use a 3D configuration where images have several slices"
    yield from of_cases("problem", f"{{}} larger than the patch {format_size(patch)}, {_WHOLE}", found, remedy)
    if there and not found:
        yield ok(f"the patch {format_size(patch)} holds every training image")


def _check_writer(setting: Setting, file: Path) -> Iterator[Finding]:
    reader = setting.plans.plans.get("image_reader_writer")
    largest = largest_label(read_json(file, DATASET), file)
    if reader in BYTE_WRITERS and largest > 255:
        yield problem(
            f"{reader} writes segmentations of 8 bits, in which label {largest} becomes {largest % 256}",
            'name another reader in dataset.json, "overwrite_image_reader_writer": "NibabelIOWithReorient", and plan '
            "anew",
        )


def _check_labels(trainer: type[nnUNetTrainer], setting: Setting, description: dict) -> Iterator[Finding]:
    try:
        require_backbone(trainer)
        require_labels(trainer, setting.plans.get_label_manager(description))
        yield ok("the trainer's loss supports these labels")
    except NotImplementedError as error:
        yield problem(str(error), "choose one of these trainers")


def _check_network(training: Training, trainer: type[nnUNetTrainer], setting: Setting) -> Iterator[Finding]:
    try:
        # In float32 first: what fails there fails in training.
        forecast_setting(trainer, setting, autocast=False)
    except (ValueError, InputError) as error:
        if not isinstance(error.__cause__, _NOT_FAKE):
            text = str(error) if training.trainer in str(error) else f"{training.trainer} cannot take the plan: {error}"
            yield problem(text, "use another configuration, other plans, or another trainer")
            return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda" or training.gpu_memory is not None
    try:
        training.forecast = forecast_setting(trainer, setting, autocast=on_gpu)
    except (ValueError, InputError) as error:
        yield warning(f"the memory of a step could not be forecast: {error}", "try one epoch: -tr ..._1epochs")
        return
    needed = training.forecast.peak_bytes_training
    available = training.gpu_memory * GIB if training.gpu_memory else device_memory(device)
    text = f"a training step needs about {format_bytes(needed)} of memory"
    if not on_gpu:
        yield warning(
            f"{text}; there is no GPU here to compare it with",
            "give the memory of the one it will run on, --gpu-memory GIB; on a CPU train with '-device cpu'",
        )
        return
    if available is None:
        yield ok(text)
        return
    text += f"; the GPU has {format_bytes(available)}"
    commands = fitting_commands(
        training.dataset, training.configuration, training.trainer, training.plans, available / GIB
    )
    remedy = "make plans that fit, and train with them: " + "; ".join(commands)
    if needs_whole_images(trainer):
        remedy = WHOLE_REMEDY
    if needed > _TOO_MUCH * available:
        yield problem(text, remedy)
    elif needed > _TIGHT * available:
        yield warning(f"{text}. That is tight", remedy)
    else:
        yield ok(text)


def check_images(training: Training, facts: Mapping[str, CaseFacts]) -> Iterator[Finding]:
    """Check that the patch holds images to predict, after nnU-Net's cropping and resampling.

    Nothing is said of other networks, nor where trainer or plans cannot be used, which other checks tell.

    Args:
        training: whose network predicts.
        facts: about the images.
    """
    try:
        if not needs_whole_images(find_trainer(training.trainer)):
            return
        setting = plan_setting(training.dataset, training.configuration, training.plans)
    except InputError:
        return
    order, patch, target = (
        setting.plans.transpose_forward,
        setting.configuration.patch_size,
        setting.configuration.spacing,
    )
    shapes = {}
    for name, case in facts.items():
        if case.is_whole and case.channels:
            shape, spacing = (
                [sizes[axis] for axis in order] for sizes in (case.cropped, case.channels[0].grid.spacing)
            )
            image = Images(np.array([shape]), np.array([spacing]))
            after = spacing if keeps_voxels(setting.configuration.configuration) else target
            shapes[name] = image.resampled([*spacing[: 3 - len(after)], *after])[0].tolist()
    found = larger_cases(shapes, patch)
    yield from of_cases(
        "problem",
        f"{{}} larger, when resampled, than the patch {format_size(patch)}, {_WHOLE}: nnU-Net cuts them into windows "
        "without a word",
        found,
        "crop them to what the training images show",
    )
    if shapes and not found:
        yield ok(f"the patch {format_size(patch)} holds all of these images")
