"""What an output was made of, and whether that still holds: a small JSON file beside every output, its marker.

The marker of `metrics/test/NAME.csv` is `metrics/test/NAME.csv.made-of.json`; a folder's stands beside it:

    {
      "form": 1,
      "command": ["nnUNetv2_predict", "-i", "raw/Dataset004_Hippocampus/imagesTs", ...],
      "by": "nnunetv2 2.8.1",              whose command it is, with its version; of metrics, MONAI's too
      "inputs": {"results/Dataset004_Hippocampus/.../fold_0/checkpoint_final.pth": "0f3c9a..."},
      "outputs": {"output/test/...": "77ab01..."},
      "made": "2026-11-28T12:00:00+0100"
    }

Names of files begin with the folder in which they lie, `raw`, `preprocessed`, `results` (nnU-Net's) or `output` (the
benchmark's), so that all of it can be moved; whatever lies elsewhere has its absolute path. What follows a name is its
identity: the first 16 digits of a file's SHA-256, for a folder that of its list of names and identities, or `MISSING`.
A table that was packed with gzip, `results.csv.gz`, is the table `results.csv`.

An output is up to date if command, version, inputs and outputs are those of its marker. The record of a benchmark holds
all markers in `provenance.json`, {"outputs": [marker, ...]}; there each has besides "of", with `split`, `dataset`,
`configuration`, `plans` and `trainer` of the rows of results.csv that come from its output; nothing if none do. The
first one is that of the record's other files: its inputs are what trainings have left, their logs and conditions.
"""

import contextlib
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_plugins.errors import InputError
from nnunet_plugins.files import read_json, write_text

MISSING = "missing"
"""The identity of what is not there."""

FORM = 1
SHAPE: dict[str, Any] = {
    "form": int,
    "command": [str],
    "by": str,
    "inputs": {str: str},
    "outputs": {str: str},
    "made": str,
    "of?": {str: str},
}
"""What a marker looks like; see `files.read_json`."""

_ENDING = ".made-of.json"
_BY_SIZE = (".npz", ".pkl")
"""Endings of what is too large to be read for a folder's identity, such as probabilities: its size stands for it."""
_FRESH = 2.0  # seconds; a file that was changed so recently may change again without another time of change


