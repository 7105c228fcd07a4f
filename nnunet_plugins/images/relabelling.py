"""Segmentations with other values."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_plugins.images.facts import Fact, problems, summarise
from nnunet_plugins.images.reading import read_label_map
from nnunet_plugins.images.values import check_values, distinct
from nnunet_plugins.images.writing import whole_image


def relabel(
    file: Path, other: Path, *, reader: BaseReaderWriter, values: Mapping[int, int], declared: Collection[int]
) -> list[str]:
    """Write a segmentation with other values, where it lay before; it is there completely or not at all.

    Args:
        file: the segmentation.
        other: where to write it, in the same format.
        reader: nnU-Net's, of both.
        values: the new value of each.
        declared: values that it may have.

    Returns:
        what is wrong with it, if it could not be written.
    """
    found = read_label_map(file, reader)
    facts = list(found.facts)
    if found.array is not None:
        there = distinct(found.array)
        facts += check_values(there, declared, str(file))
        if not problems(facts, "evaluate") and (strange := [value for value in there if value not in values]):
            facts.append(Fact("undeclared", str(file), f"{strange[0]:.0f} has no counterpart"))
    # Where a case lies is no matter here: that of a file without spacing stays unknown.
    if wrong := [fact for fact in problems(facts, "evaluate") if fact.kind != "spacing unknown"]:
        return summarise(wrong)
    assert found.array is not None
    old = found.array[0].astype(np.int64)
    table = np.zeros(max(int(old.max()), 0) + 1, dtype=np.uint16)
    for value in range(len(table)):
        table[value] = values.get(value, 0)
    with whole_image(other) as part:
        # nnU-Net may write a second file, with the spacing.
        reader.write_seg(table[old], str(part), found.properties)
    return []
