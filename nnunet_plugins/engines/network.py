"""ONNX files in another engine, in the place of the network that nnU-Net's predictor calls."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnunet_plugins.engines.libraries import load_library
from nnunet_plugins.errors import InputError

Run = Callable[[NDArray[Any]], NDArray[Any]]
"""From images `(N, channels, *patch)` to logits `(N, classes, *patch)`."""


class EngineNetwork(nn.Module):
    """The networks of all folds in another engine, on the CPU.

    nnU-Net's predictor loads the weights of a fold and then calls the network. Here the only weight is the number of
    the fold's file, and to load it is to choose that file.

    Args:
        engine: one of `arguments.ENGINES`.
        files: one per fold.

    Raises:
        InputError: if the engine is not installed, or cannot take a file.
    """

    number: torch.Tensor

    def __init__(self, engine: str, files: Sequence[Path]) -> None:
        super().__init__()
        self.runs = [open_file(engine, file) for file in files]
        self.register_buffer("number", torch.zeros((), dtype=torch.long))

    def states(self) -> list[dict[str, torch.Tensor]]:
        """Return what to load for each file."""
        return [{"number": torch.tensor(number)} for number in range(len(self.runs))]

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images `(N, channels, *patch)` to logits `(N, classes, *patch)`, both in single precision."""
        return torch.from_numpy(self.runs[int(self.number)](x.numpy()))


def open_file(engine: str, file: Path) -> Run:
    """Return a function that runs an ONNX file, with as many threads as PyTorch has.

    Args:
        engine: one of `arguments.ENGINES`.
        file: whose numbers are in single or half precision; images and logits of the function are in single precision.

    Raises:
        InputError: if the engine is not installed, or cannot take the file.
    """
    opened = {"onnxruntime": _open_in_onnxruntime, "openvino": _open_in_openvino}[engine]
    library = load_library(engine)
    try:
        return opened(library, file)
    except Exception as error:  # whatever a library raises for a file that it cannot take
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{engine} cannot take {file}: {type(error).__name__}: {reason}") from error


def _open_in_onnxruntime(library: Any, file: Path) -> Run:
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = library.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    kind = np.float16 if image.type == "tensor(float16)" else np.float32

    def run(x: NDArray[Any]) -> NDArray[Any]:
        try:
            (logits,) = session.run(None, {image.name: x.astype(kind, copy=False)})
        except Exception as error:  # none of them is a RuntimeError, as which others know that memory ran out
            raise RuntimeError(f"onnxruntime: {error}") from error
        return np.asarray(logits, np.float32)

    return run


def _open_in_openvino(library: Any, file: Path) -> Run:
    core = library.Core()
    # Left alone, it rounds to bfloat16 on CPUs that are fast at that.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(str(file)), "CPU", options)
    kind, request = compiled.input(0).get_element_type().to_dtype(), compiled.create_infer_request()

    def run(x: NDArray[Any]) -> NDArray[Any]:
        logits = request.infer({0: x.astype(kind, copy=False)})[0]
        return np.array(logits, np.float32)  # a copy: its memory is the request's

    return run
