"Maps that only look right are refused: the rule for sources of maps beside a distractor, where the truth is known."

import numpy as np
import pandas as pd
import pytest
import torch

from ssv2_report.analysis.validation import source_table
from ssv2_report.data.clips import to_clip
from ssv2_report.demo.world import CLASSES, TwoActors, draw_scene
from ssv2_report.gradcam.attention import oracle_maps
from ssv2_report.gradcam.baselines import edge_motion_maps, random_network
from ssv2_report.gradcam.maps import resize_maps
from ssv2_report.gradcam.sources import grid_scores, interpretable, make_maps, score_maps
from ssv2_report.models.net3d import create_3d

torch.set_num_threads(1)
SOURCE, GRID, CLIPS = "stem:layercam", (8, 16, 16), 16


def drawn(k):
    "A clip of two actors, and where each of them is."
    scene = TwoActors(k % len(CLASSES), "train", [11, k], 64)
    some = ((np.arange(8) + 0.5) * scene.n / 8).astype(int)
    frames, boxes = draw_scene(scene, frames=some)
    masks = {role: np.zeros((8, 64, 64), bool) for role in scene.spans}
    for t, shown in enumerate(boxes):
        for name, (x1, y1, x2, y2) in shown.items():
            masks[name.split()[0]][t, int(y1) : int(y2), int(x1) : int(x2)] = True
    first, last = scene.spans["evidence"]
    clip = to_clip(torch.from_numpy(frames).permute(0, 3, 1, 2))
    return clip, masks["evidence"], masks["distractor"], (some >= first) & (some <= last)


@pytest.fixture(scope="module")
def world():
    clip, evidence, distractor, action = zip(*(drawn(k) for k in range(CLIPS)))
    nothing = np.zeros_like(np.stack(evidence))
    truth = dict(hand=np.stack(evidence), object=nothing, known=np.ones((CLIPS, 8), bool))
    truth |= dict(ids=np.array([str(k) for k in range(CLIPS)]), action=np.stack(action))
    return torch.stack(clip), truth | dict(distractor=np.stack(distractor))


@pytest.fixture(scope="module")
def rows(world):
    "Scores of an untrained network and of every baseline, which each test gives other maps of its own."
    clips, truth = world
    torch.manual_seed(0)
    net = create_3d("i3d:test_resnet", len(CLASSES), stages=1).eval()
    targets = torch.arange(CLIPS) % len(CLASSES)
    return net, grid_scores(net, clips, targets, truth, [SOURCE], untrained=3)


def judged(world, rows, maps):
    "The rule's answer for maps as the network's own, which is right on every clip."
    own = score_maps(maps, **world[1]).assign(source=SOURCE, map="own", accuracy=1.0, draw=0)
    table = rows[1][rows[1]["map"] != "own"]
    table = pd.concat([table, own], ignore_index=True)
    return interpretable(table.assign(seed=0, scene=table["id"])).iloc[0]


def test_what_lies_on_the_evidence_passes(world, rows):
    right = oracle_maps(world[1]["hand"], world[1]["object"])
    found = judged(world, rows, resize_maps(right, GRID))
    assert found["interpretable"], found["why"]


@pytest.mark.parametrize("role", ["distractor", "both"])
def test_what_lies_on_the_distractor_is_refused(world, rows, role):
    evidence, other = (torch.from_numpy(world[1][k]).float() for k in ("hand", "distractor"))
    found = judged(world, rows, resize_maps(other + evidence * (role == "both"), GRID))
    assert not found["interpretable"]
    assert "on the distractor as much as on the evidence" in found["why"]


def test_edges_times_motion_presented_as_a_map_are_refused(world, rows):
    found = judged(world, rows, edge_motion_maps(world[0]))
    assert not found["interpretable"] and "not above edges x motion" in found["why"]
    assert "on the distractor as much as on the evidence" in found["why"]


def test_the_right_place_at_the_wrong_time_is_refused(world, rows):
    place = torch.from_numpy(world[1]["hand"]).float().mean(1, keepdim=True)
    found = judged(world, rows, resize_maps(place.expand(-1, 8, -1, -1), GRID))
    assert not found["interpretable"]
    assert "not in the moments of the evidence" in found["why"]


def test_a_network_with_all_above_the_stem_random_is_refused(world, rows):
    clips, _ = world
    half = random_network(rows[0], clips, seed=9, above="act1")
    maps = make_maps(half, clips, torch.arange(CLIPS) % len(CLASSES), [SOURCE])[0][SOURCE]
    found = judged(world, rows, maps)
    assert not found["interpretable"] and "not above random above" in found["why"]


def test_the_table_of_sources_has_a_row_for_each_and_one_for_edges():
    row = dict(experiment="a", ratio_both=4.0, bound=8.0, pointing=0.5, edges=5.0, empty=1, maps=4)
    row |= dict(deletion=0.2, deletion_random=0.4, insertion=0.6, insertion_random=0.5)
    row |= dict(interpretable=True, evidence=20.0, distractor=0.3)
    row |= dict(beside_edges=4.8, beside_edges_other=4.7)
    judged = pd.DataFrame([row | dict(source=k) for k in ("stem:gradcam", "occlusion")])
    judged.loc[1, ["evidence", "distractor", "deletion"]] = np.nan
    table = source_table(judged, "stem:gradcam").set_index("source")
    assert table.loc["stem:gradcam", "of the bound"] == "50%"
    assert list(table["evidence"]) == ["20.0", "–", "4.8"]
    assert list(table["interpretable"]) == ["1 of 1", "reference", "baseline"]
    assert list(table["chosen"]) == ["✓", "", ""] and table.loc["occlusion", "empty maps"] == "25%"
    alone = judged.drop(columns=["evidence", "distractor", "beside_edges", "beside_edges_other"])
    assert "evidence" not in source_table(alone, "stem:gradcam")
