"""How much to do for a case: everything, or what fits into a time limit, left out in a stated order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

_SHARE = 0.85  # of a limit; the rest is for what is not the network: resampling, writing
_WIDER_STEP = 0.75


@dataclass(frozen=True)
class Effort:
    """What is done for a case.

    Attributes:
        mirroring: average over mirrored images.
        step: of the sliding window, as a fraction of the patch.
        folds: of each member, at the most; None for all.
        members: of the ensemble, at the most; None for all.
    """

    mirroring: bool = True
    step: float = 0.5
    folds: int | None = None
    members: int | None = None

    def __str__(self) -> str:
        parts = ["with mirroring" if self.mirroring else "no mirroring", f"step {self.step:g}"]
        parts += [f"{self.folds} of each network's folds"] if self.folds else []
        parts += [f"{self.members} of the ensemble's networks"] if self.members else []
        return ", ".join(parts)


def efforts(whole: Effort, folds: int, members: int) -> list[Effort]:
    """Return what to do in less and less time: no mirroring, a wider step, fewer folds, fewer members.

    Args:
        whole: everything that was asked for.
        folds: of the member that has most.
        members: of the ensemble.
    """
    result = [whole, replace(whole, mirroring=False)]
    result.append(replace(result[-1], step=max(whole.step, _WIDER_STEP)))
    result += [replace(result[-1], folds=number) for number in range(folds - 1, 0, -1)]
    result += [replace(result[-1], members=number) for number in range(members - 1, 0, -1)]
    # What is not there cannot be left out.
    return [effort for n, effort in enumerate(result) if effort not in result[:n]]


@dataclass(frozen=True)
class Work:
    """One network's part of a case.

    Attributes:
        folds: how many.
        patches: by step, how many the sliding window has.
        flips: how often each patch is predicted with mirroring.
        seconds: for one prediction of one patch.
    """

    folds: int
    patches: dict[float, int]
    flips: int
    seconds: float

    def takes(self, effort: Effort) -> float:
        """Return the seconds it takes."""
        folds = min(self.folds, effort.folds or self.folds)
        return folds * self.patches[effort.step] * (self.flips if effort.mirroring else 1) * self.seconds


@dataclass
class Clock:
    """The time that a case may take; without a limit it never ends."""

    limit: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the case began."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds for the networks that are left."""
        return float("inf") if self.limit is None else _SHARE * self.limit - self.elapsed

    def choose(self, candidates: Sequence[Effort], work: Sequence[Sequence[Work]]) -> Effort:
        """Return the first of the candidates that fits into the time that is left, else the last.

        Args:
            candidates: from the most to the least.
            work: of each member, one per stage.
        """
        for effort in candidates:
            if sum(stage.takes(effort) for stages in work[: effort.members] for stage in stages) <= self.left:
                return effort
        return candidates[-1]
