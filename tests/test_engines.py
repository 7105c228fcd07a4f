"""Networks as ONNX files: every row is exported, engines compute what PyTorch does, other models are refused."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import SimpleITK as sitk
import torch
from conftest import Sandbox, full_disk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch.testing import assert_close

from nnunet_plugins import memory
from nnunet_plugins.arguments import ENGINES
from nnunet_plugins.cli import main
from nnunet_plugins.engines.export import OPSET, compare, make_model, network_of, require_types
from nnunet_plugins.engines.network import EngineNetwork, open_file
from nnunet_plugins.engines.origin import files_of, read_origin, write_origin
from nnunet_plugins.errors import InputError
from nnunet_plugins.models.sources import Choice, Source, find_model
from nnunet_plugins.registry import BACKBONES
from nnunet_plugins.rows import Backbone
from nnunet_plugins.testing.plans import build, image, networks
from nnunet_plugins.testing.training import plans_and_dataset
from nnunet_plugins.trainers.checkpoints import load_checkpoint


def different_networks() -> list[Backbone]:
    """One row per network that computes in a way of its own: not in dropout, and not in how often it does the same."""

    def kind(row: Backbone) -> tuple[object, ...]:
        options = {**row.options, **row.narrow}
        several = ("dropout", "kernel", "blocks", "ratios")
        shown = {key: bool(value) if key == "autofocus_layers" else value for key, value in options.items()}
        return row.network, *(f"{key} {value}" for key, value in sorted(shown.items()) if key not in several)

    rows = [row for row in networks(BACKBONES) if not row.fitted]
    return list({kind(row): row for row in rows}.values())


ALWAYS = ("FIRENet", "AutofocusUNet", "ASPP3DUNet", "DeepMedic", "AttentionUNet", "VNet", "MedNeXtS", "FCN8s")
"""Which are exported in every run, as an export takes seconds: together they have the layers of all others.

Those of the others, and of the other dimension, are `pytest -m matrix tests/test_engines.py`.
"""


def plans() -> Iterator[tuple[Backbone, str, bool]]:
    for row in different_networks():
        for plan in ("3d anisotropic", "2d odd"):
            if int(plan[0]) in row.dimensions:
                largest = plan.startswith(f"{max(row.dimensions)}d")
                yield row, plan, largest and row.trainer.removeprefix("nnUNetTrainer") in ALWAYS


CASES = [
    pytest.param(row, plan, marks=() if always else pytest.mark.matrix, id=f"{row.trainer} {plan}")
    for row, plan, always in plans()
]


@pytest.mark.parametrize(("row", "plan"), CASES)
def test_onnxruntime_computes_what_torch_does(row, plan, tmp_path, request):
    if row.trainer not in (request.config.getoption("row") or [row.trainer]):
        pytest.skip("another row was asked for")
    # Of a fabric one cell has all that the others have.
    options = {**row.options, **row.narrow, **({"depth": 1} if row.trainer == "nnUNetTrainerFIRENet" else {})}
    network, images = build(row, plan, options=options).eval(), image(plan)
    file = tmp_path / "net.onnx"
    file.write_bytes(make_model(network, images).SerializeToString())
    run = open_file("onnxruntime", file)
    for batch in (images[:1], images):
        with torch.no_grad():
            expected = network(batch)
        found = torch.from_numpy(run(batch.numpy()))
        assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.argmax(1), expected.argmax(1))


DATASET, TRAINER = "Dataset001_Small", "nnUNetTrainer_1epochs_20iterations_1seed"
MODEL = ("-d", "1", "-c", "3d_fullres", "-p", "small", "-tr", TRAINER)


@pytest.fixture(scope="module")
def trained(small: Sandbox) -> Sandbox:
    """nnU-Net's U-Net, trained by its own command; a second fold, made of it; their files, one in half precision."""
    small.train(DATASET, "3d_fullres", TRAINER)
    checkpoint = load_checkpoint(fold(small, 0) / "checkpoint_final.pth", trusted=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in checkpoint["network_weights"].items():
        checkpoint["network_weights"][name] = weight * (1 + 0.1 * torch.rand(weight.shape, generator=generator))
    fold(small, 1).mkdir()
    torch.save(checkpoint, fold(small, 1) / "checkpoint_final.pth")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, small.env[name])
        assert main(["export-onnx", *MODEL, "-f", "0"]) == 0
        assert main(["export-onnx", *MODEL, "-f", "1", "--half", "-o", str(beside(small, 1))]) == 0
        yield small


