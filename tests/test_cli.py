"""The command ends a user's mistake in one sentence, and its progress follows the workflow's log."""

import os
import subprocess
import sys

import pytest

from ssv2_report.cli import Tracker, alone, check_data, check_writable, run_notebook
from ssv2_report.study.experiments import load_study

LOG = """Job stats:
job          count
---------  -------
train            2
render           1
all              1
total            4

localrule train:
    input: a
    jobid: 3
    wildcards: experiment=2d-multi, seed=0
some output
Finished jobid: 3 (Rule: train)
localrule render:
    jobid: 1
Error in rule render:
    jobid: 1
ssv2: a sentence
"""


def ssv2(*args):
    return subprocess.run(
        [sys.executable, "-m", "ssv2_report.cli", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.mark.parametrize(
    "args, says",
    [
        (["reproduce", "demmo"], "did you mean 'demo'"),
        (["train", "demo", "3d-scrach"], "did you mean '3d-scratch'"),
        (["chapter", "demo", "99"], "no chapter '99'"),
        (["reproduce", "ssv2"], "download Something-Something V2"),
        (["figures", "demo", "--results", "nowhere"], "has no figures yet"),
        (["audit", "nowhere"], "nowhere"),
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
        check_data(study)


def test_a_notebooks_own_sentence_reaches_the_user(tmp_path):
    with pytest.raises(ValueError, match="There is no study 'nope'") as e:
        run_notebook(
            "train/train_run",
            tmp_path / "out.ipynb",
            study="nope",
            experiment_name="x",
            results=str(tmp_path),
        )
    assert not (tmp_path / "out.ipynb").exists() and "out.failed.ipynb" in str(e.value)


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


def test_progress_follows_the_log(tmp_path):
    t = Tracker(load_study("demo"), tmp_path)
    events = [e for line in LOG.splitlines() if (e := t.feed(line))]
    assert [e.split(" in ")[0] for e in events] == [
        "started  train 2d-multi-s0",
        "finished train 2d-multi-s0",
        "started  render",
    ]
    assert t.todo == dict(train=1, render=1, all=1) and t.jobs == {} and t.errors == ["a sentence"]
    share, text = t.state(cores=2)
    assert 0 < share < 1 and "min left" in text


HOLD = "import sys, time; from pathlib import Path; from ssv2_report.cli import alone\nwith alone(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_a_folder_is_one_living_processs_own(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "results"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(
        ValueError, match=f"results is being worked on by process {process.pid}; wait"
    ):
        with alone(tmp_path / "other", tmp_path / "results"):
            pass
    with alone(tmp_path / "other"):
        pass  # let go of when the second was refused
    process.kill()
    process.communicate()
    with alone(tmp_path / "results") as files:
        assert (tmp_path / "results" / ".lock").read_text() == f"{os.getpid()}\n" and len(
            files
        ) == 1
