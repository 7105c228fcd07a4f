"""Which folds a benchmark trains: those of the splits that are there, or of those that it will make."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nnunet_plugins.benchmark.protocol import BenchmarkError, Protocol
from nnunet_plugins.benchmark.tasks import Folders, shares_folds_of, sources_of
from nnunet_plugins.datasets.preprocessed import known_cases
from nnunet_plugins.datasets.sources import MARK, SOURCES, find_description, original_of, read_sources
from nnunet_plugins.datasets.split_commands import NNUNET_FOLDS, most_folds, own_split, split_command
from nnunet_plugins.images.finding import composed
from nnunet_plugins.planning.groups import GROUPS, groups_of, read_groups
from nnunet_plugins.planning.merged_splits import splits_like
from nnunet_plugins.planning.splits import Split, read_splits, same_folds, torn_groups


def find_groups(file: str | None, datasets: Sequence[str], folders: Folders) -> dict[str, str]:
    """Return by dataset the table of its cases' groups.

    Args:
        file: the one of all; "" for each dataset's own, None for none.
        datasets: full names.
        folders: where things lie.

    Raises:
        BenchmarkError: if each is to have its own, and none has one; or if a table lacks cases of its dataset.
    """
    if file is None:
        return {}
    found = dict.fromkeys(datasets, str(Path(file).absolute())) if file else _own_tables(datasets, folders)
    parts = {source for dataset in datasets for source in _merged_of(dataset, folders).values()}
    for dataset, table in list(found.items()):
        cases = known_cases(folders.preprocessed / dataset)
        missing = [case for case in cases if case not in groups_of(cases, read_groups(Path(table)))]
        if file and dataset in parts and len(missing) == len(cases):
            del found[dataset]  # the table has the names that its cases have in the merged dataset
        elif missing:
            raise BenchmarkError(
                f"{table} names no group for {len(missing)} of {len(cases)} cases of {dataset}, first of all "
                f"{missing[0]}; each needs one, if only its own name"
            )
    return found


def _own_tables(datasets: Sequence[str], folders: Folders) -> dict[str, str]:
    roots = (folders.preprocessed, folders.raw)
    # A twin has the cases, and the folds, of the dataset that it is of.
    of = {dataset: original_of(*find_description(dataset, *roots)) or dataset for dataset in datasets}
    tables = {dataset: [folders.raw / one / GROUPS for one in (of[dataset], dataset)] for dataset in datasets}
    own = {dataset: next((file for file in files if file.is_file()), files[0]) for dataset, files in tables.items()}
    found = {dataset: str(table) for dataset, table in own.items() if table.is_file()}
    for dataset in datasets:
        for name, source in _merged_of(dataset, folders).items() if dataset not in found else ():
            table, splits = folders.raw / source / GROUPS, folders.preprocessed / dataset / "splits_final.json"
            if not table.is_file() or (splits.is_file() and not _torn(read_splits(splits), _named(table, name))):
                continue
            raise BenchmarkError(
                f"{source} has a {GROUPS}, and {of[dataset]}, which was merged of it, has none, so that its folds may "
                f"tear groups apart; write {own[dataset]}, with the names that its cases have there"
            )
    if not found:
        raise BenchmarkError(
            f"--groups without a file takes each dataset's own, and {next(iter(own.values()))} is missing; name the "
            "file, or write this one, with the columns case and group"
        )
    return found


def _merged_of(dataset: str, folders: Folders) -> dict[str, str]:
    """Return the datasets that a dataset was merged of, by what stands before the names of their cases; none if not."""
    description, place = find_description(dataset, folders.preprocessed, folders.raw)
    found = read_sources(description, place) if SOURCES in description else {}
    return {name: source.dataset for name, source in found.items()}


def _named(table: Path, name: str) -> dict[str, str]:
    """Return a table of a source's groups, with the names that its cases have in a merged dataset."""
    return {f"{name}{MARK}{case}": group for case, group in read_groups(table).items()}


def _torn(splits: Sequence[Split], groups: Mapping[str, str]) -> list[str]:
    """Return the groups that splits tear apart; cases without a group are left out."""
    known = [{part: [case for case in map(composed, fold[part]) if case in groups] for part in fold} for fold in splits]
    return sorted({group for fold in torn_groups(known, groups) for group in fold})


