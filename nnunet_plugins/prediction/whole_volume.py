"""A case in one pass of the network, at the case's own size, where nnU-Net cuts it into tiles.

    image -> [zeros at the far end, for networks that need multiples] -> network, mirrored as ever -> logits

nnU-Net's predictor with one method changed. The network is the one that was trained: it is built for the patch of its
own plan, whatever the size of the image. Plans with a larger patch would not do. Networks of a fixed depth continue a
plan's stages by its patch (`networks.topology.extend_stages`), so that the weights fit and the network is another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.helpers import dummy_context, empty_cache
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn
from torch.nn import functional

from nnunet_plugins import memory
from nnunet_plugins.errors import InputError
from nnunet_plugins.forecast import COMFORTABLE, fake_tensors, forecast_inference, format_bytes, format_size
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer, needs_whole_images


@dataclass(frozen=True)
class Way:
    """How images of one size are predicted.

    Attributes:
        size: of the pass, padding included, along the network's axes; None for tiles.
        reason: why there are tiles.
    """

    size: tuple[int, ...] | None
    reason: str = ""


def make_predictor(whole_volume: str | None, most_bytes: int | None = None, **options: Any) -> nnUNetPredictor:
    """Return a predictor for one pass over each case, or nnU-Net's own.

    Args:
        whole_volume: how cases go in one pass, as in `WholeVolumePredictor`; None for tiles.
        most_bytes: as there.
        options: nnUNetPredictor's.
    """
    if whole_volume is None:
        return nnUNetPredictor(**options)
    return WholeVolumePredictor(whole_volume, most_bytes, **options)


class WholeVolumePredictor(nnUNetPredictor):
    """nnU-Net's predictor, with one pass for a case where that is possible, and nnU-Net's tiles elsewhere.

    In 2D the slices of a case are a batch, or several of the plan's size. Logits stay as the network gives them, in
    single precision on the CPU; those of tiles are added up in half precision.

    Args:
        mode: one of `arguments.WHOLE_VOLUME`.
        most_bytes: that a pass may take, for "auto"; None for most of what is free.
        options: nnUNetPredictor's.
    """

    network: Any

    def __init__(self, mode: str = "always", most_bytes: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.mode, self.most_bytes = mode, most_bytes
        # Images of one size are treated alike, and with all folds.
        self._ways: dict[tuple[int, ...], Way] = {}

    def way(self, size: Sequence[int]) -> Way:
        """Return how images of a size `(z, y, x)` are predicted, after preprocessing."""
        key = tuple(size)
        if key not in self._ways:
            self._ways[key] = self._choose(key)
        return self._ways[key]

    def describe(self, size: Sequence[int]) -> str:
        """Say how images of a size `(z, y, x)` are predicted."""
        way, shown = self.way(size), f"{format_size(size)} voxels"
        if way.size is None:
            return f"{shown} in tiles: {way.reason}"
        padded = "" if way.size == tuple(size[-len(way.size) :]) else f", padded to {format_size(way.size)}"
        return f"{shown} in one pass{padded}"

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Return the logits `(classes, z, y, x)` of a preprocessed image `(channels, z, y, x)`, of one fold.

        Raises:
            RuntimeError: if they are not finite.
        """
        size = tuple(input_image.shape[1:])
        if (chosen := self.way(size).size) is not None:
            try:
                return self._in_one_pass(input_image, chosen)
            except Exception as error:  # whatever a library raises where memory runs out
                if not memory.is_out_of_memory(error):
                    raise
                self._ways[size] = Way(None, f"memory ran out in one pass ({type(error).__name__})")
            # Not in the handler: the error holds what the pass had allocated.
            empty_cache(self.device)
        return torch.as_tensor(super().predict_sliding_window_return_logits(input_image))

    @torch.inference_mode()
    def _in_one_pass(self, image: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
        self.network = self.network.to(self.device).eval()
        axes = len(chosen)
        # In 2D slices are images.
        images = image[None] if axes == 3 else image.transpose(0, 1)
        own = images.shape[2:]
        far_end = [width for n, new in zip(reversed(own), reversed(chosen), strict=True) for width in (0, new - n)]
        kept = (..., *(slice(n) for n in own))
        parts = []
        # As nnU-Net does: mixed precision on CUDA, and none elsewhere.
        with torch.autocast("cuda") if self.device.type == "cuda" else dummy_context():
            for batch in images.split(self._at_a_time):
                padded = functional.pad(batch.to(self.device), far_end)
                logits = self._internal_maybe_mirror_and_predict(padded)
                parts.append(logits[kept].to("cpu"))
        found = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not torch.isfinite(found).all():
            raise RuntimeError("the network's logits are not finite")
        return found[0] if axes == 3 else found.transpose(0, 1)

    @property
    def _at_a_time(self) -> int:
        """Images in one pass: the batch is what the plan is made for."""
        return 1 if len(self.configuration_manager.patch_size) == 3 else self.configuration_manager.batch_size

    def _choose(self, size: Sequence[int]) -> Way:
        own = size[-len(self.configuration_manager.patch_size) :]
        network = getattr(self.network, "_orig_mod", self.network)
        try:
            chosen = size_of_pass(network, own)
            if self.mode == "always" and _tells_its_sizes(network):
                return Way(chosen)
            # Outside of inference mode, in which no network can be built that is to be followed.
            with torch.inference_mode(False):
                needed = self._forecast(chosen)
        except (ValueError, InputError) as error:
            return Way(None, str(error))
        except Exception as error:  # whatever a foreign network raises for a size, or fake tensors cannot do
            reason = " ".join(str(error).split())[:200]
            return Way(None, f"a pass of {format_size(own)} voxels is not possible: {type(error).__name__}: {reason}")
        if self.device.type == "cpu" and len(self.list_of_parameters or ()) > 1:
            needed += 4 * self.label_manager.num_segmentation_heads * prod(size)  # the folds before, added up
        free = self.free_bytes()
        if self.mode == "auto" and free is not None and needed > free:
            return Way(None, f"one pass takes {format_bytes(needed)} of memory, and {format_bytes(free)} are there")
        return Way(chosen)

    def _forecast(self, size: Sequence[int]) -> int:
        """Return the most bytes of a pass, mirrored or not, without taking any."""
        plan = (self.plans_manager, self.configuration_manager)
        channels = determine_num_input_channels(*plan, self.dataset_json)
        setting = Setting(*plan, channels, self.label_manager.num_segmentation_heads)
        device = "cuda" if self.device.type == "cuda" else "cpu"
        with fake_tensors(), torch.device(device):
            network = build_network(find_trainer(self.trainer_name), setting, deep_supervision=False).eval()
            one = _Pass(network, mirrored=self.use_mirroring and bool(self.allowed_mirroring_axes))
            return forecast_inference(one, (self._at_a_time, channels, *size), autocast=device == "cuda")

    def free_bytes(self) -> int | None:
        """Return how much memory a pass may take; None if nobody knows."""
        if self.most_bytes is not None:
            return self.most_bytes
        free = memory.available_bytes()
        if self.device.type == "cuda":
            reserved = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free = torch.cuda.mem_get_info(self.device)[0] + reserved
        return None if free is None else int(COMFORTABLE * free)


class _Pass(nn.Module):
    """A network as nnU-Net's predictor calls it: once, or with the logits of mirrored images added to the first ones.

    After the first mirrored image no other takes more.
    """

    def __init__(self, network: nn.Module, *, mirrored: bool) -> None:
        super().__init__()
        self.network, self.mirrored = network, mirrored

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x)
        if logits.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"the network gives {format_size(logits.shape[2:])} voxels for an image of {format_size(x.shape[2:])}"
            )
        if self.mirrored:
            logits += torch.flip(self.network(torch.flip(x, [2])), [2])
        return logits


