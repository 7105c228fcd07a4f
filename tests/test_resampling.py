"""Resampling by matrices, beside nnU-Net's own: the same numbers, and the same label in every voxel."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.ndimage import gaussian_filter

from nnunet_plugins.forecast import LiveBytes
from nnunet_plugins.prediction.resampling import axes_between, is_between_two, labels_of_logits, resample_image

KINDS = {
    "finer": ((7, 20, 15), (11, 30, 23), (1.5, 1.5, 1.5), (1.0, 1.0, 1.0)),
    "coarser": ((12, 30, 23), (8, 20, 15), (1.0, 1.0, 1.0), (1.5, 1.5, 1.5)),
    "twice as fine": ((5, 9, 8), (10, 18, 16), (2.0, 2.0, 2.0), (1.0, 1.0, 1.0)),
    "slices apart": ((6, 20, 15), (9, 31, 23), (5.0, 1.0, 1.0), (3.3, 0.7, 0.7)),
    "slices apart, of the target": ((20, 15, 6), (10, 31, 9), (1.0, 1.0, 1.0), (2.0, 0.5, 0.65)),
    "slices apart, as many": ((6, 20, 15), (6, 31, 23), (5.0, 1.0, 1.0), (5.0, 0.7, 0.7)),
    "two coarse axes": ((6, 20, 7), (9, 31, 9), (4.0, 1.0, 4.0), (3.0, 0.7, 3.0)),
    "one slice": ((1, 20, 15), (1, 30, 23), (1.0, 1.5, 1.5), (1.0, 1.0, 1.0)),
    "one voxel across": ((9, 1, 1), (5, 1, 2), (1.0, 1.0, 1.0), (1.8, 1.0, 0.5)),
    "as it is": ((7, 20, 15), (7, 20, 15), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "one axis alone": ((7, 20, 15), (7, 20, 22), (1.0, 1.0, 1.0), (1.0, 1.0, 0.7)),
}
TYPES = {"half": np.float16, "single": np.float32}


@pytest.mark.parametrize("order_z", [0, 1, 3])
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_nnunets(kind, order, order_z):
    old, new, spacing, new_spacing = KINDS[kind]
    image = np.random.default_rng(0).normal(size=(2, *old))
    image[1] += 1000  # of another range; each channel has its own
    options = {"order": order, "order_z": order_z, "force_separate_z": None}
    expected = resample_data_or_seg_to_shape(image, new, spacing, new_spacing, **options)
    found = resample_image(image, axes_between(old, new, spacing, new_spacing, **options))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_splines_stay_within_the_range_of_the_image():
    """An edge, next to which cubic splines overshoot."""
    image = np.zeros((1, 8, 8, 8), np.float32)
    image[:, :, 4:] = 1
    options = {"order": 3, "force_separate_z": None}
    axes = axes_between(image.shape[1:], (12, 12, 12), (1.5,) * 3, (1.0,) * 3, **options)
    found = resample_image(image, axes)
    assert (found.min(), found.max()) == (0, 1)
    along_y = axes[1].matrix @ image[0, 0, :, 0]
    assert along_y.max() > 1


@pytest.mark.parametrize(
    ("order", "spacing", "order_z", "able"),
    [
        (1, (1, 1, 1), 0, True),
        (0, (1, 1, 1), 0, True),
        (3, (1, 1, 1), 0, False),
        (1, (5, 1, 1), 0, True),
        (1, (5, 1, 1), 1, False),
        (1, (5, 1, 1), 3, False),
    ],
)
def test_only_what_lies_between_two_neighbours_is_taken(order, spacing, order_z, able):
    """All other logits are for nnU-Net's own functions."""
    options = {"order": order, "order_z": order_z, "force_separate_z": None}
    axes = axes_between((6, 9, 9), (9, 14, 14), spacing, np.divide(spacing, 1.5), **options)
    assert is_between_two(axes) is able


def label_manager(heads: int, *, regions: bool) -> LabelManager:
    if not regions:
        return LabelManager({"background": 0, **{f"label {n}": n for n in range(1, heads)}}, None)
    # Labels are found in another order than that of their numbers.
    order = [*range(heads, 1, -2), *range(1, heads + 1, 2)] if heads % 2 == 0 else list(range(heads, 0, -1))
    described = {f"region {n}": (n, heads) if n < heads else (n,) for n in range(1, heads + 1)}
    return LabelManager({"background": 0, **described}, order)


