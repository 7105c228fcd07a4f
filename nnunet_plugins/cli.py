"""The command `nnunet-plugins`."""

import argparse
import json
import sys
from collections.abc import Sequence

from nnunet_plugins import __version__
from nnunet_plugins._startup import trainer_folder
from nnunet_plugins.benchmark import command_line as benchmark
from nnunet_plugins.demo import command_line as demo
from nnunet_plugins.registry import BACKBONES, MODIFIERS, STOCK_TRAINER


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in left-aligned columns; the last one may be of any length."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def _list(arguments: argparse.Namespace) -> int:
    if arguments.json:
        content = {
            "backbones": [
                {
                    "trainer": row.trainer,
                    "network": row.network,
                    "options": dict(row.options),
                    "paper": row.paper,
                    "dimensions": list(row.dimensions),
                    "twin": row.twin,
                    "summary": row.summary,
                }
                for row in BACKBONES
            ],
            "modifiers": [{"name": m.name, "sets": m.slot, "summary": m.summary} for m in MODIFIERS],
        }
        print(json.dumps(content, indent=2))
        return 0
    rows = [("trainer", "works in", "ablation twin", "what it is")]
    rows += [(r.trainer, ", ".join(f"{d}D" for d in r.dimensions), r.twin, r.summary) for r in BACKBONES]
    print(_table(rows))
    print(f"\nModifiers for these and for {STOCK_TRAINER}, each after one underscore, in any order:")
    print(_table([(f"  _{m.name}", m.summary) for m in MODIFIERS]))
    print(f"\nFor example: nnUNetv2_train 4 3d_fullres 0 -tr {BACKBONES[0].trainer}_100epochs_NoMirroring")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.doctor import examine

    return examine()


def _trainer_path(arguments: argparse.Namespace) -> int:
    print(trainer_folder())
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.planning.dataset import PlanError
    from nnunet_plugins.planning.fit import fit_plans
    from nnunet_plugins.planning.forecast import COMFORTABLE

    try:
        fitted = fit_plans(
            arguments.dataset,
            arguments.trainer,
            arguments.gpu_memory,
            configurations=arguments.configurations,
            like=arguments.like,
            name=arguments.name,
            autocast=not arguments.cpu,
            overwrite=arguments.overwrite,
        )
    except (PlanError, OSError) as error:
        print(f"nnunet-plugins plan: {error}", file=sys.stderr)
        return 2
    rows = [("configuration", "in the plans", "fits")]
    for configuration, (before, after) in fitted.sizes.items():
        rows.append((configuration, str(before), "as it is" if after == before else str(after)))
    print(f"Memory of a training step with {arguments.trainer}, forecast:\n{_table(rows)}")
    print(
        f"Of {arguments.gpu_memory:g} GiB it may take {COMFORTABLE:.0%}; the rest is left for what no forecast sees, "
        "such as the CUDA context and cuDNN's workspaces."
    )
    print(f"Wrote {fitted.file}" if fitted.file else "It fits already: nothing was written.")
    print("Train with:")
    device = " -device cpu" if arguments.cpu else ""
    for configuration in fitted.sizes:
        print(
            f"  nnUNetv2_train {arguments.dataset} {configuration} 0 -tr {arguments.trainer} -p {fitted.name}{device}"
        )
    return 0


