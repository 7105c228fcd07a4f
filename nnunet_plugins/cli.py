"""The command `nnunet-plugins`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nnunet_plugins import __version__, backbones
from nnunet_plugins._startup import trainer_folder
from nnunet_plugins.arguments import lay_out, positive
from nnunet_plugins.benchmark import command_line as benchmark
from nnunet_plugins.demo import command_line as demo
from nnunet_plugins.doctor import command_line as doctor
from nnunet_plugins.engines import command_line as engines
from nnunet_plugins.errors import InputError
from nnunet_plugins.explain import command_line as explain
from nnunet_plugins.fixed_size import command_line as fixed_size
from nnunet_plugins.merging import command_line as merging
from nnunet_plugins.metrics import command_line as metrics
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.planning import command_line as planning
from nnunet_plugins.prediction import command_line as prediction
from nnunet_plugins.preparation import command_line as preparation
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER, path_of
from nnunet_plugins.submission import command_line as submission
from nnunet_plugins.template import command_line as template
from nnunet_plugins.testing import command_line as testing


def _list(arguments: argparse.Namespace) -> int:
    unusable = backbones.others().unusable
    if arguments.json:
        content = {
            "backbones": [
                {
                    "trainer": row.trainer,
                    "network": path_of(row.network),
                    "options": {name: _as_json(value) for name, value in row.options.items()},
                    "paper": row.paper,
                    "dimensions": list(row.dimensions),
                    "twin": row.twin,
                    "summary": row.summary,
                    "source": asdict(backbones.source_of(row.trainer) or backbones.OWN),
                }
                for row in backbones.every().values()
            ],
            "unusable": [asdict(one) for one in unusable],
            "modifiers": [{"name": m.name, "sets": m.slot, "summary": m.summary} for m in MODIFIERS],
        }
        print(json.dumps(content, indent=2))
        return 0
    rows = [("trainer", "works in", "ablation twin", "what it is")]
    for row in backbones.every().values():
        source = backbones.source_of(row.trainer)
        origin = "" if source == backbones.OWN else f" (from {source})"
        rows.append((row.trainer, ", ".join(f"{d}D" for d in row.dimensions), row.twin, row.summary + origin))
    print(lay_out(rows))
    for one in unusable:
        print(f"Left out: {one}")
    print(f"\nModifiers for these and for {STOCK_TRAINER}, each after one underscore, in any order:")
    print(lay_out([(f"  _{m.name}", m.summary) for m in MODIFIERS]))
    print(f"\nFor example: nnUNetv2_train 4 3d_fullres 0 -tr {BACKBONES[0].trainer}_100epochs_NoMirroring")
    return 0


def _as_json(value: Any) -> Any:
    """Return an option as it is, or in words: in other people's rows it may be anything."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return path_of(value) if callable(value) else str(value)
    return value


def _trainer_path(arguments: argparse.Namespace) -> int:
    print(trainer_folder())
    return 0


