"""Statistics against reference calls, a simulated null, and a report whose every sentence follows the tables."""

import html
import json
import re
import shutil
import subprocess
import warnings
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from books import run_book
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ssv2_report.analysis.latex import COLUMN, aligned, all_numbers, caption_latex, document_latex
from ssv2_report.analysis.simulated import simulate
from ssv2_report.analysis.stats import difference_range, range_of
from ssv2_report.analysis.summary import words_of as seen_words
from ssv2_report.analysis.tables import (
    PAGE,
    SHARES,
    against_compute,
    by_frame,
    choose_cases,
    curves,
    literal,
    plain_table,
    save_figure,
    save_table,
    set_style,
)
from ssv2_report.data.audit import Audit
from ssv2_report.demo.answers import find_scenes
from ssv2_report.report.site import substitute
from ssv2_report.study.experiments import (
    MEASURES,
    load_study,
    narrowed_study,
    write_studies,
)
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
        "x": "3D right, 2D not",
        "y": "all right",
        "z": "all wrong",
        "w": "least certain",
    }
    same = choose_cases(scored, dict(deep=True, flat=False), 4, dict(x="s", y="s", z="t"))
    assert list(same["id"]) == ["x", "z", "w"]  # y is another clip of x's scene
    tossed = scored.assign(certainty=0.51)
    assert set(choose_cases(tossed, dict(deep=True, flat=False), 4)["kind"]) == {
        *("all wrong", "least certain")
    }  # an answer of 51 % is right for no case
    kinds = set(choose_cases(scored, dict(deep=True, flat=True), 4)["kind"])
    assert "3D right, 2D not" not in kinds  # there is no 2D network that could be wrong


def test_tables_come_as_csv_latex_and_markdown(tmp_path):
    save_table(pd.DataFrame({"model": ["a_b & c"], "share (%)": ["50 %"]}), tmp_path, "t")
    assert (tmp_path / "t.csv").read_text() == "model,share (%)\na_b & c,50 %\n"
    assert (
        r"a\_b \& c & 50 \% \\" in (tmp_path / "t.tex").read_text()
        and r"share (\%)" in (tmp_path / "t.tex").read_text()
    )
    assert r"| a\_b \& c |" in re.sub(" +", " ", (tmp_path / "t.md").read_text())
    gaps = pd.DataFrame([["x", np.nan, None]], columns=["a", "b", "b"])  # two networks of one name
    save_table(gaps, tmp_path, "gaps")
    assert r"x & -- & -- \\" in (tmp_path / "gaps.tex").read_text()
    save_table(pd.DataFrame(), tmp_path, "empty")
    assert (tmp_path / "empty.tex").read_text().startswith("%")


NASTY = {
    "net_work {a} (%)": ["unfolding a $20 bill", '[2] é ñ 中 ☃ \\ ~ ^ #1 & <b> |a| "q"'],
    "−0.3\u00a0[−1.0, 0.4]": [
        "✓\u00a0supported ≈ ✗ × ± ≤ – — … “x” ‘y’",
        "* " + "long and wide " * 20,
    ],
}


def tex_of(tmp_path):
    save_table(pd.DataFrame(NASTY), tmp_path, "nasty")
    caption = (
        r"Means over clips\$ of @fig-where, [95 %](a.ipynb#tbl-a){.number} of **them** – ≈ 3 µm_x."
    )
    caption_latex(tmp_path / "nasty.tex", caption)
    return (tmp_path / "nasty.tex").read_text(encoding="utf-8")


def test_nothing_but_ascii_is_left_in_latex(tmp_path):
    tex = tex_of(tmp_path)
    assert tex.isascii() and r"\toprule" in tex and r"\label{tbl:nasty}" in tex
    assert r"$-$0.3 [$-$1.0, 0.4]" in tex and r"a \$20 bill" in tex and r"\'{e} \~{n} ?" in tex
    assert r"\caption{Means over clips\$ of Figure~\ref{fig:where}, 95 \% of them --" in tex
    rows = tex.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert (
        len(rows) == 2 and rows[1].startswith("{}[2]") and not re.search(r"(?<!\\)[%#$&]{2}", tex)
    )


def test_text_of_a_dataset_is_shown_as_it_is():
    import pypandoc

    name = 'Pushing <img src=x onerror="alert(1)"> *a* $b$ & `c` {{< var d >}} [e](f) ~g~ #h \\ @i'
    for kind in ("markdown", "commonmark"):
        page = pypandoc.convert_text(f"#### Case 1: {literal(name)}", "html", kind, ["--wrap=none"])
        assert html.unescape(re.sub("</?h4[^>]*>", "", page)).strip() == f"Case 1: {name}", kind
    page = plain_table(pd.DataFrame({name: [name]})).to_html()
    assert page.count(html.escape(name).replace("&quot;", "&#34;")) == 2 and "<img" not in page


