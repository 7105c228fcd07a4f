"""Pages of reports in a real browser: the first screen, many datasets, phones, marks and the accessibility tree."""

import base64
import dataclasses
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from report_pages import build
from report_records import make_record, with_objects

from nnunet_plugins.report.analysis import analyse
from nnunet_plugins.report.drawing import styles
from nnunet_plugins.report.figures import rank_shares, training_curves
from nnunet_plugins.report.headline import find_lead
from nnunet_plugins.report.record import GATE

BASELINE = "nnUNetTrainer"
BUDGET = "1 epoch x 50 iterations"
SVG = "{http://www.w3.org/2000/svg}"
FILLED = re.compile("(?:^|[; ])fill: (#[0-9a-f]{6})")
STROKE = re.compile("stroke-width: ([0-9.]+)")


def lean(record):
    """Without what is drawn of trainings, which takes most of the time."""
    runs = record.runs.assign(peak_memory_bytes=np.nan, seconds_per_epoch=np.nan)
    about = {**record.about, "budget": f"{BUDGET}, fold 0"}
    return dataclasses.replace(record, runs=runs, curves=record.curves[:0], about=about)


@pytest.fixture(scope="module")
def league(tmp_path_factory):
    """More datasets than stand open; the record, and its page."""
    record = lean(make_record(algorithms=2, cases=6, datasets=5, labels=1, folds=1, epochs=1))
    folder = tmp_path_factory.mktemp("league")
    build(folder, record)
    return record, folder / "report" / "index.html"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One dataset, as a demonstration has it, with an algorithm that misses labels; the record, and its page."""
    record = lean(make_record(algorithms=4, cases=8, folds=1, epochs=1, one_empty=3, ensemble=True))
    folder = tmp_path_factory.mktemp("single")
    build(folder, record)
    return record, folder / "report" / "index.html"


@pytest.fixture
def opened(browser):
    """Open a page; any request but for itself, and any error, fails the test."""
    contexts, problems = [], []

    def open_page(file, width=1440, height=900, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        asked = []
        page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


IN_SIGHT = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), texts = [];
  while (walker.nextNode()) {
    const range = document.createRange();
    range.selectNodeContents(walker.currentNode);
    const box = range.getBoundingClientRect();
    const seen = box.width && box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth;
    if (seen) texts.push(walker.currentNode.data);
  }
  return texts.join("");
}"""


@pytest.mark.parametrize("kind", ["single", "league"])
def test_the_first_screen_says_who_leads_how_surely_and_what_it_took(opened, request, kind):
    record, file = request.getfixturevalue(kind)
    said = " ".join(opened(file).evaluate(IN_SIGHT).split())
    lead = find_lead(analyse(record).comparisons[0])
    between = " to " if kind == "single" else ", "
    for words in (lead.leader, lead.difference, between.join(lead.interval), lead.probability, BUDGET, "Trainings"):
        assert words in said
    # The facts themselves, and not only a sentence with the same numbers; of several datasets the matrix has them.
    facts = [f"Difference from {lead.other}", "Probability that it is better"] if kind == "single" else []
    assert all(name in said for name in ["Leader", "Budget of each training", *facts])
    assert f"Trainings{len(record.runs)}" in said.replace(" ", "")


def test_many_datasets_are_a_matrix_with_chapters_that_wait(opened, league):
    record, file = league
    page = opened(file)
    assert page.evaluate("document.querySelectorAll('*').length") < 1000
    assert page.evaluate("document.documentElement.scrollHeight") < 4000
    names = record.results["dataset"].unique()
    first = page.locator("table").first
    assert first.locator("tbody th").all_inner_texts() == list(names)
    assert first.bounding_box()["y"] < 900
    chapters = page.locator("details.chapter")
    assert chapters.count() == 5
    assert page.locator("details.chapter .drawing").count() == 0
    first.get_by_role("link", name=names[3]).click()
    opening = chapters.nth(3)
    opening.locator(".drawing svg").first.wait_for()
    assert opening.get_attribute("open") is not None
    assert opening.locator(".drawing svg").count() >= 3
    assert opening.get_by_role("button", name="Algorithm").count() > 0, "its tables can be sorted"
    assert 0 <= opening.bounding_box()["y"] < 450
    assert page.locator("details.chapter .drawing").count() == opening.locator(".drawing").count()


