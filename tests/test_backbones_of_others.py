"""Rows that other packages and single files bring: what they get, and what is said where they cannot be used."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_plugins import backbones
from nnunet_plugins._startup import VARIABLE, trainer_folder
from nnunet_plugins.benchmark.sources import source_files
from nnunet_plugins.cli import main
from nnunet_plugins.doctor.installation import LOOKUP
from nnunet_plugins.errors import InputError
from nnunet_plugins.program import leave_out_working_folder
from nnunet_plugins.testing.distributed import two_processes
from nnunet_plugins.trainers.backbone import ORIGIN
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.names import UnknownTrainerError, parse
from nnunet_plugins.trainers.progress import PROGRESS

NETWORK = """
from torch import nn
from nnunet_plugins.networks.layers.head import Head

class Net(nn.Module):
    def __init__(self, input_channels, num_classes, deep_supervision, dim):
        super().__init__()
        self.decoder = Head([input_channels], num_classes, dim, deep_supervision=deep_supervision)

    @classmethod
    def from_plan(cls, *, input_channels, num_classes, deep_supervision, patch_size, **_):
        return cls(input_channels, num_classes, deep_supervision, len(patch_size))

    def forward(self, x):
        return self.decoder([x])
"""
ROW = """
Backbone(
    trainer="nnUNetTrainer{name}",
    network={network},
    recipe="nnunet_plugins.trainers.backbone.BackboneTrainer",
    summary="one layer",
    paper="none",
    dimensions=(2, 3),
    twin={twin!r},
),"""


def rows(*names: str, network: str = '"mylab_net.Net"', twin: str = "nnUNetTrainer") -> str:
    listed = "".join(ROW.format(name=name, network=network, twin=twin) for name in names)
    return f"from nnunet_plugins.rows import Backbone\nBACKBONES = [{listed}]\n"


class House:
    """Packages and files of other people, as they lie on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.files, self.monkeypatch = folder / "site", folder / "files", monkeypatch
        self.site.mkdir()
        self.files.mkdir()
        monkeypatch.syspath_prepend(str(self.site))
        monkeypatch.setenv(VARIABLE, f"{self.files}:{trainer_folder()}")
        (self.site / "mylab_net.py").write_text(NETWORK)

    def package(self, name: str, code: str, entry: str | None = None) -> None:
        module = name.replace("-", "_")
        (self.site / f"{module}_rows.py").write_text(code)
        info = self.site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        entry = entry or f"{name} = {module}_rows:BACKBONES"
        (info / "entry_points.txt").write_text(f"[{backbones.GROUP}]\n{entry}\n")

    def reasons(self) -> dict[str | None, str]:
        return {one.trainer: str(one) for one in backbones.others().unusable}


@pytest.fixture
def house(tmp_path, monkeypatch):
    before = set(sys.modules)
    backbones._others.cache_clear()
    yield House(tmp_path, monkeypatch)
    backbones._others.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("mylab", "other", "nnunet_plugins_file_")):
            del sys.modules[name]


def logits(name: str) -> torch.Tensor:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    stages = {"strides": [(1, 1)], "kernel_sizes": [(3, 3)]}
    plan = {"patch_size": (4, 4), "architecture": {"arch_kwargs": stages, "_kw_requires_import": []}}
    network = trainer_class(name).build_network_architecture(None, ConfigurationManager(plan), 1, 2, False)
    return network(torch.zeros(1, 1, 4, 4))


def test_a_packages_row_gets_what_ours_get(house, capsys):
    house.package("mylab", rows("MyNet", "MyNetPaper"))
    found = recursive_find_trainer_class_by_name("nnUNetTrainerMyNet_3epochs_NoMirroring")
    assert found is trainer_class("nnUNetTrainerMyNet_3epochs_NoMirroring")
    assert logits("nnUNetTrainerMyNet").shape == (1, 2, 4, 4)
    capsys.readouterr()
    assert main(["list"]) == 0
    assert re.search(r"^nnUNetTrainerMyNet .*one layer \(from mylab 1.2\)$", capsys.readouterr().out, re.MULTILINE)
    assert main(["list", "--json"]) == 0
    (row,) = [one for one in json.loads(capsys.readouterr().out)["backbones"] if one["trainer"] == "nnUNetTrainerMyNet"]
    assert row["source"] == {"place": "mylab_rows:BACKBONES", "distribution": "mylab", "version": "1.2"}
    with pytest.raises(UnknownTrainerError, match="nearest valid name is 'nnUNetTrainerMyNetPaper'"):
        parse("nnUNetTrainerMyNetPapr")


