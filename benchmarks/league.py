"""A league table: networks against the standard U-Net, in one benchmark that can be stopped and goes on.

    python benchmarks/league.py cpu league-cpu    the table of docs/results.md: Hippocampus, three folds by subject, 12
                                                  epochs of 50 iterations, no mirroring; seven hours on two cores
    python benchmarks/league.py gpu league-gpu    the Decathlon's datasets that are in nnUNet_raw, five folds, nnU-Net's
                                                  own plans and full budget; 60 trainings of each
    python benchmarks/league.py share league-gpu  a copy of the record to publish, league-gpu/to-share: packed, and
                                                  without this machine's places
    python benchmarks/league.py page league-cpu   the CPU's record, and docs/results.md of its report, into the docs

nnU-Net's three folders have to be set. Networks are added two at a time, the standard U-Net and FIRENet first and their
repeats last; after each of these steps the record and the report in the folder are whole. What fails stops nothing
else, and the exit code is 1; what is refused ends it with 2. The same command goes on, and without the models from the
last whole step: a new folder for the CPU's table begins with the record in docs/league. What else `nnunet-plugins
benchmark` takes can be added behind the folder, such as --workers 2, --gpus 4 or --cluster cluster.yaml.

Where a dataset's folder in nnUNet_raw has a table groups.csv, with the columns case and group, its folds keep groups
together, and the report is over groups. All others have nnU-Net's random folds.
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_plugins.arguments import whole
from nnunet_plugins.benchmark.command import FOLDERS, find
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, lock_holder, read_json, whole_file, write_text
from nnunet_plugins.planning.groups import GROUPS
from nnunet_plugins.report.record import read_record
from nnunet_plugins.rows import without_seed

NETWORKS = ("", "FIRENet", "FIRENetNoFabric", "SegResNet", "AutofocusUNet", "ASPP3DUNet", "UNet3D", "MedNeXtS")
"""As they stand in the names of trainers."""
REPEATED = ("", "FIRENet")
SEEDS = 3
BUDGET = "_12epochs_50iterations_NoMirroring"
"""On a CPU the eight mirrored passes over every tile of the validation would take as long as the training."""
DATASET = "Dataset004_Hippocampus"
PATCH, BATCH = [32, 40, 32], 2
PLANS = "nnUNetPlans_small"
PLAN = ("nnUNetv2_extract_fingerprint", "nnUNetv2_plan_experiment")
TASKS = "BrainTumour Heart Liver Hippocampus Prostate Lung Pancreas HepaticVessel Spleen Colon"
DECATHLON = [f"Dataset{number:03}_{name}" for number, name in enumerate(TASKS.split(), 1)]
"""As nnUNetv2_convert_MSD_dataset names them."""
FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes of a benchmark: a task failed; it cannot begin or go on; it was interrupted."""
SHARED = "to-share"
DOCS = Path(__file__).parents[1] / "docs"
COMMITTED = DOCS / "league" / "record"
BLOCK = re.compile(r"(?<=<!-- report: )([^>]*)( -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
"""What a page has of a report: the text below one of its headings."""
CODE = re.compile(r'"/[^"]*/(?=(?:nnunet_plugins|nnunetv2)/)')
"""The place of a package on the machine that made a record."""


def steps(seeds: int = SEEDS) -> list[list[str]]:
    """Return what is asked for in each step: the networks so far, each as often as it is to be trained."""
    firsts = [list(NETWORKS[at : at + 2]) for at in range(0, len(NETWORKS), 2)]
    return list(accumulate([*firsts, *[list(REPEATED)] * (seeds - 1)]))


def options(networks: Sequence[str], budget: str) -> list[str]:
    """Return a benchmark's options for networks that are named as often as they are to be trained."""
    trainers = {f"nnUNetTrainer{name}{budget}": networks.count(name) for name in dict.fromkeys(networks)}
    several = [f"{trainer}:{number}" for trainer, number in trainers.items() if number > 1]
    return ["-tr", *trainers, "--repeats", "1", *several]


def recorded(record: Path, budget: str, datasets: Collection[str]) -> list[str]:
    """Name those of the networks that a record of this league has, each as often as it was trained."""
    if not record.is_dir():
        return []
    # Where an end came while it was packed, both are there; what is not packed is the newer one.
    file = next((record / name for name in ("runs.csv", "runs.csv.gz") if (record / name).is_file()), None)
    if file is None:
        raise InputError(f"{record} has no runs.csv, so it is not whole: remove it, or give another folder")
    try:
        runs = pd.read_csv(file, usecols=["dataset", "trainer", "seed"])
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): remove its folder, or give another one") from None
    ours = {f"nnUNetTrainer{name}{budget}": name for name in NETWORKS}
    trained = runs[runs["dataset"].isin(datasets)][["trainer", "seed"]].drop_duplicates()["trainer"]
    known = [ours[trainer] for trainer in map(without_seed, trained) if trainer in ours]
    if len(runs) and not known:
        raise InputError(f"{record} is that of another comparison: give another folder")
    if gone := sorted({*runs["dataset"]} - {*datasets}):
        raise InputError(f"{record} has results of {gone[0]}, which would be lost: it is not in nnUNet_raw")
    return known


