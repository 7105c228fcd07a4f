"""Installation in throw-away environments: discovery as wheel and editable, opt-out, uninstall, the doctor.

The environments share this environment's third-party packages through links, so that nothing large is installed.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

FIND = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
    "c = find('nnUNetTrainerFIRENet_2epochs'); import nnunetv2; print('FOUND', c.__module__, nnunetv2.__file__)"
)
SHOW = "import os; print(os.environ.get('nnUNet_extTrainer'))"
SITE = Path(sysconfig.get_path("purelib"))


class Environment:
    """A virtual environment with all third-party packages but nnU-Net and this one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        venv.create(root, symlinks=True)
        self.bin = root / "bin"
        self.site = next((root / "lib").glob("python*/site-packages"))
        links = root / "third_party"
        links.mkdir()
        for entry in SITE.iterdir():
            if (
                not entry.name.startswith(("nnunet", "_editable_impl_nnunet", "__editable__"))
                and entry.suffix != ".pth"
            ):
                (links / entry.name).symlink_to(entry)
        (self.site / "third_party.pth").write_text(f"{links}\n")

    def pip(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    def install(self, source: object, *options: object) -> None:
        # Console scripts of packages that are only linked here, hatchling's among them, are not needed to build.
        self.pip("install", "-q", "--no-deps", "--no-build-isolation", *options, source)

    def run(self, *command: object, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_") and k != "PYTHONPATH"}
        clean["PATH"] = f"{self.bin}{os.pathsep}{clean['PATH']}"
        return subprocess.run(
            list(map(str, command)), env={**clean, **env}, cwd=self.root, capture_output=True, text=True, check=False
        )

    def python(self, code: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.bin / "python", "-c", code, **env)

    def find_line(self, **env: str) -> str:
        """Let nnU-Net search for one of our trainers; returns what it found, or its error's last line."""
        result = self.python(FIND, **env)
        lines = [line for line in result.stdout.splitlines() if line.startswith("FOUND")]
        return lines[0] if lines else result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", ".demo", "__pycache__", "_build"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(list(map(str, command)), check=True)
    return next(folder.glob("nnunet_plugins-*.whl"))


@pytest.fixture(scope="module")
def nnunet_source(tmp_path_factory) -> Path:
    """nnU-Net's released sources, to be installed as a checkout."""
    folder = tmp_path_factory.mktemp("nnunet")
    version = metadata.version("nnunetv2")
    command = ["download", "-q", "--no-deps", "--no-binary", "nnunetv2", "-d", str(folder), f"nnunetv2=={version}"]
    result = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"nnU-Net's sources cannot be downloaded: {result.stderr[-300:]}")
    shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder)
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Environment:
    """Both packages as wheels: what `pip install` gives."""
    result = Environment(tmp_path_factory.mktemp("wheels") / "env")
    link_nnunet(result)
    result.install(wheel)
    return result


def link_nnunet(environment: Environment) -> None:
    """Put nnU-Net's installed wheel into an environment, with console scripts; the doctor looks for one of them."""
    for entry in SITE.glob("nnunetv2*"):
        (environment.site / entry.name).symlink_to(entry)
    for name, module, function in [
        ("nnUNetv2_train", "run.run_training", "run_training_entry"),
        ("nnUNetv2_predict", "inference.predict_from_raw_data", "predict_entry_point"),
        ("nnUNetv2_predict_from_modelfolder", "inference.predict_from_raw_data", "predict_entry_point_modelfolder"),
    ]:
        script = environment.bin / name
        code = f"if __name__ == '__main__':\n    from nnunetv2.{module} import {function}\n    {function}()\n"
        script.write_text(f"#!{environment.bin / 'python'}\n{code}")
        script.chmod(0o755)


def test_wheel_carries_the_startup_files_beside_the_package(wheel):
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert "nnunet_plugins.pth" in names
    assert "nnunet_plugins.start" in names
    assert not [name for name in names if name.startswith("nnunet_plugins/nnunet_plugins.")]
    assert not [name for name in names if name.startswith("tests")]


