"""The command `nnunet-plugins warm-start`. Loads nothing heavy before it runs."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import positive
from nnunet_plugins.errors import InputError

ADVANTAGE, CONFIGURATION, PLANS = 5.0, "2d", "nnUNetPlans"


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "warm-start",
        help="make a start for one network out of another that has been trained",
        description="Take the weights of a trained network, add those that the trainer's network has besides, and "
        "write a file for nnU-Net's -pretrained_weights. A stock U-Net starts AutofocusUNet or ASPP3DUNet, whose "
        "autofocus layers begin as the convolutions they replace; a MedNeXt with kernel 3 starts one with kernel 5 "
        "(UpKern). For example: nnunet-plugins warm-start fold_0/checkpoint_final.pth -tr nnUNetTrainerAutofocusUNet "
        "-o start.pth. FCN-8s starts from torchvision's VGG16, which knows no plans, so that they have to be named: "
        "nnunet-plugins warm-start vgg16-397923af.pth -tr nnUNetTrainerFCN8s -d 4 -c 2d -o start.pth",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint of the trained network, or VGG16's file")
    command.add_argument("-tr", dest="trainer", required=True, metavar="TRAINER", help="trainer to start")
    command.add_argument("-o", dest="output", required=True, metavar="FILE", help="file to write")
    command.add_argument(
        "--advantage",
        type=positive,
        metavar="LOGITS",
        help=f"attention to the first rate at the start; default: {ADVANTAGE:g}, which leaves 2 per cent to the other "
        "rates. With 20 the network starts as the U-Net to single precision, but its attention hardly learns",
    )
    command.add_argument(
        "--run-code-in-checkpoint",
        action="store_true",
        help="read CHECKPOINT although it holds more than tensors, numbers and text, or names classes that are neither "
        "PyTorch's nor nnU-Net's. Reading it can then run any program with your rights: only for files from people you "
        "trust",
    )
    vgg16 = command.add_argument_group("for VGG16's file")
    vgg16.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset to train on")
    vgg16.add_argument("-c", dest="configuration", help=f"default: {CONFIGURATION}")
    vgg16.add_argument("-p", dest="plans", metavar="PLANS", help=f"default: {PLANS}")
    command.set_defaults(run=_warm_start)


def _warm_start(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.starts.warm_start import write_warm_start
    from nnunet_plugins.trainers.checkpoints import CheckpointError, UnsafeCheckpointError

    _refuse_what_would_do_nothing(arguments)
    if arguments.dataset:
        from nnunet_plugins.starts.vgg16 import write_vgg16_start

        configuration, plans = arguments.configuration or CONFIGURATION, arguments.plans or PLANS
        place = (arguments.dataset, configuration, plans)
        write_vgg16_start(Path(arguments.checkpoint), arguments.trainer, *place, Path(arguments.output))
        print(f"Wrote {arguments.output}. Its weights are VGG16's but for the output layers. Train with it:")
        where = f"{arguments.dataset} {configuration} 0 -p {plans}"
        print(f"  nnUNetv2_train {where} -tr {arguments.trainer} -pretrained_weights {arguments.output}")
        return 0
    try:
        new = write_warm_start(
            Path(arguments.checkpoint),
            arguments.trainer,
            Path(arguments.output),
            advantage=arguments.advantage or ADVANTAGE,
            trusted=arguments.run_code_in_checkpoint,
        )
    except UnsafeCheckpointError as error:
        hint = "If you trust whoever made it as you trust a program, use --run-code-in-checkpoint"
        raise InputError(f"{error}. {hint}") from error
    except CheckpointError as error:
        if "no 'network_weights'" not in str(error):
            raise
        raise InputError(f"{error}. For VGG16's file name the dataset with -d and the configuration with -c") from error
    print(f"New weights, all others are the checkpoint's: {', '.join(new) or 'none'}")
    print(f"Wrote {arguments.output}. Train with the same plans and fold:")
    print(f"  nnUNetv2_train ... -tr {arguments.trainer} -pretrained_weights {arguments.output}")
    return 0


def _refuse_what_would_do_nothing(arguments: argparse.Namespace) -> None:
    of_vgg16 = {"-c": arguments.configuration, "-p": arguments.plans}
    of_checkpoints = {"--advantage": arguments.advantage, "--run-code-in-checkpoint": arguments.run_code_in_checkpoint}
    for option, value in (of_checkpoints if arguments.dataset else of_vgg16).items():
        if value and arguments.dataset:
            raise InputError(f"{option} is for checkpoints; with -d, for VGG16's file, leave it out")
        if value:
            raise InputError(f"{option} is for VGG16's file, whose plans have to be named: add the dataset, -d")
