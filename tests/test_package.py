"""The package's own rules: what imports what, what is light, and the command line."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from nnunet_plugins.cli import main
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.registry import BACKBONES

PACKAGE = ROOT / "nnunet_plugins"


def imports(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# Imports go one way: each room, or file beside the rooms, may import itself and what stands before it.
ORDER = [
    "errors",
    "files",
    "container",
    "memory",
    "program",
    "provenance",
    "stop_request",
    "workers",
    "rows",
    "arguments",
    "modifiers",
    "registry",
    "_startup",
    "backbones",
    "networks.layers",
    "networks",
    "images",
    "datasets",
    "forecast",
    "trainers",
    "planning",
    "metrics",
    "report",
    "benchmark",
    "demo",
    "doctor",
    "raw",
    "merging",
    "fixed_size",
    "preparation",
    "starts",
    "models",
    "engines",
    "prediction",
    "submission",
    "explain",
    "testing",
    "template",
    "cli",
]


def part_of(module: str) -> int | None:
    """Return the place of a module's room; None for what is not of this package, and for its top."""
    if module == "nnunet_plugins" or not module.startswith("nnunet_plugins."):
        return None
    fitting = [n for n, part in enumerate(ORDER) if f"{module}.".startswith(f"nnunet_plugins.{part}.")]
    return fitting[0] if fitting else None


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == {part.split(".")[0] for part in ORDER}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    own = part_of(module_of(file))
    for module in imports(file):
        other = part_of(module)
        if own is not None and other is not None:
            assert other <= own, f"{file.name} imports {module}"


def test_one_room_reads_images():
    """Whatever else reads files of images judges them in its own way."""
    reads = re.compile("ReadImage|read_seg|read_images|GetDirection")
    places = {file.parent.name for file in PACKAGE.rglob("*.py") if reads.search(file.read_text())}
    assert places == {"images"}


@pytest.mark.parametrize("file", sorted((PACKAGE / "networks").rglob("*.py")), ids=lambda file: file.name)
def test_networks_do_not_know_nnunet(file):
    assert not [m for m in imports(file) if m.startswith(("nnunetv2", "batchgenerators", "nnunet_plugins.trainers"))]


@pytest.mark.parametrize("module", ["nnunet_plugins", "nnunet_plugins.cli", "nnunet_plugins.trainers.names"])
def test_names_and_commands_load_nothing_heavy(module):
    code = (
        f"import sys, {module}; print({{'torch', 'numpy', 'nnunetv2', 'SimpleITK', 'matplotlib'}} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_scanned_folder_holds_one_module():
    assert [file.name for file in (PACKAGE / "trainers" / "scanned").glob("*.py")] == ["nnunet_plugins_trainers.py"]


def test_list_shows_every_row_and_modifier(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for row in BACKBONES:
        assert any(line.startswith(row.trainer) and row.twin in line for line in text.splitlines())
    assert all(f"  _{modifier.name}" in text for modifier in MODIFIERS)


def test_list_as_json(capsys):
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["backbones"]
    assert [row["trainer"] for row in rows] == [row.trainer for row in BACKBONES]
    for row in rows:
        assert set(row) == {"trainer", "network", "options", "paper", "dimensions", "twin", "summary", "source"}
    assert rows[0]["network"] == "nnunet_plugins.networks.firenet.FIRENet"


def test_trainer_path_is_the_folder(capsys):
    assert main(["trainer-path"]) == 0
    assert Path(capsys.readouterr().out.strip()) == PACKAGE / "trainers" / "scanned"


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "doctor",
        "trainer-path",
        "plan",
        "profile",
        "split",
        "merge",
        "labels",
        "warm-start",
        "predict",
        "export-onnx",
        "explain",
        "evaluate",
        "benchmark",
        "export-submission",
        "new-backbone",
        "check-backbone",
        "demo",
    ],
)
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert len(capsys.readouterr().out) > 200


def test_no_command_shows_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err
