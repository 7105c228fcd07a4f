"""nnU-Net trainers of all registered backbones, made on demand.

`from nnunet_plugins.trainers import nnUNetTrainerFIRENet_30epochs` works: any valid trainer name is an attribute of
this module (PEP 562), which is also how pickle, spawned workers and nnU-Net's own search find the classes.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if not name.startswith("nnUNetTrainer"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunet_plugins.trainers.compose import trainer_class

    return trainer_class(name)
