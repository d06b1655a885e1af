"""What a newcomer meets first: the README's snippet, the package's own names, and the help of `ssv2`."""

import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models._api import WeightsEnum
from torchvision.models.video import r3d_18
from typer.main import get_command
from typer.testing import CliRunner

import ssv2_report
from ssv2_report import ClipDataset, explain, load_run, read_clip
from ssv2_report.cli import GROUPS, app
from ssv2_report.data.clips import Index, as_frames, denormalise
from ssv2_report.gradcam.pictures import overlay
from ssv2_report.study.experiments import Experiment
from ssv2_report.train import fit

ROOT = Path(__file__).parents[1]
COMMANDS = {k: v for k, v in get_command(app).commands.items() if not v.hidden}


def square(n=12, height=48, width=64):
    "Frames [T,H,W,3] of a bright square that moves to the right."
    frames = np.full((n, height, width, 3), 40, np.uint8)
    for t in range(n):
        frames[t, 16:32, 2 + 3 * t : 18 + 3 * t] = (220, 180, 40)
    return frames


def write_video(path, frames):
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=12)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())


def test_the_readmes_snippet_makes_a_map_as_it_stands(tmp_path, monkeypatch):
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 6
    write_video(tmp_path / "my_clip.mp4", square())
    monkeypatch.chdir(tmp_path)
    state = r3d_18().state_dict()  # instead of a download
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    exec(snippet, {})
    page = (tmp_path / "map.html").read_text()
    assert page.count("data:image/webp") == 2 and "frame 1 of 16" in page


def test_every_name_that_the_package_offers_is_there_and_costs_nothing_before():
    for name in ssv2_report.__all__:
        assert getattr(ssv2_report, name) is not None
    assert {*ssv2_report.__all__} <= {*dir(ssv2_report)}
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        ssv2_report.explian  # noqa: B018
    loaded = "import sys, ssv2_report; print({'torch', 'numpy', 'typer'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


class Red(torch.nn.Module):
    "Class 1 where there is red, class 0 where there is none; its one layer gives a cell a pixel."

    def __init__(self):
        super().__init__()
        self.red = torch.nn.Conv3d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.red.weight[:] = torch.tensor([[-1.0, 0, 0], [1, 0, 0]]).view(2, 3, 1, 1, 1)

    def forward(self, clip):
        return self.red(clip).relu().mean((2, 3, 4))


def test_a_run_that_is_read_says_which_clips_it_takes(tmp_path):
    names = [f"{k}.mp4" for k in range(2)]
    for name in names:
        write_video(tmp_path / name, square(8, 32, 32))
    table = dict(id=list("ab"), target=[0, 1], path=[str(tmp_path / name) for name in names])
    clips = ClipDataset(Index(tmp_path, ["x", "y"], pd.DataFrame(table)), 2, 32)
    look = dict(n_frames=2, epochs=1, batch_size=2, stages=1, output_stride=8)
    exp = Experiment(title="t", model="test_resnet", **look)
    fit(exp, ["x", "y"], clips, clips, tmp_path / "run")
    model, settings, classes = load_run(tmp_path / "run")
    clip = read_clip(table["path"][0], settings.n_frames, settings.size)
    assert clip.shape == (1, 3, 2, 32, 32)
    assert explain(model, clip, classes=classes).name in classes


def test_one_clip_is_explained_where_the_evidence_is():
    frames = square()
    clip = read_clip(frames, 8, 48)
    found = explain(Red().train(), clip, 1, classes=["<no>", "<yes>"])
    assert found.map.shape == (8, 48, 48) and (found.name, found.layer) == ("<yes>", "red")
    inside = denormalise(clip[0])[..., 0] > 150
    assert found.map[inside].min() > 0 and found.map[~inside].sum() < 0.01 * found.map.sum()
    assert np.abs(found.frames.astype(int) - denormalise(clip[0])).max() <= 1
    assert "<yes>" not in found._repr_html_() and "&lt;yes&gt;" in found._repr_html_()
    assert explain(Red(), clip[0]).target == int(Red()(clip).argmax())


def test_pictures_of_any_kind_are_shown_alike_or_refused():
    frames = square()
    for same in (frames / 255, torch.from_numpy(frames), torch.from_numpy(frames) / 255):
        assert np.array_equal(as_frames(same), frames)
        heat = np.ones(frames.shape[:3])
        assert np.array_equal(overlay(same, heat), overlay(frames, heat))
    assert np.array_equal(as_frames(torch.from_numpy(frames).permute(0, 3, 1, 2)), frames)
    for wrong in (frames[0], frames * 1.0, frames.astype(int), frames - 0.5, frames / np.nan):
        with pytest.raises(ValueError, match="Frames are"):
            as_frames(wrong)


def test_a_clip_of_ones_own_is_read_as_the_datasets_are(tmp_path):
    write_video(tmp_path / "a.mp4", square())
    from_file, given = read_clip(tmp_path / "a.mp4", 4, 32), read_clip(square(), 4, 32)
    assert from_file.shape == (1, 3, 4, 32, 32) and (from_file - given).abs().mean() < 0.1
    plain = read_clip(square(), 4, 32, mean=(0, 0, 0), std=(1, 1, 1))
    assert 0 <= plain.min() and plain.max() <= 1
    assert np.array_equal(denormalise(plain[0], (0, 0, 0), (1, 1, 1)), denormalise(given[0]))
    with pytest.raises(FileNotFoundError, match="no clip file 'nowhere.mp4': check its path"):
        read_clip("nowhere.mp4")


@pytest.mark.parametrize(
    "clip, says",
    [
        (np.zeros((1, 3, 2, 8, 8)), "no tensor of floats"),
        (torch.zeros(2, 3, 2, 8, 8), r"this is \[2, 3, 2, 8, 8\]"),
        (torch.zeros(3, 8, 8), r"this is \[3, 8, 8\]"),
    ],
)
def test_what_is_no_clip_is_refused_in_a_sentence(clip, says):
    with pytest.raises(ValueError, match=says):
        explain(Red(), clip)


def test_help_lists_the_commands_in_groups_with_an_example():
    said = CliRunner().invoke(app, ["--help"], prog_name="ssv2", env=dict(COLUMNS="100")).output
    heads = re.findall(r"─ (\w+) ─", said)
    assert heads == ["Options", *GROUPS] and "Example:" in said
    listed = re.findall(r"^│ ([a-z][\w-]+) ", said, re.M)
    assert sorted(listed) == sorted(COMMANDS) and listed[0] == "reproduce"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_takes_and_every_option_a_text(name):
    command = COMMANDS[name]
    words = re.search(r"Example: `ssv2 (.*)`", command.epilog)[1].split()
    assert words[0] == name
    command.make_context(name, words[1:])  # raises where the example is none
    for parameter in command.params:
        assert getattr(parameter, "help", "") or parameter.name == "help", parameter.name
        assert "--seed" not in parameter.opts, "runs are chosen by --seeds"
