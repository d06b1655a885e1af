"""Whatever is changed, and whenever that is interrupted: the results are those of a study from nothing."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import test_digests as toy
import yaml
from test_digests import CHANGES, DOWN, bring_up_to_date, finished, of, whole  # noqa: F401

from ssv2_report.demo.world import make_world
from ssv2_report.jobs import records
from ssv2_report.jobs.records import (
    files_of,
    run_if_stale,
    set_flags,
    stale_jobs,
)
from ssv2_report.jobs.steps import jobs_of
from ssv2_report.study.experiments import Hypothesis, load_study

LOOKED = of("sources") | of("gradcam") | of("reliance")
ALL = of("train") | LOOKED
RUN_STEPS = ("train", "sources", "gradcam", "reliance")
MULTI = {f"{s}-{x}-s0" for s in RUN_STEPS for x in ("2d-multi", "3d-inflated")}


def first(study, pattern="20bn*/*.webm"):
    return next(Path(study.data.root).glob(pattern))


def records_of(study, split="train"):
    path = Path(study.data.root) / "labels" / f"{split}.json"
    return path, json.loads(path.read_text())


# --- what decides nothing


def touch_everything(study, results):
    for path in [*Path(study.data.root).rglob("*.*"), *results.rglob("*")]:
        path.touch()


def move_the_data(study, results):
    study.data.root = str(shutil.move(study.data.root, results.parent / "moved"))


def copy_the_data(study, results):
    study.data.root = str(shutil.copytree(study.data.root, results.parent / "copied"))
    shutil.rmtree(results.parent / "data")


def link_the_data(study, results):
    (results.parent / "link").symlink_to(study.data.root)
    study.data.root = str(results.parent / "link")


def name_the_boxes(study, results):
    study.data.boxes = str(Path(study.data.root) / "boxes")


def order_keys(study, results):
    path = results.parent / "study.yaml"
    content = study.model_dump(exclude={"name"})
    content["experiments"] = {
        k: dict(reversed(e.items())) for k, e in content["experiments"].items()
    }
    path.write_text(yaml.safe_dump(dict(reversed(content.items())), sort_keys=False))
    again = load_study(str(path))
    again.name = study.name
    study.__dict__.update(again.__dict__)


def add_a_note(study, results):
    (Path(study.data.root) / "README.txt").write_text("mine")
    (results / "notes.txt").write_text("mine")


def leave_a_former_run(study, results):
    shutil.copytree(results / "runs" / "2d-multi-s0", results / "runs" / "former-s0")


def lose_the_flags(study, results):
    shutil.rmtree(results / "flags", ignore_errors=True)


def damage_the_flags(study, results):
    for job in jobs_of(study):
        path = Path(records.flag(results, job))
        path.parent.mkdir(exist_ok=True)
        path.write_text("?")


# --- settings


def change_epochs(study, results):
    for exp in study.experiments.values():
        exp.epochs += 1


def change_seed(study, results):
    study.seeds = [1]


def add_a_seed(study, results):
    study.seeds = [0, 1]


def change_init(study, results):
    study.experiments["3d-scratch"].init = "2d-multi"


def change_experiments_title(study, results):
    study.experiments["2d-multi"].title = "Another"


def change_classes(study, results):
    labels = Path(study.data.root) / "labels" / "labels.json"
    study.data.classes = list(json.loads(labels.read_text()))[:4]


def change_per_class(study, results):
    study.data.per_class = 1


def change_max_excluded(study, results):
    study.data.max_excluded = 3


def change_source(study, results):
    study.cam.source = "layer1:gradcam"


def change_fewer_cases(study, results):
    study.cam.cases = 2


def change_choice(study, results):
    study.cam.choice_per_class = 2


def change_maps(study, results):
    study.cam.per_class = 1


def reword_a_hypothesis(study, results):
    next(iter(study.hypotheses.values())).says += ", we think"


def remove_a_hypothesis(study, results):
    study.hypotheses.pop(next(iter(study.hypotheses)))


def order_hypotheses(study, results):
    study.hypotheses = dict(reversed(study.hypotheses.items()))


def add_an_experiment(study, results):
    study.experiments["more"] = study.experiments["2d-multi"].model_copy(update=dict(lr=0.02))
    study.hypotheses["more"] = Hypothesis(says="x", measure="right", of="more", over="2d-multi")


def remove_an_experiment(study, results):
    study.experiments.pop("2d-single")


def rename_an_experiment(study, results):
    study.experiments = {{"2d-single": "c++"}.get(k, k): e for k, e in study.experiments.items()}


def order_experiments(study, results):
    study.experiments = dict(reversed(study.experiments.items()))


def second_world(study, results):
    root = make_world(results.parent / "second", 1, 1, size=64, distractor=True)
    text = (records.project_root() / "experiments" / "smoke.yaml").read_text()
    content = yaml.safe_load(text) | dict(hypotheses={})
    content["data"] = dict(root=str(root), size=32)
    content["experiments"] = {"2d-multi": content["experiments"]["2d-multi"]}
    (results.parent / "second.yaml").write_text(yaml.safe_dump(content))
    study.second_world = str(results.parent / "second.yaml")


def remove_the_second_world(study, results):
    "Which had its own seeds' maps compared as well."
    study.seeds = [0, 1]
    second_world(study, results)
    bring_up_to_date(study, results)
    study.second_world = None


# --- data


def replace_a_clip(study, results):
    clips = sorted(Path(study.data.root).glob("20bn*/*.webm"))
    id = records_of(study)[1][0]["id"]
    target = next(p for p in clips if p.stem == str(id))
    other = next(p for p in clips if p.read_bytes() != target.read_bytes())
    target.write_bytes(other.read_bytes())


def replace_a_test_clip(study, results):
    "Which takes no part in anything but the audit and what is told of the data."
    id = records_of(study, "test")[1][0]["id"]
    first(study, f"20bn*/{id}.webm").write_bytes(first(study).read_bytes())


def delete_a_clip(study, results):
    study.data.max_excluded = 1
    id = records_of(study, "validation")[1][0]["id"]
    first(study, f"20bn*/{id}.webm").unlink()


def exchange_two_clips(study, results):
    a, b = (first(study, f"20bn*/{r['id']}.webm") for r in records_of(study)[1][:2])
    content = a.read_bytes(), b.read_bytes()
    assert content[0] != content[1]
    a.write_bytes(content[1]), b.write_bytes(content[0])


def older_time(study, results):
    "A clip restored from a backup, with its own old time."
    replace_a_clip(study, results)
    for path in Path(study.data.root).rglob("*.webm"):
        os.utime(path, (1, 1))


def add_a_record(study, results):
    path, records = records_of(study)
    new = dict(records[0], id="99999")
    path.write_text(json.dumps([*records, new]))
    clip = first(study, f"20bn*/{records[1]['id']}.webm")
    shutil.copy(clip, clip.with_name("99999.webm"))


def reword_a_label(study, results):
    path, records = records_of(study, "validation")
    records[0]["label"] = "another text"
    path.write_text(json.dumps(records))


def order_the_records(study, results):
    path, records = records_of(study)
    path.write_text(json.dumps(records[::-1]))


def remove_the_boxes(study, results):
    shutil.rmtree(Path(study.data.root) / "boxes")


# --- results


def lose_a_map(study, results):
    next((results / "runs" / "3d-scratch-s0" / "maps").iterdir()).unlink()


def lose_a_figure(study, results):
    (results / "figures" / "case1.svg").unlink()


def lose_the_chapter_on_data(study, results):
    (results / "00_data.ipynb").unlink()


def lose_the_cache(study, results):
    shutil.rmtree(results / "cache")


def lose_all_runs(study, results):
    shutil.rmtree(results / "runs")


def lose_a_record(study, results):
    (results / "records" / "train-2d-multi-s0.json").write_text("{")


def cut_weights(study, results):
    path = results / "runs" / "2d-multi-s0" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


DATA = {"audit", "cache", "data_chapter"} | ALL | DOWN
SEEN = {"audit", "cache", "data_chapter"} | DOWN  # no network sees a difference
MORE = [
    *((f, set()) for f in (touch_everything, move_the_data, copy_the_data, link_the_data)),
    *((f, set()) for f in (name_the_boxes, order_keys, add_a_note, leave_a_former_run)),
    *((f, set()) for f in (lose_the_flags, damage_the_flags)),
    (change_epochs, ALL | DOWN),
    (change_seed, {x.replace("-s0", "-s1") for x in ALL} | DOWN),
    (add_a_seed, {x.replace("-s0", "-s1") for x in ALL} | {"validation"} | DOWN),
    (
        change_init,
        {f"{step}-3d-scratch-s0" for step in RUN_STEPS} | DOWN,
    ),
    (change_experiments_title, DOWN),
    (change_classes, {"cache"} | ALL | DOWN),
    (change_per_class, {"cache"} | DOWN),
    (change_max_excluded, {"cache"} | DOWN),
    *((f, DOWN) for f in (change_source, change_fewer_cases)),
    (change_choice, of("sources") | DOWN),
    (change_maps, of("gradcam") | of("reliance") | DOWN),
    *((f, DOWN) for f in (reword_a_hypothesis, remove_a_hypothesis, order_hypotheses)),
    (
        add_an_experiment,
        {f"{step}-more-s0" for step in RUN_STEPS} | DOWN,
    ),
    (remove_an_experiment, DOWN),
    (
        rename_an_experiment,
        {f"{step}-c++-s0" for step in RUN_STEPS} | DOWN,
    ),
    (order_experiments, DOWN),
    (second_world, None),
    (remove_the_second_world, {"validation"} | DOWN),
    *((f, DATA) for f in (replace_a_clip, delete_a_clip, exchange_two_clips, older_time)),
    *((f, DATA) for f in (add_a_record, order_the_records)),
    *((f, SEEN) for f in (replace_a_test_clip, reword_a_label)),
    (
        remove_the_boxes,
        {"audit", "cache", "data_chapter"} | LOOKED | DOWN,
    ),
    (lose_a_map, of("gradcam", "3d-scratch")),
    (lose_a_figure, {"analysis"}),
    (lose_the_chapter_on_data, {"data_chapter"}),
    (lose_the_cache, {"cache"}),
    (lose_all_runs, ALL),
    (lose_a_record, of("train", "2d-multi")),
    (cut_weights, of("train", "2d-multi")),
]
EVERY = [*CHANGES, *MORE]


def results_of(study, results):
    "All that the jobs of a study leave, as bytes, and what their records say of it."
    found = {}
    for job in jobs_of(study):
        found[job.name] = records.record(results, job)["results"]
        for path in files_of(study, results, job):
            found[str(path.relative_to(results.parent))] = path.read_bytes()
    audited = json.loads(found.pop("results/audit.json"))
    return found | dict(audited, root="")  # the folder is another one


def interrupt(study, results, rng):
    "Bring up to date until a job is half done, and leave it there."
    todo = [job for job in stale_jobs(study, results) if job.step not in ("audit", "cache")]
    stop = rng.choice(todo) if todo else None
    for job in set_flags(study, results):
        try:
            with run_if_stale(study, results, job) as there_is:
                if job == stop:
                    for path in toy.written(study, results, job)[::2]:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text("half")
                    raise KeyboardInterrupt
                if there_is:
                    toy.do(study, results, job)
        except KeyboardInterrupt:
            return


WAYS = [(change, redone, way) for change, redone in EVERY for way in ("whole", "interrupted")]


CASES = [
    pytest.param(
        *(change, redone, way),
        id=f"{change.__name__}-{way}",
        marks=[pytest.mark.slow] * (k % 13 > 0),
    )
    for k, (change, redone, way) in enumerate(WAYS)
]


def test_there_are_many_kinds_of_change():
    assert len({change for change, _ in EVERY}) == len(EVERY) >= 50


@pytest.mark.parametrize("change, redone, way", CASES)
def test_a_changed_study_is_as_one_from_nothing(whole, change, redone, way):  # noqa: F811
    study, results = whole
    change(study, results)
    if way == "interrupted":
        if study.second_world:
            bring_up_to_date(load_study(study.second_world), results / "distractor", inner=True)
        interrupt(study, results, random.Random(change.__name__))
        bring_up_to_date(study, results)
    else:
        done = bring_up_to_date(study, results)
        assert redone is None or set(done) == redone
        assert len(done) == len(set(done)), "nothing is done twice"
    assert bring_up_to_date(study, results) == []
    bring_up_to_date(study, results.parent / "anew" / "results")
    anew = results_of(study, results.parent / "anew" / "results")
    found = results_of(study, results)
    assert found.keys() == anew.keys()
    assert not [k for k in found if found[k] != anew[k]]
    assert not [p for p in results.rglob(".*") if re.match(r"\.\d+\.", p.name)]
