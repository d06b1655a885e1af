"""A rendered report as its reader meets it: `pytest tests/check_report.py --report _report/demo`."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pdfs import filled, outside, overlapping, words_of
from PIL import Image

from ssv2_report.jobs.steps import CHAPTERS
from ssv2_report.study.experiments import load_study, write_study

ROOT = Path(__file__).parents[1]
PAGES = [
    "index",
    "appendix",
    "00_data",
    *CHAPTERS,
    *(f"{k}_run" for k in ("train", "gradcam", "reliance", "analysis")),
]


@pytest.fixture(scope="session")
def report(request):
    folder = request.config.getoption("--report")
    if not folder:
        pytest.skip("give the folder of a rendered report with --report")
    return Path(folder).resolve()


def open_page(browser, path, width):
    "The page offline, and everything that went wrong while it loaded."
    context = browser.new_context(viewport=dict(width=width, height=900), offline=True)
    page, wrong = context.new_page(), []
    # Quarto's own module scripts, which a browser forbids under file://; the command says so.
    forbidden = re.compile(r"site_libs/quarto-html/[\w/-]+\.js|^Failed to load .*ERR_FAILED$")
    quarto = (path.parent / "site_libs" / "quarto-html").is_dir()

    def note(text):
        if not (quarto and forbidden.search(text)):
            wrong.append(text)

    page.on("console", lambda m: note(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: note(str(e)))
    page.on("requestfailed", lambda r: note(f"failed: {r.url}"))
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith(("file:", "data:", "blob:"))
            else wrong.append(f"asks the network: {r.url}")
        ),
    )
    page.goto(path.as_uri())
    return page, wrong


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_without_a_network(browser, report, name, width):
    page, wrong = open_page(browser, report / f"{name}.html", width)
    broken = page.evaluate(
        "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt || i.src.slice(0, 80))"
    )
    scroll = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    text = page.inner_text("body")
    page.context.close()
    assert not wrong and not broken
    assert scroll <= 0, "the page scrolls sideways"
    for trace in ("{{<", ":::", "#| ", "?@fig", "@fig-", "@tbl-", "Traceback"):
        assert trace not in re.sub(r"(?s)<pre.*?</pre>", "", text) or name != "index", trace


WIDE = """(all) => [...document.querySelectorAll(".scroll, .cell-output")].filter(e =>
  e.querySelector("table") && e.scrollWidth > e.clientWidth + 1 &&
  (all || !getComputedStyle(e, "::before").content.includes("scrolls"))
).map(e => (e.closest("figure") || e).id || e.innerText.slice(0, 60))"""


@pytest.mark.parametrize("name", PAGES)
def test_no_table_is_cut_without_saying_so(browser, report, name):
    path = report / f"{name}.html"
    if not path.is_file():
        pytest.skip("this report has no such page")
    for width in (1280, 390):
        page, _ = open_page(browser, path, width)
        page.wait_for_load_state("load")
        silent = page.evaluate(f"({WIDE})(false)")
        wide = page.evaluate(f"({WIDE})(true)") if (name, width) == ("index", 1280) else []
        figures = page.evaluate(
            "[...document.querySelectorAll('main img, main .ssv2-player')]"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.ssv2-view'))"
            ".map(e => e.alt || e.className)"
        )
        page.context.close()
        assert not silent and not wide and not figures, width


def test_report_is_small_and_opens_at_once(browser, report):
    assert sum(f.stat().st_size for f in report.rglob("*") if f.is_file()) < 15e6
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((report / "index.html").as_uri())
    loaded = page.evaluate(
        "new Promise(done => setTimeout(() => done(performance.getEntriesByType('navigation')[0].loadEventEnd), 50))"
    )
    context.close()
    assert 0 < loaded < 2000, f"the page takes {loaded:.0f} ms to load"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, report, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python",
        reason="axe-playwright-python is not installed, so axe does not check the pages",
    )
    context = browser.new_context(
        offline=True, viewport=dict(width=1280, height=900), color_scheme=scheme
    )
    page, found = context.new_page(), {}
    for path in sorted(report.glob("*.html")):
        page.goto(path.as_uri())
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
        if violations := page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)]))"
        ):
            found[path.name] = violations
    context.close()
    assert not found


def test_numbers_and_figures_lead_to_their_cells(browser, report):
    page, _ = open_page(browser, report / "index.html", 1280)
    numbers = page.eval_on_selector_all(
        "main a.number", "as => as.map(a => [a.innerText, a.getAttribute('href')])"
    )
    sources = page.eval_on_selector_all(
        ".source-link a", "as => as.map(a => a.getAttribute('href'))"
    )
    silent = page.evaluate(
        "[...document.querySelectorAll('main img')].filter(i => i.alt.length < 20).length"
    )
    captioned = page.evaluate(
        """[...document.querySelectorAll('main figcaption, main caption')]
        .filter(c => /^(Figure|Table)\\s\\d/.test(c.innerText)).length"""
    )
    page.context.close()
    assert len(numbers) >= 5 and not silent
    assert len(set(sources)) >= captioned >= 8, "each figure and table names the cell it is from"
    for target in {href for _, href in numbers} | set(sources):
        name, _, anchor = target.partition("#")
        assert f'id="{anchor}"' in (report / name).read_text(encoding="utf-8"), target


def test_report_has_its_seven_sections_and_numbered_figures(browser, report):
    page, _ = open_page(browser, report / "index.html", 1280)
    headings = page.eval_on_selector_all("main h2, main h1", "hs => hs.map(h => h.innerText)")
    captions = page.eval_on_selector_all("figcaption", "cs => cs.map(c => c.innerText)")
    cited = page.locator("#refs .csl-entry, #refs [role=listitem]").count()
    page.context.close()
    wanted = [
        "Introduction",
        "Related work",
        "Methodology",
        "Experiments",
        "Grad-CAM analysis",
        "Discussion",
        "Conclusion",
    ]
    found = [next((i for i, h in enumerate(headings) if w in h), None) for w in wanted]
    assert None not in found and found == sorted(found), headings
    assert sum(bool(re.match(r"(Figure|Table)\s\d", c)) for c in captions) >= 8, captions
    assert cited >= 10


COUNTED = """() => {
  const words = e => e ? e.innerText.split(/\\s+/).filter(w => /[\\p{L}\\p{N}]/u.test(w)).length : 0;
  const main = document.querySelector("main");
  return { page: words(main) - words(main.querySelector("#refs")),
    captions: [...main.querySelectorAll("figcaption")].filter(c => !c.closest(".ssv2-player"))
      .map(c => [words(c) - 2, c.innerText]).filter(([n, _]) => n > 40) };
}"""


def test_the_page_and_its_captions_are_short(browser, report):
    counted = {}
    for name in ("index", "appendix"):
        page, _ = open_page(browser, report / f"{name}.html", 1280)
        counted[name] = page.evaluate(COUNTED)
        page.context.close()
    assert counted["index"]["page"] <= 3500
    assert not counted["index"]["captions"] + counted["appendix"]["captions"]


def test_players_move(browser, report):
    page, wrong = open_page(browser, report / "index.html", 1280)
    players = page.locator(".ssv2-player:has(input)")
    assert players.count() >= 1
    for i in range(players.count()):
        player = players.nth(i)
        player.scroll_into_view_if_needed()
        player.locator("summary").click()
        slider, view = player.locator("input[type=range]"), player.locator(".ssv2-view").first
        before = view.screenshot()
        at = "5" if slider.input_value() != "5" else "3"
        slider.fill(at)
        assert view.screenshot() != before, "the slider moves nothing"
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert slider.input_value() == str(int(at) - 1)
    page.context.close()
    assert not wrong


def test_the_report_is_also_a_pdf(report):
    pdf = report / "index.pdf"
    assert pdf.read_bytes()[:5] == b"%PDF-" and pdf.stat().st_size > 20_000


def test_no_words_of_the_pdf_meet_and_no_page_is_half_empty(report, tmp_path):
    words = words_of(report / "index.pdf")
    assert len({w[0] for w in words}) > 5 and len(words) > 3000
    assert not outside(words, 595.3, 841.9)  # A4
    assert not overlapping(words)
    *pages, last = filled(report / "index.pdf", tmp_path)
    assert not [(n, p) for n, p in enumerate(pages, 1) if p[0] < 0.5 or p[1] > 0.5]


def test_figures_are_vectors_that_turn_dark_with_the_page(browser, report):
    context = browser.new_context(
        offline=True, viewport=dict(width=1280, height=900), color_scheme="dark"
    )
    page = context.new_page()
    page.goto((report / "index.html").as_uri())
    drawings = page.locator("main figure img:not(.ssv2-player img)")
    assert drawings.count() >= 5
    for i in range(drawings.count()):
        assert drawings.nth(i).get_attribute("src").endswith(".svg")
        image = Image.open(io.BytesIO(drawings.nth(i).screenshot())).convert("L")
        assert np.median(np.asarray(image)) < 60, drawings.nth(i).get_attribute("alt")
    context.close()


def planned(study, results):
    "The jobs that `ssv2 reproduce` would run: rule, and experiment where it has one."
    command = [
        sys.executable,
        "-m",
        "ssv2_report.cli",
        "reproduce",
        str(study),
        "--results",
        str(results),
        "--dry-run",
    ]
    log = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {
        (rule, m[1] if (m := re.fullmatch(r"([\w-]+)-s\d+", of)) else None)
        for rule, _, of in (re.split("[,:] ", line)[0].partition(" ") for line in log.splitlines())
        if not rule.startswith("Nothing")
    }


def changed(name, experiment, folder):
    "The file of a study, one of whose experiments is changed."
    study = load_study(name)
    study.experiments[experiment].weight_decay = 0.04
    return write_study(study, folder)


def test_only_what_a_change_concerns_is_redone(report, tmp_path):
    name = report.name
    results = ROOT / "results" / name
    assert planned(name, results) == set()
    after = {("analysis", None), ("render", None)} | (
        {("validation", None)} if (results / "validation_run.ipynb").is_file() else set()
    )
    assert planned(changed(name, "3d-scratch", tmp_path), results) == after | {
        (rule, "3d-scratch") for rule in ("train", "sources", "gradcam", "reliance")
    }
    assert planned(changed(name, "2d-multi", tmp_path), results) == after | {
        (rule, e)
        for rule in ("train", "sources", "gradcam", "reliance")
        for e in ("2d-multi", "3d-inflated")
    }
