"""Which folds a benchmark trains: those of the splits that are there, or of those that it will make."""

from collections.abc import Collection, Sequence
from pathlib import Path

from nnunet_plugins.benchmark.protocol import BenchmarkError
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.datasets.preprocessed import existing_cases, raw_cases
from nnunet_plugins.datasets.split_commands import split_command
from nnunet_plugins.images.finding import composed
from nnunet_plugins.planning.groups import groups_of, read_groups
from nnunet_plugins.planning.splits import NNUNET_FOLDS, read_splits


def choose_folds(
    datasets: Sequence[str],
    folders: Folders,
    asked: Collection[int] | None,
    number: int | None,
    groups: Path | None = None,
) -> tuple[tuple[int, ...], int]:
    """Return the folds to train, and how many there are.

    Args:
        datasets: full names.
        folders: where things lie.
        asked: folds to train; None for all that there are.
        number: of folds of the splits; None for that of those that are there, or else nnU-Net's.
        groups: table of the cases' groups.

    Raises:
        BenchmarkError: if the splits that are there contradict this or each other, with the command that mends it.
    """
    files = {dataset: folders.preprocessed / dataset / "splits_final.json" for dataset in datasets}
    there = {dataset: len(read_splits(file)) for dataset, file in files.items() if file.is_file()}
    if empty := next((dataset for dataset, found in there.items() if not found), None):
        mend = split_command(empty, number or NNUNET_FOLDS, groups, overwrite=True)
        raise BenchmarkError(f"{files[empty]} holds no fold; remove it, or make other splits: {mend}")
    wanted = number or next(iter(there.values()), NNUNET_FOLDS)
    for dataset, found in there.items():
        if number and found != number:
            raise BenchmarkError(
                f"--folds {number}, but {files[dataset]} has {found} folds; leave --folds out, or make other splits: "
                f"{split_command(dataset, number, groups, overwrite=True)}"
            )
        if found != wanted and (asked is None or max(asked) >= min(found, wanted)):
            raise BenchmarkError(
                f"{next(iter(there))} is split into {wanted} folds, {dataset} into {found}; name folds that both have, "
                f"-f {' '.join(map(str, range(min(found, wanted))))}, or make other splits: "
                f"{split_command(dataset, wanted, groups, overwrite=True)}"
            )
    for dataset in datasets:
        if dataset not in there:
            _require_cases(dataset, folders.preprocessed / dataset, wanted, groups)
    return tuple(sorted(set(asked))) if asked is not None else tuple(range(wanted)), wanted


def _require_cases(dataset: str, folder: Path, number: int, groups: Path | None) -> None:
    """Check that splits can be made, before a dataset is preprocessed for them."""
    preprocessed = (folder / "dataset.json").is_file() and existing_cases(folder)
    cases, what = set(preprocessed or raw_cases(dataset)), "cases"
    if cases and groups:
        cases, what = set(groups_of(cases, read_groups(groups)).values()), "groups"
    if len(cases) == 1:
        raise BenchmarkError(f"{dataset} has 1 {what.removesuffix('s')}, which cannot be split; add more")
    if 1 < len(cases) < number:
        raise BenchmarkError(
            f"{dataset} has {len(cases)} {what}, too few for {number} folds; give --folds {len(cases)}"
        )


def held_out(folders: Folders, dataset: str) -> dict[str, int]:
    """Return the fold in which each case is validated on; nothing where there are no splits."""
    file = folders.preprocessed / dataset / "splits_final.json"
    splits = read_splits(file) if file.is_file() else []
    return {composed(case): number for number, fold in enumerate(splits) for case in fold["val"]}
