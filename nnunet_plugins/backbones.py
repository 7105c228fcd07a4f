"""All backbones that trainer names may have: ours, those that other packages bring, and those of a lab's own files.

A package brings rows by entry points of the group `nnunet_plugins.backbones`, each of which names a sequence of
`rows.Backbone`. Without a package, a file does: one that assigns `BACKBONES` and lies in a folder of
`nnUNet_extTrainer`. Neither is imported before a name is asked for that is not ours, or all are.

What cannot be used is told and not raised, so that a package that is broken stops no training but its own.
"""

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    brought: list[tuple[Source, Backbone]] = []
    unusable: list[Unusable] = []
    for source, load in [*_entry_points(), *_files(folders)]:
        try:
            rows = load()
        except (Exception, SystemExit) as error:  # whatever other people's modules raise when they are imported
            reason = str(error).splitlines()
            unusable.append(Unusable(source, ": ".join([type(error).__name__, *reason[:1]])))
            continue
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            unusable.append(Unusable(source, f"it is no sequence of rows but {_kind(rows)}"))
            continue
        brought += [(source, row) for row in rows]
    names = [row.trainer for _, row in brought if isinstance(row, Backbone)]
    for source, row in brought:
        if fault := _fault(row):
            unusable.append(Unusable(source, fault, getattr(row, "trainer", None)))
        elif names.count(row.trainer) > 1:
            places = " and ".join(dict.fromkeys(f"{s} ({s.place})" for s, other in brought if _same(other, row)))
            unusable.append(Unusable(source, f"{places} bring a row of this name; uninstall one", row.trainer))
    refused = {(one.source, one.trainer) for one in unusable}
    good = [(source, row) for source, row in brought if (source, getattr(row, "trainer", None)) not in refused]
    known = {STOCK_TRAINER, *OURS, *(row.trainer for _, row in good)}
    for source, row in good:
        if row.twin not in known - {row.trainer} and row.twin not in _of_nnunet():
            unusable.append(Unusable(source, f"its twin {row.twin!r} is no other trainer's name", row.trainer))
    refused = {(one.source, one.trainer) for one in unusable}
    good = [(source, row) for source, row in good if (source, row.trainer) not in refused]
    return Found(
        MappingProxyType({row.trainer: row for _, row in good}),
        MappingProxyType({row.trainer: source for source, row in good}),
        tuple(unusable),
    )


def _entry_points() -> Iterator[tuple[Source, "functools.partial[object]"]]:
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.value):
        package = point.dist
        about = (package.name, package.version) if package else ()
        yield Source(point.value, *about), functools.partial(point.load)


def _files(folders: Iterable[str]) -> Iterator[tuple[Source, "functools.partial[object]"]]:
    for folder in map(Path, folders):
        for file in sorted(folder.glob("*.py")):
            if _assigns(file):
                yield Source(str(file)), functools.partial(_run, file)


def _assigns(file: Path) -> bool:
    """Tell whether a file assigns the variable, without running it: not every file there is meant for us."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False  # nnU-Net imports it as well, and says so
    targets = [
        target
        for node in body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return any(isinstance(target, ast.Name) and target.id == VARIABLE for target in targets)


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
    if row.trainer in _of_nnunet():
        return "nnU-Net itself has a trainer of this name, and finds that one first"
    for attribute in ("summary", "paper", "twin"):
        value = getattr(row, attribute)
        if not isinstance(value, str) or not value.strip():
            return f"its {attribute} is {value!r}, and has to be text"
    for attribute in ("network", "recipe"):
        value = getattr(row, attribute)
        if not callable(value) and not (isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)+", value)):
            return f"its {attribute} is {value!r}, and has to be an import path such as mylab.networks.MyNet"
    if not isinstance(row.dimensions, tuple) or not set(row.dimensions) <= {2, 3} or not row.dimensions:
        return f"its dimensions are {row.dimensions!r}, and have to be (2,), (3,) or (2, 3)"
    for attribute in ("options", "narrow"):
        if not isinstance(getattr(row, attribute), Mapping):
            return f"its {attribute} are {_kind(getattr(row, attribute))}, and have to be a mapping"
    return None


def _same(one: object, other: Backbone) -> bool:
    return isinstance(one, Backbone) and one.trainer == other.trainer


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"


@functools.cache
def _of_nnunet() -> frozenset[str]:
    """Return the names of nnU-Net's own trainers, which it is not necessary to import for that."""
    spec = importlib.util.find_spec("nnunetv2")
    folders = [Path(place, "training", "nnUNetTrainer") for place in (spec and spec.submodule_search_locations) or ()]
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py")]
    return frozenset(re.findall(rf"^class ({STOCK_TRAINER}\w*)", "\n".join(texts), flags=re.MULTILINE))
