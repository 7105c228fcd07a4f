"""Describe a trainer as nnU-Net will run it: its network's size, and its recipe as a flat list of settings.

    python -m nnunet_plugins.benchmark.recipe DATASET CONFIGURATION PLANS TRAINER FILE

Two trainers are compared by these settings, read from the objects that they really make (optimizer, schedule, loss,
augmentation), not from their names. So any trainer that nnU-Net finds can be described.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DEPTH = 12


def flatten(value: Any, name: str, depth: int = _DEPTH) -> dict[str, Any]:
    """Return an object as dotted names and plain values: its class, and what its attributes hold.

    Private attributes and what is deeper than a dozen levels are left out.
    """
    if depth == 0:
        return {}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {name: value}
    if isinstance(value, Mapping):
        items = {str(key): part for key, part in value.items() if not str(key).startswith("_")}
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        if all(part is None or isinstance(part, (bool, int, float, str)) for part in parts):
            return {name: list(parts)}
        items = {str(number): part for number, part in enumerate(parts)}
    elif hasattr(value, "tolist"):
        # A tensor or an array.
        return {name: value.tolist() if value.size and len(value.shape) < 3 else str(value)}
    elif callable(value) and hasattr(value, "__qualname__"):
        return {name: value.__qualname__}
    else:
        items = {key: part for key, part in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
        items.update(getattr(value, "_modules", {}))
        items.pop("training", None)
        return {name: type(value).__name__, **_parts(items, name, depth)}
    return _parts(items, name, depth)


def _parts(items: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
    return {key: value for part in items for key, value in flatten(items[part], f"{name}.{part}", depth - 1).items()}


def describe(dataset: str, configuration: str, plans: str, trainer_name: str) -> dict[str, Any]:
    """Describe a trainer on a configuration of a preprocessed dataset.

    Returns:
        `parameters`, `forward_flops` (of one patch, None if the network cannot run without memory), `patch_size`,
        `batch_size`, `epochs`, `iterations`, `labels` (names, in the order of the pseudo Dice) and `recipe`.
    """
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_plugins.planning.dataset import preprocessed_folder

    folder = preprocessed_folder(dataset)
    trainer = recursive_find_trainer_class_by_name(trainer_name)(
        plans={**load_json(str(folder / f"{plans}.json")), "continue_training": False},
        configuration=configuration,
        fold=0,
        dataset_json=load_json(str(folder / "dataset.json")),
        device=torch.device("cpu"),
    )
    trainer.initialize()
    names = {str(value): name for name, value in trainer.dataset_json["labels"].items()}
    manager = trainer.label_manager
    labels = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    patch = tuple(trainer.configuration_manager.patch_size)
    parameters = [p for p in trainer.network.parameters() if p.requires_grad]
    return {
        "trainer": trainer_name,
        "parameters": sum(p.numel() for p in parameters),
        "forward_flops": forward_flops(trainer.network, (1, trainer.num_input_channels, *patch)),
        "patch_size": patch,
        "batch_size": trainer.batch_size,
        "epochs": trainer.num_epochs,
        "iterations": trainer.num_iterations_per_epoch,
        "labels": [names.get(str(list(label) if isinstance(label, tuple) else label), str(label)) for label in labels],
        "recipe": _recipe(trainer, patch),
    }


def _recipe(trainer: Any, patch: Sequence[int]) -> dict[str, Any]:
    chosen = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    rotation, dummy_2d, initial_patch, mirror_axes = chosen
    manager = trainer.label_manager
    transforms = trainer.get_training_transforms(
        patch,
        rotation,
        trainer._get_deep_supervision_scales(),
        mirror_axes,
        dummy_2d,
        use_mask_for_norm=trainer.configuration_manager.use_mask_for_norm,
        is_cascaded=trainer.is_cascaded,
        foreground_labels=manager.foreground_labels,
        regions=manager.foreground_regions if manager.has_regions else None,
        ignore_label=manager.ignore_label,
    )
    scheduler = vars(trainer.lr_scheduler)
    loss = trainer.loss.loss if trainer.enable_deep_supervision else trainer.loss
    settings = {
        "patch size": list(patch),
        "batch size": trainer.batch_size,
        "epochs": trainer.num_epochs,
        "iterations per epoch": trainer.num_iterations_per_epoch,
        "validation iterations per epoch": trainer.num_val_iterations_per_epoch,
        "foreground oversampling": trainer.oversample_foreground_percent,
        "deep supervision": trainer.enable_deep_supervision,
        "augmentation.initial patch size": list(map(int, initial_patch)),
        "mirroring at test time": list(trainer.inference_allowed_mirroring_axes or ()),
        "optimizer": type(trainer.optimizer).__name__,
        "schedule": type(trainer.lr_scheduler).__name__,
        **flatten(trainer.optimizer.defaults, "optimizer"),
        **flatten({key: value for key, value in scheduler.items() if key != "optimizer"}, "schedule"),
        **flatten(loss, "loss"),
    }
    for step in transforms.transforms:
        # What happens at random is wrapped.
        inner = getattr(step, "transform", step)
        name = f"augmentation.{type(inner).__name__}"
        if "Downsample" in name:  # follows from deep supervision
            continue
        number = sum(re.fullmatch(rf"{re.escape(name)}( \d+)?", key) is not None for key in settings)
        name += f" {number + 1}" if number else ""
        settings.update(flatten(inner, name))
        settings[f"{name}.probability"] = getattr(step, "apply_probability", 1)
    return settings


def forward_flops(network: Any, shape: Sequence[int]) -> int | None:
    """Count the floating-point operations of a forward pass, a multiplication and an addition being two.

    Returns None for a network that cannot run on tensors without content.
    """
    from copy import deepcopy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
            deepcopy(network).to("meta").eval()(torch.empty(*shape))
    except Exception as error:  # whatever a foreign network does there
        print(f"The operations of this network could not be counted: {error}")
        return None
    return flops.get_total_flops()


def main(arguments: Sequence[str]) -> None:
    """Write the description to a file."""
    *question, output = arguments
    # Trainers make their folders and begin a log at once, which the user's results should not see; nnU-Net reads the
    # variable when it is imported.
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results  # noqa: SIM112 - nnU-Net's own spelling
        dataset, configuration, plans, trainer = question
        found = describe(dataset, configuration, plans, trainer)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main(sys.argv[1:])
