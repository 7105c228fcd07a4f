"""`nnunet-plugins predict`: labels where the voxels of a label map lie, at any spacing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Sandbox

from nnunet_plugins.cli import main
from nnunet_plugins.prediction.grid import blocks, output_size, planes_in_patch
from nnunet_plugins.testing import training
from nnunet_plugins.trainers.checkpoints import load_checkpoint

TRAINERS = '''
from dataclasses import replace

import torch

from nnunet_plugins.backbones import find
from nnunet_plugins.networks.implicit import ImplicitNetwork, OutputLayer


class Parity(ImplicitNetwork):
    """Label by label, or region by region, says which voxel of the patch a place is in: odd or even along each axis."""

    percentiles = (0.0, 1.0)

    def __init__(self, input_channels, num_classes, deep_supervision=False, *, patch_size, regions=False):
        super().__init__(patch_size, fit_steps=0, fit_learning_rate=1.0, inner_steps=0, voxels=None)
        self.regions, self.classes = regions, num_classes
        self.decoder = OutputLayer(1, num_classes, deep_supervision=deep_supervision)

    def start(self, images, generator=None):
        return [torch.zeros(images, 1)]

    def coordinate(self, position, voxels):
        return position

    def logits(self, fitted, places):
        odd = torch.floor(places + 0.5) % 2
        if self.regions:
            return 10 * odd - 5
        label = sum(odd[..., axis] * 2**axis for axis in range(odd.shape[-1]))
        return 5.0 * torch.nn.functional.one_hot(label.long(), self.classes) + self.decoder.seg_layers[0].bias


nisf = find("nnUNetTrainerNISF")
parity = replace(nisf, trainer="nnUNetTrainerParity", network=Parity, options={})
BACKBONES = [
    parity,
    replace(parity, trainer="nnUNetTrainerRegions", options={"regions": True}),
    replace(nisf, trainer="nnUNetTrainerBalls", options={**nisf.options, "width": 32, "layers": 3, "voxels": 512}),
]
'''

ORDER, BACK = [1, 2, 0], [2, 0, 1]  # of the axes in the plans, and back
PATCHES = {"3d": [26, 24, 22], "2d": [24, 22]}
SPACING = {"3d": [1.1, 0.8, 1.7], "2d": [0.8, 1.7]}
REGIONS = {"background": 0, "all": [1, 2, 300], "some": [2, 300], "one": [300]}


def use_trainers(sandbox: Sandbox) -> Sandbox:
    folder = sandbox.root / "trainers"
    folder.mkdir()
    (folder / "places.py").write_text(TRAINERS)
    sandbox.env["nnUNet_extTrainer"] = str(folder)
    return sandbox


def write_model(sandbox: Sandbox, trainer: str, configuration: str, classes: int, biases=((0.0,) * 8,), **changes):
    """Write a trained model as nnU-Net leaves it; returns its folder."""
    plans, dataset = training.plans_and_dataset(f"{configuration} odd")
    chosen = plans["configurations"].pop(training.CONFIGURATION)
    chosen |= {"patch_size": PATCHES[configuration], "spacing": SPACING[configuration]}
    chosen |= {
        f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")
    } | {
        f"resampling_fn_{kind}_kwargs": {"is_seg": kind == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
        for kind in ("data", "seg", "probabilities")
    }
    plans["configurations"][configuration] = chosen
    plans |= {
        "dataset_name": "Dataset001_Parity",
        "plans_name": "plans",
        "transpose_forward": ORDER,
        "transpose_backward": BACK,
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
    }
    plans |= {key: value for key, value in changes.items() if key in plans}
    dataset["labels"] = {"background": 0, **{f"label {number}": number for number in range(1, classes)}}
    dataset |= {key: value for key, value in changes.items() if key not in plans}
    (sandbox.raw / "Dataset001_Parity").mkdir(exist_ok=True)
    folder = sandbox.results / "Dataset001_Parity" / f"{trainer}__plans__{configuration}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold, bias in enumerate(biases):
        weights = {"decoder.seg_layers.0.weight": torch.zeros(classes, 1)}
        weights["decoder.seg_layers.0.bias"] = torch.tensor(bias[:classes])
        checkpoint = {"network_weights": weights, "trainer_name": trainer, "inference_allowed_mirroring_axes": None}
        checkpoint["init_args"] = {"plans": plans, "configuration": configuration, "dataset_json": dataset}
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


@pytest.fixture(scope="module")
def parity(sandbox: Sandbox) -> Sandbox:
    use_trainers(sandbox)
    # The second fold has the label 0 alone, the third one has it nowhere; their mean is the first one.
    write_model(sandbox, "nnUNetTrainerParity", "3d", 8, [(bias, *(0.0,) * 7) for bias in (0.0, 7.0, -7.0)])
    write_model(sandbox, "nnUNetTrainerParity", "2d", 8)
    write_model(sandbox, "nnUNetTrainerRegions", "3d", 3, labels=REGIONS, regions_class_order=[1, 2, 300])
    return sandbox


def rotation() -> np.ndarray:
    (a, b), (c, d) = np.cos([0.3, 0.5]), np.sin([0.3, 0.5])
    return np.array([[a, -c, 0], [c, a, 0], [0, 0, 1]]) @ np.array([[b, 0, d], [0, 1, 0], [-d, 0, b]])


def write_case(folder: Path, case: str, array: np.ndarray, spacing, direction=None, origin=None) -> None:
    """Write an image `(z, y, x)`, twice, as two channels."""
    folder.mkdir(exist_ok=True, parents=True)
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction.flatten().tolist())
        image.SetOrigin(origin)
    for channel in range(2):
        sitk.WriteImage(image, str(folder / f"{case}_{channel:04}.nii.gz"))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 2, shape)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Oblique and anisotropic; with a border of zeros; of one voxel along an axis."""
    folder = tmp_path_factory.mktemp("images")
    write_case(folder, "oblique", noise(9, 14, 12), (0.9, 1.3, 2.0), rotation(), (10.0, -20.0, 5.5))
    bordered = np.zeros((12, 15, 13))
    bordered[2:11, 2:15, :9] = noise(9, 13, 9)
    write_case(folder, "bordered", bordered, (1.7, 1.0, 0.8))
    write_case(folder, "thin", noise(9, 14, 1), (0.9, 1.3, 2.0))
    return folder


