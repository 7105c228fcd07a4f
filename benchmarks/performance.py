"""The ratios of docs/performance.md: what our networks cost beside their plain forms and the U-Net.

    python benchmarks/performance.py                                # on the CPU, some minutes on two cores
    python benchmarks/performance.py --device cuda --json gpu.json  # on a GPU
    python benchmarks/performance.py --list                         # what there is to measure
    python benchmarks/performance.py --only "AFN-6 step"            # some of it

How to read it: both sides of a ratio are measured in this run, in turns, and the medians divided; a ratio is good on
any machine, an absolute time on this one alone. Bytes are those kept for the backward pass, each storage once; they are
counted, not measured. A step is forward, loss and backward, on a GPU in mixed precision, without data loading. On a
noisy machine give more --rounds. With --size, everything gets another number of voxels per axis.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import nnunet_plugins
from nnunet_plugins.forecast import SavedBytes, cuda_autocast
from nnunet_plugins.networks.afnet import AFNet
from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.networks.layers.autofocus import AutofocusConv
from nnunet_plugins.planning.profile import measure_on_gpu
from nnunet_plugins.planning.setting import build_network, find_trainer, forecast_setting, patch_setting
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER

Make = Callable[[], nn.Module]
CLASSES = {1: 3, 4: 5}
"""As in the papers, by channels of the image: FIRENet's bladder, rectum and prostate, autofocus on BRATS."""


def unet(size: int = 64) -> nn.Module:
    """nnU-Net's default for a patch of so many voxels per axis; for 64 it has five stages."""
    setting = patch_setting((size,) * 3, batch=2, channels=1, classes=CLASSES[1])
    return build_network(find_trainer(STOCK_TRAINER), setting, deep_supervision=False)


def afn(**options: Any) -> nn.Module:
    return AFNet(4, CLASSES[4], **options)


AFN6 = {
    "a norm per rate": partial(afn, autofocus_layers=6, branch_norm=True),
    "one norm": partial(afn, autofocus_layers=6, branch_norm=False),
}


def firenet(dropout: float) -> nn.Module:
    return FIRENet(1, CLASSES[1], dropout=dropout)


def saved_bytes(make: Make, shape: Sequence[int], autocast: bool) -> int:
    """What a GPU keeps, which need not be there."""
    with FakeTensorMode(), torch.device("cuda"):
        network = make().train()
        saved = SavedBytes(network)
        with saved, cuda_autocast(enabled=autocast):
            network(torch.zeros(shape))
        return saved.take()


def prepare_step(make: Make, shape: Sequence[int], device: str, compiled: bool = False) -> Callable[[], None]:
    network = make().to(device).train()
    run = torch.compile(network) if compiled else network
    image = torch.randn(shape, device=device)
    target = torch.randint(0, CLASSES[shape[1]], (shape[0], *shape[2:]), device=device)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cuda", enabled=device == "cuda"):
            loss = nn.functional.cross_entropy(run(image), target)
        loss.backward()

    return step


def prepare_layer(form: str, size: int) -> Callable[[], None]:
    layer = AutofocusConv(40, 40, rates=(2, 6, 10, 14), form=form).cuda()
    x = torch.randn(1, 40, size, size, size, device="cuda", dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last_3d).requires_grad_()

    def step() -> None:
        with torch.autocast("cuda"):
            y = layer(x)
        y.backward(torch.ones_like(y))

    return step


def seconds(prepared: Sequence[Callable[[], None]], rounds: int, device: str) -> list[float]:
    """Run all in turns, so that a machine that slows down slows all of them down; return the medians."""
    taken: list[list[float]] = [[] for _ in prepared]
    for turn in range(rounds + 1):
        for run, times in zip(prepared, taken, strict=True):
            begun = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times.append(time.perf_counter() - begun)
    return [statistics.median(times) for times in taken]


class Row(NamedTuple):
    """A ratio: its name, what it should be at most, and a function that returns the two numbers."""

    name: str
    target: float | None
    measure: Callable[[], list[float]]


def bytes_rows(afn_size: int, size: int) -> list[Row]:
    def compare(ours: Make, theirs: Make, autocast: bool, *shape: int) -> list[float]:
        return [saved_bytes(make, shape, autocast) for make in (ours, theirs)]

    rows = []
    for autocast, precision in ((False, "single"), (True, "mixed")):
        for how, make in AFN6.items():
            measure = partial(compare, make, afn, autocast, 1, 4, *(afn_size,) * 3)
            rows.append(Row(f"AFN-6 bytes, {how}, {precision} precision / BASIC", 0.85, measure))
        for n, p in product((size, 2 * size), (0.5, 0.0)):
            measure = partial(compare, partial(firenet, p), partial(unet, n), autocast, 2, 1, n, n, n)
            rows.append(Row(f"FIRENet bytes {n}^3, dropout {p:g}, {precision} precision / U-Net", 0.9, measure))
    return rows


