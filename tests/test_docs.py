"""Every command in the README and the docs runs, and what they print of the project is true."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from pkgutil import resolve_name

import pytest
from conftest import ROOT, Sandbox, commands, write_dataset

from nnunet_plugins import __version__
from nnunet_plugins.trainers.names import parse

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Run by other tests, or by running these tests at all; here it is only checked that make knows them.
MAKE_TARGETS = ("make demo", "make test")


DATASETS = {
    "Dataset004_Hippocampus": ("Anterior", "Posterior"),
    "Dataset101_Knee": ("femur", "tibia"),
    "Dataset102_Shoulder": ("bone", "scapula"),
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def shorten(code: str) -> str:
    """Make a page's commands affordable: one epoch, one iteration, one worker, the CPU; and nothing gets installed."""
    code = code.replace("\\\n", " ").replace("/path/to", ".")
    # The dataset is planned with a batch of many tiny patches; the batch of two has another plans name.
    lines = []
    for line in code.splitlines():
        # The name is also part of folder names, before "__".
        line = re.sub(
            r"(nnUNetTrainer[A-Za-z0-9]*)((?:_(?!_)\w+?)*)(?=__|\s|$|[/:])",
            lambda match: match[1] + re.sub(r"_\d+(epochs|iterations)", "", match[2]) + "_1epochs_1iterations",
            line,
        )
        line = line.replace("nnUNetPlans__", "small__").replace("-sp nnUNetPlans ", "-sp small ")
        command = line.split()[0] if line.split() else ""
        if command in ("nnUNetv2_train", "nnUNetv2_predict"):
            line += " -device cpu"
        if command == "nnUNetv2_predict":
            line += " --disable_tta"
        if command == "nnUNetv2_plan_and_preprocess":
            copy = "cp $SMALL_PLANS $nnUNet_preprocessed/Dataset004_Hippocampus"
            # Of others, whose cases are as those.
            for other in ("Dataset900_Bones", "Dataset101_Knee", "Dataset301_KneeFixed", "Dataset104_HippocampusCLAHE"):
                if f"-d {other[7:10]}" in line:
                    folder = f"$nnUNet_preprocessed/{other}"
                    fingerprint = "$nnUNet_preprocessed/Dataset004_Hippocampus/dataset_fingerprint.json"
                    lines.append(f"mkdir -p {folder}\ncp {fingerprint} {folder}")
                    copy = f"sed s/Dataset004_Hippocampus/{other}/ $SMALL_PLANS > {folder}/small.json"
            line = f"nnUNet_n_proc_DA=1 {line} -np 1 -npfp 1\n{copy}"
        elif command == "nnUNetv2_preprocess":
            line += " -np 1"
        elif "--scheme clahe" in line:
            line += " --tile 4 4 4"  # the images here are small
        elif "-tr" in line.split() and "-p" not in line.split() and command.startswith("nnUNetv2"):
            line += " -p small"
        if line == "nnunet-plugins report docs/league":
            line = f"mkdir docs && cp -r {ROOT}/docs/league docs && {line}"  # nothing is written into the checkout
        if line.startswith("nnunet-plugins predict"):
            line += " -device cpu" + ("" if "--spacing-factor" in line else " --disable_tta")
        if line.startswith(("nnunet-plugins predict", "nnunet-plugins export-onnx")):
            line += "" if "-p" in line.split() else " -p small"
        if line.startswith("nnunet-plugins explain"):
            line += " -device cpu" + ("" if "--maps" in line.split() else " --maps gradcam gates")
        if line.startswith("nnunet-plugins benchmark"):
            line = re.sub(r" --gpus \d+", "", line) + " -f 0 --device cpu"
            line += "" if "--merged" in line or "-p" in line.split() else " -p small"  # merged: no such plans
            line += " --dry-run" if re.search("--(cluster|gpu-memory|merged|repeats)", line) else ""
        if line.startswith("nnunet-plugins doctor"):
            line += " -p small" if "-tr" in line.split() and "-p" not in line.split() else ""
            # It finds fault with any but the environment's own commands.
            line = f"PATH=${{PATH#*:}} $PRELOADED/{line}"
        if line.startswith("nnunet-plugins export-submission -d"):
            line = re.sub(r" -f [\d ]+", " -f 0 ", line) + " -p small --no-wheels"
        if command == "nnUNetv2_find_best_configuration":
            line = re.sub(r" -f [\d ]+", " -f 0 ", line)
        if command.endswith("predict.sh"):
            line = f"VENV=$READY {line} --device cpu"  # what is not shipped without wheels need not be downloaded
        if line.startswith("nnunet-plugins check-backbone"):
            line += " --help"  # it takes a minute, and test_check_backbone.py runs it
        if line.startswith("nnunet-plugins new-backbone"):
            line = f"[ -d {line.split()[-1]} ] || {line}"  # another page may have made it
        if command == "pip" and line.endswith(" ./mylab"):
            line = line.replace("-e", "-q --target $SITE")  # not into the environment of the tests
        elif command == "pip":
            line += " --dry-run --no-deps --no-build-isolation -q"
        lines.append(line)
    return "\n".join(lines)


