"The renderer without Quarto: what a reader sees, in a browser without a network."

import base64
import html
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pypandoc
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import (
    new_code_cell as code,
)
from nbformat.v4 import (
    new_markdown_cell as md,
)
from nbformat.v4 import (
    new_notebook,
    new_output,
)
from nbformat.v4 import (
    new_raw_cell as raw,
)
from pdfs import filled, outside, overlapping, text_of, words_of
from PIL import Image
from worlds import TEXTS, as_read

from ssv2_report.analysis.latex import caption_latex
from ssv2_report.analysis.tables import literal, plain_table, save_table, texts_of
from ssv2_report.gradcam.pictures import player
from ssv2_report.report.pages import Page
from ssv2_report.report.site import (
    ReportError,
    _words_left,
    captions,
    embed,
    render,
    rendered_files,
    stage,
    substitute,
)

ROOT = Path(__file__).parent.parent
VARIABLES = dict(clips=480, accuracy=dict(gain="12.5 points", interval="9.1 to 15.8"))

needs_quarto = pytest.mark.skipif(not shutil.which("quarto"), reason="Quarto is not on the PATH")


CONFIG = """
project: {type: website}
lang: en
bibliography: references.bib
link-citations: true
number-sections: true
website:
  title: "2D & 3D networks"
  page-navigation: true
  navbar: {left: [{text: Report, href: index.ipynb}]}
  sidebar:
    contents:
      - section: Report
        contents: [{text: The report, href: index.ipynb}]
      - section: Notebooks
        contents: [{text: 01 Models, href: 01_models.ipynb}, {text: Absent, href: 09_absent.ipynb}]
format:
  html: {toc: true, code-fold: true, html-math-method: mathml}
  typst: {papersize: a4, echo: false}
"""

PLAYER = """<div class="player" id="%s"><input type="range" min="0" max="7" value="0" aria-label="Frame"><output>0</output>
<script>(() => { const p = document.getElementById("%s"), s = p.querySelector("input");
  s.oninput = () => p.querySelector("output").textContent = s.value; if (1 < 2 && "a" !== '`') p.dataset.ready = "yes"; })();</script></div>"""


def show(**data):
    return new_output("display_data", data={k.replace("_", "/", 1): v for k, v in data.items()})


def picture(width=5, height=2.4):
    fig, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.plot([1, 2, 3, 4], [0.3, 0.7, 0.9, 0.95], label="3D")
    ax.plot([1, 2, 3, 4], [0.3, 0.4, 0.5, 0.5], "--", label="2D")
    ax.set(xlabel="epoch", ylabel="accuracy")
    ax.legend()
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    plt.close(fig)
    return base64.b64encode(buffer.getvalue()).decode()


def write(path, cells):
    nb = new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
        },
    )
    nbformat.write(nb, path)
    return path


def report_cells():
    wide = pd.DataFrame(
        {f"a rather long column {i}": [0.5 + i / 20, 0.25] for i in range(9)},
        index=["2D over frames", "3D inflated"],
    )
    return [
        raw(
            "---\ntitle: What do networks attend to?\nsubtitle: A study of order\nauthor:\n  - name: A. Author\n    affiliation: Some University\n"
            "  - name: B. Writer\nabstract: |\n  On {{< var clips >}} clips 3D gains *{{< var accuracy.gain >}}* [@goyal2017something].\n---"
        ),
        md(
            "## Introduction {#sec-intro}\n\nGrad-CAM [@selvaraju2017gradcam] on {{< var clips >}} clips; @carreira2017quo inflate. "
            "See @fig-curves, @tbl-wide, @tbl-small, @fig-maps, @sec-method, @eq-gap and [the models](01_models.ipynb#fig-inner).\n\n"
            "A gain of {{< var accuracy.gain >}} ({{< var accuracy.interval >}}).[^1] Written `{{{< var x >}}}`.\n\n[^1]: A note."
        ),
        md(
            '::: {.callout-note}\n## Mind\nA demo world is *not* SSv2.\n:::\n\n::: {.callout-warning collapse="true"}\nFolded away.\n:::'
        ),
        md(
            "## Method {#sec-method}\n\n$$\\Delta = \\frac{1}{n}\\sum_i (y_i - x_i)$$ {#eq-gap}\n\nInline $x^2$.\n\n### Data\n\nText."
        ),
        code(
            '#| label: fig-curves\n#| fig-cap: "Accuracy over {{< var clips >}} clips, after @carreira2017quo."\n#| fig-alt: "Two curves: the 3D one rises to 0.95, the 2D one stays at \\"half\\"."\n'
            "plot(history)",
            outputs=[show(image_png=picture(), text_plain="<Figure>")],
        ),
        code(
            '#| label: tbl-wide\n#| tbl-cap: "Accuracy by class."\nwide',
            outputs=[show(text_html=wide.to_html(border=1), text_plain="x")],
        ),
        md(
            "| model | top-1 |\n|:--|--:|\n| 2D | 0.5 |\n| 3D | 0.9 |\n\n: A small table. {#tbl-small}"
        ),
        code(
            '#| label: fig-maps\n#| fig-cap: "The same clip."\n#| fig-alt: "Frames with maps."\n#| echo: false\nplayer()',
            outputs=[show(text_html=PLAYER % ("p1", "p1"), image_png=picture(3, 1.5))],
        ),
        code(
            '#| code-summary: "How"\nprint("x")\nplayer2()',
            outputs=[
                new_output("stream", name="stdout", text="step 1\r"),
                new_output("stream", name="stdout", text="step 2\x1b[31m red\x1b[0m\n"),
                show(text_html=PLAYER % ("p2", "p2")),
            ],
        ),
        md("::: {.panel-tabset}\n### Ordered\n\nFirst *tab*.\n\n### Shuffled\n\nSecond tab.\n:::"),
        md("Embedded:\n\n{{< embed 01_models.ipynb#fig-inner >}}\n\nAnd on."),
        code("#| include: false\nsecret()", outputs=[show(text_plain="secret")]),
        md("## Conclusion\n\n" + "Order tells. " * 60),
    ]


