"""Write MODEL_CARD.md: what a submission's networks are, on what they were trained, how well they did, and for what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.forecast import GIB, format_size
from nnunet_plugins.images.recipe import read_recipe
from nnunet_plugins.models.settings import Settings
from nnunet_plugins.models.sources import Source
from nnunet_plugins.planning.profile import profile_inference
from nnunet_plugins.planning.setting import Setting
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.record import read_record
from nnunet_plugins.report.statistics import mean_with_ci
from nnunet_plugins.report.writing import markdown_table
from nnunet_plugins.rows import without_seed
from nnunet_plugins.submission.rendering import render

_SUMMARY = {"metric_per_case": [{"reference_file": str, "metrics": {str: {"Dice": (int, float)}}}]}
_UNKNOWN = "not stated"
_METRICS = {"Dice": "", "ASSD_mm": " mm", "HD95_mm": " mm", "NSD": ""}


def write_model_card(
    file: Path,
    sources: Sequence[Source],
    settings: Settings,
    versions: Mapping[str, str],
    benchmark: Path | None,
    date: str,
) -> None:
    """Write the card.

    Args:
        file: to write.
        sources: the networks.
        settings: what is done with them.
        versions: of the packages.
        benchmark: folder of a benchmark with results of these networks; without it, the Dice of nnU-Net's own
            validation is shown.
        date: of the export.

    Raises:
        InputError: if the benchmark has none of the networks, or its record cannot be read.
    """
    labels = sources[0].dataset_json["labels"]
    figures = _from_benchmark(benchmark, sources) if benchmark else _from_validation(sources)
    values = {
        "settings": settings,
        "data": _table(_describe_data(sources[0])),
        "networks": _table(pd.DataFrame({"": list(_ROWS.values()), **dict(map(_describe, sources))})),
        "postprocessing": [_name_labels(step["labels_or_regions"], labels) for step in settings.postprocessing],
        "figures": _table(pd.DataFrame(figures)) if figures else "",
        "from_benchmark": bool(benchmark),
        "versions": versions,
        "date": date,
    }
    write_text(file, render("MODEL_CARD.md", values))


def _table(table: pd.DataFrame) -> str:
    return markdown_table(table, texts=table.columns)


_ROWS = {
    "paper": "paper",
    "plans": "plans, configuration",
    "patch": "patch, voxels",
    "spacing": "spacing, mm",
    "batch": "batch",
    "normalization": "normalization",
    "parameters": "parameters",
    "flops": "GFLOP for one patch",
    "memory": "GiB for one patch, float32",
    "folds": "folds",
    "checkpoint": "checkpoint",
}


def _describe_data(source: Source) -> pd.DataFrame:
    dataset = source.dataset_json
    labels = ", ".join(f"{name} ({value})" for name, value in dataset["labels"].items() if name != "background")
    rows = {
        "dataset": source.folder.parent.name,
        "training cases": dataset.get("numTraining", _UNKNOWN),
        "channels": ", ".join(source.channels),
        "labels": labels,
        **{key: dataset.get(key, _UNKNOWN) for key in ("description", "reference")},
        "licence of the data": dataset.get(
            "licence", dataset.get("license", f"{_UNKNOWN}; fill in before you publish")
        ),
    }
    return pd.DataFrame({"": list(rows), "training data": list(rows.values())})


def _normalization(source: Source) -> str:
    """Return what is done to intensities: before nnU-Net sees them, if that is so, and by it."""
    schemes = ", ".join(source.configuration.normalization_schemes)
    recipe = read_recipe(source.dataset_json, source.folder / "dataset.json")
    if recipe is None:
        return schemes
    names = ", ".join(source.channels[channel] for channel in recipe.channels)
    return f"{names}: {recipe.steps} (scikit-image {recipe.scikit_image}); then {schemes}"


def _describe(source: Source) -> tuple[str, list[str]]:
    """Return a network's name and what stands in `_ROWS`."""
    plans, configuration = PlansManager(source.plans), source.configuration
    labels = plans.get_label_manager(source.dataset_json)
    channels = determine_num_input_channels(plans, configuration, source.dataset_json)
    setting = Setting(plans, configuration, channels, labels.num_segmentation_heads)
    cost = profile_inference(source.trainer, setting)
    backbone = getattr(source.trainer, "backbone", None)
    values = {
        "paper": backbone.paper if backbone else "Isensee et al. 2021, nnU-Net (doi:10.1038/s41592-020-01008-z)",
        "plans": f"{source.choice.plans}, {source.choice.configuration}",
        "patch": format_size(configuration.patch_size),
        "spacing": " x ".join(f"{size:g}" for size in configuration.spacing),
        "batch": configuration.batch_size,
        "normalization": _normalization(source),
        "parameters": f"{cost.parameters / 1e6:.1f} million",
        "flops": f"{cost.forward_flops / configuration.batch_size / 1e9:.0f}",
        "memory": f"{cost.peak_bytes[0] / GIB:.2f}",
        "folds": ", ".join(source.folds),
        "checkpoint": source.checkpoint,
    }
    return str(source.choice), [str(values[row]) for row in _ROWS]


