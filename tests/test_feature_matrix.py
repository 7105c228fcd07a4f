"""Every trainer with every feature of nnU-Net: a sample by default, all of them with `pytest -m matrix`.

`pytest -m matrix --row TRAINER` runs the 25 cells of one trainer, one to six minutes. The outcomes are kept in
docs/feature-matrix, cell by cell, so that an interrupted run goes on. Cells recorded for the present code are not run
again, unless with --matrix-again, which is what a changed check asks for. A trainer that was never run is pending.
"""

import datetime
import importlib.metadata
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Sandbox
from feature_matrix import FEATURES, Datasets, Model, NotSupportedError
from matrix_record import FAILED, NOT_SUPPORTED, RECORD, TRAINERS, WORKS, record, recorded, source_files, sources
from test_backbones_of_others import house, rows  # noqa: F401 - a fixture

from nnunet_plugins import __version__, backbones
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.trainers.checks import loss_piece
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.names import nearest, parse

CHECKS = {name: check for checks in FEATURES.values() for name, check in checks.items()}
GROUP = {name: group for group, checks in FEATURES.items() for name in checks}

IN_3D = {"3d_fullres, 1 channel", "3d_lowres", "3d_cascade_fullres"}
# The label features of `Modifier.unsupported`, as features of the matrix.
WITH_LABELS = {
    "regions": {"regions", "regions and ignore label"},
    "an ignore label": {"ignore label", "regions and ignore label"},
}


def unsupported(trainer: str) -> set[str]:
    """The features that a trainer has to refuse: its loss knows only some labels, or its network one dimension.

    A network that sees whole images takes no cascade, and no slices, of which the datasets' cases have several.
    """
    loss, row = loss_piece(trainer_class(trainer)), trainer_class(trainer).backbone
    able, whole = row.dimensions, {"2d", "3d_cascade_fullres"} if row.fitted else set()
    labels = set().union(*(WITH_LABELS[name] for name in loss.unsupported)) if loss else set()
    return labels | whole | (set() if 2 in able else {"2d"}) | (set() if 3 in able else IN_3D)


def run(model: Model, feature: str) -> str:
    """Run a cell; returns "" if the trainer does what it should, or its reason for refusing it as it should."""
    trainer = model.trainer.split("_")[0]
    if feature not in unsupported(trainer):
        CHECKS[feature](model)
        return ""
    with pytest.raises(NotSupportedError) as refusal:
        CHECKS[feature](model)
    return str(refusal.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prepared: Sandbox) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("matrix"), prepared)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, data: Datasets):
    in_3d = 3 in trainer_class(request.param).backbone.dimensions
    model = Model(data, request.param, "3d_fullres" if in_3d else "2d")
    yield model
    model.remove()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is not test_whole_matrix:
        return
    chosen = metafunc.config.getoption("--row") or TRAINERS
    for name in (name for name in chosen if backbones.find(name) is None):
        raise pytest.UsageError(f"--row {name}: no such trainer; the nearest is {nearest(name).split('_')[0]}")
    metafunc.parametrize("feature", CHECKS)
    metafunc.parametrize("model", chosen, indirect=True, scope="module")


@pytest.mark.slow
@pytest.mark.matrix
def test_whole_matrix(model: Model, feature: str, request: pytest.FixtureRequest):
    trainer = model.trainer.split("_")[0]
    if trainer not in TRAINERS:
        run(model, feature)
        return
    depends = {
        "sources": sources(parse(trainer).backbone),
        "nnunetv2": importlib.metadata.version("nnunetv2"),
        "torch": torch.__version__,
    }
    before = recorded(trainer).get(GROUP[feature], {}).get(feature, {"outcome": FAILED})
    again = request.config.getoption("--matrix-again") or before["outcome"] == FAILED
    if not again and all(before[key] == value for key, value in depends.items()):
        pytest.skip("recorded for the present code")
    cell = {**depends, "nnunet_plugins": __version__, "date": datetime.date.today().isoformat()}
    start = time.monotonic()
    try:
        reason = run(model, feature)
    except (Exception, pytest.fail.Exception) as error:  # the latter, if it does not refuse what it has to
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        record(trainer, feature, {"outcome": FAILED, "reason": reason[-200:], **cell}, FEATURES)
        raise
    cell["seconds"] = round(time.monotonic() - start, 1)
    outcome = {"outcome": NOT_SUPPORTED, "reason": reason} if reason else {"outcome": WORKS}
    record(trainer, feature, {**outcome, **cell}, FEATURES)


