"""What the doctor says of weights to start from, held against what nnU-Net's own loading does with them."""

import copy
import json
import os
import re
import unicodedata
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.cli import main
from nnunet_plugins.doctor.findings import Finding
from nnunet_plugins.doctor.start import check_start
from nnunet_plugins.doctor.training import Training
from nnunet_plugins.planning.seen import Cases, folds_that_saw
from nnunet_plugins.planning.setting import Setting, build_network, find_trainer, patch_setting
from nnunet_plugins.trainers.fitting import find_weight_fault

THERE, HERE = "Dataset100_There", "Dataset101_Here"
LABELS = {"background": 0, "bone": 1}
STOCK, FIRENET = "nnUNetTrainer", "nnUNetTrainerFIRENet"


def plan(dataset: str, patch: tuple[int, ...] = (16, 16, 16), change=lambda _: None, **more: object) -> dict:
    """Plans of a narrow U-Net; `change` is done to its arguments, the rest stands in the configuration."""
    configuration = json.loads(json.dumps(patch_setting(patch, 2, 1, 2).configuration.configuration))
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [width // 8 for width in arguments["features_per_stage"]]
    change(arguments)
    found = {"data_identifier": "data", "spacing": [1.0, 1.0, 1.0], "normalization_schemes": ["ZScoreNormalization"]}
    plans = {"3d_fullres": {**configuration, **found, **more}}
    return {"plans_name": "nnUNetPlans", "dataset_name": dataset, "configurations": plans}


def description(labels: dict[str, int], channels: int) -> dict:
    names = {str(number): "MRI" for number in range(channels)}
    return {"channel_names": names, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def setting(plans: dict, classes: int, channels: int) -> Setting:
    manager = PlansManager(copy.deepcopy(plans))
    return Setting(manager, manager.get_configuration("3d_fullres"), channels, classes)


@pytest.fixture
def here(nnunet_folders) -> Path:
    """The folder of a planned dataset with two foreground labels."""
    folder = nnunet_folders / "nnUNet_preprocessed" / HERE
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(plan(HERE)))
    (folder / "dataset.json").write_text(json.dumps(description({**LABELS, "skin": 2}, 1)))
    return folder


def save(file: Path, trainer: str, plans: dict, channels: int = 1, **more: object) -> Path:
    """Write a checkpoint, as nnU-Net does, of a network that was never trained."""
    network = build_network(find_trainer(trainer), setting(plans, 2, channels))
    arguments = {
        "plans": plans,
        "configuration": "3d_fullres",
        "fold": 3,
        "dataset_json": description(LABELS, channels),
    }
    content = {"network_weights": network.state_dict(), "init_args": arguments, "trainer_name": trainer}
    torch.save({**content, "current_epoch": 7, **more}, file)
    return file


def examine(checkpoint: Path, trainer: str) -> tuple[list[str], list[Finding]]:
    """Return what is well and what is not, of the weights alone."""
    found = list(check_start(Training(HERE, trainer, "3d_fullres", "nnUNetPlans", None), checkpoint))
    return [one.text for one in found if one.level == "ok"], [one for one in found if one.level != "ok"]


def loads(checkpoint: Path, trainer: str, folder: Path) -> bool:
    """Tell whether nnU-Net loads it."""
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    try:
        load_pretrained_weights(build_network(find_trainer(trainer), setting(plans, 3, 1)), checkpoint)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("trainer", [STOCK, FIRENET])
def test_weights_of_other_labels_fit(here, tmp_path, trainer):
    file = save(tmp_path / "start.pth", trainer, plan(THERE))
    well, wrong = examine(file, trainer)
    assert loads(file, trainer, here)
    assert wrong == []
    assert well[0] == f"weights of {trainer} on {THERE}, 3d_fullres, fold 3, epoch 7"
    network = build_network(find_trainer(trainer), setting(plan(HERE), 3, 1))
    outputs = sum(".seg_layers." in name for name, _ in network.named_parameters())
    taken = len(list(network.named_parameters())) - outputs
    assert well[1] == f"nnU-Net takes {taken} weights of the network from it"
    assert re.match(rf"left out by nnU-Net, to begin anew: {outputs} weights? of the output layers", well[2])


def anisotropic(arguments: dict) -> None:
    arguments["kernel_sizes"][0] = [1, 3, 3]


def unequal_strides(arguments: dict) -> None:
    arguments["strides"][1] = [1, 2, 2]


def shallower(arguments: dict) -> None:
    arguments["n_conv_per_stage"][0] = 1


MOVED = (
    "train with the plans of the checkpoint: put plans.json of the model's folder at {preprocessed}/Dataset100_There/"
    "nnUNetPlans.json; nnUNetv2_move_plans_between_datasets -s Dataset100_There -t Dataset101_Here -sp nnUNetPlans -tp "
    "nnUNetPlans_from100; nnUNetv2_preprocess -d 101 -plans_name nnUNetPlans_from100 -c 3d_fullres; nnUNetv2_train "
    "Dataset101_Here 3d_fullres 0 -tr {trainer} -p nnUNetPlans_from100 -pretrained_weights {file}"
)


@pytest.mark.parametrize(
    ("origin", "plans", "channels", "trainer", "texts", "remedy"),
    [
        (
            STOCK,
            {},
            2,
            STOCK,
            ["1 weight in another shape, first of all", "images have 2 channels there, 1 here"],
            "no",
        ),
        (FIRENET, {}, 2, FIRENET, ["images have 2 channels there, 1 here"], "no plans mend that"),
        (STOCK, {"change": anisotropic}, 1, STOCK, ["kernel sizes: 1x3x3 3x3x3 3x3x3 there, 3x3x3 3x3x3"], MOVED),
        (FIRENET, {"change": anisotropic}, 1, FIRENET, ["kernel sizes: 1x3x3 3x3x3"], MOVED),
        (STOCK, {"change": shallower}, 1, STOCK, ["not in it", "n conv per stage: 1 2 2 there, 2 2 2 here"], MOVED),
        (STOCK, {"patch": (64, 64, 64)}, 1, STOCK, ["in another shape", "n stages: 5 there, 3 here"], MOVED),
        (
            STOCK,
            {},
            1,
            FIRENET,
            ["not in it", "it is of nnUNetTrainer, and"],
            "use the trainer of its network, -tr nnUN",
        ),
        ("nnUNetTrainerMedNeXtS", {}, 1, "nnUNetTrainerMedNeXtSKernel5", ["in another shape"], "warm-start "),
        # Strides stand in the weights of transposed convolutions, and in no others.
        (STOCK, {"change": unequal_strides}, 1, STOCK, ["strides: 1x1x1 1x2x2 2x2x2 there, 1x1x1 2x2x2 2x2x2"], MOVED),
    ],
)
def test_what_stops_nnu_net_is_said_with_its_remedy(here, tmp_path, origin, plans, channels, trainer, texts, remedy):
    file = save(tmp_path / "start.pth", origin, plan(THERE, **plans), channels)
    _, wrong = examine(file, trainer)
    assert not loads(file, trainer, here)
    assert [one.level for one in wrong if one.text.startswith("nnU-Net will not load it: ")] == ["problem"]
    for text in texts:
        assert text in wrong[0].text
    assert remedy.format(preprocessed=here.parent, file=file, trainer=trainer) in wrong[0].remedy


def test_a_u_net_starts_one_with_changed_blocks_by_warm_start(here, tmp_path):
    plans = {"patch": (32, 32, 32)}
    (here / "nnUNetPlans.json").write_text(json.dumps(plan(HERE, **plans)))
    file, trainer = save(tmp_path / "stock.pth", STOCK, plan(THERE, **plans)), "nnUNetTrainerAutofocusUNet"
    _, (found,) = examine(file, trainer)
    assert not loads(file, trainer, here)
    assert f"it is of nnUNetTrainer, and {trainer} has another network" in found.text
    assert f"nnunet-plugins warm-start {file} -tr {trainer} -o start.pth" in found.remedy
    start = tmp_path / "start.pth"
    assert main(["warm-start", str(file), "-tr", trainer, "-o", str(start)]) == 0
    assert examine(start, trainer)[1] == []
    assert loads(start, trainer, here)


def shallow(arguments: dict) -> None:
    """Two stages, which FIRENet continues by the patch."""
    arguments.update({key: arguments[key][:2] for key in ("kernel_sizes", "strides")})


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        ({}, {"change": unequal_strides}, "strides: 1x1x1 1x2x2 2x2x2 there, 1x1x1 2x2x2 2x2x2 here"),
        (
            {"change": shallow},
            {"change": shallow, "patch": (8, 16, 16)},
            "the network depends on the patch, 8x16x16 there and 16x16x16 here",
        ),
    ],
)
def test_weights_that_fit_another_network_are_told(here, tmp_path, ours, theirs, text):
    (here / "nnUNetPlans.json").write_text(json.dumps(plan(HERE, **ours)))
    file = save(tmp_path / "start.pth", FIRENET, plan(THERE, **theirs))
    _, (found,) = examine(file, FIRENET)
    assert loads(file, FIRENET, here)
    assert found.level == "warning"
    assert found.text == f"all weights fit, but the network is another one: {text}"
    assert "nnUNetv2_move_plans_between_datasets -s Dataset100_There" in found.remedy


