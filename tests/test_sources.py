"Sources of maps: equal to their peers, right in a world whose answer is known, and refused where they are not."

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ssv2_report.gradcam.attention import blurred, oracle_maps, random_maps
from ssv2_report.gradcam.baselines import (
    activation_norms,
    edge_maps,
    edge_motion_maps,
    random_network,
)
from ssv2_report.gradcam.maps import resize_maps
from ssv2_report.gradcam.sources import (
    BASELINES,
    OWN_LAYERS,
    PatchNet,
    all_sources,
    effective_receptive_field,
    even_maps,
    grid_scores,
    integrated_gradients,
    interpretable,
    log_odds,
    make_maps,
    middle_maps,
    occlusion,
    other_clips,
    patch_world,
    path_gradients,
    score_maps,
    train_patch_net,
)
from ssv2_report.models.net2d import create_2d
from ssv2_report.models.net3d import create_3d

GRID = (4, 8, 8)
CAMS = ("stem:layercam", "layer1:layercam", "layer2:gradcam", "layer2:gradcam++")


@pytest.fixture(scope="module")
def patches():
    "The patch network, clips it has not seen, their classes and the patch."
    net = train_patch_net(*patch_world(256, frames=4)[:2])
    return net, *patch_world(16, frames=4, seed=1)


@pytest.fixture(scope="module")
def scores(patches):
    "Rows of every source of the patch network and of every baseline: the rule on real maps, which tables in test_validation.py do not have."
    net, clips, targets, patch = patches
    fresh = [random_network(net, clips, k) for k in range(5)]
    other = other_clips(targets)
    known, ids = np.ones(patch.shape[:2], bool), [str(i) for i in range(len(clips))]
    norms = activation_norms(net, clips, ["stem", "layer1", "layer2"])
    half = {k: [random_network(net, clips, s, k) for s in range(3)] for k in norms}
    hits = lambda logits: (logits.argmax(1) == targets).numpy().astype(float)

    def rows(maps):
        return score_maps(maps, patch, patch, known, ids).assign(seed=0, accuracy=np.nan)

    def of(name, kind, tables, **more):
        return [
            t.assign(source=name, map=kind, scene=t["id"], draw=k, **more)
            for k, t in enumerate(tables)
        ]

    grid = (len(clips), *GRID)
    common = {
        "noise": random_maps(grid, GRID),
        "even": even_maps(grid),
        "middle": middle_maps(grid),
        "edges": edge_maps(clips),
        "edges x motion": edge_motion_maps(clips),
    }
    sources = [*CAMS, "occlusion", "integrated gradients"]
    maps, logits = make_maps(net, clips, targets, sources)
    untrained = [make_maps(f, clips, targets, sources) for f in fresh]
    random = {s: [rows(m[s]).assign(accuracy=hits(z)) for m, z in untrained] for s in sources}
    another = {s: rows(m[other]) for s, m in maps.items()}
    active = {k: rows(m) for k, m in norms.items()}
    above = {
        s: [rows(make_maps(net, clips, targets, [s])[0][s]) for net in half[s.split(":")[0]]]
        for s in CAMS
    }
    own = {s: rows(m) for s, m in maps.items()}
    given = {k: rows(m) for k, m in common.items()}
    tables = [t for k, m in given.items() for t in of("", k, [m])]
    given |= {
        "right": rows(resize_maps(oracle_maps(patch, patch), GRID)),
        "random weights": random["layer1:layercam"][0],
        "another clip": another["layer1:layercam"],
        "activation norm": active["layer1"],
        "random above": above["layer1:layercam"][0],
    }
    places = [(s, s, own[s], 0) for s in sources]
    # each baseline in a source's place, where one of the random networks is not its own judge
    places += [(f"given: {k}", "layer1:layercam", m, 1) for k, m in given.items()]
    for name, like, found, first in places:
        layer, near = (like.split(":")[0], like) if like in CAMS else ("layer1", "layer1:layercam")
        tables += [
            *of(name, "own", [found], accuracy=hits(logits)),
            *of(name, "another clip", [another[like]]),
            *of(name, "activation norm", [active[layer]]),
            *of(name, "random above", above[near]),
            *of(name, "random weights", random[like])[first:],
        ]
    return pd.concat(tables)


