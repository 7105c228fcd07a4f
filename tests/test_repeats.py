"""Repeats of trainings in a benchmark, and results that are kept of trainings whose models are gone."""

import contextlib
import gzip
import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from nnunet_plugins.benchmark import conditions, driver, equality
from nnunet_plugins.benchmark.compute import describe_compute
from nnunet_plugins.benchmark.kept import NOTHING_KEPT, Kept, read_kept
from nnunet_plugins.benchmark.protocol import ALL, BenchmarkError, Protocol, Run
from nnunet_plugins.benchmark.results import prediction_tasks, result_tasks
from nnunet_plugins.benchmark.tasks import Folders, training_tasks
from nnunet_plugins.cli import main
from nnunet_plugins.files import write_text
from nnunet_plugins.provenance import Marker
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.build import build_report
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.record import GONE, ReportError, read_record
from nnunet_plugins.report.verification import verify_report

DATASET = "Dataset001_Small"
UNET, FIRENET = "nnUNetTrainer_5epochs", "nnUNetTrainerFIRENet_5epochs"
COLUMNS = "case,label,name,Dice,ASSD_mm,HD95_mm,NSD,volume_error_ml,volume_truth_ml,tolerance_mm,diagonal_mm\n"
LOG = """2026-01-02 03:04:05.000000: Epoch 0
2026-01-02 03:04:05.000000: train_loss 0.9
2026-01-02 03:04:05.000000: Epoch time: 12.5 s
"""


def protocol(**more) -> Protocol:
    question = {"trainers": (UNET, FIRENET), "folds": (0, 1), "device": "cpu", **more}
    return Protocol(datasets=(DATASET,), configurations=("3d_fullres",), **question)


@pytest.fixture
def folders(tmp_path) -> Folders:
    found = Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results", "output")))
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    write_text(found.preprocessed / DATASET / "splits_final.json", json.dumps(splits))
    return found


def names(question: Protocol) -> list[tuple[str, str, str]]:
    return [(run.trainer, run.algorithm, run.seed) for run in question.runs()]


# The question


def test_every_network_is_trained_with_seeds_and_called_one():
    assert names(protocol(repeats={ALL: 2})) == [
        (f"{UNET}_1seed", "U-Net", "1"),
        (f"{UNET}_2seed", "U-Net", "2"),
        (f"{FIRENET}_1seed", "FIRENet", "1"),
        (f"{FIRENET}_2seed", "FIRENet", "2"),
    ]


def test_twins_rivals_and_presets_are_repeated_too():
    question = protocol(repeats={ALL: 1, FIRENET: 2}, with_twins=True, with_rivals=True, presets=("resenc-m",))
    found = [(run.trainer, run.role) for run in question.runs()]
    assert found[:4] == [
        (f"{UNET}_1seed", "baseline"),
        (f"{FIRENET}_1seed", "method"),
        (f"{FIRENET}_2seed", "method"),
        ("nnUNetTrainerFIRENetNoFabric_5epochs_1seed", "twin"),
    ]
    assert ("nnUNetTrainerVNet_5epochs_1seed", "rival") in found
    assert found[-1] == (f"{UNET}_1seed", "own plan")


def test_twins_and_rivals_have_the_seeds_that_stand_in_names():
    question = protocol(trainers=(f"{UNET}_4seed", f"{FIRENET}_3seed"), with_twins=True, with_rivals=True)
    found = {run.role: run.seed for run in question.runs()}
    assert found == {"baseline": "4", "method": "3", "twin": "3", "rival": "4"}


def test_without_a_number_of_its_own_a_network_is_trained_once_as_it_is_named():
    assert names(protocol(repeats={FIRENET: 2})) == [
        (UNET, "U-Net", ""),
        (f"{FIRENET}_1seed", "FIRENet", "1"),
        (f"{FIRENET}_2seed", "FIRENet", "2"),
    ]


