"The test of the measures, itself put to the test: effect sizes by hand, verdicts that must fall either way, and the whole way on a tiny study."

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from ssv2_report.analysis.simulated import simulate
from ssv2_report.analysis.validation import (
    agreement,
    choose_source,
    cliffs_delta,
    judge_sources,
    saved_maps,
    separation,
)
from ssv2_report.gradcam.attention import oracle_maps
from ssv2_report.gradcam.maps import normalise
from ssv2_report.gradcam.sources import interpretable, region_ratio
from ssv2_report.study.experiments import load_study, project_root, write_study


def test_cliffs_delta_by_hand():
    assert (
        cliffs_delta([3, 4, np.nan], [1, 2])["effect"] == 1
        and cliffs_delta([1, 2, 3], [2])["effect"] == 0
    )
    assert cliffs_delta([1, 2], [2, 3])["effect"] == -0.75  # of 4 pairs 3 lie below and 1 is a tie
    assert all(np.isnan(v) for v in cliffs_delta([np.nan], [1]).values())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
)
def test_cliffs_delta_is_mann_whitneys_u_and_turns_with_its_groups(a, b):
    there, back = cliffs_delta(a, b), cliffs_delta(b, a)
    np.testing.assert_allclose(
        there["effect"], 2 * mannwhitneyu(a, b).statistic / (len(a) * len(b)) - 1, atol=1e-12
    )
    np.testing.assert_allclose(there["effect"], -back["effect"], atol=1e-12)
    assert (
        -1 <= there["lo"] <= there["effect"] + 1e-12 and there["effect"] - 1e-12 <= there["hi"] <= 1
    )


def test_the_interval_covers_the_truth():
    "Two normal groups half a deviation apart: the true delta is 2 Phi(0.5 / sqrt 2) - 1."
    rng, truth, hits = np.random.default_rng(0), 0.2763, 0
    for _ in range(100):
        d = cliffs_delta(rng.normal(0.5, 1, 60), rng.normal(0, 1, 60), n=400)
        hits += d["lo"] <= truth <= d["hi"]
    assert 88 <= hits <= 99


def test_values_of_one_scene_are_resampled_together():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    width = lambda d: d["hi"] - d["lo"]
    twice, scenes = (np.repeat(a, 2), np.repeat(b, 2)), (np.repeat(np.arange(40), 2),) * 2
    one, whole, apart = cliffs_delta(a, b), cliffs_delta(*twice, scenes), cliffs_delta(*twice)
    assert (
        one["effect"] == pytest.approx(whole["effect"])
        and width(whole) == pytest.approx(width(one), rel=0.1)
        and width(apart) < 0.8 * width(one)
    )
    a = np.where(np.arange(40) % 3, a, np.nan)
    assert cliffs_delta(a, b, (np.arange(40), np.arange(40))) == cliffs_delta(a, b)


def worlds(honest, shortcut, experiments=("a", "b"), n=60):
    "Rows in which measure x has these means by experiment."
    rng = np.random.default_rng(0)
    return pd.concat(
        [
            pd.DataFrame(dict(x=rng.normal(mean, 1, n), experiment=e, world=w, scene=range(n)))
            for w, means in (("honest", honest), ("shortcut", shortcut))
            for e, mean in zip(experiments, means)
        ]
    )


def ends(right, noise):
    return pd.DataFrame(dict(map=["right", "noise"], x=[right, noise]))


@pytest.mark.parametrize(
    "honest, shortcut, right, noise, told, separates",
    [
        ((2, 2), (0, 0), 5, 0, [True, True], True),
        ((0, 0), (2, 2), -5, 0, [True, True], True),  # a measure that falls towards the right map
        ((0, 0), (2, 2), 5, 0, [False, False], False),  # the wrong way round
        ((2, 0), (0, 0), 5, 0, [True, False], False),  # one network is not enough
        (
            (2, 2),
            (0, 0),
            1,
            1,
            [False, False],
            False,
        ),  # a measure that cannot tell the right map from noise
    ],
)
def test_verdicts_fall_either_way(honest, shortcut, right, noise, told, separates):
    t = separation(worlds(honest, shortcut), ends(right, noise), {"x": ("a title", 1.0)})
    assert (
        list(t["told_apart"]) == told
        and t["separates"].eq(separates).all()
        and list(t["experiment"]) == ["a", "b"]
    )
    assert list(t.columns) == [
        "measure",
        "title",
        "chance",
        "right_map",
        "noise_map",
        "experiment",
        "honest",
        "shortcut",
        "effect",
        "lo",
        "hi",
        "told_apart",
        "separates",
    ]
    assert (
        (t["effect"].between(t["lo"], t["hi"])).all()
        and t["right_map"].eq(right).all()
        and t["chance"].eq(1).all()
    )


