"""What several tests share: the browser, and the folder of a rendered report."""

import gc
import os
import shutil
import sys

import pytest

import ssv2_report  # noqa: F401  (before nbformat, whose grammar for addresses takes a second)


def pytest_addoption(parser):
    parser.addoption(
        "--report", default=None, help="folder of a rendered report for check_report.py"
    )


def pytest_collection_finish():
    """What is imported by now stays: whoever collects garbage at every call, as statsmodels does,
    takes half a second with all of it. Two workers on two cores compute in one thread each."""
    gc.freeze()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser():
    "The system's Chromium, headless and without a network."
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not path:
        if os.environ.get("SSV2_REQUIRE_BROWSER"):
            pytest.fail("Chromium is not installed (Debian: apt install chromium).")
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        flags = [
            "--no-sandbox",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        chromium = p.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()
