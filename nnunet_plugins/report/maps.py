"""Maps of what networks do with a case, from the pictures that `nnunet-plugins explain` has left in a folder."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES = 3
"""Pictures of Grad-CAM at most for each network and case; all others lie in the folder."""


@dataclass(frozen=True)
class Picture:
    """One picture of a row.

    Attributes:
        title: what it shows.
        score: the Dice, for segmentations; None otherwise.
        source: a data URI.
    """

    title: str
    score: float | None
    source: str


@dataclass(frozen=True)
class Maps:
    """The maps of one network for one case.

    Attributes:
        algorithm: the network.
        score: its Dice there.
        pictures: with titles.
        left: how many more there are in its folder.
    """

    algorithm: str
    score: float
    pictures: list[Picture]
    left: int


def read_maps(scores: Mapping[str, float], places: Mapping[str, str], kept: Sequence[Mapping[str, Any]]) -> list[Maps]:
    """Return the maps of the networks that have some, or those that were kept where their folders are not to be found.

    Args:
        scores: Dice of the case, by algorithm.
        places: the folders with the pictures, by algorithm.
        kept: maps of an earlier report, as JSON has them; those of other trainings, with another Dice, are not taken.
    """
    found = []
    for algorithm, score in scores.items():
        maps = _in_folder(algorithm, score, Path(places[algorithm])) if algorithm in places else None
        if maps is None:
            same = (one for one in kept if (one["algorithm"], round(one["score"], 6)) == (algorithm, round(score, 6)))
            maps = next((_from_json(one) for one in same), None)
        if maps is not None:
            found.append(maps)
    return found


def _in_folder(algorithm: str, score: float, folder: Path) -> Maps | None:
    """Return what a folder shows: attention of the last layer that has some, and Grad-CAM of the first classes."""
    files = sorted(folder.glob("*.png"))
    chosen = [file for file in files if file.name.startswith("attention_")][-1:]
    chosen += [file for file in files if file.name.startswith("gradcam_")][:CLASSES]
    pictures = [picture for file in chosen if (picture := _read(file)) is not None]
    return Maps(algorithm, score, pictures, len(files) - len(pictures)) if pictures else None


def _read(file: Path) -> Picture | None:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            opened.load()
            title = str(opened.info.get("Title", file.stem))
        content = file.read_bytes()
    except (OSError, ValueError, SyntaxError):  # what PIL raises for a torn file
        return None
    return Picture(title, None, f"data:image/png;base64,{base64.b64encode(content).decode()}")


def _from_json(kept: Mapping[str, Any]) -> Maps:
    return Maps(kept["algorithm"], kept["score"], [Picture(**one) for one in kept["pictures"]], kept["left"])
