"""Boxes on copies of another size, shape or frame rate, held against a computation that shares no code with the library."""

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import worlds
from PIL import Image
from test_media import as_somebody_else

from ssv2_report.data.audit import audit
from ssv2_report.data.boxes import box_step, load_boxes
from ssv2_report.data.cache import build_cache
from ssv2_report.data.clips import ClipDataset, load_index
from ssv2_report.demo.world import make_world

N, H, W = 20, 240, 320


def rarely(often, seldom):
    "Cases of one kind, of which some are for `-m slow`."
    return [*often, *(pytest.param(case, marks=pytest.mark.slow) for case in seldom)]


def film(k):
    "An object that crosses the picture and a hand that comes in from below, as frames and boxes."
    frames, boxes = np.empty((N, H, W, 3), np.uint8), []
    frames[:] = worlds.GROUND
    for t in range(N):
        x, y = 10 + 12 * t, 20 + 6 * k
        boxes.append(((x, y, x + 70, y + 60), (x + 10, y + 70, x + 50, H)))
        for (x1, y1, x2, y2), colour in zip(boxes[-1], (worlds.OBJECT, worlds.HAND)):
            frames[t, y1:y2, x1:x2] = colour
    return frames, boxes


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    "Labels and boxes of four clips, without the clips."
    root = tmp_path_factory.mktemp("labels") / "world"
    for folder in ("labels", "boxes"):
        (root / folder).mkdir(parents=True)
    records = [worlds.record(str(k), worlds.CLASSES[k % 4]) for k in range(4)]
    names = {name: str(i) for i, name in enumerate(worlds.CLASSES)}
    worlds.dump(root / "labels/labels.json", names)
    worlds.dump(root / "labels/train.json", records[:2])
    worlds.dump(root / "labels/validation.json", records[2:])
    boxes = {str(k): worlds.annotation(str(k), film(k)[1]) for k in range(4)}
    worlds.dump(root / "boxes/part1.json", boxes)
    return root


@pytest.fixture
def root(labels, tmp_path):
    return shutil.copytree(labels, tmp_path / "world")


def resized(frames, size):
    return np.stack([np.asarray(Image.fromarray(f).resize(size)) for f in frames])


def as_frames(root, change=lambda frames: frames, first=1):
    for k in range(4):
        (to := root / "frames" / str(k)).mkdir(parents=True)
        for t, frame in enumerate(change(film(k)[0]), first):
            Image.fromarray(frame).save(to / f"{t:05}.jpg", quality=95, subsampling=0)


def as_videos(root, fps, change=lambda frames: frames, codec="mpeg4", ext="mp4"):
    (root / "videos").mkdir()
    for k in range(4):
        options = {"qscale:v": "2"} if codec == "mpeg4" else None
        path = root / f"videos/{k}.{ext}"
        worlds.write_video(path, change(film(k)[0]), fps=fps, codec=codec, options=options)


def overlaps(root, **kw):
    """Of every mask with the pixels of its colour in the clip itself: intersection over union, and the share of frames with known
    boxes. What is where is seen by colour alone, so that neither the boxes' arithmetic nor their frame numbers are used."""
    index, ious, known = load_index(root), [], []
    data = ClipDataset(index, 8, 96, boxes=load_boxes(root), **kw)
    for i in range(len(index)):
        item = data[i]
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        seen = (item["clip"].permute(1, 2, 3, 0).numpy() * std + mean) * 255
        known += item["known"].tolist()
        for part, colour in (("object", worlds.OBJECT), ("hand", worlds.HAND)):
            other = worlds.HAND if part == "object" else worlds.OBJECT
            off = [np.abs(seen - c).sum(-1) for c in (colour, other, worlds.GROUND)]
            true = (off[0] < off[1]) & (off[0] < off[2])
            for t in np.flatnonzero(item["known"]):
                if true[t].sum() > 60:
                    ious.append((true[t] & item[part][t]).sum() / (true[t] | item[part][t]).sum())
    return (min(ious) if ious else None), np.mean(known)


@pytest.mark.parametrize("height", rarely([256, 240, 112], [480, 128, 288]))
def test_boxes_fit_frames_of_another_height(root, height):
    as_frames(root, lambda frames: resized(frames, (round(W * height / H), height)))
    iou, known = overlaps(root)
    assert iou > 0.85 and known == 1
    found = audit(root, workers=1)
    assert found.ok and "4 of 4 clips that decode have boxes" in found.boxes
    assert (f"240 pixels high, here {height}" in found.boxes) == (height != 240)
    assert height == 240 or str(height) in found._repr_markdown_()


def test_boxes_fit_resized_frames_through_the_cache(root, tmp_path):
    as_frames(root, lambda frames: resized(frames, (341, 256)))
    iou, known = overlaps(root, cache=build_cache(load_index(root), tmp_path / "cache", 112, 1))
    assert iou > 0.85 and known == 1


