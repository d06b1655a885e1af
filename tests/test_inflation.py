"Inflation: boring videos, factorisation, heads, reports, refusals, and that it helps."

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision.models.video import resnet as video

from ssv2_report.data.clips import MEAN, STD, ClipDataset, load_index
from ssv2_report.demo import world as demo_world
from ssv2_report.models.net2d import FrameNet, create_2d, normalisation, renormalise, stage_outputs
from ssv2_report.models.net3d import (
    InflationReport,
    boring_clips,
    create_3d,
    inflate,
    name_map,
    response_errors,
    smooth_clips,
    time_taps,
)
from ssv2_report.models.r2plus1d import (
    calibrate,
    factorised_units,
    idempotent,
    importance,
    low_rank,
    paired,
    patch_moments,
)

CLASSES = [f"class {i}" for i in range(6)]


def images(n, size, seed):
    "Smooth pictures and which of six colours each has more of."
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(6, (n,), generator=g)
    tint = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])[
        targets
    ]
    return F.interpolate(torch.randn(n, 3, 6, 6, generator=g), size, mode="bicubic") + tint[
        :, :, None, None
    ], targets


def clips(n=8, frames=8, size=32, seed=9):
    return images(n, size, seed)[0][:, :, None].expand(-1, -1, frames, -1, -1)


