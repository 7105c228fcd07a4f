"""Seg-Grad-CAM: which places of a layer speak for a class, where the network predicts it.

    map = ReLU(sum_c w_c A_c),  w_c = mean over the layer's voxels of d(sum of the class's logits over its own) / dA_c

Vinogradova et al. 2020, "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping"
(AAAI, arXiv:2002.11434), after Selvaraju et al. 2017 (arXiv:1610.02391); computed by captum. The voxels are those where
the network predicts the class in this pass. The weights are means over a layer's map, so that maps of several tiles do
not fit together: a case that does not go through in one pass has the map of one window, around the class.
"""

from functools import partial
from math import prod

import torch
from torch import nn

from nnunet_plugins import memory
from nnunet_plugins.explain.model import Head, Model
from nnunet_plugins.explain.windows import Windows
from nnunet_plugins.forecast import forecast_training
from nnunet_plugins.networks.layers.blocks import INTERPOLATION
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer


def is_predicted(logits: torch.Tensor, channel: int, *, regions: bool) -> torch.Tensor:
    """Return where a class is predicted, `(*size)`, of logits `(heads, *size)`."""
    return logits[channel] > 0 if regions else logits.argmax(dim=0) == channel


def grad_cam(
    network: nn.Module, layer: nn.Module, image: torch.Tensor, channel: int, *, regions: bool, kept: tuple[slice, ...]
) -> torch.Tensor:
    """Return the map `(*size)` of a class, at the size of the image.

    Args:
        network: in evaluation mode; it runs once.
        layer: a module of it whose output is a map.
        image: `(1, channels, *size)`.
        channel: of the logits, the class's.
        regions: whether logits are of regions, each by itself.
        kept: part of the image whose voxels count; the rest is padding.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    def evidence(x: torch.Tensor) -> torch.Tensor:
        # captum keeps the layer's last output: a second pass for the mask would take the first one's from the graph.
        inside = (slice(None), slice(None), *kept)
        logits = network(x)[inside]
        mask = torch.stack([is_predicted(one, channel, regions=regions) for one in logits.detach()])
        return (logits[:, channel].float() * mask).flatten(1).sum(dim=1)

    found = LayerGradCam(evidence, layer).attribute(image, relu_attributions=True)
    axes = image.dim() - 2
    size = tuple(image.shape[2:])
    if found.shape[2:] != size:
        found = LayerAttribution.interpolate(found.float(), size, INTERPOLATION[axes])
    return found.detach().float()[0, 0]


class GradCam:
    """Grad-CAM of a case.

    Args:
        model: the network.
        windows: of the preprocessed image.
        logits: `(heads, z, y, x)` of it.
    """

    def __init__(self, model: Model, windows: Windows, logits: torch.Tensor) -> None:
        self.model, self.windows, self.logits = model, windows, logits
        self.whole = windows.whole and self._fits()

    @property
    def _regions(self) -> bool:
        return bool(self.model.predictor.label_manager.has_regions)

    def mask(self, head: Head) -> torch.Tensor:
        """Return where a class is predicted, `(z, y, x)`."""
        return is_predicted(self.logits, head.channel, regions=self._regions)

    def map(self, head: Head, layer: str) -> torch.Tensor:
        """Return a class's map `(z, y, x)`, 1 at its largest; zeros where no window looks, or nothing speaks for it."""
        mask = self.mask(head)
        try:
            return self._map(mask, head, layer)
        except Exception as error:  # whatever a library raises where memory runs out
            if not (self.whole and memory.is_out_of_memory(error)):
                raise
            self.whole = False
        # Not in the handler: the error holds what the pass had allocated.
        return self._map(mask, head, layer)

    def _map(self, mask: torch.Tensor, head: Head, layer: str) -> torch.Tensor:
        windows, network = self.windows, self.model.network
        module = network.get_submodule(layer)
        found = torch.zeros(windows.image.shape[1:])
        for place in windows.around(mask, whole=self.whole):
            kept = tuple(
                slice(max(inside.start - box.start, 0), max(min(inside.stop, box.stop) - box.start, 0))
                for inside, box in zip(windows.kept[-windows.axes :], place[-windows.axes :], strict=True)
            )
            # In single precision, also on CUDA: in half precision small gradients are zero.
            x = windows.take(place)
            found[place[1:]] = grad_cam(network, module, x, head.channel, regions=self._regions, kept=kept).cpu()
        largest = found.max()
        return (found / largest if largest > 0 else found)[windows.kept[1:]]

    def _fits(self) -> bool:
        """Whether a pass with its gradients fits into memory, by a forecast; no, where that is not possible."""
        predictor, size = self.model.predictor, self.windows.image.shape[-self.windows.axes :]
        if prod(size) <= prod(self.windows.patch):
            return True
        free = getattr(predictor, "free_bytes", lambda: None)()
        if free is None:
            return True
        channels = self.model.patch_shape[1]
        setting = Setting(predictor.plans_manager, predictor.configuration_manager, channels, self.logits.shape[0])
        build = partial(build_network, find_trainer(self.model.trainer), setting, deep_supervision=False)
        device = "cuda" if self.model.device.type == "cuda" else "cpu"
        try:
            forecast = forecast_training(build, (1, channels, *size), autocast=False, device=device, optimizer_copies=0)
        except Exception:  # whatever a foreign network raises, or fake tensors cannot do
            return False
        return forecast.peak_bytes_training <= free
