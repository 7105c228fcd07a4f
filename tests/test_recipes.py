"""What is described of a trainer: all kinds that users may make, on plans without any data."""

import json

import pytest

from nnunet_plugins.benchmark import recipe
from nnunet_plugins.benchmark.progress import Training
from nnunet_plugins.benchmark.sources import overridden_methods

DATASET = "Dataset001_Small"
OPTIONS = {
    "n_stages": 3,
    "features_per_stage": [4, 4, 4],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
NETWORK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": OPTIONS,
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
RESAMPLING = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")} | {
    f"resampling_fn_{what}_kwargs": {} for what in ("data", "seg", "probabilities")
}
CONFIGURATION = {
    "data_identifier": "data",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": [16, 16],
    "median_image_size_in_voxels": [16, 16],
    "spacing": [1, 1],
    "normalization_schemes": ["ZScoreNormalization"],
    "use_mask_for_norm": [False],
    "batch_dice": True,
    "architecture": NETWORK,
    **RESAMPLING,
}
PLANS = {
    "dataset_name": DATASET,
    "plans_name": "tiny",
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {},
    "configurations": {"2d": CONFIGURATION},
}
LABELS = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}

TRAINERS = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class PlainTrainer(nnUNetTrainer):
    pass


class LossTrainer(nnUNetTrainer):
    def _build_loss(self):
        return lambda output, target: sum(part.mean() for part in output)


class StepTrainer(nnUNetTrainer):
    def train_step(self, batch):
        return {"loss": 0}


class StepTrainerOnceMore(StepTrainer):
    def get_dataloaders(self):
        return None, None

    def on_train_start(self):
        super().on_train_start()
        self.network.load_state_dict(torch.load("other.pth"))


class SilentTrainer(nnUNetTrainer):
    def get_training_transforms(self, *args, **kwargs):
        raise RuntimeError("only on Tuesdays")


class NoTrainer(nnUNetTrainer):
    def __init__(self, *args, **kwargs):
        raise RuntimeError("no graphics card")
"""


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Describe a trainer of the file above, as a benchmark's subprocess does."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / DATASET
    folder.mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "a.b2nd").touch()
    (folder / "tiny.json").write_text(json.dumps(PLANS))
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    namespace: dict = {"__name__": "mine"}
    exec(TRAINERS, namespace)
    find = "nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name"
    monkeypatch.setattr(find, namespace.get)
    return lambda trainer: recipe.describe(DATASET, "2d", "tiny", trainer)


def test_a_loss_without_parts_is_described(describe):
    found, plain = describe("LossTrainer"), describe("PlainTrainer")
    assert found["problems"] == plain["problems"] == {}
    assert found["epochs"] == 1000
    assert found["recipe"]["loss"] != plain["recipe"]["loss"]
    assert found["recipe"]["own method _build_loss"].startswith("LossTrainer ")


def test_a_normalisation_is_told_where_it_is_not_the_planned_one(describe, tmp_path):
    """So that recipes of trainings of before stay what they were."""
    folder = tmp_path / "preprocessed" / DATASET
    assert not {"normalisation", "preparation"} & describe("PlainTrainer")["recipe"].keys()
    other = {**CONFIGURATION, "normalization_schemes": ["CTNormalization"]}
    (folder / "tiny.json").write_text(json.dumps({**PLANS, "configurations": {"2d": other}}))
    clahe = {"dataset": "Dataset001_A", "scheme": "clahe", "channels": [0], "percentiles": [1, 99], "tile": None}
    recipe = {**clahe, "clip_limit": 0.01, "scikit_image": "0.26.0"}
    (folder / "dataset.json").write_text(json.dumps({**LABELS, "nnunet_plugins_preparation": recipe}))
    found = describe("PlainTrainer")["recipe"]
    assert found["normalisation"] == ["CTNormalization"]
    assert found["preparation"] == "clipped to the percentiles 1 and 99, then clahe"
    tiled = {**recipe, "tile": [12, 16, 12]}
    (folder / "dataset.json").write_text(json.dumps({**LABELS, "nnunet_plugins_preparation": tiled}))
    assert describe("PlainTrainer")["recipe"]["preparation"] == f"{found['preparation']}, tile 12 x 16 x 12"


def test_own_steps_loaders_and_weights_are_no_longer_the_same_recipe(describe):
    plain, step, more = (describe(name)["recipe"] for name in ("PlainTrainer", "StepTrainer", "StepTrainerOnceMore"))
    own = ["own method get_dataloaders", "own method on_train_start", "own method train_step"]
    assert [name for name in sorted({*plain, *more}) if plain.get(name) != more.get(name)] == own
    assert [name for name in sorted({*plain, *step}) if plain.get(name) != step.get(name)] == own[2:]


def test_what_cannot_be_described_is_a_flag_and_no_stop(describe):
    found = describe("SilentTrainer")
    assert found["problems"] == {"augmentation": "RuntimeError: only on Tuesdays"}
    assert found["recipe"]["augmentation"] == found["recipe"]["mirroring at test time"] == "unknown"
    assert set(found["recipe"]) <= {*describe("PlainTrainer")["recipe"], "own method get_training_transforms"}
    assert (found["epochs"], found["labels"], found["recipe"]["optimizer"]) == (1000, ["tumour"], "SGD")
    nothing = describe("NoTrainer")
    assert nothing["problems"]["trainer"] == "RuntimeError: no graphics card"
    assert nothing["recipe"]["epochs"] == "unknown"
    assert nothing["recipe"]["own method __init__"].startswith("NoTrainer ")
    json.dumps(nothing)
    follow = Training(nothing["epochs"], nothing["labels"])
    lines = ("Epoch 0 ", "train_loss 0.5 ", "Pseudo dice [0.5] ", "Epoch time: 2.0 s ")
    assert [told for line in lines if (told := follow(line))] == ["epoch 1  train loss 0.5  pseudo Dice   (2 s)"]
    assert follow.fraction is None


def test_another_source_is_another_method():
    def make(text: str) -> type:
        namespace: dict = {"__name__": "mine"}
        exec(f"class Own:\n    def train_step(self):\n        return {text}", namespace)
        return namespace["Own"]

    one, same, other = (overridden_methods(make(text)) for text in ("1", "1", "2"))
    assert one == same != other
    assert list(one) == ["train_step"]
