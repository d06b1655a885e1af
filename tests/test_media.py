"""Every frame asked for is the frame shown, sound files are read, cut ones are named, whatever the container, codec, order, rate, length or size."""

import itertools
import os
import struct
import sys
import time
import types
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest
import worlds
from PIL import Image

from ssv2_report.data.cache import build_cache
from ssv2_report.data.media import (
    frame_files,
    frame_numbers,
    in_processes,
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


@pytest.mark.parametrize("ext, codec, n, h, w, fps, gop", matrix())
def test_asked_is_shown(tmp_path, ext, codec, n, h, w, fps, gop):
    path = write(tmp_path / f"1.{ext}", codec, n, h, w, Fraction(fps), gop)
    want = in_order(path)
    assert abs(len(want) - n) <= (ext in ("mpg", "wmv"))
    agrees(path, want)


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
