"""The options of `nnunet-plugins export-submission`. Loads nothing heavy before it runs."""

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import WHOLE_VOLUME, positive, whole
from nnunet_plugins.errors import InputError
from nnunet_plugins.models.settings import OUTPUT_TYPES
from nnunet_plugins.rows import STOCK_TRAINER
from nnunet_plugins.submission.platforms import PLATFORMS

DESCRIPTION = (
    "Write a folder that predicts by itself with trained networks: a container for a challenge, or a directory for any "
    "machine. It holds the weights, plans and post-processing, our trainers, every package in the version installed "
    "here, scripts to build, try and save it, and a model card. Then prove it without Docker: nnunet-plugins "
    "export-submission --check FOLDER. For example: nnunet-plugins export-submission -d 4 -tr nnUNetTrainerFIRENet "
    "--ensemble-with nnUNetTrainer:3d_fullres:nnUNetPlans -f 0 1 2 3 4 --platform grand-challenge --input-socket "
    "brain-mri --output-socket hippocampus-segmentation -o submission"
)


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "export-submission",
        help="make a challenge submission, or any folder that predicts by itself, of trained networks",
        description=DESCRIPTION,
    )
    add_arguments(command)
    command.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    what = parser.add_argument_group("what to export")
    what.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset")
    what.add_argument("-tr", dest="trainer", default=STOCK_TRAINER, metavar="TRAINER", help="default: %(default)s")
    what.add_argument(
        "-c", dest="configuration", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s"
    )
    what.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    what.add_argument(
        "-f", dest="folds", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="default: 0 1 2 3 4"
    )
    what.add_argument(
        "-chk", dest="checkpoint", default="checkpoint_final.pth", metavar="FILE", help="default: %(default)s"
    )
    what.add_argument(
        "--ensemble-with",
        nargs="+",
        default=[],
        metavar="TR:CONF:PLANS",
        help="more networks, whose probabilities are averaged with the first one's, as nnUNetv2_ensemble does; "
        "CONF and PLANS may be left out if they are the first one's",
    )
    what.add_argument(
        "--postprocessing",
        type=Path,
        metavar="FILE",
        help="postprocessing.json of nnU-Net's; default: the one that nnUNetv2_find_best_configuration wrote for this "
        "network, or for this pair, if there is one",
    )
    what.add_argument("--no-postprocessing", action="store_true", help="leave it out, whatever there is")
    what.add_argument(
        "--run-code-in-checkpoint",
        action="store_true",
        help="read checkpoints that hold more than tensors, numbers and text; only for files from people you trust",
    )
    where = parser.add_argument_group("where it is to run")
    where.add_argument("-o", dest="output", type=Path, metavar="DIR", help="folder to write")
    where.add_argument(
        "--platform",
        choices=PLATFORMS,
        default="folder",
        help="; ".join(f"{row.name}: {row.summary}" for row in PLATFORMS.values()) + "; default: %(default)s",
    )
    where.add_argument(
        "--input-socket", nargs="+", default=[], metavar="SLUG", help="Grand Challenge's sockets, one for each channel"
    )
    where.add_argument("--output-socket", default="", metavar="SLUG", help="Grand Challenge's socket of the result")
    where.add_argument(
        "--input-suffix",
        nargs="+",
        default=[],
        metavar="SUFFIX",
        help="mlcube's files CASE-SUFFIX.nii.gz, one for each channel; default: the channels' names",
    )
    where.add_argument(
        "--output-type",
        choices=OUTPUT_TYPES,
        help="of voxels; default: uint8, or uint16 where there are labels above 255",
    )
    where.add_argument("--base-image", metavar="IMAGE", help="of the container; default: Python's of the version here")
    where.add_argument(
        "--separate-model", action="store_true", help="keep the model out of the image; it is uploaded as model.tar.gz"
    )
    where.add_argument("--name", metavar="NAME", help="of the submission; default: the dataset's")
    how = parser.add_argument_group("how it runs")
    how.add_argument("--fast", action="store_true", help="resample with torch, no mirroring, a step of 0.75 patches")
    how.add_argument(
        "--seconds-per-case",
        type=positive,
        metavar="S",
        help="aim at this for a case by doing less: no mirroring, then a wider step, fewer folds, fewer networks",
    )
    how.add_argument(
        "--whole-volume",
        nargs="?",
        const="always",
        choices=WHOLE_VOLUME,
        help="each case in one pass of each network, as in nnunet-plugins predict; auto: only where the forecast of "
        "the memory allows it, tiles elsewhere",
    )
    packages = parser.add_argument_group("packages")
    packages.add_argument(
        "--no-wheels", action="store_true", help="ship versions and our own wheel only; building then needs a network"
    )
    packages.add_argument(
        "--wheelhouse", type=Path, metavar="DIR", help="take wheels from this folder, and keep downloaded ones there"
    )
    packages.add_argument(
        "--package", nargs="+", default=[], metavar="NAME", help="more packages, for trainers of your own"
    )
    card = parser.add_argument_group("model card")
    card.add_argument(
        "--benchmark", type=Path, metavar="DIR", help="take its figures from this benchmark; default: the validation's"
    )
    check = parser.add_argument_group("checking")
    check.add_argument(
        "--check",
        type=Path,
        metavar="DIR",
        help="prove a submission instead of writing one: whole files, a Dockerfile that can be built, and predictions "
        "in a fresh environment, without network and rights, equal to nnU-Net's own",
    )
    check.add_argument(
        "-i", dest="images", type=Path, metavar="DIR", help="cases to try it on; default: some of the dataset's"
    )
    check.add_argument("--cases", type=whole, default=2, metavar="N", help="how many of them; default: %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """Export or check a submission; returns 1 if a check failed, else 0."""
    if arguments.check:
        from nnunet_plugins.submission.check import check_submission

        return check_submission(arguments.check, arguments.images, arguments.cases)
    if not arguments.dataset or not arguments.output:
        raise InputError("give the dataset with -d and the folder to write with -o, or a folder to --check")
    from nnunet_plugins.datasets.folders import dataset_name
    from nnunet_plugins.models.sources import Choice, find_source, parse_choice
    from nnunet_plugins.submission.export import Request, check_request, write_submission

    first = Choice(arguments.trainer, arguments.configuration, arguments.plans)
    choices = [first, *(parse_choice(text, first) for text in arguments.ensemble_with)]
    sources = tuple(
        find_source(
            arguments.dataset,
            choice,
            arguments.folds,
            arguments.checkpoint,
            trusted=arguments.run_code_in_checkpoint,
        )
        for choice in choices
    )
    request = Request(
        name=arguments.name or dataset_name(arguments.dataset),
        platform=PLATFORMS[arguments.platform],
        sources=sources,
        input_names=tuple(arguments.input_socket or arguments.input_suffix),
        output_name=arguments.output_socket,
        output_type=arguments.output_type,
        postprocessing=arguments.postprocessing,
        without_postprocessing=arguments.no_postprocessing,
        fast=arguments.fast,
        seconds_per_case=arguments.seconds_per_case,
        whole_volume=arguments.whole_volume,
        separate_model=arguments.separate_model,
        with_wheels=not arguments.no_wheels,
        wheelhouse=arguments.wheelhouse,
        packages=tuple(arguments.package),
        benchmark=arguments.benchmark,
        **({"base_image": arguments.base_image} if arguments.base_image else {}),
    )
    check_request(request)
    if not request.without_postprocessing and request.found_postprocessing is None:
        print("No post-processing is exported: nnUNetv2_find_best_configuration has determined none for these networks")
    for warning in request.warnings():
        print(f"nnunet-plugins export-submission: {warning}", file=sys.stderr)
    write_submission(request, arguments.output)
    print(f"Wrote {arguments.output}; its README.md says how to use it. Prove it with")
    print(f"  nnunet-plugins export-submission --check {arguments.output}")
    return 0
