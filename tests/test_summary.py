"""The abstract that a run writes, for runs that end in different ways."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_verdicts import made_up

from ssv2_report.analysis.summary import (
    MOST_WORDS,
    abstract_words,
    compare_places,
    pretraining_sentence,
    twin_sentence,
    without_links,
    words_of,
)
from ssv2_report.analysis.verdicts import compare_sources, judge_hypotheses


def abstract(evidence):
    "As a reader sees it, without links and marks."
    judged = judge_hypotheses(evidence, compare_sources(evidence))
    places = compare_places(evidence)
    left = evidence.accuracies_without()
    words = abstract_words(evidence, judged, places, left, "a dataset")
    text = f"{words['answer']} {words['scope']}"
    assert len(words_of(text)) <= MOST_WORDS, text
    seen = re.sub(r"\[([^\]]+)\]\([^)]*\)(\{[^}]*\})?|\*\*", r"\1", text).replace("\u00a0", " ")
    for sentence in re.split(r"(?<=[.!?]) ", seen):
        assert len(words_of(sentence)) <= 30, sentence
        assert sentence[0].isupper() or sentence[0].isdigit(), sentence
    assert not re.search(r"nan|–|  |\.\.|[\[\]{}*]", seen), seen
    return seen


def shifted(evidence, by):
    "The same runs, whose maps have more on a place: by (source, experiment, place)."
    measured = evidence.measured.copy()
    for (source, experiment, place), more in by.items():
        rows = (measured["method"] == source) & (measured["experiment"] == experiment)
        measured.loc[rows, f"ratio_{place}"] += more
    return replace(evidence, measured=measured)


SOURCES = ("layer1:layercam", "layer2:gradcam")


@pytest.fixture(scope="module")
def better(tmp_path_factory):
    "Runs in which 3D tells the order and its maps have more on the object, at every source."
    evidence = made_up(tmp_path_factory.mktemp("better"), seeds=[0], clips=60)
    return shifted(evidence, {(s, "3d-scratch", "object"): 2.0 for s in SOURCES})


def test_3d_is_better_and_looks_more_at_the_object(better):
    said = abstract(better)
    assert said.startswith(
        "The attention maps of the 3D network lie more on the object than those of the 2D network, "
        "with no clear difference on the hand."
    )
    assert re.search(r"3D network is right on \d+ % of the clips and the 2D network on \d+ %", said)
    assert (
        "Of 2 ways to make maps, the 2 that passed our tests agree on the object and the hand."
        in said
        and "once" in said
    )
    object, hand = compare_places(better)
    assert (object.said, hand.said) == ("larger", "unclear")
    assert f"has {object.deep:.2f} on the object and the 2D network {object.flat:.2f}" in said


def test_nothing_is_found(tmp_path):
    said = abstract(made_up(tmp_path, seeds=[0], deep=0.0, clips=60))
    assert said.startswith(
        "We find no clear difference between the attention maps of the 3D network"
    )
    assert "we cannot tell them apart" in said and " more on " not in said


def test_the_opposite_is_found(tmp_path):
    evidence = made_up(tmp_path, seeds=[0], deep=-4.0, clips=60)
    less = {(s, "3d-scratch", place): -2.0 for s in SOURCES for place in ("object", "hand")}
    said = abstract(shifted(evidence, less))
    assert said.startswith(
        "The attention maps of the 3D network lie less on the object and the hand than"
    )
    assert re.search(
        r"the 2D network is right on \d+ % of the clips, more than the 3D network", said
    )


def test_there_are_no_boxes(tmp_path):
    said = abstract(made_up(tmp_path, seeds=[0], boxes=False, clips=60))
    assert said.startswith("Where these networks look, we cannot tell: the clips came without")
    assert "Without hand and object" not in said and "ways to" not in said


def test_maps_are_refused(tmp_path):
    said = abstract(made_up(tmp_path, seeds=[0], right=0.0, clips=60))
    assert said.startswith("Where these networks look, we cannot tell: none of the 2 ways")
    assert "on the object" not in said and "agree" not in said


def test_sources_of_maps_disagree(better):
    turned = {("layer1:layercam", "3d-scratch", "object"): -4.0}
    said = abstract(shifted(better, turned))
    assert "more on the object than" not in said and "less on the object" not in said
    assert "depends on the layer" in said and "disagree on the object" in said
    hand = {(s, "3d-scratch", "hand"): 2.0 for s in SOURCES}
    both = abstract(shifted(better, turned | hand))
    assert both.startswith("The attention maps of the 3D network lie more on the hand than")
    assert "agree on the hand but disagree on the object." in both


def test_three_seeds_speak_of_architectures(tmp_path):
    said = abstract(made_up(tmp_path, seeds=[0, 1, 2], clips=60))
    assert "3 times" in said and "hold for the architectures or for these networks" in said
    assert "one run" not in said


def test_what_is_missing_is_said(tmp_path):
    evidence = made_up(tmp_path, seeds=[0, 1], without=("3d-scratch-s0", "3d-scratch-s1"))
    said = abstract(evidence)
    assert "are not compared: runs or maps are missing" in said
    assert "Of 8 runs, 2 are missing or without maps." in said and "twice" in said
    part = evidence.study.model_copy(update=dict(left_out="half of it"))
    assert "Only a part of the study was run." in abstract(replace(evidence, study=part))


def test_grids_differ(tmp_path):
    said = abstract(made_up(tmp_path, seeds=[0], grids={"3d-scratch": 1}))
    assert "are not compared: their grids differ" in said


def test_one_network_is_alone(better):
    experiments = {"2d-multi": better.study.experiments["2d-multi"]}
    alone = better.study.model_copy(update=dict(experiments=experiments, hypotheses={}))
    said = abstract(replace(better, study=alone))
    assert "the maps of 2D, eight frames have" in said and "One network was trained once" in said
    assert "than" not in said.replace("More than", "")


def test_a_difference_that_no_hypothesis_names_is_described(better):
    bare = better.study.model_copy(update=dict(hypotheses={}))
    said = abstract(replace(better, study=bare))
    assert "which is chance" in said and "pretraining" not in said


@pytest.mark.parametrize(
    "accuracy, learning, said",
    [
        ("supported", "supported", "raises the accuracy of a 3D network from 90.0 % to 95.0 %; with pretraining it learns sooner."),
        ("contradicted", "undecided", "lowers the accuracy of a 3D network from 90.0 % to 95.0 %."),
        ("undecided", "contradicted", "is undecided (right on 90.0 % without, 95.0 % with it); with pretraining it learns later."),
        ("smaller", "supported", "by less than matters (90.0 %, then 95.0 %); with pretraining it learns sooner."),
    ],
)  # fmt: skip
def test_pretraining_is_judged_by_accuracy_and_by_learning(better, accuracy, learning, said):
    judged = judge_hypotheses(better, compare_sources(better))
    judged.loc[["inflation", "earlier"], ["mean", "a", "b"]] = 0.05, 0.95, 0.9
    judged.loc["inflation", "verdict"], judged.loc["earlier", "verdict"] = accuracy, learning
    found = without_links(pretraining_sentence(better, judged)).replace("\u00a0", " ")
    assert found.endswith(said), found


def of_twins(evidence, tmp_path, alike):
    "The same runs, with the rank correlation of the maps of twins by (source, experiment)."
    rng = np.random.default_rng(0)
    for experiment, seed in evidence.study.runs:
        rows = [
            dict(
                source=s, map="minus twin", id=str(k), twin_correlation=value + rng.normal(0, 0.02)
            )
            for s in evidence.usable
            for k, value in enumerate([alike.get((s, experiment), 0.9)] * 30)
        ]
        run = tmp_path / "runs" / evidence.study.folder(experiment, seed)
        run.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(run / "sources.parquet")
    (tmp_path / "tables_validation").mkdir()
    (tmp_path / "tables_validation" / "twins.csv").touch()
    return replace(evidence, results=tmp_path)


def test_maps_of_twins_are_told_of_where_all_sources_say_the_same(better, tmp_path):
    assert twin_sentence(better) == ""
    lower = {(s, "3d-scratch"): 0.3 for s in better.usable}
    said = without_links(twin_sentence(of_twins(better, tmp_path / "lower", lower)))
    assert "of its reverse are less alike in the 3D network than in the 2D network (rank" in said
    assert re.search(r"rank correlation 0\.[23]\d against 0\.[89]\d\)\.$", said), said
    assert len(words_of(said)) <= 30
    one = dict(list(lower.items())[:1])
    assert twin_sentence(of_twins(better, tmp_path / "one", one)) == ""
