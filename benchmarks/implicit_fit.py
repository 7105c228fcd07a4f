"""What a fit of an implicit network costs, against its operations: `python benchmarks/implicit_fit.py`.

The operations of a step of the fit are 6 x weights x voxels (a forward pass 2, a backward pass 4), for NISF, whose
weights stand still, 4. The time is set beside that of bare matrix products with as many operations, on the same
threads: 1.0 is a fit that does nothing else. Several images in one batch are set beside one after the other, and chunks
of the decoding beside each other. Ratios of the best of some runs; seconds say nothing about another machine.
"""

import argparse
import time
from collections.abc import Callable

import torch

from nnunet_plugins.networks.implicit import ImplicitNetwork
from nnunet_plugins.networks.metaseg import MetaSeg
from nnunet_plugins.networks.nisf import NISF

PATCH = (48, 64, 48)


def best(function: Callable[[], object], runs: int) -> float:
    """Return the shortest time of some runs, in seconds."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def products(images: int, voxels: int, width: int, operations: float) -> Callable[[], None]:
    """Return a function that does so many operations in matrix products of a layer's shape."""
    x, weight = torch.randn(images, voxels, width), torch.randn(images, width, width)
    out = torch.empty_like(x)
    number = max(1, round(operations / (2 * images * voxels * width * width)))

    def run() -> None:
        for _ in range(number):
            torch.bmm(x, weight, out=out)

    return run


def report(name: str, network: ImplicitNetwork, per_weight: int, runs: int) -> None:
    """Print the ratios of a network."""
    network.eval()
    x = torch.randn(4, 1, *PATCH)
    weights = sum(p.numel() for layer in network.layers for p in layer.parameters() if p.dim() > 1)
    width, drawn, steps = network.reconstruction.in_features, network.voxels or 0, network.fit_steps
    voxels = network.look_at(x)
    alone = [voxels.only([number]) for number in range(len(x))]
    one = best(lambda: network.fit(alone[0]), runs)
    each = best(lambda: [network.fit(image) for image in alone], runs)
    together = best(lambda: network.fit(voxels), runs)
    operations = per_weight * weights * drawn * steps
    bare = best(products(1, drawn, width, operations), runs)
    print(f"{name}: {steps} steps of {drawn} voxels, {operations / 1e9:.1f} GFLOP an image")
    print(f"  a fit takes {one / bare:.2f} times as long as bare matrix products with its operations")
    print(f"  four images in one batch take {together / each:.2f} of the time of one after the other")
    fitted = network.fit(alone[0])
    usual = None
    for chunk in (8192, 2048, 32768, 147456):
        network.chunk = chunk
        with torch.no_grad():
            taken = best(lambda: network.decode(fitted, alone[0]), runs)
        usual = usual or taken
        print(f"  decoding in chunks of {chunk} voxels takes {taken / usual:.2f} of the time with 8192")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each, of which the best counts; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    for width in (64, 128, 256):
        report(f"MetaSeg, width {width}", MetaSeg(1, 3, patch_size=PATCH, width=width, fit_steps=10), 6, chosen.runs)
    report("NISF", NISF(1, 3, patch_size=PATCH, fit_steps=10), 4, chosen.runs)