def fold(sandbox: Sandbox, number: int) -> Path:
    return sandbox.results / DATASET / f"{TRAINER}__small__3d_fullres" / f"fold_{number}"


def beside(sandbox: Sandbox, number: int) -> Path:
    return fold(sandbox, number) / "checkpoint_final.onnx"


def predict(sandbox: Sandbox, output: Path, *more: object, engine="onnxruntime") -> int:
    images = sandbox.raw / DATASET / "imagesTs"
    return main(["predict", "-i", str(images), "-o", str(output), *MODEL, "--engine", engine, *map(str, more)])


@pytest.mark.slow
def test_labels_are_those_of_nnunet(trained, tmp_path):
    trained.predict(1, "3d_fullres", TRAINER, tmp_path / "theirs")
    for engine in ENGINES:
        assert predict(trained, tmp_path / engine, "-f", "0", engine=engine) == 0
        for file in (tmp_path / "theirs").glob("*.nii.gz"):
            ours, theirs = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / who / file.name))) for who in (engine, "theirs")
            )
            assert len(np.unique(theirs)) > 1
            assert np.array_equal(ours, theirs)


def source(*folds: str) -> Source:
    return find_model("1", Choice(TRAINER, "3d_fullres", "small"), folds, "checkpoint_final.pth")


@pytest.mark.slow
def test_each_fold_has_its_file_in_whatever_order_they_are_given(trained, tmp_path):
    files = [Path(shutil.copy(beside(trained, number), tmp_path / f"{number}.onnx")) for number in range(2)]
    assert files_of(source("0", "1"), files[::-1]) == files
    assert files_of(source("1", "0"), ()) == [beside(trained, 1), beside(trained, 0)]
    x = torch.randn(1, 1, *source("0").configuration.patch_size)
    network = EngineNetwork("onnxruntime", files)
    logits = []
    for state in network.states():
        network.load_state_dict(state)
        logits.append(network(x))
    assert all(found.dtype == torch.float32 for found in logits)
    for number, tolerance in enumerate((1e-4, 0.02)):
        with torch.no_grad():
            expected = network_of(source(str(number)), str(number))(x)
        assert_close(logits[number], expected, atol=tolerance, rtol=tolerance)
    assert (logits[0] - logits[1]).abs().max() > 0.1


def change(file: Path, copy: Path, **changes: str) -> Path:
    """Write a copy of a file that says something else of itself."""
    model = onnx.load(file)
    write_origin(model, {**read_origin(file), **changes})
    onnx.save(model, copy)
    return copy


@pytest.mark.slow
def test_files_that_do_not_fit_are_refused(trained, tmp_path, capsys):
    mine, images = beside(trained, 0), ("-f", "0", "--onnx")

    def said(*options: object, output="out") -> str:
        assert predict(trained, tmp_path / output, *options) == 2
        assert not (tmp_path / output).exists()
        return capsys.readouterr().err

    command = f"nnunet-plugins export-onnx -d {DATASET} -c 3d_fullres -p small -tr {TRAINER} -f 0"
    message = said(*images, beside(trained, 1))
    assert "fold_1/checkpoint_final.onnx is of another model: its fold is 1, and that of" in message
    assert f"fold 0, is 0. Make one that fits: {command}\n" in message
    other = {"checkpoint": "0" * 16, "trainer": "nnUNetTrainerVNet"}
    message = said(*images, change(mine, tmp_path / "vnet.onnx", **other))
    assert (
        f"vnet.onnx is of another model: its trainer is nnUNetTrainerVNet, and that of {mine.parent.parent}" in message
    )
    message = said(*images, change(mine, tmp_path / "again.onnx", checkpoint="0" * 16))
    assert f"again.onnx is of another model: its checkpoint is {'0' * 16}, and that of" in message
    message = said(*images, change(mine, tmp_path / "labels.onnx", labels='{"background": 0}'))
    assert "labels.onnx is of another model: its labels is" in message
    model = onnx.load(mine)
    write_origin(model, {})
    onnx.save(model, tmp_path / "silent.onnx")
    assert "silent.onnx does not say of which model it is" in said(*images, tmp_path / "silent.onnx")
    (tmp_path / "cut.onnx").write_bytes(mine.read_bytes()[:3000])
    assert "cut.onnx is no ONNX file that can be read, or is damaged" in said(*images, tmp_path / "cut.onnx")
    assert "nowhere.onnx is missing\n" in said(*images, tmp_path / "nowhere.onnx")
    assert "none of the files is of fold 1. Make one: " in said("-f", "0", "1", "--onnx", mine)
    copy = shutil.copy(mine, tmp_path / "copy.onnx")
    assert f"{mine} and {copy} are both of fold 0; give one of them" in said(*images, mine, copy)
    shutil.move(mine, tmp_path / "kept.onnx")
    try:
        assert f"checkpoint_final.onnx is missing. Make it: {command}\n" in said("-f", "0")
    finally:
        shutil.move(tmp_path / "kept.onnx", mine)


