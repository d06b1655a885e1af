"""The whole command, killed at random moments and started again: nothing is lost, nothing runs on."""

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
from jobs import heeded
from nbformat.v4 import new_code_cell as code
from nbformat.v4 import new_markdown_cell as md
from nbformat.v4 import new_notebook, writes
from worlds import clone, make

from ssv2_report.jobs.steps import STEPS

ROOT = Path(__file__).parents[1]
RUNS = ("2d", "3d")
LONGEST = 8.0  # seconds until a kill; a study takes about 10
STUDY = """title: A toy
data: {{root: data, size: 32}}
seeds: [0]
settings: {{stages: 2, n_frames: 4, batch_size: 2, lr: {lr}}}
experiments:
  2d: {{title: 2D, model: test_resnet}}
  3d: {{title: 3D, model: "i3d:test_resnet", init: 2d}}
"""
START = """
import hashlib, json, time
from pathlib import Path
from ssv2_report.data.basics import atomic_write
from ssv2_report.study.experiments import load_study
s = load_study(study)
out = Path(results)
def leave(path, *parts):
    with atomic_write(path) as part:
        part.write_text(hashlib.sha256(repr(parts).encode()).hexdigest())
        time.sleep(0.02)
"""
RUN = START + "run = out / 'runs' / s.folder(experiment_name, seed)\n"
TRAIN = f"""
exp = s.experiments[experiment_name]
start = str(exp.lr)
if exp.init:
    start += (out / "runs" / s.folder(exp.init, seed) / "weights.safetensors").read_text()
checkpoint = run / "checkpoint.json"
told, step = json.loads(checkpoint.read_text()) if checkpoint.is_file() else ["", 0]
if told != start:
    step = 0
for step in range(step, 20):
    time.sleep(0.03)
    with atomic_write(checkpoint) as part:
        part.write_text(json.dumps([start, step + 1]))
for name in {STEPS["train"].leaves}:
    leave(run / name, name, start)
"""
LOOK = f"""
weights = (run / "weights.safetensors").read_text()
for name in {STEPS["gradcam"].leaves}:
    leave(run / name, name, weights)
leave(run / "maps" / "layer2-gradcam.npz", weights)
"""
SOURCES = """
leave(run / "sources.parquet", (run / "weights.safetensors").read_text())
"""
RELIANCE = """
leave(run / "reliance.parquet", (run / "weights.safetensors").read_text())
"""
ANALYSIS = """
seen = sorted((p.name, p.read_text()) for p in out.glob("runs/*/*.parquet"))
for folder, name in (("tables", "accuracy.csv"), ("figures", "accuracy.svg")):
    leave(out / folder / name, name, seen)
with atomic_write(out / "variables.yml") as part:
    part.write_text("accuracy: " + hashlib.sha256(repr(seen).encode()).hexdigest())
"""
BOOKS = {
    "train/train_run": RUN + TRAIN,
    "gradcam/sources_run": RUN + SOURCES,
    "gradcam/gradcam_run": RUN + LOOK,
    "gradcam/reliance_run": RUN + RELIANCE,
    "analysis/analysis_run": START + ANALYSIS,
    "00_data": "'a chapter'",
}

# There are no other chapters, and no networks to import, to look at beforehand or to tell times of.
SIZES = "    return dict(train=1, validation=1, classes=2)"
OTHERWISE = [
    ("jobs/steps.py", r"CHAPTERS = \{[^}]+\}", "CHAPTERS = {}"),
    ("jobs/launch.py", r"(?<=IMPORTED = \()[^)]+", '"matplotlib.pyplot papermill"'),
    ("jobs/durations.py", r"(?m)^    from \S+check import OFFICIAL_SIZES, .*", SIZES),
    ("jobs/durations.py", r"(?m)^    cam, step, classes = .*", "    return 1.0"),
    (
        "cli.py",
        r"(?m)^    for world in worlds_of\(s\):\n        check_study.*\n(?=    cores, g)",
        "",
    ),
    ("cli.py", r"(?m)^    from \S+ import check_study\n\n(?=    cores, gpus)", ""),
    ("cli.py", r"(?m)^    check_first\(.*\n", ""),
]


