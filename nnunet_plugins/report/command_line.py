"""The command `nnunet-plugins report`. Loads nothing heavy before it runs."""

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "report",
        help="make the report of a benchmark again",
        description="Make the page and the tables of a benchmark again from its record: index.html, report.md, "
        "tables.tex, paper.tex, results.csv, challenger.csv and the figures. Needs neither nnU-Net's folders nor "
        "torch. With --verify nothing is written: everything is made again and compared, down to the files that it was "
        "made of, as far as they are here; the exit code is 1 if something contradicts.",
    )
    command.add_argument("benchmark", metavar="DIR", help="folder that was given to benchmark with -o")
    command.add_argument(
        "--verify", action="store_true", help="write nothing: compare the report with what it is made of"
    )
    command.add_argument(
        "--rope",
        type=_rope,
        default=0.01,
        metavar="DICE",
        help="a smaller difference in Dice counts for nothing in practice: algorithms that differ by less, with a "
        "probability of 0.95, are called equivalent; default: 0.01",
    )
    command.set_defaults(run=_report)


def _rope(text: str) -> float:
    """Return a difference in Dice, which is at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no difference in Dice: a number from 0 on, below 1")
    return value


def _report(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.benchmark)
    if arguments.verify:
        from nnunet_plugins.report.verification import verify_report

        found = verify_report(folder)
        for line in (*found.fits, *found.notes):
            print(line)
        for line in found.contradictions:
            print(f"Contradiction: {line}")
        return 1 if found.contradictions else 0

    from nnunet_plugins.report.build import build_report

    print(f"Wrote {build_report(folder, arguments.rope)}")
    return 0