def test_points_of_numbers_stand_under_each_other():
    cells = aligned(["9.4\u00a0[−4.1,\u00a08.7]", "100.0\u00a0[89.3,\u00a0100.0]", "–", "2D, one"])
    assert cells[2:] == ["–", "2D, one"]
    points = [[at for at, sign in enumerate(cell) if sign == "."] for cell in cells[:2]]
    assert points[0] == points[1] and len(points[0]) == 3
    assert len(cells[0]) == len(cells[1])
    assert all_numbers(["<\u00a00.001", "–", "\ue0001.000\ue001"])
    assert not all_numbers(["0.5", "1.000"]) and not all_numbers(["never", "3"])
    page = plain_table(
        pd.DataFrame({"a": ["9.4\u00a0[1.1,\u00a08.7]", "10.0\u00a0[9.3,\u00a010.0]"]})
    )
    assert "\u20079.4 [1.1,\u00a0\u20078.7]" in page.to_html()


# A whole analysis on made-up runs: the notebook as `ssv2 analyse` runs it, on a study without pictures.


SMALL_FIGURES = """
def save_figure(fig, folder, name, simulated=False):
    Path(folder).mkdir(parents=True, exist_ok=True)
    fig.savefig(Path(folder) / f"{name}.png", dpi=40)
    plt.close(fig)
    print(name)  # as a figure, an output of its cell

tables.save_figure = save_figure
"""


