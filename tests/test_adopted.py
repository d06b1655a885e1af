"""A network that others trained is taken as it is, or refused in a sentence."""

import json
import random
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from books import run_as_job, run_book
from test_adapters import as_mit, as_mmaction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

from ssv2_report.analysis.claims import adopted_words, claims_table, published_table
from ssv2_report.analysis.evidence import read_evidence
from ssv2_report.analysis.simulated import simulate
from ssv2_report.analysis.verdicts import judge_hypotheses
from ssv2_report.data.audit import audit
from ssv2_report.data.clips import ClipDataset
from ssv2_report.demo.world import CLASSES, make_world
from ssv2_report.gradcam.attention import faithfulness, sanity
from ssv2_report.gradcam.reliance import reliance
from ssv2_report.gradcam.sources import (
    PATCH_CLASSES,
    cam_sources,
    grid_scores,
    make_maps,
    patch_world,
    train_patch_net,
)
from ssv2_report.jobs.durations import job_seconds
from ssv2_report.jobs.steps import Job, jobs_of
from ssv2_report.models.net2d import renormalise, stages
from ssv2_report.models.protocol import draw_anew
from ssv2_report.plan.prices import prices
from ssv2_report.study.experiments import Experiment, load_study, project_root
from ssv2_report.study.networks import adopted_model, build_model, load_reference, write_reference
from ssv2_report.study.runs import (
    check_study,
    choice_clips,
    clip_set,
    clips_of,
    datasets,
    load_run,
    save_run,
    shown_clips,
)
from ssv2_report.study.scores import predict, predict_orders, published_check, twins


def kept_elsewhere(net, path):
    "A network's weights as others keep theirs."
    body = getattr(net, "backbone", net)
    torch.save({"state_dict": {f"module.{k}": v for k, v in body.state_dict().items()}}, path)
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A world without its training split."
    root = tmp_path_factory.mktemp("world")
    make_world(root / "data", train_per_class=1, val_per_class=3, size=64, workers=1)
    (root / "data/labels/train.json").unlink()
    for seed, model in enumerate(("test_resnet", "i3d:test_resnet")):
        torch.manual_seed(seed)
        net = build_model(Experiment(title="t", model=model), len(CLASSES))
        kept_elsewhere(net, root / f"{model[:3]}.pth")
    return root


def study_of(folder, root, name="study", data={}, cam={}, seeds=None, **experiments):
    content = dict(
        title="Others' networks",
        data=dict(root=str(root / "data"), size=48, splits=["validation"]) | data,
        cam=dict(choice_split="validation", choice_per_class=1, per_class=1, references=1) | cam,
        experiments=experiments,
    )
    content |= dict(seeds=seeds) if seeds else {}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_study(str(path))


def theirs(root, kind="tes", **more):
    model = dict(tes="test_resnet", i3d="i3d:test_resnet")[kind]
    return dict(title=kind, model=model, weights=str(root / f"{kind}.pth"), n_frames=4) | more


def test_such_a_study_has_no_training_and_no_seeds(tmp_path, world):
    s = study_of(tmp_path, world, flat=theirs(world), deep=theirs(world, "i3d"))
    jobs = jobs_of(s)
    assert s.runs == [("flat", 0), ("deep", 0)]
    assert Job("adopt", "flat", 0) in jobs[Job("gradcam", "flat", 0)]
    assert not any(job.step == "train" for job in jobs)
    check_study(s)


