"""What follows a training, through nnU-Net's command: gates in a file, TensorBoard and MLflow, over a resumed run."""

import csv
import dataclasses
import math
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Sandbox
from report_pages import build
from report_records import make_record

from nnunet_plugins.benchmark.collect import read_gates
from nnunet_plugins.errors import InputError
from nnunet_plugins.files import hold_lock
from nnunet_plugins.networks.firenet import FIRENet
from nnunet_plugins.networks.layers.attention import record_attention
from nnunet_plugins.report.gates import kind_of
from nnunet_plugins.testing.plans import CHANNELS, PLANS, smallest
from nnunet_plugins.testing.selection import find_row
from nnunet_plugins.testing.training import train_two_steps
from nnunet_plugins.trainers.checkpoints import load_checkpoint
from nnunet_plugins.trainers.fold_folder import begin_run
from nnunet_plugins.trainers.gates import GateTable
from nnunet_plugins.trainers.patch_picture import draw_patch, to_labels
from nnunet_plugins.trainers.trackers import (
    About,
    MlflowStore,
    TensorBoardStore,
    Tracker,
    epochs_between_pictures,
    wanted_stores,
)

DATASET = "Dataset001_Small"
FIRENET = "nnUNetTrainerFIRENet_3epochs_1iterations_NoMirroring"
STOCK = "nnUNetTrainer_1epochs_1iterations"
BOTH = {"nnUNet_plugins_tensorboard": "1", "nnUNet_plugins_mlflow": "1"}
SCALARS = {
    *("loss/train", "loss/validation", "learning_rate", "epoch_seconds", "memory/process_peak_MiB"),
    *("pseudo_dice/mean", "pseudo_dice/moving_average", "pseudo_dice/1_outer", "pseudo_dice/2_inner"),
}
FINAL = {"final_dice/mean", "final_dice/1_outer", "final_dice/2_inner"}


def fold(sandbox: Sandbox, trainer: str) -> Path:
    return sandbox.results / DATASET / f"{trainer}__small__3d_fullres" / "fold_0"


def train(sandbox: Sandbox, trainer: str, *options: str, **env: str) -> str:
    command = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu", *options)
    return sandbox.run(*command, **env)


def rows(folder: Path) -> list[list[str]]:
    with (folder / "gates.csv").open(newline="") as file:
        return list(csv.reader(file))


def set_back(folder: Path, epoch: int) -> None:
    """Leave one checkpoint, which says that an earlier epoch comes next, as one of before a power cut does."""
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    for path in folder.glob("checkpoint_*.pth"):
        path.unlink()
    torch.save({**checkpoint, "current_epoch": epoch}, folder / "checkpoint_latest.pth")


@pytest.fixture(scope="module")
def resumed(small: Sandbox) -> tuple[Sandbox, list[list[str]]]:
    """A training that repeats its last two epochs, and the gates that it had before."""
    train(small, FIRENET, **BOTH)
    before = rows(fold(small, FIRENET))
    set_back(fold(small, FIRENET), 1)
    train(small, FIRENET, "--c", **BOTH)
    return small, before


@pytest.mark.slow
def test_gates_have_one_row_for_each_epoch(resumed):
    sandbox, before = resumed
    head, *table = rows(fold(sandbox, FIRENET))
    assert [row[0] for row in before[1:]] == [row[0] for row in table] == ["0", "1", "2"]
    assert head == before[0] == ["epoch", *FIRENet(1, 3).gate_values()]
    assert table[0] == before[1]
    assert table[2] != before[3]  # it went on with other weights
    last = load_checkpoint(fold(sandbox, FIRENET) / "checkpoint_final.pth")["network_weights"]
    weights = torch.cat([value for key, value in last.items() if key.endswith("wrs.weight") or ".wrs." in key])
    assert sorted(map(float, table[2][1:])) == pytest.approx(sorted(weights.sigmoid().tolist()), abs=1e-6)


@pytest.mark.slow
def test_tensorboard_reads_each_epoch_once(resumed):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sandbox, _ = resumed
    folder = fold(sandbox, FIRENET)
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    found = {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}
    assert all(len(events.Scalars(name)) == len(steps) for name, steps in found.items())
    gates = {name for name in found if name.startswith("gates/")}
    assert set(found) - gates == SCALARS | FINAL
    assert all(set(steps) == ({3} if name in FINAL else {0, 1, 2}) for name, steps in found.items())
    log = load_checkpoint(folder / "checkpoint_final.pth")["logging"]
    for name, key in {"loss/train": "train_losses", "learning_rate": "lrs", "pseudo_dice/mean": "mean_fg_dice"}.items():
        assert [found[name][epoch] for epoch in range(3)] == pytest.approx(list(map(float, log[key])), nan_ok=True)
    table = np.array(rows(folder)[1:], float)[:, 1:]
    assert len(gates) == table.shape[1]
    assert sorted(found[name][1] for name in gates) == pytest.approx(sorted(table[1]), abs=1e-6)
    pictures = events.Images(*events.Tags()["images"])
    assert [picture.step for picture in pictures] == [0, 1, 2]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_goes_on_with_the_same_run(resumed, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow")
    sandbox, _ = resumed
    uri = f"sqlite:///{sandbox.results / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(DATASET).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer"] == FIRENET
    assert set(run.data.metrics) >= SCALARS | FINAL
    assert len([name for name in run.data.metrics if name.startswith("gates/")]) == 41
    # Nothing is taken back: the later one of two is of the training that went on.
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss/train")]
    assert sorted(steps) == [0, 1, 1, 2, 2]
    losses = load_checkpoint(fold(sandbox, FIRENET) / "checkpoint_final.pth")["logging"]["train_losses"]
    assert run.data.metrics["loss/train"] == pytest.approx(float(losses[-1]))
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert len(pictures) == 5
    assert not (sandbox.root / "mlruns").exists()


