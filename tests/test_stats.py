"""Intervals, tests and verdicts against reference calls, exact tests by hand, and thousands of studies in which nothing differs."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, permutation_test
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ssv2_report.analysis.sentences import verdict_words
from ssv2_report.analysis.stats import (
    NOT_COMPARED,
    accuracy,
    bootstrap,
    chance_interval,
    compare,
    compare_learning,
    contrast,
    difference_range,
    holm_corrected,
    judge,
    range_of,
    skewed_interval,
    skewed_t,
    two_parts,
    zero_p,
)
from ssv2_report.analysis.tables import mean_over_seeds, p_text
from ssv2_report.study.experiments import MEASURES, Hypothesis


def test_accuracy_counts_clips_not_seeds():
    t = pd.DataFrame(
        dict(
            experiment="a",
            seed=[0, 0, 0, 1, 1, 1],
            right=[1, 1, 1, 0, 0, 1],
            id=["a", "b", "c"] * 2,
        )
    )
    e = accuracy(mean_over_seeds(t, "right")).loc["a"]
    ref = binomtest(2, 3).proportion_ci(method="wilson")
    assert e["clips"] == 3 and e["mean"] == pytest.approx(2 / 3)
    assert (e["lo"], e["hi"]) == pytest.approx((ref.low, ref.high))


def test_bootstrap_agrees_with_scipy():
    x = np.random.default_rng(0).normal(1, 2, 300)
    ours = bootstrap(pd.Series(x)).iloc[0]
    ref = scipy_bootstrap(
        (x,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours["mean"] == pytest.approx(x.mean())
    assert (ours["lo"], ours["hi"]) == pytest.approx((ref.low, ref.high), abs=0.03)


def test_bootstrap_of_nothing_is_missing():
    e = bootstrap(pd.DataFrame(dict(a=[np.nan, np.nan]))).iloc[0]
    assert e["clips"] == 0 and np.isnan(e["mean"]) and np.isnan(e["lo"])


def test_chance_interval_is_the_binomials():
    lo, hi = chance_interval(128)
    assert (
        binomtest(round(lo * 128), 128).pvalue > 0.05 > binomtest(round(lo * 128) - 2, 128).pvalue
    )
    assert lo == pytest.approx(1 - hi)


def two(values, name="v"):
    "A table of experiments a and b from {(experiment, seed): values by clip}."
    return pd.concat(
        [
            pd.DataFrame(
                {"experiment": e, "seed": s, "id": [str(i) for i in range(len(v))], name: v}
            )
            for (e, s), v in values.items()
        ]
    )


def test_comparison_of_a_measure_is_paired_and_agrees_with_scipy():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 10, 200)
    a, b = (level + d + rng.normal(0, 1, 200) for d in (0.5, 0.0))
    c = compare(two({("a", 0): a, ("b", 0): b}), "v", "a", "b")
    ref = scipy_bootstrap(
        (a - b,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert c["mean"] == pytest.approx((a - b).mean()) and (c["lo"], c["hi"]) == pytest.approx(
        (ref.low, ref.high), abs=0.02
    )
    assert (
        c["d"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
        and c["d_lo"] < c["d"] < c["d_hi"]
        and c["p"] < 0.01
    )
    assert compare(two({("a", 0): a}), "v", "a", "b")["clips"] == 0


def test_comparison_of_accuracies_agrees_with_statsmodels_and_agresti_min():
    rng = np.random.default_rng(1)
    a, b = rng.random(150) < 0.8, rng.random(150) < 0.65
    c = compare(two({("a", 0): a, ("b", 0): b}, "right"), "right", "a", "b")
    table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
    assert c["p"] == pytest.approx(mcnemar(table, exact=True).pvalue)
    n12, n21, n = (
        table[0, 1] + 0.5,
        table[1, 0] + 0.5,
        152,
    )  # Agresti and Min 2005, section 3: half an observation more in each cell
    m, half = (n12 - n21) / n, 1.96 * np.sqrt((n12 + n21) - (n12 - n21) ** 2 / n) / n
    assert (c["lo"], c["hi"]) == pytest.approx((m - half, m + half))
    assert c["mean"] == pytest.approx(a.mean() - b.mean())


def test_twins_are_one_scene():
    "Two copies of each clip that answer alike add nothing: the interval and p are those of half as many clips."
    rng = np.random.default_rng(2)
    a, b = rng.random(60) < 0.8, rng.random(60) < 0.6
    one = two({("a", 0): a, ("b", 0): b}, "right")
    double = pd.concat([one, one.assign(id=one["id"] + "'")])
    scenes = {i: i.strip("'") for i in double["id"]}
    x, y, z = (
        compare(one, "right", "a", "b"),
        compare(double, "right", "a", "b", scenes),
        compare(double, "right", "a", "b"),
    )
    assert (y["lo"], y["hi"], y["p"], y["scenes"], y["clips"]) == pytest.approx(
        (x["lo"], x["hi"], x["p"], 60, 120)
    )
    assert z["p"] < y["p"] and z["hi"] - z["lo"] < 0.8 * (y["hi"] - y["lo"])
    one, double = (t.assign(v=t["right"] * 1.0) for t in (one, double))
    assert compare(double, "v", "a", "b", scenes)["lo"] == pytest.approx(
        compare(one, "v", "a", "b")["lo"]
    )
    assert (
        accuracy(mean_over_seeds(double, "right"), scenes)["lo"].tolist()
        == accuracy(mean_over_seeds(one, "right"))["lo"].tolist()
    )


def result(mean, p, by_seed, **kw):
    return (
        dict(
            mean=mean,
            lo=mean - 0.1,
            hi=mean + 0.1,
            p=p,
            p_within=np.nan,
            p_beyond=np.nan,
            by_seed=by_seed,
            scenes=100,
        )
        | kw
    )


def test_verdicts():
    found = dict(
        yes=result(0.3, 0.001, [0.2, 0.4]),
        no=result(-0.3, 0.001, [-0.2, -0.4]),
        seeds=result(0.3, 0.001, [0.7, -0.1]),
        weak=result(0.1, 0.03, [0.1, 0.1]),
        gone=result(np.nan, np.nan, [], why="no runs"),
        same=result(0.0, 0.9, [0.01, -0.01], p_within=0.001),
        differs=result(0.5, 0.001, [0.5, 0.5], p_within=0.9, p_beyond=0.002),
        few=result(0.3, np.nan, [0.3, 0.3], scenes=11),
    )
    judged = judge(found, dict(same=0.15, differs=0.15))
    assert judged["verdict"].to_dict() == dict(
        yes="supported",
        no="contradicted",
        seeds="undecided",
        weak="undecided",
        gone="not judged",
        same="supported",
        differs="contradicted",
        few="too few",
    )
    assert set(judged.loc[["yes", "no", "same", "differs"], "scope"]) == {"these networks"} and set(
        judged.loc[["seeds", "weak", "gone", "few"], "scope"]
    ) == {""}
    assert judge({}).empty and verdict_words(judge({}), {}) == ""


def test_the_family_is_all_that_was_declared():
    "Rule changed: what cannot be tested counts as p = 1; a margin's hypothesis enters with the p of what its estimate speaks for."
    found = dict(
        a=result(0.3, 0.001, [0.3]),
        same=result(0.0, 0.9, [0.0], p_within=0.004),
        gone=dict(NOT_COMPARED) | dict(why="no runs"),
        few=result(0.3, np.nan, [0.3], scenes=8),
        out=result(0.3, 1e-9, [0.3], why="its measure did not pass"),
        weak=result(0.3, 0.012, [0.3]),
    )
    judged = judge(found, dict(same=0.15))
    assert judged["p_holm"].dropna().to_dict() == pytest.approx(
        dict(
            zip(
                ("a", "same", "weak"),
                np.delete(
                    multipletests([0.001, 0.004, 1, 1, 1, 0.012], method="holm")[1], [2, 3, 4]
                ),
            )
        )
    )
    assert (
        judged.loc["weak", "verdict"] == "supported"
        and judge(found | dict(one=found["gone"]), dict(same=0.15)).loc["weak", "verdict"]
        == "undecided"
    )


def test_holms_correction_is_statsmodels():
    p = np.round(np.random.default_rng(0).random(40) ** 4, 2)  # ties, ones to cap, ones to raise
    assert holm_corrected(p).tolist() == multipletests(p, method="holm")[1].tolist()
    assert holm_corrected([]).tolist() == []


def test_a_verdict_is_of_architectures_only_where_seeds_allow_it():
    arch = lambda p, lo, hi: dict(
        arch_p=p, arch_lo=lo, arch_hi=hi, arch_p_within=np.nan, arch_p_beyond=np.nan
    )
    found = dict(
        sure=result(0.3, 0.001, [0.3, 0.2, 0.4], **arch(0.01, 0.1, 0.5)),
        run=result(0.3, 0.001, [0.3, 0.1, 0.5], **arch(0.2, -0.1, 0.7)),
    )
    judged = judge(found)
    assert judged["verdict"].eq("supported").all() and list(judged["scope"]) == [
        "architectures",
        "these networks",
    ]
    assert list(judged["p_holm"]) == pytest.approx(
        [0.02, 0.002]
    )  # each at its own scope; the family has two members at both
    h = {
        n: Hypothesis(says=f"{n} is larger", measure="ratio_both", of="a", over="b") for n in found
    }
    first, second = verdict_words(judged, h).split(" The hypothesis ")
    assert first.startswith("The hypothesis *sure* ([+0.30\u00a0[+0.10,\u00a0+0.50]](")
    assert first.endswith(" is supported.")
    assert second.startswith("*run* ([+0.30\u00a0[+0.20,\u00a0+0.40]](")
    assert second.endswith(" is supported for these networks.")


def test_the_smallest_difference_of_interest():
    found = dict(
        large=result(0.3, 0.001, [0.3], p_within=0.9),
        small=result(0.03, 0.001, [0.03], lo=0.01, hi=0.05, p_within=0.001),
        near=result(0.15, 0.001, [0.15], p_within=0.2),
        less=result(-0.3, 0.001, [-0.3], p_within=0.9),
        unsure=result(0.0, 0.9, [0.0], lo=-0.3, hi=0.3, p_within=0.3),
    )
    judged = judge(found, at_least=dict.fromkeys(found, 0.2))
    assert judged["verdict"].to_dict() == dict(
        large="supported",
        small="smaller",
        near="undecided",
        less="contradicted",
        unsure="undecided",
    )
    h = {
        n: Hypothesis(says=f"{n} is larger", measure="ratio_both", of="a", over="b", at_least=0.2)
        for n in found
    }
    assert re.search(
        r"The hypothesis \*small\* \([^()]+\(\S+ shows less than matters in one run\.",
        verdict_words(judged, h),
    )


def test_too_few_scenes_have_no_p_and_say_so():
    for n in (1, 2, 3, 5, 8, 11):
        for value in ("v", "right"):
            c = compare(two({("a", 0): np.ones(n), ("b", 0): np.zeros(n)}, value), value, "a", "b")
            judged = judge(dict(h=c))
            assert (
                np.isnan(c["p"])
                and judged.loc["h", "verdict"] == "too few"
                and judged.loc["h", "scope"] == ""
            )
    h = dict(h=Hypothesis(says="a is larger", measure="right", of="a", over="b"))
    assert verdict_words(judged, h).endswith(
        ", from 11 of at least 12 scenes) has too few scenes to judge."
    )
    assert (
        judge(
            dict(h=compare(two({("a", 0): np.ones(12), ("b", 0): np.zeros(12)}), "v", "a", "b"))
        ).loc["h", "verdict"]
        == "supported"
    )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_no_interval_leaves_the_range_of_its_measure(measure, n):
    low, high = range_of(measure, 8)
    ends = difference_range((low, high), (low, high))
    top = min(high, 5.0)
    most, least = np.full(n, top), np.full(n, low)
    most[0], least[-1] = low, top
    e = bootstrap(pd.Series(most), possible=(low, high)).iloc[0]
    assert low <= e["lo"] <= e["mean"] <= e["hi"] <= high
    values = {("a", s): np.roll(most, s) for s in range(3)}
    values |= {("b", s): np.roll(least, 2 * s) for s in range(3)}
    c = compare(two(values, measure), measure, "a", "b", possible=ends)
    for lo, hi in (("lo", "hi"), ("arch_lo", "arch_hi")):
        if np.isfinite(c[lo]):
            assert ends[0] <= c[lo] <= c["mean"] <= c[hi] <= ends[1]
    assert compare(two(values, measure), measure, "a", "b")["lo"] <= c["mean"] or n < 6


def test_a_learning_curves_interval_stays_within_its_range():
    rows = [
        dict(experiment=e, seed=s, epoch=1, val_top1=top)
        for e, tops in dict(a=(1.0, 1.0, 0.9), b=(0.0, 0.1, 0.0)).items()
        for s, top in enumerate(tops)
    ]
    c = compare_learning(pd.DataFrame(rows), "a", "b", 4)
    assert c["lo"] < c["mean"] < c["hi"] == 1 and c["arch_hi"] == 1


def test_a_p_that_draws_bound_from_below_is_told_as_at_most():
    "Seven hypotheses on reals of one sign: no pattern drawn reaches the mean, and Hall's t is smaller yet."
    rng = np.random.default_rng(0)
    clear = contrast(pd.DataFrame(rng.normal(3, 1, 60)))
    exact = contrast(pd.DataFrame(np.ones(14)))  # two of all patterns, counted
    rest = {str(k): contrast(pd.DataFrame(rng.normal(0, 1, 60))) for k in range(5)}
    judged = judge(dict(clear=clear, exact=exact) | rest)
    assert judged["p_at_most"].to_dict() == dict.fromkeys(judged.index, False) | dict(clear=True)
    assert [p_text(p, q) for p, q in zip(judged["p_holm"], judged["p_at_most"])][:2] == [
        "≤\u00a00.003",
        "<\u00a00.001",
    ]
    assert (
        p_text(0.0123) == "0.012" and p_text(np.nan) == "–" and p_text(0.0121, True)[2:] == "0.013"
    )


def test_a_claim_of_no_difference_needs_clips_enough():
    rng = np.random.default_rng(0)
    few, many = (
        compare(
            two({(e, 0): rng.random(n) < 0.95 for e in "ab"}, "right"),
            "right",
            "a",
            "b",
            margin=0.1,
        )
        for n in (15, 1500)
    )
    assert (
        judge(dict(h=few), dict(h=0.1)).loc["h", "verdict"] == "undecided"
        and judge(dict(h=many), dict(h=0.1)).loc["h", "verdict"] == "supported"
    )


def test_learning_compares_the_epochs_that_both_have():
    h = pd.concat(
        [
            pd.DataFrame(dict(experiment=e, seed=s, epoch=range(1, 1 + n), val_top1=top))
            for e, n, top in (("a", 3, 0.9), ("b", 6, 0.6))
            for s in (0, 1)
        ]
    )
    c = compare_learning(h, "a", "b", 100)
    assert (
        c["mean"] == pytest.approx(0.3)
        and c["lo"] > 0
        and c["p"] < 1e-4
        and c["by_seed"] == pytest.approx([0.3, 0.3])
    )
    assert compare_learning(h, "a", "c", 100)["clips"] == 0


# The test for these networks: its p by hand, and how often it errs.


def test_all_signs_equal_gives_the_exact_sign_test():
    for n in range(1, 9):
        assert zero_p(np.full(n, 0.11)) == pytest.approx(2 ** (1 - n)) == binomtest(n, n).pvalue


@pytest.mark.parametrize("values", ["thirds", "reals"])
def test_p_is_no_less_than_scipys_over_all_signs(values):
    rng = np.random.default_rng(3)
    for _ in range(10):
        x = rng.integers(-3, 5, 11) / 3 if values == "thirds" else rng.normal(0.4, 1, 11)
        ref = permutation_test(
            (x,), np.mean, permutation_type="samples", n_resamples=np.inf
        ).pvalue  # all signs
        hall = 2 * student.sf(abs(skewed_t(x[x != 0], np.ones((x != 0).sum()))), (x != 0).sum() - 1)
        assert zero_p(x) == pytest.approx(min(max(ref, hall), 1), rel=1e-6)


def test_large_tables_of_shares_are_counted_not_drawn():
    x = np.r_[np.ones(9000), -np.ones(8700), np.zeros(7000)]
    assert zero_p(x) == pytest.approx(mcnemar([[0, 9000], [8700, 0]], exact=True).pvalue, rel=1e-6)
    thirds = np.random.default_rng(0).integers(-3, 4, 20_000) / 3
    assert zero_p(thirds) == pytest.approx(
        2 * student.sf(abs(thirds.sum()) / np.sqrt((thirds**2).sum()), 10**6), rel=0.02
    )


def test_halls_interval_is_what_his_t_does_not_refuse():
    x = np.random.default_rng(1).exponential(size=30)
    for end in skewed_interval(x, np.ones(30)):
        assert 2 * student.sf(abs(skewed_t(x, np.ones(30), end)), 29) == pytest.approx(0.05)


@pytest.mark.parametrize("n", [6, 12, 20, 100])
def test_an_intervals_coverage_is_what_it_says(n, trials=400):
    "95 %; for fewer than 12 scenes of an exponential measure, 93 %."
    rng, hits = np.random.default_rng(n), dict.fromkeys(("normal", "skewed", "mean"), 0)
    for k in range(trials):
        for name, x in dict(normal=rng.normal(size=n), skewed=rng.exponential(size=n) - 1).items():
            c = contrast(pd.DataFrame(x), n=400, seed=k)
            hits[name] += c["lo"] <= 0 <= c["hi"]
        m = bootstrap(pd.Series(rng.exponential(size=n)), n=250).iloc[0]
        hits["mean"] += m["lo"] <= 1 <= m["hi"]
    wanted = dict(normal=0.95, skewed=0.95, mean=0.95 if n >= 12 else 0.93)
    assert all(
        binomtest(h, trials, wanted[k], alternative="less").pvalue > 0.01 for k, h in hits.items()
    ), hits


NULLS = {  # differences without a difference in the mean: the first four symmetric, as where networks are alike; the others skewed
    "normal": lambda rng, n: rng.normal(size=n),
    "-1, 0, 1": lambda rng, n: rng.choice([-1, 0, 1], n, p=[0.1, 0.8, 0.1]),
    "skewed measure": lambda rng, n: rng.lognormal(size=n) - rng.lognormal(size=n),
    "mostly zero": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.2),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1,
    "skewed, bounded": lambda rng, n: rng.beta(0.5, 2, n) - 0.2,
    "skewed, mostly zero": lambda rng, n: (rng.exponential(size=n) - 1) * (rng.random(n) < 0.3),
}


@pytest.mark.parametrize(
    "n, trials",
    [(n, 150) for n in (2, 12, 40)]
    + [
        pytest.param(n, 4000, marks=pytest.mark.slow)
        for n in (2, 3, 5, 6, 8, 12, 16, 20, 40, 70, 100, 200)
    ],
)
def test_a_null_gives_a_verdict_in_five_percent_at_most(n, trials):
    "Of the test itself, 12 scenes or not: one hypothesis, no correction, no seeds to agree."
    rng = np.random.default_rng(n)
    hits = {
        name: sum(zero_p(draw(rng, n), 999, k) < 0.05 for k in range(trials))
        for name, draw in NULLS.items()
    }
    print(n, {k: round(100 * h / trials, 1) for k, h in hits.items()})
    assert all(
        binomtest(h, trials, 0.05, alternative="greater").pvalue > 0.005 for h in hits.values()
    ), hits


def null_study(rng, clips=120, seeds=2, comparisons=4):
    "Verdicts of a study in which nothing differs: half of the comparisons are of accuracies, half of a measure, on clips of unequal difficulty."
    found = {}
    for k in range(comparisons):
        hard = rng.normal(0, 1, clips)
        taste = {
            e: rng.normal(0, 1, clips) for e in "ab"
        }  # what an architecture finds easy: shared by its seeds
        t = two(
            {
                (e, s): hard + taste[e] + rng.normal(0, 0.5, clips)
                for e, s in product("ab", range(seeds))
            }
        )
        found[str(k)] = (
            compare(t.assign(right=t["v"] > 0), "right", "a", "b")
            if k % 2
            else compare(t, "v", "a", "b", n=2000, seed=k)
        )
    return judge(found)["verdict"]


@pytest.mark.parametrize("studies", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_null_is_seldom_supported(studies):
    """Holm holds the share of studies with any false verdict at 5 %, half of it on the side of 'supported'. Rule changed: 5 % is a bound and not the rate
    itself, since a verdict also needs an interval and Hall's t to agree."""
    rng = np.random.default_rng(7)
    verdicts = [null_study(rng) for _ in range(studies)]
    any_false, supported = (
        sum(hit(v) for v in verdicts)
        for hit in (lambda v: (v != "undecided").any(), lambda v: (v == "supported").any())
    )
    print(f"{studies} null studies: any verdict in {any_false}, 'supported' in {supported}")
    assert (
        binomtest(any_false, studies, 0.05, alternative="greater").pvalue > 0.05
        and binomtest(supported, studies, 0.025, alternative="greater").pvalue > 0.05
    )


