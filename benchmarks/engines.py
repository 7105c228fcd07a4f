"""A pass over one patch in PyTorch, onnxruntime and OpenVINO, on the CPU: seconds, and ratios within the run.

    python benchmarks/engines.py                                   # 64^3, the stock U-Net and FIRENet
    python benchmarks/engines.py --patch 40 56 40 -tr nnUNetTrainerSegResNet

The engines take turns, in single precision and on one thread each. Seconds are those that the processor worked, not
those that passed, so that other programs count little; of the quickest round after one of warm-up. Ratios above 1 are
sooner than PyTorch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from training_step import CLASSES, plan

from nnunet_plugins.arguments import ENGINES
from nnunet_plugins.engines.export import make_model
from nnunet_plugins.engines.network import EngineNetwork
from nnunet_plugins.rows import STOCK_TRAINER
from nnunet_plugins.trainers.compose import trainer_class


@torch.inference_mode()
def measure(network: nn.Module, patch: list[int], rounds: int) -> dict[str, float]:
    """Return the seconds of each engine, PyTorch first."""
    images = torch.randn(2, 1, *patch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "net.onnx")
        with torch.inference_mode(False):
            file.write_bytes(make_model(network, images.clone()).SerializeToString())
        passes: dict[str, Callable[..., torch.Tensor]] = {"torch": network}
        passes |= {engine: EngineNetwork(engine, [file]) for engine in ENGINES}
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(rounds + 1):
            for name, run in passes.items():
                begun = time.process_time()
                run(images[:1])
                seconds[name].append(time.process_time() - begun)
    return {name: min(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64], metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="after one of warm-up")
    parser.add_argument(
        "-tr", dest="trainers", nargs="+", metavar="TRAINER", default=[STOCK_TRAINER, "nnUNetTrainerFIRENet"]
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    configuration = plan(sorted(arguments.patch))  # nnU-Net puts the smallest axis first
    patch = list(configuration.patch_size)
    print(f"torch {torch.__version__}, one thread, patch {'x'.join(map(str, patch))}\n")
    print(f"| network | torch, s | {' | '.join(f'{engine}, s | torch / {engine}' for engine in ENGINES)} |")
    print(f"|---|---:|{'---:|---:|' * len(ENGINES)}")
    for name in arguments.trainers:
        network = trainer_class(name).build_network_architecture(None, configuration, 1, CLASSES, False).eval()
        taken = measure(network, patch, arguments.rounds)
        cells = [f"{taken[engine]:.4g} | {taken['torch'] / taken[engine]:.2f}" for engine in ENGINES]
        print(f"| {name} | {taken['torch']:.4g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
