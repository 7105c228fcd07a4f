"""A league table: networks against the standard U-Net, in one benchmark that can be stopped and goes on.

    python benchmarks/league.py cpu league-cpu    the table of docs/results.md: Hippocampus, three folds by subject, 12
                                                  epochs of 50 iterations, no mirroring; seven hours on two cores
    python benchmarks/league.py gpu league-gpu    the Decathlon's datasets that are in nnUNet_raw, five folds, nnU-Net's
                                                  own plans and full budget
    python benchmarks/league.py page league-cpu   the CPU's record, and docs/results.md of its report, into the docs

nnU-Net's three folders have to be set. Networks are added two at a time, the standard U-Net and FIRENet first and their
repeats last; after each step the record and the report in the folder are whole, and the record is packed to be shared.
What fails stops nothing else, and the exit code is 1. The same command goes on, also without the models: a new folder
for the CPU's table begins with the record in docs/league. What else `nnunet-plugins benchmark` takes can be added, such
as --workers 2, --gpus 4 or --cluster cluster.yaml.

Where a dataset's folder in nnUNet_raw has a table groups.csv, with the columns case and group, `nnunet-plugins split`
makes folds that keep groups together, and refuses present ones that do not. All others have nnU-Net's random folds.
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
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd

from nnunet_plugins.arguments import whole
from nnunet_plugins.benchmark.command import FOLDERS, find
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, lock_holder, read_json
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
FAILED, REFUSED, INTERRUPTED = 1, 2, 130
"""Exit codes of a benchmark: a task failed; nothing was done; it was interrupted."""
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
    # Where an end came while it was packed, both are there; what is not packed is the newer one.
    file = next((record / name for name in ("runs.csv", "runs.csv.gz") if (record / name).is_file()), None)
    if file is None:
        return []
    ours = {f"nnUNetTrainer{name}{budget}": name for name in NETWORKS}
    runs = pd.read_csv(file)
    trained = runs[runs["dataset"].isin(datasets)][["trainer", "seed"]].drop_duplicates()["trainer"]
    known = [ours[trainer] for trainer in map(without_seed, trained) if trainer in ours]
    if len(runs) and not known:
        raise SystemExit(f"{record} is that of another comparison: give another folder")
    return known


def first_step(all_steps: Sequence[Sequence[str]], known: Sequence[str]) -> int:
    """Return the number of the step that goes on from a record, which has to ask for everything known from it."""
    for at, step in enumerate(all_steps):
        if all(step.count(name) >= known.count(name) for name in known):
            return at
    seeds = max(known.count(name) for name in known)
    raise SystemExit(f"the record has {seeds} trainings of one network: give --seeds {seeds}, or another folder")


def write_plans(preprocessed: Path) -> None:
    """Write the plans with a patch for a CPU, if they are not there."""
    file = preprocessed / DATASET / f"{PLANS}.json"
    if file.is_file():
        return
    plans = json.loads(file.with_name("nnUNetPlans.json").read_text())
    configuration = {**plans["configurations"]["3d_fullres"], "patch_size": PATCH, "batch_size": BATCH}
    plans |= {"plans_name": PLANS, "configurations": {"3d_fullres": configuration}}
    file.write_text(json.dumps(plans, indent=4))


def pack(record: Path) -> None:
    """Pack the tables, which is what makes a record large; at every moment each is whole, in one form or both."""
    for file in record.glob("*.csv"):
        packed, part = file.with_name(f"{file.name}.gz"), file.with_name(f"{file.name}.part")
        part.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        part.replace(packed)
        file.unlink()


def below(heading: str, report: str) -> str:
    """Return the text below a heading of a report; of a whole comparison, what came out and what to keep in mind."""
    found = re.search(rf"^(#+) {re.escape(heading)}[^\n]*\n\n(.*?)(?=\n\n#|\Z)", report, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"the report has nothing below {heading}")
    return found[2].strip()


def without_places(record: Path) -> None:
    """Name files in a record that is to be shared by their folders' names, as markers do, not by this machine's.

    What this package and nnU-Net are made of is in the folder `environment`.
    """
    about, provenance = record / "about.json", record / "provenance.json"
    text = before = about.read_text(encoding="utf-8")
    for files in json.loads(before)["images"].values():
        roots = {str(Path(place).parents[1]): "output" for place in files["predictions"].values()}
        for root, name in {**roots, str(Path(files["images"]).parents[1]): "raw"}.items():
            text = text.replace(root, name)
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
        raise SystemExit(f"{record / 'about.json'} does not say where the images lie")
    if not found.about.get("complete"):
        failed = ", ".join(failure["task"] for failure in found.failures) or "not all was trained"
        raise SystemExit(f"{record} is not complete: {failed}; give the command that makes it again")


@contextlib.contextmanager
def left_alone(folder: Path) -> Iterator[None]:
    """Keep benchmarks from writing in a folder, which none may be doing."""
    lock = folder / "benchmark.lock"
    with hold_lock(lock) if lock.is_file() else contextlib.nullcontext(True) as held:
        if not held:
            raise SystemExit(f"a benchmark is running in {folder} ({lock_holder(lock)}); wait for it")
        yield


def write_page(folder: Path, docs: Path) -> int:
    """Put the record into the docs, and what the page of results has of its report, when all of it is made."""
    committed, page = docs / "league" / "record", docs / "results.md"
    committed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=committed.parent) as name:
        made = Path(name)
        with left_alone(folder):
            require_whole(folder / "record")
            shutil.copytree(folder / "record", made / "record")
        pack(made / "record")
        without_places(made / "record")
        require("nnunet-plugins", "report", made)
        report = (made / "report" / "report.md").read_text(encoding="utf-8")
        before = page.read_text(encoding="utf-8")
        text = BLOCK.sub(lambda block: block[1] + block[2] + below(block[1], report), before)
        if committed.exists():
            committed.rename(made / "before")
        (made / "record").rename(committed)
        page.write_text(text, encoding="utf-8")
    return 0


def run(*command: object) -> int:
    """Run a command to its own end, also after Ctrl-C, which reaches it as well, or SIGTERM; return its exit code."""
    came: list[int] = []

    def wait_for_it(number: int, _: object) -> None:
        came.append(number)
        if number == signal.SIGTERM:
            child.terminate()

    child = subprocess.Popen([find(str(command[0])), *map(str, command[1:])])
    before = {number: signal.signal(number, wait_for_it) for number in (signal.SIGINT, signal.SIGTERM)}
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


def decathlon(raw: Path) -> list[str]:
    """Return the Decathlon's datasets that are there, Dataset001 to Dataset010."""
    found = [folder.name for number in range(1, 11) for folder in raw.glob(f"Dataset{number:03}_*")]
    if not found:
        raise SystemExit(f"{raw} has none of the Decathlon's datasets; nnUNetv2_convert_MSD_dataset converts them")
    return found