def test_seeds_in_the_names_are_repeats_as_well():
    """What `-tr X_1seed` has trained is the first repeat of `-tr X --repeats 2`."""
    named = protocol(trainers=(f"{UNET}_1seed", f"{UNET}_2seed"))
    assert named.runs() == protocol(trainers=(UNET,), repeats={ALL: 2}).runs()
    middle = protocol(trainers=("nnUNetTrainer_3seed_5epochs",))
    assert names(middle) == [("nnUNetTrainer_3seed_5epochs", "U-Net", "3")]


def test_a_repeat_on_a_merged_dataset_stands_beside_the_same_repeat():
    question = protocol(merged="Dataset900_All", repeats={ALL: 2})
    question = Protocol(**{**vars(question), "datasets": (DATASET, "Dataset900_All")})
    unet = question.runs()[1]
    other = question.beside(unet)
    assert (unet.seed, other.trainer, other.seed) == ("2", f"{UNET}_PartialLabels_2seed", "2")


def test_first_repeats_are_trained_first_and_each_is_a_task_of_its_own(folders):
    tasks = [task for task in training_tasks(protocol(repeats={ALL: 1, UNET: 2}), folders) if task.training]
    assert [task.title.partition(": train ")[2] for task in tasks] == [
        "U-Net, seed 1, fold 0",
        "FIRENet, seed 1, fold 0",
        "U-Net, seed 1, fold 1",
        "FIRENet, seed 1, fold 1",
        "U-Net, seed 2, fold 0",
        "U-Net, seed 2, fold 1",
    ]
    assert all(f"_{task.training[0].seed}seed" in " ".join(task.command) for task in tasks)


def test_more_repeats_add_only_what_is_missing(folders):
    for run in protocol(repeats={ALL: 1}).runs():
        for fold in (0, 1):
            train(folders, run, fold)
    tasks = [task for task in training_tasks(protocol(repeats={ALL: 2}), folders) if task.training]
    left = [task.training[0].seed for task in tasks if not task.is_done(folders.ledger)]
    assert left == ["2"] * 4


def test_each_repeat_is_evaluated_and_ensembles_are_of_the_first_ones(folders):
    (folders.raw / DATASET / "imagesTs").mkdir(parents=True)
    question = protocol(repeats={ALL: 2}, test=True)
    titles = [task.title for task in result_tasks(question, folders, as_if_trained=True)]
    for name in ("U-Net", "FIRENet"):
        assert [f"metrics of {name}, seed {n}" for n in (1, 2)] == [
            title.partition(": ")[2] for title in titles if f"metrics of {name}, " in title
        ]
    (best,) = [task for task in result_tasks(question, folders, as_if_trained=True) if task.keeps_text]
    assert [word for word in best.command if "seed" in word] == [f"{UNET}_1seed", f"{FIRENET}_1seed"]
    predicted = [task.title for task in prediction_tasks(question, folders, as_if_trained=True)]
    assert len(predicted) == 4
    assert predicted[1].endswith("predict the test images with U-Net, seed 2")