def test_a_file_may_hold_the_class_itself(house):
    (house.files / "lab.py").write_text(NETWORK + rows("LabNet", network="Net"))
    (house.files / "aside.py").write_text("if __name__ != 'aside':\n    raise SystemExit('not for us')\n")
    assert recursive_find_trainer_class_by_name("nnUNetTrainerLabNet_2epochs").__module__ == "nnunet_plugins.trainers"
    assert logits("nnUNetTrainerLabNet").shape == (1, 2, 4, 4)
    assert backbones.source_of("nnUNetTrainerLabNet") == backbones.Source(str(house.files / "lab.py"))
    assert house.reasons() == {}, "the other file was not run"


def test_nothing_is_imported_for_our_own_names(house):
    house.package("mylab", "raise RuntimeError('imported')")
    parse("nnUNetTrainerFIRENet_3epochs")
    parse("nnUNetTrainer_3epochs")
    assert backbones._others.cache_info().misses == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("BACKBONES = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Stop(BaseException): ...\nraise Stop('here')", "Stop: here"),
        ("", "AttributeError: module 'mylab_rows' has no attribute 'BACKBONES'"),
        ("BACKBONES = 3", "it is no sequence of rows but int 3"),
        ("BACKBONES = 'text'", "it is no sequence of rows but str 'text'"),
        (
            rows("MyNet").replace('    paper="none",\n', ""),
            "TypeError: .*missing 1 required positional argument: 'paper'",
        ),
    ],
    ids=range(8),
)
def test_a_source_that_cannot_be_loaded_is_told(house, code, reason, capsys):
    house.package("mylab", code)
    assert re.fullmatch(rf"mylab 1.2 \(mylab_rows:BACKBONES\) cannot be used: {reason}.*", house.reasons()[None])
    assert main(["list"]) == 0
    assert "Left out: mylab 1.2 (mylab_rows:BACKBONES) cannot be used" in capsys.readouterr().out
    with pytest.raises(UnknownTrainerError, match=r"no backbone is called 'nnUNetTrainerMyNet'; mylab 1.2 .* cannot"):
        parse("nnUNetTrainerMyNet")
    parse("nnUNetTrainerFIRENet")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("nnUNetTrainerMyNet", "nnUNetTrainerFIRENet"), "nnunet-plugins itself has a backbone of this name"),
        (("nnUNetTrainerMyNet", "nnUNetTrainerDA5"), "nnU-Net itself has a trainer of this name"),
        (("nnUNetTrainerMyNet", "nnUNetTrainerMy_Net"), "'nnUNetTrainerMy_Net' is no name for a trainer"),
        (("nnUNetTrainerMyNet", "MyNet"), "'MyNet' is no name for a trainer"),
        (('"nnUNetTrainerMyNet"', "['nnUNetTrainerMyNet']"), "['nnUNetTrainerMyNet'] is no name for a trainer"),
        (("twin='nnUNetTrainer'", "twin='nnUNetTrainerNo'"), "its twin 'nnUNetTrainerNo' is no other trainer's name"),
        (("twin='nnUNetTrainer'", "twin='nnUNetTrainerMyNet'"), "its twin 'nnUNetTrainerMyNet' is no other trainer's"),
        (('paper="none"', 'paper=""'), "its paper is '', and has to be text"),
        (('"one layer"', '"one\\nlayer"'), r"its summary is 'one\nlayer', and has to be text of one line"),
        (("(2, 3)", "(4,)"), "its dimensions are (4,), and have to be (2,), (3,) or (2, 3)"),
        (("(2, 3)", "([2],)"), "its dimensions are ([2],), and have to be (2,), (3,) or (2, 3)"),
        (("(2, 3)", "3"), "its dimensions are 3, and have to be (2,), (3,) or (2, 3)"),
        (('"mylab_net.Net"', '"Net"'), "its network is 'Net', and has to be an import path"),
        (('"mylab_net.Net"', "None"), "its network is None, and has to be an import path"),
        (('paper="none"', 'paper="none", options=[1]'), "its options are list [1], and have to be a mapping"),
        (("BACKBONES = [", "BACKBONES = ['row',"), "it holds str 'row' in place of a nnunet_plugins.rows.Backbone"),
    ],
    ids=range(16),
)
def test_a_row_that_cannot_be_used_is_told_and_the_others_are_there(house, change, reason):
    code = rows("MyNet")
    assert change[0] in code
    house.package("mylab", code.replace(*change))
    house.package("other", rows("Other"))
    (text,) = house.reasons().values()
    assert "of mylab 1.2 (mylab_rows:BACKBONES) cannot be used: " in text or text.startswith("mylab 1.2 ")
    assert reason in text
    assert "nnUNetTrainerOther" in backbones.others().rows
    assert backbones.find("nnUNetTrainerFIRENet") is backbones.OURS["nnUNetTrainerFIRENet"]


