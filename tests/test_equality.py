"""What is said of trainings that are not equal, or of which something is not known."""

import json
import pickle
import time
from pathlib import Path

import pytest
import torch

from nnunet_plugins.benchmark import conditions, driver, equality
from nnunet_plugins.benchmark.protocol import BenchmarkError, Protocol, Run
from nnunet_plugins.benchmark.tasks import Folders
from nnunet_plugins.files import write_text
from nnunet_plugins.report.equality import HASHES, read_equality

DATASET = "Dataset001_Small"
QUESTION = Protocol(
    (DATASET,), ("2d",), ("nnUNetTrainer", "nnUNetTrainerFIRENet", "MyTrainer"), folds=(0,), device="cpu"
)
UNET, FIRENET, MINE = QUESTION.runs()
RECIPE = {"epochs": 5, "iterations per epoch": 7, "batch size": 2, "patch size": [16, 16], "optimizer.lr": 0.01}


@pytest.fixture
def folders(tmp_path) -> Folders:
    """Plans, splits and data of a dataset, and descriptions of three trainers."""
    folders = Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results", "output")))
    dataset = folders.preprocessed / DATASET
    replan(folders, 16)
    write_text(dataset / "splits_final.json", json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    write_properties(folders, "one")
    for run in QUESTION.runs():
        write_text(folders.recipe(run), json.dumps({"recipe": RECIPE}))
    return folders


def write_properties(folders: Folders, subject: str, protocol: int = 4) -> None:
    """Write what is preprocessed of a case, of which here only the properties count."""
    data = folders.preprocessed / DATASET / "data"
    data.mkdir(exist_ok=True)
    (data / "a.pkl").write_bytes(pickle.dumps({"subject": subject}, protocol))


def plans(size: int) -> dict:
    sizes = {"patch_size": [size, size], "batch_size": 2}
    return {"configurations": {"2d": {"data_identifier": "data", "architecture": {}, **sizes}}}


def replan(folders: Folders, size: int) -> None:
    write_text(folders.preprocessed / DATASET / "nnUNetPlans.json", json.dumps(plans(size)))


def train(folders: Folders, run: Run, *, recorded: bool = True, **changes: object) -> Path:
    """A training as nnU-Net leaves it: of the present plans, unless `size` is another one."""
    fold = folders.fold(run, 0)
    if recorded:
        conditions.write_conditions(folders, run, 0, "cpu", {})
    (fold / "validation").mkdir(parents=True, exist_ok=True)
    checkpoint = {
        "network_weights": {"weight": torch.zeros(1)},
        "init_args": {
            "plans": {**plans(changes.get("size", 16)), "continue_training": False},
            "configuration": "2d",
            "dataset_json": {},
        },
        "trainer_name": run.trainer,
        "current_epoch": changes.get("epochs", 5),
        "optimizer_state": {},
    }
    torch.save(checkpoint, fold / "checkpoint_final.pth")
    for name in changes.get("validated", ["c"]):
        for ending in ("pkl", "npz"):
            (fold / "validation" / f"{name}.{ending}").touch()
    write_text(fold / "validation" / "summary.json", "{}")
    said = "2026-01-01 00:00:00.0: This split has 2 training and 1 validation cases.\n"
    write_text(fold / f"training_log_{changes.get('start', '2026_1_1_00_00_00')}.txt", said)
    debug = {"num_iterations_per_epoch": "7", "batch_size": "2", "torch_version": "2.9.0+cu128", "device": "cpu"}
    write_text(fold / "debug.json", json.dumps(debug))
    if recorded:
        conditions.end_attempt(fold, {})
    return fold


def compare(folders: Folders, **options: bool) -> dict:
    return equality.prove(QUESTION.runs(), (0,), folders, **{"accepted": False, **options})


def said(proof: dict, what: str) -> list[tuple[str, str, str]]:
    return [(one["algorithm"], one["value"], one["against"]) for one in proof["differences"] if one["what"] == what]


def test_a_baseline_of_before_is_no_reference_for_what_is_not_known_of_it(folders):
    train(folders, UNET, recorded=False)
    train(folders, FIRENET)
    write_properties(folders, "two")
    train(folders, MINE)
    proof = compare(folders)
    (unet, firenet, mine) = (run["hashes"]["data"] for run in proof["runs"])
    assert len({unet, firenet, mine}) == 3
    assert said(proof, "data") == [("U-Net", "unknown", "FIRENet"), ("MyTrainer", mine, "FIRENet")]
    (found,) = equality.refused(proof)
    assert (found["algorithm"], found["value"], found["baseline"]) == ("MyTrainer", mine, firenet)
    assert proof["same"] == ["plans", "splits"]


def test_data_that_were_preprocessed_anew_are_the_same_if_they_hold_the_same(folders):
    train(folders, UNET)
    write_properties(folders, "one", protocol=2)
    train(folders, FIRENET)
    assert "data" in compare(folders)["same"]


def test_hash_that_a_version_before_has_recorded_stands_for_the_data_that_are_still_here(folders):
    """Up to 0.1.0 the bytes of the preprocessed files were hashed."""
    data = folders.preprocessed / DATASET / "data"
    old = conditions.hash_files(data, folders.output / "data_hashes.json")
    for run, recorded in ((UNET, old), (FIRENET, None), (MINE, "0123456789abcdef")):
        fold = train(folders, run)
        file = conditions.conditions_file(fold)
        record = json.loads(file.read_text())
        record["attempts"][0]["hashes"]["data"] = recorded or record["attempts"][0]["hashes"]["data"]
        write_text(file, json.dumps(record))
    proof = compare(folders)
    assert said(proof, "data") == [("MyTrainer", "0123456789abcdef", "U-Net")]
    write_properties(folders, "one", protocol=2)  # then nobody can tell what the hash stands for
    assert [name for name, *_ in said(compare(folders), "data")] == ["FIRENet", "MyTrainer"]


def test_of_a_training_of_before_is_known_what_its_files_tell(folders):
    train(folders, UNET, recorded=False)
    train(folders, FIRENET)
    unet, firenet = compare(folders)["runs"]
    assert unet["hashes"] == {**firenet["hashes"], "data": "unknown", "recipe": "unknown"}
    assert unet["settings"] == firenet["settings"]
    assert unet["environment"]["torch"] == "2.9.0"
    assert unet["environment"]["python"] == "unknown"


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"size": 8}, {"plans", "patch size"}), ({"epochs": 9}, {"epochs"}), ({"validated": ["b"]}, {"splits"})],
)
def test_a_training_of_before_that_was_another_one_is_refused(folders, changes, what):
    train(folders, UNET, recorded=False, **changes)
    train(folders, FIRENET)
    assert {found["what"] for found in equality.refused(compare(folders))} == what


