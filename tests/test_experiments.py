"""A study file is read completely or refused in one sentence."""

import json
import re
import subprocess
import sys
import time

import pytest
import torch
import torchvision
import yaml
from books import run_as_job

from ssv2_report import cli
from ssv2_report.data.clips import REVERSAL_PAIRS, STATIC, wanted_classes
from ssv2_report.jobs.records import settings_of
from ssv2_report.jobs.steps import Job
from ssv2_report.models.net2d import create_2d
from ssv2_report.study.experiments import (
    Experiment,
    experiment,
    load_study,
    narrowed_study,
    options_of,
    overrides_of,
    project_root,
    refuse_unknown,
    sub_study,
    worlds_of,
    write_studies,
    write_study,
)
from ssv2_report.study.runs import build_model, check_study, normalisation_of, save_run

GOOD = dict(
    title="t",
    data=dict(root="d"),
    seeds=[0],
    settings=dict(epochs=3),
    experiments={
        "flat": dict(title="a", model="resnet18"),
        "deep": dict(title="b", model="r3d_18", init="flat", epochs=7),
    },
)


def write(tmp_path, value):
    path = tmp_path / "study.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False))
    return path


def changed(**kw):
    return {**GOOD, **kw}


def only(**kw):
    "A study of one experiment."
    return changed(experiments={"a": dict(title="a", **kw)})


def test_settings_are_defaults_of_every_experiment(tmp_path):
    s = load_study(write(tmp_path, GOOD))
    assert s.name == "study" and s.runs == [("flat", 0), ("deep", 0)]
    assert s.experiments["flat"].epochs == 3 and s.experiments["deep"].epochs == 7
    assert s.experiments["deep"].is_3d and not s.experiments["flat"].is_3d


@pytest.mark.parametrize("name", [p.stem for p in (project_root() / "experiments").glob("*.yaml")])
def test_the_projects_studies_are_valid(name):
    assert load_study(name).experiments


def test_the_small_study_has_the_87_classes_of_mini_ssv2_and_judges_no_other():
    study = load_study("ssv2-mini")
    classes = wanted_classes(study.data.classes)
    assert len(classes) == len(set(classes)) == 87
    named = [c for h in study.hypotheses.values() if isinstance(h.clips, list) for c in h.clips]
    assert named and set(named) <= set(classes)
    pairs = [pair for pair in REVERSAL_PAIRS if set(pair) <= set(classes)]
    assert len(pairs) == 6 and len(set(STATIC) & set(classes)) == 7