def test_the_patch_network_is_right(patches):
    net, clips, targets, _ = patches
    with torch.no_grad():
        assert (net(clips).argmax(1) == targets).all()


@pytest.mark.parametrize("source", [*CAMS, "occlusion", "integrated gradients"])
def test_every_source_finds_the_patch(scores, source):
    own = scores[(scores["source"] == source) & (scores["map"] == "own")]
    assert own["ratio_both"].mean() >= 4 and own["pointing"].mean() >= 0.9


@pytest.mark.parametrize("name", [k for k in BASELINES if k not in OWN_LAYERS])
def test_what_knows_nothing_does_not(scores, name):
    own = scores[(scores["source"] == f"given: {name}") & (scores["map"] == "own")]
    assert own["ratio_both"].mean() < 4 and own["pointing"].mean() < 0.9


def test_the_rule_passes_sources_and_refuses_baselines(scores):
    found = interpretable(scores).set_index("source")["interpretable"]
    assert found[[*CAMS, "occlusion", "integrated gradients", "given: right"]].all()
    assert not found[[f"given: {k}" for k in BASELINES]].any()


def test_the_rule_needs_scenes_every_seed_and_every_baseline(scores):
    some = scores[scores["source"].isin(("", "occlusion"))]
    few = some[some["id"].astype(int) < 10]
    assert "too few scenes" in interpretable(few)["why"].item()
    lost = some[some["map"] != "random weights"]
    assert interpretable(lost)["why"].item() == "no random weights to compare with"
    bad = some.assign(seed=1)
    bad.loc[bad["map"] == "own", ["ratio_both", "pointing"]] = 0.0
    assert not interpretable(pd.concat([some, bad]))["interpretable"].item()
    assert interpretable(pd.concat([some, some.assign(seed=1)]))["interpretable"].item()


def test_the_rule_refuses_right_maps_of_a_network_that_knows_no_more_than_chance(scores):
    some = scores[scores["source"].isin(("", "given: right"))].copy()
    assert interpretable(some)["interpretable"].item()
    own = some["map"] == "own"
    guesses = some.loc[(some["map"] == "random weights") & (some["draw"] == 1), "accuracy"]
    some.loc[own, "accuracy"] = guesses.to_numpy()
    why = "accuracy: within the reach of random weights; accuracy: not above random weights"
    assert interpretable(some)["why"].item() == why
    some.loc[own, "accuracy"] = np.nan
    assert "accuracy" in interpretable(some)["why"].item()


@pytest.mark.parametrize(
    "seed, layers",
    [
        (1800, ["layer2"]),
        *(
            pytest.param(s, ["stem", "layer1", "layer2"], marks=pytest.mark.slow)
            for s in range(100, 2200, 100)
        ),
    ],
)
def test_an_untrained_network_never_passes(seed, layers):
    "Maps of seed 1800 lie on the patch, and nothing but its accuracy tells that it knows no class."
    clips, targets, patch = patch_world(48, seed=1)
    known, ids = np.ones(patch.shape[:2], bool), [str(i) for i in range(len(clips))]
    net = random_network(PatchNet(), clips, seed)
    truth = dict(hand=patch, object=patch, known=known, ids=ids)
    rows = grid_scores(net, clips, targets, truth, all_sources(net, layers)[:-2])
    found = interpretable(rows.assign(seed=0, scene=rows["id"]))
    assert len(found) == 4 * len(layers) and not found["interpretable"].any(), found
    if seed == 1800 and layers == ["layer2"]:
        by_maps = found["why"].str.split("; ").map(lambda w: {x.split(":")[0] for x in w})
        assert (by_maps.map(lambda said: said == {"accuracy"})).any()


