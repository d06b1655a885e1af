"""Jobs that stand in for those of the workflow, and say which GPUs they see."""

import json
import os
import shlex
import signal
import sys
import time

import psutil

STUDY = """
title: t
data: {root: world, demo: {train_per_class: 1}, size: 32}
seeds: [0]
settings: {model: test_resnet, batch_size: 8, gpus_per_run: PER_RUN}
experiments: {a: {title: a}, b: {title: b}, c: {title: c}, d: {title: d}}
"""

# Stands for the command in the workflow's jobs. Each writes what it sees when it begins and ends,
# and a training ends when as many as AT_ONCE have been seen side by side.
STAND_IN = """
import json, os, sys, time
from pathlib import Path

step, study, of = [*sys.argv[5:8], ""][:3]
if step not in ("train", "gradcam"):
    sys.exit()
from ssv2_report.machine.devices import acquire_gpus

log, wanted = Path(os.environ["LOG"]), int(os.environ["PER_RUN"]) if step == "train" else 1

def write(what, sees):
    with open(log, "a") as f:
        f.write(json.dumps([what, step, of, sees, os.environ["OMP_NUM_THREADS"]]) + "\\n")

def most():
    side_by_side = counted = 0
    for line in log.read_text().splitlines():
        what, kind, *_ = json.loads(line)
        side_by_side += (1 if what == "begins" else -1) * (kind == "train")
        counted = max(counted, side_by_side)
    return counted

with acquire_gpus(wanted) as given:
    sees = given["env"]["CUDA_VISIBLE_DEVICES"]
    write("begins", sees)
    until = time.time() + 100
    while step == "train" and most() < int(os.environ["AT_ONCE"]) and time.time() < until:
        time.sleep(0.05)
    write("ends", sees)
"""


def stand_in(folder, per_run=1, at_once=1):
    "A study of four networks in `folder`, the environment in which a stand-in does its jobs, and their log."
    study, script, python, log = (folder / n for n in ("s.yaml", "stand_in.py", "python", "log"))
    study.write_text(STUDY.replace("PER_RUN", str(per_run)))
    script.write_text(STAND_IN)
    python.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n'
    )
    python.chmod(0o755)
    env = dict(SSV2_PYTHON=python, LOG=log, PER_RUN=per_run, AT_ONCE=at_once)
    return study, os.environ | {k: str(v) for k, v in env.items()}, log


def lines_of(log):
    "What happened: 'begins' or 'ends', the step, its experiment, the GPUs that it sees, its threads."
    return [json.loads(line) for line in log.read_text().splitlines()]


def side_by_side(lines, steps=("train", "gradcam")):
    "At most so many jobs at a time; fails where two of them have one GPU."
    now, most = {}, 0
    for what, step, of, sees, _ in lines:
        if step not in steps:
            continue
        if what == "ends":
            now.pop((step, of))
            continue
        now[step, of] = sees.split(",")
        in_use = [gpu for gpus in now.values() for gpu in gpus if gpu]
        assert len(in_use) == len(set(in_use)), now
        most = max(most, len(now))
    return most


def heeded():
    "For `preexec_fn`: ignored signals are inherited, such as SIGINT in the background of a shell and SIGHUP by nohup."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def until(true, seconds=90):
    "Wait until something is so, and say whether it is."
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
