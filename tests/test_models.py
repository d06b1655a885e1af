"2D networks: shapes, pooling, weights from files good and bad, cost, switches."

import argparse
import collections
import pickle
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from ssv2_report.data.clips import MEAN, STD
from ssv2_report.models.net2d import (
    as_known,
    channels_last,
    checkpoint_stages,
    cost,
    create_2d,
    drop_before_head,
    imagenet_normalisation,
    load_weights,
    normalisation,
    read_weights,
    renormalise,
    stage_outputs,
    stages,
)
from ssv2_report.models.net3d import create_3d, kinetics_normalisation, time_field

STUDY = [
    ("2d", "test_resnet", dict(output_stride=8)),
    ("2d", "resnet18", {}),
    ("2d", "resnet50", {}),
    ("3d", "i3d:test_resnet", dict(output_stride=8)),
    ("3d", "i3d:resnet18", {}),
    ("3d", "i3d:resnet50", {}),
    ("3d", "r3d_18", {}),
    ("3d", "r2plus1d_18", {}),
]
IDS = [f"{dim}-{name}" for dim, name, _ in STUDY]


def make(dim, name, kwargs, num_classes=5):
    return (create_2d if dim == "2d" else create_3d)(name, num_classes, **kwargs)


@pytest.mark.parametrize("dim,name,kwargs", STUDY, ids=IDS)
def test_every_model_of_the_study_runs_forward_and_backward(dim, name, kwargs):
    model, clip = make(dim, name, kwargs), torch.randn(2, 3, 4, 32, 32)
    logits = model(clip)
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert list(stages(model).values())[-1] == ("backbone.layer4" if dim == "2d" else "layer4")
    found = stage_outputs(model, clip)
    assert list(found) == ["stem", "layer1", "layer2", "layer3", "layer4", "logits"]
    assert all(v.dim() == 5 and len(v) == 2 for k, v in found.items() if k != "logits")
    if name.startswith(("i3d", "test", "resnet")):
        assert all(found[s].shape[2] == 4 for s in stages(model))


def test_a_map_of_eight_by_eight_by_eight_for_the_demo():
    for model in (
        create_2d("test_resnet", 12, stages=2),
        create_3d("i3d:test_resnet", 12, stages=2),
    ):
        assert stage_outputs(model, torch.randn(1, 3, 8, 64, 64))["layer2"].shape == (
            1,
            48,
            8,
            8,
            8,
        )


@cache
def of_whole(dim, name):
    "What the stages of the whole network give for two clips of four frames, and its cost."
    net = make(dim, name, {})
    found = stage_outputs(net, torch.randn(2, 3, 4, 32, 32))
    return {k: v.shape for k, v in found.items()}, cost(net)["gflops"]


@pytest.mark.parametrize(
    "dim,name,kwargs",
    [
        ("2d", "test_resnet", {}),
        ("3d", "i3d:test_resnet", {}),
        ("2d", "resnet26", {}),
        pytest.param("3d", "r3d_18", {}, marks=pytest.mark.slow),  # of the same class as the next
        ("3d", "r2plus1d_18", {}),
    ],
)
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_network_of_fewer_stages(dim, name, kwargs, kept):
    model, clip = make(dim, name, dict(kwargs, stages=kept)), torch.randn(2, 3, 4, 32, 32)
    (shapes, gflops), found = of_whole(dim, name), stage_outputs(model, clip)
    assert list(found) == ["stem", *(f"layer{i}" for i in range(1, kept + 1)), "logits"] and found[
        "logits"
    ].shape == (2, 5)
    assert list(stages(model).values())[-1].endswith(f"layer{kept}")
    assert found[f"layer{kept}"].shape == shapes[f"layer{kept}"]
    assert cost(model)["gflops"] < gflops
    model(clip).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_network_of_fewer_stages_starts_from_weights_of_the_whole(tmp_path):
    whole = create_2d("test_resnet", 5)
    save_file(whole.backbone.state_dict(), tmp_path / "whole.safetensors")
    model, clip = (
        create_2d("test_resnet", 5, pretrained=tmp_path / "whole.safetensors", stages=2),
        torch.randn(2, 3, 4, 32, 32),
    )
    torch.testing.assert_close(
        stage_outputs(model, clip)["layer2"], stage_outputs(whole, clip)["layer2"]
    )
    with pytest.raises(ValueError, match="1 to 4 stages"):
        create_2d("test_resnet", stages=5)