def test_ensembles_can_be_left_out(folders):
    question = protocol(with_ensembles=False, test=True)
    (folders.raw / DATASET / "imagesTs").mkdir(parents=True)
    tasks = result_tasks(question, folders, as_if_trained=True)
    assert [task.title.partition(": ")[2] for task in tasks] == [
        "cross-validated segmentations of U-Net",
        "metrics of U-Net",
        "cross-validated segmentations of FIRENet",
        "metrics of FIRENet",
    ]
    assert len(prediction_tasks(question, folders, as_if_trained=True)) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--repeats", "0"], "--repeats: '0': '0' is not a whole number from 1; write TRAINER:N, or N for all"),
        (["--repeats", "-1"], "-1"),
        (["--repeats", ":3"], "':3' names no trainer before its number"),
        (["--repeats", f"{UNET}:0"], f"'{UNET}:0': '0' is not a whole number from 1"),
        (["--repeats", "2", "3"], "--repeats has two numbers for all networks, 2 and 3; give one"),
        (["--repeats", "NoSuch:3"], f"this benchmark does not train NoSuch; it trains {UNET}"),
        (
            ["--repeats", f"{UNET}_1seed:3"],
            f"has the seed 1 already, and --repeats gives the seeds; write {UNET}:3",
        ),
        (["-tr", f"{UNET}_1seed", "--repeats", "3"], f"{UNET}_1seed has the seed 1 already, and --repeats gives the s"),
        (["-tr", UNET, f"{UNET}_2seed"], f"{UNET} is named with a seed (2) and without one"),
        (["-tr", "nnUNetTrainer_1seed_5epochs", f"{UNET}_1seed"], f"{UNET} is named twice with the seed 1"),
        (["-tr", "nnUNetTrainer_0seed"], "the number in '_0seed' has to be 1 or more"),
        (["-tr", "nnUNetTrainer_1seed_2seed"], "'_2seed' sets the seed a second time"),
        (["-tr", "nnUNetTrainerBN", "--repeats", "2"], "nnUNetTrainerBN takes no seed, because it is no trainer of th"),
    ],
)
def test_bad_repeats_are_named_before_anything_is_done(tmp_path, monkeypatch, capsys, options, said):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "nnUNet_raw" / DATASET).mkdir()
    question = ["-d", "1", "-tr", UNET, "--device", "cpu", "-o", str(tmp_path / "out")]
    with contextlib.suppress(SystemExit):  # argparse's
        assert main(["benchmark", *question, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# What is done is taken for done: trainings without any


def train(folders: Folders, run: Run, fold: int, **more) -> None:
    """Do as if a fold had been trained by the benchmark."""
    folder, case = folders.fold(run, fold), "ab"[fold]
    for name in ("checkpoint_final.pth", f"validation/{case}.pkl", f"validation/{case}.npz"):
        write_text(folder / name, f"{run.trainer} {fold}")
    write_text(folder / "validation" / "summary.json", json.dumps({"foreground_mean": {"Dice": 0.5}}))
    write_text(folder / "training_log_2026_1_1_00_00_00.txt", LOG)
    settings = {
        "epochs": 5,
        "patch size": [8, 8],
        "optimizer.lr": 0.01,
        **({"seed": int(run.seed)} if run.seed else {}),
    }
    settings["augmentation.GaussianBlurTransform.benchmark"] = not run.seed
    write_text(folders.recipe(run), json.dumps({"recipe": settings, "epochs": 5, "iterations": 1}))
    hashes = {"plans": "p", "splits": "s", "data": "d", "recipe": conditions.recipe_hash(settings), **more}
    attempt = {"hashes": hashes, "environment": {"torch": "2.9"}, "description": {"recipe": settings, "epochs": 5}}
    write_text(conditions.conditions_file(folder), json.dumps({"attempts": [attempt]}))


def evaluate(question: Protocol, folders: Folders) -> None:
    """Do as if the results of all that is trained had been made."""
    for task in [*result_tasks(question, folders), *prediction_tasks(question, folders)]:
        if task.is_done(folders.ledger):
            continue
        if task.keeps_text:
            write_text(task.output, "\n")
        elif task.output.suffix:
            cases = re.search(r"folds_([\d_]+?)(__|$)", task.output.stem)
            number = sum(map(ord, task.name)) % 10
            rows = [f"{'ab'[int(fold)]},1,x,0.5{number}{fold},1,1,1,0,1,1,9\n" for fold in cases[1].split("_") if fold]
            write_text(task.output, COLUMNS + "".join(rows))
        else:
            task.output.mkdir(parents=True, exist_ok=True)
        folders.ledger.write(task.output, task.command, folders.ledger.identities(task.inputs), task.makes)


def report(question: Protocol, folders: Folders) -> None:
    """Write record and report of what is there, as a benchmark does at its end."""
    evaluate(question, folders)
    tasks = result_tasks(question, folders)
    kept = read_kept(question, folders)
    driver.write_report(question, folders, tasks, accept_unequal=False, kept=kept)


def test_the_record_has_the_seeds_and_their_proof_finds_no_difference(folders):
    question = protocol(repeats={ALL: 1, UNET: 2})
    for run in question.runs():
        for fold in (0, 1):
            train(folders, run, fold)
    report(question, folders)
    record = read_record(folders.output / "record")
    for table in (record.runs, record.curves, record.results[record.results["role"] != "ensemble"]):
        assert table.groupby("algorithm")["seed"].unique().map(list).to_dict() == {
            "U-Net": ["1", "2"],
            "FIRENet": ["1"],
        }
    assert set(record.results.loc[record.results["case"] == "b", "fold"]) == {1}
    (proof,) = record.equality
    assert proof["same"] == ["plans", "splits", "data", "recipe"]
    assert proof["differences"] == []
    (table,) = (one.table for one in analyse(record).equality)
    assert table.loc["U-Net", "seed"].tolist() == ["1", "1", "2", "2"]
    page = (folders.output / "report" / "index.html").read_text()
    assert "The same in all trainings" in (folders.output / "report" / "report.md").read_text()
    assert ">seed<" in page
    assert verify_report(folders.output, folders.variables).contradictions == []


def test_a_seed_is_no_difference_from_a_training_without_one(folders):
    """Nor is what it fixes: the way of the blur, which the clock chooses otherwise."""
    question = protocol(repeats={FIRENET: 1})
    for run in question.runs():
        train(folders, run, 0)
    proof = equality.prove(question.runs(), (0,), folders, accepted=False)
    assert proof["differences"] == []
    assert proof["same"] == ["plans", "splits", "data", "recipe"]


def test_a_repeat_that_was_trained_otherwise_is_a_difference(folders):
    question = protocol(trainers=(UNET,), repeats={ALL: 2})
    first, second = question.runs()
    for fold in (0, 1):
        train(folders, first, fold)
        train(folders, second, fold, splits="t")
    proof = equality.prove([first, second], (0, 1), folders, accepted=False)
    assert [(one["algorithm"], one["what"]) for one in equality.refused(proof)] == [("U-Net", "splits")]


def test_the_compute_of_a_network_is_told_once(small, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    question = Protocol(datasets=("Dataset001_Small",), configurations=("2d",), trainers=(UNET,), repeats={ALL: 3})
    assert describe_compute(question).count("U-Net") == 1


# Records of trainings whose models are gone


@pytest.fixture
def finished(folders) -> tuple[Protocol, Folders]:
    """A benchmark of two networks in two folds, and its record."""
    question = protocol(repeats={ALL: 1, UNET: 2}, test=True)
    for part in ("imagesTs", "labelsTs"):
        (folders.raw / DATASET / part).mkdir(parents=True)
    for run in question.runs():
        for fold in (0, 1):
            train(folders, run, fold)
    report(question, folders)
    return question, folders


def elsewhere(folders: Folders, *, models: bool = False) -> Folders:
    """Take the record alone to a place where nothing else is."""
    for folder in folders.output.iterdir():
        if folder.name not in ("record", "recipes"):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    shutil.rmtree(folders.results)
    return Folders(folders.raw, folders.preprocessed, folders.results, folders.output)


def rows(folders: Folders, name: str) -> pd.DataFrame:
    table: pd.DataFrame = getattr(read_record(folders.output / "record"), name)
    columns = [column for column in table if column != "model"]
    return table[columns].sort_values(columns).reset_index(drop=True)


def test_results_stay_when_the_models_are_gone(finished):
    question, folders = finished
    before = {name: rows(folders, name) for name in ("results", "runs", "curves")}
    folders = elsewhere(folders)
    kept = read_kept(question, folders)
    assert {run.title: list(folds) for run, folds in kept.trainings.items()} == {
        "U-Net, seed 1": [0, 1],
        "U-Net, seed 2": [0, 1],
        "FIRENet, seed 1": [0, 1],
    }
    assert not [task for task in driver._tasks_to_train(question, folders, kept) if task.training]
    report(question, folders)
    for name, table in before.items():
        pd.testing.assert_frame_equal(rows(folders, name), table)
    record = read_record(folders.output / "record")
    assert set(record.runs["model"]) == {GONE}
    assert record.about["complete"]
    (proof,) = record.equality
    assert proof["same"] == ["plans", "splits", "data", "recipe"]
    assert len(proof["runs"]) == 6
    told = "\n".join(caveats(analyse(record).comparisons[0]))
    assert "Model no longer here: U-Net, seed 1 (folds 0, 1); U-Net, seed 2 (folds 0, 1); FIRENet, seed 1" in told
    found = verify_report(folders.output, folders.variables)
    assert found.contradictions == []
    assert any("Of 6 trainings the models are no longer here" in note for note in found.notes)
    # A second time, and a change of the record by hand.
    report(question, folders)
    pd.testing.assert_frame_equal(rows(folders, "results"), before["results"])


def test_files_of_a_kept_fold_are_not_those_of_the_tenth_one():
    (run, _) = protocol().runs()
    places = [f"results/{run.dataset}/{run.model}/fold_{fold}/log.txt" for fold in (1, 10)]
    marker = Marker([], "", {place: "known" for place in places}, {})
    assert list(Kept(trainings={run: [1]}, markers=[marker]).logs()) == places[:1]


def test_a_fold_that_is_trained_again_takes_the_place_of_the_kept_one(finished):
    question, folders = finished
    before = rows(folders, "results")
    folders = elsewhere(folders)
    first = question.runs()[1]
    train(folders, first, 0)
    report(question, folders)
    record = read_record(folders.output / "record")
    runs = record.runs.set_index(["trainer", "fold"])["model"]
    assert runs[first.trainer, 0] == ""
    assert (runs.drop([(first.trainer, 0)]) == GONE).all()
    assert len(record.results) == len(before)
    assert record.runs["trainer"].unique().tolist() == [run.trainer for run in question.runs()]
    assert record.results["trainer"].unique().tolist()[:3] == [run.trainer for run in question.runs()]
    own = record.results[(record.results["trainer"] == first.trainer) & (record.results["split"] == "cross-validation")]
    assert own.groupby("fold").size().to_dict() == {0: 1, 1: 1}
    assert verify_report(folders.output, folders.variables).contradictions == []


def test_models_that_are_lost_beside_all_else_are_told_too(finished):
    """The benchmark's folder is whole, and nnU-Net's results are gone."""
    question, folders = finished
    before = rows(folders, "results")
    shutil.rmtree(folders.results)
    report(question, folders)
    pd.testing.assert_frame_equal(rows(folders, "results"), before)
    assert verify_report(folders.output, folders.variables).contradictions == []
    results = folders.output / "record" / "results.csv"
    results.write_text(results.read_text().replace(",0.5", ",0.6", 1))
    report(question, folders)
    assert any(
        "results.csv: the rows of" in one for one in verify_report(folders.output, folders.variables).contradictions
    )


def test_what_was_trained_on_other_data_is_refused(finished):
    question, folders = finished
    folders = elsewhere(folders)
    first = question.runs()[0]
    train(folders, first, 0, data="other")
    with pytest.raises(BenchmarkError, match="--train-missing-models trains those anew") as error:
        driver._refuse_unequal(question, folders, read_kept(question, folders))
    assert "data is" in str(error.value)


def test_what_would_be_lost_is_named(finished):
    _, folders = finished
    folders = elsewhere(folders)
    with pytest.raises(BenchmarkError, match=r"would be lost: Dataset001_Small 3d_fullres: U-Net, seed 2, fold 0;"):
        read_kept(protocol(repeats={ALL: 1}, test=True), folders)
    with pytest.raises(BenchmarkError, match=r"U-Net, seed 1, fold 0 at a tolerance of 1 mm.*Give --tolerance 1"):
        read_kept(protocol(repeats={ALL: 1, UNET: 2}, tolerance=2.0), folders)


def test_nor_is_it_lost_where_a_training_has_begun_anew(finished):
    """It was interrupted, and this command does not go on with it."""
    question, folders = finished
    folders = elsewhere(folders)
    second = question.runs()[1]
    write_text(folders.fold(second, 0) / "checkpoint_latest.pth", "begun")
    with pytest.raises(BenchmarkError, match=r"would be lost: Dataset001_Small 3d_fullres: U-Net, seed 2, fold 0;"):
        read_kept(protocol(repeats={ALL: 1}, test=True), folders)


def test_a_record_that_names_no_folds_needs_its_splits(finished):
    """As those of version 0.1.0: without them nothing of it could be kept, and it would be made anew without a word."""
    question, folders = finished
    folders = elsewhere(folders)
    table = folders.output / "record" / "results.csv"
    pd.read_csv(table, dtype=str).drop(columns="fold").to_csv(table, index=False)
    assert read_kept(question, folders).trainings
    (folders.preprocessed / DATASET / "splits_final.json").unlink()
    with pytest.raises(BenchmarkError, match=r"U-Net, seed 1, fold 0, whose model is .*splits_final\.json\. Put that"):
        read_kept(question, folders)


def test_test_images_that_other_folds_have_predicted_are_compared_with_nothing(finished):
    question, folders = finished
    folders = elsewhere(folders)
    table = folders.output / "record" / "results.csv"
    results = pd.read_csv(table, dtype=str)
    tested = results[(results["seed"] == "2") & (results["fold"] == "0")].assign(split="test", fold="")
    pd.concat([results, tested]).to_csv(table, index=False)
    assert read_kept(question, folders).trainings
    more = replace(question, folds=(0, 1, 2))
    with pytest.raises(BenchmarkError, match=r"U-Net, seed 2, folds 0, 1 together.*Give -f 0 1, --train-missing"):
        read_kept(more, folders)
    assert read_kept(replace(more, test=False), folders).trainings


def test_a_record_that_cannot_be_read_is_moved_away(finished, capsys):
    question, folders = finished
    (folders.output / "record" / "runs.csv").write_text("nothing")
    assert read_kept(question, folders) == NOTHING_KEPT
    assert "record-unreadable-1" in capsys.readouterr().out
    assert (folders.output / "record-unreadable-1" / "results.csv").is_file()


def test_a_training_that_has_begun_goes_on_and_its_results_stay_until_it_is_done(finished):
    question, folders = finished
    folders = elsewhere(folders)
    first = question.runs()[0]
    write_text(folders.fold(first, 0) / "checkpoint_latest.pth", "begun")
    kept = read_kept(question, folders)
    assert kept.has(first, 0)
    left = driver._tasks_to_train(question, folders, kept.to_leave_out(folders))
    assert [task.training for task in left if task.training] == [(first, 0)]
    again = driver._tasks_to_train(question, folders, NOTHING_KEPT)
    assert len([task for task in again if task.training]) == 6


def test_packed_tables_are_the_tables(finished):
    """A record that is to be committed may be packed: it is read, verified and gone on from as it was."""
    question, folders = finished
    before = rows(folders, "results")
    folders = elsewhere(folders)
    tables = sorted((folders.output / "record").glob("*.csv"))
    assert len(tables) == 3
    for table in tables:
        table.with_name(f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes(), mtime=0))
        table.unlink()
    build_report(folders.output)
    assert verify_report(folders.output, folders.variables).contradictions == []
    pd.testing.assert_frame_equal(rows(folders, "results"), before)
    report(question, folders)
    pd.testing.assert_frame_equal(rows(folders, "results"), before)
    assert sorted((folders.output / "record").glob("*.csv*")) == tables
    tables[1].with_name("results.csv.gz").write_bytes(b"\x1f\x8b torn")
    tables[1].unlink()
    with pytest.raises(ReportError, match=r"results\.csv\.gz cannot be read"):
        read_record(folders.output / "record")
