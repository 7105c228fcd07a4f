"""A league table: networks against the standard U-Net, in one benchmark that can be stopped and goes on.

    python benchmarks/league.py cpu league      the table of docs/results.md: Hippocampus, three folds by subject, 12
                                                epochs of 50 iterations, without mirroring; about seven hours on two
                                                cores
    python benchmarks/league.py gpu league      the Decathlon's datasets that are in nnUNet_raw, five folds, nnU-Net's
                                                own plans and full budget
    python benchmarks/league.py page league     the record of the CPU's table, and what docs/results.md has of it, into
                                                the docs

nnU-Net's three folders have to be set. Networks are added two at a time, the standard U-Net and FIRENet first and their
repeats last; after each step the record and the report in the folder are whole, and the record is packed to be shared.
The same command goes on, also without the models: a new folder for the CPU's table begins with the record in
docs/league. What else `nnunet-plugins benchmark` takes can be added, such as --workers 2, --gpus 4 or --cluster
cluster.yaml.
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pandas as pd

from nnunet_plugins.benchmark.command import FOLDERS, find
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock, lock_holder, read_json

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
TABLES = ("results.csv", "runs.csv", "curves.csv")
CONTENTS = {
    "about": {"images": {str: {"images": str, "predictions": {str: str}}}, "complete": bool},
    "failures": [{"task": str}],
    "equality": list,
    "provenance": dict,
}
"""Of a record's files what is needed here; see `nnunet_plugins.files.read_json`."""
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


def recorded(record: Path) -> list[str]:
    """Name those of the networks that a record has, each as often as it was trained."""
    # Where an end came while it was packed, both are there; what is not packed is the newer one.
    file = next((record / name for name in ("runs.csv", "runs.csv.gz") if (record / name).is_file()), None)
    trained = pd.read_csv(file)[["trainer", "seed"]].drop_duplicates()["trainer"] if file else ()
    names = [trainer.partition("_")[0].removeprefix("nnUNetTrainer") for trainer in trained]
    return [name for name in names if name in NETWORKS]


def first_step(all_steps: Sequence[Sequence[str]], record: Path) -> int:
    """Return the number of the step that goes on from a record, which has to ask for everything in it."""
    known = recorded(record)
    for at, step in enumerate(all_steps):
        if all(step.count(name) >= known.count(name) for name in known):
            return at
    seeds = max(known.count(name) for name in known)
    raise SystemExit(
        f"{record} has {seeds} trainings of one network in a fold: give --seeds {seeds}, or another folder"
    )


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
    """Return the text below a heading of a report; of a whole comparison, what came out."""
    found = re.search(rf"^(#+) {re.escape(heading)}[^\n]*\n\n(.*?)(?=\n\n#|\Z)", report, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"the report has nothing below {heading}")
    return found[2].partition("\n")[0] if len(found[1]) == 2 else found[2].strip()


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
    """Refuse a record that lacks something, or is of a benchmark that is not done."""
    if not record.is_dir():
        raise SystemExit(f"{record} does not exist")
    about, failures, *_ = (read_json(record / f"{name}.json", shape) for name, shape in CONTENTS.items())
    if lacking := [name for name in TABLES if not any((record / f"{name}{end}").is_file() for end in ("", ".gz"))]:
        raise SystemExit(f"{record} lacks {', '.join(lacking)}")
    if not about["complete"]:
        failed = ", ".join(one["task"] for one in failures) or "not all was trained"
        raise SystemExit(f"{record} is not complete: {failed}; give the command that makes it again")


@contextlib.contextmanager
def left_alone(folder: Path) -> Iterator[None]:
    """Keep benchmarks from writing in a folder, which none may be doing."""
    lock = folder / "benchmark.lock"
    with hold_lock(lock) if lock.is_file() else contextlib.nullcontext(True) as held:
        if not held:
            raise SystemExit(f"a benchmark is running in {folder} ({lock_holder(lock)}); wait for it")
        yield


def write_page(folder: Path, docs: Path) -> None:
    """Copy the record into the docs, and from the report that it makes what the page of results has of one.

    What is there is replaced when all of it is made.
    """
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
        text = page.read_text(encoding="utf-8")
        text = BLOCK.sub(lambda block: block[1] + block[2] + below(block[1], report), text)
        if committed.exists():
            committed.rename(made / "before")
        (made / "record").rename(committed)
        page.write_text(text, encoding="utf-8")


def run(*command: object) -> int:
    """Run a command to its own end, also when this program is to end, and return its exit code.

    Ctrl-C reaches it through the terminal; SIGTERM is passed on.
    """
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
    if code < 0:  # ended by a signal; as shells have it
        return 128 - code
    return INTERRUPTED if came and code in (0, FAILED) else code  # it was at its end already


def require(*command: object) -> None:
    """Run a command to its end; if it fails, or is interrupted, so does this program."""
    if code := run(*command):
        raise SystemExit(code)


def decathlon(raw: Path) -> list[str]:
    """Return the Decathlon's datasets that are there, Dataset001 to Dataset010."""
    if not (found := sorted(folder.name for folder in raw.glob("Dataset0*") if 1 <= int(folder.name[7:10]) <= 10)):
        raise SystemExit(f"{raw} has none of the Decathlon's datasets; nnUNetv2_convert_MSD_dataset converts them")
    return found


def compete(arguments: argparse.Namespace, more: Sequence[str]) -> int:
    """Run the league's steps from where its record ends."""
    if missing := [name for name in FOLDERS if name not in os.environ]:
        raise SystemExit(f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set")
    raw, preprocessed, _ = (Path(os.environ[name]) for name in FOLDERS)
    record, on_cpu = arguments.folder / "record", arguments.machine == "cpu"
    common: list[object] = ["-c", "3d_fullres", "--without-ensembles", "-o", arguments.folder]
    if on_cpu:
        groups = raw / DATASET / "groups.csv"
        if not groups.is_file():
            raise SystemExit(
                f"{groups} is missing: a table with the columns case and group, which names each case's subject"
            )
        common += ["-d", DATASET, "-p", PLANS, "--groups", groups, "--folds", 3, "--device", "cpu"]
        if not (preprocessed / DATASET / "nnUNetPlans.json").is_file():
            require("nnUNetv2_plan_and_preprocess", "-d", 4, "-c", "3d_fullres", "--verify_dataset_integrity")
        write_plans(preprocessed)
        if COMMITTED.is_dir() and not record.exists():
            part = record.with_name("record.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(COMMITTED, part)
            part.rename(record)
    else:
        common += ["-d", *decathlon(raw)]
    all_steps = steps(arguments.seeds)
    for step in all_steps[first_step(all_steps, record) :]:
        code = run("nnunet-plugins", "benchmark", *common, *options(step, BUDGET if on_cpu else ""), *more)
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
        "--seeds", type=int, default=SEEDS, help="of the standard U-Net and of FIRENet; default: %(default)s"
    )
    arguments, more = parser.parse_known_args(argv)
    try:
        if arguments.machine == "page":
            write_page(arguments.folder, DOCS)
            return 0
        return compete(arguments, more)
    except InputError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
