"""What would end a study is said before it begins, all of it in one table."""

import collections
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from worlds import make, official, write_study

from ssv2_report.data.audit import audit
from ssv2_report.study import check
from ssv2_report.study.check import expected_clips, look_before, step_memory
from ssv2_report.study.experiments import load_study
from ssv2_report.study.steps import SUMS, run_folder


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path / "few.yaml", official(tmp_path / "data")))


def found(study, results):
    return {
        row["what"]: row["wrong"] or f"ok: {row['found']}" for row in look_before(study, results)
    }


def wrong(study, results):
    return {what: says for what, says in found(study, results).items() if says[:3] != "ok:"}


def test_a_study_that_can_run_is_told_what_it_has(study, tmp_path):
    rows = found(study, tmp_path)
    assert not wrong(study, tmp_path)
    assert rows["data"] == "ok: 6 of 6 train clips have a file; 7 of 7 validation clips have a file"
    assert rows["audit"] == "ok: will be made" and rows["boxes"] == "ok: 1 file"
    assert "2 can be built" in rows["networks"] and "GB free" in rows["disk"]
    demo = found(load_study("smoke"), tmp_path)
    assert not [says for says in demo.values() if says[:3] != "ok:"]


def test_data_that_are_not_there_are_wrong(study, tmp_path):
    for path in (tmp_path / "data" / "20bn-something-something-v2").iterdir():
        path.unlink()
    assert "No train clip of" in wrong(study, tmp_path)["data"]
    study.data.root = str(tmp_path / "absent")
    assert "absent" in wrong(study, tmp_path)["data"]


def test_records_that_the_audit_is_to_exclude_do_not_stop_a_study(study, tmp_path):
    path = tmp_path / "data" / "labels" / "train.json"
    records = json.loads(path.read_text())
    broken = [dict(records[0], id="9", template="No [class]"), dict(records[1])]
    path.write_text(json.dumps(records + broken))
    assert not wrong(study, tmp_path)
    assert found(study, tmp_path)["data"].startswith("ok: 5 of 5 train clips have a file")
    assert expected_clips(study) == dict(train=5, validation=7)
    study.data.classes, study.data.per_class = ["Closing something"], 1
    assert expected_clips(study) == dict(train=1, validation=1)


def test_a_demo_world_that_is_half_drawn_does_not_stop_a_study(tmp_path):
    demo = load_study("smoke")
    demo.data.root = str(tmp_path / "world")
    (tmp_path / "world" / "labels").mkdir(parents=True)
    assert not wrong(demo, tmp_path)


def test_classes_that_are_none_are_wrong_in_their_steps_own_words(study, tmp_path):
    study.data.classes = ["Closing something", "Opening somthing"]
    says = wrong(study, tmp_path)
    assert "did you mean 'Opening something'" in says["networks"]


def test_what_the_audit_excludes_is_wrong_where_it_is_too_much(study, tmp_path):
    audit(study.data.root).save(tmp_path / "audit.json")
    assert found(study, tmp_path)["audit"] == "ok: 1 clips excluded"
    study.data.max_excluded = 0
    assert wrong(study, tmp_path)["audit"].startswith("The audit excludes 1 of")


def test_a_disk_that_is_too_small_is_wrong_unless_the_cache_is_there(study, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(check.shutil, "disk_usage", lambda folder: usage(100e6))
    study.data.size = 480
    assert "GB free; free some space" in wrong(study, tmp_path)["disk"]
    (tmp_path / "cache").mkdir()
    assert not wrong(study, tmp_path)


def test_weights_that_cannot_be_had_are_wrong_once_and_only_for_runs_to_train(
    study, tmp_path, monkeypatch
):
    def published(exp, source):
        raise ValueError(f"The {source} weights could not be fetched: give a local file instead.")

    monkeypatch.setattr(check, "published", published)
    for exp in study.experiments.values():
        exp.init = "imagenet"
    says = wrong(study, tmp_path)
    assert list(says) == ["imagenet weights of test_resnet"] and "local file" in str(says)
    for run in study.runs:
        folder = run_folder(study, tmp_path, *run)
        folder.mkdir(parents=True)
        (folder / SUMS).touch()
    assert not wrong(study, tmp_path)


@pytest.mark.parametrize("precision", ["no", "bf16", "auto"])
@pytest.mark.parametrize("name", ["2d-multi", "3d-scratch"])
def test_a_step_is_tried_as_it_is_trained(name, precision, monkeypatch):
    exp = load_study("smoke").experiments[name]
    exp.mixed_precision, exp.accumulate, exp.gpus_per_run = precision, 2, 2
    seen, types, build = [], [], check.build_model
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def watched(exp, classes):
        model = build(exp, classes)
        model.register_forward_pre_hook(lambda m, args: seen.append((m.training, args[0].shape)))
        model.register_forward_hook(lambda m, args, out: types.append(out.dtype))
        return model

    monkeypatch.setattr(check, "build_model", watched)
    assert step_memory(exp, 32, 10, "cpu") > 0
    assert seen == [(True, (2, 3, exp.n_frames, 32, 32))] * 2
    assert types == [torch.float32 if precision == "no" else torch.bfloat16] * 2


def test_a_step_that_does_not_fit_says_what_to_change(study, tmp_path, monkeypatch):
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        check.torch.cuda, "get_device_properties", lambda k: SimpleNamespace(total_memory=8e9)
    )
    real = check.step_memory

    def on_cpu(exp, size, classes, device):
        assert device == "cuda"
        return real(exp, size, classes, "cpu") if exp.is_3d else 2.5

    def too_large(exp, classes):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(check, "step_memory", on_cpu)
    monkeypatch.setattr(check, "build_model", too_large)
    monkeypatch.setattr(check, "_disk", lambda *_: "")
    rows = found(study, tmp_path)
    assert rows["memory of 2d-multi"] == "ok: 2.5 of 8.0 GB"
    assert "does not fit in memory; set accumulate: 2" in rows["memory of r(2+1)d"]


def ssv2(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "ssv2_report.cli", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", **env},
    )


@pytest.mark.parametrize("gpus", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_nothing_is_begun_where_something_is_wrong(gpus, tmp_path):
    content = yaml.safe_load(write_study(tmp_path / "s.yaml", make(tmp_path / "data")).read_text())
    content["experiments"]["2d-multi"] |= dict(model="resnet18", init="imagenet")
    content |= dict(hypotheses={})
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    offline = dict(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"), SSV2_GPUS=gpus)
    results = tmp_path / "results"
    done = ssv2("reproduce", tmp_path / "s.yaml", "--results", results, **offline)
    assert done.returncode == 1 and "imagenet weights of resnet18" in done.stdout
    assert done.stderr.count("ssv2: ") == 1 and "give a local file instead" in done.stderr
    assert not (results / "audit.json").exists() and not (results / "runs").exists()