def test_two_packages_with_one_name_are_both_named_and_neither_is_taken(house):
    house.package("mylab", rows("MyNet", "Mine"))
    house.package("other-lab", rows("MyNet"))
    found = backbones.others()
    assert set(found.rows) == {"nnUNetTrainerMine"}
    assert len(found.unusable) == 2
    for one in found.unusable:
        assert "mylab 1.2 (mylab_rows:BACKBONES) and other-lab 1.2 (other_lab_rows:BACKBONES) bring a row" in one.reason


def test_one_package_with_a_name_twice_is_told_so(house):
    house.package("mylab", rows("MyNet", "MyNet", "Mine"))
    found = backbones.others()
    assert set(found.rows) == {"nnUNetTrainerMine"}
    (text,) = set(map(str, found.unusable))
    assert text.endswith("cannot be used: there is a second row of this name")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("mylab = mylab_rows BACKBONES", "ValueError: its entry point 'mylab_rows BACKBONES' is not MODULE:NAME"),
        ("mylab = mylab_rows", "ValueError: its entry point 'mylab_rows' is not MODULE:NAME"),
        ("mylab", "ValueError: these lines cannot be read: .*"),
    ],
    ids=["value", "module alone", "no value"],
)
def test_entry_points_that_say_nothing_are_told_and_the_others_are_there(house, entry, reason):
    house.package("mylab", rows("MyNet"), entry=entry)
    house.package("other", rows("Other"))
    (text,) = house.reasons().values()
    assert re.match(f"mylab 1.2 .*cannot be used: {reason}", text)
    assert set(backbones.others().rows) == {"nnUNetTrainerOther"}


def test_what_an_uninstallation_left_behind_takes_nothing_away(house):
    """pip renames a package's metadata before it removes them, and a failure leaves them so."""
    house.package("mylab", rows("MyNet"))
    info = house.site / "mylab-1.2.dist-info"
    shutil.copytree(info, house.site / "~ylab-1.2.dist-info")
    assert set(backbones.others().rows) == {"nnUNetTrainerMyNet"}
    assert house.reasons() == {}


def test_what_a_package_prints_is_not_in_our_output(house, capsys):
    house.package("mylab", "print('hello')\n" + rows("MyNet"))
    assert main(["list", "--json"]) == 0
    printed = capsys.readouterr()
    assert "nnUNetTrainerMyNet" in {row["trainer"] for row in json.loads(printed.out)["backbones"]}
    assert "hello" in printed.err


ODD = """
import functools, mylab_net
from nnunet_plugins.rows import Backbone
make = functools.partial(mylab_net.Net.from_plan, channels={(1, 2): {3}})
"""


def test_what_a_row_holds_may_be_anything(house, capsys):
    code = rows("MyNet", network="make").replace(
        'paper="none"', 'paper="none", options={"make": make, "of": {(1,): 2}}'
    )
    house.package("mylab", ODD + code)
    assert main(["list", "--json"]) == 0
    (row,) = [one for one in json.loads(capsys.readouterr().out)["backbones"] if one["trainer"] == "nnUNetTrainerMyNet"]
    assert row["network"] == "mylab_net.Net.from_plan"
    assert row["options"]["of"] == "{(1,): 2}"