def test_networks_alike_in_both_worlds_are_seldom_told_apart():
    rng, told = np.random.default_rng(1), 0
    for _ in range(40):
        rows = pd.DataFrame(
            dict(
                x=rng.normal(size=80),
                experiment="a",
                world=["honest", "shortcut"] * 40,
                scene=range(80),
            )
        )
        told += separation(rows, ends(1, 0), {"x": ("", 0)})["told_apart"].sum()
    assert told <= 4  # one side of a 95 % interval: 1 in 40 is expected


def test_a_missing_world_is_named():
    rows = worlds((1, 1), (0, 0))
    with pytest.raises(ValueError, match="'b' has no clips of the shortcut world"):
        separation(
            rows[(rows["experiment"] == "a") | (rows["world"] == "honest")],
            ends(1, 0),
            {"x": ("", 0)},
        )


def test_the_share_of_a_region_by_hand():
    maps, strip = torch.zeros(3, 2, 8, 8), np.zeros((3, 2, 8, 8), bool)
    maps[0, :, 0], maps[1, 0, 0, 0], maps[1, 0, 5, 5] = 1, 1, 3
    strip[:, :, :2] = True
    np.testing.assert_allclose(region_ratio(normalise(maps), strip), [4, 1, np.nan])
    np.testing.assert_allclose(region_ratio(normalise(torch.ones(1, 2, 8, 8)), strip[:1]), [1])
    assert np.isnan(region_ratio(normalise(torch.ones(1, 2, 8, 8)), 0 * strip[:1] > 0)).all()


def test_right_maps_stay_within_the_action():
    hand, object = np.zeros((2, 1, 3, 4, 4), bool)
    hand[:, :, 0], object[:, :, 1] = True, True
    maps = oracle_maps(hand, object, np.array([[True, False, True]]))
    np.testing.assert_allclose(maps.sum((2, 3)), [[0.5, 0, 0.5]])
    assert (maps[0, 0, :2] == 1 / 16).all() and (maps[0, 0, 2:] == 0).all()


def test_agreement_compares_runs_of_different_seeds_only(tmp_path):
    study = load_study("demo-full")
    study.seeds = [0, 1]
    study.experiments = {k: study.experiments[k] for k in ("2d-multi", "3d-scratch")}
    rng = np.random.default_rng(0)
    base = rng.random((4, 2, 8, 8)).astype("float32")
    noise = lambda: rng.random((4, 2, 8, 8)).astype("float32")
    kept = {
        ("2d-multi", 0): base,
        ("2d-multi", 1): base * 2,
        ("3d-scratch", 0): noise(),
        ("3d-scratch", 1): noise().repeat(2, 1),
    }
    for (e, s), maps in kept.items():
        (folder := tmp_path / "runs" / study.folder(e, s) / "maps").mkdir(parents=True)
        np.savez_compressed(
            folder / "layer2-gradcam.npz",
            ids=np.array(list("wxyz")),
            maps=maps.astype("float16"),
            grid=maps.shape[1:],
        )
    table = agreement(study, tmp_path, "layer2:gradcam").set_index(["a", "b"])
    assert list(table.index) == [
        ("2d-multi", "2d-multi"),
        ("2d-multi", "3d-scratch"),
        ("3d-scratch", "3d-scratch"),
    ]
    assert (
        table.loc[("2d-multi", "2d-multi"), "mean"] == pytest.approx(1, abs=1e-3)
        and abs(table.loc[("2d-multi", "3d-scratch"), "mean"]) < 0.3
    )
    assert table["clips"].eq(4).all() and saved_maps(
        tmp_path / "runs" / "2d-multi-s0", "layer2:gradcam"
    )[0] == list("wxyz")
    study.seeds = [0]
    assert agreement(study, tmp_path, "layer2:gradcam").empty


def judged(**score):
    "A table as `judge_sources` gives it: for each source a pair of (score, interpretable), one a network."
    return pd.DataFrame(
        [
            dict(
                experiment=e,
                source=k.replace("_", ":"),
                score=s,
                interpretable=ok,
                why="" if ok else "pointing: not above middle",
            )
            for k, pairs in score.items()
            for e, (s, ok) in zip("ab", pairs)
        ]
    )


