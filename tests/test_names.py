"""The grammar of trainer names and the classes they stand for."""

import concurrent.futures
import inspect
import itertools
import json
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_plugins import trainers
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import STOCK_TRAINER, Modifier, locate
from nnunet_plugins.trainers.compose import trainer_class
from nnunet_plugins.trainers.followed import FollowedTrainer
from nnunet_plugins.trainers.losses import CELoss, FocalLoss
from nnunet_plugins.trainers.names import UnknownTrainerError, parse

NAMES = [row.trainer for row in BACKBONES]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nnUNetTrainer", {}),
        ("nnUNetTrainerFIRENet", {}),
        ("nnUNetTrainer_30epochs_50iterations", {"<N>epochs": 30, "<N>iterations": 50}),
        ("nnUNetTrainerFIRENet_50iterations_30epochs", {"<N>epochs": 30, "<N>iterations": 50}),
        ("nnUNetTrainerFIRENetPaper_Adam_DA5_DiceLoss", {"Adam": None, "DA5": None, "DiceLoss": None}),
    ],
)
def test_valid_names(name, found):
    assert {modifier.name: number for modifier, number in parse(name).modifiers} == found


@pytest.mark.parametrize(
    ("name", "problem", "nearest"),
    [
        ("nnUNetTrainerFIRNet", "no backbone is called 'nnUNetTrainerFIRNet'", "nnUNetTrainerFIRENet"),
        ("nnUNetTrainerFIRENet_20epoch", "no modifier is called '_20epoch'", "nnUNetTrainerFIRENet_20epochs"),
        (
            "nnUNetTrainerFIRENet_0epochs",
            "the number in '_0epochs' has to be 1 or more",
            "nnUNetTrainerFIRENet_1epochs",
        ),
        ("nnUNetTrainer_0percentCELoss", "has to be from 1 to 99", "nnUNetTrainer_1percentCELoss"),
        ("nnUNetTrainer_100percentCELoss", "has to be from 1 to 99", "nnUNetTrainer_99percentCELoss"),
        ("nnUNetTrainer_030percentCELoss", "no modifier is called", "nnUNetTrainer_30percentCELoss"),
        ("nnUNetTrainer_percentCELoss", "no modifier is called '_percentCELoss'", "nnUNetTrainer_CELoss"),
        ("nnUNetTrainer_30percentCELoss_TopKLoss", "sets the loss a second time", "nnUNetTrainer_30percentCELoss"),
        ("nnUNetTrainerFIRENet_007epochs", "no modifier is called '_007epochs'", "nnUNetTrainerFIRENet_7epochs"),
        ("nnUNetTrainer_5epochs_7epochs", "'_7epochs' sets the epochs a second time", "nnUNetTrainer_5epochs"),
        ("nnUNetTrainer_CELoss_DiceLoss", "'_DiceLoss' sets the loss a second time", "nnUNetTrainer_CELoss"),
        ("nnUNetTrainer_nomirroring", "no modifier is called '_nomirroring'", "nnUNetTrainer_NoMirroring"),
        ("nnUNetTrainer__5epochs", "no modifier is called '_'", "nnUNetTrainer_5epochs"),
    ],
)
def test_invalid_names_say_why_and_name_the_nearest(name, problem, nearest):
    with pytest.raises(UnknownTrainerError) as caught:
        parse(name)
    assert problem in str(caught.value)
    assert f"The nearest valid name is {nearest!r}" in str(caught.value)
    parse(nearest)


def test_nnunet_finds_every_row_and_composes_on_the_stock_trainer():
    others = ["nnUNetTrainer_30epochs_50iterations", "nnUNetTrainerFIRENet_2epochs_NoMirroring_FocalLoss"]
    for name in [*NAMES, *others]:
        found = getattr(trainers, name)
        assert found.__name__ == name
        assert found.__module__ == "nnunet_plugins.trainers"
    # Each search goes over all modules that are loaded, for the same attribute.
    for name in [*NAMES[::10], *others]:
        assert recursive_find_trainer_class_by_name(name) is getattr(trainers, name)


def test_nnunet_fails_on_an_unknown_name_with_our_hint(capfd):
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerFIRENett"):
        recursive_find_trainer_class_by_name("nnUNetTrainerFIRENett")
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "The nearest valid name is 'nnUNetTrainerFIRENet'" in line
    assert line.endswith("`nnunet-plugins doctor CHECKPOINT` says where it comes from.")


