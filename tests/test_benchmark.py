"""The benchmark: its question, its graph of commands, the proof of equality, what it collects, the whole command."""

import json
import os
import pickle
import re
import signal
import subprocess
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from conftest import Sandbox, commands, write_dataset
from planned import make_planned

from nnunet_plugins.benchmark import conditions, driver, equality, recipe
from nnunet_plugins.benchmark.collect import collect, provenance
from nnunet_plugins.benchmark.compute import describe_compute
from nnunet_plugins.benchmark.done import is_made_from, is_trained
from nnunet_plugins.benchmark.engine import tasks_left
from nnunet_plugins.benchmark.progress import Usage
from nnunet_plugins.benchmark.protocol import Protocol, short_names
from nnunet_plugins.benchmark.results import prediction_tasks, result_tasks
from nnunet_plugins.benchmark.sources import source_files
from nnunet_plugins.benchmark.tasks import Folders, training_tasks
from nnunet_plugins.benchmark.training_log import read_log
from nnunet_plugins.cli import main
from nnunet_plugins.datasets.preprocessed import is_preprocessed
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import unfinished, write_text
from nnunet_plugins.registry import BACKBONES, RIVALS
from nnunet_plugins.report.build import build_report
from nnunet_plugins.report.record import read_record
from nnunet_plugins.report.verification import verify_report

DATASET = "Dataset001_Small"


def protocol(**more) -> Protocol:
    question = {"trainers": ("nnUNetTrainerFIRENet", "nnUNetTrainer"), "folds": (0, 1), "device": "cpu"}
    return Protocol(datasets=(DATASET,), configurations=("3d_fullres",), **{**question, **more})


@pytest.fixture
def folders(tmp_path) -> Folders:
    return Folders(*(tmp_path / name for name in ("raw", "preprocessed", "results", "output")))


# The question


def test_the_stock_trainer_is_the_baseline_wherever_it_stands():
    runs = protocol().runs()
    assert [(run.trainer, run.role) for run in runs] == [
        ("nnUNetTrainer", "baseline"),
        ("nnUNetTrainerFIRENet", "method"),
    ]
    assert protocol(trainers=("MyTrainer", "nnUNetTrainerFIRENet")).baseline() == "MyTrainer"


@pytest.mark.parametrize(
    ("trainers", "baseline"),
    [
        (("nnUNetTrainer_NoMirroring", "nnUNetTrainer"), "nnUNetTrainer"),
        (("nnUNetTrainerFIRENet", "nnUNetTrainer_DA5", "nnUNetTrainer_NoMirroring"), "nnUNetTrainer_DA5"),
        (("nnUNetTrainerFIRENet", "MyTrainer"), "nnUNetTrainerFIRENet"),
    ],
)
def test_the_baseline_is_the_stock_trainer_or_else_its_first_variant(trainers, baseline):
    assert protocol(trainers=trainers).baseline() == baseline


def test_twins_and_presets_join_once():
    question = protocol(
        trainers=("nnUNetTrainer_5epochs", "nnUNetTrainerFIRENet_5epochs", "nnUNetTrainerAFN4_5epochs"),
        with_twins=True,
        presets=("resenc-m",),
    )
    found = [(run.trainer, run.plans, run.role, run.algorithm) for run in question.runs()]
    assert found == [
        ("nnUNetTrainer_5epochs", "nnUNetPlans", "baseline", "U-Net"),
        ("nnUNetTrainerFIRENet_5epochs", "nnUNetPlans", "method", "FIRENet"),
        ("nnUNetTrainerAFN4_5epochs", "nnUNetPlans", "method", "AFN4"),
        ("nnUNetTrainerFIRENetNoFabric_5epochs", "nnUNetPlans", "twin", "FIRENetNoFabric"),
        ("nnUNetTrainerAFNBasic_5epochs", "nnUNetPlans", "twin", "AFNBasic"),
        ("nnUNetTrainer_5epochs", "nnUNetResEncUNetMPlans", "own plan", "U-Net (ResEnc M)"),
    ]


def test_rivals_join_once_with_the_baselines_modifiers():
    question = protocol(trainers=("nnUNetTrainerVNet_5epochs", "nnUNetTrainer_5epochs"), with_rivals=True)
    found = [(run.trainer, run.role) for run in question.runs()]
    assert found == [
        ("nnUNetTrainer_5epochs", "baseline"),
        ("nnUNetTrainerVNet_5epochs", "method"),
        ("nnUNetTrainerUNet3D_5epochs", "rival"),
        ("nnUNetTrainerVNetPaper_5epochs", "rival"),
        ("nnUNetTrainerSegResNet_5epochs", "rival"),
        ("nnUNetTrainerSegResNetPaper_5epochs", "rival"),
        ("nnUNetTrainerMedNeXtB_5epochs", "rival"),
        ("nnUNetTrainerMedNeXtBPaper_5epochs", "rival"),
    ]


def test_rivals_do_not_start_from_the_baselines_weights():
    question = protocol(trainers=("nnUNetTrainer_Pretrained_5epochs",), with_rivals=True, pretrained="weights.pth")
    rivals = [run.trainer for run in question.runs() if run.role == "rival"]
    assert "nnUNetTrainerVNet_5epochs" in rivals
    assert not [trainer for trainer in rivals if "Pretrained" in trainer]


def test_no_rival_loses_by_its_recipe():
    """Each stands under nnU-Net's recipe and, where there is one, its paper's."""
    rows = {row.trainer for row in BACKBONES}
    assert {name for rival in RIVALS for name in (rival, f"{rival}Paper") if name in rows} == set(RIVALS)
    assert any(not rival.endswith("Paper") and f"{rival}Paper" not in rows for rival in RIVALS)


def test_the_compute_of_all_networks_is_told_before_they_are_trained(small, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, small.env[name])
    question = protocol(trainers=("nnUNetTrainer",), plans="small", with_rivals=True)
    title, head, *rows = describe_compute(question).splitlines()
    assert title == "Dataset001_Small, 3d_fullres: compute, and how many times the first one's"
    assert head.split("  ")[0] == "network"
    cells = {name: (row, re.findall(r"\((\S+)\)", row)) for row in rows for name in row.split()[:1]}
    assert list(cells) == ["U-Net", *(rival.removeprefix("nnUNetTrainer") for rival in RIVALS)]
    assert cells["U-Net"][1] == ["1.00"] * 4
    assert "64.72M" in cells["VNet"][0]
    # The same network under both recipes; but Adam keeps a tensor more for each parameter than SGD.
    *network, peak = cells["SegResNet"][1]
    *of_paper, peak_of_paper = cells["SegResNetPaper"][1]
    assert of_paper == network
    assert float(peak_of_paper) > float(peak)
    for line in describe_compute(protocol(plans="other")).splitlines()[1:]:
        assert "other.json" in line


def test_for_the_same_memory_each_network_has_plans_of_its_own():
    question = protocol(
        trainers=("nnUNetTrainer_5epochs", "nnUNetTrainerAFN4_5epochs"), gpu_memory=24, presets=("resenc-m",)
    )
    found = [(run.plans, question.is_made_to_fit(run)) for run in question.runs()]
    assert found == [
        ("nnUNetPlans_UNet_24GB", True),
        ("nnUNetPlans_AFN4_24GB", True),
        ("nnUNetResEncUNetMPlans", False),
    ]
    assert protocol().runs()[0].plans == "nnUNetPlans"


