"""A small world for `bad_inputs.py`: everything that the commands read, and ways to spoil it."""

import copy
import gzip
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import torch

from nnunet_plugins.planning.setting import build_network, find_trainer, patch_setting
from nnunet_plugins.report.record import CURVES, RESULTS, RUNS

NAME = "Dataset001_World"
NASTY = ["", " ", "-1", "0", "1e999", "nan", "é", "a" * 5000, "../..", "/", "Dataset", "Dataset1", "%s", "{}", "__"]
NASTY += ["\n", "1.5", "-", "*", "$HOME", "Dataset001_World/..", "nnUNetTrainer__x", "nnUNetTrainer_0epochs"]
VALUES: list[Any] = [None, -1, 0, 3, 1.5, 10**7, "", "x", "Ä" * 200, [], {}, True, [[]], [-1], ["x"], {"a": {}}, [2, 2]]


@dataclass(frozen=True)
class World:
    """The folder of everything, and what commands are told about it."""

    root: Path

    @property
    def raw(self) -> Path:
        """The dataset in nnUNet_raw."""
        return self.root / "nnUNet_raw" / NAME

    @property
    def preprocessed(self) -> Path:
        """The dataset in nnUNet_preprocessed."""
        return self.root / "nnUNet_preprocessed" / NAME

    @property
    def model(self) -> Path:
        """A trained network."""
        return self.root / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres"

    def files(self) -> dict[Path, str]:
        """Return a hash of every file."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path: hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


def make_world(root: Path) -> World:
    world = World(root)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(parents=True)
        os.environ[name] = str(root / name)
    noise = np.random.default_rng(0)
    cases = [f"case_{number}" for number in range(6)]
    description = {
        "channel_names": {"0": "MRI", "1": "CT"},
        "labels": {"background": 0, "outer": 1, "inner": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    setting = patch_setting((16, 16, 16), 2, 2, 3)
    plans = copy.deepcopy(setting.plans.plans)
    configuration = {**plans["configurations"].pop("profile"), "spacing": [1.0, 1.0, 1.0], "data_identifier": "data"}
    configuration["normalization_schemes"] = ["ZScoreNormalization"] * 2
    plans["configurations"] = {"3d_fullres": configuration, "3d_lowres": {"inherits_from": "3d_fullres"}}
    plans.update(plans_name="nnUNetPlans", dataset_name=NAME)
    data, predicted = world.preprocessed / "data", root / "predicted"
    truths = (world.raw / "labelsTr", world.preprocessed / "gt_segmentations", predicted)
    for folder in (world.raw / "imagesTr", *truths, data, root / "here"):
        folder.mkdir(parents=True)
    for case in cases:
        truth = np.zeros((8, 9, 10), np.uint8)
        truth[2:6, 2:6, 2:6], truth[3:5, 3:5, 3:5] = 1, 2
        for channel in range(2):
            image = (truth + noise.normal(0, 0.3, truth.shape)).astype(np.float32)
            sitk.WriteImage(sitk.GetImageFromArray(image), str(world.raw / "imagesTr" / f"{case}_000{channel}.nii.gz"))
        for folder in truths:
            sitk.WriteImage(sitk.GetImageFromArray(truth), str(folder / f"{case}.nii.gz"))
        (data / f"{case}.b2nd").write_bytes(b"data")
        (data / f"{case}.pkl").write_bytes(b"properties")
    splits = [{"train": [c for c in cases if c not in part], "val": part} for part in (cases[:3], cases[3:])]
    for file, content in {
        world.raw / "dataset.json": description,
        world.preprocessed / "dataset.json": description,
        world.preprocessed / "nnUNetPlans.json": plans,
        world.preprocessed / "splits_final.json": splits,
        predicted / "dataset.json": description,
        world.model / "plans.json": plans,
        world.model / "dataset.json": description,
        root / "demo" / "demo.json": {"epochs": 4, "iterations": 15, "seed": 0},
    }.items():
        write_json(file, content)
    (root / "demo" / "other.txt").write_text("without demo.json this is no folder of the demo")
    (root / "groups.csv").write_text("case,group\n" + "\n".join(f"{case},{case[-1]}" for case in cases) + "\n")
    (root / "cluster.yaml").write_text("provider: slurm\ntrain:\n  queue: gpu\n  gpus: 1\nlight:\n  cores: 4\n")
    network = build_network(find_trainer("nnUNetTrainer"), setting)
    arguments = {"plans": plans, "configuration": "3d_fullres", "dataset_json": description, "fold": 0}
    weights = {"network_weights": network.state_dict(), "init_args": arguments, "trainer_name": "nnUNetTrainer"}
    (world.model / "fold_0").mkdir()
    for file in (root / "checkpoint.pth", world.model / "fold_0" / "checkpoint_final.pth"):
        torch.save(weights, file)
    make_record(root / "benchmark" / "record", cases)
    return world


def make_record(folder: Path, cases: Sequence[str]) -> None:
    algorithms = {"U-Net": ("nnUNetTrainer", "baseline"), "FIRENet": ("nnUNetTrainerFIRENet", "method")}
    rows: dict[str, list[dict[str, Any]]] = {"results": [], "runs": [], "curves": []}
    columns = {"results": RESULTS, "runs": RUNS, "curves": CURVES}
    for name, (trainer, role) in algorithms.items():
        common = {"split": "cross-validation", "dataset": NAME, "configuration": "3d_fullres", "plans": "nnUNetPlans"}
        common |= {"trainer": trainer, "role": role, "algorithm": name, "label": "1", "name": "outer", "fold": 0}
        common |= {"patch_size": "16x16x16", "memory_kind": "all", "device": "CPU", "epoch": 0}
        common |= {"seed": "", "model": ""}
        rows["results"] += [{**common, "case": case} for case in cases]
        rows["runs"].append(common)
        rows["curves"] += [{**common, "epoch": epoch} for epoch in range(2)]
    for part, found in rows.items():
        lines = [",".join(columns[part])]
        for number, row in enumerate(found):
            lines.append(",".join(str(row.get(column, 0.5 + number / 100)) for column in columns[part]))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    runs = [
        {"algorithm": name, "fold": 0, "hashes": {"plans": "a", "recipe": "b"}, "environment": {"python": "3"}}
        for name in algorithms
    ]
    difference = {"algorithm": "FIRENet", "what": "network", "value": "b", "baseline": "a", "allowed": True}
    equality = {"dataset": NAME, "configuration": "3d_fullres", "runs": runs, "same": ["plans"], "accepted": False}
    write_json(folder / "equality.json", [{**equality, "differences": [difference]}])
    failure = {"task": "train", "command": ["x"], "exit_code": 1, "log": "log", "tail": "the end"}
    write_json(folder / "failures.json", [failure])
    about = {"title": "World", "command": "x", "budget": "1 epoch", "hardware": ["CPU"], "versions": {"monai": "1"}}
    write_json(folder / "about.json", {**about, "images": {}, "ensembles": [], "complete": True})


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


# What is spoilt.


def spoil_bytes(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    way = draw.randrange(6)
    if way == 0:
        file.write_bytes(content[: draw.randrange(len(content))])
    elif way == 1:
        file.write_bytes(b"")
    elif way == 2:
        file.write_bytes(draw.randbytes(200))
    elif way == 3:
        for _ in range(8):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file.write_bytes(content)
    elif way == 4:
        file.unlink()
    else:
        file.unlink()
        file.mkdir()


def spoil_json(file: Path, draw: random.Random) -> None:
    if draw.random() < 0.2:
        spoil_bytes(file, draw)
    elif draw.random() < 0.1:
        file.write_text(draw.choice(["[" * 100_000, "NaN", '"', "\ufeff{}", "null", "[]", "{}"]))
    else:
        write_json(file, spoil(json.loads(file.read_text()), draw))


def spoil(content: Any, draw: random.Random) -> Any:
    """Return a copy in which one to three values are others, are gone, or have another key."""
    content = [copy.deepcopy(content)]
    for _ in range(draw.randint(1, 3)):
        places = list(_places(content))
        holder, key = draw.choice(places)
        way = draw.random()
        if way < 0.6:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
        elif holder is not content:
            value = holder.pop(key)
            if way < 0.8 and isinstance(holder, dict):
                holder[draw.choice(NASTY)] = value
    return content[0]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def spoil_table(file: Path, draw: random.Random) -> None:
    rows = [line.split(",") for line in file.read_text().splitlines()]
    way, row, column = draw.randrange(6), draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    if way == 0:
        spoil_bytes(file, draw)
        return
    if way < 4:
        rows[row][column] = draw.choice([*NASTY, "", "inf", "-inf", "1e400", '"', "\0", "2020-01-01"])
    elif way == 4:
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    else:
        rows = rows[: draw.randint(1, 2)]
    file.write_text("\n".join(",".join(cells) for cells in rows))


def spoil_image(file: Path, draw: random.Random) -> None:
    way = draw.randrange(9)
    if way < 3:
        spoil_bytes(file, draw)
        return
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    if way == 3:
        array = array.astype(np.float32)
        array.flat[draw.randrange(array.size)] = draw.choice([np.nan, np.inf, 0.5, -1e30, 1e38])
    elif way == 4:
        array = array[draw.choice([np.s_[0], np.s_[:3], np.s_[None], np.s_[:, :0]])]
    elif way == 5:
        array = array.astype(draw.choice([np.float64, np.int16, np.uint32, np.int8]))
        array.flat[0] = 7
    elif way == 6:
        array = np.zeros_like(array)
    if not array.size:
        file.write_bytes(b"\0" * 400)
        return
    changed = sitk.GetImageFromArray(array)
    if way == 7:
        changed.SetSpacing([draw.choice([1e-9, 0.5, 1e9]) for _ in range(3)])
    elif way == 8:
        changed.SetOrigin([draw.choice([-1e6, 5.0, 1e30]) for _ in range(3)])
    sitk.WriteImage(changed, str(file))


def make_unsound(file: Path, draw: random.Random, *, labels: bool = False) -> str:
    """Make a file unsound in a way that no reader tells; returns its name, which the answer has to hold."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    content = bytearray(gzip.decompress(file.read_bytes()))
    ways = ["cut inside", "cut", "no spacing", "4D", "vector", "complex", "more", "not compressed", "turned", "NIfTI-2"]
    ways += ["twice", "skew"]
    way = draw.choice([*ways, *(["value", "NaN"] if labels else ["NaN"])])
    if way == "cut inside":
        file.write_bytes(gzip.compress(bytes(content[: draw.randrange(len(content))])))
    elif way == "cut":
        packed = file.read_bytes()
        file.write_bytes(packed[: draw.randrange(len(packed))])
    elif way == "no spacing":
        content[80:92] = struct.pack("<3f", *[draw.choice([0.0, float("nan"), float("inf")])] * 3)
        content[252:256] = bytes(4)
        file.write_bytes(gzip.compress(bytes(content)))
    elif way == "more":
        file.write_bytes(gzip.compress(bytes(content) + b"x" * draw.randint(1, 9)))
    elif way == "not compressed":
        file.write_bytes(bytes(content))
    elif way == "twice":
        file.write_bytes(gzip.compress(file.read_bytes()))
    elif way == "skew":
        image = nibabel.Nifti1Image(array.transpose(), np.eye(4) + np.eye(4, k=1) * [0, draw.choice([0.1, 0.5]), 0, 0])
        image.set_qform(None, 0)
        nibabel.save(image, file)
    elif way == "NIfTI-2":
        nibabel.save(nibabel.Nifti2Image(array.transpose(), np.eye(4)), file)
    else:
        if way == "4D":
            array = np.stack([array] * draw.randint(2, 3))
        elif way == "vector":
            array = np.stack([array] * draw.randint(2, 4), axis=-1)
        elif way == "complex":
            array = array.astype(draw.choice([np.complex64, np.complex128]))
        elif way in ("value", "NaN"):
            array = array.astype(draw.choice([np.float32, np.float64]))
            value = draw.choice([0.5, 3, 255, -1, 1e9]) if way == "value" else draw.choice([np.nan, np.inf, -np.inf])
            array.flat[draw.randrange(array.size)] = value
        image = sitk.GetImageFromArray(array, isVector=way == "vector")
        if way == "turned":
            image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(file))
    return file.name.removesuffix(".nii.gz")[:6]  # the case, which is in the file's name as well


