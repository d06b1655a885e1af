"""Tiny datasets in the official layout, for tests and benchmarks."""

import json
import re
import shutil
from pathlib import Path

import av
import numpy as np

CLASSES = [
    "Holding something",
    "Pushing something from left to right",
    "Pushing something from right to left",
    "Moving something up",
]
OBJECT, HAND, GROUND = (220, 30, 30), (30, 200, 60), (90, 90, 110)


def write_video(path, frames, fps=12, codec="libvpx-vp9", options=None, **kw):
    with av.open(str(path), "w", **kw) as video:
        stream = video.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options or (
            {"crf": "12", "b:v": "0", "deadline": "realtime", "cpu-used": "8"}
            if codec == "libvpx-vp9"
            else {}
        )
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())


def scene(n=20, h=96, w=128):
    "Frames of an object and a hand that move on plain ground, and their boxes (x1, y1, x2, y2) a frame."
    frames, boxes = np.empty((n, h, w, 3), np.uint8), []
    frames[:] = GROUND
    for t in range(n):
        x = 28 + 40 * t // n
        boxes.append(((x, 30, x + 26, 60), (x + 6, 62, x + 24, 86)))
        for (x1, y1, x2, y2), colour in zip(boxes[-1], (OBJECT, HAND)):
            frames[t, y1:y2, x1:x2] = colour
    return frames, boxes


def annotation(id, boxes):
    box = lambda b, kind: dict(
        box2d=dict(zip(("x1", "y1", "x2", "y2"), b)),
        category=kind,
        standard_category="hand" if kind == "hand" else "0000",
    )
    return [
        dict(name=f"{id}/{t + 1:04}.jpg", labels=[box(o, "cup"), box(h, "hand")])
        for t, (o, h) in enumerate(boxes)
    ]


def record(id, name):
    return dict(
        id=id,
        label="a label",
        template=name.replace("something", "[something]"),
        placeholders=["cup"],
    )


def make(root, train=8, validation=4, test=1, **kw):
    "A dataset of that many clips, all of one scene, with boxes."
    root = Path(root)
    media = root / "20bn-something-something-v2"
    for folder in (media, root / "labels", root / "boxes"):
        folder.mkdir(parents=True, exist_ok=True)
    frames, boxes = scene(**kw)
    write_video(media / "1.webm", frames)
    ids = [str(i + 1) for i in range(train + validation + test)]
    for id in ids[1:]:
        (media / f"{id}.webm").write_bytes((media / "1.webm").read_bytes())
    records = [record(id, CLASSES[i % len(CLASSES)]) for i, id in enumerate(ids)]
    dump(root / "labels/labels.json", {name: str(i) for i, name in enumerate(CLASSES)})
    dump(root / "labels/train.json", records[:train])
    dump(root / "labels/validation.json", records[train : train + validation])
    dump(root / "labels/test.json", [{"id": id} for id in ids[train + validation :]])
    dump(root / "boxes/part1.json", {id: annotation(id, boxes) for id in ids})
    return root


def dump(path, content):
    Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


OFFICIAL = {
    "Closing something": ("closing a drawer", ["a drawer"]),
    "Opening something": ("opening vicks vaporub bottle", ["vicks vaporub bottle"]),
    'Holding something next to something <img src=x> "$a$" *b*': (
        'holding potato next to a <i>"$5" | box</i>',
        ["potato", 'a <i>"$5" | box</i>'],
    ),
}


