"""The libraries of the extras, imported where they are used."""

import importlib
from typing import Any

from nnunet_plugins.errors import InputError

_EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx", "openvino": "openvino"}


def load_library(name: str) -> Any:
    """Import a library that an extra brings.

    Raises:
        InputError: if it is not there, or cannot be loaded.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed, or cannot be loaded ({error}); pip install 'nnunet-plugins[{_EXTRAS[name]}]'"
        ) from error
