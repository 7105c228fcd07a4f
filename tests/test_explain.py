"""`nnunet-plugins explain`: maps where the image's voxels are, and what they are maps of."""

import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from torch import nn

from nnunet_plugins import backbones
from nnunet_plugins._startup import VARIABLE, with_ours
from nnunet_plugins.cli import main
from nnunet_plugins.explain.activations import find_sites
from nnunet_plugins.explain.attention import COLUMNS, summarise
from nnunet_plugins.explain.case import look_at
from nnunet_plugins.explain.gates import find_gates
from nnunet_plugins.explain.gradcam import GradCam, grad_cam
from nnunet_plugins.explain.model import find_layers, load_model
from nnunet_plugins.explain.receptive_field import find_field, measure
from nnunet_plugins.explain.windows import Windows
from nnunet_plugins.models.sources import model_in
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer
from nnunet_plugins.testing import training
from nnunet_plugins.testing.plans import build

TRAINERS = '''
from dataclasses import replace

import torch

from nnunet_plugins.backbones import find


class Known(torch.nn.Module):
    """Its layer is the image; label 1 is where the first channel exceeds half of the second, label 2 nowhere."""

    def __init__(self, channels, classes):
        super().__init__()
        self.seen = torch.nn.Conv3d(channels, channels, 1)
        self.decoder = torch.nn.Module()
        self.decoder.deep_supervision = False
        self.decoder.seg_layers = torch.nn.ModuleList([torch.nn.Conv3d(channels, classes, 1)])

    @classmethod
    def from_plan(cls, *, input_channels, num_classes, **_):
        return cls(input_channels, num_classes)

    def check_size(self, size):
        pass

    def forward(self, x):
        return self.decoder.seg_layers[0](self.seen(x))


def narrow(name):
    row = find(f"nnUNetTrainer{name}")
    return replace(row, trainer=f"nnUNetTrainerSmall{name}", options={**row.options, **row.narrow})


basic = find("nnUNetTrainerAFNBasic")
BACKBONES = [
    replace(basic, trainer="nnUNetTrainerKnown", network=Known, options={}),
    *map(narrow, ("FIRENet", "AFN4", "AttentionUNet", "ASPP3DUNet")),
]
'''

WEIGHTS = {
    "seen.weight": torch.eye(2)[..., None, None, None],
    "seen.bias": torch.zeros(2),
    "decoder.seg_layers.0.weight": torch.tensor([[0.0, 0], [1, -0.5], [0, 0]])[..., None, None, None],
    "decoder.seg_layers.0.bias": torch.tensor([0.0, 0.0, -9.0]),
}
DATASET, FORWARD, BACK = "Dataset001_Inside", [1, 2, 0], [2, 0, 1]
LABELS = {"background": 0, "nodule": 1, "vessel, left": 2}
REGIONS = {"background": 0, "all": [1, 2], "one": [2]}
SPACING = (2.0, 0.8, 1.1)  # of the images, (x, y, z)


