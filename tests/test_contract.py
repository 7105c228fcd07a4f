"""What nnU-Net and PyTorch offer and this package relies on, one test per surface.

A new version that changes one of these fails here first, and the message says what changed and what relies on it.
"""

import inspect
import json
import re
from importlib import metadata

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from conftest import Sandbox, commands
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from nnunet_plugins._startup import VARIABLE
from nnunet_plugins.modifiers import MODIFIERS
from nnunet_plugins.rows import locate
from nnunet_plugins.testing.plans import architecture
from nnunet_plugins.trainers.checkpoints import load_checkpoint
from nnunet_plugins.trainers.compose import trainer_class

VERSIONS = f"nnunetv2 {metadata.version('nnunetv2')}, torch {torch.__version__}"


def expect(found: object, expected: object, what: str, relying: str) -> None:
    assert found == expected, f"{what} changed ({VERSIONS}): {expected} before, {found} now. {relying} relies on it."


def expect_all(found: object, expected: set[str], what: str, relying: str) -> None:
    missing = sorted(expected - set(found))
    assert not missing, f"{what} changed ({VERSIONS}): {', '.join(missing)} missing. {relying} relies on that."


def parameters(function: object) -> list[str]:
    """Parameters as they are written, without their types."""
    return [str(p.replace(annotation=p.empty)) for p in inspect.signature(function).parameters.values()]


