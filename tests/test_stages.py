"""Plans that fit keep nnU-Net's rules: patch, strides and kernels are what its planner makes for the spacing."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.planning import fit
from nnunet_plugins.planning.setting import Setting

RESENC = {"n_blocks_per_stage": (1, 3, 4, 6, 6, 6, 6, 6), "n_conv_per_stage_decoder": (1,) * 7}
PLAIN = {"n_conv_per_stage": (2,) * 8, "n_conv_per_stage_decoder": (2,) * 7}


def plan(spacing, patch, batch=2, median=None, blocks=PLAIN):
    """A configuration as nnU-Net's planners write it, for the patch or the next larger one that they plan."""
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch, 4, 999999)
    stages = len(strides)
    options = {
        "n_stages": stages,
        "features_per_stage": [min(320, 32 * 2**stage) for stage in range(stages)],
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [list(stride) for stride in strides],
        **{name: list(numbers[: stages - name.endswith("decoder")]) for name, numbers in blocks.items()},
    }
    return {
        "patch_size": [int(n) for n in patch],
        "batch_size": batch,
        "spacing": list(spacing),
        "median_image_size_in_voxels": list(median or patch),
        "architecture": {"network_class_name": "x", "arch_kwargs": options, "_kw_requires_import": []},
    }


def shrink(configuration, budget):
    """Fit a configuration where a step needs a byte per voxel; returns it as fitted, and all that were tried."""
    tried = []

    def voxels(trainer, setting, *, autocast):
        tried.append(setting.configuration.configuration)
        return SimpleNamespace(peak_bytes_training=setting.shape[0] * math.prod(setting.shape[2:]))

    plans = PlansManager({"plans_name": "made", "configurations": {"any": configuration}})
    setting = Setting(plans, plans.get_configuration("any"), 1, 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "forecast_setting", voxels)
        _, after = fit.fit_configuration(nnUNetTrainer, setting, budget=budget, autocast=True)
    chosen = [c for c in tried if (tuple(c["patch_size"]), c["batch_size"]) == (after.patch, after.batch)]
    return chosen[0], tried