def library_cells():
    "Exported cells of a module of this library, as an executed notebook has them."
    from ssv2_report.data import boxes

    return [
        code("#| export\n" + inspect.getsource(x)) for x in (boxes.Boxes, boxes.transform_boxes)
    ]


def model_cells():
    nested = pd.DataFrame(
        {"pointing": [0.8, 0.7, 0.4, 0.1]},
        index=pd.MultiIndex.from_tuples(
            [("layer1", "own"), ("layer1", "other"), ("", "noise"), ("", "even")]
        ),
    )
    return [
        code("#| default_exp data.boxes"),
        md("# Models\n\n> Two kinds\n> of them\n\nWhy one should care."),
        code("#| export\nfrom pathlib import Path\n_private = 1"),
        md("## Define"),
        *library_cells(),
        code(
            '#| label: fig-inner\n#| fig-cap: "Inner figure."\n#| fig-alt: "A curve."\ndouble([1])',
            outputs=[show(image_png=picture(4, 2))],
        ),
        code(
            "scores",
            outputs=[show(text_html=nested.to_html(classes="mathjax_ignore"), text_plain="x")],
        ),
        code("double([1])", outputs=[show(text_plain="[1, 1]")]),
        code("#| hide\nhidden()"),
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "nbs").mkdir()
    (root / "_quarto.yml").write_text(CONFIG)
    shutil.copy(ROOT / "nbs" / "references.bib", root / "nbs")
    books = dict(
        index=write(root / "index.ipynb", report_cells()),
        **{"01_models": write(root / "01_models.ipynb", model_cells())},
    )
    return root, books


@pytest.fixture(scope="module")
def site(project, tmp_path_factory):
    root, books = project
    return stage(tmp_path_factory.mktemp("site"), books, VARIABLES, root)


@pytest.fixture(scope="module")
def plain(project, tmp_path_factory):
    "A site of two pages of a sentence, as staged."
    root, _ = project
    folder = tmp_path_factory.mktemp("plain")
    names = "index", "01_models"
    books = {n: write(folder / f"{n}.ipynb", [md(f"# Of {n}"), md("A sentence.")]) for n in names}
    return stage(folder / "site", books, {}, root)


@pytest.fixture(scope="module")
def index(site, tmp_path_factory):
    return render(site, tmp_path_factory.mktemp("out"), quarto=None)


@pytest.fixture(scope="module")
def text(index):
    return index.read_text()


def test_staged_notebooks_are_valid_and_carry_the_run(site):
    for path in site.glob("*.ipynb"):
        nbformat.validate(nbformat.read(path, as_version=4))
        assert "has_sd" not in path.read_text() and "output-file" not in path.read_text()
    source = "\n".join(
        cell.source for cell in nbformat.read(site / "index.ipynb", as_version=4).cells
    )
    assert (
        "A gain of 12.5 points (9.1 to 15.8)" in source
        and "over 480 clips" in source
        and "{{{< var x >}}}" in source
    )
    models = nbformat.read(site / "01_models.ipynb", as_version=4).cells
    assert (
        "title: Models" in models[0].source and "description: Two kinds of them" in models[0].source
    )
    assert any(cell.source == "Why one should care." for cell in models)
    assert not any(re.search(r"#\| *(export|default_exp|hide)", cell.source) for cell in models)


def test_the_same_report_is_the_same_files(project, site, index):
    root, books = project
    before = {p: p.read_bytes() for p in index.parent.rglob("*") if p.suffix in (".html", ".svg")}
    assert render(stage(site, books, VARIABLES, root), index.parent, quarto=None) == index
    assert before == {p: p.read_bytes() for p in before}


def test_numbers_captions_references_and_citations(text):
    plain = " ".join(re.sub(r"<[^>]+>", "", text).replace("\xa0", " ").split())
    for words in (
        "Figure 1: Accuracy over 480 clips, after Carreira and Zisserman (2017)",
        "Table 1: Accuracy by class.",
        "Table 2: A small table.",
        "Figure 2: The same clip.",
        "Figure 3: Inner figure.",
        "On 480 clips 3D gains 12.5 points (Goyal et al. 2017)",
        "See Figure 1, Table 1, Table 2, Figure 2, Section 2, Equation (1) and the models.",
        "{{&lt; var x &gt;}}",
        "step 2 red",
    ):
        assert words in plain, words
    assert (
        "?@" not in plain
        and "secret" not in plain
        and "step 1" not in plain
        and ":::" not in plain
        and "#|" not in plain
    )
    assert plain.index("References Carreira") < plain.index("Goyal, Raghav")
    targets = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= targets
    assert (
        'href="01_models.html#fig-inner"' in text
        and 'alt="Two curves: the 3D one rises to 0.95, the 2D one stays at &quot;half&quot;."'
        in text
    )


def test_a_page_that_there_is_no_more_goes_and_a_file_of_the_users_stays(tmp_path, project):
    root, _ = project
    index = write(tmp_path / "index.ipynb", [md("# A page\n\nText.")])
    other = write(tmp_path / "other.ipynb", [md("# Another\n\nText.")])
    site, out = tmp_path / "site", tmp_path / "out"
    render(stage(site, dict(index=index, other=other), {}, root), out, None)
    assert (out / "other.html").is_file()
    (out / "mine.txt").write_text("mine")
    render(stage(site, dict(index=index), {}, root), out, None)
    assert not (out / "other.html").exists() and (out / "mine.txt").read_text() == "mine"


def test_raw_output_passes_untouched(text):
    assert (
        PLAYER % ("p1", "p1") in text
        and PLAYER % ("p2", "p2") in text
        and "<!--output-" not in text
    )


def test_nothing_comes_from_the_network(index):
    for page in index.parent.glob("*.html"):
        assert not re.search(
            r'(src|srcset)="https?:|<link[^>]+href="https?:|@import', page.read_text()
        )


