"""`nnunet-plugins doctor -d`: all checks of a dataset, and of a training on it, in their order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_plugins.datasets.folders import PlanError, dataset_name
from nnunet_plugins.datasets.preprocessed import existing_cases
from nnunet_plugins.datasets.sources import find_description, twin_of
from nnunet_plugins.doctor.cases import check_cases, check_channels
from nnunet_plugins.doctor.comparison import compare_cases, duplicates
from nnunet_plugins.doctor.dataset import Case, RawDataset, check_description, check_files, check_images_to_predict
from nnunet_plugins.doctor.findings import Check, Finding, of_cases, of_facts, ok, warning
from nnunet_plugins.doctor.images import CaseFacts, read_cases
from nnunet_plugins.doctor.installation import check_folders
from nnunet_plugins.doctor.preprocessed import check_preprocessed
from nnunet_plugins.doctor.space import check_space
from nnunet_plugins.doctor.splits import check_splits
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.recipe import find_difference, read_recipe

if TYPE_CHECKING:
    from nnunet_plugins.doctor.training import Training


@dataclass(frozen=True)
class Question:
    """What is to be checked.

    Attributes:
        dataset: number or name.
        trainer: its name, like the next two.
        configuration: nnU-Net's.
        plans: their name.
        gpu_memory: of the GPU that a training will run on, in GiB; None for this machine's.
        of_training: whether to check a training as well.
        groups: table of the cases' groups, which splits are to keep together.
        processes: cases to read at a time; None for nnU-Net's default.
        images: folder of images that are to be predicted, to be checked as imagesTs is.
        pretrained: checkpoint that the training is to start from.
    """

    dataset: str
    trainer: str
    configuration: str
    plans: str
    gpu_memory: float | None
    of_training: bool
    groups: Path | None
    processes: int | None
    images: Path | None = None
    pretrained: Path | None = None


def preflight(question: Question) -> dict[str, Check]:
    """Return all checks, by title, to be run in this order: each one uses what those before it have found.

    Raises:
        PlanError: if there is no such dataset.
    """
    name = dataset_name(question.dataset)
    raw, preprocessed = (_folder(variable, name) for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
    if raw is None and preprocessed is None:
        raise PlanError(f"{name} is neither in nnUNet_raw nor in nnUNet_preprocessed")
    checks: dict[str, Check] = {"Folders": check_folders}
    dataset = RawDataset(raw or preprocessed or Path())
    facts: dict[str, CaseFacts] = {}
    training = None
    if question.of_training:
        from nnunet_plugins.doctor.training import Training, check_training  # which loads much

        training = Training(name, question.trainer, question.configuration, question.plans, question.gpu_memory)
    if raw:

        def read_and_check() -> Iterator[Finding]:
            if dataset.reader:
                labels = dataset.expected_labels()
                facts.update(read_cases(dataset.cases, dataset.reader, labels, question.processes))
                yield from check_cases(dataset, facts)

        checks["dataset.json"] = lambda: check_description(dataset)
        checks["Files"] = lambda: check_files(dataset)
        checks["Cases"] = read_and_check
        checks["Cases side by side"] = lambda: compare_cases(dataset, facts)
        if (raw / "imagesTs").is_dir():
            folders = (raw / "imagesTs", raw / "labelsTs")
            checks["Test images"] = lambda: _check_images(dataset, *folders, question.processes, training)
    else:
        unknown = warning(f"{name} is not in nnUNet_raw, so its images are not checked", "put it there to check them")
        checks["Files"] = lambda: iter([unknown])
        if question.images:
            checks["dataset.json"] = lambda: check_description(dataset)
    if images := question.images:
        checks["Images to predict"] = lambda: _check_images(dataset, images, None, question.processes, training)
    # What is not there yet stands beside what is.
    root = os.environ.get("nnUNet_preprocessed", "")  # noqa: SIM112 - nnU-Net's own spelling
    folder = Path(root, name)

    def check_its_splits() -> Iterator[Finding]:
        cases = list(dataset.cases) or (existing_cases(folder) if preprocessed else [])
        try:
            description, _ = find_description(name, folder.parent, *([raw.parent] if raw else []))
        except InputError:  # which "dataset.json" and "Preprocessed data" tell
            description = {}
        return check_splits(folder / "splits_final.json", cases, duplicates(facts), question.groups, description)

    def check_its_space() -> Iterator[Finding]:
        configuration = question.configuration if question.of_training else None
        numbers = None
        if training and training.forecast:
            from nnunet_plugins.planning.setting import copies_kept, find_trainer

            numbers = training.forecast.parameters * (1 + copies_kept(find_trainer(training.trainer)))
        return check_space(folder, question.plans, configuration, facts, numbers)

    if not Path(root).is_dir() or not root:
        return checks  # which "Folders" tells
    checks["Splits"] = check_its_splits
    checks["Preprocessed data"] = lambda: check_preprocessed(folder)
    if training:
        checks["Training"] = lambda: check_training(training, folder, list(dataset.cases))
        if start := question.pretrained:
            from nnunet_plugins.doctor.start import check_start

            checks["Pretrained weights"] = lambda: check_start(training, start)
    checks["Space"] = check_its_space
    return checks


def _check_images(
    dataset: RawDataset, images: Path, labels: Path | None, processes: int | None, training: "Training | None"
) -> Iterator[Finding]:
    """Check images that are to be predicted, and their segmentations where there are such."""
    cases: dict[str, Case] = {}
    yield from check_images_to_predict(dataset, images, labels, cases)
    if not dataset.reader or not cases:
        return
    facts = read_cases(cases, dataset.reader, dataset.expected_labels(), processes)
    yield from of_facts(fact for case in facts.values() for fact in case.facts)
    yield from check_channels(dataset, facts)
    yield from _check_size(dataset, facts)
    yield from _check_preparation(dataset, images)
    if all(case.is_whole for case in facts.values()):
        yield ok(f"all files of {len(facts)} {'test ' * bool(labels)}cases can be read")
    if training:
        from nnunet_plugins.doctor.training import check_images

        yield from check_images(training, facts)


def _check_size(dataset: RawDataset, facts: dict[str, CaseFacts]) -> Iterator[Finding]:
    """Check that images for networks that were trained on one size have been scaled to it."""
    if not (twin := twin_of(dataset.description, dataset.folder / "dataset.json")):
        return
    size = "x".join(map(str, twin[1]))
    shapes = {name: "x".join(map(str, one.channels[0].grid.shape)) for name, one in facts.items() if one.channels}
    yield from of_cases(
        "problem",
        f"{{}} of another size than the {size} of this dataset's images",
        {name: shape for name, shape in shapes.items() if shape != size},
        f"scale them: nnunet-plugins fixed-size --scale FOLDER --like {dataset.folder.name} -o SCALED",
    )


def _check_preparation(dataset: RawDataset, images: Path) -> Iterator[Finding]:
    """Check that images are prepared as those of the dataset, as far as their folder tells."""
    file = dataset.folder / "dataset.json"
    if difference := find_difference(dataset.description, file, images):
        yield warning(*difference)
    elif recipe := read_recipe(dataset.description, file):
        yield ok(f"the images are prepared as those of the dataset: {recipe}")


def _folder(variable: str, dataset: str) -> Path | None:
    """Return a dataset's folder in one of nnU-Net's; None if it is not there."""
    root = os.environ.get(variable)
    folder = Path(root, dataset) if root else None
    return folder if folder and folder.is_dir() else None
