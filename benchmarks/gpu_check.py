"""What only a real GPU can tell: bytes and types against the forecast, torch.compile, the autofocus forms, time.

    bash benchmarks/gpu_check.sh run                  # on a GPU; see there for one without a network
    bash benchmarks/gpu_check.sh run --dry-run        # on the CPU, small, to see that everything runs

How to read it: bytes are those of PyTorch's tensors, in nnU-Net's mixed precision (on the CPU in float32), ratios
measured / forecast. A step is that of `nnunet-plugins profile`: forward, loss, backward and optimizer; its ratio is to
the U-Net's in the same run. The forms are compared with the plain form in float32. What fails is named at the end and
in the JSON, and costs the others nothing; what no time was left for is named as well.
"""

import argparse
import copy
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nnunet_plugins.forecast import SavedBytes, loss_as_in_training
from nnunet_plugins.networks.layers.autofocus import FORMS, AutofocusConv
from nnunet_plugins.planning.profile import measure_on_gpu
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer, forecast_setting, patch_setting
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER

NETWORKS = (STOCK_TRAINER, *(row.trainer for row in BACKBONES if 3 in row.dimensions))
DRY = (STOCK_TRAINER, "nnUNetTrainerAFN1")
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast(device: str, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def bytes_and_types(name: str, setting: Setting, device: str) -> dict[str, Any]:
    """Bytes that a real forward pass saves, and the modules that return float32 maps; a softmax may."""
    network = build_network(find_trainer(name), setting).to(device).train()
    found = []

    def note(name: str, output: Any) -> None:
        maps = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.dim() > 2]
        if any(leaf.dtype == torch.float32 for leaf in maps):
            found.append(name)

    for part, module in network.named_modules():
        *_, last = module.modules()
        if not isinstance(last, nn.Softmax):
            module.register_forward_hook(lambda _, __, output, part=part: note(part, output))
    saved = SavedBytes(network)
    with saved, autocast(device, torch.float16 if device == "cuda" else None):
        loss = loss_as_in_training(network(torch.randn(setting.shape, device=device)))
    # On the CPU all is in float32.
    result = {"saved_bytes": saved.take(), "float32_modules": found if device == "cuda" else None}
    loss.backward()
    result["finite"] = bool(all(torch.isfinite(p.grad).all() for p in network.parameters()))
    return result


def against_forecast(name: str, setting: Setting, device: str) -> dict[str, Any]:
    forecast = forecast_setting(find_trainer(name), setting, autocast=device == "cuda", device=device)
    measured = measure_on_gpu(find_trainer(name), setting) if device == "cuda" else None
    return {
        "saved_bytes_forecast": forecast.saved_bytes,
        "peak_bytes_forecast": forecast.peak_bytes_training,
        "peak_bytes": measured and measured.peak_bytes_training,
        "device_bytes": measured and measured.device_bytes,
        "seconds": measured and measured.seconds_per_step,
    }


def compiled(name: str, setting: Setting, device: str) -> dict[str, Any]:
    """One graph without a break, and the results of the network as it is."""
    torch._dynamo.reset()
    network = build_network(find_trainer(name), setting, deep_supervision=False).to(device).eval()
    run = torch.compile(copy.deepcopy(network), backend="inductor" if device == "cuda" else "eager", fullgraph=True)
    image = torch.randn(setting.shape, device=device)
    begun = time.perf_counter()
    with torch.no_grad():
        difference = (run(image) - network(image)).abs().max().item()
    result: dict[str, Any] = {"compiled_difference": difference, "compile_seconds": time.perf_counter() - begun}
    if device == "cuda":
        result["compiled_seconds"] = measure_on_gpu(find_trainer(name), setting, compiled=True).seconds_per_step
    return result


