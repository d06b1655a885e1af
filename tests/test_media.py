"""Asked is shown, sound files are read and cut ones named, whatever the kind of file."""

import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import types
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import worlds
from PIL import Image

from ssv2_report.data import media
from ssv2_report.data.boxes import load_boxes
from ssv2_report.data.cache import build_cache
from ssv2_report.data.clips import ClipDataset, denormalise, load_index
from ssv2_report.data.media import (
    frame_files,
    frame_numbers,
    in_processes,
    list_media,
    n_frames,
    probe,
    read_frames,
)

CODECS = dict(
    vp8=("libvpx", {"b:v": "600k", "deadline": "realtime", "cpu-used": "8"}),
    vp9=("libvpx-vp9", {"crf": "30", "b:v": "0", "deadline": "realtime", "cpu-used": "8"}),
    altref=("libvpx-vp9", {"crf": "30", "b:v": "0", "auto-alt-ref": "1", "cpu-used": "6"}),
    av1=("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
    x264=("libx264", {"preset": "veryfast", "threads": "1"}),
    opengop=("libx264", {"x264-params": "open-gop=1:bframes=3:b-adapt=0", "threads": "1"}),
    x265=("libx265", {"preset": "ultrafast", "x265-params": "bframes=4:log-level=none:pools=1"}),
    mpeg4=("mpeg4", {}),
    mpeg4b=("mpeg4", {"bf": "2"}),
    mpeg1=("mpeg1video", {"bf": "2"}),
    mpeg2=("mpeg2video", {"bf": "2"}),
    wmv2=("wmv2", {}),
    flv1=("flv1", {}),
    mjpeg=("mjpeg", {}),
)
HOMES = dict(
    webm=("vp8", "vp9", "altref", "av1"),
    mkv=("x264", "opengop", "x265", "vp9", "mpeg4b", "av1"),
    mp4=("x264", "opengop", "x265", "mpeg4", "mpeg4b", "av1"),
    mov=("x264", "x265", "mjpeg"),
    m4v=("x264", "mpeg4b"),
    avi=("mpeg4", "mpeg4b", "mjpeg", "x264"),
    mpg=("mpeg1", "mpeg2"),
    flv=("flv1", "x264"),
    wmv=("wmv2",),
    ogv=("vp8",),
)
FORMATS = {"3gp": "3gp", "ogv": "ogg", "m4v": "mp4"}


def pictures(n, h, w):
    "Frames that tell their number: a bar that moves and a ground that brightens."
    frames = np.empty((n, h, w, 3), np.uint8)
    for t in range(n):
        frames[t] = 40 + 150 * t // max(n - 1, 1)
        at = (7 * t) % max(w - 8, 1)
        frames[t, h // 4 : h // 2, at : at + 8] = 250, 30, 60
    return frames


def write(
    path,
    codec="vp9",
    n=20,
    h=96,
    w=128,
    fps=12,
    gop=12,
    times=None,  # Of each frame, in milliseconds
    sound=0.0,  # Seconds
    second=0,  # Frames of a second video stream
    **options,  # Of the container
):
    "A video file; the second stream shows something else, in another size."
    name, settings = CODECS[codec]
    ext = str(path).rsplit(".", 1)[-1]
    form = FORMATS.get(ext)
    with av.open(str(path), "w", format=form, options=options) as file:
        streams = []
        for count in (n, second) if second else (n,):
            stream = file.add_stream(name, rate=Fraction(fps).limit_denominator(1001))
            big = 2 if streams else 1
            stream.width, stream.height = w * big, h * big
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = gop
            stream.options = settings
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            streams.append((stream, pictures(count, h * big, w * big)[:: -1 if big == 2 else 1]))
        if sound:
            audio = file.add_stream("libopus" if ext in ("webm", "ogv") else "aac", rate=48000)
        for stream, frames in streams:
            for t, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[t], Fraction(1, 1000)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        for k in range(round(sound * 50)) if sound else ():
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 960), "float32"), "fltp", "stereo")
            silence.sample_rate, silence.pts = 48000, 960 * k
            file.mux(audio.encode(silence))
        if sound:
            file.mux(audio.encode())
    if codec == "av1":  # the encoder gives root's process real-time priority
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return str(path)


def in_order(path):
    with av.open(path) as file:
        return np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])


