"""A study that is changed and reproduced in place is the study made from nothing, word for word, and no more is done for it than needed.

Each change is applied to what the ones before left; `-k NAME` applies one of them to an unchanged study."""

import ast
import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple

import numpy as np
import pytest
from campaign import CHAPTER, CLASSES, Quick, World, as_text, differences, masked, new_world
from safetensors.numpy import save_file

from ssv2_report.demo.world import make_world
from ssv2_report.study.experiments import load_study

RUN_BOOKS = dict(
    train="train/train_run",
    sources="gradcam/sources_run",
    gradcam="gradcam/gradcam_run",
    reliance="gradcam/reliance_run",
    analysis="analysis/analysis_run",
    validation="analysis/validation_run",
)
LOOKED = {"sources", "gradcam", "reliance", "analysis", "validation"}
ALL = {"train", "00_data"} | LOOKED


class Change(NamedTuple):
    """One change, and what may be done for it.

    With `anew` the study is compared with one from nothing, which differs from that before if `seen`.
    Without, it must be what it was before, but for pages where those that show the change are named."""

    apply: Callable  # Given the world; it may call `reproduce` in between
    trained: Callable | set = frozenset()  # Runs that must be trained, and no others
    may: set = frozenset()  # Steps that may be executed; for no other run where some are trained
    anew: bool = True
    seen: bool = True
    shown: tuple = ()  # Files of the report

    @property
    def name(self):
        return self.apply.__name__


def every(world):
    "All runs that a world's study asks for."
    asked = world.settings()
    return {f"{e}-s{s}" for e in asked["experiments"] for s in asked["seeds"]}


# --- the user's own


def own_files(world, folders=("tables", "figures")):
    for folder in folders:
        (world.results / folder / "my own.csv").write_text("1,2\n")


def own_are_there(world):
    found = [world.results / folder / "my own.csv" for folder in ("tables", "figures")]
    return all(path.is_file() and path.read_text() == "1,2\n" for path in found)


# --- words


def say_in(step):
    "Add a sentence to a notebook."

    def apply(world):
        if step == "validation":
            with_seeds(world)
        notebook = RUN_BOOKS.get(step, step)
        world.add_cell(notebook, "markdown", f"A sentence that nobody has read in {step}.")

    apply.__name__ = f"sentence_in_{step}"
    return apply


def caption_of_figure(world):
    old = r"Validation top-1 by epoch;"
    world.rewrite("nbs/analysis/analysis_run.ipynb", old, "Top-1 on validation clips by epoch;")


def caption_in_chapter(world):
    world.rewrite("nbs/00_data.ipynb", r'(?<=fig-cap: ")Clips per class', "Number of clips a class")


def docstring_on_a_page(world):
    old = r"Attention as a share of the clip\."
    world.recode("gradcam/maps", "04_gradcam", old, "What share of the attention is where.")


def docstring_of_training(world):
    world.recode("train", "03_train", '(?<=    ")The checkpoint at `path`; ', "A checkpoint; ")


def docstring_of_decoding(world):
    old = r'(?<=    ")Decoded frames\. '
    world.recode("data/media", "data/media", old, "The frames of a clip. ")


def comment_in_library(world):
    old = r"(?m)^(    handles = \[\]\n)"
    world.recode("gradcam/maps", "04_gradcam", old, r"\1\n    # Of the hooks.\n\n")


def comment_in_train_run(world):
    world.rewrite(
        "nbs/train/train_run.ipynb", r"(?m)^refuse_unknown\(\)$", "# First\n\nrefuse_unknown()"
    )


def id_of_a_cell(world):
    path = world.clone / "nbs" / "04_gradcam.ipynb"
    id = json.loads(path.read_text(encoding="utf-8"))["cells"][-1]["id"]
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{id}"', '"another"'))


def title_of_experiment(world):
    world.set("experiments.2d.title", "A plain network")


def title_of_study(world):
    world.set("title", "A small study")


def reworded_hypothesis(world):
    world.set("hypotheses.place.says", "deep maps are closer to the object")