def test_a_checkpoint_that_cannot_be_read_tells_nothing(folders):
    fold = train(folders, UNET, recorded=False)
    (fold / "checkpoint_final.pth").write_bytes(pickle.dumps(Path))
    (run,) = compare(folders)["runs"]
    assert run["hashes"]["plans"] == "unknown"
    # How long it was trained is not what its trainer says today.
    known = {"iterations per epoch": "7", "batch size": "2"}
    assert run["settings"] == {"epochs": "unknown", "patch size": "unknown", **known}


def test_a_record_is_of_one_checkpoint(folders):
    """Somebody has trained again in the folder, without the benchmark."""
    fold = train(folders, UNET)
    assert conditions.read_conditions(fold, folders.ledger)
    train(folders, UNET, recorded=False, epochs=3)
    assert not conditions.read_conditions(fold, folders.ledger)
    assert compare(folders)["runs"][0]["hashes"]["data"] == "unknown"
    # Going on with it leaves that unknown.
    conditions.write_conditions(folders, UNET, 0, "cpu", {})
    conditions.end_attempt(fold, {})
    assert compare(folders)["runs"][0]["hashes"]["data"] == "unknown"


def test_a_record_of_version_010_is_one_of_what_it_has_seen(folders):
    fold = train(folders, UNET)
    file = conditions.conditions_file(fold)
    (attempt,) = json.loads(file.read_text())["attempts"]
    hashes = {name: attempt["hashes"][name] for name in HASHES}
    old = {"started": "2026-01-02T00:00:00+0000", "hashes": hashes, "environment": {"torch": "2.9"}}
    file.write_text(json.dumps({"attempts": [old]}))
    (run,) = compare(folders)["runs"]
    assert run["hashes"] == {**attempt["hashes"], "recipe": "unknown"}
    train(folders, UNET, recorded=False, start="2026_10_4_00_00_00")
    assert conditions.read_conditions(fold, folders.ledger)  # its own start
    train(folders, UNET, recorded=False, start="2027_1_1_00_00_00")
    assert not conditions.read_conditions(fold, folders.ledger)


