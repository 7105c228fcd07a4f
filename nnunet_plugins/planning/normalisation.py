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

from nnunet_plugins.datasets.folders import DATASET, PlanError, load_plans, preprocessed_folder, save_plans
from nnunet_plugins.datasets.plan_names import find_normalisation, normalised_plans_name
from nnunet_plugins.datasets.preprocessed import PLANS
from nnunet_plugins.files import is_json, read_json

SCHEMES = {scheme.__name__: scheme for scheme in channel_name_to_normalization_mapping.values()}
"""nnU-Net's schemes by the names that plans have."""

_CLIPPING, _COLOURS = "CTNormalization", "RGBTo01Normalization"
_STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")  # that clipping takes of the fingerprint
_LARGEST_COLOUR = 255
_NORMALISED = ("normalization_schemes", "use_mask_for_norm", "data_identifier")  # what is changed in plans
_CROPPED = 3 / 4  # of the images' size; where nnU-Net's planner leaves more, statistics are those of the whole image


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
    found = find_normalisation(name)
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
    some = chosen if len(chosen) < len(names) else []
    _require_fitting(scheme, chosen, names, old, like)
    uses_mask = _uses_mask(scheme, folder)
    new = deepcopy(old)
    new["plans_name"] = name = name or normalised_plans_name(like, scheme, some)
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
            before_it = part.get("data_identifier") or f"{like}_{one}"
            part["data_identifier"] = normalised_plans_name(before_it, scheme, some)
    if not is_changed:
        raise PlanError(f"{like} has {scheme} for {'this channel' if len(chosen) == 1 else 'these channels'} already")
    file = save_plans(folder, new, like, overwrite=overwrite)
    now = [scheme if number in chosen else one for number, one in enumerate(before)]
    known = PlansManager(new).available_configurations
    return NormalisedPlans(folder.name, name, file, known, list(zip(names, before, now, strict=True)))


def is_normalised(made: Path, like: Path, scheme: str) -> bool:
    """Tell whether plans normalise all channels by a scheme, and are others in nothing else but their names.

    Args:
        made: file of the plans.
        like: file of those that they were made from.
        scheme: its full name.
    """
    if not is_json(made) or not is_json(like):
        return False
    plans = [read_json(file, PLANS) for file in (made, like)]
    own = [part["normalization_schemes"] for part in plans[0]["configurations"].values() if _NORMALISED[0] in part]
    for one in plans:
        one["plans_name"] = ""
        for part in one["configurations"].values():
            for key in _NORMALISED:
                part.pop(key, None)
    return plans[0] == plans[1] and all(name == scheme for names in own for name in names)


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
