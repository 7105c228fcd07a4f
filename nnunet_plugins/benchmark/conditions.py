"""What a training ran under and what it cost: a record that every start of it leaves in its fold's folder.

`nnunet_plugins_conditions.json` has an entry for each time the training was started or gone on with: hashes of the
plans, the splits, the preprocessed data and the recipe, the description of the trainer (`recipe.py`), the environment,
what was measured, and the identity of the final checkpoint, by which it is seen whose record it is.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.command import usable_cores
from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.benchmark.training_log import log_began, log_files
from nnunet_plugins.datasets.preprocessed import data_folder
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import is_json, read_data, read_json, write_text
from nnunet_plugins.provenance import Ledger
from nnunet_plugins.report.equality import WITH_SEED
from nnunet_plugins.trainers.fold_folder import CHECKPOINTS

_PACKAGES = ("nnunet-plugins", "nnunetv2", "torch", "batchgeneratorsv2", "dynamic-network-architectures", "numpy")
_VARIABLES = ("nnUNet_compile", "nnUNet_n_proc_DA")


def hash_json(file: Path) -> str:
    """Return a hash of what a JSON file says, whatever its layout."""
    return hash_content(json.loads(file.read_text(encoding="utf-8")))


def hash_content(content: Any, leave_out: Iterable[str] = ()) -> str:
    """Return a hash of what a JSON file would say."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in leave_out}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return a hash of a recipe, which is the same for all repeats of it, and without a seed."""
    return hash_content(recipe, WITH_SEED)


def present_hashes(folders: Folders, run: Run) -> dict[str, str]:
    """Return hashes of what a training of a run would be trained on now."""
    folder = folders.preprocessed / run.dataset
    data = data_folder(folder, run.plans, run.configuration)
    return {
        "plans": hash_json(folder / f"{run.plans}.json"),
        "splits": hash_json(folder / "splits_final.json"),
        "data": hash_data(data, folders.output / "data_hashes.json"),
    }


def hash_data(folder: Path, cache: Path) -> str:
    """Return a hash of the preprocessed cases in a folder: names, arrays and properties.

    Preprocessing packs the same arrays into other bytes each time, so it is what they hold that counts, and not how.

    Args:
        folder: of one configuration.
        cache: JSON file with hashes of before; one whose files have the same sizes and times is taken from there.

    Raises:
        InputError: if a file cannot be read.
    """
    return _remembered(folder, cache, "contents", _contents)


def hash_files(folder: Path, cache: Path) -> str:
    """Return a hash of the preprocessed cases in a folder as it was taken before version 0.2.0: of their bytes."""
    return _remembered(folder, cache, "", _bytes)


