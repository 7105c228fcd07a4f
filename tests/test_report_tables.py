"""The tables of a report: what is compared, what is left out and said, and that all files hold the same numbers."""

import dataclasses
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from report_records import ENSEMBLE, make_record

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.findings import summarise
from nnunet_plugins.report.latex import write_latex
from nnunet_plugins.report.record import Record, describe_role, read_record
from nnunet_plugins.report.scores import score
from nnunet_plugins.report.showing import DICE
from nnunet_plugins.report.statistics import compare, mean_with_ci
from nnunet_plugins.report.tables import sections
from nnunet_plugins.report.words import show_number, show_p
from nnunet_plugins.report.writing import write_challenger, write_csv, write_markdown

BASELINE = "nnUNetTrainer"


def only(record: Record):
    (comparison,) = analyse(record).comparisons
    return comparison


def said(record: Record) -> str:
    return "\n".join(caveats(only(record)))


def summary(record: Record) -> str:
    """The summary of the only comparison."""
    return summarise(only(record))


def change(record: Record, **columns) -> Record:
    return dataclasses.replace(record, results=record.results.assign(**columns))


def test_a_comparison_is_one_split_dataset_and_configuration():
    record = make_record(
        algorithms=2, cases=5, datasets=2, configurations=("2d", "3d_fullres"), splits=("cross-validation", "test")
    )
    found = analyse(record).comparisons
    assert [comparison.title for comparison in found] == [
        f"Dataset{number:03}_Made, {configuration}, {split}"
        for number in (1, 2)
        for configuration in ("2d", "3d_fullres")
        for split in ("cross-validation", "test")
    ]
    for comparison in found:
        place = comparison.dataset, comparison.configuration
        assert comparison.scores.there.shape == (2, 5, 2)
        assert len(comparison.runs) == 2 * 5
        for table in (comparison.runs, comparison.curves):
            assert set(zip(table["dataset"], table["configuration"], strict=True)) == {place}
        assert comparison.equality is not None
        assert (comparison.equality.dataset, comparison.equality.configuration) == place
        assert comparison.baseline == BASELINE


def test_leaderboard_holds_the_statistics_of_dice():
    record = make_record(cases=12)
    board = only(record).board
    scores = score(record.results).by_case("Dice")
    assert board["place"].tolist() == [1, 2, 3, 4]
    assert board["Dice"].is_monotonic_decreasing
    for ours, theirs in ((board["Dice"], scores.mean()), (board["ci_high"], mean_with_ci(scores)["ci_high"])):
        pd.testing.assert_series_equal(ours, theirs[board.index], check_names=False)
    for metric in METRICS:
        assert_allclose(board[metric], score(record.results).by_case(metric).mean()[board.index])
    compared = compare(scores, BASELINE, higher_is_better=True)
    others = board.drop(BASELINE)
    assert_allclose(others["p_holm"], compared.loc[others.index, "p_holm"])
    assert (others[["wins", "ties", "losses"]].sum(axis=1) == 12).all()
    assert board.loc[BASELINE, ["p_holm", "wins", "ties", "losses"]].isna().all()
    assert_allclose(board["mean_rank"].sum(), 4 * 5 / 2)
    assert (board["flags"] == "").all()


def test_cases_that_one_algorithm_lacks_count_for_nobody():
    record = make_record(algorithms=3, cases=10, missing=4)
    comparison, last = only(record), record.results["algorithm"].unique()[-1]
    assert sorted(comparison.scores.cases) == [f"case_{n:03}" for n in range(6)]
    board = comparison.board
    assert board["cases"].tolist() == [6, 6, 6]
    assert board["lacking"].to_dict() == {**dict.fromkeys(board.index, 0), last: 4}
    assert board.loc[last, "flags"] == "lacks 4 cases"
    shared = record.results[record.results["case"] < "case_006"]
    assert_allclose(board["Dice"], score(shared).by_case("Dice").mean()[board.index])
    assert f"Only the 6 of 10 cases that all have count: {last} lacks 4." in said(record)
    assert "that all have" not in said(make_record(cases=10))