def agrees(path, want, seed=0):
    "Is every way to read this file of one mind with the frames wanted?"
    rng, n = np.random.default_rng(seed), len(want)
    found = probe(path)
    assert (found["reason"], found["frames"]) == ("", n), (path, found)
    assert (found["h"], found["w"]) == want.shape[1:3]
    assert n_frames(path) == n
    assert np.array_equal(read_frames(path), want)
    for taken in (rng.integers(0, n, 5), np.sort(rng.integers(0, n, 4)), [n - 1], [-1, 0]):
        assert np.array_equal(read_frames(path, taken), want[taken])
        assert np.array_equal(read_frames(path, lambda n: taken), want[taken])


def matrix():
    "Some hundred kinds of file, the other choices drawn for each."
    rng = np.random.default_rng(17)
    kinds = [(ext, codec) for ext, codecs in HOMES.items() for codec in codecs]
    for k, (ext, codec) in zip(range(4 * len(kinds)), itertools.cycle(kinds)):
        fps = rng.choice(["25", "30", "24000/1001"] if ext == "mpg" else ["12", "25", "30000/1001"])
        size = [(96, 128), (64, 48), (240, 426), (144, 96), (72, 144), (66, 32)][rng.integers(6)]
        n, gop = [(9, 1), (30, 12), (47, 12), (70, 30), (2, 12), (40, 250)][(k + k // 30) % 6]
        if codec in ("av1", "x265"):  # these encoders die of smaller ones
            size = (96, 128)
        rare = [pytest.mark.slow] * (k >= len(kinds) or k % 3 > 0)
        yield pytest.param(
            ext, codec, n, *size, str(fps), gop, marks=rare, id=f"{k}-{ext}-{codec}-{n}-{gop}"
        )


@pytest.mark.parametrize("ext, codec, n, h, w, fps, gop", list(matrix()))
def test_asked_is_shown(tmp_path, ext, codec, n, h, w, fps, gop):
    path = write(tmp_path / f"1.{ext}", codec, n, h, w, Fraction(fps), gop)
    want = in_order(path)
    assert abs(len(want) - n) <= (ext in ("mpg", "wmv"))
    agrees(path, want)


# --- two decoders that give the same frames


def reading(monkeypatch, by):
    "Let only decord, or only PyAV, read frames."
    if by == "decord":
        pytest.importorskip("decord")
        monkeypatch.delattr(media, "_by_pyav")
    else:
        monkeypatch.setattr(media, "_decord", lambda: None)


def both_read():
    "Kinds of file that both decoders read, by default each in one of three sizes."
    sizes = (240, 427), (112, 112), (66, 64)  # which widths below decord reads is the processor's
    kinds = list(itertools.product(("webm", "mkv"), ("vp8", "vp9", "altref"), (12, 250)))
    for k, (ext, codec, gop) in enumerate(kinds):
        for size in sizes:
            rare = [pytest.mark.slow] * (size != sizes[(k + k // 6) % 3])
            yield pytest.param(ext, codec, *size, gop, marks=rare)


@pytest.mark.parametrize("ext, codec, h, w, gop", list(both_read()))
def test_decord_and_pyav_give_the_same_frames(tmp_path, monkeypatch, ext, codec, h, w, gop):
    path = write(tmp_path / f"1.{ext}", codec, 30, h, w, gop=gop)
    want = in_order(path)
    for by in ("decord", "pyav"):
        with monkeypatch.context() as m:
            reading(m, by)
            agrees(path, want)


@pytest.mark.parametrize("space", [(), (1, 1), (5, 2), (9, 2)])  # BT.709, 601, 2020; limited, full
@pytest.mark.parametrize("turn", [0, 90, 180])
@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_decord_gives_pyav_s_colours_and_turns(tmp_path, monkeypatch, codec, turn, space):
    path = str(tmp_path / "1.webm")
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.set_display_rotation(turn)
        for picture in grainy(9, 64, 128):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            for where in (frame, stream.codec_context) if space else ():
                where.colorspace, where.color_range = space
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    reading(monkeypatch, "pyav")
    want = read_frames(path)
    monkeypatch.undo()
    reading(monkeypatch, "decord")
    agrees(path, want)


BY_PYAV = dict(
    odd_height=dict(h=97),
    narrow=dict(w=48),
    live=dict(live="1"),
    two_streams=dict(second=31),
    mp4=dict(ext="mp4", codec="x264"),
    av1=dict(codec="av1"),
)


@pytest.mark.parametrize("kind", BY_PYAV)
def test_what_decord_does_not_read_exactly_is_read_by_pyav(tmp_path, monkeypatch, kind):
    pytest.importorskip("decord")
    how = dict(BY_PYAV[kind])
    path = write(tmp_path / f"1.{how.pop('ext', 'webm')}", **how)
    asked, by_pyav = [], media._by_pyav
    monkeypatch.setattr(media, "_by_pyav", lambda *a: asked.append(a) or by_pyav(*a))
    agrees(path, in_order(path))
    assert asked


def test_decord_is_loaded_without_cuda_and_leaves_the_environment_as_it_was():
    pytest.importorskip("decord")
    call = """
import os, sys
path, module = os.environ["PATH"], sys.modules.setdefault("nvidia", object())
from ssv2_report.data.media import _decord
assert _decord().VideoReader and os.environ["PATH"] == path and sys.modules["nvidia"] is module
maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
assert "libdecord" in maps or not maps
assert "libcublas" not in maps
"""
    subprocess.run([sys.executable, "-c", call], check=True)


def test_frames_out_of_order_are_read_by_pyav(tmp_path, monkeypatch):
    "decord would sort them by their times, PyAV shows them as they come."
    path = write(tmp_path / "1.webm", gop=1)
    whole = Path(path).read_bytes()
    blocks = [m.end() for m in re.finditer(rb"\xa3([\x80-\xfe]|[\x40-\x7f].)\x81", whole, re.S)]
    a, b = blocks[3], blocks[8]
    swapped = bytearray(whole)
    swapped[a : a + 2], swapped[b : b + 2] = whole[b : b + 2], whole[a : a + 2]
    Path(path).write_bytes(swapped)
    assert np.array_equal(read_frames(path), want := in_order(path))
    assert np.array_equal(read_frames(path, [3, 8]), want[[3, 8]])


@pytest.mark.parametrize("by", ["decord", "pyav"])
def test_a_hole_is_refused_whoever_reads_and_wherever_it_is(tmp_path, monkeypatch, by):
    monkeypatch.setattr("test_media.pictures", grainy)
    path = write(tmp_path / "1.webm", n=50)
    reading(monkeypatch, by)
    whole = Path(path).read_bytes()
    at = len(whole) * 3 // 4
    Path(path).write_bytes(whole[:at] + bytes(400) + whole[at + 400 :])
    for asked in (None, lambda n: [0], lambda n: [n - 1]):
        with pytest.raises(ValueError, match="zeros for a stretch"):
            read_frames(path, asked)


# --- sound files, and the same files cut

ODD = dict(  # What others called truncated, damaged or hanging
    sound_longer=dict(ext="mp4", codec="x264", sound=4),
    sound_longer_webm=dict(sound=4),
    sound_shorter=dict(ext="mkv", codec="x264", sound=0.5),
    offset=dict(ext="mp4", codec="x264", times=[2000 + 83 * t for t in range(20)]),
    offset_webm=dict(times=[2000 + 83 * t for t in range(20)]),
    variable_rate=dict(times=list(np.cumsum([40, 200, 83, 33] * 5).tolist())),
    variable_rate_mp4=dict(ext="mp4", codec="mpeg4", times=np.cumsum([40, 200] * 10).tolist()),
    pause=dict(times=[83 * t + 3000 * (t > 10) for t in range(20)]),
    live_webm=dict(live="1"),
    live_mkv=dict(ext="mkv", codec="x264", live="1"),
    live_with_sound=dict(live="1", sound=4),
    fragments=dict(ext="mp4", codec="x264", movflags="frag_keyframe+empty_moov"),
    index_first=dict(ext="mp4", codec="x264", movflags="faststart"),
    one_frame=dict(n=1),
    one_frame_mp4=dict(ext="mp4", codec="x264", n=1),
    one_frame_avi=dict(ext="avi", codec="mjpeg", n=1),
    one_frame_live=dict(n=1, live="1"),
    one_frame_with_sound=dict(n=1, sound=2),
    ogv=dict(ext="ogv", codec="vp8"),
    ogv_with_sound=dict(ext="ogv", codec="vp8", sound=3),
    wide_32=dict(w=32),
    wide_48=dict(ext="mp4", codec="mpeg4", w=48),
    wide_96=dict(w=96),
    wide_144=dict(ext="mp4", codec="x264", w=144),
    two_streams=dict(ext="mkv", codec="x264", second=31),
    two_streams_mp4=dict(ext="mp4", codec="mpeg4b", second=9),
    capitals=dict(ext="AVI", codec="mpeg4", format="avi"),
)


@pytest.mark.parametrize("kind", ODD)
def test_sound_files_are_sound(tmp_path, kind):
    how = dict(ODD[kind])
    path = write(tmp_path / f"1.{how.pop('ext', 'webm')}", **how)
    want = in_order(path)
    assert len(want) == how.get("n", 20)
    agrees(path, want)


CHAINS = ("webm", "mkv", "mp4", "mov", "m4v")  # of elements that begin with their length
CUT = {f"{ext}_{HOMES[ext][-1]}": dict(ext=ext, codec=HOMES[ext][-1]) for ext in CHAINS}
CUT |= {k: v for k, v in ODD.items() if "live" in k or k in ("fragments", "index_first")}


@pytest.mark.parametrize("kind", CUT)
def test_cut_files_are_named(tmp_path, kind):
    how = dict(CUT[kind])
    path = write(tmp_path / f"1.{how.pop('ext', 'webm')}", fps=25, **how)
    assert probe(path)["reason"] == ""
    with open(path, "rb") as f:
        whole = f.read()
    rng = np.random.default_rng(3)
    for n in (len(whole) - 1, *rng.integers(1, len(whole), 12)):
        with open(path, "wb") as f:
            f.write(whole[:n])
        found = probe(path)
        assert found["reason"] in ("truncated", "does not decode", "not a video"), n


def test_damage_that_matroska_s_reader_passes_over_is_named(tmp_path):
    path = write(tmp_path / "1.webm", gop=5)
    with open(path, "rb") as f:
        whole = f.read()
    cluster = whole.rfind(b"\x1f\x43\xb6\x75")
    cuts = dict(
        cluster_unknown=whole[:cluster] + b"\x1f\x43\xb6\x76" + whole[cluster + 4 :],
        cluster_gone=whole[:cluster] + bytes(8) + whole[cluster + 8 :],
    )
    for name, data in cuts.items():
        with open(path, "wb") as f:
            f.write(data)
        assert probe(path)["reason"], name


def grainy(n, h, w, drawn=pictures):
    "Frames that do not compress to next to nothing."
    noise = np.random.default_rng(0).integers(0, 40, (n, h, w, 3))
    return (drawn(n, h, w) * 0.8 + noise).astype(np.uint8)


def holes(path, sizes, places):
    "Of a file with so many zeros at so many places: how many are refused, right all the same, and wrong."
    want, data, counts = read_frames(path), Path(path).read_bytes(), {}
    for size in sizes:
        counts[size] = [0, 0, 0]
        for at in np.linspace(0, len(data) - size, places).astype(int):
            Path(path).write_bytes(data[:at] + bytes(size) + data[at + size :])
            refused = bool(probe(path)["reason"])
            verdict = 0 if refused else 2 - np.array_equal(read_frames(path), want)
            counts[size][verdict] += 1
    return counts


def finer(monkeypatch, codec, quality):
    "Let a codec be written in this quality, 4 to 50, or where it has none with many bits."
    name, options = CODECS[codec]
    crf = {} if name == "mpeg4" else {"crf": quality}
    many = {"b": "6M"} if name in ("mpeg4", "libvpx") else {}
    monkeypatch.setitem(CODECS, codec, (name, options | crf | many))


HOLED = dict(
    webm=("vp8", "vp9"),
    mkv=("x264", "x265", "av1", "mpeg4b"),
    mp4=("x264", "x265", "av1", "mpeg4"),
)
HOLED = [(ext, codec) for ext, codecs in HOLED.items() for codec in codecs]


@pytest.mark.parametrize("gop", [12, 250])
@pytest.mark.parametrize("ext, codec", HOLED[:2])
def test_a_hole_of_zeros_is_not_sound(tmp_path, monkeypatch, ext, codec, gop):
    monkeypatch.setattr("test_media.pictures", grainy)
    path = write(tmp_path / f"1.{ext}", codec, n=50, fps=25, gop=gop)
    counts = holes(path, (256, 4096, 16384), 24)
    assert not sum(wrong for _, _, wrong in counts.values()), counts


@pytest.mark.slow
@pytest.mark.parametrize("gop", [12, 250])
@pytest.mark.parametrize("ext, codec", HOLED)
def test_no_hole_of_any_size_in_any_codec_is_sound(tmp_path, monkeypatch, ext, codec, gop):
    monkeypatch.setattr("test_media.pictures", grainy)
    finer(monkeypatch, codec, "10")
    path = write(tmp_path / f"1.{ext}", codec, 50, 144, 192, fps=25, gop=gop)
    assert os.path.getsize(path) > 130_000
    counts = holes(path, (256, 4096, 16384, 65536), 24)
    print(
        f"holes: {codec} in {ext}, a keyframe every {gop}, {os.path.getsize(path):,} bytes:", counts
    )
    assert not sum(wrong for _, _, wrong in counts.values()), counts


def still(n, h, w):
    return np.repeat(grainy(1, h, w), n, 0)


def smooth(n, h, w):
    ramp = np.linspace(0, 255, w)[None, None, :, None] * np.linspace(0.5, 1, n)[:, None, None, None]
    return np.broadcast_to(ramp, (n, h, w, 3)).astype(np.uint8)


def good_files(count=100):
    "Of every codec above: what is filmed, how coarsely and in what size is drawn."
    rng = np.random.default_rng(5)
    for k, (ext, codec) in zip(range(count), itertools.cycle(HOLED)):
        drawn = (grainy, pictures, still, smooth, plain(rng.integers(0, 256, 3)))[rng.integers(5)]
        size = [(96, 128), (240, 426), (144, 192)][rng.integers(3)]
        quality = ("4", "20", "35", "50")[rng.integers(4)]
        yield (
            ext,
            codec,
            drawn,
            (int(rng.choice([3, 30])), *size),
            int(rng.choice([1, 12, 250])),
            quality,
        )


@pytest.mark.slow
def test_a_hundred_good_files_are_sound(tmp_path, monkeypatch):
    for k, (ext, codec, drawn, shape, gop, quality) in enumerate(good_files()):
        finer(monkeypatch, codec, quality)
        monkeypatch.setattr("test_media.pictures", drawn)
        path = write(tmp_path / f"{k}.{ext}", codec, *shape, fps=25, gop=gop)
        found = probe(path)
        assert (found["reason"], found["frames"]) == ("", shape[0]), (k, codec, found)
        assert np.array_equal(read_frames(path), in_order(path))


def test_a_block_whose_track_is_zero_is_named(tmp_path):
    "Matroska's reader leaves such a block out, and with it a frame."
    path = write(tmp_path / "1.webm", gop=1)
    whole = Path(path).read_bytes()
    tracks = [m.end() - 1 for m in re.finditer(rb"\xa3([\x80-\xfe]|[\x40-\x7f].)\x81", whole, re.S)]
    assert len(tracks) > 10
    for at in tracks:
        Path(path).write_bytes(whole[:at] + bytes(1) + whole[at + 1 :])
        assert probe(path)["reason"], at


def plain(colour):
    return lambda n, h, w: np.broadcast_to(np.uint8(colour), (n, h, w, 3)).copy()


PLAIN = [(ext, codec) for ext in ("webm", "mkv", "mp4") for codec in HOMES[ext]]


@pytest.mark.parametrize("ext, codec", [(e, c) for e, c in PLAIN if c not in ("av1", "x265")])
def test_clips_of_one_colour_are_sound(tmp_path, monkeypatch, ext, codec):
    "They compress to almost nothing: of all clips these have the most zeros."
    for k, (colour, h, w) in enumerate([(0, 96, 128), (128, 240, 426), ((250, 9, 9), 360, 640)]):
        monkeypatch.setattr("test_media.pictures", plain(colour))
        path = write(tmp_path / f"{k}.{ext}", codec, 6, h, w, fps=25)
        assert probe(path)["reason"] == "" and len(read_frames(path)) == 6


@pytest.mark.parametrize("how", ["void", "behind", "silence", "live"])
def test_zeros_that_belong_there_are_sound(tmp_path, how):
    "Room kept for an index, room behind the last element, sound that is silent."
    options = dict(void=dict(reserve_index_space="20000"), live=dict(live="1")).get(how, {})
    path = str(tmp_path / "1.mkv")
    with av.open(path, "w", options=options) as file:
        stream = file.add_stream("libvpx", rate=12)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        sound = file.add_stream("pcm_s16le", rate=48000) if how == "silence" else None
        for picture in pictures(20, 96, 128):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
        for k in range(20) if sound else ():
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), "int16"), layout="stereo")
            silence.sample_rate, silence.pts = 48000, 4800 * k
            file.mux(sound.encode(silence))
    if how == "behind":
        Path(path).write_bytes(Path(path).read_bytes() + bytes(5000))
    if how != "live":
        assert bytes(1000) in Path(path).read_bytes()
    agrees(path, in_order(path))


@pytest.mark.parametrize("ext, codec", [("mp4", "x265"), ("mkv", "x264"), ("mpg", "mpeg2")])
def test_a_copy_from_the_middle_of_a_video_is_sound(tmp_path, ext, codec):
    path, part = write(tmp_path / f"1.{ext}", codec, n=40, fps=25), str(tmp_path / f"2.{ext}")
    with av.open(path) as source, av.open(part, "w") as file:
        stream, keys = file.add_stream_from_template(source.streams.video[0]), 0
        for packet in source.demux(video=0):
            keys += packet.is_keyframe
            if keys > 1 and packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
    want = in_order(part)
    assert 10 < len(want) < 40
    agrees(part, want)


# --- which way up, and what an edit list shows


def matrix_of(path, a, b, c, d):
    "Gives an MP4's picture a display matrix."
    with open(path, "r+b") as f:
        at = f.read().find(b"tkhd") + 44
        f.seek(at)
        f.write(struct.pack(">9i", *(65536 * k for k in (a, b, 0, c, d, 0, 0, 0)), 1 << 30))


TURNED = dict(
    right=((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
    over=((-1, 0, 0, -1), lambda f: f[:, ::-1, ::-1]),
    left=((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
    mirrored=((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
    upside_down=((1, 0, 0, -1), lambda f: f[:, ::-1]),
    swapped=((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)),
)


@pytest.mark.parametrize("how", TURNED)
@pytest.mark.parametrize("codec", ["x264", "mpeg4b"])
def test_pictures_stand_as_a_player_shows_them(tmp_path, how, codec):
    path = write(tmp_path / "1.mp4", codec)
    plain = read_frames(path)
    matrix_of(path, *TURNED[how][0])
    agrees(path, TURNED[how][1](plain))


def test_pictures_of_a_folder_stand_upright_too(tmp_path):
    frames = pictures(3, 48, 64)
    for t, f in enumerate(frames, 1):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(f)).save(tmp_path / f"{t:05}.png", exif=exif)
    agrees(str(tmp_path), frames)


@pytest.mark.parametrize("first, count", [(5, 10), (12, 8), (0, 3), (13, 1)])
@pytest.mark.parametrize("codec", ["x264", "mpeg4b", "x265"])
def test_what_an_edit_list_hides_is_not_there(tmp_path, codec, first, count):
    path = write(tmp_path / "1.mp4", codec, fps=25)
    plain = read_frames(path)
    with open(path, "r+b") as f:
        at = f.read().find(b"elst") + 12
        f.seek(at)
        _, start = struct.unpack(">Ii", f.read(8))
        f.seek(at)
        with av.open(path) as file:
            step = file.streams.video[0].time_base.denominator // 25
        f.write(struct.pack(">Ii", 40 * count, start + step * first))
    want = in_order(path)
    assert np.array_equal(want, plain[first : first + count])
    agrees(path, want)


# --- folders of frames


NAMES = dict(
    plain="{:05}.jpg",
    wide="{:06}.png",
    tsm="img_{:05}.jpg",
    joined="img{:05}.jpg",
    own="clip7_{:06}.jpg",
    own_dash="clip7-{:04}.png",
    own_frame="clip7_frame{}.jpg",
    frame="frame{}.jpg",
    dashed="frame-{:03}.jpeg",
    image="image_{:05}.JPG",
    rgb="rgb_{:05}.jpg",
    foreign="out{:03}.png",
)


def folder(to, numbers, name="{:05}.jpg"):
    to.mkdir()
    for t, picture in zip(numbers, pictures(40, 48, 64)):
        Image.fromarray(picture).save(to / name.format(t), quality=95, subsampling=0)
    return str(to)


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_found_by_whatever_name(tmp_path, name):
    path = folder(tmp_path / "clip7", range(1, 13), NAMES[name])
    if name != "foreign":
        for other in ("flow_x_00001.jpg", "thumb_1.png", "notes2.txt"):
            (tmp_path / "clip7" / other).write_bytes(b"no frame")
    assert frame_files(path) == [NAMES[name].format(t) for t in range(1, 13)]
    assert frame_numbers(path).tolist() == list(range(12))
    want = pictures(40, 48, 64)[:12].astype(int)
    assert probe(path)["reason"] == "" and n_frames(path) == 12
    assert np.abs(read_frames(path, [11, 0]) - want[[11, 0]]).mean() < 3


def test_flow_alone_is_no_clip(tmp_path):
    path = folder(tmp_path / "a", range(1, 9), "flow_x_{:05}.jpg")
    assert frame_files(path) == [] and probe(path)["reason"] == "no frames"
    with pytest.raises(ValueError, match="no frame in it"):
        n_frames(path)


@pytest.mark.parametrize(
    "numbers, of, missing",
    [
        (range(1, 11), range(10), 0),
        (range(0, 10), range(10), 0),
        (range(13, 31), range(12, 30), 12),
        (range(2, 9), range(1, 8), 1),
        ([0, 1, 2, 5, 6], [0, 1, 2, 5, 6], 2),
        ([1, 2, 3, 9], [0, 1, 2, 8], 5),
    ],
)
def test_missing_frames_are_noticed_and_the_others_keep_their_numbers(
    tmp_path, numbers, of, missing
):
    path = folder(tmp_path / "a", numbers)
    assert frame_numbers(path).tolist() == list(of)
    found = probe(path)
    assert found["reason"] == ("frames missing" if missing else "")
    assert found["detail"].startswith(str(missing) if missing else "")


def test_frames_that_are_there_twice_are_named(tmp_path):
    path = folder(tmp_path / "a", range(1, 9))
    Image.fromarray(pictures(1, 48, 64)[0]).save(tmp_path / "a/3.png")
    assert probe(path)["reason"] == "frames twice"


def test_what_macos_puts_beside_files_is_no_clip_and_no_frame(tmp_path):
    (tmp_path / "frames").mkdir()
    path = folder(tmp_path / "frames/7", range(1, 9))
    for t in range(1, 9):
        (tmp_path / f"frames/7/._{t:05}.jpg").write_bytes(b"\0\5\x16\7" + bytes(90))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/._1.webm").write_bytes(bytes(90))
    assert list_media(tmp_path) == {"7": path}
    assert n_frames(path) == 8 and probe(path)["reason"] == ""


def test_pictures_of_16_bits_are_refused_in_a_sentence(tmp_path):
    "Pillow would make white of all above 255."
    (tmp_path / "a").mkdir()
    for t in range(1, 4):
        Image.fromarray(np.full((8, 8), 9000 * t, "uint16")).save(tmp_path / f"a/{t:05}.png")
    found = probe(str(tmp_path / "a"))
    assert found["reason"] == "damaged frame" and "more than 8 bits" in found["detail"]
    with pytest.raises(ValueError, match="more than 8 bits a channel: write it with 8"):
        read_frames(tmp_path / "a")


@pytest.mark.parametrize("ext", ["bmp", "tif", "JP2"])
def test_pictures_of_another_kind_are_told_what_is_read(tmp_path, ext):
    (tmp_path / "a").mkdir()
    for t in range(1, 4):
        (tmp_path / f"a/{t:05}.{ext}").write_bytes(b"picture")
    says = f".jpg, .jpeg, .png, .webp are read; its files end in .{ext.lower()}"
    found = probe(str(tmp_path / "a"))
    assert found["reason"] == "no frames" and says in found["detail"]
    with pytest.raises(ValueError, match="no frame in it.*are read; its files"):
        read_frames(tmp_path / "a")


@contextmanager
def as_somebody_else():
    "Without root's right to read everything."
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX rights")
@pytest.mark.parametrize("what", ["file", "home", "folder", "frame"])
def test_what_one_may_not_read_is_not_readable(what):
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "videos").mkdir()
    video = write(root / "videos/1.webm")
    frames = folder(root / "2", range(1, 4))
    path, locked = dict(
        file=(video, video),
        home=(video, root / "videos"),
        folder=(frames, frames),
        frame=(frames, f"{frames}/00002.jpg"),
    )[what]
    os.chmod(locked, 0)
    try:
        with as_somebody_else():
            assert probe(path)["reason"] == "not readable", probe(path)
            with pytest.raises(ValueError, match="is not readable: give yourself the right"):
                read_frames(path)
            if what == "home":
                with pytest.raises(PermissionError, match="videos is not readable"):
                    list_media(root)
    finally:
        os.chmod(locked, 0o755)
        shutil.rmtree(root)


# --- what a clip may take


PEAK = """
import re, sys
from ssv2_report.data.media import read_frames
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
before = peak()
frames = read_frames(sys.argv[1], eval(sys.argv[2]))
print(len(frames), peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("ext", ["mp4", "webm"])
def test_a_large_video_takes_the_memory_of_the_frames_asked_for(tmp_path, ext):
    path = tmp_path / f"1.{ext}"
    frames = np.broadcast_to(np.uint8(90), (150, 1024, 1024, 3))
    how = dict(codec="libx264", options={"preset": "ultrafast"}) if ext == "mp4" else {}
    worlds.write_video(path, frames, **how)
    for indices in ("lambda n: range(0, n, n // 3)[:3]", "[0, 70, 149]", "[-1]"):
        call = [sys.executable, "-c", PEAK, str(path), indices]
        found = subprocess.run(call, capture_output=True, text=True, check=True)
        n, megabytes = map(int, found.stdout.split())
        assert n in (1, 3) and megabytes < 130, (indices, megabytes)  # all decoded are 236


@pytest.mark.parametrize("ext, codec", [("webm", "vp9"), ("mp4", "x265"), ("mpg", "mpeg1")])
def test_a_video_that_is_decoded_twice_gives_the_same_frames(tmp_path, monkeypatch, ext, codec):
    path = write(tmp_path / f"1.{ext}", codec, fps=25)
    asked = []
    monkeypatch.setattr("ssv2_report.data.media.ROOM", 50_000)
    agrees(path, want := in_order(path))
    assert np.array_equal(read_frames(path, lambda n: asked.append(n) or [n - 1])[0], want[-1])
    assert asked == [len(want)]  # once: it may draw at random
    for wrong in ([len(want)], lambda n: [n], [-len(want) - 1]):
        with pytest.raises(ValueError, match="no frame .* among its"):
            read_frames(path, wrong)


def test_a_picture_of_too_many_pixels_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a/00001.png")
    found = probe(str(tmp_path / "a"))
    assert found["reason"] == "damaged frame"
    assert "13000 x 13000 pixels are more than the 33,554,432 a frame may have" in found["detail"]
    with pytest.raises(ValueError, match="a frame may have") as e:
        read_frames(tmp_path / "a")
    assert "\n" not in str(e.value)


def test_a_video_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "1.webm")
    monkeypatch.setattr("ssv2_report.data.media.PIXELS", 96 * 128 - 1)
    assert "128 x 96 pixels are more than" in probe(path)["detail"]
    with pytest.raises(ValueError, match="a frame may have"):
        read_frames(path, [0])


# --- the cache, and processes


def test_the_cache_holds_what_is_shown(tmp_path):
    kinds = [("1.mp4", dict(codec="x265")), ("2.mpg", dict(codec="mpeg1", fps=25))]
    kinds += [("3.webm", dict(w=48, n=1)), ("4.mp4", dict(codec="mpeg4b", sound=3))]
    paths = [write(tmp_path / name, **how) for name, how in kinds]
    matrix_of(paths[3], 0, 1, -1, 0)
    clips = pd.DataFrame(dict(id=list("1234"), path=paths))
    cache = build_cache(types.SimpleNamespace(clips=clips), tmp_path / "cache", 200, 1, kind="raw")
    for id, path in zip("1234", paths):
        want = read_frames(path)
        taken = np.random.default_rng(0).integers(0, len(want), 6)
        frames, hw = cache.read(id, path, lambda n: taken)
        assert np.array_equal(frames, want[taken]) and hw == want.shape[1:3]
    assert np.array_equal(in_order(paths[0]), read_frames(paths[0]))


def test_computing_for_ever_is_found(tmp_path, monkeypatch):
    (tmp_path / "spinning.py").write_text("""
import time
def spin(seconds):
    while time.process_time() < seconds:
        pass
""")
    monkeypatch.syspath_prepend(tmp_path)
    done = in_processes("spinning:spin", [(99,), (0,)], workers=1, limit=0.5)
    assert {k: fault for k, _, fault in done} == {0: "hangs", 1: ""}


def test_waiting_is_allowed_but_not_for_ever():
    start = time.monotonic()
    done = {k: f for k, _, f in in_processes("time:sleep", [(99,), (0.5,)], 2, limit=0.15)}
    assert done == {0: "hangs", 1: ""} and time.monotonic() - start < 60


def test_a_worker_that_cannot_start_is_one_sentence():
    with pytest.raises(RuntimeError, match="could not start"):
        list(in_processes("ssv2_report.data.media:nothing", [(1,)]))


@pytest.mark.parametrize("first, last", [(1, 20), (0, 19), (7, 20), (1, 15)])
@pytest.mark.parametrize("cached", [False, True])
def test_boxes_go_by_the_file_s_number(tmp_path, first, last, cached):
    root = worlds.make(tmp_path / "world", train=24, validation=1, test=0)
    media = root / "20bn-something-something-v2"
    frames = read_frames(media / "1.webm")
    for name, numbers in (("1", range(first, last + 1)), ("2", range(1, 21))):
        (to := root / "frames" / name).mkdir(parents=True)
        for t in numbers:
            Image.fromarray(frames[t - (first > 0 or name == "2")]).save(to / f"{t:05}.png")
    for path in media.iterdir():  # all but one are whole
        if path.stem not in ("1", "2"):
            shutil.copytree(to, to.with_name(path.stem), copy_function=os.link)
    shutil.rmtree(media)
    index, boxes = load_index(root, ("train",)), load_boxes(root)
    cache = build_cache(index, tmp_path / "cache", 96, 1) if cached else None
    dataset = ClipDataset(index, 4, 96, cache=cache, boxes=boxes)
    item = dataset[list(dataset.ids).index("1")]
    shown = denormalise(item["clip"]).astype(int)
    red = shown[..., 0] - shown[..., 1] > 100  # the object is red, and nothing else
    assert (item["object"] & red).sum() / (item["object"] | red).sum() > 0.8
