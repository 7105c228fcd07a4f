"""Modules that run as programs of their own, by `python -m`, and programs that are run."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from nnunet_plugins.errors import InputError


def leave_out_working_folder() -> None:
    """Take the working folder off the path of imports, where `python -m` and `python -c` put it in front of all others.

    Console scripts do not have it there. A folder in it with the name of an installed package, such as the one in which
    that package is written, would stand in for the package: an empty one.
    """
    if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


def run_quietly(command: Sequence[str], what: str, **options: Any) -> str:
    """Run a command and return its output.

    Args:
        command: and its arguments.
        what: to say if it fails.
        options: those of `subprocess.run`.

    Raises:
        InputError: with `what` and the end of the output, if it fails.
    """
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        **options,
    )
    if result.returncode:
        raise InputError(f"{what} (exit code {result.returncode}):\n{tail(result.stdout)}")
    return result.stdout


def tail(text: str, lines: int = 20) -> str:
    """Return the last lines of a text, indented."""
    return "\n".join(f"       {line}" for line in text.strip().splitlines()[-lines:])
