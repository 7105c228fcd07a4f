"""The graph of commands that a benchmark takes, up to the trainings; what comes after them is in `results.py`.

Every command is nnU-Net's own, or this package's on nnU-Net's files.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark import done
from nnunet_plugins.benchmark.protocol import PRESETS, Protocol, Run, first_repeats, starts_from_weights
from nnunet_plugins.benchmark.sources import source_files
from nnunet_plugins.datasets.sources import find_description, original_of, read_sources
from nnunet_plugins.datasets.split_commands import own_split
from nnunet_plugins.files import short_name, unfinished
from nnunet_plugins.provenance import Ledger
from nnunet_plugins.rows import without_seed
from nnunet_plugins.trainers.fold_folder import LOCK


@dataclass(frozen=True)
class Folders:
    """Where things lie: nnU-Net's three folders, and the benchmark's own."""

    raw: Path
    preprocessed: Path
    results: Path
    output: Path

    @cached_property
    def ledger(self) -> Ledger:
        """What knows the files of these folders."""
        return known_files(self.output, self.variables)

    @property
    def variables(self) -> dict[str, str]:
        """nnU-Net's variables for its folders."""
        folders = {"raw": self.raw, "preprocessed": self.preprocessed, "results": self.results}
        return {f"nnUNet_{name}": str(folder) for name, folder in folders.items()}

    def model(self, run: Run) -> Path:
        """Return the folder of a run's model."""
        return self.results / run.dataset / run.model

    def fold(self, run: Run, fold: int) -> Path:
        """Return the folder of one training."""
        return self.model(run) / f"fold_{fold}"

    def trained(self, run: Run, folds: Sequence[int]) -> tuple[Path, ...]:
        """Return the files that say which trainings they are: of whatever is made of the trainings, the inputs."""
        files = ("checkpoint_final.pth", "validation/summary.json")
        of_model = (self.model(run) / "plans.json", self.model(run) / "dataset.json")
        return (*of_model, *(self.fold(run, fold) / file for fold in folds for file in files))

    def truth(self, dataset: str) -> Path:
        """Return the folder with the true segmentations against which nnU-Net evaluates the cross-validation."""
        raw = self.raw / dataset / "labelsTr"
        return raw if raw.is_dir() else self.kept_truth(dataset)

    def kept_truth(self, dataset: str) -> Path:
        """Return the folder with the true segmentations as they were when the data were preprocessed."""
        return self.preprocessed / dataset / "gt_segmentations"

    def recipe(self, run: Run) -> Path:
        """Return the file that describes a run's network and recipe."""
        return self.output / "recipes" / f"{short_name(run.name)}.json"

    def validated(self, run: Run, folds: Sequence[int]) -> Path:
        """Return the folder with the cross-validated segmentations of a run."""
        return self.output / "cross-validation" / short_name(f"{run.name}__folds_{join_folds(folds)}")

    def metrics(self, name: str, folds: Sequence[int], tolerance: float, split: str) -> Path:
        """Return the table of metrics of a run or an ensemble."""
        name = short_name(f"{name}__folds_{join_folds(folds)}__{tolerance:g}mm")
        return self.output / "metrics" / split / f"{name}.csv"

    def best(self, run: Run, folds: Sequence[int]) -> Path:
        """Return the file with what nnU-Net's find_best_configuration said of all runs on a run's plan."""
        name = short_name(f"{run.dataset}__{run.plans}__{run.configuration}__folds_{join_folds(folds)}")
        return self.output / "best" / f"{name}.txt"

    def predictions(self, name: str, folds: Sequence[int]) -> Path:
        """Return the folder with the segmentations of the test images by a run, an ensemble or nnU-Net's choice."""
        return self.output / "test" / short_name(f"{name}__folds_{join_folds(folds)}")


def known_files(output: Path, variables: Mapping[str, str]) -> Ledger:
    """Return what knows the files of the benchmark's folder, and of those of nnU-Net's that the variables name."""
    names = ("raw", "preprocessed", "results")
    roots = {name: Path(place) for name in names if (place := variables.get(f"nnUNet_{name}"))}
    return Ledger({**roots, "output": output}, output / "hashes.json")