def test_cases_that_could_not_be_evaluated_are_named():
    record = make_record(algorithms=2)
    (place,) = record.results[["dataset", "configuration", "split"]].drop_duplicates().itertuples(index=False)
    record.about["left_out"] = {f"{place.dataset}/{place.configuration}": {place.split: ["case_bad"]}}
    assert "Left out for all algorithms alike: case_bad." in said(record)
    assert "lacks 1" in said(record)


def test_no_case_in_common():
    record = make_record(algorithms=2, cases=4)
    results = record.results
    half = results["case"].isin(["case_000", "case_001"])
    torn = dataclasses.replace(record, results=results[half == (results["algorithm"] == BASELINE)])
    board = only(torn).board
    assert board["lacking"].tolist() == [2, 2]
    assert board[["place", "Dice", "p_holm", "mean_rank"]].isna().all(axis=None)
    assert "Only the 0 of 4 cases that all have count" in said(torn)
    assert sections(only(torn))[0].table[DICE].tolist() == ["–", "–"]  # noqa: RUF001 - a dash


def test_a_failed_algorithm_is_listed_without_results():
    record = make_record(algorithms=3, failed=1)
    comparison = only(record)
    gone = record.curves["algorithm"].unique()[-1]
    board = comparison.board
    assert board.index[-1] == gone
    assert board.loc[gone, ["lacking", "flags"]].tolist() == [20, "no results"]
    assert board.loc[gone, [*METRICS, "ci_low", "place", "p_holm", "wins", "losses"]].isna().all()
    assert f"Without results: {gone}." in said(record)
    assert list(comparison.paired["Dice"].index) == [board.drop([gone, BASELINE]).index[0]]


def test_without_a_baseline_nothing_is_compared():
    record = make_record(algorithms=3, cases=8)
    rest = dataclasses.replace(record, results=record.results[record.results["algorithm"] != BASELINE])
    comparison = only(rest)
    assert comparison.baseline is None
    assert comparison.paired["Dice"].empty
    board = comparison.board
    assert board["place"].tolist()[:2] == [1, 2]
    assert board["p_holm"].isna().all()
    assert "The baseline has no results, so nothing is compared with it." in said(rest)
    assert not any(section.caption.startswith("Paired") for section in sections(comparison))


@pytest.mark.parametrize(
    ("role", "caveat"),
    [
        ("ensemble", "Ensembles take no part in ranks and tests"),
        ("choice", "nnU-Net's choice, made by cross-validation, takes no part in ranks and tests"),
        ("one pass", "take no part in ranks and tests: they are the trainings of the rows with tiles"),
        ("atlas", "takes no part in ranks and tests: it is no network and sees no image"),
    ],
)
def test_ensembles_and_the_choice_are_shown_but_not_ranked_or_tested(role, caveat):
    with_ensemble, without = (make_record(cases=10, ensemble=ensemble) for ensemble in (True, False))
    with_ensemble.results["role"] = with_ensemble.results["role"].replace("ensemble", role)
    board, plain = only(with_ensemble).board, only(without).board
    assert board.index[-1] == ENSEMBLE
    assert board.loc[ENSEMBLE, "Dice"] > board["Dice"].iloc[0], "it would have been first"
    assert board.loc[ENSEMBLE, ["place", "p_holm", "wins", "mean_rank"]].isna().all()
    assert board.loc[ENSEMBLE, "flags"] == "not ranked"
    pd.testing.assert_frame_equal(board.drop(ENSEMBLE), plain)
    assert caveat in said(with_ensemble)
    assert caveat not in said(without)
    assert ENSEMBLE in only(with_ensemble).by_label["Dice"].index


