"""The command `prepare-images`. Loads nothing heavy before it runs."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import natural, tell_failures, whole
from nnunet_plugins.errors import InputError
from nnunet_plugins.images.recipe import CLIP_LIMIT, SCHEMES, Recipe, preparing_command
from nnunet_plugins.rows import STOCK_TRAINER

_PERCENTILES = (0.5, 99.5)  # nnU-Net's for CT
_SHOWN = 3


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "prepare-images",
        help="make a twin of a raw dataset whose images have other intensities, as by CLAHE, and prepare images to "
        "predict alike",
        description="With -d: write a raw dataset with the images of another one, which stays as it is, prepared in a "
        "way that is no normalisation of nnU-Net's, which still follows. What does not change is linked. All of "
        "nnU-Net's commands work on it. With -i: prepare images to predict as those of a twin. What was interrupted "
        "goes on with the same command. For example: nnunet-plugins prepare-images -d 4 -o 104 --scheme clahe; "
        "nnunet-plugins prepare-images -i imagesTs -o prepared --like 104",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset")
    what.add_argument("-i", dest="images", type=Path, metavar="DIR", help="folder of images to predict, as they are")
    command.add_argument(
        "-o", dest="output", required=True, metavar="N|DIR", help="number of the new dataset; folder to write"
    )
    command.add_argument(
        "--scheme", choices=SCHEMES, help="; ".join(f"{name}: {what}" for name, what in SCHEMES.items())
    )
    command.add_argument(
        "--channel",
        dest="channels",
        nargs="+",
        type=natural,
        default=[],
        metavar="N",
        help="channels that are prepared; default: all",
    )
    command.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="clip each image to its own percentiles first; default: 0.5 99.5 for percentile, for others none",
    )
    command.add_argument(
        "--tile",
        nargs=3,
        type=whole,
        metavar=("Z", "Y", "X"),
        help="of clahe, voxels; default: an eighth of the image along each axis",
    )
    command.add_argument(
        "--clip-limit", type=float, metavar="F", help=f"of clahe, from 0 to 1; default: {CLIP_LIMIT:g}"
    )
    command.add_argument("--name", metavar="NAME", help="of the new dataset; default: that of the other, with CLAHE")
    command.add_argument(
        "--like", metavar="N|FILE", help="with -i: number of the twin, or the dataset.json of it or of a model"
    )
    command.add_argument("--overwrite", action="store_true", help="with -i: write into a folder with content")
    command.add_argument(
        "-np", dest="processes", type=whole, metavar="N", help="cases at a time; default: as in nnU-Net"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    of_twins = ("scheme", "channels", "percentiles", "tile", "clip_limit", "name")
    if arguments.images:
        given = [name for name in of_twins if getattr(arguments, name)]
        if given or not arguments.like:
            raise InputError("-i goes with --like and -o, and takes what is done from there")
        return _prepare(arguments)
    if arguments.like or arguments.overwrite:
        raise InputError("--like and --overwrite go with -i")
    if not arguments.scheme:
        raise InputError(f"-d goes with --scheme, one of {', '.join(SCHEMES)}")
    return _write(arguments)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    clahe = arguments.scheme == "clahe"
    if not clahe and (arguments.tile or arguments.clip_limit is not None):
        raise InputError("--tile and --clip-limit go with --scheme clahe")
    limit = CLIP_LIMIT if arguments.clip_limit is None else arguments.clip_limit
    if not 0 <= limit <= 1:
        raise InputError(f"--clip-limit {limit:g} is not from 0 to 1")
    percentiles = tuple(arguments.percentiles or (_PERCENTILES if arguments.scheme == "percentile" else ())) or None
    if percentiles and not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise InputError(f"--percentiles {percentiles[0]:g} {percentiles[1]:g}: two numbers from 0 to 100, in order")
    tile = tuple(arguments.tile) if arguments.tile else None
    return Recipe("", arguments.scheme, (), percentiles, tile, limit if clahe else None)


def _write(arguments: argparse.Namespace) -> int:
    try:
        number = int(arguments.output)
    except ValueError:
        raise InputError(f"-o {arguments.output}: give the number of the new dataset") from None
    recipe = _recipe(arguments)
    from nnunet_plugins.preparation.twin import write_twin

    twin = write_twin(
        arguments.dataset,
        number,
        recipe,
        channels=arguments.channels,
        name=arguments.name,
        processes=arguments.processes,
    )
    tests = f" and {twin.tests} to predict" * bool(twin.tests)
    _tell_left(twin.left)
    print(f"Wrote {twin.folder}: {twin.cases} training cases{tests}, {twin.recipe}. Go on with, for example:")
    split = f"nnunet-plugins split -d {number} --like {twin.source}"
    model = f"-d {number} -c {twin.configuration} -f 0 -tr {STOCK_TRAINER}"
    for line in (
        f"nnUNetv2_plan_and_preprocess -d {number} -c {twin.configuration}",
        *([split] if twin.has_splits else []),
        f"nnUNetv2_train {number} {twin.configuration} 0 -tr {STOCK_TRAINER}",
        preparing_command("IMAGES", str(number)),
        f"nnUNetv2_predict -i PREPARED -o PREDICTED {model}",
    ):
        print(f"  {line}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.preparation.folder import prepare_folder

    done = prepare_folder(
        arguments.images,
        arguments.like,
        Path(arguments.output),
        processes=arguments.processes or 1,
        overwrite=arguments.overwrite,
    )
    _tell_left(done.left)
    if done.warning:
        print(f"nnunet-plugins prepare-images: {done.warning}", file=sys.stderr)
    print(f"Wrote {len(done.cases)} cases to {arguments.output}, {done.recipe}")
    return tell_failures("prepare-images", done.failures)


def _tell_left(left: Mapping[str, str]) -> None:
    """Say which images were left as they are."""
    for file, reason in list(left.items())[:_SHOWN]:
        print(f"nnunet-plugins prepare-images: {file} is left as it is: {reason}", file=sys.stderr)
    if len(left) > _SHOWN:
        print(f"nnunet-plugins prepare-images: and {len(left) - _SHOWN} more", file=sys.stderr)
