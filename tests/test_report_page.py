"""The page of a report: that everything is in it and nothing is loaded, whatever names and results there are."""

import base64
import dataclasses
import hashlib
import io
import itertools
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from matplotlib import rc_context
from matplotlib.image import imread
from report_pages import Page, build
from report_records import make_record

from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.build import build_report
from nnunet_plugins.report.drawing import drawing, named_rows, styles, to_svg
from nnunet_plugins.report.figures import score_against_cost, training_curves
from nnunet_plugins.report.findings import describe_difference
from nnunet_plugins.report.panels import SIZE, choose_cases, draw_panels
from nnunet_plugins.report.record import ReportError
from nnunet_plugins.report.verdicts import AHEAD, BEHIND, MIXED, UNCLEAR
from nnunet_plugins.report.words import DASH

BASELINE = "nnUNetTrainer"
MINUS = "\N{MINUS SIGN}"
SVG = "{http://www.w3.org/2000/svg}"
SMALL = {"cases": 7, "folds": 2, "epochs": 3}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with a bit of everything, and its folder."""
    folder = tmp_path_factory.mktemp("report")
    options = {"both_empty": 1, "one_empty": 1, "own_plan": True, "ensemble": True}
    return build(folder, make_record(algorithms=4, cases=12, folds=2, epochs=4, **options)), folder


def test_all_figures_and_tables_are_there(report):
    page, folder = report
    key = "dataset001-made-3d-fullres-cross-validation"
    kinds = {"dice", "differences", "label-1", "label-2", "pairs", "ranks", "memory", "time", "curves"}
    plots = {a["id"] for a in page.all("figure") if a.get("class", "").startswith("plot")}
    assert plots == {f"{key}-{kind}" for kind in kinds}
    assert {file.stem for file in (folder / "report" / "figures").iterdir()} == plots
    place = ", Dataset001_Made, 3d_fullres, cross-validation"
    regions = {a["aria-label"].removesuffix(place) for a in page.all("div") if a.get("role") == "region"}
    assert {
        "Results, ranked by mean Dice",
        "Cases and flags",
        "Dice by label, higher is better",
        "Costs, as means over the trainings",
    } <= regions
    assert {
        "What differs, or is not known",
        "Hashes of every training",
        "Labels that the truth does not have",
    } <= regions
    for name in ("nnUNetTrainer", "nnUNetTrainerFIRENet", "nnUNetTrainer (nnUNetResEncUNetMPlans)"):
        assert page.text.count(name) > 5
    assert "Pseudo Dice (not Dice)" in page.text
    assert "Pseudo Dice is nnU-Net's estimate from patches during training; it is not the Dice" in page.text
    assert "1 of 24 labels (over the cases) are not in the truth" in page.text, "the caveats"


def test_the_budget_stands_beside_every_figure(report):
    page, _ = report
    budgets = [a for a in page.all("span") if a.get("class") == "budget"]
    assert len(budgets) == len([a for a in page.all("figure") if "plot" in a.get("class", "")])
    assert page.text.count("4 epochs x 50 iterations, folds 0 1") >= len(budgets)


def test_other_files_of_the_same_numbers(report):
    page, folder = report
    names = {file.name for file in (folder / "report").iterdir()}
    files = {"index.html", "report.md", "tables.tex", "paper.tex", "results.csv", "challenger.csv"}
    assert names == {*files, "figures", "index.html.made-of.json"}
    interval = re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", page.text).group()
    assert interval in (folder / "report" / "report.md").read_text()
    assert interval in (folder / "report" / "tables.tex").read_text()


def test_nothing_is_loaded_and_ids_are_unique(report):
    page, _ = report
    assert len(page.ids()) == len(set(page.ids()))
    assert not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.search(
        r"@import|url\((?!#)|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/(2000/svg|1999/xlink)\")",
        report_text(report),
    )
    references = set(re.findall(r'(?:url\(|href=")#([^")]+)', report_text(report)))
    assert references <= set(page.ids())
    assert references, "clip paths and markers at least"


def test_the_page_runs_no_script_but_its_own(report):
    """Its policy names the hash of exactly what stands in the one script."""
    page, _ = report
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", report_text(report), flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def report_text(report):
    return (report[1] / "report" / "index.html").read_text(encoding="utf-8")


def test_figures_are_files_for_papers_too(report):
    _, folder = report
    for file in (folder / "report" / "figures").iterdir():
        root = ET.fromstring(file.read_text(encoding="utf-8"))
        assert root.find(f"{SVG}title").text
        assert root.find(f"{SVG}desc").text
        assert any(text.text for text in root.iter(f"{SVG}text")), "text stays text"
        assert "currentColor" in file.read_text()
        assert "#24292f" not in file.read_text()


def test_tables_are_fit_for_screen_readers(report):
    page, _ = report
    scopes = {attributes["scope"] for attributes in page.all("th")}
    assert scopes == {"col", "row"}
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(a["role"] == "img" and a["aria-labelledby"] and a["aria-describedby"] for a in page.all("svg"))
    assert {a["aria-labelledby"] for a in page.all("table")} <= set(page.ids())
    assert page.all("html") == [{"lang": "en"}]


def test_a_second_build_is_the_same_and_removes_what_is_old(report):
    _, folder = report
    before = report_text(report)
    (folder / "report" / "figures" / "old.svg").write_text("<svg/>")
    build_report(folder)
    assert report_text(report) == before
    assert not (folder / "report" / "figures" / "old.svg").exists()
    assert not list(folder.rglob("*.part"))


def test_works_without_torch(tmp_path):
    make_record(algorithms=2, **SMALL).write(tmp_path / "record")
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('torch', 'nnunetv2', 'monai', 'batchgenerators'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from pathlib import Path\n"
        "from nnunet_plugins.report.build import build_report\n"
        f"print(build_report(Path({str(tmp_path)!r})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).is_file()


def test_unequal_runs_are_refused(tmp_path):
    make_record(algorithms=3, unequal=True, **SMALL).write(tmp_path / "record")
    with pytest.raises(ReportError) as error:
        build_report(tmp_path)
    message = str(error.value)
    assert "nnUNetTrainerFIRENetPaper was trained with plans ffff0000, the baseline with ab12cd34" in message
    assert "epochs 10, the baseline with 20" in message
    assert "--allow-unequal" in message
    assert not {"network", "optimizer"} & set(re.findall(r"\w+", message)), "these may differ"
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["plans", "splits", "data"])
def test_one_training_with_another_hash_is_refused(tmp_path, name):
    record = make_record(algorithms=2, **SMALL)
    record.equality[0]["runs"][-1]["hashes"] = {**record.equality[0]["runs"][-1]["hashes"], name: "0123abcd"}
    record.write(tmp_path / "record")
    with pytest.raises(ReportError, match=f"FIRENet was trained with {name} 0123abcd, the baseline with"):
        build_report(tmp_path)


def of_before(record):
    """Let the first fold of the baseline have been trained before the benchmark, without a record."""
    run = record.equality[0]["runs"][0]
    assert run["algorithm"] == BASELINE
    run.update(hashes=dict.fromkeys(run["hashes"], "unknown"), environment={})
    return record


def test_a_training_without_a_record_is_neither_equal_nor_a_reference(tmp_path):
    page = build(tmp_path, of_before(make_record(algorithms=2, **SMALL)))
    assert "Not proven equal: no record tells the plans, splits, data, recipe of nnUNetTrainer (fold 0)" in page.text
    assert "The same in all trainings: nothing" in page.text
    assert "unknown: plans, splits, data, recipe" in page.text, "beside the name"
    record = of_before(make_record(algorithms=3, unequal=True, **SMALL))
    record.write(tmp_path / "other" / "record")
    with pytest.raises(ReportError, match="FIRENetPaper was trained with plans ffff0000, the baseline with ab12cd34"):
        build_report(tmp_path / "other")


def test_methods_are_compared_with_each_other_where_nothing_is_known_of_the_baseline(tmp_path):
    record = make_record(algorithms=3, unequal=True, **SMALL)
    for run in record.equality[0]["runs"]:
        if run["algorithm"] == BASELINE:
            run.update(hashes=dict.fromkeys(run["hashes"], "unknown"), environment={})
    record.write(tmp_path / "record")
    with pytest.raises(ReportError, match="Paper was trained with plans ffff0000, nnUNetTrainerFIRENet with ab12cd34"):
        build_report(tmp_path)


def test_a_record_of_the_first_version_is_read(tmp_path):
    """It has differences in place of recipes."""
    record = make_record(algorithms=3, unequal=True, accepted=True, own_plan=True, **SMALL)
    (entry,) = record.equality
    last = entry["runs"][-1]["algorithm"]
    own = next(run["algorithm"] for run in entry["runs"] if "Plans" in run["algorithm"])
    for name in ("baseline", "plans", "recipes"):
        del entry[name]
    entry["same"] = ["splits", "data"]
    entry["differences"] = [
        {"algorithm": own, "what": "plans", "value": "77aa88bb", "baseline": "ab12cd34", "allowed": True},
        {"algorithm": last, "what": "plans", "value": "ffff0000", "baseline": "ab12cd34", "allowed": False},
        {"algorithm": last, "what": "optimizer.lr", "value": "0.001", "baseline": "0.01", "allowed": True},
    ]
    page = build(tmp_path, record)
    assert f"{last} was trained with plans ffff0000 instead of ab12cd34 (Dataset001_Made" in page.text
    assert "unequal: plans; differs in: optimizer" in page.text
    assert "baseline on a plan of its own; differs in: plans" in page.text
    entry["accepted"] = False
    record.write(tmp_path / "refused" / "record")
    with pytest.raises(ReportError, match="plans ffff0000") as error:
        build_report(tmp_path / "refused")
    assert "77aa88bb" not in str(error.value), "a preset has plans of its own"


def test_a_baseline_that_is_no_u_net_is_not_called_one(tmp_path):
    page = build(tmp_path, make_record(algorithms=["nnUNetTrainerFIRENet", "nnUNetTrainerAFN4"], **SMALL))
    assert "baseline: nnUNetTrainerFIRENet, not nnU-Net's default" in page.text
    assert "standard U-Net" not in page.text


def test_accepted_unequal_runs_are_shown_as_such(tmp_path):
    page = build(tmp_path, make_record(algorithms=3, unequal=True, accepted=True, **SMALL))
    banner = (
        "Not a fair comparison. Unequal runs were accepted with --allow-unequal: nnUNetTrainerFIRENetPaper was trained "
        "with plans ffff0000 instead of ab12cd34, epochs 10 instead of 20 (Dataset001_Made, 3d_fullres)"
    )
    assert banner in page.text
    assert page.text.index("Not a fair comparison") < page.text.index("Leader")
    assert "unequal: plans, epochs; differs in: optimizer" in page.text, "beside the name in the table"


def test_failures_are_shown_with_the_end_of_their_log(tmp_path):
    page = build(tmp_path, make_record(algorithms=4, failed=2, **SMALL))
    assert "Not complete. Parts of this benchmark failed" in page.text
    assert page.text.count("CUDA out of memory. Tried to allocate 2.00 GiB <the end & no more>") == 2
    assert "nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainerFIRENetNoFabric" in page.text
    assert "no results" in page.text
    assert "logs/Dataset001_Made-nnUNetTrainerFIRENetNoFabric-0.log" in page.text


def test_complete_benchmarks_have_no_banner(report):
    assert not report[0].all("aside")


HOSTILE = [
    "<script>alert(1)</script>",
    "R&D \"quoted\" 'name'",
    "costs $x_1$ and $\\input{/etc/passwd}$",
    "<!-- -->]]>网络",
    "=cmd() | `id` {{ 7 * 7 }}",
]
CONTROLS = "\x00\x08\x1b[31m\u202egnp\ud800"


def test_hostile_names_are_text(tmp_path):
    record = make_record(algorithms=[BASELINE, *HOSTILE], **SMALL)
    record.results["case"] = record.results["case"].str.replace("case", "<img src=http://x/y>")
    record.results["name"] = record.results["name"].str.replace("Anterior", "</td><b>")
    record.results["dataset"] = record.runs["dataset"] = record.curves["dataset"] = "Dataset001_<i>"
    record.equality[0]["dataset"] = "Dataset001_<i>"
    record.results["algorithm"] = record.results["algorithm"].replace(BASELINE, f"U{CONTROLS[:-1]}Net")
    record.equality[0]["baseline"] = f"U{CONTROLS[:-1]}Net"
    failure = {
        "task": f"<u>{CONTROLS}",
        "command": "a && <b>",
        "exit_code": 1,
        "log": "</pre>",
        "tail": "</pre><script>2",
    }
    about = {**record.about, "title": "</title><script>alert(3)</script>", "budget": "<s>"}
    page = build(tmp_path, dataclasses.replace(record, failures=[failure], about=about))
    assert len(page.all("script")) == 1
    assert not {"i", "u", "s", "b"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not set(CONTROLS) & set(page.text) - set("[31mgnp")
    for name in (*HOSTILE, "</td><b>", "Dataset001_<i>", "<u>", "</pre><script>2", "</title><script>alert(3)"):
        assert name in page.text
    for file in (tmp_path / "report" / "figures").iterdir():
        assert ET.fromstring(file.read_text(encoding="utf-8")) is not None


def test_one_algorithm(tmp_path):
    page = build(tmp_path, make_record(algorithms=1, **SMALL))
    assert re.search(r"nnUNetTrainer has a mean Dice of 0\.\d{3}; there is nothing to compare it with", page.text)
    assert {a["id"].rsplit("-", 1)[-1] for a in page.all("figure") if "plot" in a.get("class", "")} == {
        *("dice", "1", "2", "memory", "time", "curves")
    }


def test_one_case(tmp_path):
    page = build(tmp_path, make_record(algorithms=3, cases=1, folds=1, epochs=1))
    assert re.search(
        rf"Too few cases to test \S+ against \S+: mean difference [+{MINUS}]0\.\d{{3}} Dice on 1 case\.", page.text
    )
    assert not any(name.endswith("-ranks") for name in page.ids()), "with one case any rank would be firm"


def test_ranks_are_drawn_anew_where_there_are_cases_enough():
    """As everything else that is drawn anew: no mean of fewer cases has an interval."""
    few, enough = (
        analyse(make_record(algorithms=2, cases=cases, labels=1, folds=1, epochs=1)).comparisons[0] for cases in (5, 6)
    )
    assert few.rank_shares.empty
    assert enough.rank_shares.shape == (2, 2)


def test_identical_results(tmp_path):
    record = make_record(algorithms=2, labels=1, **SMALL)
    first = record.results[record.results["algorithm"] == BASELINE]
    second = first.assign(trainer="Copy", algorithm="Copy", role="method")
    page = build(tmp_path, dataclasses.replace(record, results=pd.concat([first, second])))
    assert "Copy and nnUNetTrainer are equivalent within 0.01 Dice, each trained once per fold: mean difference 0.000" in page.text
    assert not any("label" in name for name in page.ids()), "one label needs no figure of its own"


def test_many_algorithms_and_labels(tmp_path):
    page = build(tmp_path, make_record(algorithms=12, labels=20, missing=2, **{**SMALL, "cases": 9}))
    assert len([a for a in page.all("details")]) > 5
    assert not any("-label-" in name for name in page.ids())
    assert "the 7 of 9 cases that all have" in page.text
    assert "Of 11 algorithms," in page.text


def test_every_pair_has_a_cell_in_a_figure_and_a_row_in_a_table(tmp_path):
    page = build(tmp_path, make_record(algorithms=4, cases=12, folds=2, epochs=1, labels=1))
    figure = next((tmp_path / "report" / "figures").glob("*-pairs.svg")).read_text()
    assert "How likely the algorithm of the row is better than that of the column" in figure
    shares = [int(found[1]) for found in re.finditer(r">(?:&[lg]t;)?(\d+)[▲▼≈]?</text>", figure)][-12:]
    assert len(shares) == 12
    assert sum(shares) >= 6 * 99, "the two cells of a pair are 100% but for rounding"
    assert "Every pair of ranked algorithms, in Dice; Holm over these pairs" in page.text
    few = build(tmp_path / "few", make_record(algorithms=3, cases=4, folds=1, epochs=1, labels=1))
    assert not any(name.endswith("-pairs") for name in few.ids()), "too few cases"


def test_several_comparisons(tmp_path):
    record = make_record(algorithms=3, datasets=5, labels=1, cases=3, folds=1, epochs=1)
    page = build(tmp_path, dataclasses.replace(record, runs=record.runs[:0], curves=record.curves[:0]))
    names = [a["id"] for a in page.all("figure") if "plot" in a.get("class", "")]
    assert "all-3d-fullres-cross-validation" in names, "critical differences across five datasets"
    matrix = [a for a in page.all("div") if a.get("aria-label", "").startswith("Mean Dice ↑, 3d_fullres")]
    assert len(matrix) == 1
    assert "▲ ahead of and ▼ behind the baseline" in page.text
    links = [a["href"] for a in page.all("a") if a["href"].startswith("#dataset")]
    chapters = [f"#{a['id']}" for a in page.all("h2") if a["id"].startswith("dataset")]
    assert links == chapters * 2, "in the navigation, and in the rows of the matrix"


def test_training_curves_stand_there_once_for_two_splits(tmp_path):
    record = make_record(algorithms=2, splits=["cross-validation", "test"], labels=1, cases=3, folds=1, epochs=2)
    page = build(tmp_path, record)
    assert [name for name in page.ids() if name.endswith("-curves")] == [
        "dataset001-made-3d-fullres-cross-validation-curves"
    ]
    assert "dataset001-made-3d-fullres-test-dice" in page.ids()


def test_a_baseline_without_results(tmp_path):
    record = make_record(algorithms=3, **SMALL)
    results = record.results[record.results["algorithm"] != BASELINE]
    page = build(tmp_path, dataclasses.replace(record, results=results))
    assert "nothing is compared with the baseline, which has no results" in page.text
    assert not any(name.endswith("-differences") for name in page.ids())


def test_no_results_yet(tmp_path):
    record = make_record(algorithms=2, **SMALL)
    about = {**record.about, "complete": False}
    empty = dataclasses.replace(record, results=record.results[:0], runs=record.runs[:0], about=about)
    assert "There are no results yet" in build(tmp_path, empty).text


def test_unknown_conditions_are_said(tmp_path):
    page = build(tmp_path, dataclasses.replace(make_record(algorithms=2, **SMALL), equality=[]))
    assert "That is not known: no training left a record" in page.text


@pytest.mark.parametrize(
    ("mean", "effect", "p", "verdict", "said"),
    [
        (
            0.012,
            0.5,
            0.003,
            AHEAD,
            "A is ahead of B by 0.012 Dice (95% CI 0.010 to 0.014, p = 0.003, Holm) on 9 cases.",
        ),
        (-0.012, -0.5, 1e-4, BEHIND, "A is behind B by 0.012 Dice (95% CI -0.014 to -0.010, p < 0.001, Holm) on 9 cas"),
        (0.0001, 0.5, 0.003, AHEAD, "A is ahead of B by less than 0.001 Dice (95% CI"),
        (
            0.012,
            0.1,
            0.05,
            UNCLEAR,
            "A and B cannot be told apart: mean difference +0.012 Dice (95% CI 0.010 to 0.014,",
        ),
        (-0.012, 0.6, 0.01, MIXED, "Case by case A is better than B, yet its mean differs by -0.012 Dice (95% CI -0.0"),
        (0.012, -0.6, 0.01, MIXED, "Case by case A is worse than B, yet its mean differs by +0.012 Dice (95% CI 0.010"),
        (np.nan, np.nan, np.nan, UNCLEAR, "A has no case in common with B."),
    ],
)
def test_differences_in_words(mean, effect, p, verdict, said):
    row = {"n": 9, "mean_difference": mean, "ci_low": mean - 0.002, "ci_high": mean + 0.002, "verdict": verdict}
    known = {"repeated": True, "against_repeated": True}
    sentence = describe_difference("A", {**row, **known, "effect_size": effect, "p_holm": p}, "B")
    assert sentence.replace(MINUS, "-").startswith(said)


def test_forty_algorithms_look_different():
    looks = styles([BASELINE, *map(str, range(39))], BASELINE)
    assert len({(look.colour, look.marker) for look in looks.values()}) == 40
    assert len(set(map(repr, looks.values()))) == 40


@pytest.mark.parametrize("number", [2, 12, 40])
def test_names_beside_points_do_not_cover_each_other(number):
    names = [f"nnUNetTrainerNumber{n}" for n in range(number)]
    scores, cost = pd.Series(0.9, names) + np.arange(number) * 1e-6, pd.Series(1.0, names)
    svg = score_against_cost(scores, cost, styles(names, names[0]), metric="Dice", unit="Cost", key="k", title="T")
    root = ET.fromstring(svg)
    height = float(root.get("viewBox").split()[-1])
    places = [float(text.get("y")) for text in root.iter(f"{SVG}text") if text.text and text.text.startswith("nnUNet")]
    assert len(places) == number
    assert min(abs(a - b) for a, b in itertools.combinations(places, 2)) > 9
    assert min(places) > 0
    assert max(places) < height


def test_figures_are_the_same_whatever_resolution_the_user_has_set():
    def draw() -> str:
        with drawing():
            return to_svg(named_rows(["U-Net", "nnUNetTrainerFIRENet"])[0], "key", "title", "description")

    with rc_context({"figure.dpi": 10}):
        coarse = draw()
    assert coarse == draw()


def test_long_trainings_make_small_figures():
    record = make_record(algorithms=3, cases=1, epochs=1000)
    looks = styles(list(record.curves["algorithm"].unique()), BASELINE)
    assert len(training_curves(record.curves, looks, key="k", title="T")) < 250_000


# Pictures of cases


SCORES = pd.DataFrame(
    {"U-Net": [0.5, 0.8, 0.7, 0.9, np.nan], "FIRENet": [0.6, 0.85, 0.95, 0.9, 1.0]}, index=["a", "b", "c", "d", "e"]
)


def test_cases_worth_a_look():
    chosen = choose_cases(SCORES, "U-Net", "FIRENet")
    assert chosen == {
        "c": "best case of FIRENet, largest difference from U-Net",
        "b": "median case of FIRENet",
        "a": "worst case of FIRENet",
    }
    assert list(choose_cases(SCORES, "U-Net", "U-Net")) == ["d", "c", "a"]
    assert choose_cases(SCORES.iloc[:1], "U-Net", "FIRENet") == {
        "a": "best case of FIRENet, median case of FIRENet, worst case of FIRENet, largest difference from U-Net"
    }
    assert choose_cases(SCORES.iloc[4:], "U-Net", "FIRENet") == {}


def write_images(folder, cases, *, shape=(12, 30, 40), ending=".nii.gz", channels=1, predictors=("U-Net", "FIRENet")):
    """Images of noise with a block of label 1 and one of label 2; returns their entry in `about.json`."""
    generator = np.random.default_rng(0)
    block = tuple(slice(n // 4, n // 2 + 1) for n in shape[-2:])
    other = (slice(shape[-2] // 2 + 1, None), slice(0, shape[-1] // 4))
    truth = np.zeros(shape, np.uint8)
    truth[(*([shape[0] // 3] if len(shape) == 3 else []), *block)] = 1
    truth[(*([shape[0] // 3] if len(shape) == 3 else []), *other)] = 2
    places = {"images": folder / "imagesTr", "truth": folder / "labelsTr", **{n: folder / n for n in predictors}}
    for name, place in places.items():
        place.mkdir(parents=True)
        for case in cases:
            if name == "images":
                pixels = generator.integers(0, 255, (*shape, channels) if channels > 1 else shape).astype(np.uint8)
                image = sitk.GetImageFromArray(pixels, isVector=channels > 1)
                sitk.WriteImage(image, str(place / f"{case}_0000{ending}"))
            else:
                sitk.WriteImage(sitk.GetImageFromArray(truth), str(place / f"{case}{ending}"))
    return {
        "images": str(places["images"]),
        "truth": str(places["truth"]),
        "ending": ending,
        "labels": {"1": "Anterior", "2": "Posterior"},
        "predictions": {name: str(places[name]) for name in predictors},
    }


def pixels_of(picture):
    return imread(io.BytesIO(base64.b64decode(picture.source.removeprefix("data:image/jpeg;base64,"))), format="jpeg")


@pytest.mark.parametrize(
    ("shape", "ending", "channels", "place"),
    [
        ((12, 30, 40), ".nii.gz", 1, "slice 5 of 12"),
        ((1, 30, 40), ".nii.gz", 1, ""),
        ((30, 40), ".png", 1, ""),
        ((30, 40), ".png", 3, ""),
        ((600, 900), ".png", 3, ""),
        ((12, 30, 40), ".mha", 2, "slice 5 of 12"),
    ],
)
def test_pictures(tmp_path, shape, ending, channels, place):
    files = write_images(tmp_path, SCORES.index, shape=shape, ending=ending, channels=channels)
    panels = draw_panels(SCORES, "U-Net", "FIRENet", files, tmp_path / "panels" / "a.json")
    assert not panels.notes
    assert [row.case for row in panels.rows] == ["c", "b", "a"]
    assert [name for name, _ in panels.legend] == ["Anterior", "Posterior"]
    row = panels.rows[0]
    assert row.place == place
    assert [(picture.title, picture.score) for picture in row.pictures] == [
        *(("Image", None), ("Truth", None), ("U-Net", 0.7), ("FIRENet", 0.95))
    ]
    image, truth = (pixels_of(picture).astype(int) for picture in row.pictures[:2])
    assert max(image.shape) == SIZE
    assert image.shape[0] / image.shape[1] == pytest.approx(shape[-2] / shape[-1], abs=0.01)
    assert np.ptp(image, axis=-1).max() < 12, "the image is gray"
    height, width = image.shape[:2]
    inside = truth[int(0.3 * height) : int(0.45 * height), int(0.3 * width) : int(0.45 * width)]
    assert inside[..., 2].mean() > inside[..., 0].mean() + 20, "label 1 is blue"
    corner = truth[: height // 8, : width // 8]
    assert np.ptp(corner, axis=-1).max() < 12, "no label there"


def test_a_legend_of_regions_tells_what_a_value_is_in(tmp_path):
    files = write_images(tmp_path, SCORES.index, shape=(1, 30, 40))
    files["labels"] = {"[1, 2]": "whole", "2": "core", "3": "ignore"}
    panels = draw_panels(SCORES, "U-Net", "FIRENet", files, tmp_path / "a.json")
    assert [name for name, _ in panels.legend] == ["whole", "whole, core", "ignore"]


def test_pictures_lie_across_the_coarse_axis(tmp_path):
    files = write_images(tmp_path, ["a"], shape=(12, 30, 40))
    for file in tmp_path.rglob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        image.SetSpacing((5.0, 0.7, 0.7))
        sitk.WriteImage(image, str(file))
    row = draw_panels(SCORES.iloc[:1], "U-Net", "FIRENet", files, tmp_path / "a.json").rows[0]
    assert row.place.endswith("of 40")


def test_pictures_are_kept_for_a_rebuild_elsewhere(tmp_path):
    files = write_images(tmp_path / "here", SCORES.index)
    cache = tmp_path / "panels" / "a.json"
    there = draw_panels(SCORES, "U-Net", "FIRENet", files, cache)
    shutil.rmtree(tmp_path / "here")
    assert draw_panels(SCORES, "U-Net", "FIRENet", files, cache).rows == there.rows
    assert draw_panels(SCORES, "U-Net", "FIRENet", None, cache).rows == there.rows
    changed = draw_panels(SCORES - 0.01, "U-Net", "FIRENet", files, cache)
    assert not changed.rows, "pictures of other results"
    assert len(changed.notes) == 3


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nii.gz is missing"),
        ("labelsTr/a.nii.gz", "labelsTr/a.nii.gz is missing"),
        ("FIRENet/a.nii.gz", "FIRENet/a.nii.gz is missing"),
    ],
)
def test_missing_images_are_named_and_left_out(tmp_path, missing, problem):
    files = write_images(tmp_path, SCORES.index)
    (tmp_path / missing).unlink()
    panels = draw_panels(SCORES, "U-Net", "FIRENet", files, tmp_path / "a.json")
    assert [row.case for row in panels.rows] == ["c", "b"]
    assert panels.notes == [f"Not shown, because {tmp_path}/{problem}: a (worst case of FIRENet)."]


def test_unreadable_and_unfit_images_are_named(tmp_path):
    files = write_images(tmp_path, SCORES.index)
    (tmp_path / "imagesTr" / "a_0000.nii.gz").write_text("no image")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)), str(tmp_path / "U-Net" / "b.nii.gz"))
    del files["predictions"]["FIRENet"]
    notes = draw_panels(SCORES, "U-Net", "U-Net", files, tmp_path / "a.json").notes
    assert f"{tmp_path}/imagesTr/a_0000.nii.gz cannot be read" in " ".join(notes)
    notes = draw_panels(SCORES, "U-Net", "FIRENet", files, tmp_path / "a.json").notes
    assert "it is not known where the segmentations of FIRENet lie" in " ".join(notes)


def test_pictures_in_the_page(tmp_path):
    names = [BASELINE, "nnUNetTrainerFIRENet"]
    record = make_record(algorithms=2, **SMALL)
    files = write_images(tmp_path, record.results["case"].unique(), predictors=names)
    record.about["images"] = {"Dataset001_Made/3d_fullres": files}
    page = build(tmp_path, record)
    rows = len([a for a in page.all("figure") if a.get("class") == "case"])
    assert 3 <= rows <= 4
    assert len(page.all("img")) == 4 * rows
    assert "worst case of nnUNetTrainerFIRENet" in page.text
    shutil.rmtree(tmp_path / "imagesTr")
    build_report(tmp_path)
    again = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert len(again.all("img")) == 4 * rows


# In a browser


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A page with everything that a page can hold."""
    folder = tmp_path_factory.mktemp("rich")
    options = {"own_plan": True, "ensemble": True, "failed": 1, "unequal": True, "accepted": True, "one_empty": 1}
    record = make_record(algorithms=5, cases=12, folds=2, epochs=4, **options)
    names = record.results["algorithm"].unique()
    # As texts, 10 comes before 9.
    record.results["HD95_mm"] *= record.results["algorithm"].map({name: 3.0**n for n, name in enumerate(names)})
    files = write_images(folder, record.results["case"].unique(), predictors=names)
    record.about["images"] = {"Dataset001_Made/3d_fullres": files}
    build(folder, record)
    return folder / "report" / "index.html"


