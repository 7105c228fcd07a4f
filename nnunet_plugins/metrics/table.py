"""The table of metrics that `evaluate` writes, one row per case and label: its columns, and means that drop nothing."""

from importlib import metadata

import numpy as np
import pandas as pd

METRICS = ("Dice", "ASSD_mm", "HD95_mm", "NSD", "volume_error_ml")
DISTANCES = ("ASSD_mm", "HD95_mm")


def with_penalty(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the image's diagonal in place of infinite distances, where one of two masks is empty.

    Two columns are added: `both_empty`, where no metric but the volume error exists, and `one_empty`.
    """
    table = table.assign(both_empty=table["Dice"].isna(), one_empty=np.isinf(table["ASSD_mm"]))
    for column in DISTANCES:
        table[column] = table[column].where(~table["one_empty"], table["diagonal_mm"])
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means by label, of a table as `evaluate_folders` makes it.

    Cases where truth and prediction are empty are left out (and counted, `both_empty`). Where one is empty
    (`one_empty`), the infinite distances count as the image's diagonal.
    """
    table = with_penalty(table)
    groups = table.groupby(["label", "name"], sort=False)
    means = groups[list(METRICS)].mean()
    return means.join(
        groups.agg(cases=("case", "size"), both_empty=("both_empty", "sum"), one_empty=("one_empty", "sum"))
    )


def describe(table: pd.DataFrame) -> str:
    """Write the means by label as text, with the conventions that they depend on."""
    means = summarise(table).reset_index()
    lines = [means.to_string(index=False, float_format="{:.4f}".format)]
    tolerance = table["tolerance_mm"].iloc[0]
    lines.append(
        f"NSD at {tolerance:g} mm; distances in mm by MONAI {metadata.version('monai')}, between voxel surfaces."
    )
    if means["both_empty"].any():
        lines.append(
            "Cases where truth and prediction are empty have no Dice and no distances and are left out of them."
        )
    if means["one_empty"].any():
        lines.append("Where only one of them is empty, the image's diagonal stands for the distances.")
    return "\n".join(lines)
