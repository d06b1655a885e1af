"""The workflow's profile on a real SLURM of one node; skipped where SLURM is not installed or cannot be started by hand."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from jobs import lines_of, side_by_side, stand_in
from worlds import clone

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
missing = [p for p in ("slurmctld", "slurmd", "munged") if not shutil.which(p)] + [
    "snakemake_executor_plugin_slurm"
] * (not find_spec("snakemake_executor_plugin_slurm"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing) or os.geteuid() != 0,
        reason=f"needs root and {', '.join(missing) or 'nothing else'}",
    ),
]


@pytest.fixture
def cluster(tmp_path):
    subprocess.run([CLUSTER, "start", tmp_path / "slurm"], check=True)
    yield
    subprocess.run([CLUSTER, "stop", tmp_path / "slurm"], check=True)


def jobs():
    "Name of the rule, id and what was asked for of every job SLURM knows."
    text = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True).stdout
    return [
        dict(field.split("=", 1) for field in line.split() if "=" in field)
        for line in text.splitlines()
        if "JobId=" in line
    ]


def workflow(study, results, *targets):
    "The command by which a study's jobs become SLURM's."
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"),
        *("--workflow-profile", "workflow/profiles/slurm", "--slurm-no-account"),
        *("--slurm-status-command", "squeue", "--seconds-between-status-checks", "3"),
        *("--latency-wait", "5", "--set-threads", "demo_data=2", "audit=2", "cache=2"),
        *("train=1", "gradcam=1", "--config", f"study={study}", f"results={results}"),
        *("--", *map(str, targets)),
    ]


def test_jobs_at_a_time_see_one_gpu_each(cluster, tmp_path):
    "Two trainings wait for one another; whatever this machine has, each is shown the GPU that SLURM gave it."
    project, results = tmp_path / "project", tmp_path / "results"
    clone(ROOT, project)
    study, env, log = stand_in(tmp_path, at_once=2)
    targets = [results / "flags" / f"{job}-s0" for job in ("gradcam-a", "train-b")]
    done = subprocess.run(
        workflow(study, results, *targets),
        cwd=project,
        env=env | {"SSV2_GPUS": "8", "PYTHONPATH": str(project) + paths()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = lines_of(log)
    assert side_by_side(lines, ["train"]) == 2 and len(lines) == 6
    assert {sees for _, step, _, sees, _ in lines if step == "train"} == {"0", "1"}


def paths():
    return os.pathsep + os.environ.get("PYTHONPATH", "")


def test_the_study_runs_as_slurm_jobs_with_their_gpus_dependencies_and_retries(cluster, tmp_path):
    "The inflated network and what it needs; the first training job is cancelled once it runs."
    project, results = tmp_path / "project", tmp_path / "results"
    clone(ROOT, project)
    target = results / "flags" / "train-3d-inflated-s0"
    command = workflow("smoke", results, target)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=project,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "PYTHONPATH": str(project) + paths(),
            },
        )
    asked, cancelled = {}, None
    while process.poll() is None:
        for job in jobs():
            asked[job["JobId"]] = job
            if not cancelled and "train" in job.get("Comment", "") and job["JobState"] == "RUNNING":
                cancelled = job["JobId"]
                subprocess.run(["scancel", cancelled], check=True)
        time.sleep(1)
    text = (tmp_path / "log").read_text()
    assert process.returncode == 0 and target.is_file(), text[-4000:]
    train = [j for j in asked.values() if "train" in j.get("Comment", "")]
    assert len(train) == 3 and cancelled, "two networks, and one of them again"
    assert all(
        "gres/gpu=1"
        in j.get("ReqTRES", j.get("TRES", ""))
        + j.get("TresPerJob", "").replace("gres:gpu:", "gres/gpu=")
        and j["TimeLimit"] == "2-00:00:00"
        for j in train
    )
    assert (results / "flags" / "train-2d-multi-s0").stat().st_mtime < target.stat().st_mtime
