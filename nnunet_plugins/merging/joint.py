"""The labels and channels that several datasets have together.

Labels of one name are one structure. A value of a merged segmentation stands for the structures that a voxel belongs
to: one where there are labels, several where there are regions, such as the whole and its part.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunet_plugins.datasets.sources import NEITHER, Source
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.finding import composed


@dataclass(frozen=True)
class LabelSet:
    """The structures of a dataset.

    Attributes:
        values: by name, in the order of dataset.json; several of a region.
        order: the value that nnU-Net writes for each region, if there are regions.
        ignored: value of the ignore label, if there is one.
    """

    values: Mapping[str, tuple[int, ...]]
    order: tuple[int, ...] | None = None
    ignored: int | None = None

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "LabelSet":
        """Return that of a dataset.json that nnU-Net can use."""
        values = {name: _tuple(value) for name, value in description["labels"].items() if name not in NEITHER}
        regions = any(len(value) > 1 for value in values.values())
        order = tuple(description["regions_class_order"]) if regions else None
        return cls(values, order, description["labels"].get("ignore"))

    def structures(self) -> dict[int, frozenset[str]]:
        """Return, by value, the structures that a voxel with it belongs to."""
        return _structures(self.values)

    def written(self, name: str) -> int:
        """Return the value that stands for a structure where nnU-Net writes a segmentation."""
        place = list(self.values).index(name)
        return self.order[place] if self.order else self.values[name][0]


@dataclass(frozen=True)
class Joint:
    """What datasets have together.

    Attributes:
        labels: for dataset.json.
        order: likewise, `regions_class_order`; None if there are no regions.
        names: by dataset and own name, the name of the structure.
        values: by dataset and own value, the merged one.
    """

    labels: dict[str, int | list[int]]
    order: list[int] | None
    names: dict[str, dict[str, str]]
    values: dict[str, dict[int, int]]


def join_labels(sets: Mapping[str, LabelSet], names: Mapping[str, Mapping[str, str]]) -> Joint:
    """Join the structures of datasets; those with regions come first, whose order says what covers what.

    Args:
        sets: by dataset.
        names: by dataset and own name, that of the structure.

    Raises:
        InputError: if a dataset has one structure twice, or one value for two structures without regions, or datasets
            contradict each other in what lies in what.
    """
    regions = any(one.order for one in sets.values())
    renamed = {}
    for dataset, one in sets.items():
        new = {names[dataset][name]: values for name, values in one.values.items()}
        if len(new) < len(one.values):
            twice = next(name for name in new if list(names[dataset].values()).count(name) > 1)
            own = [name for name, structure in names[dataset].items() if structure == twice]
            raise InputError(f"{dataset}: {' and '.join(map(repr, own))} would both be {twice!r}; rename one otherwise")
        renamed[dataset] = LabelSet(new, one.order, one.ignored)
        for value, found in renamed[dataset].structures().items():
            if len(found) > 1 and not one.order:
                raise InputError(f"{dataset}: {' and '.join(map(repr, sorted(found)))} have one value, {value}")
    _require_agreement(renamed)
    ordered = sorted(renamed, key=lambda dataset: renamed[dataset].order is None)
    inside = _inside(renamed)
    in_order = _in_order({dataset: renamed[dataset] for dataset in ordered}, inside)
    # What a voxel belongs to where a structure is written: of equal ones, none that may still be written over it.
    around = {name: inside[name] & {*in_order[: place + 1]} for place, name in enumerate(in_order)}
    _require_kept(renamed, in_order, around)
    merged: dict[frozenset[str], int] = {}
    for dataset in ordered:
        for _, found in sorted(renamed[dataset].structures().items()):
            merged.setdefault(found, len(merged) + 1)
    values = {
        dataset: {value: merged[found] for value, found in renamed[dataset].structures().items()} for dataset in sets
    }
    # Also where no dataset has a value for all of it, since each knows a part.
    order = [merged.setdefault(around[name], len(merged) + 1) for name in in_order]
    labels: dict[str, int | list[int]] = {"background": 0}
    for name in in_order:
        several = [value for found, value in merged.items() if name in found]
        labels[name] = several if len(several) > 1 else several[0]
    if any(one.ignored is not None for one in sets.values()):
        labels["ignore"] = len(merged) + 1
    for dataset, one in sets.items():
        values[dataset] |= {0: 0} | ({one.ignored: len(merged) + 1} if one.ignored is not None else {})
    regions = regions and any(isinstance(value, list) for value in labels.values())
    own_names = {dataset: dict(names[dataset]) for dataset in sets}
    return Joint(labels, order if regions else None, own_names, values)


def _require_agreement(sets: Mapping[str, LabelSet]) -> None:
    """Refuse two structures that have voxels in common in one dataset, and can have none in another."""
    said: dict[frozenset[str], tuple[str, bool]] = {}
    for dataset, one in sets.items():
        for first, second in combinations(one.values, 2):
            common = not {*one.values[first]}.isdisjoint(one.values[second])
            other, before = said.setdefault(frozenset((first, second)), (dataset, common))
            if common != before:
                within, beside = (dataset, other) if common else (other, dataset)
                raise InputError(
                    f"{first!r} and {second!r} share values in {within}, and never do in {beside}, so that one dataset "
                    f"would teach what the other contradicts. If they lie in each other, make them regions in a copy "
                    f"of {beside}; if not, give one another name with --rename"
                )


def _inside(sets: Mapping[str, LabelSet]) -> dict[str, frozenset[str]]:
    """Return, by structure, what it lies in, with itself.

    One lies in another where all datasets that have both write it so, and in what that one lies in, unless a dataset
    tells otherwise. So regions that are equal in one dataset are told apart as in another one.
    """
    said: dict[str, dict[str, bool]] = {}
    for one in sets.values():
        structures = one.structures()
        for name in one.values:
            known = said.setdefault(name, {})
            written = structures.get(one.written(name), frozenset())
            for other, values in one.values.items():
                is_part = {*values} < {*one.values[name]}  # as which it is written where a dataset has nothing else
                known[other] = other in written and not is_part and known.get(other, True)
    inside = {}
    for name, known in said.items():
        found, left = {name}, [name]
        while left:
            more = {other for other, lies in said[left.pop()].items() if lies and known.get(other, True)}
            left += sorted(more - found)
            found |= more
        inside[name] = frozenset(found)
    return inside


def _require_kept(sets: Mapping[str, LabelSet], in_order: Sequence[str], around: Mapping[str, frozenset[str]]) -> None:
    """Refuse datasets of whose regions the joint order would lose some that a dataset's own order keeps."""
    for dataset, one in sets.items():
        structures = one.structures()
        for found in structures.values():
            own = structures.get(one.written([name for name in one.values if name in found][-1]))
            written = around[max(found, key=in_order.index)] & {*one.values}
            if written not in (found, own):
                told, instead = (" and ".join(map(repr, sorted(names))) for names in (found, written))
                raise InputError(
                    f"{dataset}: voxels of {told} would be written as {instead}, since another dataset has these "
                    "regions in each other in another way. Give the regions one nesting in all datasets, or those of "
                    f"{dataset} other names with --rename"
                )


