"""Maps of what the networks do with the cases of which the report shows pictures: `nnunet-plugins explain`, as tasks.

Which cases these are is known when all is evaluated, and the report's own rule chooses them.
"""

from collections.abc import Mapping
from pathlib import Path

from nnunet_plugins.benchmark.folds import held_out
from nnunet_plugins.benchmark.protocol import Protocol, Run, first_repeats, is_fitted
from nnunet_plugins.benchmark.results import trained_folds
from nnunet_plugins.benchmark.tasks import Folders, Task, task_name
from nnunet_plugins.files import short_name, unfinished
from nnunet_plugins.images.finding import composed
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.panels import cases_for_maps, image_of, shown_pair
from nnunet_plugins.report.record import Record

OTHERS = ("activations", "erf", "gates")
"""Maps that are left out: the report draws gates over the training, and the others take long."""


def map_tasks(record: Record, protocol: Protocol, folders: Folders) -> list[Task]:
    """Return the tasks that make maps of the worst and of the most different case of each comparison, if asked for.

    Each network that has feature maps gets one for each fold that has not seen some of these cases.

    Args:
        record: of what is evaluated.
        protocol: the question.
        folders: where things lie.
    """
    if not protocol.with_maps:
        return []
    tasks = []
    trained = trained_folds(protocol, folders)
    for comparison in analyse(record).comparisons:
        pair = shown_pair(comparison)
        place = (comparison.dataset, comparison.configuration)
        files = record.about["images"].get("/".join(place))
        if pair is None or files is None:
            continue
        by_fold: dict[int, dict[str, Path]] = {}
        folds = held_out(folders, comparison.dataset)
        for case in cases_for_maps(comparison.by_case["Dice"], *pair):
            image = image_of(case, files)
            # Of images that dataset.json lists, the names may be any.
            if composed(case) in folds and image.name.startswith(f"{case}_0000."):
                by_fold.setdefault(folds[composed(case)], {})[case] = image
        for run in first_repeats(run for run in trained if (run.dataset, run.configuration) == place):
            tasks += [
                _explain(run, fold, cases, protocol, folders)
                for fold, cases in by_fold.items()
                if fold in trained[run] and has_maps(run)
            ]
    return tasks


def has_maps(run: Run) -> bool:
    """Tell whether a network has feature maps, of an image alone."""
    return not is_fitted(run.trainer) and run.configuration != "3d_cascade_fullres"


def _explain(run: Run, fold: int, cases: Mapping[str, Path], protocol: Protocol, folders: Folders) -> Task:
    output = folders.output / "maps" / short_name(f"{run.name}__fold_{fold}")
    command = ["nnunet-plugins", "explain", str(folders.model(run)), "-f", str(fold), "-i", *map(str, cases.values())]
    command += ["-o", str(unfinished(output)), "-device", protocol.device, "--no-nifti", "--without", *OTHERS]
    return Task(
        name=task_name("explain", run.name, fold),
        title=f"{run.dataset} {run.configuration}: maps of {run.title}, fold {fold}",
        command=tuple(command),
        slot="train",
        output=output,
        inputs=(*folders.trained(run, [fold]), *cases.values()),
        partly=True,
        maps=(run, tuple(cases)),
    )