def test_exported_functions_show_their_source_folded(index):
    page = (index.parent / "01_models.html").read_text()
    plain = re.sub(r"<[^>]+>", "", page)
    assert "Boxes after cutting out a window" in plain and "# Of the clip, pixels" in plain
    assert page.count("<summary>Source") >= 2
    assert "_private" not in plain and "hidden()" not in plain and "example.invalid" not in page


@pytest.mark.parametrize("exported_to", ["data.boxes", "os"])
def test_nothing_in_a_results_notebook_is_run(project, tmp_path, exported_to):
    root, _ = project
    sign = f"__import__('pathlib').Path({str(tmp_path / 'canary')!r}).touch()"
    cells = [
        code(f"#| default_exp {exported_to}"),
        md("# A page"),
        code(f"import os\n{sign}"),
        code(f"#| export\n{sign}"),
        code(f"#| exporti\n{sign}"),
        code(f'#| export\n{sign}\ndef transform_boxes(x={sign}): "Not the library\'s."'),
        code(f"#| export\nclass A:\n    {sign}\n    def f(self): pass"),
        code(f"#| export\n@patch\ndef f(self:{sign}): pass"),
        code(f"from nbdev.showdoc import show_doc\nshow_doc(A.f)\n{sign}"),
        code(f"%run {tmp_path}/x.py\n!touch {tmp_path}/canary"),
    ]
    stage(tmp_path / "site", dict(index=write(tmp_path / "index.ipynb", cells)), VARIABLES, root)
    assert not (tmp_path / "canary").exists()
    page = (tmp_path / "site" / "index.ipynb").read_text()
    assert "transform_boxes" in page and "has_sd" not in page


def executed(cells, injected):
    "What papermill leaves of a notebook: an injected cell, and outputs."
    ran = lambda k, c: code(
        c["source"], metadata=c["metadata"], outputs=[show(text_plain=f"output {k}")]
    )
    done = [ran(k, c) if c["cell_type"] == "code" else c for k, c in enumerate(cells)]
    return [*done[:2], code(injected, metadata=dict(tags=["injected-parameters"])), *done[2:]]


def test_words_are_those_of_now_and_outputs_those_of_the_run(project, tmp_path):
    "Also the caption of a figure that another page embeds, and a comment between cells."
    root, _ = project
    parameters = code('study = "a"', metadata=dict(tags=["parameters"]))
    old = [
        md("# A page\n\nThe old story."),
        parameters,
        code('#| label: fig-a\n#| fig-cap: "Old caption."\n1  # old comment'),
    ]
    run = write(tmp_path / "run.ipynb", executed(old, 'study = "/some/where/ab12/demo.yaml"'))
    new = [
        md("# A page\n\nThe new story, by {{< var n >}}."),
        code("# only a comment"),
        parameters,
        md("A new paragraph."),
        code('#| label: fig-a\n#| fig-cap: "New caption."\n1  # new comment'),
    ]
    index = write(tmp_path / "index.ipynb", [md("# Index\n\n{{< embed run#fig-a >}}")])
    pages = dict(index=index, run=run)

    def staged(cells):
        now = write(tmp_path / "now.ipynb", cells)
        stage(tmp_path / "site", pages, dict(n=3), root, sources=dict(run=now))
        site = tmp_path / "site"
        return (site / "run.ipynb").read_text(), (site / "index.ipynb").read_text(), now

    page, embedding, now = staged(new)
    wanted = ("new story, by 3", "A new paragraph", "new comment", "New caption", "output 2")
    assert all(words in page for words in wanted) and 'study = \\"demo\\"' in page
    assert "old" not in page.replace("folder", "").lower() and "some/where" not in page
    assert "New caption" in embedding and "output 2" in embedding
    assert captions(run, dict(n=3), now) == {"fig-a": "New caption."}
    page, embedding, now = staged([*new, code("x = 2")])
    assert "old story" in page and "Old caption" in embedding, "other code: as it was executed"


def test_values_stay_within_the_quotes_of_an_option(project, tmp_path):
    root, _ = project
    said = 'a "b" \\ {c}: d'
    cells = [
        md("# A page"),
        code(
            '#| label: fig-a\n#| fig-cap: "One."\n#| fig-alt: "Says {{< var said >}}."\nx',
            outputs=[show(image_png=picture(4, 2))],
        ),
    ]
    page = render(
        stage(
            tmp_path / "site",
            dict(index=write(tmp_path / "index.ipynb", cells)),
            dict(said=said),
            root,
        ),
        tmp_path / "out",
        quarto=None,
    ).read_text()
    assert f'alt="Says {html.escape(said)}."' in page


def test_pdf_says_the_same(index, tmp_path):
    pdf = index.with_suffix(".pdf")
    assert pdf.read_bytes()[:5] == b"%PDF-"
    words = " ".join(text_of(pdf).replace("\xa0", " ").split())
    for part in (
        "What do networks attend to?",
        "Some University",
        "Abstract",
        "1 Introduction",
        "2.1 Data",
        "Figure 3: Inner figure.",
        "Table 1: Accuracy by class.",
        "A gain of 12.5 points (9.1 to 15.8)",
        "Mind",
        "References",
        "Goyal, Raghav",
        "Interactive; see the page on the web.",
    ):
        assert part in words, part
    assert "plot(history)" not in words


