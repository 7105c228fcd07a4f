"""The graph of commands after the trainings: cross-validated results, ensembles, test images, metrics."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from nnunet_plugins.benchmark.done import best_folder, best_of, is_trained
from nnunet_plugins.benchmark.metrics import metrics_of_test_images, metrics_task
from nnunet_plugins.benchmark.protocol import Protocol, Run, first_repeats, joint_identity
from nnunet_plugins.benchmark.tasks import Folders, Task, join_folds, sources_of, task_name
from nnunet_plugins.files import short_name, unfinished
from nnunet_plugins.trainers.fold_folder import LOCK

EXPORTS = 3
"""Processes in which a prediction writes its files, at most, and as many that prepare images; as in nnU-Net."""
WORK_OF_A_PROCESS = 4_000_000
"""Bytes of images that are resampled and written in about the seconds in which a process loads its libraries."""
_READERS, _WRITERS = "nnUNet_npp", "nnUNet_nps"
"""nnU-Net's variables for the numbers of processes. They are no part of the command: what it makes is the same."""


def result_tasks(protocol: Protocol, folders: Folders, *, as_if_trained: bool = False) -> list[Task]:
    """Return the tasks after the trainings, for the runs that have folds whose training and validation are done.

    Args:
        protocol: the question.
        folders: where things lie.
        as_if_trained: for all runs and folds.
    """
    tasks: list[Task] = []
    trained = trained_folds(protocol, folders, as_if_trained=as_if_trained)
    for run, done in trained.items():
        tasks += _cross_validate(run, done, protocol, folders)
        if whole := protocol.in_one_pass(run):
            tasks += _in_one_pass(whole, done, protocol, folders)
    for run in protocol.runs():
        if (one := protocol.beside(run)) in trained and run.dataset in sources_of(one.dataset, folders):
            tasks += _one_for_many(protocol.one_for_many(run), one, trained[one], protocol, folders)
    for atlas in protocol.atlases():
        tasks += _atlas(atlas, protocol, folders)
    before: dict[str, tuple[str, ...]] = {}
    for group in whole_groups(trained, protocol) if protocol.with_ensembles else ():
        dataset = group[0].dataset
        found = _find_best(group, before.get(dataset, ()), protocol, folders)
        # All of them write into one folder.
        before[dataset] = (found[0].name,)
        tasks += found
    return tasks


def prediction_tasks(protocol: Protocol, folders: Folders, *, as_if_trained: bool = False) -> list[Task]:
    """Return the tasks on test images, if asked for: predictions of runs with all their folds, and nnU-Net's choice.

    The choice is what `find_best_configuration` found, a run or an ensemble, with its post-processing; it is known when
    the tasks of `result_tasks` are done.

    Args:
        protocol: the question.
        folders: where things lie.
        as_if_trained: for all runs and folds.
    """
    tasks: list[Task] = []
    if not protocol.test:
        return tasks
    for group in whole_groups(trained_folds(protocol, folders, as_if_trained=as_if_trained), protocol):
        if not (folders.raw / group[0].dataset / "imagesTs").is_dir():
            continue
        choice = read_choice(group, protocol, folders)
        joined = choice.members if choice and len(choice.members) > 1 else ()
        for run in group:
            tasks += _predict(run, protocol, folders, with_probabilities=run in joined)
        if choice:
            tasks += _choose(choice, protocol, folders)
    return tasks


def trained_folds(protocol: Protocol, folders: Folders, *, as_if_trained: bool = False) -> dict[Run, list[int]]:
    """Return the folds that are trained and validated, of the runs that have any."""
    folds = {
        run: [fold for fold in protocol.folds if as_if_trained or is_trained(folders.fold(run, fold))]
        for run in protocol.runs()
    }
    return {run: done for run, done in folds.items() if done}