class TestTrainer:
    """The base class of all our trainers."""

    def test_constructor(self):
        expected = ["plans", "configuration", "fold", "dataset_json", "device=device(type='cuda')"]
        found = [text.replace(" = ", "=") for text in parameters(nnUNetTrainer)]
        expect(found, expected, "nnUNetTrainer.__init__", "trainers/reliable.py and trainers/compose.py")

    def test_build_network_architecture(self):
        found = [text.replace(" = ", "=") for text in parameters(nnUNetTrainer.build_network_architecture)]
        expected = ["plans_manager", "configuration_manager", "num_input_channels", "num_output_channels"]
        expected.append("enable_deep_supervision=True")
        expect(found, expected, "nnUNetTrainer.build_network_architecture", "trainers/backbone.py, trainers/unet.py")
        kind = inspect.getattr_static(nnUNetTrainer, "build_network_architecture")
        expect(type(kind), staticmethod, "the kind of build_network_architecture", "trainers/backbone.py")

    @pytest.mark.parametrize(
        ("name", "expected", "relying"),
        [
            ("initialize", "self", "trainers/firenet.py"),
            ("configure_optimizers", "self", "trainers/afnet.py"),
            ("_build_loss", "self", "trainers/losses.py"),
            ("_get_deep_supervision_scales", "self", "benchmark/recipe.py"),
            ("configure_rotation_dummyDA_mirroring_and_inital_patch_size", "self", "trainers/mirroring.py"),
            ("print_to_log_file", "self *args also_print_to_console=True add_timestamp=True", "trainers/backbone.py"),
            ("set_deep_supervision_enabled", "self enabled", "trainers/backbone.py"),
            ("on_train_start", "self", "trainers/backbone.py"),
            ("on_train_end", "self", "trainers/firenet.py"),
            ("on_train_epoch_start", "self", "trainers/reliable.py"),
            ("on_train_epoch_end", "self train_outputs", "trainers/finite.py"),
            ("on_validation_epoch_start", "self", "trainers/reliable.py"),
            ("on_validation_epoch_end", "self val_outputs", "trainers/reliable.py"),
            ("on_epoch_start", "self", "trainers/reliable.py"),
            ("on_epoch_end", "self", "trainers/firenet.py"),
            ("train_step", "self batch", "trainers/finite.py"),
            ("validation_step", "self batch", "trainers/reliable.py"),
            ("save_checkpoint", "self filename", "trainers/reliable.py"),
            ("perform_actual_validation", "self save_probabilities=False", "trainers/reliable.py"),
            ("run_training", "self", "trainers/reliable.py"),
            ("do_split", "self", "trainers/splitting.py"),
        ],
    )
    def test_method(self, name, expected, relying):
        method = getattr(nnUNetTrainer, name, None)
        assert method is not None, f"nnUNetTrainer.{name} is gone ({VERSIONS}). {relying} relies on it."
        found = [text.replace(" = ", "=") for text in parameters(method)]
        expect(found, expected.split(), f"nnUNetTrainer.{name}", relying)

    def test_load_checkpoint(self):
        """It is passed on by position: 2.8 calls it `filename_or_checkpoint`, the development branch `checkpoint`."""
        found = parameters(nnUNetTrainer.load_checkpoint)
        assert found in (["self", "filename_or_checkpoint"], ["self", "checkpoint"]), f"{found} ({VERSIONS})"

    def test_get_training_transforms(self):
        names = list(inspect.signature(nnUNetTrainer.get_training_transforms).parameters)
        expected = "patch_size rotation_for_DA deep_supervision_scales mirror_axes do_dummy_2d_data_aug "
        expected += "use_mask_for_norm is_cascaded foreground_labels regions ignore_label"
        expect(names, expected.split(), "nnUNetTrainer.get_training_transforms", "trainers/firenet.py, recipe.py")

    def test_attributes(self):
        names = "my_init_kwargs plans_manager configuration_manager configuration_name dataset_json fold label_manager "
        names += "is_ddp local_rank device output_folder initial_lr weight_decay oversample_foreground_percent "
        names += "num_iterations_per_epoch num_val_iterations_per_epoch num_epochs current_epoch "
        names += "enable_deep_supervision num_input_channels network optimizer lr_scheduler grad_scaler loss logger "
        names += "dataloader_train dataloader_val _best_ema save_every preprocessed_dataset_folder_base "
        names += "inference_allowed_mirroring_axes disable_checkpointing was_initialized is_cascaded"
        relying = "trainers/finite.py, reliable.py, compose.py and firenet.py, benchmark/recipe.py"
        found = nnUNetTrainer.__init__.__code__.co_names
        expect_all(found, set(names.split()), "the attributes of nnUNetTrainer", relying)

    def test_loggers(self, tmp_path):
        """What is appended to nnU-Net's list of loggers gets lists one by one, and the moving average."""
        told: list[tuple] = []

        class Logger:
            def log(self, *logged):
                told.append(logged)

            def log_summary(self, *summary):
                told.append(summary)

        logger = MetaLogger(str(tmp_path), False)
        logger.loggers.append(Logger())
        logger.log("dice_per_class_or_region", [0.5, 0.25], 0)
        logger.log("mean_fg_dice", 0.5, 0)
        logger.log_summary("final_val/foreground_dice", 0.5)
        expected = [(f"dice_per_class_or_region/class_{n}", value, 0) for n, value in ((1, 0.5), (2, 0.25))]
        expected += [("mean_fg_dice", 0.5, 0), ("ema_fg_dice", 0.5, 0), ("final_val/foreground_dice", 0.5)]
        expect(told, expected, "MetaLogger", "trainers/followed.py and trainers/trackers.py")

    def test_workers_that_load_data_are_ended(self):
        found = NonDetMultiThreadedAugmenter.__dict__
        expect_all(found, {"_finish"}, "NonDetMultiThreadedAugmenter", "trainers/reliable.py")

    def test_splits_are_written_to_the_preprocessed_folder(self, tmp_path):
        trainer = object.__new__(nnUNetTrainer)
        trainer.fold, trainer.dataset_class, trainer.print_to_log_file = 0, Cases, print
        trainer.preprocessed_dataset_folder_base = str(tmp_path)
        trainer.preprocessed_dataset_folder = trainer.folder_with_segs_from_previous_stage = None
        trainer.do_split()
        found = [path.name for path in tmp_path.iterdir()]
        expect(found, ["splits_final.json"], "what nnUNetTrainer.do_split writes", "trainers/splitting.py")

    @pytest.mark.parametrize("row", [row for row in MODIFIERS if row.piece], ids=lambda row: row.name)
    def test_pieces_of_modifiers(self, row):
        piece = locate(row.piece)
        assert issubclass(piece, nnUNetTrainer), f"{row.piece} is no trainer any more; modifiers.py names it"

    def test_deep_supervision_wraps_a_loss(self):
        wrapped = DeepSupervisionWrapper(torch.nn.L1Loss(), [1.0])
        expect_all(vars(wrapped)["_modules"], {"loss"}, "DeepSupervisionWrapper", "trainers/losses.py")

    def test_words_of_the_log(self):
        """The benchmark follows a training by what it prints."""
        source = inspect.getsource(nnUNetTrainer)
        said = ["Epoch {self.current_epoch}", "Current learning rate: ", "'train_loss'", "'val_loss'", "'Pseudo dice'"]
        said += ["Epoch time: ", "Training done", "predicting {", ", shape {", "Validation complete"]
        missing = [words for words in said if words not in source]
        assert not missing, f"nnU-Net's log lacks {missing} ({VERSIONS}); progress.py and collect.py read it"


