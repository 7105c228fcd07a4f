"""`nnunet-plugins split`: cross-validation that keeps groups of cases, such as all those of one patient, together.

nnU-Net splits the cases at random, and so does this command without groups. Where several of them show one patient, a
network is then validated on patients that it has seen. nnU-Net reads its splits from `splits_final.json` in the
dataset's preprocessed folder, if it exists.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split
from sklearn.model_selection import GroupKFold

from nnunet_plugins.datasets.folders import PlanError, preprocessed_folder
from nnunet_plugins.datasets.preprocessed import existing_cases, find_truths, stale_cases
from nnunet_plugins.datasets.sources import read_sources, source_of
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text
from nnunet_plugins.images.facts import problems, remarks, summarise
from nnunet_plugins.images.finding import composed
from nnunet_plugins.planning.groups import groups_of, read_groups

Split = dict[str, list[str]]
"""One fold: the cases to train on, `train`, and to validate on, `val`."""

SEED = 12345  # as nnU-Net's own split
_ORDERS = 1000  # of groups, that are tried


def read_splits(file: Path) -> list[Split]:
    """Return the splits that a file holds.

    Raises:
        InputError: if it cannot be read, or holds something else.
    """
    return read_json(file, [{"train": [str], "val": [str]}])


def same_folds(some: list[Split], others: list[Split]) -> bool:
    """Tell whether splits have the same cases in every fold, in whatever order, and however letters are encoded."""
    return _as_sets(some, composed) == _as_sets(others, composed)


def _as_sets(splits: list[Split], letters: Callable[[str], str] = str) -> list[dict[str, set[str]]]:
    return [{part: set(map(letters, names)) for part, names in fold.items()} for fold in splits]


def group_splits(groups: Mapping[str, str], folds: int) -> list[Split]:
    """Split the cases into folds of about as many groups each; always the same for equal input.

    Raises:
        PlanError: if there are fewer groups than folds.
    """
    cases = sorted(groups)
    labels = [groups[case] for case in cases]
    if len(set(labels)) < folds:
        raise PlanError(_too_few(len(set(labels)), "group", folds))
    # Shuffled, because the order of the groups may have a meaning, such as their hospital.
    splitter = GroupKFold(folds, shuffle=True, random_state=SEED)
    return [
        {"train": [cases[i] for i in train], "val": [cases[i] for i in validation]}
        for train, validation in splitter.split(cases, groups=labels)
    ]


def random_splits(cases: Sequence[str], folds: int) -> list[Split]:
    """Split the cases as nnU-Net does, which always makes five folds when a training finds no splits.

    Raises:
        PlanError: if there are fewer cases than folds.
    """
    if len(cases) < folds:
        raise PlanError(_too_few(len(cases), "case", folds))
    splits = generate_crossval_split(sorted(cases), seed=SEED, n_splits=folds)
    return [{part: list(map(str, names)) for part, names in split.items()} for split in splits]


def source_splits(
    cases: Sequence[str], sources: Mapping[str, str], folds: int, groups: Mapping[str, str] | None = None
) -> list[Split]:
    """Split the cases of each source of a merged dataset on their own, so that every fold has its share of all.

    Where a group has cases in several sources, all are split together, with shares as equal as the groups allow.

    Args:
        cases: their names.
        sources: of each case.
        folds: how many.
        groups: of each case, which are kept together; without them the cases are split as nnU-Net does.

    Raises:
        PlanError: if a source has fewer cases, or groups, than folds, or a fold would validate on none of its cases.
    """
    splits: list[Split] = [{"train": [], "val": []} for _ in range(folds)]
    for name in dict.fromkeys(sources[case] for case in cases):
        own = [case for case in cases if sources[case] == name]
        try:
            parts = group_splits({case: groups[case] for case in own}, folds) if groups else random_splits(own, folds)
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from error
        for split, part in zip(splits, parts, strict=True):
            for which, names in part.items():
                split[which] += names
    return _joint_splits(cases, sources, folds, groups) if groups and any(torn_groups(splits, groups)) else splits


def _joint_splits(
    cases: Sequence[str], sources: Mapping[str, str], folds: int, groups: Mapping[str, str]
) -> list[Split]:
    """Put every group into the fold that has least of its sources, so that every fold has some; see `_in_order`.

    The largest come first; where that leaves a fold without a source, other orders are tried. The same for equal input.
    """
    totals = Counter(sources[case] for case in cases)
    shares: dict[str, Counter[str]] = {}
    for case in sorted(cases):
        shares.setdefault(groups[case], Counter())[sources[case]] += 1
    names, shuffle = sorted(shares), random.Random(SEED).shuffle
    shuffle(names)  # as in `group_splits`
    names.sort(key=lambda name: max(size / totals[source] for source, size in shares[name].items()), reverse=True)
    for _ in range(_ORDERS):
        chosen, left_out = _in_order(names, shares, totals, folds)
        if not left_out:
            break
        shuffle(names)
    else:
        raise PlanError(
            f"{left_out[0]}: groups that are in other sources, too, and no split into {folds} folds was found with "
            f"cases of every source in each; {'give fewer --folds, or ' * (folds > 2)}leave out --strata"
        )
    return [
        {
            "train": [case for case in cases if chosen[groups[case]] != fold],
            "val": [case for case in cases if chosen[groups[case]] == fold],
        }
        for fold in range(folds)
    ]


def _in_order(
    names: Sequence[str], shares: Mapping[str, Counter[str]], totals: Counter[str], folds: int
) -> tuple[dict[str, int], list[str]]:
    """Put groups one after the other into the fold that has least of their sources; returns also the sources left out.

    Args:
        names: of the groups, in their order.
        shares: how many cases of each source a group has.
        totals: how many there are of each source.
        folds: how many.
    """
    contents = [Counter[str]() for _ in range(folds)]
    chosen = {}
    for name in names:
        own = {source: size / totals[source] ** 2 for source, size in shares[name].items()}
        chosen[name] = min(range(folds), key=lambda fold: sum(contents[fold][one] * own[one] for one in own))
        contents[chosen[name]].update(shares[name])
    return chosen, [source for source in totals for content in contents if not content[source]]


def _too_few(number: int, what: str, folds: int) -> str:
    text = f"{number} {what}{'s' * (number != 1)} cannot be split into {folds} folds"
    return f"{text}; give --folds {number}" if number > 1 else f"{text}, nor into any other number"


def torn_groups(splits: Sequence[Split], groups: Mapping[str, str]) -> list[list[str]]:
    """Return, for every fold, the groups that have cases in training and in validation."""
    return [
        sorted({groups[case] for case in split["train"]} & {groups[case] for case in split["val"]}) for split in splits
    ]


def _cases(folder: Path) -> list[str]:
    """Return the names of a dataset's preprocessed training cases."""
    description = folder / "dataset.json"
    truths = folder / "gt_segmentations"
    if not description.is_file() or not truths.is_dir():
        raise PlanError(f"{folder} is not complete; preprocess the dataset first: nnUNetv2_plan_and_preprocess")
    if wrong := problems(find_truths(folder).facts, "doctor"):
        raise PlanError("; ".join(summarise(wrong)))
    return existing_cases(folder)