def test_startup_is_one_line():
    assert len((ROOT / "nnunet_plugins" / "nnunet_plugins.pth").read_text().splitlines()) == 1
    assert (ROOT / "nnunet_plugins" / "nnunet_plugins.start").read_text() == "nnunet_plugins._startup:register\n"


def test_found_after_a_plain_install(environment):
    assert environment.find_line().startswith("FOUND nnunet_plugins.trainers")


def test_found_in_spawned_and_forked_workers(environment):
    code = (
        "import multiprocessing as m, os\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'fork', 'forkserver'):\n"
        "        with m.get_context(method).Pool(1) as pool:\n"
        "            print(method, pool.apply(os.getenv, ('nnUNet_extTrainer',)))\n"
    )
    file = environment.root / "workers.py"
    file.write_text(code)
    lines = environment.run(environment.bin / "python", file).stdout.split()
    folder = str(environment.site / "nnunet_plugins" / "trainers" / "scanned")
    assert lines == ["spawn", folder, "fork", folder, "forkserver", folder]


def test_a_users_own_folder_is_kept_and_comes_first(environment, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerMine(nnUNetTrainer): pass\n"
    )
    code = f"{FIND}; print('FOUND', find('nnUNetTrainerMine').__module__)"
    result = environment.python(code, nnUNet_extTrainer=str(tmp_path))
    ours, mine = (line for line in result.stdout.splitlines() if line.startswith("FOUND"))
    assert ours.startswith("FOUND nnunet_plugins.trainers")
    assert mine == "FOUND mine"
    show = "import os, subprocess, sys; print(os.environ['nnUNet_extTrainer']); sys.stdout.flush(); "
    again = "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"nnUNet_extTrainer\"])'])"
    first, second = environment.python(show + again, nnUNet_extTrainer=str(tmp_path)).stdout.splitlines()
    assert first == second == f"{tmp_path}{os.pathsep}{environment.site}/nnunet_plugins/trainers/scanned"


FIND_BOTH = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
print("FOUND", find("nnUNetTrainerMine").__module__)
try:
    find("nnUNetTrainerFIRENet")
except RuntimeError as error:
    print("REFUSED", error)
