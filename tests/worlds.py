"""Tiny datasets in the official layout, for tests and benchmarks."""
import json
from pathlib import Path

import av
import numpy as np

CLASSES = ['Holding something', 'Pushing something from left to right', 'Pushing something from right to left', 'Moving something up']
OBJECT, HAND, GROUND = (220, 30, 30), (30, 200, 60), (90, 90, 110)


def write_video(path, frames, fps=12, codec='libvpx-vp9', options=None, **kw):
    with av.open(str(path), 'w', **kw) as video:
        stream = video.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        stream.options = options or ({'crf': '12', 'b:v': '0', 'deadline': 'realtime', 'cpu-used': '8'} if codec == 'libvpx-vp9' else {})
        for frame in frames: video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        video.mux(stream.encode())


def scene(n=20, h=96, w=128):
    "Frames of an object and a hand that move on plain ground, and their boxes (x1, y1, x2, y2) a frame."
    frames, boxes = np.empty((n, h, w, 3), np.uint8), []
    frames[:] = GROUND
    for t in range(n):
        x = 28 + 40*t//n
        boxes.append(((x, 30, x+26, 60), (x+6, 62, x+24, 86)))
        for (x1, y1, x2, y2), colour in zip(boxes[-1], (OBJECT, HAND)): frames[t, y1:y2, x1:x2] = colour
    return frames, boxes


def annotation(id, boxes):
    box = lambda b, kind: dict(box2d=dict(zip(('x1', 'y1', 'x2', 'y2'), b)), category=kind, standard_category='hand' if kind == 'hand' else '0000')
    return [dict(name=f'{id}/{t+1:04}.jpg', labels=[box(o, 'cup'), box(h, 'hand')]) for t, (o, h) in enumerate(boxes)]


def record(id, name): return dict(id=id, label='a label', template=name.replace('something', '[something]'), placeholders=['cup'])


def make(root, train=8, validation=4, test=1, **kw):
    "A dataset of that many clips, all of one scene, with boxes."
    root = Path(root)
    media = root/'20bn-something-something-v2'
    for folder in (media, root/'labels', root/'boxes'): folder.mkdir(parents=True, exist_ok=True)
    frames, boxes = scene(**kw)
    write_video(media/'1.webm', frames)
    ids = [str(i+1) for i in range(train + validation + test)]
    for id in ids[1:]: (media/f'{id}.webm').write_bytes((media/'1.webm').read_bytes())
    records = [record(id, CLASSES[i % len(CLASSES)]) for i, id in enumerate(ids)]
    dump(root/'labels/labels.json', {name: str(i) for i, name in enumerate(CLASSES)})
    dump(root/'labels/train.json', records[:train])
    dump(root/'labels/validation.json', records[train:train+validation])
    dump(root/'labels/test.json', [{'id': id} for id in ids[train+validation:]])
    dump(root/'boxes/part1.json', {id: annotation(id, boxes) for id in ids})
    return root


def dump(path, content): Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
