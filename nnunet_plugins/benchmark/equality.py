"""Prove that trainings ran under equal conditions, or say what was not equal.

Every training of a benchmark leaves `nnunet_plugins_conditions.json` in its fold's folder, with an entry for each time
it was started or gone on with: hashes of the plans, the splits and the preprocessed data, and the environment. The
recipe comes from `recipe.py`.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.protocol import Run
from nnunet_plugins.benchmark.tasks import Folders, data_folder
from nnunet_plugins.files import is_json, write_text

MUST_BE_EQUAL = ("plans", "splits", "data", "epochs", "iterations per epoch", "batch size", "patch size")
"""Runs that differ in these are not compared unless the user says so; other differences are flagged."""

OF_THE_PLAN = ("plans", "data", "batch size", "patch size")
"""What a baseline on a plan of its own may have different."""

UNKNOWN = "unknown"
_PACKAGES = ("nnunet-plugins", "nnunetv2", "torch", "batchgeneratorsv2", "dynamic-network-architectures", "numpy")
_VARIABLES = ("nnUNet_compile", "nnUNet_n_proc_DA")


def hash_json(file: Path, leave_out: Iterable[str] = ()) -> str:
    """Return a hash of what a JSON file says, whatever its layout."""
    content = json.loads(file.read_text())
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in leave_out}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def hash_data(folder: Path, cache: Path) -> str:
    """Return a hash of the preprocessed cases in a folder: names and contents.

    Args:
        folder: of one configuration.
        cache: JSON file with hashes of before; one whose files have the same sizes and times is taken from there.
    """
    # nnU-Net unpacks .npz to .npy beside it when a training begins.
    files = sorted(file for ending in ("b2nd", "npz", "pkl") for file in folder.glob(f"*.{ending}"))
    listing = hashlib.sha256()
    for file in files:
        status = file.stat()
        listing.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    key = f"{folder} {listing.hexdigest()}"
    known = json.loads(cache.read_text()) if is_json(cache) else {}
    if key not in known:
        content = hashlib.blake2b(digest_size=8)
        for file in files:
            content.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as data:
                while block := data.read(2**22):
                    content.update(block)
        known[key] = content.hexdigest()
        write_text(cache, json.dumps(known, indent=1))
    return known[key]


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
    file = conditions_file(folders.fold(run, fold))
    record = json.loads(file.read_text()) if is_json(file) else {"attempts": []}
    folder = folders.preprocessed / run.dataset
    record["attempts"].append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "hashes": {
                "plans": hash_json(folder / f"{run.plans}.json"),
                "splits": hash_json(folder / "splits_final.json"),
                "data": hash_data(
                    data_folder(folder, run.plans, run.configuration), folders.output / "data_hashes.json"
                ),
            },
            "environment": environment(device, variables),
        }
    )
    write_text(file, json.dumps(record, indent=1))


def add_cost(fold: Path, peak_memory: int | None, memory_kind: str) -> None:
    """Add what was measured of a training to its last attempt."""
    file = conditions_file(fold)
    record = json.loads(file.read_text())
    record["attempts"][-1].update(peak_memory_bytes=peak_memory, memory_kind=memory_kind)
    write_text(file, json.dumps(record, indent=1))


def conditions_file(fold: Path) -> Path:
    """Return where the conditions of a training stand."""
    return fold / "nnunet_plugins_conditions.json"


def read_conditions(fold: Path) -> list[dict[str, Any]]:
    """Return a training's attempts; none, if it was not run by a benchmark."""
    file = conditions_file(fold)
    return json.loads(file.read_text())["attempts"] if is_json(file) else []


def prove(runs: Sequence[Run], folds: Sequence[int], folders: Folders, *, accepted: bool) -> dict[str, Any]:
    """Compare the trainings of one dataset and configuration with the first one's, the baseline's.

    Args:
        runs: with the baseline first.
        folds: those that were trained.
        folders: where things lie.
        accepted: the user wants them compared whatever differs.

    Returns:
        what `equality.json` holds for them; see `report/record.py`.
    """
    recipes = {run: _recipe(folders.recipe(run)) for run in runs}
    trainings = [(run, fold) for run in runs for fold in folds if folders.fold(run, fold).is_dir()]
    entries: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    reference: dict[str, str] = {}
    for run, fold in trainings:
        attempts = read_conditions(folders.fold(run, fold))
        hashes = _summary([attempt["hashes"] for attempt in attempts], ("plans", "splits", "data"))
        versions = _summary([attempt["environment"] for attempt in attempts])
        reference = reference or {**hashes, **versions}
        hashes["recipe"] = hashlib.sha256(json.dumps(recipes[run], sort_keys=True).encode()).hexdigest()[:16]
        entries.append({"algorithm": run.algorithm, "fold": fold, "hashes": hashes, "environment": versions})
        found = {**{name: hashes[name] for name in ("plans", "splits", "data")}, **versions}
        differences += [_difference(run, name, value, reference.get(name)) for name, value in found.items()]
    for run in runs[1:]:
        differences += [_difference(run, *parts) for parts in _different_settings(recipes[run], recipes[runs[0]])]
    # Once per algorithm, not per fold.
    unique = {json.dumps(found, sort_keys=True): found for found in differences if found["value"] != found["baseline"]}
    names = ("plans", "splits", "data", "recipe")
    return {
        "dataset": runs[0].dataset,
        "configuration": runs[0].configuration,
        "runs": entries,
        "same": [name for name in names if len({str(entry["hashes"][name]) for entry in entries}) == 1],
        "differences": list(unique.values()),
        "accepted": accepted,
    }


def refused(proof: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the differences for which runs may not stand side by side."""
    return [] if proof["accepted"] else [found for found in proof["differences"] if not found["allowed"]]


def _recipe(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())["recipe"] if is_json(file) else {}


def _summary(attempts: Sequence[Mapping[str, str]], names: Sequence[str] = ()) -> dict[str, str]:
    """Return each entry, where attempts agree in it, or else all its values; unknown without an attempt."""
    values = {name: [UNKNOWN] for name in names} if not attempts else {}
    for attempt in attempts:
        for name, value in attempt.items():
            values.setdefault(name, []).append(value)
    return {name: ", then ".join(dict.fromkeys(found)) for name, found in values.items()}


def _difference(run: Run, what: str, value: Any, baseline: Any) -> dict[str, Any]:
    own = run.role == "own plan" and what in OF_THE_PLAN
    # Trainings from before the benchmark have no record: that is said, and not taken for a difference.
    unknown = UNKNOWN in (value, baseline)
    return {
        "algorithm": run.algorithm,
        "what": what,
        "value": str(value),
        "baseline": str(baseline),
        "allowed": own or unknown or what not in MUST_BE_EQUAL,
    }


def _different_settings(recipe: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the settings that differ, with both values; where an object is another one, its parts are left out."""
    found: list[tuple[str, Any, Any]] = []
    if not recipe or not baseline:
        return found  # it could not be described, which is a failure of its own
    absent = "none"
    for name in sorted({*recipe, *baseline}):
        values = recipe.get(name, absent), baseline.get(name, absent)
        if values[0] != values[1] and not any(name.startswith(f"{other}.") for other, *_ in found):
            found.append((name, *values))
    return found


def hardware() -> list[str]:
    """Describe this machine in a few lines."""
    from nnunet_plugins.benchmark.command import usable_cores

    lines = [f"{platform.system()} {platform.release()}, {platform.machine()}, {usable_cores()} CPU cores usable"]
    if sys.platform == "linux":
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        lines += [models[0].partition(":")[2].strip()] if models else []
    return lines