class TestCheckpoint:
    """What trainings leave, as nnU-Net itself writes and reads it."""

    def plans(self) -> dict:
        configuration = {
            "patch_size": [16, 16],
            "batch_size": 2,
            "architecture": architecture("2d isotropic"),
            "normalization_schemes": ["ZScoreNormalization"],
            "data_identifier": "nnUNetPlans_2d",
        }
        dataset = {"dataset_name": "Dataset001_Small", "label_manager": "LabelManager"}
        return {"plans_name": "nnUNetPlans", "configurations": {"2d": configuration}, **dataset}

    def write(self, folder, trainer: str) -> dict:
        """Let nnU-Net's own method write the checkpoint of an untrained network; returns the dataset's description."""
        description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
        made = object.__new__(trainer_class(trainer))
        plans = self.plans()
        manager = PlansManager(plans)
        made.network = made.build_network_architecture(manager, manager.get_configuration("2d"), 1, 2, True)
        made.optimizer = torch.optim.SGD(made.network.parameters(), 0.01)
        made.is_ddp, made.local_rank, made.disable_checkpointing, made.grad_scaler = False, 0, False, None
        made.logger = MetaLogger(str(folder), False)
        made.logger.log("mean_fg_dice", np.float32(0.5), 0)
        made.logger.log("dice_per_class_or_region", [np.float32(0.5)], 0)
        made._best_ema, made.current_epoch, made.inference_allowed_mirroring_axes = np.float32(0.5), 0, (0, 1)
        made.my_init_kwargs = {"plans": plans, "configuration": "2d", "fold": 0, "dataset_json": description}
        (folder / "fold_0").mkdir()
        nnUNetTrainer.save_checkpoint(made, str(folder / "fold_0" / "checkpoint_final.pth"))
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(description))
        return description

    def test_keys(self, tmp_path):
        self.write(tmp_path, "nnUNetTrainerAFNBasic")
        found = load_checkpoint(tmp_path / "fold_0" / "checkpoint_final.pth")
        expected = {"network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch"}
        expected |= {"init_args", "trainer_name", "inference_allowed_mirroring_axes"}
        expect(set(found), expected, "the keys of a checkpoint", "trainers/checkpoints.py and warm_start.py")
        expect(found["trainer_name"], "nnUNetTrainerAFNBasic", "the trainer's name in a checkpoint", "inference")
        expect(found["current_epoch"], 1, "the epoch in a checkpoint", "trainers/firenet.py")

    def test_logged_figures(self, tmp_path):
        logger = MetaLogger(str(tmp_path), False)
        expected = {"mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "train_losses", "val_losses", "lrs"}
        expected |= {"epoch_start_timestamps", "epoch_end_timestamps"}
        expect(set(logger.get_checkpoint()), expected, "what nnU-Net's logger keeps", "trainers/firenet.py")
        logger.log("dice_per_class_or_region", [0.5], 0)
        found = logger.get_value("dice_per_class_or_region", step=None)
        expect(found, [[0.5]], "MetaLogger.get_value with step=None", "trainers/firenet.py")

    @pytest.mark.parametrize("trainer", ["nnUNetTrainerAFNBasic", "nnUNetTrainerASPP3DUNet_2epochs"])
    def test_predictor_builds_the_network_of_the_checkpoint(self, tmp_path, trainer):
        self.write(tmp_path, trainer)
        predictor = nnUNetPredictor(device=torch.device("cpu"), verbose=False)
        predictor.initialize_from_trained_model_folder(str(tmp_path), (0,))
        weights = load_checkpoint(tmp_path / "fold_0" / "checkpoint_final.pth")["network_weights"]
        found = predictor.network.state_dict()
        expect(list(found), list(weights), "the network that nnUNetPredictor builds", "every backbone")
        expect(predictor.allowed_mirroring_axes, (0, 1), "the predictor's mirror axes", "trainers/mirroring.py")


def test_trainers_are_searched_in_the_variable(tmp_path, monkeypatch):
    """Also names that only a module's `__getattr__` knows, and whatever the variable was when nnU-Net was imported."""
    (tmp_path / "found_there.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "def __getattr__(name):\n"
        "    if name != 'nnUNetTrainerLazy':\n"
        "        raise AttributeError(name)\n"
        "    return type(name, (nnUNetTrainer,), {})\n"
    )
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = recursive_find_trainer_class_by_name("nnUNetTrainerLazy")
    expect(found.__name__, "nnUNetTrainerLazy", f"nnU-Net's search in {VARIABLE}", "_startup.py and trainers/scanned")


class TestPlans:
    """Plans files and what nnU-Net makes of them."""

    def test_configuration(self):
        content = {"patch_size": [16, 16], "batch_size": 2, "architecture": architecture("2d isotropic")}
        manager = PlansManager({"plans_name": "made", "configurations": {"2d": content}})
        configuration = manager.get_configuration("2d")
        relying = "planning/setting.py and trainers/backbone.py"
        expect(manager.plans_name, "made", "PlansManager.plans_name", relying)
        expect(list(manager.available_configurations), ["2d"], "PlansManager.available_configurations", relying)
        expect(configuration.patch_size, [16, 16], "ConfigurationManager.patch_size", relying)
        expect(configuration.batch_size, 2, "ConfigurationManager.batch_size", relying)
        arch = content["architecture"]
        found = configuration.network_arch_class_name
        expect(found, arch["network_class_name"], "ConfigurationManager.network_arch_class_name", relying)
        found = configuration.network_arch_init_kwargs
        expect(found, arch["arch_kwargs"], "ConfigurationManager.network_arch_init_kwargs", relying)
        found = configuration.network_arch_init_kwargs_req_import
        expect(found, arch["_kw_requires_import"], "...network_arch_init_kwargs_req_import", "trainers/checkpoints.py")
        names = {"use_mask_for_norm", "previous_stage_name"}
        expect_all(dir(ConfigurationManager), names, "ConfigurationManager", "benchmark/recipe.py")

    def test_labels(self):
        manager = PlansManager({"plans_name": "made", "configurations": {}, "label_manager": "LabelManager"})
        labels = manager.get_label_manager({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}})
        relying = "trainers/backbone.py and metrics/folders.py"
        expect((labels.has_regions, labels.has_ignore_label, labels.ignore_label), (False, True, 3), "labels", relying)
        expect((list(labels.foreground_labels), labels.num_segmentation_heads), ([1, 2], 3), "labels", relying)

    @pytest.mark.slow
    def test_planner_writes_what_is_read(self, small: Sandbox):
        folder = small.preprocessed / "Dataset001_Small"
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        expect_all(plans, {"dataset_name", "plans_name", "configurations"}, "plans", "planning/fit.py")
        expected = {"data_identifier", "patch_size", "batch_size", "architecture"}
        expect_all(plans["configurations"]["3d_fullres"], expected, "a plans' configuration", "benchmark/tasks.py")
        arch = plans["configurations"]["3d_fullres"]["architecture"]
        expect_all(arch, set(architecture("3d isotropic")), "a plans' architecture", "trainers/checkpoints.py")
        expect_all(arch["arch_kwargs"], {"strides", "kernel_sizes"}, "a plans' stages", "trainers/backbone.py")
        data = folder / plans["configurations"]["3d_fullres"]["data_identifier"]
        assert list(data.glob("*.pkl")), "preprocessed cases have no properties (.pkl); benchmark/tasks.py counts them"
        assert (folder / "gt_segmentations").is_dir(), "no gt_segmentations; planning/splits.py reads the cases there"


