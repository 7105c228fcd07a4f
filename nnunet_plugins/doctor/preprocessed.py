"""Checks of what preprocessing has left, or would stumble over."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from nnunet_plugins.datasets.preprocessed import find_truths, stale_cases
from nnunet_plugins.doctor.findings import Finding, of_cases, of_facts, ok, warning
from nnunet_plugins.images.finding import Found

WORKERS = "nnUNet_n_proc_DA"
"""nnU-Net's variable: processes that load the data of a training."""


def check_preprocessed(folder: Path) -> Iterator[Finding]:
    """Check a dataset's preprocessed folder, as far as all its configurations have it in common.

    Args:
        folder: of the dataset, in nnUNet_preprocessed.
    """
    if os.environ.get(WORKERS, "").strip() == "0":
        yield warning(
            f"{WORKERS} is 0, which training takes and planning does not: nnUNetv2_plan_and_preprocess would fail",
            f"plan with 1: {WORKERS}=1 nnUNetv2_plan_and_preprocess ...; `nnunet-plugins benchmark` does so itself",
        )
    truths = find_truths(folder) if (folder / "dataset.json").is_file() else Found()
    yield from of_facts(truths.facts)
    files = truths.by_written_name()
    if not files:
        yield ok("none yet: nnUNetv2_plan_and_preprocess makes it")
        return
    stale = sorted(stale_cases(folder, files))
    yield from of_cases(
        "warning",
        f"{folder / 'gt_segmentations'} keeps the segmentations of {{}} that the dataset no longer has",
        dict.fromkeys(stale, ""),
        f"they are not used; remove them: rm {' '.join(shlex.quote(str(files[case])) for case in stale)}",
    )
    if not stale:
        yield ok(f"{len(files)} preprocessed cases")
