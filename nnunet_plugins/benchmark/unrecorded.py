"""What can be known of a training that no benchmark has recorded, from the files that nnU-Net leaves in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.conditions import hash_content, hash_json
from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.benchmark.training_log import lines_of, log_files
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import json_or_nothing
from nnunet_plugins.planning.splits import read_splits
from nnunet_plugins.trainers.fold_folder import CHECKPOINTS

_DEBUG = {"num_iterations_per_epoch": "iterations per epoch", "batch_size": "batch size"}


def known_of(run: Run, fold: int, folders: Folders) -> dict[str, dict[str, str]]:
    """Return what is sure of a training.

    The checkpoint has the plans and the number of epochs. The splits are those that are there, if the validated cases
    are theirs and the log tells of as many cases to train on; if other cases were validated, they were others. On which
    data it was trained, nobody can tell.

    Returns:
        `hashes`, `environment` and `settings`, without what is not known.
    """
    folder = folders.fold(run, fold)
    checkpoint = _checkpoint(folder)
    debug = json_or_nothing(folder / "debug.json")
    hashes, settings, environment = {}, {}, {}
    if checkpoint:
        plans = checkpoint["init_args"]["plans"]
        hashes["plans"] = hash_content(plans, ["continue_training"])
        settings["epochs"] = str(checkpoint.get("current_epoch"))
        settings |= _patch_size(plans, run.configuration)
    if splits := _splits(run, fold, folders):
        hashes["splits"] = splits
    settings |= {name: str(debug[key]) for key, name in _DEBUG.items() if key in debug}
    if "torch_version" in debug:
        environment["torch"] = str(debug["torch_version"]).partition("+")[0]
    if "gpu_name" in debug:
        environment |= {"device": str(debug["gpu_name"]), "cuDNN": str(debug.get("cudnn_version"))}
    return {"hashes": hashes, "environment": environment, "settings": settings}


def _checkpoint(folder: Path) -> dict[str, Any]:
    from nnunet_plugins.trainers.checkpoints import load_checkpoint

    for name in CHECKPOINTS[:2]:
        try:
            return load_checkpoint(folder / name)
        except (OSError, InputError):
            continue  # not there, damaged, or with more in it than numbers: then it tells nothing
    return {}


def _patch_size(plans: Mapping[str, Any], configuration: str) -> dict[str, str]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        patch = PlansManager(dict(plans)).get_configuration(configuration).patch_size
    except Exception:  # plans that are not as nnU-Net writes them
        return {}
    return {"patch size": str(list(patch))}


def _splits(run: Run, fold: int, folders: Folders) -> str | None:
    file = folders.preprocessed / run.dataset / "splits_final.json"
    folder = folders.fold(run, fold)
    validated = sorted(path.stem for path in (folder / "validation").glob("*.pkl"))
    try:
        split = read_splits(file)[fold]
    except (InputError, IndexError):
        return None
    if validated and validated != sorted(split["val"]):
        return f"other cases in fold {fold}: {hash_content(validated)}"
    numbers = {line.value for log in log_files(folder) for line in lines_of(log) if line.about == "split"}
    if validated and numbers == {(len(split["train"]), len(split["val"]))}:
        return hash_json(file)
    return None
