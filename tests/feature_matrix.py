"""nnU-Net's features, each as a check that a trainer passes through nnU-Net's own commands, on tiny datasets.

A check that ends in `NotSupportedError` met a trainer that refuses the dataset before training, with its reason.
"""

import functools
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from conftest import SHAPE, Sandbox, kill_when, write_dataset
from matrix_record import SHORT

STOCK = f"nnUNetTrainer{SHORT}"
# One process each; by default these commands start several.
PREDICT_OPTIONS = ("-device", "cpu", "-npp", 1, "-nps", 1, "--disable_progress_bar")

REGIONS = {"background": 0, "whole": [1, 2], "inner": 2}
IGNORE = {"background": 0, "outer": 1, "inner": 2, "ignore": 3}

DATASETS: dict[str, dict] = {
    "Dataset001_Small": {},
    "Dataset002_Anisotropic": {"shape": (6, 24, 20), "spacing": (5.0, 1.0, 1.0)},
    "Dataset003_Channels": {"channels": 4},
    "Dataset004_Regions": {"labels": REGIONS, "regions_class_order": [1, 2]},
    "Dataset005_Ignore": {"labels": IGNORE, "ignore_slices": 5},
    "Dataset006_RegionsIgnore": {
        "labels": {**REGIONS, "ignore": 3},
        "regions_class_order": [1, 2],
        "ignore_slices": 5,
    },
}


class NotSupportedError(Exception):
    """The trainer refused before training; the message is its reason."""


@dataclass(frozen=True)
class Setting:
    """What to train on."""

    dataset: str = "Dataset001_Small"
    configuration: str = "3d_fullres"
    plans: str = "small"
    foreground: tuple[str, ...] = ("1", "2")


PLAIN = Setting()
LOW = Setting(configuration="3d_lowres")
CASCADE = Setting(configuration="3d_cascade_fullres")


class Datasets(Sandbox):
    """A sandbox whose datasets are written, planned and preprocessed when a feature first needs them.

    The plain one is a copy of that in the sandbox `prepared`.
    """

    def __init__(self, root: Path, prepared: Sandbox) -> None:
        super().__init__(shutil.copytree(prepared.root, root, dirs_exist_ok=True))

    @functools.cached_property
    def ready(self) -> set[str]:
        return set()

    def require(self, dataset: str) -> None:
        if dataset in self.ready:
            return
        if dataset == PLAIN.dataset:
            self.edit_plans(dataset, "small", add_cascade)
            self.run("nnUNetv2_preprocess", "-d", 1, "-plans_name", "small", "-c", "3d_lowres", "-np", 1)
            self.run("nnUNetv2_plan_experiment", "-d", 1, "-pl", "nnUNetPlannerResEncM", nnUNet_n_proc_DA="1")
            self.edit_plans(dataset, "resenc", like="nnUNetResEncUNetMPlans")
        else:
            write_dataset(self.raw, dataset, **DATASETS[dataset])
            self.prepare(int(dataset[7:10]), "3d_fullres", "2d")
            self.edit_plans(dataset, "small")
        self.ready.add(dataset)

    @functools.cached_property
    def stock(self) -> dict[str, "Model"]:
        """The stock U-Net by configuration, for what compares or combines two models."""
        return {configuration: Model(self, "nnUNetTrainer", configuration) for configuration in ("2d", "3d_fullres")}


def add_cascade(configurations: dict) -> None:
    configurations["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "small_3d_lowres",
        "spacing": [1.4 * spacing for spacing in configurations["3d_fullres"]["spacing"]],
        "median_image_size_in_voxels": [round(size / 1.4) for size in SHAPE],
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}


