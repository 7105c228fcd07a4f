"""Slices of images and maps as pictures in text, for a page that shows one above the other."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_plugins.explain.panels import COLOURS

VIEWERS = 6
"""Cases with slices on a page, some MB each; all have their pictures and files beside it."""

SLICES, SIZE = 24, 192
"""At most, of each map, and voxels of their longer side: a page holds some hundred of them."""


@dataclass(frozen=True)
class Stack:
    """The slices of a map.

    Attributes:
        title: of the map.
        low: value of the first colour.
        high: of the last.
        names: of the values, if these are names.
        slices: data URIs.
        numbers: of the slices, from 1.
    """

    title: str
    low: float
    high: float
    names: tuple[str, ...]
    slices: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Viewer:
    """An image with maps above it.

    Attributes:
        below: the image.
        above: the maps.
        spacing: mm, `(z, y, x)`.
    """

    below: Stack
    above: list[Stack]
    spacing: tuple[float, ...]


def cut(title: str, values: NDArray[Any], low: float, high: float, names: Sequence[str] = ()) -> Stack:
    """Return axial slices of a map `(z, y, x)`, evenly spread; of the image in gray, of maps in colour."""
    numbers = np.unique(np.linspace(0, len(values) - 1, min(SLICES, len(values))).round().astype(int))
    step = max(1, -(-max(values.shape[1:]) // SIZE))
    colours = _palette("gray" if title == "image" else COLOURS)
    scale = 255 / (high - low) if high > low else 0.0
    pictures = []
    for number in numbers:
        one = np.nan_to_num(values[number, ::step, ::step].astype(np.float32), nan=low, posinf=high, neginf=low)
        scaled = (one - low) * scale
        pictures.append(_encode(np.clip(scaled.round(), 0, 255).astype(np.uint8), colours))
    return Stack(title, low, high, tuple(names), tuple(pictures), tuple((numbers + 1).tolist()))


def _palette(name: str) -> bytes:
    from matplotlib import colormaps

    return (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()


def _encode(pixels: NDArray[np.uint8], palette: bytes) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.putpalette(palette)
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
