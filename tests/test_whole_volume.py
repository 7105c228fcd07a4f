"""`nnunet-plugins predict`: cases in one pass each, and in nnU-Net's tiles, beside nnU-Net's own prediction."""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import commands, full_disk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch.nn import functional

from nnunet_plugins._startup import VARIABLE, with_ours
from nnunet_plugins.cli import main
from nnunet_plugins.models.settings import Member
from nnunet_plugins.models.sources import Choice, find_model
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer
from nnunet_plugins.prediction import volumes
from nnunet_plugins.prediction.export import find_labels
from nnunet_plugins.prediction.request import Request
from nnunet_plugins.prediction.volumes import load_predictor
from nnunet_plugins.submission.effort import Clock, Effort
from nnunet_plugins.submission.ensemble import Network
from nnunet_plugins.testing import training

TRAINERS = '''
from dataclasses import replace

import torch

from nnunet_plugins.backbones import find


class Narrow(torch.nn.Module):
    """A convolution, for which memory suffices in patches of the plan alone."""

    tries = 0

    def __init__(self, channels, classes, patch_size):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.decoder = torch.nn.Module()
        self.decoder.deep_supervision = False
        self.decoder.seg_layers = torch.nn.ModuleList([torch.nn.Conv3d(channels, classes, 3, padding=1)])

    @classmethod
    def from_plan(cls, *, input_channels, num_classes, patch_size, **_):
        return cls(input_channels, num_classes, patch_size)

    def check_size(self, size):
        pass

    def forward(self, x):
        if x.shape[2:] != self.patch_size:
            type(self).tries += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return self.decoder.seg_layers[0](x)


class Fixed(Narrow):
    """It has weights for every voxel of a patch, and tells nobody."""

    check_size = property()

    def __init__(self, channels, classes, patch_size):
        super().__init__(channels, classes, patch_size)
        self.places = torch.nn.Parameter(torch.zeros(*patch_size))

    def forward(self, x):
        return self.decoder.seg_layers[0](x) + self.places


firenet, basic = find("nnUNetTrainerFIRENet"), find("nnUNetTrainerAFNBasic")
BACKBONES = [
    replace(firenet, trainer="nnUNetTrainerSmall", options={**firenet.options, **firenet.narrow}),
    replace(basic, trainer="nnUNetTrainerFlat", options={**basic.options, **basic.narrow}),
    replace(basic, trainer="nnUNetTrainerNarrow", network=Narrow, options={}),
    replace(basic, trainer="nnUNetTrainerFixed", network=Fixed, options={}),
]
'''

