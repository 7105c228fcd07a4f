"""The options of `nnunet-plugins benchmark`. Loads nothing heavy before it runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import at_least_two, natural, positive, whole
from nnunet_plugins.benchmark import command
from nnunet_plugins.benchmark.protocol import ALL, DEFAULT_PLANS, PRESETS, Protocol, split_name
from nnunet_plugins.datasets.plan_names import NORMALISATIONS, find_normalisation
from nnunet_plugins.errors import InputError
from nnunet_plugins.planning.groups import GROUPS
from nnunet_plugins.registry import RIVALS
from nnunet_plugins.rows import STOCK_TRAINER

DESCRIPTION = (
    "Train networks on the same plans, splits, data and budget, in all folds, with nnU-Net's own commands; compare "
    "them by Dice and surface distances, with ensembles, costs and statistics; and write a report. "
    "Any trainer that nnU-Net finds can take part. What is done is not repeated: after an interruption, or to add a "
    "trainer, give the command again. For example: nnunet-plugins benchmark -d 4 -tr nnUNetTrainer "
    "nnUNetTrainerFIRENet -o comparison"
)


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "benchmark",
        help="compare networks fairly, from training to report",
        description=DESCRIPTION,
    )
    add_arguments(command)
    command.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    question = parser.add_argument_group("what is compared")
    question.add_argument(
        "-d",
        dest="datasets",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="numbers or names; not needed with --merged",
    )
    question.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=["3d_fullres"],
        metavar="CONFIGURATION",
        help="default: 3d_fullres. 3d_cascade_fullres needs 3d_lowres beside it",
    )
    question.add_argument(
        "-tr",
        dest="trainers",
        nargs="+",
        required=True,
        metavar="TRAINER",
        help=f"as for nnUNetv2_train; {STOCK_TRAINER}, or else the first variant of it, such as "
        f"{STOCK_TRAINER}_100epochs, is the baseline",
    )
    question.add_argument(
        "--repeats",
        nargs="+",
        type=_repeats,
        default=[],
        metavar="N",
        help="train each network N times, with the seeds 1 to N in its name (nnUNetTrainer_1seed ...), and take them "
        "as one; for one trainer alone TRAINER:N, such as --repeats 1 nnUNetTrainer:3; default: once, without a seed",
    )
    question.add_argument("-p", dest="plans", default=DEFAULT_PLANS, metavar="PLANS", help="default: %(default)s")
    question.add_argument(
        "--gpu-memory",
        type=positive,
        metavar="GIB",
        help="the same memory for all: train each network with its own copy of the plans, made to fit a GPU of this "
        "size (see nnunet-plugins plan --help); default: the same plans for all",
    )
    question.add_argument(
        "-f", dest="folds", nargs="+", type=natural, metavar="FOLD", help="default: all that the splits have"
    )
    question.add_argument(
        "--groups",
        nargs="?",
        const="",
        metavar="FILE",
        help="keep groups of cases together in the splits; see nnunet-plugins split --help. Without FILE those of each "
        f"dataset's own {GROUPS}, beside its dataset.json in nnUNet_raw; datasets without one have nnU-Net's splits",
    )
    question.add_argument(
        "--folds",
        dest="number_of_folds",
        type=at_least_two,
        metavar="N",
        help="number of folds of the splits, which are made where there are none; default: those that are there, or 5",
    )
    question.add_argument("--with-twins", action="store_true", help="add the ablation twin of each of our networks")
    question.add_argument(
        "--with-rivals",
        action="store_true",
        help="add published networks, each under nnU-Net's recipe and, where it differs, its paper's: "
        f"{', '.join(name.removeprefix(STOCK_TRAINER) for name in RIVALS)}; where there are plans, the compute of all "
        "networks is told first",
    )
    question.add_argument(
        "--with-whole-volume",
        action="store_true",
        help="add each network with its cases in one pass, at their own size, where memory allows it",
    )
    question.add_argument(
        "--without-ensembles",
        action="store_true",
        help="leave out nnU-Net's ensembles of all pairs and its choice among them, which take long for many networks",
    )
    question.add_argument(
        "--with-atlas",
        action="store_true",
        help="add the atlas, the voxelwise majority of the training labels, as a line to read the others against; the "
        "patch has to hold every image (nnunet-plugins plan --cover)",
    )
    question.add_argument(
        "--with-maps",
        action="store_true",
        help="show in the report what each network does with the worst and the most different case: attention, where "
        "it has some, and Grad-CAM (nnunet-plugins explain; needs the extra explain)",
    )
    question.add_argument(
        "--merged",
        metavar="DATASET",
        help="add one network for many datasets: train each trainer, with _PartialLabels, on this dataset that "
        "nnunet-plugins merge has made as well, and show it beside those of the datasets that it was made of, on their "
        "cases and in the same folds",
    )
    question.add_argument(
        "--baseline",
        dest="presets",
        nargs="+",
        choices=sorted(PRESETS),
        default=[],
        help="further baselines: nnU-Net's presets with a residual encoder, on plans of their own, marked as such",
    )
    question.add_argument(
        "--normalisation",
        dest="normalisations",
        nargs="+",
        default=[],
        metavar="SCHEME",
        help="the baseline once more for each of these normalisations of nnU-Net's, on plans that nnunet-plugins plan "
        "--normalisation makes, marked as such: CTNormalization, ...",
    )
    question.add_argument(
        "--pretrained",
        type=Path,
        metavar="CHECKPOINT",
        help="weights from which the trainers with _Pretrained start, beside the same ones from scratch: -tr "
        "nnUNetTrainerFIRENet nnUNetTrainerFIRENet_Pretrained",
    )
    question.add_argument("--test", action="store_true", help="predict imagesTs too; evaluated where there is labelsTs")
    question.add_argument(
        "--tolerance", type=positive, default=1.0, metavar="MM", help="of the surface Dice; default: %(default)g"
    )
    question.add_argument(
        "--allow-unequal", action="store_true", help="compare runs that are not equal; the report says so"
    )

    place = parser.add_argument_group("where and how it runs")
    place.add_argument("-o", dest="output", type=Path, required=True, metavar="DIR", help="folder for all that is made")
    place.add_argument("--device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    place.add_argument("--gpus", type=whole, metavar="N", help="GPUs of this machine, one training each; default: 1")
    place.add_argument(
        "--workers",
        type=whole,
        metavar="N",
        help="on a CPU: tasks at a time, each on its share of the cores; default: 1",
    )
    place.add_argument(
        "--cluster", type=Path, metavar="FILE", help="YAML file that describes a cluster; docs/cluster.md says how"
    )
    place.add_argument("--retries", type=natural, default=1, metavar="N", help="of a failed task; default: %(default)s")
    place.add_argument(
        "--train-missing-models",
        action="store_true",
        help="train anew what the record in DIR has results of, but whose models are no longer in nnUNet_results; "
        "default: keep these results, marked as such",
    )
    place.add_argument("--dry-run", action="store_true", help="print the commands and run none")


def _repeats(text: str) -> tuple[str, int]:
    """Read a number of repeats, of one trainer or of all."""
    trainer, colon, number = text.rpartition(":")
    if colon and not trainer:
        raise argparse.ArgumentTypeError(f"{text!r} names no trainer before its number; write TRAINER:N, or N for all")
    try:
        return trainer or ALL, whole(number)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {error}; write TRAINER:N, or N for all. Without --repeats networks are trained without a seed"
        ) from None


def _normalisation(name: str) -> str:
    found = find_normalisation(name)
    if found is None:
        raise InputError(f"--normalisation {name}: nnU-Net has {', '.join(NORMALISATIONS)}")
    return found


def _by_trainer(repeats: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Return numbers of repeats by trainer.

    Raises:
        InputError: if there are two for one.
    """
    found: dict[str, int] = {}
    for trainer, number in repeats:
        if found.setdefault(trainer, number) != number:
            raise InputError(
                f"--repeats has two numbers for {trainer or 'all networks'}, {found[trainer]} and {number}; give one"
            )
    return found


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark; returns 0 if all is done, 1 if a task failed, 130 if interrupted."""
    try:
        with command.interruptible():
            return _run(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted. Give the same command again to go on from here; nothing finished is lost.", flush=True)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.benchmark import driver
    from nnunet_plugins.benchmark.folds import choose_folds, find_groups
    from nnunet_plugins.benchmark.tasks import sources_of
    from nnunet_plugins.datasets.folders import dataset_name

    folders = driver.nnunet_folders(arguments.output)
    named = [dataset_name(dataset) for dataset in arguments.datasets]
    merged = dataset_name(arguments.merged) if arguments.merged else None
    if merged:
        named += [*(dataset_name(dataset) for dataset in sources_of(merged, folders)), merged]
    datasets = tuple(dict.fromkeys(named))
    if not datasets:
        raise InputError("name datasets with -d, or a merged one with --merged")
    groups = find_groups(arguments.groups, datasets, folders)
    folds, number_of_folds = choose_folds(datasets, folders, arguments.folds, arguments.number_of_folds, groups)
    protocol = Protocol(
        datasets=datasets,
        configurations=tuple(dict.fromkeys(arguments.configurations)),
        trainers=tuple(dict.fromkeys(arguments.trainers)),
        plans=arguments.plans,
        gpu_memory=arguments.gpu_memory,
        folds=folds,
        number_of_folds=number_of_folds,
        groups=groups,
        with_twins=arguments.with_twins,
        with_rivals=arguments.with_rivals,
        with_whole_volume=arguments.with_whole_volume,
        with_maps=arguments.with_maps,
        with_ensembles=not arguments.without_ensembles,
        with_atlas=arguments.with_atlas,
        merged=merged,
        presets=tuple(dict.fromkeys(arguments.presets)),
        normalisations=tuple(dict.fromkeys(map(_normalisation, arguments.normalisations))),
        pretrained=str(arguments.pretrained.absolute()) if arguments.pretrained else None,
        test=arguments.test,
        repeats=_by_trainer(arguments.repeats),
        tolerance=arguments.tolerance,
        device=arguments.device,
    )
    if not any(split_name(trainer)[0] == STOCK_TRAINER for trainer in protocol.trainers):
        print(f"No {STOCK_TRAINER} among the trainers: {protocol.baseline()} is the baseline.", flush=True)
    slots = (arguments.gpus if arguments.device == "cuda" else arguments.workers) or 1
    place = driver.Place(
        slots, arguments.retries, arguments.cluster, arguments.allow_unequal, arguments.train_missing_models
    )
    protocol = driver.check(protocol, folders, place)
    if arguments.with_rivals:
        from nnunet_plugins.benchmark.compute import describe_compute

        print(describe_compute(protocol), flush=True)
    if arguments.dry_run:
        print(driver.show_commands(protocol, folders, train_again=place.train_again))
        return 0
    complete = driver.run_benchmark(protocol, folders, place)
    return 0 if complete else 1
