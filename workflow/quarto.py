"""What `quarto render`, `preview` and `publish` call first: the report that was staged last goes
into the folder that Quarto then shows or publishes."""

import os
import sys
from pathlib import Path

try:
    from ssv2_report.report.site import render
except ImportError as e:
    sys.exit(f"ssv2: {e}; install the project into this environment first: pip install -e .")

root = Path(__file__).resolve().parents[1]
staged = sorted(root.glob("results/*/site/index.ipynb"), key=lambda path: path.stat().st_mtime)
if not staged:
    sys.exit("ssv2: there is no report yet; run `ssv2 reproduce` first, then call Quarto again.")
out = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", root / "_report" / "quarto"))
try:
    print(render(staged[-1].parent, out))
except (ValueError, OSError) as e:
    sys.exit(f"ssv2: {e}")
