"""The command `check-backbone`. Loads nothing heavy before it runs."""

import argparse
import importlib.util
import os
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.testing.selection import find_row


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "check-backbone",
        help="check whether a network does all that nnU-Net needs, and say what is missing and why",
        description="Run the tests that every backbone of this package has to pass, on small plans of every kind, on "
        "the CPU: shapes, gradients, half precision, states, sizes, compilation, two processes, forecasts of memory, "
        "training by nnU-Net's own loop, prediction by sliding windows. With -d also on that dataset's plan, with the "
        "network as it is, counted without memory. Takes a minute or two. Needs pytest, the extra "
        "nnunet-plugins[testing]. The exit code is 1 if a check fails. For example: nnunet-plugins check-backbone "
        "nnUNetTrainerFIRENet -d 4 -c 3d_fullres",
    )
    command.add_argument("backbone", metavar="NAME", help="trainer's name without modifiers, of `nnunet-plugins list`")
    command.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of a planned dataset")
    command.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="default: 3d_fullres")
    command.add_argument("-p", dest="plans", metavar="PLANS", help="default: nnUNetPlans")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the checks; returns 1 if one fails, else 0."""
    row = find_row(arguments.backbone)
    options = []
    if arguments.dataset:
        from nnunet_plugins.planning.setting import plan_setting

        about = (arguments.dataset, arguments.configuration or "3d_fullres", arguments.plans or "nnUNetPlans")
        plan_setting(*about)  # what is wrong with it is told at once
        keys = ("dataset", "configuration", "plans")
        options = [f"--backbone-{key}={value}" for key, value in zip(keys, about, strict=True)]
    elif arguments.configuration or arguments.plans:
        raise InputError("-c and -p are about a dataset's plan; give the dataset with -d")
    if importlib.util.find_spec("pytest") is None:
        raise InputError("this needs pytest; pip install 'nnunet-plugins[testing]'")
    import pytest

    from nnunet_plugins import backbones
    from nnunet_plugins.testing.telling import Telling

    print(f"{row.trainer}, from {backbones.source_of(row.trainer)}", flush=True)
    telling = Telling()
    # Whatever test settings lie in the present folder are for other tests.
    apart = ["-c", os.devnull, "--rootdir", os.path.dirname(__file__), "-p", "no:cacheprovider", "-p", "no:terminal"]
    code = pytest.main(
        [*apart, "-p", "nnunet_plugins.testing.plugin", "--pyargs", __package__, "--backbone", row.trainer, *options],
        plugins=[telling],
    )
    print(telling.summary())
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise InputError(f"the checks did not end as they should, pytest's code is {int(code)}: {telling.trouble}")
    return int(code)
