"Every measure on maps planted by hand: the value computed by hand, and chance on even maps."

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import nn

from ssv2_report.gradcam.attention import (
    attention_rows,
    centroid,
    clip_rows,
    faithfulness,
    faithfulness_curves,
    oracle_maps,
    path_correlation,
    random_maps,
    rank_correlation,
    sanity,
    weighted_blocks,
)
from ssv2_report.gradcam.maps import common_grid, normalise, resize_maps

PARTS = ("hand", "object", "background")


def planted():
    "Two clips of 3 frames of 4 x 5. Hand: 2 x 2 in a corner; object: 2 x 2 overlapping it in one pixel, moving right."
    hand, object = np.zeros((2, 2, 3, 4, 5), bool)
    for t in range(3):
        hand[:, t, 0:2, t : t + 2] = True
        object[:, t, 1:3, t + 1 : t + 3] = True
    return hand, object


def test_shares_by_hand():
    hand, object = planted()
    maps = np.zeros((2, 3, 4, 5))
    maps[0, 0, 1, 1], maps[0, 0, 2, 2], maps[0, 1, 3, 0] = (
        3,
        1,
        4,
    )  # the overlap counts as hand; then object; then background
    rows = attention_rows(
        maps, hand, object, np.ones((2, 3), bool), ["a", "b"], [[5, 7, 9], [0, 1, 2]]
    ).set_index(["id", "t"])
    a0, a1, a2 = (rows.loc[("a", t)] for t in range(3))
    assert (a0.frame, a0.mass, a0.share_hand, a0.share_object, a0.share_background) == (
        5,
        0.5,
        0.75,
        0.25,
        0,
    )
    np.testing.assert_allclose(
        [a0.area_hand, a0.area_object, a0.area_background, a0.area_both],
        [4 / 20, 3 / 20, 13 / 20, 7 / 20],
    )
    np.testing.assert_allclose(
        [a0.ratio_hand, a0.ratio_object, a0.ratio_background], [0.75 * 5, 0.25 * 20 / 3, 0]
    )
    assert (a0.pointing, a1.pointing) == (1, 0) and (a0.centroid_y, a0.centroid_x) == (1.25, 1.25)
    assert (a0.hand_y, a0.hand_x, a0.object_y, a0.object_x) == (0.5, 0.5, 1.5, 1.5) and (
        a2.hand_x,
        a2.object_x,
    ) == (2.5, 3.5)
    assert (
        a2.mass == 0
        and a2[["share_hand", "ratio_object", "pointing", "centroid_y"]].isna().all()
        and a2.area_hand == 0.2
    )
    assert (
        rows.loc["b"][["mass", "share_hand", "pointing"]].isna().all().all()
    )  # a map of zeros says nothing
    assert len(rows) == 6


def test_clip_measures_by_hand():
    hand, object = planted()
    maps = np.zeros((2, 3, 4, 5))
    for t, m in enumerate((1, 2, 1)):
        maps[0, t, 0, t + 1] = m  # moves right with hand and object
    for t in range(3):
        maps[1, t, 3, 2 - t] = 1  # moves left, in the background
    action = np.array([[False, True, True]] * 2)
    a, b = clip_rows(maps, hand, object, np.ones((2, 3), bool), ["a", "b"], action).to_dict(
        "records"
    )
    assert (a["share_hand"], a["share_background"], b["share_background"]) == (1, 0, 1)
    np.testing.assert_allclose(
        [a["ratio_hand"], b["ratio_background"], b["ratio_hand"]], [5, 20 / 13, 0]
    )
    np.testing.assert_allclose([a["ratio_both"], b["ratio_both"]], [20 / 7, 0])
    np.testing.assert_allclose(
        [a["entropy"], b["entropy"], b["effective_frames"]], [1.5 * np.log(2), np.log(3), 3]
    )
    np.testing.assert_allclose(
        [a["effective_frames"], a["centre_of_time"], b["centre_of_time"]], [2**1.5, 0.5, 0.5]
    )
    np.testing.assert_allclose(
        [a["share_action"], a["ratio_action"], b["ratio_action"]], [0.75, 0.75 * 1.5, 1]
    )
    np.testing.assert_allclose([a["path_hand"], a["path_object"], b["path_hand"]], [1, 1, -1])
    assert (a["pointing"], b["pointing"], a["known_frames"]) == (1, 0, 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))
