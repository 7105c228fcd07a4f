"""Maps in a benchmark's report: which are made, and what the page shows of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, PngImagePlugin
from report_pages import build
from report_records import make_record

from nnunet_plugins.benchmark.maps import map_tasks
from nnunet_plugins.benchmark.protocol import Protocol
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.files import write_text
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.panels import cases_for_maps, shown_pair
from nnunet_plugins.report.record import Record

DATASET, PLACE = "Dataset001_Made", "Dataset001_Made/3d_fullres"
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainerNISF")


@pytest.fixture
def record(tmp_path) -> Record:
    """Of three networks, with an image, a truth and segmentations of each case."""
    record = make_record(algorithms=TRAINERS, cases=6, labels=1, folds=2, epochs=1)
    names = list(record.results["algorithm"].unique())
    places = {name: tmp_path / name for name in ("imagesTr", "labelsTr", *names)}
    mask = np.zeros((1, 12, 16), np.uint8)
    mask[0, 3:7, 3:9] = 1
    for name, place in places.items():
        place.mkdir()
        for case in record.results["case"].unique():
            ending = "_0000.nii.gz" if name == "imagesTr" else ".nii.gz"
            sitk.WriteImage(sitk.GetImageFromArray(mask), str(place / f"{case}{ending}"))
    files = {
        "images": str(places["imagesTr"]),
        "truth": str(places["labelsTr"]),
        "ending": ".nii.gz",
        "labels": {"1": "one"},
        "predictions": {name: str(places[name]) for name in names},
    }
    return dataclasses.replace(record, about={**record.about, "images": {PLACE: files}})


def chosen(record: Record) -> list[str]:
    """The cases of which maps are shown."""
    (comparison,) = analyse(record).comparisons
    pair = shown_pair(comparison)
    assert pair is not None
    return cases_for_maps(comparison.by_case["Dice"], *pair)


def test_maps_are_of_the_worst_and_the_most_different_case():
    record = make_record(algorithms=2, cases=8, labels=1, folds=2, epochs=1)
    scores = record.results.pivot(index="case", columns="algorithm", values="Dice")
    (comparison,) = analyse(record).comparisons
    baseline, method = shown_pair(comparison)
    assert chosen(record) == list(
        dict.fromkeys([scores[method].idxmin(), (scores[method] - scores[baseline]).abs().idxmax()])
    )


@pytest.mark.parametrize("with_maps", [True, False])
def test_each_network_looks_at_the_cases_that_it_has_not_seen(record, tmp_path, with_maps):
    folders = Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results", "output")))
    protocol = Protocol((DATASET,), ("3d_fullres",), TRAINERS, folds=(0, 1), device="cpu", with_maps=with_maps)
    fold_of = dict(zip(record.results["case"], record.results["fold"], strict=True))
    splits = [{"train": [], "val": [case for case, own in fold_of.items() if own == fold]} for fold in (0, 1)]
    write_text(folders.preprocessed / DATASET / "splits_final.json", json.dumps(splits))
    for run in protocol.runs():
        for fold in (0, 1):
            for name in ("checkpoint_final.pth", "validation/a.pkl", "validation/a.npz"):
                write_text(folders.fold(run, fold) / name, "")
            write_text(folders.fold(run, fold) / "validation" / "summary.json", "{}")
    tasks = map_tasks(record, protocol, folders)
    if not with_maps:
        assert tasks == []
        return
    wanted = {(trainer, case) for trainer in TRAINERS[:2] for case in chosen(record)}
    assert {(task.maps[0].trainer, case) for task in tasks for case in task.maps[1]} == wanted
    for task in tasks:
        run, cases = task.maps
        fold = task.command[task.command.index("-f") + 1]
        assert task.command[:3] == ("nnunet-plugins", "explain", str(folders.model(run)))
        assert {str(fold_of[case]) for case in cases} == {fold}
        assert {f"{tmp_path}/imagesTr/{case}_0000.nii.gz" for case in cases} < {*task.command}
    (folders.fold(protocol.runs()[1], 0) / "checkpoint_final.pth").unlink()
    left = map_tasks(record, protocol, folders)
    assert {task.maps[0].trainer for task in left if "-f 0" in " ".join(task.command)} <= {TRAINERS[0]}


def draw(folder: Path, *titles: str) -> None:
    folder.mkdir(parents=True)
    for number, title in enumerate(titles):
        about = PngImagePlugin.PngInfo()
        about.add_text("Title", title)
        kind = "attention" if "Attention" in title else "gradcam"
        Image.new("RGB", (8, 6), (number, 200, 0)).save(folder / f"{kind}_{number}.png", pnginfo=about)


def test_the_page_shows_maps_and_says_of_which_there_are_none(record, tmp_path):
    algorithms = list(record.results["algorithm"].unique())
    baseline, method = shown_pair(analyse(record).comparisons[0])
    other = next(name for name in algorithms if name not in (baseline, method))
    cases = chosen(record)
    maps = {}
    for case in cases:
        maps[case] = {name: str(tmp_path / "maps" / name / case) for name in (method, other)}
        draw(tmp_path / "maps" / method / case, "Attention of a", "Attention of b", *(f"CAM of {n}" for n in "1234"))
        draw(tmp_path / "maps" / other / case, "CAM of 1")
    about = {**record.about, "maps": {PLACE: maps}}

    def shown() -> list[str]:
        page = build(tmp_path, dataclasses.replace(record, about=about))
        assert all(f"{baseline} for {case}" in page.text.partition("There are no maps of")[2] for case in cases)
        assert page.text.count("2 more in the benchmark's folder maps") == len(cases)
        return [image["src"] for image in page.all("img") if image["alt"].startswith(("Attention", "CAM"))]

    found = shown()
    assert len(found) == len(cases) * (4 + 1)
    page = build(tmp_path, dataclasses.replace(record, about=about))
    alts = [image["alt"] for image in page.all("img")]
    assert f"Attention of b, {method}, {cases[0]}" in alts
    assert f"Attention of a, {method}, {cases[0]}" not in alts
    # A report that is built anew elsewhere has them still, but not beside other results.
    shutil.rmtree(tmp_path / "maps")
    assert shown() == found
    results = record.results.assign(Dice=record.results["Dice"].where(record.results["algorithm"] != other, 0.123))
    page = build(tmp_path, dataclasses.replace(record, about=about, results=results))
    assert not [image for image in page.all("img") if f", {other}, " in image["alt"]]


def test_nobody_misses_maps_that_were_not_asked_for(record, tmp_path):
    page = build(tmp_path, record)
    assert len(page.all("img")) > 3
    assert "no maps" not in page.text
    assert "What the networks do with" not in page.text
