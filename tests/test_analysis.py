"""Statistics against reference calls, a simulated null, and a report whose every sentence follows the tables."""
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import binomtest, bootstrap as scipy_bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ssv2_report.analysis import (COLUMN, PAGE, accuracy, bootstrap, chance_interval, choose_cases, compare, compare_learning, find_scenes, findings, judge, over_clips,
                                  save_table, score_clips)
from ssv2_report.experiments import Hypothesis, load_study

ROOT = Path(__file__).parents[1]
CLASSES = ["Folding something", "Unfolding something", "Holding something"]
PAIRS = [("Folding something", "Unfolding something")]


def test_scores_by_hand():
    p = pd.DataFrame(dict(id=list("abc"), target=[0, 1, 2], logits=[[2., 1, 5], [2, 1, 0], [0, 0, 1]]))
    s = score_clips(p, CLASSES, PAIRS)
    assert list(s["right"]) == [False, False, True] and list(s["in_pair"]) == [True, True, False]
    assert list(s["pair_right"][:2]) == [1, 0] and np.isnan(s["pair_right"][2])
    assert s["certainty"][0] == pytest.approx(np.exp(5) / (np.exp(2) + np.exp(1) + np.exp(5)))


def test_accuracy_counts_clips_not_seeds():
    t = pd.DataFrame(dict(experiment="a", seed=[0, 0, 0, 1, 1, 1], right=[1, 1, 1, 0, 0, 1], id=["a", "b", "c"] * 2))
    e = accuracy(over_clips(t, "right")).loc["a"]
    ref = binomtest(2, 3).proportion_ci(method="wilson")
    assert e["clips"] == 3 and e["mean"] == pytest.approx(2 / 3)
    assert (e["lo"], e["hi"]) == pytest.approx((ref.low, ref.high))