def preparations(datasets: Sequence[str], raw: Path, preprocessed: Path, *, on_cpu: bool) -> Iterator[list[object]]:
    """Yield what comes before the benchmark: plans, of which those for a CPU are made, and folds that keep groups."""
    for dataset in datasets:
        folder, groups = preprocessed / dataset, raw / dataset / "groups.csv"
        if not groups.is_file():
            if on_cpu:
                raise SystemExit(f"{groups} is missing: each case's subject, in the columns case and group")
            continue
        if not all((folder / name).exists() for name in ("nnUNetPlans.json", "gt_segmentations")):
            options = "-d", int(dataset[7:10]), "-c", "3d_fullres", "--verify_dataset_integrity"
            yield ["nnUNetv2_plan_and_preprocess", *options]
        if not on_cpu:  # where the benchmark has a single dataset, and takes its groups
            check = ["--leakage-check"] if (folder / "splits_final.json").is_file() else []
            yield ["nnunet-plugins", "split", "-d", dataset, "--groups", groups, *check]


def compete(arguments: argparse.Namespace, more: Sequence[str]) -> int:
    """Run the league's steps from where its record ends; returns the exit code of the last benchmark."""
    if missing := [name for name in FOLDERS if name not in os.environ]:
        raise SystemExit(f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set")
    raw, preprocessed, _ = (Path(os.environ[name]) for name in FOLDERS)
    record, on_cpu = arguments.folder / "record", arguments.machine == "cpu"
    budget, datasets = (BUDGET, [DATASET]) if on_cpu else ("", decathlon(raw))
    common = ["-c", "3d_fullres", "--without-ensembles", "-o", arguments.folder, "-d", *datasets]
    if on_cpu:
        common += ["-p", PLANS, "--groups", raw / DATASET / "groups.csv", "--folds", 3, "--device", "cpu"]
    before = list(preparations(datasets, raw, preprocessed, on_cpu=on_cpu))
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
        if code == REFUSED:
            break
        with left_alone(arguments.folder):
            pack(record)
        if code not in (0, FAILED):
            break
    return code  # of the last one, which asks for all that those before have asked for


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machine", choices=("cpu", "gpu", "page"))
    parser.add_argument("folder", type=Path, help="for all that is made but models")
    parser.add_argument(
        "--seeds", type=whole, default=SEEDS, help="of the standard U-Net and of FIRENet; default: %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    arguments, more = parser.parse_known_args(argv)
    if arguments.machine == "page" and (more or arguments.dry_run):
        parser.error("page takes a folder alone")
    try:
        return write_page(arguments.folder, DOCS) if arguments.machine == "page" else compete(arguments, more)
    except InputError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
