"""The whole demo from nothing, against its training steps alone in a bare loop over clips already in memory, with the same networks, optimisers and precision.

Prints one JSON object: minutes, whether the networks are trained in bf16 here, core seconds of each step of the workflow (the cores that its jobs
take x their seconds), seconds of the bare loops on one core, and the ratio: cores x seconds of the whole / seconds of the bare loops. Run it in a fresh clone; it makes the report. As on a processor without bf16:
`DNNL_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 python benchmarks/demo.py [study] --set settings.mixed_precision=no`"""

import json
import os
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

from ssv2_report.data.basics import usable_cores
from ssv2_report.jobs.durations import cores_of_label, seconds_of_steps
from ssv2_report.models.net2d import channels_last
from ssv2_report.study.experiments import load_study, project_root, worlds_of
from ssv2_report.study.runs import build_model, precision_of
from ssv2_report.train import optimiser


def bare_seconds(study, exp, steps=20):
    "Seconds of the training steps of one run, from the fastest of some."
    shape, classes = (exp.n_frames, study.data.size, study.data.size), 10
    model = channels_last(build_model(exp, classes)).train()
    optimizer, _ = optimiser(exp, model, steps)
    clip, target = torch.randn(exp.batch_size, 3, *shape), torch.randint(classes, [exp.batch_size])
    took, half = [], precision_of(exp) == "bf16"
    for _ in range(steps):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(model(clip), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), exp.clip_grad)
        optimizer.step()
        took.append(time.perf_counter() - began)
    in_all = exp.epochs * (classes * study.data.demo.train_per_class // exp.batch_size)
    return in_all * min(took)


def main(name="demo", *options):
    overrides = [value for flag, value in zip(options, options[1:]) if flag == "--set"]
    study, results = load_study(name, overrides), project_root() / "results" / name
    if results.exists():
        sys.exit(f"{results} is there; measure in a fresh clone.")
    began = time.perf_counter()
    command = [sys.executable, "-m", "ssv2_report.command", "reproduce", name, *options]
    subprocess.run(command, check=True)
    seconds, cores = time.perf_counter() - began, usable_cores()
    torch.set_num_threads(1)
    bare = sum(
        bare_seconds(world, exp) * len(world.seeds)
        for world in worlds_of(study)
        for exp in world.experiments.values()
    )
    steps = {
        row["step"]: round(row["seconds"] * cores_of_label(row["step"], cores), 1)
        for row in seconds_of_steps(study, results)
    }
    found = dict(
        study=name,
        cores=cores,
        bf16=all(precision_of(exp) == "bf16" for exp in study.experiments.values()),
        minutes=round(seconds / 60, 2),
        bare_seconds=round(bare, 1),
        ratio=round(seconds * cores / bare, 2),
        core_seconds=round(sum(steps.values()), 1),
        steps=steps,
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