def test_one_beside_trained_ones_has_its_own_step(tmp_path, world):
    both = dict(splits=["train", "validation"])
    s = study_of(
        *(tmp_path, world, "mixed", both, {}, [0]),
        mine=dict(title="m", model="test_resnet"),
        other=theirs(world),
    )
    steps = {(job.step, job.of) for job in jobs_of(s)}
    assert {("train", "mine"), ("adopt", "other")} < steps
    assert not {("train", "other"), ("adopt", "mine")} & steps


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(seeds=[0, 1]), "has no seeds"),
        (dict(data=dict(splits=["train"])), "on which networks are judged"),
        (dict(cam=dict(choice_split="train")), "set cam.choice_split to validation"),
        (dict(cam=dict(per_class=None)), "say by cam.per_class"),
        (dict(flat=dict(init="imagenet")), "starts from nothing"),
        (dict(flat=dict(weights="nowhere.pth")), "is not there"),
        (dict(flat=dict(model="i3d:test_resnet")), "is not of this network"),
        (dict(mine=dict(title="m", model="test_resnet")), "on which 'mine' is to be trained"),
        (dict(flat=dict(labels="few.txt")), "is not of this network"),
    ],
)
def test_what_cannot_be_adopted_is_refused(tmp_path, world, change, said):
    (tmp_path / "few.txt").write_text("Opening something\nClosing something")
    known = {k: change[k] for k in ("data", "cam", "seeds") if k in change}
    if "mine" in change:
        known |= dict(seeds=[0], mine=change["mine"])
    flat = theirs(world) | change.get("flat", {})
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        check_study(study_of(tmp_path, world, **known, flat=flat))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_file_that_fits_in_part_is_refused(tmp_path, world, change):
    state = torch.load(world / "tes.pth", weights_only=True)["state_dict"]
    if change == "missing":
        del state["module.layer1.0.bn1.bias"]
    if change == "unknown":
        state["module.layer1.0.extra"] = torch.zeros(1)
    if change == "shape":
        state["module.fc.bias"] = torch.zeros(174)
    torch.save(state, tmp_path / "a.pth")
    exp = Experiment(title="t", model="test_resnet", weights=str(tmp_path / "a.pth"))
    with pytest.raises(
        ValueError, match=r"nothing was loaded: 1 .*(missing|unknown|another shape)"
    ):
        adopted_model(exp, list(CLASSES), list(CLASSES))


def test_classes_are_found_by_name_whatever_the_heads_order(tmp_path, world):
    names = [c.replace("something", "[something]") for c in CLASSES]
    random.Random(1).shuffle(names)
    (tmp_path / "labels.json").write_text(json.dumps(names))
    exp = Experiment(**theirs(world), labels=str(tmp_path / "labels.json"))
    plain = Experiment(**theirs(world))
    x, known = torch.randn(2, 3, 4, 48, 48), list(CLASSES)
    named, _ = adopted_model(exp, known[2:6], known)
    order = [n.replace("[", "").replace("]", "") for n in names]
    answers = adopted_model(plain, known, known)[0](x)
    expected = answers[:, [order.index(c) for c in known[2:6]]]
    torch.testing.assert_close(named(x), expected)
    (tmp_path / "labels.json").write_text(json.dumps([*names[1:], "Juggling [something]"]))
    with pytest.raises(ValueError, match="does not know 1 of"):
        adopted_model(exp, known, known)


def test_a_reference_knows_its_file_again(tmp_path, world):
    file = tmp_path / "theirs.pth"
    shutil.copy(world / "tes.pth", file)
    exp, known = Experiment(**theirs(world) | dict(weights=str(file))), list(CLASSES)
    write_reference(tmp_path, exp, known[:3], known)
    model, again, classes = load_run(tmp_path)
    assert again == exp and classes == known[:3] and not list(tmp_path.glob("*.safetensors"))
    shutil.copy(world / "i3d.pth", file)
    with pytest.raises(ValueError, match="has changed since it was adopted"):
        load_reference(tmp_path / "reference.json")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_run(tmp_path)


def shuffled(state, order, as_theirs):
    "A network's state in another layout, the columns of its head in another order."
    state = {k: v.clone() for k, v in state.items()}
    for key in ("fc.weight", "fc.bias"):
        state[key] = state[key][order]
    return as_theirs(state, [])


