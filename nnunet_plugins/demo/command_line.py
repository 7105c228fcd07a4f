"""`nnunet-plugins demo`: the benchmark on a phantom, in a folder of its own, nnU-Net's three folders included.

Nothing outside that folder is read or written. A run that was interrupted goes on where it was.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import natural, whole
from nnunet_plugins.benchmark import command
from nnunet_plugins.benchmark.protocol import BenchmarkError, Protocol
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, read_json, unfinished, write_text

NETWORKS = ("", "FIRENet", "AutofocusUNet", "ASPP3DUNet")
CONFIGURATION = "3d_fullres"
_SPACE = 1.5  # GB; a finished run takes 0.7, and a training holds one checkpoint more for a while


@dataclass(frozen=True)
class Settings:
    """What the results in a demo folder depend on."""

    epochs: int
    iterations: int
    seed: int


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "demo",
        help="a whole benchmark on a small made-up dataset",
        description="Make a small 3D phantom dataset and run a whole benchmark on it with the stock U-Net, FIRENet, "
        "AutofocusUNet and ASPP3DUNet: plan, preprocess, train, predict, ensemble, evaluate, report. Started again "
        "after an interruption, it goes on where it was. Your own nnU-Net folders are not touched.",
    )
    add_arguments(command)
    command.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to a parser."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("nnunet_plugins_demo"),
        metavar="DIR",
        help="folder for everything the demo makes, nnU-Net's three folders included; default: %(default)s",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    parser.add_argument("--epochs", type=whole, default=4, metavar="N", help="epochs per network; default: %(default)s")
    parser.add_argument(
        "--iterations", type=whole, default=10, metavar="N", help="iterations per epoch; default: %(default)s"
    )
    parser.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="seed of the phantom; nnU-Net's training draws its own random numbers; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo, or the rest of it.

    Args:
        arguments: a namespace with the options of `add_arguments`.

    Returns:
        The exit code: 0 if the demo is complete, 1 after an error, 130 if it was interrupted.
    """
    settings = Settings(arguments.epochs, arguments.iterations, arguments.seed)
    folder = arguments.output.absolute()
    try:
        with command.interruptible():
            _take_folder(folder, settings)
            with hold_lock(folder / "demo.lock") as held:
                if not held:
                    raise BenchmarkError(f"another demo is running in {folder}; wait for it or choose another --output")
                complete = _run(folder, settings, arguments.device)
    except (InputError, OSError) as error:
        print(f"nnunet-plugins demo: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on from here; nothing finished is lost.", flush=True)
        return 130
    return 0 if complete else 1


def _run(folder: Path, settings: Settings, device: str) -> bool:
    # Imported here, when the folders are known: nnU-Net reads its variables when it is imported.
    os.environ.update(_variables(folder))
    from nnunet_plugins.benchmark import driver
    from nnunet_plugins.demo import phantom

    # Eight mirrored passes over every image would take as long as the training.
    suffix = f"_{settings.epochs}epochs_{settings.iterations}iterations_NoMirroring"
    protocol = Protocol(
        datasets=(phantom.DATASET,),
        configurations=(CONFIGURATION,),
        trainers=tuple(f"nnUNetTrainer{network}{suffix}" for network in NETWORKS),
        folds=(0,),
        test=True,
        device=_device(device),
    )
    print(
        f"Demo in {folder}\n{settings.epochs} epochs of {settings.iterations} iterations for each of {len(NETWORKS)} "
        f"networks on {protocol.device}; phantom with seed {settings.seed}.",
        flush=True,
    )
    raw = folder / "nnUNet_raw" / phantom.DATASET
    if not raw.exists():
        part = unfinished(raw)
        shutil.rmtree(part, ignore_errors=True)
        phantom.write_dataset(part, settings.seed)
        part.replace(raw)
    # Two at a time, because half of the demo's time is programs that start.
    slots = 2 if protocol.device == "cpu" and command.usable_cores() > 1 else 1
    complete = driver.run_benchmark(protocol, driver.nnunet_folders(folder / "benchmark"), driver.Place(slots))
    print("So short a training on a phantom shows that everything works, not which network is better.", flush=True)
    return complete


def _variables(folder: Path) -> dict[str, str]:
    """Return the environment, whose three folders lie in `folder` whatever the user has set."""
    variables = {name: str(folder / name) for name in command.FOLDERS}
    variables["nnUNet_wandb_enabled"] = "0"
    # Every worker imports torch; more than a few cost more than they bring.
    workers = str(max(1, min(command.usable_cores() // 2, 4)))
    # Compiling the networks takes longer than the few steps of the demo.
    defaults = {"nnUNet_compile": "f", "nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": workers}
    return {**variables, **{name: os.environ.get(name, value) for name, value in defaults.items()}}


def _device(name: str) -> str:
    """Choose the device for "auto", and check that torch has the one that was asked for."""
    if name == "cpu":
        return name
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise BenchmarkError(f"torch {torch.__version__} sees no {name} device here; use --device cpu or --device auto")
    return name


def _take_folder(folder: Path, settings: Settings) -> None:
    """Make the demo's folder, or find it as the demo has left it.

    Raises:
        BenchmarkError: if it cannot be used.
    """
    record = folder / "demo.json"
    foreign = folder.exists() and not folder.is_dir()
    if foreign or (folder.is_dir() and not record.exists() and any(folder.iterdir())):
        raise BenchmarkError(f"{folder} exists and holds something other than this demo; choose another --output")
    if record.exists():
        _check_settings(record, settings)
    try:
        write_text(record, json.dumps(asdict(settings), indent=2) + "\n")
        for name in command.FOLDERS:
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"cannot write to {folder} ({error.strerror}); choose another --output") from None
    free = shutil.disk_usage(folder).free / 1e9
    if free < _SPACE:
        raise BenchmarkError(
            f"{folder} has {free:.1f} GB free, the demo needs up to {_SPACE} GB; make room there or choose "
            "another --output"
        )


def _check_settings(record: Path, settings: Settings) -> None:
    try:
        stored = read_json(record, dict)
    except InputError as error:
        raise BenchmarkError(f"{error}; remove the folder {record.parent} or choose another --output") from None
    for name, value in asdict(settings).items():
        if stored.get(name) != value:
            raise BenchmarkError(
                f"{record.parent} was made with --{name} {stored.get(name)}, not {value}; go on with "
                f"--{name} {stored.get(name)}, choose another --output or remove that folder"
            )
