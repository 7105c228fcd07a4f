"""A trained network to look into, and which maps it has."""

import contextlib
import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_plugins.errors import InputError
from nnunet_plugins.explain import MAPS
from nnunet_plugins.explain.gates import find_gates
from nnunet_plugins.models.sources import Source
from nnunet_plugins.networks.layers.attention import attending
from nnunet_plugins.planning.setting import needs_whole_images
from nnunet_plugins.prediction.request import Request
from nnunet_plugins.prediction.volumes import load_predictor

_LACKS = {
    "attention": "has no autofocus layer and no attention gate",
    "gates": "has no gates that it could tell, such as those of weighted residual summation (WRS)",
}
_CAPTUM = "Grad-CAM needs captum: pip install 'nnunet-plugins[explain]'"


@dataclass(frozen=True)
class Head:
    """A class that a network segments.

    Attributes:
        name: as dataset.json has it.
        channel: of the logits.
        labels: values of the segmentation that are in it; several for a region.
    """

    name: str
    channel: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A trained network.

    Attributes:
        source: where it comes from; with one fold.
        predictor: nnU-Net's, with the plans.
        network: with its weights, in evaluation mode, on the device.
        heads: its classes but for the background.
        device: to compute on.
    """

    source: Source
    predictor: nnUNetPredictor
    network: nn.Module
    heads: tuple[Head, ...]
    device: torch.device

    @property
    def trainer(self) -> str:
        """Name of its trainer."""
        return self.source.choice.trainer

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape `(1, channels, *patch)` of what the network was trained on."""
        return 1, len(self.source.channels), *self.predictor.configuration_manager.patch_size


@dataclass(frozen=True)
class Wanted:
    """What to show of a network.

    Attributes:
        maps: some of `MAPS`.
        heads: classes to show.
        layers: for Grad-CAM, never empty.
        named: the layers that the user named.
        channels: of the activations of a layer.
        nifti: write maps as NIfTI; else pictures alone.
    """

    maps: tuple[str, ...]
    heads: tuple[Head, ...]
    layers: tuple[str, ...]
    named: tuple[str, ...]
    channels: int
    nifti: bool = True


def load_model(source: Source, device: torch.device, most_bytes: int | None, *, tiles: bool) -> Model:
    """Load the network of a fold.

    Args:
        source: the trained configuration, with one fold.
        device: to compute on.
        most_bytes: that one pass may take; None for most of what is free.
        tiles: nnU-Net's tiles for all cases.

    Raises:
        InputError: if it cannot be loaded, or is of a kind that has no such maps.
    """
    if needs_whole_images(source.trainer):
        raise InputError(
            f"{source.choice.trainer}: its networks are fitted to every image and know places, not feature maps, so "
            "none of these maps exists for them"
        )
    if stage := source.configuration.previous_stage_name:
        raise InputError(
            f"{source.choice.configuration} is a cascade's second stage, whose input is a segmentation besides; look "
            f"into the first one, {stage}"
        )
    # A map is of one pass: mirrored images would each have their own.
    request = Request(whole_volume=None if tiles else "auto", most_bytes=most_bytes, mirroring=False)
    predictor = load_predictor(source, request, device, diverged=True)
    network: nn.Module = getattr(predictor.network, "_orig_mod", predictor.network)
    network.load_state_dict(predictor.list_of_parameters[0])
    return Model(source, predictor, network.to(device).eval(), _heads(predictor, source), device)


def _heads(predictor: nnUNetPredictor, source: Source) -> tuple[Head, ...]:
    manager, names = predictor.label_manager, source.dataset_json["labels"]
    values = {
        name: tuple(map(int, value)) if isinstance(value, list | tuple) else (int(value),)
        for name, value in names.items()
        if name != "ignore"
    }
    foreground = {name: labels for name, labels in values.items() if set(labels) != {0}}
    if manager.has_regions:
        return tuple(Head(name, channel, labels) for channel, (name, labels) in enumerate(foreground.items()))
    return tuple(Head(name, manager.all_labels.index(labels[0]), labels) for name, labels in foreground.items())