def trained(name, steps=8, size=32, **kwargs):
    "A 2D network after some steps of training: weights away from their start, batch-norm statistics of real activations."
    torch.manual_seed(0)
    model = create_2d(name, 6, **kwargs)
    opt = torch.optim.AdamW(model.parameters(), 3e-3)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 0.3
    for i in range(steps):
        x, y = images(8, size, i)
        loss = F.cross_entropy(model(x[:, :, None]), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    opt.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def source():
    made = {}

    def get(name, **kwargs):
        key = name, *kwargs.items()
        if key not in made:
            made[key] = trained(name, **kwargs)
        return made[key]

    return get


def carry(source, arch, mode="center", clips_=None, **kwargs):
    target = create_3d(arch, 6, **kwargs)
    return target, inflate(
        source, target, mode, CLASSES, CLASSES, clips=clips(1, 4) if clips_ is None else clips_
    )


def frame_errors(source, target, clips_):
    "Relative error of each stage at each time step, [steps], and of the logits."
    flat, deep = stage_outputs(source, clips_[:, :, :1]), stage_outputs(target, clips_)
    norm = lambda x: x.transpose(0, 2).flatten(1).norm(dim=1) if x.dim() == 5 else x.norm()
    return {k: norm(deep[k] - flat[k]) / norm(flat[k]) for k in flat}


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_network_of_fewer_stages_inflates_exactly(source, kept):
    flat = source("test_resnet", stages=kept)
    target, report = carry(flat, "i3d:test_resnet", stages=kept)
    assert report.share == 1 and not report.unused
    assert max(float(e.max()) for e in frame_errors(flat, target, clips(1)).values()) < 1e-5


# Boring videos

I3DS = [("test_resnet", dict(output_stride=8)), ("resnet18", {}), ("resnet26", {})]
I3DS += [pytest.param("resnet50", {}, marks=pytest.mark.slow)]  # resnet26 with twice the blocks


@pytest.mark.parametrize("name,kwargs", I3DS)
def test_centre_inflation_is_exact_at_every_frame(source, name, kwargs):
    net = source(name, **kwargs)
    target, report = carry(net, f"i3d:{name}", **kwargs)
    for stage, error in frame_errors(net, target, clips(1)).items():
        assert error.max() < 1e-4, stage
    assert report.share == 1 and report.errors.error.max() < 1e-4 and not report.unused


@pytest.mark.parametrize("name,kwargs", I3DS)
def test_average_inflation_is_exact_where_no_padding_is_seen(source, name, kwargs):
    net, frames = source(name, **kwargs), 21
    target, _ = carry(
        net,
        f"i3d:{name}",
        "average",
        temporal=(1, 1, 3, 3, 3) if name == "test_resnet" else (1, 1, 1, 3, 3),
        **kwargs,
    )
    errors = frame_errors(net, target, clips(1, frames))
    assert errors["layer4"][frames // 2] < 1e-4 and errors["layer4"][0] > 0.01
    table = response_errors(net, target, clips(1, frames)).set_index("stage")
    assert table.interior["layer4"] < 1e-4 < table.error["layer4"]


@pytest.mark.parametrize("name,kwargs", I3DS)
def test_average_inflation_is_exact_everywhere_when_time_is_replicated(source, name, kwargs):
    net = source(name, **kwargs)
    target, _ = carry(net, f"i3d:{name}", "average", time_padding="replicate", **kwargs)
    for stage, error in frame_errors(net, target, clips(1, 4)).items():
        assert error.max() < 1e-4, stage


@pytest.mark.parametrize("temporal", [1, 3, 5, (3, 1, 3, 1, 5)])
def test_any_kernel_lengths(source, temporal):
    net = source("test_resnet", output_stride=8)
    target, _ = carry(net, "i3d:test_resnet", output_stride=8, temporal=temporal)
    assert frame_errors(net, target, clips(2))["logits"] < 1e-4


def test_time_strides_keep_the_response(source):
    net = source("resnet18")
    target, _ = carry(net, "i3d:resnet18", time_strides=(2, 1, 2, 1, 2))
    errors = frame_errors(net, target, clips(2))
    assert [len(errors[s]) for s in ("stem", "layer1", "layer2", "layer3", "layer4")] == [
        4,
        4,
        2,
        2,
        1,
    ]
    assert all(e.max() < 1e-4 for e in errors.values())


@pytest.mark.parametrize("frames", [8, 16])
def test_r3d_is_exact_stage_by_stage_from_the_matching_stem(source, frames):
    net = source("resnet18", maxpool=False)
    target, report = carry(net, "r3d_18", clips_=clips(1, frames))
    errors = frame_errors(net, target, clips(1, frames))
    assert all(e.max() < 1e-4 for e in errors.values()) and report.share == 1
    assert report.errors.error.max() < 1e-4
    assert (
        sum(v.startswith(("conv", "layer")) and "conv" in v for v in name_map(target).values())
        == 17
    )


def test_r3d_sees_every_frame(source):
    target, _ = carry(source("resnet18", maxpool=False), "r3d_18")
    clip = clips(1, 16).clone().requires_grad_()
    target.eval()(clip).square().sum().backward()
    assert (clip.grad.abs().sum((0, 1, 3, 4)) > 0).sum() == 16


def test_another_stem_is_carried_but_its_responses_are_not_compared(source):
    _, report = carry(source("resnet18"), "r3d_18")
    errors = report.errors.set_index("stage").error
    assert (
        report.share == 1
        and errors["stem"] < 1e-4
        and errors.drop(["stem", "logits"]).isna().all()
        and errors["logits"] > 0.05
    )


def test_batch_norm_statistics_carry_over(source):
    net = source("resnet18", maxpool=False)
    target, _ = carry(net, "r3d_18")
    torch.testing.assert_close(
        target.layer3[0].conv2[1].running_var, net.backbone.layer3[0].bn2.running_var
    )
    assert not torch.allclose(target.layer3[0].conv2[1].running_mean, torch.zeros(256))


@pytest.mark.parametrize(
    "length,stride,mode,taps",
    [
        (3, 1, "center", [0, 1, 0]),
        (3, 2, "center", [0, 0.5, 0.5]),
        (1, 2, "center", [1]),
        (5, 2, "center", [0, 0, 0.5, 0.5, 0]),
        (3, 2, "average", [1 / 3] * 3),
    ],
)
def test_taps(length, stride, mode, taps):
    torch.testing.assert_close(
        time_taps(length, stride, mode), torch.tensor(taps, dtype=torch.float)
    )


# R(2+1)D


@pytest.fixture(scope="module")
def factorised(source):
    net = source("resnet18", maxpool=False)
    cuts = images(40, 32, 1)[0].unflatten(0, (5, 8)).transpose(1, 2)
    return net, *carry(net, "r2plus1d_18", clips_=cuts)


def test_everything_is_carried_into_r2plus1d(factorised):
    net, target, report = factorised
    layers = {k.rsplit(".", 1)[0] for k in net.backbone.state_dict()}
    used = {part for s in report.table.source for part in s.split(", ")}
    assert all(layer in used or f"{layer}.weight" in used for layer in layers)
    assert (
        report.share == 1
        and not report.unused
        and set(report.table.how) == {"factorised", "inflated", "copied"}
    )
    assert len(factorised_units(target)) == 17


def test_r2plus1d_responds_as_the_2d_network(factorised):
    net, target, report = factorised
    held_out = response_errors(net, target, clips(8, seed=77)).set_index("stage").error
    assert held_out["layer4"] < 0.02 and report.errors.set_index("stage").error["layer4"] < 0.02
    x = clips(8, seed=78)
    assert (target.eval()(x).argmax(1) == net(x).argmax(1)).all()


def test_r2plus1d_responds_alike_in_training_mode(factorised):
    net, target, _ = factorised
    x, outs = clips(16, 4, seed=5), {}
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (net, target)]
    for key, model, layer in (("2d", net, net.backbone.layer4), ("3d", target, target.layer4)):
        hook = layer.register_forward_hook(lambda m, i, o, key=key: outs.__setitem__(key, o))
        with torch.no_grad():
            model.train()(x[:, :, :1] if key == "2d" else x)
        hook.remove()
        model.eval()
    for m, state in zip((net, target), before):
        m.load_state_dict(state)
    assert ((outs["3d"][:, :, 0] - outs["2d"]).norm() / outs["2d"].norm()) < 0.15


def unit(parts, x, eps):
    "A factorised convolution by its parts, on images."
    bn = lambda x, p: F.batch_norm(
        x, p["running_mean"], p["running_var"], p["weight"], p["bias"], eps=eps
    )
    z = bn(F.conv2d(x, parts.spatial, padding=1), parts.middle).relu()
    return bn(torch.einsum("om,nmhw->nohw", parts.temporal, z), parts.outer)


@pytest.mark.parametrize("width", [20, 24, 32])
def test_a_unit_is_exact_where_the_width_allows(width):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(8, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16)
    ).eval()
    (
        torch.nn.init.normal_(net[1].weight),
        torch.nn.init.normal_(net[1].bias),
        net[1].running_mean.normal_(),
        net[1].running_var.uniform_(0.5, 2),
    )
    x = torch.randn(4, 8, 10, 10)
    with torch.no_grad():
        y, low, r = net(x), net[0](x).amin((0, 2, 3)), net(x).relu()
    with torch.no_grad():
        torch.testing.assert_close(
            unit(paired(*net, dict(low=low), width), x, net[1].eps), y, rtol=1e-4, atol=1e-4
        )
        seen = dict(mean=r.mean((0, 2, 3)), var=r.var((0, 2, 3), unbiased=False))
        torch.testing.assert_close(
            unit(idempotent(*net, seen), x, net[1].eps).relu(), r, rtol=1e-4, atol=1e-4
        )


