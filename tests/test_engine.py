"A notebook that runs in its job's own process shows what it shows in a kernel's."

import json
import re
from pathlib import Path
from textwrap import dedent

import nbformat
import papermill
import pytest
from books import run_as_job
from nbformat.v4 import new_code_cell, new_notebook, writes

ROOT = Path(__file__).parents[1]
GIVEN = dict(kernel_name="python3", language="python", progress_bar=False)
CELLS = {
    "streams": """
        import sys, warnings
        print("a")
        print("an error", file=sys.stderr)
        warnings.warn("careful")
        print("b");
    """,
    "an update of what is shown": """
        from IPython.display import HTML, clear_output, display
        line = display("starting", display_id=True)
        line.update(HTML("<b>half</b>"))
        print("between");
    """,
    "an update from another cell": "line.update('done')\n'a value'",
    "what is cleared": "for k in range(3):\n    clear_output(wait=True)\n    print(k)",
    "a figure": """
        import matplotlib.pyplot as plt
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, 1])
        print("drawn");
    """,
    "a figure that is the value": "fig",
    "a table": "import pandas as pd\npd.DataFrame(dict(a=[1, 2]))",
    "a widget": """
        import ipywidgets as widgets
        from ipywidgets import interact
        display(widgets.IntSlider(3))
        interact(lambda k: print("k is", k), k=(0, 5));
    """,
    "an output widget": """
        box = widgets.Output()
        with box:
            print("in the box")
            display("and shown")
        box
    """,
    "what a widget holds": "box.outputs",
    "a test of ipython": "!echo from a shell\n_, In[-1], __name__, x",
    "nothing": "",
    "an error": "def fails():\n    raise KeyError('no such key')\n\n\nfails()",
    "what is not reached": "1",
}


def cells():
    sources = ["x = 0", *(dedent(source).strip() for source in CELLS.values())]
    made = [new_code_cell(source) for source in sources]
    made[0].metadata["tags"] = ["parameters"]
    return made


def shown(output):
    "An output but for ids and places."
    text = re.sub(r"ipykernel_\d+/\d+", "ipykernel", json.dumps(output, sort_keys=True))
    return re.sub(r"0x[0-9a-f]+|[0-9a-f]{32}|\b(?:[mp]|image)[0-9a-f]{10}\b", "ID", text)


def outputs_of(cell):
    "What a cell shows; streams that follow one another arrive in no certain order from a kernel."
    found = []
    for output in cell.get("outputs", []):
        if output["output_type"] != "stream":
            found.append(output)
            continue
        if not found or not isinstance(found[-1], list):
            found.append([])
        found[-1].append((output["name"], output["text"]))
    by_name = lambda texts: {n: "".join(t for m, t in texts if m == n) for n, _ in texts}
    return [shown(by_name(o) if isinstance(o, list) else o) for o in found]


def widgets_of(book):
    found = book.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    return sorted(map(shown, found.get("state", {}).values()))


def by_kernel(path, out):
    """Execute the notebook by a kernel. One time in ten kernel and nbclient wait for each other for ever over what an
    output widget captures, and it is done again."""
    for _ in range(5):
        with pytest.raises(papermill.PapermillExecutionError) as e:
            given = GIVEN | dict(cwd=path.parent, execution_timeout=20)
            papermill.execute_notebook(path, out, dict(x=3), **given)
        if e.value.ename == "KeyError":
            return
    raise e.value


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    "The notebook as executed in a job, and by a kernel."
    folder = tmp_path_factory.mktemp("engine")
    (folder / "nbs").mkdir()
    (folder / "nbs" / "book.ipynb").write_text(writes(new_notebook(cells=cells())))
    with pytest.raises(ValueError, match="^book: KeyError: 'no such key' "):
        run_as_job(folder, "book", folder / "ours.ipynb", x=3)
    by_kernel(folder / "nbs" / "book.ipynb", folder / "theirs.ipynb")
    read = lambda name: nbformat.read(folder / name, as_version=4)
    return read("ours.failed.ipynb"), read("theirs.ipynb")


@pytest.mark.parametrize("what", CELLS)
def test_a_cell_shows_what_it_shows_in_a_kernel(both, what):
    source = cells()[1 + list(CELLS).index(what)].source
    ours, theirs = (next(c for c in book.cells if c.source == source) for book in both)
    assert outputs_of(ours) == outputs_of(theirs)
    assert ours.execution_count == theirs.execution_count


def test_widgets_keep_their_state_and_the_notebook_its_language(both):
    ours, theirs = both
    assert widgets_of(ours) == widgets_of(theirs) != []
    assert ours.metadata.language_info == theirs.metadata.language_info


@pytest.mark.slow
@pytest.mark.parametrize("name", ["01_models2d", "04_gradcam", "gradcam/gradcam_run"])
def test_a_chapter_shows_what_it_shows_in_a_kernel(name, tmp_path):
    "But for seconds."
    run_as_job(ROOT, name, tmp_path / "ours.ipynb")
    path = ROOT / "nbs" / f"{name}.ipynb"
    papermill.execute_notebook(path, tmp_path / "theirs.ipynb", cwd=ROOT / "nbs", **GIVEN)
    books = [nbformat.read(tmp_path / f"{n}.ipynb", as_version=4) for n in ("ours", "theirs")]
    for ours, theirs in zip(*(book.cells for book in books), strict=True):
        assert outputs_of(ours) == outputs_of(theirs), ours.source