def predict(sandbox: Sandbox, images: Path, output: Path, factor=1, *more, trainer="Parity", kind="3d", ok=True) -> str:
    model = ("-d", 1, "-c", kind, "-p", "plans", "-tr", f"nnUNetTrainer{trainer}")
    factor = ("--spacing-factor", factor)
    folds = () if "-f" in more else ("-f", 0)
    command = ("nnunet-plugins", "predict", "-i", images, "-o", output, *model, *folds, *factor, "-device", "cpu")
    return sandbox.run(*command, *more, ok=ok)


def places(image: sitk.Image, labels: sitk.Image, kind="3d") -> tuple[np.ndarray, np.ndarray]:
    """Where in the patch the voxels of a label map lie, by their places in mm; and which are not cropped away."""
    array, dims = sitk.GetArrayFromImage(image), len(PATCHES[kind])
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in labels.GetSize()), indexing="ij"), -1)
    flat = [labels.TransformContinuousIndexToPhysicalPoint(one) for one in index.reshape(-1, 3).tolist()]
    own = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in flat]).reshape(index.shape)
    own = own.transpose(2, 1, 0, 3)[..., ::-1]  # (z, y, x), of voxels and of numbers
    where = np.argwhere(array)
    low, high = where.min(0), where.max(0) + 1
    inside = ((own > low - 0.5) & (own < high - 0.5)).all(-1)
    found = []
    for number, axis in enumerate(ORDER):
        if dims == 2 and number == 0:
            continue
        target, patch = SPACING[kind][number - 3 + dims], PATCHES[kind][number - 3 + dims]
        kept = int(high[axis] - low[axis])
        resampled = round(image.GetSpacing()[2 - axis] / target * kept)
        found.append((own[..., axis] - low[axis] + 0.5) * resampled / kept - 0.5 + (patch - resampled) // 2)
    return np.stack(found, -1), inside


def compare(images: Path, output: Path, case: str, factor: float, kind="3d", regions=False) -> None:
    image, labels = (sitk.ReadImage(str(f)) for f in (images / f"{case}_0000.nii.gz", output / f"{case}.nii.gz"))
    expected = [max(1, round(n / factor)) for n in image.GetSize()]
    if kind == "2d":
        expected[2 - ORDER[0]] = image.GetSize()[2 - ORDER[0]]
    assert list(labels.GetSize()) == expected
    for corner in ([-0.5] * 3, None):
        ends = [
            one.TransformContinuousIndexToPhysicalPoint(corner or [n - 0.5 for n in one.GetSize()])
            for one in (image, labels)
        ]
        np.testing.assert_allclose(*ends, atol=1e-4)
    np.testing.assert_allclose(image.GetDirection(), labels.GetDirection(), atol=1e-6)
    if factor == 1:
        assert (image.GetSpacing(), image.GetOrigin()) == (labels.GetSpacing(), labels.GetOrigin())
    where, inside = places(image, labels, kind)
    odd = np.floor(where + 0.5) % 2
    if regions:
        truth = np.zeros(odd.shape[:-1])
        for number, label in enumerate((1, 2, 300)):
            truth[odd[..., number] == 1] = label
    else:
        truth = sum(odd[..., axis] * 2**axis for axis in range(odd.shape[-1]))
    # Where two voxels meet, rounding decides.
    clear = (np.abs(where % 1 - 0.5) > 1e-3).all(-1)
    assert clear.mean() > 0.5
    array = sitk.GetArrayFromImage(labels)
    assert array.dtype == (np.uint16 if regions else np.uint8)
    np.testing.assert_array_equal(array[clear], (truth * inside)[clear])
    assert len(np.unique(array)) > 3


@pytest.mark.parametrize("factor", [1, 0.5, 0.3, 2])
def test_every_voxel_has_the_label_of_its_place(parity, images, tmp_path, factor):
    output = predict(parity, images, tmp_path, factor)
    for case in ("oblique", "bordered", "thin"):
        compare(images, tmp_path, case, factor)
    size = " x ".join(str(round(n / factor)) for n in (12, 14, 9))
    assert f"2/3 oblique: 12 x 14 x 9 voxels -> {size} of " in output
    assert {path.name for path in tmp_path.glob("*.json")} == {"dataset.json", "plans.json"}


def test_folds_are_averaged(parity, images, tmp_path):
    predict(parity, images, tmp_path, 2, "-f", "1", "2")
    compare(images, tmp_path, "oblique", 2)
    predict(parity, images, tmp_path, 2, "-f", "1")
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "oblique.nii.gz"))).any()