def whole_groups(trained: Mapping[Run, Sequence[int]], protocol: Protocol) -> list[list[Run]]:
    """Return the runs that have all their folds, by dataset, plans and configuration."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run, done in trained.items():
        if tuple(done) == protocol.folds:
            groups.setdefault((run.dataset, run.plans, run.configuration), []).append(run)
    return list(groups.values())


@dataclass(frozen=True)
class Choice:
    """What `find_best_configuration` took as the best of a group of runs.

    Attributes:
        key: nnU-Net's name for it.
        members: one run, or the two of an ensemble.
        source: folder with its cross-validated segmentations and its post-processing.
    """

    key: str
    members: tuple[Run, ...]
    source: Path

    @property
    def name(self) -> str:
        """A name for files, unique in a benchmark."""
        return f"{self.members[0].dataset}__{self.key}__postprocessed"

    @property
    def identity(self) -> dict[str, str]:
        """What its rows in the record have in common."""
        identity = joint_identity(self.members, "choice")
        return {**identity, "algorithm": f"{identity['algorithm']}, post-processed"}


def read_choice(group: Sequence[Run], protocol: Protocol, folders: Folders) -> Choice | None:
    """Return nnU-Net's choice among runs on one plan; None as long as it has not, or does not, choose among them."""
    best = _find_best(group, (), protocol, folders)[0]
    if not protocol.with_ensembles or not best.is_done(folders.ledger):
        return None
    key = best_of(folders.best(group[0], protocol.folds))
    assert key is not None
    source = best_folder(key, folders.results / group[0].dataset, join_folds(protocol.folds))
    return Choice(key, tuple(run for run in group if run.model in key.split("___")), source)


def ensemble_name(one: Run, other: Run, folds: Sequence[int]) -> str:
    """Return nnU-Net's name for the ensemble of two models."""
    return f"ensemble___{one.model}___{other.model}___{join_folds(folds)}"


def _cross_validate(run: Run, folds: Sequence[int], protocol: Protocol, folders: Folders) -> list[Task]:
    output = folders.validated(run, folds)
    model = ["-c", run.configuration, "-p", run.plans, "-tr", run.trainer, "-f", *map(str, folds)]
    merge = Task(
        name=task_name("merge", run.name),
        title=f"{run.dataset} {run.configuration}: cross-validated segmentations of {run.title}",
        command=("nnUNetv2_accumulate_crossval_results", run.dataset, *model, "-o", str(unfinished(output))),
        output=output,
        inputs=(*folders.trained(run, folds), folders.truth(run.dataset)),
    )
    return [merge, metrics_task(merge, run.name, run.title, run.identity, folds, protocol, folders)]


def _in_one_pass(run: Run, folds: Sequence[int], protocol: Protocol, folders: Folders) -> list[Task]:
    """Return the prediction of each case as a whole by the fold that has not seen it, and its metrics."""
    name = f"{run.name}__one_pass"
    output = folders.output / "cross-validation" / short_name(f"{name}__folds_{join_folds(folds)}")
    command = ["nnunet-plugins", "predict", "--cross-validation", "-o", str(unfinished(output)), "-d", run.dataset]
    command += ["-c", run.configuration, "-p", run.plans, "-tr", run.trainer, "-f", *map(str, folds)]
    images = folders.raw / run.dataset / "imagesTr"
    predict = Task(
        name=task_name("predict", name),
        title=f"{run.dataset} {run.configuration}: cross-validated segmentations of {run.title}",
        command=(*command, "--whole-volume", "auto", "-device", protocol.device, "--continue_prediction"),
        slot="train",
        output=output,
        inputs=(
            *folders.trained(run, folds),
            folders.preprocessed / run.dataset / "splits_final.json",
            images if images.is_dir() else folders.raw / run.dataset / "dataset.json",
        ),
        goes_on=True,
        partly=True,
    )
    return [predict, metrics_task(predict, name, run.title, run.identity, folds, protocol, folders)]


