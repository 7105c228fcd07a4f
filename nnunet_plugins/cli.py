"""The command `nnunet-plugins`."""

import argparse
import json
import sys
from collections.abc import Sequence

from nnunet_plugins import __version__
from nnunet_plugins._startup import trainer_folder
from nnunet_plugins.demo import pipeline
from nnunet_plugins.registry import BACKBONES, MODIFIERS, STOCK_TRAINER


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in left-aligned columns; the last one may be of any length."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def _list(arguments: argparse.Namespace) -> int:
    if arguments.json:
        content = {
            "backbones": [
                {
                    "trainer": row.trainer,
                    "network": row.network,
                    "options": dict(row.options),
                    "paper": row.paper,
                    "dimensions": list(row.dimensions),
                    "twin": row.twin,
                    "summary": row.summary,
                }
                for row in BACKBONES
            ],
            "modifiers": [{"name": m.name, "sets": m.slot, "summary": m.summary} for m in MODIFIERS],
        }
        print(json.dumps(content, indent=2))
        return 0
    rows = [("trainer", "works in", "ablation twin", "what it is")]
    rows += [(r.trainer, ", ".join(f"{d}D" for d in r.dimensions), r.twin, r.summary) for r in BACKBONES]
    print(_table(rows))
    print(f"\nModifiers for these and for {STOCK_TRAINER}, each after one underscore, in any order:")
    print(_table([(f"  _{m.name}", m.summary) for m in MODIFIERS]))
    print(f"\nFor example: nnUNetv2_train 4 3d_fullres 0 -tr {BACKBONES[0].trainer}_100epochs_NoMirroring")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.doctor import examine

    return examine()


def _trainer_path(arguments: argparse.Namespace) -> int:
    print(trainer_folder())
    return 0


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    result = argparse.ArgumentParser(prog="nnunet-plugins", description="New backbones for nnU-Net v2, without a fork.")
    result.add_argument("--version", action="version", version=f"nnunet-plugins {__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "list",
        help="show all trainers and the modifiers of their names",
        description="Show every trainer that `nnUNetv2_train -tr` takes, its ablation twin, and the modifiers.",
    )
    command.add_argument("--json", action="store_true", help="print JSON, with network path, options and paper")
    command.set_defaults(run=_list)

    command = commands.add_parser(
        "doctor",
        help="check the installation and say what to do about each problem",
        description="Show what is installed where, whether nnU-Net finds our trainers, and which devices torch sees. "
        "The exit code is 1 if something needs mending.",
    )
    command.set_defaults(run=_doctor)

    command = commands.add_parser(
        "trainer-path",
        help="print the folder for nnUNet_extTrainer",
        description="Print the folder that nnU-Net has to scan, for setting it by hand: "
        "export nnUNet_extTrainer=$(nnunet-plugins trainer-path)",
    )
    command.set_defaults(run=_trainer_path)

    command = commands.add_parser(
        "demo",
        help="train, predict, ensemble and evaluate on a small made-up dataset",
        description="Make a small 3D phantom dataset and run the whole nnU-Net pipeline on it with the stock U-Net and "
        "FIRENet: plan, preprocess, train, predict, ensemble, evaluate. Ends with a table and a picture. Started again "
        "after an interruption, it goes on where it was. Your own nnU-Net folders are not touched.",
    )
    pipeline.add_arguments(command)
    command.set_defaults(run=pipeline.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