def first_step(all_steps: Sequence[Sequence[str]], known: Sequence[str]) -> int:
    """Return the number of the step that goes on from a record, which has to ask for everything known from it."""
    for at, step in enumerate(all_steps):
        if all(step.count(name) >= known.count(name) for name in known):
            return at
    name, seeds = Counter(known).most_common(1)[0]
    remedy = f"give --seeds {seeds}, or another folder" if name in REPEATED else "give another folder"
    raise InputError(f"the record has {seeds} trainings of nnUNetTrainer{name}, more than are asked for: {remedy}")


def write_plans(preprocessed: Path) -> None:
    """Write the plans with a patch for a CPU, if they are not there."""
    file = preprocessed / DATASET / f"{PLANS}.json"
    if file.is_file():
        return
    plans = json.loads(file.with_name("nnUNetPlans.json").read_text())
    configuration = {**plans["configurations"]["3d_fullres"], "patch_size": PATCH, "batch_size": BATCH}
    plans |= {"plans_name": PLANS, "configurations": {"3d_fullres": configuration}}
    write_text(file, json.dumps(plans, indent=4))


def pack(record: Path) -> None:
    """Pack the tables, which is what makes a record large; at every moment each is whole, in one form or both."""
    for file in record.glob("*.csv"):
        with whole_file(file.with_name(f"{file.name}.gz")) as part:
            part.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        file.unlink()


def below(heading: str, report: str) -> str:
    """Return the text below a heading of a report; of a whole comparison, what came out and what to keep in mind."""
    found = re.search(rf"^(#+) {re.escape(heading)}[^\n]*\n\n(.*?)(?=\n\n#|\Z)", report, re.DOTALL | re.MULTILINE)
    if found is None:
        raise InputError(f"the report has nothing below {heading}")
    return found[2].strip()


def without_places(record: Path) -> None:
    """Name files in a record that is to be shared by their folders' names, as markers do, not by this machine's.

    What this package and nnU-Net are made of is in the folder `environment`.
    """
    about, provenance = record / "about.json", record / "provenance.json"
    before = about.read_text(encoding="utf-8")
    content = json.loads(before)
    roots = {}
    for files in content["images"].values():
        roots |= {str(Path(place).parents[1]): "output" for place in files["predictions"].values()}
        roots[str(Path(files["images"]).parents[1])] = "raw"

    def without(place: str) -> str:
        """Name a place by what it lies in; others, such as a cluster's file, by their own name."""
        for root, name in sorted(roots.items(), key=lambda one: len(one[0]), reverse=True):
            if place == root or place.startswith((f"{root}/", f"{root}\\")):
                return name + place[len(root) :].replace("\\", "/")
        return Path(place).name if Path(place).is_absolute() else place

    def walk(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: walk(one) for name, one in part.items()}
        return (
            [walk(one) for one in part] if isinstance(part, list) else without(part) if isinstance(part, str) else part
        )

    content["images"] = walk(content["images"])
    if "command" in content:
        content["command"] = shlex.join(map(without, shlex.split(content["command"])))
    text = json.dumps(content, indent=2)
    about.write_text(text, encoding="utf-8")
    made_of = CODE.sub('"environment/', provenance.read_text(encoding="utf-8"))
    # The record's own marker holds the file as it was; if it did not, it does not now.
    old, new = (hashlib.sha256(one.encode()).hexdigest()[:16] for one in (before, text))
    provenance.write_text(made_of.replace(f'"{old}"', f'"{new}"'), encoding="utf-8")


def require_whole(record: Path) -> None:
    """Refuse a record that cannot be read, or is of a benchmark that is not done."""
    found = read_record(record)
    read_json(record / "provenance.json")
    if "images" not in found.about:
        raise InputError(f"{record / 'about.json'} does not say where the images lie")
    if not found.about.get("complete"):
        failed = ", ".join(failure["task"] for failure in found.failures) or "not all was trained"
        raise InputError(f"{record} is not complete: {failed}; give the command that makes it again")


@contextlib.contextmanager
def left_alone(folder: Path) -> Iterator[None]:
    """Keep benchmarks from writing in a folder, which none may be doing."""
    lock = folder / "benchmark.lock"
    with hold_lock(lock) if lock.is_file() else contextlib.nullcontext(True) as held:
        if not held:
            raise InputError(f"a benchmark is running in {folder} ({lock_holder(lock)}); wait for it")
        yield


def copy_to_share(folder: Path, to: Path) -> None:
    """Copy a whole record to where it can be published from."""
    with left_alone(folder):
        require_whole(folder / "record")
        shutil.copytree(folder / "record", to)
    pack(to)
    without_places(to)