# The test for architectures.


def shifted(rng, clips, seeds, shift, effect=0.0, hypotheses=7):
    """Judged hypotheses of a study whose two architectures differ by `effect`, and each trained network by a shift of its own (of the clips' standard deviation).
    Seeds of one pair of networks agree with a correlation of one half on a clip."""
    draw = lambda: (
        np.sqrt(0.5) * rng.normal(size=(clips, 1))
        + np.sqrt(0.5) * rng.normal(size=(clips, seeds))
        + effect
        + rng.normal(0, shift * np.sqrt(2), seeds)
    )
    return judge({str(k): contrast(pd.DataFrame(draw()), n=999, seed=k) for k in range(hypotheses)})


SHIFTS = [
    (shift, seeds, clips) for shift in (0, 0.1, 0.3) for seeds in (2, 3, 5) for clips in (80, 3480)
]


@pytest.mark.parametrize(
    "shift, seeds, clips, studies",
    [(0.1, 2, 80, 6), (0.3, 3, 80, 12), (0.3, 3, 3480, 3)]
    + [pytest.param(*s, 200, marks=pytest.mark.slow) for s in SHIFTS],
)
def test_a_shift_of_the_trained_networks_is_no_verdict_on_architectures(
    shift, seeds, clips, studies
):
    rng = np.random.default_rng([int(10 * shift), seeds, clips])
    judged = [shifted(rng, clips, seeds, shift) for _ in range(studies)]
    of = lambda scope: [
        ((j["scope"] == scope) & (j["verdict"] != "undecided")).sum() for j in judged
    ]
    false, these = of("architectures"), of("these networks")
    print(
        f"| {shift} | {seeds} | {clips} | {100 * np.sum(false) / (7 * studies):.2f} % | {100 * np.mean(np.array(false) > 0):.1f} % | {100 * np.sum(these) / (7 * studies):.1f} % |"
    )
    assert seeds > 2 or not any(false)
    assert binomtest(int(np.sum(false)), 7 * studies, 0.05, alternative="greater").pvalue > 0.01
    assert (
        binomtest(int(np.sum(np.array(false) > 0)), studies, 0.05, alternative="greater").pvalue
        > 0.01
    )