@pytest.mark.slow
def test_files_of_all_folds_are_looked_for_before_one_is_predicted(trained, tmp_path, capsys):
    shutil.move(beside(trained, 1), tmp_path / "kept.onnx")
    try:
        command = ("--cross-validation", "-o", str(tmp_path / "out"), *MODEL, "-f", "0", "1", "--engine", "onnxruntime")
        assert main(["predict", *command]) == 2
    finally:
        shutil.move(tmp_path / "kept.onnx", beside(trained, 1))
    assert f"{beside(trained, 1)} is missing. Make it: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_a_training_alone_reads_may_have_changed_in_the_plans(trained):
    """As for every prediction."""
    file = fold(trained, 0).parent / "plans.json"
    before = file.read_text()
    plans = json.loads(before)
    plans["configurations"]["3d_fullres"]["batch_size"] += 1
    try:
        file.write_text(json.dumps(plans))
        network_of(source("0"), "0")
    finally:
        file.write_text(before)


@pytest.mark.slow
def test_to_predict_takes_no_exporter(trained, monkeypatch):
    """Where a file was made is another machine than where it is used."""
    version = metadata.version

    def installed(name: str) -> str:
        if name == "onnxscript":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", installed)
    assert files_of(source("0"), ()) == [beside(trained, 0)]