def test_plans_that_are_here_need_not_be_fetched(here, tmp_path):
    plans = plan(THERE, change=anisotropic)
    (here.parent / THERE).mkdir()
    (here.parent / THERE / "nnUNetPlans.json").write_text(json.dumps(plans))
    _, (found,) = examine(save(tmp_path / "start.pth", STOCK, plans), STOCK)
    assert found.remedy.startswith("train with the plans of the checkpoint: nnUNetv2_move_plans_between_datasets")


def test_other_intensities_spacings_and_the_fold_are_told(here, tmp_path):
    plans = plan(HERE, spacing=[3.0, 1.0, 1.0], normalization_schemes=["CTNormalization"])
    _, found = examine(save(tmp_path / "start.pth", STOCK, plans), STOCK)
    assert [(one.level, one.text) for one in found] == [
        ("warning", "images were normalised to CTNormalization there, and are to ZScoreNormalization here"),
        ("note", "images were resampled to 3x1x1 mm there, and are to 1x1x1 mm here"),
        ("note", "it was trained on this dataset, fold 3"),
    ]


MERGED, TWIN = "Dataset900_Merged", "Dataset301_Twin"
FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]


def merged_of(*datasets: str) -> dict:
    table = {name[11:]: {"dataset": name, "labels": {"bone": 1}, "cases": ["a", "b", "c"]} for name in datasets}
    return {**description(LABELS, 1), "nnunet_plugins_sources": table}