def ready_environment(folder: Path) -> Path:
    """Make an environment as predict.sh does from wheels, with what is installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    library = next((folder / "lib").glob("python*/site-packages"))
    (library / "borrowed.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    (folder / "ready").touch()
    return folder


@pytest.fixture(scope="module")
def hippocampus(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A sandbox with a small dataset under the name that the docs use, not yet planned, and a plan with batch two."""
    other = Sandbox(tmp_path_factory.mktemp("plans"))
    write_dataset(other.raw, "Dataset004_Hippocampus", test_cases=0)
    other.fingerprint(4)
    command = ("nnUNetv2_plan_and_preprocess", "-d", 4, "-c", "3d_fullres", "-np", 1, "-npfp", 1, "--no_pp")
    other.run(*command, nnUNet_n_proc_DA="1")

    other.edit_plans("Dataset004_Hippocampus", "small")
    sandbox = Sandbox(tmp_path_factory.mktemp("docs"))
    for dataset, (outer, inner) in DATASETS.items():
        write_dataset(sandbox.raw, dataset, labels={"background": 0, outer: 1, inner: 2}, test_cases=1)
    groups = [f"case_{number},patient_{number}" for number in range(5)]
    (sandbox.root / "groups.csv").write_text("\n".join(["case,group", *groups]))
    folder = sandbox.preprocessed / "Dataset004_Hippocampus"
    folder.mkdir()
    shutil.copy(other.preprocessed / folder.name / "dataset_fingerprint.json", folder)
    sandbox.env["SMALL_PLANS"] = str(other.preprocessed / "Dataset004_Hippocampus" / "small.json")
    sandbox.env["SITE"] = sandbox.env["PYTHONPATH"] = str(sandbox.root / "site")
    sandbox.env["READY"] = str(ready_environment(sandbox.root / "ready"))
    sandbox.env["PRELOADED"] = str(commands())
    sandbox.env["PATH"] = f"{commands()}:{Path(sys.executable).parent}:{sandbox.env['PATH']}"
    return sandbox


# The page with the whole walk comes first: it plans the dataset that the others train on.
WITH_COMMANDS = sorted(
    (page for page in PAGES if blocks(page, "bash")), key=lambda page: page.stem != "train-and-predict"
)


RUN_BEFORE: set[str] = set()


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_commands_run(page: Path, hippocampus: Sandbox):
    """All bash blocks of a page, in their order, in one shell; what a page before has run is not run again."""
    lines = "\n".join(blocks(page, "bash")).splitlines()
    for target in MAKE_TARGETS:
        if target in lines:
            lines.remove(target)
            subprocess.run(["make", "-n", target.split()[1]], cwd=ROOT, check=True, capture_output=True)
    # What a user does in the checkout is done there, the rest in the folder with the data.
    for file in blocks(page, "yaml"):
        (hippocampus.root / "cluster.yaml").write_text(file)
    shortened = shorten("\n".join(lines)).splitlines()
    new = [line for line in shortened if without_npz(line) not in RUN_BEFORE]
    script = "\n".join(f"(cd {ROOT} && {line})" if re.match("pip(?!.* ./mylab$)", line) else line for line in new)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=hippocampus.root,
        env=hippocampus.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{script}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    runs = re.compile(r"(\w+=\S+ )?(\$PRELOADED/)?(nnUNetv2_|nnunet-plugins |pip )")
    RUN_BEFORE.update(without_npz(line) for line in new if runs.match(line))


def without_npz(line: str) -> str:
    """A training that also kept its probabilities was that training."""
    return line.replace(" --npz", "")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page: Path):
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), {"__name__": "docs"})


