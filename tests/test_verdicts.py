"""What the runs say: read once, as estimates in tables and figures, as verdicts on hypotheses, and what was trained."""

import json
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from ssv2_report.analysis import estimates, methods, verdicts
from ssv2_report.analysis.evidence import (
    class_groups,
    compact_scores,
    compared_networks,
    count_empty,
    known_maps,
    read_evidence,
    read_metrics,
    reversal_pairs,
    select_group,
    share_over_frozen,
)
from ssv2_report.analysis.simulated import SIMULATED, simulate
from ssv2_report.analysis.tables import listing, mean_over_seeds, show_table, side_by_side
from ssv2_report.analysis.validation import interpretable_sources
from ssv2_report.study.experiments import Hypothesis, load_study
from ssv2_report.study.runs import file_of

CLASSES = ["Folding something", "Unfolding something", "Holding something", "Waving at nobody"]
COMPARED = SimpleNamespace(flat="2d-multi", deep="3d-scratch")
TITLES = {"a": "A", "b": "B"}


def made_up(folder, seeds=(0, 1), edit=None, **kw):
    "The evidence of a small study with made-up runs of 30 clips."
    study = load_study("smoke")
    data = study.data.model_copy(update=dict(demo=None, root=str(folder / "data")))
    study = study.model_copy(update=dict(seeds=list(seeds), data=data))
    simulate(study, folder, **dict(clips=30) | kw)
    if edit:
        edit(folder)
    return read_evidence(study, folder)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("runs"))