def test_the_source_is_the_best_that_every_network_lets_one_believe():
    table = judged(
        stem_layercam=[(0.9, True), (0.9, False)],
        layer2_gradcam=[(0.5, True), (0.6, True)],
        layer1_hirescam=[(0.4, True), (0.4, True)],
    )
    assert choose_source(table) == dict(source="layer2:gradcam", interpretable=True, why="")
    assert choose_source(table, "layer1:hirescam")["source"] == "layer1:hirescam"
    found = choose_source(table, "stem:layercam")
    assert not found["interpretable"] and found["why"] == "b: pointing: not above middle"
    with pytest.raises(ValueError, match="cam.source 'layer9:gradcam' is none of the sources"):
        choose_source(table, "layer9:gradcam")


def test_without_a_believable_source_the_best_is_shown_and_not_believed():
    assert (
        choose_source(judged(stem_layercam=[(0.9, True), (0.9, False)]))["interpretable"] is False
    )
    none = choose_source(judged(), known=["stem:gradcam", "layer2:gradcam", "layer2:layercam"])
    assert (
        none["source"] == "layer2:gradcam"
        and not none["interpretable"]
        and "no boxes" in none["why"]
    )


def test_reference_maps_are_never_what_the_report_rests_on():
    assert (
        choose_source(
            judged(layer2_gradcam=[(0.5, True), (0.5, True)]).pipe(
                lambda t: pd.concat([t, t.assign(source="occlusion", score=0.9)])
            )
        )["source"]
        == "layer2:gradcam"
    )


def test_a_second_world_that_is_not_there_is_named(tmp_path):
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump(
            dict(
                title="t",
                data=dict(root="d"),
                seeds=[0],
                experiments=dict(a=dict(title="a", model="r3d_18")),
                second_world="demo-distracter",
            )
        )
    )
    with pytest.raises(FileNotFoundError, match="did you mean 'demo-distractor'"):
        load_study(tmp_path / "study.yaml", root=project_root())


def make(target, study, results):
    "Have the workflow do a job of a study's results."
    import subprocess
    import sys

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            "workflow/Snakefile",
            "--directory",
            ".",
            "--cores",
            "2",
            "--config",
            f"study={study}",
            f"results={results}",
            "--",
            str(results / target),
        ],
        cwd=project_root(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.slow
def test_the_maps_of_a_dilated_last_stage_are_refused(tmp_path):
    "This project's old setting, trained until it is right: each cell of layer4 sees the whole picture, and its place says nothing."
    exp = dict(
        title="3D",
        model="i3d:test_resnet",
        output_stride=8,
        n_frames=8,
        min_area=0.8,
        batch_size=8,
        lr=8e-3,
        epochs=10,
    )
    study = dict(
        title="dilated",
        data=dict(
            root=str(tmp_path / "world"),
            demo=dict(train_per_class=80, val_per_class=4, size=112, seed=0),
            size=64,
        ),
        seeds=[0],
        cam=dict(sources=["layer4:gradcam"]),
        experiments={"3d-scratch": exp},
    )
    (tmp_path / "dilated.yaml").write_text(yaml.safe_dump(study))
    make("flags/sources-3d-scratch-s0", tmp_path / "dilated.yaml", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "runs" / "3d-scratch-s0" / "metrics.json").read_text())[
            "top1"
        ]
        > 0.8
    )
    found = interpretable(
        pd.read_parquet(tmp_path / "out" / "runs" / "3d-scratch-s0" / "sources.parquet").assign(
            seed=0, scene=lambda t: t["id"]
        )
    )
    row = found.set_index("source").loc["layer4:gradcam"]
    assert not row["interpretable"] and "ratio_both" in row["why"], row


def test_maps_of_zeros_are_counted_by_source_and_network(tmp_path):
    study = load_study("smoke")
    simulate(study, tmp_path)
    file = tmp_path / "runs" / "3d-scratch-s0" / "sources.parquet"
    rows = pd.read_parquet(file)
    gone = (rows["source"] == "layer2:gradcam") & (rows["map"] == "own")
    rows.loc[gone & rows["id"].isin([f"t{i}" for i in range(20)]), ["ratio_both", "pointing"]] = (
        np.nan
    )
    rows.to_parquet(file)
    found = judge_sources(study, tmp_path).set_index(["experiment", "source"])
    assert (found["maps"] == 24).all()
    assert found.loc[("3d-scratch", "layer2:gradcam"), "empty"] == 20
    assert found["empty"].sum() == 20


