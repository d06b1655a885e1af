"""Time and memory of the analysis on a study of the whole dataset's size: 24,777 clips, 174 classes, 12 networks, 3 seeds, made up. Prints one JSON line.

The study is written to a temporary folder (about 2 GB); the notebook is executed as `ssv2 analyse` executes it, without the pictures of clips. Its peer
is the plain reading of the same tables' columns into memory, in the same run."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import yaml

ROOT = Path(__file__).parents[1]
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--clips", type=int, default=24_777)
parser.add_argument("--networks", type=int, default=12)
parser.add_argument("--seeds", type=int, default=3)
args = parser.parse_args()


def write_run(folder, classes, y, rng, is_3d, cams):
    (folder / "maps").mkdir(parents=True)
    n, k = len(y), len(classes)
    ids = [str(i) for i in range(n)]
    tables = []
    for order, knows in dict(ordered=1, reversed=0.5, shuffled=0.5, frozen=0.4).items():
        logits = rng.normal(size=(n, k)).astype("float32")
        logits[np.arange(n), y] += (3 + is_3d) * knows
        tables.append(
            pd.DataFrame(
                dict(id=ids, target=y, pred=logits.argmax(1), logits=list(logits), order=order)
            )
        )
    pd.concat(tables).to_parquet(folder / "predictions.parquet")
    pd.DataFrame(
        dict(epoch=range(1, 31), val_top1=np.linspace(0.1, 0.5, 30), seconds=600.0)
    ).to_csv(folder / "history.csv", index=False)
    (folder / "metrics.json").write_text(
        json.dumps(dict(classes=classes, cost=dict(params=10**7, gflops=10.0 + is_3d)))
    )
    pd.DataFrame(
        dict(id=np.repeat(ids, 16), t=np.tile(range(16), n), method="gradcam", mass=1 / 16)
    ).to_parquet(folder / "attention.parquet")
    columns = [
        "ratio_hand",
        "ratio_object",
        "ratio_background",
        "pointing",
        "path_object",
        "path_hand",
        "effective_frames",
        "ratio_action",
        "share_background",
        "area_background",
    ]
    pd.concat(
        [
            pd.DataFrame(dict(id=ids, method=m, **{c: rng.random(n) for c in columns}))
            for m in ("gradcam", "gradcam++")
        ]
    ).to_parquet(folder / "attention_clips.parquet")
    np.savez(
        folder / "maps" / "gradcam.npz",
        ids=ids[:cams],
        maps=rng.random((cams, 2, 7, 7)).astype("float16"),
    )


with tempfile.TemporaryDirectory() as tmp:
    R, rng = Path(tmp), np.random.default_rng(0)
    import sys

    sys.path.insert(0, str(ROOT))
    from ssv2_report.data.clips import REVERSAL_PAIRS, STATIC, TEMPORAL

    classes = list(dict.fromkeys([c for p in REVERSAL_PAIRS for c in p] + TEMPORAL + STATIC))
    classes += [f"Doing something else {i}" for i in range(174 - len(classes))]
    study = yaml.safe_load((ROOT / "experiments" / "ssv2.yaml").read_text())
    study["data"]["root"], study["seeds"] = str(R / "data"), list(range(args.seeds))
    for i in range(args.networks - len(study["experiments"])):
        study["experiments"][f"more-{i}"] = dict(title=f"More {i}", model="r3d_18")
    (R / "ssv2.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    y = np.arange(args.clips) % len(classes)
    for name, e in study["experiments"].items():
        for seed in study["seeds"]:
            write_run(
                R / "runs" / f"{name}-s{seed}",
                classes,
                y,
                rng,
                e["model"].startswith("r"),
                min(3480, args.clips),
            )
    began = time.perf_counter()
    for f in R.glob("runs/*/*.parquet"):
        pd.read_parquet(f)
    reading = time.perf_counter() - began
    nb = nbformat.read(ROOT / "nbs" / "analysis" / "analysis_run.ipynb", 4)
    nb.cells = [c for c in nb.cells if "label: case-studies" not in c.source]
    nb.cells.append(
        nbformat.v4.new_code_cell(
            "import resource\nprint('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
    )
    nbformat.write(nb, R / "analysis.ipynb")
    began = time.perf_counter()
    done = papermill.execute_notebook(
        str(R / "analysis.ipynb"),
        str(R / "out.ipynb"),
        dict(study=str(R / "ssv2.yaml"), results=str(R)),
        cwd=str(ROOT / "nbs"),
        kernel_name="python3",
        progress_bar=False,
    )
    seconds = time.perf_counter() - began
    peak = int(done.cells[-1].outputs[-1].text.split()[1]) / 1024
    slowest = sorted(
        (
            (c.metadata.papermill.duration or 0, c.source[:50])
            for c in done.cells
            if c.cell_type == "code"
        ),
        reverse=True,
    )[:5]
    print(
        json.dumps(
            dict(
                benchmark="analysis",
                clips=args.clips,
                networks=len(study["experiments"]),
                seeds=args.seeds,
                seconds=round(seconds, 1),
                peak_mb=round(peak),
                reading_alone_seconds=round(reading, 1),
                ratio=round(seconds / reading, 2),
                slowest=[[round(t, 1), s] for t, s in slowest],
            )
        )
    )
