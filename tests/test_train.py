"""A run that is killed, stopped, moved or shared ends as the undisturbed one; what cannot go well is said in one sentence; metrics are the field's."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate import PartialState
from forked import FORKS, fork
from safetensors.torch import load_file, save_file
from test_launch import ready
from torch.distributed.nn.functional import all_reduce
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ssv2_report.study.runs as runs
import ssv2_report.study.scores as scores
import ssv2_report.train as train
from ssv2_report.data.audit import audit
from ssv2_report.jobs.launch import forks
from ssv2_report.machine.devices import acquire_gpus
from ssv2_report.study.experiments import Experiment, load_study, project_root
from ssv2_report.study.scores import confusion
from ssv2_report.train import (
    EpochSampler,
    board,
    build_model,
    clips_a_step,
    datasets,
    fingerprint,
    fit,
    launch,
    load_run,
    loaders,
    metrics,
    precision_of,
    predict,
    start_from,
    write_table,
)

CLASSES = ["Folding something", "Unfolding something", "Holding something"]
TIMES = ["seconds", "clips_per_s", "waiting", "memory_gb"]


class Clips(torch.utils.data.Dataset):
    "Made-up clips; a class is a brightness and a direction of change."

    def __init__(self, n=12, n_frames=4, noise=0.1):
        self.n, self.n_frames, self.noise, self.ids, self.epoch, self.seen = (
            n,
            n_frames,
            noise,
            [str(i) for i in range(n)],
            0,
            [],
        )

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.seen.append((self.epoch, i))
        g = torch.Generator().manual_seed(1000 * self.epoch + int(i))
        ramp = torch.linspace(-1, 1, self.n_frames).view(1, -1, 1, 1) * (1, -1, 0)[i % 3]
        return dict(
            clip=torch.randn(3, self.n_frames, 32, 32, generator=g) * self.noise + ramp,
            target=i % 3,
            id=str(i),
        )


def plain_net(exp, classes):
    "A network whose result for a clip does not depend on the rest of its batch."
    return torch.nn.Sequential(
        torch.nn.Conv3d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool3d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, classes),
    )


def experiment(**kw):
    return Experiment(
        **{
            **dict(
                title="t", model="test_resnet", n_frames=4, epochs=2, batch_size=4, output_stride=8
            ),
            **kw,
        }
    )


def run(exp, out, **kw):
    return fit(exp, CLASSES, Clips(), Clips(6), out, seed=1, **kw)


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def history(out):
    return pd.read_csv(out / "history.csv").drop(columns=TIMES)


def equal_runs(a, b):
    "Weights, best weights, history and predictions of two runs, bit for bit."
    for f in (
        "weights.safetensors",
        "checkpoint/best.safetensors",
        "predictions.parquet",
        "metrics.json",
    ):
        assert (a / f).read_bytes() == (b / f).read_bytes(), f
    pd.testing.assert_frame_equal(history(a), history(b), check_exact=True)


# -- killed, stopped, resumed


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from ssv2_report.demo.world import make_world

    return make_world(tmp_path_factory.mktemp("demo"), 2, 1, size=64, seed=0, workers=1)


def demo_run(root, out, phase=None, limit=None, **kw):
    "A small run on the demo world, with its evaluation; `phase` shows others where it is: 1 in a step, 2 in a save, 3 in an evaluation."
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

    def showing(function, code):
        def shown(*a, **k):
            before, phase.value = phase.value, code
            try:
                return function(*a, **k)
            finally:
                phase.value = before

        return shown

    if phase is not None:
        for name, code in dict(train_epoch=1, save_checkpoint=2, save_run=2, predict=3).items():
            setattr(train, name, showing(getattr(train, name), code))
    s = load_study("smoke")
    s.data.root, s.data.size = str(root), 32
    few = dict(epochs=2, batch_size=4, n_frames=4)
    exp = s.experiments["3d-scratch"].model_copy(update=few | kw)
    classes, train_set, views = datasets(s, exp, 0)
    model = fit(exp, classes, train_set, views["ordered"][0], out, save_steps=2)
    p = pd.concat(
        [train.predict(model, views[o], 4).assign(order=o) for o in ("ordered", "reversed")]
    )
    write_table(p, out / "predictions.parquet")
    (out / "metrics.json").write_text(json.dumps(metrics(p, classes)))


def finished(*args, **kw):
    process = fork(demo_run, *args, **kw)
    process.join()
    assert process.exitcode == 0
    return args[1]


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    return finished(world, tmp_path_factory.mktemp("runs") / "whole")


def disturb(world, out, sign, where, rng):
    "Start a run, send it a signal at a random instant of a kind, and return where it was hit and how long it then took to end."
    phase = FORKS.Value("i", 0)
    process = fork(demo_run, world, out, phase)
    while phase.value == 0:
        time.sleep(0.001)
    until = time.time() + rng.uniform(0, 0.6)  # about as long as it trains
    while process.is_alive() and not (time.time() > until and phase.value == where):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.005))
    hit, began = phase.value, time.time()
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, sign)
    process.join()
    if process.exitcode == 0:  # it had ended, or ended within its grace: try another instant
        shutil.rmtree(out)
        return disturb(world, out, sign, where, rng)
    return hit, time.time() - began


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_the_undisturbed_one(world, undisturbed, tmp_path, kills):
    "Real trainings of real processes, in each of three places: no faster test has either."
    rng, hits = random.Random(kills), []
    for k in range(kills):
        hits.append(disturb(world, tmp_path / str(k), signal.SIGKILL, k % 3 + 1, rng)[0])
        equal_runs(finished(world, tmp_path / str(k)), undisturbed)
    print(
        f"killed in a step {hits.count(1)}, in a save {hits.count(2)}, in an evaluation {hits.count(3)} times"
    )


@pytest.mark.parametrize("stops", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_sigterm_writes_a_checkpoint_within_ten_seconds(world, undisturbed, tmp_path, stops):
    rng, longest = random.Random(stops), 0
    for k in range(stops):
        longest = max(
            longest, disturb(world, tmp_path / str(k), signal.SIGTERM, (1, 3, 2)[k % 3], rng)[1]
        )
        assert (
            torch.load(tmp_path / str(k) / "checkpoint" / "last.pt", weights_only=True)["step"] > 0
        )
        equal_runs(finished(world, tmp_path / str(k)), undisturbed)
    assert longest < 10
    print(f"ended after {longest:.2f} s at most")


@pytest.fixture
def forked(tmp_path):
    "Variables of a command that forks jobs."
    with forks() as told:
        ready(told, tmp_path)
        yield told


@pytest.mark.slow
def test_the_command_passes_sigterm_on_and_resumes(world, tmp_path, forked):
    study = dict(yaml.safe_load((project_root() / "experiments" / "smoke.yaml").read_text()))
    study["data"] = dict(study["data"], root=str(world))
    study["settings"] = dict(study["settings"], epochs=8)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "results").mkdir()
    audit(world).save(tmp_path / "results" / "audit.json")
    command = [
        sys.executable,
        "-m",
        "ssv2_report.jobs.launch",
        "ssv2_report.cli",
        "train",
        str(tmp_path / "study.yaml"),
        "3d-scratch",
        "--results",
        str(tmp_path / "results"),
    ]
    run_, env = (
        tmp_path / "results" / "runs" / "3d-scratch-s0",
        {**os.environ, "OMP_NUM_THREADS": "1", **forked},
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    while not (run_ / "history.csv").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    began = time.time()
    process.terminate()
    said = process.communicate()[1]
    assert (
        process.returncode == 143
        and time.time() - began < 10
        and "Stopped by SIGTERM" in said
        and "Traceback" not in said
    )
    assert len(torch.load(run_ / "checkpoint" / "last.pt", weights_only=True)["history"]) < 8
    assert subprocess.run(command, env=env).returncode == 0 and len(history(run_)) == 8


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    run(experiment(), tmp_path / "flat")
    inflated = dict(
        exp=experiment(model="i3d:test_resnet"),
        out=tmp_path / "deep",
        start=tmp_path / "flat" / "weights.safetensors",
    )
    model = run(**inflated)
    before = {
        name: (tmp_path / "deep" / name).read_bytes()
        for name in ("weights.safetensors", "history.csv", "inflation.json")
    }
    for name in before:
        (tmp_path / "deep" / name).unlink()
    monkeypatch.setattr(train, "train_epoch", None)
    assert same(model, run(**inflated)) and same(model, load_run(tmp_path / "deep")[0])
    assert before == {name: (tmp_path / "deep" / name).read_bytes() for name in before}, (
        "all files of a finished run are written again"
    )


def test_two_runs_are_equal_to_the_last_digit_whatever_the_workers(tmp_path):
    a, b = run(experiment(), tmp_path / "a"), run(experiment(workers=2), tmp_path / "b")
    assert same(a, b)
    pd.testing.assert_frame_equal(
        history(tmp_path / "a"), history(tmp_path / "b"), check_exact=True
    )


def test_a_checkpoint_of_other_settings_is_refused_or_replaced(tmp_path):
    run(experiment(epochs=1), tmp_path)
    with pytest.raises(ValueError, match="of another run: lr differ"):
        run(experiment(epochs=1, lr=0.5), tmp_path)
    changed = run(experiment(epochs=1, lr=0.02), tmp_path, replace=True)
    assert same(changed, run(experiment(epochs=1, lr=0.02), tmp_path / "fresh"))
    assert same(changed, run(experiment(epochs=1, lr=0.02, workers=1), tmp_path)), (
        "how many processes load clips does not matter"
    )


def test_a_checkpoint_of_other_frames_is_refused(tmp_path, world):
    from ssv2_report.data.cache import build_cache
    from ssv2_report.data.clips import ClipDataset, load_index

    index = load_index(world, splits=("validation",))
    prints = [
        fingerprint(
            experiment(),
            CLASSES,
            [ClipDataset(index, size=s, cache=build_cache(index, tmp_path, s, workers=1))],
            0,
            None,
        )
        for s in (32, 48)
    ]
    assert [k for k in prints[0] if prints[0][k] != prints[1][k]] == ["data"]


class Labelled(Clips):
    "Clips whose targets are known beforehand, as those of a ClipDataset."

    def __init__(self, targets, size=32, ids=None):
        super().__init__(len(targets))
        self.targets, self.size, self.ids = np.array(targets), size, ids or self.ids

    def __getitem__(self, i):
        return super().__getitem__(i) | dict(target=int(self.targets[i]))


@pytest.mark.parametrize(
    "what",
    ["targets swapped", "validation targets swapped", "size", "clips excluded", "split moved"],
)
def test_a_checkpoint_of_other_labels_sizes_or_clips_is_refused(tmp_path, what):
    exp, targets = experiment(epochs=1), [0, 1, 2] * 3
    one = Labelled(targets), Labelled(targets[:3])
    other = {
        "targets swapped": (Labelled([1, 0, 2] * 3), one[1]),
        "validation targets swapped": (one[0], Labelled([1, 0, 2])),
        "size": (Labelled(targets, 48), Labelled(targets[:3], 48)),
        "clips excluded": (Labelled(targets[:8]), one[1]),
        "split moved": (Labelled(targets[:8]), Labelled([2, 0, 1, 2], ids=["8", "0", "1", "2"])),
    }[what]
    fit(exp, CLASSES, *one, tmp_path, seed=1)
    with pytest.raises(ValueError, match="of another run: data differ"):
        fit(exp, CLASSES, *other, tmp_path, seed=1)
    fit(exp, CLASSES, Labelled(targets), Labelled(targets[:3]), tmp_path, seed=1)


def test_the_other_twin_is_another_run(tmp_path):
    "The labels of two classes exchanged, in the dataset itself."
    import worlds

    from ssv2_report.data.clips import ClipDataset, load_index

    root = worlds.make(tmp_path / "data", train=4, validation=4)
    read = lambda: [ClipDataset(load_index(root, splits=(s,))) for s in ("train", "validation")]
    before = fingerprint(experiment(), CLASSES, read(), 0, None)
    path = root / "labels" / "train.json"
    text = path.read_text().replace("left to right", "X").replace("right to left", "left to right")
    path.write_text(text.replace("X", "right to left"))
    after = fingerprint(experiment(), CLASSES, read(), 0, None)
    assert [k for k in before if before[k] != after[k]] == ["data"]


# -- damaged files


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    "A finished run."
    run(experiment(epochs=1), out := tmp_path_factory.mktemp("flat"))
    return out


def damaged(content, rng, n):
    "The content cut at, and with a byte changed at, each of n places: random ones, the ends included."
    places = [0, 1, len(content) - 1, *(rng.randrange(len(content)) for _ in range(n))]
    for at in places:
        yield content[:at]
        yield content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


@pytest.mark.parametrize("places", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_one_sentence(flat, tmp_path, places):
    content = (flat / "checkpoint" / "last.pt").read_bytes()
    path, wanted = tmp_path / "last.pt", train.read_checkpoint(flat / "checkpoint" / "last.pt")
    path.write_bytes(content)
    assert train.load_checkpoint(path, wanted["fingerprint"])["step"] == 3
    refused = 0
    for broken in damaged(content, random.Random(places), places):
        path.write_bytes(broken)
        for replace in (False, True):
            try:
                state = train.load_checkpoint(path, wanted["fingerprint"], replace)
            except ValueError as e:
                assert re.fullmatch(".*last.pt is damaged.*delete it.*", str(e))
                refused += 1
            else:
                assert_same(state, wanted)  # what was hit holds nothing, such as the time of a part
    assert refused >= 0.95 * 2 * 2 * (places + 3)


def assert_same(found, wanted):
    "The same nested state, tensors bit by bit."
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        [assert_same(found[k], wanted[k]) for k in wanted]
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        [assert_same(f, w) for f, w in zip(found, wanted)]
    else:
        assert found == wanted


def test_a_run_of_another_version_is_one_sentence(tmp_path):
    class Older(Experiment):
        ema: float | None = None
        flip: bool = False

    exp = Older(**experiment().model_dump())
    runs.save_run(build_model(exp, 3), exp, CLASSES, tmp_path / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"another version .*\(ema, flip\); train this run again"
    ) as e:
        load_run(tmp_path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("places", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_weights_are_one_sentence(flat, tmp_path, places):
    content = (flat / "weights.safetensors").read_bytes()
    (path := tmp_path / "weights.safetensors").write_bytes(content)
    assert load_run(tmp_path)[2] == CLASSES
    for broken in damaged(content, random.Random(places), places):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged|not written by this project") as e:
            load_run(tmp_path)
        assert "\n" not in str(e.value)


def test_weights_deleted_for_their_damage_come_back(flat, tmp_path, monkeypatch):
    shutil.copytree(flat, out := tmp_path / "run")
    (out / "weights.safetensors").unlink()
    monkeypatch.setattr(train, "train_epoch", None)
    run(experiment(epochs=1), out)
    for name in ("weights.safetensors", "history.csv"):
        assert (out / name).read_bytes() == (flat / name).read_bytes()


# -- shared by several processes


class SharedNorm(torch.nn.modules.batchnorm._BatchNorm):
    "Batch norm over the equal shares that all processes have of a batch, as `SyncBatchNorm` on GPUs."

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        n, dims = PartialState().num_processes, [0, *range(2, x.dim())]
        wide = lambda v: v.view(1, -1, *[1] * (x.dim() - 2))
        mean = all_reduce(x.float().mean(dims)) / n
        centred = x - wide(mean)
        var, count = all_reduce(centred.square().mean(dims)) / n, n * x.numel() / x.shape[1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        scale = (var + self.eps).rsqrt() * self.weight
        return (centred * wide(scale) + wide(self.bias)).to(x.dtype)


def start_shared(*of, start=train.start_network):
    "`train.start_network` on processors: its batch norms see the batches of all processes there, too."
    net = start(*of)
    for m in net.modules():
        if (
            isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
            and PartialState().num_processes > 1
        ):
            m.__class__ = SharedNorm
    return net


def shared_run(model, out, rank, processes, port):
    "One of the processes of a run, as torchrun starts it; it predicts by the run of one process."
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    train.NO_GPU = scores.NO_GPU = True  # as of an import after the variables are set
    train.start_network = start_shared
    exp = experiment(epochs=2, batch_size=8, opt="sgd", lr=0.002, model=model)
    # plain clips sit on the kinks of ReLU and max-pool, where any rounding decides
    clips, val = Clips(43, noise=1.0), Clips(13)
    fit(exp, CLASSES, clips, val, out[processes], seed=1)
    p = predict(load_run(out[1])[0], Clips(13), batch_size=4)
    (out[processes] / f"seen-{rank}.json").write_text(json.dumps(clips.seen))
    if rank == 0:
        write_table(p, out[processes] / "p.parquet")
        (out[processes] / "p.json").write_text(json.dumps(metrics(p, CLASSES)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("model", ["test_resnet", "i3d:test_resnet"])
def test_processes_share_batches_and_give_what_one_gives(tmp_path, model):
    out = {n: tmp_path / str(n) for n in (1, 2)}
    for n in out:
        out[n].mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        shares = [fork(shared_run, model, out, rank, n, port) for rank in range(n)]
        for process in shares:
            process.join(200)
        assert [process.exitcode for process in shares] == [0] * n
    seen = {n: [json.loads((out[n] / f"seen-{r}.json").read_text()) for r in range(n)] for n in out}
    halves = [
        pair
        for a, b in zip(*([s[i : i + 4] for i in range(0, 80, 4)] for s in seen[2]))
        for pair in a + b
    ]
    assert len(seen[1][0]) == 80 and halves == seen[1][0], "the same sequence of clips"
    a, b = (load_file(out[n] / "weights.safetensors") for n in out)
    a, b = (torch.cat([v.flatten() for v in w.values()]) for w in (a, b))
    print(f"{model}: weights after 10 steps differ by {(a - b).norm() / a.norm():.1e}")
    assert (a - b).norm() < 1e-5 * a.norm()
    assert (out[1] / "p.parquet").read_bytes() == (out[2] / "p.parquet").read_bytes() and (
        out[1] / "p.json"
    ).read_bytes() == (out[2] / "p.json").read_bytes()
    np.testing.assert_allclose(history(out[1]), history(out[2]), rtol=1e-4)


@pytest.mark.slow
def test_launch_trains_in_processes_and_hands_on_their_sentence(world, tmp_path):
    study = dict(yaml.safe_load((project_root() / "experiments" / "smoke.yaml").read_text()))
    study["data"] = dict(study["data"], root=str(world))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "results" / "runs" / "2d-multi-s0").mkdir(parents=True)
    audit(world).save(tmp_path / "results" / "audit.json")
    launch(
        2, tmp_path / "study.yaml", "2d-multi", 0, tmp_path / "results", on_line=lambda line: None
    )
    assert load_run(tmp_path / "results" / "runs" / "2d-multi-s0")[1].model == "test_resnet"
    with pytest.raises(RuntimeError, match="does not divide into 3 processes"):
        launch(
            3,
            tmp_path / "study.yaml",
            "2d-multi",
            0,
            tmp_path / "results",
            on_line=lambda line: None,
        )


@pytest.mark.parametrize(
    "cores, processes, workers", [(1, 1, 0), (4, 1, 3), (16, 1, 8), (8, 2, 3), (2, 4, 0)]
)
def test_processes_that_load_clips_follow_from_a_jobs_cores(cores, processes, workers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    assert loaders(experiment(), processes) == 0, "on the CPU, which computes"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loaders(experiment(), processes) == workers
    assert loaders(experiment(workers=5), processes) == 5


def test_a_training_may_go_on_with_other_means():
    a, b = experiment(), experiment(gpus_per_run=2, workers=3)
    assert fingerprint(a, CLASSES, (), 0, None) == fingerprint(b, CLASSES, (), 0, None)


LAUNCH = """
import os, sys
from ssv2_report.machine.devices import acquire_gpus
from ssv2_report.train import launch
with acquire_gpus(2) as given:
    for fd in given["pass_fds"]:
        os.set_inheritable(fd, True)  # as those that a notebook's kernel was given
    launch(2, sys.argv[1], "2d-multi", 0, sys.argv[2], on_line=lambda line: None)
