"""Submissions: what is exported, what runs in the container, what the check proves."""

import errno
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import ROOT, Sandbox, commands, write_dataset
from feature_matrix import Datasets, Model, Setting
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from report_records import make_record

from nnunet_plugins import memory
from nnunet_plugins.cli import main
from nnunet_plugins.errors import InputError
from nnunet_plugins.models.cases import find_cases
from nnunet_plugins.models.settings import FILE, Member, Settings, read_settings
from nnunet_plugins.models.sources import require_released
from nnunet_plugins.report.scores import score
from nnunet_plugins.submission import wheels
from nnunet_plugins.submission.check import check_files
from nnunet_plugins.submission.dockerfile import check_dockerfile
from nnunet_plugins.submission.effort import Clock, Effort, Work, efforts
from nnunet_plugins.submission.ensemble import Ensemble
from nnunet_plugins.submission.inference import main as predict
from nnunet_plugins.submission.platforms import PLATFORMS
from nnunet_plugins.trainers.compose import trainer_class

pytestmark = pytest.mark.slow

DATASET, TWIN = "Dataset001_Pairs", "Dataset401_PairsCLAHE"
CHANNELS = ("T1", "FLAIR")
# Images are mirrored for the U-Net alone: for FIRENet, eight passes take eight times as long.
STOCK, FIRENET = "nnUNetTrainer_1epochs_2iterations", "nnUNetTrainerFIRENet_1epochs_2iterations_NoMirroring"
ENSEMBLE = ("-tr", FIRENET, "--ensemble-with", STOCK)
SOCKETS = ("--input-socket", "t1-mri", "flair-mri", "--output-socket", "lesions")


@pytest.fixture(scope="module")
def trained(sandbox: Sandbox) -> Sandbox:
    """Two networks, two folds each, on images of two channels, and nnU-Net's post-processing of their ensemble."""
    folder = write_dataset(sandbox.raw, DATASET, shape=(18, 20, 22), spacing=(1.5, 1.0, 1.0), channels=2)
    description = json.loads((folder / "dataset.json").read_text())
    names = {str(number): name for number, name in enumerate(CHANNELS)}
    (folder / "dataset.json").write_text(json.dumps({**description, "channel_names": names}))
    sandbox.prepare(1, "3d_fullres")
    sandbox.edit_plans(DATASET, "small")
    for trainer in (STOCK, FIRENET):
        for fold in (0, 1):
            command = (
                "nnUNetv2_train",
                1,
                "3d_fullres",
                fold,
                "-tr",
                trainer,
                "-p",
                "small",
                "-device",
                "cpu",
                "--npz",
            )
            sandbox.run(*command)
    search = ("nnUNetv2_find_best_configuration", 1, "-c", "3d_fullres", "-p", "small", "-f", 0, 1, "-np", 1)
    sandbox.run(*search, "-tr", FIRENET, STOCK)
    return sandbox


def export(sandbox: Sandbox, output: Path, *options: object, ok: bool = True) -> str:
    common = ("-d", 1, "-p", "small", "-f", 0, 1, "--no-wheels", "-o", output)
    return sandbox.run("nnunet-plugins", "export-submission", *common, *options, ok=ok)


@pytest.fixture(scope="module")
def folder(trained: Sandbox) -> Path:
    """The ensemble, with a step of post-processing whatever nnU-Net thinks of it."""
    steps = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * 2,
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}],
    }
    file = trained.root / "postprocessing.json"
    file.write_text(json.dumps(steps))
    output = trained.root / "folder"
    export(trained, output, *ENSEMBLE, "--postprocessing", file)
    return output


@pytest.fixture(scope="module")
def cheap(trained: Sandbox) -> Path:
    """One fold of the U-Net, no mirroring: what it predicts does not matter."""
    output = trained.root / "cheap"
    export(trained, output, "-tr", STOCK, "-f", 0, "--fast")
    return output


@pytest.fixture(scope="module")
def images(trained: Sandbox) -> Path:
    return trained.raw / DATASET / "imagesTs"


@pytest.fixture(scope="module")
def expected(trained: Sandbox, images: Path) -> dict[str, np.ndarray]:
    """What nnU-Net's own commands make of the test images, from its own results."""
    root = trained.root / "expected"
    for trainer in (FIRENET, STOCK):
        model = ("-d", 1, "-c", "3d_fullres", "-p", "small", "-f", 0, 1, "-tr", trainer)
        options = ("-device", "cpu", "-npp", 1, "-nps", 1, "--save_probabilities")
        trained.run("nnUNetv2_predict", "-i", images, "-o", root / trainer, *model, *options)
    trained.run("nnUNetv2_ensemble", "-i", root / FIRENET, root / STOCK, "-o", root / "both", "-np", 1)
    from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

    steps = (
        [remove_all_but_largest_component_from_segmentation] * 2,
        [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}],
    )
    (root / "steps.pkl").write_bytes(pickle.dumps(steps))
    plans = root / FIRENET / "plans.json"
    command = ("nnUNetv2_apply_postprocessing", "-i", root / "both", "-o", root / "done", "-np", 1)
    trained.run(*command, "-pp_pkl_file", root / "steps.pkl", "-plans_json", plans)
    return {path.name: read(path) for path in sorted((root / "done").glob("*.nii.gz"))}


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def geometry(path: Path) -> tuple:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


# What runs in the container.


def test_predicts_as_nnunets_own_commands(folder, images, expected, tmp_path, capsys):
    assert predict(["-i", str(images), "-o", str(tmp_path)], models=folder / "model") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    for name, labels in expected.items():
        assert np.array_equal(read(tmp_path / name), labels)
        assert geometry(tmp_path / name) == geometry(images / name.replace(".nii.gz", "_0000.nii.gz"))
        assert len(np.unique(labels)) > 1, "an empty segmentation proves nothing"
    log = capsys.readouterr().out
    assert "2/2 case_6: done in" in log
    assert "2 of 2 cases segmented" in log
    # A second run has nothing to do; with --overwrite it has.
    assert predict(["-i", str(images), "-o", str(tmp_path)], models=folder / "model") == 0
    assert "2 cases have a segmentation already" in capsys.readouterr().out