def test_an_attempt_that_was_killed_in_its_validation_is_known_nevertheless(folders):
    conditions.write_conditions(folders, UNET, 0, "cpu", {})
    train(folders, UNET, recorded=False, start=time.strftime("%Y_%-m_%-d_%H_%M_%S"))
    conditions.write_conditions(folders, UNET, 0, "cpu", {})
    conditions.end_attempt(folders.fold(UNET, 0), {})
    (run,) = compare(folders)["runs"]
    assert "unknown" not in run["hashes"].values()


def test_a_training_from_scratch_begins_a_new_record(folders):
    fold = train(folders, UNET)
    (fold / "checkpoint_final.pth").unlink()
    replan(folders, 8)
    train(folders, UNET, size=8)
    assert len(conditions.read_conditions(fold, folders.ledger)) == 1


def test_replanned_data_are_refused_before_anything_is_trained_on_them(folders):
    train(folders, UNET)
    train(folders, FIRENET)
    assert equality.refused(compare(folders, upcoming=True)) == []
    replan(folders, 8)
    assert equality.refused(compare(folders)) == []  # these two are equal
    with pytest.raises(BenchmarkError, match=r"MyTrainer: plans is \w+, for U-Net it is \w+"):
        driver._refuse_unequal(QUESTION, folders)


def test_a_recipe_that_has_changed_since_is_said_of_the_folds_that_differ(folders):
    train(folders, UNET)
    write_text(folders.recipe(FIRENET), json.dumps({"recipe": {**RECIPE, "optimizer.lr": 0.1}}))
    train(folders, FIRENET)
    write_text(folders.recipe(FIRENET), json.dumps({"recipe": RECIPE}))
    proof = compare(folders)
    assert said(proof, "optimizer.lr") == [("FIRENet", "0.1", "U-Net")]
    assert "recipe" not in proof["same"]


def test_the_seed_is_told_and_is_no_difference(folders):
    for run, seed in ((UNET, 1), (FIRENET, 2)):
        write_text(folders.recipe(run), json.dumps({"recipe": {**RECIPE, "seed": seed}}))
        train(folders, run)
    proof = compare(folders)
    assert [proof["recipes"][name]["seed"] for name in ("U-Net", "FIRENet")] == [1, 2]
    assert list(read_equality(proof).table["seed"].dropna()) == ["1", "2", "none"]
    assert not said(proof, "seed")


@pytest.mark.parametrize("silent", QUESTION.runs(), ids=lambda run: run.algorithm)
def test_what_could_not_be_described_of_one_recipe_is_no_difference_of_the_others(folders, silent):
    for run in QUESTION.runs():
        part = (
            {"augmentation": "unknown"} if run == silent else {"augmentation": "Compose", "augmentation.Blur": "Blur"}
        )
        write_text(folders.recipe(run), json.dumps({"recipe": {**RECIPE, **part}}))
        train(folders, run)
    (found,) = compare(folders)["differences"]
    assert (found["algorithm"], found["what"], found["value"]) == (silent.algorithm, "augmentation", "unknown")
