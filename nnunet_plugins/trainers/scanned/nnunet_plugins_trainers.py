"""The one module that nnU-Net scans for external trainers (`nnUNet_extTrainer`); it must stay alone in its folder.

nnU-Net asks `hasattr(module, trainer_name)` and purges the module after each search. The classes live in the installed
package, so they are the same objects each time and pickle; this module only passes the question on.
"""

import sys
from typing import Any


def __getattr__(name: str) -> Any:
    if not name.startswith("nnUNetTrainer"):
        raise AttributeError(name)
    from nnunet_plugins import trainers
    from nnunet_plugins.trainers.names import UnknownTrainerError

    try:
        return getattr(trainers, name)
    except UnknownTrainerError as error:
        print(error, file=sys.stderr)
        raise
    except AttributeError as error:
        # `hasattr` would swallow it, and nnU-Net say no more than that there is no such trainer.
        raise ImportError(f"{name} could not be made: {error}") from error