def logits_like(shape: Sequence[int], heads: int, kind: type) -> np.ndarray:
    """Logits of structures, with all that rounding can make of ties."""
    rng = np.random.default_rng(1)
    logits = np.stack([gaussian_filter(rng.normal(size=shape), [min(2, n / 4) for n in shape]) for _ in range(heads)])
    logits *= 4 / max(logits.std(), 1e-9)
    logits[:, :, : shape[1] // 4] *= 1e-4  # where numbers are small
    logits[1, ..., : shape[2] // 2] = logits[0, ..., : shape[2] // 2]  # as large as one another
    logits[2, :, shape[1] // 2 :] = logits[0, :, shape[1] // 2 :] + 1e-3  # nearly so
    logits[..., -1] = 0
    return logits.astype(kind)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shapes", KINDS)
def test_labels_are_nnunets(shapes, kind, regions):
    old, new, spacing, new_spacing = KINDS[shapes]
    logits, manager = logits_like(old, 5, TYPES[kind]), label_manager(5, regions=regions)
    options = {"order": 1, "order_z": 0, "force_separate_z": None}
    resampled = resample_data_or_seg_to_shape(logits, new, spacing, new_spacing, is_seg=False, **options)
    expected = np.asarray(manager.convert_logits_to_segmentation(resampled))
    axes = axes_between(old, new, spacing, new_spacing, **options)
    for at_a_time in (1, 3 * new[1] * new[2], 10**6):
        found = labels_of_logits(torch.from_numpy(logits), axes, manager, at_a_time=at_a_time)
        np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    assert len(np.unique(expected)) > 1 or expected.size < 50


@pytest.mark.parametrize("shapes", ["finer", "coarser", "slices apart", "one slice"])
def test_rounding_is_nnunets_to_the_last_bit(shapes):
    """Two heads that are one unit in the last place of half precision apart, if at all: rounding says which wins."""
    old, new, spacing, new_spacing = KINDS[shapes]
    rng = np.random.default_rng(3)
    one = rng.normal(size=old).astype(np.float16)
    other = np.where(rng.random(old) < 0.5, np.nextafter(one, np.float16(9)), one)
    logits = np.stack([one, np.where(rng.random(old) < 0.5, np.nextafter(one, np.float16(-9)), other)])
    options = {"order": 1, "order_z": 0, "force_separate_z": None}
    expected = resample_data_or_seg_to_shape(logits, new, spacing, new_spacing, is_seg=False, **options).argmax(0)
    axes = axes_between(old, new, spacing, new_spacing, **options)
    found = labels_of_logits(torch.from_numpy(logits), axes, label_manager(2, regions=False))
    np.testing.assert_array_equal(found, expected)
    assert 0.1 < expected.mean() < 0.9


def test_more_labels_than_a_byte_holds():
    logits = np.random.default_rng(0).normal(size=(300, 2, 3, 4)).astype(np.float16)
    manager = label_manager(300, regions=False)
    axes = axes_between((2, 3, 4), (3, 5, 6), (1.5,) * 3, (1.0,) * 3, order=1)
    resampled = resample_data_or_seg_to_shape(logits, (3, 5, 6), (1.5,) * 3, (1.0,) * 3, order=1)
    found = labels_of_logits(torch.from_numpy(logits), axes, manager)
    assert found.dtype == np.uint16
    assert found.max() > 255
    np.testing.assert_array_equal(found, resampled.argmax(0))


def test_logits_may_lie_in_memory_in_any_order():
    logits = np.random.default_rng(0).normal(size=(6, 5, 3, 4)).astype(np.float32).transpose(2, 0, 3, 1)
    axes = axes_between((6, 4, 5), (9, 6, 7), (1.5,) * 3, (1.0,) * 3, order=1)
    manager = label_manager(3, regions=False)
    found = labels_of_logits(torch.from_numpy(logits), axes, manager)
    np.testing.assert_array_equal(found, labels_of_logits(torch.from_numpy(logits.copy()), axes, manager))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that all is done where it can be counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_memory_does_not_grow_with_the_labels():
    """Some copies of a slab, whatever there is around it."""
    area, slices = 40 * 40, 4
    for heads, old in ((3, 20), (12, 20), (3, 60)):
        logits = torch.from_numpy(np.random.default_rng(0).normal(size=(heads, old, 20, 20)).astype(np.float16))
        axes = axes_between((old, 20, 20), (2 * old, 40, 40), (2.0,) * 3, (1.0,) * 3, order=1)
        with LiveBytes() as live:
            labels_of_logits(logits, axes, label_manager(heads, regions=False), at_a_time=slices * area)
        peak = live.peak - logits.untyped_storage().nbytes()  # of which it takes views
        assert 3 * slices * area * torch.float32.itemsize < peak < 8 * slices * area * torch.float32.itemsize
