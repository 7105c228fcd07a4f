"""What the commands have in common: options, tables, and what they say of cases that failed."""

import argparse
import sys
from collections.abc import Mapping, Sequence

WHOLE_VOLUME = ("always", "auto")
"""How cases go through a network in one pass: whenever it can take them, or where memory allows it."""

ENGINES = ("onnxruntime", "openvino")
"""What computes a network from an ONNX file."""


def positive(text: str) -> float:
    """Read a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return number


def whole(text: str, smallest: int = 1) -> int:
    """Read a whole number."""
    if not text.isascii() or not text.isdigit() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
    return int(text)


def natural(text: str) -> int:
    """Read a whole number from 0."""
    return whole(text, 0)


def at_least_two(text: str) -> int:
    """Read a whole number from 2."""
    return whole(text, 2)


def lay_out(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in left-aligned columns; the last one may be of any length."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def tell_failures(command: str, failures: Mapping[str, str]) -> int:
    """Say which cases are not in what a command has written, and why; return its exit code."""
    for case, reason in failures.items():
        print(f"nnunet-plugins {command}: {case} is not in it: {reason}", file=sys.stderr)
    return 1 if failures else 0
