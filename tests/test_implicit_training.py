"""Recipes of implicit networks in nnU-Net's loop: where images lie, the phases, what is refused, the commands."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from conftest import Sandbox
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch.testing import assert_close

from nnunet_plugins.backbones import find
from nnunet_plugins.forecast import LiveBytes, forecast_training
from nnunet_plugins.networks.implicit import Truth
from nnunet_plugins.testing import training
from nnunet_plugins.testing.plans import PLANS, build, image, narrow_trainer
from nnunet_plugins.trainers.backbone import MEMORY_CHECK
from nnunet_plugins.trainers.centred import Centred, require_whole_cases
from nnunet_plugins.trainers.implicit import GroupsLR
from nnunet_plugins.trainers.losses import FocalLoss

METASEG, NISF = (find(f"nnUNetTrainer{name}") for name in ("MetaSeg", "NISF"))
PLAN = "3d odd"


class Ramps:
    """A dataset of one case, of which each channel tells where along an axis a voxel lies, from 1 on."""

    identifiers = ("case",)

    def __init__(self, shape, labels):
        self.image = np.stack(np.meshgrid(*(np.arange(1.0, n + 1) for n in shape), indexing="ij"))
        self.segmentation = np.zeros((1, *shape), dtype=np.int16)
        corner = np.array([[0, *(n - 1 for n in shape)], [0, 0, 0, 0]])
        self.properties = {"class_locations": dict.fromkeys(labels, corner)}

    def load_case(self, _):
        return self.image, self.segmentation, None, self.properties


SHAPES = [((35, 50, 31), (48, 64, 48)), ((1, 7, 12), (10, 17)), ((4, 4, 4), (4, 4, 4))]


@pytest.mark.parametrize("oversampled", [0.0, 0.33, 1.0])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_images_lie_where_prediction_puts_them(shape, patch, oversampled, ignored):
    plans, dataset = training.plans_and_dataset(PLAN)
    if ignored:
        dataset["labels"]["ignore"] = 3
    manager = PlansManager(plans).get_label_manager(dataset)
    ramps = Ramps(shape, [1, 2, tuple([-1, *manager.all_labels])])
    loader = nnUNetDataLoader(
        Centred(ramps, patch), 4, patch, patch, manager, oversample_foreground_percent=oversampled
    )
    expected = torch.tensor(ramps.image, dtype=torch.float32)
    expected = pad_nd_image(expected, patch, "constant", {"value": 0}).reshape(3, *patch)
    for _ in range(5):
        batch = next(loader)
        for one, segmentation in zip(batch["data"], batch["target"], strict=True):
            assert torch.equal(one, expected)
            assert torch.equal(segmentation[0] < 0, (expected == 0).any(dim=0))


def test_cases_that_the_patch_does_not_hold_are_refused():
    with pytest.raises(ValueError, match=r"case has 4x9x4 voxels, more than the patch of 8x8x8.*: plan --cover"):
        require_whole_cases([Ramps((4, 9, 4), [1])], (8, 8, 8), "nnUNetTrainerMetaSeg", "plan --cover")
    with pytest.raises(ValueError, match=r"case has 2 of them: in 2D every case has to have one. Use a 3D conf"):
        require_whole_cases([Ramps((2, 8, 8), [1])], (8, 8), "nnUNetTrainerMetaSeg", "plan --cover")
    require_whole_cases([Ramps((1, 8, 8), [1])], (8, 8), "nnUNetTrainerMetaSeg", "plan --cover")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    training.write_cases(tmp_path, PLAN, margin=-3)
    return tmp_path


def make(row, modifiers="_5epochs_2iterations", **changes):
    plans, dataset = training.plans_and_dataset(PLAN)
    plans["configurations"][training.CONFIGURATION].update(changes)
    kind = narrow_trainer(row, row.trainer + modifiers)
    torch.manual_seed(0)
    np.random.seed(0)
    arguments = ({**plans, "continue_training": False}, training.CONFIGURATION, "all", dataset, torch.device("cpu"))
    return kind(*arguments)


def weights_of(trainer):
    return [p.detach().clone() for p in trainer.bare_network().fitted_parameters()]


def test_the_second_phase_holds_the_initialisation(folder, monkeypatch):
    """80 % of the epochs learn it; then the head alone moves, on one fit of each case, also after an interruption."""
    trainer = make(METASEG)
    trainer.initialize()
    network = trainer.bare_network()
    seen, start = [], trainer.on_train_epoch_start
    monkeypatch.setattr(trainer, "on_train_epoch_start", lambda: (start(), seen.append(snapshot(trainer))))
    fits, fit = [], network.fit
    monkeypatch.setattr(network, "fit", lambda voxels: (fits.append((network.training, len(voxels))), fit(voxels))[1])
    trainer.run_training()
    assert trainer.meta_epochs == 4
    first, last = seen[3], seen[4]
    assert not torch.equal(first["theta"], last["theta"])
    assert torch.equal(last["theta"], snapshot(trainer)["theta"]), "the second phase has moved the initialisation"
    assert not torch.equal(last["head"], snapshot(trainer)["head"])
    assert sum(number for in_training, number in fits if in_training) == len(trainer._fits) <= training.CASES
    *meta, head = trainer.logger.get_value("lrs", step=None)
    assert meta[0] == trainer.learning_rate
    assert meta == sorted(meta, reverse=True)
    assert head == trainer.head_learning_rate, "nnU-Net logs the rate of what is learning"
    # Before its last epoch the training is interrupted.
    checkpoint = trainer.output_folder + "/checkpoint_latest.pth"
    trainer.current_epoch = 3
    trainer.save_checkpoint(checkpoint)
    resumed = make(METASEG)
    resumed.initialize()
    resumed.load_checkpoint(checkpoint)
    assert resumed.current_epoch == 4
    assert resumed.trains_head_only
    before = weights_of(resumed)
    resumed.run_training()
    assert resumed.current_epoch == 5
    assert all(map(torch.equal, before, weights_of(resumed)))
    assert resumed._fits, "the fits are made again"


def snapshot(trainer):
    network = trainer.bare_network()
    parts = {"theta": network.fitted_parameters(), "head": network.head_parameters()}
    return {name: torch.cat([p.detach().flatten() for p in part]) for name, part in parts.items()}


def test_a_random_start_stays_as_it_was_drawn(folder):
    trainer = make(find("nnUNetTrainerMetaSegRandomStart"), "_1epochs_2iterations")
    trainer.initialize()
    before = weights_of(trainer)
    trainer.run_training()
    assert all(map(torch.equal, before, weights_of(trainer)))
    assert trainer.logger.get_value("lrs", step=None) == [trainer.head_learning_rate]


@pytest.mark.parametrize(
    ("row", "modifiers"),
    [(METASEG, "_Adam_FocalLoss"), (METASEG, "_CELoss"), (NISF, "_Adam_DiceLoss"), (NISF, "_NoMirroring_FocalLoss")],
    ids=lambda value: getattr(value, "trainer", value),
)
def test_modifiers_change_what_they_say(folder, row, modifiers):
    trainer, plain = make(row, f"_2epochs_1iterations{modifiers}"), make(row, "_2epochs_1iterations")
    trainer.initialize()
    plain.initialize()
    assert (type(trainer.optimizer) is torch.optim.AdamW) is ("_Adam" in modifiers)
    assert type(trainer.loss.loss) is not type(plain.loss.loss)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert trainer.inference_allowed_mirroring_axes is None
    if row is NISF:
        assert trainer.bare_network().case_codes.shape == (training.CASES, 8)
        assert any(trainer.bare_network().case_codes is p for g in trainer.optimizer.param_groups for p in g["params"])


def test_what_moves_the_anatomy_is_refused(folder):
    with pytest.raises(NotImplementedError, match=r"_DA5 does not support networks that are fitted .*; leave it out"):
        make(METASEG, "_DA5")


def test_a_cascade_is_refused(folder):
    trainer = make(METASEG, previous_stage="3d_lowres")
    with pytest.raises(NotImplementedError, match="no image to reconstruct; use a configuration without a previous"):
        trainer.initialize()


@pytest.mark.parametrize("row", [METASEG, NISF], ids=lambda row: row.trainer)
def test_a_bad_image_to_validate_on_ends_no_training(folder, capsys, row):
    """In training it is told and left out; nothing can be fitted to it in the validation either."""
    trainer = make(row)
    trainer.initialize()
    trainer.network.eval()
    x = image(PLAN)
    x[1] = torch.nan
    target = torch.ones(2, 1, *PLANS[PLAN][0])
    with torch.no_grad():
        output = trainer.validation_step({"data": x, "target": target, "keys": ["case_0", "case_1"]})
    assert np.isfinite(output["loss"])
    assert "case_1" in (said := capsys.readouterr().out)
    assert "case_0" not in said


def test_a_training_whose_cases_have_changed_does_not_go_on(folder):
    """The codes of the checkpoint belong to others, and the optimizer knows nothing of them."""
    trainer = make(NISF, "_2epochs_1iterations")
    trainer.initialize()
    trainer.bare_network().set_cases(training.CASES + 1)
    checkpoint = trainer.output_folder + "/checkpoint_latest.pth"
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(checkpoint)
    resumed = make(NISF, "_2epochs_1iterations")
    resumed.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"codes of 3 training cases, and the fold has 2\b.* without --c"):
        resumed.run_training()


def test_a_training_goes_on_with_the_codes_of_its_own_cases_alone(folder):
    """As many others would take theirs, row by row."""
    trainer = make(NISF, "_2epochs_1iterations")
    trainer.initialize()
    checkpoint = trainer.output_folder + "/checkpoint_latest.pth"
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(checkpoint)
    same = make(NISF, "_2epochs_1iterations")
    same.load_checkpoint(checkpoint)
    same.get_tr_and_val_datasets()
    for file in list(folder.rglob("case_1*")):
        file.rename(file.with_name(file.name.replace("case_1", "case_9")))
    resumed = make(NISF, "_2epochs_1iterations")
    resumed.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"codes of other training cases than the fold's, first of all case_1\b.* --c"):
        resumed.get_tr_and_val_datasets()
    earlier = torch.load(checkpoint, weights_only=False)
    del earlier["optimizer_state"]["nnunet_plugins"]["cases"]
    torch.save(earlier, checkpoint)
    resumed.load_checkpoint(checkpoint)
    resumed.get_tr_and_val_datasets()  # of an earlier version nobody knows


def test_codes_learn_at_a_rate_of_their_own(folder):
    """Ten times that of the network, as each is drawn once in a pass over the cases."""
    trainer = make(NISF, "_2epochs_1iterations")
    trainer.initialize()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    codes = trainer.bare_network().case_codes
    assert rates.pop(id(codes)) == trainer.code_learning_rate == 10 * trainer.learning_rate
    assert set(rates.values()) == {trainer.learning_rate}
    assert len(rates) == len(list(trainer.bare_network().parameters())) - 1


def test_fits_take_fewer_steps_in_the_validation_of_an_epoch_alone(folder):
    trainer = make(NISF, "_2epochs_1iterations")
    trainer.initialize()
    network = trainer.bare_network()
    for steps in (100, 3):
        network.fit_steps = steps
        trainer.on_validation_epoch_start()
        assert network.fit_steps == min(steps, 20)
        outputs = [{"loss": np.array(0.0), "tp_hard": np.ones(2), "fp_hard": np.ones(2), "fn_hard": np.ones(2)}]
        trainer.on_validation_epoch_end(outputs)
        assert network.fit_steps == steps


def test_a_step_that_no_memory_holds_is_not_mended_by_a_smaller_patch(folder, monkeypatch):
    monkeypatch.delenv(MEMORY_CHECK)
    monkeypatch.setattr("nnunet_plugins.trainers.backbone.device_memory", lambda _: 2**10)
    with pytest.raises(RuntimeError, match=r"needs about .* The patch has to hold every image .*`voxels`") as error:
        make(METASEG).on_train_start()
    assert "nnunet-plugins plan" not in str(error.value)


@pytest.mark.parametrize("plans", ["conformance", "mine_cover"])
def test_the_remedy_for_large_cases_is_of_the_plans_in_use(folder, plans):
    trainer = make(METASEG, patch_size=[16, 23, 20])
    trainer.plans_manager.plans["plans_name"] = plans
    trainer.initialize()
    more = "mine --overwrite" if plans == "mine_cover" else plans
    with pytest.raises(ValueError, match=rf"nnunet-plugins plan -d 1 --cover --like {more}$"):
        trainer.get_tr_and_val_datasets()


@pytest.mark.parametrize(("row", "modifier"), [(METASEG, ""), (METASEG, "_DiceLoss"), (NISF, "")])
def test_the_steps_learn_alike_whatever_the_plan_says_of_batches(folder, row, modifier):
    """Each image has a loss of its own: that of two is the mean."""
    trainer = make(row, f"_1epochs_1iterations{modifier}", batch_size=9, batch_dice=True)
    trainer.initialize()
    assert (trainer.batch_size, trainer.oversample_foreground_percent) == (2, 0.0)
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 50, 1), torch.randint(0, 3, (2, 1, 50, 1))
    alone = [trainer._label_loss(logits[n : n + 1], target[n : n + 1]) for n in range(2)]
    assert_close(trainer._label_loss(logits, target), torch.stack(alone).mean())


def test_learning_rates_run_out_in_each_phase():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.Adam([{"params": [p]} for p in parameters], 1.0)
    schedule = GroupsLR(optimizer, [[1.0, 2.0], [0.0, 3.0]], [4, 6])
    found = []
    for epoch in (0, 3, 4, 5, 6):
        schedule.step(epoch)
        found.append([group["lr"] for group in optimizer.param_groups])
    assert found[0] == [1.0, 2.0]
    assert found[2] == [0.0, 3.0]
    assert found[4] == [0.0, 0.0]
    assert_close(found[1], [0.25**0.9, 2 * 0.25**0.9])
    assert_close(found[3], [0.0, 3 * 0.5**0.9])
    without = GroupsLR(optimizer, [[1.0, 2.0], [0.0, 3.0]], [0, 6])
    without.step(0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 3.0]


SIZES = {
    "MetaSeg": {"width": 64, "voxels": 512, "inner_steps": 2, "hidden_layers": 4},
    "more steps": {"width": 64, "voxels": 512, "inner_steps": 4, "hidden_layers": 2},
    "NISF": {"width": 64, "voxels": 2048, "layers": 4},
}


@pytest.mark.parametrize("name", SIZES)
def test_the_memory_of_a_step_is_about_what_is_forecast(name):
    """It decides whether a training may start; gradient steps cannot be counted without the images."""
    row = NISF if name == "NISF" else METASEG
    network = build(row, PLAN, options={**row.options, **SIZES[name]})
    if row is NISF:
        network.set_cases(2)
    shape = tuple(image(PLAN).shape)
    target = torch.zeros(2, 1, *PLANS[PLAN][0], dtype=torch.int16)
    network.truth = Truth(target, FocalLoss(), [0, 1])
    x = image(PLAN)
    with LiveBytes() as live:
        network(x).backward()
    _, peak = network.training_bytes(shape)
    parameters = 4 * sum(p.numel() for p in network.parameters())
    print(live.peak / (peak + parameters))
    assert 0.7 < live.peak / (peak + parameters) < 1.3
    forecast = forecast_training(lambda: network, shape, autocast=True, optimizer_copies=2)
    assert forecast.peak_bytes_training == peak + 4 * parameters


FILE = """
from dataclasses import replace

