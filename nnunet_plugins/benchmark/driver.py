"""`nnunet-plugins benchmark`: from the question to the report, as far as it is not done yet."""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark import command, equality
from nnunet_plugins.benchmark.cluster import configure, read_cluster
from nnunet_plugins.benchmark.display import Display
from nnunet_plugins.benchmark.engine import NOTHING_FAILED, Outcome, read_state, run_tasks, tasks_left
from nnunet_plugins.benchmark.kept import NOTHING_KEPT, TRAIN_AGAIN, Kept, read_kept
from nnunet_plugins.benchmark.progress import duration
from nnunet_plugins.benchmark.protocol import (
    DEFAULT_PLANS,
    PARTIAL_LABELS,
    PRESETS,
    BenchmarkError,
    Protocol,
    first_repeats,
    is_fitted,
)
from nnunet_plugins.benchmark.repeats import check_repeats
from nnunet_plugins.benchmark.results import ensemble_name, prediction_tasks, result_tasks, whole_groups
from nnunet_plugins.benchmark.start import check_start
from nnunet_plugins.benchmark.tasks import Folders, Task, training_tasks
from nnunet_plugins.benchmark.trainers import find_trainers, rule_out
from nnunet_plugins.datasets.preprocessed import PLANS, existing_cases, is_preprocessed
from nnunet_plugins.files import hold_lock, lock_holder, read_json, unfinished, write_text
from nnunet_plugins.report.record import GONE

_LONGEST_FOLDER = 255  # bytes of a name, in most file systems


@dataclass(frozen=True)
class Place:
    """Where and how the tasks run.

    Attributes:
        slots: trainings at a time on this machine: its GPUs, or shares of its cores.
        retries: how often a failed task is tried again.
        cluster: YAML file that describes a cluster; this machine alone if None.
        accept_unequal: compare runs even where what must be equal is not.
        train_again: train anew what the record has results of, and of which the model is gone.
    """

    slots: int = 1
    retries: int = 1
    cluster: Path | None = None
    accept_unequal: bool = False
    train_again: bool = False


def nnunet_folders(output: Path) -> Folders:
    """Return nnU-Net's folders from its variables, and the benchmark's.

    Raises:
        BenchmarkError: if a variable is not set.
    """
    missing = [name for name in command.FOLDERS if not os.environ.get(name)]
    if missing:
        raise BenchmarkError(f"{', '.join(missing)} not set; export {missing[0]}=/path/to/{missing[0]}")
    raw, preprocessed, results = (Path(os.environ[name]).absolute() for name in command.FOLDERS)
    return Folders(raw, preprocessed, results, output.absolute())


