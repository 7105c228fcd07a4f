"""The tasks that evaluate segmentations, with what a dataset says of its labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_plugins.benchmark.protocol import Protocol
from nnunet_plugins.benchmark.tasks import Folders, Task, task_name
from nnunet_plugins.files import read_json, unfinished
from nnunet_plugins.planning.objects import OBJECTS, OPTION, object_labels


def metrics_task(
    made: Task,
    name: str,
    title: str,
    identity: Mapping[str, str],
    folds: Sequence[int],
    protocol: Protocol,
    folders: Folders,
    *,
    split: str = "cross-validation",
    predictions: Path | None = None,
    labels: Path | None = None,
) -> Task:
    """Return the evaluation of a folder of segmentations.

    Args:
        made: the task that makes them. If these are in a folder that is not the benchmark's alone, it has a lock.
        name: of the segmentations, unique in a benchmark.
        title: what people call what has made them.
        identity: what the rows of the record have in common that come from the table, besides the split.
        folds: of whose networks they are.
        protocol: the question.
        folders: where things lie.
        split: "cross-validation" or "test".
        predictions: the folder, where it is not the output of `made`.
        labels: dataset.json with the labels, where it is not the one of the predictions.

    Raises:
        InputError: if the dataset names labels that consist of objects, and has no such ones.
    """
    dataset, is_test = identity["dataset"], split == "test"
    predictions = predictions or made.output
    assert predictions is not None
    truth = _test_labels(dataset, folders) if is_test else folders.truth(dataset)
    output = folders.metrics(name, folds, protocol.tolerance, split)
    options = ["-o", str(unfinished(output)), "--tolerance", f"{protocol.tolerance:g}", "--chill", "--overwrite"]
    options += ["-djfile", str(labels)] if labels else []
    # Said here and not left to the models' dataset.json: what consists of objects may be known after the training only.
    objects = objects_of(dataset, folders)
    options += [OPTION, *objects] if objects else []
    return Task(
        name=task_name("metrics", name, *(["test"] if is_test else [])),
        title=f"{dataset} {identity['configuration']}: metrics of {title}{' on the test images' * is_test}",
        command=("nnunet-plugins", "evaluate", str(predictions), str(truth), *options),
        needs=(made.name,),
        output=output,
        inputs=(predictions, truth, *([labels] if labels else [])),
        rows={"split": split, **identity},
        lock=made.lock,
        partly=True,
    )


def metrics_of_test_images(
    made: Task, name: str, title: str, identity: Mapping[str, str], protocol: Protocol, folders: Folders
) -> list[Task]:
    """Return the metrics of predicted test images, if there are labels."""
    if not _test_labels(identity["dataset"], folders).is_dir():
        return []
    return [metrics_task(made, name, title, identity, protocol.folds, protocol, folders, split="test")]


def _test_labels(dataset: str, folders: Folders) -> Path:
    return folders.raw / dataset / "labelsTs"


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
