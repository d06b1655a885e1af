"""Statistics against reference calls, and case studies against their rule."""
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap as scipy_bootstrap

from ssv2_report.analysis import accuracy, bootstrap, chance_interval, choose_cases, compare, score_clips, verdict

CLASSES = ["Folding something", "Unfolding something", "Holding something"]
PAIRS = [("Folding something", "Unfolding something")]


def test_scores_by_hand():
    p = pd.DataFrame(dict(id=list("abc"), target=[0, 1, 2], logits=[[2., 1, 5], [2, 1, 0], [0, 0, 1]]))
    s = score_clips(p, CLASSES, PAIRS)
    assert list(s["right"]) == [False, False, True] and list(s["in_pair"]) == [True, True, False]
    assert list(s["pair_right"][:2]) == [1, 0] and np.isnan(s["pair_right"][2])
    assert s["own"][0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert s["certainty"][0] == pytest.approx(np.exp(5) / (np.exp(2) + np.exp(1) + np.exp(5)))


def test_accuracy_counts_clips_not_seeds():
    right, ids = [1, 1, 1, 0, 0, 1], ["a", "b", "c", "a", "b", "c"]
    e = accuracy(right, ids)
    ref = binomtest(2, 3).proportion_ci(method="wilson")
    assert e["clips"] == 3 and e["mean"] == pytest.approx(2 / 3)
    assert (e["lo"], e["hi"]) == pytest.approx((ref.low, ref.high))


def test_bootstrap_agrees_with_scipy():
    x = np.random.default_rng(0).normal(1, 2, 300)
    ours = bootstrap(x, np.arange(300))
    ref = scipy_bootstrap((x,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert ours["mean"] == pytest.approx(x.mean())
    assert (ours["lo"], ours["hi"]) == pytest.approx((ref.low, ref.high), abs=0.03)


def test_bootstrap_of_nothing_is_missing():
    e = bootstrap([np.nan], ["a"])
    assert e["clips"] == 0 and np.isnan(e["mean"]) and verdict(e) == "undecided"


def test_chance_interval_is_the_binomials():
    lo, hi = chance_interval(128)
    assert binomtest(round(lo * 128), 128).pvalue > 0.05 > binomtest(round(lo * 128) - 2, 128).pvalue
    assert lo == pytest.approx(1 - hi)


def test_comparison_is_paired_by_clip():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 10, 200)
    t = pd.concat([pd.DataFrame(dict(experiment=e, id=np.arange(200), v=level + d + rng.normal(0, 0.1, 200))) for e, d in (("a", 0.5), ("b", 0.0))])
    c = compare(t, "v", "a", "b")
    assert c["lo"] > 0.4 and c["hi"] < 0.6 and verdict(c) == "supported" and verdict(compare(t, "v", "b", "a")) == "contradicted"
    assert compare(t, "v", "a", "missing")["clips"] == 0


def test_cases_follow_their_rule():
    rows = [("x", 0, True, (1, 0)), ("y", 1, True, (1, 1)), ("z", 2, False, (0, 0)), ("w", 0, True, (0, 1))]
    scored = pd.DataFrame([dict(experiment=e, id=i, target=t, in_pair=p, right=bool(r[k]), certainty=0.9 - 0.1 * n)
                           for n, (i, t, p, r) in enumerate(rows) for k, e in enumerate(("deep", "flat"))])
    cases = choose_cases(scored, dict(deep=True, flat=False), 4).set_index("id")["kind"].to_dict()
    assert cases == {"x": "3D right, 2D wrong", "y": "all right", "z": "all wrong", "w": "least certain"}
