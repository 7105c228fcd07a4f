"""The one module that nnU-Net scans for external trainers (`nnUNet_extTrainer`); it must stay alone in its folder.

nnU-Net asks `hasattr(module, trainer_name)` and purges the module after each search. The classes live in the installed
package, so they are the same objects each time and pickle; this module only passes the question on.

Children of a process inherit the variable, also those of environments without the package, or with another version of
it. There it answers "no", as nnU-Net goes on to the next folder only then.
"""

import sys
from typing import Any

_TOLD = "_nnunet_plugins_told"  # in `sys`, because this module is loaded anew for each search


def __getattr__(name: str) -> Any:
    if not name.startswith("nnUNetTrainer"):
        raise AttributeError(name)
    try:
        from nnunet_plugins import trainers
        from nnunet_plugins.trainers.names import UnknownTrainerError, parse
    except Exception as error:  # whatever a package of this name raises that is not ours, or lacks what it needs
        if not hasattr(sys, _TOLD):
            setattr(sys, _TOLD, True)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"nnunet_plugins: its trainers cannot be had from {sys.prefix} ({reason})", file=sys.stderr)
        raise AttributeError(name) from error

    try:
        parse(name)  # imports no trainer, so that a name that is not ours gets its answer even where none can be made
        return getattr(trainers, name)
    except UnknownTrainerError as error:
        print(
            f"{error} If a checkpoint asks for it, `nnunet-plugins doctor CHECKPOINT` says where it comes from.",
            file=sys.stderr,
        )
        raise
    except AttributeError as error:
        # `hasattr` would swallow it, and nnU-Net say no more than that there is no such trainer.
        raise ImportError(f"{name} could not be made: {error}") from error
