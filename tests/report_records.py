"""Made-up records of benchmarks, with numbers as real ones have them; always the same for the same options."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from nnunet_plugins.metrics.objects import OBJECT_COLUMNS, whole_counts
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.report.record import CURVES, RESULTS, RUNS, Record
from nnunet_plugins.rows import STOCK_TRAINER

NAMES = ("Anterior", "Posterior")
PLANS = "nnUNetPlans"
OWN_PLANS = "nnUNetResEncUNetMPlans"
ENSEMBLE = "ensemble of the two best"


def trainers(number: int) -> list[str]:
    """The stock trainer, then those of the package, then these with a modifier: as many as are asked for."""
    suffixes = ("", "_DA5", "_NoMirroring")
    ours = (f"{row.trainer}{suffix}" for suffix in suffixes for row in BACKBONES)
    return [STOCK_TRAINER, *itertools.islice(ours, number - 1)]


def _algorithms(names: Sequence[str], own_plan: bool) -> list[dict[str, str]]:
    twins = {row.twin for row in BACKBONES}
    rows = [
        {
            "plans": PLANS,
            "trainer": name,
            "algorithm": name,
            "role": "baseline" if name == names[0] else "twin" if name in twins else "method",
            "seed": "",
        }
        for name in names
    ]
    if own_plan:
        name = f"{STOCK_TRAINER} ({OWN_PLANS})"
        rows.insert(
            1, {"plans": OWN_PLANS, "trainer": STOCK_TRAINER, "algorithm": name, "role": "own plan", "seed": ""}
        )
    return rows


def _results(
    generator: np.random.Generator, algorithms: Sequence[dict[str, str]], cases: int, labels: int
) -> pd.DataFrame:
    """The metrics of one comparison: cases and labels differ in difficulty, the algorithms a little in skill."""
    difficulty = generator.normal(0, 0.5, (1, cases, 1)) + generator.normal(0, 0.4, (1, 1, labels))
    skill = np.linspace(0, 0.3, len(algorithms))[:, None, None]
    noise = generator.normal(0, 0.15, (len(algorithms), cases, labels))
    dice = 1 / (1 + np.exp(-(2.2 + skill - difficulty + noise)))
    assd = 3 * (1 - dice) * generator.lognormal(0, 0.2, dice.shape)
    truth = np.broadcast_to(generator.lognormal(2.0, 0.5, (1, cases, labels)), dice.shape)
    rows, numbers, columns = (grid.ravel() for grid in np.indices(dice.shape))
    table = pd.DataFrame([algorithms[row] for row in rows])
    table["case"] = [f"case_{n:03}" for n in numbers]
    table["label"] = [str(n + 1) for n in columns]
    table["name"] = [NAMES[n] if n < len(NAMES) else f"part_{n + 1}" for n in columns]
    table["Dice"] = dice.ravel()
    table["ASSD_mm"] = assd.ravel()
    table["HD95_mm"] = (assd * generator.uniform(2, 6, dice.shape)).ravel()
    table["NSD"] = np.clip(1 - assd / 4, 0, 1).ravel()
    table["volume_error_ml"] = (truth * generator.normal(0, 0.08, dice.shape)).ravel()
    table["volume_truth_ml"] = truth.ravel()
    return table.assign(tolerance_mm=1.0, diagonal_mm=120.0)


def _empty_some(table: pd.DataFrame, both_empty: int, one_empty: int) -> pd.DataFrame:
    """In the last label: the first cases have no truth, and it is left out of the next ones by the last algorithm."""
    cases = table["case"].unique()
    last = table["label"] == table["label"].iloc[-1]
    both = last & table["case"].isin(cases[:both_empty])
    table.loc[both, ["Dice", "ASSD_mm", "HD95_mm", "NSD"]] = np.nan
    table.loc[both, ["volume_error_ml", "volume_truth_ml"]] = 0.0
    one = last & table["case"].isin(cases[both_empty : both_empty + one_empty])
    one &= table["algorithm"] == table["algorithm"].iloc[-1]
    table.loc[one, ["Dice", "NSD"]] = 0.0
    table.loc[one, ["ASSD_mm", "HD95_mm"]] = np.inf
    table.loc[one, "volume_error_ml"] = -table.loc[one, "volume_truth_ml"]
    return table


def _ensemble(table: pd.DataFrame) -> pd.DataFrame:
    """An ensemble of the last two algorithms, a little better than the last."""
    rows = table[table["algorithm"] == table["algorithm"].iloc[-1]].copy()
    rows[["Dice", "NSD"]] = 1 - (1 - rows[["Dice", "NSD"]]) * 0.95
    members = " + ".join(table["trainer"].unique()[-2:])
    return rows.assign(plans=PLANS, trainer=members, algorithm=ENSEMBLE, role="ensemble")


def _runs(
    generator: np.random.Generator, algorithms: Sequence[dict[str, str]], folds: int, epochs: int
) -> pd.DataFrame:
    rows = []
    for number, algorithm in enumerate(algorithms):
        for fold in range(folds):
            seconds = (20 + 6 * number) * generator.uniform(0.95, 1.05)
            rows.append(
                {
                    **algorithm,
                    "fold": fold,
                    "parameters": 30_000_000 + 2_500_000 * number,
                    "forward_flops": 4e11 * (1 + 0.3 * number),
                    "patch_size": "96x96x96",
                    "batch_size": 2,
                    "epochs": epochs,
                    "iterations": 50,
                    "seconds_per_epoch": seconds,
                    "training_seconds": epochs * seconds,
                    "peak_memory_bytes": int((6 + 0.7 * number) * 2**30),
                    "memory_kind": "allocated by PyTorch on the GPU",
                    "energy_joules": epochs * seconds * 300,
                    "validation_voxels_per_second": 2e6 / (1 + 0.2 * number),
                    "device": "NVIDIA H200",
                    "model": "",
                }
            )
    return pd.DataFrame(rows)


def _curves(
    generator: np.random.Generator, algorithms: Sequence[dict[str, str]], folds: int, epochs: int
) -> pd.DataFrame:
    rows = []
    for number, algorithm in enumerate(algorithms):
        for fold in range(folds):
            for epoch in range(epochs):
                progress = 1 - np.exp(-4 * (epoch + 1) / epochs)
                noise = generator.normal(0, 0.02, 3)
                rows.append(
                    {
                        **algorithm,
                        "fold": fold,
                        "epoch": epoch,
                        "train_loss": -0.9 * progress + noise[0],
                        "val_loss": -0.8 * progress + noise[1],
                        "pseudo_dice": min(max(0.88 * progress + noise[2], 0), 1),
                        "learning_rate": 0.01 * (1 - epoch / epochs) ** 0.9,
                        "seconds": 20 + 6 * number,
                    }
                )
    return pd.DataFrame(rows)


def _equality(
    dataset: str, configuration: str, names: Sequence[str], folds: int, unequal: bool, accepted: bool
) -> dict[str, Any]:
    """What was equal; `unequal` gives the last algorithm other plans and another number of epochs."""
    runs, recipes = [], {}
    for name in names:
        own = name.endswith(f"({OWN_PLANS})")
        other = unequal and name == names[-1]
        network = "PlainConvUNet" if own or name == STOCK_TRAINER else name
        recipes[name] = {"network": network, "epochs": 10 if other else 20, "optimizer.lr": 0.001 if other else 0.01}
        plans = "77aa88bb" if own else "ffff0000" if other else "ab12cd34"
        hashes = {"plans": plans, "splits": "56ef78aa", "data": "90bc12de", "recipe": f"recipe of {name}"}
        environment = {"nnunetv2": "2.8.1", "torch": "2.11.0", "device": "NVIDIA H200"}
        runs += [
            {"algorithm": name, "fold": fold, "hashes": hashes, "environment": environment} for fold in range(folds)
        ]
    return {
        "dataset": dataset,
        "configuration": configuration,
        "baseline": names[0],
        "plans": {name: OWN_PLANS if name.endswith(f"({OWN_PLANS})") else PLANS for name in names},
        "runs": runs,
        "recipes": recipes,
        "accepted": accepted,
    }


def make_record(
    *,
    algorithms: int | Sequence[str] = 4,
    cases: int = 20,
    datasets: int = 1,
    labels: int = 2,
    folds: int = 5,
    epochs: int = 20,
    seed: int = 0,
    splits: Sequence[str] = ("cross-validation",),
    configurations: Sequence[str] = ("3d_fullres",),
    both_empty: int = 0,
    one_empty: int = 0,
    missing: int = 0,
    failed: int = 0,
    own_plan: bool = False,
    ensemble: bool = False,
    unequal: bool = False,
    accepted: bool = False,
    repeats: int | Sequence[int] = 0,
) -> Record:
    """Make a record up.

    Args:
        algorithms: trainers, or how many; the first is the baseline.
        cases: of every dataset.
        datasets: how many.
        labels: of every dataset.
        folds: trained folds.
        epochs: of every training.
        seed: of the random numbers.
        splits: "cross-validation", "test" or both.
        configurations: of every dataset.
        both_empty: cases in which the last label is in neither mask, for all algorithms.
        one_empty: further cases in which the last algorithm misses the last label.
        missing: cases, the last ones, that the last algorithm lacks.
        failed: algorithms, from the last one on, of which nothing is there but the first epochs of fold 0.
        own_plan: add the baseline on plans of its own.
        ensemble: add an ensemble.
        unequal: the last algorithm was trained with other plans, epochs and learning rate.
        accepted: the user accepts that.
        repeats: seeds with which every algorithm was trained, or how many for each of them; 0 for none.
    """
    generator = np.random.default_rng(seed)
    names = trainers(algorithms) if isinstance(algorithms, int) else list(algorithms)
    everyone = _algorithms(names, own_plan)
    present, gone = everyone[: len(everyone) - failed], everyone[len(everyone) - failed :]
    results, runs, curves, equality, failures = [], [], [], [], []
    for number, configuration in itertools.product(range(1, datasets + 1), configurations):
        dataset = f"Dataset{number:03}_Made"
        place = {"dataset": dataset, "configuration": configuration}
        for split in splits:
            table = _empty_some(_results(generator, present, cases, labels), both_empty, one_empty)
            lacking = table["case"].isin(table["case"].unique()[cases - missing :])
            table = table[~(lacking & (table["algorithm"] == present[-1]["algorithm"]))]
            if ensemble:
                table = pd.concat([table, _ensemble(table)])
            table["fold"] = [
                int(case.rpartition("_")[2]) % folds if split != "test" else pd.NA for case in table["case"]
            ]
            results.append(table.assign(split=split, **place))
        runs.append(_runs(generator, present, folds, epochs).assign(**place))
        curves.append(_curves(generator, present, folds, epochs).assign(**place))
        if gone:
            curves.append(_curves(generator, gone, 1, max(1, epochs // 4)).assign(**place))
        equality.append(
            _equality(dataset, configuration, [row["algorithm"] for row in present], folds, unequal, accepted)
        )
        for row in gone:
            command = f"nnUNetv2_train {number} {configuration} 0 -tr {row['trainer']}"
            failures.append(
                {
                    "task": f"{row['algorithm']}, {dataset}, fold 0",
                    "command": command,
                    "exit_code": 1,
                    "log": f"logs/{dataset}-{row['trainer']}-0.log",
                    "tail": "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n<the end & no more>",
                }
            )
    about = {
        "title": "A made-up benchmark",
        "command": "nnunet-plugins benchmark 1 --folds 0 1 2 3 4",
        "budget": f"{epochs} epochs x 50 iterations, folds {' '.join(map(str, range(folds)))}",
        "created": "2026-03-01T12:00:00+00:00",
        "hardware": ["NVIDIA H200, 139 GiB", "16 CPU cores, 128 GiB memory"],
        "versions": {"nnunetv2": "2.8.1", "torch": "2.11.0", "monai": "1.6.1"},
        "images": {},
        "ensembles": ["The ensemble of the two best has a pseudo Dice of 0.9."] if ensemble else [],
        "complete": not gone,
    }
    record = Record(
        results=pd.concat(results, ignore_index=True)[RESULTS].astype({"fold": "Int64"}),
        runs=pd.concat(runs, ignore_index=True)[RUNS],
        curves=pd.concat(curves, ignore_index=True)[CURVES],
        equality=equality,
        failures=failures,
        about=about,
    )
    numbers = [repeats] * len(everyone) if isinstance(repeats, int) else repeats
    seeds = {row["algorithm"]: number for row, number in zip(everyone, numbers, strict=True) if number}
    return _repeat(record, seeds, np.random.default_rng([seed, 1])) if seeds else record


def _repeat(record: Record, seeds: dict[str, int], generator: np.random.Generator) -> Record:
    """Take every algorithm's trainings for those of seed 1, and make further ones up, each a little better or worse."""

    def repeat(table: pd.DataFrame, vary: Sequence[str]) -> pd.DataFrame:
        parts = []
        for name, rows in table.groupby("algorithm", sort=False):
            for number in range(1, seeds.get(name, 0) + 1):
                own = rows.assign(seed=str(number), trainer=rows["trainer"] + f"_{number}seed")
                if number > 1 and len(vary):
                    noise = generator.normal(0, 0.02) + generator.normal(0, 0.03, len(own))
                    own[vary] = np.clip(own[vary].to_numpy() + noise[:, None], 0, 1)
                parts.append(own)
            if name not in seeds:
                parts.append(rows)
        return pd.concat(parts, ignore_index=True)

    for entry in record.equality:
        for recipe in (entry["recipes"][name] for name in seeds if name in entry["recipes"]):
            recipe["seed"] = 1
        entry["runs"] = [
            {**run, **({"seed": str(number), "settings": {"seed": str(number)}} if number else {})}
            for run in entry["runs"]
            for number in (range(1, seeds[run["algorithm"]] + 1) if run["algorithm"] in seeds else [0])
        ]
    return replace(
        record,
        results=repeat(record.results, ["Dice", "NSD"]),
        runs=repeat(record.runs, []),
        curves=repeat(record.curves, ["pseudo_dice"]),
    )


