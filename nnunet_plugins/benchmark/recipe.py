"""Describe a trainer as nnU-Net will run it: its network's size, and its recipe as a flat list of settings.

    python -m nnunet_plugins.benchmark.recipe DATASET CONFIGURATION PLANS TRAINER FILE [CHECKPOINT]

The trainer starts from CHECKPOINT, if one is given.

Two trainers are compared by these settings, read from the objects that they really make (optimizer, schedule, loss,
augmentation), not from their names, and by the source of the methods that they override. So any trainer that nnU-Net
finds can be described; what of it cannot is said, and stops nothing.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.sources import overridden_methods
from nnunet_plugins.program import leave_out_working_folder
from nnunet_plugins.report.equality import SEED, UNKNOWN

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


class _Parts:
    """What could be described of a trainer, and why the rest could not."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def take(self, name: str, describe: Callable[[], Any], otherwise: Any = None) -> Any:
        """Return what a function returns, or else something, with a note of why."""
        try:
            return describe()
        except Exception as error:  # whatever a foreign trainer does
            self.problems[name] = f"{type(error).__name__}: {error}"
            print(f"The {name} of this trainer could not be described: {self.problems[name]}")
            return otherwise


def describe(dataset: str, configuration: str, plans: str, trainer_name: str) -> dict[str, Any]:
    """Describe a trainer on a configuration of a preprocessed dataset, as far as that is possible.

    Returns:
        `parameters`, `forward_flops` (of one patch, None if the network cannot run without memory), `patch_size`,
        `batch_size`, `epochs`, `iterations`, `labels` (names, in the order of the pseudo Dice), `recipe`, `methods`
        (those that the trainer overrides, see `sources.overridden_methods`) and `problems`: why parts of it are None,
        or "unknown" in the recipe.
    """
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_plugins.datasets.folders import preprocessed_folder

    folder = preprocessed_folder(dataset)
    kind = recursive_find_trainer_class_by_name(trainer_name)
    parts = _Parts()

    def make() -> Any:
        trainer = kind(
            plans={**load_json(str(folder / f"{plans}.json")), "continue_training": False},
            configuration=configuration,
            fold=0,
            dataset_json=load_json(str(folder / "dataset.json")),
            device=torch.device("cpu"),
        )
        parts.take("network", trainer.initialize)
        return trainer

    trainer = parts.take("trainer", make)
    sizes: dict[str, Any] = parts.take("sizes", lambda: _sizes(trainer), dict.fromkeys(_SIZES)) if trainer else {}
    methods = overridden_methods(kind)
    return {
        "trainer": trainer_name,
        **parts.take("parameters", lambda: _network(trainer), {"parameters": None, "forward_flops": None}),
        "patch_size": sizes.get("patch size"),
        "batch_size": sizes.get("batch size"),
        "epochs": sizes.get("epochs"),
        "iterations": sizes.get("iterations per epoch"),
        "labels": parts.take("labels", lambda: _labels(trainer), []),
        "recipe": {**_recipe(trainer, sizes, parts), **_own_methods(methods)},
        "methods": methods,
        "problems": parts.problems,
    }


_SIZES = ("patch size", "batch size", "epochs", "iterations per epoch", "validation iterations per epoch")


def _sizes(trainer: Any) -> dict[str, Any]:
    patch = trainer.configuration_manager.patch_size
    iterations = trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch
    return dict(zip(_SIZES, (list(patch), trainer.batch_size, trainer.num_epochs, *iterations), strict=True))


def _network(trainer: Any) -> dict[str, Any]:
    parameters = [p for p in trainer.network.parameters() if p.requires_grad]
    shape = (1, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "forward_flops": forward_flops(trainer.network, shape),
    }


def _labels(trainer: Any) -> list[str]:
    names = {str(value): name for name, value in trainer.dataset_json["labels"].items()}
    manager = trainer.label_manager
    labels = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    return [names.get(str(list(label) if isinstance(label, tuple) else label), str(label)) for label in labels]