def unused_files(dataset: str) -> list[str]:
    """Return what is said of the files in `gt_segmentations` that are in no split."""
    folder = preprocessed_folder(dataset)
    found = find_truths(folder)
    stale = sorted(stale_cases(folder, found.by_written_name()))
    more = f" and {len(stale) - 1} more" if stale[1:] else ""
    left = f"{folder / 'gt_segmentations'} keeps {''.join(stale[:1])}{more}, which the dataset no longer has; not used"
    return [*summarise(remarks(found.facts, "doctor")), *([left] if stale else [])]


def _groups_of(folder: Path, file: Path) -> dict[str, str]:
    """Return the groups of a dataset's cases."""
    groups, cases = read_groups(file), _cases(folder)
    found = groups_of(cases, groups)
    if missing := [case for case in cases if case not in found]:
        raise PlanError(f"{file} names no group for {len(missing)} of {len(cases)} cases, first of all {missing[0]}")
    return found


def _trained(dataset: str) -> list[Path]:
    """Return the folds of a dataset that have been trained, or begun to."""
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 - nnU-Net's own spelling
    checkpoints = Path(results, dataset).glob("*/fold_[0-9]*/checkpoint_*.pth") if results else []
    return sorted({checkpoint.parent for checkpoint in checkpoints})