def test_even_maps_give_chance(T, H, W, seed):
    rng = np.random.default_rng(seed)
    hand, object, known, action = (
        rng.random((2, T, H, W)) < 0.3,
        rng.random((2, T, H, W)) < 0.3,
        np.ones((2, T), bool),
        rng.random((2, T)) < 0.5,
    )
    even = normalise(torch.ones(2, T, H, W))
    rows, clips = (
        attention_rows(even, hand, object, known, ["a", "b"]),
        clip_rows(even, hand, object, known, ["a", "b"], action),
    )
    for name in PARTS:
        for df in (rows, clips):
            np.testing.assert_allclose(df[f"share_{name}"], df[f"area_{name}"], atol=1e-6)
            np.testing.assert_allclose(df[f"ratio_{name}"].dropna(), 1, atol=1e-5)
    np.testing.assert_allclose(rows.mass, 1 / T, rtol=1e-5)
    there = rows.area_both > 0
    np.testing.assert_allclose(rows.pointing[there], rows.area_both[there], atol=1e-6)
    np.testing.assert_allclose(rows.centroid_y, (H - 1) / 2, atol=1e-5)
    (
        np.testing.assert_allclose(clips.effective_frames, T, rtol=1e-5),
        np.testing.assert_allclose(clips.centre_of_time, 0.5, atol=1e-5),
    )
    np.testing.assert_allclose(clips.ratio_action.dropna(), 1, atol=1e-5)
    assert not clips[["path_hand", "path_object"]].fillna(0).to_numpy().any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_shares_add_up_and_the_scale_of_a_map_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    hand, object, known = (
        rng.random((2, 4, 5, 6)) < 0.3,
        rng.random((2, 4, 5, 6)) < 0.3,
        rng.random((2, 4)) < 0.7,
    )
    maps = rng.random((2, 4, 5, 6))
    rows = attention_rows(maps, hand, object, known, ["a", "b"])
    for kind in ("share", "area"):
        total = sum(rows[f"{kind}_{p}"] for p in PARTS)
        (
            np.testing.assert_allclose(total[known.ravel()], 1),
            np.testing.assert_array_equal(total.isna(), ~known.ravel()),
        )
    np.testing.assert_allclose(rows.groupby("id").mass.sum(), 1)
    assert rows.select_dtypes("number").equals(
        attention_rows(maps * 4, hand, object, known, ["a", "b"]).select_dtypes("number")
    )


def test_what_is_not_known_is_missing_never_zero():
    hand, object = planted()
    maps, known = np.ones((2, 3, 4, 5)), np.array([[True, False, True], [False] * 3])
    object[0, 2] = False  # out of the picture
    rows = attention_rows(maps, hand, object, known, ["a", "b"]).set_index(["id", "t"])
    boxed = [f"{k}_{p}" for k in ("share", "area", "ratio") for p in PARTS] + [
        "pointing",
        "area_both",
        "hand_y",
        "object_x",
    ]
    assert rows.loc[("a", 1), boxed].isna().all()
    assert rows.loc["b"][boxed].isna().all().all() and rows.loc["b"].mass.notna().all()
    gone = rows.loc[("a", 2)]
    assert (
        gone.share_object == 0 == gone.area_object
        and np.isnan(gone.ratio_object)
        and np.isnan(gone.object_y)
        and gone.ratio_hand == pytest.approx(1)
    )
    hand[0, 2] = False
    assert np.isnan(attention_rows(maps, hand, object, known, ["a", "b"]).pointing[2])
    clips = clip_rows(maps, hand, object, known, ["a", "b"]).set_index("id")
    assert (
        clips.loc[
            "b",
            [f"{k}_{p}" for k in ("share", "area", "ratio") for p in PARTS]
            + ["pointing", "path_hand", "share_action"],
        ]
        .isna()
        .all()
    )
    assert (
        clips.loc["b", "entropy"] == pytest.approx(np.log(3))
        and list(clips.known_frames) == [2, 0]
        and np.isnan(clips.loc["a", "path_hand"])
    )