def test_regions(parity, images, tmp_path):
    predict(parity, images, tmp_path, 0.5, trainer="Regions")
    compare(images, tmp_path, "oblique", 0.5, regions=True)
    compare(images, tmp_path, "bordered", 0.5, regions=True)


def test_a_network_of_planes_knows_no_others(parity, tmp_path):
    """The slice stays one, in a file with three axes and in one with two."""
    images, output = tmp_path / "images", tmp_path / "output"
    write_case(images, "slice", noise(9, 1, 11), (0.9, 3.0, 1.2), rotation(), (1.0, 2.0, 3.0))
    write_case(images, "stack", noise(9, 2, 11), (0.9, 3.0, 1.2))
    said = predict(parity, images, output, 0.5, kind="2d", ok=False)
    compare(images, output, "slice", 0.5, kind="2d")
    assert "stack: FAILED: it has 2 slices, and the network takes one for the whole" in said
    assert "train a 3D configuration" in said
    assert "failed, see above: stack\n" in said
    assert not (output / "stack.nii.gz").exists()


def test_one_bad_case_costs_itself_alone(parity, images, tmp_path):
    mixed, output = tmp_path / "mixed", tmp_path / "output"
    shutil.copytree(images, mixed)
    write_case(mixed, "large", noise(30, 14, 11), (0.9, 1.3, 2.0))
    (mixed / "damaged_0000.nii.gz").write_bytes((images / "thin_0000.nii.gz").read_bytes()[:100])
    shutil.copy(images / "thin_0001.nii.gz", mixed / "damaged_0001.nii.gz")
    shutil.copy(images / "thin_0000.nii.gz", mixed / "half_0000.nii.gz")
    output.mkdir()
    for case in ("large", "half", "oblique"):  # of an earlier run
        shutil.copy(images / "thin_0000.nii.gz", output / f"{case}.nii.gz")
    said = predict(parity, mixed, output, 0.5, ok=False)
    compare(mixed, output, "oblique", 0.5)
    assert {path.name for path in output.glob("*.nii.gz")} == {f"{c}.nii.gz" for c in ("oblique", "bordered", "thin")}
    assert "large: FAILED: resampled it has 17x12x35 voxels, more than the patch of 26x24x22" in said
    assert "nnunet-plugins doctor -d 1 -tr nnUNetTrainerParity -c 3d -p plans -i FOLDER" in said
    assert "half: FAILED: 1 channels in half_0000.nii.gz; the model has 2" in said
    assert "damaged_0000.nii.gz" in said
    assert "failed, see above: damaged, half, large\n" in said
    assert "Traceback" not in said


def test_labels_that_no_memory_holds_are_refused(parity, images, tmp_path):
    said = predict(parity, images, tmp_path, 1e-4, ok=False)
    assert "oblique: FAILED: with --spacing-factor 0.0001 its labels are 120000 x 140000 x 90000 voxels" in said
    assert "GiB are free. Take a larger factor" in said
    assert "Traceback" not in said
    assert "infinite" not in predict(parity, images, tmp_path, 1e-320, ok=False)