class Model:
    """A trainer with what has been trained and predicted with it; steps that several features need are taken once."""

    def __init__(self, data: Datasets, trainer: str, configuration: str = "3d_fullres") -> None:
        self.data, self.trainer = data, trainer + SHORT
        self.plain = Setting(configuration=configuration)
        self.outputs = data.root / "predicted" / trainer

    def remove(self) -> None:
        """Delete all files: checkpoints of many trainers fill a disk."""
        for folder in self.data.results.glob(f"*/{self.trainer.removesuffix(SHORT)}_*"):
            shutil.rmtree(folder)
        shutil.rmtree(self.outputs, ignore_errors=True)

    def folder(self, setting: Setting, fold: object = 0, trainer: str | None = None) -> Path:
        name = f"{trainer or self.trainer}__{setting.plans}__{setting.configuration}"
        return self.data.results / setting.dataset / name / f"fold_{fold}"

    def train(self, setting: Setting, *options: object, fold: object = 0, trainer: str | None = None) -> str:
        """Train, validate, and check what both leave behind; returns the output."""
        self.data.require(setting.dataset)
        process = self.data.start(*train_command(setting, trainer or self.trainer, fold), *options)
        output, _ = process.communicate(timeout=900)
        if process.returncode:
            kind, _, reason = output.strip().splitlines()[-1].partition(": ")
            if (
                kind.rpartition(".")[2] in ("NotImplementedError", "DimensionError", "ValueError")
                and "Epoch 0" not in output
            ):
                raise NotSupportedError(reason.removeprefix(f"{trainer or self.trainer}: "))
            raise AssertionError(f"{process.args} ended with {process.returncode}:\n{output[-6000:]}")
        if "--val" not in options:
            losses = [float(loss) for loss in re.findall(r"(?:train|val)_loss (\S+)", output)]
            assert losses, output
            assert all(map(math.isfinite, losses)), losses
        summary = self.validation(setting, fold, trainer)
        assert tuple(summary["mean"]) == setting.foreground, summary["mean"]
        return output

    def validation(self, setting: Setting, fold: object = 0, trainer: str | None = None) -> dict:
        return json.loads((self.folder(setting, fold, trainer) / "validation" / "summary.json").read_text())

    def predict(
        self,
        name: str,
        *options: object,
        setting: Setting | None = None,
        folds: Iterable[object] = (0,),
        cases: int = 2,
    ) -> Path:
        """Predict the test cases with `nnUNetv2_predict`; returns the folder of the segmentations."""
        setting = setting or self.plain
        number = int(setting.dataset[7:10])
        model = ("-d", number, "-c", setting.configuration, "-p", setting.plans, "-tr", self.trainer, "-f", *folds)
        self.data.run(
            *("nnUNetv2_predict", "-i", self.images(setting), "-o", self.outputs / name, *model),
            *PREDICT_OPTIONS,
            *options,
        )
        check_segmentations(self.outputs / name, cases)
        return self.outputs / name

    def images(self, setting: Setting = PLAIN) -> Path:
        return self.data.raw / setting.dataset / "imagesTs"

    def works_on(self, dataset: str = PLAIN.dataset, **options: Any) -> Setting:
        setting = replace(self.plain, dataset=dataset, **options)
        self.train(setting)
        self.predict(f"{setting.dataset}_{setting.plans}_{setting.configuration}", setting=setting)
        return setting

    @functools.cached_property
    def fold_0(self) -> Path:
        self.train(self.plain, "--npz")
        return self.folder(self.plain)

    @functools.cached_property
    def fold_1(self) -> Path:
        self.train(self.plain, "--npz", fold=1)
        return self.folder(self.plain, 1)

    @functools.cached_property
    def low(self) -> str:
        """The cascade's first stage, trained on all cases as the second stage needs all of them; the output."""
        return self.train(LOW, fold="all")

    @functools.cached_property
    def predicted(self) -> Path:
        """Predictions of fold 0, with probabilities."""
        assert self.fold_0
        return self.predict("fold_0", "--save_probabilities")

    @functools.cached_property
    def predicted_low(self) -> Path:
        assert self.low
        return self.predict("low", setting=LOW, folds=["all"])


def train_command(setting: Setting, trainer: str, fold: object) -> tuple[object, ...]:
    where = (setting.dataset, setting.configuration, fold)
    return ("nnUNetv2_train", *where, "-tr", trainer, "-p", setting.plans, "-device", "cpu")


def check_segmentations(folder: Path, cases: int = 2) -> None:
    """Check that every case is there, in the images' size, with labels of the dataset alone (never the ignored one)."""
    files = sorted(folder.glob("*.nii.gz"))
    assert [file.name for file in files] == [f"case_{number}.nii.gz" for number in (5, 6)][:cases]
    for file in files:
        segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert segmentation.shape in (SHAPE, DATASETS["Dataset002_Anisotropic"]["shape"])
        assert set(np.unique(segmentation)) <= {0, 1, 2}


def probabilities(folder: Path) -> dict[str, np.ndarray]:
    """The probabilities `(classes, *size)` of a folder's cases, checked to be some."""
    found = {file.stem: np.load(file)["probabilities"].astype(np.float32) for file in sorted(folder.glob("*.npz"))}
    assert found, f"no probabilities in {folder}"
    for values in found.values():
        assert values.shape == (3, *SHAPE)
        assert np.allclose(values.sum(0), 1, atol=1e-2)
    return found


def assert_same(first: Path, second: Path) -> None:
    one, other = probabilities(first), probabilities(second)
    assert one.keys() == other.keys()
    for case in one:
        np.testing.assert_allclose(one[case], other[case], atol=1e-4)