def test_another_normalisation_is_the_baseline_on_plans_of_its_own():
    question = protocol(
        trainers=("nnUNetTrainer_5epochs", "nnUNetTrainerFIRENet_5epochs"), normalisations=("CTNormalization",)
    )
    runs = question.runs()
    assert [(run.trainer, run.plans, run.role) for run in runs[:2]] == [
        ("nnUNetTrainer_5epochs", "nnUNetPlans", "baseline"),
        ("nnUNetTrainerFIRENet_5epochs", "nnUNetPlans", "method"),
    ]
    (other,) = runs[2:]
    assert (other.trainer, other.plans) == ("nnUNetTrainer_5epochs", "nnUNetPlans_CT")
    assert (other.role, other.algorithm) == ("own plan", "U-Net (CT)")


def test_names_show_modifiers_only_where_they_differ():
    assert short_names(["nnUNetTrainer_9epochs", "nnUNetTrainerFIRENet_9epochs"]) == {
        "nnUNetTrainer_9epochs": "U-Net",
        "nnUNetTrainerFIRENet_9epochs": "FIRENet",
    }
    assert short_names(["nnUNetTrainer", "nnUNetTrainer_DA5"]) == {
        "nnUNetTrainer": "U-Net",
        "nnUNetTrainer_DA5": "U-Net DA5",
    }


@pytest.mark.parametrize("more", [(), ("nnUNetTrainer",), ("nnUNetTrainer_DA5",)])
def test_no_two_trainers_have_one_name(more):
    trainers = ["nnUNetTrainerMyNet", "MyNet", *more]
    assert len(set(short_names(trainers).values())) == len(trainers)


# The graph


def test_every_need_stands_before_its_task(folders):
    question = protocol(presets=("resenc-l",), test=True, with_atlas=True)
    (folders.raw / DATASET / "imagesTs").mkdir(parents=True)
    (folders.raw / DATASET / "labelsTs").mkdir()
    made = (make(question, folders, as_if_trained=True) for make in (result_tasks, prediction_tasks))
    tasks = [*training_tasks(question, folders), *chain.from_iterable(made)]
    assert sum(task.command[0] == "nnUNetv2_predict" for task in tasks) == 3
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    for position, task in enumerate(tasks):
        assert set(task.needs) <= set(names[:position])
        assert not task.is_done(folders.ledger)
    trainings = [task for task in tasks if task.training]
    assert len(trainings) == 3 * 2
    assert all(task.slot == "train" and {"--npz", "--c"} <= set(task.command) for task in trainings)


def test_plans_with_another_normalisation_are_made_and_preprocessed_after_those_they_are_made_of(folders):
    """Also where nnU-Net's own have to be planned first; what is made is known by what it says."""
    question = protocol(normalisations=("CTNormalization",))
    first, make, preprocess, *_ = training_tasks(question, folders)
    assert first.command[0] == "nnUNetv2_plan_and_preprocess"
    wanted = ("plan", "-d", DATASET, "--normalisation", "CTNormalization", "--like", "nnUNetPlans")
    assert make.command == ("nnunet-plugins", *wanted, "--name", "nnUNetPlans_CT")
    assert preprocess.command[:5] == ("nnUNetv2_preprocess", "-d", "1", "-plans_name", "nnUNetPlans_CT")
    assert (make.needs, preprocess.needs) == ((first.name,), (first.name, make.name))
    folder = folders.preprocessed / DATASET
    folder.mkdir(parents=True, exist_ok=True)
    own = {"normalization_schemes": ["ZScoreNormalization"], "data_identifier": "a", "use_mask_for_norm": [False]}
    for name, changes, is_done in (
        ("nnUNetPlans", {}, False),
        ("nnUNetPlans_CT", {"data_identifier": "b"}, False),
        ("nnUNetPlans_CT", {"data_identifier": "b", "normalization_schemes": ["CTNormalization"]}, True),
        ("nnUNetPlans_CT", {"batch_size": 3, "normalization_schemes": ["CTNormalization"]}, False),
    ):
        content = {"plans_name": name, "configurations": {"3d_fullres": {**own, **changes}}}
        (folder / f"{name}.json").write_text(json.dumps(content))
        assert make.is_done(folders.ledger) is is_done


def test_the_atlas_stands_beside_the_networks_and_needs_none(folders):
    question = protocol(with_atlas=True, plans="nnUNetPlans_cover")
    tasks = result_tasks(question, folders)  # before anything is trained
    make, metrics = tasks
    place = ["-d", DATASET, "-c", "3d_fullres", "-p", "nnUNetPlans_cover", "-f", "0", "1", "-o"]
    assert list(make.command[:3]) == ["nnunet-plugins", "evaluate", "--atlas"]
    assert list(make.command[3:-1]) == place
    assert metrics.command[2] == str(make.output)
    assert {metrics.rows[name] for name in ("trainer", "algorithm", "role")} == {"atlas"}
    assert metrics.rows["split"] == "cross-validation"
    assert not any(task.training and task.training[0].trainer == "atlas" for task in training_tasks(question, folders))
    assert result_tasks(protocol(), folders) == []


def test_cases_in_one_pass_are_a_row_of_their_own(folders):
    """Of the same trainings; not of networks that take no image whole, nor of second stages."""
    trainers = ("nnUNetTrainer", "nnUNetTrainerFIRENet_5epochs", "nnUNetTrainerNISF")
    configurations = ("3d_lowres", "3d_cascade_fullres")
    question = replace(protocol(trainers=trainers, with_whole_volume=True), configurations=configurations)
    tasks = result_tasks(question, folders, as_if_trained=True)
    predictions = [task for task in tasks if "--whole-volume" in task.command]
    assert [task.command[task.command.index("-tr") + 1] for task in predictions] == list(trainers[:2])
    assert all("3d_lowres" in task.command for task in predictions)
    command = " ".join(predictions[1].command)
    assert command.startswith("nnunet-plugins predict --cross-validation -o ")
    assert command.endswith("-f 0 1 --whole-volume auto -device cpu --continue_prediction")
    assert {file for task in predictions for file in folders.trained(question.runs()[1], (0, 1))} <= {
        file for task in predictions for file in task.inputs
    }
    rows = [task.rows for task in tasks if task.needs == (predictions[1].name,)]
    assert [(row["algorithm"], row["role"], row["trainer"]) for row in rows] == [
        ("FIRENet 5epochs, in one pass", "one pass", trainers[1])
    ]
    assert len({task.name for task in tasks}) == len(tasks)
    assert len({task.output for task in tasks}) == len(tasks)
    assert not any("--whole-volume" in task.command for task in result_tasks(protocol(), folders, as_if_trained=True))


