"""Attention maps, and how much of each is in each predicted class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_plugins.arguments import lay_out
from nnunet_plugins.explain.model import Head

EVERYWHERE = "(whole image)"
COLUMNS = ("case", "layer", "class", "rate", "voxels", "attention", "largest")


def find_shares(
    case: str,
    layer: str,
    rates: Sequence[str],
    maps: NDArray[Any],
    labels: NDArray[Any],
    heads: Sequence[Head],
    box: tuple[slice, ...],
) -> list[dict[str, Any]]:
    """Return how much attention each rate has in each predicted class, and in the whole image.

    Args:
        case: its name.
        layer: its name.
        rates: names of the maps.
        maps: `(rates, z, y, x)`.
        labels: the segmentation `(z, y, x)`.
        heads: classes; one that is not predicted has no rows.
        box: what nnU-Net does not crop away; there is no attention outside.

    Returns:
        rows of `COLUMNS`: `attention` is the mean of a rate's map in the class, `largest` the share of its voxels in
        which no other rate has more; of a gate, which has no rivals, it is missing.
    """
    inside = np.zeros(labels.shape, bool)
    inside[box] = True
    rows = []
    first = maps.argmax(axis=0)
    masks = {head.name: inside & np.isin(labels, head.labels) for head in heads}
    for name, mask in {EVERYWHERE: inside, **masks}.items():
        if not (voxels := int(mask.sum())):
            continue
        for number, rate in enumerate(rates):
            largest = float((first[mask] == number).mean()) if len(rates) > 1 else np.nan
            share = float(maps[number][mask].mean(dtype=np.float64))
            rows.append(dict(zip(COLUMNS, (case, layer, name, rate, voxels, share, largest), strict=True)))
    return rows


def summarise(shares: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over cases, one row for each layer, class and rate."""
    keys = ["layer", "class", "rate"]
    # In the order of their coming, and not behind the others what the first cases lack.
    ordered = shares.assign(**{key: pd.Categorical(shares[key], shares[key].unique()) for key in keys})
    groups = ordered.groupby(keys, observed=True)
    parts = {"cases": groups["case"].nunique()}
    for column in ("attention", "largest"):
        parts[column], parts[f"{column}_sd"] = groups[column].mean(), groups[column].std()
    return pd.DataFrame(parts).reset_index().astype(dict.fromkeys(keys, object))


def describe(summary: pd.DataFrame) -> str:
    """Lay out a summary for the terminal."""
    rows = [("layer", "class", "rate", "cases", "mean attention", "share of voxels where it is the largest")]
    for row in summary.to_dict("records"):
        numbers = [_spread(row[column], row[f"{column}_sd"]) for column in ("attention", "largest")]
        rows.append((row["layer"], row["class"], str(row["rate"]), str(row["cases"]), *numbers))
    return lay_out(rows)


def _spread(mean: float, deviation: float) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.3f}" + ("" if np.isnan(deviation) else f" ± {deviation:.3f}")
