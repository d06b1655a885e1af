"""The training loader (read, augment, batch) from the cache against the same loader decoding SSv2-like webm, on one thread; and a training epoch's wait for data.

Prints one JSON line. The epoch is of the demo's 3D model (`i3d:test_resnet`, 8 frames of 64 pixels, output stride 8) with the loader in the training process.
`python benchmarks/cache.py [clips]`"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parent)]
import decode
import worlds

from ssv2_report.data.cache import build_cache
from ssv2_report.data.clips import ClipDataset, load_index


def rate(data, batch=8, passes=5):  # Clips a second, from the best of some passes for each batch
    seconds = []
    for epoch in range(passes):
        data.set_epoch(epoch)
        seconds.append([])
        loader = iter(torch.utils.data.DataLoader(data, batch))
        while True:
            start = time.perf_counter()
            if next(loader, None) is None:
                break
            seconds[-1].append(time.perf_counter() - start)
    return round(len(data) / np.min(seconds, 0).sum(), 1)


def waiting(
    data, batch=16, passes=3
):  # Per cent of a training step spent waiting for its batch, and milliseconds a clip in all (medians of the steps)
    from ssv2_report.models.net3d import create_3d

    model = create_3d("i3d:test_resnet", num_classes=10, output_stride=8)
    optimiser, steps = torch.optim.SGD(model.parameters(), 0.01), []
    for _ in range(passes):
        loader = iter(torch.utils.data.DataLoader(data, batch, drop_last=True))
        while True:
            start = time.perf_counter()
            if (item := next(loader, None)) is None:
                break
            ready = time.perf_counter()
            torch.nn.functional.cross_entropy(model(item["clip"]), item["target"]).backward()
            optimiser.step(), optimiser.zero_grad()
            steps.append((ready - start, time.perf_counter() - start))
    wait, total = np.median(steps, 0)
    return round(100 * wait / total, 2), round(1000 * total / batch, 1)


def main(clips=48):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = worlds.make(f"{folder}/world", train=clips, validation=1, test=0)
        for k in range(9):
            decode.video(f"{folder}/{k}.webm", 30 + 5 * k, k)
        for k in range(clips):
            (root / f"20bn-something-something-v2/{k + 1}.webm").write_bytes(
                Path(f"{folder}/{k % 9}.webm").read_bytes()
            )
        index, out = load_index(root, splits=("train",)), {}
        for frames, size in ((8, 64), (16, 112)):
            part = dict(decode=rate(ClipDataset(index, frames, size, train=True)))
            for kind in ("raw", "jpeg"):
                start = time.perf_counter()
                with open(os.devnull, "w") as quiet:
                    stdout, sys.stdout = sys.stdout, quiet
                    cache = build_cache(index, f"{folder}/cache", size, workers=1, kind=kind)
                    sys.stdout = stdout
                part |= {
                    kind: rate(ClipDataset(index, frames, size, train=True, cache=cache)),
                    f"{kind}_build": round(len(index) / (time.perf_counter() - start), 1),
                    f"{kind}_mb_a_clip": round(
                        sum(f.stat().st_size for f in cache.folder.iterdir()) / len(index) / 1e6, 3
                    ),
                }
                if kind == "raw" and size == 64:
                    share, ms = waiting(ClipDataset(index, frames, size, train=True, cache=cache))
            out[f"{frames}x{size}"] = part | {
                "raw_over_decode": round(part["raw"] / part["decode"], 1)
            }
        print(
            json.dumps(
                dict(
                    benchmark="cache",
                    clips_per_second=out,
                    waiting_percent=share,
                    epoch_ms_a_clip=ms,
                )
            )
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
