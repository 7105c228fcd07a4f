"""Predict one case with all networks of a submission, in one process, with nnU-Net's own functions in its own order.

    image -> [preprocess -> sliding window, all folds -> resample] for each member -> mean -> labels -> post-process

With one member this is `nnUNetv2_predict`; with several, `nnUNetv2_predict --save_probabilities` for each of them,
`nnUNetv2_ensemble` and `nnUNetv2_apply_postprocessing`, but for the files in between and the processes that make them.
"""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from numpy.typing import NDArray

from nnunet_plugins.datasets.folders import largest_label
from nnunet_plugins.datasets.preprocessed import larger_cases
from nnunet_plugins.errors import InputError
from nnunet_plugins.forecast import format_size
from nnunet_plugins.images.recipe import read_recipe
from nnunet_plugins.models.settings import FILE, OUTPUT_TYPES, Member, Settings, fitting_type
from nnunet_plugins.planning.setting import find_trainer, needs_whole_images
from nnunet_plugins.prediction.export import find_labels, make_quick, stock_configuration
from nnunet_plugins.prediction.volumes import preprocess
from nnunet_plugins.prediction.whole_volume import WholeVolumePredictor, make_predictor
from nnunet_plugins.submission.effort import Clock, Effort, Work, efforts

Log = Callable[[str], None]

_UNUSUAL = 3  # times the training images' spacing, or a third of it: worth a word


class Network:
    """A member of the ensemble: nnU-Net's predictor with the weights of all its folds, and its first stage if any.

    Args:
        member: which.
        models: folder with it.
        device: to compute on.
        whole_volume: as in the settings.
    """

    def __init__(self, member: Member, models: Path, device: torch.device, whole_volume: str | None = None) -> None:
        self.member = member
        # nnU-Net prints what it does with which device, and where it looks for trainers.
        with contextlib.redirect_stdout(io.StringIO()):
            self.predictor = make_predictor(whole_volume, device=device, allow_tqdm=False)
            self.predictor.initialize_from_trained_model_folder(
                str(models / member.folder), member.folds, member.checkpoint
            )
        make_quick(self.predictor)
        self.weights = self.predictor.list_of_parameters
        self.needs_whole_images = needs_whole_images(find_trainer(self.predictor.trainer_name))
        self.previous = Network(member.previous, models, device, whole_volume) if member.previous else None

    def predict(
        self,
        image: NDArray[Any],
        properties: dict[str, Any],
        effort: Effort,
        clock: Clock,
        log: Log,
        *,
        probabilities: bool,
    ) -> NDArray[Any]:
        """Return the segmentation `(z, y, x)` of an image `(channels, z, y, x)`, or the probabilities of its labels."""
        before = None
        if self.previous:
            labels = self.previous.predict(image, properties, effort, clock, log, probabilities=False)
            # As it comes out of the file that nnU-Net would have written.
            before = labels[None].astype(np.float32)
        data, properties = preprocess(self.predictor, image, before, properties)
        if self.needs_whole_images:
            shape, patch = tuple(data.shape[1:]), self.predictor.configuration_manager.patch_size
            for size in larger_cases({"": shape}, patch).values():
                log(f"  WARNING: the image has {size} voxels, more than the {format_size(patch)} that are seen whole")
        logits = self._logits(data, effort, clock, log)
        if isinstance(self.predictor, WholeVolumePredictor):
            log(f"  {self.predictor.describe(data.shape[1:])}")
        del data
        p = self.predictor
        if not probabilities:
            return find_labels(p, logits, properties)
        # To the last bit, as a mean of half-precision numbers can be a tie.
        plan = (p.plans_manager, stock_configuration(p.configuration_manager), p.label_manager)
        _, found = convert_predicted_logits_to_segmentation_with_correct_shape(logits.numpy(), *plan, properties, True)
        return found

    @torch.inference_mode()
    def _logits(self, data: torch.Tensor, effort: Effort, clock: Clock, log: Log) -> torch.Tensor:
        """Return the mean of the folds' logits, `(labels, z, y, x)`, in nnU-Net's precision and order of sums."""
        p = self.predictor
        p.use_mirroring, p.tile_step_size = effort.mirroring, effort.step
        total, done = None, 0
        folds = self.weights[: effort.folds]
        for fold, weights in zip(self.member.folds, folds, strict=False):
            begun = time.monotonic()
            p.list_of_parameters = [weights]
            logits = p.predict_logits_from_preprocessed_data(data)
            total, done = logits if total is None else total.add_(logits), done + 1
            log(f"  {self.member.folder}, fold {fold} ({done} of {len(folds)}): {time.monotonic() - begun:.1f} s")
            if done < len(folds) and time.monotonic() - begun > clock.left:
                log("  the time limit leaves out the folds that are left")
                break
        assert total is not None
        return total.div_(done) if done > 1 else total

    def work(self, shape: Sequence[int], spacing: Sequence[float], steps: Sequence[float]) -> list[Work]:
        """Return what an image takes, in each stage, were nothing of it cropped away.

        Args:
            shape: voxels `(z, y, x)`.
            spacing: mm, in the same order.
            steps: of the sliding window.
        """
        p = self.predictor
        order, patch = p.plans_manager.transpose_forward, p.configuration_manager.patch_size
        target = list(p.configuration_manager.spacing)
        old = [spacing[axis] for axis in order]
        new = compute_new_shape([shape[axis] for axis in order], old, [old[0], *target] if len(target) == 2 else target)
        sizes = [max(int(size), least) for size, least in zip(new[-len(patch) :], patch, strict=True)]
        slices = 1 if len(patch) == 3 else int(new[0])
        patches = {
            step: slices * prod(map(len, compute_steps_for_sliding_window(sizes, patch, step))) for step in steps
        }
        flips = 2 ** len(p.allowed_mirroring_axes or ())
        own = Work(len(self.weights), patches, flips, self.seconds_per_patch)
        return [*(self.previous.work(shape, spacing, steps) if self.previous else []), own]

    @cached_property
    def seconds_per_patch(self) -> float:
        """Measured on an empty patch; the first prediction of all warms up."""
        p = self.predictor
        channels = determine_num_input_channels(p.plans_manager, p.configuration_manager, p.dataset_json)
        patch = p.configuration_manager.patch_size
        empty = torch.zeros(channels, *[1] * (3 - len(patch)), *patch)
        p.use_mirroring, p.list_of_parameters = False, self.weights[:1]
        taken = []
        for _ in range(2):
            begun = time.monotonic()
            p.predict_logits_from_preprocessed_data(empty)
            taken.append(time.monotonic() - begun)
        return taken[-1]