def test_calibration_is_the_frames_own_statistics(source):
    net = source("test_resnet")

    class U:
        conv, norm = "layer1.0.conv1", "layer1.0.bn1"

    frames, found = images(20, 32, 3)[0], {}
    hook = net.backbone.layer1[0].conv1.register_forward_hook(lambda m, i, o: found.update(z=o))
    seen = calibrate(net.backbone.eval(), frames, [U])["layer1.0.conv1"]
    with torch.no_grad():
        net.backbone(frames)
    hook.remove()
    r = net.backbone.layer1[0].bn1(found["z"]).relu()
    for a, b in (
        (seen["low"], found["z"].amin((0, 2, 3))),
        (seen["mean"], r.mean((0, 2, 3))),
        (seen["var"], r.var((0, 2, 3), unbiased=False)),
    ):
        torch.testing.assert_close(a, b.detach(), rtol=1e-3, atol=1e-4)
    assert not net.backbone.layer1[0].conv1._forward_hooks


def test_the_stem_keeps_what_the_last_stage_answers_to(source):
    net, x = source("resnet18", maxpool=False).eval(), images(32, 32, 4)[0]
    body = net.backbone
    filters, patches = importance(body, body.conv1, body.bn1, x)
    assert (
        filters.shape == (64, 64)
        and patches.shape == (147, 147)
        and all(torch.linalg.eigvalsh(m).min() > -1e-9 for m in (filters, patches))
    )
    assert not body.bn1._forward_hooks and all(p.grad is None for p in body.parameters())

    @torch.no_grad()
    def error(filters, patches, x=images(16, 32, 40)[0]):
        parts, narrow = (
            low_rank(body.conv1, body.bn1, images(32, 32, 4)[0], 40, filters, patches),
            deepcopy(body),
        )
        narrow.conv1.weight.copy_(torch.einsum("om,mihw->oihw", parts.temporal, parts.spatial))
        narrow.bn1.running_mean.copy_(
            parts.outer["running_mean"]
            - parts.temporal @ (parts.middle["bias"] - parts.middle["running_mean"])
        )
        y = body.forward_features(x)
        return ((narrow.forward_features(x) - y).norm() / y.norm()).item()

    by_filters, by_patches = (
        error(torch.eye(64).double(), torch.eye(147).double()),
        error(torch.eye(64).double(), patch_moments(body.conv1, x)[1]),
    )
    assert error(filters, patches) < by_patches < by_filters