@pytest.mark.parametrize("size", [112, 256])
def test_a_demo_world_s_boxes_are_of_its_own_pictures(tmp_path, size):
    from ssv2_report.demo.world import Scene, draw_scene

    boxes = {}
    for k in range(12):
        scene = Scene(k % 10, seed=100 + k, size=size)
        frames = [list(b.values()) for b in draw_scene(scene, frames=range(0, scene.n, 3))[1]]
        boxes[str(k)] = [
            dict(
                name=f"{k}/{3 * t + 1:04}.jpg",
                labels=[
                    dict(box2d=dict(zip(("x1", "y1", "x2", "y2"), map(float, b))), category="hand")
                    for b in f
                ],
            )
            for t, f in enumerate(frames)
        ]
    worlds.dump(tmp_path / "b.json", boxes)
    found = load_boxes(tmp_path / "b.json", ids=["3"])
    assert len(found) == 1 and found.drawn_on(size) == size


def test_one_box_that_is_wrong_does_not_change_what_all_were_drawn_on(root):
    boxes = json.loads((root / "boxes/part1.json").read_text())
    boxes["2"][6]["labels"][1]["box2d"]["y2"] = 250
    worlds.dump(root / "boxes/part1.json", boxes)
    as_frames(root, lambda frames: resized(frames, (341, 256)))
    iou, known = overlaps(root)
    assert iou > 0.8 and known == 1
    found = audit(root, workers=1)
    assert found.table[["id", "reason"]].values.tolist() == [["2", "box outside the picture"]]


@pytest.mark.parametrize("size", rarely([(240, 240), (112, 112)], [(180, 256)]))
def test_boxes_of_pictures_that_were_squeezed_are_not_used(root, size):
    as_frames(root, lambda frames: resized(frames, size))
    with pytest.warns(UserWarning, match="cut or squeezed"):
        assert overlaps(root) == (None, 0)
    found = audit(root, workers=1)
    assert found.table["reason"].tolist().count("picture is not the boxes'") == 1
    assert found.ok and "none is used" in found.boxes and "none is used" in found._repr_markdown_()


def test_boxes_of_pictures_that_were_cut_are_not_used(root):
    as_frames(root, lambda frames: frames[:, :, 40:280])
    with pytest.warns(UserWarning, match="cut or squeezed"):
        assert overlaps(root)[1] == 0


def at_rate(fps):
    "The frames of a copy at another rate: what is on screen at each of its moments."
    return lambda frames: frames[(np.arange(round(N * fps / 12)) * 12 / fps + 1e-9).astype(int)]


@pytest.mark.parametrize("fps", rarely([24, 30, 6, 12], [15, 60]))
def test_boxes_fit_a_copy_at_another_rate_by_time(root, fps):
    as_videos(root, fps, at_rate(fps))
    iou, known = overlaps(root)
    assert iou > 0.8 and known == 1
    found = audit(root, workers=1)
    notes = [
        r.detail for r in found.table.itertuples() if r.reason == "frame rate is not the boxes'"
    ]
    assert found.ok and len(notes) == (0 if fps == 12 else 4)
    assert all("matched by time" in n for n in notes)


def test_a_copy_resized_and_at_another_rate(root):
    as_videos(root, 24, lambda frames: resized(at_rate(24)(frames), (426, 320)))
    iou, known = overlaps(root)
    assert iou > 0.8 and known == 1


@pytest.mark.parametrize("fps", rarely([24, 8], [30]))
def test_a_rate_that_a_file_states_and_its_frames_deny_is_not_believed(root, fps):
    as_videos(root, fps)  # the same frames, played at another speed
    iou, known = overlaps(root)
    assert iou > 0.8 and known == 1
    assert audit(root, workers=1).table["detail"].str.contains("matched by number").all()


@pytest.mark.parametrize("fps", rarely([24, 6], [30, 15]))
def test_boxes_of_frames_extracted_at_another_rate_are_not_used(root, fps):
    as_frames(root, at_rate(fps))
    with pytest.warns(UserWarning, match=f"extracted at {fps} a second"):
        assert overlaps(root) == (None, 0)
    found = audit(root, workers=1)
    assert "frame rate is not the boxes'" in set(found.table["reason"]) and found.ok
    assert "none is used" in found.boxes


@pytest.mark.parametrize("first", [0, 1])
def test_boxes_follow_the_numbers_of_frame_files(root, first):
    as_frames(root, first=first)
    assert overlaps(root)[0] > 0.85
    if first:
        for k in range(4):
            (root / f"frames/{k}/00001.jpg").unlink()
        assert overlaps(root)[0] > 0.85


