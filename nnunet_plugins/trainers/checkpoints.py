"""Read checkpoints of nnU-Net without running code that they may hold.

A checkpoint is a pickle, and a pickle can call any function as it is read. Its plans name the classes of the network by
their import paths, so that whoever builds that network calls what they name. Neither happens here unless asked for.
"""

import errno
import pydoc
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import find_fault
from nnunet_plugins.trainers.fitting import weight_fault
from nnunet_plugins.trainers.fold_folder import CHECKPOINTS
from nnunet_plugins.trainers.progress import PROGRESS, Candidate, Progress

# What nnU-Net's checkpoints hold besides tensors and plain Python: the logged figures. The first is the function that
# makes a scalar, whose place in numpy depends on the version that wrote the checkpoint.
_SCALAR = np.float32(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    # "str": names of cases, as NISF's checkpoints had them.
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "str")),
]
_SHAPE: dict[str, Any] = {
    "network_weights": {str: torch.Tensor},
    "init_args": {"plans": {"configurations": {str: dict}}, "configuration": str, "dataset_json": dict},
    "trainer_name": str,
}
_SHAPE_OF_START = {
    "network_weights": {str: torch.Tensor},
    "init_args?": {**_SHAPE["init_args"], "fold?": (int, str)},
    "trainer_name?": str,
}
_PACKAGES = ("torch.nn.", "dynamic_network_architectures.")


class CheckpointError(InputError, ValueError):
    """A checkpoint cannot be written, read or used."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that holds something else than what was written to it, wherever it is read."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that could run code, or that cannot be read without running code."""


def load_checkpoint(path: Path, *, trusted: bool = False, weights_suffice: bool = False) -> dict[str, Any]:
    """Load a checkpoint of nnU-Net onto the CPU.

    Args:
        path: the file.
        trusted: read whatever is in it, and thereby run any code that it holds. Otherwise it may hold tensors, numbers,
            text and containers of these.
        weights_suffice: whether it may hold nothing but weights, which is enough for nnU-Net's `-pretrained_weights`.

    Raises:
        UnsafeCheckpointError: if it holds something else.
        DamagedCheckpointError: if that is sure: by its beginning, its end or its checksums.
        CheckpointError: if it is no checkpoint of nnU-Net, or cannot be read here, say for want of a module.
        OSError: if there is no such file, or it cannot be read.
    """
    checkpoint = _read(path, "is no checkpoint of nnU-Net", trusted=trusted)
    if fault := find_fault(checkpoint, _SHAPE_OF_START if weights_suffice else _SHAPE):
        raise CheckpointError(f"{path} is no checkpoint of nnU-Net: {fault}")
    return checkpoint


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Load a file of weights by name, as PyTorch's `state_dict` is saved, onto the CPU.

    Raises:
        UnsafeCheckpointError: if it holds more than tensors, numbers and text, or cannot be read without running code.
        DamagedCheckpointError: if it is surely damaged.
        CheckpointError: if it holds something else, such as whole numbers or such that are not finite, naming it.
        OSError: if there is no such file, or it cannot be read.
    """
    weights = _read(path, "holds no weights")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds something else than named weights")
    for name, value in weights.items():
        # Counters of batch norms have no axis.
        if value.ndim and (fault := weight_fault(value)):
            raise CheckpointError(f"{path} cannot be used: {name} {fault}")
    return weights


def _read(path: Path, otherwise: str, *, trusted: bool = False) -> Any:
    """Read a file of PyTorch's onto the CPU: tensors, numbers, text and containers of these, unless it is trusted.

    Args:
        path: the file.
        otherwise: what the message says of one that holds something else.
        trusted: read whatever is in it.
    """
    if _is_damaged(path, or_foreign=trusted):
        raise DamagedCheckpointError(f"{path} is damaged: what it holds is not what was written")
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=not trusted)
    except OSError:
        raise
    except Exception as error:  # a pickle that is damaged, or made for it, fails in every way there is
        if trusted:
            raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {_first_line(error)}") from error
        # Torch explains at length how to read the file all the same.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}, which may run code" if found else "it is damaged or something else"
        raise UnsafeCheckpointError(f"{path} {otherwise} that can be read safely: {reason}") from error


def find_checkpoints(folder: Path) -> list[Candidate]:
    """Return what is known of the checkpoints in a fold's folder, which are trusted, as nnU-Net trusts them.

    Args:
        folder: the fold's.
    """
    return [found for name in CHECKPOINTS if (found := _candidate(folder / name))]


def _candidate(path: Path) -> Candidate | None:
    try:
        # nnU-Net reads it in the same way, right after this. To refuse here would be to start afresh.
        checkpoint = load_checkpoint(path, trusted=True)
    except FileNotFoundError:
        return None
    except DamagedCheckpointError as error:
        return Candidate(path, damage=str(error))
    except (OSError, MemoryError, CheckpointError) as error:
        return Candidate(path, obstacle=str(error) if isinstance(error, CheckpointError) else f"{path}: {error!r}")
    if missing := {"optimizer_state", "current_epoch"} - set(checkpoint):
        lacks = " and no ".join(sorted(missing))
        return Candidate(path, obstacle=f"{path} is no training to go on from: it has no {lacks}")
    progress = Progress.from_state(checkpoint["optimizer_state"].get(PROGRESS, {}))
    return Candidate(path, checkpoint["current_epoch"], len(progress.losses), progress.run)


def _is_damaged(path: Path, *, or_foreign: bool) -> bool:
    """Tell whether a file is surely damaged, by the checksums in it, which torch writes but does not read.

    Args:
        path: the file.
        or_foreign: whether it is so, too, if it begins like nothing that torch has ever written.

    Raises:
        OSError: if it cannot be read; what it holds may be good.
        MemoryError: likewise.
    """
    with path.open("rb") as file:
        beginning = file.read(2)
        if beginning != b"PK":
            # The pickles that torch wrote before 1.6 begin so, and have no checksums.
            return or_foreign and beginning[:1] != b"\x80"
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is not None
        except MemoryError:
            raise
        except OSError as error:
            if error.errno == errno.EINVAL:  # to seek to where a damaged number points
                return True
            raise
        except Exception:  # zipfile does nothing but read: all that is left comes of what it has read
            return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def require_known_architecture(configuration: ConfigurationManager, path: Path) -> None:
    """Check that a checkpoint's plans name nothing but network modules of PyTorch and of nnU-Net's architectures.

    Args:
        configuration: of the plans in the checkpoint.
        path: of the checkpoint, for the message.

    Raises:
        UnsafeCheckpointError: if they name anything else; building the network would call it.
    """
    arguments = configuration.network_arch_init_kwargs
    named = [arguments.get(key) for key in configuration.network_arch_init_kwargs_req_import]
    for name in [configuration.network_arch_class_name, *named]:
        # A path below torch.nn can still lead out of it: its modules import others.
        found = pydoc.locate(name) if isinstance(name, str) and name.startswith(_PACKAGES) else None
        if name is not None and not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise UnsafeCheckpointError(
                f"{path} cannot be used safely: its plans build the network with {name!r}, which is no module of "
                "PyTorch or of nnU-Net's architectures and may run code"
            )
