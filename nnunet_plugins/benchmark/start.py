"""Weights to start from: trainers that ask for them get some, which have not seen what is validated on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_plugins.benchmark.protocol import BenchmarkError, Protocol, starts_from_weights
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.datasets.sources import find_description
from nnunet_plugins.modifiers import PRETRAINED

if TYPE_CHECKING:
    from nnunet_plugins.planning.seen import Cases


def check_start(protocol: Protocol, folders: Folders) -> None:
    """Check that weights to start from are there where they are asked for, and have not seen what is validated on.

    Raises:
        BenchmarkError: if not.
    """
    from nnunet_plugins.planning.seen import Cases
    from nnunet_plugins.trainers.checkpoints import load_checkpoint

    from_weights = [run for run in protocol.runs() if starts_from_weights(run.trainer)]
    if not protocol.pretrained:
        if from_weights:
            raise BenchmarkError(
                f"{from_weights[0].trainer} starts from weights; name them with --pretrained CHECKPOINT"
            )
        return
    if not from_weights:
        trainer = f"{protocol.trainers[-1]}_{PRETRAINED}"
        raise BenchmarkError(f"--pretrained is for trainers with _{PRETRAINED}; add one, such as {trainer}")
    arguments = load_checkpoint(Path(protocol.pretrained), weights_suffice=True).get("init_args", {})
    weights = Cases(str(arguments.get("plans", {}).get("dataset_name", "")), arguments.get("dataset_json", {}))
    for dataset in dict.fromkeys(run.dataset for run in from_weights):
        own = Cases(dataset, find_description(dataset, folders.preprocessed, folders.raw)[0])
        _require_unseen(protocol, folders, weights, arguments.get("fold"), own)


def _require_unseen(protocol: Protocol, folders: Folders, weights: "Cases", fold: Any, own: "Cases") -> None:
    """Refuse weights that were trained on what a fold of a dataset validates on, in whichever dataset it was."""
    from nnunet_plugins.planning.seen import folds_that_saw, shared_origins

    if not (shared := shared_origins(weights, own)):
        return
    which = f"{protocol.pretrained} was trained on {weights.name}, fold {fold}, and has seen"
    seen = folds_that_saw(weights, fold, own, folders.preprocessed)
    if seen is None and weights.name == own.name:
        seen = [one for one in protocol.folds if one != fold]
    if seen is None:
        raise BenchmarkError(
            f"{which} cases of {' and '.join(shared)}, which are in {own.name}, too. Without the splits_final.json of "
            "both nobody knows which folds validate on them; make them first, or take weights of other cases"
        )
    if set(seen) & set(protocol.folds):
        others = isinstance(fold, int) and fold not in seen
        raise BenchmarkError(
            f"{which} what {'other ' * others}folds of {own.name} validate on; take weights of other cases"
            + f", or this fold alone (-f {fold})" * others
        )
