"""A study of real files, from its dataset to its report and through what may befall it: `pytest tests/check_study.py`. Minutes, so not among the tests."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from pdfs import text_of
from worlds import TEXTS, as_read, clone, cut, official, write_study

ROOT = Path(__file__).parents[1]
PRINTABLE = [text for text in TEXTS if text.isprintable()]
FILES = ("config.yaml", "history.csv", "metrics.json", "predictions.parquet", "weights.safetensors")


class Few:
    "A clone, a dataset, a study and its results, each in a folder with a space."

    def __init__(self, base):
        self.clone, self.study, self.results = (
            base / "a clone",
            base / "my studies" / "few clips.yaml",
            base / "my results" / "few",
        )
        clone(ROOT, self.clone)
        for folder in (self.study.parent, self.results.parent):
            folder.mkdir()
        boxes = base / "some boxes"
        write_study(
            self.study, official(base / "some data", boxes=boxes), boxes, text=" ; ".join(PRINTABLE)
        )
        self.report, self.run = (
            self.clone / "_report" / "few clips",
            self.results / "runs" / "r(2+1)d-s1",
        )

    def start(self, *args, **kw):
        env = {**os.environ, "PYTHONPATH": str(self.clone), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, args)],
            cwd=self.clone,
            env=env,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **kw,
        )

    def call(self, *args):
        "Exit code and all that was said."
        process = self.start(*args)
        said = process.communicate()[0]
        return process.returncode, said

    @property
    def reproduce(self):
        return "ssv2_report.cli", "reproduce", self.study, "--results", self.results

    def planned(self, *args):
        "Rule and experiment of each job that would run."
        code, said = self.call(*(args or self.reproduce), "--dry-run")
        assert code == 0, said
        return {
            (rule, m[1] if (m := re.fullmatch(r"(\S+)-s\d+", of)) else None)
            for rule, _, of in (
                re.split("[,:] ", line)[0].partition(" ") for line in said.splitlines()
            )
            if not rule.startswith("Nothing")
        }

    def recode(self, notebook):
        "Add a line of code that does nothing to a notebook."
        path = self.clone / "nbs" / f"{notebook}.ipynb"
        content = json.loads(path.read_text(encoding="utf-8"))
        cell = next(
            c
            for c in content["cells"]
            if c["cell_type"] == "code" and not c["metadata"].get("tags")
        )
        cell["source"] = ["0\n", *cell["source"]]
        path.write_text(json.dumps(content), encoding="utf-8")

    def reword(self, notebook):
        "Change a word of a notebook."
        path = self.clone / "nbs" / f"{notebook}.ipynb"
        path.write_text(
            path.read_text(encoding="utf-8").replace(" the ", " that ", 1), encoding="utf-8"
        )


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition, process, seconds=120):
    until = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < until, process.communicate()[0]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    few, began = Few(tmp_path_factory.mktemp("study")), time.time()
    code, said = few.call(*few.reproduce)
    assert code == 0, said[-4000:]
    print(f"\nfrom a dozen clips to the report in {time.time() - began:.0f} s")
    return few


def test_the_report_is_there_and_says_what_was_excluded(few):
    page = (few.report / "index.html").read_text(encoding="utf-8")
    assert (
        "The audit excludes 1 of 13 training and validation clips" in page
        and "truncated" in page
        and "Something-Something V2" in page
    )
    assert "box outside the picture" in page, "the audit saw the boxes that the study declares"
    assert (few.report / "index.pdf").is_file() and (few.report / "validation_run.html").is_file()
    checks = pd.read_csv(few.results / "tables_validation" / "checks.csv")
    assert {"stability", "deletion", "sanity"} <= set(checks["check"]) and set(
        checks["experiment"]
    ) == {"2d-multi", "r(2+1)d"}
    assert len(list((few.results / "figures" / "players").iterdir())) >= 3, "a case of each class"


def test_names_of_classes_are_shown_as_they_are(few):
    for path in few.report.glob("*.html"):
        assert "<img src=x" not in path.read_text(encoding="utf-8"), path.name
    pages = [few.report / f"{name}.html" for name in ("index", "analysis_run")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    headings = re.findall(r"Case \d[^<]*next to something[^<]*", text)
    assert headings, "of a case that the rule chooses"
    for heading in headings:
        shown = html.unescape(heading).strip()
        assert shown.endswith(': Holding something next to something <img src=x> "$a$" *b*'), shown


def test_free_text_of_a_study_is_shown_as_written_and_runs_nowhere(few):
    page = (few.report / "index.html").read_text(encoding="utf-8")
    main = re.sub(r"(?s)<(script|style).*?</\1>|<[^>]+>", "", page[page.index("<body") :])
    said = as_read(html.unescape(main))
    pdf = few.report / "index.pdf"
    paper = text_of(pdf, "-raw")
    for text in PRINTABLE:
        assert said.count(as_read(text)) >= 2, text  # the title, and what a hypothesis says
        assert not text.isascii() or as_read(text) in as_read(paper), text
    assert not [p for p in few.clone.parent.rglob("canary*")]


def test_called_again_it_does_nothing(few):
    code, said = few.call(*few.reproduce)
    assert code == 0 and "Nothing to do" in said


def test_a_finished_training_that_runs_again_loses_nothing(few):
    "A line of its notebook edited, then killed in the last evaluation, then finished by the same command."
    before = {name: (few.run / name).read_bytes() for name in FILES}
    was, sums = (
        (few.run / "weights.safetensors").stat().st_mtime_ns,
        few.results / "flags" / "train-r(2+1)d-s1",
    )
    few.recode("train/train_run")
    command = [
        "snakemake",
        "--snakefile",
        "workflow/Snakefile",
        "--cores",
        "1",
        "--nolock",
        "--rerun-incomplete",
        "--rerun-triggers",
        "mtime",
        "--config",
        f"study={few.study}",
        f"results={few.results}",
        "--",
        sums,
    ]
    process = few.start(*command)
    wait_for(lambda: (few.run / "weights.safetensors").stat().st_mtime_ns != was, process)
    kill(process)
    assert before == {name: (few.run / name).read_bytes() for name in FILES} and not sums.exists()
    code, said = few.call(*command)
    assert code == 0 and before == {name: (few.run / name).read_bytes() for name in FILES}, said


def test_a_training_whose_files_are_gone_is_finished_again(few):
    (few.run / "predictions.parquet").rename(few.run / "kept")
    assert ("train", "r(2+1)d") in few.planned()
    (few.run / "kept").rename(few.run / "predictions.parquet")


def test_after_a_kill_the_same_command_goes_on_and_two_at_once_are_refused(few):
    few.reword("index")
    (log := few.results / "reproduce.log").unlink()  # of the call before
    process = few.start(*few.reproduce)
    wait_for(lambda: log.is_file() and "rule " in log.read_text(), process)
    os.killpg(process.pid, signal.SIGSTOP)  # lest it ends before the second has begun
    code, said = few.call(*few.reproduce)
    assert (
        code == 1
        and f"is being worked on by process {process.pid}" in said
        and said.count("\n") == 1
    ), said
    kill(process)
    code, said = few.call(*few.reproduce)
    assert code == 0 and "The report, after" in said, said
    assert few.planned() == set()


def test_a_study_that_cannot_begin_says_why_and_leaves_every_folder(few, tmp_path):
    root, parent = (
        official(tmp_path / "data", train=1, validation=1, damaged=0),
        tmp_path / "made by" / "the user",
    )
    cut(next((root / "20bn-something-something-v2").iterdir()))
    parent.mkdir(parents=True)
    study = write_study(tmp_path / "new.yaml", root, allowed=0)
    command = "ssv2_report.cli", "reproduce", study, "--results", parent / "results"
    code, said = few.call(*command)
    last = said.strip().splitlines()[-1]
    assert code == 1 and last.startswith(
        "ssv2: The audit excludes 1 of 6 training and validation clips (1 truncated)"
    ), said
    assert (
        parent.is_dir()
        and "truncated" in (parent / "results" / "audit.json").read_text()
        and "Error in rule cache" in (parent / "results" / "reproduce.log").read_text()
    )
    study.write_text(study.read_text().replace("max_excluded: 0", "max_excluded: 1"))
    assert {rule for rule, _ in few.planned(*command)} >= {"cache", "train"} and (
        "audit",
        None,
    ) not in few.planned(*command), "the findings are kept"
