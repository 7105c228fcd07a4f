"""Shared fixtures: a sandbox that runs nnU-Net's own commands, and small datasets in its raw format."""

import atexit
import contextlib
import functools
import itertools
import json
import multiprocessing.spawn
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from preloaded import write_commands
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_plugins.forecast import SavedBytes, cuda_autocast


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a number of bytes, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no limits of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Their assertions are told as those of tests are.
pytest.register_assert_rewrite("nnunet_plugins.testing")

# A shell that starts the tests in the background has Ctrl-C ignored, and `nohup` the end of the terminal, and so would
# have all that they start. Signals that are handled are not handed down.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

ROOT = Path(__file__).resolve().parent.parent

# Two test workers share two cores; threads on top of that only get into each other's way, and those of the commands
# must not wait for each other by spinning.
torch.set_num_threads(1)
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# With AMX, convolutions in bfloat16 copy what they read, which no GPU does and no forecast counts.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Trainers of ours count what a step needs before they train, which takes as long as these trainings themselves.
# test_planning.py switches it on, and test_conformance.py counts for each network.
os.environ["nnUNet_plugins_memory_check"] = "0"  # noqa: SIM112 - written as nnU-Net writes its own
os.environ["MATPLOTLIBRC"] = str(ROOT / "tests" / "matplotlibrc")
# Without a GPU, Triton's interpreter runs the kernels; it has to be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix-again", action="store_true", help="run also those cells of the matrix that are recorded")
    parser.addoption("--row", action="append", metavar="TRAINER", help="of the matrix, run this trainer only")
    parser.addoption("--record-parameters", action="store_true", help="record the parameters of rows that have none")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at markers
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Files with slow tests come first, then those with many: in the end no worker waits long for another."""
    for item in items:
        belongs = getattr(getattr(item, "module", None), "belongs_to_the_campaign", None)
        if belongs and hasattr(item, "callspec"):
            given = item.callspec.params
            row, plan = given.get("case") or (given["row"], given.get("plan"))
            if belongs(item.originalname, row, plan):
                item.add_marker(pytest.mark.campaign)
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = {path: any(item.get_closest_marker("slow") for item in file) for path, file in files.items()}
    items[:] = itertools.chain(*sorted(files.values(), key=lambda file: (not slow[file[0].path], -len(file))))


def saved_bytes(
    make: Callable[[], torch.nn.Module], shape: tuple[int, ...], *, device: str = "cpu", autocast: bool = False
) -> int:
    """Bytes that a network keeps for the backward pass of an image, counted on fake tensors, with CUDA's autocast."""
    with FakeTensorMode(), torch.device(device):
        network = make().train()
        saved = SavedBytes(network)
        with saved, cuda_autocast(enabled=autocast):
            network(torch.zeros(shape))
        return saved.take()


@functools.cache
def commands() -> Path:
    """Folder of commands that find nnU-Net's heavy libraries already loaded; see preloaded.py."""
    real = Path(sys.executable).parent
    if not hasattr(os, "pidfd_open"):
        return real
    folder = Path(tempfile.mkdtemp(prefix="preloaded"))
    launcher = write_commands(folder, str(folder / "socket"))
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "preloaded.py"), str(folder / "socket"), str(launcher)],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,  # it ends when this closes
        stdout=subprocess.PIPE,
    )

    def stop() -> None:
        server.communicate()
        shutil.rmtree(folder)

    atexit.register(stop)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return folder


@pytest.fixture
def preloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the test starts from this process, spawned workers too, finds the heavy libraries loaded."""
    resource_tracker.ensure_running()  # which outlives the test
    before, launcher = multiprocessing.spawn.get_executable(), str(commands() / "python")
    monkeypatch.setattr(sys, "executable", launcher)
    multiprocessing.set_executable(launcher)
    yield
    multiprocessing.set_executable(before)


def script(name: str) -> str:
    """Path of a console script of this environment, as a user starts it."""
    return str(Path(sys.executable).parent / name)


FINGERPRINT = """
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