def form(name: str, size: int, device: str) -> dict[str, Any]:
    """One autofocus layer in a form, in three precisions: how far from the plain form in float32, and how long."""
    torch.manual_seed(0)
    layer = AutofocusConv(40, 40, rates=(2, 6, 10, 14), form=name).to(device)
    reference = AutofocusConv(40, 40, rates=(2, 6, 10, 14), form="plain").to(device)
    reference.load_state_dict(layer.state_dict())
    x = torch.randn(1, 40, size, size, size, device=device)

    def step(layer: nn.Module, dtype: torch.dtype | None) -> list[torch.Tensor]:
        image = x.detach().requires_grad_()
        with autocast(device, dtype):
            y = layer(image)
        return [y.detach().float(), *(g.float() for g in torch.autograd.grad(y.sum(), [image, *layer.parameters()]))]

    expected, result = step(reference, None), {}
    for precision, dtype in PRECISIONS.items():
        got = step(layer, dtype)
        scale = [e.abs().max().clamp(min=1e-12) for e in expected]
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            step(layer, dtype)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        differences = [((g - e).abs().max() / s).item() for g, e, s in zip(got, expected, scale, strict=True)]
        result[precision] = {"difference": max(differences), "seconds": min(times)}
    return result


def table(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    stock = found["networks"].get(STOCK_TRAINER, {}).get("seconds")
    head = ["network", "saved / forecast", "peak / forecast", "float32 modules", "step / U-Net", "compiled"]
    lines = [head, ["---"] * len(head)]

    def ratio(above: float | None, below: float | None) -> str:
        return f"{above / below:.3f}" if above and below else "not measured"

    for name, row in found["networks"].items():
        difference = row.get("compiled_difference")
        lines.append(
            [
                name,
                ratio(row.get("saved_bytes"), row.get("saved_bytes_forecast")),
                ratio(row.get("peak_bytes"), row.get("peak_bytes_forecast")),
                "not counted" if row.get("float32_modules") is None else str(len(row["float32_modules"])),
                ratio(row.get("seconds"), stock),
                "not tried" if difference is None else f"differs by {difference:.1e}",
            ]
        )
    lines += [[], ["form", "precision", "differs by", "seconds"], ["---"] * 4]
    for name, precisions in found["forms"].items():
        for precision, row in precisions.items():
            lines.append([name, precision, f"{row['difference']:.1e}", f"{row['seconds']:.4f}"])
    return "\n".join(f"| {' | '.join(line)} |" if line else "" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=64, metavar="N", help="voxels per axis, a multiple of 16")
    parser.add_argument("--minutes", type=float, default=7, metavar="N", help="begin nothing new after that")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small, two networks")
    arguments = parser.parse_args()
    device, size, networks = arguments.device, arguments.size, NETWORKS
    if arguments.dry_run:
        device, size, networks = "cpu", 16, DRY
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --dry-run tries everything on the CPU.")
    begun = time.monotonic()
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "dry_run": arguments.dry_run,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "size": size,
    }
    rows: dict[str, dict[str, Any]] = {name: {} for name in networks}
    found: dict[str, Any] = {**about, "networks": rows, "forms": {}, "failed": [], "no_time_for": []}

    def attempt(what: str, target: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() - begun > 60 * arguments.minutes:
            found["no_time_for"].append(what)
            return
        try:
            target.update(measure())
        except Exception as error:  # one that fails must not cost the others
            found["failed"].append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        # After every part, so that an end from outside leaves what was found.
        (arguments.output / "gpu_check.json").write_text(json.dumps(found, indent=2))
        (arguments.output / "gpu_check.md").write_text(table(found))

    arguments.output.mkdir(parents=True, exist_ok=True)
    setting = patch_setting((size,) * 3, batch=2, channels=1, classes=3)
    # What says most comes first; compilation takes longest.
    for name in networks:
        attempt(f"{name}, bytes and types", rows[name], lambda name=name: bytes_and_types(name, setting, device))
        attempt(f"{name}, forecast", rows[name], lambda name=name: against_forecast(name, setting, device))
    for name in FORMS if device == "cuda" else FORMS[:2]:
        attempt(f"form {name}", found["forms"], lambda name=name: {name: form(name, size // 4, device)})
    for name in networks:
        # Those of the paper's recipes are the same networks; a dry run compiles the smallest alone.
        if not name.endswith("Paper") and (not arguments.dry_run or name == DRY[-1]):
            attempt(f"{name}, compiled", rows[name], lambda name=name: compiled(name, setting, device))
    print(table(found))
    for what in found["failed"]:
        print(f"FAILED {what}")
    for what in found["no_time_for"]:
        print(f"no time for {what}")
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    main()
