"""The command `nnunet-plugins explain`. Loads nothing heavy before it runs."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import positive, whole
from nnunet_plugins.errors import InputError
from nnunet_plugins.explain import MAPS

DESCRIPTION = (
    "Look inside a trained network: maps of single cases as NIfTI with the geometry of the image, pictures of them, "
    "and a page, DIR/index.html, that needs no network. attention: which dilation rate each voxel chooses, and the "
    "gates of Attention U-Net, with their share in each predicted class. gradcam: where the network looks for a class "
    "(Seg-Grad-CAM; needs the extra explain). activations: of a fabric's cells and their dilation rates, or of any "
    "layer. erf: the effective receptive field. gates: what a fabric's edges let through, and over the training where "
    "gates.csv tells. By default all that the network has, in one pass over the image where memory allows it. For "
    "example: nnunet-plugins explain nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerFIRENet__nnUNetPlans__"
    "3d_fullres -f 0 -i imagesTs/case_0000.nii.gz -o inside"
)


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "explain",
        help="show what a trained network does with an image: attention, Grad-CAM, activations, gates",
        description=DESCRIPTION,
    )
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="folder of a trained configuration, nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION",
    )
    command.add_argument(
        "-i",
        dest="inputs",
        type=Path,
        nargs="+",
        required=True,
        metavar="CASE",
        help="images, the first channel's file of each, CASE_0000.nii.gz; or folders of them",
    )
    command.add_argument("-o", dest="output", type=Path, required=True, metavar="DIR", help="folder to write")
    command.add_argument(
        "-f", dest="folds", nargs="+", default=["0"], metavar="FOLD", help="whose network to look into; default: 0"
    )
    command.add_argument(
        "-chk", dest="checkpoint", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s"
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--maps", nargs="+", choices=MAPS, metavar="MAP", help=f"of {', '.join(MAPS)}; default: all that there are"
    )
    which.add_argument(
        "--without", nargs="+", choices=MAPS, default=(), metavar="MAP", help="all that there are but for these"
    )
    command.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="classes for gradcam and for the centre of the pictures, as dataset.json names them; default: all",
    )
    command.add_argument(
        "--layer",
        dest="layers",
        nargs="+",
        default=(),
        metavar="NAME",
        help="for gradcam, activations and erf, as the network's modules are called; default: the deepest one, the "
        "cells in the middle of a fabric, and the logits",
    )
    command.add_argument(
        "--channels",
        type=whole,
        default=2,
        metavar="N",
        help="for activations: of each layer the N that differ most between voxels; default: %(default)s",
    )
    command.add_argument(
        "--no-nifti", action="store_true", help="pictures, tables and the page alone, which take little room"
    )
    command.add_argument("--tiles", action="store_true", help="nnU-Net's tiles for every case, and no single pass")
    command.add_argument(
        "--memory", type=positive, metavar="GIB", help="that a pass may take; default: 80 %% of what is free"
    )
    command.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), help="to compute on; default: a GPU if there is one"
    )
    command.add_argument(
        "--run-code-in-checkpoint",
        action="store_true",
        help="read checkpoints that hold more than tensors, numbers and text, and plans with foreign networks; only "
        "for files from people you trust",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from nnunet_plugins import memory
    from nnunet_plugins.explain.folder import explain_cases
    from nnunet_plugins.explain.model import load_model, settle
    from nnunet_plugins.models.sources import model_in

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no GPU; leave out -device cuda, or see nnunet-plugins doctor")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and (limit := memory.container_limit()):
        # So that a pass that takes too much ends in an error, after which there are tiles.
        memory.keep_within(limit)
    if len(arguments.folds) > 1:
        raise InputError(
            f"-f {' '.join(arguments.folds)}: an ensemble has no map of its own; look into one fold at a time, each "
            "with a folder of its own (-o)"
        )
    source = model_in(arguments.model, arguments.folds, arguments.checkpoint, trusted=arguments.run_code_in_checkpoint)
    most_bytes = int(arguments.memory * 2**30) if arguments.memory else None
    model = load_model(source, device, most_bytes, tiles=arguments.tiles)
    wanted = settle(
        model,
        arguments.maps,
        arguments.classes,
        arguments.layers,
        arguments.channels,
        _log,
        without=arguments.without,
        nifti=not arguments.no_nifti,
    )
    failed = explain_cases(model, wanted, arguments.inputs, arguments.output, _log)
    if failed:
        print(f"nnunet-plugins explain: failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