def check(protocol: Protocol, folders: Folders, place: Place) -> Protocol:
    """Find early what would go wrong late.

    Returns:
        The question, without the rivals and twins that a dataset's labels or plans rule out, which are told.

    Raises:
        BenchmarkError: naming it and the remedy.
        PlanError: for a trainer that nobody finds.
    """
    if place.cluster:
        read_cluster(place.cluster)
    import torch

    from nnunet_plugins.benchmark.folds import require_folds_of_twins, require_groups, require_same_folds
    from nnunet_plugins.planning.splits import read_splits

    if protocol.merged:
        _require_one_for_many(protocol)
    check_repeats(protocol)
    if protocol.with_maps and find_spec("captum") is None:
        raise BenchmarkError("--with-maps needs captum: pip install 'nnunet-plugins[explain]'")
    if protocol.normalisations and protocol.gpu_memory:
        raise BenchmarkError(
            "--normalisation changes nothing but that on plans that all share, and --gpu-memory gives each its own; "
            "leave out one of them"
        )
    find_trainers(protocol)
    check_start(protocol, folders)
    groups = whole_groups(dict.fromkeys(protocol.runs(), protocol.folds), protocol)
    for group in groups if protocol.with_ensembles else ():
        for pair in combinations(first_repeats(group), 2):
            name = ensemble_name(*pair, protocol.folds)
            if len(name.encode()) > _LONGEST_FOLDER:
                raise BenchmarkError(
                    f"nnU-Net's folder for the ensemble of {pair[0].algorithm} and {pair[1].algorithm} would have a "
                    f"name of {len(name)} characters, {name}, and file systems take {_LONGEST_FOLDER}. Use trainers "
                    "with fewer modifiers, or plans with a shorter name"
                )
    made_here = {DEFAULT_PLANS, *(name for _, name in PRESETS.values())}
    for dataset in protocol.datasets:
        folder = folders.preprocessed / dataset
        plans = folder / f"{protocol.plans}.json"
        if protocol.plans not in made_here and not plans.is_file():
            raise BenchmarkError(f"{plans} is missing; plans of that name are not nnU-Net's own, so make them first")
        if plans.is_file():
            known = read_json(plans, PLANS)["configurations"]
            if missing := [name for name in protocol.configurations if name not in known]:
                raise BenchmarkError(f"{plans} has no configuration {missing[0]}; it has {', '.join(known)}")
            schemes = {one for part in known.values() for one in part.get("normalization_schemes", ())}
            if len(schemes) == 1 and (same := schemes & set(protocol.normalisations)):
                raise BenchmarkError(f"--normalisation {same.pop()}: {plans} has it already, so the baseline has it")
            if protocol.with_atlas:
                _require_room_for_atlas(dataset, protocol, folder)
        splits = folder / "splits_final.json"
        number = protocol.number_of_folds
        if splits.is_file():
            number = len(read_splits(splits))
            _require_known_cases(splits, number, protocol.groups.get(dataset))
        # nnU-Net would not complain, but take a random split.
        if max(protocol.folds) >= number:
            remedy = f"-f {' '.join(map(str, range(number)))} are all of them"
            if not splits.is_file():
                remedy = f"give --folds {max(protocol.folds) + 1} for more"
            raise BenchmarkError(
                f"fold {max(protocol.folds)} does not exist: {dataset} is split into {number} folds; {remedy}"
            )
    if protocol.merged:
        require_same_folds(protocol.merged, folders)
    require_folds_of_twins(protocol, folders)
    require_groups(protocol, folders)
    if protocol.device == "cuda" and place.cluster is None and torch.cuda.device_count() < place.slots:
        raise BenchmarkError(
            f"{place.slots} GPU{'s are' if place.slots > 1 else ' is'} asked for, torch {torch.__version__} sees "
            f"{torch.cuda.device_count()}; give fewer with --gpus, or --device cpu"
        )
    return rule_out(protocol, folders)


def _require_one_for_many(protocol: Protocol) -> None:
    """Refuse trainers of which no network for many datasets can stand beside one per dataset."""
    if given := [trainer for trainer in protocol.trainers if PARTIAL_LABELS in trainer]:
        raise BenchmarkError(
            f"{given[0]}: --merged gives the trainers {PARTIAL_LABELS} on the merged dataset, and none on the others; "
            "name it without"
        )
    if all(map(is_fitted, protocol.trainers)):
        raise BenchmarkError(
            f"--merged: {', '.join(protocol.trainers)}: networks that are fitted to every image know no partial labels"
        )


def _require_room_for_atlas(dataset: str, protocol: Protocol, folder: Path) -> None:
    """Refuse patches that do not hold every image, as far as these are preprocessed."""
    from nnunet_plugins.metrics.atlas import require_room

    for configuration in protocol.configurations:
        if is_preprocessed(folder, protocol.plans, [configuration]):
            require_room(dataset, protocol.plans, configuration, existing_cases(folder))


def _require_known_cases(splits: Path, number: int, groups: str | None) -> None:
    """Refuse splits with cases that have left the dataset since: their trainings would fail."""
    from nnunet_plugins.datasets.split_commands import split_command
    from nnunet_plugins.planning.splits import read_splits

    if not (splits.parent / "gt_segmentations").is_dir():
        return
    there = set(existing_cases(splits.parent))
    named = {case for fold in read_splits(splits) for part in fold.values() for case in part}
    if gone := sorted(named - there):
        number = max(2, min(number, len(there)))
        command = split_command(splits.parent.name, number, groups, overwrite=True)
        raise BenchmarkError(
            f"{splits} names {gone[0]}, which the dataset does not have ({len(gone)} such); make it anew: {command}"
        )