def write_splits(
    dataset: str, groups_file: Path | None, folds: int, *, by_sources: bool = False, overwrite: bool = False
) -> tuple[Path, list[Split]]:
    """Make splits and write them to where nnU-Net reads them; returns the file and the splits.

    Args:
        dataset: number or name.
        groups_file: table with the columns `case` and `group`; without it, the splits are nnU-Net's own.
        folds: number of folds.
        by_sources: split each source of a merged dataset on its own.
        overwrite: replace other splits that are there already.

    Raises:
        InputError: if something is missing, or other splits are there, above all if networks were trained with them.
    """
    folder = preprocessed_folder(dataset)
    if by_sources:
        file, cases = folder / "dataset.json", _cases(folder)
        sources = read_sources(read_json(file, {"labels": {str: (int, list)}}), file)
        groups = _groups_of(folder, groups_file) if groups_file else None
        splits = source_splits(cases, {case: source_of(case, sources, file) for case in cases}, folds, groups)
    elif groups_file is None:
        splits = random_splits(_cases(folder), folds)
    else:
        splits = group_splits(_groups_of(folder, groups_file), folds)
    return keep_splits(folder, splits, overwrite=overwrite), splits


def keep_splits(folder: Path, splits: list[Split], *, overwrite: bool = False) -> Path:
    """Write splits to where nnU-Net reads them; returns the file, which stays as it is if it has the same in any order.

    Args:
        folder: of the dataset, in nnUNet_preprocessed.
        splits: to write.
        overwrite: replace other splits that are there already.

    Raises:
        PlanError: if other splits are there, above all if networks were trained with them.
    """
    file = folder / "splits_final.json"
    there = _present(file)
    if there is not None and _as_sets(there) == _as_sets(splits):
        return file
    # With letters that are encoded in another way they are the same, but nnU-Net would find none of the cases.
    if file.exists() and (there is None or not same_folds(there, splits)):
        if trained := _trained(folder.name):
            raise PlanError(
                f"{file} holds other splits, and {len(trained)} trainings used them, first of all {trained[0]}. With "
                "new splits they could neither go on nor be compared; move them away first"
            )
        if not overwrite:
            raise PlanError(f"{file} holds other splits already; give --overwrite to replace them")
    write_text(file, json.dumps(splits, indent=4))
    return file


def _present(file: Path) -> list[Split] | None:
    """Return the splits that are there; None if there are none, or something else."""
    try:
        return read_splits(file) if file.is_file() else None
    except InputError:
        return None


def check_splits(dataset: str, groups_file: Path) -> tuple[Path, list[Split], list[list[str]]]:
    """Return a dataset's splits with their file, and for every fold the groups that it tears apart.

    Raises:
        PlanError: if there are no splits yet, or they hold cases that have no group.
    """
    folder = preprocessed_folder(dataset)
    file = folder / "splits_final.json"
    if not file.is_file():
        raise PlanError(f"{file} is missing: nnU-Net makes its splits when the first training begins")
    splits, groups = read_splits(file), _groups_of(folder, groups_file)
    if unknown := sorted({case for split in splits for part in split.values() for case in part} - set(groups)):
        raise PlanError(f"{file} holds {unknown[0]}, which is no case of {folder.name}")
    return file, splits, torn_groups(splits, groups)