@pytest.mark.parametrize("again", ["{0}", "{0}/", "{0}/../files"])
def test_a_folder_that_is_listed_twice_is_one(house, again):
    (house.files / "lab.py").write_text(NETWORK + rows("LabNet", network="Net"))
    house.monkeypatch.setenv(VARIABLE, f"{house.files}:{again.format(house.files)}")
    assert set(backbones.others().rows) == {"nnUNetTrainerLabNet"}
    assert house.reasons() == {}


def test_a_file_that_python_cannot_read_is_told(house):
    (house.files / "lab.py").write_text(NETWORK + rows("LabNet", network="Net") + "x = (\n")
    (house.files / "aside.py").write_text("x = (\n")
    (text,) = house.reasons().values()
    assert re.match(rf"{house.files}/lab.py cannot be used: SyntaxError: '\(' was never closed", text)


@pytest.mark.parametrize(
    "line", ["from mylab_rows import BACKBONES", "from mylab_rows import BACKBONES as ROWS\nBACKBONES, x = ROWS, 1"]
)
def test_a_file_may_take_its_rows_from_elsewhere(house, line):
    (house.site / "mylab_rows.py").write_text(rows("LabNet"))
    (house.files / "lab.py").write_text(line)
    assert set(backbones.others().rows) == {"nnUNetTrainerLabNet"}


ADAPTED = """
from mylab_helper import make

BACKBONES = [
    replace(
        row,
        network="nnunet_plugins.networks.adapted.Adapted",
        options={"factory": FACTORY, "width": 8},
    )
    for row in BACKBONES
]
"""


@pytest.mark.parametrize("place", ["File", "Package"])
@pytest.mark.parametrize(
    ("factory", "kind"), [("make", "Made"), ("partial(make)", "Part"), ("'mylab_elsewhere.make'", "Named")]
)
def test_a_benchmark_knows_the_files_of_a_row_and_of_what_makes_its_network(house, place, factory, kind):
    """An adapted network is this package's class, whatever is adapted; and the row has its options."""
    head = "from dataclasses import replace\nfrom functools import partial\n"
    code = head + rows(f"{kind}In{place}") + ADAPTED.replace("FACTORY", factory)
    if place == "File":
        (house.files / "mylab_rows.py").write_text(code)
    else:
        house.package("mylab", code)
    (house.site / "mylab_helper.py").write_text("import json\n\n\ndef make(**options): ...\n")
    (house.site / "mylab_elsewhere.py").write_text("def make(**options): ...\n")
    files = {file.name for file in source_files(f"nnUNetTrainer{kind}In{place}_2epochs")}
    assert {"adapted.py", "mylab_rows.py"} <= files
    assert ("mylab_elsewhere.py" if "elsewhere" in factory else "mylab_helper.py") in files


@pytest.mark.parametrize(
    ("name", "recipe", "said"),
    [
        # It would train, its own network.
        (
            "Stock",
            "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer",
            "is no BackboneTrainer, and builds no",
        ),
        ("Function", "mylab_net.Net.from_plan", "cannot be imported: ModuleNotFoundError: No module named 'mylab_net."),
        ("NoClass", "mylab_net.nn", "is no BackboneTrainer"),
        ("NoModule", "mylab_no.Recipe", "cannot be imported: ModuleNotFoundError: No module named 'mylab_no'"),
        ("NoName", "mylab_net.Recipe", "cannot be imported: AttributeError: module 'mylab_net' has no attribute"),
    ],
)
def test_a_recipe_that_cannot_train_a_rows_network_is_refused(house, capsys, name, recipe, said):
    ours = "nnunet_plugins.trainers.backbone.BackboneTrainer"
    house.package("mylab", rows(f"Recipe{name}").replace(ours, recipe))
    text = f"nnUNetTrainerRecipe{name} of mylab 1.2: its recipe {recipe} {said}"
    with pytest.raises(InputError, match=f"^nnunet_plugins: {text}"):
        recursive_find_trainer_class_by_name(f"nnUNetTrainerRecipe{name}_2epochs")
    assert main(["profile", "-tr", f"nnUNetTrainerRecipe{name}", "--patch", "16", "16"]) == 2
    assert text in capsys.readouterr().err


