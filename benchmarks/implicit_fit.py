"""What a fit of an implicit network costs, against its operations: `python benchmarks/implicit_fit.py`.

For each trainer a table: a step of the fit for one image and for several at once, with all the voxels that the trainer
draws and with a part of them. The operations are counted as they run. The time is set beside that of bare matrix
products of a layer's shape with as many operations, taken in turn with it on the same threads: 1.0 is a step that does
nothing else. "Of one alone" is what an image costs in a batch, as a part of what it costs alone with as many voxels.
Below stands what a case takes in all: the steps of its fit, and decoding.

The best of some runs counts. Seconds say nothing about another machine, and ratios are best where nothing else runs.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins import backbones
from nnunet_plugins.forecast import format_size
from nnunet_plugins.networks.implicit import ImplicitNetwork
from nnunet_plugins.networks.layers.voxels import Voxels
from nnunet_plugins.rows import locate

TRAINERS = ("nnUNetTrainerMetaSeg", "nnUNetTrainerMetaSegPaper", "nnUNetTrainerNISF")
PADDED = 0.8
"""Part of the patch that the image fills along each axis; the rest is padding, as on covering plans."""


@dataclass
class Cell:
    """A row of the table.

    Attributes:
        images: at once.
        voxels: drawn of each.
        operations: of a step, all images together.
        step: takes the steps that are timed.
        bare: matrix products with as many operations as one step.
        steps: how many are timed.
        seconds: of a step.
        bare_seconds: of the products.
    """

    images: int
    voxels: int
    operations: int
    step: Callable[[], object]
    bare: Callable[[], object]
    steps: int
    seconds: float = math.inf
    bare_seconds: float = math.inf

    def take(self) -> None:
        """Time both; the best counts."""
        self.seconds = min(self.seconds, seconds_of(self.step) / self.steps)
        self.bare_seconds = min(self.bare_seconds, seconds_of(self.bare))


def seconds_of(function: Callable[[], object]) -> float:
    """Return the time that a function takes; with one thread that of the processor, whatever else runs there."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    function()
    return clock() - begun


def count(function: Callable[[], object]) -> int:
    """Return the operations of a function, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def bare_products(images: int, voxels: int, width: int, operations: int) -> Callable[[], None]:
    """Return a function that does so many operations in matrix products of a layer's shape."""
    x, weight = torch.randn(images, voxels, width), torch.randn(images, width, width)
    each = 2 * voxels * width * width * images
    whole, rest = divmod(operations, each)
    part = round(voxels * rest / each)

    def run() -> None:
        for _ in range(whole):
            torch.bmm(x, weight)
        torch.bmm(x[:, :part], weight)

    return run


def make_network(trainer: str, patch: Sequence[int]) -> ImplicitNetwork:
    """Return the network of a trainer for a patch, one channel and three classes."""
    row = backbones.find(trainer)
    if row is None or not row.fitted:
        raise SystemExit(f"{trainer} is no trainer of a network that is fitted to every image")
    options: dict[str, Any] = {**row.options, "patch_size": tuple(patch)}
    network: ImplicitNetwork = locate(row.network)(1, 3, **options)
    return network.eval()


def make_images(number: int, patch: Sequence[int]) -> torch.Tensor:
    """Return noise with a frame of padding."""
    images = torch.zeros(number, 1, *patch)
    inside = [slice(round(n * (1 - PADDED) / 2), n - round(n * (1 - PADDED) / 2)) for n in patch]
    images[(..., *inside)] = torch.randn(number, 1, *(part.stop - part.start for part in inside))
    return images


def make_cell(network: ImplicitNetwork, voxels: Voxels, drawn: int, steps: int) -> Cell:
    """Return a row of the table, nothing of it timed."""
    images, width = len(voxels), network.reconstruction.in_features

    def fit(number: int = steps) -> None:
        network.fit_voxels, network.fit_steps = drawn, number
        network.fit(voxels)

    operations = count(lambda: fit(1))
    return Cell(images, drawn, operations, fit, bare_products(images, drawn, width, operations), steps)


def show(trainer: str, patch: Sequence[int], chosen: argparse.Namespace) -> None:
    """Print the table of a trainer on a patch."""
    network = make_network(trainer, patch)
    of_a_fit = network.fit_steps
    voxels = network.look_at(make_images(max(chosen.images), patch))
    all_drawn = network.fit_voxels or network.voxels or len(voxels.draw(None).index[0])
    cells = [
        make_cell(network, voxels.only(range(images)), max(1, all_drawn // part), chosen.steps)
        for part in chosen.parts
        for images in chosen.images
    ]
    network.fit_voxels, network.fit_steps = all_drawn, 1
    one = voxels.only([0])
    fitted, decoding = network.fit(one), math.inf

    def decode() -> None:
        with torch.no_grad():
            network.decode(fitted, one)

    for _ in range(chosen.runs + 1):
        for cell in cells:
            cell.take()
        decoding = min(decoding, seconds_of(decode))
    print(f"\n{trainer}, patch {format_size(patch)}, {chosen.threads} thread(s)\n")
    head = ("images", "voxels", "GFLOP a step and image", "ms a step and image", "GFLOP/s", "to bare products")
    print(f"| {' | '.join((*head, 'of one alone'))} |\n|{'---|' * (len(head) + 1)}")
    alone = {cell.voxels: cell.seconds for cell in cells if cell.images == 1}
    for cell in cells:
        each, operations = cell.seconds / cell.images, cell.operations / cell.images
        part = f"{each / alone[cell.voxels]:.2f}" if cell.voxels in alone else "-"
        print(
            f"| {cell.images} | {cell.voxels} | {operations / 1e9:.4f} | {1e3 * each:.2f} | "
            f"{operations / each / 1e9:.0f} | {cell.seconds / cell.bare_seconds:.2f} | {part} |"
        )
    step = alone.get(all_drawn, cells[0].seconds / cells[0].images)
    fit = f"{of_a_fit} steps in {of_a_fit * step:.3f} s"
    print(f"\nA case: {fit}, decoding, {count(decode) / 1e9:.2f} GFLOP, in {decoding:.3f} s.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-tr", dest="trainers", nargs="+", default=TRAINERS, help="default: %(default)s")
    parser.add_argument("--patch", nargs="+", type=int, default=(48, 64, 48), help="default: %(default)s")
    parser.add_argument("--images", nargs="+", type=int, default=(1, 4, 16), help="at once; default: %(default)s")
    parser.add_argument("--parts", nargs="+", type=int, default=(1, 2), help="1 / this of the voxels; %(default)s")
    parser.add_argument("--steps", type=int, default=4, help="of a fit that is timed; default: %(default)s")
    parser.add_argument("--runs", type=int, default=3, help="of each, of which the best counts; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    for trainer in chosen.trainers:
        show(trainer, chosen.patch, chosen)
