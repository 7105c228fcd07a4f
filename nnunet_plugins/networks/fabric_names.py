"""The names of a fabric's gates, and back to the places they lead from and to. Loads nothing heavy."""

import re

Place = tuple[int, int]
"""Column and branch in a fabric, 0 and 1 being the finest stem."""


def name_of(place: Place, depth: int) -> str:
    """Return the name of a node.

    Args:
        place: its column and branch.
        depth: of the fabric, in columns; the output comes after the last of them.
    """
    column, branch = place
    return "output" if column > depth else f"{'cell' if column else 'stem'} ({column},{branch})"


def ends_of(gate: str) -> tuple[Place, Place] | None:
    """Return where a gate of a fabric leads from and to, by its name; None for gates of something else."""
    found = re.fullmatch(r"(?:cell \((\d+),(\d+)\)|output) <- (?:cell|stem) \((\d+),(\d+)\)", gate)
    if not found:
        return None
    source = int(found[3]), int(found[4])
    # The output comes right after the last cells, at the finest scale.
    return source, (int(found[1]), int(found[2])) if found[1] else (source[0] + 1, 1)
