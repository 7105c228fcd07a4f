"""All backbones that trainer names may have: ours, those that other packages bring, and those of a lab's own files.

A package brings rows by entry points of the group `nnunet_plugins.backbones`, each of which names a sequence of
`rows.Backbone`. Without a package, a file does: one that assigns `BACKBONES` and lies in a folder of
`nnUNet_extTrainer`. Neither is imported before a name is asked for that is not ours, or all are.

What cannot be used is told and not raised, so that a package that is broken stops no training but its own.
"""

import ast
import contextlib
import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from nnunet_plugins import __version__
from nnunet_plugins._startup import listed, trainer_folder
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER, Backbone

GROUP = "nnunet_plugins.backbones"
"""Of the entry points."""

VARIABLE = "BACKBONES"
"""What a file assigns that brings rows without a package."""

_NAME = re.compile(f"{STOCK_TRAINER}[A-Z0-9][A-Za-z0-9]*")


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        place: an entry point's value, "mylab.rows:BACKBONES", or a file's path.
        distribution: name of the package that has the entry point; None for a file.
        version: the package's.
    """

    place: str
    distribution: str | None = None
    version: str | None = None

    @property
    def file(self) -> Path | None:
        """Where the rows stand, once they are loaded."""
        if self.distribution is None:
            return Path(self.place)
        file = getattr(sys.modules.get(self.place.partition(":")[0].strip()), "__file__", None)
        return Path(file) if file else None

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}" if self.distribution else self.place


@dataclass(frozen=True)
class Unusable:
    """What a source brings that cannot be used, and why.

    Attributes:
        source: which.
        reason: in words.
        trainer: the row's; None if it is about the whole source.
    """

    source: Source
    reason: str
    trainer: str | None = None

    def __str__(self) -> str:
        what = f"{self.trainer} of {self.source}" if self.trainer else str(self.source)
        place = f" ({self.source.place})" if self.source.distribution else ""
        return f"{what}{place} cannot be used: {self.reason}"


@dataclass(frozen=True)
class Found:
    """What all sources but this package bring.

    Attributes:
        rows: by trainer.
        sources: of each row, by trainer.
        unusable: the rest.
    """

    rows: Mapping[str, Backbone]
    sources: Mapping[str, Source]
    unusable: tuple[Unusable, ...]


OURS: Mapping[str, Backbone] = MappingProxyType({row.trainer: row for row in BACKBONES})
OWN = Source("nnunet_plugins.registry:BACKBONES", "nnunet-plugins", __version__)


def find(trainer: str) -> Backbone | None:
    """Return the row of a trainer without modifiers, wherever it comes from; None if there is none."""
    return OURS.get(trainer) or others().rows.get(trainer)


def source_of(trainer: str) -> Source | None:
    """Return where the row of a trainer comes from; None if it is only in a trainer class of one's own."""
    return OWN if trainer in OURS else others().sources.get(trainer)


def every() -> Mapping[str, Backbone]:
    """Return all rows that can be used, ours first, by trainer."""
    return {**OURS, **others().rows}


def others() -> Found:
    """Return what other packages and files bring; they are imported once."""
    return _others(tuple(folder for folder in listed() if folder != trainer_folder()))


@functools.cache
def _others(folders: tuple[str, ...]) -> Found:
    brought: dict[int, tuple[Source, Backbone]] = {}  # by the row itself, which several places may name
    unusable: list[Unusable] = []
    for source, load in [*_entry_points(), *_files(folders)]:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # our output may be read by a program
                rows = load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever other people's modules raise when they are imported
            reason = str(error).splitlines()
            unusable.append(Unusable(source, ": ".join([type(error).__name__, *reason[:1]])))
            continue
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            unusable.append(Unusable(source, f"it is no sequence of rows but {_kind(rows)}"))
            continue
        for row in rows:
            brought.setdefault(id(row), (source, row))
    for own in BACKBONES:
        brought.pop(id(own), None)
    good = []
    for source, row in brought.values():
        if fault := _fault(row) or _rivals(source, row, list(brought.values())):
            trainer = getattr(row, "trainer", None)
            unusable.append(Unusable(source, fault, trainer if isinstance(trainer, str) else None))
        else:
            good.append((source, row))
    while lonely := [pair for pair in good if not _has_twin(pair[1], [row for _, row in good])]:
        good = [pair for pair in good if pair not in lonely]
        for source, row in lonely:
            unusable.append(Unusable(source, f"its twin {row.twin!r} is no other trainer's name", row.trainer))
    return Found(
        MappingProxyType({row.trainer: row for _, row in good}),
        MappingProxyType({row.trainer: source for source, row in good}),
        tuple(unusable),
    )


