"""The audit: whatever is wrong with a dataset is named, nothing crashes, hangs or is read outside of it."""

import ctypes
import json
import os
import shutil
import time
from pathlib import Path

import av
import numpy as np
import pytest
import worlds
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssv2_report.data.audit import NOTES, OFFICIAL, audit, box_problem, load_audit, unseen_classes
from ssv2_report.data.clips import load_index, read_frames
from ssv2_report.data.media import in_processes
from ssv2_report.demo.world import make_world

MEDIA = "20bn-something-something-v2"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.make(tmp_path_factory.mktemp("audit") / "world")


@pytest.fixture
def root(world, tmp_path):
    return shutil.copytree(world, tmp_path / "world")


def findings(root, **kw):
    found = audit(root, **kw)
    return found, {(r.id, r.reason) for r in found.table.itertuples()}


def test_a_sound_dataset_is_said_to_be_sound(root, tmp_path):
    found, names = findings(root)
    assert (
        found.ok
        and not names
        and not found.excluded
        and "No fault was found in 13 clips." in found._repr_markdown_()
    )
    assert found.counts == {
        "train": dict(records=8, usable=8),
        "validation": dict(records=4, usable=4),
        "test": dict(records=1, usable=1),
    }
    found.save(tmp_path / "out/audit.json")
    assert load_audit(tmp_path / "out/audit.json", root).counts == found.counts


def test_every_kind_of_damage_to_a_file_is_named(root, tmp_path):
    media = root / MEDIA
    whole = (media / "1.webm").read_bytes()
    frames = read_frames(media / "1.webm")
    (media / "1.webm").write_bytes(whole[:-700])
    (media / "2.webm").write_bytes(b"")
    (media / "3.webm").unlink()
    (media / "4.webm").write_text("<html>404</html>")
    (media / "5.webm").unlink(), (media / "5.webm").mkdir()
    (media / "6.webm").unlink(), (media / "6.webm").symlink_to("nowhere.webm")
    (
        (media / "7.webm").rename(tmp_path / "out.webm"),
        (media / "7.webm").symlink_to(tmp_path / "out.webm"),
    )
    (media / "8.webm").write_bytes(whole[:60])
    (
        (media / "9.webm").unlink(),
        worlds.write_video(media / "9.webm", frames, codec="mpeg4", format="mp4"),
    )
    (media / "10.webm").unlink(), worlds.write_video(media / "10.webm", frames, fps=30)
    found, names = findings(root)
    assert names >= {
        ("1", "truncated"),
        ("2", "empty file"),
        ("3", "missing"),
        ("4", "not a video"),
        ("5", "not a file"),
        ("6", "broken link"),
        ("7", "link out of the dataset"),
        ("9", "wrong container"),
        ("10", NOTES[5]),
    }
    assert ("8", "does not decode") in names or ("8", "truncated") in names
    assert found.excluded == sorted(["1", "2", "3", "4", "5", "6", "7", "8"]) and not found.ok
    assert found.counts["train"] == dict(records=8, usable=0) and found.counts[
        "validation"
    ] == dict(records=4, usable=4)
    assert set(load_index(root, exclude=found.excluded).clips["id"]) == {"9", "10", "11", "12"}


def test_every_kind_of_damage_to_frames_is_named(root):
    (root / "frames").mkdir()
    for video in (root / MEDIA).glob("*.webm"):
        (to := root / "frames" / video.stem).mkdir()
        for t, frame in enumerate(read_frames(video), 1):
            Image.fromarray(frame).save(to / f"{t:05}.jpg")
    shutil.rmtree(root / MEDIA)
    at = lambda id, t: root / f"frames/{id}/{t:05}.jpg"
    at(1, 4).unlink()
    at(2, 4).write_bytes(b"")
    at(3, 4).write_bytes(at(3, 4).read_bytes()[:300])
    Image.new("RGB", (20, 20)).save(at(4, 4))
    for f in (root / "frames/5").iterdir():
        f.unlink()
    at(6, 4).unlink(), at(6, 4).symlink_to("/etc/hostname")
    at(7, 4).write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    at(8, 20).unlink()
    found, names = findings(root)
    assert names == {
        ("1", "frames missing"),
        ("2", "damaged frame"),
        ("3", "damaged frame"),
        ("4", "frames differ in size"),
        ("5", "no frames"),
        ("6", "link out of the dataset"),
        ("7", "damaged frame"),
        ("8", "box of no frame"),
    }
    assert found.excluded == list("1234567")