def trained_on(file: Path, dataset: str, fold: int | str, content: dict, folds: list | None, here: Path) -> Path:
    """Let a checkpoint be of another dataset, which has splits or not; this one has `FOLDS`."""
    checkpoint = torch.load(save(file, STOCK, plan(dataset)), weights_only=False)
    checkpoint["init_args"] |= {"fold": fold, "dataset_json": content}
    torch.save(checkpoint, file)
    (here / "splits_final.json").write_text(json.dumps(FOLDS))
    if folds is not None:
        (here.parent / dataset).mkdir(exist_ok=True)
        (here.parent / dataset / "splits_final.json").write_text(json.dumps(folds))
    return file


def of_merged(folds: list) -> list:
    return [{part: [f"Here__{case}" for case in cases] for part, cases in fold.items()} for fold in folds]


def one_size(dataset: str) -> dict:
    return {"nnunet_plugins_fixed_size": {"dataset": dataset, "size": [9, 9, 9]}}


SEEN = [
    # The fold that it has not seen, as far as that is known; what it was trained on.
    (1, (MERGED, 1, merged_of(HERE, THERE), of_merged(FOLDS))),
    (None, (MERGED, 1, merged_of(HERE, THERE), of_merged([{"train": ["a", "b", "c"], "val": []}] * 2))),
    (None, (MERGED, 1, merged_of(HERE, THERE), None)),
    (None, (MERGED, "all", merged_of(HERE, THERE), None)),
    (0, (TWIN, 0, description(LABELS, 1) | one_size(HERE), FOLDS)),
    (0, (MERGED, 0, merged_of(HERE) | one_size("Dataset901_Both"), of_merged(FOLDS))),
    (None, (HERE, "all", description(LABELS, 1), None)),
    (0, (HERE, 0, description(LABELS, 1), FOLDS)),
]


