"""A training epoch of ours (frame cache, augmentation, accelerate, history, checkpoint at its end) against a bare loop over the same batches already in memory, with the
same network, optimiser and precision, in turns.

Prints one JSON line: milliseconds a clip of each (best of the rounds), their ratio, and the share of our time spent waiting for clips.
`OMP_NUM_THREADS=1 python benchmarks/train.py [network] [clips] [rounds]`"""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import worlds

from ssv2_report.data.cache import build_cache
from ssv2_report.data.clips import ClipDataset, load_index
from ssv2_report.study.experiments import Experiment
from ssv2_report.train import build_model, channels_last, fit, optimiser


def bare(exp, classes, batches):
    "Seconds of an epoch of nothing but the network."
    torch.manual_seed(0)
    model = channels_last(build_model(exp, len(classes))).train()
    optimizer, _ = optimiser(exp, model, len(batches))
    began = time.perf_counter()
    for clip, target in batches:
        loss = torch.nn.functional.cross_entropy(model(clip), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), exp.clip_grad)
        optimizer.step()
    return time.perf_counter() - began


def main(network="i3d:test_resnet", clips=64, rounds=4):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = worlds.make(f"{folder}/world", train=clips, validation=4, test=0)
        train, val = (load_index(root, splits=(split,)) for split in ("train", "validation"))
        with contextlib.redirect_stdout(sys.stderr):
            cache = [build_cache(i, f"{folder}/cache", 64, workers=1) for i in (train, val)][-1]
        exp = Experiment(
            title="t", model=network, output_stride=8, n_frames=8, batch_size=8, epochs=1
        )
        train_set, val_set = (
            ClipDataset(i, 8, 64, train=i is train, cache=cache) for i in (train, val)
        )
        batches = [
            (b["clip"], b["target"])
            for b in torch.utils.data.DataLoader(train_set, exp.batch_size, drop_last=True)
        ]
        ours, theirs, waiting = [], [], []
        for k in range(rounds + 1):  # the first warms up
            fit(
                exp,
                train.classes,
                train_set,
                val_set,
                f"{folder}/run-{k}",
                on_epoch=lambda row, model: (
                    ours.append(len(batches) * exp.batch_size / row["clips_per_s"]),
                    waiting.append(row["waiting"]),
                ),
            )
            theirs.append(bare(exp, train.classes, batches))
        a, b = min(ours[1:]), min(theirs[1:])
        print(
            json.dumps(
                dict(
                    benchmark="train",
                    network=network,
                    ms_a_clip=dict(
                        ours=round(1000 * a / clips, 2), bare=round(1000 * b / clips, 2)
                    ),
                    ratio=round(a / b, 3),
                    waiting=waiting[1:],
                )
            )
        )


if __name__ == "__main__":
    main(*(int(a) if a.isdigit() else a for a in sys.argv[1:]))
