"""The command `nnunet-plugins`: each room adds its commands, see its `command_line.py`."""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from nnunet_plugins import __version__
from nnunet_plugins.benchmark import command_line as benchmark
from nnunet_plugins.demo import command_line as demo
from nnunet_plugins.doctor import command_line as doctor
from nnunet_plugins.engines import command_line as engines
from nnunet_plugins.errors import InputError
from nnunet_plugins.explain import command_line as explain
from nnunet_plugins.fixed_size import command_line as fixed_size
from nnunet_plugins.merging import command_line as merging
from nnunet_plugins.metrics import command_line as metrics
from nnunet_plugins.planning import command_line as planning
from nnunet_plugins.prediction import command_line as prediction
from nnunet_plugins.preparation import command_line as preparation
from nnunet_plugins.report import command_line as report
from nnunet_plugins.starts import command_line as starts
from nnunet_plugins.submission import command_line as submission
from nnunet_plugins.template import command_line as template
from nnunet_plugins.testing import command_line as testing
from nnunet_plugins.trainers import command_line as trainers

ROOMS = (
    trainers,
    doctor,
    planning,
    merging,
    fixed_size,
    preparation,
    starts,
    prediction,
    engines,
    explain,
    metrics,
    benchmark,
    report,
    submission,
    template,
    testing,
    demo,
)
"""Rooms with commands, in the order of the help."""


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    result = argparse.ArgumentParser(prog="nnunet-plugins", description="New backbones for nnU-Net v2, without a fork.")
    result.add_argument("--version", action="version", version=f"nnunet-plugins {__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in ROOMS:
        room.add_commands(commands)
    return result


INTERRUPTED, READER_GONE = 130, 141  # as a shell tells the signals INT and PIPE
FAULT = 70  # of the program, as sysexits.h has it; Python's own 1 says here that some cases failed, and were named


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    What the user has to know or to change is one message and code 2. After Ctrl-C it is 130, and 141 if whoever reads
    the output wants no more of it, as `head`. A fault of the program is 70, with its traceback.
    """
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        if sys.stdout:
            sys.stdout.flush()  # as long as its errors can be told
    except KeyboardInterrupt:
        _drop_output()  # what was told before comes before
        print(f"\nnnunet-plugins {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return READER_GONE
    except (InputError, OSError) as error:
        _drop_output()
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        told = str(error).removeprefix("nnunet_plugins: ") + "; make room, and give the command again" * full
        print(f"nnunet-plugins {arguments.command}: {told}", file=sys.stderr)
        return 2
    except Exception:  # told whole
        _drop_output()
        traceback.print_exc()
        return FAULT
    return code


def _drop_output() -> None:
    """Print what is left; if that is not possible, let Python not try it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
