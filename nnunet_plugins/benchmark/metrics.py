"""The tasks that evaluate segmentations, with what a dataset says of its labels."""

from collections.abc import Mapping
from pathlib import Path

from nnunet_plugins.benchmark.protocol import Protocol
from nnunet_plugins.benchmark.tasks import Folders, Task, task_name
from nnunet_plugins.files import read_json, unfinished
from nnunet_plugins.planning.objects import OBJECTS, OPTION, object_labels


def metrics_task(
    name: str,
    title: str,
    predictions: Path,
    truth: Path,
    output: Path,
    protocol: Protocol,
    after: Task,
    rows: Mapping[str, str],
    folders: Folders,
    lock: Path | None = None,
    labels: Path | None = None,
) -> Task:
    """Return the evaluation of a folder of segmentations.

    Args:
        name: of the task.
        title: of the task.
        predictions: the folder.
        truth: folder with the true ones.
        output: table to write.
        protocol: the question.
        after: the task that makes the predictions.
        rows: what the rows of the record have in common that come from the table.
        folders: where things lie.
        lock: of the task.
        labels: dataset.json with the labels, where it is not the one of the predictions.

    Raises:
        InputError: if the dataset names labels that consist of objects, and has no such ones.
    """
    options = ["-o", str(unfinished(output)), "--tolerance", f"{protocol.tolerance:g}", "--chill", "--overwrite"]
    options += ["-djfile", str(labels)] if labels else []
    # Said here and not left to the models' dataset.json: what consists of objects may be known after the training only.
    objects = objects_of(rows["dataset"], folders)
    options += [OPTION, *objects] if objects else []
    return Task(
        name=name,
        title=title,
        command=("nnunet-plugins", "evaluate", str(predictions), str(truth), *options),
        needs=(after.name,),
        output=output,
        inputs=(predictions, truth, *([labels] if labels else [])),
        rows=rows,
        lock=lock,
        partly=True,
    )


def objects_of(dataset: str, folders: Folders) -> tuple[str, ...]:
    """Return the labels of a dataset that consist of objects, as dataset.json of the raw data says.

    Where that is not here, it is the one of the preprocessed data.

    Raises:
        InputError: if it names what is no label.
    """
    files = [root / dataset / "dataset.json" for root in (folders.raw, folders.preprocessed)]
    file = next((file for file in files if file.is_file()), None)
    if file is None or OBJECTS not in read_json(file, dict):  # what else is wrong with it, nnU-Net tells in its turn
        return ()
    return object_labels(read_json(file, {"labels": dict}), file)


def metrics_of_test_images(
    name: str,
    title: str,
    predictions: Path,
    identity: Mapping[str, str],
    protocol: Protocol,
    after: Task,
    folders: Folders,
) -> list[Task]:
    """Return the metrics of predicted test images, if there are labels."""
    truth = folders.raw / identity["dataset"] / "labelsTs"
    if not truth.is_dir():
        return []
    file = folders.metrics(name, protocol.folds, protocol.tolerance, "test")
    title = f"{title} on the test images"
    rows = {"split": "test", **identity}
    task = task_name("metrics", name, "test")
    return [metrics_task(task, title, predictions, truth, file, protocol, after, rows, folders)]