def test_networks_that_are_not_above_the_atlas_are_named():
    record = make_record(algorithms=3, cases=10, ensemble=True)
    results = record.results
    results["role"] = results["role"].replace("ensemble", "atlas")
    atlas = results["role"] == "atlas"
    first, *others = only(record).ranked
    means = results.groupby("algorithm")["Dice"].mean()
    results.loc[atlas, "Dice"] = (means[first] + means[others[0]]) / 2
    line = f"without seeing an image: {', '.join(others)}. They may have learnt positions only."
    assert line in said(record)
    results.loc[atlas, "Dice"] = 0.0
    assert "Not above the atlas" not in said(record)


def test_a_network_that_found_nothing_is_called_untrained():
    record = make_record(algorithms=3, cases=6, ensemble=True)
    last = record.results["algorithm"].unique()[2]
    rows = record.results["algorithm"] == last
    record.results.loc[rows, "Dice"] = 0.0
    assert only(record).blank == [last]
    assert f"Not trained long enough: {last} found nothing in any case" in said(record)
    assert summary(record).endswith(f"Not trained long enough to find anything: {last}.")
    record.results.loc[rows.idxmax(), "Dice"] = 0.1
    assert only(record).blank == []
    assert "Not trained" not in said(record) + summary(record)


def test_the_cases_of_an_ensemble_do_not_limit_the_others():
    record = make_record(algorithms=2, cases=6, ensemble=True)
    results = record.results
    lacking = (results["algorithm"] == ENSEMBLE) & (results["case"] == "case_000")
    board = only(dataclasses.replace(record, results=results[~lacking])).board
    assert board["cases"].tolist() == [6, 6, 5]
    assert board.loc[ENSEMBLE, "flags"] == "not ranked; lacks 1 case"


def test_empty_masks_are_counted_and_said():
    record = make_record(algorithms=3, cases=10, both_empty=2, one_empty=1)
    board, last = only(record).board, record.results["algorithm"].unique()[-1]
    assert (board["absent"] == 2).all()
    assert (board["found"] == 0).all()
    assert board["missed"].to_dict() == {**dict.fromkeys(board.index, 0), last: 1}
    assert np.isfinite(board[list(METRICS)].astype(float)).all(axis=None)
    assert "A label of the truth is missed 1 times, over all algorithms: Dice and NSD are 0 there" in said(record)
    assert "2 of 20 labels (over the cases) are not in the truth" in said(record)
    assert "truth" not in said(make_record()).replace("that its truth has", "")


def test_flags_name_what_an_algorithm_has_of_its_own():
    record = make_record(algorithms=3, own_plan=True, unequal=True, accepted=True)
    flags = only(record).board["flags"]
    assert flags[f"{BASELINE} (nnUNetResEncUNetMPlans)"] == "differs in: plans"
    assert flags[record.results["algorithm"].unique()[-1]] == "unequal: plans, epochs; differs in: optimizer"
    assert flags[BASELINE] == ""


def test_the_baselines_network_under_another_loss_is_flagged_as_such():
    names = [BASELINE, f"{BASELINE}_TopKLoss", f"{BASELINE}_30percentCELoss", "nnUNetTrainerFIRENet_TopKLoss"]
    record = make_record(algorithms=names)
    for name, recipe in record.equality[0]["recipes"].items():
        recipe["loss"] = "TopKLoss" if name.endswith("TopKLoss") else "DC_and_CE_loss"
        recipe |= {"loss.weight_ce": 0.6 if "30" in name else 1}
    flags = only(record).board["flags"]
    other = "same network, other loss"
    assert flags.to_dict() == dict(zip(names, ("", other, other, "differs in: loss"), strict=True))


def test_what_could_not_be_described_of_a_trainer_is_a_flag():
    record = make_record(algorithms=3, folds=2)
    name = record.results["algorithm"].unique()[1]
    for recipe in record.equality[0]["recipes"].values():
        recipe["augmentation"] = "Compose"
    record.equality[0]["recipes"][name]["augmentation"] = "unknown"
    flags = only(record).board["flags"]
    assert flags.to_dict() == {**dict.fromkeys(flags.index, ""), name: "unknown: augmentation"}
    assert f"no record tells the augmentation of {name} (folds 0, 1)" in said(record)