def test_other_clips_are_of_the_same_class_and_never_the_clip_itself():
    targets = np.array([0, 1, 0, 2, 1, 0])
    other = other_clips(targets)
    assert (other != np.arange(6)).all()
    assert (targets[other] == targets)[targets != 2].all()


def test_a_random_network_is_fresh_calibrated_and_leaves_the_model(patches):
    net, clips, _, _ = patches
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fresh, again = random_network(net, clips), random_network(net, clips)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in fresh.state_dict().items())
    assert not torch.equal(fresh.fc.weight, net.fc.weight)
    with torch.no_grad():
        activations = fresh.layer1[1](fresh.layer1[0](fresh.stem(clips)))
    assert abs(activations.mean()) < 0.05 and abs(activations.std() - 1) < 0.05


def test_a_cells_field_is_that_of_a_known_convolution():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 4, (3, 6, 6), (1, 4, 4), (1, 1, 1))
            nn.init.ones_(self.conv.weight)

        def forward(self, x):
            return self.conv(x).mean((2, 3, 4))

    found = effective_receptive_field(One(), "conv", torch.randn(2, 3, 8, 32, 32))
    assert found == dict(pixels=6, share=pytest.approx(36 / 1024), frames=3)


def test_a_dilated_stage_sees_far_more_of_the_picture():
    clips = torch.randn(4, 3, 4, 64, 64)
    wide = effective_receptive_field(
        random_network(create_2d("test_resnet", 5, output_stride=8), clips), "layer4", clips
    )
    near = effective_receptive_field(
        random_network(create_2d("test_resnet", 5, stages=2), clips), "layer2", clips
    )
    assert wide["share"] > 0.9 and near["share"] < 0.5


def test_captum_agrees(patches):
    captum = pytest.importorskip("captum.attr")
    net, clips, targets, _ = patches
    clips, targets = clips[:2], targets[:2]
    base = blurred(clips)
    ours, _ = path_gradients(net, clips, targets, steps=32)
    score = lambda x, y: log_odds(net(x), y)
    theirs = captum.IntegratedGradients(score).attribute(
        clips, base, additional_forward_args=targets, n_steps=32, method="riemann_middle"
    )
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        gain = score(clips, targets) - score(base, targets)
    torch.testing.assert_close(ours.sum((1, 2, 3, 4)), gain, rtol=0.05, atol=0.2)
    maps, _ = occlusion(net, clips, targets, window=(2, 16, 16), stride=(2, 16, 16))
    drops = captum.Occlusion(score).attribute(
        clips,
        (3, 2, 16, 16),
        baselines=base,
        strides=(3, 2, 16, 16),
        additional_forward_args=targets,
    )
    torch.testing.assert_close(
        maps, drops[:, 0, 1::2, 8::16, 8::16].clamp(min=0).float(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: create_2d("test_resnet", 5, stages=2),
        lambda: create_3d("i3d:test_resnet", 5, stages=2),
    ],
)
def test_one_interface_for_2d_and_3d(make):
    model, clips = make().eval(), torch.randn(2, 3, 4, 32, 32)
    sources = all_sources(model)
    assert (
        sources[0] == "stem:gradcam"
        and "layer2:layercam" in sources
        and not any("layer3" in s for s in sources)
    )
    maps, logits = make_maps(model, clips, [0, 1], sources)
    assert list(maps) == sources and logits.shape == (2, 5)
    assert all(m.shape[0] == 2 and m.ndim == 4 and (m >= 0).all() for m in maps.values())
    with pytest.raises(ValueError, match="no source of maps 'layer9'"):
        make_maps(model, clips, [0, 1], ["layer9"])


def test_integrated_gradients_keep_signs_within_a_cell(patches):
    net, clips, targets, _ = patches
    found, _ = path_gradients(net, clips[:2], targets[:2])
    maps, _ = integrated_gradients(net, clips[:2], targets[:2], grid=GRID)
    torch.testing.assert_close(maps, resize_maps(found.sum(1), GRID).clamp(min=0))