def add_unused(folder: Path, draw: random.Random) -> str:
    """Put a file into a folder that no command uses as it is; returns its name, which the answer has to hold."""
    file = any_of(folder, draw)
    stem = file.name.removesuffix(".nii.gz")
    names = [f"._{file.name}", ".DS_Store", "Thumbs.db", "notes.txt", f"{stem}.nii", f"{stem}.mha", f"{stem}.NII.GZ"]
    names += [f"{stem.upper()}.nii.gz"] if stem.upper() != stem else []
    name = draw.choice([*names, "extra.png", "link.nii.gz"])
    if name == "link.nii.gz":
        (folder / name).symlink_to(folder / "nowhere.nii.gz")
    else:
        (folder / name).write_bytes(file.read_bytes())
    return name.removesuffix(".nii.gz")


def cut_in_other_format(file: Path, draw: random.Random) -> str:
    """Put an image of another format in place of a file, with data that are cut off; returns the case's name."""
    image = sitk.ReadImage(str(file))
    file.unlink()
    ending, second = draw.choice([(".mha", ""), (".nrrd", ""), (".mhd", ".raw"), (".nhdr", ".raw"), (".nii", "")])
    other = file.with_name(file.name.replace(".nii.gz", ending))
    sitk.WriteImage(image, str(other), False)
    data = other.with_suffix(second) if second else other
    content = data.read_bytes()
    size = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    data.write_bytes(content[: len(content) - draw.randint(1, size)])
    return other.name[:6]


