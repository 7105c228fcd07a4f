"""The demo's steps, each of which is done once: a run that was interrupted goes on where it was.

Every step but training writes to a path with `.partial` in its name, which is renamed when it is complete; training
resumes from nnU-Net's own checkpoints. Nothing outside the demo's folder is read or written.
"""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_plugins.demo import command, progress
from nnunet_plugins.demo.errors import DemoError

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"
FOLD = "0"
MODELS = {"unet": ("U-Net", "nnUNetTrainer"), "firenet": ("FIRENet", "nnUNetTrainerFIRENet")}
ENSEMBLE = ("ensemble", "Ensemble")
_COMMANDS = ("plan_and_preprocess", "train", "predict", "ensemble", "evaluate_folder")
_SPACE = 0.6  # GB; a finished run takes 0.3, and training holds one checkpoint more for a while


@dataclass(frozen=True)
class Settings:
    """What the results in a demo folder depend on."""

    epochs: int
    iterations: int
    seed: int


@dataclass(frozen=True)
class Step:
    """One numbered step: how to tell that it is done, and how to do it."""

    title: str
    is_done: Callable[[], bool]
    do: Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to a parser."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("nnunet_plugins_demo"),
        metavar="DIR",
        help="folder for everything the demo makes, nnU-Net's three folders included (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--epochs", type=_positive, default=5, metavar="N", help="epochs per network, default %(default)s"
    )
    parser.add_argument(
        "--iterations", type=_positive, default=25, metavar="N", help="iterations per epoch, default %(default)s"
    )
    parser.add_argument(
        "--seed",
        type=_natural,
        default=0,
        metavar="N",
        help="seed of the phantom, default %(default)s; nnU-Net's training draws its own random numbers",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo, or the rest of it.

    Args:
        arguments: a namespace with the options of `add_arguments`.

    Returns:
        The exit code: 0 if the demo is complete, 1 after an error, 130 if it was interrupted.
    """
    settings = Settings(arguments.epochs, arguments.iterations, arguments.seed)
    folder = arguments.output.absolute()
    try:
        with _interruptible(), _own_folder(folder, settings):
            Demo(folder, settings, _device(arguments.device)).run()
    except DemoError as error:
        print(f"nnunet-plugins demo: {error}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        print(f"nnunet-plugins demo: cannot write the demo's files: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on from here; nothing finished is lost.", flush=True)
        return 130
    return 0


class Demo:
    """The steps of one demo folder.

    Args:
        folder: absolute path of the demo's folder.
        settings: budget and seed.
        device: torch device type, "cpu", "cuda" or "mps".
    """

    def __init__(self, folder: Path, settings: Settings, device: str) -> None:
        # Imported here: numpy, scipy and SimpleITK take a second, which `--help` should not.
        from nnunet_plugins.demo import phantom

        self.phantom = phantom
        self.folder, self.settings, self.device = folder, settings, device
        self.variables = command.environment(folder)
        self.workers = self.variables["nnUNet_def_n_proc"]
        self.raw = folder / "nnUNet_raw" / phantom.DATASET
        self.preprocessed = folder / "nnUNet_preprocessed"
        self.plans = self.preprocessed / phantom.DATASET / f"{PLANS}.json"
        self._number = 0

    def run(self) -> None:
        """Do the steps that are not done yet, then show the results."""
        start = time.monotonic()
        _say(
            f"Demo in {self.folder}\n"
            f"{self.settings.epochs} epochs of {self.settings.iterations} iterations per network on {self.device}; "
            f"phantom with seed {self.settings.seed}."
        )
        for name in _COMMANDS:
            command.find(f"nnUNetv2_{name}")
        steps = self.steps()
        for self._number, step in enumerate(steps, start=1):
            label = f"[{self._number}/{len(steps)}] {step.title}"
            if step.is_done():
                _say(f"{label}: done before")
                continue
            _say(f"{label} ...")
            begun = time.monotonic()
            step.do()
            _say(f"        done in {progress.duration(time.monotonic() - begun)}")
        self._report()
        _say(f"Total time of this run: {progress.duration(time.monotonic() - start)}")

    def steps(self) -> list[Step]:
        """Return all steps, in order."""
        dataset = self._step("make the phantom dataset", self.raw, self._make_dataset)
        planning = self._step("plan and preprocess", self.preprocessed, self._preprocess)
        training = [
            Step(f"train {name}", partial(self._is_trained, key), partial(self._train, key))
            for key, (name, _) in MODELS.items()
        ]
        prediction = [
            self._step(f"predict the held-out cases with {name}", self._predictions(key), partial(self._predict, key))
            for key, (name, _) in MODELS.items()
        ]
        ensemble = self._step("ensemble both networks", self._predictions(ENSEMBLE[0]), self._ensemble)
        names = {**{key: name for key, (name, _) in MODELS.items()}, ENSEMBLE[0]: "the ensemble"}
        evaluation = [
            self._step(f"evaluate {name}", self._summary(key), partial(self._evaluate, key))
            for key, name in names.items()
        ]
        return [dataset, planning, *training, *prediction, ensemble, *evaluation]

    def _step(self, title: str, output: Path, make: Callable[[Path], None]) -> Step:
        """Return the step that makes one file or folder, which is there either completely or not at all."""

        def do() -> None:
            unfinished = _unfinished(output)
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            make(unfinished)
            unfinished.replace(output)

        return Step(title, output.exists, do)

    def _trainer(self, key: str) -> str:
        return f"{MODELS[key][1]}_{self.settings.epochs}epochs_{self.settings.iterations}iterations"

    def _model(self, key: str) -> Path:
        """Return the folder of a trained model."""
        name = f"{self._trainer(key)}__{PLANS}__{CONFIGURATION}"
        return self.folder / "nnUNet_results" / self.phantom.DATASET / name / f"fold_{FOLD}"

    def _predictions(self, key: str) -> Path:
        return self.folder / "predictions" / key

    def _summary(self, key: str) -> Path:
        return self.folder / "evaluation" / f"{key}.json"

    def _make_dataset(self, output: Path) -> None:
        self.phantom.write_dataset(output, self.settings.seed)

    def _preprocess(self, output: Path) -> None:
        number = str(int(self.phantom.DATASET[7:10]))
        arguments = ["-d", number, "-c", CONFIGURATION, "-npfp", self.workers, "-np", self.workers, "--no_pbar"]
        variables = {**self.variables, "nnUNet_preprocessed": str(output)}
        self._call("plan_and_preprocess", *arguments, "--verify_dataset_integrity", variables=variables)

    def _is_trained(self, key: str) -> bool:
        fold = self._model(key)
        return zipfile.is_zipfile(fold / "checkpoint_final.pth") and _is_json(fold / "validation" / "summary.json")

    def _train(self, key: str) -> None:
        for name in ("final", "latest", "best"):
            checkpoint = self._model(key) / f"checkpoint_{name}.pth"
            # A checkpoint is a zip file, whose end is written last.
            if checkpoint.exists() and not zipfile.is_zipfile(checkpoint):
                _say(f"        {checkpoint.name} is incomplete; going on from the one before")
                checkpoint.unlink()
        follow = progress.Training(self.settings.epochs, [name for name in self.phantom.LABELS if name != "background"])
        # `--c` goes on from the newest checkpoint, and starts afresh if there is none.
        arguments = ["-tr", self._trainer(key), "-p", PLANS, "--c", "-device", self.device]
        self._call("train", self.phantom.DATASET, CONFIGURATION, FOLD, *arguments, follow=follow)

    def _predict(self, key: str, output: Path) -> None:
        data: list[str | Path] = ["-i", self.raw / "imagesTs", "-o", output, "-d", self.phantom.DATASET]
        model = ["-c", CONFIGURATION, "-p", PLANS, "-tr", self._trainer(key), "-f", FOLD]
        options = ["--save_probabilities", "--disable_progress_bar", "-npp", "1", "-nps", "1", "-device", self.device]
        self._call("predict", *data, *model, *options, follow=progress.prediction)

    def _ensemble(self, output: Path) -> None:
        self._call("ensemble", "-i", *(self._predictions(key) for key in MODELS), "-o", output, "-np", self.workers)

    def _evaluate(self, key: str, output: Path) -> None:
        files: list[str | Path] = ["-djfile", self.raw / "dataset.json", "-pfile", self.plans, "-o", output]
        self._call("evaluate_folder", self.raw / "labelsTs", self._predictions(key), *files, "-np", self.workers)

    def _call(
        self,
        name: str,
        *arguments: str | Path,
        follow: Callable[[str], str | None] = progress.nothing,
        variables: dict[str, str] | None = None,
    ) -> None:
        """Run one of nnU-Net's commands with a log of its own."""

        def show(line: str) -> None:
            if text := follow(line):
                _say(f"        {text}")

        log = self.folder / "logs" / f"{self._number:02d}_{name}.log"
        command.run([f"nnUNetv2_{name}", *arguments], variables or self.variables, log, show)

    def _report(self) -> None:
        from nnunet_plugins.demo import report

        results = [
            report.Result(name, self._summary(key), self._predictions(key), self._model(key) / "checkpoint_final.pth")
            for key, (name, _) in MODELS.items()
        ]
        results.append(report.Result(ENSEMBLE[1], self._summary(ENSEMBLE[0]), self._predictions(ENSEMBLE[0]), None))
        table = report.table(results, self.phantom.LABELS)
        table_file, picture_file = self.folder / "dice.txt", self.folder / "demo.png"
        _write_text(table_file, table + "\n")
        unfinished = _unfinished(picture_file)
        report.picture(results, self.raw, self.phantom.test_cases(), self.phantom.LABELS, unfinished)
        unfinished.replace(picture_file)
        caveat = "So short a training on a phantom shows that everything works, not which network is better."
        _say(
            f"\n{table}\n\n{caveat}\n\nTable:   {table_file}\nPicture: {picture_file}\nLogs:    {self.folder / 'logs'}"
        )


def _say(text: str) -> None:
    print(text, flush=True)


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return number


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _device(name: str) -> str:
    """Choose the device for "auto", and check that torch has the one that was asked for."""
    if name == "cpu":
        return name
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise DemoError(f"torch {torch.__version__} sees no {name} device here; use --device cpu or --device auto")
    return name


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let the signals that end a program act like Ctrl-C, so that the running command is ended as well."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP on purpose; outside the main thread Python allows no handlers.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_folder(folder: Path, settings: Settings) -> Iterator[None]:
    """Hold the demo's folder for these settings, alone.

    Raises:
        DemoError: if it cannot be used.
    """
    record = folder / "demo.json"
    foreign = folder.exists() and not folder.is_dir()
    if foreign or (folder.is_dir() and not record.exists() and any(folder.iterdir())):
        raise DemoError(f"{folder} exists and holds something other than this demo; choose another --output")
    if record.exists():
        _check_settings(record, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_text(record, json.dumps(asdict(settings), indent=2) + "\n")
    except OSError as error:
        raise DemoError(f"cannot write to {folder} ({error.strerror}); choose another --output") from None
    free = shutil.disk_usage(folder).free / 1e9
    if free < _SPACE:
        raise DemoError(
            f"{folder} has {free:.1f} GB free, the demo needs up to {_SPACE} GB; make room there or choose "
            "another --output"
        )
    with _lock(folder):
        yield


def _check_settings(record: Path, settings: Settings) -> None:
    if not _is_json(record):
        raise DemoError(f"{record} cannot be read; remove the folder {record.parent} or choose another --output")
    stored = json.loads(record.read_text())
    for name, value in asdict(settings).items():
        if stored.get(name) != value:
            raise DemoError(
                f"{record.parent} was made with --{name} {stored.get(name)}, not {value}; go on with "
                f"--{name} {stored.get(name)}, choose another --output or remove that folder"
            )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second demo out of the folder, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / "demo.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoError(f"another demo is running in {folder}; wait for it or choose another --output") from None
        yield


def _is_json(path: Path) -> bool:
    """Tell whether the file is there and was written to its end."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def _unfinished(path: Path) -> Path:
    """Return where to make something that is to be at `path` only when it is complete; the ending stays as it is."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def _write_text(path: Path, text: str) -> None:
    """Write a file that is there either completely or not at all."""
    unfinished = _unfinished(path)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
