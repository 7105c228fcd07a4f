"""The commands `nnunet-plugins list` and `trainer-path`: which trainers there are, and where nnU-Net finds them."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from nnunet_plugins import backbones
from nnunet_plugins._startup import trainer_folder
from nnunet_plugins.arguments import lay_out
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER, path_of


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser(
        "list",
        help="show all trainers and the modifiers of their names",
        description="Show every trainer that `nnUNetv2_train -tr` takes, its ablation twin, and the modifiers.",
    )
    command.add_argument("--json", action="store_true", help="print JSON, with network path, options and paper")
    command.set_defaults(run=_list)

    command = commands.add_parser(
        "trainer-path",
        help="print the folder for nnUNet_extTrainer",
        description="Print the folder that nnU-Net has to scan, for setting it by hand: "
        "export nnUNet_extTrainer=$(nnunet-plugins trainer-path)",
    )
    command.set_defaults(run=_trainer_path)


def _list(arguments: argparse.Namespace) -> int:
    unusable = backbones.others().unusable
    if arguments.json:
        content = {
            "backbones": [
                {
                    "trainer": row.trainer,
                    "network": path_of(row.network),
                    "options": {name: _as_json(value) for name, value in row.options.items()},
                    "paper": row.paper,
                    "dimensions": list(row.dimensions),
                    "twin": row.twin,
                    "summary": row.summary,
                    "source": asdict(backbones.source_of(row.trainer) or backbones.OWN),
                }
                for row in backbones.every().values()
            ],
            "unusable": [asdict(one) for one in unusable],
            "modifiers": [{"name": m.name, "sets": m.slot, "summary": m.summary} for m in MODIFIERS],
        }
        print(json.dumps(content, indent=2))
        return 0
    rows = [("trainer", "works in", "ablation twin", "what it is")]
    for row in backbones.every().values():
        source = backbones.source_of(row.trainer)
        origin = "" if source == backbones.OWN else f" (from {source})"
        rows.append((row.trainer, ", ".join(f"{d}D" for d in row.dimensions), row.twin, row.summary + origin))
    print(lay_out(rows))
    for one in unusable:
        print(f"Left out: {one}")
    print(f"\nModifiers for these and for {STOCK_TRAINER}, each after one underscore, in any order:")
    print(lay_out([(f"  _{m.name}", m.summary) for m in MODIFIERS]))
    print(f"\nFor example: nnUNetv2_train 4 3d_fullres 0 -tr {BACKBONES[0].trainer}_100epochs_NoMirroring")
    return 0


def _as_json(value: Any) -> Any:
    """Return an option as it is, or in words: in other people's rows it may be anything."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return path_of(value) if callable(value) else str(value)
    return value


def _trainer_path(arguments: argparse.Namespace) -> int:
    print(trainer_folder())
    return 0