def _entry_points() -> Iterator[tuple[Source, Callable[[], object]]]:
    # An uninstallation that failed may leave a package's metadata in a folder of another name; by its own it is found
    # no more. What is no entry point in one package stops reading those of all, so each is read by itself.
    packages = {p.name for p in metadata.distributions() if GROUP in (p.read_text("entry_points.txt") or "")}
    for name in sorted(filter(None, packages)):
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        try:
            points = list(package.entry_points.select(group=GROUP))
        except Exception as error:
            reason = ValueError(f"these lines cannot be read: {error}")
            yield Source("entry_points.txt", name, package.version), functools.partial(_raise, reason)
            continue
        for point in sorted(points, key=lambda point: point.value):
            yield Source(point.value, name, package.version), functools.partial(_load, point)


def _load(point: metadata.EntryPoint) -> object:
    if not re.match(r"[\w.]+\s*:\s*\w", point.value):
        raise ValueError(f"its entry point {point.value!r} is not MODULE:NAME")
    return point.load()


def _raise(error: Exception) -> None:
    raise error


def _files(folders: Iterable[str]) -> Iterator[tuple[Source, Callable[[], object]]]:
    files: dict[Path, Path] = {}  # a folder may be listed twice
    for folder in map(Path, folders):
        for file in sorted(folder.glob("*.py")):
            files.setdefault(file.resolve(), file)
    for file in files.values():
        if _names_rows(file):
            yield Source(str(file)), functools.partial(_run, file)


def _names_rows(file: Path) -> bool:
    """Tell whether a file gives the variable a value, without running it: not every file there is meant for us."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    try:
        body = ast.parse(content).body
    except (SyntaxError, ValueError):
        return VARIABLE.encode() in content  # running it will say what is wrong
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [part for node in body if not isinstance(node, inner) for part in ast.walk(node)]
    imported = {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return VARIABLE in imported | assigned


def _run(file: Path) -> object:
    """Run a file and return what it assigns. It may import its neighbours, as it may when nnU-Net runs it."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    # Under the name that nnU-Net imports it by, which it forgets again, it could be mistaken for another module.
    name = f"nnunet_plugins_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return getattr(module, VARIABLE)


def _fault(row: object) -> str | None:
    """Return why a row cannot be used by itself; None if it can."""
    if not isinstance(row, Backbone):
        return f"it holds {_kind(row)} in place of a nnunet_plugins.rows.Backbone"
    if not isinstance(row.trainer, str) or not _NAME.fullmatch(row.trainer):
        return f"{row.trainer!r} is no name for a trainer; {STOCK_TRAINER}, then a capital, letters and digits"
    if row.trainer in OURS:
        return "nnunet-plugins itself has a backbone of this name"
    if row.trainer in trainers_of_nnunet():
        return "nnU-Net itself has a trainer of this name, and finds that one first"
    for attribute in ("summary", "paper", "twin"):
        value = getattr(row, attribute)
        if not isinstance(value, str) or not value.strip():
            return f"its {attribute} is {value!r}, and has to be text"
    if len(row.summary.splitlines()) > 1:
        return f"its summary is {row.summary!r}, and has to be text of one line"
    for attribute in ("network", "recipe"):
        value = getattr(row, attribute)
        if not callable(value) and not (isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+", value)):
            return f"its {attribute} is {value!r}, and has to be an import path such as mylab.networks.MyNet"
    if not isinstance(row.dimensions, tuple) or row.dimensions not in ((2,), (3,), (2, 3), (3, 2)):
        return f"its dimensions are {row.dimensions!r}, and have to be (2,), (3,) or (2, 3)"
    for attribute in ("options", "narrow"):
        if not isinstance(getattr(row, attribute), Mapping):
            return f"its {attribute} are {_kind(getattr(row, attribute))}, and have to be a mapping"
    return None


def _rivals(source: Source, row: Backbone, brought: Iterable[tuple[Source, Backbone]]) -> str | None:
    """Return which sources bring rows of one name; None if there is but one."""
    places = [place for place, one in brought if isinstance(one, Backbone) and one.trainer == row.trainer]
    if len(places) == 1:
        return None
    if set(places) == {source}:
        return "there is a second row of this name"
    named = " and ".join(dict.fromkeys(f"{p} ({p.place})" if p.distribution else str(p) for p in places))
    return f"{named} bring a row of this name; uninstall one"


def _has_twin(row: Backbone, others: Iterable[Backbone]) -> bool:
    names = {STOCK_TRAINER, *OURS, *(other.trainer for other in others)} - {row.trainer}
    return row.twin in names or row.twin in trainers_of_nnunet()


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"


@functools.cache
def trainers_of_nnunet() -> frozenset[str]:
    """Return the names of nnU-Net's own trainers, which it is not necessary to import for that."""
    spec = importlib.util.find_spec("nnunetv2")
    folders = [Path(place, "training", "nnUNetTrainer") for place in (spec and spec.submodule_search_locations) or ()]
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py")]
    return frozenset(re.findall(rf"^class ({STOCK_TRAINER}\w*)", "\n".join(texts), flags=re.MULTILINE))