def bottleneck(configuration):
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    pooled = [math.prod(axis) for axis in zip(*strides, strict=True)]
    assert not any(n % p for n, p in zip(configuration["patch_size"], pooled, strict=True))
    return [n // p for n, p in zip(configuration["patch_size"], pooled, strict=True)]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("median", [None, (138, 170, 138)])
def test_a_cube_stays_a_cube(share, median):
    found, _ = shrink(plan((1.0, 0.98, 0.98), (128, 128, 128), median=median), share * 2 * 128**3)
    assert len(set(found["patch_size"])) == len(set(bottleneck(found))) == 1
    assert bottleneck(found)[0] >= 4


@pytest.mark.parametrize(
    ("spacing", "patch", "batch", "budget", "expected"),
    [
        ((1, 1), (64, 64), 8, 8 * 4096, ((64, 64), 8)),
        ((1, 1), (64, 64), 8, 8 * 4096 - 1, ((64, 64), 7)),
        ((1, 1), (64, 64), 8, 2 * 4096, ((64, 64), 2)),
        ((1, 1), (64, 64), 8, 2 * 4096 - 1, ((56, 56), 2)),
        ((1, 1), (64, 64), 1, 4095, ((56, 56), 1)),
        ((1, 1, 1), (128, 128, 128), 2, 2 * 128**3 - 1, ((112, 112, 112), 2)),
        ((1, 1, 1), (24, 24, 24), 8, 2 * 24**3 - 1, ((20, 20, 20), 3)),  # room for a larger batch again
        ((5, 1, 1), (16, 256, 256), 2, 2 * 16 * 256**2 - 1, ((16, 224, 224), 2)),
        ((1, 1, 1), (96, 160, 128), 2, 2 * 96 * 160 * 128 - 1, ((96, 128, 128), 2)),
    ],
)
def test_batch_first_then_patch(spacing, patch, batch, budget, expected):
    found, _ = shrink(plan(spacing, patch, batch), budget)
    assert (tuple(found["patch_size"]), found["batch_size"]) == expected


def test_the_axis_that_is_longest_relative_to_the_images_gets_shorter():
    found, _ = shrink(plan((1, 1, 1), (128, 112, 96), median=(256, 200, 100)), 2 * 128 * 112 * 96 - 1)
    assert found["patch_size"] == [128, 112, 80]


numbers = st.integers(8, 160)
sizes = st.floats(0.3, 6) | st.sampled_from([0.5, 1.0, 2.0, 5.0])


@st.composite
def some_plans(draw):
    dimensions = draw(st.sampled_from([2, 3]))
    spacing, patch, median = (
        draw(st.lists(part, min_size=dimensions, max_size=dimensions)) for part in (sizes, numbers, numbers)
    )
    if draw(st.booleans()):
        spacing = [1.0] * dimensions
    batch, blocks = draw(st.integers(1, 12)), draw(st.sampled_from([PLAIN, RESENC]))
    return plan(spacing, patch, batch, median, blocks)


@settings(deadline=None, max_examples=150)
@given(some_plans(), st.floats(0.001, 1.2))
def test_plans_that_fit_are_plans_that_nnunet_makes(before, share):
    options = before["architecture"]["arch_kwargs"]
    assume(options["n_stages"] <= 8)
    budget = share * before["batch_size"] * math.prod(before["patch_size"])
    try:
        after, tried = shrink(before, budget)
    except PlanError as error:
        assert "nnU-Net plans no smaller one" in str(error)  # noqa: PT017
        return
    voxels = math.prod(after["patch_size"])
    assert after["batch_size"] * voxels <= budget
    assert after["batch_size"] == before["batch_size"] or (after["batch_size"] + 1) * voxels > budget
    assert (
        after["patch_size"] == before["patch_size"]
        or 2 * math.prod(before["patch_size"]) > budget
        or before["batch_size"] == 1
    )
    if share >= 1:
        assert after == before
    for configuration in tried:
        # Whatever is tried, nnU-Net would plan the same for this spacing and patch, the blocks of each stage as well.
        patch, batch = configuration["patch_size"], configuration["batch_size"]
        blocks = RESENC if "n_blocks_per_stage" in options else PLAIN
        expected = plan(before["spacing"], patch, batch, before["median_image_size_in_voxels"], blocks)
        assert configuration == expected
        assert all(small >= min(4, n) for small, n in zip(bottleneck(configuration), before["patch_size"], strict=True))
        assert configuration["architecture"]["arch_kwargs"]["n_stages"] >= min(3, options["n_stages"])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["architecture"]["arch_kwargs"].update(strides=[[1, 1, 1], [2, 2, 2], [4, 4, 4]]),
        lambda c: c["architecture"]["arch_kwargs"].update(kernel_sizes=3),
        lambda c: c["architecture"]["arch_kwargs"].pop("n_stages"),
        lambda c: c["architecture"].update(arch_kwargs={"embed_dim": 96}),
        lambda c: c.update(patch_size=[72, 64, 64]),
        lambda c: c.pop("spacing"),
        lambda c: c.update(spacing=[4, 1, 1]),
    ],
)
def test_what_nnunet_does_not_plan_is_refused_only_if_the_patch_has_to_shrink(change):
    configuration = plan((1, 1, 1), (64, 64, 64), batch=4)
    change(configuration)
    needed = 4 * math.prod(configuration["patch_size"])
    assert shrink(configuration, needed)[0] == configuration
    assert shrink(configuration, needed // 2)[0] == {**configuration, "batch_size": 2}
    with pytest.raises(PlanError, match=r"its U-Net is not the one that nnU-Net plans .*; start from plans") as refusal:
        shrink(configuration, needed // 3)
    assert len(str(refusal.value).splitlines()) == 1