@pytest.mark.parametrize(
    "own, elsewhere, layout",
    [
        ("test_resnet", "tsn:test_resnet", as_mit),
        ("test_resnet", "tsn:test_resnet", as_mmaction),
        (
            "i3d:test_resnet",
            "i3d:test_resnet",
            lambda state, _: {f"module.{k}": v for k, v in state.items()},
        ),
    ],
)
def test_a_network_of_ours_kept_as_others_keep_theirs_is_the_same(
    tmp_path, world, own, elsewhere, layout
):
    known, exp = list(CLASSES), Experiment(title="t", model=own, n_frames=4)
    net = draw_anew(build_model(exp, len(known)))
    save_run(net, exp, known, tmp_path / "ours" / "weights.safetensors")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(3)).tolist()
    body = getattr(net, "backbone", net)
    torch.save(shuffled(body.state_dict(), order, layout), tmp_path / "theirs.pth")
    (tmp_path / "labels.txt").write_text("\n".join(known[k] for k in order))
    files = dict(weights=str(tmp_path / "theirs.pth"), labels=str(tmp_path / "labels.txt"))
    adopted = Experiment(title="t", model=elsewhere, n_frames=4, **files)
    write_reference(tmp_path / "adopted", adopted, known, [known[k] for k in order])
    s = study_of(tmp_path, world, flat=theirs(world))
    clips = shown_clips(s, s.experiments["flat"], clips_of(s, "validation", None, 1), boxes=True)
    found = []
    for run in ("ours", "adopted"):
        model, _, classes = load_run(tmp_path / run)
        batch = next(iter(DataLoader(clips, len(clips))))
        maps, _ = make_maps(model, batch["clip"], batch["target"], cam_sources(model))
        answers = predict(model, ClipDataset(clips_of(s, "validation"), 4, 48))
        found.append((maps, answers, reliance(model, DataLoader(clips, 5), classes)))
    (maps, answers, rows), (other_maps, other_answers, other_rows) = found
    assert list(maps) == list(other_maps)
    for source in maps:
        torch.testing.assert_close(maps[source], other_maps[source], rtol=1e-5, atol=1e-7)
    assert (answers["pred"] == other_answers["pred"]).all()
    np.testing.assert_allclose(
        *(np.stack(t["logits"]) for t in (answers, other_answers)), 1e-4, 1e-6
    )
    pd.testing.assert_frame_equal(rows, other_rows, rtol=1e-4, atol=1e-6)


def test_the_source_of_maps_is_chosen_on_other_scenes_than_are_shown(tmp_path, world):
    from ssv2_report.demo.answers import find_scenes

    s = study_of(tmp_path, world, flat=theirs(world), cam=dict(per_class=1, choice_per_class=2))
    scenes = find_scenes(s.data.root)
    of = lambda index: {scenes[i] for i in index.clips["id"]}
    chosen, shown = choice_clips(s), clips_of(s, "validation", None, 1)
    assert len(chosen) and not of(chosen) & of(shown)
    with pytest.raises(ValueError, match="All validation clips are shown"):
        choice_clips(study_of(tmp_path, world, flat=theirs(world), cam=dict(per_class=3)))


def test_views_of_a_network_with_a_stride_begin_and_end_with_the_clip(tmp_path, world):
    own = theirs(world, stride=2, views=[2, 1])
    s = study_of(tmp_path, world, flat=theirs(world, views=[2, 1]), strided=own)
    first, last = datasets(s, s.experiments["strided"], 0)[2]["ordered"]
    assert first[0]["frames"].tolist() == [0, 2, 4, 6] == first.take(99).tolist()
    assert first.take(20).tolist() == [0, 2, 4, 6] and last.take(20).tolist() == [12, 14, 16, 18]
    assert last.take(5).tolist() == [0, 2, 4, 4]
    early, late = datasets(s, s.experiments["flat"], 0)[2]["ordered"]
    assert early.take(16).tolist() == [1, 5, 9, 13] and late.take(16).tolist() == [3, 7, 11, 15]


def test_an_audit_of_one_split_asks_for_no_other(tmp_path, world):
    found = audit(world / "data", workers=1)
    with pytest.raises(ValueError, match="no label file"):
        found.of(None).check()
    of_one = found.of(None, ["validation"])
    of_one.check()
    assert of_one.unseen == ([], 1.0) and "validation clips sound" in of_one.summary()
    assert "training" not in of_one.summary()


@pytest.mark.slow
def test_the_chapter_of_data_does_without_a_training_split(tmp_path, world):
    run_book(project_root() / "nbs/00_data.ipynb", tmp_path, root=str(world / "data"))


def test_the_published_accuracy_is_held_against_the_whole_split():
    "Where clips are sampled evenly over classes of which most clips are of one, that one decides."
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], 1500)
    right = rng.random(3000) < np.where(target, 0.9, 0.5)
    answers = pd.DataFrame(dict(target=target, pred=np.where(right, target, 1 - target)))
    check = lambda counts, p: published_check(answers, ["a", "b"], ["a", "b"], p, counts)
    assert check(dict(a=1, b=99), 0.9)["state"] == "holds"
    assert check(dict(a=99, b=1), 0.9)["state"] == "fails"
    assert abs(check(dict(a=1, b=1), None)["top1"] - 0.7) < 0.03