def write_model(
    root: Path,
    trainer: str,
    plan="3d isotropic",
    weights=None,
    labels=LABELS,
    spacing=None,
    reader="SimpleITKIO",
    axes=(FORWARD, BACK),
    ending=".nii.gz",
) -> Path:
    """Write a model as nnU-Net's training leaves it; returns its folder."""
    plans, dataset = training.plans_and_dataset(plan)
    chosen = plans["configurations"].pop(training.CONFIGURATION)
    for kind in ("data", "seg", "probabilities"):
        chosen[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        chosen[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": kind == "seg",
            "order": 1,
            "order_z": 0,
            "force_separate_z": None,
        }
    # As large as an image's voxels, in the order of the plan's axes.
    forward, back = axes
    chosen["spacing"] = list(spacing or [SPACING[::-1][axis] for axis in forward])[-len(chosen["patch_size"]) :]
    plans["configurations"]["inside"] = chosen
    plans |= {"dataset_name": DATASET, "plans_name": "plans", "transpose_forward": forward, "transpose_backward": back}
    plans["image_reader_writer"] = reader
    plans["foreground_intensity_properties_per_channel"] = {"0": {}, "1": {}}
    dataset |= {"labels": labels, "file_ending": ending}
    if labels is REGIONS:
        dataset["regions_class_order"] = [1, 2]
    if weights is None:
        manager = PlansManager(plans)
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        setting = Setting(manager, manager.get_configuration("inside"), 2, heads)
        torch.manual_seed(0)
        weights = build_network(find_trainer(trainer), setting, deep_supervision=False).state_dict()
    folder = root / "nnUNet_results" / DATASET / f"{trainer}__plans__inside"
    (folder / "fold_0").mkdir(parents=True)
    checkpoint = {"network_weights": weights, "trainer_name": trainer, "inference_allowed_mirroring_axes": (0, 1)}
    checkpoint["init_args"] = {"plans": plans, "configuration": "inside", "dataset_json": dataset}
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inside")
    (root / "trainers").mkdir()
    (root / "trainers" / "rows.py").write_text(TRAINERS)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv(VARIABLE, str(root / "trainers"))
        patch.setenv(VARIABLE, with_ours())
        yield root


@pytest.fixture(scope="module")
def known(root) -> Path:
    return write_model(root, "nnUNetTrainerKnown", weights=WEIGHTS)


@pytest.fixture(scope="module")
def autofocus(root) -> Path:
    return write_model(root, "nnUNetTrainerSmallAFN4", spacing=(1.3, 1.4, 1.1))


@pytest.fixture(scope="module")
def fabric(root) -> Path:
    model = write_model(root, "nnUNetTrainerSmallFIRENet")
    names = ["cell (1,1) <- stem (0,1)", "output <- cell (4,1)"]
    table = pd.DataFrame([[0, 0.5, 0.5], [1, 0.52, 0.4]], columns=["epoch", *names])
    table.to_csv(model / "fold_0" / "gates.csv", index=False)
    return model


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Oblique and anisotropic, smooth, with a border of zeros, which nnU-Net crops away."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    shape = (26, 28, 25)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    cosine, sine = np.cos(0.4), np.sin(0.4)
    turned = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]
    )
    for channel in range(2):
        array = np.zeros(shape, np.float32)
        centre = random.uniform(-0.5, 0.5, (3, 1, 1, 1))
        blob = 1 + 4 * np.exp(-3 * ((grid - centre) ** 2).sum(0)) + 0.05 * random.random(shape)
        array[2:, 1:-3, :-4] = blob[2:, 1:-3, :-4]
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING)
        image.SetDirection(turned.flatten().tolist())
        image.SetOrigin((10.0, -20.0, 5.5))
        sitk.WriteImage(image, str(folder / f"case_{channel:04}.nii.gz"))
    return folder


CROP = (slice(2, 26), slice(1, 25), slice(0, 21))  # (z, y, x)


def explain(model: Path, inputs: Path, output: Path, *more: object, code: int = 0) -> Path:
    command = ("explain", model, "-i", inputs, "-o", output, "-device", "cpu", *more)
    assert main([*map(str, command)]) == code
    return output


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def normalised(images: Path) -> np.ndarray:
    """The channels as the network sees them, `(channels, z, y, x)`, zeros where they are cropped."""
    channels = []
    for channel in range(2):
        array = read(images / f"case_{channel:04}.nii.gz")
        inside = array[CROP]
        channels.append(np.zeros_like(array))
        channels[-1][CROP] = (inside - inside.mean()) / inside.std()
    return np.stack(channels)