def added_hypothesis(world):
    more = dict(says="deep networks are better", measure="right", of="3d", over="2d")
    world.set("hypotheses.better", more)


# --- code


def decoder_inverted(world):
    old = r"(def _video_frames\((?s:.*?)return )(reader[^\n]*)((?s:.*?)return )(_by_pyav)"
    world.recode("data/media", "data/media", old, r"\g<1>255 - \2\g<3>255 - \4")


def formula_of_maps(world):
    old = r'"layercam": lambda A, G, d: F\.relu\(G\)'
    world.recode("gradcam/maps", "04_gradcam", old, '"layercam": lambda A, G, d: F.relu(G) ** 2')


def default_learning_rate(world):
    "Which counts where the study says none."
    old = r"    lr: float = Field\(\S+,"
    world.recode("study/experiments", "study/experiments", old, "    lr: float = Field(3e-3,")


def code_of_gradcam_run(world):
    world.add_cell(RUN_BOOKS["gradcam"], "code", "41 + 1")


def code_of_analysis_run(world):
    old = r"(?m)^tables\.curves\(evidence\.history, titles, ax\)$"
    world.rewrite(
        "nbs/analysis/analysis_run.ipynb",
        old,
        'tables.curves(evidence.history, titles, ax)\nax.set_title("Curves")',
    )


def code_of_chapter(world):
    world.add_cell("04_gradcam", "code", "41 + 1")


# --- settings


def learning_rate(world):
    world.set("experiments.3d.lr", 0.02)


def fewer_cases(world):
    world.set("cam.cases", 1)


def class_dropped(world):
    world.set("data.classes", [c for c in CLASSES if not c.startswith("Covering")])


MORE = dict(title="An inflated network", model="i3d:test_resnet", init="2d", lr=0.01)


def experiment_added(world):
    world.set("experiments.inflated", MORE)


def with_experiment(world):
    if "inflated" not in world.settings()["experiments"]:
        experiment_added(world)
        world.reproduce()


def experiment_removed(world):
    with_experiment(world)
    world.set("experiments.inflated", None)


def experiment_put_back(world):
    experiment_removed(world)
    world.reproduce()
    experiment_added(world)


def seed_added(world):
    world.set("seeds", [0, 1])


def seed_removed(world):
    with_seeds(world)
    world.set("seeds", [0])


def with_seeds(world):
    if world.settings()["seeds"] == [0]:
        seed_added(world)
        world.reproduce()


# --- data


def annotations(world, folder, name, edit):
    "Edit a JSON file of the dataset."
    path = next(world.base.glob(f"data*/{folder}/{name}"))
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def clips_of(world, split="train", label="covering"):
    "Records of a split whose label begins so."
    path = next(world.base.glob(f"data*/labels/{split}.json"))
    records = json.loads(path.read_text(encoding="utf-8"))
    return [r for r in records if r["label"].startswith(label)]


def box_moved(world):
    "The first box of the hand in a clip that maps are of."
    id = clips_of(world, "validation", "holding")[0]["id"]

    def edit(boxes):
        for frame in boxes.get(id, []):
            for label in frame["labels"]:
                if label["category"] == "hand":
                    label["box2d"]["x1"] = max(0.0, label["box2d"]["x1"] - 4)

    for part in ("*part1.json", "*part2.json"):
        annotations(world, "boxes", part, edit)


def space_in_label(world):
    id = clips_of(world, "validation", "holding")[0]["id"]

    def edit(records):
        record = next(r for r in records if r["id"] == id)
        record["label"] = record["label"].replace(" ", "  ", 1)

    annotations(world, "labels", "validation.json", edit)
    as_drawn(world)


def as_drawn(world):
    "Have a drawn world know its files as they are now: the audit refuses one that was edited."
    (file,) = world.base.glob("data*/demo.json")
    known, root = json.loads(file.read_text()), file.parent
    sha = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    known["files"] = {name: sha(root / name) for name in known["files"]}
    for id, clip in known["clips"].items():
        path = next(root.glob(f"20bn*/{id}.webm"))
        clip |= dict(sha256=sha(path), bytes=path.stat().st_size)
    file.write_text(json.dumps(known))