RENDERERS = [None, pytest.param("quarto", marks=needs_quarto)]
LONG = pd.DataFrame(
    {"name": [f"row{i:03d}" for i in range(70)], "it's a < b & c": [i / 70 for i in range(70)]}
).set_index("name")
TABLES = {
    "html": code(  # with an apostrophe as pandas' styled tables have it
        '#| label: tbl-long\n#| tbl-cap: "Seventy."\nt',
        outputs=[show(text_html=LONG.to_html().replace("'", "&#39;"), text_plain="x")],
    ),
    "unlabelled": code("t", outputs=[show(text_html=LONG.to_html(), text_plain="x")]),
    "markdown": code(
        '#| label: tbl-long\n#| tbl-cap: "Seventy."\nt',
        outputs=[show(text_markdown=LONG.to_markdown(), text_plain="x")],
    ),
    "prose": md(LONG.to_markdown() + "\n\n: Seventy. {#tbl-long}"),
}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("kind", TABLES)
def test_long_tables_are_whole_in_print(project, tmp_path, renderer, kind):
    root, _ = project
    cells = [md("# A page\n\n" + "Before. " * 200), TABLES[kind], md("After it.")]
    book = dict(index=write(tmp_path / "index.ipynb", cells))
    quarto = renderer and shutil.which(renderer)
    page = render(stage(tmp_path / "site", book, {}, root), tmp_path / "out", quarto=quarto)
    words = words_of(page.with_suffix(".pdf"))
    rows = [w for w in words if re.fullmatch(r"row\d+", w[5])]
    assert [w[5] for w in rows] == list(LONG.index)
    assert re.search("it['’]s a < b & c", html.unescape(" ".join(w[5] for w in words)))
    for number in {w[0] for w in rows}:
        here = [w for w in words if w[0] == number]
        lowest, *others = sorted(here, key=lambda w: -w[4])
        assert lowest[5] == str(number), "the page's number is the lowest word"
        assert max(w[4] for w in others) < lowest[2], "nothing lies over the page's number"
        tops = sorted(w[2] for w in rows if w[0] == number)
        assert all(b - a > 8 for a, b in zip(tops, tops[1:])), "no row lies over another"


@pytest.mark.parametrize("renderer", RENDERERS)
def test_columns_of_a_wide_table_do_not_meet_in_print(project, tmp_path, renderer):
    root, _ = project
    row = [
        "share on the background / its area",
        "4.34\xa0[4.09,\xa04.65]",
        *["0.57\xa0[0.54,\xa00.60]"] * 3,
    ]
    wide = pd.DataFrame([[*row, "1.70", "1.00", "8.28", "160"]] * 3).to_html()
    cells = [
        md("# A page"),
        code("#| label: tbl-w\nt", outputs=[show(text_html=wide, text_plain="x")]),
    ]
    book = dict(index=write(tmp_path / "index.ipynb", cells))
    quarto = renderer and shutil.which(renderer)
    page = render(stage(tmp_path / "site", book, {}, root), tmp_path / "out", quarto=quarto)
    words = words_of(page.with_suffix(".pdf"))
    assert sum(w[5] == "8.28" for w in words) == 3
    assert not overlapping(words) and not outside(words, 595.3, 841.9)


def test_mistakes_are_one_sentence(project, tmp_path):
    root, books = project
    page = lambda *cells: dict(index=write(tmp_path / "index.ipynb", list(cells)))
    for cells, words in [
        ([md("# A\n\n{{< var no.such >}}")], "Page 'index' uses the variable 'no.such'"),
        ([md("# A\n\n{{< var accuracy >}}")], "the variable 'accuracy'"),
        ([md("{{< embed analysis_run#fig-x >}}")], "embeds the cell 'fig-x' of 'analysis_run'"),
    ]:
        with pytest.raises(ReportError, match=re.escape(words)) as error:
            stage(tmp_path / "site", page(*cells), VARIABLES, root)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
    with pytest.raises(ReportError, match="named 'index'"):
        stage(tmp_path / "site", {"01_models": books["01_models"]}, VARIABLES, root)
    with pytest.raises(FileNotFoundError, match="does not exist; run the step"):
        stage(tmp_path / "site", {"index": tmp_path / "none.ipynb"}, VARIABLES, root)
    with pytest.raises(FileNotFoundError, match="stage its notebooks first"):
        render(tmp_path / "empty", tmp_path / "out")
    site = stage(
        tmp_path / "site2",
        page(code("#| label: [\nx", outputs=[show(text_plain="x")])),
        VARIABLES,
        root,
    )
    with pytest.raises(ReportError, match="are not YAML"):
        render(site, tmp_path / "out", quarto=None)
    site = stage(tmp_path / "site3", page(md("# A\n\nAs @fig-none shows.")), VARIABLES, root)
    with pytest.warns(
        UserWarning, match="no figure, table, section or equation is labelled @fig-none"
    ):
        render(site, tmp_path / "out3", quarto=None)


def test_a_sentence_stands_only_where_the_run_says_something_for_it():
    text = "A{{< when a >}}, b {{< var a >}}{{< else >}}, none{{< end >}}.{{< when not a >}} Not.{{< end >}}"
    assert substitute(text, dict(a=3)) == "A, b 3."
    assert substitute(text, dict(a="")) == "A, none. Not." == substitute(text, dict(a={}))
    assert substitute("{{< when a.b >}}\nx\n{{< end >}}", dict(a=dict(b=True))) == "\nx\n"
    assert substitute("as `{{{< when a >}}}` says", {}) == "as `{{{< when a >}}}` says"
    for wrong in ("{{< when a >}}x", "x{{< end >}}", "x{{< else >}}y"):
        with pytest.raises(ReportError, match="without its partner"):
            substitute(wrong, dict(a=1))
    nested = "{{< when a >}}x{{< when a >}}y{{< end >}}z{{< end >}}"
    with pytest.raises(ReportError, match="when a >}}' without its partner"):
        substitute(nested, dict(a=1))
    with pytest.raises(ReportError, match="Page 'p' uses the variable 'a.c'"):
        substitute("{{< when a.c >}}x{{< end >}}", dict(a=dict(b=1)), "p")


def test_values_of_many_lines_and_cells_without_output(tmp_path):
    assert (
        substitute("abstract: |\n  {{< var a >}}\nb: 1", dict(a="One.\n\nTwo."))
        == "abstract: |\n  One.\n  \n  Two.\nb: 1"
    )
    cells = dict(
        run=[
            code(
                '#| label: fig-a\n#| fig-cap: "A of {{< var n >}}."', outputs=[show(text_plain="x")]
            ),
            code('#| label: fig-b\n#| fig-cap: "B."'),
        ]
    )
    page = embed([md("{{< embed run.ipynb#fig-a >}}\n\n{{< embed run.ipynb#fig-b >}}")], cells)
    assert (
        len(page) == 2 and "fig-a" in page[0]["source"] and "run.ipynb#fig-a" in page[1]["source"]
    )
    assert captions(write(tmp_path / "run.ipynb", cells["run"]), dict(n=3)) == {"fig-a": "A of 3."}