@dataclass(frozen=True)
class Marker:
    """What an output was made of; see above."""

    command: list[str]
    by: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    made: str = ""
    form: int = FORM
    of: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in files."""
        return asdict(self)


def marker_file(output: Path) -> Path:
    """Return where the marker of an output stands."""
    return output.with_name(f"{output.name}{_ENDING}")


def read_marker(output: Path) -> Marker | None:
    """Return the marker of an output; None if it has none that can be read."""
    try:
        return Marker(**read_json(marker_file(output), SHAPE))
    except (InputError, TypeError):
        return None


def read_markers(file: Path) -> list[Marker]:
    """Return the markers in the `provenance.json` of a record; none if it has none, as those of version 0.1.0.

    Raises:
        InputError: if the file cannot be read.
    """
    return [Marker(**one) for one in read_json(file, {"outputs": [SHAPE]})["outputs"]] if file.is_file() else []


class Ledger:
    """Knows the identities of files, and by what names markers call them.

    Args:
        roots: nnU-Net's folders and the benchmark's by their names, `raw`, `preprocessed`, `results`, `output`.
            Those that are not known on this machine are left out.
        cache: JSON file that remembers identities of files by size and times, where its folder is there. None: every
            file is read.
    """

    def __init__(self, roots: Mapping[str, Path], cache: Path | None = None) -> None:
        # The innermost first: the benchmark's folder may lie inside another one.
        self.roots = dict(sorted(roots.items(), key=lambda item: -len(str(item[1]))))
        self._cache = cache
        self._known: dict[str, list[Any]] | None = None
        self._new = False

    def name(self, path: Path | str) -> str:
        """Return what markers call a file; of a text that is no path into one of the roots, the text."""
        text = str(path)
        for name, root in self.roots.items():
            if text == str(root) or text.startswith(f"{root}/"):
                return name + text[len(str(root)) :]
        return text

    def locate(self, name: str) -> Path | None:
        """Return where a file lies that markers call by a name; None if its root is not known here."""
        first, _, rest = name.partition("/")
        if Path(name).is_absolute():
            return Path(name)
        return self.roots[first] / rest if first in self.roots else None

    def identity(self, path: Path) -> str:
        """Return the identity of a file or a folder; see above."""
        found = self._identity(path)
        self._remember()
        return found

    def identities(self, paths: Iterable[Path]) -> dict[str, str]:
        """Return the identities of files and folders by the names that markers give them."""
        found = {self.name(path): self._identity(path) for path in paths}
        self._remember()
        return found

    def fits(self, output: Path, command: Sequence[str], inputs: Iterable[Path], makes: Iterable[Path] = ()) -> bool:
        """Tell whether an output is what a command makes of its inputs as they are now.

        Args:
            output: file or folder that has the marker.
            command: which would make it.
            inputs: files and folders on which it depends.
            makes: what else the command has made.
        """
        if not output.exists():
            return False
        marker = read_marker(output)
        if marker is None or (marker.form, marker.by) != (FORM, author(command)):
            return False
        if marker.command != self.names(command):
            return False
        return marker.outputs == self.identities([output, *makes]) and marker.inputs == self.identities(inputs)

    def write(
        self, output: Path, command: Sequence[str], inputs: Mapping[str, str], makes: Iterable[Path] = ()
    ) -> Marker:
        """Write the marker of an output that is there; returns it.

        Args:
            output: file or folder.
            command: which has made it.
            inputs: identities of what it was made of, taken before.
            makes: what else the command has made.
        """
        marker = Marker(
            self.names(command),
            author(command),
            dict(inputs),
            self.identities([output, *makes]),
            now(),
        )
        write_text(marker_file(output), json.dumps(marker.to_json(), indent=1))
        return marker

    def begin(self, part: Path, command: Sequence[str], inputs: Mapping[str, str]) -> None:
        """Write down of what an unfinished output is being made, so that the next attempt knows whether to go on."""
        marker = Marker(self.names(command), author(command), dict(inputs), {})
        write_text(marker_file(part), json.dumps(marker.to_json(), indent=1))

    def was_begun(self, part: Path, command: Sequence[str], inputs: Mapping[str, str]) -> bool:
        """Tell whether an unfinished output was being made by this command of these inputs."""
        return read_marker(part) == Marker(self.names(command), author(command), dict(inputs), {})

    def differences(self, marker: Marker) -> dict[str, tuple[str, str | None]]:
        """Compare what a marker says with what is there.

        Returns:
            by the names of inputs and outputs that do not fit: the identity in the marker, and that of the file now,
            `MISSING` if it is gone, or None if nobody knows here where to look.
        """
        found: dict[str, tuple[str, str | None]] = {}
        for name, recorded in {**marker.inputs, **marker.outputs}.items():
            path = self.locate(name)
            present = None if path is None else self._identity(path)
            if present != recorded:
                found[name] = recorded, present
        self._remember()
        return found

    def names(self, command: Sequence[str]) -> list[str]:
        """Return a command with the names that markers give to its files."""
        program, *arguments = command
        # Of the interpreter there may be links.
        program = "python" if Path(program).name.startswith("python") else self.name(program)
        return [program, *map(self.name, arguments)]

    def _identity(self, path: Path) -> str:
        if path.is_dir():
            files = sorted(part for part in path.rglob("*") if part.is_file())
            lines = [f"{file.relative_to(path)} {self._part(file)}\n" for file in files]
            return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
        return self._file(path)

    def _part(self, file: Path) -> str:
        return f"{file.stat().st_size} bytes" if file.suffix in _BY_SIZE else self._file(file)

    def _file(self, file: Path) -> str:
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            packed = file.with_name(f"{file.name}.gz")
            return self._packed(packed) if file.suffix == ".csv" and packed.is_file() else MISSING
        # A copy may keep the time of change, but not when the file itself was written (ctime).
        key, stamp = str(file), [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self._read_cache().get(key)
        if known and known[:-1] == stamp:
            return str(known[-1])
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while block := content.read(2**22):
                digest.update(block)
        found = digest.hexdigest()[:16]
        if time.time() - max(status.st_mtime, status.st_ctime) > _FRESH:
            self._read_cache()[key] = [*stamp, found]
            self._new = True
        return found

    @staticmethod
    def _packed(file: Path) -> str:
        """Return the identity of what a packed file holds."""
        try:
            return hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest()[:16]
        except (OSError, EOFError, zlib.error):
            return MISSING

    def _read_cache(self) -> dict[str, list[Any]]:
        if self._known is None:
            self._known = {}
            if self._cache is not None:
                with contextlib.suppress(InputError):  # not there yet, or damaged: every file is read again
                    self._known = read_json(self._cache, {str: [(int, str)]})
        return self._known

    def _remember(self) -> None:
        if self._new and self._cache is not None and self._cache.parent.is_dir():
            write_text(self._cache, json.dumps(self._known))
        self._new = False


def now() -> str:
    """Return the time, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def author(command: Sequence[str]) -> str:
    """Return whose command it is, with the version: nnU-Net's, or this package's, for metrics with MONAI's."""
    packages = ["nnunetv2" if command[0].startswith("nnUNetv2_") else "nnunet-plugins"]
    if list(command[:2]) == ["nnunet-plugins", "evaluate"]:
        packages.append("monai")
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)
