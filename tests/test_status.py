"""What a run's folder says of it in every state."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output

from ssv2_report.cli import status
from ssv2_report.plan.status import row_of, state_of, status_of
from ssv2_report.study.experiments import load_study
from ssv2_report.train import progress_of


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "3d-scratch-s0"
    folder.mkdir(parents=True)
    return folder


def write(run, name, age=0.0, text=""):
    "A file of a run that was written so many seconds ago."
    (run / name).write_text(text)
    os.utime(run / name, (time.time() - age,) * 2)


def notebook(run, step, error="", age=0.0):
    "A notebook that did not end: with an error, or killed."
    outputs = [new_output("error", ename="ValueError", evalue=error)] if error else []
    book = new_notebook(cells=[new_code_cell("fit()", outputs=outputs)])
    write(run, f"{step}_run.failed.ipynb", age, nbformat.writes(book))


def line(epoch=2):
    "What a training says of itself in the middle of its third epoch."
    told = SimpleNamespace(
        **dict(totals=torch.tensor([50.0, 10.0, 100.0]), history=[{}] * epoch, step=24, steps=10),
        **dict(exp=SimpleNamespace(epochs=5), spent=dict(train=2.0, wait=0.5)),
    )
    return progress_of(told, rate=6.0)


def history(run, epochs):
    rows = [dict(epoch=k + 1, val_top1=0.1 * k, clips_per_s=80.4, waiting=0.031) for k in range(5)]
    pd.DataFrame(rows[:epochs]).to_csv(run / "history.csv", index=False)


HOLD = """
import sys, time
from pathlib import Path
from ssv2_report.machine.processes import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(run):
    "A process at work on the run."
    command = [sys.executable, "-c", HOLD, str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_that_nobody_began_waits(run):
    assert row_of(run, 5)["state"] == state_of(run / "absent") == "waiting"


def test_a_run_at_work_is_starting_then_running_then_stopped_where_it_is_killed(run, held):
    history(run, 1)
    write(run, "progress.txt", age=3600, text=line())  # of an earlier call
    assert state_of(run) == "starting"
    (run / "progress.txt").write_text(line())
    row = row_of(run, 5)
    assert row["state"] == "running" and row["epoch"] == "3/5" and row["rate"] == "50"
    assert row["waiting"] == "25%" and row["left"] == "3 min"
    held.kill()
    held.wait()
    write(run, "progress.txt", age=60, text=line())
    notebook(run, "train")
    assert state_of(run) == "stopped" and row_of(run, 5)["left"] == ""


def test_on_another_machine_its_line_is_the_sign_of_life(run):
    write(run, ".lock", age=100, text="4194999:1.0\n")  # no process of this machine
    write(run, "progress.txt", age=2, text=line())
    assert state_of(run) == "running"
    write(run, "progress.txt", age=60, text=line())
    (run / "checkpoint").mkdir()
    assert state_of(run) == "stopped"


def test_a_process_that_came_later_is_not_the_one_that_was_named(run):
    write(run, ".lock", age=1, text=f"{os.getpid()}:1.0\n")
    assert state_of(run) == "waiting"


@pytest.mark.parametrize(
    "error, state",
    [
        ("The loss is nan by step 7; lower lr", "failed"),
        ("Stopped by SIGTERM at step 3 of 50; the checkpoint is written", "stopped"),
        ("", "stopped"),
    ],
)
def test_the_last_error_is_said(run, error, state):
    notebook(run, "train", error)
    row = row_of(run, 5)
    assert (row["state"], row["error"]) == (state, error)


def test_a_finished_run_is_done_and_so_are_its_maps(run):
    history(run, 5)
    write(run, "progress.txt", age=5, text=line())
    write(run, "metrics.json")
    write(run, "gradcam_run.ipynb", age=2)
    notebook(run, "reliance", "no boxes", age=1)
    row = row_of(run, 5)
    assert row["state"] == "done" and row["epoch"] == "5/5" and row["top1"] == "40.0%"
    assert row["gradcam"] == "done" and row["reliance"] == "failed" and row["error"] == "no boxes"
    notebook(run, "gradcam", age=0)  # again, and not yet at its end
    assert row_of(run, 5)["gradcam"] == "begun"
    write(run, "progress.txt", text=line())  # trained anew
    assert state_of(run) == "running"


def test_the_command_shows_every_run_of_both_worlds(run, capsys):
    results = run.parents[1]
    notebook(run, "train", "The disk is full")
    assert len(status_of(load_study("demo"), results)) == 8
    status("demo", results)
    said = capsys.readouterr().out
    assert "demo: 7 waiting, 1 failed" in said and "distractor/2d-multi-s0" in said
    assert "3d-scratch-s0: The disk is full" in said


def test_what_a_notebook_said_is_nothing_that_a_terminal_obeys(run, tmp_path, capsys):
    notebook(run, "train", error="\x1b[31mbad\x1b[0m \x1b]0;title\x07 clip")
    status("smoke", tmp_path)
    said = capsys.readouterr().out
    assert "bad" in said and "clip" in said
    assert not [c for c in said if not c.isprintable() and c != "\n"]