class Cases:
    """Two cases in memory, as nnU-Net's datasets hand them to its loader."""

    identifiers = ("0", "1", "2", "3", "4")

    def __init__(self, *_: object, **__: object) -> None:
        """Take what nnU-Net gives its datasets."""

    def load_case(self, name):
        image = np.full((1, 1, 12, 12), int(name), np.float32)
        segmentation = np.zeros(image.shape, np.int16)
        return image, segmentation, None, {"class_locations": {1: np.zeros((0, 4), int)}}


def test_batches_of_the_data_loader():
    manager = PlansManager({"plans_name": "made", "configurations": {}, "label_manager": "LabelManager"})
    labels = manager.get_label_manager({"labels": {"background": 0, "a": 1}})
    batch = next(nnUNetDataLoader(Cases(), 4, (8, 8), (8, 8), labels))
    expect_all(batch, {"data", "target", "keys"}, "a batch of nnUNetDataLoader", "trainers/finite.py")
    expect(tuple(batch["data"].shape), (4, 1, 8, 8), "the shape of a batch", "trainers/finite.py")
    cases = [str(int(image.max())) for image in batch["data"]]
    expect(list(batch["keys"]), cases, "the keys of a batch", "trainers/finite.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options", "relying"),
    [
        ("nnUNetv2_plan_and_preprocess", "-d -c -pl -np", "benchmark/tasks.py"),
        ("nnUNetv2_preprocess", "-d -c -plans_name -np", "benchmark/tasks.py"),
        ("nnUNetv2_train", "-tr -p --npz --c --val -pretrained_weights -device -num_gpus", "benchmark/tasks.py"),
        (
            "nnUNetv2_predict",
            "-i -o -d -c -p -tr -f -device -prev_stage_predictions --save_probabilities --disable_progress_bar",
            "benchmark/results.py",
        ),
        ("nnUNetv2_accumulate_crossval_results", "-c -p -tr -o -f", "benchmark/results.py"),
        ("nnUNetv2_find_best_configuration", "-p -c -tr -f", "benchmark/results.py"),
        ("nnUNetv2_ensemble", "-i -o", "benchmark/results.py"),
        ("nnUNetv2_apply_postprocessing", "-i -o -pp_pkl_file -plans_json -dataset_json", "benchmark/results.py"),
    ],
)
def test_commands_have_the_options(sandbox: Sandbox, command, options, relying):
    scripts = {entry.name for entry in metadata.distribution("nnunetv2").entry_points}
    expect_all(scripts, {command}, "nnU-Net's commands", relying)
    commands()
    found = re.findall(r"(?<![\w-])--?\w+", sandbox.run(command, "-h"))
    expect_all(found, set(options.split()), f"the options of {command}", relying)


