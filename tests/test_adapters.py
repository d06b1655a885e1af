"""Files in the layouts of other repositories give the logits that their authors' networks give, or are refused."""

import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision

from ssv2_report.models.net2d import stages
from ssv2_report.study.experiments import Experiment
from ssv2_report.study.networks import adopted_model, build_model

CLASSES = [f"Class {k} of something" for k in range(7)]


def drawn(state, seed=0):
    "Weights and statistics of batch norms, all of them drawn."
    gen = torch.Generator().manual_seed(seed)
    new = lambda k, v: torch.rand(v.shape, generator=gen) + 0.5 if "running_var" in k else None
    out = {}
    for k, v in state.items():
        if v.is_floating_point():
            fan = v[0].numel() if v.dim() > 1 else 4
            value = torch.randn(v.shape, generator=gen) / fan**0.5
            v = new(k, v) if "running_var" in k else value + (v.dim() == 1 and "weight" in k)
        out[k] = v
    return out


@cache
def theirs_over_frames(name, shifted):
    "A torchvision ResNet over frames, with mit-han-lab's shift (fold 8, blockres) by a hook."
    net = getattr(torchvision.models, name)(num_classes=len(CLASSES))
    net.load_state_dict(drawn(net.state_dict()))

    def shift(module, args):
        x = args[0].unflatten(0, (-1, 4))
        fold, out = x.shape[2] // 8, torch.zeros_like(x)
        out[:, :-1, :fold] = x[:, 1:, :fold]
        out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
        out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
        return (out.flatten(0, 1),)

    inside = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        every = 2 if len(net.layer3) >= 23 else 1
        for k in range(0, len(getattr(net, stage)), every) if shifted else ():
            inside.append(f"{stage}.{k}.conv1")
            net.get_submodule(inside[-1]).register_forward_pre_hook(shift)
    return net.eval(), inside


def as_mit(state, inside):
    out = {}
    for k, v in state.items():
        module, _, leaf = k.rpartition(".")
        k = f"{module}.net.{leaf}" if module in inside else k
        out["module." + (k.replace("fc.", "new_fc.") if k[:2] == "fc" else f"base_model.{k}")] = v
    return out


def as_mmaction(state, inside):
    out = {}
    for k, v in state.items():
        module, _, leaf = k.rpartition(".")
        name = re.sub(r"(conv\d)$", r"\1.conv" + ".net" * (module in inside), module)
        name = re.sub(r"bn(\d)$", r"conv\1.bn", name)
        name = name.replace("downsample.0", "downsample.conv").replace(
            "downsample.1", "downsample.bn"
        )
        name = "cls_head.fc_cls" if name == "fc" else f"backbone.{name}"
        out[f"{name}.{leaf}"] = v
    return out


def adopted(tmp_path, state, model, **settings):
    torch.save(dict(state_dict=state, epoch=50), tmp_path / "theirs.pth.tar")
    weights = str(tmp_path / "theirs.pth.tar")
    exp = Experiment(title="t", model=model, weights=weights, n_frames=4, **settings)
    return adopted_model(exp, CLASSES, CLASSES)[0]


@pytest.mark.parametrize("layout", [as_mit, as_mmaction])
@pytest.mark.parametrize("kind, name", [("tsn", "resnet18"), ("tsm", "resnet18")])
def test_tsn_and_tsm_answer_as_their_authors_do(tmp_path, layout, kind, name):
    net, inside = theirs_over_frames(name, kind == "tsm")
    ours = adopted(tmp_path, layout(net.state_dict(), inside), f"{kind}:{name}")
    x = torch.randn(2, 3, 4, 48, 48)
    with torch.no_grad():
        frames = net(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4)).mean(1)
        torch.testing.assert_close(ours(x), frames)
    assert list(stages(ours)) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    with pytest.raises(ValueError, match="takes clips of 4 x 48 x 48"):
        ours(torch.zeros(1, 3, 8, 48, 48))


