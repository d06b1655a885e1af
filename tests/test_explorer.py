"The explorer under code's hand: what changes, how fast, and what it says."

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import types

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from worlds import CLASSES, make, write_study

from ssv2_report.data.audit import audit as audit_dataset
from ssv2_report.gradcam.explorer import TRUE, clip_viewer, explorer, study_explorer, verdict
from ssv2_report.study.experiments import load_study, run_folder
from ssv2_report.study.runs import build_model, save_run


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

    at = 3 if c["frame"].value != 3 else 4
    assert change(frame=at) == (True, True) and len(calls) == 1
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
    assert change(clip="two") == (True, True) and c["frame"].max == 4 == c["play"].max
    c["frame"].value, n, fastest = 4, len(calls), 9.0
    assert c["frame"].min == 1 == c["play"].min
    for t in (1, 2, 3):
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


def known(target, **more):
    "A clip of a known class, 4 frames of noise."
    rng = np.random.default_rng(target)
    frames = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
    return dict(clip=torch.randn(3, 4, 16, 16), frames=frames, target=target, **more)


def test_the_explorer_goes_to_any_clip_by_its_id():
    torch.manual_seed(1)
    clips = {str(k): known(k % 4) for k in range(9)}
    c = explorer(
        clips,
        {"a": Net(), "b": Net()},
        {"a": ["block"], "b": ["block"]},
        list("wxyz"),
        {"one": "1"},
    ).controls
    assert [id for _, id in c["clip"].options] == ["1"] and c["clip"].value == "1"
    c["id"].value = " 7 "
    assert c["clip"].value == "7" and not c["note"].value
    assert ("z (7)", "7") in c["clip"].options
    for wrong in ("<b>99</b>", "one", "7.0"):
        c["id"].value = wrong
        assert "There is no clip" in c["note"].value and "<b>" not in c["note"].value
        assert c["clip"].value is None and c["left_image"].layout.visibility == "hidden"
        for name in ("left_image", "left_text", "left_legend", "right_image", "right_text"):
            assert not c[name].value, "nothing is left of the clip before"
        c["method"].value = "hirescam" if c["method"].value == "gradcam" else "gradcam"
    c["id"].value = "1"
    assert c["clip"].value == "1" and not c["note"].value and len(c["clip"].options) == 2
    c["id"].value = "99"
    c["clip"].value = "7"
    assert c["left_text"].value and not c["note"].value
    assert c["left_image"].layout.visibility == "visible"


def test_the_explorer_opens_on_the_frame_with_most_of_the_map_and_says_what_colours_mean():
    class Third(nn.Module):
        "Sees red in the third frame alone."

        def __init__(self):
            super().__init__()
            self.red = nn.Conv3d(3, 2, 1, bias=False)

        def forward(self, clip):
            seen = torch.zeros_like(clip)
            seen[:, :, 2] = clip[:, :, 2].abs()
            return self.red(seen).abs().mean((2, 3, 4))

    torch.manual_seed(0)
    clips = {"one": known(1, hand=np.ones((4, 16, 16), bool))}
    nets = {name: Third() for name in "ab"}
    for net in nets.values():
        net.red.weight.data.abs_()
    c = explorer(clips, nets, {"a": ["red"], "b": ["red"]}, list("xy")).controls
    assert c["frame"].value == 3 == c["play"].value, "a player that starts at 1 would turn it back"
    for side in ("left", "right"):
        assert "times an even map" in c[f"{side}_legend"].value
        assert ">hand<" in c[f"{side}_legend"].value and ">object<" not in c[f"{side}_legend"].value
    c["boxes"].value = False
    assert ">hand<" not in c["left_legend"].value


def test_clips_alone_are_shown_frame_by_frame_with_their_boxes():
    clips = {
        "a": known(0, hand=np.eye(16, dtype=bool)[None].repeat(4, 0)),
        "b": dict(frames=np.zeros((7, 8, 8, 3), np.uint8)),
    }
    c = clip_viewer(clips, {"first": "a", "second": "b"}).controls
    shown = [bytes(c["image"].value)]
    for change in (dict(boxes=False), dict(frame=3), dict(clip="b")):
        ((name, value),) = change.items()
        c[name].value = value
        shown.append(bytes(c["image"].value))
    assert len(set(shown)) == 4 and c["frame"].max == 7 == c["play"].max
    c["boxes"].value = True
    assert ">hand<" not in c["legend"].value, "the second clip has no boxes"
    c["clip"].value = "a"
    assert c["frame"].value == 3 and c["frame"].max == 4 and ">hand<" in c["legend"].value


