"""`nnunet-plugins plan --normalisation`: a copy of existing plans with another scheme of nnU-Net's for its images.

nnU-Net looks schemes up in its own package, in training and in prediction, so there are its five and no others. Which
one a channel gets follows from its name in dataset.json; here it is chosen, with preprocessed data of its own.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.files import read_json
from nnunet_plugins.planning.dataset import DATASET, PlanError, load_plans, preprocessed_folder, save_plans

SCHEMES = {scheme.__name__: scheme for scheme in channel_name_to_normalization_mapping.values()}
"""nnU-Net's schemes by the names that plans have."""

_CLIPPING, _COLOURS = "CTNormalization", "RGBTo01Normalization"
_STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")  # that clipping takes of the fingerprint
_LARGEST_COLOUR = 255
_CROPPED = 3 / 4  # of the images' size; where nnU-Net's planner leaves more, statistics are those of the whole image
_SUFFIX = "Normalization"


@dataclass(frozen=True)
class NormalisedPlans:
    """What `normalised_plans` wrote.

    Attributes:
        dataset: full name.
        name: of the plans.
        file: that holds them.
        configurations: all of them.
        schemes: by channel, its name and its scheme before and now.
    """

    dataset: str
    name: str
    file: Path
    configurations: list[str]
    schemes: list[tuple[str, str, str]]


def find_scheme(name: str) -> str:
    """Return the full name of a scheme, which may be given in any case and without "Normalization" at its end.

    Raises:
        PlanError: if nnU-Net has none of that name.
    """
    full = {one.casefold(): one for one in SCHEMES}
    found = full.get(name.casefold()) or full.get(f"{name}{_SUFFIX}".casefold())
    if found is None:
        raise PlanError(f"{name!r} is no normalisation of nnU-Net's, which has {', '.join(SCHEMES)}")
    return found


def planned_schemes(description: Mapping[str, Any]) -> list[str]:
    """Return the schemes that nnU-Net's planner takes for the channels of a dataset.json."""
    return [get_normalization_scheme(name).__name__ for name in channel_names(description)]


def channel_names(description: Mapping[str, Any]) -> list[str]:
    """Return the names of the channels in a dataset.json, in their order."""
    names = description.get("channel_names") or description.get("modality") or {}
    return [names[key] for key in sorted(names, key=int)]


def choose_channels(wanted: Sequence[int], names: Sequence[str]) -> list[int]:
    """Return channels, each once and in order: those that are wanted, or all.

    Args:
        wanted: their numbers, or none.
        names: of all channels.

    Raises:
        PlanError: if there is not one that is wanted.
    """
    for channel in wanted:
        if not 0 <= channel < len(names):
            there = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            raise PlanError(f"there is no channel {channel}; there are {there}")
    return sorted(set(wanted)) or list(range(len(names)))


def normalised_plans(
    dataset: str,
    scheme: str,
    *,
    channels: Sequence[int] = (),
    like: str = "nnUNetPlans",
    name: str | None = None,
    overwrite: bool = False,
) -> NormalisedPlans:
    """Write a copy of a dataset's plans, beside them, that normalises images in another way.

    All configurations are kept, since none of them depends on how images are normalised, and each has data of its own.

    Args:
        dataset: number or name.
        scheme: of nnU-Net's, see `find_scheme`.
        channels: numbers of those that it is for; all by default.
        like: name of the plans to start from.
        name: name of the new plans; by default that of the old ones with the scheme's, as in nnUNetPlans_RescaleTo01.
        overwrite: whether to replace plans of that name that say something else.

    Raises:
        InputError: if something is missing or unknown, or the images do not fit the scheme.
    """
    folder = preprocessed_folder(dataset)
    old = load_plans(folder, like)
    scheme = find_scheme(scheme)
    names = channel_names(read_json(folder / "dataset.json", DATASET))
    chosen = choose_channels(channels, names)
    tag = scheme.removesuffix(_SUFFIX)
    tag += "".join(f"_channel{channel}" for channel in chosen) if len(chosen) < len(names) else ""
    _require_fitting(scheme, chosen, names, old, like)
    uses_mask = _uses_mask(scheme, folder)
    new = deepcopy(old)
    new["plans_name"] = name = name or f"{like}_{tag}"
    before: list[str] = []
    is_changed = False
    for one, part in new["configurations"].items():
        # What it does not say itself, it inherits from one that is changed as well.
        if (own := part.get("normalization_schemes")) is not None:
            if len(own) != len(names) or len(part.get("use_mask_for_norm", ())) != len(names):
                raise PlanError(f"{like}: {one} does not normalise the {len(names)} channels of dataset.json")
            before = before or list(own)
            for channel in chosen:
                is_changed |= own[channel] != scheme
                own[channel], part["use_mask_for_norm"][channel] = scheme, uses_mask
        if "data_identifier" in part or "inherits_from" not in part:
            part["data_identifier"] = f"{part.get('data_identifier') or f'{like}_{one}'}_{tag}"
    if not is_changed:
        raise PlanError(f"{like} has {scheme} for {'this channel' if len(chosen) == 1 else 'these channels'} already")
    file = save_plans(folder, new, like, overwrite=overwrite)
    now = [scheme if number in chosen else one for number, one in enumerate(before)]
    known = PlansManager(new).available_configurations
    return NormalisedPlans(folder.name, name, file, known, list(zip(names, before, now, strict=True)))


def _require_fitting(
    scheme: str, channels: Sequence[int], names: Sequence[str], plans: Mapping[str, Any], like: str
) -> None:
    """Check that the plans know of the channels what a scheme asks, and that their images are in its range."""
    known = plans.get("foreground_intensity_properties_per_channel", {})
    for channel in channels:
        own = known.get(str(channel), {})
        if scheme == _CLIPPING and any(key not in own for key in _STATISTICS):
            raise PlanError(
                f"{like} does not have the intensities of channel {channel} ({names[channel]}), which {scheme} clips "
                "to; start from nnU-Net's own plans with --like"
            )
        lowest, highest = (own.get(key, end) for key, end in (("min", 0), ("max", _LARGEST_COLOUR)))
        if scheme == _COLOURS and (lowest < 0 or highest > _LARGEST_COLOUR):
            raise PlanError(
                f"{scheme} takes intensities from 0 to {_LARGEST_COLOUR}, and channel {channel} ({names[channel]}) has "
                f"{lowest:g} to {highest:g}"
            )


def _uses_mask(scheme: str, folder: Path) -> bool:
    """Tell whether statistics are those of the voxels that are not 0, as nnU-Net's planner decides it."""
    if not SCHEMES[scheme].leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true:
        return False
    fingerprint = read_json(folder / "dataset_fingerprint.json", {"median_relative_size_after_cropping": (int, float)})
    return bool(fingerprint["median_relative_size_after_cropping"] < _CROPPED)