def cpu_rows(afn_size: int, size: int, rounds: int) -> list[Row]:
    def compare(ours: Make, theirs: Make, *shape: int) -> list[float]:
        return seconds([prepare_step(make, shape, "cpu") for make in (ours, theirs)], rounds, "cpu")

    afn_shape, shape = (1, 4, *(afn_size,) * 3), (2, 1, *(size,) * 3)
    return [
        *(
            Row(
                f"AFN-6 step, {how} / plain form", most, partial(compare, make, partial(make, form="plain"), *afn_shape)
            )
            for (how, make), most in zip(AFN6.items(), (1.05, 1.0), strict=True)
        ),
        *(
            Row(f"FIRENet step, dropout {p:g} / U-Net", most, partial(compare, partial(firenet, p), unet, *shape))
            for p, most in ((0.5, 1.6), (0.0, 1.3))
        ),
    ]


def start_rows(rounds: int) -> list[Row]:
    """How long a user waits for the help, and every Python in the environment for our startup file."""

    def median(command: Sequence[str]) -> float:
        printed = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(rounds + 1)]
        return statistics.median(printed[1:])

    timer = "import subprocess, sys, time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    command = str(Path(sys.executable).with_name("nnunet-plugins"))
    run_help = f"subprocess.run([{command!r}, '--help'], stdout=subprocess.DEVNULL, check=True)"
    package = Path(nnunet_plugins.__file__).parent
    line = (package / "nnunet_plugins.pth").read_text().strip()
    # Without `site` nothing is there yet that the line needs, just as when Python reads it.
    alone = f"import sys, time; sys.path.append({str(package.parent)!r}); t = time.perf_counter(); {line}; "
    alone += "print(time.perf_counter() - t)"
    return [
        Row(
            "nnunet-plugins --help / 0.3 s", 1.0, lambda: [median([sys.executable, "-c", timer.format(run_help)]), 0.3]
        ),
        Row("startup file / 5 ms", 1.0, lambda: [median([sys.executable, "-S", "-c", alone]), 0.005]),
    ]


def gpu_rows(afn_size: int, size: int, rounds: int) -> list[Row]:
    def layers(voxels: int) -> list[float]:
        return seconds([prepare_layer(form, voxels) for form in ("fused", "plain")], rounds, "cuda")

    def compare(ours: Make, theirs: Make, *shape: int, compiled: bool) -> list[float]:
        return seconds([prepare_step(make, shape, "cuda", compiled) for make in (ours, theirs)], rounds, "cuda")

    afn_shape, shape = (1, 4, *(afn_size,) * 3), (2, 1, *(size,) * 3)
    rows = [Row(f"autofocus layer {n}^3, fused / plain", 1 / 3, partial(layers, n)) for n in (size, 2 * size)]
    for compiled in (False, True):
        how = ", compiled" if compiled else ""
        for norm, make in {**AFN6, "fused": partial(AFN6["one norm"], form="fused")}.items():
            measure = partial(compare, make, afn, *afn_shape, compiled=compiled)
            rows.append(Row(f"AFN-6 step, {norm}{how} / BASIC{how}", 1.5 if norm == "fused" else None, measure))
        measure = partial(compare, partial(firenet, 0.0), unet, *shape, compiled=compiled)
        rows.append(Row(f"FIRENet step, dropout 0{how} / U-Net{how}", 1.3 if compiled else None, measure))
    setting = patch_setting((size,) * 3, batch=2, channels=1, classes=CLASSES[1])
    ours = [row.trainer for row in BACKBONES if 3 in row.dimensions and not row.trainer.endswith("Paper")]
    for name in (STOCK_TRAINER, *ours):
        rows.append(Row(f"peak memory of {name}, forecast / measured", 1.1, partial(forecast_and_peak, name, setting)))
    return rows


def forecast_and_peak(name: str, setting: Any) -> list[float]:
    trainer = find_trainer(name)
    forecast = forecast_setting(trainer, setting, autocast=True)
    return [forecast.peak_bytes_training, measure_on_gpu(trainer, setting).peak_bytes_training]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed rounds after one of warm-up")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="voxels per axis, a multiple of 16; default: 48 for AFN-6 on the CPU, else 64",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, with versions and hardware")
    arguments = parser.parse_args(argv)
    size = arguments.size or 64
    afn_size = arguments.size or (48 if arguments.device == "cpu" else 64)
    steps = gpu_rows if arguments.device == "cuda" else cpu_rows
    rows = bytes_rows(arguments.size or 48, size) + start_rows(arguments.rounds)
    rows += steps(afn_size, size, arguments.rounds)
    rows = [row for row in rows if arguments.only in row.name]
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU"
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "device": hardware,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "size": [afn_size, size],
    }
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    print("\n| ours / theirs | ours | theirs | ratio | target |\n|---|---|---|---|---|")
    found = {}
    for name, target, measure in rows:
        try:
            ours, theirs = measure()
        except Exception as error:  # one row that fails must not cost the others
            print(
                f"| {name} | {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} | | | |",
                flush=True,
            )
            found[name] = {"error": repr(error)}
            continue
        shown = [f"{n / 2**20:.0f} MiB" if n > 1000 else f"{n:.4g} s" for n in (ours, theirs)]
        found[name] = {"ours": ours, "theirs": theirs, "ratio": ours / theirs, "target": target}
        wanted = f"<= {target:.2f}" if target else ""
        print(f"| {name} | {shown[0]} | {shown[1]} | {ours / theirs:.3f} | {wanted} |", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({**about, "rows": found}, indent=2))
    if any("error" in row for row in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