def require_groups(protocol: Protocol, folders: Folders) -> None:
    """Refuse splits that tear groups apart, and groups of a merged dataset that tear those of its sources.

    Raises:
        BenchmarkError: if there are such, with the commands that make other splits.
    """
    number, merged = protocol.number_of_folds, protocol.merged
    parts = _merged_of(merged, folders) if merged else {}
    tables = {dataset: read_groups(Path(file)) for dataset, file in protocol.groups.items()}
    joint = tables.get(str(merged), {})
    for name, source in parts.items():
        own = {case: group for case, group in tables.get(source, {}).items() if f"{name}{MARK}{case}" in joint}
        pairs = {(group, joint[f"{name}{MARK}{case}"]) for case, group in own.items()}
        if apart := sorted(group for group, number in Counter(group for group, _ in pairs).items() if number > 1):
            raise BenchmarkError(
                f"{protocol.groups[source]} has a group {apart[0]}, whose cases are of several groups in "
                f"{protocol.groups[str(merged)]} ({len(apart)} such), by which both would be split; put them in one"
            )
    splits = {dataset: _splits_of(dataset, folders) for dataset in {**tables, **dict.fromkeys(parts.values())}}
    if joint and not splits[str(merged)] and all(splits[source] for source in parts.values()):
        splits[str(merged)] = _joined({name: splits[source] for name, source in parts.items()})
    for dataset, table in tables.items():
        if torn := _torn(splits[dataset], table):
            mend = split_command(dataset, number, protocol.groups[dataset], overwrite=True)
            if dataset in (merged, *parts.values()):
                groups = protocol.groups.get(str(merged))
                mend = split_command(str(merged), number, groups, overwrite=True)
                again = (f"nnunet-plugins split -d {one} --like {merged} --overwrite" for one in parts.values())
                mend = " && ".join([mend, *again])
            raise BenchmarkError(
                f"the folds of {dataset} tear groups of {protocol.groups[dataset]} apart, first of all {torn[0]} "
                f"({len(torn)} such). Before anything is trained: {mend}"
            )


def _joined(sources: Mapping[str, Sequence[Split]]) -> list[Split]:
    """Return the splits that a merged dataset takes of its sources, by what stands before the names of their cases."""
    joined: list[Split] = [{"train": [], "val": []} for _ in range(min(map(len, sources.values())))]
    for name, splits in sources.items():
        for fold, own in zip(joined, splits, strict=False):
            for part in fold:
                fold[part] += [f"{name}{MARK}{composed(case)}" for case in own[part]]
    return joined


def _splits_of(dataset: str, folders: Folders) -> list[Split]:
    file = folders.preprocessed / dataset / "splits_final.json"
    return read_splits(file) if file.is_file() else []


def choose_folds(
    datasets: Sequence[str],
    folders: Folders,
    asked: Collection[int] | None,
    number: int | None,
    groups: Mapping[str, str],
) -> tuple[tuple[int, ...], int]:
    """Return the folds to train, and how many there are.

    Args:
        datasets: full names.
        folders: where things lie.
        asked: folds to train; None for all that there are.
        number: of folds of the splits; None for that of those that are there, or else nnU-Net's.
        groups: by dataset, the table of its cases' groups.

    Raises:
        BenchmarkError: if the splits that are there contradict this or each other, with the command that mends it.
    """
    files = {dataset: folders.preprocessed / dataset / "splits_final.json" for dataset in datasets}
    for dataset in datasets:
        like = shares_folds_of(dataset, datasets, folders, grouped=dataset in groups)
        if like and not files[dataset].is_file():
            files[dataset] = folders.preprocessed / like / "splits_final.json"
    there = {dataset: len(read_splits(file)) for dataset, file in files.items() if file.is_file()}
    if empty := next((dataset for dataset, found in there.items() if not found), None):
        fitting = min(number or NNUNET_FOLDS, max(2, _most(empty, folders, groups)[0]))
        mend = split_command(empty, fitting, groups.get(empty), overwrite=True)
        raise BenchmarkError(f"{files[empty]} holds no fold; remove it, or make other splits: {mend}")
    wanted = number or next(iter(there.values()), NNUNET_FOLDS)
    first = next(iter(there), "")
    for dataset, found in there.items():
        if number and found != number:
            raise BenchmarkError(
                f"--folds {number}, but {files[dataset]} has {found} folds; leave --folds out"
                + _or_other_splits({dataset: number}, folders, groups)
            )
        if found != wanted and (asked is None or max(asked) >= min(found, wanted)):
            raise BenchmarkError(
                f"{first} is split into {wanted} folds, {dataset} into {found}; name folds that both have, "
                f"-f {' '.join(map(str, range(min(found, wanted))))}"
                + _or_other_splits({dataset: wanted, first: found}, folders, groups)
            )
    for dataset in datasets:
        if dataset not in there:
            _require_cases(dataset, folders, wanted, groups)
    return tuple(sorted(set(asked))) if asked is not None else tuple(range(wanted)), wanted