def test_a_prediction_goes_on(parity, images, tmp_path):
    predict(parity, images, tmp_path, 2)
    (tmp_path / "bordered.nii.gz").unlink()
    before = (tmp_path / "oblique.nii.gz").stat().st_mtime_ns
    said = predict(parity, images, tmp_path, 2, "--continue_prediction")
    assert (tmp_path / "oblique.nii.gz").stat().st_mtime_ns == before
    assert "oblique: is there already" in said
    compare(images, tmp_path, "bordered", 2)
    # Labels of another spacing are not what is asked for.
    assert "already" not in predict(parity, images, tmp_path, 3, "--continue_prediction")
    compare(images, tmp_path, "oblique", 3)


@pytest.mark.parametrize("factor", ["0", "-1", "nan", "inf", "half"])
def test_factors_are_positive(factor, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "-i", "in", "-o", "out", "-d", "1", "-c", "3d", "-tr", "T", f"--spacing-factor={factor}"])
    assert f"--spacing-factor: '{factor}' is no positive number" in capsys.readouterr().err


def test_other_networks_are_refused(parity, images, tmp_path):
    command = ("nnunet-plugins", "predict", "-i", images, "-o", tmp_path / "out", "-d", 1, "-c", "3d")
    command = (*command, "--spacing-factor", 1, "-tr")
    said = parity.run(*command, "nnUNetTrainerFIRENet_5epochs", ok=False)
    assert "nnUNetTrainerFIRENet_5epochs: labels at any spacing are known to networks of places alone" in said
    assert "nnUNetTrainerMetaSeg, nnUNetTrainerMetaSegPaper" in said
    assert "nnUNetTrainerNISF" in said
    assert "predict with nnUNetv2_predict" in said
    assert "nnUNetTrainerFIRENot" in parity.run(*command, "nnUNetTrainerFIRENot", ok=False)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named(parity, images, tmp_path):
    said = predict(parity, images, tmp_path, 1, "-f", "0", "7", ok=False)
    assert "has no checkpoint_final.pth in fold 7; folds that have one: 0, 1, 2. Name those with -f" in said
    said = predict(parity, images, tmp_path, 1, "-chk", "checkpoint_best.pth", ok=False)
    assert "has no checkpoint_best.pth in fold 0; folds that have one: none" in said
    said = predict(parity, images, tmp_path, trainer="Balls", ok=False)
    assert "nnUNetTrainerParity__plans__3d" in said
    empty = tmp_path / "empty"
    empty.mkdir()
    said = predict(parity, empty, tmp_path, ok=False)
    assert f"{empty} holds no images. The layout is nnU-Net's: CASE_0000.nii.gz" in said
    assert "there is no input folder" in predict(parity, tmp_path / "nowhere", tmp_path, ok=False)


def test_models_that_cannot_be_used_are_refused(parity, images, tmp_path):
    folder = write_model(parity, "nnUNetTrainerParity_2epochs", "3d", 8, image_reader_writer="NibabelIOWithReorient")
    said = predict(parity, images, tmp_path, trainer="Parity_2epochs", ok=False)
    assert f"{folder / 'plans.json'}: images are read with NibabelIOWithReorient, which turns their axes" in said
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    name, weight = next(iter(checkpoint["network_weights"].items()))
    checkpoint["network_weights"][name] = weight.to(torch.int8)
    torch.save(checkpoint, file)
    said = predict(parity, images, tmp_path, trainer="Parity_2epochs", ok=False)
    assert f"the weights in {file} cannot be used: {name} is no dense tensor of floating-point numbers" in said
    file.write_bytes(b"no checkpoint")
    said = predict(parity, images, tmp_path, trainer="Parity_2epochs", ok=False)
    assert "checkpoint_final.pth is no checkpoint of nnU-Net that can be read safely: it is damaged" in said
    assert "Traceback" not in said


def test_a_grid_is_taken_in_parts():
    for shape in ((5, 6, 7), (1, 6, 7), (0, 6, 7), (5, 6, 0)):
        for most in (1, 7, 20, 100, 10_000):
            seen = np.zeros(shape, int)
            for block in blocks(shape, most):
                seen[block] += 1
                assert seen[block].size <= max(most, shape[2])
            assert (seen == 1).all()
    assert output_size((5, 7, 1), 2, {1}) == (2, 7, 1)
    # What lies in none of the planes that are left.
    assert not planes_in_patch(1, 9, (6, 9), 3, 0).positions.size


