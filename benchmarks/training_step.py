"""Time and memory of a training step, each registered network against nnU-Net's own U-Net in the same run.

    python benchmarks/training_step.py                        # 64^3, on a GPU if there is one
    python benchmarks/training_step.py --patch 128 128 32 --device cuda --compile -tr nnUNetTrainerFIRENet

How to read it: seconds are the median over the steps after the warm-up, forward, loss (cross-entropy) and backward,
without data loading. On a GPU they run under autocast as in nnU-Net, and the peak is what torch allocated. "saved"
counts the bytes kept for the backward pass, each storage once: exact on any machine. Ratios are to the U-Net's row;
absolute times are good on one machine only.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.forecast import SavedBytes
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER
from nnunet_plugins.trainers.compose import trainer_class

CLASSES = 3


def plan(patch: Sequence[int]) -> ConfigurationManager:
    """What nnU-Net's default planner decides for an isotropic image with about this patch; it rounds the patch up."""
    shape, strides, kernels = plan_topology(patch)
    stages = len(strides)
    architecture = {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return ConfigurationManager(
        {
            "patch_size": shape,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": architecture,
                "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
            },
        }
    )


def plan_topology(patch: Sequence[int]) -> tuple[list, list, list]:
    """Patch, strides and kernels as nnU-Net's planner chooses them."""
    _, strides, kernels, shape, _ = get_pool_and_conv_props([1.0] * len(patch), patch, 4, 999999)
    return list(map(int, shape)), [list(map(int, s)) for s in strides], [list(map(int, k)) for k in kernels]


def measure(network: nn.Module, x: torch.Tensor, steps: int, compiled: bool) -> dict[str, float]:
    """Measure one network on one batch."""
    cuda = x.device.type == "cuda"
    with torch.device("meta"), FlopCounterMode(display=False) as flops:
        network.to("meta")(torch.empty(x.shape))
    network = network.to_empty(device=x.device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    saved = SavedBytes(network)
    with saved:
        network(x)
    result = {
        "M parameters": sum(p.numel() for p in network.parameters()) / 1e6,
        "GFLOP": flops.get_total_flops() / 1e9,
        "saved MiB": saved.take() / 2**20,
    }
    step = torch.compile(network) if compiled else network
    target = torch.randint(0, CLASSES, (x.shape[0], *x.shape[2:]), device=x.device)
    seconds = []
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps + 2):
        begun = time.perf_counter()
        network.zero_grad(set_to_none=True)
        with torch.autocast("cuda", enabled=cuda):
            loss = nn.functional.cross_entropy(step(x), target)
        loss.backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    result["s / step"] = statistics.median(seconds[2:])
    if cuda:
        result["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64], metavar="N")
    parser.add_argument("--batch", type=int, default=2, metavar="N")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="timed steps after two of warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile, as nnU-Net does on a GPU")
    parser.add_argument(
        "-tr",
        dest="trainers",
        nargs="+",
        metavar="TRAINER",
        default=[row.trainer for row in BACKBONES if 3 in row.dimensions and not row.trainer.endswith("Paper")],
        help="default: every registered network that works in 3D",
    )
    arguments = parser.parse_args()
    patch = sorted(arguments.patch)  # nnU-Net puts the smallest axis first
    configuration = plan(patch)
    patch = configuration.patch_size
    x = torch.randn(arguments.batch, 1, *patch, device=arguments.device)
    rows = {}
    for name in (STOCK_TRAINER, *arguments.trainers):
        # One output scale for all: most of the networks have no other.
        network = trainer_class(name).build_network_architecture(None, configuration, 1, CLASSES, False)
        rows[name] = measure(network, x, arguments.steps, arguments.compile)
    reference = rows[STOCK_TRAINER]
    print(
        f"torch {torch.__version__}, {arguments.device}, patch {'x'.join(map(str, patch))}, batch {arguments.batch}\n"
    )
    print(f"| network | {' | '.join(f'{name} | ratio' for name in reference)} |")
    print(f"|---|{'---|' * 2 * len(reference)}")
    for name, values in rows.items():
        cells = [f"{values[key]:.4g} | {values[key] / reference[key]:.2f}" for key in reference]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
