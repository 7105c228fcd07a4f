"""Whether a task is done: one rule, for the benchmark that plans it and for the process that runs it.

What a task makes for the benchmark has a marker, and is done if that fits (`provenance.py`). What nnU-Net's own
commands may have made as well, before the benchmark or beside it, has none: preprocessed data, plans, splits and
trainings are done if they are there as a whole. On what a training was trained is not asked here, but recorded
(`conditions.py`) and compared (`equality.py`): a training is never made again because of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.architecture import without_sizes
from nnunet_plugins.datasets.preprocessed import PLANS, is_preprocessed, raw_cases, truth_files
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import is_json, read_json
from nnunet_plugins.provenance import Ledger


def is_done(
    ledger: Ledger,
    command: Sequence[str],
    output: Path | None,
    inputs: Sequence[Path],
    makes: Sequence[Path],
    there: Sequence[Any],
) -> bool:
    """Tell whether there is nothing left to do.

    Args:
        ledger: knows the files.
        command: of the task.
        output: what it makes; None if that has no marker.
        inputs: what the output is made of.
        makes: what else it makes.
        there: which of `CHECKS` to ask, and what about; a task without an output needs one.
    """
    if output is not None and not ledger.fits(output, command, inputs, makes):
        return False
    if not there:
        return output is not None
    check, *about = there
    return CHECKS[check](*about)


def is_trained(fold: str | Path) -> bool:
    """Tell whether a fold is trained and validated, with probabilities: the summary is what nnU-Net writes last."""
    fold = Path(fold)
    validation = fold / "validation"
    # Of each case's files, the segmentation is written last. Ensembles need the probabilities, the .npz files.
    probabilities = {file.stem for file in validation.glob("*.npz")}
    segmented = {file.stem for file in validation.glob("*.pkl")}
    if not (segmented and segmented <= probabilities and (fold / "checkpoint_final.pth").is_file()):
        return False
    try:
        summary = read_json(validation / "summary.json", _SUMMARY)
    except InputError:
        return False
    # Nothing of it was deleted since. The summary names where the files were, which may have been elsewhere.
    there = {file.name for file in validation.iterdir()}
    files = [case.get("prediction_file", "") for case in summary.get("metric_per_case", [])]
    return there.issuperset(re.split(r"[\\/]", file)[-1] for file in files if file)


_SUMMARY = {"metric_per_case?": [{"prediction_file?": str}]}


def best_of(said: str | Path) -> str | None:
    """Return nnU-Net's name of what `find_best_configuration` took as the best, of what it said; None if nothing."""
    found = re.search(r"^\*Best\*: (\S+): ", Path(said).read_text(), flags=re.MULTILINE)
    return found[1] if found else None


def best_folder(key: str, results: str | Path, folds: str) -> Path:
    """Return where nnU-Net keeps the cross-validated segmentations of its best, and its post-processing.

    Args:
        key: nnU-Net's name of it.
        results: folder of the dataset's results.
        folds: as nnU-Net writes them in names.
    """
    if key.startswith("ensemble___"):
        return Path(results, "ensembles", key)
    return Path(results, key, f"crossval_results_folds_{folds}")


def has_post_processing(said: str, results: str, folds: str) -> bool:
    """Tell whether the post-processing of nnU-Net's best is there: a search by another benchmark removes it."""
    key = best_of(said)
    return key is not None and (best_folder(key, results, folds) / "postprocessing.pkl").is_file()


def is_made_from(fitted: str | Path, plans: str | Path) -> bool:
    """Tell whether plans differ from others only in their name, the sizes, and the stages that follow from these."""
    found = []
    for file in (Path(fitted), Path(plans)):
        if not is_json(file):
            return False
        content = {**read_json(file, PLANS), "plans_name": None}
        content["configurations"] = {name: without_sizes(part) for name, part in content["configurations"].items()}
        found.append(content)
    new, old = found
    for name, part in new["configurations"].items():
        if "architecture" not in old["configurations"].get(name, {}):
            part.pop("architecture", None)  # one of its own, where it had inherited another's
    return new == old


def has_all_data(folder: str, plans: str, configurations: Sequence[str]) -> bool:
    """Tell whether a dataset is preprocessed and its truths are there, which nnU-Net copies last and one by one."""
    place = Path(folder)
    if not is_preprocessed(place, plans, configurations):
        return False
    data = {file.stem for file in place.glob("*/*.pkl")}
    return data & raw_cases(place.name) <= set(truth_files(place))


def splits_are_made(file: str, groups: str | None, number: int) -> bool:
    """Tell whether a dataset has splits, and whether they are those that the groups ask for."""
    if not groups or not is_json(Path(file)):
        return is_json(Path(file))
    from nnunet_plugins.datasets.folders import PlanError
    from nnunet_plugins.planning.splits import check_splits

    try:
        _, splits, torn = check_splits(Path(file).parent.name, Path(groups))
    except PlanError:
        return False
    return len(splits) == number and not any(torn)


def _is_normalised(made: str, like: str, scheme: str) -> bool:
    from nnunet_plugins.planning.normalisation import is_normalised  # which loads much

    return is_normalised(Path(made), Path(like), scheme)


CHECKS: Mapping[str, Callable[..., bool]] = {
    "preprocessed": has_all_data,
    "plans": is_made_from,
    "normalised": _is_normalised,
    "splits": splits_are_made,
    "trained": is_trained,
    "post-processing": has_post_processing,
}
"""By name, because a task may run on another machine."""
