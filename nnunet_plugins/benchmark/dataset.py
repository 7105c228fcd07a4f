"""What a reader of results has to know of a dataset, read from nnU-Net's files."""

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_plugins.datasets.preprocessed import existing_cases
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import json_or_nothing
from nnunet_plugins.planning.groups import groups_of, read_groups


def describe_dataset(folder: Path, groups_file: str | None) -> dict[str, Any]:
    """Return what is known of a dataset.

    Args:
        folder: of it, in nnUNet_preprocessed.
        groups_file: table of the cases' groups that the splits keep together, if there is one.

    Returns:
        How many `cases` there are; the names of the `channels`; the medians over the cases of `spacing_mm` and `shape`
        in voxels, by axis of the arrays, slices first; how many `groups` there are, 0 if none were named, and
        `group_of`, the number of each case's group, as names of groups may be those of patients. What cannot be read
        is left out.
    """
    found: dict[str, Any] = {}
    content = json_or_nothing(folder / "dataset.json", {"file_ending": str, "channel_names": {str: str}})
    cases = existing_cases(folder) if content else []
    if content:
        found |= {"channels": list(content["channel_names"].values()), "cases": len(cases)}
    shape = {"spacings": [[(int, float)]], "shapes_after_crop": [[int]]}
    fingerprint = json_or_nothing(folder / "dataset_fingerprint.json", shape)
    for name, values in (("spacing_mm", "spacings"), ("shape", "shapes_after_crop")):
        if fingerprint.get(values):
            found[name] = np.median(np.array(fingerprint[values], float), axis=0).tolist()
    if groups_file is None:
        return {**found, "groups": 0}
    try:
        names = groups_of(cases, read_groups(Path(groups_file)))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names.values()), 1)}
        return {**found, "groups": len(numbers), "group_of": {case: numbers[name] for case, name in names.items()}}
    except InputError:  # the table is gone since
        return found