def _one_for_many(row: Run, one: Run, folds: Sequence[int], protocol: Protocol, folders: Folders) -> list[Task]:
    """Return what a network for many datasets makes of the cases of one, in its labels, and the metrics of that.

    Args:
        row: what stands for it there.
        one: the network, on the merged dataset.
        folds: its trained ones.
        protocol: the question.
        folders: where things lie.
    """
    name = f"{one.name}__of_{row.dataset[:10]}"
    output = folders.output / "cross-validation" / short_name(f"{name}__folds_{join_folds(folds)}")
    predicted = folders.validated(one, folds)
    description, own = (folders.preprocessed / dataset / "dataset.json" for dataset in (one.dataset, row.dataset))
    view = Task(
        name=task_name("view", name),
        title=f"{row.dataset} {row.configuration}: segmentations of {row.algorithm}",
        command=(
            *("nnunet-plugins", "labels", "-i", str(predicted), "-o", str(unfinished(output)), "-djfile"),
            *(str(description), "--dataset", row.dataset, "--own-cases"),
        ),
        needs=(task_name("merge", one.name),),
        output=output,
        inputs=(predicted, description),
        partly=True,
    )
    return [view, metrics_task(view, name, row.algorithm, row.identity, folds, protocol, folders, labels=own)]


def _atlas(atlas: Run, protocol: Protocol, folders: Folders) -> list[Task]:
    """Return the atlases of all folds, with the segmentations of what each was not made of, and their metrics."""
    output, folds = folders.validated(atlas, protocol.folds), protocol.folds
    planned = folders.preprocessed / atlas.dataset
    place = ["-d", atlas.dataset, "-c", atlas.configuration, "-p", atlas.plans, "-f", *map(str, folds)]
    make = Task(
        name=task_name("atlas", atlas.name),
        title=f"{atlas.dataset} {atlas.configuration}: atlas of the training labels",
        command=("nnunet-plugins", "evaluate", "--atlas", *place, "-o", str(unfinished(output))),
        needs=(task_name("split", atlas.dataset),),
        output=output,
        inputs=(
            *(planned / name for name in (f"{atlas.plans}.json", "dataset.json", "splits_final.json")),
            folders.truth(atlas.dataset),
        ),
    )
    return [make, metrics_task(make, atlas.name, "the atlas", atlas.identity, folds, protocol, folders)]


def _find_best(group: Sequence[Run], before: Sequence[str], protocol: Protocol, folders: Folders) -> list[Task]:
    """Return the comparison of all networks on one plan and the ensembles of all pairs, then the ensembles' metrics.

    Of several trainings of a network the first takes part.
    """
    group, folds = first_repeats(group), protocol.folds
    first = group[0]
    place = f"{first.dataset} {first.configuration}"
    pairs = {ensemble_name(*pair, folds): pair for pair in combinations(group, 2)}
    output = folders.best(first, folds)
    ensembles = folders.results / first.dataset / "ensembles"
    truths = dict.fromkeys([folders.truth(first.dataset), folders.kept_truth(first.dataset)])
    command = ["nnUNetv2_find_best_configuration", first.dataset, "-p", first.plans, "-c", first.configuration, "-tr"]

    best = Task(
        name=task_name("best", first.dataset, first.plans, first.configuration),
        title=f"{place}: best configuration, ensembles of all pairs, post-processing",
        command=(*command, *(run.trainer for run in group), "-f", *map(str, folds)),
        needs=tuple(before),
        output=output,
        # It evaluates models against the one, and ensembles against the other.
        inputs=(*(file for run in group for file in folders.trained(run, folds)), *truths),
        makes=tuple(ensembles / name / "summary.json" for name in pairs),
        there=("post-processing", str(output), str(ensembles.parent), join_folds(folds)),
        # The folders of ensembles and models are everybody's.
        lock=folders.results / first.dataset / LOCK,
        keeps_text=True,
    )
    metrics = []
    for name, pair in pairs.items():
        identity, found = joint_identity(pair, "ensemble"), ensembles / name
        called = f"{first.dataset}__{name}"
        metrics.append(
            metrics_task(best, called, identity["algorithm"], identity, folds, protocol, folders, predictions=found)
        )
    return [best, *metrics]


