"""Every trainer with every feature of nnU-Net: a sample by default, all of them with `pytest -m matrix`.

The whole matrix takes an hour; its outcomes are kept in docs/feature-matrix.json, cell by cell, so that an
interrupted run goes on. Cells recorded for the present code are not run again, unless with --matrix-again.
"""

import datetime
import hashlib
import importlib.metadata
import json
import time

import pytest
import torch
from conftest import ROOT
from feature_matrix import FEATURES, Datasets, Model, NotSupportedError

from nnunet_plugins import __version__
from nnunet_plugins.files import write_text
from nnunet_plugins.registry import BACKBONES

RECORD = ROOT / "docs" / "feature-matrix.json"
CHECKS = {name: check for checks in FEATURES.values() for name, check in checks.items()}
TRAINERS = [row.trainer for row in BACKBONES]
WORKS, NOT_SUPPORTED, FAILED = "works", "not supported", "failed"

REGIONS = {"regions", "regions and ignore label"}
IGNORE = {"ignore label", "regions and ignore label"}


def unsupported(trainer: str) -> set[str]:
    """The features that a trainer has to refuse: the papers' losses know only some labels."""
    if not trainer.endswith("Paper"):
        return set()
    return REGIONS if "FIRENet" in trainer else IGNORE


def sources() -> str:
    """A hash of all that decides a cell's outcome: networks, trainers, and the checks themselves."""
    package = ROOT / "nnunet_plugins"
    files = [package / "registry.py", ROOT / "tests" / "feature_matrix.py"]
    files += [file for part in ("networks", "planning", "trainers") for file in (package / part).rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def recorded() -> dict[str, dict[str, dict]]:
    """Trainer to feature to cell."""
    return json.loads(RECORD.read_text())["cells"] if RECORD.exists() else {}


def record(trainer: str, feature: str, cell: dict) -> None:
    cells = recorded()
    cells.setdefault(trainer, {})[feature] = cell
    # In the registry's and the features' order, one line per cell; what is no longer there is dropped.
    rows = [
        f"    {json.dumps(name)}: {{\n"
        + ",\n".join(f"      {json.dumps(one)}: {json.dumps(cells[name][one])}" for one in CHECKS if one in cells[name])
        + "\n    }"
        for name in TRAINERS
        if name in cells
    ]
    groups = {group: list(checks) for group, checks in FEATURES.items()}
    write_text(RECORD, f'{{\n  "features": {json.dumps(groups)},\n  "cells": {{\n' + ",\n".join(rows) + "\n  }\n}\n")


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
def data(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    return Datasets(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, data: Datasets):
    model = Model(data, request.param)
    yield model
    model.remove()


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("model", TRAINERS, indirect=True)
@pytest.mark.parametrize("feature", CHECKS)
def test_whole_matrix(model: Model, feature: str, request: pytest.FixtureRequest):
    trainer = model.trainer.split("_")[0]
    cell = {
        "nnunet_plugins": __version__,
        "sources": sources(),
        "nnunetv2": importlib.metadata.version("nnunetv2"),
        "torch": torch.__version__,
    }
    before = recorded().get(trainer, {}).get(feature, {"outcome": FAILED})
    again = request.config.getoption("--matrix-again") or before["outcome"] == FAILED
    if not again and all(before[key] == value for key, value in cell.items()):
        pytest.skip("recorded for the present code")
    cell["date"], start = datetime.date.today().isoformat(), time.monotonic()
    try:
        reason = run(model, feature)
    except BaseException as error:
        if isinstance(error, Exception):
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            record(trainer, feature, {"outcome": FAILED, "reason": reason[-200:], **cell})
        raise
    cell["seconds"] = round(time.monotonic() - start, 1)
    outcome = {"outcome": NOT_SUPPORTED, "reason": reason} if reason else {"outcome": WORKS}
    record(trainer, feature, {**outcome, **cell})


# Every feature and every pair of a network and a recipe at least once.
SAMPLE = {
    "nnUNetTrainerFIRENet": ["2d", "3d_cascade_fullres", "anisotropic voxels", "ResEnc plans", "ignore label"],
    "nnUNetTrainerFIRENetPaper": ["3d_fullres, 1 channel", "regions"],
    "nnUNetTrainerFIRENetNoFabric": ["2d"],
    "nnUNetTrainerAutofocusUNet": [*FEATURES["Training"], *FEATURES["Prediction"], "2d", "3d_lowres", "ResEnc plans"],
    "nnUNetTrainerASPP3DUNet": ["2d", "3d_cascade_fullres", "4 channels", "ResEnc plans"],
    "nnUNetTrainerAFN4": ["2d", "3d_fullres, 1 channel", "regions and ignore label"],
    "nnUNetTrainerAFN2Paper": ["ignore label", "regions"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "feature"), [(row, name) for row, names in SAMPLE.items() for name in names], indirect=["model"]
)
def test_sample(model: Model, feature: str):
    run(model, feature)


@pytest.mark.slow
def test_the_remedy_for_labels_that_a_recipe_refuses(data: Datasets):
    CHECKS["regions and ignore label"](Model(data, "nnUNetTrainerFIRENetPaper_FocalLoss"))


def test_the_sample_has_every_feature_and_family():
    assert {name for names in SAMPLE.values() for name in names} == set(CHECKS)
    families = {row.trainer: (row.network, row.recipe) for row in BACKBONES}
    assert {families[row] for row in SAMPLE} == set(families.values())


def test_the_record_is_complete():
    """Every registry row with every feature: it works, or it is refused where it has to be."""
    cells, command = recorded(), "run: pytest -m matrix tests/test_feature_matrix.py"
    missing = [f"{row}: {name}" for row in TRAINERS for name in CHECKS if name not in cells.get(row, {})]
    assert not missing, f"not recorded; {command}"
    groups = {group: list(checks) for group, checks in FEATURES.items()}
    assert (json.loads(RECORD.read_text())["features"], set(cells)) == (groups, set(TRAINERS)), command
    for row in TRAINERS:
        for name in CHECKS:
            cell, expected = cells[row][name], NOT_SUPPORTED if name in unsupported(row) else WORKS
            assert cell["outcome"] == expected, f"{row}, {name}: {cell}; {command}"
            assert cell["nnunet_plugins"] == __version__, f"recorded for another version; {command}"