def test_noise_points_by_chance_when_its_own_cells_are_given():
    "The largest place of an upsampled noise map lies at the border; its largest cell may lie anywhere."
    own, ring = (
        torch.rand((300, 2, 8, 8), generator=torch.Generator().manual_seed(0)),
        np.ones((300, 2, 32, 32), bool),
    )
    ring[..., 4:-4, 4:-4] = False
    maps, none, known, ids = (
        normalise(resize_maps(own, (2, 32, 32))),
        np.zeros_like(ring),
        np.ones((300, 2), bool),
        [str(i) for i in range(300)],
    )
    for rows in (
        lambda own: attention_rows(maps, ring, none, known, ids, own=own),
        lambda own: clip_rows(maps, ring, none, known, ids, own=own),
    ):
        assert rows(None).pointing.mean() > 0.55 and abs(rows(own).pointing.mean() - 28 / 64) < 0.07
    one = torch.zeros(1, 1, 4, 4)
    one[0, 0, 1, 1] = 1  # covers rows and columns 8 to 15 of both frames
    hand = np.zeros((1, 2, 32, 32), bool)
    hand[0, 0, 12:20, 8:12] = True  # 4 x 4 of the cell's 8 x 8 places, in one frame
    even = normalise(torch.ones(1, 2, 32, 32))
    assert (
        attention_rows(even, hand, hand, np.ones((1, 2), bool), ["a"], own=one).pointing[0]
        == 16 / 64
    )
    assert (
        clip_rows(even, hand, hand, np.ones((1, 2), bool), ["a"], own=one).pointing[0] == 16 / 128
    )
    with pytest.raises(ValueError, match="'own'"):
        clip_rows(even, hand, hand, np.ones((1, 2), bool), ["a"], own=one[0])


def test_clips_without_boxes_and_boxes_outside_the_frame():
    from ssv2_report.data.boxes import Boxes, draw_boxes

    rows = [
        (0, 0, -40, -40, -8, -8),
        (0, 1, 28, 28, 60, 60),
        (1, 0, 4, 4, 8, 8),
        (1, 1, 100, 100, 120, 120),
    ]  # frame, kind, corners: beyond a corner; half in; in; beyond
    frame, kind, xyxy = (
        np.array(x, t)
        for x, t in zip(
            ([r[0] for r in rows], [r[1] for r in rows], [r[2:] for r in rows]),
            ("int16", "int8", "float32"),
        )
    )
    boxes = Boxes(np.array([b"there"]), np.array([0, 4]), frame, kind, xyxy, {})
    masks = [
        draw_boxes(boxes, id, [0, 1], 32, (32, 32), (0, 0, 1, 1)) for id in ("there", "not there")
    ]
    hand, object, known = (np.stack([m[k] for m in masks]) for k in ("hand", "object", "known"))
    there, gone = (
        t
        for _, t in attention_rows(
            np.ones((2, 2, 32, 32)), hand, object, known, ["there", "not there"]
        ).groupby("id", sort=False)
    )
    assert (
        there.area_hand.tolist() == [0, 16 / 1024]
        and np.isnan(there.ratio_hand.iloc[0])
        and there.area_object.tolist() == [16 / 1024, 0]
    )  # cut off at the edge
    assert (
        there.ratio_object.iloc[0] == pytest.approx(1)
        and np.isnan(there.ratio_object.iloc[1])
        and there.pointing.notna().all()
    )
    assert (
        gone[["share_hand", "ratio_object", "pointing"]].isna().all().all()
        and gone.mass.notna().all()
    )