def book(source):
    parameters = (
        "study = results = experiment_name = root = audit_file = ''\nseed, replace = 0, False"
    )
    cells = [
        md("# A toy"),
        code(parameters, metadata=dict(tags=["parameters"])),
        code(source.strip()),
    ]
    return writes(new_notebook(cells=cells))


class Toy:
    "A clone whose notebooks compute digests instead of networks, a dataset and a study."

    def __init__(self, base):
        self.base, self.clone, self.results = base, base / "clone", base / "results"
        clone(ROOT, self.clone)
        for name, source in BOOKS.items():
            (self.clone / "nbs" / f"{name}.ipynb").write_text(book(source))
        for path, old, new in OTHERWISE:
            code = self.clone / "ssv2_report" / path
            text, n = re.subn(old, new, code.read_text())
            assert n == 1
            code.write_text(text)
        page = new_notebook(cells=[md("# A toy\n\nIt found {{< var accuracy >}}.")])
        for name in ("index", "report/appendix"):
            (self.clone / "nbs" / f"{name}.ipynb").write_text(writes(page))
        make(base / "data", 1, 1, 1)
        self.mark = uuid.uuid4().hex
        self.study(lr=0.1)

    def study(self, lr):
        (self.base / "toy.yaml").write_text(STUDY.format(lr=lr))

    def start(self, *more):
        env = {**os.environ, "PYTHONPATH": str(self.clone), "OMP_NUM_THREADS": "1"}
        env |= {"NO_COLOR": "1", "SSV2_TOY": self.mark, "SSV2_GPUS": "0"}
        command = [sys.executable, "-m", "ssv2_report.command", "reproduce", self.base / "toy.yaml"]
        return subprocess.Popen(
            [*command, "--results", self.results, *more],
            cwd=self.clone,
            env=env,
            text=True,
            start_new_session=True,
            preexec_fn=heeded,
            stdout=open(self.base / "said.txt", "w"),
            stderr=subprocess.STDOUT,
        )

    def said(self):
        return (self.base / "said.txt").read_text()

    def running(self):
        "All living processes that a command of this study has started."
        found = []
        for p in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ended = p.status() == psutil.STATUS_ZOMBIE
                if not ended and p.environ().get("SSV2_TOY") == self.mark:
                    found.append(p)
        return found

    def finish(self):
        process = self.start()
        assert process.wait(600) == 0, self.said()
        return self.made()

    def made(self):
        "What the study is for: files, and the number on its page."
        page = (self.clone / "_report" / "toy" / "index.html").read_text()
        return files_in(self.results), re.search("It found ([0-9a-f]+)", page)[1]


def files_in(results):
    "Contents by path, but for what tells times, processes and places."
    folders = ("runs/*", "runs/*/maps", "tables", "figures")
    found = [p for folder in folders for p in results.glob(f"{folder}/*")]
    return {
        str(p.relative_to(results)): p.read_bytes()
        for p in [*found, results / "variables.yml"]
        if p.is_file() and p.suffix not in ("", ".ipynb", ".log", ".json")  # locks have none
    }


class Watch(threading.Thread):
    "Looks all the time whether weights that are there are whole and do not go."

    def __init__(self, toy):
        super().__init__(daemon=True)
        self.paths = [toy.results / "runs" / f"{run}-s0" / "weights.safetensors" for run in RUNS]
        self.lost, self.over, self.seen = [], False, set()
        self.start()

    def run(self):
        while not self.over:
            for path in self.paths:
                try:
                    if len(path.read_bytes()) != 64:
                        self.lost.append(f"{path} is torn")
                    self.seen.add(path)
                except FileNotFoundError:
                    if path in self.seen:
                        self.lost.append(f"{path} is gone")
            time.sleep(0.005)


SIGNS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def nothing_runs_on(toy, hit, seconds=10):
    until = time.time() + seconds
    while (left := toy.running()) and time.time() < until:
        time.sleep(0.1)
    assert not left, f"{hit}: {[p.cmdline() for p in left]} run on"


