"""Decoding 16 frames of SSv2-like webm (240 pixels high, VP9, 12 fps, 30 to 70 frames): ours, with decord and without, against its peers, clip by clip in turns.

Prints one JSON line: clips a second of each (a peer that is not installed is skipped), how many times as fast ours is with decord as without, and whether both give PyAV's own pixels. `python benchmarks/decode.py [rounds]`"""

import json
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import worlds

from ssv2_report.data import media
from ssv2_report.data.media import read_frames


def video(path, n, seed):
    "A hand-held look at a busy texture: as many bits a second as SSv2 has."
    rng = np.random.default_rng(seed)
    ground = np.asarray(
        Image.fromarray(rng.integers(0, 255, (40, 70, 3), dtype=np.uint8)).resize(
            (560, 320), Image.BICUBIC
        )
    )
    at = (
        (40 + 30 * np.sin(np.linspace(0, 4, n))).astype(int),
        (60 + 50 * np.cos(np.linspace(0, 5, n))).astype(int),
    )
    worlds.write_video(
        path,
        np.stack([ground[y : y + 240, x : x + 426] for y, x in zip(*at)]),
        options={"crf": "36", "b:v": "0", "deadline": "realtime", "cpu-used": "8"},
    )


def uniform(n):
    return (2 * np.arange(16) + 1) * n // 32


def ours(path):
    return read_frames(path, uniform)


def ours_without_decord(path):
    there, media._decord = media._decord, lambda: None
    try:
        return ours(path)
    finally:
        media._decord = there


def by_decord(path):
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    return reader.get_batch(uniform(len(reader))).asnumpy()


def by_pyav(path):
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    return np.stack([frames[i].to_ndarray(format="rgb24") for i in uniform(len(frames))])


def by_opencv(path):
    import cv2

    reader, out = cv2.VideoCapture(path), []
    for i in uniform(int(reader.get(cv2.CAP_PROP_FRAME_COUNT))):
        reader.set(cv2.CAP_PROP_POS_FRAMES, int(i))
        out.append(cv2.cvtColor(reader.read()[1], cv2.COLOR_BGR2RGB))
    return np.stack(out)


def by_torchcodec(path):
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
    return reader.get_frames_at(uniform(len(reader)).tolist()).data.numpy()


def main(rounds=3):
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{k}.webm" for k in range(9)]
        for k, path in enumerate(paths):
            video(path, 30 + 5 * k, k)
        peers, skipped = {}, {}
        for name, f in dict(
            ours=ours,
            ours_without_decord=ours_without_decord,
            decord=by_decord,
            pyav=by_pyav,
            torchcodec=by_torchcodec,
            opencv_seek=by_opencv,
        ).items():
            try:
                peers[name] = f
                f(paths[0])
            except Exception as e:
                skipped[name] = type(e).__name__
                del peers[name]
        seconds = {name: [] for name in peers}
        for k in range(rounds):
            for path in paths:
                for name, f in sorted(peers.items(), reverse=bool(k % 2)):
                    start = time.perf_counter()
                    f(path)
                    seconds[name].append(time.perf_counter() - start)
        rate = {
            name: round(1 / float(np.mean(np.min(np.reshape(s, (rounds, -1)), 0))), 1)
            for name, s in seconds.items()
        }
        fastest = max(v for name, v in rate.items() if name in ("decord", "pyav", "torchcodec"))
        print(
            json.dumps(
                dict(
                    benchmark="decode",
                    clips_per_second=rate,
                    decord_over_pyav=round(rate["ours"] / rate["ours_without_decord"], 2),
                    same_pixels_as_pyav=all(
                        np.array_equal(f(p), by_pyav(p))
                        for f in (ours, ours_without_decord)
                        for p in paths
                    ),
                    over_fastest=round(rate["ours"] / fastest, 2),
                    over_opencv=round(rate["ours"] / rate["opencv_seek"], 1)
                    if "opencv_seek" in rate
                    else None,
                    skipped=skipped,
                )
            )
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