def _in_order(sets: Mapping[str, LabelSet], inside: Mapping[str, frozenset[str]]) -> list[str]:
    """Return the names of structures, what covers another one before it, as in each dataset and in all together."""
    covers: dict[str, dict[str, str]] = {}  # by name, what has to come before it, and the dataset that says so
    for dataset, one in sets.items():
        for number, (name, values) in enumerate(one.values.items()):
            before = [other for other in list(one.values)[:number] if {*one.values[other]} & {*values}]
            covers.setdefault(name, {}).update(dict.fromkeys(before, dataset))
    for name, known in covers.items():
        for other in sorted(inside[name] - {*known}):
            if name not in inside[other]:
                known[other] = "the datasets together"
    names: list[str] = []
    while left := [name for name in covers if name not in names]:
        free = [name for name in left if not covers[name].keys() - {*names}]
        if not free:
            other, dataset = next((one, says) for one, says in covers[left[0]].items() if one in left)
            raise InputError(
                f"{dataset}: {left[0]!r} is written over {other!r}, with which it shares values; in another dataset it "
                "is the other way round. Give labels and 'regions_class_order' one order in dataset.json, or rename one"
            )
        names.append(free[0])
    return names


def own_values(labels: Mapping[str, Any], source: Source) -> dict[int, int]:
    """Return the values of a source for those of a merged dataset.

    Of several values for the same regions, one is taken that nnU-Net writes. Where the source has none for all that a
    voxel is in, because other datasets know other structures inside of each other, it is that of the innermost.

    Args:
        labels: of the merged dataset.json.
        source: whose view it is.
    """
    merged = _structures({name: _tuple(value) for name, value in labels.items() if name not in NEITHER})
    own: dict[frozenset[str], int] = {frozenset(): 0}
    preferred = sorted(_structures({name: _tuple(value) for name, value in source.labels.items()}).items())
    for value, found in sorted(preferred, key=lambda item: item[0] not in source.order):
        own.setdefault(found, value)
    one = LabelSet({name: _tuple(value) for name, value in source.labels.items()}, source.order or None)
    values = {0: 0}
    for value, found in merged.items():
        known = [name for name in one.values if name in found]
        values[value] = own[frozenset(known)] if frozenset(known) in own else one.written(known[-1])
    return values


