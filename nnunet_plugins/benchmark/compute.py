"""What the networks of a benchmark cost, told before they are trained."""

from itertools import groupby

from nnunet_plugins.arguments import lay_out
from nnunet_plugins.benchmark.protocol import Protocol, first_repeats
from nnunet_plugins.errors import InputError
from nnunet_plugins.planning.profile import Profile, profile_network
from nnunet_plugins.planning.setting import find_trainer, plan_setting


def describe_compute(protocol: Protocol) -> str:
    """Return a table per dataset and configuration: what each network costs, and how many times the baseline's that is.

    Where there are no plans yet, or a network cannot be built for them, a line says so.
    """
    device = "cuda" if protocol.device == "cuda" else "cpu"
    parts = []
    networks = first_repeats(protocol.runs())
    for (dataset, configuration), runs in groupby(networks, key=lambda run: (run.dataset, run.configuration)):
        rows: list[list[str]] = [["network", "parameters", "forward pass", "training step", "peak of a step"]]
        base, notes = None, []
        for run in runs:
            try:
                trainer = find_trainer(run.trainer)
                setting = plan_setting(run.dataset, run.configuration, run.plans)
                found = profile_network(trainer, setting, device=device)
            except InputError as error:
                notes.append(f"{run.algorithm}: {error}")
                continue
            base = base or found
            rows.append([run.algorithm, *_cells(found, base)])
        title = f"{dataset}, {configuration}: compute, and how many times the first one's"
        parts.append("\n".join([title, *([lay_out(rows)] if len(rows) > 1 else []), *notes]))
    return "\n\n".join(parts)


def _cells(found: Profile, base: Profile) -> list[str]:
    memory, of_base = found.autocast or found.memory, base.autocast or base.memory
    pairs = [
        (found.parameters, base.parameters, 1e6, "M"),
        (found.forward_flops, base.forward_flops, 1e9, " GFLOP"),
        (found.step_flops, base.step_flops, 1e9, " GFLOP"),
        (memory.peak_bytes_training, of_base.peak_bytes_training, 2**30, " GiB"),
    ]
    return [
        f"{one / size:.{1 if one >= 100 * size else 2}f}{unit} ({one / other:.2f})" for one, other, size, unit in pairs
    ]