def share(folder: Path) -> int:
    """Write a copy of the record that can be published, in place of an earlier one."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        copy_to_share(folder, Path(name, SHARED))
        shutil.rmtree(folder / SHARED, ignore_errors=True)
        Path(name, SHARED).rename(folder / SHARED)
    size = sum(file.stat().st_size for file in (folder / SHARED).iterdir())
    print(f"{folder / SHARED}: {size / 1e6:.1f} MB")
    return 0


def write_page(folder: Path, docs: Path) -> int:
    """Put the record into the docs, and what the page of results has of its report, when all of it is made."""
    committed, page = docs / "league" / "record", docs / "results.md"
    require_whole(folder / "record")
    known, before = (Counter(recorded(one, BUDGET, [DATASET])) for one in (folder / "record", committed))
    if missing := before - known:
        raise InputError(f"{folder / 'record'} lacks trainings of nnUNetTrainer{next(iter(missing))} that {page} has")
    committed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=committed.parent) as name:
        made = Path(name)
        copy_to_share(folder, made / "record")
        require("nnunet-plugins", "report", made)
        report = (made / "report" / "report.md").read_text(encoding="utf-8")
        text = BLOCK.sub(lambda block: block[1] + block[2] + below(block[1], report), page.read_text(encoding="utf-8"))
        (made / page.name).write_text(text, encoding="utf-8")
        if committed.exists():
            committed.rename(made / "before")
        (made / "record").rename(committed)
        (made / page.name).replace(page)
    return 0


def run(*command: object) -> int:
    """Run a command to its own end, which signals to this program ask it for; return its exit code."""
    came: list[int] = []

    def pass_on(number: int, _: object) -> None:
        came.append(number)
        child.send_signal(number)

    # In a session of its own, so that Ctrl-C comes once, and not from the terminal as well.
    child = subprocess.Popen([find(str(command[0])), *map(str, command[1:])], start_new_session=True)
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What nohup has it ignore stays ignored.
    before = {one: signal.signal(one, pass_on) for one in numbers if signal.getsignal(one) != signal.SIG_IGN}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and code in (0, FAILED):  # it was at its end already
        return INTERRUPTED
    return code if code >= 0 else 128 - code  # as shells have it


def require(*command: object) -> None:
    """Run a command to its end; if it fails, or is interrupted, so does this program."""
    if code := run(*command):
        raise SystemExit(code)


def compete(arguments: argparse.Namespace, more: Sequence[str]) -> int:
    """Run the league's steps from where its record ends; returns the exit code of the last benchmark."""
    if missing := [name for name in FOLDERS if name not in os.environ]:
        raise InputError(f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set")
    raw, preprocessed, _ = (Path(os.environ[name]) for name in FOLDERS)
    record, on_cpu = arguments.folder / "record", arguments.machine == "cpu"
    budget, datasets = (BUDGET, [DATASET]) if on_cpu else ("", [name for name in DECATHLON if (raw / name).is_dir()])
    if not datasets:
        raise InputError(f"{raw} has none of the Decathlon's datasets; nnUNetv2_convert_MSD_dataset converts them")
    grouped = on_cpu or any((raw / dataset / GROUPS).is_file() for dataset in datasets)
    common = ["-c", "3d_fullres", "--without-ensembles", "-o", arguments.folder, "-d", *datasets]
    common += ["--groups"] * grouped + (["-p", PLANS, "--folds", 3, "--device", "cpu"] if on_cpu else ["--folds", 5])
    before: list[list[object]] = []
    if on_cpu and not (preprocessed / DATASET / f"{PLANS}.json").is_file():
        plans = [] if (preprocessed / DATASET / "nnUNetPlans.json").is_file() else PLAN
        before = [[command, "-d", int(DATASET[7:10])] for command in plans]
    begins = on_cpu and COMMITTED.is_dir() and not record.exists()
    all_steps = steps(arguments.seeds)
    first = first_step(all_steps, recorded(COMMITTED if begins else record, budget, datasets))
    benchmarks = [["nnunet-plugins", "benchmark", *common, *options(step, budget), *more] for step in all_steps[first:]]
    if arguments.dry_run:
        print("\n".join(shlex.join(map(str, command)) for command in [*before, *benchmarks]))
        return 0
    for command in before:
        require(*command)
    if on_cpu:
        write_plans(preprocessed)
    if begins:
        part = record.with_name("record.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(COMMITTED, part)
        part.rename(record)
    for command in benchmarks:
        code = run(*command)
        if code not in (0, FAILED):
            break
    return code  # of the last one, which asks for all that those before have asked for


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machine", metavar="{cpu,gpu,share,page}", choices=("cpu", "gpu", "share", "page"))
    parser.add_argument("folder", type=Path, help="for all that is made but models")
    parser.add_argument(
        "--seeds", type=whole, default=SEEDS, help="of the standard U-Net and of FIRENet; default: %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    arguments, more = parser.parse_known_args(argv)
    if arguments.machine in ("share", "page") and (more or arguments.dry_run):
        parser.error(f"{arguments.machine} takes a folder alone")
    try:
        if arguments.machine == "share":
            return share(arguments.folder)
        return write_page(arguments.folder, DOCS) if arguments.machine == "page" else compete(arguments, more)
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
