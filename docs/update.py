"""The demo's report in this folder, to read without running anything.

`python docs/update.py` after `ssv2 reproduce` copies it here and writes down which version it is;
`python docs/update.py --check`, which CI runs, fails where that is another than the notebook's now."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 3_000_000  # bytes of a file that every clone carries


def versions(root: Path) -> dict[str, str]:  # SHA-256 by file
    "What the report was made from and what it is: the cells of its notebook, and the PDF."
    cells = json.loads((root / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    words = json.dumps([(cell["cell_type"], "".join(cell["source"])) for cell in cells])
    pdf = (root / "docs" / "report.pdf").read_bytes()
    return {
        "nbs/index.ipynb": hashlib.sha256(words.encode()).hexdigest(),
        "docs/report.pdf": hashlib.sha256(pdf).hexdigest(),
    }


def check(root: Path = ROOT):
    "ValueError in a sentence where docs/report.pdf is missing, too large or of another version."
    file = root / "docs" / "report.pdf"
    again = "run `ssv2 reproduce`, then `python docs/update.py`"
    if not file.is_file():
        raise ValueError(f"There is no docs/report.pdf: {again}.")
    if (size := file.stat().st_size) > MOST:
        raise ValueError(f"docs/report.pdf has {size:,} bytes, more than {MOST:,}.")
    known = json.loads((root / "docs" / "report.json").read_text(encoding="utf-8"))
    if other := [name for name, found in versions(root).items() if known.get(name) != found]:
        raise ValueError(
            f"docs/report.pdf is of another version of {' and '.join(other)}: {again}."
        )


def update(root: Path = ROOT):
    "Copy the demo's report here; ValueError where it is not made, or not of what there is now."
    from ssv2_report.jobs.workflow import pending_jobs
    from ssv2_report.study.experiments import load_study

    made = root / "_report" / "demo" / "index.pdf"
    if not made.is_file() or pending_jobs(load_study("demo"), root / "results" / "demo"):
        raise ValueError("The demo's report is not up to date: run `ssv2 reproduce` first.")
    shutil.copyfile(made, root / "docs" / "report.pdf")
    found = json.dumps(versions(root), indent=1) + "\n"
    (root / "docs" / "report.json").write_text(found, encoding="utf-8")
    check(root)


if __name__ == "__main__":
    try:
        check() if "--check" in sys.argv[1:] else update()
    except ValueError as e:
        sys.exit(str(e))
