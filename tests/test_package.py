"""The package's own rules: what imports what, what is light, and the command line."""

import ast
import itertools
import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import networkx
import pytest
from conftest import ROOT

from nnunet_plugins.cli import main, parser
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import locate

PACKAGE = ROOT / "nnunet_plugins"
sys.path.insert(0, str(ROOT / "docs"))
ROOMS = runpy.run_path(str(ROOT / "docs" / "draw_rooms.py"))
sys.path.remove(str(ROOT / "docs"))
imports = ROOMS["imports"]

PAGE = (ROOT / "docs" / "architecture.md").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
# Each room, or file beside the rooms, may import itself and what stands below it in the page's table.
ORDER = [room for row in re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE) for room in re.findall("`(.+?)`", row)][::-1]


def part_of(module: str) -> int | None:
    """Return the place of a module's room; None for what is not of this package, and for its top."""
    if module == "nnunet_plugins" or not module.startswith("nnunet_plugins."):
        return None
    fitting = [n for n, part in enumerate(ORDER) if f"{module}.".startswith(f"nnunet_plugins.{part}.")]
    return fitting[0] if fitting else None


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_room_has_its_place_on_the_page():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == {part.split(".")[0] for part in ORDER}
    assert len(set(ORDER)) == len(ORDER)


def test_files_that_the_page_names_are_there():
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 40
    assert [name for name in named if not (PACKAGE / name).is_file()] == []


def test_the_picture_of_the_rooms_is_drawn_from_the_imports():
    assert ROOMS["FILE"].read_text() == ROOMS["draw"](), "run python docs/draw_rooms.py"


def test_trainers_stand_on_each_other_as_the_page_says():
    line = next(line for line in PAGE.split("\n5. ")[1:] if "recipe" in line).split("\n6.")[0]
    recipe = locate("nnunet_plugins.trainers.backbone.BackboneTrainer")
    bases = [kind.__module__ for kind in recipe.__mro__ if kind.__module__.startswith("nnunet_plugins.")]
    assert [f"nnunet_plugins.{name[:-3].replace('/', '.')}" for name in re.findall(r"`([\w/]+\.py)`", line)] == bases


def test_imports_go_one_way():
    upwards = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = part_of(module_of(file))
        places = {module: part_of(module) for module in imports(file)}
        upwards += [
            f"{file.relative_to(PACKAGE)} imports {module}"
            for module, place in places.items()
            if None not in (own, place) and place > own
        ]
    assert upwards == []


@pytest.mark.parametrize(
    "line",
    [
        "import nnunet_plugins.report.build",
        "from nnunet_plugins.report import build",
        "importlib.import_module('nnunet_plugins.report.build')",
    ],
)
def test_every_way_to_import_is_seen(line, tmp_path):
    file = tmp_path / "facts.py"
    file.write_text(f"def late():\n    {line}\n")
    assert "nnunet_plugins.report.build" in imports(file)
    file.write_text("from ..report import build\n")
    with pytest.raises(ValueError, match=r"facts\.py: a relative import: from \.\.report import build"):
        imports(file)


def test_no_files_import_each_other():
    """Also within a room, inside functions and for types alone."""
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    graph = networkx.DiGraph((name, other) for name, file in files.items() for other in imports(file) & {*files})
    assert [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1] == []


def test_one_room_reads_images():
    """Whatever else reads files of images judges them in its own way."""
    reads = re.compile(r"ReadImage|read_seg|read_images|GetDirection|ImageFileReader|nibabel\.load|tifffile\.|imread\(")
    places = {file.parent.name for file in PACKAGE.rglob("*.py") if reads.search(file.read_text())}
    assert places == {"images"}


def test_no_file_is_long():
    long = {file.name for file in PACKAGE.rglob("*.py") if len(file.read_text().splitlines()) > 400}
    assert long == set()


def test_networks_do_not_know_nnunet():
    for file in (PACKAGE / "networks").rglob("*.py"):
        assert not [name for name in imports(file) if name.startswith(("nnunetv2", "batchgenerators"))], file.name


def test_what_is_imported_is_named():
    """What only comes with another package may be missing with its next version."""
    project = pytest.importorskip("tomllib").loads(PYPROJECT)["project"]
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in ("dev", "docs")]
    named = {re.split(r"[\[><=;]", name.lower())[0] for name in [*project["dependencies"], *itertools.chain(*extras)]}
    optional = {"triton", "sqlalchemy"}  # used where torch and mlflow bring them
    homes = packages_distributions()
    missing = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - optional:
                if named.isdisjoint(home.lower().replace("_", "-") for home in homes.get(name, [name])):
                    missing.add(f"{file.name}: {name}")
    assert missing == set()


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


def test_helps_speak_alike():
    """Where a default stands, how memory is called, and that no option is in no page."""
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    for name, command in commands.items():
        for action in command._actions:
            text = action.help or ""
            assert not re.search(r" \(default|, default|default (as|like|%)|see the docs", text), f"{name}: {text}"
            assert action.metavar != "GB", name
            assert "-np" not in action.option_strings or "; default: " in text, name
            for option in action.option_strings:
                assert option in pages or option in ("-h", "--help"), f"{name} {option}"