@pytest.fixture
def opened(browser, rich):
    """Open the page; any request but for itself, and any error, fails the test."""
    contexts, problems = [], []

    def open_page(width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("request", lambda request: problems.append(request.url) if not is_own(request.url) else None)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(rich.as_uri())
        return page

    def is_own(url):
        return url == rich.as_uri() or url.startswith("data:")

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def column(page, number):
    return page.eval_on_selector_all(
        "table >> nth=0 >> tbody tr", "(rows, n) => rows.map((row) => row.cells[n].innerText)", number
    )


def values(texts):
    return [float(text.split()[0].replace(MINUS, "-")) for text in texts if text != DASH]


def test_browser_sorts_by_number(opened):
    page = opened()
    table = page.locator("table").first
    header = table.locator("th", has_text="HD95")
    number = header.evaluate("cell => cell.cellIndex")
    before = column(page, number)
    assert len(set(before)) > 3
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    ascending = column(page, number)
    assert sorted(ascending) == sorted(before)
    assert values(ascending) == sorted(values(before))
    assert sorted(values(before)) != values(sorted(set(before) - {DASH})), "as texts the order would be another one"
    assert ascending[-1] == DASH, "what has no results stays last"
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    descending = column(page, number)
    assert values(descending) == sorted(values(before), reverse=True)
    assert descending[-1] == DASH
    other = table.locator("th", has_text="Algorithm")
    other.get_by_role("button").focus()
    page.keyboard.press("Space")
    assert other.get_attribute("aria-sort") == "ascending"
    assert header.get_attribute("aria-sort") is None


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_browser_never_scrolls_the_page_sideways(opened, width):
    page = opened(width)
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 360:
        boxes = page.eval_on_selector_all(".scroll", "boxes => boxes.map((box) => box.scrollWidth - box.clientWidth)")
        assert max(boxes) > 0, "wide tables scroll inside their boxes"


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/^rgba\\(.*, 0\\)$/.test(colour)) return light(colour);
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('script, title, desc, [aria-hidden]')) continue;
    const style = getComputedStyle(element);
    const svg = element.closest('svg');
    if (svg && element.closest('[id$="-ranks"]') && /^\\d+$/.test(walker.currentNode.data.trim())) continue;
    const [ink, ground] = [light(svg ? style.fill : style.color), paper(element)];
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    found.push([ratio, walker.currentNode.data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_is_readable(opened, scheme):
    page = opened(scheme=scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) > 300
    assert [text for ratio, text in contrasts if ratio < 4.5] == []


def test_browser_prints_everything_on_the_paper(opened):
    page = opened(width=718)  # A4 without margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 718


def test_browser_shows_every_figure_within_its_bounds(opened):
    page = opened()
    outside = page.eval_on_selector_all(
        ".drawing svg",
        """drawings => drawings.flatMap((svg) => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].filter((text) => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1;
          }).map((text) => text.textContent);
        })""",
    )
    assert outside == []