BALLS = "Dataset002_Balls"
FINE = 4  # voxels of the truth along each of an image's
TRAINER = "nnUNetTrainerBalls_2epochs_200iterations_1seed"
MODEL = ("-d", 2, "-c", "3d_cover", "-p", "plans", "-tr", TRAINER, "-device", "cpu")


def ball(radius: float, part: int) -> np.ndarray:
    """A ball in the middle of 16 mm, on voxels of 1 mm / part."""
    centres = (np.arange(16 * part) + 0.5) / part - 8
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*[centres] * 3, indexing="ij"))) < radius


def scan(radius: float, seed: int) -> np.ndarray:
    """An image of a ball: each voxel holds as much of it as lies in it, and noise."""
    part = ball(radius, FINE).reshape(*(16, FINE) * 3).mean(axis=(1, 3, 5))
    return 0.5 + part + np.random.default_rng(seed).normal(0, 0.1, part.shape)


def write(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Sandbox:
    """NISF, trained by nnU-Net's commands on balls of six sizes; and another fold, made of it."""
    sandbox = use_trainers(Sandbox(tmp_path_factory.mktemp("balls")))
    folder = sandbox.raw / BALLS
    for number, radius in enumerate((3.0, 3.6, 4.4, 5.3, 6.0, 6.6)):
        write(scan(radius, number).astype(np.float32), folder / "imagesTr" / f"ball_{number}_0000.nii.gz")
        write(ball(radius, 1).astype(np.uint8), folder / "labelsTr" / f"ball_{number}.nii.gz")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": 6}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    sandbox.prepare(2, "3d_fullres")
    cover = {"inherits_from": "3d_fullres", "patch_size": [18, 17, 16]}
    sandbox.edit_plans(BALLS, "plans", lambda configurations: configurations.update({"3d_cover": cover}))
    sandbox.run("nnUNetv2_train", 2, "3d_cover", "all", "-tr", TRAINER, "-p", "plans", "-device", "cpu")
    model = sandbox.results / BALLS / f"{TRAINER}__plans__3d_cover"
    checkpoint = load_checkpoint(model / "fold_all" / "checkpoint_final.pth", trusted=True)
    weights = checkpoint["network_weights"]
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        weights[name] = weight * (1 + 0.1 * torch.rand(weight.shape, generator=generator))
    # Folds have as many codes as training cases.
    weights["decoder.seg_layers.codes"] = weights["decoder.seg_layers.codes"][:5]
    (model / "fold_0").mkdir()
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    unseen = {f"ball_{radius}": scan(radius, 9) for radius in (4.0, 5.7)}
    # Half of one, with a border of zeros: neither symmetric nor as large as the patch.
    unseen["half"] = np.pad(scan(5.0, 9)[1:9, :13, 2:], ((2, 0), (0, 1), (0, 3)))
    for case, image in unseen.items():
        write(image.astype(np.float32), sandbox.root / "unseen" / f"{case}_0000.nii.gz")
    return sandbox


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.slow
def test_finer_labels_are_nearer_to_the_truth(balls, tmp_path):
    """Than those of the image's voxels, each taken for several: of balls of sizes that were in no training."""
    found = {}
    for factor in (1, 0.25):
        output = tmp_path / str(factor)
        command = (
            "predict",
            "-i",
            balls.root / "unseen",
            "-o",
            output,
            *MODEL,
            "-f",
            "all",
            "--spacing-factor",
            factor,
        )
        balls.run("nnunet-plugins", *command)
        found[factor] = {radius: read(output / f"ball_{radius}.nii.gz") > 0 for radius in (4.0, 5.7)}
    for radius in (4.0, 5.7):
        truth, coarse = ball(radius, 4), found[1][radius]
        for axis in range(3):
            coarse = coarse.repeat(4, axis=axis)
        assert dice(found[0.25][radius], truth) > dice(coarse, truth) > 0.8


@pytest.mark.slow
def test_with_factor_one_the_labels_are_those_of_nnunet(balls, tmp_path):
    common = ("-i", balls.root / "unseen", *MODEL, "-f", "all", "0")
    balls.run("nnunet-plugins", "predict", *common, "-o", tmp_path / "ours", "--spacing-factor", 1)
    options = ("-npp", 1, "-nps", 1, "--disable_progress_bar")
    balls.run("nnUNetv2_predict", *common, "-o", tmp_path / "theirs", *options)
    for case in ("ball_4.0", "ball_5.7", "half"):
        ours, theirs = (tmp_path / who / f"{case}.nii.gz" for who in ("ours", "theirs"))
        assert read(theirs).any()
        assert np.array_equal(read(ours), read(theirs))
        assert read(ours).dtype == read(theirs).dtype
