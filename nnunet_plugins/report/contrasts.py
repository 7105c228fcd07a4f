"""What stands in the tables of comparisons of two algorithms each: texts, under the headings to show."""

from collections.abc import Iterable

import pandas as pd

from nnunet_plugins.report.analysis import Comparison
from nnunet_plugins.report.showing import show_all, show_counts, show_intervals
from nnunet_plugins.report.verdicts import TOO_FEW
from nnunet_plugins.report.words import (
    DECIMALS,
    VERDICTS,
    heading,
    show_needed,
    show_number,
    show_p,
    show_probability,
)


def show_differences(table: pd.DataFrame, metric: str, baseline: str | None = None) -> pd.DataFrame:
    """Write differences in one metric, from the baseline or else from the same network `alone` on this dataset."""
    if table.empty:
        return pd.DataFrame()
    against = [baseline] * len(table) if baseline else list(table["alone"])
    return pd.DataFrame(
        {
            "Metric": heading(metric),
            "Algorithm": table.index,
            **({} if baseline else {"Compared with": against}),
            "Cases": show_all(table["n"], show_number, 0),
            "Difference [95% CI]": show_intervals(table["mean_difference"], table, DECIMALS[metric]),
            "Effect size": show_all(table["effect_size"], show_number, 2),
            "P(better)": show_all(table["better"], show_probability),
            "p": show_all(table["p"], show_p),
            "p (Holm)": show_all(table["p_holm"], show_p),
            "Wins/ties/losses": show_counts(table),
            **_show_counted(table, table.index, against),
        }
    )


def is_tested(table: pd.DataFrame) -> bool:
    """Return whether there are pairs with cases enough to say anything; the sentences tell of others."""
    return bool(table["better"].notna().any())


def show_pairs(table: pd.DataFrame, rope: float) -> pd.DataFrame:
    """Write comparisons in Dice with the probabilities of the true difference, and what it would take to be sure."""
    tested = table["verdict"] != TOO_FEW
    repeats = table["needed_repeats"].where(tested)
    known = table[["repeated", "against_repeated"]].astype(bool)
    alike = ", in groups as these" if (table["units"] < table["n"]).any() else ""
    return pd.DataFrame(
        {
            "Algorithm": table.index.get_level_values("algorithm"),
            "Compared with": table.index.get_level_values("against"),
            "Verdict": [VERDICTS[verdict].format(rope=rope) for verdict in table["verdict"]],
            "Difference [95% CI]": show_intervals(table["mean_difference"], table, DECIMALS["Dice"]),
            "p (Holm)": show_all(table["p_holm"], show_p),
            "P(better)": show_all(table["better"], show_probability),
            f"P(better by over {rope:g})": show_all(table["ahead"], show_probability),
            f"P(within {rope:g})": show_all(table["equivalent"], show_probability),
            f"P(worse by over {rope:g})": show_all(table["behind"], show_probability),
            f"Cases to tell {rope:g}{alike}": _show_needed(table["needed_cases"].where(tested), known),
            **({f"Repeats to tell {rope:g}": _show_needed(repeats, known)} if repeats.notna().any() else {}),
            **_show_counted(table, *(table.index.get_level_values(level) for level in ("algorithm", "against"))),
        }
    )


def _show_needed(numbers: pd.Series, known: pd.DataFrame) -> list[str]:
    """Write how many cases or repeats are needed; at least, where a variance of training is not known."""
    shown = show_all(numbers, show_needed)
    return [
        text if sure or not text[0].isdigit() else f"≥ {text}"
        for text, sure in zip(shown, known.all(axis=1), strict=True)
    ]


def _show_counted(table: pd.DataFrame, names: Iterable[str], against: Iterable[str]) -> dict[str, list[str]]:
    """Say whose variance of training is in a comparison, if it is not that of all: pairs without it look surer."""
    known = table[["repeated", "against_repeated"]].astype(bool)
    if not known.any(axis=None) or known.all(axis=None):
        return {}
    words = {(True, True): "counted", (False, False): "not counted"}
    pairs = zip(names, against, known["repeated"], known["against_repeated"], strict=True)
    return {
        "Trainings vary": [
            words.get((one, other), f"not of {against if one else name}") for name, against, one, other in pairs
        ]
    }


def show_components(comparison: Comparison) -> pd.DataFrame:
    """Write what the Dice varies by."""
    table = comparison.components
    headings = {
        "case": "Cases",
        "fold": "Folds",
        "training": "Trainings",
        "rest": "A case from training to training",
        "error": "Standard error of the mean",
    }
    return pd.DataFrame(
        {
            "Algorithm": table.index,
            "Trainings of a fold": show_all(table["trainings"], show_number, 0),
            **{heading: show_all(table[name], show_number, 4) for name, heading in headings.items()},
        }
    )
