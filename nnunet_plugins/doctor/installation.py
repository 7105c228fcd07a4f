"""Checks of the installation: what is installed where, and whether nnU-Net finds our trainers."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from nnunet_plugins import __version__, backbones
from nnunet_plugins._startup import OPT_OUT, VARIABLE, listed, opted_out, trainer_folder
from nnunet_plugins.benchmark.command import FOLDERS
from nnunet_plugins.doctor.findings import Check, Finding, ok, problem, warning
from nnunet_plugins.registry import BACKBONES

MINIMUM_NNUNET = (2, 8)
PACKAGES = ("torch", "dynamic-network-architectures", "batchgenerators", "batchgeneratorsv2", "SimpleITK", "numpy")
LOOKUP = (
    "from nnunet_plugins.program import leave_out_working_folder; leave_out_working_folder(); "
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
    f"print('found', find({BACKBONES[0].trainer!r}).__module__)"
)


def _location(package: str) -> str:
    spec = util.find_spec(package)
    return str(Path(spec.origin).parent) if spec and spec.origin else "no folder"


def _nnunet_version() -> tuple[int, int]:
    major, minor = re.findall("[0-9]+", metadata.version("nnunetv2"))[:2]
    return int(major), int(minor)


def _check_packages() -> Iterator[Finding]:
    yield ok(f"Python {sys.version.split()[0]} at {sys.executable}")
    yield ok(f"nnunet-plugins {__version__} in {_location('nnunet_plugins')}")
    try:
        found = _nnunet_version()
    except metadata.PackageNotFoundError:
        yield problem("nnunetv2 is not installed for this Python", "pip install 'nnunetv2>=2.8'")
        return
    yield ok(f"nnunetv2 {metadata.version('nnunetv2')} in {_location('nnunetv2')}")
    wanted = ".".join(map(str, MINIMUM_NNUNET))
    if found < MINIMUM_NNUNET:
        yield problem(
            f"nnunetv2 before {wanted} cannot load trainers from outside its own folder",
            f"pip install --upgrade 'nnunetv2>={wanted}'",
        )
    spec = util.find_spec("nnunetv2")
    if spec is None or spec.origin is None:
        yield problem(
            "nnunetv2 is there as an empty folder only (a namespace package), left over by another installation",
            "remove that folder, then pip install --force-reinstall --no-deps nnunetv2",
        )
    for package in PACKAGES:
        try:
            yield ok(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield problem(f"{package} is not installed", f"pip install {package}")


def _check_devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield problem(f"torch does not import: {error}", "reinstall torch for this machine, see pytorch.org")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield ok(f"device cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield ok("device mps")
    yield ok(f"device cpu: {torch.get_num_threads()} threads")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield warning(
            f"no GPU for torch, which is {build}: training needs '-device cpu' here and is slow",
            "with a GPU in this machine, install its driver and a torch built for it",
        )


def _installed(kind: str) -> list[str]:
    """Where pip puts things of a kind: into the environment, or with `--user` into the user's own folders."""
    user = sysconfig.get_preferred_scheme("user")
    return [str(Path(path).resolve()) for path in (sysconfig.get_path(kind), sysconfig.get_path(kind, user))]


def _check_discovery() -> Iterator[Finding]:
    folder = trainer_folder()
    files = [Path(site) / f"nnunet_plugins.{end}" for site in _installed("purelib") for end in ("pth", "start")]
    startup = [file for file in files if file.is_file()]
    yield ok(f"startup files: {', '.join(map(str, startup)) or 'none beside the other packages'}")
    by_hand = f"export {VARIABLE}=$(nnunet-plugins trainer-path)"
    entries = listed()
    yield ok(f"{VARIABLE} = {os.pathsep.join(entries) or '(not set)'}")
    for entry in entries:
        if not os.path.isdir(entry):
            yield problem(f"{VARIABLE} lists {entry}, which is no folder", f"correct {VARIABLE} where you set it")
    if folder not in entries:
        if opted_out():
            yield problem(f"discovery is switched off by {OPT_OUT}", f"unset {OPT_OUT}, or {by_hand}")
        else:
            yield problem(
                "the startup file did not run, so nnU-Net does not know our trainers",
                f"install nnunet-plugins again (pip install --force-reinstall --no-deps, as at first), or {by_hand}",
            )
    # The proof is nnU-Net's own search in a fresh interpreter, as a user's command would start it.
    search = subprocess.run([sys.executable, "-c", LOOKUP], capture_output=True, text=True, check=False)
    if search.returncode == 0 and "found nnunet_plugins.trainers" in search.stdout:
        yield ok(f"nnU-Net finds {BACKBONES[0].trainer}")
    else:
        last = (search.stderr.strip().splitlines() or ["it found another class of that name"])[-1]
        yield problem(f"nnU-Net does not find {BACKBONES[0].trainer}: {last}", f"mend the points above, or {by_hand}")


def _check_backbones() -> Iterator[Finding]:
    found = backbones.others()
    for source in dict.fromkeys(found.sources.values()):
        trainers = ", ".join(trainer for trainer, other in found.sources.items() if other == source)
        run = f" ({source.place})" if source.distribution else ", a file that is run when names are looked up"
        yield ok(f"{source}{run}: {trainers}")
    for one in found.unusable:
        yield warning(str(one), f"update or uninstall {one.source.distribution or one.source}, or tell whoever made it")
    if not found.sources and not found.unusable:
        yield ok("none but nnunet-plugins' own")


def _check_commands() -> Iterator[Finding]:
    command = shutil.which("nnUNetv2_train")
    if command is None:
        yield problem("nnUNetv2_train is not on PATH", f"activate the environment of {sys.executable}")
    elif str(Path(command).parent.resolve()) not in _installed("scripts"):
        yield problem(
            f"the first nnUNetv2_train on PATH is {command}, which belongs to another Python than {sys.executable}",
            "activate this environment, or install nnunet-plugins into that one",
        )
    else:
        yield ok(f"nnUNetv2_train at {command}")


def check_folders() -> Iterator[Finding]:
    """Check nnU-Net's three folders."""
    for name in FOLDERS:
        value = os.environ.get(name)
        if value is None:
            yield problem(f"{name} is not set", f"export {name}=/path/to/{name}")
        elif not os.path.isdir(value):
            yield problem(f"{name} = {value}, which is no folder", f"mkdir -p {value}, or correct {name}")
        elif not os.access(value, os.W_OK):
            yield problem(f"{name} = {value}, which you may not write to", "choose another folder or ask for access")
        else:
            yield ok(f"{name} = {value} ({shutil.disk_usage(value).free / 2**30:.0f} GiB free)")


def sections() -> dict[str, Check]:
    """Return all checks of the installation."""
    return {
        "Packages": _check_packages,
        "Devices": _check_devices,
        "Discovery": _check_discovery,
        "Backbones of others": _check_backbones,
        "Commands": _check_commands,
        "Folders": check_folders,
    }