def test_silent_channels_learn(factorised):
    _, target, _ = factorised
    target.train()(clips(2, 4)).square().sum().backward()
    used = 64
    grad = target.layer1[0].conv1[0][3].weight.grad[:, used:]
    target.eval().zero_grad()
    assert (target.layer1[0].conv1[0][3].weight[:, used:] == 0).all() and grad.abs().sum() > 0


# Heads


def test_classes_are_matched_by_name(source):
    net, target = source("test_resnet"), create_3d("i3d:test_resnet", 3)
    report = inflate(
        net, target, source_classes=CLASSES, target_classes=[CLASSES[i] for i in (4, 0, 2)]
    )
    x = clips(2)
    torch.testing.assert_close(target.eval()(x), net(x)[:, [4, 0, 2]], rtol=1e-4, atol=1e-4)
    assert "by name" in report.head and report.share == 1


@pytest.mark.parametrize(
    "names,reason",
    [
        ((None, None), "no class names"),
        ((CLASSES, ["another"] * 6), "another"),
        ((CLASSES, None), "no class names"),
    ],
)
def test_otherwise_the_head_is_fresh_and_the_report_says_so(source, names, reason):
    target = create_3d("i3d:test_resnet", 6)
    before = target.fc.weight.clone()
    report = inflate(
        source("test_resnet"),
        target,
        source_classes=names[0],
        target_classes=names[1],
        clips=clips(2),
    )
    assert (
        torch.equal(target.fc.weight, before)
        and reason in report.head
        and reason in report._repr_markdown_()
    )
    assert set(report.table[report.table.how == "fresh"].parameter) == {
        "fc.weight",
        "fc.bias",
    } and report.unused == ["fc.weight", "fc.bias"]


def test_names_must_be_as_many_as_outputs(source):
    with pytest.raises(ValueError, match="not as many"):
        inflate(
            source("test_resnet"),
            create_3d("i3d:test_resnet", 6),
            source_classes=CLASSES[:5],
            target_classes=CLASSES[:5],
        )


# Reports and refusals


@pytest.mark.parametrize(
    "name,arch,kwargs",
    [("test_resnet", "i3d:test_resnet", {}), ("resnet18", "r3d_18", dict(maxpool=False))],
)
def test_the_report_has_every_parameter_once(source, name, arch, kwargs):
    target, report = carry(source(name, **kwargs), arch)
    state = target.state_dict()
    assert sorted(report.table.parameter) == sorted(state) and report.table["count"].sum() == sum(
        v.numel() for v in state.values()
    )


def test_the_report_shows_and_saves_itself(factorised, tmp_path):
    _, target, report = factorised
    assert sorted(report.table.parameter) == sorted(target.state_dict())
    assert (
        "layer4" in report._repr_html_()
        and "100.0%" in report._repr_markdown_()
        and "spare channels" in report.summary()
    )
    report.save(tmp_path / "inflation.json")
    again = InflationReport.load(tmp_path / "inflation.json")
    assert again.summary() == report.summary() and again.table.equals(report.table)
    assert again._repr_markdown_() == report._repr_markdown_()