@pytest.mark.parametrize(
    "value, says",
    [
        (changed(sedes=[0]), "'sedes'; did you mean 'seeds'"),
        (changed(settings=dict(epoch=3)), "did you mean 'epochs'"),
        (changed(data=dict(root="d", demo=dict(sized=3))), "did you mean 'size'"),
        (changed(seeds=[]), "seeds"),
        (changed(data=dict(root="d", classes=[])), "data.classes names no class"),
        (
            changed(experiments={"a": dict(title="a", model="resnet18", init="b")}),
            "starts from 'b', which is not there",
        ),
        (
            changed(
                experiments={
                    "a": dict(title="a", model="resnet18", init="b"),
                    "b": dict(title="b", model="resnet18", init="a"),
                }
            ),
            "in a circle",
        ),
        (changed(experiments=["a"]), "experiments must be a mapping"),
        (changed(settings=dict(lr=-1)), "lr"),
        (changed(settings=dict(lr=float("inf"))), "lr"),
        (changed(seeds=[-1]), "seeds"),
        (changed(seeds=[1, 1]), "seeds has 1 twice"),
        ("title: a\ntitle: b", "the key 'title' is there twice"),
        (changed(settings=dict(gpus_per_run=3)), "16 clips does not divide into 3 GPUs"),
        (changed(settings=dict(gpus_per_run=0)), "gpus_per_run"),
        (changed(settings=dict(gpus_per_run=4, accumulate=8)), "4 GPUs (gpus_per_run) x 8 parts"),
        (changed(cam=dict(sources=["layer2:gradcan"])), "did you mean 'layer2:gradcam'"),
        (changed(cam=dict(sources=["layr2:gradcam"])), "did you mean 'layer2:gradcam'"),
        (changed(cam=dict(sources=["occlusion"])), "no source of maps 'occlusion'"),
        (changed(cam=dict(source="occlusion")), "no source of maps 'occlusion'"),
        (changed(cam=dict(sources=[])), "cam.sources names no source"),
        (changed(cam=dict(source="layer2:layercan")), "did you mean 'layer2:layercam'"),
        (changed(cam=dict(source="layer2:xgradcam")), "cam.source: there is no source"),
        (
            changed(cam=dict(source="layer2:gradcam", sources=["layer3:gradcam"])),
            "did you mean 'layer3:gradcam'",
        ),
        (
            changed(settings=dict(stages=2), cam=dict(source="layer4:gradcam")),
            "did you mean 'layer2:gradcam'",
        ),
        (
            changed(hypotheses=dict(h=dict(says="x", measure="ratio_bth", of="flat", over="deep"))),
            "no measure 'ratio_bth'; did you mean 'ratio_both'",
        ),
        *[
            (
                changed(experiments={name: dict(title="a", model="resnet18")}),
                "an experiment cannot be named",
            )
            for name in (
                "a b",
                "a/b",
                "..",
                ".a",
                "-a",
                "a;b",
                "$(touch x)",
                "a'b",
                "a|b",
                "{a}",
                "a\n",
                "",
            )
        ],
        (changed(name="x"), "file's own name"),
        ("a: [", "not valid YAML"),
        ("- 1", "a study is a mapping"),
        ("", "a study is a mapping"),
    ],
)
def test_mistakes_are_named_in_one_sentence(tmp_path, value, says):
    with pytest.raises(ValueError) as e:
        load_study(write(tmp_path, value))
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "value, says",
    [
        (changed(settings=dict(opt="adamv")), "no optimiser 'adamv'; did you mean 'adam"),
        (changed(settings=dict(opt="fusedadam")), "no optimiser 'fusedadam'; did you mean"),
        (only(model="resnt18"), "'resnt18' is no ResNet"),
        (changed(settings=dict(output_stride=12)), "output_stride is 12; it must be 8, 16 or 32"),
        (only(model="r3d_18", output_stride=8), "r3d_18 has no output_stride"),
        (only(model="resnet81"), "did you mean 'resnet18'"),
        (only(model="resnet18.a1_in2k"), "did you mean 'resnet18.a1_in1k'"),
        (only(model="i3d:resnet81"), "did you mean 'i3d:resnet18'"),
        (only(model="r2plus1d_81"), "did you mean 'r2plus1d_18'"),
        (only(model="vit_small_patch16_224"), "'vit_small_patch16_224' is no ResNet"),
        (only(model="swin_tiny_patch4_window7_224"), "is no ResNet of timm's"),
        (
            only(model="resnet18", batch_size=1, n_frames=1, size=16),
            "on parts of 1 clips of 1 frames of 16 pixels (Expected more than 1 value per channel",
        ),
    ],
)
def test_names_of_networks_and_optimisers_are_judged_where_networks_are_built(
    tmp_path, value, says
):
    study = load_study(write(tmp_path, value))
    with pytest.raises(ValueError) as e:
        check_study(study)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_name_may_have_parentheses(tmp_path):
    names = ["r(2+1)d", "R3D-18", "i3d_r50.v2"]
    assert (
        list(
            load_study(
                write(
                    tmp_path,
                    changed(experiments={n: dict(title="a", model="resnet18") for n in names}),
                )
            ).experiments
        )
        == names
    )


