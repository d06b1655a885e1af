"""Transformers that learned the demo world are adopted from their folders, and what is known of that world holds for them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from books import run_as_job

from ssv2_report.analysis.validation import choose_source, judge_sources
from ssv2_report.data.audit import audit
from ssv2_report.data.clips import MEAN, STD, sample_frames, to_clip
from ssv2_report.demo.world import CLASSES, Scene, draw_scene, make_world, seed_numbers
from ssv2_report.gradcam.rollout import ROLLOUTS
from ssv2_report.study.experiments import SEARCHED, load_study, project_root
from ssv2_report.study.scores import metrics_by_order

transformers = pytest.importorskip("transformers")

PLAYED = ["Pushing {} from left to right", "Pulling {} from right to left"]  # each backwards
PLAYED += ["Pulling {} from left to right", "Pushing {} from right to left"]  # in a mirror
PLAYED = [name.format("something") for name in PLAYED]
BACKWARDS, MIRRORED = torch.tensor([1, 0, 3, 2]), torch.tensor([3, 2, 1, 0])
SIZE, FRAMES = 48, 8
SHAPE = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128)
SHAPE |= dict(image_size=SIZE, patch_size=12)
TAUGHT = dict(videomae=8, timesformer=4)  # Frames of a clip; VideoMAE's tokens hold two each
LAYERS = dict(videomae=(1, 2, 3, 4), timesformer=(1, 2, 4))  # Of its last block one token is read
STEPS = 900


@pytest.fixture(scope="module")
def lessons():
    "Clips of the demo world's training scenes, of no validation clip's world, and their classes."
    clips, targets = [], torch.arange(2000) % len(PLAYED)
    for k, target in enumerate(targets.tolist()):
        known = CLASSES.index(PLAYED[target])
        scene = Scene(known, "train", seed_numbers(7, "train", known, k), SIZE)
        taken = sample_frames(scene.n, FRAMES, np.random.default_rng(k))
        frames, _ = draw_scene(scene, frames=taken)
        clips.append(to_clip(torch.from_numpy(frames).permute(0, 3, 1, 2)))
    return torch.stack(clips), targets


def varied(clips, targets, draw):
    "Clips as they are or in a mirror, elsewhere and in other colours, and all of them backwards."
    flip = torch.rand(len(clips), generator=draw) < 0.5
    clips = torch.where(flip.view(-1, 1, 1, 1, 1), clips.flip(4), clips)
    targets = torch.where(flip, MIRRORED[targets], targets)
    clips = clips.roll(torch.randint(-5, 6, (2,), generator=draw).tolist(), (3, 4))
    clips = clips * (1 + 0.15 * torch.randn(len(clips), 1, 1, 1, 1, generator=draw))
    clips = clips + 0.15 * torch.randn(len(clips), 3, 1, 1, 1, generator=draw)
    return torch.cat([clips, clips.flip(2)]), torch.cat([targets, BACKWARDS[targets]])


def moving(clips):
    "What moves, bright on dark, whatever its colour: how far a picture is from the mean of its clip."
    return 2 * (clips - clips.mean(2, keepdim=True)).abs().mean(1, keepdim=True) - 0.5


def untaught(family):
    "A small network of a family whose weights begin as wide as training from nothing needs."
    names = {k: c.replace("something", "[something]") for k, c in enumerate(PLAYED)}
    config = transformers.CONFIG_MAPPING[family](**SHAPE, num_frames=TAUGHT[family], id2label=names)
    net = transformers.AutoModelForVideoClassification.from_config(config)
    for name, module in net.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, torch.nn.Linear) and "classifier" not in name:
            torch.nn.init.xavier_uniform_(module.weight)
    for name, weights in net.named_parameters():
        if name.endswith(("position_embeddings", "time_embeddings")):
            torch.nn.init.normal_(weights, std=0.7)  # as wide as VideoMAE's, which are waves
    return net


def teach(family, lessons, folder):
    """Train a network and leave it as transformers does, with its normalisation beside it.

    It sees what moves before it sees pictures: of these alone it learns directions late or never."""
    clips, targets = lessons
    n = TAUGHT[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, draw = untaught(family).train(), torch.Generator().manual_seed(0)
        optimiser = torch.optim.AdamW(
            net.parameters(), 2e-3, (0.9, 0.98), weight_decay=0.05, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, STEPS, pct_start=0.1)
        for step in range(STEPS):
            some = torch.randint(len(clips), (16,), generator=draw)
            k = torch.randint(FRAMES // n, (n,), generator=draw) + FRAMES // n * torch.arange(n)
            x = clips[some][:, :, k]
            x = torch.lerp(moving(x), x, min(max(step - 100, 0) / 300, 1))
            x, y = varied(x, targets[some], draw)
            loss = F.cross_entropy(net(x.transpose(1, 2)).logits, y)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    net.save_pretrained(folder)
    colours = dict(image_mean=list(MEAN), image_std=list(STD))
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))


@pytest.fixture(scope="module")
def taught(tmp_path_factory, lessons):
    "A study of these networks, taken from their folders through all steps of a run."
    home = tmp_path_factory.mktemp("taught")
    make_world(home / "data", train_per_class=1, val_per_class=40, size=64)
    (home / "data/labels/train.json").unlink()
    for family in TAUGHT:
        teach(family, lessons, home / family)
    content = dict(
        title="Transformers that learned the demo world",
        data=dict(root="data", size=SIZE, splits=["validation"], classes=PLAYED),
        cam=dict(choice_split="validation", choice_per_class=12, per_class=8, references=2),
        experiments={family: dict(title=family, model=f"hf:{family}") for family in TAUGHT},
    )
    (home / "study.yaml").write_text(yaml.safe_dump(content))
    audit(home / "data").save(home / "results/audit.json")
    given = dict(study=str(home / "study.yaml"), seed=0, results=str(home / "results"))
    for family in TAUGHT:
        run = home / f"results/runs/{family}-s0"
        run.mkdir(parents=True)
        for step in ("train/adopt_run", *(f"gradcam/{k}_run" for k in ("sources", "gradcam"))):
            out = run / f"{step.rpartition('/')[2]}.ipynb"
            run_as_job(project_root(), step, out, experiment_name=family, **given)
        out = run / "reliance_run.ipynb"
        run_as_job(project_root(), "gradcam/reliance_run", out, experiment_name=family, **given)
    return load_study(given["study"]), home / "results"


def of_run(results, family, name):
    return pd.read_parquet(results / "runs" / f"{family}-s0" / name)


@pytest.mark.slow
@pytest.mark.parametrize("family", TAUGHT)
def test_one_that_sees_time_needs_the_order_of_frames(taught, family):
    "A clip and its reversed twin show the same scene: backwards each is the other, of one frame none is known."
    study, results = taught
    answers = of_run(results, family, "predictions.parquet")
    found = metrics_by_order(answers, [c for c in CLASSES if c in PLAYED])
    top1, pairs = found.loc["top1"], found.loc["pair_accuracy"]
    assert top1["ordered"] > 0.6 and pairs["ordered"] > 0.9
    assert pairs["reversed"] < 0.1 and abs(pairs["frozen"] - 0.5) < 0.1
    assert top1["frozen"] < 0.6 and pairs["shuffled"] < pairs["ordered"] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", TAUGHT)
def test_it_is_lost_without_hand_and_object_and_not_without_background(taught, family):
    rows = of_run(taught[1], family, "reliance.parquet")
    right = rows.groupby(["way", "part"])["right"].mean()
    for way in ("blurred", "rendered"):
        fell = right[way, "nothing"] - right[way]
        assert fell["hand and object"] > 0.2, way
        assert fell["hand and object"] > fell["background"] + 0.1, way


@pytest.mark.slow
def test_their_maps_are_judged_and_chosen_or_refused_with_a_reason(taught):
    judged = judge_sources(*taught)
    assert set(judged["experiment"]) == set(TAUGHT)
    for family, own in judged.groupby("experiment"):
        cams = {f"layer{k}:{m}" for k in LAYERS[family] for m in SEARCHED}
        assert {*cams, *ROLLOUTS} <= set(own["source"])
        assert (own["interpretable"] == (own["why"] == "")).all() and (own["bound"] > 1).all()
    choice = choose_source(judged)
    assert choice["interpretable"] == (choice["why"] == "")
    asked = judged[judged["source"].str.contains(":")]
    assert not asked["why"].str.contains("too few scenes").any()
