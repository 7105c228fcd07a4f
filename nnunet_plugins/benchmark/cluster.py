"""Where a benchmark's tasks run: slots of this machine, or jobs of a cluster, by Parsl."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_plugins.benchmark.engine import TaskInterruptedError
from nnunet_plugins.benchmark.protocol import BenchmarkError

PROVIDERS = ("slurm", "lsf", "pbs", "kubernetes")
SECTIONS = ("train", "light")
_TEXT = "a text (put it in quotes)"
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "queue": (_TEXT, lambda value: _is_text(value)),
    "account": (_TEXT, lambda value: _is_text(value)),
    "walltime": (
        'hours, minutes and seconds as a text, such as "24:00:00" (put it in quotes)',
        lambda value: _is_text(value) and re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", value) is not None,
    ),
    "cores": ("a whole number from 1", lambda value: _is_whole(value, 1)),
    "memory": ("a whole number from 1, in GB", lambda value: _is_whole(value, 1)),
    "gpus": ("a whole number from 0", lambda value: _is_whole(value, 0)),
    "jobs": ("a whole number from 1", lambda value: _is_whole(value, 1)),
    "options": (_TEXT, lambda value: _is_text(value)),
    "environment": (_TEXT, lambda value: _is_text(value)),
    "image": (_TEXT, lambda value: _is_text(value)),
    "namespace": (_TEXT, lambda value: _is_text(value)),
    "volumes": (
        "a list of pairs of a volume claim and a path, such as [[claim, /data]]",
        lambda value: isinstance(value, list) and all(map(_is_pair, value)),
    ),
    "address": (_TEXT, lambda value: _is_text(value)),
}
"""What a section may have: what the value has to be, in words, and whether it is."""

_MISSING = "the benchmark needs Parsl: pip install 'nnunet-plugins[benchmark]'"


def configure(
    folder: Path,
    *,
    device: str,
    slots: int,
    retries: int,
    used: Collection[str] = SECTIONS,
    cluster: Path | None = None,
    made_progress: Callable[[str], bool] = lambda _: False,
) -> Any:
    """Return Parsl's configuration with two places: "train", with whole GPUs or CPU slots, and "light" for the rest.

    Args:
        folder: the benchmark's, for Parsl's own logs.
        device: torch device type.
        slots: on this machine: GPUs for "cuda", or tasks at a time; each has the cores of its own share.
        retries: how often a failed task is tried again.
        used: the places that are needed, of "train" and "light".
        cluster: YAML file that describes a cluster; this machine alone if None.
        made_progress: tells of a task's order file whether the task went on since the last question. A job that was
            ended from outside, say at its time limit, costs no retry then.

    Raises:
        BenchmarkError: if Parsl is missing, the YAML file makes no sense, or keys for a cluster could not be kept.
    """
    try:
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
        from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
        from parsl.providers import LocalProvider
    except ModuleNotFoundError as error:
        raise BenchmarkError(_MISSING) from error

    def cost(error: Exception, record: Any) -> float:
        lost = isinstance(error, (ManagerLost, WorkerLost, TaskInterruptedError))
        return 0 if lost and made_progress(record["args"][0]) else 1

    # Parsl's own programs have to be found, by its driver and its workers.
    scripts = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    common: dict[str, Any] = {
        "interchange_launch_cmd": [sys.executable, "-m", "nnunet_plugins.benchmark.interchange"],
        # Whoever reaches its ports could otherwise give the workers tasks of his own. The keys lie in Parsl's folder.
        "encrypted": _has_private_folders(folder),
        "prefetch_capacity": 0,
    }
    if cluster and not common["encrypted"]:
        raise BenchmarkError(
            f"{folder} is on a file system where others may read every folder, so that the keys for talking to the "
            "jobs would be no secret; give another folder with -o"
        )
    executors: list[Any] = []
    description = read_cluster(cluster) if cluster else {}
    for section in SECTIONS:
        if section not in used:
            continue
        if section in description:
            executors.append(
                HighThroughputExecutor(
                    label=section,
                    address=description[section].get("address"),
                    max_workers_per_node=1,
                    provider=_provider(description["provider"], description[section], scripts),
                    heartbeat_period=15,
                    heartbeat_threshold=90,
                    **common,
                )
            )
        elif section == "light":
            executors.append(ThreadPoolExecutor(label="light", max_threads=1 if cluster else slots))
        else:
            executors.append(
                HighThroughputExecutor(
                    label="train",
                    address="127.0.0.1",
                    max_workers_per_node=slots,
                    available_accelerators=accelerators(slots) if device == "cuda" else (),
                    provider=LocalProvider(init_blocks=1, max_blocks=1, min_blocks=1),
                    heartbeat_period=5,
                    heartbeat_threshold=30,
                    **common,
                )
            )
    return Config(
        executors=executors,
        run_dir=str(folder / "parsl"),
        retries=retries,
        retry_handler=cost,
        strategy="simple",
        # Until it first looks no worker is started; a scheduler is not to be asked so often.
        strategy_period=5 if cluster else 0.5,
        usage_tracking=0,
        initialize_logging=False,  # `engine` does, in one file for all starts
    )


def _has_private_folders(folder: Path) -> bool:
    with tempfile.TemporaryDirectory(dir=folder) as private:
        return Path(private).stat().st_mode & 0o777 == 0o700


def accelerators(number: int) -> list[str]:
    """Return the first GPUs that this process may use, as CUDA_VISIBLE_DEVICES wants them.

    Raises:
        BenchmarkError: if there are fewer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(number)]
    found = [name.strip() for name in visible.split(",") if name.strip()]
    if len(found) < number:
        raise BenchmarkError(f"--gpus {number}, but CUDA_VISIBLE_DEVICES={visible} leaves {len(found)}")
    return found[:number]


