"""Time and memory of the analysis on a study of the whole dataset's size: 24,777 clips, 174 classes, 12 networks, 3 seeds, made up. Prints one JSON line.

The study is written to a temporary folder (about 2 GB); the notebook is executed as `ssv2 analyse` executes it, without the pictures of clips. Its peer
is the plain reading of the same tables' columns into memory, in the same run."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import yaml

from ssv2_report.analysis.simulated import simulate
from ssv2_report.data.clips import REVERSAL_PAIRS, STATIC, TEMPORAL
from ssv2_report.study.experiments import load_study

ROOT = Path(__file__).parents[1]
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--clips", type=int, default=24_777)
parser.add_argument("--networks", type=int, default=12)
parser.add_argument("--seeds", type=int, default=3)
args = parser.parse_args()


with tempfile.TemporaryDirectory() as tmp:
    R = Path(tmp)
    classes = list(dict.fromkeys([c for p in REVERSAL_PAIRS for c in p] + TEMPORAL + STATIC))
    classes += [f"Doing something else {i}" for i in range(174 - len(classes))]
    study = yaml.safe_load((ROOT / "experiments" / "ssv2.yaml").read_text())
    study["data"]["root"], study["seeds"] = str(R / "data"), list(range(args.seeds))
    for i in range(args.networks - len(study["experiments"])):
        study["experiments"][f"more-{i}"] = dict(title=f"More {i}", model="r3d_18")
    (R / "ssv2.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    simulate(load_study(str(R / "ssv2.yaml")), R, clips=args.clips, classes=classes)
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
