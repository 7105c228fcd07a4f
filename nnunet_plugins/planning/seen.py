"""Which folds of a dataset validate on cases that weights to start from were trained on.

A case is in several datasets: in its own, in those that `merge` has made of it, and in twins with images of one size or
prepared ones. Those compose the accents of its name, which its own may have otherwise: names are compared composed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_plugins.datasets.sources import MARK, SOURCES, original_of, read_sources
from nnunet_plugins.images.finding import composed
from nnunet_plugins.planning.splits import Split, read_splits

_Case = tuple[str, str]


@dataclass(frozen=True)
class Cases:
    """A dataset, as far as it tells where its cases come from.

    Attributes:
        name: full.
        description: what its dataset.json says; that of a checkpoint will do.
    """

    name: str
    description: Mapping[str, Any]

    @property
    def origins(self) -> set[str]:
        """Full names of the datasets whose cases it has: those that it was made of, or itself."""
        if SOURCES in self.description:
            return {composed(source.dataset) for source in read_sources(self.description).values()}
        return {self._own}

    def original(self, case: str) -> _Case:
        """Return the dataset that one of its cases comes from, and the name of the case there, accents composed."""
        case = composed(case)
        if SOURCES in self.description:
            source, _, own = case.partition(MARK)
            sources = {composed(name): found for name, found in read_sources(self.description).items()}
            if found := sources.get(source):
                return composed(found.dataset), own
        return self._own, case

    @property
    def _own(self) -> str:
        return composed(original_of(self.description) or self.name)


def shared_origins(one: Cases, other: Cases) -> list[str]:
    """Return the datasets of which two datasets both have cases, in order.

    Raises:
        InputError: if one was merged, or is a twin, and does not tell of what.
    """
    return sorted(one.origins & other.origins)


def folds_that_saw(weights: Cases, fold: int | str, dataset: Cases, preprocessed: Path) -> list[int] | None:
    """Return the folds of a dataset that validate on cases which weights were trained on.

    Args:
        weights: what they were trained on.
        fold: of it, "all" as nnU-Net calls it for all cases.
        dataset: that is to be trained on.
        preprocessed: nnU-Net's folder, where the splits of both are.

    Returns:
        their numbers; None if one of the two has no splits here, so that nobody knows.

    Raises:
        InputError: if splits cannot be read, or a table of sources.
    """
    own, theirs = (_splits(preprocessed / one.name) for one in (dataset, weights))
    if own is None:
        return None
    validated = [{dataset.original(case) for case in split["val"]} for split in own]
    if fold == "all":
        return [number for number, cases in enumerate(validated) if any(case[0] in weights.origins for case in cases)]
    if theirs is None or not isinstance(fold, int) or fold >= len(theirs):
        return None
    seen = {weights.original(case) for case in theirs[fold]["train"]}
    return [number for number, cases in enumerate(validated) if cases & seen]


def _splits(folder: Path) -> list[Split] | None:
    file = folder / "splits_final.json"
    return read_splits(file) if file.is_file() else None