def disturb(toy, sign, whom, after, rng):
    "Start the command and hit it after so many seconds: whether it was hit, and how it ended."
    process = toy.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return False, process.wait(after)
    there = [p.pid for p in toy.running()]
    victims = dict(command=[process.pid], all=there, another=[rng.choice(there)], group=[])[whom]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
    if whom == "group":
        os.killpg(process.pid, sign)
    hit = f"{sign.name} to {whom}"
    if whom != "another":  # that may be nobody's, and the command goes on
        nothing_runs_on(toy, hit)
    code = process.wait(300)
    nothing_runs_on(toy, hit)
    assert "Traceback" not in toy.said(), toy.said()
    return True, code


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "What the study gives with one setting and with the other, by its notebooks' code run here, in order."

    def result(lr):
        base = tmp_path_factory.mktemp("calm")
        (base / "toy.yaml").write_text(STUDY.format(lr=lr))
        given = dict(study=str(base / "toy.yaml"), results=str(base / "results"), seed=0)
        for run in RUNS:
            for step in ("train/train_run", *(k for k in BOOKS if k.startswith("gradcam/"))):
                exec(BOOKS[step], given | dict(experiment_name=run))
        exec(BOOKS["analysis/analysis_run"], given)
        said = (base / "results" / "variables.yml").read_text()
        return files_in(base / "results"), said.removeprefix("accuracy: ")

    found = {lr: result(lr) for lr in (0.1, 0.2)}
    assert found[0.1][1] != found[0.2][1]
    return found


def edited_while_it_runs(toy, undisturbed, settings):
    "A study is done as it was read, and what was edited is to be done next."
    process = toy.start()
    until = time.time() + 120
    while "started " not in toy.said() and process.poll() is None and time.time() < until:
        time.sleep(0.05)
    settings.reverse()
    toy.study(settings[0])
    assert process.wait(300) == 0, toy.said()
    assert toy.made() == undisturbed[settings[1]]
    assert toy.start("--dry-run").wait(60) == 0
    said = toy.said()
    assert "train 2d-s0: settings changed" in said and "gradcam 2d-s0, if the weights" in said


def called_again_it_only_says_so(toy):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = toy.start()
    assert process.wait(60) == 0 and toy.said().startswith("Nothing to do: ")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"nothing to do: {used:.1f} s of computing")
    assert used < 6


# By 75, the command alone is killed first, and then all of it is hung up on.
@pytest.mark.parametrize("kills, seed", [(2, 75), pytest.param(40, 40, marks=pytest.mark.slow)])
def test_killed_or_edited_at_any_moment_the_same_command_goes_on(toy, undisturbed, kills, seed):
    """When a study is done after all, it is changed to the other one, over the first one's results.

    The command with its whole workflow, and all processes that it starts, is in no faster test."""
    rng, watch, hits, settings = random.Random(seed), Watch(toy), [], [0.1, 0.2]
    ways = [(s, w) for w in ("group", "command", "another", "all") for s in SIGNS]
    rng.shuffle(ways)
    toy.study(settings[0])
    while len(hits) < kills:
        sign, whom = ways[len(hits) % len(ways)]
        after = rng.uniform(0.2, LONGEST)
        was_hit, code = disturb(toy, sign, whom, after, rng)
        if was_hit:
            hits.append(f"{sign.name} to {whom} after {after:.1f} s, exit {code}")
            print(hits[-1], flush=True)
        if code == 0:
            assert toy.made() == undisturbed[settings[0]], hits
            settings.reverse()
            toy.study(settings[0])
        assert not watch.lost, (watch.lost, hits)
        if was_hit and len(hits) == 1:
            edited_while_it_runs(toy, undisturbed, settings)
    assert toy.finish() == undisturbed[settings[0]], hits
    watch.over = True
    assert not watch.lost and len(watch.seen) == len(RUNS)
    assert not [p for p in toy.results.rglob(".*") if re.match(r"\.\d+\.", p.name)]
    called_again_it_only_says_so(toy)
