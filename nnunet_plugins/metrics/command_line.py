"""The command `nnunet-plugins evaluate`. Loads nothing heavy before it runs."""

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import natural, positive, tell_failures, whole
from nnunet_plugins.errors import InputError


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "evaluate",
        help="Dice, surface distances and volume error of a folder of segmentations; or an atlas to read them against",
        description="Compare a folder of segmentations with the true ones and write a table with a row per case and "
        "label (or region): Dice as nnU-Net has it, ASSD, HD95, normalised surface Dice and volume error. Needs MONAI, "
        "the extra nnunet-plugins[benchmark]. For example: nnunet-plugins evaluate predictions labelsTs -o metrics.csv."
        " With --atlas: segment the validation cases of a fold with the voxelwise majority of its training labels, each"
        " in the middle of the patch, without an image or a network, and write that with nnU-Net's own metrics: what "
        "every network has to clear. For example: nnunet-plugins evaluate --atlas -d 4 -c 3d_cover "
        "-p nnUNetPlans_cover -o atlas",
    )
    command.add_argument(
        "predictions", nargs="?", metavar="PREDICTIONS", help="folder that nnUNetv2_predict wrote, or a validation"
    )
    command.add_argument(
        "truth", nargs="?", metavar="TRUTH", help="folder of true segmentations with the same file names"
    )
    command.add_argument(
        "-o", dest="output", required=True, metavar="FILE", help="CSV file to write; with --atlas a folder"
    )
    command.add_argument(
        "-djfile",
        dest="dataset_json",
        metavar="FILE",
        help="dataset.json with the labels; default: the one of the predictions, of their model, or of the dataset",
    )
    command.add_argument(
        "--tolerance",
        type=positive,
        default=1.0,
        metavar="MM",
        help="distance at which surfaces still agree for the normalised surface Dice; default: %(default)g",
    )
    command.add_argument(
        "--objects",
        nargs="+",
        metavar="NAME",
        help="labels that consist of objects, such as lesions: columns for how many are found, and how well; default: "
        "those that 'nnunet_plugins_objects' in dataset.json names",
    )
    command.add_argument(
        "-np",
        dest="processes",
        type=whole,
        metavar="N",
        help="cases at a time; default: as in nnU-Net, nnUNet_def_n_proc or 8, but no more than there are cores, and "
        "without --atlas one for small files, which take less time than processes to start",
    )
    command.add_argument(
        "--by-source", action="store_true", help="of a merged dataset: print the means of each source on its own"
    )
    command.add_argument("--chill", action="store_true", help="leave out cases without a prediction")
    command.add_argument("--overwrite", action="store_true", help="replace FILE")
    atlas = command.add_argument_group("the atlas of training labels")
    atlas.add_argument("--atlas", action="store_true", help="make and evaluate it; needs -d")
    atlas.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset")
    atlas.add_argument("-c", dest="configuration", default="3d_fullres", help="default: %(default)s")
    atlas.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    atlas.add_argument(
        "-f", dest="folds", nargs="+", type=natural, default=[0], metavar="FOLD", help="one atlas for each; default: 0"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.atlas:
        return _evaluate_atlas(arguments)
    if arguments.truth is None:
        raise InputError("give the folder of predictions and that of the truth, or --atlas")
    if arguments.dataset:
        raise InputError("-d is about an atlas; give --atlas, or leave it out")
    return _evaluate_folders(arguments)


def _evaluate_folders(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.images.facts import summarise
    from nnunet_plugins.metrics import folders
    from nnunet_plugins.metrics.table import describe

    output = Path(arguments.output)
    found = folders.evaluate_folders(
        Path(arguments.predictions),
        Path(arguments.truth),
        output,
        dataset_json=Path(arguments.dataset_json) if arguments.dataset_json else None,
        tolerance=arguments.tolerance,
        objects=arguments.objects,
        processes=arguments.processes,
        chill=arguments.chill,
        overwrite=arguments.overwrite,
    )
    if arguments.by_source and "source" not in found.table:
        print("nnunet-plugins evaluate: the dataset was not merged, so it has no sources", file=sys.stderr)
    print(describe(found.table, by_source=arguments.by_source and "source" in found.table))
    print(f"Wrote {output}")
    for line in summarise(found.facts):
        print(f"nnunet-plugins evaluate: {line}", file=sys.stderr)
    return tell_failures("evaluate", found.failures)


def _evaluate_atlas(arguments: argparse.Namespace) -> int:
    about_folders = arguments.dataset_json, arguments.chill, arguments.by_source, arguments.objects
    if arguments.predictions is not None or any(about_folders):
        raise InputError(
            "--atlas segments the validation cases itself: leave out the folders, -djfile, --chill, --by-source and "
            "--objects"
        )
    if arguments.dataset is None:
        raise InputError("--atlas needs the dataset: -d DATASET")
    from nnunet_plugins.metrics.atlas import evaluate_atlas

    output = Path(arguments.output)
    summary = evaluate_atlas(
        arguments.dataset,
        output,
        configuration=arguments.configuration,
        plans=arguments.plans,
        folds=arguments.folds,
        processes=arguments.processes,
        overwrite=arguments.overwrite,
    )
    for label, means in summary["mean"].items():
        print(f"{label}: mean Dice {means['Dice']:.4f}")
    cases, mean = len(summary["metric_per_case"]), summary["foreground_mean"]["Dice"]
    print(f"Mean Dice of the atlas, over {cases} cases: {mean:.4f}")
    print(f"Wrote {output / 'summary.json'}")
    if len({len(case["metrics"]) for case in summary["metric_per_case"]} | {len(summary["mean"])}) > 1:
        print(
            "nnunet-plugins evaluate: each case counts with the labels alone that its dataset annotates; in "
            "summary.json, which is nnU-Net's, what is found of the others is a Dice of 0",
            file=sys.stderr,
        )
    return 0