DATASET, CHANNELS = "Dataset001_Whole", 2
PATCH = {"3d anisotropic": (6, 32, 24), "3d isotropic": (24, 24, 24), "2d isotropic": (32, 32)}
KINDS = {"3d anisotropic": "flat", "3d isotropic": "cube", "2d isotropic": "2d"}
REGIONS = {"background": 0, "all": [1, 2, 3], "some": [2, 3], "one": [3]}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where trained models lie as nnU-Net leaves them, with random weights."""
    root = tmp_path_factory.mktemp("whole")
    trainers = root / "trainers"
    trainers.mkdir()
    (trainers / "rows.py").write_text(TRAINERS)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv(VARIABLE, str(trainers))
        patch.setenv(VARIABLE, with_ours())
        write_model(root, "nnUNetTrainerSmall", "3d anisotropic")
        write_model(root, "nnUNetTrainerSmall", "3d isotropic", mirrored=(0, 2), folds=2)
        write_model(root, "nnUNetTrainer", "3d isotropic")
        write_model(root, "nnUNetTrainer", "3d anisotropic", mirrored=(0, 1, 2), labels=REGIONS, folds=2)
        write_model(root, "nnUNetTrainer", "2d isotropic", mirrored=(0, 1))
        write_model(root, "nnUNetTrainerFlat", "2d isotropic")
        write_model(root, "nnUNetTrainerNarrow", "3d isotropic", folds=2)
        write_model(root, "nnUNetTrainerFixed", "3d isotropic")
        yield root


def write_model(root: Path, trainer: str, plan: str, *, folds=1, mirrored=None, labels=None, previous=False) -> Path:
    """Write a model as nnU-Net's training leaves it; the second stage of a cascade has the other one beside it."""
    plans, dataset = training.plans_and_dataset(plan)
    chosen = plans["configurations"].pop(training.CONFIGURATION)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    for kind in ("data", "seg", "probabilities"):
        chosen[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        chosen[f"resampling_fn_{kind}_kwargs"] = {**resampling, "is_seg": kind == "seg"}
    configuration = "cascade" if previous else KINDS[plan]
    plans["configurations"][configuration] = {**chosen, **({"previous_stage": "first"} if previous else {})}
    if previous:
        plans["configurations"]["first"] = {**chosen, "next_stage": configuration}
    plans |= {"dataset_name": DATASET, "plans_name": "plans", "transpose_forward": [1, 0, 2]}
    plans |= {"transpose_backward": [1, 0, 2], "foreground_intensity_properties_per_channel": {"0": {}, "1": {}}}
    if labels:
        dataset |= {"labels": labels, "regions_class_order": [1, 2, 3]}
    folder = root / "nnUNet_results" / DATASET / f"{trainer}__plans__{configuration}"
    for fold in range(folds):
        torch.manual_seed(fold)
        manager = PlansManager(plans)
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        channels = CHANNELS + (heads - 1 if previous else 0)
        setting = Setting(manager, manager.get_configuration(configuration), channels, heads)
        network = build_network(find_trainer(trainer), setting, deep_supervision=False)
        for parameter in network.parameters():  # norms that do something
            parameter.data += 0.1 * torch.randn(parameter.shape)
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {"network_weights": network.state_dict(), "trainer_name": trainer}
        checkpoint["inference_allowed_mirroring_axes"] = mirrored
        checkpoint["init_args"] = {"plans": plans, "configuration": configuration, "dataset_json": dataset}
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """As large as the flat patch, with odd sizes, and smaller than the cube along an axis; (z, y, x)."""
    folder = tmp_path_factory.mktemp("images")
    for name, shape in (("patch", (32, 6, 24)), ("odd", (33, 11, 25)), ("small", (30, 9, 24))):
        write_image(folder, name, shape)
    return folder


def write_image(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(len(name))
    for channel in range(CHANNELS):
        image = sitk.GetImageFromArray(random.uniform(1, 2, shape).astype(np.float32))
        sitk.WriteImage(image, str(folder / f"{name}_{channel:04}.nii.gz"))


def predictor_of(trainer: str, plan: str, folds=("0",), mode: str | None = "always", **more):
    source = find_model(DATASET, Choice(trainer, KINDS[plan], "plans"), folds, "checkpoint_final.pth")
    return load_predictor(source, Request(mode, **more), torch.device("cpu"))


def network_of(root: Path, trainer: str, plan: str, fold=0, patch=None) -> torch.nn.Module:
    """The network of a model, built as in the training, or for another patch."""
    folder = root / "nnUNet_results" / DATASET / f"{trainer}__plans__{KINDS[plan]}"
    plans = json.loads((folder / "plans.json").read_text())
    chosen = plans["configurations"][KINDS[plan]]
    chosen["patch_size"] = list(patch or chosen["patch_size"])
    manager = PlansManager(plans)
    heads = manager.get_label_manager(json.loads((folder / "dataset.json").read_text())).num_segmentation_heads
    setting = Setting(manager, ConfigurationManager(chosen), CHANNELS, heads)
    network = build_network(find_trainer(trainer), setting, deep_supervision=False)
    weights = torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    network.load_state_dict(weights, strict=True)
    return network.eval()


def image(*size: int) -> torch.Tensor:
    return torch.randn(CHANNELS, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def averaged(network: torch.nn.Module, x: torch.Tensor, axes=()) -> torch.Tensor:
    """The mean over an image (N, C, *size) and all of its mirrored ones."""
    flips = [c for number in range(len(axes) + 1) for c in itertools.combinations([a + 2 for a in axes], number)]
    return torch.stack([torch.flip(network(torch.flip(x, flip)), flip) for flip in flips]).mean(0)


class TestOnePass:
    def test_is_the_network_at_odd_sizes(self, root):
        """FIRENet takes them as they are."""
        x = image(9, 35, 27)
        found = predictor_of("nnUNetTrainerSmall", "3d anisotropic").predict_logits_from_preprocessed_data(x)
        expected = averaged(network_of(root, "nnUNetTrainerSmall", "3d anisotropic"), x[None])[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    def test_folds_and_mirrored_images_are_averaged(self, root):
        x = image(9, 19, 14)
        predictor = predictor_of("nnUNetTrainerSmall", "3d isotropic", ("0", "1"))
        found = predictor.predict_logits_from_preprocessed_data(x)
        networks = [network_of(root, "nnUNetTrainerSmall", "3d isotropic", fold) for fold in (0, 1)]
        expected = sum(averaged(network, x[None], (0, 2))[0] for network in networks) / 2
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        plain = predictor_of("nnUNetTrainerSmall", "3d isotropic", mirroring=False)
        found = plain.predict_logits_from_preprocessed_data(x)
        torch.testing.assert_close(found, averaged(networks[0], x[None])[0], rtol=0, atol=1e-6)

    def test_nnunets_unet_gets_zeros_at_the_far_end(self, root):
        """To multiples of 2 x 4 x 4, which are the strides of its plan; along no axis to the patch."""
        x = image(7, 33, 28)
        predictor = predictor_of("nnUNetTrainer", "3d anisotropic")
        found = predictor.predict_logits_from_preprocessed_data(x)
        padded = functional.pad(x, (0, 0, 0, 3, 0, 1))
        assert padded.shape[1:] == (8, 36, 28)
        expected = averaged(network_of(root, "nnUNetTrainer", "3d anisotropic"), padded[None], (0, 1, 2))
        torch.testing.assert_close(found, expected[0, :, :7, :33, :28], rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("trainer", "axes"), [("nnUNetTrainer", (0, 1)), ("nnUNetTrainerFlat", ())])
    def test_slices_are_batches(self, root, trainer, axes):
        """More of them than the plan's batch of two; networks of a row that tells no sizes are tried beforehand."""
        x = image(5, 35, 44)
        predictor = predictor_of(trainer, "2d isotropic")
        found = predictor.predict_logits_from_preprocessed_data(x)
        assert predictor.way(x.shape[1:]).reason == ""
        padded = functional.pad(x, (0, 0, 0, 1)) if axes else x
        network = network_of(root, trainer, "2d isotropic")
        expected = torch.stack([averaged(network, part[None], axes)[0] for part in padded.unbind(1)], 1)
        # Of two slices at a time sums are taken in another order.
        torch.testing.assert_close(found, expected[:, :, :35], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerSmall"])
    def test_is_nnunets_prediction_where_one_window_holds_the_image(self, root, trainer):
        """Which is in half precision, and worse towards the corners, where a window's weights are next to nothing."""
        x = image(*PATCH["3d isotropic"])
        ours = predictor_of(trainer, "3d isotropic").predict_logits_from_preprocessed_data(x)
        stock = stock_predictor(root, trainer, "3d isotropic")
        weighted = stock.predict_logits_from_preprocessed_data(x)
        middle = (slice(None), *(slice(6, 18),) * 3)
        torch.testing.assert_close(ours[middle], weighted[middle].float(), rtol=2e-3, atol=2e-3)
        stock.use_gaussian = False
        unweighted = stock.predict_logits_from_preprocessed_data(x)
        assert unweighted.dtype == torch.half
        torch.testing.assert_close(ours, unweighted.float(), rtol=1e-3, atol=1e-3)

    def test_is_the_trained_network_whatever_the_patch(self, root):
        """With a patch as large as the image, the weights would load into another network."""
        x = image(16, 40, 36)
        found = predictor_of("nnUNetTrainerSmall", "3d anisotropic").predict_logits_from_preprocessed_data(x)
        trained = network_of(root, "nnUNetTrainerSmall", "3d anisotropic")
        other = network_of(root, "nnUNetTrainerSmall", "3d anisotropic", patch=(16, 64, 64))
        torch.testing.assert_close(found, averaged(trained, x[None])[0], rtol=0, atol=1e-6)
        assert (averaged(other, x[None])[0] - found).abs().max() > 0.01

    def test_logits_that_are_not_finite_are_refused(self, root):
        predictor = predictor_of("nnUNetTrainerSmall", "3d anisotropic")
        x = image(9, 35, 27)
        x[0, 3, 3, 3] = torch.nan
        with pytest.raises(RuntimeError, match="not finite"):
            predictor.predict_logits_from_preprocessed_data(x)


class TestTiles:
    """Where one pass is not possible."""

    def expect_tiles(self, root, trainer, plan, x, reason, **more) -> None:
        predictor = predictor_of(trainer, plan, **more)
        found = predictor.predict_logits_from_preprocessed_data(x)
        way = predictor.way(x.shape[1:])
        assert way.size is None
        assert reason in way.reason
        stock = stock_predictor(root, trainer, plan).predict_logits_from_preprocessed_data(x)
        assert torch.equal(found, stock)

    def test_images_that_are_too_small(self, root):
        x = image(1, 3, 4)
        self.expect_tiles(root, "nnUNetTrainerSmall", "3d anisotropic", x, "FIRENet: an image of 1x3x4 voxels is too")
        self.expect_tiles(root, "nnUNetTrainer", "3d isotropic", x, "no more than one voxel at the coarsest scale")

    def test_networks_of_one_size(self, root):
        self.expect_tiles(root, "nnUNetTrainerFixed", "3d isotropic", image(25, 24, 24), "a pass of 25x24x24 voxels")

    def test_memory_that_runs_out(self, root):
        """It is tried once, whichever the fold and however often images of this size come."""
        predictor = predictor_of("nnUNetTrainerNarrow", "3d isotropic", ("0", "1"))
        x = image(25, 24, 24)
        found = [predictor.predict_logits_from_preprocessed_data(x) for _ in range(2)]
        stock = stock_predictor(root, "nnUNetTrainerNarrow", "3d isotropic", (0, 1))
        assert all(torch.equal(one, stock.predict_logits_from_preprocessed_data(x)) for one in found)
        assert "memory ran out in one pass (OutOfMemoryError)" in predictor.way(x.shape[1:]).reason
        assert type(predictor.network).tries == 1

    def test_the_forecast_decides(self, root):
        """A pass keeps the image and the logits at least; mirrored it adds another image, and with folds their sum."""
        size, padded, image_bytes = (25, 38, 31), (28, 40, 32), 4 * 28 * 40 * 32
        predictor = predictor_of("nnUNetTrainer", "3d isotropic", mode="auto")
        assert predictor.way(size).size == padded  # this machine has as much
        needed = predictor._forecast(padded)
        assert needed > image_bytes * (CHANNELS + 3)
        predictor.allowed_mirroring_axes = (0,)
        assert predictor._forecast(padded) - needed >= image_bytes * CHANNELS
        predictor.use_mirroring = False
        assert predictor._forecast(padded) == needed
        predictor.device = torch.device("cuda")  # in half precision, where there is no GPU as well
        assert needed / 3 < predictor._forecast(padded) < needed
        for trainer, plan, axes in (
            ("nnUNetTrainer", "3d isotropic", padded),
            ("nnUNetTrainerFlat", "2d isotropic", size[1:]),
        ):
            assert predictor_of(trainer, plan, most_bytes=1).way(size).size == axes  # it is not asked
        for most, folds, fits in ((needed, 1, True), (needed - 1, 1, False), (needed, 2, False)):
            predictor = predictor_of("nnUNetTrainer", "3d isotropic", mode="auto", most_bytes=most)
            predictor.list_of_parameters *= folds
            way = predictor.way(size)
            assert (way.size is not None) is fits
            assert ("of memory, and " in way.reason) is not fits


def stock_predictor(root: Path, trainer: str, plan: str, folds=(0,)) -> nnUNetPredictor:
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folder = root / "nnUNet_results" / DATASET / f"{trainer}__plans__{KINDS[plan]}"
    stock.initialize_from_trained_model_folder(str(folder), folds)
    return stock


def predict(images: Path, output: Path, *more: object, trainer="nnUNetTrainer", kind="flat") -> int:
    command = ("-i", images, "-o", output, "-d", DATASET, "-c", kind, "-p", "plans", "-tr", trainer, "-device", "cpu")
    return main(["predict", *map(str, (*command, *(() if "-f" in more else ("-f", 0)), *more))])


def labels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.fixture(scope="module")
def expected(root, images, tmp_path_factory) -> Path:
    """nnU-Net's own prediction: regions, two folds, mirrored, with probabilities."""
    folder = tmp_path_factory.mktemp("stock")
    stock = stock_predictor(root, "nnUNetTrainer", "3d anisotropic", (0, 1))
    stock.predict_from_files_sequential(str(images), str(folder), save_probabilities=True)
    return folder


ALL = ("-f", "0", "1", "--save_probabilities")


def test_without_options_it_is_nnunets_prediction(root, images, expected, tmp_path):
    """Every byte of label maps and every number of the rest."""
    assert predict(images, tmp_path, *ALL) == 0
    names = {f"{case}{ending}" for case in ("patch", "odd", "small") for ending in (".nii.gz", ".npz", ".pkl")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"dataset.json", "plans.json"}
    for name in names:
        ours, theirs = tmp_path / name, expected / name
        if name.endswith(".gz"):
            assert ours.read_bytes() == theirs.read_bytes()
        elif name.endswith(".npz"):
            assert np.array_equal(np.load(ours)["probabilities"], np.load(theirs)["probabilities"])
        else:
            assert pickle.loads(ours.read_bytes()) == pickle.loads(theirs.read_bytes())
    assert len(np.unique(labels(tmp_path / "odd.nii.gz"))) > 2
    for name in ("dataset.json", "plans.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((expected / name).read_text())


def test_labels_without_probabilities_are_nnunets(root, images, expected, tmp_path, capsys, preloaded):
    """They are found in slabs, and no probabilities of the whole image are made; nnU-Net's command is asked as well."""
    assert predict(images, tmp_path, "-f", "0", "1", "--verify", "2") == 0
    for case in ("patch", "odd", "small"):
        assert (tmp_path / f"{case}.nii.gz").read_bytes() == (expected / f"{case}.nii.gz").read_bytes()
    said = capsys.readouterr().out
    assert said.count("the same labels as nnU-Net's, in every voxel") == 2


def test_tiles_and_mirroring_are_as_asked_for(root, images, tmp_path):
    one, theirs = tmp_path / "images", tmp_path / "theirs"
    one.mkdir()
    theirs.mkdir()
    for channel in range(CHANNELS):
        shutil.copy(images / f"odd_{channel:04}.nii.gz", one)
    stock = stock_predictor(root, "nnUNetTrainer", "3d anisotropic")
    stock.tile_step_size, stock.use_mirroring = 1, False
    stock.predict_from_files_sequential(str(one), str(theirs))
    assert predict(one, tmp_path / "ours", "--disable_tta", "-step_size", 1) == 0
    assert (tmp_path / "ours" / "odd.nii.gz").read_bytes() == (theirs / "odd.nii.gz").read_bytes()


def test_labels_that_are_not_nnunets_are_told(root, images, tmp_path, capsys, monkeypatch, preloaded):
    found = volumes.find_labels

    def wrong(*arguments):
        labels = found(*arguments)
        labels[0, 0, :3] += 1
        return labels

    monkeypatch.setattr(volumes, "find_labels", wrong)
    assert predict(images, tmp_path, "-f", "0", "--verify", "1") == 1
    said = capsys.readouterr()
    assert "odd: DIFFERENT from nnU-Net's in 3 of 9075 voxels" in said.out
    assert "failed, see above: odd" in said.err


def test_two_cases_are_in_the_works(root, images, tmp_path, capsys, monkeypatch):
    """The network has one case at a time; where two take too much memory, each is tried alone.

    Images are read in the main thread: while readers are kept quiet, nobody else in the process can print.
    """
    tiles, reading, adapter = volumes.nnUNetPredictor, volumes.read_image, volumes.PreprocessAdapterFromNpy
    predict_logits = tiles.predict_logits_from_preprocessed_data
    both, network, begun = threading.Barrier(2, timeout=60), threading.Lock(), []

    def in_turn(self, data):
        assert network.acquire(blocking=False)
        try:
            return predict_logits(self, data)
        finally:
            network.release()

    def meet(*arguments):
        begun.append(threading.current_thread())
        if len(begun) <= 2:
            both.wait()
            raise MemoryError("too much for two")
        return adapter(*arguments)

    def read(*arguments):
        assert threading.current_thread() is threading.main_thread()
        return reading(*arguments)

    monkeypatch.setattr(tiles, "predict_logits_from_preprocessed_data", in_turn)
    monkeypatch.setattr(volumes, "PreprocessAdapterFromNpy", meet)
    monkeypatch.setattr(volumes, "read_image", read)
    assert predict(images, tmp_path, "-f", "0") == 0
    said = [line.split()[2] for line in capsys.readouterr().out.splitlines() if " voxels" in line]
    assert said == ["small:", "odd:", "patch:"]
    assert {path.name for path in tmp_path.glob("*.nii.gz")} == {"odd.nii.gz", "patch.nii.gz", "small.nii.gz"}
    assert threading.main_thread() not in begun[:3]
    assert begun[3:] == [threading.main_thread()] * 2


def test_other_resampling_is_left_to_nnunet(root, images, tmp_path, capsys):
    """A plan whose logits are resampled by another function of nnU-Net's, with finer images than the plan's."""
    models = root / "nnUNet_results" / DATASET
    folder = models / "nnUNetTrainerSmall__other__cube"
    shutil.copytree(models / "nnUNetTrainerSmall__plans__cube", folder)
    plans = json.loads((folder / "plans.json").read_text())
    (chosen,) = plans["configurations"].values()
    chosen |= {"resampling_fn_probabilities": "resample_torch_fornnunet", "spacing": [1.4, 1.4, 1.4]}
    chosen["resampling_fn_probabilities_kwargs"] = {"is_seg": False, "force_separate_z": False, "num_threads": 1}
    (folder / "plans.json").write_text(json.dumps(plans))
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    (tmp_path / "stock").mkdir()
    stock.predict_from_files_sequential(str(images), str(tmp_path / "stock"))
    assert predict(images, tmp_path / "ours", "-f", "0", "-p", "other", trainer="nnUNetTrainerSmall", kind="cube") == 0
    assert capsys.readouterr().out.count("another resampling than nnU-Net's default, resample_torch_fornnunet: ") == 1
    for case in ("patch", "odd", "small"):
        names = [tmp_path / way / f"{case}.nii.gz" for way in ("ours", "stock")]
        assert names[0].read_bytes() == names[1].read_bytes()


def test_probabilities_are_nnunets_where_rounding_decides(root, images, tmp_path):
    """Of logits next to 0, of which half precision leaves a few steps: at ties of resampling, and of the softmax."""
    models = root / "nnUNet_results" / DATASET
    folder = models / "nnUNetTrainer__ties__cube"
    shutil.copytree(models / "nnUNetTrainer__plans__cube", folder)
    plans = json.loads((folder / "plans.json").read_text())
    (chosen,) = plans["configurations"].values()
    chosen["spacing"] = [1.5, 1.5, 1.5]
    (folder / "plans.json").write_text(json.dumps(plans))
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    for name, weight in checkpoint["network_weights"].items():
        if "seg_layers" in name:
            weight *= 1e-7
    torch.save(checkpoint, file)
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    (tmp_path / "stock").mkdir()
    stock.predict_from_files_sequential(str(images), str(tmp_path / "stock"), save_probabilities=True)
    options = ("-f", "0", "-p", "ties", "--save_probabilities", "--verify", "1")
    assert predict(images, tmp_path / "ours", *options, kind="cube") == 0
    network = Network(Member(folder.name, ("0",), file.name), models, torch.device("cpu"))
    for case in ("patch", "odd", "small"):
        ours, theirs = (np.load(tmp_path / way / f"{case}.npz")["probabilities"] for way in ("ours", "stock"))
        assert np.array_equal(ours, theirs)
        image, properties = SimpleITKIO().read_images(sorted(map(str, images.glob(f"{case}_000*"))))
        submitted = network.predict(image, properties, Effort(), Clock(), print, probabilities=True)
        assert np.array_equal(submitted, theirs)
        assert len(np.unique(theirs)) > 2


def test_logits_that_are_no_numbers_are_left_to_nnunet(root):
    """Its splines spread them to the neighbours alone."""
    p = predictor_of("nnUNetTrainer", "3d isotropic", mode=None)
    heads, size = p.label_manager.num_segmentation_heads, (9, 12, 10)
    logits = torch.randn(heads, 6, 8, 7, generator=torch.Generator().manual_seed(0)).half()
    logits[-1, 2, 3, 3] = torch.nan
    properties = {
        "spacing": [spacing / 1.5 for spacing in p.configuration_manager.spacing],
        "shape_before_cropping": size,
        "shape_after_cropping_and_before_resampling": size,
        "bbox_used_for_cropping": [[0, n] for n in size],
    }
    stock = ConfigurationManager(p.configuration_manager.configuration)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.numpy(), p.plans_manager, stock, p.label_manager, properties
    )
    assert np.array_equal(find_labels(p, logits, properties), expected)
    assert len(np.unique(expected)) == heads


def test_whole_volume(root, images, expected, tmp_path, capsys):
    """The files are nnU-Net's; where one window holds the image, so are the numbers, but for half precision."""
    assert predict(images, tmp_path, *ALL, "--whole-volume") == 0
    said = capsys.readouterr().out
    assert "3 patch: 6x32x24 voxels in one pass (" in said
    assert "3 odd: 11x33x25 voxels in one pass, padded to 12x36x28 (" in said
    assert "In tiles" not in said
    assert {path.name for path in tmp_path.iterdir()} | {"predict_from_raw_data_args.json"} == {
        path.name for path in expected.iterdir()
    }
    for case in ("patch", "odd", "small"):
        ours, theirs = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (tmp_path, expected))
        assert (ours.shape, ours.dtype) == (theirs.shape, np.float32)
        assert pickle.loads((tmp_path / f"{case}.pkl").read_bytes()).keys() == {
            *pickle.loads((expected / f"{case}.pkl").read_bytes())
        }
        near = (np.abs(ours - theirs) < 2e-3).mean()
        assert near > 0.9 if case == "patch" else near < 0.9
        same = (labels(tmp_path / f"{case}.nii.gz") == labels(expected / f"{case}.nii.gz")).mean()
        assert same > (0.99 if case == "patch" else 0.5)


def test_one_pass_has_all_the_memory(root, images, tmp_path, monkeypatch):
    """No other case is in the works beside it."""
    adapter, threads = volumes.PreprocessAdapterFromNpy, set()

    def note(*arguments):
        threads.add(threading.current_thread())
        return adapter(*arguments)

    monkeypatch.setattr(volumes, "PreprocessAdapterFromNpy", note)
    assert predict(images, tmp_path, "--whole-volume", "--disable_tta") == 0
    assert threads == {threading.main_thread()}


def test_slices_of_a_case_in_one_pass(root, images, tmp_path, capsys):
    assert predict(images, tmp_path / "whole", "--whole-volume", "auto", kind="2d") == 0
    assert "odd: 11x33x25 voxels in one pass, padded to 36x28 (" in capsys.readouterr().out
    assert predict(images, tmp_path / "tiles", kind="2d") == 0
    whole, tiles = (labels(tmp_path / name / "odd.nii.gz") for name in ("whole", "tiles"))
    assert 0.5 < (whole == tiles).mean() < 1


def test_auto_takes_tiles_where_memory_is_short(root, images, expected, tmp_path, capsys):
    assert predict(images, tmp_path, *ALL, "--whole-volume", "auto", "--memory", 0.001) == 0
    said = capsys.readouterr().out
    assert "odd: 11x33x25 voxels in tiles: one pass takes 0.00 GiB of memory" in said
    assert "In tiles, for the reasons above: odd, patch, small\n" in said
    for case in ("patch", "odd", "small"):
        assert (tmp_path / f"{case}.nii.gz").read_bytes() == (expected / f"{case}.nii.gz").read_bytes()


def test_one_bad_case_costs_itself_alone(root, images, tmp_path, capsys):
    mixed, output = tmp_path / "mixed", tmp_path / "output"
    shutil.copytree(images, mixed)
    whole = (images / "odd_0000.nii.gz").read_bytes()
    (mixed / "odd_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (mixed / "patch_0001.nii.gz").unlink()
    assert predict(mixed, output, "--whole-volume") == 1
    said = capsys.readouterr()
    assert "odd: FAILED: " in said.out
    assert "patch: FAILED: " in said.out
    assert "failed, see above: odd, patch\n" in said.err
    assert "Traceback" not in said.err
    assert {path.name for path in output.iterdir()} == {"small.nii.gz", "dataset.json", "plans.json"}


def test_what_an_earlier_run_left_of_a_case_that_fails_is_no_prediction(root, images, tmp_path):
    """nnUNetv2_ensemble takes probabilities wherever there are some."""
    mixed, output = tmp_path / "mixed", tmp_path / "output"
    shutil.copytree(images, mixed)
    more = ("--whole-volume", "--disable_tta", "--save_probabilities")
    assert predict(mixed, output, *more) == 0
    (mixed / "odd_0000.nii.gz").write_bytes(b"")
    assert predict(mixed, output, *more) == 1
    names = {f"{case}{ending}" for case in ("patch", "small") for ending in (".nii.gz", ".npz", ".pkl")}
    assert {path.name for path in output.iterdir()} == names | {"dataset.json", "plans.json"}


@pytest.mark.parametrize("more", [(), ("--save_probabilities",)])
def test_no_label_map_is_cut_off_on_a_full_disk(root, tmp_path, capsys, more):
    """The library that writes it does not tell, and it can be read as if the rest were background."""
    inputs, output = tmp_path / "inputs", tmp_path / "ä b"
    inputs.mkdir()
    write_image(inputs, "large", (60, 12, 60))
    write_image(inputs, "tiny", (8, 6, 8))
    with full_disk(9000):
        assert predict(inputs, output, "--whole-volume", "--disable_tta", *more) == 1
    said = capsys.readouterr()
    assert "failed, see above: large\n" in said.err
    assert "Traceback" not in said.err
    if not more:
        assert f"large: FAILED: {output / 'large.nii.gz'} cannot be written: it is cut off" in said.out
    assert {path.name for path in output.glob("*.nii.gz")} == {"tiny.nii.gz"}


def test_nothing_that_is_read_is_replaced(root, images, tmp_path, capsys):
    """A case may be called as a channel of another one."""
    inputs = tmp_path / "inputs"
    shutil.copytree(images, inputs)
    for channel in range(CHANNELS):
        shutil.copy(images / f"small_{channel:04}.nii.gz", inputs / f"odd_0000_{channel:04}.nii.gz")
    before = {path.name: path.read_bytes() for path in inputs.iterdir()}
    assert predict(inputs, inputs, "--whole-volume") == 2
    assert f"{inputs} cannot be the folder to write" in capsys.readouterr().err
    truth = inputs.rename(tmp_path / "labelsTr")
    for command in (["--cross-validation"], ["-i", str(images)]):
        command += ["-o", str(truth), "-d", DATASET, "-c", "flat", "-p", "plans", "-tr", "nnUNetTrainer", "-f", "0"]
        assert (main(["predict", *command, "-device", "cpu"]), command) == (2, command)
        assert f"{truth} holds files of a dataset" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in truth.iterdir()} == before


def test_files_that_nnunets_command_does_not_read_are_not_compared(root, images, tmp_path, capsys):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for channel in range(CHANNELS):
        name = f"odd_{channel:04}"
        sitk.WriteImage(sitk.ReadImage(str(images / f"{name}.nii.gz")), str(inputs / f"{name}.mha"))
    assert predict(inputs, tmp_path / "none", "--verify", 1) == 2
    assert "--verify: nnU-Net's own command reads files .nii.gz alone, of which" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_prediction_goes_on(root, images, tmp_path, capsys):
    """With the cases of which something is missing."""
    again = ("--whole-volume", "--continue_prediction")
    assert predict(images, tmp_path, *again, trainer="nnUNetTrainerSmall") == 0
    files = {case: tmp_path / f"{case}.nii.gz" for case in ("patch", "odd", "small")}
    before = files["patch"].stat().st_mtime_ns
    content = files["odd"].read_bytes()
    files["odd"].unlink()
    capsys.readouterr()
    assert predict(images, tmp_path, *again, trainer="nnUNetTrainerSmall") == 0
    said = capsys.readouterr().out
    assert "patch: is there already" in said
    assert files["patch"].stat().st_mtime_ns == before
    assert files["odd"].read_bytes() == content
    assert predict(images, tmp_path, "--whole-volume", trainer="nnUNetTrainerSmall") == 0
    assert files["patch"].stat().st_mtime_ns != before
    capsys.readouterr()
    assert predict(images, tmp_path, *again, "--save_probabilities", trainer="nnUNetTrainerSmall") == 0
    assert "already" not in capsys.readouterr().out
    assert (tmp_path / "patch.npz").is_file()


def test_the_second_stage_of_a_cascade(root, images, expected, tmp_path, capsys):
    """It sees the labels of the first one, which have to be there."""
    write_model(root, "nnUNetTrainer", "3d isotropic", previous=True)
    first = tmp_path / "first"
    first.mkdir()
    for case in ("patch", "odd"):
        array = np.random.default_rng(0).integers(0, 3, labels(expected / f"{case}.nii.gz").shape)
        sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(first / f"{case}.nii.gz"))
    output = ("-o", str(tmp_path / "none"))
    command = ["-d", DATASET, "-c", "cascade", "-p", "plans", "-tr", "nnUNetTrainer", "-f", "0", "-device", "cpu"]
    assert main(["predict", "--cross-validation", *command, *output]) == 2
    assert "--cross-validation is not possible for the second stage" in capsys.readouterr().err
    assert predict(images, tmp_path / "none", kind="cascade") == 2
    assert "predict with first first, and give the folder of that with -prev_stage" in capsys.readouterr().err
    cascade = ("-prev_stage_predictions", first)
    assert predict(images, first, *cascade, kind="cascade") == 2
    assert f"{first} cannot be the folder to write" in capsys.readouterr().err
    assert predict(images, tmp_path / "ours", *cascade, kind="cascade") == 1
    said = capsys.readouterr()
    assert "failed, see above: small\n" in said.err
    assert f"small: FAILED: the prediction of the stage before, {first / 'small.nii.gz'}, is missing" in said.out
    shutil.copy(first / "patch.nii.gz", first / "small.nii.gz")
    assert predict(images, tmp_path / "ours", *cascade, "--continue_prediction", kind="cascade") == 1
    assert f"{first / 'small.nii.gz'}, cannot be used: it is not as large as the image" in capsys.readouterr().out
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folder = root / "nnUNet_results" / DATASET / "nnUNetTrainer__plans__cascade"
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    given = [[str(images / f"{case}_{channel:04}.nii.gz") for channel in (0, 1)] for case in ("patch", "odd")]
    (tmp_path / "theirs").mkdir()
    outputs = [str(tmp_path / "theirs" / case) for case in ("patch", "odd")]
    stock.predict_from_files_sequential(given, outputs, folder_with_segs_from_prev_stage=str(first))
    for case in ("patch", "odd"):
        name = f"{case}.nii.gz"
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert predict(images, tmp_path / "whole", *cascade, "--whole-volume", kind="cascade") == 1
    assert "odd: 11x33x25 voxels in one pass, padded to 12x36x28" in capsys.readouterr().out
    assert predict(images, tmp_path / "none", *cascade) == 2
    assert "this is no second stage" in capsys.readouterr().err


def test_plans_that_are_not_those_of_the_training_are_refused(root, images, tmp_path, capsys):
    """An enlarged patch would give another network, into which the weights load."""
    folder = root / "nnUNet_results" / DATASET / "nnUNetTrainerSmall__plans__flat"
    text = (folder / "plans.json").read_text()
    plans = json.loads(text)
    plans["configurations"]["flat"]["patch_size"] = [16, 64, 64]
    (folder / "plans.json").write_text(json.dumps(plans))
    try:
        assert predict(images, tmp_path / "out", "--whole-volume", trainer="nnUNetTrainerSmall") == 2
    finally:
        (folder / "plans.json").write_text(text)
    said = capsys.readouterr().err
    assert "was trained with other plans" in said
    assert "patch_size is [6, 32, 24] in the checkpoint, [16, 64, 64] in the plans" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory", 1), "--memory is for --whole-volume auto"),
        (("-step_size", 1.5), "-step_size 1.5 leaves gaps"),
        (
            ("--verify", 1, "--whole-volume"),
            "--verify compares with nnU-Net's own command, which cannot do what --whole",
        ),
        (("--verify", 1, "--spacing-factor", 1), "--verify cannot be used with --spacing-factor"),
        (("--spacing-factor", 1, "--disable_tta"), "--disable_tta cannot be used with --spacing-factor"),
        (("-f", 0, 3), "has no checkpoint_final.pth in fold 3; folds that have one: 0, 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(root, images, tmp_path, capsys, options, said):
    assert predict(images, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_networks_that_take_a_patch_for_the_whole_are_refused(root, images, tmp_path, capsys):
    folder = root / "nnUNet_results" / DATASET
    shutil.copytree(folder / "nnUNetTrainer__plans__cube", folder / "nnUNetTrainerNISF__plans__cube")
    assert predict(images, tmp_path / "out", "--whole-volume", trainer="nnUNetTrainerNISF", kind="cube") == 2
    assert "nnUNetTrainerNISF: its networks take a patch of the plan's size for" in capsys.readouterr().err


def test_cross_validation(root, images, expected, tmp_path, capsys):
    """Each case by the fold that is validated on it, as if that fold alone predicted it."""
    raw, planned = (root / name / DATASET for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    for folder in (raw, planned):
        folder.mkdir(parents=True)
    shutil.copytree(images, raw / "imagesTr")
    shutil.copy(expected / "dataset.json", raw)
    splits = [{"train": ["odd", "small"], "val": ["patch"]}, {"train": ["patch"], "val": ["odd", "small"]}]
    (planned / "splits_final.json").write_text(json.dumps(splits))
    model = ("-d", DATASET, "-c", "flat", "-p", "plans", "-tr", "nnUNetTrainer", "-device", "cpu", "--whole-volume")
    command = ["predict", "--cross-validation", *model, "-o", str(tmp_path / "all"), "-f"]
    assert main([*command, "0", "1"]) == 0
    assert "2/2 small: 9x30x24 voxels in one pass" in capsys.readouterr().out
    for fold, cases in enumerate((["patch"], ["odd", "small"])):
        assert predict(images, tmp_path / str(fold), "-f", fold, "--whole-volume") == 0
        for case in cases:
            one, other = (tmp_path / folder / f"{case}.nii.gz" for folder in ("all", str(fold)))
            assert one.read_bytes() == other.read_bytes()
    splits[1]["val"].append("lost")
    (planned / "splits_final.json").write_text(json.dumps(splits))
    assert main([*command, "1"]) == 2
    assert f"the splits of {DATASET} name lost" in capsys.readouterr().err
    splits.pop()
    (planned / "splits_final.json").write_text(json.dumps(splits))
    assert main([*command, "1"]) == 2
    assert "fold 1 is validated on nothing" in capsys.readouterr().err


WITHOUT_US = """
import multiprocessing, sys
multiprocessing.cpu_count = lambda: 1  # as many threads it takes on a CPU, and with two some CPUs sum in another order
sys.path.append({site!r})
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
predict_entry_point()
assert not any(name.startswith("nnunet_plugins") for name in sys.modules)
"""


@pytest.mark.slow
def test_nnunets_own_prediction_is_what_it_was(root, images, expected, tmp_path):
    """Here, with all of us loaded, as in an interpreter that starts without our startup file: bit by bit."""
    model = ("-d", DATASET, "-c", "flat", "-p", "plans", "-tr", "nnUNetTrainer", "-f", 0, 1, "-device", "cpu")
    options = ("-npp", 0, "-nps", 0, "--disable_progress_bar", "--save_probabilities")
    code = WITHOUT_US.format(site=sysconfig.get_path("purelib"))
    command = (sys.executable, "-S", "-c", code, "-i", images, "-o", tmp_path, *model, *options)
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    for case in ("patch", "odd", "small"):
        assert (tmp_path / f"{case}.nii.gz").read_bytes() == (expected / f"{case}.nii.gz").read_bytes()
        one, other = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (tmp_path, expected))
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_the_benchmark_tells_what_tiles_and_a_pass_cost(root, images, tmp_path):
    """A case of 11 x 33 x 25 voxels takes 3 x 2 x 2 tiles of 6 x 32 x 24; a pass takes as much as its voxels."""
    model = root / "nnUNet_results" / DATASET / "nnUNetTrainerSmall__plans__flat"
    plans, alone = tmp_path / "preprocessed" / DATASET, tmp_path / "images"
    for folder in (plans, alone):
        folder.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(model / name, plans)
    for file in images.glob("odd_*"):
        shutil.copy(file, alone)
    script = Path(__file__).parents[1] / "benchmarks" / "whole_volume.py"
    command = (
        commands() / "python",
        script,
        "-i",
        alone,
        "-d",
        1,
        "-c",
        "flat",
        "-p",
        "plans",
        "-tr",
        "nnUNetTrainerSmall",
    )
    environment = {**os.environ, "nnUNet_preprocessed": str(plans.parent)}
    result = subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True, text=True)
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in result.stdout.splitlines()[2:] if line]
    assert [row[1] for row in rows] == [
        "`nnUNetv2_predict`, 12 tiles",
        "`nnunet-plugins predict`, 12 tiles",
        "`nnunet-plugins predict --whole-volume`, 11x33x25",
        "tiles / pass",
    ]
    stock, tiles, one, ratios = ([float(n) for n in row[4:]] for row in rows)
    assert stock == tiles > one
    assert ratios == pytest.approx([tiles[0] / one[0]], rel=0.01)
    assert ratios == pytest.approx([12 * 6 * 32 * 24 / (11 * 33 * 25)], rel=0.2)
