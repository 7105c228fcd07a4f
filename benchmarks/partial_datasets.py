"""Datasets to try partial labels on, made of one whose labels are all known: `python benchmarks/partial_datasets.py`.

    halves -d 4 -o 104 105        two datasets: half of the groups each, the first with the first label alone, the
                                  second with the second one
    channel -d 15 FLAIR -o 115    a copy with one of its channels
    full -d 900 --of 4 -o 901     what `nnunet-plugins merge 104 105 -o 900` has made, with all labels of dataset 4:
                                  to train with all labels, and as the truth for a network that has seen parts

Raw datasets in nnUNet_raw; images are links. The cases of the last one are called as in the merged dataset, so that the
same splits hold for both.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

from nnunet_plugins.datasets.folders import dataset_name
from nnunet_plugins.datasets.sources import MARK, read_sources
from nnunet_plugins.doctor.dataset import Case, RawDataset, check_description, check_files
from nnunet_plugins.images.relabelling import relabel
from nnunet_plugins.planning.groups import groups_of, read_groups

RAW = os.environ.get("nnUNet_raw", ".")  # noqa: SIM112 - nnU-Net's own spelling


def read(dataset: str) -> RawDataset:
    """Return a raw dataset."""
    found = RawDataset(Path(RAW, dataset_name(dataset)).resolve())
    for finding in (*check_description(found), *check_files(found)):
        if finding.level == "problem":
            raise SystemExit(f"{finding.text}; {finding.remedy}")
    return found


def write(
    number: int, name: str, like: RawDataset, cases: Mapping[str, Case], labels: Mapping[str, int], channels: list[int]
) -> Path:
    """Write a raw dataset with some cases, labels and channels of another one; other labels become background."""
    folder = Path(RAW, f"Dataset{number:03d}_{name}")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    ending, own = like.description["file_ending"], like.description["labels"]
    values = dict.fromkeys(like.expected_labels(), 0) | {own[label]: value for label, value in labels.items()}
    for case, files in cases.items():
        for new, channel in enumerate(channels):
            (folder / "imagesTr" / f"{case}_{new:04d}{ending}").symlink_to(Path(files.images[channel]).resolve())
        other = folder / "labelsTr" / f"{case}{ending}"
        wrong = relabel(Path(files.label), other, reader=like.reader(), values=values, declared=like.expected_labels())
        if wrong:
            raise SystemExit("; ".join(wrong))
    description = {
        "channel_names": {str(new): like.channels[channel] for new, channel in enumerate(channels)},
        "labels": {"background": 0, **labels},
        "numTraining": len(cases),
        "file_ending": ending,
        **{key: like.description[key] for key in ("reference", "licence", "license") if key in like.description},
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))
    print(f"Wrote {folder}: {len(cases)} cases, labels {', '.join(labels)}")
    return folder


def halves(arguments: argparse.Namespace) -> None:
    """Write two datasets with one label each; groups of groups.csv stay together."""
    like = read(arguments.dataset)
    names = [name for name in like.description["labels"] if name not in ("background", "ignore")]
    file = like.folder / "groups.csv"
    groups = groups_of(like.cases, read_groups(file)) if file.is_file() else {case: case for case in like.cases}
    order = sorted(set(groups.values()), key=lambda group: (len(group), group))
    for half, number in enumerate(arguments.output):
        cases = {case: files for case, files in like.cases.items() if order.index(groups[case]) % 2 == half}
        label = names[half]
        folder = write(number, label, like, cases, {label: 1}, list(range(len(like.channels))))
        rows = [f"{case},{groups[case]}" for case in cases]
        (folder / "groups.csv").write_text("\n".join(["case,group", *rows, ""]))


def channel(arguments: argparse.Namespace) -> None:
    """Write a copy with one channel."""
    like = read(arguments.dataset)
    if arguments.channel not in like.channels:
        raise SystemExit(f"{like.folder.name} has no channel {arguments.channel}; it has {', '.join(like.channels)}")
    labels = {name: value for name, value in like.description["labels"].items() if name != "background"}
    name = f"{like.folder.name[11:]}{arguments.channel}"
    folder = write(arguments.output[0], name, like, like.cases, labels, [like.channels.index(arguments.channel)])
    if (like.folder / "groups.csv").is_file():
        (folder / "groups.csv").write_text((like.folder / "groups.csv").read_text())


def full(arguments: argparse.Namespace) -> None:
    """Write a merged dataset's cases with all labels, which a dataset has for all of them."""
    merged, like = read(arguments.dataset), read(arguments.of)
    sources = read_sources(merged.description)
    own = {f"{name}{MARK}{case}": case for name, source in sources.items() for case in source.cases}
    cases = {case: like.cases[own[case]] for case in merged.cases}
    labels = {name: value for name, value in merged.description["labels"].items() if name != "background"}
    name = f"{merged.folder.name[11:]}Full"
    folder = write(arguments.output[0], name, like, cases, labels, list(range(len(like.channels))))
    if (merged.folder / "groups.csv").is_file():
        (folder / "groups.csv").write_text((merged.folder / "groups.csv").read_text())


def main() -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    for task, number in ((halves, 2), (channel, 1), (full, 1)):
        command = tasks.add_parser(task.__name__, description=task.__doc__)
        command.add_argument("-d", dest="dataset", required=True, help="number or name of the dataset")
        command.add_argument("-o", dest="output", type=int, nargs=number, required=True, help="numbers to write")
        if task is channel:
            command.add_argument("channel", help="its name")
        if task is full:
            command.add_argument("--of", required=True, help="the dataset with all labels")
        command.set_defaults(task=task)
    arguments = parser.parse_args()
    arguments.task(arguments)


if __name__ == "__main__":
    main()