def differ(first: Path, second: Path) -> bool:
    one, other = probabilities(first), probabilities(second)
    return any(not np.allclose(one[case], other[case], atol=1e-4) for case in one)


Check = Callable[[Model], object]
FEATURES: dict[str, dict[str, Check]] = {"Configurations": {}, "Labels": {}, "Training": {}, "Prediction": {}}
"""Group to feature to its check. What stands in the docs' table are these names."""


def feature(group: str, name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        FEATURES[group][name] = check
        return check

    return add


@feature("Configurations", "3d_fullres, 1 channel")
def full_resolution(model: Model) -> None:
    if model.plain != PLAIN:  # a network in 2D, which refuses
        model.works_on(configuration=PLAIN.configuration)
    assert model.fold_0
    assert model.predicted


@feature("Configurations", "4 channels")
def channels(model: Model) -> None:
    model.works_on("Dataset003_Channels")


@feature("Configurations", "anisotropic voxels")
def anisotropic(model: Model) -> None:
    setting = model.works_on("Dataset002_Anisotropic")
    plans = json.loads((model.folder(setting).parent / "plans.json").read_text())
    stages = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert (stages["strides"][1], stages["kernel_sizes"][0]) == ([1, 2, 2], [1, 3, 3])  # in 2D there is nothing to see


@feature("Configurations", "2d")
def two_dimensions(model: Model) -> None:
    model.works_on(configuration="2d")


@feature("Configurations", "3d_lowres")
def low_resolution(model: Model) -> None:
    assert model.predicted_low


@feature("Configurations", "3d_cascade_fullres")
def cascade(model: Model) -> None:
    low = model.predicted_low
    model.train(CASCADE)
    model.predict("cascade", "-prev_stage_predictions", low, setting=CASCADE)


@feature("Configurations", "ResEnc plans")
def residual_encoder(model: Model) -> None:
    setting = model.works_on(plans="resenc")
    plans = json.loads((model.folder(setting).parent / "plans.json").read_text())
    network = plans["configurations"][setting.configuration]["architecture"]["network_class_name"]
    assert network.endswith("ResidualEncoderUNet")


@feature("Labels", "regions")
def regions(model: Model) -> None:
    model.works_on("Dataset004_Regions", foreground=("(1, 2)", "2"))


@feature("Labels", "ignore label")
def ignore_label(model: Model) -> None:
    model.works_on("Dataset005_Ignore")


@feature("Labels", "regions and ignore label")
def regions_and_ignore_label(model: Model) -> None:
    model.works_on("Dataset006_RegionsIgnore", foreground=("(1, 2)", "2"))


@feature("Training", "fold all")
def all_cases(model: Model) -> None:
    setting = LOW if model.plain == PLAIN else model.plain
    assert model.low if setting == LOW else model.train(setting, fold="all")
    assert (model.folder(setting, "all") / "checkpoint_final.pth").exists()
    assert len(model.validation(setting, "all")["metric_per_case"]) == 5


@feature("Training", "--npz")
def npz(model: Model) -> None:
    (values,) = probabilities(model.fold_0 / "validation").values()
    assert np.isfinite(values).all()


@feature("Training", "--c")
def resume(model: Model) -> None:
    """A training that was killed in its second epoch goes on there."""
    trainer = model.trainer.replace("_1epochs", "_3epochs")
    model.data.require(model.plain.dataset)
    kill_when(model.data, r"Epoch 1\b", *train_command(model.plain, trainer, 0))
    assert not (model.folder(model.plain, trainer=trainer) / "checkpoint_final.pth").exists()
    output = model.train(model.plain, "--c", trainer=trainer)
    assert re.findall(r": Epoch (\d+)", output) == ["1", "2"]


def validate_again(model: Model, *options: object) -> None:
    checkpoint = (model.fold_0 / "checkpoint_final.pth").read_bytes()
    before = model.validation(model.plain)["foreground_mean"]
    shutil.rmtree(model.fold_0 / "validation")
    output = model.train(model.plain, "--val", "--npz", *options)
    assert "Epoch 0" not in output
    assert (model.fold_0 / "checkpoint_final.pth").read_bytes() == checkpoint
    # After one epoch the best checkpoint is the final one.
    assert model.validation(model.plain)["foreground_mean"] == before


@feature("Training", "--val")
def validate(model: Model) -> None:
    validate_again(model)


@feature("Training", "--val_best")
def validate_best(model: Model) -> None:
    validate_again(model, "--val_best")


@feature("Training", "-pretrained_weights")
def pretrained_weights(model: Model) -> None:
    checkpoint = model.fold_0 / "checkpoint_final.pth"
    output = model.train(model.plain, "-pretrained_weights", checkpoint, fold=2)
    loaded = set(re.findall(r"^(\S+) shape torch\.Size", output, flags=re.MULTILINE))
    weights = torch.load(checkpoint, weights_only=False)["network_weights"]
    assert loaded == {key for key in weights if ".seg_layers." not in key}


@feature("Training", "--disable_checkpointing")
def no_checkpoints(model: Model) -> None:
    model.train(model.plain, "--disable_checkpointing", fold=3)
    assert not list(model.folder(model.plain, 3).glob("*.pth"))


@feature("Prediction", "--save_probabilities")
def save_probabilities(model: Model) -> None:
    assert list(probabilities(model.predicted)) == ["case_5", "case_6"]


@feature("Prediction", "--disable_tta")
def no_mirroring(model: Model) -> None:
    mirrored = model.predicted
    plain = model.predict("plain", "--disable_tta", "--save_probabilities")
    checkpoint = torch.load(model.fold_0 / "checkpoint_final.pth", weights_only=False)
    assert differ(mirrored, plain) is bool(checkpoint["inference_allowed_mirroring_axes"])


@feature("Prediction", "several folds")
def several_folds(model: Model) -> None:
    first = model.predicted
    assert model.fold_1
    assert differ(first, model.predict("folds", "--save_probabilities", folds=(0, 1)))


@feature("Prediction", "-num_parts, -part_id")
def parts(model: Model) -> None:
    whole = model.predicted
    for part, cases in enumerate((1, 2)):
        folder = model.predict("parts", "--save_probabilities", "-num_parts", 2, "-part_id", part, cases=cases)
    assert_same(whole, folder)


@feature("Prediction", "nnUNetv2_predict_from_modelfolder")
def model_folder(model: Model) -> None:
    whole, output = model.predicted, model.outputs / "model_folder"
    command = ("nnUNetv2_predict_from_modelfolder", "-i", model.images(), "-o", output, "-m", model.fold_0.parent)
    model.data.run(*command, "-f", 0, *PREDICT_OPTIONS, "--save_probabilities")
    check_segmentations(output)
    assert_same(whole, output)


@feature("Prediction", "export to and import from a zip file")
def zip_file(model: Model) -> None:
    whole, archive = model.predicted, model.outputs / "model.zip"
    which = ("-d", 1, "-c", model.plain.configuration, "-f", 0, "-tr", model.trainer, "-p", "small")
    model.data.run("nnUNetv2_export_model_to_zip", *which, "-o", archive)
    elsewhere = Sandbox(model.outputs / "elsewhere")
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", archive)
    output = model.outputs / "imported"
    command = ("nnUNetv2_predict", "-i", model.images(), "-o", output, *which, *PREDICT_OPTIONS)
    elsewhere.run(*command, "--save_probabilities")
    check_segmentations(output)
    assert_same(whole, output)


@feature("Prediction", "nnUNetv2_find_best_configuration, nnUNetv2_apply_postprocessing")
def best_configuration(model: Model) -> None:
    """The model, the stock U-Net and their ensemble, cross-validated on two folds; then the best's postprocessing."""
    configuration = model.plain.configuration
    for one in (model.data.stock[configuration], model):
        assert one.fold_0
        assert one.fold_1
    command = ("nnUNetv2_find_best_configuration", 1, "-c", configuration, "-p", "small", "-f", 0, 1, "-np", 1)
    model.data.run(*command, "-tr", STOCK, model.trainer)
    report = json.loads((model.data.results / PLAIN.dataset / "inference_information.json").read_text())
    assert len(report["all_results"]) == 3
    assert f"{model.trainer}__small__{configuration}" in report["all_results"]
    best, output = report["best_model_or_ensemble"], model.outputs / "postprocessed"
    model.data.run(
        *("nnUNetv2_apply_postprocessing", "-i", model.predicted, "-o", output, "-np", 1),
        *("-pp_pkl_file", best["postprocessing_file"], "-plans_json", best["some_plans_file"]),
    )
    check_segmentations(output)


@feature("Prediction", "nnUNetv2_ensemble")
def ensemble(model: Model) -> None:
    members = [model.data.stock[model.plain.configuration].predicted, model.predicted]
    output = model.outputs / "ensemble"
    model.data.run("nnUNetv2_ensemble", "-i", *members, "-o", output, "-np", 1, "--save_npz")
    check_segmentations(output)
    first, second, mean = map(probabilities, (*members, output))
    for case, values in mean.items():
        np.testing.assert_allclose(values, (first[case] + second[case]) / 2, atol=1e-2)
