"""What a network uses: two networks and two worlds whose answer is known, and clips drawn again that are the clips."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ssv2_report.data.boxes import load_boxes
from ssv2_report.data.clips import MEAN, STD, ClipDataset, denormalise, load_index, sample_frames
from ssv2_report.demo.answers import (
    action_frames,
    find_scenes,
    known_world,
    parts_of,
    rerendered,
    scene_of,
    scene_seed,
    without_part,
)
from ssv2_report.demo.world import CLASSES, FOLDER, draw_scene, make_world, mark_colour, write_clip
from ssv2_report.gradcam.reliance import (
    BOX_PARTS,
    COLUMNS,
    coverage,
    differences,
    outcomes,
    paint_over,
    part_shares,
    reliance,
    shifted_control_mask,
    summarise,
    surroundings,
)

torch.set_num_threads(1)
PAIR = ["Pushing something from left to right", "Pulling something from right to left"]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    return make_world(
        tmp_path_factory.mktemp("demo") / "world",
        1,
        2,
        0,
        size=64,
        seed=3,
        workers=1,
        distractor=True,
    )


def colours(clip):
    return clip * torch.tensor(STD).view(3, 1, 1, 1) + torch.tensor(MEAN).view(3, 1, 1, 1)


class Hand(nn.Module):
    """Reads only how much red and how much blue there is: the colour of the hand."""

    def forward(self, clip):
        red, green, blue = colours(clip).unbind(1)
        return 100 * torch.stack(
            [torch.relu(c - green - 0.2).mean((1, 2, 3)) for c in (red, blue)], 1
        )


class Corner(nn.Module):
    """Reads only the brightness of the eight pixels in the corner."""

    def forward(self, clip):
        bright = 10 * (colours(clip)[:, :, :, :8, :8].mean((1, 2, 3, 4)) - 0.5)
        return torch.stack([-bright, bright], 1)


class Flags(nn.Module):
    """Reads only the colour inside the flags of a 64-pixel frame."""

    def forward(self, clip):
        x = (torch.arange(64) + 0.5) / 64 * 6 % 1 - 0.5
        inside = x.abs() < 0.12
        seen = colours(clip)[:, :, :, 2:4, inside].mean((2, 3, 4))
        known = torch.tensor([mark_colour(k) for k in range(len(CLASSES))])
        return -20 * (seen[:, None] - known).square().sum(-1)


def hand_and_corner(n=12, T=3, size=64):
    """Grey noise; the class is the colour of a moving hand and the brightness of a corner."""
    rng = np.random.default_rng(1)
    clips = torch.from_numpy(
        rng.uniform(0.35, 0.6, (n, 1, T, size, size)).astype("float32")
    ).repeat(1, 3, 1, 1, 1)
    hand, thing = torch.zeros(2, n, T, size, size, dtype=torch.bool)
    targets = torch.arange(n) % 2
    for i in range(n):
        y, x = rng.integers(10, 30, 2)
        thing[i, :, 40:56, 38:52] = True
        for t in range(T):
            hand[i, t, y : y + 12, x + 5 * t : x + 5 * t + 12] = True
        red, blue = torch.tensor([0.9, 0.2, 0.2]), torch.tensor([0.2, 0.2, 0.9])
        clips[i][:, thing[i]] = torch.tensor([0.2, 0.8, 0.2])[:, None]
        clips[i][:, hand[i]] = (blue if targets[i] else red)[:, None]
        clips[i, :, :, :8, :8] = 0.9 if targets[i] else 0.1
    clips = (clips - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
    return dict(
        clip=clips,
        target=targets,
        id=[str(i) for i in range(n)],
        hand=hand,
        object=thing,
        known=torch.ones(n, T, dtype=torch.bool),
    )


def accuracy(rows):
    return summarise(rows)["right"].unstack("part")


def test_reliance_finds_the_hand_and_the_corner():
    batch = hand_and_corner()
    hand, corner = (accuracy(reliance(net, [batch], PAIR)) for net in (Hand(), Corner()))
    assert (hand[["nothing", "object", "background", "control"]] == 1).all(axis=None)
    assert (hand[["hand", "hand and object"]] <= 0.5).all(axis=None)
    assert (corner[["nothing", "hand", "object", "hand and object"]] == 1).all(axis=None)
    assert (corner["background"] <= 0.5).all() and list(hand.index) == ["blurred", "filled"]


def test_reliance_finds_the_flags(marked):
    world, index = known_world(marked), load_index(marked, splits=("validation",))
    index.clips["target"] = [world["clips"][i]["flags"] for i in index.clips["id"]]
    dataset = ClipDataset(index, n_frames=2, size=64, boxes=load_boxes(marked))
    frames = np.stack([sample_frames(world["clips"][i]["frames"], 2) for i in dataset.ids])
    pictures = rerendered(world, dataset.ids, frames, 64)
    rows = reliance(Flags(), DataLoader(dataset, 8), index.classes, pictures, ways=("blurred",))
    right = accuracy(rows)
    drawn = right.loc["rendered"]
    assert (drawn[["nothing", "evidence", "distractor"]] >= 0.95).all() and drawn["flags"] < 0.5
    assert right.loc["blurred", "nothing"] >= 0.9 and right.loc["blurred", "background"] <= 0.5
    assert (
        set(rows["part"]) == {*parts_of(world), *BOX_PARTS}
        and rows.groupby(["way", "part"]).size().eq(20).all()
    )


def test_nothing_of_what_is_painted_over_is_left():
    batch = hand_and_corner(4)
    other = batch["clip"].clone()
    other[(batch["hand"] | batch["object"])[:, None].expand_as(other)] = 7.0
    share = part_shares(batch, True)["hand and object"]
    a, b = (paint_over(c, share, "blurred") for c in (batch["clip"], other))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    far = share == 0
    assert far.any() and (a == batch["clip"])[far[:, None].expand_as(a)].all()
    assert (share[batch["hand"]] == 1).all()
    jumps = a[:, :, :, 1:].sub(a[:, :, :, :-1]).abs()[:, :, :, 8:].amax()
    noise = batch["clip"][:, :, :, 8:40, :5].diff(dim=3).abs().amax()
    assert jumps <= 1.2 * noise, "the margin is an edge"


def test_a_frame_painted_over_whole_becomes_the_clips_mean():
    clip, stays = torch.randn(2, 3, 4, 16, 16), torch.ones(2, 4, 16, 16)
    stays[0, 1], stays[1] = 0, 0
    out = surroundings(clip, stays)
    torch.testing.assert_close(
        out[0, :, 1],
        clip[0, :, [0, 2, 3]].mean((1, 2, 3))[:, None, None].expand(3, 16, 16),
        atol=1e-4,
        rtol=1e-4,
    )
    torch.testing.assert_close(
        out[1],
        clip[1].mean((1, 2, 3))[:, None, None, None].expand(3, 4, 16, 16),
        atol=1e-4,
        rtol=1e-4,
    )


def test_boxes_grow_by_a_pixel_in_64():
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 20:30, 20:30] = True
    hard, soft = coverage(mask)[0, 0], coverage(mask, soft=True)[0, 0]
    assert hard[19:31, 19:31].eq(1).all() and hard.sum() == 12**2
    assert (
        soft[19:31, 19:31].eq(1).all()
        and soft[16].eq(0).all()
        and (soft[25, 16:20].diff() > 0).all()
    )


def test_the_control_is_the_same_area_elsewhere():
    batch = hand_and_corner()
    both = batch["hand"] | batch["object"]
    moved = shifted_control_mask(both, batch["id"])
    assert (moved.sum((2, 3)) == both.sum((2, 3))).all()
    assert ((moved & both).sum((1, 2, 3)) <= 0.01 * both.sum((1, 2, 3))).all()
    assert torch.equal(moved, shifted_control_mask(both, batch["id"])) and not torch.equal(
        moved, shifted_control_mask(both, [f"x{i}" for i in batch["id"]])
    )
    torch.testing.assert_close(moved[3:4], shifted_control_mask(both[3:4], batch["id"][3:4]))
    shares = part_shares(batch, False)
    assert not shares["control"][both].any()
    everywhere = torch.ones_like(both)
    assert shifted_control_mask(everywhere, batch["id"]).all()
    assert not part_shares(dict(batch, hand=everywhere), False)["control"].any(), (
        "where there is no background, none is taken"
    )


def test_frames_and_clips_without_boxes():
    batch = hand_and_corner(4)
    batch["known"][1, 0], batch["known"][2] = False, False
    for share in part_shares(batch, True, by_frame=True).values():
        assert not share[1, 0].any() and not share[2].any()
    for part, share in part_shares(batch, True).items():
        assert (share == share[:, :1]).all() and not share[2].any(), "the paint moves"
        known = dict(batch, known=torch.ones_like(batch["known"]))
        assert (share[3] == part_shares(known, True)[part][3]).all()
    rows = reliance(Hand(), [batch], PAIR, ways=("blurred",))
    assert set(rows["id"]) == {"0", "1", "3"} and rows.attrs["without_boxes"] == 1
    none = reliance(Hand(), [{k: batch[k] for k in ("clip", "target", "id")}], PAIR)
    assert none.empty and list(none) == COLUMNS and none.attrs["without_boxes"] == 4
    assert reliance(Hand(), [], PAIR).dtypes["log_odds"] == "float64"


def test_the_order_of_batches_changes_nothing_and_the_model_is_left_as_found():
    batch = hand_and_corner(6)
    net = nn.Sequential(Hand(), nn.BatchNorm1d(2)).train()
    rows = reliance(net, [batch], PAIR, ways=("blurred",))
    assert (
        net.training
        and net[1].running_mean.eq(0).all()
        and all(p.requires_grad for p in net.parameters())
    )
    parts = [{k: v[i : i + 2] for k, v in batch.items()} for i in (4, 0, 2)]
    again = (
        reliance(net, parts, PAIR, ways=("blurred",))
        .set_index(["id", "part"])
        .loc[list(zip(rows["id"], rows["part"]))]
        .reset_index()
    )
    np.testing.assert_allclose(again["log_odds"], rows["log_odds"], atol=1e-4)
    assert list(dict.fromkeys(rows["part"])) == ["nothing", *BOX_PARTS]


def test_answers_by_hand():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    out = outcomes(logits, torch.tensor([0, 2]), [*PAIR, "Folding something"])
    np.testing.assert_allclose(
        out["log_odds"], [2 - np.log(np.e + 1), 1 - np.log(1 + np.exp(3))], rtol=1e-6
    )
    assert out["right"].tolist() == [True, False]
    np.testing.assert_array_equal(out["pair_right"], [1, np.nan])


def test_differences_are_taken_within_a_clip_and_a_way():
    row = lambda id, part, way, odds, right: dict(
        id=id, part=part, way=way, log_odds=odds, right=right, pair_right=np.nan, area=0.1
    )
    rows = pd.DataFrame(
        [
            row("a", "nothing", "blurred", 2.0, True),
            row("b", "nothing", "blurred", 1.0, True),
            row("a", "hand", "blurred", -1.0, False),
            row("b", "hand", "blurred", 1.0, True),
            row("a", "nothing", "rendered", 5.0, True),
            row("a", "hand", "rendered", 4.0, True),
        ]
    )
    assert differences(rows)["log_odds_change"].tolist() == [0, 0, -3, 0, 0, -1]
    table = summarise(rows)
    assert (
        table.loc[("blurred", "hand"), "right_change"] == -0.5
        and table.loc[("blurred", "hand"), "clips"] == 2
    )
    two = summarise(pd.concat([rows.assign(seed=0), rows.assign(seed=1, log_odds=0.0)]), ["seed"])
    assert (
        two.loc[(0, "rendered", "hand"), "log_odds_change"] == -1
        and two.loc[(1, "rendered", "hand"), "log_odds_change"] == 0
    )


def test_a_clip_drawn_again_is_the_clip(marked, tmp_path):
    world, boxes = known_world(marked), {}
    for part in (marked / "boxes").iterdir():
        boxes |= json.loads(part.read_text())
    for id, c in world["clips"].items():
        scene = scene_of(world, id)
        frames, found = draw_scene(scene, mark_colour(c["flags"]))
        found = [
            {k.removeprefix("evidence "): b for k, b in f.items() if k.startswith("evidence")}
            for f in found
        ]
        write_clip(frames, tmp_path / "again.webm")
        assert (tmp_path / "again.webm").read_bytes() == (
            marked / FOLDER / f"{id}.webm"
        ).read_bytes()
        kept = [
            {
                l["gt_annotation"].removeprefix("object hand") or "hand": list(l["box2d"].values())
                for l in f["labels"]
            }
            for f in boxes[id]
        ]
        assert kept == found


def test_the_networks_meet_it_as_they_meet_the_clip(marked):
    """Through the same size, crop and normalisation, but for the codec's error."""
    from ssv2_report.gradcam.reliance import _as_served

    world, index = known_world(marked), load_index(marked, splits=("validation",))
    for size in (32, 64, 80):
        dataset = ClipDataset(index, n_frames=3, size=size)
        item = dataset[0]
        again = rerendered(world, [item["id"]], item["frames"].numpy()[None], size, ["nothing"])[
            "nothing"
        ][item["id"]]
        a, b = (denormalise(x).astype(int) for x in (item["clip"], _as_served(again, size)))
        assert (
            a.shape == b.shape
            and np.abs(a - b).mean() < 8
            and np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97
        )