@pytest.mark.slow
def test_a_server_that_is_away_ends_no_training_and_a_stock_trainer_is_followed(small):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("mlflow")
    output = train(small, STOCK, **{**BOTH, "nnUNet_plugins_mlflow": "http://me:secret@127.0.0.1:9"})
    (warning,) = [line for line in output.splitlines() if "WARNING: nnunet_plugins" in line]
    assert "MLflow gets no more of this training, which goes on" in warning
    assert "Does http://127.0.0.1 answer" in warning
    assert "secret" not in output
    events = accumulator.EventAccumulator(str(fold(small, STOCK) / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == SCALARS | FINAL
    assert not (fold(small, STOCK) / "gates.csv").exists()


@pytest.mark.parametrize("trainer", ["nnUNetTrainerAutofocusUNet", "nnUNetTrainerAttentionUNet"])
def test_attention_is_followed_by_layer_and_rate(trainer, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("nnUNet_plugins_tensorboard", "1")
    row = find_row(trainer)
    trained, network = train_two_steps(row, smallest(row), tmp_path, monkeypatch)
    events = accumulator.EventAccumulator(str(Path(trained.output_folder, "tensorboard"))).Reload()
    found: dict[str, list[float]] = {}
    for name in events.Tags()["scalars"]:
        if name.startswith("attention/"):
            _, layer, rate = name.split("/")
            assert rate == "gate" or rate.startswith("rate_")
            (value,) = events.Scalars(name)
            found.setdefault(layer, []).append(value.value)
    # Shares of all rates of a layer are 1 together, a gate's mean is below.
    with record_attention(network) as maps:
        network(torch.randn(1, CHANNELS, *PLANS[smallest(row)][0]))
    assert {layer: len(values) for layer, values in found.items()} == {
        layer: one.shape[1] for layer, one in maps.items()
    }
    sums = [sum(values) for values in found.values()]
    assert sums == pytest.approx([1] * len(sums), abs=1e-5) if "Autofocus" in trainer else all(0 < n < 1 for n in sums)


def about(folder: Path) -> About:
    return About(folder, folder, "run", "Dataset001_X", {})


def test_a_broken_tracker_is_told_once(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    told: list[str] = []
    tracker = Tracker(TensorBoardStore(), {"train_losses": "loss/train"}, told.append, 3)
    tracker.open(about(tmp_path), 0)
    for epoch in range(2):
        tracker.log("train_losses", 0.5, epoch)
        tracker.end_epoch(epoch, {}, {})
    tracker.log_summary("final_val/foreground_dice", 0.5)
    tracker.close("FINISHED")
    assert len(told) == 1
    assert "TensorBoard gets no more of this training, which goes on" in told[0]
    assert "--c" in told[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_of_results_may_be_named_from_here_on(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    assert MlflowStore(None).places(Path("my results")) == (
        f"sqlite:///{tmp_path}/my results/mlflow.db",
        f"file://{tmp_path}/my%20results/mlflow_artifacts",
    )
    assert MlflowStore("http://localhost:5000").places(Path("results")) == ("http://localhost:5000", None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trainings_that_begin_at_once_do_not_both_make_a_store(tmp_path, monkeypatch):
    """MLflow itself has each of them make the tables, and all but the first one would fail."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("nnUNet_plugins_mlflow", "1")
    (store,) = wanted_stores()
    began = []
    monkeypatch.setattr(store, "_open", began.append)
    with hold_lock(tmp_path / "mlflow.lock") as held:
        assert held
        thread = threading.Thread(target=store.open, args=(about(tmp_path), 0))
        thread.start()
        thread.join(0.3)
        assert began == []
    thread.join(30)
    assert began == [about(tmp_path)]


@pytest.mark.parametrize(
    ("variable", "module"),
    [("nnUNet_plugins_tensorboard", "torch.utils.tensorboard"), ("nnUNet_plugins_mlflow", "mlflow")],
)
def test_a_missing_package_is_told_before_the_training(variable, module, monkeypatch):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"{variable} is set, but .* cannot be imported .* pip install .*unset"):
        wanted_stores()


@pytest.mark.parametrize(
    ("variable", "value"), [("nnUNet_plugins_tensorboard", "yes"), ("nnUNet_plugins_mlflow", "results")]
)
def test_values_that_mean_nothing_are_refused(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"{variable}='{value}' means nothing"):
        wanted_stores()
    monkeypatch.setenv(variable, "0")
    assert wanted_stores() == []


def test_epochs_between_pictures(monkeypatch):
    assert epochs_between_pictures() is None
    monkeypatch.setenv("nnUNet_plugins_pictures", "20")
    assert epochs_between_pictures() == 20
    monkeypatch.setenv("nnUNet_plugins_pictures", "some")
    with pytest.raises(InputError, match="nnUNet_plugins_pictures='some'"):
        epochs_between_pictures()


def test_gates_come_with_the_next_row_that_can_be_written(tmp_path):
    table = GateTable(tmp_path / "gone" / "gates.csv", ["a, b"], 0)
    with pytest.raises(OSError, match="gone"):
        table.add(0, {"a, b": 0.5})
    (tmp_path / "gone").mkdir()
    table.add(1, {"a, b": 0.25})
    assert rows(tmp_path / "gone") == [["epoch", "a, b"], ["0", "0.5"], ["1", "0.25"]]


@pytest.mark.parametrize("content", ["epoch,other\n0,0.5\n", "epoch,a\nfirst,0.5\n", ""])
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    (tmp_path / "gates.csv").write_text(content)
    with pytest.raises(InputError, match=r"gates.csv is not written over"):
        GateTable(tmp_path / "gates.csv", ["a"], 1)


def test_gates_and_events_of_an_earlier_training_are_moved_with_its_checkpoints(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    for name in ("checkpoint_final.pth", "gates.csv", "tensorboard/events"):
        (tmp_path / name).write_text(name)
    begin_run(tmp_path, print)
    assert (tmp_path / "earlier_1" / "gates.csv").read_text() == "gates.csv"
    assert (tmp_path / "earlier_1" / "tensorboard" / "events").is_file()
    assert not list(tmp_path.glob("gates*")) + list(tmp_path.glob("tensorboard*"))


def test_a_report_shows_the_gates_of_the_networks_that_have_some(tmp_path):
    record = make_record(algorithms=2, cases=4, labels=1, folds=2, epochs=3)
    own = record.curves["algorithm"] == record.curves["algorithm"].unique()[-1]
    network, folder = FIRENet(1, 2, features=(2, 4)), tmp_path / "fold_0"
    folder.mkdir()
    table = GateTable(folder / "gates.csv", list(network.gate_values()), 0)
    for epoch in range(3):
        table.add(epoch, network.gate_values())
    gates = pd.DataFrame(read_gates(folder)[epoch] for epoch in record.curves["epoch"])
    assert gates.shape[1] == 41
    curves = pd.concat([record.curves, gates.where(own)], axis=1)
    page = build(tmp_path, dataclasses.replace(record, curves=curves))
    assert [name[-6:] for name in page.ids() if name.endswith(("-gates", "-wiring"))] == ["-gates", "wiring"]
    assert "Every gate of the network over the training" in page.text
    page = build(tmp_path / "without", record)
    assert [name for name in page.ids() if name.endswith(("-gates", "-wiring"))] == []


def test_what_gates_lead_along():
    kinds = Counter(map(kind_of, FIRENet(1, 2).gate_values()))
    assert kinds == {
        "along one scale": 3 + 3 * 3 + 1,
        "from a finer scale": 3 * 2,
        "from a coarser scale": 3 * 2 + 2,
        "dense shortcut": 10,
        "outside the fabric": 4,
    }


@pytest.mark.parametrize("shape", [(12, 10), (5, 12, 10)])
def test_a_picture_shows_channels_truth_and_prediction(shape):
    truth, prediction = np.zeros(shape), np.zeros(shape)
    (truth if len(shape) == 2 else truth[3])[2:6, 2:6] = 1
    image = np.random.default_rng(0).normal(size=(2, *shape))
    picture = draw_patch(image, truth, prediction)
    step = round(256 / 12)
    assert picture.dtype == np.uint8
    assert picture.shape == (12 * step, 4 * 10 * step + 3 * 4, 3)
    parts = [picture[:, start : start + 10 * step] for start in range(0, picture.shape[1], 10 * step + 4)]
    coloured = [(np.ptp(part, axis=-1) > 0)[::step, ::step] for part in parts]
    expected = truth if len(shape) == 2 else truth[3]
    assert [int(part.sum()) for part in coloured] == [0, 0, 16, 0]
    assert (coloured[2] == (expected > 0)).all()


def test_labels_of_logits_and_of_regions():
    logits = torch.tensor([[1.0, -1.0, -1.0], [2.0, -1.0, 1.0]])
    assert to_labels(logits, regions=False).tolist() == [1, 0, 1]
    assert to_labels(logits, regions=True).tolist() == [2, 0, 2]
    assert math.prod(to_labels(torch.zeros(2, 3, 4), regions=True).shape) == 12