def test_the_logits_of_frames_are_averaged():
    model, clip = create_2d("test_resnet", 5).eval(), torch.randn(2, 3, 4, 32, 32)
    logits = torch.stack([model.backbone(clip[:, :, t]) for t in range(4)], 1)
    torch.testing.assert_close(model(clip), logits.mean(1), rtol=1e-4, atol=1e-5)


def test_one_frame_is_the_image_network():
    model, clip = create_2d("resnet18", 5).eval(), torch.randn(2, 3, 1, 32, 32)
    torch.testing.assert_close(model(clip), model.backbone(clip[:, :, 0]))


def test_a_network_over_frames_is_blind_to_their_order():
    model, clip = create_2d("test_resnet", 5).eval(), torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(model(clip), model(clip.flip(2)), rtol=1e-4, atol=1e-5)


def test_stem_without_maxpool_is_twice_as_large():
    a, b = (
        stage_outputs(create_2d("resnet18", 5, maxpool=m), torch.randn(1, 3, 1, 32, 32))
        for m in (True, False)
    )
    assert a["layer1"].shape[3:] == (8, 8) and b["layer1"].shape[3:] == (16, 16)


@pytest.mark.parametrize(
    "make_model,word",
    [
        (lambda: create_2d("resnet1"), "resnet18"),
        (lambda: create_2d("vit_tiny_patch16_224"), "resnet18"),
        (lambda: create_2d("test_resnet", output_stride=7), "8, 16 or 32"),
        (lambda: create_3d("r3d_34"), "r3d_18"),
        (lambda: create_3d("r3d_18", output_stride=8), "I3D"),
        (lambda: create_3d("i3d:seresnet18"), "no 3D twin"),
        (lambda: create_3d("i3d:test_resnet", temporal=2), "odd"),
        (lambda: create_3d("i3d:test_resnet", temporal=(3, 3)), "five"),
        (lambda: create_3d("i3d:resnet18", time_strides=(1, 2, 1, 1, 1)), "identity"),
        (lambda: create_3d("i3d:test_resnet", time_padding="same"), "replicate"),
        (lambda: create_3d("i3d:test_resnet", pretrained="kinetics"), "give a file"),
    ],
)
def test_mistakes_end_in_a_sentence(make_model, word):
    with pytest.raises(ValueError, match=word) as e:
        make_model()
    assert "\n" not in str(e.value)


# Cost, against torchvision's and timm's own


@pytest.mark.parametrize(
    "name,weights",
    [
        ("r3d_18", torchvision.models.video.R3D_18_Weights),
        ("r2plus1d_18", torchvision.models.video.R2Plus1D_18_Weights),
    ],
)
def test_cost_is_torchvisions(name, weights):
    meta, found = weights.KINETICS400_V1.meta, cost(create_3d(name, 400), (3, 16, 112, 112))
    assert found["params"] == meta["num_params"]
    assert found["gflops"] == pytest.approx(meta["_ops"], rel=1e-3)


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    "name,weights",
    [
        ("resnet18", torchvision.models.ResNet18_Weights),
        ("resnet50", torchvision.models.ResNet50_Weights),
    ],
)
def test_cost_of_a_2d_network_is_its_frames(name, weights):
    meta, model = weights.IMAGENET1K_V1.meta, create_2d(name, 1000)
    assert (
        cost(model, (3, 1, 224, 224))["params"]
        == meta["num_params"]
        == sum(p.numel() for p in on_meta(name).parameters())
    )
    assert cost(model, (3, 1, 224, 224))["gflops"] == pytest.approx(meta["_ops"], rel=2e-3)
    assert cost(model, (3, 8, 224, 224))["gflops"] == pytest.approx(8 * meta["_ops"], rel=2e-3)


