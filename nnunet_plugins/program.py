"""Modules that run as programs of their own, by `python -m`."""

import os
import sys


def leave_out_working_folder() -> None:
    """Take the working folder off the path of imports, where `python -m` and `python -c` put it in front of all others.

    Console scripts do not have it there. A folder in it with the name of an installed package, such as the one in which
    that package is written, would stand in for the package: an empty one.
    """
    if not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
