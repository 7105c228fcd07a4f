"""What a row of the registry says, and what a network has to keep to so that its row is all it needs.

Loads nothing heavy: rows name networks and recipes by their import paths. Those of a file, which has none, hold the
classes themselves.
"""

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

STOCK_TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class Backbone:
    """One network with its training recipe, under the name that `nnUNetv2_train -tr` takes.

    A network knows torch and not nnU-Net, and keeps to this, which `nnunet_plugins.testing` checks for every row:

    - It is a `torch.nn.Module` with a class method `from_plan(*, input_channels, num_classes, deep_supervision,
      patch_size, strides, kernel_sizes, **options)`, the last three as the plan has them, one stride and kernel per
      stage. Its dimension, 2 or 3, is that of the patch. A patch that does not fit is a ValueError there, before any
      training, which says "<size> voxels ...: axis <k> has <n> and needs at least <m>"; with m voxels along axis k it
      fits, or another axis is named. Patches of 2 voxels per axis are tried.
    - `forward` maps images `(N, input_channels, *size)` to logits `(N, num_classes, *size)`, without a final
      nonlinearity, for any size from a smallest one on.
    - `decoder.deep_supervision` is a bool that nnU-Net sets: if it is True, `forward` returns a list, full size first,
      of as many outputs as the recipe weighs: one, unless the recipe's class attribute `deep_supervision` is True. If
      the outputs' scales are not those of the plan, the recipe is a `trainers.scales.ScalesTrainer`, and the network's
      `output_sizes(size)` tells the size of each. If it is False, `forward` returns the first, or, where
      `decoder.averaged` is True, the mean of all. It changes no parameter, so that a `state_dict` always fits.
    - `decoder.seg_layers` holds all that depends on the number of classes: nnU-Net's `-pretrained_weights` leaves out
      the keys with ".seg_layers." in them, and nothing else. `networks.layers.head.Head` has both, for networks with
      outputs at full size alone.
    - Training gives every parameter a gradient (or several GPUs stop), `torch.compile` finds one graph, maps stay in
      half precision where a GPU has them so and are finite in it, and the same seed makes the same weights.

    It may have a method `gate_values()`, which returns numbers that say how the network is wired at the moment, by
    name; its trainer then keeps them over the epochs.

    For recipes that derive from `trainers.unet.UNetTrainer`, `network` is a function `(unet, patch_size, **options)`
    that changes the U-Net which nnU-Net has built for its plan, and returns it. It refuses a patch that the U-Net's
    strides do not divide, with the words above and "or a multiple of it" (`networks.unet.stage_sizes`).

    A network that is fitted to every image (`fitted`, `networks.implicit.ImplicitNetwork`) takes whole images in the
    plan's patch and no others, is not compiled, computes in single precision, and says itself what memory a training
    step takes (`training_bytes`).

    `pytest tests/test_conformance.py --record-parameters` records the parameters of a new row, and `pytest -m matrix
    --row TRAINER` what nnU-Net's commands do with it; until then they are pending.

    Attributes:
        trainer: the trainer's name; no underscore, and not a name nnU-Net itself has.
        network: import path of the network's class, or of the function that changes the plan's U-Net; or itself.
        recipe: import path of the trainer class that holds the recipe, a `trainers.backbone.BackboneTrainer`; or it.
        summary: one line for tables.
        paper: where the network comes from.
        dimensions: spatial dimensions it works in.
        twin: trainer of the ablation twin, the network to compare it with besides the stock U-Net.
        options: keyword arguments for the network.
        narrow: options besides (or in place of) these that make the network small, for the conformance tests; the
            parameters are counted, and nnU-Net's commands run, with the network as it is.
        fitted: whether the network is fitted to every image, which it therefore has to see as a whole: there is no
            cascade, and in 2D every case has one slice.
    """

    trainer: str
    network: str | Callable[..., Any]
    recipe: str | type
    summary: str
    paper: str
    dimensions: tuple[int, ...]
    twin: str
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    narrow: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    fitted: bool = False


@dataclass(frozen=True)
class Modifier:
    """A suffix of a trainer name, after one underscore.

    Attributes:
        name: the suffix; "<N>" stands for a whole number from 1.
        slot: what it sets. Two modifiers of one slot contradict each other.
        summary: one line for tables.
        piece: import path of the trainer class that does it, whose methods call `super()`; those of earlier rows come
            before it.
        scales: for numbers, trainer attribute to factor: the attribute becomes max(1, round(factor * N)).
        unsupported: what it cannot handle, among "regions" and "an ignore label", of labels, and "networks that are
            fitted to every image".
        most: the largest number, if there is one.
    """

    name: str
    slot: str
    summary: str
    piece: str | None = None
    scales: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    unsupported: tuple[str, ...] = ()
    most: int | None = None


def locate(path: str | Callable[..., Any]) -> Any:
    """Import what a row names by a dotted path; an import that fails inside it shows its own reason."""
    if not isinstance(path, str):
        return path
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def path_of(thing: str | Callable[..., Any]) -> str:
    """Return the import path of a row's network or recipe, for tables and records."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, functools.partial):
        return path_of(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


_SEED = re.compile(r"_([0-9]+)seed(?![^_ ])")


def seed_of(trainer: str) -> str:
    """Return the seed in a trainer's name, as text; nothing if it has none, or is an ensemble's."""
    found = _SEED.findall(trainer)
    return found[0] if found and " + " not in trainer else ""


def count_seeds(trainer: str) -> int:
    """Return how many seeds there are in a trainer's name; more than one is no name of a trainer."""
    return len(_SEED.findall(trainer))


def without_seed(trainer: str) -> str:
    """Return a trainer's name, or an ensemble's, without its seeds: what all repeats of it share."""
    return _SEED.sub("", trainer)
