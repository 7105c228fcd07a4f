"""What a case costs in one pass, and in tiles: peak memory, seconds and operations.

    python benchmarks/whole_volume.py -i IMAGES -d 15 -c 3d_fullres -p PLANS -tr nnUNetTrainerFIRENet -f 0

IMAGES is a folder in nnU-Net's format. Each case is predicted alone, on the CPU and without mirroring, by three
commands, each in a process of its own: nnUNetv2_predict, nnunet-plugins predict, which cuts it into the same tiles, and
nnunet-plugins predict --whole-volume. Seconds are those of the whole command: starting Python, loading the weights,
preprocessing and export are in them. Memory is the most that one of its processes held. Operations are counted on
tensors without memory: those of a tile times the tiles, and those of the pass. What the labels are worth is not asked.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.datasets.folders import preprocessed_folder, read_dataset_json
from nnunet_plugins.forecast import fake_tensors, format_bytes, format_size
from nnunet_plugins.planning.setting import build_network, find_trainer, plan_setting
from nnunet_plugins.prediction.whole_volume import size_of_pass

SCRIPTS = Path(sys.executable).parent
TILES, PASS = "nnunet-plugins predict", "nnunet-plugins predict --whole-volume"
COMMANDS = {
    "nnUNetv2_predict": ["nnUNetv2_predict", "-npp", "1", "-nps", "1"],
    TILES: ["nnunet-plugins", "predict"],
    PASS: ["nnunet-plugins", "predict", "--whole-volume"],
}


def operations(trainer: str, dataset: str, configuration: str, plans: str, size: Sequence[int]) -> tuple[int, int, int]:
    """Return the operations of all tiles of an image, how many tiles there are, and the operations of one pass."""
    setting = plan_setting(dataset, configuration, plans)
    patch = setting.configuration.patch_size
    steps = compute_steps_for_sliding_window(tuple(np.maximum(size, patch)), patch, 0.5)
    tiles = int(np.prod([len(along) for along in steps]))
    counts = []
    with fake_tensors(), torch.no_grad():
        network = build_network(find_trainer(trainer), setting, deep_supervision=False).eval()
        for shape in (patch, size_of_pass(network, size)):
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, setting.channels, *shape))
            counts.append(counter.get_total_flops())
    return tiles * counts[0], tiles, counts[1]


def run(command: Sequence[str], log: Path) -> tuple[float, int]:
    """Return the seconds that a command took, and the most bytes that one of its processes held.

    Raises:
        SystemExit: if it fails.
    """
    begun = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen([SCRIPTS / command[0], *command[1:]], stdout=file, stderr=subprocess.STDOUT)
        # The kernel keeps the peak; looking again and again would slow the process down.
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()}")
    return time.monotonic() - begun, 1024 * usage.ru_maxrss


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", type=Path, required=True, metavar="IMAGES")
    parser.add_argument("-d", required=True, metavar="DATASET")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-tr", required=True, metavar="TRAINER")
    parser.add_argument("-f", default="0", metavar="FOLD")
    arguments = parser.parse_args(argv)
    cases = sorted({file.name.rpartition("_")[0] for file in arguments.i.iterdir() if file.suffix in (".gz", ".nii")})
    model = ["-d", arguments.d, "-c", arguments.c, "-p", arguments.p, "-tr", arguments.tr, "-f", arguments.f]
    print("| case | command | peak memory | seconds | operations |\n|---|---|---:|---:|---:|", flush=True)
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder, "images")
            images.mkdir()
            for file in arguments.i.glob(f"{case}_[0-9][0-9][0-9][0-9].*"):
                shutil.copy(file, images)
            size = preprocessed_size(arguments, images)
            in_tiles, tiles, in_one = operations(arguments.tr, arguments.d, arguments.c, arguments.p, size)
            found = {}
            for number, (name, command) in enumerate(COMMANDS.items()):
                options = ["-i", str(images), "-o", str(Path(folder, str(number))), *model]
                found[name] = run([*command, *options, "-device", "cpu", "--disable_tta"], Path(folder, "log.txt"))
                seconds, most = found[name]
                flops = in_one if name == PASS else in_tiles
                how = f"`{name}`, " + (format_size(size) if name == PASS else f"{tiles} tiles")
                print(f"| {case} | {how} | {format_bytes(most)} | {seconds:.0f} | {flops:.3g} |", flush=True)
            (time_in_tiles, most_in_tiles), (time_in_one, most_in_one) = found[TILES], found[PASS]
            ratios = (most_in_tiles / most_in_one, time_in_tiles / time_in_one, in_tiles / in_one)
            print(f"| {case} | tiles / pass | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |", flush=True)
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    print(f"\n{threads} threads, torch {torch.__version__.partition('+')[0]}", file=sys.stderr)


def preprocessed_size(arguments: argparse.Namespace, images: Path) -> tuple[int, ...]:
    """Return the size of an image as the network sees it: cropped and resampled."""
    setting = plan_setting(arguments.d, arguments.c, arguments.p)
    description = read_dataset_json(preprocessed_folder(arguments.d) / "dataset.json")
    files = [str(file) for file in sorted(images.iterdir())]
    preprocessor = setting.configuration.preprocessor_class(verbose=False)
    data, _, _ = preprocessor.run_case(files, None, setting.plans, setting.configuration, description)
    return tuple(int(n) for n in data.shape[1:])


if __name__ == "__main__":
    main()