def _predict(run: Run, protocol: Protocol, folders: Folders, *, with_probabilities: bool) -> list[Task]:
    """Return the prediction of the test images by all folds, and its metrics where there are labels."""
    output = folders.predictions(run.name, protocol.folds)
    command = ["nnUNetv2_predict", "-i", str(folders.raw / run.dataset / "imagesTs"), "-o", str(unfinished(output))]
    command += ["-d", run.dataset, "-c", run.configuration, "-p", run.plans, "-tr", run.trainer]
    command += ["-f", *map(str, protocol.folds), "-device", protocol.device, "--disable_progress_bar"]
    command.append("--continue_prediction")
    needs = []
    images = folders.raw / run.dataset / "imagesTs"
    work = sum(file.stat().st_size for file in images.iterdir() if file.is_file())
    processes = str(min(EXPORTS, 1 + work // WORK_OF_A_PROCESS))
    inputs = [*folders.trained(run, protocol.folds), images]
    if run.configuration == "3d_cascade_fullres":
        first = replace(run, configuration="3d_lowres")
        inputs.append(folders.predictions(first.name, protocol.folds))
        command += ["-prev_stage_predictions", str(inputs[-1])]
        needs.append(task_name("predict", first.name))
    # Those that an earlier choice has needed do no harm.
    if with_probabilities or any(output.glob("*.npz")):
        command.append("--save_probabilities")
    predict = Task(
        name=task_name("predict", run.name),
        title=f"{run.dataset} {run.configuration}: predict the test images with {run.title}",
        command=tuple(command),
        needs=tuple(needs),
        slot="train",
        output=output,
        inputs=tuple(inputs),
        goes_on=True,
        variables={_READERS: os.environ.get(_READERS, processes), _WRITERS: processes},
    )
    return [predict, *metrics_of_test_images(predict, run.name, run.title, run.identity, protocol, folders)]


def _choose(choice: Choice, protocol: Protocol, folders: Folders) -> list[Task]:
    """Return what makes nnU-Net's choice of the predictions of its members: ensemble, post-processing and metrics."""
    first, folds = choice.members[0], protocol.folds
    place = f"{first.dataset} {first.configuration}: "
    predicted = [folders.predictions(run.name, folds) for run in choice.members]
    needs = tuple(task_name("predict", run.name) for run in choice.members)
    tasks = []
    if len(predicted) > 1:
        joined = folders.predictions(f"{first.dataset}__{choice.key}", folds)
        tasks.append(
            Task(
                name=task_name("ensemble", first.dataset, choice.key),
                title=f"{place}ensemble of {' and '.join(run.algorithm for run in choice.members)} on the test images",
                command=("nnUNetv2_ensemble", "-i", *map(str, predicted), "-o", str(unfinished(joined))),
                needs=needs,
                output=joined,
                inputs=tuple(predicted),
            )
        )
        predicted, needs = [joined], (tasks[0].name,)
    output = folders.predictions(choice.name, folds)
    command = ["nnUNetv2_apply_postprocessing", "-i", str(predicted[0]), "-o", str(unfinished(output))]
    found = [choice.source / name for name in ("postprocessing.pkl", "plans.json", "dataset.json")]
    for option, file in zip(("pp_pkl_file", "plans_json", "dataset_json"), found, strict=True):
        command += [f"-{option}", str(file)]
    process = Task(
        name=task_name("postprocess", choice.name),
        title=f"{place}post-processing of nnU-Net's choice on the test images",
        command=tuple(command),
        needs=needs,
        output=output,
        inputs=(predicted[0], *found),
    )
    metrics = metrics_of_test_images(process, choice.name, "nnU-Net's choice", choice.identity, protocol, folders)
    return [*tasks, process, *metrics]
