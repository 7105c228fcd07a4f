"""The command `new-backbone`. Loads nothing heavy."""

import argparse
import os
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "new-backbone",
        help="write a package of four files that brings a network of your own",
        description="Write a package with a small network that can be installed, trained and checked as it is: "
        "pyproject.toml with the entry point by which nnU-Net finds the network, the network, its tests and a README. "
        "Put your network in the place of the example. For example: nnunet-plugins new-backbone mylab",
    )
    command.add_argument("name", metavar="NAME", help="of the package, in small letters")
    command.add_argument("-o", dest="output", metavar="FOLDER", help="folder to make; default: ./NAME")
    command.add_argument(
        "-tr", dest="trainer", metavar="TRAINER", help="name for nnUNetv2_train; default: nnUNetTrainer and NAME"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the package; returns 0."""
    from nnunet_plugins.template import write_package

    folder = Path(arguments.output or arguments.name)
    trainer = write_package(arguments.name, folder, arguments.trainer)
    print(f"Wrote {folder} with {trainer}. Next:")
    # With a separator in it, pip takes it for a folder and not for a package's name.
    print(f"  pip install --no-deps --no-build-isolation -e {os.path.join(os.curdir, folder)}")
    print(f"  nnunet-plugins check-backbone {trainer}")
    print(f"  nnUNetv2_train 4 3d_fullres 0 -tr {trainer}")
    return 0
