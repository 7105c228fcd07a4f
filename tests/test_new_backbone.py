"""`nnunet-plugins new-backbone`: a package of four files that works as it is, and leaves without a trace."""

import re
from functools import partial
from pathlib import Path

import pytest
from conftest import Sandbox
from test_discovery import Environment, link_nnunet, wheel  # noqa: F401 - a fixture

from nnunet_plugins import __version__
from nnunet_plugins.cli import main

TRAINER = "nnUNetTrainerMyLab_1epochs_2iterations"


def test_four_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-backbone", "my-lab"]) == 0
    files = sorted(path.name for path in (tmp_path / "my-lab").iterdir())
    assert files == ["README.md", "my_lab.py", "pyproject.toml", "test_my_lab.py"]
    assert "nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerMyLab" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "my-lab").iterdir() if "$" in path.read_text()]
    written = {path: path.read_bytes() for path in (tmp_path / "my-lab").iterdir()}
    assert main(["new-backbone", "my-lab"]) == 2
    assert "my-lab exists already; nothing is overwritten" in capsys.readouterr().err
    assert written == {path: path.read_bytes() for path in (tmp_path / "my-lab").iterdir()}
    assert main(["new-backbone", "my-lab", "-o", "sub/other", "-tr", "nnUNetTrainerOther"]) == 0
    assert 'trainer="nnUNetTrainerOther"' in (tmp_path / "sub" / "other" / "my_lab.py").read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["MyLab"], "'MyLab' is no name for a package; small letters and digits"),
        (["my lab"], "'my lab' is no name for a package"),
        (["../mylab"], "'../mylab' is no name for a package"),
        (["2lab"], "'2lab' is no name for a package"),
        (["class"], "'class' is a word of Python's own"),
        (["monai"], "there is a module 'monai' already"),
        (["json"], "there is a module 'json' already"),
        (["mylab", "-tr", "nnUNetTrainerFIRENet"], "brings nnUNetTrainerFIRENet; choose another with -tr"),
        (["mylab", "-tr", "nnUNetTrainerDA5"], "nnU-Net itself has a trainer nnUNetTrainerDA5"),
        (["mylab", "-tr", "nnUNetTrainerMy_Net"], "'nnUNetTrainerMy_Net' is no name for a trainer"),
        (["mylab", "-tr", "MyNet"], "'MyNet' is no name for a trainer"),
    ],
    ids=" ".join,
)
def test_bad_names_are_refused_with_the_reason(tmp_path, monkeypatch, capsys, options, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["new-backbone", *options]) == 2
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_package_installs_trains_predicts_passes_and_leaves_without_a_trace(tmp_path, small: Sandbox, wheel):  # noqa: F811
    environment = Environment(tmp_path / "env")
    link_nnunet(environment)
    environment.install(wheel)
    folders = {name: value for name, value in small.env.items() if name.startswith("nnUNet_")}

    def run_there(*command: object) -> str:
        """A command of the environment's own; others find the heavy libraries loaded, and its packages."""
        result = environment.run(environment.bin / str(command[0]), *command[1:], **folders)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    run = partial(small.run, PYTHONPATH=str(environment.site))
    before = files_of(environment)
    package = tmp_path / "my-lab"
    run("nnunet-plugins", "new-backbone", "my-lab", "-o", package)
    environment.install(package, "--no-index")
    assert "two levels of convolutions (from my-lab 0.1.0)" in run_there("nnunet-plugins", "list")
    # pytest would warn in every environment of a package that is there before it.
    strict = ("-W", "error::pytest.PytestWarning", "-p", "no:cacheprovider")
    passed = run_there("python", "-m", "pytest", "-q", *strict, package)
    assert " passed" in passed
    assert "skipped" not in passed
    common = ("-tr", TRAINER, "-p", "small", "-device", "cpu")
    run("nnUNetv2_train", 1, "2d", 0, *common)
    images, output = small.raw / "Dataset001_Small" / "imagesTs", tmp_path / "predicted"
    data = ("-i", images, "-o", output, "-d", 1, "-c", "2d", "-f", 0, "-npp", 1, "-nps", 1, "--disable_tta")
    run("nnUNetv2_predict", *data, *common)
    assert len(list(output.glob("*.nii.gz"))) == len(list(images.iterdir()))
    submission = tmp_path / "submission"
    exported = ("-d", 1, "-c", "2d", "-f", 0, "-tr", TRAINER, "-p", "small", "--no-wheels", "-o", submission)
    run("nnunet-plugins", "export-submission", *exported)
    wheels = {path.name for path in (submission / "wheels").iterdir()}
    assert {"my_lab-0.1.0-py3-none-any.whl", f"nnunet_plugins-{__version__}-py3-none-any.whl"} == wheels
    assert "my-lab==0.1.0" in (submission / "requirements.txt").read_text()
    checked = run("nnunet-plugins", "export-submission", "--check", submission, "-i", images, "--cases", 1)
    assert "with the shipped wheels of nnunet-plugins and my-lab" in checked
    assert "0 problems" in checked
    environment.pip("uninstall", "-q", "-y", "my-lab")
    assert files_of(environment) == before
    assert "MyLab" not in run_there("nnunet-plugins", "list")
    (checkpoint,) = small.results.glob(f"Dataset001_Small/{TRAINER}__*/fold_0/checkpoint_final.pth")
    looked = run("nnunet-plugins", "doctor", checkpoint, ok=False)
    assert re.search(r"its network my_lab\.\w+ comes from my-lab 0.1.0", looked)
    assert "no backbone is called 'nnUNetTrainerMyLab'" in looked
    assert "remedy: pip install 'my-lab==0.1.0'" in looked


def files_of(environment: Environment) -> set[Path]:
    found = (path for path in environment.site.rglob("*") if "__pycache__" not in path.parts)
    return {path for path in found if not path.is_symlink()}