@pytest.mark.parametrize(("unseen", "origin"), SEEN)
def test_cases_that_weights_have_seen_in_another_dataset_are_told(here, tmp_path, unseen, origin):
    _, (found,) = examine(trained_on(tmp_path / "start.pth", *origin, here), STOCK)
    dataset, fold, _, folds = origin
    assert "it was trained on " + ("this dataset" if dataset == HERE else f"cases of {HERE}") in found.text
    if unseen is not None:
        assert found.remedy.startswith(f"train fold {unseen} and no other")
    elif fold == "all" or folds:
        assert found.level == "warning"
        assert "and has seen validation cases of folds 0, 1 here" in found.text
    else:
        assert found.level == "warning"
        assert "nobody knows which folds" in found.text


@pytest.mark.parametrize(("unseen", "origin"), SEEN)
def test_nothing_is_validated_on_cases_that_weights_have_seen_in_another_dataset(
    here, tmp_path, capsys, unseen, origin
):
    file = trained_on(tmp_path / "start.pth", *origin, here)
    question = ["benchmark", "-d", "101", "-tr", f"{STOCK}_Pretrained", "--pretrained", str(file), "--device", "cpu"]
    for fold in (0, 1):
        code = main([*question, "-f", str(fold), "--dry-run", "-o", str(tmp_path / "out")])
        told = capsys.readouterr().err
        assert code == (0 if fold == unseen else 2), told
        assert (f"was trained on {origin[0]}, fold {origin[1]}, and has seen" in told) == (fold != unseen)
        assert "-f all" not in told


def test_a_case_is_the_same_however_the_letters_of_its_name_are_encoded(tmp_path):
    """`merge` and twins compose accents; in their own dataset cases have the names of their files."""
    own, merged, twin = (unicodedata.normalize("NFD", "Dataset011_Hüfte"), "Dataset900_Both", "Dataset012_Twin")
    sources = {"Hüfte": {"dataset": own, "labels": {"bone": 1}, "cases": []}}
    descriptions = {own: {}, merged: {**description(LABELS, 1), "nnunet_plugins_sources": sources}}
    descriptions[twin] = one_size(unicodedata.normalize("NFC", own))
    cases = [unicodedata.normalize("NFD", f"ä_{number}") for number in range(3)]
    for name in descriptions:
        written = [unicodedata.normalize("NFD" if name == own else "NFC", case) for case in cases]
        written = [f"Hüfte__{case}" if name == merged else case for case in written]
        (tmp_path / name).mkdir()
        folds = [{"train": [one for one in written if one != case], "val": [case]} for case in written]
        (tmp_path / name / "splits_final.json").write_text(json.dumps(folds))
    known = [Cases(name, content) for name, content in descriptions.items()]
    for weights in known:
        for dataset in known:
            assert folds_that_saw(weights, 0, dataset, tmp_path) == [1, 2]
            assert folds_that_saw(weights, "all", dataset, tmp_path) == [0, 1, 2]