extractor = DatasetFingerprintExtractor({dataset}, num_processes=1)
extractor.num_foreground_voxels_for_intensitystats = 1e5
extractor.run()
"""


@dataclass
class Sandbox:
    """nnU-Net folders of its own, and a way to run commands in them as a user would."""

    root: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        folders = {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for folder in folders.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        # Few workers: each one that is spawned imports torch, which costs more than these tiny jobs.
        workers = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
        workers["nnUNet_plugins_memory_check"] = "0"
        workers["PYTHONUNBUFFERED"] = "1"  # tests that follow the output must not see it late
        clean = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
        self.env = {**clean, **folders, **workers}

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results"

    def start(self, *command: object, alone: bool = False, **env: str) -> subprocess.Popen[str]:
        """Start a command that finds the heavy libraries loaded, or any other by its path; `alone` in its group."""
        first, *rest = map(str, command)
        return subprocess.Popen(
            [str(commands() / first), *rest],
            env={**self.env, **env},
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=alone,
        )

    def run(self, *command: object, ok: bool = True, **env: str) -> str:
        """Run a console script; returns stdout and stderr, and checks whether it succeeded as expected."""
        process = self.start(*command, **env)
        output, _ = process.communicate(timeout=900)
        assert (process.returncode == 0) is ok, f"{command} ended with {process.returncode}:\n{output[-6000:]}"
        return output

    def fingerprint(self, dataset: int) -> None:
        """Take a dataset's fingerprint with nnU-Net's extractor, which draws 10^8 voxels unless told otherwise."""
        self.run("python", "-c", FINGERPRINT.format(dataset=dataset))

    def prepare(self, dataset: int, *configurations: str) -> None:
        self.fingerprint(dataset)
        command = ("nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", *configurations, "-np", 1, "-npfp", 1)
        self.run(*command, nnUNet_n_proc_DA="1")  # the planner sets as many threads, and 0 is not allowed there

    def train(self, dataset: str, configuration: str, trainer: str, plans: str = "small") -> dict:
        """Train fold 0 on the CPU, validation included; returns the validation's summary."""
        self.run("nnUNetv2_train", dataset, configuration, 0, "-tr", trainer, "-p", plans, "-device", "cpu")
        folder = self.results / dataset / f"{trainer}__{plans}__{configuration}" / "fold_0"
        return json.loads((folder / "validation" / "summary.json").read_text())

    def predict(self, dataset: int, configuration: str, trainer: str, output: Path, *more: object) -> dict[str, bytes]:
        """Predict the test cases with fold 0 on the CPU; returns the segmentations' bytes by file name."""
        (folder,) = self.raw.glob(f"Dataset{dataset:03d}_*")
        model = ("-d", dataset, "-c", configuration, "-f", 0, "-p", "small", "-tr", trainer)
        options = ("-device", "cpu", "-npp", 1, "-nps", 1, "--disable_progress_bar", *more)
        self.run("nnUNetv2_predict", "-i", folder / "imagesTs", "-o", output, *model, *options)
        return {path.name: path.read_bytes() for path in sorted(output.glob("*.nii.gz"))}

    def edit_plans(
        self, dataset: str, name: str, change: Callable[[dict], object] = lambda _: None, like: str = "nnUNetPlans"
    ) -> None:
        """Write a copy of some plans with a batch of two, a narrow U-Net, and what `change` does to it."""
        folder = self.preprocessed / dataset
        plans = json.loads((folder / f"{like}.json").read_text())
        plans["plans_name"] = name
        for configuration in plans["configurations"].values():
            configuration["batch_size"] = 2
            if "architecture" in configuration:
                network = configuration["architecture"]["arch_kwargs"]
                network["features_per_stage"] = [width // 4 for width in network["features_per_stage"]]
        change(plans["configurations"])
        (folder / f"{name}.json").write_text(json.dumps(plans))


def kill_when(sandbox: Sandbox, pattern: str, *command: object) -> str:
    """Start a command, kill it as soon as a line matches, and return what it had printed."""
    process = sandbox.start(*command)
    limit = threading.Timer(300, process.kill)
    limit.start()
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            break
    limit.cancel()
    process.kill()
    process.wait()
    process.stdout.close()
    output = "".join(seen)
    assert re.search(pattern, output), output[-3000:]
    return output


SHAPE = (16, 18, 17)
"""The smallest for which nnU-Net plans three stages, which AutofocusUNet needs to have an autofocus layer."""


def write_dataset(
    raw: Path,
    name: str,
    *,
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    channels: int = 1,
    labels: dict[str, object] | None = None,
    regions_class_order: list[int] | None = None,
    ignore_slices: int = 0,
    cases: int = 5,
    test_cases: int = 2,
) -> Path:
    """Write nested ellipsoids (label 1 around label 2) with noise; `spacing` is z, y, x in mm.

    The last `ignore_slices` slices get label 3.
    """
    folder = raw / name
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(cases + test_cases):
        part = "Tr" if number < cases else "Ts"
        distance = np.sqrt(((grid - random.uniform(-0.2, 0.2, (3, 1, 1, 1))) ** 2).sum(0))
        segmentation = (distance < 0.7).astype(np.uint8) + (distance < 0.4)
        for channel in range(channels):
            image = segmentation * (1.0 + channel) + random.normal(0, 0.3, shape)
            _write(image.astype(np.float32), spacing, folder / f"images{part}" / f"case_{number}_{channel:04d}.nii.gz")
        if ignore_slices:
            segmentation[-ignore_slices:] = 3
        _write(segmentation, spacing, folder / f"labels{part}" / f"case_{number}.nii.gz")
    description = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": labels or {"background": 0, "outer": 1, "inner": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if regions_class_order:
        description["regions_class_order"] = regions_class_order
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def _write(array: np.ndarray, spacing: tuple[float, float, float], path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds nnU-Net's, which are empty; its variables name them."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the real datasets are not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """What `small` is a copy of."""
    sandbox = Sandbox(tmp_path_factory.mktemp("prepared"))
    write_dataset(sandbox.raw, "Dataset001_Small")
    sandbox.prepare(1, "2d", "3d_fullres")
    sandbox.edit_plans("Dataset001_Small", "small")
    return sandbox


@pytest.fixture(scope="module")
def small(sandbox: Sandbox, prepared: Sandbox) -> Sandbox:
    """A sandbox with the small dataset 1, planned and preprocessed in 2D and 3D, batch size 2."""
    shutil.copytree(prepared.root, sandbox.root, dirs_exist_ok=True)
    return sandbox


@pytest.fixture(scope="module")
def browser():
    """A real browser, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        candidates = [
            engine.chromium.executable_path,
            *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
        ]
        found = next((path for path in candidates if path and Path(path).exists()), None)
        if found is None:
            pytest.skip("no Chromium is installed")
        chromium = engine.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()