def test_bootstrap_agrees_with_scipy():
    x = np.random.default_rng(0).normal(1, 2, 300)
    ours = bootstrap(pd.Series(x)).iloc[0]
    ref = scipy_bootstrap((x,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert ours["mean"] == pytest.approx(x.mean())
    assert (ours["lo"], ours["hi"]) == pytest.approx((ref.low, ref.high), abs=0.03)


def test_bootstrap_of_nothing_is_missing():
    e = bootstrap(pd.DataFrame(dict(a=[np.nan, np.nan]))).iloc[0]
    assert e["clips"] == 0 and np.isnan(e["mean"]) and np.isnan(e["lo"])


def test_chance_interval_is_the_binomials():
    lo, hi = chance_interval(128)
    assert binomtest(round(lo * 128), 128).pvalue > 0.05 > binomtest(round(lo * 128) - 2, 128).pvalue
    assert lo == pytest.approx(1 - hi)


def two(values, name="v"):
    "A table of experiments a and b from {(experiment, seed): values by clip}."
    return pd.concat([pd.DataFrame({"experiment": e, "seed": s, "id": [str(i) for i in range(len(v))], name: v}) for (e, s), v in values.items()])


def test_comparison_of_a_measure_is_paired_and_agrees_with_scipy():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 10, 200)
    a, b = (level + d + rng.normal(0, 1, 200) for d in (0.5, 0.0))
    c = compare(two({("a", 0): a, ("b", 0): b}), "v", "a", "b")
    ref = scipy_bootstrap((a - b,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert c["mean"] == pytest.approx((a - b).mean()) and (c["lo"], c["hi"]) == pytest.approx((ref.low, ref.high), abs=0.02)
    assert c["d"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1)) and c["d_lo"] < c["d"] < c["d_hi"] and c["p"] < 0.01
    assert compare(two({("a", 0): a}), "v", "a", "b")["clips"] == 0


def test_comparison_of_accuracies_agrees_with_statsmodels_and_agresti_min():
    rng = np.random.default_rng(1)
    a, b = rng.random(150) < 0.8, rng.random(150) < 0.65
    c = compare(two({("a", 0): a, ("b", 0): b}, "right"), "right", "a", "b")
    table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
    assert c["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)
    n12, n21, n = table[0, 1] + 0.5, table[1, 0] + 0.5, 152   # Agresti and Min 2005, section 3: half an observation more in each cell
    m, half = (n12 - n21) / n, 1.96 * np.sqrt((n12 + n21) - (n12 - n21) ** 2 / n) / n
    assert (c["lo"], c["hi"]) == pytest.approx((m - half, m + half))
    assert c["mean"] == pytest.approx(a.mean() - b.mean())


def test_the_saved_comparisons_agree_with_statsmodels(study):
    "On the tables of a whole analysis: McNemar's p of all pairs of networks, from their predictions, and Holm over the declared hypotheses."
    results, s, _ = study
    saved = pd.read_csv(results/"tables"/"networks.csv")
    right = {}
    for name in s.experiments:
        p = pd.read_parquet(results/"runs"/f"{name}-s0"/"predictions.parquet")
        p = p[p["order"] == "ordered"].set_index("id")
        right[s.experiments[name].title] = p["pred"] == p["target"]
    pairs = [(r.a, r.b) for r in saved.itertuples()]
    p = [mcnemar(pd.crosstab(right[a], right[b]).reindex(index=[False, True], columns=[False, True], fill_value=0), exact=True).pvalue for a, b in pairs]
    for row, ref in zip(saved["p"], multipletests(p, method="holm")[1]):
        assert row == "<\u00a00.001" and ref < 0.001 or float(row) == pytest.approx(ref, abs=6e-4)


def test_twins_are_one_scene():
    "Two copies of each clip that answer alike add nothing: the interval and p are those of half as many clips."
    rng = np.random.default_rng(2)
    a, b = rng.random(60) < 0.8, rng.random(60) < 0.6
    one = two({("a", 0): a, ("b", 0): b}, "right")
    double = pd.concat([one, one.assign(id=one["id"] + "'")])
    scenes = {i: i.strip("'") for i in double["id"]}
    x, y, z = compare(one, "right", "a", "b"), compare(double, "right", "a", "b", scenes), compare(double, "right", "a", "b")
    assert (y["lo"], y["hi"], y["p"], y["scenes"], y["clips"]) == pytest.approx((x["lo"], x["hi"], x["p"], 60, 120))
    assert z["p"] < y["p"] and z["hi"] - z["lo"] < 0.8 * (y["hi"] - y["lo"])
    one, double = (t.assign(v=t["right"] * 1.0) for t in (one, double))
    assert compare(double, "v", "a", "b", scenes)["lo"] == pytest.approx(compare(one, "v", "a", "b")["lo"])
    assert accuracy(over_clips(double, "right"), scenes)["lo"].tolist() == accuracy(over_clips(one, "right"))["lo"].tolist()


def test_a_demo_worlds_twins_are_found(tmp_path):
    clip = dict(split="validation", objects=["pear"], background="plain", mirrored=False, frames=31)
    clips = {"1": clip | dict(first=3, last=25, reversed=False), "2": clip | dict(first=5, last=27, reversed=True),
             "3": clip | dict(first=3, last=26, reversed=False), "4": clip | dict(split="train", first=3, last=25, reversed=False)}
    (tmp_path/"demo.json").write_text(json.dumps(dict(clips=clips)))
    scenes = find_scenes(tmp_path)
    assert scenes["1"] == scenes["2"] != scenes["3"] and set(scenes) == {"1", "2", "3"}
    assert find_scenes(tmp_path/"elsewhere") == {}


def result(mean, p, by_seed, **kw): return dict(mean=mean, lo=mean - 0.1, hi=mean + 0.1, p=p, by_seed=by_seed) | kw


def test_verdicts():
    found = dict(yes=result(0.3, 0.001, [0.2, 0.4]), no=result(-0.3, 0.001, [-0.2, -0.4]), seeds=result(0.3, 0.001, [0.7, -0.1]),
                 weak=result(0.1, 0.03, [0.1, 0.1]), gone=result(np.nan, np.nan, [], why="no runs"), same=result(0.0, 0.001, [0.01, -0.01]),
                 differs=result(0.5, 0.9, [0.5, 0.5]))
    judged = judge(found, dict(same=0.15, differs=0.15))
    assert judged["verdict"].to_dict() == dict(yes="supported", no="contradicted", seeds="undecided", weak="undecided", gone="undecided", same="supported", differs="contradicted")
    assert judged["p_holm"].dropna().tolist() == multipletests([f["p"] for f in found.values() if f["p"] == f["p"]], method="holm")[1].tolist()
    assert judge({}).empty and "no conclusion" in findings(judge({}), {})


def test_a_claim_of_no_difference_needs_clips_enough():
    rng = np.random.default_rng(0)
    few, many = (compare(two({(e, 0): rng.random(n) < 0.95 for e in "ab"}, "right"), "right", "a", "b", within=0.1) for n in (15, 1500))
    assert judge(dict(h=few), dict(h=0.1)).loc["h", "verdict"] == "undecided" and judge(dict(h=many), dict(h=0.1)).loc["h", "verdict"] == "supported"


def test_learning_compares_the_epochs_that_both_have():
    h = pd.concat([pd.DataFrame(dict(experiment=e, seed=s, epoch=range(1, 1 + n), val_top1=top)) for e, n, top in (("a", 3, 0.9), ("b", 6, 0.6)) for s in (0, 1)])
    c = compare_learning(h, "a", "b", 100)
    assert c["mean"] == pytest.approx(0.3) and c["lo"] > 0 and c["p"] < 1e-4 and c["by_seed"] == pytest.approx([0.3, 0.3])
    assert compare_learning(h, "a", "c", 100)["clips"] == 0


def null_study(rng, clips=120, seeds=2, comparisons=4):
    "Verdicts of a study in which nothing differs: half of the comparisons are of accuracies, half of a measure, on clips of unequal difficulty."
    found = {}
    for k in range(comparisons):
        hard = rng.normal(0, 1, clips)
        taste = {e: rng.normal(0, 1, clips) for e in "ab"}   # what an architecture finds easy: shared by its seeds
        t = two({(e, s): hard + taste[e] + rng.normal(0, 0.5, clips) for e, s in product("ab", range(seeds))})
        found[str(k)] = compare(t.assign(right=t["v"] > 0), "right", "a", "b") if k % 2 else compare(t, "v", "a", "b", n=2000, seed=k)
    return judge(found)["verdict"]


@pytest.mark.parametrize("studies", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_null_is_seldom_supported(studies):
    "Holm holds the share of studies with any false verdict at 5 %, half of it on the side of 'supported'."
    rng = np.random.default_rng(7)
    verdicts = [null_study(rng) for _ in range(studies)]
    any_false, supported = (sum(hit(v) for v in verdicts) for hit in (lambda v: (v != "undecided").any(), lambda v: (v == "supported").any()))
    print(f"{studies} null studies: any verdict in {any_false}, 'supported' in {supported}")
    assert binomtest(any_false, studies, 0.05).pvalue > 0.05 and binomtest(supported, studies, 0.025).pvalue > 0.05


def test_cases_follow_their_rule():
    rows = [("x", 0, True, (1, 0)), ("y", 1, True, (1, 1)), ("z", 2, False, (0, 0)), ("w", 0, True, (0, 1))]
    scored = pd.DataFrame([dict(experiment=e, id=i, target=t, in_pair=p, right=bool(r[k]), certainty=0.9 - 0.1 * n)
                           for n, (i, t, p, r) in enumerate(rows) for k, e in enumerate(("deep", "flat"))])
    cases = choose_cases(scored, dict(deep=True, flat=False), 4).set_index("id")["kind"].to_dict()
    assert cases == {"x": "3D right, 2D wrong", "y": "all right", "z": "all wrong", "w": "least certain"}


def test_tables_come_as_csv_latex_and_markdown(tmp_path):
    save_table(pd.DataFrame({"model": ["a_b & c"], "share (%)": ["50 %"]}), tmp_path, "t")
    assert (tmp_path/"t.csv").read_text() == "model,share (%)\na_b & c,50 %\n"
    assert r"a\_b \& c & 50 \% \\" in (tmp_path/"t.tex").read_text() and r"share (\%)" in (tmp_path/"t.tex").read_text()
    assert "| a_b & c |" in re.sub(" +", " ", (tmp_path/"t.md").read_text())


# A whole analysis on made-up runs: the notebook as `ssv2 analyse` runs it, on a study without pictures.

def simulate(results, study, deep=3.0, clips=120, without=(), boxes=True):
    "Made-up runs of `study`: networks that tell the order by `deep` more than the 2D ones."
    from ssv2_report.data import REVERSAL_PAIRS
    classes = [c for p in REVERSAL_PAIRS[:3] for c in p] + ["Holding something in front of something", "Showing something next to something"]
    ids, y = [str(i) for i in range(clips)], np.arange(clips) % 8
    for k, (name, seed) in enumerate(study.runs):
        folder = results/"runs"/study.folder(name, seed)
        shutil.rmtree(folder, ignore_errors=True)
        if study.folder(name, seed) in without: continue
        (folder/"maps").mkdir(parents=True)
        rng, sharp = np.random.default_rng(k), np.where(y < 6, deep if study.experiments[name].is_3d else 0, 5)
        logits = rng.normal(size=(clips, 8)) + sharp[:, None] * np.eye(8)[y]
        orders = [pd.DataFrame(dict(id=ids, target=y, pred=(logits * f).argmax(1), logits=list(logits * f), order=o)) for o, f in dict(ordered=1, reversed=-1, shuffled=.1, frozen=.1).items()]
        pd.concat(orders).to_parquet(folder/"predictions.parquet")
        pd.DataFrame(dict(epoch=[1, 2, 3], val_top1=[.2, .4, .5 + .1 * study.experiments[name].is_3d], seconds=2.)).to_csv(folder/"history.csv", index=False)
        (folder/"metrics.json").write_text(json.dumps(dict(classes=classes, cost=dict(params=10 ** 6, gflops=1.5 + k))))
        pd.DataFrame(dict(id=np.repeat(ids, 4), t=np.tile(range(4), clips), method="gradcam", mass=.25)).to_parquet(folder/"attention.parquet")
        of_boxes = ["ratio_both", "ratio_hand", "ratio_object", "ratio_background", "pointing", "path_object", "path_hand"]
        columns = {c: rng.random(clips) if boxes else np.nan for c in of_boxes} | dict(effective_frames=rng.random(clips), ratio_action=np.nan)
        pd.DataFrame(dict(id=ids, method="gradcam", **columns)).to_parquet(folder/"attention_clips.parquet")
        np.savez(folder/"maps"/"gradcam.npz", ids=ids, maps=rng.random((clips, 2, 3, 3)))


def analyse(results, path):
    "Execute 05_analysis; its variables. Pictures of clips are left out: there are no clips."
    import nbformat
    import papermill
    nb = nbformat.read(ROOT/"nbs"/"05_analysis.ipynb", 4)
    nb.cells = [c for c in nb.cells if "label: case-studies" not in c.source]
    nbformat.write(nb, results/"analysis.ipynb")
    papermill.execute_notebook(str(results/"analysis.ipynb"), str(results/"05_analysis.ipynb"), dict(study=str(path), results=str(results)), cwd=str(ROOT/"nbs"),
                               kernel_name="python3", progress_bar=False)
    return yaml.safe_load((results/"variables.yml").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Folder, study and variables of one analysis."
    results = tmp_path_factory.mktemp("results")
    raw = yaml.safe_load((ROOT/"experiments"/"smoke.yaml").read_text())
    raw["data"] = dict(root=str(results/"data"), size=64)   # not a demo world: the report must speak of Something-Something
    path = results/"made_up.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    s = load_study(str(path))
    simulate(results, s)
    return results, s, analyse(results, path)


def again(study, tmp_path, **kw):
    "Variables of the analysis after `kw` changed: `yaml` is merged into the study."
    results, s, _ = study
    path = tmp_path/"made_up.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((results/"made_up.yaml").read_text()) | kw.pop("yaml", {}), sort_keys=False))
    simulate(tmp_path, load_study(str(path)), **kw)
    return analyse(tmp_path, path)


def test_sentences_tables_and_figures_follow_the_predictions(study, tmp_path):
    results, s, before = study
    assert "**Supported**: 3D beats 2D where only the order" in before["abstract"] and "Something-Something V2" in before["abstract"]
    assert "demo" not in json.dumps(before | dict(study={}))
    after = again(study, tmp_path, deep=0.0)
    assert "hether 3D beats 2D where only the order" in after["abstract"].replace("**Undecided**: w", "w") and "**Supported**: 3D beats" not in after["abstract"]
    for name in ("hypotheses", "accuracy", "groups", "pairs", "networks"):
        assert (tmp_path/"tables"/f"{name}.csv").read_text() != (results/"tables"/f"{name}.csv").read_text(), name
    for name in ("accuracy", "pairs", "orders", "classes", "compute"):
        assert (tmp_path/"figures"/f"{name}.png").read_bytes() != (results/"figures"/f"{name}.png").read_bytes(), name
    table = pd.read_csv(tmp_path/"tables"/"accuracy.csv").set_index("network")
    assert table.loc["3D from scratch", "which of the pair"] in after["abstract"]


@pytest.mark.slow
def test_the_abstract_says_so_when_3d_is_worse(study, tmp_path):
    worse = again(study, tmp_path, deep=-4.0)
    assert "that 3D beats 2D where only the order" in worse["abstract"].split("**Contradicted**")[1].split("**")[0]


def test_what_is_missing_is_said_and_not_concluded_from(study, tmp_path):
    gone = again(study, tmp_path, without=("3d-scratch-s0",), yaml=dict(seeds=[0, 1]), boxes=False)
    assert "3d-scratch-s0" in gone["missing"] and "**Incomplete**" in gone["abstract"]
    assert "**Supported**" not in gone["abstract"] and "for want of the run 3d-scratch-s0" in gone["abstract"]
    assert "fig-where" not in gone["where"] and "no boxes" in gone["limits"]


@pytest.mark.slow
def test_a_network_that_failed_and_a_study_without_hypotheses(study, tmp_path):
    failed = again(study, tmp_path, without=("3d-inflated-s0", "3d-inflated-s1"), yaml=dict(seeds=[0, 1]))
    assert "**Supported**: 3D beats 2D" in failed["abstract"] and "3d-inflated-s0, 3d-inflated-s1" in failed["finds"]["learning"]
    none = again(study, tmp_path, yaml=dict(hypotheses={}))
    assert "No hypothesis was declared" in none["abstract"]


@pytest.mark.slow
def test_measures_that_failed_validation_are_left_out(study, tmp_path):
    (tmp_path/"tables_validation").mkdir()
    pd.DataFrame(dict(measure=["ratio_both", "pointing"], separates=[False, True])).to_csv(tmp_path/"tables_validation"/"validation.csv", index=False)
    (tmp_path/"04c_validation.ipynb").write_text("{}")
    v = again(study, tmp_path)
    assert "does not tell right maps from wrong ones" in v["finds"]["attention"] and "tbl-validation" in v["validation"]


@pytest.mark.slow
def test_a_hypothesis_of_an_unknown_measure_is_refused(study, tmp_path):
    hypotheses = dict(h=dict(says="x", measure="pointin", of="3d-scratch", over="2d-multi"))
    with pytest.raises(Exception, match="there is no measure 'pointin'; did you mean 'pointing'"): again(study, tmp_path, yaml=dict(hypotheses=hypotheses))


def test_figures_come_at_a_papers_width_with_their_fonts_and_captions(study, tmp_path):
    from ssv2_report.cli import figures
    results, s, _ = study
    figures(study=str(results/"made_up.yaml"), results=results, out=tmp_path)
    table = pd.read_csv(tmp_path/"captions.csv").set_index("cell")
    assert set(table.loc["05_analysis.ipynb#fig-accuracy", "files"].split()) == {f"fig-accuracy.{k}" for k in ("pdf", "png", "svg")}
    assert "{{<" not in "".join(table["caption"]) and table["caption"].str.len().min() > 20 and len(table) >= 12
    for f in tmp_path.glob("fig-*.pdf"):
        pdf = f.read_bytes()
        width = float(re.search(rb"/MediaBox *\[ *0 0 ([\d.]+)", pdf)[1]) / 72
        assert any(abs(width - w) < 0.01 for w in (COLUMN, PAGE)) and b"/FontFile2" in pdf, f.name
    assert "<text" not in (tmp_path/"fig-accuracy.svg").read_text()   # letters are drawn, so no font is missed elsewhere