def test_paths_are_relative_to_the_study_and_absolute_once_read(tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "studies"
    for name in ("boxes", "mine/near", "mine/studies"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "boxes" / "bounding_box_part1.json").write_text("{}")
    (folder / "some classes.txt").write_text("Opening something\n")
    (folder.parent / "w.pth").write_bytes(b"w")
    monkeypatch.setenv("HOME", str(tmp_path))
    value = changed(data=dict(root="../near", boxes="~/boxes", classes="some classes.txt"))
    value["experiments"] = {"flat": dict(title="a", model="resnet18", init="../w.pth")}
    path = write(folder, value)
    study = load_study(path)
    monkeypatch.chdir(tmp_path)  # outside the project's clone, and by a relative path
    assert study == load_study("mine/studies/study.yaml")
    assert study.data.root == str(folder.parent / "near")
    assert study.data.boxes == str(tmp_path / "boxes")
    assert study.data.classes == str(folder / "some classes.txt")
    assert study.experiments["flat"].init == str(folder.parent / "w.pth")
    data = load_study(write(folder, changed(data=dict(root="~/x", classes="reversal")))).data
    assert data.root == str(tmp_path / "x") and data.classes == "reversal"


def test_the_projects_studies_keep_their_data_in_data(tmp_path, monkeypatch):
    found = {
        n: load_study(n).data.root for n in ("demo", "smoke", "experiments/demo-distractor.yaml")
    }
    names = dict(zip(found, ("demo", "smoke", "demo-distractor")))
    assert found == {n: str(project_root() / "data" / names[n]) for n in found}
    assert load_study("demo.yaml") == load_study("demo")


def test_a_second_world_may_be_a_file_and_is_checked_too(tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(GOOD))
    path = write(tmp_path, changed(second_world="other.yaml"))
    assert load_study(path).second_world == str(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(changed(settings=dict(epoch=3))))
    with pytest.raises(ValueError, match="other.yaml: .*did you mean 'epochs'"):
        load_study(path)
    with pytest.raises(FileNotFoundError, match="no study '.*absent.yaml'"):
        load_study(write(tmp_path, changed(second_world="absent.yaml")))


def test_names_are_what_is_written(tmp_path):
    "YAML 1.1 takes these for numbers, times, dates and truth."
    names = ["007", "1_2", "no", "2024-01-01", "1e3", "0x10", "12"]
    text = "title: 3\ndata: {root: 5}\nseeds: [0, 1]\nsettings: {mixed_precision: no, lr: 1e-3}\n"
    text += "experiments:\n" + "".join(f"  {n}: {{title: {n}, model: resnet18}}\n" for n in names)
    text += "hypotheses:\n  1_2: {says: x, measure: right, of: 007, over: 1_2}\n"
    (path := tmp_path / "007.yaml").write_text(text)
    study = load_study(path)
    assert study.name == "007" and list(study.experiments) == names
    assert [e.title for e in study.experiments.values()] == names
    assert study.experiments["007"].lr == 1e-3 and study.seeds == [0, 1]
    assert study.hypotheses["1_2"].of == "007"


@pytest.mark.parametrize(
    "data, says",
    [
        (dict(boxes="boxs"), "data.boxes: There are no boxes at .*boxs"),
        (dict(boxes="/"), "data.boxes: There are no boxes"),
        (
            dict(classes="reversals"),
            "data.classes: .*reversals is not there; .*reversal, temporal18",
        ),
        (dict(classes="~/mine.txt"), "data.classes: .*mine.txt is not there"),
    ],
)
def test_boxes_and_classes_that_are_declared_must_be_there(tmp_path, data, says):
    with pytest.raises(FileNotFoundError, match=says):
        load_study(write(tmp_path, changed(data=dict(root="d", **data))))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 10)}]\n" for k in range(7)
)
MERGES = "a0: &a0 {x: y}\n" + "".join(
    f"a{k + 1}: &a{k + 1} {{<<: [{', '.join([f'*a{k}'] * 10)}]}}\n" for k in range(7)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{k + 1}: &a{k + 1} [*a{k}]\n" for k in range(900))
HUGE = {
    "a bomb of aliases": BOMB,
    "a bomb of merges": MERGES,
    "a chain of aliases": CHAIN,
    "itself": "a: &a [*a]\n",
    "lists": f"a: {'[' * 900}{']' * 900}\n",
    "mappings": f"a: {'{a: ' * 900}1{'}' * 900}\n",
    "many keys": "a: {" + ", ".join(f"k{k}: 1" for k in range(15_000)) + "}\n",
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_file_that_grows_without_end_is_refused_at_once(tmp_path, kind):
    path, began = write(tmp_path, HUGE[kind] + yaml.safe_dump(GOOD)), time.process_time()
    with pytest.raises(ValueError, match="not valid YAML: .*32 levels") as e:
        load_study(path)
    assert time.process_time() - began < 5 and len(str(e.value)) < 400
    with pytest.raises(ValueError):
        overrides_of(HUGE[kind])


def test_aliases_and_merges_of_a_study_are_read(tmp_path):
    text = """title: t
data: {root: d}
seeds: [0]
experiments:
  a: &a {title: a, model: resnet18, epochs: 3}
  b: {<<: *a, title: b}
"""
    assert load_study(write(tmp_path, text)).experiments["b"].epochs == 3


@pytest.mark.parametrize(
    "names, says",
    [
        (["deep", "Deep"], "'deep' and 'Deep' differ in capitals alone"),
        (["a" * 300], "has 300 letters, and files are named after it"),
    ],
)
def test_names_that_no_folder_can_have_are_refused(tmp_path, names, says):
    value = changed(experiments={n: dict(title="t", model="resnet18") for n in names})
    with pytest.raises(ValueError, match=says):
        load_study(write(tmp_path, value))
    (path := tmp_path / f"{'s' * 180}.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises(ValueError, match="has 180 letters"):
        load_study(path)


def test_names_that_a_study_may_use_are_those_of_their_rooms():
    import timm
    from timm.optim import list_optimizers

    from ssv2_report.analysis.tables import CLIP_MEASURES, RELIANCE
    from ssv2_report.data.clips import GROUPS
    from ssv2_report.gradcam import maps, sources
    from ssv2_report.models import net3d
    from ssv2_report.study import experiments as e
    from ssv2_report.study import runs

    assert set(e.CLASS_GROUPS) == set(GROUPS)
    assert e.VIDEO_MODELS == net3d.KINETICS
    assert e.METHODS == tuple(maps.CAM_METHODS) and e.SEARCHED == sources.SEARCHED
    outcomes = {"right", "pair_right", "learning", "similarity"}
    assert set(e.MEASURES) == {*outcomes, *CLIP_MEASURES, *RELIANCE}
    names = {n for n in runs.resnets() if "." not in n}
    assert names == set(timm.list_models(module="resnet"))
    tags = {n for n in timm.list_pretrained() if n.split(".")[0] in names}
    assert tags <= set(runs.resnets())
    assert set(runs.optimisers()) <= set(list_optimizers())
    assert {"adamw", "sgd", "momentum", "lamb", "lion"} <= set(runs.optimisers())


def test_reading_a_study_imports_no_torch():
    code = "import sys; from ssv2_report.study.experiments import load_study; load_study('demo')"
    code += "; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=project_root()).returncode == 0


def test_unknown_names_offer_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'demo'"):
        load_study("dem")
    with pytest.raises(ValueError, match="did you mean 'flat'"):
        experiment(load_study(write(tmp_path, GOOD)), "falt")
    with pytest.raises(FileNotFoundError, match="not inside the project's clone"):
        project_root(tmp_path)


def test_a_hypothesis_compares_experiments_of_its_study(tmp_path):
    text = (project_root() / "experiments" / "smoke.yaml").read_text()
    (path := tmp_path / "smoke.yaml").write_text(text.replace("of: 3d-scratch", "of: 3d-scrach", 1))
    with pytest.raises(ValueError, match="'order' compares '3d-scrach'.*did you mean '3d-scratch'"):
        load_study(str(path))
    path.write_text(text.replace("    to: 3d-inflated\n", ""))
    with pytest.raises(ValueError, match="'closer'.*'similarity'"):
        load_study(str(path))


def test_a_hypothesis_may_name_its_margin_and_its_classes(tmp_path):
    h = dict(says="x", measure="right", of="deep", over="flat")
    read = lambda **kw: load_study(
        str(write(tmp_path, changed(hypotheses=dict(h=h | kw))))
    ).hypotheses["h"]
    assert (
        read(at_least=0.05).margin == 0.05
        and read(within=0.1).margin == 0.1
        and read().margin is None
    )
    assert (
        read(clips=["Folding something"]).clips == ["Folding something"]
        and read(clips="static").clips == "static"
    )
    for wrong, says in (
        (dict(within=0.1, at_least=0.1), "both 'within' and 'at_least'"),
        (dict(clips=[]), "names no class"),
        (dict(at_least=0), "at_least"),
        (dict(at_leats=1), "did you mean 'at_least'"),
        (dict(clips="statik"), "clips"),
    ):
        with pytest.raises(ValueError, match=says) as e:
            read(**wrong)
        assert "\n" not in str(e.value)


def test_a_part_of_a_study_is_a_study_that_says_what_it_leaves_out(tmp_path):
    whole = load_study("ssv2")
    part = sub_study(whole, ["2d-multi", "3d-*"], [0])
    names = ["2d-multi", "3d-scratch", "3d-scratch-long", "3d-inflated", "3d-imagenet"]
    assert part.runs == [(name, 0) for name in [*names, "3d-kinetics"]]
    assert all(part.experiments[n] == whole.experiments[n] for n in part.experiments)
    assert {"order", "inflation"} <= set(part.hypotheses) and "published" not in part.hypotheses
    said = str(part.left_out)
    assert "i3d-scratch" in said and "the seeds 1, 2" in said and "hypotheses published" in said
    assert part.title.endswith("(a part of the study)")
    path = write_study(part, tmp_path)
    assert load_study(path) == part and path.stem == "ssv2" == part.name


def test_a_part_has_what_its_networks_start_from_and_maps_of_as_many_frames():
    whole = load_study("demo-full")
    assert list(sub_study(whole, ["3d-inflated"]).experiments) == ["2d-multi", "3d-inflated"]
    single = sub_study(whole, ["2d-single"], [1])
    assert single.runs == [("2d-single", 1)] and single.frames == whole.frames == 8
    assert not single.hypotheses
    assert sub_study(whole) == sub_study(whole, ["*"], [0, 1, 2]) == whole


@pytest.mark.parametrize(
    "asked, says",
    [
        (dict(only=["3d-scrach"]), "no experiment of demo '3d-scrach'; did you mean '3d-scratch'"),
        (dict(only=["2d-multi", "4d-*"]), "no experiment of demo '4d-"),
        (dict(seeds=[7]), "no seed of demo '7'; choose from 0."),
        (dict(seeds=["x"]), "no seed of demo 'x'; choose from 0."),
        (dict(overrides=["lrr=1"]), "no setting 'lrr'; did you mean 'lr'"),
        (dict(overrides={"epoch": 1}), "no setting 'epoch'; did you mean 'epochs'"),
        (dict(overrides="{data.sizes: 1}"), "did you mean 'data.size'"),
        (dict(overrides=["cam.perclass=1"]), "did you mean 'cam.per_class'"),
        (dict(overrides=["2d-multi.epoch=1"]), "did you mean '2d-multi.epochs'"),
        (dict(overrides=["2d-mutli.epochs=1"]), "did you mean '2d-multi.epochs'"),
        (dict(overrides={7: 1}), "no setting 7; choose from model"),
        (dict(overrides=["lr"]), "give key=value, such as lr=0.02"),
        (dict(overrides="{lr: 3"), "is not valid YAML"),
        (dict(overrides=["lr=[3"]), "is not valid YAML"),
        (dict(overrides="lr"), "does not say which settings to change"),
        (dict(overrides=["lr=fast"]), "lr: input should be a valid number"),
        (dict(overrides=["gpus_per_run=3"]), "does not divide into 3 GPUs"),
    ],
)
def test_what_a_study_does_not_have_cannot_be_asked_for(asked, says):
    with pytest.raises(ValueError) as e:
        narrowed_study("demo", **asked)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_settings_are_changed_for_all_for_one_and_in_the_second_world(tmp_path):
    changes = ["lr=0.5", "2d-multi.lr=0.25", "2d-single.epochs=3", "data.size=48", "clip_grad=null"]
    study, second = narrowed_study("demo", seeds=[0], overrides=changes)
    assert {n: e.lr for n, e in study.experiments.items()} == {
        n: 0.25 if n == "2d-multi" else 0.5 for n in study.experiments
    }
    assert study.experiments["2d-single"].epochs == 3 and study.data.size == 48
    assert study.experiments["3d-scratch"].clip_grad is None
    assert second.experiments["2d-multi"].lr == 0.25 and second.data.size == 48
    path = write_studies([study, second], tmp_path)
    assert worlds_of(load_study(path))[1] == second
    assert load_study(path).asked.startswith("--seeds 0 --set lr=0.5 --set 2d-multi.lr=0.25")


def test_a_part_without_a_network_of_the_second_world_has_none(tmp_path):
    assert len(narrowed_study("demo", only=["2d-single"])) == 1
    assert len(narrowed_study("demo-full", seeds=[1])) == 1
    part, second = narrowed_study("demo", only=["2d-multi"], seeds=[0])
    assert list(second.experiments) == ["2d-multi", "2d-multi-flags"] and second.frames == 8
    assert load_study(write_studies(narrowed_study("demo", ["2d-single"]), tmp_path)).runs


PARAMETERS = 'study: str = "demo"  # a study\nseed = 0\nresults = (\n    ""\n)'


@pytest.mark.parametrize(
    "given, says",
    [
        ("sede = 1", "no parameter 'sede'; did you mean 'seed'"),
        ("lr = 0.02", "'lr' is a setting: give overrides"),
        ("seed = 1\nresult = 'x'", "no parameter 'result'; did you mean 'results'"),
        ("seed = 1\nresults = 'x'", None),
    ],
)
def test_papermill_gives_only_what_a_notebook_has(given, says):
    cells = ["", PARAMETERS, f"# Parameters\n{given}\n", "import torch"]
    refuse_unknown([*cells[:2], *cells[3:]])  # opened by hand
    if says is None:
        return refuse_unknown(cells)
    with pytest.raises(ValueError, match=says):
        refuse_unknown(cells)


def test_a_study_says_only_what_differs_from_its_base(tmp_path):
    text = (project_root() / "experiments" / "smoke.yaml").read_text()
    (tmp_path / "first.yaml").write_text(text)
    (tmp_path / "second.yaml").write_text("base: first\ntitle: another\nseeds: [3, 4]\n")
    first, second = (load_study(tmp_path / f"{n}.yaml") for n in ("first", "second"))
    assert (second.name, second.title, second.seeds) == ("second", "another", [3, 4])
    same = ("data", "experiments", "cam", "hypotheses")
    assert all(getattr(first, k) == getattr(second, k) for k in same)


@pytest.mark.parametrize(
    "base, why", [("nowhere", "is not there"), ("own", "builds on itself"), ("a/b", "is not there")]
)
def test_a_base_that_cannot_be_is_named(tmp_path, base, why):
    (path := tmp_path / "own.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ValueError, match=f"base: .*{base}.yaml {why}; name another study"):
        load_study(path)


def test_the_demo_in_full_is_the_demo_with_more_of_everything():
    demo, full = load_study("demo"), load_study("demo-full")
    assert full.experiments == demo.experiments and full.hypotheses == demo.hypotheses
    assert len(full.seeds) >= 3 and full.cam.references > demo.cam.references


# -- weights from elsewhere, and the normalisation that they know

KINETICS = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def known(study):
    return {name: normalisation_of(study, name) for name in study.experiments}


def experiments(**of):
    return changed(experiments={name: dict(title=name, **e) for name, e in of.items()})


def test_each_experiment_has_the_normalisation_that_its_weights_know(tmp_path):
    s = load_study(
        write(
            tmp_path,
            experiments(
                scratch=dict(model="test_resnet"),
                half=dict(model="test_resnet", init="imagenet"),
                deep=dict(model="i3d:test_resnet", init="half"),
                deeper=dict(model="i3d:test_resnet", init="deep"),
                flat=dict(model="resnet18", init="imagenet"),
                video=dict(model="r3d_18", init="kinetics"),
                from_flat=dict(model="r3d_18", init="imagenet"),
                from_scratch=dict(model="i3d:test_resnet", init="scratch"),
            ),
        )
    )
    none = (None, None)
    assert known(s) == dict(
        scratch=none,
        half=HALF,
        deep=HALF,
        deeper=HALF,
        flat=IMAGENET,
        video=KINETICS,
        from_flat=IMAGENET,
        from_scratch=none,
    )
    part = load_study(write_study(sub_study(s, ["deeper"]), tmp_path))
    assert known(part) == dict(half=HALF, deep=HALF, deeper=HALF)


def test_a_file_of_weights_knows_what_it_says_or_what_the_study_says_of_it(tmp_path):
    weights = torchvision.models.video.r3d_18(num_classes=400).state_dict()
    torch.save(weights, tmp_path / "video.pth")
    torch.save(create_2d("resnet18", 7).backbone.state_dict(), tmp_path / "flat.pth")
    exp = Experiment(title="t", model="test_resnet", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_run(build_model(exp, 4), exp, list("abcd"), tmp_path / "run.safetensors")
    of = dict(model="r3d_18")
    given = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    s = load_study(
        write(
            tmp_path,
            experiments(
                video=dict(of, init="video.pth"),
                flat=dict(of, init="flat.pth"),
                said=dict(of, init="flat.pth", **given),
                after=dict(of, init="said"),
                run=dict(model="i3d:test_resnet", init="run.safetensors"),
            ),
        )
    )
    own = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert known(s) == dict(
        video=KINETICS,
        flat=IMAGENET,
        said=own,
        after=own,
        run=own,
    )
    assert {e.init for e in s.experiments.values()} == {
        *(str(tmp_path / name) for name in ("video.pth", "flat.pth", "run.safetensors")),
        "said",
    }
    check_study(s)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(init="imagenet", mean=[0.4] * 3, std=[0.5] * 3), "'a' starts from weights that know"),
        (dict(init="b", mean=[0.4] * 3, std=[0.5] * 3), "'a' starts from weights that know"),
        (dict(init="run.safetensors", mean=[0.4] * 3, std=[0.5] * 3), "weights that know"),
        (dict(mean=[0.4] * 3), "'a': mean and std belong together"),
        (dict(mean=[0.4] * 3, std=[0.5, 0, 0.5]), "a.std.1: input should be greater than 0"),
        (dict(init="none.pth"), "'a': init: .*none.pth is not there"),
        (dict(inti="run.safetensors"), "unknown key .*did you mean 'init'"),
    ],
)
def test_a_start_that_contradicts_itself_is_refused(tmp_path, change, says):
    exp = Experiment(title="t", model="test_resnet")
    save_run(build_model(exp, 4), exp, list("abcd"), tmp_path / "run.safetensors")
    other = dict(model="test_resnet")
    study = experiments(b=other, a=dict(other, **change))
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e:
        check_study(load_study(write(tmp_path, study)))
    assert "\n" not in str(e.value)


def test_the_normalisation_that_imagenets_weights_know_may_be_written_down(tmp_path):
    mean, std = map(list, IMAGENET)
    study = experiments(
        flat=dict(model="resnet18"),
        deep=dict(model="r3d_18", init="flat", mean=mean, std=std),
        fetched=dict(model="resnet18", init="imagenet", mean=mean, std=std),
    )
    s = load_study(write(tmp_path, study))
    assert known(s) == dict(flat=(None, None), deep=(None, None), fetched=IMAGENET)


@pytest.mark.parametrize(
    "key, value", [("mean", KINETICS[0]), ("dropout", 0.5), ("head_lr", 5.0)], ids=str
)
def test_what_weights_know_and_the_head_decide_a_training(tmp_path, key, value):
    s = load_study(write(tmp_path, experiments(a=dict(model="test_resnet"))))
    job = Job("train", "a", 0)
    before = json.dumps(settings_of(s, job))
    if key == "mean":
        s.experiments["a"].std = KINETICS[1]
    setattr(s.experiments["a"], key, value)
    assert json.dumps(settings_of(s, job)) != before


# -- the studies of the official dataset


def test_options_enter_no_verdict_and_only_leaves_them_out():
    study = load_study("ssv2")
    options = options_of(study)
    names = list(study.experiments)
    assert options and names[-len(options) :] == options
    text = (project_root() / "experiments" / "ssv2.yaml").read_text()
    only = re.search(r"# ssv2 reproduce ssv2 --only '(.*)'", text)[1]
    part = sub_study(study, only.split(","))
    assert list(part.experiments) == names[: -len(options)] and not options_of(part)
    assert part.hypotheses == study.hypotheses
    for name in ("ssv2-core", "ssv2-mini", "demo"):
        assert options_of(load_study(name)) == ["2d-single"]


def test_what_a_judged_network_starts_from_is_no_option(tmp_path):
    of = dict(
        first=dict(model="test_resnet"),
        second=dict(model="i3d:test_resnet", init="first"),
        third=dict(model="i3d:test_resnet"),
        fourth=dict(model="i3d:test_resnet", init="third"),
    )
    says = dict(says="x", measure="right", of="second", over="third")
    study = load_study(write(tmp_path, experiments(**of) | dict(hypotheses=dict(x=says))))
    assert options_of(study) == ["fourth"]


@pytest.mark.parametrize("name", ["ssv2", "ssv2-core", "ssv2-mini"])
def test_recipes_of_the_official_dataset_are_the_published_ones(name):
    for exp in load_study(name).experiments.values():
        assert exp.dropout == 0.5 and exp.mixed_precision == "auto"
        assert exp.head_lr == (1 if name == "ssv2-mini" else 5)
    text = (project_root() / "experiments" / f"{name}.yaml").read_text()
    assert "departure" in text and re.search(r"\b[0-9a-f]{7}\b", text)


def test_the_first_chapter_refuses_a_parameter_that_it_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="no parameter 'rot'; did you mean 'root'"):
        run_as_job(project_root(), "00_data", tmp_path / "done.ipynb", rot="x")
    assert not (tmp_path / "done.ipynb").exists()


@pytest.mark.parametrize("step", ["gradcam", "reliance"])
def test_settings_are_changed_for_one_look_at_a_trained_network(
    step, tmp_path, monkeypatch, capsys
):
    seen = []
    note = lambda name, out, gpus, study, **kw: seen.append(load_study(study)) or out.touch()
    monkeypatch.setattr("ssv2_report.jobs.notebooks.run_notebook", note)
    for words, code in (
        (["--set", "cam.per_class=1"], 0),
        (["--set", "cam.per_clas=1"], 1),
        ([], 0),
    ):
        asked = ["ssv2", step, "smoke", "2d-multi", "--results", str(tmp_path), *words]
        monkeypatch.setattr(sys, "argv", asked)
        (tmp_path / "runs" / "2d-multi-s0").mkdir(parents=True, exist_ok=True)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == code
    assert [s.cam.per_class for s in seen] == [1, None]
    assert "did you mean 'cam.per_class'" in capsys.readouterr().err