def test_an_i3d_costs_what_its_kernels_say():
    flat, deep = (
        cost(m, (3, 8, 64, 64))
        for m in (create_2d("resnet18", 5), create_3d("i3d:resnet18", 5, temporal=1))
    )
    assert flat["params"] == deep["params"] and flat["gflops"] == pytest.approx(
        deep["gflops"], rel=1e-4
    )  # the head is applied once, not once a frame
    assert cost(create_3d("i3d:resnet18", 5, temporal=3), (3, 8, 64, 64))[
        "gflops"
    ] == pytest.approx(3 * flat["gflops"], rel=0.05)


@pytest.mark.parametrize(
    "name,kwargs",
    [
        ("i3d:test_resnet", dict(temporal=(3, 1, 3, 1, 3))),
        ("r3d_18", {}),
        ("r2plus1d_18", {}),
        ("i3d:resnet18", dict(time_strides=(1, 1, 2, 1, 1))),
    ],
)
def test_field_of_view_in_time_is_where_gradients_reach(name, kwargs):
    model = create_3d(name, 5, **kwargs).eval()
    for m in model.modules():
        if isinstance(m, torch.nn.Conv3d):
            torch.nn.init.constant_(m.weight, 0.01)
        if isinstance(m, torch.nn.BatchNorm3d):
            torch.nn.init.ones_(m.weight)
    side, jump = time_field(model)["layer4"]
    frames = 2 * side + 1 + 4 * jump
    clip = torch.ones(1, 3, frames, 16, 16, requires_grad=True)
    found = {}
    hook = model.layer4.register_forward_hook(lambda m, i, o: found.update(out=o))
    model(clip)
    hook.remove()
    t = -(-side // jump)
    found["out"][:, :, t].sum().backward()
    reached = clip.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten()
    assert (reached.min(), reached.max()) == (t * jump - side, t * jump + side)


# Switches


@pytest.mark.parametrize(
    "dim,name,kwargs", [STUDY[0], STUDY[3], ("3d", "r2plus1d_18", dict(stages=2))]
)
def test_checkpointing_changes_neither_gradients_nor_statistics(dim, name, kwargs):
    plain, clip = make(dim, name, kwargs), torch.randn(2, 3, 4, 32, 32)
    spared = make(dim, name, kwargs)
    spared.load_state_dict(plain.state_dict())
    checkpoint_stages(spared)
    for model in (plain, spared):
        model(clip).square().sum().backward()
    for a, b in zip(plain.parameters(), spared.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for (k, a), (_, b) in zip(plain.named_buffers(), spared.named_buffers()):
        torch.testing.assert_close(a, b, msg=k)
    assert spared.state_dict().keys() == plain.state_dict().keys() and cost(
        spared, (3, 4, 32, 32)
    ) == cost(plain, (3, 4, 32, 32))


@pytest.mark.parametrize("dim,name,kwargs", [STUDY[0], STUDY[3]])
def test_channels_last_is_the_same_function(dim, name, kwargs):
    model, clip = make(dim, name, kwargs).eval(), torch.randn(2, 3, 4, 32, 32)
    before = model(clip)
    after = channels_last(model)(clip)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    format = torch.channels_last if dim == "2d" else torch.channels_last_3d
    assert model.get_submodule(stages(model)["layer4"])[0].conv1.weight.is_contiguous(
        memory_format=format
    )


# Weights from files


def state(name="resnet18", num_classes=1000):
    return {
        k: v + torch.rand(()) if v.is_floating_point() else v
        for k, v in timm.create_model(name, num_classes=num_classes).state_dict().items()
    }


WRAPS = dict(
    bare=lambda s: s,
    module=lambda s: {f"module.{k}": v for k, v in s.items()},
    model_state=lambda s: dict(model_state=s),
    average=lambda s: dict(state_dict={k: v * 0 for k, v in s.items()}, state_dict_ema=s),
    arguments=lambda s: dict(network=s, args=argparse.Namespace(lr=0.1)),
    averaged=lambda s: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in s.items()},
    wrapped=lambda s: dict(model_state_dict=s, epoch=3, optimizer=dict(lr=0.1)),
    both=lambda s: dict(state_dict={f"module.backbone.{k}": v for k, v in s.items()}),
    compiled=lambda s: dict(model={f"_orig_mod.{k}": v for k, v in s.items()}),
    ordered=lambda s: collections.OrderedDict(s),
    nested=lambda s: dict(model=dict(state_dict=s)),
    lightning=lambda s: dict(state_dict={f"net.{k}": v for k, v in s.items()}),
)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_checkpoint_is_recognised_in_its_wrappings(tmp_path, wrap):
    weights = state("test_resnet", 5)
    torch.save(WRAPS[wrap](weights), tmp_path / "w.pth")
    model = create_2d("test_resnet", 5, pretrained=tmp_path / "w.pth")
    assert all(torch.equal(v, weights[k]) for k, v in model.backbone.state_dict().items())


def without_fc(weights):
    return {k: v for k, v in weights.items() if not k.startswith("fc.")}


OTHER_HEADS = dict(
    mmaction=lambda body, head: dict(
        state_dict={f"backbone.{k}": v for k, v in body.items()} | {"cls_head.fc_cls.weight": head}
    ),
    tsm=lambda body, head: dict(
        state_dict={f"module.base_model.{k}": v for k, v in body.items()}
        | {"module.new_fc.weight": head, "module.new_fc.bias": head[:, 0]}
    ),
    deepspeed=lambda body, head: dict(module=body | {"fc.weight": head, "fc.bias": head[:, 0]}),
    headless=lambda body, head: body,
)


@pytest.mark.parametrize("kind", OTHER_HEADS)
@pytest.mark.parametrize("name", ["test_resnet", "i3d:test_resnet"])
def test_a_checkpoint_whose_head_alone_differs_is_loaded_without_it(tmp_path, kind, name):
    create = create_3d if name.startswith("i3d") else create_2d
    model, other = create(name, 5), create(name, 9)
    body = without_fc(getattr(other, "backbone", other).state_dict())
    torch.save(OTHER_HEADS[kind](body, torch.randn(9, 64)), tmp_path / "w.pth")
    own = getattr(model, "backbone", model)
    head = own.fc.weight.clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert load_weights(model, tmp_path / "w.pth") is False
    assert torch.equal(own.fc.weight, head)
    assert all(torch.equal(own.state_dict()[k], v) for k, v in body.items())
    told = [str(w.message) for w in said]
    assert ["has a head of its own" in t and "_" in t for t in told] == [True] * (
        kind in ("mmaction", "tsm")
    )


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_published_names_are_recognised(tmp_path, source):
    weights = torchvision.models.resnet18().state_dict() if source == "torchvision" else state()
    save_file(weights, tmp_path / "w.safetensors")
    model = create_2d("resnet18", 1000)
    assert load_weights(model, tmp_path / "w.safetensors") is True
    assert all(torch.equal(v, weights[k]) for k, v in model.backbone.state_dict().items())
    smaller = create_2d("resnet18", 7)
    head = smaller.backbone.fc.weight.clone()
    assert load_weights(smaller, weights) is False
    assert torch.equal(smaller.backbone.conv1.weight, weights["conv1.weight"]) and torch.equal(
        smaller.backbone.fc.weight, head
    )


@cache
def of_kinetics(name):
    return getattr(torchvision.models.video, name)(num_classes=400).state_dict()


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_torchvision_video_weights_are_recognised(tmp_path, name):
    weights = of_kinetics(name)
    torch.save(dict(model=weights), tmp_path / "w.pth")
    model = create_3d(name, 5, pretrained=tmp_path / "w.pth")
    assert all(
        torch.equal(v, weights[k]) for k, v in model.state_dict().items() if not k.startswith("fc.")
    )


def test_no_network_is_a_sentence(monkeypatch):
    def offline(self, *a, **k):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.video.R3D_18_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match="local file"):
        create_3d("r3d_18", 5, pretrained="kinetics")

    def refused(*a, pretrained=False, **k):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(ValueError, match="local file"):
        create_2d("resnet18", 5, pretrained="timm")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def bad_file(kind, folder):
    path, good = folder / "w.pth", state("test_resnet", 5)
    if kind == "wrong architecture":
        torch.save(state("resnet18", 5), path)
    elif kind == "not a checkpoint":
        path.write_text("<html>404: the page you wanted is elsewhere</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "an image":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "no tensors":
        torch.save(dict(epoch=3, lr=0.1), path)
    elif kind == "a tensor":
        torch.save(torch.ones(3), path)
    elif kind == "numbered":
        torch.save({0: torch.ones(3)}, path)
    elif kind == "text pickle":
        path.write_bytes(pickle.dumps(Bomb(folder / "ran"), protocol=0))
    elif kind in ("truncated", "truncated safetensors", "truncated old"):
        {
            "truncated": lambda: torch.save(good, path),
            "truncated safetensors": lambda: save_file(good, path),
            "truncated old": lambda: torch.save(good, path, _use_new_zipfile_serialization=False),
        }[kind]()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "renamed":
        torch.save({k.replace("layer", "stage"): v for k, v in good.items()}, path)
    elif kind == "bomb":
        torch.save(dict(state_dict=good, bomb=Bomb(folder / "ran")), path)
    elif kind == "bare bomb":
        path.write_bytes(pickle.dumps(Bomb(folder / "ran")))
    return path


BAD = {
    "wrong architecture": "does not fit",
    "not a checkpoint": "not a checkpoint",
    "empty": "not a checkpoint",
    "an image": "not a checkpoint",
    "no tensors": "no state dict",
    "a tensor": "no state dict",
    "numbered": "no state dict",
    "text pickle": "not a checkpoint",
    "truncated": "cut short",
    "truncated safetensors": "cut short",
    "truncated old": "cut short",
    "renamed": "does not fit",
    "bomb": "run code",
    "bare bomb": "run code",
    "missing": "no weights file",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_sentence_and_nothing_is_loaded_or_run(tmp_path, kind):
    path, model = bad_file(kind, tmp_path), create_2d("test_resnet", 5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=BAD[kind]) as e:
        load_weights(model, path)
    assert "\n" not in str(e.value) and str(path) in str(e.value) and len(str(e.value)) < 400
    assert not (tmp_path / "ran").exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("format", ["zip", "old", "safetensors"])
def test_a_file_cut_anywhere_is_one_sentence(tmp_path, format):
    "Every byte of the first forty and the last thirty, and forty places between."
    path, model = tmp_path / "w.pth", create_2d("test_resnet", 5)
    save_file(state("test_resnet", 5), path) if format == "safetensors" else torch.save(
        state("test_resnet", 5), path, _use_new_zipfile_serialization=format == "zip"
    )
    before, whole = {k: v.clone() for k, v in model.state_dict().items()}, path.read_bytes()
    for n in [
        *range(40),
        *range(40, len(whole), len(whole) // 40),
        *range(len(whole) - 30, len(whole)),
    ]:
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="cut short|not a checkpoint") as e:
            load_weights(model, path)
        assert "\n" not in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_renamed_keys_are_named():
    with pytest.raises(ValueError, match="layer1.0.conv1.weight"):
        load_weights(
            create_2d("test_resnet", 5),
            {k.replace("layer1.0.conv1", "first"): v for k, v in state("test_resnet", 5).items()},
        )


def test_what_we_save_we_read(tmp_path):
    model = create_3d("i3d:test_resnet", 5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == model.state_dict().keys()
    again = create_3d("i3d:test_resnet", 5, pretrained=tmp_path / "w.safetensors").eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(again(clip), model.eval()(clip))


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "resnet26d"])
def test_a_cell_of_the_map_sees_what_lies_under_it(name):
    body = create_2d(name, num_classes=4, output_stride=8).backbone.eval()
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cell = 8
    body.forward_features(x)[..., cell, cell].square().sum().backward()
    seen = x.grad.abs().sum((0, 1))
    for axis in (0, 1):
        centre = (seen.sum(axis) * torch.arange(128)).sum() / seen.sum()
        assert abs(centre - (8 * cell + 3.5)) < 4


# -- the normalisation that weights know

OTHER = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


def normalised(colours, mean, std):
    "Clips of colours in [0, 1], [B, C, T, H, W]."
    wide = lambda v: torch.tensor(v).view(3, 1, 1, 1)
    return (colours - wide(mean)) / wide(std)


@pytest.mark.parametrize("switch", [None, channels_last, checkpoint_stages, deepcopy])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_a_network_sees_clips_as_its_weights_know_them(kind, switch):
    torch.manual_seed(0)
    create = create_2d if kind == "2d" else create_3d
    model = create({"2d": "test_resnet", "3d": "i3d:test_resnet"}[kind], 5).eval()
    colours = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        wanted = model(normalised(colours, *OTHER))
        keys = list(model.state_dict())
        assert renormalise(model, *OTHER) is model and normalisation(model) == OTHER
        if switch:
            model = switch(model)
        found = model(normalised(colours, MEAN, STD))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert (model(normalised(colours, *OTHER)) - wanted).abs().max() > 1e-2
    assert list(model.state_dict()) == keys


def test_the_usual_normalisation_costs_nothing_and_another_is_put_back():
    model = create_2d("test_resnet", 5)
    clip = torch.rand(1, 3, 1, 8, 8)
    renormalise(model, MEAN, STD)
    assert not model._forward_pre_hooks and as_known(model, clip) is clip
    renormalise(renormalise(model, *OTHER), MEAN, STD)
    assert normalisation(model) == (MEAN, STD) and as_known(model, clip) is clip
    assert len(model._forward_pre_hooks) == 1
    assert cost(renormalise(model, *OTHER)) == cost(create_2d("test_resnet", 5))


@pytest.mark.parametrize("wrong", [((0.5,), (0.5,) * 3), ((0.5,) * 3, (0.5, 0.0, 0.5))])
def test_what_is_no_normalisation_is_refused(wrong):
    with pytest.raises(ValueError, match="three means and three deviations"):
        renormalise(create_2d("test_resnet", 5), *wrong)


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_kinetics_weights_by_name_know_the_colours_of_kinetics(name, monkeypatch):
    "As torchvision documents them; ImageNet's are others."
    made = of_kinetics(name)
    of = torchvision.models.get_model_weights(name)
    monkeypatch.setattr(of, "get_state_dict", lambda self, *a, **k: made)
    model = create_3d(name, 5, pretrained="kinetics")
    assert torch.equal(model.stem[0].weight, made["stem.0.weight"])
    assert normalisation(model) == kinetics_normalisation(name) == OTHER != (MEAN, STD)
    assert normalisation(create_3d(name, 5, stages=1)) == (MEAN, STD)


@pytest.mark.parametrize(
    "name, known",
    [
        ("test_resnet", ((0.5,) * 3, (0.5,) * 3)),
        ("resnet18", (MEAN, STD)),
        ("resnet34.ra4_e3600_r224_in1k", ((0.5,) * 3, (0.5,) * 3)),
        ("resnet34", (MEAN, STD)),
    ],
)
def test_imagenet_weights_know_the_colours_that_timm_says(name, known, monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda n, pretrained, **k: real(n, **k))
    model = create_2d(name, 5, pretrained="timm")
    assert normalisation(model) == imagenet_normalisation(name) == known


def test_damaged_weights_in_a_cache_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match="damaged in torchvision's cache.*local file") as e:
        create_3d("r3d_18", 5, pretrained="kinetics")
    assert "\n" not in str(e.value)


# -- dropout before the head


@pytest.mark.parametrize("kind", ["test_resnet", "i3d:test_resnet", "r3d_18"])
def test_dropout_leaves_out_inputs_of_the_head_in_training_alone(kind):
    torch.manual_seed(0)
    create = create_3d if kind in ("r3d_18", "i3d:test_resnet") else create_2d
    model, seen = create(kind, 5, stages=2), []
    keys, clip = list(model.state_dict()), torch.rand(2, 3, 4, 32, 32)
    before = model.eval()(clip)
    head = getattr(model, "backbone", model).fc
    note = lambda m, args: seen.append(args[0])
    head.register_forward_pre_hook(note)
    drop_before_head(model, 0.5)
    head.register_forward_pre_hook(note)
    assert torch.equal(model(clip), before) and list(model.state_dict()) == keys
    assert torch.equal(*seen)
    seen.clear()
    model.train()(clip)
    whole, left = seen
    kept = left != 0
    torch.testing.assert_close(left[kept], 2 * whole[kept])
    assert 0.3 < kept[whole != 0].float().mean() < 0.7


def test_no_dropout_changes_nothing():
    model = drop_before_head(create_2d("test_resnet", 5), 0.0)
    assert not model.backbone.fc._forward_pre_hooks
