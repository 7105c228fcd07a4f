"""Tell nnU-Net where our trainers are. Runs at every start of the interpreter, so it imports nothing but `os`.

nnU-Net (from 2.8.0) looks for trainers in the folders that the environment variable `nnUNet_extTrainer` lists. The
startup file `nnunet_plugins.pth` beside this package (and `nnunet_plugins.start` for Python 3.15 and later, PEP 829)
calls `register`, which appends our folder and keeps what the user has put there.
"""

import os

VARIABLE = "nnUNet_extTrainer"
OPT_OUT = "nnUNet_plugins_discovery"


def trainer_folder() -> str:
    """Return the folder that nnU-Net has to scan."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "trainers", "scanned")


def opted_out() -> bool:
    """Tell whether the user has switched the discovery off, with `nnUNet_plugins_discovery=0`."""
    return os.environ.get(OPT_OUT, "").lower() in ("0", "f", "false", "off", "no")


def listed() -> list[str]:
    """Return the folders that `nnUNet_extTrainer` lists."""
    return [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]


def with_ours() -> str:
    """Return the value of `nnUNet_extTrainer` with our folder appended, once."""
    folders = listed()
    return os.pathsep.join(folders if trainer_folder() in folders else [*folders, trainer_folder()])


def register() -> None:
    """Append our trainer folder to `nnUNet_extTrainer`, once, unless the user has opted out."""
    if not opted_out():
        os.environ[VARIABLE] = with_ours()