def near_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ in capital letters, accents' encoding, spaces or punctuation alone."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = re.sub(r"[\W_]", "", composed(name)).casefold()
        first = seen.setdefault(plain or name, name)
        if first != name:
            pairs.append((first, name))
    return pairs


def join_channels(channels: Mapping[str, Sequence[str]]) -> tuple[list[str], dict[str, list[int]]]:
    """Return the channels of datasets together, and in which order each dataset has them.

    Args:
        channels: by dataset, names.

    Returns:
        the names; by dataset, its own channel for each of them.

    Raises:
        InputError: if the datasets do not have the same ones. A single channel may have another name that nnU-Net
            normalises in the same way.
    """
    first, names = next(iter(channels.items()))
    orders = {first: list(range(len(names)))}
    joint = list(names)
    for dataset, own in channels.items():
        both = f"{first} has {_told(names)}, {dataset} has {_told(own)}"
        if len(own) != len(names):
            raise InputError(
                f"{both}: a network takes one number of channels. Merge datasets with the same ones; of an image with "
                "more, a copy of the dataset may keep those that all have"
            )
        if sorted(map(str.casefold, own)) == sorted(map(str.casefold, names)):
            orders[dataset] = _places(names, own)
        elif len(names) > 1:
            raise InputError(f"{both}: not the same; name the channels alike in dataset.json if they are")
        elif len({get_normalization_scheme(name) for name in (names[0], own[0])}) > 1:
            raise InputError(f"{both}, which nnU-Net normalises in different ways: they do not mix")
        else:
            orders[dataset] = [0]
            joint[0] += f" or {own[0]}" * (own[0].casefold() not in joint[0].casefold().split(" or "))
    return joint, orders


def _told(names: Sequence[str]) -> str:
    return f"{len(names)} channel{'s' * (len(names) != 1)} ({', '.join(names)})"


def _places(names: Sequence[str], own: Sequence[str]) -> list[int]:
    """Return where each name is among one's own, of equal ones in their order."""
    left = list(range(len(own)))
    places = []
    for name in names:
        places.append(next(place for place in left if own[place].casefold() == name.casefold()))
        left.remove(places[-1])
    return places


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, (list, tuple)) else (int(value),)


def _structures(values: Mapping[str, Sequence[int]]) -> dict[int, frozenset[str]]:
    return {value: frozenset(name for name in values if value in values[name]) for value in _distinct(values)}


def _distinct(values: Mapping[str, Sequence[int]]) -> Iterator[int]:
    yield from sorted({value for several in values.values() for value in several} - {0})