@pytest.mark.parametrize(
    "effect, shift, seeds, clips, studies, least, these",
    [(0.5, 0, 3, 80, 5, 0.8, 0.95)]
    + [
        pytest.param(*c, 60, *p, marks=pytest.mark.slow)
        for *c, p in (
            (0.5, 0.05, 3, 80, (0.4, 0.95)),
            (0.5, 0.05, 3, 3480, (0.95, 0.95)),
            (0.5, 0.1, 3, 80, (0.1, 0.95)),
            (0.5, 0.1, 3, 3480, (0.25, 0.95)),
            (0.5, 0.1, 5, 80, (0.9, 0.95)),
            (0.5, 0.1, 5, 3480, (0.95, 0.95)),
            (0.5, 0.3, 5, 3480, (0.1, 0.5)),
        )
    ],
)
def test_a_real_difference_is_found(effect, shift, seeds, clips, studies, least, these):
    """Half a standard deviation, in all seven hypotheses: how often it is a verdict on architectures, and how often one at all. The floors lie somewhat below what was
    measured. With a shift of 0.3 the seeds' differences spread by 0.42, so that all five agree in sign in 53 % of studies only."""
    rng = np.random.default_rng([int(100 * shift), seeds, clips])
    judged = pd.concat([shifted(rng, clips, seeds, shift, effect) for _ in range(studies)])
    arch = (judged["verdict"].eq("supported") & judged["scope"].eq("architectures")).mean()
    print(
        f"| {effect} | {shift} | {seeds} | {clips} | {100 * arch:.0f} % | {100 * judged['verdict'].eq('supported').mean():.0f} % |"
    )
    assert arch >= least and judged["verdict"].eq("supported").mean() >= these