def test_frames_extracted_at_another_rate_than_the_boxes_are_noticed(root):
    for video in (root / MEDIA).glob("*.webm"):
        (to := root / "frames" / video.stem).mkdir(parents=True)
        for t, frame in enumerate(np.repeat(read_frames(video), 5, 0)[::2], 1):
            Image.fromarray(frame).save(to / f"{t:05}.jpg")
    shutil.rmtree(root / MEDIA)
    found, names = findings(root)
    assert names == {("", NOTES[5])} and "at 30 a second" in found.table["detail"][0] and found.ok


def test_every_kind_of_damage_to_labels_is_named(root):
    records = json.loads((root / "labels/train.json").read_text())
    records[0]["template"] = "Waving [something]"
    records[1]["id"] = "../../etc/passwd"
    records[2] = "no record"
    records[3]["id"] = "9"
    records[4]["template"] = None
    records[5].update(label="拿着某物", placeholders=["чашка"])
    worlds.dump(root / "labels/train.json", records + records[6:7])
    found, names = findings(root)
    assert names == {
        ("1", "unknown template"),
        ("../../etc/passwd", "unsafe id"),
        ("train.json#2", "no id"),
        ("9", "id in two splits"),
        ("5", "unknown template"),
        ("7", "duplicate id"),
        ("", "boxes without a clip"),
    }
    assert (
        found.counts["train"] == dict(records=9, usable=2)
        and found.counts["validation"]["usable"] == 3
    )
    assert load_index(root, exclude=found.excluded).clips["label"][0] == "拿着某物"
    assert "passwd" in found._repr_markdown_()


@pytest.mark.parametrize(
    "name, text",
    [
        ("labels", "[]"),
        ("labels", "x"),
        ("labels", '{"a": "7"}'),
        ("train", "{}"),
        ("validation", "[1"),
        ("train", None),
        ("test", "3"),
    ],
)
def test_label_files_of_the_wrong_shape_are_named(root, name, text):
    path = root / f"labels/{name}.json"
    path.write_text(text) if text is not None else path.unlink()
    found = audit(root)
    assert not found.ok and found.table["reason"][0] in ("damaged labels", "no label file")


def test_damaged_boxes_are_notes_that_name_their_frame(root):
    boxes = json.loads((root / "boxes/part1.json").read_text())
    box = lambda id, t: boxes[id][t]["labels"][0]["box2d"]
    box("1", 3)["x1"] = float("nan")
    box("2", 3).update(x1=90, x2=20)
    box("3", 3)["x2"] = 400
    boxes["4"].append(dict(name="4/0021.jpg", labels=[]))
    boxes["5"][2] = {"nothing": 1}
    boxes["6"] = "x"
    boxes["7"][0]["name"] = "7/-4.jpg"
    boxes["../../x"] = boxes.pop("8")
    box("9", 1)["x2"] = 129.5
    worlds.dump(root / "boxes/part1.json", boxes)
    found, names = findings(root)
    assert names == {
        ("1", "damaged box"),
        ("2", "damaged box"),
        ("3", "box outside the picture"),
        ("4", "box of no frame"),
        ("5", "unreadable box"),
        ("6", "unreadable box"),
        ("7", "unreadable box"),
        ("", "boxes without a clip"),
    }
    assert found.ok and not found.excluded
    (root / "boxes/part1.json").write_text('{"1": [')
    found, names = findings(root)
    assert ("", "damaged box file") in names and not found.excluded
    with pytest.raises(ValueError, match="breaks off .* mend the box files"):
        found.check(10**6)
    with pytest.raises(FileNotFoundError, match="no boxes"):
        audit(root, boxes=root / "none")


