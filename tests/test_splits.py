"""Splits that keep groups together: the splits themselves, the file nnU-Net reads, and what must not happen to it."""

import json
import unicodedata
from collections import Counter

import pandas as pd
import pytest
from conftest import write_dataset

from nnunet_plugins.cli import main
from nnunet_plugins.datasets.folders import PlanError
from nnunet_plugins.errors import InputError
from nnunet_plugins.planning.splits import group_splits, read_groups, source_splits, torn_groups
from nnunet_plugins.trainers.splitting import require_splits

GROUPS = {f"case_{n}": f"patient_{n // 2}" for n in range(10)}


def test_every_case_is_validated_once_and_no_group_is_torn():
    splits = group_splits(GROUPS, 5)
    assert sorted(case for split in splits for case in split["val"]) == sorted(GROUPS)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(GROUPS)
        assert len(split["val"]) == 2
    assert torn_groups(splits, GROUPS) == [[]] * 5


def test_splits_do_not_depend_on_the_order_of_the_table():
    assert group_splits(dict(reversed(GROUPS.items())), 3) == group_splits(GROUPS, 3)


def test_torn_groups_are_named_by_fold():
    splits = [
        {"train": ["case_0", "case_2", "case_3"], "val": ["case_1"]},
        {"train": ["case_0", "case_1"], "val": ["case_2", "case_3"]},
    ]
    assert torn_groups(splits, GROUPS) == [["patient_0"], []]


def test_fewer_groups_than_folds():
    with pytest.raises(PlanError, match="5 groups cannot be split into 6 folds"):
        group_splits(GROUPS, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,group\na,1\n", "needs the columns 'case' and 'group', it has name, group"),
        ("case,group\na,1\na,2\n", "a case a second time in row 3: a, 2"),
        ("case,group\na,1\nb,\n", "no group in row 3: b"),
        ("", "is empty"),
        ("case,group\n", "has no row below its head"),
        ("case,group\na,\n", "no group in row 2: a"),
        ("case,group\na\n", "no group in row 2: a"),
        ("case,group\na,1\n,2\n", "no case in row 3: , 2"),
        ("case,group,Case\na,1,b\n", "'case' stands there twice"),
        ("case;group\na;1\n", "its cells are separated by semicolons: save it as CSV with commas"),
        ("case\tgroup\na\t1\n", "its cells are separated by tabs"),
        ("case,group\na,1\nb,Smith, John\n", "has 3 cells in row 3, its head has 2; a name with a comma stands in"),
        ('case,group\na,"1\n', "cannot be read in row 2"),
        ("case,group\na,1\nMüller,2\n".encode("latin-1"), "is not in UTF-8, see row 3: Müller,2; save it as"),
        ("case,group\na,1\n".encode("utf-16"), "is in UTF-16, or no text; save it as CSV with commas, in UTF-8"),
        (b"PK\x03\x04rest of a spreadsheet", "is a spreadsheet, or another archive, and no CSV file"),
        (None, "No such file or directory"),
    ],
)
def test_unfit_tables_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        read_groups(tmp_path / "groups.csv")


def test_numbers_stay_as_they_are_written(tmp_path):
    (tmp_path / "groups.csv").write_text("group,case\n007, 01\n08,02\n")
    assert read_groups(tmp_path / "groups.csv") == {"01": "007", "02": "08"}


@pytest.mark.parametrize("name", ["NA", "N/A", "None", "null", "nan", "1e5", "001", "True"])
def test_names_are_names_whatever_they_look_like(tmp_path, name):
    (tmp_path / "groups.csv").write_text(f"case,group\n{name},a\nother,{name}\n")
    assert read_groups(tmp_path / "groups.csv") == {name: "a", "other": name}