def size_of_pass(network: Any, size: Sequence[int]) -> tuple[int, ...]:
    """Return the size to which an image is padded so that a network takes it as a whole.

    nnU-Net's U-Nets, also with blocks of ours, take multiples of their strides. Networks with `check_size` are asked,
    and all others are taken to pad by themselves.

    Args:
        network: built for the plan that it was trained with.
        size: of the image, along the network's axes.

    Raises:
        ValueError: if the image is too small.
    """
    if check := getattr(network, "check_size", None):
        check(size)
        return tuple(size)
    multiples = _multiples(network, len(size))
    padded = tuple(-(-n // multiple) * multiple for n, multiple in zip(size, multiples, strict=True))
    if prod(multiples) > 1 and padded == multiples:
        raise ValueError(
            f"an image of {format_size(size)} voxels is too small, it leaves no more than one voxel at the coarsest "
            "scale, over which instance norm has no statistics"
        )
    return padded


def _multiples(network: Any, axes: int) -> tuple[int, ...]:
    """Return what a network of nnU-Net's takes multiples of, along each axis; 1 where nobody tells."""
    strides = getattr(getattr(network, "encoder", None), "strides", None) or [(1,) * axes]
    return tuple(prod(along) for along in zip(*strides, strict=True))


def _tells_its_sizes(network: Any) -> bool:
    return hasattr(network, "check_size") or hasattr(getattr(network, "encoder", None), "strides")


def require_any_size(trainer: str) -> None:
    """Check that the networks of a trainer take images of other sizes than the plan's patch.

    Raises:
        InputError: if they do not, or there is no such trainer.
    """
    if needs_whole_images(find_trainer(trainer)):
        raise InputError(
            f"{trainer}: its networks take a patch of the plan's size for the whole image, and no other. Leave out "
            "--whole-volume; nnunet-plugins plan --cover makes plans whose patch holds every image"
        )
