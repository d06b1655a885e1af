"The explorer under code's hand: what changes, how fast, and what it says."

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import types

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from ssv2_report.gradcam.explorer import explorer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.conv, self.fc = (
            nn.Conv3d(3, 6, 3, padding=1),
            nn.Conv3d(6, 6, 3, padding=1),
            nn.Conv3d(6, 6, 1),
            nn.Linear(6, 4),
        )

    def forward(self, clip):
        return self.fc(self.conv(self.block(self.stem(clip).relu()).relu()).relu().mean((2, 3, 4)))


def test_the_explorer_redraws_quickly_and_from_kept_maps():
    torch.manual_seed(5)
    space, flat, calls = Net(), Net(), []
    space.register_forward_hook(lambda *a: calls.append(1))
    rng = np.random.default_rng(0)
    clips = {
        k: dict(
            clip=torch.randn(3, n, 16, 16),
            frames=rng.integers(0, 256, (n, 16, 16, 3), np.uint8),
            hand=np.ones((n, 16, 16), bool),
            object=np.zeros((n, 16, 16), bool),
        )
        for k, n in (("one", 8), ("two", 4))
    }
    box = explorer(
        clips, {"a": space, "b": flat}, {"a": ["block", "stem"], "b": ["conv"]}, list("wxyz")
    )
    c = box.controls

    def change(**kw):
        before = c["left_image"].value, c["right_image"].value
        for k, v in kw.items():
            c[k].value = v
        return before[0] != c["left_image"].value, before[1] != c["right_image"].value

    assert change(frame=3) == (True, True) and len(calls) == 1
    other = next(k for k in range(4) if k != int(space(clips["one"]["clip"][None])[0].argmax()))
    assert (
        change(target=other)[0]
        and change(versus=1)[0]
        and change(method="hirescam")[0]
        and change(opacity=0.2)[0]
        and change(boxes=False)[0]
    )
    assert change(left_layer="stem") == (True, False)
    assert (
        change(left_model="b") == (True, False)
        and c["left_layer"].value == "conv"
        and c["left_image"].value == c["right_image"].value
    )
    assert change(clip="two") == (True, True) and c["frame"].max == 3 == c["play"].max
    n, fastest = len(calls), 9.0
    for t in (0, 1, 2):
        start = time.perf_counter()
        change(frame=t)
        fastest = min(fastest, time.perf_counter() - start)
    assert len(calls) == n and fastest < 0.1
    assert any(k in c["left_text"].value for k in "wxyz")


def test_the_explorer_says_what_is_wrong_and_goes_on():
    space = Net()
    clips = {
        "one": dict(
            clip=torch.full((3, 4, 8, 8), torch.nan), frames=np.zeros((4, 8, 8, 3), np.uint8)
        )
    }
    box = explorer(clips, {"a": space}, {"a": ["block"]}, list("wxyz"))
    assert "not finite" in box.controls["left_text"].value and bytes(
        box.controls["left_image"].value
    ).startswith(b"\x89PNG")


def test_ssv2_explore_opens_a_copy_that_knows_the_study(tmp_path, monkeypatch):
    from ssv2_report import cli

    root, opened = cli.project_root(), []
    (tmp_path / "nbs" / "gradcam").mkdir(parents=True)
    shutil.copy(root / "nbs" / "gradcam" / "explorer.ipynb", tmp_path / "nbs" / "gradcam")
    monkeypatch.setattr(cli, "project_root", lambda: tmp_path)
    ended = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(cli.subprocess, "run", lambda command: opened.append(command) or ended)
    page = tmp_path / "elsewhere" / "explore.ipynb"
    for trained in (False, True):
        if trained:
            (run := tmp_path / "elsewhere" / "runs" / "2d-multi-s0").mkdir(parents=True)
            (run / "weights.safetensors").touch()
        cli.explore("smoke", tmp_path / "elsewhere")
        source = next(
            c.source
            for c in nbformat.read(page, 4).cells
            if "injected-parameters" in c.metadata.get("tags", [])
        )
        assert (
            'study = "smoke"' in source
            and (f'results = "{tmp_path}/elsewhere"' if trained else 'results = ""') in source
        )
        assert str(page) in opened[-1]


SOURCE = """import numpy as np, torch
from torch import nn
from ssv2_report.gradcam.explorer import explorer
frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
net = nn.Sequential(nn.Conv3d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
explorer({"c": dict(clip=torch.randn(3, 8, 32, 32), frames=frames)}, {"net": net}, {"net": ["1"]}, ["a", "b"])"""


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab of our own with one notebook, on a free port; gone afterwards."
    pytest.importorskip("jupyterlab")
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(SOURCE)],
        metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
    )
    nbformat.write(nb, tmp_path / "explore.ipynb")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--port=0",
                "--ip=127.0.0.1",
                "--IdentityProvider.token=",
                "--LabApp.news_url=",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
                "JUPYTER_DATA_DIR": str(tmp_path / "data"),
            },
        )
    try:
        for _ in range(600):
            if found := re.search(r"http://127\.0\.0\.1:\d+/", (tmp_path / "log").read_text()):
                break
            if server.poll() is not None:
                pytest.fail((tmp_path / "log").read_text()[-2000:])
            time.sleep(0.1)
        yield found[0]
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.slow
def test_dragging_the_slider_in_jupyterlab_changes_the_picture(lab, browser, tmp_path):
    page = browser.new_page(viewport=dict(width=1280, height=1000))
    page.set_default_timeout(120_000)
    page.goto(f"{lab}doc/tree/explore.ipynb")
    page.locator(".jp-Notebook .cm-content").first.click()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.keyboard.press("Shift+Enter")
    image = page.locator(".jp-OutputArea img.widget-image").first
    image.wait_for()
    shown = lambda: hashlib.md5(image.screenshot()).hexdigest()
    before, box = (
        shown(),
        page.locator(".widget-hslider", has_text="Frame").locator(".noUi-handle").bounding_box(),
    )
    page.mouse.move(box["x"] + 5, box["y"] + 5), page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 5, steps=8), page.mouse.up()
    page.wait_for_function(
        "e => e.textContent.trim() != '0'",
        arg=page.locator(".widget-hslider", has_text="Frame")
        .locator(".widget-readout")
        .element_handle(),
    )
    deadline = time.time() + 60
    while shown() == before and time.time() < deadline:
        page.wait_for_timeout(200)
    page.screenshot(path=tmp_path / "lab.png")
    assert shown() != before
