"""The command ends a user's mistake in one sentence, and its progress follows the workflow's log."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version

import psutil
import pytest
import yaml
from books import run_as_job
from forked import ssv2
from jobs import heeded
from nbformat.v4 import new_code_cell, new_notebook, writes
from worlds import dump, make

import ssv2_report.cli as cli
from ssv2_report.cli import gpus_to_use
from ssv2_report.demo.world import world_version
from ssv2_report.machine.processes import folder_lock, process_identity
from ssv2_report.plan.check import expected_clips
from ssv2_report.plan.places import check_places, check_writable
from ssv2_report.study.experiments import load_study


@pytest.mark.parametrize(
    "args, says",
    [
        (["reproduce", "demmo"], "did you mean 'demo'"),
        (["train", "demo", "3d-scrach"], "did you mean '3d-scratch'"),
        (["reproduce", "ssv2"], "download Something-Something V2"),
        (["figures", "demo", "--results", "nowhere"], "has no figures yet"),
        (["audit", "nowhere"], "nowhere"),
        (["reproduce", "smoke", "--only", "3d-scrach"], "did you mean '3d-scratch'"),
        (["reproduce", "smoke", "--only", ","], "--only names nothing"),
        (["reproduce", "smoke", "--seeds", "4"], "no seed of smoke '4'; choose from 0."),
        (["reproduce", "smoke", "--set", "lrr=1"], "did you mean 'lr'"),
        (["plan", "smoke", "--set", "epoch=1"], "did you mean 'epochs'"),
        (["train", "smoke", "2d-multi", "--set", "lr=fast"], "lr: input should be a valid number"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_1(args, says):
    done = ssv2(*args)
    assert done.returncode == 1 and says in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_a_path_that_snakemake_would_misread_is_refused(tmp_path):
    done = ssv2("reproduce", "smoke", "--results", str(tmp_path / "{seed}"), "--dry-run")
    assert (
        done.returncode == 1
        and "paths with braces" in done.stderr
        and not (tmp_path / "{seed}").exists()
    )


@pytest.mark.parametrize("name", ["\x1b[31mred \x1b]0;title\x07", "\u202etxt.exe"])
def test_nothing_that_is_said_is_obeyed_by_a_terminal(tmp_path, name):
    done = ssv2("audit", str(tmp_path / name))
    assert done.returncode == 1 and not set("\x1b\x07\u202e") & {*done.stderr, *done.stdout}


def test_names_of_classes_are_not_obeyed_either(tmp_path):
    root = make(tmp_path / "data", 2, 1, 0)
    for path in (root / "labels").glob("*.json"):
        path.write_text(path.read_text().replace("Holding", "\\u001b[31mHolding\\u0007\\u202e"))
    labels = json.loads((root / "labels" / "train.json").read_text())
    labels[1]["template"] = "\x1b[2JNo such"
    dump(root / "labels" / "train.json", labels)
    done = ssv2("audit", root, "--out", tmp_path / "a.json")
    assert "unknown template" in done.stdout
    assert not set("\x1b\x07\u202e") & {*done.stderr, *done.stdout}


def test_a_misspelt_key_is_named(tmp_path):
    study = tmp_path / "mine.yaml"
    study.write_text("title: t\nsedes: [0]\n")
    done = ssv2("reproduce", str(study))
    assert done.returncode == 1 and "did you mean 'seeds'" in done.stderr


def test_results_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write to"):
        check_writable(tmp_path / "file" / "results")
    with pytest.raises(OSError, match="MB free and"):
        check_writable(tmp_path, need=1e18)


def test_real_data_must_be_there(tmp_path):
    study = load_study("ssv2")
    study.data.root = str(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent is not there"):
        check_places(study, tmp_path / "results", tmp_path / "report" / "index.html")


def test_a_notebooks_own_sentence_reaches_the_user(tmp_path):
    with pytest.raises(ValueError, match="There is no study 'nope'") as e:
        run_as_job(
            cli.project_root(),
            "train/train_run",
            tmp_path / "out.ipynb",
            study="nope",
            experiment_name="x",
            results=str(tmp_path),
        )
    assert not (tmp_path / "out.ipynb").exists() and "out.failed.ipynb" in str(e.value)


@pytest.fixture
def project(tmp_path):
    "Write a notebook of one cell into a project of its own; where that is, and the notebook's name."

    def book(source, name="book"):
        path = tmp_path / "project" / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [new_code_cell("x = 0", metadata=dict(tags=["parameters"])), new_code_cell(source)]
        path.write_text(writes(new_notebook(cells=cells)))
        return tmp_path / "project", name

    return book


SPECS = {
    "another program": dict(argv=["false"]),
    "another Python": dict(argv=["/nowhere/python", "-m", "ipykernel", "-f", "{connection_file}"]),
    "another language": dict(argv=["false"], language="R"),
}


@pytest.mark.parametrize("spec", SPECS)
def test_this_interpreter_runs_whatever_jupyter_calls_python3(spec, project, tmp_path, monkeypatch):
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    kernel = dict(display_name="python3", language="python") | SPECS[spec]
    (folder / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    out = tmp_path / "out.ipynb"
    run_as_job(*project("import sys; print(sys.executable, x)"), out, x=3)
    assert f"{sys.executable} 3" in out.read_text()


TREE = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import signal, sys, time; "
         "sys.argv[1] and signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
children = [subprocess.Popen([*sleep, x], start_new_session=bool(x)) for x in ("", "stubborn")]
print("STARTED", *[p.pid for p in children], flush=True)
time.sleep(600)
"""
OUTER = f"""
import subprocess, sys
from ssv2_report.machine.processes import terminating
with subprocess.Popen([sys.executable, "-c", {TREE!r}], stdout=subprocess.PIPE, text=True) as p:
    with terminating(p, grace=1.0):
        print(p.pid, p.stdout.readline(), flush=True)
        p.wait()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_to_the_command_alone_leaves_nothing_running(name):
    process = subprocess.Popen(
        [sys.executable, "-c", OUTER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=heeded,
    )
    pids = [int(word) for word in process.stdout.readline().split() if word != "STARTED"]
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=120)  # what it started would run for 600 s
    assert len(pids) == 3 and process.returncode != 0
    running = [p for p in psutil.process_iter(["status"]) if p.pid in pids]
    assert not [p for p in running if p.info["status"] != psutil.STATUS_ZOMBIE]


def test_which_version(tmp_path):
    done = ssv2("--version")
    assert done.returncode == 0 and done.stdout == f"ssv2 {version('ssv2_report')}\n"


def test_a_dry_run_names_jobs_in_plain_lines(tmp_path):
    done = ssv2("reproduce", "smoke", "--results", str(tmp_path / "results"), "--dry-run")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and {"audit", "train 3d-scratch-s0", "render"} <= set(lines)
    assert all(line == line.strip() and line.count(" ") <= 2 for line in lines), done.stdout


def test_only_the_runs_asked_for_are_started(tmp_path):
    args = ["--results", str(tmp_path), "--dry-run", "--only", "3d-s*,2d-single", "--set", "lr=0.1"]
    done = ssv2("reproduce", "smoke", *args)
    jobs = [line for line in done.stdout.splitlines() if line.startswith(("train", "gradcam"))]
    names = ("2d-single-s0", "3d-scratch-s0")
    assert sorted(jobs) == [f"{step} {n}" for step in ("gradcam", "train") for n in names]
    file = next(tmp_path.glob("studies/*/smoke.yaml"))
    assert {e.lr for e in load_study(file).experiments.values()} == {0.1}


@pytest.mark.parametrize(
    "there, asked, gpus", [(2, None, 2), (2, 1, 1), (2, 0, 0), (0, None, 0), (0, 3, 3)]
)
def test_gpus_are_those_there_are_or_fewer(there, asked, gpus, monkeypatch):
    monkeypatch.setenv("SSV2_GPUS", str(there))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_to_use(load_study("smoke"), asked) == gpus


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setenv("SSV2_GPUS", "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    study = load_study("smoke")
    with pytest.raises(ValueError, match="asks for 3 GPUs, and there are 2"):
        gpus_to_use(study, 3)
    study.experiments["3d-scratch"].gpus_per_run = 4
    with pytest.raises(ValueError, match="'3d-scratch' is to have 4 GPUs and there are 2; set"):
        gpus_to_use(study)


def test_the_worlds_to_make_are_those_of_the_study_and_its_second(tmp_path):
    for name, folders in (("smoke", {"smoke"}), ("demo", {"demo", "demo-distractor"})):
        assert {p.name for p in cli.worlds_to_make(load_study(name))} <= folders


@pytest.mark.parametrize("name, runs, hours", [("ssv2-core", 4, 34), ("ssv2-mini", 6, 21)])
def test_a_study_costs_what_its_file_says(name, runs, hours, capsys):
    cli.plan(name)
    said = re.search(r"All (\d+) runs: ([\d.]+) h", capsys.readouterr().out)
    assert int(said[1]) == runs and abs(float(said[2]) - hours) < 1
    text = (cli.project_root() / "experiments" / f"{name}.yaml").read_text()
    assert f"about {hours} hours" in text


def test_clips_to_expect_are_those_there_or_the_share_of_the_classes(tmp_path):
    study = load_study("ssv2")
    study.data.root = str(tmp_path / "absent")
    count = lambda **kw: expected_clips(
        study.model_copy(update=dict(data=study.data.model_copy(update=kw)))
    )
    assert count() == dict(train=168_913, validation=24_777)
    assert count(classes="static16")["train"] == 168_913 * 16 // 174
    names = ["Closing [something]", "Opening [something]"]
    (tmp_path / "lines").write_text("\n".join(names) + "\n\n")
    (tmp_path / "list.json").write_text(json.dumps(names))
    for classes in (names, str(tmp_path / "lines"), str(tmp_path / "list.json")):
        assert count(classes=classes)["validation"] == 24_777 * 2 // 174
    assert count(classes=names, per_class=5) == dict(train=10, validation=10)
    root = make(tmp_path / "data", train=8, validation=4)
    assert count(root=str(root)) == dict(train=8, validation=4)
    assert expected_clips(load_study("smoke")) == dict(train=40, validation=20)


def test_a_line_of_progress_stays_a_line_in_a_log(tmp_path):
    said = "started  " + "train 3d-inflated-from-weights-of-another-network-s0, " * 4
    program = f"from ssv2_report.cli import console; console.print({said!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == said + "\n"


def test_the_worlds_of_studies_with_and_without_a_second_one(tmp_path):
    study = load_study("smoke")
    study.data.root = str(tmp_path / "first")
    assert cli.worlds_to_make(study) == [tmp_path / "first"]
    study.second_world = "demo-distractor"
    assert [p.name for p in cli.worlds_to_make(study)][0] == "first"
    (tmp_path / "first").mkdir()
    known = tmp_path / "first" / "demo.json"
    known.write_text(json.dumps(dict(version=world_version())))
    assert tmp_path / "first" not in cli.worlds_to_make(study)
    known.write_text(json.dumps(dict(version="of other code")))
    assert tmp_path / "first" in cli.worlds_to_make(study)


def test_a_home_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="Cannot write to .*set HOME to a folder"):
        cli.check_home()


def test_what_jupyter_refuses_is_a_failure(tmp_path, monkeypatch):
    asked = []

    class Refused:
        returncode = 1

    monkeypatch.setattr(cli.subprocess, "run", lambda command: asked.extend(command) or Refused)
    flags = dict(browser=False, ip="0.0.0.0", port=8899, allow_root=True)
    with pytest.raises(ValueError, match="exit code 1"):
        cli.explore("smoke", tmp_path / "results", **flags)
    assert {"--no-browser", "--ip=0.0.0.0", "--port=8899", "--allow-root"} <= set(asked)


def test_every_command_has_help():
    names = [
        "reproduce",
        "demo-data",
        "audit",
        "cache",
        "train",
        "gradcam",
        "reliance",
        "analyse",
        "render",
        "figures",
        "plan",
        "explore",
    ]
    overview = ssv2("--help").stdout
    assert all(n in overview for n in names)
    assert "--results" in ssv2("reproduce", "--help").stdout


HOLD = "import sys, time; from pathlib import Path; from ssv2_report.machine.processes import folder_lock\nwith folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_folder_is_one_living_processs_own(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "results"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError, match=f"results is being worked on by process {process.pid}; wait"
    ):
        with folder_lock(tmp_path / "other", tmp_path / "results"):
            pass
    with folder_lock(tmp_path / "other"):
        pass  # let go of when the second was refused
    process.kill()
    process.communicate()
    with folder_lock(tmp_path / "results") as files:
        assert (
            tmp_path / "results" / ".lock"
        ).read_text() == f"{process_identity(os.getpid())}\n" and len(files) == 1


def test_a_second_world_is_looked_at_before_the_first_is_trained(tmp_path):
    text = (cli.project_root() / "experiments" / "smoke.yaml").read_text()
    for name, more in (("first", "second_world: second.yaml"), ("second", "")):
        (tmp_path / f"{name}.yaml").write_text(f"{text}\n{more}\n")
    wrong = yaml.safe_load((tmp_path / "second.yaml").read_text())
    wrong["data"] |= dict(root="w", classes=["Nonsense"])
    wrong["data"]["demo"]["distractor"] = True
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ValueError, match="'Nonsense' is not a class"):
        cli.reproduce(str(tmp_path / "first.yaml"), tmp_path / "results", dry_run=False)
    assert not list((tmp_path / "results").glob("**/*.ipynb"))
