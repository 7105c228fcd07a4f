"""The command `nnunet-plugins export-onnx`. Loads nothing heavy before it runs."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.models.command_line import add_model, chosen_model

DESCRIPTION = (
    "Write the trained network of each fold to an ONNX file, for nnunet-plugins predict --engine and for programs "
    "without PyTorch. A file takes images of the patch's size, any number at a time, as preprocessing leaves them, and "
    "gives logits. It is written only if onnxruntime computes from it what PyTorch does, and says in its metadata of "
    "which model it is. For example: nnunet-plugins export-onnx -d 4 -c 3d_fullres -tr nnUNetTrainerFIRENet -f 0 -o "
    "net.onnx"
)


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "export-onnx", help="trained networks as ONNX files, for other engines", description=DESCRIPTION
    )
    add_model(command)
    command.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help="to write; of several folds net.onnx becomes net_fold_0.onnx and so on. Default: checkpoint_final.onnx "
        "beside each checkpoint_final.pth, with --half checkpoint_final_half.onnx",
    )
    command.add_argument(
        "--half",
        action="store_true",
        help="weights, images and logits in half precision; how many labels that changes is told",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.engines.export import export_fold, require_exportable
    from nnunet_plugins.engines.origin import file_beside
    from nnunet_plugins.planning.setting import find_trainer

    output: Path | None = arguments.output
    if output and output.is_dir():
        raise InputError(f"-o {output} is a folder; name a file in it, such as {output / 'net.onnx'}")
    if output and output.suffix != ".onnx":
        raise InputError(f"-o {output}: the name has to end in .onnx, as in {output.with_suffix('.onnx')}")
    require_exportable(find_trainer(arguments.trainer))
    source = chosen_model(arguments)
    for fold in source.folds:
        file = output or file_beside(source, fold, half=arguments.half)
        if output and len(source.folds) > 1:
            file = output.with_name(f"{output.stem}_fold_{fold}{output.suffix}")
        export_fold(source, fold, file, print, half=arguments.half)
    return 0