@pytest.mark.slow
def test_the_gate_trips_on_what_is_silent_elsewhere():
    "Classes in another order, other frames, another normalisation: plausible answers, and fewer right."
    names = list(PATCH_CLASSES)
    net, (clips, targets, _) = train_patch_net(*patch_world(256)[:2]), patch_world(600, seed=1)

    def state(net, clips, order=names):
        with torch.no_grad():
            pred = [names.index(order[k]) for k in net(clips).argmax(1)]
        answers = pd.DataFrame(dict(target=targets.numpy(), pred=pred))
        return published_check(answers, names, names, 0.99, dict.fromkeys(names, 9))["state"]

    assert state(net, clips) == "holds"
    assert state(net, clips, names[1:] + names[:1]) == "fails"
    assert state(net, clips[:, :, ::4]) == "fails"
    assert state(renormalise(deepcopy(net), (0.5,) * 3, (0.5,) * 3), clips) == "fails"


@pytest.fixture(scope="module")
def judged(tmp_path_factory, world):
    "Made-up runs of a study of two adopted networks, of which one misses what was published."
    folder = tmp_path_factory.mktemp("judged")
    both = dict(
        flat=theirs(world, published=0.9, stride=2),
        deep=theirs(world, "i3d", licence="CC-BY-NC-4.0"),
    )
    study_of(folder, world, **both)
    content = yaml.safe_load((folder / "study.yaml").read_text())
    one = dict(measure="pair_right", of="deep", over="flat", says="one sees order")
    content["hypotheses"] = dict(order=one, learning=one | dict(measure="learning"))
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    s = load_study(str(folder / "study.yaml"))
    results = folder / "results"
    simulate(s, results)
    for name, exp in s.experiments.items():
        run = results / "runs" / f"{name}-s0"
        write_reference(run, exp, list(CLASSES), list(CLASSES))
        about = json.loads((run / "metrics.json").read_text())
        stated = exp.published
        check = dict(top1=0.4, lo=0.35, hi=0.45, clips=300, published=stated, why="")
        check |= (
            dict(state="fails", why="not fed as it was") if stated else dict(state="not stated")
        )
        (run / "metrics.json").write_text(json.dumps(about | dict(published=check)))
    return read_evidence(s, results)


def test_no_verdict_is_given_on_a_network_that_misses_what_was_published(judged):
    table = judge_hypotheses(judged, {})
    assert set(table["verdict"]) == {"not judged"}
    assert "not shown to be what was published: not fed as it was" in table.loc["order", "why"]
    words = adopted_words(judged)
    assert words["unproven"].endswith("not fed as it was") and words["noncommercial"] == "i3d"


def test_adopted_networks_have_verdicts_about_themselves(judged):
    fine = {
        run: a | dict(published=a["published"] | dict(state="holds"))
        for run, a in judged.about.items()
    }
    table = judge_hypotheses(replace(judged, simulated=False, about=fine), {})
    assert table.loc["order", "scope"] in ("these networks", "")
    assert table.loc["order", "verdict"] in ("supported", "contradicted", "undecided")
    assert "no learning curve" in table.loc["learning", "why"]


def test_the_report_says_what_was_adopted_and_what_others_claim(judged):
    table, claims = published_table(judged), claims_table(judged)
    assert list(table["is it that network"]) == ["✗ missed", "not stated"]
    assert table["licence"].iloc[1] == "CC-BY-NC-4.0" and "40.0" in table["measured"].iloc[0]
    assert list(table["frames"]) == ["4 of 48\u00a0px, stride 2", "4 of 48\u00a0px, spread"]
    assert claims["claim"].iloc[0].startswith("tes reaches 90.0")
    assert {"arXiv 2207.01398", "its authors"} <= set(claims["source"])


def a_transformer(folder):
    "A small TimeSformer of random weights, as transformers saves it, its classes in an order of its own."
    transformers = pytest.importorskip("transformers")
    names = random.Random(2).sample([c.replace("something", "[something]") for c in CLASSES], 10)
    shape = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
    config = transformers.TimesformerConfig(
        **shape, num_frames=4, image_size=32, patch_size=8, id2label=dict(enumerate(names))
    )
    transformers.TimesformerForVideoClassification(config).save_pretrained(folder)
    return dict(title="A transformer", model=f"hf:{folder}", mean=[0.45] * 3, std=[0.225] * 3)


