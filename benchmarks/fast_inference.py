"""What a faster export costs: seconds per case and Dice of two submissions on the same images.

    nnunet-plugins export-submission -d 4 -tr nnUNetTrainer -f 0 -o whole
    nnunet-plugins export-submission -d 4 -tr nnUNetTrainer -f 0 --fast -o fast
    python benchmarks/fast_inference.py whole fast IMAGES LABELS

IMAGES is a folder in nnU-Net's format, LABELS one with their true segmentations; cases without one are left out. Both
submissions run in this environment, one after the other, and the ratio of their times is the figure: on a GPU, and for
images that have to be resampled much, it is another one. The time is from the first image to the last segmentation,
without loading the networks.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nnunet_plugins.metrics.folders import evaluate_folders
from nnunet_plugins.models.cases import find_cases
from nnunet_plugins.models.images import read_image, write_segmentation
from nnunet_plugins.models.settings import read_settings
from nnunet_plugins.submission.effort import Clock
from nnunet_plugins.submission.ensemble import Ensemble


def measure(submission: Path, images: Path, labels: Path, output: Path, device: str) -> dict[str, float]:
    settings = read_settings(submission / "model")
    ensemble = Ensemble(settings, submission / "model", torch.device(device))
    cases = [c for c in find_cases(settings, images, output) if (labels / f"{c.name}{settings.ending}").is_file()]
    begun = time.monotonic()
    for case in cases:
        image, properties = read_image(case, ensemble.reader, ensemble.ending, settings.channels)
        segmentation = ensemble.predict(image, properties, Clock(), lambda line: None)
        write_segmentation(segmentation, properties, case, ensemble.reader, ensemble.ending, settings.output_type)
    seconds = (time.monotonic() - begun) / len(cases)
    shutil.copy(submission / "model" / settings.members[0].folder / "dataset.json", output)
    truths = output / "labels"
    truths.mkdir()
    for case in cases:
        shutil.copy(labels / case.output.name, truths)
    table = evaluate_folders(output, truths, output / "metrics.csv", processes=1).table
    return {"cases": len(cases), "seconds": seconds, "dice": float(table.groupby("label")["Dice"].mean().mean())}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whole", type=Path)
    parser.add_argument("fast", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process of its own for each
    arguments = parser.parse_args(argv)
    if arguments.one:
        with tempfile.TemporaryDirectory() as output:
            print(
                json.dumps(
                    measure(
                        getattr(arguments, arguments.one),
                        arguments.images,
                        arguments.labels,
                        Path(output),
                        arguments.device,
                    )
                )
            )
        return
    found = {}
    for name in ("whole", "fast"):
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(result.stdout.splitlines()[-1])
    print("| submission | cases | s per case | mean Dice |\n|---|---:|---:|---:|")
    for name, row in found.items():
        print(f"| {name} | {row['cases']} | {row['seconds']:.2f} | {row['dice']:.4f} |")
    faster = found["whole"]["seconds"] / found["fast"]["seconds"]
    change = found["fast"]["dice"] - found["whole"]["dice"]
    print(f"\n{faster:.1f} times as fast, Dice {change:+.4f} ({arguments.device}, {torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
