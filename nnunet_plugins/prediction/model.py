"""The labels of an image at any spacing, by networks that are fitted to it and then know them at every place.

Nothing is resampled but the image, by nnU-Net's preprocessing, as for its own prediction.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from nnunet_plugins import backbones, memory
from nnunet_plugins.datasets.folders import largest_label
from nnunet_plugins.datasets.preprocessed import larger_cases
from nnunet_plugins.errors import InputError
from nnunet_plugins.forecast import format_size
from nnunet_plugins.models.settings import fitting_type
from nnunet_plugins.models.sources import OF_THE_NETWORK, Choice, Source, find_model
from nnunet_plugins.networks.implicit import ImplicitNetwork
from nnunet_plugins.planning.setting import find_trainer
from nnunet_plugins.prediction.grid import blocks, planes_in_patch

AT_A_TIME = 2**15
"""Voxels of a label map whose logits are in memory together."""

READERS = (SimpleITKIO, NibabelIO)
"""nnU-Net's readers that leave the axes as they are, of files that say where their voxels lie."""


def require_implicit(trainer: str) -> None:
    """Check that the networks of a trainer know labels at any place.

    Raises:
        InputError: if they know voxels, or there is no such trainer.
    """
    row = getattr(find_trainer(trainer), "backbone", None)
    if row is None or not row.fitted:
        able = ", ".join(row.trainer for row in backbones.every().values() if row.fitted)
        raise InputError(
            f"{trainer}: labels at any spacing are known to networks of places alone, which are {able}. All others "
            "know voxels: predict with nnUNetv2_predict, at the spacing of the image"
        )