def test_a_stray_image_is_told_at_every_start_and_costs_no_segmentation(cheap, images, tmp_path, capsys):
    """Even one with the name that a case's segmentation has."""
    given = shutil.copytree(images, tmp_path / "in")
    shutil.copy(given / "case_5_0000.nii.gz", given / "case_5.nii.gz")
    for _ in range(2):
        assert predict(["-i", str(given), "-o", str(tmp_path / "out")], models=cheap / "model") == 1
        assert "Failed: case_5.nii.gz" in capsys.readouterr().out
        assert sorted(os.listdir(tmp_path / "out")) == ["case_5.nii.gz", "case_6.nii.gz"]


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def spoil_nan(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    array[0, 0, :3] = np.inf
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


def spoil_constant(path: Path) -> None:
    image = sitk.ReadImage(str(path)) * 0 + 3
    sitk.WriteImage(image, str(path))


def spoil_grid(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image.SetSpacing((1, 1, 3))
    sitk.WriteImage(image, str(path))


def spoil_size(path: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(path))[:-2], str(path))


def spoil_text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"no image"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_empty, "is empty"),
        (spoil_cut, "is cut off"),
        (spoil_nan, "holds NaN or infinite intensities, which are read as 0 (3 voxels)"),
        (spoil_grid, "differs in spacing (3 x 1 x 1 mm, not 1.5 x 1 x 1 as case_5_0000.nii.gz)"),
        (spoil_size, "voxels, not 18 x 20 x 22 as case_5_0000.nii.gz)"),
        (spoil_text, "cannot be read"),
        (Path.unlink, "1 channels in case_5_0000.nii.gz; the model has 2: T1, FLAIR"),
        (lambda path: path.rename(str(path).replace("0001", "0002")), "case_5_0001.nii.gz missing"),
        (lambda path: shutil.copy(path, str(path).replace("0001", "0002")), "more channels than the model's 2"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_case_costs_no_other(spoil, reason, cheap, images, tmp_path, capsys):
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    shutil.copytree(images, inputs)
    outputs.mkdir()
    shutil.copy(images / "case_5_0000.nii.gz", outputs / "case_5.nii.gz")  # of an earlier run
    spoil(inputs / "case_5_0001.nii.gz")
    assert predict(["-i", str(inputs), "-o", str(outputs), "--overwrite"], models=cheap / "model") == 1
    log = capsys.readouterr().out
    (line,) = (line for line in log.splitlines() if "FAILED" in line)
    assert "case_5" in line
    assert reason in line
    assert "Failed: case_5" in log
    assert [path.name for path in outputs.iterdir()] == ["case_6.nii.gz"]
    assert geometry(outputs / "case_6.nii.gz") == geometry(images / "case_6_0000.nii.gz")


def test_a_full_disk_is_told_without_a_traceback(cheap, images, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "case.nii.gz")

    monkeypatch.setattr("nnunet_plugins.models.images.write_segmentation", full)
    assert predict(["-i", str(images), "-o", str(tmp_path)], models=cheap / "model") == 1
    said = capsys.readouterr()
    assert "case_5 FAILED" in said.out
    assert "No space left on device: 'case.nii.gz'" in said.out
    assert "Traceback" not in said.err


def test_nothing_can_be_begun(cheap, images, tmp_path, capsys):
    def code(inputs, outputs, models):
        return predict(["-i", str(inputs), "-o", str(outputs)], models=models)

    assert code(tmp_path / "none", tmp_path / "out", cheap / "model") == 2
    assert "there is no input folder" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert code(tmp_path / "empty", tmp_path / "out", cheap / "model") == 2
    assert "CASE_0000.nii.gz, CASE_0001.nii.gz" in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert code(images, tmp_path / "file", cheap / "model") == 2
    assert "nothing can be written to" in capsys.readouterr().out
    assert code(images, tmp_path / "out", tmp_path) == 2
    assert f"{FILE} is missing in /opt/ml/model and in {tmp_path}" in capsys.readouterr().out
    shutil.copytree(cheap / "model", tmp_path / "model")
    next((tmp_path / "model").rglob("*.pth")).write_bytes(b"no checkpoint")
    assert code(images, tmp_path / "out", tmp_path / "model") == 2
    assert "Nothing could be begun" in capsys.readouterr().out


def test_a_short_time_limit_leaves_out_what_it_says(folder, images, tmp_path, capsys):
    options = ["-i", str(images), "-o", str(tmp_path), "--seconds-per-case", "0.001"]
    assert predict(options, models=folder / "model") == 0
    log = capsys.readouterr().out
    least = "to keep within 0.001 s: no mirroring, step 0.75, 1 of each network's folds, 1 of the ensemble's networks"
    assert log.count(least) == 2
    assert log.count("fold 0 (1 of 1)") == 2
    assert "fold 1" not in log
    assert len(list(tmp_path.iterdir())) == 2


def test_a_long_time_limit_changes_nothing(folder, images, expected, tmp_path):
    options = ["-i", str(images), "-o", str(tmp_path), "--seconds-per-case", "10000"]
    assert predict(options, models=folder / "model") == 0
    assert all(np.array_equal(read(tmp_path / name), labels) for name, labels in expected.items())


def test_efforts_are_left_out_in_the_stated_order():
    whole = Effort()
    found = efforts(whole, folds=3, members=2)
    assert found == [
        whole,
        Effort(mirroring=False),
        Effort(mirroring=False, step=0.75),
        Effort(mirroring=False, step=0.75, folds=2),
        Effort(mirroring=False, step=0.75, folds=1),
        Effort(mirroring=False, step=0.75, folds=1, members=1),
    ]
    assert efforts(Effort(mirroring=False, step=0.75), folds=1, members=1) == [Effort(mirroring=False, step=0.75)]
    work = [[Work(folds=3, patches={0.5: 8, 0.75: 1}, flips=8, seconds=1.0)]] * 2
    seconds = [2 * 3 * 8 * 8, 2 * 3 * 8, 2 * 3, 2 * 2, 2, 1]
    for effort, needed in zip(found, seconds, strict=True):
        assert Clock(limit=1.01 * needed / 0.85).choose(found, work) == effort
    assert Clock(limit=0.1).choose(found, work) == found[-1]
    assert Clock().choose(found, work) == whole


def test_a_region_is_where_the_networks_hold_it_for_likely_on_average():
    """No network is sure enough in the first voxel; in the second one is, and so sure that it is enough."""
    ensemble = Ensemble.__new__(Ensemble)
    ensemble.settings = Settings("regions", (), ())
    ensemble.labels = LabelManager({"background": 0, "whole": [1, 2], "inner": 2}, [1, 2])
    ensemble.usual_spacing = []
    found = [np.array(one, np.float16).reshape(2, 1, 1, 2) for one in ([[0.4, 0.9], [0, 0]], [[0.4, 0.3], [0, 0.4]])]
    ensemble.networks = [SimpleNamespace(predict=lambda *_, one=one, **__: one) for one in found]
    image = np.zeros((1, 1, 1, 2), np.float32)
    assert ensemble.predict(image, {"spacing": [1.0] * 3}, Clock(), print).ravel().tolist() == [0, 1]


def test_a_limit_that_is_reached_fails_in_python():
    """OpenBLAS ends the process where it gets no memory, at its first product."""
    code = """
import numpy as np
import scipy.linalg
from nnunet_plugins import memory
memory.keep_within(memory._sizes()["RssAnon"] + 4 * 2**20)
one = np.ones((200, 200))
print(np.dot(one, one)[0, 0], scipy.linalg.blas.dgemm(1.0, one, one)[0, 0], flush=True)
try:
    np.ones(10**8)
except MemoryError:
    print("told")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "200.0 200.0\ntold\n", result.stderr


def test_too_little_memory_is_told(cheap, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    large = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(160, 200, 200)).astype(np.float32))
    for channel in range(2):
        sitk.WriteImage(large, str(inputs / f"large_{channel:04}.nii.gz"), False)
    code = f"""
import sys
from nnunet_plugins import memory
from nnunet_plugins.submission import inference

load = inference._load

def load_and_limit(*arguments):
    memory.container_limit = lambda: None
    ensemble = load(*arguments)
    limit = memory._sizes()["RssAnon"] + 100 * 2**20
    memory.container_limit = lambda: limit
    memory.keep_within(limit)
    return ensemble

inference._load = load_and_limit
sys.exit(inference.main(["-i", {str(inputs)!r}, "-o", {str(tmp_path / "out")!r}, "--model", {str(cheap / "model")!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "large FAILED" in result.stdout
    assert "out of memory: " in result.stdout
    assert "the container's limit is" in result.stdout
    assert "Traceback" not in result.stderr


def test_the_limits_of_containers(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/user/session\n")
    assert memory.container_limit(tmp_path, own) is None
    (tmp_path / "user" / "session").mkdir(parents=True)
    (tmp_path / "user" / "session" / "memory.max").write_text("max\n")
    (tmp_path / "user" / "memory.max").write_text(f"{2**32}\n")
    assert memory.container_limit(tmp_path, own) == 2**32
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert memory.container_limit(tmp_path, own) == 2**30
    first = tmp_path / "first"
    (first / "memory" / "docker").mkdir(parents=True)
    own.write_text("5:memory:/docker\n4:cpu:/\n")
    (first / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert memory.container_limit(first, own) is None
    (first / "memory" / "docker" / "memory.limit_in_bytes").write_text(f"{2**31}\n")
    assert memory.container_limit(first, own) == 2**31


# Where platforms put their images.


def sockets(**options) -> Settings:
    settings = Settings("name", (), CHANNELS, layout="sockets", inputs=("t1-mri", "flair-mri"), output="lesions")
    return replace(settings, **options)


def place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    return path


def test_sockets_with_one_image_each(tmp_path):
    one = place(tmp_path / "images" / "t1-mri" / "abc.mha")
    two = place(tmp_path / "images" / "flair-mri" / "xyz.mha")
    (case,) = find_cases(sockets(), tmp_path, Path("out"))
    assert case.images == (one, two)
    assert case.output == Path("out/images/lesions/abc.mha")


def test_sockets_follow_the_platforms_own_list(tmp_path):
    one = place(tmp_path / "elsewhere" / "abc.tif")
    two = place(tmp_path / "images" / "flair-mri" / "xyz.mha")
    entries = [
        {"interface": {"slug": "t1-mri", "relative_path": "elsewhere"}},
        {"socket": {"slug": "flair-mri", "relative_path": "images/flair-mri"}},
    ]
    (tmp_path / "inputs.json").write_text(json.dumps(entries))
    (case,) = find_cases(sockets(), tmp_path, Path("out"))
    assert case.images == (one, two)


def test_a_missing_socket_is_named(tmp_path):
    place(tmp_path / "images" / "t2-mri" / "abc.mha")
    with pytest.raises(Exception, match=r"the input socket 't1-mri', is missing; sockets with images: t2-mri"):
        find_cases(sockets(), tmp_path, Path("out"))


def test_several_images_in_a_socket_belong_together_by_name(tmp_path):
    for slug, names in {"t1-mri": "ab", "flair-mri": "bc"}.items():
        for name in names:
            place(tmp_path / "images" / slug / f"{name}.mha")
    found = {case.name: case.fault for case in find_cases(sockets(), tmp_path, Path("out"))}
    assert found["b"] == ""
    assert "flair-mri" in found["a"]
    assert "t1-mri" in found["c"]


def test_case_folders(tmp_path):
    settings = sockets(layout="case folders", inputs=("t1c", "t2f"), output="")
    one = place(tmp_path / "BraTS-001" / "BraTS-001-t1c.nii.gz")
    two = place(tmp_path / "BraTS-001" / "BraTS-001-t2f.nii.gz")
    place(tmp_path / "BraTS-001" / "BraTS-001-t1n.nii.gz")
    place(tmp_path / "BraTS-002" / "BraTS-002-t1c.nii.gz")
    whole, lacking = find_cases(settings, tmp_path, Path("out"))
    assert (whole.name, whole.images, whole.output) == ("BraTS-001", (one, two), Path("out/BraTS-001.nii.gz"))
    assert "no file ...-t2f.nii.gz" in lacking.fault


def test_settings_survive_their_file(tmp_path):
    first = Member("low", ("0", "all"), "checkpoint_best.pth")
    settings = sockets(
        members=(Member("high", ("0",), "checkpoint_final.pth", first),), postprocessing=({"labels_or_regions": [1]},)
    )
    (tmp_path / FILE).write_text(json.dumps(settings.as_json()))
    assert read_settings(tmp_path) == settings
    content = settings.as_json()
    del content["whole_volume"]  # as exports of before have it
    (tmp_path / FILE).write_text(json.dumps(content))
    assert read_settings(tmp_path) == settings
    (tmp_path / FILE).write_text(json.dumps({**content, "whole_volume": "auto"}))
    assert read_settings(tmp_path).whole_volume == "auto"
    (tmp_path / FILE).write_text(json.dumps({**content, "whole_volume": "perhaps"}))
    with pytest.raises(InputError, match="'whole_volume' has to be null or one of always, auto"):
        read_settings(tmp_path)


def test_cases_go_through_the_networks_in_one_pass(cheap, images, tmp_path, capsys):
    """As the settings say, which the log tells; a time limit, which counts tiles, is refused."""
    model = shutil.copytree(cheap / "model", tmp_path / "model")
    settings = json.loads((model / FILE).read_text())
    (model / FILE).write_text(json.dumps({**settings, "whole_volume": "auto"}))
    given = ["-i", str(images), "--device", "cpu", "--model", str(model), "-o"]
    assert predict([*given, str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out.count("voxels in one pass") == 2
    assert predict([*given, str(tmp_path / "limited"), "--seconds-per-case", "9"]) == 2
    assert "--seconds-per-case counts tiles" in capsys.readouterr().out


# What is exported.


def test_the_folder_holds_what_it_says(folder, trained):
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    assert {"README.md", "MODEL_CARD.md", "predict.sh", "inference.py", "requirements.txt"} < files
    assert manifest["versions"]["nnunetv2"] == metadata.version("nnunetv2")
    assert str(trained.root) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    for path in folder.rglob("*.pth"):
        assert set(torch.load(path, weights_only=False)) == {
            "network_weights",
            "trainer_name",
            "init_args",
            "inference_allowed_mirroring_axes",
        }
    card = (folder / "MODEL_CARD.md").read_text()
    for text in ("An ensemble of 2 networks", "T1, FLAIR", "outer (1), inner (2)", "10.6 million", "arXiv:2006.15578"):
        assert text in card
    assert "only the largest component is kept of outer, inner; then of inner" in card
    assert card.count("(too few cases for an interval)") == 2, "the Dice of two validations, of two cases each"


def test_the_card_takes_a_benchmarks_figures(trained, tmp_path):
    record = make_record(algorithms=["nnUNetTrainer", STOCK, FIRENET], ensemble=True, own_plan=True)
    results = record.results.assign(dataset=DATASET)
    ours = results["plans"] == "nnUNetPlans"
    replace(record, results=results.assign(plans=results["plans"].where(~ours, "small"))).write(tmp_path / "record")
    export(trained, tmp_path / "out", *ENSEMBLE, "-f", 0, "--benchmark", tmp_path)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    lines = [line for line in card.splitlines() if "cross-validation" in line and line.startswith("|")]
    assert [line.split("|")[1].strip().split(",")[0] for line in lines] == [STOCK, FIRENET, "ensemble of the two best"]
    assert "| network | cases | Dice | ASSD_mm | HD95_mm | NSD |" in card
    mean = score(results[results["algorithm"] == FIRENET]).by_case("Dice").mean().iloc[0]
    assert f"| 20 | {mean:.3f} (" in lines[1]
    assert "From a benchmark of these networks" in card
    message = export(
        trained, tmp_path / "none", "-tr", STOCK, "-c", "3d_fullres", "--benchmark", tmp_path / "x", ok=False
    )
    assert "is no folder" in message


def test_the_pairs_own_postprocessing_is_taken(trained, tmp_path):
    (pair,) = (trained.results / DATASET / "ensembles").glob("ensemble___*")
    file = pair / "postprocessing.json"  # nnU-Net writes it if the pair is the best
    before = file.read_text() if file.exists() else None
    steps = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}],
    }
    try:
        file.write_text(json.dumps(steps))
        # The order of the pair does not matter.
        export(trained, tmp_path / "pair", "-tr", STOCK, "--ensemble-with", FIRENET)
        assert read_settings(tmp_path / "pair" / "model").postprocessing == ({"labels_or_regions": [1, 2]},)
        export(trained, tmp_path / "without", "-tr", STOCK, "--ensemble-with", FIRENET, "--no-postprocessing")
        assert read_settings(tmp_path / "without" / "model").postprocessing == ()
        file.write_text(json.dumps({**steps, "postprocessing_fns": ["fill_holes"]}))
        message = export(trained, tmp_path / "unknown", "-tr", STOCK, "--ensemble-with", FIRENET, ok=False)
        assert "asks for 'fill_holes'" in message
    finally:
        file.unlink()
        if before is not None:
            file.write_text(before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-tr", "nnUNetTrainerFIRENet"], "is missing; trained for this dataset: nnUNetTrainerFIRENet_1epochs"),
        (["-tr", FIRENET, "-f", "0", "3"], "has no checkpoint_final.pth in fold 3; folds that have one: 0, 1"),
        (["-tr", FIRENET, "-f", "0", "0"], "-f 0 0 names a fold twice"),
        (["-tr", FIRENET, "-chk", "checkpoint_latest.pth"], "has no checkpoint_latest.pth in fold 0, 1"),
        (["-tr", FIRENET, "--ensemble-with", FIRENET], "stands in the ensemble twice"),
        (["-tr", FIRENET, "--ensemble-with", "a:b:c:d"], "is not TRAINER, TRAINER:CONFIGURATION"),
        (["-tr", FIRENET, "--platform", "grand-challenge"], "one slug for each of the 2 channels (T1, FLAIR)"),
        (["-tr", FIRENET, "--platform", "grand-challenge", *SOCKETS[:3]], "needs --output-socket"),
        (["-tr", FIRENET, "--platform", "docker", *SOCKETS], "has no sockets"),
        (["-tr", FIRENET, "--separate-model"], "no image to leave the model out of"),
        (["-tr", FIRENET, "--platform", "mlcube", "--input-suffix", "t1"], "one suffix for each channel"),
        (["-tr", FIRENET, "--name", "a'b"], "cannot be a name"),
        (["-tr", FIRENET, "--whole-volume", "--seconds-per-case", "9"], "--seconds-per-case counts tiles"),
        (["-tr", FIRENET, "--package", "no-such-package"], "no-such-package is needed, but not installed"),
        (["-tr", FIRENET, "--benchmark", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_exported(options, reason, trained, tmp_path):
    assert reason in export(trained, tmp_path / "out", *options, ok=False)
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_folds_of_other_plans_are_refused(trained, tmp_path):
    model = trained.results / DATASET / f"{STOCK}__small__3d_fullres"
    path = model / "plans.json"
    before = path.read_text()
    plans = json.loads(before)
    plans["configurations"]["3d_fullres"]["patch_size"] = [32, 32, 32]
    try:
        path.write_text(json.dumps(plans))
        message = export(trained, tmp_path / "out", "-tr", STOCK, ok=False)
    finally:
        path.write_text(before)
    assert "was trained with other plans than" in message
    assert "patch_size is" in message
    description = model / "dataset.json"
    before = description.read_text()
    try:
        description.write_text(before.replace('"inner"', '"core"'))
        message = export(trained, tmp_path / "out", *ENSEMBLE, ok=False)
    finally:
        description.write_text(before)
    assert "cannot be one ensemble: labels is" in message


@pytest.fixture(scope="module")
def twin(trained: Sandbox) -> Path:
    """Images of a twin whose first channel is prepared, and a U-Net as if it had been trained on that."""
    clahe = ("--scheme", "clahe", "--tile", 6, 6, 6, "--clip-limit", 0.2, "--channel", 0)
    trained.run("nnunet-plugins", "prepare-images", "-d", 1, "-o", 401, *clahe)
    model = f"{STOCK}__small__3d_fullres"
    shutil.copytree(trained.results / DATASET / model, trained.results / TWIN / model)
    shutil.copy(trained.raw / TWIN / "dataset.json", trained.results / TWIN / model)
    return trained.raw / TWIN / "imagesTs"


@pytest.fixture(scope="module")
def of_twin(trained: Sandbox, twin: Path) -> Path:
    """One fold of the twin's network."""
    output = trained.root / "of twin"
    export(trained, output, "-d", 401, "-tr", STOCK, "-f", 0, "--fast")
    return output


def test_a_twins_network_gets_images_that_are_prepared_as_it_knows_them(of_twin, images, trained, tmp_path, capsys):
    """What it makes of images as they are is what nnU-Net's command makes of prepared ones."""
    prepared, model = tmp_path / "prepared", of_twin / "model" / f"{STOCK}__small__3d_fullres"
    trained.run("nnunet-plugins", "prepare-images", "-i", images, "-o", prepared, "--like", model / "dataset.json")
    options = ("-f", 0, "-step_size", 0.75, "--disable_tta", "-device", "cpu", "-npp", 1, "-nps", 1)
    for given in (prepared, images):
        output = tmp_path / f"{given.name} by nnU-Net"
        trained.run("nnUNetv2_predict_from_modelfolder", "-i", given, "-o", output, "-m", model, *options)
    assert predict(["-i", str(images), "-o", str(tmp_path / "out")], models=of_twin / "model") == 0
    assert "Images are prepared as for the training: clahe" in capsys.readouterr().out
    for name in ("case_5.nii.gz", "case_6.nii.gz"):
        found = read(tmp_path / "out" / name)
        assert np.array_equal(found, read(tmp_path / "prepared by nnU-Net" / name))
        assert not np.array_equal(found, read(tmp_path / "imagesTs by nnU-Net" / name)), "so that it is a proof"
    assert "T1: clahe, tile 6 x 6 x 6, clip limit 0.2 (scikit-image " in (of_twin / "MODEL_CARD.md").read_text()


def test_another_scikit_image_than_that_of_the_training_is_told(of_twin, images, trained, tmp_path, capsys):
    """By the export, which takes the packages along, and by the log of what was exported."""
    told = "prepared with scikit-image 0.1, and here is"
    model = trained.results / TWIN / f"{STOCK}__small__3d_fullres"
    description = model / "dataset.json"
    before = description.read_text()
    content = json.loads(before)
    content["nnunet_plugins_preparation"]["scikit_image"] = "0.1"
    try:
        description.write_text(json.dumps(content))
        output = export(trained, tmp_path / "older", "-d", 401, "-tr", STOCK, "-f", 0, "--fast")
    finally:
        description.write_text(before)
    assert told in output
    assert "pip install scikit-image==0.1, and export again" in output
    assert predict(["-i", str(images), "-o", str(tmp_path / "out")], models=tmp_path / "older" / "model") == 0
    assert f"WARNING: the training images were {told}" in capsys.readouterr().out
    assert predict(["-i", str(images), "-o", str(tmp_path / "same")], models=of_twin / "model") == 0
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize("spoil", [spoil_nan, spoil_constant])
def test_an_image_that_cannot_be_prepared_costs_no_other(spoil, of_twin, images, tmp_path, capsys):
    inputs = shutil.copytree(images, tmp_path / "in")
    spoil(inputs / "case_5_0000.nii.gz")
    code = predict(["-i", str(inputs), "-o", str(tmp_path / "out")], models=of_twin / "model")
    told = capsys.readouterr().out
    if spoil is spoil_nan:
        assert code == 1
        assert "1/2 case_5 FAILED" in told
        assert "case_5_0000.nii.gz holds NaN or infinite intensities" in told
    else:
        assert code == 0
        assert "case_5_0000.nii.gz is left as it is: it is constant" in told
    assert (tmp_path / "out" / "case_6.nii.gz").is_file()


def test_what_is_prepared_already_is_not_prepared_again(of_twin, twin, trained, tmp_path, capsys):
    assert predict(["-i", str(twin), "-o", str(tmp_path)], models=of_twin / "model") == 2
    told = "prepared already (clahe, tile 6 x 6 x 6, clip limit 0.2, channel 0 alone), which is done here"
    assert told in capsys.readouterr().out
    text = trained.run("nnunet-plugins", "export-submission", "--check", of_twin, "-i", twin, ok=False)
    assert "give those as they were with -i" in text


def test_nothing_is_overwritten(folder, trained):
    assert "exists already" in export(trained, folder, *ENSEMBLE, ok=False)


def test_the_own_wheel_is_what_is_installed(tmp_path):
    wheel = wheels.write_own_wheel(tmp_path)
    again = wheels.write_own_wheel(tmp_path)
    assert wheel == again
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        package = {name for name in names if name.startswith("nnunet_plugins/")}
        start = archive.read("nnunet_plugins.pth").decode()
    ours = [path for path in (ROOT / "nnunet_plugins").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    startup = {"nnunet_plugins/nnunet_plugins.pth", "nnunet_plugins/nnunet_plugins.start"}
    assert package == {path.relative_to(ROOT).as_posix() for path in ours} - startup
    assert start == (ROOT / "nnunet_plugins" / "nnunet_plugins.pth").read_text()
    assert "nnunet_plugins.start" in names


def test_another_packages_wheel_is_what_is_installed(tmp_path, monkeypatch):
    """A network's package may have come from a checkout or a file that is gone."""
    site, info = tmp_path / "site", "my_lab-1.2.dist-info"
    contents = {
        "mylab/__init__.py": "ROWS = 3\n",
        "mylab/__pycache__/__init__.pyc": "",
        "../../bin/mylab": "#!/nowhere\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: my-lab\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/direct_url.json": '{"url": "file:///gone.whl", "archive_info": {}}',
        f"{info}/entry_points.txt": "[nnunet_plugins.backbones]\nmylab = mylab:ROWS\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*contents, f"{info}/RECORD"])
    for name, text in contents.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    (tmp_path / "wheels").mkdir()
    wheel = wheels.write_wheel("my-lab", tmp_path / "wheels")
    assert wheels.matching({"my-lab": "1.2"}, tmp_path / "wheels") == {"my-lab": wheel}
    assert wheels.matching({"numpy": "2.3.0"}, tmp_path / "wheels") == {}, "it is there when the others are collected"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, str(tmp_path / "there"), str(wheel)], check=True)
    assert (tmp_path / "there" / "mylab" / "__init__.py").read_text() == "ROWS = 3\n"
    assert (tmp_path / "there" / info / "entry_points.txt").is_file()


def test_the_lock_holds_all_that_is_needed():
    versions = wheels.locked()
    assert {"nnunet-plugins", "nnunetv2", "torch", "simpleitk", "numpy"} <= set(versions)
    assert "pytest" not in versions, "what only developers need"
    assert versions["nnunetv2"] == metadata.version("nnunetv2")


def test_a_build_of_torch_for_cpus_is_asked_for_as_such(tmp_path, monkeypatch):
    """The usual index would give the one for GPUs under the same version."""
    versions = {"numpy": "2.3.0", "torch": "2.9.0+cpu"}
    for name in ("numpy-2.3.0-cp311-cp311-linux_x86_64.whl", "torch-2.9.0-cp311-cp311-linux_x86_64.whl"):
        (tmp_path / name).touch()
    assert list(wheels.matching(versions, tmp_path)) == ["numpy"]
    asked: list[list[str]] = []
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, check: asked.append(command))
    wheels.collect(versions, tmp_path)
    assert asked[0][-3:] == ["--extra-index-url", "https://download.pytorch.org/whl/cpu", "torch==2.9.0+cpu"]
    wheels.write_requirements(versions, tmp_path, tmp_path / "requirements.txt")
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    assert lines == ["--extra-index-url https://download.pytorch.org/whl/cpu", "numpy==2.3.0", "torch==2.9.0+cpu"]

    (tmp_path / "torch-2.9.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert list(wheels.matching(versions, tmp_path)) == ["numpy", "torch"]
    wheels.write_requirements(versions, tmp_path, tmp_path / "requirements.txt")
    assert (tmp_path / "requirements.txt").read_text().startswith("numpy==2.3.0 --hash=sha256:")


# What the check proves.


@pytest.mark.parametrize(
    ("platform", "options"),
    [
        # Of one fold: test_predicts_as_nnunets_own_commands has several.
        ("grand-challenge", (*ENSEMBLE, "-f", 0, *SOCKETS, "--separate-model", "--output-type", "int16")),
        (
            "mlcube",
            ("-d", 401, "-f", 0, "-tr", STOCK, "--fast", "--whole-volume", "--input-suffix", "t1n", "t2f"),
        ),
    ],
)
def test_check_proves_a_submission(platform, options, trained, twin, images, tmp_path):
    """Of a twin's network it takes images of the dataset that the twin is of."""
    output = tmp_path / platform
    export(trained, output, "--platform", platform, *options)
    given = () if 401 in options else ("-i", images)
    text = trained.run("nnunet-plugins", "export-submission", "--check", output, "--cases", 1, *given)
    whose = "nnunet-plugins predict" if "--whole-volume" in options else "nnU-Net"
    assert f"case_5: the same labels as {whose}'s, in every voxel" in text
    assert "its base image is pinned: python:3." in text
    assert "without a network" in text
    assert "What only a real Docker shows" in text
    assert "0 problems" in text


SPOILT = {
    "submission/ensemble.py": {"result = np.asarray(result)": "result = np.asarray(result) + 1"},
    "images/writing.py": {
        "    if written.GetPixelID() == kind": "    written = written[int('case_6' in other.name) :]\n    if False",
        "converted.SetSpacing(geometry.spacing)": "converted.SetSpacing([2 * size for size in geometry.spacing])",
        "converted.SetOrigin(geometry.origin)": "converted.SetOrigin([place + 1 for place in geometry.origin])",
        "converted.SetDirection(geometry.direction)": "converted.SetDirection([-n for n in geometry.direction])",
    },
}
"""What is wrong with a prediction: all labels, where they lie, and the size of one case, whose labels are not looked at
then."""


def test_check_of_another_prediction_fails(cheap, images, trained, tmp_path):
    spoilt = shutil.copytree(cheap, tmp_path / "spoilt")
    path = next((spoilt / "wheels").glob("*.whl"))
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for module, changes in SPOILT.items():
        for old, new in changes.items():
            before = files[f"nnunet_plugins/{module}"]
            files[f"nnunet_plugins/{module}"] = before.replace(old.encode(), new.encode())
            assert files[f"nnunet_plugins/{module}"] != before
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    text = trained.run("nnunet-plugins", "export-submission", "--check", spoilt, "--cases", 2, "-i", images, ok=False)
    assert "case_5: 7920 voxels have another label than nnU-Net gives them" in text
    assert "case_6: size (21, 20, 18) instead of the image's (22, 20, 18)" in text
    assert "case_5: spacing (2.0, 2.0, 3.0) instead of the image's (1.0, 1.0, 1.5)" in text
    assert "case_5: origin (1.0, 1.0, 1.0) instead of the image's (0.0, 0.0, 0.0)" in text
    assert "case_5: direction (-1.0, " in text
    assert f"wheels/{path.name} is not as it was exported" in text


def test_check_of_files(cheap, tmp_path):
    folder = shutil.copytree(cheap, tmp_path / "folder")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert [finding.level for finding in check_files(folder, files)] == ["ok"]
    (folder / "inference.py").write_text("")
    (folder / "predict.sh").unlink()
    (folder / "notes.txt").touch()
    assert [finding.text for finding in check_files(folder, files)] == [
        "predict.sh is missing",
        "inference.py is not as it was exported",
        "1 files were not exported, notes.txt first of all",
    ]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("user inference.py", "user gone.py", "it copies gone.py, which is not in the folder"),
        ("source=wheels", "source=packages", "it copies packages, which is not in the folder"),
        ("USER user", "USER root", "it runs as root"),
        ("USER user", "", "it runs as root"),
        ('ENTRYPOINT ["python"', 'RUN ["python"', "it starts nothing"),
        (f"python:{sys.version.split()[0]}-slim", "python:latest", "may be another one tomorrow"),
        ("FROM --platform=linux/amd64 python:", "FROM registry:5000/python # ", "may be another one tomorrow"),
    ],
)
def test_check_of_dockerfiles(old, new, reason, trained, cheap, tmp_path):
    folder = trained.root / "docker"
    if not folder.exists():
        export(trained, folder, "-tr", STOCK, "-f", 0, "--platform", "docker")
        assert {finding.level for finding in check_dockerfile(folder)} == {"ok"}
    changed = shutil.copytree(folder, tmp_path / "changed")
    file = changed / "Dockerfile"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert reason in " ".join(finding.text for finding in check_dockerfile(changed) if finding.level != "ok")


def test_check_of_what_docker_ignores(trained, tmp_path):
    folder = tmp_path / "docker"
    export(trained, folder, "-tr", STOCK, "-f", 0, "--platform", "docker")
    (folder / ".dockerignore").write_text("*.py\n")
    assert "inference.py, which .dockerignore leaves out" in " ".join(f.text for f in check_dockerfile(folder))


def test_predict_script(cheap, images, tmp_path):
    """It makes its own environment; here with the packages of this one, which are not shipped."""
    copy = shutil.copytree(cheap, tmp_path / "folder")
    site = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", site], check=True)
    library = next((site / "lib").glob("python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", site / "bin" / "python", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, *(copy / "wheels").glob("*.whl")], check=True)
    (library / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]))
    (site / "ready").touch()
    users = copy / "model" / "trainers" / "0"
    users.mkdir(parents=True)
    (users / "a.py").touch()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet_", "PYTHONDONT"))}
    output = tmp_path / "out"
    command = [copy / "predict.sh", images, output, "--device", "cpu"]
    result = subprocess.run(command, env={**clean, "VENV": str(site)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(path.name for path in output.iterdir()) == ["case_5.nii.gz", "case_6.nii.gz"]
    assert [path.name for path in users.iterdir()] == ["a.py"]  # or the folder would not be as it was exported
    assert subprocess.run([copy / "predict.sh"], capture_output=True, text=True).stdout.startswith(
        "Segments all images"
    )


def test_scripts_are_valid_shell(trained, tmp_path):
    for platform in PLATFORMS:
        options = SOCKETS if platform == "grand-challenge" else ()
        export(trained, tmp_path / platform, "-tr", STOCK, "-f", 0, "--platform", platform, *options)
        scripts = sorted((tmp_path / platform).glob("*.sh"))
        assert scripts
        for script in scripts:
            assert os.access(script, os.X_OK)
            subprocess.run(["bash", "-n", script], check=True)
    config = (tmp_path / "mlcube" / "mlcube.yaml").read_text()
    assert "infer:" in config
    assert "data_path/CASE/CASE-SUFFIX.nii.gz, suffixes T1, FLAIR" in config


def test_an_unusual_spacing_is_told(cheap, images, tmp_path, capsys):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for path in images.glob("case_5_*"):
        image = sitk.ReadImage(str(path))
        image.SetSpacing((1.0, 1.0, 5.0))
        sitk.WriteImage(image, str(inputs / path.name))
    assert predict(["-i", str(inputs), "-o", str(tmp_path / "out")], models=cheap / "model") == 0
    assert "the spacing is unlike that of the training images, about 1.5 x 1 x 1 mm" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [False, True])
def test_an_image_larger_than_the_patch_is_told_where_the_network_takes_it_for_the_whole(
    cheap, images, tmp_path, monkeypatch, capsys, whole
):
    monkeypatch.setattr(trainer_class(STOCK), "needs_whole_images", whole, raising=False)
    inputs = tmp_path / "in"
    inputs.mkdir()
    for case, length in ((5, 3.0), (6, 1.0)):  # 36 and 12 slices, where the patch has 20
        for path in images.glob(f"case_{case}_*"):
            image = sitk.ReadImage(str(path))
            image.SetSpacing((1.0, 1.0, length))
            sitk.WriteImage(image, str(inputs / path.name))
    assert predict(["-i", str(inputs), "-o", str(tmp_path / "out")], models=cheap / "model") == 0
    assert capsys.readouterr().out.count("WARNING: the image has 36x20x22 voxels, more than the ") == int(whole)


def test_as_mlcube_calls_it(trained, images, tmp_path):
    output, cases = tmp_path / "mlcube", tmp_path / "data"
    export(trained, output, "-tr", STOCK, "-f", 0, "--fast", "--platform", "mlcube", "--input-suffix", "t1n", "t2f")
    for number, suffix in enumerate(("t1n", "t2f")):
        (cases / "BraTS-5").mkdir(parents=True, exist_ok=True)
        shutil.copy(images / f"case_5_{number:04}.nii.gz", cases / "BraTS-5" / f"BraTS-5-{suffix}.nii.gz")
    options = [f"--data_path={cases}", "--parameters_file=parameters.yaml", f"--output_path={tmp_path / 'out'}"]
    assert predict(["infer", *options], models=output / "model") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["BraTS-5.nii.gz"]


def test_check_needs_a_submission(tmp_path, capsys):
    assert main(["export-submission", "--check", str(tmp_path)]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err
    assert main(["export-submission", "-d", "1"]) == 2
    assert "the folder to write with -o" in capsys.readouterr().err


# What else can be exported.


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, prepared: Sandbox) -> Model:
    return Model(Datasets(tmp_path_factory.mktemp("stages"), prepared), "nnUNetTrainer")


@pytest.mark.parametrize("configuration", ["3d_cascade_fullres", "2d"])
def test_other_configurations(configuration, stages, tmp_path):
    setting = Setting(configuration=configuration)
    before = ("-prev_stage_predictions", stages.predicted_low) if configuration == "3d_cascade_fullres" else ()
    stages.train(setting, fold="all")
    expected = stages.predict(f"submission {configuration}", *before, setting=setting, folds=["all"])
    output = tmp_path / "submission"
    command = ("export-submission", "-d", 1, "-tr", stages.trainer, "-c", configuration, "-p", "small", "-f", "all")
    stages.data.run("nnunet-plugins", *command, "--no-wheels", "-o", output)
    if before:  # the first stage may be a member as well
        both = ("--ensemble-with", f"{stages.trainer}:3d_lowres", "--no-wheels", "-o", tmp_path / "both")
        stages.data.run("nnunet-plugins", *command, *both)
        assert len(list((tmp_path / "both" / "model").glob("*__3d_lowres"))) == 1
    previous = read_settings(output / "model").members[0].previous
    assert (previous is not None) == bool(before)
    assert previous is None or previous.folder.endswith("__3d_lowres")
    options = ["-i", str(stages.images()), "-o", str(tmp_path / "out"), "--seconds-per-case", "10000"]
    assert predict(options, models=output / "model") == 0
    for file in sorted(expected.glob("*.nii.gz")):
        assert np.array_equal(read(tmp_path / "out" / file.name), read(file))


def test_users_own_trainers_are_shipped(trained, images, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "constants.txt").touch()
    (own / ".git").mkdir()
    (own / "__pycache__").mkdir()
    (own / "my_trainers.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n"
        "class nnUNetTrainerMine(nnUNetTrainer):\n"
        "    def __init__(self, plans, configuration, fold, dataset_json, device):\n"
        "        super().__init__(plans, configuration, fold, dataset_json, device)\n"
        "        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1\n"
    )
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", "nnUNetTrainerMine", "-p", "small", "-device", "cpu")
    trained.run(*command, nnUNet_extTrainer=str(own))
    output = tmp_path / "submission"
    command = ("export-submission", "-d", 1, "-tr", "nnUNetTrainerMine", "-p", "small", "-f", 0, "--no-wheels")
    trained.run("nnunet-plugins", *command, "-o", output, nnUNet_extTrainer=str(own))
    assert [path.name for path in (output / "model" / "trainers" / "0").iterdir()] == ["my_trainers.py"]
    shutil.rmtree(own)
    assert predict(["-i", str(images), "-o", str(tmp_path / "out")], models=output / "model") == 0


def test_trainers_copied_into_nnunet_are_refused():
    copied = type("nnUNetTrainerCopied", (), {"__module__": "nnunetv2.training.nnUNetTrainer.variants.copied"})
    with pytest.raises(InputError, match="was copied into nnU-Net's own folder"):
        require_released(copied)
    require_released(nnUNetTrainer)


def test_the_benchmark_of_fast_inference(cheap, images):
    script = [commands() / "python", ROOT / "benchmarks" / "fast_inference.py"]
    command = [*script, cheap, cheap, images, images.with_name("labelsTs")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| 2 |") == 2
    assert "times as fast, Dice +0.0000 (cpu" in result.stdout
