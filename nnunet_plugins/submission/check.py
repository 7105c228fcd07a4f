"""Prove a submission without Docker: its files, its Dockerfile, its packages, its predictions."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_plugins.doctor.findings import Check, Finding, examine, ok, problem, warning
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json
from nnunet_plugins.models.settings import MANIFEST, read_settings
from nnunet_plugins.submission.platforms import PLATFORMS
from nnunet_plugins.submission.trial import Trial
from nnunet_plugins.submission.wheels import sha256

_SHAPE = {"platform": str, "dataset": str, "python": str, "with_wheels": bool, "files": {str: str}}
_ONLY_DOCKER = (
    "that the base image can be pulled, and has the system libraries that the packages need",
    "the size of the image, and whether the platform takes it",
    "that the platform's driver fits this PyTorch, and how fast its GPU is",
    "the platform's limits of memory and time",
)


def check_submission(folder: Path, images: Path | None, cases: int) -> int:
    """Check a submission and print what is found; returns 1 if there is a problem, else 0.

    Args:
        folder: that the export wrote.
        images: cases in nnU-Net's format to try it on; None: the dataset's test or training images.
        cases: how many of them.

    Raises:
        InputError: if the folder is no submission.
    """
    folder = folder.resolve()
    manifest = read_json(folder / MANIFEST, _SHAPE)
    if manifest["platform"] not in PLATFORMS:
        raise InputError(f"{folder / MANIFEST}: no platform is called {manifest['platform']!r}")
    platform = PLATFORMS[manifest["platform"]]
    with tempfile.TemporaryDirectory(prefix="submission-check-") as scratch:
        trial = Trial(folder, manifest, read_settings(folder / "model"), Path(scratch), images, cases)
        sections: dict[str, Check] = {"Files": lambda: check_files(folder, manifest["files"])}
        if platform.container:
            sections["Dockerfile"] = lambda: _check_dockerfile(folder)
        sections["Packages, in an environment of their own"] = trial.check_packages
        sections["Predictions, as the platform runs it, against nnU-Net's own commands"] = trial.check_predictions
        code = examine(sections, as_json=False)
    if platform.container:
        print("\nWhat only a real Docker shows (./do_test_run.sh, then the platform's own trial):")
        print("\n".join(f"  - {line}" for line in _ONLY_DOCKER))
    return code


def check_files(folder: Path, files: dict[str, Any]) -> Iterator[Finding]:
    """Check that a folder holds the files of its manifest, as they were exported, and nothing else."""
    again = "export the submission again"
    missing = [name for name in files if not (folder / name).is_file()]
    changed = [name for name in files if name not in missing and sha256(folder / name) != files[name]]
    for what, names in (("missing", missing), ("not as it was exported", changed)):
        for name in names:
            yield problem(f"{name} is {what}", again)
    if not missing + changed:
        yield ok(f"all {len(files)} files are as they were exported (SHA-256)")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    known = ("test/", ".venv", "model.tar.gz")
    more = sorted(name for name in there - {*files, MANIFEST} if not name.startswith(known))
    if more:
        yield warning(f"{len(more)} files were not exported, {more[0]} first of all", "remove what is not yours")


def _check_dockerfile(folder: Path) -> Iterator[Finding]:
    try:
        from nnunet_plugins.submission.dockerfile import check_dockerfile
    except ImportError:
        raise InputError("dockerfile-parse is not installed; pip install 'nnunet-plugins[submission]'") from None
    yield from check_dockerfile(folder)