def test_other_cases_are_no_matter(here, tmp_path):
    file = trained_on(tmp_path / "start.pth", MERGED, "all", merged_of(THERE, "Dataset102_Other"), None, here)
    assert examine(file, STOCK)[1] == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"nnunet_plugins_fixed_size": {}}, "'nnunet_plugins_fixed_size' has no 'dataset'"),
        ({"nnunet_plugins_sources": {"a": 1}}, "'nnunet_plugins_sources'['a'] has to be an object"),
        (
            {"nnunet_plugins_sources": {"a": {"dataset": "b", "labels": {"bone": []}, "cases": []}}},
            "'bone' of 'a' in 'nnunet_plugins_sources' has the value []",
        ),
    ],
)
def test_tables_that_make_no_sense_are_told(here, tmp_path, capsys, content, text):
    file = trained_on(tmp_path / "start.pth", MERGED, 0, description(LABELS, 1) | content, None, here)
    _, (found,) = examine(file, STOCK)
    assert found.text.startswith("nobody knows whether it has seen what is validated on: ")
    assert text in found.text
    question = ["benchmark", "-d", "101", "-tr", f"{STOCK}_Pretrained", "--pretrained", str(file), "--device", "cpu"]
    assert main([*question, "--dry-run", "-o", str(tmp_path / "out")]) == 2
    assert text in capsys.readouterr().err


def test_networks_of_places_are_others_in_another_patch(here, tmp_path):
    file = save(tmp_path / "start.pth", "nnUNetTrainerMetaSeg", plan(THERE, patch=(32, 16, 16)))
    _, (found,) = examine(file, "nnUNetTrainerMetaSeg")
    assert found.text == (
        "all weights fit, but the network is another one: the network depends on the patch, 32x16x16 there and "
        "16x16x16 here"
    )


def test_weights_without_plans_are_compared_as_far_as_possible(here, tmp_path):
    file = tmp_path / "start.pth"
    content = torch.load(save(file, STOCK, plan(THERE)), weights_only=False)
    more = {"something.else": torch.zeros(1)}
    torch.save({"network_weights": content["network_weights"] | more}, file)
    well, (unused, unknown) = examine(file, STOCK)
    assert loads(file, STOCK, here)
    assert well[0] == "weights of an unknown trainer on an unknown dataset, epoch unknown"
    assert unused.text.startswith("the network has no place for 1 weight of it, first of all something.else")
    assert unknown.text.startswith("it does not tell with which plans it was trained")


@pytest.mark.parametrize("name", ["whole numbers", "not finite"])
def test_weights_that_are_no_numbers(here, tmp_path, name):
    """nnU-Net turns whole numbers into others without a word, and trains from what is not finite."""
    file, key = tmp_path / "start.pth", "encoder.stages.0.0.convs.0.conv.weight"
    content = torch.load(save(file, STOCK, plan(THERE)), weights_only=False)
    weight = content["network_weights"][key]
    content["network_weights"][key] = weight.to(torch.int8) if name == "whole numbers" else weight / 0
    torch.save(content, file)
    _, (found,) = examine(file, STOCK)
    assert found.level == "problem"
    assert key in found.text