@pytest.fixture(scope="module")
def of_known(known, images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("known")
    return explain(known, images / "case_0000.nii.gz", output, "--layer", "seen")


class TestGeometry:
    def test_a_layer_that_is_the_image_is_where_the_image_is(self, of_known, images):
        """Turned, cropped, with transposed axes: each voxel has its own value."""
        for channel, truth in enumerate(normalised(images)):
            found = read(of_known / "case" / f"activation_seen_{channel}.nii.gz")
            np.testing.assert_allclose(found, truth, atol=1e-4)

    def test_all_maps_lie_where_the_image_lies(self, of_known, images):
        image = nibabel.load(images / "case_0000.nii.gz")
        maps = sorted((of_known / "case").glob("*.nii.gz"))
        assert len(maps) == 5
        for file in maps:
            found = nibabel.load(file)
            assert found.shape == image.shape
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
            np.testing.assert_allclose(found.header.get_zooms(), image.header.get_zooms(), atol=1e-6)
        assert nibabel.load(maps[0]).get_data_dtype() == np.float32

    def test_a_reader_that_turns_the_axes_is_undone(self, root, images, tmp_path):
        reader = "NibabelIOWithReorient"
        model = write_model(root / "turned", "nnUNetTrainerKnown", weights=WEIGHTS, reader=reader)
        explain(model, images, tmp_path, "--maps", "activations", "--layer", "seen", "--channels", 1)
        (file,) = (tmp_path / "case").glob("activation_*")
        np.testing.assert_allclose(read(file), normalised(images)[int(file.name[16])], atol=1e-4)

    def test_maps_are_resampled_as_the_image_was(self, root, images, tmp_path):
        """At another spacing a smooth image comes back."""
        spacing = [1.0, 1.6, 1.3]
        model = write_model(root / "other", "nnUNetTrainerKnown", weights=WEIGHTS, spacing=spacing)
        explain(model, images, tmp_path, "--maps", "activations", "--layer", "seen", "--channels", 1)
        (file,) = (tmp_path / "case").glob("activation_*")
        found, truth = read(file)[CROP], normalised(images)[int(file.name[16])][CROP]
        assert np.corrcoef(found.flat, truth.flat)[0, 1] > 0.99
        outside = read(file)
        outside[CROP] = 0
        assert not outside.any()


def test_the_channel_shown_is_the_one_that_differs_most_and_not_the_largest(root, images, tmp_path):
    """The second one has half of the contrast, around 9."""
    seen = {
        "seen.weight": torch.diag(torch.tensor([1, 0.5]))[..., None, None, None],
        "seen.bias": torch.tensor([0.0, 9]),
    }
    model = write_model(root / "raised", "nnUNetTrainerKnown", weights={**WEIGHTS, **seen})
    explain(model, images, tmp_path, "--maps", "activations", "--layer", "seen", "--channels", 1)
    (file,) = (tmp_path / "case").glob("activation_*")
    assert file.name == "activation_seen_0.nii.gz"


class TestGradCam:
    def test_a_linear_network_has_the_map_that_it_must_have(self, of_known, images):
        """The weights of both channels are as 1 to -1/2, so that the map is what is positive of the logit."""
        first, second = normalised(images)
        logit = np.maximum(first - second / 2, 0)
        found = read(of_known / "case" / "gradcam_seen_nodule.nii.gz")
        np.testing.assert_allclose(found, logit / logit.max(), atol=1e-4)
        assert ((read(of_known / "case" / "segmentation.nii.gz") == 1) == (logit > 0)).mean() > 0.999

    def test_a_class_that_is_not_predicted_has_an_empty_map(self, known, images, tmp_path, capsys):
        explain(known, images, tmp_path, "--maps", "gradcam", "--class", "vessel, left")
        assert "vessel, left is not predicted: its Grad-CAM is empty" in capsys.readouterr().out
        (file,) = (tmp_path / "case").glob("gradcam_*")
        assert not read(file).any()

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("FIRENet", "bottleneck.cells.4.features.branches.0.2"),
            ("FIRENet", "bottleneck"),
            ("AFN4", "pathway.3.first.0"),
        ],
    )
    def test_is_right_where_layers_compute_again_in_the_backward_pass(self, name, layer):
        """Hooks fire once a layer, and the gradient is that of a network that keeps everything."""
        network = build(backbones.find(f"nnUNetTrainer{name}"), "3d isotropic", patch_size=(24, 24, 24)).eval()
        x = torch.randn(1, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        runs, maps = [], []

        def keep(_module, _inputs, output):
            maps.append(output)
            return output.clone()  # what comes next works in place

        network.register_forward_hook(lambda *_: runs.append(1))
        handle = network.get_submodule(layer).register_forward_hook(keep)
        logits = network(x)
        assert len(maps) == 1
        handle.remove()
        (slope,) = torch.autograd.grad((logits[:, 1] * (logits.argmax(dim=1) == 1)).sum(), maps[0])
        truth = (slope.mean(dim=(2, 3, 4), keepdim=True) * maps[0]).sum(dim=1, keepdim=True).relu()
        truth = nn.functional.interpolate(truth, size=(16, 16, 16), mode="trilinear")[0, 0].detach()
        runs.clear()
        found = grad_cam(network, network.get_submodule(layer), x, 1, regions=False, kept=(slice(None),) * 3)
        assert len(runs) == 1
        assert truth.any()
        torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-4 * float(truth.max()))

    def test_pictures_alone_say_what_they_show(self, known, images, tmp_path, capsys):
        more = ("--layer", "seen", "--class", "nodule")
        explain(known, images, tmp_path, "--without", "activations", "erf", "--no-nifti", *more)
        assert "voxels in one pass, 1 picture " in capsys.readouterr().out
        (picture,) = (path for path in (tmp_path / "case").rglob("*") if path.is_file())
        with Image.open(picture) as opened:
            assert opened.info["Title"] == "Grad-CAM of nodule at seen"

    def test_tiles_have_it_in_a_window_around_the_class(self, root, images, tmp_path, capsys):
        model = write_model(root / "regions", "nnUNetTrainer", labels=REGIONS)
        explain(model, images, tmp_path, "--maps", "gradcam", "--tiles", "--class", "all")
        said = capsys.readouterr().out
        assert "tiles, 2 maps; Grad-CAM in one window around each class" in said
        assert "Layer encoder.stages." in said
        found = read(tmp_path / "case" / "gradcam_encoder.stages.2_all.nii.gz")
        assert found.max() == pytest.approx(1, abs=0.2)
        assert (found[CROP] > 0).any()