def analyse(results, path, as_printed=False):
    """Execute analysis_run; its variables. Pictures of clips are left out: there are no clips. Figures
    are drawn once, small, where they are not wanted as they are printed: in three formats."""
    import nbformat

    nb = nbformat.read(ROOT / "nbs" / "analysis" / "analysis_run.ipynb", 4)
    without = ("label: case-studies", "cases.draw_typical")
    nb.cells = [c for c in nb.cells if not any(text in c.source for text in without)]
    if not as_printed:
        imports = next(c for c in nb.cells if "from ssv2_report.analysis import" in c.source)
        imports.source += SMALL_FIGURES
    nbformat.write(nb, results / "as_run.ipynb")
    known = dict(study=str(path), results=str(results))
    out = results / "analysis_run.ipynb"
    run_book(results / "as_run.ipynb", results, out, ROOT / "nbs", **known)
    return yaml.safe_load((results / "variables.yml").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Folder, study and variables of one analysis, drawn for page and print: all its figures, as no faster test has them."
    results = tmp_path_factory.mktemp("results")
    raw = yaml.safe_load((ROOT / "experiments" / "smoke.yaml").read_text())
    raw["data"] = dict(
        root=str(results / "data"), size=64
    )  # not a demo world: the report must speak of Something-Something
    path = results / "made_up.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    s = load_study(str(path))
    simulate(s, results)
    return results, s, analyse(results, path, as_printed=True)


@pytest.fixture(scope="module")
def equal(study, tmp_path_factory):
    "Folder and variables where 3D tells the order no better than 2D, by maps that know nothing."
    folder = tmp_path_factory.mktemp("equal")
    return folder, again(study, folder, deep=0.0, right=0.0)


def other_rate(results):
    config = dict(lr=0.5, opt="momentum", inflation="average")
    for f in (results / "runs").iterdir():
        (f / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def other(study, tmp_path_factory):
    """Folder and variables of networks that answer as those of `study` and were trained otherwise,
    with other grids, and with maps that are zero."""
    folder, grids = tmp_path_factory.mktemp("other"), {"3d-scratch": 1, "3d-inflated": 1}
    empty = {"3d-scratch": 0.975, "2d-single": 0.5}
    return folder, again(study, folder, other_rate, grids=grids, empty=empty)


def test_maps_that_know_nothing_carry_no_verdict(study, equal):
    results, s, before = study
    said = page(results, before)
    assert "its maps passed our tests" in said and "not interpretable" not in said
    assert before["source"]["name"] == "Grad-CAM at layer2"
    table = pd.read_csv(results / "tables" / "hypotheses.csv", index_col="hypothesis")
    maps = table.index.str.contains("maps")
    assert (
        maps.sum() == 4
        and (table.loc[maps, "difference"] != "–").all()
        and len(pd.read_csv(results / "tables" / "robustness.csv")) == 2
    )
    folder, blind = equal
    said = page(folder, blind)
    assert (
        "They are **not interpretable**" in said
        and "That the maps did not pass our tests is a finding" in said
    )
    assert "its maps passed our tests" not in said
    assert "Where these networks look, we cannot tell" in abstract(said)
    on_maps = blind["finds"]["attention"] + blind["finds"]["similarity"]
    assert (
        "the maps it is about did not pass our tests" in on_maps
        and "supported" not in on_maps
        and "contradicted" not in on_maps
    )


def test_maps_that_nothing_can_judge_are_said_to_be_so(study, tmp_path):
    v = again(study, tmp_path, boxes=False)
    assert (
        "no boxes to judge the maps it is about by" in v["finds"]["similarity"]
        and "did not pass our tests" not in v["finds"]["similarity"]
    )
    said = page(tmp_path, v)
    assert "There was nothing to judge its maps by" in said
    assert "the clips came without boxes" in abstract(said) and "not interpretable" not in said


def test_maps_on_different_grids_are_not_compared(other):
    _, v = other
    assert "its maps have 1 x 3 x 3 and 2 x 3 x 3 cells" in v["finds"]["attention"]
    assert "*maps on pushing* (since on none of its clips do both" in v["finds"]["attention"]
    assert (
        v["finds"]["attention"].count("a finer grid alone would differ") == 3
    )  # two by groups of classes, one on motion; the inflated network has its partner's grid


def extreme(results):
    "Have a study's made-up runs measure the largest values on most clips and the smallest on one, and one network be wrong on all."
    for run in (results / "runs").iterdir():
        t = pd.read_parquet(run / "attention_clips.parquet")
        own = t["method"].str.contains(":")
        odd = t["id"] == str(len(run.name) % 12)
        for column, (low, high) in dict(
            pointing=(0, 1), path_hand=(-1, 1), path_object=(-1, 1), effective_frames=(1, 4)
        ).items():
            t.loc[own, column] = np.where(odd, low, high)[own].astype(float)
        t.to_parquet(run / "attention_clips.parquet")
        if run.name.startswith("2d-multi"):
            t = pd.read_parquet(run / "reliance.parquet")
            t.assign(right=False).to_parquet(run / "reliance.parquet")


def intervals(text):
    "The numbers of every estimate with an interval in a cell: mean, lo, hi."
    number = r"([+−]?[\d.]+)"
    found = re.findall(rf"{number}\u00a0\[{number},\u00a0{number}\]", str(text))
    return [[float(x.replace("−", "-")) for x in row] for row in found]


def test_on_a_dozen_clips_nothing_is_said_that_cannot_be(study, tmp_path):
    "Every interval of every table lies in the range of its measure, and sentences on few clips say so."
    raw = yaml.safe_load(Path(study[0] / "made_up.yaml").read_text()) | dict(seeds=[0, 1, 2])
    (tmp_path / "made_up.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    s = load_study(str(tmp_path / "made_up.yaml"))
    simulate(s, tmp_path, clips=12)
    extreme(tmp_path)
    v = analyse(tmp_path, tmp_path / "made_up.yaml")
    read = lambda name: pd.read_csv(tmp_path / "tables" / f"{name}.csv")
    named, seen = {row[0]: m for m, row in MEASURES.items()}, 0

    def check(text, ends):
        found = intervals(text)
        for mean, lo, hi in found:
            assert ends[0] - 1e-9 <= lo <= mean <= hi <= ends[1] + 1e-9, (text, ends)
        return len(found)

    for name in ("accuracy", "groups", "reliance"):
        seen += sum(check(x, (0, 100)) for x in read(name).to_numpy().ravel())
    seen += sum(check(x, (-100, 100)) for x in read("networks")["difference"])
    apart = lambda m, by=1: [by * x for x in difference_range(range_of(m, 4), range_of(m, 4))]
    for table, ends in (("attention", lambda m: range_of(m, 4)), ("differences", apart)):
        for row in read(table).to_dict("records"):
            m = named[row.pop("measure")]
            seen += sum(check(x, ends(m)) for x in row.values())
    for h, row in zip(s.hypotheses.values(), read("hypotheses").to_dict("records")):
        ends = apart(h.measure, 100 if h.measure in SHARES else 1)
        seen += check(row["difference"], ends)
    for h, row in zip(s.hypotheses.values(), read("comparisons").to_dict("records")):
        ends = apart(h.measure, 100 if h.measure in SHARES else 1)
        anew = re.findall(r"[+−]?[\d.]+", row["trained anew"])
        assert all(ends[0] <= float(x.replace("−", "-")) <= ends[1] for x in anew)
    lineage = read("lineage")
    seen += sum(
        check(x, (-1, 1)) for x in lineage[["its own", "of other seeds"]].to_numpy().ravel()
    )
    assert seen > 80
    flat, deep = v["reliance"]["networks"].split(". ")
    assert "is right on [0\u00a0%]" in flat
    assert "of 12 clips" in flat and "loses nothing" not in v["reliance"]["networks"]
    assert "not shown to be better than chance" in flat and "loses most without" in deep
    assert "Of each class: 1 to 2 clips." in v["caption"]["classes"]


@pytest.mark.slow
def test_no_difference_of_pairs_passes_what_a_blind_network_leaves(study, tmp_path):
    "Of scenes that are there forwards and backwards, a 2D network is right on half: 3D can be better by 50 points."
    raw = yaml.safe_load(Path(study[0] / "made_up.yaml").read_text())
    raw["data"]["demo"] = dict(size=64)
    raw["data"]["root"] = str(tmp_path / "world")
    clips = {
        str(k): dict(
            split="validation", objects=[k // 2], background="plain", mirrored=False, frames=31
        )
        | dict(first=3 + 2 * (k % 2), last=25 + 2 * (k % 2), reversed=bool(k % 2))
        for k in range(120)
    }
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "demo.json").write_text(json.dumps(dict(clips=clips)))
    assert len(set(find_scenes(tmp_path / "world").values())) == 60

    def blind(results):
        for run in (results / "runs").glob("2d-*"):
            t = pd.read_parquet(run / "predictions.parquet")
            first = t["id"].astype(int) // 2 * 2
            known = t.set_index([t["order"], t["id"].astype(int)])["logits"]
            t["logits"] = [known[order, k] for order, k in zip(t["order"], first)]
            t.to_parquet(run / "predictions.parquet")

    again(study, tmp_path, blind, yaml=dict(data=raw["data"]), deep=20.0)
    row = pd.read_csv(tmp_path / "tables" / "hypotheses.csv").iloc[0]
    ((mean, lo, hi),) = intervals(row["difference"])
    assert (mean, hi) == (50, 50) and 30 < lo < 50


def page(results, v):
    "The report's text; every figure and table it refers to is there, and no sentence has a hole."
    cells = [
        c
        for name in ("analysis_run", "validation_run")
        if (f := results / f"{name}.ipynb").is_file() and f.stat().st_size > 2
        for c in json.loads(f.read_text())["cells"]
    ]
    shown = {
        m[1]
        for c in cells
        if c.get("outputs") and (m := re.match(r"#\| label: (\S+)", "".join(c["source"])))
    }
    index = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    text = "\n\n".join(substitute("".join(c["source"]), v) for c in index)
    assert yaml.safe_load(text.split("\n---\n")[0])["title"] == v["study"]["title"]
    named = set(re.findall(r"@((?:fig|tbl)-\w+)", text + json.dumps(v["caption"])))
    assert named <= shown, named - shown
    appendix = (ROOT / "nbs" / "report" / "appendix.ipynb").read_text()
    linked = set(re.findall(r"appendix\.ipynb#([\w-]+)", text))
    there = shown & set(re.findall(r"_run\.ipynb#([\w-]+)", appendix))
    there |= set(re.findall(r"\{#(sec-[\w-]+)\}", appendix))
    assert linked <= there, linked - there
    assert not re.search(
        r"\b1 (networks|seeds|clips|classes|hypotheses|sources|runs|others)\b|\bnan\b|: \.|\(\)|by \.",
        text,
    )
    return text


def abstract(text):
    "The abstract of a page."
    return yaml.safe_load(text.split("\n---\n")[0])["abstract"]


def prose(text):
    "What a page's sections say, without title block, headings and what is embedded."
    body = text.split("\n---\n", 1)[1]
    return re.sub(r"(?m)^(#|:::|\{\{).*$|\]\([^)]*\)|\{\.number\}", "", body)


def again(study, tmp_path, edit=None, **kw):
    "Variables of the analysis after `kw` changed: `yaml` is merged into the study; `edit` changes the runs."
    results, s, _ = study
    path = tmp_path / "made_up.yaml"
    path.write_text(
        yaml.safe_dump(
            yaml.safe_load((results / "made_up.yaml").read_text()) | kw.pop("yaml", {}),
            sort_keys=False,
        )
    )
    simulate(load_study(str(path)), tmp_path, **kw)
    if edit:
        edit(tmp_path)
    return analyse(tmp_path, path)


def test_cells_say_on_how_many_clips_they_rest_where_maps_are_zero(study, other):
    results, s, before = study
    assert "(n" not in (results / "tables" / "attention.csv").read_text()
    assert before["caption"]["empty"] == ""
    folder, v = other
    table = pd.read_csv(folder / "tables" / "attention.csv").set_index("measure")
    assert table["3D from scratch"].str.endswith("(n\u00a0=\u00a03)").all()
    assert table["2D, one frame"].str.endswith("(n\u00a0=\u00a060)").all()
    assert not table["2D, eight frames"].str.contains("n").any() and (table["clips"] == 120).all()
    others = pd.read_csv(folder / "tables" / "differences.csv").iloc[:, 1:]
    few = others.apply(lambda c: c.str.extract(r"\(n\u00a0=\u00a0(\d+)\)$")[0].astype(int))
    right = few.columns.str.endswith("both are right")
    assert (few.loc[:, ~right] == 3).all(axis=None) and (few.loc[:, right] <= 3).all(axis=None)
    robust = pd.read_csv(folder / "tables" / "robustness.csv")
    assert robust["inflated maps"].str.endswith("(n\u00a0=\u00a03)").all()
    empty = pd.read_csv(folder / "tables" / "empty.csv").set_index("source")
    assert list(empty["3D from scratch"]) == ["117 of 120"] * 2
    assert list(empty["2D, eight frames"]) == ["0 of 120"] * 2
    text = page(folder, v)
    assert "Maps that are zero everywhere are [left out](appendix.ipynb#tbl-empty)" in text
    assert "3D from scratch, 117 of 120" in v["caption"]["empty"]


def strange(results):
    "No pairs, nothing learnt, names full of marks, and an audit that excluded a clip and noted another."
    for f in results.glob("runs/*/metrics.json"):
        raw = json.loads(f.read_text())
        raw["classes"] = [f"Unfolding a $2{i}_0 bill *now*" for i in range(9)] + raw["classes"][9:]
        f.write_text(json.dumps(raw))
        pd.read_csv(f.parent / "history.csv").assign(val_top1=0.0).to_csv(
            f.parent / "history.csv", index=False
        )
    findings = [
        ("x", "validation", "truncated", "12 of 30 frames"),
        ("7", "validation", "box outside the picture", "frame 3"),
    ]
    counted = [
        ("train", "", "", 9),
        ("validation", "", "", 120),
        ("validation", "", "truncated", 1),
    ]
    findings = [(id, split, "", reason, detail) for id, split, reason, detail in findings]
    table = pd.DataFrame(findings, columns=["id", "split", "class_name", "reason", "detail"])
    tally = pd.DataFrame(counted, columns=["split", "class_name", "why", "records"])
    Audit(str(results), table, tally, [], False, "", "").save(results / "audit.json")


def test_one_network_without_pairs_or_boxes_gives_a_true_report(study, tmp_path):
    one = {
        "2d-multi": yaml.safe_load((study[0] / "made_up.yaml").read_text())["experiments"][
            "2d-multi"
        ]
    }
    one["2d-multi"] = one["2d-multi"] | dict(title="2D_a *b* $5$")
    raw = dict(title="What <b>costs</b> $5 & `x`?", experiments=one, hypotheses={})
    v = again(study, tmp_path, edit=strange, yaml=raw, boxes=False)
    text = page(tmp_path, v)
    assert "fig-pairs" not in re.sub(r"(?m)^\{\{.*", "", text) and "which of the pair" not in text
    assert "One network was trained once on 10 classes" in abstract(text)
    assert r"What \<b\>costs\</b\> \$5 \& \`x\`?" in text and r"2D\_a \*b\* \$5\$" in text
    assert "The audit excludes 1 of 130 training and validation clips (1 truncated)" in text
    assert "the audit remarks on some: box outside the picture (1 clip)." in text
    assert not (tmp_path / "figures" / "pairs.png").exists()
    assert "epochs to it" not in (tmp_path / "tables" / "epochs.csv").read_text()
    assert "3D gets right" not in v["cases"]["none"]
    assert "No hypothesis about this was declared" in text and "@tbl-hypotheses" not in text


def only_layercam(results):
    "Runs of a study that declared no Grad-CAM."
    for f in [*results.glob("runs/*/*.parquet"), *results.glob("runs/*/[fs]a*.csv")]:
        table = pd.read_csv(f) if f.suffix == ".csv" else pd.read_parquet(f)
        for column in {"method", "source"} & set(table):
            table = table[table[column] != "layer2:gradcam"]
        table.to_csv(f, index=False) if f.suffix == ".csv" else table.to_parquet(f)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kw",
    [
        dict(boxes=False, edit=only_layercam),
        dict(edit=only_layercam, yaml=dict(seeds=[0, 1])),
        dict(edit=strange, yaml=dict(seeds=[0, 1, 2], hypotheses={})),
        dict(empty={"3d-scratch": 1.0, "2d-multi": 1.0}),
        dict(without=("2d-multi-s0", "2d-multi-s1", "3d-scratch-s1"), yaml=dict(seeds=[0, 1])),
    ],
    ids=["no boxes, no Grad-CAM", "no Grad-CAM", "no pairs", "empty maps", "missing runs"],
)
def test_every_shape_of_study_gives_a_report_without_holes(study, tmp_path, kw):
    page(tmp_path, again(study, tmp_path, **kw))


@pytest.mark.slow
def test_simulated_runs_say_so_in_every_figure_and_verdict(study, tmp_path):
    import nbformat
    import papermill

    nb = nbformat.read(ROOT / "nbs" / "analysis" / "analysis_run.ipynb", 4)
    watch = (
        "from matplotlib.figure import Figure\nstamped, written = [], Figure.savefig\n"
        "def savefig(fig, path, **kw):\n"
        "    stamped.append(any(t.get_gid() == 'simulated' for t in fig.texts))\n"
        "    written(fig, path, **kw)\n"
        "Figure.savefig = savefig"
    )
    tell = (
        "import json\nfrom pathlib import Path\nPath(told_in).write_text(json.dumps(dict(drawn=stamped, "
        "verdicts=list(hypothesis_table['verdict']), variables=variables)))"
    )
    at = next(i for i, c in enumerate(nb.cells) if "simulate(" in c.source)
    nb.cells.insert(at, nbformat.v4.new_code_cell(watch))
    nb.cells.append(
        nbformat.v4.new_code_cell(f"told_in = {str(tmp_path / 'told.json')!r}\n" + tell)
    )
    nbformat.write(nb, tmp_path / "as_run.ipynb")
    path = tmp_path / "never_run.yaml"
    path.write_text((study[0] / "made_up.yaml").read_text())
    papermill.execute_notebook(
        str(tmp_path / "as_run.ipynb"),
        str(tmp_path / "out.ipynb"),
        dict(study=str(path), results=""),
        cwd=str(ROOT / "nbs"),
        kernel_name="python3",
        progress_bar=False,
    )
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["drawn"]) >= 3 * 9 and all(told["drawn"])
    assert len(told["verdicts"]) == 12
    assert all(v.endswith("for simulated runs") for v in told["verdicts"])
    assert "supported for simulated runs" in told["variables"]["finds"]["order"]
    assert "All runs are simulated" in told["variables"]["abstract"]["scope"]


def test_sentences_tables_and_figures_follow_the_predictions(study, equal, other):
    results, s, before = study
    first = page(results, before)
    assert "which is chance" in abstract(first) and "cannot tell them apart" not in abstract(first)
    assert "Something-Something V2" in abstract(first) and "demo world." not in first
    assert "The networks come apart where two classes have the same frames" in first
    folder, after = equal
    second = page(folder, after)
    assert "we cannot tell them apart" in abstract(second)
    assert "have the same frames stays open in this run" in second
    assert "The networks come apart where" not in second
    for name in ("hypotheses", "accuracy", "groups", "pairs", "networks"):
        assert (folder / "tables" / f"{name}.csv").read_text() != (
            results / "tables" / f"{name}.csv"
        ).read_text(), name
    for name in ("accuracy", "pairs", "classes", "compute"):
        assert (folder / "figures" / f"{name}.png").read_bytes() != (
            other[0] / "figures" / f"{name}.png"
        ).read_bytes(), name
    table = pd.read_csv(folder / "tables" / "accuracy.csv").set_index("network")
    right = float(table.loc["3D from scratch", "which of the pair"].split("\u00a0")[0])
    assert f"the 3D network is right on [{right:.0f}\u00a0%]" in abstract(second)


@pytest.mark.slow
def test_the_abstract_says_so_when_3d_is_worse(study, tmp_path):
    worse = page(tmp_path, again(study, tmp_path, deep=-4.0))
    assert "more than the 3D network with" in abstract(worse)
    assert "The result contradicts the hypothesis" in worse
    assert "The networks come apart where" not in worse


def test_the_sections_are_short_and_of_one_spelling(study):
    results, s, v = study
    text = page(results, v)
    said = prose(text)
    assert 1500 <= len(said.split()) <= 2500
    embedded = re.findall(r"embed \w+\.ipynb#(fig|tbl)-", text)
    assert embedded.count("fig") <= 6 and embedded.count("tbl") <= 5
    assert set(re.findall(r"\b(?:know nothing|told by content|bear out)\b", said)) == set()
    american = (
        r"\b(colou?r|behavior|center|gray|(?:normal|general|organ|real|optim)iz\w+|analyz\w+)\b"
    )
    assert set(re.findall(american, said)) <= {"colour"}
    for name, symbol in dict(R="ratio_both", d="effect size").items():
        assert name in set(pd.read_csv(results / "tables" / "measures.csv")["symbol"]), symbol


def test_what_was_trained_is_told_from_the_runs_own_files(other):
    folder, _ = other
    networks = pd.read_csv(folder / "tables" / "architectures.csv").set_index("network")
    inflated = networks.loc["3D inflated from 2D"]
    assert inflated["first weights"] == "2D, eight frames, inflated into all taps"
    assert inflated["map"].replace("\u00a0", " ") == "1 × 3 × 3"
    assert inflated["cell sees"].replace("\u00a0", " ") == "40 px, 7 frames"
    assert networks.loc["3D from scratch", "first weights"] == "random"
    caption = yaml.safe_load((folder / "variables.yml").read_text())["caption"]["training"]
    shown = caption + (folder / "tables" / "training.csv").read_text()
    assert "0.5" in shown and "SGD with momentum" in shown


def test_what_is_missing_is_said_and_not_concluded_from(study, tmp_path):
    gone = again(study, tmp_path, without=("3d-scratch-s0",), yaml=dict(seeds=[0, 1]), boxes=False)
    said = page(tmp_path, gone)
    assert "Of 8 runs, 1 is missing or without maps." in abstract(said)
    assert "cannot be compared, since runs or clips are missing" in abstract(said)
    assert "1 of 8 runs is missing or without maps (3d-scratch-s0)" in said
    assert "for want of the run 3d-scratch-s0" in said
    assert "@fig-where" not in said and "no boxes of hands and objects" in said


def test_a_part_of_a_study_says_that_it_is_one_and_what_it_leaves_out(study, tmp_path):
    results, _, whole = study
    assert "part of the study" not in page(results, whole)
    path = write_studies(narrowed_study(results / "made_up.yaml", ["2d-*", "3d-scratch"]), tmp_path)
    simulate(load_study(path), tmp_path)
    about = json.loads((tmp_path / "runs" / "2d-multi-s0" / "metrics.json").read_text())
    about["gpus"] = "2 x a GPU"
    (tmp_path / "runs" / "2d-multi-s0" / "metrics.json").write_text(json.dumps(about))
    v = analyse(tmp_path, path)
    run = (tmp_path / "tables" / "run.csv").read_text()
    assert "a run on 2 x a GPU" in run and "made_up --only '2d-*,3d-scratch'" in run
    text = page(tmp_path, v)
    said = "This is a part of the study. It leaves out the experiment 3d-inflated; the hypotheses"
    assert said in text and "inflation" in v["part"]["said"]
    assert "Only a part of the study was run." in abstract(text)
    assert "is missing" not in text and "a part of" in v["study"]["title"]
    assert "3D from scratch" in text and "3D inflated from 2D" not in text


@pytest.mark.slow
def test_a_network_that_failed_and_a_study_without_hypotheses(study, tmp_path):
    failed = again(
        study, tmp_path, without=("3d-inflated-s0", "3d-inflated-s1"), yaml=dict(seeds=[0, 1])
    )
    assert "which is chance" in abstract(page(tmp_path, failed))
    assert "3d-inflated-s0, 3d-inflated-s1" in failed["finds"]["learning"]
    none = again(study, tmp_path, yaml=dict(hypotheses={}))
    text = page(tmp_path, none)
    assert "No hypothesis about this was declared" in text and "which is chance" in abstract(text)


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
        and "share on hand or object / its area" in v["validation"]["left_out"]
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
    compared = pd.read_csv(tmp_path / "tables" / "comparisons.csv")
    lineage = pd.read_csv(tmp_path / "tables" / "lineage.csv").loc[
        0, "difference"
    ]  # made-up maps descend from none
    assert re.match(r"-?0\.0\d", lineage.replace("\u2212", "-")), lineage
    assert (
        list(compared["scenes"]) == [120, 24]
        and "at least 5 points" in compared["comparison"][0]
        and compared["trained anew"].str.startswith("[").all()
    )
    assert "supported" in table["verdict"][0] and "supported" not in table["verdict"][1]
    assert v["finds"]["order"].startswith("The hypothesis *all* (")
    with pytest.raises(
        Exception,
        match="'Holding something in front of it' is no class of this study; did you mean 'Holding something in front of something'",
    ):
        again(
            study,
            tmp_path,
            yaml=dict(hypotheses=dict(h=h | dict(clips=["Holding something in front of it"]))),
        )


def compiled(folder):
    "What pdflatex says of main.tex, run until references stand."
    for _ in range(2):
        run = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        assert run.returncode == 0, run.stdout[-1500:]
    return run.stdout


@pytest.mark.slow
def test_all_figures_and_tables_compile_in_two_columns(study, tmp_path):
    """Everything that the report shows, its validation included, and a table of all signs, by
    pdflatex: nothing is missing, scaled, or wider than its column."""
    from ssv2_report.cli import figures
    from ssv2_report.jobs.notebooks import run_notebook

    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not there (Debian: texlive-latex-recommended)")
    results, s, _ = study
    path, results = results / "made_up.yaml", shutil.copytree(results, tmp_path / "results")
    known = dict(study=str(path), results=str(results))
    run_notebook("analysis/validation_run", results / "validation_run.ipynb", **known)
    figures(study=str(path), results=results, out=tmp_path / "paper")
    cells = set(pd.read_csv(tmp_path / "paper" / "captions.csv")["cell"])
    text = (ROOT / "nbs" / "index.ipynb").read_text()
    embedded = set(re.findall(r"embed (\w+\.ipynb#(?:fig|tbl)-[\w-]+)", text))
    bare = {  # not there without clips, a second world, an audit, empty maps, or a second seed
        f"{name}_run.ipynb#{label}"
        for name, labels in dict(
            validation=("tbl-validation", "fig-validation"),
            analysis=("fig-attention", "tbl-excluded", "tbl-empty", "tbl-lineage"),
        ).items()
        for label in labels
    }
    assert embedded - bare <= cells, embedded - bare - cells
    tex_of(tmp_path / "paper")
    main = tmp_path / "paper" / "main.tex"
    whole = main.read_text()
    assert "resizebox" not in "".join(f.read_text() for f in main.parent.glob("*.tex"))
    main.write_text(whole.replace(r"\end{document}", r"\input{nasty}\end{document}"))
    said = compiled(tmp_path / "paper")
    wide = [float(x) for x in re.findall(r"Overfull \\hbox \(([\d.]+)pt", said)]
    assert max(wide, default=0) < 2 and "too large for page" not in said, said
    assert not re.search("undefined|multiply defined", said), said


def test_figures_come_at_a_papers_width_with_their_fonts_and_captions(study, tmp_path):
    from ssv2_report.cli import figures

    results, s, _ = study
    figures(study=str(results / "made_up.yaml"), results=results, out=tmp_path)
    table = pd.read_csv(tmp_path / "captions.csv").set_index("cell")
    assert set(table.loc["analysis_run.ipynb#fig-accuracy", "files"].split()) == {
        f"fig-accuracy.{k}" for k in ("pdf", "png", "svg", "tex")
    }
    assert (
        "{{<" not in "".join(table["caption"])
        and table["caption"].str.len().min() > 20
        and len(table) >= 12
    )
    assert r"\label{fig:accuracy}" in (tmp_path / "fig-accuracy.tex").read_text()
    assert (tmp_path / "main.tex").read_text().count(r"\input{") == len(table)
    for f in tmp_path.glob("fig-*.pdf"):
        pdf = f.read_bytes()
        width = float(re.search(rb"/MediaBox *\[ *0 0 ([\d.]+)", pdf)[1]) / 72
        assert any(abs(width - w) < 0.01 for w in (COLUMN, PAGE)) and b"/FontFile2" in pdf, f.name
    assert ">which of the pair</text>" in (tmp_path / "fig-accuracy.svg").read_text()
    for cell, caption in table["caption"].items():
        assert len(seen_words(caption)) <= 40, (cell, caption)


def type_sizes(pdf):
    "Points of all type in a PDF of matplotlib's."
    streams = re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S)
    text = []
    for stream in streams:
        try:
            text.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return {float(x) for x in re.findall(rb"/F\S+ ([\d.]+) Tf", b"\n".join(text))}