from nnunet_plugins.backbones import find

BACKBONES = [
    replace(row, trainer=f"nnUNetTrainerTiny{row.trainer[13:]}", options={**row.options, **row.narrow})
    for row in map(find, ("nnUNetTrainerMetaSeg", "nnUNetTrainerNISF"))
]
"""
DATASET = "Dataset001_Small"


@pytest.fixture(scope="module")
def covered(small: Sandbox) -> Sandbox:
    """Narrow versions of both networks, and a plan whose patch is larger than all images."""

    def cover(configurations):
        configurations["3d_cover"] = {"inherits_from": "3d_fullres", "patch_size": [20, 24, 20]}
        configurations["3d_short"] = {"inherits_from": "3d_fullres", "patch_size": [16, 16, 20]}

    small.edit_plans(DATASET, "small", cover)
    folder = small.root / "trainers"
    folder.mkdir()
    (folder / "tiny_implicit_networks.py").write_text(FILE)
    small.env["nnUNet_extTrainer"] = str(folder)
    return small


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MetaSeg", "NISF"])
def test_the_stock_commands_train_and_predict(covered, name):
    """What `nnUNetv2_predict` says of the validation's images is what the validation said, voxel for voxel."""
    trainer = f"nnUNetTrainerTiny{name}_2epochs_2iterations"
    covered.train(DATASET, "3d_cover", trainer)
    validation = covered.results / DATASET / f"{trainer}__small__3d_cover" / "fold_0" / "validation"
    (case,) = validation.glob("*.nii.gz")
    images, output = covered.root / f"images{name}", covered.root / f"predicted{name}"
    images.mkdir()
    original = covered.raw / DATASET / "imagesTr" / f"{case.name[:6]}_0000.nii.gz"
    (images / original.name).write_bytes(original.read_bytes())
    model = ("-d", 1, "-c", "3d_cover", "-f", 0, "-p", "small", "-tr", trainer)
    options = ("-device", "cpu", "-npp", 1, "-nps", 1, "--disable_progress_bar")
    covered.run("nnUNetv2_predict", "-i", images, "-o", output, *model, *options)
    found, expected = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / case.name))) for f in (output, validation))
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_the_commands_refuse_what_the_patch_does_not_hold(covered):
    options = ("-tr", "nnUNetTrainerTinyNISF", "-p", "small", "-device", "cpu")
    command = ("nnUNetv2_train", DATASET, "3d_short", 0, *options)
    output = covered.run(*command, ok=False)
    assert "has 16x18x17 voxels, more than the patch of 16x16x20" in output
    assert "nnunet-plugins plan -d 1 --cover" in output
    output = covered.run(*(*command[:2], "2d", *command[3:]), ok=False)
    assert "in 2D every case has to have one. Use a 3D configuration" in output
    assert "Epoch 0" not in output
