"""What lies about on a user's machine changes no result: variables, profiles, startup files, settings, programs that do not run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from books import run_as_job
from nbformat.v4 import new_code_cell, new_notebook, writes
from pdfs import words_of
from snakemake.settings.types import ConfigSettings
from test_train import experiment, history, run
from worlds import clone, official, write_study

from ssv2_report import cli
from ssv2_report.jobs import records
from ssv2_report.jobs.durations import needs_of
from ssv2_report.jobs.steps import Job
from ssv2_report.jobs.workflow import Tracker, pending_jobs, run_workflow, workflow_command
from ssv2_report.machine import environment
from ssv2_report.machine.environment import (
    OF_TRAINING,
    find_quarto,
    job_environment,
    without_variables,
)
from ssv2_report.report.site import lost_figures
from ssv2_report.study.experiments import load_study
from ssv2_report.study.scores import processes

ROOT = Path(__file__).parents[1]
STYLE = "text.usetex: True\nfigure.facecolor: black\nsavefig.dpi: 20\nfigure.dpi: 20\n"
CONFIG = """
c = get_config()
c.InteractiveShellApp.exec_lines = ["print('stray')"]
c.InteractiveShell.ast_node_interactivity = "all"
c.InlineBackend.figure_formats = {"jpeg"}
"""
TRAINING = dict(
    ACCELERATE_GRADIENT_ACCUMULATION_STEPS="3",
    ACCELERATE_USE_PARALLELISM_CONFIG="true",
    ACCELERATE_USE_FSDP="true",
    ACCELERATE_TORCH_DEVICE="meta",
    ACCELERATE_DYNAMO_BACKEND="eager",
    FSDP_VERSION="2",
    PARALLELISM_CONFIG_TP_SIZE="2",
)


def hostile(folder):
    "Variables and a home as some users have them."
    home, folder = folder / "home", folder / "about"
    ipython = home / ".ipython" / "profile_default"
    kernel = dict(argv=["false"], display_name="python3", language="python")
    files = {
        ipython / "startup" / "00.py": "print('stray')\nimport matplotlib\nmatplotlib.use('Agg')\n",
        ipython / "ipython_kernel_config.py": CONFIG,
        ipython / "ipython_config.py": CONFIG,
        home / ".config" / "matplotlib" / "matplotlibrc": STYLE,
        home / ".config" / "snakemake" / "mine" / "config.yaml": "dry-run: true\n",
        home / ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(kernel),
        folder / "kernels" / "python3" / "kernel.json": json.dumps(kernel),
        folder / "matplotlibrc": STYLE,
        folder / "startup.py": "print('stray')\n",
    }
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(home / ".ipython", folder / "ipython")
    program(folder / "bin" / "quarto", "exit 3")
    program(folder / "bin" / "pandoc", "echo pandoc 99.0")
    return TRAINING | dict(
        HOME=str(home),
        MPLBACKEND="Agg",
        MATPLOTLIBRC=str(folder / "matplotlibrc"),
        MPLCONFIGDIR=str(folder),
        IPYTHONDIR=str(folder / "ipython"),
        JUPYTER_PATH=str(folder),
        JUPYTER_DATA_DIR=str(folder),
        PYTHONSTARTUP=str(folder / "startup.py"),
        PYTHONWARNINGS="always",
        PYTHONOPTIMIZE="2",
        PANDAS_FUTURE_INFER_STRING="0",
        SNAKEMAKE_PROFILE="mine",
        ONEDNN_VERBOSE="1",
        DNNL_VERBOSE="1",
        COLUMNS="20",
        FORCE_COLOR="1",
        PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )


def program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    for name, value in hostile(tmp_path).items():
        monkeypatch.setenv(name, value)


# -- notebooks

SHOWS = """
#| label: fig-line
import os, warnings
warnings.warn("DeprecationWarning", DeprecationWarning)
import matplotlib.pyplot as plt
import pandas as pd
import torch
torch.nn.Conv2d(3, 8, 3)(torch.ones(1, 3, 8, 8))
print(pd.Series(["a"]).dtype, __debug__, plt.rcParams["figure.facecolor"])
plt.plot([0, 1])
plt.title("a title");
"""


@pytest.fixture
def book(tmp_path):
    "Run a notebook of these cells in a project of its own; its cells."
    project = tmp_path / "project" / "nbs"
    project.mkdir(parents=True)

    def book(*sources, run=run_as_job):
        cells = [new_code_cell(source.strip()) for source in sources]
        (project / "book.ipynb").write_text(writes(new_notebook(cells=cells)))
        run(project.parent, "book", tmp_path / "out.ipynb")
        return nbformat.read(tmp_path / "out.ipynb", as_version=4).cells

    return book


def shown(cells):
    "All that cells show but for the places of files."
    outputs = [dict(o, metadata={}, execution_count=None) for c in cells for o in c.outputs]
    return re.sub(r"ipykernel_\d+/\d+", "ipykernel", json.dumps(outputs))


JOB = """
import sys
from pathlib import Path
from ssv2_report.jobs import notebooks
notebooks.project_root = lambda: Path(sys.argv[1])
notebooks.run_notebook(sys.argv[2], Path(sys.argv[3]))
"""
COMMAND = """
import os, subprocess, sys
from contextlib import nullcontext
from ssv2_report.jobs.launch import forks
if __name__ == "__main__":
    with forks() if sys.argv[1] == "True" else nullcontext({}) as told:
        assert str(bool(told)) == sys.argv[1]
        command = [sys.executable, "-m", "ssv2_report.jobs.launch", "job", *sys.argv[2:]]
        sys.exit(subprocess.run(command, env={**os.environ, **told}).returncode)