def show_commands(protocol: Protocol, folders: Folders, *, train_again: bool = False) -> str:
    """Return all commands of a benchmark, each with whether it is done."""
    lines = []
    kept = NOTHING_KEPT if train_again else read_kept(protocol, folders, move=False).to_leave_out(folders)
    for task in _all_tasks(protocol, folders):
        line = shlex.join([*(f"{name}={value}" for name, value in task.variables.items()), *task.command])
        if task.output:
            line = line.replace(str(unfinished(task.output)), str(task.output))
        state = " (done)" if task.is_done(folders.ledger) else ""
        if task.training and kept.has(*task.training):
            state = f" (model {GONE}, its results are kept)"
        lines += [f"# {task.title}{state}", line]
    return "\n".join(lines)


def _all_tasks(protocol: Protocol, folders: Folders) -> list[Task]:
    """Return all tasks that can be told before the trainings are done."""
    later = (make(protocol, folders, as_if_trained=True) for make in (result_tasks, prediction_tasks))
    return [*training_tasks(protocol, folders), *chain.from_iterable(later)]


def run_benchmark(protocol: Protocol, folders: Folders, place: Place) -> bool:
    """Run what is left of a benchmark, and write the record and the report.

    Returns:
        Whether everything is done; what is not stands in the report.

    Raises:
        BenchmarkError: if something is wrong that no task can put right, such as unequal runs.
        KeyboardInterrupt: as it comes; nothing done is lost.
    """
    folders.output.mkdir(parents=True, exist_ok=True)
    lock = folders.output / "benchmark.lock"
    with hold_lock(lock) as held:
        if not held:
            holder = lock_holder(lock)
            raise BenchmarkError(
                f"another benchmark is running in {folders.output}{f' ({holder})' if holder else ''}; wait for it"
            )
        protocol.write(folders.output / "benchmark.json")
        return _run(protocol, folders, place)


def _run(protocol: Protocol, folders: Folders, place: Place) -> bool:
    start = time.monotonic()
    before = read_kept(protocol, folders)
    kept = NOTHING_KEPT if place.train_again else before.to_leave_out(folders)
    first = _tasks_to_train(protocol, folders, kept)
    trainings = [task for task in first if task.training]
    preparations = [task for task in first if not task.training]
    display = Display(len(_all_tasks(protocol, folders)))
    _say(f"{_describe_runs(protocol)} in {len(protocol.folds)} folds: {len(trainings)} trainings. In {folders.output}")
    if lines := kept.describe():
        _say(f"Models {GONE}, of which the record has results. These are kept; {TRAIN_AGAIN} trains anew:")
        _say("\n".join(f"  {line}" for line in lines))
    outcome = _perform(preparations, protocol, folders, place, display)
    if (possible := rule_out(protocol, folders)) != protocol:  # by plans that were made just now
        protocol = possible
        protocol.write(folders.output / "benchmark.json")
        first = _tasks_to_train(protocol, folders, kept)
        trainings = [task for task in first if task.training]
    if not place.accept_unequal:
        _refuse_unequal(protocol, folders, kept)
    outcome = _perform(trainings, protocol, folders, place, display, outcome)
    tasks = first
    for make in (result_tasks, prediction_tasks):
        found = make(protocol, folders)
        tasks = [*tasks, *found]
        display.total = len(tasks) + len(prediction_tasks(protocol, folders)) * (make is result_tasks)
        outcome = _perform(found, protocol, folders, place, display, outcome)
    kept = before.still_missing(folders)
    if protocol.with_maps:
        from nnunet_plugins.benchmark.collect import collect
        from nnunet_plugins.benchmark.maps import map_tasks

        record = collect(protocol, folders, tasks, accept_unequal=place.accept_unequal, command="", kept=kept)
        found = map_tasks(record, protocol, folders)
        tasks = [*tasks, *found]
        display.total = len(tasks)
        _perform(found, protocol, folders, place, display, outcome)
    page = write_report(protocol, folders, tasks, accept_unequal=place.accept_unequal, kept=kept)
    _say(f"Time of this run: {duration(time.monotonic() - start)}\nReport: {page}")
    left = tasks_left(tasks, folders.ledger)
    for task in left:
        _say(f"Not done: {task.title}, log: {folders.output / 'logs' / f'{task.name}.log'}")
    return not left