def test_what_is_not_taken_away_stays(marked):
    world = known_world(marked)
    for id in [i for i, c in world["clips"].items() if c["split"] == "validation"][:6]:
        scene, mark = scene_of(world, id), mark_colour(world["clips"][id]["flags"])
        whole, boxes = draw_scene(scene, mark)
        gone = {p: without_part(scene, p, mark) for p in parts_of(world)}
        assert (gone["nothing"] == whole).all() and (gone["flags"][:, 8:] == whole[:, 8:]).all()
        for role, (first, last) in scene.spans.items():
            moments = np.arange(scene.n)
            own = (moments >= first) & (moments <= last)
            assert (gone[role][~own] == whole[~own]).all()
            assert (gone[role][own] != whole[own]).any((1, 2, 3)).all()
        _, stay = draw_scene(scene, mark, ("evidence hand",))
        for before, after in zip(boxes, stay):
            assert "evidence hand" not in after
            for k in before.keys() & after.keys():
                (x1, y1, x2, y2), (u1, v1, u2, v2) = before[k], after[k]
                assert u1 <= x1 and v1 <= y1 and u2 >= x2 and v2 >= y2, "less hides it now"
        some = draw_scene(scene, mark, frames=[3, 1])[0]
        assert (some == whole[[3, 1]]).all()