def _warm_start(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_plugins.trainers.checkpoints import CheckpointError, UnsafeCheckpointError
    from nnunet_plugins.trainers.warm_start import write_warm_start

    if arguments.dataset:
        from nnunet_plugins.planning.vgg16 import write_vgg16_start

        place = (arguments.dataset, arguments.configuration, arguments.plans)
        write_vgg16_start(Path(arguments.checkpoint), arguments.trainer, *place, Path(arguments.output))
        print(f"Wrote {arguments.output}. Its weights are VGG16's but for the output layers. Train with it:")
        where = f"{arguments.dataset} {arguments.configuration} 0 -p {arguments.plans}"
        print(f"  nnUNetv2_train {where} -tr {arguments.trainer} -pretrained_weights {arguments.output}")
        return 0
    try:
        new = write_warm_start(
            Path(arguments.checkpoint),
            arguments.trainer,
            Path(arguments.output),
            advantage=arguments.advantage,
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


def _rope(text: str) -> float:
    """Return a difference in Dice, which is at least 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no difference in Dice: a number from 0 on, below 1")
    return value


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    folder = Path(arguments.benchmark)
    if arguments.verify:
        from nnunet_plugins.report.verification import verify_report

        found = verify_report(folder)
        for line in (*found.fits, *found.notes):
            print(line)
        for line in found.contradictions:
            print(f"Contradiction: {line}")
        return 1 if found.contradictions else 0

    from nnunet_plugins.report.build import build_report

    print(f"Wrote {build_report(folder, arguments.rope)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    result = argparse.ArgumentParser(prog="nnunet-plugins", description="New backbones for nnU-Net v2, without a fork.")
    result.add_argument("--version", action="version", version=f"nnunet-plugins {__version__}")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "list",
        help="show all trainers and the modifiers of their names",
        description="Show every trainer that `nnUNetv2_train -tr` takes, its ablation twin, and the modifiers.",
    )
    command.add_argument("--json", action="store_true", help="print JSON, with network path, options and paper")
    command.set_defaults(run=_list)

    command = commands.add_parser(
        "doctor",
        help="check the installation, or a dataset before a job is queued, and say what to do about each problem",
        description=doctor.DESCRIPTION,
    )
    doctor.add_arguments(command)
    command.set_defaults(run=doctor.run)

    command = commands.add_parser(
        "trainer-path",
        help="print the folder for nnUNet_extTrainer",
        description="Print the folder that nnU-Net has to scan, for setting it by hand: "
        "export nnUNet_extTrainer=$(nnunet-plugins trainer-path)",
    )
    command.set_defaults(run=_trainer_path)

    planning.add_commands(commands)
    merging.add_commands(commands)
    fixed_size.add_command(commands)
    preparation.add_command(commands)

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
        default=5.0,
        metavar="LOGITS",
        help="attention to the first rate at the start, default %(default)g: the other rates share 2 per cent. With 20 "
        "the network starts as the U-Net to single precision, but its attention hardly learns",
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
    vgg16.add_argument("-c", dest="configuration", default="2d", help="default: %(default)s")
    vgg16.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    command.set_defaults(run=_warm_start)

    prediction.add_command(commands)
    engines.add_command(commands)
    explain.add_command(commands)
    metrics.add_command(commands)

    command = commands.add_parser(
        "benchmark",
        help="compare networks fairly, from training to report",
        description=benchmark.DESCRIPTION,
    )
    benchmark.add_arguments(command)
    command.set_defaults(run=benchmark.run)

    command = commands.add_parser(
        "report",
        help="make the report of a benchmark again",
        description="Make the page and the tables of a benchmark again from its record: index.html, report.md, "
        "tables.tex, paper.tex, results.csv, challenger.csv and the figures. Needs neither nnU-Net's folders nor "
        "torch. With --verify nothing is written: everything is made again and compared, down to the files that it was "
        "made of, as far as they are here; the exit code is 1 if something contradicts.",
    )
    command.add_argument("benchmark", metavar="DIR", help="folder that was given to benchmark with -o")
    command.add_argument(
        "--verify", action="store_true", help="write nothing: compare the report with what it is made of"
    )
    command.add_argument(
        "--rope",
        type=_rope,
        default=0.01,
        metavar="DICE",
        help="a smaller difference in Dice counts for nothing in practice: algorithms that differ by less, with a "
        "probability of 0.95, are called equivalent (default: 0.01)",
    )
    command.set_defaults(run=_report)

    command = commands.add_parser(
        "export-submission",
        help="make a challenge submission, or any folder that predicts by itself, of trained networks",
        description=submission.DESCRIPTION,
    )
    submission.add_arguments(command)
    command.set_defaults(run=submission.run)

    template.add_command(commands)
    testing.add_command(commands)

    command = commands.add_parser(
        "demo",
        help="a whole benchmark on a small made-up dataset",
        description="Make a small 3D phantom dataset and run a whole benchmark on it with the stock U-Net, FIRENet, "
        "AutofocusUNet and ASPP3DUNet: plan, preprocess, train, predict, ensemble, evaluate, report. Started again "
        "after an interruption, it goes on where it was. Your own nnU-Net folders are not touched.",
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.run)
    return result


INTERRUPTED, READER_GONE = 130, 141  # as a shell tells the signals INT and PIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code.

    What the user has to know or to change is one message and code 2. After Ctrl-C it is 130, and 141 if whoever reads
    the output wants no more of it, as `head`.
    """
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        if sys.stdout:
            sys.stdout.flush()  # as long as its errors can be told
    except KeyboardInterrupt:
        _drop_output()  # what was told before comes before
        print(f"\nnnunet-plugins {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return READER_GONE
    except (InputError, OSError) as error:
        _drop_output()
        print(f"nnunet-plugins {arguments.command}: {str(error).removeprefix('nnunet_plugins: ')}", file=sys.stderr)
        return 2
    return code


def _drop_output() -> None:
    """Print what is left; if that is not possible, let Python not try it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