def clip_replaced(world):
    "A training clip by one of another class, which has its own old time."
    target, other = (clips_of(world, label=x)[0]["id"] for x in ("holding", "pulling"))
    media = next(world.base.glob("data*/20bn*"))
    shutil.copy2(media / f"{other}.webm", media / f"{target}.webm")
    as_drawn(world)


# --- how pages look


def title_of_site(world):
    world.rewrite("_quarto.yml", r"(?<=text: )Report\b", "Our report")


def style(world):
    path = world.clone / "ssv2_report" / "assets" / "style.css"
    path.write_text(path.read_text(encoding="utf-8") + "\nmain { color: teal }\n")


def reference(world):
    old = r"(?s)(@inproceedings\{selvaraju2017gradcam.*?  title = \{)"
    world.rewrite("nbs/references.bib", old, r"\g<1>Again: ")


# --- places


def results_moved(world):
    world.results = world.results.rename(world.base / "results moved")


def data_moved(world):
    (world.base / "data").rename(world.base / "data moved")
    world.set("data.root", "data moved")


# --- results tampered with


def older_weights(world):
    "Of one run, put back from before its learning rate changed."
    path, kept = world.run("3d-s0") / "weights.safetensors", world.base / "kept"
    shutil.copy2(path, kept)
    learning_rate(world)
    world.reproduce()
    assert path.read_bytes() != kept.read_bytes()
    shutil.move(kept, path)


def swapped_weights(world):
    "Of two runs, in files of one size."
    with_seeds(world)
    a, b = (world.run(f"2d-s{seed}") / "weights.safetensors" for seed in (0, 1))
    assert a.stat().st_size == b.stat().st_size and a.read_bytes() != b.read_bytes()
    content = a.read_bytes(), b.read_bytes()
    a.write_bytes(content[1])
    b.write_bytes(content[0])


def older_table(world):
    "Other numbers in a file of the same size."
    path = world.results / "tables" / "accuracy.csv"
    path.write_text(path.read_text().translate(str.maketrans("0123456789", "1234567890")))


def figure_of_another(world):
    "A figure in the place of another, brought to its size."
    path, other = (world.results / "figures" / f"{name}.svg" for name in ("curves", "accuracy"))
    path.write_bytes(other.read_bytes()[: path.stat().st_size].ljust(path.stat().st_size))


def older_maps(world):
    "Maps of one run in the place of another's."
    a, b = (world.run(f"{e}-s0") / "maps" / "layer1-layercam.npz" for e in ("2d", "3d"))
    shutil.copy2(a, b)


def older_page(world):
    "A page that was edited by hand."
    page = world.clone / "_report" / "tiny" / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("the", "teh"), encoding="utf-8")


def some_of_each(world):
    "Words, maps and a page at once, for a run of all tests."
    say_in("04_gradcam")(world)
    older_maps(world)
    older_page(world)


def from_nothing(world):
    "No change: for all words that were changed before it, the comparison with a study from nothing."


def words(apply, *pages):
    "A change of words, which some pages show; `from_nothing` comes after several."
    return Change(apply, anew=False, shown=tuple(f"report/{page}.html" for page in pages))


