"""Reports on merged datasets: each case counts in what its source annotates, and each source has its own numbers."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose
from report_records import as_merged, make_record

from nnunet_plugins.metrics.table import METRICS
from nnunet_plugins.report.analysis import Comparison, analyse
from nnunet_plugins.report.build import build_report
from nnunet_plugins.report.caveats import caveats
from nnunet_plugins.report.record import Record, ReportError, read_record
from nnunet_plugins.report.showing import DICE
from nnunet_plugins.report.statistics import compare
from nnunet_plugins.report.tables import sections
from nnunet_plugins.report.verification import Verification, _verify_summaries

BASELINE, METHOD = "nnUNetTrainer", "nnUNetTrainerFIRENet"
OWN = {"Knee": ["Anterior"], "Hip": ["Posterior", "part_3"]}
"""Case 0, 2, ... are of the first one."""


def only(record: Record) -> Comparison:
    (comparison,) = analyse(record).comparisons
    return comparison


@pytest.fixture
def merged() -> Record:
    return as_merged(make_record(algorithms=2, cases=15, labels=3), OWN)


def test_a_case_is_scored_in_what_its_source_annotates(merged):
    """What nobody looked for is no Dice of 0, and no reason to leave the case out."""
    comparison = only(merged)
    assert (comparison.cases, comparison.scored, list(comparison.dropped)) == (15, 15, [])
    results = merged.results
    means = results.groupby(["algorithm", "case"])[list(METRICS)].mean()
    volume = results.assign(size=results["volume_error_ml"].abs()).groupby(["algorithm", "case"])["size"].mean()
    for name in (BASELINE, METHOD):
        for metric in ("Dice", "NSD", "ASSD_mm", "HD95_mm"):
            expected = means.loc[name, metric]
            assert_allclose(comparison.by_case[metric][name], expected.reindex(comparison.by_case[metric].index))
        assert_allclose(comparison.by_case["volume_error_ml"][name], volume[name])
        assert comparison.board.loc[name, "Dice"] == pytest.approx(means.loc[name, "Dice"].mean())
    assert comparison.by_label["Dice"].loc[METHOD, "2"] == pytest.approx(
        results[(results["label"] == "2") & (results["algorithm"] == METHOD)]["Dice"].mean()
    )
    assert comparison.false_findings["absent"].tolist() == [0, 0]


def test_a_label_that_an_algorithm_lacks_costs_the_case_if_it_is_annotated(merged):
    lost = (merged.results["case"] == "case_001") & (merged.results["label"] == "3")
    lost &= merged.results["algorithm"] == METHOD
    comparison = only(dataclasses.replace(merged, results=merged.results[~lost]))
    assert list(comparison.dropped) == ["case_001"]


def test_each_source_has_its_own_means_and_differences(merged):
    comparison = only(merged)
    table = comparison.by_source
    assert list(table.index.unique("source")) == ["Knee", "Hip"]
    for source, cases in (("Knee", 8), ("Hip", 7)):
        rows = merged.results[merged.results["source"] == source]
        by_case = rows.groupby(["case", "algorithm"])["Dice"].mean().unstack()
        own = table.loc[source]
        assert own["cases"].tolist() == [cases] * 2
        assert own.loc[METHOD, "Dice"] == pytest.approx(by_case[METHOD].mean())
        expected = compare(by_case, BASELINE, higher_is_better=True).loc[METHOD]
        assert own.loc[METHOD, "mean_difference"] == pytest.approx(expected["mean_difference"])
        assert own.loc[METHOD, "p_holm"] == pytest.approx(expected["p_holm"])
        assert np.isnan(own.loc[BASELINE, "mean_difference"])
    (shown,) = (part.table for part in sections(comparison) if part.caption.startswith("Results by source"))
    assert shown["Source"].tolist() == ["Knee", "Knee", "Hip", "Hip"]
    first = shown[shown["Algorithm"] == METHOD].iloc[0]
    assert first[DICE].startswith(f"{table.loc['Knee', 'Dice'][METHOD]:.3f} [")
    said = "\n".join(caveats(comparison))
    assert "as often as it has cases (Knee 8, Hip 7)" in said
    assert "labels alone that its dataset annotates" in said


def test_other_datasets_know_nothing_of_sources():
    comparison = only(make_record(algorithms=2, cases=6))
    assert comparison.by_source.empty
    assert not any("source" in part.caption for part in sections(comparison))
    assert "as often as it has cases" not in "\n".join(caveats(comparison))


def test_with_equal_labels_sources_have_tables_and_nothing_is_partial():
    both = ["Anterior", "Posterior"]
    comparison = only(as_merged(make_record(algorithms=2, cases=6), {"A": both, "B": both}))
    assert comparison.by_source.index.unique("source").tolist() == ["A", "B"]
    assert "annotates" not in "\n".join(caveats(comparison))


def test_absent_labels_are_counted_among_those_that_somebody_looked_for(merged):
    results = merged.results
    absent = (results["case"] == "case_001") & (results["label"] == "3")
    results.loc[absent, ["Dice", "NSD", "ASSD_mm", "HD95_mm"]] = np.nan
    results.loc[absent, ["volume_truth_ml", "volume_error_ml"]] = 0.0
    assert "1 of 22 labels (over the cases) are not in the truth" in "\n".join(caveats(only(merged)))


def test_nnunets_own_mean_is_neither_shown_nor_compared(merged):
    """It holds a Dice of 0 for what nobody looked for, which the record does not have."""
    results = merged.results
    absent = (results["label"] == "3") & (results["case"] == "case_001") & (results["algorithm"] == METHOD)
    results.loc[absent, ["Dice", "NSD"]] = 0.0
    comparison = only(merged)
    assert not any("summary.json" in heading for part in sections(comparison) for heading in part.table.columns)
    found = Verification()
    _verify_summaries(comparison, {}, found)
    assert "summary.json counts what is found of labels that nobody annotated" in found.notes[0]


def test_a_row_on_what_nobody_annotates_contradicts_the_record(merged):
    about = {**merged.about, "sources": {"Dataset001_Made": {**merged.about["sources"]["Dataset001_Made"]}}}
    about["sources"]["Dataset001_Made"]["Hip"] = {"dataset": "Dataset002_Hip", "labels": ["part_3"]}
    with pytest.raises(ReportError, match=r"case case_001, label 2 is about a label that the case's source does not"):
        analyse(dataclasses.replace(merged, about=about))
    del about["sources"]["Dataset001_Made"]["Hip"]
    with pytest.raises(ReportError, match=r"case case_001, label 2 is of a source that the record does not know"):
        analyse(dataclasses.replace(merged, about=about))


def test_the_whole_report_from_its_files(merged, tmp_path):
    """Beside a dataset that was not merged, whose rows have no source."""
    other = make_record(algorithms=2, cases=6, datasets=2)
    rows = other.results[other.results["dataset"] == "Dataset002_Made"]
    results = merged.results.merge(rows, how="outer", sort=False)
    dataclasses.replace(merged, results=results).write(tmp_path / "record")
    again = analyse(read_record(tmp_path / "record"))
    first, second = again.comparisons
    assert first.by_source.index.unique("source").tolist() == ["Knee", "Hip"]
    assert second.by_source.empty
    build_report(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("Results by source dataset") == 1
    assert "Results by source dataset" in (tmp_path / "report" / "index.html").read_text()
    assert "source" in (tmp_path / "report" / "results.csv").read_text().splitlines()[0]