class Model:
    """Networks of one trained configuration, one for each fold, that know labels at any place.

    Args:
        dataset: number or name.
        choice: trainer, configuration and plans.
        folds: numbers, or "all"; their logits are averaged, as nnU-Net does.
        checkpoint: file in each fold.
        device: to compute on.
        trusted: read checkpoints that may run code.

    Raises:
        InputError: if the trainer's networks are of another kind, something is missing or cannot be loaded, or the
            images are read in a way that does not tell where voxels lie.
    """

    def __init__(
        self,
        dataset: str,
        choice: Choice,
        folds: Sequence[str],
        checkpoint: str,
        device: torch.device,
        *,
        trusted: bool = False,
    ) -> None:
        require_implicit(choice.trainer)
        self.dataset, self.device = dataset, device
        self.source = find_model(dataset, choice, folds, checkpoint, trusted=trusted)
        for fold in self.source.folds:
            self.source.weights(fold, OF_THE_NETWORK)  # nnU-Net runs what code there may be in it
        predictor = self._predictor = _load(self.source, device)
        self.reader: BaseReaderWriter = predictor.plans_manager.image_reader_writer_class()
        if type(self.reader) not in READERS:
            able = " and ".join(kind.__name__ for kind in READERS)
            raise InputError(
                f"{self.source.folder / 'plans.json'}: images are read with {type(self.reader).__name__}, which turns "
                f"their axes or does not know where their voxels lie; labels at any spacing can be written with {able} "
                "alone. Predict with nnUNetv2_predict, at the spacing of the image"
            )
        self._networks = [_with_weights(predictor.network, weights, device) for weights in predictor.list_of_parameters]
        largest = largest_label(self.source.dataset_json, self.source.folder / "dataset.json")
        self.type = np.dtype(fitting_type(largest))

    @property
    def ending(self) -> str:
        """Ending of the files that the networks were trained on."""
        return str(self.source.dataset_json["file_ending"])

    @property
    def unknown_axes(self) -> set[int]:
        """Axes of an image `(z, y, x)` along which the networks know no places: across slices, in 2D."""
        p = self._predictor
        return set(p.plans_manager.transpose_forward[: 3 - len(p.configuration_manager.patch_size)])

    def labels(self, image: NDArray[Any], properties: dict[str, Any], size: Sequence[int]) -> NDArray[Any]:
        """Return the labels of an image, on a grid with its extent.

        Args:
            image: `(channels, z, y, x)`, as the reader gives it.
            properties: likewise.
            size: of the grid, `(z, y, x)`.

        Raises:
            InputError: if the patch does not hold the image.
            RuntimeError: if the numbers of a fit are not finite.
        """
        p = self._predictor
        preprocessor = p.configuration_manager.preprocessor_class(verbose=False)
        plan = (p.plans_manager, p.configuration_manager, p.dataset_json)
        data, _, properties = preprocessor.run_case_npy(image, None, dict(properties), *plan)
        patch, resampled = p.configuration_manager.patch_size, data.shape[1:]
        self._require_whole(resampled, patch)
        padded, place = pad_nd_image(torch.from_numpy(data), patch, "constant", {"value": 0}, True)
        order = p.plans_manager.transpose_forward
        planes = [
            planes_in_patch(*of_axis)
            for of_axis in zip(
                (size[axis] for axis in order),
                properties["shape_before_cropping"],
                properties["bbox_used_for_cropping"],
                resampled,
                (part.start for part in place[1:]),
                strict=True,
            )
        ]
        found = np.zeros([size[axis] for axis in order], self.type)
        # What nnU-Net crops away is background.
        kept = found[tuple(one.inside for one in planes)]
        self._decode(padded.reshape(1, len(data), *patch), [one.positions for one in planes], kept)
        return found.transpose(p.plans_manager.transpose_backward)

    def _require_whole(self, shape: Sequence[int], patch: Sequence[int]) -> None:
        if not (larger := larger_cases({"": shape}, patch)):
            return
        if len(patch) == 2 and shape[0] != 1:
            raise InputError(
                f"it has {shape[0]} slices, and the network takes one for the whole: it was trained on images of one "
                "slice. Predict such, or train a 3D configuration"
            )
        choice = self.source.choice
        command = (
            f"nnunet-plugins doctor -d {self.dataset} -tr {choice.trainer} -c {choice.configuration} -p {choice.plans}"
        )
        raise InputError(
            f"resampled it has {larger['']} voxels, more than the patch of {format_size(patch)}, which the network "
            f"takes for the whole. Crop it to what the training images show; {command} -i FOLDER names all that "
            "are larger"
        )

    @torch.no_grad()
    def _decode(self, image: torch.Tensor, positions: Sequence[NDArray[Any]], found: NDArray[Any]) -> None:
        """Fit all networks to an image in its patch, and write the labels at positions in it."""
        image = image.to(self.device)
        # A network that knows places in a slice has no axis across slices.
        axes = len(image.shape[2:])
        voxels = [network.look_at(image) for network in self._networks]
        fits = [network.fit(seen) for network, seen in zip(self._networks, voxels, strict=True)]
        for block in blocks(found.shape, AT_A_TIME):
            along = [
                torch.from_numpy(axis[part]).to(self.device, torch.float32)
                for axis, part in zip(positions[-axes:], block[-axes:], strict=True)
            ]
            folds = zip(self._networks, fits, voxels, strict=True)
            logits = [network.decode(fit, seen, along)[0] for network, fit, seen in folds]
            mean = torch.stack(logits).mean(dim=0).cpu().numpy()
            found[block] = self._predictor.label_manager.convert_logits_to_segmentation(mean)


def _load(source: Source, device: torch.device) -> nnUNetPredictor:
    # nnU-Net prints what it does with which device, and where it looks for trainers.
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=device, allow_tqdm=False)
        try:
            predictor.initialize_from_trained_model_folder(str(source.folder), source.folds, source.checkpoint)
        except Exception as error:  # whatever torch and nnU-Net raise for a file that is damaged, or of something else
            memory.raise_if_lacking(error)
            reason = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"the networks in {source.folder}, folds {', '.join(source.folds)}, cannot be loaded: "
                f"{type(error).__name__}: {reason}"
            ) from error
    return predictor


def _with_weights(network: torch.nn.Module, weights: dict[str, Any], device: torch.device) -> ImplicitNetwork:
    """Return a copy of a network with the weights of a fold."""
    # nnU-Net compiles it where the environment says so; gradient steps leave nothing to compile.
    one: Any = copy.deepcopy(getattr(network, "_orig_mod", network))
    one.load_state_dict(weights)
    found: ImplicitNetwork = one.to(device).eval()
    return found