SAMPLE = Change(some_of_each, may={"gradcam"}, anew=False, shown=("report/04_gradcam.html",))
CHANGES = [
    Change(own_files, anew=False),
    *(words(say_in(page), page) for page in ("index", "00_data", CHAPTER)),
    *(words(say_in(step), f"{step}_run") for step in ("train", "gradcam", "reliance", "analysis")),
    words(caption_of_figure, "index", "analysis_run"),
    words(caption_in_chapter, "00_data"),
    words(docstring_on_a_page, "04_gradcam"),
    words(comment_in_library, "04_gradcam"),
    words(comment_in_train_run, "train_run"),
    *(words(apply) for apply in (docstring_of_training, docstring_of_decoding, id_of_a_cell)),
    words(title_of_site, "index", "train_run"),
    Change(style, anew=False, shown=("report/assets/style.css",)),
    words(reference, "index"),
    Change(from_nothing, seen=False),
    *(Change(apply, may={"analysis"}) for apply in (title_of_experiment, title_of_study)),
    *(Change(apply, may={"analysis"}) for apply in (reworded_hypothesis, added_hypothesis)),
    Change(fewer_cases, may={"analysis"}),
    Change(code_of_analysis_run, may={"analysis"}),
    Change(code_of_gradcam_run, may=LOOKED),
    Change(code_of_chapter),
    Change(formula_of_maps, may=LOOKED | {"00_data"}),
    Change(box_moved, may=LOOKED | {"00_data"}),
    Change(space_in_label, may=LOOKED | {"00_data"}, seen=False),  # no page shows that label
    Change(results_moved, seen=False),
    Change(data_moved, seen=False),
    Change(older_table, may={"analysis"}, anew=False),
    Change(figure_of_another, may={"analysis"}, anew=False),
    Change(older_maps, may=LOOKED, anew=False),
    Change(older_page, anew=False),
    Change(default_learning_rate, {"2d-s0"}, ALL),
    Change(older_weights, {"3d-s0"}, ALL),
    Change(experiment_added, {"inflated-s0"}, ALL),
    Change(experiment_put_back, may={"analysis"}, seen=False),
    Change(experiment_removed, may={"analysis"}, seen=False),  # alone, it was added for that
    Change(decoder_inverted, every, ALL),
    Change(clip_replaced, every, ALL),
    Change(class_dropped, every, ALL),
    Change(seed_added, {"2d-s1", "3d-s1"}, ALL),
    Change(say_in("validation")),
    Change(swapped_weights, {"2d-s0", "2d-s1"}, ALL, seen=False),
    Change(seed_removed, may={"analysis"}, seen=False),  # likewise
]


class Campaign:
    "A study, changed again and again, and what it should have made."

    def __init__(self, base, kind):
        self.base, self.drawn, self.own = base, base / "drawn", False
        make_world(self.drawn, 2, 2, size=64, workers=1)
        self.world = new_world(self.base / "first", self.drawn, kind)
        self.world.reproduce()
        self.wanted = self.world.made()

    def put_to_the_test(self, change):
        "What is wrong after a change, a line each; afterwards the study is as it should be."
        before = self.fresh = self.world.copy(self.base / f"before {change.name}")
        try:
            problems = self._problems(change)
        except Exception:
            self._go_on_with(before)
            raise
        if problems and (change.anew or not change.shown):
            self._go_on_with(self.fresh)  # after words, `from_nothing` does
        for world in (before, self.fresh):
            if world is not self.world:
                shutil.rmtree(world.base, ignore_errors=True)
        return problems

    def _go_on_with(self, world):
        "Another world in the place of one that is not as it should be."
        if not world.results.is_dir():
            world.reproduce()
        self.world, self.wanted = world, world.made()
        if self.own:
            own_files(world)

    def _problems(self, change):
        world = self.world
        change.apply(world)
        if change.anew:
            self.fresh = world.copy(self.base / f"{change.name} anew")
        with ThreadPoolExecutor() as pool:
            in_place = pool.submit(world.reproduce)
            if change.anew:
                self.fresh.reproduce()
            in_place.result()
        self._tell(change)
        found = world.made()
        wanted = self.fresh.made() if change.anew else found if change.shown else self.wanted
        problems = self._too_much_or_little(change, found, wanted) + differences(found, wanted)
        self.wanted = wanted
        if not world.reproduce().startswith("Nothing to do"):
            problems.insert(0, f"called again, it does {sorted(world.done) or 'something'}")
        self.own |= change.apply is own_files
        if self.own and not own_are_there(world):
            problems.insert(0, "a file of the user's own is gone or another")
            own_files(world)
        return problems

    def _tell(self, change):
        told = [f"{self.world.seconds:.0f} s in place"]
        if change.anew:
            told.append(f"{self.fresh.seconds:.0f} s from nothing")
        told.append(f"trained {', '.join(sorted(self.world.trained)) or 'nothing'}")
        told.append(f"executed {', '.join(sorted(self.world.executed)) or 'nothing'}")
        print(f"{change.name}: {'; '.join(told)}", flush=True)

    def _too_much_or_little(self, change, found, wanted):
        trained, executed, problems = self.world.trained, self.world.executed, []
        must = change.trained(self.world) if callable(change.trained) else change.trained
        if trained != must:
            problems.append(f"trained {sorted(trained)} instead of {sorted(must)}")
        of_others = {
            name for name in executed if must and name.split()[-1] in every(self.world) - must
        }
        if more := {name for name in executed if name.split()[0] not in change.may} | of_others:
            problems.append(f"executed {sorted(more)}, for which there was no reason")
        if change.seen and change.anew and wanted == self.wanted:
            problems.append("the change changes nothing")
        for page in change.shown:
            if found.get(page) == self.wanted.get(page):
                problems.append(f"{page} is as before")
        if change.shown and not change.anew:
            other = [
                line for line in differences(found, self.wanted) if not line.startswith("report/")
            ]
            problems += [f"words change {line}" for line in other]
        return problems


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("campaign"), World)