class Operations(TorchDispatchMode):
    "Counts the operations of what runs inside, forth and back."

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


class Blind(torch.nn.Module):
    "Answers nothing, at no cost."

    def forward(self, clips):
        return clips.new_zeros(len(clips), len(CLASSES))


def operations(act):
    with Operations() as counted:
        act()
    return counted.total


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "i3d"])
def test_a_plan_counts_the_passes_of_every_step(tmp_path, world, kind):
    "Against what the steps' own functions compute on the same clips."
    exp = theirs(world, "i3d") if kind == "i3d" else a_transformer(tmp_path / "tokens")
    few = dict(sources=["layer2:gradcam", "layer4:layercam"])
    s = study_of(tmp_path, world, cam=few, net=exp | dict(views=[2, 1]))
    exp = s.experiments["net"]
    row = prices(s, tflops=1e-6).loc["net"]  # 10^6 operations a second
    model, _ = adopted_model(exp, list(CLASSES), list(CLASSES))
    sources = cam_sources(model, s.cam.sources)
    shown = shown_clips(s, exp, clips_of(s, "validation", None, 1), boxes=True)
    batch = next(iter(DataLoader(shown, len(shown))))
    x, y = batch["clip"], batch["target"]
    truth = {k: batch[k].numpy() for k in ("hand", "object", "known")} | dict(ids=batch["id"])
    twin = np.array([twins(list(CLASSES)).get(int(k), -1) for k in y])

    def maps_of_a_run():
        for _ in range(2):  # the clips, and frozen ones
            maps, _ = make_maps(model, x, y, sources)
        faithfulness(model, x, maps, y)
        sanity(model, x, [stages(model)[k] for k in ("layer2", "layer4")], y, ["gradcam"])

    own = DataLoader(clip_set(s, clips_of(s, "validation", None, 1), None, 4, True, x.shape[3]), 5)
    took = dict(
        adopt=lambda: predict_orders(model, datasets(s, exp, 0)[2], 8, 0),
        sources=lambda: grid_scores(model, x, y, truth, sources, twin, s.cam.references),
        gradcam=maps_of_a_run,
        reliance=lambda: reliance(model, own, list(CLASSES), ways=s.cam.paint),
    )
    for step, act in took.items():
        beside = (
            operations(lambda: reliance(Blind(), own, [*CLASSES], ways=s.cam.paint))
            if step == "reliance"
            else 0
        )
        assert 0.6 < row[step] / ((operations(act) - beside) / 1e6) < 1.6, step
    assert row["seconds"] == pytest.approx(sum(row[step] for step in took))
    jobs = job_seconds([s], [prices(s, tflops=1e-6)])
    assert jobs["reliance net-s0"] > row["reliance"] and jobs["adopt net-s0"] > row["adopt"]


@pytest.mark.slow
def test_a_study_without_a_training_split_goes_from_files_to_maps(tmp_path, world):
    results = tmp_path / "results"
    audit(world / "data", workers=1).save(results / "audit.json")
    of = dict(flat=theirs(world, published=0.9), tokens=a_transformer(tmp_path / "tokens"))
    s = study_of(tmp_path, world, **of)
    path = str(tmp_path / "study.yaml")
    steps = ("train/adopt_run", "gradcam/sources_run", "gradcam/gradcam_run")
    for name in s.experiments:
        run = results / "runs" / f"{name}-s0"
        run.mkdir(parents=True)
        given = dict(study=path, experiment_name=name, seed=0, results=str(results))
        for step in (*steps, "gradcam/reliance_run"):
            run_as_job(project_root(), step, run / f"{step.partition('/')[2]}.ipynb", **given)
        assert (run / "attention_clips.parquet").is_file() and (run / "reliance.parquet").is_file()
    about = json.loads((results / "runs/flat-s0/metrics.json").read_text())
    assert about["published"]["state"] == "fails" and about["head"] == len(CLASSES)
    judged = set(pd.read_parquet(results / "runs/tokens-s0/sources.parquet")["source"])
    assert {"layer1:gradcam", "layer4:layercam", "attention:gradient rollout"} <= judged
    kept = {p.stem for p in (results / "runs/tokens-s0/maps").iterdir()}
    assert {"layer4-gradcam", "attention-rollout", "attention-gradient-rollout"} <= kept
