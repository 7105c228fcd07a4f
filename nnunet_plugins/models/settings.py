"""How trained models predict, and from which files; in a submission, `submission.json` beside them says so.

Loads nothing heavy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import WHOLE_VOLUME
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json

FILE = "submission.json"
MANIFEST = "manifest.json"
"""Beside all of it: what there is, with hashes and versions."""

TRAINERS = "trainers"
"""Folder beside the settings with the users' own trainers: in it, one folder for each that nnU-Net has to scan."""
LAYOUTS = {
    "files": "nnU-Net's: CASE_0000.nii.gz, CASE_0001.nii.gz, ... in one folder, one file per channel",
    "sockets": "Grand Challenge's: a folder images/SLUG for each channel, with one image in it",
    "case folders": "MedPerf's and BraTS's: a folder for each case, with a file CASE-SUFFIX.nii.gz for each channel",
}
"""Where the images of a case lie."""

OUTPUT_TYPES = {
    "uint8": 2**8 - 1,
    "uint16": 2**16 - 1,
    "int8": 2**7 - 1,
    "int16": 2**15 - 1,
    "int32": 2**31 - 1,
    "float32": 2**24,
}
"""Types of a segmentation's voxels, by numpy's names, with the largest label that each one holds."""


def fitting_type(largest_label: int) -> str:
    """Return the smallest type that holds the labels."""
    return next(name for name, largest in OUTPUT_TYPES.items() if largest_label <= largest)


@dataclass(frozen=True)
class Member:
    """A trained configuration: one member of an ensemble, or all there is.

    Attributes:
        folder: with its plans and folds, beside the settings.
        folds: that predict together.
        checkpoint: file in each fold.
        previous: the first stage of a cascade.
    """

    folder: str
    folds: tuple[str, ...]
    checkpoint: str
    previous: "Member | None" = None


@dataclass(frozen=True)
class Settings:
    """What to predict with, from which files, and how.

    Attributes:
        name: of the submission.
        members: their probabilities are averaged, as `nnUNetv2_ensemble` does.
        channels: names of the image's channels, in the order of the training.
        layout: one of `LAYOUTS`.
        inputs: by channel, the socket's slug or the file's suffix; empty for nnU-Net's own layout.
        output: the socket's slug of the segmentation; empty for other layouts.
        ending: of image files, except in sockets, which take what SimpleITK reads.
        output_type: one of `OUTPUT_TYPES`.
        postprocessing: keyword arguments for each call of nnU-Net's removal of all but the largest component.
        mirroring: at test time, along the axes that the training allows.
        step: of the sliding window, as a fraction of the patch.
        seconds_per_case: what to aim at by leaving out mirroring and more; None for no limit.
        whole_volume: one of `arguments.WHOLE_VOLUME`, for one pass over each case; None for tiles.
    """

    name: str
    members: tuple[Member, ...]
    channels: tuple[str, ...]
    layout: str = "files"
    inputs: tuple[str, ...] = ()
    output: str = ""
    ending: str = ".nii.gz"
    output_type: str = "uint8"
    postprocessing: tuple[Mapping[str, Any], ...] = field(default=())
    mirroring: bool = True
    step: float = 0.5
    seconds_per_case: float | None = None
    whole_volume: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as what `read_settings` reads."""
        return asdict(self)


_MEMBER = {"folder": str, "folds": [str], "checkpoint": str, "previous": (dict, type(None))}
_SHAPE = {
    "name": str,
    "members": [_MEMBER],
    "channels": [str],
    "layout": str,
    "inputs": [str],
    "output": str,
    "ending": str,
    "output_type": str,
    "postprocessing": [dict],
    "mirroring": bool,
    "step": (int, float),
    "seconds_per_case": (int, float, type(None)),
    "whole_volume?": (str, type(None)),
}


def read_settings(models: Path) -> Settings:
    """Read the settings beside the models.

    Raises:
        InputError: if they are missing or not as the export writes them.
    """
    content = read_json(models / FILE, _SHAPE)
    known = {name: content[name] for shape in _SHAPE if (name := shape.rstrip("?")) in content}
    if known.get("whole_volume") not in (None, *WHOLE_VOLUME):
        raise InputError(f"{models / FILE}: 'whole_volume' has to be null or one of {', '.join(WHOLE_VOLUME)}")
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return Settings(**{**known, **lists, "members": tuple(_member(part) for part in content["members"])})


def _member(part: Mapping[str, Any]) -> Member:
    previous = part["previous"]
    return Member(part["folder"], tuple(part["folds"]), part["checkpoint"], _member(previous) if previous else None)