# --- that the comparison can fail


PLANTED = {
    "clone/_report/tiny/index.html": "<p>Top-1 is <b>12.5%</b>.</p><figcaption>By epoch.</figcaption>",
    "clone/_report/tiny/index_files/1.svg": '<use href="#m0123456789" x="76.5" y="84.8"/>',
    "results/variables.yml": "top1: 12.5 %",
    "results/tables/accuracy.csv": "network,top-1\nA,12.5",
    "results/tables/accuracy.tex": "A & 12.5",
    "results/figures/accuracy.svg": '<path d="M 12.5 0"/>',
    "results/runs/2d-s0/history.csv": "epoch,val_top1,clips_per_s,waiting,memory_gb,seconds\n1,12.5,9,9,9,9",
}


def planted(base):
    for name, text in PLANTED.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return World(base)


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_stale_missing_or_left_over_is_reported(tmp_path, name):
    a, b = (planted(tmp_path / x) for x in "ab")
    assert not differences(a.made(), b.made())
    path = a.base / name
    path.write_text(re.sub("12|76", "13", path.read_text()))
    (told,) = differences(a.made(), b.made())
    assert path.name in told and "-" in told and "+" in told
    path.unlink()
    (told,) = differences(a.made(), b.made())
    assert told.endswith(f"{path.name}: missing")
    (told,) = differences(b.made(), a.made())
    assert told.endswith(f"{path.name}: left over")


def test_files_of_the_users_own_are_not_compared(tmp_path):
    world = planted(tmp_path)
    before = world.made()
    own_files(world, ["tables"])
    assert world.made() == before


@pytest.mark.parametrize(
    "a, b, alike",
    [
        ("/x/data moved/1.webm", "/x/data/1.webm", True),
        ("/x/data/1.webm", "/x/data/2.webm", False),
        ("top-1 12.5%, 96 clips/s", "top-1 12.5%, 97 clips/s", False),
        (
            "12%, 96 clips/s, 1% of the time waiting for clips, 0.7 GB at most",
            "12%, 97 clips/s, 2% of the time waiting for clips, 0.8 GB at most",
            True,
        ),
        (
            "12%, 96 clips/s, 1% of the time waiting for clips, 0.7 GB at most",
            "13%, 96 clips/s, 1% of the time waiting for clips, 0.7 GB at most",
            False,
        ),
        ('<th id="T_0a1b2_level0_row1">', '<th id="T_0a1b3_level0_row1">', True),
        ('<th id="T_0a1b2_level0_row1">', '<th id="T_0a1b2_level0_row2">', False),
        ('"url(#p0123456789)"', '"url(#p0123456780)"', True),
        ('id="image0123456789" x="7.2"', 'id="image0123456780" x="7.3"', False),
        ("m0123456789", "m0123456780", False),
        ("0.1 min", "0.2 min", False),
    ],
)
def test_masks_hide_no_result(a, b, alike):
    assert (masked(a, "/x") == masked(b, "/x")) == alike


