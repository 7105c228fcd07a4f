"""From a plan's stages to a fixed number of downsamplings."""

import pytest

from nnunet_plugins.networks.topology import extend_stages

THREE = (3, 3, 3)


def test_long_plans_are_cut():
    strides = [(1, 1, 1), *[(2, 2, 2)] * 5]
    assert extend_stages(strides, [THREE] * 6, (128,) * 3, 4) == ([(2, 2, 2)] * 4, [THREE] * 5)


def test_short_plans_go_on_where_there_are_voxels_left():
    strides = [(1, 1, 1), (1, 2, 2)]
    kernels = [(1, 3, 3), (1, 3, 3)]
    # After the plan 3 x 16 x 10 voxels are left; the first axis has too few to be halved.
    steps, extended = extend_stages(strides, kernels, (3, 32, 20), 4)
    assert steps == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 1)]
    assert extended == [(1, 3, 3)] * 5


def test_an_axis_that_is_halved_gets_kernel_three():
    steps, kernels = extend_stages([(1, 1, 1)], [(1, 3, 3)], (8, 64, 64), 2)
    assert steps == [(2, 2, 2), (2, 2, 2)]
    assert kernels == [(1, 3, 3), THREE, THREE]


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ([], "one stride and one kernel per stage"),
        ([(2, 2, 2)], r"first stage must be at full resolution, its stride is \[2, 2, 2\]"),
        ([(1, 1, 1), (4, 2, 2)], r"stage 1 of the plan has stride \[4, 2, 2\]"),
    ],
)
def test_unfit_plans(strides, message):
    with pytest.raises(ValueError, match=message):
        extend_stages(strides, [THREE] * len(strides), (32, 32, 32), 4)