@pytest.mark.parametrize(
    "text",
    [
        "Case,Group\na,1\nb,2\n",
        " CASE , group \n a , 1 \n b,2 \n",
        "\ufeffcase,group\na,1\nb,2\n",
        "case,group\r\na,1\r\nb,2\r\n,\r\n\r\n",
        "case,group\ra,1\rb,2\r",
        '"case","group"\n"a","1"\n"b","2"\n',
        "case,hospital,group,\na,x,1,\nb,,2,\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, text):
    (tmp_path / "groups.csv").write_bytes(text.encode())
    assert read_groups(tmp_path / "groups.csv") == {"a": "1", "b": "2"}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Dataset 1 as preprocessing leaves it, as far as splits go; returns its folder and a table of its groups."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset001_Small"
    (folder / "gt_segmentations").mkdir(parents=True)
    for case in GROUPS:
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    table = tmp_path / "groups.csv"
    pd.DataFrame({"case": GROUPS.keys(), "group": GROUPS.values()}).to_csv(table, index=False)
    return folder, table


def split(table, *options):
    return main(["split", "-d", "Dataset001_Small", "--groups", str(table), *options])


def test_writes_once_and_changes_only_when_told_to(dataset, capsys):
    folder, table = dataset
    file = folder / "splits_final.json"
    assert split(table) == 0
    assert json.loads(file.read_text()) == group_splits(GROUPS, 5)
    assert f"Wrote {file}" in capsys.readouterr().out
    assert split(table) == 0
    assert split(table, "--folds", "3") == 2
    assert "holds other splits already; give --overwrite" in capsys.readouterr().err
    assert split(table, "--folds", "3", "--overwrite") == 0
    assert json.loads(file.read_text()) == group_splits(GROUPS, 3)


def test_splits_of_a_training_stay(dataset, tmp_path, capsys):
    folder, table = dataset
    assert split(table) == 0
    fold = tmp_path / "nnUNet_results" / "Dataset001_Small" / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    before = (folder / "splits_final.json").read_text()
    assert split(table, "--folds", "3", "--overwrite") == 2
    assert f"1 trainings used them, first of all {fold}" in capsys.readouterr().err
    assert (folder / "splits_final.json").read_text() == before
    assert split(table) == 0, "the same splits are no change"


def test_the_same_folds_in_another_order_are_no_change(dataset, tmp_path, capsys):
    """The file stays, for trainings are recorded with its hash; but names get the letters of the files."""
    folder, table = dataset
    file = folder / "splits_final.json"
    turned = [{part: names[::-1] for part, names in fold.items()} for fold in group_splits(GROUPS, 5)]
    file.write_text(json.dumps(turned))
    fold = tmp_path / "nnUNet_results" / "Dataset001_Small" / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    assert split(table) == 0, capsys.readouterr().err
    assert json.loads(file.read_text()) == turned
    written = unicodedata.normalize("NFD", "é_0")
    (folder / "gt_segmentations" / "case_0.nii.gz").rename(folder / "gt_segmentations" / f"{written}.nii.gz")
    table.write_text(table.read_text().replace("case_0", "é_0"))
    file.write_text(file.read_text().replace("case_0", "é_0"))
    assert split(table) == 0, capsys.readouterr().err
    assert any(written in fold["val"] for fold in json.loads(file.read_text()))
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    assert split(table) == 2, "other folds by their numbers"


def test_leakage_check(dataset, capsys):
    folder, table = dataset
    assert split(table, "--leakage-check") == 2
    assert "splits_final.json is missing" in capsys.readouterr().err
    cases = sorted(GROUPS)
    random = [{"train": cases[1:], "val": cases[:1]}, {"train": cases[:8], "val": cases[8:]}]
    (folder / "splits_final.json").write_text(json.dumps(random))
    assert split(table, "--leakage-check") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "9", "1", "1:", "patient_0"]
    assert lines[2].split() == ["1", "8", "2", "0"]
    assert json.loads((folder / "splits_final.json").read_text()) == random
    assert split(table, "--overwrite") == 0
    assert split(table, "--leakage-check") == 0
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["stranger"], "val": cases}]))
    assert split(table, "--leakage-check") == 2
    assert "holds stranger, which is no case of Dataset001_Small" in capsys.readouterr().err