def _own_methods(methods: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the methods by which a trainer may train otherwise, although all settings are the same.

    The network is what is compared. The methods of this package's own trainers are left out: that they take nnU-Net's
    steps, its tests show; what they set otherwise is among the settings. So is what the variants that come with nnU-Net
    set where they are made.
    """
    settings = {}
    for name, hashes in methods.items():
        known = "nnunet_plugins.", *(["nnunetv2."] if name == "__init__" else [])
        others = [f"{kind.rpartition('.')[2]} {value}" for kind, value in hashes.items() if not kind.startswith(known)]
        if others and name != "build_network_architecture":
            settings[f"own method {name}"] = ", ".join(others)
    return settings


def _recipe(trainer: Any, sizes: Mapping[str, Any], parts: _Parts) -> dict[str, Any]:
    """Return the settings; those of a part that cannot be described are one, which is unknown."""
    groups: dict[str, Callable[[], dict[str, Any]]] = {
        "sampling": lambda: {
            "foreground oversampling": trainer.oversample_foreground_percent,
            "deep supervision": trainer.enable_deep_supervision,
        },
        "optimizer": lambda: {
            "optimizer": type(trainer.optimizer).__name__,
            **flatten(trainer.optimizer.defaults, "optimizer"),
        },
        "schedule": lambda: {
            "schedule": type(trainer.lr_scheduler).__name__,
            **flatten({k: v for k, v in vars(trainer.lr_scheduler).items() if k != "optimizer"}, "schedule"),
        },
        "loss": lambda: flatten(_loss(trainer), "loss"),
        "normalisation": lambda: _normalisation(trainer),
        "augmentation": lambda: _augmentation(trainer),
    }
    settings = {name: UNKNOWN if value is None else value for name, value in sizes.items()}
    if hasattr(trainer, SEED):
        settings[SEED] = trainer.seed
    settings = settings or dict.fromkeys(_SIZES, UNKNOWN)
    for name, group in groups.items():
        settings.update(parts.take(name, group, dict.fromkeys(_SETTINGS.get(name, (name,)), UNKNOWN)))
    return settings


_SETTINGS = {
    "sampling": ("foreground oversampling", "deep supervision"),
    "augmentation": ("augmentation", "mirroring at test time"),
}
"""Of groups of settings whose names do not begin with the group's: those that are unknown if it is."""


def _normalisation(trainer: Any) -> dict[str, Any]:
    """Return what is done to intensities, where that is not what nnU-Net plans for the channels' names."""
    from nnunet_plugins.images.recipe import read_recipe
    from nnunet_plugins.planning.normalisation import planned_schemes

    schemes, prepared = list(trainer.configuration_manager.normalization_schemes), read_recipe(trainer.dataset_json)
    found: dict[str, Any] = {"normalisation": schemes} if schemes != planned_schemes(trainer.dataset_json) else {}
    return {**found, "preparation": str(prepared)} if prepared else found


def _loss(trainer: Any) -> Any:
    """Return the loss of one output: with deep supervision it is usually, but not always, wrapped."""
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

    return trainer.loss.loss if isinstance(trainer.loss, DeepSupervisionWrapper) else trainer.loss


def _augmentation(trainer: Any) -> dict[str, Any]:
    chosen = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    rotation, dummy_2d, initial_patch, mirror_axes = chosen
    manager = trainer.label_manager
    transforms = trainer.get_training_transforms(
        tuple(trainer.configuration_manager.patch_size),
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
    settings: dict[str, Any] = {
        "augmentation": type(transforms).__name__,
        "augmentation.initial patch size": list(map(int, initial_patch)),
        "mirroring at test time": list(trainer.inference_allowed_mirroring_axes or ()),
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
    dataset, configuration, plans, trainer, output, *start = arguments
    # Trainers make their folders and begin a log at once, which the user's results should not see; nnU-Net reads the
    # variable when it is imported.
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results  # noqa: SIM112 - nnU-Net's own spelling
        found = describe(dataset, configuration, plans, trainer)
    if start:
        from nnunet_plugins.provenance import Ledger

        found["recipe"]["start"] = f"weights {Ledger({}).identity(Path(start[0]))}"
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    leave_out_working_folder()
    main(sys.argv[1:])
