"""Code decides what it reaches, words decide what shows them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from test_digests import finished, whole  # noqa: F401

from ssv2_report.data import code
from ssv2_report.data.code import (
    DECIDES_NOTHING,
    KNOWN_BY_VALUE,
    cells_digest,
    reachable_definitions,
)
from ssv2_report.jobs import records, steps
from ssv2_report.jobs.records import stale_jobs
from ssv2_report.jobs.steps import CHAPTERS, STEPS, code_of

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {name: step.notebook for name, step in STEPS.items() if step.notebook}
BOOKS = [*NOTEBOOKS.values(), *CHAPTERS.values()]
OF_STEPS = [
    *NOTEBOOKS.items(),
    *((step, None) for step, row in STEPS.items() if row.calls),
]


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    "A copy of the project's code, and its files with what tells whether they were changed."
    root = tmp_path_factory.mktemp("source")
    for part in ("nbs", "ssv2_report", "experiments"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_quarto.yml", root)
    return root, {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def source(copied, monkeypatch):
    "A copy of the project's code, of which digests are taken; what a test changes is put back."
    root, times = copied
    for path in [path for path, time in times.items() if path.stat().st_mtime_ns != time]:
        shutil.copy2(ROOT / path.relative_to(root), path)
    for module in (code, records):
        monkeypatch.setattr(module, "PACKAGE", root / "ssv2_report")
    monkeypatch.setattr(steps, "project_root", lambda: root)
    monkeypatch.setattr(records, "project_root", lambda: root)
    return root


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def edit_cell(path, change):
    "Change the first code cell that defines or computes something."
    book = json.loads(path.read_text(encoding="utf-8"))
    cells = [c for c in book["cells"] if c["cell_type"] == "code"]
    change(next(c for c in cells if re.search(r"(?m)^(def|class|\w+ = )", "".join(c["source"]))))
    path.write_text(json.dumps(book), encoding="utf-8")


# --- words


MODULES = ("data/media.py", "data/clips.py", "gradcam/maps.py", "train.py", "analysis/stats.py")
WORDS = {
    "a module's docstring": lambda s: re.sub(r'\A"""', '"""Reworded. ', s),
    "a docstring": lambda s: re.sub(r'(?m)^(def .*:\n    "{1,3})', r"\1Reworded. ", s),
    "a comment": lambda s: re.sub(r"(?m)^(?=def )", "# another comment\n", s),
    "a comment on an argument": lambda s: re.sub(r"(?m)^(    \w+: .*,)  #.*$", r"\1  # else", s),
    "the mark of a cell": lambda s: re.sub(r"(?m)^# %% .*$", "# %% ../elsewhere.ipynb #id", s),
    "empty lines": lambda s: s.replace("\ndef ", "\n\n\n\n\ndef "),
    "layout": lambda s: s.replace("(\n    ", "(  \n        "),
}


def test_words_of_modules_decide_nothing(whole, source):  # noqa: F811
    study, results = whole
    assert stale_jobs(study, results) == {}
    for what, reword in WORDS.items():
        changed = 0
        for module in MODULES:
            path = source / "ssv2_report" / module
            text = path.read_text(encoding="utf-8")
            path.write_text(reword(text), encoding="utf-8")
            changed += reword(text) != text
        assert changed, what
    assert stale_jobs(study, results) == {}


def prose(cell):
    cell["source"] = ["# A comment of its own line\n", *cell["source"]]


def mark(cell):
    cell["id"] = "another-id"


def fold(cell):
    cell["source"] = ["#| code-fold: true\n", *cell["source"]]


@pytest.mark.parametrize("change", [prose, mark, fold])
def test_words_of_notebooks_are_shown_and_decide_nothing_else(whole, source, change):  # noqa: F811
    study, results = whole
    for book in BOOKS:
        edit_cell(source / "nbs" / f"{book}.ipynb", change)
    seen = set() if change is mark else {"render"}
    assert {job.name for job in stale_jobs(study, results)} == seen


def test_a_sentence_is_rendered_and_nothing_is_executed(whole, source):  # noqa: F811
    study, results = whole
    for book in ["index", *BOOKS]:
        path = source / "nbs" / f"{book}.ipynb"
        before = path.read_text(encoding="utf-8")
        content = json.loads(before)
        cell = next(c for c in content["cells"] if c["cell_type"] == "markdown")
        cell["source"] = [*cell["source"], "\n\nOne more sentence."]
        path.write_text(json.dumps(content), encoding="utf-8")
        shown = book not in (NOTEBOOKS["validation"], NOTEBOOKS["adopt"])  # this study has none
        assert [job.name for job in stale_jobs(study, results)] == ["render"] * shown, book
        path.write_text(before, encoding="utf-8")


# --- code


EDITS = [
    ("data/media.py", "lambda f: _upright(", "lambda f: 255 - _upright(", "cache"),
    ("data/cache.py", "quality=90", "quality=91", "cache"),
    ("models/net3d.py", "def inflate(", "def inflate(\n    *_,\n", "train"),
    ("data/clips.py", "0.485", "0.486", "train"),
    ("gradcam/maps.py", "G.mean(d, keepdim=True)", "G.sum(d, keepdim=True)", "gradcam"),
    (
        "gradcam/reliance.py",
        "def paint_over(",
        "def paint_over(*_):\n    pass\n\n\ndef _x(",
        "reliance",
    ),
    (
        "analysis/stats.py",
        "def bootstrap(",
        "def bootstrap(*_):\n    pass\n\n\ndef _x(",
        "analysis",
    ),
    ("report/pages.py", "def write_html(", "def write_html(*_):\n    pass\n\n\ndef _x(", "render"),
]


@pytest.mark.parametrize("module, old, new, step", EDITS, ids=lambda x: x if "/" in x else "")
def test_code_decides_every_step_that_reaches_it(whole, source, module, old, new, step):  # noqa: F811
    study, results = whole
    edit(source / "ssv2_report" / module, old, new)
    steps = {job.step for job in stale_jobs(study, results)}
    order = ("audit", "cache", "train", "gradcam", "analysis", "render")
    down = {*order[order.index(step) :]} if step in order else {step, "analysis", "render"}
    assert steps >= down
    before = {*order} - down
    assert not steps & before, "what comes before is as it was"


def test_what_reads_studies_or_shows_progress_trains_nothing(whole, source):  # noqa: F811
    study, results = whole
    schema = source / "ssv2_report/study/experiments.py"
    edit(schema, "def _wrong_hypotheses(", "def _wrong_hypotheses(*_):\n    return []\n\n\ndef _x(")
    edit(schema, "def load_study(", "def load_study(*_):\n    pass\n\n\ndef _y(")
    pictures = source / "ssv2_report/gradcam/pictures.py"
    edit(pictures, "def overlay(", "def overlay(*_):\n    pass\n\n\ndef _x(")
    assert not {job.step for job in stale_jobs(study, results)} & {"audit", "cache", "train"}


def test_names_of_measures_are_said_by_the_analysis_and_train_nothing(whole, source):  # noqa: F811
    study, results = whole
    schema = source / "ssv2_report/study/experiments.py"
    edit(schema, "share on the hand / its area", "hand's share / its area")
    steps = {job.step for job in stale_jobs(study, results)}
    assert "analysis" in steps and not steps & {"audit", "cache", "train", "gradcam", "reliance"}


def test_what_decodes_decides_the_analysis_which_shows_clips_of_its_own(whole, source):  # noqa: F811
    study, results = whole
    media = source / "ssv2_report/data/media.py"
    edit(media, "lambda f: _upright(", "lambda f: 255 - _upright(")
    found = {job.step: why for job, why in stale_jobs(study, results).items()}
    assert "data.media" in found["analysis"] and "data.media" in found["cache"]
    assert found["train"] == found["gradcam"] == "", "if the frames changed"


# --- what is reached


def library(root, **modules):
    for name, text in modules.items():
        path = root / f"{name.replace('_', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_names_are_followed_through_all_that_uses_them(tmp_path, monkeypatch):
    root = tmp_path / "ssv2_report"
    monkeypatch.setattr(code, "PACKAGE", root)
    library(
        root,
        a_first="from .second import two as deux\nfrom ..b import third\n\ndef one(x):\n"
        "    from ssv2_report.b.fourth import four\n    return deux(x) + third.three(x)\n",
        a_second="K = 1\nT = {}\nT['k'] = K\nunused = 7\n\n@wrap\ndef two(x, unused=0):\n"
        "    return T[x] + unused\n\ndef wrap(f):\n    return f\n",
        b_third="def three(x):\n    return run('ssv2_report.b.fourth:worker', x)\n\n"
        "def run(name, x): ...\n\ndef other(): ...\n",
        b_fourth="def worker(x):\n    four = 1\n    return [four for four in x]\n\ndef four(): ...\n",
    )
    found = {name for name in reachable_definitions("a.first:one") if not name.endswith(":")}
    assert found == {
        *(
            "a.first:one",
            "a.second:two",
            "a.second:wrap",
            "a.second:T",
            "a.second:K",
            "b.third:three",
        ),
        *("b.third:run", "b.fourth:worker", "b.fourth:four"),
    }, "a local variable is no definition of the same name"
    assert (
        reachable_definitions("a.first:one")["a.second:"]
        != reachable_definitions("b.third:other")["b.third:"]
    )
    assert "b.third:run" not in reachable_definitions("a.first:one", without=["b.third"])


IMPORTS = {
    "plain": "import ssv2_report.b.third\n\ndef one(x):\n    return ssv2_report.b.third.three(x)\n",
    "star": "from .b.third import *\n\ndef one(x):\n    return three(x)\n",
    "renamed": "import ssv2_report.b.third as t\n\ndef one(x):\n    return t.three(x)\n",
    "handed on": "from .b import third\n\ndef one(x):\n    return getattr(third, x)\n",
    "tried": "try:\n    from .b.third import three\nexcept ImportError:\n    three = None\n\n"
    "def one(x):\n    return three(x)\n",
}


@pytest.mark.parametrize("way", IMPORTS)
def test_however_a_module_is_imported(tmp_path, monkeypatch, way):
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "ssv2_report")
    library(tmp_path / "ssv2_report", a=IMPORTS[way], b_third="def three(x):\n    return x\n")
    assert "b.third:three" in reachable_definitions("a:one")


def test_a_notebooks_cells_count_with_what_they_show_and_their_tags():
    cell = lambda source, tags=(): dict(
        cell_type="code", source=[source], metadata={"tags": [*tags]}
    )
    book = lambda *cells: dict(cells=[dict(cell_type="markdown", source=["The story"]), *cells])
    same = cells_digest(book(cell("x = 1\nx")))
    assert same == cells_digest(book(cell("# why\nx = 1  # one\nx"), cell("#| hide")))
    assert same == cells_digest(book(cell("study = 2", ["injected-parameters"]), cell("x = 1\nx")))
    others = [book(cell("x = 1"), cell("x")), book(cell("x = 1\nx", ["parameters"]))]
    others += [book(cell("x = 1\n'x'")), book(cell("%config x = 1\nx = 1\nx"))]
    digests_ = [cells_digest(b) for b in others]
    assert len({same, *digests_}) == 5


@pytest.mark.parametrize("step, book", OF_STEPS)
def test_every_step_reaches_something_and_stops_are_there(step, book):
    path = book and ROOT / "nbs" / f"{book}.ipynb"
    assert len(code_of(step, path)) > 1
    for name in (
        *DECIDES_NOTHING,
        *KNOWN_BY_VALUE,
        *(e for row in STEPS.values() for e in row.calls),
    ):
        module, _, definition = name.partition(":")
        text = (ROOT / "ssv2_report" / f"{module.replace('.', '/')}.py").read_text()
        assert not definition or re.search(rf"(?m)^(def|class) {definition}\b", text), name


def test_what_trains_is_reached():
    found = reachable_definitions(
        notebook=json.loads((ROOT / "nbs/train/train_run.ipynb").read_text())
    )
    wanted = ("train:train_epoch", "models.r2plus1d:factorise", "data.clips:ClipDataset")
    assert {*wanted, "models.net3d:TimeConv3d", "study.scores:predict"} <= found.keys()