"""


@pytest.mark.parametrize("there", ["no package", "an older one"])
def test_children_in_other_environments_find_their_own_trainers(environment, tmp_path, there):
    """They inherit the variable, and with it our folder, before folders that they add."""
    other = Environment(tmp_path / "env")
    link_nnunet(other)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerMine(nnUNetTrainer): pass\n"
    )
    if there == "an older one":
        (other.site / "nnunet_plugins" / "trainers").mkdir(parents=True)
        (other.site / "nnunet_plugins" / "__init__.py").write_text("")
    leaked = f"{environment.site}/nnunet_plugins/trainers/scanned{os.pathsep}{mine}"
    result = other.python(FIND_BOTH, nnUNet_extTrainer=leaked)
    assert "FOUND mine" in result.stdout, result.stderr
    assert "REFUSED Could not find requested nnunet trainer nnUNetTrainerFIRENet" in result.stdout
    (line,) = (line for line in result.stderr.splitlines() if "nnunet_plugins" in line)  # nnU-Net asks for its folders
    assert line.startswith(f"nnunet_plugins: its trainers cannot be had from {other.root} (")
    assert "No module named 'nnunet_plugins" in line


@pytest.mark.parametrize("content", ["", "raise RuntimeError('not for this Python')"])
def test_another_package_of_the_name_first_on_the_path_makes_no_noise(environment, tmp_path, content):
    (tmp_path / "nnunet_plugins").mkdir()
    (tmp_path / "nnunet_plugins" / "__init__.py").write_text(content)
    result = environment.python("print('started')", PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (0, "started\n", "")


def test_opting_out(environment):
    assert environment.python(SHOW, nnUNet_plugins_discovery="0").stdout == "None\n"
    folder = environment.run(environment.bin / "nnunet-plugins", "trainer-path").stdout.strip()
    by_hand = environment.find_line(nnUNet_plugins_discovery="0", nnUNet_extTrainer=folder)
    assert by_hand.startswith("FOUND nnunet_plugins.trainers")


def test_doctor_in_a_sound_installation(environment, tmp_path):
    folders = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), str(tmp_path))
    result = environment.run(environment.bin / "nnunet-plugins", "doctor", "--json", **folders)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["summary"]["problem"] == 0
    assert "nnU-Net finds nnUNetTrainerFIRENet" in result.stdout
    assert f"nnunetv2 {metadata.version('nnunetv2')} in" in result.stdout


def test_doctor_names_problems_and_remedies(environment, tmp_path):
    missing = str(tmp_path / "missing")
    folders = {"nnUNet_raw": missing, "nnUNet_results": str(tmp_path), "nnUNet_extTrainer": missing}
    result = environment.run(environment.bin / "nnunet-plugins", "doctor", nnUNet_plugins_discovery="0", **folders)
    assert result.returncode == 1
    for problem, remedy in [
        (f"nnUNet_raw = {missing}, which is no folder", f"mkdir -p {missing}"),
        ("nnUNet_preprocessed is not set", "export nnUNet_preprocessed="),
        (f"nnUNet_extTrainer lists {missing}, which is no folder", "correct nnUNet_extTrainer"),
        ("discovery is switched off by nnUNet_plugins_discovery", "unset nnUNet_plugins_discovery"),
        ("nnU-Net does not find nnUNetTrainerFIRENet", "export nnUNet_extTrainer=$(nnunet-plugins trainer-path)"),
    ]:
        assert problem in result.stdout
        assert f"remedy: {remedy}" in result.stdout or remedy in result.stdout.split(problem)[1].splitlines()[1]


def test_doctor_with_an_old_nnunet(tmp_path, wheel):
    """The finder of 2.7 does not read nnUNet_extTrainer; only the metadata has to be old for the doctor to say so."""
    old = Environment(tmp_path / "env")
    link_nnunet(old)
    (installed,) = old.site.glob("nnunetv2-*.dist-info")
    installed.unlink()
    folder = old.site / "nnunetv2-2.7.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.7.0\n")
    old.install(wheel)
    result = old.run(old.bin / "nnunet-plugins", "doctor")
    assert result.returncode == 1
    assert "pip install --upgrade 'nnunetv2>=2.8'" in result.stdout


def test_uninstall_leaves_nothing(tmp_path, wheel):
    environment = Environment(tmp_path / "env")
    link_nnunet(environment)
    before = {path.name for path in environment.site.iterdir()}
    environment.install(wheel)
    assert environment.python(SHOW).stdout == f"{environment.site}/nnunet_plugins/trainers/scanned\n"
    environment.pip("uninstall", "-q", "-y", "nnunet-plugins")
    assert {path.name for path in environment.site.iterdir()} == before
    assert environment.python(SHOW).stdout == "None\n"  # nnU-Net has nothing else to go by
    assert "Could not find requested nnunet trainer" in environment.find_line()


@pytest.mark.parametrize("ours", ["wheel", "editable"])
def test_with_a_checkout_of_nnunet(tmp_path, wheel, nnunet_source, ours):
    """With its wheel, ours as a wheel is `environment`, and as a checkout it is where these tests run."""
    environment = Environment(tmp_path / "env")
    environment.install(nnunet_source, "-e")
    environment.install(*((wheel,) if ours == "wheel" else (ROOT, "-e")))
    line = environment.find_line()
    assert line.startswith("FOUND nnunet_plugins.trainers")
    assert str(nnunet_source) in line
    place = environment.python("import nnunet_plugins; print(nnunet_plugins.__file__)").stdout
    assert (str(ROOT) in place) == (ours == "editable")
