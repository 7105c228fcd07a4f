"""Bad inputs through every command: is each one answered with a message, in time, and are all files as they were?

    python benchmarks/bad_inputs.py
    python benchmarks/bad_inputs.py --only 17 --show

A small world (raw and preprocessed dataset, plans, splits, groups, checkpoint, predictions, a benchmark's record, a
cluster) is made once. Each input spoils one thing in it, or the options, always in the same way for the same number,
runs one command in this process, and puts the thing back. A violation is an error that leaves the command, another
exit code than 0, 1 and 2, a 1 or 2 without a message, more than a minute, a file that is another one afterwards, a
half-written file that is left, or silence about a file that is unsound or not used. The exit code is 1 if there is one.

A spoilt thing need not be bad: the plans may just have another batch size. Such inputs end with 0.
"""

import argparse
import contextlib
import faulthandler
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_inputs_world import (
    NASTY,
    World,
    add_unused,
    any_of,
    copy_test_image,
    cut_in_other_format,
    make_unsound,
    make_world,
    spoil_checkpoint,
    spoil_cluster,
    spoil_image,
    spoil_json,
    spoil_table,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from tqdm import tqdm

from nnunet_plugins.cli import main as command_line
from nnunet_plugins.models.cases import find_cases
from nnunet_plugins.models.images import ImageError, read_image
from nnunet_plugins.models.settings import Settings

SECONDS, MEMORY = 60, 16 * 2**30


class HangError(BaseException):
    """A command took too long; no error that it may catch."""


@dataclass(frozen=True)
class Kind:
    """Inputs of one kind: `prepare` spoils something, and returns the arguments and what the answer has to name."""

    command: str
    what: str
    prepare: Callable[[World, random.Random], tuple[list[str], str]]
    replaces: tuple[str, ...] = ()


# The arguments of each command, and which of them are spoilt.

OPTIONS: dict[str, list[str]] = {
    "list": ["list", "--json"],
    "doctor": ["doctor", "-d", "1", "--groups", "{root}/groups.csv"],
    "doctor of a training": ["doctor", "-d", "1", "-tr", "nnUNetTrainer", "-c", "3d_fullres", "--gpu-memory", "24"],
    "plan": ["plan", "-d", "1", "-tr", "nnUNetTrainer", "--gpu-memory", "0.05", "-c", "3d_fullres", "--name", "made"],
    "profile": ["profile", "-d", "1", "-tr", "nnUNetTrainer", "-c", "3d_fullres", "-p", "nnUNetPlans"],
    "split": ["split", "-d", "1", "--groups", "{root}/groups.csv", "--folds", "2"],
    "split --overwrite": ["split", "-d", "1", "--groups", "{root}/groups.csv", "--folds", "2", "--overwrite"],
    "split --leakage-check": ["split", "-d", "1", "--groups", "{root}/groups.csv", "--leakage-check"],
    "warm-start": ["warm-start", "{root}/checkpoint.pth", "-tr", "nnUNetTrainerASPP3DUNet", "-o", "{root}/start.pth"],
    "evaluate": ["evaluate", "{root}/predicted", "{raw}/labelsTr", "-o", "{root}/metrics.csv", "-np", "1"],
    "report": ["report", "{root}/benchmark"],
    # What a submission does before its network: find and read all images.
    "infer": ["infer", "{raw}/imagesTr"],
    "benchmark --dry-run": [
        *("benchmark", "--dry-run", "-d", "1", "-tr", "nnUNetTrainer", "nnUNetTrainerFIRENet", "--device", "cpu"),
        *("-f", "0", "--groups", "{root}/groups.csv", "-o", "{root}/new"),
    ],
    "benchmark --cluster": [
        *("benchmark", "--dry-run", "-d", "1", "-tr", "nnUNetTrainer", "-f", "0", "-o", "{root}/new"),
        *("--cluster", "{root}/cluster.yaml"),
    ],
    "export-submission": [
        *("export-submission", "-d", "1", "-tr", "nnUNetTrainer", "-f", "0", "--no-wheels", "--platform", "mlcube"),
        *("--input-suffix", "mri", "ct", "-o", "{root}/submission"),
    ],
    # Another number of epochs than that of the demo that is there: without a mistake it would be refused as well.
    "demo": ["demo", "--output", "{root}/demo", "--device", "cpu", "--epochs", "5"],
}


def arguments(world: World, command: str) -> list[str]:
    return [part.format(root=world.root, raw=world.raw) for part in OPTIONS[command]]


def spoiling(command: str, what: str, change: Callable[[World, random.Random], str | None], *replaces: str) -> Kind:
    def prepare(world: World, draw: random.Random) -> tuple[list[str], str]:
        named = change(world, draw) or ""
        return arguments(world, command), named

    return Kind(command, what, prepare, replaces)


def with_bad_options(command: str, *replaces: str) -> Kind:
    def prepare(world: World, draw: random.Random) -> tuple[list[str], str]:
        found = arguments(world, command)
        for _ in range(draw.randint(1, 2)):
            # Not the command itself, nor what keeps a benchmark or a demo from running.
            kept = [n for n, part in enumerate(found) if part in ("--dry-run", "--no-wheels", "--epochs", "--output")]
            kept += [n + 1 for n in kept if found[n] in ("--epochs", "--output")]
            place = draw.choice([n for n in range(1, len(found)) if n not in kept] or [len(found)])
            if place == len(found):
                found.append("")
            way = draw.random()
            if way < 0.7:
                found[place] = draw.choice(NASTY)
            elif way < 0.85:
                del found[place]
            else:
                found.insert(place, draw.choice(NASTY))
        return found, ""

    return Kind(command, "options", prepare, replaces)


PLANS, SPLITS = "nnUNetPlans.json", "splits_final.json"
KINDS = [
    spoiling("doctor", "dataset.json", lambda w, d: spoil_json(w.raw / "dataset.json", d)),
    spoiling("plan", "plans", lambda w, d: spoil_json(w.preprocessed / PLANS, d)),
    spoiling("split", "groups", lambda w, d: spoil_table(w.root / "groups.csv", d)),
    spoiling("evaluate", "prediction", lambda w, d: spoil_image(any_of(w.root / "predicted", d), d)),
    spoiling("report", "results.csv", lambda w, d: spoil_table(w.root / "benchmark" / "record" / "results.csv", d)),
    spoiling("warm-start", "checkpoint", lambda w, d: spoil_checkpoint(w.root / "checkpoint.pth", d)),
    spoiling("benchmark --dry-run", "plans", lambda w, d: spoil_json(w.preprocessed / PLANS, d)),
    spoiling("doctor", "image", lambda w, d: spoil_image(any_of(w.raw / "imagesTr", d), d)),
    spoiling("profile", "plans", lambda w, d: spoil_json(w.preprocessed / PLANS, d)),
    with_bad_options("list"),
    spoiling("doctor", "segmentation", lambda w, d: spoil_image(any_of(w.raw / "labelsTr", d), d)),
    with_bad_options("plan"),
    spoiling("split --leakage-check", "splits", lambda w, d: spoil_json(w.preprocessed / SPLITS, d)),
    spoiling("evaluate", "dataset.json", lambda w, d: spoil_json(w.root / "predicted" / "dataset.json", d)),
    spoiling("report", "runs, curves", lambda w, d: spoil_table(any_of(w.root / "benchmark" / "record", d, ".csv"), d)),
    with_bad_options("warm-start"),
    spoiling("benchmark --dry-run", "splits", lambda w, d: spoil_json(w.preprocessed / SPLITS, d)),
    spoiling("doctor", "splits", lambda w, d: spoil_json(w.preprocessed / SPLITS, d)),
    with_bad_options("profile"),
    with_bad_options("split"),
    spoiling("doctor", "groups", lambda w, d: spoil_table(w.root / "groups.csv", d)),
    spoiling("evaluate", "truth", lambda w, d: spoil_image(any_of(w.raw / "labelsTr", d), d)),
    spoiling("report", "JSON files", lambda w, d: spoil_json(any_of(w.root / "benchmark" / "record", d, ".json"), d)),
    spoiling("benchmark --cluster", "cluster", lambda w, d: spoil_cluster(w.root / "cluster.yaml", d)),
    spoiling("doctor of a training", "plans", lambda w, d: spoil_json(w.preprocessed / PLANS, d)),
    with_bad_options("evaluate"),
    spoiling("split --overwrite", "splits", lambda w, d: spoil_json(w.preprocessed / SPLITS, d), SPLITS),
    with_bad_options("benchmark --dry-run"),
    spoiling("doctor of a training", "dataset.json", lambda w, d: spoil_json(w.preprocessed / "dataset.json", d)),
    with_bad_options("doctor of a training"),
    spoiling("plan", "dataset.json", lambda w, d: spoil_json(w.preprocessed / "dataset.json", d)),
    spoiling("demo", "demo.json", lambda w, d: spoil_json(w.root / "demo" / "demo.json", d)),
    with_bad_options("demo"),
    spoiling("export-submission", "plans", lambda w, d: spoil_json(w.model / "plans.json", d)),
    spoiling("export-submission", "dataset.json", lambda w, d: spoil_json(w.model / "dataset.json", d)),
    spoiling(
        "export-submission", "checkpoint", lambda w, d: spoil_checkpoint(w.model / "fold_0" / "checkpoint_final.pth", d)
    ),
    with_bad_options("export-submission"),
    spoiling("doctor", "unsound image", lambda w, d: make_unsound(any_of(w.raw / "imagesTr", d), d)),
    spoiling("doctor", "unsound label", lambda w, d: make_unsound(any_of(w.raw / "labelsTr", d), d, labels=True)),
    spoiling("doctor", "unused file", lambda w, d: add_unused(w.raw / d.choice(["imagesTr", "labelsTr"]), d)),
    spoiling("doctor", "test image", lambda w, d: make_unsound(copy_test_image(w, d), d)),
    spoiling("evaluate", "unsound label", lambda w, d: make_unsound(any_of(w.root / "predicted", d), d, labels=True)),
    spoiling("evaluate", "unsound truth", lambda w, d: make_unsound(any_of(w.raw / "labelsTr", d), d, labels=True)),
    spoiling("evaluate", "unused file", lambda w, d: add_unused(w.root / "predicted", d)),
    spoiling("evaluate", "unused truth", lambda w, d: add_unused(w.raw / "labelsTr", d)),
    spoiling("infer", "unsound image", lambda w, d: make_unsound(any_of(w.raw / "imagesTr", d), d)),
    spoiling("infer", "other format", lambda w, d: cut_in_other_format(any_of(w.raw / "imagesTr", d), d)),
    spoiling("split --leakage-check", "unused truth", lambda w, d: add_unused(w.preprocessed / "gt_segmentations", d)),
    spoiling("infer", "unused file", lambda w, d: add_unused(w.raw / "imagesTr", d)),
]


@dataclass(frozen=True)
class Outcome:
    """What came of an input: the exit code, None if there was none, what was said, and what must not have been."""

    kind: Kind
    code: int | None
    said: str
    violations: tuple[str, ...]


def give(world: World, number: int) -> Outcome:
    """Give one input to its command, and put back what it spoilt."""
    kind, draw = KINDS[number % len(KINDS)], random.Random(number)
    contents = {path: path.read_bytes() if path.is_file() else None for path in world.root.rglob("*")}
    told, named = kind.prepare(world, draw)
    before = world.files()
    code, said, violations = run(told)
    if named not in said:
        violations.append(f"nothing is said of {named}")
    after = world.files()
    violations += [
        f"{path.relative_to(world.root)} is another file afterwards"
        for path, content in before.items()
        if after.get(path) != content and path.name not in kind.replaces
    ]
    violations += [f"{path.name} is left" for path in set(after) - set(before) if ".partial" in path.name]
    restore(world.root, contents)
    return Outcome(kind, code, f"{' '.join(told)[:300]}\n{said}", tuple(violations))


def run(told: list[str]) -> tuple[int | None, str, list[str]]:
    """Run a command; returns its exit code, what it printed, and violations."""
    said, violations = io.StringIO(), []
    code: int | None = None

    def stop(*_: Any) -> None:
        raise HangError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # for what does not come back to Python
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = read_inputs(Path(told[1])) if told[0] == "infer" else command_line(told)
    except SystemExit as end:  # argparse's
        code = end.code if isinstance(end.code, int) else 1
    except HangError:
        violations.append(f"took more than {SECONDS} s")
    except BaseException as error:
        violations.append(f"{type(error).__name__} leaves the command: {str(error)[:200]}")
        said.write(traceback.format_exc())
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    text = said.getvalue()
    if code is not None and code not in (0, 1, 2):
        violations.append(f"exit code {code}")
    if code and not text.strip():
        violations.append("no message")
    if code is not None and "Traceback" in text:
        violations.append("a traceback is shown")
    return code, text, violations


def read_inputs(folder: Path) -> int:
    """Find and read the images of a folder as a submission does; returns 1 if one is left out."""
    settings, failed = Settings("world", (), ("MRI", "CT"), ending=".nii.gz"), 0
    for case in find_cases(settings, folder, folder.with_name("out"), print):
        try:
            read_image(case, SimpleITKIO(), settings.ending, settings.channels, print)
        except ImageError as error:
            print(f"{case.name}: {error}")
            failed = 1
    return failed


def restore(root: Path, contents: dict[Path, bytes | None]) -> None:
    """Put all files and folders (None) back, and remove those that are new."""
    for path in sorted(root.rglob("*"), reverse=True):
        is_folder = path.is_dir()
        if path not in contents or (contents[path] is None) != is_folder:
            path.rmdir() if is_folder and not path.is_symlink() else path.unlink()
    for path, content in sorted(contents.items()):
        if content is None:
            path.mkdir(exist_ok=True)
        elif not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def give_all(numbers: Sequence[int]) -> dict[int, Outcome]:
    """Give inputs in a new world each time; memory is limited, as a spoilt header may ask for any."""
    before = Path.cwd()
    variables, limits = dict(os.environ), resource.getrlimit(resource.RLIMIT_AS)
    with tempfile.TemporaryDirectory() as folder:
        try:
            world = make_world(Path(folder).resolve() / "world")
            os.chdir(world.root / "here")  # for what options make a relative path
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
            return {number: give(world, number) for number in tqdm(numbers, unit="input", disable=None)}
        finally:
            os.chdir(before)
            resource.setrlimit(resource.RLIMIT_AS, limits)
            os.environ.clear()
            os.environ.update(variables)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=600, help="inputs, default: %(default)s")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="only these")
    parser.add_argument("--show", action="store_true", help="print what the commands were told and said")
    options = parser.parse_args(argv)
    start = time.monotonic()
    outcomes = give_all(options.only or range(options.number))
    if options.show:
        for number, outcome in outcomes.items():
            print(f"--- {number}: {outcome.kind.what}, exit code {outcome.code}\n{outcome.said}")
    print(f"{'command':<22}{'what is bad':<16}{'inputs':>7}{'exit 0':>8}{'1':>5}{'2':>5}{'violations':>12}")
    for kind in sorted(KINDS, key=lambda kind: kind.command):
        found = [outcome for outcome in outcomes.values() if outcome.kind is kind]
        codes = Counter(outcome.code for outcome in found)
        bad = sum(bool(outcome.violations) for outcome in found)
        print(f"{kind.command:<22}{kind.what:<16}{len(found):>7}{codes[0]:>8}{codes[1]:>5}{codes[2]:>5}{bad:>12}")
    wrong = {number: outcome for number, outcome in outcomes.items() if outcome.violations}
    for number, outcome in wrong.items():
        print(f"{number}, {outcome.kind.command}, {outcome.kind.what}: {'; '.join(outcome.violations)}")
    print(f"{len(outcomes)} inputs, {len(wrong)} with violations, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
