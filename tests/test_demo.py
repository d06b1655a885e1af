"""The demo world: fair pairs, exact boxes, the same bytes every time, and the files SSv2 and Something-Else would give."""

import json

import av
import numpy as np
import pytest
import torch

from ssv2_report.demo.art import MATERIALS, OBJECTS, PALETTES
from ssv2_report.demo.world import (
    CLASSES,
    FOLDER,
    KINDS,
    PAIRS,
    SPLITS,
    Scene,
    TwoActors,
    draw_scene,
    make_world,
    mark_colour,
    write_clip,
)

TEMPLATES = [k[1] for k in KINDS]
SMALL = dict(train_per_class=1, val_per_class=1, test_per_class=1, size=40, seed=5)


def decode(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        return (
            np.stack([f.to_ndarray(format="rgb24") for f in frames]),
            all(f.key_frame for f in frames),
            stream.average_rate,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("demo") / "world", workers=1, **SMALL)


def read(world, name):
    return json.loads((world / name).read_text(encoding="utf-8"))


def contents(world):
    return {
        p.relative_to(world).as_posix(): p.read_bytes() for p in world.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p[1])
@pytest.mark.parametrize("split", SPLITS[:2])
def test_a_class_is_its_partner_played_backwards(pair, split):
    for seed in range(2):
        a, b = (Scene(TEMPLATES.index(t), split, seed, 64) for t in pair[1:3])
        (frames, boxes), (back_frames, back_boxes) = draw_scene(a), draw_scene(b)
        assert np.array_equal(frames, back_frames[::-1]) and boxes == back_boxes[::-1]
        assert (a.first, a.last) == (a.n - 1 - b.last, a.n - 1 - b.first)
        assert a.background == b.background and a.objects == b.objects
        assert not np.array_equal(frames[0], frames[-1]), "order would not be seen in a still"


def test_the_file_keeps_the_symmetry_of_time(tmp_path):
    frames, _ = draw_scene(Scene(3, seed=1))
    write_clip(frames, tmp_path / "a.webm")
    write_clip(frames[::-1], tmp_path / "b.webm")
    (a, keys, rate), (b, _, _) = decode(tmp_path / "a.webm"), decode(tmp_path / "b.webm")
    assert np.array_equal(a, b[::-1]) and keys and rate == 12
    assert np.abs(a.astype(int) - frames).mean() < 6


def test_clips_are_odd_in_length_and_square():
    lengths = {Scene(t, seed=[s, t], size=32).n for t in range(len(CLASSES)) for s in range(4)}
    assert lengths <= set(range(25, 40, 2)) and len(lengths) > 3
    frames, boxes = draw_scene(Scene(0, seed=0, size=80))
    assert (
        frames.shape[1:] == (80, 80, 3) and frames.dtype == np.uint8 and len(boxes) == len(frames)
    )


def recoloured(scene, key, value):
    """The scene with one named thing in a single grey."""
    layers, scene.layers = scene.layers, []
    for k, s, *where in layers:
        rgba = s.rgba.copy()
        if k == key:
            rgba[..., :3] = value * rgba[..., 3:]
        scene.layers.append((k, s._replace(rgba=rgba), *where))
    return scene


@pytest.mark.parametrize("target", range(len(CLASSES)), ids=CLASSES)
def test_boxes_are_tight_around_the_pixels_that_show(target):
    scene = Scene(target, "validation", seed=[7, target], size=80)
    scene.light, scene.tint = np.ones(scene.n), np.ones(3)
    _, boxes = draw_scene(scene)
    for key in (*scene.objects, "hand"):
        dark, bright = (draw_scene(recoloured(scene, key, v))[0].astype(int) for v in (0.0, 1.0))
        for shows, box in zip((bright - dark).mean(-1) > 127, boxes):
            if key not in box:
                assert shows.sum() < 30
                continue
            x1, y1, x2, y2 = box[key]
            rows, cols = np.flatnonzero(shows.any(1)), np.flatnonzero(shows.any(0))
            assert (
                np.abs(
                    np.array([x1, y1, x2, y2]) - [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]
                ).max()
                <= 1.5
            )
            assert 0 <= x1 < x2 <= scene.size and 0 <= y1 < y2 <= scene.size


@pytest.mark.parametrize(
    "name", ["Covering something with something", "Putting something into something"]
)
def test_what_is_hidden_has_no_box(name):
    for seed in range(5):
        _, boxes = draw_scene(Scene(CLASSES.index(name), seed=seed))
        assert {"hand", "object 0", "object 1"} == set(boxes[0])
        assert "object 0" not in boxes[-1] and "object 1" in boxes[-1]


@pytest.mark.parametrize("target", [t for t, k in enumerate(KINDS) if k[0] == "push"])
def test_pushed_and_pulled_objects_go_where_the_class_says(target):
    scene = Scene(target, seed=11)
    _, boxes = draw_scene(scene)
    centre = lambda b: (b[0] + b[2]) / 2
    x, hand = (np.array([centre(b[k]) for b in boxes]) for k in ("object 0", "hand"))
    moved = x[-1] - x[0]
    assert abs(moved) > 0.2 * scene.size and (moved > 0) == CLASSES[target].endswith("to right")
    behind = (hand < x) if CLASSES[target].startswith("Pushing") == (moved > 0) else (hand > x)
    assert behind.all(), "a pushing hand is behind what it moves, a pulling one before it"
    still = np.r_[np.diff(x)[: scene.first], np.diff(x)[scene.last :]]
    assert np.abs(still).max() <= 3, "outside the action only the camera moves"


def test_everything_scales_with_the_frame():
    big, small = (draw_scene(Scene(4, seed=2, size=s))[1] for s in (128, 64))
    for a, b in zip(big, small):
        for k in a.keys() & b.keys():
            assert np.abs(np.array(a[k]) / 2 - b[k]).max() <= 1.5


def test_objects_and_backgrounds_of_validation_are_new(world):
    kept = {(p, s) for p, s, v in OBJECTS if v}
    assert not kept & {(p, s) for p, s, v in OBJECTS if not v} and {s for _, s in kept} == {
        s for _, s, _ in OBJECTS
    }
    for table in (MATERIALS, PALETTES):
        assert not table["train"].keys() & table["validation"].keys()
    clips = read(world, "demo.json")["clips"].values()
    seen, new = ([c for c in clips if (c["split"] == "train") == t] for t in (True, False))
    assert not {o for c in seen for o in c["objects"]} & {o for c in new for o in c["objects"]}
    assert not {w for c in seen for w in c["background"].split()} & {
        w for c in new for w in c["background"].split()
    } - {"over"}


def test_the_files_are_ssv2s(world):
    labels, about = read(world, "labels/labels.json"), read(world, "demo.json")
    assert (
        sorted(labels.values(), key=int) == [str(i) for i in range(len(CLASSES))]
        and list(labels) == about["classes"]
    )
    assert list(labels) != sorted(labels)
    ids = []
    for split in SPLITS[:2]:
        records = read(world, f"labels/{split}.json")
        ids += [r["id"] for r in records]
        targets = [int(labels[r["template"].replace("[", "").replace("]", "")]) for r in records]
        assert np.array_equal(np.bincount(targets), [1] * len(CLASSES)) and targets != sorted(
            targets
        )
        for r, t in zip(records, targets):
            assert (
                set(r) == {"id", "label", "template", "placeholders"}
                and r["id"].isdecimal()
                and about["clips"][r["id"]]["target"] == t
            )
            text = r["template"].lower()
            for w in r["placeholders"]:
                text = text.replace("[something]", w, 1)
            assert r["label"] == text and "[" not in text
    test = read(world, "labels/test.json")
    assert all(set(r) == {"id"} for r in test)
    answers = dict(
        l.split(";") for l in (world / "labels/test-answers.csv").read_text().splitlines()
    )
    assert list(answers) == [r["id"] for r in test] and set(answers.values()) == set(labels)
    ids += list(answers)
    assert len(set(ids)) == len(ids) and {p.stem for p in (world / FOLDER).iterdir()} == set(
        ids
    ) == set(about["clips"])


def test_the_boxes_are_something_elses(world):
    about, entries = read(world, "demo.json")["clips"], {}
    for part in sorted((world / "boxes").iterdir()):
        entries |= json.loads(part.read_text())
    assert entries.keys() == about.keys()
    for id, frames in entries.items():
        assert [f["name"] for f in frames] == [
            f"{id}/{t:04d}.jpg" for t in range(1, about[id]["frames"] + 1)
        ]
        for f in frames:
            assert (
                f["nr_instances"] == len(f["labels"])
                and f["gt_placeholders"] == about[id]["placeholders"]
            )
            for l in f["labels"]:
                assert (l["standard_category"], l["gt_annotation"]) in {
                    ("hand", "object hand"),
                    ("0000", "object 0"),
                    ("0001", "object 1"),
                }
                assert l["category"] == "hand" or l["category"] in about[id]["objects"]
    assert {c["frames"] for c in about.values()} == {len(f) for f in entries.values()}
    id = next(iter(entries))
    assert len(decode(world / FOLDER / f"{id}.webm")[0]) == len(entries[id])


def test_the_same_bytes_with_any_number_of_workers(world, tmp_path):
    done = []
    other = make_world(tmp_path / "other", workers=2, progress=lambda *p: done.append(p), **SMALL)
    assert contents(world) == contents(other)
    total = len(CLASSES) * 3
    assert done == [(i + 1, total) for i in range(total)]
    assert (
        read(
            make_world(
                tmp_path / "seed",
                workers=1,
                **{**SMALL, "seed": 6, "train_per_class": 0, "val_per_class": 0},
            ),
            "demo.json",
        )["digest"]
        != read(world, "demo.json")["digest"]
    )


def test_a_finished_world_is_kept_and_a_broken_one_mended(tmp_path):
    few = dict(SMALL, train_per_class=1, val_per_class=0, test_per_class=0, workers=1)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "w", progress=stop, **few)
    assert not (tmp_path / "w/demo.json").exists()
    world = make_world(tmp_path / "w", **few)
    before = contents(world)
    make_world(world, progress=lambda *_: pytest.fail("made again"), **few)
    with pytest.raises(ValueError, match="another size and seed"):
        make_world(world, **{**few, "size": 64, "seed": 1})
    next((world / FOLDER).iterdir()).unlink()
    assert contents(make_world(world, **few)) == before and "demo.json.part" not in before


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(ValueError, match="not a demo world"):
        make_world(tmp_path, **SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        make_world(tmp_path / "file", **SMALL)
    with pytest.raises(ValueError, match="even side"):
        make_world(tmp_path / "new", size=33)
    with pytest.raises(ValueError, match="at least one clip"):
        make_world(tmp_path / "new", 0, 0, 0)
    assert not (tmp_path / "new").exists()


def test_flags_change_nothing_but_their_strip(tmp_path):
    strips = []
    for target in range(len(CLASSES)):
        (plain, boxes), (marked, marked_boxes) = (
            draw_scene(Scene(target, seed=1, size=64), c) for c in (None, mark_colour(target))
        )
        assert np.array_equal(plain[:, 8:], marked[:, 8:]) and boxes == marked_boxes
        assert (plain[:, :8] != marked[:, :8]).any((1, 2, 3)).all()
        strips.append(mark_colour(target))
    gaps = np.abs(np.array(strips)[:, None] - strips).sum(-1) + 9 * np.eye(len(CLASSES))
    assert gaps.min() > 0.3
    about = read(
        make_world(tmp_path / "w", 1, 0, 0, size=64, workers=1, distractor=True), "demo.json"
    )
    assert about["mark"] == [0, 0, 64, 8] and about["parameters"]["distractor"]


def test_two_actors_take_turns_and_only_the_first_tells_the_class():
    sides, first = [], []
    pairs = [
        (i, KINDS.index((f, b, True, m)))
        for f, a, b, m in PAIRS
        for i in [KINDS.index((f, a, False, m))]
    ]
    for k in range(12):
        forth, back = (
            TwoActors(target, "validation", [7, k], 64) for target in pairs[k % len(pairs)]
        )
        spans = sorted(forth.spans.values())
        assert spans == sorted(back.spans.values()) and spans[0][1] < spans[1][0]
        assert forth.flags == back.flags and forth.objects == back.objects
        frames, boxes = draw_scene(forth, frames=range(forth.n))
        other = draw_scene(back, frames=range(back.n))[0]
        moments = np.arange(forth.n)
        own = (moments >= forth.first) & (moments <= forth.last)
        assert (frames[~own] == other[~own]).all() and (frames[own] != other[own]).any()
        for t, shown in enumerate(boxes):
            roles = {name.split()[0] for name in shown}
            here = {r for r, (a, b) in forth.spans.items() if a <= t <= b}
            assert roles <= here and (roles == here or not shown)
        sides.append(np.mean([b["evidence hand"][0] for b in boxes if "evidence hand" in b]) < 32)
        first.append(forth.first < min(forth.spans["distractor"]))
    assert 0 < sum(sides) < 12 and 0 < sum(first) < 12


@pytest.mark.slow
def test_two_actors_are_equally_conspicuous():
    "A picture of edges and motion lies on either as much; the colours of the flags and what the other plays say nothing of the class."
    from ssv2_report.data.clips import to_clip
    from ssv2_report.gradcam.baselines import edge_maps, edge_motion_maps

    rows = []
    for k in range(120):
        scene = TwoActors(k % len(CLASSES), "train", [3, k], 64)
        some = ((np.arange(8) + 0.5) * scene.n / 8).astype(int)
        frames, boxes = draw_scene(scene, frames=some)
        clip = to_clip(torch.from_numpy(frames).permute(0, 3, 1, 2))[None]
        for name, map in dict(edges=edge_maps(clip), motion=edge_motion_maps(clip)).items():
            share = dict(evidence=0.0, distractor=0.0)
            for t, shown in enumerate(boxes):
                for part, (x1, y1, x2, y2) in shown.items():
                    share[part.split()[0]] += float(
                        map[0, t, int(y1) : int(y2), int(x1) : int(x2)].sum()
                    )
            rows.append((name, share["evidence"] / (share["evidence"] + share["distractor"])))
    for name in ("edges", "motion"):
        found = np.array([share for kind, share in rows if kind == name])
        assert abs(found.mean() - 0.5) < 2.5 * found.std() / len(found) ** 0.5, name


def test_validation_pairs_are_each_others_reversal_to_the_pixel(tmp_path):
    from ssv2_report.data.media import read_frames

    root = make_world(
        tmp_path / "w", train_per_class=1, val_per_class=1, test_per_class=0, size=64, workers=1
    )
    clips = json.loads((root / "demo.json").read_text())["clips"]
    of = {
        CLASSES[c["target"]]: root / FOLDER / f"{i}.webm"
        for i, c in clips.items()
        if c["split"] == "validation"
    }
    train = {
        CLASSES[c["target"]]: root / FOLDER / f"{i}.webm"
        for i, c in clips.items()
        if c["split"] == "train"
    }
    plain = [[t.replace("[", "").replace("]", "") for t in p[1:3]] for p in PAIRS]
    for a, b in plain:
        assert np.array_equal(read_frames(of[a])[::-1], read_frames(of[b]))
        assert not np.array_equal(read_frames(train[a])[::-1][:9], read_frames(train[b])[:9])