class TestMemory:
    """An image of 40x24x24 voxels, for a patch of 24x24x24."""

    @pytest.fixture
    def model(self, known):
        source = model_in(known, ["0"], "checkpoint_final.pth")
        return load_model(source, torch.device("cpu"), None, tiles=False)

    @pytest.fixture
    def data(self) -> torch.Tensor:
        return torch.randn(2, 40, 24, 24, generator=torch.Generator().manual_seed(0))

    def test_gradients_that_do_not_fit_are_those_of_a_window(self, model, data):
        windows, maps = look_at(model, data, attention=False)
        assert windows.whole
        (logits,) = maps.values()
        whole = GradCam(model, windows, logits)
        assert whole.map(model.heads[0], "seen").amax(dim=(1, 2)).all()
        model.predictor.most_bytes = 1000
        part = GradCam(model, windows, logits)
        assert not part.whole
        assert part.map(model.heads[0], "seen").amax(dim=(1, 2)).count_nonzero() == 24

    def test_the_window_of_a_class_in_two_places_shows_one_of_them(self, model, data):
        windows = Windows(model.predictor, data)
        mask = torch.zeros(40, 24, 24, dtype=torch.bool)
        mask[:2, 10, 10] = mask[37:, 10, 10] = True
        (place,) = windows.around(mask, whole=False)
        assert mask[place[1:]].any()
        assert windows.image[place].shape == (2, 24, 24, 24)

    def test_a_pass_that_runs_out_is_made_in_tiles(self, model, data):
        truth = look_at(model, data, attention=False)[1][""]

        def refuse(_module, inputs):
            if inputs[0].shape[2:] != (24, 24, 24):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

        model.network.register_forward_pre_hook(refuse)
        windows, maps = look_at(model, data, attention=False)
        assert windows.describe() == "in 3 tiles (memory ran out in one pass)"
        torch.testing.assert_close(maps[""], truth)  # of a network that sees one voxel at a time