@pytest.mark.slow
def test_a_tiny_study_and_its_second_world_from_data_to_verdicts(tmp_path):
    "Through the workflow: the second world is made by the same rules, and each table has its rows. Accuracies mean nothing here."
    demo, one = (
        dict(train_per_class=2, val_per_class=2, size=64, seed=0),
        dict(title="flat", model="test_resnet", stages=2, n_frames=4, epochs=1, batch_size=4),
    )
    deep = dict(one, title="deep", model="i3d:test_resnet")
    study = lambda name, distractor, **kw: (tmp_path / f"{name}.yaml").write_text(
        yaml.safe_dump(
            dict(
                title=name,
                data=dict(
                    root=str(tmp_path / name), demo=dict(demo, distractor=distractor), size=32
                ),
                **kw,
            )
        )
    )
    taught = {"flat": one, "flat-flags": dict(one, title="flags", shortcut_of="flat")}
    study("second", True, seeds=[0], experiments=taught)
    study(
        "first",
        False,
        seeds=[0, 1],
        experiments={"flat": one, "deep": deep},
        second_world=str(tmp_path / "second.yaml"),
    )
    out = tmp_path / "out"
    make("flags/validation", tmp_path / "first.yaml", out)
    verdicts, checks, agree, sources = (
        pd.read_csv(out / "tables_validation" / f"{n}.csv")
        for n in ("validation", "checks", "stability", "sources")
    )
    assert (
        set(verdicts["experiment"]) == {"flat"}
        and "ratio_mark" in set(verdicts["measure"])
        and verdicts["separates"].dtype == bool
    )
    right = verdicts.set_index("measure")["right_map"]
    assert right["pointing"] > 0.9 and right["ratio_background"] < 0.5 and right["ratio_action"] > 1
    assert set(checks["experiment"]) == {"flat", "deep"} and {
        "deletion",
        "deletion_random",
        "insertion",
        "sanity",
        "stability",
    } <= set(checks["check"])
    assert len(agree) == 3
    deep = sources[sources["experiment"] == "deep"]
    assert (
        not deep["interpretable"].any() and deep["why"].str.contains("no network of its kind").all()
    )
    without = pd.read_parquet(out / "tables_validation" / "evidence.parquet")
    assert set(without["part"]) == {"nothing", "evidence", "distractor", "flags"}
    cells = json.loads((out / "validation_run.ipynb").read_text())["cells"]
    labelled = {
        "".join(c["source"]).split("\n")[0]: c["outputs"]
        for c in cells
        if "".join(c["source"]).startswith("#| label")
    }
    assert all(
        labelled[f"#| label: {k}"]
        for k in ("tbl-validation", "fig-validation", "fig-worlds", "tbl-checks", "fig-sane")
    )


def refuses_what_is_only_conspicuous(rows):
    "Of a network trained beside a distractor: maps that deserve it pass, a picture of edges and motion in their place does not."
    rows = rows.assign(scene=rows["id"])
    found = interpretable(rows).set_index("source")
    deserved = ["stem:layercam", "stem:hirescam", "layer1:layercam", "layer1:hirescam"]
    assert found.loc[deserved, "interpretable"].all(), found["why"].to_dict()
    one = rows[rows["source"] == "stem:hirescam"]
    own, above = (one[one["map"] == kind] for kind in ("own", "random above"))
    edges = rows[rows["map"] == "edges x motion"]
    swapped = {"ratio_both": "ratio_distractor", "ratio_distractor": "ratio_both"}
    refused = {
        "not above edges x motion": edges,
        "on the distractor as much as on the evidence": own.rename(columns=swapped),
        "not above random above": above[above["draw"] == 0],
    }
    right = own.set_index("id")["accuracy"]
    others = rows[(rows["map"] != "own") & rows["source"].isin(("stem:hirescam", ""))]
    others = others[(others["map"] != "random above") | (others["draw"] > 0)]
    for why, maps in refused.items():
        named = dict(source="stem:hirescam", map="own", draw=0, accuracy=maps["id"].map(right))
        judged = interpretable(pd.concat([others, maps.assign(**named)])).iloc[0]
        assert not judged["interpretable"] and why in judged["why"], (why, judged["why"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_in_other_distractor_worlds_the_rule_tells_evidence_from_what_is_conspicuous(
    tmp_path, seed
):
    "The demo's second world drawn and trained anew: the evidence carries the class and the distractor nothing, and the rule knows it."
    second = load_study("demo-distractor")
    second.data.root, second.data.demo.seed, second.seeds = str(tmp_path / "world"), seed, [seed]
    path = write_study(second, tmp_path)
    for name in ("2d-multi", "3d-inflated"):
        make(f"flags/sources-{name}-s{seed}", path, tmp_path / "out")
        run = tmp_path / "out" / "runs" / f"{name}-s{seed}"
        without = pd.read_parquet(run / "evidence.parquet").groupby("part")["right"].mean()
        assert without["nothing"] > (0.75 if name == "3d-inflated" else 0.45)
        assert without["evidence"] < 0.2
        assert abs(without["distractor"] - without["nothing"]) < 0.06
        refuses_what_is_only_conspicuous(pd.read_parquet(run / "sources.parquet").assign(seed=seed))
