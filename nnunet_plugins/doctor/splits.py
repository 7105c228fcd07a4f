"""Checks of a dataset's splits: cases that exist, and nothing that is trained on and validated on."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.sources import original_of
from nnunet_plugins.datasets.split_commands import NNUNET_FOLDS, most_folds, split_command
from nnunet_plugins.doctor.findings import Finding, of_cases, ok, problem, warning
from nnunet_plugins.images.finding import composed
from nnunet_plugins.planning.groups import groups_of, read_groups
from nnunet_plugins.planning.splits import read_splits, same_folds, torn_groups


def check_splits(
    file: Path,
    cases: Collection[str],
    twins: Sequence[Sequence[str]],
    groups_file: Path | None,
    description: Mapping[str, Any],
) -> Iterator[Finding]:
    """Check the splits of a dataset.

    Args:
        file: where nnU-Net reads them.
        cases: of the dataset.
        twins: groups of cases with the same images.
        groups_file: table of the cases' groups, which splits are to keep together.
        description: what the dataset.json says.
    """
    table = read_groups(groups_file) if groups_file else {}
    groups = groups_of(cases, table)
    without = {case: "" for case in sorted(cases) if groups_file and case not in groups}
    yield from of_cases("problem", f"{groups_file} names no group for {{}}", without, "add them")
    most = most_folds(groups if groups_file else {case: case for case in cases}, description)
    original = original_of(description)
    of_original = file.parents[1] / str(original) / file.name
    others = read_splits(of_original) if of_original.is_file() else []
    if not file.is_file():
        yield _without_splits(file, cases, twins, groups, groups_file, most, str(original) if others else None)
        return
    splits = read_splits(file)
    if not splits:
        yield problem(f"{file} holds no fold", "remove it; nnU-Net makes new splits")
        return
    named = {case for split in splits for part in split.values() for case in part}
    sound = True
    anew = split_command(file.parent.name, max(2, min(len(others or splits), most)), groups_file, overwrite=True)
    for finding in _check_folds(file, splits, cases, named, anew):
        sound = False
        yield finding
    for twin in twins:
        torn = torn_groups(splits, {**dict.fromkeys(named, ""), **dict.fromkeys(twin, "same")})
        folds = [str(number) for number, names in enumerate(torn) if "same" in names]
        if folds:
            sound = False
            yield Finding(
                "problem",
                f"{', '.join(twin)} have the same images, and fold {', '.join(folds)} trains on one of them and "
                "validates on another",
                "remove the copies, or keep them in one fold: nnunet-plugins split --groups",
                tuple(twin),
            )
    if others and not same_folds(splits, others):
        sound = False
        yield warning(
            f"{file} has other folds than {original}, of which this is a twin",
            f"before anything is trained: {split_command(file.parent.name, len(others), overwrite=True)}",
        )
    groups = groups_of(named, table)
    if groups and len(groups) == len(named):
        torn = torn_groups(splits, groups)
        if number := len({name for names in torn for name in names}):
            sound = False
            first = next(name for names in torn for name in names)
            yield problem(
                f"{number} group{'s are' if number > 1 else ' is'} in training and in validation of a fold, first of "
                f"all {first}",
                anew,
            )
    if sound:
        yield ok(f"{len(splits)} folds, {len(named)} cases, none of them trained on and validated on")


def _without_splits(
    file: Path,
    cases: Collection[str],
    twins: Sequence[Sequence[str]],
    groups: Mapping[str, str],
    groups_file: Path | None,
    most: int,
    original: str | None,
) -> Finding:
    """Say what nnU-Net will do without a file of splits, for a twin whose original has splits with its name."""
    number, what = (len(set(groups.values())), "group") if groups_file else (len(cases), "case")
    fitting = max(2, min(NNUNET_FOLDS, most))
    if 0 < number < NNUNET_FOLDS:
        text = (
            f"{number} {what}{'s' * (number > 1)}, and no splits yet ({file}): nnU-Net would split into {NNUNET_FOLDS}"
        )
        if number == 1:
            return problem(text, f"one {what} cannot be split: add more, or train on all cases, fold 'all'")
        first = "" if (file.parent / "gt_segmentations").is_dir() else "when the dataset is preprocessed, "
        return problem(text, f"{first}make splits that fit: {split_command(file.parent.name, fitting, groups_file)}")
    text = f"no splits yet ({file}): nnU-Net makes random ones when the first training begins"
    if original:
        command = split_command(file.parent.name, fitting)
        return warning(f"{text}; {original}, of which this is a twin, has splits", f"take these: {command}")
    if groups_file or twins:
        command = split_command(file.parent.name, fitting, groups_file or "FILE")
        return warning(text, f"make splits that keep groups together: {command}")
    return ok(text)


def _check_folds(
    file: Path, splits: Sequence[dict[str, list[str]]], cases: Collection[str], named: set[str], anew: str
) -> Iterator[Finding]:
    remedy = f"correct the file, or make it anew: {anew}"
    both = {case: f"fold {number}" for number, fold in enumerate(splits) for case in {*fold["train"]} & {*fold["val"]}}
    yield from of_cases("problem", "{} in training and in validation of one fold", both, remedy)
    alike = {composed(case) for case in cases}
    unknown = {
        case: "its letters are encoded in another way in the file's name" if composed(case) in alike else ""
        for case in sorted(named - set(cases))
    }
    yield from of_cases("problem", f"{file} names {{}} that the dataset does not have", unknown, remedy)
    left_out = dict.fromkeys(sorted(set(cases) - named), "")
    yield from of_cases("warning", f"{file} leaves {{}} out of all folds", left_out, remedy)
    for number, fold in enumerate(splits):
        for part in ("train", "val"):
            if not fold[part]:
                yield problem(f"{file}: fold {number} has no case in {part!r}", remedy)
    counts = Counter(case for fold in splits for case in set(fold["val"]))
    again = {case: "" for case, count in counts.items() if count > 1}
    yield from of_cases("warning", "{} validated in several folds", again, "nnU-Net wants each case validated once")