@pytest.mark.slow
@pytest.mark.parametrize("width, font, size", [(3.25, "DejaVu Serif", 7.5), (6.875, None, None)])
def test_figures_are_drawn_anew_for_a_paper(tmp_path, width, font, size):
    "Every figure at the width asked for, its type embedded and of the size asked for; the results stay as they are."
    from ssv2_report.cli import figures
    from ssv2_report.jobs.notebooks import run_notebook

    results = tmp_path / "results"
    known = dict(study="smoke", results=str(results), out=str(results))  # no runs: simulated
    for name in ("analysis_run", "validation_run"):
        run_notebook(f"analysis/{name}", results / f"{name}.ipynb", **known)
    before = {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    out = tmp_path / "paper"
    figures(study="smoke", results=results, out=out, width=width, font=font, font_size=size)
    assert before == {p: p.read_bytes() for p in results.rglob("*") if p.is_file()}
    drawn = sorted(out.glob("fig-*.pdf"))
    assert {"fig-accuracy.pdf", "fig-when.pdf", "fig-sane.pdf"} <= {f.name for f in drawn}
    for f in drawn:
        pdf = f.read_bytes()
        assert float(re.search(rb"/MediaBox *\[ *0 0 ([\d.]+)", pdf)[1]) / 72 == pytest.approx(
            width, abs=0.01
        ), f.name
        sizes = type_sizes(pdf) - {22.0}  # of the word across what is simulated
        assert sizes == {size or 8.0}, (f.name, sizes)
        fonts = set(re.findall(rb"/BaseFont */(?:[A-Z]{6}\+)?([\w-]+)", pdf))
        assert b"/FontFile2" in pdf and (not font or {b"DejaVuSerif"} == fonts), (f.name, fonts)
    if shutil.which("pdflatex"):
        said = compiled(out)
        wide = [float(x) for x in re.findall(r"Overfull \\hbox \(([\d.]+)pt", said)]
        assert max(wide, default=0) < 2 and not re.search("undefined|multiply defined", said)


@pytest.mark.parametrize("font", ["Times Newest Roman", "", "$x$", "DejaVu Serif, Arial"])
def test_a_font_that_is_not_there_is_named(font, study, tmp_path):
    from ssv2_report.cli import figures

    if not font:
        set_style(font=font)  # none is asked for
        return
    with pytest.raises(ValueError, match="There is no font " + re.escape(repr(font))) as error:
        figures("demo", study[0], tmp_path / "paper", font=font)
    assert "\n" not in str(error.value) and not (tmp_path / "paper").exists()


def test_no_mark_hides_another():
    "Networks of one cost, of one curve and of one frame stand side by side."
    titles = {k: k.upper() for k in "abc"}
    fig, axes = plt.subplots(1, 3)
    same = pd.DataFrame(dict(mean=0.9, lo=0.8, hi=0.95), index=list(titles))
    against_compute(same, dict.fromkeys(titles, 2.0), titles, axes[0])
    by_frame([same] * 4, titles, axes[1])
    rows = [dict(experiment=e, seed=0, epoch=i, val_top1=0.5) for e in titles for i in range(9)]
    curves(pd.DataFrame(rows), titles, axes[2])
    for ax in axes:
        marks = []
        for line in ax.lines:
            if line.get_marker() not in ("None", "", "_", "|"):
                at = line.get_markevery() or 1
                points = ax.transData.transform(line.get_xydata())
                marks += [tuple(p) for p in (points[at[0] :: at[1]] if at != 1 else points)]
        assert len(marks) >= 3 and len({(round(x), round(y)) for x, y in marks}) == len(marks)
    plt.close(fig)


def test_signs_that_a_font_has_not_are_taken_from_another(tmp_path):
    "Verdicts have a tick or a cross, which few fonts for text have."
    known = dict(plt.rcParams)
    try:
        set_style(font="cmr10", size=9)
        fig, ax = plt.subplots()
        ax.set_title("✓ right, ✗ wrong, 3 – 4")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save_figure(fig, tmp_path, "a")
        assert type_sizes((tmp_path / "a.pdf").read_bytes()) == {9.0}
    finally:
        plt.rcParams.update(known)
        plt.close("all")


def test_a_long_table_fits_on_a_page(tmp_path):
    "Twenty-five rows of names, numbers and intervals, as those of the validation are."
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not there (Debian: texlive-latex-recommended)")
    row = {"measure": "follows the object's path (correlation)", "chance": "0.00"}
    row |= {"right map": "9.18", "noise": "1.00", "network": "2D, eight frames"}
    row |= {"honest": "4.30", "shortcut": "0.97", "effect": "+1.00 [+0.99, +1.00]"}
    save_table(pd.DataFrame([row | {"separates": "yes"}] * 25), tmp_path, "long")
    caption_latex(tmp_path / "long.tex", "Each measure, at length. " * 12)
    (tmp_path / "main.tex").write_text(document_latex(["long"]))
    said = compiled(tmp_path)
    assert "too large for page" not in said and "Overfull" not in said
