"""Statistics against reference calls, a simulated null, and a report whose every sentence follows the tables."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ssv2_report.analysis.simulated import simulate
from ssv2_report.analysis.tables import COLUMN, PAGE, choose_cases, literal, plain_table, save_table
from ssv2_report.demo.answers import find_scenes
from ssv2_report.study.experiments import load_study
from ssv2_report.study.scores import score_clips

ROOT = Path(__file__).parents[1]
CLASSES = ["Folding something", "Unfolding something", "Holding something"]


def test_scores_by_hand():
    p = pd.DataFrame(
        dict(id=list("abc"), target=[0, 1, 2], logits=[[2.0, 1, 5], [2, 1, 0], [0, 0, 1]])
    )
    s = score_clips(p, CLASSES)
    assert list(s["right"]) == [False, False, True] and list(s["in_pair"]) == [True, True, False]
    assert list(s["pair_right"][:2]) == [1, 0] and np.isnan(s["pair_right"][2])
    assert s["certainty"][0] == pytest.approx(np.exp(5) / (np.exp(2) + np.exp(1) + np.exp(5)))


def test_the_saved_comparisons_agree_with_statsmodels(study):
    "On the tables of a whole analysis: McNemar's p of all pairs of networks, from their predictions, and Holm over the declared hypotheses."
    results, s, _ = study
    saved = pd.read_csv(results / "tables" / "networks.csv")
    right = {}
    for name in s.experiments:
        p = pd.read_parquet(results / "runs" / f"{name}-s0" / "predictions.parquet")
        p = p[p["order"] == "ordered"].set_index("id")
        right[s.experiments[name].title] = p["pred"] == p["target"]
    pairs = [(r.a, r.b) for r in saved.itertuples()]
    p = [
        mcnemar(
            pd.crosstab(right[a], right[b]).reindex(
                index=[False, True], columns=[False, True], fill_value=0
            ),
            exact=True,
        ).pvalue
        for a, b in pairs
    ]
    for row, ref in zip(saved["p"], multipletests(p, method="holm")[1]):
        assert row == "<\u00a00.001" and ref < 0.001 or float(row) == pytest.approx(ref, abs=6e-4)


def test_a_demo_worlds_twins_are_found(tmp_path):
    clip = dict(split="validation", objects=["pear"], background="plain", mirrored=False, frames=31)
    clips = {
        "1": clip | dict(first=3, last=25, reversed=False),
        "2": clip | dict(first=5, last=27, reversed=True),
        "3": clip | dict(first=3, last=26, reversed=False),
        "4": clip | dict(split="train", first=3, last=25, reversed=False),
    }
    (tmp_path / "demo.json").write_text(json.dumps(dict(clips=clips)))
    scenes = find_scenes(tmp_path)
    assert scenes["1"] == scenes["2"] != scenes["3"] and set(scenes) == {"1", "2", "3"}
    assert find_scenes(tmp_path / "elsewhere") == {}


def test_cases_follow_their_rule():
    rows = [
        ("x", 0, True, (1, 0)),
        ("y", 1, True, (1, 1)),
        ("z", 2, False, (0, 0)),
        ("w", 0, True, (0, 1)),
    ]
    scored = pd.DataFrame(
        [
            dict(experiment=e, id=i, target=t, in_pair=p, right=bool(r[k]), certainty=0.9 - 0.1 * n)
            for n, (i, t, p, r) in enumerate(rows)
            for k, e in enumerate(("deep", "flat"))
        ]
    )
    cases = choose_cases(scored, dict(deep=True, flat=False), 4).set_index("id")["kind"].to_dict()
    assert cases == {
        "x": "3D right, 2D wrong",
        "y": "all right",
        "z": "all wrong",
        "w": "least certain",
    }


def test_tables_come_as_csv_latex_and_markdown(tmp_path):
    save_table(pd.DataFrame({"model": ["a_b & c"], "share (%)": ["50 %"]}), tmp_path, "t")
    assert (tmp_path / "t.csv").read_text() == "model,share (%)\na_b & c,50 %\n"
    assert (
        r"a\_b \& c & 50 \% \\" in (tmp_path / "t.tex").read_text()
        and r"share (\%)" in (tmp_path / "t.tex").read_text()
    )
    assert "| a_b & c |" in re.sub(" +", " ", (tmp_path / "t.md").read_text())


def test_text_of_a_dataset_is_shown_as_it_is():
    import pypandoc

    name = 'Pushing <img src=x onerror="alert(1)"> *a* $b$ & `c` {{< var d >}} [e](f) ~g~ #h \\ @i'
    for kind in ("markdown", "commonmark"):
        page = pypandoc.convert_text(f"#### Case 1: {literal(name)}", "html", kind, ["--wrap=none"])
        assert html.unescape(re.sub("</?h4[^>]*>", "", page)).strip() == f"Case 1: {name}", kind
    page = plain_table(pd.DataFrame({name: [name]})).to_html()
    assert page.count(html.escape(name).replace("&quot;", "&#34;")) == 2 and "<img" not in page


# A whole analysis on made-up runs: the notebook as `ssv2 analyse` runs it, on a study without pictures.


def analyse(results, path):
    "Execute analysis_run; its variables. Pictures of clips are left out: there are no clips."
    import nbformat
    import papermill

    nb = nbformat.read(ROOT / "nbs" / "analysis" / "analysis_run.ipynb", 4)
    nb.cells = [c for c in nb.cells if "label: case-studies" not in c.source]
    nbformat.write(nb, results / "as_run.ipynb")
    papermill.execute_notebook(
        str(results / "as_run.ipynb"),
        str(results / "analysis_run.ipynb"),
        dict(study=str(path), results=str(results)),
        cwd=str(ROOT / "nbs"),
        kernel_name="python3",
        progress_bar=False,
    )
    return yaml.safe_load((results / "variables.yml").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Folder, study and variables of one analysis."
    results = tmp_path_factory.mktemp("results")
    raw = yaml.safe_load((ROOT / "experiments" / "smoke.yaml").read_text())
    raw["data"] = dict(
        root=str(results / "data"), size=64
    )  # not a demo world: the report must speak of Something-Something
    path = results / "made_up.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    s = load_study(str(path))
    simulate(s, results)
    return results, s, analyse(results, path)


def test_maps_that_know_nothing_carry_no_verdict(study, tmp_path):
    results, s, before = study
    assert (
        "do better than every map that knows nothing" in before["answer"]["maps"]
        and before["source"]["stage"] == "layer2"
        and before["source"]["method"] == "Grad-CAM"
    )
    table = pd.read_csv(results / "tables" / "hypotheses.csv", index_col="hypothesis")
    maps = table.index.str.contains("maps")
    assert (
        maps.sum() == 6
        and (table.loc[maps, "difference"] != "–").all()
        and len(pd.read_csv(results / "tables" / "robustness.csv")) == 2
    )
    blind = again(study, tmp_path, right=0.0)
    assert "not interpretable" in blind["answer"]["maps"]
    on_maps = blind["finds"]["attention"] + blind["finds"]["similarity"]
    assert (
        "not shown to do better than maps that know nothing" in on_maps
        and "**Supported" not in on_maps
        and "**Contradicted" not in on_maps
    )
    assert "**Supported for these networks**: 3D beats 2D where only the order" in blind["abstract"]


def test_maps_that_nothing_can_judge_are_said_to_be_so(study, tmp_path):
    v = again(study, tmp_path, boxes=False)
    assert (
        "no boxes to judge the maps it is about by" in v["finds"]["similarity"]
        and "nothing to judge its maps by" in v["answer"]["maps"]
    )
    assert "maps that know nothing" not in v["finds"]["similarity"] + v["answer"]["maps"]


def test_maps_on_different_grids_are_not_compared(study, tmp_path):
    v = again(study, tmp_path, grids=dict({"3d-scratch": 1, "3d-inflated": 1}))
    assert "its maps have 1 x 3 x 3 and 2 x 3 x 3 cells" in v["finds"]["attention"]
    assert (
        v["finds"]["attention"].count("a finer grid alone would differ") == 4
    )  # three by groups of classes, one on motion; the inflated network has its partner's grid


def again(study, tmp_path, **kw):
    "Variables of the analysis after `kw` changed: `yaml` is merged into the study."
    results, s, _ = study
    path = tmp_path / "made_up.yaml"
    path.write_text(
        yaml.safe_dump(
            yaml.safe_load((results / "made_up.yaml").read_text()) | kw.pop("yaml", {}),
            sort_keys=False,
        )
    )
    simulate(load_study(str(path)), tmp_path, **kw)
    return analyse(tmp_path, path)


def test_sentences_tables_and_figures_follow_the_predictions(study, tmp_path):
    results, s, before = study
    assert (
        "**Supported for these networks**: 3D beats 2D where only the order" in before["abstract"]
        and "Something-Something V2" in before["abstract"]
    )
    assert "demo" not in json.dumps(before | dict(study={}))
    after = again(study, tmp_path, deep=0.0)
    assert (
        "hether 3D beats 2D where only the order"
        in after["abstract"].replace("**Undecided**: w", "w")
        and "**Supported for these networks**: 3D beats" not in after["abstract"]
    )
    for name in ("hypotheses", "accuracy", "groups", "pairs", "networks"):
        assert (tmp_path / "tables" / f"{name}.csv").read_text() != (
            results / "tables" / f"{name}.csv"
        ).read_text(), name
    for name in ("accuracy", "pairs", "orders", "classes", "compute"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes() != (
            results / "figures" / f"{name}.png"
        ).read_bytes(), name
    table = pd.read_csv(tmp_path / "tables" / "accuracy.csv").set_index("network")
    assert table.loc["3D from scratch", "which of the pair"] in after["abstract"]


@pytest.mark.slow
def test_the_abstract_says_so_when_3d_is_worse(study, tmp_path):
    worse = again(study, tmp_path, deep=-4.0)
    assert (
        "that 3D beats 2D where only the order"
        in worse["abstract"].split("**Contradicted for these networks**")[1].split("**")[0]
    )


def test_what_is_missing_is_said_and_not_concluded_from(study, tmp_path):
    gone = again(study, tmp_path, without=("3d-scratch-s0",), yaml=dict(seeds=[0, 1]), boxes=False)
    assert "3d-scratch-s0" in gone["missing"] and "**Incomplete**" in gone["abstract"]
    assert (
        "**Supported" not in gone["abstract"]
        and "for want of the run 3d-scratch-s0" in gone["abstract"]
    )
    assert "fig-where" not in gone["where"] and "no boxes" in gone["limits"]


@pytest.mark.slow
def test_a_network_that_failed_and_a_study_without_hypotheses(study, tmp_path):
    failed = again(
        study, tmp_path, without=("3d-inflated-s0", "3d-inflated-s1"), yaml=dict(seeds=[0, 1])
    )
    assert (
        "**Supported for these networks**: 3D beats 2D" in failed["abstract"]
        and "3d-inflated-s0, 3d-inflated-s1" in failed["finds"]["learning"]
    )
    none = again(study, tmp_path, yaml=dict(hypotheses={}))
    assert "No hypothesis was declared" in none["abstract"]


@pytest.mark.slow
def test_measures_that_failed_validation_are_left_out(study, tmp_path):
    (tmp_path / "tables_validation").mkdir()
    pd.DataFrame(dict(measure=["ratio_both", "pointing"], separates=[False, True])).to_csv(
        tmp_path / "tables_validation" / "validation.csv", index=False
    )
    (tmp_path / "validation_run.ipynb").write_text("{}")
    v = again(study, tmp_path)
    assert (
        "does not tell right maps from wrong ones" in v["finds"]["attention"]
        and "tbl-validation" in v["validation"]
    )


@pytest.mark.slow
def test_a_hypothesis_of_an_unknown_measure_is_refused(study, tmp_path):
    hypotheses = dict(h=dict(says="x", measure="pointin", of="3d-scratch", over="2d-multi"))
    with pytest.raises(Exception, match="there is no measure 'pointin'; did you mean 'pointing'"):
        again(study, tmp_path, yaml=dict(hypotheses=hypotheses))


@pytest.mark.slow
def test_a_hypothesis_about_named_classes_of_networks_with_three_seeds(study, tmp_path):
    h = dict(
        says="3D folds better", measure="right", of="3d-scratch", over="2d-multi", at_least=0.05
    )
    classes = ["Holding something in front of something", "Showing something next to something"]
    v = again(
        study,
        tmp_path,
        yaml=dict(
            seeds=[0, 1, 2],
            hypotheses=dict(all=h, named=h | dict(clips=classes, says="3D shows better")),
        ),
    )
    table = pd.read_csv(tmp_path / "tables" / "hypotheses.csv")
    lineage = pd.read_csv(tmp_path / "tables" / "lineage.csv").loc[
        0, "difference"
    ]  # made-up maps descend from none
    assert re.match(r"-?0\.0\d", lineage.replace("\u2212", "-")), lineage
    assert (
        list(table["scenes"]) == [120, 24]
        and "at least 5 points" in table["hypothesis"][0]
        and table["trained anew"].str.startswith("[").all()
    )
    assert (
        "supported" in table["verdict"][0]
        and "3D shows better" not in v["abstract"].split("**Supported")[1].split("**Undecided")[0]
    )
    with pytest.raises(
        Exception,
        match="'Holding something in front of it' is no class of this study; did you mean 'Holding something in front of something'",
    ):
        again(
            study,
            tmp_path,
            yaml=dict(hypotheses=dict(h=h | dict(clips=["Holding something in front of it"]))),
        )


def test_figures_come_at_a_papers_width_with_their_fonts_and_captions(study, tmp_path):
    from ssv2_report.cli import figures

    results, s, _ = study
    figures(study=str(results / "made_up.yaml"), results=results, out=tmp_path)
    table = pd.read_csv(tmp_path / "captions.csv").set_index("cell")
    assert set(table.loc["analysis_run.ipynb#fig-accuracy", "files"].split()) == {
        f"fig-accuracy.{k}" for k in ("pdf", "png", "svg")
    }
    assert (
        "{{<" not in "".join(table["caption"])
        and table["caption"].str.len().min() > 20
        and len(table) >= 12
    )
    for f in tmp_path.glob("fig-*.pdf"):
        pdf = f.read_bytes()
        width = float(re.search(rb"/MediaBox *\[ *0 0 ([\d.]+)", pdf)[1]) / 72
        assert any(abs(width - w) < 0.01 for w in (COLUMN, PAGE)) and b"/FontFile2" in pdf, f.name
    assert (
        "<text" not in (tmp_path / "fig-accuracy.svg").read_text()
    )  # letters are drawn, so no font is missed elsewhere
