"""A rendered report as its reader meets it: `pytest tests/check_report.py --report _report/demo`."""
import re
from pathlib import Path

import pytest

PAGES = ["index", "00_data", "01_models2d", "02_models3d_inflation", "03_train", "04_gradcam", "05_analysis"]


@pytest.fixture(scope="session")
def report(request):
    folder = request.config.getoption("--report")
    if not folder: pytest.skip("give the folder of a rendered report with --report")
    return Path(folder).resolve()


def open_page(browser, path, width):
    "The page offline, and everything that went wrong while it loaded."
    context = browser.new_context(viewport=dict(width=width, height=900), offline=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(f"asks the network: {r.url}"))
    page.goto(path.as_uri())
    return page, wrong


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_without_a_network(browser, report, name, width):
    page, wrong = open_page(browser, report/f"{name}.html", width)
    broken = page.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt || i.src.slice(0, 80))")
    scroll = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    text = page.inner_text("body")
    page.context.close()
    assert not wrong and not broken
    assert scroll <= 0, "the page scrolls sideways"
    for trace in ("{{<", ":::", "#| ", "?@fig", "@fig-", "@tbl-", "Traceback"): assert trace not in re.sub(r"(?s)<pre.*?</pre>", "", text) or name != "index", trace


def test_report_has_its_seven_sections_and_numbered_figures(browser, report):
    page, _ = open_page(browser, report/"index.html", 1280)
    headings = page.eval_on_selector_all("main h2, main h1", "hs => hs.map(h => h.innerText)")
    captions = page.eval_on_selector_all("figcaption", "cs => cs.map(c => c.innerText)")
    cited = page.locator("#refs .csl-entry, #refs [role=listitem]").count()
    page.context.close()
    wanted = ["Introduction", "Related work", "Methodology", "Experiments", "Grad-CAM analysis", "Discussion", "Conclusion"]
    found = [next((i for i, h in enumerate(headings) if w in h), None) for w in wanted]
    assert None not in found and found == sorted(found), headings
    assert sum(bool(re.match(r"(Figure|Table)\s\d", c)) for c in captions) >= 8, captions
    assert cited >= 10


def test_players_move(browser, report):
    page, wrong = open_page(browser, report/"index.html", 1280)
    players = page.locator(".ssv2-player")
    assert players.count() >= 1
    for i in range(players.count()):
        player = players.nth(i)
        player.scroll_into_view_if_needed()
        slider, view = player.locator("input[type=range]"), player.locator(".ssv2-view").first
        before = view.screenshot()
        slider.fill("5")
        assert view.screenshot() != before, "the slider moves nothing"
        slider.focus()
        page.keyboard.press("ArrowLeft")
        assert slider.input_value() == "4"
    page.context.close()
    assert not wrong


def test_the_report_is_also_a_pdf(report):
    pdf = report/"index.pdf"
    assert pdf.read_bytes()[:5] == b"%PDF-" and pdf.stat().st_size > 20_000