def read_cluster(file: Path) -> dict[str, Any]:
    """Read and check the description of a cluster.

    Raises:
        BenchmarkError: if it cannot be read, or has a key or a value that means nothing.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise BenchmarkError(_MISSING) from error
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise BenchmarkError(f"{file} cannot be read: {error}") from error
    if faults := list(_faults(content)):
        raise BenchmarkError(
            "\n  ".join([f"{file} cannot be used:", *faults]) if faults[1:] else f"{file}: {faults[0]}"
        )
    return dict(content)


def _faults(content: Any) -> Iterator[str]:
    """Yield a sentence for everything that is wrong in the description of a cluster."""
    kinds = ", ".join(PROVIDERS)
    if not isinstance(content, Mapping):
        yield f"it needs a line 'provider:' with one of {kinds}, and a section 'train:'"
        return
    kind = content.get("provider")
    if kind not in PROVIDERS:
        yield f"it needs a line 'provider:' with one of {kinds}{'' if kind is None else f', not {kind!r}'}"
    if content.get("train") is None:
        yield "it needs a section 'train:' that describes the jobs of trainings"
    for section, values in content.items():
        if section == "provider" or (section == "train" and values is None):
            continue
        if section not in SECTIONS:
            yield f"unknown section {section!r}; there are {', '.join(SECTIONS)}"
        elif values is None:
            yield f"{section!r} is empty; describe its jobs, or leave it out to run these tasks on this machine"
        elif not isinstance(values, Mapping):
            yield f"{section!r} has to hold lines 'key: value', not {values!r}"
        else:
            yield from _faults_of_section(section, values, str(kind))


def _faults_of_section(section: str, values: Mapping[Any, Any], kind: str) -> Iterator[str]:
    for key, value in values.items():
        if key not in _KEYS:
            yield f"unknown key {key!r} in {section!r}; known are {', '.join(_KEYS)}"
        elif not _KEYS[key][1](value):
            yield f"{section}.{key} has to be {_KEYS[key][0]}, not {value!r}"
    if kind == "kubernetes" and "image" not in values:
        yield f"kubernetes needs {section}.image, an image with this package installed"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least  # true and false are numbers here


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_text, value))


def _provider(kind: str, section: Mapping[str, Any], scripts: str) -> Any:
    """Return Parsl's provider; a job runs one task at a time, and goes when there is none left."""
    from parsl import providers

    common: dict[str, Any] = {"init_blocks": 0, "min_blocks": 0, "max_blocks": section.get("jobs", 1), "parallelism": 1}
    common["worker_init"] = "\n".join([section.get("environment", ""), f'export PATH="{scripts}:$PATH"'])
    cores, gpus, memory = section.get("cores"), section.get("gpus"), section.get("memory")
    walltime, options = section.get("walltime", "24:00:00"), section.get("options", "")
    if kind == "slurm":
        return providers.SlurmProvider(
            partition=section.get("queue"),
            account=section.get("account"),
            walltime=walltime,
            cores_per_node=cores,
            mem_per_node=memory,
            gpus_per_node=gpus,
            scheduler_options=options,
            exclusive=False,
            cmd_timeout=60,
            **common,
        )
    if kind == "lsf":
        lines = [options]
        if gpus:
            lines.append(f'#BSUB -gpu "num={gpus}:j_exclusive=yes"')
        if memory:
            lines.append(f"#BSUB -M {memory}G")
        return providers.LSFProvider(
            queue=section.get("queue"),
            project=section.get("account"),
            walltime=walltime,
            cores_per_block=cores or 1,
            cores_per_node=cores or 1,
            request_by_nodes=False,
            scheduler_options="\n".join(line for line in lines if line),
            **common,
        )
    if kind == "pbs":
        select = [f"{name}={value}" for name, value in (("ngpus", gpus), ("mem", memory and f"{memory}gb")) if value]
        return providers.PBSProProvider(
            queue=section.get("queue"),
            account=section.get("account"),
            walltime=walltime,
            cpus_per_node=cores or 1,
            select_options=":".join(select),
            scheduler_options=options,
            **common,
        )
    try:
        return providers.KubernetesProvider(
            image=section["image"],
            namespace=section.get("namespace", "default"),
            max_cpu=cores or 1,
            init_cpu=cores or 1,
            max_mem=f"{memory or 64}Gi",
            init_mem=f"{memory or 64}Gi",
            extra_limits={"nvidia.com/gpu": str(gpus)} if gpus else None,
            persistent_volumes=[tuple(volume) for volume in section.get("volumes", [])],
            **common,
        )
    except Exception as error:  # Parsl's and the kubernetes package's own: not installed, no access
        raise BenchmarkError(f"Kubernetes cannot be used here: {error}") from error
