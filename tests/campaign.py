"""A tiny study in a clone, which is changed and reproduced again, and all that it makes, as text."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from difflib import unified_diff
from pathlib import Path

import pandas as pd
import yaml
from forked import fork
from worlds import clone

ROOT = Path(__file__).parents[1]
NAME = "tiny"
CHAPTER = "04_gradcam"  # the one that is left, beside that on data
CLASSES = [
    "Pulling something from left to right",
    "Pushing something from right to left",
    "Covering something with something",
    "Holding something in front of something",
]
STUDY = f"""title: A tiny study
data: {{root: data, size: 32, classes: {CLASSES}}}
seeds: [0]
settings: {{stages: 2, n_frames: 4, batch_size: 4, epochs: 1}}
cam: {{sources: ["layer2:gradcam", "layer1:layercam"], choice_per_class: 1, references: 1, cases: 2}}
experiments:
  2d: {{title: A flat network, model: test_resnet}}
  3d: {{title: A deep network, model: "i3d:test_resnet", lr: 0.01}}
hypotheses:
  order: {{says: deep networks tell order, measure: pair_right, of: 3d, over: 2d, clips: reversal}}
  place: {{says: deep maps lie more on the object, measure: ratio_object, of: 3d, over: 2d}}
"""

# What two studies from nothing do not have in common, and nothing else.
SPEED = r"[\d.]+ clips/s, [\d.]+% of the time waiting for clips, [\d.]+ GB at most"
MASKS = (
    (r"BASE/(data|results)( moved)?", "PLACE"),
    (SPEED, "SPEED"),  # a sentence of train_run
    (r"\bT_[0-9a-f]{5}(?=[_\" ])", "T_ID"),  # ids that pandas draws for tables of its Styler
    (r"(?<=[#\"])(image|m|p)[0-9a-f]{10}(?=[\")])", "ID"),  # ids that matplotlib draws in an SVG
)
TIMED = ["clips_per_s", "waiting", "memory_gb", "seconds"]  # columns of history.csv


class World:
    "A clone with one chapter, a dataset, a study and its results, all in one folder."

    def __init__(self, base, results="results"):
        self.base, self.clone, self.study = base, base / "clone", base / f"{NAME}.yaml"
        self.results = base / results

    def copy(self, base):
        "The same without what `reproduce` makes."
        made = {"_report", ".snakemake", "__pycache__", self.results.name}
        shutil.copytree(self.base, base, ignore=lambda folder, names: made & {*names})
        return type(self)(base, self.results.name)

    def reproduce(self):
        "What `ssv2 reproduce` says; `seconds` and `done` tell what it took and did."
        env = os.environ | {"PYTHONPATH": str(self.clone), "NO_COLOR": "1"}
        command = ["-m", "ssv2_report.command", "reproduce", self.study, "--results", self.results]
        before, began = self.stamps(), time.time()
        process = subprocess.run(
            [sys.executable, *command],
            cwd=self.clone,
            env=env,
            text=True,
            timeout=1800,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.seconds, self.done = time.time() - began, self.newer(before)
        assert process.returncode == 0, process.stdout[-4000:]
        return process.stdout

    def newer(self, before):
        "What has been trained or executed since `stamps` were so."
        return {name for name, stamp in self.stamps().items() if before.get(name) != stamp}

    @property
    def trained(self):
        "Runs whose weights the last call has written."
        return {name.split()[1] for name in self.done if name.startswith("weights")}

    @property
    def executed(self):
        "Notebooks that the last call has executed: a step, and of which run."
        return {name for name in self.done if not name.startswith("weights")}

    def stamps(self):
        "Of each run's weights when they were written, of each notebook when it was executed."
        found = {
            f"weights {path.parent.name}": path.stat().st_mtime_ns
            for path in self.results.glob("runs/*/weights.safetensors")
        }
        for path in [p for x in ("*", "runs/*/*") for p in self.results.glob(x)]:
            if path.suffix != ".ipynb":
                continue
            is_run = path.parent.parent.name == "runs"
            name = path.stem.removesuffix("_run") + f" {path.parent.name}" * is_run
            about = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]
            found[name] = about["start_time"]
        return found

    # --- what a change is made of

    def rewrite(self, path, pattern, new):
        "Put another text where a pattern is in a file of the clone, or in one cell of a notebook."
        path = self.clone / path
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".ipynb":
            text, n = re.subn(pattern, new, text)
            assert n == 1, f"{path} has {n} times {pattern!r}"
            path.write_text(text, encoding="utf-8")
            return
        content = json.loads(text)
        hits = [c for c in content["cells"] if re.search(pattern, "".join(c["source"]))]
        assert len(hits) == 1, f"{path} has {len(hits)} cells with {pattern!r}"
        for cell in hits:
            cell["source"] = re.sub(pattern, new, "".join(cell["source"]), count=1)
        dump(path, content)

    def recode(self, module, notebook, pattern, new):
        "The same in a module of the library and in the notebook that it comes from."
        self.rewrite(f"ssv2_report/{module}.py", pattern, new)
        self.rewrite(f"nbs/{notebook}.ipynb", pattern, new)

    def add_cell(self, notebook, kind, source):
        "A cell at the end of a notebook."
        path = self.clone / "nbs" / f"{notebook}.ipynb"
        content = json.loads(path.read_text(encoding="utf-8"))
        rest = dict(execution_count=None, outputs=[]) if kind == "code" else {}
        id = f"added-{len(content['cells'])}"
        cell = dict(cell_type=kind, id=id, metadata={}, source=source) | rest
        content["cells"].append(cell)
        dump(path, content)

    def settings(self):
        return yaml.safe_load(self.study.read_text())

    def set(self, keys, value):
        "Another value in the study (None: none), at keys such as 'cam.cases'."
        *keys, last = keys.split(".")
        content = part = self.settings()
        for key in keys:
            part = part[key]
        part[last] = value
        if value is None:
            del part[last]
        self.study.write_text(yaml.safe_dump(content, sort_keys=False))

    def run(self, name):
        return self.results / "runs" / name

    # --- what it makes

    def made(self):
        "All pages, print, tables, figures and the runs that they were made of, as text by path; runs that the study no longer asks for stay, for whoever asks again."
        report = self.clone / "_report" / NAME
        found = {f"report/{p.relative_to(report).as_posix()}": p for p in report.rglob("*")}
        asked = self.settings() if self.study.is_file() else dict(experiments=["*"], seeds=["*"])
        runs = [f"runs/{e}-s{seed}" for e in asked["experiments"] for seed in asked["seeds"]]
        runs = [f"{run}/{inside}" for run in runs for inside in ("*", "maps/*")]
        for where in ("variables.yml", "tables*/**/*", "figures/**/*", *runs):
            found |= {p.relative_to(self.results).as_posix(): p for p in self.results.glob(where)}
        return {
            name: masked(as_text(path), self.base)
            for name, path in sorted(found.items())
            if path.is_file() and is_compared(path)
        }


class Quick(World):
    "A world whose jobs are done one after another, each in a fork, without Snakemake."

    def reproduce(self):
        before, began, said = self.stamps(), time.time(), self.base / "said.txt"
        process = fork(_reproduce, self.clone, self.study, self.results, said)
        process.join()
        self.seconds, self.done = time.time() - began, self.newer(before)
        assert process.exitcode == 0, said.read_text()[-4000:]
        return said.read_text()


def _reproduce(clone, study, results, said):
    "Do what is to be done by the code of a clone, to which this process belongs from now on."
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.chdir(clone)
    sys.path.insert(0, str(clone))
    own = [name for name in sys.modules if name.split(".")[0] == "ssv2_report"]
    for name in own:
        del sys.modules[name]
    for name in own:
        importlib.import_module(name)
    from ssv2_report.jobs.records import set_flags
    from ssv2_report.study.experiments import load_study

    importlib.import_module("torch").set_num_threads(1)
    todo = set_flags(load_study(study), results)
    for job in todo:
        pid = os.fork()  # what a job draws depends on what its process has drawn before
        if not pid:
            _do(study, job, results)
        if os.waitpid(pid, 0)[1]:
            sys.exit(1)
    if not todo:
        print("Nothing to do")


def _do(study, job, results):
    "Do a job and end this process."
    from ssv2_report.jobs.execute import do_job

    code = 1
    try:
        do_job(study, job, results, workers=1)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def dump(path, content):
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def new_world(base, data, kind=World):
    "The study on a copy of a dataset, with none of its results."
    clone(ROOT, base / "clone")
    few_chapters(base / "clone")
    shutil.copytree(data, base / "data")
    (base / f"{NAME}.yaml").write_text(STUDY)
    return kind(base)


def few_chapters(clone):
    "Leave a clone one chapter, wherever its library lists them."
    listed = r"(?ms)^CHAPTERS = \{.*?^\}"
    (home,) = (
        path
        for path in (clone / "ssv2_report" / "jobs").glob("*.py")
        if re.search(listed, path.read_text(encoding="utf-8"))
    )
    few = f"CHAPTERS = {dict([(CHAPTER, CHAPTER)])}"
    home.write_text(re.sub(listed, few, home.read_text(encoding="utf-8")), encoding="utf-8")


def is_compared(path):
    "Not what tells how far a job is, nor executed notebooks, which pages show, nor a user's own."
    told = path.suffix in ("", ".ipynb", ".log") or path.name == "progress.txt"
    return not (told or path.name.startswith(".") or path.stem == "my own")


def as_text(path):
    """A table as CSV, another file of text as it is, a digest of any other.

    What a run's folder says of its title is left out, since a title is no reason to train anew; what pages say of it is not."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv()
    if path.name == "history.csv":
        return pd.read_csv(path, dtype=str).drop(columns=TIMED).to_csv()
    if path.name == "config.yaml":
        return re.sub(r"(?m)^title: .*\n( +.*\n)*", "", path.read_text(encoding="utf-8"))
    if path.suffix == ".safetensors":
        return tensors(path.read_bytes())
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(content):
    "Names, shapes and a digest of the weights in a safetensors file, without its notes."
    end = 8 + int.from_bytes(content[:8], "little")
    shapes = json.loads(content[8:end]) | {"__metadata__": None}
    return f"{shapes} {hashlib.sha256(content[end:]).hexdigest()}"


def masked(text, base):
    "Text without what names paths, and what tells times and memory."
    text = text.replace(str(base), "BASE")
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return text


def differences(found, wanted):
    "A line for each text that is not as it should be: `-` what is there, `+` what should be."
    lines = []
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            lines.append(f"{name}: {'missing' if name in wanted else 'left over'}")
        elif found[name] != wanted[name]:
            texts = (text.splitlines() for text in (found[name], wanted[name]))
            told = [s[:200] for s in unified_diff(*texts, n=0, lineterm="") if s[:2] != "@@"]
            lines.append(f"{name}: {' '.join(told[2:8])}")
    return lines