def copy_test_image(world: World, draw: random.Random) -> Path:
    """Make a test case of a training case; returns one of its images."""
    folder = world.raw / "imagesTs"
    folder.mkdir()
    for channel in range(2):
        shutil.copy(world.raw / "imagesTr" / f"case_0_000{channel}.nii.gz", folder)
    return any_of(folder, draw)


def spoil_checkpoint(file: Path, draw: random.Random) -> None:
    if draw.random() < 0.4:
        spoil_bytes(file, draw)
        return
    content = torch.load(file, weights_only=True)
    weights = content.pop("network_weights")
    if draw.random() < 0.3:
        name = draw.choice(list(weights))
        weights[name] = draw.choice([None, 3, torch.zeros(2), weights[name].double() * np.nan])
    content = spoil(content, draw)
    if isinstance(content, dict):
        content["network_weights"] = draw.choice([weights, weights, weights, [], None])
    torch.save(content, file)


def spoil_cluster(file: Path, draw: random.Random) -> None:
    lines = file.read_text().splitlines()
    wrong = ["train: 3", "train: [1]", "light: x", "provider: 3", "- a", "gpus: x", "\tqueue: x", "&a *a", "x: {"]
    lines[draw.randrange(len(lines))] = draw.choice(wrong)
    file.write_text("\n".join(lines))
    if draw.random() < 0.3:
        spoil_bytes(file, draw)


def any_of(folder: Path, draw: random.Random, ending: str = ".nii.gz") -> Path:
    return draw.choice(sorted(path for path in folder.iterdir() if path.name.endswith(ending)))