def _name_labels(labels: Any, names: Mapping[str, Any]) -> str:
    """Return which labels a step of the post-processing is about, by name where they have one."""
    of = {str(value): name for name, value in names.items()}
    if str(labels) in of:
        return of[str(labels)]
    return ", ".join(_name_labels(part, names) for part in labels) if isinstance(labels, list) else str(labels)


def _from_validation(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the mean Dice of every network whose folds nnU-Net has all validated."""
    rows = []
    for source in sources:
        scores: dict[str, float] = {}
        for fold in source.folds:
            file = source.folder / f"fold_{fold}" / "validation" / "summary.json"
            if fold != "all" and file.is_file():
                for case in read_json(file, _SUMMARY)["metric_per_case"]:
                    found = [entry["Dice"] for label, entry in case["metrics"].items() if label != "0"]
                    known = [value for value in found if np.isfinite(value)]
                    scores[case["reference_file"]] = float(np.mean(known)) if known else np.nan
        if scores:
            rows.append({"network": source.choice.trainer, **_interval(pd.Series(scores), "Dice")})
    return rows


def _from_benchmark(folder: Path, sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the metrics of the networks, their ensemble and nnU-Net's choice of them, as far as there are any."""
    dataset = sources[0].folder.parent.name
    configurations, plans, wanted = (
        {getattr(source.choice, name) for source in sources} for name in ("configuration", "plans", "trainer")
    )
    rows = []
    for comparison in analyse(read_record(folder / "record")).comparisons:
        if comparison.dataset != dataset or comparison.configuration not in configurations:
            continue
        for algorithm in comparison.scores.algorithms:
            trainer, used = comparison.algorithms.loc[algorithm, ["trainer", "plans"]]
            # An ensemble has its members' names with a plus between them.
            if used not in plans or not set(trainer.split(" + ")) <= {*map(without_seed, wanted)}:
                continue
            row: dict[str, Any] = {"network": f"{algorithm}, {comparison.split}"}
            for metric in _METRICS:
                row |= _interval(comparison.by_case[metric][algorithm], metric)
            rows.append(row)
    if not rows:
        raise InputError(f"{folder} has no results of {', '.join(sorted(wanted))} on {dataset}")
    return rows


def _interval(scores: "pd.Series[float]", metric: str) -> dict[str, Any]:
    found = mean_with_ci(scores.to_frame(metric)).iloc[0]
    decimals = 2 if metric.endswith("_mm") else 3
    mean, low, high = (f"{found[name]:.{decimals}f}" for name in ("mean", "ci_low", "ci_high"))
    interval = "too few cases for an interval" if pd.isna(found["ci_low"]) else f"{low} to {high}"
    return {"cases": int(found["n"]), metric: f"{mean}{_METRICS[metric]} ({interval})"}
