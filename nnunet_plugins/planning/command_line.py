"""The commands that plan: `plan`, `profile` and `split`. Loads nothing heavy before they run."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import at_least_two, lay_out, natural, positive, whole
from nnunet_plugins.errors import InputError
from nnunet_plugins.rows import STOCK_TRAINER


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    _add_plan(commands)
    _add_profile(commands)
    _add_split(commands)


def _add_plan(commands: Any) -> None:
    command = commands.add_parser(
        "plan",
        help="make plans that fit your GPU's memory, or whose patch holds every image",
        description="Write a copy of existing plans for exactly one task. "
        "With --gpu-memory: forecast the memory of a training step with a trainer's network, for each configuration of "
        "the plans, and fit it to the GPU: first with a smaller batch, down to 2, then "
        "with a smaller patch, whose strides and stages nnU-Net's own function plans. The copy uses the same "
        "preprocessed data, so you can train with it at once: nnUNetv2_train ... -p NAME. No GPU is needed here. For "
        "example: nnunet-plugins plan -d 4 -tr nnUNetTrainerAFN6 --gpu-memory 24. To compare networks fairly, train "
        "them with the same plans, or each with plans for the same memory: nnunet-plugins benchmark does both. "
        "With --cover: add a configuration, such as 3d_cover, whose patch holds every training image, for networks "
        "that take a patch for the whole; every other trains on it as well. For example: nnunet-plugins plan -d 4 "
        "--cover. With --native-resolution: train on images in their own voxels, none of which is resampled, as "
        "FIRENet's paper does. For example: nnunet-plugins plan -d 900 --native-resolution. With --normalisation: "
        "normalise images by another scheme of nnU-Net's than the one that a channel's name stands for. For example: "
        "nnunet-plugins plan -d 4 --normalisation CTNormalization",
    )
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name of the dataset")
    task = command.add_argument_group("exactly one task").add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--gpu-memory",
        type=positive,
        metavar="GIB",
        help="fit a trainer (-tr) to a GPU. All of the GPU's memory: 24 for a card sold with 24 GB; the forecast may "
        "take four fifths of it",
    )
    task.add_argument(
        "--cover",
        action="store_true",
        help="a patch that holds every image after resampling, with 10 per cent to spare; where that is more than "
        "about 160^3 voxels, at a coarser spacing",
    )
    task.add_argument(
        "--native-resolution",
        action="store_true",
        help="no resampling, in training and in prediction; the data are preprocessed anew, beside those of before",
    )
    task.add_argument(
        "--normalisation",
        metavar="SCHEME",
        help="ZScoreNormalization, CTNormalization (clips to the 0.5th and 99.5th percentile of the dataset's "
        "foreground, whatever the modality), RescaleTo01Normalization, RGBTo01Normalization or NoNormalization, with "
        "or without the ending; the data are preprocessed anew, beside those of before",
    )
    command.add_argument(
        "--channel",
        dest="channels",
        nargs="+",
        type=natural,
        default=[],
        metavar="N",
        help="with --normalisation: the channels that it is for; default: all",
    )
    command.add_argument("-tr", dest="trainer", metavar="TRAINER", help="with --gpu-memory: as for nnUNetv2_train")
    command.add_argument(
        "-c",
        dest="configurations",
        nargs="+",
        default=[],
        metavar="CONFIGURATION",
        help="configurations to adapt, for example 3d_fullres; default: all of the plans', and with --cover "
        "3d_fullres, or 2d where there is no 3D; with --native-resolution 3d_fullres and 2d; not with --normalisation",
    )
    command.add_argument(
        "--like", default="nnUNetPlans", metavar="PLANS", help="plans to start from; default: %(default)s"
    )
    command.add_argument(
        "--name",
        metavar="PLANS",
        help="write plans of this name, even if nothing has to change; default: like nnUNetPlans_AFN6_24GB, "
        "nnUNetPlans_cover, nnUNetPlans_native or nnUNetPlans_CT",
    )
    command.add_argument(
        "--cpu",
        action="store_true",
        help="with --gpu-memory: plan for training on a CPU, with its memory: without mixed precision",
    )
    command.add_argument("--overwrite", action="store_true", help="replace different plans of the new name")
    command.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.channels and not arguments.normalisation:
        raise InputError("--channel goes with --normalisation")
    if arguments.gpu_memory:
        return _fit(arguments)
    if arguments.trainer or arguments.cpu:
        raise InputError("these plans are the same for every trainer and device: leave out -tr and --cpu")
    if arguments.normalisation:
        return _normalise(arguments)
    return _cover(arguments) if arguments.cover else _keep_resolution(arguments)


def _fit(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.forecast import COMFORTABLE
    from nnunet_plugins.planning.fit import fit_plans

    if not arguments.trainer:
        raise InputError("--gpu-memory needs the trainer whose network is to fit: -tr TRAINER")

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
    rows = [("configuration", "in the plans", "fits")]
    for configuration, (before, after) in fitted.sizes.items():
        rows.append((configuration, str(before), "as it is" if after == before else str(after)))
    print(f"Memory of a training step with {arguments.trainer}, forecast:\n{lay_out(rows)}")
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


def _cover(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.datasets.plan_names import preprocessing_command
    from nnunet_plugins.planning.cover import SPARE, cover_plans

    plans = cover_plans(
        arguments.dataset,
        configurations=arguments.configurations,
        like=arguments.like,
        name=arguments.name,
        overwrite=arguments.overwrite,
    )
    rows = [("configuration", "largest image", "patch", "batch", "spacing (mm)")]
    for name, made in plans.configurations.items():
        largest, patch = ("x".join(map(str, size)) for size in (made.largest, made.patch))
        spacing = " x ".join(f"{length:.3g}" for length in made.spacing)
        rows.append((name, largest, patch, str(made.batch), spacing + f", coarser than {made.base}" * made.is_coarser))
    print(f"A patch that holds every image after resampling, with {SPARE} % to spare:\n{lay_out(rows)}")
    print(f"Wrote {plans.file}")
    if left := [name for name, made in plans.configurations.items() if not made.is_preprocessed]:
        print(f"Preprocess:\n  {preprocessing_command(plans.dataset, plans.name, left)}")
    print("Train with any trainer, for example:")
    for name in plans.configurations:
        print(f"  nnUNetv2_train {arguments.dataset} {name} 0 -tr {STOCK_TRAINER} -p {plans.name}")
    return 0


def _keep_resolution(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.datasets.plan_names import preprocessing_command
    from nnunet_plugins.planning.native import native_plans

    plans = native_plans(
        arguments.dataset,
        configurations=arguments.configurations,
        like=arguments.like,
        name=arguments.name,
        overwrite=arguments.overwrite,
    )
    print(f"Wrote {plans.file}: every image stays in its own voxels.")
    print(f"Preprocess:\n  {preprocessing_command(plans.dataset, plans.name, plans.configurations)}")
    print("Train with any trainer, for example:")
    for name in plans.configurations:
        print(f"  nnUNetv2_train {arguments.dataset} {name} 0 -tr {STOCK_TRAINER} -p {plans.name}")
    return 0


def _normalise(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.datasets.plan_names import preprocessing_command
    from nnunet_plugins.planning.normalisation import normalised_plans

    if arguments.configurations:
        raise InputError("--normalisation is for all configurations of the plans: leave out -c")
    plans = normalised_plans(
        arguments.dataset,
        arguments.normalisation,
        channels=arguments.channels,
        like=arguments.like,
        name=arguments.name,
        overwrite=arguments.overwrite,
    )
    rows = [("channel", "name", "in the plans", "now")]
    rows += [(str(number), *channel) for number, channel in enumerate(plans.schemes)]
    print(lay_out(rows))
    print(f"Wrote {plans.file}")
    # The second stage of a cascade takes the data of a configuration that it inherits from.
    first = next((one for one in ("3d_fullres", "2d") if one in plans.configurations), plans.configurations[0])
    print(f"Preprocess, for example:\n  {preprocessing_command(plans.dataset, plans.name, [first])}")
    print("Train with any trainer, for example:")
    print(f"  nnUNetv2_train {arguments.dataset} {first} 0 -tr {STOCK_TRAINER} -p {plans.name}")
    return 0


def _add_profile(commands: Any) -> None:
    command = commands.add_parser(
        "profile",
        help="show what a trainer's network costs, beside the standard U-Net",
        description="Count parameters, operations and memory of a trainer's network, beside those of nnU-Net's own "
        "U-Net on the same plan: either that of a dataset, or the one that nnU-Net would make for a patch with equal "
        "spacing. Takes seconds, no GPU and hardly any memory; where there is a GPU, a few training steps are "
        "taken and measured as well. For example: nnunet-plugins profile -tr "
        "nnUNetTrainerFIRENet -d 4, or: nnunet-plugins profile -tr nnUNetTrainerAFN4 --patch 64 64 64",
    )
    command.add_argument("-tr", dest="trainer", required=True, metavar="TRAINER", help="as for nnUNetv2_train")
    plan = command.add_argument_group("on a dataset's plans")
    plan.add_argument("-d", dest="dataset", metavar="DATASET", help="number or name of the dataset")
    plan.add_argument("-c", dest="configuration", default="3d_fullres", help="default: %(default)s")
    plan.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    patch = command.add_argument_group("for a patch")
    patch.add_argument("--patch", nargs="+", type=whole, metavar="N", help="voxels along two or three axes: [Z] Y X")
    patch.add_argument("--batch", type=whole, default=2, metavar="N", help="default: %(default)s")
    patch.add_argument("--in-channels", type=whole, default=1, metavar="N", help="default: %(default)s")
    patch.add_argument(
        "--classes", type=whole, default=2, metavar="N", help="with the background; default: %(default)s"
    )
    command.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="what to count for, here or elsewhere: some layers compute in another way on a GPU; default: %(default)s",
    )
    command.add_argument("--json", action="store_true", help="print JSON, in bytes and operations")
    command.set_defaults(run=_profile)


def _profile(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.planning.profile import profile_network
    from nnunet_plugins.planning.setting import find_trainer, patch_setting, plan_setting

    trainer = find_trainer(arguments.trainer)
    if (arguments.dataset is None) == (arguments.patch is None):
        raise InputError("give either a dataset with -d or a patch with --patch")
    if arguments.patch:
        sizes = (arguments.batch, arguments.in_channels, arguments.classes)
        setting = patch_setting(arguments.patch, *sizes)
    else:
        setting = plan_setting(arguments.dataset, arguments.configuration, arguments.plans)
    found, stock = (
        profile_network(network, setting, device=arguments.device).as_dict()
        for network in (trainer, find_trainer(STOCK_TRAINER))
    )
    if arguments.json:
        about = {"trainer": arguments.trainer, "shape": setting.shape, "classes": setting.classes}
        print(json.dumps({**about, **found, STOCK_TRAINER: stock}, indent=2))
        return 0
    print(f"{arguments.trainer} with {setting}, on a {'GPU' if arguments.device == 'cuda' else 'CPU'}")
    rows = [("", "this network", "U-Net", "ratio")]
    for name, unit, size, *keys in _ROWS:
        ours, theirs = (_pick(numbers, keys) for numbers in (found, stock))
        if not ours or not theirs:
            continue
        shown = [f"{number / size:.{1 if number >= 100 * size else 2}f} {unit}" for number in (ours, theirs)]
        rows.append((name, shown[0], shown[1], f"{ours / theirs:.2f}"))
    print(lay_out(rows))
    print(
        "Memory is that of tensors; a GPU also holds the CUDA context and cuDNN's workspaces. Inference: one patch, "
        "without the image and the sums of the sliding window."
    )
    return 0


_GIB = 2**30  # as `forecast.GIB`, which loads torch
# What a row of the table says, its unit and that in numbers, and where in the profile it is.
_ROWS = (
    ("parameters", "M", 1e6, "parameters"),
    ("forward pass", "GFLOP", 1e9, "forward_flops"),
    ("training step", "GFLOP", 1e9, "step_flops"),
    ("saved for the backward pass", "GiB", _GIB, "saved_bytes"),
    ("  in mixed precision", "GiB", _GIB, "autocast", "saved_bytes"),
    ("peak memory in training", "GiB", _GIB, "peak_bytes_training"),
    ("  in mixed precision", "GiB", _GIB, "autocast", "peak_bytes_training"),
    ("    measured on this GPU", "GiB", _GIB, "measured", "peak_bytes_training"),
    ("    all that the GPU lost", "GiB", _GIB, "measured", "device_bytes"),
    ("    time, measured", "ms", 1e-3, "measured", "seconds_per_step"),
    ("peak memory at inference", "GiB", _GIB, "peak_bytes_inference"),
    ("  in mixed precision", "GiB", _GIB, "autocast", "peak_bytes_inference"),
)


def _pick(numbers: Any, keys: list[str]) -> float | None:
    for key in keys:
        numbers = numbers.get(key) or {}
    return float(numbers) if numbers else None


def _add_split(commands: Any) -> None:
    command = commands.add_parser(
        "split",
        help="make cross-validation splits that keep groups of cases, such as patients, together",
        description="Write splits_final.json, which nnU-Net uses, so that no group of cases is in training and in "
        "validation. The groups come from a CSV file with the columns 'case' and 'group'. Splits that a training has "
        "used are not changed. For example: nnunet-plugins split -d 4 --groups groups.csv. Of a dataset that "
        "nnunet-plugins merge has made, --strata sources splits each of its datasets on its own, and --like gives it "
        "and these the same folds",
    )
    command.add_argument("-d", dest="dataset", required=True, metavar="DATASET", help="number or name of the dataset")
    command.add_argument(
        "--groups",
        metavar="FILE",
        help="CSV file with the columns 'case' and 'group'; default: nnU-Net's random splits",
    )
    command.add_argument(
        "--strata",
        choices=("sources",),
        help="of a merged dataset, split the cases of each source on their own: every fold has its share of all",
    )
    command.add_argument(
        "--like",
        metavar="DATASET",
        help="take the folds of the dataset that this one is a twin of, or of a twin of it, or of a merged dataset "
        "that was made of this one; or, with the word 'sources', of a merged dataset those of the datasets that it was "
        "made of: no case changes its fold between them",
    )
    command.add_argument("--folds", type=at_least_two, default=5, metavar="N", help="default: %(default)s")
    command.add_argument(
        "--leakage-check",
        action="store_true",
        help="change nothing, but name the groups that the present splits tear apart; exit code 1 if there are any",
    )
    command.add_argument("--overwrite", action="store_true", help="replace other splits that no training has used")
    command.set_defaults(run=_split)


def _split(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.planning import splits

    groups = Path(arguments.groups) if arguments.groups else None
    torn: list[list[str]] = []
    if arguments.like:
        if groups or arguments.strata or arguments.leakage_check:
            raise InputError("--like takes the folds of others: leave out --groups, --strata and --leakage-check")
        from nnunet_plugins.datasets.folders import preprocessed_folder
        from nnunet_plugins.planning.merged_splits import splits_like

        folder = preprocessed_folder(arguments.dataset)
        folds = splits_like(folder, arguments.like)
        file = splits.keep_splits(folder, folds, overwrite=arguments.overwrite)
    elif not arguments.leakage_check:
        strata, overwrite = bool(arguments.strata), arguments.overwrite
        file, folds = splits.write_splits(
            arguments.dataset, groups, arguments.folds, by_sources=strata, overwrite=overwrite
        )
    elif groups:
        file, folds, torn = splits.check_splits(arguments.dataset, groups)
    else:
        raise InputError("--leakage-check needs --groups FILE")
    for line in splits.unused_files(arguments.dataset):
        print(line, file=sys.stderr)
    rows = [("fold", "train", "val", *(["groups in both, the first ten"] if arguments.leakage_check else []))]
    for number, fold in enumerate(folds):
        row = [str(number), str(len(fold["train"])), str(len(fold["val"]))]
        if torn:
            row.append(f"{len(torn[number])}: {', '.join(torn[number][:10])}".strip(": "))
        rows.append(tuple(row))
    print(lay_out(rows))
    leaks = any(torn)
    if leaks:
        print(f"{file} tears groups apart. New splits that do not: the same command without --leakage-check")
    else:
        print(f"{file} keeps every group together." if arguments.leakage_check else f"Wrote {file}")
    return 1 if leaks else 0