def test_names_do_not_exist_upstream(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer")
    for name in NAMES:
        assert "_" not in name
        with pytest.raises(RuntimeError, match="Could not find"):
            recursive_find_trainer_class_by_name(name)


def test_registry_is_consistent():
    assert len(set(NAMES)) == len(NAMES)
    for row in BACKBONES:
        assert row.twin in {STOCK_TRAINER, *NAMES} - {row.trainer}


def name_of(trainer: type) -> str:
    return trainer.__name__


def test_classes_pickle():
    classes = [
        trainer_class(name) for name in [*NAMES, "nnUNetTrainerFIRENet_2epochs_DA5", "nnUNetTrainer_3iterations"]
    ]
    assert pickle.loads(pickle.dumps(classes)) == classes


def test_classes_survive_spawn(preloaded):
    """They are composed anew there: one of a row, with modifiers and without, and one of nnU-Net's own."""
    names = ["nnUNetTrainerFIRENet_2epochs_DA5", "nnUNetTrainerAFN4Paper", "nnUNetTrainer_3iterations"]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert list(pool.map(name_of, map(trainer_class, names))) == names


def test_upstream_classes_are_the_pieces():
    composed = trainer_class("nnUNetTrainer_DA5_Adam_DiceLoss")
    pieces = [nnUNetTrainerDA5, nnUNetTrainerDiceLoss, nnUNetTrainerAdam, FollowedTrainer]
    assert list(composed.__mro__[1:5]) == pieces


def hidden(rows: Sequence[Modifier]) -> Iterator[str]:
    """Name the methods that never run, because a class before them has its own and calls no super."""
    pieces = [(row, locate(row.piece)) for row in rows if row.piece]
    for (first, one), (later, other) in itertools.combinations(pieces, 2):
        if first.slot == later.slot or issubclass(one, other):  # never together, or knows it
            continue
        order = type("Both", (one, other), {}).__mro__
        for name, method in vars(other).items():
            before = [kind for kind in order[: order.index(other)] if name in vars(kind)]
            if inspect.isroutine(method) and not all(f"super().{name}(" in inspect.getsource(kind) for kind in before):
                yield f"_{first.name} hides {name} of _{later.name}; in modifiers.py, put the latter's row first"


class Gentle(nnUNetTrainer):
    def configure_optimizers(self):
        self.initial_lr /= 2
        return super().configure_optimizers()


def test_no_modifier_is_hidden_by_an_earlier_row():
    assert list(hidden(MODIFIERS)) == []
    gentle = Modifier("Gentle", "learning rate", "half the learning rate", f"{__name__}.Gentle")
    assert next(hidden([*MODIFIERS, gentle])).startswith("_Adam hides configure_optimizers of _Gentle")
    assert list(hidden([gentle, *MODIFIERS])) == []


class FakeDataset:
    """Constructor arguments of a trainer for a minimal plan."""

    def __init__(self, tmp_path, monkeypatch, labels=None, **dataset):
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setenv(name, str(tmp_path))
        self.dataset = {
            "channel_names": {"0": "MRI"},
            "labels": labels or {"background": 0, "a": 1, "b": 2},
            "file_ending": ".nii.gz",
            **dataset,
        }
        stages = {"strides": [[1] * 3, [2] * 3, [2] * 3], "kernel_sizes": [[3] * 3] * 3}
        self.plans = {
            "dataset_name": "Dataset001_X",
            "plans_name": "nnUNetPlans",
            "label_manager": "LabelManager",
            "continue_training": False,
            "configurations": {
                "3d_fullres": {
                    "data_identifier": "x",
                    "patch_size": [24, 24, 24],
                    "batch_size": 2,
                    "batch_dice": False,
                    "architecture": {"network_class_name": "x", "arch_kwargs": stages, "_kw_requires_import": []},
                }
            },
        }

    def trainer(self, name, device="cpu"):
        plans = json.loads(json.dumps(self.plans))
        return trainer_class(name)(plans, "3d_fullres", 0, self.dataset, torch.device(device))


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    return FakeDataset(tmp_path, monkeypatch)


def test_numbers_reach_the_trainer(dataset):
    trainer = dataset.trainer("nnUNetTrainerFIRENet_60epochs_100iterations")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (60, 100, 20)
    assert trainer.save_every == 3
    short = dataset.trainer("nnUNetTrainer_1epochs_1iterations")
    assert (short.num_epochs, short.num_iterations_per_epoch, short.num_val_iterations_per_epoch) == (1, 1, 1)
    assert (short.save_every, short.enable_deep_supervision) == (1, True)
    whole = dataset.trainer("nnUNetTrainerFIRENet_NoMirroring")
    assert (whole.num_epochs, whole.num_iterations_per_epoch, whole.save_every) == (1000, 250, 50)


def test_no_mirroring_holds_beside_da5(dataset):
    trainer = dataset.trainer("nnUNetTrainer_DA5_NoMirroring")
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] is None
    assert trainer.inference_allowed_mirroring_axes is None
    assert dataset.trainer("nnUNetTrainer_DA5").configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]