def test_cases_without_a_group_are_named(dataset, capsys):
    _, table = dataset
    pd.DataFrame({"case": ["case_0"], "group": ["a"]}).to_csv(table, index=False)
    assert split(table) == 2
    assert "names no group for 9 of 10 cases, first of all case_1" in capsys.readouterr().err


def test_one_letter_encoded_in_two_ways_is_one_letter(dataset, capsys):
    folder, table = dataset
    names = {"case_0": "Müller_0", "case_1": "Müller_1"}
    for (old, new), form in zip(names.items(), ("NFC", "NFD"), strict=True):
        truth = folder / "gt_segmentations" / f"{old}.nii.gz"
        truth.rename(truth.with_name(f"{unicodedata.normalize(form, new)}.nii.gz"))
    rows = [(names.get(case, case), group) for case, group in GROUPS.items()]
    for form in ("NFD", "NFC"):
        text = "case,group\n" + "".join(f"{case},{group}\n" for case, group in rows)
        table.write_text(unicodedata.normalize(form, text))
        assert split(table) == 0, capsys.readouterr().err
    for fold in json.loads((folder / "splits_final.json").read_text()):
        # The names are those of the files, which nnU-Net will look for.
        for name in [*fold["train"], *fold["val"]]:
            assert (folder / "gt_segmentations" / f"{name}.nii.gz").is_file()


def test_what_is_no_truth_is_in_no_split_and_named(dataset, capsys):
    folder, table = dataset
    truths = folder / "gt_segmentations"
    for name in ("._case_1.nii.gz", ".DS_Store", "case_1.mha", "notes.txt"):
        (truths / name).touch()
    assert main(["split", "-d", "Dataset001_Small"]) == 0
    said = capsys.readouterr().err
    for name in ("._case_1.nii.gz", ".DS_Store", "case_1.mha", "notes.txt"):
        assert name in said
    splits = json.loads((folder / "splits_final.json").read_text())
    assert {case for fold in splits for part in fold.values() for case in part} == set(GROUPS)
    for form in ("NFC", "NFD"):
        (truths / f"{unicodedata.normalize(form, 'Müller')}.nii.gz").touch()
    if len(list(truths.glob("M*"))) == 2:
        assert split(table) == 2
        assert "which one is meant cannot be known" in capsys.readouterr().err
        next(truths.glob("M*")).unlink()
        next(truths.glob("M*")).unlink()
    (truths / "gone.nii.gz").symlink_to(truths / "nowhere")
    assert split(table) == 2
    assert "gone.nii.gz is a link to what is not there" in capsys.readouterr().err


def test_too_many_folds_come_with_a_number_that_works(dataset, capsys):
    _, table = dataset
    for options in ([], ["--groups", str(table)]):
        assert main(["split", "-d", "Dataset001_Small", "--folds", "20", *options]) == 2
        number = capsys.readouterr().err.split("give --folds ")[1].split()[0]
        assert main(["split", "-d", "Dataset001_Small", "--folds", number, "--overwrite", *options]) == 0


def write_data(folder, configuration, cases):
    (folder / configuration).mkdir()
    for case in cases:
        (folder / configuration / f"{case}.pkl").touch()


