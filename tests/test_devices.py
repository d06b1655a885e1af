"""No GPU is given to two jobs, and none is lost; pretended ones, since what a pool does needs none."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time

import nbformat
import pytest
from books import run_as_job
from jobs import lines_of, side_by_side, stand_in

from ssv2_report.jobs.steps import gpus_of
from ssv2_report.jobs.workflow import workflow_command
from ssv2_report.machine.devices import acquire_gpus, seen_gpus, threads_of
from ssv2_report.study.experiments import load_study, project_root


@pytest.fixture(autouse=True)
def pool(tmp_path, monkeypatch):
    "A pool of this test's own; says how many GPUs are pretended."
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of processes
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda n: monkeypatch.setenv("SSV2_GPUS", str(n))


def shown(given):
    return given["env"]["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(
    "count, visible, names",
    [
        ("4", None, ["0", "1", "2", "3"]),
        ("0", None, []),
        ("4", "2,5", ["2", "5"]),
        ("1", "2,5", ["2"]),
        ("2", " GPU-a , GPU-b,GPU-c", ["GPU-a", "GPU-b"]),
        ("4", "", []),
        ("4", "3,-1,2", ["3"]),
        ("4", "1,1", ["1"]),
        (None, None, []),  # what PyTorch sees, which is none
    ],
)
def test_the_gpus_that_there_are(count, visible, names, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for key, value in (("SSV2_GPUS", count), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(key, raising=False)
        if value is not None:
            monkeypatch.setenv(key, value)
    assert seen_gpus() == names


def test_a_count_that_is_none_is_one_sentence(pool):
    pool("two")
    with pytest.raises(ValueError, match="SSV2_GPUS is 'two'; give a number"):
        seen_gpus()


def test_what_a_job_takes():
    study = load_study("smoke")
    study.experiments["2d-multi"].gpus_per_run = 2
    assert [gpus_of(study, "train", e) for e in ("2d-multi", "3d-scratch")] == [2, 1]
    assert [gpus_of(study, s, "2d-multi") for s in ("gradcam", "reliance", "analysis")] == [1, 1, 0]


@pytest.mark.parametrize(
    "there, threads",
    [
        (dict(cores=16), 1),
        (dict(cores=16, gpus=1), 16),
        (dict(cores=16, gpus=4), 4),
        (dict(cores=16, gpus=4, wanted=2), 8),
        (dict(cores=16, gpus=4, jobs=2), 8),
        (dict(cores=16, gpus=1, jobs=4), 16),
        (dict(cores=16, jobs=2), 8),
        (dict(cores=2, gpus=8), 1),
    ],
)
def test_cores_follow_from_the_jobs_at_a_time(there, threads):
    assert threads_of(**there) == threads


def test_jobs_at_a_time_have_gpus_of_their_own(pool):
    pool(4)
    with contextlib.ExitStack() as stack:
        given = [stack.enter_context(acquire_gpus(1)) for _ in range(4)]
        assert sorted(map(shown, given)) == ["0", "1", "2", "3"]
    with acquire_gpus(2) as one, acquire_gpus(2) as other:
        assert sorted(shown(one).split(",") + shown(other).split(",")) == ["0", "1", "2", "3"]


def test_names_with_a_slash_are_names(pool, monkeypatch):
    pool(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-GPU-1/2/0,MIG-GPU-1/3/0")
    with acquire_gpus(1) as one, acquire_gpus(1) as other:
        assert {shown(one), shown(other)} == {"MIG-GPU-1/2/0", "MIG-GPU-1/3/0"}


def test_who_needs_none_sees_none_and_too_many_are_refused(pool, monkeypatch):
    pool(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with acquire_gpus(0) as given:
        assert shown(given) == "" and not given["pass_fds"]
    with pytest.raises(ValueError, match="to have 2 GPUs and sees 1; set gpus_per_run"):
        with acquire_gpus(2):
            pass
    pool(0)
    with acquire_gpus(2) as given:  # trained on the CPU
        assert shown(given) == ""


def test_slurm_gives_gpus_itself(pool, monkeypatch):
    pool(1)
    with acquire_gpus(1) as ours:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with acquire_gpus(
            1
        ) as one:  # at once, though another job of the machine has one of that name
            monkeypatch.setenv("SLURM_JOB_ID", "8")
            with acquire_gpus(1) as other:
                assert shown(ours) == shown(one) == shown(other) == "0"


JOB = """
import subprocess, sys, time
from ssv2_report.machine.devices import acquire_gpus
with acquire_gpus(int(sys.argv[1])) as given:
    seen = "import os, time; print(os.getpid(), os.environ['CUDA_VISIBLE_DEVICES'], flush=True); "
    subprocess.Popen([sys.executable, "-c", seen + "time.sleep(float(" + sys.argv[2] + "))"], **given)
    time.sleep(600)