@settings(max_examples=300)
@given(st.integers(-40, 40), st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_a_sound_box_is_inside_and_ordered(t, corners):
    x1, y1, x2, y2 = corners
    sound = 0 <= t < 20 and -2 <= x1 < x2 <= 130 and -2 <= y1 < y2 <= 98
    assert (
        box_problem(np.array([t]), np.array([1]), np.array([corners], "float32"), 20, 96, 128)
        is None
    ) == sound


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
    max_leaves=8,
)
records_ = st.lists(
    json_values
    | st.fixed_dictionaries(
        {"id": st.text(max_size=6) | st.integers(0, 20)},
        optional={"template": json_values, "label": json_values, "placeholders": json_values},
    ),
    max_size=6,
)
frames_ = st.lists(
    json_values
    | st.fixed_dictionaries(
        {
            "name": json_values | st.just("1/0003.jpg"),
            "labels": st.lists(
                json_values
                | st.fixed_dictionaries(
                    {
                        "box2d": json_values
                        | st.fixed_dictionaries(
                            {k: st.floats() | st.integers() for k in ("x1", "y1", "x2", "y2")}
                        ),
                        "category": json_values,
                    }
                ),
                max_size=2,
            ),
        }
    ),
    max_size=3,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    records_, st.dictionaries(st.text(max_size=4) | st.just("1"), frames_ | json_values, max_size=3)
)
def test_json_of_any_shape_is_read_or_named(tmp_path, records, boxes):
    (tmp_path / "labels").mkdir(exist_ok=True)
    worlds.dump(tmp_path / "labels/labels.json", {"Holding something": "0"})
    (tmp_path / "labels/train.json").write_text(json.dumps(records))
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found = audit(tmp_path, boxes=tmp_path / "boxes.json", workers=1)
    good = (
        {id for id in load_index(tmp_path, ("train",), exclude=found.excluded).clips["id"]}
        if found.counts.get("train", {}).get("usable")
        else set()
    )
    assert not good and (not records or len(found.table) > 0)


def test_text_without_utf8_is_read_and_named(root):
    records = json.loads((root / "labels/train.json").read_text())
    (root / "labels/train.json").write_text(
        json.dumps(
            [
                {
                    "id": "\ud800",
                    "template": "\udfff",
                    "label": "\ud800",
                    "placeholders": ["\ud800"],
                },
                *records[1:],
            ]
        )
    )
    found, names = findings(root)
    assert names == {("\\ud800", "unsafe id"), ("", "boxes without a clip")}
    found.save(root / "audit.json")
    assert load_audit(root / "audit.json", root).excluded == ["\\ud800"]


def test_training_is_told_in_a_sentence_what_it_would_miss(root):
    audit(root).check()
    for id in ("1", "2"):
        (root / MEDIA / f"{id}.webm").unlink()
    (root / MEDIA / "9.webm").write_bytes(b"")
    (root / MEDIA / "13.webm").unlink()
    found = audit(root)
    assert (
        found.summary()
        == "The audit excludes 3 of 12 training and validation clips (2 missing, 1 empty file)."
        and "13" in found.excluded
    )
    with pytest.raises(ValueError, match="max_excluded: 3"):
        found.check(2)
    found.check(3)
    (root / "labels/train.json").write_text("{}")
    with pytest.raises(ValueError, match="mend the label files"):
        audit(root).check(10**6)


def test_the_demo_world_is_held_against_its_checksums(tmp_path):
    root = make_world(tmp_path / "demo", 1, 1, test_per_class=0, workers=1)
    assert audit(root).ok

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    flip(clip := sorted((root / MEDIA).iterdir())[3])
    (root / "labels/validation.json").write_text(
        (root / "labels/validation.json").read_text() + "\n"
    )
    (root / "boxes/bounding_box_smthsmth_part1.json").write_text(
        (root / "boxes/bounding_box_smthsmth_part1.json").read_text() + "\n"
    )
    found, names = findings(root)
    assert names == {
        (clip.stem, "checksum differs"),
        ("", "checksum differs"),
        ("", "changed boxes"),
    }


def test_a_stale_or_foreign_audit_is_refused(root, tmp_path):
    audit(root).save(tmp_path / "audit.json")
    os.utime(root / MEDIA / "1.webm", ns=(0, 0))
    assert load_audit(tmp_path / "audit.json", root).ok
    (root / MEDIA / "1.webm").write_bytes((root / MEDIA / "1.webm").read_bytes() + b"\0")
    with pytest.raises(ValueError, match="has changed since"):
        load_audit(tmp_path / "audit.json", root)
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an audit"):
        load_audit(tmp_path / "audit.json")
    with pytest.raises(FileNotFoundError, match="ssv2 audit"):
        load_audit(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="no dataset folder"):
        audit(tmp_path / "none")