def test_tsm_of_a_long_network_shifts_in_every_second_block(tmp_path):
    net, inside = theirs_over_frames("resnet101", True)
    ours = adopted(tmp_path, as_mit(net.state_dict(), inside), "tsm:resnet101")
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], net(x[0].transpose(0, 1)).mean(0))


@pytest.mark.parametrize("layout", [as_mit, as_mmaction])
@pytest.mark.parametrize("kind", ["tsn", "tsm"])
def test_one_is_not_taken_for_the_other(tmp_path, layout, kind):
    net, inside = theirs_over_frames("resnet18", kind == "tsn")
    with pytest.raises(ValueError, match="is not of this network"):
        adopted(tmp_path, layout(net.state_dict(), inside), f"{kind}:resnet18")


def ibm_forward(state, x, stride):
    "IBM's I3D-ResNet-18: 3 x 7 x 7 stem, kernels of three frames, `stride` in time from layer2 on."
    norm = lambda x, k: F.batch_norm(
        *(x, state[f"{k}.running_mean"], state[f"{k}.running_var"]),
        *(state[f"{k}.weight"], state[f"{k}.bias"]),
    )
    x = F.conv3d(x, state["conv1.weight"], None, (1, 2, 2), (1, 3, 3))
    x = F.max_pool3d(norm(x, "bn1").relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for layer in range(1, 5):
        for block in range(2):
            of, first = f"layer{layer}.{block}", layer > 1 and block == 0
            step = (stride, 2, 2) if first else 1
            y = norm(F.conv3d(x, state[f"{of}.conv1.weight"], None, step, 1), f"{of}.bn1").relu()
            y = norm(F.conv3d(y, state[f"{of}.conv2.weight"], None, 1, 1), f"{of}.bn2")
            if first:
                x = F.conv3d(x, state[f"{of}.downsample.0.weight"], None, step)
                x = norm(x, f"{of}.downsample.1")
            x = (x + y).relu()
    return F.linear(x.mean((2, 3, 4)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("stride", [1, 2])
def test_ibms_i3d_answers_as_its_authors_does(tmp_path, stride):
    in_time = dict(temporal=3, time_strides=(1, 1, stride, stride, stride))
    like = build_model(Experiment(title="t", model="i3d:resnet18", **in_time), len(CLASSES))
    state = drawn(like.state_dict())
    theirs = {f"module.{k}": v for k, v in state.items()}
    ours = adopted(tmp_path, theirs, "i3d:resnet18", **in_time)
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), ibm_forward(state, x, stride), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is not of this network"):
        adopted(tmp_path, theirs, "i3d:resnet18")


def test_twentybns_network_answers_as_its_authors_does(tmp_path):
    like = build_model(Experiment(title="t", model="twentybn:model3D_1"), len(CLASSES))
    state = drawn(like.state_dict())
    ours = adopted(
        tmp_path, {f"module.{k}": v for k, v in state.items()}, "twentybn:model3D_1", size=84
    )
    clip = x = torch.randn(1, 3, 4, 84, 84)
    convs = {1: [(0, 2)], 2: [(0, 1), (3, 2)], 3: [(0, 1), (3, 1), (6, 2)]}
    convs |= {4: convs[3], 5: convs[2]}
    for block, inside in convs.items():
        for k, stride in inside:
            of = f"conv_column.block{block}"
            weight, bias = state[f"{of}.{k}.weight"], state[f"{of}.{k}.bias"]
            x = F.conv3d(x, weight, bias, (1, stride, stride), (1, *[weight.shape[-1] // 2] * 2))
            stats = [f"{of}.{k + 1}.{s}" for s in ("running_mean", "running_var", "weight", "bias")]
            x = F.batch_norm(x, *(state[s] for s in stats)).relu()
    theirs = F.linear(x.mean((2, 3, 4)), state["clf_layers.0.weight"], state["clf_layers.0.bias"])
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs, rtol=1e-4, atol=1e-5)