def _split(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_plugins.planning import splits
    from nnunet_plugins.planning.dataset import PlanError

    groups = Path(arguments.groups) if arguments.groups else None
    torn: list[list[str]] = []
    if arguments.leakage_check and groups is None:
        print("nnunet-plugins split: --leakage-check needs --groups FILE", file=sys.stderr)
        return 2
    try:
        if arguments.leakage_check and groups:
            file, folds, torn = splits.check_splits(arguments.dataset, groups)
        else:
            file, folds = splits.write_splits(arguments.dataset, groups, arguments.folds, overwrite=arguments.overwrite)
    except (PlanError, OSError) as error:
        print(f"nnunet-plugins split: {error}", file=sys.stderr)
        return 2
    rows = [("fold", "train", "val", *(["groups in both, the first ten"] if arguments.leakage_check else []))]
    for number, fold in enumerate(folds):
        row = [str(number), str(len(fold["train"])), str(len(fold["val"]))]
        if torn:
            row.append(f"{len(torn[number])}: {', '.join(torn[number][:10])}".strip(": "))
        rows.append(tuple(row))
    print(_table(rows))
    leaks = any(torn)
    if leaks:
        print(f"{file} tears groups apart. New splits that do not: the same command without --leakage-check")
    else:
        print(f"{file} keeps every group together." if arguments.leakage_check else f"Wrote {file}")
    return 1 if leaks else 0


def _warm_start(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_plugins.trainers.names import UnknownTrainerError
    from nnunet_plugins.trainers.warm_start import write_warm_start

    try:
        new = write_warm_start(
            Path(arguments.checkpoint), arguments.trainer, Path(arguments.output), advantage=arguments.advantage
        )
    except (UnknownTrainerError, ValueError, OSError) as error:
        print(f"nnunet-plugins warm-start: {str(error).removeprefix('nnunet_plugins: ')}", file=sys.stderr)
        return 2
    print(f"New weights, all others are the checkpoint's: {', '.join(new)}")
    print(f"Wrote {arguments.output}. Train with the same plans and fold:")
    print(f"  nnUNetv2_train ... -tr {arguments.trainer} -pretrained_weights {arguments.output}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_plugins.metrics import folders
    from nnunet_plugins.metrics.table import describe

    output = Path(arguments.output)
    try:
        found = folders.evaluate_folders(
            Path(arguments.predictions),
            Path(arguments.truth),
            output,
            dataset_json=Path(arguments.dataset_json) if arguments.dataset_json else None,
            tolerance=arguments.tolerance,
            processes=arguments.processes,
            chill=arguments.chill,
            overwrite=arguments.overwrite,
        )
    except (folders.EvaluationError, ModuleNotFoundError, OSError) as error:
        print(f"nnunet-plugins evaluate: {error}", file=sys.stderr)
        return 2
    print(describe(found.table))
    print(f"Wrote {output}")
    for case, reason in found.failures.items():
        print(f"nnunet-plugins evaluate: {case} is not in it: {reason}", file=sys.stderr)
    return 1 if found.failures else 0


def _report(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from nnunet_plugins.report.build import build_report
    from nnunet_plugins.report.record import ReportError

    try:
        page = build_report(Path(arguments.benchmark))
    except (ReportError, OSError) as error:
        print(f"nnunet-plugins report: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {page}")
    return 0


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return number


def _whole(text: str, smallest: int = 1) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
    return int(text)


def _folds(text: str) -> int:
    return _whole(text, 2)


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
        help="check the installation and say what to do about each problem",
        description="Show what is installed where, whether nnU-Net finds our trainers, and which devices torch sees. "
        "The exit code is 1 if something needs mending.",
    )
    command.set_defaults(run=_doctor)

    command = commands.add_parser(
        "trainer-path",
        help="print the folder for nnUNet_extTrainer",
        description="Print the folder that nnU-Net has to scan, for setting it by hand: "
        "export nnUNet_extTrainer=$(nnunet-plugins trainer-path)",
    )
    command.set_defaults(run=_trainer_path)

    command = commands.add_parser(
        "plan",
        help="make plans whose batch and patch size fit your GPU's memory",
        description="Forecast the memory of a training step with a trainer's network, for each configuration of "
        "existing plans, and write a copy of the plans that fits the GPU: first with a smaller batch, down to 2, then "
        "with a smaller patch. The copy uses the same preprocessed data, so you can train with it at once: "
        "nnUNetv2_train ... -p NAME. No GPU is needed here. For example: nnunet-plugins plan -d 4 -tr "
        "nnUNetTrainerAFN6 --gpu-memory 24. To compare two networks fairly, train both with the same plans.",
    )
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name of the dataset")
    command.add_argument("-tr", dest="trainer", required=True, metavar="TRAINER", help="as for nnUNetv2_train")
    command.add_argument(
        "--gpu-memory",
        type=_positive,
        required=True,
        metavar="GB",
        help="all of the GPU's memory: 24 for a card sold with 24 GB (GiB); the forecast may take four fifths of it",
    )
    command.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=[],
        metavar="CONFIGURATION",
        help="configurations to adapt, for example 3d_fullres; default: all of the plans'",
    )
    command.add_argument(
        "--like", default="nnUNetPlans", metavar="PLANS", help="plans to start from, default: %(default)s"
    )
    command.add_argument(
        "--name", metavar="PLANS", help="name of the new plans; default like nnUNetPlans_AFN6_24GB, after the others"
    )
    command.add_argument(
        "--cpu", action="store_true", help="plan for training on a CPU, with its memory: without mixed precision"
    )
    command.add_argument("--overwrite", action="store_true", help="replace different plans of the new name")
    command.set_defaults(run=_plan)

    command = commands.add_parser(
        "split",
        help="make cross-validation splits that keep groups of cases, such as patients, together",
        description="Write splits_final.json, which nnU-Net uses, so that no group of cases is in training and in "
        "validation. The groups come from a CSV file with the columns 'case' and 'group'. Splits that a training has "
        "used are not changed. For example: nnunet-plugins split -d 4 --groups groups.csv",
    )
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name of the dataset")
    command.add_argument(
        "--groups",
        metavar="FILE",
        help="CSV file with the columns 'case' and 'group'; default: nnU-Net's random splits",
    )
    command.add_argument("--folds", type=_folds, default=5, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--leakage-check",
        action="store_true",
        help="change nothing, but name the groups that the present splits tear apart; exit code 1 if there are any",
    )
    command.add_argument("--overwrite", action="store_true", help="replace other splits that no training has used")
    command.set_defaults(run=_split)

    command = commands.add_parser(
        "warm-start",
        help="make a start for AutofocusUNet or ASPP3DUNet out of a trained U-Net",
        description="Take the weights of a trained stock U-Net, add those that the trainer's network has besides, and "
        "write a file for nnU-Net's -pretrained_weights. Autofocus layers begin as the convolutions they replace. For "
        "example: nnunet-plugins warm-start fold_0/checkpoint_final.pth -tr nnUNetTrainerAutofocusUNet -o start.pth",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint of nnUNetTrainer or a variant of it")
    command.add_argument("-tr", dest="trainer", required=True, metavar="TRAINER", help="trainer to start")
    command.add_argument("-o", dest="output", required=True, metavar="FILE", help="file to write")
    command.add_argument(
        "--advantage",
        type=float,
        default=5.0,
        metavar="LOGITS",
        help="attention to the first rate at the start, default %(default)g: the other rates share 2 per cent. With 20 "
        "the network starts as the U-Net to single precision, but its attention hardly learns",
    )
    command.set_defaults(run=_warm_start)

    command = commands.add_parser(
        "evaluate",
        help="Dice, surface distances and volume error of a folder of segmentations",
        description="Compare a folder of segmentations with the true ones and write a table with a row per case and "
        "label (or region): Dice as nnU-Net has it, ASSD, HD95, normalised surface Dice and volume error. Needs MONAI, "
        "the extra nnunet-plugins[benchmark]. For example: nnunet-plugins evaluate predictions labelsTs -o metrics.csv",
    )
    command.add_argument(
        "predictions", metavar="PREDICTIONS", help="folder that nnUNetv2_predict wrote, or a validation"
    )
    command.add_argument("truth", metavar="TRUTH", help="folder of true segmentations with the same file names")
    command.add_argument("-o", dest="output", required=True, metavar="FILE", help="CSV file to write")
    command.add_argument(
        "-djfile",
        dest="dataset_json",
        metavar="FILE",
        help="dataset.json with the labels; default: the one of the predictions, of their model, or of the dataset",
    )
    command.add_argument(
        "--tolerance",
        type=_positive,
        default=1.0,
        metavar="MM",
        help="distance at which surfaces still agree for the normalised surface Dice, default %(default)g",
    )
    command.add_argument(
        "-np",
        dest="processes",
        type=_whole,
        metavar="N",
        help="cases at a time; default as in nnU-Net, nnUNet_def_n_proc or 8, but no more than there are cores",
    )
    command.add_argument("--chill", action="store_true", help="leave out cases without a prediction")
    command.add_argument("--overwrite", action="store_true", help="replace FILE")
    command.set_defaults(run=_evaluate)

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
        "tables.tex, results.csv, challenger.csv and the figures. Needs neither nnU-Net's folders nor torch.",
    )
    command.add_argument("benchmark", metavar="DIR", help="folder that was given to benchmark with -o")
    command.set_defaults(run=_report)

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