def generated(evidence):
    "The same, of a generated world in which every scene has two clips."
    data = evidence.study.data.model_copy(update=dict(demo=object()))
    world = replace(evidence, study=evidence.study.model_copy(update=dict(data=data)))
    vars(world)["scenes"] = {str(i): str(i // 2) for i in range(30)}
    return world


def judged_of(evidence):
    return verdicts.judge_hypotheses(evidence, verdicts.compare_sources(evidence))


def with_hypothesis(evidence, **kw):
    "The hypothesis, and the evidence of a study that declares it alone."
    h = Hypothesis(says="it is so", **dict(of="3d-scratch", over="2d-multi") | kw)
    study = evidence.study.model_copy(update=dict(hypotheses=dict(h=h)))
    return h, replace(evidence, study=study)


def found(values, clips=10):
    "Estimates of networks by name."
    table = pd.DataFrame(dict(mean=values))
    return table.assign(lo=table["mean"] - 0.1, hi=table["mean"] + 0.1, clips=clips)


# --- what the runs say


def test_classes_are_grouped_by_pairs_and_by_what_people_see():
    assert reversal_pairs(CLASSES) == {1: ("Folding something", "Unfolding something")}
    groups = class_groups(CLASSES)
    assert groups["reversal"] == [0, 1] and 3 in groups["other"]
    assert sorted({i for g in groups.values() for i in g}) == [0, 1, 2, 3]
    assert "reversal" not in class_groups(CLASSES[1:])


def test_rows_of_a_group_or_of_named_classes_are_selected():
    rows = pd.DataFrame(dict(target=[0, 1, 2, 3, 0]))
    assert len(select_group(rows, CLASSES)) == 5
    assert list(select_group(rows, CLASSES, "reversal")["target"]) == [0, 1, 0]
    assert select_group(rows, CLASSES, "temporal").empty
    assert list(select_group(rows, CLASSES, ["Holding something"])["target"]) == [2]
    with pytest.raises(ValueError, match="'Holding it' is no class .*'Holding something'"):
        select_group(rows, CLASSES, ["Holding it"])


def test_runs_that_are_not_there_or_do_not_agree_are_refused(tmp_path):
    study = load_study("smoke")
    with pytest.raises(FileNotFoundError, match="ssv2 reproduce smoke"):
        read_metrics(study, tmp_path)
    simulate(study, tmp_path, clips=10, without=("2d-multi-s0",))
    assert "2d-multi-s0" not in read_metrics(study, tmp_path)
    file = tmp_path / "runs" / "3d-scratch-s0" / "metrics.json"
    file.write_text(json.dumps(dict(classes=["another"])))
    with pytest.raises(ValueError, match="different classes"):
        read_metrics(study, tmp_path)


def test_scores_take_little_memory():
    rows = dict(id=["x"], target=[0], pred=[0], logits=[[2.0, 1, 0, 0]], order=["ordered"])
    scores = compact_scores(pd.DataFrame(rows), CLASSES)
    assert scores["target"].dtype == "int16" and scores["certainty"].dtype == "float32"
    assert list(scores["order"].cat.categories)[:2] == ["ordered", "reversed"]


def test_empty_maps_are_counted_for_each_source():
    rows = dict(method=["s:m", "s:m", "t:m", "noise"], effective_frames=[1.0, np.nan, 2.0, np.nan])
    counts = count_empty(pd.DataFrame(rows)).set_index("method")
    assert counts.loc["s:m"].tolist() == [2, 1] and counts.loc["t:m"].tolist() == [1, 0]
    assert "noise" not in counts.index


def test_what_padding_does_is_taken_out_of_shares():
    rows = dict(id=["x", "x"], t=[0, 1], mass=[0.75, 0.25], mass_frozen=[0.5, 0.5])
    rows = pd.DataFrame(rows | dict(method=["s:m", "other"]))
    assert share_over_frozen(rows, "s:m").values.tolist() == [["x", 0, 0.25]]


def test_networks_are_compared_as_the_hypotheses_name_them():
    study = load_study("smoke")
    assert compared_networks(study)[:2] == ("2d-multi", "3d-scratch")
    none = study.model_copy(update=dict(hypotheses={}))
    assert compared_networks(none).inflated == "3d-inflated"
    one = none.model_copy(update=dict(experiments={"x": study.experiments["2d-multi"]}))
    assert set(compared_networks(one)) == {"x"}


def test_all_tables_are_of_the_source_that_was_chosen(evidence):
    assert evidence.source == evidence.choice["source"] and evidence.stage == "layer2"
    assert set(evidence.cam["method"]) == {evidence.source}
    assert set(evidence.beside["method"]) == set(known_maps("layer2"))
    assert evidence.usable == interpretable_sources(evidence.sources) != []
    assert evidence.n_frames == 4 and "pointing" in evidence.measures
    assert "ratio_action" not in evidence.measures  # nobody has measured it
    assert evidence.missing["maps"] == [] and set(evidence.cost) == set(evidence.titles)
    assert evidence.grids() == dict.fromkeys(evidence.titles, (2, 3, 3))
    ids, maps = evidence.maps("3d-scratch", 1)
    assert len(ids) == len(maps) == 30


def test_missing_runs_are_told_by_table(tmp_path):
    evidence = made_up(tmp_path, without=("3d-scratch-s1",), grids=dict({"3d-scratch": 1}))
    assert evidence.missing["maps"] == evidence.missing["predictions"] == ["3d-scratch-s1"]
    assert evidence.grids()["3d-scratch"] == (1, 3, 3)
    (tmp_path / "runs" / "2d-multi-s0" / "maps" / file_of(evidence.source)).unlink()
    assert evidence.maps("2d-multi", 0) is None and "2d-multi" in evidence.grids()


def test_accuracies_answer_three_questions_of_the_same_predictions(evidence):
    all_classes, pairs = (evidence.accuracies[q] for q in ("all classes", "which of the pair"))
    assert list(all_classes.index) == list(evidence.titles)
    right = mean_over_seeds(evidence.ordered, "right")["3d-scratch"].mean()
    assert all_classes.loc["3d-scratch", "mean"] == pytest.approx(right)
    in_pairs = evidence.ordered["in_pair"] & (evidence.ordered["experiment"] == "2d-multi")
    assert pairs["clips"].max() == evidence.ordered[in_pairs]["id"].nunique() < 30
    groups, orders = evidence.accuracies_by_group(), evidence.accuracies_by_order()
    assert list(groups) == list(evidence.groups)
    assert list(orders) == ["ordered", "reversed", "shuffled", "frozen"]
    assert orders["ordered"]["mean"].equals(all_classes["mean"])
    assert ("hand", "blurred") in evidence.accuracies_without()


# --- estimates


def test_a_cell_says_on_how_many_clips_it_rests():
    tables = {"q": found(dict(a=0.5, b=0.25)).assign(clips=[10, 7])}
    texts = estimates.estimate_texts(tables, TITLES, factor=100, digits=0)
    assert texts.loc["a", "q"].replace("\u00a0", " ") == "50 [40, 60]"
    assert texts.loc["b", "q"].endswith("(n\u00a0=\u00a07)")
    assert list(estimates.accuracy_texts(tables, TITLES)) == ["network", "q"]
    assert estimates.clips_by_column(tables) == "q: 10"


def test_top5_is_told_of_each_network(evidence):
    off = estimates.calibration_texts(evidence.ordered, evidence.titles)
    assert len(off) == len(evidence.titles) and all(0 <= float(x) <= 100 for x in off)
    sure = evidence.ordered.assign(certainty=evidence.ordered["right"].astype(float))
    assert set(estimates.calibration_texts(sure, evidence.titles)) == {"0.0"}
    texts = estimates.top5_texts(evidence.ordered, evidence.titles)
    mean = evidence.ordered.groupby("experiment", observed=True)["top5"].mean()
    assert texts == [f"{100 * mean[e]:.1f}" for e in evidence.titles]


def test_figures_show_every_network_and_group():
    tables = {"q": found(dict(a=0.5, b=0.25)), "r": found(dict(a=0.1, b=np.nan))}
    fig, ax = estimates.dot_figure(tables, TITLES, 5, factor=100, chance=50, xlabel="x")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["q", "r"] and ax.get_xlabel() == "x"
    assert {50.0} < {x for line in ax.lines for x in np.ravel(line.get_xdata())}
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["A", "B"]
    styles = estimates.bar_styles(dict.fromkeys("abcdef", "x"))
    assert len({(s["color"], s["hatch"]) for s in styles.values()}) == 6
    alone = estimates.dot_figure({"q": found(dict(a=0.5, b=np.nan))}, TITLES, 5)[1]
    assert [t.get_text() for t in alone.figure.legends[0].get_texts()] == ["A"]
    plt.close("all")


def test_marks_of_networks_stand_side_by_side():
    offsets = side_by_side("abc", 0.6)
    assert list(offsets.values()) == pytest.approx([-0.2, 0, 0.2])


def test_classes_that_gain_and_lose_most_are_shown():
    rows = [("2d-multi", 0, 0), ("2d-multi", 1, 1), ("3d-scratch", 0, 1), ("3d-scratch", 1, 1)]
    ordered = pd.DataFrame(rows, columns=["experiment", "target", "right"])
    titles = {"2d-multi": "2D", "3d-scratch": "3D"}
    by_class = estimates.accuracy_by_class(ordered, titles)
    gain = estimates.gain_by_class(by_class, COMPARED)
    assert gain.to_dict() == {1: 0, 0: 1}
    same = SimpleNamespace(flat="3d-scratch", deep="3d-scratch")
    assert set(estimates.gain_by_class(by_class, same)) == {1}
    many = pd.Series(range(40))
    assert list(estimates.extreme_classes(many)) == [*range(12), *range(28, 40)]
    assert len(estimates.extreme_classes(gain)) == 2
    fig = estimates.class_figure(by_class, gain.index, CLASSES, titles, 5)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [CLASSES[1], CLASSES[0]]
    plt.close(fig)
    table = estimates.class_table(by_class, CLASSES, titles)
    assert table.values.tolist() == [[CLASSES[0], 0, 1], [CLASSES[1], 1, 1]]


def test_pairs_are_told_and_the_widest_come_first():
    rows = dict(experiment=["a", "a", "b", "b"], id=["x", "y", "x", "y"], target=[0, 1, 0, 1])
    ordered = pd.DataFrame(rows | dict(pair_right=[1, 0, 1, 1]))
    by_pair = estimates.accuracy_by_pair(ordered, reversal_pairs(CLASSES), CLASSES, TITLES)
    table = estimates.pair_table(by_pair, reversal_pairs(CLASSES), TITLES)
    assert table.loc[0].tolist() == [
        "1: Folding something (a), unfolding something (b)",
        "50",
        "100",
    ]
    gains = {i: pd.Series(dict(a=0.0, b=g)) for i, g in enumerate([0.1, 0.9, 0.5], 1)}
    assert estimates.widest_pairs(gains, SimpleNamespace(flat="a", deep="b"), 2) == [2, 3]


def test_learning_is_told_by_epochs_to_a_target():
    rows = [("a", k, v) for k, v in enumerate([0.1, 0.5, 0.95], 1)]
    rows += [("b", k, v) for k, v in enumerate([0.1, 0.3, 0.4], 1)]
    history = pd.DataFrame(rows, columns=["experiment", "epoch", "val_top1"])
    history = history.assign(seed=0, seconds=30)
    learning = estimates.epochs_to_target(history, TITLES, "b")
    assert learning.target == pytest.approx(0.36) and learning.epochs == dict(a=2, b=3)
    table = estimates.epoch_table(learning, history, TITLES | dict(c="C"))
    assert table.loc[0].tolist() == ["A", 2, 3, "1.5"] and set(table.loc[2][1:]) == {"–"}
    hard = estimates.epochs_to_target(history, TITLES, "a")
    assert hard.epochs == dict(a=3, b=None)
    assert estimates.epoch_table(hard, history, TITLES)["epochs to it"][1] == "never"
    none = estimates.epochs_to_target(history, TITLES, "nobody")
    assert np.isnan(none.target) and "epochs to it" not in estimates.epoch_table(
        none, history, TITLES
    )


def test_parts_are_told_in_the_order_of_the_report():
    drawn, painted = found(dict(a=0.9, b=0.8)), found(dict(a=0.1, b=0.2))
    ways = {("hand", "blurred"): painted, ("nothing", "blurred"): painted}
    ways[("nothing", "rendered")] = drawn
    named = estimates.by_part_taken(ways)
    assert list(named) == ["the clip", "hand blurred"] and named["the clip"] is drawn
    table = estimates.reliance_table(named, TITLES)
    assert list(table) == ["taken away", "A", "B"] and table["A"][0].startswith("90")


def test_attention_stands_beside_maps_that_know_nothing(evidence):
    attended = estimates.attention_estimates(evidence)
    assert set(attended) == set(evidence.measures)
    assert ((attended["pointing"]["hi"] <= 1) & (attended["pointing"]["lo"] >= 0)).all()
    table = estimates.attention_table(attended, evidence).set_index("clips")
    assert list(table)[-3:] == list(evidence.known_maps.values())
    assert set(table.index) == set(estimates.clips_measured(attended).values()) == {30}
    measured = evidence.measured.copy()
    measured.loc[measured["method"] == "noise", "pointing"] = np.nan
    table = estimates.attention_table(attended, replace(evidence, measured=measured))
    assert (table["noise"] == "–").sum() == 1 and (table["right map"] != "–").all()


def test_places_and_frames_are_drawn(evidence):
    attended = estimates.attention_estimates(evidence)
    places = dict(hand=attended["ratio_hand"])
    ax = estimates.place_figure(places, evidence, 5).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["hand"]
    assert {"x", "+"} <= {line.get_marker() for line in ax.lines}
    plt.close("all")
    shares = estimates.shares_by_frame(evidence)
    assert len(shares) == 4 and all(abs(t["mean"]).max() < 1e-4 for t in shares)
    shares[2].loc["2d-multi", "mean"] = 5.0
    shares[1].loc["3d-scratch", "mean"] = np.nan
    assert estimates.largest_frames(shares)["2d-multi"] == 3
    shares = [t.assign(mean=t["mean"].where(t.index != "3d-scratch")) for t in shares]
    assert "3d-scratch" not in estimates.largest_frames(shares)


def test_sources_with_empty_maps_are_told():
    runs = dict(method=["s:m", "s:m", "t:m", "s:m"], experiment=["a", "a", "a", "b"])
    counts = estimates.empty_maps(pd.DataFrame(runs | dict(maps=[5] * 4, empty=[1, 2, 0, 0])))
    table = estimates.empty_table(counts, TITLES)
    assert table.values.tolist() == [["s:m", "3 of 10", "0 of 5"]]
    said = estimates.empty_words(counts, "s:m", TITLES)
    assert "A, 3 of 10." in said and "B" not in said
    assert estimates.empty_words(counts, "t:m", TITLES) == ""


def test_a_table_without_rows_is_saved_and_not_shown(tmp_path):
    assert show_table(pd.DataFrame(dict(a=[1])), tmp_path, "one") is not None
    assert show_table(pd.DataFrame(), tmp_path, "none") is None
    assert {"one.csv", "none.csv", "none.tex"} <= {f.name for f in tmp_path.iterdir()}


def test_words_are_listed():
    assert [listing(x) for x in ([], ["a"], ["a", "b"], list("abc"))] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


# --- verdicts


def test_a_network_blind_to_order_is_right_on_half_of_a_generated_worlds_pairs(evidence):
    assert verdicts.possible_range(evidence, "pair_right", "2d-multi") == (0, 1)
    world = generated(evidence)
    assert verdicts.possible_range(world, "pair_right", "2d-multi") == (0.5, 0.5)
    assert verdicts.possible_range(world, "pair_right", "3d-scratch") == (0, 1)
    assert verdicts.possible_range(world, "pair_right", "2d-multi", "static") == (0, 1)
    assert verdicts.possible_range(world, "effective_frames", "2d-multi")[1] == 4


def test_clips_of_a_group_are_those_of_the_predictions(evidence):
    rows = verdicts.rows_of_clips(evidence.cam, evidence, "static")
    static = evidence.ordered[evidence.ordered["target"] >= len(SIMULATED) - 2]
    assert set(rows["id"]) == set(static["id"])
    assert verdicts.rows_of_clips(evidence.cam, evidence, "all") is evidence.cam


def test_maps_are_compared_on_one_grid_alone(tmp_path):
    evidence = made_up(tmp_path, grids=dict({"3d-scratch": 1}), empty=dict({"2d-single": 1.0}))
    h, e = with_hypothesis(evidence, measure="ratio_hand")
    why = verdicts.compare_maps(e, h, evidence.source)["why"]
    assert "1 x 3 x 3 and 2 x 3 x 3 cells" in why
    h, e = with_hypothesis(evidence, measure="ratio_hand", of="3d-inflated")
    assert "why" not in verdicts.compare_maps(e, h, evidence.source)
    h, e = with_hypothesis(evidence, measure="ratio_hand", over="2d-single")
    assert "not zero" in verdicts.compare_maps(e, h, evidence.source)["why"]


def test_similarity_is_of_runs_that_share_no_weights(evidence):
    rows = verdicts.map_similarity(evidence, "2d-multi", ["2d-multi", "3d-scratch"])
    assert set(rows["seed"]) == {0, 1} and len(rows) == 2 * 2 * 30
    itself = rows[rows["experiment"] == "2d-multi"]["similarity"]
    assert itself.max() < 1 and list(itself[:30]) == pytest.approx(list(itself[30:]))
    one = replace(evidence, study=evidence.study.model_copy(update=dict(seeds=[1])))
    same = verdicts.map_similarity(one, "2d-multi", ["2d-multi"])["similarity"]
    assert same.min() == pytest.approx(1)


def test_why_maps_are_not_believed(evidence):
    doubt = lambda why, **kw: replace(evidence, choice=dict(interpretable=False, why=why), **kw)
    assert verdicts.why_not_believed(evidence) == ""
    assert "did not pass our tests" in verdicts.why_not_believed(doubt("x"))
    assert "too few clips" in verdicts.why_not_believed(doubt("a: too few scenes"))
    assert "no boxes" in verdicts.why_not_believed(doubt("", sources=evidence.sources[:0]))


@pytest.mark.parametrize(
    "measure, kw",
    [
        ("right", {}),
        ("pair_right", {}),
        ("learning", {}),
        ("pointing", {}),
        ("uses_hand", {}),
        ("similarity", dict(to="2d-single")),
    ],
)
def test_every_kind_of_measure_is_evaluated_and_missing_runs_are_named(evidence, measure, kw):
    h, e = with_hypothesis(evidence, measure=measure, **kw)
    found = verdicts.evaluate_hypothesis(e, h)
    assert "why" not in found and np.isfinite(found["mean"])
    gone = replace(e, missing={k: ["2d-multi-s0", "2d-multi-s1"] for k in e.missing})
    why = verdicts.evaluate_hypothesis(gone, h)["why"]
    assert why == "not judged, for want of the runs 2d-multi-s0, 2d-multi-s1"


def test_what_cannot_be_measured_or_believed_is_not_judged(evidence, tmp_path):
    h, e = with_hypothesis(evidence, measure="pointing")
    assert "right maps from wrong" in verdicts.evaluate_hypothesis(e, h, {"pointing"})["why"]
    doubt = replace(e, choice=e.choice | dict(interpretable=False, why="x"))
    assert "did not pass our tests" in verdicts.evaluate_hypothesis(doubt, h)["why"]
    bare = made_up(tmp_path, boxes=False)
    for measure, why in dict(pointing="boxes to measure it", uses_hand="take anything").items():
        h, e = with_hypothesis(bare, measure=measure)
        assert why in verdicts.evaluate_hypothesis(e, h)["why"]
    h = h.model_copy(update=dict(measure="pointin"))
    with pytest.raises(ValueError, match="no measure 'pointin'; did you mean 'pointing'"):
        verdicts.evaluate_hypothesis(e, h)


def test_failed_measures_of_the_report_are_read(tmp_path):
    assert verdicts.failed_measures(tmp_path) is None
    (tmp_path / "tables_validation").mkdir()
    told = dict(
        measure=["ratio_both", "pointing", "ratio_distractor"], separates=[True, False, False]
    )
    pd.DataFrame(told).to_csv(tmp_path / "tables_validation" / "validation.csv")
    assert verdicts.failed_measures(tmp_path) == {"pointing"}


def test_hypotheses_are_judged_and_told(evidence):
    judged = judged_of(evidence)
    assert list(judged.index) == list(evidence.study.hypotheses)
    assert set(judged_of(replace(evidence, simulated=True))["scope"]) == {"simulated runs"}
    table = verdicts.hypothesis_table(evidence, judged)
    assert list(table["hypothesis"]) == list(judged.index) and list(table)[1] == "verdict"
    says = [h.says.lower() for h in evidence.study.hypotheses.values()]
    assert list(table["what it says"].str.lower()) == says
    compared = verdicts.comparison_table(evidence, judged)
    assert "trained anew" not in compared  # two seeds
    assert compared["comparison"].str.contains("the right map").any()
    anew = judged.assign(arch_lo=judged["lo"], arch_hi=judged["hi"])
    assert verdicts.comparison_table(evidence, anew)["trained anew"].str.startswith("[").any()
    none = evidence.study.model_copy(update=dict(hypotheses={}))
    empty = replace(evidence, study=none)
    assert verdicts.hypothesis_table(empty, judged_of(empty)).empty
    assert verdicts.comparison_table(empty, judged_of(empty)).empty


def test_margins_are_told_in_the_unit_of_their_measure():
    h = lambda **kw: Hypothesis(says="x", of="a", over="b", **kw)
    assert verdicts.margin_text(h(measure="right", within=0.05)) == ", within 5 points"
    assert verdicts.margin_text(h(measure="effective_frames", at_least=0.5)) == ", at least 0.5"
    assert verdicts.margin_text(h(measure="right")) == ""


def test_known_maps_stand_beside_a_hypothesis(evidence):
    said = verdicts.known_map_text(evidence, "pointing")
    assert said.startswith("; a Gaussian on the middle 0.") and "; the right map" in said
    assert verdicts.known_map_text(evidence, "right") == ""


def test_other_sources_are_asked_the_same(evidence, tmp_path):
    table = verdicts.robustness_table(evidence, verdicts.compare_sources(evidence))
    assert len(table) == len(evidence.usable) == 2
    assert table["source"].str.endswith("(this report's)").sum() == 1
    assert set(table) - {"source"} == {
        n for n, h in evidence.study.hypotheses.items() if h.measure in evidence.measures or h.to
    }
    _, none = with_hypothesis(evidence, measure="right")
    assert verdicts.robustness_table(none, verdicts.compare_sources(none)).empty


def test_lineage_needs_another_seed(evidence):
    (row,) = verdicts.lineage_table(evidence).to_dict("records")
    assert row["network"] == evidence.titles["3d-inflated"] and row["clips"] == 30
    assert {"its own", "of other seeds", "difference"} < set(row)
    one = evidence.study.model_copy(update=dict(seeds=[0]))
    assert verdicts.lineage_table(replace(evidence, study=one)).empty


def test_every_two_networks_are_compared(evidence):
    table = verdicts.network_table(evidence.ordered, evidence.titles)
    assert len(table) == 6 and (table["a"] != table["b"]).all()
    assert verdicts.network_table(evidence.ordered, {"2d-multi": "x"}).empty
    clips = dict.fromkeys(evidence.measures, 40)
    apart = verdicts.attention_differences(evidence, clips)
    shared = verdicts.both_right(evidence, "2d-multi", "3d-scratch")
    right = evidence.ordered[evidence.ordered["id"].isin(shared)]
    assert right[right["experiment"].isin(("2d-multi", "3d-scratch"))]["right"].all()
    assert len(apart.columns) == 5 and apart.iloc[:, 1].str.endswith("(n\u00a0=\u00a030)").all()


def test_answers_of_a_generated_world_are_held_against_what_was_found(evidence):
    assert verdicts.known_answers(evidence).empty
    clips, (low, high) = verdicts.blind_to_order(evidence)
    assert clips == 24 and 0 < low < 0.5 < high < 1  # as chance has it
    world = generated(evidence)
    assert verdicts.blind_to_order(world) == (24, (0.5 - 1 / 24, 0.5 + 1 / 24))
    known = verdicts.known_answers(world)
    asked = set(known.loc[known["experiment"] == "2d-multi", "question"])
    assert asked == {"which of the pair", "static classes"}
    right = known["found"].between(known["low"], known["high"])
    assert list(known["holds"]) == list(right)


# --- what was trained


def test_settings_are_those_of_the_run(evidence, tmp_path):
    study = evidence.study
    assert methods.trained_settings(study, tmp_path, "2d-multi")["lr"] > 0
    folder = tmp_path / "runs" / "2d-multi-s1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(lr=0.5)))
    assert methods.trained_settings(study, tmp_path, "2d-multi")["lr"] == 0.5


def test_networks_and_their_weights_have_names(evidence):
    assert methods.architecture(dict(model="i3d:resnet18", stages=3)) == (
        "I3D of resnet18, 3 of 4 stages"
    )
    assert methods.architecture(dict(model="r3d_18", stages=4)) == "R3D-18"
    first = lambda e, **kw: methods.first_weights(
        evidence.study.model_copy(
            update=dict(
                experiments=evidence.study.experiments
                | {e: evidence.study.experiments[e].model_copy(update=kw)}
            )
        ),
        evidence.results,
        e,
    )
    assert first("3d-scratch") == "random"
    assert first("3d-inflated").startswith(f"{evidence.titles['2d-multi']}, inflated into")
    assert first("2d-multi", init="imagenet") == "ImageNet"
    assert first("3d-scratch", init="kinetics") == "Kinetics-400"
    table = methods.architecture_table(evidence).set_index("network")
    assert table.loc[evidence.titles["3d-scratch"], "cell sees"] == "40\u00a0px, 7 frames"
    bare = methods.architecture_table(replace(evidence, about={}))
    assert set(bare["GFLOPs"]) == {"–"}


def test_training_is_told_in_words(evidence):
    usual = evidence.study.experiments["2d-multi"].model_dump()
    row = methods.training_row(
        usual | dict(opt="sgd", clip_grad=1.0, warmup_epochs=1, mixed_precision="fp16")
    )
    assert row["optimiser"] == "SGD with Nesterov's momentum"
    assert row["schedule"] == "cosine, 1 epoch of warm-up"
    assert row["besides"] == "gradients clipped to 1, fp16"
    row = methods.training_row(
        usual | dict(opt="lion", clip_grad=None, warmup_epochs=0, mixed_precision="no")
    )
    assert (row["optimiser"], row["schedule"], row["besides"]) == ("lion", "cosine", "–")


def test_many_networks_are_told_by_what_differs(evidence):
    table, alike = methods.training_table(evidence.study, evidence.results)
    assert alike == {} and list(table)[1:] == list(evidence.titles.values())
    one = evidence.study.experiments["2d-multi"]
    many = {str(k): one.model_copy(update=dict(lr=0.1 * (k + 1))) for k in range(7)}
    study = evidence.study.model_copy(update=dict(experiments=many))
    table, alike = methods.training_table(study, evidence.results)
    assert list(table) == ["network", "learning rate"] and "optimiser" in alike


def test_measures_have_a_chance_and_a_bound(evidence):
    table = methods.measure_table(evidence).set_index("measure")
    assert table.loc["accuracy", "chance"] == f"1 of {len(SIMULATED)}"
    assert table.loc["which of the pair", "chance"] == "1 of 2"
    assert (table.loc[table["symbol"] == "P", "chance"] == "their area").all()
    assert list(table.index[-2:]) == ["similarity", "effect size"]
    other = replace(
        evidence, about={k: dict(a, classes=list("abc")) for k, a in evidence.about.items()}
    )
    assert "which of the pair" not in set(methods.measure_table(other)["measure"])


def test_a_run_says_how_it_was_made(evidence):
    gpus = {k: a | dict(gpus="2 x a GPU") for k, a in evidence.about.items()}
    table = methods.run_table(replace(evidence, about=gpus)).set_index("item")["value"]
    assert table["seeds"] == "0, 1" and "a run on 2 x a GPU" in table["machine"]
    assert table["again by"] == "`ssv2 reproduce smoke`" and "torch " in table["packages"]
    assert methods.first_line("python", "-c", "print(41 + 1); print()") == "42"
    assert methods.first_line("no-such-command") == "–"
    assert methods.first_line("python", "-c", "pass") == "–"
    audit = SimpleNamespace(counts=dict(train=dict(records=9, usable=7)))
    assert methods.excluded_table(audit).values.tolist() == [["train", 9, 7, 2]]


INTERVALS = {  # lo, hi and what they say without a margin, and with one of .5
    (0.1, 0.3): ("larger", "alike"),
    (-0.9, -0.6): ("smaller", "smaller"),
    (-0.2, 0.1): ("unclear", "alike"),
    (-0.7, 0.9): ("unclear", "unclear"),
    (0.6, 0.9): ("larger", "larger"),
}


@pytest.mark.parametrize("ends", INTERVALS, ids=str)
def test_an_interval_has_a_direction_where_it_leaves_zero_out(ends):
    found = dict(lo=ends[0], hi=ends[1], arch_lo=-1.0, arch_hi=1.0)
    said = verdicts.direction(found), verdicts.direction(found, margin=0.5)
    assert said == INTERVALS[ends] and verdicts.direction(found, "arch_") == "unclear"


def at(**intervals):
    return {k.replace("_", ":"): dict(lo=lo, hi=hi) for k, (lo, hi) in intervals.items()}


def test_sources_disagree_by_sign_or_where_one_does_not_tell():
    up, down, unclear = (1, 2), (-2, -1), (-1, 1)
    assert verdicts.sources_disagree(at(stem_layercam=up, layer1_gradcam=up)) == ""
    assert verdicts.sources_disagree(at(stem_layercam=up)) == ""
    said = verdicts.sources_disagree(
        at(layer1_layercam=unclear, layer1_gradcam=up, stem_layercam=up, layer2_layercam=down)
    )
    assert said == "larger at stem, larger or unclear at layer1, smaller at layer2"


@pytest.mark.parametrize("others, verdict", [((1, 2), "supported"), ((-2, -1), "depends")])
def test_a_verdict_about_maps_is_one_of_all_sources(evidence, monkeypatch, others, verdict):
    h, alone = with_hypothesis(evidence, measure="ratio_both")
    sure = dict(mean=1.0, p=1e-4, lo=0.8, hi=1.2, by_seed=[1.0, 1.1], seeds=2, scenes=40)
    sure |= dict(a=2.0, b=1.0, d=1.0, arch_lo=np.nan, arch_hi=np.nan)
    first, second = alone.usable
    monkeypatch.setattr(verdicts, "evaluate_hypothesis", lambda *_: sure)
    sources = {first: sure, second: dict(lo=others[0], hi=others[1])}
    monkeypatch.setattr(verdicts, "compare_by_source", lambda *_: sources)
    (row,) = judged_of(alone).to_dict("records")
    assert row["verdict"] == verdict
    assert ("larger at" in row["why"]) == (verdict == "depends")
    table = verdicts.hypothesis_table(
        alone, pd.DataFrame([row], index=list(alone.study.hypotheses))
    )
    assert ("depends on the source of maps" in table["verdict"][0]) == (verdict == "depends")


def test_one_seed_describes_and_gets_no_mark(evidence, monkeypatch):
    h, alone = with_hypothesis(evidence, measure="right")
    sure = dict(mean=0.5, p=1e-4, lo=0.4, hi=0.6, by_seed=[0.5], seeds=1, scenes=40)
    sure |= dict(a=0.9, b=0.4, d=1.0, arch_lo=np.nan, arch_hi=np.nan)
    monkeypatch.setattr(verdicts, "evaluate_hypothesis", lambda *_: sure)
    judged = judged_of(alone)
    (said,) = verdicts.hypothesis_table(alone, judged)["verdict"]
    assert said == "·\u00a0supported in one run"


def test_a_hypothesis_thought_of_after_a_look_is_called_exploratory(evidence):
    name, h = next(iter(evidence.study.hypotheses.items()))
    row = judged_of(evidence).loc[name]
    declared = verdicts.hypothesis_row(evidence, name, row)["what it says"]
    h.exploratory = True
    try:
        now = verdicts.hypothesis_row(evidence, name, row)
        assert now["what it says"] == f"Exploratory: {declared}"
    finally:
        h.exploratory = False
