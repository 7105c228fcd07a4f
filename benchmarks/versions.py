"""Whether this package works with given versions of Python, nnU-Net and PyTorch, in an environment made for it.

    python benchmarks/versions.py --python python3.10 --nnunet 2.8.0 --torch 2.8.0
    python benchmarks/versions.py --python python3.13 --package dist/nnunet_plugins-0.2.0.tar.gz

installs the checkout, or a wheel or sdist of it, with its extra `benchmark` beside them, runs the contract tests,
discovery, the conformance tests of three networks and a training and prediction by nnU-Net's commands, and prints a
table. A version that is not given is the newest that pip finds. The environment takes about 8 GB, lies outside the
checkout and is removed at the end.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("nnunetv2", "torch", "numpy", "pandas", "monai", "batchgeneratorsv2", "dynamic-network-architectures")
ROWS = ("nnUNetTrainerFIRENet", "nnUNetTrainerAFN1", "nnUNetTrainerAutofocusUNet")
FIND = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
    "import nnunet_plugins; "
    f"assert not nnunet_plugins.__file__.startswith({str(ROOT)!r}); "
    "print('FOUND', find('nnUNetTrainerFIRENet_2epochs').__module__)"
)


def checks(folder: Path) -> dict[str, list[str]]:
    """What is run, by what the table calls it; commands of the environment in `folder`."""
    tests = ROOT / "tests"
    pytest = [str(folder / "bin" / "pytest"), "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    # Warnings are for the versions that this package is developed with.
    pytest += ["-c", str(ROOT / "pyproject.toml"), "-o", "filterwarnings=default"]
    rows = " or ".join(f"({row} and not {row}Paper and not {row}NoFabric)" for row in ROWS)
    return {
        "discovery": [str(folder / "bin" / "python"), "-c", FIND],
        "contract": [*pytest, str(tests / "test_contract.py")],
        "conformance of three networks": [*pytest, str(tests / "test_conformance.py"), "-k", rows],
        "train and predict": [
            *(*pytest, str(tests / "test_stock_commands.py")),
            *("-k", "predicts_every_test_case or ends_with_a_validation"),
        ],
    }


def run(command: Sequence[str], folder: Path) -> tuple[bool, float, str]:
    """Run a command in a folder; returns whether it succeeded, its seconds and its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet_", "PYTHON"))}
    clean["PATH"] = f"{folder / 'bin'}{os.pathsep}{clean['PATH']}"
    start = time.monotonic()
    result = subprocess.run(
        command, cwd=folder, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return result.returncode == 0, time.monotonic() - start, result.stdout


def install(python: str, requirements: Sequence[str], folder: Path) -> None:
    """Make the environment."""
    for command in (
        [python, "-m", "venv", str(folder)],
        [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "-q",
            "--no-compile",
            "--disable-pip-version-check",
            *requirements,
        ],
    ):
        done, seconds, output = run(command, Path(tempfile.gettempdir()))
        if not done:
            raise SystemExit(f"{' '.join(command)} failed after {seconds:.0f} s:\n{output[-4000:]}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter to test with")
    parser.add_argument("--nnunet", metavar="VERSION", help="or the path of a checkout, say of its development branch")
    parser.add_argument("--torch", metavar="VERSION")
    parser.add_argument(
        "--package", type=Path, default=ROOT, metavar="FILE", help="a wheel or sdist; default: checkout"
    )
    parser.add_argument("--without-benchmark", action="store_true", help="leave out the extra, and MONAI with it")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names of the table, such as discovery")
    parser.add_argument("--folder", type=Path, help="where to make the environment, which then stays")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="versions"))
    wanted = {"nnunetv2": arguments.nnunet, "torch": arguments.torch}
    pinned = [
        str(Path(version).resolve()) if Path(version).is_dir() else f"{name}=={version}"
        for name, version in wanted.items()
        if version
    ]
    extra = "" if arguments.without_benchmark else "[benchmark]"
    try:
        install(arguments.python, [f"{arguments.package.resolve()}{extra}", "pytest>=8", *pinned], folder)
        code = (
            "import platform; from importlib import metadata; print('python', platform.python_version()); "
            f"[print(d.metadata['Name'], d.version) for d in metadata.distributions() if d.metadata['Name'] in {SHOWN}]"
        )
        _, _, versions = run([str(folder / "bin" / "python"), "-c", code], folder)
        print(f"{platform.platform()}, {', '.join(sorted(versions.split(chr(10))[:-1]))}\n", flush=True)
        print("| check | result | seconds | tests |\n| --- | --- | ---: | --- |", flush=True)
        failed = {}
        for name, command in checks(folder).items():
            if arguments.only and name not in arguments.only:
                continue
            done, seconds, output = run(command, folder)
            last = (output.strip().splitlines() or [""])[-1]
            print(f"| {name} | {'passed' if done else 'FAILED'} | {seconds:.0f} | {last} |", flush=True)
            if not done:
                failed[name] = output
        for name, output in failed.items():
            print(f"\n{name}:\n{output[-12000:]}")
        return 1 if failed else 0
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