"""


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_stop_and_give_their_gpus_back(
    world, tmp_path, monkeypatch
):
    monkeypatch.setenv("SSV2_GPUS", "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    study = yaml.safe_load((project_root() / "experiments" / "smoke.yaml").read_text())
    study["data"]["root"], study["settings"]["epochs"] = str(world), 100_000
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run = tmp_path / "results" / "runs" / "2d-multi-s0"
    run.mkdir(parents=True)
    audit(world).save(tmp_path / "results" / "audit.json")
    command = [sys.executable, "-c", LAUNCH, tmp_path / "study.yaml", tmp_path / "results"]
    process, until = subprocess.Popen(command), time.time() + 300
    while not (run / "checkpoint" / "last.pt").is_file() and time.time() < until:
        time.sleep(0.2)
    process.kill()
    process.wait()
    before = (run / "checkpoint" / "last.pt").stat().st_mtime_ns
    waited = []
    with acquire_gpus(2, on_wait=waited.append):  # they are held as long as the processes live
        assert waited and (run / "checkpoint" / "last.pt").stat().st_mtime_ns > before
    assert "Stopped by SIGTERM" in (run / "processes.log").read_text()


# -- settings


def test_weights_carry_their_settings_and_classes(tmp_path):
    model = run(experiment(epochs=1), tmp_path)
    again, exp, classes = load_run(tmp_path)
    assert (
        same(model, again)
        and classes == CLASSES
        and exp == experiment(epochs=1)
        and not again.training
    )


def test_a_3d_network_starts_from_the_2d_one(tmp_path):
    flat = experiment(epochs=1)
    run(flat, tmp_path / "flat")
    deep = experiment(model="i3d:test_resnet")
    model = build_model(deep, 3)
    report = start_from(model, deep, CLASSES, tmp_path / "flat")
    assert report.share > 0.9
    clip = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(
        model.eval()(clip), load_run(tmp_path / "flat")[0](clip), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "model, init",
    [("test_resnet", "imagenet"), ("i3d:test_resnet", "imagenet"), ("r3d_18", "kinetics")],
)
def test_published_weights_carry_over_except_the_head(model, init, monkeypatch):
    "The published network is made here, as nothing is fetched in a test."
    made = {}

    def pretend(create):
        def creating(*a, pretrained=None, **k):
            made["net"] = create(*a, **k)
            made["asked"] = pretrained
            return made["net"]

        return creating

    monkeypatch.setattr(runs, "create_2d", pretend(runs.create_2d))
    monkeypatch.setattr(runs, "create_3d", pretend(runs.create_3d))
    exp = experiment(model=model, init=init, output_stride=None)
    net = build_model(exp, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = start_from(net, exp, CLASSES, init)
    assert made["asked"] == {"imagenet": "timm", "kinetics": "kinetics"}[init] and (
        report is not None
    ) == model.startswith("i3d")
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert any("layer4" in k for k in moved) and not any(".fc." in f".{k}" for k in moved)
    if report is None:
        source = getattr(made["net"], "backbone", made["net"]).state_dict()
        assert all(
            torch.equal(v, source[k])
            for k, v in getattr(net, "backbone", net).state_dict().items()
            if not k.startswith("fc.")
        )


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("model", ["test_resnet", "i3d:test_resnet"])
def test_local_weights_carry_over_as_published_ones_do(tmp_path, model, kind):
    exp = experiment(model=model, stages=2)
    source = runs.create_2d("test_resnet", 7).backbone.state_dict()
    path = tmp_path / f"w.{kind}"
    save_file(source, path) if kind == "safetensors" else torch.save(
        dict(state_dict={f"module.{k}": v for k, v in source.items()}, epoch=3), path
    )
    net = build_model(exp, 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    report = start_from(
        net, exp, CLASSES, str(path), torch.stack([Clips()[i]["clip"] for i in (0, 1)])
    )
    assert (report is not None) == exp.is_3d
    state = net.state_dict()
    head = [k for k in state if "fc." in k]
    assert head and all(torch.equal(state[k], before[k]) for k in head)
    key = next(k for k in state if k.endswith("layer1.0.conv2.weight"))
    kernel = source["layer1.0.conv2.weight"]
    moved = state[key].sum(2) if exp.is_3d else state[key]
    torch.testing.assert_close(moved, kernel)


def test_local_weights_of_a_3d_network_and_of_another_study(tmp_path):
    exp, deep = experiment(), experiment(model="i3d:test_resnet")
    source = runs.create_3d("i3d:test_resnet", 400, output_stride=8)
    torch.save(dict(model=source.state_dict()), tmp_path / "deep.pth")
    net = build_model(deep, 3)
    assert start_from(net, deep, CLASSES, tmp_path / "deep.pth") is None
    name = "layer2.0.conv1.weight"
    assert torch.equal(net.state_dict()[name], source.state_dict()[name])
    with pytest.raises(ValueError, match="does not fit this architecture"):
        start_from(build_model(exp, 3), exp, CLASSES, tmp_path / "deep.pth")
    run(experiment(epochs=1), tmp_path / "run")
    weights = tmp_path / "run" / "weights.safetensors"
    start_from(again := build_model(exp, 3), exp, CLASSES, weights)
    assert same(again, load_run(tmp_path / "run")[0])


def made_up_study(tmp_path, world, experiments=None, **kw):
    study = yaml.safe_load((project_root() / "experiments" / "smoke.yaml").read_text())
    study["data"] = dict(study["data"], root=str(world))
    study["experiments"] = experiments or study["experiments"]
    if experiments:
        study["hypotheses"] = {}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, **kw}))
    return load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(model="r3d_18", n_frames=4), None),
        (dict(model="test_resnet", stages=1), None),
        (dict(model="test_resnet", init="w.pth"), None),
        (dict(model="i3d:test_resnet", init="w.pth"), None),
        (dict(model="resnet18", init="w.pth"), "'a': .*w.pth does not fit this architecture"),
        (dict(model="test_resnet", init="cut.pth"), "'a': .*cut.pth is cut short or damaged"),
        (dict(model="i3d:ecaresnet26t"), "'a': .*no 3D twin"),
        (dict(model="r3d_18", batch_size=1), None),
        (dict(model="test_resnet", stages=4, n_frames=1, batch_size=1), "'a': .*parts of 1 clips"),
        (
            dict(model="resnet18", stages=4, n_frames=1, batch_size=4, accumulate=4),
            "'a': .*parts of 1 clips",
        ),
    ],
)
def test_what_a_study_asks_for_is_tried_before_training(tmp_path, world, change, says):
    path = tmp_path / "w.pth"
    torch.save(runs.create_2d("test_resnet", 7).backbone.state_dict(), path)
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:5000])
    study = made_up_study(tmp_path, world, {"a": dict(title="a", **change)})
    study.data.size = 32
    if not says:
        return runs.check_study(study)
    with pytest.raises(ValueError, match=f"Experiment {says}") as e:
        runs.check_study(study)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("there", [True, False])
def test_classes_that_a_study_names_are_those_of_its_data(tmp_path, world, there):
    root = world if there else tmp_path / "later"
    of = dict(says="x", measure="right", of="3d-scratch", over="2d-multi")
    wrong = dict(h=dict(of, clips=["Holding somthing"]))
    study = made_up_study(tmp_path, root, hypotheses=wrong)
    with pytest.raises(ValueError, match="Hypothesis 'h' is about 'Holding somthing', which"):
        runs.check_study(study)
    left_out = dict(h=dict(of, clips=["Uncovering something"]))
    study = made_up_study(tmp_path, root, hypotheses=left_out)
    runs.check_study(study)
    study.data.classes = [c for c in runs._known_classes(study) or [] if "Unc" not in c]
    if there:  # the analysis would say so when all is trained
        with pytest.raises(ValueError, match="of the study: data.classes leaves it out"):
            runs.check_study(study)
    study = made_up_study(tmp_path, root)
    runs.check_study(study)
    study.data.classes = ["Pushing something from left to rigth"]
    with pytest.raises(ValueError, match="did you mean 'Pushing something from left to right'"):
        runs.check_study(study)


def test_a_batch_in_parts_is_the_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build_model", plain_net)
    whole, parts = (run(experiment(opt="sgd", accumulate=n), tmp_path / str(n)) for n in (1, 2))
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert torch.load(tmp_path / "2" / "checkpoint" / "last.pt", weights_only=True)["step"] == 6
    np.testing.assert_allclose(history(tmp_path / "1"), history(tmp_path / "2"), rtol=1e-5)


def test_learning_rates(tmp_path):
    run(experiment(epochs=4, lr=1.0, opt="sgd", clip_grad=1e-3), tmp_path)
    assert (history(tmp_path).lr.diff().dropna() < 0).all()


@pytest.mark.parametrize(
    "able, allowed, want",
    [
        ("avx512_bf16", True, "bf16"),
        ("amx_bf16", True, "bf16"),
        ("amx_bf16", False, "no"),  # as under DNNL_MAX_CPU_ISA=AVX2, where it is emulated
        ("", True, "no"),
    ],
)
def test_precision_is_mixed_where_the_processor_computes_in_it(monkeypatch, able, allowed, want):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, able: True})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: allowed)
    assert precision_of(experiment(mixed_precision="auto")) == want
    assert precision_of(experiment(mixed_precision="fp16")) == "fp16"


@pytest.mark.parametrize(
    "change, tolerance",
    [
        (dict(checkpointing=True), 1e-6),
        (dict(mixed_precision="bf16"), 0.3),
    ],
)
def test_a_switch_changes_cost_but_not_the_result(tmp_path, change, tolerance):
    from accelerate.state import AcceleratorState

    settings = dict(epochs=1, opt="sgd", lr=1e-3)
    plain = run(experiment(**settings), tmp_path / "plain")
    AcceleratorState._reset_state()
    model = run(experiment(**settings, **change), tmp_path / "switched")
    AcceleratorState._reset_state()
    assert all(v.dtype != torch.bfloat16 for v in model.state_dict().values())
    for a, b in zip(plain.state_dict().values(), model.state_dict().values()):
        assert (a - b).float().norm() <= tolerance * max(a.float().norm(), 1e-3)
    logits = [
        np.stack(predict(m, Clips(6)).logits) for m in (model, load_run(tmp_path / "switched")[0])
    ]
    np.testing.assert_allclose(
        *logits, rtol=1e-4, atol=1e-5, err_msg="evaluation is in float32, during training and after"
    )


MEMORY = """
import sys, torch
from torch.profiler import ProfilerActivity, profile
from ssv2_report.study.experiments import Experiment
from ssv2_report.train import build_model, channels_last
torch.manual_seed(0)
model = channels_last(build_model(Experiment(title="t", model="r3d_18", checkpointing=sys.argv[1] == "True"), 174)).train()
for p in model.parameters(): p.grad = torch.zeros_like(p)
clip = torch.randn(4, 3, 16, 112, 112)
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
    loss = torch.nn.functional.cross_entropy(model(clip), torch.arange(4))
    loss.backward()