"""


def start(gpus=1, child=0):
    "A job that holds GPUs, and starts a process that lives for `child` seconds."
    command = [sys.executable, "-c", JOB, str(gpus), str(child)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(job, pid=None):
    for p in [job.pid] + [pid] * bool(pid):
        os.kill(p, signal.SIGKILL)
    job.wait()
    job.stdout.close()


def test_a_killed_jobs_gpus_come_back(pool):
    pool(2)
    job = start(gpus=2)
    assert job.stdout.readline().split()[1] == "0,1"
    said = []

    def on_wait(sentence):
        said.append(sentence)
        end(job)

    with acquire_gpus(1, on_wait) as given:
        assert shown(given) in ("0", "1") and "Waiting for 1 of 2 GPUs" in said[0]


def test_what_a_job_started_holds_its_gpus_as_long_as_it_lives(pool):
    pool(1)
    job = start(child=600)
    child = int(job.stdout.readline().split()[0])
    end(job)
    with acquire_gpus(1, on_wait=lambda _: os.kill(child, signal.SIGKILL)) as given:
        assert shown(given) == "0"
        with pytest.raises(ProcessLookupError):
            while True:  # until it is reaped
                os.kill(child, 0)
                time.sleep(0.01)


def test_pairs_do_not_wait_for_one_another(pool):
    pool(2)
    with acquire_gpus(1):
        pairs = [start(gpus=2) for _ in range(2)]
        with acquire_gpus(1):
            pass  # what is free stays free while they wait
    (pipe, *_), _, _ = select.select([pair.stdout for pair in pairs], [], [], 60)
    for pair in sorted(pairs, key=lambda pair: pair.stdout is not pipe):
        assert pair.stdout.readline().split()[1] == "0,1"
        end(pair)


@pytest.mark.parametrize("n", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_random_kills_leave_no_gpu_taken(n, pool):
    pool(3)
    at_random = random.Random(0)
    jobs = [start(gpus=at_random.choice((1, 1, 2))) for _ in range(n)]
    for job in at_random.sample(jobs, n):  # waiting, about to hold, or holding
        time.sleep(at_random.uniform(0, 0.4))
        end(job)
    with acquire_gpus(3) as given:
        assert shown(given) == "0,1,2"


def test_a_notebook_sees_the_gpus_of_its_job_alone(pool, tmp_path):
    pool(3)
    folder = tmp_path / "project" / "nbs"
    folder.mkdir(parents=True)
    cell = dict(cell_type="code", metadata={}, outputs=[], execution_count=None)
    cell["source"] = "import os; print('sees', os.environ['CUDA_VISIBLE_DEVICES'] or 'none')"
    book = nbformat.from_dict(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=4))
    nbformat.write(book, folder / "book.ipynb")
    with acquire_gpus(1):
        for gpus, seen in ((0, "none"), (2, "1,2")):
            run_as_job(folder.parent, "book", tmp_path / "out.ipynb", gpus)
            assert f"sees {seen}" in (tmp_path / "out.ipynb").read_text()


def workflow(tmp_path, cores, gpus, per_run=1, at_once=1, jobs=None, limits=True):
    "The workflow's own rules with jobs that stand in; what its GPU jobs wrote, line by line."
    study, env, log = stand_in(tmp_path, per_run, at_once)
    results = tmp_path / "results"
    command = workflow_command(study, results, cores, gpus if limits else 0, jobs)
    targets = [
        f"{results}/flags/{job}-s0" for job in ("gradcam-a", "train-b", "train-c", "train-d")
    ]
    done = subprocess.run(
        [*command, "--nolock", "--", *targets],
        cwd=project_root(),
        env=env | {"SSV2_GPUS": str(gpus)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = lines_of(log)
    assert len(lines) == 10, "four trainings and a making of maps begin and end"
    return lines


def test_one_gpu_and_sixteen_cores_never_run_two_jobs_at_once(tmp_path):
    lines = workflow(tmp_path, cores=16, gpus=1)
    assert side_by_side(lines) == 1 and {line[3] for line in lines} == {"0"}
    assert {line[4] for line in lines} == {"16"}


def test_four_gpus_run_four_jobs_with_one_each(tmp_path):
    lines = workflow(tmp_path, cores=16, gpus=4, at_once=4)
    assert side_by_side(lines, ["train"]) == 4
    assert {line[3] for line in lines} == {"0", "1", "2", "3"}
    assert {line[4] for line in lines} == {"4"}


@pytest.mark.slow
def test_two_gpus_per_run_come_in_pairs(tmp_path):
    lines = workflow(tmp_path, cores=16, gpus=4, per_run=2, at_once=2)
    train = [line for line in lines if line[1] == "train"]
    assert side_by_side(train) == 2 and {len(line[3].split(",")) for line in train} == {2}
    assert {line[3] for line in train} <= {"0,1", "2,3", "0,2", "1,3", "0,3", "1,2"}


@pytest.mark.slow
def test_jobs_are_limited_by_hand(tmp_path):
    lines = workflow(tmp_path, cores=3, gpus=0, jobs=2, at_once=2)
    assert side_by_side(lines) == 2 and {line[3] for line in lines} == {""}


@pytest.mark.slow
def test_snakemake_called_by_hand_shares_no_gpu_either(tmp_path):
    "Without limits on the command line the pool alone keeps jobs apart."
    lines = workflow(tmp_path, cores=4, gpus=2, at_once=2, limits=False)
    assert side_by_side(lines) == 2


def test_a_lock_that_is_a_link_is_not_followed(pool, tmp_path):
    pool(1)
    with acquire_gpus(1):
        pass
    lock = tmp_path / f"ssv2-gpus-{os.getuid()}" / "here" / "gpu-0"
    lock.unlink()
    lock.symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="gpu-0"):
        with acquire_gpus(1):
            pass
    assert not (tmp_path / "made").exists()