def test_banerjees_interval_covers_whatever_the_parts(trials=20_000):
    rng = np.random.default_rng(5)
    for seeds, between in product((3, 5), (0.0, 0.3, 1.0, 3.0)):
        mean = rng.normal(size=trials) * np.hypot(1, between)
        se = between * np.sqrt(rng.chisquare(seeds - 1, trials) / (seeds - 1))
        half = np.hypot(
            student.ppf(0.975, 79) * np.sqrt(rng.chisquare(79, trials) / 79),
            student.ppf(0.975, seeds - 1) * se,
        )
        assert (
            binomtest(int((np.abs(mean) > half).sum()), trials, 0.05, alternative="greater").pvalue
            > 0.01
        )
    p = two_parts(1.0, ((0.2, 79), (0.15, 2)))
    assert np.hypot(student.isf(p / 2, 79) * 0.2, student.isf(p / 2, 2) * 0.15) == pytest.approx(
        1.0, rel=1e-6
    )
    assert two_parts(0.0, ((0.2, 79),)) == pytest.approx(1.0) and two_parts(
        0.5, ((0.2, 9),)
    ) == pytest.approx(2 * student.sf(2.5, 9))


def test_learning_takes_seeds_as_drawn(scenes=5000):
    tops = {"a": [0.70, 0.60, 0.66], "b": [0.60, 0.58, 0.62]}
    h = pd.DataFrame(
        [
            dict(experiment=e, seed=s, epoch=1, val_top1=v)
            for e, x in tops.items()
            for s, v in enumerate(x)
        ]
    )
    c = compare_learning(h, "a", "b", scenes)
    assert c["p"] < 1e-6 and c["arch_p"] > 0.05 and c["arch_lo"] < 0 < c["lo"]
    assert judge(dict(h=c)).loc["h", ["verdict", "scope"]].tolist() == [
        "supported",
        "these networks",
    ]
    assert np.isnan(compare_learning(h, "a", "b", 8)["p"])