class Own(torch.nn.Module):
    """Of another package: with numbers of every kind, and a buffer that is not finite on purpose."""

    def __init__(self):
        super().__init__()
        self.spectral = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.table = torch.nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        self.norm = torch.nn.BatchNorm3d(2)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_weights_are_judged_by_what_they_are_for():
    network = Own()
    sound = network.state_dict()
    assert find_weight_fault(network, sound) is None
    half = {name: value.half() if value.is_floating_point() else value for name, value in sound.items()}
    assert find_weight_fault(network, half) is None
    for name in ("norm.running_var", "norm.weight", "spectral"):
        found = find_weight_fault(network, {**sound, name: sound[name] * torch.nan})
        assert found == f"{name} holds numbers that are not finite"
    assert find_weight_fault(network, {**sound, "table": sound["table"].to_sparse()}) == "table is no dense tensor"


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no checkpoint", "no checkpoint of nnU-Net that can be read safely: it is damaged or something else"),
        ({"state_dict": {}}, "start.pth is no checkpoint of nnU-Net: the content has no 'network_weights'"),
        ({"network_weights": {"a": 1}}, "['a'] has to be a Tensor"),
        ({"network_weights": Malicious()}, "it holds posix.system, which may run code"),
    ],
)
def test_files_that_are_no_checkpoint(here, tmp_path, monkeypatch, content, text):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "start.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    _, (found,) = examine(file, STOCK)
    assert found.level == "problem"
    assert text in found.text
    assert not (tmp_path / "owned").exists()


def test_what_its_plans_name_is_not_called(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, plans = tmp_path / "start.pth", plan(THERE)
    content = torch.load(save(file, STOCK, plans), weights_only=False)
    arguments = content["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", "owned"]}}
    torch.save(content, file)
    _, (found,) = examine(file, STOCK)
    assert "or these cannot be used" in found.text
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "101", "--pretrained", "none.pth"], "--pretrained none.pth is no file"),
        (["--pretrained", "none.pth"], "are about a dataset; give it with -d"),
    ],
)
def test_wrong_usage(here, capsys, options, message):
    assert main(["doctor", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_command_tells_it_after_the_training(here, tmp_path, capsys):
    file = save(tmp_path / "start.pth", STOCK, plan(THERE), 2)
    command = ["doctor", "-d", "101", "--pretrained", str(file)]
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [one["section"] for one in found][-3:] == ["Pretrained weights", "Pretrained weights", "Space"]
    assert main(command) == 1
    assert "  !! nnU-Net will not load it: 1 weight in another shape, first of all enc" in capsys.readouterr().out


# Trainings from weights


@pytest.mark.slow
def test_nothing_begins_from_scratch_under_the_name_of_a_start_from_weights(small, tmp_path):
    trainer = "nnUNetTrainer_1epochs_1iterations_Pretrained"
    train = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu")
    told = small.run(*train, "--c", ok=False).strip().splitlines()[-1]
    assert f"{trainer} starts from weights, and none were given: add -pretrained_weights CHECKPOINT" in told
    plans = json.loads((small.preprocessed / "Dataset001_Small" / "small.json").read_text())
    network = build_network(find_trainer(STOCK), setting(plans, 3, 1))
    start = tmp_path / "start.pth"
    torch.save({"network_weights": network.state_dict()}, start)
    small.run(*train, "-pretrained_weights", start)
    small.run(*train, "--c")
    # What the benchmark compares trainings by.
    described = ["Dataset001_Small", "3d_fullres", "small", trainer, str(tmp_path / "recipe.json")]
    code = f"from nnunet_plugins.benchmark.recipe import main; main({[*described, str(start)]})"
    small.run("python", "-c", code)
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"]["start"].startswith("weights ")


def test_weights_that_have_seen_the_cases_of_other_folds_are_refused(here, tmp_path, capsys):
    file = save(tmp_path / "start.pth", STOCK, plan(HERE))
    question = ["-d", "101", "-tr", STOCK, f"{STOCK}_Pretrained", "--pretrained", str(file), "--device", "cpu"]
    for folds in (["0", "3"], ["1"]):
        assert main(["benchmark", *question, "-f", *folds, "--dry-run", "-o", str(tmp_path / "out")]) == 2
        assert "was trained on Dataset101_Here, fold 3, and has seen what other folds" in capsys.readouterr().err
    assert main(["benchmark", *question, "-f", "3", "--dry-run", "-o", str(tmp_path / "out")]) == 0
    assert f"-pretrained_weights {file}" in capsys.readouterr().out
