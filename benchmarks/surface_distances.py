"""Time of our metrics against MedPy's, on one image with two labels; prints ratios and how far the two ASSD differ.

    python benchmarks/surface_distances.py
    python benchmarks/surface_distances.py --shape 100 256 256

MedPy (pip install medpy) computes Dice, ASSD and HD95 over the whole image, one after the other; ours are the same
three and the surface Dice, as `nnunet-plugins evaluate` computes them. Its HD95 pools both directions, ours is the
larger of the two, so only the ASSD are compared. Imports and reading the files are not timed.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from medpy.metric import binary
from numpy.typing import NDArray

from nnunet_plugins.metrics.masks import compare_masks

SPACING = (2.5, 0.8, 0.8)

# Per label: centre and radii of an ellipsoid, as parts of the image; the prediction is moved by a few voxels.
LABELS = {"organ": ((0.5, 0.5, 0.5), (0.3, 0.23, 0.18)), "tumour": ((0.45, 0.4, 0.65), (0.1, 0.05, 0.06))}
SHIFT = (2, -4, 3)


def ellipsoid(shape: Sequence[int], centre: Sequence[float], radii: Sequence[float]) -> NDArray[np.bool_]:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((a - c * n) / (r * n)) ** 2 for a, c, r, n in zip(axes, centre, radii, shape, strict=True)) < 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512), metavar=("Z", "Y", "X"))
    arguments = parser.parse_args(argv)
    shape = tuple(arguments.shape)
    compare_masks(np.ones((2, 2), bool), np.ones((2, 2), bool), (1, 1), tolerance=1)  # imports MONAI
    print(f"{'label':<8}{'ours':>9}{'MedPy':>9}{'ratio':>8}{'ASSD ours':>12}{'MedPy':>12}{'difference':>12}")
    total = [0.0, 0.0]
    for name, (centre, radii) in LABELS.items():
        truth = ellipsoid(shape, centre, radii)
        prediction = np.roll(truth, SHIFT, (0, 1, 2))
        start = time.perf_counter()
        found = compare_masks(prediction, truth, SPACING, tolerance=1.0)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        binary.dc(prediction, truth)
        assd = binary.assd(prediction, truth, voxelspacing=SPACING)
        binary.hd95(prediction, truth, voxelspacing=SPACING)
        medpy = time.perf_counter() - start
        total = [total[0] + ours, total[1] + medpy]
        difference = abs(found.assd - assd)
        times = f"{name:<8}{ours:>7.2f} s{medpy:>7.2f} s{medpy / ours:>8.1f}"
        print(f"{times}{found.assd:>12.6f}{assd:>12.6f}{difference:>12.1e}")
    print(f"{'all':<8}{total[0]:>7.2f} s{total[1]:>7.2f} s{total[1] / total[0]:>8.1f}")


if __name__ == "__main__":
    main()