def test_pictures_print_at_their_own_size():
    def png(width, height):
        buffer = io.BytesIO()
        plt.figure(figsize=(width, height)).savefig(buffer, dpi=120)
        plt.close()
        return base64.b64encode(buffer.getvalue()).decode()

    def printed(*size):
        nb = dict(cells=[dict(cell_type="code", source="", outputs=[show(image_png=png(*size))])])
        found = re.search(r"width=(\d+)%", Page(nb, "p", "typst", {}).text)
        return int(found[1]) if found else 100

    assert printed(3.1, 2) == 50 and printed(6.2, 3) == printed(12, 4) == printed(6.2, 8) == 100
    assert printed(6.2, 16.6) == 50, "within a page"


def elements(path):
    "What a page says, whoever set it: words alone, without punctuation, spaces and markup."
    page = BeautifulSoup(path.read_text(), "html.parser").find("main")
    said = lambda *names, **kw: [
        " ".join(re.findall(r"\w+", tag.get_text(" "))) for tag in page.find_all(names, **kw)
    ]
    return dict(
        headings=[h for h in said("h2", "h3") if h not in ("Abstract", "Footnotes")],
        captions=sorted(said("figcaption", "caption")),
        cells=said("td", "th"),
        pictures=len(page.find_all("img")),
        callouts=len(page.select(".callout")),
        citations=len(page.select(".csl-entry")),
        folded=len(page.select("details, .callout-collapse")),
        references=sorted(
            a["href"] for a in page.find_all("a", href=re.compile("^#(fig|tbl|sec|eq)-"))
        ),
        numbers=[
            n
            for p in page.find_all("p")
            if not p.find_parent(["figcaption", "li", "nav"]) and not p.find("math")
            for n in re.findall(r"\d+", p.get_text(" "))
        ],
    )


def test_a_page_has_all_that_is_compared(index):
    found = elements(index)
    assert all(found.values()), {k for k, v in found.items() if not v}


@needs_quarto
def test_both_renderers_say_the_same(site, index, tmp_path):
    theirs, ours = (
        elements(render(shutil.copytree(site, tmp_path / "site"), tmp_path / "out")),
        elements(index),
    )
    for kind in ours:
        assert theirs[kind] == ours[kind], kind