class TestAttention:
    @pytest.mark.parametrize("tiles", [False, True])
    def test_sums_to_one_and_the_table_is_what_the_maps_say(self, autofocus, images, tmp_path, tiles, capsys):
        explain(autofocus, images, tmp_path, "--maps", "attention", *(["--tiles"] if tiles else []))
        shares = pd.read_csv(tmp_path / "attention.csv")
        segmentation = read(tmp_path / "case" / "segmentation.nii.gz")
        layer = shares["layer"][0]
        rates = [str(rate) for rate in shares[shares["layer"] == layer]["rate"].unique()]
        assert len(rates) > 1
        maps = np.stack([read(tmp_path / "case" / f"attention_{layer}_rate{rate}.nii.gz") for rate in rates])
        total = np.zeros(segmentation.shape)
        total[CROP] = 1
        np.testing.assert_allclose(maps.sum(axis=0), total, atol=1e-5)
        first = read(tmp_path / "case" / f"attention_{layer}_argmax.nii.gz")
        np.testing.assert_array_equal(first[CROP], maps[(slice(None), *CROP)].argmax(axis=0) + 1)
        for name, mask in (("(whole image)", total == 1), *((n, segmentation == v) for n, v in LABELS.items() if v)):
            mask = mask & (total == 1)
            rows = shares[(shares["layer"] == layer) & (shares["class"] == name)]
            assert len(rows) == (len(rates) if mask.any() else 0)
            for number, row in enumerate(rows.itertuples()):
                assert row.voxels == mask.sum()
                assert row.attention == pytest.approx(maps[number][mask].mean(), abs=1e-5)
                assert row.largest == pytest.approx((first[mask] == number + 1).mean())
        assert "share of voxels where it is the largest" in capsys.readouterr().out

    def test_gates_of_attention_u_net(self, root, images, tmp_path):
        model = write_model(root, "nnUNetTrainerSmallAttentionUNet")
        explain(model, images, tmp_path, "--maps", "attention")
        files = sorted(path.name for path in (tmp_path / "case").glob("attention_*"))
        assert files == [f"attention_gates.{number}.nii.gz" for number in range(2)]
        found = read(tmp_path / "case" / files[0])[CROP]
        assert 0 < found.min() < found.max() < 1

    def test_what_the_first_case_lacks_stands_with_its_layer(self):
        rows = [
            ("one", "a", "all", "2"),
            ("one", "b", "all", "2"),
            ("two", "a", "small", "2"),
            ("two", "b", "all", "6"),
        ]
        shares = pd.DataFrame(
            [(case, layer, name, rate, 1, 0.5, 0.5) for case, layer, name, rate in rows], columns=COLUMNS
        )
        found = summarise(shares)[["layer", "class", "rate"]]
        assert [tuple(row) for row in found.to_numpy()] == [
            *(("a", "all", "2"), ("a", "small", "2"), ("b", "all", "2"), ("b", "all", "6"))
        ]

    def test_spread_over_cases(self, autofocus, images, tmp_path, capsys):
        for channel in range(2):  # the channels change places
            image = sitk.ReadImage(str(images / f"case_{channel:04}.nii.gz"))
            for name, place in (("one", channel), ("other", 1 - channel)):
                (tmp_path / "in").mkdir(exist_ok=True)
                sitk.WriteImage(image, str(tmp_path / "in" / f"{name}_{place:04}.nii.gz"))
        explain(autofocus, tmp_path / "in", tmp_path / "out", "--maps", "attention")
        shares = pd.read_csv(tmp_path / "out" / "attention.csv")
        summary = pd.read_csv(tmp_path / "out" / "attention_summary.csv")
        row = summary.iloc[0]
        values = shares[(shares[["layer", "class", "rate"]] == row[["layer", "class", "rate"]]).all(axis=1)]
        assert row["cases"] == 2
        assert row["attention"] == pytest.approx(values["attention"].mean())
        assert row["attention_sd"] == pytest.approx(values["attention"].std())
        assert f"{row['attention']:.3f} ± {row['attention_sd']:.3f}" in capsys.readouterr().out