def test_mistakes_are_one_clear_sentence():
    hand, object = planted()
    maps, known = np.ones((2, 3, 4, 5)), np.ones((2, 3), bool)
    for args, says in (
        ((maps[0], hand, object, known, ["a", "b"]), r"\[B,T,H,W\]"),
        ((maps, hand[:1], object, known, ["a", "b"]), "'hand' must be of shape"),
        ((maps, hand, object, known, ["a", "b", "c"]), "'ids'"),
        ((-maps, hand, object, known, ["a", "b"]), "not negative"),
        ((maps * np.nan, hand, object, known, ["a", "b"]), "finite"),
    ):
        with pytest.raises(ValueError, match=says):
            attention_rows(*args)
        with pytest.raises(ValueError, match=says):
            clip_rows(*args)


def test_path_correlation():
    b = np.stack([np.zeros(6), np.arange(6.0)], 1)
    assert path_correlation(b * 3 + 7, b) == pytest.approx(1) and path_correlation(
        -b, b
    ) == pytest.approx(-1)
    assert path_correlation(np.ones((6, 2)), b) == 0 and np.isnan(
        path_correlation(b, np.ones((6, 2)))
    )
    across = np.stack([np.arange(6.0), np.arange(6.0)], 1)
    assert path_correlation(across, b) == pytest.approx(np.sqrt(0.5))
    gaps = b.copy()
    gaps[1:4] = np.nan
    assert path_correlation(b, gaps) == pytest.approx(1)
    gaps[4] = np.nan
    assert np.isnan(path_correlation(b, gaps))


def test_centroid_of_a_pixel_is_its_place():
    maps = np.zeros((3, 4, 5))
    maps[0, 3, 1] = 2
    maps[1, 0, [0, 4]] = 1
    np.testing.assert_array_equal(centroid(maps), [[3, 1], [0, 2], [np.nan, np.nan]])


def test_quantus_agrees():
    metrics = pytest.importorskip("quantus.metrics.localisation")
    rng = np.random.default_rng(0)
    hand, object = rng.random((4, 3, 8, 8)) < 0.2, rng.random((4, 3, 8, 8)) < 0.2
    maps = rng.random((4, 3, 8, 8))
    rows = attention_rows(maps, hand, object, np.ones((4, 3), bool), list("abcd"))
    as_images = lambda x: np.asarray(x).reshape(12, 1, 8, 8)
    judge = lambda cls, mask: np.asarray(
        cls(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)(
            model=None,
            x_batch=np.zeros((12, 1, 8, 8)),
            y_batch=np.zeros(12, int),
            a_batch=as_images(maps),
            s_batch=as_images(mask),
            channel_first=True,
        ),
        float,
    )
    np.testing.assert_allclose(rows.pointing, judge(metrics.PointingGame, hand | object), atol=1e-6)
    for name, mask in dict(hand=hand, object=object & ~hand, background=~(hand | object)).items():
        np.testing.assert_allclose(
            rows[f"share_{name}"], judge(metrics.RelevanceMassAccuracy, mask), atol=1e-6
        )


def test_bounds():
    hand, object = planted()
    right, noise = oracle_maps(hand, object), random_maps((2, 3, 2, 2), (3, 4, 5), seed=1)
    known = np.ones((2, 3), bool)
    assert torch.equal(noise, random_maps((2, 3, 2, 2), (3, 4, 5), seed=1)) and not torch.equal(
        noise, random_maps((2, 3, 2, 2), (3, 4, 5), seed=2)
    )
    best, worst = (attention_rows(m, hand, object, known, ["a", "b"]) for m in (right, noise))
    assert (
        (best.pointing == 1).all()
        and (best.share_background == 0).all()
        and (best.ratio_hand > worst.ratio_hand).all()
    )


# ---- faithful, sane, stable


class Bright(nn.Module):
    "p(class 0) depends on the one bright frame's middle alone."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1.0), self.conv.bias.zero_()

    def forward(self, clip):
        x = self.conv(clip)[:, 0, 1, 3:5, 3:5].mean((1, 2))
        return torch.stack([20 * x - 10, torch.zeros_like(x)], 1)