def official(root, train=2, validation=2, damaged=1, boxes=None):
    """A dataset in Something-Something V2's official layout, but for the name of one class, which is not to be trusted: so many clips a class, of different lengths and widths, and further validation clips that end in
    the middle. One box lies outside its picture. Boxes go into the folder `boxes`, by default into the dataset's own."""
    root, boxes = Path(root), Path(boxes or Path(root) / "boxes")
    media, split, annotations = (
        root / "20bn-something-something-v2",
        dict(train=[], validation=[], test=[]),
        {},
    )
    for folder in (media, root / "labels", boxes):
        folder.mkdir(parents=True, exist_ok=True)
    names = ["validation" if k % 2 else "train" for k in range(2 * max(train, validation))]
    names = [n for k, n in enumerate(names) if k // 2 < dict(train=train, validation=validation)[n]]
    kinds = [(s, c) for s in names for c in OFFICIAL] + [
        ("validation", c) for c in list(OFFICIAL)[:damaged]
    ]
    for k, (name, template) in enumerate(kinds):
        id, (label, placeholders) = str(78_687 + 13 * k), OFFICIAL[template]
        frames, own = scene(n=14 + 3 * (k % 5), w=128 + 16 * (k % 3))
        write_video(
            media / f"{id}.webm", frames[::-1] if template.startswith("Opening") else frames
        )
        annotations[id] = annotation(id, own[::-1] if template.startswith("Opening") else own)
        split[name].append(
            dict(
                id=id,
                label=label,
                template=template.replace("something", "[something]"),
                placeholders=placeholders,
            )
        )
    for r in split["validation"][len(split["validation"]) - damaged :]:
        cut(media / f"{r['id']}.webm")
    for name, records in split.items():
        dump(root / f"labels/{name}.json", records)
    dump(root / "labels/labels.json", {name: str(i) for i, name in enumerate(OFFICIAL)})
    box = annotations["78687"][0]["labels"][0]["box2d"]
    box.update(x1=box["x1"] + 500, x2=box["x2"] + 500)
    dump(boxes / "bounding_box_smthsmth_part1.json", annotations)
    return root


def cut(path):
    "Leave the first half of a file."
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_study(path, root, boxes=None, allowed=1, text=""):
    "A study of two small networks and two seeds on the dataset at `root`; its path."
    path.write_text(
        f"""title: {json.dumps(f"A few clips {text}".strip(), ensure_ascii=False)}
data:
  root: {json.dumps(str(root))}
  boxes: {json.dumps(boxes and str(boxes))}
  size: 48
  max_excluded: {allowed}
seeds: [0, 1]
settings: {{output_stride: 8, n_frames: 4, batch_size: 6, epochs: 1}}
cam: {{sources: ["layer2:gradcam", "layer4:layercam"]}}
experiments:
  2d-multi: {{title: "2D, eight frames", model: test_resnet}}
  r(2+1)d: {{title: 3D from scratch, model: "i3d:test_resnet"}}
hypotheses:
  order: {{says: {json.dumps(f"3D beats 2D on order {text}".strip(), ensure_ascii=False)}, measure: pair_right, of: r(2+1)d, over: 2d-multi, clips: reversal}}
  place: {{says: 3D maps lie more on the object, measure: ratio_object, of: r(2+1)d, over: 2d-multi}}
""",
        encoding="utf-8",
    )
    return path


def clone(root, to):
    "A copy of the project without what it has made."
    made = {".git", ".snakemake", ".venv", "_report", "data", "docs", "results"}

    def left_out(folder, names):
        return {
            "__pycache__",
            ".pytest_cache",
            *(made if Path(folder) == Path(root) else ()),
        } & set(names)

    return shutil.copytree(root, to, ignore=left_out)


CANARY = "window.canary=1"
TEXTS = [
    f"<script>{CANARY}</script>",
    f"<img src=x onerror={CANARY}>",
    f'"><svg onload="{CANARY}">',
    f"[press](javascript:{CANARY})",
    f"`<script>{CANARY}</script>`{{=html}}",
    "```{=html}",
    "unfolding a $20 bill, or $x^2$",
    "`x` and ``y`` and \\`z",
    r"\input{/etc/passwd} \write18{touch canary} \end{document}",
    '#eval("1 + 1") #read("/etc/passwd") #import "x.typ": *',
    "]]> --> */ ]}) :::",
    "{{< include /etc/passwd >}} {{< var x >}} {{< embed run#fig-a >}}",
    "@fig-x and [@goyal2017something] and [^1] and {#id .class}",
    "title: [1, 2] # no: yaml\n---\n- key: !!python/object:os.system x",
    "\x1b[31mred\x1b[0m \x07 \x00 bell",
    "right \u202eto left\u202c and \u05d0\u05d1 \u200f marks",
    "long " + "verylongword" * 30,
    "one &amp; two &lt; three & four < five > six",
    "| a | b |\n|---|---|\n| *x* | __y__ |",
    "see [the analysis](05_analysis.ipynb) or <https://example.invalid>",
    "- item ~~struck~~ H~2~O 100% 'quoted' \"text\" -- dashes ... dots",
    "\U0001f44b\U0001f3fd waving \u4f60\u597d caf\u00e9",
]


def as_read(text):
    "A text as its reader sees it: no spaces, quotes and dashes of any kind."
    plain = re.sub(r"[\u2018\u2019\u201c\u201d'\"]", "'", text)
    plain = plain.replace("\u2013", "--").replace("\u2014", "---").replace("\u2026", "...")
    return "".join(c for c in plain if c.isprintable() and not c.isspace())