def test_the_explorer_marks_right_and_wrong():
    p = torch.tensor([0.1, 0.7, 0.2])
    assert verdict(p, ["x", "<y>", "z"], 1) == "✓ right: &lt;y&gt; (70%)"
    assert verdict(p, ["x", "<y>", "z"], 0) == "✗ wrong: &lt;y&gt; (70%)"
    assert verdict(p, ["x", "<y>", "z"]) == "&lt;y&gt; (70%)"
    torch.manual_seed(3)
    net, item = Net(), known(0)
    called = int(net(item["clip"][None])[0].argmax())
    for target in range(4):
        clips = {"k": item | dict(target=target)}
        c = explorer(clips, {"a": net}, {"a": ["block"]}, list("wxyz")).controls
        assert c["left_text"].value.startswith("✓" if target == called else "✗")
        c["target"].value = target
        own = bytes(c["left_image"].value)
        c["target"].value = TRUE
        assert bytes(c["left_image"].value) == own, "the class shown first is the true one"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A study's file and results: two untrained networks of two seeds each, twelve validation clips, two cases."
    folder = tmp_path_factory.mktemp("explored")
    root = make(folder / "data", train=4, validation=12)
    path, results = write_study(folder / "study.yaml", root), folder / "results"
    audit_dataset(root).save(results / "audit.json")
    s = load_study(str(path))
    for run in s.runs:
        torch.manual_seed(run[1])
        (to := run_folder(s, results, *run)).mkdir(parents=True)
        exp = s.experiments[run[0]]
        save_run(build_model(exp, 4), exp, sorted(CLASSES), to / "weights.safetensors")
    (results / "tables").mkdir()
    cases = pd.DataFrame(dict(id=["9", "14", "404"], kind=["all wrong", "all right", "all right"]))
    cases.to_csv(results / "tables" / "cases.csv", index=False)
    source = dict(source=dict(stage="layer2", method="LayerCAM"))
    (results / "variables.yml").write_text(yaml.safe_dump(source))
    return path, results


def test_the_explorer_of_a_study_begins_where_its_report_does(study):
    path, results = study
    given = study_explorer(str(path), results)
    c = explorer(**given).controls
    said, ids = zip(*c["clip"].options)
    assert said[0].startswith("Case 1, all wrong: ") and said[1].startswith("Case 2, all right: ")
    assert ids[:2] == ("9", "14") and len(set(ids)) == len(ids) > 4 and "404" not in ids
    assert c["method"].value == "layercam"
    assert c["left_layer"].label == "layer2" == c["right_layer"].label
    assert c["left_model"].value == "2D, eight frames, seed 0"
    assert c["right_model"].value == "3D from scratch, seed 0"
    assert len(given["clips"]) == 12 and len(given["models"]) == 4
    by_id = explorer(**study_explorer(str(path), results, "12")).controls
    assert by_id["clip"].value == "12" and by_id["clip"].options[1][1] == "9"
    for wrong in ("404", "1", "2 "):  # none, of the training clips, not as it is written
        with pytest.raises(ValueError, match=f"'{wrong}' is the id of no usable validation clip"):
            study_explorer(str(path), results, wrong)


def test_the_explorer_keeps_to_the_seed_that_most_networks_have(study, tmp_path):
    path, results = study
    shutil.copytree(results, tmp_path / "r")
    s = load_study(str(path))
    shutil.rmtree(run_folder(s, tmp_path / "r", "2d-multi", 0))
    shown = study_explorer(str(path), tmp_path / "r")["shown"]
    assert shown == ("2D, eight frames, seed 1", "3D from scratch, seed 1")
    shutil.rmtree(tmp_path / "r" / "runs")
    with pytest.raises(FileNotFoundError, match="No network of 'study' is trained"):
        study_explorer(str(path), tmp_path / "r")