def test_faithfulness_by_hand():
    clip, maps = torch.zeros(2, 1, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    clip[:, :, 1, 3:5, 3:5] = 1
    maps[0, 1, 3:5, 3:5] = 1  # right: these 4 of 256 places go first
    maps[1] = 1
    maps[1, 1, 3:5, 3:5] = 0  # wrong: they go last
    deletion, insertion = faithfulness_curves(Bright(), clip, maps, 0, steps=4)
    high, low = (
        torch.sigmoid(torch.tensor(10.0)).item(),
        torch.sigmoid(torch.tensor(-10.0 + 20 / 16)).item(),
    )  # baseline there: 1/4 of time x 1/4 of the 2 x 2 cell
    (
        np.testing.assert_allclose(deletion[:, [0, -1]], [[high, low]] * 2, atol=1e-3),
        np.testing.assert_allclose(insertion[:, [0, -1]], [[low, high]] * 2, atol=1e-3),
    )
    (
        np.testing.assert_allclose(deletion[:, 1:4], [[low] * 3, [high] * 3], atol=1e-3),
        np.testing.assert_allclose(insertion[:, 1:4], [[high] * 3, [low] * 3], atol=1e-3),
    )
    df = faithfulness(Bright(), clip, maps, 0, steps=4)
    assert (
        df.deletion[0] < df.deletion_random.mean() < df.deletion[1]
        and df.insertion[0] > df.insertion_random.mean() > df.insertion[1]
    )
    np.testing.assert_allclose(df.deletion[0], (high + low) / 8 + 3 * low / 4, atol=1e-3)


def test_faithfulness_breaks_ties_by_seed_and_leaves_the_model():
    model, clip = Bright().train(), torch.rand(1, 1, 4, 8, 8)
    a, b, c = (
        faithfulness_curves(model, clip, torch.ones(1, 1, 1, 1), None, 4, seed)[0]
        for seed in (0, 0, 1)
    )
    assert (
        torch.equal(a, b)
        and not torch.equal(a, c)
        and model.training
        and model.conv.weight.requires_grad
    )


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (3, 4, 5)), rng.random((3, 4, 5))
    np.testing.assert_allclose(
        rank_correlation(a, b), [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)]
    )
    assert np.isnan(rank_correlation(np.ones((1, 4)), b[:1, 0, :4])).all()


def test_sanity_falls_as_the_weights_go_and_keeps_the_model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv3d(6, 6, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    clip, state = torch.rand(3, 1, 4, 12, 12), torch.get_rng_state()
    df = sanity(net, clip, "2", method="hirescam")
    assert list(df.stage.unique()) == weighted_blocks(net) == ["5", "2", "0"] and len(df) == 9
    assert df[df.stage == "0"].sanity.abs().mean() < 0.6 and torch.equal(
        state, torch.get_rng_state()
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and df.equals(
        sanity(net, clip, "2", method="hirescam")
    )
    wrapped = nn.Module()
    wrapped.net = net
    assert weighted_blocks(wrapped) == ["net.5", "net.2", "net.0"]


def test_maps_are_alike_on_their_common_grid():
    a = torch.rand(2, 4, 8, 8)
    fine = a.repeat_interleave(2, 2).repeat_interleave(2, 3)
    np.testing.assert_allclose(rank_correlation(*common_grid(a, fine)), 1)
    assert (np.abs(rank_correlation(*common_grid(a, torch.rand(2, 4, 8, 8)))) < 0.5).all()


def test_every_measure_is_described():
    hand, object = planted()
    maps, known = np.ones((2, 3, 4, 5)), np.ones((2, 3), bool)
    lesson = Path(__file__).parents[1] / "nbs/gradcam/attention.ipynb"
    text = "\n".join(c.source for c in nbformat.read(lesson, 4).cells if c.cell_type == "markdown")
    rows = re.findall(r"(?m)^\| (.+?) \| (.+) \|$", text)
    described = {m for names, _ in rows for m in names.split(", ")}
    columns = set(attention_rows(maps, hand, object, known, ["a", "b"])) | set(
        clip_rows(maps, hand, object, known, ["a", "b"])
    )
    aside = {
        "id",
        "t",
        "frame",
        "known_frames",
        "area_both",
        *(f"area_{p}" for p in PARTS),
        "hand_y",
        "hand_x",
        "object_y",
        "object_x",
    }
    assert columns - aside <= described and {rest.count("|") for _, rest in rows} == {3}