# Every feature at least once, and every pair of a network and a recipe: those not named here with the cheapest one.
# What a network makes of each kind of plan, test_conformance.py asks of all of them.
CHOSEN = {
    "nnUNetTrainerFIRENet": ["anisotropic voxels", "ignore label"],
    "nnUNetTrainerFIRENetPaper": ["regions"],
    "nnUNetTrainerFIRENetNoFabric": ["2d"],
    "nnUNetTrainerAutofocusUNet": [*FEATURES["Training"], *FEATURES["Prediction"], "3d_lowres", "ResEnc plans"],
    "nnUNetTrainerASPP3DUNet": ["3d_cascade_fullres", "4 channels"],
    "nnUNetTrainerAFN4": ["3d_fullres, 1 channel"],
    "nnUNetTrainerAFN2Paper": ["ignore label", "regions"],
    "nnUNetTrainerMetaSeg": ["3d_fullres, 1 channel", "2d", "3d_cascade_fullres", "regions and ignore label"],
    "nnUNetTrainerNISF": ["ignore label"],
}

FAMILIES = {(row.network, row.recipe): row.trainer for row in reversed(BACKBONES)}
COVERED = {(row.network, row.recipe) for row in BACKBONES if row.trainer in CHOSEN}
CHEAPEST = {
    row.trainer: "2d" if 2 in row.dimensions and not row.fitted else "3d_fullres, 1 channel" for row in BACKBONES
}
# But recipes that are nnU-Net's with another optimizer and loss alone, fits of hundreds of steps, a start of MetaSeg's
# that test_implicit_training.py trains from, and the largest networks, which take minutes and have checkpoints of up to
# 1 GB. The whole matrix has them.
LARGE = ("UNet2015", "VNet", "UNetPlusPlus", "FCN8s", "MedNeXtS", "MetaSegRandomStart")
LEFT_OUT = {f"nnUNetTrainer{name}" for name in LARGE}
LEFT_OUT |= {r.trainer for r in BACKBONES if ".rivals." in r.recipe or (r.fitted and r.trainer.endswith("Paper"))}
SAMPLE = {
    **CHOSEN,
    **{
        trainer: [CHEAPEST[trainer]]
        for family, trainer in FAMILIES.items()
        if family not in COVERED and trainer not in LEFT_OUT
    },
}

# Mirrored, every prediction takes eight passes. test_trains_two_steps_and_predicts mirrors with all networks.
MIRRORING = {"nnUNetTrainerAutofocusUNet": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "feature"),
    [(row + MIRRORING.get(row, "_NoMirroring"), name) for row, names in SAMPLE.items() for name in names],
    indirect=["model"],
)
def test_sample(model: Model, feature: str):
    run(model, feature)


@pytest.mark.slow
def test_the_remedy_for_labels_that_a_recipe_refuses(data: Datasets):
    CHECKS["regions and ignore label"](Model(data, "nnUNetTrainerFIRENetPaper_FocalLoss_NoMirroring"))


