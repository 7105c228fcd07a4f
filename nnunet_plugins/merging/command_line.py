"""The commands `merge` and `labels`. Loads nothing heavy before they run."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from nnunet_plugins.arguments import lay_out, tell_failures, whole
from nnunet_plugins.rows import STOCK_TRAINER


def add_commands(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser(
        "merge",
        help="make one raw dataset out of several, to train one network on all of them",
        description="Write a raw dataset with the cases of several, which stay as they are: images are links, "
        "segmentations get the values of the merged labels. Labels of one name are one structure. What each dataset "
        "annotates is kept in dataset.json, so that a trainer with _PartialLabels takes everything else for unknown, "
        "evaluate counts nothing else, and labels gives each dataset's own view. Of groups.csv in the datasets' "
        "folders one is made. What was interrupted goes on with the same command. For example: nnunet-plugins merge "
        "101 102 -o 900 --name Bones --rename 102:bone=humerus",
    )
    command.add_argument("datasets", nargs="+", metavar="DATASET", help="numbers or names of two or more datasets")
    command.add_argument("-o", dest="number", type=whole, required=True, metavar="N", help="number of the new dataset")
    command.add_argument("--name", required=True, metavar="NAME", help="its name, without the number")
    command.add_argument(
        "--rename",
        nargs="+",
        default=[],
        action="extend",
        metavar="DATASET:LABEL=NAME",
        help="what a dataset's label is called in the new one, where one name means two things, or two names one",
    )
    command.add_argument(
        "--by-dataset", action="store_true", help="keep the labels of all datasets apart, as in Knee__bone, Hip__bone"
    )
    command.add_argument("--copy", action="store_true", help="copy the images, in place of links")
    command.add_argument(
        "-np", dest="processes", type=whole, metavar="N", help="segmentations at a time; default: as in nnU-Net"
    )
    command.set_defaults(run=_merge)

    command = commands.add_parser(
        "labels",
        help="of what was predicted with a merged dataset, show one dataset's labels with its own values",
        description="Write segmentations that were predicted with a merged dataset in the terms of one of the "
        "datasets that it was made of: its own structures with its own values, and nothing else. For example: "
        "nnunet-plugins labels -i predictions -o predictions_knee --dataset Knee",
    )
    command.add_argument("-i", dest="predicted", required=True, metavar="DIR", help="folder of segmentations")
    command.add_argument("-o", dest="output", required=True, metavar="DIR", help="folder to write")
    command.add_argument(
        "--dataset", required=True, metavar="NAME", help="as in the names of cases before '__', or its full name"
    )
    command.add_argument(
        "-djfile",
        dest="dataset_json",
        type=Path,
        metavar="FILE",
        help="dataset.json of the merged dataset; default: the one beside the segmentations, or of their model",
    )
    command.add_argument(
        "--own-cases", action="store_true", help="only the cases that come from that dataset, under their names in it"
    )
    command.add_argument(
        "-np", dest="processes", type=whole, default=1, metavar="N", help="cases at a time; default: 1"
    )
    command.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    command.set_defaults(run=_labels)


def _merge(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.merging.joint import near_names
    from nnunet_plugins.merging.merge import merge_datasets

    merged = merge_datasets(
        arguments.datasets,
        arguments.number,
        arguments.name,
        rename=arguments.rename,
        by_dataset=arguments.by_dataset,
        copy=arguments.copy,
        processes=arguments.processes,
    )
    annotated = {name: set(row["labels"]) for name, row in merged.sources.items()}
    rows = [("label", "value", *annotated)]
    for label, value in merged.labels.items():
        marks = ("yes" if label in own else "unknown" for own in annotated.values())
        rows.append((label, str(value), *(marks if label not in ("background", "ignore") else [""] * len(annotated))))
    print(lay_out(rows))
    for one, other in near_names(merged.labels):
        print(
            f"nnunet-plugins merge: {one!r} and {other!r} are two structures; if one is meant, merge with --rename",
            file=sys.stderr,
        )
    print(f"Wrote {merged.folder}: {merged.cases} cases. Go on with, for example:")
    number = arguments.number
    groups = f" --groups {shlex.quote(str(merged.groups))}" if merged.groups else ""
    for line in (
        f"nnUNetv2_plan_and_preprocess -d {number} -c {merged.configuration}",
        f"nnunet-plugins split -d {number} --strata sources{groups}",
        f"nnUNetv2_train {number} {merged.configuration} 0 -tr {STOCK_TRAINER}_PartialLabels",
    ):
        print(f"  {line}")
    return 0


def _labels(arguments: argparse.Namespace) -> int:
    from nnunet_plugins.merging.view import write_view

    view = write_view(
        Path(arguments.predicted),
        Path(arguments.output),
        arguments.dataset,
        dataset_json=arguments.dataset_json,
        own_cases=arguments.own_cases,
        processes=arguments.processes,
        overwrite=arguments.overwrite,
    )
    print(", ".join(f"{name} {value}" for name, value in view.values.items()))
    print(f"Wrote {len(view.cases)} cases to {arguments.output}")
    return tell_failures("labels", view.failures)
