"""A trained network as an ONNX file, compared with PyTorch before it is put into its place."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_plugins.engines.libraries import load_library
from nnunet_plugins.engines.network import open_file
from nnunet_plugins.engines.origin import origin_of, versions, write_origin
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import whole_file
from nnunet_plugins.forecast import format_size
from nnunet_plugins.models.sources import OF_THE_NETWORK, Source
from nnunet_plugins.networks.layers.device import compute_as_on

OPSET = 18
"""Version of ONNX's operators: the one that PyTorch's exporter is written for."""

TOLERANCE = 1e-4
"""How far logits in single precision may be off, as a part of the largest, or of 1 if that is larger."""


def require_exportable(trainer: type[nnUNetTrainer]) -> None:
    """Check that a trainer's network is one pass over an image.

    Raises:
        InputError: if it is fitted to every image.
    """
    if getattr(getattr(trainer, "backbone", None), "fitted", False):
        raise InputError(
            f"{trainer.__name__} cannot be exported: its network is fitted to every image by steps along a gradient, "
            "and an ONNX file computes forward alone. Predict with nnUNetv2_predict"
        )


def export_fold(source: Source, fold: str, file: Path, log: Callable[[str], None], *, half: bool = False) -> None:
    """Write the network of a fold to an ONNX file, for any number of images of the patch's size at a time.

    Nothing is written unless onnxruntime computes from the file what PyTorch does.

    Args:
        source: the trained configuration.
        fold: number, or "all".
        file: to write.
        log: takes lines.
        half: whether weights, images and logits are in half precision.

    Raises:
        InputError: if a library is missing, the checkpoint or the network cannot be used, the results differ, or the
            file cannot be written.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):  # before anything is computed
        load_library(name)
    _require_place(file)
    network, origin = network_of(source, fold), {**origin_of(source, fold), **versions()}
    manager = PlansManager(source.plans)
    channels = determine_num_input_channels(manager, source.configuration, source.dataset_json)
    # Two, so that not one is taken for the only number there is. Noise is what normalised images are scaled like.
    shape = (2, channels, *source.configuration.patch_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = make_model(network, images, half=half)
    write_origin(model, origin)
    require_types(model, half=half)
    try:
        content = model.SerializeToString()
    except Exception as error:  # protobuf's own, of more than 2 GiB
        raise InputError("the network cannot be exported: it has more than the 2 GiB that a file holds") from error
    try:
        with whole_file(file) as part:
            part.write_bytes(content)
            said = compare(network, part, images, manager.get_label_manager(source.dataset_json), half=half)
    except OSError as error:  # on a full disk it names no file
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error
    kind = "half" if half else "single"
    log(
        f"{file}: opset {OPSET}, {kind} precision, {len(content) / 2**20:.1f} MiB; channels {channels}, patch "
        f"{format_size(source.configuration.patch_size)}, any number of images at a time"
    )
    log(f"  onnxruntime and PyTorch, {len(images)} images of noise: {said}")


def _require_place(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InputError(
            f"{file.parent} cannot be written to: {error.strerror}. Name a file elsewhere with -o, and with --onnx to "
            "predict from it"
        ) from error


def network_of(source: Source, fold: str) -> nn.Module:
    """Return the network of a fold, with its weights.

    Raises:
        InputError: as `Source.weights`.
    """
    source.weights(fold, OF_THE_NETWORK)  # which loads them into the network
    return source.network.eval()


def make_model(network: nn.Module, images: torch.Tensor, *, half: bool = False) -> Any:
    """Return a network as an ONNX model, an `onnx.ModelProto`, from "image" to "logits", of any number of images.

    Args:
        network: in evaluation mode.
        images: two of the size that it takes.
        half: as in `export_fold`.

    Raises:
        InputError: if PyTorch's exporter cannot follow it.
    """
    if half:
        network, images = copy.deepcopy(network).half(), images.half()
    options: dict[str, Any] = {
        "dynamo": True,
        "opset_version": OPSET,
        "input_names": ["image"],
        "output_names": ["logits"],
        "dynamic_shapes": ({0: torch.export.Dim("batch")},),
        "verbose": False,
    }
    try:
        # Our own operators, for CPUs and for GPUs, are no engine's; and nothing is to be computed twice.
        with torch.no_grad(), compute_as_on("onnx"):
            program = torch.onnx.export(network, (images,), **options)
    except Exception as error:  # whatever it raises; what it wraps tells more than its own explanations
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise InputError(f"the network cannot be exported: {type(cause).__name__}: {reason}") from error
    assert program is not None
    model = program.model_proto
    # Where in which file of this machine each operation was written; nobody else needs to know.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    return model


def require_types(model: Any, *, half: bool) -> None:
    """Check that weights, images and logits of a model have the precision that is asked for.

    Raises:
        InputError: naming one that has another.
    """
    kinds = load_library("onnx").TensorProto
    floats = {kinds.FLOAT: "single", kinds.FLOAT16: "half", kinds.DOUBLE: "double", kinds.BFLOAT16: "bfloat16"}
    # Single numbers, such as the epsilon of a norm, have the type that their operator wants.
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer if tensor.dims}
    found |= {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    wanted = kinds.FLOAT16 if half else kinds.FLOAT
    if others := [name for name, kind in found.items() if kind in floats and kind != wanted]:
        raise InputError(
            f"the network cannot be exported in {floats[wanted]} precision: {others[0]} is in "
            f"{floats[found[others[0]]]} precision, as {len(others)} of {len(found)} tensors"
        )


def compare(network: nn.Module, file: Path, images: torch.Tensor, labels: LabelManager, *, half: bool = False) -> str:
    """Compare what onnxruntime computes from a file with PyTorch in single precision; returns what there is to say.

    Args:
        network: in evaluation mode, in single precision.
        file: of it.
        images: `(N, channels, *patch)`.
        labels: which tells what logits mean.
        half: whether the file is in half precision, so that its logits are expected to be others.

    Raises:
        InputError: if they differ by more than `TOLERANCE`, or are not finite.
    """
    found = torch.from_numpy(open_file("onnxruntime", file)(images.numpy()))
    with torch.no_grad():
        expected = torch.cat([network(image) for image in images.split(1)])
    if not torch.isfinite(found).all():
        raise InputError("what onnxruntime computes from the exported network is not finite; nothing was written")
    worst, scale = float((found - expected).abs().max()), max(1.0, float(expected.abs().max()))
    if not half and worst > TOLERANCE * scale:
        raise InputError(
            f"what onnxruntime computes from the exported network is off by {worst:.2g}, where logits go up to "
            f"{scale:.2g}; nothing was written"
        )
    pairs = zip(found, expected, strict=True)
    different = sum(
        int((labels.convert_logits_to_segmentation(one) != labels.convert_logits_to_segmentation(other)).sum())
        for one, other in pairs
    )
    return f"logits differ by {worst:.2g} at most, labels in {different} of {expected[:, 0].numel()} voxels"