def test_no_mirroring_holds_beside_da5_where_the_recipe_has_a_view_of_its_own(dataset):
    for name in ("nnUNetTrainerFIRENetPaper_DA5_NoMirroring", "nnUNetTrainerAFN4Paper_NoMirroring_DA5"):
        trainer = dataset.trainer(name)
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] is None
        assert trainer.inference_allowed_mirroring_axes is None


@pytest.mark.parametrize("recipe", ["FIRENetPaper", "FIRENetNoFabricPaper", "AFN4Paper"])
@pytest.mark.parametrize("modifiers", ["DA5", "Adam_DA5_20epochs", "FocalLoss"])
def test_a_recipe_without_mirroring_has_none_under_any_modifier(dataset, recipe, modifiers):
    trainer = dataset.trainer(f"nnUNetTrainer{recipe}_{modifiers}")
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] is None
    assert trainer.inference_allowed_mirroring_axes is None
    assert issubclass(type(trainer), nnUNetTrainerDA5) == ("DA5" in modifiers)


def test_paper_target_class_must_exist(dataset):
    trainer = dataset.trainer("nnUNetTrainerFIRENetPaper")
    trainer.target_class = 3
    with pytest.raises(ValueError, match="target_class is 3, the dataset has classes 1 to 2"):
        trainer.on_train_start()


def test_losses(dataset):
    assert "DiceLoss" in type(dataset.trainer("nnUNetTrainerFIRENet_DiceLoss")._build_loss()).__name__
    assert isinstance(dataset.trainer("nnUNetTrainerFIRENet_CELoss")._build_loss(), CELoss)
    assert isinstance(dataset.trainer("nnUNetTrainerFIRENet_FocalLoss")._build_loss(), FocalLoss)
    assert isinstance(dataset.trainer("nnUNetTrainer_FocalLoss")._build_loss().loss, FocalLoss)


def test_losses_that_cannot_handle_the_labels_say_so(tmp_path, monkeypatch):
    ignoring = FakeDataset(tmp_path, monkeypatch, labels={"background": 0, "a": 1, "ignore": 2})
    able = "_CELoss or _FocalLoss or _WeightedCELoss or _<N>percentCELoss or _TopKLoss or _DiceTopKLoss"
    no_dice = f"soft Dice alone, does not support datasets with an ignore label; use {able}, or"
    for name in ("nnUNetTrainer_DiceLoss", "nnUNetTrainerFIRENetPaper_DiceLoss", "nnUNetTrainerAFN4Paper_20epochs"):
        with pytest.raises(NotImplementedError, match=f"^{name}: its loss, {no_dice}"):
            ignoring.trainer(name)
    ignoring.trainer("nnUNetTrainer_FocalLoss")
    assert isinstance(ignoring.trainer("nnUNetTrainerAFN4Paper_FocalLoss")._build_loss(), FocalLoss)
    regions = FakeDataset(
        tmp_path, monkeypatch, labels={"background": 0, "all": [1, 2], "core": 2}, regions_class_order=[1, 2]
    )
    able = "_DiceLoss or _FocalLoss or _<N>percentCELoss"
    no_cross_entropy = f"cross-entropy.*, does not support datasets with regions; use {able}, or"
    others = [f"nnUNetTrainerFIRENetPaper_{loss}" for loss in ("WeightedCELoss", "TopKLoss", "DiceTopKLoss")]
    for name in ("nnUNetTrainer_CELoss", "nnUNetTrainerFIRENet_CELoss", "nnUNetTrainerFIRENetPaper", *others):
        with pytest.raises(NotImplementedError, match=f"^{name}: its loss, .*{no_cross_entropy}"):
            regions.trainer(name)
    assert isinstance(regions.trainer("nnUNetTrainerFIRENetPaper_FocalLoss")._build_loss(), FocalLoss)
    assert type(regions.trainer("nnUNetTrainerFIRENet")._build_loss()).__name__ == "DC_and_BCE_loss"


@pytest.mark.parametrize("name", ["nnUNetTrainerFIRENet", "nnUNetTrainer_5iterations"])
def test_missing_device_is_one_clear_error_that_leaves_no_folder(dataset, tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"'-device cuda' was asked for.*sees no such device.*'-device cpu'"):
        dataset.trainer(name, device="cuda")
    assert not list(tmp_path.iterdir())