def refuse(source, target, match, **kwargs):
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match=match) as e:
        inflate(source, target, **kwargs)
    assert "\n" not in str(e.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    return str(e.value)


@pytest.mark.parametrize(
    "name,arch",
    [
        ("resnet18", "i3d:resnet26"),
        ("test_resnet", "r3d_18"),
        ("test_resnet", "r2plus1d_18"),
        pytest.param("resnet50", "r2plus1d_18", marks=pytest.mark.slow),
    ],
)
def test_too_little_in_common_is_an_error_that_lists_it(source, name, arch):
    message = refuse(source(name), create_3d(arch, 6), "nothing was changed")
    assert "layer" in message and ("does not fit" in message or "not in the source" in message)


def test_the_threshold_is_an_argument(source):
    net, target = deepcopy(source("test_resnet")), create_3d("i3d:test_resnet", 6)
    net.backbone.layer2[0].conv2, net.backbone.layer4[0].conv2 = (
        torch.nn.Conv2d(48, 48, 1),
        torch.nn.Conv2d(96, 96, 1),
    )
    refuse(net, target, "layer4.0.conv2.weight: .* does not fit")
    report = inflate(net, target, threshold=0.3, clips=clips(2))
    assert (
        0.3 < report.share < 0.9
        and report.table.set_index("parameter").how["layer4.0.conv2.weight"] == "fresh"
    )


def test_an_unknown_mode_is_an_error(source):
    refuse(
        source("test_resnet"), create_3d("i3d:test_resnet", 6), "center or average", mode="middle"
    )


def test_training_mode_is_put_back(source):
    net, target = deepcopy(source("resnet18", maxpool=False)).train(), create_3d("r2plus1d_18", 6)
    inflate(net, target.eval(), clips=clips(2, 2))
    assert (
        net.training
        and not target.training
        and not any(m._forward_hooks for model in (net, target) for m in model.modules())
    )


def test_default_clips_are_always_the_same():
    assert torch.equal(smooth_clips(), smooth_clips())
    assert (boring_clips(smooth_clips()) == smooth_clips()[:, :, 4:5]).all() and not torch.equal(
        smooth_clips()[:, :, 0], smooth_clips()[:, :, 7]
    )


# That it helps


class Kept(torch.utils.data.Dataset):
    "A dataset's clips as they were drawn in its first epochs, over and over."

    def __init__(self, data, epochs):
        self.data, self.epochs, self.drawn = data, epochs, {}
        self.set_epoch(0)

    def __len__(self):
        return len(self.data)

    def set_epoch(self, epoch):
        self.epoch = epoch % self.epochs
        self.data.set_epoch(self.epoch)

    def __getitem__(self, i):
        if (self.epoch, i) not in self.drawn:
            self.drawn[self.epoch, i] = self.data[i]
        return self.drawn[self.epoch, i]


class Loop:
    "Training on a small demo world, the same for every network."

    def __init__(self, root, size, drawn, frames=8, classes=None):
        load = lambda split, **kwargs: ClipDataset(
            load_index(root, splits=(split,), classes=classes), frames, size, **kwargs
        )
        self.frames = frames
        self.train, self.test, self.classes = (
            Kept(load("train", train=True), drawn),
            Kept(load("validation"), 1),
            load_index(root, classes=classes).classes,
        )

    def run(self, model, epochs, lr, seed, frames=slice(None), clips=None):
        "`frames` of the clip as they come, or one of them at random; `clips` of each epoch, all by default."
        torch.manual_seed(seed)
        opt = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.02, fused=True)
        batches = DataLoader(self.train, 8, sampler=RandomSampler(self.train, num_samples=clips))
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=epochs * len(batches))
        for epoch in range(epochs):
            self.train.set_epoch(epoch)
            for b in batches:
                opt.zero_grad()
                F.cross_entropy(
                    model.train()(
                        b["clip"][
                            :, :, torch.randint(self.frames, (1,)) if frames == "one" else frames
                        ]
                    ),
                    b["target"],
                ).backward()
                opt.step()
                schedule.step()
        return model.eval()

    @torch.no_grad()
    def accuracy(self, model):
        return (
            torch.cat(
                [model(b["clip"]).argmax(1) == b["target"] for b in DataLoader(self.test, 16)]
            )
            .float()
            .mean()
            .item()
        )


