"""The command `nnunet-plugins predict`. Loads nothing heavy before it runs."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import ENGINES, WHOLE_VOLUME, positive, whole
from nnunet_plugins.errors import InputError
from nnunet_plugins.models.command_line import add_model, chosen_model, chosen_network

DESCRIPTION = (
    "Predict a folder of images as nnUNetv2_predict does, for every trainer, one case after the other; a case that "
    "fails costs no other. Three things differ if they are asked for. --engine: another one than PyTorch computes the "
    "network. --whole-volume: each case goes through the network "
    "in one pass, at its own size, and not in tiles. --spacing-factor: labels at another spacing than that of the "
    "images. Networks of places, MetaSeg and NISF, are fitted to an image and then know its labels at every place: "
    "with 0.5 the voxels of the label map have half the image's spacing along each axis, at the same extent, and each "
    "is decoded where it lies, not interpolated; the first voxel's centre moves, so that the extents coincide. For "
    "example: nnunet-plugins predict -i imagesTs -o whole -d 4 -c 3d_fullres -tr nnUNetTrainerFIRENet --whole-volume"
)


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "predict",
        help="predict images as nnUNetv2_predict does, sooner; also in one pass each, or at another spacing",
        description=DESCRIPTION,
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "-i",
        dest="input",
        type=Path,
        metavar="DIR",
        help="folder of images, CASE_0000.nii.gz, one file per channel",
    )
    what.add_argument(
        "--cross-validation",
        action="store_true",
        help="the training images of the dataset, each by the fold after -f that was validated on it",
    )
    command.add_argument(
        "-o", dest="output", type=Path, required=True, metavar="DIR", help="folder to write, CASE.nii.gz"
    )
    add_model(command)
    command.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), help="to compute on; default: a GPU if there is one"
    )
    command.add_argument("--continue_prediction", action="store_true", help="leave out cases whose prediction is there")
    how = command.add_mutually_exclusive_group()
    how.add_argument(
        "--whole-volume",
        nargs="?",
        const="always",
        choices=WHOLE_VOLUME,
        help="each case in one pass of the network, at its own size. always, the default: also where memory may not "
        "suffice; tiles once it has run out. auto: only where the forecast of the memory allows it; all others in "
        "tiles, which is told",
    )
    how.add_argument(
        "--spacing-factor",
        type=positive,
        metavar="F",
        help="spacing of the labels along each axis, as a part of the image's; 0.5 gives eight times as many voxels",
    )
    command.add_argument(
        "--memory",
        type=positive,
        metavar="GIB",
        help="that a pass may take, for --whole-volume auto; default: 80 %% of what is free",
    )
    stock = command.add_argument_group("as nnUNetv2_predict has them; not with --spacing-factor")
    stock.add_argument(
        "-step_size", dest="step", type=positive, metavar="S", help="of tiles, as a part of the patch; default: 0.5"
    )
    stock.add_argument("--disable_tta", action="store_true", help="no mirroring")
    stock.add_argument("--save_probabilities", action="store_true", help="for nnUNetv2_ensemble")
    stock.add_argument(
        "-prev_stage_predictions",
        dest="previous",
        type=Path,
        metavar="DIR",
        help="predictions of the first stage, for the second one of a cascade",
    )
    command.add_argument(
        "--verify",
        type=whole,
        default=0,
        metavar="N",
        help="predict the first N cases with nnU-Net's own command as well, and compare all voxels; in tiles alone",
    )
    engine = command.add_argument_group("other engines than PyTorch, on the CPU, in tiles")
    engine.add_argument(
        "--engine", choices=ENGINES, help="that computes the network, from files that nnunet-plugins export-onnx made"
    )
    engine.add_argument(
        "--onnx",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="one for each fold, in any order; default: checkpoint_final.onnx beside each checkpoint_final.pth",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from nnunet_plugins import memory

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no GPU; leave out -device cuda, or see nnunet-plugins doctor")
    _require_fitting_options(arguments)
    best = "cuda" if torch.cuda.is_available() and not arguments.engine else "cpu"
    device = torch.device(arguments.device or best)
    if arguments.whole_volume and device.type == "cpu" and (limit := memory.container_limit()):
        # So that a pass that takes too much ends in an error, after which there are tiles.
        memory.keep_within(limit)
    failed = _predict_places(arguments, device) if arguments.spacing_factor else _predict_volumes(arguments, device)
    if failed:
        print(f"nnunet-plugins predict: failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _require_fitting_options(arguments: argparse.Namespace) -> None:
    if arguments.memory and arguments.whole_volume != "auto":
        raise InputError("--memory is for --whole-volume auto")
    if arguments.step and arguments.step > 1:
        raise InputError(f"-step_size {arguments.step:g} leaves gaps between tiles; it is 1 at the most")
    others = ("--whole-volume", arguments.whole_volume), ("--cross-validation", arguments.cross_validation)
    if arguments.verify and (other := next((name for name, value in others if value), None)):
        raise InputError(f"--verify compares with nnU-Net's own command, which cannot do what {other} does")
    _require_fitting_engine(arguments)
    if arguments.spacing_factor:
        options = {
            "-step_size": arguments.step,
            "--disable_tta": arguments.disable_tta,
            "--save_probabilities": arguments.save_probabilities,
            "-prev_stage_predictions": arguments.previous,
            "--cross-validation": arguments.cross_validation,
            "--verify": arguments.verify,
        }
        if given := [name for name, value in options.items() if value]:
            raise InputError(f"{given[0]} cannot be used with --spacing-factor, which decodes labels place by place")


def _require_fitting_engine(arguments: argparse.Namespace) -> None:
    if arguments.onnx and not arguments.engine:
        raise InputError(f"--onnx is for --engine, {' or '.join(ENGINES)}")
    if not arguments.engine:
        return
    from nnunet_plugins.engines.export import require_exportable
    from nnunet_plugins.planning.setting import find_trainer

    require_exportable(find_trainer(arguments.trainer))
    if arguments.device not in (None, "cpu"):
        raise InputError(f"--engine {arguments.engine} computes on the CPU; leave out -device {arguments.device}")
    if arguments.whole_volume or arguments.spacing_factor:
        other = "--whole-volume" if arguments.whole_volume else "--spacing-factor"
        raise InputError(f"--engine {arguments.engine} takes images of the patch's size alone; leave out {other}")
    if arguments.onnx and arguments.cross_validation:
        raise InputError("--onnx names files of all folds at once; for --cross-validation they lie beside checkpoints")


def _predict_places(arguments: argparse.Namespace, device: Any) -> list[str]:
    from nnunet_plugins.prediction.folder import predict_folder
    from nnunet_plugins.prediction.model import Model

    return predict_folder(
        Model(
            arguments.dataset,
            chosen_network(arguments),
            arguments.folds,
            arguments.checkpoint,
            device,
            trusted=arguments.run_code_in_checkpoint,
        ),
        arguments.input,
        arguments.output,
        arguments.spacing_factor,
        _log,
        keep_finished=arguments.continue_prediction,
    )


def _predict_volumes(arguments: argparse.Namespace, device: Any) -> list[str]:
    from nnunet_plugins.prediction.request import Request
    from nnunet_plugins.prediction.volumes import cross_validate, predict_volumes

    source = chosen_model(arguments)
    request = Request(
        whole_volume=arguments.whole_volume,
        most_bytes=int(arguments.memory * 2**30) if arguments.memory else None,
        mirroring=not arguments.disable_tta,
        step=arguments.step or 0.5,
        probabilities=arguments.save_probabilities,
        previous=arguments.previous,
        keep_finished=arguments.continue_prediction,
        verified=arguments.verify,
        engine=arguments.engine,
        onnx=tuple(arguments.onnx or ()),
    )
    if arguments.cross_validation:
        return cross_validate(source, request, device, arguments.output, _log)
    return predict_volumes(source, request, device, arguments.input, arguments.output, _log)


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
