"""Plans of every kind, small enough for any machine, and a row's network for them, built as nnU-Net builds it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_plugins.rows import Backbone
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.unet import UNetTrainer

# Patch size, strides, kernels: what a plan says. "odd" patches no plan would choose, but inference pads to them.
PLANS: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "3d isotropic": ((24, 24, 24), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "3d anisotropic": ((6, 32, 24), [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]),
    "3d odd": ((21, 23, 20), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "3d resenc": ((24, 20, 24), [(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3),
    "2d isotropic": ((32, 32), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
    "2d anisotropic": ((24, 56), [(1, 1), (1, 2), (2, 2)], [(3, 3)] * 3),
    "2d odd": ((37, 41), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
    "2d resenc": ((32, 40), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3),
}
CHANNELS, CLASSES = 2, 3


def architecture(plan: str) -> dict[str, Any]:
    """Return what a plan says about its own network; the widths are smaller than nnU-Net's."""
    patch_size, strides, kernel_sizes = PLANS[plan]
    dim, stages = len(patch_size), len(strides)
    residual = plan.endswith("resenc")
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2] * stages}
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [8, 16, 32],
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(plan: str, patch_size: Sequence[int] | None = None) -> ConfigurationManager:
    """Return a plan's configuration as nnU-Net hands it to a trainer."""
    return ConfigurationManager({"patch_size": patch_size or PLANS[plan][0], "architecture": architecture(plan)})


def narrow_trainer(row: Backbone, base: str | None = None, options: Mapping[str, object] | None = None) -> Any:
    """Return a row's trainer class with the network in its narrow version.

    Args:
        row: which.
        base: name of the trainer to start from, with modifiers; the row's own by default.
        options: those of the network, in place of the narrow ones.
    """
    options = {**row.options, **row.narrow} if options is None else options
    return type(row.trainer, (trainer_class(base or row.trainer),), {"backbone": replace(row, options=options)})


def build(
    row: Backbone,
    plan: str,
    deep_supervision: bool = False,
    patch_size: Sequence[int] | None = None,
    options: Mapping[str, object] | None = None,
    classes: int = CLASSES,
) -> Any:
    """Build the network the way nnU-Net does, in training and at inference; in the row's narrow version.

    Args:
        row: which.
        plan: key of `PLANS`.
        deep_supervision: return outputs at all scales.
        patch_size: in place of the plan's.
        options: those of the network, in place of the narrow ones.
        classes: of the logits.
    """
    trainer = narrow_trainer(row, options=options)
    torch.manual_seed(0)
    return trainer.build_network_architecture(
        None, configuration(plan, patch_size), CHANNELS, classes, enable_deep_supervision=deep_supervision
    )


def image(plan: str, batch: int = 2) -> torch.Tensor:
    """Return noise of a plan's patch size, always the same."""
    torch.manual_seed(1)
    return torch.randn(batch, CHANNELS, *PLANS[plan][0])


def changes_the_plans_network(row: Backbone) -> bool:
    """nnU-Net's own U-Nets with changed blocks take multiples of their strides only, and follow a residual plan."""
    return issubclass(trainer_class(row.trainer), UNetTrainer)


def networks(rows: Sequence[Backbone]) -> list[Backbone]:
    """Return one row per network: rows that differ in their recipe alone, or are the same when narrow, share one."""

    def narrow(row: Backbone) -> tuple[Any, str]:
        return row.network, repr(sorted({**row.options, **row.narrow}.items()))

    return list({narrow(row): row for row in reversed(rows)}.values())


def cases(rows: Iterable[Backbone]) -> list[tuple[Backbone, str]]:
    """Return each row with each plan that it takes."""
    return [
        (row, plan)
        for row in rows
        for plan in PLANS
        if int(plan[0]) in row.dimensions and not plan.endswith("odd" if changes_the_plans_network(row) else "resenc")
    ]


def smallest(row: Backbone, kind: str = "isotropic") -> str:
    """Return the plan of a kind that costs least among those that the row takes."""
    return f"{min(row.dimensions)}d {kind}"


def output_sizes(
    trainer: type[nnUNetTrainer], network: nn.Module, chosen: ConfigurationManager
) -> list[tuple[int, ...]]:
    """Return the sizes of the truths that the recipe compares the network's outputs with, for the plan's patch.

    nnU-Net makes them by the scales that the trainer names, and counts as many outputs as there are.
    """
    # Without its constructor, which wants a dataset; the attributes that scales depend on.
    undressed: Any = object.__new__(trainer)
    supervised = bool(getattr(trainer, "deep_supervision", False))
    vars(undressed).update(
        network=network, configuration_manager=chosen, is_ddp=False, enable_deep_supervision=supervised
    )
    size = tuple(chosen.patch_size)
    scales = undressed._get_deep_supervision_scales()
    if scales is None:
        return [size]
    return [tuple(round(n * share) for n, share in zip(size, scale, strict=True)) for scale in scales]
