"""The options that name a trained model, and the model that they name. Loads nothing heavy before it is looked up."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_plugins.models.sources import Choice, Source


def add_model(command: Any) -> None:
    """Add the options that name a trained model, as nnUNetv2_predict has them."""
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name of the dataset")
    command.add_argument(
        "-c", dest="configuration", required=True, metavar="CONFIGURATION", help="for example 3d_fullres"
    )
    command.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    command.add_argument(
        "-tr", dest="trainer", required=True, metavar="TRAINER", help="for example nnUNetTrainerFIRENet"
    )
    command.add_argument(
        "-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="default: 0 1 2 3 4"
    )
    command.add_argument(
        "-chk", dest="checkpoint", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s"
    )
    command.add_argument(
        "--run-code-in-checkpoint",
        action="store_true",
        help="read checkpoints that hold more than tensors, numbers and text, and plans with foreign networks; only "
        "for files from people you trust",
    )


def chosen_network(arguments: argparse.Namespace) -> "Choice":
    """Return the network that the options of `add_model` name."""
    from nnunet_plugins.models.sources import Choice

    return Choice(arguments.trainer, arguments.configuration, arguments.plans)


def chosen_model(arguments: argparse.Namespace) -> "Source":
    """Return the trained model that the options of `add_model` name.

    Raises:
        InputError: if it is not there, or cannot be used.
    """
    from nnunet_plugins.models.sources import find_model

    return find_model(
        arguments.dataset,
        chosen_network(arguments),
        arguments.folds,
        arguments.checkpoint,
        trusted=arguments.run_code_in_checkpoint,
    )