def test_networks_on_plans_of_their_own_are_said_to_be_compared_at_the_same_memory():
    record = make_record(algorithms=2, own_plan=True, ensemble=True)
    assert "same memory" not in said(record)
    own = record.results["trainer"].radd("nnUNetPlans_").where(record.results["role"].isin(["baseline", "method"]))
    record = change(record, plans=own.fillna(record.results["plans"]))
    baseline, method = record.results.loc[record.results["role"].isin(["baseline", "method"]), "plans"].unique()
    assert f"at the same memory, not on the same plans: each has its own ({baseline}, {method})" in said(record)


def test_the_gravest_caveats_come_first():
    record = make_record(algorithms=3, unequal=True, accepted=True)
    name = record.results["algorithm"].unique()[-1]
    lines = caveats(only(record))
    assert lines[1] == (
        f"Not a fair comparison (accepted with --allow-unequal): {name} was trained with epochs 10, the baseline "
        "with 20."
    )
    assert "accepted" not in said(make_record())
    assert "Nothing is known of whether" in said(dataclasses.replace(record, equality=[]))


def test_caveats_of_the_protocol():
    record = make_record()
    text = said(record)
    for words in ("share models", "(the seed)", "NSD at 1 mm; distances in mm by MONAI 1.6.1", "Pseudo Dice"):
        assert words in text
    assert "(the seed)" not in said(make_record(repeats=2))
    assert "share most of their training cases" in said(make_record(repeats=2))
    assert "share models" not in said(make_record(splits=("test",)))
    assert "NSD at 1, 2 mm" in said(change(record, tolerance_mm=np.where(record.results["label"] == "1", 1.0, 2.0)))


@pytest.mark.parametrize(
    ("algorithms", "cases", "words", "smallest"),
    [(3, 6, "6 cases and 2 tests", "0.062"), (40, 7, "7 cases and 39 tests", "0.609")],
)
def test_few_cases_cannot_be_significant(algorithms, cases, words, smallest):
    record = make_record(algorithms=algorithms, cases=cases, folds=1)
    assert f"With {words} against {BASELINE} no adjusted p value can lie below {smallest}," in said(record)


def test_enough_cases_can_be_significant():
    assert "can lie below" not in said(make_record(algorithms=2, cases=6))
    assert "5 cases are too few to test anything" in said(make_record(algorithms=2, cases=5))
    assert "1 case is too few to test anything" in said(make_record(algorithms=2, cases=1))
    for cases, smallest in ((5, np.nan), (6, 0.03125)):
        record = make_record(algorithms=2, cases=cases)
        better = change(record, Dice=record.results["Dice"].where(record.results["algorithm"] == BASELINE, 1.0))
        assert_allclose(only(better).paired["Dice"]["p_holm"], smallest)


def test_labels_by_name_where_it_is_their_own():
    record = make_record(algorithms=2, cases=4, labels=3, both_empty=1)
    found = only(record)
    assert list(found.labels.values()) == ["Anterior", "Posterior", "part_3"]
    rows = record.results[(record.results["algorithm"] == BASELINE) & (record.results["label"] == "3")]
    assert_allclose(found.by_label["Dice"].loc[BASELINE, "3"], rows["Dice"].iloc[1:].mean())
    names = record.results["label"].map({"1": "edema", "2": "edema", "3": np.nan})
    assert list(only(change(record, name=names)).labels.values()) == ["1", "2", "3"]