"""


@pytest.mark.parametrize("forked", [False, True])
def test_a_notebook_shows_the_same_in_any_surroundings(book, forked, tmp_path, monkeypatch):
    "Its job is a process of its own, or a fork of one that was itself started there."
    if forked and sys.platform != "linux":
        pytest.skip("elsewhere jobs start anew")
    calm = shown(book(SHOWS, "1\n2"))
    assert "image/png" in calm and "stray" not in calm
    for name, value in hostile(tmp_path).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "project" / "nbs" / "matplotlibrc").write_text(STYLE)
    if forked:
        for name in ("PYTHONWARNINGS", "PYTHONOPTIMIZE"):  # with which no job is forked
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, code in (("job", JOB), ("command", COMMAND)):
        (tmp_path / f"{name}.py").write_text(code)

    def run(*words):
        command = [sys.executable, "command.py", str(forked), *map(str, words)]
        subprocess.run(command, cwd=tmp_path, check=True)

    assert shown(book(SHOWS, "1\n2", run=run)) == calm


AS_IT_IS = """
import sys, papermill
from ssv2_report.jobs import notebooks
given = dict(engine_name="ssv2", kernel_name="python3", language="python", progress_bar=False)
papermill.execute_notebook(*sys.argv[1:], **given)
"""


def test_a_kernel_reads_no_configuration_wherever_it_lies(book, tmp_path, surroundings):
    "Such as one for all users of a machine: here the kernel is given a folder with one as its own."
    book("1\n2")
    out = tmp_path / "other.ipynb"
    command = [sys.executable, "-c", AS_IT_IS, tmp_path / "project" / "nbs" / "book.ipynb", out]
    env = job_environment() | dict(IPYTHONDIR=os.environ["IPYTHONDIR"], PYTHONPATH=str(ROOT))
    subprocess.run(command, env=env, check=True)
    shown = [o["data"]["text/plain"] for o in nbformat.read(out, as_version=4).cells[0].outputs]
    assert shown == ["2"], "the last value, and not as that configuration has it, all"


@pytest.mark.parametrize(
    "source",
    [
        "import matplotlib.pyplot as plt\nplt.switch_backend('agg')\nplt.plot([0, 1]);",
        "import matplotlib.pyplot as plt\nplt.switch_backend('agg')\nplt.plot([0, 1])",
        "import matplotlib.pyplot as plt\nif True:\n    plt.close(plt.figure())\n    print('drawn')",
    ],
)
def test_a_figure_cell_without_a_picture_fails(book, tmp_path, source):
    with pytest.raises(ValueError, match="^book: the cell fig-lost shows no picture; ") as e:
        book(f"#| label: fig-lost\n{source}")
    assert "\n" not in str(e.value) and not (tmp_path / "out.ipynb").exists()
    assert (tmp_path / "out.failed.ipynb").exists()


def test_what_a_run_has_nothing_for_may_be_empty(book, tmp_path):
    html = "from IPython.display import HTML\nHTML('<div><canvas></canvas></div>')"
    cells = book("#| label: fig-none\nif 0:\n    1", f"#| label: fig-html\n{html}", "'no figure'")
    assert len(cells) == 3 and lost_figures(tmp_path / "out.ipynb") == []


# -- variables


def test_jobs_inherit_what_a_machine_needs_and_nothing_that_changes_results(tmp_path):
    needed = dict(
        *[{}],
        PATH="/bin",
        HOME="/home/me",
        PYTHONPATH="/clone",
        CUDA_VISIBLE_DEVICES="1",
        LD_LIBRARY_PATH="/lib",
        SLURM_JOB_ID="7",
        HF_HOME="/models",
        TORCH_HOME="/models",
        https_proxy="http://proxy",
        ONEDNN_MAX_CPU_ISA="AVX2",
        MKL_NUM_THREADS="1",
        OMP_NUM_THREADS="2",
        SSV2_GPUS="1",
        JUPYTER_RUNTIME_DIR="/run/me",
        MPLCONFIGDIR="/cache",
    )
    found = job_environment(hostile(tmp_path) | needed)
    assert needed.items() <= found.items()
    assert {*found} == {*needed} | {*environment.SET_FOR_JOBS}
    assert job_environment(found) == found


def test_variables_that_are_hidden_for_a_while_come_back(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(KeyError), without_variables(*OF_TRAINING):
        assert "RANK" in os.environ, "torchrun's own"
        os.environ["FSDP_VERSION"]
    assert os.environ["FSDP_VERSION"] == "2"


@pytest.mark.parametrize("names", [["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"], TRAINING])
def test_variables_of_accelerate_change_no_training(tmp_path, monkeypatch, names):
    "Nor the devices of processes, nor the clipping of gradients, which reads them at each step."
    exp = experiment(clip_grad=0.5)
    run(exp, tmp_path / "calm")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for name in names:
        monkeypatch.setenv(name, TRAINING[name])
    for state in (AcceleratorState, PartialState):
        state._shared_state.clear()
    try:
        run(exp, tmp_path / "not")
        assert processes().device != torch.device("meta")
        assert os.environ["FSDP_VERSION"] == "2"
    finally:
        for state in (AcceleratorState, PartialState):
            state._shared_state.clear()
    weights = [(tmp_path / k / "weights.safetensors").read_bytes() for k in ("calm", "not")]
    assert weights[0] == weights[1]
    assert history(tmp_path / "calm").equals(history(tmp_path / "not"))


# -- the workflow

NAMES = (
    *("1_2", "1e5", "0x10", "null", "true", "True", "~", "12", "[x]", "a: b", "#c", "&y", "!z"),
    *(
        "a b",
        " a ",
        "it's",
        'say "x"',
        "a,b",
        "a=b",
        r"\n",
        "a\tb",
        "\u4f60\u597d",
        "\x85x",
        "$HOME",
    ),
)


@pytest.mark.parametrize("name", NAMES)
def test_snakemake_reads_names_as_they_are(name, tmp_path):
    command = workflow_command(name, tmp_path / name, 2, 1)
    files = [Path(command[command.index("--configfile") + 1])]
    read = ConfigSettings(configfiles=files).overwrite_config
    assert read == dict(study=name, results=str(tmp_path / name), gpus=1, jobs=0)


@pytest.mark.parametrize(
    "name", ["1_2", pytest.param("a 'b', \"c\" = 1e5 ~ $HOME", marks=pytest.mark.slow)]
)
def test_profiles_that_lie_about_and_odd_names_leave_the_workflow_as_it_is(
    tmp_path, name, monkeypatch
):
    "The audit of a study of that name, in a clone with a profile that Snakemake finds by itself."
    root, results, mine = tmp_path / "project", tmp_path / "results" / name, tmp_path / "mine"
    clone(ROOT, root)
    for folder in (root / "workflow" / "profiles" / "default", mine):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("dry-run: true\n")
    file = write_study(root / "experiments" / f"{name}.yaml", official(tmp_path / "data"))
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(mine))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setattr("ssv2_report.jobs.workflow.project_root", lambda: root)
    study, target = load_study(str(file)), f"{results}/flags/audit"
    command = workflow_command(name, results, 2)
    tracker = Tracker(pending_jobs(study, results), needs_of(study, results), 2)
    run_workflow([*command, "--", target], tracker, tmp_path / "log", 0)
    assert Path(target).is_file(), (tmp_path / "log").read_text()
    assert "audit" not in pending_jobs(study, results)


def test_a_number_in_place_of_a_name_is_refused(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "-n"]
    done = subprocess.run(
        [*command, "--config", "study=1_2", f"results={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (
        done.returncode and "study=... gives 12, which is not a name" in done.stderr + done.stdout
    )


def test_a_workflow_that_has_done_nothing_is_a_failure(tmp_path, monkeypatch, capsys):
    "Whatever it says of itself."
    monkeypatch.setattr(cli, "project_root", lambda: tmp_path)
    monkeypatch.setattr(cli, "check_first", lambda *_: None)
    monkeypatch.setattr(cli, "workflow_command", lambda *_: [sys.executable, "-c", "pass"])
    study = write_study(tmp_path / "few.yaml", official(tmp_path / "data"))
    with pytest.raises(
        ValueError, match="left to do: audit and [0-9]+ more; the same command"
    ) as e:
        cli.reproduce(str(study), tmp_path / "results", cores=2, gpus=0, jobs=None, dry_run=False)
    assert "\n" not in str(e.value) and "The report" not in capsys.readouterr().out


# -- Quarto

WRONG = dict(
    crashes=("kill -SEGV $$", "exit code -11"),
    fails=("echo 'no deno here' >&2; exit 3", "exit code 3 and said 'no deno here'"),
    hangs=("sleep 600", "gave no answer in 1 s"),
)


def put_on_path(monkeypatch, folder):
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def soon(monkeypatch):
    "Quarto is waited for as long as a test can."
    asked = environment._ask.__wrapped__
    monkeypatch.setattr(environment, "_ask", lambda *found: asked(*found, seconds=1.0))


@pytest.mark.parametrize("how", WRONG)
def test_a_quarto_that_does_not_run_is_none(how, tmp_path, monkeypatch, soon):
    script, why = WRONG[how]
    program(tmp_path / "quarto", script)
    put_on_path(monkeypatch, tmp_path)
    began, found = time.monotonic(), find_quarto()
    assert (found.path, found.version) == ("", "") and why in found.trouble
    assert time.monotonic() - began < 20


def test_a_quarto_for_another_machine_is_none(tmp_path, monkeypatch, soon):
    (tmp_path / "quarto").write_bytes(b"\x7fELF")
    (tmp_path / "quarto").chmod(0o755)
    put_on_path(monkeypatch, tmp_path)
    assert "quarto cannot be started (Exec format error)" in find_quarto().trouble


def test_a_quarto_is_known_by_its_version_wherever_it_is(tmp_path, monkeypatch):
    from ssv2_report.data.contents import Files

    study = load_study(str(write_study(tmp_path / "few.yaml", official(tmp_path / "data"))))
    monkeypatch.setattr(records, "record", lambda *_: dict(results=""))
    found = {}
    for place, says in dict(a="1.2.3", b="1.2.3", c="1.3.0", d="oh no; exit 1").items():
        program(tmp_path / place / "quarto", f"echo {says}")
        monkeypatch.setenv("PATH", str(tmp_path / place))
        job = Job("render")
        found[place] = records.input_digests(study, tmp_path / "results", job, Files())["beside"]
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    none = records.input_digests(study, tmp_path / "results", Job("render"), Files())["beside"]
    assert found["a"] == found["b"] != found["c"] != none == found["d"]


# -- a study

TEXTS = {".html", ".csv", ".md", ".tex", ".svg"}
CLOCKS = (  # what tells times, and names that are drawn anew
    r"[\d.]+ clips/s, [\d.]+% of the time waiting for clips, [\d.]+ GB",
    r"\b[\d.]+ min\b *",
    r"(?<=\b[mp])[0-9a-f]{10}\b",
    r"(?<=\bimage)[0-9a-f]{10}\b",
    r"(?<=\bT_)[0-9a-f]{5}",
)


class Study:
    "A clone with two chapters, a dataset of a dozen clips, and a study of two networks and one seed."

    def __init__(self, base):
        self.root, self.results = base / "clone", base / "results"
        self.study, self.report = base / "few.yaml", base / "clone" / "_report" / "few"
        clone(ROOT, self.root)
        code = self.root / "ssv2_report" / "jobs" / "steps.py"
        few = {"04_gradcam": "04_gradcam"}
        text, n = re.subn(r"CHAPTERS = \{[^}]+\}", f"CHAPTERS = {few}", code.read_text())
        assert n == 1
        code.write_text(text)
        text = write_study(self.study, official(base / "data")).read_text()
        text = text.replace("seeds: [0, 1]", "seeds: [0]")
        self.study.write_text(text.replace("epochs: 1", "epochs: 2, clip_grad: 1.0"))

    def reproduce(self, **env):
        "Do all anew; what was said, and all files that count by name."
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.rmtree(self.report, ignore_errors=True)
        command = [sys.executable, "-m", "ssv2_report.command", "reproduce", str(self.study)]
        done = subprocess.run(
            [*command, "--results", str(self.results)],
            cwd=self.root,
            env=os.environ | dict(PYTHONPATH=str(self.root), OMP_NUM_THREADS="1") | env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr, self.made()

    def made(self):
        "Pages and tables but for what tells times, figures, and weights."
        folders = (self.report, self.results / "tables", self.results / "figures")
        paths = [p for f in folders for p in f.rglob("*") if p.is_file()]
        paths += self.results.glob("runs/*/*.safetensors")
        return {str(p): seen(p) for p in paths if not p.name.startswith(".")}


def seen(path):
    "What a file says; of print, as it has a time in it, its words."
    if path.suffix == ".pdf" and path.name == "index.pdf":
        text = " ".join(word[-1] for word in words_of(path))
    elif path.suffix in TEXTS:
        text = path.read_text(encoding="utf-8")
    else:
        return path.read_bytes()
    return re.sub("|".join(CLOCKS), "", text)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("study"))
    return study, study.reproduce()[1]


@pytest.mark.slow
def test_a_report_is_the_same_in_any_surroundings(calm, tmp_path):
    study, theirs = calm
    said, ours = study.reproduce(**hostile(tmp_path), OMP_NUM_THREADS="2,1")
    assert theirs.keys() == ours.keys() and len(ours) > 100
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert "Quarto is not used, since" in " ".join(said.split())