now = top = 0
for event in sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
    now += event.nbytes()
    top = max(top, now)
print(loss.item(), top / 1e6, sum(p.nbytes for p in model.parameters()) / 1e6)
"""


@pytest.mark.slow
def test_checkpointing_needs_less_memory():
    "Of what a step allocates beyond the weights, their gradients and the clips."
    run = lambda switch: map(
        float,
        subprocess.run(
            [sys.executable, "-c", MEMORY, str(switch)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout.split(),
    )
    (loss, plain, weights), (loss2, spared, _) = run(False), run(True)
    print(
        f"{plain:.0f} MB, with checkpointing {spared:.0f} MB: {spared / plain:.2f}; with weights and gradients {(spared + 2 * weights) / (plain + 2 * weights):.2f}"
    )
    assert loss == loss2 and spared <= 0.6 * plain


# -- what cannot go well


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_good_checkpoint(tmp_path):
    exp = experiment(epochs=30, warmup_epochs=0)

    class Poisoned(Clips):
        def __getitem__(self, i):
            return (item := super().__getitem__(i)) | dict(
                clip=item["clip"] * float("nan") if self.epoch == 1 else item["clip"]
            )

    with pytest.raises(ValueError, match="The loss is nan by step .*; lower lr"):
        fit(exp, CLASSES, Poisoned(), Clips(6), tmp_path, seed=1)
    state = torch.load(tmp_path / "checkpoint" / "last.pt", weights_only=True)
    assert state["step"] == 3 and all(v.isfinite().all() for v in state["model"].values())
    assert load_run(tmp_path / "checkpoint" / "best.safetensors")[2] == CLASSES


def limited(out, kind, limit, said, **kw):
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    what = dict(disk=resource.RLIMIT_FSIZE, memory=resource.RLIMIT_AS)[kind]
    if kind == "memory":
        limit += int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))
    try:
        fit(
            experiment(**kw),
            CLASSES,
            Clips(64, kw["n_frames"]) if kind == "memory" else Clips(),
            Clips(6),
            out,
            seed=1,
        )
    except Exception as e:
        sentence = f"{type(e).__name__}: {e}"
    resource.setrlimit(what, (resource.RLIM_INFINITY, resource.getrlimit(what)[1]))
    said.write_text(sentence)


def told(out, *args, **kw):
    "What a run says that may not use more of something."
    said = out.parent / "said.txt"
    process = fork(limited, out, *args, said, **kw)
    process.join(300)
    return said.read_text()


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_still_loads(tmp_path):
    run(experiment(), tmp_path / "old")
    sentence = told(tmp_path / "new", "disk", 1 << 20)
    assert (
        sentence.startswith("OSError: ")
        and "could not be written" in sentence
        and "free some space" in sentence
        and "\n" not in sentence
    )
    assert not [p for p in (tmp_path / "new").rglob("*.tmp")]
    state = torch.load(tmp_path / "old" / "checkpoint" / "last.pt", weights_only=True)
    state |= dict(step=3, history=state["history"][:1])  # as if one epoch were still to do
    train.save_checkpoint(tmp_path / "old" / "checkpoint" / "last.pt", **state)
    before = (tmp_path / "old" / "checkpoint" / "last.pt").read_bytes()
    assert (
        told(tmp_path / "old", "disk", 1 << 20).startswith("OSError")
        and (tmp_path / "old" / "checkpoint" / "last.pt").read_bytes() == before
    )


def test_a_batch_that_does_not_fit_is_one_sentence(tmp_path):
    "Four feature maps of it do not: it ends in its first layers, whatever the process holds already."
    sentence = told(tmp_path / "run", "memory", 3 << 28, batch_size=64, n_frames=128)
    assert (
        sentence.startswith("ValueError: ")
        and "A batch of 64 clips does not fit in memory; set accumulate: 2" in sentence
        and "\n" not in sentence
    )


@pytest.mark.parametrize(
    "n, val, classes, processes, change, says",
    [
        (0, 6, 3, 1, {}, "no training clips"),
        (12, 0, 3, 1, {}, "no validation clips"),
        (12, 6, 1, 1, {}, "at least two classes"),
        (3, 6, 3, 4, dict(batch_size=8), "8 of 3 clips does not divide into 4 processes x 1 parts"),
        (12, 6, 3, 3, {}, "does not divide into 3 processes x 1 parts"),
        (3, 6, 3, 1, dict(accumulate=4), "does not divide into 1 processes x 4 parts"),
    ],
)
def test_there_must_be_something_to_train_on(n, val, classes, processes, change, says):
    with pytest.raises(ValueError, match=says):
        clips_a_step(experiment(**change), CLASSES[:classes], range(n), range(val), processes)


@pytest.mark.parametrize(
    "cores, wish, threads", [(2, None, 1), (8, None, 4), (1, "", 1), (2, "2", 2)]
)
def test_half_of_the_cores_compute(monkeypatch, cores, wish, threads):
    chosen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wish is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    train.use_threads()
    assert chosen == [threads]


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train this run first"):
        load_run(tmp_path)


# -- order, evaluation


def test_order_of_clips_depends_on_seed_and_epoch_alone():
    a, b = EpochSampler(20, 3), EpochSampler(20, 3)
    assert list(a) == list(b) != list(EpochSampler(20, 4))
    assert list(EpochSampler(20, 3, 16)) == list(a)[:16]
    b.skip = 8
    assert list(b) == list(a)[8:]
    b.epoch, b.skip = 1, 0
    assert list(a) != list(b) and sorted(a) == sorted(b) == list(range(20))


def test_prediction_sees_every_clip_once_and_keeps_the_mode():
    model = build_model(experiment(), 3).train()
    p = predict(model, Clips(7), batch_size=3)
    assert (
        list(p["id"]) == [str(i) for i in range(7)]
        and list(p["target"]) == [i % 3 for i in range(7)]
        and model.training
    )


def test_views_are_averaged():
    model, views = build_model(experiment(), 3), [Clips(5), Clips(5)]
    views[1].set_epoch(1)
    one, two, both = (np.stack(predict(model, v).logits) for v in (views[0], views[1], views))
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-5, atol=1e-6)
    assert not np.allclose(one, two)


def test_views_are_other_moments_and_crops(world):
    s = load_study("smoke")
    s.data.root = str(world)
    _, _, views = datasets(s, experiment(views=(2, 3), n_frames=8), 0)
    assert {k: len(v) for k, v in views.items()} == dict.fromkeys(
        ("ordered", "reversed", "shuffled", "frozen"), 6
    )
    items = [v[0] for v in views["ordered"]]
    assert not torch.equal(items[0]["frames"], items[3]["frames"]) and torch.equal(
        items[0]["frames"], items[1]["frames"]
    )
    _, _, one = datasets(s, experiment(n_frames=8), 0)
    assert [len(v) for v in one.values()] == [1] * 4


def test_tensorboard_gets_scalars_and_a_map(tmp_path):
    write = board(tmp_path, Clips(2))
    write(dict(epoch=1, val_top1=0.5, lr=0.1), build_model(experiment(), 3))
    events = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert all(tag in events for tag in (b"val_top1", b"lr", b"map", b"PNG"))


def test_metrics_by_hand():
    logits = [[3.0, 1, 0], [1, 2, 0], [0, 1, 5], [2, 1, 0]]
    table = pd.DataFrame(dict(target=[0, 0, 2, 1], pred=[0, 1, 2, 0], logits=logits))
    m = metrics(table, CLASSES)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert (
        m["top1"] == 0.5
        and m["top5"] == 1.0
        and m["mean_class_accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)
    )
    assert m["pair_accuracy"] == pytest.approx(1 / 3) and m["plain_accuracy"] == 1.0
    assert m["nll"] == pytest.approx(-np.log([p[0, 0], p[1, 0], p[2, 2], p[3, 1]]).mean())
    json.dumps(m)
    assert confusion(table, CLASSES).to_numpy().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]


# -- the head


@pytest.mark.parametrize("opt", ["adamw", "muon"])
def test_a_resumed_run_leaves_out_what_the_undisturbed_one_does(tmp_path, opt):
    exp = experiment(dropout=0.5, accumulate=2, opt=opt)
    whole = run(exp, tmp_path / "whole")
    steps = []

    def stop(line):
        steps.append(line)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "progress_writer", lambda run, show: lambda run: stop(run.step))
        with pytest.raises(RuntimeError, match="Stopped by SIGTERM"):
            run(exp, tmp_path / "resumed")
    torch.rand(7)  # another process has another state
    assert same(run(exp, tmp_path / "resumed"), whole)
    assert not same(run(experiment(accumulate=2, opt=opt), tmp_path / "none"), whole)


def test_muon_computes_in_float32():
    """In bf16 its step takes ten times as long on a processor without bf16 instructions, and twice as
    long on one with them."""
    net = build_model(experiment(), 3)
    optimizer, _ = train.optimiser(experiment(opt="muon"), net, 10)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    types = set()

    class Types(TorchDispatchMode):
        def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            types.update(t.dtype for t in tree_leaves(found) if isinstance(t, torch.Tensor))
            return found

    before = net.backbone.fc.weight.clone()
    with Types():
        optimizer.step()
    assert types == {torch.float32}
    change = torch.linalg.svdvals(net.backbone.fc.weight.detach() - before)
    assert change.max() < 1.6 * change.min(), "the step is not orthogonal"


@pytest.mark.parametrize("model", ["test_resnet", "i3d:test_resnet", "r3d_18"])
def test_the_head_has_the_learning_rate_that_is_asked_for(model):
    exp = experiment(model=model, output_stride=None, head_lr=5.0, opt="momentum", epochs=4)
    net = build_model(exp, 3)
    optimizer, scheduler = train.optimiser(exp, net, 10)
    plain, _ = train.optimiser(exp.model_copy(update=dict(head_lr=1.0)), net, 10)
    head = {id(p) for p in getattr(net, "backbone", net).fc.parameters()}
    of = lambda optimizer, key: {id(p): g[key] for g in optimizer.param_groups for p in g["params"]}
    assert of(optimizer, "weight_decay") == of(plain, "weight_decay")
    for step in (0, 5, 15, 39):
        scheduler.step_update(step)
        lr = optimizer.param_groups[0]["lr"]
        rates = of(optimizer, "lr")
        assert len(rates) == len(list(net.parameters())) and set(rates) > head
        for p, rate in rates.items():
            assert rate == pytest.approx(5 * lr if p in head else lr)
