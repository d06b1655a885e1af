"""The words that a run writes for the report, and its case studies, on small made-up runs."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_verdicts import found, generated, made_up

from ssv2_report.analysis import cases, sentences
from ssv2_report.analysis.estimates import Learning
from ssv2_report.analysis.stats import VERDICTS
from ssv2_report.analysis.summary import Place
from ssv2_report.analysis.verdicts import compare_sources, judge_hypotheses
from ssv2_report.study.experiments import Hypothesis

NAMES = {"a": "A", "b": "B"}


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def selected(evidence):
    return cases.select_cases(generated(evidence))


def of(evidence, **kw):
    "The same evidence of a study with other keys."
    return replace(evidence, study=evidence.study.model_copy(update=kw))


def one_network(evidence):
    experiments = evidence.study.experiments
    return of(evidence, experiments={"2d-multi": experiments["2d-multi"]}, hypotheses={})


# --- alternative texts and captions


def test_means_are_told_network_by_network():
    tables = dict(question=found(dict(a=0.5, b=np.nan)), other=found(dict(a=0.25, b=1.0)))
    said = sentences.means_sentence(tables, NAMES)
    assert said == "Question: A – 50 %. Other: A – 25 %; B – 100 %."
    assert sentences.means_sentence(tables, NAMES, 1, "", 2).startswith("Question: A – 0.50.")


def test_figures_have_texts(evidence):
    compute = sentences.compute_sentence(evidence)
    assert compute.count("GFLOPs") == 4 and compute.endswith("%.")
    curves = pd.DataFrame(dict(a=[0.1, 0.5, np.nan]))
    said = sentences.curves_sentence(curves, NAMES)
    assert said == "After the last epoch, top-1 is 50\u00a0% for all networks."
    assert sentences.pairs_sentence(evidence).count("–") >= 4
    none = replace(evidence, about={k: dict(classes=["x"]) for k in evidence.about})
    assert sentences.pairs_sentence(none) == ""
    assert sentences.when_sentence(dict(b=3), NAMES).endswith("strongest in frame 3 (B).")
    assert sentences.when_sentence({}, NAMES) == ""


def test_classes_at_the_ends_are_named(evidence):
    gain = pd.Series({0: 0.5, 1: -0.25, 2: 0.0})
    said = sentences.class_extremes(gain, evidence)
    assert "largest difference of 3D from scratch and 2D" in said and "(+50)" in said
    assert "(-25)" in said
    alone = sentences.class_extremes(gain, one_network(evidence))
    assert "largest accuracy" in alone and "(50)" in alone
    assert sentences.class_extremes(gain * np.nan, evidence) == ""


def test_captions_say_how_much_is_shown(evidence):
    rows = pd.DataFrame(dict(target=[0, 0, 1], id=["x", "y", "z"]))
    assert sentences.clips_a_class(rows) == "Of each class: 1 to 2 clips."
    assert sentences.clips_a_class(rows[1:]) == "Of each class: 1 clip."
    many = sentences.shown_classes(range(30), range(24), evidence)
    assert many.startswith(" Of 30 classes, the 24 with the largest gain and loss from 2D")
    assert "highest and lowest" in sentences.shown_classes(
        range(30), range(24), one_network(evidence)
    )
    assert sentences.shown_classes(range(3), range(3), evidence) == ""
    of_pairs = len(evidence.pairs)
    assert sentences.shown_pairs([*evidence.pairs], evidence) == ""
    assert f"Of {of_pairs} pairs, the 1 with" in sentences.shown_pairs([1], evidence)
    assert sentences.shown_pairs([1], one_network(evidence)) == f"The first 1 of {of_pairs} pairs."
    assert sentences.alike_sentence({}) == ""
    assert sentences.alike_sentence(dict(batch=6, epochs=1)) == (
        "Alike for all: batch 6; epochs 1."
    )


# --- the study


def test_the_study_is_told(evidence):
    words = sentences.study_words(evidence, 1)
    assert words["networks"].startswith("2D, one frame; 2D, ") and words["seed"] == 1
    assert words["classes"] == "10 classes" and words["val_clips"] == words["scenes"] == "30"
    assert words["dataset"] == "Something-Something V2" and not words["counterbalanced"]
    world = sentences.study_words(generated(evidence), 0)
    assert world["counterbalanced"] and world["scenes"] == "15"
    alone = sentences.study_words(one_network(of(evidence, seeds=[0])), 0)
    assert alone["networks"] == "2D, eight frames" and alone["them"] == "this network"


def test_groups_are_counted():
    groups = dict(reversal=[0, 1], static=[2], other=[3, 4])
    assert sentences.group_sentence(groups) == "2 in time-reversal pairs, 1 static and 2 others"
    assert sentences.group_sentence(dict(other=[0])) == "1 other"


def test_what_is_lost_or_left_out_is_said(evidence):
    assert sentences.lost_words(evidence) == {} == sentences.part_words(evidence.study)
    lost = replace(evidence, missing=evidence.missing | dict(maps=["x-s0"], history=["x-s0"]))
    assert sentences.lost_words(lost)["said"] == "1 of 8 runs is missing or without maps (x-s0)"
    two = replace(lost, missing=lost.missing | dict(frames=["y-s1"]))
    assert sentences.lost_words(two)["said"].startswith("2 of 8 runs are missing")
    assert sentences.lost_words(two)["names"] == "x-s0, y-s1"
    reliance = replace(evidence, missing=evidence.missing | dict(reliance=["x-s0"]))
    assert sentences.lost_words(reliance) == {}  # its hypotheses say so
    part = evidence.study.model_copy(update=dict(left_out="*half* of it"))
    assert sentences.part_words(part) == dict(said=r"\*half\* of it")


def test_few_seeds_are_told(evidence):
    said = dict(few=True, said="2 seeds for each network", mean=", mean over seeds")
    assert sentences.seed_words(evidence) == said
    assert sentences.seed_words(one_network(of(evidence, seeds=[0])))["said"] == "1 seed"
    assert not sentences.seed_words(of(evidence, seeds=[0, 1, 2]))["few"]


def test_grids_are_told_with_their_networks_where_they_differ(evidence):
    assert sentences.grid_sentence({}, NAMES) == "no"
    assert sentences.grid_sentence(dict(a=(2, 3, 3), b=(2, 3, 3)), NAMES) == "2 x 3 x 3"
    said = sentences.grid_sentence(dict(a=(2, 3, 3), b=(4, 3, 3)), NAMES)
    assert said == "2 x 3 x 3 (A); 4 x 3 x 3 (B)"
    words = sentences.limit_words(evidence, dict(effective_frames=1000, ratio_both=90), True)
    assert words["placed"] == "90 of 1,000" and words["emptied"] and not words["no_boxes"]
    assert (
        sentences.limit_words(evidence, dict(effective_frames=9, ratio_both=9), False)["placed"]
        == ""
    )


def test_an_audit_is_told():
    table = pd.DataFrame(dict(id=["x", "y", "y"], reason=["torn", "dark", "dark"]))
    audit = SimpleNamespace(table=table, fatal=table[:1], lost=["x"], summary=lambda: "1 torn.")
    audit.of = lambda classes: SimpleNamespace(unseen=(classes or [], 0.75))
    told = dict(summary="1 torn", remarks="dark (1 clip)", unseen="")
    assert sentences.audit_words(audit) == told
    assert sentences.audit_words(None) == dict.fromkeys(told, "")
    unseen = sentences.audit_words(audit, ["Folding something"])["unseen"]
    assert "Folding something" in unseen and "accuracy can reach 75.0% at most" in unseen
    audit.lost = []
    assert sentences.audit_words(audit)["summary"] == ""


def test_pairs_are_told(evidence):
    words = sentences.pair_words(evidence)
    assert words["any"] and words["sampled"] and words["clips"] == "24"
    assert not sentences.pair_words(generated(evidence))["sampled"]
    none = replace(evidence, about={k: dict(classes=["x"]) for k in evidence.about})
    words = sentences.pair_words(none)
    assert not words["any"] and words["low"] == "–"


# --- hypotheses


def test_hypotheses_are_grouped_by_what_they_are_about(evidence):
    def group(measure, a="3d-scratch", b="2d-multi", **kw):
        h = Hypothesis(says="x", measure=measure, of=a, over=b, **kw)
        return sentences.hypothesis_group(h, evidence.study.experiments)

    assert group("pair_right") == "order"
    assert group("pair_right", "2d-multi", "3d-scratch") is None  # another direction
    assert group("pair_right", within=0.1) is None
    assert group("right", clips="static") is None
    assert group("learning", "3d-inflated", "3d-scratch") == "learning"
    assert group("learning", "3d-scratch", "3d-inflated") is None
    assert group("ratio_hand") == group("pointing") == "place"
    assert group("ratio_background") is group("ratio_action") is group("path_hand") is None
    assert group("similarity", "3d-inflated", "3d-scratch", to="2d-multi") is None


def test_groups_and_sections_follow_the_verdicts(evidence):
    judged = judge_hypotheses(evidence, compare_sources(evidence))
    words = sentences.group_words(judged, evidence.study)
    assert list(words) == ["order", "place", "learning"]
    as_if = judged.assign(verdict="contradicted", scope="these networks", why="")
    order = sentences.group_words(as_if, evidence.study)["order"]
    assert order["contradicted"] and not order["supported"] and not order["open"]
    undecided = sentences.group_words(judged.assign(verdict="undecided"), evidence.study)
    depends = judged.assign(verdict="depends", scope="", why="larger at stem, smaller at layer2")
    place = sentences.group_words(depends, evidence.study)["place"]
    assert place["depends"] and not place["open"] and undecided["order"]["open"]
    none = evidence.study.model_copy(update=dict(hypotheses={}))
    assert not any(sentences.group_words(judged[:0], none)["order"].values())
    finds = sentences.finding_words(as_if, evidence.study.hypotheses)
    assert finds["order"].startswith("The hypotheses *order* ([")
    assert finds["order"].endswith("are contradicted for these networks.")
    said = sentences.finding_words(depends, evidence.study.hypotheses)["attention"]
    assert "([larger at stem, smaller at layer2](" in said
    assert said.endswith("depend on the source of maps.")
    assert set(sentences.finding_words(judged[:0], {}).values()) == {
        "No hypothesis about this was declared."
    }


def test_every_verdict_has_its_words(evidence):
    assert list(sentences.BECAME) == list(VERDICTS)
    judged = judge_hypotheses(evidence, compare_sources(evidence))
    hypotheses = evidence.study.hypotheses
    one = judged.iloc[[0]].assign(verdict="too few", why="", scope="")
    said = sentences.verdict_words(one, hypotheses)
    assert said.startswith("The hypothesis *order* (") and "of at least 12 scenes)" in said
    assert said.endswith("has too few scenes to judge.")
    lost = judged.iloc[[0]].assign(verdict="not judged", why="not judged, since it rains", scope="")
    assert "*order* (since it rains) is not judged." in sentences.verdict_words(lost, hypotheses)
    both = pd.concat([judged.iloc[[1]].assign(verdict="undecided", scope=""), one])
    said = sentences.verdict_words(both, hypotheses)
    assert said.index("undecided") < said.index("too few")


def test_captions_say_what_to_see(evidence):
    judged = judge_hypotheses(evidence, compare_sources(evidence))
    told = dict(place="Here.", numbers="1 and 2.")
    left = evidence.accuracies_without()
    see = sentences.see_words(evidence, judged, left, told, {"3d-scratch": 2})
    assert see["order"].startswith("Telling the two classes of a pair apart, accuracy runs from ")
    assert re.search(r"^Without hand and object, accuracy runs from \d+", see["reliance"])
    assert see["when"].endswith("frame 2 (3D from scratch).")
    counted = [int(n) for n in re.findall(r"(?:: |, | and )(\d+) ", see["hypotheses"])]
    assert sum(counted) == len(judged)
    bare = replace(evidence, about={k: dict(classes=["x"]) for k in evidence.about})
    see = sentences.see_words(of(bare, hypotheses={}), judged[:0], {}, told, {})
    assert see["order"].startswith("On all classes") and see["reliance"] == ""
    assert see["hypotheses"] == "No hypothesis was declared."


# --- maps and use


def test_methods_have_names():
    names = [sentences.method_name(m) for m in ("gradcam", "hirescam", "gradcam++", "edges")]
    assert names == ["Grad-CAM", "HiResCAM", "Grad-CAM++", "edges"]


def test_the_source_of_maps_says_whether_it_can_be_believed(evidence):
    words = sentences.source_words(evidence)
    assert words["believed"] and words["name"] == "Grad-CAM at layer2" and words["ruled"]
    assert words["share"].endswith("%") and words["doubted"] == ""
    choice = dict(evidence.choice, interpretable=False, why="x: too few scenes")
    bad = evidence.sources.assign(interpretable=evidence.sources["experiment"] != "2d-multi")
    words = sentences.source_words(replace(evidence, choice=choice, sources=bad))
    assert words["best"] and not words["believed"] and words["doubted"] == "2D, eight frames"
    assert "too few clips" in words["why"]
    cam = evidence.study.cam.model_copy(update=dict(source=evidence.source))
    words = sentences.source_words(replace(of(evidence, cam=cam), choice=choice, sources=bad))
    assert words["declared"] and words["unproven"] and not words["best"]
    words = sentences.source_words(replace(evidence, choice=choice, sources=bad[:0]))
    assert not words["judged"] and words["share"] == words["doubted"] == ""


def test_reliance_is_told_with_what_a_network_loses_most_by(evidence):
    left = dict.fromkeys(evidence.titles, 0.5)
    ways = {(p, "blurred"): found(left) for p in ("nothing", "hand and object", "background")}
    words = sentences.reliance_words(evidence, ways)
    assert words["done"] and words["networks"].count(" is right on [50") == 2
    assert "with all but hand and object painted over" in words["networks"]
    drawn = sentences.reliance_words(evidence, ways | {("background", "rendered"): found(left)})
    assert "on another background" in drawn["networks"]
    missing = {k: v for k, v in ways.items() if k[0] != "background"}
    assert "and on – " in sentences.reliance_words(evidence, missing)["networks"]
    none = replace(evidence, taken=evidence.taken[:0])
    assert not sentences.reliance_words(none, {})["done"]


def test_what_a_network_loses_most_by(evidence):
    nothing = lambda mean: {("nothing", "blurred"): found({"2d-multi": mean})}
    ids = [str(k) for k in range(40)]

    def used(**shares):
        "Of each part, the share of 40 clips that are lost without it: the first ones."
        lost = {
            m: np.nan if s != s else [float(k < s * 40) for k in range(40)]
            for m, s in shares.items()
        }
        return replace(evidence, used=pd.DataFrame(dict(experiment="2d-multi", id=ids, **lost)))

    said = lambda e, mean=0.9: sentences.loss_clause(e, nothing(mean), "2d-multi")
    assert said(used(uses_hand=0.1, uses_object=0.8)).endswith("loses most without the object")
    near = said(used(uses_hand=0.55, uses_object=0.575, uses_background=0.1))
    assert near.endswith(
        "we cannot tell whether it loses most without the object or without the hand"
    )
    tie = said(used(uses_hand=0.5, uses_object=0.5))
    assert "we cannot tell" in tie and "the hand" in tie and "the object" in tie
    assert said(used(uses_object=0.5)).endswith("loses most without the object")
    assert "nothing without any" in said(used(uses_hand=0.0, uses_background=np.nan))
    assert said(used(uses_hand=np.nan)) == "" == said(used())
    assert "nothing to lose" in said(used(uses_hand=0.1), 0.15)


# --- case studies


def test_twins_are_clips_of_one_scene():
    scenes = dict(x="1", y="1", u="2", v="2", w="2")
    assert cases.scene_twins("xyuvwz", scenes) == dict(x="y", y="x")


def test_cases_are_selected_with_what_networks_say(selected):
    evidence = selected.evidence
    assert list(selected.table)[:4] == ["id", "kind", "target", "label"]
    assert selected.networks == ["2d-multi", "3d-scratch", "3d-inflated"]
    id = selected.table["id"][0]
    said = selected.verdict("3d-scratch", id)
    row = selected.answer("3d-scratch", id)
    assert said == f"{'✓' if row['right'] else '✗'} " + "{} ({})".format(
        *cases.named_answer(row, evidence.classes)
    )
    assert selected.table[evidence.titles["3d-scratch"]][0] == said
    assert selected.verdict("3d-scratch", "no clip") == "–"
    words = sentences.case_words(selected)
    kinds = set(selected.table["kind"])
    assert words["twins"]
    for kind, said in sentences.CASE_KINDS.items():
        assert (said in words["none"]) == (kind not in kinds), kind


def test_kinds_that_need_both_sorts_of_networks_are_not_missed(selected):
    flat = {e: x for e, x in selected.evidence.study.experiments.items() if not x.is_3d}
    only_2d = replace(selected, evidence=of(selected.evidence, experiments=flat))
    words = sentences.case_words(only_2d)
    assert "3D" not in words["none"]


def test_an_unsure_answer_is_neither_right_nor_wrong(selected):
    id = selected.table["id"][0]
    answers = selected.answers
    mark = lambda certainty, right: replace(
        selected, answers=answers.assign(certainty=certainty, right=right)
    ).verdict("3d-scratch", id)
    assert mark(0.51, True).startswith("? ") and mark(0.51, True).endswith("(51\u00a0%, unsure)")
    assert mark(0.51, False).startswith("? ")
    assert mark(0.6, True).startswith("✓ ") and mark(0.9, False).startswith("✗ ")


def of_object(selected, deep, flat):
    "The same cases, whose maps have so much on the object for each clip."
    measured = selected.evidence.measured.copy()
    own = measured["method"] == selected.evidence.source
    for experiment, values in {"3d-scratch": deep, "2d-multi": flat}.items():
        rows = own & (measured["experiment"] == experiment)
        measured.loc[rows, "ratio_object"] = measured.loc[rows, "id"].map(values)
    return replace(selected, evidence=replace(selected.evidence, measured=measured))


def test_a_case_says_when_it_goes_against_the_mean(selected):
    ids = list(selected.answers["id"].unique())
    odd, *others = ids
    deep = dict.fromkeys(others, 3.0) | {odd: 1.0}
    cases_of = of_object(selected, deep, dict.fromkeys(ids, 2.0))
    places = [Place("object", 2.9, 2.0, 0.9, "larger")]
    said = cases.place_of_case(cases_of, odd, places)
    assert said == (
        "On the object, the 3D network has 1.0 times what an even map has, and the 2D network 2.0; "
        "this goes against the mean of all clips (2.9 and 2.0)."
    )
    with_it = cases.place_of_case(cases_of, others[0], places)
    assert "against the mean" not in with_it and "has 3.0 times" in with_it
    unclear = [Place("object", 2.9, 2.0, 0.9, "unclear")]
    assert "against the mean" not in cases.place_of_case(cases_of, odd, unclear)
    assert cases.place_of_case(cases_of, "no clip", places) == ""


def test_the_first_figure_shows_the_clip_nearest_the_mean(selected):
    ids = list(selected.answers["id"].unique())
    apart = {id: float(k == 3) + 9.0 * (k == 5) for k, id in enumerate(ids)}  # their mean is 0.33
    deep = {id: 2.0 + apart[id] for id in ids} | {ids[7]: 2.3}
    shown = of_object(selected, deep, dict.fromkeys(ids, 2.0))
    assert cases.typical_clip(shown) == ids[7]
    measured = selected.evidence.measured.assign(ratio_object=np.nan)
    bare = replace(selected, evidence=replace(selected.evidence, measured=measured))
    assert cases.typical_clip(bare) == selected.table["id"].iloc[0]


class Clips:
    "Noise in the place of clips, with a hand."

    ids = [str(i) for i in range(30)]

    def __getitem__(self, k):
        clip = torch.randn(3, 4, 128, 128, generator=torch.Generator().manual_seed(k))
        return dict(clip=clip, hand=np.zeros((4, 128, 128), bool))


def test_maps_are_in_times_of_an_even_one(selected):
    id = selected.table["id"][0]
    m = cases.relative_map(selected, "3d-scratch", id)
    assert m.shape == (4, 128, 128) and m.mean() == pytest.approx(1, rel=1e-3)
    assert cases.relative_map(selected, "3d-scratch", "no clip") is None
    assert cases.colour_scale(selected) >= 2
    assert cases.colour_scale(replace(selected, table=selected.table[:0])) == 2
    held = sum(cases.relative_map(selected, e, id).sum((1, 2)) for e in selected.networks)
    assert cases.opening_frame(selected, id) == held.argmax()
    assert cases.opening_frame(selected, "no clip") == 0


def test_cases_are_drawn_for_page_and_print(selected, tmp_path):
    with_twin = selected.table[selected.table["id"].isin(selected.twins)][:1]
    selected = replace(selected, table=with_twin)
    vars(selected.evidence)["scenes"] = {}
    own, reverse = cases.case_rows(selected, Clips(), next(with_twin.itertuples()), 2.0)
    assert len(own) == 1 + 3 and list(reverse) == list(own)
    (heading, frames), *maps = reverse.values()
    assert heading.startswith("The same frames backwards: ") and len(frames) == 4
    assert [name.partition(":")[0] for name, _ in maps] == [k.partition(":")[0] for k in [*own][1:]]
    ((title, shown, said),) = cases.draw_cases(selected, Clips(), tmp_path, 6)
    assert title.startswith(f"Case 1, {with_twin['kind'].iloc[0]}: ") and shown.below
    assert said == cases.place_of_case(selected, with_twin["id"].iloc[0])
    first = cases.draw_typical(selected, Clips(), tmp_path, 6)
    assert len(first.columns) == 3 and "<input" not in first.html
    files = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()}
    assert {"players/case1.html", "case1.png", "case1.pdf", "readme.png", "attention.svg"} <= files
    alone = replace(selected, twins={})
    ((_, shown, _),) = cases.draw_cases(alone, Clips(), tmp_path, 6)
    assert not shown.below


# --- the rest


def test_known_answers_are_counted():
    known = pd.DataFrame(
        dict(experiment=["a", "b"], question="order", low=0.4, high=0.6, found=[0.5, 0.7])
    ).assign(holds=[True, False])
    words = sentences.known_words(known, NAMES)
    assert (words["held"], words["all"]) == (1, 2)
    said = words["missed"].replace("\u00a0", " ")
    assert said == "B on order reached 70.0 % (wanted 40.0 % to 60.0 %)"
    assert sentences.known_words(known[:0], NAMES) == dict(any=False, held=0, all=0, missed="")


def test_epochs_are_told_where_there_is_a_target(evidence):
    curves = pd.DataFrame({"2d-multi": [0.1], "3d-scratch": [0.5]})
    learning = Learning(curves, 0.45, {"2d-multi": None, "3d-scratch": 1})
    words = sentences.epoch_words(learning, evidence)
    assert words["pretrained"] and "passes 45.0\u00a0%, nine tenths" in words["columns"]
    words = sentences.epoch_words(Learning(curves, np.nan, {}), evidence)
    assert words["columns"] == "Epochs trained"
    assert not sentences.epoch_words(learning, one_network(evidence))["pretrained"]


def test_validation_is_told(evidence):
    assert sentences.validation_words(evidence, None) == dict(
        any=False, here=False, sources=False, left_out="", all_pass=False
    )
    assert sentences.validation_words(evidence, set())["all_pass"]
    words = sentences.validation_words(evidence, {"ratio_both", "unheard of"})
    assert words["left_out"] == "share on hand or object / its area; unheard of"
    assert not words["all_pass"]


def test_what_a_source_holds_beside_a_distractor_is_said_where_it_is_known():
    judged = pd.DataFrame(
        dict(evidence=[20.61, 22.5], distractor=0.3, beside_edges=4.8, beside_edges_other=4.8)
    )
    words = sentences._beside_words(judged)
    assert words["beside"] is True and "[20.6 to 22.5](" in words["evidence"]
    assert words["distractor"].startswith("[0.3](") and yaml.safe_dump(words)
    for rows in (judged.drop(columns="evidence"), judged.assign(evidence=np.nan)):
        assert sentences._beside_words(rows)["beside"] is False
