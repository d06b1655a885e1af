"""Every notebook runs on its defaults, and the modules are what the notebooks export."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from books import run_book

from ssv2_report.jobs.steps import CHAPTERS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb"))


NUMBER = r"(?:(?<!\w)-)?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"
UNITS = (
    r"%?\s?(?:s|ms|min|GB|clips/s|MB/s|times as fast|waiting)\b"  # of what this machine measures
)


def said(cell):
    "What a code cell shows in words: the words, and the numbers among them."
    found = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        found.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    text = re.sub(r" at 0x[0-9a-f]+", "", "\n".join("".join(t) for t in found))
    text = re.sub(rf"{NUMBER}{UNITS}|/\S*/tmp\w+", "MEASURED", text)
    timed = re.search(r"ms a clip|clips_per_s|seconds", text)  # a column of a table
    numbers = [] if timed else re.findall(NUMBER, text)
    numbers = [
        float(x.replace(",", "")) for x in numbers if not re.fullmatch(r"\d{4,}", x)
    ]  # an id
    return re.sub(NUMBER, "#", text).split(), numbers


def hold_against(held, ran):
    "AssertionError where cells no longer give what they hold: as much as processors agree on."
    for cell, now in zip(held, ran, strict=True):
        (words, numbers), (new_words, new_numbers) = said(cell), said(now)
        assert words == new_words, cell.source
        assert new_numbers == pytest.approx(numbers, rel=0.25, abs=0.1), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_on_its_defaults(path, tmp_path):
    """And gives, if the report shows it as it lies, what it holds. The long ones are chapters, sources and
    runs' notebooks: no other test runs these as their reader finds them."""
    shown = str(path.relative_to(ROOT / "nbs").with_suffix("")) in CHAPTERS.values()
    run_book(path, tmp_path, out := tmp_path / "ran.ipynb" if shown else None)
    if shown:
        hold_against(*(nbformat.read(p, 4).cells for p in (path, out)))


@pytest.mark.parametrize(
    "now, same",
    [
        ("right on 0.86 of 80 clips, 31.2 clips/s", True),
        ("right on 0.36 of 80 clips, 9.5 clips/s", False),
        ("right on -0.85 of 80 clips, 9.5 clips/s", False),
        ("wrong on 0.85 of 80 clips, 9.5 clips/s", False),
        ("right on 0.85 of 80 clips", False),
    ],
)
def test_what_a_chapter_no_longer_gives_is_found(now, same):
    held, ran = (
        [nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text=text)])]
        for text in ("right on 0.85 of 80 clips, 9.5 clips/s", now)
    )
    if same:
        return hold_against(held, ran)
    with pytest.raises(AssertionError):
        hold_against(held, ran)


@pytest.mark.parametrize(
    "source, said", [("1 / 0", "ZeroDivisionError"), ("import os\nos._exit(3)", "exit code 3")]
)
def test_a_notebook_that_fails_is_found(tmp_path, source, said):
    path = tmp_path / "a.ipynb"
    cells = [nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(AssertionError, match=said):
        run_book(path, tmp_path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_clean_and_light(path):
    text = path.read_text(encoding="utf-8")
    nb = nbformat.reads(text, 4)
    tagged = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) <= 1 and not nb.metadata.get("papermill") and len(text) < 900_000
    assert all(set(c.metadata) <= {"tags"} for c in nb.cells), "run nbdev_clean"


def test_modules_are_what_the_notebooks_export(tmp_path):
    from nbdev.export import nb_export

    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    for path in sorted((tmp_path / "nbs").rglob("*.ipynb")):
        nb_export(path, lib_path=tmp_path / "ssv2_report")
    made, here = tmp_path / "ssv2_report", ROOT / "ssv2_report"
    modules = {str(p.relative_to(made)) for p in made.rglob("*.py") if p.name != "_modidx.py"}
    exported = {str(p.relative_to(here)) for p in here.rglob("*.py") if p.name != "_modidx.py"}
    assert modules | {m for m in exported if m.endswith("__init__.py")} == exported
    for module in modules:
        assert (made / module).read_text() == (here / module).read_text(), (
            f"{module} is not what its notebook exports; run nbdev_export"
        )
