"""Of which model an ONNX file is: it says so itself, in its metadata, and the hash of the checkpoint decides."""

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_plugins.engines.libraries import load_library
from nnunet_plugins.errors import InputError
from nnunet_plugins.models.sources import Source
from nnunet_plugins.provenance import Ledger

_PACKAGES = ("nnunet-plugins", "nnunetv2", "torch", "onnxscript")
_COMPARED = ("dataset", "trainer", "plans", "configuration", "patch_size", "channels", "labels", "fold", "checkpoint")
"""In the order in which a difference is told."""


def checkpoint_of(source: Source, fold: str) -> Path:
    """Return where a fold's checkpoint lies."""
    return source.folder / f"fold_{fold}" / source.checkpoint


def file_beside(source: Source, fold: str, *, half: bool = False) -> Path:
    """Return where a fold's ONNX file lies if nobody says otherwise: beside the checkpoint."""
    checkpoint = checkpoint_of(source, fold)
    return checkpoint.with_name(f"{checkpoint.stem}{'_half' if half else ''}.onnx")


def origin_of(source: Source, fold: str) -> dict[str, str]:
    """Return what tells a fold's model from others, which a file of it says of itself."""
    return {
        "dataset": source.folder.parent.name,
        "trainer": source.choice.trainer,
        "plans": source.choice.plans,
        "configuration": source.choice.configuration,
        "patch_size": json.dumps([int(n) for n in source.configuration.patch_size]),
        "channels": json.dumps(source.channels),
        "labels": json.dumps(source.dataset_json["labels"]),
        "fold": fold,
        "checkpoint": Ledger({}).identity(checkpoint_of(source, fold)),
    }


def versions() -> dict[str, str]:
    """Return the versions of what makes a file, which it says of itself as well; to predict from it takes less."""
    return {package: metadata.version(package) for package in _PACKAGES}


def read_origin(file: Path) -> dict[str, str]:
    """Return what a file says of itself.

    Raises:
        InputError: if it cannot be read, or was not made by `nnunet-plugins export-onnx`.
    """
    onnx = load_library("onnx")
    try:
        model = onnx.load(str(file), load_external_data=False)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a library raises for a file that is damaged
        raise InputError(f"{file} is no ONNX file that can be read, or is damaged: {type(error).__name__}") from error
    found = {entry.key: entry.value for entry in model.metadata_props}
    if not set(_COMPARED) <= set(found):
        raise InputError(f"{file} does not say of which model it is; nnunet-plugins export-onnx makes files that do")
    return found


def files_of(source: Source, given: Sequence[Path]) -> list[Path]:
    """Return the ONNX file of each fold.

    Args:
        source: the trained configuration, with the folds to take.
        given: files to choose among, in any order; those beside the checkpoints if there are none.

    Raises:
        InputError: if one is missing, cannot be read, or is of another model.
    """
    beside = [file_beside(source, fold) for fold in source.folds]
    if missing := [file for file in given or beside if not file.is_file()]:
        remedy = "" if given else f". Make it: {_command(source, [f.parent.name[5:] for f in missing])}"
        raise InputError(f"{missing[0]} is missing{remedy}")
    wanted = {fold: origin_of(source, fold) for fold in source.folds}
    found: dict[str, Path] = {}
    for file in given or beside:
        origin = read_origin(file)
        fold = next((fold for fold, its in wanted.items() if its["checkpoint"] == origin["checkpoint"]), None)
        nearest = wanted[fold or (origin["fold"] if origin["fold"] in wanted else source.folds[0])]
        # Weights alone are not the model: its folder may have been given other channels or labels since.
        if difference := next((key for key in _COMPARED if origin[key] != nearest[key] and _counts(key, fold)), None):
            raise InputError(
                f"{file} is of another model: its {difference} is {origin[difference]}, and that of {source.folder}, "
                f"fold {nearest['fold']}, is {nearest[difference]}. Make one that fits: "
                f"{_command(source, [nearest['fold']])}"
            )
        assert fold is not None
        if fold in found:
            raise InputError(f"{found[fold]} and {file} are both of fold {fold}; give one of them")
        found[fold] = file
    if lacking := [fold for fold in source.folds if fold not in found]:
        raise InputError(
            f"none of the files is of fold {', '.join(lacking)}. Make one: {_command(source, lacking)}; or leave the "
            "fold out of -f"
        )
    return [found[fold] for fold in source.folds]


def _counts(key: str, fold: str | None) -> bool:
    """Names of datasets and plans may change where a model is shared: the checkpoint is the same."""
    return fold is None or key in ("patch_size", "channels", "labels")


def _command(source: Source, folds: Sequence[str]) -> str:
    choice = source.choice
    model = f"-d {source.folder.parent.name} -c {choice.configuration} -p {choice.plans} -tr {choice.trainer}"
    other = "" if source.checkpoint == "checkpoint_final.pth" else f" -chk {source.checkpoint}"
    return f"nnunet-plugins export-onnx {model} -f {' '.join(folds)}{other}"


def write_origin(model: Any, origin: Mapping[str, str]) -> None:
    """Write into an ONNX model what it says of itself, in place of what it said before."""
    del model.metadata_props[:]
    for key, value in origin.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