def test_a_link_opens_what_was_closed_again(opened, league):
    record, file = league
    page = opened(file)
    link = page.locator("table").first.get_by_role("link", name=record.results["dataset"].unique()[3])
    link.click()
    page.locator("details.chapter[open] > summary").click()
    assert page.locator("details.chapter[open]").count() == 0
    link.click()
    assert page.locator("details.chapter[open]").count() == 1


def test_a_link_into_a_folded_chapter_opens_it(opened, league):
    _, file = league
    page = opened(file)
    name = "dataset004-made-3d-fullres-cross-validation-dice"
    page.evaluate(f"location.hash = '{name}'")
    page.wait_for_selector(f"#{name} svg", state="visible")
    assert page.locator("details.chapter[open]").count() == 1


def test_all_chapters_are_printed(opened, league):
    page = opened(league[1], width=718)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("template").count() == 0
    assert page.locator("details.chapter .drawing svg").count() >= 15
    assert page.evaluate("[...document.querySelectorAll('main details')].every((part) => part.open)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.get_by_role("navigation").count() == 0


def test_after_printing_the_page_is_as_it_was(opened, league):
    page = opened(league[1])
    page.locator("details.chapter > summary").nth(1).click()
    page.locator("details.chapter").nth(1).locator("svg").first.wait_for()
    state = "[...document.querySelectorAll('nav details, details.chapter, details.chapter details')].map((d) => d.open)"
    chapters = "[...document.querySelectorAll('nav details, details.chapter')].map((part) => part.open)"
    before, opened_before = page.evaluate(chapters), page.evaluate(state).count(True)
    assert before == [False, False, True, False, False, False]
    for _ in range(2):
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(chapters) == [False] + [True] * 5, "the list of comparisons is not printed"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(chapters) == before
    within = page.locator("details.chapter").nth(1).locator("details[open]").count()
    assert page.locator("details.chapter").nth(1).locator("details").count() > within
    assert 1 + within == opened_before


def test_results_with_objects_fit_on_the_paper(opened, tmp_path):
    """Fourteen columns, with nnU-Net's own mean and three qualities of objects."""
    record = make_record(algorithms=6, cases=12, labels=2, folds=2, epochs=1, both_empty=1, one_empty=3, ensemble=True)
    found = {name: [(120, 10, 11, 0.8, 0.7)] * 12 for name in record.results["algorithm"].unique()}
    build(tmp_path, lean(with_objects(record, found)))
    page = opened(tmp_path / "report" / "index.html", width=718)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("table").first.locator("thead th").count() == 14
    assert page.evaluate(WIDER) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('td')].map((d) => parseFloat(getComputedStyle(d).fontSize)))"
    )
    assert smallest >= 7.5, "it can be read"


@pytest.mark.parametrize("width", [390, 1440])
def test_a_long_budget_stays_in_its_place(opened, tmp_path, width):
    record = lean(make_record(algorithms=2, cases=6, labels=1, folds=1, epochs=1))
    build(tmp_path, dataclasses.replace(record, about={**record.about, "budget": "e" * 300}))
    page = opened(tmp_path / "report" / "index.html", width=width)
    assert page.locator(".budget").count() >= 2
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate("""[...document.querySelectorAll('.facts strong, .budget, .plot, figcaption')]
      .filter((part) => part.scrollWidth > part.clientWidth + 1
        || part.getBoundingClientRect().right > part.parentElement.getBoundingClientRect().right + 1)
      .map((part) => part.outerHTML)""")
        == []
    )