def fake_quarto(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_quarto_renders_where_it_is(plain, tmp_path):
    works = (
        '[ "$1" = render ] && [ "$3" = --no-execute ] && mkdir -p "$2/_site/site_libs"'
        ' && echo by Quarto > "$2/_site/index.html" && echo > "$2/_site/site_libs/a.js"'
    )
    copy, out = shutil.copytree(plain, tmp_path / "site"), tmp_path / "out"
    ours = render(copy, out, quarto=None)
    (out / "mine.txt").write_text("a reader's own")
    assert (out / "01_models.html").exists() and ours.with_suffix(".pdf").exists()
    quarto = fake_quarto(tmp_path / "quarto", works)
    assert render(copy, out, quarto=quarto).read_text() == "by Quarto\n"
    left = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert left == [".rendered.json", "index.html", "mine.txt", "site_libs/a.js"]
    assert not (copy / "_site").exists() and not (out / "assets").exists()
    render(copy, out, quarto=None)
    assert not (out / "site_libs").exists() and (out / "mine.txt").exists()


def test_what_quarto_complains_of_is_told_whole(plain, tmp_path):
    long = "no such cell " + "in a long list of cells " * 40 + "at line 7"
    fails = f'echo "[ 1/11] index.ipynb" >&2; echo "ERROR: {long}" >&2; exit 1'
    with pytest.warns(UserWarning) as said:
        render(plain, tmp_path / "out", quarto=fake_quarto(tmp_path / "fails", fails))
    assert " ".join(long.split()) in str(said[0].message) and "1/11" not in str(said[0].message)
    silent = fake_quarto(tmp_path / "silent", 'echo "it died" >&2; exit 1')
    with pytest.warns(UserWarning, match="it died"):
        render(plain, tmp_path / "out", quarto=silent)
    warns = (
        'mkdir "$2/_site"; echo > "$2/_site/index.html"; printf "\\033[33mWARN: no alt\\n  in x\\n"'
        ' >&2; echo "WARNING: second" >&2; echo "[ 2/11] x" >&2'
    )
    with pytest.warns(UserWarning) as said:
        render(plain, tmp_path / "out", quarto=fake_quarto(tmp_path / "warns", warns))
    assert [str(w.message) for w in said] == [
        "Quarto: WARN: no alt in x",
        "Quarto: WARNING: second",
    ]


@pytest.mark.parametrize(
    "script, why",
    [
        ('[ "$1" = --version ] && kill -SEGV $$', "--version ended with exit code -11"),
        ('[ "$1" = --version ] && echo 1.2.3 || exit 7', "it could not render"),
        ("echo 1.2.3", "it made no index.html"),
    ],
)
def test_where_quarto_fails_the_pages_are_made_without_it(
    plain, tmp_path, script, why, monkeypatch
):
    copy, out = shutil.copytree(plain, tmp_path / "site"), tmp_path / "out"
    fake_quarto(tmp_path / "quarto", script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.warns(UserWarning) as said:
        page = render(copy, out)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert why in str(said[0].message)
    assert str(said[0].message).endswith("; pandoc and Typst make the pages.")
    theirs = render(copy, tmp_path / "without", quarto=None)
    assert page.read_bytes() == theirs.read_bytes() and page.with_suffix(".pdf").is_file()
    assert not rendered_files(out)["quarto"]
    works = 'echo 1.2.3; mkdir "$2/_site" && echo by Quarto > "$2/_site/index.html"'
    fake_quarto(tmp_path / "quarto", f'[ "$1" = render ] || exec echo 1.2.3; {works}')
    assert render(copy, out).read_text() == "by Quarto\n"
    assert rendered_files(out)["quarto"] == "1.2.3"


def test_another_pandoc_decides_no_page(site, index, tmp_path, monkeypatch):
    "Nor a template, a style of citations or an abbreviation of the user's."
    (tmp_path / "bin").mkdir()
    newer = fake_quarto(tmp_path / "bin" / "pandoc", "echo pandoc 99.0")
    monkeypatch.setenv("PYPANDOC_PANDOC", newer)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(pypandoc, "__pandoc_path", None)
    (tmp_path / "pandoc").mkdir()
    (tmp_path / "pandoc" / "default.csl").write_text("not a style")
    copy = shutil.copytree(site, tmp_path / "site")
    assert render(copy, tmp_path / "out", quarto=None).read_bytes() == index.read_bytes()


def test_a_users_settings_of_nbdev_decide_no_page(project, site, tmp_path, monkeypatch):
    root, books = project
    from nbdev.config import get_config

    settings = tmp_path / "nbdev" / "settings.ini"
    settings.parent.mkdir()
    settings.write_text("[DEFAULT]\nskip_procs = add_fold,hide_,rm_export\nrenderer = no.Such\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    get_config.cache_clear()  # as in a process of its own
    assert get_config().get("renderer") == "no.Such"
    staged = stage(tmp_path / "site", books, VARIABLES, root)
    for path in site.glob("*.ipynb"):
        assert (staged / path.name).read_bytes() == path.read_bytes(), path.name
    get_config.cache_clear()


def test_quarto_gets_html_that_asks_the_network_for_nothing(site, tmp_path):
    "Quarto adds jQuery from elsewhere for outputs of the type text/html."
    keeps = f'cp "$2"/*.ipynb {tmp_path}; mkdir "$2/_site"; echo > "$2/_site/index.html"'
    render(site, tmp_path / "out", quarto=fake_quarto(tmp_path / "keeps", keeps))
    cells = nbformat.read(tmp_path / "index.ipynb", as_version=4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    assert not any("text/html" in o.get("data", {}) for o in outputs)
    text = "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    assert PLAYER % ("p1", "p1") in text and "unless-format=html" in text


def test_a_label_and_a_heading_of_one_name_get_two_ids(project, tmp_path):
    root, _ = project
    cells = [
        md("# A page"),
        md("## Case studies\n\nText.\n\n## Other"),
        code("#| label: case-studies\nx", outputs=[show(text_plain="x")]),
    ]
    book = dict(index=write(tmp_path / "index.ipynb", cells))
    page = render(stage(tmp_path / "site", book, {}, root), tmp_path / "out", quarto=None)
    ids = re.findall(r'\bid="([^"]+)"', page.read_text())
    assert len(ids) == len(set(ids)) and {"case-studies", "section-case-studies"} <= set(ids)


@pytest.fixture
def clone(tmp_path):
    "What Quarto and its script see of a clone, under git."
    root = tmp_path / "clone"
    for name in ("_quarto.yml", ".gitignore", "workflow/quarto.py", "nbs/index.ipynb"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


def root_script(clone, **env):
    return subprocess.run(
        [sys.executable, "workflow/quarto.py"],
        cwd=clone,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


def test_quarto_at_the_root_renders_what_was_staged_last(clone, site, tmp_path):
    done = root_script(clone)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "there is no report yet; run `ssv2 reproduce` first" in done.stderr
    shutil.copytree(site, clone / "results" / "demo" / "site")
    works = 'mkdir "$2/_site"; echo by Quarto > "$2/_site/index.html"'
    fake_quarto(tmp_path / "quarto", f'[ "$1" = render ] || exec echo 1.2.3; {works}')
    done = root_script(clone, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert (clone / "_report" / "quarto" / "index.html").read_text() == "by Quarto\n"


@needs_quarto
def test_quarto_render_at_the_root(clone, site):
    call = lambda: subprocess.run(
        ["quarto", "render"],
        cwd=clone,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QUARTO_PYTHON": sys.executable},
    )
    done = call()
    assert done.returncode == 1 and "there is no report yet" in done.stderr
    shutil.copytree(site, clone / "results" / "demo" / "site")
    done = call()
    assert done.returncode == 0, done.stderr
    assert "A gain of 12.5 points" in (clone / "_report" / "quarto" / "index.html").read_text()
    changed = subprocess.run(
        ["git", "status", "--short"], cwd=clone, capture_output=True, text=True
    ).stdout
    assert changed == "" and not list(clone.rglob("_site"))


def drawing(**kw):
    "An SVG of matplotlib's as a notebook keeps it: black axes and letters on white."
    fig, ax = plt.subplots(figsize=(4, 2.4), layout="constrained")
    ax.plot([1, 2], [0, 1], color="#D55E00", lw=6)
    ax.text(1.2, 0.8, "on a picture", color="0.1", size=20, bbox=dict(color="#9ecae1"))
    ax.set(**kw)
    fig.savefig(buffer := io.StringIO(), format="svg")
    plt.close(fig)
    return buffer.getvalue()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_drawings_follow_the_theme(browser, project, tmp_path, renderer):
    "Paper and letters turn, by the reader's system or the page's own switch; colours do not, and print stays."
    root, _ = project
    shown = show(**{"image_svg+xml": drawing(xlabel="epoch"), "text_plain": "x"})
    cells = [
        md("# A page"),
        code('#| label: fig-a\n#| fig-cap: "One."\n#| fig-alt: "A line."\nx', outputs=[shown]),
        code("y", outputs=[show(image_png=picture(3, 2))]),
    ]
    site = stage(tmp_path / "site", dict(index=write(tmp_path / "index.ipynb", cells)), {}, root)
    path = render(site, tmp_path / "out", quarto=renderer and shutil.which(renderer))

    def colours(locator):
        image = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
        counts = image.getcolors(image.width * image.height)
        return [c for n, c in sorted(counts, reverse=True) if n > 20]

    seen = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme, viewport=dict(width=1280, height=900))
        page = context.new_page()
        page.goto(path.as_uri())
        images = page.locator("main img")
        seen[scheme] = colours(images.nth(0)), colours(images.nth(1))
        if renderer is None:
            page.click("#theme")
            seen["not " + scheme] = colours(images.nth(0)), colours(images.nth(1))
        assert images.nth(0).bounding_box()["width"] == pytest.approx(4 * 96 * 1.45, abs=2)
        context.close()
    (light, still), (dark, still_too) = seen["light"], seen["dark"]
    assert light[0] == (255, 255, 255) and (0, 0, 0) in light
    assert max(dark[0]) < 40 and (0, 0, 0) not in dark and any(min(c) > 200 for c in dark)
    for colour in ((213, 94, 0), (158, 202, 225), (26, 26, 26)):
        assert colour in light and colour in dark
    assert still[0] == still_too[0] == (255, 255, 255), "a picture stays as it is"
    if renderer is None:
        assert seen["not light"] == seen["dark"] and seen["not dark"] == seen["light"]
    if shutil.which("pdftoppm"):
        command = ["pdftoppm", "-r", "60", "-png", str(path.with_suffix(".pdf")), tmp_path / "p"]
        subprocess.run(command, check=True)
        printed = Image.open(next(tmp_path.glob("p*.png"))).convert("RGB")
        assert max(printed.getcolors(10**6))[1] == (255, 255, 255)
        assert (20, 23, 28) not in [c for _, c in printed.getcolors(10**6)]


def test_words_that_meet_or_leave_the_page_are_found(project, tmp_path):
    "The check of a report's print, on pages that have what it looks for."
    import typst

    def words(body):
        (tmp_path / "a.typ").write_text(f"#set page(width: 300pt, height: 300pt)\n{body}")
        typst.compile(str(tmp_path / "a.typ"), output=str(tmp_path / "a.pdf"))
        return words_of(tmp_path / "a.pdf")

    fine = words("Some words, and $x^2$ more. " * 12 + "#table(columns: 2)[a][b][c][d]")
    assert not overlapping(fine) and not outside(fine, 300, 300)
    assert overlapping(words("#place(dx: 10pt)[Under] #place(dx: 14pt, dy: 3pt)[Over]"))
    assert overlapping(words("#table(columns: (20pt, 20pt))[averylongword][next]"))
    assert outside(words("#place(dx: 240pt)[leavingthepage]"), 300, 300)
    words("Above. #v(60%) Below.")
    ((down, gap),) = filled(tmp_path / "a.pdf", tmp_path)
    assert 0.45 < gap < 0.55 and 0.6 < down < 0.7


def test_a_section_says_once_where_its_figures_are_from():
    made = {
        name: [code(f"#| label: {label}", outputs=[show(text_plain="x")]) for label in labels]
        for name, labels in dict(run=["fig-a", "tbl-b-c", "case-d"], other=["fig-e"]).items()
    }
    cells = [
        md("{{< embed run#fig-a >}}"),
        md("# One\n\n{{< embed run#tbl-b-c >}}"),
        md("Words.\n\n{{< embed other#fig-e >}}\n\nMore.\n\n{{< embed run#case-d >}}"),
        md("## Two"),
        md("### Three"),
    ]
    said = [c["source"] for c in embed(cells, made)]
    lines = [s.splitlines()[1] for s in said if "source-link" in s]
    assert lines == [
        "From run: [figure a](run.ipynb#fig-a).",
        "From run: [table b c](run.ipynb#tbl-b-c), [case d](run.ipynb#case-d); "
        "other: [figure e](other.ipynb#fig-e).",
    ]
    at = [next(i for i, s in enumerate(said) if line in s) for line in lines]
    assert said[at[0] + 1].startswith("# One") and said[at[1] + 1] == "## Two"


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_pages_work_in_a_browser_without_a_network(browser, index, width, scheme):
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    page, complaints = context.new_page(), []
    page.on(
        "console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("requestfailed", lambda r: complaints.append(r.url))
    for path in sorted(index.parent.glob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    page.goto(index.as_uri())
    for name in ("p1", "p2"):
        assert page.get_attribute(f"#{name}", "data-ready") == "yes"
        page.focus(f"#{name} input")
        page.keyboard.press("ArrowRight")
        assert page.inner_text(f"#{name} output") == "1"
    page.focus("#tabset-1-1-tab")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#tabset-1-2") and not page.is_visible("#tabset-1-1")
    dark = lambda: (
        page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    )
    assert dark() == (scheme == "dark")
    for _ in range(20):  # Chromium drops what a page stores a moment before it is left
        if dark() == (scheme == "dark"):
            page.click("#theme")
        assert dark() == (scheme != "dark")
        if width == 390:
            page.click(".pages summary")
        page.click(".pages >> text=Models")
        page.wait_for_url("**/01_models.html")
        if dark() == (scheme != "dark"):
            break
        page.goto(index.as_uri())
    assert dark() == (scheme != "dark") and page.title() == "Models – 2D & 3D networks"
    assert complaints == []
    context.close()


HOSTILE = [
    "[press](javascript:document.title='canary')",
    "[press](JaVaScRiPt:document.title='canary')",
    "[press](java&#115;cript:document.title='canary')",
    "[press](<java\tscript:document.title='canary'>)",
    "[press](<data:text/html,document.title='canary'>)",
    "[press](vbscript:canary)",
    "[press][x]\n\n[x]: javascript:document.title='canary'",
]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_no_link_runs_code(browser, project, tmp_path, renderer):
    root, _ = project
    cells = [md("# A page"), *map(md, HOSTILE), md("{{< var name >}}")]
    cells.append(code("x", outputs=[show(text_markdown="[press](javascript:canary)")]))
    book = dict(index=write(tmp_path / "index.ipynb", cells))
    site = stage(tmp_path / "site", book, dict(name=HOSTILE[0]), root)
    path = render(site, tmp_path / "out", quarto=renderer and shutil.which(renderer))
    page = browser.new_page()
    page.goto(path.as_uri())
    links = page.eval_on_selector_all("main a[href]", "as => as.map(a => a.protocol)")
    said = page.inner_text("main")
    page.close()
    assert set(links) <= {"file:", "http:", "https:", "mailto:"}
    assert said.count("press") == len(HOSTILE) + 2
    assert b"canary" not in path.with_suffix(".pdf").read_bytes()


def hostile_page(folder):
    "A page that shows each text in every way in which the report shows names."
    table = pd.DataFrame({text: TEXTS for text in TEXTS[:2]})
    cells = [
        raw("---\ntitle: |-\n  {{< var title >}}\nabstract: |\n  {{< var all >}}\n---"),
        md("## Texts\n\nThe title is {{< var title >}}."),
        code("x", outputs=[show(text_html=plain_table(table).to_html(), text_plain="x")]),
        code(
            "#| output: asis\nx",
            outputs=[
                show(
                    text_markdown=texts_of(table)
                    .map(literal)
                    .rename(columns=literal)
                    .to_markdown(index=False, disable_numparse=True)
                )
            ],
        ),
    ]
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    for k, text in enumerate(TEXTS):
        play = player({text: frames}, title=text, note=text).html
        cells += [
            md(f"Of {{{{< var texts.t{k} >}}}} it is said."),
            code(
                f'#| label: fig-t{k}\n#| fig-cap: "Caption {{{{< var texts.t{k} >}}}}."\n#| fig-alt: "Alt {{{{< var texts.t{k} >}}}}."\nx',
                outputs=[show(image_png=picture(2, 1))],
            ),
            code(
                "#| output: asis\nx",
                outputs=[
                    show(text_markdown=f"#### Case {k}: {literal(text)} {{.unnumbered}}"),
                    show(text_html=play, image_png=picture(2, 1)),
                ],
            ),
        ]
    return write(folder / "index.ipynb", cells)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_free_text_is_shown_as_written_and_runs_nowhere(browser, project, tmp_path, renderer):
    root, _ = project
    known = dict(
        title=literal(TEXTS[0]),
        all=" ".join(map(literal, TEXTS)),
        texts={f"t{k}": literal(text) for k, text in enumerate(TEXTS)},
    )
    site = stage(tmp_path / "site", dict(index=hostile_page(tmp_path)), known, root)
    path = render(site, tmp_path / "out", quarto=renderer and shutil.which(renderer))
    page, asked = browser.new_page(), []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(path.as_uri())
    said, ran = as_read(page.inner_text("body")), page.evaluate("window.canary")
    alts = page.eval_on_selector_all("img", "is => is.map(i => i.alt || '')")
    links = page.eval_on_selector_all("main a[href]", "as => as.map(a => a.protocol)")
    page.close()
    assert not ran
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert set(links) <= {"file:"}
    paper = text_of(path.with_suffix(".pdf"), "-raw")
    printed = as_read(paper)
    for text in TEXTS:
        shown = as_read(" ".join(text.split()))
        assert said.count(shown) >= 6, text  # abstract, sentence, caption, case, table, player
        assert any(as_read(alt) == f"Alt{shown}." for alt in alts), text
        if text.isascii():  # the fonts at hand may have no other
            assert printed.count(shown) >= 3, text
    assert "root:" not in path.read_text(encoding="utf-8") + paper


def test_free_text_is_set_as_written_by_latex(tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not there (Debian: texlive-latex-recommended)")
    tables = []
    for k, text in enumerate(TEXTS):
        save_table(pd.DataFrame({text: [text], "x": "y"}), tmp_path, f"t{k}")
        caption_latex(tmp_path / f"t{k}.tex", literal(text))
        tables.append(rf"\input{{t{k}.tex}}\clearpage")
    packages = r"\usepackage{booktabs,array,graphicx}\usepackage[T1]{fontenc}"
    page = rf"\documentclass{{article}}{packages}\begin{{document}}" + "\n".join(tables)
    (tmp_path / "main.tex").write_text(page + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-1500:]
    own = "['`-]|f[fil]+|[\ufb00-\ufb04]"  # what it joins to signs of its own
    bare = lambda text: re.sub(own, "", as_read(text))
    paper = bare(text_of(tmp_path / "main.pdf", "-raw"))
    assert "root:" not in paper and not (tmp_path / "canary").exists()
    for text in TEXTS:
        if text.isascii() and not text.startswith("long"):  # which leaves the page
            assert paper.count(bare(text)) >= 3, (text, paper)


def test_axe_finds_nothing(browser, index):
    axe = pytest.importorskip(
        "axe_playwright_python",
        reason="axe-playwright-python is not installed, so axe does not check the pages",
    )
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    for path in sorted(index.parent.glob("*.html")):
        page.goto(path.as_uri())
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
        violations = page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))"
        )
        assert violations == [], path.name
    context.close()


def test_columns_of_words_begin_at_the_left_and_others_do_not():
    table = pd.DataFrame(dict(kind=["a ball", "a cup"], right=[0.5, float("nan")]))
    left = re.findall(r'<t[dh] style="text-align: left">([^<]*)<', _words_left(table.to_html()))
    assert left == ["kind", "a ball", "a cup"]
    spanned = pd.concat({"above": table}, axis=1).to_html()
    assert "text-align: left" not in _words_left(spanned)


def test_what_the_report_embeds_is_labelled_and_shown_once():
    nbs = ROOT / "nbs"
    shown = []
    for page in ("index", "report/appendix"):
        text = (nbs / f"{page}.ipynb").read_text(encoding="utf-8")
        for source, label in re.findall(r"embed (\w+)\.ipynb#([\w-]+)", text):
            made = (nbs / "analysis" / f"{source}.ipynb").read_text(encoding="utf-8")
            assert f"#| label: {label}\\n" in made, (page, label)
            shown.append(label)
    assert len(shown) == len(set(shown)) > 25
