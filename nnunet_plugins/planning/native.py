"""`nnunet-plugins plan --native-resolution`: a copy of existing plans that resamples no image.

Source: FIRENet (Liu et al. 2020, arXiv:2006.15578), whose multi-dataset experiment keeps twelve resolutions. nnU-Net
has a function that returns an image as it is; it takes the place of the three that resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.datasets.folders import (
    PlanError,
    choose_configurations,
    load_plans,
    preprocessed_folder,
    save_plans,
)

_SUFFIX = "native"


def keeps_voxels(configuration: Mapping[str, Any]) -> bool:
    """Tell whether a configuration leaves every image in its own voxels, whatever spacing it names."""
    return configuration.get("resampling_fn_data") == no_resampling_hack.__name__


@dataclass(frozen=True)
class NativePlans:
    """What `native_plans` wrote: the plans' name and file, and their configurations."""

    dataset: str
    name: str
    file: Path
    configurations: list[str]


def native_plans(
    dataset: str,
    *,
    configurations: Sequence[str] = (),
    like: str = "nnUNetPlans",
    name: str | None = None,
    overwrite: bool = False,
) -> NativePlans:
    """Write a copy of a dataset's plans, beside them, whose configurations keep every image's own voxels.

    Args:
        dataset: number or name.
        configurations: those to keep; by default 3d_fullres and 2d, of those that there are.
        like: name of the plans to start from.
        name: name of the new plans; by default that of the old ones with "_native".
        overwrite: whether to replace plans of that name that say something else.

    Raises:
        InputError: if something is missing or unknown, or a configuration is about another resolution.
    """
    folder = preprocessed_folder(dataset)
    old = PlansManager(load_plans(folder, like))
    name = name or f"{like}_{_SUFFIX}"
    chosen = choose_configurations(old, like, configurations)
    new = {**old.plans, "plans_name": name, "configurations": {}}
    for one in chosen:
        # What it inherits may be a configuration that the copy does not have.
        found = {**old.get_configuration(one).configuration}
        if found.get("previous_stage") or found.get("next_stage"):
            raise PlanError(
                f"{one} is a stage of a cascade, whose resolution is made coarser; choose another configuration with -c"
            )
        for what in ("data", "seg", "probabilities"):
            found[f"resampling_fn_{what}"] = no_resampling_hack.__name__
            found[f"resampling_fn_{what}_kwargs"] = {}
        found["data_identifier"] = f"{name}_{one}"
        new["configurations"][one] = found
    file = save_plans(folder, new, like, overwrite=overwrite)
    return NativePlans(folder.name, name, file, chosen)
