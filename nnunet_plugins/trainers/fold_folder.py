"""The folder of a fold: one training at a time, and what an earlier one has left is moved aside, not written over."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import adopt_lock, hold_lock, lock_holder, whole_file

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")

RUN_FILE = "nnunet_plugins_run.json"
"""Names the run that was begun last in the folder; its checkpoints hold the same name. Version 0.1.0 wrote none."""

CLASS_WEIGHTS = "class_weights.json"
"""Weights of a loss, which belong to the checkpoints."""

GATES = "gates.csv"
"""The gates of a network after each epoch."""

TENSORBOARD = "tensorboard"
"""Folder of event files."""

_UNFINISHED = "earlier.partial"
"""Folder into which the files of an earlier training are being moved."""

_ALONG = (CLASS_WEIGHTS, GATES, TENSORBOARD, "validation")
"""What is moved with the checkpoints."""

LOCK = "nnunet_plugins.lock"

LOCK_IS_HELD = "nnUNet_plugins_fold_lock"
"""Environment variable: the lock's file, where the program that starts a training holds it for the training."""


class FolderError(InputError, RuntimeError):
    """A fold's folder is in use, or cannot be made ready for a training."""


@contextlib.contextmanager
def only_training(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Keep other trainings out of a fold's folder.

    Args:
        folder: the fold's.
        tell: called if its file system has no locks, so that nobody is kept out.

    Raises:
        FolderError: if there is one already.
    """
    lock = folder / LOCK
    if os.environ.get(LOCK_IS_HELD) == str(lock):
        adopt_lock(lock)
        yield
        return
    with hold_lock(lock, warn=lambda text: tell(f"WARNING: nnunet_plugins: {text}")) as held:
        if not held:
            holder = lock_holder(lock) or "which does not tell of itself"
            raise FolderError(
                f"nnunet_plugins: another training is running in {folder}, or the validation at its end ({holder}). "
                "Two at once would overwrite each other's checkpoints: wait for it, or stop it and go on with --c."
            )
        yield


def run_of(folder: Path) -> str | None:
    """Return the name of the run that was begun last in a folder; None if that is not known.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content.get("run") if isinstance(content, dict) else None


def begin_run(folder: Path, tell: Callable[[str], None]) -> str:
    """Make a fold's folder ready for a training that does not go on from a checkpoint; returns the name of its run.

    Checkpoints of an earlier training are moved into a folder beside them, together with its validation, its gates and
    events, and the weights of its loss. From the moment at which the new run has its name, `--c` leaves them alone,
    also those that are not moved yet. The folder gets its own name last: what a kill has left unfinished is completed
    here by the next start.

    Args:
        folder: the fold's.
        tell: called with a sentence, if anything is moved.

    Raises:
        FolderError: if it cannot be moved; nothing was written over then.
    """
    run, aside = uuid.uuid4().hex, folder / _UNFINISHED
    try:
        old = [folder / name for name in CHECKPOINTS if os.path.lexists(folder / name)]
        if not old and not aside.exists():
            _name_run(folder, run)
            return run
        aside.mkdir(exist_ok=True)
        if not (aside / RUN_FILE).exists():
            # So that everything is as it was when all is moved back.
            _name_run(aside, run_of(folder))
        _name_run(folder, run)
        for path in filter(os.path.lexists, [*old, *(folder / name for name in _ALONG)]):
            if os.path.lexists(aside / path.name):
                raise FileExistsError(f"{aside / path.name} is there already")
            path.rename(aside / path.name)  # within a folder this copies nothing, and so needs no space
        sizes = {path: path.lstat().st_size for path in aside.rglob("*") if not path.is_dir()}
        free = shutil.disk_usage(folder).free
        number = 1
        while os.path.lexists(done := folder / f"earlier_{number}"):
            number += 1
        aside.rename(done)
    except OSError as error:
        raise FolderError(
            f"nnunet_plugins: the files of an earlier training in {folder} could not be moved aside ({error}), and are "
            "not written over. Move them away, or go on from them with --c."
        ) from error
    needed = sum(size for path, size in sizes.items() if path.name in CHECKPOINTS)
    held = _mebibytes(sum(sizes.values()))
    tell(
        f"nnunet_plugins: this training starts anew. What an earlier one had left was moved to {done}, {held}: "
        f"`rm -r '{done}'` deletes it; `mv '{done}'/* '{folder}'` and --c go on with it instead."
    )
    # nnU-Net would have written over them, in the same space.
    if free < needed:
        tell(
            f"WARNING: nnunet_plugins: {_mebibytes(free)} are free, and the checkpoints of the earlier training have "
            f"{_mebibytes(needed)}; the new ones may not fit beside them."
        )
    return run


def _name_run(folder: Path, run: str | None) -> None:
    with whole_file(folder / RUN_FILE) as part:
        part.write_text(json.dumps({"run": run}))


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
