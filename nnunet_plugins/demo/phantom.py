"""A small multi-scale 3D phantom as an nnU-Net raw dataset.

Each case shows one large organ, a vessel through it and a few tiny nodules. Nodules are a little brighter than the
vessel, and spots that look like nodules also lie outside the organ, where they are background, so context counts.
Noise, texture and a smooth bias field make the intensities of neighbouring tissues overlap.
"""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

LABELS = {"background": 0, "organ": 1, "vessel": 2, "nodule": 3}
SHAPE = (32, 40, 40)
"""Voxels along z, y, x. nnU-Net plans one patch of the whole image, and the batch size 2."""
SPACING = 2.0
"""Voxel size in mm, the same in all directions."""

DATASET = "Dataset999_Phantom"
TRAINING_CASES = 15
TEST_CASES = 3

# A nodule is so small that blurring takes a third of its contrast, which leaves it a little brighter than the vessel.
_AIR, _BODY, _ORGAN, _VESSEL, _NODULE = 40.0, 280.0, 460.0, 700.0, 1100.0
_NODULES, _DECOYS = 4, 4


def make_case(seed: int, index: int) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Make case `index` of the phantom with this seed; the same two numbers always give the same case.

    Returns:
        Image and labels, both `(z, y, x)` of `SHAPE`. Every label of `LABELS` is present.
    """
    random = np.random.default_rng([seed, index])
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in SHAPE), indexing="ij"))
    middle = (np.array(SHAPE) - 1) / 2

    body = _ellipsoid(grid, middle, np.array([16.5, 18.5, 18.5]), random) < 1
    centre = middle + random.uniform(-1, 1, 3) * (2, 2.5, 2.5)
    radii = np.array([10.5, 11.0, 13.0]) * random.uniform(0.9, 1.1, 3)
    depth = _ellipsoid(grid, centre, radii, random)
    organ = depth < 1
    vessel = _tube(centre, radii, random) & organ
    near_vessel = ndimage.binary_dilation(vessel, iterations=4)
    nodules = _spheres(grid, (depth < 0.8) & ~near_vessel, _NODULES, random)
    decoys = _spheres(grid, body & (depth > 1.3), _DECOYS, random)

    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[organ] = LABELS["organ"]
    labels[vessel] = LABELS["vessel"]
    labels[nodules] = LABELS["nodule"]

    tissue = np.where(body, _BODY, _AIR)
    tissue[organ] = _ORGAN
    tissue[vessel] = _VESSEL
    tissue[nodules | decoys] = _NODULE
    tissue += 32 * _smooth_field(random, 2.0) * body
    # Partial volume: a voxel on a border holds some of both tissues.
    image = ndimage.gaussian_filter(tissue, 0.6) * np.exp(0.11 * _smooth_field(random, 14.0))
    image += random.normal(0, 35, SHAPE)
    return np.clip(np.rint(image), 1, 2000).astype(np.int16), labels


def write_dataset(folder: Path, seed: int) -> None:
    """Write the training and the held-out test cases into `folder`, in nnU-Net's raw format.

    The test cases' labels lie in `labelsTs`, which nnU-Net's training does not read.
    """
    for index in range(TRAINING_CASES + TEST_CASES):
        part = "Tr" if index < TRAINING_CASES else "Ts"
        image, labels = make_case(seed, index)
        _write(image, folder / f"images{part}" / f"{case_name(index)}_0000.nii.gz")
        _write(labels, folder / f"labels{part}" / f"{case_name(index)}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": TRAINING_CASES,
        "file_ending": ".nii.gz",
        "name": DATASET,
        "description": f"Synthetic multi-scale phantom, seed {seed}",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))


def case_name(index: int) -> str:
    """Return the name of a case, as in its file names; the test cases follow the training cases."""
    return f"phantom_{index:03d}"


def _write(array: NDArray[np.int16] | NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING] * 3)
    try:
        sitk.WriteImage(image, str(path))
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from error


def _smooth_field(random: np.random.Generator, scale: float) -> NDArray[np.float64]:
    """Make a random field that varies over `scale` voxels, with mean 0 and standard deviation 1."""
    field = ndimage.gaussian_filter(random.normal(size=SHAPE), scale, mode="wrap")
    return (field - field.mean()) / field.std()


def _ellipsoid(
    grid: NDArray[np.float64], centre: NDArray[np.float64], radii: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the distance from the centre relative to an uneven ellipsoid's surface: below 1 inside."""
    offset = (grid - centre[:, None, None, None]) / radii[:, None, None, None]
    return np.sqrt((offset**2).sum(axis=0)) * (1 + 0.07 * _smooth_field(random, 6.0))


def _tube(centre: NDArray[np.float64], radii: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.bool_]:
    """Return a bent tube of radius 2 to 2.6 voxels that crosses the ellipsoid along x."""
    along = np.linspace(-1, 1, 200)
    bend, tilt = random.uniform(-0.35, 0.35, 2), random.uniform(-0.35, 0.35, 2)
    phase = random.uniform(0, np.pi, 2)
    path = np.stack(
        [
            centre[0] + radii[0] * (tilt[0] * along + bend[0] * np.sin(3 * along + phase[0])),
            centre[1] + radii[1] * (tilt[1] * along + bend[1] * np.sin(3 * along + phase[1])),
            centre[2] + radii[2] * along,
        ]
    )
    on_path = np.zeros(SHAPE, dtype=bool)
    voxels = np.clip(np.rint(path).astype(int), 0, np.array(SHAPE)[:, None] - 1)
    on_path[tuple(voxels)] = True
    return ndimage.distance_transform_edt(~on_path) <= random.uniform(2.0, 2.6)


def _spheres(
    grid: NDArray[np.float64], allowed: NDArray[np.bool_], count: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Return `count` spheres of radius 1.8 to 2.4 voxels, centred in the allowed part and apart from each other."""
    spheres = np.zeros(SHAPE, dtype=bool)
    free = allowed.copy()
    for _ in range(count):
        places = np.argwhere(free)
        if not len(places):
            break
        place = places[random.integers(len(places))]
        distance = np.sqrt(((grid - place[:, None, None, None]) ** 2).sum(axis=0))
        spheres |= distance <= random.uniform(1.8, 2.4)
        free &= distance > 6
    return spheres