def as_merged(record: Record, sources: dict[str, Sequence[str]]) -> Record:
    """Say that the cases of a record come from these sources in turn, each of which annotates the labels named.

    Args:
        record: of one dataset.
        sources: the names of its labels by source.
    """
    results = record.results
    names = list(sources)
    numbers, _ = pd.factorize(results["case"])
    results = results.assign(source=[names[number % len(names)] for number in numbers])
    known = [name in sources[source] for name, source in zip(results["name"], results["source"], strict=True)]
    table = {
        name: {"dataset": f"Dataset{n + 1:03}_{name}", "labels": list(own)}
        for n, (name, own) in enumerate(sources.items())
    }
    about = {**record.about, "sources": {dataset: table for dataset in results["dataset"].unique()}}
    return replace(record, results=results[known], about=about)


def with_objects(record: Record, counts: dict[str, Sequence[tuple[float, ...]]], label: str = "2") -> Record:
    """Say that a label consists of objects, of which this is found, by algorithm and in the order of the cases.

    Args:
        record: without repeats.
        counts: TP, FP, FN, SQ and Dice per object; the other columns follow from them.
        label: the other labels have no such columns.
    """
    results = record.results.copy()
    results[[name for name in OBJECT_COLUMNS if name not in results]] = np.nan
    for algorithm, of_cases in counts.items():
        own = results.index[(results["algorithm"] == algorithm) & (results["label"] == label)]
        for row, (matched, extra, missed, iou, dice) in zip(own, of_cases, strict=True):
            total = 2 * matched + extra + missed
            f1 = 2 * matched / total if total else np.nan
            pq = f1 * iou if matched else f1
            results.loc[row, list(OBJECT_COLUMNS)] = [matched, extra, missed, f1, iou, pq, dice]
    return replace(record, results=whole_counts(results))