@pytest.mark.parametrize("named", [[], ["nnUNetTrainerMyNet"], ["nnUNetTrainerMyNett"]], ids=["ours", "theirs", "none"])
def test_a_foreign_row_has_all_cells(house, named):  # noqa: F811
    house.package("mylab", rows("MyNet"))
    cells = {}
    asked = SimpleNamespace(
        function=test_whole_matrix,
        config=SimpleNamespace(getoption=lambda _: named),
        parametrize=lambda name, values, **_: cells.update({name: list(values)}),
    )
    if named == ["nnUNetTrainerMyNett"]:
        with pytest.raises(pytest.UsageError, match=r"no such trainer; the nearest is nnUNetTrainerMyNet$"):
            pytest_generate_tests(asked)
        return
    pytest_generate_tests(asked)
    assert cells == {"feature": list(CHECKS), "model": named or TRAINERS}


def test_the_sample_has_every_feature():
    assert {name for names in SAMPLE.values() for name in names} == set(CHECKS)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_recorded_works_or_is_refused_where_it_has_to_be(trainer: str):
    """A row that was not run yet, or not with every feature, is pending; the docs say so, too."""
    cells, command = recorded(trainer), f"run: pytest -m matrix --row {trainer}"
    names = {group: list(checks) for group, checks in cells.items()}
    assert all(set(checks) <= set(FEATURES[group]) for group, checks in names.items()), command
    for name in CHECKS:
        if cell := cells.get(GROUP[name], {}).get(name):
            expected = NOT_SUPPORTED if name in unsupported(trainer) else WORKS
            assert cell["outcome"] == expected, f"{trainer}, {name}: {cell}; {command}"


def test_the_record_has_no_row_that_is_gone():
    assert {file.stem for file in RECORD.glob("*.json")} <= set(TRAINERS)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, which counts as the same."""
    folder = tmp_path_factory.mktemp("copy") / "package"
    shutil.copytree(ROOT / "nnunet_plugins", folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert all(sources(row, folder) == sources(row) for row in BACKBONES)
    return folder


FIRENET, AFNET, AUTOFOCUS_UNET, ASPP3D_UNET = (
    {row.trainer for row in BACKBONES if row.network.split(".")[2] == file}
    for file in ("firenet", "afnet", "autofocus_unet", "aspp3d_unet")
)
U_NETS = AUTOFOCUS_UNET | ASPP3D_UNET
ALL = FIRENET | AFNET | U_NETS


@pytest.mark.parametrize(
    ("file", "voided"),
    [
        ("networks/firenet.py", FIRENET),
        ("networks/afnet.py", AFNET),
        ("networks/layers/fused_autofocus.py", AFNET | AUTOFOCUS_UNET),
        ("networks/layers/autofocus_kernels.py", AFNET | AUTOFOCUS_UNET),
        ("networks/layers/wrs.py", FIRENET),
        ("networks/layers/aspp.py", FIRENET | ASPP3D_UNET),
        ("networks/unet.py", U_NETS),
        ("trainers/unet.py", U_NETS),
        ("networks/layers/blocks.py", ALL),
        ("trainers/reliable.py", ALL),
        ("trainers/scanned/nnunet_plugins_trainers.py", ALL),
        ("forecast.py", set()),
        ("planning/fit.py", set()),
        ("benchmark/protocol.py", set()),
        ("nnunet_plugins.pth", ALL),
        ("registry.py", set()),
        ("modifiers.py", set()),
        ("rows.py", set()),
        ("__init__.py", set()),
    ],
)
def test_a_comment_voids_the_rows_that_use_its_file(package, file, voided):
    with (package / file).open("a") as opened:
        opened.write("# a comment\n")
    try:
        rows = [row for row in BACKBONES if row.trainer in ALL]
        assert {row.trainer for row in rows if sources(row, package) != sources(row)} == voided
    finally:
        shutil.copy(ROOT / "nnunet_plugins" / file, package / file)


def test_a_row_depends_on_what_it_says():
    row = BACKBONES[0]
    assert sources(replace(row, options={**row.options, "dropout": 0.1})) != sources(row)
    assert sources(replace(row, summary="another", paper="another")) == sources(row)
    assert ROOT / "nnunet_plugins" / "networks" / "layers" / "wrs.py" in source_files(row)