@dataclass(frozen=True)
class Task:
    """One command of the graph.

    Attributes:
        name: unique, and fit for a file name.
        title: for people.
        command: console script and arguments.
        needs: names of tasks that have to be done before.
        slot: "train" for what takes a whole GPU or CPU slot, "light" for the rest.
        output: file or folder that the command makes, whole or not at all: it is written to `unfinished(output)`, which
            stands in `command`, and renamed. None where the command sees to it itself.
        inputs: files and folders that the output is made of.
        makes: files that the command makes besides.
        there: without an output, or besides it, how to see that all is there; see `done.py`.
        lock: file to lock, where what is made is not the benchmark's alone.
        goes_on: the command can go on with an output that an interruption has left unfinished.
        keeps_text: the output is what the command prints.
        partly: exit code 1 with an output means that it is made, but for cases that the command has named.
        training: for a training, its run and fold.
        maps: for maps of a network, its run and the cases.
        variables: environment variables that only this command gets.
        rows: which rows of the results come from the output; see `provenance.py`.
    """

    name: str
    title: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    slot: str = "light"
    output: Path | None = None
    inputs: tuple[Path, ...] = ()
    makes: tuple[Path, ...] = ()
    there: tuple[Any, ...] = ()
    lock: Path | None = None
    keeps_text: bool = False
    partly: bool = False
    goes_on: bool = False
    training: tuple[Run, int] | None = None
    maps: tuple[Run, tuple[str, ...]] | None = None
    variables: Mapping[str, str] = field(default_factory=dict, compare=False)
    rows: Mapping[str, str] = field(default_factory=dict, compare=False)

    def is_done(self, ledger: Ledger) -> bool:
        """Tell from the files whether there is nothing left to do."""
        return done.is_done(ledger, self.command, self.output, self.inputs, self.makes, self.there)


def training_tasks(protocol: Protocol, folders: Folders) -> list[Task]:
    """Return the tasks up to the trainings: plans, preprocessed data, splits, recipes, and every fold of every run."""
    runs = protocol.runs()
    tasks: list[Task] = []
    # Each dataset comes after that whose folds it takes.
    for dataset in sorted(
        merged_first(protocol, folders), key=lambda one: _twin_with_folds(one, protocol, folders) is not None
    ):
        of_dataset = [run for run in runs if run.dataset == dataset]
        made_to_fit = {run.plans: run for run in of_dataset if protocol.is_made_to_fit(run)}
        planned: list[str] = []
        normalised = protocol.normalised_plans()
        for plans in dict.fromkeys(protocol.plans if run.plans in made_to_fit else run.plans for run in of_dataset):
            if plans in normalised:
                tasks.append(_normalise(dataset, plans, normalised[plans], protocol, folders, needs=planned))
                planned.append(tasks[-1].name)
            tasks.append(_preprocess(dataset, plans, protocol, folders, before=planned))
            planned.append(tasks[-1].name)
        fitted = [_fit(run, protocol, folders, needs=planned) for run in made_to_fit.values()]
        tasks += [*fitted, _split(dataset, protocol, folders, needs=[*planned, *(task.name for task in fitted)])]
    tasks += [_describe(run, protocol, folders) for run in runs]
    # Fold by fold: a benchmark that is stopped early has whole folds to compare. Further repeats come last.
    return tasks + [
        _train(run, fold, runs, protocol, folders) for part in _rounds(runs) for fold in protocol.folds for run in part
    ]