def test_the_whole_dataset_is_held_against_its_official_counts(root):
    names = json.loads((root / "labels/labels.json").read_text()) | {
        f"class {i}": str(i) for i in range(4, 174)
    }
    worlds.dump(root / "labels/labels.json", names)
    found = audit(root)
    assert found.official and f"{OFFICIAL['train']:,}" in found._repr_markdown_()


def test_a_worker_that_hangs_or_dies_is_named_and_replaced():
    out = {
        k: fault
        for k, _, fault in in_processes("time:sleep", [(0,), (60,), (0,)], workers=1, limit=0.1)
    }
    assert out == {0: "", 1: "hangs", 2: ""}
    assert sorted(
        (k, fault) for k, _, fault in in_processes("os:_exit", [(3,), (0,)], workers=2)
    ) == [(0, "crashes"), (1, "crashes")]


KILL = """
import os, signal, pathlib
note = pathlib.Path({note!r})
if not note.exists():
    note.touch()
    os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP"])
def test_what_somebody_kills_says_nothing_of_the_clip(tmp_path, name):
    jobs = [(KILL.format(note=str(tmp_path / "note"), name=name),)]
    assert list(in_processes("builtins:exec", jobs, workers=1)) == [(0, None, "")]


def test_what_is_killed_again_and_again_is_named():
    jobs = [("import os; os.kill(os.getpid(), 9)",)]
    assert list(in_processes("builtins:exec", jobs, workers=1)) == [(0, None, "crashes")]


# --- what the numbers are of


def test_one_reason_does_not_hide_another_and_numbers_add_up(root):
    records = json.loads((root / "labels/train.json").read_text())
    records[0]["template"] = "Waving [something]"
    worlds.dump(root / "labels/train.json", [*records, records[0], records[1]])
    validation = json.loads((root / "labels/validation.json").read_text())
    worlds.dump(root / "labels/validation.json", [*validation, records[1]])
    (root / MEDIA / "1.webm").unlink()
    (root / MEDIA / "3.webm").write_bytes(b"")
    found, names = findings(root)
    assert names == {
        ("1", "unknown template"),
        ("1", "duplicate id"),
        ("1", "missing"),
        ("2", "duplicate id"),
        ("2", "id in two splits"),
        ("3", "empty file"),
    }
    lost = {s: c["records"] - c["usable"] for s, c in found.counts.items()}
    assert lost == {"train": 5, "validation": 1, "test": 0}
    said = found.summary()
    assert "excludes 6 of 15" in said and "2 unknown template and duplicate id and missing" in said
    numbers = [int(part.split()[0]) for part in said.split("(")[1].split(", ")]
    assert sum(numbers) == 6
    found.check(6)
    with pytest.raises(ValueError, match="max_excluded: 6"):
        found.check(5)


def test_the_ids_of_a_finding_are_on_the_screen(root):
    for id in range(2, 11):
        (root / MEDIA / f"{id}.webm").unlink()
    page = audit(root)._repr_markdown_()
    assert "| missing | 9 | 2, 3, 4, 5, 6, 7, ... |" in page


def test_clips_outside_a_study_s_classes_are_not_its_losses(root, tmp_path):
    for id in ("4", "8", "12"):  # all of 'Moving something up'
        (root / MEDIA / f"{id}.webm").unlink()
    (root / MEDIA / "1.webm").unlink()
    audit(root).save(tmp_path / "audit.json")
    found = load_audit(tmp_path / "audit.json", root)
    found.of(["Moving something up"]).check(3)
    found.of(worlds.CLASSES[1:3]).check(0)
    assert found.of(worlds.CLASSES[1:3]).counts["train"] == dict(records=4, usable=4)
    for classes, n in ((None, 4), (worlds.CLASSES[:2], 1), (["Moving [something] up"], 3)):
        with pytest.raises(ValueError, match=f"max_excluded: {n}`"):
            found.of(classes).check(n - 1)
    with pytest.raises(ValueError, match="did you mean"):
        found.of(["Moving something upp"])


def test_a_study_of_some_classes_trains_although_others_are_incomplete(root, tmp_path):
    from types import SimpleNamespace

    from ssv2_report.study.runs import clips_of

    (root / MEDIA / "4.webm").unlink()
    audit(root).save(tmp_path / "audit.json")
    data = SimpleNamespace(root=root, classes=None, per_class=None, max_excluded=0)
    data.splits = ["train", "validation"]
    with pytest.raises(ValueError, match="max_excluded: 1"):
        clips_of(SimpleNamespace(data=data), "train", tmp_path)
    data.classes = worlds.CLASSES[:3]
    assert len(clips_of(SimpleNamespace(data=data), "train", tmp_path)) == 6


def test_validation_classes_without_a_training_clip_are_said(root):
    assert audit(root).unseen == ([], 1.0) and "accuracy can" not in audit(root)._repr_markdown_()
    path = root / "labels/train.json"
    kept = [r for r in json.loads(path.read_text()) if not r["template"].startswith("Holding")]
    worlds.dump(path, kept)
    for id in ("2", "6"):  # all training clips of a second class, by their files
        (root / MEDIA / f"{id}.webm").write_bytes(b"")
    found = audit(root)
    assert found.unseen == (sorted(worlds.CLASSES[:2]), 0.5)
    assert (
        "2 classes of validation clips have no training clip (Holding something, Pushing something "
        "from left to right): accuracy can reach 50.0% at most." in found._repr_markdown_()
    )
    assert found.of(worlds.CLASSES[1:]).unseen == (worlds.CLASSES[1:2], pytest.approx(2 / 3))
    assert found.of(worlds.CLASSES[2:]).unseen == ([], 1.0)


def test_the_best_accuracy_counts_clips_not_classes():
    assert unseen_classes("aab", "aaabcc") == (["c"], pytest.approx(4 / 6))
    assert unseen_classes("", "ab") == (["a", "b"], 0.0) and unseen_classes("a", "") == ([], 1.0)


def test_the_audit_says_how_many_clips_have_boxes(root, tmp_path):
    boxes = json.loads((root / "boxes/part1.json").read_text())
    worlds.dump(tmp_path / "own.json", {id: boxes[id] for id in ("1", "2", "9")})
    assert audit(root).boxes == "13 of 13 clips that decode have boxes."
    found = audit(root, boxes=tmp_path / "own.json")
    assert found.boxes == "3 of 13 clips that decode have boxes."
    assert found.boxes in found._repr_markdown_()
    shutil.rmtree(root / "boxes")
    assert audit(root).boxes == "There are no boxes."


def test_text_of_a_label_is_text_in_the_audit_s_table(root):
    records = json.loads((root / "labels/train.json").read_text())
    records[0]["template"] = "Unfolding [a $20 bill] *or* a_b_c $x$"
    worlds.dump(root / "labels/train.json", records)
    page = audit(root)._repr_markdown_()
    assert "`'Unfolding [a $20 bill] *or* a_b_c $x$' is not in labels.json`" in page


# --- where things lie


def test_layouts_of_other_projects_are_read(root):
    (root / "labels").rename(root / "annotations")
    (root / MEDIA).rename(root / "videos")
    for f in list((root / "annotations").iterdir()):
        f.rename(f.with_name(f"something-something-v2-{f.name}"))
    assert audit(root).ok and len(load_index(root)) == 12


def test_folders_train_and_val_are_read(root):
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        (root / folder).mkdir()
        for r in json.loads((root / f"labels/{split}.json").read_text()):
            (root / MEDIA / f"{r['id']}.webm").rename(root / folder / f"{r['id']}.webm")
    (root / "labels/validation.json").rename(root / "labels/val.json")
    assert audit(root).ok and len(load_index(root)) == 12


@pytest.mark.parametrize("deeper", [f"{MEDIA}/{MEDIA}", "download/videos", "a/b/c"])
def test_clips_in_a_folder_too_many_are_found_and_said(root, deeper):
    (root / MEDIA).rename(root / "aside")
    (root / deeper).parent.mkdir(parents=True)
    (root / "aside").rename(root / deeper)
    with pytest.raises(ValueError, match="no clips .they lie in") as e:
        audit(root).check(10**6)
    assert deeper in str(e.value) and len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["20bn-something-something-v2-00", "20bn-something-something-v2.tar.gz", "part1.zip"]
)
def test_archives_not_yet_extracted_are_said(root, name):
    shutil.rmtree(root / MEDIA)
    (root / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{name} is not extracted"):
        audit(root).check(10**6)


def test_a_part_not_yet_extracted_is_said_beside_what_is_missing(root):
    (root / MEDIA / "20bn-something-something-v2-01").write_bytes(b"x")
    assert not findings(root)[1]
    (root / MEDIA / "1.webm").unlink()
    assert findings(root)[1] == {("1", "missing"), ("", "clips not extracted")}


@pytest.mark.parametrize(
    "name",
    [
        "train_videofolder.txt",
        "sthv2_train_list_rawframes.txt",
        "annotations/val_videofolder.txt",
        "category.txt",
    ],
)
def test_list_files_are_answered_with_the_json_they_lack(root, name):
    shutil.rmtree(root / "labels")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("1 20 0\n")
    with pytest.raises(
        FileNotFoundError, match="put labels.json from the dataset's labels package"
    ) as e:
        audit(root)
    assert name in str(e.value) and len(str(e.value).splitlines()) == 1


def test_a_dataset_one_folder_deeper_is_named(root):
    with pytest.raises(FileNotFoundError, match=f"give {root} as the dataset's folder"):
        audit(root.parent)


class Listed(list):
    "What `os.scandir` gives, in an order of our own."

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize("step", [1, -1])
def test_a_clip_that_is_there_twice_is_named_and_refused_where_it_may_differ(
    root, monkeypatch, step
):
    media, frames = root / MEDIA, read_frames(root / MEDIA / "1.webm")
    worlds.write_video(media / "1.mp4", frames[::-1], codec="mpeg4")
    shutil.copy(media / "2.webm", media / "2.mkv")
    (root / "videos").mkdir()
    shutil.copy(media / "3.webm", root / "videos/3.webm")
    worlds.write_video(root / "videos/4.webm", frames[::-1])
    (to := root / "frames/5").mkdir(parents=True)
    for t, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(to / f"{t:05}.jpg")
    scan = os.scandir
    monkeypatch.setattr(
        "os.scandir", lambda p: Listed(sorted(scan(p), key=lambda e: e.name)[::step])
    )
    found, names = findings(root)
    assert names == {
        ("1", "several files"),
        ("2", "copies of a clip"),
        ("3", "copies of a clip"),
        ("4", "several files"),
        ("5", "several files"),
    }
    assert found.excluded == ["1", "4", "5"] and not found.ok
    detail = found.table.set_index("id")["detail"]
    assert detail["1"] == f"{MEDIA}/1.webm and {MEDIA}/1.mp4 may differ: keep one of them"
    paths = dict(zip(*(load_index(root).clips[c] for c in ("id", "path"))))
    assert [os.path.relpath(paths[id], root) for id in "1245"] == [
        f"{MEDIA}/{id}.webm" for id in "1245"
    ]


def test_a_link_to_the_folder_of_clips_is_no_second_one(root):
    (root / "videos").symlink_to(root / MEDIA)
    assert not findings(root)[1]


# --- damaged files, by hand and by hypothesis


class Watch:
    "Counts the files of folders that any process opens (inotify; Linux)."

    def __init__(self, *folders):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK)
        for folder in folders:
            assert (
                libc.inotify_add_watch(self.fd, str(folder).encode(), 0x20 | 0x1) > 0
            )  # opened, read

    def events(self):
        try:
            return len(os.read(self.fd, 1 << 16))
        except BlockingIOError:
            return 0


def by_hand(root, outside, whole):
    "Writes files of every kind of damage below `root`; what the audit may say of each, by id."
    media, says = root / MEDIA, {}

    def add(reasons, change, ext=".webm"):
        says[id := str(1000 + len(says))] = reasons
        path = media / f"{id}{ext}"
        change(path) if callable(change) else path.write_bytes(change)

    for k in range(1, 10):
        add({"truncated", "does not decode"}, whole[: len(whole) * k // 10])
    for n in (1, 3, 4, 12, 60, 200, len(whole) - 1):
        add({"truncated", "does not decode", "not a video"}, whole[:n])
    add({"empty file"}, b"")
    for text in (
        "<html>404</html>",
        "текст",
        '{"id": 1}',
        f"ffconcat version 1.0\nfile {outside}/secret.webm\n",
        f"#EXTM3U\n#EXTINF:1,\n{outside}/secret.webm\n",
        f"file:{outside}/secret.webm",
    ):
        add({"not a video"}, text.encode())
    add({"not a file"}, lambda p: p.mkdir())
    add({"not a file"}, lambda p: (p.mkdir(), (p / "00001.jpg").symlink_to(outside / "secret.jpg")))
    add({"not a file"}, os.mkfifo)
    add({"broken link"}, lambda p: p.symlink_to("nowhere.webm"))
    add({"broken link"}, lambda p: p.symlink_to(p.name))
    for target in (outside / "secret.webm", Path("../..") / outside.name / "secret.webm", outside):
        add({"link out of the dataset"}, lambda p: p.symlink_to(target))
    for codec, format in (("mpeg4", "mp4"), ("mpeg4", "avi"), ("flv1", "flv")):
        add(
            {"wrong container"},
            lambda p: worlds.write_video(p, worlds.scene(8)[0], codec=codec, format=format, fps=25),
        )
    add({"does not decode", "not a video"}, lambda p: Image.new("RGB", (9, 9)).save(p, "PNG"))
    add({"does not decode"}, lambda p: wave(p))
    add({"does not decode"}, whole[:4] + bytes(5000))
    return says


def wave(path):  # A webm with sound and no picture
    with av.open(str(path), "w", format="webm") as file:
        stream = file.add_stream("libopus", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960 * 2), "int16"), layout="stereo")
        frame.sample_rate = 48000
        file.mux(stream.encode(frame)), file.mux(stream.encode())


def test_every_kind_of_damaged_file_is_named_and_nothing_outside_is_opened(root, tmp_path):
    whole, outside = (root / MEDIA / "1.webm").read_bytes(), tmp_path / "outside"
    outside.mkdir()
    (
        (outside / "secret.webm").write_bytes(whole),
        Image.new("RGB", (9, 9)).save(outside / "secret.jpg"),
    )
    says = by_hand(root, outside, whole)
    odd = [
        "../../outside/secret",
        "../outside/secret.webm",
        "/etc/passwd",
        "..",
        "",
        "a/b",
        "拿着",
        "a\0b",
        "x" * 300,
        "1 ",
        "-" * 33,
        "чашка.webm",
    ]
    worlds.dump(
        root / "labels/train.json",
        [worlds.record(id, worlds.CLASSES[0]) for id in ["1", *says, *odd]],
    )
    watch = Watch(outside)
    start = time.monotonic()
    found = audit(root)
    reasons = dict(zip(found.table["id"], found.table["reason"]))
    assert not (wrong := {id: reasons.get(id) for id in says if reasons.get(id) not in says[id]}), (
        wrong
    )
    assert (
        all(reasons[id] == "unsafe id" for id in odd if id)
        and f"train.json#{1 + len(says) + odd.index('')}" in reasons
    )
    assert (
        time.monotonic() - start < 60 and not found.table["reason"].str.startswith("decoder").any()
    )
    index = load_index(root, ("train",), exclude=found.excluded)
    for path in index.clips["path"]:
        assert len(read_frames(path)) > 0
    assert watch.events() == 0
    (outside / "secret.jpg").read_bytes()
    assert watch.events() > 0


at = st.floats(0, 1, exclude_max=True)
damage_ = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), at),
        st.tuples(st.just("flip"), at, st.integers(1, 255)),
        st.tuples(st.just("write"), at, st.binary(min_size=1, max_size=300)),
        st.tuples(st.just("drop"), at, st.integers(1, 200)),
        st.tuples(st.just("insert"), at, st.binary(min_size=1, max_size=50)),
        st.tuples(st.just("start"), st.binary(max_size=64)),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data, steps):
    data = bytearray(data)
    for kind, *how in steps:
        k = int(how[0] * len(data)) if kind != "start" else 0
        if kind == "cut":
            del data[k:]
        if kind == "flip" and data:
            data[k] ^= how[1]
        if kind == "write":
            data[k : k + len(how[1])] = how[1]
        if kind == "drop":
            del data[k : k + how[1]]
        if kind == "insert":
            data[k:k] = how[1]
        if kind == "start":
            data[: len(how[0])] = how[0]
    return bytes(data)


@pytest.mark.parametrize("batches", [2, pytest.param(24, marks=pytest.mark.slow)])
def test_files_damaged_by_hypothesis_are_named_or_decode(world, tmp_path, batches):
    "In batches of 25. By decoding alone, what is not named has frames that can all be read."
    root, tally = shutil.copytree(world, tmp_path / "world"), dict(files=0, named=0, slowest=0.0)
    whole, ids = (root / MEDIA / "1.webm").read_bytes(), [str(1000 + k) for k in range(25)]
    worlds.dump(
        root / "labels/train.json", [worlds.record(id, worlds.CLASSES[0]) for id in ["1", *ids]]
    )

    @settings(
        max_examples=batches,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            damage_.filter(lambda steps: damaged(whole, steps) != whole), min_size=25, max_size=25
        )
    )
    def campaign(batch):
        for id, steps in zip(ids, batch):
            (root / MEDIA / f"{id}.webm").write_bytes(damaged(whole, steps))
        start = time.monotonic()
        found = audit(root)
        named, start = set(found.table["id"]) & {*ids}, time.monotonic() - start
        assert (
            "1" not in found.excluded
            and (found.table["detail"] != "").all()
            and not found.table["reason"].str.startswith("decoder hangs").any()
        )
        for id in {*ids} - {*found.excluded}:
            assert len(read_frames(root / MEDIA / f"{id}.webm")) > 0
        tally.update(
            files=tally["files"] + 25,
            named=tally["named"] + len(named),
            slowest=max(start, tally["slowest"]),
        )

    campaign()
    print(tally)
    assert tally["files"] >= 25 * min(batches, 20)


@pytest.mark.slow
def test_six_hundred_damaged_files_are_named_or_decode(tmp_path):
    "Cuts at every tenth and at random, flipped bytes, overwritten blocks, other files: none crashes, hangs, or reads what it should not."
    root = worlds.make(tmp_path / "world", train=1, validation=1, test=0)
    whole, rng, media = (
        (root / MEDIA / "1.webm").read_bytes(),
        np.random.default_rng(0),
        root / MEDIA,
    )

    def flip(k):
        data = bytearray(whole)
        [
            data.__setitem__(i, data[i] ^ int(rng.integers(1, 256)))
            for i in rng.integers(0, len(whole), k)
        ]
        return bytes(data)

    def block():
        at, n = rng.integers(0, len(whole) - 300), rng.integers(50, 300)
        return whole[:at] + rng.bytes(n) + whole[at + n :]

    damaged = (
        [whole[: len(whole) * k // 10] for k in range(10)]
        + [whole[:n] for n in rng.integers(1, len(whole) - 1, 150)]
        + [flip(k) for k in (1, 2, 5, 20, 100) for _ in range(50)]
    )
    damaged += (
        [block() for _ in range(150)]
        + [whole[:k] + whole[k + 40 :] for k in rng.integers(0, len(whole) - 50, 40)]
        + [rng.bytes(4000) for _ in range(20)]
        + [whole[:12] + rng.bytes(4000)] * 5
    )
    damaged += [
        f"ffconcat version 1.0\nfile {media}/1.webm\n".encode(),
        f"#EXTM3U\n{media}/1.webm\n".encode(),
        "текст".encode(),
        whole + whole,
    ]
    ids = [str(1000 + i) for i in range(len(damaged))]
    for id, data in zip(ids, damaged):
        (media / f"{id}.webm").write_bytes(data)
    worlds.dump(
        root / "labels/train.json", [worlds.record(id, worlds.CLASSES[0]) for id in ["1", *ids]]
    )
    assert len(damaged) >= 600
    start = time.monotonic()
    found = audit(root)
    named = set(found.table["id"]) & set(ids)
    print(
        f"{len(damaged)} damaged, {len(named)} named by decoding alone, {time.monotonic() - start:.0f} s",
        found.table["reason"].value_counts().to_dict(),
    )
    assert set(ids[:160]) <= named and "1" not in set(found.table["id"])
    clean = set(ids) - set(found.excluded)
    for id in clean:
        assert (
            len(read_frames(media / f"{id}.webm")) >= 19
        )  # one frame less than the header's seconds is within its rounding
