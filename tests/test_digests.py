"""What is done again after a change: all that depends on it, and nothing else."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssv2_report.data import contents
from ssv2_report.data.audit import audit
from ssv2_report.data.basics import atomic_write as written_whole
from ssv2_report.data.contents import Files, dataset_digest
from ssv2_report.demo.world import make_world
from ssv2_report.jobs import records
from ssv2_report.jobs.records import (
    files_of,
    input_digests,
    record,
    refuse_stale_runs,
    run_if_stale,
    set_flags,
)
from ssv2_report.jobs.steps import Job, jobs_of
from ssv2_report.study.experiments import load_study, sub_study
from ssv2_report.study.runs import cache_of, clips_of, file_of

RUNS = ("2d-single", "2d-multi", "3d-scratch", "3d-inflated")


def do(study, results, job, inner=False):
    "Stands for the step of a job: files whose content follows from what decides it, as long as that is not prose."
    if job.step == "audit":
        audit(study.data.root, workers=1).save(results / "audit.json")
    elif job.step == "cache":
        for split in ("train", "validation"):
            cache_of(study, clips_of(study, split, results), results, workers=1)
    else:
        by = input_digests(study, results, job, Files(), inner)
        by = {k: v for k, v in by.items() if not k.startswith("code ")}  # as other code might
        for path in written(study, results, job):
            with written_whole(path) as part:
                part.write_text(NOTEBOOK if path.suffix == ".ipynb" else str(by))


def written(study, results, job):
    "The files that a step writes: those of every study, and those that its settings name."
    folder, named = Path(results) / "runs" / f"{job.of}-s{job.seed}" / "maps", []
    if job.step == "gradcam":
        sources = study.cam.sources or ["layer1:gradcam", "layer2:layercam"]
        named = [folder / file_of(source) for source in sources]
    if job.step == "analysis":
        named = [results / "figures" / f"case{k}.svg" for k in range(study.cam.cases)]
        named += [results / "tables" / f"{name}.csv" for name in study.hypotheses]
    if job.step == "validation":
        second = study.second_world and ["validation.csv"]
        named = [results / "tables_validation" / x for x in ["checks.csv", *(second or [])]]
    if job.step == "render":
        return []
    folders = {"maps", "tables", "figures", "tables_validation"}
    others = (p for p in files_of(study, results, job) if not folders & {*p.parts})
    return [*others, *named]


NOTEBOOK = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


def bring_up_to_date(study, results, inner=False):
    "As the workflow does it, and `ssv2 analyse`; the names of the jobs that were done."
    done = []
    if study.second_world and not inner:
        second = load_study(study.second_world)
        done = [f"distractor {x}" for x in bring_up_to_date(second, results / "distractor", True)]
    for job in set_flags(study, results, inner):
        with run_if_stale(study, results, job, inner) as todo:
            if todo:
                do(study, results, job, inner)
                done.append(job.name)
    return done


def small_study(base):
    "A study of a dataset like any other."
    study = load_study("smoke")
    study.name = "of digests"
    study.data.root, study.data.size, study.data.demo = str(base / "data"), 32, None
    make_world(study.data.root, 1, 1, size=64, workers=1)
    (base / "data" / "demo.json").unlink()
    return study


@functools.cache
def finished_study(folder):
    "The folder of a finished study and the study, made in `folder` for all modules whose tests ask for it."
    base = folder / "finished"
    study = small_study(base)
    done = bring_up_to_date(study, base / "results")
    assert done == [job.name for job in jobs_of(study)]
    return base, study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_study(tmp_path_factory.getbasetemp())


@pytest.fixture
def whole(finished, tmp_path):
    "A copy of the finished study, which is as good as the study."
    base, study = finished
    shutil.copytree(base, tmp_path / "copy")
    study = study.model_copy(deep=True)
    study.data.root = str(tmp_path / "copy" / "data")
    return study, tmp_path / "copy" / "results"


def of(step, *runs):
    return {f"{step}-{run}-s0" for run in runs or RUNS}


def test_deciding_what_to_do_needs_no_torch():
    code = "import sys, ssv2_report.cli; sys.exit(bool({'torch', 'pandas'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("clips", [2_000, pytest.param(220_847, marks=pytest.mark.slow)])
def test_an_unchanged_dataset_is_known_without_being_read(tmp_path, monkeypatch, clips):
    media = tmp_path / "data" / "20bn-something-something-v2"
    media.mkdir(parents=True)
    for k in range(clips):
        (media / f"{k}.webm").write_text(str(k))

    def digest_now():
        files = Files(tmp_path / "results")
        try:
            return dataset_digest(tmp_path / "data", files)
        finally:
            files.save()

    known = digest_now()
    read = []
    content = contents._content
    monkeypatch.setattr(contents, "_content", lambda path: read.append(path) or content(path))
    began = time.process_time()
    assert digest_now() == known and not read
    seconds = time.process_time() - began
    print(f"{clips:,} clips in {seconds:.1f} s of computing")
    assert seconds < 60
    changed = media / "7.webm"
    changed.write_text("8")
    assert digest_now() != known and read == [str(changed)]


def test_frames_are_read_again_where_one_of_them_changed(tmp_path, monkeypatch):
    root, files = tmp_path / "data", Files()
    clip = root / "frames" / "1"
    clip.mkdir(parents=True)
    for k in (1, 2, 3):
        (clip / f"{k:05}.jpg").write_text(str(k))
    (clip / "00004.jpg").symlink_to("nowhere")
    known = dataset_digest(root, files)
    read = []
    content = contents._content
    monkeypatch.setattr(contents, "_content", lambda path: read.append(path) or content(path))
    assert dataset_digest(root, files) == known and not read
    (clip / "00001.jpg").touch()
    assert dataset_digest(root, files) == known and read, "the time is a first filter"
    times = os.stat(clip)
    (clip / "00002.jpg").write_text("3")  # in place, which changes no time of the folder
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert dataset_digest(root, files) != known
    (clip / "00002.jpg").write_text("2")
    assert dataset_digest(root, files) == known
    (clip / "00003.jpg").rename(clip / "00005.jpg")
    assert dataset_digest(root, files) != known
    assert dataset_digest(shutil.copytree(root, tmp_path / "c", symlinks=True)) != known


DAMAGES = ["", "[]", "3", "{}", '{"decides": 1, "files": 2, "results": 3}', "\0\0", "[[1, 2]]"]


@pytest.mark.parametrize("text", DAMAGES)
@pytest.mark.parametrize("name", ["records/files.json", "records/cache.json"])
def test_a_damaged_record_is_only_made_again(whole, name, text):
    study, results = whole
    (results / name).write_text(text)
    redone = {"cache"} if "cache" in name else set()
    assert set(bring_up_to_date(study, results)) == redone
    assert bring_up_to_date(study, results) == []


def test_what_remembers_digests_may_be_of_another_version(whole):
    study, results = whole
    path = results / "records" / "files.json"
    path.write_text(json.dumps({k: [1, 2, v[-1]] for k, v in json.loads(path.read_text()).items()}))
    assert bring_up_to_date(study, results) == []


def test_hidden_files_are_nobodys_result(whole):
    "Locks, which name other processes each time, and what a kill left half-written."
    study, results = whole
    report = records.project_root() / "_report" / study.name
    for folder in (report, results / "tables", results / "runs" / "2d-multi-s0" / "maps"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".123.part").write_text("x")
    assert bring_up_to_date(study, results) == []
    change_title(study, results)
    bring_up_to_date(study, results)
    (results / "tables" / ".123.part").write_text("another length")
    assert bring_up_to_date(study, results) == []
    shutil.rmtree(report)


DOWN = {"analysis", "render"}


def test_a_copied_moved_or_touched_study_is_up_to_date(whole):
    study, results = whole
    assert bring_up_to_date(study, results) == []
    for path in Path(study.data.root).rglob("*.*"):
        path.touch()
    assert bring_up_to_date(study, results) == []
    study.data.size = 40  # the clips are read again, and their audit is still theirs
    assert "cache" in bring_up_to_date(study, results)


def change_title(study, results):
    study.title = "Another title"


def change_lr(study, results):
    study.experiments["2d-multi"].lr *= 2


def change_workers(study, results):
    study.experiments["3d-scratch"].workers = 2


def change_gpus(study, results):
    study.experiments["3d-scratch"].gpus_per_run = 2


def change_size(study, results):
    study.data.size = 48


def change_label(study, results):
    path = Path(study.data.root) / "labels" / "train.json"
    first, second, *_ = records = json.loads(path.read_text())
    assert first["template"] != second["template"]
    first["template"], second["template"] = second["template"], first["template"]
    path.write_text(json.dumps(records))


def change_boxes(study, results):
    path = next((Path(study.data.root) / "boxes").glob("*.json"))
    path.write_text(path.read_text().replace("0001.jpg", "0002.jpg", 1))


def change_paint(study, results):
    study.cam.paint = ["filled"]


def change_sources(study, results):
    study.cam.sources = ["layer2:gradcam"]


def change_frames(study, results):
    study.experiments["2d-multi"].n_frames = 12


def change_start(study, results):
    start = results.parent / "start.pth"
    start.write_bytes(b"weights")
    study.experiments["3d-scratch"].init = str(start)


def lose_weights(study, results):
    (results / "runs" / "3d-scratch-s0" / "weights.safetensors").unlink()


def lose_a_run(study, results):
    shutil.rmtree(results / "runs" / "2d-single-s0")


RUN_STEPS = ("train", "sources", "gradcam", "reliance")
LOOKED = of("sources") | of("gradcam") | of("reliance")
ALL = of("train") | LOOKED
CHANGES = [
    (change_title, DOWN),
    (change_workers, set()),
    (change_gpus, set()),
    (
        change_lr,
        of("train", "2d-multi", "3d-inflated")
        | of("sources", "2d-multi", "3d-inflated")
        | of("gradcam", "2d-multi", "3d-inflated")
        | of("reliance", "2d-multi", "3d-inflated")
        | DOWN,
    ),
    (change_size, {"cache"} | ALL | DOWN),
    (
        change_label,
        {"audit", "cache", "data_chapter"} | ALL | DOWN,
    ),
    (change_boxes, {"audit", "data_chapter"} | LOOKED | DOWN),
    (change_paint, of("reliance") | DOWN),
    (change_sources, of("sources") | of("gradcam") | DOWN),
    (
        change_frames,
        of("train", "2d-multi", "3d-inflated")
        | of("sources")
        | of("gradcam")
        | of("reliance", "2d-multi", "3d-inflated")
        | DOWN,
    ),
    (
        change_start,
        {f"{step}-3d-scratch-s0" for step in RUN_STEPS} | DOWN,
    ),
    (lose_weights, {"train-3d-scratch-s0"}),
    (
        lose_a_run,
        {f"{step}-2d-single-s0" for step in RUN_STEPS},
    ),
]


@pytest.mark.parametrize("change, redone", CHANGES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_change_redoes_what_depends_on_it_and_nothing_else(whole, change, redone):
    study, results = whole
    change(study, results)
    assert set(bring_up_to_date(study, results)) == redone
    assert bring_up_to_date(study, results) == []


def test_a_change_that_is_taken_back_midway_leaves_no_mixture(whole):
    study, results = whole
    job = Job("gradcam", "3d-scratch", 0)
    study.cam.sources = ["layer2:gradcam"]
    with pytest.raises(KeyboardInterrupt):
        with run_if_stale(study, results, job):
            files_of(study, results, job)[1].write_text("new")
            (results / "runs" / "3d-scratch-s0" / "maps" / "half.npy").write_text("half")
            raise KeyboardInterrupt
    study.cam.sources = None
    assert "gradcam-3d-scratch-s0" in bring_up_to_date(study, results)
    assert (results / "runs" / "3d-scratch-s0" / "weights.safetensors").is_file()


def test_a_mixture_is_refused_by_name(whole):
    study, results = whole
    refuse_stale_runs(study, results, Job("analysis"))
    study.experiments["3d-scratch"].lr *= 2
    with pytest.raises(ValueError, match=r"train-3d-scratch-s0 .*settings changed.*ssv2 reproduce"):
        refuse_stale_runs(study, results, Job("analysis"))
    shutil.rmtree(results / "runs" / "3d-scratch-s0")
    refuse_stale_runs(study, results, Job("analysis"))  # what is not there is named in the report


def test_records_say_what_was_left(whole):
    study, results = whole
    kept = record(results, Job("train", "2d-multi", 0))
    assert "runs/2d-multi-s0/weights.safetensors" in kept["files"] and "settings" in kept["decides"]
    with pytest.raises(KeyError, match="is not done"):
        record(results, Job("train", "2d-multi", 7))


def test_a_step_called_by_hand_needs_no_records(whole, tmp_path):
    study, _ = whole
    with run_if_stale(study, tmp_path, Job("train", "2d-multi", 0)) as todo:
        assert todo
    with pytest.raises(KeyError):
        record(tmp_path, Job("train", "2d-multi", 0))


def test_weights_to_start_from_count_by_their_content(whole):
    study, results = whole
    change_start(study, results)
    start = Path(study.experiments["3d-scratch"].init)
    bring_up_to_date(study, results)
    study.experiments["3d-scratch"].init = str(start.rename(start.parent / "data" / start.name))
    assert bring_up_to_date(study, results) == []
    Path(study.experiments["3d-scratch"].init).write_bytes(b"others!")
    assert "train-3d-scratch-s0" in bring_up_to_date(study, results)


def test_other_published_weights_are_another_start(whole):
    study, results = whole
    for init in ("imagenet", "kinetics"):
        study.experiments["3d-scratch"].init = init
        assert "train-3d-scratch-s0" in bring_up_to_date(study, results)


def test_the_whole_study_does_what_its_parts_left(tmp_path):
    "Also where a part's networks see fewer frames than the whole study's: its maps are of as many."
    study, results = small_study(tmp_path), tmp_path / "results"
    study.seeds = [0, 1]
    study.experiments["2d-single"].n_frames = 1
    first = bring_up_to_date(sub_study(study, ["2d-single"], [0]), results)
    runs = [job for job in first if job.endswith("-s0")]
    assert runs == [f"{step}-2d-single-s0" for step in RUN_STEPS]
    second = bring_up_to_date(sub_study(study, ["3d-inflated"], [0]), results)
    assert {job for job in second if job.startswith("train")} == of(
        "train", "2d-multi", "3d-inflated"
    )
    rest = bring_up_to_date(study, results)
    names = [("3d-scratch", 0), *((name, 1) for name in RUNS)]
    left = {f"{s}-{n}-s{k}" for s in RUN_STEPS for n, k in names}
    assert {job for job in rest if re.search(r"-s\d$", job)} == left
    assert set(rest) - left == {"validation", *DOWN}
    assert bring_up_to_date(study, results) == []