def _or_other_splits(numbers: Mapping[str, int], folders: Folders, groups: Mapping[str, str]) -> str:
    """Return the end of a message: the command that splits the first dataset that can be split into its number."""
    for dataset, number in numbers.items():
        if 2 <= number <= _most(dataset, folders, groups)[0]:
            return f", or make other splits: {split_command(dataset, number, groups.get(dataset), overwrite=True)}"
    return ""


def _most(dataset: str, folders: Folders, groups: Mapping[str, str]) -> tuple[int, str]:
    """Return into how many folds a dataset can be split, and whether it or one of its sources has no more cases."""
    found = {case: case for case in known_cases(folders.preprocessed / dataset)}
    if dataset in groups:
        found = groups_of(found, read_groups(Path(groups[dataset])))
    description, _ = find_description(dataset, folders.preprocessed, folders.raw)
    if "--strata" in own_split(dataset, description, NNUNET_FOLDS):
        return most_folds(found, description), f"a source of {dataset}"
    return len(set(found.values())), dataset


def _require_cases(dataset: str, folders: Folders, number: int, groups: Mapping[str, str]) -> None:
    """Check that splits can be made, before a dataset is preprocessed for them."""
    most, where = _most(dataset, folders, groups)
    what = "groups" if dataset in groups else "cases"
    if most == 1:
        raise BenchmarkError(f"{where} has 1 {what.removesuffix('s')}, which cannot be split; add more")
    if 1 < most < number:
        raise BenchmarkError(f"{where} has {most} {what}, too few for {number} folds; give --folds {most}")


def require_same_folds(merged: str, folders: Folders) -> None:
    """Refuse folds of a merged dataset in which a case is in another one than in its own dataset.

    Raises:
        BenchmarkError: if there are such.
    """
    for dataset in sources_of(merged, folders):
        files = [folders.preprocessed / one / "splits_final.json" for one in (dataset, merged)]
        if not all(file.is_file() for file in files):
            continue
        if not same_folds(read_splits(files[0]), splits_like(files[0].parent, merged)):
            raise BenchmarkError(
                f"{dataset} has other folds than {merged} has of its cases, so that networks would be compared on "
                f"cases that one of them has seen. Before anything is trained on one of the two: nnunet-plugins split "
                f"-d {dataset} --like {merged} --overwrite, or nnunet-plugins split -d {merged} --like sources "
                "--overwrite"
            )


def require_folds_of_twins(protocol: Protocol, folders: Folders) -> None:
    """Refuse folds of a twin in which a case is in another one than in the dataset that it is of, or in its twin.

    Raises:
        BenchmarkError: if there are such.
    """
    for dataset in protocol.datasets:
        like = shares_folds_of(dataset, protocol.datasets, folders, grouped=dataset in protocol.groups)
        files = [folders.preprocessed / str(one) / "splits_final.json" for one in (dataset, like)]
        if like not in protocol.datasets or not all(file.is_file() for file in files):
            continue
        if not same_folds(*map(read_splits, files)):
            raise BenchmarkError(
                f"{dataset} has other folds than {like}, whose cases it shares. Before anything is trained on it: "
                f"nnunet-plugins split -d {dataset} --like {like} --overwrite"
            )


def held_out(folders: Folders, dataset: str) -> dict[str, int]:
    """Return the fold in which each case is validated on; nothing where there are no splits."""
    file = folders.preprocessed / dataset / "splits_final.json"
    splits = read_splits(file) if file.is_file() else []
    return {composed(case): number for number, fold in enumerate(splits) for case in fold["val"]}