def test_long_folded_tables_wait_too(opened, tmp_path):
    found = build(tmp_path, lean(make_record(algorithms=4, cases=6, labels=120, folds=1, epochs=1)))
    assert found.nodes < 4000, "and with all tables more than 12,000"
    page = opened(tmp_path / "report" / "index.html")
    fold = page.locator("details.fold").filter(has=page.get_by_text("NSD by label, higher is better"))
    assert fold.locator("table").count() == 0
    fold.locator("summary").click()
    fold.locator("tbody tr").first.wait_for()  # browsers tell of what was opened a little later
    assert fold.locator("tbody tr").count() == 120
    assert fold.get_by_role("button", name="Label").count() == 1, "it can be sorted"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("template").count() == 0
    assert page.get_by_text("ASSD (mm) by label, lower is better").count() == 1
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert fold.locator("tbody").is_visible(), "what the reader has opened stays open"


def test_long_folded_tables_of_folded_chapters_wait_twice(opened, tmp_path):
    build(tmp_path, lean(make_record(algorithms=2, cases=6, datasets=4, labels=20, folds=1, epochs=1)))
    page = opened(tmp_path / "report" / "index.html")
    page.locator("details.chapter > summary").first.click()
    chapter = page.locator("details.chapter").first
    fold = chapter.locator("details.fold").filter(has=page.get_by_text("Dice by label, higher is better"))
    assert fold.locator("table").count() == 0
    fold.locator("summary").click()
    fold.locator("tbody tr").first.wait_for()
    assert fold.locator("tbody tr").count() == 20
    assert chapter.locator("table").first.locator("thead th").first.locator("button").count() == 1, "once"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("template").count() == 0


def test_figures_of_many_cases_are_drawn_when_the_reader_is_near(opened, tmp_path):
    found = build(tmp_path, lean(make_record(algorithms=2, cases=5000, folds=1, epochs=1, labels=1)))
    assert found.nodes < 2000, "and with all figures far more"
    page = opened(tmp_path / "report" / "index.html")
    places, drawn = page.locator(".drawing"), page.locator(".drawing svg")
    last = places.last
    height = last.bounding_box()["height"]
    assert height > 50, "there is room for what is not drawn yet"
    last.scroll_into_view_if_needed()
    last.locator("svg").wait_for()
    assert last.bounding_box()["height"] == pytest.approx(height, abs=2), "nothing jumps"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert drawn.count() == places.count()


WIDER = """[...document.querySelectorAll('table')].filter((table) => table.offsetWidth > 718)
  .map((table) => [table.offsetWidth, table.textContent.slice(0, 80)])"""
OUTSIDE = """() => [...document.querySelectorAll('.drawing svg')].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map((text) => text.textContent);
})"""


def test_no_text_of_a_figure_is_cut_off(opened, tmp_path):
    """Late in a training, losses and gates move in their third decimals, and ticks are as long as these."""
    record = make_record(algorithms=4, cases=8, folds=2, epochs=6)
    late = ["train_loss", "val_loss", "pseudo_dice"]
    curves = record.curves.assign(**{name: record.curves[name] / 100 - 0.93 for name in late})
    gates = [f"{GATE}cell (1,0) <- stem (0,0)", f"{GATE}cell (1,1) <- stem (0,0)"]
    for number, gate in enumerate(gates):
        curves[gate] = (0.5 + curves["epoch"] * 0.0005 * (number + 1)).where(curves["algorithm"] != BASELINE)
    build(tmp_path, dataclasses.replace(record, curves=curves))
    page = opened(tmp_path / "report" / "index.html")
    drawn = page.locator(".drawing svg")
    assert page.locator("figure[id$='-gates'] svg").count() == page.locator("figure[id$='-curves'] svg").count() == 1
    assert drawn.count() >= 10
    assert page.evaluate(OUTSIDE) == []


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """The page of twenty comparisons."""
    folder = tmp_path_factory.mktemp("twenty")
    build(folder, lean(make_record(algorithms=1, cases=2, datasets=20, labels=1, folds=1, epochs=1)))
    return folder / "report" / "index.html"


