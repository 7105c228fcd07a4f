"""How far a training has come, as checkpoints keep it, and which of them to go on from. Knows nothing of nnU-Net."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

PROGRESS = "nnunet_plugins"
"""Key of the optimizer's state under which our part of a checkpoint stands."""

SAVE_MINUTES = "nnUNet_plugins_save_minutes"
"""Environment variable: minutes between two checkpoints within an epoch; 10 if it is not set, and 0 for none."""


@dataclass
class Progress:
    """What a training has done in the running epoch, and what nnU-Net's checkpoint has no place for.

    Attributes:
        run: names the run, which began without a checkpoint; None for those that version 0.1.0 began.
        losses: of the epoch's steps.
        seconds: since the epoch began.
        bad_steps: of the epoch: left out for numbers that are not finite.
        scaled_steps: of the epoch: left out by the grad scaler, which tries larger scales now and then.
        random: state of the random numbers to go on with (see `random_state`); None before there is any.
    """

    run: str | None = None
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    bad_steps: int = 0
    scaled_steps: int = 0
    random: dict[str, Any] | None = None

    def to_state(self) -> dict[str, Any]:
        """Return it as plain values and tensors, for a checkpoint."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**state, "losses": list(self.losses)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """Return it as `to_state` of this version or another one has written it; the beginning if there is nothing."""
        known = {one.name: state[one.name] for one in fields(cls) if one.name in state}
        return cls(**{**known, "losses": list(known.get("losses", ()))})

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self.losses, self.seconds, self.bad_steps, self.scaled_steps, self.random = [], 0.0, 0, 0, None


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is there, and what is known of it.

    Attributes:
        path: where.
        epoch: that is running or comes next.
        steps: of that epoch that are done.
        run: whose it is; None for those of version 0.1.0.
        damage: why it surely holds something else than what was written; None if it does not.
        obstacle: why it cannot be read, although it may be good; None if it can.
    """

    path: Path
    epoch: int = 0
    steps: int = 0
    run: str | None = None
    damage: str | None = None
    obstacle: str | None = None


@dataclass(frozen=True)
class Choice:
    """What to go on from.

    Attributes:
        path: the checkpoint; None to start afresh.
        warnings: what was left out, and why.
        refusal: why to do neither; None if there is no reason.
    """

    path: Path | None = None
    warnings: tuple[str, ...] = ()
    refusal: str | None = None


def choose(candidates: Sequence[Candidate], run: str | None) -> Choice:
    """Choose the checkpoint that has come furthest; of equal ones the first.

    Only what is surely damaged is left out, and what belongs to a run that was given up. A checkpoint that cannot be
    read here, but perhaps elsewhere, may be the one to go on from: then nothing is.

    Args:
        candidates: all checkpoints that are there.
        run: the one that was begun last; None if that is not known, and then any checkpoint will do.
    """
    obstacles = [one.obstacle for one in candidates if one.obstacle]
    if obstacles:
        return Choice(refusal="; ".join(obstacles))
    warnings = [f"{one.damage}. It is left out; the next best checkpoint is taken." for one in candidates if one.damage]
    whole = [one for one in candidates if not one.damage]
    given_up = [one for one in whole if run is not None and one.run != run]
    warnings += [f"{one.path} is of a training that was given up for the present one; left out." for one in given_up]
    own = [one for one in whole if one not in given_up]
    return Choice(max(own, key=lambda one: (one.epoch, one.steps)).path if own else None, tuple(warnings))


def minutes_between_checkpoints() -> float:
    """Return what the environment variable `nnUNet_plugins_save_minutes` says; infinite for 0.

    Raises:
        ValueError: if it is no number from 0.
    """
    text = os.environ.get(SAVE_MINUTES, "10")
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1
    if not minutes >= 0:
        raise ValueError(f"nnunet_plugins: {SAVE_MINUTES}={text!r} is no number of minutes; use for example 10, or 0")
    return minutes or float("inf")


def random_state() -> dict[str, Any]:
    """Return the state of all random numbers of this process, as tensors, numbers and text."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers from a state that `random_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    # nnU-Net loads checkpoints to the device of the training.
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