def test_an_atlas_that_has_no_room_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    planned = make_planned(tmp_path, monkeypatch)
    planned.plan((16, 16, 16), (1, 1, 1))
    for name in ("nnUNet_raw", "nnUNet_results"):
        (tmp_path / name).mkdir()
    for number in range(5):
        planned.preprocess(f"case_{number}", np.zeros((14, 14 + number, 14)))
    question = ["-d", "1", "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(tmp_path / "out"), "--with-atlas"]
    assert main(["benchmark", *question]) == 2
    assert f"case_3 with 14x17x14; make plans that cover them: nnunet-plugins plan -d {DATASET} --cover" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_plans_for_the_same_memory_are_made_before_anything_is_trained(folders):
    question = protocol(trainers=("nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainerFIRENet_DA5"), gpu_memory=1.5)
    tasks = training_tasks(question, folders)
    first, *plans = tasks[:3]
    assert "nnUNetv2_plan_and_preprocess" in first.command
    assert [task.command[1] for task in plans] == ["plan", "plan"]  # the third trainer has the second one's network
    assert {"--cpu", "1.5", "nnUNetPlans_FIRENet_1.5GB"} <= set(plans[1].command)
    split = next(task for task in tasks if task.command[1] == "split")
    assert {task.name for task in (first, *plans)} <= set(split.needs)
    trained = {task.training[0].trainer: task.command for task in tasks if task.training}
    assert "nnUNetPlans_FIRENet_1.5GB" in trained["nnUNetTrainerFIRENet_DA5"]


def test_plans_made_to_fit_are_known_by_what_they_are_made_from(folders):
    configuration = {"patch_size": [8, 8], "batch_size": 3, "spacing": [1, 1]}
    plans = {"plans_name": "nnUNetPlans", "configurations": {"2d": configuration}}
    fit = next(task for task in training_tasks(protocol(gpu_memory=8), folders) if task.command[1] == "plan")
    fitted = folders.preprocessed / DATASET / "nnUNetPlans_UNet_8GB.json"

    def write(file, **changes):
        write_text(file, json.dumps({**plans, "configurations": {"2d": {**configuration, **changes}}}))

    write(fitted.with_name("nnUNetPlans.json"))
    assert not fit.is_done(folders.ledger)
    write(fitted, patch_size=[4, 4], batch_size=2)
    assert fit.is_done(folders.ledger)
    write(fitted, spacing=[2, 2])
    assert not fit.is_done(folders.ledger)


def test_plans_made_to_fit_may_have_other_stages_but_no_other_network(tmp_path):
    options = {"n_stages": 3, "strides": [[1], [2], [2]], "features_per_stage": [8, 16, 32], "conv_bias": True}
    full = {"patch_size": [16], "batch_size": 2, "architecture": {"network_class_name": "x", "arch_kwargs": options}}
    old = {"3d_fullres": full, "3d_cascade_fullres": {"inherits_from": "3d_fullres"}}

    def is_made(**changes):
        part = {"patch_size": [8], "architecture": {"network_class_name": "x", "arch_kwargs": {**options, **changes}}}
        new = {name: {**configuration, **part} for name, configuration in old.items()}
        for name, configurations in (("old", old), ("new", new)):
            write_text(tmp_path / f"{name}.json", json.dumps({"plans_name": name, "configurations": configurations}))
        return is_made_from(tmp_path / "new.json", tmp_path / "old.json")

    assert is_made(n_stages=2, strides=[[1], [2]], features_per_stage=[8, 16])
    assert not is_made(features_per_stage=[16, 32, 64])
    assert not is_made(conv_bias=False)


LONG_PLANS = "nnUNetPlans_AutofocusUNet_24GB"
LONG_TRAINERS = tuple(
    f"nnUNetTrainer{name}_1000epochs_250iterations_NoMirroring_DA5_DiceLoss_Adam"
    for name in ("", "AutofocusUNet", "ASPP3DUNetPlain")
)


def test_long_names_fit_into_file_names(folders):
    question = protocol(trainers=LONG_TRAINERS, plans=LONG_PLANS, folds=(0, 1, 2, 3, 4), test=True)
    (folders.raw / DATASET / "imagesTs").mkdir(parents=True)
    made = (make(question, folders, as_if_trained=True) for make in (result_tasks, prediction_tasks))
    tasks = [*training_tasks(question, folders), *chain.from_iterable(made)]
    assert len({task.name for task in tasks}) == len({task.output for task in tasks if task.output}) + 3 * 5 + 2
    for task in tasks:
        for name in (f"{task.name}.json", *([task.output.name] if task.output else [])):
            write_text(unfinished(folders.output / name), "")


def test_a_cascade_waits_for_all_folds_of_its_first_stage(folders):
    question = Protocol((DATASET,), ("3d_lowres", "3d_cascade_fullres"), ("nnUNetTrainer",), folds=(0, 1))
    tasks = {task.name: task for task in training_tasks(question, folders)}
    second = f"train__{DATASET}__nnUNetTrainer__nnUNetPlans__3d_cascade_fullres__0"
    first = {f"train__{DATASET}__nnUNetTrainer__nnUNetPlans__3d_lowres__{fold}" for fold in (0, 1)}
    assert first <= set(tasks[second].needs)


def test_a_cascade_is_predicted_from_its_first_stage(folders):
    configurations = ("3d_lowres", "3d_cascade_fullres")
    question = Protocol((DATASET,), configurations, ("nnUNetTrainer",), folds=(0, 1), test=True)
    (folders.raw / DATASET / "imagesTs").mkdir(parents=True)
    first, second = prediction_tasks(question, folders, as_if_trained=True)
    assert second.needs == (first.name,)
    assert second.command[second.command.index("-prev_stage_predictions") + 1] == str(first.output)


@pytest.mark.parametrize(("megabytes", "processes"), [(1, "1"), (5, "2"), (9, "3"), (900, "3")])
def test_few_images_are_predicted_with_few_processes(folders, megabytes, processes, monkeypatch):
    """Each of nnU-Net's three and three loads its libraries first. The ledger knows commands, which have no number."""
    monkeypatch.delenv("nnUNet_npp", raising=False)
    images = folders.raw / DATASET / "imagesTs"
    (images / "notes").mkdir(parents=True)
    for number in range(2):
        with (images / f"case_{number}_0000.nii.gz").open("wb") as file:
            file.truncate(megabytes * 500_000)
    (images / "case_9_0000.nii.gz").symlink_to("/gone/case_9_0000.nii.gz")
    question = protocol(trainers=("nnUNetTrainer",), test=True)
    (task,) = prediction_tasks(question, folders, as_if_trained=True)
    assert task.variables == {"nnUNet_npp": processes, "nnUNet_nps": processes}
    assert task.command[-1] == "--continue_prediction"
    # A user's own number, say for lack of memory, holds; what an interruption leaves is known of three writers at most.
    monkeypatch.setenv("nnUNet_npp", "8")
    monkeypatch.setenv("nnUNet_nps", "8")
    (task,) = prediction_tasks(question, folders, as_if_trained=True)
    assert task.variables == {"nnUNet_npp": "8", "nnUNet_nps": processes}


ENSEMBLE = "ensemble___nnUNetTrainer__nnUNetPlans__3d_fullres___nnUNetTrainerFIRENet__nnUNetPlans__3d_fullres___0_1"
SCORES = {"nnUNetTrainer__nnUNetPlans__3d_fullres": 0.7, "nnUNetTrainerFIRENet__nnUNetPlans__3d_fullres": 0.8}


@pytest.mark.parametrize("best", [ENSEMBLE, "nnUNetTrainerFIRENet__nnUNetPlans__3d_fullres"])
def test_what_nnunet_chose_is_made_of_the_predictions_of_its_members(folders, best):
    question = protocol(test=True)
    for part in ("imagesTs", "labelsTs"):
        (folders.raw / DATASET / part).mkdir(parents=True)
    unet = question.runs()[0]
    scores = "".join(f"{name}: {score}\n" for name, score in {**SCORES, ENSEMBLE: 0.6, best: 0.9}.items())
    write_text(folders.best(unet, (0, 1)), f"***All results:***\n{scores}\n*Best*: {best}: 0.9\n")
    task = next(task for task in result_tasks(question, folders, as_if_trained=True) if task.keeps_text)
    folders.ledger.write(task.output, task.command, folders.ledger.identities(task.inputs), task.makes)
    source = f"ensembles/{best}" if best == ENSEMBLE else f"{best}/crossval_results_folds_0_1"
    write_text(folders.results / DATASET / source / "postprocessing.pkl", "")
    tasks = prediction_tasks(question, folders, as_if_trained=True)
    saved = [task.title.rpartition(" ")[2] for task in tasks if "--save_probabilities" in task.command]
    joined = [task for task in tasks if task.command[0] == "nnUNetv2_ensemble"]
    assert saved == (["U-Net", "FIRENet"] if best == ENSEMBLE else [])
    assert len(joined) == (best == ENSEMBLE)
    process = next(task for task in tasks if task.command[0] == "nnUNetv2_apply_postprocessing")
    option = process.command.index
    made = {str(task.output): task.name for task in tasks}
    assert process.needs == (made[process.command[option("-i") + 1]],)
    assert process.command[option("-pp_pkl_file") + 1] == str(folders.results / DATASET / source / "postprocessing.pkl")
    assert tasks[-1].needs == (process.name,)
    assert "labelsTs" in " ".join(tasks[-1].command)

    # Predictions that were made before without probabilities are made again for an ensemble.
    ledger = folders.ledger
    for task in tasks:
        if task.command[0] == "nnUNetv2_predict":
            task.output.mkdir(parents=True)
            without = [part for part in task.command if part != "--save_probabilities"]
            ledger.write(task.output, without, ledger.identities(task.inputs))
            assert task.is_done(ledger) == ("--save_probabilities" not in task.command)

    # With another network, nnU-Net has to choose anew.
    more = protocol(trainers=("nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainerAFN4"), test=True)
    later = prediction_tasks(more, folders, as_if_trained=True)
    assert not any(task.command[0] == "nnUNetv2_apply_postprocessing" for task in later)


def test_half_preprocessed_or_half_validated_is_not_done(folders, monkeypatch):
    folder = folders.preprocessed / DATASET
    (folders.raw / DATASET / "imagesTr").mkdir(parents=True)
    for case in "ab":
        (folders.raw / DATASET / "imagesTr" / f"{case}_0000.nii.gz").touch()
    (folders.raw / DATASET / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    monkeypatch.setenv("nnUNet_raw", str(folders.raw))
    (folder / "gt_segmentations").mkdir(parents=True)
    (folder / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    plans = {"configurations": {"3d_fullres": {"data_identifier": "data"}, "other": {"inherits_from": "3d_fullres"}}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "data").mkdir()
    for case in "ab":
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    (folder / "data" / "a.pkl").touch()
    assert not is_preprocessed(folder, "nnUNetPlans", ["3d_fullres"])
    (folder / "data" / "b.pkl").touch()
    assert is_preprocessed(folder, "nnUNetPlans", ["3d_fullres", "other"])
    assert not is_preprocessed(folder, "nnUNetPlans", ["2d"])
    # nnU-Net keeps the truth of a case that has left the dataset.
    (folder / "gt_segmentations" / "c.nii.gz").touch()
    assert is_preprocessed(folder, "nnUNetPlans", ["3d_fullres"])

    fold = folders.results / "fold_0"
    (fold / "validation").mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    for name in ("a.pkl", "b.pkl", "a.npz"):
        (fold / "validation" / name).touch()
    (fold / "validation" / "summary.json").write_text("{}")
    assert not is_trained(fold)  # the ensemble would miss b's probabilities
    (fold / "validation" / "b.npz").touch()
    assert is_trained(fold)
    (fold / "validation" / "summary.json").write_text('{"metric')
    assert not is_trained(fold)
    cases = [{"prediction_file": f"/where/it/was/validation/{case}.nii.gz"} for case in "ab"]
    (fold / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    for case in "ab":
        (fold / "validation" / f"{case}.nii.gz").touch()
    assert is_trained(fold)
    # Deleted as a whole, it would be missing in all that is made of the fold.
    for ending in ("nii.gz", "npz", "pkl"):
        (fold / "validation" / f"b.{ending}").unlink()
    assert not is_trained(fold)


# Equality


def write_case(folder, name, array, *, blocks=(1, 4, 4), **properties):
    """Write a preprocessed case as nnU-Net does."""
    import blosc2

    folder.mkdir(exist_ok=True)
    for part in (name, f"{name}_seg"):
        file = folder / f"{part}.b2nd"
        file.unlink(missing_ok=True)
        blosc2.asarray(np.ascontiguousarray(array), urlpath=str(file), blocks=blocks, mode="w")
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(properties))


def test_hash_of_the_data_sees_contents_and_names_and_remembers(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "hashes.json"
    array = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    write_case(data, "a", array, class_locations={1: np.array([[0, 1]])}, spacing=[1.0, 2.0])
    first = conditions.hash_data(data, cache)
    assert conditions.hash_data(data, cache) == first
    assert len(json.loads(cache.read_text())) == 1
    (data / "a.npy").write_bytes(b"unpacked")  # nnU-Net's own copy
    assert conditions.hash_data(data, cache) == first
    found = {"first": first}
    write_case(data, "a", array, class_locations={1: np.array([[0, 2]])}, spacing=[1.0, 2.0])
    found["properties"] = conditions.hash_data(data, cache)
    write_case(data, "a", array, class_locations={1: np.array([[0, 1]])}, spacing=[1.0, 2.5])
    found["numbers"] = conditions.hash_data(data, cache)
    write_case(data, "a", array.reshape(2, 8, 4), class_locations={1: np.array([[0, 1]])}, spacing=[1.0, 2.0])
    found["shape"] = conditions.hash_data(data, cache)
    write_case(data, "a", array.astype(np.float64), class_locations={1: np.array([[0, 1]])}, spacing=[1.0, 2.0])
    found["type"] = conditions.hash_data(data, cache)
    (data / "a.b2nd").rename(data / "b.b2nd")
    found["name"] = conditions.hash_data(data, cache)
    assert len(set(found.values())) == len(found)


def test_copy_that_keeps_its_times_and_size_is_no_longer_taken_for_the_file_of_before(tmp_path):
    data, cache = tmp_path / "data", tmp_path / "hashes.json"
    write_case(data, "a", np.zeros((4, 4, 4)), subject="one")
    first = conditions.hash_data(data, cache)
    before = (data / "a.pkl").stat()
    time.sleep(0.02)
    (data / "a.pkl").write_bytes((data / "a.pkl").read_bytes().replace(b"one", b"two"))
    os.utime(data / "a.pkl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (data / "a.pkl").stat().st_size == before.st_size
    assert conditions.hash_data(data, cache) != first


def test_hash_of_the_data_is_of_what_the_files_hold_and_not_of_how_they_are_packed(tmp_path):
    array = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    locations = np.array([[1, 2, 3]])
    write_case(tmp_path / "one", "a", array, blocks=(1, 4, 4), size=[1, 2], class_locations={1: locations})
    write_case(tmp_path / "two", "a", array, blocks=(4, 8, 8), class_locations={1: locations}, size=(1, np.int64(2)))
    for name in ("one", "two"):
        np.savez(tmp_path / name / "b.npz", data=array, seg=array > 0)
        (tmp_path / name / "b.pkl").write_bytes(pickle.dumps({"a": None}, protocol=2 + (name == "one")))
    assert (tmp_path / "one" / "a.b2nd").read_bytes() != (tmp_path / "two" / "a.b2nd").read_bytes()
    hashes = {conditions.hash_data(tmp_path / name, tmp_path / "hashes.json") for name in ("one", "two")}
    assert len(hashes) == 1
    assert len({conditions.hash_files(tmp_path / name, tmp_path / "hashes.json") for name in ("one", "two")}) == 2
    np.savez(tmp_path / "two" / "b.npz", data=array, seg=array > 1)
    assert conditions.hash_data(tmp_path / "two", tmp_path / "hashes.json") not in hashes


def test_preprocessed_file_that_cannot_be_read_is_named(tmp_path):
    write_case(tmp_path / "data", "a", np.zeros((4, 4, 4)))
    (tmp_path / "data" / "a.b2nd").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"data/a\.b2nd cannot be read, preprocess the dataset again"):
        conditions.hash_data(tmp_path / "data", tmp_path / "hashes.json")


class Program:
    def __reduce__(self):
        return print, ("a pickle was run",)


def test_properties_that_are_more_than_data_are_hashed_as_they_are_and_not_run(tmp_path, capsys):
    found = []
    for size in (1, 2):
        write_case(tmp_path / "data", "a", np.zeros((4, 4, 4)), more=Program(), size=size)
        found.append(conditions.hash_data(tmp_path / "data", tmp_path / "hashes.json"))
    assert found[0] != found[1]
    assert "was run" not in capsys.readouterr().out


def test_layout_of_a_json_file_does_not_matter(tmp_path):
    (tmp_path / "one.json").write_text('{"a": 1, "b": [2, 3]}')
    (tmp_path / "two.json").write_text('{\n "b": [2, 3],\n "a": 1}')
    (tmp_path / "three.json").write_text('{"a": 1, "b": [3, 2]}')
    one, two, three = (conditions.hash_json(tmp_path / f"{name}.json") for name in ("one", "two", "three"))
    assert one == two != three


def prove(folders: Folders, question: Protocol, changes: dict[str, dict], *, accepted: bool = False) -> dict:
    """Write records of trainings, changed for some algorithms, and compare them."""
    runs = question.runs()
    for run in runs:
        change = changes.get(run.algorithm, {})
        settings = {"optimizer.lr": 0.01, "epochs": 10, "loss": "Dice", "loss.weight": 1, **change.get("recipe", {})}
        write_text(folders.recipe(run), json.dumps({"recipe": settings}))
        hashes = {"plans": "p", "splits": "s", "data": "d", "recipe": conditions.hash_content(settings)}
        hashes |= change.get("hashes", {})
        attempt = {"hashes": hashes, "environment": {"torch": "2.9", **change.get("environment", {})}}
        for fold in question.folds:
            folder = folders.fold(run, fold)
            folder.mkdir(parents=True)
            (folder / "checkpoint_final.pth").touch()
            attempts = change.get("attempts", [attempt])
            conditions.conditions_file(folder).write_text(json.dumps({"attempts": attempts}))
    return equality.prove(runs, question.folds, folders, accepted=accepted)


def test_equal_runs_are_proven_equal(folders):
    proof = prove(folders, protocol(), {})
    assert proof["same"] == ["plans", "splits", "data", "recipe"]
    assert proof["differences"] == equality.refused(proof) == []
    assert len(proof["runs"]) == 4


@pytest.mark.parametrize(
    ("change", "what", "is_refused"),
    [
        ({"hashes": {"splits": "other"}}, "splits", True),
        ({"hashes": {"data": "other"}}, "data", True),
        ({"recipe": {"epochs": 20}}, "epochs", True),
        ({"recipe": {"optimizer.lr": 0.001}}, "optimizer.lr", False),
        ({"recipe": {"start": "weights 0a1b"}}, "start", False),
        ({"environment": {"torch": "2.8"}}, "torch", False),
        ({"attempts": []}, "plans", False),
    ],
)
def test_what_differs_is_named_once_and_refused_where_it_must_be(folders, change, what, is_refused):
    proof = prove(folders, protocol(), {"FIRENet": change})
    (found,) = [one for one in proof["differences"] if one["what"] == what]
    assert found["algorithm"] == "FIRENet"
    assert found["value"] != found["baseline"]
    assert [one["what"] for one in equality.refused(proof)] == ([what] if is_refused else [])
    assert equality.refused({**proof, "accepted": True}) == []


def test_a_baseline_on_its_own_plan_may_have_that_plan(folders):
    changed = {"hashes": {"plans": "own", "data": "own"}, "recipe": {"batch size": 4}}
    proof = prove(folders, protocol(presets=("resenc-m",)), {"U-Net (ResEnc M)": changed})
    assert {one["what"] for one in proof["differences"]} == {"plans", "data", "batch size"}
    assert equality.refused(proof) == []


def test_another_normalisation_is_flagged_and_may_stand_beside(folders):
    changed = {"hashes": {"plans": "own", "data": "own"}, "recipe": {"normalisation": "['CTNormalization']"}}
    proof = prove(folders, protocol(normalisations=("CTNormalization",)), {"U-Net (CT)": changed})
    assert {one["what"] for one in proof["differences"]} == {"plans", "data", "normalisation"}
    (found,) = [one for one in proof["differences"] if one["what"] == "normalisation"]
    assert (found["algorithm"], found["value"], found["baseline"]) == ("U-Net (CT)", "['CTNormalization']", "none")
    assert equality.refused(proof) == []


def test_for_the_same_memory_the_plans_may_differ_and_the_epochs_not(folders):
    changed = {"hashes": {"plans": "own"}, "recipe": {"patch size": [4, 4], "epochs": 20}}
    proof = prove(folders, protocol(gpu_memory=8), {"FIRENet": changed})
    assert {one["what"] for one in proof["differences"]} == {"plans", "patch size", "epochs"}
    assert [one["what"] for one in equality.refused(proof)] == ["epochs"]


def test_a_training_that_went_on_under_other_conditions_is_not_equal(folders):
    attempts = [
        {"hashes": {"plans": "p", "splits": name, "data": "d"}, "environment": {"torch": "2.9"}} for name in "st"
    ]
    proof = prove(folders, protocol(), {"FIRENet": {"attempts": attempts}})
    (found,) = equality.refused(proof)
    assert found["value"] == "s, then t"


def test_another_object_is_one_difference_not_one_per_attribute(folders):
    proof = prove(folders, protocol(), {"FIRENet": {"recipe": {"loss": "Focal", "loss.weight": 3, "loss.gamma": 2}}})
    assert [one["what"] for one in proof["differences"]] == ["loss"]


def test_flatten_reads_objects_by_their_public_attributes():
    class Inner:
        def __init__(self):
            self.rate, self._hidden = 0.5, 1

    assert recipe.flatten({"a": Inner(), "b": (1, 2), "c": [Inner()]}, "x") == {
        "x.a": "Inner",
        "x.a.rate": 0.5,
        "x.b": [1, 2],
        "x.c.0": "Inner",
        "x.c.0.rate": 0.5,
    }


# What a task takes


def watch(process: int) -> Usage:
    with Usage(seconds=0.05) as usage:
        usage.watch(process)
        time.sleep(1)
    return usage


def test_usage_is_that_of_the_gpus_of_the_process(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f"""#!/bin/sh
case "$1" in
  *compute-apps*) echo "{os.getpid()}, GPU-a, 2000"; echo "{os.getpid()}, GPU-b, 100"; echo "1, GPU-c, 9000";;
  *) echo "GPU-a, 200.00"; echo "GPU-b, 100.00"; echo "GPU-c, 700.00";;
esac
"""
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    start = time.monotonic()
    usage = watch(os.getpid())
    assert usage.peak == 2100 * 2**20
    assert "GPU" in usage.kind
    assert 0 < usage.joules <= 300 * (time.monotonic() - start)  # watts of its two GPUs, not of the third

    tool.write_text(tool.read_text().replace("100.00", "[N/A]"))
    usage = watch(os.getpid())
    assert usage.peak == 2100 * 2**20
    assert usage.joules is None


def test_usage_without_a_gpu_is_main_memory(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    usage = watch(os.getpid())
    assert usage.peak > 10e6
    assert usage.kind == "resident main memory"
    assert usage.joules is None


# What is collected


def test_logs_of_a_training_that_was_resumed_are_one_curve(tmp_path):
    def epoch(number: int, loss: float) -> str:
        lines = [
            f"Epoch {number} ",
            "Current learning rate: 0.01 ",
            f"train_loss {loss} ",
            "val_loss -0.5 ",
            "Pseudo dice [np.float32(0.5), np.float32(nan), 0.7] ",
            "Epoch time: 12.5 s ",
        ]
        return "".join(f"2026-01-02 03:04:05.000000: {line}\n" for line in lines)

    (tmp_path / "training_log_2026_1.txt").write_text(
        epoch(0, 0.9) + epoch(1, 0.8) + "2026-01-02 03:04:05.0: Epoch 2 \n"
    )
    (tmp_path / "training_log_2026_2.txt").write_text(
        epoch(1, 0.7)
        + "2026-01-02 03:04:10.500000: predicting a \n"
        + "2026-01-02 03:04:10.600000: a, shape torch.Size([1, 10, 20, 30]), rank 0 \n"
        + "2026-01-02 03:04:12.500000: Validation complete \n"
    )
    log = read_log(tmp_path)
    assert [(row["epoch"], row["train_loss"], row["seconds"]) for row in log["epochs"]] == [
        (0, 0.9, 12.5),
        (1, 0.7, 12.5),
    ]
    assert log["epochs"][0]["pseudo_dice"] == pytest.approx(0.6)
    assert log["voxels_per_second"] == pytest.approx(3000)
    (tmp_path / "training_log_2026_3.txt").write_text(epoch(0, 0.4))  # anew, with fewer epochs
    assert [(row["epoch"], row["train_loss"]) for row in read_log(tmp_path)["epochs"]] == [(0, 0.4)]


def test_torn_lines_tell_nothing_and_logs_stand_in_the_order_of_time(tmp_path):
    def write(moment: str, loss: str) -> None:
        lines = (
            "Epoch 0 ",
            f"train_loss {loss} ",
            "Current learning rate: 0.0",
            "Current learning rate: 0.01 2026-01",
            "Pseudo dice [np.float32(0.5), np.floa",
            "Epoch time: 3.5 s ",
        )
        text = "".join(f"2026-01-02 03:04:05.000000: {line}\n" for line in lines)
        no_day = "".join(f"2026-99-02 03:04:05.000000: {line}\n" for line in ("predicting a", "Validation complete"))
        (tmp_path / f"training_log_{moment}.txt").write_text(text + no_day)

    write("2026_10_1_00_00_00", "0.2")
    write("2026_9_30_00_00_00", "0.9")
    write("2026_9_4_00_00_00", "-0.8-0.")
    (row,) = read_log(tmp_path)["epochs"]
    assert (row["train_loss"], row["learning_rate"], row["seconds"]) == (0.2, 0.0, 3.5)
    assert "pseudo_dice" not in row  # of some labels only
    (tmp_path / "training_log_2026_10_1_00_00_00.txt").unlink()
    (tmp_path / "training_log_2026_9_30_00_00_00.txt").unlink()
    (row,) = read_log(tmp_path)["epochs"]
    assert "train_loss" not in row


def finish(task, folders: Folders, text: str = "") -> None:
    """Do as if a task had been done just now."""
    if task.keeps_text or task.output.suffix:
        write_text(task.output, text)
    else:
        task.output.mkdir(parents=True, exist_ok=True)
    folders.ledger.write(task.output, task.command, folders.ledger.identities(task.inputs), task.makes)


def test_what_was_found_with_other_folds_or_of_old_trainings_is_not_listed(folders):
    question = protocol(folds=(0, 1))
    for run in question.runs():
        for fold in (0, 1, 2):
            train(folders, run, fold)
    best = next(task for task in result_tasks(question, folders) if task.keeps_text)
    more = next(task for task in result_tasks(protocol(folds=(0, 1, 2)), folders) if task.keeps_text)
    for task, model in ((best, "nnUNetTrainerFIRENet"), (more, "nnUNetTrainer")):
        finish(task, folders, f"\n*Best*: {model}__nnUNetPlans__3d_fullres: 0.9\n")
    write_text(post_processing(folders, question.runs()[1]), "")

    def listed() -> list[str]:
        record = collect(question, folders, [best], accept_unequal=True, command="")
        return record.about["ensembles"]

    assert listed() == ["*Best*: nnUNetTrainerFIRENet__nnUNetPlans__3d_fullres: 0.9"]
    train(folders, question.runs()[1], 1, "trained again")
    assert listed() == []


def post_processing(folders: Folders, run) -> Path:
    """What nnU-Net leaves for the one that it took as the best of folds 0 and 1."""
    return folders.model(run) / "crossval_results_folds_0_1" / "postprocessing.pkl"


def train(folders: Folders, run, fold: int, text: str = "") -> None:
    """Do as if a fold had been trained."""
    folder = folders.fold(run, fold)
    for name in ("checkpoint_final.pth", "validation/a.pkl", "validation/a.npz"):
        write_text(folder / name, text)
    write_text(folder / "validation" / "summary.json", json.dumps({"said": text}))


@pytest.mark.parametrize("fold", [0, 1])
def test_after_a_fold_is_trained_again_no_old_figure_is_left(folders, fold):
    question = protocol(test=True)
    for part in ("imagesTs", "labelsTs"):
        (folders.raw / DATASET / part).mkdir(parents=True)
    unet, firenet = question.runs()
    for run in (unet, firenet):
        for number in (0, 1):
            train(folders, run, number)

    def tasks() -> list:
        return [*result_tasks(question, folders), *prediction_tasks(question, folders)]

    rows = "case,label,name,Dice,ASSD_mm,HD95_mm,NSD,volume_error_ml,volume_truth_ml,tolerance_mm,diagonal_mm\n"
    for task in result_tasks(question, folders):
        finish(
            task, folders, f"\n*Best*: {firenet.model}: 0.9\n" if task.keeps_text else f"{rows}a,1,x,1,0,0,1,0,1,1,9\n"
        )
    write_text(post_processing(folders, firenet), "")
    for task in prediction_tasks(question, folders):
        finish(task, folders, f"{rows}a,1,x,1,0,0,1,0,1,1,9\n")
    assert all(task.is_done(folders.ledger) for task in tasks())
    record = collect(question, folders, tasks(), accept_unequal=True, command="")
    assert set(record.results["algorithm"]) == {"U-Net", "FIRENet", "U-Net + FIRENet", "FIRENet, post-processed"}
    assert record.about["twins"] == {"nnUNetTrainerFIRENet": "nnUNetTrainerFIRENetNoFabric"}
    record.write(folders.output / "record")
    assert len(provenance(tasks(), folders, {})["outputs"]) == 1 + len(tasks())

    # As version 0.1.0 has left it, all but the trainings is made anew.
    for marker in folders.output.rglob("*.made-of.json"):
        marker.rename(marker.with_suffix(".gone"))
    trainings = [task for task in training_tasks(question, folders) if task.training]
    assert len(trainings) == 4
    assert tasks_left([*trainings, *tasks()], folders.ledger) == [task for task in tasks() if not task.training]
    for marker in folders.output.rglob("*.gone"):
        marker.rename(marker.with_suffix(".json"))

    train(folders, firenet, fold, "again")
    assert [task.title.partition(": ")[2] for task in tasks_left(tasks(), folders.ledger)] == [
        "cross-validated segmentations of FIRENet",
        "metrics of FIRENet",
        "best configuration, ensembles of all pairs, post-processing",
        "metrics of U-Net + FIRENet",
        "predict the test images with FIRENet",
        "metrics of FIRENet on the test images",
    ]
    record = collect(question, folders, tasks(), accept_unequal=True, command="")
    assert set(record.results["algorithm"]) == {"U-Net"}
    assert len(record.failures) == 6


def test_nnunets_search_is_made_again_where_another_one_has_removed_its_post_processing(folders):
    """nnU-Net makes the folders of all models anew that it looks at, also those of another benchmark's best."""
    question = protocol()
    for run in question.runs():
        for fold in (0, 1):
            train(folders, run, fold)
    best = next(task for task in result_tasks(question, folders) if task.keeps_text)
    firenet = question.runs()[1]
    finish(best, folders, f"\n*Best*: {firenet.model}: 0.9\n")
    write_text(post_processing(folders, firenet), "")
    assert best.is_done(folders.ledger)
    post_processing(folders, firenet).unlink()
    assert not best.is_done(folders.ledger)
    assert prediction_tasks(protocol(test=True), folders) == []
    write_text(best.output, "nothing of use")
    assert not best.is_done(folders.ledger)


def test_metrics_know_the_truth_that_nnunet_evaluates_against(folders):
    """nnU-Net's summaries are of labelsTr where it is; a label that is corrected there is not in preprocessed data."""
    question = protocol()
    label = folders.raw / DATASET / "labelsTr" / "a.nii.gz"
    write_text(label, "one")
    write_text(folders.preprocessed / DATASET / "gt_segmentations" / "a.nii.gz", "one")
    for run in question.runs():
        for fold in (0, 1):
            train(folders, run, fold)
    metrics = [task for task in result_tasks(question, folders) if task.rows]
    assert len(metrics) == 3
    for task in metrics:
        finish(task, folders)
    write_text(label, "two")
    assert not any(task.is_done(folders.ledger) for task in metrics)
    assert all(str(label.parent) in task.command for task in metrics)


HELPED = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from helper_of_helped import build


class HelpedTrainer(nnUNetTrainer):
    build_network_architecture = staticmethod(build)
"""


def test_a_description_is_made_of_what_the_trainer_imports_too(tmp_path, monkeypatch):
    """A network in a file of its own: its parameters stand in the table of costs."""
    (tmp_path / "helped.py").write_text(HELPED)
    (tmp_path / "helper_of_helped.py").write_text("import deeper_than_helped\n\ndef build(*_, **__):\n    pass\n")
    (tmp_path / "deeper_than_helped.py").write_text("import json\nimport torch\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {file.name for file in source_files("HelpedTrainer")}
    assert names == {"helped.py", "helper_of_helped.py", "deeper_than_helped.py", "nnUNetTrainer.py"}


def test_objects_are_counted_from_when_dataset_json_names_them(folders):
    """That may be after the trainings, whose models have a dataset.json of their own."""
    question = protocol(with_ensembles=False)
    for run in question.runs():
        for fold in (0, 1):
            train(folders, run, fold)
    rows = "case,label,name,Dice,ASSD_mm,HD95_mm,NSD,volume_error_ml,volume_truth_ml,tolerance_mm,diagonal_mm"
    for task in result_tasks(question, folders):
        finish(task, folders, f"{rows}\na,1,x,1,0,0,1,0,1,1,9\n")
    assert not tasks_left(result_tasks(question, folders), folders.ledger)

    raw = folders.raw / DATASET / "dataset.json"
    labels = {"background": 0, "x": 1}
    write_text(raw, json.dumps({"labels": labels, "nnunet_plugins_objects": ["x"]}))
    left = tasks_left(result_tasks(question, folders), folders.ledger)
    assert [task.rows["algorithm"] for task in left] == ["U-Net", "FIRENet"]
    assert all(task.command[-2:] == ("--objects", "x") for task in left)
    more = ",objects_TP,objects_FP,objects_FN,objects_F1,objects_SQ,objects_PQ,objects_Dice"
    for task in left:
        finish(task, folders, f"{rows}{more}\na,1,x,1,0,0,1,0,1,1,9,1,0,1,0.6666666666666666,0.75,0.5,0.4\n")
    driver.write_report(question, folders, result_tasks(question, folders), accept_unequal=True)
    assert verify_report(folders.output, folders.variables).contradictions == []
    results = read_record(folders.output / "record").results
    assert results["objects_PQ"].tolist() == [0.5] * 2
    assert "F1 of objects" in (folders.output / "report" / "report.md").read_text()
    record = folders.output / "record" / "results.csv"
    record.write_text(record.read_text().replace(",0.75,0.5,0.4", ",0.75,0.6,0.4", 1))
    build_report(folders.output)
    found = verify_report(folders.output, folders.variables).contradictions
    assert any("results.csv: the rows of cross-validation" in line for line in found)

    write_text(raw, json.dumps({"labels": labels, "nnunet_plugins_objects": ["y"]}))
    with pytest.raises(InputError, match=r"dataset.json: 'nnunet_plugins_objects' names 'y', which is no label"):
        result_tasks(question, folders)


def test_costs_curves_and_conditions_are_traced_to_the_files_that_they_are_of(folders):
    question = protocol()
    for run in question.runs():
        for fold in (0, 1):
            train(folders, run, fold)
            write_text(folders.fold(run, fold) / "training_log_2026_1_1_00_00_00.txt", LOG)
    rows = "case,label,name,Dice,ASSD_mm,HD95_mm,NSD,volume_error_ml,volume_truth_ml,tolerance_mm,diagonal_mm\n"
    for task in result_tasks(question, folders):
        finish(task, folders, "" if task.keeps_text else f"{rows}a,1,x,1,0,0,1,0,1,1,9\n")
    driver.write_report(question, folders, result_tasks(question, folders), accept_unequal=True)
    assert verify_report(folders.output, folders.variables).contradictions == []
    runs = folders.output / "record" / "runs.csv"
    text = runs.read_text()
    runs.write_text(text.replace(",12.5,", ",10.5,", 1))
    assert runs.read_text() != text
    build_report(folders.output)  # by hand, of the changed record
    (found,) = verify_report(folders.output, folders.variables).contradictions
    assert found.startswith("output/record/runs.csv is another file than when")
    runs.write_text(text)
    build_report(folders.output)
    unet = question.runs()[0]
    write_text(folders.fold(unet, 1) / "training_log_2026_1_1_00_00_00.txt", LOG.replace("0.9", "0.1"))
    (found,) = verify_report(folders.output, folders.variables).contradictions
    assert found.startswith(f"results/{DATASET}/{unet.model}/fold_1/training_log_2026_1_1_00_00_00.txt is another file")


LOG = """2026-01-02 03:04:05.000000: Epoch 0
2026-01-02 03:04:05.000000: train_loss 0.9
2026-01-02 03:04:05.000000: Epoch time: 12.5 s
"""


# From weights and from scratch

BOTH = ("nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainerFIRENet_Pretrained")


def test_a_training_from_weights_stands_beside_the_one_from_scratch(folders, tmp_path):
    """Networks alone have twins here: the weights are not the twin's."""
    question = protocol(trainers=BOTH, folds=(0,), pretrained=str(tmp_path / "start.pth"), with_twins=True)
    names = ["U-Net", "FIRENet", "FIRENet Pretrained", "FIRENetNoFabric"]
    assert [run.algorithm for run in question.runs()] == names
    tasks = training_tasks(question, folders)
    ends = {task.training[0].algorithm: task.command[-2:] for task in tasks if task.training}
    start = ("-pretrained_weights", str(tmp_path / "start.pth"))
    assert ends == {name: start if name == "FIRENet Pretrained" else ("--npz", "--c") for name in names}
    described = {task.name: task for task in tasks if task.name.startswith("describe")}
    assert [tmp_path / "start.pth" in task.inputs for task in described.values()] == [False, False, True, False]


def test_both_starts_are_in_one_figure(folders):
    question = protocol(trainers=BOTH[1:], folds=(0,), pretrained="start.pth")
    for run in question.runs():
        train(folders, run, 0)
        write_text(folders.fold(run, 0) / "training_log_2026_1_1_00_00_00.txt", LOG)
    rows = "case,label,name,Dice,ASSD_mm,HD95_mm,NSD,volume_error_ml,volume_truth_ml,tolerance_mm,diagonal_mm\n"
    for task in result_tasks(question, folders):
        finish(task, folders, "" if task.keeps_text else f"{rows}a,1,x,1,0,0,1,0,1,1,9\n")
    driver.write_report(question, folders, result_tasks(question, folders), accept_unequal=True)
    (figure,) = (folders.output / "report" / "figures").glob("*curves.svg")
    told = set(re.findall(r"FIRENet(?: Pretrained)?", figure.read_text()))
    assert told == {"FIRENet", "FIRENet Pretrained"}


# The command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-d", "77"], "'77' is not the number or name of exactly one dataset"),
        (["-tr", "nnUNetTrainerNoSuch"], "nnUNetTrainerNoSuch"),
        (["-p", "myPlans"], "myPlans.json is missing"),
        (["-f", "7"], "fold 7 does not exist"),
        (["--normalisation", "clahe"], "--normalisation clahe: nnU-Net has CTNormalization, NoNormalization"),
        (["--normalisation", "CT", "--gpu-memory", "8"], "leave out one of them"),
        (["--device", "cuda", "--gpus", "64"], "64 GPUs are asked for"),
        (
            ["-tr", "nnUNetTrainer_Pretrained"],
            "nnUNetTrainer_Pretrained starts from weights; name them with --pretrained",
        ),
        (["--pretrained", "x"], "--pretrained is for trainers with _Pretrained; add one, such as nnUNetTrainer_Pretr"),
        (["-tr", "nnUNetTrainer_Pretrained", "--pretrained", "gone.pth"], "gone.pth"),
        (["-tr", *LONG_TRAINERS, "-p", LONG_PLANS], "the ensemble of U-Net and AutofocusUNet would have a name of 2"),
    ],
)
def test_what_would_go_wrong_late_is_said_early(tmp_path, monkeypatch, capsys, options, said):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "nnUNet_raw" / DATASET).mkdir()
    question = ["-d", "1", "-tr", "nnUNetTrainer", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main(["benchmark", *question, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_folders_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["benchmark", "-d", "1", "-tr", "nnUNetTrainer", "-o", str(tmp_path / "out")]) == 2
    assert "nnUNet_raw" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_it_ends_in_the_report(tmp_path):
    sandbox = Sandbox(tmp_path)
    sandbox.env["nnUNet_n_proc_DA"] = "1"
    write_dataset(sandbox.raw, DATASET, cases=6)
    # nnU-Net's own, which knows nothing of locks, and one that asks for the lock that the benchmark holds for it.
    trainers = ["nnUNetTrainer_tiny", "nnUNetTrainerFIRENet_1epochs_1iterations_NoMirroring"]
    output = tmp_path / "out"
    command = ["benchmark", "-d", 1, "-tr", *trainers, "nnUNetTrainer_broken", "-f", 0, 1, "--folds", 3]
    command += ["--device", "cpu", "--retries", 0, "-o", output, "--repeats", f"{trainers[1]}:2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(MINE)
    sandbox.env["nnUNet_extTrainer"] = str(tmp_path / "mine")

    # kill -9, as soon as the first training is done.
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            [commands() / "nnunet-plugins", *map(str, command)], env=sandbox.env, cwd=tmp_path, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 600
        while "train U-Net tiny, fold 0: done" not in (tmp_path / "first.log").read_text():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    unet = sandbox.results / DATASET / f"{trainers[0]}__nnUNetPlans__3d_fullres" / "fold_0"
    before = (unet / "checkpoint_final.pth").stat().st_mtime_ns

    said = sandbox.run("nnunet-plugins", *command, ok=False)  # 1, because a trainer is broken
    assert "train U-Net tiny, fold 0: done before" in said
    assert "train U-Net broken, fold 0: failed: exit code 1" in said
    assert "not today" in said
    assert (unet / "checkpoint_final.pth").stat().st_mtime_ns == before

    page = (output / "report" / "index.html").read_text()
    for text in ("FIRENet", "U-Net tiny + FIRENet", "not today", "1 epoch x 1 iteration, folds 0 1"):
        assert text in page
    results = (output / "report" / "results.csv").read_text()
    assert results.count("\n") == 1 + 4 * 4 * 2  # two networks, one of them twice, an ensemble; four cases, two labels
    proof = json.loads((output / "record" / "equality.json").read_text())[0]
    assert {"plans", "splits", "data"} <= set(proof["same"])
    firenet = "FIRENet 1epochs 1iterations NoMirroring"
    differing = {found["what"] for found in proof["differences"] if found["algorithm"] == firenet}
    mirroring = {"mirroring at test time", "augmentation.MirrorTransform"}
    assert differing == {"deep supervision", "own method __init__", *mirroring}

    # The numbers are nnU-Net's own.
    table = [line.split(",") for line in results.splitlines()]
    wanted = ["algorithm", "seed", "label"]
    means = []
    for seed in ("1", "2"):
        summary = json.loads(next(output.glob(f"cross-validation/*FIRENet*_{seed}seed*/summary.json")).read_text())
        dice = [
            float(row[table[0].index("Dice")])
            for row in table[1:]
            if [row[table[0].index(name)] for name in wanted] == [firenet, seed, "1"]
        ]
        means.append(summary["mean"]["1"]["Dice"])
        assert sum(dice) / len(dice) == pytest.approx(means[-1], abs=1e-12)
    assert means[0] != means[1]

    # Every number fits what it was made of.
    verified = sandbox.run("nnunet-plugins", "report", "--verify", output)
    assert "not here" not in verified
    assert "Dice as in nnU-Net's 3 summary.json" in verified

    # From the record alone.
    copy = tmp_path / "copy"
    copy.mkdir()
    (output / "record").rename(copy / "record")
    sandbox.run("nnunet-plugins", "report", copy)
    assert (copy / "report" / "index.html").is_file()
    assert "inputs not here, hashes from the record" in sandbox.run("nnunet-plugins", "report", "--verify", copy)


MINE = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_tiny(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = 1
        self.num_val_iterations_per_epoch = 1


class nnUNetTrainer_broken(nnUNetTrainer_tiny):
    def on_train_start(self):
        raise RuntimeError("not today")
"""