def test_ssv2_explore_writes_a_page_that_runs_itself(study, tmp_path, monkeypatch):
    from nbformat.sign import NotebookNotary

    from ssv2_report import cli

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    opened = []
    ended = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(cli.subprocess, "run", lambda command: opened.append(command) or ended)
    path, results = study
    for out, clip, wanted in (
        (results, "12", f"study_explorer({str(path)!r}, {str(results)!r}, '12')"),
        (tmp_path / "none", "", "red_square_example()"),
    ):
        cli.explore(str(path), out, clip, port=9999)
        page = nbformat.read(out / "explore.ipynb", 4)
        assert NotebookNotary().check_signature(page)
        (cell,) = (c for c in page.cells if c.cell_type == "code")
        assert wanted in cell.source and cell.metadata.jupyter.source_hidden
        assert "--port=9999" in opened[-1] and f"--ServerApp.root_dir={out}" in opened[-1]
    for out, wrong in ((results, "404"), (tmp_path / "none", "12")):
        before = len(opened)
        with pytest.raises(ValueError, match=f"{wrong!r}"):
            cli.explore(str(path), out, wrong)
        assert len(opened) == before


@pytest.fixture
def lab(study, tmp_path):
    "The address that `ssv2 explore` prints, on a free port; gone afterwards."
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, results, began = *study, time.time()
    command = [sys.executable, "-m", "ssv2_report.cli", "explore", str(path)]
    command += ["--results", str(results), "--clip", "12"]
    own = {k: str(tmp_path / k) for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--no-browser", "--allow-root", f"--port={port}"],
            stdout=log,
            stderr=log,
            env={**os.environ, **own},
        )
    try:
        for _ in range(600):
            if found := re.search(rf"http://localhost:{port}/\S+", (tmp_path / "log").read_text()):
                break
            if server.poll() is not None:
                pytest.fail((tmp_path / "log").read_text()[-2000:])
            time.sleep(0.1)
        yield found[0], began
    finally:
        server.terminate()
        server.wait(20)
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", port)), "the server ends with its command"


@pytest.mark.slow
def test_from_the_command_to_the_first_map_and_on(browser, lab):
    address, began = lab
    page = browser.new_page(viewport=dict(width=1280, height=1000))
    page.set_default_timeout(60_000)
    page.goto(address)
    images = page.locator(".jp-OutputArea img.widget-image")
    images.first.wait_for()
    others = max(1.0, os.getloadavg()[0] / os.cpu_count())  # on quiet cores nothing is added
    assert time.time() - began < 30 * others, "from the command to the first map"
    assert not page.locator(".jp-Notebook .cm-content").first.is_visible(), "pictures, not source"
    chosen = lambda k: (
        page.locator(".jp-OutputArea select").nth(k).evaluate("e => e.selectedOptions[0].text")
    )
    assert "(12)" in chosen(0)

    def change(do):
        before = [images.nth(i).get_attribute("src") for i in range(2)]
        do()
        page.wait_for_function(
            "before => [...document.querySelectorAll('.jp-OutputArea img.widget-image')]"
            ".some((image, i) => image.src !== before[i])",
            arg=before,
        )

    slider = page.locator(".widget-hslider", has_text="Frame")
    at = lambda: int(slider.locator(".widget-readout").inner_text())
    first = at()
    slider.locator(".noUi-handle").focus()
    change(lambda: page.keyboard.press("ArrowRight" if first == 1 else "ArrowLeft"))
    assert at() == (2 if first == 1 else first - 1)

    id = page.get_by_placeholder("of any clip")
    change(lambda: id.fill("16") or id.press("Enter"))
    assert "(16)" in chosen(0)
    id.fill("404")
    id.press("Enter")
    page.get_by_text("There is no clip '404' here.").wait_for()
    images.first.wait_for(state="hidden")

    models = page.locator("select", has=page.locator("option", has_text="3D from scratch, seed 1"))
    change(lambda: id.fill("16") or id.press("Enter"))
    change(lambda: models.first.select_option("3D from scratch, seed 1"))

    for _ in range(2):  # a reload, and one of what JupyterLab has saved
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        page.reload()
        images.nth(1).wait_for()
        assert images.count() == 2 and "(12)" in chosen(0)
    page.context.close()