def test_weights_are_told_apart_and_titles_of_runs_are_not(tmp_path):
    a, config = tmp_path / "a.safetensors", tmp_path / "config.yaml"

    def found(value, title):
        save_file({"w": np.float32([value])}, a, {"title": title})
        config.write_text(f"title: {title}\n  and more\nlr: {value}\n")
        return as_text(a), as_text(config)

    first = found(1, "A")
    assert found(1, "Another") == first
    assert all(x != y for x, y in zip(found(2, "A"), first))


def test_what_is_trained_and_executed_again_is_told(tmp_path):
    world = planted(tmp_path)
    weights, book = (
        world.run("2d-s0") / name for name in ("weights.safetensors", "gradcam_run.ipynb")
    )
    for path in (weights, book):
        path.write_text(json.dumps(dict(metadata=dict(papermill=dict(start_time="1")))))
    before = world.stamps()
    assert not world.newer(before)
    os.utime(weights, ns=(1, 1))
    book.write_text(book.read_text() + " ")
    world.done = world.newer(before)
    assert world.trained == {"2d-s0"} and not world.executed, "a notebook whose words changed"
    book.write_text(book.read_text().replace('"1"', '"2"'))
    world.done = world.newer(before)
    assert world.executed == {"gradcam 2d-s0"}


def test_every_change_of_code_settings_or_data_finds_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "reproduce", lambda world: "")
    drawn = make_world(tmp_path / "drawn", 2, 2, size=32, workers=1)
    world = new_world(tmp_path / "study", drawn)
    world.results.mkdir()
    (world.results / "audit.json").write_text("{}")
    for change in CHANGES:
        if change.apply in (own_files, from_nothing) or not (change.anew or change.shown):
            continue
        if change.apply in (older_weights, swapped_weights, experiment_put_back):
            continue  # which tamper with results as well, or end as they began
        before = sources_of(world)
        change.apply(world)
        changed = sources_of(world) != before
        assert changed, change.name
        load_study(str(world.study))
    for path in world.clone.glob("ssv2_report/**/*.py"):
        ast.parse(path.read_text(encoding="utf-8"))


def sources_of(world):
    "All files of a world by place."
    return {path: path.read_bytes() for path in world.base.rglob("*") if path.is_file()}


# --- the campaign


@pytest.mark.slow
def test_control(campaign):
    "Two studies from nothing, without any change, are equal but for what is masked."
    fresh = campaign.world.copy(campaign.base / "control")
    fresh.reproduce()
    print(f"control: {campaign.world.seconds:.0f} and {fresh.seconds:.0f} s from nothing")
    problems = differences(fresh.made(), campaign.wanted)
    assert not problems, "\n".join(problems)
    steps = {name.split()[0] for name in fresh.executed}
    assert fresh.trained == every(fresh) and steps == ALL - {"validation"}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_campaign(campaign, change):
    "That a changed setting gives what a study from nothing gives is asked of all jobs in test_changes.py."
    problems = campaign.put_to_the_test(change)
    if problems:
        more = f"and {len(problems) - 30} more" if len(problems) > 30 else ""
        pytest.fail("\n".join([change.name, *problems[:30], more]), pytrace=False)


def test_older_results_and_new_words_become_those_of_a_study_from_nothing(tmp_path):
    "The real networks, notebooks and pages, which are made twice in no faster test."
    campaign = Campaign(tmp_path, Quick)
    before = campaign.wanted
    assert campaign.put_to_the_test(SAMPLE) == []
    changed = {name for name, text in campaign.wanted.items() if text != before[name]}
    assert changed == {*SAMPLE.shown}
