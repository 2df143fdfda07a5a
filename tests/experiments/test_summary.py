"""A row of a comparison: whether users fare otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2, wilcoxon
from sweeps import cell

from recbole_fedras.experiments.rank_plot import draw_order
from recbole_fedras.experiments.statistics import adjusted, difference, interval, order
from recbole_fedras.experiments.summary import summaries
from recbole_fedras.experiments.sweep import Sweep


def test_metrics_without_hits_have_no_test(workspace, in_process):
    keys = {"metrics": ["ItemCoverage"], "valid_metric": "ItemCoverage@10"}
    outcome = Sweep(Path("out"), 1).run([cell(**keys)])[0]
    assert outcome["ranks"] == []
    assert np.isnan(difference([outcome], [outcome]).p)


def test_a_difference_is_wilcoxons_over_users_with_its_direction():
    rng = np.random.default_rng(0)
    first = [{"ranks": rng.integers(2, 10, 60).tolist()} for _ in range(2)]
    better = [{"ranks": [max(rank - 1, 1) for rank in own["ranks"]]} for own in first]
    n_better, n_worse, effect, p = difference(better, first)
    assert (n_better, n_worse, effect) == (60, 0, 1)
    change = np.mean([1 / np.array(own["ranks"]) for own in better], 0) - np.mean(
        [1 / np.array(own["ranks"]) for own in first], 0
    )
    assert p == pytest.approx(wilcoxon(change).pvalue)
    assert p < 1e-6
    assert difference(first, better)[:3] == (0, 60, -1)
    assert difference(first, first) == (0, 0, 0, 1)
    assert np.isnan(difference(first, [{"ranks": [1] * 59}]).p)
    lost = [{"ranks": [0] * 60} for _ in range(2)]  # not among the first is worst
    assert difference(lost, first)[:2] == (0, 60)


def test_effects_are_rank_biserial_correlations():
    """Changes of 1/2, 1/4 and, the largest, -3/4 have the ranks 2, 1 and 3."""
    first, other = [{"ranks": [0, 0, 1]}], [{"ranks": [2, 4, 4]}]
    assert difference(other, first).effect == pytest.approx((2 + 1 - 3) / 6)
    assert difference([{"ranks": [2, 4, 1]}], first).effect == 1


def test_p_values_are_corrected_for_their_number():
    """By hand: p m / rank, and no less than that of a smaller p."""
    found = adjusted([0.01, np.nan, 0.04, 0.03])
    assert found == pytest.approx([0.03, np.nan, 0.04, 0.04], nan_ok=True)
    assert np.isnan(adjusted([np.nan])).all()


@pytest.mark.slow
def test_intervals_cover_a_mean_as_often_as_they_say():
    """Of users alike in all seeds; more seeds of the same then tell nothing new."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(40):
        ranks = np.where(rng.random(150) < 0.3, 2, 0).tolist()
        low, high = interval("ndcg@10", [{"ranks": ranks}] * 2)
        covered += low < 0.3 / np.log2(3) < high
    assert covered >= 35
    assert interval("hit@1", [{"ranks": [2, 2, 3]}]) == (0, 0)
    assert interval("mrr@3", [{"ranks": [2, 2, 2]}]) == (0.5, 0.5)
    several = {"ranks": [1, 1], "result": {"test_result": {"ndcg@10": 0.8}}}
    assert interval("ndcg@10", [several]) is None
    assert interval("itemcoverage@10", [{"ranks": [1]}]) is None
    assert interval("hit@10", [{"ranks": [1]}, {"ranks": [1, 2]}]) is None


def test_what_is_gained_has_an_interval_over_the_same_users_and_seeds():
    """Users differ much, and gain alike: that is sure, and their mean is not."""
    rng = np.random.default_rng(0)
    hits = rng.random((3, 300)) < 0.5
    more = hits | (rng.random((3, 300)) < 0.2)
    first, other = (
        [{"ranks": np.where(of_seed, 1, 0).tolist()} for of_seed in group]
        for group in (hits, more)
    )
    low, high = interval("hit@10", other, first)
    assert low < (more.mean() - hits.mean()) < high
    assert 0.05 < low < high < 0.15
    wide = np.diff(interval("hit@10", other))[0]
    assert high - low < 0.8 * wide
    unlike = [{"ranks": run["ranks"][1:]} for run in first]
    assert interval("hit@10", other, unlike) is interval("hit@10", other, []) is None


def test_ranks_of_methods_are_told_apart_by_nemenyis_test():
    """For four methods tables have 2.569: 2.569 sqrt(4 5 / (6 14)) is 1.25."""
    scores = {name: [place] * 14 for place, name in enumerate("abcd")}
    found = order(scores)
    assert found.ranks == [4, 3, 2, 1]
    assert found.p == pytest.approx(chi2.sf(42, 3))  # 12 14 / (4 5) 30 - 3 14 5
    assert found.critical == pytest.approx(1.25, abs=0.005)
    assert order({name: values[:4] for name, values in scores.items()}) is None
    assert order(dict(list(scores.items())[:2])) is None
    assert draw_order(found).axes[0].get_xlabel().startswith("mean rank over 14 cells")


def test_what_is_tested_against_itself_has_no_corrected_p_value():
    sent = {"uplink_bytes": 1, "downlink_bytes": 1, "catch_up_bytes": 0}
    sent |= {"dense_bytes": 4, "wire_compression_rate": 0.5}
    result = {"test_result": {"hit@10": 0.5}, "communication": sent}
    result |= {"seconds": {"total": 1.0}}
    run = {"result": result, "measure": "train_and_test", "ranks": [1, 2, 30] * 5}
    run |= {"made": {"code": None, "commit": "abc"}, "config": {"learning_rate": 0.3}}
    worse = run | {"ranks": [2, 4, 30] * 5}
    first, other = summaries({"first": [run], "other": [worse]})
    assert first["p adjusted"] == first["hit@10 - first"] == ""
    assert other["hit@10 - first"] == 0
    assert (other["hit@10 - first low"], other["hit@10 - first high"]) == (None, None)
    assert 0 < other["p adjusted"] < 0.05
    assert (other["CR uplink"], other["learning rate"]) == (0.5, 0.3)