def write_checkpoint(file: Path, trainer: str, origin: dict | None) -> None:
    plans = {"dataset_name": "Dataset001_Small", "configurations": {}}
    content = {
        "network_weights": {},
        "trainer_name": trainer,
        "init_args": {"plans": plans, "configuration": "2d", "fold": 0, "dataset_json": {}},
        "optimizer_state": {PROGRESS: {ORIGIN: origin}} if origin else {},
    }
    torch.save(content, file)


OF_MYLAB = {"place": "mylab_rows:BACKBONES", "distribution": "mylab", "version": "1.1", "network": "mylab_net.Net"}
OF_A_FILE = {"place": "/there/lab.py", "distribution": None, "version": None, "network": "lab.Net"}
NOT_HERE = "no backbone is called 'nnUNetTrainerLost'"


@pytest.mark.parametrize(
    ("origin", "here", "said"),
    [
        (OF_MYLAB, None, ["its network mylab_net.Net comes from mylab 1.1", NOT_HERE, "pip install 'mylab==1.1'"]),
        (OF_MYLAB, rows("Kept"), ["mylab is here as 1.2, which may build another network", "is here: nnunet_plugins"]),
        (OF_MYLAB, "import no_such", ["mylab is here as 1.2", NOT_HERE, "No module named 'no_such'"]),
        (
            OF_MYLAB,
            rows("Lost").replace("backbone.BackboneTrainer", "no_such.Trainer"),
            [
                "its recipe nnunet_plugins.trainers.no_such.Trainer cannot be imported",
                "remedy: pip install 'mylab==1.1'",
            ],
        ),
        (OF_A_FILE, None, ["its network lab.Net was in the file /there/lab.py", NOT_HERE, "put lab.py into a folder"]),
        (None, None, [NOT_HERE, "does not say which package its trainer comes from"]),
    ],
    ids=["uninstalled", "another version", "broken", "without its recipe", "a file", "of 0.1.0"],
)
def test_doctor_says_where_the_network_of_a_checkpoint_comes_from(house, tmp_path, capsys, origin, here, said):
    if here:
        house.package("mylab", here)
    kept = here == rows("Kept")
    write_checkpoint(tmp_path / "checkpoint.pth", f"nnUNetTrainer{'Kept' if kept else 'Lost'}_2epochs", origin)
    found = main(["doctor", str(tmp_path / "checkpoint.pth")])
    printed = " ".join(capsys.readouterr().out.split())
    for text in said:
        assert text in printed
    assert found == (0 if kept else 1)


def test_a_network_that_is_not_there_is_named_when_it_is_built(house):
    house.package("mylab", rows("Gone", network='"mylab_net.Nett"'))
    with pytest.raises(AttributeError, match=r"mylab_net.*Nett"):
        logits("nnUNetTrainerGone")


@pytest.mark.slow
def test_a_folder_with_the_name_of_a_package_does_not_stand_in_for_it(house, tmp_path, monkeypatch, preloaded):
    """Where a package is written lies a folder of its name, and there its author works; so do programs of ours."""
    house.package("mylab", rows("Mylab"))
    monkeypatch.setenv("PYTHONPATH", str(house.site))
    work = tmp_path / "work"

    def shadow(name):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").touch()

    shadow("mylab_rows")
    monkeypatch.chdir(work)
    two_processes(["nnUNetTrainerMylab"], tmp_path)
    shadow("nnunetv2")
    found = subprocess.run([sys.executable, "-c", LOOKUP], capture_output=True, text=True)
    assert "found nnunet_plugins.trainers" in found.stdout, found.stderr


def test_the_working_folder_alone_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for first, left in ((str(tmp_path), []), ("", []), ("/elsewhere", ["/elsewhere"])):
        monkeypatch.setattr(sys, "path", [first, str(tmp_path), "/other"])
        leave_out_working_folder()
        assert sys.path == [*left, str(tmp_path), "/other"]
