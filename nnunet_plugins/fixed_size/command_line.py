"""The command `fixed-size`. Loads nothing heavy before it runs."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import tell_failures, whole
from nnunet_plugins.errors import InputError


def add_commands(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    command = commands.add_parser(
        "fixed-size",
        help="make a twin of a raw dataset with all images in one size, and bring predictions back from it",
        description="With -d: write a raw dataset with the images of another one, which stays as it is, scaled to one "
        "size (linear; segmentations: nearest) and with voxels of 1 mm, as FIRENet-F's paper does. All of nnU-Net's "
        "commands work on it. What was interrupted goes on with the same command. With --restore: write what was "
        "predicted there on the grids of the images as they were, to be evaluated there. With --scale: write images "
        "that have come since in the size of a twin, to be predicted. For example: nnunet-plugins fixed-size -d 300 -o "
        "301; nnunet-plugins fixed-size --restore predicted --reference imagesTs -o restored; nnunet-plugins "
        "fixed-size --scale new --like 301 -o scaled",
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset")
    what.add_argument("--restore", type=Path, metavar="DIR", help="folder of segmentations in the one size")
    what.add_argument("--scale", type=Path, metavar="DIR", help="folder of images to predict, as they are")
    command.add_argument(
        "-o", dest="output", required=True, metavar="N|DIR", help="number of the new dataset; folder to write"
    )
    command.add_argument(
        "--size", type=int, nargs=3, metavar=("Z", "Y", "X"), help="voxels; default: the mean of the training images"
    )
    command.add_argument("--name", metavar="NAME", help="of the new dataset; default: that of the other with 'Fixed'")
    command.add_argument(
        "--reference", type=Path, metavar="DIR", help="folder of the images as they were, such as imagesTs"
    )
    command.add_argument(
        "--like", metavar="N|FILE", help="with --scale: number of the twin, or the dataset.json of it or of a model"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="with --restore and --scale: write into a folder with content"
    )
    command.add_argument(
        "-np", dest="processes", type=whole, metavar="N", help="cases at a time; default: as in nnU-Net"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.restore or arguments.scale) and (arguments.size or arguments.name):
        raise InputError("--size and --name go with -d")
    if bool(arguments.restore) != bool(arguments.reference):
        raise InputError("--restore goes with --reference and -o")
    if bool(arguments.scale) != bool(arguments.like):
        raise InputError("--scale goes with --like and -o")
    if arguments.overwrite and arguments.dataset:
        raise InputError("--overwrite goes with --restore and --scale")
    if arguments.restore:
        return _restore(arguments)
    return _scale(arguments) if arguments.scale else _write(arguments)


def _write(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.fixed_size.twin import write_twin

    try:
        number = int(arguments.output)
    except ValueError:
        raise InputError(f"-o {arguments.output}: give the number of the new dataset") from None
    twin = write_twin(
        arguments.dataset, number, name=arguments.name, size=arguments.size, processes=arguments.processes
    )
    tests = f" and {twin.tests} to predict" * bool(twin.tests)
    size = "x".join(map(str, twin.size))
    print(f"Wrote {twin.folder}: {twin.cases} training cases{tests}, of {size} voxels. Go on with, for example:")
    configuration = "2d" if twin.size[0] == 1 else "3d_fullres"  # of voxels of 1 mm, nnU-Net's slices lie across z
    for line in (
        f"nnUNetv2_plan_and_preprocess -d {number} -c {configuration}",
        f"nnunet-plugins plan -d {number} --cover",
    ):
        print(f"  {line}")
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.fixed_size.restore import restore

    found = restore(
        arguments.restore,
        arguments.reference,
        Path(arguments.output),
        processes=arguments.processes or 1,
        overwrite=arguments.overwrite,
    )
    print(f"Wrote {len(found.cases)} cases to {arguments.output}")
    return tell_failures("fixed-size", found.failures)


def _scale(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.fixed_size.scale import scale

    found = scale(
        arguments.scale,
        arguments.like,
        Path(arguments.output),
        processes=arguments.processes or 1,
        overwrite=arguments.overwrite,
    )
    print(f"Wrote {len(found.cases)} cases of {'x'.join(map(str, found.size))} voxels to {arguments.output}")
    return tell_failures("fixed-size", found.failures)