def test_many_labels_go_down_the_page():
    many, few = (sections(only(make_record(algorithms=3, cases=4, labels=labels))) for labels in (10, 2))
    (tall,) = (section.table for section in many if section.caption == "Dice by label, higher is better")
    (flat,) = (section.table for section in few if section.caption == "Dice by label, higher is better")
    assert tall.shape == (10, 4)
    assert list(tall["Label"][:3]) == ["Anterior", "Posterior", "part_3"]
    assert flat.shape == (3, 3)
    assert list(flat.columns) == ["Algorithm", "Anterior", "Posterior"]
    single = sections(only(make_record(cases=4, labels=1)))
    assert not any("by label" in section.caption for section in single)


def test_costs_are_means_over_folds():
    record = make_record(algorithms=2, folds=3)
    found = only(record).costs
    runs = record.runs[record.runs["algorithm"] == BASELINE]
    assert found.loc[BASELINE, "folds"] == 3
    assert_allclose(found.loc[BASELINE, "seconds_per_epoch"], runs["seconds_per_epoch"].mean())
    assert found.loc[BASELINE, ["patch_size", "device"]].tolist() == ["96x96x96", "NVIDIA H200"]
    mixed = record.runs.assign(peak_memory_bytes=np.nan, device=["CPU", "GPU", "CPU", *["GPU"] * 3])
    found = only(dataclasses.replace(record, runs=mixed)).costs
    assert found["device"].tolist() == ["CPU, GPU", "GPU"]
    assert found["peak_memory_bytes"].isna().all()
    (shown,) = (part.table for part in sections(only(record)) if part.caption.startswith("Costs"))
    first = shown.iloc[0]
    assert first[["Parameters (M)", "Forward pass (GFLOP)", "Peak memory (GiB)"]].tolist() == ["30.00", "400.0", "6.00"]
    assert_allclose(float(first["Energy (kWh)"]), runs["energy_joules"].mean() / 3.6e6, atol=5e-4)
    unknown = dataclasses.replace(record, runs=record.runs.assign(energy_joules=np.nan))
    (shown,) = (part.table for part in sections(only(unknown)) if part.caption.startswith("Costs"))
    assert "Energy (kWh)" not in shown
    none = dataclasses.replace(record, runs=record.runs[:0])
    assert only(none).costs.empty
    assert not any(part.caption.startswith("Costs") for part in sections(only(none)))


def test_across_five_datasets_there_is_a_critical_difference():
    (found,) = analyse(make_record(algorithms=3, cases=6, datasets=5, ensemble=True)).across.values()
    assert found.datasets == 5
    assert ENSEMBLE not in found.average_ranks
    assert_allclose(found.average_ranks.sum(), 6)
    assert analyse(make_record(algorithms=3, cases=6, datasets=4)).across == {}


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [(0.12345, 3, "0.123"), (-1.5, 2, "−1.50"), (-0.0001, 3, "0.000"), (np.nan, 2, "–"), (pd.NA, 0, "–"), (7, 0, "7")],  # noqa: RUF001
)
def test_numbers_are_rounded(value, decimals, shown):
    assert show_number(value, decimals) == shown


def test_small_p_values_are_only_called_small():
    assert [show_p(p) for p in (0.0009, 0.001, 0.0124, 1.0, np.nan)] == ["<0.001", "0.001", "0.012", "1.000", "–"]  # noqa: RUF001


def test_a_p_value_is_not_rounded_over_the_level():
    """What is called ahead has a p value below 0.05, also as a reader sees it."""
    assert [show_p(p) for p in (0.0494, 0.0496, 0.04996, 0.05, 0.0504)] == ["0.049", "0.0496", "0.04996"] + [
        "0.050"
    ] * 2
    assert float(show_p(np.nextafter(0.05, 0))) <= 0.05


@pytest.fixture
def record():
    """A record with everything in it that can go wrong, and names that Markdown and LaTeX would misread."""
    record = make_record(
        datasets=2,
        labels=3,
        both_empty=1,
        one_empty=2,
        missing=1,
        failed=1,
        own_plan=True,
        ensemble=True,
        unequal=True,
        accepted=True,
    )
    odd = {"nnUNetTrainerFIRENet": "FIRE|Net_100% & more"}
    tables = {
        name: getattr(record, name).assign(algorithm=getattr(record, name)["algorithm"].replace(odd))
        for name in ("results", "runs", "curves")
    }
    return dataclasses.replace(record, **tables)


