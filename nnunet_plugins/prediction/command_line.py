"""The command `nnunet-plugins predict`. Loads nothing heavy before it runs."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import positive
from nnunet_plugins.errors import InputError

DESCRIPTION = (
    "Predict labels at another spacing than that of the images. Networks of places, MetaSeg and NISF, are fitted to an "
    "image and then know its labels at every place: with --spacing-factor 0.5 the voxels of the label map have half "
    "the image's spacing along each axis, at the same extent, and each is decoded where it lies, not interpolated. "
    "The first voxel's centre moves, so that the extents coincide. With 1 the label maps are those of "
    "nnUNetv2_predict, which is the command for all other networks, except where an image has another spacing than "
    "the plans: nnU-Net interpolates then. For example: nnunet-plugins predict -i imagesTs -o fine -d 4 -c 3d_cover "
    "-p nnUNetPlans_cover -tr nnUNetTrainerNISF -f 0 --spacing-factor 0.5"
)


def add_command(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "predict", help="labels at any spacing, by networks that know places (MetaSeg, NISF)", description=DESCRIPTION
    )
    command.add_argument(
        "-i",
        dest="input",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of images, CASE_0000.nii.gz, one file per channel; each no larger than the patch of the plans",
    )
    command.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="DIR", help="folder to write, CASE.nii.gz"
    )
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name of the dataset")
    command.add_argument(
        "-c", dest="configuration", required=True, metavar="CONFIGURATION", help="for example 3d_cover"
    )
    command.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    command.add_argument(
        "-tr", dest="trainer", required=True, metavar="TRAINER", help="for example nnUNetTrainerMetaSeg"
    )
    command.add_argument(
        "-f",
        dest="folds",
        nargs="+",
        default=["0", "1", "2", "3", "4"],
        metavar="FOLD",
        help="their logits are averaged; default: 0 1 2 3 4",
    )
    command.add_argument(
        "-chk", dest="checkpoint", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s"
    )
    command.add_argument(
        "--spacing-factor",
        type=positive,
        default=1.0,
        metavar="F",
        help="spacing of the labels along each axis, as a part of the image's; 0.5 gives eight times as many voxels. "
        "Default: %(default)g",
    )
    command.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), help="to compute on; default: a GPU if there is one"
    )
    command.add_argument(
        "--continue_prediction",
        action="store_true",
        help="leave out cases whose label map is there, with the voxels that it is to have",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from nnunet_plugins.prediction.folder import predict_folder
    from nnunet_plugins.prediction.model import Model
    from nnunet_plugins.submission.sources import Choice

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no GPU; leave out -device cuda, or see nnunet-plugins doctor")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    choice = Choice(arguments.trainer, arguments.configuration, arguments.plans)
    model = Model(arguments.dataset, choice, arguments.folds, arguments.checkpoint, device)
    failed = predict_folder(
        model,
        arguments.input,
        arguments.output,
        arguments.spacing_factor,
        _log,
        keep_finished=arguments.continue_prediction,
    )
    if failed:
        print(f"nnunet-plugins predict: failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