def _rounds(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the first repeats of all networks, then the second ones of those that have one, and so on."""
    found: list[list[Run]] = []
    left = list(runs)
    while left:
        found.append(first_repeats(left))
        left = [run for run in left if run not in found[-1]]
    return found


def task_name(*parts: object) -> str:
    """Return a name, unique and fit for a file name, of unique parts."""
    return short_name("__".join(map(str, parts)))


def join_folds(folds: Sequence[int]) -> str:
    """Return folds as nnU-Net writes them in names."""
    return "_".join(map(str, folds))


def _preprocess(dataset: str, plans: str, protocol: Protocol, folders: Folders, before: Sequence[str]) -> Task:
    folder = folders.preprocessed / dataset
    planners = {name: planner for planner, name in PRESETS.values()}
    configurations = protocol.configurations
    number = str(int(dataset.removeprefix("Dataset")[:3]))  # these two commands take no name
    if (folder / f"{plans}.json").exists() or plans in protocol.normalised_plans():
        command = ["nnUNetv2_preprocess", "-d", number, "-plans_name", plans, "-c", *configurations]
    else:
        # Plans of another name are the user's own; `check` has seen to it that they exist.
        planner = planners.get(plans, "ExperimentPlanner")
        command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-pl", planner, "-c", *configurations]
    return Task(
        name=task_name("preprocess", dataset, plans),
        title=f"{dataset}: plan and preprocess, {plans}",
        command=tuple(command),
        there=("preprocessed", str(folder), plans, list(configurations)),
        lock=folder / LOCK,
        # One after the other: they share the fingerprint.
        needs=tuple(before),
        # nnU-Net's planner takes as many threads as a training has processes that load, and 0 are too few for it.
        variables={"nnUNet_n_proc_DA": "1"},
    )


def _fit(run: Run, protocol: Protocol, folders: Folders, needs: Sequence[str]) -> Task:
    folder = folders.preprocessed / run.dataset
    command = ["nnunet-plugins", "plan", "-d", run.dataset, "-tr", without_seed(run.trainer), "--like", protocol.plans]
    command += ["--gpu-memory", f"{protocol.gpu_memory:g}", "--name", run.plans]
    # All configurations: a later benchmark may ask for another one.
    return Task(
        name=task_name("plan", run.dataset, run.plans),
        title=f"{run.dataset}: plans that fit {protocol.gpu_memory:g} GB with {run.algorithm}",
        command=(*command, *([] if protocol.device == "cuda" else ["--cpu"])),
        there=("plans", str(folder / f"{run.plans}.json"), str(folder / f"{protocol.plans}.json")),
        lock=folder / LOCK,
        needs=tuple(needs),
    )


def _normalise(
    dataset: str, plans: str, scheme: str, protocol: Protocol, folders: Folders, needs: Sequence[str]
) -> Task:
    folder = folders.preprocessed / dataset
    command = ["nnunet-plugins", "plan", "-d", dataset, "--normalisation", scheme, "--like", protocol.plans]
    return Task(
        name=task_name("plan", dataset, plans),
        title=f"{dataset}: plans with {scheme}",
        command=(*command, "--name", plans),
        there=("normalised", str(folder / f"{plans}.json"), str(folder / f"{protocol.plans}.json"), scheme),
        lock=folder / LOCK,
        needs=tuple(needs),
    )


def merged_first(protocol: Protocol, folders: Folders) -> Sequence[str]:
    """Return the datasets in the order in which they are split.

    A merged dataset and those that it was merged of have one and the same folds: its own, if it has any or nobody has
    some, for it knows the groups of all cases; else those of the datasets.
    """
    if protocol.merged is None:
        return protocol.datasets
    others = [dataset for dataset in protocol.datasets if dataset != protocol.merged]
    of_it = sources_of(protocol.merged, folders)
    if _splits(protocol.merged, folders).is_file() or not any(_splits(one, folders).is_file() for one in of_it):
        return [protocol.merged, *others]
    return [*others, protocol.merged]


def sources_of(merged: str, folders: Folders) -> list[str]:
    """Return the full names of the datasets that a dataset was merged of.

    Raises:
        InputError: if it was not merged.
    """
    description, file = find_description(merged, folders.preprocessed, folders.raw)
    return [source.dataset for source in read_sources(description, file).values()]


def shares_folds_of(dataset: str, datasets: Sequence[str], folders: Folders, *, grouped: bool) -> str | None:
    """Return the dataset whose folds a twin, or the dataset that it is of, takes; None if it makes its own.

    Args:
        dataset: full name.
        datasets: all of the benchmark. Of twins among them, the first with splits has those of all.
        folders: where things lie.
        grouped: groups are to be kept together, as splits from outside the benchmark may not do.
    """
    roots = (folders.preprocessed, folders.raw)
    originals = {one: original_of(*find_description(one, *roots)) or one for one in datasets}
    original = originals[dataset]
    alike = sorted((one for one in originals if originals[one] == original), key=lambda one: one != original)
    outside = [] if grouped else [original]
    first = next((one for one in (*alike, *outside) if _splits(one, folders).is_file()), alike[0])
    return None if first == dataset else first


def _twin_with_folds(dataset: str, protocol: Protocol, folders: Folders) -> str | None:
    if protocol.merged and dataset in (protocol.merged, *sources_of(protocol.merged, folders)):
        return None
    return shares_folds_of(dataset, protocol.datasets, folders, grouped=dataset in protocol.groups)


def _splits(dataset: str, folders: Folders) -> Path:
    return folders.preprocessed / dataset / "splits_final.json"


def _split(dataset: str, protocol: Protocol, folders: Folders, needs: Sequence[str]) -> Task:
    file, groups, merged = _splits(dataset, folders), protocol.groups.get(dataset), protocol.merged
    command, needs = ["nnunet-plugins", "split", "-d", dataset], list(needs)
    of_it = sources_of(merged, folders) if merged else []
    is_first = merged is not None and merged_first(protocol, folders)[0] == merged
    if dataset == merged and not is_first:
        command += ["--like", "sources"]
        needs += [task_name("split", one) for one in of_it]
    elif dataset in of_it and is_first:
        command += ["--like", str(merged)]
        needs.append(task_name("split", merged))
    elif like := _twin_with_folds(dataset, protocol, folders):
        command += ["--like", like]
        needs += [task_name("split", like)] if like in protocol.datasets else []
    else:
        description, _ = find_description(dataset, folders.preprocessed, folders.raw)
        command = own_split(dataset, description, protocol.number_of_folds, groups)
    return Task(
        name=task_name("split", dataset),
        title=f"{dataset}: splits",
        command=tuple(command),
        there=("splits", str(file), None if "--like" in command else groups, protocol.number_of_folds),
        lock=file.with_name(LOCK),
        needs=tuple(needs),
    )


def _describe(run: Run, protocol: Protocol, folders: Folders) -> Task:
    output = folders.recipe(run)
    planned = folders.preprocessed / run.dataset
    start = _start(run, protocol)
    command = [sys.executable, "-m", "nnunet_plugins.benchmark.recipe", run.dataset, run.configuration, run.plans]
    return Task(
        name=task_name("describe", run.name),
        title=f"{run.dataset} {run.configuration}: network and recipe of {run.title}",
        command=(*command, run.trainer, str(unfinished(output)), *start),
        needs=(task_name("split", run.dataset),),
        output=output,
        inputs=(
            planned / f"{run.plans}.json",
            planned / "dataset.json",
            *source_files(run.trainer),
            *map(Path, start),
        ),
    )


def _train(run: Run, fold: int, runs: Sequence[Run], protocol: Protocol, folders: Folders) -> Task:
    model = ["-tr", run.trainer, "-p", run.plans, "-device", protocol.device]
    needs = [task_name("describe", run.name)]
    if run.configuration == "3d_cascade_fullres":
        # The second stage trains on the first one's cross-validated segmentations of all cases.
        first = replace(run, configuration="3d_lowres")
        needs += [task_name("train", first.name, fold) for fold in protocol.folds if first in runs]
    folder = folders.fold(run, fold)
    # `--c` goes on from the newest checkpoint and starts afresh without one. nnU-Net does not take it beside weights to
    # start from; where there is a checkpoint, `run_task` puts it in their place.
    start = _start(run, protocol)
    begin = ["-pretrained_weights", *start] if start else ["--c"]
    return Task(
        name=task_name("train", run.name, fold),
        title=f"{run.dataset} {run.configuration}: train {run.title}, fold {fold}",
        # Probabilities are for the ensembles.
        command=("nnUNetv2_train", run.dataset, run.configuration, str(fold), *model, "--npz", *begin),
        there=("trained", str(folder)),
        lock=folder / LOCK,
        needs=tuple(needs),
        slot="train",
        training=(run, fold),
    )


def _start(run: Run, protocol: Protocol) -> tuple[str, ...]:
    """Return the checkpoint from which a run starts, if it starts from one."""
    return (protocol.pretrained,) if protocol.pretrained and starts_from_weights(run.trainer) else ()