def markdown_tables(text: str) -> list[pd.DataFrame]:
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        cells = [[cell.strip(" *").replace(r"\|", "|").replace(r"\>", ">") for cell in row] for row in rows]
        tables.append(pd.DataFrame(cells[2:], columns=cells[0]))
    return tables


def latex_tables(text: str) -> list[pd.DataFrame]:
    plain = {
        **{f"\\{character}": character for character in "&%$#_{}"},
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"$\uparrow$": "↑",
        r"$\downarrow$": "↓",
        r"$\pm$": "±",
        r"$\geq$": "≥",
        "-{}-": "--",
        "$-$": "−",  # noqa: RUF001
        "--": "–",  # noqa: RUF001
    }

    def cell(text: str) -> str:
        text = re.sub(r"\\textbf\{(.*)\}", r"\1", text)
        return re.sub("|".join(map(re.escape, plain)), lambda found: plain[found[0]], text.strip())

    tables = []
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL):
        rows = [line.removesuffix(r"\\") for line in body.splitlines() if line.endswith(r"\\")]
        cells = [[cell(part) for part in re.split(r"(?<!\\)&", row)] for row in rows]
        tables.append(pd.DataFrame(cells[1:], columns=cells[0]))
    return tables


def test_markdown_latex_and_csv_hold_the_same_numbers(record, tmp_path):
    write_markdown(analyse(record), tmp_path / "report.md")
    write_latex(analyse(record), tmp_path / "report.tex")
    record.write(tmp_path)
    write_csv(record, tmp_path / "results.csv")
    again = read_record(tmp_path)
    expected = [section.table for comparison in analyse(again).comparisons for section in sections(comparison)]
    for table in expected:  # no line may break before an arrow
        table.columns = table.columns.str.replace("\N{NO-BREAK SPACE}", " ")
    expected = [table.replace("\N{NO-BREAK SPACE}", " ", regex=True) for table in expected]
    markdown = markdown_tables((tmp_path / "report.md").read_text(encoding="utf-8"))
    latex = latex_tables((tmp_path / "report.tex").read_text(encoding="utf-8"))
    assert len(expected) == len(latex) == 2 * 13
    assert len(markdown) == len(expected) + 2, "the proof of equality is in it, too"
    for ours, *others in zip(expected, markdown, latex, strict=False):
        for other in others:
            assert ours.columns.tolist() == other.columns.tolist()
            assert ours.to_numpy().tolist() == other.to_numpy().tolist()
    dice = score(again.results[again.results["dataset"] == "Dataset001_Made"].query("case < 'case_019'")).by_case(
        "Dice"
    )
    assert f"{dice[BASELINE].mean():.3f} [" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_csv_is_exact(record, tmp_path):
    write_csv(record, tmp_path / "results.csv")
    # As text, because some versions of pandas read the last digits wrongly.
    found = pd.read_csv(tmp_path / "results.csv", dtype=str)
    types = record.results.select_dtypes(float).dtypes
    found = found.astype({**types, "fold": "Int64"})
    # No training has a seed, so there is no column for it.
    pd.testing.assert_frame_equal(found, record.results.drop(columns="seed"), check_exact=True, check_dtype=False)


