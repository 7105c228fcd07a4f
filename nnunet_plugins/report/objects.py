"""What is found of objects, such as lesions, in the cases that count; see `metrics.objects` for what they are."""

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.objects import COUNTS, OBJECT_COLUMNS, QUALITIES, pool


def count_objects(results: pd.DataFrame, cases: list[str], order: list[str]) -> pd.DataFrame:
    """Return what is found of the objects of every label that consists of them, all cases together.

    Args:
        results: of one comparison, with `OBJECT_COLUMNS` if anything consists of objects.
        cases: those that count. All of them do, also where the truth has no object: whatever is found there is false.
        order: of the algorithms.

    Returns:
        `OBJECT_COLUMNS` by label and algorithm (levels `label`, `algorithm`). Of an algorithm that was trained several
        times it is the mean over its trainings. Nobody has a quality of a label of which the truth has no object. No
        rows where nothing consists of objects.
    """
    if COUNTS[0] not in results:
        return pd.DataFrame()
    rows = results[results["case"].isin(cases)]
    labels = list(rows.loc[rows[COUNTS[0]].notna(), "label"].unique())
    rows = rows[rows["label"].isin(labels)]
    if rows.empty:
        return pd.DataFrame()
    trainings = pool(rows, ["label", "algorithm", "seed"])
    found = trainings.groupby(level=["label", "algorithm"], sort=False).mean()
    found.loc[found["objects_TP"] + found["objects_FN"] == 0, list(QUALITIES)] = np.nan
    index = pd.MultiIndex.from_product([labels, order], names=["label", "algorithm"])
    return found.reindex(index)[list(OBJECT_COLUMNS)]


def mean_qualities(objects: pd.DataFrame) -> pd.DataFrame:
    """Return `QUALITIES` by algorithm, as means over the labels of which the truth has objects; nan where one is."""
    true = (objects["objects_TP"] + objects["objects_FN"]).groupby(level="label").transform("max")
    found = objects.loc[true > 0, list(QUALITIES)]
    return found.groupby(level="algorithm", sort=False).agg(lambda values: values.mean(skipna=False))