def test_the_startup_line_in_the_docs_is_the_one_that_is_installed():
    line = (ROOT / "nnunet_plugins" / "nnunet_plugins.pth").read_text()
    assert line in blocks(ROOT / "docs" / "install.md", "text")


def test_the_drawings_are_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    fabric = runpy.run_path(str(ROOT / "docs" / "draw_fabric.py"))
    assert fabric["FILE"].read_text() == fabric["draw"](), "run python docs/draw_fabric.py"
    implicit = runpy.run_path(str(ROOT / "docs" / "draw_implicit.py"))
    assert implicit["FILE"].read_text() == implicit["draw"](), "run python docs/draw_implicit.py"
    autofocus = runpy.run_path(str(ROOT / "docs" / "draw_autofocus.py"))
    for file, draw in autofocus["DRAWINGS"].items():
        assert file.read_text() == draw(), "run python docs/draw_autofocus.py"


def test_the_curve_of_steps_is_the_table_of_its_page(monkeypatch):
    """matplotlib writes it in another way in each version; what is drawn stands in it in words."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    steps = runpy.run_path(str(ROOT / "docs" / "draw_steps.py"))
    told = f"<dc:description>{steps['describe']()}</dc:description>"
    assert told.count("0.") > 8
    for drawing in (steps["FILE"].read_text(), steps["draw"]()):
        assert told in drawing, "run python docs/draw_steps.py"


def there(place: str) -> bool:
    """Tell whether the package has a module, or a name in one."""
    try:
        resolve_name(f"nnunet_plugins.{place}")
    except (ImportError, AttributeError):
        return False
    return True


def test_what_has_moved_since_0_1_0_is_where_its_page_says():
    page = (ROOT / "docs" / "from-0.1.0.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \| (`.+`) \|$", page, re.MULTILINE)
    moved = {before: re.findall("`(.+?)`", now) for before, now in rows}
    assert [before for before in moved if there(before)] == []
    assert [now for places in moved.values() for now in places if not there(now)] == []
    names = json.loads((ROOT / "tests" / "data" / "0.1.0" / "names.json").read_text())
    gone = {module for module in names if not there(module)}
    lost = {
        f"{module}.{name}"
        for module in gone & moved.keys() - {"report.comparison"}
        for name in names[module]
        if not any(there(f"{place}.{name}") for place in moved[module])
    }
    said = page.partition("\nGone are ")[2].partition(", and\n")[0]
    assert lost == {*re.findall("`(.+?)`", said), "submission.sources.SubmissionError"}
    for module in names.keys() - gone:
        if module.startswith(("networks", "registry", "trainers", "metrics", "submission")):
            gone |= {f"{module}.{name}" for name in names[module] if not there(f"{module}.{name}")}
    assert gone == moved.keys() - {"submission.sources.SubmissionError"}


def test_what_pages_and_new_packages_import_is_in_the_reference():
    reference = (ROOT / "docs" / "python.md").read_text()
    texts = [*(code for page in PAGES for code in blocks(page, "python"))]
    texts += [file.read_text() for file in (ROOT / "nnunet_plugins" / "template").glob("*.py.in")]
    imported = [found for text in texts for found in re.findall(r"from (nnunet_plugins\.\S+) import (.+)", text)]
    places = {
        module if name.startswith("*") else f"{module}.{name.strip()}"
        for module, names in imported
        for name in names.split(",")
        if module != "nnunet_plugins.trainers"  # which has trainers by their names
    }
    assert len(places) > 5
    for place in places:
        module, _, name = place.rpartition(".")
        listed = f".. automodule:: {module}\n" in reference and re.search(rf":members:.*\b{name}\b", reference)
        assert place in reference or listed, place


def test_the_index_fits_one_screen_and_the_readme_three():
    index = (ROOT / "docs" / "index.md").read_text()
    assert len(index.split("```{toctree}")[0].splitlines()) <= 30
    assert len((ROOT / "README.md").read_text().splitlines()) < 110


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_trainers_in_the_readme_exist():
    names = re.findall(r"\bnnUNetTrainer\w*", (ROOT / "README.md").read_text())
    assert len(names) > 5
    for name in names:
        parse(name)


def test_version_is_the_same_everywhere():
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "docs" / "changelog.md").read_text()
