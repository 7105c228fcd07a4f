"""The options of `nnunet-plugins doctor`. Loads nothing heavy before it runs."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import positive, whole
from nnunet_plugins.errors import InputError
from nnunet_plugins.rows import STOCK_TRAINER

DESCRIPTION = (
    "Say what is wrong, and what to do about it. Without a dataset: what is installed where, whether nnU-Net finds our "
    "trainers, and which devices torch sees. With -d: whether a dataset is fit for nnU-Net, before it is preprocessed "
    "or trained on; every image is read once. With -tr, -c or -p also whether that training would run. Nothing is "
    "changed. With a checkpoint: what it is of, which package its network comes from, and whether that is here. "
    "The exit code is 1 if there is a problem. For example: nnunet-plugins doctor -d 4 -tr "
    "nnUNetTrainerFIRENet -c 3d_fullres --gpu-memory 24"
)


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "doctor",
        help="check the installation, or a dataset before a job is queued, and say what to do about each problem",
        description=DESCRIPTION,
    )
    add_arguments(command)
    command.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="checkpoint of nnU-Net to look into")
    parser.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of a dataset to check")
    parser.add_argument(
        "--groups", metavar="FILE", help="CSV file with the columns 'case' and 'group': do splits tear groups apart?"
    )
    parser.add_argument(
        "-i", dest="images", metavar="FOLDER", help="folder of images to predict, to be checked as imagesTs is"
    )
    parser.add_argument(
        "-np", dest="processes", type=whole, metavar="N", help="cases at a time; default: as in nnU-Net"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    training = parser.add_argument_group("a training to check, any of these")
    training.add_argument("-tr", dest="trainer", metavar="TRAINER", help=f"default: {STOCK_TRAINER}")
    training.add_argument("-c", dest="configuration", metavar="CONFIGURATION", help="default: 3d_fullres")
    training.add_argument("-p", dest="plans", metavar="PLANS", help="default: nnUNetPlans")
    training.add_argument(
        "--gpu-memory", type=positive, metavar="GIB", help="of the GPU it will run on; default: that of this machine"
    )
    training.add_argument(
        "--pretrained",
        type=Path,
        metavar="CHECKPOINT",
        help="that it is to start from (nnUNetv2_train -pretrained_weights): what will load, what is left out, what "
        "stops nnU-Net, and with which plans it fits",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the checks; returns 1 if there is a problem, else 0."""
    from nnunet_plugins.doctor.findings import examine

    options = (arguments.trainer, arguments.configuration, arguments.plans, arguments.gpu_memory)
    of_training = any(option is not None for option in (*options, arguments.pretrained))
    if arguments.checkpoint is not None:
        if of_training or arguments.groups or arguments.dataset or arguments.images:
            raise InputError(
                "a checkpoint is looked into by itself, without -d, -tr, -c, -p, --gpu-memory, --pretrained, --groups "
                "and -i"
            )
        from nnunet_plugins.doctor.checkpoint import sections as of_checkpoint

        return examine(of_checkpoint(Path(arguments.checkpoint)), as_json=arguments.json)
    if arguments.dataset is None:
        if of_training or arguments.groups or arguments.images:
            raise InputError(
                "-tr, -c, -p, --gpu-memory, --pretrained, --groups and -i are about a dataset; give it with -d"
            )
        from nnunet_plugins.doctor.installation import sections

        return examine(sections(), as_json=arguments.json)
    if arguments.pretrained and not arguments.pretrained.is_file():
        raise InputError(f"--pretrained {arguments.pretrained} is no file")
    from nnunet_plugins.doctor.preflight import Question, preflight

    question = Question(
        arguments.dataset,
        trainer=arguments.trainer or STOCK_TRAINER,
        configuration=arguments.configuration or "3d_fullres",
        plans=arguments.plans or "nnUNetPlans",
        gpu_memory=arguments.gpu_memory,
        of_training=of_training,
        groups=Path(arguments.groups) if arguments.groups else None,
        processes=arguments.processes,
        images=Path(arguments.images) if arguments.images else None,
        pretrained=arguments.pretrained,
    )
    return examine(preflight(question), as_json=arguments.json)
