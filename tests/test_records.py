"""What a run reads is what the command read; what it left is known by content; what is not its own stays."""

import json
import os
import shutil
from pathlib import Path

import pytest
import test_digests as toy
import yaml
from test_digests import DOWN, bring_up_to_date, change_boxes, finished, whole  # noqa: F401

from ssv2_report.jobs.durations import needs_of
from ssv2_report.jobs.records import (
    delete_outputs,
    job_written,
    run_if_stale,
    stale_jobs,
)
from ssv2_report.jobs.steps import Job
from ssv2_report.jobs.workflow import Tracker, pending_jobs, pending_lines
from ssv2_report.study.experiments import (
    load_study,
    narrowed_study,
    worlds_of,
    write_studies,
)

WEIGHTS = "runs/{}-s0/weights.safetensors"


def in_place(path, content):
    "Other content of the same length and with the same time."
    before = path.stat()
    with open(path, "r+b") as f:
        f.write(content[: before.st_size].ljust(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_weights_that_were_put_back_are_noticed(whole):  # noqa: F811
    study, results = whole
    path = results / WEIGHTS.format("2d-multi")
    shutil.copy2(path, kept := results.parent / "kept")
    toy.change_lr(study, results)
    bring_up_to_date(study, results)
    shutil.copy2(kept, path)
    assert {"train-2d-multi-s0"} <= set(bring_up_to_date(study, results))


def test_weights_of_the_same_size_and_time_are_noticed(whole):  # noqa: F811
    study, results = whole
    in_place(results / WEIGHTS.format("3d-scratch"), b"others")
    assert stale_jobs(study, results)[Job("train", "3d-scratch", 0)]


def test_weights_and_tables_that_were_exchanged_are_noticed(whole):  # noqa: F811
    study, results = whole
    for names in (
        [WEIGHTS.format("2d-multi"), WEIGHTS.format("3d-scratch")],
        [f"tables/{name}.csv" for name in list(study.hypotheses)[:2]],
    ):
        a, b = (results / name for name in names)
        before = stale_jobs(study, results)
        a.rename(results / "aside")
        b.rename(a)
        (results / "aside").rename(b)
        if a.read_bytes() != b.read_bytes():
            assert len(stale_jobs(study, results)) > len(before), names


def test_files_of_the_users_own_stay_whatever_is_redone(whole):  # noqa: F811
    study, results = whole
    maps = results / "runs" / "3d-scratch-s0" / "maps"
    own = [results / "tables" / "mine.csv", results / "figures" / "mine" / "a.svg", maps / "my.npz"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert stale_jobs(study, results) == {}, "nothing of the study is changed"
    for change in (toy.change_title, toy.change_sources):
        change(study, results)
        bring_up_to_date(study, results)
    study.cam.cases = 2
    with pytest.raises(KeyboardInterrupt), run_if_stale(study, results, Job("analysis")):
        raise KeyboardInterrupt
    bring_up_to_date(study, results)
    assert [path.read_text() for path in own] == ["mine"] * 3
    assert not (results / "figures" / "case5.svg").exists(), "what the study has no more goes"
    own[0].write_text("mine, changed")
    assert stale_jobs(study, results) == {}


def test_what_a_study_has_no_more_goes_but_for_the_users_own(whole):  # noqa: F811
    study, results = whole
    study.seeds = [0, 1]
    bring_up_to_date(study, results)
    mine = results / "tables_validation" / "mine.csv"
    mine.write_text("mine")
    delete_outputs(study, results, Job("validation"))
    assert [p.name for p in mine.parent.iterdir()] == ["mine.csv"]


def lines_of(study, results):
    return pending_lines(pending_jobs(study, results), needs_of(study, results))


def test_a_dry_run_says_what_depends_on_what(whole):  # noqa: F811
    study, results = whole
    path = Path(study.data.root) / "labels" / "train.json"
    path.write_text(path.read_text().replace("placeholders", "placeholders ", 1))
    lines = lines_of(study, results)
    assert "audit: data changed" in lines
    assert "cache, if the findings changed" in lines
    assert "train 2d-multi-s0, if the frames changed" in lines
    assert "train 3d-inflated-s0, if the frames or the weights changed" in lines
    assert (
        "analysis, if the findings or the weights or the sources of maps or the maps or the reliance changed"
        in lines
    )
    toy.change_lr(study, results)
    assert "train 2d-multi-s0: settings changed" in lines_of(study, results)
    assert lines_of(study, results / "nowhere")[0] == "audit"


def test_a_job_that_had_nothing_to_do_is_unchanged(whole):  # noqa: F811
    study, results = whole
    change_boxes(study, results)
    pending = pending_jobs(study, results)
    tracker = Tracker(pending, needs_of(study, results), cores=2)
    event = dict(jobid=None, job_id=None, log=None)
    said = {}
    for k, name in enumerate(("audit", "cache")):
        tracker.feed(event | dict(event="job_info", jobid=k, rule_name=name, wildcards={}))
        assert "at most" in tracker.state()[1]
        with run_if_stale(study, results, pending[name].job) as todo:
            if todo:
                toy.do(study, results, pending[name].job)
        said[name] = tracker.feed(event | dict(event="job_finished", job_id=k))
    assert said["audit"].startswith("finished audit in ") and said["cache"] == "unchanged cache"


def test_a_record_that_is_written_anew_is_of_another_time(whole, tmp_path):  # noqa: F811
    study, results = whole
    before = job_written(results, Job("analysis"))
    toy.change_title(study, results)
    assert set(bring_up_to_date(study, results)) == DOWN
    assert job_written(results, Job("analysis")) > before and not job_written(tmp_path, Job("x"))


def test_jobs_read_the_study_as_the_command_read_it(tmp_path):
    "Also its second world, and the file of classes that it names."
    content = yaml.safe_load((toy.records.project_root() / "experiments/smoke.yaml").read_text())
    classes = tmp_path / "classes.txt"
    classes.write_text("Holding something\nPushing something from left to right\n")
    content["data"] = dict(root="data", classes="classes.txt")
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(content | dict(hypotheses={})))
    content["second_world"] = "second.yaml"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    studies = narrowed_study(tmp_path / "study.yaml")
    file = write_studies(studies, tmp_path / "studies")
    listed = classes.read_text()
    for path in (tmp_path / "study.yaml", tmp_path / "second.yaml", classes):
        path.write_text("broken: [")
    found = worlds_of(load_study(file))
    assert [w.experiments for w in found] == [w.experiments for w in studies]
    assert [Path(w.data.classes).read_text() for w in found] == [listed] * 2
    assert found[0].data.root == str(tmp_path / "data") and found[0].name == "study"
    assert write_studies(found, tmp_path / "studies") == file, "it is read as often as need be"


def test_a_study_is_the_same_to_its_records_by_its_own_file_and_as_it_was_read(whole, tmp_path):  # noqa: F811
    study, results = whole
    path = tmp_path / f"{study.name}.yaml"
    path.write_text(
        yaml.safe_dump(json.loads(study.model_dump_json(exclude={"name"})), sort_keys=False)
    )
    again = load_study(write_studies([load_study(path)], tmp_path / "studies"))
    assert stale_jobs(again, results) == {}


def test_a_title_a_hypothesis_and_the_number_of_cases_leave_the_validation(whole):  # noqa: F811
    study, results = whole
    study.seeds = [0, 1]
    bring_up_to_date(study, results)
    toy.change_title(study, results)
    study.hypotheses.pop(next(iter(study.hypotheses)))
    study.cam.cases += 1
    assert set(bring_up_to_date(study, results)) == DOWN
    study.experiments["2d-multi"].title = "Another, which its figures name"
    assert set(bring_up_to_date(study, results)) == {"validation", *DOWN}
