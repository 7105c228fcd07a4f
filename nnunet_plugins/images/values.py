"""The values of a segmentation against those that dataset.json declares."""

from collections.abc import Collection, Iterable, Iterator
from math import isfinite
from typing import Any

import pandas as pd
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_plugins.images.facts import Fact

_SHOWN = 5


def declared_labels(labels: LabelManager) -> list[int]:
    """Return the values that a segmentation may have, in order: all labels, background and ignore label."""
    ignored = [labels.ignore_label] if labels.ignore_label is not None else []
    return [int(value) for value in [*labels.all_labels, *ignored]]


def distinct(array: NDArray[Any]) -> tuple[float, ...]:
    """Return the different values of a segmentation, in order; NaN counts as one."""
    return tuple(sorted(float(value) for value in pd.unique(array.reshape(-1))))


def check_values(values: Iterable[float], declared: Collection[int], file: str) -> Iterator[Fact]:
    """Yield what is wrong with the values of a segmentation.

    Args:
        values: the different ones.
        declared: the labels, with background and ignore label; none: any whole number will do.
        file: for the facts.
    """
    values = [float(value) for value in values]
    finite = [value for value in values if isfinite(value)]
    parts = {
        "label not finite": [value for value in values if not isfinite(value)],
        "fraction": [value for value in finite if not value.is_integer()],
        "undeclared": [value for value in finite if value.is_integer() and declared and value not in declared],
    }
    for kind, found in parts.items():
        if found:
            detail = show(found) + (f"; declared are {show(sorted(declared))}" if kind == "undeclared" else "")
            yield Fact(kind, file, detail)


def _number(value: float) -> str:
    if not isfinite(value):
        return f"{value}"
    if float(value).is_integer():
        return f"{value:.0f}"
    short = f"{value:.6g}"
    return short if not float(short).is_integer() else f"{value:.9g}"  # 0.9999999 is not 1


def show(values: Iterable[float]) -> str:
    """Return the first values, as text."""
    found = [_number(value) for value in values]
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