def write_raw(folder, cases, *, listed=False):
    """Write the dataset's raw folder, as far as it says which cases there are."""
    raw = folder.parents[1] / "nnUNet_raw" / folder.name
    (raw / "imagesTr").mkdir(parents=True)
    description = {"file_ending": ".nii.gz"}
    if listed:
        description["dataset"] = {case: {"label": f"{case}.nii.gz", "images": []} for case in cases}
    else:
        for case in cases:
            (raw / "imagesTr" / f"{case}_0000.nii.gz").touch()
    (raw / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parametrize("known", ["raw", "raw, listed", "raw, and old data", "data"])
def test_cases_that_have_left_the_dataset_are_in_no_split(dataset, capsys, known):
    """nnU-Net keeps the truth of a case that was removed before the dataset was preprocessed again."""
    folder, table = dataset
    left = [case for case in GROUPS if case != "case_5"]
    if known != "data":
        write_raw(folder, left, listed="listed" in known)
    write_data(folder, "nnUNetPlans_3d_fullres", left)
    if "old" in known:
        write_data(folder, "nnUNetPlans_2d", GROUPS)
    pd.DataFrame([(case, GROUPS[case]) for case in left], columns=["case", "group"]).to_csv(table, index=False)
    for options in ([], ["--groups", str(table)]):
        assert main(["split", "-d", "Dataset001_Small", "--overwrite", *options]) == 0, capsys.readouterr().err
        for fold in json.loads((folder / "splits_final.json").read_text()):
            assert sorted(fold["train"] + fold["val"]) == left


def test_cases_that_are_not_preprocessed_yet_stay(dataset):
    """A preprocessing that was killed has not removed a case from the dataset."""
    folder, _ = dataset
    write_raw(folder, GROUPS)
    write_data(folder, "nnUNetPlans_3d_fullres", ["case_0"])
    assert main(["split", "-d", "Dataset001_Small"]) == 0
    fold = json.loads((folder / "splits_final.json").read_text())[0]
    assert sorted(fold["train"] + fold["val"]) == sorted(GROUPS)


@pytest.mark.slow
def test_nnunet_trains_on_them(sandbox, monkeypatch, tmp_path):
    write_dataset(sandbox.raw, "Dataset001_Small", cases=6)
    sandbox.prepare(1, "3d_fullres")
    sandbox.edit_plans("Dataset001_Small", "small")
    cases = [f"case_{n}" for n in range(6)]
    pd.DataFrame({"case": cases, "group": [1, 1, 2, 2, 3, 3]}).to_csv(tmp_path / "groups.csv", index=False)
    sandbox.run("nnunet-plugins", "split", "-d", 1, "--groups", tmp_path / "groups.csv", "--folds", 3)
    expected = json.loads((sandbox.preprocessed / "Dataset001_Small" / "splits_final.json").read_text())[0]["val"]
    summary = sandbox.train("Dataset001_Small", "3d_fullres", "nnUNetTrainer_1epochs_1iterations")
    validated = {case["prediction_file"].split("/")[-1].removesuffix(".nii.gz") for case in summary["metric_per_case"]}
    assert validated == set(expected)
    assert len(validated) == 2


@pytest.mark.slow
def test_cases_are_removed_from_a_dataset_until_three_are_left(sandbox):
    """What nnU-Net leaves of them is in no split, and three cases take no five folds."""
    name, trainer = "Dataset002_Fewer", "nnUNetTrainer_1epochs_1iterations"
    raw = write_dataset(sandbox.raw, name, cases=5)
    sandbox.prepare(2, "3d_fullres")
    for case in ("case_3", "case_4"):
        (raw / "imagesTr" / f"{case}_0000.nii.gz").unlink()
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()
    sandbox.run("nnUNetv2_preprocess", "-d", 2, "-c", "3d_fullres", "-np", 1)
    sandbox.edit_plans(name, "small")
    assert len(list((sandbox.preprocessed / name / "gt_segmentations").iterdir())) == 5

    train = ("nnUNetv2_train", 2, "3d_fullres", 0, "-tr", trainer, "-p", "small", "-device", "cpu")
    last = sandbox.run(*train, ok=False).strip().splitlines()[-1]
    assert "3 cases in" in last
    command = last.partition("make splits that fit: ")[2].split()
    assert command[:2] == ["nnunet-plugins", "split"]
    sandbox.run(*command)
    splits = json.loads((sandbox.preprocessed / name / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == ["case_0", "case_1", "case_2"]
    sandbox.train(name, "3d_fullres", trainer)

    splits[0]["train"].append("case_4")
    (sandbox.preprocessed / name / "splits_final.json").write_text(json.dumps(splits))
    last = sandbox.run(*train, ok=False).strip().splitlines()[-1]
    assert "names case_4" in last
    assert "nnunet-plugins doctor -d Dataset002_Fewer" in last


@pytest.fixture
def merged(dataset):
    """The same as if it were merged of a large source and a small one."""
    folder, table = dataset
    names = {case: f"{'b' if case[-1] in '789' else 'a'}__{case}" for case in GROUPS}
    for old, new in names.items():
        (folder / "gt_segmentations" / f"{old}.nii.gz").rename(folder / "gt_segmentations" / f"{new}.nii.gz")
    sources = {name: {"dataset": name, "labels": {"bone": 1}, "cases": []} for name in "ab"}
    description = {"file_ending": ".nii.gz", "labels": {"bone": 1}, "nnunet_plugins_sources": sources}
    (folder / "dataset.json").write_text(json.dumps(description))
    groups = {names[case]: f"{names[case][0]}{group}" for case, group in GROUPS.items()}
    pd.DataFrame({"case": groups.keys(), "group": groups.values()}).to_csv(table, index=False)
    return folder, table, groups


def test_each_source_of_a_merged_dataset_is_split_on_its_own(merged):
    folder, _, groups = merged
    assert main(["split", "-d", "1", "--strata", "sources", "--folds", "3"]) == 0
    splits = json.loads((folder / "splits_final.json").read_text())
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(groups)
        assert len([case for case in split["val"] if case.startswith("b")]) == 1
    assert sorted(case for split in splits for case in split["val"]) == sorted(groups)


def test_groups_stay_together_in_the_splits_of_sources(merged):
    folder, table, groups = merged
    assert split(table, "--strata", "sources", "--folds", "2") == 0
    splits = json.loads((folder / "splits_final.json").read_text())
    assert torn_groups(splits, groups) == [[], []]
    assert all({case[0] for case in split["val"]} == {"a", "b"} for split in splits)


def test_what_splits_of_sources_cannot_be_is_said(merged, capsys):
    folder, table, _ = merged
    assert split(table, "--strata", "sources") == 2
    assert "a: 4 groups cannot be split into 5 folds; give --folds 4" in capsys.readouterr().err
    assert main(["split", "-d", "1", "--strata", "sources", "--folds", "4"]) == 2
    assert "b: 3 cases cannot be split into 4 folds; give --folds 3" in capsys.readouterr().err
    (folder / "gt_segmentations" / "c__1.nii.gz").touch()
    assert main(["split", "-d", "1", "--strata", "sources", "--folds", "2"]) == 2
    assert "c__1 is of no source: names of cases begin with a__ or b__" in capsys.readouterr().err
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "labels": {"bone": 1}}))
    assert main(["split", "-d", "1", "--strata", "sources"]) == 2
    assert "has no 'nnunet_plugins_sources', which tells" in capsys.readouterr().err