def require_fitting_type(settings: Settings, description: dict[str, Any], models: Path) -> None:
    """Check that the labels fit into the type of the segmentations; exports of 0.1.0 wrote uint8, whatever the labels.

    Args:
        settings: they say the type.
        description: what the first network's dataset.json says.
        models: folder with the settings.

    Raises:
        InputError: if they do not fit.
    """
    file, wanted = models / FILE, settings.output_type
    if wanted not in OUTPUT_TYPES:
        raise InputError(f"{file}: 'output_type' is {wanted!r}, which is none of {', '.join(OUTPUT_TYPES)}")
    largest = largest_label(description, models / settings.members[0].folder / "dataset.json")
    if largest > OUTPUT_TYPES[wanted]:
        raise InputError(
            f"{file} wants segmentations of the type {wanted}, in which label {largest} has no room; export the "
            f"submission again, or set 'output_type' to '{fitting_type(largest)}' there"
        )


class Ensemble:
    """All networks of a submission, loaded, and how the images are prepared that they take."""

    def __init__(self, settings: Settings, models: Path, device: torch.device) -> None:
        self.settings = settings
        self.networks = [Network(member, models, device, settings.whole_volume) for member in settings.members]
        first = self.networks[0].predictor
        self.labels = first.plans_manager.get_label_manager(first.dataset_json)
        self.ending = str(first.dataset_json["file_ending"])
        self.recipe = read_recipe(first.dataset_json, models / settings.members[0].folder / "dataset.json")
        require_fitting_type(settings, first.dataset_json, models)

    @cached_property
    def reader(self) -> BaseReaderWriter:
        """nnU-Net's reader of the images that the first network was trained on."""
        return self.networks[0].predictor.plans_manager.image_reader_writer_class()

    @cached_property
    def usual_spacing(self) -> list[float]:
        """Median of the training images, mm, `(z, y, x)`; empty if the plans do not say it."""
        plans = self.networks[0].predictor.plans_manager
        spacing = plans.plans.get("original_median_spacing_after_transp") or []
        return [spacing[axis] for axis in plans.transpose_backward] if spacing else []

    def predict(self, image: NDArray[Any], properties: dict[str, Any], clock: Clock, log: Log) -> NDArray[Any]:
        """Return the segmentation `(z, y, x)` of an image `(channels, z, y, x)`.

        Args:
            image: as the reader gives it.
            properties: likewise.
            clock: the time there is for it; when it is short, less is done.
            log: takes lines for the log.
        """
        for ours, usual in zip(properties["spacing"], self.usual_spacing, strict=False):
            if not 1 / _UNUSUAL < ours / usual < _UNUSUAL:
                shown = " x ".join(f"{size:g}" for size in self.usual_spacing)
                log(f"  WARNING: the spacing is unlike that of the training images, about {shown} mm")
                break
        effort = self._effort(image, properties, clock, log)
        networks = self.networks[: effort.members]
        if len(networks) == 1:
            result = networks[0].predict(image, properties, effort, clock, log, probabilities=False)
        else:
            result = self.labels.convert_probabilities_to_segmentation(
                self._mean(networks, image, properties, effort, clock, log)
            )
        result = np.asarray(result)
        for arguments in self.settings.postprocessing:
            result = remove_all_but_largest_component_from_segmentation(result, **arguments)
        return result

    def _mean(
        self,
        networks: Sequence[Network],
        image: NDArray[Any],
        properties: dict[str, Any],
        effort: Effort,
        clock: Clock,
        log: Log,
    ) -> NDArray[Any]:
        total, done = None, 0
        for network in networks:
            found = network.predict(image, properties, effort, clock, log, probabilities=True)
            total = found.astype(np.float32) if total is None else np.add(total, found, out=total)
            done += 1
            if done < len(networks) and clock.elapsed / done > clock.left:
                log("  the time limit leaves out the networks that are left")
                break
        assert total is not None
        return np.divide(total, done, out=total)

    def _effort(self, image: NDArray[Any], properties: dict[str, Any], clock: Clock, log: Log) -> Effort:
        whole = Effort(self.settings.mirroring, self.settings.step)
        if clock.limit is None:
            return whole
        most = max(len(network.weights) for network in self.networks)
        candidates = efforts(whole, most, len(self.networks))
        steps = {effort.step for effort in candidates}
        work = [network.work(image.shape[1:], properties["spacing"], sorted(steps)) for network in self.networks]
        chosen = clock.choose(candidates, work)
        if chosen != whole:
            log(f"  to keep within {clock.limit:g} s: {chosen}")
        return chosen
