"""The record of the feature matrix, `docs/feature-matrix/<trainer>.json`, and what its cells depend on.

A cell holds for the code that its row uses: network, layers, recipe and what all trainers share, found by following
imports from the row; for the row itself; and for the versions of nnU-Net and torch. Nothing else voids it. Reads no
heavy library, as the docs' build uses it, too.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_plugins.files import write_text
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import Backbone
from nnunet_plugins.trainers.names import parse

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "feature-matrix"
SHORT = "_1epochs_1iterations"
"""The modifiers of the trainers that the matrix runs."""

TRAINERS = [row.trainer for row in BACKBONES]
WORKS, NOT_SUPPORTED, FAILED, PENDING = "works", "not supported", "failed", "pending"

# How nnU-Net comes to any trainer: the start of the interpreter, the folder that it scans, and what makes the class.
SHARED = ("_startup", "trainers.scanned.nnunet_plugins_trainers", "trainers.compose")
STARTUP = ("nnunet_plugins.pth", "nnunet_plugins.start")
# Of the registry a row uses its own row, which says itself what it is; the package's version says nothing; and the
# matrix trains without the check of memory, so that no forecast is made.
REGISTRY = ("nnunet_plugins.registry", "nnunet_plugins.modifiers", "nnunet_plugins.rows")
LEFT_OUT = ("nnunet_plugins", *REGISTRY, "nnunet_plugins.forecast")

Cells = Mapping[str, Mapping[str, dict[str, Any]]]
"""Group of features to feature to cell."""


def source_files(row: Backbone, package: Path = ROOT / "nnunet_plugins") -> list[Path]:
    """Return the files that a row uses, by following the imports from its network, its recipe and the shared base."""
    paths = (row.network, row.recipe)
    waiting = [path.rpartition(".")[0] for path in paths] + [f"nnunet_plugins.{name}" for name in SHARED]
    found: dict[str, Path] = {}
    while waiting:
        module = waiting.pop()
        file = _file(module, package)
        if file is None or module in found or module in LEFT_OUT:
            continue
        found[module] = file
        waiting += _imports(file.read_text())
        waiting.append(module.rpartition(".")[0])  # importing a module runs the packages around it
    return sorted([*found.values(), *(package / name for name in STARTUP)])


def _file(module: str, package: Path) -> Path | None:
    """Find a module of this package; None for a name that is no module, and for other packages."""
    top, *parts = module.split(".")
    if top != "nnunet_plugins":
        return None
    place = package.joinpath(*parts)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def _imports(text: str) -> frozenset[str]:
    """Name all that a file imports, also inside functions; some of it is no module but something in one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module is None):
            raise ValueError(f"relative imports are not followed: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom):
            found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return frozenset(found)


def sources(row: Backbone, package: Path = ROOT / "nnunet_plugins") -> str:
    """Return a hash of the code that a row uses and of what the row says of it."""
    digest = hashlib.sha256()
    for file in source_files(row, package):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    options = sorted(row.options.items())
    modifiers = [(one.name, one.piece, sorted(one.scales.items())) for one, _ in parse(row.trainer + SHORT).modifiers]
    digest.update(repr((row.network, row.recipe, row.dimensions, options, modifiers)).encode())
    return digest.hexdigest()[:12]


def recorded(trainer: str, folder: Path = RECORD) -> Cells:
    """Return the recorded cells of a trainer; none, if it was not run yet."""
    file = folder / f"{trainer}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def record(trainer: str, feature: str, cell: dict[str, Any], features: Mapping[str, Any]) -> None:
    """Write a cell into its trainer's file.

    Args:
        trainer: without modifiers.
        feature: its name.
        cell: its outcome, and what it holds for.
        features: the groups of features with their names, in order; what is no longer there is dropped.
    """
    before = recorded(trainer)
    groups = []
    for group, names in features.items():
        cells = {**before.get(group, {}), **({feature: cell} if feature in names else {})}
        lines = [f"    {json.dumps(name)}: {json.dumps(cells[name])}" for name in names if name in cells]
        if lines:
            groups.append(f"  {json.dumps(group)}: {{\n" + ",\n".join(lines) + "\n  }")
    RECORD.mkdir(exist_ok=True)
    write_text(RECORD / f"{trainer}.json", "{\n" + ",\n".join(groups) + "\n}\n")


def outcome(cell: Mapping[str, Any] | None) -> str:
    """Say how a cell ended, with the reason where there is one."""
    if cell is None:
        return PENDING
    return ": ".join(filter(None, (cell["outcome"], cell.get("reason"))))