def test_a_phone_lists_all_comparisons(opened, twenty):
    page = opened(twenty, width=390, height=844)
    page.get_by_text("20 comparisons", exact=True).click()
    links = page.locator("nav ul a")
    assert links.count() == 20
    for box in (link.bounding_box() for link in links.all()):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    hidden = page.locator("nav ul").evaluate(
        "list => [list.scrollWidth - list.clientWidth, list.scrollHeight - list.clientHeight]"
    )
    assert hidden == [0, 0]


@pytest.mark.parametrize("how", ["link", "Escape"])
def test_the_list_of_comparisons_closes_and_hides_no_heading(opened, twenty, how):
    page = opened(twenty)
    summary, details = page.get_by_text("20 comparisons", exact=True), page.locator("nav details")
    summary.click()
    assert details.evaluate("list => list.open")
    if how == "Escape":
        page.locator("nav ul a").nth(2).focus()
        page.keyboard.press("Escape")
        assert summary.evaluate("summary => document.activeElement === summary")
    else:
        page.locator("nav ul a").nth(12).click()
        heading = page.locator("details.chapter[open] h2")
        heading.wait_for()
        bar, box = page.locator("nav").bounding_box(), heading.bounding_box()
        assert bar["y"] + bar["height"] <= box["y"] < 450
    assert not details.evaluate("list => list.open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_that_a_table_goes_on(opened, single, scheme):
    page = opened(single[1], width=390, height=844, scheme=scheme)
    box = page.locator(".scroll").first
    box.scroll_into_view_if_needed()
    assert box.evaluate("box => box.scrollWidth - box.clientWidth") > 100

    def edge(side):
        """The luminance of a strip at a side, above the headings, where there is no text."""
        place = box.bounding_box()
        x = place["x"] + (place["width"] - 2 if side == "right" else 1)
        picture = page.screenshot(clip={"x": x, "y": place["y"] + 2, "width": 1, "height": 1})
        return page.evaluate(
            """async (data) => {
              const image = new Image();
              image.src = data;
              await image.decode();
              const canvas = document.createElement('canvas').getContext('2d');
              canvas.drawImage(image, 0, 0);
              return canvas.getImageData(0, 0, 1, 1).data[0];
            }""",
            f"data:image/png;base64,{base64.b64encode(picture).decode()}",
        )

    paper, shade = edge("left"), edge("right")
    assert abs(paper - shade) > 12, "a shadow where there is more"
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    assert edge("right") == paper, "and none at the end"
    name = page.locator("tbody th").first.bounding_box()
    assert name["x"] >= box.bounding_box()["x"] - 1, "names stay in sight"


MARKS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const pixel = (paper, ink, alpha) => {
    canvas.globalAlpha = 1; canvas.fillStyle = paper; canvas.fillRect(0, 0, 1, 1);
    canvas.globalAlpha = alpha; canvas.fillStyle = ink; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  const ratio = (ink, alpha) => {
    const [low, high] = [pixel(paper, ink, alpha), pixel(paper, paper, 1)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [...document.querySelectorAll('.mark')].map(
    (mark) => [ratio(getComputedStyle(mark).color, 1), mark.outerHTML]);
  for (const mark of document.querySelectorAll('.drawing svg use')) {
    if (mark.style.fillOpacity === '0.18') continue; // the shade behind the points
    const style = getComputedStyle(mark);
    const inks = [[style.fill, style.fillOpacity * style.opacity], [style.stroke, style.strokeOpacity * style.opacity]];
    found.push([Math.max(...inks.map(([ink, alpha]) => (ink === 'none' ? 1 : ratio(ink, alpha)))), mark.outerHTML]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_marks_stand_out_from_the_paper(opened, single, scheme):
    page = opened(single[1], scheme=scheme)
    contrasts = page.evaluate(MARKS)
    assert len(contrasts) > 100
    assert [mark for ratio, mark in contrasts if ratio < 3] == []


def test_regions_of_several_chapters_have_names_of_their_own(opened, tmp_path):
    record = make_record(algorithms=2, cases=6, datasets=2, labels=1, folds=1, epochs=1)
    build(tmp_path, lean(record))
    page = opened(tmp_path / "report" / "index.html")
    names = page.locator("[role=region]").evaluate_all("regions => regions.map((region) => region.ariaLabel)")
    assert len(names) == len(set(names)) > 8
    labels = page.locator("table").evaluate_all(
        "tables => tables.map((table) => table.getAttribute('aria-labelledby'))"
    )
    assert len(labels) == len(set(labels)) == len(names)


def contrast(one, other):
    """Of two colours in the page's notation, as WCAG has it."""
    light = []
    for colour in (one, other):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("ranks", [2, 3, 5, 8, 13])
def test_the_numbers_of_ranks_can_be_read_on_their_bars(ranks):
    shares = pd.DataFrame([[1 / ranks] * ranks], index=["a"], columns=range(1, ranks + 1))
    drawn = ET.fromstring(rank_shares(shares, key="k", title="T"))
    bars = [found[1] for path in drawn.iter(f"{SVG}path") if (found := FILLED.search(path.get("style", "")))]
    texts = [text for text in drawn.iter(f"{SVG}text") if re.fullmatch("[0-9]+", text.text or "")]
    inks = [(FILLED.search(text.get("style", "")) or [None, "#000000"])[1] for text in texts]
    assert len(bars) == len(inks) == ranks
    assert min(map(contrast, bars, inks)) >= 4.5


def test_headings_that_sort_show_it(opened, single):
    page = opened(single[1])
    style = page.locator("thead button").first.evaluate("button => getComputedStyle(button).textDecorationColor")
    colour = "#" + "".join(f"{int(part):02x}" for part in re.findall("[0-9]+", style)[:3])
    assert contrast(colour, "#ffffff") >= 3


def test_curves_of_folds_are_lines_that_can_be_seen():
    """Thinner ones are drawn paler than they are: a pixel is not filled."""
    record = make_record(algorithms=3, cases=1, folds=3, epochs=4)
    looks = styles(list(record.curves["algorithm"].unique()), BASELINE)
    drawn = ET.fromstring(training_curves(record.curves, looks, key="k", title="T"))
    lines = [path.get("style", "") for path in drawn.iter(f"{SVG}path") if path.get("clip-path")]
    widths = [float(found[1]) for style in lines if "stroke-opacity" not in style and (found := STROKE.search(style))]
    assert len(widths) == 3 * 3 * (3 + 1), "three columns of three algorithms, each three folds and their mean"
    assert min(widths) >= 0.8


def test_the_accessibility_tree_has_what_the_eye_has(opened, single):
    page = opened(single[1])
    assert page.get_by_role("navigation", name="Contents").get_by_role("link").count() >= 3
    assert page.get_by_role("heading", level=1).count() == 1
    for name in ("Overview", "How to cite and describe", "Environment"):
        assert page.get_by_role("heading", level=2, name=name, exact=True).count() == 1
    assert page.get_by_role("region", name="Results, ranked by mean Dice").get_by_role("table").count() == 1
    assert page.get_by_role("table").first.get_by_role("rowheader").count() == 4
    assert page.get_by_role("img").count() == page.locator(".drawing svg").count() > 3
    assert page.get_by_role("term").filter(has_text="Leader").count() == 1
    # Ensembles are there for whoever asks.
    tables = page.get_by_role("table")
    assert tables.count() >= 3
    for name in ("Results, ranked by mean Dice", "Dice by label, higher is better"):
        assert page.get_by_role("table", name=name, exact=True).count() == 1
        assert page.get_by_role("region", name=f"{name}, Dataset001_Made, 3d_fullres, cross-validation").count() == 1
    figure = page.locator("figure[id$='-dice'] svg")
    assert page.get_by_role("img", name="Dice, Dataset001_Made, 3d_fullres, cross-validation", exact=True).count() == 1
    said = figure.evaluate("(svg) => document.getElementById(svg.getAttribute('aria-describedby')).textContent")
    assert said.startswith("Dice of each case (points)")
    assert page.get_by_text("ensemble of the two best").first.is_hidden()
    page.get_by_text("Ensembles and nnU-Net's choice, which are not ranked").click()
    assert page.get_by_role("rowheader", name="ensemble of the two best").first.is_visible()
