"""What the repository shows without running: the demo's report, and the workflows that make it."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
docs = runpy.run_path(str(ROOT / "docs" / "update.py"))


@pytest.fixture
def project(tmp_path):
    "A project with a report that is up to date."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "nbs" / "index.ipynb", tmp_path / "nbs")
    (tmp_path / "docs" / "report.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "docs" / "report.json").write_text(json.dumps(docs["versions"](tmp_path)))
    return tmp_path


def test_a_report_of_this_version_passes_and_one_whose_words_have_changed_does_not(project):
    docs["check"](project)
    path = project / "nbs" / "index.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][0]["outputs"] = []  # no word
    path.write_text(json.dumps(nb, indent=3))
    docs["check"](project)
    nb["cells"][1]["source"] = "another word"
    path.write_text(json.dumps(nb))
    with pytest.raises(ValueError, match="of another version of nbs/index.ipynb: run"):
        docs["check"](project)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"%PDF-1.7 another", "another version of docs/report.pdf"),
        (bytes(3_000_001), "3,000,001 bytes, more than 3,000,000"),
        (None, "There is no docs/report.pdf: run `ssv2 reproduce`"),
    ],
)
def test_a_report_that_is_another_too_large_or_not_there_is_refused(project, content, says):
    file = project / "docs" / "report.pdf"
    file.write_bytes(content) if content else file.unlink()
    with pytest.raises(ValueError, match=says):
        docs["check"](project)


def test_only_a_report_that_is_up_to_date_is_taken(project):
    with pytest.raises(ValueError, match="not up to date: run `ssv2 reproduce` first"):
        docs["update"](project)


def test_workflows_are_valid():
    paths = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
    assert paths
    for path in paths:
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for job in jobs.values():
            assert {"runs-on", "timeout-minutes", "steps"} <= {*job}
            assert set(job.get("needs", "").split()) <= {*jobs}
            assert all(len({"uses", "run"} & {*step}) == 1 for step in job["steps"])
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
