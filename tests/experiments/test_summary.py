"""A row of a comparison: whether users fare otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon
from sweeps import cell

from recbole_fedras.experiments.summary import significance
from recbole_fedras.experiments.sweep import Sweep


def test_metrics_without_hits_have_no_test(workspace, in_process):
    keys = {"metrics": ["ItemCoverage"], "valid_metric": "ItemCoverage@10"}
    outcome = Sweep(Path("out"), 1).run([cell(**keys)])[0]
    assert outcome["ranks"] == []
    assert np.isnan(significance([outcome], [outcome])[2])


def test_significance_is_wilcoxons_over_users_with_its_direction():
    rng = np.random.default_rng(0)
    first = [{"ranks": rng.integers(2, 10, 60).tolist()} for _ in range(2)]
    better = [{"ranks": [max(rank - 1, 1) for rank in own["ranks"]]} for own in first]
    n_better, n_worse, p = significance(better, first)
    assert (n_better, n_worse) == (60, 0)
    change = np.mean([1 / np.array(own["ranks"]) for own in better], 0) - np.mean(
        [1 / np.array(own["ranks"]) for own in first], 0
    )
    assert p == pytest.approx(wilcoxon(change).pvalue)
    assert p < 1e-6
    assert significance(first, better)[:2] == (0, 60)
    assert significance(first, first) == (0, 0, 1.0)
    assert np.isnan(significance(first, [{"ranks": [1] * 59}])[2])
    lost = [{"ranks": [0] * 60} for _ in range(2)]  # not among the first is worst
    assert significance(lost, first)[:2] == (0, 60)
