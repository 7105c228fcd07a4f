"""The grammar of trainer names: `nnUNetTrainer<Backbone>`, then modifiers, each after one underscore, in any order.

Pure strings over the rows: no trainer and no network of ours is imported, so that our names are checked in no time.
Others may be rows of other packages, which are loaded then.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from nnunet_plugins import backbones
from nnunet_plugins.errors import InputError
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.rows import STOCK_TRAINER, Backbone, Modifier


class UnknownTrainerError(InputError, AttributeError):
    """No trainer goes by this name. An AttributeError, so that `hasattr` in nnU-Net's search sees a plain "no"."""


@dataclass(frozen=True)
class TrainerName:
    """A name taken apart: its backbone (None for the stock trainer), and its modifiers with their numbers."""

    name: str
    backbone: Backbone | None
    modifiers: tuple[tuple[Modifier, int | None], ...]


def find_modifier(part: str) -> tuple[Modifier, int | None] | None:
    """Return the modifier that a part of a name spells, with its number; None if there is none."""
    for modifier in MODIFIERS:
        if "<N>" not in modifier.name:
            if part == modifier.name:
                return modifier, None
        elif found := re.fullmatch(modifier.name.replace("<N>", "(0|[1-9][0-9]*)"), part):
            return modifier, int(found[1])
    return None


def _within(number: int, modifier: Modifier) -> int:
    """Return the number that a modifier may have which is nearest to another one."""
    return max(1, min(number, modifier.most or number))


def parse(name: str) -> TrainerName:
    """Take a trainer name apart.

    Raises:
        UnknownTrainerError: if the backbone or a modifier is unknown, or two modifiers contradict each other; the
            message names the nearest valid name.
    """
    base, *parts = name.split("_")
    row = None if base == STOCK_TRAINER else backbones.find(base)
    problem = None if row or base == STOCK_TRAINER else _missing(base)
    modifiers: list[tuple[Modifier, int | None]] = []
    for part in parts:
        match = find_modifier(part)
        taken = {modifier.slot: modifier.name for modifier, _ in modifiers}
        if match is None:
            problem = problem or f"no modifier is called {'_' + part!r}"
        elif match[0].slot in taken:
            problem = problem or f"'_{part}' sets the {match[0].slot} a second time"
        elif match[1] is not None and match[1] != _within(match[1], match[0]):
            words = f"from 1 to {match[0].most}" if match[0].most else "1 or more"
            problem = problem or f"the number in {'_' + part!r} has to be {words}"
        else:
            modifiers.append(match)
    if problem:
        raise UnknownTrainerError(
            f"nnunet_plugins: no trainer {name!r}: {problem}. The nearest valid name is {nearest(name)!r}; "
            "`nnunet-plugins list` shows them all."
        )
    return TrainerName(name, row, tuple(modifiers))


def _missing(base: str) -> str:
    """Say that there is no backbone, and what there would be if it could be used."""
    unusable = [one for one in backbones.others().unusable if one.trainer in (None, base)]
    return "; ".join([f"no backbone is called {base!r}", *map(str, unusable)])


def nearest(name: str) -> str:
    """Return the valid trainer name that looks most like `name`."""
    base, *parts = name.split("_")
    result = get_close_matches(base, [STOCK_TRAINER, *backbones.every()], n=1, cutoff=0)[0]
    slots: set[str] = set()
    for part in parts:
        word = part.lstrip("0123456789")
        digits = part.removesuffix(word)
        words = {m.name.replace("<N>", ""): m for m in MODIFIERS if ("<N>" in m.name) == bool(digits)}
        for match in get_close_matches(word.lower(), [w.lower() for w in words], n=1):
            spelling = next(w for w in words if w.lower() == match)
            if words[spelling].slot not in slots:
                slots.add(words[spelling].slot)
                result += f"_{_within(int(digits), words[spelling]) if digits else ''}{spelling}"
    return result