class TestTorch:
    """Newer or half-public parts of PyTorch."""

    def test_optimizer_hooks(self):
        """A gradient that a hook drops is not applied: how FIRENet's gates are frozen."""
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], 1.0)

        def drop(*_):
            weight.grad = None

        optimizer.register_step_pre_hook(drop)
        weight.sum().backward()
        optimizer.step()
        expect(weight.item(), 1.0, "Optimizer.register_step_pre_hook", "trainers/firenet.py")

    def test_optimizer_state_hooks(self):
        """What a hook adds to the state is saved, and what another takes out is not loaded."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
        optimizer.register_state_dict_post_hook(lambda _, state: {**state, "ours": 7})
        state = optimizer.state_dict()
        expect(state.get("ours"), 7, "Optimizer.register_state_dict_post_hook", "trainers/reliable.py")
        seen = []
        optimizer.register_load_state_dict_pre_hook(lambda _, state: seen.append(state.pop("ours")) or state)
        optimizer.load_state_dict(state)
        expect(seen, [7], "Optimizer.register_load_state_dict_pre_hook", "trainers/reliable.py")

    def test_saved_tensors_hooks_see_each_tensor(self):
        kept = []
        x = torch.ones(2, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            (x * x).sum()
        expect(len(kept), 2, "torch.autograd.graph.saved_tensors_hooks", "forecast.py")

    def test_fake_tensors_have_storages_with_sizes(self):
        with FakeTensorMode():
            storage = torch.empty(3, 5).untyped_storage()
        expect(storage.nbytes(), 60, "the storage of a fake tensor", "forecast.py")

    def test_regions_are_computed_again_with_the_same_random_numbers(self):
        calls = []

        def region(x):
            calls.append("region")
            x = torch.nn.functional.dropout(x * 2, 0.5, True)
            return x * x

        x = torch.ones(64, requires_grad=True)
        y = checkpoint(region, x, use_reentrant=False, preserve_rng_state=True)
        y.sum().backward()
        expect(calls, ["region", "region"], "torch.utils.checkpoint", "networks/layers/recompute.py")
        torch.testing.assert_close(x.grad * x.detach() / 2, y.detach())

    def test_custom_operators(self):
        operator = torch.library.custom_op("nnunet_plugins_tests::twice", mutates_args=())(twice)
        operator.register_fake(lambda x: torch.empty_like(x))
        operator.register_autograd(lambda ctx, g: 2 * g, setup_context=lambda ctx, inputs, output: None)
        operator.register_kernel("cpu")(twice)
        register_flop_formula(torch.ops.nnunet_plugins_tests.twice)(lambda shape, *_, **__: 7)
        x = torch.ones(3, requires_grad=True)
        with FlopCounterMode(display=False) as flops:
            operator(x).sum().backward()
        relying = "networks/layers/shared_convolution.py"
        expect(x.grad.tolist(), [2.0] * 3, "torch.library.custom_op", relying)
        expect(flops.get_total_flops(), 7, "torch.utils.flop_counter", f"{relying} and benchmark/recipe.py")

    def test_questions_about_autocast_and_compilation(self):
        relying = "networks/layers"
        with torch.autocast("cpu", torch.bfloat16):
            expect(torch.is_autocast_enabled("cpu"), True, "torch.is_autocast_enabled", relying)
            expect(torch.get_autocast_dtype("cpu"), torch.bfloat16, "torch.get_autocast_dtype", relying)
        expect(torch.compiler.is_compiling(), False, "torch.compiler.is_compiling", relying)

    def test_safe_types_of_checkpoints_can_be_named(self, tmp_path):
        """Under the name of an older place as well."""
        torch.save({"figure": np.float64(1)}, tmp_path / "file.pth")
        scalar = np.float32(0).__reduce__()[0]
        names = [(scalar, f"numpy.{part}.multiarray.scalar") for part in ("core", "_core")]
        types = [*names, np.dtype, type(np.dtype("float64"))]
        with torch.serialization.safe_globals(types):
            found = torch.load(tmp_path / "file.pth", weights_only=True)
        expect(found, {"figure": 1.0}, "torch.serialization.safe_globals", "trainers/checkpoints.py")


def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
