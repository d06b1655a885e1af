"""Progress follows the events of Snakemake's log, its estimate the order of the jobs, and a failed job is heard."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import pytest
from worlds import official, write_study

from ssv2_report.jobs import workflow
from ssv2_report.jobs.durations import (
    expected_seconds,
    needs_of,
    seconds_of_steps,
    sizes_of,
    time_left,
)
from ssv2_report.jobs.steps import Job
from ssv2_report.jobs.workflow import (
    EVENTS,
    Tracker,
    follow,
    log_events_as_json,
    pending_jobs,
    run_workflow,
)
from ssv2_report.study.experiments import load_study


def event(kind, jobid=None, rule=None, **wildcards):
    ended = kind == "job_finished"
    return dict(
        event=kind,
        jobid=None if ended else jobid,
        job_id=jobid if ended else None,
        rule_name=rule,
        wildcards=wildcards,
        log=None,
    )


@pytest.fixture
def tracker(tmp_path):
    study = load_study("demo")
    return Tracker(pending_jobs(study, tmp_path), needs_of(study, tmp_path), cores=2)


def test_events_are_told_and_counted(tracker):
    told = [
        tracker.feed(e)
        for e in (
            event("job_info", 3, "train", experiment="2d-multi", seed="0"),
            event("job_info", 4, "distractor_train", experiment="2d-multi", seed="0"),
            event("job_info", 0, "all"),
            event("progress"),
            event("job_finished", 3),
            event("job_finished", 0),
        )
    ]
    assert (
        told[:4]
        == ["started  train 2d-multi-s0", "started  distractor train 2d-multi-s0"] + [None] * 2
    )
    assert told[4].startswith("finished train 2d-multi-s0 in ") and told[5] is None
    assert list(tracker.running) == ["distractor_train 2d-multi-s0"]
    share, text = tracker.state()
    epochs = load_study("demo-distractor").experiments["2d-multi"].epochs
    assert 0 < share < 1
    assert text.startswith(f"distractor train 2d-multi-s0 epoch 0/{epochs}; about ")


def test_every_job_of_the_plan_is_one_that_the_workflow_can_start(tracker):
    assert set(tracker.jobs) == set(tracker.needs) == set(tracker.seconds)
    assert "distractor_sources 3d-inflated-s0" in tracker.needs["validation"]
    assert len(pending_jobs(load_study("smoke"), "/nowhere")) < len(tracker.jobs)


@pytest.mark.parametrize("text, epochs", [("", 0), ("epoch\n", 0), ("epoch\n1\n", 1)])
def test_epochs_are_counted_from_none(tracker, tmp_path, text, epochs):
    history = tmp_path / "runs" / "2d-multi-s0" / "history.csv"
    history.parent.mkdir(parents=True)
    history.write_text(text)
    assert tracker.epochs("train 2d-multi-s0") == (
        epochs,
        load_study("demo").experiments["2d-multi"].epochs,
    )


def test_a_failed_job_says_why_or_where(tracker, tmp_path):
    log = tmp_path / "it.log"
    log.write_text("much\nssv2: a sentence\n")
    tracker.feed(event("job_info", 1, "audit"))
    tracker.feed(event("job_error", 1, "audit") | dict(log=[str(log)]))
    log.write_text("much\n")
    tracker.feed(event("job_info", 2, "cache"))
    tracker.feed(event("job_error", 2, "cache") | dict(log=[str(log)]))
    assert tracker.errors == ["a sentence", f"cache failed; its log is {log}."]
    assert not tracker.running


@pytest.mark.parametrize(
    "before, said",
    [
        (
            lambda log: log.write_text(""),
            "cache ended without a word: it was killed, .* its log {log} ",
        ),
        (
            lambda log: None,
            "cache ended without a word: it was killed, .* its log {log} was removed",
        ),
        (
            lambda log: log.write_text("OSError: [Errno 28] No space left on device\n"),
            "cache failed: The disk of {log.parent} takes no more",
        ),
    ],
)
def test_a_failed_job_without_a_word_is_explained(tracker, tmp_path, before, said):
    log = tmp_path / "logs" / "it.log"
    log.parent.mkdir()
    before(log)
    tracker.feed(event("job_info", 2, "cache"))
    tracker.feed(event("job_error", 2, "cache") | dict(log=[str(log)]))
    assert re.match(said.format(log=log), tracker.errors[0]), tracker.errors


def test_a_full_disk_explains_a_log_without_a_word(tracker, tmp_path, monkeypatch):
    log, usage = tmp_path / "it.log", shutil.disk_usage(tmp_path)
    log.touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    tracker.feed(event("job_error", 2, "cache") | dict(log=[str(log)]))
    assert "takes no more (0 MB are free" in tracker.errors[0]


def test_what_is_left_is_as_long_as_its_order_allows():
    needs = dict(a=[], b=[], c=["a", "b"], cache=["c"], d=["cache"])
    seconds = dict(a=10, b=4, c=5, cache=8, d=3)
    assert time_left(seconds, needs, 1) == 30
    assert time_left(seconds, needs, 2) == 10 + 5 + 4 + 3
    assert time_left(dict(d=3, b=4), needs, 2) == 4
    assert time_left({}, needs, 2) == 0
    beside = dict(distractor_cache=[], b=[])
    assert time_left(dict(distractor_cache=8, b=4), beside, 2) == 8
    assert time_left(dict(distractor_cache=8, b=4), beside, 4) == 4


def test_the_estimate_follows_the_machine(tracker):
    names = [name for name in tracker.needs if "demo_data" in name or "audit" in name]
    before = tracker.state()[1]
    on_both = lambda name: 1 if name.startswith("distractor_") else 2
    tracker.took = {name: 3 * tracker.seconds[name] / on_both(name) for name in names}
    minutes = [
        float(text.split("about ")[1].split(" ")[0]) for text in (before, tracker.state()[1])
    ]
    assert 2 < minutes[1] / minutes[0] < 3


def test_longer_work_is_expected_to_take_longer():
    study = load_study("demo")
    cost = lambda *job: expected_seconds(study, Job(*job), sizes_of(study))
    costs = [cost("train", e, 0) for e in ("2d-single", "3d-scratch")]
    assert costs[0] < costs[1] and cost("render") < costs[0]


TOOK = {  # seconds from start to end of each job of a study of nine clips a split, on two busy cores
    "audit": (2.6, 15.5),
    "cache": (15.6, 19.6),
    "train 2d-multi 0": (19.6, 29.1),
    "train r(2+1)d 0": (19.6, 29.6),
    "train 2d-multi 1": (29.1, 36.4),
    "train r(2+1)d 1": (29.6, 37.3),
    "reliance 2d-multi 0": (36.4, 43.1),
    "reliance r(2+1)d 1": (43.1, 50.3),
    "reliance r(2+1)d 0": (50.3, 57.3),
    "reliance 2d-multi 1": (57.3, 63.4),
    "sources r(2+1)d 0": (37.3, 52.4),
    "gradcam r(2+1)d 0": (52.4, 67.5),
    "sources 2d-multi 0": (63.4, 73.7),
    "gradcam 2d-multi 0": (73.7, 83.9),
    "sources r(2+1)d 1": (67.5, 79.3),
    "gradcam r(2+1)d 1": (79.3, 91.2),
    "sources 2d-multi 1": (84.0, 92.2),
    "gradcam 2d-multi 1": (92.2, 100.4),
    "validation": (100.5, 114.0),
    "analysis": (114.0, 155.6),
    "data_chapter": (100.4, 113.8),
    "render": (155.6, 180.9),
}


def told(study, results, monkeypatch, slower=1.0):
    "Minutes left that are told every five seconds while `TOOK` happens, beside those that were."
    now = [0.0]
    monkeypatch.setattr(workflow.time, "monotonic", lambda: now[0])
    tracker = Tracker(pending_jobs(study, results), needs_of(study, results), cores=2)
    events = [(t, k, job) for job, ends in TOOK.items() for k, t in enumerate(ends)]
    ids, rows, end = {job: k for k, job in enumerate(TOOK)}, [], 181.0
    while now[0] < end * slower:
        while events and min(events)[0] * slower <= now[0]:
            events.remove(next_one := min(events))
            rule, *of = next_one[2].split()
            kind = "job_finished" if next_one[1] else "job_info"
            tracker.feed(event(kind, ids[next_one[2]], rule, **dict(zip("ab", of))))
        minutes = re.search(r"(?:about|at most) ([\d.]+) min left", tracker.state()[1])
        rows.append(((end * slower - now[0]) / 60, float(minutes[1])))
        now[0] += 5
    return rows


@pytest.fixture
def small(tmp_path):
    data = official(tmp_path / "data", train=3, validation=3)
    return load_study(str(write_study(tmp_path / "few.yaml", data))), tmp_path / "results"


@pytest.mark.parametrize("slower", [0.5, 1, 2])
def test_the_time_left_of_a_dozen_clips_is_right_to_a_factor_of_two(small, monkeypatch, slower):
    "After the first minute on a machine as fast, and from a quarter of the run on machines twice as fast and as slow; a quarter of a minute is right at the end."
    rows = told(*small, monkeypatch, slower)
    first = 60 if slower == 1 else 0.25 * 181 * slower
    for true, said in rows[int(first / 5) :]:
        assert true / 2 - 0.25 < said < 2 * true + 0.25
    assert rows[0][1] < 12, "not the time of the whole dataset"


def test_former_runs_say_how_fast_this_machine_is(small, monkeypatch):
    "The files of a run that took three times as long: from its first second the next one is told right."
    study, results = small
    fresh = told(study, results, monkeypatch)[0][1]
    for name, (start, end) in TOOK.items():
        rule, *of = name.split()
        job = "-".join([rule, "-s".join(of)]).strip("-")
        (path := results / "benchmarks" / f"{job}.tsv").parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{3 * (end - start)}\t0\n")
    (results / "benchmarks" / "render.tsv").write_text("")  # as it is while a job runs
    slow = told(study, results, monkeypatch, 3)
    assert slow[0][1] > 2 * fresh
    for true, said in slow:
        assert true / 2 - 0.5 < said < 2 * true + 0.5


def test_a_study_is_as_long_as_its_own_clips(small, tmp_path):
    study, _ = small
    assert sizes_of(study) == dict(train=9, validation=10, classes=3)
    cost = lambda s, *job: expected_seconds(s, Job(*job), sizes_of(s))
    whole = study.model_copy(deep=True)
    whole.data.root = str(tmp_path / "absent")
    for job in (("train", "2d-multi", 0), ("gradcam", "2d-multi", 0), ("cache",), ("audit",)):
        assert 100 * cost(study, *job) < 10 * cost(whole, *job)
    (tmp_path / "data" / "labels" / "train.json").write_text("[")
    assert sizes_of(study)["train"] == 168_913


def test_reading_the_workflow_imports_no_torch():
    program = "import sys, ssv2_report.jobs.workflow as w; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program + " and 'pandas' not in sys.modules"], check=True)


def test_snakemakes_records_arrive_as_lines_of_json(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setenv(EVENTS, str(write))
    logger = logging.Logger("snakemake")
    log_events_as_json(logger)
    assert EVENTS not in os.environ, "no job is to write there"
    logger.info("for people")
    logger.info("", extra=dict(event="job_info", jobid=7, rule_name="audit", wildcards={}, log=[]))
    logger.handlers[0].stream.close()
    with os.fdopen(read) as lines:
        (line,) = lines
    found = json.loads(line)
    assert found["event"] == "job_info" and found["jobid"] == 7 and found["log"] == []


def test_without_a_pipe_nothing_is_told(monkeypatch):
    monkeypatch.delenv(EVENTS, raising=False)
    logger = logging.Logger("snakemake")
    log_events_as_json(logger)
    assert not logger.handlers


def test_following_ends_with_the_events(tracker, capsys):
    lines = [json.dumps(event("job_info", 1, "audit")), json.dumps(event("job_finished", 1))]
    follow(io.StringIO("\n".join(lines) + "\n"), tracker)
    assert list(tracker.took) == ["audit"]


def test_a_workflow_that_never_begins_shows_its_log(tracker, tmp_path):
    command = [sys.executable, "-c", "import sys; print('no such rule'); sys.exit(1)"]
    with pytest.raises(ValueError, match="The workflow failed; its log is .*\nno such rule"):
        run_workflow(command, tracker, tmp_path / "reproduce.log", gpus=0)


@pytest.mark.parametrize(
    "code, said",
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "^Snakemake, .* was ended by SIGKILL, as the system",
        ),
        ("raise OSError(28, 'No space left on device')", "^The disk of .*results takes no more "),
    ],
)
def test_a_workflow_that_ends_without_its_jobs_says_why(code, said, tracker, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    command = [sys.executable, "-c", f"import os, shutil, signal, sys; {code}", str(results)]
    with pytest.raises(ValueError, match=said) as e:
        run_workflow(command, tracker, results / "reproduce.log", gpus=0)
    assert "\n" not in str(e.value)


def test_seconds_are_summed_by_step_the_longest_first(tmp_path):
    files = {
        "benchmarks/train-2d-multi-s0": 5,
        "benchmarks/train-3d-scratch-s0": 7,
        "distractor/benchmarks/sources-2d-multi-s0": 2,
        "benchmarks/data_chapter": 30,
    }
    for name, seconds in files.items():
        path = tmp_path / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:0\t1\n")
    rows = seconds_of_steps(load_study("demo"), tmp_path)
    assert [tuple(row.values()) for row in rows] == [
        ("data_chapter", 1, 30),
        ("train", 2, 12),
        ("distractor_sources", 1, 2),
    ]


def test_a_step_is_one_row_and_the_report_shows_those_it_needs(monkeypatch, tmp_path):
    from ssv2_report.jobs import steps

    study, shown = load_study("smoke"), set(steps.pages_of(load_study("smoke"), tmp_path))
    row = steps.Step("the summary", needs=("analysis",), notebook="analysis/summary_run")
    monkeypatch.setitem(steps.STEPS, "summary", row)
    assert steps.jobs_of(study)[Job("summary")] == [Job("analysis")]
    assert set(steps.pages_of(study, tmp_path)) == shown
    render = steps.STEPS["render"]
    monkeypatch.setitem(steps.STEPS, "render", render._replace(needs=(*render.needs, "summary")))
    assert set(steps.pages_of(study, tmp_path)) == shown | {"summary_run"}