class TestFabric:
    def test_cells_gates_and_their_history(self, fabric, images, tmp_path, capsys):
        layer = ("--layer", "bottleneck.cells.3", "--channels", 1)
        explain(fabric, images, tmp_path, "--maps", "activations", "gates", *layer)
        names = {path.name.rsplit("_", 1)[0] for path in (tmp_path / "case").glob("activation_*")}
        parts = {name.removeprefix("activation_cell-2-1_") for name in names}
        assert {"before1", "before2", "after", "rate1", "rate2", "out"} <= parts
        gates = pd.read_csv(tmp_path / "gates.csv")
        weights = torch.load(fabric / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
        truth = torch.cat([weights[key].sigmoid() for key in weights if "wrs" in key])
        assert sorted(gates["value"]) == pytest.approx(sorted(truth.tolist()), abs=1e-6)
        assert gates["gate"][0] == "cell (1,1) <- stem (0,1)"
        assert gates["gate"].iloc[-1] == "decoder 2 <- shortcut"
        for picture in ("fabric.png", "gates_over_epochs.png", "case/panels/activation_cell-2-1_out.png"):
            assert (tmp_path / picture).stat().st_size > 1000
        assert f"{len(truth)} gates, from" in capsys.readouterr().out

    def test_the_cells_in_the_middle_are_shown(self):
        network = build(backbones.find("nnUNetTrainerFIRENet"), "3d isotropic")
        titles = [site.title for site in find_sites(network, (), "bottleneck")]
        assert [title for title in titles if "output" in title] == [f"cell (2,{n}), output" for n in (1, 2, 3)]
        assert "cell (2,2), from stem (0,2) before WRS" not in titles
        assert "cell (2,2), from cell (1,3) before WRS" in titles

    def test_a_bad_table_of_gates_costs_no_map(self, fabric, images, tmp_path, capsys):
        (fabric / "fold_0" / "gates.csv").write_text("one,two\n1,2\n")
        explain(fabric, images, tmp_path, "--maps", "gates")
        assert "is no table of gates, with a column epoch" in capsys.readouterr().out
        assert (tmp_path / "fabric.png").is_file()

    def test_gates_are_named_as_the_fabric_describes_them(self):
        network = build(backbones.find("nnUNetTrainerFIRENet"), "3d isotropic")
        told = network.bottleneck.describe()
        for gate in find_gates(network.bottleneck):
            target, source = gate.name.split(" <- ")
            (line,) = [line for line in told.splitlines() if line.strip().startswith(target)]
            assert f"{source} {gate.value:.3f}" in line


class TestReceptiveField:
    def test_of_one_convolution(self):
        network = nn.Conv3d(2, 3, 3, padding=1)
        nn.init.ones_(network.weight)
        field = find_field(network, None, (1, 2, 9, 9, 9), torch.device("cpu"))
        assert field.share == pytest.approx(27 / 729)
        assert field.box == (3, 3, 3)
        assert field.values[3:6, 3:6, 3:6].min() == 1

    def test_the_box_grows_until_it_meets_the_border(self):
        values = np.zeros((3, 9))
        values[1, 1] = values[1, 4] = 1
        assert measure(values).box == (3, 7)

    def test_a_command_draws_it(self, known, images, tmp_path, capsys):
        explain(known, images, tmp_path, "--maps", "erf")
        assert "95% of all is in 1x1x1 voxels" in capsys.readouterr().out
        assert (tmp_path / "erf_logits.png").stat().st_size > 1000
        assert pd.read_csv(tmp_path / "erf.csv")["layer"][0] == "logits"


def test_slices_in_2d(root, images, tmp_path, capsys):
    model = write_model(root, "nnUNetTrainer", "2d isotropic")
    explain(model, images, tmp_path, "--maps", "gradcam", "--class", "nodule")
    assert "slice by slice" in capsys.readouterr().out
    segmentation = read(tmp_path / "case" / "segmentation.nii.gz")
    (file,) = (tmp_path / "case").glob("gradcam_*")
    found = read(file).max(axis=(0, 2)) > 0  # slices lie across y
    assert set(found.nonzero()[0]) <= set((segmentation == 1).any(axis=(0, 2)).nonzero()[0])
    assert found.any()


def test_pictures_of_a_camera(root, tmp_path):
    """A voxel of them has no place in space; maps are as large, with voxels of one."""
    axes = ([0, 1, 2], [0, 1, 2])
    model = write_model(
        root / "png",
        "nnUNetTrainer",
        "2d isotropic",
        spacing=[1.0, 1.0],
        reader="NaturalImage2DIO",
        axes=axes,
        ending=".png",
    )
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for channel in range(2):
        pixels = random.integers(1, 255, (40, 50)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"case_{channel:04}.png")
    explain(model, tmp_path / "in" / "case_0000.png", tmp_path / "out", "--maps", "gradcam")
    assert len(list((tmp_path / "out" / "case").glob("gradcam_*.nii.gz"))) == 2
    assert read(tmp_path / "out" / "case" / "segmentation.nii.gz").shape == (40, 50)


def test_nothing_is_predicted(root, images, tmp_path, capsys):
    bias = torch.tensor([99.0, 0.0, 0.0])
    model = write_model(root / "blank", "nnUNetTrainerKnown", weights={**WEIGHTS, "decoder.seg_layers.0.bias": bias})
    explain(model, images, tmp_path, "--layer", "seen", "--without", "erf")
    assert capsys.readouterr().out.count("is not predicted: its Grad-CAM is empty") == 2
    maps = sorted(path.name for path in (tmp_path / "case").glob("*.nii.gz"))
    assert [name[:7] for name in maps] == ["activat", "activat", "gradcam", "gradcam", "segment"]
    assert not read(tmp_path / "case" / "segmentation.nii.gz").any()


def test_names_of_classes_that_are_one_as_files(root, images, tmp_path):
    labels = {"background": 0, "left, a": 1, "left a": 2, "ignore": 3}
    model = write_model(root / "ignored", "nnUNetTrainerKnown", weights=WEIGHTS, labels=labels)
    explain(model, images, tmp_path, "--maps", "gradcam", "--layer", "seen")
    found = {path.name: read(path).any() for path in (tmp_path / "case").glob("gradcam_*")}
    assert found == {"gradcam_seen_left-a.nii.gz": True, "gradcam_seen_left-a-2.nii.gz": False}


def test_layers_that_are_looked_at_by_default(root):
    for trainer in ("nnUNetTrainerSmallASPP3DUNet", "nnUNetTrainerSmallAFN4"):
        folder = root / "nnUNet_results" / DATASET / f"{trainer}__plans__inside"
        folder = folder if folder.is_dir() else write_model(root, trainer)
        model = load_model(model_in(folder, ["0"], "checkpoint_final.pth"), torch.device("cpu"), None, tiles=False)
        shapes, layer = find_layers(model)
        assert "seg_layers" not in layer
        if trainer == "nnUNetTrainerSmallASPP3DUNet":
            assert min(shapes[layer][2:]) < 24


class TestErrors:
    def fail(self, capsys, *command: object) -> str:
        assert main([*map(str, ("explain", *command, "-device", "cpu"))]) == 2
        return capsys.readouterr().err

    def test_what_does_not_exist_is_named_with_what_does(self, known, images, tmp_path, capsys):
        common = (known, "-i", images, "-o", tmp_path)
        said = self.fail(capsys, *common, "--class", "nodul")
        assert "there is no class 'nodul'; nnUNetTrainerKnown__plans__inside segments: nodule, vessel, left" in said
        said = self.fail(capsys, *common, "--maps", "attention")
        assert "nnUNetTrainerKnown has no autofocus layer and no attention gate; it has: gradcam, activations" in said
        said = self.fail(capsys, *common, "--maps", "gates")
        assert "nnUNetTrainerKnown has no gates that it could tell" in said
        said = self.fail(capsys, *common, "--layer", "seem")
        assert "the layer 'seem' does not exist; layers with a map are, for example, seen" in said
        said = self.fail(capsys, *common, "--layer", "decoder")
        assert "the layer 'decoder' gives no map" in said
        said = self.fail(capsys, known, "-i", tmp_path / "none.nii.gz", "-o", tmp_path)
        assert f"there is no image and no folder {tmp_path / 'none.nii.gz'}" in said
        said = self.fail(capsys, known.parent, "-i", images, "-o", tmp_path)
        assert "is no folder of a trained configuration" in said
        assert known.name in said
        said = self.fail(capsys, *common, "-f", 3)
        assert "has no checkpoint_final.pth in fold 3; folds that have one: 0" in said
        assert not list(tmp_path.iterdir())

    def test_another_number_of_channels_costs_that_case_alone(self, known, images, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        for name, channels in (("good", 2), ("half", 1)):
            for channel in range(channels):
                target = tmp_path / "in" / f"{name}_{channel:04}.nii.gz"
                target.write_bytes((images / f"case_{channel:04}.nii.gz").read_bytes())
        explain(known, tmp_path / "in", tmp_path / "out", "--maps", "gradcam", "--class", "nodule", code=1)
        said = capsys.readouterr()
        assert "half: FAILED: 1 channels in half_0000.nii.gz; the model has 2" in said.out
        assert "failed, see above: half" in said.err
        assert (tmp_path / "out" / "good" / "gradcam_seen_nodule.nii.gz").is_file()

    def test_networks_of_places_have_no_such_maps(self, root, known, images, tmp_path, capsys):
        folder = known.parent / "nnUNetTrainerNISF__plans__inside"
        (folder / "fold_0").mkdir(parents=True)
        for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
            (folder / name).write_bytes((known / name).read_bytes())
        said = self.fail(capsys, folder, "-i", images, "-o", tmp_path)
        assert "nnUNetTrainerNISF: its networks are fitted to every image" in said

    def test_a_folder_of_something_else_is_left_alone(self, known, images, tmp_path, capsys):
        for name in ("case.nii.gz", "imagesTr/case_0000.nii.gz", "checkpoint_final.pth"):
            file = tmp_path / name.partition("/")[0] / name
            file.parent.mkdir(parents=True)
            file.write_text("kept")
            said = self.fail(capsys, known, "-i", images, "-o", tmp_path / name.partition("/")[0])
            assert "which no earlier run of this command has made; choose another folder with -o" in said
            assert file.read_text() == "kept"
        said = self.fail(capsys, known, "-i", images, "-o", images / "case_0000.nii.gz")
        assert "case_0000.nii.gz is a file; choose a folder with -o" in said

    def test_maps_of_another_model_are_left_alone(self, known, fabric, images, tmp_path, capsys):
        explain(known, images, tmp_path, "--maps", "activations", "--layer", "seen", "--no-nifti")
        before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
        said = self.fail(capsys, fabric, "-i", images, "-o", tmp_path)
        assert f"{tmp_path} holds maps of nnUNetTrainerKnown" in said
        assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
        (tmp_path / "explained.json").unlink()
        assert f"{tmp_path} does not say whose maps it holds" in self.fail(capsys, known, "-i", images, "-o", tmp_path)

    def test_a_case_that_fails_has_no_maps_of_an_earlier_run(self, known, images, tmp_path):
        inputs = shutil.copytree(images, tmp_path / "in")
        common = ("--maps", "activations", "--layer", "seen")
        case = explain(known, inputs, tmp_path / "out", *common) / "case"
        assert list(case.glob("activation_*.nii.gz"))
        assert list(case.glob("panels/*.png"))
        (inputs / "case_0001.nii.gz").write_bytes(b"torn")
        explain(known, inputs, tmp_path / "out", *common, code=1)
        assert not list(case.glob("activation_*"))
        assert not list(case.glob("panels/*"))

    def test_a_name_that_is_no_channel_is_no_other_case(self, known, images, tmp_path, capsys):
        inputs = shutil.copytree(images, tmp_path / "in")
        shutil.copyfile(inputs / "case_0000.nii.gz", inputs / "case_left.nii.gz")
        explain(known, inputs / "case_left.nii.gz", tmp_path / "out", "--maps", "gradcam", code=1)
        assert "case_left.nii.gz is not used, because its name has no number of a channel" in capsys.readouterr().out
        assert not list((tmp_path / "out").glob("case/*"))

    def test_numbers_that_are_not_finite_are_told(self, root, images, tmp_path, capsys):
        """Of a training that has diverged; the page shows its slices all the same."""
        weights = {name: torch.full_like(value, torch.nan) for name, value in WEIGHTS.items()}
        model = write_model(root / "diverged", "nnUNetTrainerKnown", weights=weights)
        explain(model, images, tmp_path, "--maps", "erf", "activations", "--layer", "seen", code=1)
        said = capsys.readouterr().out
        assert "field of seen FAILED: its gradients are not finite" in said
        assert "some of the network's numbers are not finite" in said
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        (slices,) = re.findall(r'id="slices">(.*?)</script>', page, re.DOTALL)
        assert json.loads(slices, parse_constant=pytest.fail)["case"]["above"]

    def test_several_folds_are_no_network(self, known, images, tmp_path, capsys):
        said = self.fail(capsys, known, "-i", images, "-o", tmp_path, "-f", 0, 1)
        assert "-f 0 1: an ensemble has no map of its own; look into one fold at a time" in said

    def test_nothing_left_to_show(self, known, images, tmp_path, capsys):
        said = self.fail(capsys, known, "-i", images, "-o", tmp_path, "--without", "gradcam", "activations", "erf")
        assert "nnUNetTrainerKnown has gradcam, activations, erf, and --without leaves none of them" in said

    def test_without_captum_all_other_maps_are_made(self, known, images, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        said = self.fail(capsys, known, "-i", images, "-o", tmp_path, "--maps", "gradcam")
        assert "Grad-CAM needs captum: pip install 'nnunet-plugins[explain]'" in said
        explain(known, images, tmp_path, "--layer", "seen", "--channels", 1)
        assert "Left out: Grad-CAM needs captum" in capsys.readouterr().out
        assert list((tmp_path / "case").glob("activation_*"))
        assert not list((tmp_path / "case").glob("gradcam_*"))


def test_the_page_shows_slices_without_a_network(browser, of_known):
    context = browser.new_context()
    page = context.new_page()
    problems, asked = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    page.goto((of_known / "index.html").as_uri())
    page.locator(".viewer").wait_for()
    lower, upper = (page.locator(".stack img").nth(number) for number in range(2))
    assert page.locator("[name=map] option").count() == 3
    before = lower.get_attribute("src"), upper.get_attribute("src")
    page.locator("[name=slice]").fill("3")
    after = lower.get_attribute("src"), upper.get_attribute("src")
    assert all(one != other for one, other in zip(before, after, strict=True))
    page.locator("[name=map]").select_option("seen, channel 1")
    assert upper.get_attribute("src") != after[1]
    assert lower.get_attribute("src") == after[0]
    page.locator("[name=opacity]").fill("0")
    assert upper.evaluate("image => getComputedStyle(image).opacity") == "0"
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.locator("figure img").count() >= 3
    assert page.locator("h2").all_inner_texts()[-1] == "case"
    context.close()
    assert problems == []
    assert asked == [(of_known / "index.html").as_uri()]