def test_latex_is_well_formed(record, tmp_path):
    write_latex(analyse(record), tmp_path / "report.tex")
    text = (tmp_path / "report.tex").read_text(encoding="utf-8")
    open_environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == len(latex_tables(text))
    assert r"FIRE\textbar{}Net\_100\% \& more" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    body = text.partition("\n")[2]
    assert not re.search(r"(?<!\\)[%#]", body), "these would begin a comment or a parameter"
    assert not re.search(r"(?<!\\)_", re.sub(r"\\label\{.*?\}", "", body)), "these would need math mode"
    assert not re.search("[<>|]", body), "the standard font has other characters there"
    assert r"\textless{}0.001" in body
    assert body.isascii()
    for columns, rows in re.findall(r"\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        count = len(re.sub(r"\{.*?\}", "", columns))
        for row in [line for line in rows.splitlines() if line.endswith(r"\\")]:
            assert len(re.split(r"(?<!\\)&", row)) == count


def test_markdown_says_what_failed_and_where_it_ran(record, tmp_path):
    write_markdown(analyse(record), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for words in (
        "# A made-up benchmark",
        "- Not complete: some of this benchmark failed or has not run yet.",
        r"FIRE\|Net_100% & more",
        "    <the end & no more>",
        "The same in all trainings: splits, data. What differs or is not known:",
        "epochs | 10 | 20 | the baseline | NO |",
        "- NVIDIA H200, 139 GiB",
        "- monai 1.6.1",
        "- The ensemble of the two best has a pseudo Dice of 0.9.",
    ):
        assert words in text
    for comparison in analyse(record).comparisons:
        for line in caveats(comparison):
            assert f"- {line}\n" in text


def test_markdown_and_latex_show_ranks_across_datasets(tmp_path):
    record = make_record(algorithms=3, cases=2, datasets=5, labels=1)
    write_markdown(analyse(record), tmp_path / "report.md")
    write_latex(analyse(record), tmp_path / "report.tex")
    for name, read in (("report.md", markdown_tables), ("report.tex", latex_tables)):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "All datasets, 3d" in text.replace("\\", "")
        assert "Average ranks over 5 datasets" in text
        assert any(table.columns.tolist() == ["Algorithm", "Average rank"] for table in read(text))


def test_challenger_reads_tasks_algorithms_and_cases(record, tmp_path):
    write_challenger(analyse(record), tmp_path / "challenger.csv")
    found = pd.read_csv(tmp_path / "challenger.csv", keep_default_na=False)
    assert list(found) == ["task", "algorithm", "case", "metric", "value"]
    assert set(found["metric"]) == set(METRICS)
    assert "Dataset002_Made/3d_fullres/cross-validation/Posterior" in set(found["task"])
    assert ENSEMBLE not in set(found["algorithm"])
    # challengeR wants each case of a task exactly once from each algorithm, and finite numbers or NA.
    for _, task in found.groupby(["task", "metric"]):
        assert (task.groupby(["algorithm", "case"]).size() == 1).all()
        assert len(task) == task["algorithm"].nunique() * task["case"].nunique()
    missing = found["value"] == "NA"
    assert 0 < missing.sum() < len(found) / 10
    assert not missing[found["metric"] == "volume_error_ml"].any()
    values = found.loc[~missing, "value"].astype(float)
    assert np.isfinite(values).all()
    assert (values >= 0).all(), "volume errors have no sign"
    board = analyse(record).comparisons[0].board
    dice = found[(found["metric"] == "Dice") & found["task"].str.startswith("Dataset001") & ~missing]
    means = dice.astype({"value": float}).groupby(["algorithm", "case"])["value"].mean().groupby("algorithm").mean()
    assert_allclose(means, board.loc[means.index, "Dice"].astype(float))


def test_a_record_without_results_can_be_written(tmp_path):
    full = make_record(algorithms=2, cases=3)
    record = dataclasses.replace(full, results=full.results[:0], runs=full.runs[:0], curves=full.curves[:0])
    for name, write in (
        ("report.md", write_markdown),
        ("report.tex", write_latex),
        ("results.csv", write_csv),
        ("challenger.csv", write_challenger),
    ):
        write(record if write is write_csv else analyse(record), tmp_path / name)
    assert "- There are no results yet." in (tmp_path / "report.md").read_text()
    assert (tmp_path / "challenger.csv").read_text() == "task,algorithm,case,metric,value\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "challenger.csv",
        "report.md",
        "report.tex",
        "results.csv",
    ]


@pytest.mark.parametrize("options", [{"cases": 1}, {"algorithms": 1}, {"labels": 1, "both_empty": 5, "cases": 5}])
def test_the_smallest_records_can_be_written(tmp_path, options):
    record = make_record(**{"algorithms": 2, "cases": 3, **options})
    write_markdown(analyse(record), tmp_path / "report.md")
    write_latex(analyse(record), tmp_path / "report.tex")
    tables = markdown_tables((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert len(tables[0]) == options.get("algorithms", 2)


def test_a_file_that_cannot_be_written_leaves_the_old_one(record, tmp_path, monkeypatch):
    file = tmp_path / "report.md"
    file.write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_markdown(analyse(record), file)
    assert file.read_text() == "old"


def test_long_tables_break_over_pages(tmp_path):
    write_latex(analyse(make_record(algorithms=40, cases=4, folds=1)), tmp_path / "report.tex")
    text = (tmp_path / "report.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 1


def test_thousands_of_rows_take_seconds(tmp_path):
    record = make_record(algorithms=10, cases=300, labels=10, folds=1)
    start = time.process_time()
    write_markdown(analyse(record), tmp_path / "report.md")
    write_challenger(analyse(record), tmp_path / "challenger.csv")
    assert len(record.results) == 30_000
    assert time.process_time() - start < 30


def test_tables_need_neither_torch_nor_nnunet():
    code = "import sys, nnunet_plugins.report.tables; sys.exit(not {'torch', 'nnunetv2'}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("role", "trainer", "said"),
    [
        ("baseline", "nnUNetTrainer", "the standard U-Net"),
        ("baseline", "nnUNetTrainer_9epochs_NoMirroring", "the standard U-Net, with 9epochs_NoMirroring"),
        ("baseline", "nnUNetTrainerFIRENet", "baseline: nnUNetTrainerFIRENet, not nnU-Net's default"),
        ("method", "nnUNetTrainer", "a network of this comparison"),
    ],
)
def test_a_baseline_is_called_what_it_is(role, trainer, said):
    assert describe_role(role, trainer) == said


HOSTILE = [
    "[tumour]",
    "*",
    "[3pt]",
    "a & b % c $ d # e _ f { g } ~ ^ \\ h",
    "<--->",
    "\N{GREEK SMALL LETTER ALPHA}",
    "\u7f51",
    "\xe9\u0105",
]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_pdflatex_prints_tables_whatever_the_names_are(tmp_path):
    """A line of a table ends before each name: what looks like an option of that would be taken for one."""
    record = make_record(
        algorithms=[BASELINE, *HOSTILE], cases=6, labels=9, both_empty=1, one_empty=1, folds=1, epochs=1
    )
    names = dict(zip(record.results["label"].unique(), ["plain", *HOSTILE], strict=True))
    record.results["name"] = record.results["label"].map(names)
    record.results["case"] = record.results["case"].map(
        dict(zip(record.results["case"].unique(), HOSTILE, strict=False))
    )
    long = make_record(algorithms=41, cases=2, labels=1, folds=1, epochs=1)
    write_latex(analyse(record), tmp_path / "tables.tex")
    write_latex(analyse(long), tmp_path / "long.tex")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,longtable}\n\\begin{document}\n"
        "\\tiny\\input{tables}\\input{long}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stdout[-2000:]
    assert (tmp_path / "paper.pdf").is_file()


def test_names_that_look_like_options_are_no_options_in_latex(tmp_path):
    record = make_record(algorithms=2, cases=3, labels=3)
    record.results["name"] = record.results["name"].replace({"Anterior": "[tumour]", "Posterior": "*"})
    write_latex(analyse(record), tmp_path / "tables.tex")
    rows = (tmp_path / "tables.tex").read_text().splitlines()
    assert sum(row.startswith("{}[tumour] & ") for row in rows) == len(METRICS)
    assert not any(re.match(r"\s*[\[*]", row) for row in rows)