def maps_of(network: nn.Module) -> tuple[str, ...]:
    """Return which of `MAPS` a network has."""
    kinds = {"attention": bool(attending(network)), "gates": False}
    with contextlib.suppress(InputError):  # told to who asks for them
        kinds["gates"] = bool(find_gates(network))
    return tuple(name for name in MAPS if kinds.get(name, True))


def settle(
    model: Model,
    maps: Sequence[str] | None,
    classes: Sequence[str],
    layers: Sequence[str],
    channels: int,
    log: Callable[[str], None],
    *,
    without: Sequence[str] = (),
    nifti: bool = True,
) -> Wanted:
    """Return what to show, all that there is by default.

    Args:
        model: to look into.
        maps: some of `MAPS`; None for all that the network has.
        classes: names; empty for all.
        layers: names of modules; empty for those that say most.
        channels: of the activations of a layer.
        log: takes what is left out, and which layer is taken.
        without: some of `MAPS`, not to make by default.
        nifti: write maps as NIfTI.

    Raises:
        InputError: if the network has no such map, class or layer, nothing is left, or a library is missing.
    """
    there = maps_of(model.network)
    if lacking := [name for name in maps or () if name not in there]:
        raise InputError(f"{model.trainer} {_LACKS[lacking[0]]}; it has: {', '.join(there)}")
    chosen = [name for name in there if name in (maps or there) and name not in without]
    if not chosen:
        raise InputError(f"{model.trainer} has {', '.join(there)}, and --without leaves none of them")
    if "gradcam" in chosen and importlib.util.find_spec("captum") is None:
        if maps or chosen == ["gradcam"]:
            raise InputError(_CAPTUM)
        log(f"Left out: {_CAPTUM}")
        chosen.remove("gradcam")
    heads = {head.name: head for head in model.heads}
    if unknown := [name for name in classes if name not in heads]:
        raise InputError(f"there is no class {unknown[0]!r}; {model.source.choice} segments: {', '.join(heads)}")
    default = ""
    if layers or {"gradcam", "activations"} & {*chosen}:
        shapes, default = find_layers(model)
        for name in layers:
            _require_layer(model, name, shapes)
        if not layers:
            log(f"Layer {default}, maps of {'x'.join(map(str, shapes[default][2:]))} voxels for a patch")
    wanted = tuple(heads[name] for name in dict.fromkeys(classes)) or model.heads
    return Wanted(tuple(chosen), wanted, tuple(dict.fromkeys(layers)) or (default,), tuple(layers), channels, nifti)


def _require_layer(model: Model, name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    if name in shapes:
        return
    near = difflib.get_close_matches(name, shapes, 5, 0.4) or list(shapes)[:5]
    reason = "gives no map" if name in dict(model.network.named_modules()) else "does not exist"
    raise InputError(
        f"{model.trainer}: the layer {name!r} {reason}; layers with a map are, for example, {', '.join(near)}"
    )


@torch.no_grad()
def find_layers(model: Model) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return the shape `(1, C, *size)` of each module's map, in the order of their coming, and the layer to look at.

    That is the bottleneck, or where no module is called so the last of the coarsest maps, in the encoder if there is
    one. It sees most of the image, and what it knows goes to all voxels.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() == len(model.patch_shape):
                shapes.pop(name, None)  # a module may be called more than once: the last call counts
                shapes[name] = tuple(output.shape)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in model.network.named_modules() if name]
    try:
        logits = model.network(torch.zeros(model.patch_shape, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    maps = {name: shape for name, shape in shapes.items() if shape != tuple(logits.shape) and prod(shape[2:]) > 1}
    if "bottleneck" in maps:
        return shapes, "bottleneck"
    if not maps:
        return shapes, next(reversed(shapes))
    fewest = min(prod(shape[2:]) for shape in maps.values())
    coarsest = [name for name, shape in maps.items() if prod(shape[2:]) == fewest]
    encoder = [name for name in coarsest if name.startswith("encoder")]
    return shapes, (encoder or coarsest)[-1]
