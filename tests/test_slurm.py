"""The workflow's profile on a real SLURM of one node; skipped where SLURM is not installed or cannot be started by hand."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
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


def test_the_study_runs_as_slurm_jobs_with_their_gpus_dependencies_and_retries(cluster, tmp_path):
    "The inflated network and what it needs; the first training job is cancelled once it runs."
    project, results = tmp_path / "project", tmp_path / "results"
    clone(ROOT, project)
    target = results / "flags" / "train-3d-inflated-s0"
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        "workflow/Snakefile",
        "--workflow-profile",
        "workflow/profiles/slurm",
        "--slurm-no-account",
        "--slurm-status-command",
        "squeue",
        "--seconds-between-status-checks",
        "3",
        "--latency-wait",
        "5",
        "--set-threads",
        "demo_data=2",
        "audit=2",
        "cache=2",
        "train=1",
        "--config",
        "study=smoke",
        f"results={results}",
        "--",
        str(target),
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=project,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")]),
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
