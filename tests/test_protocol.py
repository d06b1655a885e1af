"""Any network that keeps the protocol is trained, shown and asked like the project's own."""

import sys

import pytest
import torch
import yaml

from ssv2_report.data.audit import audit
from ssv2_report.demo.world import make_world
from ssv2_report.gradcam.maps import gradcam
from ssv2_report.gradcam.sources import make_maps
from ssv2_report.models.net2d import channels_last, stages
from ssv2_report.models.protocol import contract_of, declare, show_tokens
from ssv2_report.study.experiments import Experiment, load_study
from ssv2_report.study.runs import (
    build_model,
    check_study,
    clips_of,
    datasets,
    load_run,
    save_run,
    shown_clips,
)

BUILDER = """
from torch import nn
from ssv2_report.models.protocol import declare

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv3d(3, 8, (2, 8, 8), (2, 8, 8)), nn.ReLU())
        self.fc = nn.Linear(8, n)
    def forward(self, clip):
        return self.fc(self.conv(clip).mean((2, 3, 4)))

def build(num_classes, n_frames, size):
    return declare(Net(num_classes), {"only": "conv"}, n_frames, size)

def undeclared(num_classes, n_frames, size):
    return Net(num_classes)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_world(root / "data", train_per_class=1, val_per_class=1, size=64, workers=1)
    audit(root / "data", workers=1).save(root / "audit.json")
    return root


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "a_readers_networks.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(tmp_path)
    yield "a_readers_networks"
    sys.modules.pop("a_readers_networks", None)


def study_of(tmp_path, root, **experiments):
    content = dict(title="t", data=dict(root=str(root), size=48), seeds=[0])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content | dict(experiments=experiments), sort_keys=False))
    return load_study(str(path))


def own(**settings):
    return dict(title="Mine", model="a_readers_networks:build", n_frames=4, size=32) | settings


@pytest.mark.parametrize("model", ["test_resnet", "i3d:test_resnet", "r3d_18"])
def test_the_projects_own_networks_declare_their_places(model):
    net = build_model(Experiment(title="t", model=model), 3)
    assert contract_of(net).places == stages(net) and len(stages(net)) == 5


def test_a_readers_network_is_built_shown_and_kept(tmp_path, world, mine):
    s = study_of(tmp_path, world / "data", mine=own(), other=dict(title="o", model="test_resnet"))
    check_study(s)
    exp = s.experiments["mine"]
    classes, train_set, _ = datasets(s, exp, 0, world)
    assert train_set[0]["clip"].shape == (3, 4, 32, 32)
    net = build_model(exp, len(classes))
    save_run(net, exp, classes, tmp_path / "run" / "weights.safetensors")
    again, _, _ = load_run(tmp_path / "run")
    shown = shown_clips(s, exp, clips_of(s, "validation", world), world, boxes=True)
    item = shown[0]
    assert item["clip"].shape == (3, 4, 32, 32) and item["hand"].shape == (8, 48, 48)
    maps, _ = make_maps(channels_last(again), item["clip"][None], 0, ["only:gradcam"])
    assert maps["only:gradcam"].shape == (1, 2, 4, 4)
    alike = shown_clips(s, s.experiments["other"], clips_of(s, "validation", world), world, True)
    assert alike[0]["clip"].shape == (3, 8, 48, 48)


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(model="a_readers_networks:undeclared"), "does not say where its maps are"),
        (dict(model="a_readers_networks:nothing"), "must be installed or lie on PYTHONPATH"),
        (dict(model="no.such.module:build"), "must be installed or lie on PYTHONPATH"),
        (dict(size=None), "say the size"),
        (dict(dropout=0.5), "settings of this project's own networks"),
        (dict(model="resnet18", temporal=3), "settings of an I3D"),
    ],
)
def test_what_does_not_keep_it_is_refused(tmp_path, world, mine, settings, said):
    with pytest.raises(ValueError, match=said):
        check_study(study_of(tmp_path, world / "data", mine=own(**settings)))


def test_an_i3ds_kernels_and_strides_in_time_come_from_the_study():
    exp = Experiment(title="t", model="i3d:test_resnet", temporal=3, time_strides=(1, 1, 2, 1, 1))
    state = build_model(exp, 3).state_dict()
    assert {v.shape[2] for k, v in state.items() if v.dim() == 5 and v.shape[-1] > 1} == {3}


@pytest.mark.parametrize("order, apart", [("thw", 0), ("hwt", 1)])
def test_cams_over_tokens_are_those_of_a_head_computed_by_hand(order, apart):
    "Mean over tokens and a linear head: the map is the head's weights times the tokens, rectified."
    grid = (2, 3, 4)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Conv3d(3, 6, (2, 4, 4), (2, 4, 4))
            self.block = show_tokens(torch.nn.Linear(6, 6), grid, order, apart)
            self.fc = torch.nn.Linear(6, 5)

        def forward(self, clip):
            x = self.embed(clip).permute(0, *(2 + "thw".index(k) for k in order), 1).flatten(1, 3)
            x = torch.cat([x.new_zeros(len(x), apart, 6), x], 1)
            return self.fc(self.block(x).mean(1))

    net = declare(Net(), {"last": "block.tokens.map"})
    clip = torch.randn(2, 3, 4, 12, 16)
    found, _ = gradcam(net, clip, [1, 3], stages(net)["last"], "hirescam")
    with torch.no_grad():
        seen = net.embed(clip).permute(0, 2, 3, 4, 1)
        seen = torch.nn.functional.linear(seen, net.block.weight, net.block.bias)
        by_hand = (seen @ net.fc.weight[[1, 3]].T)[range(2), ..., range(2)] / (24 + apart)
    torch.testing.assert_close(found, by_hand.relu())
