"""The table of metrics that `evaluate` writes, one row per case and label: its columns, and means that drop nothing."""

import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_plugins.files import write_text
from nnunet_plugins.metrics.objects import COUNTS, pool, whole_counts

METRICS = ("Dice", "ASSD_mm", "HD95_mm", "NSD", "volume_error_ml")
DISTANCES = ("ASSD_mm", "HD95_mm")

# Texts that a spreadsheet takes for formulas, and those that are marked already; see `write_table`.
_FORMULA = re.compile(r"'*[=+\-@\t]")
# What has to stand between quotation marks in CSV.
_SPECIAL = re.compile('[,"\\n\\r]')


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, with an apostrophe before texts that a spreadsheet would take for formulas and run.

    Names of cases and labels come with the data, whoever made it. `read_table` takes the apostrophes away.

    Args:
        path: CSV file.
        table: to write, without its index. Numbers are written exactly.
    """
    write_text(path, to_csv(table))


def to_csv(table: pd.DataFrame, *, missing: str = "") -> str:
    """Return what `write_table` writes, with a text in the place of missing values."""
    # A third of the time that pandas takes: texts repeat, and each is looked at once.
    columns = [_cells(column, missing) for _, column in table.items()]
    lines = [",".join(_cell(str(name)) for name in table.columns), *map(",".join, zip(*columns, strict=True))]
    return "\n".join(lines) + "\n"


def _cells(column: pd.Series, missing: str) -> list[str]:
    if pd.api.types.is_float_dtype(column):
        return [missing if value != value else repr(value) for value in column.to_numpy(float).tolist()]
    codes, values = pd.factorize(column)
    # Missing ones have the code -1.
    return np.array([*map(_cell, values), missing], dtype=object)[codes].tolist()


def _cell(value: object) -> str:
    text = _mark(value) if isinstance(value, str) else str(value)
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if _SPECIAL.search(text) else text


def read_table(file: Path, types: Mapping[str, type]) -> pd.DataFrame:
    """Read a table that `write_table` wrote; empty cells alone are missing values.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no CSV file.
    """
    table = pd.read_csv(file, dtype=dict(types), keep_default_na=False, na_values=[""])
    return map_texts(table, _unmark)


def map_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """Return the table with its texts changed, each different one once."""
    return table.assign(
        **{
            str(name): _map_column(column, change)
            for name, column in table.items()
            if not pd.api.types.is_numeric_dtype(column)
        }
    )


def _map_column(column: pd.Series, change: Callable[[str], str]) -> pd.Series:
    codes, values = pd.factorize(column)
    changed = [change(value) if isinstance(value, str) else value for value in values]
    # Missing ones have the code -1.
    return pd.Series(np.array([*changed, np.nan], dtype=object)[codes], column.index, dtype=object)


def _mark(text: str) -> str:
    text = text.replace("\r", " ")  # spreadsheets begin a row there
    return f"'{text}" if _FORMULA.match(text) else text


def _unmark(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def with_penalty(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the image's diagonal in place of infinite distances, where one of two masks is empty.

    Two columns are added: `both_empty`, where no metric but the volume error exists, and `one_empty`.
    """
    table = table.assign(both_empty=table["Dice"].isna(), one_empty=np.isinf(table["ASSD_mm"]))
    for column in DISTANCES:
        table[column] = table[column].where(~table["one_empty"], table["diagonal_mm"])
    return table


def summarise(table: pd.DataFrame, *, by_source: bool = False) -> pd.DataFrame:
    """Return the means by label, of a table as `evaluate_folders` makes it.

    Cases where truth and prediction are empty are left out (and counted, `both_empty`). Where one is empty
    (`one_empty`), the infinite distances count as the image's diagonal.

    Args:
        table: of a merged dataset, if the means are to be by source.
        by_source: of each source on its own.
    """
    table = with_penalty(table)
    groups = table.groupby([*(["source"] if by_source else []), "label", "name"], sort=False)
    means = groups[list(METRICS)].mean()
    return means.join(
        groups.agg(cases=("case", "size"), both_empty=("both_empty", "sum"), one_empty=("one_empty", "sum"))
    )


def describe(table: pd.DataFrame, *, by_source: bool = False) -> str:
    """Write the means by label, or by source and label, as text, with the conventions that they depend on."""
    means = summarise(table, by_source=by_source).reset_index()
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
    if COUNTS[0] in table:
        lines.append(_describe_objects(table, by_source=by_source))
    return "\n".join(lines)


def _describe_objects(table: pd.DataFrame, *, by_source: bool) -> str:
    """Write what is found of objects as text, with the convention that it depends on."""
    found = pool(table[table[COUNTS[0]].notna()], [*(["source"] if by_source else []), "label", "name"])
    found = whole_counts(found.reset_index())
    found.columns = [str(name).removeprefix("objects_") for name in found.columns]
    return (
        f"Objects, over all cases:\n{found.to_string(index=False, float_format='{:.4f}'.format, na_rep='-')}\n"
        "An object is a connected component, by faces, edges and corners. TP: pairs with an IoU above 0.5; SQ: their "
        "mean IoU;\nF1 (RQ) and PQ: of all objects together; Dice: per true object, 0 where nothing overlaps it."
    )