def _remembered(folder: Path, cache: Path, kind: str, parts: Callable[[Path], Iterable[bytes]]) -> str:
    """Return a hash of all preprocessed files in a folder, each of which is hashed in parts."""
    # nnU-Net unpacks .npz to .npy beside it when a training begins.
    files = sorted(file for ending in ("b2nd", "npz", "pkl") for file in folder.glob(f"*.{ending}"))
    listing = hashlib.sha256()
    for file in files:
        status = file.stat()
        listing.update(f"{file.name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    key = f"{kind} {folder} {listing.hexdigest()}".lstrip()
    known = json.loads(cache.read_text(encoding="utf-8")) if is_json(cache) else {}
    if key not in known:
        content = hashlib.blake2b(digest_size=8)
        for file in files:
            for part in parts(file):
                content.update(part)
        known[key] = content.hexdigest()
        write_text(cache, json.dumps(known, indent=1))
    return str(known[key])


def _bytes(file: Path) -> Iterator[bytes]:
    yield f"{file.name} {file.stat().st_size}\n".encode()
    with file.open("rb") as data:
        while block := data.read(2**22):
            yield block


def _contents(file: Path) -> Iterator[bytes]:
    import blosc2
    import numpy as np

    content: Any
    if file.suffix == ".pkl":
        try:
            content = read_data(file)
        except Exception:  # it holds more than data, or is broken: then its bytes count
            content = file.read_bytes().hex()
    else:
        try:
            content = blosc2.open(str(file), mode="r")[:] if file.suffix == ".b2nd" else dict(np.load(file))
        except Exception as error:  # whatever the libraries raise for a file that is broken
            raise InputError(f"{file} cannot be read, preprocess the dataset again: {error}") from error
    yield f"{file.name}\n".encode()
    yield from _told(content)


def _told(content: Any) -> Iterator[bytes]:
    """Yield what arrays and containers of them hold, whatever version of numpy has written them."""
    import numpy as np

    if isinstance(content, Mapping):
        yield f"{len(content)} of\n".encode()
        for key in sorted(content, key=str):
            yield f"{key}\n".encode()
            yield from _told(content[key])
    elif isinstance(content, list | tuple):
        yield f"{len(content)} of\n".encode()
        for part in content:
            yield from _told(part)
    elif isinstance(content, np.ndarray) and not content.dtype.hasobject:
        yield f"{content.dtype.str} {content.shape}\n".encode()
        yield content.tobytes()
    else:
        one = content.item() if isinstance(content, np.generic) else content
        yield f"{one!r}\n".encode()


def in_present_terms(hashed: str, folders: Folders, run: Run) -> str:
    """Return the present hash of a run's data, if `hashed` is what versions before 0.2.0 took of them; else `hashed`.

    Raises:
        InputError: if the data cannot be read.
        OSError: if they are not there.
    """
    data = data_folder(folders.preprocessed / run.dataset, run.plans, run.configuration)
    cache = folders.output / "data_hashes.json"
    return hash_data(data, cache) if hashed == hash_files(data, cache) else hashed


def environment(device: str, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return versions, variables and the device that trainings depend on."""
    import torch

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["device"] = device
    if device == "cuda" and torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["CUDA"], found["cuDNN"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    elif device == "cpu":
        found["device"] = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    return {**found, **{name: variables.get(name, "not set") for name in _VARIABLES}}


def write_conditions(folders: Folders, run: Run, fold: int, device: str, variables: Mapping[str, str]) -> None:
    """Add the present conditions to a training's record; called on the machine where it is about to run.

    Args:
        folders: where things lie.
        run: the training's.
        fold: the training's.
        device: torch device type.
        variables: the environment that the training gets.
    """
    folder = folders.fold(run, fold)
    attempts: list[dict[str, Any]] = []
    if is_begun(folder):
        # What was trained without a record remains unknown, whatever follows.
        attempts = read_conditions(folder, folders.ledger) or [{"hashes": {}, "environment": {}}]
    description = read_json(folders.recipe(run), {"recipe": dict})
    attempts.append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hashes": {**present_hashes(folders, run), "recipe": recipe_hash(description["recipe"])},
            "environment": environment(device, variables),
            "description": description,
        }
    )
    write_text(conditions_file(folder), json.dumps({"attempts": attempts}, indent=1))


def end_attempt(fold: Path, cost: Mapping[str, Any]) -> None:
    """Add to the last attempt of a training what was measured, and which final checkpoint is there."""
    file = conditions_file(fold)
    record = json.loads(file.read_text(encoding="utf-8"))
    checkpoint = fold / CHECKPOINTS[0]
    known = {"checkpoint": Ledger({}).identity(checkpoint)} if checkpoint.is_file() else {}
    record["attempts"][-1].update({**cost, **known})
    write_text(file, json.dumps(record, indent=1))


def is_begun(fold: Path) -> bool:
    """Tell whether a training has a checkpoint to go on from."""
    return any((fold / name).is_file() for name in CHECKPOINTS)


def conditions_file(fold: Path) -> Path:
    """Return where the conditions of a training stand."""
    return fold / "nnunet_plugins_conditions.json"


def read_conditions(fold: Path, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the attempts of the training that is there; none, if it was not run by a benchmark.

    Args:
        fold: its folder.
        ledger: knows the checkpoint.
    """
    file, checkpoint = conditions_file(fold), fold / CHECKPOINTS[0]
    if not is_json(file):
        return []
    attempts: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["attempts"]
    if attempts and checkpoint.is_file():
        if "checkpoint" in attempts[-1]:
            fits = attempts[-1]["checkpoint"] == ledger.identity(checkpoint)
        else:  # the attempt was killed, or was version 0.1.0's
            fits = _starts_since(fold, attempts[-1]) <= 1
        if not fits:
            return []  # somebody has trained here since
    return attempts


def _starts_since(fold: Path, attempt: Mapping[str, Any]) -> int:
    """Return how often a training was started since an attempt began, its own start included, by nnU-Net's logs."""
    if "started" not in attempt:
        return 0
    began = datetime.strptime(attempt["started"], "%Y-%m-%dT%H:%M:%S%z").astimezone().replace(tzinfo=None)
    return sum(log_began(log) >= began for log in log_files(fold))


def hardware() -> list[str]:
    """Describe this machine in a few lines."""
    cores = usable_cores()
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    lines = [f"{system}, {cores} usable CPU core{'s' * (cores > 1)}"]
    if sys.platform == "linux":
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        lines += [models[0].partition(":")[2].strip()] if models else []
    return lines