def _describe_runs(protocol: Protocol) -> str:
    """Say how many networks there are, and how many with their repeats."""
    runs = protocol.runs()
    networks = len(first_repeats(runs))
    return f"{len(runs)} runs" if len(runs) == networks else f"{len(runs)} runs, repeats of {networks} networks,"


def _tasks_to_train(protocol: Protocol, folders: Folders, kept: Kept) -> list[Task]:
    """Return the tasks up to the trainings, without those trainings that are kept.

    Raises:
        BenchmarkError: if a training needs one of these.
    """
    tasks = training_tasks(protocol, folders)
    left_out = {task.name: task for task in tasks if task.training and kept.has(*task.training)}
    for task in tasks:
        if task.name not in left_out and (needed := [name for name in task.needs if name in left_out]):
            raise BenchmarkError(
                f"{task.title} needs the model of {left_out[needed[0]].title.partition(': train ')[2]}, which is "
                f"{GONE}; give {TRAIN_AGAIN}"
            )
    return [task for task in tasks if task.name not in left_out]


def write_report(
    protocol: Protocol, folders: Folders, tasks: Sequence[Task], *, accept_unequal: bool, kept: Kept = NOTHING_KEPT
) -> Path:
    """Collect what is there into the record, and make the report from it; returns its page."""
    from nnunet_plugins.benchmark.collect import collect, collected_files, provenance
    from nnunet_plugins.report.build import build_report

    called = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    inputs = folders.ledger.identities(collected_files(protocol, folders))
    record = collect(protocol, folders, tasks, accept_unequal=accept_unequal, command=called, kept=kept)
    record.write(folders.output / "record")
    made = provenance(tasks, folders, inputs, kept, record.results)
    write_text(folders.output / "record" / "provenance.json", json.dumps(made, indent=1))
    return build_report(folders.output)


def _perform(
    tasks: Sequence[Task],
    protocol: Protocol,
    folders: Folders,
    place: Place,
    display: Display,
    earlier: Outcome = NOTHING_FAILED,
) -> Outcome:
    used = {task.slot for task in tasks_left(tasks, folders.ledger)}
    config = configure(
        folders.output,
        device=protocol.device,
        slots=place.slots,
        retries=place.retries,
        used=used,
        cluster=place.cluster,
        made_progress=_Progress(folders.output),
    )
    with display.bars():
        return run_tasks(
            tasks,
            config,
            folders.output,
            variables={**command.environment(None if place.cluster else place.slots), **folders.variables},
            device=protocol.device,
            tell=display.tell,
            look=display.look,
            earlier=earlier,
        )


def _refuse_unequal(protocol: Protocol, folders: Folders, kept: Kept = NOTHING_KEPT) -> None:
    """Compare recipes, and the conditions of what is trained already, before anything is trained.

    Raises:
        BenchmarkError: naming what is not equal.
    """
    runs = protocol.runs()
    for place in dict.fromkeys((run.dataset, run.configuration) for run in runs):
        group = [run for run in runs if (run.dataset, run.configuration) == place]
        proof = equality.prove(group, protocol.folds, folders, accepted=False, upcoming=True, kept=kept)
        for algorithm, problems in proof["problems"].items():
            for part, reason in problems.items():
                _say(f"The {part} of {algorithm} cannot be described, so it is compared with none: {reason}")
        if found := equality.refused(proof):
            lines = [
                f"  {one['algorithm']}: {one['what']} is {one['value']}, for {one['against']} it is {one['baseline']}"
                for one in found
            ]
            raise BenchmarkError(
                f"the runs on {' '.join(place)} are not equal:\n" + "\n".join(lines) + "\n"
                "--allow-unequal compares them all the same, and the report says so"
                + (f"; {TRAIN_AGAIN} trains those anew whose models are {GONE}" if kept.trainings else "")
            )


class _Progress:
    """Tells whether a task has gone on since it was last asked about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Any] = {}

    def __call__(self, order_file: str) -> bool:
        state = read_state(self.folder, Path(order_file).stem)
        fraction = state.get("fraction")
        before = self.seen.get(order_file, 0.0)
        self.seen[order_file] = fraction
        return fraction is not None and fraction > (before or 0.0)


def _say(text: str) -> None:
    print(text, flush=True)