@pytest.mark.slow
def test_a_place_that_cannot_be_written_to_is_told(trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export-onnx", *MODEL, "-f", "0", "-o", str(tmp_path / "file" / "net.onnx")]) == 2
    assert f"{tmp_path / 'file'} cannot be written to: File exists. Name a file elsewhere" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_told(trained, tmp_path, capsys):
    file = tmp_path / "net.onnx"
    with full_disk(20000):
        assert main(["export-onnx", *MODEL, "-f", "0", "-o", str(file)]) == 2
    assert f"{file} cannot be written: File too large" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dataset_may_have_another_name_where_a_model_is_shared(trained, tmp_path):
    """The checkpoint is the same: that decides."""
    file = change(beside(trained, 0), tmp_path / "net.onnx", dataset="Dataset999_Elsewhere", plans="others")
    assert files_of(source("0"), [file]) == [file]


@pytest.mark.slow
def test_a_file_says_what_it_is(trained, tmp_path):
    found = read_origin(beside(trained, 0))
    assert (found["dataset"], found["trainer"], found["configuration"]) == (DATASET, TRAINER, "3d_fullres")
    assert found["patch_size"] == str(source("0").configuration.patch_size)
    assert (found["channels"], found["fold"], found["torch"]) == ('["MRI"]', "0", metadata.version("torch"))
    model = onnx.load(beside(trained, 0))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    # The folders of the machine that made it are nobody's business.
    assert str(Path(torch.__file__).parent).encode() not in beside(trained, 0).read_bytes()
    assert b"site-packages" not in beside(trained, 0).read_bytes()


@pytest.mark.slow
def test_half_precision_is_checked(trained, tmp_path):
    half, single = onnx.load(beside(trained, 1)), onnx.load(beside(trained, 0))
    require_types(half, half=True)
    require_types(single, half=False)
    with pytest.raises(InputError, match=r"cannot be exported in single precision: \S+ is in half precision"):
        require_types(half, half=False)
    with pytest.raises(InputError, match=r"cannot be exported in half precision: \S+ is in single precision"):
        require_types(single, half=True)
    assert half.ByteSize() < 0.6 * single.ByteSize()


def test_what_differs_is_not_written(tmp_path):
    row = next(row for row in BACKBONES if row.trainer == "nnUNetTrainerVNet")
    network, images = build(row, "2d odd").eval(), image("2d odd")
    file = tmp_path / "net.onnx"
    file.write_bytes(make_model(network, images).SerializeToString())
    labels = PlansManager(plans_and_dataset("2d odd")[0]).get_label_manager(plans_and_dataset("2d odd")[1])
    assert re.fullmatch(
        r"logits differ by \S+ at most, labels in 0 of 3034 voxels", compare(network, file, images, labels)
    )
    with torch.no_grad():
        network.decoder.seg_layers[0].bias[0] += 0.1
    with pytest.raises(InputError, match=r"is off by 0\.1, where logits go up to .*; nothing was written"):
        compare(network, file, images, labels)
    assert "labels in 0 of" not in compare(network, file, images, labels, half=True)
    with pytest.raises(InputError, match="is not finite; nothing was written"):
        compare(network, file, images * float("nan"), labels, half=True)


class Undecided(torch.nn.Module):
    """What it does depends on its input's numbers, which no graph holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_followed_is_told():
    with pytest.raises(InputError, match=r"the network cannot be exported: .*Guard") as raised:
        make_model(Undecided().eval(), torch.ones(2, 1, 4, 4))
    assert "\n" not in str(raised.value)


def test_a_folder_is_no_file(tmp_path, capsys):
    assert main(["export-onnx", *MODEL, "-o", str(tmp_path)]) == 2
    assert f"-o {tmp_path} is a folder; name a file in it, such as {tmp_path / 'net.onnx'}" in capsys.readouterr().err


def test_nothing_but_an_onnx_file_is_written_over(tmp_path, capsys):
    file = tmp_path / "checkpoint_final.pth"
    file.write_bytes(b"weights")
    assert main(["export-onnx", *MODEL, "-o", str(file)]) == 2
    assert f"-o {file}: the name has to end in .onnx, as in {file.with_suffix('.onnx')}" in capsys.readouterr().err
    assert file.read_bytes() == b"weights"


def test_memory_that_runs_out_is_known_as_such(tmp_path):
    """So that a case has another try, alone."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    much = helper.make_tensor("size", onnx.TensorProto.INT64, [5], [1, 1, *[10**5] * 3])
    ends = [helper.make_tensor_value_info(name, kind, size) for name, size in (("image", [1] * 5), ("logits", None))]
    node = helper.make_node("Expand", ["image", "size"], ["logits"])
    graph = helper.make_graph([node], "much", ends[:1], ends[1:], [much])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    run = open_file("onnxruntime", tmp_path / "net.onnx")
    with pytest.raises(Exception, match=r"memory|alloc") as raised:
        run(np.ones([1] * 5, np.float32))
    assert memory.is_out_of_memory(raised.value)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerMetaSeg", "nnUNetTrainerNISF_5epochs"])
@pytest.mark.parametrize("command", ["export-onnx", "predict -i . -o labels --engine onnxruntime"])
def test_networks_that_are_fitted_to_an_image_cannot_be_exported(command, trainer, capsys):
    assert main([*command.split(), "-d", "1", "-c", "3d_fullres", "-tr", trainer]) == 2
    said = capsys.readouterr().err
    assert f"{trainer} cannot be exported: its network is fitted to every image by steps along a gradient" in said
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "onnxscript", "openvino"])
def test_an_extra_that_is_missing_is_named(name, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    if name == "openvino":
        assert predict(trained, tmp_path / "out", "-f", "0", engine=name) == 2
    else:
        assert main(["export-onnx", *MODEL, "-f", "0", "-o", str(tmp_path / "net.onnx")]) == 2
    said = capsys.readouterr().err
    assert f"{name} is not installed, or cannot be loaded" in said
    assert f"pip install 'nnunet-plugins[{'openvino' if name == 'openvino' else 'onnx'}]'" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--onnx", "net.onnx"), "--onnx is for --engine, onnxruntime or openvino"),
        (
            ("--engine", "onnxruntime", "-device", "mps"),
            "--engine onnxruntime computes on the CPU; leave out -device mps",
        ),
        (("--engine", "onnxruntime", "--whole-volume"), "images of the patch's size alone; leave out --whole-volume"),
        (("--engine", "onnxruntime", "--spacing-factor", "1"), "leave out --spacing-factor"),
    ],
)
def test_what_an_engine_cannot_do_is_told(options, message, capsys):
    assert main(["predict", "-i", "in", "-o", "out", *MODEL, *options]) == 2
    assert message in capsys.readouterr().err