def test_sound_copies_bring_no_warning(root):
    as_videos(root, 12, codec="libvpx-vp9", ext="webm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iou, known = overlaps(root)
    assert iou > 0.85 and known == 1 and audit(root, workers=1).table.empty


def test_boxes_that_end_early_are_matched_by_the_stated_rate(root):
    assert box_step(40, 24, 13) == 0.5 and box_step(20, 12, 9) == 1 == box_step(20, 0, 9)
    assert box_step(20, 24, 19) == 1 and box_step(20, 24, 13) == 1 and box_step(10, 6, 19) == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_box_files_with_a_byte_order_mark_are_read(root, encoding):
    path = root / "boxes/part1.json"
    whole = load_boxes(root)
    path.write_text(path.read_text(), encoding=encoding)
    assert np.array_equal(load_boxes(root).xyxy, whole.xyxy)


def test_the_demo_world_stays_known_frame_by_frame(tmp_path):
    root = make_world(tmp_path / "demo", 1, 1, test_per_class=0, size=64, workers=1)
    data = ClipDataset(index := load_index(root), boxes=load_boxes(root))
    assert not data.misfit and all(data[i]["known"].all() for i in range(len(index)))


def test_what_macos_puts_beside_box_files_is_none(root):
    whole = load_boxes(root)
    (root / "boxes/._part1.json").write_bytes(b"\0\5\x16\7" + bytes(90))
    assert np.array_equal(load_boxes(root).xyxy, whole.xyxy)


def rewritten(root, change):
    "The box file after `change` of each of its boxes."
    boxes = json.loads((root / "boxes/part1.json").read_text())
    for frames in boxes.values():
        for box in (b for f in frames for b in f["labels"]):
            change(box)
    worlds.dump(root / "boxes/part1.json", boxes)


def test_boxes_as_fractions_of_the_picture_are_not_used(root):
    def divide(box):
        box["box2d"] = {k: v / (W if k[0] == "x" else H) for k, v in box["box2d"].items()}

    rewritten(root, divide)
    as_videos(root, 12)
    with pytest.warns(UserWarning, match="boxes are not in pixels.*fractions of the picture"):
        assert overlaps(root) == (None, 0)
    found = audit(root, workers=1)
    assert "boxes are not in pixels" in set(found.table["reason"]) and "none is used" in found.boxes


@pytest.mark.parametrize("word", ["Hand", "HAND", " hand", "hands"])
def test_a_hand_is_a_hand_however_it_is_written(root, word):
    whole = load_boxes(root)

    def rename(box):
        for k in ("category", "standard_category"):
            box[k] = word if box[k] == "hand" else box[k]

    rewritten(root, rename)
    assert np.array_equal(load_boxes(root).kind, whole.kind)


@pytest.mark.parametrize("word, lost", [("main", "a hand"), ("hand", "an object")])
def test_boxes_that_are_all_of_one_kind_are_noted(root, word, lost):
    rewritten(root, lambda box: box.update(standard_category=word))
    as_videos(root, 12)
    found = audit(root, workers=1)
    assert found.table[["reason", "detail"]].values.tolist() == [
        ["boxes of one kind", f"none of them is of {lost}"]
    ]


@pytest.mark.parametrize("where", ["part2.json", "part1.json"])
def test_boxes_of_a_video_that_is_there_twice_are_unknown_unless_they_agree(root, where):
    text = (root / "boxes/part1.json").read_text()
    boxes = json.loads(text)
    other = {"0": json.loads(json.dumps(boxes["0"])), "1": boxes["1"]}
    other["0"][3]["labels"][0]["box2d"]["x1"] += 5
    if where == "part2.json":
        worlds.dump(root / "boxes/part2.json", other)
    else:
        (root / "boxes/part1.json").write_text(text[:-1] + ", " + json.dumps(other)[1:])
    as_videos(root, 12)
    found = load_boxes(root)
    assert len(found.frame[found.rows("0")]) == 0 and len(found.frame[found.rows("1")]) == 2 * N
    assert audit(root, workers=1).table[["id", "reason", "detail"]].values.tolist() == [
        ["0", "unreadable box", "there twice, and not the same"]
    ]


def test_annotations_beside_the_labels_are_found(root):
    whole = load_boxes(root)
    (root / "boxes/part1.json").rename(root / "annotations.json")
    (root / "boxes").rmdir()
    assert np.array_equal(load_boxes(root).xyxy, whole.xyxy)
    (root / "annotations.json").rename(root / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match="put it there as annotations.json or its parts"):
        load_boxes(root)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX rights")
@pytest.mark.parametrize("locked", ["boxes", "boxes/part1.json"])
def test_boxes_one_may_not_read_are_a_finding(labels, locked):
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    shutil.copytree(labels, root, dirs_exist_ok=True)
    (root / locked).chmod(0)
    try:
        with as_somebody_else():
            found = audit(root, workers=1)
        said = found.lost[found.lost["reason"] == "damaged box file"]["detail"].tolist()
        assert len(said) == 1 and "is not readable: give yourself the right" in said[0]
    finally:
        (root / locked).chmod(0o755)
        shutil.rmtree(root)