@pytest.mark.parametrize(("kept", "options"), [("0178", "--strata sources --folds 2"), ("0127", "--folds 2")])
def test_a_training_on_few_merged_cases_names_a_command_that_works(merged, kept, options):
    """A source of one case is not split on its own."""
    folder, _, groups = merged
    data = folder / "data"
    data.mkdir()
    for case in groups:
        if case[-1] in kept:
            (data / f"{case}.pkl").touch()
        else:
            (folder / "gt_segmentations" / f"{case}.nii.gz").unlink()
    with pytest.raises(RuntimeError, match=r"4 cases in .*, which nnU-Net cannot split into 5 folds") as error:
        require_splits(folder / "splits_final.json", data, 0)
    command = str(error.value).partition("make splits that fit: nnunet-plugins ")[2]
    assert command == f"split -d Dataset001_Small {options}"
    assert main(command.split()) == 0
    require_splits(folder / "splits_final.json", data, 1)


def share_patients(folder, table, groups, shared):
    """Give cases of the sources one group, and the first of them many cases, and write the table."""
    groups = {**groups, **dict.fromkeys(shared, "in both")}
    for number in range(6):
        case = f"a__more_{number}"
        (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
        groups[case] = "large"
    pd.DataFrame({"case": groups.keys(), "group": groups.values()}).to_csv(table, index=False)
    return groups


def test_a_patient_in_two_sources_stays_together(merged, capsys):
    folder, table, groups = merged
    groups = share_patients(folder, table, groups, ["a__case_0", "a__case_1", "b__case_9"])
    assert split(table, "--strata", "sources", "--folds", "2") == 0
    splits = json.loads((folder / "splits_final.json").read_text())
    assert torn_groups(splits, groups) == [[], []]
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(groups)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(groups)
        assert sorted(case[0] for case in fold["val"]).count("b") in (1, 2)
        assert 6 <= len([case for case in fold["val"] if case.startswith("a")]) <= 7
    assert split(table, "--leakage-check") == 0
    assert split(table, "--strata", "sources", "--folds", "2") == 0, "the same again"


def test_groups_within_their_sources_are_split_as_ever(merged):
    folder, table, _ = merged
    assert split(table, "--strata", "sources", "--folds", "2") == 0
    first, second = json.loads((folder / "splits_final.json").read_text())
    assert sorted(first["val"]) == ["a__case_0", "a__case_1", "a__case_6", "b__case_8", "b__case_9"]
    assert sorted(second["val"]) == ["a__case_2", "a__case_3", "a__case_4", "a__case_5", "b__case_7"]


def test_shared_patients_are_split_where_the_largest_first_leave_a_source_out_of_a_fold():
    sizes = [{"A": 2, "B": 1, "C": 1}, {"B": 1, "C": 5}, {"A": 5, "C": 1}, {"A": 5, "C": 5}, {"A": 1, "B": 1, "C": 2}]
    groups = {
        f"{source}__{group}_{number}": str(group)
        for group, size in enumerate(sizes)
        for source in size
        for number in range(size[source])
    }
    splits = source_splits(sorted(groups), {case: case[0] for case in groups}, 3, groups)
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(groups)
    assert torn_groups(splits, groups) == [[], [], []]
    assert all({case[0] for case in fold["val"]} == {"A", "B", "C"} for fold in splits)
    assert splits == source_splits(sorted(groups), {case: case[0] for case in groups}, 3, groups), "the same again"


def test_a_small_source_of_shared_patients_is_shared_out_as_evenly_as_a_large_one():
    sizes = [(10, 2), (5, 0), (20, 1), (20, 1), (5, 2)]
    groups = {
        f"{source}__{group}_{number}": str(group)
        for group, size in enumerate(sizes)
        for source, cases in zip("ab", size, strict=True)
        for number in range(cases)
    }
    splits = source_splits(sorted(groups), {case: case[0] for case in groups}, 2, groups)
    assert [Counter(case[0] for case in fold["val"]) for fold in splits] == [{"a": 30, "b": 3}] * 2


def test_shared_patients_that_leave_a_source_out_of_a_fold_are_refused():
    """Of three patients, of whom each source has two, some two share one of two folds."""
    groups = {"a__1": "1", "a__2": "2", "b__2": "2", "b__3": "3", "c__1": "1", "c__3": "3"}
    sources = {case: case[0] for case in groups}
    with pytest.raises(PlanError, match=r"[abc]: groups .* no split into 2 folds was found .*; leave out --strata"):
        source_splits(sorted(groups), sources, 2, groups)
