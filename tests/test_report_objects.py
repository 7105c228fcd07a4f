"""What a report says of objects, such as lesions: numbers worked out by hand, in every place where they stand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from report_pages import build
from report_records import make_record, with_objects

from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.describing import describe_methods, list_references
from nnunet_plugins.report.latex import write_paper
from nnunet_plugins.report.record import ReportError, read_record
from nnunet_plugins.report.tables import RESULTS, sections
from nnunet_plugins.report.words import DASH, NOWHERE, UNMATCHED, heading
from nnunet_plugins.report.writing import write_markdown

N = np.nan
OBJECTS = "Objects of all cases together, by label"
BASELINE, METHOD = "nnUNetTrainer", "nnUNetTrainerFIRENet"
# TP, FP, FN, SQ, Dice per object, of three cases; the last has no object in the truth.
FOUND = {
    BASELINE: [(3, 1, 1, 0.8, 0.7), (0, 0, 2, N, 0.1), (0, 2, 0, N, N)],
    METHOD: [(4, 0, 0, 0.9, 0.95), (1, 1, 1, 0.6, 0.5), (0, 1, 0, N, N)],
}


@pytest.fixture
def record():
    return with_objects(make_record(algorithms=2, cases=3, labels=2), FOUND)


def shown(record, caption):
    [comparison] = analyse(record).comparisons
    return next(section for section in sections(comparison) if section.caption == caption)


def test_objects_of_all_cases_count_together(record):
    [comparison] = analyse(record).comparisons
    found = comparison.objects
    assert_allclose(found.loc[("2", BASELINE)].astype(float), [3, 3, 3, 6 / 12, 0.8, 4.8 / 12, (4 * 0.7 + 0.2) / 6])
    iou = 4 * 0.9 + 0.6
    assert_allclose(found.loc[("2", METHOD)].astype(float), [5, 2, 1, 10 / 13, iou / 5, 2 * iou / 13, (3.8 + 1.0) / 6])
    assert list(found.index.unique("label")) == ["2"], "the other label consists of none"
    assert_allclose(comparison.board.loc[METHOD, "objects_F1"], 10 / 13)


def test_methods_say_how_objects_count(record):
    text = " ".join(describe_methods(analyse(record)))
    assert "Dice per object is the mean over the true objects, each with all predicted ones that overlap it" in text
    assert "also of cases whose truth has none, where whatever is found is false" in text


def test_results_have_columns_of_their_own_with_the_best_in_bold(record):
    section = shown(record, RESULTS)
    table = section.table.set_index("Algorithm")
    names = [heading(name) for name in ("objects_F1", "objects_PQ", "objects_Dice")]
    assert [name[-1] for name in names] == ["↑"] * 3
    assert table.loc[BASELINE, names].tolist() == ["0.500", "0.400", "0.500"]
    assert table.loc[METHOD, names].tolist() == ["0.769", "0.646", "0.800"]
    best = table.index.get_loc(METHOD)
    assert all(section.best[name] == [best] for name in names)
    objects = shown(record, OBJECTS)
    rows = objects.table.set_index("Algorithm")
    assert rows.loc[BASELINE].tolist() == ["Posterior", "6", "3", "3", "3", "0.500", "0.800", "0.400", "0.500"]
    assert objects.best[heading("objects_SQ")] == [rows.index.get_loc(METHOD)]


def test_what_is_nowhere_and_what_is_never_found_is_said_in_words():
    made = make_record(algorithms=2, cases=3, labels=2)
    never = [(0, 1, 2, N, 0.0)] * 3
    table = shown(with_objects(made, {**FOUND, BASELINE: never}), OBJECTS).table.set_index("Algorithm")
    assert table.loc[BASELINE].tolist() == ["Posterior", "6", "0", "3", "6", "0.000", UNMATCHED, "0.000", "0.000"]
    nowhere = with_objects(made, dict.fromkeys(FOUND, [(0, 1, 0, N, N)] * 3))
    table = shown(nowhere, OBJECTS).table.set_index("Algorithm")
    assert table.loc[BASELINE].tolist() == ["Posterior", "0", "0", "3", "0", *[NOWHERE] * 4]
    results = shown(nowhere, RESULTS)
    assert (results.table[heading("objects_F1")] == NOWHERE).all()
    assert not results.best[heading("objects_F1")]


def test_what_was_not_counted_in_every_case_is_missing(record):
    """As of rows that are kept of a record from before: a part of the objects would look like all of them."""
    record = with_objects(record, FOUND, label="1")
    assert set(shown(record, RESULTS).table[heading("objects_F1")]) == {"0.769", "0.500"}
    first = record.results.index[(record.results["algorithm"] == METHOD) & (record.results["label"] == "2")][0]
    results = record.results.copy()
    results.loc[first, [name for name in results if name.startswith("objects_")]] = pd.NA
    table = shown(replace(record, results=results), RESULTS).table.set_index("Algorithm")
    assert table[heading("objects_F1")].to_dict() == {METHOD: DASH, BASELINE: "0.500"}


def test_of_several_trainings_it_is_their_mean():
    made = make_record(algorithms=2, cases=3, labels=2, repeats=(2, 0))
    results = made.results
    seeds = [with_objects(replace(made, results=results[results["seed"].isin(["", s])]), FOUND) for s in ("1", "2")]
    better = with_objects(seeds[1], {BASELINE: FOUND[METHOD], METHOD: FOUND[METHOD]}).results
    both = pd.concat([seeds[0].results, better[better["seed"] == "2"]], ignore_index=True)
    [comparison] = analyse(replace(made, results=both)).comparisons
    found = comparison.objects.loc[("2", BASELINE)]
    assert_allclose(found[["objects_TP", "objects_F1"]].astype(float), [4, (1 / 2 + 10 / 13) / 2])


def test_a_comparison_without_objects_has_no_such_columns():
    record = make_record(algorithms=2, cases=3, labels=2)
    [comparison] = analyse(record).comparisons
    assert not any("object" in text.lower() for section in sections(comparison) for text in section.table)
    assert not any("Objects" in line for line in caveats(comparison))


def test_the_record_keeps_them_through_its_files(record, tmp_path):
    record.write(tmp_path)
    text = (tmp_path / "results.csv").read_text()
    assert ",3,1,1,0.75,0.8," in text
    again = read_record(tmp_path)
    pd.testing.assert_frame_equal(analyse(again).comparisons[0].objects, analyse(record).comparisons[0].objects)
    for old, new, message in (
        (",3,1,1,0.75,", ",3.5,1,1,0.75,", "3.5 cannot be a objects_TP"),
        (",3,1,1,0.75,", ",3,1,1,much,", "'much' cannot be a objects_F1"),
        ("objects_SQ", "objects_XX", "has objects_TP, and lacks the columns objects_SQ"),
    ):
        (tmp_path / "results.csv").write_text(text.replace(old, new, 1))
        with pytest.raises(ReportError, match=message):
            read_record(tmp_path)


def test_page_markdown_and_paper_have_them_with_the_convention(record, tmp_path):
    analysis = analyse(record)
    page = build(tmp_path / "made", record)
    write_markdown(analysis, tmp_path / "tables.md")
    write_paper(analysis, tmp_path / "paper.tex")
    for text in (page.text, (tmp_path / "tables.md").read_text()):
        assert "F1 of objects" in text
        assert "above 0.5; SQ is the mean IoU of the pairs" in text
    assert "Objects" in page.within("dt")
    assert "Posterior 6" in page.within("dd")
    paper = (tmp_path / "paper.tex").read_text()
    assert "PQ" in paper
    assert r"\textbf{0.646}" in paper
    assert any("26 neighbours" in part for part in describe_methods(analysis))
    assert any("Kirillov" in reference for reference in list_references(analysis))
