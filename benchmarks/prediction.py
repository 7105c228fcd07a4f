"""What prediction costs beside the network: nnU-Net's commands and ours, the same labels.

    python benchmarks/prediction.py export
    python benchmarks/prediction.py folder -i IMAGES -d 4 -c 3d_fullres -tr nnUNetTrainer -f 0

`export`: logits to labels, of an image with finer voxels than the plan's; seconds and peak memory, each in a process
of its own. `folder`: seconds of `nnUNetv2_predict` and of `nnunet-plugins predict` with default settings, from the
start of the command to its end, less those inside the network, which a third process measures. Both count voxels whose
labels differ. Nothing else should run beside it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

WAYS = ("stock", "ours")


def make_case(shape: Sequence[int], labels: int, finer: float) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """Return plans as those of a predictor, logits, and the properties of the image they belong to."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": [finer] * 3,
        "architecture": {},
        "previous_stage": None,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": kwargs,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**kwargs, "order": 3},
    }
    plans = {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    names = {"background": 0, **{f"label {number}": number for number in range(1, labels)}}
    predictor = SimpleNamespace(
        plans_manager=PlansManager(plans),
        configuration_manager=ConfigurationManager(configuration),
        label_manager=LabelManager(names, None),
    )
    properties = {
        "spacing": [1.0] * 3,
        "shape_before_cropping": tuple(shape),
        "shape_after_cropping_and_before_resampling": tuple(shape),
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    size = [round(n / finer) for n in shape]
    logits = torch.empty((labels, *size), dtype=torch.half)
    torch.manual_seed(0)
    for one in logits:  # structures, from a coarse grid of numbers
        coarse = torch.randn([max(2, n // 12) for n in size])[None, None]
        one[...] = 5 * torch.nn.functional.interpolate(coarse, size, mode="trilinear")[0, 0]
    return predictor, logits, properties


def export(way: str, shape: Sequence[int], labels: int, finer: float, file: Path) -> dict[str, float]:
    """Return seconds and peak memory of one way; the labels go to a file."""
    from nnunet_plugins.prediction.export import find_labels, make_quick

    predictor, logits, properties = make_case(shape, labels, finer)
    before = _peak()
    if way == "ours":
        make_quick(predictor)
    torch.lerp(torch.zeros(9), torch.zeros(9), 0.5)
    begun = time.monotonic()
    # Without `make_quick` it is nnU-Net's own function.
    found = find_labels(predictor, logits, properties)
    seconds = time.monotonic() - begun
    np.save(file, found)
    return {"seconds": seconds, "bytes": _peak(), "before": before}


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def network_seconds(options: Sequence[str], images: Path) -> float:
    """Return the seconds that a model takes for its logits of a folder's images, without reading and writing."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.file_path_utilities import get_output_folder
    from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

    chosen = _model_parser().parse_args(options)
    predictor = nnUNetPredictor(device=torch.device(chosen.device), allow_tqdm=False)
    folder = get_output_folder(chosen.d, chosen.tr, chosen.p, chosen.c)
    predictor.initialize_from_trained_model_folder(folder, chosen.f, "checkpoint_final.pth")
    plan = (predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
    preprocessor = plan[1].preprocessor_class(verbose=False)
    total = 0.0
    for files in create_lists_from_splitted_dataset_folder(str(images), plan[2]["file_ending"]):
        data = torch.from_numpy(preprocessor.run_case(files, None, *plan)[0])
        begun = time.monotonic()
        predictor.predict_logits_from_preprocessed_data(data)
        total += time.monotonic() - begun
    return total


def _model_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", required=True)
    parser.add_argument("-tr", required=True)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-f", nargs="+", default=["0", "1", "2", "3", "4"])
    parser.add_argument("-device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _alone(*arguments: object) -> Any:
    """Run this file in a process of its own; returns what its last line says."""
    command = [sys.executable, __file__, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def compare_exports(arguments: argparse.Namespace) -> None:
    """Print the table of `export`."""
    shape = " x ".join(map(str, arguments.shape))
    print(f"{arguments.labels} labels, {shape} voxels, the plan's {arguments.finer:g} times as large; {_machine()}")
    print("| export | seconds | peak memory | of it before | voxels with other labels |\n|---|---:|---:|---:|---:|")
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for way in WAYS:
            file = Path(temporary, f"{way}.npy")
            options = ["--labels", arguments.labels, "--finer", arguments.finer, "--shape", *arguments.shape]
            one = found[way] = _alone("export", *options, "--one", way, "--file", file)
            first, own = (np.load(Path(temporary, f"{name}.npy"), mmap_mode="r") for name in (WAYS[0], way))
            gib = (f"{one[key] / 2**30:.2f} GiB" for key in ("bytes", "before"))
            print(f"| {way} | {one['seconds']:.1f} | {' | '.join(gib)} | {int((first != own).sum())} |", flush=True)
    stock, ours = (found[way] for way in WAYS)
    print(f"seconds, stock / ours: {stock['seconds'] / ours['seconds']:.1f}")
    print(f"peak memory, ours / stock: {ours['bytes'] / stock['bytes']:.2f}")


def compare_folders(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Print the table of `folder`."""
    import SimpleITK as sitk

    inside = _alone("folder", "-i", arguments.images, *options, "--one", "network")
    commands = {
        "stock": ["nnUNetv2_predict"],
        "ours": ["nnunet-plugins", "predict"],
    }
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        for way, command in commands.items():
            output = Path(temporary, way)
            begun = time.monotonic()
            subprocess.run(
                [*command, "-i", str(arguments.images), "-o", str(output), *options],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            seconds[way] = time.monotonic() - begun
        files = sorted(file for file in Path(temporary, "stock").iterdir() if file.name.endswith(arguments.ending))
        different = 0
        for file in files:
            pair = [sitk.GetArrayFromImage(sitk.ReadImage(one)) for one in (file, Path(temporary, "ours", file.name))]
            different += int((pair[0] != pair[1]).sum())
    print(f"{len(files)} cases, {inside:.1f} s inside the network; {_machine()}")
    print("| command | seconds | less the network's |\n|---|---:|---:|")
    for way, taken in seconds.items():
        print(f"| {' '.join(commands[way])} | {taken:.1f} | {taken - inside:.1f} |")
    print(f"less the network's, stock / ours: {(seconds['stock'] - inside) / (seconds['ours'] - inside):.1f}")
    print(f"end to end, ours / stock: {seconds['ours'] / seconds['stock']:.2f}")
    print(f"voxels with other labels: {different}")


def _machine() -> str:
    return f"{torch.get_num_threads()} threads"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("export")
    one.add_argument("--labels", type=int, default=30)
    one.add_argument("--shape", type=int, nargs=3, default=[300, 512, 512], metavar="N", help="z y x")
    one.add_argument("--finer", type=float, default=1.5, help="size of the plan's voxels, in the image's")
    one.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    one.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    many = kinds.add_parser("folder", help="all other options go to both commands")
    many.add_argument("-i", dest="images", type=Path, required=True, metavar="DIR")
    many.add_argument("--ending", default=".nii.gz", help="of segmentations")
    many.add_argument("--one", choices=("network",), help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args(argv)
    if arguments.kind == "export":
        if rest:
            parser.error(f"unknown: {' '.join(rest)}")
        if arguments.one:
            print(json.dumps(export(arguments.one, arguments.shape, arguments.labels, arguments.finer, arguments.file)))
        else:
            compare_exports(arguments)
    elif arguments.one:
        print(json.dumps(network_seconds(rest, arguments.images)))
    else:
        compare_folders(arguments, rest)


if __name__ == "__main__":
    main()