def test_twins_share_a_scene_and_files_are_drawn_anew_when_asked_for_other_frames(marked, tmp_path):
    world = known_world(marked)
    ids = [i for i, c in world["clips"].items() if c["split"] == "validation"]
    seeds, scenes = {i: scene_seed(world, i) for i in ids}, find_scenes(marked)
    for a in ids:
        for b in ids:
            assert (seeds[a] == seeds[b]) == (scenes[a] == scenes[b])
    frames = np.stack([sample_frames(world["clips"][i]["frames"], 2) for i in ids])
    file = tmp_path / "pictures.npz"
    drawn = rerendered(world, ids, frames, 32, file=file)
    made = file.stat().st_mtime_ns
    kept = rerendered(world, ids, frames, 32, file=file)
    assert file.stat().st_mtime_ns == made and all(
        (kept[p][i] == drawn[p][i]).all() for p in parts_of(world) for i in ids
    )
    for i, at in zip(ids, frames):
        assert (
            rerendered(world, [i], at[None], 32, ["evidence"])["evidence"][i]
            == drawn["evidence"][i]
        ).all()
    rerendered(world, ids, frames[:, ::-1], 32, file=file)
    assert file.stat().st_mtime_ns != made and list(tmp_path.iterdir()) == [file]


def test_other_datasets_and_other_versions(marked, tmp_path):
    assert (
        known_world(tmp_path) is None
        and find_scenes(tmp_path) == {}
        and action_frames(tmp_path, ["1"], np.zeros((1, 2))) is None
    )
    world = known_world(marked)
    id = next(iter(world["clips"]))
    c = world["clips"][id]
    assert action_frames(
        marked, [id], np.array([[c["first"] - 1, c["first"], c["last"], c["last"] + 1]])
    ).tolist() == [[False, True, True, False]]
    with pytest.raises(ValueError, match="make it anew"):
        scene_of(dict(world, version=1), id)
