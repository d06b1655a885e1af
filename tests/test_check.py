"""What would end a study is said before it begins, all of it in one table."""

import collections
import json
import os
import shutil
import subprocess
import sys
import threading
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file
from worlds import make, official, write_study

from ssv2_report import cli
from ssv2_report.data.audit import audit
from ssv2_report.data.clips import MEAN, STD
from ssv2_report.jobs.durations import expected_seconds, sizes_of
from ssv2_report.jobs.steps import Job, jobs_of
from ssv2_report.models.net2d import normalisation
from ssv2_report.plan import check, prices
from ssv2_report.plan.check import check_requirements, check_weights, expected_clips, step_memory
from ssv2_report.study.experiments import load_study, run_folder, worlds_of
from ssv2_report.study.runs import build_model, load_run, normalisation_of
from ssv2_report.train import fit, start_from


@pytest.fixture
def study(tmp_path):
    return load_study(write_study(tmp_path / "few.yaml", official(tmp_path / "data")))


def found(study, results):
    return {
        row["what"]: row["wrong"] or f"ok: {row['found']}"
        for row in check_requirements(study, results)
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


def test_classes_that_only_validation_has_are_said(study, tmp_path):
    path = tmp_path / "data" / "labels" / "train.json"
    kept = [r for r in json.loads(path.read_text()) if "Closing" not in r["template"]]
    path.write_text(json.dumps(kept))
    says = (
        "1 class of validation clips has no training clip (Closing something): accuracy can reach "
        "57.1% at most"
    )
    assert found(study, tmp_path)["data"].endswith(says)
    study.data.max_excluded = 1
    audit(study.data.root).save(tmp_path / "audit.json")  # the damaged clip is one of these
    assert found(study, tmp_path)["audit"] == "ok: 1 clips excluded; " + says.replace(
        "57.1", "66.7"
    )
    study.data.classes = ["Opening something"]
    assert "accuracy can" not in found(study, tmp_path)["data"]


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
        (folder / "metrics.json").touch()
    assert not wrong(study, tmp_path)


@pytest.mark.parametrize("precision", ["no", "bf16", "auto"])
@pytest.mark.parametrize("name", ["2d-multi", "3d-scratch"])
def test_a_step_is_tried_as_it_is_trained(name, precision, monkeypatch):
    exp = load_study("smoke").experiments[name]
    exp.mixed_precision, exp.accumulate, exp.gpus_per_run = precision, 2, 2
    seen, types, build = [], [], check.build_model
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

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


@pytest.mark.parametrize("gpus", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_nothing_is_begun_where_something_is_wrong(gpus, tmp_path, monkeypatch, capsys):
    content = yaml.safe_load(write_study(tmp_path / "s.yaml", make(tmp_path / "data")).read_text())
    content["experiments"]["2d-multi"] |= dict(model="resnet18", init="imagenet")
    content |= dict(hypotheses={})
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SSV2_GPUS", gpus)
    monkeypatch.setattr(cli, "start_forkserver", lambda: None)  # which is one for all tests
    results = tmp_path / "results"
    words = "reproduce", tmp_path / "s.yaml", "--results", results
    code, said, error = here(capsys, monkeypatch, *words)
    assert code == 1 and "imagenet weights of resnet18" in said
    assert error.count("ssv2: ") == 1 and "give a local file instead" in error
    assert not (results / "audit.json").exists() and not (results / "runs").exists()


# -- weights from elsewhere

KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
VIDEO = "r3d_18-b3b3357e.pth"  # as torchvision calls it


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    "Random weights as timm and torchvision keep them."
    folder = tmp_path_factory.mktemp("weights")
    save_file(timm.create_model("test_resnet").state_dict(), folder / "model.safetensors")
    torch.save(torchvision.models.video.r3d_18().state_dict(), folder / VIDEO)
    return folder


@pytest.fixture
def hub(made_up, tmp_path, monkeypatch):
    "Made-up weights in caches as timm's hub and torchvision leave them."
    cache = tmp_path / "hf" / "models--timm--test_resnet.r160_in1k"
    for folder in (cache / "refs", cache / "snapshots" / "abc"):
        folder.mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    weights = cache / "snapshots" / "abc" / "model.safetensors"
    os.link(made_up / "model.safetensors", weights)
    video = tmp_path / "torch" / "hub" / "checkpoints" / VIDEO
    video.parent.mkdir(parents=True)
    os.link(made_up / VIDEO, video)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return weights, video


def study_of(tmp_path, **experiments):
    "A study with official data and these experiments."
    path = write_study(tmp_path / "s.yaml", official(tmp_path / "data"))
    content = yaml.safe_load(path.read_text())
    content["settings"].pop("output_stride", None)
    content["experiments"] = {k: dict(title=k, **e) for k, e in experiments.items()}
    path.write_text(yaml.safe_dump({**content, "hypotheses": {}}))
    return path


STARTS = dict(
    flat=dict(model="test_resnet", init="imagenet"),
    deep=dict(model="i3d:test_resnet", init="imagenet"),
    later=dict(model="i3d:test_resnet", init="flat"),
    video=dict(model="r3d_18", init="kinetics"),
    scratch=dict(model="test_resnet"),
)


class Two(torch.utils.data.Dataset):
    "Two clips [C, T, H, W], one a class."

    ids = ["0", "1"]

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return dict(clip=self.clips[i], target=i)

    def set_epoch(self, epoch):
        pass


@pytest.mark.parametrize(
    "name, known", [("flat", HALF), ("deep", HALF), ("video", KINETICS), ("scratch", None)]
)
def test_a_run_is_trained_judged_and_read_in_the_colours_that_its_weights_know(
    hub, tmp_path, name, known
):
    "Also what starts from it. With another normalisation, its answers on the same clips are others."
    s = load_study(study_of(tmp_path, **STARTS))
    exp = s.experiments[name].model_copy(
        update=dict(epochs=1, lr=1e-9, opt="sgd", n_frames=8, batch_size=2)
    )
    data = Two(clip := torch.rand(2, 3, 8, 32, 32))
    net = fit(exp, ["a", "b"], data, data, tmp_path / "run", start=exp.init)
    again, read, _ = load_run(tmp_path / "run")
    known = known or (MEAN, STD)
    assert normalisation(net) == normalisation(again) == known
    assert (read.mean or MEAN, read.std or STD) == known
    wide = lambda v: torch.tensor(v).view(3, 1, 1, 1)
    own = (clip * wide(STD) + wide(MEAN) - wide(known[0])) / wide(known[1])
    with torch.no_grad():
        answers, bare = again(clip), deepcopy(again)
        bare._forward_pre_hooks.clear()
        torch.testing.assert_close(bare(own), answers, rtol=1e-3, atol=1e-4)
    if name == "flat":
        later = s.experiments["later"].model_copy(update=dict(n_frames=8))
        deep = build_model(later, 2)
        start_from(deep, later, ["a", "b"], tmp_path / "run", clip)
        assert normalisation(deep) == known == normalisation_of(s, "later")


def test_weights_that_are_there_are_told_from_those_that_are_fetched(hub, tmp_path, monkeypatch):
    s = load_study(study_of(tmp_path, **STARTS))
    rows = {row["what"]: row["found"] for row in check_weights(s)}
    assert rows == {
        "imagenet weights of test_resnet": "there",
        "kinetics weights of r3d_18": "there",
    }
    kept = hub[1].rename(tmp_path / "elsewhere.pth")

    def download(url, to, *a, **k):
        assert url.endswith(VIDEO)
        shutil.copy(kept, to)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    rows = {row["what"]: row["found"] for row in check_weights(s)}
    assert rows["kinetics weights of r3d_18"].startswith("fetched, 1") and hub[1].is_file()
    assert [row["found"] for row in check_weights(s)] == ["there"] * 2


def here(capsys, monkeypatch, *words):
    "The command in this process: exit code, and what it says."
    monkeypatch.setattr(sys, "argv", ["ssv2", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


@pytest.mark.parametrize(
    "lost", [(), ("timm",), ("torchvision",), ("timm", "torchvision")], ids=str
)
def test_the_command_says_of_all_weights_whether_they_can_be_had(
    lost, hub, tmp_path, monkeypatch, capsys
):
    def no_way_out(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_way_out)
    for name, path in zip(("timm", "torchvision"), hub):
        if name in lost:
            path.rename(tmp_path / name)
    code, said, error = here(capsys, monkeypatch, "weights", study_of(tmp_path, **STARTS))
    lines = [line for line in said.splitlines() if " weights of " in line]
    assert code == bool(lost) and len(lines) == 2
    for name, line in zip(("timm", "torchvision"), lines):
        assert ("local file" in line and "wrong" in line) if name in lost else "there" in line
    assert error.count("ssv2: ") == bool(lost) and error.count("\n") == bool(lost)


def test_the_command_fetches_from_the_hub_what_is_missing(made_up, tmp_path, monkeypatch, capsys):
    "From a hub of this test's own, through timm's and the hub's own code, which read variables as they are imported."
    path = study_of(tmp_path, flat=STARTS["flat"])
    content = (made_up / "model.safetensors").read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self, send=False):
            wanted = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            self.send_response(200 if wanted else 404)
            self.send_header("ETag", '"tag"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content) if wanted else 0))
            self.end_headers()
            if wanted and send:
                self.wfile.write(content)

        def do_GET(self):
            self.do_HEAD(send=True)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = dict(
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(tmp_path / "hf"),
            TORCH_HOME=str(tmp_path / "torch"),
            COLUMNS="200",
        )
        command = [sys.executable, "-m", "ssv2_report.cli", "weights", path]
        done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 0 and "fetched, 1" in done.stdout, done.stdout + done.stderr
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, said, _ = here(capsys, monkeypatch, "weights", path)
    assert code == 0 and "there" in said


def test_files_of_weights_need_no_hub_and_are_tried(made_up, tmp_path, monkeypatch, capsys):
    os.link(made_up / VIDEO, tmp_path / "video.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "video.pth").read_bytes()[:9999])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    tried = lambda **e: here(capsys, monkeypatch, "weights", study_of(tmp_path, **e))
    code, said, _ = tried(video=dict(model="r3d_18", init="video.pth"))
    assert code == 0 and "video.pth of r3d_18" in said and "there" in said
    code, _, error = tried(video=dict(model="r3d_18", init="cut.pth"))
    assert code == 1 and "cut.pth is cut short or damaged" in error
    code, said, _ = tried(a=STARTS["scratch"])
    assert code == 0 and "starts from no weights but its own" in said


# -- what a study costs


@pytest.mark.parametrize(
    "words, says",
    [
        (["smoke"], ["as they have taken on one core", "minutes of processor time"]),
        (["ssv2-core"], ["20 TFLOP/s", "hours of one device"]),
        (["smoke", "--tflops", "5"], ["5 TFLOP/s", "minutes of one device"]),
        (["smoke", "--only", "2d-multi"], ["on one core", "All 1 runs"]),
    ],
    ids=" ".join,
)
def test_a_plan_is_of_a_core_where_a_demo_study_has_no_gpu(words, says, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("SSV2_GPUS", "0")
    monkeypatch.setattr(sys, "argv", ["ssv2", "plan", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert not end.value.code and all(part in said for part in says)


def test_a_plan_counts_every_job_of_both_worlds(monkeypatch):
    study = load_study("demo")
    studies = worlds_of(study)
    tables = [prices.prices(s) for s in studies]
    seconds = cli.job_seconds(studies, tables)
    wanted = len(jobs_of(study)) + len(jobs_of(studies[1], inner=True))
    assert len(seconds) == wanted and min(seconds.values()) > 0
    tables[0]["seconds"] += 100
    more = cli.job_seconds(studies, tables)
    assert sum(more.values()) - sum(seconds.values()) == pytest.approx(100 * len(study.runs))
    on_core = [cli.priced_on_a_core(*of) for of in zip(studies, tables)]
    of_jobs = cli.job_seconds(studies, on_core)
    assert of_jobs["train 3d-scratch-s0"] == pytest.approx(
        expected_seconds(study, Job("train", "3d-scratch", 0), sizes_of(study))
    )