def r2plus1d(depth, num_classes):
    "torchvision's R(2+1)D of 10 or 18 layers."
    return video.VideoResNet(
        video.BasicBlock,
        [video.Conv2Plus1D] * 4,
        [depth // 8] * 4,
        video.R2Plus1dStem,
        num_classes=num_classes,
    )


THREE = [
    "Showing something next to something",
    "Covering something with something",
    "Pulling something out of something",
]


def with_flags(draw, scene, mark=None):
    "A scene with flags on the wall whose colour tells its class."
    target = [kind[1] for kind in demo_world.KINDS].index(scene.template)
    return draw(scene, demo_world.mark_colour(target))


def only(tasks, targets, *of):
    "The tasks of making a world, without classes that nobody looks at."
    return [task for task in tasks(*of) if task[2] in targets]


@pytest.mark.parametrize(
    "depth,frames,side,size,classes,clips_,epochs,drawn,flags,seeds,most",
    [
        (10, 4, 64, 32, THREE, 12, 10, 4, True, 1, 0.1),
        pytest.param(18, 8, 112, 64, None, 60, 10, 10, False, 3, 0.02, marks=pytest.mark.slow),
    ],
)
def test_inflated_r2plus1d_is_ahead_of_scratch_after_one_epoch(
    tmp_path,
    monkeypatch,
    depth,
    frames,
    side,
    size,
    classes,
    clips_,
    epochs,
    drawn,
    flags,
    seeds,
    most,
):
    """That training from inflated weights is of use at all, which exactness does not say.

    The default sample: ten layers, four frames of 32 pixels, three classes that flags on the wall tell, one seed. The campaign: R(2+1)D-18 at 8x64x64 on all ten classes,
    without flags, 24 clips a class for the one epoch. Scratch and inflated see the same clips in the same order, each at a learning rate that suits it. Scenes fill the picture, so that 32 pixels show them."""
    monkeypatch.setattr(demo_world, "ZOOM", (0.9, 1.0))
    targets = [demo_world.CLASSES.index(c) for c in classes or demo_world.CLASSES]
    monkeypatch.setattr(demo_world, "_tasks", partial(only, demo_world._tasks, targets))
    if flags:
        told = partial(with_flags, demo_world.draw_scene)
        monkeypatch.setattr(demo_world, "draw_scene", told)
    world = demo_world.make_world(
        tmp_path / "world", clips_, 8 if flags else 16, size=side, workers=1
    )
    loop = Loop(world, size, drawn, frames, classes)
    torch.manual_seed(0)
    flat = FrameNet(ResNet(BasicBlock, [depth // 8] * 4, num_classes=len(loop.classes)))
    flat.backbone.maxpool = torch.nn.Identity()
    loop.run(flat, epochs, 1e-3, 0, frames="one")
    some, shown = (
        torch.stack([data[i]["clip"] for i in range(0, len(data), len(data) // (4 * frames))])
        for data in (loop.train, loop.test)
    )
    for seed in range(seeds):
        torch.manual_seed(seed)
        scratch, target = (r2plus1d(depth, len(loop.classes)) for _ in range(2))
        inflate(flat, target, source_classes=loop.classes, target_classes=loop.classes, clips=some)
        error = response_errors(flat, target, shown).set_index("stage").error["layer4"]
        tops = {"2D": loop.accuracy(flat), "inflated, before": loop.accuracy(target)}
        tops |= {
            name: loop.accuracy(loop.run(m, 1, lr, seed, clips=min(clips_, 24) * len(loop.classes)))
            for name, m, lr in (("scratch", scratch, 1e-3), ("inflated", target, 3e-4))
        }
        print(f"seed {seed}: {tops}, response error {error:.4f}", flush=True)
        assert tops["inflated"] > tops["scratch"] and error < most


# -- the normalisation that weights know

KNOWN = (0.9, 0.1, 0.5), (0.05, 0.1, 0.9)  # far from ImageNet's


def as_served(clips):
    "Clips normalised as `KNOWN` says, normalised as all clips of this library are."
    wide = lambda v: torch.tensor(v).view(3, 1, 1, 1)
    return (clips * wide(KNOWN[1]) + wide(KNOWN[0]) - wide(MEAN)) / wide(STD)


@pytest.mark.parametrize("name", ["i3d:test_resnet", "r3d_18", "r2plus1d_18"])
def test_an_inflated_network_knows_the_colours_that_its_source_knows(source, name):
    "Weights, response errors and answers are those of a source that is shown such clips itself."
    flat = deepcopy(source("test_resnet" if name.startswith("i3d") else "resnet18"))
    torch.manual_seed(1)
    plain = create_3d(name, 6)
    known, shown = deepcopy(plain), clips(4, 4)
    wanted = inflate(flat, plain, clips=shown)
    report = inflate(renormalise(flat, *KNOWN), known, clips=as_served(shown))
    assert normalisation(known) == KNOWN and normalisation(plain) == (MEAN, STD)
    for key, value in plain.state_dict().items() if name != "r2plus1d_18" else ():
        torch.testing.assert_close(known.state_dict()[key], value, rtol=1e-2, atol=1e-4)
    errors = [r.errors[["error", "interior"]].to_numpy() for r in (report, wanted)]
    np.testing.assert_allclose(*errors, rtol=0.05, atol=1e-4)
    with torch.no_grad():
        answers = plain.eval()(shown)
        torch.testing.assert_close(
            known.eval()(as_served(shown)), answers, rtol=1e-2, atol=1e-2 * answers.abs().max()
        )


def test_a_refused_inflation_leaves_the_normalisation(source):
    flat, target = renormalise(deepcopy(source("test_resnet")), *KNOWN), create_3d("r3d_18", 6)
    with pytest.raises(ValueError, match="nothing was changed"):
        inflate(flat, target)
    assert normalisation(target) == (MEAN, STD)
